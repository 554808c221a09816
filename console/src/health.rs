//! Health checks with Patroni's meaning: which path asks what, and whether this node may answer yes.
//!
//! Pure: a judged status, the node's own sample and its age in; yes, or the reasons for no, out.

use crate::request::Query;
use model::limits::SAMPLE_STALE_AFTER;
use model::settings::Size;
use model::status::{Lag, LinkStatus, NodeStatus};
use model::{ClusterStatus, Millis, NodeName, NodeSample, ReplicaKind, Role, ServerState};
use std::collections::BTreeMap;

/// Life of the leader lock in Patroni's defaults; `/liveness` tolerates a keeper loop this slow on the primary, and
/// twice that elsewhere.
pub const LIVENESS_TTL: Millis = Millis::from_secs(30);
/// Largest lag with which `/readiness` says yes unless asked otherwise; Patroni's `maximum_lag_on_failover`.
pub const READINESS_LAG_BYTES_MAX: u64 = 1 << 20;

/// The paths served by name. Others that contain one of Patroni's words are understood as well, see `Check::of_path`.
pub const PATHS: &[(&str, &str)] = &[
    ("/", "200 if this node is the primary and takes writes"),
    ("/primary", "200 if this node is the primary and takes writes"),
    ("/read-write", "200 if this node is the primary and takes writes"),
    ("/master", "200 if this node is the primary and takes writes"),
    ("/leader", "200 if the rule names this node as primary"),
    ("/standby-leader", "200 on the leader of a standby cluster; there are none, so 503"),
    ("/standby_leader", "200 on the leader of a standby cluster; there are none, so 503"),
    ("/replica", "200 on a running replica that serves reads; lag=, replication_state=, tag_*= narrow it"),
    ("/read-only", "200 on the primary and wherever /replica says yes"),
    ("/sync", "200 on a replica without whose acknowledgement no commit succeeds"),
    ("/synchronous", "200 on a replica without whose acknowledgement no commit succeeds"),
    ("/quorum", "200 on a replica that is one of several whose acknowledgement may count"),
    ("/async", "200 on a replica that commits do not wait for"),
    ("/asynchronous", "200 on a replica that commits do not wait for"),
    ("/read-only-sync", "200 on the primary and wherever /sync says yes"),
    ("/read-only-synchronous", "200 on the primary and wherever /sync says yes"),
    ("/read-only-quorum", "200 on the primary and wherever /quorum says yes"),
    ("/health", "200 if the database is up and accepts connections"),
    ("/readiness", "200 on the primary and on a replica that streams within lag= (mode=apply|write)"),
];

/// What a health path asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The primary that takes writes.
    Primary,
    /// Holder of the lock.
    Leader,
    /// Leader of a standby cluster.
    StandbyLeader,
    /// A replica that serves reads.
    Replica,
    /// Either.
    ReadOnly,
    /// A replica that every commit waits for.
    Sync,
    /// One of several that commits wait for.
    Quorum,
    /// A replica that commits do not wait for.
    Async,
    /// Primary or `Sync`.
    ReadOnlySync,
    /// Primary or `Quorum`.
    ReadOnlyQuorum,
    /// Up.
    Health,
    /// Fit for traffic.
    Readiness,
}

impl Check {
    /// What a path asks, by Patroni's rules: the exact words first, then substrings in Patroni's order.
    pub fn of_path(path: &str) -> Option<Check> {
        match path {
            "/" => return Some(Check::Primary),
            "/sync" | "/synchronous" => return Some(Check::Sync),
            "/quorum" => return Some(Check::Quorum),
            "/async" | "/asynchronous" => return Some(Check::Async),
            "/read-only-sync" | "/read-only-synchronous" => return Some(Check::ReadOnlySync),
            "/read-only-quorum" => return Some(Check::ReadOnlyQuorum),
            "/readiness" => return Some(Check::Readiness),
            _ => {}
        }
        let has = |word: &str| path.contains(word);
        if has("standby_leader") || has("standby-leader") {
            Some(Check::StandbyLeader)
        } else if has("leader") {
            Some(Check::Leader)
        } else if has("master") || has("primary") || has("read-write") {
            Some(Check::Primary)
        } else if has("replica") {
            Some(Check::Replica)
        } else if has("read-only") && !has("sync") && !has("quorum") {
            Some(Check::ReadOnly)
        } else if has("health") {
            Some(Check::Health)
        } else {
            None
        }
    }

