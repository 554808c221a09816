//! The store among the keepers themselves: a Raft group whose log, vote and state lie in one file per member.
//!
//! Any member takes reads and writes; one that does not lead passes them on. A write is repeated under one request id
//! until its outcome is certain or time is up, and the state machine recognises repetitions, so a repetition never
//! writes twice and never mistakes its own earlier success for a conflict.

mod group;
mod members;
mod raft_storage;
mod runtime;
mod state;
mod store;
#[cfg(test)]
mod suite_test;
mod wire;

use crate::{BoxFuture, Consensus, Document, StoreError, Transport, WriteError, check_size};
use model::names::NodeId;
use model::observe::ConsensusView;
use model::units::Millis;
use openraft::{EmptyNode, Raft, RaftMetrics, SnapshotPolicy};
use raft_storage::{LogStore, Machine, Shared};
use state::{Answer, Command};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use store::Store;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wire::{Attempt, Reply, Request};

openraft::declare_raft_types!(
    /// The types our Raft group is made of.
    pub TypeConfig:
        D = Command,
        R = Answer,
        NodeId = u64,
        Node = EmptyNode,
        SnapshotData = Vec<u8>,
        AsyncRuntime = runtime::Patient,
);

/// Entries after which a member takes a snapshot, and so may shorten its log.
const ENTRIES_PER_SNAPSHOT: u64 = 200;
/// Entries kept behind a snapshot, so that a member that was briefly away need not receive the whole state.
const ENTRIES_KEPT: u64 = 100;
/// A member further behind than this receives the whole state; must exceed what is kept.
const ENTRIES_LAG_MAX: u64 = 1_000;
const _: () = assert!(ENTRIES_PER_SNAPSHOT + ENTRIES_KEPT < ENTRIES_LAG_MAX);
/// Entries in one message; its bytes are bounded by the store.
const ENTRIES_PER_MESSAGE: u64 = 64;
/// Time for a whole snapshot to travel and be installed.
const SNAPSHOT_TIMEOUT: Millis = Millis(10_000);
/// Pauses between attempts of a read or write, growing from the first to the second.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(10);
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(160);

/// How fast the group notices a lost leader, and how long callers wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The leader tells its members at this interval that it is there.
    pub heartbeat: Millis,
    /// Members call an election after a silence of `election_max` and a time between this and `election_max` again, chosen
    /// at random (openraft, `raft_core.rs`: the leader's lease, then the timeout). A lost leader should be replaced by the
    /// time a lost primary is noticed; an election that nobody needed costs the database nothing.
    pub election_min: Millis,
    /// See `election_min`.
    pub election_max: Millis,
    /// A read or write that has found no majority by then fails.
    pub request_deadline: Millis,
    /// A change of members waits this long for a new one to catch up.
    pub catch_up_deadline: Millis,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            heartbeat: Millis(100),
            election_min: Millis(400),
            election_max: Millis(600),
            request_deadline: Millis(5_000),
            catch_up_deadline: Millis(10_000),
        }
    }
}

/// What [`Embedded::open`] needs.
pub struct EmbeddedConfig {
    /// This member. Never given twice: a member that lost its file comes back under a new id.
    pub id: NodeId,
    /// Where its file lies; made if missing.
    pub directory: PathBuf,
    /// How it reaches the others.
    pub transport: Arc<dyn Transport>,
    /// Time bounds.
    pub timing: Timing,
}

type Metrics = RaftMetrics<u64, EmptyNode>;

/// One member of the group. It runs until [`Consensus::stop`]; dropping it does not release its file.
pub struct Embedded {
    id: NodeId,
    raft: Raft<TypeConfig>,
    metrics: watch::Receiver<Metrics>,
    store: Arc<Store>,
    shared: Arc<Shared>,
    transport: Arc<dyn Transport>,
    timing: Timing,
    /// When a majority, or a leader, was last heard.
    heard: Arc<Heard>,
    member_at_open: bool,
    /// Held by the one change of members that runs.
    changing: tokio::sync::Mutex<()>,
    stopping: CancellationToken,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Time of the newest sign that the group works, as seen from here.
struct Heard {
    base: Instant,
    /// Milliseconds since `base` plus one; 0 for never.
    at: AtomicU64,
}

impl Heard {
    fn new() -> Arc<Heard> {
        Arc::new(Heard { base: Instant::now(), at: AtomicU64::new(0) })
    }

    fn note(&self, ago: Duration) {
        let at = self.base.elapsed().saturating_sub(ago).as_millis() as u64 + 1;
        self.at.fetch_max(at, Ordering::Relaxed);
    }

