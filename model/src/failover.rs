//! A change of primary in progress, as it is recorded in consensus: every keeper reads it and does its own part, and
//! any keeper can take it further. What may follow what is decided in `cluster::failover`.

use crate::names::NodeId;
use crate::state::Rule;
use crate::units::{Epoch, Lsn, Timeline, WallTime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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
}
