//! The keeper: the process beside a database that samples it, controls it and talks to the other keepers.
//!
//! Floor 4: it does what `cluster` decides, through `postgres` and `consensus`.

pub mod clock;
mod files;
pub mod identity;
pub mod mesh;
pub mod pki;
pub mod token;

pub use identity::{IdentityFiles, NodeIdentity};
