//! What the world outside is told when the primary changes: hooks, events, and a load balancer that asks.

use e2e::faults::{Ledger, Node, World, server_user, wait_for};
use e2e::ports::free_port;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A healthy cluster of three whose node files have `section` appended.
fn cluster(world: &World, section: impl Fn(&Node) -> String) -> Vec<Node> {
    let mut nodes: Vec<Node> = (1..=3).map(|number| world.node(&format!("n{number}"))).collect();
    for node in &nodes {
        node.write_config(&format!("{}\n{}", node.toml(), section(node)));
    }
    nodes[0].init().done();
    nodes[0].start();
    nodes[0].wait_primary();
    for number in 1..3 {
        let token = nodes[0].token("replica");
        nodes[number].join(&token).done();
        nodes[number].start();
    }
    nodes[0].wait_healthy(3);
    nodes
}

/// The lines that a node's hooks wrote.
fn told(node: &Node) -> Vec<String> {
    let text = std::fs::read_to_string(node.home.join("hooks.log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn waits_to_tell(node: &Node, line: &str) {
    wait_for(&format!("{} tells `{line}`", node.name), || {
        let told = told(node);
        if told.iter().any(|told| told == line) { Ok(()) } else { Err(format!("{told:?}; {}", node.log_tail())) }
    });
}

/// The index of the node that is primary, as `asked` has it.
fn primary(asked: &Node, nodes: &[Node], epoch: u64) -> usize {
    let status = asked.wait_status("a new primary", |status| status.primary_up && status.epoch.0 >= epoch);
    let name = status.primary.expect("one").to_string();
    nodes.iter().position(|node| node.name == name).expect("a member")
}

/// What a hook does: says what it was given; and on a change of role never ends, in a place where it is found and ended with
/// the world of the test: the keeper that would end it may be killed first.
const HOOK: &str = "#!/bin/sh\n\
    echo \"$1 $2 $3 $4 epoch=$STEMMA_EPOCH node=$STEMMA_NODE primary=$STEMMA_PRIMARY old=$STEMMA_OLD_PRIMARY id=$STEMMA_FAILOVER_ID user=$(id -un)\" >> \"$1/hooks.log\"\n\
    echo \"port $STEMMA_PRIMARY_PORT\"\n\
    if [ \"$2\" = on_role_change ]; then cd \"$1\"; sleep 1000; fi\n";

#[test]
fn hooks_are_told_and_one_that_hangs_holds_nothing_up() {
    let world = World::new();
    let hook = world.dir.join("hook.sh");
    std::fs::write(&hook, HOOK).expect("written");
    std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).expect("our own file");
    let mut nodes = cluster(&world, |node| {
        let command = format!("[\"{}\", \"{}\"]", hook.display(), node.home.display());
        let hooks =
            ["on_start", "on_stop", "on_role_change", "on_failover"].map(|hook| format!("{hook} = {command}\n"));
        format!("[hooks]\ntimeout = \"3s\"\n{}", hooks.concat())
    });
    let user = server_user().map_or_else(|| "root".to_owned(), |user| user.name);
    let of = |node: &Node, rest: &str| format!("{} {rest} user={user}", node.home.display());
    let line = |event: &str, role: &str, epoch: u64, node: &str, primary: &str, rest: &str| {
        format!("{event} {role} faults epoch={epoch} node={node} primary={primary} {rest}")
    };
    waits_to_tell(&nodes[1], &of(&nodes[1], &line("on_start", "replica", 1, "n2", "n1", "old= id=")));
    assert!(told(&nodes[1]).iter().all(|line| !line.contains("on_role_change")), "a first role is no change");

    nodes[0].kill();
    nodes[0].kill_server();
    let began = Instant::now();
    let winner = primary(&nodes[2], &nodes, 2);
    let name = nodes[winner].name.clone();
    eprintln!("{name} is primary {:?} after the loss of n1", began.elapsed());
    let changed = of(&nodes[winner], &line("on_role_change", "primary", 2, &name, &name, "old=n1 id=fo_2"));
    waits_to_tell(&nodes[winner], &changed);
    // While that hook hangs the node serves; and the next one is made once it was killed.
    nodes[winner].sql("CREATE TABLE written_meanwhile (id int)").expect("the new primary takes writes");
    assert!(
        !told(&nodes[winner]).iter().any(|line| line.contains("on_failover")),
        "hooks are made one after the other"
    );
    let complete = of(&nodes[winner], &line("on_failover", "primary", 2, &name, &name, "old=n1 id=fo_2"));
    waits_to_tell(&nodes[winner], &complete);
    let status = nodes[winner].wait_status("the failed hook", |status| {
        status
            .problems
            .iter()
            .any(|problem| problem.code == "ST2311" && problem.cause.contains("did not end within 3 s"))
    });
    assert!(status.problems.iter().all(|problem| !problem.what.contains("on_failover")), "{:?}", status.problems);
    let (_, metrics) = nodes[winner].http(b"GET /metrics HTTP/1.0\r\nHost: node\r\n\r\n").expect("an answer");
    let failures = format!("stemma_hook_failures_total{{cluster=\"faults\",node=\"{name}\"}} 1");
    assert!(metrics.contains(&failures), "{metrics}");
    let count = "stemma_failovers_total{cluster=\"faults\",cause=\"automatic\",result=\"done\"} 1";
    assert!(metrics.contains(count), "{metrics}");

    // The old primary's keeper was down when its role changed: the next one tells it.
    nodes[0].start();
    let after = of(&nodes[0], &line("on_role_change", "replica", 2, "n1", &name, "old=n1 id=fo_2"));
    waits_to_tell(&nodes[0], &after);
    let loser = &nodes[3 - winner];
    assert!(
        told(loser).iter().all(|line| !line.contains("on_failover")),
        "told once in the cluster: {:?}",
        told(loser)
    );
}

/// Lines of `stemma events --follow -o json`.
struct Following(Child);

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn who_follows_hears_of_a_new_primary_through_another_node() {
    let world = World::new();
    let mut nodes = cluster(&world, |_| String::new());
    let apis: Vec<String> = nodes.iter().map(|node| format!("http://127.0.0.1:{}", node.api_port)).collect();
    let mut command = Command::new(e2e::net::program());
    command.args(["events", "--follow", "--since", "0", "-o", "json", "--api", &apis.join(",")]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut following = Following(child.expect("the program starts"));
    let (sender, lines) = std::sync::mpsc::channel();
    let out = BufReader::new(following.0.stdout.take().expect("piped"));
    std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let mut seqs = Vec::new();
    let mut hear = |what: &str, wanted: &dyn Fn(&serde_json::Value) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = lines.recv_timeout(left).unwrap_or_else(|_| panic!("{what} was not heard"));
            let told: serde_json::Value = serde_json::from_str(&line).expect("one document a line");
            assert_ne!(told["event"], "gap", "{line}");
            seqs.extend(told["id"].as_u64());
            if wanted(&told) {
                return told;
            }
        }
    };
    hear("the first primary", &|told| told["event"] == "primary" && told["data"]["name"] == "n1");
    // Longer than an idle connection may live, and than a stream without heartbeats would be followed.
    hear("lag while nothing happens", &|told| told["event"] == "topology");
    std::thread::sleep(Duration::from_secs(12));
    nodes[0].kill();
    nodes[0].kill_server();
    let began = Instant::now();
    let told = hear("the new primary", &|told| {
        told["event"] == "primary" && told["data"]["epoch"] == 2 && told["data"]["name"].is_string()
    });
    eprintln!("heard of the new primary {:?} after the loss of the old one and of the node followed", began.elapsed());
    let winner = primary(&nodes[2], &nodes, 2);
    assert_eq!(told["data"]["port"], nodes[winner].postgres_port);
    assert_eq!(told["data"]["name"], nodes[winner].name);
    hear("who fails over", &|told| told["event"] == "topology" && told["data"]["primary_up"] == true);
    let mut once = seqs.clone();
    once.dedup();
    assert!(seqs.is_sorted() && once.len() == seqs.len(), "in order, nothing twice: {seqs:?}");
    assert_eq!(seqs.last().copied().unwrap_or_default() as usize, seqs.len(), "and nothing left out: {seqs:?}");
}

