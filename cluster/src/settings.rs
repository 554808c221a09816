//! The cluster-wide settings: read with every mistake at once, checked, explained, compared.

mod keys;
mod read;

pub use keys::{KEYS, KeyDoc, RESTART_PARAMETERS, explain};
pub use read::{Finding, parse_toml, parse_toml_with};

use model::names::NodeId;
use model::settings::{CommitMode, Settings, Span};
use model::state::Member;
use model::units::Millis;
use std::collections::{BTreeMap, BTreeSet};

/// What a change takes to come into force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Nothing in the servers: the keepers act on it.
    None,
    /// A reload of the servers' configuration.
    Reload,
    /// A restart of the servers, one after the other, when ordered.
    Restart,
}

impl Class {
    /// The word shown in plans.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::None => "none",
            Class::Reload => "reload",
            Class::Restart => "restart",
        }
    }
}

/// One difference between two versions of the settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key, for example `postgresql.parameters.work_mem`.
    pub key: String,
    /// The value before; `None` if it was not set.
    pub old: Option<String>,
    /// The value after; `None` if it is no longer set.
    pub new: Option<String>,
    /// What it takes.
    pub class: Class,
    /// What happens, for people.
    pub note: String,
}

/// Bounds of the durations, each with its reason.
const SPAN_BOUNDS: [(&str, Millis, Millis, &str); 4] = [
    ("sample_interval", Millis(100), Millis(60_000), "faster loads the servers, slower blinds status"),
    ("voter_grace", Millis(500), Millis(600_000), "shorter lowers durability at every hiccup, longer stalls commits"),
    ("lag_warn", Millis(100), Millis(86_400_000), "below one sample it would warn always"),
    ("slot_retention", Millis(60_000), Millis(30 * 86_400_000), "shorter than a reboot rebuilds replicas for nothing"),
];
const SLOT_RETENTION_SIZE_MIN: u64 = 64 << 20;
const CLONE_RATE_MIN: u64 = 64 << 10;
/// `pg_hba.conf` lines that people may add.
const HBA_LINES_MAX: usize = 500;
const VALUE_BYTES_MAX: usize = 4_096;

/// A refused value: key, reason, hint.
pub(crate) type Refusal = (String, String, String);

/// Everything that is wrong with these values, whatever the members. `refuse` says why a server parameter may not be
/// set (the engine owns it), if so.
pub(crate) fn refusals(settings: &Settings, refuse: &dyn Fn(&str) -> Option<String>) -> Vec<Refusal> {
    let mut refused = Vec::new();
    for (key, low, high, reason) in SPAN_BOUNDS {
        let value = span_of(settings, key);
        if value.0 < low || value.0 > high {
            let bounds = format!("use {} to {}: {reason}", Span(low), Span(high));
            refused.push((key.to_owned(), format!("{key} = {value} is out of range"), bounds));
        }
    }
    let size = settings.slot_retention_size;
    if size.0 < SLOT_RETENTION_SIZE_MIN {
        let hint = "use at least 64MB: a few log files".to_owned();
        refused.push(("slot_retention_size".into(), format!("slot_retention_size = {size} is out of range"), hint));
    }
    let rate = settings.clone_rate;
    if rate.0 != 0 && rate.0 < CLONE_RATE_MIN {
        let hint = "use 0B for no bound, or at least 64kB per second".to_owned();
        refused.push(("clone_rate".into(), format!("clone_rate = {rate} is out of range"), hint));
    }
    hba_refusals(settings, &mut refused);
    for (name, value) in &settings.postgresql.parameters {
        refused.extend(parameter_refusal(name, value, refuse));
    }
    refused
}

fn span_of(settings: &Settings, key: &str) -> Span {
    match key {
        "sample_interval" => settings.sample_interval,
        "voter_grace" => settings.voter_grace,
        "lag_warn" => settings.lag_warn,
        "slot_retention" => settings.slot_retention,
        other => unreachable!("{other} is not in SPAN_BOUNDS"),
    }
}

fn parameter_refusal(name: &str, value: &str, refuse: &dyn Fn(&str) -> Option<String>) -> Option<Refusal> {
    let key = format!("postgresql.parameters.{name}");
    let word = |part: &str| {
        part.bytes().enumerate().all(|(at, byte)| {
            byte == b'_' || byte.is_ascii_alphabetic() || at > 0 && (byte.is_ascii_digit() || byte == b'$')
        }) && !part.is_empty()
    };
    if name.len() > 63 || !name.split('.').all(word) {
        let hint = "use the name as SHOW ALL prints it, for example work_mem".to_owned();
        return Some((key, format!("`{}` is not a parameter name", name.escape_debug()), hint));
    }
    if value.contains(['\n', '\r', '\0']) {
        return Some((key, format!("the value of {name} has a line break or NUL"), "write it on one line".to_owned()));
    }
    if value.len() > VALUE_BYTES_MAX {
        let hint = format!("use at most {VALUE_BYTES_MAX} bytes");
        return Some((key, format!("the value of {name} has {} bytes", value.len()), hint));
    }
    let because = refuse(&name.to_ascii_lowercase())?;
    Some((key, format!("{name} may not be set here: {because}"), format!("remove {name} from [postgresql.parameters]")))
}

