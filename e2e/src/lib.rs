//! Tests against real servers: the harness that drives the built `stemma` binary the way a person would.
//!
//! Everything goes through the command line, the HTTP API and PostgreSQL connections, nothing through our own code, so
//! that the tests hold the program to what it shows. Conditions are waited for with a deadline. A cluster is stopped
//! and removed when it goes out of scope, also in a panic, which then tells how the cluster stood.

mod cluster;
pub mod faults;
mod front;
pub mod history;
mod http;
pub mod lab;
mod ledger;
pub mod manual;
pub mod net;
pub mod oracle;
pub mod patroni;
pub mod ports;
mod postgresql;
mod program;
pub mod readers;
pub mod transparency;
mod wait;

pub use cluster::{Cluster, Node};
pub use front::Front;
pub use http::{Answer, request};
pub use ledger::{Ledger, Writers};
pub use postgresql::{Majors, connect, major_bin, majors};
pub use program::{Ran, program, run};
pub use wait::{DEADLINE, wait_for, wait_until};
