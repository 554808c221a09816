//! The node file: what belongs to one node alone (paths, listeners, its name). Everything else is in the cluster
//! settings. Reading is strict and reports every problem at its place, because a key that is silently ignored is found
//! out in an outage.

use crate::render::finding::{Finding, did_you_mean, trouble};
use crate::router_file::{self, Section};
use model::Trouble;
use model::names::{NodeName, Site};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where the node file is unless a command says otherwise.
pub const DEFAULT_PATH: &str = "/etc/stemma/node.toml";
/// Port of the keeper unless the file says otherwise.
const KEEPER_PORT: u16 = 7432;
/// Port of the API unless the file says otherwise.
const API_PORT: u16 = 8008;
/// Longest prefix of keys in etcd, which leaves room for the keys.
const PREFIX_BYTES_MAX: usize = 200;
/// Largest node file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A listener and the address under which others reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where to listen.
    pub listen: SocketAddr,
    /// `host:port` that others use.
    pub advertise: String,
}

/// The database of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresqlNode {
    /// The data directory.
    pub data_dir: PathBuf,
    /// `listen_addresses`.
    pub listen: String,
    /// The port.
    pub port: u16,
    /// Host under which clients and replicas reach it.
    pub advertise: String,
    /// Directory of `postgres` and `initdb`; the newest installed when absent.
    pub bin_dir: Option<PathBuf>,
    /// Operating system user of the server when the keeper runs as root.
    pub run_as: Option<String>,
    /// Where a clone puts tablespaces (`<root>/<oid>`); the paths of the source when absent.
    pub tablespace_root: Option<PathBuf>,
    /// Further directories for the server's socket.
    pub socket_dirs: Vec<PathBuf>,
}

/// Which consensus store the node uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ConsensusChoice {
    /// Our own, in the keepers.
    #[default]
    Embedded,
    /// An etcd that is there already.
    Etcd {
        /// Its client addresses.
        endpoints: Vec<String>,
        /// Keys begin with this; `/stemma/<cluster>` when absent.
        prefix: Option<String>,
        /// User, where it asks for one.
        user: Option<String>,
        /// File with the password.
        password_file: Option<PathBuf>,
        /// CA of its certificates.
        ca_file: Option<PathBuf>,
    },
}

/// A node file that was read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFile {
    /// The node's name.
    pub name: NodeName,
    /// Where it is.
    pub site: Site,
    /// Where the keeper keeps its own files.
    pub state_dir: PathBuf,
    /// The keeper's listener for other keepers.
    pub keeper: Listen,
    /// Whether the database is stopped with the keeper.
    pub stop_database: bool,
    /// The HTTP API.
    pub api: Listen,
    /// The database; absent for a witness.
    pub postgresql: Option<PostgresqlNode>,
    /// Programs to run when something happens to this node.
    pub hooks: keeper::Hooks,
    /// Names in DNS that lead to the primary.
    pub dns: Option<tellers::Dns>,
    /// Address with prefix, and interface, of an address that moves with the primary.
    pub floating_ip: Option<(String, String)>,
    /// The consensus store.
    pub consensus: ConsensusChoice,
    /// The router beside the keeper, if there is to be one.
    pub router: Option<Section>,
}

impl NodeFile {
    /// File with the token of the local API.
    pub fn api_token_file(&self) -> PathBuf {
        self.state_dir.join("api.token")
    }
    /// The keys that differ in `new` and cannot change while the keeper runs.
    pub fn differences(&self, new: &NodeFile) -> Vec<&'static str> {
        let pairs = [
            ("name", self.name != new.name),
            ("site", self.site != new.site),
            ("state_dir", self.state_dir != new.state_dir),
            ("[keeper]", self.keeper != new.keeper),
            ("[api]", self.api != new.api),
            ("[postgresql]", self.postgresql != new.postgresql),
            ("[hooks]", self.hooks != new.hooks),
            ("[dns]", self.dns != new.dns),
            ("[floating_ip]", self.floating_ip != new.floating_ip),
            ("[consensus]", self.consensus != new.consensus),
            ("router.listen*", self.router_listen() != new.router_listen()),
        ];
        pairs.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
    }
    fn router_listen(&self) -> Option<[Vec<SocketAddr>; 3]> {
        self.router.as_ref().map(Section::listen)
    }
    /// URL under which this machine reaches the API.
    pub fn api_url(&self) -> String {
        let mut address = self.api.listen;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                IpAddr::from([127, 0, 0, 1])
            } else {
                IpAddr::from([0u16, 0, 0, 0, 0, 0, 0, 1])
            });
        }
        format!("http://{address}")
    }
}

