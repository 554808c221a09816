//! The one place where the command line meets the knowledge of cluster settings: reading, comparing, explaining.

use crate::render::finding::{Finding, did_you_mean};
use cluster::settings;
pub use cluster::settings::{KEYS, explain};
use model::{Settings, Trouble};
use std::collections::BTreeMap;
use toml::Value;

/// One changed key.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// Dotted.
    pub key: String,
    /// Value now; absent for a key that is not set.
    pub old: Option<String>,
    /// Value after; absent for a key that goes.
    pub new: Option<String>,
    /// What it takes: `none`, `reload` or `restart`.
    pub class: &'static str,
    /// More to know about it.
    pub note: String,
}

/// Why a server parameter may not be set, if so.
fn refuse(name: &str) -> Option<String> {
    let owned = postgres::OWNED_PARAMETERS.contains(&name.to_ascii_lowercase().as_str());
    owned.then(|| "stemma sets it itself".to_owned())
}

/// Reads cluster settings; all problems, at their places.
pub fn parse(text: &str) -> Result<Settings, Vec<Finding>> {
    let own = |found: settings::Finding| {
        let line = text.lines().nth(found.line.saturating_sub(1)).unwrap_or("");
        let rest = line.chars().skip(found.column.saturating_sub(1));
        let length = rest.take_while(|c| !c.is_whitespace() && !matches!(c, '=' | ']' | ',')).count();
        Finding {
            line: found.line.max(1),
            column: found.column.max(1),
            length: length.max(1),
            code: found.code.to_owned(),
            reason: found.reason,
            hint: found.hint,
        }
    };
    settings::parse_toml_with(text, &refuse).map_err(|findings| findings.into_iter().map(own).collect())
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
        let mut trouble = Trouble::config_bad_value("the settings are refused", "stemma config explain KEY");
        if let Some(finding) = findings.into_iter().next() {
            trouble.code = model::Code(finding.code.into());
            trouble.reason = finding.reason;
            trouble.hint = finding.hint;
        }
        trouble
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
pub fn diff(old: &Settings, new: &Settings) -> Vec<Change> {
    settings::diff(old, new)
        .into_iter()
        .map(|change| Change {
            class: change.class.as_str(),
            key: change.key,
            old: change.old,
            new: change.new,
            note: change.note,
        })
        .collect()
}

/// The settings as a file, every key with its explanation.
pub fn to_toml(settings: &Settings) -> String {
    settings::to_toml(settings)
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
        assert!(set(&["postgresql.parameters.port=1"]).is_err(), "the port belongs to the node file");
        let dotted = set(&["postgresql.parameters.pg_stat_statements.max=100"]).expect("sound");
        assert_eq!(dotted.postgresql.parameters["pg_stat_statements.max"], "100");
    }

    #[test]
    fn a_refused_assignment_says_what_to_write() {
        for (assignment, code, hint) in [
            ("comit_mode=sync", "ST1102", "did you mean `commit_mode`?"),
            ("strict=perhaps", "ST1103", "write true or false"),
            ("commit_mode=often", "ST1103", "expected: One of \"async\", \"semi-sync\", \"quorum\", \"sync\""),
            ("commit_mode", "ST1001", "write it as commit_mode=quorum"),
        ] {
            let trouble = set(&[assignment]).expect_err(assignment);
            assert_eq!((trouble.code.to_string().as_str(), trouble.hint.as_str()), (code, hint), "{assignment}");
        }
    }

    #[test]
    fn a_difference_names_key_values_and_class() {
        let new = set(&["lag_warn=5s", "postgresql.parameters.shared_buffers=64MB"]).expect("sound");
        let changes = diff(&Settings::default(), &new);
        let line = |key: &str| {
            let change = changes.iter().find(|change| change.key == key).expect(key);
            format!("{:?} {:?} {}", change.old.as_deref(), change.new.as_deref(), change.class)
        };
        assert_eq!(changes.len(), 2);
        assert_eq!(line("postgresql.parameters.shared_buffers"), "None Some(\"64MB\") restart");
        assert!(line("lag_warn").ends_with("none"), "{}", line("lag_warn"));
    }

    #[test]
    fn problems_of_settings_stand_at_their_place() {
        let findings =
            parse("comit_mode = \"sync\"\n[postgresql.parameters]\nport = \"1\"\n").expect_err("two problems");
        let places: Vec<_> = findings.iter().map(|finding| (finding.line, finding.code.as_str())).collect();
        assert_eq!(places, [(1, "ST1102"), (3, "ST1103")], "{findings:#?}");
        assert_eq!(findings[0].length, "comit_mode".len());
    }

    #[test]
    fn every_setting_has_its_explanation() {
        for key in flat(&Settings::default()).expect("writable").keys() {
            assert!(KEYS.iter().any(|doc| doc.key == key), "{key} has no explanation");
        }
    }
}
