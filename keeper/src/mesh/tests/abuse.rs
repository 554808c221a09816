//! What no keeper would send.

use super::frame::{self, Head};
use super::refusals::{hello, raw, raw_config};
use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A connection that ends, by whatever means, within a deadline.
async fn ends<S: tokio::io::AsyncRead + Unpin>(what: &str, mut stream: S) {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut rest)).await;
    assert!(read.is_ok(), "{what}: the connection stays open");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_not_tls_do_no_harm() {
    let world = World::new("c1");
    let (a, b) = (world.node(1).await, world.node(2).await);
    introduce(&[&a, &b]);
    b.ask(a.id, "hello").await.expect("answers");
    let garbage: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        &[0xFF; 20_000],
        b"\x16\x03\x01\xFF\xFF",
        b"",
    ];
    for bytes in garbage {
        let mut stream = TcpStream::connect(a.address()).await.expect("connects");
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        ends("garbage", stream).await;
        b.ask(a.id, "hello").await.expect("still answers");
    }
    eventually("nobody is left at the door", || a.mesh.inbound_connections().1 == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_frames_end_the_connection_of_their_sender_alone() {
    let world = World::new("c1");
    let (a, b) = (world.node(1).await, world.node(2).await);
    introduce(&[&a, &b]);
    b.ask(a.id, "hello").await.expect("answers");
    let too_long = |length: usize| (length as u32).to_be_bytes().to_vec();
    let out_of_place = frame::encode(&Head::Echo { seq: 1 }, &[]);
    let plain: [(&str, Vec<u8>); 6] = [
        ("empty", too_long(0)),
        ("too long", too_long(FRAME_BYTES_MAX + 1)),
        ("as long as can be", vec![0xFF; 4]),
        ("no head", [too_long(3).as_slice(), &[200, 1, 1]].concat()),
        ("cut head", [too_long(1).as_slice(), &[3]].concat()),
        ("out of place", out_of_place),
    ];
    let member = world.identity(3);
    for (what, bytes) in plain {
        for node in [Some(3), None] {
            let config = raw_config(&world, node.map(|_| &member), rustls::ALL_VERSIONS);
            let mut connection = raw(config, &a).await.expect("connects");
            link::greet(&mut connection, &hello(node, "c1"), "it").await.expect("welcome");
            frame::write(&mut connection, &bytes).await.expect("sent");
            ends(what, connection).await;
        }
        b.ask(a.id, "hello").await.expect("still answers");
    }
    // A stranger's frames have a bound of their own, in the greeting and after it.
    let config = raw_config(&world, None, rustls::ALL_VERSIONS);
    let mut connection = raw(config.clone(), &a).await.expect("connects");
    frame::write(&mut connection, &too_long(frame::STRANGER_FRAME_BYTES_MAX + 1)).await.expect("sent");
    ends("a long greeting", connection).await;
    let mut connection = raw(config, &a).await.expect("connects");
    link::greet(&mut connection, &hello(None, ""), "it").await.expect("welcome");
    frame::write(&mut connection, &too_long(frame::STRANGER_FRAME_BYTES_MAX + 1)).await.expect("sent");
    ends("a stranger's long frame", connection).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_half_open_connections_is_bounded_and_members_get_through() {
    let world = World::new("c1");
    let (a, b) = (world.node(1).await, world.node(2).await);
    let mut flood = Vec::new();
    for _ in 0..400 {
        flood.push(TcpStream::connect(a.address()).await.expect("connects"));
        assert!(a.mesh.inbound_connections().1 <= 128, "bounded at every moment");
    }
    eventually("the door is full", || a.mesh.inbound_connections().1 == 128).await;
    let begun = Instant::now();
    introduce(&[&a, &b]);
    b.ask(a.id, "hello").await.expect("a member gets through");
    assert!(begun.elapsed() < Duration::from_secs(4), "without waiting for the flood to time out");
    eventually("half-open ones are given up", || a.mesh.inbound_connections().1 == 0).await;
    drop(flood);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_few_and_silent_ones_leave() {
    let world = World::new("c1");
    let a = world.node(1).await;
    let config = raw_config(&world, None, rustls::ALL_VERSIONS);
    let mut seated = Vec::new();
    for _ in 0..8 {
        let mut connection = raw(config.clone(), &a).await.expect("connects");
        link::greet(&mut connection, &hello(None, ""), "it").await.expect("welcome");
        seated.push(connection);
    }
    let mut connection = raw(config.clone(), &a).await.expect("connects");
    let trouble = link::greet(&mut connection, &hello(None, ""), "it").await.expect_err("no seat is free");
    assert!(trouble.reason.contains("too many nodes are joining"), "{trouble}");
    for connection in seated {
        ends("a silent stranger", connection).await;
    }
    let mut connection = raw(config, &a).await.expect("connects");
    link::greet(&mut connection, &hello(None, ""), "it").await.expect("seats are free again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_connects_again_and_again_displaces_only_itself() {
    let world = World::new("c1");
    let (a, b) = (world.node(1).await, world.node(2).await);
    introduce(&[&a, &b]);
    b.ask(a.id, "hello").await.expect("answers");
    let member = world.identity(3);
    let config = raw_config(&world, Some(&member), rustls::ALL_VERSIONS);
    let mut open = Vec::new();
    for _ in 0..12 {
        let mut connection = raw(config.clone(), &a).await.expect("connects");
        link::greet(&mut connection, &hello(Some(3), "c1"), "it").await.expect("welcome");
        open.push(connection);
    }
    eventually("four of them and the one of the other", || a.mesh.inbound_connections().0 == 5).await;
    b.ask(a.id, "hello").await.expect("still answers");
    drop(open);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_takes_no_answers_is_given_up() {
    let world = World::new("c1");
    let (a, b) = (world.node(1).await, world.node(2).await);
    introduce(&[&a, &b]);
    let config = raw_config(&world, Some(&world.identity(3)), rustls::ALL_VERSIONS);
    let mut connection = raw(config, &a).await.expect("connects");
    link::greet(&mut connection, &hello(Some(3), "c1"), "it").await.expect("welcome");
    for id in 0..20 {
        let head = Head::Request { id, kind: RequestKind::Control, timeout_ms: 60_000 };
        frame::write(&mut connection, &frame::encode(&head, b"large 4000000")).await.expect("sent");
    }
    b.ask(a.id, "hello").await.expect("others are served meanwhile");
    eventually("its connection is closed", || a.mesh.connected_to_us() == [b.id]).await;
    drop(connection);
}

/// A process that is stopped: its system still takes and acknowledges what arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_echoes_nothing_any_more_is_given_up() {
    let world = World::new("c1");
    let a = world.node(1).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let tls = TlsContext::load(&world.identity(2)).expect("loads");
    let stopped = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.expect("accepts");
        let mut connection = tokio_rustls::TlsAcceptor::from(tls.server()).accept(tcp).await.expect("connects");
        let mut buffer = Vec::new();
        frame::read(&mut connection, FRAME_BYTES_MAX, &mut buffer).await.expect("hello");
        let welcome = Head::Welcome { protocol: frame::PROTOCOL, node: NodeId(2) };
        frame::write(&mut connection, &frame::encode(&welcome, &[])).await.expect("welcome");
        (listener, connection)
    });
    a.mesh.set_peers([(NodeId(2), address.to_string())].into());
    let _held = stopped.await.expect("no panic");
    eventually("connected", || a.mesh.is_connected(NodeId(2))).await;
    a.mesh.broadcast_heartbeat(Bytes::from_static(b"beat"));
    let begun = Instant::now();
    let deadline = begun + Duration::from_secs(30);
    while a.mesh.is_connected(NodeId(2)) {
        assert!(Instant::now() < deadline, "the connection is kept though nobody is there");
        a.mesh.broadcast_heartbeat(Bytes::from_static(b"beat"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(begun.elapsed() > Duration::from_secs(8), "a pause alone ends no connection");
    assert_eq!(a.mesh.round_trip(NodeId(2)), None);
}
