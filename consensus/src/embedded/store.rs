//! The file beneath: log, vote and state in one redb database. Every commit is on disk before it returns, in two
//! phases so that a torn write cannot be taken for a valid one. redb blocks, so all of it runs on blocking threads.

use super::TypeConfig;
use super::state::{Changes, Remembered, State};
use crate::{Document, StoreError};
use model::names::NodeId;
use openraft::{EmptyNode, Entry, LogId, LogState, SnapshotMeta, StoredMembership, Vote};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

const META: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("meta");
const LOG: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("log");
const DOCUMENTS: TableDefinition<'static, &'static str, &'static [u8]> = TableDefinition::new("documents");
const REQUESTS: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("requests");

/// Name of the file in the store's directory.
pub(super) const FILE_NAME: &str = "consensus.redb";
/// What this file is and how it is laid out; another number is refused rather than misread.
const FORMAT: u32 = 1;
/// Documents are a few kilobytes; the default of 1 GiB would be for a real database.
const CACHE_BYTES: usize = 4 << 20;
/// Bytes of entries sent in one message; a single entry may exceed it, and still fits a frame.
const ENTRIES_BYTES_MAX: usize = 2 << 20;
const _: () = assert!(ENTRIES_BYTES_MAX + (64 << 10) < model::limits::FRAME_BYTES_MAX);
const _: () = assert!(model::limits::DOCUMENT_BYTES_MAX < ENTRIES_BYTES_MAX);

/// The open file.
pub(super) struct Store {
    /// None once closed.
    database: RwLock<Option<Database>>,
    /// The first thing that went wrong. Raft stops for good at an I/O error; this says why.
    failure: Mutex<Option<StoreError>>,
}

/// The state machine's small facts, written with each applied batch.
#[derive(Serialize, Deserialize)]
struct Head {
    applied: Option<LogId<u64>>,
    membership: StoredMembership<u64, EmptyNode>,
    forgotten_through: u64,
}

/// A snapshot as kept: its description and the state, serialised.
pub(super) type KeptSnapshot = (SnapshotMeta<u64, EmptyNode>, Vec<u8>);

/// What can go wrong beneath; becomes a [`StoreError`].
pub(super) enum Fault {
    Redb(redb::Error),
    Undecodable(String),
}

macro_rules! redb_faults {
    ($($error:ty),*) => { $(impl From<$error> for Fault {
        fn from(error: $error) -> Fault {
            Fault::Redb(error.into())
        }
    })* };
}
redb_faults!(
    redb::DatabaseError,
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::SetDurabilityError
);

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> StoreError {
        match fault {
            Fault::Undecodable(detail) => StoreError::Corrupt { detail },
            Fault::Redb(redb::Error::Corrupted(detail)) => StoreError::Corrupt { detail },
            Fault::Redb(redb::Error::Io(error)) if is_damage(&error) => {
                StoreError::Corrupt { detail: error.to_string() }
            }
            Fault::Redb(error @ (redb::Error::TableTypeMismatch { .. } | redb::Error::UpgradeRequired(_))) => {
                StoreError::Corrupt { detail: error.to_string() }
            }
            Fault::Redb(error) => StoreError::Unavailable { detail: error.to_string() },
        }
    }
}

/// A file too short or of another format shows as an I/O error of these kinds.
fn is_damage(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof)
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Fault> {
    postcard::to_stdvec(value).map_err(|error| Fault::Undecodable(format!("cannot encode: {error}")))
}

pub(super) fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Fault> {
    postcard::from_bytes(bytes).map_err(|error| Fault::Undecodable(format!("{what} cannot be decoded: {error}")))
}

impl Store {
    /// Opens or makes the file in `directory` for `node`, and reads the state it holds.
    pub(super) async fn open(directory: &Path, node: NodeId) -> Result<(Arc<Store>, State), StoreError> {
        let path = directory.join(FILE_NAME);
        let opened = tokio::task::spawn_blocking(move || open_file(&path, node)).await;
        let (database, state) = flatten(opened)?;
        let store = Store { database: RwLock::new(Some(database)), failure: Mutex::new(None) };
        Ok((Arc::new(store), state))
    }

    /// Runs `work` on a blocking thread. A panic in there (redb asserts on what it reads) is reported as damage.
    pub(super) async fn run<T: Send + 'static>(
        self: &Arc<Store>,
        work: impl FnOnce(&Database) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let database = store.database.read().unwrap_or_else(PoisonError::into_inner);
            let database = database.as_ref().ok_or(StoreError::Stopped)?;
            work(database).map_err(StoreError::from)
        });
        let result = flatten(done.await);
        if let Err(error) = &result {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert_with(|| error.clone());
        }
        result
    }

    /// The first failure, if there was one.
    pub(super) fn failure(&self) -> Option<StoreError> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Closes the file once running work is done, so that another may open it.
    pub(super) async fn close(self: &Arc<Store>) {
        let store = self.clone();
        let closing = tokio::task::spawn_blocking(move || {
            drop(store.database.write().unwrap_or_else(PoisonError::into_inner).take());
        });
        if closing.await.is_err() {
            tracing::warn!("closing the consensus store panicked");
        }
    }
}

