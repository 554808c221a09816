//! What a keeper does. Each action takes its time, and what it changes on disk it changes at once or at its end, as the
//! real one does: a keeper killed in between leaves it half done.

use crate::mutant::Mutant;
use crate::server::Running;
use crate::world::{Event, World, id, index};
use cluster::failover::ledger::{Ledger, Refused};
use cluster::failover::order::{Action, Serving};
use cluster::failover::procedure;
use cluster::sync::{ServerSync, SyncStep};
use model::{ClusterState, Epoch, NodeId, WallTime};
use std::collections::BTreeSet;
use std::rc::Rc;

/// A state to be written, with the words for the story.
#[derive(Clone, Debug)]
pub struct Write {
    pub(crate) state: ClusterState,
    pub(crate) what: &'static str,
}

/// The end of an action.
#[derive(Clone, Debug)]
pub enum Op {
    /// The ledger is fsynced.
    Ledger(Ledger),
    /// The receiver is gone, if the server is still this one.
    Detached(u64),
    /// All processes of the server are gone.
    Killed,
    /// A stop in order has gone on since.
    Stopping(u64),
    /// The server has been reloaded.
    Reloaded(u64),
    /// The ledger is fsynced; now the server is told.
    Promote(Ledger, Epoch),
    /// The ledger is fsynced; now the server follows.
    Attach(Ledger, NodeId, Epoch),
    /// The rewind has ended.
    Rewound(usize, usize),
    /// The copy has ended.
    Copied(usize),
    /// Crash recovery has run.
    Recovered,
    /// Nothing more.
    Rest,
}

impl World {
    /// Civil time, as this node has it.
    pub(super) fn wall(&self, node: usize) -> WallTime {
        WallTime(self.now as i64 + self.nodes[node].wall_offset)
    }

    pub(super) fn submit(&mut self, node: usize, version: u64, state: ClusterState, what: &'static str) {
        let local = self.nodes[node].local(self.now);
        self.keeper(node).write_since = Some(local);
        let delay = self.dice.between(1, 4 + self.network.delay_max + self.nodes[node].fsync_max);
        let incarnation = self.nodes[node].incarnation;
        self.after(delay, Event::Write(node, incarnation, version, Box::new(Write { state, what })));
    }

    fn start(&mut self, node: usize, delay: u64, op: Op) {
        self.keeper(node).busy = true;
        let incarnation = self.nodes[node].incarnation;
        self.after(delay, Event::Done(node, incarnation, Box::new(op)));
    }

    fn fsync(&mut self, node: usize) -> u64 {
        self.dice.between(1, 1 + self.nodes[node].fsync_max)
    }

