//! A keeper: asks the pure decisions what to do and does it to its model server, slowly, and possibly killed in between.

mod act;
mod asked;
mod look;

use crate::mutant::Mutant;
use crate::server::Running;
use crate::world::{Event, TICK, World, id};
use cluster::failover::detect::{OwnWord, Said};
use cluster::failover::lease::{self, Asked, Grantor, Holder};
use cluster::failover::ledger::Ledger;
use cluster::failover::order::{self, Serving};
use cluster::failover::procedure::leader_of;
use cluster::failover::recruit::Report;
use cluster::sync::ServerSync;
use model::failover::{FailoverKind, FailoverPhase};
use model::state::Stage;
use model::{ClusterState, Epoch, Lsn, Moment, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

pub(crate) use act::{Op, Write};

/// The lease's times in the simulated world.
pub(crate) const LEASE: lease::Timing = lease::LAN;
/// A heartbeat is sent this often.
const HEARTBEAT: u64 = model::limits::HEARTBEAT_INTERVAL.0;
/// A write that was not answered by then may be tried again.
const WRITE_PATIENCE: u64 = 600;

/// What a keeper tells the others.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    from: usize,
    report: Report,
    /// Under which epoch its server follows, or may.
    follows: Option<Epoch>,
    serving: Option<Serving>,
    position: Option<Lsn>,
    own_word: Option<OwnWord>,
    said: Option<(NodeId, Said)>,
    lease: Option<(Epoch, Moment)>,
    /// Which process of the keeper speaks, and up to when it counts no grant any more.
    run: u64,
    lease_given_up: Option<Moment>,
    /// Joining keepers whose grants it has, and the version of the state that it knows.
    lease_from: BTreeSet<NodeId>,
    version: u64,
}

/// What a keeper process has in memory.
#[derive(Clone, Debug)]
pub struct Keeper {
    state: Option<(u64, Rc<ClusterState>)>,
    ledger: Ledger,
    heard: BTreeMap<NodeId, (Moment, Rc<Heartbeat>)>,
    started_at: Moment,
    holder: Holder,
    grantor: Grantor,
    floors: BTreeMap<NodeId, Lsn>,
    last_streaming: BTreeMap<NodeId, Moment>,
    phase: Option<(Epoch, FailoverPhase)>,
    phase_since: Moment,
    busy: bool,
    write_since: Option<Moment>,
    polled_at: Moment,
    failovers: Vec<Moment>,
    dead_since: Option<Moment>,
    ran: bool,
    hand_over_until: Option<Moment>,
    /// The joining keepers that it, or the process before it, may have told others about while it needed no lease.
    listed: BTreeSet<NodeId>,
    primary_was_at: Option<Lsn>,
    /// No write of the rule is on its way: see `cluster::sync`.
    rule_is_known: bool,
    /// The version of the rule that ends the doubt.
    barrier: Option<u64>,
}

impl Keeper {
    /// A process that just started, with what it read from its disk.
    pub fn new(now: Moment, ledger: Ledger, mutant: Mutant) -> Keeper {
        let mut grantor = Grantor::new(now);
        if mutant == Mutant::ForgetfulGrantor {
            grantor.forget_silence();
        }
        Keeper {
            state: None,
            ledger,
            heard: BTreeMap::new(),
            started_at: now,
            holder: Holder::default(),
            grantor,
            floors: BTreeMap::new(),
            last_streaming: BTreeMap::new(),
            phase: None,
            phase_since: now,
            busy: false,
            write_since: None,
            polled_at: now,
            failovers: Vec::new(),
            dead_since: None,
            ran: false,
            hand_over_until: None,
            listed: BTreeSet::new(),
            primary_was_at: None,
            rule_is_known: false,
            barrier: None,
        }
    }
}

impl World {
    /// The keeper that this event is for, if its process still lives; a frozen one gets it when it thaws.
    fn awake(&mut self, node: usize, incarnation: Option<u64>, again: impl FnOnce() -> Event) -> bool {
        let it = &self.nodes[node];
        if !it.up || it.keeper.is_none() || incarnation.is_some_and(|incarnation| incarnation != it.incarnation) {
            return false;
        }
        let until = it.frozen_until.max(it.keeper_frozen_until);
        if self.now < until {
            self.after(until - self.now, again());
            return false;
        }
        true
    }

