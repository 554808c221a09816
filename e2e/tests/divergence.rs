//! A copy whose history is not the primary's is found, stopped and shown; only a person's order rebuilds it.

use anyhow::ensure;
use e2e::net::{Node, PATIENCE, Said, Sandbox, node_of, problem_of, wait_for};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Waits until a node is halted with this code, and everything that people look at says so.
fn halted(cluster: &Sandbox, name: &str, code: &str) -> Value {
    let problem = cluster.wait(&format!("{name} is halted with {code}"), "n1", |status| {
        let node = node_of(status, name)?;
        let problem = problem_of(status, code, name)?;
        (node["stage"] == "halted" && node["healthy"] == false && node["server"] == "stopped").then_some(problem)
    });
    assert!(!cluster.node(name).server_runs(), "a halted node serves nobody");
    let next = problem["next"].as_str().expect("a next command");
    assert!(next.contains(&format!("stemma node reinit {name}")), "{problem:#}");
    let shown = cluster.stemma(&["status"]);
    assert!(shown.out.contains(code) && shown.out.contains("halted") && shown.out.contains(next), "{}", shown.out);
    assert_eq!(cluster.stemma(&["status", "--check"]).code, 8);
    for path in ["/replica", "/health", "/read-only", "/primary", "/readiness"] {
        assert_eq!(cluster.node(name).health(path).expect("an answer"), 503, "{path}");
    }
    problem
}

fn rebuilt(cluster: &Sandbox, name: &str, rows: &str) {
    let said = cluster.stemma(&["node", "reinit", name, "--yes"]);
    assert_eq!(said.code, 0, "{said:?}");
    cluster.wait_healthy("n1");
    let node = cluster.node(name);
    wait_for("it has what the primary has", PATIENCE, || {
        let count = node.value("SELECT count(*) FROM t")?;
        ensure!(count == rows, "{count} rows");
        Ok(())
    });
}

/// Runs a program of the server as the user that owns the data.
fn as_owner(node: &Node, program: &str, arguments: &[&str]) -> Said {
    let bin = std::fs::read_dir("/usr/lib/postgresql").expect("servers of the distribution");
    let mut majors: Vec<u32> = bin.flatten().filter_map(|found| found.file_name().to_str()?.parse().ok()).collect();
    majors.sort_unstable();
    let major = std::fs::read_to_string(node.data_dir.join("PG_VERSION")).unwrap_or_default();
    let major = major.trim().parse().ok().or(majors.last().copied()).expect("a version");
    let program = format!("/usr/lib/postgresql/{major}/bin/{program}");
    let root = nix::unistd::getuid().is_root();
    let mut command = if root { Command::new("setpriv") } else { Command::new(&program) };
    if root {
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", &program]);
    }
    // Not through a pipe: a server that is started so would keep it open.
    let log = node.config.with_file_name("by-hand.log");
    let output = std::fs::File::create(&log).expect("a log");
    let errors = output.try_clone().expect("a second handle");
    let status = command.args(arguments).current_dir("/").stdout(output).stderr(errors).status().expect("it runs");
    let out = std::fs::read_to_string(&log).unwrap_or_default();
    Said { code: status.code().unwrap_or(-1), out, err: String::new() }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success(), "{} is copied", from.display());
}

fn with_rows(nodes: &str) -> Sandbox {
    let cluster = Sandbox::start(&["--nodes", nodes]);
    cluster.wait_healthy("n1");
    cluster.node("n1").value("CREATE TABLE t AS SELECT generate_series(1, 100) AS id").expect("a table");
    for node in cluster.nodes() {
        wait_for("the table is everywhere", PATIENCE, || node.value("SELECT count(*) FROM t").map(drop));
    }
    cluster
}

#[test]
fn a_replica_promoted_by_hand_is_halted_and_rebuilt_only_by_order() {
    let cluster = with_rows("3");
    let (n1, n2) = (cluster.node("n1"), cluster.node("n2"));
    let began = std::time::Instant::now();
    // Not waited for: the session may be ended before it could say so.
    n2.value("SELECT pg_promote(false)").expect("promoted");
    halted(&cluster, "n2", "ST3022");
    assert!(began.elapsed() < Duration::from_secs(20), "halted after {:?}", began.elapsed());
    n1.value("INSERT INTO t VALUES (101)").expect("the primary writes on");
    assert_eq!(n1.health("/primary").expect("an answer"), 200);

    // Rejoining does not wipe: it is checked again, and halted again with what was found.
    let said = cluster.stemma(&["node", "rejoin", "n2", "--yes"]);
    assert_eq!(said.code, 0, "{said:?}");
    let problem = halted(&cluster, "n2", "ST3010");
    assert!(problem["cause"].as_str().is_some_and(|text| text.contains("timeline 2")), "{problem:#}");

    let said = cluster.stemma(&["node", "reinit", "n1", "--yes"]);
    assert!(said.code != 0 && said.err.contains("ST2104"), "the primary is not rebuilt: {said:?}");
    let said = cluster.stemma(&["node", "rejoin", "n3", "--yes"]);
    assert!(said.code != 0 && said.err.contains("ST2111"), "n3 is not halted: {said:?}");
    rebuilt(&cluster, "n2", "101");
}