    /// Time since the last sign; since the start if there was none.
    fn age(&self) -> Duration {
        let at = self.at.load(Ordering::Relaxed);
        self.base.elapsed().saturating_sub(Duration::from_millis(at.saturating_sub(1)))
    }

    fn within(&self, span: Millis) -> bool {
        self.at.load(Ordering::Relaxed) > 0 && self.age() <= span.duration()
    }
}

impl Embedded {
    /// Opens or makes this member's file and takes its place in the group again. A fresh member waits until a leader
    /// adds it, or until [`Embedded::bootstrap`].
    pub async fn open(config: EmbeddedConfig) -> Result<Arc<Embedded>, StoreError> {
        let EmbeddedConfig { id, directory, transport, timing } = config;
        tokio::fs::create_dir_all(&directory)
            .await
            .map_err(|error| StoreError::Unavailable { detail: format!("{}: {error}", directory.display()) })?;
        let (store, state) = Store::open(&directory, id).await?;
        let shared = Shared::new(state);
        let raft = Raft::new(
            id.0,
            Arc::new(engine_config(&timing)?),
            wire::Network { transport: transport.clone() },
            LogStore { store: store.clone() },
            Machine { store: store.clone(), shared: shared.clone() },
        );
        let raft = match raft.await {
            Ok(raft) => raft,
            Err(error) => return Err(fail_open(&store, &error).await),
        };
        let voters = raft
            .with_raft_state(|state| state.membership_state.effective().membership().voter_ids().collect::<Vec<_>>());
        let voters = match voters.await {
            Ok(voters) => voters,
            Err(error) => return Err(fail_open(&store, &error).await),
        };
        // Who votes alone need not wait whether another leader shows itself.
        if voters == [id.0]
            && let Err(error) = raft.trigger().elect().await
        {
            return Err(fail_open(&store, &error).await);
        }
        let embedded = Embedded {
            id,
            metrics: raft.metrics(),
            raft,
            store,
            shared,
            transport,
            timing,
            heard: Heard::new(),
            member_at_open: !voters.is_empty(),
            changing: tokio::sync::Mutex::new(()),
            stopping: CancellationToken::new(),
        };
        embedded.follow_metrics();
        Ok(Arc::new(embedded))
    }

    /// Whether this member belongs to a group, or has once.
    pub fn is_initialised(&self) -> bool {
        self.member_at_open || self.metrics.borrow().membership_config.voter_ids().next().is_some()
    }

    /// Notes what the engine learns of its majority. Costs one wake-up per change of its metrics.
    fn follow_metrics(&self) {
        let (mut metrics, heard) = (self.metrics.clone(), self.heard.clone());
        let stopping = self.stopping.clone();
        tokio::spawn(async move {
            loop {
                let acked = metrics.borrow_and_update().millis_since_quorum_ack;
                if let Some(ago) = acked {
                    heard.note(Duration::from_millis(ago));
                }
                tokio::select! {
                    () = stopping.cancelled() => return,
                    changed = metrics.changed() => if changed.is_err() { return },
                }
            }
        });
    }

    /// The leader this member believes in, if it has heard of a working group lately.
    fn leader(&self) -> Result<NodeId, String> {
        let leader = self.metrics.borrow().current_leader.map(NodeId);
        match leader {
            None => Err("no leader is known".into()),
            Some(_) if !self.heard.within(self.timing.election_max) => {
                Err(format!("no majority was heard for {} ms", self.heard.age().as_millis()))
            }
            Some(leader) => Ok(leader),
        }
    }

    /// Why nothing can be asked of this member at all, if so.
    fn check_running(&self) -> Result<(), StoreError> {
        if self.stopping.is_cancelled() {
            return Err(StoreError::Stopped);
        }
        if let Some(failure) = self.store.failure() {
            return Err(failure);
        }
        let failed = self.metrics.borrow().running_state.as_ref().err().map(ToString::to_string);
        match failed {
            Some(detail) => Err(StoreError::Unavailable { detail }),
            None if !self.is_initialised() => {
                Err(StoreError::Unavailable { detail: "this node is not part of a group yet".into() })
            }
            None => Ok(()),
        }
    }

