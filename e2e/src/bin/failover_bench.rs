//! Measures changes of primary on real servers: the longest write gap that four clients see, and what they lost.
//!
//! `failover_bench FAULT RUNS [PRODUCT]` prints one line for each run and a last one with median, maximum and losses.
//! FAULT is `crash` (kill -9 of all processes of the primary's server), `host` (server and keeper), `freeze` and
//! `freeze-host` (SIGSTOP of the same), `switchover`, `isolate` (the primary's network namespace is cut off) or
//! `async-host`. `STEMMA_BIN` names the program, as for the tests. PRODUCT is `stemma`, or for comparison `patroni`
//! (Debian's, as installed) or `patroni-minimum` (with the shortest times that its documentation allows).

use e2e::net::{Sandbox, Wired, wait_for};
use e2e::oracle::Oracle;
use e2e::patroni::{self, Patroni, Timings};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
/// Clients write for so long before each fault.
const STEADY: Duration = Duration::from_millis(700);

/// After so many failovers keepers begin to wait before the next, by what they remember. Each run measures a cluster
/// that had none lately, so they are started anew before that.
const FAILOVERS_FREE: usize = 3;

/// After a longer gap the cluster's own account is printed.
const WORTH_EXPLAINING: Duration = Duration::from_secs(2);

enum Place {
    Here(Sandbox),
    Apart(Wired),
    Theirs(Patroni),
}

