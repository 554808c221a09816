//! What is shown of a cluster is so: lag, health checks, certificates, slots and what is known while keepers are dead.
//! All against real servers.

use anyhow::{anyhow, ensure};
use e2e::net::{Node, PATIENCE, Sandbox, alive, http, node_of, problem_of, signal, wait_for};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The lag of a node as one observer judges it: seconds and bytes.
fn lag(observer: &Node, name: &str) -> anyhow::Result<(f64, u64)> {
    let node = observer.sees(name)?;
    let (seconds, bytes) = (node["lag"]["seconds"].as_f64(), node["lag"]["apply_bytes"].as_u64());
    seconds.zip(bytes).ok_or_else(|| anyhow!("lag of {name} is unknown: {node:#}"))
}

/// The value of a metric about a node.
fn metric(text: &str, name: &str, node: &str) -> Option<f64> {
    let about = |line: &&str| {
        line.starts_with(name) && line.contains(&format!("=\"{node}\"")) && line.contains("stage=\"apply\"")
    };
    text.lines().find(about)?.rsplit(' ').next()?.parse().ok()
}

/// Every view of one observer shows the one judged lag of `name`. Its bytes must stand still meanwhile.
fn same_in_every_view(cluster: &Sandbox, observer: &str, name: &str) {
    let node = cluster.node(observer);
    let (before, bytes) = lag(node, name).expect("judged");
    let replication = node.get("/admin/replication/status").expect("an answer").json();
    let metrics = node.get("/metrics").expect("an answer").body;
    let shown = cluster.stemma(&["status", "-o", "json"]).json();
    let (after, bytes_after) = lag(node, name).expect("judged");
    assert_eq!(bytes, bytes_after, "{name} moved meanwhile");
    let rows = replication["replicas"].as_array().expect("replicas");
    let row = rows.iter().find(|row| row["name"] == name).expect("a row");
    let words = node_of(&shown, name).expect("shown")["lag"].clone();
    let seconds = [
        ("/admin/replication/status", row["lag_seconds"].as_f64()),
        ("/metrics", metric(&metrics, "stemma_replication_lag_seconds", name)),
        // Another observer may be asked, whose look is at most a sample apart.
        ("stemma status", words["seconds"].as_f64()),
    ];
    for (view, seconds) in seconds {
        let seconds = seconds.unwrap_or_else(|| panic!("{view} does not tell the lag of {name}\n{metrics}"));
        assert!(seconds >= before - 1.5 && seconds <= after + 1.5, "{view}: {seconds} s, not {before} to {after}");
    }
    assert_eq!(row["lag_bytes"].as_u64(), Some(bytes));
    assert_eq!(words["apply_bytes"].as_u64(), Some(bytes));
    assert_eq!(metric(&metrics, "stemma_replication_lag_bytes", name), Some(bytes as f64));
}

fn nothing_diverged(status: &Value) {
    for code in ["ST3010", "ST3011", "ST3022"] {
        let problems = status["problems"].as_array().expect("problems");
        assert!(problems.iter().all(|problem| problem["code"] != code), "{status:#}");
    }
}

