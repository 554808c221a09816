//! What one keeper saw of its own node at one moment. Facts only; judging them is `cluster::judge`.

use crate::names::NodeId;
use crate::units::{Epoch, Lsn, Millis, SystemId, Timeline, WallTime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How the server process stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum ServerState {
    /// A witness: there is none.
    None,
    /// No data directory yet.
    Empty,
    /// Being initialised with initdb.
    Initialising,
    /// Being copied.
    Cloning(CloneProgress),
    /// Not running.
    Stopped,
    /// Started, not yet answering (recovery).
    Starting,
    /// Answers on our control connection.
    Running,
    /// Runs, but did not answer in time.
    Unresponsive {
        /// Milliseconds since the last answer.
        for_ms: u64,
    },
    /// Crashed or refused to start.
    Failed {
        /// What it said last.
        reason: String,
    },
}

impl ServerState {
    /// The word used in output.
    pub fn word(&self) -> &'static str {
        match self {
            ServerState::None => "witness",
            ServerState::Empty => "empty",
            ServerState::Initialising => "initialising",
            ServerState::Cloning(_) => "cloning",
            ServerState::Stopped => "stopped",
            ServerState::Starting => "starting",
            ServerState::Running => "running",
            ServerState::Unresponsive { .. } => "unresponsive",
            ServerState::Failed { .. } => "failed",
        }
    }
}

/// How far a base backup is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloneProgress {
    /// What is being done: `checkpoint`, `copy`, `log`, `verify`, `sync`.
    pub phase: String,
    /// Node it is copied from.
    pub source: String,
    /// Bytes received.
    pub done_bytes: u64,
    /// Estimate of the whole; 0 where unknown.
    pub total_bytes: u64,
    /// Bytes per second over the last seconds.
    pub rate_bytes_per_s: u64,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// Why the attempt before failed.
    #[serde(default)]
    pub last_error: Option<String>,
}

/// The receiving side of streaming replication, from `pg_stat_wal_receiver`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiver {
    /// Process id.
    pub pid: i32,
    /// `streaming`, `starting`, `waiting`, ...
    pub status: String,
    /// Where it connects to, `host:port`.
    pub upstream: String,
    /// The slot it uses.
    pub slot: Option<String>,
    /// Flushed up to here.
    pub flushed: Option<Lsn>,
    /// Age of the last message from the upstream, by this server's own clock.
    pub last_message_age_ms: Option<u64>,
    /// The upstream's position as told in the last message.
    pub latest_end: Option<Lsn>,
}

/// The sending side, from `pg_stat_replication`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// The name the receiver gave. Names of members are made by `cluster::naming`.
    pub application_name: String,
    /// Where it comes from.
    pub client_addr: Option<String>,
    /// Process id.
    pub pid: i32,
    /// `startup`, `catchup`, `streaming`, `backup`, `stopping`.
    pub state: String,
    /// `async`, `potential`, `sync`, `quorum`.
    pub sync_state: String,
    /// Positions as reported.
    pub sent: Option<Lsn>,
    /// See `sent`.
    pub write: Option<Lsn>,
    /// See `sent`.
    pub flush: Option<Lsn>,
    /// See `sent`.
    pub replay: Option<Lsn>,
}

