//! What a PgBouncer configuration means here: the router's configuration, and notes on what has no counterpart.
//!
//! Only texts go in and out. Reading files, `%include` and writing the result are the caller's. Passwords are never put
//! into the configuration: plain ones and MD5 hashes are named in a note, SCRAM verifiers go into a list of their own.

use std::collections::BTreeMap;
use std::fmt::Write;

mod userlist;
pub use userlist::{User, UserSecret, users};

/// Most lines of a file that are read.
const LINES_MAX: usize = 100_000;

/// What an imported file became.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// The router's configuration.
    pub config: String,
    /// What a person should know, in the order of the file: `line 7: ...`.
    pub notes: Vec<String>,
}

/// One `key = value` of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    line: usize,
    key: String,
    value: String,
}

/// A setting of PgBouncer and what becomes of it.
enum Meaning {
    /// The same under another name.
    Number(&'static str),
    /// The same, in seconds there.
    Seconds(&'static str),
    /// The same; there and here none is no bound.
    Bound(&'static str),
    /// The same text under another name.
    Text(&'static str),
    /// What every user, or every database, is allowed: a bound of those that have none of their own.
    Each(Section, &'static str),
    /// The router does this by itself, or in another way.
    Needless(&'static str),
    /// There is nothing like it yet.
    Missing(&'static str),
    /// Handled together with others.
    Special,
}

fn meaning(key: &str) -> Option<Meaning> {
    use Meaning::{Bound, Each, Missing, Needless, Number, Seconds, Special, Text};
    Some(match key {
        "max_client_conn" => Number("clients_max"),
        "default_pool_size" => Number("pool_size"),
        "query_wait_timeout" => Seconds("wait"),
        "server_connect_timeout" => Seconds("connect_timeout"),
        "client_login_timeout" => Seconds("login_timeout"),
        "server_idle_timeout" => Seconds("server_idle"),
        "server_lifetime" => Seconds("server_lifetime"),
        "client_idle_timeout" => Bound("client_idle"),
        "idle_transaction_timeout" => Bound("transaction_idle"),
        "max_db_connections" => Each(Section::Databases, "servers_max"),
        "max_db_client_connections" => Each(Section::Databases, "clients_max"),
        "max_user_connections" => Each(Section::Users, "servers_max"),
        "max_user_client_connections" => Each(Section::Users, "clients_max"),
        "auth_file" => Text("users_file"),
        "auth_user" => Text("auth_user"),
        "auth_query" => Text("auth_query"),
        "auth_dbname" => Text("auth_database"),
        "client_tls_cert_file" => Text("tls_certificate"),
        "client_tls_key_file" => Text("tls_key"),
        "unix_socket_dir" => Text("socket_dir"),
        "unix_socket_mode" => Text("socket_mode"),
        "listen_addr" | "listen_port" | "pool_mode" | "admin_users" | "stats_users" | "auth_type"
        | "client_tls_sslmode" | "client_tls_ca_file" | "server_tls_sslmode" | "server_tls_ca_file" => Special,
        "server_reset_query" | "server_reset_query_always" => {
            Needless("settings follow their client, nothing is reset")
        }
        "ignore_startup_parameters" | "track_extra_parameters" => Needless("every setting follows its client"),
        "max_prepared_statements" => Needless("prepared statements follow their client in every mode"),
        "server_check_query" | "server_check_delay" => Needless("servers are watched by their keepers"),
        "pkt_buf" | "sbuf_loopcnt" | "listen_backlog" | "tcp_defer_accept" | "tcp_socket_buffer" => {
            Needless("buffers grow and shrink by themselves")
        }
        "so_reuseport" | "peer_id" => Needless("one process uses all cores: set `workers`"),
        "dns_max_ttl" | "dns_nxdomain_ttl" | "dns_zone_check_period" | "resolv_conf" => {
            Needless("addresses come from the cluster")
        }
        "server_round_robin" | "server_fast_close" | "cancel_wait_timeout" => Needless("the router decides it"),
        "logfile" | "pidfile" | "syslog" | "syslog_facility" | "syslog_ident" | "user" | "verbose"
        | "log_connections" | "log_disconnections" | "log_pooler_errors" | "log_stats" | "stats_period" => {
            Needless("logs go to standard error, figures to the metrics")
        }
        "min_pool_size" => Missing("connections are opened when they are needed"),
        "reserve_pool_size" | "reserve_pool_timeout" => Missing("there is no reserve: raise `pool_size` instead"),
        "query_timeout" | "transaction_timeout" => Missing("set statement_timeout for the role instead"),
        "unix_socket_group" => Missing("set the group of the directory, and its set-group-id bit, instead"),
        "disable_pqexec" => Missing("simple queries are always allowed"),
        "application_name_add_host" | "conffile" | "job_name" | "service_name" | "suspend_timeout" => {
            Missing("it has no counterpart")
        }
        _ => return None,
    })
}

/// Where bounds of single names stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Section {
    Users,
    Databases,
}

impl Section {
    const ALL: [Section; 2] = [Section::Users, Section::Databases];

    fn theirs(self) -> &'static str {
        match self {
            Section::Users => "users",
            Section::Databases => "databases",
        }
    }

    fn ours(self) -> &'static str {
        match self {
            Section::Users => "user_settings",
            Section::Databases => "database_settings",
        }
    }
}

/// Bounds by section and name; `*` are those of every other name.
type Bounds = BTreeMap<(Section, String), BTreeMap<&'static str, String>>;

/// The router's configuration for a `pgbouncer.ini`.
pub fn pgbouncer(text: &str) -> Imported {
    let (sections, mut notes) = parse(text);
    let empty = Vec::new();
    let settings = sections.get("pgbouncer").unwrap_or(&empty);
    let (mut out, mut bounds) = (String::from("[router]\n"), Bounds::new());
    let value = |key: &str| settings.iter().rfind(|entry| entry.key == key).map(|entry| entry.value.as_str());
    listen(&mut out, value("listen_addr"), value("listen_port"), &mut notes);
    for (number, entry) in settings.iter().enumerate() {
        // Of repeated settings the last one counts.
        if settings[number + 1..].iter().all(|later| later.key != entry.key) {
            setting(&mut out, &mut bounds, entry, &mut notes);
        }
    }
    let _ = admins(&mut out, value("admin_users"), value("stats_users"));
    security(&mut out, settings, &mut notes);
    for section in Section::ALL {
        for entry in sections.get(section.theirs()).unwrap_or(&empty) {
            named(section, entry, &mut bounds, &mut notes);
        }
    }
    for entry in sections.get("peers").unwrap_or(&empty) {
        notes.push(format!("line {}: [peers] `{}` has no counterpart", entry.line, entry.key));
    }
    write_bounds(&mut out, &bounds);
    let line =
        |note: &String| note.strip_prefix("line ").and_then(|rest| rest.split(':').next()?.parse::<usize>().ok());
    notes.sort_by_key(line);
    Imported { config: out, notes }
}

fn write_bounds(out: &mut String, bounds: &Bounds) {
    for ((section, name), of) in bounds {
        let _ = writeln!(out, "\n[router.{}.{}]", section.ours(), quoted(name));
        // What holds for every name holds for those too that have something of their own.
        let general = bounds.get(&(*section, "*".to_owned()));
        let rest = general.into_iter().flatten().filter(|(key, _)| !of.contains_key(*key));
        for (key, value) in of.iter().chain(rest) {
            let _ = writeln!(out, "{key} = {value}");
        }
    }
}

/// Sections with their entries. Comments begin with `;` or `#`; a value goes to the end of its line.
fn parse(text: &str) -> (BTreeMap<String, Vec<Entry>>, Vec<String>) {
    let mut sections: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
    let mut notes = Vec::new();
    let mut section = String::new();
    for (number, line) in text.lines().take(LINES_MAX).enumerate() {
        let (line, number) = (line.trim(), number + 1);
        if line.is_empty() || line.starts_with([';', '#']) {
            continue;
        }
        if let Some(file) = line.strip_prefix("%include") {
            notes.push(format!("line {number}: {} is not read: import it too", file.trim()));
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.trim().to_ascii_lowercase();
        } else if let Some((key, value)) = line.split_once('=') {
            let entry = Entry { line: number, key: key.trim().to_owned(), value: value.trim().to_owned() };
            sections.entry(section.clone()).or_default().push(entry);
        } else {
            notes.push(format!("line {number}: not understood"));
        }
    }
    (sections, notes)
}

fn listen(out: &mut String, address: Option<&str>, port: Option<&str>, notes: &mut Vec<String>) {
    let port: u16 = port.and_then(|port| port.parse().ok()).unwrap_or(6432);
    let mut listed = Vec::new();
    for name in address.unwrap_or("127.0.0.1").split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match name {
            "*" => listed.push(format!("0.0.0.0:{port}")),
            "localhost" => listed.push(format!("127.0.0.1:{port}")),
            _ => match name.parse::<std::net::IpAddr>() {
                Ok(address) => listed.push(std::net::SocketAddr::new(address, port).to_string()),
                Err(_) => notes.push(format!("listen_addr `{name}` is a name: write the address it stands for")),
            },
        }
    }
    let quoted: Vec<String> = listed.iter().map(|address| quoted(address)).collect();
    let _ = writeln!(out, "listen = [{}]", quoted.join(", "));
}

/// A string of TOML.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            letter if letter.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(letter));
            }
            letter => out.push(letter),
        }
    }
    out.push('"');
    out
}