fn flatten<T>(outcome: Result<Result<T, StoreError>, tokio::task::JoinError>) -> Result<T, StoreError> {
    match outcome {
        Ok(result) => result,
        Err(error) if error.is_panic() => {
            let payload = error.into_panic();
            let text = payload.downcast_ref::<String>().cloned();
            let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(StoreError::Corrupt { detail: text.unwrap_or_else(|| "the storage engine panicked".into()) })
        }
        Err(_cancelled) => Err(StoreError::Stopped),
    }
}

fn open_file(path: &Path, node: NodeId) -> Result<(Database, State), StoreError> {
    let file = open_or_make(path)
        .map_err(|error| StoreError::Unavailable { detail: format!("{}: {error}", path.display()) })?;
    let database = redb::Builder::new().set_cache_size(CACHE_BYTES).create_file(file).map_err(Fault::from)?;
    prepare(&database)?;
    match get_meta::<(u32, u64)>(&database, "format")? {
        None => {
            let fresh = (FORMAT, node.0);
            put_meta(&database, "format", &fresh)?;
        }
        Some((FORMAT, held)) if held == node.0 => {}
        Some((FORMAT, held)) => {
            let detail = format!("{} belongs to node {held}, not to node {node}", path.display());
            return Err(StoreError::Unavailable { detail });
        }
        Some((format, _)) => {
            let detail = format!("{} has format {format}; this program reads {FORMAT}", path.display());
            return Err(StoreError::Corrupt { detail });
        }
    }
    let state = load_state(&database)?;
    check_log(&database, &state)?;
    Ok((database, state))
}

/// The documents hold secrets, so the file is for its owner alone; and a file whose name is lost in a crash is lost, so
/// the directory is made durable with it.
fn open_or_make(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let file = options.create_new(true).open(path)?;
            for directory in path.ancestors().skip(1).take(2).filter(|directory| directory.is_dir()) {
                File::open(directory)?.sync_all()?;
            }
            Ok(file)
        }
        opened => opened,
    }
}

/// Makes the tables, so that readers need not tell an empty store from a damaged one.
fn prepare(database: &Database) -> Result<(), Fault> {
    let transaction = begin(database)?;
    transaction.open_table(META)?;
    transaction.open_table(LOG)?;
    transaction.open_table(DOCUMENTS)?;
    transaction.open_table(REQUESTS)?;
    transaction.commit()?;
    Ok(())
}

fn begin(database: &Database) -> Result<WriteTransaction, Fault> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::Immediate)?;
    transaction.set_two_phase_commit(true);
    Ok(transaction)
}

pub(super) fn get_meta<T: DeserializeOwned>(database: &Database, name: &str) -> Result<Option<T>, Fault> {
    let table = database.begin_read()?.open_table(META)?;
    let value = table.get(name)?;
    value.map(|bytes| decode(name, bytes.value())).transpose()
}

pub(super) fn put_meta<T: Serialize>(database: &Database, name: &str, value: &T) -> Result<(), Fault> {
    let transaction = begin(database)?;
    set(&transaction, name, value)?;
    transaction.commit()?;
    Ok(())
}

fn set<T: Serialize>(transaction: &WriteTransaction, name: &str, value: &T) -> Result<(), Fault> {
    transaction.open_table(META)?.insert(name, encode(value)?.as_slice())?;
    Ok(())
}

fn load_state(database: &Database) -> Result<State, Fault> {
    let mut state = State::default();
    if let Some(head) = get_meta::<Head>(database, "head")? {
        state.applied = head.applied;
        state.membership = head.membership;
        state.forgotten_through = head.forgotten_through;
    }
    let transaction = database.begin_read()?;
    for row in transaction.open_table(DOCUMENTS)?.iter()? {
        let (key, value) = row?;
        let document: Document = decode("a document", value.value())?;
        state.documents.insert(key.value().to_owned(), document);
    }
    for row in transaction.open_table(REQUESTS)?.iter()? {
        let (_, value) = row?;
        state.requests.push_back(decode::<Remembered>("a request", value.value())?);
    }
    Ok(state)
}

