//! The one place where the command line meets the knowledge of cluster settings: reading, comparing, explaining.

use crate::render::finding::{Finding, did_you_mean};
use model::{Settings, Trouble};
use std::collections::BTreeMap;
use toml::Value;

/// One changed key.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// Dotted.
    pub key: String,
    /// Value now; absent for a key that is new.
    pub old: Option<String>,
    /// Value after; absent for a key that goes.
    pub new: Option<String>,
    /// What it takes: `reload` or `rolling restart`.
    pub class: String,
}

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct KeyDoc {
    /// Dotted.
    pub key: &'static str,
    /// What may be written.
    pub values: &'static str,
    /// What it does.
    pub doc: &'static str,
}

/// All keys.
pub const KEYS: &[KeyDoc] = &[
    doc(
        "commit_mode",
        "async, semi-sync, quorum, sync",
        "How many replicas hold a commit before it is acknowledged: none, one, so many that a majority of data nodes has it, or every voter.",
    ),
    doc(
        "strict",
        "true, false",
        "With too few replicas: true lets commits wait, false lowers the number through consensus and says so.",
    ),
    doc(
        "sync_from_other_site",
        "true, false",
        "At least one acknowledgement comes from another site than the primary's, where the voters allow it.",
    ),
    doc(
        "voter_grace",
        "a duration",
        "How long a voter may be unreachable before, with strict = false, commits stop waiting for it.",
    ),
    doc("sample_interval", "a duration", "How often each keeper samples its server."),
    doc("lag_warn", "a duration", "From this lag on a replica is reported as a problem."),
    doc("slot_retention", "a duration", "How long the slot of an absent member is kept."),
    doc(
        "slot_retention_size",
        "a size",
        "How much log the slots of absent members may keep before they are dropped, oldest first.",
    ),
    doc("clone_rate", "a size", "Upper bound for the rate of a base backup, per second; 0B is unbounded."),
    doc(
        "tls",
        "true, false",
        "Whether replication and client connections between nodes use TLS under the cluster CA. Off only for servers built without TLS.",
    ),
    doc(
        "postgresql.hba",
        "a list of texts",
        "Lines of pg_hba.conf for users and applications, placed after the lines that the cluster itself needs.",
    ),
    doc(
        "postgresql.parameters",
        "a table",
        "Server parameters, the same on every node, written as PostgreSQL prints them: 128MB, on, 100.",
    ),
];

const fn doc(key: &'static str, values: &'static str, doc: &'static str) -> KeyDoc {
    KeyDoc { key, values, doc }
}

/// Parameters that the server reads only when it starts. A keeper tells from the server itself what waits for a
/// restart; this list is for the plan shown before.
const RESTART_PARAMETERS: &[&str] = &[
    "archive_mode",
    "autovacuum_max_workers",
    "autovacuum_freeze_max_age",
    "huge_pages",
    "max_connections",
    "max_files_per_process",
    "max_locks_per_transaction",
    "max_logical_replication_workers",
    "max_prepared_transactions",
    "max_replication_slots",
    "max_wal_senders",
    "max_worker_processes",
    "shared_buffers",
    "shared_memory_type",
    "shared_preload_libraries",
    "superuser_reserved_connections",
    "track_commit_timestamp",
    "wal_buffers",
    "wal_level",
    "wal_log_hints",
];

/// Reads cluster settings.
pub fn parse(text: &str) -> Result<Settings, Vec<Finding>> {
    toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        let message = error.message();
        let unknown = message.strip_prefix("unknown field `").and_then(|rest| rest.split('`').next());
        let trouble = match unknown {
            Some(key) => {
                let near = did_you_mean(key, KEYS.iter().map(|doc| doc.key.rsplit('.').next().unwrap_or(doc.key)));
                let hint = near
                    .map_or("all keys: stemma config explain all".to_owned(), |near| format!("did you mean `{near}`?"));
                Trouble::config_unknown_key(format!("unknown key `{key}`"), hint)
            }
            None => Trouble::config_bad_value(message.to_owned(), "what may be written: stemma config explain KEY"),
        };
        vec![Finding::at(text, span, trouble)]
    })
}

