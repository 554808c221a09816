//! Switchovers that people asked for, until each becomes an attempt; and the end of a pause. What to do is decided in
//! `cluster::failover::plan`; here it is done.
//!
//! Beside the driver, because a checkpoint may take minutes, in which the server must be looked after as ever.

use super::Keeper;
use crate::clock;
use cluster::failover::plan::{self, Todo};
use model::{ClusterState, Trouble};
use postgres::{ServerSpec, Sql};
use std::sync::Arc;
use std::time::Duration;

/// How often a plan that waits for a time is looked at. Its time is civil time, to the second.
const PACE: Duration = Duration::from_millis(200);
/// Pause after something went wrong.
const PAUSE: Duration = Duration::from_secs(1);

/// Does this node's part until the keeper stops. A witness has no server, and still notices what has become void.
pub(super) async fn keep_plans(keeper: Arc<Keeper>, spec: Option<ServerSpec>) {
    let mut states = keeper.store.changes();
    loop {
        let pause = match one_step(&keeper, spec.as_ref()).await {
            Ok(true) => continue,
            Ok(false) => None,
            Err(trouble) => {
                tracing::warn!(%trouble, "a planned switchover was not taken further");
                Some(PAUSE)
            }
        };
        let restless = keeper.store.state().is_some_and(|state| plan::is_restless(&state.value));
        let sleep = async {
            match (pause, restless) {
                (Some(pause), _) => tokio::time::sleep(pause).await,
                (None, true) => tokio::time::sleep(PACE).await,
                (None, false) => std::future::pending().await,
            }
        };
        tokio::select! {
            () = keeper.stop.cancelled() => return,
            changed = states.changed() => if changed.is_err() { return },
            () = sleep => {}
        }
    }
}

/// One look and one step. Returns whether to look again at once.
async fn one_step(keeper: &Arc<Keeper>, spec: Option<&ServerSpec>) -> Result<bool, Trouble> {
    let Some(state) = keeper.store.state() else { return Ok(false) };
    let state = &state.value;
    if plan::end_pause(state, clock::wall()).is_some() {
        write(keeper, |state| plan::end_pause(state, clock::wall())).await?;
        return Ok(true);
    }
    let todo = plan::next(state, keeper.identity.node, clock::wall());
    let Some(id) = state.planned_switchover().map(|plan| plan.id.clone()) else { return Ok(false) };
    match todo {
        Todo::Nothing => return Ok(false),
        Todo::Start => write(keeper, |state| plan::checkpointing(state, &id, clock::wall())).await?,
        Todo::Checkpoint => {
            let Some(spec) = spec else { return Ok(false) };
            failpoint::pass("switchover.checkpointing");
            while_planned(keeper, &id, checkpoint(spec)).await?;
            failpoint::pass("switchover.checkpointed");
            write(keeper, |state| plan::checkpointed(state, &id, clock::wall())).await?;
        }
        Todo::Restartpoint => {
            let Some(spec) = spec else { return Ok(false) };
            // A help for the time after, not a need: where it fails the candidate is as good as before.
            if let Err(trouble) = while_planned(keeper, &id, checkpoint(spec)).await {
                tracing::info!(%trouble, "no restartpoint before the switchover");
            }
            let me = keeper.identity.node;
            write(keeper, |state| plan::ready(state, &id, me)).await?;
        }
        Todo::Begin => {
            let Some(status) = keeper.status() else { return Ok(false) };
            if let Some(what) = plan::awaits(state, &status, clock::wall()) {
                tracing::info!(%id, what, "a planned switchover waits for a candidate");
                return Ok(false);
            }
            failpoint::pass("switchover.beginning");
            write(keeper, |state| plan::begin(state, &id, &status, clock::wall())).await?;
            failpoint::pass("switchover.begun");
        }
        Todo::Drop(reason) => {
            tracing::info!(%id, reason, "a planned switchover is given up");
            let me = keeper.identity.node;
            // Looked at anew for every attempt to write: the first keeper that notices has done it for all.
            write(keeper, |state| match plan::next(state, me, clock::wall()) {
                Todo::Drop(reason) => plan::drop_plan(state, &id, &reason, clock::wall()),
                Todo::Nothing | Todo::Start | Todo::Checkpoint | Todo::Restartpoint | Todo::Begin => None,
            })
            .await?;
        }
    }
    Ok(true)
}

/// On a connection of its own: it must not stand in the way of the driver's statements.
async fn checkpoint(spec: &ServerSpec) -> Result<(), Trouble> {
    Sql::new(spec).checkpoint().await
}

/// Gives up what it does for a plan that somebody took back.
async fn while_planned<T>(
    keeper: &Arc<Keeper>,
    id: &str,
    work: impl Future<Output = Result<T, Trouble>>,
) -> Result<(), Trouble> {
    let mut states = keeper.store.changes();
    let over = states.wait_for(|state| {
        state.as_ref().is_some_and(|state| state.value.planned_switchover().is_none_or(|plan| plan.id != id))
    });
    tokio::select! {
        done = work => done.map(|_| ()),
        _ = over => Ok(()),
    }
}

async fn write(keeper: &Arc<Keeper>, step: impl Fn(&ClusterState) -> Option<ClusterState>) -> Result<(), Trouble> {
    keeper.store.update(|state| Ok((step(state), ()))).await
}
