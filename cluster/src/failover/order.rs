//! What this node must do now about who is primary. Level-triggered: the whole situation is looked at anew each time,
//! and the answer is the one next action of this node, or `None`.
//!
//! # What the keeper must do
//! * Act on one answer at a time and look again. Every action is idempotent.
//! * `Promise`, `Attach` and `Promote` begin with the ledger, fsynced; only then the rest.
//! * `Detach`: clear `primary_conninfo` and `restore_command`, reload, signal the receiver, and look until it is gone.
//! * `Own::recruited` only for a server that is a replica without receiver, upstream and promotion under way, and whose replay is finished if
//!   it was restarted; or for a primary that stopped in order. All its processes are seen gone or detached.
//! * `Stop { kill: true }`: every process of the server, orphan backends included, seen gone.
//! * The watcher that enforces the lease minds the server from *before* `StartPrimary` and `Promote` are carried out: both
//!   may take effect when the lease has ended.
//! * From before a rule without acknowledgements is written until one with them is known to be in force, the watcher
//!   enforces the lease as well, whatever the server itself waits for; and such a rule is written only under the lease.
//! * Facts of the server are read after the state that is given.

use super::candidate::{self, Choice, choose};
use super::recruit::{self, Closed, Report};
use super::rejoin::{self, Rejoin};
use super::{
    ASYNC_REPORTS_WAIT, CHOOSE_BY_OTHERS_AFTER, DESCENT_REPORTS_WAIT, FORCED_PHASE_MAX, FORCED_REPORTS_WAIT, Policy,
    SHOWN_REPORTS_WAIT, SWITCHOVER_PHASE_MAX, SWITCHOVER_REPORTS_WAIT, UNDO_AFTER, WINNER_STALLED_AFTER, procedure,
};
use crate::sync::ServerSync;
use model::failover::{Failover, FailoverKind, FailoverPhase, Recruited};
use model::{ClusterState, Epoch, Lsn, Millis, NodeId, Rule, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// This node's server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// None runs.
    Stopped {
        /// It stopped in order, or crash recovery has run since.
        in_order: bool,
        /// What lies in the data directory starts as a primary.
        as_primary: bool,
    },
    /// Runs and does not answer yet.
    Starting,
    /// Takes writes.
    Primary {
        /// Whether all its probes are well.
        healthy: bool,
        /// What it waits for, in force.
        sync: ServerSync,
        /// Where the row of the attempt's epoch is, once it is written and flushed here. A row that a crash could
        /// take back proves nothing, least of all where no replica holds it.
        row: Option<(Epoch, Lsn)>,
        /// What its replicas flushed, on its timeline.
        flushed: BTreeMap<NodeId, Lsn>,
    },
    /// In recovery.
    Replica {
        /// Whom it is configured to follow, and under which epoch.
        follows: Option<(NodeId, Epoch)>,
        /// It has a receiver process.
        receiver: bool,
        /// What a promotion would wait for.
        sync: ServerSync,
    },
}

/// All about this node.
#[derive(Clone, Debug)]
pub struct Own {
    /// The promise, as fsynced.
    pub promised: Epoch,
    /// The server.
    pub server: Server,
    /// What the data holds, as far as known.
    pub holds: Option<Recruited>,
    /// The same, if the node counts as recruited.
    pub recruited: Option<Recruited>,
    /// This process of the server was told to promote itself and has not done so yet: it may still, at any moment. It
    /// is not recruited then, whatever it promised, before it was started anew.
    pub promotion_ordered: bool,
    /// It holds the lease for the epoch it would serve under.
    pub lease: bool,
    /// Its server crashed, and its keeper leaves it down for `HAND_OVER_WAIT` from the crash (`detect::after_crash`).
    pub hand_over: bool,
}

/// Another node that takes writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// Under which epoch.
    pub epoch: Epoch,
    /// In which epoch its timeline was begun.
    pub lineage: Epoch,
    /// Its timeline.
    pub timeline: Timeline,
}

