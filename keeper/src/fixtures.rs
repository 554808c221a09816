//! A small cluster for tests.

use model::state::Stage;
use model::{ClusterId, ClusterState, Member, NodeId, Settings, WallTime};

/// `n1` with the key `old`.
pub(crate) fn member() -> Member {
    Member {
        id: NodeId(1),
        name: "n1".parse().expect("a valid name"),
        witness: false,
        kind: model::ReplicaKind::Hot,
        apply_delay_ms: 0,
        upstream: None,
        site: "east".parse().expect("a valid site"),
        priority: 100,
        peer_address: "h1:7432".to_owned(),
        api_address: "h1:8008".to_owned(),
        postgres_host: "h1".to_owned(),
        postgres_port: 5432,
        key_fingerprint: "old".to_owned(),
        next_key_fingerprint: None,
        certificate_order: 0,
        stage: Stage::Active,
        joined_at: WallTime(0),
    }
}

/// A cluster of that node alone.
pub(crate) fn state() -> ClusterState {
    let name = "shop".parse().expect("a valid name");
    cluster::admission::new_cluster(name, ClusterId("c".to_owned()), member(), Settings::default(), WallTime(0))
}
