//! Waiting for a server: in line where all are in use, and with patience where there is none.

use crate::pool::{Grant, Pool, Slot};
use crate::refusal::Refusal;
use crate::server::{self, ConnectError, Server};
use crate::settings::Settings;
use crate::stream::Stream;
use crate::worker::Worker;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;

/// Between attempts to reach a primary that does not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Why there is no server.
#[derive(Debug)]
pub enum Failure {
    /// The client left.
    ClientGone,
    /// We say no.
    Refused(Refusal),
    /// The server says no.
    Server(ConnectError),
}

/// A connection from the pool that `target` names, which is asked again whenever things have changed. Statements that
/// find no primary, or one that does not answer, are held: nothing of them was sent (F-4, F-6).
pub async fn obtain(worker: &Rc<Worker>, mut target: impl FnMut() -> Option<Rc<Pool>>) -> Result<Box<Server>, Failure> {
    // The ordinary case first, without the means of waiting for news.
    let mut why = String::new();
    if let Some(pool) = target() {
        match from_live_pool(worker, &pool).await {
            Some(Err(Failure::Server(ConnectError::Unreachable(reason)))) => why = reason,
            Some(done) => return done,
            None => {}
        }
    }
    let config = worker.config();
    let mut hold_until = Instant::now() + config.hold_max;
    loop {
        let mut news = std::pin::pin!(worker.news.notified());
        news.as_mut().enable();
        if let Some(pool) = target() {
            match from_live_pool(worker, &pool).await {
                Some(Err(Failure::Server(ConnectError::Unreachable(reason)))) => why = reason,
                Some(done) => return done,
                None => continue,
            }
        }
        let now = Instant::now();
        if crate::admin::is_paused(worker) {
            // An administrator holds it, for as long as they like.
            hold_until = now + config.hold_max;
        }
        if now >= hold_until {
            let seconds = config.hold_max.as_secs_f32();
            let refusal = Refusal::no_primary(format!("no primary took the statement within {seconds} s"));
            return Err(Failure::Refused(refusal.detail(why)));
        }
        let pause = if why.is_empty() { hold_until - now } else { RETRY_PAUSE.min(hold_until - now) };
        let _ = tokio::time::timeout(pause, news).await;
    }
}

/// The same as `from_pool`, given up (`None`) once another server is the one to ask: one that is gone may not even refuse.
async fn from_live_pool(worker: &Rc<Worker>, pool: &Rc<Pool>) -> Option<Result<Box<Server>, Failure>> {
    let superseded = async {
        while !pool.is_retired() {
            worker.news.notified().await;
        }
    };
    tokio::select! {
        biased;
        found = from_pool(worker, pool) => Some(found),
        () = superseded => None,
    }
}

/// A connection from one pool: an idle one, a new one, or the next that is given back.
pub async fn from_pool(worker: &Rc<Worker>, pool: &Rc<Pool>) -> Result<Box<Server>, Failure> {
    if let Some(server) = pool.take() {
        return Ok(server);
    }
    if pool.shared.waiting() == 0
        && let Some(slot) = pool.shared.reserve()
    {
        return connect(worker, slot).await;
    }
    let wait_max = worker.config().wait_max;
    let place = Place { worker, pool, ticket: pool.shared.stand(worker.index) };
    let grant = worker.expect_grant(place.ticket);
    pool.shared.serve_waiters();
    match tokio::time::timeout(wait_max, grant).await {
        Ok(Ok(Grant::Server(parked))) => match parked.unpark() {
            Ok(server) => Ok(server),
            Err(slot) => connect(worker, slot).await,
        },
        Ok(Ok(Grant::Connect(slot))) => connect(worker, slot).await,
        Ok(Err(_)) => Err(Failure::Refused(Refusal::shutting_down("the router stops"))),
        Err(_) => {
            let seconds = wait_max.as_secs_f32();
            Err(Failure::Refused(Refusal::pool_exhausted(format!("no connection became free within {seconds} s"))))
        }
    }
}

/// A place in the line; left when dropped.
struct Place<'p> {
    worker: &'p Rc<Worker>,
    pool: &'p Rc<Pool>,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.worker.forget_grant(self.ticket);
        self.pool.shared.leave(self.ticket);
    }
}

async fn connect(worker: &Rc<Worker>, slot: Slot) -> Result<Box<Server>, Failure> {
    server::connect(slot, worker).await.map_err(Failure::Server)
}

/// Makes a server fit for another client after one that left it in whatever state, and gives it back; closes it where
/// that does not work at once.
pub async fn clean(worker: &Rc<Worker>, mut server: Box<Server>, left: Left) {
    // In the middle of something: an answer would have to be waited for that nobody wants.
    if !left.quiet || !server.inbox.is_empty() || !server.outbox.is_empty() {
        return;
    }
    let limit = worker.config().connect_timeout;
    let cleaned = tokio::time::timeout(limit, async {
        if left.in_transaction {
            server::ask(&mut server, "ROLLBACK").await?;
        }
        if left.discard {
            server::ask(&mut server, "DISCARD ALL").await?;
        }
        Ok::<_, ConnectError>(())
    });
    if let Ok(Ok(())) = cleaned.await {
        server.settings = left.settings;
        if left.discard {
            server.statements.clear();
            server.settings = Default::default();
        }
        worker.put_back(server);
    }
}

/// How a client left its server.
pub struct Left {
    /// Nothing is due from it.
    pub quiet: bool,
    /// A transaction is open.
    pub in_transaction: bool,
    /// It holds things that must not reach another client.
    pub discard: bool,
    /// The settings it has once the transaction is rolled back.
    pub settings: Arc<Settings>,
}

/// Ends when the client has closed its side. Bytes it sends meanwhile stay where they are.
pub async fn client_gone(client: &Stream) {
    let closed = match client {
        Stream::Unix(socket) => socket.is_read_closed().await,
        other => match other.tcp() {
            Some(tcp) => tcp.ready(Interest::READABLE).await.is_ok_and(|ready| ready.is_read_closed()),
            None => false,
        },
    };
    if !closed {
        std::future::pending().await
    }
}
