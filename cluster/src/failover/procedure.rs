//! The shared steps of an attempt: state in, next state out. Each is written by compare-and-set, and refuses (`None`) a
//! state that is not the one it was meant for, so that it can be tried again on a newer state without harm.

use super::UNSETTLED_MAX;
use super::candidate::Choice;
use crate::admission::LINEAGE_MAX;
use crate::history::{self, STEMMA, keep_newest};
use model::failover::{Failover, FailoverKind, FailoverPhase, PhaseTime, Recruited, Unsettled};
use model::follow::Promoted;
use model::limits::FAILOVERS_MAX;
use model::state::{LineageEntry, XidSwitch};
use model::{ClusterState, Epoch, NodeId, Rule, Timeline, WallTime};
use std::collections::BTreeMap;

/// The highest epoch that was given out.
pub fn epoch_of(state: &ClusterState) -> Epoch {
    state.failover.as_ref().map_or(state.rule.epoch, |failover| failover.epoch)
}

/// The node that ought to serve: the winner once chosen, else the primary of the rule.
pub fn leader_of(state: &ClusterState) -> NodeId {
    let promoting = state.failover.as_ref().filter(|failover| failover.phase == FailoverPhase::Promote);
    promoting.and_then(|failover| failover.winner).unwrap_or(state.rule.primary)
}

/// Begins an attempt under the next epoch. `after` is the highest epoch the caller knew: of several that claim at once,
/// one does. A running attempt is taken over only if its winner was chosen; before that it can simply go on, unless a person accepts
/// a loss that it may not.
pub fn claim(
    state: &ClusterState,
    after: Epoch,
    kind: FailoverKind,
    because: &str,
    actor: &str,
    now: WallTime,
) -> Option<ClusterState> {
    if epoch_of(state) != after {
        return None;
    }
    let mut next = state.clone();
    let mut unsettled = Vec::new();
    if let Some(earlier) = next.failover.take() {
        unsettled.clone_from(&earlier.unsettled);
        match (earlier.phase, earlier.next.clone(), earlier.winner) {
            (FailoverPhase::Promote, Some(rule), Some(winner)) => {
                if earlier.unsettled.len() >= UNSETTLED_MAX {
                    return None;
                }
                unsettled.push(Unsettled { rule, began: *earlier.recruited.get(&winner)? });
            }
            // No winner was named, so nothing was promised that the rules do not bind already.
            (FailoverPhase::Recruit, ..)
                if earlier.kind == FailoverKind::Automatic && matches!(kind, FailoverKind::Forced { .. }) => {}
            _ => return None,
        }
        archive(&mut next, earlier, FailoverPhase::Superseded, now);
    }
    let epoch = Epoch(after.0 + 1);
    let phase = match kind {
        FailoverKind::Switchover { .. } => FailoverPhase::Drain,
        FailoverKind::Automatic | FailoverKind::Forced { .. } => FailoverPhase::Recruit,
    };
    next.failover = Some(Failover {
        id: format!("fo_{epoch}"),
        epoch,
        from: state.rule.primary,
        kind,
        because: because.to_owned(),
        actor: actor.to_owned(),
        request: String::new(),
        phase,
        recruited: BTreeMap::new(),
        refused: BTreeMap::new(),
        winner: None,
        next: None,
        unsettled,
        loss_bytes: None,
        started_at: now,
        phases: vec![PhaseTime { phase, at: now }],
        ended_because: String::new(),
    });
    let text = format!("another primary is being made under epoch {epoch}: {because}");
    history::record(&mut next, now, "failover-begun", None, text, actor);
    Some(next)
}

/// Switchover: the old primary has stopped (or is dead); now the replicas are recruited.
pub fn drained(state: &ClusterState, epoch: Epoch, now: WallTime) -> Option<ClusterState> {
    let mut next = state.clone();
    let failover = next.failover.as_mut().filter(|it| it.epoch == epoch && it.phase == FailoverPhase::Drain)?;
    enter(failover, FailoverPhase::Recruit, now);
    Some(next)
}

/// A switchover whose primary died, or a forced attempt that finds nobody and cannot be undone: goes on as if nobody had
/// asked for it.
pub fn unplan(state: &ClusterState, epoch: Epoch, now: WallTime) -> Option<ClusterState> {
    let mut next = state.clone();
    let failover = next.failover.as_mut().filter(|it| it.epoch == epoch)?;
    let open = matches!(failover.phase, FailoverPhase::Drain | FailoverPhase::Recruit);
    if !open || failover.kind == FailoverKind::Automatic {
        return None;
    }
    failover.kind = FailoverKind::Automatic;
    if failover.phase == FailoverPhase::Drain {
        enter(failover, FailoverPhase::Recruit, now);
    }
    Some(next)
}

/// Names the winner. From here on it may be promoted at any moment.
pub fn choose(state: &ClusterState, epoch: Epoch, choice: &Choice, now: WallTime) -> Option<ClusterState> {
    let mut next = state.clone();
    let failover = next.failover.as_mut().filter(|it| it.epoch == epoch && it.phase == FailoverPhase::Recruit)?;
    enter(failover, FailoverPhase::Promote, now);
    failover.winner = Some(choice.winner);
    failover.next = Some(Rule { epoch, version: state.rule.version + 1, ..choice.next.clone() });
    failover.recruited.clone_from(&choice.recruited);
    failover.refused.clone_from(&choice.refused);
    failover.loss_bytes = choice.loss_bytes;
    let name = state.members.get(&choice.winner).map(|member| member.name.clone());
    let text = format!("{} becomes the primary of epoch {epoch}", describe(state, choice.winner));
    history::record(&mut next, now, "failover-chosen", name.as_ref(), text, STEMMA);
    Some(next)
}