    fn keeper(&mut self, node: usize) -> &mut Keeper {
        self.nodes[node].keeper.as_mut().expect("the caller looked")
    }

    pub(crate) fn heartbeat(&mut self, node: usize, incarnation: u64) {
        if !self.awake(node, Some(incarnation), || Event::Heartbeat(node, incarnation)) {
            return;
        }
        self.after(HEARTBEAT, Event::Heartbeat(node, incarnation));
        let heartbeat = Rc::new(self.make_heartbeat(node));
        self.lease_word(node, &heartbeat);
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.send(node, other, Event::Heard(other, heartbeat.clone()));
        }
    }

    pub(crate) fn heard(&mut self, node: usize, heartbeat: &Rc<Heartbeat>) {
        if !self.awake(node, None, || Event::Heard(node, heartbeat.clone())) {
            return;
        }
        let local = self.nodes[node].local(self.now);
        let keeper = self.keeper(node);
        // Strangers, and those that are gone, are not listened to.
        let known = keeper.state.as_ref().is_none_or(|(_, state)| state.members.contains_key(&id(heartbeat.from)));
        if !known {
            return;
        }
        keeper.heard.insert(id(heartbeat.from), (local, heartbeat.clone()));
        let primary = keeper.state.as_ref().map(|(_, state)| state.rule.primary);
        if primary == Some(id(heartbeat.from)) && heartbeat.serving.is_some() {
            keeper.primary_was_at = keeper.primary_was_at.max(heartbeat.position);
        }
        self.lease_word(node, heartbeat);
    }

    /// What a keeper, or this one itself, says of the lease.
    fn lease_word(&mut self, node: usize, heartbeat: &Heartbeat) {
        let from = heartbeat.from;
        if let Some(at) = heartbeat.lease_given_up {
            let at = if self.mutant == Mutant::LateWordsTakeBack { Moment(u64::MAX) } else { at };
            self.keeper(node).grantor.given_up(id(from), Asked { run: heartbeat.run, at });
        }
        if let Some((epoch, sent_at)) = heartbeat.lease {
            self.ask_lease(node, from, epoch, heartbeat.run, sent_at);
        }
    }

    fn ask_lease(&mut self, node: usize, holder: usize, epoch: Epoch, run: u64, sent_at: Moment) {
        let local = self.nodes[node].local(self.now);
        let unfaithful = self.mutant == Mutant::GrantAfterPromise;
        let late_counts = self.mutant == Mutant::LateRequestsReplace;
        let keeper = self.keeper(node);
        let promised = if unfaithful { Epoch(0) } else { keeper.ledger.promised };
        if keeper.grantor.may_grant(id(holder), epoch, promised, local, &LEASE).is_ok() {
            if late_counts {
                // What it asked for before is forgotten.
                keeper.grantor.given_up(id(holder), Asked { run, at: Moment(u64::MAX) });
            }
            keeper.grantor.grant(id(holder), epoch, Asked { run, at: sent_at }, local, &LEASE);
            self.send(node, holder, Event::Granted(holder, node, epoch, sent_at));
        }
    }

    pub(crate) fn granted(&mut self, node: usize, by: usize, epoch: Epoch, sent_at: Moment) {
        if !self.awake(node, None, || Event::Granted(node, by, epoch, sent_at)) {
            return;
        }
        let local = self.nodes[node].local(self.now);
        let counted = if self.mutant == Mutant::LeaseFromReply { local } else { sent_at };
        self.keeper(node).holder.granted(epoch, id(by), counted);
    }

    pub(crate) fn learn(&mut self, node: usize, version: u64, state: &Rc<ClusterState>) {
        if !self.awake(node, None, || Event::Learn(node, version, state.clone())) {
            return;
        }
        let local = self.nodes[node].local(self.now);
        let unsure = self.mutant != Mutant::ForgetfulHolder;
        let keeper = self.keeper(node);
        if keeper.state.as_ref().is_some_and(|(known, _)| *known >= version) {
            return;
        }
        let phase = state.failover.as_ref().map(|it| (it.epoch, it.phase));
        if keeper.phase != phase {
            keeper.phase = phase;
            keeper.phase_since = local;
        }
        if let Some((_, before)) = &keeper.state {
            if before.rule.primary != state.rule.primary {
                keeper.primary_was_at = None;
            }
            let known = before.failovers.last().map(|it| it.epoch);
            let news = state.failovers.iter().filter(|it| Some(it.epoch) > known);
            let automatic = news.filter(|it| it.phase == FailoverPhase::Done && it.kind == FailoverKind::Automatic);
            let counted = automatic.filter(|it| cluster::failover::budget::counts(&it.because));
            keeper.failovers.extend(counted.map(|_| local));
        }
        let joining = state.members.values().filter(|member| member.stage == Stage::Joining).map(|member| member.id);
        let joining: BTreeSet<NodeId> = joining.collect();
        keeper.listed = match (&keeper.state, unsure) {
            (None, true) => joining,
            _ => &keeper.listed & &joining,
        };
        // Seen in force: whatever else was on its way was planned on an older version, and will be refused.
        if keeper.barrier == Some(state.rule.version) {
            keeper.barrier = None;
            keeper.rule_is_known = true;
        }
        keeper.state = Some((version, state.clone()));
        self.nodes[node].known = Some((version, state.clone()));
    }

    pub(crate) fn written(&mut self, node: usize, incarnation: u64) {
        if self.awake(node, Some(incarnation), || Event::Written(node, incarnation)) {
            self.keeper(node).write_since = None;
        }
    }

    pub(crate) fn keeper_tick(&mut self, node: usize, incarnation: u64) {
        if !self.awake(node, Some(incarnation), || Event::KeeperTick(node, incarnation)) {
            return;
        }
        self.after(TICK, Event::KeeperTick(node, incarnation));
        let local = self.nodes[node].local(self.now);
        self.poll(node, local);
        let keeper = self.keeper(node);
        if keeper.write_since.is_some_and(|since| local.since(since).0 > WRITE_PATIENCE) {
            keeper.write_since = None;
        }
        let Some((version, state)) = keeper.state.clone() else { return };
        self.notice(node, local, &state);
        self.keep_slots(node, local, &state);
        if self.keeper(node).busy || self.keep_membership(node, version, &state) {
            return;
        }
        if state.rule.primary == id(node) && state.failover.is_none() {
            let known = self.keeper(node).rule_is_known;
            let it = &mut self.nodes[node];
            it.unpromised = state.rule.acks == 0 || (it.unpromised && !known);
        }
        let (own, others) = self.look(node, local, &state);
        let lied = self.lied_state(&state);
        let keeper = self.keeper(node);
        let view = cluster::failover::order::View {
            me: id(node),
            state: &lied,
            own: &own,
            others: &others,
            phase_age: local.since(keeper.phase_since),
            policy: &cluster::failover::Policy::of(&state, self.wall(node)),
        };
        match cluster::failover::order::next(&view) {
            Some(action) => self.act(node, version, &state, action),
            None => self.keep_synchronous(node, local, version, &state, own.lease),
        }
    }

    /// Reads the state anew now and then: an announcement may have been lost.
    fn poll(&mut self, node: usize, local: Moment) {
        if local.since(self.keeper(node).polled_at).0 < 250 {
            return;
        }
        self.keeper(node).polled_at = local;
        if self.reaches_store(node) {
            let delay = self.dice.between(1, 3 + self.network.delay_max);
            self.after(delay, Event::Learn(node, self.store.version, self.store.state.clone()));
        }
    }

    /// Facts that pass: a crash of the server, a promotion that was done, a primacy confirmed under a new epoch.
    fn notice(&mut self, node: usize, local: Moment, state: &ClusterState) {
        let me = id(node);
        let recovery = self.dice.between(50, 2_500);
        let wall = self.wall(node);
        let it = &mut self.nodes[node];
        let runs = it.server.running == Running::Primary;
        let Some(keeper) = it.keeper.as_mut() else { return };
        if runs && keeper.ledger.promoting.is_some() {
            keeper.ledger = keeper.ledger.promoted(it.disk.timeline());
            it.disk.ledger = keeper.ledger.clone();
        }
        if runs
            && state.failover.is_none()
            && state.rule.primary == me
            && it.disk.served < state.rule.epoch
            && keeper.ledger.promised <= state.rule.epoch
        {
            it.disk.served = state.rule.epoch;
        }
        if keeper.ran && it.server.running == Running::No && leader_of(state) == me && state.failover.is_none() {
            let alive = keeper.heard.iter().filter(|(_, (at, _))| local.since(*at).0 < 500).map(|(node, _)| *node);
            let alive: BTreeSet<NodeId> = alive.chain([me]).collect();
            let policy = cluster::failover::Policy::of(state, wall);
            let (can, expected) = (order::replaceable(state, &alive, &policy), policy.failover_expected);
            let verdict = cluster::failover::detect::after_crash(model::Millis(recovery), expected, 1, can);
            if verdict == cluster::failover::detect::Crash::HandOver {
                keeper.hand_over_until = Some(local.plus(cluster::failover::HAND_OVER_WAIT));
            }
        }
        keeper.ran = runs;
        if keeper.hand_over_until.is_some_and(|until| local >= until) {
            keeper.hand_over_until = None;
        }
    }

    /// The rule and the list of synchronous replicas, as `cluster::sync` has them.
    fn keep_synchronous(&mut self, node: usize, local: Moment, version: u64, state: &Rc<ClusterState>, lease: bool) {
        let me = id(node);
        let frozen = state.failover.is_some() && self.mutant != Mutant::RuleNotFrozen;
        let it = &self.nodes[node];
        let promised = it.keeper.as_ref().map(|keeper| keeper.ledger.promised).unwrap_or_default();
        if it.server.running != Running::Primary
            || it.server.draining
            || state.rule.primary != me
            || frozen
            || promised > state.rule.epoch
            || it.disk.served != state.rule.epoch
        {
            return;
        }
        let it = &self.nodes[node];
        if it.server.sync != it.disk.sync && self.mutant != Mutant::ListNotSettled {
            // What the keeper before this one wrote last and nobody took up would come into force at a restart of the
            // server. A keeper that starts writes what is in force anew.
            let ServerSync { acks, list, .. } = it.server.sync.clone();
            return self.set_synchronous(node, acks, list);
        }
        let Some(view) = self.sync_facts(node, local, state) else { return };
        let view = cluster::sync::SyncView {
            rule: &state.rule,
            server: self.nodes[node].server.sync.clone(),
            primary_position: Lsn(self.nodes[node].disk.flushed as u64),
            voters: view,
            settings: &state.settings,
            primary_site: state.members[&me].site.clone(),
            data_nodes: cluster::decide::data_nodes(state),
            floor: self.keeper(node).floors.clone(),
        };
        self.sync_step(node, version, state, lease, cluster::sync::next_step(&view));
    }

    /// What the mutant makes of the state before the decisions see it.
    fn lied_state(&self, state: &Rc<ClusterState>) -> Rc<ClusterState> {
        if !matches!(
            self.mutant,
            Mutant::RecruitTooFew | Mutant::NonVoterWins | Mutant::ForgetUnsettled | Mutant::DescentTooNear
        ) {
            return state.clone();
        }
        let mut lied = ClusterState::clone(state);
        match self.mutant {
            Mutant::RecruitTooFew => {
                lied.rule.recruit_quorum = lied.rule.recruit_quorum.saturating_sub(1).max(1);
                for it in lied.failover.iter_mut().flat_map(|it| it.unsettled.iter_mut()) {
                    it.rule.recruit_quorum = it.rule.recruit_quorum.saturating_sub(1).max(1);
                }
            }
            Mutant::NonVoterWins => {
                let all = lied.members.values().filter(|it| !it.witness && it.id != lied.rule.primary);
                lied.rule.voters = all.map(|it| it.id).collect();
            }
            Mutant::ForgetUnsettled => {
                if let Some(failover) = &mut lied.failover {
                    failover.unsettled.clear();
                }
            }
            Mutant::DescentTooNear => {
                let recruits = lied.failover.as_ref().is_some_and(|it| it.phase == FailoverPhase::Recruit);
                lied.rule.epoch.0 -= u64::from(recruits);
            }
            _ => {}
        }
        Rc::new(lied)
    }
}
