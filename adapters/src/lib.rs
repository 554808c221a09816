//! Services of others that are told what the cluster is. Each adapter speaks one protocol and decides nothing.

pub mod address;
pub mod dns;
