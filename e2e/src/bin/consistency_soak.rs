//! `consistency_soak [MINUTES] [COMMIT_MODE]`: rounds of half a minute in which clients read and write through a router
//! while replicas are paused, killed and rebuilt and the primary changes, or sleeps; each is judged. Every third asks for
//! bounded staleness, the others for what sessions are promised. Ends with an error at the first promise that is not
//! kept. `STEMMA_SEED` repeats a row.

use e2e::Cluster;
use e2e::history::{Promise, account, violations};
use e2e::readers::{Front, Hardship, run};
use std::sync::Arc;
use std::time::{Duration, Instant};

const ROUND: Duration = Duration::from_secs(30);
/// Rounds in which the primary's host sleeps as well.
const SLEEPS: u64 = 3;
const BOUNDED: Promise = Promise::Bounded(Duration::from_millis(300));

#[tokio::main]
async fn main() {
    let minutes: u64 = std::env::args().nth(1).map_or(10, |text| text.parse().expect("a number of minutes"));
    let given = std::env::var("STEMMA_SEED").ok().and_then(|text| text.parse::<u64>().ok());
    let seed = given.unwrap_or_else(|| u64::from(std::process::id()));
    println!("repeat with STEMMA_SEED={seed}");
    let cluster = Cluster::start(15, &[]).await;
    if let Some(mode) = std::env::args().nth(2) {
        cluster.run(&["config", "set", &format!("commit_mode={mode}")]).await.exits(0);
        cluster.wait_healthy().await;
    }
    let [session, bounded] = [Promise::Session, BOUNDED].map(|it| (it, Arc::new(Front::before(&cluster, it, false))));
    let (began, mut round, mut total) = (Instant::now(), 0, [0_usize; 3]);
    while began.elapsed() < Duration::from_secs(minutes * 60) {
        let (promise, front) = if round % 3 == 2 { &bounded } else { &session };
        // A fourth one within an hour would be replaced late, on purpose.
        let hardship = if round < SLEEPS { Hardship::Sleep } else { Hardship::Rebuilds };
        let seen = run(&cluster, front, ROUND, seed.wrapping_add(round), hardship).await;
        round += 1;
        let found = violations(&seen.operations, &seen.end, *promise);
        let numbers = [seen.operations.len(), seen.on_replicas, seen.changes];
        total = std::array::from_fn(|index| total[index] + numbers[index]);
        println!(
            "{round:>4}  {:<13}  {} operations, {} reads on replicas, {} changes of primary",
            promise.level(),
            numbers[0],
            numbers[1],
            numbers[2]
        );
        if let Some(first) = found.first() {
            panic!(
                "{} violations; the first: {first:?}\n{}\n{}",
                found.len(),
                account(&seen.operations, first),
                front.log()
            );
        }
    }
    println!(
        "no violation in {} operations, {} of them reads on replicas, over {} changes of primary",
        total[0], total[1], total[2]
    );
}