/// The settings with single keys changed. An empty value brings back the default.
pub fn assign(settings: &Settings, assignments: &[String]) -> Result<Settings, Trouble> {
    let mut root = to_value(settings)?;
    let defaults = to_value(&Settings::default())?;
    for assignment in assignments {
        let Some((key, value)) = assignment.split_once('=') else {
            return Err(Trouble::usage(format!("`{assignment}` is not KEY=VALUE"), "write it as commit_mode=quorum"));
        };
        assign_one(&mut root, &defaults, key.trim(), value.trim())?;
    }
    let text = toml::to_string(&root)
        .map_err(|error| Trouble::internal("settings could not be written", "").because(error))?;
    parse(&text).map_err(|findings| {
        let finding = findings.into_iter().next();
        let (reason, hint) = finding.map_or((String::new(), String::new()), |finding| (finding.reason, finding.hint));
        Trouble::config_bad_value(reason, hint)
    })
}

fn assign_one(root: &mut Value, defaults: &Value, key: &str, text: &str) -> Result<(), Trouble> {
    let path: Vec<&str> = match key.strip_prefix("postgresql.parameters.") {
        // Names of parameters may hold a dot themselves, as in pg_stat_statements.max.
        Some(parameter) => vec!["postgresql", "parameters", parameter],
        None => key.split('.').collect(),
    };
    let is_parameter = path.len() == 3;
    let known = is_parameter || KEYS.iter().any(|doc| doc.key == key && key != "postgresql.parameters");
    if !known {
        let hint = match did_you_mean(key, KEYS.iter().map(|doc| doc.key)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("all keys: stemma config explain all; a server parameter is postgresql.parameters.{key}"),
        };
        return Err(Trouble::config_unknown_key(format!("unknown key `{key}`"), hint));
    }
    let default = path.iter().try_fold(defaults, |value, part| value.get(part));
    let value = match (text, default) {
        ("", None) => None,
        ("", Some(default)) => Some(default.clone()),
        (text, Some(Value::Boolean(_))) => Some(Value::Boolean(boolean(key, text)?)),
        (text, Some(Value::Array(_))) => Some(array(key, text)?),
        (text, _) => Some(Value::String(text.to_owned())),
    };
    let (last, parents) = path.split_last().unwrap_or((&"", &[]));
    let mut table = root;
    for part in parents {
        let Some(entries) = table.as_table_mut() else { return Ok(()) };
        table = entries.entry((*part).to_owned()).or_insert_with(|| Value::Table(toml::Table::new()));
    }
    if let Some(entries) = table.as_table_mut() {
        match value {
            Some(value) => entries.insert((*last).to_owned(), value),
            None => entries.remove(*last),
        };
    }
    Ok(())
}

fn boolean(key: &str, text: &str) -> Result<bool, Trouble> {
    match text {
        "true" | "on" | "yes" => Ok(true),
        "false" | "off" | "no" => Ok(false),
        other => Err(Trouble::config_bad_value(format!("`{key}` is `{other}`"), "write true or false")),
    }
}

fn array(key: &str, text: &str) -> Result<Value, Trouble> {
    let parsed = toml::from_str::<toml::Table>(&format!("value = {text}")).ok();
    parsed.and_then(|mut table| table.remove("value")).filter(Value::is_array).ok_or_else(|| {
        Trouble::config_bad_value(
            format!("`{key}` is `{text}`"),
            "write a list, as in '[\"host all all 10.0.0.0/8 scram-sha-256\"]'",
        )
    })
}

fn to_value(settings: &Settings) -> Result<Value, Trouble> {
    Value::try_from(settings).map_err(|error| Trouble::internal("settings could not be written", "").because(error))
}

