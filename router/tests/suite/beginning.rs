//! A BEGIN by itself is answered by the router; a server hears of it with what comes next.

use crate::harness::{Front, Server, config, one, sqlstate, try_one, wait_for};
use crate::hostile::believing;
use crate::raw::Raw;
use crate::splitting::{split, topology};
use std::time::Duration;
use tokio_postgres::{Client, Error, NoTls};
use wire::build;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_only_begun_keeps_no_server_from_others() {
    let server = Server::new();
    let front = Front::before(&server, 1).await;
    let (a, b, c) = (front.client().await, front.client().await, front.client().await);
    for client in [&a, &b] {
        client.batch_execute("BEGIN").await.expect("begun");
    }
    assert_eq!(server.sql("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'"), "0");
    assert_eq!(one(&c, "SELECT 1").await, "1", "the only server is free");

    // With the first statement the transaction begins, and has its server to its end.
    a.batch_execute("CREATE TABLE t (a int)").await.expect("made");
    let first = tokio::spawn(async move { (one(&b, "SELECT count(*) FROM t").await, b) });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!first.is_finished(), "the server is in a's transaction");
    a.batch_execute("INSERT INTO t VALUES (1); SAVEPOINT s; INSERT INTO t VALUES (2); ROLLBACK TO s")
        .await
        .expect("written");
    a.batch_execute("COMMIT").await.expect("committed");
    let (count, b) = first.await.expect("no panic");
    assert_eq!(count, "1");
    b.batch_execute("ROLLBACK").await.expect("ended");
    b.batch_execute("START TRANSACTION ISOLATION LEVEL REPEATABLE READ").await.expect("begun");
    assert_eq!(one(&b, "SHOW transaction_isolation").await, "repeatable read");
    b.batch_execute("INSERT INTO t VALUES (3)").await.expect("written");
    b.batch_execute("ROLLBACK").await.expect("rolled back");
    assert_eq!(one(&c, "SELECT count(*) FROM t").await, "1");
}

