//! The cluster's state: the one document in consensus that every keeper obeys. Changed only by compare-and-set.
//!
//! It holds decisions, not telemetry: members, the durability rule, settings, tokens, running operations and history.
//! What may follow what is decided in `cluster`; secrets (CA key, passwords) are in a document of their own.

use crate::failover::{Failover, PlannedSwitchover};
use crate::follow::{Follow, Follower, UpstreamSecrets};
use crate::names::{ClusterId, ClusterName, NodeId, NodeName, Site};
use crate::settings::{CommitMode, Settings};
use crate::units::{Epoch, Lsn, SystemId, WallTime};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a node is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Holds the database and takes writes. Which node this is, only the rule says.
    Primary,
    /// Holds a copy.
    Replica,
    /// Votes without a database.
    Witness,
}

impl Role {
    /// The word used in commands and output.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Replica => "replica",
            Role::Witness => "witness",
        }
    }
}
impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// How a replica is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplicaKind {
    /// Serves reads, may acknowledge commits, may be promoted.
    #[default]
    Hot,
    /// Dedicated to failover: may acknowledge and be promoted, is never routed to.
    Standby,
    /// Applies changes late on purpose; never acknowledges, never promoted, never routed to.
    Delayed,
}

impl ReplicaKind {
    /// The word used in commands and output.
    pub fn as_str(self) -> &'static str {
        match self {
            ReplicaKind::Hot => "hot",
            ReplicaKind::Standby => "standby",
            ReplicaKind::Delayed => "delayed",
        }
    }
}

/// Where a member is in its life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "stage")]
pub enum Stage {
    /// Admitted; has not yet a database that follows the primary.
    Joining,
    /// Part of the cluster.
    Active,
    /// Stopped on purpose because going on would do harm; only `node rejoin` or `node reinit` ends it.
    Halted {
        /// Error code of the reason.
        code: String,
        /// What was found, with values.
        reason: String,
        /// When, for people.
        since: WallTime,
    },
    /// Ordered to be rebuilt from a fresh base backup.
    Reinit {
        /// The number of the order, so that one order is carried out once.
        order: u64,
    },
    /// Ordered to check its history again and follow the primary if it has not diverged.
    Rejoin {
        /// The number of the order.
        order: u64,
    },
    /// Being removed: it must stop its server's replication and leave; others drop its slots.
    Leaving,
}

/// One node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its number in the consensus group.
    pub id: NodeId,
    /// The name people use.
    pub name: NodeName,
    /// Whether it has no database.
    pub witness: bool,
    /// How a replica is used. Meaningless while the node is the primary or a witness.
    #[serde(default)]
    pub kind: ReplicaKind,
    /// For `delayed`: how late changes are applied, in milliseconds.
    #[serde(default)]
    pub apply_delay_ms: u64,
    /// The node to stream from, if not the primary.
    #[serde(default)]
    pub upstream: Option<NodeId>,
    /// Where it is.
    pub site: Site,
    /// Failover preference: higher wins among equals, 0 never. Used by failover and shown in status.
    pub priority: u32,
    /// `host:port` of the keeper's listener for other keepers.
    pub peer_address: String,
    /// `host:port` of the HTTP API.
    pub api_address: String,
    /// Host under which clients and replicas reach the database.
    pub postgres_host: String,
    /// Port of the database; 0 for a witness.
    pub postgres_port: u16,
    /// SHA-256 of the public key of the certificate it may present, in hex. Certificates are renewed for the same key
    /// or re-bound here when the key changes.
    pub key_fingerprint: String,
    /// A key that is about to replace it: accepted too, so that a rotation cuts no connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_key_fingerprint: Option<String>,
    /// Number of the last order to make a new key and certificate; the node obeys what it has not obeyed yet.
    #[serde(default)]
    pub certificate_order: u64,
    /// Where it is in its life.
    pub stage: Stage,
    /// When it was admitted, for people.
    pub joined_at: WallTime,
}

