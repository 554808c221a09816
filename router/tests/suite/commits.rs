//! A COMMIT whose answer is lost: its outcome is looked up on the server that is the primary then (F-12).

use crate::harness::{Front, Server, config, one, sqlstate, try_one, wait_for};
use futures_util::SinkExt;
use model::state::{LineageEntry, XidSwitch};
use model::{Epoch, Timeline};
use router::Topology;
use std::time::Duration;
use tokio_postgres::Client;

/// A server on which commits wait for a replica that does not exist where they ask to, so that they can be met in flight.
fn waiting_server() -> Server {
    let mut server = Server::new();
    server.sql("CREATE TABLE t (a int)");
    server.sql("ALTER SYSTEM SET synchronous_commit = 'local'");
    server.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    server.kill();
    server.start();
    server
}

/// A client whose COMMIT is in flight on `server`, and what will come of it.
async fn commit_in_flight(
    front: &Front,
    server: &Server,
    value: i32,
) -> tokio::task::JoinHandle<(Result<String, tokio_postgres::Error>, Client)> {
    let client = front.client().await;
    let begin = format!("BEGIN; SET LOCAL synchronous_commit = on; INSERT INTO t VALUES ({value})");
    client.batch_execute(&begin).await.expect("begun");
    let running = tokio::spawn(async move { (try_one(&client, "COMMIT").await, client) });
    wait_for("the commit to wait", || {
        server.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == "1"
    });
    running
}

/// The transaction numbers of a replica, as a keeper reads them before it promotes it.
fn next_xid(replica: &Server) -> u64 {
    let text = replica.sql("SELECT 3 + age('3'::xid)");
    text.parse().expect("a number below the first wrap-around")
}

/// Promotes a replica, and says what a router is told of it then.
fn promoted(replica: &Server) -> Topology {
    let kept_below = next_xid(replica);
    assert_eq!(replica.sql("SELECT pg_promote()"), "t");
    let given_from = replica.sql("SELECT pg_snapshot_xmax(pg_current_snapshot())").parse().expect("a number");
    let entry = |epoch, timeline, from: Option<u64>, xids| LineageEntry {
        epoch: Epoch(epoch),
        timeline: Timeline(timeline),
        began_at: None,
        from: from.map(Epoch),
        xids,
    };
    let noted = Some(XidSwitch { kept_below, given_from });
    Topology { lineage: vec![entry(1, 1, None, None), entry(2, 2, Some(1), noted)], ..replica.topology(2) }
}

fn with_first_entry(server: &Server) -> Topology {
    let first = LineageEntry { epoch: Epoch(1), timeline: Timeline(1), began_at: None, from: None, xids: None };
    Topology { lineage: vec![first], ..server.topology(1) }
}

