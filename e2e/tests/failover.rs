//! The primary dies, sleeps, is cut off, runs out of disk or of time, and the cluster goes on by itself. `lab` says what
//! must be true after each fault; the kinds that are not here are met by `scripts/soak --faults`.

use e2e::faults::{Disk, Node, World, wait_for};
use e2e::lab::{Account, Fault, Lab};
use e2e::oracle::Oracle;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CLIENTS: usize = 2;
/// After so many changes of primary keepers would begin to wait, on purpose; these scenes are about something else.
const MOVES_FREE: usize = 3;
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
/// Longer than any detection takes.
const A_WHILE: Duration = Duration::from_secs(4);

/// Has these faults happen one after the other to a cluster of its own.
fn suffers(faults: &[Fault]) -> Vec<Account> {
    let mut lab = match Lab::start(CLIENTS) {
        Ok(lab) => lab,
        Err(why) => {
            eprintln!("SKIPPED, NOTHING WAS PROVED: network namespaces cannot be had here: {why:#}");
            return Vec::new();
        }
    };
    let (mut accounts, mut moves) = (Vec::new(), 0);
    for fault in faults {
        if moves >= MOVES_FREE {
            lab.restart_keepers();
            moves = 0;
        }
        let account = lab.suffer(*fault);
        println!("{account:?}");
        moves += usize::from(account.from != account.to);
        accounts.push(account);
    }
    println!("{} writes acknowledged and on every node", lab.finish());
    accounts
}

/// Where the primary's server was left alone, clients hardly notice.
fn barely_noticed(accounts: &[Account]) {
    for account in accounts.iter().filter(|it| it.fault.leaves_the_server_alone()) {
        assert!(account.gap < Duration::from_secs(2), "{account:?}");
    }
}

#[test]
fn nothing_is_lost_when_processes_die() {
    let faults = [Fault::ServerKilled, Fault::KeeperKilled, Fault::HostKilled, Fault::KeepersKilled, Fault::AllKilled];
    barely_noticed(&suffers(&faults));
}

#[test]
fn a_primary_that_slept_through_its_replacement_acknowledges_nothing() {
    let faults = [Fault::ServerFrozen, Fault::KeeperFrozen, Fault::HostFrozen];
    barely_noticed(&suffers(&faults));
}

#[test]
fn a_primary_that_is_cut_off_is_replaced_and_a_replica_is_not() {
    let faults = [Fault::PrimaryCutOff, Fault::ReplicaCutOff, Fault::PrimaryWithoutPeers, Fault::PrimaryWithoutClients];
    barely_noticed(&suffers(&faults));
}

#[test]
fn half_a_connection_is_none() {
    suffers(&[Fault::PrimaryMute, Fault::PrimaryDeaf, Fault::WaitCancelled]);
}

#[test]
fn a_replica_that_hangs_does_not_hold_up_a_failover() {
    suffers(&[Fault::ReceiverFrozen, Fault::ReplayFrozen]);
}

/// A cluster of three whose first node's database is on a disk of its own.
fn on_a_small_disk(world: &World) -> Option<(Vec<Node>, Disk)> {
    let mut n1 = world.node("n1");
    let disk = Disk::mount(n1.home.join("disk"))?;
    n1.data_dir = disk.dir.join("data");
    n1.write_config(&n1.toml());
    n1.init().done();
    n1.start();
    n1.wait_primary();
    let mut nodes = vec![n1];
    for name in ["n2", "n3"] {
        let mut node = world.node(name);
        node.join(&nodes[0].token("replica")).done();
        node.start();
        nodes.push(node);
    }
    nodes[0].wait_healthy(3);
    Some((nodes, disk))
}

fn primary_of(nodes: &[Node]) -> String {
    let said: Vec<String> = nodes.iter().map(|node| node.wait_whole(nodes.len())).collect();
    assert!(said.iter().all(|it| *it == said[0]), "they name {said:?}");
    said[0].clone()
}

fn wait_writes(oracle: &Oracle, what: &str) {
    let before = oracle.count();
    wait_for(what, || {
        let written = oracle.count() - before;
        if written > 20 { Ok(()) } else { Err(format!("{written} writes")) }
    });
}

