//! Which statement may be read where: the classifier, consistency tokens, and the choice of a replica.
//!
//! Floor 2: uses `model` only. No I/O, no clock, no randomness, no async. A wrong "replica" is a defect, a wrong
//! "primary" only a slow query: whatever is not understood goes to the primary.
//!
//! A statement's way through the room:
//! 1. [`Memo::route`]: the [`Route`] of its shape, kept in a [`Cache`] by the shape's [`Fingerprint`]; else [`analyse`] it.
//! 2. [`Route::decide`] with where the session stands: replica, primary, or something the router handles itself. The
//!    [`Effect`]s say what the session becomes once the part that has them has succeeded.
//! 3. For a read, [`consistency::Memory::need`]: any replica that meets a requirement, a position to ask the primary for
//!    ([`consistency::Sampler`]), or the primary.
//! 4. [`consistency::eligible`] for each replica, [`Balancer::choose`] among those that are.
//! 5. Afterwards [`Balancer::finished`], and `Memory::on_replica` or `Memory::on_primary`: reads on the primary count too.
//!    If a replica refused ([`refusal()`]), forget the route ([`Cache::remove`]), count it, and ask the primary.

pub mod balance;
pub mod catalog;
pub mod classify;
pub mod consistency;
pub mod dsn;
pub mod failover;
pub mod fingerprint;
pub mod hint;
pub mod import;
pub mod lex;
pub mod memo;
pub mod names;
pub mod outcome;
pub mod refusal;
pub mod route;
pub mod token;
pub mod words;

pub use balance::{Balancer, Candidate, Choice, Method, Policy};
pub use catalog::Catalog;
pub use classify::{Context, Session, Standing, analyse, classify};
pub use consistency::Level;
pub use fingerprint::{Cache, Fingerprint};
pub use hint::{Hint, Target};
pub use lex::{Encoding, Lexing};
pub use memo::Memo;
pub use refusal::{Refusal, refusal};
pub use route::{Class, Effect, Reason, Route};
pub use token::{Lineage, Point, Token};