    pub(super) fn act(&mut self, node: usize, version: u64, state: &Rc<ClusterState>, action: Action) {
        let Some(action) = self.mutated(node, state, action) else { return };
        if action.is_shared() {
            return self.act_on_state(node, version, state, action);
        }
        self.say(|| format!("n{}: {}", node + 1, short(&action)));
        let ledger = self.keeper(node).ledger.clone();
        let incarnation = self.nodes[node].server.incarnation;
        match action {
            Action::Promise(epoch) => {
                if let Some(ledger) = ledger.promise(epoch) {
                    let delay = self.fsync(node);
                    self.start(node, delay, Op::Ledger(ledger));
                }
            }
            Action::Detach => {
                self.nodes[node].disk.follows = None;
                // Mostly quick; while replay is blocked the receiver must be signalled, and looked for again.
                let slow = self.dice.percent(20);
                let delay = if slow { self.dice.between(50, 400) } else { self.dice.between(1, 40) };
                self.start(node, delay, Op::Detached(incarnation));
            }
            Action::Stop { kill: true, .. } => {
                let delay = self.dice.between(1, 50);
                self.start(node, delay, Op::Killed);
            }
            Action::Stop { kill: false, .. } => {
                self.nodes[node].server.draining = true;
                let since = self.now;
                self.start(node, 20, Op::Stopping(since));
            }
            Action::StartDetached => {
                let it = &mut self.nodes[node];
                it.disk.standby = true;
                it.disk.follows = None;
                // An order that came too late for the process before this one.
                it.armed = false;
                let delay = self.dice.between(20, 400);
                self.start_server(node, delay);
            }
            Action::StartPrimary => {
                let it = &mut self.nodes[node];
                it.disk.standby = false;
                it.disk.follows = None;
                it.disk.served = state.rule.epoch;
                it.armed = true;
                let delay = self.dice.between(20, 800);
                self.start_server(node, delay);
            }
            Action::SetSynchronous { acks, list } => self.set_synchronous(node, acks, list),
            Action::Promote(epoch) => {
                let ledger = ledger.promotion(epoch, self.nodes[node].disk.timeline());
                let delay = self.fsync(node);
                self.start(node, delay, Op::Promote(ledger, epoch));
            }
            Action::WriteRow(epoch) => {
                self.append(node, Some(epoch));
            }
            Action::Attach { node: upstream, serving } => self.attach(node, upstream, serving, &ledger),
            Action::Rewind { node: source, fork } => {
                self.kill_server(node);
                self.nodes[node].disk.whole = false;
                let delay = self.dice.between(50, 800);
                self.start(node, delay, Op::Rewound(index(source), fork.0 as usize));
            }
            Action::Rebuild { node: source } => self.rebuild(node, index(source)),
            Action::Recover => {
                let delay = self.dice.between(20, 300);
                self.start(node, delay, Op::Recovered);
            }
            Action::Claim { .. }
            | Action::Drained(_)
            | Action::Unplan(_)
            | Action::Choose(..)
            | Action::Settle { .. }
            | Action::Undo { .. } => unreachable!("writes were handled above"),
        }
    }

    /// What a mutant makes of an order.
    fn mutated(&self, node: usize, state: &ClusterState, action: Action) -> Option<Action> {
        let it = &self.nodes[node];
        let newest = procedure::epoch_of(state);
        let replaced = it.server.running == Running::Primary && newest > it.disk.served;
        match (self.mutant, &action) {
            (Mutant::PrimaryGoesOn, Action::Stop { .. }) if replaced => None,
            (Mutant::PromiseBeforeStop, Action::Stop { .. }) if replaced && it.disk.ledger.promised < newest => {
                Some(Action::Promise(newest))
            }
            _ => Some(action),
        }
    }

    fn rebuild(&mut self, node: usize, source: usize) {
        self.kill_server(node);
        self.nodes[node].disk.whole = false;
        let delay = self.dice.between(200, 1_500);
        self.start(node, delay, Op::Copied(source));
    }

    fn attach(&mut self, node: usize, upstream: NodeId, serving: Serving, ledger: &Ledger) {
        let holds = self.nodes[node].disk.timeline();
        match ledger.attach(serving.epoch, serving.lineage, serving.timeline, Some(holds)) {
            Ok(next) => {
                let delay = self.fsync(node);
                self.start(node, delay, Op::Attach(next, upstream, serving.epoch));
            }
            Err(Refused::SameNumber { .. }) => self.rebuild(node, index(upstream)),
            Err(Refused::Older { .. }) => {}
        }
    }

    pub(super) fn set_synchronous(&mut self, node: usize, acks: u32, list: BTreeSet<NodeId>) {
        self.nodes[node].disk.sync = ServerSync { acks, list, raw: String::new(), strangers: false };
        let incarnation = self.nodes[node].server.incarnation;
        let delay = self.dice.between(1, 30);
        self.start(node, delay, Op::Reloaded(incarnation));
    }