#[test]
fn a_primary_without_room_for_its_log_is_replaced_and_comes_back_when_there_is_room() {
    let world = World::new();
    let Some((nodes, disk)) = on_a_small_disk(&world) else {
        eprintln!("NOT TESTED: this machine refuses to mount a small disk, so none can be filled");
        return;
    };
    let oracle = Oracle::paced(nodes.iter().map(Node::uri).collect(), CLIENTS, Duration::from_millis(8));
    wait_writes(&oracle, "clients that write");
    disk.fill();
    wait_for("clients that write elsewhere", || {
        // The log needs a new file, and cannot have one.
        let _ = nodes[0].sql("SELECT pg_switch_wal()");
        if oracle.last_server() != 0 { Ok(()) } else { Err(nodes[0].log_tail()) }
    });
    wait_writes(&oracle, "clients that write again");
    assert!(oracle.lost().is_empty(), "lost: {:?}", oracle.lost());
    disk.make_room();
    let primary = primary_of(&nodes);
    assert_ne!(primary, "n1", "a full disk is no place for a primary");
    assert!(oracle.lost().is_empty(), "lost: {:?}", oracle.lost());
    drop(nodes);
}

/// Sets the offset of a keeper's wall clock while it runs.
fn turn_clock(node: &Node, offset: &str) {
    let beside = node.home.join("clock.new");
    std::fs::write(&beside, format!("{offset}\n")).expect("written");
    std::fs::rename(beside, clock_file(node)).expect("turned");
}

#[test]
fn keepers_that_slept_accuse_nobody() {
    use nix::sys::signal::{Signal, kill};
    let world = World::new();
    let nodes = world.cluster(3);
    let before = primary_of(&nodes);
    let oracle = Oracle::paced(nodes.iter().map(Node::uri).collect(), CLIENTS, Duration::from_millis(8));
    wait_writes(&oracle, "clients that write");
    oracle.forget_gaps();
    let all = |signal: Signal| {
        for pid in nodes.iter().filter_map(Node::keeper_pid) {
            kill(nix::unistd::Pid::from_raw(pid), signal).expect("a keeper");
        }
    };
    for _ in 0..6 {
        // Waking up, they begin everything that is due, and fall asleep in the middle of it.
        all(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_secs(1));
        all(Signal::SIGCONT);
        all(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_secs(3));
        all(Signal::SIGCONT);
        nodes[1].wait_status("healthy", |status| status.verdict == model::status::Verdict::Healthy);
    }
    let status = nodes[1].status().expect("a status");
    assert_eq!((status.primary.expect("one").as_str(), status.epoch.0), (before.as_str(), 1), "a false failover");
    assert!(oracle.longest_gap() < Duration::from_secs(2), "{:?}", oracle.longest_gap());
    assert!(oracle.lost().is_empty(), "lost: {:?}", oracle.lost());
}

fn clock_file(node: &Node) -> PathBuf {
    node.home.join("clock")
}

#[test]
fn clocks_that_jump_neither_cause_a_failover_nor_prevent_one() {
    assert!(Path::new(FAKETIME).exists(), "{FAKETIME} is missing: apt-get install libfaketime");
    let world = World::new();
    let mut nodes = world.cluster(3);
    for node in &mut nodes {
        node.kill();
        turn_clock(node, "+0");
        let file = clock_file(node).display().to_string();
        let environment = [
            ("LD_PRELOAD", FAKETIME),
            ("FAKETIME_TIMESTAMP_FILE", file.as_str()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ];
        node.start_with(&environment);
    }
    let before = primary_of(&nodes);
    let oracle = Oracle::paced(nodes.iter().map(Node::uri).collect(), CLIENTS, Duration::from_millis(8));
    oracle.forget_gaps();
    for offsets in [["+1h", "+0", "+0"], ["+1h", "-10m", "+2h"], ["-10m", "+1h", "+0"]] {
        nodes.iter().zip(offsets).for_each(|(node, offset)| turn_clock(node, offset));
        std::thread::sleep(A_WHILE);
        assert!(oracle.longest_gap() < Duration::from_secs(2), "{offsets:?}: {:?}", oracle.longest_gap());
    }
    let old = nodes.iter().position(|node| node.name == before).expect("one of them");
    assert_eq!(oracle.last_server(), old, "clocks have moved the primary");
    nodes[old].kill();
    nodes[old].kill_server();
    turn_clock(&nodes[(old + 1) % 3], "+4h");
    wait_for("clients that write elsewhere", || {
        if oracle.last_server() != old { Ok(()) } else { Err("the old one was the last".to_owned()) }
    });
    wait_writes(&oracle, "clients that write again");
    for node in &nodes {
        turn_clock(node, "+0");
    }
    nodes[old].start();
    assert_ne!(primary_of(&nodes), before);
    assert!(oracle.lost().is_empty(), "lost: {:?}", oracle.lost());
}
