//! Accepting: who may come in, how many at once, and what each may ask.
//!
//! Nothing here waits for a peer without a bound, and no peer waits for another: the accept loop only hands sockets
//! on, each connection has its own task, and each bound throws out the oldest of its kind rather than lock the door.

use super::frame::{self, Head, PROTOCOL, STRANGER_FRAME_BYTES_MAX};
use super::{Caller, Connection, REQUEST_TIME_MAX, RequestKind, Shared, socket};
use crate::pki::{self, PeerIdentity};
use model::limits::{FRAME_BYTES_MAX, MEMBERS_MAX};
use model::{NodeId, Trouble};
use rustls_pki_types::CertificateDer;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// The TLS handshake, and then the greeting, may take this long each.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);
/// Connections that have not yet said who they are. When one more comes, the oldest goes: under a flood of half-open
/// ones a peer, which needs milliseconds, still gets through.
const UNKNOWN_MAX: usize = 128;
/// Strangers at once.
const STRANGERS_MAX: usize = 8;
/// A stranger must have asked and been answered within this time.
const STRANGER_TIME_MAX: Duration = Duration::from_secs(65);
const STRANGER_IDLE_MAX: Duration = Duration::from_secs(5);
/// Connections of one member: the current one and those that drain. When one more comes, the oldest goes.
const PER_MEMBER_MAX: usize = 4;
/// A member's connection without a frame for this long is dead; heartbeats come many times a second.
const MEMBER_IDLE_MAX: Duration = Duration::from_secs(90);
/// Requests of one connection that may be worked on at once.
const IN_FLIGHT_MAX: usize = 64;
const _: () = assert!(REQUEST_TIME_MAX.as_secs() < MEMBER_IDLE_MAX.as_secs());

/// Who has greeted. A stranger's seat is free again when it is dropped.
enum Visitor {
    Member(PeerIdentity),
    Stranger(OwnedSemaphorePermit),
}

struct Guest {
    ticket: u64,
    peer: PeerIdentity,
    chain: Vec<CertificateDer<'static>>,
    cut: CancellationToken,
}

/// Who is in, and who stands at the door.
pub(super) struct Doors {
    next_ticket: AtomicU64,
    unknown: Mutex<VecDeque<(u64, CancellationToken)>>,
    guests: Mutex<Vec<Guest>>,
    strangers: Arc<Semaphore>,
    /// What was logged of whom, and when.
    logged: Mutex<BTreeMap<(IpAddr, String), Instant>>,
}

impl Doors {
    pub(super) fn new() -> Doors {
        Doors {
            next_ticket: AtomicU64::new(0),
            unknown: Mutex::default(),
            guests: Mutex::default(),
            strangers: Arc::new(Semaphore::new(STRANGERS_MAX)),
            logged: Mutex::default(),
        }
    }

    /// Looks at every member's connection again: its certificate by the CAs trusted now, and its membership.
    pub(super) fn recheck(&self, shared: &Shared) {
        // Judged outside the lock: `admits` is not ours and may take its time.
        let guests: Vec<_> = {
            let guests = self.guests.lock().expect("no panic under the lock");
            guests.iter().map(|guest| (guest.peer.clone(), guest.chain.clone(), guest.cut.clone())).collect()
        };
        for (peer, chain, cut) in guests {
            if let Err(trouble) = judge(shared, &peer, &chain) {
                tracing::warn!(peer = %peer.node, code = %trouble.code, "node {} ({}) is cut off: {trouble}", peer.node, peer.name);
                cut.cancel();
            }
        }
    }

    /// Connections whose peer is known to be a member, and those whose peer is not known yet.
    pub(super) fn count(&self) -> (usize, usize) {
        let guests = self.guests.lock().expect("no panic under the lock").len();
        (guests, self.unknown.lock().expect("no panic under the lock").len())
    }

    fn ticket(&self) -> u64 {
        self.next_ticket.fetch_add(1, Ordering::Relaxed)
    }

    fn enter_unknown(&self, cut: &CancellationToken) -> u64 {
        let ticket = self.ticket();
        let mut unknown = self.unknown.lock().expect("no panic under the lock");
        if unknown.len() >= UNKNOWN_MAX
            && let Some((_, oldest)) = unknown.pop_front()
        {
            oldest.cancel();
        }
        unknown.push_back((ticket, cut.clone()));
        ticket
    }

    fn leave_unknown(&self, ticket: u64) {
        self.unknown.lock().expect("no panic under the lock").retain(|(other, _)| *other != ticket);
    }

