//! Making the group, and changing its members.

use super::members::{Members, Step, next_step};
use super::store;
use super::{Embedded, Metrics, TypeConfig};
use crate::{Consensus, StoreError, WriteError};
use model::names::NodeId;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::ClientWriteResponse;
use openraft::{ChangeMembers, EmptyNode, Membership};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use tokio::time::Instant;

/// A learner this many entries behind may vote: it will hold the rest within a message.
const CATCH_UP_ENTRIES: u64 = 16;

/// Where the documents of a bootstrap are kept, so that one that was interrupted is continued and none is repeated.
const BOOTSTRAP: &str = "bootstrap";

type Documents = Vec<(String, Vec<u8>)>;
type ChangeResult = Result<ClientWriteResponse<TypeConfig>, RaftError<u64, ClientWriteError<u64, EmptyNode>>>;

/// How a change of members went.
enum Changed {
    Done,
    /// Another change is not committed yet.
    Busy,
    /// Somebody else leads now, and will go on with it.
    NotLeader,
}

impl Embedded {
    /// Makes a group of this one member, holding `documents`. Done again with the same documents it completes what was
    /// interrupted, or does nothing; on a member of any other group it is refused.
    pub async fn bootstrap(&self, documents: Vec<(String, Vec<u8>)>) -> Result<(), StoreError> {
        for (key, body) in &documents {
            crate::check_size(key, body)?;
        }
        let held: Option<Documents> = self.store.run(|database| store::get_meta(database, BOOTSTRAP)).await?;
        match (held, self.is_initialised()) {
            (Some(held), _) if held == documents => {}
            (Some(_), true) => return Err(foreign("this node began a group with other documents")),
            (None, true) => return Err(foreign("this node is a member of another group")),
            // Nothing was made of an earlier intention, so another may replace it.
            (Some(_) | None, false) => {
                let kept = documents.clone();
                self.store.run(move |database| store::put_meta(database, BOOTSTRAP, &kept)).await?;
            }
        }
        if !self.is_initialised() {
            let only = BTreeMap::from([(self.id.0, EmptyNode::new())]);
            let made = self.raft.initialize(only).await;
            made.map_err(|error| StoreError::Unavailable { detail: format!("cannot begin a group: {error}") })?;
        }
        let missing = |key: &str| !self.shared.state().documents.contains_key(key);
        for (key, body) in documents {
            if missing(&key) {
                self.write_first(&key, body).await?;
            }
        }
        Ok(())
    }

    async fn write_first(&self, key: &str, body: Vec<u8>) -> Result<(), StoreError> {
        self.await_initialised().await?;
        match self.write(key, 0, body).await {
            Ok(_) | Err(WriteError::Conflict { current: Some(_) }) => Ok(()),
            Err(WriteError::Store(error)) => Err(error),
            Err(error @ (WriteError::Unknown { .. } | WriteError::Conflict { current: None })) => {
                Err(StoreError::Unavailable { detail: error.to_string() })
            }
        }
    }

