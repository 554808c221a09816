//! One client that is logged in: its bytes go to a server and back. A turn does everything that can be done without
//! waiting; what must be waited for (a free server) is done between turns.

use crate::config::PoolMode;
use crate::exchange::{self, Context as Reading, Exchange, Stop};
use crate::obtain::{self, Failure};
use crate::pool::Pool;
use crate::prepared::ClientStatements;
use crate::refusal::Refusal;
use crate::server::{CancelKey, Server};
use crate::settings::Settings;
use crate::stream::Stream;
use crate::worker::{Scratch, Worker};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;
use tokio::io::AsyncWriteExt;
use wire::build;

/// Answers that a client does not fetch, before its further messages are left unread.
const OUTBOX_BYTES_MAX: usize = 1 << 20;
/// Room that a read finds at least behind bytes that wait for their end.
const READ_BYTES_MIN: usize = 16 << 10;

/// What others may know of a client.
pub struct ClientEntry {
    /// The process id that it was told.
    pub pid: u32,
    /// The secret that it was told.
    pub secret: Vec<u8>,
    /// Its user.
    pub user: String,
    /// Its database.
    pub database: String,
    /// What runs its statement now.
    pub running: RefCell<Option<Arc<CancelKey>>>,
    /// Cancel requests on their way to that server.
    pub cancels: Cell<u32>,
    waker: RefCell<Option<Waker>>,
}

impl ClientEntry {
    /// A client that runs nothing.
    pub fn new(pid: u32, user: &str, database: &str) -> ClientEntry {
        ClientEntry {
            pid,
            secret: crate::random::<4>().to_vec(),
            user: user.to_owned(),
            database: database.to_owned(),
            running: RefCell::default(),
            cancels: Cell::new(0),
            waker: RefCell::default(),
        }
    }

    /// Makes its task look around.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    fn remember(&self, waker: &Waker) {
        let mut known = self.waker.borrow_mut();
        if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
    }
}

/// Why a turn ended.
enum Turn {
    /// The client's next message needs a server, and none is free.
    Acquire,
    /// The server is gone, or spoke nonsense.
    ServerLost(String),
    /// The client is gone, or has said goodbye.
    End,
    /// The client spoke nonsense.
    Malformed(&'static str),
}

/// A client that is logged in.
pub struct Session {
    worker: Rc<Worker>,
    entry: Rc<ClientEntry>,
    client: Stream,
    /// Received from the client, not used yet.
    inbox: Vec<u8>,
    /// Whether `inbox` may hold a whole message.
    unread: bool,
    /// To be sent to the client.
    outbox: Vec<u8>,
    server: Option<Server>,
    exchange: Exchange,
    statements: ClientStatements,
    settings: Arc<Settings>,
    mode: PoolMode,
    pool: Option<(u64, Rc<Pool>)>,
}

impl Session {
    /// A client that was told `ReadyForQuery`.
    pub fn new(
        worker: Rc<Worker>,
        entry: Rc<ClientEntry>,
        client: Stream,
        settings: Arc<Settings>,
        mode: PoolMode,
    ) -> Session {
        Session {
            worker,
            entry,
            client,
            inbox: Vec::new(),
            unread: false,
            outbox: Vec::new(),
            server: None,
            exchange: Exchange::default(),
            statements: ClientStatements::default(),
            settings,
            mode,
            pool: None,
        }
    }

    /// Serves the client until it leaves.
    pub async fn run(mut self) {
        loop {
            match std::future::poll_fn(|context| self.turn(context)).await {
                Turn::Acquire => {
                    let found = Box::pin(self.acquire()).await;
                    match found {
                        Ok(server) => self.attach(server),
                        Err(Failure::ClientGone) => break,
                        Err(Failure::Refused(refusal)) => {
                            self.last_words(&refusal).await;
                            break;
                        }
                        Err(Failure::Server(error)) => {
                            error.write("FATAL", &mut self.outbox);
                            self.say_outbox().await;
                            break;
                        }
                    }
                }
                Turn::ServerLost(why) => {
                    let refusal = Refusal::server_lost("the connection to the server was lost").detail(why);
                    self.last_words(&refusal).await;
                    break;
                }
                Turn::Malformed(why) => {
                    self.last_words(&Refusal::protocol("the client's message is not understood").detail(why)).await;
                    break;
                }
                Turn::End => break,
            }
        }
        self.unread = false;
        self.release_if_free();
        self.worker.unregister(self.entry.pid);
    }

