//! What members say to each other, and the Raft engine's network on top of [`Transport`].

use super::TypeConfig;
use super::runtime::ANSWER_TIME_MIN;
use super::state::{Answer, Command};
use crate::{Document, Transport};
use model::names::NodeId;
use openraft::error::{Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse};
use openraft::{AnyError, EmptyNode, OptionalSend, Snapshot, SnapshotMeta, Vote};
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// Pause before an unreachable member is tried again. It must be short against an election, or a member that comes
/// back is left without heartbeats and calls one.
const BACKOFF: Duration = Duration::from_millis(200);

/// A message to another member.
#[derive(Serialize, Deserialize)]
pub(super) enum Request {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<u64>),
    Snapshot {
        vote: Vote<u64>,
        meta: SnapshotMeta<u64, EmptyNode>,
        data: Vec<u8>,
    },
    /// A write, for the leader.
    Write(Command),
    /// A linearizable read, for the leader.
    Read {
        key: String,
    },
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    Append(AppendEntriesResponse<u64>),
    Vote(VoteResponse<u64>),
    Snapshot(SnapshotResponse<u64>),
    Write(Attempt<Answer>),
    Read(Attempt<Option<Document>>),
    /// The message was not understood, not allowed, or this member's store has failed.
    Refused(String),
}

/// How one attempt to have something done by the leader ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Attempt<T> {
    /// Done.
    Done(T),
    /// Certainly not done.
    NotTaken(String),
    /// Perhaps done, or still to be done.
    Uncertain(String),
}

/// Sends one message; whatever is not a sound answer is an error in words.
pub(super) async fn ask(
    transport: &dyn Transport,
    to: NodeId,
    request: &Request,
    timeout: Duration,
) -> Result<Reply, String> {
    let payload = postcard::to_stdvec(request).map_err(|error| format!("cannot encode a message: {error}"))?;
    let answer = tokio::time::timeout(timeout, transport.call(to, payload, timeout))
        .await
        .map_err(|_| format!("node {to} did not answer within {} ms", timeout.as_millis()))??;
    match postcard::from_bytes(&answer) {
        Ok(Reply::Refused(reason)) => Err(format!("node {to} refused: {reason}")),
        Ok(reply) => Ok(reply),
        Err(error) => Err(format!("the answer of node {to} cannot be decoded: {error}")),
    }
}

/// Makes the engine's connections.
pub(super) struct Network {
    pub(super) transport: Arc<dyn Transport>,
}

/// The engine's connection to one member.
pub(super) struct Peer {
    to: NodeId,
    transport: Arc<dyn Transport>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Peer {
        Peer { to: NodeId(target), transport: self.transport.clone() }
    }
}

#[derive(Debug)]
struct Unanswered(String);

impl std::fmt::Display for Unanswered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Unanswered {}

fn unreachable(reason: String) -> Unreachable {
    Unreachable::from(AnyError::new(&Unanswered(reason)))
}

fn mismatch(to: NodeId) -> Unreachable {
    unreachable(format!("node {to} answered something else than was asked"))
}

type RpcResult<T> = Result<T, RPCError<u64, EmptyNode, RaftError<u64>>>;

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<u64>> {
        let request = Request::Append(rpc);
        match ask(&*self.transport, self.to, &request, option.hard_ttl().max(ANSWER_TIME_MIN))
            .await
            .map_err(unreachable)?
        {
            Reply::Append(response) => Ok(response),
            _ => Err(mismatch(self.to).into()),
        }
    }

    async fn vote(&mut self, rpc: VoteRequest<u64>, option: RPCOption) -> RpcResult<VoteResponse<u64>> {
        let request = Request::Vote(rpc);
        match ask(&*self.transport, self.to, &request, option.hard_ttl().max(ANSWER_TIME_MIN))
            .await
            .map_err(unreachable)?
        {
            Reply::Vote(response) => Ok(response),
            _ => Err(mismatch(self.to).into()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<u64>,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        let request = Request::Snapshot { vote, meta: snapshot.meta, data: *snapshot.snapshot };
        let asked = ask(&*self.transport, self.to, &request, option.hard_ttl());
        let reply = tokio::select! {
            closed = cancel => return Err(closed.into()),
            reply = asked => reply.map_err(unreachable)?,
        };
        match reply {
            Reply::Snapshot(response) => Ok(response),
            _ => Err(mismatch(self.to).into()),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}
