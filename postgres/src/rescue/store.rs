//! The bundles on disk: `<state_dir>/rescue/<id>/`, each with `bundle.json`, `changes.jsonl`, `changes.sql` and the log in
//! `wal`. Closed to everybody else: they hold the users' data.
//!
//! A bundle appears whole or not at all. One that nobody has exported is never removed by itself: where the room is
//! used up, saving fails, and with it the rewind or rebuild that would have destroyed the original.

use super::RescueLimits;
use super::bundle::{Bundle, now};
use super::decode::Decoded;
use super::render;
use super::scan::Scanned;
use crate::files::{private_dir, refused, sync_dir};
use model::{Trouble, WallTime};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

const FACTS: &str = "bundle.json";
const EXPORTED: &str = "exported";
/// Directories that are being written begin so.
const PARTIAL: &str = ".partial-";
/// Left free on the file system, whatever is saved.
const FREE_BYTES_MIN: u64 = 64 << 20;

/// Where the bundles of a node are.
pub fn rescue_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("rescue")
}

/// Which form of the changes is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportFormat {
    /// Statements.
    Sql,
    /// One JSON document a line.
    JsonLines,
}

impl ExportFormat {
    fn file(self) -> &'static str {
        match self {
            ExportFormat::Sql => "changes.sql",
            ExportFormat::JsonLines => "changes.jsonl",
        }
    }
}

/// All bundles, oldest first. Those that cannot be read are an error: they may be all that is left of something.
pub fn list(directory: &Path) -> Result<Vec<Bundle>, Trouble> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(refused("read", directory, &error)),
    };
    let mut bundles = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| refused("read", directory, &error))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && entry.path().is_dir() {
            bundles.push(read(&entry.path())?);
        }
    }
    bundles.sort_by(|one, two| (one.saved_at, &one.id).cmp(&(two.saved_at, &two.id)));
    Ok(bundles)
}

/// One bundle.
pub fn show(directory: &Path, id: &str) -> Result<Bundle, Trouble> {
    read(&place(directory, id)?)
}

fn place(directory: &Path, id: &str) -> Result<PathBuf, Trouble> {
    let plain = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) && !id.starts_with('.');
    let path = directory.join(id);
    if id.is_empty() || !plain || !path.join(FACTS).is_file() {
        let hint = "look at: stemma rescue list";
        return Err(Trouble::not_found(
            format!("there is no rescue bundle `{}` on this node", id.escape_debug()),
            hint,
        ));
    }
    Ok(path)
}

fn read(path: &Path) -> Result<Bundle, Trouble> {
    let facts = path.join(FACTS);
    let text = fs::read_to_string(&facts).map_err(|error| refused("read", &facts, &error))?;
    let mut bundle: Bundle = serde_json::from_str(&text).map_err(|error| {
        Trouble::directory_unfit(format!("{} is not understood", facts.display()), "copy the bundle away by hand")
            .because(error)
    })?;
    let exported = fs::read_to_string(path.join(EXPORTED)).ok();
    bundle.exported_at = exported.and_then(|text| text.trim().parse().ok()).map(WallTime);
    Ok(bundle)
}

/// Copies the changes of a bundle to a writer, and notes that it was exported once they have all arrived there.
pub fn export(directory: &Path, id: &str, format: ExportFormat, to: &mut dyn Write) -> Result<u64, Trouble> {
    let path = place(directory, id)?;
    let changes = path.join(format.file());
    let mut file = File::open(&changes).map_err(|error| refused("open", &changes, &error))?;
    let written = std::io::copy(&mut file, to).and_then(|bytes| to.flush().map(|()| bytes));
    let bytes =
        written.map_err(|error| Trouble::os("the export could not be written", "check its target").because(error))?;
    let note = path.join(EXPORTED);
    write_new(&note, format!("{}\n", now().0).as_bytes())?;
    sync_dir(&path)?;
    Ok(bytes)
}

/// Removes a bundle for good.
pub fn delete(directory: &Path, id: &str) -> Result<Bundle, Trouble> {
    let path = place(directory, id)?;
    let bundle = read(&path)?;
    remove(directory, &path)?;
    Ok(bundle)
}

/// Renamed first, so that a half-removed one is never taken for a bundle.
fn remove(directory: &Path, path: &Path) -> Result<(), Trouble> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let gone = directory.join(format!("{PARTIAL}{name}"));
    fs::rename(path, &gone).map_err(|error| refused("remove", path, &error))?;
    sync_dir(directory)?;
    fs::remove_dir_all(&gone).map_err(|error| refused("remove", &gone, &error))
}

