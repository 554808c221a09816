//! The status of a node that has not heard of the cluster's state yet: nothing is known, and that is what it says.

use model::observe::ConsensusView;
use model::settings::CommitMode;
use model::status::{Durability, Problem, SCHEMA_VERSION, Severity, Verdict};
use model::{ClusterStatus, Epoch, NodeName, WallTime};

/// See the module.
pub fn unknown(observer: NodeName, wall: WallTime, consensus: ConsensusView) -> ClusterStatus {
    let sentence = "this node has not heard of the cluster's state yet".to_owned();
    ClusterStatus {
        schema_version: SCHEMA_VERSION,
        cluster: String::new(),
        cluster_id: String::new(),
        verdict: Verdict::Down,
        sentence: sentence.clone(),
        problems: vec![Problem {
            code: "ST2105".into(),
            severity: Severity::Critical,
            node: Some(observer.clone()),
            what: sentence.clone(),
            cause: "no majority of keepers answers it".into(),
            next: "start the other keepers, or mend the network between them".into(),
            for_ms: 0,
        }],
        observer,
        observed_at: wall,
        epoch: Epoch(0),
        primary: None,
        primary_up: false,
        engine: "PostgreSQL".into(),
        system_id: None,
        durability: Durability {
            mode: CommitMode::default(),
            acks: 0,
            acks_wanted: 0,
            voters: Vec::new(),
            strict: false,
            in_force: false,
            failures_tolerated: -1,
            loss_now_bytes: None,
            loss_now_seconds: None,
            sentence,
        },
        nodes: Vec::new(),
        consensus,
        settings_version: 0,
        operation: None,
        paused: None,
        planned_switchover: None,
        follow: None,
        followers: Vec::new(),
        failover: None,
    }
}
