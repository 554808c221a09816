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
/// Points of the others, and of those that write into consensus.
const ANYBODY: &[&str] = &["failover.attaching", "failover.attached", "failover.writing", "failover.written"];
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

    /// The primary's host dies, and at each of these points, one after the other, whoever of the two others comes to it
    /// first. Nothing is left then that could go on as before: it has to be finished.
    fn walk(&mut self, points: &[&str]) {
        self.refresh();
        let old = self.whole(&format!("a restart of all keepers, before {points:?}"));
        let left: Vec<usize> = (0..self.nodes.len()).filter(|at| *at != old).collect();
        left.iter().for_each(|at| self.nodes[*at].arm(points[0]));
        self.kill_host(old);
        for (number, point) in points.iter().enumerate() {
            self.wait_victim(&left, point);
            // The other one may have died of it too, before it is armed for the next.
            for at in &left {
                let node = &mut self.nodes[*at];
                match points.get(number + 1) {
                    Some(next) => node.arm(next),
                    None => node.disarm(),
                }
                if !node.runs() {
                    node.wait_end();
                    node.start();
                }
            }
        }
        // One of them may have been dying when it was looked at.
        wait_for(&format!("clients that write after {points:?}"), || {
            for at in &left {
                if !self.nodes[*at].runs() {
                    self.nodes[*at].wait_end();
                    self.nodes[*at].start();
                }
            }
            if self.oracle.last_server() != old { Ok(()) } else { Err("the old one was the last".to_owned()) }
        });
        self.nodes[old].start();
        self.whole(&format!("{points:?}"));
    }

    /// Waits until the keeper of one of these has died at a point for which they are all armed. One that died of an
    /// earlier point while it was armed for this one is started again.
    fn wait_victim(&mut self, among: &[usize], point: &str) {
        wait_for(&format!("a death at {point}"), || {
            for at in among {
                let node = &mut self.nodes[*at];
                if node.runs() {
                    continue;
                }
                if node.hit().as_deref() == Some(point) {
                    return Ok(());
                }
                node.wait_end();
                node.start();
            }
            Err(self.nodes[among[0]].log_tail())
        });
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
    // One is recruited and dies of it; then it dies, or the other one, of its promotion.
    for (recruit, win) in RECRUIT.iter().zip(WIN) {
        stage.walk(&[recruit, win]);
    }
    for point in ANYBODY {
        stage.walk(&[point]);
    }
    stage.refresh();
    let old = stage.whole("a restart of all keepers");
    stage.kill_host(old);
    stage.wait_writes("clients that write elsewhere");
    stage.nodes[old].start_and_die("failover.started");
    stage.nodes[old].start();
    stage.whole("failover.started");
}

#[test]
fn an_old_primary_comes_back_through_every_kill() {
    let mut stage = Stage::new();

    // It slept through its own replacement, and dies when it has just killed its server.
    let old = stage.whole("the start");
    let mut frozen = processes_below(&stage.nodes[old].data_dir);
    frozen.extend(stage.nodes[old].keeper_pid());
    let send = |with| frozen.iter().for_each(|pid| kill(Pid::from_raw(*pid), with).unwrap_or_default());
    send(Signal::SIGSTOP);
    stage.wait_writes("clients that write elsewhere");
    stage.nodes[old].arm("failover.killed");
    send(Signal::SIGCONT);
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
    let full = e2e::major_bin(15);
    let bin = node.home.join("bin");
    std::fs::create_dir(&bin).expect("a directory");
    for entry in std::fs::read_dir(&full).expect("programs").flatten() {
        if entry.file_name() != "pg_rewind" {
            std::os::unix::fs::symlink(entry.path(), bin.join(entry.file_name())).expect("a link");
        }
    }
    node.write_config(&node.toml().replace(&full.display().to_string(), &bin.display().to_string()));
}

/// Switchovers and failovers that came to an end so far, whichever.
fn ends(node: &Node) -> usize {
    let history = node.stemma(&["history"]);
    let events = history.json["history"].as_array().into_iter().flatten();
    let ends = ["switchover-dropped", "failover-undone", "failover-done"];
    events.filter(|event| ends.iter().any(|kind| event["kind"] == *kind)).count()
}

#[test]
fn a_switchover_is_finished_or_undone_through_every_kill() {
    let mut stage = Stage::new();
    for point in SWITCHOVER {
        let old = stage.whole("the beginning");
        let (to, asked) = (stage.nodes[(old + 1) % 3].name.clone(), (old + 2) % 3);
        let ends_before = ends(&stage.nodes[asked]);
        stage.nodes[old].arm(point);
        stage.nodes[asked].change(&["switchover", "--to", &to, "--yes", "--no-wait"]);
        stage.nodes[old].wait_death(point);
        stage.nodes[old].start();
        // It is done, also by another or by the old primary under a new epoch, or it is given up; each says so.
        wait_for(&format!("an end of the switchover in spite of {point}"), || {
            let (now, log) = (ends(&stage.nodes[asked]), stage.nodes[old].log_tail());
            if now > ends_before { Ok(()) } else { Err(log) }
        });
        stage.wait_writes(&format!("clients that write after {point}"));
        stage.whole(point);
        stage.refresh();
    }
}
