//! Until when this node's rights hold, for the watcher beside the keeper.

use super::{Council, LEASE, OwnPart};
use cluster::failover::lease::{self, HolderVerdict};
use model::{ClusterState, Moment};

/// Until when the server may go on as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerRight {
    /// This keeper has only started and does not know yet.
    Unknown,
    /// It needs no lease.
    Free,
    /// The lease must be renewed before this moment.
    Until(Moment),
}

impl Council {
    /// Until when the server may go on. The same as `must_fence` asks, as a moment.
    pub(crate) fn server_right(&self, now: Moment) -> ServerRight {
        let inner = self.lock();
        let Some(epoch) = inner.own.guarded else {
            return if inner.own == OwnPart::default() { ServerRight::Unknown } else { ServerRight::Free };
        };
        let Some(electors) = lease::needed(&inner.electors, &inner.listed) else { return ServerRight::Free };
        match inner.holder.verdict(epoch, &electors, now, &LEASE) {
            HolderVerdict::Serve { fence_at } => ServerRight::Until(fence_at),
            // It may have held one before; the watcher of its predecessor knows until when.
            HolderVerdict::Fence if now.since(inner.started_at) < LEASE.term => ServerRight::Unknown,
            HolderVerdict::Fence => ServerRight::Until(now),
        }
    }

    /// Until when this node may have the floating address: while it serves as the settled primary of `state`, and a
    /// majority says so. The outer `None`: this keeper has only started and does not know yet.
    pub(crate) fn address_right(&self, state: &ClusterState, now: Moment) -> Option<Option<Moment>> {
        let inner = self.lock();
        if inner.own == OwnPart::default() {
            return None;
        }
        let settled = state.rule.primary == self.me && state.failover.is_none() && state.following().is_none();
        let Some(serving) = inner.own.serving.filter(|serving| settled && serving.epoch == state.rule.epoch) else {
            return Some(None);
        };
        let Some(electors) = lease::needed(&inner.electors, &inner.listed) else {
            return Some(Some(now.plus(LEASE.term)));
        };
        match inner.holder.verdict(serving.epoch, &electors, now, &LEASE) {
            HolderVerdict::Serve { fence_at } => Some(Some(fence_at)),
            HolderVerdict::Fence if now.since(inner.started_at) < LEASE.term => None,
            HolderVerdict::Fence => Some(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Epoch, NodeId};
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn a_lease_to_enforce_wakes_who_waits_for_duty() {
        let council = Arc::new(Council::new(NodeId(1)));
        let (said, heard) = std::sync::mpsc::channel();
        let waiting = {
            let council = council.clone();
            std::thread::spawn(move || {
                council.wait_for_duty(Duration::from_millis(1));
                said.send(()).expect("somebody listens");
                // Far longer than the test may take: only the duty ends it.
                council.wait_for_duty(Duration::from_hours(1));
            })
        };
        heard.recv().expect("without a duty it waits for as long as it was told");
        council.guard(Epoch(1));
        waiting.join().expect("woken");
    }
}
