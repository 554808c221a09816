//! A second cluster that follows a first one: through the first one's failover, through the loss of its own leader, and
//! to the day on which the first one is gone and the second takes the writes.

use e2e::faults::{Node, World, wait_for};
use e2e::oracle::Oracle;
use model::status::ClusterStatus;
use std::time::{Duration, Instant};

const CLIENTS: usize = 2;
const PACE: Duration = Duration::from_millis(5);

/// Where the database of `node` is, with the password of the followed cluster.
fn uri(node: &Node, of: &Node) -> String {
    let followed = of.uri();
    let (rest, _) = followed.rsplit_once('@').expect("user and host");
    format!("{rest}@127.0.0.1:{}/postgres", node.postgres_port)
}

fn value(uri: &str, query: &str) -> Result<String, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = e2e::connect(uri).await?;
        let messages = client.simple_query(query).await.map_err(|error| format!("{error:?}"))?;
        let value = messages.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        });
        value.ok_or_else(|| "no row".to_owned())
    })
}

/// A standby cluster of `b1` and `b2`, and the witness `b3` where wanted, that follows the cluster of `followed`.
fn standby(world: &World, followed: &Node, witness: bool) -> Vec<Node> {
    let mut nodes = vec![world.node("b1"), world.node("b2")];
    let token = followed.token("follower");
    let settings = world.settings();
    nodes[0].stemma(&["cluster", "follow", &token, "--name", "dr", "--settings", &settings]).done();
    nodes[0].start();
    nodes[0].wait_status("a leader that streams", |status| status.follow.as_ref().is_some_and(|it| it.streaming));
    nodes[1].join(&nodes[0].token("replica")).done();
    nodes[1].start();
    if witness {
        let mut third = world.witness("b3");
        third.join(&nodes[0].token("witness")).done();
        third.start();
        nodes.push(third);
    }
    nodes[0].wait_healthy(nodes.len());
    nodes
}

fn streams(status: &ClusterStatus) -> bool {
    status.follow.as_ref().is_some_and(|follow| follow.streaming)
}

/// Waits until `node` has applied what the cluster that is written has now.
fn catches_up(node: &str, written: &str) {
    let position = wait_for("a position", || value(written, "SELECT pg_current_wal_lsn()"));
    wait_for("the standby cluster to catch up", || {
        let there = value(node, &format!("SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn"))?;
        if there == "t" { Ok(()) } else { Err(value(node, "SELECT pg_last_wal_replay_lsn()")?) }
    });
}

fn kill(node: &mut Node) {
    node.kill();
    node.kill_server();
}

