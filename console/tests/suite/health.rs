//! The truth table: which node answers yes to which path in which state, by every method.

use crate::backend::{Fake, name, request, sample};
use axum::http::Method;
use model::status::{LinkStatus, Problem, Severity};
use model::{Millis, ServerState};
use std::sync::Arc;

/// `1` is 200, `0` is 503; every method must say the same, and only GET may have a body.
async fn check(fake: Fake, label: &str, expected: &[(&str, u8)]) {
    let fake = Arc::new(fake);
    let mut wrong = Vec::new();
    for (path, yes) in expected {
        let wanted = if *yes == 1 { 200 } else { 503 };
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            let answer = fake.ask(request(method.clone(), path, "", &[])).await;
            if answer.status.as_u16() != wanted {
                wrong.push(format!("{label}: {method} {path} is {}: {}", answer.status, answer.text()));
            }
            if method == Method::GET {
                let document = answer.json();
                assert_eq!(document["patroni"]["scope"], "orders", "GET carries the node's document");
                let reasons = document["reasons"].as_array().map_or(0, Vec::len);
                assert_eq!(reasons > 0, *yes == 0, "{label}: {path} has {reasons} reasons");
            } else {
                assert!(answer.body.is_empty(), "{label}: {method} {path} has a body");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// One column per path, in the order of the table in docs/api.md.
const COLUMNS: [&str; 16] = [
    "/",
    "/primary",
    "/master",
    "/read-write",
    "/leader",
    "/standby-leader",
    "/replica",
    "/read-only",
    "/sync",
    "/synchronous",
    "/quorum",
    "/async",
    "/read-only-sync",
    "/read-only-quorum",
    "/health",
    "/readiness",
];

async fn row(fake: Fake, label: &str, answers: &str) {
    let bits: Vec<u8> = answers.bytes().filter(|byte| *byte != b' ').map(|byte| byte - b'0').collect();
    assert_eq!(bits.len(), COLUMNS.len(), "{label}");
    let expected: Vec<(&str, u8)> = COLUMNS.into_iter().zip(bits).collect();
    check(fake, label, &expected).await;
}

#[tokio::test]
async fn the_truth_table_of_all_paths_and_states() {
    // Columns:                                        / pri mas rw  led sl  rep ro  syn sy2 quo asy ros roq hea rdy
    row(Fake::healthy("n1"), "healthy primary", "      1 1 1 1 1 0 0 1 0 0 0 0 1 1 1 1").await;
    row(Fake::healthy("n2"), "healthy voter", "        0 0 0 0 0 0 1 1 1 1 0 0 1 0 1 1").await;
    row(Fake::healthy("n3"), "delayed replica", "      0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 1").await;
    row(Fake::healthy("w1"), "witness", "              0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0").await;
    row(Fake::degraded("n1"), "degraded primary", "    1 1 1 1 1 0 0 1 0 0 0 0 1 1 1 1").await;
    row(Fake::degraded("n2"), "cut replica", "         0 0 0 0 0 0 1 1 0 0 0 1 0 0 1 0").await;
    row(Fake::down("n1"), "dead primary", "            0 0 0 0 1 0 0 0 0 0 0 0 0 0 0 0").await;
    row(Fake::down("n2"), "replica of the dead", "     0 0 0 0 0 0 1 1 0 0 0 1 0 0 1 0").await;
    row(Fake::forming("n1"), "forming primary", "      1 1 1 1 1 0 0 1 0 0 0 0 1 1 1 1").await;
    row(Fake::forming("n2"), "clone under way", "      0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0").await;

    let mut quorum = Fake::healthy("n2");
    quorum.status.nodes[2].sync = "sync".to_owned();
    row(quorum, "one of two voters, one needed", "     0 0 0 0 0 0 1 1 0 0 1 0 0 1 1 1").await;

    let mut unproved = Fake::healthy("n1");
    unproved.status.primary_up = false;
    row(unproved, "primary not seen to write", "       0 0 0 0 1 0 0 0 0 0 0 0 0 0 1 0").await;

    let mut recovering = Fake::healthy("n1");
    recovering.sample = Some(sample(1, ServerState::Running, Some(crate::backend::facts(true))));
    row(recovering, "primary still in recovery", "     0 0 0 0 1 0 0 0 0 0 0 0 0 0 1 0").await;

    let mut unasked = Fake::healthy("n2");
    unasked.sample = None;
    row(unasked, "no sample yet", "                    0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0").await;

    let mut stalled = Fake::healthy("n1");
    stalled.age = Millis(3_001);
    row(stalled, "a view that nobody renews", "        0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0").await;

    let mut stranger = Fake::healthy("n2");
    stranger.node = name("n9");
    row(stranger, "not in the judged cluster", "       0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0").await;

    let mut split = Fake::healthy("n2");
    split.sample = Some(sample(2, ServerState::Running, Some(crate::backend::facts(false))));
    row(split, "replica that accepts writes", "        0 0 0 0 0 0 0 0 0 0 0 0 0 0 1 0").await;
}

#[tokio::test]
async fn a_load_balancer_narrows_by_lag_state_and_tags() {
    // n2 lags 2048 bytes in applying, 512 in receiving, 0.25 s.
    let expected = [
        ("/replica?lag=2048", 1),
        ("/replica?lag=2047", 0),
        ("/replica?lag=2kB", 1),
        ("/replica?lag=1kB", 0),
        ("/replica?lag=1MB", 1),
        ("/replica?lag=1GB", 1),
        ("/replica?lag=2s", 1),
        ("/replica?lag=250ms", 1),
        ("/replica?lag=249ms", 0),
        ("/replica?lag=0", 0),
        ("/replica?lag=", 0),
        ("/replica?lag=much", 0),
        ("/replica?lag=-1", 0),
        ("/replica?lag=99999999999999999999", 0),
        ("/replica?replication_state=streaming", 1),
        ("/replica?replication_state=in+archive+recovery", 0),
        ("/replica?tag_site=eu-1", 1),
        ("/replica?tag_site=us-1", 0),
        ("/replica?tag_kind=hot&tag_failover_priority=100", 1),
        ("/replica?tag_never_heard_of=1", 0),
        ("/replica?tag_s%69te=eu%2D1", 1),
        ("/read-only?lag=1kB", 0),
        ("/async?lag=1GB", 0),
        ("/sync?lag=1kB", 0),
        ("/sync?lag=1MB&tag_site=eu-1", 1),
        ("/readiness?lag=1kB", 0),
        ("/readiness?lag=1kB&mode=write", 1),
        ("/readiness?lag=1kB&mode=apply", 0),
        ("/readiness?mode=guess", 0),
        ("/health?lag=0&tag_x=y", 1),
    ];
    check(Fake::healthy("n2"), "voter", &expected).await;
    // The primary is who it is, whatever tags are asked for; but as a place to read it must match.
    let primary = [
        ("/primary?tag_site=us-1", 1),
        ("/leader?tag_x=1", 1),
        ("/read-only?lag=0", 1),
        ("/read-only?tag_site=us-1", 0),
    ];
    check(Fake::healthy("n1"), "primary", &primary).await;
    // Unknown bytes are within no bound, even the largest; known seconds still count.
    let cut = [("/replica", 1), ("/replica?lag=1TB", 0), ("/replica?lag=1min", 1), ("/replica?lag=10s", 0)];
    check(Fake::degraded("n2"), "cut", &cut).await;
    // A keeper that began to look when the replica was behind already knows only that it is at least so old.
    let mut young = Fake::healthy("n2");
    let lag = young.status.nodes.iter_mut().find(|node| node.name.as_str() == "n2").and_then(|node| node.lag.as_mut());
    lag.expect("a replica").method = model::status::Lag::LOWER_BOUND.to_owned();
    check(young, "young", &[("/replica", 1), ("/replica?lag=1min", 0), ("/replica?lag=2kB", 1)]).await;
}

#[tokio::test]
async fn paths_are_understood_by_substrings_as_patroni_does() {
    let primary = [
        ("/primary/", 1),
        ("/v2/master", 1),
        ("/is-primary", 1),
        ("/my-leader", 1),
        ("/standby_leader_x", 0),
        ("/some-replica-path", 0),
        ("/healthz", 1),
        ("/read-only/x", 1),
        ("/asdf/read-write", 1),
    ];
    check(Fake::healthy("n1"), "substrings", &primary).await;
    let fake = Arc::new(Fake::healthy("n1"));
    for path in ["/nothing", "/v1/primary", "/v1/health", "/metrics/replica", "/admin/leader", "/ui/replica", "/sync2"]
    {
        fake.get(path).await.is_problem(404, "ST1301");
    }
    // `/v1x` is not `/v1`.
    assert_eq!(fake.get("/v1x-primary").await.status, 200);
}

#[tokio::test]
async fn frozen_replay_is_not_ready_though_it_streams() {
    let mut fake = Fake::healthy("n2");
    fake.status.problems.push(Problem {
        code: "ST3012".to_owned(),
        severity: Severity::Critical,
        node: Some(name("n2")),
        what: "replay on n2 has not moved for 40 s".to_owned(),
        cause: "a long query".to_owned(),
        next: "look".to_owned(),
        for_ms: 40_000,
    });
    let fake = Arc::new(fake);
    let answer = fake.get("/readiness").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["reason"], "replay on n2 has not moved for 40 s");
}

#[tokio::test]
async fn a_replica_that_catches_up_is_not_ready() {
    let mut fake = Fake::healthy("n2");
    fake.me().link = Some(LinkStatus::CatchingUp);
    check(fake, "catching up", &[("/readiness", 0), ("/replica", 1), ("/replica?replication_state=streaming", 0)])
        .await;
}

#[tokio::test]
async fn liveness_allows_the_primary_one_ttl_and_others_two() {
    for (node, age_ms, wanted) in [
        ("n1", 29_999, 200),
        ("n1", 30_000, 200),
        ("n1", 30_001, 503),
        ("n2", 30_001, 200),
        ("n2", 60_000, 200),
        ("n2", 60_001, 503),
        ("w1", 500, 200),
    ] {
        let mut fake = Fake::healthy(node);
        fake.age = Millis(age_ms);
        let fake = Arc::new(fake);
        for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
            let answer = fake.ask(request(method.clone(), "/liveness", "", &[])).await;
            assert_eq!(answer.status, wanted, "{method} on {node} after {age_ms} ms");
            assert!(answer.body.is_empty(), "liveness has no body");
        }
    }
}
