//! The shapes of the documents, compared whole.

use crate::backend::Fake;
use std::sync::Arc;

async fn json(fake: Fake, path: &str) -> serde_json::Value {
    let answer = Arc::new(fake).get(path).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[tokio::test]
async fn replication_status_of_each_state() {
    insta::assert_json_snapshot!("replication_healthy", json(Fake::healthy("n1"), "/admin/replication/status").await);
    insta::assert_json_snapshot!("replication_degraded", json(Fake::degraded("n1"), "/admin/replication/status").await);
    insta::assert_json_snapshot!("replication_forming", json(Fake::forming("n1"), "/admin/replication/status").await);
    let down = json(Fake::down("n2"), "/admin/replication/status").await;
    assert!(down["primary"].is_null(), "none is up: {down}");
    assert!(down["replicas"][0]["lag_bytes"].is_null(), "unknown lag is null, never 0: {down}");
    assert_eq!(down["replicas"][0]["status"], "disconnected");
}

#[tokio::test]
async fn patroni_documents() {
    insta::assert_json_snapshot!("patroni_primary", json(Fake::healthy("n1"), "/patroni").await);
    insta::assert_json_snapshot!("patroni_replica", json(Fake::healthy("n2"), "/patroni").await);
    insta::assert_json_snapshot!("patroni_down", json(Fake::down("n1"), "/patroni").await);
    insta::assert_json_snapshot!("cluster_healthy", json(Fake::healthy("n1"), "/cluster").await);
    insta::assert_json_snapshot!("cluster_forming", json(Fake::forming("n1"), "/cluster").await);
    insta::assert_json_snapshot!("history", json(Fake::healthy("n1"), "/history").await);
    insta::assert_json_snapshot!("config", json(Fake::healthy("n1"), "/config").await);
}

#[tokio::test]
async fn native_documents() {
    for path in ["/v1", "/v1/nodes/n2", "/v1/settings", "/v1/settings/history", "/v1/operations", "/v1/tokens"] {
        let label = path.trim_start_matches('/').replace('/', "_");
        insta::assert_json_snapshot!(label, json(Fake::healthy("n1"), path).await);
    }
    let status = json(Fake::healthy("n1"), "/v1/status").await;
    let same: model::ClusterStatus = serde_json::from_value(status).expect("reads back");
    assert_eq!(same, Fake::healthy("n1").status, "the status is the judged one, unchanged");
    let late = json(Fake::healthy("n1"), "/v1/history?since=2").await;
    assert_eq!(late["events"].as_array().map(Vec::len), Some(1));
    assert_eq!(json(Fake::healthy("n1"), "/v1/errors/ST2107").await["title"], "cluster settings refused");
}

#[tokio::test]
async fn every_answer_names_its_viewpoint_and_age() {
    let fake = Arc::new(Fake::healthy("n2"));
    for path in ["/v1/status", "/v1/nodes/nobody", "/v1/nothing", "/metrics", "/primary"] {
        let answer = fake.get(path).await;
        assert_eq!(
            (answer.header("x-stemma-node"), answer.header("x-stemma-observed-age-ms")),
            ("n2", "120"),
            "{path}"
        );
    }
    assert_eq!(fake.get("/v1/settings").await.header("etag"), "\"4\"");
}

#[tokio::test]
async fn before_the_first_state_reads_say_so() {
    let mut fake = Fake::healthy("n1");
    fake.state = None;
    let fake = Arc::new(fake);
    for path in ["/v1/settings", "/v1/settings/history", "/v1/operations", "/v1/history", "/v1/tokens", "/config"] {
        fake.get(path).await.is_problem(503, "ST2114");
    }
    assert_eq!(fake.get("/v1/status").await.status, 200);
    assert_eq!(fake.get("/history").await.json(), serde_json::json!([]));
}

#[tokio::test]
async fn no_answer_shows_a_secret() {
    let answer = Arc::new(Fake::healthy("n1")).get("/v1/tokens").await;
    assert!(!answer.text().contains("5ec2e7"), "the hash of a token stays in the store");
}
