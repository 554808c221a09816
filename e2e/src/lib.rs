//! Tests against real servers.

pub mod net;
