//! `kill -9` of a keeper at every step that changes something: the cluster finishes the operation or undoes it by
//! itself, and no acknowledged row is lost. "By itself" means what a service manager does: the keeper is started again.
//! Commands that a person typed (`init`, `join`) are typed again.

mod primacy;

use e2e::faults::{Ledger, Node, Said, World, wait_for};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Points of `stemma init`, before the last.
const INIT: &[&str] = &["init.begun", "init.bootstrap-written", "init.credentials-written", "identity.staged"];
/// Points of the first start of the first node.
const BIRTH: &[&str] = &[
    "bootstrap.begun",
    "bootstrap.written",
    "bootstrap.ended",
    "initdb.begun",
    "initdb.running",
    "initdb.made",
    "initdb.roles-made",
    "initdb.half-moved",
    "initdb.version-moved",
    "database.learning",
    "database.learned",
    "server.configured",
    "server.started",
    "active.marking",
    "active.marked",
    "serve.roles-made",
    "lineage.in-database",
];
/// Points of `stemma join`.
const JOIN: &[&str] = &["join.key-kept", "join.answered"];
/// Points of the keeper that admits.
const ADMIT: &[&str] = &["admit.begun", "admit.written"];
/// Points of a clone, and of clearing up after one. A pass is given where the first would be too early.
const CLONE: &[&str] = &[
    "clone.begun",
    "clone.marker-begun",
    "clone.marked",
    "clone.copying:4",
    "clone.copied",
    "clone.proved",
    "discard.begun",
    "clone.synced",
    "discard.emptied",
    "clone.control-in-place",
    "clone.ended",
];
/// Points of the keeper that takes a command.
const COMMAND: &[&str] = &["command.writing", "command.written"];
/// Points of the keeper of the primary when the settings of its server change.
const CONFIGURE: &[&str] = &["configure.file-written", "configure.reloaded"];
/// Points of the keeper of the primary when the commit mode changes.
const RULE: &[&str] = &["rule.writing", "rule.written", "sync.file-written", "sync.reloaded", "sync.in-force"];
/// Points of a node that gets a new key.
const ROTATE: &[&str] = &["rotate.announced", "rotate.files-written", "rotate.taken-up", "rotate.bound"];
/// Points of a node that restarts its server in turn.
const RESTART: &[&str] = &["restart.begun", "restart.stopped", "restart.ending", "restart.ended"];
/// Points of a node that is rebuilt.
const WIPE: &[&str] = &["wipe.begun", "wipe.marked", "wipe.noted"];
/// Points of the leader of the consensus group while a node is added.
const ADD: &[&str] = &["members.deciding", "members.learners-added", "members.voters-set"];
/// Points that have a scene of their own.
const SCENES: &[&str] = &[
    "init.ended",
    "join.identity-written",
    "slot.created",
    "members.removed",
    "leave.stopped",
    "removal.forgetting",
    "removal.forgot",
];

fn name(point: &str) -> &str {
    point.split(':').next().unwrap_or(point)
}

#[test]
fn every_point_is_walked() {
    let lists = [
        INIT,
        BIRTH,
        JOIN,
        ADMIT,
        CLONE,
        COMMAND,
        CONFIGURE,
        RULE,
        ROTATE,
        RESTART,
        WIPE,
        ADD,
        SCENES,
        primacy::POINTS,
    ];
    let walked: BTreeSet<&str> = lists.concat().into_iter().map(name).collect();
    let known: BTreeSet<&str> = failpoint::POINTS.iter().copied().collect();
    assert_eq!(walked, known);
}

/// Runs a command that must die at a point.
fn dies(node: &Node, point: &str, command: impl FnOnce(&Node) -> Said) {
    node.arm(point);
    let said = command(node);
    assert!(said.was_killed(), "{point}: {said:?}");
    assert_eq!(node.hit().as_deref(), Some(point));
}

