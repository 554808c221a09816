//! The watcher beside a keeper: a server that may only go on under a lease is ended when its keeper hangs or is gone, and
//! one that needs no lease is left alone.

use e2e::faults::{Node, SETTINGS, World, processes_below, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// Longer than a lease.
const LEASE_AND_MORE: Duration = Duration::from_secs(3);

fn world(mode: &str) -> World {
    let world = World::new();
    std::fs::write(world.dir.join("settings.toml"), format!("commit_mode = \"{mode}\"\n{SETTINGS}")).expect("written");
    world
}

fn in_recovery(node: &Node) -> Result<bool, String> {
    let rows = node.sql("SELECT pg_is_in_recovery()")?;
    Ok(rows.first().and_then(|row| row.first()).is_some_and(|value| value == "t"))
}

/// Watchers of a node's server: process id and parent.
fn watchers(node: &Node) -> Vec<(i32, i32)> {
    let pids = std::fs::read_dir("/proc").expect("a Linux system").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let ours = pids.filter(|pid| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.get(1) == Some(&&b"lease-watcher"[..])
            && words.get(2) == Some(&node.data_dir.as_os_str().as_encoded_bytes())
    });
    let parent = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit_once(')').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        rest.split_whitespace().nth(1).and_then(|parent| parent.parse().ok()).unwrap_or(0)
    };
    ours.map(|pid| (pid, parent(pid))).collect()
}

fn waits_for_watcher(node: &Node) -> i32 {
    let keeper = node.keeper_pid().expect("it runs");
    wait_for("a watcher of this keeper", || match watchers(node).as_slice() {
        [(pid, parent)] if *parent == keeper => Ok(*pid),
        other => Err(format!("{other:?}, the keeper is {keeper}")),
    })
}

#[test]
fn in_async_mode_a_server_whose_keeper_is_frozen_is_gone_before_another_is_promoted() {
    let world = world("async");
    let mut nodes = world.cluster(3);
    waits_for_watcher(&nodes[0]);
    assert!(watchers(&nodes[1]).is_empty(), "a replica needs no lease");
    let keeper = Pid::from_raw(nodes[0].keeper_pid().expect("it runs"));
    let frozen = Instant::now();
    kill(keeper, Signal::SIGSTOP).expect("frozen");
    let mut gone_after = None;
    let promoted_after = wait_for("another primary", || {
        let promoted = (1..3).any(|index| in_recovery(&nodes[index]) == Ok(false));
        // Looked at after the others: what is gone now was gone when they were looked at, or a moment later.
        let living = processes_below(&nodes[0].data_dir);
        if living.is_empty() && gone_after.is_none() {
            gone_after = Some(frozen.elapsed());
        }
        assert!(!promoted || gone_after.is_some(), "another was promoted while {living:?} lived");
        if promoted { Ok(frozen.elapsed()) } else { Err(format!("gone after {gone_after:?}")) }
    });
    eprintln!("the server was gone after {gone_after:?}, another promoted after {promoted_after:?}");
    assert!(gone_after.is_some_and(|after| after < LEASE_AND_MORE), "{gone_after:?}");
    kill(keeper, Signal::SIGCONT).expect("thawed");
    let primary = nodes[1].wait_whole(3);
    assert_ne!(primary, "n1");
    // The thawed keeper has said what there is to watch: nothing.
    wait_for("the watcher to go", || match watchers(&nodes[0]).as_slice() {
        [] => Ok(()),
        left => Err(format!("{left:?}")),
    });
    nodes.iter_mut().for_each(Node::kill);
}

#[test]
fn a_server_whose_commits_wait_for_replicas_is_left_alone_when_its_keeper_is_killed() {
    let world = world("semi-sync");
    let mut nodes = world.cluster(3);
    nodes[0].wait_status("durability as asked", |status| status.durability.acks == status.durability.acks_wanted);
    wait_for("no watcher", || match watchers(&nodes[0]).as_slice() {
        [] => Ok(()),
        left => Err(format!("{left:?}")),
    });
    let before = nodes[0].sql("SELECT pg_postmaster_start_time()").expect("it serves");
    nodes[0].kill();
    let until = Instant::now() + LEASE_AND_MORE;
    while Instant::now() < until {
        assert_eq!(nodes[0].sql("SELECT pg_postmaster_start_time()").as_ref(), Ok(&before), "the server goes on");
        std::thread::sleep(Duration::from_millis(100));
    }
    nodes[0].start();
    assert_eq!(nodes[0].wait_whole(3), "n1");
    assert_eq!(nodes[0].sql("SELECT pg_postmaster_start_time()").as_ref(), Ok(&before));
    nodes.iter_mut().for_each(Node::kill);
}

#[test]
fn in_async_mode_a_watcher_outlives_its_keeper_for_its_duty_and_is_replaced_by_the_next_keepers() {
    let world = world("async");
    let mut nodes = world.cluster(3);
    let first = waits_for_watcher(&nodes[0]);
    // A watcher that dies is replaced.
    kill(Pid::from_raw(first), Signal::SIGKILL).expect("killed");
    let second = wait_for("another watcher", || match waits_for_watcher(&nodes[0]) {
        pid if pid != first => Ok(pid),
        pid => Err(format!("{pid}")),
    });
    // The next keeper's takes over from the one that the last keeper left; which of the two was sooner, the next keeper or
    // the end of the lease, decides whether the server was ended in between.
    nodes[0].kill();
    assert_eq!(watchers(&nodes[0]).iter().map(|(pid, _)| *pid).collect::<Vec<_>>(), [second], "it stays");
    nodes[0].start();
    let primary = nodes[1].wait_whole(3);
    if primary == "n1" {
        assert_ne!(waits_for_watcher(&nodes[0]), second);
    } else {
        wait_for("no watcher", || if watchers(&nodes[0]).is_empty() { Ok(()) } else { Err("one".into()) });
    }
    // Without a keeper at all the server ends with its lease, and the watcher after it.
    let index = nodes.iter().position(|node| node.name == primary).expect("a member");
    waits_for_watcher(&nodes[index]);
    let died = Instant::now();
    nodes[index].kill();
    wait_for("the server's end", || match processes_below(&nodes[index].data_dir).as_slice() {
        [] => Ok(()),
        left => Err(format!("{left:?}")),
    });
    eprintln!("without its keeper the server ended after {:?}", died.elapsed());
    assert!(died.elapsed() < LEASE_AND_MORE, "{:?}", died.elapsed());
    wait_for(
        "the watcher's end",
        || if watchers(&nodes[index]).is_empty() { Ok(()) } else { Err("it is there".into()) },
    );
    nodes[index].start();
    nodes[(index + 1) % 3].wait_whole(3);
    // A keeper that is stopped in order leaves its server to whoever stopped it.
    let primary = nodes[0].wait_whole(3);
    let index = nodes.iter().position(|node| node.name == primary).expect("a member");
    waits_for_watcher(&nodes[index]);
    kill(Pid::from_raw(nodes[index].keeper_pid().expect("it runs")), Signal::SIGTERM).expect("asked");
    nodes[index].wait_end();
    assert!(watchers(&nodes[index]).is_empty());
    assert_eq!(in_recovery(&nodes[index]), Ok(false), "the server goes on");
    nodes.iter_mut().for_each(Node::kill);
}
