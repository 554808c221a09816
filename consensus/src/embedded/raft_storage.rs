//! What the Raft engine asks of storage, answered from [`super::store`].

use super::TypeConfig;
use super::state::{Answer, Changes, State};
use super::store::{self, KeptSnapshot, Store};
use crate::{StoreError, Watchers};
use openraft::storage::{LogFlushed, RaftLogStorage, RaftStateMachine};
use openraft::{
    AnyError, EmptyNode, Entry, LogId, LogState, OptionalSend, RaftLogReader, RaftSnapshotBuilder, Snapshot,
    SnapshotMeta, StorageError, StorageIOError, StoredMembership, Vote,
};
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The applied state as the rest of the program reads it.
#[derive(Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    pub(super) watchers: Watchers,
}

impl Shared {
    pub(super) fn new(state: State) -> Arc<Shared> {
        Arc::new(Shared { state: Mutex::new(state), watchers: Watchers::default() })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log half. Cheap to clone: replication tasks each hold one.
#[derive(Clone)]
pub(super) struct LogStore {
    pub(super) store: Arc<Store>,
}

/// The state machine half, which also builds snapshots.
#[derive(Clone)]
pub(super) struct Machine {
    pub(super) store: Arc<Store>,
    pub(super) shared: Arc<Shared>,
}

fn reading(error: StoreError) -> StorageError<u64> {
    StorageIOError::read(AnyError::new(&error)).into()
}

fn writing(error: StoreError) -> StorageError<u64> {
    StorageIOError::write(AnyError::new(&error)).into()
}

fn owned(bound: Bound<&u64>) -> Bound<u64> {
    match bound {
        Bound::Included(index) => Bound::Included(*index),
        Bound::Excluded(index) => Bound::Excluded(*index),
        Bound::Unbounded => Bound::Unbounded,
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<TypeConfig>>, StorageError<u64>> {
        let range = (owned(range.start_bound()), owned(range.end_bound()));
        self.store.run(move |database| store::entries(database, range, false)).await.map_err(reading)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry<TypeConfig>>, StorageError<u64>> {
        let range = (Bound::Included(start), Bound::Excluded(end));
        self.store.run(move |database| store::entries(database, range, true)).await.map_err(reading)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError<u64>> {
        self.store.run(store::log_ends).await.map_err(reading)
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError<u64>> {
        let vote = *vote;
        self.store.run(move |database| store::put_meta(database, "vote", &vote)).await.map_err(writing)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError<u64>> {
        self.store.run(|database| store::get_meta(database, "vote")).await.map_err(reading)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        match self.store.run(move |database| store::append(database, &entries)).await {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                callback.log_io_completed(Err(std::io::Error::other(error.clone())));
                Err(writing(error))
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Result<(), StorageError<u64>> {
        self.store.run(move |database| store::truncate(database, log_id.index)).await.map_err(writing)
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Result<(), StorageError<u64>> {
        self.store.run(move |database| store::purge(database, log_id)).await.map_err(writing)
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, StorageError<u64>> {
        let state = self.shared.state().clone();
        let kept = self.store.run(move |database| {
            let meta = SnapshotMeta {
                last_log_id: state.applied,
                last_membership: state.membership.clone(),
                snapshot_id: uuid::Uuid::new_v4().to_string(),
            };
            let kept: KeptSnapshot = (meta, store::encode(&state)?);
            store::put_meta(database, "snapshot", &kept)?;
            Ok(kept)
        });
        let (meta, data) = kept.await.map_err(writing)?;
        Ok(Snapshot { meta, snapshot: Box::new(data) })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Machine;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<u64>>, StoredMembership<u64, EmptyNode>), StorageError<u64>> {
        let state = self.shared.state();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answer>, StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().collect();
        let mut changes = Changes::default();
        // Applied to a copy and shown only once it is on disk, so that nobody acts on what a crash would take back.
        let mut state = self.shared.state().clone();
        let answers = entries.into_iter().map(|entry| state.apply(entry, &mut changes)).collect();
        let saved = self.store.run(move |database| {
            store::save_applied(database, &state, &changes)?;
            Ok((state, changes))
        });
        let (state, changes) = saved.await.map_err(writing)?;
        *self.shared.state() = state;
        for (key, document) in &changes.written {
            self.shared.watchers.publish(key, document);
        }
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Vec<u8>>, StorageError<u64>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, EmptyNode>,
        snapshot: Box<Vec<u8>>,
    ) -> Result<(), StorageError<u64>> {
        let kept: KeptSnapshot = (meta.clone(), *snapshot);
        let installed = self.store.run(move |database| {
            let mut state: State = store::decode("a received snapshot", &kept.1)?;
            state.applied = kept.0.last_log_id;
            state.membership = kept.0.last_membership.clone();
            store::replace_state(database, &state, &kept)?;
            Ok(state)
        });
        let state = installed.await.map_err(writing)?;
        let documents = state.documents.clone();
        *self.shared.state() = state;
        for (key, document) in &documents {
            self.shared.watchers.publish(key, document);
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, StorageError<u64>> {
        let kept = self.store.run(|database| store::get_meta::<KeptSnapshot>(database, "snapshot"));
        let kept = kept.await.map_err(reading)?;
        Ok(kept.map(|(meta, data)| Snapshot { meta, snapshot: Box::new(data) }))
    }
}
