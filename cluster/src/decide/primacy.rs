//! Commands about who is primary: switch over, fail over, pause, resume.

use super::{Context, member_named, outcome, unchanged};
use crate::failover::candidate::Unfit;
use crate::failover::plan::{self, replicas_now};
use crate::failover::switchover::{NotNow, Row, preflight};
use crate::failover::{Policy, WINNER_STALLED_AFTER, procedure, recruit};
use crate::history;
use crate::operation;
use model::failover::{Candidate, FailoverKind, FailoverPhase, PlanStage, PlannedSwitchover};
use model::limits::PAUSE_MAX;
use model::settings::{Size, Span};
use model::state::Pause;
use model::{ClusterState, Member, Millis, NodeId, NodeName, Outcome, Trouble, WallTime};
use std::collections::BTreeSet;

type Decided = Result<(ClusterState, Outcome), Trouble>;

/// Plans a switchover. It begins at once unless a time is given; the primary's keeper carries it out.
pub(super) fn switchover(
    state: &ClusterState,
    to: Option<&NodeName>,
    at: Option<WallTime>,
    context: &Context<'_>,
) -> Decided {
    let request = context.request();
    if let Some(made) = state.switchovers.iter().find(|plan| plan.request == request) {
        // The write took effect although its answer was lost: this is the request's own plan.
        let text = format!("switchover {} was planned", made.id);
        return Ok((state.clone(), Outcome { failover: Some(made.id.clone()), ..outcome(text) }));
    }
    let to = to.map(|name| member_named(state, name)).transpose()?;
    if let Some(member) = to.filter(|member| member.id == state.rule.primary) {
        return Err(Trouble::target_is_primary(
            format!("`{}` is the primary already", member.name),
            "name a replica, or leave --to out for the best one",
        ));
    }
    nothing_else_changes(state)?;
    if let Some(at) = at {
        may_schedule(state, at, context)?;
    }
    let to_id = to.map(|member| member.id);
    let (candidates, notes) = look(state, to_id, context, at.is_some())?;
    let expected = candidates.iter().find(|candidate| candidate.expected).map(|candidate| candidate.node.to_string());
    let mut next = state.clone();
    let id = format!("sw_{}", next.next_order);
    next.next_order += 1;
    plan::add(
        &mut next,
        PlannedSwitchover {
            id: id.clone(),
            request,
            from: state.rule.primary,
            to: to_id,
            epoch: state.rule.epoch,
            actor: context.actor.name.clone(),
            because: context.actor.reason.clone(),
            asked_at: context.now,
            at: at.unwrap_or(context.now),
            scheduled: at.is_some(),
            stage: PlanStage::Waiting,
            checkpoint_at: None,
            restartpoint_at: None,
            ready: BTreeSet::new(),
            ended_at: None,
        },
    );
    let from = state.primary().map_or("?", |primary| primary.name.as_str());
    let target = match (to, expected) {
        (Some(member), _) => member.name.to_string(),
        (None, Some(best)) => format!("the best replica, {best} as it looks now"),
        (None, None) => "the best replica".to_owned(),
    };
    let text = match at {
        None => format!("switchover {id} from {from} to {target}"),
        Some(_) => format!("switchover {id} from {from} to {target} is scheduled"),
    };
    let because = if context.actor.reason.is_empty() { String::new() } else { format!(": {}", context.actor.reason) };
    let told = format!("{text}{because}");
    history::record(&mut next, context.now, "switchover-planned", None, told, &context.actor.name);
    Ok((next, Outcome { failover: Some(id), candidates, notes, ..outcome(text) }))
}