/// Reads and checks a node file.
pub fn load(path: &Path) -> Result<NodeFile, Trouble> {
    let text = read_text(path)?;
    parse(&text).map_err(|findings| trouble(&path.display().to_string(), &findings))
}

/// The text of a configuration file.
pub fn read_text(path: &Path) -> Result<String, Trouble> {
    let refused = |why: String| {
        Trouble::config_unreadable(
            format!("{} cannot be read", path.display()),
            "give the path of the file with --config FILE",
        )
        .because(why)
    };
    let size = std::fs::metadata(path).map_err(|error| refused(error.to_string()))?.len();
    if size > FILE_BYTES_MAX {
        return Err(refused(format!("it has {size} bytes; {FILE_BYTES_MAX} are the most")));
    }
    std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))
}

/// Reads and checks the text of a node file. All problems, in the order of the file.
pub fn parse(text: &str) -> Result<NodeFile, Vec<Finding>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { text, findings: Vec::new() };
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        reader
            .add(span, Trouble::config_unreadable(error.message().to_owned(), "this is not TOML: see https://toml.io"));
    }
    if !reader.findings.is_empty() {
        return Err(reader.findings);
    }
    let mut file = reader.root(root.get_ref());
    match router_file::section(text) {
        Ok(router) => {
            if let Some(file) = &mut file {
                file.router = router;
            }
        }
        Err(finding) => reader.findings.push(finding),
    }
    reader.findings.sort_by_key(|finding| (finding.line, finding.column));
    match file {
        Some(file) if reader.findings.is_empty() => Ok(file),
        Some(_) | None => Err(reader.findings),
    }
}

/// One key of the node file, for its reference.
pub struct KeyDoc {
    /// The key, with its section.
    pub key: &'static str,
    /// What holds where it is absent; empty where it may not be.
    pub default: &'static str,
    /// What it is for.
    pub doc: &'static str,
}

/// One row of the reference.
pub(crate) const fn key(key: &'static str, default: &'static str, doc: &'static str) -> KeyDoc {
    KeyDoc { key, default, doc }
}