#[test]
fn a_write_after_promotion_by_hand_is_found_in_a_server_started_again_as_a_standby() {
    let cluster = with_rows("3");
    let (n1, n3) = (cluster.node("n1"), cluster.node("n3"));
    // Behind the keeper's back: promoted, written to, and made a standby again, as if nothing had been.
    cluster.act(&["crash", "n3", "--what", "keeper"]);
    n3.value("SELECT pg_promote()").expect("promoted");
    n3.value("INSERT INTO t VALUES (-1)").expect("a write of its own");
    let data = n3.data_dir.display().to_string();
    let stopped = as_owner(n3, "pg_ctl", &["-D", &data, "-m", "fast", "-w", "stop"]);
    assert_eq!(stopped.code, 0, "{stopped:?}");
    std::fs::write(n3.data_dir.join("standby.signal"), "").expect("made a standby again");
    n1.value("INSERT INTO t VALUES (101)").expect("the primary writes on");
    cluster.act(&["restart", "n3"]);
    halted(&cluster, "n3", "ST3010");
    rebuilt(&cluster, "n3", "101");
}

#[test]
fn a_foreign_database_in_the_data_directory_is_never_served() {
    let cluster = with_rows("3");
    let n3 = cluster.node("n3");
    cluster.act(&["crash", "n3", "--what", "host"]);
    let kept = n3.data_dir.with_file_name("kept");
    std::fs::rename(&n3.data_dir, &kept).expect("moved away");
    let data = n3.data_dir.display().to_string();
    let fresh = n3.data_dir.with_file_name("fresh");
    std::fs::create_dir(&fresh).expect("a directory");
    if nix::unistd::getuid().is_root() {
        let owner = nix::unistd::User::from_name("postgres").expect("asked").expect("a user postgres");
        nix::unistd::chown(&fresh, Some(owner.uid), Some(owner.gid)).expect("given away");
    }
    let made = as_owner(n3, "initdb", &["-D", &fresh.display().to_string(), "-A", "trust", "-U", "postgres"]);
    assert_eq!(made.code, 0, "{made:?}");
    std::fs::rename(&fresh, &data).expect("swapped in");
    cluster.act(&["restart", "n3"]);
    let problem = halted(&cluster, "n3", "ST3011");
    assert!(problem["cause"].as_str().is_some_and(|text| text.contains("database")), "{problem:#}");
    assert!(n3.data_dir.join("PG_VERSION").exists(), "nothing was removed");
    // The right directory back in its place: a rejoin is enough.
    std::fs::rename(&n3.data_dir, n3.data_dir.with_file_name("foreign")).expect("moved away");
    std::fs::rename(&kept, &n3.data_dir).expect("put back");
    let said = cluster.stemma(&["node", "rejoin", "n3", "--yes"]);
    assert_eq!(said.code, 0, "{said:?}");
    cluster.wait_healthy("n1");
    assert_eq!(n3.value("SELECT count(*) FROM t").expect("a read"), "100");
}

#[test]
fn replicas_that_are_ahead_of_a_primary_set_back_are_found() {
    let cluster = with_rows("3");
    let n1 = cluster.node("n1");
    // This is about a primary that comes back as it never was: nobody is to take over while its files are copied.
    for name in ["n2", "n3"] {
        let said = cluster.stemma(&["node", "set", name, "--priority", "0"]);
        assert_eq!(said.code, 0, "{said:?}");
    }
    let older = n1.data_dir.with_file_name("older");
    // Else another node would take over from it, and this one would come back as a replica.
    let said = cluster.stemma(&["pause", "--for", "1h"]);
    assert_eq!(said.code, 0, "{said:?}");
    cluster.act(&["crash", "n1", "--what", "host"]);
    copy(&n1.data_dir, &older);
    cluster.act(&["restart", "n1"]);
    cluster.wait_healthy("n1");
    n1.value("INSERT INTO t SELECT generate_series(1000, 20000)").expect("rows that the older copy lacks");
    for name in ["n2", "n3"] {
        wait_for("the rows are on the replicas", PATIENCE, || {
            let count = cluster.node(name).value("SELECT count(*) FROM t")?;
            ensure!(count == "19101", "{count}");
            Ok(())
        });
    }
    // Somebody restores the primary from a copy of its files: same database, same timeline, older.
    cluster.act(&["crash", "n1", "--what", "host"]);
    std::fs::remove_dir_all(&n1.data_dir).expect("removed");
    std::fs::rename(&older, &n1.data_dir).expect("restored");
    cluster.act(&["restart", "n1"]);
    for name in ["n2", "n3"] {
        let problem = halted(&cluster, name, "ST3010");
        assert!(problem["cause"].as_str().is_some_and(|text| text.contains("primary")), "{problem:#}");
    }
    let said = cluster.stemma(&["node", "reinit", "n3", "--yes"]);
    assert_eq!(said.code, 0, "{said:?}");
    rebuilt(&cluster, "n2", "100");
}
