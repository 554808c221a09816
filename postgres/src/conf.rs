//! What the server is configured with: `stemma.conf`, included last from `postgresql.conf`, and the files beside it.
//!
//! `postgresql.auto.conf`, which `ALTER SYSTEM` writes, is read after every other file. For parameters of ours that
//! never change while the server runs, the command line overrides it (`start_arguments`); lines about any of ours are
//! also removed from it.

use crate::files::{refused, remove, replace};
use crate::hba;
use crate::spec::ServerSpec;
use model::limits::{WAL_RETRY_INTERVAL, WAL_TIMEOUT};
use model::{NodeName, Trouble};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const FILE: &str = "stemma.conf";
const INCLUDE: &str = "include 'stemma.conf'";

/// Parameters that the program sets itself and that nobody else may.
pub const OWNED_PARAMETERS: &[&str] = &[
    "archive_cleanup_command",
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "hot_standby",
    "ident_file",
    "listen_addresses",
    "log_destination",
    "logging_collector",
    "password_encryption",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
    "ssl",
    "ssl_ca_file",
    "ssl_cert_file",
    "ssl_key_file",
    "synchronous_standby_names",
    "syslog_facility",
    "unix_socket_directories",
    "unix_socket_group",
    "unix_socket_permissions",
    "wal_log_hints",
];

/// What one server is to run with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// The user's parameters.
    pub parameters: BTreeMap<String, String>,
    /// The user's lines of `pg_hba.conf`; defaults are used when there are none.
    pub hba_users: Vec<String>,
    /// Which replicas a commit waits for.
    pub synchronous_standby_names: String,
    /// Primary or replica.
    pub role: ServerRole,
    /// Whether TLS is on; needs `ServerSpec::tls_files`.
    pub tls: bool,
    /// The members whose certificates may replicate from this server.
    pub members: Vec<NodeName>,
    /// Common names of further certificates that may: those of clusters that follow this one.
    pub followers: Vec<String>,
    /// The keeper's superuser logs in as this user of the operating system, not by password: the passwords in this
    /// database are those of the cluster that it was copied from.
    pub keeper_user: Option<String>,
    /// Further lines of `pg_hba.conf` that stand before the refusals of our own roles.
    pub replication_hba: Vec<String>,
}

/// What a server is in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerRole {
    /// Accepts writes.
    Primary,
    /// Follows another server.
    Replica {
        /// How to reach it. Empty: follow nobody.
        primary_conninfo: String,
        /// Slot to use there.
        primary_slot_name: Option<String>,
        /// Apply this much later than the primary committed.
        apply_delay_ms: u64,
    },
}

/// What writing the configuration did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigChange {
    /// Whether any file now differs, so that a reload is due.
    pub changed: bool,
}

