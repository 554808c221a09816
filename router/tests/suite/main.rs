//! The router before real servers.

mod commits;
mod console;
mod differential;
mod harness;
mod hostile;
mod limits;
mod listening;
mod losses;
mod plans;
mod pooling;
mod protocol;
mod raw;
mod security;
mod sockets;
mod splitting;
mod wishes;
