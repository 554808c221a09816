//! Before a planned switchover: who can take over, who cannot and why, and whether to begin at all.
//!
//! The switchover itself is an attempt like any other (`order`), with the phase `Drain` in front, in which the old
//! primary stops in order while its replicas still receive. Since the primary is then recruited itself, its rule is
//! closed without asking anybody else, and the target must hold all of its log.

use super::Policy;
use super::candidate::{Unfit, fitness};
use model::failover::FailoverKind;
use model::{ClusterState, LagBytes, NodeId, NodeName};
use std::collections::BTreeMap;

/// More log than this to be replayed would make writers wait too long.
pub const LAG_MAX: LagBytes = LagBytes(64 << 20);

/// How a replica does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplicaNow {
    /// It streams from the primary.
    pub streaming: bool,
    /// How far its replay trails the primary, where known.
    pub behind: Option<LagBytes>,
    /// Its replay is paused.
    pub paused: bool,
}

/// Why a switchover to a node is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotNow {
    /// By what it is.
    Unfit(Unfit),
    /// It does not stream from the primary.
    NotStreaming,
    /// Its replay is paused.
    Paused,
    /// It has too much to replay.
    Lag(LagBytes),
    /// Nobody knows what it has to replay.
    LagUnknown,
    /// Its keeper does not answer.
    Silent,
}

impl NotNow {
    /// Whether it is likely to end by itself within moments, so that waiting is better than refusing: a replica that was
    /// just attached may lose its stream once more, and is a voter only when it streams.
    pub fn passes(&self) -> bool {
        match self {
            NotNow::NotStreaming | NotNow::LagUnknown | NotNow::Unfit(Unfit::NotVoter) => true,
            NotNow::Unfit(_) | NotNow::Paused | NotNow::Lag(_) | NotNow::Silent => false,
        }
    }
}

impl std::fmt::Display for NotNow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NotNow::Unfit(unfit) => unfit.fmt(f),
            NotNow::NotStreaming => f.write_str("it does not stream from the primary"),
            NotNow::Paused => f.write_str("its replay is paused"),
            NotNow::Lag(lag) => write!(f, "it has {lag} bytes to replay (at most {LAG_MAX})"),
            NotNow::LagUnknown => f.write_str("nobody knows how much it has to replay"),
            NotNow::Silent => f.write_str("its keeper does not answer"),
        }
    }
}

/// One row of the preflight table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which node.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Whether it can take over now.
    pub verdict: Result<(), NotNow>,
}

/// What is known before anything is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preflight {
    /// Every data node but the primary.
    pub rows: Vec<Row>,
    /// Why nothing should be begun at all.
    pub refused: Option<String>,
}

impl Preflight {
    /// The candidate that is worth waiting for, where no other can take over now.
    pub fn worth_waiting_for(&self, to: Option<NodeId>) -> Option<&Row> {
        let mut asked = self.rows.iter().filter(|row| to.is_none_or(|to| to == row.node));
        if asked.clone().any(|row| row.verdict.is_ok()) {
            return None;
        }
        asked.find(|row| row.verdict.as_ref().is_err_and(NotNow::passes))
    }
}

/// Looks at every candidate. `now` holds the replicas whose keepers answer.
pub fn preflight(
    state: &ClusterState,
    to: Option<NodeId>,
    now: &BTreeMap<NodeId, ReplicaNow>,
    primary_serves: bool,
    policy: &Policy,
) -> Preflight {
    let kind = FailoverKind::Switchover { to };
    let candidates = state.members.values().filter(|member| !member.witness && member.id != state.rule.primary);
    let rows: Vec<Row> = candidates
        .map(|member| {
            let fit = fitness(state, &kind, member, policy).map_err(NotNow::Unfit).and_then(|_| {
                if state.rule.voters.contains(&member.id) { Ok(()) } else { Err(NotNow::Unfit(Unfit::NotVoter)) }
            });
            let verdict = fit.and_then(|()| match now.get(&member.id) {
                None => Err(NotNow::Silent),
                Some(it) if !it.streaming => Err(NotNow::NotStreaming),
                Some(it) if it.paused => Err(NotNow::Paused),
                Some(ReplicaNow { behind: None, .. }) => Err(NotNow::LagUnknown),
                Some(ReplicaNow { behind: Some(behind), .. }) if *behind > LAG_MAX => Err(NotNow::Lag(*behind)),
                Some(ReplicaNow { behind: Some(_), .. }) => Ok(()),
            });
            Row { node: member.id, name: member.name.clone(), verdict }
        })
        .collect();
    let refused = if state.failover.is_some() {
        Some("another change of primary is in progress".to_owned())
    } else if !primary_serves {
        Some("the primary does not serve: this is a failover, not a switchover".to_owned())
    } else if to == Some(state.rule.primary) {
        Some("it is the primary already".to_owned())
    } else if rows.iter().all(|row| row.verdict.is_err()) {
        Some("no node can take over now".to_owned())
    } else {
        None
    };
    Preflight { rows, refused }
}
