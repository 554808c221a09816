//! Decisions about the cluster: pure functions and state machines, with time and facts as arguments.
//!
//! Floor 2: uses `model` only. No I/O, no clock, no randomness, no async.

pub mod judge;
pub mod lag;
pub mod lineage;
pub mod naming;
pub mod settings;
pub mod slots;

#[cfg(test)]
mod fixtures;
