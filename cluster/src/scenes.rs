//! A small cluster for the tests of this room: n1 is the primary, the others follow it, all is well.

use crate::naming::{application_name, slot_name};
use model::names::{ClusterId, NodeId, NodeName};
use model::observe::{ConsensusView, NodeSample, Observed, Receiver, Sender, ServerFacts, ServerState, Slot};
use model::settings::{CommitMode, Settings};
use model::state::{ClusterState, Identity, Member, ReplicaKind, Rule, STATE_FORMAT, Stage};
use model::units::{Epoch, Lsn, Millis, Moment, SystemId, Timeline, WallTime};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The salt of the application names.
pub const SALT: &str = "salt";
/// Civil time of the tests.
pub const WALL: WallTime = WallTime(1_800_000_000_000);
/// The position of everybody at rest.
pub const AT: Lsn = Lsn(0x500_0000);

/// Something that parses.
pub fn parsed<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("valid")
}

/// A data member.
pub fn member(id: u64) -> Member {
    Member {
        id: NodeId(id),
        name: parsed::<NodeName>(&format!("n{id}")),
        witness: false,
        kind: ReplicaKind::Hot,
        apply_delay_ms: 0,
        upstream: None,
        site: parsed("eu-1"),
        priority: 100,
        peer_address: format!("h{id}:7432"),
        api_address: format!("h{id}:8008"),
        postgres_host: format!("h{id}"),
        postgres_port: 5432,
        key_fingerprint: "f".into(),
        next_key_fingerprint: None,
        certificate_order: 0,
        stage: Stage::Active,
        joined_at: WallTime(WALL.0 - 86_400_000),
    }
}

/// A cluster of `data` members with the default mode (one synchronous replica).
pub fn state(data: u64) -> ClusterState {
    ClusterState {
        format: STATE_FORMAT,
        identity: Identity {
            name: parsed("prod"),
            id: ClusterId("c".into()),
            system_id: Some(SystemId(7)),
            major: Some(15),
            created_at: WALL,
        },
        next_node_id: data + 1,
        next_order: 1,
        members: (1..=data).map(|id| (NodeId(id), member(id))).collect(),
        rule: Rule {
            epoch: Epoch(1),
            primary: NodeId(1),
            voters: (2..=data).map(NodeId).collect(),
            acks: u32::from(data > 1),
            recruit_quorum: u32::try_from(data.saturating_sub(1)).expect("few"),
            mode: CommitMode::SemiSync,
            version: 1,
        },
        lineage: vec![],
        failover: None,
        failovers: vec![],
        switchovers: Vec::new(),
        paused: None,
        settings: Settings::default(),
        settings_version: 1,
        settings_history: vec![],
        follow: None,
        followers: BTreeMap::new(),
        tokens: BTreeMap::new(),
        operations: vec![],
        history: vec![],
    }
}

/// Facts of a server of member `id`, replica or primary by the rule.
pub fn facts(state: &ClusterState, id: u64) -> ServerFacts {
    let primary = state.rule.primary == NodeId(id);
    let others = || state.members.values().filter(|other| other.id != NodeId(id) && !other.witness);
    let fed = |other: &&Member| state.upstream_of(other.id).is_some_and(|upstream| upstream.id == NodeId(id));
    let names: Vec<String> = state
        .rule
        .voters
        .iter()
        .filter_map(|voter| state.members.get(voter))
        .map(|voter| format!("\"{}\"", application_name(SALT, voter)))
        .collect();
    ServerFacts {
        version_num: 150_018,
        version: "15.18".into(),
        system_id: SystemId(7),
        timeline: Timeline(1),
        in_recovery: !primary,
        written: primary.then_some(AT),
        received: (!primary).then_some(AT),
        replayed: (!primary).then_some(AT),
        shows_replayed: true,
        replayed_at: None,
        replay_paused: false,
        started_at: WallTime(WALL.0 - 3_600_000),
        receiver: state.upstream_of(NodeId(id)).map(|upstream| Receiver {
            pid: 1,
            status: "streaming".into(),
            upstream: upstream.postgres_address(),
            slot: None,
            flushed: Some(AT),
            last_message_age_ms: Some(100),
            latest_end: Some(AT),
        }),
        senders: others()
            .filter(fed)
            .map(|other| Sender {
                application_name: application_name(SALT, other),
                client_addr: None,
                pid: 2,
                state: "streaming".into(),
                sync_state: "quorum".into(),
                sent: Some(AT),
                write: Some(AT),
                flush: Some(AT),
                replay: Some(AT),
            })
            .collect(),
        slots: others()
            .map(|other| Slot {
                name: slot_name(other),
                slot_type: "physical".into(),
                active: fed(&other),
                restart: Some(AT),
                wal_status: Some("reserved".into()),
                retained_bytes: Some(0),
            })
            .collect(),
        synchronous_standby_names: if primary && state.rule.acks > 0 {
            format!("ANY {} ({})", state.rule.acks, names.join(","))
        } else {
            String::new()
        },
        has_upstream: !primary,
        pending_restart: BTreeMap::new(),
        connections: 3,
        lineage_epoch: Some(Epoch(1)),
    }
}

/// A sample of member `id`, a witness included.
pub fn sample(state: &ClusterState, id: u64) -> NodeSample {
    let witness = state.members.get(&NodeId(id)).is_some_and(|member| member.witness);
    NodeSample {
        node: NodeId(id),
        seq: 1,
        incarnation: 1,
        age_ms: 0,
        server: if witness { ServerState::None } else { ServerState::Running },
        facts: (!witness).then(|| facts(state, id)),
        epoch_seen: Epoch(1),
        state_version: 1,
        settings_version: 1,
        disk_free_bytes: Some(59),
        disk_total_bytes: Some(100),
        wall: WALL,
        doing: None,
        last_error: None,
        outside: Default::default(),
        keeper_pid: 100,
        program_version: "0.1.0".into(),
        certificate_expires_at: Some(WallTime(WALL.0 + 80 * 86_400_000)),
        sockets: None,
        peers_heard_ms: state.members.keys().filter(|peer| peer.0 != id).map(|peer| (*peer, 50)).collect(),
    }
}

/// Everybody seen just now.
pub fn observed(state: &ClusterState, now: Moment) -> BTreeMap<NodeId, Observed> {
    state.members.keys().map(|id| (*id, seen(sample(state, id.0), now))).collect()
}

/// A sample seen just now.
pub fn seen(sample: NodeSample, now: Moment) -> Observed {
    Observed { sample: Arc::new(sample), taken_at: now, heard_at: now }
}

/// A consensus group of all members.
pub fn consensus(state: &ClusterState) -> ConsensusView {
    ConsensusView {
        kind: "embedded".into(),
        up: true,
        leader: Some(NodeId(1)),
        term: 1,
        voters: state.members.keys().copied().collect(),
        learners: vec![],
        applied: 9,
        age: Millis(100),
    }
}
