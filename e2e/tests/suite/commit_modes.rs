//! Commit modes on real servers: changed under load without a hole, kept when replicas die, strict when asked to be.

use e2e::{Cluster, DEADLINE, Ledger, Writers, wait_for};
use std::time::Duration;

/// `voter_grace` of these clusters.
const GRACE: Duration = Duration::from_secs(3);
/// What a busy machine may add to a pause.
const SLACK: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn commit_modes_change_under_load_and_survive_replicas() {
    let cluster = Cluster::start(15, &["--nodes", "4", "--commit-mode", "async"]).await;
    let writers = Writers::start(&cluster.node("n1").uri).await;
    let ledger = writers.ledger.clone();
    modes_follow_each_other(&cluster).await;
    a_dead_replica_does_not_stop_commits(&cluster, &ledger).await;
    sync_goes_on_without_a_replica_after_the_grace(&cluster, &ledger).await;
    another_site_acknowledges(&cluster).await;
    strict_commits_wait_for_a_replica(&cluster).await;
    let ledger = writers.stop().await;
    cluster.prove(&ledger, &["n1", "n2", "n3", "n4"]).await;
    assert_eq!(ledger.unanswered(), 0, "no change of mode and no death of a replica may cost a writer its connection");
}

/// The server's own list: how many it waits for, and the nodes among which, by name.
async fn waits_for(cluster: &Cluster) -> (u32, Vec<String>) {
    let text = cluster.value("n1", "SHOW synchronous_standby_names").await;
    if text.is_empty() {
        return (0, Vec::new());
    }
    let (head, list) = text.trim_end_matches(')').split_once('(').unwrap_or_else(|| panic!("no list in {text}"));
    let acks = head.trim().strip_prefix("ANY ").and_then(|count| count.parse().ok());
    let acks = acks.unwrap_or_else(|| panic!("not of the form ANY n: {text}"));
    // Each name carries a keyed part, so that nobody can guess his way into the list.
    let node = |name: &str| {
        let (node, keyed) = name.trim().trim_matches('"').strip_prefix("stemma_")?.split_once('_')?;
        (keyed.len() == 8).then(|| node.to_owned())
    };
    let mut nodes: Vec<String> = list.split(',').map(|name| node(name).unwrap_or_else(|| panic!("{text}"))).collect();
    nodes.sort();
    (acks, nodes)
}

async fn wait_until_it_waits_for(cluster: &Cluster, acks: u32, nodes: &[&str]) {
    wait_for(&format!("the server waits for {acks} of {nodes:?}"), || async {
        let found = waits_for(cluster).await;
        let view = cluster.status().await?;
        let settled = view.durability.in_force && view.durability.acks == acks;
        if found.0 == acks && found.1 == nodes && settled {
            Ok(())
        } else {
            Err(format!("{found:?} {:?}", view.durability))
        }
    })
    .await;
}

async fn set(cluster: &Cluster, assignments: &[&str]) {
    cluster.run(&[&["config", "set"], assignments].concat()).await.exits(0);
}

async fn modes_follow_each_other(cluster: &Cluster) {
    let all: &[&str] = &["n2", "n3", "n4"];
    wait_until_it_waits_for(cluster, 0, &[]).await;
    for (mode, acks) in [("semi-sync", 1), ("quorum", 2), ("sync", 3), ("async", 0), ("sync", 3), ("semi-sync", 1)] {
        set(cluster, &[&format!("commit_mode={mode}")]).await;
        wait_until_it_waits_for(cluster, acks, if acks == 0 { &[] } else { all }).await;
        let view = cluster.status().await.expect("a node answers");
        assert_eq!((view.durability.mode.as_str(), view.durability.acks_wanted), (mode, acks));
    }
}

