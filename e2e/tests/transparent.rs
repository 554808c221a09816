//! The short form of `scripts/bench transparency`: what clients of a router notice when the primary changes.

use e2e::transparency::{Fault, Load, suffer};
use e2e::{Cluster, Front};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switchovers_are_not_noticed_and_crashes_end_no_connection() {
    let cluster = Cluster::start(15, &[]).await;
    let front = Front::before(&cluster, "").await;
    let load = Load::start(&front, 4).await;
    suffer(&cluster, &load, Fault::Switchover, 2, |_, _, _| {}).await;
    let report = load.end(&front).await;
    assert!(report.errors.is_empty(), "a switchover was noticed: {report} {:?}", report.unknown);
    assert_eq!(report.lost_connections, 0, "{report}");
    assert!(report.violations.is_empty(), "{report}: {:?}", report.violations);

    front.client().await.batch_execute("DROP TABLE accounts, tellers, branches, history").await.expect("dropped");
    let load = Load::start(&front, 4).await;
    suffer(&cluster, &load, Fault::Crash, 2, |_, _, _| {}).await;
    let report = load.end(&front).await;
    let allowed = |state: &String| state == "40001" || state == "08007";
    assert!(report.errors.keys().all(allowed), "{report}");
    assert_eq!(report.lost_connections, 0, "{report}");
    assert!(report.violations.is_empty(), "{report}: {:?}", report.violations);
}
