//! Stories of meshes on real sockets with real certificates. Helpers here; the stories in the files beneath.

mod abuse;
mod refusals;
mod traffic;

use super::*;
use crate::clock;
use crate::identity::{ConsensusChoice, IdentityContent, IdentityFiles, NodeIdentity};
use crate::pki;
use futures_util::FutureExt;
use model::WallTime;
use model::state::Secrets;
use std::time::Instant;

pub(super) const HOUR: Millis = Millis::from_secs(3600);
pub(super) const CALL: Duration = Duration::from_secs(5);

/// A cluster's secrets, and a place for its nodes' identities.
pub(super) struct World {
    pub(super) id: ClusterId,
    pub(super) secrets: Secrets,
    directory: tempfile::TempDir,
}

impl World {
    pub(super) fn new(id: &str) -> World {
        let id = ClusterId(id.to_owned());
        let (certificate, key) = pki::make_ca(&"shop".parse().expect("valid"), &id);
        let secrets = Secrets {
            ca_certificates: vec![certificate],
            ca_key: key,
            superuser_password: String::new(),
            replication_password: String::new(),
            postgres_password: String::new(),
            name_salt: String::new(),
            upstream: None,
        };
        World { id, secrets, directory: tempfile::tempdir().expect("temp dir") }
    }

    pub(super) fn identity(&self, node: u64) -> IdentityFiles {
        self.identity_signed_at(node, clock::wall())
    }

    /// An identity whose certificate is good for an hour from `at`.
    pub(super) fn identity_signed_at(&self, node: u64, at: WallTime) -> IdentityFiles {
        let name: model::NodeName = format!("n{node}").parse().expect("valid");
        let (key_pem, csr) = pki::make_key_and_csr(&name);
        let hosts = ["127.0.0.1".to_owned()];
        let certificate = pki::sign(&self.secrets, &self.id, &csr, NodeId(node), &name, &hosts, HOUR, at);
        let files = IdentityFiles { directory: self.directory.path().join(format!("{node}-{}/identity", at.0)) };
        let identity = NodeIdentity {
            cluster: "shop".parse().expect("valid"),
            cluster_id: self.id.clone(),
            node: NodeId(node),
            name,
            seeds: Vec::new(),
            consensus: ConsensusChoice::Embedded,
        };
        let ca_pem = self.secrets.ca_certificates.clone();
        let content = IdentityContent { identity, key_pem, certificate_pem: certificate.expect("signed"), ca_pem };
        files.write(&content).expect("written");
        files
    }

    pub(super) async fn node(&self, node: u64) -> Node {
        Node::start(&self.identity(node)).await
    }
}

/// Answers with what it was asked, unless told to hang or to refuse.
#[derive(Default)]
pub(super) struct Echoing {
    pub(super) heartbeats: Mutex<BTreeMap<NodeId, (u64, Vec<u8>)>>,
    pub(super) refused: Mutex<BTreeMap<NodeId, Trouble>>,
}

impl Handler for Echoing {
    fn request(&self, from: Caller, kind: RequestKind, body: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, Trouble>> {
        async move {
            if body == b"hang" {
                std::future::pending::<()>().await;
            }
            if body == b"fail" {
                return Err(Trouble::conflict("too late", "again").because("a cause"));
            }
            if let Some(bytes) = body.strip_prefix(b"large ") {
                let bytes: usize = String::from_utf8_lossy(bytes).parse().expect("a number");
                return Ok(vec![7; bytes]);
            }
            let from = match from {
                Caller::Peer(peer) => format!("node {}", peer.node),
                Caller::Stranger { .. } => "stranger".to_owned(),
            };
            Ok(format!("{from} {kind:?} {}", String::from_utf8_lossy(&body)).into_bytes())
        }
        .boxed()
    }

    fn heartbeat(&self, from: NodeId, body: &[u8], _received: Moment) {
        let mut heartbeats = self.heartbeats.lock().expect("no panic");
        let entry = heartbeats.entry(from).or_default();
        *entry = (entry.0 + 1, body.to_vec());
    }

    fn admits(&self, peer: &PeerIdentity) -> Result<(), Trouble> {
        self.refused.lock().expect("no panic").get(&peer.node).cloned().map_or(Ok(()), Err)
    }
}

/// A running mesh.
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) mesh: Arc<Mesh>,
    pub(super) handler: Arc<Echoing>,
    pub(super) tls: Arc<TlsContext>,
}

impl Node {
    pub(super) async fn start(files: &IdentityFiles) -> Node {
        Node::start_at(files, "127.0.0.1:0".parse().expect("an address")).await
    }

    pub(super) async fn start_at(files: &IdentityFiles, listen: SocketAddr) -> Node {
        let tls = TlsContext::load(files).expect("loads");
        let own = tls.own();
        let handler = Arc::new(Echoing::default());
        let config = MeshConfig { node: own.node, cluster_id: own.cluster, listen: vec![listen], tls: tls.clone() };
        let mesh = Mesh::start(config, handler.clone()).await.expect("starts");
        Node { id: own.node, mesh, handler, tls }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.mesh.addresses()[0]
    }

    pub(super) async fn ask(&self, to: NodeId, body: &str) -> Result<String, Trouble> {
        self.ask_within(to, body, CALL).await
    }

    pub(super) async fn ask_within(&self, to: NodeId, body: &str, time: Duration) -> Result<String, Trouble> {
        let answer = self.mesh.call(to, RequestKind::Control, body.as_bytes().to_vec(), time).await?;
        Ok(String::from_utf8(answer).expect("text"))
    }

    /// Why this node cannot reach `to`, in words.
    pub(super) async fn why_not(&self, to: u64) -> String {
        let mut last = String::new();
        let deadline = Instant::now() + Duration::from_secs(10);
        // The first tries may end before the first handshake has.
        while Instant::now() < deadline {
            let trouble = self.ask_within(NodeId(to), "hello", Duration::from_millis(200)).await;
            last = trouble.expect_err("refused").to_string();
            if last.contains(": ") {
                return last;
            }
        }
        panic!("no reason was given: {last}")
    }
}

/// Makes all nodes peers of each other.
pub(super) fn introduce(nodes: &[&Node]) {
    let peers: BTreeMap<_, _> = nodes.iter().map(|node| (node.id, node.address().to_string())).collect();
    for node in nodes {
        node.mesh.set_peers(peers.clone());
    }
}

/// Waits for a condition.
pub(super) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 15 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