    fn act_on_state(&mut self, node: usize, version: u64, state: &Rc<ClusterState>, action: Action) {
        if self.keeper(node).write_since.is_some() {
            return;
        }
        let now = self.wall(node);
        let (next, what) = match action {
            Action::Claim { after, because } => {
                let kind = model::failover::FailoverKind::Automatic;
                (procedure::claim(state, after, kind, &because, "stemma", now), "an attempt begins")
            }
            Action::Drained(epoch) => (procedure::drained(state, epoch, now), "the old primary has stopped"),
            Action::Unplan(epoch) => (procedure::unplan(state, epoch, now), "the switchover becomes a failover"),
            Action::Choose(epoch, choice) => (procedure::choose(state, epoch, &choice, now), "a winner is chosen"),
            Action::Settle { epoch, rule, timeline } => {
                self.nodes[node].unpromised |= rule.acks == 0;
                (procedure::settle(state, epoch, &rule, timeline, now), "the next rule is in force")
            }
            Action::Undo { epoch, because } => {
                (procedure::undo(state, epoch, because, now), "the old primary is confirmed")
            }
            Action::Promise(_)
            | Action::Detach
            | Action::Stop { .. }
            | Action::StartDetached
            | Action::StartPrimary
            | Action::SetSynchronous { .. }
            | Action::Promote(_)
            | Action::WriteRow(_)
            | Action::Attach { .. }
            | Action::Rewind { .. }
            | Action::Rebuild { .. }
            | Action::Recover => unreachable!("only writes come here"),
        };
        if let Some(next) = next {
            self.submit(node, version, next, what);
        }
    }

    pub(super) fn sync_step(
        &mut self,
        node: usize,
        version: u64,
        state: &Rc<ClusterState>,
        lease: bool,
        step: SyncStep,
    ) {
        match step {
            SyncStep::NothingToDo => {}
            SyncStep::WaitConfirmed { node: replica, floor } => {
                if self.keeper(node).floors.insert(replica, floor).is_none() {
                    self.append(node, None);
                }
            }
            SyncStep::WriteServer { acks: 0, .. } if !lease => {}
            SyncStep::WriteServer { .. } if !self.keeper(node).rule_is_known => {
                if self.keeper(node).write_since.is_none()
                    && let Some(next) =
                        cluster::admission::write_rule(state, &cluster::sync::barrier(&state.rule), self.wall(node))
                {
                    self.submit(node, version, next, "the rule is written anew");
                    self.keeper(node).barrier = Some(state.rule.version + 1);
                }
            }
            SyncStep::WriteServer { acks, list } => {
                self.say(|| format!("n{}: the server waits for {acks} of {list:?}", node + 1));
                self.set_synchronous(node, acks, list);
            }
            SyncStep::WriteRule(rule) if rule.acks == 0 && !lease => {}
            SyncStep::WriteRule(rule) => {
                if self.keeper(node).write_since.is_some() {
                    return;
                }
                self.nodes[node].unpromised |= rule.acks == 0;
                let mut open = ClusterState::clone(state);
                let attempt = open.failover.take();
                let state = if self.mutant == Mutant::RuleNotFrozen { &open } else { &**state };
                if let Some(mut next) = cluster::admission::write_rule(state, &rule, self.wall(node)) {
                    if self.mutant == Mutant::RuleNotFrozen {
                        next.failover = attempt;
                    }
                    self.submit(node, version, next, "the rule changes");
                    self.keeper(node).rule_is_known = false;
                    self.keeper(node).barrier = Some(rule.version);
                }
            }
        }
    }

