//! The PostgreSQL engine: everything that knows that product by name.

pub mod clone;
pub mod manifest;
pub mod os_user;
pub mod replication;
pub mod untar;
pub mod wal;
pub mod wire;
