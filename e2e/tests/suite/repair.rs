//! What breaks and comes back by itself, and what is rebuilt by order.

use e2e::{Cluster, DEADLINE, Writers, wait_for};
use model::status::{ClusterStatus, LinkStatus, Verdict};
use std::path::Path;

const NODES: [&str; 3] = ["n1", "n2", "n3"];

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_nodes_die_and_the_cluster_comes_back_by_itself() {
    let cluster = Cluster::start(15, &[]).await;
    let writers = Writers::start(&cluster.node("n1").uri).await;
    // Nobody takes over from it: this is about each node by itself.
    cluster.run(&["pause", "--for", "1h"]).await.exits(0);
    a_killed_server_is_started_again(&cluster, "n2").await;
    a_killed_server_is_started_again(&cluster, "n1").await;
    a_new_keeper_adopts_the_running_server(&cluster, "n1").await;
    a_new_keeper_adopts_the_running_server(&cluster, "n3").await;
    a_dead_host_is_noticed_and_comes_back(&cluster, "n2").await;
    what_was_frozen_goes_on(&cluster, "keeper").await;
    what_was_frozen_goes_on(&cluster, "host").await;
    a_frozen_primary_goes_on(&cluster, &writers).await;
    let ledger = writers.stop().await;
    cluster.prove(&ledger, &NODES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_dies_is_replaced_however_often_that_happens() {
    let cluster = Cluster::start(15, &[]).await;
    // What can be a false alarm has to wait after three in an hour; what the primary's own keeper says does not.
    for crash in 1..=7 {
        let before = cluster.wait_healthy().await;
        let primary = before.primary.clone().expect("healthy").to_string();
        cluster.crash(&primary, "postgres").await;
        let what = format!("crash {crash}, of {primary}: another node takes over");
        let moved = |view: &ClusterStatus| view.verdict == Verdict::Healthy && view.primary != before.primary;
        let after = cluster.wait_status(&what, moved).await;
        assert_eq!(after.epoch.0, before.epoch.0 + 1, "crash {crash}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_rebuilt_by_order_or_when_their_data_is_gone() {
    let cluster = Cluster::start(15, &[]).await;
    let writers = Writers::start(&cluster.node("n1").uri).await;
    cluster.refused(&["node", "reinit", "n1", "--yes"], "ST2104", 4).await;
    cluster.refused(&["node", "reinit", "n2"], "ST1001", 2).await;
    let leave_mark = |name: &str| {
        let mark = cluster.node(name).data_dir.join("mark_of_the_old_data");
        std::fs::write(&mark, "x").expect("writable");
        mark
    };
    let mark = leave_mark("n2");
    cluster.run(&["node", "reinit", "n2", "--yes", "--reason", "a bad disk"]).await.exits(0);
    wait_rebuilt(&cluster, "n2", &mark).await;
    let history = cluster.json(&["history"]).await.to_string();
    assert!(history.contains("a bad disk"), "{history}");
    let mark = leave_mark("n3");
    cluster.crash("n3", "host").await;
    std::fs::remove_dir_all(&cluster.node("n3").data_dir).expect("removable");
    cluster.restart("n3").await;
    wait_rebuilt(&cluster, "n3", &mark).await;
    data_vanishes_beneath_a_running_server(&cluster, "n2").await;
    // Ordered while it is down: what the killed server left (its lock file) is in nobody's way.
    let mark = leave_mark("n3");
    cluster.crash("n3", "host").await;
    cluster.run(&["node", "reinit", "n3", "--yes"]).await.exits(0);
    cluster.restart("n3").await;
    wait_rebuilt(&cluster, "n3", &mark).await;
    let ledger = writers.stop().await;
    cluster.prove(&ledger, &NODES).await;
    assert_eq!(ledger.unanswered(), 0);
}

async fn data_vanishes_beneath_a_running_server(cluster: &Cluster, name: &str) {
    let data = &cluster.node(name).data_dir;
    let server = cluster.server_pid(name);
    // Moved first: a server that still runs makes new files as fast as they are removed.
    let aside = data.with_file_name("vanished");
    std::fs::rename(data, &aside).expect("a directory of our own");
    // It would notice by itself within a minute.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(server), nix::sys::signal::Signal::SIGQUIT).expect("it runs");
    wait_for(&format!("{name} has data again"), || async {
        let path = data.join("postmaster.pid");
        if path.exists() { Ok(()) } else { Err(format!("no {}", path.display())) }
    })
    .await;
    wait_follows(cluster, name).await;
    assert_ne!(cluster.server_pid(name), server);
}

async fn wait_rebuilt(cluster: &Cluster, name: &str, mark: &Path) {
    wait_for(&format!("the old data of {name} is gone"), || async {
        if mark.exists() { Err(format!("{} is there", mark.display())) } else { Ok(()) }
    })
    .await;
    wait_follows(cluster, name).await;
}

async fn wait_follows(cluster: &Cluster, name: &str) {
    cluster.wait_node(name, "streams again", |node| node.stage == "active" && streams(node)).await;
    cluster.wait_healthy().await;
}

fn streams(node: &model::status::NodeStatus) -> bool {
    node.link == Some(LinkStatus::Streaming) && node.healthy
}

async fn a_killed_server_is_started_again(cluster: &Cluster, name: &str) {
    let before = cluster.server_pid(name);
    cluster.crash(name, "postgres").await;
    wait_for(&format!("{name} has a new server"), || async {
        let path = cluster.node(name).data_dir.join("postmaster.pid");
        let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        if text.starts_with(&format!("{before}\n")) { Err(text) } else { Ok(()) }
    })
    .await;
    cluster.value(name, "SELECT 1").await;
    cluster.wait_healthy().await;
    cluster.wait_applied("n1", &["n2", "n3"]).await;
}

async fn a_new_keeper_adopts_the_running_server(cluster: &Cluster, name: &str) {
    let before = cluster.server_pid(name);
    cluster.crash(name, "keeper").await;
    cluster.wait_node(name, "is without a keeper", |node| !node.keeper_up).await;
    // The database goes on without its keeper.
    assert_eq!(cluster.value(name, "SELECT 1").await, "1");
    cluster.restart(name).await;
    cluster.wait_node(name, "has a keeper", |node| node.keeper_up && node.healthy).await;
    cluster.wait_healthy().await;
    assert_eq!(cluster.server_pid(name), before, "the server was restarted, not adopted");
    // Also when the keeper is asked to stop.
    cluster.restart(name).await;
    cluster.wait_healthy().await;
    assert_eq!(cluster.server_pid(name), before, "the server was stopped with its keeper");
}

async fn a_dead_host_is_noticed_and_comes_back(cluster: &Cluster, name: &str) {
    cluster.crash(name, "host").await;
    cluster.wait_node(name, "is lost", |node| !node.keeper_up && node.link != Some(LinkStatus::Streaming)).await;
    assert!(cluster.server_processes(name).is_empty());
    cluster.restart(name).await;
    cluster.wait_healthy().await;
}

/// The server of the primary stands still for longer than a keeper waits for it, and must not be restarted for that.
async fn a_frozen_primary_goes_on(cluster: &Cluster, writers: &Writers) {
    let server = cluster.server_pid("n1");
    cluster.sandbox(&["freeze", "n1", "--what", "postgres"]).await;
    cluster.wait_status("the primary does not answer", |view| !view.primary_up).await;
    let before = writers.ledger.count();
    cluster.sandbox(&["thaw", "n1", "--what", "postgres"]).await;
    cluster.wait_healthy().await;
    wait_for("writers go on", || async {
        let count = writers.ledger.count();
        if count >= before + 20 { Ok(()) } else { Err(format!("{count} after {before}")) }
    })
    .await;
    assert_eq!(cluster.server_pid("n1"), server, "a server that was only slow was restarted");
}

async fn what_was_frozen_goes_on(cluster: &Cluster, what: &str) {
    cluster.sandbox(&["freeze", "n3", "--what", what]).await;
    cluster.wait_node("n3", "is silent", |node| !node.keeper_up).await;
    cluster.sandbox(&["thaw", "n3", "--what", what]).await;
    cluster.wait_healthy().await;
    let end = tokio::time::timeout(DEADLINE, cluster.wait_applied("n1", &["n2", "n3"])).await;
    end.expect("replicas follow again");
}
