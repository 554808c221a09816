//! A change of primary in progress, as it is recorded in consensus: every keeper reads it and does its own part, and
//! any keeper can take it further. What may follow what is decided in `cluster::failover`.

use crate::names::{NodeId, NodeName};
use crate::state::Rule;
use crate::units::{Epoch, Lsn, Timeline, WallTime};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Why and how a change of primary was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum FailoverKind {
    /// The cluster decided by itself that the primary is gone.
    Automatic,
    /// A person asked for it; the old primary stops in order first, and nothing is lost.
    Switchover {
        /// The node asked for; the best one when absent.
        #[serde(default)]
        to: Option<NodeId>,
    },
    /// A person accepted a loss, because automation must not decide.
    Forced {
        /// The node asked for; the best one when absent.
        #[serde(default)]
        to: Option<NodeId>,
        /// The most that may be lost, in bytes of log.
        loss_bytes_max: u64,
    },
}

/// How far it is. Each phase is in consensus before anything of it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailoverPhase {
    /// Switchover only: the old primary stops in order while its replicas still receive.
    Drain,
    /// Voters promise, cut their streams and report.
    Recruit,
    /// The winner is chosen; it takes up the new synchronous list, is promoted, and commits the first record.
    Promote,
    /// The new rule is in force.
    Done,
    /// The old primary was confirmed, under the new epoch.
    Undone,
    /// Given up for a later attempt, which took over what this one may have promised.
    Superseded,
}

impl FailoverPhase {
    /// The word used in output.
    pub fn as_str(self) -> &'static str {
        match self {
            FailoverPhase::Drain => "drain",
            FailoverPhase::Recruit => "recruit",
            FailoverPhase::Promote => "promote",
            FailoverPhase::Done => "done",
            FailoverPhase::Undone => "undone",
            FailoverPhase::Superseded => "superseded",
        }
    }
}

/// What a recruited node holds. Final for the epoch it was recruited in: it receives nothing until it follows the
/// winner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recruited {
    /// The epoch in which its timeline was begun.
    pub lineage: Epoch,
    /// Its timeline.
    pub timeline: Timeline,
    /// The end of its log: flushed, and after a restart replayed to the end.
    pub position: Lsn,
}

impl Recruited {
    /// The order in which the greatest holds every acknowledged commit. Timeline numbers are not part of it: two
    /// promotions that know nothing of each other take the same number.
    pub fn rank(&self) -> (Epoch, Lsn) {
        (self.lineage, self.position)
    }
}

/// A primacy that was allowed to begin and never came into force: it may have acknowledged commits all the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsettled {
    /// The rule under which it may have.
    pub rule: Rule,
    /// What its winner held when it was chosen: where its timeline begins.
    pub began: Recruited,
}

/// When a phase began, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// Which.
    pub phase: FailoverPhase,
    /// When, by the clock of the keeper that wrote it.
    pub at: WallTime,
}

/// One attempt at another primary: one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failover {
    /// `fo_` and the epoch.
    pub id: String,
    /// The new epoch.
    pub epoch: Epoch,
    /// The primary of the rule in force.
    pub from: NodeId,
    /// Why and how.
    #[serde(flatten)]
    pub kind: FailoverKind,
    /// The reason, in a sentence.
    pub because: String,
    /// Who asked for it.
    pub actor: String,
    /// Which request made it: a planned switchover (`sw_` and a number), or the mark of a forced failover, so that one
    /// whose answer was lost is recognised when it is decided again. Empty for what the cluster begins by itself.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request: String,
    /// How far it is.
    pub phase: FailoverPhase,
    /// Who was recruited when the winner was chosen, and what they held.
    #[serde(default)]
    pub recruited: BTreeMap<NodeId, Recruited>,
    /// Who could not win, and why.
    #[serde(default)]
    pub refused: BTreeMap<NodeId, String>,
    /// The new primary, once chosen.
    #[serde(default)]
    pub winner: Option<NodeId>,
    /// The rule that comes into force when the winner has its first commit acknowledged.
    #[serde(default)]
    pub next: Option<Rule>,
    /// Primacies of earlier attempts, newest last.
    #[serde(default)]
    pub unsettled: Vec<Unsettled>,
    /// The most that may be lost, in bytes, where no acknowledgement is promised.
    #[serde(default)]
    pub loss_bytes: Option<u64>,
    /// When it was begun.
    pub started_at: WallTime,
    /// When each phase began.
    pub phases: Vec<PhaseTime>,
    /// Why it was taken back, where it was.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ended_because: String,
}

