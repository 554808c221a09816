//! `/metrics`: names, absent values, and what Prometheus itself thinks of the text.

use crate::backend::{Fake, clone_progress};
use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

async fn scrape(fake: Fake) -> String {
    let answer = Arc::new(fake).get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    answer.text()
}

fn names(text: &str) -> BTreeSet<&str> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect()
}

/// The value of the one sample that begins so.
fn value(text: &str, start: &str) -> Option<f64> {
    let mut found = text.lines().filter(|line| line.starts_with(start));
    let line = found.next()?;
    assert!(found.next().is_none(), "{start} is ambiguous");
    Some(line.rsplit(' ').next().expect("a value").parse().expect("a number"))
}

#[tokio::test]
async fn the_promised_names_are_there() {
    let mut fake = Fake::healthy("n1");
    fake.status.nodes[2].clone = Some(clone_progress());
    let text = scrape(fake).await;
    let names = names(&text);
    for name in [
        "stemma_build_info",
        "stemma_node_info",
        "stemma_node_role",
        "stemma_cluster_tolerance",
        "stemma_cluster_rpo_now_bytes",
        "stemma_cluster_rpo_now_seconds",
        "stemma_link_up",
        "stemma_replication_lag_seconds",
        "stemma_replication_lag_bytes",
        "stemma_slot_retained_bytes",
        "stemma_raft_leader",
        "stemma_raft_term",
        "stemma_raft_peers",
        "stemma_raft_healthy_peers",
        "stemma_store_up",
        "stemma_sync_required",
        "stemma_sync_available",
        "stemma_cert_expiry_timestamp_seconds",
        "stemma_clock_offset_seconds",
        "stemma_clone_done_bytes",
        "stemma_connections",
        "stemma_operations",
        "patroni_version",
        "patroni_primary",
        "patroni_standby_leader",
        "patroni_replica",
        "patroni_sync_standby",
        "patroni_quorum_standby",
        "patroni_cluster_unlocked",
        "patroni_failsafe_mode_is_active",
        "patroni_failsafe_mode_enabled",
        "patroni_failsafe_member",
        "patroni_dcs_last_seen",
        "patroni_pending_restart",
        "patroni_is_paused",
        "patroni_failover_priority",
        "patroni_postmaster_start_time",
        "patroni_xlog_location",
        "patroni_xlog_received_location",
        "patroni_xlog_replayed_location",
        "patroni_xlog_replayed_timestamp",
        "patroni_xlog_paused",
        "patroni_postgres_running",
        "patroni_postgres_streaming",
        "patroni_postgres_in_archive_recovery",
        "patroni_postgres_server_version",
        "patroni_postgres_timeline",
        "patroni_postgres_state",
    ] {
        assert!(names.contains(name), "{name} is missing");
    }
    let documented = include_str!("../../../docs/metrics.md");
    for name in names {
        assert!(documented.contains(&format!("`{name}`")), "{name} is not in docs/metrics.md");
    }
    assert_eq!(value(&text, "patroni_version{"), Some(40_000.0));
    assert_eq!(value(&text, "patroni_primary{scope=\"orders\",name=\"n1\"}"), Some(1.0));
    assert_eq!(value(&text, "patroni_xlog_location{"), Some(f64::from(0x300_2200)));
    assert_eq!(value(&text, "stemma_node_role{cluster=\"orders\",node=\"n1\",role=\"primary\"}"), Some(1.0));
    assert_eq!(value(&text, "stemma_node_role{cluster=\"orders\",node=\"n1\",role=\"replica\"}"), Some(0.0));
}

#[tokio::test]
async fn a_cut_link_shows_and_unknown_values_are_absent() {
    let text = scrape(Fake::degraded("n2")).await;
    let link = "stemma_link_up{cluster=\"orders\",upstream=\"n1\",downstream=\"n2\",kind=\"physical\"}";
    assert_eq!(value(&text, link), Some(0.0));
    let seconds =
        "stemma_replication_lag_seconds{cluster=\"orders\",node=\"n2\",stage=\"apply\",method=\"link-silence\"}";
    assert_eq!(value(&text, seconds), Some(12.5));
    assert!(
        !text.contains("stemma_replication_lag_bytes{cluster=\"orders\",node=\"n2\""),
        "unknown is not zero:\n{text}"
    );
    assert!(!text.contains("stemma_cluster_rpo_now_bytes"), "unknown is not zero");
    assert_eq!(value(&text, "patroni_postgres_streaming{"), Some(0.0));
    assert_eq!(value(&text, "patroni_postgres_in_archive_recovery{"), Some(1.0));
}

