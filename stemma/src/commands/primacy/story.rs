//! A change of primary told as lines: what happened when, who was asked, who won and why.

use crate::render::units;
use model::change::{self, Change, ChangeResult};
use model::failover::{Failover, FailoverPhase, PlannedSwitchover};
use model::units::WallTime;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When, by the clock of the keeper that wrote it.
    pub at: WallTime,
    /// In words.
    pub text: String,
}

/// All that is recorded of a change, in order.
pub fn events(change: &Change) -> Vec<Event> {
    let mut events = Vec::new();
    if let Some(plan) = &change.plan {
        planned(change, plan, &mut events);
    }
    for attempt in &change.attempts {
        attempted(change, attempt, &mut events);
    }
    events
}

fn planned(change: &Change, plan: &PlannedSwitchover, events: &mut Vec<Event>) {
    let mut add = |at: Option<WallTime>, text: String| events.extend(at.map(|at| Event { at, text }));
    let to = plan.to.map_or_else(|| "the best replica".to_owned(), |to| change.name_of(to));
    let from = change.name_of(plan.from);
    add(Some(plan.asked_at), format!("{} asks for a switchover from {from} to {to}", plan.actor));
    add(plan.checkpoint_at, format!("{from} writes a checkpoint, serving"));
    add(plan.restartpoint_at, "candidates write a restartpoint".to_owned());
}

fn attempted(change: &Change, attempt: &Failover, events: &mut Vec<Event>) {
    let from = change.name_of(attempt.from);
    for (index, time) in attempt.phases.iter().enumerate() {
        let text = match time.phase {
            FailoverPhase::Drain => format!("{from} stops in order, its replicas still receive"),
            FailoverPhase::Recruit if index == 0 => {
                format!("voters promise epoch {}: {}", attempt.epoch, attempt.because)
            }
            FailoverPhase::Recruit => format!("{from} has stopped; voters promise epoch {}", attempt.epoch),
            FailoverPhase::Promote => {
                let winner = attempt.winner.map_or_else(|| "?".to_owned(), |winner| change.name_of(winner));
                format!("{winner} is chosen and promoted")
            }
            FailoverPhase::Done => {
                let winner = attempt.winner.map_or_else(|| "?".to_owned(), |winner| change.name_of(winner));
                format!("{winner} takes writes, acknowledged under epoch {}", attempt.epoch)
            }
            FailoverPhase::Undone => format!("{from} stays the primary: {}", attempt.ended_because),
            FailoverPhase::Superseded => "given up for a later attempt".to_owned(),
        };
        events.push(Event { at: time.at, text });
    }
}

/// Lines for events, with the time since the one before.
pub fn timeline(events: &[Event], before: Option<WallTime>) -> Vec<String> {
    let mut before = before;
    let mut lines = Vec::new();
    for event in events {
        let step = before.map(|before| event.at.millis_since(before).max(0));
        let step = step.map_or_else(String::new, |step| format!("+{}", units::span_ms(step as f64)));
        lines.push(format!("  {}  {step:>8}  {}", clock_time(event.at), event.text));
        before = Some(event.at);
    }
    lines
}

/// The time of day with milliseconds, in UTC.
pub fn clock_time(at: WallTime) -> String {
    match jiff::Timestamp::from_millisecond(at.0) {
        Ok(stamp) => stamp.strftime("%H:%M:%S.%3f").to_string(),
        Err(_) => format!("{} ms", at.0),
    }
}

/// How long the primary's part lay idle, as far as the record tells: from the end of the old one's service (a
/// switchover) or the claim (a failover) until the new one had its first commit acknowledged.
pub fn without_primary_ms(change: &Change) -> Option<u64> {
    let began = change.attempts.first()?.started_at;
    let done = change.attempts.last()?.entered(FailoverPhase::Done)?;
    u64::try_from(done.millis_since(began)).ok()
}

/// What came of it, in one sentence.
pub fn verdict(change: &Change) -> String {
    let winner = change.winner.as_ref().map_or("?", |winner| winner.as_str());
    match &change.result {
        ChangeResult::Done => match without_primary_ms(change) {
            Some(span) => format!("done: {winner} is the primary, {} without one", units::span_ms(span as f64)),
            None => format!("done: {winner} is the primary"),
        },
        ChangeResult::OtherNode => {
            let asked = change.asked.as_ref().map_or("?", |asked| asked.as_str());
            format!("{winner} is the primary instead of {asked}")
        }
        ChangeResult::Undone { reason } => format!("taken back: {reason}"),
        ChangeResult::Dropped { reason } => format!("given up before anything was changed: {reason}"),
        ChangeResult::Cancelled { by } => format!("taken back by {by} before anything was changed"),
        ChangeResult::Scheduled { at } => format!("waits for {}", units::time(*at)),
        ChangeResult::Preparing => "being prepared; the primary serves".to_owned(),
        ChangeResult::Running { phase } => format!("in progress: {}", phase.as_str()),
        ChangeResult::Unknown => "a later attempt went on from it that is not recorded any more".to_owned(),
    }
}

/// Everything about a change, for `stemma explain fo_7`.
pub fn tell(change: &Change) -> Vec<String> {
    let first = change.attempts.first();
    let kind = first.map_or("switchover", |attempt| change::word(&attempt.kind));
    let ids: Vec<&str> = change.attempts.iter().map(|attempt| attempt.id.as_str()).collect();
    let mut lines = vec![format!("{}  {kind}  {}", change.id, verdict(change))];
    if let Some(attempt) = first {
        lines.push(format!("  why      {} (by {})", attempt.because, attempt.actor));
    }
    if ids.len() > 1 {
        lines.push(format!("  attempts {}", ids.join(", ")));
    }
    lines.extend(timeline(&events(change), None));
    for attempt in &change.attempts {
        lines.extend(asked(change, attempt));
    }
    lines
}

/// Who was asked and what they held, who could not win and why, and what may be lost.
fn asked(change: &Change, attempt: &Failover) -> Vec<String> {
    let mut lines = Vec::new();
    for (node, held) in &attempt.recruited {
        let won = if attempt.winner == Some(*node) { "  won" } else { "" };
        let (lineage, timeline) = (held.lineage, held.timeline);
        lines.push(format!(
            "  asked    {}: holds the log up to {}, timeline {timeline}, begun in epoch {lineage}{won}",
            change.name_of(*node),
            held.position
        ));
    }
    for (node, why) in &attempt.refused {
        lines.push(format!("  refused  {}: {why}", change.name_of(*node)));
    }
    if let (Some(winner), Some(next)) = (attempt.winner, &attempt.next) {
        let equals = attempt.recruited.get(&winner).map_or(0, |best| {
            attempt.recruited.iter().filter(|(node, held)| **node != winner && held.rank() == best.rank()).count()
        });
        let why = match equals {
            0 => "nobody asked holds more",
            _ => "nobody asked holds more; among equals the primary's site, then priority, decide",
        };
        lines.push(format!("  winner   {}: {why}", change.name_of(winner)));
        let voters: Vec<String> = next.voters.iter().map(|voter| change.name_of(*voter)).collect();
        lines.push(format!("  rule     commits wait for {} of {}", next.acks, voters.join(", ")));
    }
    if attempt.winner.is_some() {
        lines.push(match attempt.loss_bytes {
            None => "  loss     none: every acknowledged commit is held by the winner".to_owned(),
            Some(u64::MAX) => "  loss     nobody knows how much".to_owned(),
            Some(bytes) => format!("  loss     at most {} of log", units::bytes(bytes)),
        });
    }
    lines
}
