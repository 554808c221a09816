//! What a keeper must know of its own node before it can speak to anybody: paths, addresses, programs.

use crate::identity::ConsensusChoice;
use model::{NodeName, Site};
use std::path::PathBuf;

/// The node-local configuration, as read from the node file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The node's name.
    pub name: NodeName,
    /// Where it is.
    pub site: Site,
    /// Tells this machine, in its present life, and its network from all others; routers of the same may use the server's
    /// socket. Absent where that cannot be known.
    pub machine: Option<String>,
    /// Directory for everything of ours but the database. Mode 0700.
    pub state_dir: PathBuf,
    /// Listener for other keepers.
    pub keeper: Listen,
    /// Whether the database is stopped with the keeper; otherwise it goes on and is adopted by the next keeper.
    pub stop_database: bool,
    /// Listener of the HTTP API.
    pub api: Listen,
    /// The database; absent for a witness.
    pub postgresql: Option<PostgresqlNode>,
    /// Programs that are run when something happens to this node.
    pub hooks: Hooks,
    /// Names in DNS that lead to the primary and the replicas.
    pub dns: Option<adapters::dns::Place>,
    /// An address that moves with the primary.
    pub floating: Option<adapters::address::Floating>,
    /// Where the cluster's state is kept.
    pub consensus: ConsensusChoice,
}

/// An address to listen on and the one that others use to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// `host:port` to bind.
    pub listen: String,
    /// `host:port` told to others.
    pub advertise: String,
}

/// The database of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresqlNode {
    /// Data directory; never readable by others.
    pub data_dir: PathBuf,
    /// `listen_addresses`.
    pub listen: String,
    /// Port.
    pub port: u16,
    /// Host under which others reach it.
    pub advertise: String,
    /// Directory of the server programs, if not the one found.
    pub bin_dir: Option<PathBuf>,
    /// User to run the server as when the keeper is root.
    pub run_as: Option<String>,
    /// Further directories for the server's socket.
    pub socket_dirs: Vec<PathBuf>,
    /// Where relocated tablespaces of a clone go (`<root>/<oid>`); absent to keep the source's paths.
    pub tablespace_root: Option<PathBuf>,
}

/// What can happen to a node that its owner may want to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Its server came up.
    Start,
    /// Its server went down.
    Stop,
    /// It became the primary, or a replica.
    RoleChange,
    /// It became the primary, and the change of primary is complete. Called on that node alone.
    Failover,
}

impl Hook {
    /// All of them.
    pub const ALL: [Hook; 4] = [Hook::Start, Hook::Stop, Hook::RoleChange, Hook::Failover];
}

/// Programs of the owner's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hooks {
    /// Program and arguments of each hook that is wanted.
    pub commands: std::collections::BTreeMap<Hook, Vec<String>>,
    /// How long one may run before it is killed.
    pub timeout: model::Millis,
    /// As whom; the user of the server when absent.
    pub run_as: Option<String>,
}

impl Default for Hooks {
    fn default() -> Hooks {
        Hooks { commands: std::collections::BTreeMap::new(), timeout: model::Millis::from_secs(30), run_as: None }
    }
}

impl Hooks {
    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }
    /// What to run.
    pub fn command(&self, hook: Hook) -> Option<&[String]> {
        self.commands.get(&hook).map(Vec::as_slice)
    }
}

impl NodeConfig {
    /// File with the token that the local command line uses for this node's API.
    pub fn api_token_file(&self) -> PathBuf {
        self.state_dir.join("api.token")
    }
    /// File with the passwords given to the owner of the cluster.
    pub fn credentials_file(&self) -> PathBuf {
        self.state_dir.join("credentials.json")
    }
    /// Directory of certificates and keys.
    pub fn identity_dir(&self) -> PathBuf {
        self.state_dir.join("identity")
    }
    /// Log of the database server.
    pub fn server_log(&self) -> PathBuf {
        self.state_dir.join("postgresql.log")
    }
}