/// Every key, in the order of a file.
pub const KEYS: &[KeyDoc] = &[
    key("name", "", "Name of the node, unique in the cluster: small letters, digits and `-`."),
    key("site", "`\"default\"`", "Where it is (zone, data centre); `sync_from_other_site` goes by it."),
    key("state_dir", "", "Absolute path of the keeper's own files: identity, certificates, consensus log, API token."),
    key("keeper.listen", "`\"0.0.0.0:7432\"`", "Where other keepers reach this one. Mutual TLS always."),
    key("keeper.advertise", "as `listen`", "`host:port` for the others; required where `listen` is every address."),
    key(
        "keeper.stop_database",
        "`false`",
        "Whether the database is stopped with the keeper. Otherwise it goes on and the next keeper adopts it.",
    ),
    key(
        "api.listen",
        "`\"127.0.0.1:8008\"`",
        "Where the HTTP API answers. It is plain HTTP: see [security](security.md).",
    ),
    key("api.advertise", "as `listen`", "`host:port` for the others; required where `listen` is every address."),
    key(
        "postgresql.data_dir",
        "",
        "Absolute path of the data directory. Without `[postgresql]` the node is a witness.",
    ),
    key("postgresql.listen", "`\"0.0.0.0\"`", "`listen_addresses` of the server."),
    key("postgresql.port", "`5432`", "Its port."),
    key(
        "postgresql.advertise",
        "host of `keeper.advertise`",
        "Host under which clients and replicas reach the server.",
    ),
    key("postgresql.bin_dir", "newest installed", "Directory of the programs `postgres` and `initdb`."),
    key("postgresql.run_as", "`\"postgres\"`", "Operating system user of the server where the keeper runs as root."),
    key(
        "postgresql.tablespace_root",
        "paths of the source",
        "Where a clone puts tablespaces, as `<root>/<oid>`. Needed where several servers share a machine. A tablespace made later is replayed at the path it was made with.",
    ),
    key(
        "postgresql.socket_dirs",
        "none",
        "List of further directories for the server's Unix socket, as in `[\"/var/run/postgresql\"]`, where local clients look for it.",
    ),
    key(
        "hooks.on_start",
        "none",
        "Program and arguments to run when the server came up: see [operations](operations.md#hooks).",
    ),
    key("hooks.on_stop", "none", "The same when it went down."),
    key("hooks.on_role_change", "none", "The same when the node became primary, or a replica."),
    key("hooks.on_failover", "none", "The same when a change of primary is complete; on the new primary alone."),
    key("hooks.timeout", "`\"30s\"`", "How long a hook may run before it is killed with all that it started."),
    key(
        "hooks.run_as",
        "user of the server",
        "Operating system user of the hooks; `\"root\"` only where it is asked for.",
    ),
    key(
        "dns.server",
        "",
        "`host:port` of the zone's primary server, told by RFC 2136 updates: see [operations](operations.md#names-in-dns). Write the same `[dns]` on every node.",
    ),
    key("dns.zone", "", "The zone."),
    key("dns.name", "", "The name that leads to the primary."),
    key("dns.replicas_name", "none", "A name that leads to the replicas that are fit to be read."),
    key("dns.ttl", "`\"5s\"`", "How long resolvers may keep an answer, in whole seconds."),
    key("dns.key_name", "none", "Name of the key (TSIG) with which updates are signed."),
    key("dns.key_algorithm", "`\"hmac-sha256\"`", "Its algorithm; also `hmac-sha384`, `hmac-sha512`."),
    key("dns.key_file", "none", "File with its secret, in base 64, in the first line; mode 0600."),
    key(
        "floating_ip.address",
        "required",
        "An address that moves with the primary, with its prefix, as in `\"10.0.0.100/24\"`: see [operations](operations.md#a-floating-ip-address). Write the same on every node with a database.",
    ),
    key("floating_ip.interface", "required", "The network interface that it is put on."),
    key(
        "consensus.kind",
        "`\"embedded\"`",
        "`\"embedded\"`: the keepers vote among themselves. `\"etcd\"`: an etcd v3 that is there already.",
    ),
    key("consensus.endpoints", "none", "For etcd: list of its client addresses."),
    key(
        "consensus.prefix",
        "`\"/stemma/<cluster>\"`",
        "For etcd: what the cluster's keys begin with. Chosen by `init`; nodes that join learn it.",
    ),
    key("consensus.user", "none", "For etcd: user, where it asks for one."),
    key("consensus.password_file", "none", "For etcd: file with the password in its first line, mode 0600."),
    key("consensus.ca_file", "none", "For etcd: CA of its certificates."),
];

const ROOT_KEYS: &[&str] =
    &["name", "site", "state_dir", "keeper", "api", "postgresql", "hooks", "dns", "floating_ip", "consensus", "router"];
const KEEPER_KEYS: &[&str] = &["listen", "advertise", "stop_database"];
const API_KEYS: &[&str] = &["listen", "advertise"];
const POSTGRESQL_KEYS: &[&str] =
    &["data_dir", "listen", "port", "advertise", "bin_dir", "run_as", "tablespace_root", "socket_dirs"];
const HOOK_KEYS: &[&str] = &["on_start", "on_stop", "on_role_change", "on_failover", "timeout", "run_as"];
const DNS_KEYS: &[&str] = &["server", "zone", "name", "replicas_name", "ttl", "key_name", "key_algorithm", "key_file"];
const FLOATING_KEYS: &[&str] = &["address", "interface"];
const CONSENSUS_KEYS: &[&str] = &["kind", "endpoints", "prefix", "user", "password_file", "ca_file"];
/// Keys of the cluster settings, which people look for in the node file.
const CLUSTER_KEYS: &[&str] = &[
    "commit_mode",
    "strict",
    "sync_from_other_site",
    "voter_grace",
    "sample_interval",
    "lag_warn",
    "slot_retention",
    "slot_retention_size",
    "clone_rate",
    "tls",
];

