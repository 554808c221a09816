//! `stemma rescue ...`: what old primaries held that the cluster does not.
//!
//! Read from disk, without a keeper: these are the users' data, and whoever wants them may have nothing else running.

use super::Context;
use super::target::node_file_path;
use crate::cli::{RescueCommand, RescueFormat};
use crate::node_file;
use crate::render::look::{Mark, Tone};
use crate::render::table::{Cell, Table, wrap};
use crate::render::{out, units};
use crate::sandbox::layout::Layout;
use model::{Outcome, Trouble};
use postgres::rescue::{self, Bundle, ExportFormat};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Width of the notes below a bundle.
const NOTE_WIDTH: usize = 96;

/// Runs the command.
pub fn run(context: &Context, command: RescueCommand) -> Result<u8, Trouble> {
    let places = places(context)?;
    match command {
        RescueCommand::List => list(context, &places)?,
        RescueCommand::Show { id } => {
            let (_, bundle) = find(&places, &id)?;
            show(context, &bundle);
        }
        RescueCommand::Export { id, format, to } => export(context, &places, &id, format, to.as_deref())?,
        RescueCommand::Delete { id } => delete(context, &places, &id)?,
    }
    Ok(0)
}

fn said(text: String) -> Outcome {
    Outcome {
        text,
        changed: true,
        operation: None,
        failover: None,
        candidates: Vec::new(),
        token: None,
        notes: Vec::new(),
    }
}

/// The directories that are looked into.
fn places(context: &Context) -> Result<Vec<PathBuf>, Trouble> {
    let global = &context.global;
    if global.config.is_none() {
        if let Some(directory) = &global.sandbox {
            let layout = Layout::load(directory)?;
            return Ok(layout.nodes.iter().map(|node| rescue::rescue_dir(&node.state_dir)).collect());
        }
        if !global.api.is_empty() {
            return Err(Trouble::usage(
                "rescue bundles are not read over the API: they are on the machine of the node that saved them",
                "go there and name its node file: stemma rescue list --config node.toml",
            ));
        }
    }
    let file = node_file::load(&node_file_path(global))?;
    Ok(vec![rescue::rescue_dir(&file.state_dir)])
}

fn find(places: &[PathBuf], id: &str) -> Result<(PathBuf, Bundle), Trouble> {
    let mut missing = Trouble::not_found(format!("there is no rescue bundle `{}`", id.escape_debug()), "");
    for place in places {
        match rescue::show(place, id) {
            Ok(bundle) => return Ok((place.clone(), bundle)),
            Err(trouble) if trouble.is("ST2108") => missing = trouble,
            Err(trouble) => return Err(trouble),
        }
    }
    Err(missing)
}

fn list(context: &Context, places: &[PathBuf]) -> Result<(), Trouble> {
    let mut bundles = Vec::new();
    for place in places {
        bundles.extend(rescue::list(place)?);
    }
    bundles.sort_by_key(|bundle| bundle.saved_at);
    if context.is_json() {
        context.print_json("rescues", &bundles);
        return Ok(());
    }
    if bundles.is_empty() {
        out::line("  nothing was lost: no bundles");
        return Ok(());
    }
    let mut table = Table::new(&["ID", "NODE", "TRANSACTIONS", "ROWS", "SIZE", "SAVED", "EXPORTED"]);
    for bundle in &bundles {
        let counts = &bundle.counts;
        table.row(vec![
            Cell::toned(Tone::Strong, bundle.id.as_str()),
            bundle.node.as_str().into(),
            units::count(counts.transactions).into(),
            units::count(counts.inserts + counts.updates + counts.deletes).into(),
            units::bytes(bundle.bytes).into(),
            units::time(bundle.saved_at).into(),
            match bundle.exported_at {
                Some(at) => units::time(at).into(),
                None => Cell::toned(Mark::Warn.tone(), "no"),
            },
        ]);
    }
    out::line(&table.render(&context.look).join("\n"));
    Ok(())
}

