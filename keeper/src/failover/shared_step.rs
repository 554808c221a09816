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

/// Pauses after each call of an election that nobody has won yet. A voter that heard the lost leader a moment later than we
/// did refuses until that leader's lease has ended; by themselves the members would try again much later, and might meet.
/// Longer and longer, for disks that are slow to note a vote: each call begins anew.
const CALL_AGAIN_AFTER: [Duration; 4] =
    [Duration::from_millis(150), Duration::from_millis(300), Duration::from_millis(600), Duration::from_millis(1_200)];

/// Where the store's leader went together with the primary, has another elected before the claim is written.
pub(crate) async fn hasten(store: &Store, council: &Council, action: &Action, alive: &BTreeSet<NodeId>) {
    if matches!(action, Action::Claim { .. }) && council.should_call_election(store.view().leader, alive) {
        let gone = store.view().leader;
        tracing::info!(?gone, "calling an election of the store's leader");
        store.consensus().call_election().await;
        let store = store.clone();
        tokio::spawn(async move {
            for pause in CALL_AGAIN_AFTER {
                tokio::time::sleep(pause).await;
                if store.view().leader.is_some_and(|leader| Some(leader) != gone) {
                    return;
                }
                tracing::info!("nobody was elected; calling again");
                store.consensus().call_election().await;
            }
        });
    }
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

/// Whether this is such a step.
pub(crate) fn is_shared(action: &Action) -> bool {
    match action {
        Action::Claim { .. }
        | Action::Drained(_)
        | Action::Unplan(_)
        | Action::Choose(..)
        | Action::Settle { .. }
        | Action::Undo { .. } => true,
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
        | Action::Recover => false,
    }
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