#[test]
fn lag_is_told_right_where_others_lie() {
    let cluster = Sandbox::start(&["--nodes", "3"]);
    cluster.wait_healthy("n1");
    let (n1, n2, n3) = (cluster.node("n1"), cluster.node("n2"), cluster.node("n3"));
    n1.value("CREATE TABLE t (id bigserial, pad text)").expect("a table");

    // An idle primary: lag stays low and does not grow.
    wait_for("both are in step", PATIENCE, || {
        for (observer, name) in [(n1, "n2"), (n1, "n3"), (n2, "n2"), (n2, "n3")] {
            let (seconds, bytes) = lag(observer, name)?;
            ensure!(seconds < 0.5 && bytes < 10_000, "{name}: {seconds} s, {bytes} B");
        }
        Ok(())
    });
    let began = Instant::now();
    // Servers write of themselves now and then (running transactions, checkpoints, statistics): the samples of two
    // servers may be taken before and after, but no two seconds long.
    let mut in_step_at = BTreeMap::new();
    while began.elapsed() < Duration::from_secs(20) {
        for name in ["n2", "n3"] {
            for (place, observer) in [n1, n2].into_iter().enumerate() {
                let (seconds, bytes) = lag(observer, name).expect("known");
                assert!(seconds < 1.0, "idle {:?}: {name} {seconds} s, {bytes} B", began.elapsed());
                let last = in_step_at.entry((name, place)).or_insert_with(Instant::now);
                if bytes < 10_000 {
                    *last = Instant::now();
                }
                assert!(last.elapsed() < Duration::from_secs(2), "idle {:?}: {name} {bytes} B", began.elapsed());
            }
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    same_in_every_view(&cluster, "n1", "n2");

    // Heavy writes: a replica sampled after the primary looks ahead of it. That is no lag and no divergence.
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, node) = (stop.clone(), n1.clone());
        std::thread::spawn(move || {
            let sql = node.sql().expect("a connection");
            while !stop.load(Ordering::Relaxed) {
                sql.rows("INSERT INTO t (pad) SELECT repeat('x', 200) FROM generate_series(1, 500)").expect("a write");
            }
        })
    };
    let began = Instant::now();
    let mut ahead = 0;
    while began.elapsed() < Duration::from_secs(6) {
        for observer in [n1, n2, n3] {
            let status = observer.status().expect("an answer");
            nothing_diverged(&status);
            let written = node_of(&status, "n1").expect("n1")["position"].as_str().map(position);
            for name in ["n2", "n3"] {
                let node = node_of(&status, name).expect("a node");
                ahead += usize::from(node["position"].as_str().map(position) > written);
                assert!(node["lag"]["seconds"].as_f64().is_some_and(|seconds| seconds >= 0.0), "{node:#}");
                assert_eq!(node["stage"], "active");
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("the writer ends well");
    eprintln!("a replica looked ahead of the primary's sample {ahead} times");
    cluster.wait_healthy("n1");

    // Replay paused: what is received is not applied.
    n2.value("SELECT pg_wal_replay_pause()").expect("paused");
    n1.value("INSERT INTO t (pad) SELECT repeat('y', 200) FROM generate_series(1, 20000)").expect("a write");
    frozen_replay(&cluster, "n2", "paused");
    n2.value("SELECT pg_wal_replay_resume()").expect("resumed");
    cluster.wait_healthy("n1");

    // Replay frozen: the startup process does not run at all.
    let startup = n3.server_process("startup").expect("a startup process");
    signal(startup, Signal::SIGSTOP);
    n1.value("INSERT INTO t (pad) SELECT repeat('z', 200) FROM generate_series(1, 20000)").expect("a write");
    frozen_replay(&cluster, "n3", "not applied");
    signal(startup, Signal::SIGCONT);
    cluster.wait_healthy("n1");
    nothing_diverged(&n1.status().expect("an answer"));
}

fn position(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("a position");
    let hex = |part: &str| u64::from_str_radix(part, 16).expect("hexadecimal");
    hex(high) << 32 | hex(low)
}

fn frozen_replay(cluster: &Sandbox, name: &str, cause: &str) {
    let n1 = cluster.node("n1");
    let first = wait_for("lag is shown", PATIENCE, || {
        let (seconds, bytes) = lag(n1, name)?;
        ensure!(seconds > 1.0 && bytes > 1_000_000, "{seconds} s, {bytes} B");
        Ok(seconds)
    });
    let began = Instant::now();
    let later = wait_for("lag grows with time", PATIENCE, || {
        let (seconds, _) = lag(n1, name)?;
        ensure!(seconds > first + 3.0, "{seconds} s after {first} s");
        Ok(seconds)
    });
    let passed = began.elapsed().as_secs_f64();
    assert!((later - first - passed).abs() < 2.0, "lag grew by {} s in {passed} s", later - first);
    let problem = cluster.wait("frozen replay is shown", "n1", |status| problem_of(status, "ST3012", name));
    assert!(problem["cause"].as_str().is_some_and(|text| text.contains(cause)), "{problem:#}");
    same_in_every_view(cluster, "n1", name);
    let node = cluster.node(name);
    assert_eq!(node.health("/replica").expect("an answer"), 200, "Patroni's meaning: no bound, no matter");
    assert_eq!(node.health("/replica?lag=1MB").expect("an answer"), 503);
    assert_eq!(node.health("/replica?lag=1s").expect("an answer"), 503);
    assert_eq!(node.health("/readiness?lag=1GB").expect("an answer"), 503, "frozen is not ready");
}

/// Checks the health table of a node: paths that say yes; all others say no.
fn says_yes_to(node: &Node, yes: &[&str]) {
    const PATHS: [&str; 15] = [
        "/",
        "/primary",
        "/leader",
        "/replica",
        "/read-only",
        "/sync",
        "/quorum",
        "/async",
        "/read-only-sync",
        "/read-only-quorum",
        "/health",
        "/readiness",
        "/standby-leader",
        "/read-write",
        "/replica?lag=1GB",
    ];
    wait_for(&format!("{} says yes to {yes:?} alone", node.name), PATIENCE, || {
        for path in PATHS {
            let status = node.health(path)?;
            let wanted = if yes.contains(&path) { 200 } else { 503 };
            ensure!(status == wanted, "{} {path}: {status}: {}", node.name, node.get(path)?.body);
        }
        ensure!(node.health("/liveness")? == 200, "the keeper lives");
        Ok(())
    });
}

const PRIMARY: [&str; 9] = [
    "/",
    "/primary",
    "/leader",
    "/read-only",
    "/read-only-sync",
    "/read-only-quorum",
    "/health",
    "/readiness",
    "/read-write",
];

#[test]
fn health_checks_answer_by_role_and_state() {
    let options = ["--nodes", "5", "--witnesses", "1", "--cascade", "n4:n2", "--commit-mode", "sync"];
    let cluster = Sandbox::start(&options);
    let node = |name: &str| cluster.node(name);
    for arguments in [
        ["node", "set", "n3", "--kind", "standby"].as_slice(),
        &["node", "set", "n5", "--kind", "delayed", "--delay", "1h"],
    ] {
        let said = cluster.stemma(arguments);
        assert_eq!(said.code, 0, "{said:?}");
    }
    let hot = ["/replica", "/read-only", "/health", "/readiness", "/replica?lag=1GB"];
    says_yes_to(node("n1"), &PRIMARY);
    says_yes_to(node("n2"), &[hot.as_slice(), &["/sync", "/read-only-sync"]].concat());
    says_yes_to(node("n4"), &[hot.as_slice(), &["/async"]].concat());
    // Dedicated to failover: never routed to, but ready.
    says_yes_to(node("n3"), &["/health", "/readiness"]);
    says_yes_to(node("n5"), &["/health", "/readiness"]);
    says_yes_to(node("w1"), &[]);
    assert_eq!(cluster.wait("n3 is standby", "n1", |status| Some(node_of(status, "n3")?["kind"].clone())), "standby");

    // One of several whose acknowledgement counts: /quorum instead of /sync.
    let said = cluster.stemma(&["config", "set", "commit_mode=semi-sync", "--yes"]);
    assert_eq!(said.code, 0, "{said:?}");
    says_yes_to(node("n2"), &[hot.as_slice(), &["/quorum", "/read-only-quorum"]].concat());

    documents(&cluster);

    // A frozen server answers nobody; its keeper says so.
    cluster.act(&["freeze", "n2", "--what", "postgres"]);
    says_yes_to(node("n2"), &[]);
    cluster.act(&["thaw", "n2", "--what", "postgres"]);
    says_yes_to(node("n2"), &[hot.as_slice(), &["/quorum", "/read-only-quorum"]].concat());

    // A server that cannot start.
    node("n2").value("ALTER SYSTEM SET shared_preload_libraries = 'there_is_no_such_library'").expect("broken");
    cluster.act(&["crash", "n2", "--what", "postgres"]);
    says_yes_to(node("n2"), &[]);
    wait_for("the reason is told", PATIENCE, || {
        let reason = node("n2").get("/replica")?.json()["reason"].to_string();
        ensure!(reason.contains("could not access file") && !reason.contains('\n'), "{reason}");
        Ok(())
    });
    std::fs::write(node("n2").data_dir.join("postgresql.auto.conf"), "").expect("mended");
    says_yes_to(node("n2"), &[hot.as_slice(), &["/quorum", "/read-only-quorum"]].concat());

    // No majority: what runs is served; what is asked to change is refused.
    for name in ["n2", "n3", "n4", "n5", "w1"] {
        cluster.act(&["crash", name, "--what", "keeper"]);
    }
    cluster.wait("no majority is shown", "n1", |status| {
        let problems = status["problems"].as_array()?;
        problems.iter().find(|problem| problem["code"] == "ST2105").cloned()
    });
    says_yes_to(node("n1"), &PRIMARY);
    let refused = node("n1").post("/v1/settings/rollback", &json!({ "version": 1 })).expect("an answer");
    assert!(refused.status >= 400 && refused.json()["code"] == "ST2105", "{refused:?}");
}

/// OpenAPI describes what is served.
fn documents(cluster: &Sandbox) {
    let n1 = cluster.node("n1");
    let openapi = n1.get("/v1/openapi.json").expect("an answer").json();
    let paths = openapi["paths"].as_object().expect("paths");
    for path in ["/v1/status", "/v1/certificates/rotate", "/admin/replication/status", "/primary", "/metrics"] {
        assert!(paths.contains_key(path), "{path} is not described");
    }
    let refused = http("POST", &n1.api, "/v1/certificates/rotate", None, Some(&json!({ "node": null })));
    assert_eq!(refused.expect("an answer").status, 401);
    let replication = n1.get("/admin/replication/status").expect("an answer").json();
    assert_eq!(replication["primary"], format!("127.0.0.1:{}", n1.postgres.1));
    for row in replication["replicas"].as_array().expect("replicas") {
        assert!(row["host"].is_string() && row["lag_bytes"].is_u64() && row["lag_seconds"].is_number(), "{row:#}");
    }
}

/// A child process that ends with its owner.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

#[test]
fn haproxy_routes_writes_to_the_primary_and_reads_to_replicas() {
    let cluster = Sandbox::start(&["--nodes", "3"]);
    cluster.wait_healthy("n1");
    let (writes, reads) = (free_port(), free_port());
    let mut text = String::from("defaults\n mode tcp\n timeout connect 2s\n timeout client 30s\n timeout server 30s\n");
    for (name, port, check) in [("writes", writes, "/primary"), ("reads", reads, "/replica?lag=16MB")] {
        text.push_str(&format!("listen {name}\n bind 127.0.0.1:{port}\n option httpchk OPTIONS {check}\n"));
        text.push_str(" http-check expect status 200\n default-server inter 200ms fall 1 rise 1\n");
        for node in cluster.nodes() {
            let (_, api) = node.api.rsplit_once(':').expect("a port");
            text.push_str(&format!(" server {} 127.0.0.1:{} check port {api}\n", node.name, node.postgres.1));
        }
    }
    let config = cluster.dir.join("haproxy.cfg");
    std::fs::write(&config, text).expect("written");
    let haproxy = ["/usr/sbin/haproxy", "/usr/bin/haproxy", "/usr/local/sbin/haproxy"];
    let haproxy = haproxy.into_iter().find(|path| std::path::Path::new(path).exists());
    let haproxy = haproxy.expect("haproxy is needed: apt-get install haproxy");
    let mut haproxy = Command::new(haproxy);
    haproxy.arg("-db").arg("-f").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _haproxy = Child(haproxy.spawn().expect("haproxy starts"));
    let password = &cluster.node("n1").password;
    let through = |port| e2e::net::Sql::open("127.0.0.1", port, password);
    wait_for("writes reach the primary alone", PATIENCE, || {
        for _ in 0..6 {
            let sql = through(writes)?;
            ensure!(sql.value("SELECT pg_is_in_recovery()")? == "f", "a replica was reached");
        }
        through(writes)?.value("CREATE TABLE IF NOT EXISTS routed (id int)")?;
        Ok(())
    });
    wait_for("reads reach both replicas and not the primary", PATIENCE, || {
        let mut ports = std::collections::BTreeSet::new();
        for _ in 0..6 {
            let sql = through(reads)?;
            ensure!(sql.value("SELECT pg_is_in_recovery()")? == "t", "the primary was reached");
            ports.insert(sql.value("SHOW port")?);
        }
        ensure!(ports.len() == 2, "{ports:?}");
        Ok(())
    });
    // A replica that is frozen leaves the pool.
    cluster.act(&["freeze", "n2", "--what", "postgres"]);
    let others = cluster.node("n3").postgres.1.to_string();
    wait_for("the frozen replica gets no reads", PATIENCE, || {
        for _ in 0..4 {
            ensure!(through(reads)?.value("SHOW port")? == others, "n2 was reached");
        }
        Ok(())
    });
    cluster.act(&["thaw", "n2", "--what", "postgres"]);
}

/// Serial number of the certificate that a server presents.
fn presented(node: &Node) -> anyhow::Result<String> {
    let address = format!("127.0.0.1:{}", node.postgres.1);
    let client = ["s_client", "-starttls", "postgres", "-connect", &address, "-showcerts"];
    let hello = Command::new("openssl").args(client).stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&hello.stdout).into_owned();
    let start = text.find("-----BEGIN CERTIFICATE").ok_or_else(|| anyhow!("no certificate: {text}"))?;
    let end = text.find("-----END CERTIFICATE").ok_or_else(|| anyhow!("no end of the certificate"))?;
    Ok(text[start..end].to_owned())
}

#[test]
fn certificates_rotate_without_a_dropped_link_or_a_lost_write() {
    let cluster = Sandbox::start(&["--nodes", "3"]);
    cluster.wait_healthy("n1");
    let n1 = cluster.node("n1");
    n1.value("CREATE TABLE t (id bigint PRIMARY KEY)").expect("a table");
    let said = cluster.stemma(&["cert", "status", "-o", "json"]);
    let rows = said.json()["certificates"].as_array().map_or(0, Vec::len);
    assert_eq!((said.code, rows), (0, 3), "{said:?}");

    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = {
        let (stop, written, node) = (stop.clone(), written.clone(), n1.clone());
        std::thread::spawn(move || {
            let sql = node.sql().expect("a connection");
            while !stop.load(Ordering::Relaxed) {
                let next = written.load(Ordering::Relaxed) + 1;
                sql.rows(&format!("INSERT INTO t VALUES ({next})")).expect("no write fails");
                written.store(next, Ordering::Relaxed);
            }
        })
    };
    let senders = "SELECT string_agg(pid::text, ',' ORDER BY pid) FROM pg_stat_replication WHERE state = 'streaming'";
    let streaming = n1.value(senders).expect("senders");
    let servers: Vec<i32> = cluster.nodes().map(|node| node.postmaster().expect("a server")).collect();
    let before: Vec<String> = cluster.nodes().map(|node| presented(node).expect("a certificate")).collect();

    let said = cluster.stemma(&["cert", "rotate"]);
    assert_eq!(said.code, 0, "{said:?}");
    for (node, old) in cluster.nodes().zip(&before) {
        wait_for(&format!("the server of {} presents a new certificate", node.name), PATIENCE, || {
            ensure!(presented(node)? != *old, "still the old one");
            Ok(())
        });
    }
    // One node again, by its name.
    let second = presented(cluster.node("n2")).expect("a certificate");
    let third = presented(cluster.node("n3")).expect("a certificate");
    let said = cluster.stemma(&["cert", "rotate", "n2"]);
    assert_eq!(said.code, 0, "{said:?}");
    wait_for("n2 alone has another one", PATIENCE, || {
        ensure!(presented(cluster.node("n2"))? != second, "still the old one");
        Ok(())
    });
    assert_eq!(presented(cluster.node("n3")).expect("a certificate"), third);

    assert_eq!(n1.value(senders).expect("senders"), streaming, "no replication connection was dropped");
    let now: Vec<i32> = cluster.nodes().map(|node| node.postmaster().expect("a server")).collect();
    assert_eq!(now, servers, "no server was restarted");
    // New handshakes use the new certificates: a replica that must connect anew streams again.
    n1.value("SELECT pg_terminate_backend(pid) FROM pg_stat_replication").expect("cut");
    wait_for("replicas stream again", PATIENCE, || {
        let pids = n1.value(senders)?;
        ensure!(pids.split(',').count() == 2 && pids != streaming, "{pids}");
        Ok(())
    });
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("no write failed");
    let written = written.load(Ordering::Relaxed).to_string();
    assert!(written != "0");
    for node in cluster.nodes() {
        wait_for("every row is everywhere", PATIENCE, || {
            let count = node.value("SELECT count(*) FROM t")?;
            ensure!(count == written, "{count} of {written} on {}", node.name);
            Ok(())
        });
    }
    cluster.wait_healthy("n1");
    assert_eq!(cluster.stemma(&["cert", "rotate", "n9"]).code, 2, "an unknown node is named as such");
}

#[test]
fn servers_live_on_without_keepers_and_are_adopted_again() {
    let cluster = Sandbox::start(&["--nodes", "3"]);
    cluster.wait_healthy("n1");
    let servers: Vec<i32> = cluster.nodes().map(|node| node.postmaster().expect("a server")).collect();
    let n1 = cluster.node("n1");
    n1.value("CREATE TABLE t (id int)").expect("a table");
    // Two of three: the last keeper says what it knows, and since when it does not.
    cluster.act(&["crash", "n2", "--what", "keeper"]);
    cluster.act(&["crash", "n3", "--what", "keeper"]);
    cluster.wait("two keepers are silent", "n1", |status| {
        let silent = ["n2", "n3"].iter().all(|name| problem_of(status, "ST2114", name).is_some());
        let down = node_of(status, "n2")?["keeper_up"] == false;
        (silent && down && status["primary_up"] == true).then_some(())
    });
    // Their servers still stream to the primary: known from the primary's side once a dead link would have shown.
    cluster.wait("the links are known to live", "n1", |status| {
        let up = |name| node_of(status, name).is_some_and(|node| node["link_up"] == true && node["healthy"] == false);
        (up("n2") && up("n3")).then_some(())
    });
    n1.value("INSERT INTO t VALUES (1)").expect("writes go on");
    cluster.act(&["crash", "n1", "--what", "keeper"]);
    let said = cluster.stemma(&["status"]);
    assert_ne!(said.code, 0, "nobody can say how it is: {said:?}");
    assert!(said.err.contains("ST2114") && said.err.contains("stemma"), "{said:?}");
    n1.value("INSERT INTO t VALUES (2)").expect("writes go on without any keeper");
    for name in ["n1", "n2", "n3"] {
        cluster.act(&["restart", name]);
    }
    cluster.wait_healthy("n1");
    let now: Vec<i32> = cluster.nodes().map(|node| node.postmaster().expect("a server")).collect();
    assert_eq!(now, servers, "no server was restarted");
    assert!(servers.into_iter().all(alive));
}

/// Physical slots of the cluster on a node, by name: where each begins.
fn slots(node: &Node) -> anyhow::Result<std::collections::BTreeMap<String, u64>> {
    let rows = node.sql()?.rows(
        "SELECT slot_name, restart_lsn FROM pg_replication_slots
         WHERE slot_type = 'physical' AND starts_with(slot_name, 'stemma') AND NOT temporary",
    )?;
    let text = |row: &Vec<Option<String>>, at: usize| row[at].clone().unwrap_or_else(|| "0/0".to_owned());
    Ok(rows.iter().map(|row| (text(row, 0), position(&text(row, 1)))).collect())
}

#[test]
fn slots_move_with_the_cluster_and_end_when_their_member_stays_away() {
    let settings = [
        "slot_retention_size=64MB",
        "postgresql.parameters.wal_keep_size=0",
        "postgresql.parameters.max_wal_size=64MB",
        "postgresql.parameters.min_wal_size=32MB",
    ];
    let mut options = vec!["--nodes", "3"];
    options.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let cluster = Sandbox::start(&options);
    cluster.wait_healthy("n1");
    let n1 = cluster.node("n1");
    n1.value("CREATE TABLE t (pad text)").expect("a table");
    let write = |megabytes: u32| {
        let rows = format!("INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, {megabytes} * 1000)");
        n1.value(&rows).expect("a write")
    };
    // Every data node keeps log for every other one.
    let before = wait_for("two slots on every node", PATIENCE, || {
        let all = cluster.nodes().map(slots).collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(all.iter().all(|slots| slots.len() == 2 && slots.values().all(|at| *at > 0)), "{all:?}");
        Ok(all)
    });
    write(8);
    wait_for("they move on all nodes", PATIENCE, || {
        let all = cluster.nodes().map(slots).collect::<anyhow::Result<Vec<_>>>()?;
        for (now, then) in all.iter().zip(&before) {
            ensure!(now.iter().all(|(name, at)| *at > then[name] + (4 << 20)), "{then:?} then, {now:?} now");
        }
        Ok(())
    });

    // A member that stays away does not fill the disks of the others.
    cluster.act(&["crash", "n3", "--what", "host"]);
    for _ in 0..5 {
        write(30);
        n1.value("CHECKPOINT").expect("a checkpoint");
    }
    for name in ["n1", "n2"] {
        wait_for(&format!("{name} lets go of what n3 does not fetch"), PATIENCE, || {
            let slots = slots(cluster.node(name))?;
            ensure!(slots.keys().all(|slot| !slot.contains("n3")) && slots.len() == 1, "{slots:?}");
            Ok(())
        });
    }
    wait_for("the drop is in the history", PATIENCE, || {
        let said = cluster.stemma(&["history", "-o", "json"]);
        ensure!(said.out.contains("dropped") && said.out.contains("slot_retention_size"), "{said:?}");
        Ok(())
    });
    write(30);
    for name in ["n1", "n2", "n1", "n2"] {
        cluster.node(name).value("CHECKPOINT").expect("a checkpoint");
    }
    // When it comes back its log is gone: that is said, with the way out.
    cluster.act(&["restart", "n3"]);
    let problem = cluster.wait("the missing log is shown", "n1", |status| problem_of(status, "ST3014", "n3"));
    assert!(problem["next"].as_str().is_some_and(|text| text.contains("stemma node reinit n3")), "{problem:#}");
    assert!(problem["cause"].as_str().is_some_and(|text| text.contains("removed")), "{problem:#}");
    assert_eq!(cluster.node("n3").health("/replica?lag=10s").expect("an answer"), 503);
    std::thread::sleep(Duration::from_secs(12));
    let status = n1.status().expect("an answer");
    assert!(problem_of(&status, "ST3014", "n3").is_some(), "it is shown for as long as it lasts: {status:#}");
    let said = cluster.stemma(&["node", "reinit", "n3", "--yes"]);
    assert_eq!(said.code, 0, "{said:?}");
    cluster.wait_healthy("n1");
    wait_for("its slots are back", PATIENCE, || {
        ensure!(slots(n1)?.len() == 2 && slots(cluster.node("n2"))?.len() == 2);
        Ok(())
    });
}