#[test]
fn a_cluster_is_born_through_every_kill() {
    let world = World::new();
    let mut n1 = world.node("n1");
    for point in INIT {
        dies(&n1, point, Node::init);
    }
    dies(&n1, "init.ended", Node::init);
    n1.init().refused("ST1208");
    for point in BIRTH {
        n1.start_and_die(point);
    }
    n1.start();
    n1.wait_primary();
    assert!(!n1.data_dir.join("stemma.initdb").exists(), "what initdb worked in is gone");
    let ledger = Ledger::start(&n1);

    // The command of n2 dies while it joins.
    let mut n2 = world.node("n2");
    let token = n1.token("replica");
    dies(&n2, JOIN[0], |node| node.join(&token));
    dies(&n2, JOIN[1], |node| node.join(&token));
    dies(&n2, "join.identity-written", |node| node.join(&token));
    n2.join(&token).refused("ST1208");

    // The keeper that admits n3 dies; the same command with the same token then succeeds.
    let mut n3 = world.node("n3");
    let token = n1.token("replica");
    for point in ADMIT {
        n1.arm(point);
        let said = n3.join(&token);
        assert_eq!(said.trouble().exit, 7, "{said:?}");
        n1.wait_death(point);
        n1.start();
        n1.wait_primary();
    }
    n3.join(&token).done();

    // n1 dies when it has made the slot that n2 waits for.
    n1.arm("slot.created");
    n2.arm(CLONE[0]);
    n2.start();
    n1.wait_death("slot.created");
    n1.start();
    n2.wait_death(CLONE[0]);
    for point in &CLONE[1..] {
        n2.start_and_die(point);
    }
    n2.start();
    n3.start();
    n1.wait_healthy(3);
    assert!(ledger.finish(&[&n1, &n2, &n3]) > 50);
}

/// Arms a node, does something, waits for the death, and starts the keeper again.
fn survives(node: usize, nodes: &mut [Node], point: &str, act: impl FnOnce(&[Node])) {
    nodes[node].arm(point);
    act(nodes);
    nodes[node].wait_death(point);
    nodes[node].start();
}

#[test]
fn changes_are_finished_or_undone_through_every_kill() {
    let world = World::new();
    let mut nodes = world.cluster(3);
    let ledger = Ledger::start(&nodes[0]);

    // A command: its keeper dies before it is written, then after. Given again it is done in both cases.
    for (point, lag) in COMMAND.iter().zip(["11s", "12s"]) {
        let setting = format!("lag_warn={lag}");
        let command = ["config", "set", &setting];
        survives(1, &mut nodes, point, |nodes| {
            // It may be refused at first, before the keeper has heard of the cluster.
            wait_for(&format!("a death at {point}"), || {
                let said = nodes[1].stemma(&command);
                assert!(!said.status.success(), "{point}: {said:?}");
                if nodes[1].hit().is_some() { Ok(()) } else { Err(format!("{said:?}")) }
            });
        });
        nodes[1].change(&command);
        let shown = nodes[0].stemma(&["config", "show"]).done();
        assert!(shown.json.to_string().contains(lag), "{point}: {shown:?}");
    }

    // Settings of the servers: the primary's keeper dies while it applies them.
    for (point, value) in CONFIGURE.iter().zip(["5MB", "6MB"]) {
        let setting = format!("postgresql.parameters.work_mem={value}");
        survives(0, &mut nodes, point, |nodes| {
            nodes[1].change(&["config", "set", &setting]);
        });
        for node in &nodes {
            wait_for(&format!("work_mem = {value} on {} after {point}", node.name), || {
                let shown = node.sql("SHOW work_mem")?;
                if shown[0][0] == value { Ok(()) } else { Err(format!("{shown:?}")) }
            });
        }
    }

    // The durability rule. The number of points is odd, so each meets both directions.
    for (turn, point) in RULE.iter().chain(RULE).enumerate() {
        let mode = ["sync", "semi-sync"][turn % 2];
        survives(0, &mut nodes, point, |nodes| {
            nodes[1].change(&["config", "set", &format!("commit_mode={mode}")]);
        });
        nodes[2].wait_status(&format!("{mode} in force after {point}"), |status| {
            let durability = &status.durability;
            durability.mode.as_str() == mode && durability.in_force && durability.acks == durability.acks_wanted
        });
        nodes[1].wait_healthy(3);
    }
    let all: Vec<&Node> = nodes.iter().collect();
    assert!(ledger.finish(&all) > 50);
}