/// Puts the next rule in force: the winner's first record is held by `rule.acks` of `rule.voters`. The rule is the one
/// recorded, or one that promises less of the same voters (where too few came and the settings allow it): the winner's
/// server still waits for the recorded ones, so fewer voters would not cover what it acknowledges.
pub fn settle(
    state: &ClusterState,
    epoch: Epoch,
    rule: &Rule,
    timeline: Timeline,
    now: WallTime,
) -> Option<ClusterState> {
    let mut next = state.clone();
    let failover = next.failover.take().filter(|it| it.epoch == epoch && it.phase == FailoverPhase::Promote)?;
    let (winner, recorded) = (failover.winner?, failover.next.clone()?);
    let less = rule.acks <= recorded.acks && rule.voters == recorded.voters;
    if rule.primary != winner || rule.epoch != epoch || !less {
        return None;
    }
    next.rule = Rule { version: state.rule.version + 1, ..rule.clone() };
    next.lineage = lineage_with(state, &failover, timeline);
    keep_newest(&mut next.lineage, LINEAGE_MAX);
    let name = state.members.get(&winner).map(|member| member.name.clone());
    if let Some(follow) = next.follow.as_mut().filter(|follow| follow.promoted.is_none()) {
        follow.promoted = Some(Promoted { at: now, failover: failover.id.clone() });
    }
    archive(&mut next, failover, FailoverPhase::Done, now);
    let text = format!("{} is the primary of epoch {epoch}", describe(state, winner));
    history::record(&mut next, now, "failover-done", name.as_ref(), text, STEMMA);
    if rule.acks < recorded.acks {
        let text =
            format!("commits are held by {} replicas instead of {}: the others stayed away", rule.acks, recorded.acks);
        history::record(&mut next, now, "durability-lowered", name.as_ref(), text, STEMMA);
    }
    Some(next)
}

/// Adds to a settled change the transaction numbers that its winner noted: with them, commits whose answer was lost can be
/// looked up.
pub fn note_xids(state: &mut ClusterState, epoch: Epoch, xids: XidSwitch) {
    if let Some(entry) = state.lineage.iter_mut().find(|entry| entry.epoch == epoch) {
        entry.xids = Some(xids);
    }
}

/// Confirms the old primary under the new epoch. Refused once any winner may have been promoted.
pub fn undo(state: &ClusterState, epoch: Epoch, because: &str, now: WallTime) -> Option<ClusterState> {
    let mut next = state.clone();
    let mut failover = next.failover.take().filter(|it| it.epoch == epoch)?;
    let open = matches!(failover.phase, FailoverPhase::Drain | FailoverPhase::Recruit);
    if !open || !failover.unsettled.is_empty() {
        return None;
    }
    failover.ended_because = because.to_owned();
    next.rule.epoch = epoch;
    next.rule.version += 1;
    let name = state.members.get(&failover.from).map(|member| member.name.clone());
    archive(&mut next, failover, FailoverPhase::Undone, now);
    let text = format!("{} stays the primary, under epoch {epoch}: {because}", describe(state, state.rule.primary));
    history::record(&mut next, now, "failover-undone", name.as_ref(), text, STEMMA);
    Some(next)
}

/// The lineage with that of a winner, oldest first.
pub fn lineage_with(state: &ClusterState, failover: &Failover, timeline: Timeline) -> Vec<LineageEntry> {
    let mut lineage = state.lineage.clone();
    for entry in lineage_entries(state, failover, timeline) {
        if lineage.iter().all(|known| known.epoch != entry.epoch) {
            lineage.insert(lineage.partition_point(|known| known.epoch < entry.epoch), entry);
        }
    }
    lineage
}

/// The lineage of a winner: its own timeline, and those of primacies that it descends from and that were never settled.
/// Of those, the ones that a later primacy left aside come back only where a person has such a node made the primary; they
/// are looked up in the archive.
fn lineage_entries(state: &ClusterState, failover: &Failover, timeline: Timeline) -> Vec<LineageEntry> {
    let Some(began) = failover.winner.and_then(|winner| failover.recruited.get(&winner)) else { return Vec::new() };
    let entry = |epoch: Epoch, timeline: Timeline, began: &Recruited| LineageEntry {
        epoch,
        timeline,
        began_at: Some(began.position),
        from: Some(began.lineage),
        xids: None,
    };
    let mut entries = vec![entry(failover.epoch, timeline, began)];
    let mut child = *began;
    let archived = |epoch: Epoch| {
        let attempt = state.failovers.iter().find(|it| it.epoch == epoch)?;
        attempt.winner.and_then(|winner| attempt.recruited.get(&winner)).copied()
    };
    while state.lineage.iter().all(|known| known.epoch != child.lineage) {
        let unsettled = failover.unsettled.iter().find(|it| it.rule.epoch == child.lineage).map(|it| it.began);
        let Some(parent) = unsettled.or_else(|| archived(child.lineage)).filter(|it| it.lineage < child.lineage) else {
            break;
        };
        entries.push(entry(child.lineage, child.timeline, &parent));
        child = parent;
    }
    entries
}

fn enter(failover: &mut Failover, phase: FailoverPhase, now: WallTime) {
    failover.phase = phase;
    failover.phases.push(PhaseTime { phase, at: now });
}

fn archive(state: &mut ClusterState, mut failover: Failover, phase: FailoverPhase, now: WallTime) {
    enter(&mut failover, phase, now);
    state.failovers.push(failover);
    keep_newest(&mut state.failovers, FAILOVERS_MAX);
}

fn describe(state: &ClusterState, id: NodeId) -> String {
    state.members.get(&id).map_or_else(|| format!("node {id}"), |member| member.name.to_string())
}
