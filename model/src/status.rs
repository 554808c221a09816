//! The judged view of a cluster: what `stemma status`, REST, metrics and the UI all read. Made by `cluster::judge`,
//! once per sample. Its JSON form is a stable schema: fields are added, never renamed or removed.

use crate::follow::{FollowStatus, FollowerStatus};
use crate::names::{NodeId, NodeName, Site};
use crate::observe::{CloneProgress, ConsensusView, PendingRestart, ServerSockets};
use crate::settings::CommitMode;
use crate::state::{ReplicaKind, Role};
use crate::units::{Epoch, Lsn, SystemId, Timeline, WallTime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Schema of the JSON form.
pub const SCHEMA_VERSION: u32 = 1;

/// How the cluster is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Everything proved to work.
    Healthy,
    /// Being built for the first time.
    Forming,
    /// Serves, but with less redundancy or a problem.
    Degraded,
    /// Does not take writes, or cannot be judged.
    Down,
}

impl Verdict {
    /// The word shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Healthy => "HEALTHY",
            Verdict::Forming => "FORMING",
            Verdict::Degraded => "DEGRADED",
            Verdict::Down => "DOWN",
        }
    }
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Redundancy or quality is lower.
    Warning,
    /// Service or data is at risk.
    Critical,
}

/// One problem, with cause and next command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// Error code, listed in docs/errors.md.
    pub code: String,
    /// How bad.
    pub severity: Severity,
    /// The node it concerns.
    #[schema(value_type = Option<String>)]
    pub node: Option<NodeName>,
    /// What is wrong.
    pub what: String,
    /// Why, as far as known.
    pub cause: String,
    /// What to type next, or why nothing needs to be typed.
    pub next: String,
    /// For how long, in milliseconds, by the observer.
    pub for_ms: u64,
}

/// Whether a replica is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinkStatus {
    /// Connected and following.
    Streaming,
    /// Connected, still reading older log; or being cloned.
    CatchingUp,
    /// Not connected.
    Disconnected,
}

impl LinkStatus {
    /// The word shown.
    pub fn as_str(self) -> &'static str {
        match self {
            LinkStatus::Streaming => "streaming",
            LinkStatus::CatchingUp => "catching_up",
            LinkStatus::Disconnected => "disconnected",
        }
    }
}

/// Lag of one replica. `None` means unknown, never zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Lag {
    /// Bytes between the primary's newest known position and what the replica has applied.
    pub apply_bytes: Option<u64>,
    /// Bytes between the primary's newest known position and what the replica has flushed.
    pub receive_bytes: Option<u64>,
    /// How old the replica's data is, in seconds: 0 when it has everything and the link lives; grows from the moment
    /// the link was last known to live.
    pub seconds: Option<f64>,
    /// How the seconds were found: `position-history`, `link-silence`, `lower-bound`, `unknown`.
    pub method: String,
}

impl Lag {
    /// The method of seconds that are only known to be at least so many: the observer began to look when the replica
    /// was behind already.
    pub const LOWER_BOUND: &'static str = "lower-bound";
}

/// One node as judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct NodeStatus {
    /// Its number.
    #[schema(value_type = u64)]
    pub id: NodeId,
    /// Its name.
    #[schema(value_type = String)]
    pub name: NodeName,
    /// What it is, by the rule.
    #[schema(value_type = String)]
    pub role: Role,
    /// How a replica is used.
    #[schema(value_type = String)]
    pub kind: ReplicaKind,
    /// Whether it is fed by a replica.
    pub cascading: bool,
    /// Where it is.
    #[schema(value_type = String)]
    pub site: Site,
    /// Whether its keeper answers this observer.
    pub keeper_up: bool,
    /// How long ago anything was heard of its keeper, in milliseconds; absent if never.
    pub heard_ms_ago: Option<u64>,
    /// Age of the judged sample in milliseconds.
    pub sample_age_ms: Option<u64>,
    /// The server's state in one word.
    pub server: String,
    /// Where the member is in its life: `joining`, `active`, `halted`, ...
    pub stage: String,
    /// Whether all about it is as it should be.
    pub healthy: bool,
    /// `sync` (acknowledges commits now), `potential`, `async`; `-` for others.
    pub sync: String,
    /// Whether it is a voter of the rule.
    pub voter: bool,
    /// Where it streams from.
    #[schema(value_type = Option<String>)]
    pub upstream: Option<NodeName>,
    /// Whether it is fed, for replicas.
    pub link: Option<LinkStatus>,
    /// Whether the way to its upstream is alive.
    pub link_up: bool,
    /// Its lag, for replicas.
    pub lag: Option<Lag>,
    /// The timeline.
    #[schema(value_type = Option<u32>)]
    pub timeline: Option<Timeline>,
    /// Primary: written. Replica: received.
    #[schema(value_type = Option<String>)]
    pub position: Option<Lsn>,
    /// Replica: applied.
    #[schema(value_type = Option<String>)]
    pub replayed: Option<Lsn>,
    /// Version of the server.
    pub version: Option<String>,
    /// `host:port` of the database.
    pub postgres_address: String,
    /// `host:port` of the API.
    pub api_address: String,
    /// `host:port` for other keepers.
    pub peer_address: String,
    /// Failover preference.
    pub priority: u32,
    /// Applying is paused by `pg_wal_replay_pause`.
    #[serde(default)]
    pub replay_paused: bool,
    /// Whether reads see all that was applied; see `ServerFacts::shows_replayed`.
    #[serde(default = "crate::observe::shown")]
    pub shows_replayed: bool,
    /// Parameters that wait for a restart.
    #[schema(value_type = Object)]
    pub pending_restart: BTreeMap<String, PendingRestart>,
    /// Progress of a clone.
    #[schema(value_type = Option<Object>)]
    pub clone: Option<CloneProgress>,
    /// Disk in use, in percent.
    pub disk_used_percent: Option<u8>,
    /// Client connections.
    pub connections: Option<u32>,
    /// Offset of its civil clock from the observer's, in milliseconds; positive is ahead.
    pub clock_offset_ms: Option<i64>,
    /// What its keeper is doing.
    pub doing: Option<String>,
    /// Keeper's process id.
    pub keeper_pid: Option<u32>,
    /// Version of the program it runs.
    pub program_version: Option<String>,
    /// Version of the settings it runs with.
    pub settings_version: Option<u64>,
    /// Server start, for uptime.
    #[schema(value_type = Option<i64>)]
    pub started_at: Option<WallTime>,
    /// When its certificate ends.
    #[schema(value_type = Option<i64>)]
    pub certificate_expires_at: Option<WallTime>,
    /// Where its server's sockets are, for programs of its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<ServerSockets>,
}

