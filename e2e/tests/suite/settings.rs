//! Cluster settings: shown, planned, applied, rolled back, guarded against two people at once; and parameters that
//! need a restart, up and down.

use e2e::{Cluster, Writers, wait_for};
use serde_json::json;
use std::time::Duration;

const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// How long writers may stand still while servers restart, the primary's restart included.
const PAUSE_MAX: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn settings_are_versioned_and_restarts_come_in_the_safe_order() {
    let cluster = Cluster::start(15, &[]).await;
    versions_and_files(&cluster).await;
    two_people_at_once(&cluster).await;
    let writers = Writers::start(&cluster.node("n1").uri).await;
    // The primary comes last when a parameter grows, first when it shrinks: a replica may never have less than it.
    change_max_connections(&cluster, &writers, "60", "80", &["n2", "n3", "n1"]).await;
    change_max_connections(&cluster, &writers, "80", "50", &["n1", "n2", "n3"]).await;
    let ledger = writers.stop().await;
    cluster.prove(&ledger, &NODES).await;
}

async fn wait_parameter(cluster: &Cluster, name: &str, value: &str) {
    for node in NODES {
        cluster.wait_value(node, &format!("SHOW {name}"), value).await;
    }
}

async fn versions_and_files(cluster: &Cluster) {
    let first = cluster.json(&["config", "show"]).await;
    assert_eq!((&first["version"], &first["settings"]["commit_mode"]), (&json!(1), &json!("semi-sync")));
    // What is shown can be edited and given back.
    let shown = cluster.run(&["config", "show"]).await.exits(0).stdout;
    let file = cluster.directory.join("settings.toml.edited");
    let path = file.display().to_string();
    std::fs::write(&file, &shown).expect("writable");
    cluster.run(&["config", "plan", &path]).await.exits(0);
    let edited = shown.replace("[postgresql.parameters]", "[postgresql.parameters]\nwork_mem = \"7MB\"");
    assert_ne!(edited, shown, "the settings of a sandbox have parameters: {shown}");
    std::fs::write(&file, &edited).expect("writable");
    let plan = cluster.run(&["config", "plan", &path, "-o", "json"]).await.exits(8).json();
    let wanted = json!([{ "key": "postgresql.parameters.work_mem", "old": null, "new": "7MB", "class": "reload" }]);
    for (field, value) in wanted[0].as_object().expect("an object") {
        assert_eq!(&plan["changes"][0][field], value, "{plan}");
    }
    assert_eq!(cluster.json(&["config", "show"]).await["version"], 1, "a plan changes nothing");
    cluster.run(&["config", "apply", &path, "--reason", "more memory"]).await.exits(0);
    wait_parameter(cluster, "work_mem", "7MB").await;
    cluster.run(&["config", "apply", &path]).await.exits(0);
    assert_eq!(cluster.json(&["config", "show"]).await["version"], 2, "applying the same again is no new version");
    cluster.run(&["config", "set", "postgresql.parameters.work_mem=9MB", "lag_warn=20s"]).await.exits(0);
    wait_parameter(cluster, "work_mem", "9MB").await;
    cluster.run(&["config", "rollback", "1"]).await.exits(0);
    wait_parameter(cluster, "work_mem", "4MB").await;
    let last = cluster.json(&["config", "show"]).await;
    assert_eq!((&last["version"], &last["settings"]), (&json!(4), &first["settings"]));
    let history = cluster.json(&["config", "history"]).await;
    let versions = history["history"].as_array().expect("a list");
    let told: Vec<_> = versions.iter().map(|one| (one["version"].as_u64(), one["reason"].as_str())).collect();
    assert_eq!(told[..2], [(Some(1), Some("the cluster was made")), (Some(2), Some("more memory"))]);
    assert_eq!(told.len(), 4);
    cluster.refused(&["config", "rollback", "99"], "ST2108", 2).await;
    cluster.refused(&["config", "set", "comit_mode=sync"], "ST1102", 2).await;
    cluster.refused(&["config", "set", "postgresql.parameters.port=1"], "ST1103", 2).await;
}

/// Both read version 4; the first to write wins, the second is told.
async fn two_people_at_once(cluster: &Cluster) {
    // Another node than the one that was asked to change them hears of it a moment later.
    let (read, tag) = wait_for("n2 has version 4", || async {
        let read = cluster.api("n2", "GET", "/v1/settings", &[], None).await;
        let tag = read.header("etag").expect("settings have a version").to_owned();
        if tag == "\"4\"" { Ok((read, tag)) } else { Err(tag) }
    })
    .await;
    let body = |span: &str| {
        let mut settings = read.json()["settings"].clone();
        settings["lag_warn"] = json!(span);
        json!({ "settings": settings })
    };
    let put = |span: &'static str| {
        let (tag, body) = (tag.clone(), body(span));
        async move { cluster.api("n3", "PUT", "/v1/settings", &[("if-match", &tag)], Some(&body)).await }
    };
    let first = put("11s").await;
    assert_eq!(first.status, 200, "{first:?}");
    let second = put("12s").await;
    assert_eq!((second.status, second.json()["code"].as_str()), (412, Some("ST2106")), "{second:?}");
    let after = cluster.json(&["config", "show"]).await;
    assert_eq!((&after["version"], &after["settings"]["lag_warn"]), (&json!(5), &json!("11s")));
}

async fn change_max_connections(cluster: &Cluster, writers: &Writers, old: &str, new: &str, order: &[&str]) {
    let assignment = format!("postgresql.parameters.max_connections={new}");
    cluster.run(&["config", "set", &assignment]).await.exits(0);
    cluster
        .wait_status("every node waits for a restart", |view| {
            view.nodes.iter().all(|node| {
                let found = node.pending_restart.get("max_connections");
                found.is_some_and(|pending| pending.old == old && pending.new == new)
            })
        })
        .await;
    for node in NODES {
        assert_eq!(cluster.value(node, "SHOW max_connections").await, old, "{node} changes only when it is restarted");
    }
    writers.ledger.take_longest_pause();
    let ran = cluster.run(&["restart", "--rolling", "--pending", "--yes", "-o", "json"]).await.exits(0);
    let pause = writers.ledger.take_longest_pause();
    assert!(pause < PAUSE_MAX, "writers stood still for {pause:?}");
    let operation = ran.json()["operation"].clone();
    assert_eq!(operation["state"]["state"], "succeeded", "{operation}");
    let view = cluster.status().await.expect("a node answers");
    let name = |id: &serde_json::Value| {
        let node = view.nodes.iter().find(|node| Some(node.id.0) == id.as_u64());
        node.map_or_else(|| format!("{id}"), |node| node.name.to_string())
    };
    let steps = operation["steps"].as_array().expect("steps");
    let restarted: Vec<String> = steps.iter().map(|step| name(&step["node"])).collect();
    assert_eq!(restarted, order);
    for node in NODES {
        assert_eq!(cluster.value(node, "SHOW max_connections").await, new);
    }
    cluster.wait_healthy().await;
    cluster.wait_status("nothing waits", |view| view.nodes.iter().all(|node| node.pending_restart.is_empty())).await;
}