impl Place {
    fn node(&self, name: &str) -> &e2e::net::Node {
        match self {
            Place::Here(sandbox) => sandbox.node(name),
            Place::Apart(wired) => wired.node(name),
            Place::Theirs(_) => panic!("{name} is no node of ours"),
        }
    }
    fn servers(&self, names: &[&str]) -> Vec<String> {
        match self {
            Place::Here(_) | Place::Apart(_) => names.iter().map(|name| self.node(name).uri()).collect(),
            Place::Theirs(patroni) => patroni.servers(),
        }
    }
    /// Keepers forget how many failovers there were lately. The servers go on.
    fn refresh(&mut self, names: &[&str]) {
        match self {
            Place::Here(sandbox) => names.iter().for_each(|name| sandbox.act(&["restart", name])),
            Place::Apart(wired) => {
                names.iter().for_each(|name| wired.kill_keeper(name));
                names.iter().for_each(|name| wired.start_keeper(name));
            }
            Place::Theirs(_) => {}
        }
    }
    fn stemma(&self, arguments: &[&str]) -> e2e::net::Said {
        match self {
            Place::Here(sandbox) => sandbox.stemma(arguments),
            Place::Apart(wired) => wired.stemma("n1", arguments),
            Place::Theirs(_) => panic!("no command of ours: {arguments:?}"),
        }
    }
    /// Waits until all is well, as every node sees it, and says who is primary.
    fn settled(&self, names: &[&str]) -> String {
        if let Place::Theirs(patroni) = self {
            return patroni.settled();
        }
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
    let mut arguments = std::env::args().skip(1);
    let fault = arguments.next().unwrap_or_else(|| "crash".to_owned());
    let runs: usize = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(5);
    let product = arguments.next().unwrap_or_else(|| "stemma".to_owned());
    let Some(place) = build(&product, &fault) else { return };
    measure(place, &product, &fault, runs);
}

fn build(product: &str, fault: &str) -> Option<Place> {
    let timings = match product {
        "stemma" => {
            assert!(std::env::var_os("STEMMA_BIN").is_some(), "STEMMA_BIN names the program to be measured");
            return Some(match fault {
                "isolate" => Place::Apart(Wired::start(3).expect("namespaces can be made")),
                _ => Place::Here(Sandbox::start(&["--nodes", "3"])),
            });
        }
        "patroni" => Timings::DEFAULT,
        "patroni-minimum" => Timings::MINIMUM,
        other => panic!("no product `{other}`"),
    };
    if let Some(why) = patroni::missing() {
        println!("{product}: not measured: {why}");
        return None;
    }
    Some(Place::Theirs(Patroni::start(timings).expect("a Patroni cluster")))
}

fn measure(mut place: Place, product: &str, fault: &str, runs: usize) {
    let names = ["n1", "n2", "n3"];
    if fault == "async-host" {
        let said = place.stemma(&["config", "set", "commit_mode=async"]);
        assert_eq!(said.code, 0, "{said:?}");
    }
    let servers = place.servers(&names);
    place.settled(&names);
    let mut oracle = Oracle::measuring(servers.clone(), 4);
    let mut gaps = Vec::new();
    let mut lost_in_all = 0;
    for run in 1..=runs {
        if run > 1 && run % FAILOVERS_FREE == 1 {
            place.refresh(&names);
        }
        let primary = place.settled(&names);
        let began = oracle.count();
        wait_for("clients that write", PATIENCE, || {
            anyhow::ensure!(oracle.count() > began + 50, "{} writes", oracle.count() - began);
            Ok(())
        });
        std::thread::sleep(STEADY);
        oracle.forget_gaps();
        let at = Instant::now();
        inject(fault, &mut place, &primary, &names);
        let old = names.iter().position(|name| *name == primary);
        let stays = fault == "crash";
        wait_for("writes after the fault", PATIENCE, || {
            anyhow::ensure!(stays || Some(oracle.last_server()) != old, "the old one is the last that acknowledged");
            Ok(())
        });
        // More than was under way when the fault came.
        let resumed = oracle.count();
        wait_for("clients that write again", PATIENCE, || {
            anyhow::ensure!(oracle.count() > resumed + 50, "{} writes", oracle.count() - resumed);
            Ok(())
        });
        let gap = oracle.longest_gap();
        mend(fault, &mut place, &primary);
        let now = place.settled(&names);
        let lost = oracle.lost().len();
        lost_in_all += lost;
        println!(
            "{product} {fault} {run:>3}: gap {:>6.3} s  {primary} -> {now}  lost {lost}  whole again after {:.1} s",
            gap.as_secs_f64(),
            at.elapsed().as_secs_f64()
        );
        if gap > WORTH_EXPLAINING && !matches!(place, Place::Theirs(_)) {
            println!("{}", place.stemma(&["explain", "last-failover"]).out);
        }
        gaps.push(gap);
    }
    oracle.stop();
    gaps.sort();
    let median = gaps[gaps.len() / 2].as_secs_f64();
    let most = gaps.last().map_or(0.0, Duration::as_secs_f64);
    println!(
        "{product} {fault}: runs {runs}  longest write gap: median {median:.3} s  maximum {most:.3} s  lost {lost_in_all} of {}",
        oracle.count()
    );
    for (name, server) in names.iter().zip(&servers) {
        println!("{name} holds {:?} rows", oracle.held_by(server));
    }
}

fn inject(fault: &str, place: &mut Place, primary: &str, names: &[&str]) {
    let other = names.iter().find(|name| **name != primary).expect("another node");
    match (fault, place) {
        ("crash", Place::Here(sandbox)) => sandbox.act(&["crash", primary, "--what", "postgres"]),
        ("crash", Place::Theirs(patroni)) => patroni.crash_server(primary),
        ("host" | "async-host", Place::Here(sandbox)) => sandbox.act(&["crash", primary, "--what", "host"]),
        ("host", Place::Theirs(patroni)) => patroni.crash_host(primary),
        ("isolate", Place::Apart(wired)) => wired.cut(primary),
        ("switchover", Place::Theirs(patroni)) => {
            // The synchronous replica alone may be asked for.
            let done = names.iter().filter(|name| **name != primary).any(|to| patroni.switchover(primary, to).is_ok());
            assert!(done, "no switchover from {primary}");
        }
        ("freeze", Place::Here(sandbox)) => sandbox.act(&["freeze", primary, "--what", "postgres"]),
        ("freeze-host", Place::Here(sandbox)) => sandbox.act(&["freeze", primary, "--what", "host"]),
        ("switchover", place) => {
            let said = place.stemma(&["switchover", "--to", other, "--yes"]);
            assert_eq!(said.code, 0, "{said:?}");
        }
        (fault, _) => panic!("`{fault}` is not measured here"),
    }
}

fn mend(fault: &str, place: &mut Place, primary: &str) {
    match (fault, place) {
        ("host" | "async-host", Place::Here(sandbox)) => sandbox.act(&["restart", primary]),
        ("host", Place::Theirs(patroni)) => patroni.run(primary).expect("it starts"),
        ("isolate", Place::Apart(wired)) => wired.heal(primary),
        ("freeze", Place::Here(sandbox)) => sandbox.act(&["thaw", primary, "--what", "postgres"]),
        ("freeze-host", Place::Here(sandbox)) => sandbox.act(&["thaw", primary, "--what", "host"]),
        _ => {}
    }
}
