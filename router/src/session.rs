//! One client that is logged in: its bytes go to a server and back. A turn does everything that can be done without
//! waiting; what must be waited for (a free server) is done between turns.

mod asked;
mod listen;
mod lost;
mod pump;
mod resolve;
mod target;

use crate::account::Account;
use crate::channels::Channels;
use crate::config::{Config, Door, PoolMode};
use crate::exchange::Exchange;
use crate::limits::Seat;
use crate::obtain::{self, Failure};
use crate::own::Own;
use crate::pool::Pool;
use crate::prepared::ClientStatements;
use crate::probe;
use crate::reads::{self, Choice, Reading};
use crate::refusal::Refusal;
use crate::server::{CancelKey, Reported, Server};
use crate::settings::Settings;
use crate::stats::Stage;
use crate::stream::Stream;
use crate::wishes::Wishes;
use crate::worker::{CatalogEntry, Worker};
use model::NodeId;
use routing::consistency::{Ack, Memory};
use routing::outcome::InDoubt;
use routing::{Encoding, Hint, Level, Lexing, Reason};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

/// Notifications that a client does not fetch, before it is closed.
const MAIL_BYTES_MAX: usize = 4 << 20;

/// How long a client that is sent away has to read why.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What others may know of a client.
pub struct ClientEntry {
    /// The process id that it was told.
    pub pid: u32,
    /// The secret that it was told.
    pub secret: [u8; 4],
    /// Its user and database.
    pub account: Rc<Account>,
    /// When it logged in.
    pub since: Instant,
    /// What runs its statement now.
    pub running: RefCell<Option<Arc<CancelKey>>>,
    /// What its reads must see.
    pub memory: Cell<Memory>,
    /// Cancel requests on their way to that server.
    pub cancels: Cell<u32>,
    /// Why it keeps its server.
    pub pins: RefCell<Vec<crate::state::Pin>>,
    /// Since when it waits for a server.
    pub waits: Cell<Option<Instant>>,
    /// It is to be closed, and why.
    pub ending: Cell<Option<Ending>>,
    /// When it or its server was heard last.
    pub heard: Cell<Instant>,
    /// It waits for an answer.
    pub asks: Cell<bool>,
    /// A transaction of it is open.
    pub in_transaction: Cell<bool>,
    /// Something of it is open on a primary: a transaction, or a request without its answer.
    pub busy: Cell<bool>,
    /// Channels to which it is listened for it.
    pub channels: RefCell<Channels>,
    /// What it is to be sent once nothing is due: notifications, and notices about them.
    mail: RefCell<Vec<u8>>,
    /// Its place among the clients of its user and database.
    _seat: Seat,
    waker: RefCell<Option<Waker>>,
}

impl ClientEntry {
    /// A client that runs nothing.
    pub fn new(pid: u32, account: Rc<Account>, seat: Seat) -> ClientEntry {
        ClientEntry {
            pid,
            _seat: seat,
            secret: crate::random(),
            account,
            since: Instant::now(),
            running: RefCell::default(),
            memory: Cell::default(),
            cancels: Cell::new(0),
            pins: RefCell::default(),
            waits: Cell::new(None),
            ending: Cell::new(None),
            heard: Cell::new(Instant::now()),
            asks: Cell::new(false),
            in_transaction: Cell::new(false),
            busy: Cell::new(false),
            channels: RefCell::default(),
            mail: RefCell::default(),
            waker: RefCell::default(),
        }
    }

    /// Hands it a message that comes by itself. One that does not fetch them is closed.
    pub fn post(&self, message: &[u8]) {
        let mut mail = self.mail.borrow_mut();
        if mail.len() + message.len() > MAIL_BYTES_MAX {
            drop(mail);
            return self.end(Ending::Deaf);
        }
        mail.extend_from_slice(message);
        drop(mail);
        self.wake();
    }

    /// Closes it.
    pub fn end(&self, ending: Ending) {
        self.ending.set(Some(ending));
        self.wake();
    }

