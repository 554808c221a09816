//! `stemma history`: what happened, oldest first.

use super::Context;
use crate::render::table::{Cell, Table};
use crate::render::{out, units};
use model::Trouble;
use model::state::HistoryEvent;

/// Runs the command.
pub async fn run(context: &Context, limit: Option<usize>) -> Result<u8, Trouble> {
    let mut events: Vec<HistoryEvent> = context.client()?.list("/v1/history", "history").await?;
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