/// Of two changes of primary at a time the second is refused, and so is one in the middle of a rolling restart.
fn nothing_else_changes(state: &ClusterState) -> Result<(), Trouble> {
    if let Some(plan) = state.planned_switchover() {
        return Err(Trouble::operation_running(
            format!("switchover {} is planned already", plan.id),
            "wait for it, or take it back with `stemma switchover --cancel`",
        ));
    }
    if let Some(running) = &state.failover {
        return Err(Trouble::operation_running(
            format!("another change of primary is in progress: {}", running.id),
            format!("wait for it; `stemma explain {}` shows how far it is", running.id),
        ));
    }
    match operation::running(state) {
        Some(running) => Err(Trouble::operation_running(
            format!("operation {} is running: {}", running.id, running.because),
            format!("wait for it, or end it with `stemma op cancel {}`", running.id),
        )),
        None => Ok(()),
    }
}

fn may_schedule(state: &ClusterState, at: WallTime, context: &Context<'_>) -> Result<(), Trouble> {
    if at <= context.now {
        return Err(Trouble::bad_request(
            "the time for the switchover is not in the future",
            "name a later time, or none for now",
        ));
    }
    match state.paused_now(context.now) {
        Some(pause) => Err(Trouble::failover_paused(
            format!("automatic failover is paused by {}; nothing can be scheduled", pause.actor),
            "end the pause with `stemma resume` first, or switch over now, without --at",
        )),
        None => Ok(()),
    }
}

/// The table of candidates and what is to be said of them, or the refusal that lists them all.
fn look(
    state: &ClusterState,
    to: Option<NodeId>,
    context: &Context<'_>,
    later: bool,
) -> Result<(Vec<Candidate>, Vec<String>), Trouble> {
    let policy = Policy::of(state, context.now);
    let now = replicas_now(context.status);
    let asked = preflight(state, to, &now, context.status.primary_up, &policy);
    // The others are shown by what they could do themselves, not by not having been asked for.
    let open = preflight(state, None, &now, context.status.primary_up, &policy);
    let verdict = |row: &Row| -> Result<(), NotNow> {
        let of_asked = asked.rows.iter().find(|asked| asked.node == row.node && to == Some(row.node));
        of_asked.unwrap_or(row).verdict.clone()
    };
    let chosen = to.or_else(|| best(state, open.rows.iter().filter(|row| row.verdict.is_ok()).map(|row| row.node)));
    let candidates: Vec<Candidate> = open
        .rows
        .iter()
        .map(|row| {
            let verdict = verdict(row);
            let reason = verdict.as_ref().err().map(ToString::to_string).unwrap_or_default();
            candidate(state, row.node, context, verdict.is_ok(), chosen == Some(row.node), reason)
        })
        .collect();
    let Some(refused) = asked.refused_because(to) else { return Ok((candidates, Vec::new())) };
    // By then it may be streaming again; what it is does not change by waiting.
    let by_what_it_is = |row: &&Row| matches!(row.verdict, Err(NotNow::Unfit(_)));
    if later && !asked.rows.iter().filter(|row| to.is_none_or(|to| to == row.node)).all(|row| by_what_it_is(&row)) {
        return Ok((candidates, Vec::new()));
    }
    if let Some(Row { name, verdict: Err(why), .. }) = asked.worth_waiting_for(to).filter(|_| context.status.primary_up)
    {
        let seconds = plan::CANDIDATE_WAIT.0 / 1_000;
        let note = format!("{name} cannot take over yet: {why}. It is waited for up to {seconds} s");
        return Ok((candidates, vec![note]));
    }
    let mut trouble = Trouble::switchover_refused(
        refused,
        "`stemma status` shows what is wrong; name another node with --to, or mend it and try again",
    );
    trouble.causes = lines(&candidates);
    Err(trouble)
}

/// Among equals: the primary's site, then priority, then the lowest number; as `candidate::choose` has it.
fn best(state: &ClusterState, nodes: impl Iterator<Item = NodeId>) -> Option<NodeId> {
    let home = state.primary().map(|primary| &primary.site);
    let key = |member: &Member| (home == Some(&member.site), member.priority, std::cmp::Reverse(member.id));
    nodes.filter_map(|id| state.members.get(&id)).max_by_key(|member| key(member)).map(|member| member.id)
}

