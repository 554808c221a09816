//! `[router]`: in a node file, where the router runs beside the keeper, or in a file of its own for `stemma router`.

use crate::node_file::{KeyDoc, key, read_text};
use crate::render::finding::{Finding, trouble};
use model::Trouble;
use router::config::{ClientAuth, ClientTls, PoolMode, Secret, ServerTls};
use router::limits::{Bounds, Limits};
use router::wishes::{Wish, Wishes};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Every key of the section, for the reference.
pub const KEYS: &[KeyDoc] = &[
    key(
        "router.listen",
        "",
        "Address and port, or a list of them, for clients. Without `[router]` there is no router.",
    ),
    key(
        "router.listen_primary",
        "none",
        "Address and port, or a list of them, for clients whose statements all go to the primary.",
    ),
    key(
        "router.listen_read_only",
        "none",
        "Address and port, or a list of them, for clients that read only: their transactions are READ ONLY and go to replicas, whatever `split` says; to the primary where no replica may serve them.",
    ),
    key(
        "router.socket_dir",
        "none",
        "A directory for a Unix socket beside each of these addresses, named after the port as PostgreSQL's programs expect it.",
    ),
    key(
        "router.socket_mode",
        "`\"0777\"`",
        "Permissions of those sockets, in octal. Whoever connects has to log in as by TCP.",
    ),
    key("router.workers", "half the cores", "Threads that carry traffic, 1 to 64."),
    key(
        "router.pool_mode",
        "`\"transaction\"`",
        "When a server connection may go to another client: `\"transaction\"` or `\"session\"`.",
    ),
    key("router.pool_size", "`20`", "Most connections to one server for one user and database, over all threads."),
    key("router.clients_max", "`10000`", "Most clients at once."),
    key(
        "router.client_idle",
        "none",
        "A client that does nothing for so long, with no transaction open, is closed, unless it listens (`LISTEN`).",
    ),
    key("router.transaction_idle", "none", "A client that does nothing for so long within a transaction is closed."),
    key("router.login_timeout", "`\"15s\"`", "How long a client may take to log in."),
    key("router.connect_timeout", "`\"5s\"`", "How long connecting and logging in to a server may take."),
    key("router.server_idle", "`\"10min\"`", "A server connection that nobody used for so long is closed."),
    key("router.server_lifetime", "`\"1h\"`", "A server connection is closed, when idle, at this age."),
    key("router.wait", "`\"30s\"`", "How long a client waits for a free connection."),
    key("router.hold", "`\"15s\"`", "How long a statement is held while there is no primary."),
    key(
        "router.users_file",
        "none",
        "File of users and secrets, mode 0600: lines of `\"name\" \"secret\"`; the secret is a password or a SCRAM-SHA-256 verifier.",
    ),
    key(
        "router.auth",
        "`\"scram\"`",
        "`\"scram\"`, or `\"trust\"`: whoever connects is believed. The router logs in to servers with the password that `users_file` has.",
    ),
    key("router.auth_user", "none", "User of `users_file` who looks up the others with `auth_query`."),
    key(
        "router.auth_query",
        "`SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1`",
        "Query for name and verifier of a user; `$1` is the name.",
    ),
    key("router.auth_database", "the client's", "Database in which `auth_query` runs."),
    key("router.tls_certificate", "none", "PEM chain that clients meet; with `tls_key`."),
    key("router.tls_key", "none", "Its key."),
    key(
        "router.tls_client_ca",
        "none",
        "CA of clients' certificates: one whose common name is the user's name stands for the password.",
    ),
    key("router.tls_required", "`false`", "Whether clients without TLS are turned away."),
    key(
        "router.server_ca",
        "none",
        "CA of the servers' certificates; with it every connection to a server is TLS, but for sockets of the same machine.",
    ),
    key(
        "router.server_sockets",
        "`true`",
        "Whether servers of this machine are spoken to by their Unix sockets, by those whom TCP lets in too.",
    ),
    key(
        "router.split",
        "`false`",
        "Whether statements that only read may go to replicas. Needs `pool_mode = \"transaction\"`.",
    ),
    key(
        "router.consistency",
        "`\"session\"`",
        "What a read on a replica must see: `\"session\"` (what its session wrote and saw), `\"bounded:500ms\"` (all that was acknowledged so long before it began), `\"eventual\"`, or `\"strong\"` (always the primary).",
    ),
    key(
        "router.read_wait",
        "`\"10ms\"`",
        "How long a read waits for a replica that has not replayed yet what its session wrote or saw, before the primary serves it; `\"0ms\"`: not at all.",
    ),
    key("router.lag_max", "`\"16MB\"`", "Replicas that trail by more log are not read, whatever `consistency` says."),
    key(
        "router.balance",
        "`\"latency\"`",
        "How a replica is picked: `\"latency\"` (of two at random the one with less expected waiting), `\"least-connections\"`, `\"round-robin\"`, or `\"weighted\"` (in turn by `weights`).",
    ),
    key(
        "router.site",
        "the node's; none for a router on its own",
        "Where the router is: replicas of this site are read while one of them has room, then the others. Reads go anywhere where it is `\"\"`.",
    ),
    key(
        "router.weights.NODE",
        "`100`",
        "Weight of a replica among the others; one of weight 0 is not read. Read again at `kill -HUP`.",
    ),
    key(
        "router.user_settings.USER.consistency",
        "`consistency`",
        "What reads of this user must see, until the session says something else (`SET stemma.consistency`).",
    ),
    key(
        "router.user_settings.USER.route",
        "`\"auto\"`",
        "`\"primary\"`, `\"replica\"` or `\"auto\"`: where statements of this user go, until the session says something else.",
    ),
    key(
        "router.user_settings.USER.pool_size",
        "`pool_size`",
        "Most connections to one server for this user in one database. As the other bounds of users and databases it may stand under the name `*`, for all that have no section of their own; the least of the user's and the database's holds.",
    ),
    key(
        "router.user_settings.USER.servers_max",
        "none",
        "Most connections to one server for this user over all databases.",
    ),
    key("router.user_settings.USER.clients_max", "none", "Most clients of this user at once."),
    key(
        "router.user_settings.USER.pool_mode",
        "`pool_mode`",
        "`\"transaction\"` or `\"session\"` for this user, whatever the database has.",
    ),
    key("router.database_settings.DATABASE.pool_size", "`pool_size`", "As for a user, for each user of this database."),
    key(
        "router.database_settings.DATABASE.servers_max",
        "none",
        "Most connections to one server in this database, over all users.",
    ),
    key("router.database_settings.DATABASE.clients_max", "none", "Most clients in this database at once."),
    key(
        "router.database_settings.DATABASE.pool_mode",
        "`pool_mode`",
        "`\"transaction\"` or `\"session\"` in this database.",
    ),
    key(
        "router.metrics",
        "none",
        "Address and port at which a router on its own answers `GET /metrics`. In a node its metrics are among the node's.",
    ),
    key("router.admins", "none", "List of users who may use the console (`psql -d stemma`)."),
];