fn show(context: &Context, bundle: &Bundle) {
    if context.is_json() {
        return context.print_json("rescue", bundle);
    }
    out::line(&context.look.finish(&describe(bundle).join("\n")));
}

fn describe(bundle: &Bundle) -> Vec<String> {
    let counts = &bundle.counts;
    let exported =
        bundle.exported_at.map_or_else(|| "not exported".to_owned(), |at| format!("exported {}", units::time(at)));
    let mut lines = vec![
        format!("  {}", bundle.id),
        format!("  held by {} alone when {} became primary in epoch {}", bundle.node, bundle.primary, bundle.epoch),
        format!("  saved {}, {}, {exported}", units::time(bundle.saved_at), units::bytes(bundle.bytes)),
        format!(
            "  log of timeline {} from {} to {}, {} files",
            bundle.timeline,
            bundle.fork,
            bundle.end,
            bundle.log_files.len()
        ),
        format!(
            "  {} transactions: {} inserts, {} updates, {} deletes, {} truncates",
            units::count(counts.transactions),
            units::count(counts.inserts),
            units::count(counts.updates),
            units::count(counts.deletes),
            units::count(counts.truncates)
        ),
    ];
    let beside = [
        (counts.catalog, "changes of definitions, roles or large objects, which are not written out"),
        (counts.sequences, "changes of sequences, which are not written out"),
        (counts.incomplete, "changes that could not be read in full"),
    ];
    lines.extend(
        beside.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("  {} {what}", units::count(*count))),
    );
    for note in &bundle.not_decoded {
        lines.push(format!("  {}", wrap(&format!("{} {note}", Mark::Warn.sign()), NOTE_WIDTH, 4)));
    }
    lines.push(format!("  {}", wrap(&bundle.acknowledged, NOTE_WIDTH, 2)));
    lines
}

fn export(
    context: &Context,
    places: &[PathBuf],
    id: &str,
    format: RescueFormat,
    to: Option<&Path>,
) -> Result<(), Trouble> {
    let (place, bundle) = find(places, id)?;
    let format = match format {
        RescueFormat::Sql => ExportFormat::Sql,
        RescueFormat::Jsonl => ExportFormat::JsonLines,
    };
    if context.global.dry_run {
        let target = to.map_or_else(|| "standard output".to_owned(), |path| path.display().to_string());
        context.print_outcome(&said(format!("the changes of {} are written to {target}", bundle.id)));
        return Ok(());
    }
    let Some(to) = to else {
        rescue::export(&place, id, format, &mut std::io::stdout().lock())?;
        return Ok(());
    };
    let failed = |error: std::io::Error| {
        Trouble::os(format!("cannot write {}", to.display()), "name a file that does not exist yet").because(error)
    };
    // Closed to others, and never over something that is there.
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(to).map_err(failed)?;
    let bytes = rescue::export(&place, id, format, &mut Durable(&mut file))?;
    context.print_outcome(&said(format!("{} written to {}", units::bytes(bytes), to.display())));
    Ok(())
}

/// A file that is on disk when it was flushed: only then is the bundle noted as exported.
struct Durable<'a>(&'a mut File);

impl Write for Durable<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.sync_all()
    }
}