/// All keys with their values, dotted, in a stable order.
pub fn flat(settings: &Settings) -> Result<BTreeMap<String, String>, Trouble> {
    let mut out = BTreeMap::new();
    flatten("", &to_value(settings)?, &mut out);
    Ok(out)
}

fn flatten(prefix: &str, value: &Value, out: &mut BTreeMap<String, String>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&path, value, out);
            }
        }
        Value::String(text) => drop(out.insert(prefix.to_owned(), text.clone())),
        other => drop(out.insert(prefix.to_owned(), other.to_string())),
    }
}

/// What differs.
pub fn diff(old: &Settings, new: &Settings) -> Result<Vec<Change>, Trouble> {
    let (old, new) = (flat(old)?, flat(new)?);
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    Ok(keys
        .into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| Change {
            key: key.clone(),
            old: old.get(key).cloned(),
            new: new.get(key).cloned(),
            class: class(key).to_owned(),
        })
        .collect())
}

fn class(key: &str) -> &'static str {
    let parameter = key.strip_prefix("postgresql.parameters.");
    if parameter.is_some_and(|name| RESTART_PARAMETERS.contains(&name)) { "rolling restart" } else { "reload" }
}

/// The settings as a file.
pub fn to_toml(settings: &Settings) -> Result<String, Trouble> {
    toml::to_string_pretty(settings)
        .map_err(|error| Trouble::internal("settings could not be written", "").because(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(assignments: &[&str]) -> Result<Settings, Trouble> {
        assign(&Settings::default(), &assignments.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn single_keys_change_and_go_back_to_their_defaults() {
        let settings = set(&["commit_mode=sync", "strict=on", "voter_grace=5s", "postgresql.parameters.work_mem=8MB"])
            .expect("sound");
        assert_eq!((settings.commit_mode.as_str(), settings.strict), ("sync", true));
        assert_eq!(settings.postgresql.parameters["work_mem"], "8MB");
        let back = assign(&settings, &["strict=".into(), "postgresql.parameters.work_mem=".into()]).expect("sound");
        assert!(!back.strict);
        assert!(back.postgresql.parameters.is_empty());
        assert_eq!(back.commit_mode.as_str(), "sync");
        let dotted = set(&["postgresql.parameters.pg_stat_statements.max=100"]).expect("sound");
        assert_eq!(dotted.postgresql.parameters["pg_stat_statements.max"], "100");
    }

    #[test]
    fn a_refused_assignment_says_what_to_write() {
        for (assignment, code, hint) in [
            ("comit_mode=sync", "ST1102", "did you mean `commit_mode`?"),
            ("strict=perhaps", "ST1103", "write true or false"),
            ("commit_mode=often", "ST1103", "what may be written: stemma config explain KEY"),
            ("commit_mode", "ST1001", "write it as commit_mode=quorum"),
        ] {
            let trouble = set(&[assignment]).expect_err(assignment);
            assert_eq!((trouble.code.to_string().as_str(), trouble.hint.as_str()), (code, hint), "{assignment}");
        }
    }

    #[test]
    fn a_difference_names_key_values_and_class() {
        let new = set(&["strict=true", "postgresql.parameters.shared_buffers=64MB"]).expect("sound");
        let changes = diff(&Settings::default(), &new).expect("comparable");
        let lines: Vec<String> = changes
            .iter()
            .map(|c| format!("{} {:?} {:?} {}", c.key, c.old.as_deref(), c.new.as_deref(), c.class))
            .collect();
        assert_eq!(
            lines,
            [
                "postgresql.parameters.shared_buffers None Some(\"64MB\") rolling restart",
                "strict Some(\"false\") Some(\"true\") reload"
            ]
        );
    }

    #[test]
    fn every_setting_has_its_explanation() {
        for key in flat(&Settings::default()).expect("writable").keys() {
            assert!(KEYS.iter().any(|doc| doc.key == key), "{key} has no explanation");
        }
    }
}