#[test]
fn who_was_answered_sees_it_in_the_status() {
    let world = World::new();
    let nodes = world.cluster(3);
    // Of a follower of the consensus group, if n1 leads as usual: it hears of its own change last.
    let mut shown_at_once = 0;
    for lag in 11..16 {
        let before = nodes[1].status().expect("a status").settings_version;
        nodes[1].change(&["config", "set", &format!("lag_warn={lag}s")]);
        let after = nodes[1].status().expect("a status").settings_version;
        println!("{before} -> {after}");
        shown_at_once += i32::from(after > before);
    }
    // It is waited for only so long, and an election in that moment takes longer.
    assert!(shown_at_once >= 4, "{shown_at_once} of 5");
}

#[test]
fn orders_to_nodes_are_carried_out_through_every_kill() {
    let world = World::new();
    let mut nodes = world.cluster(3);
    let ledger = Ledger::start(&nodes[0]);

    for point in ROTATE {
        survives(1, &mut nodes, point, |nodes| {
            nodes[0].change(&["cert", "rotate", "n2"]);
        });
        nodes[0].wait_healthy(3);
    }

    for point in RESTART {
        let started = nodes[2].sql("SELECT pg_postmaster_start_time()").expect("n3 answers");
        let mut operation = String::new();
        survives(2, &mut nodes, point, |nodes| {
            let said = nodes[0].change(&["restart", "--rolling", "--no-wait", "n3", "--yes"]);
            operation = said.json["operation"].as_str().unwrap_or_else(|| panic!("no operation: {said:?}")).to_owned();
        });
        // By its name: armed while this restart is still being noted as done, the node would die of it once more, and
        // nobody would bring it back while the next is refused.
        wait_for(&format!("the end of {operation} in spite of {point}"), || {
            let shown = nodes[0].stemma(&["op", "show", &operation]);
            if shown.json["operation"]["state"]["state"] == "succeeded" { Ok(()) } else { Err(format!("{shown:?}")) }
        });
        nodes[0].wait_healthy(3);
        wait_for(&format!("a restart in spite of {point}"), || {
            let now = nodes[2].sql("SELECT pg_postmaster_start_time()")?;
            if now == started { Err("the server was not restarted".to_owned()) } else { Ok(()) }
        });
    }

    // A rebuild that is cut off three times.
    survives_reinit(&mut nodes);
    nodes[0].wait_healthy(3);
    let all: Vec<&Node> = nodes.iter().collect();
    assert!(ledger.finish(&all) > 50);
}

fn survives_reinit(nodes: &mut [Node]) {
    nodes[2].arm(WIPE[0]);
    nodes[0].change(&["node", "reinit", "n3", "--yes"]);
    nodes[2].wait_death(WIPE[0]);
    for point in &WIPE[1..] {
        nodes[2].start_and_die(point);
    }
    nodes[2].start();
}

/// Arms all nodes, tries something until it is done, and has whoever dies start again at once: the next in line may
/// die of the same before all are disarmed, and two of three could not get anything done.
fn someone_survives(nodes: &mut [Node], point: &str, mut attempt: impl FnMut(&[Node]) -> Result<(), String>) {
    for node in nodes.iter() {
        node.arm(point);
    }
    let (mut died, mut done) = (false, Err("not tried yet".to_owned()));
    wait_for(&format!("something done in spite of a death at {point}"), || {
        died |= revive(nodes, point);
        if done.is_err() {
            done = attempt(nodes);
        }
        if died { done.clone() } else { Err(format!("nobody has died; {done:?}")) }
    });
    revive(nodes, point);
}

/// Starts the keepers that died at this point, and disarms all. Returns whether there were any.
fn revive(nodes: &mut [Node], point: &str) -> bool {
    if nodes.iter_mut().all(Node::runs) {
        return false;
    }
    for node in nodes.iter() {
        node.disarm();
    }
    for node in nodes.iter_mut() {
        if !node.runs() {
            node.wait_death(point);
            node.start();
        }
    }
    true
}