    /// Whether it has done nothing for too long.
    pub fn is_idle_too_long(&self, config: &Config, now: Instant) -> Option<Ending> {
        let hears = !self.channels.borrow().is_empty() && !self.in_transaction.get();
        if self.waits.get().is_some() || self.asks.get() || hears {
            return None;
        }
        let (most, ending) = match self.in_transaction.get() {
            true => (config.transaction_idle_max, Ending::IdleInTransaction),
            false => (config.client_idle_max, Ending::Idle),
        };
        most.filter(|most| now.saturating_duration_since(self.heard.get()) >= *most).map(|_| ending)
    }

    /// Makes its task look around.
    pub fn wake(&self) {
        let waker = self.waker.borrow().clone();
        if let Some(waker) = waker {
            waker.wake();
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
    /// The client's next read needs a position of the primary.
    Position(Ack),
    /// The client's next read is worth waiting for a replica that has still to catch up.
    CatchUp,
    /// The client listens to channels by its own server, or to others than before.
    Listen,
    /// The server is gone, or spoke nonsense.
    ServerLost(String),
    /// The client is gone, or has said goodbye.
    End,
    /// The client spoke nonsense.
    Malformed(&'static str),
    /// The server refuses the client's settings.
    Unsettled(String),
    /// It is closed.
    Ended(Ending),
}

/// Why a request is for the primary that a replica might serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Only {
    /// The replica that served it was lost. Another one may still do, where the primary may hide what was seen.
    Lost,
    /// No replica can, or how far it must be is not known.
    Refused,
}

/// What became of a client whose server was lost.
enum After {
    /// It goes on.
    Kept,
    /// It cannot be kept.
    Gone,
    /// Whether its COMMIT was made is to be found out.
    InDoubt(InDoubt),
}

/// Why a client is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// An administrator wants it.
    Killed,
    /// It did nothing for too long.
    Idle,
    /// The same, within a transaction.
    IdleInTransaction,
    /// It did not fetch the notifications that it listened for.
    Deaf,
}

impl Ending {
    fn refusal(self) -> Refusal {
        match self {
            Ending::Killed => Refusal::killed("the connection is closed by an administrator"),
            Ending::Deaf => Refusal::killed("the client did not fetch its notifications").sqlstate("57P05"),
            Ending::Idle => Refusal::idle("the client did nothing for longer than `client_idle`"),
            Ending::IdleInTransaction => {
                Refusal::idle("the client did nothing within a transaction for longer than `transaction_idle`")
                    .sqlstate("25P03")
            }
        }
    }
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
    server: Option<Box<Server>>,
    exchange: Exchange,
    statements: ClientStatements,
    mode: PoolMode,
    /// The pool that the server was taken from, where it was taken without waiting.
    pool: Option<Rc<Pool>>,
    /// How its texts are read.
    lexing: Lexing,
    catalog: Rc<CatalogEntry>,
    /// The request's bytes, while it may be sent again.
    kept: Vec<u8>,
    /// Whether `kept` holds all of it.
    keeping: bool,
    /// How often it was sent again.
    retries: u8,
    /// The next attempt is to wait so long, or for news of the servers.
    pause_until: Option<Instant>,
    /// The end of the attempts for this request.
    held_until: Option<Instant>,
    /// What is said to the client in place of an answer to its next request.
    refusal: Vec<u8>,
    /// News of the servers that were taken in.
    generation: u64,
    /// What its reads must see.
    reading: Reading,
    /// The replica that is attached, and since when.
    replica: Option<(NodeId, Instant)>,
    /// The request at hand is for the primary, whatever it looks like.
    primary_only: Option<Only>,
    /// What is waited for goes to this replica.
    wanted: Option<Choice>,
    /// The length of the read that the attached replica was taken for.
    limit: Option<usize>,
    /// What follows is not for the replica that is attached.
    leaving: bool,
    /// Why the request at hand goes where it goes.
    why: Reason,
    /// The request that is timed: when it was read, and when it was sent.
    timed: Option<(Instant, Instant)>,
    /// The server that is attached was given the client's settings.
    settled: bool,
    /// What it has prepared for the router itself, where there is anything.
    own: Option<Box<Own>>,
    /// A position of the primary behind this is wanted, before the session can say where it is.
    position_wanted: Option<Ack>,
    /// Its server was lost while it listened there.
    missed: bool,
    /// Before this its channels are not tried to be taken over again.
    listen_after: Option<Instant>,
    /// What a comment in the statement at hand says of it.
    hint: RefCell<Option<Box<Hint>>>,
    /// What it was let in for.
    door: Door,
    /// The time, as this turn knows it: read when bytes come and go, not at every use.
    clock: Instant,
}

impl Session {
    /// A client that is about to be told `ReadyForQuery`.
    pub fn new(
        worker: Rc<Worker>,
        entry: Rc<ClientEntry>,
        client: Stream,
        settings: Arc<Settings>,
        reported: &Reported,
        mode: PoolMode,
        (door, wishes): (Door, Wishes),
    ) -> Session {
        let account = &entry.account;
        let catalog = worker.catalog(&account.database);
        let now = Instant::now();
        let split = door.splits(&worker.config());
        if split && catalog.is_due(now) {
            catalog.mark_read(now, &account.user);
            let (database, user) = (account.database.clone(), account.user.clone());
            tokio::task::spawn_local(reads::load_catalog(worker.clone(), database, user));
        }
        let mut session = Session {
            generation: worker.generation(),
            worker,
            entry,
            client,
            inbox: Vec::new(),
            unread: false,
            outbox: Vec::new(),
            server: None,
            exchange: Exchange::new(settings, wishes),
            statements: ClientStatements::default(),
            mode,
            pool: None,
            lexing: lexing(reported),
            catalog,
            kept: Vec::new(),
            keeping: false,
            retries: 0,
            pause_until: None,
            held_until: None,
            refusal: Vec::new(),
            reading: Reading::default(),
            replica: None,
            primary_only: None,
            wanted: None,
            limit: None,
            leaving: false,
            why: Reason::Control,
            timed: None,
            settled: false,
            own: None,
            position_wanted: None,
            missed: false,
            listen_after: None,
            hint: RefCell::default(),
            door,
            clock: now,
        };
        session.exchange.set_owns_server(mode == PoolMode::Session);
        if split && matches!(session.level(), Level::Bounded(_)) {
            session.observe();
        }
        session
    }