    async fn write_document(&self, key: &str, expect: u64, body: Vec<u8>) -> Result<u64, WriteError> {
        check_size(key, &body)?;
        let deadline = Instant::now() + self.timing.request_deadline.duration();
        // Every entry that this write may become lies above what is applied here and now.
        let since = self.shared.state().applied.map_or(0, |id| id.index);
        let mut command =
            Command { request: uuid::Uuid::new_v4().as_u128(), repeats_since: None, key: key.to_owned(), expect, body };
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            let checked = self.check_running();
            let detail = match checked {
                Err(error) if command.repeats_since.is_some() => {
                    return Err(WriteError::Unknown { detail: error.to_string() });
                }
                Err(error) => return Err(error.into()),
                Ok(()) => match self.attempt_write(&command, deadline).await {
                    Attempt::Done(answer) => return conclude(answer),
                    Attempt::NotTaken(detail) => detail,
                    Attempt::Uncertain(detail) => {
                        command.repeats_since = Some(since);
                        detail
                    }
                },
            };
            if Instant::now() + pause >= deadline {
                return Err(match command.repeats_since {
                    Some(_) => WriteError::Unknown { detail },
                    None => StoreError::NoQuorum { detail }.into(),
                });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    async fn attempt_write(&self, command: &Command, deadline: Instant) -> Attempt<Answer> {
        let leader = match self.leader() {
            Ok(leader) => leader,
            Err(detail) => return Attempt::NotTaken(detail),
        };
        if leader == self.id {
            let left = deadline.saturating_duration_since(Instant::now());
            return self.write_as_leader(command.clone(), left).await;
        }
        let request = Request::Write(command.clone());
        match self.ask_leader(leader, &request, self.forward_timeout(deadline)).await {
            Ok(Reply::Write(attempt)) => attempt,
            Ok(_) => Attempt::Uncertain(format!("node {leader} answered something else than was asked")),
            Err(detail) => Attempt::Uncertain(detail),
        }
    }

    /// Asks the leader, for as long as it is one: of a machine that is gone, a request would wait out its whole time for
    /// a connection while somebody else leads already.
    async fn ask_leader(&self, leader: NodeId, request: &Request, timeout: Duration) -> Result<Reply, String> {
        let mut metrics = self.metrics.clone();
        let replaced = metrics.wait_for(|metrics| metrics.current_leader != Some(leader.0));
        tokio::select! {
            answer = wire::ask(&*self.transport, leader, request, timeout) => answer,
            Ok(_) = replaced => Err(format!("node {leader} leads no more")),
        }
    }

    /// A forwarded request waits less than its caller, so that there is time to ask the next leader.
    fn forward_timeout(&self, deadline: Instant) -> Duration {
        let left = deadline.saturating_duration_since(Instant::now());
        left.min(self.timing.request_deadline.duration() / 2)
    }

    async fn write_as_leader(&self, command: Command, timeout: Duration) -> Attempt<Answer> {
        match self.leader() {
            Ok(leader) if leader == self.id => {}
            Ok(leader) => return Attempt::NotTaken(format!("node {leader} leads, not node {}", self.id)),
            Err(detail) => return Attempt::NotTaken(detail),
        }
        match tokio::time::timeout(timeout, self.raft.client_write(command)).await {
            Ok(Ok(response)) => Attempt::Done(response.data),
            // Also told when leadership was lost after the entry had been sent to others.
            Ok(Err(error)) => Attempt::Uncertain(error.to_string()),
            Err(_elapsed) => Attempt::Uncertain(format!("no majority confirmed within {} ms", timeout.as_millis())),
        }
    }

    async fn read_document(&self, key: &str) -> Result<Option<Document>, StoreError> {
        check_size(key, &[])?;
        let deadline = Instant::now() + self.timing.request_deadline.duration();
        let mut pause = RETRY_PAUSE_MIN;
        loop {
            self.check_running()?;
            let detail = match self.attempt_read(key, deadline).await {
                Attempt::Done(document) => return Ok(document),
                Attempt::NotTaken(detail) | Attempt::Uncertain(detail) => detail,
            };
            if Instant::now() + pause >= deadline {
                return Err(StoreError::NoQuorum { detail });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_PAUSE_MAX);
        }
    }

    async fn attempt_read(&self, key: &str, deadline: Instant) -> Attempt<Option<Document>> {
        let leader = match self.leader() {
            Ok(leader) => leader,
            Err(detail) => return Attempt::NotTaken(detail),
        };
        let timeout = self.forward_timeout(deadline);
        if leader == self.id {
            return self.read_as_leader(key, timeout).await;
        }
        let request = Request::Read { key: key.to_owned() };
        match self.ask_leader(leader, &request, timeout).await {
            Ok(Reply::Read(attempt)) => attempt,
            Ok(_) => Attempt::NotTaken(format!("node {leader} answered something else than was asked")),
            Err(detail) => Attempt::NotTaken(detail),
        }
    }

    /// Confirms with a majority that this member still leads, waits until all that was committed before is applied
    /// here, and only then looks.
    async fn read_as_leader(&self, key: &str, timeout: Duration) -> Attempt<Option<Document>> {
        match tokio::time::timeout(timeout, self.raft.ensure_linearizable()).await {
            Ok(Ok(_)) => Attempt::Done(self.shared.state().documents.get(key).cloned()),
            Ok(Err(error)) => Attempt::NotTaken(error.to_string()),
            Err(_elapsed) => Attempt::NotTaken(format!("no majority answered within {} ms", timeout.as_millis())),
        }
    }

    /// Answers a payload that came through [`Transport`] from `from`, whose identity the transport has checked.
    pub async fn handle(&self, from: NodeId, payload: Vec<u8>) -> Vec<u8> {
        let reply = match postcard::from_bytes::<Request>(&payload) {
            Ok(_) if self.stopping.is_cancelled() => Reply::Refused(StoreError::Stopped.to_string()),
            Ok(request) => self.answer(from, request).await,
            Err(error) => Reply::Refused(format!("message cannot be decoded: {error}")),
        };
        postcard::to_stdvec(&reply).unwrap_or_default()
    }

    async fn answer(&self, from: NodeId, request: Request) -> Reply {
        if let Some(claimed) = claimed_sender(&request)
            && claimed != Some(from.0)
        {
            return Reply::Refused(format!("message of node {from} in the name of node {claimed:?}"));
        }
        let timeout = self.timing.request_deadline.duration() / 2;
        match request {
            Request::Append(rpc) => match self.raft.append_entries(rpc).await {
                Ok(response) => {
                    if !matches!(response, openraft::raft::AppendEntriesResponse::HigherVote(_)) {
                        self.heard.note(Duration::ZERO);
                    }
                    Reply::Append(response)
                }
                Err(error) => Reply::Refused(error.to_string()),
            },
            Request::Vote(rpc) => {
                self.raft.vote(rpc).await.map_or_else(|error| Reply::Refused(error.to_string()), Reply::Vote)
            }
            Request::Snapshot { vote, meta, data } => self.take_snapshot(vote, meta, data).await,
            Request::Write(command) => Reply::Write(self.write_as_leader(command, timeout).await),
            Request::Read { key } => Reply::Read(match self.leader() {
                Ok(leader) if leader == self.id => self.read_as_leader(&key, timeout).await,
                Ok(leader) => Attempt::NotTaken(format!("node {leader} leads, not node {}", self.id)),
                Err(detail) => Attempt::NotTaken(detail),
            }),
        }
    }

    async fn take_snapshot(
        &self,
        vote: openraft::Vote<u64>,
        meta: openraft::SnapshotMeta<u64, EmptyNode>,
        data: Vec<u8>,
    ) -> Reply {
        // The engine stops for good if installing fails, so a state that cannot be read is refused before.
        if let Err(error) = postcard::from_bytes::<state::State>(&data) {
            return Reply::Refused(format!("snapshot cannot be decoded: {error}"));
        }
        let snapshot = openraft::Snapshot { meta, snapshot: Box::new(data) };
        let installed = self.raft.install_full_snapshot(vote, snapshot).await;
        installed.map_or_else(|error| Reply::Refused(error.to_string()), Reply::Snapshot)
    }

    async fn stop_all(&self) {
        self.stopping.cancel();
        if self.raft.shutdown().await.is_err() {
            tracing::warn!(node = %self.id, "the consensus engine did not end cleanly");
        }
        self.store.close().await;
    }
}

/// In whose name a message of the engine speaks; none for requests that carry no claim.
fn claimed_sender(request: &Request) -> Option<Option<u64>> {
    match request {
        Request::Append(rpc) => Some(rpc.vote.leader_id().voted_for()),
        Request::Vote(rpc) => Some(rpc.vote.leader_id().voted_for()),
        Request::Snapshot { vote, .. } => Some(vote.leader_id().voted_for()),
        Request::Write(_) | Request::Read { .. } => None,
    }
}

fn conclude(answer: Answer) -> Result<u64, WriteError> {
    match answer {
        Answer::Written { version } => Ok(version),
        Answer::Conflict { current } => Err(WriteError::Conflict { current }),
        Answer::TooLarge { bytes } => Err(StoreError::TooLarge { bytes, max: state::STATE_BYTES_MAX }.into()),
        Answer::Forgotten => {
            Err(WriteError::Unknown { detail: "the answer came too late to know whether an attempt succeeded".into() })
        }
        Answer::Nothing => Err(StoreError::Corrupt { detail: "a write was applied as something else".into() }.into()),
    }
}

async fn fail_open(store: &Arc<Store>, error: &openraft::error::Fatal<u64>) -> StoreError {
    let failure = store.failure().unwrap_or_else(|| StoreError::Unavailable { detail: error.to_string() });
    store.close().await;
    failure
}

fn engine_config(timing: &Timing) -> Result<openraft::Config, StoreError> {
    let config = openraft::Config {
        cluster_name: "stemma".into(),
        heartbeat_interval: timing.heartbeat.0,
        election_timeout_min: timing.election_min.0,
        election_timeout_max: timing.election_max.0,
        install_snapshot_timeout: SNAPSHOT_TIMEOUT.0,
        max_payload_entries: ENTRIES_PER_MESSAGE,
        replication_lag_threshold: ENTRIES_LAG_MAX,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(ENTRIES_PER_SNAPSHOT),
        max_in_snapshot_log_to_keep: ENTRIES_KEPT,
        ..openraft::Config::default()
    };
    config.validate().map_err(|error| StoreError::Unavailable { detail: format!("consensus timing: {error}") })
}

impl Consensus for Embedded {
    fn call_election(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if let Err(error) = self.raft.trigger().elect().await {
                tracing::debug!(%error, "no election was called");
            }
        })
    }

    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Document>, StoreError>> {
        Box::pin(self.read_document(key))
    }

