//! Strangers on a real socket: oversized, broken, slow and many requests.

use crate::backend::{Fake, TOKEN};
use console::{Limits, serve, serve_with};
use model::Millis;
use model::limits::HTTP_BODY_BYTES_MAX;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn start(fake: Fake, limits: Limits) -> Running {
    let stop = CancellationToken::new();
    let any = "127.0.0.1:0".parse().expect("valid");
    let (address, task) = serve_with(any, Arc::new(fake), stop.clone(), limits).await.expect("listens");
    Running { address, stop, task }
}

fn quick() -> Limits {
    Limits { header_read: Millis(300), request: Millis(500), ..Limits::default() }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("connects")
    }

    /// Sends bytes and reads until the other side closes. A reset counts as closing.
    async fn say(&self, bytes: &[u8]) -> String {
        let mut stream = self.connect().await;
        let _ = stream.write_all(bytes).await;
        read_out(&mut stream).await
    }

    async fn is_alive(&self) {
        let answer = self.say(b"GET /primary HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "the next client is served: {answer}");
    }
}

async fn read_out(stream: &mut TcpStream) -> String {
    let mut out = Vec::new();
    let mut chunk = [0; 4096];
    let reading = async {
        while let Ok(read) = stream.read(&mut chunk).await {
            if read == 0 {
                break;
            }
            out.extend_from_slice(&chunk[..read]);
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the connection must end");
    String::from_utf8_lossy(&out).into_owned()
}

fn post(length: usize, body: &str) -> String {
    format!(
        "POST /v1/tokens HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn an_oversized_body_is_refused() {
    let server = start(Fake::healthy("n1"), Limits::default()).await;
    let answer = server.say(post(HTTP_BODY_BYTES_MAX + 1, "").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("ST1302"), "{answer}");
    // Without a length, the bound is found while reading.
    let head = format!(
        "POST /v1/tokens HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
    );
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let answer = server.say((head + &chunk.repeat(5) + "0\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413") && answer.contains("ST1302"), "{answer}");
    // At the bound a body is read, and refused only for what it says.
    let answer = server.say(post(HTTP_BODY_BYTES_MAX, &" ".repeat(HTTP_BODY_BYTES_MAX)).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("ST1301"), "{answer}");
    server.is_alive().await;
}

#[tokio::test]
async fn a_flood_of_headers_is_refused() {
    let server = start(Fake::healthy("n1"), quick()).await;
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let answer = server.say(format!("GET / HTTP/1.1\r\nhost: x\r\n{many}\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let large = format!("GET / HTTP/1.1\r\nhost: x\r\nx-large: {}\r\n\r\n", "a".repeat(1 << 20));
    let answer = server.say(large.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(1 << 20));
    let answer = server.say(long.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    server.is_alive().await;
}

#[tokio::test]
async fn garbage_ends_the_connection_and_nothing_else() {
    let server = start(Fake::healthy("n1"), quick()).await;
    let mut state = 0x5eed_u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let random: Vec<u8> = (0..4096).map(|_| noise()).collect();
    let tls_hello = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03];
    let http2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for bytes in [
        &random[..],
        &tls_hello,
        http2,
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n\r\n\r\n",
    ] {
        let answer = server.say(bytes).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    for request in [
        "GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        "POST /v1/tokens HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        "POST /v1/tokens HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nnot-a-size\r\n",
    ] {
        let answer = server.say(request.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    server.is_alive().await;
}

#[tokio::test]
async fn a_slow_head_is_cut_off_in_time() {
    let server = start(Fake::healthy("n1"), quick()).await;
    let mut stream = server.connect().await;
    let began = Instant::now();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n").await.expect("written");
    // One more header now and then, as such an attacker does: the time for the whole head still runs out.
    let (mut reading, mut writing) = stream.split();
    let drip = async {
        let mut every = tokio::time::interval(Duration::from_millis(50));
        loop {
            every.tick().await;
            if writing.write_all(b"x-a: b\r\n").await.is_err() {
                break;
            }
        }
    };
    let mut buffer = [0; 1024];
    let ended = async {
        loop {
            match reading.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, async {
        tokio::select! { () = drip => {}, () = ended => {} }
    })
    .await
    .expect("cut off");
    assert!(began.elapsed() >= Duration::from_millis(250), "not at once: {:?}", began.elapsed());
    // An idle connection ends as well.
    let mut idle = server.connect().await;
    read_out(&mut idle).await;
    server.is_alive().await;
}

#[tokio::test]
async fn a_slow_body_gets_an_answer_in_time() {
    let server = start(Fake::healthy("n1"), quick()).await;
    let answer = server.say(post(100, "{").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("\"exit\":3"), "{answer}");
    server.is_alive().await;
}

#[tokio::test]
async fn a_command_runs_to_its_end_though_nobody_waits_for_it() {
    let gate = Arc::new(tokio::sync::Notify::new());
    let fake = Arc::new(Fake { gate: Some(gate.clone()), ..Fake::healthy("n1") });
    let any = "127.0.0.1:0".parse().expect("valid");
    let (address, task) = serve_with(any, fake.clone(), CancellationToken::new(), quick()).await.expect("listens");
    let server = Running { address, stop: CancellationToken::new(), task };
    let body = r#"{"role":"replica"}"#;
    let answer = server.say(post(body.len(), body).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("\"exit\":3"), "{answer}");
    server.is_alive().await;
    assert!(fake.asked.lock().expect("sound").is_empty(), "the keeper is still at it");
    gate.notify_one();
    let done = async {
        while fake.asked.lock().expect("sound").is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, done).await.expect("the command went on");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = start(Fake::healthy("n2"), Limits::default()).await;
    let mut all = String::new();
    for path in ["/primary", "/replica", "/v1/nothing", "/liveness"] {
        all += &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    }
    all += "HEAD /replica HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answer = server.say(all.as_bytes()).await;
    let statuses: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).filter_map(|part| part.get(..3)).collect();
    assert_eq!(statuses, ["503", "200", "404", "200", "200"]);
    assert!(answer.ends_with("\r\n\r\n"), "HEAD has no body");
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_and_are_served_when_one_ends() {
    let server = start(Fake::healthy("n1"), Limits { connections_max: 2, ..quick() }).await;
    let idle = (server.connect().await, server.connect().await);
    // Both slots are taken until the idle ones are cut off; the third is served after that.
    server.is_alive().await;
    drop(idle);
}

#[tokio::test]
async fn an_old_connection_is_ended() {
    let server = start(Fake::healthy("n1"), Limits { connection: Millis(200), ..Limits::default() }).await;
    let began = Instant::now();
    let answer = server.say(b"GET /liveness HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(8), "the life of a connection ended it, not the time for a head");
}

#[tokio::test]
async fn a_taken_address_is_told_with_what_to_do() {
    let server = start(Fake::healthy("n1"), Limits::default()).await;
    let trouble = serve(server.address, Arc::new(Fake::healthy("n1")), CancellationToken::new()).await;
    let trouble = trouble.expect_err("the address is taken");
    assert!(trouble.is("ST1201"));
    assert!(trouble.reason.contains(&server.address.to_string()), "{trouble}");
    assert!(trouble.hint.contains("ss -ltnp") && trouble.hint.contains("[api]"), "{}", trouble.hint);
}

#[tokio::test]
async fn the_end_is_orderly_and_frees_the_address() {
    let server = start(Fake::healthy("n1"), Limits::default()).await;
    let mut idle = server.connect().await;
    server.is_alive().await;
    server.stop.cancel();
    tokio::time::timeout(PATIENCE, server.task).await.expect("in time").expect("no panic");
    read_out(&mut idle).await;
    let again = serve(server.address, Arc::new(Fake::healthy("n1")), CancellationToken::new()).await;
    again.expect("the address is free again").abort();
}