fn caught_up(primary: &Server, replica: &Server) {
    let at = primary.sql("SELECT pg_current_wal_flush_lsn()");
    wait_for("the replica to have it all", || {
        replica.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{at}'")) == "t"
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_reached_the_new_primary_is_answered_and_one_that_did_not_is_undone() {
    let mut old = waiting_server();
    let replica = old.standby();
    let front = Front::start(with_first_entry(&old), config(4)).await;
    let kept = commit_in_flight(&front, &old, 1).await;
    caught_up(&old, &replica);
    // From here on nothing reaches the replica.
    replica.sql("ALTER SYSTEM SET primary_conninfo = ''");
    replica.sql("SELECT pg_reload_conf()");
    wait_for("the stream to be cut", || replica.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0");
    let client = front.client().await;
    client.batch_execute("BEGIN; SET LOCAL synchronous_commit = on; INSERT INTO t VALUES (2)").await.expect("begun");
    let left_out = tokio::spawn(async move { (try_one(&client, "COMMIT").await, client) });
    wait_for("both commits to wait", || {
        old.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == "2"
    });
    old.kill();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!kept.is_finished() && !left_out.is_finished(), "nobody is told before it is known");
    front.topology.send_replace(promoted(&replica));
    let (outcome, client) = kept.await.expect("no panic");
    outcome.expect("committed: F-12");
    assert_eq!(one(&client, "SELECT count(*) FROM t WHERE a = 1").await, "1", "it was made, and once");
    let (outcome, client) = left_out.await.expect("no panic");
    let undone = outcome.expect_err("rolled back: F-12");
    assert_eq!(sqlstate(&undone), "40001", "{undone:?}");
    assert_eq!(one(&client, "SELECT count(*) FROM t WHERE a = 2").await, "0", "the connection lives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_that_the_new_primary_gave_again_is_not_taken_for_the_old_one() {
    let mut old = waiting_server();
    let replica = old.standby();
    caught_up(&old, &replica);
    replica.sql("ALTER SYSTEM SET primary_conninfo = ''");
    replica.sql("SELECT pg_reload_conf()");
    wait_for("the stream to be cut", || replica.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0");
    let front = Front::start(with_first_entry(&old), config(4)).await;
    let running = commit_in_flight(&front, &old, 1).await;
    old.kill();
    let told = promoted(&replica);
    // Others write first, under the numbers that were lost.
    for _ in 0..5 {
        replica.sql("BEGIN; SET LOCAL synchronous_commit = local; INSERT INTO t VALUES (9); COMMIT");
    }
    front.topology.send_replace(told);
    let (outcome, client) = running.await.expect("no panic");
    assert_eq!(sqlstate(&outcome.expect_err("rolled back")), "40001");
    assert_eq!(one(&client, "SELECT count(*) FROM t WHERE a = 1").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_noted_at_the_promotion_is_not_guessed() {
    let mut old = waiting_server();
    let replica = old.standby();
    let front = Front::start(with_first_entry(&old), config(4)).await;
    let running = commit_in_flight(&front, &old, 1).await;
    caught_up(&old, &replica);
    old.kill();
    let mut told = promoted(&replica);
    told.lineage[1].xids = None;
    front.topology.send_replace(told);
    let (outcome, client) = running.await.expect("no panic");
    let unknown = outcome.expect_err("unknown");
    assert_eq!(sqlstate(&unknown), "08007");
    let detail = unknown.as_db_error().and_then(|said| said.detail()).unwrap_or_default();
    assert!(detail.contains("transaction "), "its number is told: {detail}");
    assert_eq!(one(&client, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_lives_is_asked_itself_and_confirms_before_it_counts() {
    let server = waiting_server();
    let front = Front::start(with_first_entry(&server), config(4)).await;
    let running = commit_in_flight(&front, &server, 1).await;
    let pid = server.sql("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
    // It ends the wait: committed here, and perhaps nowhere else.
    assert_eq!(server.sql(&format!("SELECT pg_terminate_backend({pid}, 20000)")), "t");
    wait_for("the confirmation to wait for replicas as well", || {
        server.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == "1"
    });
    assert!(!running.is_finished());
    server.sql("ALTER SYSTEM SET synchronous_standby_names = ''");
    server.sql("SELECT pg_reload_conf()");
    let (outcome, client) = running.await.expect("no panic");
    outcome.expect("committed");
    assert_eq!(one(&client, "SELECT count(*) FROM t").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_of_the_same_server_a_number_may_be_anybodys() {
    let mut server = waiting_server();
    let front = Front::start(with_first_entry(&server), config(4)).await;
    let running = commit_in_flight(&front, &server, 1).await;
    server.kill();
    server.start();
    let (outcome, client) = running.await.expect("no panic");
    assert_eq!(sqlstate(&outcome.expect_err("unknown")), "08007");
    assert_eq!(one(&client, "SELECT 1").await, "1", "the connection lives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commit_of_a_transaction_that_only_read_is_answered() {
    let server = Server::new();
    let front = Front::before(&server, 2).await;
    let client = front.client().await;
    client.batch_execute("BEGIN; SELECT 1").await.expect("begun");
    let pid = one(&client, "SELECT 1 AS a FROM pg_class LIMIT 1").await;
    assert_eq!(pid, "1");
    let backend = server.sql("SELECT pid FROM pg_stat_activity WHERE state = 'idle in transaction'");
    assert_eq!(server.sql(&format!("SELECT pg_terminate_backend({backend}, 20000)")), "t");
    // What was open is told as lost with the next statement; only a COMMIT that was sent before can be answered.
    assert_eq!(sqlstate(&try_one(&client, "SELECT 2").await.expect_err("lost")), "40001");
    client.batch_execute("ROLLBACK").await.expect("ended");
    assert_eq!(one(&client, "SELECT 1").await, "1");
}

/// The question for a transaction's number disturbs nothing that lives on the server across requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn portals_statements_and_savepoints_do_not_notice_the_question() {
    let server = Server::new();
    let front = Front::before(&server, 2).await;
    let mut client = front.client().await;
    client.batch_execute("CREATE TABLE t (a int)").await.expect("made");
    for round in 0..3 {
        let transaction = client.transaction().await.expect("begun");
        transaction.execute("INSERT INTO t SELECT generate_series(1, 10)", &[]).await.expect("written");
        let statement = transaction.prepare("SELECT a FROM t ORDER BY a LIMIT 10").await.expect("prepared");
        let portal = transaction.bind(&statement, &[]).await.expect("bound");
        assert_eq!(transaction.query_portal(&portal, 4).await.expect("rows").len(), 4);
        transaction.batch_execute("SAVEPOINT s").await.expect("saved");
        transaction.batch_execute("SELECT 1/0").await.expect_err("failed");
        transaction.batch_execute("ROLLBACK TO s").await.expect("back");
        assert_eq!(transaction.query_portal(&portal, 4).await.expect("rows").len(), 4);
        transaction.execute("INSERT INTO t VALUES (1)", &[]).await.expect("written");
        transaction.commit().await.expect("committed");
        assert_eq!(one(&client, "SELECT count(*) FROM t").await, ((round + 1) * 11).to_string());
    }
    let transaction = client.transaction().await.expect("begun");
    transaction.execute("INSERT INTO t VALUES (1)", &[]).await.expect("written");
    let sink = transaction.copy_in("COPY t FROM STDIN").await.expect("begun");
    let mut sink = std::pin::pin!(sink);
    sink.send(&b"5\n6\n"[..]).await.expect("sent");
    assert_eq!(sink.finish().await.expect("copied"), 2);
    transaction.commit().await.expect("committed");
}