/// What is known of the others.
#[derive(Clone, Debug, Default)]
pub struct Others {
    /// Reports, this node's own included.
    pub reports: BTreeMap<NodeId, Report>,
    /// Nodes whose keepers answer, this one included.
    pub alive: BTreeSet<NodeId>,
    /// Who says that it takes writes.
    pub serving: BTreeMap<NodeId, Serving>,
    /// The furthest position the primary of the rule is known to have reached.
    pub primary_was_at: Option<Lsn>,
    /// The node that ought to serve is dead, for this reason (`detect::verdict`, `budget::wait`).
    pub leader_dead: Option<String>,
}

/// Everything the answer depends on.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// This node.
    pub me: NodeId,
    /// The state.
    pub state: &'a ClusterState,
    /// This node.
    pub own: &'a Own,
    /// The others.
    pub others: &'a Others,
    /// For how long this keeper has seen the attempt in its present phase, or none at all.
    pub phase_age: Millis,
    /// The policy.
    pub policy: &'a Policy,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Fsync the promise of this epoch.
    Promise(Epoch),
    /// Cut the stream and see the receiver gone.
    Detach,
    /// Stop the server; `kill` where it must not acknowledge one more commit.
    Stop {
        /// See above.
        kill: bool,
        /// Why.
        because: String,
    },
    /// Start the server in recovery, following nobody.
    StartDetached,
    /// Start the server as the primary of the rule.
    StartPrimary,
    /// Have the server wait for these (`sync::render`), and see it in force.
    SetSynchronous {
        /// How many.
        acks: u32,
        /// Of whom.
        list: BTreeSet<NodeId>,
    },
    /// Promote the server under this epoch.
    Promote(Epoch),
    /// Write the row of this epoch into the database.
    WriteRow(Epoch),
    /// Note the upstream in the ledger (`Ledger::attach`) and follow it.
    Attach {
        /// Whom.
        node: NodeId,
        /// What it said.
        serving: Serving,
    },
    /// Save what only this node holds, then rewind to `fork`.
    Rewind {
        /// Whose data to take.
        node: NodeId,
        /// See above.
        fork: Lsn,
    },
    /// Save what only this node holds, then copy the database anew.
    Rebuild {
        /// Whose.
        node: NodeId,
    },
    /// Run crash recovery alone, without taking connections or following anybody.
    Recover,
    /// `procedure::claim` (kind automatic).
    Claim {
        /// The highest epoch now.
        after: Epoch,
        /// Why.
        because: String,
    },
    /// `procedure::drained`.
    Drained(Epoch),
    /// `procedure::unplan`.
    Unplan(Epoch),
    /// `procedure::choose`.
    Choose(Epoch, Box<Choice>),
    /// `procedure::settle`.
    Settle {
        /// Of the attempt.
        epoch: Epoch,
        /// The rule, as recorded or promising less.
        rule: Rule,
        /// The winner's timeline.
        timeline: Timeline,
    },
    /// `procedure::undo`.
    Undo {
        /// Of the attempt.
        epoch: Epoch,
        /// Why.
        because: &'static str,
    },
}

impl Action {
    /// Whether it is a write of the cluster's state, which any keeper may make, and not something that a node does itself.
    pub fn is_shared(&self) -> bool {
        match self {
            Action::Claim { .. }
            | Action::Drained(_)
            | Action::Unplan(_)
            | Action::Choose(..)
            | Action::Settle { .. }
            | Action::Undo { .. } => true,
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
            | Action::Recover => false,
        }
    }
}

/// What this node must do now.
pub fn next(view: &View<'_>) -> Option<Action> {
    // The watcher enforces this by itself, on time; here it is said once more for a keeper that starts.
    // Whether its server waits for nobody or its rule promises nothing: in both cases others may replace it without
    // asking those that it waits for.
    let rule = &view.state.rule;
    let unpromised = rule.primary == view.me && rule.acks == 0;
    if let Server::Primary { sync, .. } = &view.own.server
        && (sync.acks == 0 || unpromised)
        && !view.own.lease
    {
        let because = "its commits are promised to no replica and it does not hold the lease".to_owned();
        return Some(Action::Stop { kill: true, because });
    }
    match &view.state.failover {
        Some(failover) => during(view, failover),
        None => settled(view),
    }
}

