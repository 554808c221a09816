//! The demo, as continuous integration would run it.

use e2e::{major_bin, run};

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_ends_with_its_proof() {
    let bin = major_bin(15).display().to_string();
    let ran = run(&["demo", "--ci", "--seconds", "8", "--pg-bin", &bin, "-o", "json"]).await.exits(0);
    let proof = ran.json();
    assert_eq!(proof["proved"], true, "{proof}");
    let acknowledged = proof["acknowledged"].as_u64().expect("a number");
    assert!(acknowledged > 100, "{proof}");
    let nodes = proof["nodes"].as_array().expect("a list");
    assert_eq!(nodes.len(), 3, "{proof}");
    for node in nodes {
        assert_eq!((node["found"].as_u64(), node["missing"].as_u64()), (Some(acknowledged), Some(0)), "{proof}");
    }
}

/// The primary is taken away under load. Machines that run these tests are shared, so the outage is judged generously;
/// a lost row never is.
async fn scenario(name: &str, moves: bool) {
    let bin = major_bin(15).display().to_string();
    let asserted = "max-outage=15s,lost=0";
    let ran = run(&["demo", "--ci", "--scenario", name, "--assert", asserted, "--pg-bin", &bin, "-o", "json"]).await;
    let report = ran.exits(0).json();
    assert_eq!((&report["lost"], &report["assertion"]["holds"]), (&0.into(), &true.into()), "{report}");
    assert!(report["acknowledged"].as_u64().is_some_and(|rows| rows > 100), "{report}");
    let event = &report["event"];
    assert_eq!(event["scenario"], name, "{report}");
    assert!(event["outage_ms"].as_u64().is_some_and(|outage| (1..=15_000).contains(&outage)), "{report}");
    if moves {
        assert_ne!(event["primary_before"], event["primary_after"], "{report}");
    }
    // A killed host is started again before the proof.
    assert_eq!(report["proved"], true, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_primary_costs_no_acknowledged_row() {
    scenario("kill-primary", false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_host_is_replaced_and_costs_no_acknowledged_row() {
    scenario("kill-host", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_under_load_costs_no_acknowledged_row() {
    scenario("switchover", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_assertion_that_does_not_hold_is_the_exit_status() {
    let bin = major_bin(15).display().to_string();
    let line = ["demo", "--ci", "--seconds", "6", "--scenario", "kill-primary", "--assert", "max-outage=1ms"];
    let report = run(&[&line[..], &["--pg-bin", &bin, "-o", "json"]].concat()).await.exits(1).json();
    assert_eq!((&report["proved"], &report["assertion"]["holds"]), (&true.into(), &false.into()), "{report}");
}