#[test]
fn it_follows_through_a_failover_and_takes_the_writes_when_the_first_cluster_is_gone() {
    let world = World::new();
    let mut first = world.cluster(3);
    let mut second = standby(&world, &first[0], false);
    let servers: Vec<String> =
        first.iter().map(Node::uri).chain(second.iter().map(|node| uri(node, &first[0]))).collect();
    let mut oracle = Oracle::paced(servers.clone(), CLIENTS, PACE);
    let writes = |what: &str, oracle: &Oracle| {
        let before = oracle.count();
        wait_for(what, || if oracle.count() > before + 100 { Ok(()) } else { Err(format!("{}", oracle.count())) });
    };
    writes("clients that write", &oracle);
    catches_up(&servers[3], &servers[0]);
    catches_up(&servers[4], &servers[0]);

    // Both sides say so, and the standby cluster takes no writes.
    let status = second[1].wait_status("the server that is followed", |status| {
        status.sentence.contains("follows cluster faults at 127.0.0.1")
    });
    let follow = status.follow.clone().expect("it follows");
    assert_eq!((follow.cluster.as_str(), follow.leader.as_ref().map(|it| it.as_str())), ("faults", Some("b1")));
    assert!(!status.primary_up, "{status:?}");
    assert!(status.nodes.iter().all(|node| node.role == model::Role::Replica), "nobody is the primary");
    let told = first[1].wait_status("a follower", |status| status.followers.iter().any(|it| it.streaming));
    assert_eq!(told.followers[0].cluster, "dr");
    let refused = value(&servers[4], "CREATE TABLE never (id int)").expect_err("read-only");
    assert!(refused.contains("25006") || refused.contains("read-only"), "{refused}");
    let (code, _) = second[0].http(b"GET /primary HTTP/1.0\r\n\r\n").expect("answers");
    assert_eq!(code, 503, "no load balancer sends writes here");

    // The primary's host of the first cluster dies; the standby cluster finds the new one by itself.
    let primary = first.iter().position(|node| node.name == told.primary.as_ref().expect("one").as_str()).expect("it");
    let old = format!("127.0.0.1:{}", first[primary].postgres_port);
    let died = Instant::now();
    kill(&mut first[primary]);
    second[1].wait_status("the new primary followed", |status| {
        let follow = status.follow.as_ref();
        streams(status)
            && follow.and_then(|it| it.host.clone()).is_some_and(|host| host != old)
            && follow.and_then(|it| it.timeline).is_some_and(|it| it.0 >= 2)
    });
    eprintln!("follows the new primary {:?} after the old one's death", died.elapsed());
    writes("clients that write on the new primary", &oracle);
    let now = first.iter().position(|node| value(&node.uri(), "SELECT pg_is_in_recovery()") == Ok("f".into()));
    catches_up(&servers[3], &servers[now.expect("a primary")]);
    catches_up(&servers[4], &servers[now.expect("a primary")]);
    assert!(oracle.lost().is_empty());

    // Without the accepted loss nothing is begun, and it is told how far behind it is.
    let trouble = second[0].stemma(&["cluster", "promote"]).refused("ST2402");
    assert!(trouble.to_string().contains("bytes of log behind cluster faults"), "{trouble}");
    assert!(trouble.hint.contains("--accept-data-loss"), "{trouble}");

    // All of the first cluster dies at once.
    let safe = oracle.acknowledged();
    std::thread::sleep(Duration::from_secs(1));
    let at_death = oracle.acknowledged();
    let died = Instant::now();
    first.iter_mut().for_each(kill);
    let status = second[0].wait_status("the loss noticed", |status| !streams(status));
    assert!(status.problems.iter().any(|problem| problem.code == "ST2403"), "{:?}", status.problems);
    let trouble = second[0].stemma(&["cluster", "promote", "--accept-data-loss", "0B", "--dry-run"]);
    eprintln!("stated: {} {}", trouble.json, trouble.stderr);
    let stated = second[0].status().expect("a status").follow.expect("it follows");
    let silent = stated.silent_seconds.expect("it was heard");
    assert!((silent - died.elapsed().as_secs_f64()).abs() < 5.0, "{silent} s against {:?}", died.elapsed());
    let promoted = Instant::now();
    second[0].stemma(&["cluster", "promote", "--accept-data-loss", "16MB", "--yes"]).done();
    wait_for("writes on the standby cluster", || {
        let written = oracle.count();
        if written > at_death.len() + 200 { Ok(()) } else { Err(format!("{written}")) }
    });
    eprintln!("writes {:?} after the promotion was asked for", promoted.elapsed());
    oracle.stop();
    let lost = oracle.lost();
    eprintln!(
        "acknowledged {}, lost {}, stated {:?} bytes as of the last word",
        oracle.count(),
        lost.len(),
        stated.behind_bytes
    );
    let early: Vec<&i64> = lost.iter().filter(|id| safe.contains(id)).collect();
    assert!(early.is_empty(), "acknowledged a second and more before the end, and lost: {early:?}");

    // From now on it is a cluster like any other.
    let status = second[1].wait_status("an ordinary cluster", |status| status.primary_up && status.follow.is_none());
    assert!(status.nodes.iter().any(|node| node.role == model::Role::Primary));
    let status = second[1].wait_healthy(2);
    assert_eq!(status.durability.acks, 1, "commits wait for the other node: {:?}", status.durability);
    let again = second[1].stemma(&["cluster", "promote", "--accept-data-loss", "16MB", "--yes"]).done();
    assert_eq!(
        again.json["outcome"]["changed"].as_bool().or(again.json["changed"].as_bool()),
        Some(false),
        "{again:?}"
    );
    second.iter_mut().for_each(Node::kill);
}

