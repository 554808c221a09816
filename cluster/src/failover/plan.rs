//! A switchover before it becomes an attempt: it waits for its time, the primary writes a checkpoint and its candidates
//! a restartpoint while everything goes on, and only then is the attempt claimed. Nothing is frozen meanwhile.
//!
//! Every stage is one compare-and-set of the state. The primary's keeper does all but the restartpoints; whoever
//! notices that a plan has become void drops it.

use super::switchover::{self, Preflight, ReplicaNow};
use super::{Policy, procedure};
use crate::history::{self, STEMMA, keep_newest};
use model::failover::{FailoverKind, PlanStage, PlannedSwitchover};
use model::limits::{SWITCHOVER_MISSED_AFTER, SWITCHOVERS_MAX};
use model::status::{ClusterStatus, LinkStatus};
use model::{ClusterState, LagBytes, Millis, NodeId, WallTime};
use std::collections::BTreeMap;

/// How long the preparations may take in all: a checkpoint of a large server under load takes minutes.
pub const PREPARE_MAX: Millis = Millis::from_secs(600);
/// How long candidates are waited for once the primary's checkpoint is done. A restartpoint is a help, not a need.
pub const RESTARTPOINT_WAIT: Millis = Millis::from_secs(3);
/// How long a candidate is waited for that will be ready in a moment (`NotNow::passes`), once all else is done.
pub const CANDIDATE_WAIT: Millis = Millis::from_secs(5);

/// What a keeper has to do for the open plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Todo {
    /// Nothing, or it is another's turn.
    Nothing,
    /// Its time has come: record that the checkpoint begins (`checkpointing`).
    Start,
    /// Write a checkpoint, then record it (`checkpointed`).
    Checkpoint,
    /// Write a restartpoint, then record it (`ready`).
    Restartpoint,
    /// Claim the attempt (`begin`).
    Begin,
    /// It is void: record that (`drop_plan`).
    Drop(String),
}

/// What the keeper of `me` has to do now. `wall` is civil time: a time of day is what people asked for.
pub fn next(state: &ClusterState, me: NodeId, wall: WallTime) -> Todo {
    let Some(plan) = state.planned_switchover() else { return Todo::Nothing };
    if let Some(reason) = void(state, plan, wall) {
        return Todo::Drop(reason);
    }
    let leads = state.rule.primary == me;
    let since = |at: Option<WallTime>| at.map_or(0, |at| wall.millis_since(at).max(0) as u64);
    match plan.stage {
        PlanStage::Waiting if leads && wall >= plan.at => Todo::Start,
        PlanStage::Checkpoint if leads => Todo::Checkpoint,
        PlanStage::Restartpoint if leads => {
            let all = candidates(state, plan).all(|id| plan.ready.contains(&id));
            let enough = all || since(plan.restartpoint_at) >= RESTARTPOINT_WAIT.0;
            if enough { Todo::Begin } else { Todo::Nothing }
        }
        PlanStage::Restartpoint if candidates(state, plan).any(|id| id == me) && !plan.ready.contains(&me) => {
            Todo::Restartpoint
        }
        PlanStage::Waiting
        | PlanStage::Checkpoint
        | PlanStage::Restartpoint
        | PlanStage::Begun { .. }
        | PlanStage::Dropped { .. }
        | PlanStage::Cancelled { .. } => Todo::Nothing,
    }
}

/// Whether a keeper has to look again soon though nothing changes: for a time to come, or for one to run out.
pub fn is_restless(state: &ClusterState) -> bool {
    state.planned_switchover().is_some() || state.paused.as_ref().is_some_and(|pause| pause.until.is_some())
}

fn candidates(state: &ClusterState, plan: &PlannedSwitchover) -> impl Iterator<Item = NodeId> {
    let to = plan.to;
    state.rule.voters.iter().copied().filter(move |voter| to.is_none_or(|to| to == *voter))
}

