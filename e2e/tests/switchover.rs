//! Changes of primary by hand, on real servers and under load: nothing acknowledged is lost, the old primary follows
//! without being rebuilt, and the exit statuses tell the truth.

use e2e::{Cluster, Writers, wait_for};
use model::Role;
use model::change::{Change, ChangeResult};
use model::status::{ClusterStatus, LinkStatus};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// A connection string that finds the primary wherever it is.
fn everywhere(cluster: &Cluster) -> String {
    let uri = &cluster.node("n1").uri;
    let (login, rest) = uri.rsplit_once('@').expect("user and password");
    let database = rest.split_once('/').expect("a database").1.split('?').next().expect("its name");
    let address = |name: &str| {
        let rest = cluster.node(name).uri.rsplit_once('@').expect("an address").1.to_owned();
        rest.split_once('/').expect("an address").0.to_owned()
    };
    let hosts: Vec<String> = NODES.iter().map(|name| address(name)).collect();
    format!("{login}@{}/{database}?target_session_attrs=read-write&connect_timeout=2", hosts.join(","))
}

async fn some_rows(writers: &Writers) {
    let before = writers.ledger.count();
    wait_for("rows are written", || async {
        let now = writers.ledger.count();
        if now >= before + 20 { Ok(()) } else { Err(format!("{before} rows, then {now}")) }
    })
    .await;
}

async fn led_by(cluster: &Cluster, primary: &str) -> ClusterStatus {
    cluster
        .wait_status(&format!("{primary} leads and the others follow"), |view| {
            view.primary.as_ref().is_some_and(|name| name.as_str() == primary)
                && view.primary_up
                && view.nodes.iter().all(|node| {
                    node.role != Role::Replica || (node.link == Some(LinkStatus::Streaming) && node.link_up)
                })
                && view.durability.in_force
                && view.durability.voters.len() == 2
        })
        .await
}

async fn change(cluster: &Cluster, id: &str) -> Change {
    let document = cluster.json(&["explain", id]).await;
    serde_json::from_value(document["failover"].clone()).expect("a change of primary")
}