/// A list, or one value in its place.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(SocketAddr),
    Many(Vec<SocketAddr>),
}

impl OneOrMany {
    fn all(&self) -> Vec<SocketAddr> {
        match self {
            OneOrMany::One(address) => vec![*address],
            OneOrMany::Many(addresses) => addresses.clone(),
        }
    }
}

/// What sessions of one user begin with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct UserSettings {
    consistency: Option<String>,
    route: Option<String>,
    pool_size: Option<usize>,
    servers_max: Option<usize>,
    clients_max: Option<usize>,
    pool_mode: Option<String>,
}

/// What holds in one database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct DatabaseSettings {
    pool_size: Option<usize>,
    servers_max: Option<usize>,
    clients_max: Option<usize>,
    pool_mode: Option<String>,
}

/// The section as it is written.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    listen: OneOrMany,
    listen_primary: Option<OneOrMany>,
    listen_read_only: Option<OneOrMany>,
    socket_dir: Option<PathBuf>,
    socket_mode: Option<String>,
    workers: Option<usize>,
    pool_mode: Option<String>,
    pool_size: Option<usize>,
    clients_max: Option<usize>,
    client_idle: Option<String>,
    transaction_idle: Option<String>,
    login_timeout: Option<String>,
    connect_timeout: Option<String>,
    server_idle: Option<String>,
    server_lifetime: Option<String>,
    wait: Option<String>,
    hold: Option<String>,
    users_file: Option<PathBuf>,
    auth: Option<String>,
    auth_user: Option<String>,
    auth_query: Option<String>,
    auth_database: Option<String>,
    tls_certificate: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    tls_client_ca: Option<PathBuf>,
    #[serde(default)]
    tls_required: bool,
    server_ca: Option<PathBuf>,
    #[serde(default = "yes")]
    server_sockets: bool,
    #[serde(default)]
    split: bool,
    consistency: Option<String>,
    read_wait: Option<String>,
    lag_max: Option<String>,
    balance: Option<String>,
    site: Option<String>,
    #[serde(default)]
    weights: BTreeMap<String, u32>,
    #[serde(default)]
    user_settings: BTreeMap<String, UserSettings>,
    #[serde(default)]
    database_settings: BTreeMap<String, DatabaseSettings>,
    metrics: Option<SocketAddr>,
    #[serde(default)]
    admins: Vec<String>,
}

