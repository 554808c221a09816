//! `stemma config ...`: show, plan, apply, history, and checking files without a cluster.

use super::Context;
use super::settings_bridge::{self as settings, Change};
use crate::cli::ConfigCommand;
use crate::client::Client;
use crate::node_file;
use crate::render::finding::{self, Finding};
use crate::render::look::Tone;
use crate::render::table::{Cell, Table, wrap};
use crate::render::{out, units};
use hyper::Method;
use model::error::exit;
use model::state::SettingsChange;
use model::status::SCHEMA_VERSION;
use model::{Settings, Trouble};
use serde_json::json;
use std::path::Path;

/// Runs the command.
pub async fn run(context: &Context, command: ConfigCommand) -> Result<u8, Trouble> {
    match command {
        ConfigCommand::Show { origin } => show(context, origin).await,
        ConfigCommand::Plan { file } => plan(context, &file).await,
        ConfigCommand::Apply { file } => {
            let new = read(&file)?;
            let client = context.client()?;
            let (version, old) = current(&client).await?;
            apply(context, &client, version, &old, &new).await
        }
        ConfigCommand::Set { assignments } => {
            let client = context.client()?;
            let (version, old) = current(&client).await?;
            let new = settings::assign(&old, &assignments)?;
            apply(context, &client, version, &old, &new).await
        }
        ConfigCommand::History => history(context).await,
        ConfigCommand::Rollback { version } => {
            let body = json!({ "version": version });
            let outcome = context.client()?.change(Method::POST, "/v1/settings/rollback", Some(body)).await?;
            context.print_outcome(&outcome);
            Ok(0)
        }
        ConfigCommand::Check { file } => check(context, &file),
        ConfigCommand::Explain { key } => explain(context, &key),
    }
}

/// The settings in force and their version.
async fn current(client: &Client) -> Result<(u64, Settings), Trouble> {
    let answer = client.get_value("/v1/settings").await?;
    let version = answer.body.get("version").and_then(serde_json::Value::as_u64);
    let version = version.or_else(|| answer.etag.and_then(|tag| tag.parse().ok()));
    let body = answer.body.get("settings").cloned().unwrap_or(answer.body);
    let not_understood =
        || Trouble::internal("the settings are not understood", "compare `stemma --version` of the nodes");
    let settings = serde_json::from_value(body).map_err(|error| not_understood().because(error))?;
    Ok((version.ok_or_else(not_understood)?, settings))
}

fn read(file: &Path) -> Result<Settings, Trouble> {
    let text = node_file::read_text(file)?;
    settings::parse(&text).map_err(|findings| finding::trouble(&file.display().to_string(), &findings))
}

async fn show(context: &Context, origin: bool) -> Result<u8, Trouble> {
    let (version, current) = current(&context.client()?).await?;
    if context.is_json() {
        out::json(&json!({ "schema_version": SCHEMA_VERSION, "version": version, "settings": current }));
        return Ok(0);
    }
    if !origin {
        out::line(&format!("# version {version}"));
        out::raw(&settings::to_toml(&current));
        return Ok(0);
    }
    let defaults = settings::flat(&Settings::default())?;
    let mut table = Table::new(&["KEY", "VALUE", "ORIGIN", "DEFAULT"]);
    for (key, value) in settings::flat(&current)? {
        let default = defaults.get(&key);
        let set = default != Some(&value);
        table.row(vec![
            Cell::plain(key),
            Cell::plain(value),
            if set {
                Cell::toned(Tone::Strong, format!("set (v{version})"))
            } else {
                Cell::toned(Tone::Quiet, "default")
            },
            default.filter(|_| set).map_or_else(Cell::none, |default| default.as_str().into()),
        ]);
    }
    out::line(&table.render(&context.look).join("\n"));
    Ok(0)
}

async fn plan(context: &Context, file: &Path) -> Result<u8, Trouble> {
    let new = read(file)?;
    let (version, old) = current(&context.client()?).await?;
    let changes = settings::diff(&old, &new);
    if context.is_json() {
        out::json(&json!({ "schema_version": SCHEMA_VERSION, "version": version, "changes": changes }));
    } else {
        out::line(&context.look.finish(&changes_text(context, version, &changes)));
    }
    Ok(if changes.is_empty() { 0 } else { exit::NEGATIVE })
}

fn changes_text(context: &Context, version: u64, changes: &[Change]) -> String {
    if changes.is_empty() {
        return format!("✔ no change against version {version}");
    }
    let mut table = Table::new(&["KEY", "NOW", "THEN", "TAKES"]);
    for change in changes {
        table.row(vec![
            change.key.as_str().into(),
            change.old.as_deref().map_or_else(Cell::none, Cell::plain),
            change.new.as_deref().map_or_else(Cell::none, |new| Cell::toned(Tone::Strong, new)),
            change.class.into(),
        ]);
    }
    let mut lines = vec![format!("  version {version} → {}", version + 1)];
    lines.extend(table.render(&context.look));
    if changes.iter().any(|change| change.class == "restart") {
        lines.push("  after that: stemma restart --rolling --pending".to_owned());
    }
    lines.join("\n")
}

