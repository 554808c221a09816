//! The protocol's less common ways: COPY, pipelines, cancelling, errors in the middle.

use crate::harness::{Front, Server, config, one, sqlstate, try_one};
use crate::hostile::believing;
use crate::raw::Raw;
use futures_util::{SinkExt, TryStreamExt};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wire::build;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copying_works_both_ways_and_an_error_in_it_is_survived() {
    let server = Server::new();
    let front = Front::before(&server, 1).await;
    let client = front.client().await;
    client.batch_execute("CREATE TABLE t (a int, b text)").await.expect("made");
    let text = "x".repeat(300_000);
    let rows = format!("1\t{text}\n2\tshort\n");
    let sink = client.copy_in("COPY t FROM STDIN").await.expect("begun");
    let mut sink = std::pin::pin!(sink);
    sink.send(std::io::Cursor::new(rows.clone().into_bytes())).await.expect("sent");
    assert_eq!(sink.finish().await.expect("finished"), 2);
    let out: Vec<_> = client.copy_out("COPY t TO STDOUT").await.expect("begun").try_collect().await.expect("rows");
    assert_eq!(out.concat(), rows.as_bytes());

    let sink = client.copy_in("COPY t FROM STDIN").await.expect("begun");
    let mut sink = std::pin::pin!(sink);
    sink.send(std::io::Cursor::new(b"not a number\tx\n".to_vec())).await.expect("sent");
    assert_eq!(sqlstate(&sink.finish().await.expect_err("no number")), "22P02");
    assert_eq!(one(&client, "SELECT count(*) FROM t").await, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_is_answered_in_order_and_an_error_ends_only_its_segment() {
    let server = Server::new();
    let front = Front::before(&server, 1).await;
    let client = front.client().await;
    let (good, bad) = (
        client.prepare("SELECT $1::int * 2").await.expect("prepared"),
        client.prepare("SELECT 1 / $1::int").await.expect("prepared"),
    );
    let other = front.client().await;
    let (zero, five, six) = (0, 5, 6);
    let five: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&five];
    let zero: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&zero];
    let six: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&six];
    for _ in 0..50 {
        let (first, second, third, fourth) = tokio::join!(
            client.query_one(&good, &five),
            client.query_one(&bad, &zero),
            client.query_one(&good, &six),
            one(&other, "SELECT 'between'"),
        );
        assert_eq!(first.expect("good").get::<_, i32>(0), 10);
        assert_eq!(sqlstate(&second.expect_err("divided by zero")), "22012");
        assert_eq!(third.expect("good").get::<_, i32>(0), 12);
        assert_eq!(fourth, "between");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_hits_what_its_client_runs_and_nothing_else() {
    let server = Server::new();
    let front = Front::before(&server, 2).await;
    let (a, b) = (front.client().await, front.client().await);
    let token = a.cancel_token();
    let began = std::time::Instant::now();
    let running = tokio::spawn(async move { (try_one(&a, "SELECT pg_sleep(30)").await, a) });
    let innocent = tokio::spawn(async move { one(&b, "SELECT pg_sleep(1)").await });
    while !server.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(30)%' AND state = 'active' AND pid <> pg_backend_pid()").contains('1') {
        assert!(began.elapsed() < crate::harness::PATIENCE);
    }
    token.cancel_query(tokio_postgres::NoTls).await.expect("sent");
    let (cancelled, a) = running.await.expect("no panic");
    assert_eq!(sqlstate(&cancelled.expect_err("cancelled")), "57014");
    assert!(began.elapsed() < Duration::from_secs(25));
    innocent.await.expect("not cancelled");
    // A key that was guessed does nothing; nor does the right one while nothing runs.
    token.cancel_query(tokio_postgres::NoTls).await.expect("sent");
    assert_eq!(one(&a, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_request_that_is_dealt_with_does_not_hit_what_comes_next() {
    let mut server = Server::new();
    server.believe();
    let config =
        router::Config { workers: 2, auth: router::config::ClientAuth::Trust(Default::default()), ..config(2) };
    let front = Front::start(server.topology(1), config).await;
    let mut client = Raw::connect(front.port, "postgres").await;
    let (mut cancel, mut ask) = (Vec::new(), Vec::new());
    build::cancel_request(&mut cancel, client.key.0, &client.key.1);
    build::query(&mut ask, "SELECT pg_sleep(0.002)");
    for round in 0..300 {
        let mut other = TcpStream::connect(("127.0.0.1", front.port)).await.expect("connected");
        other.write_all(&cancel).await.expect("sent");
        // Its end is the word that the request is dealt with.
        let end = tokio::time::timeout(crate::harness::PATIENCE, other.read(&mut [0; 1])).await;
        assert_eq!(end.expect("in time").expect("closed"), 0);
        assert_eq!(client.segment(&ask).await, "TDCZ", "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listening_clients_hear_what_others_notify() {
    let server = Server::new();
    let front = Front::before(&server, 2).await;
    let (client, mut connection) = front.options().connect(tokio_postgres::NoTls).await.expect("in");
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let tokio_postgres::AsyncMessage::Notification(note) = message {
                let _ = heard.send(note.payload().to_owned());
            }
        }
    });
    client.batch_execute("LISTEN news").await.expect("listens");
    front.client().await.batch_execute("NOTIFY news, 'hello'").await.expect("notified");
    let note = tokio::time::timeout(crate::harness::PATIENCE, hears.recv()).await.expect("in time");
    assert_eq!(note.as_deref(), Some("hello"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_is_refused_and_harms_nobody() {
    let server = Server::new();
    let front = Front::before(&server, 1).await;
    let client = front.client().await;
    let mut good = Vec::new();
    build::startup(&mut good, &[("user", "postgres")]);
    let hostile: &[&[u8]] = &[
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x08\0\x03\0\0",
        b"\0\0\0\x09\0\x03\0\0\0",
        &[good.as_slice(), b"p\xff\xff\xff\xff"].concat(),
        &[good.as_slice(), b"p\0\0\0\x04"].concat(),
        &[good.as_slice(), b"Q\0\0\0\x0dSELECT 1\0"].concat(),
    ];
    for bytes in hostile {
        let mut socket = TcpStream::connect(("127.0.0.1", front.port)).await.expect("connected");
        socket.write_all(bytes).await.expect("sent");
        let mut answer = Vec::new();
        let end = tokio::time::timeout(crate::harness::PATIENCE, socket.read_to_end(&mut answer)).await;
        assert!(end.is_ok(), "{bytes:?} is kept waiting");
        assert!(!answer.contains(&b'Z'), "{bytes:?} got in");
    }
    assert_eq!(one(&client, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_rows_and_texts_pass_in_pieces() {
    let server = Server::new();
    let front = Front::before(&server, 1).await;
    let client = front.client().await;
    assert_eq!(one(&client, "SELECT repeat('abc', 3000000)").await.len(), 9_000_000);
    let long = "y".repeat(2_000_000);
    assert_eq!(one(&client, &format!("SELECT length('{long}')")).await, "2000000");
    let row = client.query_one("SELECT length($1::text)", &[&long]).await.expect("a long parameter");
    assert_eq!(row.get::<_, i32>(0), 2_000_000);
    let statement = client.prepare(&format!("SELECT length('{long}') + $1::int")).await.expect("a long statement");
    assert_eq!(client.query_one(&statement, &[&1]).await.expect("executed").get::<_, i32>(0), 2_000_001);
}

/// All clients of a thread use one buffer in turn: each gets its own rows, whole and in order, however slowly it reads, and
/// a row whose server was lost is not ended by anything else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_rows_reach_each_client_whole_however_slowly_it_reads() {
    const ROWS: usize = 12;
    let (mut server, front) = believing().await;
    let tasks: Vec<_> = ["a", "b", "c", "d"]
        .into_iter()
        .enumerate()
        .map(|(index, letter)| {
            let port = front.port;
            tokio::spawn(async move {
                let mut client = Raw::connect(port, "postgres").await;
                let rows = format!("SELECT repeat('{letter}' || n, 700000) FROM generate_series(10, {}) n", ROWS + 9);
                let mut query = Vec::new();
                build::query(&mut query, &rows);
                client.send(&query).await;
                for row in 0..ROWS {
                    let message = loop {
                        let (tag, body) = client.message().await.expect("the connection lives");
                        assert!(matches!(tag, b'T' | b'D'), "{tag}");
                        if tag == b'D' {
                            break body;
                        }
                        // Every second client lets its rows wait.
                        tokio::time::sleep(Duration::from_millis(50 * (index as u64 % 2))).await;
                    };
                    let wanted = format!("{letter}{}", row + 10).repeat(700_000);
                    assert!(message[6..] == *wanted.as_bytes(), "row {row} of {letter} is not what was asked for");
                    tokio::time::sleep(Duration::from_millis(20 * (index as u64 % 2))).await;
                }
                assert_eq!(client.message().await.map(|(tag, _)| tag), Some(b'C'));
                assert_eq!(client.message().await.map(|(tag, _)| tag), Some(b'Z'));
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a client gets its rows");
    }

    let mut cut = Raw::connect(front.port, "postgres").await;
    let mut query = Vec::new();
    build::query(&mut query, "SELECT repeat('x', 50000000)");
    cut.send(&query).await;
    assert_eq!(cut.message().await.map(|(tag, _)| tag), Some(b'T'));
    cut.socket.readable().await.expect("the row has begun");
    server.kill();
    // What is under way cannot be ended by a word: the connection ends.
    assert_eq!(cut.message().await, None);
    server.start();
    assert_eq!(one(&front.client().await, "SELECT 'on'").await, "on");
}

#[test]
fn a_replica_can_be_cloned_through_the_router() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let server = Server::new();
    let front = runtime.block_on(Front::before(&server, 3));
    let room = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(room.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("permissions");
    let mut backup = crate::harness::command("pg_basebackup");
    backup.args([
        "-h",
        "127.0.0.1",
        "-U",
        "postgres",
        "-p",
        &front.port.to_string(),
        "-X",
        "stream",
        "-c",
        "fast",
        "-D",
    ]);
    crate::harness::run(backup.arg(room.path().join("copy")));
    assert!(room.path().join("copy/backup_manifest").exists());
}

#[test]
fn psql_is_content() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let server = Server::new();
    let front = runtime.block_on(Front::before(&server, 1));
    let output = front.psql(&["-c", "SELECT 1", "-c", "\\d", "-c", "SELECT 1/0", "-c", "SELECT 2"]);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(out.contains('1') && err.contains("division by zero"), "{out}{err}");
}
