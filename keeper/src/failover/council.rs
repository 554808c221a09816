//! What the keepers say to each other about who is primary: this keeper's own word, the words heard, the leases, and
//! from all of that the facts that `cluster::failover` decides by. Touches neither disk nor database.

mod deadline;

use super::routers::Routers;
use super::word::Word;
use crate::clock;
use cluster::failover::detect::{self, Evidence, OwnWord, Said, Stream};
use cluster::failover::lease::{self, Asked, Grantor, Holder, HolderVerdict};
use cluster::failover::order::{Others, Serving};
use cluster::failover::recruit::{Report, electors};
use cluster::failover::{budget, procedure};
use model::failover::{FailoverKind, FailoverPhase, Recruited};
use model::observe::ServerFacts;
use model::{ClusterState, Epoch, Lsn, Millis, Moment, NodeId, NodeSample, Timeline};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

pub(crate) use deadline::ServerRight;

/// The lease's times.
pub(crate) const LEASE: lease::Timing = lease::LAN;
/// A leader is quiet after this long: more than a few of its heartbeats are missing.
const QUIET: Millis = Millis(model::limits::HEARTBEAT_INTERVAL.0 * 3);

/// What the driver of this node says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnPart {
    /// The promise, as fsynced.
    pub promised: Epoch,
    /// What it holds, if it counts as recruited.
    pub recruited: Option<Recruited>,
    /// It takes writes.
    pub serving: Option<Serving>,
    /// Whom its server follows.
    pub follows: Option<(NodeId, Epoch)>,
    /// The timeline at the end of its data, and the epoch in which that was begun.
    pub lineage: Option<(Timeline, Epoch)>,
    /// Its server ought to take writes, and is like this.
    pub own: Option<OwnWord>,
    /// The epoch under which it serves, would serve, or is about to be promoted: whose lease it asks for.
    pub lease_for: Option<Epoch>,
    /// Its server is gone with all its processes, and it needs no lease until it asks anew.
    pub gives_up_lease: bool,
    /// Its server may acknowledge commits that nobody else holds, which only the lease of this epoch allows.
    pub guarded: Option<Epoch>,
}

/// See the module.
pub(crate) struct Council {
    me: NodeId,
    /// Tells this process from those before it.
    run: u64,
    inner: Mutex<Inner>,
    /// A heartbeat is due at once.
    pub beat: Notify,
    /// A lease has to be enforced from now on.
    duty: Condvar,
    /// Routers that follow this node.
    pub routers: Arc<Routers>,
}

struct Inner {
    started_at: Moment,
    heard: BTreeMap<NodeId, (Moment, Word)>,
    own: OwnPart,
    leader: Option<NodeId>,
    state_version: u64,
    grantor: Grantor,
    holder: Holder,
    granted: BTreeMap<NodeId, (Epoch, u64)>,
    /// Whose grants count, and who is about to become one of them, by the newest state.
    electors: BTreeSet<NodeId>,
    joining: BTreeSet<NodeId>,
    /// In a group too small to need a lease: the joining keeper that was told that it may count; after a start, all that
    /// the process before this one may have told so.
    listed: BTreeSet<NodeId>,
    dead_since: Option<Moment>,
    failovers: Vec<Moment>,
    last_seen: Option<Epoch>,
    primary_was_at: Option<(NodeId, Lsn)>,
    phase: Option<(Epoch, FailoverPhase)>,
    phase_since: Moment,
    round_trip: Millis,
    leader_answers: Option<(NodeId, bool, Moment)>,
    called_for: Option<NodeId>,
}

/// What there is to do after a word was heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    /// Something that decisions depend on changed.
    pub matters: bool,
    /// The other knows a newer state.
    pub newer_state: bool,
}