fn setting(out: &mut String, bounds: &mut Bounds, entry: &Entry, notes: &mut Vec<String>) {
    let Entry { line, key, value } = entry;
    let mut note = |text: &str| notes.push(format!("line {line}: {key} = {value}: {text}"));
    match meaning(key) {
        Some(Meaning::Number(name)) => match value.parse::<u64>() {
            Ok(number) => {
                let _ = writeln!(out, "{name} = {number}");
            }
            Err(_) => note("is no number"),
        },
        Some(Meaning::Seconds(name)) => match value.parse::<f64>() {
            Ok(0.0) => note("is without limit there; every wait has an end here, so the default stays"),
            Ok(seconds) if (0.0..1e9).contains(&seconds) => {
                let _ = writeln!(out, "{name} = \"{}\"", span(seconds));
            }
            Ok(_) | Err(_) => note("is no number of seconds"),
        },
        Some(Meaning::Bound(name)) => match value.parse::<f64>() {
            Ok(0.0) => {}
            Ok(seconds) if (0.0..1e9).contains(&seconds) => {
                let _ = writeln!(out, "{name} = \"{}\"", span(seconds));
            }
            Ok(_) | Err(_) => note("is no number of seconds"),
        },
        Some(Meaning::Text(name)) => {
            let _ = writeln!(out, "{name} = {}", quoted(value));
        }
        Some(Meaning::Each(section, name)) => match value.parse::<u64>() {
            Ok(0) => {}
            Ok(number) => {
                bounds.entry((section, "*".to_owned())).or_default().insert(name, number.to_string());
            }
            Err(_) => note("is no number"),
        },
        // Nothing was asked for.
        Some(Meaning::Missing(_)) if matches!(value.as_str(), "0" | "0.0" | "") => {}
        Some(Meaning::Needless(why)) => note(&format!("not needed: {why}")),
        Some(Meaning::Missing(why)) => note(&format!("no counterpart: {why}")),
        Some(Meaning::Special) if key == "pool_mode" => match value.as_str() {
            "session" | "transaction" => {
                let _ = writeln!(out, "pool_mode = {}", quoted(value));
            }
            _ => {
                let _ = writeln!(out, "pool_mode = \"transaction\"");
                note("no counterpart: transaction mode is taken, which also allows transactions");
            }
        },
        Some(Meaning::Special) => {}
        None => note("unknown, left out"),
    }
}