fn yes() -> bool {
    true
}

/// A node file, of which only the section matters here.
#[derive(Deserialize)]
struct WithSection {
    router: Option<Section>,
}

/// A file of its own.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterFile {
    /// Addresses of the nodes' API, as in `http://db1:8008`.
    pub nodes: Vec<String>,
    /// The router.
    pub router: Section,
}

/// The section of a node file.
pub fn section(text: &str) -> Result<Option<Section>, Finding> {
    toml::from_str::<WithSection>(text).map(|file| file.router).map_err(|error| finding(text, &error))
}

fn finding(text: &str, error: &toml::de::Error) -> Finding {
    let hint = "`stemma reference` and docs/configuration.md list the keys of [router]";
    Finding::at(text, error.span().unwrap_or(0..0), Trouble::config_bad_value(error.message().to_owned(), hint))
}

/// Reads a file of its own.
pub fn load(path: &Path) -> Result<RouterFile, Trouble> {
    parse(&read_text(path)?, &path.display().to_string())
}

/// Whether a text is such a file, with values that can be used.
pub fn check(text: &str) -> Result<(), Trouble> {
    parse(text, "the file")?.router.config(None).map(drop)
}

fn parse(text: &str, name: &str) -> Result<RouterFile, Trouble> {
    let file: RouterFile = toml::from_str(text).map_err(|error| trouble(name, &[finding(text, &error)]))?;
    if file.nodes.is_empty() {
        let reason = format!("`nodes` in {name} names no node");
        return Err(Trouble::config_missing_key(reason, "add: nodes = [\"http://HOST:8008\"]"));
    }
    Ok(file)
}

impl Section {
    /// Where it listens: for all clients, for those of the primary, for those that read only.
    pub fn listen(&self) -> [Vec<SocketAddr>; 3] {
        let all = |addresses: &Option<OneOrMany>| addresses.as_ref().map(OneOrMany::all).unwrap_or_default();
        [self.listen.all(), all(&self.listen_primary), all(&self.listen_read_only)]
    }

    /// Where a router on its own tells its metrics.
    pub fn metrics(&self) -> Option<SocketAddr> {
        self.metrics
    }

    /// The checked values, with everything that is in other files.
    /// `site` is that of the node it runs in.
    pub fn config(&self, site: Option<&model::Site>) -> Result<router::Config, Trouble> {
        let defaults = router::Config::default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mode = pool_mode("pool_mode", self.pool_mode.as_deref())?.unwrap_or(PoolMode::Transaction);
        let workers = self.workers.unwrap_or((cores / 2).max(1));
        if !(1..=64).contains(&workers) {
            return Err(refused("workers", workers, "write a number from 1 to 64"));
        }
        let pool_size = self.pool_size.unwrap_or(defaults.pool_size);
        if pool_size == 0 {
            return Err(refused("pool_size", pool_size, "write a number from 1"));
        }
        let [listen, listen_primary, listen_read_only] = self.listen();
        if mode == PoolMode::Session && (self.split || !listen_read_only.is_empty()) {
            let key = if self.split { "split" } else { "listen_read_only" };
            return Err(refused(
                key,
                "set, with `pool_mode = \"session\"`",
                "reads go to replicas with pool_mode = \"transaction\" only",
            ));
        }
        Ok(router::Config {
            listen,
            listen_primary,
            listen_read_only,
            socket_dir: self.socket_dir()?,
            socket_mode: self.socket_mode()?,
            workers,
            mode,
            pool_size,
            clients_max: self.clients_max.unwrap_or(defaults.clients_max),
            limits: self.limits()?,
            client_idle_max: self.client_idle.as_deref().map(|text| written_span("client_idle", text)).transpose()?,
            transaction_idle_max: self
                .transaction_idle
                .as_deref()
                .map(|text| written_span("transaction_idle", text))
                .transpose()?,
            login_timeout: span("login_timeout", self.login_timeout.as_deref(), defaults.login_timeout)?,
            connect_timeout: span("connect_timeout", self.connect_timeout.as_deref(), defaults.connect_timeout)?,
            server_idle_max: span("server_idle", self.server_idle.as_deref(), defaults.server_idle_max)?,
            server_lifetime: span("server_lifetime", self.server_lifetime.as_deref(), defaults.server_lifetime)?,
            lag_max: match &self.lag_max {
                Some(text) => model::LagBytes(
                    text.parse::<model::settings::Size>()
                        .map_err(|_| refused("lag_max", text, "write it as in \"16MB\""))?
                        .0,
                ),
                None => defaults.lag_max,
            },
            wait_max: span("wait", self.wait.as_deref(), defaults.wait_max)?,
            hold_max: span("hold", self.hold.as_deref(), defaults.hold_max)?,
            auth: self.auth()?,
            client_tls: self.client_tls()?,
            server_tls: match &self.server_ca {
                Some(ca) => ServerTls::Require(router::tls::for_servers(ca)?),
                None => ServerTls::Off,
            },
            machine: self.server_sockets.then(crate::machine::name).flatten(),
            split: self.split,
            consistency: self.consistency()?,
            read_wait: span("read_wait", self.read_wait.as_deref(), defaults.read_wait)?,
            balance: self.balance()?,
            site: self.site(site)?,
            weights: self.weights.clone(),
            user_wishes: self.user_wishes()?,
            admins: self.admins.clone(),
        })
    }