/// Raft trusts the log to be whole, so that is checked where it can still be refused: every entry readable, at its own
/// index, without a hole, reaching down to what was applied.
fn check_log(database: &Database, state: &State) -> Result<(), Fault> {
    let purged: Option<LogId<u64>> = get_meta(database, "purged")?;
    get_meta::<Vote<u64>>(database, "vote")?;
    get_meta::<KeptSnapshot>(database, "snapshot")?;
    let mut next = purged.map(|id| id.index + 1);
    for row in database.begin_read()?.open_table(LOG)?.iter()? {
        let (index, value) = row?;
        let entry: Entry<TypeConfig> = decode("a log entry", value.value())?;
        let index = index.value();
        if entry.log_id.index != index || next.is_some_and(|next| next != index) {
            return Err(Fault::Undecodable(format!("the log has a hole or a stray entry at index {index}")));
        }
        next = Some(index + 1);
    }
    if state.applied.is_some_and(|applied| purged.is_some_and(|purged| purged.index > applied.index)) {
        return Err(Fault::Undecodable("the log was shortened beyond what was applied".into()));
    }
    Ok(())
}

pub(super) fn append(database: &Database, entries: &[Entry<TypeConfig>]) -> Result<(), Fault> {
    let transaction = begin(database)?;
    {
        let mut log = transaction.open_table(LOG)?;
        for entry in entries {
            log.insert(entry.log_id.index, encode(entry)?.as_slice())?;
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Drops the log from `from` on.
pub(super) fn truncate(database: &Database, from: u64) -> Result<(), Fault> {
    let transaction = begin(database)?;
    transaction.open_table(LOG)?.retain_in(from.., |_, _| false)?;
    transaction.commit()?;
    Ok(())
}

/// Drops the log up to and including `through`.
pub(super) fn purge(database: &Database, through: LogId<u64>) -> Result<(), Fault> {
    let transaction = begin(database)?;
    transaction.open_table(LOG)?.retain_in(..=through.index, |_, _| false)?;
    set(&transaction, "purged", &through)?;
    transaction.commit()?;
    Ok(())
}

/// The ids of the last purged and of the last present entry.
pub(super) fn log_ends(database: &Database) -> Result<LogState<TypeConfig>, Fault> {
    let purged = get_meta(database, "purged")?;
    let log = database.begin_read()?.open_table(LOG)?;
    let last = match log.last()? {
        Some((_, value)) => Some(decode::<Entry<TypeConfig>>("a log entry", value.value())?.log_id),
        None => purged,
    };
    Ok(LogState { last_purged_log_id: purged, last_log_id: last })
}

/// Entries of the range, in order; at least one if there is any, and no more than a message holds if `bounded`.
pub(super) fn entries(
    database: &Database,
    range: (Bound<u64>, Bound<u64>),
    bounded: bool,
) -> Result<Vec<Entry<TypeConfig>>, Fault> {
    let log = database.begin_read()?.open_table(LOG)?;
    let (mut found, mut bytes) = (Vec::new(), 0);
    for row in log.range(range)? {
        let (_, value) = row?;
        bytes += value.value().len();
        if bounded && bytes > ENTRIES_BYTES_MAX && !found.is_empty() {
            break;
        }
        found.push(decode("a log entry", value.value())?);
    }
    Ok(found)
}

fn head_of(state: &State) -> Head {
    Head { applied: state.applied, membership: state.membership.clone(), forgotten_through: state.forgotten_through }
}

/// Makes applied entries durable: what they changed, and how far they reach.
pub(super) fn save_applied(database: &Database, state: &State, changes: &Changes) -> Result<(), Fault> {
    let transaction = begin(database)?;
    {
        let mut documents = transaction.open_table(DOCUMENTS)?;
        for (key, document) in &changes.written {
            documents.insert(key.as_str(), encode(document)?.as_slice())?;
        }
        let mut requests = transaction.open_table(REQUESTS)?;
        for kept in &changes.remembered {
            requests.insert(kept.index, encode(kept)?.as_slice())?;
        }
        for index in &changes.forgotten {
            requests.remove(index)?;
        }
    }
    set(&transaction, "head", &head_of(state))?;
    transaction.commit()?;
    Ok(())
}

/// Replaces the whole state by a received one, together with the snapshot it came in.
pub(super) fn replace_state(database: &Database, state: &State, snapshot: &KeptSnapshot) -> Result<(), Fault> {
    let transaction = begin(database)?;
    {
        let mut documents = transaction.open_table(DOCUMENTS)?;
        documents.retain(|_, _| false)?;
        for (key, document) in &state.documents {
            documents.insert(key.as_str(), encode(document)?.as_slice())?;
        }
        let mut requests = transaction.open_table(REQUESTS)?;
        requests.retain(|_, _| false)?;
        for kept in &state.requests {
            requests.insert(kept.index, encode(kept)?.as_slice())?;
        }
    }
    set(&transaction, "head", &head_of(state))?;
    set(&transaction, "snapshot", snapshot)?;
    transaction.commit()?;
    Ok(())
}