/// How safe commits are now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Durability {
    /// The mode asked for.
    #[schema(value_type = String)]
    pub mode: CommitMode,
    /// Acknowledgements the server now waits for.
    pub acks: u32,
    /// Acknowledgements the mode asks for.
    pub acks_wanted: u32,
    /// Replicas that count.
    pub voters: Vec<String>,
    /// Whether commits wait rather than lose redundancy.
    pub strict: bool,
    /// Whether the server's own list is what the rule says.
    pub in_force: bool,
    /// Node failures the cluster survives while still taking writes without loss; -1 when it takes none now.
    pub failures_tolerated: i32,
    /// What would be lost if the primary died now, in bytes; 0 where commits are held by a replica that can be
    /// promoted; absent where unknown.
    pub loss_now_bytes: Option<u64>,
    /// The same in seconds.
    pub loss_now_seconds: Option<f64>,
    /// The sentence for people.
    pub sentence: String,
}

/// The whole judged view.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ClusterStatus {
    /// See `SCHEMA_VERSION`.
    pub schema_version: u32,
    /// Name of the cluster.
    pub cluster: String,
    /// Its id.
    pub cluster_id: String,
    /// In one word.
    pub verdict: Verdict,
    /// In one sentence.
    pub sentence: String,
    /// Who judged.
    #[schema(value_type = String)]
    pub observer: NodeName,
    /// Its civil time.
    #[schema(value_type = i64)]
    pub observed_at: WallTime,
    /// The epoch.
    #[schema(value_type = u64)]
    pub epoch: Epoch,
    /// The primary by the rule.
    #[schema(value_type = Option<String>)]
    pub primary: Option<NodeName>,
    /// Whether the primary was seen to accept writes.
    pub primary_up: bool,
    /// Engine and version, for example `PostgreSQL 15.18`.
    pub engine: String,
    /// System identifier.
    #[schema(value_type = Option<String>)]
    pub system_id: Option<SystemId>,
    /// How safe commits are.
    pub durability: Durability,
    /// All nodes: primary first, then by name.
    pub nodes: Vec<NodeStatus>,
    /// Problems, worst first.
    pub problems: Vec<Problem>,
    /// The consensus group as this observer sees it.
    #[schema(value_type = Object)]
    pub consensus: ConsensusView,
    /// Version of the settings in force.
    pub settings_version: u64,
    /// Running operation, if any: id and sentence.
    pub operation: Option<(String, String)>,
    /// Automatic failover is paused.
    #[serde(default)]
    pub paused: Option<PausedStatus>,
    /// A switchover that has not begun yet.
    #[serde(default)]
    pub planned_switchover: Option<PlannedStatus>,
    /// A change of primary in progress: id and sentence.
    #[serde(default)]
    pub failover: Option<(String, String)>,
    /// The cluster that this one follows, while it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<FollowStatus>,
    /// Clusters that follow this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub followers: Vec<FollowerStatus>,
}

/// Automatic failover was stopped by a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PausedStatus {
    /// Who.
    pub actor: String,
    /// Why; may be empty.
    pub reason: String,
    /// Since when.
    #[schema(value_type = i64)]
    pub since: WallTime,
    /// Until when.
    #[schema(value_type = Option<i64>)]
    pub until: Option<WallTime>,
}

/// A switchover that somebody asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PlannedStatus {
    /// Its id.
    pub id: String,
    /// When.
    #[schema(value_type = i64)]
    pub at: WallTime,
    /// The primary now.
    #[schema(value_type = String)]
    pub from: NodeName,
    /// The node asked for.
    #[schema(value_type = Option<String>)]
    pub to: Option<NodeName>,
    /// Who asked for it.
    pub actor: String,
    /// Whether a time was asked for.
    pub scheduled: bool,
}

impl ClusterStatus {
    /// The node with this name.
    pub fn node(&self, name: &str) -> Option<&NodeStatus> {
        self.nodes.iter().find(|node| node.name.as_str() == name)
    }
}