    fn socket_dir(&self) -> Result<Option<PathBuf>, Trouble> {
        match &self.socket_dir {
            Some(path) if path.is_absolute() => Ok(Some(path.clone())),
            // PgBouncer's word for none.
            Some(path) if path.as_os_str().is_empty() => Ok(None),
            Some(path) => Err(refused("socket_dir", path.display(), "write the whole path of a directory")),
            None => Ok(None),
        }
    }

    fn socket_mode(&self) -> Result<u32, Trouble> {
        let Some(text) = &self.socket_mode else { return Ok(router::Config::default().socket_mode) };
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
        mode.ok_or_else(|| refused("socket_mode", text, "write it in octal, as in \"0770\""))
    }

    fn limits(&self) -> Result<Limits, Trouble> {
        let mut limits = Limits::default();
        for (user, it) in &self.user_settings {
            let numbers = [it.pool_size, it.servers_max, it.clients_max];
            limits
                .users
                .insert(user.clone(), bounds(&format!("user_settings.{user}"), numbers, it.pool_mode.as_deref())?);
        }
        for (database, it) in &self.database_settings {
            let numbers = [it.pool_size, it.servers_max, it.clients_max];
            let name = format!("database_settings.{database}");
            limits.databases.insert(database.clone(), bounds(&name, numbers, it.pool_mode.as_deref())?);
        }
        Ok(limits)
    }

    fn consistency(&self) -> Result<routing::Level, Trouble> {
        let hint = "write \"session\", \"bounded:500ms\", \"eventual\" or \"strong\"";
        let Some(text) = &self.consistency else { return Ok(routing::Level::Session) };
        match text.parse() {
            Ok(level) => Ok(level),
            Err(_) => Err(refused("consistency", text, hint)),
        }
    }

    fn balance(&self) -> Result<routing::Method, Trouble> {
        let Some(text) = &self.balance else { return Ok(routing::Method::default()) };
        let hint = "write \"latency\", \"least-connections\", \"round-robin\" or \"weighted\"";
        routing::Method::parse(text).ok_or_else(|| refused("balance", text, hint))
    }

    fn site(&self, node: Option<&model::Site>) -> Result<Option<model::Site>, Trouble> {
        match self.site.as_deref() {
            None => Ok(node.cloned()),
            Some("") => Ok(None),
            Some(text) => {
                text.parse().map(Some).map_err(|_| refused("site", text, "write the name of a site as nodes have it"))
            }
        }
    }

    fn user_wishes(&self) -> Result<BTreeMap<String, Wishes>, Trouble> {
        let mut all = BTreeMap::new();
        for (user, settings) in &self.user_settings {
            let mut wishes = Wishes::default();
            for (key, text) in [("consistency", &settings.consistency), ("route", &settings.route)] {
                let Some(text) = text else { continue };
                let wish = Wish::parse(&format!("stemma.{key}"), Some(text));
                let wish = wish.map_err(|bad| refused(&format!("user_settings.{user}.{key}"), text, &bad.1))?;
                wishes.grant(wish, Wishes::default());
            }
            all.insert(user.clone(), wishes);
        }
        Ok(all)
    }