    /// Whether `tag_*` is looked at. Patroni ignores tags where the question is who leads.
    fn heeds_tags(self) -> bool {
        match self {
            Check::Primary | Check::Leader | Check::StandbyLeader | Check::Health | Check::Readiness => false,
            Check::Replica
            | Check::ReadOnly
            | Check::Sync
            | Check::Quorum
            | Check::Async
            | Check::ReadOnlySync
            | Check::ReadOnlyQuorum => true,
        }
    }
}

/// How a replica takes part in commits, in Patroni's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPart {
    /// Every commit waits for it.
    Sync,
    /// Commits wait for some of several, it among them.
    Quorum,
    /// Commits do not wait for it.
    None,
}

/// `NodeStatus::sync` says that a replica acknowledges commits now. Only when all of those must acknowledge does each
/// of them hold every commit, which is what a client of `/sync` relies on.
pub fn sync_part(status: &ClusterStatus, node: &NodeStatus) -> SyncPart {
    let acknowledging = status.nodes.iter().filter(|node| node.sync == "sync").count();
    if node.sync != "sync" || status.durability.acks == 0 {
        SyncPart::None
    } else if status.durability.acks as usize >= acknowledging {
        SyncPart::Sync
    } else {
        SyncPart::Quorum
    }
}

/// Patroni's tags of a node. As there, a special tag is present only where it is set.
pub fn tags(node: &NodeStatus) -> BTreeMap<&'static str, serde_json::Value> {
    let mut tags = BTreeMap::new();
    tags.insert("site", node.site.as_str().into());
    tags.insert("failover_priority", node.priority.into());
    if node.role != Role::Primary {
        tags.insert("kind", node.kind.as_str().into());
    }
    if node.kind != ReplicaKind::Hot {
        tags.insert("noloadbalance", true.into());
    }
    if node.priority == 0 || node.kind == ReplicaKind::Delayed {
        tags.insert("nofailover", true.into());
    }
    if node.kind == ReplicaKind::Delayed {
        tags.insert("nosync", true.into());
    }
    if let Some(upstream) = node.upstream.as_ref().filter(|_| node.cascading) {
        tags.insert("replicatefrom", upstream.as_str().into());
    }
    tags
}

/// Facts for one answer.
pub struct View<'a> {
    /// The judged status.
    pub status: &'a ClusterStatus,
    /// This node's own sample.
    pub sample: Option<&'a NodeSample>,
    /// The node that is asked.
    pub node: &'a NodeName,
    /// Age of the two.
    pub age: Millis,
}

/// Reasons for no; never empty.
type Reasons = Vec<String>;