#[test]
fn members_come_and_go_through_every_kill() {
    let world = World::new();
    let mut nodes = world.cluster(3);
    let ledger = Ledger::start(&nodes[0]);

    let mut witnesses = Vec::new();
    for (number, point) in ADD.iter().enumerate() {
        let mut witness = world.witness(&format!("w{}", number + 1));
        let token = nodes[0].token("witness");
        someone_survives(&mut nodes, point, |_| {
            // The keeper that is asked may die of it, and then another is asked.
            let said = witness.join(&token);
            let in_now = said.status.success() || said.json["error"]["code"] == "ST1208";
            if !in_now {
                return Err(format!("{said:?}"));
            }
            witness.start();
            Ok(())
        });
        witnesses.push(witness);
        nodes[0].wait_healthy(4 + number);
    }
    someone_survives(&mut nodes, "members.removed", |nodes| {
        // The keeper that is asked may be the one that dies, and comes back only if it is not waited for here.
        let said = nodes[1].stemma(&["node", "remove", "w1", "--yes"]);
        let gone = said.status.success() || said.json["error"]["code"] == "ST2101";
        if gone { Ok(()) } else { Err(format!("{said:?}")) }
    });
    nodes[0].wait_healthy(5);
    for (point, leaving) in ["removal.forgetting", "removal.forgot"].iter().zip(["w2", "w3"]) {
        survives(0, &mut nodes, point, |nodes| {
            nodes[1].change(&["node", "remove", leaving, "--yes"]);
        });
        nodes[0].wait_status(&format!("{leaving} gone after {point}"), |status| {
            status.primary_up && status.node(leaving).is_none()
        });
    }
    nodes[0].wait_healthy(3);
    // The node that leaves dies on its way out; the others go on, and its server does not.
    survives(2, &mut nodes, "leave.stopped", |nodes| {
        nodes[0].change(&["node", "remove", "n3", "--yes"]);
    });
    nodes[0].wait_healthy(2);
    assert!(nodes[2].sql("SELECT 1").is_err(), "the server of a node that left goes on");
    assert!(ledger.finish(&[&nodes[0], &nodes[1]]) > 50);
}

/// A small generator (xorshift): its seed is printed, and `STEMMA_SEED` repeats the choices of a walk.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("below a small bound")
    }
}

#[test]
fn keepers_killed_at_random_during_changes_lose_nothing() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed =
        number("STEMMA_SEED").unwrap_or_else(|| u64::from(std::process::id()).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    println!("repeat with STEMMA_SEED={seed}");
    let mut dice = Dice(seed | 1);
    let world = World::new();
    let mut nodes = world.cluster(3);
    let ledger = Ledger::start(&nodes[0]);
    let mut n4 = world.node("n4");
    n4.join(&nodes[0].token("replica")).done();
    n4.start();
    nodes.push(n4);

    let until = Instant::now() + Duration::from_secs(number("STEMMA_WALK_SECONDS").unwrap_or(40));
    let mut turn = 0;
    while Instant::now() < until {
        turn += 1;
        let mode = format!("commit_mode={}", ["semi-sync", "quorum", "sync", "async"][dice.below(4)]);
        let memory = format!("postgresql.parameters.work_mem={}MB", 4 + dice.below(4));
        let kind = ["hot", "standby"][dice.below(2)];
        let from = ["primary", "n2"][dice.below(2)];
        let command: &[&str] = match dice.below(6) {
            0 => &["config", "set", &mode],
            1 => &["config", "set", &memory],
            2 => &["node", "set", "n3", "--kind", kind],
            3 => &["node", "set", "n4", "--from", from],
            4 => &["cert", "rotate", "n2"],
            _ => &["node", "reinit", "n4", "--yes"],
        };
        // Refusals and unknown outcomes are ordinary here: the keeper asked may have no majority yet.
        let asked = dice.below(3);
        let said = nodes[asked].stemma(command);
        std::thread::sleep(Duration::from_millis(dice.below(400) as u64));
        let victim = dice.below(4);
        let (asked, victim_name) = (&nodes[asked].name, &nodes[victim].name);
        println!("{turn}: {command:?} of {asked}: {:?}; {victim_name} is killed", said.status.code());
        nodes[victim].kill();
        std::thread::sleep(Duration::from_millis(dice.below(300) as u64));
        nodes[victim].start();
    }
    nodes[0].change(&["config", "set", "commit_mode=sync"]);
    nodes[0].wait_healthy(4);
    let all: Vec<&Node> = nodes.iter().collect();
    println!("{turn} turns; {} rows were acknowledged and are on every node", ledger.finish(&all));
}