/// Whether the lease of `epoch` is given up: the server is gone, with all its processes, and does not start under that epoch,
/// or not before the others had their chance to take over.
pub fn gives_up_lease(server: &Server, promised: Epoch, hand_over: bool, epoch: Epoch) -> bool {
    matches!(server, Server::Stopped { .. }) && (hand_over || promised > epoch)
}

/// The report for the heartbeats: only about the attempt in progress.
pub fn report(own: &Own, lapsed: bool) -> Report {
    Report { epoch: own.promised, recruited: own.recruited, lapsed }
}

fn during(view: &View<'_>, failover: &Failover) -> Option<Action> {
    match failover.phase {
        FailoverPhase::Drain => drain(view, failover),
        FailoverPhase::Recruit => recruiting(view, failover),
        FailoverPhase::Promote => promoting(view, failover),
        // Such attempts are only in the archive.
        FailoverPhase::Done | FailoverPhase::Undone | FailoverPhase::Superseded => None,
    }
}

fn drain(view: &View<'_>, failover: &Failover) -> Option<Action> {
    let reported = view.others.reports.get(&failover.from);
    let gone = reported.is_some_and(|report| report.epoch == failover.epoch && report.recruited.is_some());
    if gone {
        return Some(Action::Drained(failover.epoch));
    }
    if view.others.leader_dead.is_some() {
        return Some(Action::Unplan(failover.epoch));
    }
    if view.me != failover.from {
        return None;
    }
    if view.phase_age >= SWITCHOVER_PHASE_MAX {
        return Some(Action::Undo { epoch: failover.epoch, because: "the primary could not be stopped in time" });
    }
    join(view, failover)
}

/// Brings this node to being recruited.
fn join(view: &View<'_>, failover: &Failover) -> Option<Action> {
    let own = view.own;
    if own.promised > failover.epoch {
        return None;
    }
    // A primary stops before it promises: a promise says that nothing older is obeyed, and it would obey its clients.
    if let Server::Primary { .. } = own.server {
        let planned = matches!(failover.kind, FailoverKind::Switchover { .. });
        let because = format!("another primary is being made under epoch {}", failover.epoch);
        return Some(Action::Stop { kill: !planned, because });
    }
    if own.promotion_ordered && matches!(own.server, Server::Replica { .. }) {
        return Some(unfinished_promotion());
    }
    if own.promised < failover.epoch {
        return Some(Action::Promise(failover.epoch));
    }
    match &own.server {
        Server::Primary { .. } | Server::Starting => None,
        Server::Replica { follows: None, receiver: false, .. } => None,
        Server::Replica { .. } => Some(Action::Detach),
        Server::Stopped { as_primary: true, in_order: true } if own.recruited.is_some() => None,
        Server::Stopped { .. } => own.holds.is_some().then_some(Action::StartDetached),
    }
}

/// It may still promote itself at any moment; once started anew it does not.
fn unfinished_promotion() -> Action {
    Action::Stop { kill: true, because: "it was told to promote itself under an older epoch".to_owned() }
}

fn recruiting(view: &View<'_>, failover: &Failover) -> Option<Action> {
    let (state, own, epoch) = (view.state, view.own, failover.epoch);
    if recruit::wanted(state, failover, view.me)
        && let Some(action) = join(view, failover)
    {
        return Some(action);
    }
    // Members without a part in it promise too, for the leases.
    if own.promised < epoch && view.me != state.rule.primary && !recruit::wanted(state, failover, view.me) {
        return Some(Action::Promise(epoch));
    }
    if let Some(action) = chosen(view, failover) {
        return Some(action);
    }
    let planned = matches!(failover.kind, FailoverKind::Switchover { .. });
    if planned && view.me != failover.from && view.others.leader_dead.is_some() {
        return Some(Action::Unplan(epoch));
    }
    confirm(view, failover)
}

