//! A change of primary as people follow it: from the wish over the attempts to what came of it. Read from the state
//! alone, so that every surface (command line, REST) tells the same.

use crate::failover::{Failover, FailoverKind, FailoverPhase, PlanStage, PlannedSwitchover};
use crate::names::{NodeId, NodeName};
use crate::state::ClusterState;
use crate::units::WallTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What came of it so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "result")]
pub enum ChangeResult {
    /// Waits for its time.
    Scheduled {
        /// That time.
        at: WallTime,
    },
    /// Checkpoints are written while the primary serves.
    Preparing,
    /// An attempt is in progress.
    Running {
        /// How far it is.
        phase: FailoverPhase,
    },
    /// The node asked for (or the best one) is the primary.
    Done,
    /// Another node than the one asked for is the primary.
    OtherNode,
    /// The old primary was confirmed: nothing has changed.
    Undone {
        /// Why.
        reason: String,
    },
    /// Given up before anything was changed.
    Dropped {
        /// Why.
        reason: String,
    },
    /// Taken back before anything was changed.
    Cancelled {
        /// By whom.
        by: String,
    },
    /// A later attempt went on from it, and is not recorded any more.
    Unknown,
}

impl ChangeResult {
    /// Whether nothing more will come.
    pub fn is_final(&self) -> bool {
        match self {
            ChangeResult::Scheduled { .. } | ChangeResult::Preparing | ChangeResult::Running { .. } => false,
            ChangeResult::Done
            | ChangeResult::OtherNode
            | ChangeResult::Undone { .. }
            | ChangeResult::Dropped { .. }
            | ChangeResult::Cancelled { .. }
            | ChangeResult::Unknown => true,
        }
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The id that was asked for: `sw_` or `fo_` and a number.
    pub id: String,
    /// The switchover as it was planned, if it was one.
    #[serde(default)]
    pub plan: Option<PlannedSwitchover>,
    /// Its attempts, oldest first: a later one goes on where one was given up.
    pub attempts: Vec<Failover>,
    /// What came of it so far.
    #[serde(flatten)]
    pub result: ChangeResult,
    /// The node asked for, if one was.
    #[serde(default)]
    pub asked: Option<NodeName>,
    /// The new primary, once there is one.
    #[serde(default)]
    pub winner: Option<NodeName>,
    /// Names of the nodes that the attempts number.
    pub names: BTreeMap<NodeId, NodeName>,
}

impl Change {
    /// The name of a node; its number where it is not known any more.
    pub fn name_of(&self, id: NodeId) -> String {
        self.names.get(&id).map_or_else(|| format!("node {id}"), ToString::to_string)
    }
}

/// The change with this id: of a planned switchover or of an attempt.
pub fn of(state: &ClusterState, id: &str) -> Option<Change> {
    let request = state.failover_named(id).map(|failover| failover.request.as_str()).filter(|mark| !mark.is_empty());
    let plan = state.switchovers.iter().find(|plan| plan.id == request.unwrap_or(id)).cloned();
    let first = match &plan {
        Some(plan) => match &plan.stage {
            PlanStage::Begun { failover } => Some(failover.as_str()),
            PlanStage::Waiting
            | PlanStage::Checkpoint
            | PlanStage::Restartpoint
            | PlanStage::Dropped { .. }
            | PlanStage::Cancelled { .. } => None,
        },
        None => Some(id),
    };
    let attempts = first.map(|first| attempts(state, first)).unwrap_or_default();
    if plan.is_none() && attempts.is_empty() {
        return None;
    }
    // What was asked for stays so, also where the attempt goes on by itself.
    let asked = match &plan {
        Some(plan) => plan.to,
        None => attempts.first().and_then(Failover::asked_for),
    };
    let names: BTreeMap<NodeId, NodeName> =
        state.members.values().map(|member| (member.id, member.name.clone())).collect();
    let done = attempts.last().filter(|last| last.phase == FailoverPhase::Done);
    let winner = done.and_then(|last| last.winner);
    let result = match (&plan, attempts.last()) {
        (_, Some(last)) => of_attempt(last, asked),
        (Some(plan), None) => of_plan(plan),
        (None, None) => ChangeResult::Unknown,
    };
    let named = |id: Option<NodeId>| id.and_then(|id| names.get(&id).cloned());
    Some(Change { id: id.to_owned(), asked: named(asked), winner: named(winner), plan, attempts, result, names })
}

/// All attempts that are kept and the plans that never became one, newest last.
pub fn all(state: &ClusterState) -> Vec<Change> {
    let failovers = state.failovers.iter().chain(&state.failover).filter_map(|failover| of(state, &failover.id));
    let plans = state.switchovers.iter().filter(|plan| !matches!(plan.stage, PlanStage::Begun { .. }));
    failovers.chain(plans.filter_map(|plan| of(state, &plan.id))).collect()
}

/// The attempt `first` and those that went on from it.
fn attempts(state: &ClusterState, first: &str) -> Vec<Failover> {
    let mut found: Vec<Failover> = Vec::new();
    let mut known: Vec<&Failover> = state.failovers.iter().chain(&state.failover).collect();
    known.sort_by_key(|failover| failover.epoch);
    for failover in known {
        let follows = found.last().is_some_and(|last| last.phase == FailoverPhase::Superseded);
        if failover.id == first || follows {
            found.push(failover.clone());
        }
    }
    found
}

fn of_attempt(last: &Failover, asked: Option<NodeId>) -> ChangeResult {
    match last.phase {
        FailoverPhase::Drain | FailoverPhase::Recruit | FailoverPhase::Promote => {
            ChangeResult::Running { phase: last.phase }
        }
        FailoverPhase::Done if asked.is_none() || asked == last.winner => ChangeResult::Done,
        FailoverPhase::Done => ChangeResult::OtherNode,
        FailoverPhase::Undone => ChangeResult::Undone { reason: last.ended_because.clone() },
        FailoverPhase::Superseded => ChangeResult::Unknown,
    }
}

fn of_plan(plan: &PlannedSwitchover) -> ChangeResult {
    match &plan.stage {
        PlanStage::Waiting if plan.scheduled => ChangeResult::Scheduled { at: plan.at },
        PlanStage::Waiting | PlanStage::Checkpoint | PlanStage::Restartpoint => ChangeResult::Preparing,
        PlanStage::Dropped { reason } => ChangeResult::Dropped { reason: reason.clone() },
        PlanStage::Cancelled { by } => ChangeResult::Cancelled { by: by.clone() },
        PlanStage::Begun { .. } => ChangeResult::Unknown,
    }
}

/// What a kind of change is called.
pub fn word(kind: &FailoverKind) -> &'static str {
    match kind {
        FailoverKind::Automatic => "automatic",
        FailoverKind::Switchover { .. } => "switchover",
        FailoverKind::Forced { .. } => "forced",
    }
}
