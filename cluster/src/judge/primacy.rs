//! What people decided about who is primary: a pause, a planned switchover, and the change that is in progress.

use super::problems::Found;
use super::{Scene, words};
use model::failover::{Failover, FailoverPhase};
use model::status::{PausedStatus, PlannedStatus, Severity};
use model::units::Millis;
use model::{ClusterState, NodeId};

/// The pause, if there is one.
pub(crate) fn paused(scene: &Scene<'_>) -> Option<PausedStatus> {
    let pause = scene.state.paused_now(scene.wall)?;
    Some(PausedStatus {
        actor: pause.actor.clone(),
        reason: pause.reason.clone(),
        since: pause.since,
        until: pause.until,
    })
}

/// A pause is worth knowing, and no fault: the servers do what they should.
pub(crate) fn pause_problem(scene: &Scene<'_>) -> Option<Found> {
    let pause = scene.state.paused_now(scene.wall)?;
    let left = pause.until.map(|until| Millis(until.millis_since(scene.wall).max(0) as u64));
    let what = match left {
        Some(left) => format!("automatic failover is paused for another {}", words::span(left)),
        None => "automatic failover is paused".to_owned(),
    };
    let why = if pause.reason.is_empty() { String::new() } else { format!(": {}", pause.reason) };
    let texts = [what, format!("{} asked for it{why}", pause.actor), "stemma resume".to_owned()];
    Some(Found::new("ST2306", Severity::Info, None, texts))
}

/// The switchover that waits, if there is one.
pub(crate) fn planned(state: &ClusterState) -> Option<PlannedStatus> {
    let plan = state.planned_switchover()?;
    let name = |id: NodeId| state.members.get(&id).map(|member| member.name.clone());
    Some(PlannedStatus {
        id: plan.id.clone(),
        at: plan.at,
        from: name(plan.from)?,
        to: plan.to.and_then(name),
        actor: plan.actor.clone(),
        scheduled: plan.scheduled,
    })
}

/// The change of primary in progress: its id and a sentence.
pub(crate) fn in_progress(scene: &Scene<'_>) -> Option<(String, String)> {
    let failover = scene.state.failover.as_ref()?;
    Some((failover.id.clone(), format!("{}: {}", change(scene)?, failover.because)))
}

/// The change of primary in progress in a few words: who follows whom, in which epoch, how far, for how long.
pub(crate) fn change(scene: &Scene<'_>) -> Option<String> {
    let failover = scene.state.failover.as_ref()?;
    let name = |id: NodeId| {
        scene.state.members.get(&id).map_or_else(|| format!("node {id}"), |member| member.name.to_string())
    };
    let from = name(failover.from);
    let what = match (failover.phase, failover.winner) {
        (FailoverPhase::Drain, _) => format!("{from} stops in order"),
        (FailoverPhase::Promote, Some(winner)) => format!("{} takes over from {from}", name(winner)),
        (FailoverPhase::Recruit, _)
        | (FailoverPhase::Promote, None)
        | (FailoverPhase::Done | FailoverPhase::Undone | FailoverPhase::Superseded, _) => {
            format!("a successor of {from} is being found")
        }
    };
    let since = failover.entered(failover.phase).unwrap_or(failover.started_at);
    let lasts = Millis(u64::try_from(scene.wall.millis_since(since)).unwrap_or(0));
    let phase = failover.phase.as_str();
    Some(format!("{what} (epoch {}, {phase} for {})", failover.epoch, words::span(lasts)))
}

/// Whether a node accepts writes because it is taking over: promoted, and its first commit not settled yet.
pub(crate) fn takes_over(state: &ClusterState, id: NodeId) -> bool {
    let promotes = |failover: &Failover| failover.phase == FailoverPhase::Promote && failover.winner == Some(id);
    state.failover.as_ref().is_some_and(promotes)
}