impl Member {
    /// Whether it may acknowledge commits, by what it is (not by how it is doing).
    pub fn may_vote_for_commits(&self) -> bool {
        !self.witness && self.kind != ReplicaKind::Delayed && self.upstream.is_none()
    }
    /// Whether a certificate for this key may speak for the member.
    pub fn holds_key(&self, fingerprint: &str) -> bool {
        self.key_fingerprint == fingerprint || self.next_key_fingerprint.as_deref() == Some(fingerprint)
    }
    /// `host:port` of the database.
    pub fn postgres_address(&self) -> String {
        format!("{}:{}", self.postgres_host, self.postgres_port)
    }
}

/// The durability contract now in force. A commit is acknowledged by `primary` only when at least `acks` nodes of the
/// list the server waits for hold it; promotion is safe when at least `recruit_quorum` of `voters` are recruited.
///
/// `recruit_quorum` counts every recruited voter, the later winner included, and is `|voters| - acks + 1`. Invariant,
/// always, where the server itself waits for `k` of `sync`: `|voters ∪ sync ∪ {primary}| <= recruit_quorum + k`. (With
/// a quorum that counts only the other voters a winner must hear from, this reads `.. <= quorum + k + 1`.) With
/// `acks = 0` nothing is promised, no promotion is without loss, and `recruit_quorum = |voters|`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Number of this primacy.
    pub epoch: Epoch,
    /// The node that may take writes.
    pub primary: NodeId,
    /// Replicas that must be asked before another node is promoted.
    pub voters: BTreeSet<NodeId>,
    /// How many acknowledgements every commit is known to have.
    pub acks: u32,
    /// How many voters must be recruited before another node may be promoted.
    pub recruit_quorum: u32,
    /// The mode that was asked for when the rule was written.
    pub mode: CommitMode,
    /// Grows with every change of the rule.
    pub version: u64,
}

/// What a token may be used for. The token itself is not kept, only its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Public id, part of the token.
    pub id: String,
    /// SHA-256 of the secret part, in hex.
    pub secret_sha256: String,
    /// The role it admits: `replica` or `witness`.
    pub role: Role,
    /// It admits no node, but lets another cluster follow this one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follower: bool,
    /// End of its life.
    pub expires_at: WallTime,
    /// Who made it, for audit.
    pub created_by: String,
    /// When it was made.
    pub created_at: WallTime,
    /// The public key that used it, and the member it made. A repeated request of the same key gets the same answer,
    /// so that a node killed in mid-join can go on; any other key is refused.
    #[serde(default)]
    pub used_by: Option<TokenUse>,
}

/// How a token was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// Fingerprint of the key that used it.
    pub key_fingerprint: String,
    /// The member it made.
    pub node: NodeId,
    /// When.
    pub at: WallTime,
}

/// One accepted version of the settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsChange {
    /// Counts from 1.
    pub version: u64,
    /// When it was accepted.
    pub at: WallTime,
    /// Who asked for it.
    pub actor: String,
    /// Why, in the words of who asked; may be empty.
    pub reason: String,
    /// The whole settings of this version.
    pub settings: Settings,
}

/// A long action that several nodes carry out step by step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// `op_` and a number.
    pub id: String,
    /// Which request made it, so that one whose answer was lost is recognised when it is decided again.
    #[serde(default)]
    pub request: String,
    /// What it does.
    pub kind: OperationKind,
    /// The epoch it was planned in; refused in any other.
    pub epoch: Epoch,
    /// Who asked for it.
    pub actor: String,
    /// Why.
    pub because: String,
    /// When it was planned.
    pub started_at: WallTime,
    /// When it ended.
    #[serde(default)]
    pub ended_at: Option<WallTime>,
    /// What is done, in this order, one after the other.
    pub steps: Vec<Step>,
    /// How it stands.
    pub state: OperationState,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    /// Restart of servers, one after the other.
    RollingRestart,
}

