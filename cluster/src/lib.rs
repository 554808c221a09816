//! Pure decisions about a cluster: facts and time in, values out. No I/O, no clock, no randomness, no async.

pub mod admission;
pub mod consensus_group;
pub mod decide;
pub mod history;
pub mod naming;
pub mod operation;
pub mod sync;
pub mod tokens;

#[cfg(test)]
mod fixtures;