    fn auth(&self) -> Result<ClientAuth, Trouble> {
        let users = match &self.users_file {
            Some(path) => Arc::new(users(path)?),
            None => Arc::default(),
        };
        match (self.auth.as_deref(), &self.auth_user) {
            (Some("trust"), _) => Ok(ClientAuth::Trust(users)),
            (None | Some("scram"), Some(user)) => Ok(ClientAuth::Query {
                users,
                user: user.clone(),
                database: self.auth_database.clone(),
                query: self.auth_query.clone().unwrap_or_else(|| DEFAULT_AUTH_QUERY.to_owned()),
            }),
            (None | Some("scram"), None) if self.users_file.is_none() => Err(Trouble::config_missing_key(
                "`router.users_file` is missing: the router knows nobody",
                "add to [router]: users_file = \"/etc/stemma/users.txt\", or auth = \"trust\"",
            )),
            (None | Some("scram"), None) => Ok(ClientAuth::Users(users)),
            (Some(other), _) => Err(refused("auth", other, "write \"scram\" or \"trust\"")),
        }
    }

    fn client_tls(&self) -> Result<Option<ClientTls>, Trouble> {
        match (&self.tls_certificate, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                let config = router::tls::for_clients(certificate, key, self.tls_client_ca.as_deref())?;
                Ok(Some(ClientTls { config, require: self.tls_required }))
            }
            (None, None) if self.tls_required => Err(Trouble::config_missing_key(
                "`router.tls_required` is set, but there is no certificate",
                "add tls_certificate and tls_key to [router]",
            )),
            (None, None) if self.tls_client_ca.is_some() => Err(Trouble::config_missing_key(
                "`router.tls_client_ca` is set, but there is no certificate",
                "add tls_certificate and tls_key to [router]",
            )),
            (None, None) => Ok(None),
            (Some(_), None) | (None, Some(_)) => Err(Trouble::config_missing_key(
                "`router.tls_certificate` and `router.tls_key` go together",
                "give both, or none",
            )),
        }
    }
}

const DEFAULT_AUTH_QUERY: &str = "SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1";

fn refused(key: &str, value: impl std::fmt::Display, hint: &str) -> Trouble {
    Trouble::config_bad_value(format!("`router.{key}` is `{value}`"), hint)
}

fn pool_mode(key: &str, text: Option<&str>) -> Result<Option<PoolMode>, Trouble> {
    match text {
        None => Ok(None),
        Some("transaction") => Ok(Some(PoolMode::Transaction)),
        Some("session") => Ok(Some(PoolMode::Session)),
        Some(other) => Err(refused(key, other, "write \"transaction\" or \"session\"")),
    }
}

/// The bounds of one user or database: pool size, connections to one server, clients.
fn bounds(name: &str, numbers: [Option<usize>; 3], mode: Option<&str>) -> Result<Bounds, Trouble> {
    for (number, key) in numbers.iter().zip(["pool_size", "servers_max", "clients_max"]) {
        if *number == Some(0) {
            return Err(refused(&format!("{name}.{key}"), 0, "write a number from 1"));
        }
    }
    let [pool_size, servers_max, clients_max] = numbers;
    Ok(Bounds { pool_size, servers_max, clients_max, pool_mode: pool_mode(&format!("{name}.pool_mode"), mode)? })
}

fn span(key: &str, text: Option<&str>, default: Duration) -> Result<Duration, Trouble> {
    text.map_or(Ok(default), |text| written_span(key, text))
}

fn written_span(key: &str, text: &str) -> Result<Duration, Trouble> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let millis = match unit.trim() {
        "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(refused(key, text, "write a number and a unit: ms, s, min or h")),
    };
    let number: u64 = number.parse().map_err(|_| refused(key, text, "write it as in \"15s\""))?;
    Ok(Duration::from_millis(number.saturating_mul(millis)))
}