#[tokio::test]
async fn packs_part_the_names() {
    let fake = Arc::new(Fake::healthy("n2"));
    for (pack, prefix) in [("native", "stemma_"), ("patroni", "patroni_")] {
        let text = fake.get(&format!("/metrics?pack={pack}")).await.text();
        let names = names(&text);
        assert!(!names.is_empty() && names.iter().all(|name| name.starts_with(prefix)), "{names:?}");
    }
    fake.get("/metrics?pack=mystery").await.is_problem(400, "ST1301");
}

#[tokio::test]
async fn hostile_text_in_labels_is_escaped() {
    let mut fake = Fake::healthy("n1");
    fake.sample.as_mut().and_then(|sample| sample.facts.as_mut()).expect("facts").slots[0].name =
        "a\"} 1\nevil_metric{x=\"\\".to_owned();
    let text = scrape(fake).await;
    assert!(!text.lines().any(|line| line.starts_with("evil_metric")), "{text}");
}

/// One that took so many milliseconds to choose the new primary, and ten times that to promote it.
fn failover(epoch: u64, choosing_ms: i64) -> model::failover::Failover {
    serde_json::from_value(serde_json::json!({
        "id": format!("fo_{epoch}"), "epoch": epoch, "from": 1, "kind": "automatic", "because": "n1 is silent",
        "actor": "stemma", "phase": "done", "started_at": 0,
        "phases": [{"phase": "recruit", "at": 0}, {"phase": "promote", "at": choosing_ms},
            {"phase": "done", "at": 11 * choosing_ms}],
    }))
    .expect("a change of primary")
}

#[tokio::test]
async fn changes_of_primary_are_counted_once_and_outlive_the_list_that_is_kept() {
    let mut fake = Fake::healthy("n1");
    fake.state.as_mut().expect("known").failovers = vec![failover(2, 40), failover(3, 40)];
    let fake = std::sync::Arc::new(fake);
    for _scrape in 0..2 {
        let text = fake.get("/metrics").await.text();
        let line = "stemma_failovers_total{cluster=\"orders\",cause=\"automatic\",result=\"done\"} 2";
        assert!(text.lines().any(|found| found == line), "{text}");
        for (phase, bound, within) in [("recruit", "0.05", 2), ("promote", "0.25", 0), ("promote", "0.5", 2)] {
            let line = format!(
                "stemma_failover_phase_seconds_bucket{{le=\"{bound}\",cluster=\"orders\",phase=\"{phase}\"}} {within}"
            );
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(text.contains("stemma_hook_failures_total{cluster=\"orders\",node=\"n1\"} 0"), "{text}");
    }
}

#[tokio::test]
async fn prometheus_finds_nothing_to_complain_about() {
    let mut fake = Fake::healthy("n1");
    fake.status.nodes[2].clone = Some(clone_progress());
    fake.state.as_mut().expect("known").failovers = vec![failover(2, 40)];
    for text in [
        scrape(fake).await,
        scrape(Fake::degraded("n2")).await,
        scrape(Fake::down("n1")).await,
        scrape(Fake::healthy("w1")).await,
    ] {
        // Checked without any tool: every name has help and type once, and no counter suffix lies.
        for name in names(&text) {
            assert_eq!(text.matches(&format!("# HELP {name} ")).count(), 1, "{name}");
            let histogram = name == "stemma_failover_phase_seconds";
            let kind = if histogram {
                "histogram"
            } else if name.ends_with("_total") {
                "counter"
            } else {
                "gauge"
            };
            assert_eq!(text.matches(&format!("# TYPE {name} {kind}")).count(), 1, "{name}");
            assert!(!name.ends_with("_ms"), "{name}");
        }
        promtool(&text);
    }
}

fn promtool(text: &str) {
    let started = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(fault) if fault.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("SKIPPED: promtool is not installed (Debian package `prometheus`), so the text was not linted");
            return;
        }
        Err(fault) => panic!("promtool: {fault}"),
    };
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("ends");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "promtool: {}", String::from_utf8_lossy(&said));
}
