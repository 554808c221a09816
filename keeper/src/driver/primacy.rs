//! This node's part in who is primary: the facts that `cluster::failover::order` asks for, and its answers carried out.

mod seen;

use super::{Driver, KILL_DEADLINE, Turn};
use crate::clock;
use crate::failover::{Council, LedgerFile, OwnPart, shared_step};
use crate::local::Phase;
use cluster::failover::detect::{self, OwnWord};
use cluster::failover::ledger::Refused;
use cluster::failover::order::{self, Action, Own, Server, Serving, View};
use cluster::failover::{HAND_OVER_WAIT, Policy, ROUTERS_WAIT, procedure};
use cluster::naming;
use cluster::sync;
use model::failover::{FailoverPhase, Recruited};
use model::observe::ServerFacts;
use model::state::{Stage, XidSwitch};
use model::{ClusterState, Epoch, Lsn, Millis, Moment, NodeId, Role, Trouble};
use seen::Seen;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How long the server may take to tell how it is while a change of primary waits for it.
const LOOK_DEADLINE: Duration = Duration::from_millis(500);
/// How long cutting the stream may take before it is tried again.
const DETACH_DEADLINE: Duration = Duration::from_millis(500);
/// How long it is tried before the server is killed instead: a process of it is stopped or hangs, and one that is gone
/// receives nothing either. A replica loses nothing by it; a change of primary that waited for it could wait for ever.
const DETACH_PATIENCE: Millis = Millis(1_500);
/// How long a new synchronous list may take to be taken up before it is tried again.
const LIST_DEADLINE: Duration = Duration::from_secs(2);
/// How long a primary that was asked to stop in order may take before it is killed.
const DRAIN_DEADLINE: Duration = Duration::from_secs(6);
/// A primary that does not come up for this long counts as stalled.
const START_PATIENCE: Millis = Millis(10_000);
/// Time that starting a server, syncing its directory and attaching its replicas takes apart from replay; measured
/// 1.3 s and more on a busy machine.
const RESTART_EXPECTED: Millis = Millis(1_000);
/// Log replayed in a millisecond, at the least: for a guess whether a restart or a failover is quicker.
const REPLAY_BYTES_PER_MS: u64 = 50_000;

/// Stands for the unknown end of a fresh copy.
pub(super) const COPY_END: Lsn = Lsn(u64::MAX);

/// What the driver keeps for this.
pub(super) struct Part {
    pub(super) council: Arc<Council>,
    pub(super) ledger: LedgerFile,
    /// Whom the server follows or is about to follow, and under which epoch.
    pub(super) follow: Option<(NodeId, Epoch)>,
    /// The running server is proved to follow nobody, and to begin nothing of the kind.
    pub(super) detached: bool,
    /// Since when the stream of the running server is being cut, without success so far.
    cutting_since: Option<Moment>,
    /// This process of the server was told to promote itself and has not done so yet.
    promotion_ordered: bool,
    /// Where the row of an epoch is, flushed here.
    row: Option<(Epoch, Lsn)>,
    /// A crashed server is left down until then.
    hand_over_until: Option<Moment>,
    /// What was last told of what this node holds.
    reported: Option<Recruited>,
    /// The lease was given up since the server stopped.
    gives_up_lease: bool,
    /// The synchronous list of a node that is about to be promoted.
    pub(super) list: Option<String>,
    /// The epoch under which the server serves.
    served: Epoch,
    /// The ledger knows in which epoch the history of the data was begun.
    pub(super) history_known: bool,
    /// How this process of the server was seen last.
    last_seen: Option<Server>,
    /// When it answered last.
    answered_at: Moment,
    /// Where its log ended, last time it was seen.
    was_at: Option<Lsn>,
    /// A rule that promises nothing is in force or may be, as far as this keeper wrote it.
    unpromised: bool,
    /// The transaction numbers around this node's promotion: the epoch, the one before it, the one after it.
    xids: Option<(Epoch, u64, Option<u64>)>,
    /// Clients are kept out: see `Ghosts`.
    pub(super) ghosts: Ghosts,
    /// The situation in which nothing was left to do.
    pub(super) calm: Option<Key>,
    /// The action that was logged last.
    told: Option<Action>,
}

