//! The right to acknowledge commits that no replica holds (`acks = 0`): a lease that a majority of keepers renews with
//! the heartbeats, in memory, without a log write.
//!
//! The holder counts the validity from *before* it sent the request, and stops a margin early; the grantor counts from
//! the receipt. Each by its own clock, which counts time in suspension and whose rate is off by at most
//! `RATE_ERROR_PERCENT`. So whatever the network does, the holder has stopped before any grantor's promise has lapsed.
//! A grantor that starts is silent for a full term, since it may have forgotten a grant.
//!
//! A holder whose server is gone, with all its processes, gives the lease up at once (`Holder::give_up`): it counts no grant
//! of an earlier request any more, and tells the grantors, who need not wait then. What it says is about requests up to a
//! moment of its own clock, so that a word that comes late takes back nothing that was asked for afterwards. Nor does a
//! request that comes late: of each process that asked, the newest request is remembered, in whatever order they come.
//!
//! Whose majority counts is in the cluster's state, which holder and candidates may know in different versions. So
//! the set grows by one keeper at a time, and only by one whose grant the holder is known to have, while it knows all
//! others (`may_join_electors`): then the holder is never more than one step behind, and majorities of neighbouring
//! sets always meet.
//!
//! What this does not cover: a whole machine that is frozen in the instant between looking at the clock and sending a
//! reply. Modes with acknowledgements do not have that gap.

use model::{Epoch, Millis, Moment, NodeId};
use std::collections::{BTreeMap, BTreeSet};

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
    given_up: Option<Moment>,
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
            *self = Holder { epoch, granted: BTreeMap::new(), ..*self };
        }
        if epoch == self.epoch && self.given_up.is_none_or(|at| sent_at > at) {
            let newest = self.granted.entry(grantor).or_insert(sent_at);
            *newest = (*newest).max(sent_at);
        }
    }

    /// Whether the lease of `epoch` is held at `now`. Only grants of `electors` count: those of members who are only
    /// joining, or are gone, would make a majority of nobody's. The holder grants to itself.
    pub fn verdict(&self, epoch: Epoch, electors: &BTreeSet<NodeId>, now: Moment, timing: &Timing) -> HolderVerdict {
        if epoch != self.epoch {
            return HolderVerdict::Fence;
        }
        let granted = self.granted.iter().filter(|(grantor, _)| electors.contains(grantor));
        let mut sent: Vec<Moment> = granted.map(|(_, sent_at)| *sent_at).collect();
        sent.sort_unstable_by(|a, b| b.cmp(a));
        // Valid as long as the oldest grant of the newest majority is.
        let needed = super::recruit::majority(electors.len());
        let Some(sent_at) = sent.get(needed - 1) else { return HolderVerdict::Fence };
        let fence_at = fence_at(*sent_at, timing);
        if now < fence_at { HolderVerdict::Serve { fence_at } } else { HolderVerdict::Fence }
    }

    /// Nothing that was asked for up to `now` counts any more. Only while the server does not run, none of its processes.
    pub fn give_up(&mut self, now: Moment) {
        self.granted.clear();
        self.given_up = self.given_up.max(Some(now));
    }

    /// Up to which moment of its clock it gave up what it asked for, if ever.
    pub fn given_up(&self) -> Option<Moment> {
        self.given_up
    }

    /// Whether the newest grant of `grantor` for `epoch` still counts at `now`.
    pub fn counts(&self, epoch: Epoch, grantor: NodeId, now: Moment, timing: &Timing) -> bool {
        epoch == self.epoch && self.granted.get(&grantor).is_some_and(|sent_at| now < fence_at(*sent_at, timing))
    }
}

/// When whoever relies on a grant of the request sent at `sent_at` must have stopped.
fn fence_at(sent_at: Moment, timing: &Timing) -> Moment {
    let valid = Millis(timing.term.0 - timing.term.0 * RATE_ERROR_PERCENT / 100);
    sent_at.plus(valid).minus(timing.fence_margin)
}