/// How an operation stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum OperationState {
    /// Steps are being carried out.
    Running,
    /// All steps done.
    Succeeded,
    /// A step failed; later steps were not begun.
    Failed {
        /// Error code.
        code: String,
        /// What failed.
        reason: String,
    },
    /// Ended by a person before its end.
    Cancelled,
}

/// One step of an operation; carried out by the keeper of `node`, and idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Whose keeper does it.
    pub node: NodeId,
    /// What is done.
    pub action: StepAction,
    /// How it stands.
    pub state: StepState,
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepAction {
    /// Restart the server and wait until it serves again (a replica: until it streams again).
    Restart,
}

/// How a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum StepState {
    /// Not begun.
    Pending,
    /// Begun. `marker` is the server's start time, in milliseconds of the wall clock, seen before: a later start time
    /// proves the step done, so a keeper killed in mid-step neither repeats nor forgets it.
    Running {
        /// See above.
        marker: i64,
    },
    /// Done.
    Done,
    /// Failed.
    Failed,
}

/// Something worth remembering, for `stemma history`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEvent {
    /// Counts from 1, never given twice.
    pub seq: u64,
    /// When, for people.
    pub at: WallTime,
    /// What kind, for example `node-joined`, `rule-changed`, `settings-applied`.
    pub kind: String,
    /// Whom it concerns.
    #[serde(default)]
    pub node: Option<NodeName>,
    /// The sentence that people read.
    pub text: String,
    /// Who caused it: a person, a token, or `stemma` itself.
    pub actor: String,
}

/// What the cluster is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The name people gave it.
    pub name: ClusterName,
    /// Its unguessable id.
    pub id: ClusterId,
    /// The database system identifier; unknown until the first server was made or adopted.
    #[serde(default)]
    pub system_id: Option<SystemId>,
    /// Major version of the servers; unknown until the first server was made or adopted.
    #[serde(default)]
    pub major: Option<u32>,
    /// When it was made, for people.
    pub created_at: WallTime,
}

/// The whole state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Format of this document; a keeper refuses a newer one than it knows.
    pub format: u32,
    /// What the cluster is.
    pub identity: Identity,
    /// The next node id to be given.
    pub next_node_id: u64,
    /// Grows with every order to a node and with every operation.
    pub next_order: u64,
    /// All nodes, the leaving ones included.
    pub members: BTreeMap<NodeId, Member>,
    /// The durability contract.
    pub rule: Rule,
    /// Where the data of a primacy began: epoch, timeline and position, oldest first; bounded.
    #[serde(default)]
    pub lineage: Vec<LineageEntry>,
    /// The change of primary that is in progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<Failover>,
    /// Changes of primary that ended, newest last; bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failovers: Vec<Failover>,
    /// Switchovers that people asked for, newest last; at most one of them open; bounded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub switchovers: Vec<PlannedSwitchover>,
    /// Automatic failover waits until somebody resumes it, or until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<Pause>,
    /// The cluster that this one follows, or followed until it was promoted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<Follow>,
    /// Clusters that follow this one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub followers: BTreeMap<NodeId, Follower>,
    /// The settings in force.
    pub settings: Settings,
    /// Their version.
    pub settings_version: u64,
    /// Versions before, newest last; bounded.
    pub settings_history: Vec<SettingsChange>,
    /// Tokens that are alive or were used not long ago.
    pub tokens: BTreeMap<String, TokenRecord>,
    /// Operations, newest last; bounded.
    pub operations: Vec<Operation>,
    /// What happened, newest last; bounded.
    pub history: Vec<HistoryEvent>,
}

