//! What `stemma run`, `init` and `join` do on a node. The command line calls these; everything behind them is the
//! keeper's.

use crate::node_file::NodeFile;
use model::names::{ClusterName, NodeName, Site};
use model::{ReplicaKind, Role, Trouble};
use std::path::PathBuf;

/// What `stemma init` was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitOptions {
    /// Name of the new cluster.
    pub cluster: ClusterName,
    /// Make the existing data directory the first copy instead of an empty one.
    pub adopt: Option<Adopt>,
    /// Cluster settings to begin with, instead of the defaults.
    pub settings_file: Option<PathBuf>,
}

/// An existing database that becomes the first node of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopt {
    /// A superuser of that database, for making our own roles.
    pub superuser: String,
}

/// What `stemma join` was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinOptions {
    /// `replica` or `witness`.
    pub role: Role,
    /// How a replica is used.
    pub kind: ReplicaKind,
    /// For a delayed replica: how late, in milliseconds.
    pub apply_delay_ms: u64,
    /// Node to stream from; the primary when absent.
    pub from: Option<NodeName>,
    /// Instead of the site in the node file.
    pub site: Option<Site>,
    /// Failover preference.
    pub priority: u32,
}

/// Runs the keeper of this node until it is told to stop.
pub async fn run(_node_file: NodeFile) -> Result<(), Trouble> {
    Err(Trouble::internal("not assembled yet", "build the keeper"))
}

/// Makes a new cluster with this node as its first. Returns the sentence for people.
pub async fn init(_node_file: NodeFile, _options: InitOptions) -> Result<String, Trouble> {
    Err(Trouble::internal("not assembled yet", "build the keeper"))
}

/// Brings this node into the cluster that made `token`. Returns the sentence for people.
pub async fn join(_node_file: NodeFile, _token: String, _options: JoinOptions) -> Result<String, Trouble> {
    Err(Trouble::internal("not assembled yet", "build the keeper"))
}