async fn apply(
    context: &Context,
    client: &Client,
    version: u64,
    old: &Settings,
    new: &Settings,
) -> Result<u8, Trouble> {
    let changes = settings::diff(old, new);
    if changes.is_empty() {
        if context.is_json() {
            out::json(
                &json!({ "schema_version": SCHEMA_VERSION, "version": version, "changed": false, "changes": [] }),
            );
        } else {
            out::line(&context.look.finish(&changes_text(context, version, &changes)));
        }
        return Ok(0);
    }
    if !context.is_json() {
        out::note(&context.look.finish(&changes_text(context, version, &changes)));
    }
    let body = json!({ "settings": new, "expect_version": version });
    let outcome = client.change_if(Method::PUT, "/v1/settings", Some(body), Some(version)).await?;
    context.print_outcome(&outcome);
    Ok(0)
}

async fn history(context: &Context) -> Result<u8, Trouble> {
    let mut versions: Vec<SettingsChange> = context.client()?.list("/v1/settings/history", "versions").await?;
    versions.sort_by_key(|change| change.version);
    if context.is_json() {
        context.print_json("history", &versions);
        return Ok(0);
    }
    let mut table = Table::new(&["VERSION", "TIME", "BY", "CHANGED", "WHY"]);
    let mut before: Option<&SettingsChange> = None;
    for version in &versions {
        let changed = match before {
            Some(before) => settings::diff(&before.settings, &version.settings),
            None => Vec::new(),
        };
        let keys: Vec<&str> = changed.iter().map(|change| change.key.as_str()).collect();
        table.row(vec![
            version.version.to_string().into(),
            units::time(version.at).into(),
            version.actor.as_str().into(),
            if before.is_none() { Cell::plain("(first known)") } else { Cell::plain(keys.join(", ")) },
            version.reason.as_str().into(),
        ]);
        before = Some(version);
    }
    out::line(&table.render(&context.look).join("\n"));
    Ok(0)
}

/// A node file is told from cluster settings by the keys that only a node file has.
fn is_node_file(text: &str) -> bool {
    let (root, _) = toml::de::DeTable::parse_recoverable(text);
    ["state_dir", "keeper", "api", "name", "site", "consensus"].iter().any(|key| root.get_ref().contains_key(*key))
}

fn check(context: &Context, file: &Path) -> Result<u8, Trouble> {
    let text = node_file::read_text(file)?;
    let (kind, findings): (_, Vec<Finding>) = if is_node_file(&text) {
        ("node file", node_file::parse(&text).err().unwrap_or_default())
    } else {
        ("cluster settings", settings::parse(&text).err().unwrap_or_default())
    };
    let name = file.display().to_string();
    if context.is_json() {
        out::json(&json!({ "schema_version": SCHEMA_VERSION, "file": name, "kind": kind, "findings": findings }));
    } else if findings.is_empty() {
        out::line(&context.look.finish(&format!("✔ {name}: sound {kind}")));
    } else {
        out::line(&finding::report(&name, &text, &findings, &context.look));
        let word = if findings.len() == 1 { "problem" } else { "problems" };
        out::line(&format!("\n{} {word} in {name} ({kind})", findings.len()));
    }
    Ok(if findings.is_empty() { 0 } else { exit::USAGE })
}

fn explain(context: &Context, key: &str) -> Result<u8, Trouble> {
    let keys: Vec<&str> = if key == "all" { settings::KEYS.iter().map(|doc| doc.key).collect() } else { vec![key] };
    let mut texts = Vec::new();
    for key in keys {
        let Some(text) = settings::explain(key) else {
            let near = finding::did_you_mean(key, settings::KEYS.iter().map(|doc| doc.key));
            let hint =
                near.map_or("all keys: stemma config explain all".to_owned(), |near| format!("did you mean `{near}`?"));
            return Err(Trouble::config_unknown_key(format!("unknown key `{key}`"), hint));
        };
        texts.push((key, text));
    }
    if context.is_json() {
        let documents: Vec<_> = texts.iter().map(|(key, text)| json!({ "key": key, "text": text })).collect();
        context.print_json("keys", documents);
        return Ok(0);
    }
    for (_, text) in texts {
        let lines: Vec<String> = text.lines().map(|line| wrap(line, context.look.width, 4)).collect();
        out::line(&context.look.finish(&lines.join("\n")));
    }
    Ok(0)
}