async fn events(cluster: &Cluster, kind: &str) -> usize {
    let document = cluster.json(&["history"]).await;
    document["history"].as_array().expect("events").iter().filter(|event| event["kind"] == kind).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_primary_moves_when_asked_and_only_then() {
    let cluster = Cluster::start(15, &[]).await;
    led_by(&cluster, "n1").await;
    let writers = Writers::start(&everywhere(&cluster)).await;
    some_rows(&writers).await;

    a_dry_run_changes_nothing(&cluster).await;
    a_refusal_lists_every_candidate(&cluster).await;
    there_and_back(&cluster, &writers).await;
    a_scheduled_one_comes_by_itself(&cluster, &writers).await;

    let ledger = writers.stop().await;
    cluster.prove(&ledger, &["n3", "n1", "n2"]).await;
    assert_eq!(events(&cluster, "node-rebuilt").await, 0, "a switchover rebuilds nobody");
}

async fn a_dry_run_changes_nothing(cluster: &Cluster) {
    let before = cluster.json(&["history"]).await;
    let looked = cluster.json(&["switchover", "--to", "n2", "--dry-run"]).await;
    let candidates = looked["candidates"].as_array().expect("a table");
    assert_eq!(candidates.len(), 2, "{looked}");
    assert!(candidates.iter().any(|row| row["node"] == "n2" && row["eligible"] == true && row["expected"] == true));
    assert_eq!(cluster.json(&["history"]).await, before);
    assert_eq!(cluster.status().await.expect("a view").epoch.0, 1);
}

async fn a_refusal_lists_every_candidate(cluster: &Cluster) {
    cluster.execute("n2", "SELECT pg_wal_replay_pause()").await;
    cluster.wait_node("n2", "is seen to be paused", |node| node.replay_paused).await;
    let ran = cluster.refused(&["switchover", "--to", "n2", "--yes"], "ST2301", 4).await;
    let causes = ran.json()["error"]["causes"].to_string();
    assert!(causes.contains("n2: its replay is paused") && causes.contains("n3: can take over"), "{causes}");
    cluster.execute("n2", "SELECT pg_wal_replay_resume()").await;
    cluster.wait_node("n2", "applies again", |node| !node.replay_paused).await;
    cluster.refused(&["switchover", "--to", "n1", "--yes"], "ST2104", 4).await;
    cluster.refused(&["switchover", "--to", "n2"], "ST1001", 2).await;
    cluster.refused(&["failover", "--best", "--accept-data-loss", "1GB", "--yes"], "ST2302", 4).await;
    assert_eq!(cluster.status().await.expect("a view").epoch.0, 1, "nothing of all that changed anything");
}

async fn there_and_back(cluster: &Cluster, writers: &Writers) {
    for (from, to) in [("n1", "n2"), ("n2", "n1")] {
        led_by(cluster, from).await;
        some_rows(writers).await;
        writers.ledger.take_longest_pause();
        let answer = cluster.json(&["switchover", "--to", to, "--yes"]).await;
        let told: Change = serde_json::from_value(answer["failover"].clone()).expect("the change");
        assert_eq!(told.result, ChangeResult::Done, "{answer}");
        assert_eq!(told.winner.as_ref().map(|name| name.as_str()), Some(to));
        some_rows(writers).await;
        eprintln!("switchover from {from} to {to}: longest pause of writes {:?}", writers.ledger.take_longest_pause());
        led_by(cluster, to).await;
        assert_eq!(change(cluster, &told.id).await.attempts, told.attempts, "the record stays");
    }
}

async fn a_scheduled_one_comes_by_itself(cluster: &Cluster, writers: &Writers) {
    led_by(cluster, "n1").await;
    let planned = cluster.json(&["switchover", "--to", "n3", "--at", "+1h", "--yes"]).await;
    let id = planned["failover"].as_str().expect("its id").to_owned();
    cluster.wait_status("the plan is shown", |view| view.planned_switchover.as_ref().is_some_and(|p| p.id == id)).await;
    // Another node hears of it a moment later.
    wait_for("n2 shows the plan", || async {
        let document = cluster.api("n2", "GET", "/cluster", &[], None).await.json();
        let shown = &document["scheduled_switchover"];
        let route = (shown["from"].as_str(), shown["to"].as_str());
        if route == (Some("n1"), Some("n3")) { Ok(()) } else { Err(document.to_string()) }
    })
    .await;
    cluster.refused(&["switchover", "--to", "n2", "--yes"], "ST2109", 4).await;
    cluster.run(&["switchover", "--cancel"]).await.exits(0);
    cluster.refused(&["switchover", "--cancel"], "ST2108", 2).await;

    cluster.run(&["switchover", "--to", "n3", "--at", "+2s", "--yes"]).await.exits(0);
    led_by(cluster, "n3").await;
    some_rows(writers).await;
    let last = change(cluster, "last-failover").await;
    let record = last.attempts.last().expect("an attempt");
    assert!(record.request.starts_with("sw_"), "{record:?}");
    assert_eq!(events(cluster, "failover-done").await, 3, "exactly one more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_leaves_a_dead_primary_to_people() {
    let cluster = Cluster::start(15, &[]).await;
    led_by(&cluster, "n1").await;
    let writers = Writers::start(&everywhere(&cluster)).await;
    some_rows(&writers).await;
    cluster.run(&["pause", "--for", "30min", "--reason", "cables"]).await.exits(0);
    cluster.wait_status("the pause is shown", |view| view.paused.is_some()).await;
    cluster.refused(&["switchover", "--at", "+1h", "--yes"], "ST2306", 4).await;
    cluster.crash("n1", "host").await;
    cluster.wait_status("the primary is gone", |view| !view.primary_up).await;
    // Long enough for an automatic failover, were there one.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert_eq!(cluster.status().await.expect("a view").epoch.0, 1, "paused");

    let ran = cluster.refused(&["failover", "--to", "n3"], "ST2302", 4).await;
    let error = &ran.json()["error"];
    assert!(error["hint"].to_string().contains("--accept-data-loss"), "{error}");
    assert_eq!(error["causes"].as_array().map(Vec::len), Some(2), "{error}");
    let answer = cluster.json(&["failover", "--best", "--accept-data-loss", "64MB", "--yes"]).await;
    let told: Change = serde_json::from_value(answer["failover"].clone()).expect("the change");
    assert_eq!(told.result, ChangeResult::Done, "{answer}");
    let winner = told.winner.expect("a winner").to_string();
    some_rows(&writers).await;
    cluster.run(&["resume"]).await.exits(0);
    cluster.restart("n1").await;
    led_by(&cluster, &winner).await;
    let ledger = writers.stop().await;
    let others = NODES.iter().copied().filter(|name| *name != winner);
    let order: Vec<&str> = std::iter::once(winner.as_str()).chain(others).collect();
    cluster.prove(&ledger, &order).await;
}