fn chosen(view: &View<'_>, failover: &Failover) -> Option<Action> {
    let (state, reports) = (view.state, &view.others.reports);
    let closed = recruit::closed(state, failover, reports).ok()?;
    let recruits = recruit::recruits(failover, reports);
    // One recruit is enough then, and those who are not among the recruits do not acknowledge for the winner at first.
    let everybody = recruit::binding(state).all(|rule| rule.voters.iter().all(|voter| recruits.contains_key(voter)));
    if closed == Closed::ByDescent && !everybody && view.phase_age < DESCENT_REPORTS_WAIT {
        return None;
    }
    let unpromised = state.rule.acks == 0 && !recruits.contains_key(&state.rule.primary);
    let all = state.rule.voters.iter().all(|voter| recruits.contains_key(voter));
    if unpromised && !all && view.phase_age < ASYNC_REPORTS_WAIT {
        return None;
    }
    // The old primary alone closes the rule of a switchover. Its replicas are only a moment later, and whoever is not
    // among the recruits does not acknowledge for the winner: it would wait for the old primary to be back.
    let planned = matches!(failover.kind, FailoverKind::Switchover { .. });
    let present = |voter: &&NodeId| view.others.alive.contains(*voter);
    let mut voters = recruit::binding(state).flat_map(|rule| &rule.voters).filter(present);
    let missing = voters.any(|voter| !recruits.contains_key(voter));
    if planned && missing && view.phase_age < SWITCHOVER_REPORTS_WAIT {
        return None;
    }
    if state.rule.acks > 1 && missing && view.phase_age < SHOWN_REPORTS_WAIT {
        return None;
    }
    let forced = matches!(failover.kind, FailoverKind::Forced { .. });
    if forced && missing && view.phase_age < FORCED_REPORTS_WAIT {
        return None;
    }
    let choice = choose(state, failover, reports, view.others.primary_was_at, view.policy).ok()?;
    let mine = choice.winner == view.me;
    (mine || view.phase_age >= CHOOSE_BY_OTHERS_AFTER).then(|| Action::Choose(failover.epoch, Box::new(choice)))
}

/// The old primary's keeper has its primary confirmed if nobody could be chosen; it knows its server at first hand.
fn confirm(view: &View<'_>, failover: &Failover) -> Option<Action> {
    // Nobody may be left whose keeper could say this: the old primary's state is as it was in any case, and its data
    // holds all that was acknowledged.
    if matches!(failover.kind, FailoverKind::Forced { .. }) && view.phase_age >= FORCED_PHASE_MAX {
        // Where an earlier winner may have been promoted nothing can be undone: it goes on as if nobody had asked.
        if !failover.unsettled.is_empty() {
            return Some(Action::Unplan(failover.epoch));
        }
        return Some(Action::Undo {
            epoch: failover.epoch,
            because: "no node could take over within the accepted loss",
        });
    }
    if view.me != view.state.rule.primary || !failover.unsettled.is_empty() {
        return None;
    }
    let epoch = failover.epoch;
    match failover.kind {
        FailoverKind::Forced { .. } => None,
        FailoverKind::Switchover { .. } => (view.phase_age >= SWITCHOVER_PHASE_MAX)
            .then_some(Action::Undo { epoch, because: "no node could take over in time" }),
        FailoverKind::Automatic => match view.own.server {
            Server::Primary { healthy: true, .. } if view.phase_age >= UNDO_AFTER => {
                Some(Action::Undo { epoch, because: "it serves, and nobody could be chosen in its place" })
            }
            // It starts once it is confirmed, not before: others may count it as recruited, and without acknowledgements
            // it gets no lease under an epoch that a majority has left.
            Server::Replica { .. } | Server::Stopped { .. }
                if view.phase_age >= UNDO_AFTER && view.own.holds.is_some() =>
            {
                Some(Action::Undo { epoch, because: "it is back, and nobody could be chosen in its place" })
            }
            Server::Primary { .. } | Server::Replica { .. } | Server::Stopped { .. } | Server::Starting => None,
        },
    }
}

fn promoting(view: &View<'_>, failover: &Failover) -> Option<Action> {
    let (Some(winner), Some(rule)) = (failover.winner, &failover.next) else { return None };
    if winner == view.me {
        return win(view, failover, rule);
    }
    if let Server::Primary { .. } = view.own.server {
        let because = format!("node {winner} is the primary of epoch {}", failover.epoch);
        return Some(Action::Stop { kill: true, because });
    }
    if view.own.promised > failover.epoch {
        return None;
    }
    if let Some(action) = replace_winner(view, failover) {
        return Some(action);
    }
    if view.own.promised < failover.epoch {
        return Some(Action::Promise(failover.epoch));
    }
    match view.others.serving.get(&winner).filter(|serving| serving.epoch == failover.epoch) {
        // Only the acknowledging voters may give up what they hold for a primacy that is not settled.
        Some(serving) => {
            let descent = rejoin::descent_of_winner(view.state, failover, serving.timeline);
            follow(view, winner, *serving, &descent, rule.voters.contains(&view.me))
        }
        None => match view.own.server {
            Server::Replica { follows: Some(_), .. } | Server::Replica { receiver: true, .. } => Some(Action::Detach),
            Server::Replica { .. } | Server::Primary { .. } | Server::Starting | Server::Stopped { .. } => None,
        },
    }
}

