//! Tests of the whole against real servers.

pub mod manual;
