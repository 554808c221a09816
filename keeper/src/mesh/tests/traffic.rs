//! What members do with each other.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_exchange_requests_and_heartbeats() {
    let world = World::new("c1");
    let (a, b, c) = (world.node(1).await, world.node(2).await, world.node(3).await);
    introduce(&[&a, &b, &c]);
    for (from, to) in [(&a, &b), (&b, &a), (&b, &c), (&c, &a)] {
        let answer = from.ask(to.id, "hello").await.expect("answers");
        assert_eq!(answer, format!("node {} Control hello", from.id));
    }
    eventually("every heartbeat arrives everywhere and is echoed", || {
        for node in [&a, &b, &c] {
            node.mesh.broadcast_heartbeat(Bytes::from(format!("beat of {}", node.id)));
        }
        let heard = |by: &Node, of: &Node| {
            let heartbeats = by.handler.heartbeats.lock().expect("no panic");
            heartbeats.get(&of.id).is_some_and(|(_, body)| *body == format!("beat of {}", of.id).into_bytes())
        };
        [(&a, &b), (&b, &a), (&a, &c), (&c, &a), (&b, &c), (&c, &b)]
            .into_iter()
            .all(|(by, of)| heard(by, of) && by.mesh.round_trip(of.id).is_some())
    })
    .await;
    assert!(a.mesh.round_trip(b.id).expect("measured").0 < 5_000);
    assert_eq!(a.mesh.connected_to_us(), [b.id, c.id]);
    let trouble = a.ask(NodeId(9), "hello").await.expect_err("nobody");
    assert!(trouble.is("ST2114"), "{trouble}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_arrives_as_it_was_made() {
    let world = World::new("c1");
    let (a, b) = (world.node(1).await, world.node(2).await);
    introduce(&[&a, &b]);
    let trouble = a.ask(b.id, "fail").await.expect_err("fails");
    assert_eq!(trouble, Trouble::conflict("too late", "again").because("a cause"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_pass_and_too_large_ones_are_refused_without_harm() {
    let world = World::new("c1");
    let (a, b) = (world.node(1).await, world.node(2).await);
    introduce(&[&a, &b]);
    let almost = FRAME_BYTES_MAX - 100;
    assert_eq!(a.ask(b.id, &format!("large {almost}")).await.expect("fits").len(), almost);
    let trouble = a.ask(b.id, &format!("large {}", FRAME_BYTES_MAX + 1)).await.expect_err("too large");
    assert!(trouble.is("ST1302"), "{trouble}");
    let trouble = a.ask(b.id, &"x".repeat(FRAME_BYTES_MAX)).await.expect_err("too large");
    assert!(trouble.is("ST1302"), "{trouble}");
    a.ask(b.id, &"x".repeat(almost)).await.expect("fits");
    a.ask(b.id, "hello").await.expect("the connection is as it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_restarts_is_found_again() {
    let world = World::new("c1");
    let (a, b) = (world.node(1).await, world.identity(2));
    let first = Node::start(&b).await;
    let address = first.address();
    introduce(&[&a, &first]);
    a.ask(first.id, "hello").await.expect("answers");
    first.mesh.stop().await;
    eventually("the loss is noticed", || !a.mesh.is_connected(NodeId(2))).await;
    assert_eq!(a.mesh.round_trip(NodeId(2)), None);
    let second = Node::start_at(&b, address).await;
    a.ask(second.id, "hello").await.expect("answers again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_ca_change_under_traffic_without_a_lost_request() {
    let mut world = World::new("c1");
    let (files_a, files_b) = (world.identity(1), world.identity(2));
    let (a, b) = (Node::start(&files_a).await, Node::start(&files_b).await);
    introduce(&[&a, &b]);
    a.ask(b.id, "hello").await.expect("answers");
    let stop = CancellationToken::new();
    let traffic = |from: Arc<Mesh>, to: NodeId, stop: CancellationToken| {
        tokio::spawn(async move {
            let mut answered = 0u32;
            while !stop.is_cancelled() {
                from.call(to, RequestKind::Consensus, vec![b'x'; 3000], CALL).await.expect("no request is lost");
                answered += 1;
            }
            answered
        })
    };
    let busy: Vec<_> = [(&a, &b), (&b, &a), (&a, &b)]
        .map(|(from, to)| traffic(from.mesh.clone(), to.id, stop.clone()))
        .into_iter()
        .collect();
    let old_ca = world.secrets.ca_certificates[0].clone();
    let renew = |world: &World, files: &IdentityFiles, cas: &[String]| {
        let content = files.load().expect("loads");
        let identity = &content.identity;
        // The same key again, as a renewal does.
        let key = rcgen::KeyPair::from_pem(&content.key_pem).expect("a key");
        let request = rcgen::CertificateParams::default().serialize_request(&key).expect("signs").pem().expect("PEM");
        let (node, name) = (identity.node, &identity.name);
        let signed = pki::sign(&world.secrets, &world.id, &request, node, name, &[], HOUR, clock::wall());
        files.replace_certificate(&signed.expect("signed"), cas).expect("replaced");
    };
    for _ in 0..3 {
        for (node, files) in [(&a, &files_a), (&b, &files_b)] {
            renew(&world, files, std::slice::from_ref(&old_ca));
            node.tls.reload().expect("reloads");
        }
    }
    // Rotation: first both trust the new CA, then both are signed by it, then nobody trusts the old one.
    let (new_ca, new_key) = pki::make_ca(&"shop".parse().expect("valid"), &world.id);
    for (node, files) in [(&a, &files_a), (&b, &files_b)] {
        renew(&world, files, &[old_ca.clone(), new_ca.clone()]);
        node.tls.reload().expect("reloads");
    }
    world.secrets.ca_certificates = vec![new_ca.clone(), old_ca];
    world.secrets.ca_key = new_key;
    for (node, files) in [(&a, &files_a), (&b, &files_b)] {
        renew(&world, files, &world.secrets.ca_certificates.clone());
        node.tls.reload().expect("reloads");
    }
    let ends_in_new = |node: &Node, peer: &Node| {
        let links = node.mesh.links();
        let session = links.get(&peer.id).and_then(|link| link.session());
        session.is_some_and(|session| session.peer.expires_at == peer.tls.expires_at())
    };
    eventually("the new certificates are in use", || ends_in_new(&a, &b) && ends_in_new(&b, &a)).await;
    stop.cancel();
    for task in busy {
        assert!(task.await.expect("no panic") > 0);
    }
    for (node, files) in [(&a, &files_a), (&b, &files_b)] {
        let content = files.load().expect("loads");
        files.replace_certificate(&content.certificate_pem, std::slice::from_ref(&new_ca)).expect("replaced");
        node.tls.reload().expect("reloads");
    }
    a.ask(b.id, "hello").await.expect("answers under the new CA alone");
    b.ask(a.id, "hello").await.expect("answers under the new CA alone");
}

#[tokio::test]
async fn unfit_files_leave_the_certificates_in_force() {
    let world = World::new("c1");
    let files = world.identity(1);
    let tls = TlsContext::load(&files).expect("loads");
    let before = tls.expires_at();
    files.replace_certificate("no certificate", &world.secrets.ca_certificates).expect("written");
    assert!(tls.reload().expect_err("unfit").is("ST8002"));
    assert_eq!(tls.expires_at(), before);
    assert_eq!(*tls.generation().borrow(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_never_answers_holds_up_nobody_else() {
    let world = World::new("c1");
    let (a, b, c) = (world.node(1).await, world.node(2).await, world.node(3).await);
    introduce(&[&a, &b, &c]);
    a.ask(b.id, "hello").await.expect("answers");
    let hang: Vec<_> = (0..100)
        .map(|_| {
            let mesh = a.mesh.clone();
            tokio::spawn(async move {
                let body = b"hang".to_vec();
                mesh.call(NodeId(2), RequestKind::Control, body, Duration::from_millis(1500)).await
            })
        })
        .collect();
    let begun = Instant::now();
    a.ask(c.id, "hello").await.expect("another peer answers");
    c.ask(b.id, "hello").await.expect("the same peer answers others");
    eventually("heartbeats pass", || {
        a.mesh.broadcast_heartbeat(Bytes::from_static(b"beat"));
        b.handler.heartbeats.lock().expect("no panic").contains_key(&a.id)
    })
    .await;
    assert!(begun.elapsed() < Duration::from_millis(1400), "while the others still hang");
    let (mut late, mut busy) = (0, 0);
    for task in hang {
        let trouble = task.await.expect("no panic").expect_err("no answer");
        if trouble.reason.contains("did not answer within 1500 ms") {
            assert_eq!(trouble.exit, model::error::exit::UNKNOWN);
            late += 1;
        } else {
            assert!(trouble.reason.contains("as many requests under way as it takes"), "{trouble}");
            busy += 1;
        }
    }
    assert_eq!((late, busy), (64, 36));
    a.ask(b.id, "hello").await.expect("places are free again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_accepts_and_says_nothing_holds_up_nobody() {
    let world = World::new("c1");
    let (a, b) = (world.node(1).await, world.node(2).await);
    let frozen = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
    let mut peers: BTreeMap<_, _> = [&a, &b].map(|node| (node.id, node.address().to_string())).into();
    peers.insert(NodeId(3), frozen.local_addr().expect("an address").to_string());
    a.mesh.set_peers(peers);
    a.mesh.broadcast_heartbeat(Bytes::from_static(b"beat"));
    let trouble = a.ask_within(NodeId(3), "hello", Duration::from_millis(300)).await.expect_err("frozen");
    assert_eq!((trouble.exit, trouble.is("ST2114")), (model::error::exit::UNREACHABLE, true), "{trouble}");
    a.ask(b.id, "hello").await.expect("the other peer answers");
    let begun = Instant::now();
    a.mesh.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(2), "nor does it hold up the end");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let world = World::new("c1");
    let a = world.node(1).await;
    let config = MeshConfig {
        node: NodeId(2),
        cluster_id: world.id.clone(),
        listen: vec![a.address()],
        tls: TlsContext::load(&world.identity(2)).expect("loads"),
    };
    let trouble = Mesh::start(config, Arc::new(Echoing::default())).await.err().expect("taken");
    assert!(trouble.is("ST1201") && trouble.reason.contains(&a.address().to_string()), "{trouble}");
}