    fn enter_guest(&self, guest: Guest) {
        let mut guests = self.guests.lock().expect("no panic under the lock");
        let same = |other: &Guest| other.peer.node == guest.peer.node;
        if guests.iter().filter(|other| same(other)).count() >= PER_MEMBER_MAX
            && let Some(at) = guests.iter().position(same)
        {
            guests.remove(at).cut.cancel();
        }
        guests.push(guest);
    }

    fn leave_guest(&self, ticket: u64) {
        self.guests.lock().expect("no panic under the lock").retain(|guest| guest.ticket != ticket);
    }

    /// Logs a refusal, the same one of the same address at most once a minute.
    fn log_refusal(&self, from: SocketAddr, trouble: &Trouble) {
        let mut logged = self.logged.lock().expect("no panic under the lock");
        let now = Instant::now();
        logged.retain(|_, at| now.duration_since(*at) < Duration::from_secs(60));
        let key = (from.ip(), trouble.code.0.to_string());
        if logged.len() < 256 && logged.insert(key, now).is_none() {
            tracing::warn!(%from, code = %trouble.code, hint = %trouble.hint, "refused a connection: {trouble}");
        }
    }
}

/// Whether a member's connection may be, or go on.
fn judge(shared: &Shared, peer: &PeerIdentity, chain: &[CertificateDer<'_>]) -> Result<(), Trouble> {
    let whom = format!("node {} ({})", peer.node, peer.name);
    shared.tls.still_accepts(chain).map_err(|error| pki::tls_trouble(&whom, &error))?;
    if peer.cluster != shared.cluster {
        return Err(Trouble::certificate_refused(
            format!("{whom} is of cluster {}, not of cluster {}", peer.cluster, shared.cluster),
            "check the peer addresses of that node",
        ));
    }
    shared.handler.admits(peer)
}

/// Accepts until the mesh stops.
pub(super) async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, from)) => {
                let cut = shared.stop.child_token();
                let ticket = shared.doors.enter_unknown(&cut);
                let task = shared.clone();
                shared.tasks.spawn(async move {
                    cut.run_until_cancelled(receive(&task, stream, from, ticket, &cut)).await;
                    task.doors.leave_unknown(ticket);
                    task.doors.leave_guest(ticket);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely. Trying again at once would only burn a core.
                let trouble = Trouble::os("cannot accept connections", "raise the limit of open files").because(error);
                shared.doors.log_refusal(SocketAddr::from(([0, 0, 0, 0], 0)), &trouble);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn receive(shared: &Arc<Shared>, tcp: TcpStream, from: SocketAddr, ticket: u64, cut: &CancellationToken) {
    let greeted = tokio::time::timeout(HANDSHAKE_TIME_MAX * 2, admit(shared, tcp, from, ticket, cut)).await;
    let Ok(Some((connection, visitor))) = greeted else { return };
    shared.doors.leave_unknown(ticket);
    let ended = match visitor {
        Visitor::Member(peer) => serve(shared, connection, Caller::Peer(peer)).await,
        Visitor::Stranger(_seat) => {
            let visit = serve(shared, connection, Caller::Stranger { address: from });
            tokio::time::timeout(STRANGER_TIME_MAX, visit).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%from, "connection ended: {error}");
    }
}

/// Handshake and greeting; says who it is, or has said why not.
async fn admit(
    shared: &Arc<Shared>,
    tcp: TcpStream,
    from: SocketAddr,
    ticket: u64,
    cut: &CancellationToken,
) -> Option<(Connection, Visitor)> {
    socket::tune(&tcp).ok()?;
    let handshake = TlsAcceptor::from(shared.tls.server()).accept(tcp).into_fallible();
    let tls = match tokio::time::timeout(HANDSHAKE_TIME_MAX, handshake).await.ok()? {
        Ok(tls) => tls,
        Err((error, tcp)) => {
            let trouble = pki::handshake_trouble(&format!("the caller at {from}"), &error);
            // Port scanners and health checks are no news; a certificate that was refused is.
            if trouble.is("ST8002") {
                shared.doors.log_refusal(from, &trouble);
            }
            linger(tcp).await;
            return None;
        }
    };
    let chain: Vec<CertificateDer<'static>> =
        tls.get_ref().1.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect();
    let mut connection = Connection::Server(tls);
    let mut buffer = Vec::new();
    frame::read(&mut connection, STRANGER_FRAME_BYTES_MAX, &mut buffer).await.ok()?;
    let hello = frame::decode(&buffer).ok()?.0;
    match identify(shared, &hello, chain, ticket, cut) {
        Ok(visitor) => {
            let welcome = frame::encode(&Head::Welcome { protocol: PROTOCOL, node: shared.node }, &[]);
            frame::write(&mut connection, &welcome).await.ok()?;
            Some((connection, visitor))
        }
        Err(trouble) => {
            shared.doors.log_refusal(from, &trouble);
            let refused = frame::encode(&Head::Refused(trouble.into()), &[]);
            let _ = frame::write(&mut connection, &refused).await;
            linger(connection).await;
            None
        }
    }
}

fn identify(
    shared: &Arc<Shared>,
    hello: &Head,
    chain: Vec<CertificateDer<'static>>,
    ticket: u64,
    cut: &CancellationToken,
) -> Result<Visitor, Trouble> {
    let malformed = |what: String| Trouble::bad_request(what, "check that both nodes run this version of stemma");
    let Head::Hello { protocol, node, cluster } = hello else {
        return Err(malformed("the first frame was no greeting".into()));
    };
    if *protocol != PROTOCOL {
        return Err(malformed(format!("the caller speaks protocol {protocol}, this node {PROTOCOL}")));
    }
    let Some(leaf) = chain.first() else {
        if node.is_some() {
            return Err(Trouble::certificate_refused(
                "the caller says it is a member but shows no certificate",
                "let that node join with a token",
            ));
        }
        return shared
            .doors
            .strangers
            .clone()
            .try_acquire_owned()
            .map(Visitor::Stranger)
            .map_err(|_| Trouble::unreachable("too many nodes are joining at once", "join again in a few seconds"));
    };
    let peer = pki::client_identity_from_cert(leaf)?;
    if *node != Some(peer.node) || cluster.as_ref() != Some(&peer.cluster) {
        return Err(Trouble::certificate_refused(
            format!("the caller says it is {node:?} of {cluster:?}, its certificate says node {}", peer.node),
            "check the identity directory of that node",
        ));
    }
    // In the list first and judged second: a recheck between the two must not miss it.
    let guest = Guest { ticket, peer: peer.clone(), chain: chain.clone(), cut: cut.clone() };
    judge(shared, &peer, &chain)?;
    shared.doors.enter_guest(guest);
    judge(shared, &peer, &chain)?;
    Ok(Visitor::Member(peer))
}

/// Reads on for a moment: closing a socket with unread data resets it, and the reason just sent would be lost.
async fn linger<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let read_out = async {
        let _ = stream.shutdown().await;
        let mut rest = [0; 1024];
        for _ in 0..64 {
            if !matches!(stream.read(&mut rest).await, Ok(1..)) {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(500), read_out).await;
}

/// What the reading side of a connection tells its writing side.
struct Outbox {
    echo: AtomicU64,
    echo_ready: Notify,
    answers: mpsc::Sender<Vec<u8>>,
    in_flight: Arc<Semaphore>,
}

async fn serve(shared: &Arc<Shared>, connection: Connection, caller: Caller) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(connection);
    // One place per request that may be worked on, and some for refusals, so that answering never waits.
    let (answers, queue) = mpsc::channel(IN_FLIGHT_MAX * 2);
    let outbox = Arc::new(Outbox {
        echo: AtomicU64::new(0),
        echo_ready: Notify::new(),
        answers,
        in_flight: Arc::new(Semaphore::new(match caller {
            Caller::Peer(_) => IN_FLIGHT_MAX,
            Caller::Stranger { .. } => 1,
        })),
    });
    tokio::select! {
        end = read(shared, &mut reader, &caller, &outbox) => end,
        end = write(&mut writer, &outbox, queue) => end,
    }
}

async fn read<R: AsyncRead + Unpin>(
    shared: &Arc<Shared>,
    reader: &mut R,
    caller: &Caller,
    outbox: &Arc<Outbox>,
) -> io::Result<()> {
    let (bytes_max, idle_max) = match caller {
        Caller::Peer(_) => (FRAME_BYTES_MAX, MEMBER_IDLE_MAX),
        Caller::Stranger { .. } => (STRANGER_FRAME_BYTES_MAX, STRANGER_IDLE_MAX),
    };
    let mut buffer = Vec::new();
    loop {
        let busy = outbox.in_flight.available_permits() == 0;
        let next = frame::read(reader, bytes_max, &mut buffer);
        // A stranger that waits for its answer is not idle; its whole visit is bounded elsewhere.
        let idle_max = if busy { idle_max.max(STRANGER_TIME_MAX) } else { idle_max };
        let idle = |_| io::Error::new(io::ErrorKind::TimedOut, "it has been silent for too long");
        tokio::time::timeout(idle_max, next).await.map_err(idle)??;
        let (head, body) = frame::decode(&buffer)?;
        match (head, caller) {
            (Head::Heartbeat { seq }, Caller::Peer(peer)) => {
                shared.handler.heartbeat(peer.node, body, crate::clock::now());
                outbox.echo.fetch_max(seq, Ordering::Relaxed);
                outbox.echo_ready.notify_one();
            }
            (Head::Request { id, kind, timeout_ms }, caller) => {
                begin(shared, caller, outbox, Request { id, kind, timeout_ms }, body);
            }
            (
                head @ (Head::Heartbeat { .. }
                | Head::Hello { .. }
                | Head::Welcome { .. }
                | Head::Refused(_)
                | Head::Answer { .. }
                | Head::Failed { .. }
                | Head::Echo { .. }),
                Caller::Peer(_) | Caller::Stranger { .. },
            ) => return Err(frame::bad(format!("a frame out of place: {head:?}"))),
        }
    }
}

struct Request {
    id: u64,
    kind: RequestKind,
    timeout_ms: u64,
}

/// Starts the work on a request; never waits.
fn begin(shared: &Arc<Shared>, caller: &Caller, outbox: &Arc<Outbox>, request: Request, body: &[u8]) {
    let Request { id, kind, timeout_ms } = request;
    let refuse = |trouble: Trouble| {
        let frame = frame::encode(&Head::Failed { id, trouble: trouble.into() }, &[]);
        // A peer that sends more requests than it takes answers finds some unanswered, and its own deadlines end them.
        let _ = outbox.answers.try_send(frame);
    };
    match (caller, kind) {
        (Caller::Peer(_), RequestKind::Consensus | RequestKind::Control | RequestKind::Join)
        | (Caller::Stranger { .. }, RequestKind::Join | RequestKind::Follow) => {}
        (Caller::Peer(_), RequestKind::Follow) => {
            return refuse(Trouble::denied("a member cannot follow its own cluster", "use a node of another cluster"));
        }
        (Caller::Stranger { .. }, RequestKind::Consensus | RequestKind::Control) => {
            return refuse(Trouble::denied("a node that is not a member may only join", "join with a token first"));
        }
    }
    let Ok(place) = outbox.in_flight.clone().try_acquire_owned() else {
        return refuse(Trouble::unreachable(
            format!("node {} has as many requests under way as it takes", shared.node),
            "see `stemma status` for what holds it up",
        ));
    };
    let time = Duration::from_millis(timeout_ms).min(REQUEST_TIME_MAX);
    let (shared, caller, outbox, body) = (shared.clone(), caller.clone(), outbox.clone(), body.to_vec());
    let stop = shared.stop.clone();
    shared.tasks.clone().spawn(stop.run_until_cancelled_owned(async move {
        let work = shared.handler.request(caller, kind, body);
        let answer = tokio::time::timeout(time, work).await;
        let failed = |trouble: Trouble| frame::encode(&Head::Failed { id, trouble: trouble.into() }, &[]);
        let frame = match answer {
            Ok(Ok(body)) => frame::encode(&Head::Answer { id }, &body),
            Ok(Err(trouble)) => failed(trouble),
            // Who asked has given up by now.
            Err(_) => return,
        };
        let frame = if frame::fits(&frame) { frame } else { failed(super::too_large(frame.len())) };
        let _ = outbox.answers.send(frame).await;
        drop(place);
    }));
}

async fn write<W: AsyncWrite + Unpin>(
    writer: &mut W,
    outbox: &Outbox,
    mut queue: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    let mut echo = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = outbox.echo_ready.notified() => {
                echo = frame::encode_in(echo, &Head::Echo { seq: outbox.echo.load(Ordering::Relaxed) }, &[]);
                frame::write(writer, &echo).await?;
            }
            frame = queue.recv() => match frame {
                Some(frame) => frame::write(writer, &frame).await?,
                None => return Ok(()),
            },
        }
    }
}

/// The most connections that may be open at once.
pub const CONNECTIONS_MAX: usize = UNKNOWN_MAX + STRANGERS_MAX + MEMBERS_MAX * PER_MEMBER_MAX;

/// The node ids of the members connected to us.
pub(super) fn connected(doors: &Doors) -> Vec<NodeId> {
    let mut nodes: Vec<_> =
        doors.guests.lock().expect("no panic under the lock").iter().map(|guest| guest.peer.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}
