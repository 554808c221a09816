//! Who is not let in, and what it is told.

use super::frame::{self, Head, PROTOCOL};
use super::*;
use model::Trouble;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::TlsConnector;

/// A client without our rules: standard verification of node 1's name, and the certificate of `files`, if any.
pub(super) fn raw_config(
    world: &World,
    files: Option<&IdentityFiles>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for ca in &world.secrets.ca_certificates {
        roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).expect("PEM")).expect("a CA");
    }
    let builder = rustls::ClientConfig::builder_with_provider(pki::provider())
        .with_protocol_versions(versions)
        .expect("known versions")
        .with_root_certificates(roots);
    Arc::new(match files {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let content = files.load().expect("loads");
            let certificate = CertificateDer::from_pem_slice(content.certificate_pem.as_bytes()).expect("PEM");
            let key = PrivateKeyDer::from_pem_slice(content.key_pem.as_bytes()).expect("PEM");
            builder.with_client_auth_cert(vec![certificate], key).expect("they fit")
        }
    })
}

pub(super) async fn raw(config: Arc<rustls::ClientConfig>, to: &Node) -> std::io::Result<Connection> {
    let tcp = TcpStream::connect(to.address()).await?;
    let name = ServerName::try_from("node-1.stemma.internal").expect("a name");
    Ok(Connection::Client(TlsConnector::from(config).connect(name, tcp).await?))
}

pub(super) fn hello(node: Option<u64>, cluster: &str) -> Head {
    let cluster = node.map(|_| ClusterId(cluster.to_owned()));
    Head::Hello { protocol: PROTOCOL, node: node.map(NodeId), cluster }
}

/// Connects, greets and returns the refusal.
async fn refusal(config: Arc<rustls::ClientConfig>, to: &Node, hello: &Head) -> Trouble {
    let mut connection = match raw(config, to).await {
        Ok(connection) => connection,
        Err(error) => return pki::handshake_trouble("it", &error),
    };
    link::greet(&mut connection, hello, "it").await.expect_err("refused")
}