fn candidate(
    state: &ClusterState,
    id: NodeId,
    context: &Context<'_>,
    eligible: bool,
    expected: bool,
    reason: String,
) -> Candidate {
    let status = context.status.nodes.iter().find(|node| node.id == id);
    let lag = status.and_then(|node| node.lag.as_ref());
    Candidate {
        node: state.members[&id].name.clone(),
        eligible,
        expected: expected && eligible,
        lag_bytes: lag.and_then(|lag| lag.apply_bytes),
        lag_seconds: lag.and_then(|lag| lag.seconds),
        priority: state.members[&id].priority,
        loss_bytes: None,
        reason,
    }
}

fn lines(candidates: &[Candidate]) -> Vec<String> {
    let line = |candidate: &Candidate| {
        let verdict = if candidate.eligible { "can take over" } else { candidate.reason.as_str() };
        format!("{}: {verdict}", candidate.node)
    };
    candidates.iter().map(line).collect()
}

/// Takes back the switchover that has not begun.
pub(super) fn cancel(state: &ClusterState, context: &Context<'_>) -> Decided {
    let Some(plan) = state.planned_switchover() else {
        return match &state.failover {
            Some(running) => Err(Trouble::switchover_refused(
                format!("{} has begun and cannot be taken back", running.id),
                format!("`stemma explain {}` shows how far it is; switch back when it is done", running.id),
            )),
            None => Err(Trouble::not_found("no switchover is planned", "nothing needs to be done")),
        };
    };
    let next = plan::cancel(state, &plan.id, &context.actor.name, context.now);
    let next = next.ok_or_else(|| Trouble::internal("an open plan cannot be cancelled", "report this defect"))?;
    Ok((next, Outcome { failover: Some(plan.id.clone()), ..outcome(format!("switchover {} was taken back", plan.id)) }))
}

/// Makes another node the primary although the present one does not help.
pub(super) fn failover(
    state: &ClusterState,
    to: Option<&NodeName>,
    loss_bytes_max: Option<u64>,
    context: &Context<'_>,
) -> Decided {
    let request = context.request();
    let made = state.failovers.iter().chain(&state.failover).find(|failover| failover.request == request);
    if let Some(made) = made {
        let text = format!("failover {} was begun", made.id);
        return Ok((state.clone(), Outcome { failover: Some(made.id.clone()), ..outcome(text) }));
    }
    let to = to.map(|name| member_named(state, name)).transpose()?;
    if let Some(member) = to.filter(|member| member.id == state.rule.primary) {
        return Err(Trouble::target_is_primary(
            format!("`{}` is the primary that is to be replaced", member.name),
            "name a replica, or let the best one be found with --best",
        ));
    }
    if context.status.primary_up && state.failover.is_none() {
        return Err(Trouble::failover_refused(
            "the primary serves: nothing has to be given up",
            "use `stemma switchover`, which loses nothing",
        ));
    }
    in_the_way(state, context)?;
    let kind = FailoverKind::Forced { to: to.map(|member| member.id), loss_bytes_max: loss_bytes_max.unwrap_or(0) };
    let candidates = estimate(state, &kind, context);
    acceptable(state, to, loss_bytes_max, &candidates)?;
    let because = match context.actor.reason.as_str() {
        "" => format!("{} asked for it", context.actor.name),
        given => given.to_owned(),
    };
    let after = procedure::epoch_of(state);
    let claimed = procedure::claim(state, after, kind, &because, &context.actor.name, context.now);
    let Some(mut next) = claimed else {
        return Err(Trouble::operation_running(
            "a change of primary is in progress that cannot be taken over",
            "`stemma status` shows it; try again when it is over",
        ));
    };
    let failover = next.failover.as_mut().filter(|failover| failover.epoch > after);
    let failover = failover.ok_or_else(|| Trouble::internal("a claim without an attempt", "report this defect"))?;
    failover.request = request;
    let id = failover.id.clone();
    let whom = to.map_or_else(|| "the best node".to_owned(), |member| member.name.to_string());
    let text = format!("failover {id} to {whom} was begun");
    Ok((next, Outcome { failover: Some(id), candidates, ..outcome(text) }))
}