    /// Whether its reads may go to replicas.
    fn splits(&self) -> bool {
        self.mode == PoolMode::Transaction && self.door.splits(&self.worker.global.config.load())
    }

    /// From now on the primary's position is looked at all the time: `bounded` reads are held against it.
    fn observe(&self) {
        if !self.worker.observing.replace(true) {
            let account = &self.entry.account;
            let (database, user) = (account.database.clone(), account.user.clone());
            tokio::task::spawn_local(reads::observe(self.worker.clone(), database, user));
        }
    }

    /// Serves the client until it leaves. Boxed, for a task has room for every place that a value is moved through.
    pub async fn run(mut self: Box<Self>) {
        loop {
            let turn = match std::future::poll_fn(|context| self.turn(context)).await {
                Turn::Listen => match Box::pin(self.listen()).await {
                    Some(turn) => turn,
                    None => continue,
                },
                turn => turn,
            };
            match turn {
                Turn::Listen => {}
                Turn::Acquire => {
                    self.entry.waits.set(Some(Instant::now()));
                    let found = Box::pin(self.acquire()).await;
                    if let Some(since) = self.entry.waits.take() {
                        self.worker.stats().took(Stage::Queue, since.elapsed());
                    }
                    match found {
                        Ok(Some(server)) => self.attach(server),
                        Ok(None) => self.settle().await,
                        Err(Failure::ClientGone) => break,
                        Err(Failure::Refused(refusal)) => self.refuse_next(|out| refusal.write("ERROR", out)),
                        Err(Failure::Server(error)) => self.refuse_next(|out| error.write("ERROR", out)),
                    }
                }
                Turn::Position(ack) => {
                    let account = &self.entry.account;
                    let asked = reads::position(&self.worker, &account.database, &account.user, ack);
                    let found = Box::pin(asked).await;
                    if !found {
                        self.primary_only = Some(Only::Refused);
                    }
                }
                Turn::CatchUp => {
                    let level = self.level();
                    let (account, since) = (self.entry.account.clone(), Instant::now());
                    self.entry.waits.set(Some(since));
                    Box::pin(probe::caught_up(&self.worker, &account, &mut self.reading, level)).await;
                    self.entry.waits.set(None);
                    self.worker.stats().took(Stage::Queue, since.elapsed());
                }
                Turn::ServerLost(why) => match self.server_lost(&why) {
                    After::Kept => {}
                    After::Gone => {
                        let refusal = Refusal::server_lost("the connection to the server was lost").detail(why);
                        self.last_words(&refusal).await;
                        break;
                    }
                    After::InDoubt(doubt) => {
                        if !Box::pin(self.resolve(&doubt)).await {
                            break;
                        }
                    }
                },
                Turn::Malformed(why) => {
                    self.last_words(&Refusal::protocol("the client's message is not understood").detail(why)).await;
                    break;
                }
                Turn::Unsettled(why) => {
                    // The server is in nobody's state now: it is closed.
                    self.server = None;
                    let refusal = Refusal::session_lost("the server refuses settings that the session had");
                    self.last_words(&refusal.detail(why)).await;
                    break;
                }
                Turn::Ended(ending) => {
                    self.last_words(&ending.refusal()).await;
                    break;
                }
                Turn::End => break,
            }
        }
        self.leave();
    }

