//! Where the servers are and what each is for now, in the shape that programs follow: routers, address updates, hooks.
//! Its JSON form is a stable schema: fields are added, never renamed or removed.

use crate::failover::FailoverPhase;
use crate::names::{NodeId, NodeName, Site};
use crate::observe::ServerSockets;
use crate::state::{ClusterState, LineageEntry, Member, ReplicaKind, Role};
use crate::status::{ClusterStatus, LinkStatus, NodeStatus};
use crate::units::{Epoch, Lsn, Timeline, WallTime};
use serde::{Deserialize, Serialize};

/// Who takes writes. All but the epoch is absent while nobody does: before the first database is made, and from the
/// moment a change of primary is recorded until the new rule is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PrimaryNow {
    /// Number of the primacy; an older one never comes back.
    #[schema(value_type = u64)]
    pub epoch: Epoch,
    /// Its name.
    #[schema(value_type = Option<String>)]
    pub name: Option<NodeName>,
    /// Host of its database.
    pub host: Option<String>,
    /// Port of its database.
    pub port: Option<u16>,
    /// `host:port` of its API.
    pub api: Option<String>,
    /// Where it is.
    #[schema(value_type = Option<String>)]
    pub site: Option<Site>,
}

impl PrimaryNow {
    /// As consensus has it. Whether its server answers is in the judged status: a primary that crashed a moment ago and
    /// is about to be restarted in place is still the primary.
    pub fn of(state: &ClusterState) -> PrimaryNow {
        let epoch = state.rule.epoch;
        let settled = state.failover.is_none() && state.identity.system_id.is_some();
        let Some(member) = state.primary().filter(|_| settled) else { return PrimaryNow { epoch, ..Self::default() } };
        PrimaryNow {
            epoch,
            name: Some(member.name.clone()),
            host: Some(member.postgres_host.clone()),
            port: Some(member.postgres_port),
            api: Some(member.api_address.clone()),
            site: Some(member.site.clone()),
        }
    }
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TopologyNode {
    /// Its name.
    #[schema(value_type = String)]
    pub name: NodeName,
    /// What it is, by the rule in force.
    #[schema(value_type = String)]
    pub role: Role,
    /// How a replica is used: `hot` serves reads, `standby` and `delayed` do not.
    #[schema(value_type = String)]
    pub kind: ReplicaKind,
    /// Where it is.
    #[schema(value_type = String)]
    pub site: Site,
    /// Host of its database; empty for a witness.
    pub host: String,
    /// Port of its database; 0 for a witness.
    pub port: u16,
    /// `host:port` of its API.
    pub api: String,
    /// Whether all about it is as it should be.
    pub healthy: bool,
    /// Whether a failover would ask it, or a node that feeds it, what it holds; or the cluster promises nothing of the
    /// kind. Reads on others can show what is lost with the primary.
    #[serde(default = "crate::observe::shown")]
    pub counted: bool,
    /// Whether a replica is fed now.
    pub streaming: bool,
    /// The server's state in one word.
    pub server: String,
    /// Log of the primary that it has not applied, in bytes; absent where unknown, never 0 for unknown.
    pub lag_bytes: Option<u64>,
    /// How old its data is, in milliseconds; absent where unknown.
    pub lag_ms: Option<u64>,
    /// What it has applied; absent while reads there do not see all of that.
    #[schema(value_type = Option<String>)]
    pub replayed: Option<Lsn>,
    /// Its number.
    #[serde(default = "unnumbered")]
    #[schema(value_type = u64)]
    pub id: NodeId,
    /// The timeline it is on.
    #[serde(default)]
    #[schema(value_type = Option<u32>)]
    pub timeline: Option<Timeline>,
    /// How old the positions are, in milliseconds.
    #[serde(default)]
    pub sample_age_ms: Option<u64>,
    /// When its server started, in milliseconds of its own civil time: changes when it restarts.
    #[serde(default)]
    #[schema(value_type = Option<i64>)]
    pub started_at: Option<WallTime>,
    /// Where its server's sockets are, for programs of its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<ServerSockets>,
}

/// What earlier versions did not tell.
fn unnumbered() -> NodeId {
    NodeId(0)
}

/// A planned change of primary has begun, and the old primary still serves: nothing new is to be sent to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SwitchingNow {
    /// The epoch that is to come.
    #[schema(value_type = u64)]
    pub epoch: Epoch,
    /// `host:port` of those who may take over, most likely first.
    pub to: Vec<String>,
}

