//! One epoch has one node that acknowledges, and once the winner of a later epoch is chosen, nothing is acknowledged
//! under an older one that the winner does not hold. (A confirmation that was on its way may still arrive.)

use crate::server::Entry;
use model::failover::Failover;
use model::{Epoch, NodeId};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Default)]
pub(super) struct OnePrimary {
    node_of: BTreeMap<Epoch, NodeId>,
    chosen: Vec<(Epoch, Vec<u32>)>,
}

impl OnePrimary {
    pub(super) fn acknowledged(
        &mut self,
        node: NodeId,
        epoch: Epoch,
        acks: u32,
        position: usize,
        commit: u32,
    ) -> Result<(), String> {
        let first = *self.node_of.entry(epoch).or_insert(node);
        if first != node {
            return Err(format!("two primaries: n{first} and n{node} acknowledge in epoch {epoch}"));
        }
        for (later, log) in self.chosen.iter().rev().take_while(|(later, _)| *later > epoch) {
            if log.get(position - 1) != Some(&commit) {
                return Err(format!(
                    "revoked: n{node} of epoch {epoch} acknowledges commit {commit} (held by {acks} replicas) after the \
                     winner of epoch {later} was chosen without it"
                ));
            }
        }
        Ok(())
    }

    pub(super) fn chosen(&mut self, failover: &Failover, logs: &[&[Entry]]) {
        let Some((winner, held)) = failover.winner.and_then(|node| Some((node, failover.recruited.get(&node)?))) else {
            return;
        };
        let log = logs[winner.0 as usize - 1].iter().take(held.position.0 as usize).map(|entry| entry.id).collect();
        self.chosen.push((failover.epoch, log));
    }
}
