//! Which statement may be read where: the classifier, consistency tokens, and the choice of a replica.
//!
//! Floor 2: uses `model` only. No I/O, no clock, no randomness, no async. A wrong "replica" is a defect, a wrong
//! "primary" only a slow query: whatever is not understood goes to the primary.

pub mod catalog;
pub mod classify;
pub mod consistency;
pub mod failover;
pub mod hint;
pub mod lex;
pub mod names;
pub mod refusal;
pub mod route;
pub mod words;

pub use catalog::Catalog;
pub use classify::{Context, Session, Standing, analyse, classify};
pub use consistency::Level;
pub use hint::{Hint, Target};
pub use lex::{Encoding, Lexing};
pub use refusal::{Refusal, refusal};
pub use route::{Class, Effect, Reason, Route};
