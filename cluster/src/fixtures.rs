//! Small clusters for tests.

use model::settings::CommitMode;
use model::state::Stage;
use model::{ClusterState, Member, NodeId, NodeName, ReplicaKind, WallTime};

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