/// An attempt that may still succeed by itself is not disturbed.
fn in_the_way(state: &ClusterState, context: &Context<'_>) -> Result<(), Trouble> {
    let Some(running) = &state.failover else { return Ok(()) };
    let age = |phase: FailoverPhase| running.entered(phase).map_or(0, |at| context.now.millis_since(at).max(0) as u64);
    let stuck = match (running.phase, &running.kind) {
        (FailoverPhase::Recruit, FailoverKind::Automatic) => true,
        (FailoverPhase::Promote, _) => age(FailoverPhase::Promote) >= WINNER_STALLED_AFTER.0,
        (FailoverPhase::Recruit | FailoverPhase::Drain, _)
        | (FailoverPhase::Done | FailoverPhase::Undone | FailoverPhase::Superseded, _) => false,
    };
    if stuck {
        return Ok(());
    }
    Err(Trouble::operation_running(
        format!("another change of primary is in progress: {}", running.id),
        format!("wait some seconds for it; `stemma explain {}` shows how far it is", running.id),
    ))
}

/// Every candidate with what would be lost if it took over, as far as this keeper can tell.
fn estimate(state: &ClusterState, kind: &FailoverKind, context: &Context<'_>) -> Vec<Candidate> {
    let policy = Policy::of(state, context.now);
    let up = |id: &NodeId| context.status.nodes.iter().any(|node| node.id == *id && node.keeper_up);
    let alive: BTreeSet<NodeId> = state.members.keys().copied().filter(up).collect();
    // With a quorum of every rule that binds, one of those that answer holds every acknowledged commit.
    let all_held = state.rule.acks > 0 && recruit::reachable(state, &alive);
    let to = match kind {
        FailoverKind::Forced { to, .. } | FailoverKind::Switchover { to } => *to,
        FailoverKind::Automatic => None,
    };
    let open = FailoverKind::Forced { to: None, loss_bytes_max: u64::MAX };
    let verdict = |member: &Member| -> Result<(), String> {
        let asked = if to == Some(member.id) { kind } else { &open };
        crate::failover::candidate::fitness(state, asked, member, &policy).map_err(|unfit: Unfit| unfit.to_string())?;
        if alive.contains(&member.id) { Ok(()) } else { Err(NotNow::Silent.to_string()) }
    };
    let loss = |member: &Member| {
        let lag = context.status.nodes.iter().find(|node| node.id == member.id).and_then(|node| node.lag.as_ref());
        lag.and_then(|lag| lag.receive_bytes)
    };
    let others = state.members.values().filter(|member| !member.witness && member.id != state.rule.primary);
    let fit = others.clone().filter(|member| verdict(member).is_ok()).collect::<Vec<_>>();
    let least = fit.iter().map(|member| loss(member).unwrap_or(u64::MAX)).min();
    let furthest = fit.iter().filter(|member| Some(loss(member).unwrap_or(u64::MAX)) == least).map(|member| member.id);
    let chosen = to.or_else(|| best(state, furthest));
    others
        .map(|member| {
            let verdict = verdict(member);
            let eligible = verdict.is_ok();
            let reason = verdict.err().unwrap_or_default();
            let row = candidate(state, member.id, context, eligible, chosen == Some(member.id), reason);
            let holds_all = all_held && row.expected && to.is_none();
            Candidate { loss_bytes: if holds_all { Some(0) } else { loss(member) }, ..row }
        })
        .collect()
}

