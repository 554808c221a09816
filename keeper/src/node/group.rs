//! Keeps the consensus group equal to the members of the cluster's state. Only the group's leader acts, and it
//! compares anew each time, so a leader killed in the middle is finished by the next.

use super::Keeper;
use crate::clock;
use crate::driver::has_stopped;
use cluster::consensus_group;
use model::state::Stage;
use std::sync::Arc;
use std::time::Duration;

/// How often the group is compared when nothing seems to change.
const INTERVAL: Duration = Duration::from_secs(1);

/// Until the keeper stops.
pub(super) async fn keep_group(keeper: Arc<Keeper>) {
    let mut states = keeper.store.changes();
    loop {
        if keeper.store.consensus().is_leader()
            && let Some(state) = keeper.store.state()
        {
            let (mut voters, mut learners) = consensus_group::wanted(&state.value);
            let group = keeper.store.view();
            // A leaving node hears that it leaves only through the group: it stays until it has acted on it.
            for member in state.value.members.values().filter(|member| member.stage == Stage::Leaving) {
                if !has_stopped(&keeper.observations, clock::now(), member.id) {
                    if group.voters.contains(&member.id) {
                        voters.insert(member.id);
                    } else if group.learners.contains(&member.id) {
                        learners.insert(member.id);
                    }
                }
            }
            let same = group.voters.iter().copied().eq(voters.iter().copied())
                && group.learners.iter().copied().eq(learners.iter().copied());
            if !same && let Err(error) = keeper.store.consensus().set_members(&voters, &learners).await {
                tracing::debug!(%error, "the consensus group is not as wanted yet");
            }
        }
        tokio::select! {
            () = keeper.stop.cancelled() => return,
            changed = states.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}
