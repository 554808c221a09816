//! Consensus as a model: one document, linearizable by construction. A writer may be left in doubt.

use model::ClusterState;
use std::rc::Rc;

/// The store.
#[derive(Clone, Debug)]
pub struct Store {
    /// The document.
    pub state: Rc<ClusterState>,
    /// Its version.
    pub version: u64,
    /// Whether it answers.
    pub up: bool,
}

impl Store {
    /// With a first document.
    pub fn new(state: ClusterState) -> Store {
        Store { state: Rc::new(state), version: 1, up: true }
    }
    /// Writes if nobody wrote since `version`.
    pub fn compare_and_set(&mut self, version: u64, next: ClusterState) -> bool {
        if version != self.version {
            return false;
        }
        self.version += 1;
        self.state = Rc::new(next);
        true
    }
}