/// The bound must be given, and cover what is estimated.
fn acceptable(
    state: &ClusterState,
    to: Option<&Member>,
    most: Option<u64>,
    candidates: &[Candidate],
) -> Result<(), Trouble> {
    let refuse = |reason: String, hint: String| {
        let mut trouble = Trouble::failover_refused(reason, hint);
        trouble.causes = candidates.iter().map(loss_line).collect();
        Err(trouble)
    };
    let Some(chosen) = candidates.iter().find(|candidate| candidate.expected) else {
        let reason = match to {
            Some(member) => format!("{} cannot take over", member.name),
            None => "no node can take over".to_owned(),
        };
        return refuse(reason, "bring a replica back; `stemma status` says what is wrong with each".to_owned());
    };
    let primary = state.primary().map_or("?", |primary| primary.name.as_str());
    let needed = match chosen.loss_bytes {
        Some(bytes) => Size(bytes.div_ceil(1 << 20).max(1) << 20).to_string(),
        None => "unknown".to_owned(),
    };
    let again = format!(
        "if {primary} cannot be brought back: stemma failover --to {} --accept-data-loss {needed}",
        chosen.node
    );
    match (most, chosen.loss_bytes) {
        (None, _) => refuse("a failover by hand needs the loss that is accepted".to_owned(), again),
        (Some(u64::MAX), _) => Ok(()),
        (Some(_), None) => refuse(format!("nobody knows how much {} misses", chosen.node), again),
        (Some(most), Some(loss)) if loss > most => {
            refuse(format!("{} misses up to {loss} bytes of log, {most} are accepted", chosen.node), again)
        }
        (Some(_), Some(_)) => Ok(()),
    }
}

fn loss_line(candidate: &Candidate) -> String {
    let loss = match candidate.loss_bytes {
        Some(bytes) => format!("misses at most {bytes} bytes of log, as last known"),
        None => "nobody knows what it misses".to_owned(),
    };
    match candidate.eligible {
        true => format!("{}: {loss}", candidate.node),
        false => format!("{}: {}; {loss}", candidate.node, candidate.reason),
    }
}

/// Stops automatic failover for a while.
pub(super) fn pause(state: &ClusterState, span: Millis, context: &Context<'_>) -> Decided {
    if span.0 == 0 || span > PAUSE_MAX {
        return Err(Trouble::bad_request(
            format!("a pause of {} is not possible", Span(span)),
            format!("choose up to {}; a pause ends by itself so that it is not forgotten", Span(PAUSE_MAX)),
        ));
    }
    let until = WallTime(context.now.0.saturating_add(i64::try_from(span.0).unwrap_or(i64::MAX)));
    let mut next = state.clone();
    let since = state.paused_now(context.now).map_or(context.now, |pause| pause.since);
    next.paused = Some(Pause {
        actor: context.actor.name.clone(),
        reason: context.actor.reason.clone(),
        since,
        until: Some(until),
    });
    let because = if context.actor.reason.is_empty() { String::new() } else { format!(": {}", context.actor.reason) };
    let text = format!("automatic failover is paused for {}", Span(span));
    history::record(&mut next, context.now, "paused", None, format!("{text}{because}"), &context.actor.name);
    let mut notes = vec!["a primary that fails is not replaced meanwhile; `stemma resume` ends it earlier".to_owned()];
    if let Some(plan) = state.planned_switchover().filter(|plan| plan.scheduled && plan.at < until) {
        notes.push(format!("switchover {} would come due in the pause and will be given up then", plan.id));
    }
    Ok((next, Outcome { notes, ..outcome(text) }))
}

/// Lets automatic failover go on.
pub(super) fn resume(state: &ClusterState, context: &Context<'_>) -> Decided {
    if state.paused.is_none() {
        return Ok(unchanged(state, "automatic failover is not paused"));
    }
    let mut next = state.clone();
    next.paused = None;
    let text = "automatic failover goes on";
    history::record(&mut next, context.now, "resumed", None, text.to_owned(), &context.actor.name);
    Ok((next, outcome(text)))
}