#[test]
fn another_node_streams_when_the_leader_is_lost_and_the_promoted_cluster_fails_over_by_itself() {
    let world = World::new();
    let first = world.cluster(1);
    let mut second = standby(&world, &first[0], true);
    let written = first[0].uri();
    value(&written, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS id; SELECT 1").expect("made");
    let at = uri(&second[1], &first[0]);
    catches_up(&at, &written);
    let died = Instant::now();
    kill(&mut second[0]);
    second[1].wait_status("another leader that streams", |status| {
        streams(status)
            && status.follow.as_ref().and_then(|it| it.leader.as_ref()).is_some_and(|it| it.as_str() == "b2")
    });
    eprintln!("b2 streams {:?} after the death of the leader", died.elapsed());
    value(&written, "INSERT INTO t SELECT generate_series(1001, 2000); SELECT 1").expect("written");
    catches_up(&at, &written);
    second[0].start();
    second[1].wait_healthy(3);

    // With the other side up: nothing is behind, and it is said that the other side goes on.
    second[1].stemma(&["switchover", "--yes"]).refused("ST2404");
    let said = second[1].stemma(&["cluster", "promote", "--accept-data-loss", "1MB", "--dry-run"]).done();
    assert!(said.json.to_string().contains("goes on taking writes"), "{said:?}");
    second[1].stemma(&["cluster", "promote", "--accept-data-loss", "1MB", "--yes"]).done();
    let primary = second[1].wait_whole(3);
    let index = second.iter().position(|node| node.name == primary).expect("a member");
    let other = 1 - index;
    assert_eq!(value(&uri(&second[index], &first[0]), "SELECT count(*) FROM t").expect("read"), "2000");
    value(&uri(&second[index], &first[0]), "INSERT INTO t VALUES (2001); SELECT 1").expect("it takes writes");
    value(&written, "INSERT INTO t VALUES (2002); SELECT 1").expect("the first cluster goes on by itself");

    // A failover of its own.
    kill(&mut second[index]);
    let at = uri(&second[other], &first[0]);
    wait_for("the other node to take writes", || value(&at, "INSERT INTO t VALUES (2003); SELECT 1"));
    assert_eq!(value(&at, "SELECT count(*) FROM t").expect("read"), "2002");
    second[index].start();
    second[other].wait_healthy(3);

    // The first cluster ends it on its side.
    first[0].stemma(&["cluster", "forget", "dr", "--yes"]).done();
    wait_for("the slot to go", || {
        let slots = value(&written, "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'stemma_f_dr%'")?;
        if slots == "0" { Ok(()) } else { Err(slots) }
    });
    first[0].stemma(&["cluster", "forget", "dr", "--yes"]).refused("ST2108");
}

/// The process of a server that has `title` in its name.
fn process(node: &Node, title: &str) -> Option<nix::unistd::Pid> {
    let titled = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|it| it.contains(title));
    e2e::faults::processes_below(&node.data_dir).into_iter().find(titled).map(nix::unistd::Pid::from_raw)
}