    /// Gives back what can be given back.
    fn leave(&mut self) {
        self.unread = false;
        if self.mode == PoolMode::Transaction {
            self.release_if_free();
        }
        self.listen_to(&Channels::default(), None);
        self.worker.unregister(self.entry.pid);
        if let Some(server) = self.server.take() {
            let state = self.exchange.state();
            let left = obtain::Left {
                quiet: self.exchange.quiet(),
                in_transaction: self.exchange.status() != b'I',
                discard: self.mode == PoolMode::Session || state.is_pinned(),
                settings: state.committed().clone(),
            };
            let worker = self.worker.clone();
            // Cleaning up takes a round trip, for which the client need not be here.
            tokio::task::spawn_local(async move { obtain::clean(&worker, server, left).await });
        }
    }

    fn refuse_next(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        self.refusal.clear();
        write(&mut self.refusal);
        self.exchange.refuse_next();
    }

    async fn last_words(&mut self, refusal: &Refusal) {
        if !self.exchange.mid_message() {
            refusal.write("FATAL", &mut self.outbox);
        }
        let _ = tokio::time::timeout(LAST_WORDS, async {
            self.client.write_all(&self.outbox).await?;
            self.client.shutdown().await
        })
        .await;
    }

    /// A server for the request at hand. `None`: the primary may hide what the session has seen.
    async fn acquire(&mut self) -> Result<Option<Box<Server>>, Failure> {
        let (worker, entry) = (self.worker.clone(), self.entry.clone());
        let account = &entry.account;
        if let Some(until) = self.pause_until.take() {
            let mut news = worker.global.topology.subscribe();
            let _ = tokio::time::timeout_at(until.into(), news.changed()).await;
        }
        if let Some(choice) = self.wanted.take()
            && let Some(pool) = account.replica(&worker, choice.node)
        {
            match self.while_here(obtain::from_pool(&worker, &pool)).await? {
                Ok(server) if worker.reads.borrow().vouches(&choice, server.born, server.birth) => {
                    self.replica = Some((choice.node, Instant::now()));
                    return Ok(Some(server));
                }
                Ok(server) => {
                    worker.put_back(server);
                    worker.reads.borrow_mut().withdrawn(choice.node);
                    if worker.reads.borrow().binds(&self.reading) {
                        return Ok(None);
                    }
                }
                // The primary can do all that a replica can.
                Err(_) => self.read_failed(choice.node),
            }
        }
        if self.primary_may_hide() {
            return Ok(None);
        }
        self.while_here(obtain::obtain(&worker, || account.primary(&worker))).await?.map(Some)
    }

    /// What is waited for, unless the client leaves meanwhile.
    async fn while_here<T>(&self, awaited: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            done = awaited => Ok(done),
            () = obtain::client_gone(&self.client) => Err(Failure::ClientGone),
        }
    }

    /// Waits until another replica shows what the session has seen, or it cannot be waited for any longer. The request is
    /// then decided anew.
    async fn settle(&mut self) {
        let since = Instant::now();
        self.entry.waits.set(Some(since));
        let point = Box::pin(probe::settled(&self.worker, &self.entry.account, &self.reading)).await;
        self.entry.waits.set(None);
        self.worker.stats().took(Stage::Queue, since.elapsed());
        self.worker.reads.borrow().settled(&mut self.reading, point);
        if point.is_some() && self.primary_only == Some(Only::Lost) {
            self.primary_only = None;
        }
    }