fn replace_winner(view: &View<'_>, failover: &Failover) -> Option<Action> {
    let stalled = view.phase_age >= WINNER_STALLED_AFTER
        && failover.winner.is_some_and(|winner| !view.others.serving.contains_key(&winner));
    let because = match &view.others.leader_dead {
        Some(because) => because.clone(),
        None if stalled => "the node chosen makes no progress".to_owned(),
        None => return None,
    };
    claim(view, because)
}

fn claim(view: &View<'_>, because: String) -> Option<Action> {
    let possible = replaceable(view.state, &view.others.alive, view.policy);
    possible.then(|| Action::Claim { after: procedure::epoch_of(view.state), because })
}

/// Whether the node that ought to serve can be replaced with these nodes alone: somebody may take over, and the attempt can
/// succeed.
pub fn replaceable(state: &ClusterState, alive: &BTreeSet<NodeId>, policy: &Policy) -> bool {
    let anybody = state.members.values().any(|member| {
        member.id != procedure::leader_of(state)
            && alive.contains(&member.id)
            && recruit::binding_next(state).any(|rule| rule.voters.contains(&member.id) || rule.primary == member.id)
            && candidate::fitness(state, &FailoverKind::Automatic, member, policy).is_ok()
    });
    policy.automatic && anybody && recruit::reachable(state, alive)
}

fn win(view: &View<'_>, failover: &Failover, rule: &Rule) -> Option<Action> {
    let own = view.own;
    if own.promised > failover.epoch {
        return None;
    }
    if own.promised < failover.epoch {
        return Some(Action::Promise(failover.epoch));
    }
    let (acks, list) = candidate::synchronous(view.state, rule);
    match &own.server {
        Server::Starting => None,
        Server::Stopped { .. } => Some(Action::StartDetached),
        Server::Replica { follows: Some(_), .. } | Server::Replica { receiver: true, .. } => Some(Action::Detach),
        // Before the promotion: "promoted and waiting for nobody" must never exist.
        Server::Replica { sync, .. } | Server::Primary { sync, row: None, .. } if !waits_for(sync, acks, &list) => {
            Some(Action::SetSynchronous { acks, list })
        }
        Server::Replica { .. } if own.promotion_ordered => None,
        // Nobody vouches for what it acknowledges alone, unless it holds the lease.
        Server::Replica { .. } => (acks > 0 || own.lease).then_some(Action::Promote(failover.epoch)),
        Server::Primary { row, flushed, .. } => match row {
            Some((epoch, at)) if *epoch == failover.epoch => settle(view, failover, rule, *at, flushed),
            Some(_) | None => Some(Action::WriteRow(failover.epoch)),
        },
    }
}

fn settle(
    view: &View<'_>,
    failover: &Failover,
    rule: &Rule,
    at: Lsn,
    flushed: &BTreeMap<NodeId, Lsn>,
) -> Option<Action> {
    let timeline = view.own.holds?.timeline;
    let confirmed = rule.voters.iter().filter(|voter| flushed.get(voter).is_some_and(|lsn| *lsn >= at)).count() as u32;
    let epoch = failover.epoch;
    if confirmed >= rule.acks {
        return Some(Action::Settle { epoch, rule: rule.clone(), timeline });
    }
    let settings = &view.state.settings;
    if settings.strict || view.phase_age < settings.voter_grace.0 {
        return None;
    }
    if confirmed == 0 && !view.own.lease {
        return None;
    }
    // As `sync` would within an epoch: fewer hold it, so less is promised, through consensus and visibly.
    let count = rule.voters.len() as u32;
    let recruit_quorum = if confirmed == 0 { count } else { count - confirmed + 1 };
    Some(Action::Settle { epoch, rule: Rule { acks: confirmed, recruit_quorum, ..rule.clone() }, timeline })
}

