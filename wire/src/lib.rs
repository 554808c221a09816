//! PostgreSQL's protocol version 3 as bytes: cutting messages out of a stream, reading the few that a router must
//! understand, and building those that it says itself.
//!
//! Pure: no I/O, no clock, no allocation where a message is only looked at. Every length comes from a stranger, so
//! nothing here trusts one: a length that lies is `Malformed`, never a panic and never a large allocation.

pub mod backend;
pub mod build;
pub mod frame;
pub mod frontend;
pub mod startup;

pub use frame::{Header, Malformed, header};
