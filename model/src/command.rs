//! What people ask of a cluster, and what they get back. Every surface (command line, REST, UI) makes these values;
//! `cluster::decide` turns them into a new state or a refusal.

use crate::failover::Candidate;
use crate::names::{ClusterName, NodeName, Site};
use crate::settings::Settings;
use crate::state::{ReplicaKind, Role};
use crate::units::{Millis, WallTime};
use serde::{Deserialize, Serialize};

/// Who asks, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// A person, token or program.
    pub name: String,
    /// In the words of who asks; may be empty.
    #[serde(default)]
    pub reason: String,
}

/// A change that someone asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "command")]
pub enum Command {
    /// Replace the settings.
    ApplySettings {
        /// The new settings, whole.
        settings: Box<Settings>,
        /// The version they were edited from; a mismatch is a conflict.
        expect_version: Option<u64>,
    },
    /// Bring back settings of an earlier version (as a new version).
    RollbackSettings {
        /// Which.
        version: u64,
    },
    /// Make a join token.
    CreateToken {
        /// The role it admits: `replica` or `witness`.
        role: Role,
        /// How long it lives.
        ttl: Millis,
    },
    /// Make a token that lets another cluster follow this one.
    CreateFollowerToken {
        /// How long it lives.
        ttl: Millis,
    },
    /// End a cluster's following: its certificate and its slot are void.
    ForgetFollower {
        /// Name of the cluster that follows.
        name: ClusterName,
    },
    /// Make this standby cluster one that takes writes.
    PromoteCluster {
        /// The loss that is accepted, in bytes as last known; `u64::MAX` for any.
        loss_bytes_max: Option<u64>,
    },
    /// Make a token unusable.
    RevokeToken {
        /// Its public id.
        id: String,
    },
    /// Take a node out of the cluster.
    RemoveNode {
        /// Which.
        node: NodeName,
        /// Also when its keeper does not answer.
        force: bool,
    },
    /// Change what a node is.
    SetNode {
        /// Which.
        node: NodeName,
        /// What.
        patch: NodePatch,
    },
    /// Let a halted node check its history and follow again.
    RejoinNode {
        /// Which.
        node: NodeName,
    },
    /// Rebuild a replica from a fresh base backup.
    ReinitNode {
        /// Which.
        node: NodeName,
    },
    /// Restart servers one after the other, in the safe order.
    RollingRestart {
        /// Only those where a parameter waits for it.
        only_pending: bool,
        /// Only these; empty for all.
        nodes: Vec<NodeName>,
    },
    /// Have nodes make new keys and certificates.
    RotateCertificates {
        /// Which; all when absent.
        node: Option<NodeName>,
    },
    /// End a running operation before its next step.
    CancelOperation {
        /// Which.
        id: String,
    },
    /// Make another node the primary, in order and without loss.
    Switchover {
        /// The node asked for; the best one when absent.
        to: Option<NodeName>,
        /// When; now when absent.
        at: Option<WallTime>,
    },
    /// Take back a switchover that has not begun.
    CancelSwitchover,
    /// Make another node the primary without the help of the present one.
    Failover {
        /// The node asked for; the best one when absent.
        to: Option<NodeName>,
        /// The most that may be lost, in bytes of log; `u64::MAX` for whatever it takes. Refused when absent.
        loss_bytes_max: Option<u64>,
    },
    /// Stop automatic failover for a while.
    Pause {
        /// How long; it ends by itself.
        #[serde(rename = "for")]
        span: Millis,
    },
    /// Let automatic failover go on.
    Resume,
}

/// Changes to a member; absent fields stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodePatch {
    /// How it is used.
    pub kind: Option<ReplicaKind>,
    /// For `delayed`: how late.
    pub apply_delay_ms: Option<u64>,
    /// Node to stream from; `Some(None)` means the primary.
    #[serde(with = "double_option", skip_serializing_if = "Option::is_none")]
    pub upstream: Option<Option<NodeName>>,
    /// Where it is.
    pub site: Option<Site>,
    /// Failover preference.
    pub priority: Option<u32>,
}

/// Tells "not mentioned" from "set to null".
mod double_option {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    pub fn serialize<T: Serialize, S: Serializer>(value: &Option<Option<T>>, s: S) -> Result<S::Ok, S::Error> {
        value.as_ref().and_then(Option::as_ref).serialize(s)
    }
    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(d: D) -> Result<Option<Option<T>>, D::Error> {
        Option::<T>::deserialize(d).map(Some)
    }
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The sentence for people.
    pub text: String,
    /// Whether anything changed.
    pub changed: bool,
    /// Id of the operation that carries it out, if it takes longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// Id of the change of primary, if it is one: of a planned switchover or of an attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<String>,
    /// Before a change of primary: who can take over and who cannot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Candidate>,
    /// The token, shown once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Lines for people about what happens next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}
