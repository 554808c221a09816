//! What must hold, checked as things happen. One property a file; the first that breaks ends the run.

mod acknowledged;
mod choices;
mod epochs;
mod one_primary;
mod plans;
mod settled;
pub mod whole;

use crate::server::Entry;
use model::failover::{FailoverKind, FailoverPhase};
use model::{ClusterState, Epoch, NodeId};

/// All properties with what they remember.
#[derive(Clone, Debug)]
pub struct Checks {
    /// The first property that broke.
    pub broken: Option<String>,
    one_primary: one_primary::OnePrimary,
    acknowledged: acknowledged::Acknowledged,
    epochs: epochs::Epochs,
    /// Commits acknowledged in the run.
    pub acknowledged_count: u64,
    /// When the last one was.
    pub acknowledged_at: u64,
    /// Changes of primary that were completed.
    pub failovers: u64,
    /// Of those, the ones where a person asked.
    pub switchovers: u64,
    /// Attempts in which the old primary was confirmed.
    pub undone: u64,
    /// Attempts that a later one took over.
    pub superseded: u64,
    /// Commits that modes without acknowledgements lost.
    pub lost_unpromised: u64,
    /// The newest epoch whose winner was chosen because a person accepted a loss.
    forced: Epoch,
    /// The longest time without an acknowledgement.
    pub gap_max: u64,
}

impl Checks {
    /// At the beginning of a run.
    pub fn new(state: &ClusterState) -> Checks {
        Checks {
            broken: None,
            one_primary: one_primary::OnePrimary::default(),
            acknowledged: acknowledged::Acknowledged::default(),
            epochs: epochs::Epochs::new(state),
            acknowledged_count: 0,
            acknowledged_at: 0,
            failovers: 0,
            switchovers: 0,
            undone: 0,
            superseded: 0,
            lost_unpromised: 0,
            forced: Epoch(0),
            gap_max: 0,
        }
    }

    /// A property is broken.
    pub fn break_with(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    fn expect(&mut self, result: Result<(), String>) {
        if let Err(what) = result {
            self.break_with(what);
        }
    }

    /// A client was told that its commit is safe.
    pub fn acknowledged(&mut self, now: u64, node: NodeId, epoch: Epoch, acks: u32, position: usize, commit: u32) {
        self.acknowledged_count += 1;
        self.gap_max = self.gap_max.max(now - self.acknowledged_at);
        self.acknowledged_at = now;
        // Once a person has another primary made at any price, nobody vouches for what the old one still says.
        if epoch < self.forced {
            return;
        }
        let result = self.one_primary.acknowledged(node, epoch, acks, position, commit);
        self.expect(result);
        self.acknowledged.acknowledged(position, commit);
    }

    /// A keeper wrote its promise.
    pub fn promised(&mut self, node: NodeId, epoch: Epoch) {
        let result = self.epochs.promised(node, epoch);
        self.expect(result);
    }

    /// Consensus changed. `logs` are what the nodes hold now, flushed.
    pub fn state_changed(&mut self, now: u64, before: &ClusterState, after: &ClusterState, logs: &[&[Entry]]) {
        let result = self.epochs.changed(before, after).and_then(|()| plans::changed(before, after));
        self.expect(result);
        let chosen = |state: &ClusterState| {
            state.failover.as_ref().filter(|it| it.phase == FailoverPhase::Promote).map(|it| it.epoch)
        };
        if chosen(after).is_some() && chosen(after) != chosen(before) {
            let failover = after.failover.as_ref().expect("it was chosen");
            if matches!(failover.kind, FailoverKind::Forced { .. }) {
                self.forced = failover.epoch;
            }
            let result = choices::allowed(before, failover);
            self.expect(result);
            let result = self.acknowledged.chosen(before, failover, logs, &mut self.lost_unpromised);
            self.expect(result);
            self.one_primary.chosen(failover, logs);
        }
        if after.rule.primary != before.rule.primary || after.rule.epoch != before.rule.epoch {
            let log = logs[after.rule.primary.0 as usize - 1];
            let result = self.acknowledged.held_by(log, &format!("the rule of epoch {}", after.rule.epoch));
            self.expect(result);
            let result = settled::first_record(after, logs);
            self.expect(result);
        }
        if let Some(last) = after.failovers.last()
            && before.failovers.last() != Some(last)
        {
            match last.phase {
                FailoverPhase::Done => {
                    self.failovers += 1;
                    self.switchovers += u64::from(matches!(last.kind, FailoverKind::Switchover { .. }));
                }
                FailoverPhase::Undone => self.undone += 1,
                FailoverPhase::Superseded => self.superseded += 1,
                FailoverPhase::Drain | FailoverPhase::Recruit | FailoverPhase::Promote => {}
            }
            // Between attempts the clock of the write gap goes on: it is the client's view.
            let _ = now;
        }
    }

    /// At the end: the log of the node that serves holds everything acknowledged.
    pub fn end(&mut self, log: &[Entry]) {
        let result = self.acknowledged.held_by(log, "the end of the run");
        self.expect(result);
    }
}
