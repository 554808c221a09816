//! `stemma history`: what happened, oldest first.

use super::Context;
use super::primacy::story;
use crate::render::table::{Cell, Table};
use crate::render::{out, units};
use model::Trouble;
use model::change::Change;
use model::state::HistoryEvent;

/// `stemma history --failovers`
pub async fn failovers(context: &Context, limit: Option<usize>) -> Result<u8, Trouble> {
    let changes: Vec<Change> = context.client()?.list("/v1/failovers", "failovers").await?;
    let shown = &changes[limit.map_or(0, |limit| changes.len().saturating_sub(limit))..];
    if context.is_json() {
        context.print_json("failovers", shown);
        return Ok(0);
    }
    if shown.is_empty() {
        out::line("  the primary has never changed");
        return Ok(0);
    }
    let mut table = Table::new(&["ID", "TIME", "KIND", "FROM", "WHAT CAME OF IT"]);
    for change in shown {
        let first = change.attempts.first();
        let at = first.map(|attempt| attempt.started_at).or(change.plan.as_ref().map(|plan| plan.asked_at));
        let from = first.map(|attempt| attempt.from).or(change.plan.as_ref().map(|plan| plan.from));
        table.row(vec![
            change.id.as_str().into(),
            at.map_or_else(Cell::none, |at| units::time(at).into()),
            first.map_or("switchover", |attempt| model::change::word(&attempt.kind)).into(),
            from.map_or_else(Cell::none, |from| change.name_of(from).into()),
            story::verdict(change).into(),
        ]);
    }
    out::line(&table.render(&context.look).join("\n"));
    Ok(0)
}

/// Runs the command.
pub async fn run(context: &Context, limit: Option<usize>) -> Result<u8, Trouble> {
    let mut events: Vec<HistoryEvent> = context.client()?.list("/v1/history", "events").await?;
    events.sort_by_key(|event| event.seq);
    let skip = limit.map_or(0, |limit| events.len().saturating_sub(limit));
    let shown = &events[skip..];
    if context.is_json() {
        context.print_json("history", shown);
        return Ok(0);
    }
    if shown.is_empty() {
        out::line("  nothing has happened yet");
        return Ok(0);
    }
    let mut table = Table::new(&["TIME", "WHAT", "NODE", "BY", "TEXT"]);
    for event in shown {
        table.row(vec![
            units::time(event.at).into(),
            event.kind.as_str().into(),
            event.node.as_ref().map_or_else(Cell::none, |node| node.as_str().into()),
            event.actor.as_str().into(),
            event.text.as_str().into(),
        ]);
    }
    out::line(&table.render(&context.look).join("\n"));
    Ok(0)
}
