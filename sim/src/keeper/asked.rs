//! What people ask of a keeper, as `cluster::decide` answers them.

use crate::server::Running;
use crate::world::{World, id, index};
use cluster::failover::{Policy, WINNER_STALLED_AFTER, procedure, switchover};
use model::ClusterState;
use model::failover::{FailoverKind, FailoverPhase};

impl World {
    /// A person asks for a switchover, through any keeper that answers.
    pub(crate) fn ask_switchover(&mut self, node: usize, to: Option<usize>) {
        if !self.nodes[node].lives(self.now) || self.nodes[node].keeper.is_none() {
            return;
        }
        let Some((version, state)) = self.keeper(node).state.clone() else { return };
        let to = to.map(id).filter(|to| *to != state.rule.primary && !state.members[to].witness);
        let primary = &self.nodes[index(state.rule.primary)];
        let now = primary.server.senders.iter().map(|(node, sender)| {
            let behind = model::LagBytes((primary.disk.flushed - sender.flushed.min(primary.disk.flushed)) as u64);
            let streaming = sender.streaming && self.now < sender.heard_at + 1_000;
            (*node, switchover::ReplicaNow { streaming, behind: Some(behind), paused: false })
        });
        let policy = Policy::of(&state, self.wall(node));
        let serves = primary.server.running == Running::Primary;
        let table = switchover::preflight(&state, to, &now.collect(), serves, &policy);
        if table.refused.is_some() {
            return;
        }
        let (after, kind) = (procedure::epoch_of(&state), FailoverKind::Switchover { to });
        let next = procedure::claim(&state, after, kind, "asked for", "operator", self.wall(node));
        if let Some(next) = next {
            self.submit(node, version, next, "switchover begins");
        }
    }

    /// A person changes the commit mode.
    pub(crate) fn ask_mode(&mut self, node: usize, mode: model::CommitMode) {
        if !self.nodes[node].lives(self.now) || self.nodes[node].keeper.is_none() {
            return;
        }
        let Some((version, state)) = self.keeper(node).state.clone() else { return };
        let mut next = ClusterState::clone(&state);
        next.settings.commit_mode = mode;
        self.submit(node, version, next, "the commit mode changes");
    }

    /// A person has a node made the primary though the present one does not help, and accepts a loss.
    pub(crate) fn ask_forced(&mut self, node: usize, to: Option<usize>, loss_bytes_max: u64) {
        if !self.nodes[node].lives(self.now) || self.nodes[node].keeper.is_none() {
            return;
        }
        let local = self.nodes[node].local(self.now);
        let keeper = self.keeper(node);
        let Some((version, state)) = keeper.state.clone() else { return };
        let age = local.since(keeper.phase_since);
        let heard = keeper.heard.get(&state.rule.primary).filter(|(at, _)| local.since(*at).0 < 700);
        let serves = heard.is_some_and(|(_, heartbeat)| heartbeat.serving.is_some())
            || (state.rule.primary == id(node) && self.nodes[node].server.running == Running::Primary);
        // As `decide::primacy::failover`: not while the primary serves, nor while an attempt may still succeed by itself.
        let refused = match &state.failover {
            None => serves,
            Some(running) => match running.phase {
                FailoverPhase::Recruit => running.kind != FailoverKind::Automatic,
                FailoverPhase::Promote => age < WINNER_STALLED_AFTER,
                FailoverPhase::Drain | FailoverPhase::Done | FailoverPhase::Undone | FailoverPhase::Superseded => true,
            },
        };
        let to = to.map(id);
        if refused || to.is_some_and(|to| to == state.rule.primary || state.members[&to].witness) {
            return;
        }
        let (after, kind) = (procedure::epoch_of(&state), FailoverKind::Forced { to, loss_bytes_max });
        if let Some(next) = procedure::claim(&state, after, kind, "forced", "operator", self.wall(node)) {
            self.submit(node, version, next, "a failover is forced");
        }
    }
}
