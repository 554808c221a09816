//! What a router is told. Reading files is left to the assembly; every value here is checked already.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// When a server is given to another client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// When the client leaves.
    Session,
    /// When its transaction ends.
    Transaction,
}

impl PoolMode {
    /// The word shown.
    pub fn as_str(self) -> &'static str {
        match self {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
        }
    }
}

/// How clients prove who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// They do not: whoever connects is believed. For networks that nobody else is on. The passwords are for the servers.
    Trust(Arc<BTreeMap<String, Secret>>),
    /// SCRAM-SHA-256 against the secrets of a file.
    Users(Arc<BTreeMap<String, Secret>>),
    /// SCRAM-SHA-256 against the file's secrets first, then against what a query to the primary returns.
    Query {
        /// Secrets that are known already; that of the asking user must be among them.
        users: Arc<BTreeMap<String, Secret>>,
        /// The user who asks.
        user: String,
        /// Where to ask; the client's own database when absent.
        database: Option<String>,
        /// The query: `$1` is the user's name, the row is name and verifier.
        query: String,
    },
}

/// What is known of a user's password.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The password itself.
    Password(String),
    /// What `pg_authid` holds: `SCRAM-SHA-256$...`. Enough to check a client and, once it logged in, to log in as it.
    Verifier(String),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Whether connections to servers are encrypted.
#[derive(Clone)]
pub enum ServerTls {
    /// No.
    Off,
    /// Yes, or there is no connection.
    Require(Arc<rustls::ClientConfig>),
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ServerTls::Off => "Off",
            ServerTls::Require(_) => "Require",
        })
    }
}

/// TLS towards clients.
#[derive(Clone)]
pub struct ClientTls {
    /// What they meet.
    pub config: Arc<rustls::ServerConfig>,
    /// Whether clients without TLS are turned away.
    pub require: bool,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientTls {{ require: {} }}", self.require)
    }
}

/// By which listener a client came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Door {
    /// `listen`: statements go where `split` and the session send them.
    #[default]
    Main,
    /// `listen_primary`: all of them go to the primary.
    Primary,
    /// `listen_read_only`: its transactions are READ ONLY unless it says otherwise, and go to replicas.
    ReadOnly,
}

impl Door {
    /// Whether reads of those who came by it may go to replicas.
    pub fn splits(self, config: &Config) -> bool {
        match self {
            Door::Main => config.split,
            Door::Primary => false,
            Door::ReadOnly => true,
        }
    }
}

/// A router.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients connect. All statements may come here.
    pub listen: Vec<SocketAddr>,
    /// Where clients connect whose statements all go to the primary.
    pub listen_primary: Vec<SocketAddr>,
    /// Where clients connect that read only, on replicas.
    pub listen_read_only: Vec<SocketAddr>,
    /// A directory for a Unix socket beside each of these addresses.
    pub socket_dir: Option<PathBuf>,
    /// Permissions of those sockets.
    pub socket_mode: u32,
    /// Threads that carry traffic.
    pub workers: usize,
    /// When a server is given to another client.
    pub mode: PoolMode,
    /// Most connections to one server for one user and database, over all threads.
    pub pool_size: usize,
    /// Most clients at once.
    pub clients_max: usize,
    /// Bounds of single users and databases.
    pub limits: crate::limits::Limits,
    /// A client that does nothing for so long, with no transaction open, is closed. `None`: never.
    pub client_idle_max: Option<Duration>,
    /// A client that does nothing for so long within a transaction is closed. `None`: never.
    pub transaction_idle_max: Option<Duration>,
    /// How long a client waits for a free server.
    pub wait_max: Duration,
    /// How long a statement is held while there is no primary.
    pub hold_max: Duration,
    /// How long connecting and logging in to a server may take.
    pub connect_timeout: Duration,
    /// How long a client may take to log in.
    pub login_timeout: Duration,
    /// A server connection that nobody used for so long is closed.
    pub server_idle_max: Duration,
    /// A server connection is closed, when idle, at this age.
    pub server_lifetime: Duration,
    /// How clients prove who they are.
    pub auth: ClientAuth,
    /// TLS towards clients.
    pub client_tls: Option<ClientTls>,
    /// TLS towards servers.
    pub server_tls: ServerTls,
    /// The name of this machine: servers of the same are spoken to by their sockets. `None`: always by TCP.
    pub machine: Option<String>,
    /// Whether statements that only read may go to replicas.
    pub split: bool,
    /// What a read on a replica must see.
    pub consistency: routing::Level,
    /// Replicas that trail by more are not read.
    pub lag_max: model::LagBytes,
    /// How long a read waits for a replica that has not replayed what its session wrote or saw, before the primary serves it.
    pub read_wait: Duration,
    /// How replicas are picked.
    pub balance: routing::Method,
    /// Where the router is: replicas there are read before others; `None`: sites do not matter.
    pub site: Option<model::Site>,
    /// Weights of replicas by name; 100 for those that are not named, 0 for none at all.
    pub weights: BTreeMap<String, u32>,
    /// What sessions of these users wish of the router until they say something themselves.
    pub user_wishes: BTreeMap<String, crate::wishes::Wishes>,
    /// Who may use the admin console; empty is nobody.
    pub admins: Vec<String>,
}

impl Config {
    /// Whether anybody's reads may go to replicas.
    pub fn splits(&self) -> bool {
        self.split || !self.listen_read_only.is_empty()
    }
}

impl Default for Config {
    fn default() -> Self {
        Config {
            listen: Vec::new(),
            listen_primary: Vec::new(),
            listen_read_only: Vec::new(),
            socket_dir: None,
            socket_mode: 0o777,
            workers: 1,
            mode: PoolMode::Transaction,
            pool_size: 20,
            clients_max: 10_000,
            limits: crate::limits::Limits::default(),
            client_idle_max: None,
            transaction_idle_max: None,
            wait_max: Duration::from_secs(30),
            hold_max: Duration::from_secs(15),
            connect_timeout: Duration::from_secs(5),
            login_timeout: Duration::from_secs(15),
            server_idle_max: Duration::from_secs(600),
            server_lifetime: Duration::from_secs(3600),
            auth: ClientAuth::Users(Arc::default()),
            client_tls: None,
            server_tls: ServerTls::Off,
            machine: None,
            split: false,
            consistency: routing::Level::Session,
            lag_max: model::LagBytes(16 << 20),
            read_wait: Duration::from_millis(10),
            balance: routing::Method::default(),
            site: None,
            weights: BTreeMap::new(),
            user_wishes: BTreeMap::new(),
            admins: Vec::new(),
        }
    }
}
