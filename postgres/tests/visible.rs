//! A replica that has applied a commit and does not show it, and what ends that, on real servers.

mod pair;
mod servers;

use pair::{Node, Pair, until};
use postgres::find_installation;
use std::path::Path;

async fn rows(node: &Node) -> String {
    node.ask("SELECT count(*) FROM t").await.remove(0)
}

async fn all_replayed(pair: &Pair) -> bool {
    let at = pair.old.ask("SELECT pg_current_wal_flush_lsn()").await.remove(0);
    pair.new.sql.facts().await.expect("facts").replayed.is_some_and(|replayed| replayed >= at.parse().expect("an LSN"))
}

/// A commit that waits for its acknowledgement has not ended for those who read on the primary, and its record is in the
/// log; a replica that starts from a checkpoint made meanwhile is told that it has not ended.
async fn a_restarted_replica_says_whether_it_shows_what_it_has_applied(programs: &Path) {
    let mut pair = Pair::with_programs(Some(programs), &[], true).await;
    pair.old.run("CREATE TABLE t (id int)").await;
    pair.in_step().await;
    assert!(pair.new.sql.facts().await.expect("facts").shows_replayed, "nothing ran when it was copied");
    assert!(pair.old.sql.facts().await.expect("facts").shows_replayed, "a primary always does");

    pair.old.config.synchronous_standby_names = "\"nobody\"".into();
    pair.old.reconfigure().await;
    let client = pair.old.client("postgres").await;
    let waits = tokio::spawn(async move { client.batch_execute("INSERT INTO public.t VALUES (1)").await });
    until("it waits", async || {
        pair.old.ask("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await == ["1"]
    })
    .await;
    pair.old.sql.checkpoint().await.expect("checkpoint");
    until("the checkpoint is there", async || all_replayed(&pair).await).await;
    pair.new.sql.checkpoint().await.expect("restartpoint");
    pair.new.stop().await;
    let follower = pair.old.follower();
    pair.new.start(follower).await;
    until("all is applied", async || all_replayed(&pair).await).await;
    assert_eq!(rows(&pair.new).await, "0", "what makes it necessary to ask");
    assert!(!pair.new.sql.facts().await.expect("facts").shows_replayed);

    // Acknowledged now, and still not there.
    pair.old.config.synchronous_standby_names = String::new();
    pair.old.reconfigure().await;
    waits.await.expect("no panic").expect("acknowledged");
    assert_eq!([rows(&pair.old).await, rows(&pair.new).await], ["1", "0"]);
    assert!(!pair.new.sql.facts().await.expect("facts").shows_replayed);

    pair.old.sql.force_record().await.expect("one more transaction");
    until("it says so", async || pair.new.sql.facts().await.expect("facts").shows_replayed).await;
    assert_eq!(rows(&pair.new).await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_replica_says_whether_it_shows_what_it_has_applied_on_every_version_at_hand() {
    let mut all = servers::fetched();
    all.push(find_installation(None).expect("server programs").bin_dir);
    for programs in all {
        eprintln!("with {}", programs.display());
        a_restarted_replica_says_whether_it_shows_what_it_has_applied(&programs).await;
    }
}
