//! The way to one peer: connects, connects again with back-off, and takes up new certificates without a gap.

use super::frame::{self, Head, PROTOCOL};
use super::session::{Session, Unanswered};
use super::{Connection, REQUEST_TIME_MAX, RequestKind, Shared, socket};
use crate::pki;
use model::error::exit;
use model::{NodeId, Trouble};
use rustls_pki_types::ServerName;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// Connecting, TLS and the greeting together.
pub(super) const DIAL_TIME_MAX: Duration = Duration::from_secs(8);
/// Requests to one peer that may be under way or wait for a connection.
const CALLS_MAX: usize = 256;

/// The way to one peer.
pub(super) struct Link {
    peer: NodeId,
    pub(super) address: String,
    current: watch::Sender<Option<Arc<Session>>>,
    /// Why there is no connection, if known.
    trouble: Mutex<Option<Trouble>>,
    calls: Semaphore,
    pub(super) cut: CancellationToken,
}

impl Link {
    /// Begins to connect.
    pub(super) fn start(shared: &Arc<Shared>, peer: NodeId, address: String) -> Arc<Link> {
        let link = Arc::new(Link {
            peer,
            address,
            current: watch::Sender::new(None),
            trouble: Mutex::new(None),
            calls: Semaphore::new(CALLS_MAX),
            cut: shared.stop.child_token(),
        });
        let (task, shared_too) = (link.clone(), shared.clone());
        shared.tasks.spawn(async move {
            let cut = task.cut.clone();
            cut.run_until_cancelled(task.keep_connected(shared_too)).await;
            task.current.send_replace(None);
        });
        link
    }

    /// The connection now in use.
    pub(super) fn session(&self) -> Option<Arc<Session>> {
        self.current.borrow().as_ref().filter(|session| !session.ended.is_cancelled()).cloned()
    }

    /// Sends a request, waiting for a connection if need be, all within `timeout`.
    pub(super) async fn call(&self, kind: RequestKind, body: &[u8], timeout: Duration) -> Result<Vec<u8>, Trouble> {
        let timeout = timeout.min(REQUEST_TIME_MAX);
        let Ok(_place) = self.calls.try_acquire() else {
            return Err(Trouble::unreachable(
                format!("{CALLS_MAX} requests to node {} are under way already", self.peer),
                "see `stemma status` for what holds that node up",
            ));
        };
        let mut sent = false;
        let answer = self.call_now(kind, body, timeout, &mut sent);
        let cut = async {
            self.cut.cancelled().await;
        };
        let answer = tokio::select! {
            answer = tokio::time::timeout(timeout, answer) => answer,
            () = cut => return Err(self.unanswered("is no longer a peer of this node", false)),
        };
        match answer {
            Ok(Some(answer)) => answer,
            Ok(None) => Err(self.unanswered("closed the connection before it answered", true)),
            Err(_) if sent => Err(self.unanswered(&format!("did not answer within {} ms", timeout.as_millis()), true)),
            Err(_) => {
                let trouble = self.unanswered(&format!("was not reached within {} ms", timeout.as_millis()), false);
                let cause = self.trouble.lock().expect("no panic under the lock").clone();
                Err(cause.into_iter().fold(trouble, Trouble::because))
            }
        }
    }

    async fn call_now(
        &self,
        kind: RequestKind,
        body: &[u8],
        timeout: Duration,
        sent: &mut bool,
    ) -> Option<Result<Vec<u8>, Trouble>> {
        let begun = Instant::now();
        let mut current = self.current.subscribe();
        loop {
            let usable = |session: &Option<Arc<Session>>| session.as_ref().is_some_and(|s| !s.ended.is_cancelled());
            let session = current.wait_for(usable).await.ok()?.clone()?;
            *sent = true;
            match session.request(kind, body, timeout.saturating_sub(begun.elapsed())).await {
                Ok(answer) => return Some(answer),
                Err(Unanswered::Lost) => return None,
                Err(Unanswered::NotSent) => *sent = false,
            }
            // The connection closes: let its task say so before we ask again.
            session.ended.cancelled().await;
        }
    }

    /// The outcome of what was sent and not answered is unknown; the exit status tells that apart.
    fn unanswered(&self, what: &str, sent: bool) -> Trouble {
        let mut trouble = Trouble::unreachable(
            format!("node {} at {} {what}", self.peer, self.address),
            "see `stemma status` on that node; check its keeper and the network in between",
        );
        if sent {
            trouble.exit = exit::UNKNOWN;
        }
        trouble
    }