    pub(crate) fn done(&mut self, node: usize, incarnation: u64, op: Op) {
        let again = op.clone();
        if !self.awake(node, Some(incarnation), || Event::Done(node, incarnation, Box::new(again))) {
            return;
        }
        self.keeper(node).busy = false;
        match op {
            Op::Rest => {}
            Op::Ledger(ledger) => self.save(node, ledger),
            Op::Detached(server) => {
                let it = &mut self.nodes[node];
                if it.server.incarnation == server {
                    it.server.receiver = None;
                }
            }
            Op::Killed => self.kill_server(node),
            Op::Stopping(since) => self.stopping(node, since),
            Op::Reloaded(server) => {
                let it = &mut self.nodes[node];
                if it.server.incarnation == server {
                    it.server.sync = it.disk.sync.clone();
                }
                self.keeper(node).floors.clear();
            }
            Op::Promote(ledger, epoch) => {
                self.save(node, ledger);
                self.nodes[node].armed = true;
                let incarnation = self.nodes[node].server.incarnation;
                let delay = self.dice.between(15, 150);
                self.after(delay, Event::Promoted(node, incarnation, epoch));
                self.start(node, delay + 1, Op::Rest);
            }
            Op::Attach(ledger, upstream, epoch) => {
                self.save(node, ledger);
                let it = &mut self.nodes[node];
                it.disk.follows = Some((upstream, epoch));
                it.disk.standby = true;
                if it.server.running == Running::No {
                    it.armed = false;
                    let delay = self.dice.between(20, 300);
                    self.start_server(node, delay);
                }
            }
            Op::Rewound(source, fork) => {
                if self.source_serves(node, source) {
                    let mut ledger = self.keeper(node).ledger.clone();
                    ledger.placed = ledger.placed.max(self.nodes[source].disk.served);
                    self.save(node, ledger);
                    let it = &mut self.nodes[node];
                    it.disk.log.truncate(fork);
                    it.disk.flushed = it.disk.log.len();
                    self.data_in_place(node);
                }
            }
            Op::Copied(source) => self.copied(node, source),
            Op::Recovered => self.nodes[node].disk.in_order = true,
        }
    }

    fn save(&mut self, node: usize, ledger: Ledger) {
        self.checks.promised(id(node), ledger.promised);
        if self.mutant == Mutant::PromiseNotSynced {
            // What is fsynced for other reasons is there; the promise is not.
            let promised = self.nodes[node].disk.ledger.promised;
            self.nodes[node].disk.ledger = Ledger { promised, ..ledger.clone() };
        } else {
            self.nodes[node].disk.ledger = ledger.clone();
        }
        self.keeper(node).ledger = ledger;
    }

    /// A stop in order: walsenders send the rest; then the server ends.
    fn stopping(&mut self, node: usize, since: u64) {
        let it = &self.nodes[node];
        let end = it.disk.log.len();
        let behind = it.disk.flushed < end
            || it.server.senders.values().any(|it| self.now < it.heard_at + 200 && it.flushed < end);
        if it.server.running == Running::Primary && behind && self.now < since + 1_500 {
            self.start(node, 20, Op::Stopping(since));
            return;
        }
        let flushed = self.nodes[node].disk.flushed == end;
        self.kill_server(node);
        self.nodes[node].disk.in_order = flushed;
    }

    fn source_serves(&self, node: usize, source: usize) -> bool {
        let path = self.network.reaches(node, source) && self.network.reaches(source, node);
        path && self.nodes[source].serves(self.now) && self.nodes[source].server.running == Running::Primary
    }

    fn copied(&mut self, node: usize, source: usize) {
        let promised = self.keeper(node).ledger.promised;
        if !self.source_serves(node, source) || self.nodes[source].disk.served < promised {
            return;
        }
        let from = &self.nodes[source];
        let log = from.disk.log[..from.disk.flushed].to_vec();
        let timeline = log.last().map_or(0, |entry| entry.timeline);
        let lineage = from.keeper.as_ref().and_then(|keeper| keeper.ledger.lineage(model::Timeline(timeline)));
        let Some(lineage) = lineage else { return };
        let served = from.disk.served;
        let mut ledger = self.keeper(node).ledger.replaced(served);
        ledger.begun.insert(timeline, lineage);
        self.save(node, ledger);
        self.nodes[node].disk.flushed = log.len();
        self.nodes[node].disk.log = log;
        self.data_in_place(node);
    }

    fn data_in_place(&mut self, node: usize) {
        let disk = &mut self.nodes[node].disk;
        disk.whole = true;
        disk.in_order = true;
        disk.standby = true;
        disk.follows = None;
        disk.slots.clear();
    }
}

fn short(action: &Action) -> String {
    match action {
        Action::Attach { node, serving } => format!("follows n{node} of epoch {}", serving.epoch),
        Action::Stop { because, kill } => format!("stops the server (kill {kill}): {because}"),
        Action::Promise(epoch) => format!("promises epoch {epoch}"),
        other => format!("{other:?}"),
    }
}
