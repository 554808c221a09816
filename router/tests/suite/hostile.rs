//! Peers that mean no good: nonsense, lies about lengths, connections that only sit there, guessed keys. None of it may
//! end the router, reach another client or cost memory without bound.

use crate::harness::{Front, PATIENCE, Server, config, one, try_one};
use crate::raw::Raw;
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};
use router::config::{ClientAuth, ClientTls};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wire::build;

/// Connections of the flood.
const FLOOD: usize = 1500;
/// What each of them may cost, with the kernel's buffers not counted.
const FLOOD_BYTES_EACH: usize = 24 << 10;

/// Memory of this process, which the router is part of.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("readable");
    pages.split_whitespace().nth(1).expect("a second number").parse::<usize>().expect("a number") * 4096
}

fn query(sql: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    build::query(&mut bytes, sql);
    bytes
}

/// A server and a router that believe whoever connects; two connections for all.
pub async fn believing() -> (Server, Front) {
    let mut server = Server::new();
    server.believe();
    let front =
        Front::start(server.topology(1), router::Config { auth: ClientAuth::Trust(Default::default()), ..config(2) })
            .await;
    (server, front)
}

/// Says `bytes` and hangs up; what came back, at most for as long as the login's deadline and a little.
async fn say(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
    let _ = socket.write_all(bytes).await;
    let _ = socket.shutdown().await;
    let mut answer = Vec::new();
    let end = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
    assert!(end.is_ok(), "kept waiting after {bytes:?}");
    answer
}

/// A conversation that a client could have.
fn sound() -> Vec<u8> {
    let mut bytes = query("SELECT 1");
    build::parse(&mut bytes, b"s", b"SELECT $1::text\0\0\0");
    build::bind_head(&mut bytes, b"", b"s", 13);
    bytes.extend_from_slice(b"\0\0\0\x01\0\0\0\x03abc\0\0");
    build::describe_statement(&mut bytes, b"s");
    build::message(&mut bytes, b'E', |out| out.extend_from_slice(b"\0\0\0\0\0"));
    build::close_statement(&mut bytes, b"s");
    build::sync(&mut bytes);
    bytes.extend(query("BEGIN; SET work_mem = '9MB'; CREATE TEMP TABLE x (a int)"));
    bytes.extend(query("COPY x FROM STDIN"));
    build::message(&mut bytes, b'd', |out| out.extend_from_slice(b"1\n"));
    build::message(&mut bytes, b'c', |_| {});
    bytes.extend(query("ROLLBACK"));
    bytes
}

fn hello() -> Vec<u8> {
    let mut bytes = Vec::new();
    build::startup(&mut bytes, &[("user", "postgres"), ("database", "postgres")]);
    bytes
}

/// What is done to a sound conversation.
#[derive(Clone, Debug)]
enum Harm {
    Flip(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Repeat(usize, usize),
}

fn harm() -> impl Strategy<Value = Harm> {
    prop_oneof![
        (any::<usize>(), 1..=255_u8).prop_map(|(at, by)| Harm::Flip(at, by)),
        any::<usize>().prop_map(Harm::Cut),
        (any::<usize>(), prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, bytes)| Harm::Insert(at, bytes)),
        (any::<usize>(), 1..80_usize).prop_map(|(at, count)| Harm::Repeat(at, count)),
    ]
}