/// Why nothing can come of the plan any more.
fn void(state: &ClusterState, plan: &PlannedSwitchover, wall: WallTime) -> Option<String> {
    if plan.epoch != state.rule.epoch || plan.from != state.rule.primary {
        return Some(format!("the primary has changed since (epoch {} instead of {})", state.rule.epoch, plan.epoch));
    }
    if let Some(running) = &state.failover {
        return Some(format!("another change of primary began ({})", running.id));
    }
    if plan.to.is_some_and(|to| !state.members.contains_key(&to)) {
        return Some("the node asked for has left the cluster".to_owned());
    }
    let late = wall.millis_since(plan.at).max(0) as u64;
    match plan.stage {
        PlanStage::Waiting if late > SWITCHOVER_MISSED_AFTER.0 => {
            Some(format!("its time was missed by more than {} minutes", SWITCHOVER_MISSED_AFTER.0 / 60_000))
        }
        PlanStage::Waiting if plan.scheduled && wall >= plan.at && state.paused_now(wall).is_some() => {
            Some("automatic failover was paused when its time came".to_owned())
        }
        PlanStage::Checkpoint | PlanStage::Restartpoint => {
            let began = plan.checkpoint_at.unwrap_or(plan.at);
            (wall.millis_since(began) > PREPARE_MAX.0 as i64)
                .then(|| format!("its preparations took longer than {} minutes", PREPARE_MAX.0 / 60_000))
        }
        PlanStage::Waiting | PlanStage::Begun { .. } | PlanStage::Dropped { .. } | PlanStage::Cancelled { .. } => None,
    }
}

/// Adds a plan.
pub fn add(state: &mut ClusterState, plan: PlannedSwitchover) {
    state.switchovers.push(plan);
    keep_newest(&mut state.switchovers, SWITCHOVERS_MAX);
}

/// Records that the checkpoint begins.
pub fn checkpointing(state: &ClusterState, id: &str, now: WallTime) -> Option<ClusterState> {
    change(state, id, |plan| {
        (plan.stage == PlanStage::Waiting).then(|| {
            plan.stage = PlanStage::Checkpoint;
            plan.checkpoint_at = Some(now);
        })
    })
}

/// Records that the checkpoint is done.
pub fn checkpointed(state: &ClusterState, id: &str, now: WallTime) -> Option<ClusterState> {
    change(state, id, |plan| {
        (plan.stage == PlanStage::Checkpoint).then(|| {
            plan.stage = PlanStage::Restartpoint;
            plan.restartpoint_at = Some(now);
        })
    })
}

/// Records that the restartpoint of `me` is done.
pub fn ready(state: &ClusterState, id: &str, me: NodeId) -> Option<ClusterState> {
    change(state, id, |plan| (plan.stage == PlanStage::Restartpoint && plan.ready.insert(me)).then_some(()))
}

/// What is waited for before `begin`: a candidate that will be able to take over in a moment, while no other can now.
pub fn awaits(state: &ClusterState, status: &ClusterStatus, now: WallTime) -> Option<String> {
    let plan = state.planned_switchover()?;
    let since = plan.restartpoint_at.map_or(0, |at| now.millis_since(at).max(0) as u64);
    if plan.stage != PlanStage::Restartpoint || since >= CANDIDATE_WAIT.0 || !status.primary_up {
        return None;
    }
    let looked = preflight(state, plan, status, now);
    let row = looked.worth_waiting_for(plan.to)?;
    row.verdict.as_ref().err().map(|why| format!("{}: {why}", row.name))
}

fn preflight(state: &ClusterState, plan: &PlannedSwitchover, status: &ClusterStatus, now: WallTime) -> Preflight {
    switchover::preflight(state, plan.to, &replicas_now(status), status.primary_up, &Policy::of(state, now))
}