/// Commits that waited for replicas when a primary died show after its restart, though no replica may have them: then
/// they would be seen, and be gone after the next failover. So a primary that is started anew lets no clients in before
/// as many replicas hold its log as a commit is promised to be on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ghosts {
    /// None to be feared.
    None,
    /// Up to the end of the log that it starts with, once that is known.
    Unknown,
    /// Up to this position.
    Until(Lsn),
}

/// What must stay the same for older facts to be good enough.
type Key = (Epoch, Option<(Epoch, FailoverPhase)>);

pub(super) fn key_of(state: &ClusterState) -> Key {
    (state.rule.epoch, state.failover.as_ref().map(|it| (it.epoch, it.phase)))
}

/// What came of looking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Primacy {
    /// Something was done: look again at once.
    Acted,
    /// Nothing can be done now, and nothing else should be.
    Waits,
    /// Nothing is to be done.
    Free,
}

impl Part {
    pub(super) fn new(council: Arc<Council>, ledger: LedgerFile, adopted: bool, now: Moment) -> Part {
        let promotion_ordered = adopted && ledger.ledger().promoting.is_some();
        council.promised(ledger.ledger().promised);
        Part {
            council,
            follow: ledger.following(),
            ledger,
            detached: false,
            cutting_since: None,
            promotion_ordered,
            row: None,
            hand_over_until: None,
            reported: None,
            gives_up_lease: false,
            list: None,
            served: Epoch(0),
            history_known: false,
            last_seen: None,
            answered_at: now,
            was_at: None,
            unpromised: false,
            xids: None,
            ghosts: Ghosts::None,
            calm: None,
            told: None,
        }
    }

    /// Whom the running server follows, if it is a replica, or may: node 0 of epoch 0 where that is not known.
    fn told_to_follow(&self) -> Option<(NodeId, Epoch)> {
        if self.detached { None } else { Some(self.follow.unwrap_or((NodeId(0), Epoch(0)))) }
    }

    /// A process of the server was started by this keeper, with a configuration that follows `follow`.
    pub(super) fn started(&mut self, now: Moment) {
        self.detached = self.follow.is_none();
        self.cutting_since = None;
        self.promotion_ordered = false;
        self.row = None;
        self.hand_over_until = None;
        self.last_seen = None;
        self.answered_at = now;
        self.calm = None;
    }

    /// The transaction numbers to be recorded with the end of this node's own promotion.
    fn xids_of(&self, action: &Action) -> Option<XidSwitch> {
        let (noted, kept_below, given_from) = self.xids?;
        let settles = matches!(action, Action::Settle { epoch, .. } if *epoch == noted);
        given_from.filter(|_| settles).map(|given_from| XidSwitch { kept_below, given_from })
    }

    /// Whatever was under way was given up in the middle.
    pub(super) fn shaken(&mut self) {
        self.detached = false;
        self.promotion_ordered = self.ledger.ledger().promoting.is_some();
        self.row = None;
        self.last_seen = None;
        self.calm = None;
    }
}

impl Driver {
    /// One look at who is primary, and one action if there is one.
    pub(super) async fn primacy(&mut self, turn: &Turn, sampled: Option<&ServerFacts>) -> Result<Primacy, Trouble> {
        let state = &turn.state.value;
        let Some(member) = state.members.get(&self.parts.me) else { return Ok(Primacy::Free) };
        match member.stage {
            Stage::Halted { .. } | Stage::Leaving => return Ok(Primacy::Free),
            Stage::Joining | Stage::Active | Stage::Reinit { .. } | Stage::Rejoin { .. } => {}
        }
        self.part.council.note_state(turn.state.version, state, turn.now);
        let key = key_of(state);
        let busy = state.failover.is_some() || self.part.calm != Some(key);
        let looked = if busy && self.server.is_some() { self.look().await } else { sampled.cloned() };
        let seen = self.see(turn, looked.as_ref(), busy).await?;
        self.part.history_known = seen.holds.is_some();
        if self.is_strange(state, &seen) {
            return Ok(Primacy::Free);
        }
        self.part.gives_up_lease = self.gives_up_lease(turn, &seen);
        let own = self.own(turn, &seen);
        self.tell(turn, &own, &seen);
        let sample = self.parts.observations.of(self.parts.me);
        let sample = sample.as_ref().map(|it| (&*it.sample, it.taken_at));
        let others = self.part.council.others(state, sample, turn.now);
        let policy = Policy::of(state, crate::clock::wall());
        let phase_age = self.part.council.phase_age(turn.now);
        let view = View { me: self.parts.me, state, own: &own, others: &others, phase_age, policy: &policy };
        let next = order::next(&view).filter(|action| {
            // Where there is no data, nothing has to be given up for a copy.
            let gives_up = matches!(action, Action::Rebuild { .. } | Action::Rewind { .. });
            !gives_up || seen.timeline.is_some()
        });
        match next {
            Some(action) if self.waits_for_routers(turn, &action) => {
                self.parts.local.set_doing(Some("waiting for routers to hold new transactions".to_owned()));
                Ok(Primacy::Waits)
            }
            Some(action) => {
                self.part.calm = None;
                shared_step::hasten(&self.parts.store, &self.part.council, &action, &others.alive);
                self.carry_out(action, turn, &own, looked.as_ref()).await
            }
            None => {
                let frozen = state.failover.is_some() || own.promised > state.rule.epoch;
                self.part.calm = (!frozen && !matches!(own.server, Server::Starting)).then_some(key);
                let has_data = seen.timeline.is_some();
                Ok(if frozen && has_data { Primacy::Waits } else { Primacy::Free })
            }
        }
    }