    fn write<'a>(&'a self, key: &'a str, expect: u64, body: Vec<u8>) -> BoxFuture<'a, Result<u64, WriteError>> {
        Box::pin(self.write_document(key, expect, body))
    }

    fn watch(&self, key: &str) -> watch::Receiver<Option<Document>> {
        // Known first, subscribed second: a document applied in between is offered by the state machine, and an older
        // one never replaces a newer.
        let receiver = self.shared.watchers.subscribe(key);
        let known = self.shared.state().documents.get(key).cloned();
        if let Some(document) = known {
            self.shared.watchers.publish(key, &document);
        }
        receiver
    }

    fn view(&self) -> ConsensusView {
        let metrics = self.metrics.borrow();
        let (applied, voters, learners) = {
            let state = self.shared.state();
            let (voters, learners) = group::settled(state.membership.membership());
            (state.applied.map_or(0, |id| id.index), voters, learners)
        };
        let working = metrics.running_state.is_ok() && !self.stopping.is_cancelled();
        ConsensusView {
            kind: "embedded".into(),
            up: working && metrics.current_leader.is_some() && self.heard.within(self.timing.election_max),
            leader: metrics.current_leader.map(NodeId),
            term: metrics.current_term,
            // Of the state itself: the metrics tell of an entry some time after its writer was answered, and of members
            // before a majority has confirmed them.
            voters,
            learners,
            applied,
            age: Millis(self.heard.age().as_millis() as u64),
        }
    }

