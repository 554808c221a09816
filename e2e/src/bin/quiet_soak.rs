//! A cluster that works as hard as its machine can, and whose primary's keeper gets almost no processor: nobody may take
//! over from anybody.
//!
//! `quiet_soak MINUTES`: pgbench on the primary without pause. In turn, minute by minute, all keepers run as usual, the
//! primary's keeper is starved (`nice 19` and `SCHED_IDLE` for all its threads), and a replica's is. Ends with an error
//! if the cluster's history then has a change of primary, even one that was undone.

use e2e::net::{Sandbox, wait_for};
use serde_json::Value;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
const TURN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_secs(1);
const CLIENTS: &str = "16";

/// pgbench, killed on drop.
struct Load(Child);

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pgbench(uri: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("pgbench");
    command.args(arguments).arg(uri).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn keeper_of(sandbox: &Sandbox, name: &str) -> String {
    let said = sandbox.stemma(&["sandbox", "status", "-o", "json"]).json();
    let node = said["nodes"].as_array().into_iter().flatten().find(|node| node["name"] == name);
    let pid = node.and_then(|node| node["keeper_pid"].as_i64());
    pid.unwrap_or_else(|| panic!("no keeper of {name} in {said:#}")).to_string()
}

/// Lets a process run only when nobody else wants to, or as usual.
fn starve(pid: &str, starved: bool) {
    let policy = if starved { "--idle" } else { "--other" };
    let ran = Command::new("chrt").args(["--all-tasks", policy, "--pid", "0", pid]).status();
    let ran = ran.expect("chrt of util-linux");
    assert!(ran.success(), "chrt {policy} {pid}");
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").flatten() {
        let task = task.file_name().to_string_lossy().into_owned();
        let nice = if starved { "19" } else { "0" };
        // A thread may have ended meanwhile.
        let _ = Command::new("renice").args(["-n", nice, "-p", &task]).stdout(Stdio::null()).status();
    }
}

/// Changes of primary in the history, begun or planned.
fn changes(sandbox: &Sandbox) -> Vec<Value> {
    let said = sandbox.stemma(&["history", "-o", "json"]).json();
    let events = said["history"].as_array().or(said.as_array()).cloned().expect("a history");
    events.into_iter().filter(|event| event["kind"].as_str().is_some_and(|kind| kind.starts_with("failover"))).collect()
}

fn main() {
    assert!(std::env::var_os("STEMMA_BIN").is_some(), "STEMMA_BIN names the program to be tried");
    let minutes: u64 = std::env::args().nth(1).map_or(30, |text| text.parse().expect("a number of minutes"));
    let sandbox = Sandbox::start(&["--nodes", "3"]);
    sandbox.wait_healthy("n1");
    let primary = wait_for("a primary", PATIENCE, || {
        let status = sandbox.node("n1").status()?;
        status["primary"].as_str().map(str::to_owned).ok_or_else(|| anyhow::anyhow!("nobody"))
    });
    let replica = if primary == "n1" { "n2" } else { "n1" };
    let uri = sandbox.node(&primary).uri();
    assert!(pgbench(&uri, &["-i", "-q", "-s", "10"]).status().expect("pgbench").success());
    let until = Instant::now() + Duration::from_secs(minutes * 60);
    let seconds = (minutes * 60 + 600).to_string();
    let mut load = Load(pgbench(&uri, &["-n", "-c", CLIENTS, "-j", "2", "-T", &seconds]).spawn().expect("pgbench"));
    let mut turn = 0;
    while Instant::now() < until {
        let starved = match turn % 3 {
            0 => None,
            1 => Some(keeper_of(&sandbox, &primary)),
            _ => Some(keeper_of(&sandbox, replica)),
        };
        if let Some(pid) = &starved {
            starve(pid, true);
        }
        let end = (Instant::now() + TURN).min(until);
        while Instant::now() < end {
            std::thread::sleep(LOOK);
            let ended = load.0.try_wait().expect("it was started");
            assert!(ended.is_none(), "pgbench ended: its server went away ({:?})", changes(&sandbox));
        }
        if let Some(pid) = &starved {
            starve(pid, false);
        }
        let changes = changes(&sandbox);
        assert!(changes.is_empty(), "a false alarm: {changes:#?}");
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        turn += 1;
        println!("minute {turn:>3}: {} is primary, load {}", primary, load.trim());
    }
    println!("{minutes} minutes without a change of primary");
}