    /// A replica that was chosen did not serve.
    fn read_failed(&mut self, node: NodeId) {
        let (level, now) = (self.level(), Instant::now());
        self.worker.reads.borrow_mut().on_replica(&mut self.reading, node, now..now, level, true);
        self.reading.failed_on(node);
    }

    /// Whether what the session has seen may not be acknowledged yet, and so not be shown by the primary.
    fn primary_may_hide(&self) -> bool {
        self.splits() && self.worker.reads.borrow().may_be_ahead_of_primary(&self.reading)
    }

    fn attach(&mut self, server: Box<Server>) {
        *self.entry.running.borrow_mut() = Some(server.key.clone());
        self.statements.attached(&server.statements);
        self.exchange.set_elsewhere(self.replica.is_some());
        self.settled = false;
        self.kept.clear();
        self.keeping = true;
        self.server = Some(server);
    }

    /// Everything that can be done now.
    fn turn(&mut self, context: &mut Context<'_>) -> Poll<Turn> {
        let turned = self.act(context);
        let attached = self.server.is_some() && self.replica.is_none();
        self.entry.busy.set(attached && !self.exchange.at_rest());
        self.entry.asks.set(!self.exchange.quiet());
        self.entry.in_transaction.set(self.exchange.status() != b'I');
        self.entry.heard.set(self.clock);
        turned
    }

    fn act(&mut self, context: &mut Context<'_>) -> Poll<Turn> {
        self.entry.remember(context.waker());
        if let Some(ending) = self.entry.ending.get() {
            return Poll::Ready(Turn::Ended(ending));
        }
        if self.generation != self.worker.generation() {
            self.generation = self.worker.generation();
            if self.server_is_of_the_past() {
                return Poll::Ready(Turn::ServerLost("another server became the primary".into()));
            }
        }
        let worker = self.worker.clone();
        let mut scratch = worker.scratch.borrow_mut();
        loop {
            self.fetch_mail();
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
            if self.listens_otherwise() {
                return Poll::Ready(Turn::Listen);
            }
            match self.pump_client(context, &mut scratch) {
                Ok(true) => moved = true,
                // Both sides have been heard; a server that was given back has nothing more to say.
                Ok(false) if self.server.is_none() && self.outbox.is_empty() && !self.has_mail() => {
                    return Poll::Pending;
                }
                Ok(false) => {}
                Err(turn) => return Poll::Ready(turn),
            }
            if !moved {
                return Poll::Pending;
            }
        }
    }

    /// Gives the server back where the client has no claim to it any more.
    fn release_if_free(&mut self) {
        if !self.exchange.at_rest() {
            return;
        }
        self.retries = 0;
        self.held_until = None;
        // All that was kept is answered. A client that keeps its server begins its next request afresh: what an earlier
        // one did must not be done again with it.
        self.kept.clear();
        self.keeping = self.server.is_some();
        if self.mode == PoolMode::Session || (self.unread && !self.leaving) || self.entry.cancels.get() > 0 {
            return;
        }
        if self.exchange.state().is_pinned() {
            *self.entry.pins.borrow_mut() = self.exchange.state().pins();
            return;
        }
        let Some(server) = self.server.take_if(|server| server.inbox.is_empty() && server.outbox.is_empty()) else {
            return;
        };
        *self.entry.running.borrow_mut() = None;
        self.leaving = false;
        self.primary_only = None;
        self.remember_read();
        if !self.entry.pins.borrow().is_empty() {
            self.entry.pins.borrow_mut().clear();
        }
        self.exchange.shrink();
        match self.pool.take() {
            Some(pool) if Arc::ptr_eq(&pool.shared, server.slot.pool()) => {
                pool.put(server, &self.worker.global.config.load(), self.clock)
            }
            Some(_) | None => self.worker.put_back(server),
        }
    }
}

/// How texts are read by a session whose server reported this.
fn lexing(reported: &Reported) -> Lexing {
    let text = |name: &[u8]| reported.get(name).and_then(|value| std::str::from_utf8(value).ok());
    Lexing {
        standard_conforming_strings: text(b"standard_conforming_strings") != Some("off"),
        encoding: Encoding::of(text(b"client_encoding").unwrap_or("UTF8")),
    }
}