/// Waits until so many further rows were acknowledged.
async fn wait_for_rows(ledger: &Ledger, more: usize) {
    let goal = ledger.count() + more;
    wait_for("rows are acknowledged", || async {
        let count = ledger.count();
        if count >= goal { Ok(()) } else { Err(format!("{count} of {goal}")) }
    })
    .await;
}

async fn a_dead_replica_does_not_stop_commits(cluster: &Cluster, ledger: &Ledger) {
    ledger.take_longest_pause();
    cluster.crash("n3", "host").await;
    wait_until_it_waits_for(cluster, 1, &["n2", "n4"]).await;
    wait_for_rows(ledger, 20).await;
    let pause = ledger.take_longest_pause();
    assert!(pause < GRACE, "two other replicas could acknowledge, yet commits stood still for {pause:?}");
    cluster.restart("n3").await;
    wait_until_it_waits_for(cluster, 1, &["n2", "n3", "n4"]).await;
}

async fn sync_goes_on_without_a_replica_after_the_grace(cluster: &Cluster, ledger: &Ledger) {
    set(cluster, &["commit_mode=sync"]).await;
    wait_until_it_waits_for(cluster, 3, &["n2", "n3", "n4"]).await;
    ledger.take_longest_pause();
    cluster.crash("n4", "host").await;
    wait_until_it_waits_for(cluster, 2, &["n2", "n3"]).await;
    wait_for_rows(ledger, 20).await;
    let pause = ledger.take_longest_pause();
    assert!(pause > GRACE / 2, "the promise of `sync` was given up after {pause:?}, long before the grace");
    assert!(pause < GRACE + SLACK, "commits stood still for {pause:?}");
    cluster.restart("n4").await;
    wait_until_it_waits_for(cluster, 3, &["n2", "n3", "n4"]).await;
}

async fn another_site_acknowledges(cluster: &Cluster) {
    cluster.run(&["node", "set", "n4", "--site", "west"]).await.exits(0);
    set(cluster, &["commit_mode=semi-sync", "sync_from_other_site=true"]).await;
    wait_until_it_waits_for(cluster, 1, &["n4"]).await;
    // Two acknowledgements could both be local; three of these cannot.
    set(cluster, &["commit_mode=quorum"]).await;
    wait_until_it_waits_for(cluster, 3, &["n2", "n3", "n4"]).await;
    set(cluster, &["commit_mode=semi-sync", "sync_from_other_site=false"]).await;
    wait_until_it_waits_for(cluster, 1, &["n2", "n3", "n4"]).await;
}

async fn strict_commits_wait_for_a_replica(cluster: &Cluster) {
    set(cluster, &["strict=true"]).await;
    cluster.wait_status("strict", |view| view.durability.strict).await;
    let client = cluster.sql("n1").await;
    for replica in ["n2", "n3", "n4"] {
        cluster.sandbox(&["freeze", replica, "--what", "postgres"]).await;
    }
    let commit = tokio::spawn(async move { client.batch_execute("CREATE TABLE waited (id int)").await });
    cluster
        .wait_status("commits wait, and status says so", |view| {
            view.problems.iter().any(|found| found.code == "ST2204" && found.what.starts_with("commits wait: 0 of 1"))
        })
        .await;
    tokio::time::sleep(GRACE * 2).await;
    assert!(!commit.is_finished(), "a strict commit was acknowledged although no replica could hold it");
    assert_eq!(waits_for(cluster).await.0, 1, "strict keeps asking for an acknowledgement");
    cluster.sandbox(&["thaw", "n3", "--what", "postgres"]).await;
    let committed = tokio::time::timeout(DEADLINE, commit).await.expect("a replica is back, yet the commit waits");
    committed.expect("no panic").expect("the commit ends well");
    for replica in ["n2", "n4"] {
        cluster.sandbox(&["thaw", replica, "--what", "postgres"]).await;
    }
    set(cluster, &["strict=false"]).await;
    wait_until_it_waits_for(cluster, 1, &["n2", "n3", "n4"]).await;
    cluster.wait_healthy().await;
}
