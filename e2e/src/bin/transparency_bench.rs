//! Measures what clients of a router notice when the primary changes under a load like TPC-B.
//!
//! `transparency_bench [RUNS] [CLIENTS] [switchover|crash]` makes a cluster of three servers and a router, and RUNS
//! switchovers; then another one, and RUNS times `kill -9` of the primary's server. `STEMMA_BIN` names the program. The exit status is 1 where a switchover was
//! noticed, a connection was lost, an error was none of 40001 and 08007, or the data is not what clients were told.

use e2e::transparency::{Fault, Load, Report, suffer};
use e2e::{Cluster, Front};
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| arguments.next().map_or(default, |text| text.parse().expect("a number"));
    let (runs, clients) = (number(30), number(8));
    let only = arguments.next();
    let mut well = true;
    let faults = [(Fault::Switchover, "switchover"), (Fault::Crash, "crash")];
    for (fault, name) in faults.into_iter().filter(|(_, name)| only.as_deref().is_none_or(|only| only == *name)) {
        let report = measure(fault, name, runs, clients).await;
        println!("{name}: runs {runs}  clients {clients}  {report}");
        for line in report.unknown.iter().chain(&report.violations) {
            println!("  {line}");
        }
        let allowed = |state: &String| fault == Fault::Crash && (state == "40001" || state == "08007");
        well &= report.errors.keys().all(allowed) && report.lost_connections == 0 && report.violations.is_empty();
    }
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn measure(fault: Fault, name: &str, runs: usize, clients: usize) -> Report {
    let cluster = Cluster::start(15, &[]).await;
    let front = Front::before(&cluster, "").await;
    let load = Load::start(&front, clients).await;
    suffer(&cluster, &load, fault, runs, |run, primary, stall| {
        eprintln!("{name} {run}: {primary} longest stall {:.3} s", stall.as_secs_f64());
    })
    .await;
    load.end(&front).await
}