impl<'a> View<'a> {
    /// This node as judged.
    pub fn me(&self) -> Option<&'a NodeStatus> {
        self.status.node(self.node.as_str())
    }

    /// Whether the keeper's loop lives, for `/liveness`.
    pub fn is_live(&self) -> bool {
        let leads = self.status.primary.as_ref() == Some(self.node);
        self.age.0 <= LIVENESS_TTL.0 * if leads { 1 } else { 2 }
    }

    /// Whether the server is up, by the node's own sample.
    pub fn running(&self) -> Result<(), String> {
        let sample = self.sample.ok_or("this node has not looked at its server yet")?;
        match &sample.server {
            ServerState::Running if sample.facts.is_some() => Ok(()),
            ServerState::None => Err("this node is a witness and has no database".to_owned()),
            ServerState::Failed { reason } => Err(format!("the database server failed: {reason}")),
            ServerState::Unresponsive { for_ms } => {
                Err(format!("the database server has not answered for {for_ms} ms"))
            }
            other @ (ServerState::Running
            | ServerState::Empty
            | ServerState::Initialising
            | ServerState::Cloning(_)
            | ServerState::Stopped
            | ServerState::Starting) => Err(format!("the database server is {}", other.word())),
        }
    }

    /// Answers a check. A view that nobody renews proves nothing, so it can only say no.
    pub fn answer(&self, check: Check, query: &Query) -> Result<(), Reasons> {
        if self.age > SAMPLE_STALE_AFTER {
            return Err(vec![format!("the keeper's view of this node is {} ms old", self.age.0)]);
        }
        let Some(me) = self.me() else {
            return Err(vec![format!("node {} is not part of the judged cluster yet", self.node)]);
        };
        let mut reasons = self.reasons(me, check, query);
        if check.heeds_tags() {
            reasons.extend(tag_mismatches(me, query));
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    fn reasons(&self, me: &NodeStatus, check: Check, query: &Query) -> Reasons {
        let primary_or = |otherwise: Check| {
            if self.not_primary(me).is_empty() { Vec::new() } else { self.reasons(me, otherwise, query) }
        };
        let replica_and = |fits: bool, is_not: &str| {
            let mut reasons = self.not_replica(me, query);
            if !fits {
                reasons.push(format!("node {} {is_not}", me.name));
            }
            reasons
        };
        let part = sync_part(self.status, me);
        match check {
            Check::Primary => self.not_primary(me),
            Check::Leader => self.not_leader(me),
            Check::StandbyLeader => vec!["this is not a standby cluster".to_owned()],
            Check::Replica => self.not_replica(me, query),
            Check::ReadOnly => primary_or(Check::Replica),
            Check::Sync => replica_and(part == SyncPart::Sync, "is not one that every commit waits for"),
            Check::Quorum => replica_and(part == SyncPart::Quorum, "is not one of several that commits wait for"),
            Check::Async => replica_and(part == SyncPart::None, "acknowledges commits"),
            Check::ReadOnlySync => primary_or(Check::Sync),
            Check::ReadOnlyQuorum => primary_or(Check::Quorum),
            Check::Health => self.running().err().into_iter().collect(),
            Check::Readiness => {
                if self.not_primary(me).is_empty() {
                    Vec::new()
                } else {
                    self.not_ready(me, query)
                }
            }
        }
    }

    fn not_leader(&self, me: &NodeStatus) -> Reasons {
        match &self.status.primary {
            Some(primary) if *primary == me.name => Vec::new(),
            Some(primary) => vec![format!("the primary is {primary}")],
            None => vec!["the cluster has no primary".to_owned()],
        }
    }

    fn not_primary(&self, me: &NodeStatus) -> Reasons {
        let mut reasons = self.not_leader(me);
        if !reasons.is_empty() {
            return reasons;
        }
        reasons.extend(self.running().err());
        if self.sample.and_then(|sample| sample.facts.as_ref()).is_some_and(|facts| facts.in_recovery) {
            reasons.push("the server is still in recovery".to_owned());
        }
        if reasons.is_empty() && !self.status.primary_up {
            reasons.push("the server was not seen to accept writes".to_owned());
        }
        reasons
    }

    /// Whether it is a running replica, whatever it is used for.
    fn not_running_replica(&self, me: &NodeStatus) -> Reasons {
        let mut reasons: Reasons = self.running().err().into_iter().collect();
        match me.role {
            Role::Replica => {}
            Role::Primary => reasons.push(format!("node {} is the primary", me.name)),
            Role::Witness => return vec!["this node is a witness and has no database".to_owned()],
        }
        if self.sample.and_then(|sample| sample.facts.as_ref()).is_some_and(|facts| !facts.in_recovery) {
            reasons.push("the server is not in recovery, so it is no replica".to_owned());
        }
        reasons
    }

    fn not_replica(&self, me: &NodeStatus, query: &Query) -> Reasons {
        let mut reasons = self.not_running_replica(me);
        if me.role == Role::Replica && me.kind != ReplicaKind::Hot {
            reasons.push(format!("node {} is {}, which serves no reads", me.name, me.kind.as_str()));
        }
        if let Some(wanted) = query.get("replication_state") {
            let state = replication_state(me);
            if state != wanted {
                reasons.push(format!("the replication state is {state}, not {}", shorten(wanted)));
            }
        }
        if let Some(bound) = query.get("lag") {
            reasons.extend(lag_reason(me, bound, LagOf::Apply));
        }
        reasons
    }

    fn not_ready(&self, me: &NodeStatus, query: &Query) -> Reasons {
        let mut reasons = self.not_running_replica(me);
        if !reasons.is_empty() {
            return reasons;
        }
        if me.link != Some(LinkStatus::Streaming) {
            reasons.push(format!("the replica is {}", me.link.map_or("not connected", LinkStatus::as_str)));
        }
        let of = match query.get("mode") {
            None | Some("apply") => LagOf::Apply,
            Some("write") => LagOf::Receive,
            Some(other) => return vec![format!("mode={} is neither apply nor write", shorten(other))],
        };
        let bound = query.get("lag").map_or_else(|| READINESS_LAG_BYTES_MAX.to_string(), str::to_owned);
        reasons.extend(lag_reason(me, &bound, of));
        let frozen =
            |problem: &&model::status::Problem| problem.code == "ST3012" && problem.node.as_ref() == Some(&me.name);
        if let Some(problem) = self.status.problems.iter().find(frozen) {
            reasons.push(problem.what.clone());
        }
        reasons
    }
}

/// Patroni's word for how a replica gets its log.
pub fn replication_state(node: &NodeStatus) -> &'static str {
    match node.link {
        Some(LinkStatus::Streaming) => "streaming",
        Some(LinkStatus::CatchingUp) => "catching up",
        Some(LinkStatus::Disconnected) => "disconnected",
        None => "none",
    }
}

