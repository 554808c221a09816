//! The right to acknowledge commits that no replica holds (`acks = 0`): a lease that a majority of keepers renews with
//! the heartbeats, in memory, without a log write.
//!
//! The holder counts the validity from *before* it sent the request, and stops a margin early; the grantor counts from
//! the receipt. Each by its own clock, which counts time in suspension and whose rate is off by at most
//! `RATE_ERROR_PERCENT`. So whatever the network does, the holder has stopped before any grantor's promise has lapsed.
//! A grantor that starts is silent for a full term, since it may have forgotten a grant.
//!
//! What this does not cover: a whole machine that is frozen in the instant between looking at the clock and sending a
//! reply. Modes with acknowledgements do not have that gap.

use model::{Epoch, Millis, Moment, NodeId};
use std::collections::BTreeMap;

/// How long a lease lasts. All members must use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The term.
    pub term: Millis,
    /// The holder must have stopped this long before the end of its validity.
    pub fence_margin: Millis,
}

/// For networks within a site.
pub const LAN: Timing = Timing { term: Millis(1_500), fence_margin: Millis(300) };
/// For networks between sites.
pub const WAN: Timing = Timing { term: Millis(5_000), fence_margin: Millis(500) };
/// Bound of the difference in rate of two clocks.
pub const RATE_ERROR_PERCENT: u64 = 1;

const _: () = assert!(LAN.fence_margin.0 * 3 < LAN.term.0);
const _: () = assert!(WAN.fence_margin.0 * 3 < WAN.term.0);

/// What the holder knows: for each grantor, when the newest request that it granted was sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    epoch: Epoch,
    granted: BTreeMap<NodeId, Moment>,
}

/// What the holder must do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HolderVerdict {
    /// Serve; the watcher must act at this moment unless it hears of a renewal.
    Serve {
        /// When the server must have been stopped.
        fence_at: Moment,
    },
    /// Do not start to serve, and stop what serves.
    Fence,
}

impl Holder {
    /// A grant for `epoch` came from `grantor`, for the request sent at `sent_at` by this clock.
    pub fn granted(&mut self, epoch: Epoch, grantor: NodeId, sent_at: Moment) {
        if epoch > self.epoch {
            *self = Holder { epoch, granted: BTreeMap::new() };
        }
        if epoch == self.epoch {
            let newest = self.granted.entry(grantor).or_insert(sent_at);
            *newest = (*newest).max(sent_at);
        }
    }

    /// Whether the lease of `epoch` is held at `now`, with `members` keepers in all. The holder grants to itself.
    pub fn verdict(&self, epoch: Epoch, members: usize, now: Moment, timing: &Timing) -> HolderVerdict {
        if epoch != self.epoch {
            return HolderVerdict::Fence;
        }
        let mut sent: Vec<Moment> = self.granted.values().copied().collect();
        sent.sort_unstable_by(|a, b| b.cmp(a));
        // Valid as long as the oldest grant of the newest majority is.
        let Some(sent_at) = sent.get(super::recruit::majority(members) - 1) else { return HolderVerdict::Fence };
        let valid = Millis(timing.term.0 - timing.term.0 * RATE_ERROR_PERCENT / 100);
        let fence_at = sent_at.plus(valid).minus(timing.fence_margin);
        if now < fence_at { HolderVerdict::Serve { fence_at } } else { HolderVerdict::Fence }
    }
}

/// What a grantor remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grantor {
    started_at: Moment,
    newest: Option<(NodeId, Epoch, Moment)>,
}

/// Why a lease is not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotGranted {
    /// A newer epoch was promised.
    Older,
    /// Another grant has not lapsed.
    Other {
        /// To whom.
        node: NodeId,
    },
    /// This keeper started a moment ago and may have forgotten a grant.
    Silent,
}

impl Grantor {
    /// A keeper that starts.
    pub fn new(now: Moment) -> Grantor {
        Grantor { started_at: now, newest: None }
    }

    /// Whether to grant `epoch` to `node`, asked at `now`. `promised` is the epoch this keeper promised.
    pub fn may_grant(
        &self,
        node: NodeId,
        epoch: Epoch,
        promised: Epoch,
        now: Moment,
        timing: &Timing,
    ) -> Result<(), NotGranted> {
        if epoch < promised {
            return Err(NotGranted::Older);
        }
        if now < self.started_at.plus(timing.term) {
            return Err(NotGranted::Silent);
        }
        match self.newest {
            Some((other, older, at)) if (other != node || older > epoch) && now < at.plus(timing.term) => {
                Err(NotGranted::Other { node: other })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Ends the silence after a start. Wrong in a real keeper: only a test may know that nothing was forgotten.
    pub fn forget_silence(&mut self) {
        self.started_at = Moment(0);
    }

    /// Notes a grant.
    pub fn grant(&mut self, node: NodeId, epoch: Epoch, now: Moment) {
        self.newest = Some((node, epoch, now));
    }

    /// Whether nothing that was granted to an epoch older than `epoch` can still be valid. Only to be told together
    /// with the promise of `epoch`, which keeps such grants from being renewed.
    pub fn lapsed(&self, epoch: Epoch, now: Moment, timing: &Timing) -> bool {
        let silent_over = now >= self.started_at.plus(timing.term);
        let over = match self.newest {
            Some((_, granted, at)) => granted >= epoch || now >= at.plus(timing.term),
            None => true,
        };
        silent_over && over
    }
}
