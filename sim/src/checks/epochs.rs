//! Epochs never go back: not in consensus, not in any keeper's promise.

use cluster::failover::procedure::epoch_of;
use model::{ClusterState, Epoch, NodeId};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub(super) struct Epochs {
    highest: Epoch,
    promised: BTreeMap<NodeId, Epoch>,
}

impl Epochs {
    pub(super) fn new(state: &ClusterState) -> Epochs {
        Epochs { highest: epoch_of(state), promised: BTreeMap::new() }
    }

    pub(super) fn changed(&mut self, before: &ClusterState, after: &ClusterState) -> Result<(), String> {
        let now = epoch_of(after);
        if now < self.highest || after.rule.epoch < before.rule.epoch {
            return Err(format!("epoch {now} was written after epoch {}", self.highest));
        }
        self.highest = now;
        if after.rule.primary != before.rule.primary && after.rule.epoch == before.rule.epoch {
            return Err(format!("epoch {} has two primaries in consensus", after.rule.epoch));
        }
        Ok(())
    }

    pub(super) fn promised(&mut self, node: NodeId, epoch: Epoch) -> Result<(), String> {
        let before = self.promised.insert(node, epoch).unwrap_or_default();
        if epoch < before {
            return Err(format!("n{node} promised epoch {epoch} after epoch {before}"));
        }
        Ok(())
    }
}
