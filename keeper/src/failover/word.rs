//! What a keeper says of itself in every heartbeat. Small, complete, and true when it is sent: nothing in it needs an
//! earlier one to be understood.

use cluster::failover::detect::{OwnWord, Said};
use cluster::failover::order::Serving;
use cluster::failover::recruit::Report;
use model::{Epoch, Lsn, NodeId, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Word {
    /// About the attempt in progress.
    pub report: Report,
    /// It takes writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<Serving>,
    /// Whom its server follows, and under which epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follows: Option<(NodeId, Epoch)>,
    /// The timeline at the end of its data, and the epoch in which that was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<(Timeline, Epoch)>,
    /// Where its log ends, if it takes writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Lsn>,
    /// How its server is, in the keeper's own words, if it ought to take writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<OwnWord>,
    /// What it says about the node that ought to take writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<(NodeId, Said)>,
    /// It asks for the lease of this epoch. The number is a moment of its own clock, and means nothing to others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<(Epoch, u64)>,
    /// Which process of this keeper speaks; the numbers of the lease are its own.
    #[serde(default)]
    pub run: u64,
    /// Its server was gone at this moment of its clock, and it counts no grant any more that it asked for until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_given_up: Option<u64>,
    /// Joining keepers whose grants of that lease it has, so that they may begin to count for it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub lease_from: BTreeSet<NodeId>,
    /// The newest requests that it granted: to whom, of which epoch, and the number that was in the request.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub granted: BTreeMap<NodeId, (Epoch, u64)>,
    /// The epoch for which every router that follows this node holds new transactions; absent where none follows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routers: Option<Epoch>,
    /// The version of the cluster's state that it knows. Who knows an older one asks.
    #[serde(default)]
    pub state_version: u64,
}
