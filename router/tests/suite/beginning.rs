//! A BEGIN by itself is answered by the router; a server hears of it with what comes next.

use crate::harness::{Front, Server, config, one, sqlstate, try_one};
use crate::hostile::believing;
use crate::raw::Raw;
use crate::splitting::split;
use std::time::Duration;
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
