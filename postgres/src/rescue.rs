//! Saves what only this node holds before its data directory is rewound or rebuilt: the log from the fork on, and the
//! changes in it as people can read them.
//!
//! The log is copied first and is the whole truth. The changes are read from it; rows that the stopped server still
//! shows are asked from it, in single-user mode, so that every type is printed as PostgreSQL prints it; versions that
//! were deleted or written over since are read from their pages or from the log. What could not be read is said.

mod bundle;
mod catalog;
mod cells;
mod changes;
mod decode;
pub(crate) mod log;
mod pages;
mod render;
mod scan;
mod store;

pub use bundle::{Bundle, Counts, Saved};
pub use store::{ExportFormat, delete, export, list, rescue_dir, show};

use crate::control_file::read_control_file;
use crate::process::server_processes;
use crate::replication::HistoryEntry;
use crate::spec::ServerSpec;
use model::{Epoch, Lsn, NodeName, Timeline, Trouble};
use std::path::Path;
use std::time::Duration;

/// Where a history leaves the one that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fork {
    /// The timeline that both have.
    pub timeline: Timeline,
    /// The last position that both have.
    pub at: Lsn,
}

/// How much may be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RescueLimits {
    /// Of one bundle.
    pub bundle_bytes_max: u64,
    /// Of all together. Exported ones are removed for a new one, oldest first; the others never are.
    pub total_bytes_max: u64,
}

impl Default for RescueLimits {
    fn default() -> Self {
        RescueLimits { bundle_bytes_max: 4 << 30, total_bytes_max: 16 << 30 }
    }
}

/// What a bundle is told of its circumstances.
#[derive(Clone, Debug)]
pub struct RescueOrder<'a> {
    /// Where bundles are: `rescue_dir(state_dir)`.
    pub directory: &'a Path,
    /// This node.
    pub node: &'a NodeName,
    /// The epoch of the primary that is to be followed.
    pub epoch: Epoch,
    /// That primary.
    pub primary: &'a NodeName,
    /// How much may be saved.
    pub limits: RescueLimits,
}

/// Where the history of a data directory on `ours` leaves the history of a primary on `theirs`. Each history names the
/// timelines before, with the position at which each ended. `None`: they have not even their first timeline in common.
///
/// Timelines are compared by number and by where they began. Two that agree in both and were begun by different
/// promotions cannot be told apart here: then the answer is later than the true fork, so whoever knows better from the
/// cluster's epochs says the fork.
pub fn find_fork(ours: (Timeline, &[HistoryEntry]), theirs: (Timeline, &[HistoryEntry])) -> Option<Fork> {
    const GOES_ON: Lsn = Lsn(u64::MAX);
    let chain = |(last, history): (Timeline, &[HistoryEntry])| -> Vec<(Timeline, Lsn)> {
        let past = history.iter().map(|entry| (entry.timeline, entry.switched_at));
        past.chain([(last, GOES_ON)]).collect()
    };
    let mut fork = None;
    for ((our_timeline, our_end), (their_timeline, their_end)) in chain(ours).into_iter().zip(chain(theirs)) {
        if our_timeline != their_timeline {
            break;
        }
        fork = Some(Fork { timeline: our_timeline, at: our_end.min(their_end) });
        if our_end != their_end {
            break;
        }
    }
    fork
}

/// Saves what the stopped server's directory holds beyond `fork`. Crash recovery has run; nothing else was done to it.
///
/// Fails, and the directory must then not be rewound or emptied, when the log cannot be copied whole: no space, or more
/// than the limits allow. What cannot be *read* never makes it fail: it is listed in the bundle. Called again after it
/// was cut off, or after the keeper was, it does not make a second bundle of the same changes.
pub async fn save(
    spec: &ServerSpec,
    order: &RescueOrder<'_>,
    fork: Fork,
    deadline: Duration,
) -> Result<Saved, Trouble> {
    let until = tokio::time::Instant::now() + deadline;
    let control = read_control_file(&spec.data_dir)?;
    let living = server_processes(&spec.data_dir);
    if !control.state.is_clean() || !living.is_empty() {
        return Err(Trouble::server_failed(
            format!("{} is not that of a server that shut down in order", spec.data_dir.display()),
            "crash recovery comes first",
        ));
    }
    // Before any work: where there is no room, this is tried again and again.
    store::check_room(order.directory, order.limits, control.checkpoint.lag_of(fork.at).0)?;
    let scanned = {
        let (data_dir, control) = (spec.data_dir.clone(), control.clone());
        let scan = tokio::task::spawn_blocking(move || scan::scan(&data_dir, &control, fork));
        scan.await.map_err(|error| Trouble::internal("reading the log was interrupted", "").because(error))??
    };
    let mut decoded = decode::decode(spec, &scanned, until).await;
    if decoded.nothing_lost {
        return Ok(Saved::Nothing { beyond: scanned.end.lag_of(fork.at).0 });
    }
    let facts = bundle::describe(order, &control, fork, &scanned, &mut decoded);
    if let Some(known) = store::same(order.directory, &facts)? {
        return Ok(Saved::Bundle(Box::new(known)));
    }
    let (directory, limits) = (order.directory.to_owned(), order.limits);
    let write = tokio::task::spawn_blocking(move || store::write(&directory, limits, facts, &scanned, &decoded));
    let written = write.await.map_err(|error| Trouble::internal("saving was interrupted", "").because(error))??;
    tracing::warn!(
        id = written.id,
        transactions = written.counts.transactions,
        fork = %fork.at,
        "saved what only this node held"
    );
    Ok(Saved::Bundle(Box::new(written)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(entries: &[(u32, u64)]) -> Vec<HistoryEntry> {
        let entry = |(timeline, at): &(u32, u64)| HistoryEntry {
            timeline: Timeline(*timeline),
            switched_at: Lsn(*at),
            reason: String::new(),
        };
        entries.iter().map(entry).collect()
    }

    fn fork(ours: u32, our_past: &[(u32, u64)], theirs: u32, their_past: &[(u32, u64)]) -> Option<(u32, u64)> {
        let (our_past, their_past) = (past(our_past), past(their_past));
        find_fork((Timeline(ours), &our_past), (Timeline(theirs), &their_past)).map(|it| (it.timeline.0, it.at.0))
    }

    #[test]
    fn histories_part_where_the_first_of_them_leaves_the_common_timeline() {
        assert_eq!(fork(1, &[], 2, &[(1, 500)]), Some((1, 500)), "the primary was promoted away from us");
        assert_eq!(fork(3, &[(1, 700)], 2, &[(1, 500)]), Some((1, 500)), "two promotions, theirs earlier");
        assert_eq!(fork(3, &[(1, 300)], 2, &[(1, 500)]), Some((1, 300)), "two promotions, ours earlier");
        assert_eq!(fork(2, &[(1, 300)], 3, &[(1, 300), (2, 900)]), Some((2, 900)));
        assert_eq!(fork(2, &[(1, 300)], 3, &[(1, 400), (2, 900)]), Some((1, 300)), "the same number, not the same");
        assert_eq!(fork(2, &[(1, 300)], 2, &[(1, 300)]), Some((2, u64::MAX)), "no fork is seen");
        assert_eq!(fork(5, &[(4, 10)], 2, &[(1, 10)]), None);
    }
}
