//! Who must be recruited before anybody may be promoted, and who is.

use model::failover::{Failover, FailoverKind, FailoverPhase, Recruited};
use model::state::Stage;
use model::{ClusterState, Epoch, NodeId, Rule};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a keeper tells the others about the attempt in progress. It is in every heartbeat, and stays true for its epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The epoch it promised, fsynced.
    pub epoch: Epoch,
    /// What it holds, once it is recruited; absent for witnesses and those who are not.
    pub recruited: Option<Recruited>,
    /// Every lease it granted to an older epoch has lapsed, counted by its own clock from the receipt of the request.
    pub lapsed: bool,
}

/// The rules that bind an attempt: the one in force, and those of winners that were never settled.
pub fn binding(state: &ClusterState) -> impl Iterator<Item = &Rule> {
    let unsettled = state.failover.iter().flat_map(|failover| failover.unsettled.iter().map(|it| &it.rule));
    std::iter::once(&state.rule).chain(unsettled)
}

/// As `binding`, for an attempt that would follow the present one.
pub fn binding_next(state: &ClusterState) -> impl Iterator<Item = &Rule> {
    let promoting = state.failover.iter().filter(|failover| failover.phase == FailoverPhase::Promote);
    binding(state).chain(promoting.filter_map(|failover| failover.next.as_ref()))
}

/// Why a rule is still open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Open {
    /// Too few of its voters are recruited.
    Voters {
        /// The epoch of the rule.
        epoch: Epoch,
        /// Recruited of them.
        recruited: u32,
        /// Needed of them.
        needed: u32,
    },
    /// It promises nothing, and leases to its primary have not lapsed at a majority.
    Lease {
        /// The epoch of the rule.
        epoch: Epoch,
        /// Keepers whose grants have lapsed.
        lapsed: usize,
        /// Needed of them.
        needed: usize,
    },
}

/// The recruits of this attempt, by their reports.
pub fn recruits(failover: &Failover, reports: &BTreeMap<NodeId, Report>) -> BTreeMap<NodeId, Recruited> {
    let of_epoch = reports.iter().filter(|(_, report)| report.epoch == failover.epoch);
    of_epoch.filter_map(|(node, report)| Some((*node, report.recruited?))).collect()
}

/// By what the rules are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Each by recruits of its own.
    Each,
    /// Some were closed when a later winner was chosen, from which a recruit descends.
    ByDescent,
}

/// Whether every binding rule is closed: no primary of it can get another commit acknowledged, and the recruits hold
/// all that were.
///
/// A rule older than the lineage of a recruit is: it was closed when the winner of that lineage was chosen, stays so, and
/// the recruit descends from that winner. Its own nodes may have given up what they held for that winner since, so
/// there may be no other way to close it ever again.
pub fn closed(state: &ClusterState, failover: &Failover, reports: &BTreeMap<NodeId, Report>) -> Result<Closed, Open> {
    let recruited = recruits(failover, reports);
    let lineage = recruited.values().map(|held| held.lineage).max().unwrap_or_default();
    let open = |rule: &Rule| {
        if recruited.contains_key(&rule.primary) {
            return Ok(());
        }
        // Where a person accepted a loss, the voters that are missing are not waited for.
        let forced = matches!(failover.kind, FailoverKind::Forced { .. });
        if rule.acks == 0 || forced {
            let lapsed = electors(state)
                .filter(|id| reports.get(id).is_some_and(|report| report.epoch == failover.epoch && report.lapsed));
            let (lapsed, needed) = (lapsed.count(), majority(electors(state).count()));
            return if lapsed >= needed { Ok(()) } else { Err(Open::Lease { epoch: rule.epoch, lapsed, needed }) };
        }
        let count = rule.voters.iter().filter(|voter| recruited.contains_key(voter)).count() as u32;
        let needed = rule.recruit_quorum.max(1);
        if count >= needed { Ok(()) } else { Err(Open::Voters { epoch: rule.epoch, recruited: count, needed }) }
    };
    let mut closed = Closed::Each;
    for rule in binding(state) {
        match open(rule) {
            Ok(()) => {}
            Err(_) if rule.epoch < lineage => closed = Closed::ByDescent,
            Err(open) => return Err(open),
        }
    }
    Ok(closed)
}

/// Whether the attempt that would follow could close every rule with these nodes alone. A claim cuts streams, so one
/// that cannot succeed would only do harm.
pub fn reachable(state: &ClusterState, alive: &BTreeSet<NodeId>) -> bool {
    binding_next(state).all(|rule| {
        if rule.acks == 0 {
            let here = electors(state).filter(|id| alive.contains(id)).count();
            return here >= majority(electors(state).count());
        }
        rule.voters.iter().filter(|voter| alive.contains(voter)).count() as u32 >= rule.recruit_quorum.max(1)
    })
}

/// The keepers whose majority counts: all members but those that are only joining, whose keepers may not even run.
pub fn electors(state: &ClusterState) -> impl Iterator<Item = NodeId> {
    state.members.values().filter(|member| member.stage != Stage::Joining).map(|member| member.id)
}

/// More than half.
pub fn majority(all: usize) -> usize {
    all / 2 + 1
}

/// Whether this node is to be recruited in the present phase. The primary of the rule itself is, where it was asked to
/// stop, and where it can no longer be confirmed.
pub fn wanted(state: &ClusterState, failover: &Failover, me: NodeId) -> bool {
    if state.members.get(&me).is_none_or(|member| member.witness) {
        return false;
    }
    let stops = match failover.kind {
        FailoverKind::Switchover { .. } | FailoverKind::Forced { .. } => true,
        FailoverKind::Automatic => !failover.unsettled.is_empty(),
    };
    if me == state.rule.primary && stops {
        return true;
    }
    if failover.phase != FailoverPhase::Recruit {
        return false;
    }
    // Where a person accepted a loss, whoever has data and may win may be the best that is left.
    let could_win = |member: &model::Member| member.stage == Stage::Active && member.may_vote_for_commits();
    let forced = matches!(failover.kind, FailoverKind::Forced { .. });
    forced && state.members.get(&me).is_some_and(could_win)
        || binding(state)
            .any(|rule| rule.voters.contains(&me) || (rule.primary == me && rule.epoch != state.rule.epoch))
}
