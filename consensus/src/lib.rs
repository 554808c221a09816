//! The small linearizable store that holds the cluster's decisions, behind one trait.
//!
//! Floor 3. It knows keys, versions and bytes, and nothing of what the documents mean. Two stores implement
//! [`Consensus`]: [`embedded`], a Raft group among the keepers with its log on their disks, and [`etcd`], for those who
//! already run one. [`contract`] is the suite that any implementation passes.

pub mod contract;
pub mod embedded;
pub mod etcd;

use model::names::NodeId;
use model::observe::ConsensusView;
use model::{Trouble, limits};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// A boxed future that may move between threads.
pub type BoxFuture<'a, T> = futures_util::future::BoxFuture<'a, T>;

/// Longest key, in bytes. Keys are few and fixed; the bound keeps a mistake from becoming a large log entry.
pub const KEY_BYTES_MAX: usize = 256;

/// What is stored under one key.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Document {
    /// Counts the writes to this key, from 1.
    pub version: u64,
    /// The content.
    pub body: Arc<[u8]>,
}

/// Why the store did not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// No majority could be reached in time. Nothing was changed.
    NoQuorum {
        /// What was tried.
        detail: String,
    },
    /// The store cannot serve this now, for another reason than a missing majority. Nothing was changed.
    Unavailable {
        /// Why.
        detail: String,
    },
    /// The document or the whole state would exceed its bound.
    TooLarge {
        /// Bytes asked for.
        bytes: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// What is on disk, or what the store answered, cannot be what was once written.
    Corrupt {
        /// What was found.
        detail: String,
    },
    /// The store was stopped.
    Stopped,
}

/// Why a write did not return a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// The document was not at the expected version. Nothing was changed.
    Conflict {
        /// What is stored instead; none if the key is absent.
        current: Option<Document>,
    },
    /// Outcome unknown: it may have been written, and may yet be. Read before trying again.
    Unknown {
        /// What happened.
        detail: String,
    },
    /// The store did not take it. Nothing was changed.
    Store(StoreError),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::NoQuorum { detail } => write!(f, "consensus has no majority: {detail}"),
            StoreError::Unavailable { detail } => write!(f, "consensus store is unavailable: {detail}"),
            StoreError::TooLarge { bytes, max } => write!(f, "document of {bytes} bytes exceeds the bound of {max}"),
            StoreError::Corrupt { detail } => write!(f, "consensus store is corrupt: {detail}"),
            StoreError::Stopped => write!(f, "consensus store is stopped"),
        }
    }
}
impl std::error::Error for StoreError {}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WriteError::Conflict { current: Some(document) } => {
                write!(f, "changed by someone else meanwhile, now at version {}", document.version)
            }
            WriteError::Conflict { current: None } => write!(f, "changed by someone else meanwhile, now absent"),
            WriteError::Unknown { detail } => write!(f, "outcome of the write is unknown: {detail}"),
            WriteError::Store(error) => error.fmt(f),
        }
    }
}
impl std::error::Error for WriteError {}

impl From<StoreError> for WriteError {
    fn from(error: StoreError) -> WriteError {
        WriteError::Store(error)
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Trouble {
        let reason = error.to_string();
        match error {
            StoreError::NoQuorum { .. } => Trouble::no_quorum(
                reason,
                "start the keepers that are down, or mend the network between them; `stemma status` shows who answers",
            ),
            StoreError::Unavailable { .. } => Trouble::consensus(reason, "try again; `stemma status` shows the store"),
            StoreError::TooLarge { .. } => {
                Trouble::consensus(reason, "shorten what is stored: remove unused settings or members")
            }
            StoreError::Corrupt { .. } => Trouble::consensus(
                reason,
                "remove this node, move its state directory aside and join it again under a new token",
            ),
            StoreError::Stopped => Trouble::consensus(reason, "the keeper is stopping; ask another node"),
        }
    }
}

impl From<WriteError> for Trouble {
    fn from(error: WriteError) -> Trouble {
        let reason = error.to_string();
        match error {
            WriteError::Conflict { .. } => Trouble::conflict(reason, "look at the new state and try again"),
            WriteError::Unknown { .. } => {
                let mut trouble = Trouble::consensus(reason, "look at the state before trying again");
                trouble.exit = model::error::exit::UNKNOWN;
                trouble
            }
            WriteError::Store(error) => error.into(),
        }
    }
}

/// A small linearizable key-value store with compare-and-set.
pub trait Consensus: Send + Sync + 'static {
    /// The newest document under `key`: a linearizable read.
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Document>, StoreError>>;

