//! The words of the glossary as types: quantities, names, the cluster's state, what nodes observe, and errors.
//!
//! Floor 1: everything may use this room, and it uses nothing of ours. It holds no decisions (see `cluster`) and does
//! no I/O, reads no clock and draws no random numbers.

pub mod change;
pub mod command;
pub mod error;
pub mod failover;
pub mod follow;
pub mod limits;
pub mod names;
pub mod observe;
pub mod settings;
pub mod state;
pub mod status;
pub mod topology;
pub mod units;

pub use command::{Actor, Command, Outcome};
pub use error::{Code, Trouble};
pub use names::{ClusterId, ClusterName, NodeId, NodeName, Site};
pub use observe::{NodeSample, ServerState};
pub use settings::{CommitMode, Settings};
pub use state::{ClusterState, Member, ReplicaKind, Role, Rule};
pub use status::ClusterStatus;
pub use topology::{PrimaryNow, Topology};
pub use units::{Epoch, LagBytes, Lsn, Millis, Moment, SystemId, Timeline, WallTime};
