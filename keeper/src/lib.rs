//! The keeper: the process beside a database that samples it, controls it and talks to the other keepers.
//!
//! Floor 4: it does what `cluster` decides, through `postgres` and `consensus`.

mod announce;
pub mod clock;
pub mod driver;
pub mod enrol;
mod failover;
mod files;
pub mod identity;
mod local;
pub mod mesh;
pub mod node;
pub mod node_config;
pub mod observations;
pub mod pki;
mod sampler;
pub mod store;
pub mod token;
pub mod watcher;

pub use failover::WATCHER_COMMAND;
pub use failover::routers::RouterSeat;
pub use identity::{ConsensusChoice, IdentityFiles, NodeIdentity};
pub use node::{Keeper, server_spec};
pub use node_config::{Hook, Hooks, Listen, NodeConfig, PostgresqlNode};

#[cfg(test)]
mod fixtures;