/// Values used unless the user gives others.
fn defaults() -> BTreeMap<String, String> {
    let timeout = format!("{}ms", WAL_TIMEOUT.0);
    let retry = format!("{}ms", WAL_RETRY_INTERVAL.0);
    let pairs: [(&str, &str); 12] = [
        // Logical decoding can then be used later without a restart.
        ("wal_level", "logical"),
        ("max_wal_senders", "16"),
        ("max_replication_slots", "32"),
        ("wal_sender_timeout", &timeout),
        ("wal_receiver_timeout", &timeout),
        ("wal_retrieve_retry_interval", &retry),
        ("wal_receiver_status_interval", "1s"),
        ("max_slot_wal_keep_size", "16GB"),
        ("wal_keep_size", "128MB"),
        ("synchronous_commit", "on"),
        ("hot_standby_feedback", "off"),
        ("log_line_prefix", "%m [%p] %q%u@%d "),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Refuses parameters that are ours to set, and values that would break a promise made to the user.
pub fn validate_parameter(name: &str, value: &str) -> Result<(), Trouble> {
    let refuse = |reason: String, hint: &str| Err(Trouble::config_bad_value(reason, hint));
    well_formed(name, value)?;
    let lower = name.to_ascii_lowercase();
    if OWNED_PARAMETERS.contains(&lower.as_str()) {
        return refuse(
            format!("`{name}` is set by stemma itself"),
            "remove it; addresses and ports are in the node file, replication is set up from the cluster's state",
        );
    }
    let plain = value.trim().to_ascii_lowercase();
    let off = ["off", "of", "false", "f", "fa", "fal", "fals", "no", "n", "0"].contains(&plain.as_str());
    match lower.as_str() {
        "wal_level" if !["replica", "logical"].contains(&plain.as_str()) => {
            refuse(format!("wal_level = {value} does not allow replication"), "use replica or logical")
        }
        "synchronous_commit" if !["on", "remote_apply"].contains(&plain.as_str()) => refuse(
            format!("synchronous_commit = {value} acknowledges commits that a crash can lose"),
            "use on or remote_apply; choose how many replicas hold a commit with the commit mode",
        ),
        "fsync" | "full_page_writes" if off => refuse(
            format!("{lower} = off loses acknowledged commits in a crash"),
            "leave it on; to go faster, choose the commit mode async",
        ),
        "max_wal_senders" | "max_replication_slots" if plain.parse::<u32>().is_ok_and(|number| number < 4) => {
            refuse(format!("{lower} = {value} leaves too little room for replicas"), "use 4 or more")
        }
        _ => Ok(()),
    }
}

/// Names are letters, digits, underscores and at most one dot (an extension's parameter); values fit one line.
fn well_formed(name: &str, value: &str) -> Result<(), Trouble> {
    let part = |text: &str| {
        let mut bytes = text.bytes();
        bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    if name.len() > 63 || !name.splitn(2, '.').all(part) || name.to_ascii_lowercase().starts_with("include") {
        return Err(Trouble::config_bad_value(
            format!("`{}` is not the name of a server parameter", name.escape_debug()),
            "see the list with `SHOW ALL`",
        ));
    }
    if value.contains(['\n', '\r', '\0']) {
        return Err(Trouble::config_bad_value(
            format!("the value of `{name}` holds a line break or NUL"),
            "write it in one line",
        ));
    }
    Ok(())
}

/// A value as the configuration file's reader takes it back unchanged.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// All parameters, the user's over the defaults, ours over both.
fn wanted(spec: &ServerSpec, config: &ServerConfig) -> Result<BTreeMap<String, String>, Trouble> {
    let mut all = defaults();
    for (name, value) in &config.parameters {
        well_formed(name, value)?;
        let lower = name.to_ascii_lowercase();
        if OWNED_PARAMETERS.contains(&lower.as_str()) {
            validate_parameter(name, value)?;
        }
        all.insert(lower, value.clone());
    }
    let mut own = |name: &str, value: &str| all.insert(name.to_owned(), value.to_owned());
    for (name, value) in fixed(spec)? {
        own(name, &value);
    }
    own("synchronous_standby_names", &config.synchronous_standby_names);
    own("password_encryption", "scram-sha-256");
    own("recovery_target_timeline", "latest");
    own("restore_command", "");
    let (conninfo, slot, delay_ms) = match &config.role {
        ServerRole::Primary => ("", "", 0),
        ServerRole::Replica { primary_conninfo, primary_slot_name, apply_delay_ms } => {
            (primary_conninfo.as_str(), primary_slot_name.as_deref().unwrap_or(""), *apply_delay_ms)
        }
    };
    own("primary_conninfo", conninfo);
    own("primary_slot_name", slot);
    own("recovery_min_apply_delay", &format!("{delay_ms}ms"));
    match (config.tls, &spec.tls_files) {
        (false, _) => {
            own("ssl", "off");
        }
        (true, Some(files)) if spec.installation.has_ssl => {
            own("ssl", "on");
            own("ssl_cert_file", &whole(&files.cert)?);
            own("ssl_key_file", &whole(&files.key)?);
            own("ssl_ca_file", &whole(&files.ca)?);
        }
        (true, Some(_)) => {
            return Err(Trouble::server_missing(
                "TLS is wanted, but the server was built without it",
                "install a server with TLS, or set `bin_dir` to another one",
            ));
        }
        (true, None) => {
            return Err(Trouble::config_missing_key(
                "TLS is wanted without certificate files",
                "give cert, key and ca",
            ));
        }
    }
    for (name, value) in &all {
        well_formed(name, value)?;
    }
    Ok(all)
}

/// The server works in its data directory, so a relative path would mean another place there.
fn whole(path: &Path) -> Result<String, Trouble> {
    let absolute = std::path::absolute(path).map_err(|error| refused("find", path, &error))?;
    Ok(absolute.display().to_string())
}

/// Parameters that stay as they are while the server runs.
fn fixed(spec: &ServerSpec) -> Result<Vec<(&'static str, String)>, Trouble> {
    let mut sockets = Vec::new();
    for dir in std::iter::once(&spec.socket_dir).chain(&spec.socket_dirs_beside) {
        let dir = whole(dir)?;
        if dir.contains([',', '"']) {
            return Err(Trouble::config_bad_value(
                format!("the socket directory {dir} holds a comma or quote"),
                "choose another state directory, or another one in socket_dirs",
            ));
        }
        sockets.push(dir);
    }
    Ok(vec![
        ("listen_addresses", spec.listen.clone()),
        ("port", spec.port.to_string()),
        ("unix_socket_directories", sockets.join(", ")),
        ("hba_file", whole(&spec.data_dir.join("pg_hba.conf"))?),
        ("ident_file", whole(&spec.data_dir.join("pg_ident.conf"))?),
        ("hot_standby", "on".into()),
        ("wal_log_hints", "on".into()),
        ("logging_collector", "off".into()),
        ("log_destination", "stderr".into()),
    ])
}

/// Arguments for the postmaster that nothing in any file can override.
pub(crate) fn start_arguments(spec: &ServerSpec) -> Result<Vec<String>, Trouble> {
    Ok(fixed(spec)?.into_iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]).collect())
}

/// Writes everything the server reads at start and reload, each file whole or not at all.
///
/// When a running server is to be changed, `Server::reload` and `Sql::wait_setting` follow.
pub fn write_config(spec: &ServerSpec, config: &ServerConfig) -> Result<ConfigChange, Trouble> {
    let dir = &spec.data_dir;
    let user = spec.user.as_ref();
    let mut text = String::from("# Written by stemma; change it with `stemma config`.\n");
    let all = wanted(spec, config)?;
    for (name, value) in &all {
        text.push_str(&format!("{name} = {}\n", quoted(value)));
    }
    let hba = hba::render(&spec.superuser, config)?;
    let mut changed = replace(&dir.join("pg_hba.conf"), &hba, user)?;
    changed |= rewrite(spec, "pg_ident.conf", |old| hba::ident(config, old))?;
    changed |= replace(&dir.join(FILE), &text, user)?;
    changed |= rewrite(spec, "postgresql.conf", |old| with_include(old, INCLUDE))?;
    changed |= rewrite(spec, "postgresql.auto.conf", |old| without_ours(old, &all))?;
    // A copy may carry a request for point-in-time recovery, which would end in a promotion.
    changed |= remove(&dir.join("recovery.signal"))?;
    changed |= match config.role {
        ServerRole::Primary => remove(&dir.join("standby.signal"))?,
        ServerRole::Replica { .. } => replace(&dir.join("standby.signal"), "", user)?,
    };
    Ok(ConfigChange { changed })
}

fn rewrite(spec: &ServerSpec, name: &str, change: impl Fn(&str) -> String) -> Result<bool, Trouble> {
    let path = spec.data_dir.join(name);
    let old = match fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(refused("read", &path, &error)),
    };
    let new = change(&old);
    if new == old { Ok(false) } else { replace(&path, &new, spec.user.as_ref()) }
}