    /// Before a planned stop: until routers have nothing open here and send nothing new, or their time is over. One that
    /// is silent delays a switchover by no more than that.
    fn waits_for_routers(&self, turn: &Turn, action: &Action) -> bool {
        let Some(failover) = &turn.state.value.failover else { return false };
        matches!(action, Action::Stop { kill: false, .. })
            && failover.phase == FailoverPhase::Drain
            && self.part.council.phase_age(turn.now) < ROUTERS_WAIT
            && !self.part.council.routers_hold(failover.epoch, turn.now)
    }

    async fn look(&mut self) -> Option<ServerFacts> {
        match tokio::time::timeout(LOOK_DEADLINE, self.sql.facts()).await {
            Ok(Ok(facts)) => Some(facts),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// Whether the server takes writes though nobody in the cluster told it to: that is for a person to settle.
    fn is_strange(&self, state: &ClusterState, seen: &Seen) -> bool {
        let serves = matches!(seen.server, Server::Primary { .. });
        serves && state.failover.is_none() && state.rule.primary != self.parts.me && seen.holds.is_none()
    }

    fn own(&self, turn: &Turn, seen: &Seen) -> Own {
        let state = &turn.state.value;
        let council = &self.part.council;
        let lease = self.lease_epoch(state).filter(|_| !self.part.gives_up_lease).is_some_and(|epoch| {
            let serves = matches!(seen.server, Server::Primary { .. });
            council.holds_lease(epoch, turn.now) || (serves && council.just_started(turn.now))
        });
        Own {
            promised: self.part.ledger.ledger().promised,
            server: seen.server.clone(),
            holds: seen.holds,
            recruited: seen.recruited,
            promotion_ordered: self.part.promotion_ordered,
            lease,
            hand_over: self.hands_over(turn),
        }
    }

    fn hands_over(&self, turn: &Turn) -> bool {
        self.part.hand_over_until.is_some_and(|until| turn.now < until)
    }

    /// Whether the lease is given up while the server is stopped as it is.
    fn gives_up_lease(&self, turn: &Turn, seen: &Seen) -> bool {
        let Some(epoch) = self.lease_epoch(&turn.state.value) else { return false };
        let promised = self.part.ledger.ledger().promised;
        // Backends can outlive their postmaster, and acknowledge what nobody else holds: they are looked for once more.
        order::gives_up_lease(&seen.server, promised, self.hands_over(turn), epoch)
            && (self.part.gives_up_lease || postgres::nothing_runs(&self.parts.spec))
    }

    /// The epoch that this node serves under, or would.
    fn lease_epoch(&self, state: &ClusterState) -> Option<Epoch> {
        let me = self.parts.me;
        match &state.failover {
            Some(it) if it.phase == FailoverPhase::Promote && it.winner == Some(me) => Some(it.epoch),
            Some(_) | None => (state.rule.primary == me).then_some(state.rule.epoch),
        }
    }

    /// Puts into the heartbeats what others need to know of this node.
    fn tell(&self, turn: &Turn, own: &Own, seen: &Seen) {
        let state = &turn.state.value;
        let (serving, follows) = match &own.server {
            Server::Primary { healthy: true, .. } => {
                let timeline = seen.timeline.unwrap_or_default();
                let serving =
                    seen.holds.map(|holds| Serving { epoch: self.part.served, lineage: holds.lineage, timeline });
                (serving, None)
            }
            Server::Replica { follows, .. } => (None, *follows),
            // It may turn out to be a replica, and does then what it was told last.
            Server::Starting => (None, self.part.told_to_follow()),
            Server::Primary { .. } | Server::Stopped { .. } => (None, None),
        };
        let leads = procedure::leader_of(state) == self.parts.me;
        self.part.council.publish(OwnPart {
            promised: own.promised,
            recruited: own.recruited,
            serving,
            follows,
            lineage: seen.holds.map(|holds| (holds.timeline, holds.lineage)),
            own: if leads { self.own_word(turn, own) } else { None },
            lease_for: self.lease_epoch(state).filter(|_| !self.part.gives_up_lease),
            gives_up_lease: self.part.gives_up_lease,
            guarded: self.guarded(state, own),
        });
    }

    /// The lease without which the server must not go on, if it takes writes, or may at any moment, and waits for nobody.
    fn guarded(&self, state: &ClusterState, own: &Own) -> Option<Epoch> {
        let unpromised = self.part.unpromised || (state.rule.primary == self.parts.me && state.rule.acks == 0);
        let alone = match &own.server {
            Server::Primary { sync, .. } => sync.acks == 0 || unpromised,
            Server::Replica { sync, .. } => own.promotion_ordered && sync.acks == 0,
            Server::Starting => self.part.served == state.rule.epoch && state.rule.acks == 0,
            Server::Stopped { .. } => false,
        };
        self.lease_epoch(state).filter(|_| alone)
    }

    /// Has the lease enforced from now on, before a rule is written, or a list set, that promises nothing. `false`: the
    /// lease is not held, and nothing of the kind may be done.
    pub(super) fn guard_unpromised(&mut self, turn: &Turn) -> bool {
        let state = &turn.state.value;
        let Some(epoch) = self.lease_epoch(state) else { return false };
        let now = crate::clock::now();
        if !self.part.council.holds_lease(epoch, now) {
            return false;
        }
        self.part.unpromised = true;
        self.part.council.guard(epoch);
        true
    }

    fn own_word(&self, turn: &Turn, own: &Own) -> Option<OwnWord> {
        let silent = turn.now.since(self.part.answered_at.max(clock::attentive_since(turn.now)));
        match &own.server {
            Server::Stopped { .. } if own.hand_over => Some(OwnWord::Gone),
            Server::Primary { healthy: true, .. } => Some(OwnWord::Healthy),
            Server::Primary { .. } => Some(match self.parts.local.stalled() {
                Some((for_ms, what)) => OwnWord::Stalled { for_ms, what },
                None => OwnWord::Stalled { for_ms: silent, what: "its server".to_owned() },
            }),
            Server::Starting if silent > START_PATIENCE => {
                Some(OwnWord::Stalled { for_ms: silent, what: "the start of its server".to_owned() })
            }
            Server::Starting | Server::Stopped { .. } | Server::Replica { .. } => None,
        }
    }

    /// After a crash of the server, and while it is down: whether others should take over rather than wait for it to come
    /// back.
    pub(super) fn consider_hand_over(&mut self, turn: &Turn) {
        let state = &turn.state.value;
        if procedure::leader_of(state) != self.parts.me || state.failover.is_some() || self.hands_over(turn) {
            return;
        }
        let sample = None;
        let others = self.part.council.others(state, sample, turn.now);
        let policy = Policy::of(state, crate::clock::wall());
        let can = order::replaceable(state, &others.alive, &policy);
        let redo =
            postgres::read_control_file(&self.parts.node.data_dir).map(|control| control.redo).unwrap_or_default();
        let backlog = self.part.was_at.map_or(0, |at| at.lag_of(redo).0);
        let pause = self.restarts.wait(turn.now, false).unwrap_or_default();
        let expected = Millis(pause.0 + RESTART_EXPECTED.0 + backlog / REPLAY_BYTES_PER_MS);
        match detect::after_crash(expected, policy.failover_expected, self.restarts.failures(), can) {
            detect::Crash::HandOver => self.part.hand_over_until = Some(turn.now.plus(HAND_OVER_WAIT)),
            detect::Crash::Restart => {}
        }
    }

    async fn carry_out(
        &mut self,
        action: Action,
        turn: &Turn,
        own: &Own,
        facts: Option<&ServerFacts>,
    ) -> Result<Primacy, Trouble> {
        if self.part.told.as_ref() != Some(&action) {
            tracing::info!(?action, "who is primary");
            self.part.told = Some(action.clone());
        }
        if action.is_shared() {
            if let Action::Settle { rule, .. } = &action
                && rule.acks == 0
                && !self.guard_unpromised(turn)
            {
                return Ok(Primacy::Waits);
            }
            let xids = self.part.xids_of(&action);
            shared_step::write(&self.parts.store, turn.state.version, &action, xids).await?;
            return Ok(Primacy::Acted);
        }
        match action {
            Action::Promise(epoch) => self.promise(epoch)?,
            Action::Detach => self.detach(turn).await?,
            Action::Stop { kill: true, because } => self.kill_server(&because).await?,
            Action::Stop { kill: false, because } => self.drain(&because).await?,
            Action::StartDetached | Action::Recover => {
                self.part.follow = None;
                return self.start_as(Role::Replica, turn).await;
            }
            Action::StartPrimary => {
                self.part.served = turn.state.value.rule.epoch;
                self.part.ghosts = if turn.state.value.rule.acks > 0 { Ghosts::Unknown } else { Ghosts::None };
                self.rule_sure = false;
                return self.start_as(Role::Primary, turn).await;
            }
            Action::SetSynchronous { acks, list } => self.set_list(acks, &list, turn, facts).await?,
            Action::Promote(epoch) => self.promote(epoch, own).await?,
            Action::WriteRow(epoch) => self.write_row(epoch, own).await?,
            Action::Attach { node, serving } => return self.attach(node, serving, turn, own).await,
            Action::Rewind { node, fork } => return self.come_back(node, Some(fork), turn, own, facts).await,
            Action::Rebuild { node } => return self.come_back(node, None, turn, own, facts).await,
            Action::Claim { .. }
            | Action::Drained(_)
            | Action::Unplan(_)
            | Action::Choose(..)
            | Action::Settle { .. }
            | Action::Undo { .. } => {}
        }
        Ok(Primacy::Acted)
    }

    fn promise(&mut self, epoch: Epoch) -> Result<(), Trouble> {
        failpoint::pass("failover.promising");
        if let Some(ledger) = self.part.ledger.ledger().promise(epoch) {
            self.part.ledger.save(ledger)?;
        }
        self.part.council.promised(epoch);
        failpoint::pass("failover.promised");
        Ok(())
    }

    /// Cuts the stream and sees it cut.
    async fn detach(&mut self, turn: &Turn) -> Result<(), Trouble> {
        self.part.follow = None;
        self.put_config(Role::Replica, turn).await?;
        failpoint::pass("failover.detaching");
        let since = *self.part.cutting_since.get_or_insert_with(crate::clock::now);
        match postgres::cut_receiver(&self.parts.node.data_dir, DETACH_DEADLINE).await {
            Ok(()) => {}
            Err(trouble) if crate::clock::now().since(since) >= DETACH_PATIENCE => {
                return self.kill_server(&trouble.to_string()).await;
            }
            Err(trouble) => return Err(trouble),
        }
        failpoint::pass("failover.detached");
        self.part.cutting_since = None;
        self.part.detached = true;
        Ok(())
    }

    /// Writes the configuration of this role and has the running server read it.
    async fn put_config(&mut self, role: Role, turn: &Turn) -> Result<(), Trouble> {
        let config = self.wanted_config(role, turn)?;
        if self.written.is_none() && self.active.is_none() {
            self.active = Some(postgres::ActiveFiles::ask(&self.sql).await?);
        }
        postgres::write_config(&self.parts.spec, &config)?;
        if let Some(files) = &self.active {
            postgres::write_active(&self.parts.spec, &config, files)?;
        }
        self.written = Some(config);
        self.reload().await
    }

    async fn kill_server(&mut self, because: &str) -> Result<(), Trouble> {
        self.release_address();
        tracing::warn!(because, "killing every process of the database server");
        self.parts.local.set_doing(Some(format!("stopping the server at once: {because}")));
        let killed = postgres::kill_everything(&self.parts.spec, KILL_DEADLINE).await?;
        tracing::info!(killed, "the server's processes are gone");
        self.server_is_gone();
        self.parts.local.set_phase(Phase::Stopped);
        failpoint::pass("failover.killed");
        Ok(())
    }

    /// The old primary of a switchover stops in order, so that its replicas receive all that it has.
    async fn drain(&mut self, because: &str) -> Result<(), Trouble> {
        failpoint::pass("switchover.draining");
        self.stop_server_within(because, DRAIN_DEADLINE).await?;
        failpoint::pass("switchover.drained");
        Ok(())
    }

    pub(super) async fn start_as(&mut self, role: Role, turn: &Turn) -> Result<Primacy, Trouble> {
        self.part.list = None;
        let started = self.start(role, turn).await?;
        failpoint::pass("failover.started");
        Ok(if started { Primacy::Acted } else { Primacy::Waits })
    }

    async fn set_list(
        &mut self,
        acks: u32,
        list: &BTreeSet<NodeId>,
        turn: &Turn,
        facts: Option<&ServerFacts>,
    ) -> Result<(), Trouble> {
        let (members, salt) = (&turn.state.value.members, &turn.secrets.value.name_salt);
        let names = sync::render(acks, list, |node| {
            members.get(&node).map_or_else(String::new, |member| naming::application_name(salt, member))
        });
        let role = if facts.is_some_and(|facts| facts.in_recovery) { Role::Replica } else { Role::Primary };
        self.sync_names = Some(names.clone());
        self.part.list = Some(names.clone());
        self.put_config(role, turn).await?;
        self.sql.wait_setting("synchronous_standby_names", &names, LIST_DEADLINE).await?;
        self.sql.wait_reload_everywhere(LIST_DEADLINE).await?;
        self.list_taken_up = true;
        failpoint::pass("failover.list-set");
        Ok(())
    }

    async fn promote(&mut self, epoch: Epoch, own: &Own) -> Result<(), Trouble> {
        let Some(holds) = own.holds else { return Ok(()) };
        let ledger = self.part.ledger.ledger().promotion(epoch, holds.timeline);
        self.part.ledger.save(ledger)?;
        failpoint::pass("failover.promoting");
        self.part.promotion_ordered = true;
        self.part.ghosts = Ghosts::None;
        self.part.served = epoch;
        self.part.row = None;
        self.rule_sure = false;
        // Statements on the replica can hold up the replay that the promotion waits for.
        self.sql.cancel_statements().await?;
        // Not worth a delay or a failure: without it a commit in doubt stays so.
        self.part.xids = self.sql.next_xid().await.ok().map(|kept_below| (epoch, kept_below, None));
        self.sql.promote().await?;
        failpoint::pass("failover.promote-ordered");
        Ok(())
    }

    async fn write_row(&mut self, epoch: Epoch, own: &Own) -> Result<(), Trouble> {
        let Some(holds) = own.holds else { return Ok(()) };
        if let Some((noted, _, given_from @ None)) = &mut self.part.xids
            && *noted == epoch
        {
            *given_from = self.sql.completed_xid().await.ok();
        }
        let at = self.sql.write_lineage(epoch, &self.parts.config.name, holds.timeline).await?;
        failpoint::pass("failover.row-written");
        self.part.row = Some((epoch, at));
        Ok(())
    }

    pub(super) async fn attach(
        &mut self,
        node: NodeId,
        serving: Serving,
        turn: &Turn,
        own: &Own,
    ) -> Result<Primacy, Trouble> {
        let holds = own.holds.map(|holds| holds.timeline);
        let ledger = self.part.ledger.ledger().attach(serving.epoch, serving.lineage, serving.timeline, holds);
        match ledger {
            Ok(ledger) => self.part.ledger.follow(ledger, node, serving.epoch)?,
            Err(Refused::Older { .. }) => return Ok(Primacy::Waits),
            Err(Refused::SameNumber { .. }) => return Box::pin(self.come_back(node, None, turn, own, None)).await,
        }
        failpoint::pass("failover.attaching");
        self.part.council.promised(serving.epoch);
        self.part.follow = Some((node, serving.epoch));
        self.part.detached = false;
        self.part.list = None;
        if self.server.is_none() {
            return self.start_as(Role::Replica, turn).await;
        }
        self.put_config(Role::Replica, turn).await?;
        failpoint::pass("failover.attached");
        Ok(Primacy::Acted)
    }
}