    async fn last_words(&mut self, refusal: &Refusal) {
        refusal.write("FATAL", &mut self.outbox);
        self.say_outbox().await;
    }

    async fn say_outbox(&mut self) {
        let patience = std::time::Duration::from_secs(2);
        let _ = tokio::time::timeout(patience, async {
            self.client.write_all(&self.outbox).await?;
            self.client.shutdown().await
        })
        .await;
    }

    /// The pool that the next statement is to be served from.
    fn target(&mut self) -> Option<Rc<Pool>> {
        let generation = self.worker.generation();
        if let Some((known, pool)) = &self.pool
            && *known == generation
        {
            return Some(pool.clone());
        }
        let pool = self.worker.primary_pool(&self.entry.database, &self.entry.user)?;
        self.pool = Some((generation, pool.clone()));
        Some(pool)
    }

    async fn acquire(&mut self) -> Result<Server, Failure> {
        let (worker, entry) = (self.worker.clone(), self.entry.clone());
        let obtained = obtain::obtain(&worker, &entry.user, || worker.primary_pool(&entry.database, &entry.user));
        tokio::select! {
            biased;
            server = obtained => server,
            () = obtain::client_gone(&self.client) => Err(Failure::ClientGone),
        }
    }

    fn attach(&mut self, server: Server) {
        *self.entry.running.borrow_mut() = Some(server.key.clone());
        self.statements.unnamed_loaded = false;
        self.server = Some(server);
    }

    /// Everything that can be done now.
    fn turn(&mut self, context: &mut Context<'_>) -> Poll<Turn> {
        self.entry.remember(context.waker());
        let worker = self.worker.clone();
        let mut scratch = worker.scratch.borrow_mut();
        loop {
            if !self.outbox.is_empty()
                && matches!(self.client.poll_rest(context, &mut self.outbox), Poll::Ready(Err(_)))
            {
                return Poll::Ready(Turn::End);
            }
            let mut moved = false;
            if self.server.is_some() {
                match self.pump_server(context, &mut scratch) {
                    Ok(some) => moved |= some,
                    Err(turn) => return Poll::Ready(turn),
                }
                self.release_if_free();
            }
            match self.pump_client(context, &mut scratch) {
                Ok(some) => moved |= some,
                Err(turn) => return Poll::Ready(turn),
            }
            if !moved {
                return Poll::Pending;
            }
        }
    }