impl SwitchingNow {
    fn of(state: &ClusterState) -> Option<SwitchingNow> {
        let failover = state.failover.as_ref().filter(|it| it.phase == FailoverPhase::Drain)?;
        let asked = failover.asked_for();
        let fits = |member: &&Member| {
            state.rule.voters.contains(&member.id)
                && member.priority > 0
                && asked.is_none_or(|asked| asked == member.id)
        };
        let mut members: Vec<&Member> = state.members.values().filter(fits).collect();
        members.sort_by_key(|member| std::cmp::Reverse(member.priority));
        Some(SwitchingNow { epoch: failover.epoch, to: members.into_iter().map(Member::postgres_address).collect() })
    }
}

/// What a replica holds is found by a failover if it is a voter of the rule, or has it from one: a server passes on what it
/// has flushed itself.
fn is_counted(state: &ClusterState, node: NodeId) -> bool {
    if state.rule.acks == 0 || state.rule.primary == node {
        return true;
    }
    let mut at = Some(node);
    // A chain is no longer than there are members.
    for _ in 0..state.members.len() {
        let Some(here) = at else { return false };
        if state.rule.voters.contains(&here) {
            return true;
        }
        at = state.upstream_of(here).map(|upstream| upstream.id).filter(|upstream| *upstream != state.rule.primary);
    }
    false
}

impl TopologyNode {
    fn of(state: &ClusterState, member: &Member, role: Role, seen: Option<&NodeStatus>) -> TopologyNode {
        let lag = seen.and_then(|seen| seen.lag.as_ref());
        TopologyNode {
            name: member.name.clone(),
            role,
            kind: member.kind,
            site: member.site.clone(),
            host: if member.witness { String::new() } else { member.postgres_host.clone() },
            port: member.postgres_port,
            api: member.api_address.clone(),
            healthy: seen.is_some_and(|seen| seen.healthy),
            counted: is_counted(state, member.id),
            streaming: seen.is_some_and(|seen| seen.link_up && seen.link == Some(LinkStatus::Streaming)),
            server: seen.map_or_else(|| "unknown".to_owned(), |seen| seen.server.clone()),
            lag_bytes: lag.and_then(|lag| lag.apply_bytes),
            lag_ms: lag.and_then(|lag| lag.seconds).map(|seconds| (seconds.max(0.0) * 1_000.0).round() as u64),
            replayed: seen.filter(|seen| seen.shows_replayed).and_then(|seen| seen.replayed),
            id: member.id,
            timeline: seen.and_then(|seen| seen.timeline),
            sample_age_ms: seen.and_then(|seen| seen.sample_age_ms),
            started_at: seen.and_then(|seen| seen.started_at),
            sockets: seen.and_then(|seen| seen.sockets.clone()),
        }
    }

    /// The same without what changes all the time: whether two views differ in more than lag.
    fn shape(&self) -> TopologyNode {
        // A replica that becomes readable is news, how far it is is not.
        let replayed = self.replayed.map(|_| Lsn(0));
        TopologyNode { lag_bytes: None, lag_ms: None, replayed, sample_age_ms: None, ..self.clone() }
    }
}

/// All servers at one moment, as one node sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Topology {
    /// Name of the cluster.
    pub cluster: String,
    /// Whose view it is.
    #[schema(value_type = String)]
    pub observer: NodeName,
    /// Who takes writes.
    pub primary: PrimaryNow,
    /// Whether that server was seen to accept writes.
    pub primary_up: bool,
    /// All nodes, by name.
    pub nodes: Vec<TopologyNode>,
    /// A planned change of primary that has begun, while the old primary still serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switching: Option<SwitchingNow>,
    /// Where primacies began, oldest first: what came of a commit whose answer was lost is looked up with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub lineage: Vec<LineageEntry>,
}

impl Topology {
    /// Roles and addresses are those of consensus; how each node does is as judged, which may be a moment older.
    pub fn of(state: &ClusterState, status: &ClusterStatus) -> Topology {
        let node = |member: &Member| {
            let role = state.role_of(member.id).unwrap_or(Role::Replica);
            TopologyNode::of(state, member, role, status.nodes.iter().find(|seen| seen.id == member.id))
        };
        let mut nodes: Vec<TopologyNode> = state.members.values().map(node).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Topology {
            cluster: state.identity.name.to_string(),
            observer: status.observer.clone(),
            primary: PrimaryNow::of(state),
            primary_up: status.primary_up && status.epoch == state.rule.epoch && state.failover.is_none(),
            nodes,
            switching: SwitchingNow::of(state),
            lineage: state.lineage.clone(),
        }
    }

    /// Whether the difference is more than lag.
    pub fn differs_in_shape(&self, other: &Topology) -> bool {
        let shapes = |topology: &Topology| topology.nodes.iter().map(TopologyNode::shape).collect::<Vec<_>>();
        self.primary != other.primary
            || self.primary_up != other.primary_up
            || self.switching != other.switching
            || shapes(self) != shapes(other)
    }
}
