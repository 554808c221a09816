//! `kill -9` of a keeper at every step of a change of primary: another keeper, or the same one when it is back, finishes
//! or undoes it. Nothing acknowledged is lost, one node takes writes, and the cluster is whole again by itself.

use e2e::faults::{Node, World, processes_below, wait_for};
use e2e::oracle::Oracle;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::time::Duration;

/// Points of a replica that is recruited.
const RECRUIT: &[&str] = &["failover.promising", "failover.promised", "failover.detaching", "failover.detached"];
/// Points of the one that is chosen.
const WIN: &[&str] = &["failover.list-set", "failover.promoting", "failover.promote-ordered", "failover.row-written"];
/// Points of a whole failover, passed by whoever comes first.
const ANYBODY: &[&str] = &["failover.writing", "failover.written", "failover.attached"];
/// Every point of a change of primary.
pub const POINTS: &[&str] = &[
    "failover.writing",
    "failover.written",
    "failover.promising",
    "failover.promised",
    "failover.detaching",
    "failover.detached",
    "failover.list-set",
    "failover.promoting",
    "failover.promote-ordered",
    "failover.row-written",
    "failover.attaching",
    "failover.attached",
    "failover.started",
    "failover.killed",
    "comeback.begun",
    "comeback.saved",
    "comeback.rewound",
    "comeback.given-up",
    "switchover.checkpointing",
    "switchover.checkpointed",
    "switchover.beginning",
    "switchover.begun",
    "switchover.draining",
    "switchover.drained",
];
/// Points of a switchover, all at the old primary.
const SWITCHOVER: &[&str] = &[
    "switchover.checkpointing",
    "switchover.checkpointed",
    "switchover.beginning",
    "switchover.begun",
    "switchover.draining",
    "switchover.drained",
];
const PACE: Duration = Duration::from_millis(8);

/// A cluster of three under the oracle's eyes.
struct Stage {
    nodes: Vec<Node>,
    oracle: Oracle,
    _world: World,
}

impl Stage {
    fn new() -> Stage {
        let world = World::new();
        let nodes = world.cluster(3);
        let oracle = Oracle::paced(nodes.iter().map(Node::uri).collect(), 2, PACE);
        Stage { nodes, oracle, _world: world }
    }

    /// Waits until all is well as every node sees it, and holds the cluster to its promises; its primary, as an index.
    fn whole(&self, after: &str) -> usize {
        let said: Vec<String> = self.nodes.iter().map(|node| node.wait_whole(self.nodes.len())).collect();
        assert!(said.iter().all(|it| *it == said[0]), "after {after} they name {said:?}");
        let lost = self.oracle.lost();
        assert!(lost.is_empty(), "after {after} {} acknowledged rows are lost: {lost:?}", lost.len());
        let writable = |node: &&Node| node.sql("SELECT pg_is_in_recovery()").is_ok_and(|rows| rows[0][0] == "f");
        let writable: Vec<&str> = self.nodes.iter().filter(writable).map(|node| node.name.as_str()).collect();
        assert_eq!(writable, [said[0].as_str()], "who takes writes after {after}");
        self.wait_writes(&format!("clients that write after {after}"));
        self.nodes.iter().position(|node| node.name == said[0]).expect("a node of ours")
    }

    fn wait_writes(&self, what: &str) {
        let before = self.oracle.count();
        wait_for(what, || {
            let written = self.oracle.count() - before;
            if written > 20 { Ok(()) } else { Err(format!("{written} writes")) }
        });
    }

    /// Kills all keepers and starts them: how many failovers there were lately is forgotten, so the next does not wait.
    fn refresh(&mut self) {
        self.nodes.iter_mut().for_each(Node::kill);
        self.nodes.iter_mut().for_each(Node::start);
    }

    fn kill_host(&mut self, at: usize) {
        self.nodes[at].kill();
        self.nodes[at].kill_server();
    }

    /// Waits until the keeper of one of these has died at the point for which they are all armed, and says whose.
    fn wait_victim(&mut self, among: &[usize], point: &str) -> usize {
        wait_for(&format!("a death at {point}"), || {
            let dead = among.iter().copied().find(|at| !self.nodes[*at].runs());
            dead.ok_or_else(|| self.nodes[among[0]].log_tail())
        })
    }

    /// Writes to this node alone, which then dies with all that it has sent to nobody.
    fn leave_alone_with_a_row(&mut self, at: usize, id: i64) {
        for pid in children_called(&self.nodes[at].data_dir, "walsender") {
            kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("a sender is stopped");
        }
        let statement = format!("SET synchronous_commit = local; INSERT INTO oracle (id) VALUES ({id})");
        self.nodes[at].sql(&statement).expect("a row that no replica has");
        self.kill_host(at);
    }
}

/// The processes of a server whose title contains a word.
fn children_called(data_dir: &Path, what: &str) -> Vec<i32> {
    let title = |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let fits = |pid: &i32| String::from_utf8_lossy(&title(pid)).contains(what);
    processes_below(data_dir).into_iter().filter(fits).collect()
}