    /// The engine tells of a new group a moment after it was made.
    async fn await_initialised(&self) -> Result<(), StoreError> {
        let mut metrics = self.metrics.clone();
        let known = metrics.wait_for(|now| now.membership_config.voter_ids().next().is_some());
        match tokio::time::timeout(self.timing.request_deadline.duration(), known).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_closed)) => Err(StoreError::Stopped),
            Err(_elapsed) => Err(StoreError::Unavailable { detail: "the new group did not start".into() }),
        }
    }

    pub(super) async fn bring_members(
        &self,
        voters: &BTreeSet<NodeId>,
        learners: &BTreeSet<NodeId>,
    ) -> Result<(), StoreError> {
        let voters: BTreeSet<u64> = voters.iter().map(|id| id.0).collect();
        let learners: BTreeSet<u64> = learners.iter().map(|id| id.0).collect();
        if self.stopping.is_cancelled() {
            return Err(StoreError::Stopped);
        }
        if !self.is_leader() {
            return Ok(());
        }
        let _turn = self.changing.lock().await;
        let deadline = Instant::now() + self.timing.catch_up_deadline.duration();
        let mut metrics = self.metrics.clone();
        loop {
            let now = metrics.borrow_and_update().clone();
            if now.current_leader != Some(self.id.0) {
                return Ok(());
            }
            let step = next_step(&members_of(&now), &caught_up(&now), &voters, &learners);
            let waiting_for = match self.take_step(&step).await? {
                Some(Changed::NotLeader) => return Ok(()),
                Some(Changed::Done) if step == Step::Done => return Ok(()),
                Some(Changed::Done) => "the change of members to be seen".to_owned(),
                Some(Changed::Busy) => "another change of members".to_owned(),
                None => format!("{step:?}"),
            };
            match tokio::time::timeout_at(deadline, metrics.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_closed)) => return Err(StoreError::Stopped),
                Err(_elapsed) => {
                    return Err(StoreError::Unavailable { detail: format!("waited in vain for {waiting_for}") });
                }
            }
        }
    }

    /// Takes one step; none if it is one of waiting.
    async fn take_step(&self, step: &Step) -> Result<Option<Changed>, StoreError> {
        let nodes = |ids: &BTreeSet<u64>| ids.iter().map(|id| (*id, EmptyNode::new())).collect();
        let (change, removed_stay) = match step {
            Step::Done => return Ok(Some(Changed::Done)),
            Step::AwaitCatchUp(_) => return Ok(None),
            Step::Refuse => return Err(foreign("a group must keep at least one voter")),
            Step::AddLearners(ids) => (ChangeMembers::AddNodes(nodes(ids)), true),
            Step::SetVoters(ids) => (ChangeMembers::ReplaceAllVoters(ids.clone()), true),
            Step::Remove(ids) => (ChangeMembers::RemoveNodes(ids.clone()), true),
        };
        tracing::info!(node = %self.id, ?step, "changing the members of the consensus group");
        failpoint::pass("members.deciding");
        let changed = self.bounded(self.raft.change_membership(change, removed_stay)).await?;
        if let Changed::Done = changed {
            match step {
                Step::AddLearners(_) => failpoint::pass("members.learners-added"),
                Step::SetVoters(_) => failpoint::pass("members.voters-set"),
                Step::Remove(_) => failpoint::pass("members.removed"),
                Step::Done | Step::AwaitCatchUp(_) | Step::Refuse => {}
            }
        }
        Ok(Some(changed))
    }

    async fn bounded(&self, change: impl Future<Output = ChangeResult>) -> Result<Changed, StoreError> {
        let timeout = self.timing.request_deadline.duration();
        let Ok(result) = tokio::time::timeout(timeout, change).await else {
            return Err(StoreError::NoQuorum { detail: "no majority confirmed the change of members".into() });
        };
        match result {
            Ok(_) => Ok(Changed::Done),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Ok(Changed::NotLeader),
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => match error {
                ChangeMembershipError::InProgress(_) => Ok(Changed::Busy),
                // What was decided on is out of date; the next turn sees the newer members.
                ChangeMembershipError::EmptyMembership(_) | ChangeMembershipError::LearnerNotFound(_) => {
                    Ok(Changed::Busy)
                }
            },
            Err(RaftError::Fatal(error)) => Err(StoreError::Unavailable { detail: error.to_string() }),
        }
    }
}

fn foreign(detail: &str) -> StoreError {
    StoreError::Unavailable { detail: detail.to_owned() }
}

/// Who votes for certain, and who else belongs to the group. In the middle of a change both the old and the new voters
/// have to agree, so only who is among both can be counted on.
pub(super) fn settled(membership: &Membership<u64, EmptyNode>) -> (Vec<NodeId>, Vec<NodeId>) {
    let configs = membership.get_joint_config();
    let votes = |id: &u64| !configs.is_empty() && configs.iter().all(|config| config.contains(id));
    let (voters, others): (Vec<u64>, Vec<u64>) = membership.nodes().map(|(id, _)| *id).partition(votes);
    let ids = |ids: Vec<u64>| ids.into_iter().map(NodeId).collect();
    (ids(voters), ids(others))
}

fn members_of(metrics: &Metrics) -> Members {
    let membership = metrics.membership_config.membership();
    Members { configs: membership.get_joint_config().clone(), nodes: membership.nodes().map(|(id, _)| *id).collect() }
}

/// Those who hold the log nearly to its end, as far as the leader knows.
fn caught_up(metrics: &Metrics) -> BTreeSet<u64> {
    let last = metrics.last_log_index.unwrap_or(0);
    let Some(replication) = &metrics.replication else { return BTreeSet::new() };
    let near = |matched: &Option<openraft::LogId<u64>>| matched.is_some_and(|id| id.index + CATCH_UP_ENTRIES >= last);
    replication.iter().filter(|(_, matched)| near(matched)).map(|(id, _)| *id).collect()
}