/// When a lease was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Which process of the holder's keeper asked: its clock may begin anew with the machine.
    pub run: u64,
    /// The holder's clock.
    pub at: Moment,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Grant {
    holder: NodeId,
    epoch: Epoch,
    asked: Asked,
    /// The grantor's clock.
    at: Moment,
}

/// What a grantor remembers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grantor {
    started_at: Moment,
    /// One for each process that asked. Those that have lapsed go with the next one.
    grants: Vec<Grant>,
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
        Grantor { started_at: now, grants: Vec::new() }
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
        let other = |it: &&Grant| (it.holder != node || it.epoch > epoch) && now < it.at.plus(timing.term);
        match self.grants.iter().find(other) {
            Some(it) => Err(NotGranted::Other { node: it.holder }),
            None => Ok(()),
        }
    }

    /// Ends the silence after a start. Wrong in a real keeper: only a test may know that nothing was forgotten.
    pub fn forget_silence(&mut self) {
        self.started_at = Moment(0);
    }

    /// Notes a grant, which `may_grant` allows.
    pub fn grant(&mut self, node: NodeId, epoch: Epoch, asked: Asked, now: Moment, timing: &Timing) {
        self.grants.retain(|it| now < it.at.plus(timing.term));
        match self.grants.iter_mut().find(|it| it.holder == node && it.asked.run == asked.run) {
            // The holder counts the newest, whichever came last.
            Some(it) => (it.epoch, it.asked.at, it.at) = (epoch, it.asked.at.max(asked.at), now),
            None => self.grants.push(Grant { holder: node, epoch, asked, at: now }),
        }
    }

    /// `node` counts nothing any more that this process of it asked for up to this moment. Whether that ends a grant.
    pub fn given_up(&mut self, node: NodeId, up_to: Asked) -> bool {
        let ends = |it: &Grant| it.holder == node && it.asked.run == up_to.run && it.asked.at <= up_to.at;
        self.grants.extract_if(.., |it| ends(it)).count() > 0
    }

    /// Whether nothing that was granted to an epoch older than `epoch` can still be valid. Only to be told together
    /// with the promise of `epoch`, which keeps such grants from being renewed.
    pub fn lapsed(&self, epoch: Epoch, now: Moment, timing: &Timing) -> bool {
        let silent_over = now >= self.started_at.plus(timing.term);
        silent_over && self.grants.iter().all(|it| it.epoch >= epoch || now >= it.at.plus(timing.term))
    }
}

/// Whose grants the holder `me` needs a majority of; `None`: nobody's, because it is itself part of every majority, now
/// and after the next step of the set. `electors` as the holder knows them; `listed` are the joining keepers that it may
/// have told others about (`may_join_electors`), of whom one may therefore have become an elector already. The process
/// tells of one at a time while it needs no lease; one that starts does not know which of those that were joining at that
/// time the process before it told of.
pub fn needed(electors: &BTreeSet<NodeId>, listed: &BTreeSet<NodeId>) -> Option<BTreeSet<NodeId>> {
    match (electors.len(), listed.len()) {
        (0 | 1, _) | (2, 0) => None,
        // Both sets may be in force. A majority of the larger meets each of its majorities, and each of the smaller set
        // holds the holder itself.
        (2, 1) => Some(electors | listed),
        // Whichever it was: the other elector's grant is in every majority without the holder.
        (_, _) => Some(electors.clone()),
    }
}

/// What a keeper that is only joining knows of the holder when it wants to become an elector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newcomer {
    /// The rule in force promises nothing, or an attempt is in progress: leases may decide.
    pub leases_matter: bool,
    /// The holder answers, and said that it has this keeper's grant.
    pub listed: bool,
    /// The holder knows the state that this keeper sees.
    pub holder_is_up_to_date: bool,
}

/// Whether a joining keeper may become an elector. Where commits are promised to replicas, leases decide nothing.
pub fn may_join_electors(newcomer: &Newcomer) -> bool {
    !newcomer.leases_matter || (newcomer.listed && newcomer.holder_is_up_to_date)
}