impl Failover {
    /// The node that was asked for, if one was.
    pub fn asked_for(&self) -> Option<NodeId> {
        match self.kind {
            FailoverKind::Automatic => None,
            FailoverKind::Switchover { to } | FailoverKind::Forced { to, .. } => to,
        }
    }

    /// When it entered a phase, if it did.
    pub fn entered(&self, phase: FailoverPhase) -> Option<WallTime> {
        self.phases.iter().find(|time| time.phase == phase).map(|time| time.at)
    }
}

/// How far a planned switchover is before it becomes an attempt, or how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "stage")]
pub enum PlanStage {
    /// Its time has not come.
    Waiting,
    /// The primary writes a checkpoint while it serves, so that it stops quickly later.
    Checkpoint,
    /// The candidates write a restartpoint.
    Restartpoint,
    /// It became this attempt.
    Begun {
        /// Id of the attempt.
        failover: String,
    },
    /// It was given up before anything was changed.
    Dropped {
        /// Why.
        reason: String,
    },
    /// Somebody took it back.
    Cancelled {
        /// Who.
        by: String,
    },
}

/// A switchover that somebody asked for, from the wish to the attempt that it becomes. The primary serves all the time
/// until that attempt begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedSwitchover {
    /// `sw_` and a number.
    pub id: String,
    /// The mark of the request that made it.
    pub request: String,
    /// The primary then; another one makes the plan void.
    pub from: NodeId,
    /// The node asked for; the best one when absent.
    #[serde(default)]
    pub to: Option<NodeId>,
    /// The epoch then; another one makes the plan void.
    pub epoch: Epoch,
    /// Who asked for it.
    pub actor: String,
    /// Why; may be empty.
    pub because: String,
    /// When it was asked for.
    pub asked_at: WallTime,
    /// When it is to happen.
    pub at: WallTime,
    /// Whether a time was asked for.
    pub scheduled: bool,
    /// How far it is.
    #[serde(flatten)]
    pub stage: PlanStage,
    /// When the primary's checkpoint was begun.
    #[serde(default)]
    pub checkpoint_at: Option<WallTime>,
    /// When it was done, and restartpoints were begun.
    #[serde(default)]
    pub restartpoint_at: Option<WallTime>,
    /// Candidates whose restartpoint is done.
    #[serde(default)]
    pub ready: BTreeSet<NodeId>,
    /// When it became an attempt, or was given up.
    #[serde(default)]
    pub ended_at: Option<WallTime>,
}

impl PlannedSwitchover {
    /// Whether it still may become an attempt.
    pub fn is_open(&self) -> bool {
        match self.stage {
            PlanStage::Waiting | PlanStage::Checkpoint | PlanStage::Restartpoint => true,
            PlanStage::Begun { .. } | PlanStage::Dropped { .. } | PlanStage::Cancelled { .. } => false,
        }
    }
}

/// One candidate before a change of primary, for people.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its name.
    pub node: NodeName,
    /// Whether it can take over now.
    pub eligible: bool,
    /// Whether it is the one that would be chosen, as far as can be told.
    pub expected: bool,
    /// Log that it has not applied, in bytes, where known.
    pub lag_bytes: Option<u64>,
    /// How old its data is, in seconds, where known.
    pub lag_seconds: Option<f64>,
    /// Failover preference.
    pub priority: u32,
    /// Without the primary's help: the most that would be lost, in bytes; absent where unknown.
    #[serde(default)]
    pub loss_bytes: Option<u64>,
    /// Why it cannot take over, with value and threshold; empty if it can.
    pub reason: String,
}
