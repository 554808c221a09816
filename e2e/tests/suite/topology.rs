//! Larger clusters: cascades, witnesses, tablespaces; and all of it losing power at once.

use e2e::{Cluster, Writers, wait_for};
use model::Role;
use model::status::{ClusterStatus, LinkStatus, Verdict};

const DATA_NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];

#[tokio::test(flavor = "multi_thread")]
async fn a_cascade_and_a_witness_survive_the_loss_of_everything_at_once() {
    let arguments = ["--nodes", "4", "--cascade", "n4:n3", "--witnesses", "1"];
    let cluster = Cluster::start(15, &arguments).await;
    let view = cluster.wait_status("all five are settled", is_as_built).await;
    assert_eq!(view.consensus.voters.len(), 5, "{:?}", view.consensus);
    the_tree_shows_the_cascade_under_its_upstream(&cluster).await;
    let receives_from = cluster.value("n4", "SELECT sender_port FROM pg_stat_wal_receiver").await;
    assert!(cluster.node("n3").uri.contains(&format!(":{receives_from}/")), "n4 receives from port {receives_from}");
    let writers = Writers::start(&cluster.node("n1").uri).await;
    // Else whoever is back first may take over.
    cluster.run(&["pause", "--for", "1h"]).await.exits(0);
    wait_for_rows(&writers, 200).await;
    everything_dies(&cluster).await;
    cluster.refused(&["status", "--check"], "ST2114", 7).await;
    let directory = cluster.directory.display().to_string();
    e2e::run(&["sandbox", "start", "--dir", &directory]).await.exits(0);
    cluster.wait_status("as it was", is_as_built).await;
    let before = writers.ledger.count();
    wait_for_rows(&writers, 50).await;
    let ledger = writers.stop().await;
    assert!(before >= 200);
    cluster.prove(&ledger, &DATA_NODES).await;
}

fn is_as_built(view: &ClusterStatus) -> bool {
    let role = |name: &str| view.node(name).map(|node| node.role);
    let cascade = view.node("n4").is_some_and(|node| {
        let upstream = node.upstream.as_ref().map(|name| name.as_str());
        node.cascading && upstream == Some("n3") && node.link == Some(LinkStatus::Streaming)
    });
    view.verdict == Verdict::Healthy
        && view.nodes.len() == 5
        && role("n1") == Some(Role::Primary)
        && role("w1") == Some(Role::Witness)
        && cascade
        && view.durability.voters.len() == 2
        && view.durability.in_force
}

async fn the_tree_shows_the_cascade_under_its_upstream(cluster: &Cluster) {
    let text = cluster.run(&["status"]).await.exits(0).stdout;
    let place = |name: &str| {
        let lines = text.lines().enumerate();
        let mut found = lines.filter_map(|(number, line)| Some((number, line.find(&format!("{name} "))?)));
        found.next().unwrap_or_else(|| panic!("no {name} in\n{text}"))
    };
    let (upstream, cascade) = (place("n3"), place("n4"));
    assert_eq!(cascade.0, upstream.0 + 1, "n4 stands below n3:\n{text}");
    assert!(cascade.1 > upstream.1, "n4 is set in deeper than n3:\n{text}");
    assert!(text.contains("w1"), "{text}");
}

async fn wait_for_rows(writers: &Writers, more: usize) {
    let goal = writers.ledger.count() + more;
    wait_for("rows are acknowledged", || async {
        let count = writers.ledger.count();
        if count >= goal { Ok(()) } else { Err(format!("{count} of {goal}")) }
    })
    .await;
}

/// As when the power fails: every keeper and every server, side by side.
async fn everything_dies(cluster: &Cluster) {
    let names: Vec<String> = cluster.nodes.keys().cloned().collect();
    let kills = names.iter().map(|name| {
        let directory = cluster.directory.display().to_string();
        let name = name.clone();
        tokio::spawn(async move {
            e2e::run(&["sandbox", "crash", &name, "--what", "host", "--dir", &directory]).await.exits(0);
        })
    });
    for kill in kills.collect::<Vec<_>>() {
        kill.await.expect("killed");
    }
    for name in DATA_NODES {
        assert!(cluster.server_processes(name).is_empty(), "{name} still runs");
    }
}

/// Servers on one machine cannot share the directory of a tablespace, so clones place theirs elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn tablespaces_are_placed_anew_by_a_clone() {
    // Of two: where a majority can be had without it, a primary that promises nothing stops when it is alone.
    let cluster = Cluster::start(15, &["--nodes", "2"]).await;
    let place = cluster.directory.join("n1/tablespaces/fast");
    std::fs::create_dir_all(&place).expect("writable");
    let owner = std::fs::metadata(&cluster.node("n1").data_dir).expect("the server's data");
    std::os::unix::fs::chown(&place, Some(std::os::unix::fs::MetadataExt::uid(&owner)), None)
        .expect("as root or owner");
    // A running replica would replay this into the directory of its primary, so there is none when it is made.
    cluster.run(&["config", "set", "commit_mode=async"]).await.exits(0);
    cluster.wait_status("async", |view| view.durability.acks == 0 && view.durability.in_force).await;
    cluster.crash("n2", "host").await;
    std::fs::remove_dir_all(&cluster.node("n2").data_dir).expect("removable");
    cluster.execute("n1", &format!("CREATE TABLESPACE fast LOCATION '{}'", place.display())).await;
    let table = "CREATE TABLE quick (id int) TABLESPACE fast; INSERT INTO quick SELECT generate_series(1, 1000)";
    cluster.execute("n1", table).await;
    cluster.restart("n2").await;
    cluster.wait_value("n2", "SELECT count(*) FROM quick", "1000").await;
    cluster.wait_healthy().await;
    let mut places = std::collections::BTreeSet::new();
    for node in ["n1", "n2"] {
        let link = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'";
        let location = cluster.value(node, link).await;
        assert!(location.contains(&format!("/{node}/")), "{node} has it in {location}");
        assert!(places.insert(location), "two servers share {places:?}");
    }
    cluster.execute("n1", "INSERT INTO quick VALUES (1001)").await;
    cluster.wait_applied("n1", &["n2"]).await;
    assert_eq!(cluster.value("n2", "SELECT count(*) FROM quick").await, "1001");
}