/// Where a primacy began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineageEntry {
    /// Its epoch.
    pub epoch: Epoch,
    /// The timeline it writes.
    pub timeline: crate::units::Timeline,
    /// The position at which it began, where known.
    #[serde(default)]
    pub began_at: Option<Lsn>,
    /// The epoch whose history it continues; absent for the first, and where the same timeline went on under a new
    /// epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Epoch>,
    /// The transaction numbers when its primary took over, where they were noted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xids: Option<XidSwitch>,
}

/// Transaction numbers, with their wrap-arounds, around a promotion. The two are equal where nothing was left to be
/// replayed when it was ordered, and nobody wrote before the second was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XidSwitch {
    /// Every smaller number is that of the history taken over: the new primary did not give it again.
    pub kept_below: u64,
    /// No transaction with this number or a greater one was committed in the history taken over.
    pub given_from: u64,
}

/// Automatic failover was stopped by a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// Who.
    pub actor: String,
    /// Why; may be empty.
    pub reason: String,
    /// Since when.
    pub since: WallTime,
    /// Until when; for ever when absent. Civil time is good enough here: being paused is a wish, not a safeguard.
    #[serde(default)]
    pub until: Option<WallTime>,
}

/// The format that this program writes.
pub const STATE_FORMAT: u32 = 1;

impl ClusterState {
    /// The member with this name.
    pub fn by_name(&self, name: &NodeName) -> Option<&Member> {
        self.members.values().find(|member| member.name == *name)
    }
    /// The switchover that somebody asked for and that has not begun yet.
    pub fn planned_switchover(&self) -> Option<&PlannedSwitchover> {
        self.switchovers.iter().find(|plan| plan.is_open())
    }
    /// The pause, unless its time is over.
    pub fn paused_now(&self, wall: WallTime) -> Option<&Pause> {
        self.paused.as_ref().filter(|pause| pause.until.is_none_or(|until| wall < until))
    }
    /// The attempt with this id, in progress or ended.
    pub fn failover_named(&self, id: &str) -> Option<&Failover> {
        self.failovers.iter().chain(&self.failover).find(|failover| failover.id == id)
    }
    /// The member that the rule names as primary.
    pub fn primary(&self) -> Option<&Member> {
        self.members.get(&self.rule.primary)
    }
    /// The cluster that this one follows now: as a whole it takes no writes. While it is being promoted it follows
    /// nobody, and if that is taken back it follows again.
    pub fn following(&self) -> Option<&Follow> {
        self.follow.as_ref().filter(|follow| follow.promoted.is_none() && self.failover.is_none())
    }
    /// The role of a member, as the rule has it. In a standby cluster nobody is the primary.
    pub fn role_of(&self, id: NodeId) -> Option<Role> {
        let member = self.members.get(&id)?;
        Some(if member.witness {
            Role::Witness
        } else if self.rule.primary == id && self.following().is_none() {
            Role::Primary
        } else {
            Role::Replica
        })
    }
    /// The node that `id` streams from: its chosen upstream while that is a member, else the primary.
    pub fn upstream_of(&self, id: NodeId) -> Option<&Member> {
        let member = self.members.get(&id)?;
        if member.witness || self.rule.primary == id {
            return None;
        }
        member.upstream.and_then(|upstream| self.members.get(&upstream)).or_else(|| self.primary())
    }
}

/// Secrets of the cluster, in a document of their own that no API shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// Certificates of the CAs now trusted, PEM, the signing one first. More than one during a rotation.
    pub ca_certificates: Vec<String>,
    /// Private key of the signing CA, PEM.
    pub ca_key: String,
    /// Password of the role `stemma`, the superuser of the keepers.
    pub superuser_password: String,
    /// Password of the role `stemma_replication`, used where the server has no TLS.
    pub replication_password: String,
    /// Password of the role `postgres`, given to the owner of the cluster.
    pub postgres_password: String,
    /// Unguessable part of every `application_name`, so that a stranger cannot acknowledge commits by taking a name.
    pub name_salt: String,
    /// In a standby cluster: how it logs in where it follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<UpstreamSecrets>,
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secrets(..)")
    }
}
