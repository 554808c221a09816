//! Every acknowledged commit is in the history of each later winner, of each primary whose rule comes into force, and of
//! the primary at the end. Only where no acknowledgement was promised, or where a person accepted a loss, may a choice lose
//! some, and they are counted.

use crate::server::Entry;
use cluster::failover::recruit::binding;
use model::ClusterState;
use model::failover::{Failover, FailoverKind};

#[derive(Clone, Debug, Default)]
pub(super) struct Acknowledged {
    commits: Vec<(usize, u32)>,
}

impl Acknowledged {
    pub(super) fn acknowledged(&mut self, position: usize, commit: u32) {
        self.commits.push((position, commit));
    }

    pub(super) fn chosen(
        &mut self,
        before: &ClusterState,
        failover: &Failover,
        logs: &[&[Entry]],
        lost: &mut u64,
    ) -> Result<(), String> {
        let Some((winner, held)) = failover.winner.and_then(|node| Some((node, failover.recruited.get(&node)?))) else {
            return Err("a winner was chosen that was not recruited".to_owned());
        };
        let all = logs[winner.0 as usize - 1];
        let log = &all[..all.len().min(held.position.0 as usize)];
        // What a rule older than the winner's lineage lost was taken off when the winner of that lineage was chosen.
        let unpromised = binding(before).any(|rule| {
            rule.acks == 0 && rule.epoch >= held.lineage && !failover.recruited.contains_key(&rule.primary)
        });
        if unpromised || matches!(failover.kind, FailoverKind::Forced { .. }) {
            let count = self.commits.len();
            self.commits.retain(|commit| holds(log, *commit));
            *lost += (count - self.commits.len()) as u64;
            return Ok(());
        }
        self.held_by(log, &format!("the choice of n{winner} for epoch {}", failover.epoch))
    }

    pub(super) fn held_by(&self, log: &[Entry], when: &str) -> Result<(), String> {
        let missing: Vec<_> = self.commits.iter().filter(|commit| !holds(log, **commit)).collect();
        match missing.first() {
            None => Ok(()),
            Some((position, commit)) => Err(format!(
                "lost: {} acknowledged commits are missing at {when}, the first is {commit} at position {position}",
                missing.len()
            )),
        }
    }
}

fn holds(log: &[Entry], (position, commit): (usize, u32)) -> bool {
    log.get(position - 1).is_some_and(|entry| entry.id == commit)
}