/// The bundle that holds the same changes already: a keeper that died between saving and rewinding comes here again.
pub(crate) fn same(directory: &Path, facts: &Bundle) -> Result<Option<Bundle>, Trouble> {
    let alike = |known: &Bundle| {
        (known.system_id, known.timeline, known.fork, known.last_commit, known.counts)
            == (facts.system_id, facts.timeline, facts.fork, facts.last_commit, facts.counts)
            && known.not_decoded == facts.not_decoded
            && known.prepared == facts.prepared
    };
    Ok(list(directory)?.into_iter().find(alike))
}

/// Writes a bundle; it is on disk when this returns.
pub(crate) fn write(
    directory: &Path,
    limits: RescueLimits,
    mut facts: Bundle,
    scanned: &Scanned,
    decoded: &Decoded,
) -> Result<Bundle, Trouble> {
    private_dir(directory, None)?;
    discard_partial(directory)?;
    make_room(directory, limits, scanned.file_bytes)?;
    let mut number = 1;
    let stem = facts.id.clone();
    while directory.join(&facts.id).exists() {
        number += 1;
        facts.id = format!("{stem}-{number}");
    }
    let partial = directory.join(format!("{PARTIAL}{}", facts.id));
    let written = fill(&partial, &mut facts, scanned, decoded);
    if let Err(trouble) = written {
        // What was cut off is cleared at the next try as well.
        let _ = fs::remove_dir_all(&partial);
        return Err(trouble);
    }
    let whole = directory.join(&facts.id);
    fs::rename(&partial, &whole).map_err(|error| refused("replace", &whole, &error))?;
    sync_dir(directory)?;
    read(&whole)
}

fn fill(partial: &Path, facts: &mut Bundle, scanned: &Scanned, decoded: &Decoded) -> Result<(), Trouble> {
    let wal = partial.join("wal");
    private_dir(partial, None)?;
    private_dir(&wal, None)?;
    let mut bytes = 0;
    for file in &scanned.files {
        let to = wal.join(file.file_name().unwrap_or_default());
        // Copied, not linked: the server writes into its segments again, and so does a rewind.
        let copied = fs::copy(file, &to).and_then(|count| {
            let copy = File::open(&to)?;
            copy.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            copy.sync_all().map(|()| count)
        });
        bytes += copied.map_err(|error| refused("write", &to, &error))?;
    }
    sync_dir(&wal)?;
    bytes += write_lines(&partial.join("changes.jsonl"), decoded.transactions.iter().map(render::json_lines))?;
    let mut database = None;
    let head = std::iter::once(render::sql_head(facts));
    let statements = decoded.transactions.iter().map(|transaction| render::sql(transaction, &mut database));
    bytes += write_lines(&partial.join("changes.sql"), head.chain(statements))?;
    facts.bytes = bytes;
    let text = serde_json::to_string_pretty(facts)
        .map_err(|error| Trouble::internal("a bundle's facts", "report this").because(error))?;
    write_new(&partial.join(FACTS), text.as_bytes())?;
    sync_dir(partial)
}

fn write_lines(path: &Path, parts: impl Iterator<Item = String>) -> Result<u64, Trouble> {
    let mut bytes = 0;
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    let written = options.open(path).and_then(|file| {
        let mut buffered = BufWriter::new(file);
        for part in parts {
            buffered.write_all(part.as_bytes())?;
            bytes += part.len() as u64;
        }
        buffered.flush()?;
        buffered.get_ref().sync_all()
    });
    written.map_err(|error| refused("write", path, &error))?;
    Ok(bytes)
}

fn write_new(path: &Path, body: &[u8]) -> Result<(), Trouble> {
    crate::files::remove(path)?;
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    let written = options.open(path).and_then(|mut file| {
        file.write_all(body)?;
        file.sync_all()
    });
    written.map_err(|error| refused("write", path, &error))
}

fn discard_partial(directory: &Path) -> Result<(), Trouble> {
    for entry in fs::read_dir(directory).map_err(|error| refused("read", directory, &error))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            fs::remove_dir_all(entry.path()).map_err(|error| refused("remove", &entry.path(), &error))?;
        }
    }
    Ok(())
}

/// More than one bundle may hold.
fn too_much(wanted: u64, limits: RescueLimits) -> Trouble {
    Trouble::limit_reached(
        format!("{wanted} bytes of log are to be saved, {} are allowed", limits.bundle_bytes_max),
        "copy the data directory away, then rebuild the node: stemma node reinit",
    )
}

