//! The engine's own suite for storage, run on ours.

use super::TypeConfig;
use super::raft_storage::{LogStore, Machine, Shared};
use super::store::Store;
use model::names::NodeId;
use openraft::storage::RaftStateMachine;
use openraft::testing::{StoreBuilder, Suite};
use openraft::{AnyError, StorageError, StorageIOError};

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, LogStore, Machine), StorageError<u64>> {
        let directory = tempfile::tempdir().map_err(|error| StorageIOError::write(AnyError::new(&error)))?;
        let opened = Store::open(directory.path(), NodeId(1)).await;
        let (store, state) = opened.map_err(|error| StorageIOError::read(AnyError::new(&error)))?;
        let mut machine = Machine { store: store.clone(), shared: Shared::new(state) };
        machine.applied_state().await?;
        Ok((directory, LogStore { store }, machine))
    }
}

#[test]
fn storage_passes_the_engines_suite() {
    Suite::test_all(Builder).expect("the suite passes");
}
