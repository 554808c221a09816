//! The router before real servers.

mod commits;
mod console;
mod harness;
mod losses;
mod pooling;
mod protocol;
mod security;
mod splitting;
