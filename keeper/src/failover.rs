//! What a keeper does about who is primary, besides driving its own server: what it tells and hears, what it promised,
//! and how it notices that the primary is gone. What to do about it is decided in `cluster::failover`.

pub(crate) mod council;
pub(crate) mod fence;
pub(crate) mod floating;
pub(crate) mod health;
mod ledger_file;
pub(crate) mod probe;
pub(crate) mod routers;
pub(crate) mod shared_step;
mod watcher;
mod witness;
mod word;

pub(crate) use council::{Council, OwnPart};
pub(crate) use ledger_file::LedgerFile;
pub use watcher::COMMAND as WATCHER_COMMAND;
pub(crate) use witness::WitnessPart;
pub(crate) use word::Word;