#[test]
fn what_a_copy_received_and_the_followed_cluster_lost_is_saved_and_taken_back() {
    use nix::sys::signal::{Signal, kill as signal};
    let world = World::new();
    let mut first = world.cluster(3);
    let second = standby(&world, &first[0], false);
    let (written, at) = (first[0].uri(), uri(&second[0], &first[0]));
    value(&written, "CREATE TABLE t (pad text); SELECT 1").expect("made");
    catches_up(&at, &written);

    // The replicas of the primary hear no more; the standby cluster does, more than any buffer holds on the way.
    let deaf: Vec<_> = first[1..].iter().map(|node| process(node, "walreceiver").expect("a receiver")).collect();
    deaf.iter().for_each(|pid| signal(*pid, Signal::SIGSTOP).expect("stopped"));
    let writer = {
        let written = written.clone();
        std::thread::spawn(move || {
            let much = "INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 60000); SELECT 1";
            value(&written, much).is_err()
        })
    };
    wait_for("the standby cluster to be ahead", || {
        let rows = value(&at, "SELECT count(*) FROM t")?;
        if rows == "60000" { Ok(()) } else { Err(rows) }
    });
    kill(&mut first[0]);
    deaf.iter().for_each(|pid| signal(*pid, Signal::SIGCONT).expect("goes on"));
    assert!(writer.join().expect("the writer ends"), "nobody acknowledged it");
    let status = first[1].wait_status("a new primary", |status| status.primary_up && status.epoch.0 > 1);
    let primary = first.iter().find(|node| status.primary.as_ref().is_some_and(|it| it.as_str() == node.name));
    let written = primary.expect("a member").uri();

    // Both copies come back to the history that is the cluster's now.
    value(&written, "CREATE TABLE after AS SELECT 1 AS id; SELECT 1").expect("it takes writes");
    for node in &second {
        let at = uri(node, &first[0]);
        // By content: its position on the branch that was lost may be the higher one.
        let rows = "SELECT count(*) FROM t, after";
        wait_for("the rows that were not lost", || {
            let (ours, theirs) = (value(&at, rows)?, value(&written, rows)?);
            if ours == theirs { Ok(()) } else { Err(format!("{ours} {theirs}")) }
        });
        wait_for("what only the copy held to be listed", || {
            let saved = node.stemma(&["rescue", "list"]).done().json;
            let found = saved["rescues"].as_array().is_some_and(|all| !all.is_empty());
            if found { Ok(()) } else { Err(saved.to_string()) }
        });
    }
    let status = second[0].wait_healthy(2);
    assert!(streams(&status), "{status:?}");
    let history = second[0].stemma(&["history"]).done().json.to_string();
    assert!(history.contains("node-rewound"), "rewound, not copied anew: {history}");
}

#[test]
fn what_cannot_follow_is_refused_with_code_reason_and_hint() {
    let world = World::new();
    let first = world.cluster(1);
    let node = world.node("b1");
    let follow = |token: &str| node.stemma(&["cluster", "follow", token, "--name", "dr"]);
    follow("nonsense").refused("ST8001");
    let trouble = follow(&first[0].token("replica")).refused("ST8001");
    assert!(trouble.hint.contains("--role follower"), "{trouble}");
    let token = first[0].token("follower");
    let trouble = node.stemma(&["join", &token]).refused("ST8001");
    assert!(trouble.hint.contains("stemma cluster follow"), "{trouble}");
    let witness = world.witness("b2");
    witness.stemma(&["cluster", "follow", &token, "--name", "dr"]).refused("ST2111");
    // One letter in the middle is another: the last ones may be padding.
    let (before, after) = token.split_at(token.len() / 2);
    let other = if after.starts_with('x') { "y" } else { "x" };
    follow(&format!("{before}{other}{}", &after[1..])).refused("ST8001");
    first[0].stemma(&["cluster", "promote", "--accept-data-loss", "1MB"]).refused("ST2401");
    first[0].stemma(&["cluster", "promote", "--accept-data-loss", "much"]).refused("ST1301");
    follow(&token).done();
    follow(&token).refused("ST1208");
    let other = world.node("b3");
    let trouble = other.stemma(&["cluster", "follow", &token, "--name", "dr2"]).refused("ST8001");
    assert!(trouble.reason.contains("used already"), "{trouble}");
    let again = first[0].token("follower");
    other.stemma(&["cluster", "follow", &again, "--name", "dr"]).refused("ST2102");
}
