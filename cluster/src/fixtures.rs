//! Small clusters for tests.

use model::settings::CommitMode;
use model::state::{Role, Stage};
use model::status::{Durability, NodeStatus, SCHEMA_VERSION, Verdict};
use model::{ClusterState, ClusterStatus, Member, NodeId, NodeName, ReplicaKind, WallTime};
use std::collections::BTreeMap;

/// The time at which test clusters were made.
pub const NOW: WallTime = WallTime(1_000_000_000_000);

/// A node name.
pub fn name(text: &str) -> NodeName {
    text.parse().expect("a valid name")
}

/// An active hot replica at site `east`.
pub fn member(id: u64, text: &str) -> Member {
    Member {
        id: NodeId(id),
        name: name(text),
        witness: false,
        kind: ReplicaKind::Hot,
        apply_delay_ms: 0,
        upstream: None,
        site: "east".parse().expect("a valid site"),
        priority: 100,
        peer_address: format!("h{id}:7432"),
        api_address: format!("h{id}:8008"),
        postgres_host: format!("h{id}"),
        postgres_port: 5432,
        key_fingerprint: format!("key{id}"),
        next_key_fingerprint: None,
        certificate_order: 0,
        stage: Stage::Active,
        joined_at: NOW,
    }
}

/// `n1` the primary, `n2` and `n3` voters under semi-sync.
pub fn three() -> ClusterState {
    let mut state = crate::admission::new_cluster(
        "test".parse().expect("a valid name"),
        model::ClusterId("c".to_owned()),
        member(1, "n1"),
        model::Settings::default(),
        NOW,
    );
    state.identity.major = Some(15);
    for id in [2, 3] {
        state.members.insert(NodeId(id), member(id, &format!("n{id}")));
    }
    state.next_node_id = 4;
    state.rule.voters = [NodeId(2), NodeId(3)].into();
    state.rule.acks = 1;
    state.rule.recruit_quorum = 2;
    state.rule.mode = CommitMode::SemiSync;
    state
}

fn node_status(state: &ClusterState, member: &Member, keeper_up: bool) -> NodeStatus {
    NodeStatus {
        id: member.id,
        name: member.name.clone(),
        role: state.role_of(member.id).unwrap_or(Role::Replica),
        kind: member.kind,
        cascading: false,
        site: member.site.clone(),
        keeper_up,
        heard_ms_ago: None,
        sample_age_ms: None,
        server: "running".to_owned(),
        stage: "active".to_owned(),
        healthy: keeper_up,
        sync: "-".to_owned(),
        voter: false,
        upstream: None,
        link: None,
        link_up: keeper_up,
        lag: None,
        timeline: None,
        position: None,
        replayed: None,
        version: None,
        postgres_address: member.postgres_address(),
        api_address: member.api_address.clone(),
        peer_address: member.peer_address.clone(),
        priority: member.priority,
        shows_replayed: true,
        replay_paused: false,
        pending_restart: BTreeMap::new(),
        clone: None,
        disk_used_percent: None,
        connections: None,
        clock_offset_ms: None,
        doing: None,
        keeper_pid: None,
        program_version: None,
        settings_version: None,
        started_at: None,
        certificate_expires_at: None,
        sockets: None,
    }
}

/// A status in which all keepers answer but those named.
pub fn status(state: &ClusterState, silent: &[&str]) -> ClusterStatus {
    let up = |member: &Member| !silent.contains(&member.name.as_str());
    ClusterStatus {
        schema_version: SCHEMA_VERSION,
        cluster: "test".to_owned(),
        cluster_id: "c".to_owned(),
        verdict: Verdict::Healthy,
        sentence: String::new(),
        observer: name("n1"),
        observed_at: NOW,
        epoch: state.rule.epoch,
        primary: state.primary().map(|member| member.name.clone()),
        primary_up: state.primary().is_some_and(up),
        engine: "PostgreSQL 15".to_owned(),
        system_id: None,
        durability: Durability {
            mode: state.rule.mode,
            acks: state.rule.acks,
            acks_wanted: 1,
            voters: Vec::new(),
            strict: state.settings.strict,
            in_force: true,
            failures_tolerated: 1,
            loss_now_bytes: None,
            loss_now_seconds: None,
            sentence: String::new(),
        },
        nodes: state.members.values().map(|member| node_status(state, member, up(member))).collect(),
        problems: Vec::new(),
        consensus: model::observe::ConsensusView::default(),
        settings_version: state.settings_version,
        operation: None,
        paused: None,
        planned_switchover: None,
        follow: None,
        followers: Vec::new(),
        failover: None,
    }
}