/// Each conversation is the same with the router and with the server itself, message by message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_is_answered_as_by_a_server() {
    let (server, front) = believing().await;
    server.sql("CREATE TABLE t (a int)");
    let query = |sql: &str| {
        let mut bytes = Vec::new();
        build::query(&mut bytes, sql);
        bytes
    };
    let mut segment = Vec::new();
    build::parse(&mut segment, b"", b"SELECT count(*) FROM t\0\0\0");
    build::bind_plain(&mut segment, b"", b"");
    build::execute(&mut segment, b"");
    build::sync(&mut segment);
    let mut lone_sync = Vec::new();
    build::sync(&mut lone_sync);
    let conversations: Vec<Vec<Vec<u8>>> = [
        vec!["BEGIN", "COMMIT", "SELECT 1"],
        vec!["begin;", "ROLLBACK", "COMMIT"],
        vec!["START TRANSACTION READ ONLY", "INSERT INTO t VALUES (1)", "SELECT 1", "COMMIT", "SELECT 1"],
        vec!["  BEGIN WORK ", "BEGIN", "END"],
        vec!["BEGIN", "SELECT 1/0", "SELECT 1", "ROLLBACK"],
        vec!["BEGIN", "", "COMMIT AND CHAIN", "INSERT INTO t VALUES (1)", "ABORT"],
        vec!["BEGIN ISOLATION LEVEL SERIALIZABLE", "SELECT count(*) FROM t", "COMMIT"],
        vec!["BEGIN", "SET LOCAL work_mem = '5MB'", "SHOW work_mem", "COMMIT", "SHOW work_mem"],
        vec!["BEGIN", "SET work_mem = '6MB'", "ROLLBACK", "SHOW work_mem"],
        vec!["BEGIN", "INSERT INTO t VALUES (7)", "COMMIT", "SELECT 1"],
        vec!["BEGIN NONSENSE", "SELECT 1"],
        vec!["BEGIN; SELECT 1", "COMMIT"],
        vec!["BEGIN", "COPY t FROM STDIN", "ROLLBACK"],
    ]
    .into_iter()
    .map(|texts| texts.into_iter().map(query).collect())
    .chain([
        vec![query("BEGIN"), segment.clone(), segment.clone(), query("COMMIT")],
        vec![query("BEGIN"), lone_sync.clone(), segment.clone(), query("ROLLBACK")],
        // Sent at once: nothing is put off.
        vec![[query("BEGIN"), query("SELECT 1"), segment.clone(), query("COMMIT")].concat()],
        vec![query("BEGIN"), [query("SELECT 1"), query("COMMIT"), query("BEGIN")].concat(), query("ROLLBACK")],
    ])
    .collect();
    for conversation in conversations {
        let (mut through, mut direct) =
            (Raw::connect(front.port, "postgres").await, Raw::connect(server.port, "postgres").await);
        for said in &conversation {
            // A copying is ended, or nothing that follows would be heard.
            let mut said = said.clone();
            if said.windows(4).any(|word| word == b"COPY") {
                build::copy_fail(&mut said, "enough");
            }
            let (ours, theirs) = (through.ask(&said).await, direct.ask(&said).await);
            assert_eq!(ours, theirs, "{}", String::from_utf8_lossy(&said));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_are_made_before_it_and_outlast_its_end() {
    let server = Server::new();
    let front = Front::before(&server, 1).await;
    let (a, b) = (front.client().await, front.client().await);
    a.batch_execute("SET work_mem = '5MB'").await.expect("set");
    assert_eq!(one(&b, "SHOW work_mem").await, "4MB", "the server is b's now");
    a.batch_execute("BEGIN").await.expect("begun");
    assert_eq!(one(&a, "SHOW work_mem").await, "5MB");
    a.batch_execute("ROLLBACK").await.expect("ended");
    assert_eq!(one(&a, "SHOW work_mem").await, "5MB", "it was not set within the transaction");
    assert_eq!(one(&b, "SHOW work_mem").await, "4MB");
    b.batch_execute("BEGIN").await.expect("begun");
    b.batch_execute("SET LOCAL stemma.consistency = 'strong'").await.expect("the router's own");
    assert_eq!(one(&b, "SHOW stemma.consistency").await, "strong");
    assert_eq!(one(&b, "SHOW work_mem").await, "4MB");
    assert_eq!(one(&b, "SHOW stemma.consistency").await, "strong", "until the end of the transaction");
    b.batch_execute("COMMIT").await.expect("ended");
    assert_eq!(one(&b, "SHOW stemma.consistency").await, "session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_outlives_the_server_and_waits_for_the_next() {
    let mut server = Server::new();
    let front = Front::before(&server, 2).await;
    let (idle, late) = (front.client().await, front.client().await);
    server.sql("CREATE TABLE t (a int)");
    idle.batch_execute("BEGIN").await.expect("begun");
    server.kill();
    late.batch_execute("BEGIN").await.expect("nobody is needed for that");
    let held = tokio::spawn(async move {
        late.batch_execute("INSERT INTO t VALUES (1)").await.expect("held");
        late
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    server.start();
    let late = held.await.expect("no failure");
    idle.batch_execute("INSERT INTO t VALUES (2)").await.expect("it has lost nothing");
    late.batch_execute("COMMIT").await.expect("committed");
    idle.batch_execute("ROLLBACK").await.expect("rolled back");
    assert_eq!(one(&idle, "SELECT string_agg(a::text, ' ') FROM t").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_server_comes_the_transaction_has_failed() {
    let mut server = Server::new();
    let hold_max = Duration::from_millis(400);
    let front = Front::start(server.topology(1), router::Config { hold_max, ..config(1) }).await;
    let client = front.client().await;
    server.kill();
    client.batch_execute("BEGIN").await.expect("begun");
    let refused = try_one(&client, "SELECT 1").await.expect_err("no server");
    assert_eq!(sqlstate(&refused), "57P03", "{refused:?}");
    assert_eq!(sqlstate(&try_one(&client, "SELECT 1").await.expect_err("failed")), "25P02");
    client.batch_execute("ROLLBACK").await.expect("ended");
    server.start();
    assert_eq!(one(&client, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_goes_where_its_words_lead() {
    let (_primary, _standby, front) = split().await;
    let client = front.client().await;
    for (begin, read_only) in [("BEGIN", "off"), ("BEGIN READ ONLY", "on"), ("BEGIN", "off")] {
        client.batch_execute(begin).await.expect("begun");
        assert_eq!(
            one(&client, "SELECT recovers()").await,
            if read_only == "on" { "true" } else { "false" },
            "{begin}"
        );
        assert_eq!(one(&client, "SELECT place()").await, read_only, "{begin}");
        client.batch_execute("COMMIT").await.expect("ended");
    }
    assert_eq!(one(&client, "SELECT recovers()").await, "true");
}

/// Runs a statement that waits for the lock on `t`, ends its server meanwhile, and gives way.
async fn lost_while_it_waits(server: &Server, client: Client, sql: &'static str) -> (Result<String, Error>, Client) {
    let locker = server.options().connect(NoTls).await.expect("past the router");
    tokio::spawn(locker.1);
    locker.0.batch_execute("BEGIN; LOCK TABLE t").await.expect("locked");
    let running = tokio::spawn(async move { (try_one(&client, sql).await, client) });
    let waiting = "SELECT coalesce(max(pid), 0) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    wait_for("it to wait", || server.sql(waiting) != "0");
    let ended = server.sql(&format!("SELECT pg_terminate_backend(({waiting}), 20000)"));
    assert_eq!(ended, "t");
    locker.0.batch_execute("COMMIT").await.expect("unlocked");
    running.await.expect("no panic")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_it_begins_with_is_read_again_and_nothing_else() {
    let (server, _standby, front) = split().await;
    server.sql("INSERT INTO t VALUES (7)");
    let client = front.client().await;
    client.batch_execute("BEGIN").await.expect("begun");
    let (read, client) = lost_while_it_waits(&server, client, "SELECT a FROM t").await;
    assert_eq!(read.expect("F-5: begun anew, and read again"), "7");
    client.batch_execute("UPDATE t SET a = 8").await.expect("the transaction lives");
    client.batch_execute("COMMIT").await.expect("committed");
    assert_eq!(server.sql("SELECT a FROM t"), "8");

    client.batch_execute("BEGIN").await.expect("begun");
    assert_eq!(one(&client, "SELECT 1").await, "1");
    let (read, client) = lost_while_it_waits(&server, client, "SELECT a FROM t").await;
    assert_eq!(sqlstate(&read.expect_err("something of it is answered")), "40001");
    client.batch_execute("ROLLBACK").await.expect("ended");

    client.batch_execute("BEGIN").await.expect("begun");
    let (wrote, client) = lost_while_it_waits(&server, client, "UPDATE t SET a = 9").await;
    assert_eq!(sqlstate(&wrote.expect_err("it may do more than write rows")), "40001");
    client.batch_execute("ROLLBACK").await.expect("ended");
    assert_eq!(one(&client, "SELECT a FROM t").await, "8");
}

/// What recovery has cancelled on a replica is read on the primary.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_recovery_cancels_is_begun_anew_elsewhere() {
    let (primary, standby, front) = split().await;
    primary.sql("INSERT INTO t SELECT generate_series(1, 50)");
    standby.sql("ALTER SYSTEM SET max_standby_streaming_delay = 0");
    standby.sql("SELECT pg_reload_conf()");
    let rows = || standby.sql("SELECT count(*) FROM t");
    wait_for("the rows to arrive", || rows() == "50");
    front.topology.send_replace(topology(&primary, &standby));
    for (begin, left) in [(None, 40), (Some("BEGIN READ ONLY"), 30)] {
        let client = front.client().await;
        // One that has just failed is left alone for a while.
        while one(&client, "SELECT recovers()").await != "true" {
            tokio::time::sleep(Duration::from_millis(50)).await;
            front.topology.send_replace(topology(&primary, &standby));
        }
        if let Some(begin) = begin {
            client.batch_execute(begin).await.expect("begun");
        }
        let sql = "SELECT count(*) || recovers() || (SELECT count(pg_sleep(2)) FROM t WHERE a = 1) FROM t";
        let reading = tokio::spawn(async move { (one(&client, sql).await, client) });
        let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        wait_for("it to read", || standby.sql(sleeping) != "0");
        primary.sql(&format!("DELETE FROM t WHERE a > {left}"));
        primary.sql("VACUUM t");
        let (said, client) = reading.await.expect("no panic");
        assert_eq!(said, format!("{left}false1"), "it began again, on the primary: {begin:?}");
        if begin.is_some() {
            client.batch_execute("COMMIT").await.expect("ended");
        }
        wait_for("the rows to go", || rows() == left.to_string());
    }
}