/// Reads lines of `"name" "secret"`; two quotes inside stand for one.
fn users(path: &Path) -> Result<BTreeMap<String, Secret>, Trouble> {
    use std::os::unix::fs::PermissionsExt;
    let text = read_text(path)?;
    let mode = std::fs::metadata(path).map(|meta| meta.permissions().mode()).unwrap_or(0);
    if mode & 0o077 != 0 {
        return Err(Trouble::secret_exposed(
            format!("{} holds secrets and is readable by others", path.display()),
            format!("chmod 600 {}", path.display()),
        ));
    }
    let mut users = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with([';', '#']) {
            continue;
        }
        let pair = quoted(line).and_then(|(name, rest)| Some((name, quoted(rest.trim_start())?.0)));
        let Some((name, secret)) = pair else {
            let reason = format!("{}:{} is not `\"name\" \"secret\"`", path.display(), number + 1);
            return Err(Trouble::config_bad_value(reason, "put both in double quotes"));
        };
        let secret = if secret.starts_with("SCRAM-SHA-256$") {
            if router::scram::Verifier::parse(&secret).is_none() {
                let reason = format!("{}:{} holds a verifier that cannot be read", path.display(), number + 1);
                return Err(Trouble::config_bad_value(reason, "copy `rolpassword` from pg_authid whole"));
            }
            Secret::Verifier(secret)
        } else {
            Secret::Password(secret)
        };
        users.insert(name, secret);
    }
    Ok(users)
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut value = String::new();
    loop {
        let end = rest.find('"')?;
        value.push_str(&rest[..end]);
        rest = &rest[end + 1..];
        match rest.strip_prefix('"') {
            Some(after) => {
                value.push('"');
                rest = after;
            }
            None => return Some((value, rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_read_with_its_defaults() {
        let text = "name = \"n1\"\n[router]\nlisten = \"127.0.0.1:6432\"\nauth = \"trust\"\nhold = \"500ms\"\n";
        let config = section(text).expect("sound").expect("there").config(None).expect("sound");
        assert_eq!((config.listen.len(), config.hold_max), (1, Duration::from_millis(500)));
        assert_eq!(section("name = \"n1\"\n"), Ok(None));
    }

    #[test]
    fn slips_are_named_at_their_place() {
        let text = "[router]\nlisten = \"127.0.0.1:6432\"\npool_sise = 3\n";
        let finding = section(text).expect_err("no such key");
        assert_eq!(finding.line, 3, "{finding:?}");
        assert!(finding.reason.contains("pool_sise"), "{finding:?}");
        let bad = |line: &str| {
            let text = format!("[router]\nlisten = \"127.0.0.1:6432\"\n{line}\n");
            section(&text).expect("readable").expect("there").config(None).expect_err("refused").reason
        };
        assert!(bad("").contains("users_file"), "nobody can log in");
        assert!(bad("auth = \"peer\"").contains("peer"));
        assert!(bad("auth = \"trust\"\nhold = \"15\"").contains("hold"));
        assert!(bad("auth = \"trust\"\ntls_required = true").contains("certificate"));
        assert!(bad("auth = \"trust\"\nsocket_dir = \"here\"").contains("socket_dir"));
        assert!(bad("auth = \"trust\"\nsocket_mode = \"0999\"").contains("socket_mode"));
        assert!(bad("auth = \"trust\"\nbalance = \"best\"").contains("balance"));
        assert!(bad("auth = \"trust\"\npool_mode = \"session\"\nsplit = true").contains("split"));
        assert!(
            bad("auth = \"trust\"\n[router.user_settings.ann]\nroute = \"left\"").contains("user_settings.ann.route")
        );
    }

    #[test]
    fn where_reads_go_is_written_by_site_weight_and_user() {
        let text = "[router]\nlisten = \"127.0.0.1:1\"\nlisten_read_only = [\"127.0.0.1:2\"]\nauth = \"trust\"\n\
                    balance = \"weighted\"\n[router.weights]\nn2 = 300\n[router.user_settings.report]\n\
                    consistency = \"bounded:5s\"\nroute = \"replica\"\n";
        let section = section(text).expect("sound").expect("there");
        let here: model::Site = "east".parse().expect("a site");
        let config = section.config(Some(&here)).expect("sound");
        assert_eq!((config.balance, config.site), (routing::Method::Weighted, Some(here)));
        assert_eq!((config.listen_read_only.len(), config.weights["n2"]), (1, 300));
        let wishes = config.user_wishes["report"];
        assert_eq!(wishes.route, Some(routing::Target::Replica));
        assert_eq!(wishes.level, Some(routing::Level::Bounded(model::Millis(5000))));
    }

    #[test]
    fn secrets_are_read_from_a_file_that_nobody_else_may_read() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "# users\n\"ann\" \"se\"\"cret\"\n").expect("written");
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).expect("mode");
        assert_eq!(users(file.path()).expect("sound").get("ann"), Some(&Secret::Password("se\"cret".into())));
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644)).expect("mode");
        assert!(users(file.path()).expect_err("refused").is("ST8004"));
    }
}
