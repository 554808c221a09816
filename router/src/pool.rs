//! Server connections that wait for work, and clients that wait for connections.
//!
//! Each worker keeps its idle connections itself and takes them without a lock. What is shared is a budget (an atomic
//! number) and a queue of tickets. A released connection goes straight to the worker of the oldest ticket, so nobody
//! who came later gets in between. Who waits first raises `waiting` and then looks for idle connections elsewhere; who
//! puts one by first raises `idle` and then looks at `waiting`: one of the two always sees the other.

use crate::config::Config;
use crate::limits::{Budget, is_starved};
use crate::server::{Parked, Reported, Server};
use crate::settings::Settings;
use crate::topology::NodeAddr;
use crate::worker::{Mail, Mailbox};
use model::Epoch;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Waker};
use std::time::Instant;
use tokio::sync::oneshot;

/// Kinds of clients (by their settings) whose welcome is remembered.
const WELCOMES_MAX: usize = 16;

/// What servers send a long row in.
const ROW_UNIT: usize = 8 << 10;
/// Long rows are many from so many units on, until as many requests have come without any; more are not remembered.
const LONG_ROWS_MANY: usize = 1_000;
const LONG_ROWS_CAP: usize = 2_000;

/// Tickets are unique over all pools: a worker knows its waiting clients by them alone.
static NEXT_TICKET: AtomicU64 = AtomicU64::new(1);

/// What connections of a pool are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Everything, under this primacy. A new primacy has new pools: no connection outlives its epoch.
    Write(Epoch),
    /// Reads on a replica.
    Read,
}

/// Which connections may stand in for each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolKey {
    /// The database.
    pub database: String,
    /// The user.
    pub user: String,
    /// The server.
    pub node: NodeAddr,
    /// What for.
    pub purpose: Purpose,
}

/// A client that waits, by the number its worker knows it under.
#[derive(Clone, Copy, Debug)]
struct Ticket {
    worker: usize,
    number: u64,
    since: Instant,
}

/// What a waiting client is given.
pub enum Grant {
    /// A connection.
    Server(Parked),
    /// Leave to make one.
    Connect(Slot),
}

/// The part of a pool that all workers share.
pub struct SharedPool {
    /// Which pool.
    pub key: PoolKey,
    limit: AtomicUsize,
    /// Connections made before this are not used again, in nanoseconds since `BEGINNING`; 0: none was said to be.
    stale_before: AtomicU64,
    long_rows: AtomicBool,
    total: AtomicUsize,
    waiting: AtomicUsize,
    idle: Vec<AtomicUsize>,
    queue: Mutex<VecDeque<Ticket>>,
    mail: Arc<[Mailbox]>,
    /// What its user, and its database, may have of the server over all pools.
    budgets: [Arc<Budget>; 2],
}

/// Held while places are taken: connections are made rarely.
static RESERVING: Mutex<()> = Mutex::new(());

/// What moments are counted from.
static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