/// A time as it is written here.
fn span(seconds: f64) -> String {
    if seconds.fract() == 0.0 { format!("{seconds}s") } else { format!("{}ms", (seconds * 1000.0) as u64) }
}

fn admins(out: &mut String, admins: Option<&str>, stats: Option<&str>) -> std::fmt::Result {
    let names = [admins, stats].into_iter().flatten().flat_map(|list| list.split(','));
    let mut names: Vec<String> = names.map(str::trim).filter(|name| !name.is_empty()).map(quoted).collect();
    names.dedup();
    if names.is_empty() { Ok(()) } else { writeln!(out, "admins = [{}]", names.join(", ")) }
}

/// Authentication and TLS: what is the same is taken over, what is not is said.
fn security(out: &mut String, settings: &[Entry], notes: &mut Vec<String>) {
    let value = |key: &str| settings.iter().rfind(|entry| entry.key == key).map(|entry| entry.value.as_str());
    let verifies = value("client_tls_sslmode").is_some_and(|mode| mode.starts_with("verify"));
    for Entry { line, key, value } in settings {
        let mut note = |text: &str| notes.push(format!("line {line}: {key} = {value}: {text}"));
        match (key.as_str(), value.as_str()) {
            ("auth_type", "scram-sha-256") => {}
            ("auth_type", "trust" | "any") => out.push_str("auth = \"trust\"\n"),
            ("auth_type", "md5" | "plain") => {
                note("clients log in with SCRAM here: set passwords that are MD5 hashes again with scram-sha-256");
            }
            ("auth_type", "cert") => {
                note("a certificate whose common name is the user's stands for the password: `tls_client_ca`")
            }
            ("auth_type", _) => note("no counterpart"),
            ("auth_file", _) => {
                note("must be readable by the router's user alone (mode 0600); MD5 hashes are of no use")
            }
            ("client_tls_sslmode", "require" | "verify-ca" | "verify-full") => out.push_str("tls_required = true\n"),
            ("client_tls_ca_file", _) if verifies => {
                let _ = writeln!(out, "tls_client_ca = {}", quoted(value));
            }
            ("server_tls_ca_file", _) => {
                let _ = writeln!(out, "server_ca = {}", quoted(value));
            }
            ("server_tls_sslmode", "prefer" | "require" | "allow") => {
                note(
                    "no counterpart: with `server_ca` connections to servers are TLS and verified, without it they are not TLS",
                );
            }
            _ => {}
        }
    }
}

