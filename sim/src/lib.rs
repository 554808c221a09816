//! The simulated world: keepers that run the pure decisions of `cluster`, model servers, disks, clocks, a network and a
//! linearizable store, on one thread and from one seed.
//!
//! A run draws its cluster and its faults from the seed (`faults`), checks safety at every event (`checks`, one property
//! a file), then heals everything and demands that the cluster comes to rest (`checks::whole`). Whether the checkers can
//! fail at all is tested with `mutant`s: ways to get the decisions wrong, each of which must be caught.
//!
//! Not here: the engine (openraft, PostgreSQL), which the tests with real servers cover. The store is linearizable by
//! construction; it may be slow, out of reach, or leave a writer in doubt.

pub mod checks;
pub mod dice;
pub mod faults;
pub mod keeper;
pub mod mutant;
pub mod network;
pub mod run;
pub mod server;
pub mod store;
pub mod world;

pub use mutant::Mutant;
pub use run::{Outcome, run, run_in};
