//! What sessions see through a router that reads on replicas, while those are paused and the primary changes; and that
//! the judge of it would see it if positions were not looked at.

use e2e::Cluster;
use e2e::history::{Promise, Violation, violations};
use e2e::readers::{Front, Hardship, run};
use std::sync::Arc;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_read_their_writes_and_never_go_back_and_the_check_is_awake() {
    let cluster = Cluster::start(15, &[]).await;
    let front = Arc::new(Front::before(&cluster, Promise::Session, false));
    let seen = run(&cluster, &front, Duration::from_secs(20), 0x5eed, Hardship::Changes).await;
    let found = violations(&seen.operations, &seen.end, Promise::Session);
    eprintln!(
        "{} operations, {} reads on replicas, {} changes of primary",
        seen.operations.len(),
        seen.on_replicas,
        seen.changes
    );
    assert!(found.is_empty(), "{} violations, the first: {:#?}", found.len(), found.first());
    assert!(seen.operations.len() > 300 && seen.on_replicas > 100 && seen.changes > 0, "too little to prove anything");
    drop(front);

    let careless = Arc::new(Front::before(&cluster, Promise::Session, true));
    let seen = run(&cluster, &careless, Duration::from_secs(10), 0x5eed, Hardship::Pauses).await;
    let found = violations(&seen.operations, &seen.end, Promise::Session);
    let own = found.iter().filter(|violation| matches!(violation, Violation::OwnWriteMissing(..))).count();
    let back = found.iter().filter(|violation| matches!(violation, Violation::WentBack(..))).count();
    eprintln!("without the check: {own} own writes missing, {back} reads that went back");
    assert!(own > 0 && back > 0, "without the check of positions nothing was found: {own}, {back}");
}

/// What a read may miss.
const BOUNDED: Promise = Promise::Bounded(Duration::from_millis(300));

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_miss_no_more_than_their_bound_and_the_check_is_awake() {
    let cluster = Cluster::start(15, &[]).await;
    let front = Arc::new(Front::before(&cluster, BOUNDED, false));
    let seen = run(&cluster, &front, Duration::from_secs(20), 0xb0, Hardship::Changes).await;
    let wrong = violations(&seen.operations, &seen.end, BOUNDED);
    eprintln!(
        "{} operations, {} reads on replicas, {} changes of primary",
        seen.operations.len(),
        seen.on_replicas,
        seen.changes
    );
    assert!(wrong.is_empty(), "{} violations, the first: {:#?}", wrong.len(), wrong.first());
    assert!(seen.operations.len() > 300 && seen.on_replicas > 100 && seen.changes > 0, "too little to prove anything");
    drop(front);

    let careless = Arc::new(Front::before(&cluster, BOUNDED, true));
    let seen = run(&cluster, &careless, Duration::from_secs(12), 0xb0, Hardship::Pauses).await;
    let found = violations(&seen.operations, &seen.end, BOUNDED);
    let stale = found.iter().filter(|violation| matches!(violation, Violation::Stale(..))).count();
    eprintln!("without the check: {stale} reads beyond the bound");
    assert!(stale > 0, "without the check of positions nothing was found");
}
