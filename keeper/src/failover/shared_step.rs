//! The steps of a change of primary that any keeper may write into consensus.

use super::Council;
use crate::clock;
use crate::store::Store;
use cluster::failover::order::Action;
use cluster::failover::procedure;
use model::failover::FailoverKind;
use model::state::XidSwitch;
use model::{ClusterState, NodeId, Trouble};
use std::collections::BTreeSet;
use std::time::Duration;

/// A member that calls an election waits so long for its end, times the number of members that may call.
const ELECTED_WITHIN: Duration = Duration::from_millis(150);
/// How often a member calls; it waits twice as long each time, for disks that are slow to note a vote.
const CALLS_MAX: u32 = 4;

/// Where the store's leader went together with the primary, has another elected before the claim is written.
///
/// The members that are left call in turn. One alone may call in vain: a voter refuses until the lease of the lost leader
/// has ended, which it may have heard a moment later, and always where its own log is longer. By themselves the members
/// would try again much later, and each call in vain puts that off.
pub(crate) fn hasten(store: &Store, council: &Council, action: &Action, alive: &BTreeSet<NodeId>) {
    let leader = store.view().leader;
    if !matches!(action, Action::Claim { .. }) || !council.should_call_election(leader, alive) {
        return;
    }
    let turn = alive.iter().position(|node| *node == council.me()).unwrap_or(0);
    let round = ELECTED_WITHIN * u32::try_from(alive.len()).unwrap_or(1);
    let first = ELECTED_WITHIN * u32::try_from(turn).unwrap_or(0);
    let store = store.clone();
    tokio::spawn(async move {
        tokio::time::sleep(first).await;
        for call in 0..CALLS_MAX {
            if store.view().leader.is_some_and(|now| Some(now) != leader) {
                return;
            }
            tracing::info!(gone = ?leader, call, "calling an election of the store's leader");
            store.consensus().call_election().await;
            tokio::time::sleep(round * (1 << call)).await;
        }
    });
}

/// Writes a shared step, unless the state moves on meanwhile: then there is something newer to decide. A step given up
/// halfway may still be written; each refuses a state that it was not meant for.
///
/// `xids` are the transaction numbers that this node noted when it took over, for the step that settles that.
pub(crate) async fn write(
    store: &Store,
    version: u64,
    action: &Action,
    xids: Option<XidSwitch>,
) -> Result<(), Trouble> {
    let mut states = store.changes();
    let newer = states.wait_for(|state| state.as_ref().is_some_and(|state| state.version > version));
    failpoint::pass("failover.writing");
    let written = store.update(|state| Ok((next_state(state, action, xids), ())));
    tokio::select! {
        written = written => written?,
        _ = newer => {}
    }
    failpoint::pass("failover.written");
    Ok(())
}

fn next_state(state: &ClusterState, action: &Action, xids: Option<XidSwitch>) -> Option<ClusterState> {
    let now = clock::wall();
    match action {
        Action::Claim { after, because } => {
            procedure::claim(state, *after, FailoverKind::Automatic, because, cluster::history::STEMMA, now)
        }
        Action::Drained(epoch) => procedure::drained(state, *epoch, now),
        Action::Unplan(epoch) => procedure::unplan(state, *epoch, now),
        Action::Choose(epoch, choice) => procedure::choose(state, *epoch, choice, now),
        Action::Settle { epoch, rule, timeline } => {
            let mut next = procedure::settle(state, *epoch, rule, *timeline, now)?;
            if let Some(xids) = xids {
                procedure::note_xids(&mut next, *epoch, xids);
            }
            Some(next)
        }
        Action::Undo { epoch, because } => procedure::undo(state, *epoch, because, now),
        Action::Promise(_)
        | Action::Detach
        | Action::Stop { .. }
        | Action::StartDetached
        | Action::StartPrimary
        | Action::SetSynchronous { .. }
        | Action::Promote(_)
        | Action::WriteRow(_)
        | Action::Attach { .. }
        | Action::Rewind { .. }
        | Action::Rebuild { .. }
        | Action::Recover => None,
    }
}