/// One physical replication slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// `physical` or `logical`.
    pub slot_type: String,
    /// Whether a process uses it.
    pub active: bool,
    /// Oldest position it keeps.
    pub restart: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved`, `lost`.
    pub wal_status: Option<String>,
    /// Log it keeps back, in bytes.
    pub retained_bytes: Option<u64>,
}

/// A parameter whose new value waits for a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingRestart {
    /// The value now in force.
    pub old: String,
    /// The value after a restart.
    pub new: String,
}

/// Facts of a running server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFacts {
    /// Full version, for example 150018 for 15.18.
    pub version_num: u32,
    /// As printed, for example `15.18`.
    pub version: String,
    /// Database system identifier.
    pub system_id: SystemId,
    /// The timeline it writes or replays.
    pub timeline: Timeline,
    /// Whether it is in recovery, that is, a replica.
    pub in_recovery: bool,
    /// On a primary: position of the last inserted log record made durable so far (`pg_current_wal_flush_lsn`).
    pub written: Option<Lsn>,
    /// On a replica: received and flushed.
    pub received: Option<Lsn>,
    /// On a replica: applied.
    pub replayed: Option<Lsn>,
    /// Whether reads see all that was applied. False on a replica whose server has started from a checkpoint at which
    /// transactions had not ended on the primary, until it applies the end of a later one: among them may be some that
    /// were committed already and only waited to be acknowledged, and those stay invisible until then.
    #[serde(default = "shown")]
    pub shows_replayed: bool,
    /// On a replica: commit time of the last applied transaction.
    pub replayed_at: Option<WallTime>,
    /// On a replica: applying is paused by `pg_wal_replay_pause`.
    pub replay_paused: bool,
    /// When the server process started.
    pub started_at: WallTime,
    /// Its receiver, if any.
    pub receiver: Option<Receiver>,
    /// Its senders.
    pub senders: Vec<Sender>,
    /// Its slots.
    pub slots: Vec<Slot>,
    /// `synchronous_standby_names` in force.
    pub synchronous_standby_names: String,
    /// `primary_conninfo` is set. A running replica without one follows nobody.
    pub has_upstream: bool,
    /// Parameters that wait for a restart.
    pub pending_restart: BTreeMap<String, PendingRestart>,
    /// Client connections now open.
    pub connections: u32,
    /// The highest epoch found in `stemma.lineage`, if the table exists.
    #[serde(default)]
    pub lineage_epoch: Option<Epoch>,
}

/// What earlier versions did not look at.
pub(crate) fn shown() -> bool {
    true
}

/// Where a server's Unix sockets are, for programs of the same machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ServerSockets {
    /// Tells a machine, in one of its lives, and a network on it from all others.
    pub machine: String,
    /// Directories that hold a socket named `.s.PGSQL.<port>`.
    pub directories: Vec<SocketDirectory>,
}

/// A directory, and how to know that one seen by its path is the same: another container may have a path of that name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SocketDirectory {
    /// Where it is.
    pub path: String,
    /// Number of the device that it is on.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

/// How telling the world outside goes: hooks, address updates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    /// Hooks that ran in this life of the keeper.
    #[serde(default)]
    pub hook_runs: u64,
    /// Those of them that failed.
    #[serde(default)]
    pub hook_failures: u64,
    /// What fails now.
    #[serde(default)]
    pub troubles: Vec<OutsideTrouble>,
}

/// Something that the world outside was to be told and was not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideTrouble {
    /// Error code.
    pub code: String,
    /// What fails.
    pub what: String,
    /// Why.
    pub cause: String,
    /// What to do.
    pub next: String,
}

/// What one keeper saw of its own node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSample {
    /// Whose sample.
    pub node: NodeId,
    /// Counts up within one run of the keeper.
    pub seq: u64,
    /// Random per run of the keeper, so that a restart is noticed.
    pub incarnation: u64,
    /// How old the sample was when it was sent.
    pub age_ms: u64,
    /// How the server stands.
    pub server: ServerState,
    /// Facts of the server; absent while it does not answer.
    pub facts: Option<ServerFacts>,
    /// Where the server's sockets are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<ServerSockets>,
    /// Highest epoch this keeper has obeyed.
    pub epoch_seen: Epoch,
    /// Version of the cluster state this keeper has applied.
    pub state_version: u64,
    /// Version of the settings its server runs with.
    pub settings_version: u64,
    /// Free and total bytes of the file system of the data directory.
    pub disk_free_bytes: Option<u64>,
    /// See `disk_free_bytes`.
    pub disk_total_bytes: Option<u64>,
    /// The keeper's civil time when it sampled; for clock offsets only.
    pub wall: WallTime,
    /// What the keeper is doing, in words, if anything.
    pub doing: Option<String>,
    /// What went wrong last: code and sentence.
    pub last_error: Option<(String, String)>,
    /// How telling the world outside goes.
    #[serde(default)]
    pub outside: Outside,
    /// Keeper's process id.
    pub keeper_pid: u32,
    /// Version of the program.
    pub program_version: String,
    /// End of the node's certificate.
    pub certificate_expires_at: Option<WallTime>,
    /// How long ago this keeper last heard each of its peers, in milliseconds when it sampled. A peer it never heard is
    /// absent. Two keepers that cannot hear each other prove a cut long before the servers' connection notices it.
    #[serde(default)]
    pub peers_heard_ms: BTreeMap<NodeId, u64>,
}

/// A sample as the observer holds it: what was seen and how long ago, by the observer's own clock.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The sample.
    pub sample: std::sync::Arc<NodeSample>,
    /// When it was taken, in the observer's clock: time of receipt less the age it had when sent.
    pub taken_at: crate::units::Moment,
    /// When the observer last heard anything at all from that keeper.
    pub heard_at: crate::units::Moment,
}

/// What an observer knows of the consensus group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsensusView {
    /// `embedded` or `etcd`.
    pub kind: String,
    /// Whether a linearizable read succeeded within the last seconds.
    pub up: bool,
    /// Node id of the leader, for embedded.
    pub leader: Option<NodeId>,
    /// Term of the leader, for embedded.
    pub term: u64,
    /// Voting members, for embedded.
    pub voters: Vec<NodeId>,
    /// Members that receive the log without voting.
    pub learners: Vec<NodeId>,
    /// Last applied index.
    pub applied: u64,
    /// Time since the store last answered.
    pub age: Millis,
}
