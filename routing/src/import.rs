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
    /// The router does this by itself, or in another way.
    Needless(&'static str),
    /// There is nothing like it yet.
    Missing(&'static str),
    /// Handled together with others.
    Special,
}

fn meaning(key: &str) -> Option<Meaning> {
    use Meaning::{Missing, Needless, Number, Seconds, Special};
    Some(match key {
        "max_client_conn" => Number("clients_max"),
        "default_pool_size" => Number("pool_size"),
        "query_wait_timeout" => Seconds("wait_max"),
        "server_connect_timeout" => Seconds("connect_timeout"),
        "client_login_timeout" => Seconds("login_timeout"),
        "server_idle_timeout" => Seconds("server_idle_max"),
        "server_lifetime" => Seconds("server_lifetime"),
        "listen_addr"
        | "listen_port"
        | "pool_mode"
        | "admin_users"
        | "stats_users"
        | "auth_type"
        | "auth_file"
        | "auth_query"
        | "auth_user"
        | "client_tls_sslmode"
        | "client_tls_cert_file"
        | "client_tls_key_file"
        | "client_tls_ca_file"
        | "server_tls_sslmode"
        | "server_tls_ca_file" => Special,
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
        "max_db_connections" | "max_user_connections" | "max_db_client_connections" | "max_user_client_connections" => {
            Missing("limits are per user and database together: `pool_size`")
        }
        "query_timeout" | "idle_transaction_timeout" | "transaction_timeout" | "client_idle_timeout" => {
            Missing("set statement_timeout or idle_in_transaction_session_timeout for the role instead")
        }
        "unix_socket_dir" | "unix_socket_mode" | "unix_socket_group" => Missing("clients connect over TCP"),
        "disable_pqexec" => Missing("simple queries are always allowed"),
        "application_name_add_host" | "conffile" | "job_name" | "service_name" | "suspend_timeout" => {
            Missing("it has no counterpart")
        }
        _ => return None,
    })
}

/// The router's configuration for a `pgbouncer.ini`.
pub fn pgbouncer(text: &str) -> Imported {
    let (sections, mut notes) = parse(text);
    let empty = Vec::new();
    let settings = sections.get("pgbouncer").unwrap_or(&empty);
    let mut out = String::from("[router]\n");
    let value = |key: &str| settings.iter().rfind(|entry| entry.key == key).map(|entry| entry.value.as_str());
    listen(&mut out, value("listen_addr"), value("listen_port"), &mut notes);
    for (number, entry) in settings.iter().enumerate() {
        // Of repeated settings the last one counts.
        if settings[number + 1..].iter().all(|later| later.key != entry.key) {
            setting(&mut out, entry, &mut notes);
        }
    }
    let _ = admins(&mut out, value("admin_users"), value("stats_users"));
    security(settings, &mut notes);
    for entry in sections.get("databases").unwrap_or(&empty) {
        database(entry, &mut notes);
    }
    for section in ["users", "peers"] {
        for entry in sections.get(section).unwrap_or(&empty) {
            notes.push(format!("line {}: [{section}] `{}` has no counterpart", entry.line, entry.key));
        }
    }
    let line =
        |note: &String| note.strip_prefix("line ").and_then(|rest| rest.split(':').next()?.parse::<usize>().ok());
    notes.sort_by_key(line);
    Imported { config: out, notes }
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

fn setting(out: &mut String, entry: &Entry, notes: &mut Vec<String>) {
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
                let _ = writeln!(out, "{name} = \"{}ms\"", (seconds * 1000.0) as u64);
            }
            Ok(_) | Err(_) => note("is no number of seconds"),
        },
        Some(Meaning::Needless(why)) => note(&format!("not needed: {why}")),
        Some(Meaning::Missing(why)) => note(&format!("no counterpart: {why}")),
        Some(Meaning::Special) if key == "pool_mode" => match value.as_str() {
            "session" | "transaction" => {
                let _ = writeln!(out, "mode = {}", quoted(value));
            }
            _ => {
                let _ = writeln!(out, "mode = \"transaction\"");
                note("no counterpart: transaction mode is taken, which also allows transactions");
            }
        },
        Some(Meaning::Special) => {}
        None => note("unknown, left out"),
    }
}

fn admins(out: &mut String, admins: Option<&str>, stats: Option<&str>) -> std::fmt::Result {
    let names = [admins, stats].into_iter().flatten().flat_map(|list| list.split(','));
    let mut names: Vec<String> = names.map(str::trim).filter(|name| !name.is_empty()).map(quoted).collect();
    names.dedup();
    if names.is_empty() { Ok(()) } else { writeln!(out, "admins = [{}]", names.join(", ")) }
}

/// Authentication and TLS are not guessed at: what they were is said, and what to do.
fn security(settings: &[Entry], notes: &mut Vec<String>) {
    for Entry { line, key, value } in settings {
        let text = match key.as_str() {
            "auth_type" => match value.as_str() {
                "scram-sha-256" => "the same here: import auth_file for the verifiers",
                "md5" | "plain" => "clients log in with SCRAM here: set the passwords again with scram-sha-256",
                "trust" | "any" => "clients are always asked for a password or certificate here",
                "cert" => "client certificates need `client_tls` with a CA",
                _ => "no counterpart",
            },
            "auth_file" => "import it with its own file: only SCRAM verifiers are taken over",
            "auth_query" | "auth_user" => "verifiers are asked of the servers: name the user in the router's `auth`",
            "client_tls_sslmode" | "client_tls_cert_file" | "client_tls_key_file" | "client_tls_ca_file" => {
                "put certificate and key into the router's `client_tls`"
            }
            "server_tls_sslmode" | "server_tls_ca_file" => "put the CA into the router's `server_tls`",
            _ => continue,
        };
        notes.push(format!("line {line}: {key} = {value}: {text}"));
    }
}

/// Databases are not listed here: whatever the cluster has is reached. What a line says beyond that is noted.
fn database(entry: &Entry, notes: &mut Vec<String>) {
    let Entry { line, key, value } = entry;
    let mut told = |text: String| notes.push(format!("line {line}: database {key}: {text}"));
    for (name, value) in userlist::pairs(value) {
        match name.as_str() {
            "host" | "port" => told(format!("{name}={value} is not needed: the primary is found through the cluster")),
            "dbname" if value == *key => {}
            "dbname" => told(format!("is called {value} on the server; aliases have no counterpart")),
            "password" => told("has a password in the file; it is not taken over".to_owned()),
            "pool_size" | "pool_mode" | "user" | "connect_query" | "auth_user" | "max_db_connections"
            | "reserve_pool" | "min_pool_size" | "client_encoding" | "datestyle" | "timezone" => {
                told(format!("{name}={value} has no counterpart per database"));
            }
            _ => told(format!("{name} is unknown, left out")),
        }
    }
}

#[cfg(test)]
mod tests;