#[test]
fn a_failover_is_finished_through_every_kill() {
    let mut stage = Stage::new();
    let old = stage.whole("the start");
    let replicas: Vec<usize> = (0..3).filter(|at| *at != old).collect();

    // One of the two that are left dies at each step of being recruited.
    stage.nodes[replicas[0]].arm(RECRUIT[0]);
    stage.kill_host(old);
    stage.nodes[replicas[0]].wait_death(RECRUIT[0]);
    for point in &RECRUIT[1..] {
        stage.nodes[replicas[0]].start_and_die(point);
    }
    // Then whoever is chosen dies at each step of its promotion, and the other one when it is to follow.
    for at in &replicas {
        stage.nodes[*at].arm(WIN[0]);
    }
    stage.nodes[replicas[0]].start();
    let winner = stage.wait_victim(&replicas, WIN[0]);
    let loser = if winner == replicas[0] { replicas[1] } else { replicas[0] };
    stage.nodes[winner].wait_death(WIN[0]);
    stage.nodes[loser].arm("failover.attaching");
    for point in &WIN[1..] {
        stage.nodes[winner].start_and_die(point);
    }
    stage.nodes[winner].start();
    stage.nodes[loser].wait_death("failover.attaching");
    stage.nodes[loser].start();
    stage.wait_writes("clients that write after every death");
    stage.nodes[old].start_and_die("failover.started");
    stage.nodes[old].start();
    assert_eq!(stage.whole("a failover with ten deaths"), winner);

    for point in ANYBODY {
        stage.refresh();
        let old = stage.whole("a restart of all keepers");
        stage.nodes.iter().for_each(|node| node.arm(point));
        stage.nodes[old].kill_server();
        let victim = stage.wait_victim(&[0, 1, 2], point);
        stage.nodes.iter().for_each(Node::disarm);
        println!("{point}: the keeper of {} died", stage.nodes[victim].name);
        // The next in line may have died of the same before all were disarmed.
        for node in &mut stage.nodes {
            if !node.runs() {
                node.wait_death(point);
                node.start();
            }
        }
        stage.wait_writes(&format!("clients that write after {point}"));
        stage.whole(point);
    }
}

#[test]
fn an_old_primary_comes_back_through_every_kill() {
    let mut stage = Stage::new();

    // It slept through its own replacement, and dies when it has just killed its server.
    let old = stage.whole("the start");
    let mut frozen = processes_below(&stage.nodes[old].data_dir);
    frozen.extend(stage.nodes[old].keeper_pid());
    frozen.iter().for_each(|pid| {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGSTOP);
    });
    stage.wait_writes("clients that write elsewhere");
    stage.nodes[old].arm("failover.killed");
    frozen.iter().for_each(|pid| {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGCONT);
    });
    stage.nodes[old].wait_death("failover.killed");
    stage.nodes[old].start();
    stage.whole("failover.killed");

    // It holds what nobody else has: that is saved, and the rest is rewound.
    for (round, points) in [&["comeback.begun", "comeback.rewound"][..], &["comeback.saved"]].into_iter().enumerate() {
        let old = stage.whole("a restart of all keepers");
        stage.leave_alone_with_a_row(old, -1 - round as i64);
        stage.wait_writes("clients that write elsewhere");
        for point in points {
            stage.nodes[old].start_and_die(point);
        }
        stage.nodes[old].start();
        stage.whole(points[0]);
        saved_and_gone(&stage, -1 - round as i64);
        stage.refresh();
    }

    // Where it cannot be rewound, it is copied anew.
    let old = stage.whole("a restart of all keepers");
    stage.leave_alone_with_a_row(old, -3);
    stage.wait_writes("clients that write elsewhere");
    without_rewind(&stage.nodes[old]);
    stage.nodes[old].start_and_die("comeback.given-up");
    stage.nodes[old].start();
    stage.whole("comeback.given-up");
    saved_and_gone(&stage, -3);
}

/// The row is in no node's table and in a bundle of the one that held it.
fn saved_and_gone(stage: &Stage, id: i64) {
    for node in &stage.nodes {
        let rows = node.sql(&format!("SELECT count(*) FROM oracle WHERE id = {id}")).expect("it answers");
        assert_eq!(rows[0][0], "0", "{} holds the row that was never acknowledged by a replica", node.name);
    }
    let history = stage.nodes[0].stemma(&["history"]);
    let kinds = history.json["history"].as_array().into_iter().flatten();
    let saved = kinds.filter(|event| event["kind"] == "rescue-saved").count();
    let wanted = usize::try_from(-id).expect("a negative id");
    assert!(saved >= wanted, "{saved} bundles were saved instead of {wanted}: {history:?}");
}

/// Gives a node the programs of its server, all but `pg_rewind`, as some packages do.
fn without_rewind(node: &Node) {
    let full = e2e::faults::bin_dir(15);
    let bin = node.home.join("bin");
    std::fs::create_dir(&bin).expect("a directory");
    for entry in std::fs::read_dir(&full).expect("programs").flatten() {
        if entry.file_name() != "pg_rewind" {
            std::os::unix::fs::symlink(entry.path(), bin.join(entry.file_name())).expect("a link");
        }
    }
    node.write_config(&node.toml().replace(&full.display().to_string(), &bin.display().to_string()));
}

#[test]
fn a_switchover_is_finished_or_undone_through_every_kill() {
    let mut stage = Stage::new();
    for point in SWITCHOVER {
        let old = stage.whole("the beginning");
        let (to, asked) = (stage.nodes[(old + 1) % 3].name.clone(), (old + 2) % 3);
        stage.nodes[old].arm(point);
        // Its end may be unknown to the one who asked.
        let said = stage.nodes[asked].stemma(&["switchover", "--to", &to, "--yes"]);
        println!("{point}: {:?}", said.status.code());
        stage.nodes[old].wait_death(point);
        stage.nodes[old].start();
        stage.wait_writes(&format!("clients that write after {point}"));
        stage.whole(point);
    }
}