    /// Carries what the server sent to the client; whether there was anything.
    fn pump_server(&mut self, context: &mut Context<'_>, scratch: &mut Scratch) -> Result<bool, Turn> {
        let lost = |error: std::io::Error| Turn::ServerLost(error.to_string());
        let Some(server) = self.server.as_mut() else { return Ok(false) };
        if !server.outbox.is_empty()
            && let Poll::Ready(sent) = server.stream.poll_rest(context, &mut server.outbox)
        {
            sent.map_err(lost)?;
        }
        // A client that does not fetch its rows is not read for: the server waits with us.
        if !self.outbox.is_empty() {
            return Ok(false);
        }
        let kept = server.inbox.len();
        make_room(&mut scratch.input, kept);
        let read = match server.stream.poll_read(context, &mut scratch.input[kept..]) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(0)) => return Err(Turn::ServerLost("the server closed the connection".into())),
            Poll::Ready(Ok(read)) => read,
            Poll::Ready(Err(error)) => return Err(lost(error)),
        };
        scratch.input[..kept].copy_from_slice(&server.inbox);
        server.inbox.clear();
        let input = &scratch.input[..kept + read];
        let out = &mut scratch.to_client;
        out.clear();
        let used = self.exchange.server_bytes(input, out);
        if self.exchange.unsettled() {
            self.exchange.settle(&mut self.statements, Some(&mut server.statements));
        }
        if self.exchange.has_reported() {
            let reported = Arc::make_mut(&mut server.reported);
            reported.extend(self.exchange.take_reported());
        }
        if !out.is_empty() {
            self.client.send(context, out, input, &mut self.outbox).map_err(|_| Turn::End)?;
        }
        match used {
            Ok(used) => server.inbox.extend_from_slice(&input[used..]),
            Err(desync) => {
                tracing::error!(problem = desync.0, "a server connection is out of step and is closed");
                return Err(Turn::ServerLost(desync.0));
            }
        }
        Ok(true)
    }

    /// Gives the server back where the client has no claim to it any more.
    fn release_if_free(&mut self) {
        if self.mode == PoolMode::Session || !self.exchange.at_rest() || self.unread || self.entry.cancels.get() > 0 {
            return;
        }
        let Some(server) = self.server.take_if(|server| server.inbox.is_empty() && server.outbox.is_empty()) else {
            return;
        };
        *self.entry.running.borrow_mut() = None;
        self.exchange.shrink();
        let config = self.worker.global.config.load();
        match &self.pool {
            Some((_, pool)) if Arc::ptr_eq(&pool.shared, server.slot.pool()) => {
                pool.put(server, &config, Instant::now())
            }
            Some(_) | None => {
                let pool = self.worker.pool(&server.slot.pool().key.clone());
                pool.put(server, &config, Instant::now());
            }
        }
    }

    /// Carries what the client sent to the server; whether there was anything.
    fn pump_client(&mut self, context: &mut Context<'_>, scratch: &mut Scratch) -> Result<bool, Turn> {
        let blocked = self.server.as_ref().is_some_and(|server| !server.outbox.is_empty());
        if blocked || self.outbox.len() > OUTBOX_BYTES_MAX {
            return Ok(false);
        }
        let kept = self.inbox.len();
        make_room(&mut scratch.input, kept);
        let mut read = 0;
        if !self.unread {
            read = match self.client.poll_read(context, &mut scratch.input[kept..]) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0) | Err(_)) => return Err(Turn::End),
                Poll::Ready(Ok(read)) => read,
            };
        }
        scratch.input[..kept].copy_from_slice(&self.inbox);
        self.inbox.clear();
        let Scratch { input, to_server, to_client } = scratch;
        let input = &input[..kept + read];
        to_server.clear();
        to_client.clear();
        if self.server.is_none() && !self.take_server(input)? {
            return Ok(true);
        }
        self.unread = false;
        let Some(server) = self.server.as_mut() else { return Ok(true) };
        if !Arc::ptr_eq(&server.settings, &self.settings) {
            if let Some(sql) = self.settings.difference(&server.settings) {
                to_server.add(|own| build::query(own, &sql));
                self.exchange.inject();
            }
            server.settings = self.settings.clone();
        }
        let mut reading = Reading {
            client: &mut self.statements,
            server: &mut server.statements,
            interner: &mut self.worker.interner.borrow_mut(),
        };
        let done = self.exchange.client_bytes(input, &mut reading, to_server, to_client);
        let sent = server.stream.send(context, to_server, input, &mut server.outbox);
        self.client.send(context, to_client, &[], &mut self.outbox).map_err(|_| Turn::End)?;
        sent.map_err(|error| Turn::ServerLost(error.to_string()))?;
        match done {
            Ok((_, Stop::Terminate)) => Err(Turn::End),
            Ok((used, Stop::More | Stop::Boundary)) => {
                self.inbox.extend_from_slice(&input[used..]);
                Ok(true)
            }
            Err(malformed) => Err(Turn::Malformed(malformed.0)),
        }
    }

    /// Takes a server for what the client sent. Whether there is one now; otherwise the bytes are kept.
    fn take_server(&mut self, input: &[u8]) -> Result<bool, Turn> {
        match exchange::first_message(input) {
            Err(malformed) => return Err(Turn::Malformed(malformed.0)),
            Ok(Some(b'X')) => return Err(Turn::End),
            Ok(None) => {
                // Nobody waits for a slow sender: a server is taken once there is something for it.
                self.inbox.extend_from_slice(input);
                self.unread = false;
                return Ok(false);
            }
            Ok(Some(_)) => {}
        }
        match self.target().and_then(|pool| pool.take()) {
            Some(server) => {
                self.attach(server);
                Ok(true)
            }
            None => {
                self.inbox.extend_from_slice(input);
                self.unread = true;
                Err(Turn::Acquire)
            }
        }
    }
}

/// Makes the worker's buffer large enough for `kept` bytes and a read.
fn make_room(input: &mut Vec<u8>, kept: usize) {
    if input.len() < kept + READ_BYTES_MIN {
        input.resize(kept + kept.max(READ_BYTES_MIN), 0);
    }
}