/// A bound on lag: bytes as Patroni has it, or time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LagBound {
    /// `1048576`, `16kB`, `64MB`, `1GB`.
    Bytes(u64),
    /// `2s`, `500ms`, `1min`.
    Time(Millis),
}

impl LagBound {
    /// Reads a bound; `None` if it is none.
    pub fn parse(text: &str) -> Option<LagBound> {
        if let Ok(size) = text.parse::<Size>() {
            return Some(LagBound::Bytes(size.0));
        }
        text.parse::<model::settings::Span>().ok().map(|span| LagBound::Time(span.0))
    }
}

#[derive(Clone, Copy)]
enum LagOf {
    Apply,
    Receive,
}

/// Why the lag is not within the bound. Unknown lag is within none.
fn lag_reason(me: &NodeStatus, bound: &str, of: LagOf) -> Option<String> {
    let Some(limit) = LagBound::parse(bound) else {
        return Some(format!("lag={} is not an amount such as 1048576, 16MB or 2s", shorten(bound)));
    };
    let lag = me.lag.as_ref();
    match limit {
        LagBound::Bytes(max) => {
            let bytes = lag.and_then(|lag| match of {
                LagOf::Apply => lag.apply_bytes,
                LagOf::Receive => lag.receive_bytes,
            });
            match bytes {
                Some(bytes) if bytes <= max => None,
                Some(bytes) => Some(format!("the lag is {bytes} bytes, more than {max}")),
                None => Some("the lag in bytes is unknown".to_owned()),
            }
        }
        LagBound::Time(_) if lag.is_some_and(|lag| lag.method == Lag::LOWER_BOUND) => {
            Some("the lag in seconds is known only to be larger than since this keeper began to look".to_owned())
        }
        LagBound::Time(max) => match lag.and_then(|lag| lag.seconds) {
            Some(seconds) if seconds <= max.seconds() => None,
            Some(seconds) => Some(format!("the lag is {seconds:.3} s, more than {} s", max.seconds())),
            None => Some("the lag in seconds is unknown".to_owned()),
        },
    }
}

fn tag_mismatches(me: &NodeStatus, query: &Query) -> Reasons {
    let tags = tags(me);
    let mut reasons = Vec::new();
    for (name, wanted) in &query.0 {
        let Some(name) = name.strip_prefix("tag_") else { continue };
        // Patroni compares text with text, and writes booleans in lower case, as JSON does.
        let value = tags.get(name).map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        match value {
            Some(value) if value == *wanted => {}
            Some(value) => reasons.push(format!("tag {} is {value}, not {}", shorten(name), shorten(wanted))),
            None => reasons.push(format!("there is no tag {}", shorten(name))),
        }
    }
    reasons
}

/// Echoes only so much of what a stranger sent.
fn shorten(text: &str) -> String {
    text.chars().take(60).collect()
}
