//! How a data directory comes to follow a primary: by epochs first, since timeline numbers may repeat, then by what the
//! server's own history says (`crate::lineage`).

use model::failover::{Failover, Recruited};
use model::state::LineageEntry;
use model::{ClusterState, Epoch, Lsn, Timeline};

/// One primacy in the descent of a primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// In which epoch its timeline was begun.
    pub epoch: Epoch,
    /// Its timeline.
    pub timeline: Timeline,
    /// Where the next one begins; `None` for the last, which goes on.
    pub ended_at: Option<Lsn>,
}

/// How the data comes to follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejoin {
    /// As it is.
    Follow,
    /// It holds more than the descent up to this position: save that, then rewind to it.
    Rewind {
        /// The last common position.
        fork: Lsn,
    },
    /// It cannot be rewound: a fresh base backup is needed, after what only it holds was saved.
    Rebuild,
    /// Where its log ends is not known before crash recovery has run.
    RecoverFirst,
}

/// The descent of the primary of the rule in force, oldest first. Entries without `from` on the timeline of the entry
/// before are the same timeline going on under a new epoch.
pub fn descent(state: &ClusterState) -> Vec<Ancestor> {
    chain(&state.lineage)
}

/// The descent of the winner of an attempt that is not settled yet.
pub fn descent_of_winner(state: &ClusterState, failover: &Failover, timeline: Timeline) -> Vec<Ancestor> {
    chain(&super::procedure::lineage_with(state, failover, timeline))
}

fn chain(entries: &[LineageEntry]) -> Vec<Ancestor> {
    let mut ancestors: Vec<Ancestor> = Vec::new();
    let mut at = entries.len().checked_sub(1);
    let mut ended_at = None;
    while let Some(index) = at {
        let entry = entries[index];
        let before = index.checked_sub(1);
        let goes_on = entry.from.is_none() && before.is_some_and(|before| entries[before].timeline == entry.timeline);
        at = if goes_on {
            before
        } else {
            ancestors.push(Ancestor { epoch: entry.epoch, timeline: entry.timeline, ended_at });
            ended_at = entry.began_at;
            match entry.from {
                // An epoch that only confirmed a primary continues the timeline begun before it.
                Some(from) => entries[..index].iter().rposition(|it| it.epoch <= from),
                None => before,
            }
        };
    }
    ancestors.reverse();
    ancestors
}

/// How `local` comes to follow a primary of this descent. `in_order` says that the server ended in order, or that crash
/// recovery has run since.
pub fn decide(local: &Recruited, in_order: bool, descent: &[Ancestor]) -> Rejoin {
    if !in_order {
        return Rejoin::RecoverFirst;
    }
    if let Some(place) = descent.iter().find(|ancestor| ancestor.epoch == local.lineage) {
        return match place.ended_at {
            Some(fork) if local.position > fork => Rejoin::Rewind { fork },
            Some(_) | None => Rejoin::Follow,
        };
    }
    // A primacy outside the descent. Where the two part is not known here, and the server's own tool tells timelines
    // apart by number alone, which two promotions that knew nothing of each other may share.
    Rejoin::Rebuild
}