/// A process that ends with the test.
struct Helper(Child);

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_client_behind_haproxy_finds_the_primary_again() {
    if Command::new("haproxy").arg("-v").stdout(Stdio::null()).status().is_err() {
        eprintln!("SKIPPED, NOTHING WAS PROVED: haproxy is not installed (Debian package `haproxy`)");
        return;
    }
    let world = World::new();
    let nodes = cluster(&world, |_| String::new());
    let (port, reads) = (free_port(), free_port());
    let api = format!("http://127.0.0.1:{}", nodes[0].api_port);
    let exported = Command::new(e2e::net::program())
        .args(["export", "haproxy", "--api", &api, "--port", &port.to_string(), "--read-port", &reads.to_string()])
        .output()
        .expect("the program starts");
    let text = String::from_utf8(exported.stdout).expect("text");
    assert!(exported.status.success(), "{text}{}", String::from_utf8_lossy(&exported.stderr));
    let file = world.dir.join("haproxy.cfg");
    std::fs::write(&file, &text).expect("written");
    let checked = Command::new("haproxy").args(["-c", "-f"]).arg(&file).output().expect("haproxy runs");
    let said = [checked.stdout, checked.stderr].concat();
    assert!(checked.status.success(), "{}\n{text}", String::from_utf8_lossy(&said));
    let mut running = Command::new("haproxy");
    running.args(["-db", "-f"]).arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    let _haproxy = Helper(running.spawn().expect("haproxy runs"));

    // One client that writes through the balancer all the time, and connects anew whenever something fails.
    let credentials = std::fs::read_to_string(nodes[0].state_dir.join("credentials.json")).expect("readable");
    let mut front = world.node("front");
    front.postgres_port = port;
    std::fs::write(front.state_dir.join("credentials.json"), credentials).expect("written");
    // It takes every server for fit until the checks of its first second say otherwise.
    let mut primary_in_a_row = 0;
    wait_for("the balancer knows the primary", || {
        let rows = front.sql("SELECT pg_is_in_recovery()");
        primary_in_a_row = if rows.as_ref().is_ok_and(|rows| rows[0][0] == "f") { primary_in_a_row + 1 } else { 0 };
        if primary_in_a_row >= 30 { Ok(()) } else { Err(format!("{rows:?}")) }
    });
    let ledger = Ledger::start(&front);
    wait_for("rows through the balancer", || {
        let rows = nodes[0].sql("SELECT count(*) FROM ledger")?;
        if rows[0][0].parse::<u64>().is_ok_and(|count| count > 50) { Ok(()) } else { Err(format!("{rows:?}")) }
    });
    nodes[0].kill_server();
    let killed = Instant::now();
    let newest = |node: &Node| node.sql("SELECT coalesce(max(id), 0) FROM ledger");
    let before = newest(&nodes[1]).or_else(|_| newest(&nodes[2])).expect("a replica answers")[0][0].clone();
    wait_for("a row written after the crash", || {
        let rows = front.sql("SELECT max(id) FROM ledger")?;
        let (now, then) = (rows[0][0].parse::<u64>(), before.parse::<u64>());
        if now.is_ok_and(|now| then.is_ok_and(|then| now > then + 1)) { Ok(()) } else { Err(format!("{rows:?}")) }
    });
    eprintln!("writes through haproxy go on {:?} after kill -9 of the server", killed.elapsed());
    let all: Vec<&Node> = nodes.iter().collect();
    nodes[1].wait_status("healthy again", |status| status.verdict == model::status::Verdict::Healthy);
    eprintln!("{} rows acknowledged through haproxy, none lost", ledger.finish(&all));
    // The other port leads to a replica.
    front.postgres_port = reads;
    let mut replica_in_a_row = 0;
    wait_for("the balancer knows the replicas", || {
        let rows = front.sql("SELECT pg_is_in_recovery()");
        replica_in_a_row = if rows.as_ref().is_ok_and(|rows| rows[0][0] == "t") { replica_in_a_row + 1 } else { 0 };
        if replica_in_a_row >= 30 { Ok(()) } else { Err(format!("{rows:?}")) }
    });
}