/// Whether so much could be saved, once exported bundles are gone.
pub(crate) fn check_room(directory: &Path, limits: RescueLimits, wanted: u64) -> Result<(), Trouble> {
    if wanted > limits.bundle_bytes_max {
        return Err(too_much(wanted, limits));
    }
    let held: u64 = list(directory)?.iter().filter(|it| it.exported_at.is_none()).map(|bundle| bundle.bytes).sum();
    if held + wanted > limits.total_bytes_max {
        return Err(Trouble::limit_reached(
            format!("rescue bundles that nobody has exported hold {held} bytes in {}", directory.display()),
            "export them with `stemma rescue export`, then remove them with `stemma rescue delete`",
        ));
    }
    Ok(())
}

fn make_room(directory: &Path, limits: RescueLimits, wanted: u64) -> Result<(), Trouble> {
    check_room(directory, limits, wanted)?;
    let bundles = list(directory)?;
    let mut held: u64 = bundles.iter().map(|bundle| bundle.bytes).sum();
    for bundle in bundles.iter().filter(|bundle| bundle.exported_at.is_some()) {
        if held + wanted <= limits.total_bytes_max {
            break;
        }
        tracing::warn!(id = bundle.id, "removed an exported rescue bundle to make room");
        remove(directory, &directory.join(&bundle.id))?;
        held -= bundle.bytes;
    }
    let found = rustix::fs::statvfs(directory).map_err(|error| refused("examine", directory, &error.into()))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free < wanted.saturating_add(FREE_BYTES_MIN) {
        return Err(Trouble::disk_full(
            format!("{} has {free} bytes left, {wanted} are to be saved", directory.display()),
            "free some disk space; nothing is rewound or emptied before",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rescue::bundle::{Counts, SCHEMA_VERSION};
    use model::{Epoch, Lsn, SystemId, Timeline};

    fn facts(id: &str, saved_at: i64) -> Bundle {
        Bundle {
            schema_version: SCHEMA_VERSION,
            id: id.into(),
            node: "n1".parse().expect("a name"),
            primary: "n2".parse().expect("a name"),
            epoch: Epoch(3),
            saved_at: WallTime(saved_at),
            system_id: SystemId(7),
            major: 15,
            timeline: Timeline(1),
            fork: Lsn(saved_at as u64),
            end: Lsn(200),
            last_commit: Some(Lsn(150)),
            log_files: Vec::new(),
            bytes: 0,
            counts: Counts::default(),
            acknowledged: "no".into(),
            prepared: Vec::new(),
            not_decoded: Vec::new(),
            exported_at: None,
        }
    }

    fn scanned(log: &Path) -> Scanned {
        let file_bytes = fs::metadata(log).expect("log").len();
        let files = vec![log.to_owned()];
        Scanned { end: Lsn(200), committed: Vec::new(), prepared: Vec::new(), files, file_bytes, notes: Vec::new() }
    }

    #[test]
    fn bundles_that_nobody_exported_are_kept_and_saving_is_refused_instead() {
        let root = tempfile::tempdir().expect("tempdir");
        let directory = rescue_dir(root.path());
        let log = root.path().join("000000010000000000000001");
        fs::write(&log, [7; 1000]).expect("written");
        let limits = RescueLimits { bundle_bytes_max: 1000, total_bytes_max: 3500 };
        let save = |id: &str, at: i64| write(&directory, limits, facts(id, at), &scanned(&log), &Decoded::default());
        let first = save("one", 1).expect("saved");
        assert!(first.bytes > 1000 && first.exported_at.is_none());
        assert_eq!(save("one", 2).expect("saved").id, "one-2", "of the same second");
        fs::create_dir(directory.join(".partial-x")).expect("what a crash left");
        assert!(save("two", 3).expect_err("no room").is("ST2115"));
        assert!(!directory.join(".partial-x").exists());
        let small = RescueLimits { bundle_bytes_max: 999, ..limits };
        assert!(write(&directory, small, facts("x", 4), &scanned(&log), &Decoded::default()).is_err());

        let mut out = Vec::new();
        let bytes = export(&directory, "one", ExportFormat::Sql, &mut out).expect("exported");
        assert_eq!(bytes, out.len() as u64);
        assert!(String::from_utf8(out).expect("text").starts_with("-- Changes that only n1 held when n2 became"));
        assert!(show(&directory, "one").expect("there").exported_at.is_some());
        save("two", 3).expect("the exported one made room");
        let ids: Vec<String> = list(&directory).expect("list").into_iter().map(|bundle| bundle.id).collect();
        assert_eq!(ids, ["one-2", "two"]);
        assert_eq!(same(&directory, &facts("other", 3)).expect("read").map(|it| it.id), Some("two".into()));
        assert_eq!(same(&directory, &facts("other", 9)).expect("read"), None);
        delete(&directory, "two").expect("deleted");
        for bad in ["two", "", "../one-2", ".partial-x", "/etc"] {
            assert!(show(&directory, bad).expect_err(bad).is("ST2108"));
        }
    }
}