impl Council {
    /// A keeper that starts.
    pub fn new(me: NodeId) -> Council {
        let now = clock::now();
        let inner = Inner {
            started_at: now,
            heard: BTreeMap::new(),
            own: OwnPart::default(),
            leader: None,
            state_version: 0,
            grantor: Grantor::new(now),
            holder: Holder::default(),
            granted: BTreeMap::new(),
            electors: BTreeSet::new(),
            joining: BTreeSet::new(),
            listed: BTreeSet::new(),
            dead_since: None,
            failovers: Vec::new(),
            last_seen: None,
            primary_was_at: None,
            phase: None,
            phase_since: now,
            round_trip: Millis(0),
            leader_answers: None,
            called_for: None,
        };
        let run = u64::from_be_bytes(crate::enrol::random::<8>().unwrap_or_default());
        Council {
            me,
            run,
            inner: Mutex::new(inner),
            beat: Notify::new(),
            duty: Condvar::new(),
            routers: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is complete in itself; a panic elsewhere cannot leave it half made.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says how this node is from now on; what changed is told at once.
    pub fn publish(&self, own: OwnPart) {
        let changed = {
            let mut inner = self.lock();
            let changed = inner.own != own;
            inner.own = own;
            if inner.own.gives_up_lease && changed {
                let now = clock::now();
                inner.holder.give_up(now);
                inner.take_back(self.me, Asked { run: self.run, at: now });
            }
            if inner.own.guarded.is_some() {
                self.duty.notify_all();
            }
            changed
        };
        if changed {
            self.beat.notify_one();
        }
    }

    /// The promise was raised: from here on nothing older is granted.
    pub fn promised(&self, epoch: Epoch) {
        let mut inner = self.lock();
        inner.own.promised = inner.own.promised.max(epoch);
    }

    /// Takes in what is known of the state.
    pub fn note_state(&self, version: u64, state: &ClusterState, now: Moment) {
        let newer = {
            let mut inner = self.lock();
            let newer = version > inner.state_version;
            if newer {
                inner.note(version, state, now);
            }
            newer
        };
        if newer {
            self.beat.notify_one();
        }
    }

    /// How slow the connections to the others are.
    pub fn note_round_trip(&self, slowest: Millis) {
        self.lock().round_trip = slowest;
    }

    /// Whether the leader's server let somebody in a moment ago.
    pub fn note_answer(&self, leader: NodeId, answers: bool, now: Moment) {
        self.lock().leader_answers = Some((leader, answers, now));
    }

    /// Takes in the word of another keeper.
    pub fn hear(&self, from: NodeId, word: Word, received: Moment) -> News {
        let mut inner = self.lock();
        if let Some(at) = word.lease_given_up {
            inner.take_back(from, Asked { run: word.run, at: Moment(at) });
        }
        if let Some((epoch, sent_at)) = word.lease {
            inner.ask_lease(from, epoch, Asked { run: word.run, at: Moment(sent_at) }, received);
        }
        if let Some((epoch, sent_at)) = word.granted.get(&self.me) {
            inner.holder.granted(*epoch, from, Moment(*sent_at));
        }
        if inner.leader == Some(from)
            && let Some(position) = word.position
        {
            let before = inner.primary_was_at.filter(|(node, _)| *node == from).map(|(_, at)| at);
            inner.primary_was_at = Some((from, before.map_or(position, |at| at.max(position))));
        }
        let newer_state = word.state_version > inner.state_version;
        let before = inner.heard.insert(from, (received, word));
        let word = &inner.heard[&from].1;
        let may_join = |word: &Word| word.lease_from.contains(&self.me).then_some(word.state_version);
        let matters = before.is_none_or(|(_, before)| {
            (&before.report, &before.serving, &before.own, &before.follows, &before.routers, may_join(&before))
                != (&word.report, &word.serving, &word.own, &word.follows, &word.routers, may_join(word))
        });
        News { matters, newer_state }
    }

    /// This keeper's word now. `sample` is its own newest, taken at the moment beside it.
    pub fn word(&self, now: Moment, sample: Option<(&NodeSample, Moment)>) -> Word {
        let mut inner = self.lock();
        let lease = inner.own.lease_for.map(|epoch| (epoch, now.0));
        if let Some((epoch, sent_at)) = lease {
            inner.ask_lease(self.me, epoch, Asked { run: self.run, at: now }, now);
            if inner.granted.get(&self.me) == Some(&(epoch, sent_at)) {
                inner.holder.granted(epoch, self.me, now);
            }
        }
        let facts = sample.and_then(|(sample, at)| Some((sample.facts.as_ref()?, at)));
        let said =
            inner.leader.filter(|leader| *leader != self.me).map(|leader| (leader, inner.said(leader, facts, now)));
        Word {
            report: inner.report(now),
            serving: inner.own.serving,
            follows: inner.own.follows,
            lineage: inner.own.lineage,
            position: inner.own.serving.and(facts).and_then(|(facts, _)| facts.written),
            own: inner.own.own.clone(),
            said,
            lease,
            run: self.run,
            lease_given_up: inner.holder.given_up().map(|at| at.0),
            lease_from: inner.list_newcomers(now),
            granted: inner.granted.iter().filter(|(to, _)| **to != self.me).map(|(to, it)| (*to, *it)).collect(),
            routers: self.routers.all_hold(),
            state_version: inner.state_version,
        }
    }

    /// Whether every router that follows a keeper that answers holds for this epoch.
    pub fn routers_hold(&self, epoch: Epoch, now: Moment) -> bool {
        let inner = self.lock();
        let limit = inner.limit();
        let heard = inner.heard.values().filter(|(at, _)| now.since(*at) < limit);
        heard.filter_map(|(_, word)| word.routers).chain(self.routers.all_hold()).all(|held| held >= epoch)
    }

    /// All that is known of the others, for `cluster::failover::order`.
    pub fn others(&self, state: &ClusterState, sample: Option<(&NodeSample, Moment)>, now: Moment) -> Others {
        let mut inner = self.lock();
        let limit = inner.limit();
        let mut others = Others { primary_was_at: inner.primary_was_at.map(|(_, at)| at), ..Others::default() };
        others.reports.insert(self.me, inner.report(now));
        others.alive.insert(self.me);
        for (from, (at, word)) in &inner.heard {
            others.reports.insert(*from, word.report.clone());
            if now.since(*at) < limit {
                others.alive.insert(*from);
                if let Some(serving) = word.serving {
                    others.serving.insert(*from, serving);
                }
            }
        }
        let facts = sample.and_then(|(sample, at)| Some((sample.facts.as_ref()?, at)));
        others.leader_dead = inner.leader_dead(self.me, state, &others.alive, facts, now);
        others
    }

    /// The node of this keeper.
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// Whether this keeper should call an election of the store's leader: `leader` leads the store and does not answer, a
    /// change of primary waits for a new one. Says so once for each leader.
    pub fn should_call_election(&self, store_leader: Option<NodeId>, alive: &BTreeSet<NodeId>) -> bool {
        let Some(gone) = store_leader.filter(|node| !alive.contains(node)) else { return false };
        alive.contains(&self.me) && self.lock().called_for.replace(gone) != Some(gone)
    }

    /// For how long this keeper has seen the attempt in its present phase.
    pub fn phase_age(&self, now: Moment) -> Millis {
        now.since(self.lock().phase_since)
    }

    /// What a keeper that answers said last.
    pub fn word_of(&self, node: NodeId, now: Moment) -> Option<Word> {
        let inner = self.lock();
        let limit = inner.limit();
        inner.heard.get(&node).filter(|(at, _)| now.since(*at) < limit).map(|(_, word)| word.clone())
    }

    /// Whether the lease of this epoch is held. A group in which the primary's own keeper is part of every majority
    /// needs none: nobody can be promoted there without its promise.
    pub fn holds_lease(&self, epoch: Epoch, now: Moment) -> bool {
        self.lock().holds_lease(epoch, now)
    }

    /// Whether this keeper, which is only joining, may become one whose grants count (`lease::may_join_electors`).
    pub fn may_join_electors(&self, version: u64, state: &ClusterState, now: Moment) -> bool {
        // In a standby cluster nobody acknowledges anything.
        let leases_matter = state.following().is_none() && (state.rule.acks == 0 || state.failover.is_some());
        let word = self.word_of(procedure::leader_of(state), now);
        lease::may_join_electors(&lease::Newcomer {
            leases_matter,
            listed: word.as_ref().is_some_and(|word| word.lease_from.contains(&self.me)),
            holder_is_up_to_date: word.is_some_and(|word| word.state_version >= version),
        })
    }

    /// Whether this node's server takes writes, as far as its driver knows.
    pub fn serves(&self) -> bool {
        let inner = self.lock();
        inner.leader == Some(self.me) && (inner.own.serving.is_some() || inner.own.own.is_some())
    }

    /// Whether the server must be killed now: it may acknowledge commits that nobody else holds, and the lease that
    /// allows it has ended. `patient`: the keeper has only just started, and what its predecessor held is not known.
    pub fn must_fence(&self, now: Moment) -> bool {
        let inner = self.lock();
        let Some(epoch) = inner.own.guarded else { return false };
        let patient = now.since(inner.started_at) < LEASE.term;
        !patient && !inner.holds_lease(epoch, now)
    }

    /// Has the lease of this epoch enforced at once, not only when the driver says next how the node is.
    pub fn guard(&self, epoch: Epoch) {
        self.lock().own.guarded = Some(epoch);
        self.duty.notify_all();
    }

    /// Waits, at most so long, until there is a lease to enforce.
    pub fn wait_for_duty(&self, at_most: Duration) {
        let idle = |inner: &mut Inner| inner.own.guarded.is_none();
        drop(self.duty.wait_timeout_while(self.lock(), at_most, idle));
    }

    /// Whether this keeper has only just started and may have held a lease before.
    pub fn just_started(&self, now: Moment) -> bool {
        now.since(self.lock().started_at) < LEASE.term
    }

    /// Something is going on, or the leader is quieter than it should be: look more often.
    pub fn restless(&self, now: Moment) -> bool {
        let inner = self.lock();
        let quiet =
            inner.leader.filter(|leader| *leader != self.me).is_some_and(|leader| inner.silence(leader, now) > QUIET);
        quiet || inner.phase.is_some() || inner.dead_since.is_some()
    }

    /// The leader, if its keeper has been quiet for longer than a few heartbeats: its server should be asked.
    pub fn quiet_leader(&self, now: Moment) -> Option<NodeId> {
        let inner = self.lock();
        let leader = inner.leader.filter(|leader| *leader != self.me)?;
        (inner.silence(leader, now) > QUIET).then_some(leader)
    }

    /// How long it takes at least until the leader, heard last when it was, counts as quiet. `None`: there is no other
    /// node that leads.
    pub fn quiet_in(&self, now: Moment) -> Option<Millis> {
        let inner = self.lock();
        let leader = inner.leader.filter(|leader| *leader != self.me)?;
        Some(Millis((QUIET.0 + 1).saturating_sub(inner.silence(leader, now).0)))
    }
}

impl Inner {
    fn note(&mut self, version: u64, state: &ClusterState, now: Moment) {
        self.state_version = version;
        let phase = state.failover.as_ref().map(|it| (it.epoch, it.phase));
        if self.phase != phase {
            self.phase = phase;
            self.phase_since = now;
        }
        let leader = procedure::leader_of(state);
        if self.leader != Some(leader) {
            self.leader = Some(leader);
            self.called_for = None;
            self.dead_since = None;
        }
        if self.primary_was_at.is_some_and(|(node, _)| node != state.rule.primary) {
            self.primary_was_at = None;
        }
        // What happened before this keeper started is not counted: it knows no moment of its own for it.
        let first = self.last_seen.is_none();
        let newest = state.failovers.last().map_or(Epoch(0), |it| it.epoch);
        let known = *self.last_seen.get_or_insert(newest);
        let news = state.failovers.iter().filter(|it| it.epoch > known);
        let automatic = news.filter(|it| it.phase == FailoverPhase::Done && it.kind == FailoverKind::Automatic);
        let done = automatic.filter(|it| budget::counts(&it.because)).count();
        self.failovers.extend(std::iter::repeat_n(now, done));
        self.failovers.retain(|at| now.since(*at) < budget::WINDOW);
        self.last_seen = Some(newest.max(known));
        self.electors = electors(state).collect();
        self.joining = state.members.keys().filter(|id| !self.electors.contains(id)).copied().collect();
        self.listed = if first { self.joining.clone() } else { &self.listed & &self.joining };
        self.heard.retain(|node, _| state.members.contains_key(node));
        self.granted.retain(|node, _| state.members.contains_key(node));
    }

    fn ask_lease(&mut self, holder: NodeId, epoch: Epoch, asked: Asked, now: Moment) {
        if self.grantor.may_grant(holder, epoch, self.own.promised, now, &LEASE).is_ok() {
            self.grantor.grant(holder, epoch, asked, now, &LEASE);
            self.granted.insert(holder, (epoch, asked.at.0));
        }
    }

    fn take_back(&mut self, holder: NodeId, up_to: Asked) {
        if self.grantor.given_up(holder, up_to) {
            tracing::debug!(%holder, "the lease was given up");
        }
    }

    fn holds_lease(&self, epoch: Epoch, now: Moment) -> bool {
        match lease::needed(&self.electors, &self.listed) {
            None => true,
            Some(electors) => self.holder.verdict(epoch, &electors, now, &LEASE) != HolderVerdict::Fence,
        }
    }

    /// The joining keepers that are told that their grants arrive. Where no lease is needed yet and one more keeper makes
    /// it needed, one at a time, and it is needed from then on.
    fn list_newcomers(&mut self, now: Moment) -> BTreeSet<NodeId> {
        let Some(epoch) = self.own.lease_for else { return BTreeSet::new() };
        let ready = self.joining.iter().copied().filter(|id| self.holder.counts(epoch, *id, now, &LEASE));
        if self.electors.len() > 2 {
            return ready.collect();
        }
        let ready: BTreeSet<NodeId> = ready.collect();
        if self.listed.is_empty() {
            self.listed.extend(ready.first());
        }
        &self.listed & &ready
    }

    fn report(&self, now: Moment) -> Report {
        let lapsed = self.grantor.lapsed(self.own.promised, now, &LEASE);
        Report { epoch: self.own.promised, recruited: self.own.recruited, lapsed }
    }

    fn limit(&self) -> Millis {
        detect::silence_limit(self.round_trip)
    }

    fn silence(&self, node: NodeId, now: Moment) -> Millis {
        let heard_at = self.heard.get(&node).map_or(self.started_at, |(at, _)| *at);
        now.since(heard_at.max(clock::attentive_since(now)))
    }

    fn said(&self, leader: NodeId, facts: Option<(&ServerFacts, Moment)>, now: Moment) -> Said {
        let follows = self.own.follows.is_some_and(|(node, _)| node == leader);
        let replica = facts.filter(|(facts, _)| facts.in_recovery && follows);
        let stream = replica.map(|(facts, taken_at)| self.stream(leader, facts, taken_at, now));
        Said { silent: self.silence(leader, now), stream }
    }

    fn stream(&self, leader: NodeId, facts: &ServerFacts, taken_at: Moment, now: Moment) -> Stream {
        let Some(receiver) = facts.receiver.as_ref().filter(|receiver| receiver.status == "streaming") else {
            return Stream::Lost;
        };
        let quiet = receiver.last_message_age_ms.unwrap_or(u64::MAX).saturating_add(now.since(taken_at).0);
        if quiet < self.limit().0 {
            return Stream::Moving;
        }
        let answers = self.leader_answers.filter(|(node, _, at)| *node == leader && now.since(*at) < self.limit());
        Stream::Quiet { answers: answers.map(|(_, answers, _)| answers) }
    }

    fn leader_dead(
        &mut self,
        me: NodeId,
        state: &ClusterState,
        alive: &BTreeSet<NodeId>,
        facts: Option<(&ServerFacts, Moment)>,
        now: Moment,
    ) -> Option<String> {
        let leader = procedure::leader_of(state);
        if leader == me {
            self.dead_since = None;
            return None;
        }
        let mine = self.said(leader, facts, now);
        let others = self.heard.iter().filter(|(from, _)| **from != leader && alive.contains(from));
        let others = others.filter_map(|(from, (at, word))| {
            let (about, said) = word.said?;
            let silent = Millis(said.silent.0 + now.since(*at).0);
            (about == leader).then_some((*from, Said { silent, stream: said.stream }))
        });
        let word = self.heard.get(&leader).filter(|(at, _)| now.since(*at) < self.limit());
        let evidence = Evidence {
            members: electors(state).count(),
            limit: self.limit(),
            said: others.chain([(me, mine)]).collect(),
            own_word: word.and_then(|(_, word)| word.own.clone()),
        };
        match detect::verdict(&evidence) {
            detect::Verdict::Dead { because } => {
                let since = *self.dead_since.get_or_insert(now);
                (now.since(since) >= budget::wait(&because, &self.failovers, now)).then_some(because)
            }
            detect::Verdict::Alive | detect::Verdict::Suspect { .. } => {
                self.dead_since = None;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: Epoch = Epoch(1);
    const NEXT: Epoch = Epoch(2);

    /// A group of three that have been up for long.
    fn group() -> Vec<Council> {
        let electors: BTreeSet<NodeId> = (1..=3).map(NodeId).collect();
        let made = electors.iter().map(|me| Council::new(*me)).collect::<Vec<_>>();
        for council in &made {
            let mut inner = council.lock();
            inner.grantor.forget_silence();
            inner.electors.clone_from(&electors);
        }
        made
    }

    /// Everybody says a word, and everybody else hears it.
    fn beat(group: &[Council]) {
        for from in group {
            let word = from.word(clock::now(), None);
            for to in group.iter().filter(|to| to.me != from.me) {
                to.hear(from.me, word.clone(), clock::now());
            }
        }
    }

    #[test]
    fn a_lease_that_its_holder_gives_up_need_not_be_waited_for() {
        let group = group();
        let [primary, candidate, _] = &group[..] else { unreachable!("three") };
        primary.publish(OwnPart { promised: OLD, lease_for: Some(OLD), ..OwnPart::default() });
        beat(&group);
        beat(&group);
        assert!(primary.holds_lease(OLD, clock::now()));
        for council in &group {
            council.publish(OwnPart { promised: NEXT, ..OwnPart::default() });
        }
        candidate.publish(OwnPart { promised: NEXT, lease_for: Some(NEXT), ..OwnPart::default() });
        beat(&group);
        beat(&group);
        assert!(!candidate.holds_lease(NEXT, clock::now()), "what was granted before has not lapsed");
        assert!(!candidate.word(clock::now(), None).report.lapsed);
        primary.publish(OwnPart { promised: NEXT, gives_up_lease: true, ..OwnPart::default() });
        assert!(!primary.holds_lease(OLD, clock::now()));
        beat(&group);
        beat(&group);
        assert!(candidate.holds_lease(NEXT, clock::now()));
        assert!(candidate.word(clock::now(), None).report.lapsed);
    }
}