fn delete(context: &Context, places: &[PathBuf], id: &str) -> Result<(), Trouble> {
    let (place, bundle) = find(places, id)?;
    let exported = if bundle.exported_at.is_some() { "it was exported" } else { "it was never exported" };
    context.confirm(&format!("{id} is removed for good; {exported}"))?;
    if !context.global.dry_run {
        rescue::delete(&place, id)?;
    }
    context.print_outcome(&said(format!("{id} removed")));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Global, Output};
    use crate::render::look::Look;
    use model::WallTime;
    use postgres::rescue::Counts;
    use std::fs;

    const ID: &str = "20261120T133349Z-n1-7";

    fn bundle() -> Bundle {
        Bundle {
            schema_version: 1,
            id: ID.into(),
            node: "n1".parse().expect("a name"),
            primary: "n2".parse().expect("a name"),
            epoch: model::Epoch(7),
            saved_at: WallTime(1_795_181_629_123),
            system_id: model::SystemId(7),
            major: 15,
            timeline: model::Timeline(1),
            fork: model::Lsn(0x500_0060),
            end: model::Lsn(0x500_0400),
            last_commit: None,
            log_files: vec!["000000010000000000000005".into()],
            bytes: 16 << 20,
            counts: Counts { transactions: 1200, inserts: 1, incomplete: 3, ..Counts::default() },
            acknowledged: "nobody knows".into(),
            prepared: Vec::new(),
            not_decoded: vec!["2 changes in file 17000 of database 5".into()],
            exported_at: None,
        }
    }

    fn saved() -> (tempfile::TempDir, Vec<PathBuf>, Context) {
        let root = tempfile::tempdir().expect("tempdir");
        let place = rescue::rescue_dir(root.path());
        let directory = place.join(ID);
        fs::create_dir_all(&directory).expect("made");
        fs::write(directory.join("bundle.json"), serde_json::to_string(&bundle()).expect("JSON")).expect("written");
        fs::write(directory.join("changes.sql"), "INSERT;\n").expect("written");
        let global = Global { output: Output::Table, yes: true, ..Global::default() };
        let look = Look::detect(&global);
        (root, vec![place.with_file_name("other"), place], Context { global, look })
    }

    #[test]
    fn a_bundle_is_described_with_what_is_missing_in_it() {
        assert_eq!(
            describe(&bundle()),
            [
                "  20261120T133349Z-n1-7",
                "  held by n1 alone when n2 became primary in epoch 7",
                "  saved 2026-11-20 13:33:49Z, 16 MB, not exported",
                "  log of timeline 1 from 0/5000060 to 0/5000400, 1 files",
                "  1,200 transactions: 1 inserts, 0 updates, 0 deletes, 0 truncates",
                "  3 changes that could not be read in full",
                "  ▲ 2 changes in file 17000 of database 5",
                "  nobody knows",
            ]
        );
    }

    #[test]
    fn an_export_is_whole_noted_and_never_over_another_file() {
        let (root, places, context) = saved();
        let target = root.path().join("lost.sql");
        let export_to = |to: &Path| export(&context, &places, ID, RescueFormat::Sql, Some(to));
        assert!(export_to(&root.path().join("missing/lost.sql")).is_err());
        assert_eq!(find(&places, ID).expect("found").1.exported_at, None, "a failed export is none");
        export_to(&target).expect("exported");
        assert_eq!(fs::read_to_string(&target).expect("read"), "INSERT;\n");
        assert!(find(&places, ID).expect("found").1.exported_at.is_some());
        assert!(export_to(&target).expect_err("it is there").is("ST1209"));
        assert!(find(&places, "x").expect_err("unknown").is("ST2108"));
        list(&context, &places).expect("listed");
        delete(&context, &places, ID).expect("deleted");
        assert!(find(&places, ID).expect_err("gone").is("ST2108"));
    }

    #[test]
    fn without_a_word_nothing_is_deleted() {
        let (_root, places, mut context) = saved();
        context.global.yes = false;
        context.global.output = Output::Json;
        assert!(delete(&context, &places, ID).expect_err("not confirmed").is("ST1001"));
        context.global.dry_run = true;
        delete(&context, &places, ID).expect("said only");
        find(&places, ID).expect("still there");
    }

    #[test]
    fn over_the_api_nothing_is_read() {
        let (_root, _places, mut context) = saved();
        context.global.api = vec!["http://127.0.0.1:8008".into()];
        assert!(run(&context, RescueCommand::List).expect_err("refused").is("ST1001"));
    }
}