fn harmed(mut bytes: Vec<u8>, harms: &[Harm]) -> Vec<u8> {
    for harm in harms {
        let place = |at: usize| at % bytes.len().max(1);
        match harm {
            Harm::Flip(at, by) if !bytes.is_empty() => {
                let at = place(*at);
                bytes[at] ^= by;
            }
            Harm::Flip(..) => {}
            Harm::Cut(at) => bytes.truncate(place(*at)),
            Harm::Insert(at, more) => {
                let at = place(*at);
                bytes.splice(at..at, more.iter().copied());
            }
            Harm::Repeat(at, count) => {
                let at = place(*at);
                let again = bytes[at..(at + count).min(bytes.len())].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
    bytes
}

#[test]
fn fuzzed_conversations_harm_nobody() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (server, front) = runtime.block_on(believing());
    let good = runtime.block_on(front.client());
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        prop::collection::vec(any::<u8>(), 0..200).prop_map(|bytes| [hello(), bytes].concat()),
        prop::collection::vec(harm(), 1..5).prop_map(|harms| harmed([hello(), sound()].concat(), &harms)),
        prop::collection::vec(harm(), 1..5).prop_map(|harms| [hello(), harmed(sound(), &harms)].concat()),
    ];
    let mut runner = TestRunner::new(Cases { cases: 400, ..Cases::default() });
    let outcome = runner.run(&bytes, |bytes| {
        runtime.block_on(async {
            say(front.port, &bytes).await;
            // The same server connections serve others meanwhile: nothing of it shows there.
            let state = "SELECT current_setting('work_mem') || coalesce(to_regclass('x')::text, '-') || txid_status(txid_current())";
            assert_eq!(one(&good, state).await, "4MB-in progress", "after {bytes:?}");
        });
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    let left = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    crate::harness::wait_for("no transaction to be left open", || server.sql(left) == "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_that_lies_costs_nothing_and_holds_no_server() {
    let server_and_front = believing().await;
    let front = &server_and_front.1;
    let good = front.client().await;
    one(&good, "SELECT 1").await;
    let before = resident();
    let mut liars = Vec::new();
    for tag in [b'Q', b'P', b'B', b'F', b'd'] {
        for length in [0x3fff_fffe_u32, 100 << 20, 17 << 20, 12 << 20] {
            let mut liar = Raw::connect(front.port, "postgres").await;
            let mut bytes = vec![tag];
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.push(b'n');
            // What can be told to be too long is refused at once; the rest waits for bytes that do not come.
            let _ = liar.socket.write_all(&bytes).await;
            liars.push(liar);
        }
    }
    for tag in [b'S', b'H', b'E', b'D', b'C', b'X', b'p', b'?', 0] {
        let mut liar = Raw::connect(front.port, "postgres").await;
        liar.send(&[tag, 0x0f, 0xff, 0xff, 0xff]).await;
        let (kind, body) = liar.message().await.expect("a word before the end");
        assert_eq!((kind, wire::backend::error_fields(&body).sqlstate.as_str()), (b'E', "08P01"), "{tag}");
        assert!(liar.message().await.is_none(), "{tag}: and then the end");
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes for promises");
    drop(liars);
    assert_eq!(one(&good, "SELECT 2").await, "2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_open_connections_end_at_the_deadline_and_cost_little() {
    let server_and_front = believing().await;
    let front = &server_and_front.1;
    let good = front.client().await;
    one(&good, "SELECT 1").await;
    let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
    let (soft, hard) = nix::sys::resource::getrlimit(limit).expect("a limit");
    let _ = nix::sys::resource::setrlimit(limit, hard.min(20_000).max(soft), hard);
    let (before, began) = (resident(), Instant::now());
    let mut open = Vec::new();
    for number in 0..FLOOD {
        let mut socket = TcpStream::connect(("127.0.0.1", front.port)).await.expect("connected");
        // A third says nothing, a third begins, a third would go on for ever.
        let hello = hello();
        let _ = socket.write_all(&hello[..[0, 4, hello.len() - 1][number % 3]]).await;
        open.push(socket);
        if number % 100 == 0 {
            assert_eq!(one(&good, "SELECT 3").await, "3", "others are served");
        }
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < FLOOD * FLOOD_BYTES_EACH, "{grown} bytes for {FLOOD} connections");
    eprintln!("{FLOOD} half-open connections cost {} bytes each", grown / FLOOD);
    // Someone who sends a byte now and then is no better off.
    let slow = async {
        let mut socket = TcpStream::connect(("127.0.0.1", front.port)).await.expect("connected");
        for byte in hello() {
            if socket.write_all(&[byte]).await.is_err() {
                return;
            }
            let mut space = [0; 16];
            match tokio::time::timeout(Duration::from_millis(400), socket.read(&mut space)).await {
                Ok(Ok(0) | Err(_)) => return,
                Ok(Ok(_)) => panic!("it was answered"),
                Err(_) => {}
            }
        }
        panic!("it was let in after {:?}", began.elapsed());
    };
    slow.await;
    let ended = async {
        while front.router.clients() > 1 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.expect("all of them are gone");
    assert_eq!(one(&good, "SELECT 4").await, "4");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessed_cancel_keys_do_nothing() {
    let (_server, front) = believing().await;
    let mut victim = Raw::connect(front.port, "postgres").await;
    victim.send(&query("SELECT pg_sleep(3), 'untouched'")).await;
    let (pid, secret) = victim.key.clone();
    for guess in 0..1000_u32 {
        let mut bytes = Vec::new();
        let mut wrong = secret.clone();
        let last = wrong.len() - 1;
        wrong[last] = wrong[last].wrapping_add(1 + (guess % 255) as u8);
        let mut longer = secret.clone();
        longer.push(0);
        let guessed = match guess % 3 {
            0 => (pid, wrong.as_slice()),
            1 => (pid, longer.as_slice()),
            _ => (pid ^ (1 << (guess % 32)), secret.as_slice()),
        };
        build::cancel_request(&mut bytes, guessed.0, guessed.1);
        assert_eq!(say(front.port, &bytes).await, b"", "no answer tells a guess from a key");
    }
    let mut row = Vec::new();
    while let Some((tag, body)) = victim.message().await {
        assert_ne!(tag, b'E', "{:?}", wire::backend::error_fields(&body));
        if tag == b'D' {
            row = body;
        }
        if tag == b'Z' {
            break;
        }
    }
    assert!(row.ends_with(b"untouched"));
    // The key itself works, and what was cancelled says so.
    victim.send(&query("SELECT pg_sleep(30)")).await;
    let mut bytes = Vec::new();
    build::cancel_request(&mut bytes, pid, &secret);
    let cancelled = async {
        loop {
            say(front.port, &bytes).await;
            if let Ok(Some((b'E', body))) = tokio::time::timeout(Duration::from_millis(300), victim.message()).await {
                return wire::backend::error_fields(&body).sqlstate;
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, cancelled).await.expect("in time"), "57014");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_put_behind_a_request_for_tls_in_clear_text_is_not_heard() {
    let room = tempfile::tempdir().expect("a directory");
    let (certificate, key, _) = crate::security::certificates(room.path());
    let mut server = Server::new();
    server.believe();
    let config_of = router::tls::for_clients(&certificate, &key, None).expect("sound files");
    let tls = Some(ClientTls { config: config_of, require: false });
    let front = Front::start(
        server.topology(1),
        router::Config { auth: ClientAuth::Trust(Default::default()), client_tls: tls, ..config(2) },
    )
    .await;
    let mut bytes = Vec::new();
    build::ssl_request(&mut bytes);
    bytes.extend(hello());
    bytes.extend(query("CREATE TABLE smuggled (a int)"));
    let answer = say(front.port, &bytes).await;
    assert_eq!(answer.first(), Some(&b'S'));
    assert!(!answer.windows(6).any(|window| window == b"Z\0\0\0\x05I"), "{answer:?}");
    assert_eq!(server.sql("SELECT to_regclass('smuggled') IS NULL"), "t");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_holds_up_no_other_and_fills_no_memory() {
    let (_server, front) = believing().await;
    let good = front.client().await;
    one(&good, "SELECT 1").await;
    let before = resident();
    let mut deaf = Raw::connect(front.port, "postgres").await;
    deaf.send(&query("SELECT repeat('x', 1000000) FROM generate_series(1, 300)")).await;
    for _ in 0..20 {
        assert_eq!(one(&good, "SELECT 5").await, "5");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes are kept for one that does not fetch them");
    drop(deaf);
    assert_eq!(one(&good, "SELECT 6").await, "6");
    assert!(try_one(&front.client().await, "SELECT 7").await.is_ok());
}