/// A configuration file outside the data directory with our file in it included last.
pub(crate) fn including(text: &str, data_dir: &Path) -> Result<String, Trouble> {
    Ok(with_include(text, &format!("include {}", quoted(&whole(&data_dir.join(FILE))?))))
}

/// Our include as the last line that says anything, so that it wins over all before it.
fn with_include(text: &str, include: &str) -> String {
    let says = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let ours = text.lines().filter(|line| line.trim() == include).count();
    if ours == 1 && text.lines().rfind(says).is_some_and(|line| line.trim() == include) {
        return text.to_owned();
    }
    let mut new: String =
        text.lines().filter(|line| line.trim() != include).flat_map(|line| [line, "\n"]).collect::<String>();
    new.push_str(include);
    new.push('\n');
    new
}

/// Without the lines that would override what we set: parameters of ours, and those in the cluster's settings, which
/// are the same on every node.
fn without_ours(text: &str, set: &BTreeMap<String, String>) -> String {
    let overrides = |line: &str| {
        let name = line.split(|c: char| c == '=' || c.is_whitespace()).find(|word| !word.is_empty());
        name.map(str::to_ascii_lowercase)
            .is_some_and(|name| OWNED_PARAMETERS.contains(&name.as_str()) || set.contains_key(&name))
    };
    if !text.lines().any(overrides) {
        return text.to_owned();
    }
    let removed: Vec<&str> = text.lines().filter(|line| overrides(line)).collect();
    tracing::warn!(
        lines = removed.len(),
        "removed lines of postgresql.auto.conf that override the cluster's parameters"
    );
    text.lines().filter(|line| !overrides(line)).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_ours_and_dangerous_values_are_refused() {
        for (name, value) in [
            ("port", "5433"),
            ("PORT", "5433"),
            ("primary_conninfo", ""),
            ("synchronous_standby_names", "*"),
            ("wal_level", "minimal"),
            ("fsync", "off"),
            ("full_page_writes", "F"),
            ("synchronous_commit", "remote_write"),
            ("max_wal_senders", "0"),
            ("include", "other.conf"),
            ("include_dir", "x"),
            ("work_mem", "4MB\nport = 1"),
            ("a b", "1"),
            ("", "1"),
            ("a.b.c", "1"),
        ] {
            assert!(validate_parameter(name, value).expect_err(name).is("ST1103"), "{name} = {value}");
        }
        for (name, value) in [
            ("work_mem", "64MB"),
            ("shared_buffers", "16MB"),
            ("wal_level", "replica"),
            ("auto_explain.log_min_duration", "1s"),
            ("fsync", "on"),
            ("synchronous_commit", "remote_apply"),
            ("archive_command", "cp '%p' \\tmp"),
        ] {
            validate_parameter(name, value).unwrap_or_else(|trouble| panic!("{name} = {value}: {trouble}"));
        }
    }

    #[test]
    fn our_include_is_the_last_line_that_counts() {
        for (old, new) in [
            ("", "include 'stemma.conf'\n"),
            ("a = 1", "a = 1\ninclude 'stemma.conf'\n"),
            ("a = 1\ninclude 'stemma.conf'\n# end\n", "a = 1\ninclude 'stemma.conf'\n# end\n"),
            ("include 'stemma.conf'\nport = 1\n", "port = 1\ninclude 'stemma.conf'\n"),
        ] {
            assert_eq!(with_include(old, INCLUDE), new);
            assert_eq!(with_include(new, INCLUDE), new);
        }
    }

    #[test]
    fn overriding_lines_leave_and_others_stay() {
        let old = "# Do not edit\nwork_mem = '8MB'\nPRIMARY_CONNINFO='host=x'\nsynchronous_standby_names = '*'\n";
        let none = BTreeMap::new();
        assert_eq!(without_ours(old, &none), "# Do not edit\nwork_mem = '8MB'\n");
        assert_eq!(without_ours("work_mem = '8MB'", &none), "work_mem = '8MB'");
        let set = BTreeMap::from([("work_mem".to_owned(), "1GB".to_owned())]);
        assert_eq!(without_ours(old, &set), "# Do not edit\n", "the cluster's settings count");
    }

    #[test]
    fn values_come_back_unchanged_through_quotes() {
        assert_eq!(quoted("it's"), "'it''s'");
        assert_eq!(quoted("a\\b"), "'a\\\\b'");
    }
}