    fn set_members<'a>(
        &'a self,
        voters: &'a BTreeSet<NodeId>,
        learners: &'a BTreeSet<NodeId>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.bring_members(voters, learners))
    }

    fn is_leader(&self) -> bool {
        self.leader() == Ok(self.id)
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.stop_all())
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;

    impl Transport for Nobody {
        fn call(&self, _to: NodeId, _payload: Vec<u8>, _timeout: Duration) -> BoxFuture<'_, Result<Vec<u8>, String>> {
            Box::pin(std::future::ready(Err("nobody is there".into())))
        }
    }

    #[tokio::test]
    async fn nobody_speaks_in_the_name_of_another() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let config = EmbeddedConfig {
            id: NodeId(1),
            directory: directory.path().to_owned(),
            transport: Arc::new(Nobody),
            timing: Timing::default(),
        };
        let node = Embedded::open(config).await.expect("opens");
        let ask = |vote| Request::Vote(openraft::raft::VoteRequest { vote, last_log_id: None });
        let payload = postcard::to_stdvec(&ask(openraft::Vote::new(5, 2))).expect("encoded");
        let decode = |answer: Vec<u8>| postcard::from_bytes::<Reply>(&answer).expect("decoded");
        let forged = decode(node.handle(NodeId(7), payload.clone()).await);
        assert!(matches!(forged, Reply::Refused(_)), "{forged:?}");
        let genuine = decode(node.handle(NodeId(2), payload).await);
        assert!(matches!(genuine, Reply::Vote(_)), "{genuine:?}");
        node.stop().await;
        let late = decode(node.handle(NodeId(2), Vec::new()).await);
        assert!(matches!(late, Reply::Refused(_)), "{late:?}");
    }
}
