//! What people ask of a keeper, as `cluster::decide` answers them.

use crate::server::Running;
use crate::world::{World, id, index};
use cluster::admission;
use cluster::failover::{Policy, WINNER_STALLED_AFTER, lease, procedure, switchover};
use model::failover::{FailoverKind, FailoverPhase};
use model::state::Stage;
use model::{ClusterState, Member};
use std::rc::Rc;

impl World {
    /// A person asks for a switchover, through any keeper that answers.
    pub(crate) fn ask_switchover(&mut self, node: usize, to: Option<usize>) {
        if !self.nodes[node].lives(self.now) || self.nodes[node].keeper.is_none() {
            return;
        }
        let Some((version, state)) = self.keeper(node).state.clone() else { return };
        let to = to.map(id).filter(|to| *to != state.rule.primary);
        let to = to.filter(|to| state.members.get(to).is_some_and(|member| !member.witness));
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
        if refused
            || to.is_some_and(|to| to == state.rule.primary || state.members.get(&to).is_none_or(|it| it.witness))
        {
            return;
        }
        let (after, kind) = (procedure::epoch_of(&state), FailoverKind::Forced { to, loss_bytes_max });
        if let Some(next) = procedure::claim(&state, after, kind, "forced", "operator", self.wall(node)) {
            self.submit(node, version, next, "a failover is forced");
        }
    }
    /// A person has whichever node is spare join.
    pub(crate) fn ask_join(&mut self, node: usize) {
        let Some((version, state)) = self.answering(node) else { return };
        let spare = self.nodes.iter().find_map(|it| it.spare.clone().filter(|it| !state.members.contains_key(&it.id)));
        let Some(member) = spare else { return };
        let mut next = ClusterState::clone(&state);
        next.members.insert(member.id, Member { stage: Stage::Joining, ..member });
        self.submit(node, version, next, "a node joins");
    }

    /// A person has a node removed, as `decide::nodes::remove`: not the primary, and never so that too few are left.
    pub(crate) fn ask_leave(&mut self, node: usize, other: usize) {
        let Some((version, state)) = self.answering(node) else { return };
        let active = |member: &&Member| member.stage == Stage::Active;
        let data = state.members.values().filter(active).filter(|member| !member.witness).count();
        let few = state.members.values().filter(active).count() <= 2 || data <= 2;
        let Some(goes) = state.members.get(&id(other)).filter(active) else { return };
        let mut next = ClusterState::clone(&state);
        next.members.entry(id(other)).and_modify(|member| member.stage = Stage::Leaving);
        let allowed = cluster::decide::removable(&state, &next, &goes.name).is_ok();
        if few || !allowed || state.rule.primary == id(other) {
            return;
        }
        self.submit(node, version, next, "a node is to leave");
    }

    fn answering(&mut self, node: usize) -> Option<(u64, Rc<ClusterState>)> {
        let lives = self.nodes[node].lives(self.now) && self.nodes[node].keeper.is_some();
        if lives { self.keeper(node).state.clone() } else { None }
    }

    /// What membership asks of this node's keeper apart from who is primary. `true`: nothing else is to be done.
    pub(super) fn keep_membership(&mut self, node: usize, version: u64, state: &ClusterState) -> bool {
        let me = id(node);
        let writing = self.keeper(node).write_since.is_some();
        match state.members.get(&me).map(|member| &member.stage) {
            None | Some(Stage::Leaving) => {
                if self.nodes[node].server.running != Running::No {
                    self.kill_server(node);
                }
                return true;
            }
            Some(Stage::Joining) if !writing && self.may_be_active(node, version, state) => {
                if let Some(next) = admission::complete(state, me, self.wall(node)) {
                    self.submit(node, version, next, "the node has joined");
                }
            }
            Some(_) => {}
        }
        let leaving = state.members.values().find(|member| member.stage == Stage::Leaving);
        if let Some(member) = leaving.filter(|_| state.rule.primary == me && state.failover.is_none() && !writing)
            && self.nodes[index(member.id)].server.running == Running::No
            && let Some(next) = admission::finish_removal(state, member.id, self.wall(node))
        {
            self.submit(node, version, next, "a node has left");
        }
        false
    }

    fn may_be_active(&self, node: usize, version: u64, state: &ClusterState) -> bool {
        let it = &self.nodes[node];
        let follows = it.server.running == Running::Replica && it.server.receiver.is_some();
        let Some(keeper) = it.keeper.as_ref().filter(|_| follows && it.disk.whole) else { return false };
        let local = it.local(self.now);
        let word = keeper.heard.get(&procedure::leader_of(state)).filter(|(at, _)| local.since(*at).0 < 700);
        let newcomer = lease::Newcomer {
            leases_matter: state.rule.acks == 0 || state.failover.is_some(),
            listed: word.is_some_and(|(_, word)| word.lease_from.contains(&id(node))),
            holder_is_up_to_date: word.is_some_and(|(_, word)| word.version >= version),
        };
        lease::may_join_electors(&newcomer)
    }
}
