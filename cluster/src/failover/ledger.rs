//! What a keeper keeps on its disk about epochs: its promise, and in which epoch each timeline it holds was begun.
//!
//! The file is written and fsynced *before* what it announces is done: the promise before the stream is cut and the
//! report given, the timeline of an upstream before the stream is begun, the promotion before the server is told. So
//! the lineage of a data directory can always be named, in a crash too, without asking its server or anybody else.

use model::{Epoch, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Nothing older is obeyed.
    pub promised: Epoch,
    /// In which epoch the timelines of this data directory were begun.
    pub begun: BTreeMap<u32, Epoch>,
    /// A promotion that was about to begin: under which epoch, and from which timeline.
    #[serde(default)]
    pub promoting: Option<(Epoch, Timeline)>,
    /// Under which epoch the data directory was put in place of another one.
    #[serde(default)]
    pub placed: Epoch,
}

/// Why an order is not obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It comes from an epoch older than the promise.
    Older {
        /// What was promised.
        promised: Epoch,
    },
    /// The data holds the upstream's timeline number, begun by somebody else: it must be rebuilt first.
    SameNumber {
        /// In which epoch the timeline held was begun.
        ours: Epoch,
    },
}

impl Ledger {
    /// Raises the promise. `None`: it stands as high already.
    #[must_use]
    pub fn promise(&self, epoch: Epoch) -> Option<Ledger> {
        (epoch > self.promised).then(|| Ledger { promised: epoch, ..self.clone() })
    }

    /// Before a stream from the primary of `epoch` is begun, whose timeline was begun in `lineage`. `holds` is the
    /// timeline at the end of the data here.
    ///
    /// The epoch in which the *timeline* was begun is noted, not that of the primacy: a primary that was confirmed under
    /// a new epoch goes on with its timeline, and a replica that merely connected again holds no more than before.
    pub fn attach(
        &self,
        epoch: Epoch,
        lineage: Epoch,
        timeline: Timeline,
        holds: Option<Timeline>,
    ) -> Result<Ledger, Refused> {
        if epoch < self.promised {
            return Err(Refused::Older { promised: self.promised });
        }
        let known = self.begun.get(&timeline.0).copied();
        if let Some(ours) = known
            && holds == Some(timeline)
            && ours != lineage
        {
            return Err(Refused::SameNumber { ours });
        }
        // A promotion that was ordered before has happened, if the data ends beyond the timeline it began from; otherwise
        // it cannot happen any more: the server was started anew. Kept, it would claim this upstream's timeline for itself.
        let mut next = Ledger { promised: epoch, promoting: None, ..self.carried_out(holds) };
        next.begun.insert(timeline.0, lineage);
        Ok(next)
    }

    /// Before the server is promoted under `epoch`; `from` is the timeline at the end of its data.
    ///
    /// An order before this one may have been carried out unseen: the server was killed before its keeper looked. What it
    /// began is kept, or nobody could ever name the timeline that this promotion begins from.
    #[must_use]
    pub fn promotion(&self, epoch: Epoch, from: Timeline) -> Ledger {
        let before = self.carried_out(Some(from));
        Ledger { promised: self.promised.max(epoch), promoting: Some((epoch, from)), ..before }
    }

    /// With what an ordered promotion began, if `holds`, the timeline at the end of the data, shows that it happened.
    fn carried_out(&self, holds: Option<Timeline>) -> Ledger {
        holds.map_or_else(|| self.clone(), |timeline| self.promoted(timeline))
    }

    /// The server runs on `timeline` as a primary: the promotion is done.
    #[must_use]
    pub fn promoted(&self, timeline: Timeline) -> Ledger {
        let mut next = self.clone();
        if let Some((epoch, from)) = next.promoting.take()
            && timeline > from
        {
            next.begun.insert(timeline.0, epoch);
        }
        next
    }

    /// Before another data directory is put in place of this one (a base backup or rewind from an upstream); `epoch` is
    /// that of the upstream.
    #[must_use]
    pub fn replaced(&self, epoch: Epoch) -> Ledger {
        Ledger { promised: self.promised, placed: self.placed.max(epoch), ..Ledger::default() }
    }

    /// Whether a member's server may be let in here to stream, whose keeper promised and follows so.
    ///
    /// A server whose keeper sleeps connects again to wherever it was told to last. What it followed there may be gone, and
    /// data of another descent in its place, whose timeline has the same number. PostgreSQL compares numbers and positions
    /// only, and would let it go on, with a log that is neither. So it is let in once its keeper has obeyed the epoch of the
    /// data here: what it follows then it was told to follow after that was compared.
    pub fn may_feed(&self, promised: Epoch, follows: Option<Epoch>) -> bool {
        promised >= self.placed && follows.is_none_or(|epoch| epoch >= self.placed)
    }

    /// The epoch in which the timeline at the end of the data was begun.
    pub fn lineage(&self, timeline: Timeline) -> Option<Epoch> {
        match self.promoting {
            Some((epoch, from)) if timeline > from => Some(epoch),
            Some(_) | None => self.begun.get(&timeline.0).copied(),
        }
    }
}
