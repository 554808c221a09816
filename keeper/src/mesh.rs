//! How keepers talk to each other: one listener per node, one connection per pair and direction, TLS with both sides'
//! certificates, many requests at once, and heartbeats that never wait.
//!
//! A connection carries the requests and heartbeats of the side that opened it. Who a peer *is* says its certificate;
//! whether it *may* is asked of the `Handler`, at connect and at every `recheck`. The mesh knows nothing of what it
//! carries.

mod frame;
mod inbound;
mod link;
mod session;
mod socket;
mod stranger;
#[cfg(test)]
mod tests;

pub use inbound::CONNECTIONS_MAX;
pub use stranger::call_as_stranger;

use crate::pki::{PeerIdentity, TlsContext};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use link::Link;
use model::limits::FRAME_BYTES_MAX;
use model::{ClusterId, Millis, Moment, NodeId, Trouble};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

type Connection = tokio_rustls::TlsStream<TcpStream>;

/// Longest time a request may take.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(60);
/// How often connections are looked at again without being told to, so that expired certificates do not go on.
const RECHECK_INTERVAL: Duration = Duration::from_secs(15);

/// What a request is about. Strangers may only `Join` and `Follow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RequestKind {
    /// For the consensus store.
    Consensus,
    /// To be let in.
    Join,
    /// Keeper to keeper.
    Control,
    /// To follow as a whole cluster.
    Follow,
}

/// Who sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A member with a verified certificate that `admits` has let in.
    Peer(PeerIdentity),
    /// Someone without a certificate.
    Stranger {
        /// Where from.
        address: SocketAddr,
    },
}

/// What a node does with what arrives.
pub trait Handler: Send + Sync + 'static {
    /// Answers a request. Dropped in the middle when the caller's time is over or the mesh stops, so it must be safe
    /// to cancel: spawn what is not.
    fn request(&self, from: Caller, kind: RequestKind, body: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, Trouble>>;
    /// Takes a heartbeat. Called on the connection's task: it must not block.
    fn heartbeat(&self, from: NodeId, body: &[u8], received: Moment);
    /// Whether this peer may be connected, in either direction: it is a member, and the key is the one bound to it.
    /// Asked at connect and again at every `recheck`.
    fn admits(&self, peer: &PeerIdentity) -> Result<(), Trouble>;
}

/// What a mesh needs to know.
#[derive(Clone)]
pub struct MeshConfig {
    /// This node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster_id: ClusterId,
    /// Where to listen.
    pub listen: Vec<SocketAddr>,
    /// Its certificates.
    pub tls: Arc<TlsContext>,
}

