//! Decisions about the cluster: pure functions and state machines, with facts and time as arguments.
//!
//! Floor 2: uses `model` only. No I/O, no clock, no randomness, no async, no threads.

pub mod admission;
pub mod consensus_group;
pub mod decide;
pub mod desire;
pub mod failover;
pub mod follow;
pub mod history;
pub mod judge;
pub mod lag;
pub mod lineage;
pub mod naming;
pub mod operation;
pub mod settings;
pub mod slots;
pub mod sync;
pub mod tokens;
pub mod views;

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod scenes;
