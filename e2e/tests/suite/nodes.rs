//! Nodes change what they are, leave and come back.

use e2e::{Cluster, DEADLINE, Writers, run, wait_for, wait_until};
use model::ReplicaKind;

#[tokio::test(flavor = "multi_thread")]
async fn nodes_change_kind_leave_and_come_back() {
    let cluster = Cluster::start(15, &["--nodes", "4"]).await;
    let writers = Writers::start(&cluster.node("n1").uri).await;
    a_node_is_what_it_is_set_to(&cluster).await;
    a_delayed_replica_applies_late(&cluster).await;
    a_removed_node_is_gone_everywhere(&cluster).await;
    it_comes_back_with_a_new_token(&cluster).await;
    let ledger = writers.stop().await;
    cluster.prove(&ledger, &["n1", "n2", "n3", "n4"]).await;
    removals_that_would_do_harm_are_refused(&cluster).await;
}

async fn a_node_is_what_it_is_set_to(cluster: &Cluster) {
    let line = ["node", "set", "n4", "--kind", "standby", "--priority", "7", "--site", "west"];
    cluster.run(&line).await.exits(0);
    cluster
        .wait_node("n4", "is set", |node| {
            node.kind == ReplicaKind::Standby && node.priority == 7 && node.site.as_str() == "west" && node.healthy
        })
        .await;
    // Dedicated to failover: it may acknowledge, and is never read from.
    let port = cluster.node("n4").api_port;
    wait_for("a standby is not routed to", || async {
        let answer = e2e::request(port, "GET", "/replica", &[], None).await.map_err(|error| error.to_string())?;
        if answer.status == 503 { Ok(()) } else { Err(answer.status.to_string()) }
    })
    .await;
    cluster.refused(&["node", "set", "n1", "--kind", "delayed", "--delay", "1h"], "ST2104", 4).await;
    cluster.refused(&["node", "set", "n3", "--from", "n3"], "ST2111", 4).await;
}

async fn a_delayed_replica_applies_late(cluster: &Cluster) {
    let ran = cluster.run(&["node", "set", "n4", "--kind", "delayed", "--delay", "4s"]).await.exits(0);
    assert!(ran.stdout.contains("no longer acknowledges"), "{}", ran.stdout);
    cluster.wait_value("n4", "SHOW recovery_min_apply_delay", "4s").await;
    let acknowledging =
        "SELECT count(*) FROM pg_stat_replication WHERE application_name LIKE 'stemma_n4_%' AND sync_state <> 'async'";
    cluster.wait_value("n1", acknowledging, "0").await;
    cluster
        .execute("n1", "CREATE TABLE late (at timestamptz DEFAULT clock_timestamp()); INSERT INTO late DEFAULT VALUES")
        .await;
    cluster.wait_applied("n1", &["n2", "n3"]).await;
    let position = cluster.value("n1", "SELECT pg_current_wal_lsn()").await;
    cluster.wait_value("n4", &format!("SELECT pg_last_wal_receive_lsn() >= '{position}'::pg_lsn"), "t").await;
    cluster.wait_value("n4", "SELECT to_regclass('late') IS NOT NULL", "t").await;
    cluster.wait_value("n4", "SELECT count(*) FROM late", "1").await;
    // Replicas and primary share one clock here, so this is exact however busy the machine is.
    assert_eq!(cluster.value("n4", "SELECT clock_timestamp() - min(at) >= interval '4s' FROM late").await, "t");
    cluster.run(&["node", "set", "n4", "--kind", "hot"]).await.exits(0);
    cluster.wait_value("n4", "SHOW recovery_min_apply_delay", "0").await;
    cluster.wait_healthy().await;
}

/// Slots of `n4` on a node, whatever its number.
const SLOTS_OF_N4: &str = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'stemma\\_n4\\_%'";

