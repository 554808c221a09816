//! Measures changes of primary on real servers: the longest write gap that four clients see, and what they lost.
//!
//! `failover_bench FAULT RUNS` prints one line for each run and a last one with median, maximum and losses. FAULT is
//! `crash` (kill -9 of all processes of the primary's server), `host` (server and keeper), `freeze` and `freeze-host` (SIGSTOP), `switchover`, `isolate` (the
//! primary's network namespace is cut off) or `async-host`. `STEMMA_BIN` names the program, as for the tests.

use e2e::net::{Sandbox, Wired, wait_for};
use e2e::oracle::Oracle;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
/// Clients write for so long before each fault.
const STEADY: Duration = Duration::from_millis(700);

enum Place {
    Here(Sandbox),
    Apart(Wired),
}

impl Place {
    fn node(&self, name: &str) -> &e2e::net::Node {
        match self {
            Place::Here(sandbox) => sandbox.node(name),
            Place::Apart(wired) => wired.node(name),
        }
    }
    fn servers(&self, names: &[&str]) -> Vec<String> {
        let uri = |name: &&str| {
            let node = self.node(name);
            let (host, port) = &node.postgres;
            format!("postgresql://postgres:{}@{host}:{port}/postgres", node.password)
        };
        names.iter().map(uri).collect()
    }
    fn stemma(&self, arguments: &[&str]) -> e2e::net::Said {
        match self {
            Place::Here(sandbox) => sandbox.stemma(arguments),
            Place::Apart(wired) => wired.stemma("n1", arguments),
        }
    }
    /// Waits until all is well, as every node sees it, and says who is primary.
    fn settled(&self, names: &[&str]) -> String {
        wait_for("a healthy cluster", PATIENCE, || {
            let mut primary = None;
            for name in names {
                let status = self.node(name).status()?;
                anyhow::ensure!(status["verdict"] == "healthy", "{name} says {}", status["sentence"]);
                let streaming = status["nodes"].as_array().into_iter().flatten().filter(|node| {
                    node["role"] == "primary" || node["link"] == "streaming" || node["link"]["state"] == "streaming"
                });
                anyhow::ensure!(streaming.count() == names.len(), "not all stream");
                primary = status["primary"].as_str().map(str::to_owned);
            }
            primary.ok_or_else(|| anyhow::anyhow!("nobody is primary"))
        })
    }
}

fn main() {
    assert!(std::env::var_os("STEMMA_BIN").is_some(), "STEMMA_BIN names the program to be measured");
    let mut arguments = std::env::args().skip(1);
    let fault = arguments.next().unwrap_or_else(|| "crash".to_owned());
    let runs: usize = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(5);
    let place = match fault.as_str() {
        "isolate" => Place::Apart(Wired::start(3).expect("namespaces can be made")),
        _ => Place::Here(Sandbox::start(&["--nodes", "3"])),
    };
    let names = ["n1", "n2", "n3"];
    if fault == "async-host" {
        let said = place.stemma(&["config", "set", "commit_mode=async"]);
        assert_eq!(said.code, 0, "{said:?}");
    }
    let servers = place.servers(&names);
    place.settled(&names);
    let mut oracle = Oracle::start(servers.clone(), 4);
    let mut gaps = Vec::new();
    let mut lost_in_all = 0;
    for run in 1..=runs {
        let primary = place.settled(&names);
        let began = oracle.count();
        wait_for("clients that write", PATIENCE, || {
            anyhow::ensure!(oracle.count() > began + 50, "{} writes", oracle.count() - began);
            Ok(())
        });
        std::thread::sleep(STEADY);
        oracle.forget_gaps();
        let at = Instant::now();
        inject(&fault, &place, &primary, &names);
        let target = names.iter().position(|name| *name == primary);
        wait_for("writes on another primary", PATIENCE, || {
            let moved = Some(oracle.last_server()) != target || fault == "crash" && at.elapsed().as_secs() > 2;
            anyhow::ensure!(moved, "the old one is the last that acknowledged");
            Ok(())
        });
        let resumed = oracle.count();
        wait_for("clients that write again", PATIENCE, || {
            anyhow::ensure!(oracle.count() > resumed + 50, "{} writes", oracle.count() - resumed);
            Ok(())
        });
        let gap = oracle.longest_gap();
        mend(&fault, &place, &primary);
        let now = place.settled(&names);
        let lost = oracle.lost().len();
        lost_in_all += lost;
        println!(
            "{fault} {run:>3}: gap {:>6.3} s  {primary} -> {now}  lost {lost}  whole again after {:.1} s",
            gap.as_secs_f64(),
            at.elapsed().as_secs_f64()
        );
        gaps.push(gap);
    }
    oracle.stop();
    gaps.sort();
    let median = gaps[gaps.len() / 2].as_secs_f64();
    let most = gaps.last().map_or(0.0, Duration::as_secs_f64);
    println!(
        "{fault}: runs {runs}  longest write gap: median {median:.3} s  maximum {most:.3} s  lost {lost_in_all} of {}",
        oracle.count()
    );
    for (name, server) in names.iter().zip(&servers) {
        println!("{name} holds {:?} rows", oracle.held_by(server));
    }
}

fn inject(fault: &str, place: &Place, primary: &str, names: &[&str]) {
    match (fault, place) {
        ("crash", Place::Here(sandbox)) => sandbox.act(&["crash", primary, "--what", "postgres"]),
        ("host" | "async-host", Place::Here(sandbox)) => sandbox.act(&["crash", primary, "--what", "host"]),
        ("isolate", Place::Apart(wired)) => wired.cut(primary),
        ("freeze", Place::Here(sandbox)) => sandbox.act(&["freeze", primary, "--what", "postgres"]),
        ("freeze-host", Place::Here(sandbox)) => sandbox.act(&["freeze", primary, "--what", "host"]),
        ("switchover", place) => {
            let to = names.iter().find(|name| **name != primary).expect("another node");
            let said = place.stemma(&["switchover", "--to", to, "--yes"]);
            assert_eq!(said.code, 0, "{said:?}");
        }
        (other, _) => panic!("no fault `{other}`"),
    }
}

fn mend(fault: &str, place: &Place, primary: &str) {
    match (fault, place) {
        ("host" | "async-host", Place::Here(sandbox)) => sandbox.act(&["restart", primary]),
        ("isolate", Place::Apart(wired)) => wired.heal(primary),
        ("freeze", Place::Here(sandbox)) => sandbox.act(&["thaw", primary, "--what", "postgres"]),
        ("freeze-host", Place::Here(sandbox)) => sandbox.act(&["thaw", primary, "--what", "host"]),
        _ => {}
    }
}