/// Claims the attempt, or drops the plan where no node can take over now.
pub fn begin(state: &ClusterState, id: &str, status: &ClusterStatus, now: WallTime) -> Option<ClusterState> {
    let plan = state.planned_switchover().filter(|plan| plan.id == id)?;
    if plan.stage != PlanStage::Restartpoint {
        return None;
    }
    if let Some(reason) = preflight(state, plan, status, now).refused_because(plan.to) {
        return drop_plan(state, id, &reason, now);
    }
    let because = match plan.because.as_str() {
        "" => format!("{} asked for it", plan.actor),
        given => given.to_owned(),
    };
    let kind = FailoverKind::Switchover { to: plan.to };
    let mut next = procedure::claim(state, procedure::epoch_of(state), kind, &because, &plan.actor, now)?;
    let failover = next.failover.as_mut()?;
    failover.request = id.to_owned();
    let attempt = failover.id.clone();
    let plan = next.switchovers.iter_mut().find(|plan| plan.id == id)?;
    plan.stage = PlanStage::Begun { failover: attempt };
    plan.ended_at = Some(now);
    Some(next)
}

/// Gives a plan up, and says so in the history.
pub fn drop_plan(state: &ClusterState, id: &str, reason: &str, now: WallTime) -> Option<ClusterState> {
    let stage = PlanStage::Dropped { reason: reason.to_owned() };
    end(state, id, stage, "switchover-dropped", &format!("was given up: {reason}"), STEMMA, now)
}

/// Takes a plan back.
pub fn cancel(state: &ClusterState, id: &str, by: &str, now: WallTime) -> Option<ClusterState> {
    let stage = PlanStage::Cancelled { by: by.to_owned() };
    end(state, id, stage, "switchover-cancelled", "was taken back", by, now)
}

fn end(
    state: &ClusterState,
    id: &str,
    stage: PlanStage,
    kind: &str,
    words: &str,
    actor: &str,
    now: WallTime,
) -> Option<ClusterState> {
    let mut next = change(state, id, |plan| {
        plan.stage = stage;
        plan.ended_at = Some(now);
        Some(())
    })?;
    history::record(&mut next, now, kind, None, format!("switchover {id} {words}"), actor);
    Some(next)
}

fn change(
    state: &ClusterState,
    id: &str,
    with: impl FnOnce(&mut PlannedSwitchover) -> Option<()>,
) -> Option<ClusterState> {
    let mut next = state.clone();
    let plan = next.switchovers.iter_mut().find(|plan| plan.id == id && plan.is_open())?;
    with(plan)?;
    Some(next)
}

/// Ends a pause whose time is over. `None`: there is none.
pub fn end_pause(state: &ClusterState, now: WallTime) -> Option<ClusterState> {
    if state.paused.is_none() || state.paused_now(now).is_some() {
        return None;
    }
    let mut next = state.clone();
    next.paused = None;
    let text = "automatic failover goes on: the time of the pause is over".to_owned();
    history::record(&mut next, now, "resumed", None, text, STEMMA);
    Some(next)
}

/// How the replicas do, from the judged view.
pub fn replicas_now(status: &ClusterStatus) -> BTreeMap<NodeId, ReplicaNow> {
    let answering = status.nodes.iter().filter(|node| node.keeper_up);
    answering
        .map(|node| {
            let behind = node.lag.as_ref().and_then(|lag| lag.apply_bytes).map(LagBytes);
            let streaming = node.link == Some(LinkStatus::Streaming) && node.link_up;
            (node.id, ReplicaNow { streaming, behind, paused: node.replay_paused })
        })
        .collect()
}

impl Preflight {
    /// Why nothing should be begun, with the failing rule of every candidate.
    pub fn refused_because(&self, to: Option<NodeId>) -> Option<String> {
        let refused = self.refused.as_ref()?;
        let asked = to.and_then(|to| self.rows.iter().find(|row| row.node == to));
        match asked.and_then(|row| row.verdict.as_ref().err().map(|why| (&row.name, why))) {
            Some((name, why)) => Some(format!("{name} cannot take over: {why}")),
            None => Some(refused.clone()),
        }
    }
}