fn hba_refusals(settings: &Settings, refused: &mut Vec<Refusal>) {
    let lines = &settings.postgresql.hba;
    if lines.len() > HBA_LINES_MAX {
        let hint = format!("use at most {HBA_LINES_MAX}");
        refused.push(("postgresql.hba".into(), format!("{} lines of hba", lines.len()), hint));
    }
    for line in lines {
        if let Some(reason) = hba_fault(line) {
            let hint = "write it as in pg_hba.conf: `hostssl app app 10.0.0.0/8 scram-sha-256`".to_owned();
            let shown: String = line.chars().take(80).collect();
            refused.push(("postgresql.hba".into(), format!("hba line `{}`: {reason}", shown.escape_debug()), hint));
        }
    }
}

/// What is plainly wrong with a line of `pg_hba.conf`; the server itself checks the rest.
fn hba_fault(line: &str) -> Option<String> {
    const METHODS: [&str; 14] = [
        "trust",
        "reject",
        "scram-sha-256",
        "md5",
        "password",
        "gss",
        "sspi",
        "ident",
        "peer",
        "ldap",
        "radius",
        "cert",
        "pam",
        "bsd",
    ];
    if line.contains(['\n', '\r', '\0']) {
        return Some("it has a line break or NUL".to_owned());
    }
    if line.len() > VALUE_BYTES_MAX {
        return Some(format!("it has more than {VALUE_BYTES_MAX} bytes"));
    }
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    if line.starts_with("include") {
        return Some("files of one node may not be included: settings are the same on every node".to_owned());
    }
    let fields = hba_fields(line)?;
    let local = match fields.first().map(String::as_str) {
        Some("local") => true,
        Some("host" | "hostssl" | "hostnossl" | "hostgssenc" | "hostnogssenc") => false,
        Some(other) => return Some(format!("`{other}` is no connection type (local, host, hostssl, hostnossl)")),
        None => return None,
    };
    let fewest = if local { 4 } else { 5 };
    if fields.len() < fewest {
        return Some(format!("{} fields, at least {fewest} are needed", fields.len()));
    }
    // An address may be followed by a mask in a field of its own.
    let masked = !local && fields.len() > 5 && fields[4].parse::<std::net::IpAddr>().is_ok();
    if !local && let Some(fault) = address_fault(&fields[3]) {
        return Some(fault);
    }
    let method = fields[fewest - 1 + usize::from(masked)].as_str();
    (!METHODS.contains(&method)).then(|| format!("`{method}` is no authentication method"))
}

/// An address with a prefix must be one: a server does not start with a line that it cannot read.
fn address_fault(address: &str) -> Option<String> {
    let (host, prefix) = address.trim_matches('"').split_once('/')?;
    let bits_max = match host.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V4(_)) => 32,
        Ok(std::net::IpAddr::V6(_)) => 128,
        Err(_) => return Some(format!("`{address}` is no address with a prefix, as in 10.0.0.0/8")),
    };
    let fits = prefix.parse::<u8>().is_ok_and(|bits| bits <= bits_max);
    (!fits).then(|| format!("`{address}` has a prefix that is no number from 0 to {bits_max}"))
}

/// The fields of a line: separated by white space, lists joined by commas, quotes kept together. A quote left open
/// gives `None`, taken as a single fault by the caller.
fn hba_fields(line: &str) -> Option<Vec<String>> {
    let (mut fields, mut field, mut quoted) = (Vec::new(), String::new(), false);
    for letter in line.chars() {
        match letter {
            '"' => {
                quoted = !quoted;
                field.push(letter);
            }
            '#' if !quoted => break,
            letter if letter.is_whitespace() && !quoted && !field.ends_with(',') => {
                if !field.is_empty() {
                    fields.push(std::mem::take(&mut field));
                }
            }
            letter if letter.is_whitespace() && !quoted => {}
            letter => field.push(letter),
        }
    }
    fields.extend((!field.is_empty()).then_some(field));
    Some(if quoted { vec!["\"".to_owned()] } else { fields })
}

/// Everything that is wrong with these settings for these members. Positions are unknown (line 0): they come from
/// `parse_toml_with`.
pub fn check(
    settings: &Settings,
    members: &BTreeMap<NodeId, Member>,
    refuse: &dyn Fn(&str) -> Option<String>,
) -> Vec<Finding> {
    let mut found: Vec<Finding> = refusals(settings, refuse)
        .into_iter()
        .map(|(_, reason, hint)| Finding { line: 0, column: 0, code: "ST1103", reason, hint })
        .collect();
    let sites: BTreeSet<_> = members.values().filter(|member| !member.witness).map(|member| &member.site).collect();
    let replicas = members.values().filter(|member| !member.witness).count().saturating_sub(1);
    let mut refuse_shape = |reason: String, hint: &str| {
        found.push(Finding { line: 0, column: 0, code: "ST1103", reason, hint: hint.to_owned() });
    };
    if settings.sync_from_other_site && settings.commit_mode == CommitMode::Async {
        refuse_shape(
            "sync_from_other_site = true has no meaning with commit_mode = \"async\"".to_owned(),
            "choose another commit_mode, or set sync_from_other_site = false",
        );
    }
    if settings.sync_from_other_site && replicas > 0 && sites.len() < 2 {
        refuse_shape(
            "sync_from_other_site = true, but all data nodes are at one site".to_owned(),
            "add a replica at another site first, or give nodes their sites: stemma node set NAME --site SITE",
        );
    }
    if settings.strict && settings.commit_mode != CommitMode::Async && !members.is_empty() && replicas == 0 {
        refuse_shape(
            "strict = true without a replica would block every commit".to_owned(),
            "add a replica first: stemma token create --role replica",
        );
    }
    found
}

