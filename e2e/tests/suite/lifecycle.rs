//! Three nodes on every supported major version: healthy, replicating, and telling so in all views.

use e2e::{Cluster, Writers, majors, request};
use model::status::Verdict;
use serde_json::Value;
use std::collections::BTreeSet;

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_replicate_and_say_so_on_every_major_version() {
    for (major, _) in majors() {
        let cluster = Cluster::start(major, &[]).await;
        status_is_as_documented(&cluster, major).await;
        writes_are_read_everywhere(&cluster).await;
        replication_status_keeps_its_promised_form(&cluster).await;
        a_check_tells_by_its_exit_status(&cluster).await;
    }
}

async fn writes_are_read_everywhere(cluster: &Cluster) {
    let writers = Writers::start(&cluster.node("n1").uri).await;
    cluster.execute("n1", "CREATE TABLE words (word text); INSERT INTO words VALUES ('größer')").await;
    for replica in ["n2", "n3"] {
        cluster.wait_value(replica, "SELECT to_regclass('words') IS NOT NULL", "t").await;
        cluster.wait_value(replica, "SELECT word FROM words", "größer").await;
        let refused = cluster.sql(replica).await.batch_execute("INSERT INTO words VALUES ('x')").await;
        let refused = refused.expect_err("a replica takes no writes");
        assert_eq!(refused.code().map(|code| code.code()), Some("25006"), "{refused:?}");
    }
    let ledger = writers.stop().await;
    cluster.prove(&ledger, &["n1", "n2", "n3"]).await;
    assert_eq!(ledger.unanswered(), 0);
}

/// The fields that programs rely on, each with its type. A field may be added; none of these may go or change.
async fn status_is_as_documented(cluster: &Cluster, major: u32) {
    let view = cluster.json(&["status"]).await;
    check_fields(
        &view,
        "schema_version:n cluster:s cluster_id:s verdict:s sentence:s observer:s observed_at:n epoch:n primary:s \
         primary_up:b engine:s system_id:s durability:o nodes:a problems:a consensus:o settings_version:n operation:-",
    );
    check_fields(
        &view["durability"],
        "mode:s acks:n acks_wanted:n voters:a strict:b in_force:b failures_tolerated:n loss_now_bytes:n sentence:s",
    );
    let nodes = view["nodes"].as_array().expect("a list");
    let names: Vec<&str> = nodes.iter().filter_map(|node| node["name"].as_str()).collect();
    assert_eq!(names, ["n1", "n2", "n3"], "the primary comes first, then by name");
    for node in nodes {
        check_fields(
            node,
            "id:n name:s role:s kind:s cascading:b site:s keeper_up:b sample_age_ms:n server:s stage:s healthy:b \
             sync:s voter:b link_up:b timeline:n position:s version:s postgres_address:s api_address:s \
             peer_address:s priority:n pending_restart:o disk_used_percent:n connections:n keeper_pid:n \
             program_version:s settings_version:n started_at:n certificate_expires_at:n",
        );
    }
    for replica in &nodes[1..] {
        check_fields(replica, "upstream:s link:s lag:o replayed:s");
        check_fields(&replica["lag"], "apply_bytes:n receive_bytes:n seconds:n method:s");
        assert_eq!((&replica["upstream"], &replica["link"]), (&"n1".into(), &"streaming".into()));
    }
    // The rule takes up its voters one after the other; the cluster takes writes before the last of them counts.
    let settled = cluster.wait_status("both replicas are voters", |view| view.durability.failures_tolerated == 1).await;
    assert_eq!((settled.schema_version, settled.verdict), (1, Verdict::Healthy));
    assert!(settled.engine.starts_with(&format!("PostgreSQL {major}.")), "{}", settled.engine);
    let durability = &settled.durability;
    assert_eq!((durability.mode.as_str(), durability.acks), ("semi-sync", 1));
    assert_eq!(durability.voters.iter().map(String::as_str).collect::<BTreeSet<_>>(), ["n2", "n3"].into());
    assert!(settled.problems.is_empty(), "{:?}", settled.problems);
}

/// `NAME:TYPE ...` where the type is `s`tring, `n`umber, `b`oolean, `o`bject, `a`rray, or `-` for any.
fn check_fields(document: &Value, fields: &str) {
    for field in fields.split_whitespace() {
        let (name, kind) = field.split_once(':').expect("NAME:TYPE");
        let value = document.get(name).unwrap_or_else(|| panic!("`{name}` is missing in {document}"));
        let fits = match kind {
            "s" => value.is_string(),
            "n" => value.is_number(),
            "b" => value.is_boolean(),
            "o" => value.is_object(),
            "a" => value.is_array(),
            other => other == "-",
        };
        assert!(fits, "`{name}` should be of type {kind}: {value}");
    }
}

async fn replication_status_keeps_its_promised_form(cluster: &Cluster) {
    let primary = cluster.status().await.expect("a node answers").nodes[0].postgres_address.clone();
    for node in ["n1", "n2", "n3"] {
        let port = cluster.node(node).api_port;
        let answer = request(port, "GET", "/admin/replication/status", &[], None).await.expect("the API answers");
        assert_eq!(answer.status, 200, "{answer:?}");
        let document = answer.json();
        assert_eq!(document["primary"], Value::from(primary.as_str()), "{document}");
        let replicas = document["replicas"].as_array().expect("a list");
        assert_eq!(replicas.len(), 2);
        for replica in replicas {
            check_fields(replica, "host:s lag_bytes:n lag_seconds:n status:s");
            assert_eq!(replica["status"], "streaming", "{document}");
        }
        let status = |path: &'static str| async move { request(port, "GET", path, &[], None).await.map(|a| a.status) };
        let (writable, readable) = if node == "n1" { (200, 503) } else { (503, 200) };
        assert_eq!(status("/primary").await.expect("answers"), writable, "{node}");
        assert_eq!(status("/replica").await.expect("answers"), readable, "{node}");
        assert_eq!(status("/health").await.expect("answers"), 200, "{node}");
    }
}

async fn a_check_tells_by_its_exit_status(cluster: &Cluster) {
    cluster.run(&["status", "--check"]).await.exits(0);
    cluster.crash("n3", "host").await;
    cluster.wait_status("not healthy", |view| view.verdict == Verdict::Degraded).await;
    let ran = cluster.run(&["status", "--check", "-o", "json"]).await.exits(8);
    let problems = ran.json()["problems"].clone();
    let about = |problem: &Value| problem["node"] == "n3";
    let problem = problems.as_array().and_then(|problems| problems.iter().find(|problem| about(problem)));
    check_fields(
        problem.unwrap_or_else(|| panic!("none about n3: {problems}")),
        "code:s what:s cause:s next:s for_ms:n",
    );
    cluster.run(&["status"]).await.exits(0);
    cluster.restart("n3").await;
    cluster.wait_healthy().await;
    cluster.run(&["status", "--check"]).await.exits(0);
}