const ALL: &[&rustls::SupportedProtocolVersion] = rustls::ALL_VERSIONS;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_may_join_and_nothing_else() {
    let world = World::new("c1");
    let a = world.node(1).await;
    let pin = pki::ca_sha256(&world.secrets.ca_certificates[0]).expect("a CA");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("an address");
    // The first address leads nowhere; the second answers.
    let addresses = [silent.to_string(), a.address().to_string()];
    let answer =
        call_as_stranger(&addresses, &pin, RequestKind::Join, b"let me in".to_vec(), CALL).await.expect("answered");
    assert_eq!(answer, b"stranger Join let me in");
    let trouble = call_as_stranger(&addresses[1..], &pin, RequestKind::Join, b"large 70000".to_vec(), CALL).await;
    assert_eq!(trouble.expect("an answer may be larger than a request").len(), 70_000);

    let mut connection = raw(raw_config(&world, None, ALL), &a).await.expect("connects");
    link::greet(&mut connection, &hello(None, ""), "it").await.expect("welcome");
    for (id, kind) in [(1, RequestKind::Control), (2, RequestKind::Consensus)] {
        let request = frame::encode(&Head::Request { id, kind, timeout_ms: 1000 }, b"hello");
        frame::write(&mut connection, &request).await.expect("sent");
        let mut buffer = Vec::new();
        frame::read(&mut connection, FRAME_BYTES_MAX, &mut buffer).await.expect("answered");
        let Head::Failed { id: answered, trouble } = frame::decode(&buffer).expect("a frame").0 else {
            panic!("a stranger got an answer to {kind:?}");
        };
        assert_eq!((answered, Trouble::from(trouble).is("ST8003")), (id, true));
    }
    let beat = frame::encode(&Head::Heartbeat { seq: 1 }, b"beat");
    frame::write(&mut connection, &beat).await.expect("sent");
    let mut buffer = Vec::new();
    frame::read(&mut connection, FRAME_BYTES_MAX, &mut buffer).await.expect_err("a heartbeat of a stranger ends it");
    assert!(a.handler.heartbeats.lock().expect("no panic").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_trusts_only_the_ca_of_its_token() {
    let world = World::new("c1");
    let a = world.node(1).await;
    let other = World::new("c1");
    let pin = pki::ca_sha256(&other.secrets.ca_certificates[0]).expect("a CA");
    let trouble = call_as_stranger(&[a.address().to_string()], &pin, RequestKind::Join, b"secret".to_vec(), CALL).await;
    let trouble = trouble.expect_err("refused");
    assert!(trouble.is("ST8002"), "{trouble}");
    assert!(trouble.reason.contains("not signed by the CA that the token names"), "{trouble}");
    // Sending the right CA along does not help who cannot sign with it.
    let impostor = other.identity(1);
    let content = impostor.load().expect("loads");
    let both = [other.secrets.ca_certificates[0].clone(), world.secrets.ca_certificates[0].clone()];
    impostor.replace_certificate(&content.certificate_pem, &both).expect("written");
    let impostor = Node::start(&impostor).await;
    let pin = pki::ca_sha256(&world.secrets.ca_certificates[0]).expect("a CA");
    let trouble =
        call_as_stranger(&[impostor.address().to_string()], &pin, RequestKind::Join, b"secret".to_vec(), CALL).await;
    assert!(trouble.expect_err("refused").is("ST8002"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wrong_ca_is_refused_by_both_sides() {
    let (world, other) = (World::new("c1"), World::new("c1"));
    let (a, b) = (world.node(1).await, other.node(2).await);
    introduce(&[&a, &b]);
    let why = b.why_not(1).await;
    assert!(
        why.contains("the certificate of node 1") && why.contains("not signed by a CA that this node trusts"),
        "{why}"
    );
    // A node that trusts everybody is still not trusted.
    let trouble = refusal(raw_config(&world, Some(&other.identity(3)), ALL), &a, &hello(Some(3), "c1")).await;
    assert!(trouble.is("ST8002"), "{trouble}");
    assert!(trouble.reason.contains("refused the certificate of this node: it is not signed"), "{trouble}");
    assert_eq!(a.mesh.inbound_connections().0, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_under_the_same_ca_is_refused_by_both_sides() {
    let world = World::new("c1");
    let mut other = World::new("c2");
    other.secrets = world.secrets.clone();
    let (a, b) = (world.node(1).await, other.node(2).await);
    introduce(&[&a, &b]);
    let why = b.why_not(1).await;
    assert!(why.contains("it is of cluster c1, not of cluster c2"), "{why}");
    let trouble = refusal(raw_config(&world, Some(&other.identity(3)), ALL), &a, &hello(Some(3), "c2")).await;
    assert!(trouble.is("ST8002") && trouble.reason.contains("of cluster c2, not of cluster c1"), "{trouble}");
    // Nor does it help to claim the right cluster, or to be someone else, than the certificate says.
    for claim in [hello(Some(3), "c1"), hello(Some(2), "c2"), hello(None, "")] {
        let trouble = refusal(raw_config(&world, Some(&other.identity(3)), ALL), &a, &claim).await;
        assert!(trouble.is("ST8002"), "{trouble}");
    }
    let trouble = refusal(raw_config(&world, None, ALL), &a, &hello(Some(3), "c1")).await;
    assert!(trouble.is("ST8002") && trouble.reason.contains("shows no certificate"), "{trouble}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_certificate_is_refused_by_both_sides() {
    let world = World::new("c1");
    let before = WallTime(clock::wall().0 - 3 * HOUR.0 as i64);
    let (a, b) = (world.node(1).await, Node::start(&world.identity_signed_at(2, before)).await);
    introduce(&[&a, &b]);
    let why = a.why_not(2).await;
    assert!(why.contains("the certificate of node 2") && why.contains("it expired 2 h 0 min ago"), "{why}");
    let why = b.why_not(1).await;
    assert!(why.contains("refused the certificate of this node: it has expired"), "{why}");
    // Certificates are backdated by two days.
    let later = WallTime(clock::wall().0 + 49 * HOUR.0 as i64 - 300_000);
    let c = Node::start(&world.identity_signed_at(3, later)).await;
    introduce(&[&a, &c]);
    let why = a.why_not(3).await;
    assert!(why.contains("it becomes valid only in 5"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_expires_in_use_ends_the_connection() {
    let world = World::new("c1");
    let soon = WallTime(clock::wall().0 - HOUR.0 as i64 + 3000);
    let (a, b) = (world.node(1).await, Node::start(&world.identity_signed_at(2, soon)).await);
    introduce(&[&a, &b]);
    a.ask(b.id, "hello").await.expect("still good");
    b.ask(a.id, "hello").await.expect("still good");
    a.mesh.recheck();
    a.ask(b.id, "hello").await.expect("still good");
    // Certificates count whole seconds, and are good until the last one is over.
    eventually("it expires", || clock::wall().0 > b.tls.expires_at().0 + 1000).await;
    a.mesh.recheck();
    eventually("cut off", || a.mesh.inbound_connections().0 == 0 && !a.mesh.is_connected(b.id)).await;
    let why = a.why_not(2).await;
    assert!(why.contains("the certificate of node 2") && why.contains("it expired"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_under_the_address_of_another_is_refused() {
    let world = World::new("c1");
    let (a, b) = (world.node(1).await, world.node(2).await);
    a.mesh.set_peers([(NodeId(3), b.address().to_string())].into());
    let why = a.why_not(3).await;
    assert!(why.contains("it is that of node-2.stemma.internal, not of node-3.stemma.internal"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_and_a_revoked_key_are_cut_off_at_once_and_told_why() {
    let world = World::new("c1");
    let reasons = ["node 2 was removed from the cluster", "the key of node 2 was revoked"];
    for reason in reasons {
        let (a, b) = (world.node(1).await, world.node(2).await);
        introduce(&[&a, &b]);
        a.ask(b.id, "hello").await.expect("answers");
        b.ask(a.id, "hello").await.expect("answers");
        let waiting = b.mesh.clone();
        let hang =
            tokio::spawn(async move { waiting.call(NodeId(1), RequestKind::Control, b"hang".to_vec(), CALL).await });
        eventually("the request is under way", || {
            let links = b.mesh.links();
            links[&NodeId(1)].session().is_some_and(|session| session.waiting() == 1)
        })
        .await;
        a.handler.refused.lock().expect("no panic").insert(b.id, Trouble::denied(reason, "join anew"));
        a.mesh.recheck();
        let trouble = hang.await.expect("no panic").expect_err("cut off");
        assert!(trouble.reason.contains("closed the connection before it answered"), "{trouble}");
        for why in [a.why_not(2).await, b.why_not(1).await] {
            assert!(why.contains(reason) && why.contains("ST8003"), "{why}");
        }
        eventually("nothing is open", || a.mesh.inbound_connections().0 == 0 && !a.mesh.is_connected(b.id)).await;
        a.handler.refused.lock().expect("no panic").clear();
        a.ask(b.id, "hello").await.expect("let in again");
        a.mesh.set_peers(BTreeMap::new());
        assert!(a.ask(b.id, "hello").await.expect_err("no peer").reason.contains("is not a peer"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_are_known_by_their_cluster_and_not_by_their_address() {
    let (world, mut other) = (World::new("c1"), World::new("c2"));
    let (a, b) = (world.node(1).await, world.node(2).await);
    let connect = |config: Arc<rustls::ClientConfig>| async {
        let tcp = TcpStream::connect(a.address()).await.expect("connects");
        let name = ServerName::try_from("balancer.example").expect("a name");
        TlsConnector::from(config).connect(name, tcp).await.map_err(|error| pki::handshake_trouble("it", &error))
    };
    connect(b.tls.postgres_client()).await.expect("a member of the cluster");
    let foreign = connect(other.node(3).await.tls.postgres_client()).await.expect_err("another CA");
    assert!(foreign.reason.contains("not signed by a CA"), "{foreign}");
    other.secrets = world.secrets.clone();
    let foreign = connect(other.node(4).await.tls.postgres_client()).await.expect_err("another cluster");
    assert!(foreign.reason.contains("of cluster c1, not of cluster c2"), "{foreign}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_1_2_is_the_least_and_the_name_of_the_node_is_in_its_certificate() {
    let world = World::new("c1");
    let a = world.node(1).await;
    for versions in [&[&rustls::version::TLS12], &[&rustls::version::TLS13]] {
        let config = raw_config(&world, Some(&world.identity(2)), versions);
        let mut connection = raw(config, &a).await.expect("connects");
        link::greet(&mut connection, &hello(Some(2), "c1"), "it").await.expect("welcome");
    }
}

#[test]
fn server_files_are_private_whole_and_written_only_when_they_change() {
    use std::os::unix::fs::MetadataExt;
    let world = World::new("c1");
    let files = world.identity(1);
    let directory = tempfile::tempdir().expect("temp dir");
    let place = directory.path().join("tls");
    let owner = Some((nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()));
    let (certificate, key, ca) = pki::write_server_files(&files, &place, owner).expect("written");
    let content = files.load().expect("loads");
    assert_eq!(std::fs::read_to_string(&certificate).expect("reads"), content.certificate_pem);
    assert_eq!(std::fs::read_to_string(&key).expect("reads"), content.key_pem);
    assert_eq!(std::fs::read_to_string(&ca).expect("reads"), content.ca_pem.concat());
    let look = |path: &std::path::Path| {
        let meta = std::fs::metadata(path).expect("there");
        (meta.mode() & 0o777, meta.ino())
    };
    let before = look(&key);
    assert_eq!(before.0, 0o600);
    pki::write_server_files(&files, &place, owner).expect("written");
    assert_eq!(look(&key), before, "nothing changed, nothing written");
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("chmod");
    pki::write_server_files(&files, &place, owner).expect("written");
    assert_eq!(look(&key).0, 0o600, "made private again");
}