/// The settings as a file that explains itself: every key with its meaning and default. Reads back as the same.
pub fn to_toml(settings: &Settings) -> String {
    let quoted = |text: &str| toml_edit::Value::from(text).to_string().trim().to_owned();
    let mut text =
        String::from("# Settings of the whole cluster, the same on every node. Change: stemma config set, or apply\n");
    for doc in KEYS {
        let default = if doc.default.is_empty() { String::new() } else { format!(" Default: {}.", doc.default) };
        let comment = format!("\n# {}\n# {}.{default}\n", doc.doc, doc.kind);
        match doc.key {
            "postgresql.hba" => {
                text.push_str("\n[postgresql]\n");
                text.push_str(comment.trim_start());
                text.push_str("hba = [\n");
                for line in &settings.postgresql.hba {
                    text.push_str(&format!("    {},\n", quoted(line)));
                }
                text.push_str("]\n");
            }
            "postgresql.parameters" => {
                text.push_str(&comment);
                text.push_str("[postgresql.parameters]\n");
                for (name, value) in &settings.postgresql.parameters {
                    text.push_str(&format!("{} = {}\n", toml_edit::Key::new(name.as_str()), quoted(value)));
                }
            }
            key => {
                // Keys of one table stand together, below its name.
                let (table, last) = key.split_once('.').unwrap_or(("", key));
                let header = format!("\n[{table}]\n");
                if table.is_empty() || text.contains(&header) {
                    text.push_str(&comment);
                } else {
                    text.push_str(&header);
                    text.push_str(comment.trim_start());
                }
                text.push_str(&format!("{last} = {}\n", plain(settings, key)));
            }
        }
    }
    text
}

/// The value of a plain key as TOML.
fn plain(settings: &Settings, key: &str) -> String {
    match key {
        "commit_mode" => format!("\"{}\"", settings.commit_mode),
        "strict" => settings.strict.to_string(),
        "sync_from_other_site" => settings.sync_from_other_site.to_string(),
        "slot_retention_size" => format!("\"{}\"", settings.slot_retention_size),
        "clone_rate" => format!("\"{}\"", settings.clone_rate),
        "tls" => settings.tls.to_string(),
        "failover.automatic" => settings.failover.automatic.to_string(),
        "failover.cross_site" => settings.failover.cross_site.to_string(),
        "failover.sites" => {
            let sites = settings.failover.sites.iter().map(|site| format!("\"{site}\""));
            format!("[{}]", sites.collect::<Vec<_>>().join(", "))
        }
        "failover.loss_max" => format!("\"{}\"", settings.failover.loss_max),
        span => format!("\"{}\"", span_of(settings, span)),
    }
}

/// What changes from `old` to `new`, in the order of the keys.
pub fn diff(old: &Settings, new: &Settings) -> Vec<Change> {
    let mut changes = Vec::new();
    for doc in KEYS.iter().filter(|doc| !doc.key.starts_with("postgresql.")) {
        let (before, after) = (plain(old, doc.key), plain(new, doc.key));
        if before != after {
            changes.push(Change {
                key: doc.key.to_owned(),
                old: Some(before),
                new: Some(after),
                class: doc.class,
                note: doc.effect.to_owned(),
            });
        }
    }
    if old.postgresql.hba != new.postgresql.hba {
        let lines = |settings: &Settings| Some(settings.postgresql.hba.join("\n")).filter(|text| !text.is_empty());
        changes.push(Change {
            key: "postgresql.hba".to_owned(),
            old: lines(old),
            new: lines(new),
            class: Class::Reload,
            note: "reloaded on every node; open connections stay".to_owned(),
        });
    }
    let (before, after) = (&old.postgresql.parameters, &new.postgresql.parameters);
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    for name in names.into_iter().filter(|name| before.get(*name) != after.get(*name)) {
        let restart = RESTART_PARAMETERS.contains(&name.to_ascii_lowercase().as_str());
        let note = if restart {
            "waits for a restart: stemma restart --rolling --pending"
        } else {
            "reloaded on every node; a parameter of an extension may wait for a restart"
        };
        changes.push(Change {
            key: format!("postgresql.parameters.{name}"),
            old: before.get(name).cloned(),
            new: after.get(name).cloned(),
            class: if restart { Class::Restart } else { Class::Reload },
            note: note.to_owned(),
        });
    }
    changes
}

#[cfg(test)]
mod tests;