    /// Writes `body` under `key` if its version is `expect` (0 = absent). Returns the new version.
    fn write<'a>(&'a self, key: &'a str, expect: u64, body: Vec<u8>) -> BoxFuture<'a, Result<u64, WriteError>>;

    /// The newest document under `key` that this node knows of. May be stale, never goes back.
    fn watch(&self, key: &str) -> tokio::sync::watch::Receiver<Option<Document>>;

    /// How the store looks from here. Cheap, without I/O.
    fn view(&self) -> ConsensusView;

    /// Brings the group to exactly these members. A no-op where this node is not the leader, where the store manages
    /// its own members, and where it is so already. New voters become learners first and vote once they have caught
    /// up; members that are no longer wanted go last. May be called again after any interruption.
    fn set_members<'a>(
        &'a self,
        voters: &'a BTreeSet<NodeId>,
        learners: &'a BTreeSet<NodeId>,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Whether this node leads the group; true on every node of a store that manages itself.
    fn is_leader(&self) -> bool;

    /// Has this member stand for election now, because the leader is known to be gone; otherwise it would wait out the
    /// leader's time. Does nothing where the store manages itself. Harmless at any time, but for the group's calm.
    fn call_election(&self) -> BoxFuture<'_, ()>;

    /// Stops taking part and releases files and connections. Later calls answer [`StoreError::Stopped`].
    fn stop(&self) -> BoxFuture<'_, ()>;
}

/// How the members of an embedded group reach each other. The payload is handed to the other side's
/// [`embedded::Embedded::handle`], whose answer comes back.
pub trait Transport: Send + Sync + 'static {
    /// Sends `payload` to `to` and returns its answer, or in words why there is none within `timeout`.
    fn call(&self, to: NodeId, payload: Vec<u8>, timeout: Duration) -> BoxFuture<'_, Result<Vec<u8>, String>>;
}

/// Refuses keys and bodies that no store will take.
pub(crate) fn check_size(key: &str, body: &[u8]) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(StoreError::TooLarge { bytes: key.len(), max: KEY_BYTES_MAX });
    }
    if body.len() > limits::DOCUMENT_BYTES_MAX {
        return Err(StoreError::TooLarge { bytes: body.len(), max: limits::DOCUMENT_BYTES_MAX });
    }
    Ok(())
}

/// The receivers of `watch`, one channel per key. A document replaces an older one only: what is told never goes back.
#[derive(Default)]
pub(crate) struct Watchers {
    channels: std::sync::Mutex<std::collections::BTreeMap<String, tokio::sync::watch::Sender<Option<Document>>>>,
}

impl Watchers {
    /// A receiver for `key`.
    pub(crate) fn subscribe(&self, key: &str) -> tokio::sync::watch::Receiver<Option<Document>> {
        let mut channels = self.channels.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        channels.entry(key.to_owned()).or_insert_with(|| tokio::sync::watch::channel(None).0).subscribe()
    }

    /// Tells those who watch `key`.
    pub(crate) fn publish(&self, key: &str, document: &Document) {
        let channels = self.channels.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(sender) = channels.get(key) {
            offer(sender, Some(document.clone()));
        }
    }
}

fn offer(sender: &tokio::sync::watch::Sender<Option<Document>>, document: Option<Document>) {
    sender.send_if_modified(|held| {
        let newer = document.as_ref().map_or(0, |new| new.version) > held.as_ref().map_or(0, |old| old.version);
        if newer {
            *held = document;
        }
        newer
    });
}