fn waits_for(sync: &ServerSync, acks: u32, list: &BTreeSet<NodeId>) -> bool {
    !sync.strangers && sync.acks == acks && sync.list == *list
}

fn follow(
    view: &View<'_>,
    node: NodeId,
    serving: Serving,
    descent: &[rejoin::Ancestor],
    may_give_up: bool,
) -> Option<Action> {
    let own = view.own;
    if own.promotion_ordered && matches!(own.server, Server::Replica { .. }) {
        return Some(unfinished_promotion());
    }
    match &own.server {
        Server::Starting | Server::Primary { .. } => None,
        // Log that was written and not yet flushed when the stream was cut may be found and replayed after the node
        // reported what it holds. Nobody was told that it is safe, and it can lie beyond the fork; then nothing streams.
        Server::Replica { follows: Some((followed, epoch)), receiver, .. }
            if *followed == node && *epoch == serving.epoch =>
        {
            let holds = own.holds.as_ref().filter(|_| !receiver && may_give_up)?;
            match rejoin::decide(holds, true, descent) {
                Rejoin::Rewind { fork } => Some(Action::Rewind { node, fork }),
                // Its server's own history is compared with the primary's before anything is given up.
                Rejoin::Rebuild | Rejoin::Follow | Rejoin::RecoverFirst => None,
            }
        }
        Server::Replica { follows: Some(_), .. } | Server::Replica { receiver: true, .. } => Some(Action::Detach),
        Server::Replica { .. } | Server::Stopped { .. } => {
            let in_order = !matches!(own.server, Server::Stopped { in_order: false, .. });
            let Some(holds) = own.holds else {
                return may_give_up.then_some(Action::Rebuild { node });
            };
            match rejoin::decide(&holds, in_order, descent) {
                Rejoin::Follow => Some(Action::Attach { node, serving }),
                Rejoin::RecoverFirst => Some(Action::Recover),
                Rejoin::Rewind { fork } => may_give_up.then_some(Action::Rewind { node, fork }),
                Rejoin::Rebuild => may_give_up.then_some(Action::Rebuild { node }),
            }
        }
    }
}

/// No attempt in progress.
fn settled(view: &View<'_>) -> Option<Action> {
    let (state, own) = (view.state, view.own);
    let rule = &state.rule;
    // What this keeper sees of the state is older than what it promised: it learns more before it acts.
    if own.promised > rule.epoch {
        return match own.server {
            Server::Replica { follows: Some((_, epoch)), .. } if epoch < own.promised => Some(Action::Detach),
            Server::Primary { .. } | Server::Replica { .. } | Server::Stopped { .. } | Server::Starting => None,
        };
    }
    if rule.primary == view.me {
        return lead(view, rule);
    }
    if let Server::Primary { .. } = own.server {
        let because = format!("node {} is the primary of epoch {}", rule.primary, rule.epoch);
        return Some(Action::Stop { kill: true, because });
    }
    if let Some(because) = &view.others.leader_dead
        && let Some(action) = claim(view, because.clone())
    {
        return Some(action);
    }
    if state.members.get(&view.me).is_none_or(|member| member.witness) {
        return None;
    }
    let serving = view.others.serving.get(&rule.primary).filter(|serving| serving.epoch == rule.epoch)?;
    follow(view, rule.primary, *serving, &rejoin::descent(state), true)
}

fn lead(view: &View<'_>, rule: &Rule) -> Option<Action> {
    match &view.own.server {
        Server::Stopped { .. } if view.own.hand_over => None,
        // Never a new database where one has been.
        Server::Stopped { .. } if view.own.holds.is_none() => None,
        Server::Stopped { .. } => (rule.acks > 0 || view.own.lease).then_some(Action::StartPrimary),
        Server::Starting | Server::Primary { .. } => None,
        // It was recruited and then confirmed: it goes on with its timeline, so it is not promoted but started anew.
        Server::Replica { .. } => {
            Some(Action::Stop { kill: false, because: "it was confirmed as the primary".to_owned() })
        }
    }
}