/// What all tasks of a mesh share.
struct Shared {
    node: NodeId,
    cluster: ClusterId,
    tls: Arc<TlsContext>,
    handler: Arc<dyn Handler>,
    doors: inbound::Doors,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// The connections of one node.
pub struct Mesh {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    links: Mutex<BTreeMap<NodeId, Arc<Link>>>,
    heartbeat_seq: AtomicU64,
}

impl Mesh {
    /// Listens. Connects to nobody before `set_peers`.
    pub async fn start(config: MeshConfig, handler: Arc<dyn Handler>) -> Result<Arc<Mesh>, Trouble> {
        let MeshConfig { node, cluster_id, listen, tls } = config;
        let listeners = listen.into_iter().map(socket::listen).collect::<Result<Vec<_>, _>>()?;
        let address = |listener: &tokio::net::TcpListener| {
            listener
                .local_addr()
                .map_err(|error| Trouble::os(format!("a listener has no address: {error}"), "try again"))
        };
        let addresses = listeners.iter().map(address).collect::<Result<Vec<_>, _>>()?;
        let shared = Arc::new(Shared {
            node,
            cluster: cluster_id,
            tls,
            handler,
            doors: inbound::Doors::new(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        for listener in listeners {
            shared.tasks.spawn(inbound::accept(shared.clone(), listener));
        }
        let mesh = Arc::new(Mesh { shared, addresses, links: Mutex::default(), heartbeat_seq: AtomicU64::new(0) });
        mesh.start_rechecks();
        Ok(mesh)
    }

    /// Where this mesh listens; tells the port when it was left to the system.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Says who the peers are and where. Connections to others end at once; this node itself is left out. Rechecks.
    pub fn set_peers(&self, peers: BTreeMap<NodeId, String>) {
        {
            let mut links = self.links();
            links.retain(|node, link| {
                let stays = peers.get(node).is_some_and(|address| *address == link.address);
                if !stays {
                    link.cut.cancel();
                }
                stays
            });
            for (node, address) in peers {
                if node != self.shared.node && !self.shared.stop.is_cancelled() {
                    links.entry(node).or_insert_with(|| Link::start(&self.shared, node, address));
                }
            }
        }
        self.recheck();
    }

    /// Asks `admits` again for every connection, in both directions, and cuts those off that it refuses. To be called
    /// when members or their keys have changed.
    pub fn recheck(&self) {
        self.shared.doors.recheck(&self.shared);
        let sessions: Vec<_> = self.links().values().filter_map(|link| link.session()).collect();
        let now = crate::clock::wall();
        for session in sessions {
            if session.peer.expires_at <= now || self.shared.handler.admits(&session.peer).is_err() {
                session.cut.cancel();
            }
        }
    }

    /// Sends a request and waits for the answer. Where the outcome is unknown, because it was sent and not answered,
    /// the trouble's exit status is `exit::UNKNOWN`; where it was never sent, `exit::UNREACHABLE`.
    pub async fn call(
        &self,
        to: NodeId,
        kind: RequestKind,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Vec<u8>, Trouble> {
        // Room for the head.
        if body.len() + 64 > FRAME_BYTES_MAX {
            return Err(too_large(body.len()));
        }
        let link = self.links().get(&to).cloned();
        match link {
            Some(link) => link.call(kind, &body, timeout).await,
            None => Err(Trouble::unreachable(
                format!("node {to} is not a peer of this node"),
                "see `stemma status` for the members",
            )),
        }
    }

    /// Puts a heartbeat up for every connected peer. Never blocks; a newer one replaces one that was not sent yet.
    pub fn broadcast_heartbeat(&self, body: Bytes) {
        let seq = self.heartbeat_seq.fetch_add(1, Ordering::Relaxed) + 1;
        // Written once, shared by all peers.
        let frame = Bytes::from(frame::encode(&frame::Head::Heartbeat { seq }, &body));
        if !frame::fits(&frame) {
            tracing::error!(bytes = frame.len(), "a heartbeat is larger than a frame may be and is not sent");
            return;
        }
        for link in self.links().values() {
            if let Some(session) = link.session() {
                session.offer_heartbeat(seq, frame.clone());
            }
        }
    }

    /// Time from a heartbeat to its echo, measured last and rounded up; none while not connected.
    pub fn round_trip(&self, peer: NodeId) -> Option<Millis> {
        let time = self.round_trip_exact(peer)?;
        Some(Millis(u64::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)))
    }

    /// The slowest of the round trips measured last.
    pub fn slowest_round_trip(&self) -> Millis {
        let nodes: Vec<NodeId> = self.links().keys().copied().collect();
        nodes.into_iter().filter_map(|node| self.round_trip(node)).max().unwrap_or_default()
    }

    /// The same, not rounded: within a site it is a fraction of a millisecond.
    pub fn round_trip_exact(&self, peer: NodeId) -> Option<Duration> {
        self.links().get(&peer)?.session()?.round_trip()
    }

    /// Whether our connection to this peer stands.
    pub fn is_connected(&self, peer: NodeId) -> bool {
        self.links().get(&peer).is_some_and(|link| link.session().is_some())
    }

    /// The peers whose connection to us stands.
    pub fn connected_to_us(&self) -> Vec<NodeId> {
        inbound::connected(&self.shared.doors)
    }

    /// Accepted connections now open: of members, and of callers not yet known.
    pub fn inbound_connections(&self) -> (usize, usize) {
        self.shared.doors.count()
    }

    /// Ends all connections and waits for their tasks.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        if tokio::time::timeout(Duration::from_secs(5), self.shared.tasks.wait()).await.is_err() {
            tracing::warn!("{} tasks of the mesh did not end within 5 s", self.shared.tasks.len());
        }
    }

    fn links(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Arc<Link>>> {
        self.links.lock().expect("no panic under the lock")
    }

    fn start_rechecks(self: &Arc<Mesh>) {
        let mesh = Arc::downgrade(self);
        let stop = self.shared.stop.clone();
        let mut generation = self.shared.tls.generation();
        self.shared.tasks.spawn(stop.run_until_cancelled_owned(async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(RECHECK_INTERVAL) => {}
                    Ok(()) = generation.changed() => {}
                }
                match mesh.upgrade() {
                    Some(mesh) => mesh.recheck(),
                    None => return,
                }
            }
        }));
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

fn too_large(bytes: usize) -> Trouble {
    Trouble::request_too_large(
        format!("a message of {bytes} bytes, where {FRAME_BYTES_MAX} are allowed between keepers"),
        "report this defect",
    )
}
