//! This node's part in operations that go from node to node.

use super::{Driver, Turn};
use crate::clock;
use cluster::operation::{self, Next};
use model::Trouble;
use model::observe::ServerFacts;
use model::state::StepAction;

impl Driver {
    /// Carries out the next step of a running operation if it is this node's turn.
    pub(super) async fn operate(&mut self, turn: &Turn, facts: &ServerFacts) -> Result<bool, Trouble> {
        let me = self.parts.me;
        match operation::next_step(&turn.state.value, me) {
            Next::Nothing => Ok(false),
            Next::Begin { operation, step, action: StepAction::Restart } => {
                let marker = facts.started_at.0;
                let write = |state: &model::ClusterState| operation::begin(state, me, &operation, step, marker);
                self.parts.store.update(|state| Ok((write(state), ()))).await?;
                failpoint::pass("restart.begun");
                Ok(false)
            }
            Next::Continue { operation, step, action: StepAction::Restart, marker } => {
                if facts.started_at.0 <= marker {
                    self.stop_server("restart in turn").await?;
                    failpoint::pass("restart.stopped");
                    return Ok(true);
                }
                let streams = facts.receiver.as_ref().is_some_and(|receiver| receiver.status == "streaming");
                if facts.in_recovery && !streams {
                    self.parts.local.set_doing(Some("restarted; waiting to stream again".into()));
                    return Ok(false);
                }
                failpoint::pass("restart.ending");
                self.parts
                    .store
                    .update(|state| Ok((operation::done(state, &operation, step, clock::wall()), ())))
                    .await?;
                failpoint::pass("restart.ended");
                Ok(false)
            }
            Next::Abandon { operation, reason } => {
                self.parts
                    .store
                    .update(|state| Ok((operation::abandon(state, &operation, &reason, clock::wall()), ())))
                    .await?;
                Ok(false)
            }
        }
    }
}
