//! What happened, kept for people: appended by every decision, bounded.

use model::limits::HISTORY_MAX;
use model::state::HistoryEvent;
use model::{ClusterState, NodeName, WallTime};

/// The actor of what the cluster does by itself.
pub const STEMMA: &str = "stemma";

/// Appends one event and drops the oldest beyond the bound.
pub fn record(state: &mut ClusterState, at: WallTime, kind: &str, node: Option<&NodeName>, text: String, actor: &str) {
    let seq = state.history.last().map_or(1, |last| last.seq + 1);
    let event = HistoryEvent { seq, at, kind: kind.to_owned(), node: node.cloned(), text, actor: actor.to_owned() };
    state.history.push(event);
    keep_newest(&mut state.history, HISTORY_MAX);
}

/// Drops the oldest of a list that has its newest last.
pub(crate) fn keep_newest<T>(list: &mut Vec<T>, most: usize) {
    let surplus = list.len().saturating_sub(most);
    list.drain(..surplus);
}
