//! The ledger on the disk (`cluster::failover::ledger`): written and fsynced before what it announces is done.

use crate::files;
use cluster::failover::ledger::Ledger;
use model::{Epoch, NodeId, Trouble};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    ledger: Ledger,
    /// Whom the server follows, and under which epoch. Not part of any promise: it says whose word to take for the
    /// stream that a keeper finds when it starts.
    #[serde(default)]
    following: Option<(NodeId, Epoch)>,
}

/// The file, with what it says.
#[derive(Debug)]
pub(crate) struct LedgerFile {
    path: PathBuf,
    content: Content,
}

impl LedgerFile {
    /// Reads it; an absent one has promised nothing.
    ///
    /// # Errors
    /// One that cannot be read stops the node: to go on without it would be to break its promise.
    pub fn open(state_dir: &Path) -> Result<LedgerFile, Trouble> {
        let path = state_dir.join("ledger.json");
        let content = match files::read_private(&path)? {
            None => Content::default(),
            Some(body) => serde_json::from_slice(&body).map_err(|error| {
                Trouble::internal(
                    format!("{} is unreadable", path.display()),
                    "this node forgot what it promised: remove it from the cluster and join it anew",
                )
                .because(error)
            })?,
        };
        Ok(LedgerFile { path, content })
    }

    /// What it says.
    pub fn ledger(&self) -> &Ledger {
        &self.content.ledger
    }
    /// Whom the server follows.
    pub fn following(&self) -> Option<(NodeId, Epoch)> {
        self.content.following
    }
    /// Replaces the ledger, durably.
    pub fn save(&mut self, ledger: Ledger) -> Result<(), Trouble> {
        let following = self.content.following;
        self.write(Content { ledger, following })
    }
    /// Notes whom the server follows from now on, durably.
    pub fn follow(&mut self, ledger: Ledger, node: NodeId, epoch: Epoch) -> Result<(), Trouble> {
        self.write(Content { ledger, following: Some((node, epoch)) })
    }

    fn write(&mut self, content: Content) -> Result<(), Trouble> {
        if content == self.content {
            return Ok(());
        }
        let body = serde_json::to_vec_pretty(&content)
            .map_err(|error| Trouble::internal("the ledger cannot be written", "").because(error))?;
        files::write_private(&self.path, &body)?;
        self.content = content;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Timeline;

    #[test]
    fn a_promise_outlives_its_keeper_and_a_torn_file_stops_the_node() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut file = LedgerFile::open(directory.path()).expect("nothing promised");
        assert_eq!(file.ledger().promised, Epoch(0));
        let promised = file.ledger().promise(Epoch(7)).expect("higher");
        let attached = promised.attach(Epoch(7), Epoch(3), Timeline(2), None).expect("allowed");
        file.follow(attached.clone(), NodeId(2), Epoch(7)).expect("written");
        let again = LedgerFile::open(directory.path()).expect("read");
        assert_eq!((again.ledger(), again.following()), (&attached, Some((NodeId(2), Epoch(7)))));
        std::fs::write(directory.path().join("ledger.json"), b"{").expect("torn");
        assert!(LedgerFile::open(directory.path()).is_err());
    }
}
