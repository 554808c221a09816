//! A whole cluster that follows another one: the words for both sides.
//!
//! The *standby cluster* has keepers, consensus and a CA of its own. One of its nodes, the leader (the rule's primary),
//! streams from the primary of the cluster that is followed; its other nodes cascade from the leader. It takes no
//! writes until a person promotes it.

use crate::names::{ClusterId, ClusterName, NodeId, NodeName};
use crate::units::{Epoch, Timeline, WallTime};
use serde::{Deserialize, Serialize};

/// In the state of a standby cluster: whom it follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// Name of the cluster that is followed.
    pub cluster: ClusterName,
    /// Its id.
    pub cluster_id: ClusterId,
    /// `host:port` of its servers. The one that takes writes is looked for among them.
    pub hosts: Vec<String>,
    /// The slot that keeps log for this cluster on each of them.
    pub slot: String,
    /// The name under which the leader's receiver logs in there.
    pub application_name: String,
    /// The epoch that was in force there when it began to be followed.
    pub epoch: Epoch,
    /// Since when.
    pub since: WallTime,
    /// How it ended. From then on this is a cluster like any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promoted: Option<Promoted>,
}

/// The end of following.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promoted {
    /// When.
    pub at: WallTime,
    /// The attempt that did it; `stemma explain` tells of it.
    pub failover: String,
}

/// In the state of a cluster that is followed: who follows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follower {
    /// Its number; given like those of nodes, and never twice.
    pub id: NodeId,
    /// Name of the cluster that follows.
    pub name: ClusterName,
    /// Its id.
    pub cluster_id: ClusterId,
    /// Fingerprint of the key whose certificate may replicate.
    pub key_fingerprint: String,
    /// When it was let in.
    pub since: WallTime,
}

impl Follower {
    /// The common name of its certificate. No node's name holds a colon.
    pub fn common_name(&self) -> String {
        format!("follower:{}", self.name)
    }
}

/// What a standby cluster needs to log in where it follows; part of its secrets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamSecrets {
    /// Certificate, signed by the CA of the cluster that is followed.
    pub certificate_pem: String,
    /// Its private key.
    pub key_pem: String,
    /// CAs of the cluster that is followed.
    pub ca_pem: Vec<String>,
}

/// How following goes, as judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FollowStatus {
    /// The cluster that is followed.
    pub cluster: String,
    /// Its id.
    pub cluster_id: String,
    /// Where its servers are.
    pub hosts: Vec<String>,
    /// The node that streams from it.
    #[schema(value_type = Option<String>)]
    pub leader: Option<NodeName>,
    /// Whether the stream is alive.
    pub streaming: bool,
    /// The server it comes from, or came from last.
    pub host: Option<String>,
    /// Bytes of log that the followed cluster was ahead when it was heard last; absent where it never was.
    pub behind_bytes: Option<u64>,
    /// Seconds since it was heard last. What it acknowledged meanwhile is not here.
    pub silent_seconds: Option<f64>,
    /// The timeline that is followed.
    #[schema(value_type = Option<u32>)]
    pub timeline: Option<Timeline>,
    /// The highest epoch of the followed cluster that is in the copy.
    #[schema(value_type = Option<u64>)]
    pub epoch: Option<Epoch>,
}

/// A cluster that follows this one, as judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FollowerStatus {
    /// Its name.
    pub cluster: String,
    /// Its id.
    pub cluster_id: String,
    /// Whether it streams now.
    pub streaming: bool,
    /// Where it comes from.
    pub client: Option<String>,
    /// Bytes it has not flushed.
    pub behind_bytes: Option<u64>,
    /// The slot that keeps log for it.
    pub slot: String,
    /// Bytes of log that are kept for it.
    pub kept_bytes: Option<u64>,
}