    async fn keep_connected(&self, shared: Arc<Shared>) {
        let mut generation = shared.tls.generation();
        let mut backoff = BACKOFF_MIN;
        loop {
            generation.borrow_and_update();
            match dial(&shared, self.peer, &self.address).await {
                Ok((connection, identity)) => {
                    let begun = Instant::now();
                    let session = self.take_up(&shared, connection, identity);
                    tokio::select! {
                        () = session.ended.cancelled() => {}
                        // The old connection stays in use until the new one stands.
                        Ok(()) = generation.changed() => { backoff = BACKOFF_MIN; continue; }
                    }
                    if begun.elapsed() > BACKOFF_MAX {
                        backoff = BACKOFF_MIN;
                    }
                }
                Err(trouble) => self.note(&shared, trouble),
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(backoff)) => backoff = (backoff * 2).min(BACKOFF_MAX),
                Ok(()) = generation.changed() => backoff = BACKOFF_MIN,
            }
        }
    }

    fn take_up(&self, shared: &Arc<Shared>, connection: Connection, identity: pki::PeerIdentity) -> Arc<Session> {
        if self.trouble.lock().expect("no panic under the lock").take().is_some() {
            tracing::info!(peer = %self.peer, address = %self.address, "connected to the keeper of node {} again", self.peer);
        }
        let (session, queue) = Session::new(identity, self.cut.child_token());
        let (task, peer) = (session.clone(), self.peer);
        shared.tasks.spawn(async move {
            if let Err(error) = task.run(connection, queue).await {
                tracing::debug!(%peer, "connection to node {peer} ended: {error}");
            }
        });
        if let Some(old) = self.current.send_replace(Some(session.clone())) {
            old.drain();
        }
        session
    }

    /// Keeps the reason for who asks, and logs it when it is a new one.
    fn note(&self, shared: &Shared, trouble: Trouble) {
        if shared.stop.is_cancelled() {
            return;
        }
        let mut known = self.trouble.lock().expect("no panic under the lock");
        if !known.as_ref().is_some_and(|known| same(known, &trouble)) {
            tracing::warn!(peer = %self.peer, code = %trouble.code, hint = %trouble.hint, "no connection to node {}: {trouble}", self.peer);
        }
        *known = Some(trouble);
    }
}

/// Whether two troubles are the same one seen twice: numbers in them, such as ages, may differ.
fn same(one: &Trouble, other: &Trouble) -> bool {
    let letters = |trouble: &Trouble| trouble.reason.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    one.code == other.code && letters(one) == letters(other)
}

/// Between half and all of `backoff`, so that a cluster that lost one node does not fall upon it all at once.
fn jittered(backoff: Duration) -> Duration {
    let mut random = [0; 1];
    // Without randomness the whole back-off is right, too.
    let _ = aws_lc_rs::rand::fill(&mut random);
    backoff - backoff.mul_f64(0.5 * f64::from(random[0]) / 255.0)
}

async fn dial(shared: &Shared, peer: NodeId, address: &str) -> Result<(Connection, pki::PeerIdentity), Trouble> {
    let whom = format!("node {peer} at {address}");
    let dialled = async {
        let tcp = socket::connect(address).await?;
        let name = ServerName::try_from(pki::server_name(peer)).expect("a node's server name is a DNS name");
        let connector = TlsConnector::from(shared.tls.client());
        let tls = connector.connect(name, tcp).await.map_err(|error| pki::handshake_trouble(&whom, &error))?;
        let leaf = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
        let leaf =
            leaf.ok_or_else(|| Trouble::internal("a verified server showed no certificate", "report this defect"))?;
        let identity = pki::client_identity_from_cert(&leaf)?;
        // The same rule for both directions: a key that was revoked may not answer either.
        shared.handler.admits(&identity)?;
        let mut connection = Connection::Client(tls);
        let hello = Head::Hello { protocol: PROTOCOL, node: Some(shared.node), cluster: Some(shared.cluster.clone()) };
        greet(&mut connection, &hello, &whom).await?;
        Ok((connection, identity))
    };
    tokio::time::timeout(DIAL_TIME_MAX, dialled).await.unwrap_or_else(|_| {
        Err(Trouble::unreachable(
            format!("{whom} accepted the connection but did not greet within {} s", DIAL_TIME_MAX.as_secs()),
            "its keeper may be frozen or overloaded: look at its log",
        ))
    })
}

/// Says hello and waits for the welcome.
pub(super) async fn greet(connection: &mut Connection, hello: &Head, whom: &str) -> Result<(), Trouble> {
    // With TLS 1.3 a client learns only now whether its certificate was taken. A write that fails does not matter
    // here: the reason is in what can be read.
    let _ = frame::write(connection, &frame::encode(hello, &[])).await;
    let mut buffer = Vec::new();
    frame::read(connection, frame::STRANGER_FRAME_BYTES_MAX, &mut buffer)
        .await
        .map_err(|error| pki::handshake_trouble(whom, &error))?;
    let foreign = |cause: String| {
        Trouble::unreachable(
            format!("{whom} does not greet as a keeper does"),
            "check that both run this version of stemma",
        )
        .because(cause)
    };
    match frame::decode(&buffer).map_err(|error| foreign(error.to_string()))?.0 {
        Head::Welcome { protocol: PROTOCOL, .. } => Ok(()),
        Head::Welcome { protocol, .. } => Err(foreign(format!("it speaks protocol {protocol}, this node {PROTOCOL}"))),
        Head::Refused(trouble) => Err(trouble.into()),
        head @ (Head::Hello { .. }
        | Head::Request { .. }
        | Head::Answer { .. }
        | Head::Failed { .. }
        | Head::Heartbeat { .. }
        | Head::Echo { .. }) => Err(foreign(format!("{head:?}"))),
    }
}