/// A line of `[databases]` or `[users]`. Databases need not be listed here, whatever the cluster has is reached: bounds are
/// taken over, and what a line says beyond that is noted.
fn named(section: Section, entry: &Entry, bounds: &mut Bounds, notes: &mut Vec<String>) {
    let Entry { line, key, value } = entry;
    let what = section.theirs().trim_end_matches('s');
    let mut told = |text: String| notes.push(format!("line {line}: {what} {key}: {text}"));
    for (name, value) in userlist::pairs(value) {
        let bound = match (section, name.as_str()) {
            (_, "pool_size") => Some("pool_size"),
            (_, "pool_mode") => Some("pool_mode"),
            (Section::Databases, "max_db_connections") | (Section::Users, "max_user_connections") => {
                Some("servers_max")
            }
            (Section::Databases, "max_db_client_connections") | (Section::Users, "max_user_client_connections") => {
                Some("clients_max")
            }
            _ => None,
        };
        let written = match (bound, value.parse::<u64>()) {
            (Some("pool_mode"), _) => Some(quoted(if value == "session" { "session" } else { "transaction" })),
            (Some(_), Ok(0)) => continue,
            (Some(_), Ok(number)) => Some(number.to_string()),
            (Some(_), Err(_)) | (None, _) => None,
        };
        if let (Some(bound), Some(written)) = (bound, written) {
            bounds.entry((section, key.clone())).or_default().insert(bound, written);
            continue;
        }
        match name.as_str() {
            "host" | "port" => told(format!("{name}={value} is not needed: the primary is found through the cluster")),
            "dbname" if value == *key => {}
            "dbname" => told(format!("is called {value} on the server; aliases have no counterpart")),
            "password" => told("has a password in the file; it is not taken over".to_owned()),
            _ => told(format!("{name}={value} has no counterpart")),
        }
    }
}

#[cfg(test)]
mod tests;