fn nanos(at: Instant) -> u64 {
    u64::try_from(at.saturating_duration_since(*BEGINNING).as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// A place in the budget of a pool; given back when dropped, with the connection that stands in it.
pub struct Slot(Arc<SharedPool>);

impl Slot {
    /// The pool it belongs to.
    pub fn pool(&self) -> &Arc<SharedPool> {
        &self.0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.total.fetch_sub(1, SeqCst);
        self.0.budgets.iter().for_each(|budget| budget.give_back());
        self.0.serve_all_waiters();
    }
}

impl SharedPool {
    /// An empty pool.
    pub fn new(key: PoolKey, config: &Config, mail: Arc<[Mailbox]>, budgets: [Arc<Budget>; 2]) -> Arc<SharedPool> {
        // Before any connection.
        LazyLock::force(&BEGINNING);
        let limit = config.limits.pool_size(&key.user, &key.database, config.pool_size);
        let made = Arc::new(SharedPool {
            stale_before: AtomicU64::new(0),
            key,
            limit: AtomicUsize::new(limit),
            long_rows: AtomicBool::new(false),
            total: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            idle: mail.iter().map(|_| AtomicUsize::new(0)).collect(),
            queue: Mutex::new(VecDeque::new()),
            mail,
            budgets,
        });
        made.budgets.iter().for_each(|budget| budget.join(&made));
        made
    }

    /// What is connected now is closed as soon as it is free.
    pub fn reconnect(&self) {
        self.stale_before.store(nanos(Instant::now()), SeqCst);
    }

    /// Whether a connection is not to be used again.
    pub fn is_stale(&self, server: &Server) -> bool {
        self.is_stale_since(server.born)
    }

    /// The same of one that was made at `born`.
    pub fn is_stale_since(&self, born: Instant) -> bool {
        let before = self.stale_before.load(SeqCst);
        before != 0 && nanos(born) < before
    }

    /// How many connections there may be.
    pub fn limit(&self) -> usize {
        self.limit.load(SeqCst)
    }

    /// Another limit; connections above it go when they are released.
    pub fn set_limit(self: &Arc<Self>, limit: usize) {
        self.limit.store(limit, SeqCst);
        self.serve_waiters();
    }

    /// Whether long rows are a good part of what comes.
    pub fn has_long_rows(&self) -> bool {
        self.long_rows.load(SeqCst)
    }

    /// Clients that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.load(SeqCst)
    }

    /// Connections, idle or not.
    pub fn total(&self) -> usize {
        self.total.load(SeqCst)
    }

    /// Connections that nobody uses.
    pub fn idle(&self) -> usize {
        self.idle.iter().map(|count| count.load(SeqCst)).sum()
    }

    /// A place in the budget, where one is free.
    pub fn reserve(self: &Arc<Self>) -> Option<Slot> {
        // Who takes one place and then gives it back, for want of another, must not be seen in between.
        let _alone = RESERVING.lock().expect("no panic under this lock");
        let limit = self.limit.load(SeqCst);
        let taken = self.total.fetch_update(SeqCst, SeqCst, |total| (total < limit).then_some(total + 1));
        taken.ok()?;
        let [first, second] = &self.budgets;
        let first_taken = first.take();
        if first_taken && second.take() {
            return Some(Slot(self.clone()));
        }
        if first_taken {
            first.give_back();
        }
        self.total.fetch_sub(1, SeqCst);
        None
    }

    /// Stands in the queue. The number must be given up with `leave` where it is not served.
    pub fn stand(&self, worker: usize) -> u64 {
        let number = NEXT_TICKET.fetch_add(1, SeqCst);
        let ticket = Ticket { worker, number, since: Instant::now() };
        self.queue.lock().expect("no panic under this lock").push_back(ticket);
        self.more_wait(1);
        number
    }

    /// Leaves the queue; harmless for who was served.
    pub fn leave(&self, number: u64) {
        let mut queue = self.queue.lock().expect("no panic under this lock");
        let before = queue.len();
        queue.retain(|ticket| ticket.number != number);
        self.fewer_wait(before - queue.len());
    }

    fn more_wait(&self, count: usize) {
        self.waiting.fetch_add(count, SeqCst);
        self.budgets.iter().for_each(|budget| budget.more_wait(count));
    }

    fn fewer_wait(&self, count: usize) {
        self.waiting.fetch_sub(count, SeqCst);
        self.budgets.iter().for_each(|budget| budget.fewer_wait(count));
    }

    fn oldest(&self) -> Option<Ticket> {
        if self.waiting.load(SeqCst) == 0 {
            return None;
        }
        let ticket = self.queue.lock().expect("no panic under this lock").pop_front()?;
        self.fewer_wait(1);
        Some(ticket)
    }

    /// Since when the one waits who waits longest.
    fn waits_since(&self) -> Option<Instant> {
        self.queue.lock().expect("no panic under this lock").front().map(|ticket| ticket.since)
    }

    /// Pools of the same user or database whose clients wait for a place that pools like this one use up.
    fn rivals(&self) -> impl Iterator<Item = Arc<SharedPool>> {
        let wanted = self.budgets.iter().filter(|budget| budget.is_wanted_elsewhere(self.waiting()));
        wanted.flat_map(|budget| budget.others(self)).filter(|pool| pool.waiting() > 0)
    }

    /// Whether a connection that is free now is better closed: somebody in another pool waits long for its place.
    fn starves_others(&self, now: Instant) -> bool {
        self.budgets.iter().any(|budget| budget.is_over())
            || self.rivals().filter_map(|pool| pool.waits_since()).any(|since| is_starved(since, now))
    }

    /// Gives out places that became free: first to whoever waits longest, here or in another pool of the user or database.
    fn serve_all_waiters(self: &Arc<Self>) {
        let mut pools = vec![(self.waits_since(), self.clone())];
        for budget in self.budgets.iter().filter(|budget| budget.is_bounded()) {
            pools.extend(budget.others(self).into_iter().map(|pool| (pool.waits_since(), pool)));
        }
        pools.retain(|(since, _)| since.is_some());
        pools.sort_by_key(|(since, _)| *since);
        pools.iter().for_each(|(_, pool)| pool.serve_waiters());
    }

    /// For a waiter that came after a look at the budget: gives out what became free in between, and asks workers
    /// with idle connections to lend.
    pub fn serve_waiters(self: &Arc<Self>) {
        while let Some(ticket) = self.oldest() {
            match self.reserve() {
                Some(slot) => self.send(ticket, Grant::Connect(slot)),
                None => {
                    self.queue.lock().expect("no panic under this lock").push_front(ticket);
                    self.more_wait(1);
                    break;
                }
            }
        }
        if self.waiting() > 0 {
            for (worker, idle) in self.idle.iter().enumerate() {
                if idle.load(SeqCst) > 0 {
                    self.mail[worker].post(Mail::Lend(self.clone()));
                }
            }
            self.ask_others_to_close();
        }
    }

    /// Where the user or the database has no place left, one idle connection of another pool goes for who waits here.
    fn ask_others_to_close(&self) {
        for budget in self.budgets.iter().filter(|budget| budget.is_wanted_elsewhere(0)) {
            let idle = budget.others(self).into_iter().find_map(|pool| {
                let worker = pool.idle.iter().position(|idle| idle.load(SeqCst) > 0)?;
                Some((worker, pool))
            });
            if let Some((worker, pool)) = idle {
                self.mail[worker].post(Mail::CloseIdle(pool));
            }
        }
    }

    fn send(&self, ticket: Ticket, grant: Grant) {
        self.mail[ticket.worker].post(Mail::Grant { ticket: ticket.number, grant });
    }
}

/// Clients of one worker that wait, by their tickets.
pub type Waiters = Rc<RefCell<HashMap<u64, oneshot::Sender<Grant>>>>;

/// One worker's part of a pool.
pub struct Pool {
    /// What all workers share.
    pub shared: Arc<SharedPool>,
    worker: usize,
    waiters: Waiters,
    #[expect(clippy::vec_box, reason = "servers come and go for every transaction, which moves a pointer only")]
    idle: RefCell<Vec<Box<Server>>>,
    retired: Cell<bool>,
    /// How much of what came of late were long rows: grows by the row, in units of `ROW_UNIT`, and shrinks by the request.
    long_rows: Cell<usize>,
    welcomes: RefCell<Vec<(Arc<Settings>, Arc<Reported>)>>,
}

impl Pool {
    /// This worker's part.
    pub fn new(shared: Arc<SharedPool>, worker: usize, waiters: Waiters) -> Pool {
        Pool {
            shared,
            worker,
            waiters,
            idle: RefCell::new(Vec::new()),
            retired: Cell::new(false),
            long_rows: Cell::new(0),
            welcomes: RefCell::default(),
        }
    }

    /// The connection used last, which is the warmest. Nobody who waits is passed over: then there is none.
    pub fn take(&self) -> Option<Box<Server>> {
        if self.shared.waiting.load(SeqCst) > 0 {
            return None;
        }
        self.take_any()
    }

    fn take_any(&self) -> Option<Box<Server>> {
        loop {
            let mut server = self.idle.borrow_mut().pop()?;
            self.shared.idle[self.worker].fetch_sub(1, SeqCst);
            if self.shared.is_stale(&server) {
                continue;
            }
            if server.still_idle(&mut Context::from_waker(Waker::noop())) {
                return Some(server);
            }
            tracing::debug!(node = %self.shared.key.node, "an idle connection was closed by the server");
        }
    }

    /// So many bytes of a long row came, or are to come. Where there are many, TCP is cheaper than a Unix socket, for it can
    /// wait for much before it wakes us.
    pub fn saw_long_row(&self, bytes: usize) {
        let seen = (self.long_rows.get() + (bytes / ROW_UNIT).max(1)).min(LONG_ROWS_CAP);
        self.long_rows.set(seen);
        if seen > LONG_ROWS_MANY {
            self.shared.long_rows.store(true, SeqCst);
        }
    }

    fn saw_request(&self) {
        let seen = self.long_rows.get();
        if seen > 0 {
            self.long_rows.set(seen - 1);
            if seen == 1 {
                self.shared.long_rows.store(false, SeqCst);
            }
        }
    }

    /// Gives a connection to whoever waits longest, or keeps it.
    pub fn put(&self, mut server: Box<Server>, config: &Config, now: Instant) {
        let over = self.shared.total() > self.shared.limit.load(SeqCst);
        self.saw_request();
        if self.retired.get()
            || over
            || (server.stream.is_unix() && self.shared.has_long_rows())
            || self.shared.is_stale(&server)
            || now.duration_since(server.born) > config.server_lifetime
            || self.shared.starves_others(now)
        {
            return;
        }
        server.used = now;
        while let Some(ticket) = self.shared.oldest() {
            if ticket.worker != self.worker {
                self.shared.send(ticket, server.park(false));
                return;
            }
            // Our own client, which need not hear by mail; it may have left in this moment.
            let Some(waiter) = self.waiters.borrow_mut().remove(&ticket.number) else { continue };
            match waiter.send(server.park(true)) {
                Ok(()) => return,
                Err(Grant::Server(Parked::Here(back))) => server = back,
                Err(Grant::Server(Parked::Moved(_)) | Grant::Connect(_)) => return,
            }
        }
        self.idle.borrow_mut().push(server);
        self.shared.idle[self.worker].fetch_add(1, SeqCst);
        if self.shared.waiting() > 0 {
            self.lend();
        } else if self.shared.rivals().next().is_some() {
            self.close_idle();
        }
    }

    /// Closes the idle connection that was used least recently: its place is wanted.
    pub fn close_idle(&self) {
        let mut oldest = true;
        self.drop_idle(|_| std::mem::take(&mut oldest));
    }

    /// Gives idle connections to those who wait, here or with other workers.
    pub fn lend(&self) {
        while self.shared.waiting() > 0 {
            let Some(server) = self.take_any() else { return };
            match self.shared.oldest() {
                Some(ticket) => self.shared.send(ticket, server.park(ticket.worker == self.worker)),
                None => {
                    self.idle.borrow_mut().push(server);
                    self.shared.idle[self.worker].fetch_add(1, SeqCst);
                }
            }
        }
    }

    /// Its node or epoch is over: idle connections go now, the others when they are released.
    pub fn retire(&self) {
        self.retired.set(true);
        self.drop_idle(|_| true);
    }

    /// Whether it was retired.
    pub fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// Closes idle connections that `unwanted` names.
    pub fn drop_idle(&self, mut unwanted: impl FnMut(&mut Server) -> bool) {
        let mut gone = Vec::new();
        {
            let mut idle = self.idle.borrow_mut();
            let mut index = 0;
            while index < idle.len() {
                if unwanted(&mut idle[index]) {
                    gone.push(idle.remove(index));
                } else {
                    index += 1;
                }
            }
        }
        self.shared.idle[self.worker].fetch_sub(gone.len(), SeqCst);
    }

    /// What a server with these settings reports, where it was seen; and the copy of the settings that all may share.
    pub fn welcome(&self, settings: &Settings) -> Option<(Arc<Settings>, Arc<Reported>)> {
        self.welcomes.borrow().iter().find(|(known, _)| **known == *settings).cloned()
    }

    /// Notes what a server with these settings reports. Only few are kept: most clients ask for the same.
    pub fn set_welcome(&self, settings: Arc<Settings>, reported: Arc<Reported>) {
        let mut welcomes = self.welcomes.borrow_mut();
        welcomes.retain(|(known, _)| *known != settings);
        if welcomes.len() >= WELCOMES_MAX {
            welcomes.remove(0);
        }
        welcomes.push((settings, reported));
    }

    /// Connections that this worker keeps idle.
    pub fn idle_here(&self) -> usize {
        self.idle.borrow().len()
    }
}
