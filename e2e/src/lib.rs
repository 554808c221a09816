//! Tests against real servers: what they share.

pub mod faults;