/// Collects problems while reading. Methods return `None` where a value is absent or refused; a refusal is noted.
struct Reader<'t> {
    text: &'t str,
    findings: Vec<Finding>,
}

impl Reader<'_> {
    fn add(&mut self, span: std::ops::Range<usize>, trouble: Trouble) {
        self.findings.push(Finding::at(self.text, span, trouble));
    }

    fn root(&mut self, table: &DeTable<'_>) -> Option<NodeFile> {
        self.check_keys("", table, ROOT_KEYS);
        let name =
            self.required_text("", table, "name", "name = \"n1\"").and_then(|(text, span)| self.name(&text, span));
        let site = match self.text_of("", table, "site") {
            Some((text, span)) => self.name(&text, span),
            None => "default".parse().ok(),
        };
        let state_dir = self.required_path("", table, "state_dir", "state_dir = \"/var/lib/stemma/n1\"");
        let keeper = self.listen(table, "keeper", KEEPER_KEYS, SocketAddr::from(([0, 0, 0, 0], KEEPER_PORT)));
        let stop_database = self.stop_database(table);
        let api = self.listen(table, "api", API_KEYS, SocketAddr::from(([127, 0, 0, 1], API_PORT)));
        let host =
            keeper.as_ref().and_then(|keeper| keeper.advertise.rsplit_once(':')).map(|(host, _)| host.to_owned());
        let postgresql = match self.table(table, "postgresql") {
            Some(section) => Some(self.postgresql(section, host)?),
            None => None,
        };
        let hooks = self.table(table, "hooks").map_or_else(keeper::Hooks::default, |section| self.hooks(section));
        let dns = match self.table(table, "dns") {
            Some(section) => Some(self.dns(section)?),
            None => None,
        };
        let floating_ip = match self.table(table, "floating_ip") {
            Some(section) => Some(self.floating_ip(section)?),
            None => None,
        };
        let consensus = match self.table(table, "consensus") {
            Some(section) => self.consensus(section)?,
            None => ConsensusChoice::Embedded,
        };
        self.no_shared_ports(table, keeper.as_ref()?, api.as_ref()?, postgresql.as_ref());
        Some(NodeFile {
            name: name?,
            site: site?,
            state_dir: state_dir?,
            keeper: keeper?,
            stop_database,
            api: api?,
            postgresql,
            hooks,
            dns,
            floating_ip,
            consensus,
            router: None,
        })
    }

    fn listen(
        &mut self,
        root: &DeTable<'_>,
        section: &'static str,
        keys: &[&str],
        default: SocketAddr,
    ) -> Option<Listen> {
        let empty = DeTable::new();
        let table = self.table(root, section).unwrap_or(&empty);
        self.check_keys(section, table, keys);
        let mut place = section_span(root, section);
        let listen = match self.text_of(section, table, "listen") {
            Some((text, span)) => {
                place = span.clone();
                self.socket_address(section, &text, span)?
            }
            None if table.contains_key("listen") => return None,
            None => default,
        };
        let advertise = match self.text_of(section, table, "advertise") {
            Some((text, span)) => self.host_and_port(section, "advertise", text, span)?,
            None if table.contains_key("advertise") => return None,
            None if listen.ip().is_unspecified() => {
                let reason = format!(
                    "`{section}.advertise` is missing: `{section}.listen` is every address, so others cannot guess one"
                );
                let hint = format!("add to [{section}]: advertise = \"HOST:{}\"", listen.port());
                self.add(place, Trouble::config_missing_key(reason, hint));
                return None;
            }
            None => listen.to_string(),
        };
        Some(Listen { listen, advertise })
    }

    fn stop_database(&mut self, root: &DeTable<'_>) -> bool {
        let value = root.get("keeper").and_then(|section| section.get_ref().as_table()?.get("stop_database"));
        match value.map(|value| (value.get_ref(), value.span())) {
            None => false,
            Some((DeValue::Boolean(stop), _)) => *stop,
            Some((other, span)) => {
                self.add(span, wrong_type("keeper", "stop_database", "true or false", other, "write true or false"));
                false
            }
        }
    }

    fn socket_dirs(&mut self, table: &DeTable<'_>) -> Vec<PathBuf> {
        let Some(value) = table.get("socket_dirs") else { return Vec::new() };
        let texts: Option<Vec<PathBuf>> = value
            .get_ref()
            .as_array()
            .and_then(|array| array.iter().map(|item| item.get_ref().as_str().map(PathBuf::from)).collect());
        match texts.filter(|paths| paths.iter().all(|path| path.is_absolute())) {
            Some(paths) => paths,
            None => {
                let example = "write: socket_dirs = [\"/var/run/postgresql\"]";
                let reason = "`postgresql.socket_dirs` is not a list of whole paths";
                self.add(value.span(), Trouble::config_bad_value(reason, example));
                Vec::new()
            }
        }
    }

    fn postgresql(&mut self, table: &DeTable<'_>, keeper_host: Option<String>) -> Option<PostgresqlNode> {
        let section = "postgresql";
        self.check_keys(section, table, POSTGRESQL_KEYS);
        let data_dir = self.required_path(section, table, "data_dir", "data_dir = \"/var/lib/postgresql/stemma\"");
        let port = match table.get("port") {
            Some(value) => self.port(value),
            None => Some(5432),
        };
        let text = |reader: &mut Self, key: &'static str| reader.text_of(section, table, key).map(|(text, _)| text);
        let listen = text(self, "listen").unwrap_or_else(|| "0.0.0.0".to_owned());
        let advertise = text(self, "advertise").or(keeper_host);
        let path = |reader: &mut Self, key: &'static str| {
            reader.text_of(section, table, key).and_then(|(text, span)| reader.absolute(section, key, text, span))
        };
        let bin_dir = path(self, "bin_dir");
        let tablespace_root = path(self, "tablespace_root");
        let run_as = text(self, "run_as");
        let socket_dirs = self.socket_dirs(table);
        Some(PostgresqlNode {
            data_dir: data_dir?,
            listen,
            port: port?,
            advertise: advertise?,
            bin_dir,
            run_as,
            tablespace_root,
            socket_dirs,
        })
    }

    fn consensus(&mut self, table: &DeTable<'_>) -> Option<ConsensusChoice> {
        let section = "consensus";
        self.check_keys(section, table, CONSENSUS_KEYS);
        let (kind, span) = self.required_text(section, table, "kind", "kind = \"embedded\"")?;
        match kind.as_str() {
            "embedded" => Some(ConsensusChoice::Embedded),
            "etcd" => {
                let endpoints = self.endpoints(table, span.clone())?;
                let user = self.text_of(section, table, "user").map(|(text, _)| text);
                let path = |reader: &mut Self, key: &'static str| {
                    reader
                        .text_of(section, table, key)
                        .and_then(|(text, span)| reader.absolute(section, key, text, span))
                };
                let (password_file, ca_file) = (path(self, "password_file"), path(self, "ca_file"));
                if user.is_some() != password_file.is_some() {
                    let reason = "`consensus.user` and `consensus.password_file` belong together";
                    let hint = "give both, or neither where etcd asks for no password";
                    self.add(span.clone(), Trouble::config_missing_key(reason, hint));
                }
                let prefix = self.prefix(table);
                Some(ConsensusChoice::Etcd { endpoints, prefix, user, password_file, ca_file })
            }
            other => {
                self.add(
                    span,
                    Trouble::config_bad_value(
                        format!("`consensus.kind` is `{other}`"),
                        "write \"embedded\" or \"etcd\"",
                    ),
                );
                None
            }
        }
    }

    /// Ends without a slash; one is put between it and the keys.
    fn prefix(&mut self, table: &DeTable<'_>) -> Option<String> {
        let (text, span) = self.text_of("consensus", table, "prefix")?;
        let trimmed = text.trim_end_matches('/');
        let sound = trimmed.starts_with('/')
            && trimmed.len() <= PREFIX_BYTES_MAX
            && trimmed.bytes().all(|byte| byte.is_ascii_graphic());
        if sound {
            return Some(trimmed.to_owned());
        }
        let reason = format!("`consensus.prefix` is `{}`", text.escape_debug());
        let hint = format!("begin it with a slash, without blanks, up to {PREFIX_BYTES_MAX} bytes: \"/stemma/prod\"");
        self.add(span, Trouble::config_bad_value(reason, hint));
        None
    }

    fn endpoints(&mut self, table: &DeTable<'_>, kind_span: std::ops::Range<usize>) -> Option<Vec<String>> {
        let example = "add: endpoints = [\"http://10.0.0.1:2379\"]";
        let Some(value) = table.get("endpoints") else {
            self.add(kind_span, Trouble::config_missing_key("`consensus.endpoints` is missing", example));
            return None;
        };
        let texts: Option<Vec<String>> = value
            .get_ref()
            .as_array()
            .and_then(|array| array.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect());
        if let Some(texts) = texts.filter(|texts| !texts.is_empty()) {
            let is_none = |text: &&String| !(text.starts_with("http://") || text.starts_with("https://"));
            if let Some(bad) = texts.iter().find(is_none) {
                let reason = format!("`consensus.endpoints` holds `{}`, which is no URL", bad.escape_debug());
                self.add(value.span(), Trouble::config_bad_value(reason, "begin it with http:// or https://"));
                return None;
            }
            return Some(texts);
        }
        self.add(value.span(), Trouble::config_bad_value("`consensus.endpoints` is not a list of texts", example));
        None
    }

    fn check_keys(&mut self, section: &str, table: &DeTable<'_>, known: &[&str]) {
        for key in table.keys() {
            let word: &str = key.get_ref();
            if known.contains(&word) {
                continue;
            }
            let path = if section.is_empty() { word.to_owned() } else { format!("{section}.{word}") };
            let of_cluster =
                CLUSTER_KEYS.contains(&word) || path == "postgresql.parameters" || path == "postgresql.hba";
            let trouble = if of_cluster {
                let setting = if word == "parameters" { "postgresql.parameters.NAME" } else { word };
                Trouble::config_wrong_scope(
                    format!("`{path}` is the same for all nodes, so it does not belong into a node file"),
                    format!("remove the line and run: stemma config set {setting}=VALUE"),
                )
            } else {
                let hint = match did_you_mean(word, known.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("known here: {}", known.join(", ")),
                };
                Trouble::config_unknown_key(format!("unknown key `{path}`"), hint)
            };
            self.add(key.span(), trouble);
        }
    }

    /// A table of the root; a value that is no table is noted.
    fn table<'v, 'i>(&mut self, root: &'v DeTable<'i>, key: &'static str) -> Option<&'v DeTable<'i>> {
        let value = root.get(key)?;
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.add(
                value.span(),
                wrong_type("", key, "a section", value.get_ref(), &format!("write [{key}] and its keys below")),
            );
        }
        table
    }

    fn text_of(&mut self, section: &str, table: &DeTable<'_>, key: &str) -> Option<(String, std::ops::Range<usize>)> {
        let value = table.get(key)?;
        match value.get_ref() {
            DeValue::String(text) if text.is_empty() => {
                let path = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
                self.add(
                    value.span(),
                    Trouble::config_bad_value(format!("`{path}` is empty"), "give it a value or remove the line"),
                );
                None
            }
            DeValue::String(text) => Some((text.to_string(), value.span())),
            other => {
                self.add(value.span(), wrong_type(section, key, "a text", other, "write it in double quotes"));
                None
            }
        }
    }

    fn required_text(
        &mut self,
        section: &str,
        table: &DeTable<'_>,
        key: &str,
        example: &str,
    ) -> Option<(String, std::ops::Range<usize>)> {
        if !table.contains_key(key) {
            let path = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
            let place = if section.is_empty() { 0..0 } else { self.heading(section) };
            self.add(place, Trouble::config_missing_key(format!("`{path}` is missing"), format!("add: {example}")));
            return None;
        }
        self.text_of(section, table, key)
    }

    fn required_path(&mut self, section: &str, table: &DeTable<'_>, key: &str, example: &str) -> Option<PathBuf> {
        let (text, span) = self.required_text(section, table, key, example)?;
        self.absolute(section, key, text, span)
    }

    fn absolute(&mut self, section: &str, key: &str, text: String, span: std::ops::Range<usize>) -> Option<PathBuf> {
        let path = PathBuf::from(text);
        if path.is_absolute() {
            return Some(path);
        }
        let name = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
        let reason = format!("`{name}` is `{}`, which depends on where the program was started", path.display());
        self.add(span, Trouble::config_bad_value(reason, "write the whole path, beginning with /"));
        None
    }

    fn name<T: std::str::FromStr>(&mut self, text: &str, span: std::ops::Range<usize>) -> Option<T>
    where
        T::Err: std::fmt::Display,
    {
        match text.parse() {
            Ok(name) => Some(name),
            Err(bad) => {
                self.add(span, Trouble::config_bad_value(bad.to_string(), "choose another name"));
                None
            }
        }
    }

    fn socket_address(&mut self, section: &str, text: &str, span: std::ops::Range<usize>) -> Option<SocketAddr> {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Some(address),
            Ok(_) | Err(_) => {
                let reason = format!("`{section}.listen` is `{text}`, which is not an address with a port");
                self.add(
                    span,
                    Trouble::config_bad_value(
                        reason,
                        "write an IP address and a port, as in \"0.0.0.0:7432\" or \"[::]:7432\"",
                    ),
                );
                None
            }
        }
    }

    fn host_and_port(
        &mut self,
        section: &str,
        key: &str,
        text: String,
        span: std::ops::Range<usize>,
    ) -> Option<String> {
        let sound = text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && !host.contains(['/', ' ']) && port.parse::<u16>().is_ok_and(|port| port != 0)
        });
        if sound {
            return Some(text);
        }
        let reason = format!("`{section}.{key}` is `{text}`, which is not HOST:PORT");
        self.add(
            span,
            Trouble::config_bad_value(reason, "write a name or address and a port, as in \"db1.example.org:7432\""),
        );
        None
    }

    fn port(&mut self, value: &Spanned<DeValue<'_>>) -> Option<u16> {
        let number =
            value.get_ref().as_integer().and_then(|number| u16::from_str_radix(number.as_str(), number.radix()).ok());
        if let Some(port) = number.filter(|port| *port != 0) {
            return Some(port);
        }
        let hint = "write a number from 1 to 65535, as in port = 5432";
        let trouble = match value.get_ref() {
            DeValue::Integer(number) => Trouble::config_bad_value(format!("`postgresql.port` is {number}"), hint),
            other => wrong_type("postgresql", "port", "a number", other, hint),
        };
        self.add(value.span(), trouble);
        None
    }

    fn no_shared_ports(
        &mut self,
        root: &DeTable<'_>,
        keeper: &Listen,
        api: &Listen,
        postgresql: Option<&PostgresqlNode>,
    ) {
        let mut taken = vec![("keeper", keeper.listen.port())];
        for (section, port) in
            [Some(("api", api.listen.port())), postgresql.map(|node| ("postgresql", node.port))].into_iter().flatten()
        {
            if let Some((other, _)) = taken.iter().find(|(_, used)| *used == port) {
                let reason = format!("`{section}` uses port {port}, which `{other}` uses too");
                self.add(section_span(root, section), Trouble::config_bad_value(reason, "give each its own port"));
            }
            taken.push((section, port));
        }
    }

    /// Where `[section]` stands.
    fn heading(&self, section: &str) -> std::ops::Range<usize> {
        let heading = format!("[{section}]");
        self.text.find(&heading).map_or(0..0, |start| start..start + heading.len())
    }
}

fn section_span(root: &DeTable<'_>, section: &str) -> std::ops::Range<usize> {
    root.get_key_value(section).map_or(0..0, |(key, _)| key.span())
}

fn wrong_type(section: &str, key: &str, wanted: &str, found: &DeValue<'_>, hint: &str) -> Trouble {
    let path = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
    Trouble::config_bad_value(format!("`{path}` must be {wanted}, but is of type {}", found.type_str()), hint)
}

pub mod tellers;

#[cfg(test)]
#[path = "node_file_tests.rs"]
mod tests;