async fn a_removed_node_is_gone_everywhere(cluster: &Cluster) {
    for holder in ["n1", "n2", "n3"] {
        cluster.wait_value(holder, SLOTS_OF_N4, "1").await;
    }
    cluster.run(&["node", "remove", "n4", "--yes"]).await.exits(0);
    cluster.wait_status("n4 is gone", |view| view.node("n4").is_none() && view.nodes.len() == 3).await;
    for holder in ["n1", "n2", "n3"] {
        cluster.wait_value(holder, SLOTS_OF_N4, "0").await;
    }
    wait_for("the server of n4 is stopped", || async {
        let running = cluster.server_processes("n4");
        if running.is_empty() { Ok(()) } else { Err(format!("{running:?}")) }
    })
    .await;
    assert!(cluster.node("n4").data_dir.join("PG_VERSION").exists(), "its data stays where it is");
    cluster.wait_healthy().await;
    let gone = cluster.json(&["history"]).await.to_string();
    assert!(gone.contains("n4"), "{gone}");
}

async fn it_comes_back_with_a_new_token(cluster: &Cluster) {
    let node = cluster.node("n4");
    let config = node.config.display().to_string();
    let made = cluster.json(&["token", "create"]).await;
    let token = made["token"].as_str().unwrap_or_else(|| panic!("no token in {made}")).to_owned();
    // Its keeper may have ended by itself when it was removed.
    cluster.run(&["sandbox", "crash", "n4", "--what", "keeper"]).await;
    let join = ["join", &token, "--config", &config, "-o", "json"];
    // Neither old data nor an identity of before is thrown away by itself.
    // The kernel may take a moment to free the ports of a process that was killed.
    let refused = wait_for("the ports of n4 to be free", || async {
        let code = run(&join).await.exits(1).error_code();
        if code == "ST1201" { Err(code) } else { Ok(code) }
    })
    .await;
    assert_eq!(refused, "ST1202");
    std::fs::remove_dir_all(&node.data_dir).expect("removable");
    assert_eq!(run(&join).await.exits(4).error_code(), "ST1208");
    empty(&node.state_dir);
    run(&join).await.exits(0);
    cluster.restart("n4").await;
    cluster.wait_status("n4 is back", |view| view.node("n4").is_some_and(|node| node.healthy)).await;
    cluster.wait_healthy().await;
    assert_eq!(cluster.value("n1", SLOTS_OF_N4).await, "1");
}

/// Empties a directory and keeps it with its mode.
fn empty(directory: &std::path::Path) {
    for entry in std::fs::read_dir(directory).expect("readable").flatten() {
        let path = entry.path();
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

async fn removals_that_would_do_harm_are_refused(cluster: &Cluster) {
    cluster.refused(&["node", "remove", "n1", "--yes"], "ST2104", 4).await;
    cluster.refused(&["node", "remove", "n9", "--yes"], "ST2101", 2).await;
    for silent in ["n3", "n4"] {
        cluster.crash(silent, "host").await;
    }
    let silent = |view: &model::status::ClusterStatus, name: &str| view.node(name).is_some_and(|node| !node.keeper_up);
    cluster.wait_status("two are silent", |view| silent(view, "n3") && silent(view, "n4")).await;
    // Two of four answer: not even a majority to decide with, and the cluster says so instead of hanging.
    let ran = cluster.run(&["node", "remove", "n2", "--yes", "-o", "json"]).await;
    assert!([4, 7].contains(&ran.code), "`{}` ends with {}: {}", ran.line, ran.code, ran.stdout);
    cluster.restart("n3").await;
    cluster.wait_node("n3", "answers", |node| node.healthy).await;
    wait_until("the silent node is named", DEADLINE, || async {
        let ran = cluster.run(&["node", "remove", "n4", "--yes", "-o", "json"]).await;
        let told = ran.code == 4 && ran.error_code() == "ST2116";
        if told { Ok(()) } else { Err(ran.stdout) }
    })
    .await;
    // Of n1, n3 and the silent n4 two would answer; without n3 as well it would be one of two.
    cluster.run(&["node", "remove", "n2", "--yes"]).await.exits(0);
    cluster.wait_status("n2 is gone", |view| view.node("n2").is_none()).await;
    cluster.refused(&["node", "remove", "n3", "--yes"], "ST2103", 4).await;
    cluster.run(&["node", "remove", "n4", "--yes", "--force"]).await.exits(0);
    cluster.wait_status("n4 is gone", |view| view.node("n4").is_none()).await;
}
