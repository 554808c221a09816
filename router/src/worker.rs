//! A thread with its own event loop: its clients stay with it for life, and so does everything they touch. Nothing
//! here is locked; other threads speak to it by mail.

use crate::Global;
use crate::account::Account;
use crate::admin::ClientRow;
use crate::config::{Config, Door};
use crate::doors::Socket;
use crate::login;
use crate::out::Out;
use crate::pool::{Grant, Pool, PoolKey, Purpose, SharedPool, Waiters};
use crate::prepared::{Interner, Judge};
use crate::reads::Reads;
use crate::scram::Proof;
use crate::server;
use crate::session::{ClientEntry, Ending};
use crate::stats::WorkerStats;
use crate::topology::{NodeAddr, Switching, Topology};
use model::Epoch;
use routing::fingerprint::Key;
use routing::{Catalog, Lexing, Memo};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot};

/// How much is read at once. Large enough that a megabyte of rows takes few calls, small enough for the cache.
const READ_BYTES: usize = 128 << 10;
/// How often idle connections are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// A catalogue is read again at this age, in case that something changed it without passing here.
const CATALOG_AGE_MAX: Duration = Duration::from_secs(300);
/// It is not read more often than this, however much changes.
const CATALOG_AGE_MIN: Duration = Duration::from_secs(2);
/// Bits of a client's number within its worker.
const CLIENT_BITS: u32 = 22;

/// What the client of this number is told for a process id. Servers' are below 2^22 (`pid_max`), so that no client takes a
/// notification for its own that came from a process of its number.
fn told_pid(worker: usize, number: u32) -> u32 {
    (((worker as u32 & 0xff) + 1) << CLIENT_BITS) | number
}

/// The worker of the client that was told this, and the client's number there.
pub fn place_of(pid: u32) -> Option<(usize, u32)> {
    let worker = (pid >> CLIENT_BITS).checked_sub(1)?;
    Some((worker as usize, pid & ((1 << CLIENT_BITS) - 1)))
}

/// What other threads tell a worker.
pub enum Mail {
    /// A new client, and by which listener it came.
    Client(Socket, Door),
    /// What a waiting client of this worker is given.
    Grant {
        /// The client's ticket.
        ticket: u64,
        /// What it is given.
        grant: Grant,
    },
    /// Someone waits elsewhere while this worker may have idle connections.
    Lend(Arc<SharedPool>),
    /// Someone waits for a place that idle connections of this pool take up.
    CloseIdle(Arc<SharedPool>),
    /// A client's request to cancel.
    Cancel {
        /// The client's number.
        client: u32,
        /// What it was told.
        secret: Vec<u8>,
        /// Dropped when the server has been asked, or is not to be.
        done: oneshot::Sender<()>,
    },
    /// What this worker's clients do.
    Survey(oneshot::Sender<Vec<ClientRow>>),
    /// Whether this worker sends nothing new to the primary before this epoch, and has nothing open there.
    IsQuiet {
        /// The epoch that is to come.
        epoch: Epoch,
        /// Where to say so.
        reply: oneshot::Sender<bool>,
    },
    /// An administrator ends a client.
    Kill(u32),
    /// End: clients are told, and the thread returns.
    Stop,
}

/// Where a worker receives mail.
#[derive(Clone)]
pub struct Mailbox(mpsc::UnboundedSender<Mail>);

impl Mailbox {
    /// A mailbox and the end that is read.
    pub fn new() -> (Mailbox, mpsc::UnboundedReceiver<Mail>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Mailbox(sender), receiver)
    }

    /// Sends. A worker that has ended needs nothing any more.
    pub fn post(&self, mail: Mail) {
        let _ = self.0.send(mail);
    }
}

/// Buffers that all clients of a worker use in turn; none of them holds one while it waits.
pub struct Scratch {
    /// What was read.
    pub input: Vec<u8>,
    /// What goes to the server.
    pub to_server: Out,
    /// What goes to the client.
    pub to_client: Out,
}

/// One worker.
pub struct Worker {
    /// Its number.
    pub index: usize,
    /// What all workers share.
    pub global: Arc<Global>,
    /// Buffers.
    pub scratch: RefCell<Scratch>,
    /// Prepared statements.
    pub interner: RefCell<Interner>,
    pools: RefCell<HashMap<PoolKey, Rc<Pool>>>,
    waiters: Waiters,
    clients: RefCell<HashMap<u32, Rc<ClientEntry>>>,
    next_client: Cell<u32>,
    accounts: RefCell<HashMap<(String, String), Weak<Account>>>,
    topology: RefCell<Arc<Topology>>,
    generation: Cell<u64>,
    proofs: RefCell<HashMap<String, Proof>>,
    catalogs: RefCell<HashMap<String, Rc<CatalogEntry>>>,
    /// What is known for reads on replicas.
    pub reads: RefCell<Reads>,
    /// Told when a position of the primary was heard.
    pub positions: Notify,
    /// Whether somebody asks the primary for its position all the time.
    pub observing: Cell<bool>,
    /// Told at every news of the servers; whoever waits longest is woken first.
    pub news: Notify,
}

/// What is known of one database, with a number that changes with it.
pub struct CatalogEntry {
    global: Arc<Global>,
    known: RefCell<Rc<(Catalog, u64)>>,
    /// When it was read, where it was.
    read: Cell<Option<Instant>>,
    /// How many changes any worker had seen by then.
    changes: Cell<u64>,
    /// Who was last in the database, and may read.
    user: RefCell<String>,
    /// What was found out of texts under it.
    memo: RefCell<Memo>,
}

impl CatalogEntry {
    /// The catalogue as known now.
    pub fn get(&self) -> Rc<(Catalog, u64)> {
        self.known.borrow().clone()
    }

    /// What texts are judged with that are read by `lexing`; `known` is what `get` gave.
    pub fn judge<'j>(&'j self, known: &'j (Catalog, u64), lexing: Lexing) -> Judge<'j> {
        Judge { catalog: &known.0, generation: known.1, lexing, memo: &self.memo }
    }

    /// Something changed that a client did here: all workers read soon again what they know.
    pub fn expire(&self) {
        self.global.catalog_changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether it should be read.
    pub fn is_due(&self, now: Instant) -> bool {
        let Some(read) = self.read.get() else { return true };
        let age = now.duration_since(read);
        let changed = self.changes.get() != self.global.catalog_changes.load(Ordering::SeqCst);
        age > CATALOG_AGE_MAX || (changed && age > CATALOG_AGE_MIN)
    }

    /// Notes that it is being read, on behalf of `user`.
    pub fn mark_read(&self, now: Instant, user: &str) {
        self.read.set(Some(now));
        self.changes.set(self.global.catalog_changes.load(Ordering::SeqCst));
        if *self.user.borrow() != user {
            user.clone_into(&mut self.user.borrow_mut());
        }
    }

    /// A newer catalogue.
    pub fn put(&self, catalog: Catalog) {
        let generation = self.get().1 + 1;
        *self.known.borrow_mut() = Rc::new((catalog, generation));
    }
}

/// A key that nobody can guess.
fn memo_key() -> Key {
    let half = || u64::from_le_bytes(crate::random());
    Key::new(half(), half())
}

impl Worker {
    fn new(index: usize, global: Arc<Global>) -> Rc<Worker> {
        let topology = Arc::new(global.topology.borrow().clone());
        let reads = RefCell::new(Reads::new(&topology, &global.config.load()));
        Rc::new(Worker {
            index,
            global,
            scratch: RefCell::new(Scratch {
                input: vec![0; READ_BYTES],
                to_server: Out::default(),
                to_client: Out::default(),
            }),
            interner: RefCell::default(),
            pools: RefCell::default(),
            waiters: Waiters::default(),
            clients: RefCell::default(),
            next_client: Cell::new(1),
            accounts: RefCell::default(),
            topology: RefCell::new(topology),
            generation: Cell::new(1),
            proofs: RefCell::default(),
            catalogs: RefCell::default(),
            reads,
            positions: Notify::new(),
            observing: Cell::new(false),
            news: Notify::new(),
        })
    }

    /// What this worker counts.
    pub fn stats(&self) -> &WorkerStats {
        self.global.stats.worker(self.index)
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.global.config.load_full()
    }

    /// The servers as last told.
    pub fn topology(&self) -> Arc<Topology> {
        self.topology.borrow().clone()
    }

    /// Whether what begins now is held, because the primary is about to be stopped in order.
    pub fn holds(&self) -> bool {
        self.topology.borrow().switching.is_some()
    }

    fn is_quiet(&self, epoch: Epoch) -> bool {
        let told = self.topology.borrow();
        let holds = told.epoch >= epoch || told.switching.as_ref().is_some_and(|switching| switching.epoch >= epoch);
        holds && self.clients.borrow().values().all(|entry| !entry.busy.get())
    }

    /// Makes connections to those who may take over soon, as many as this worker has to the primary now.
    fn warm_up(self: &Rc<Self>, switching: &Switching) {
        let share = |pool: &Pool| pool.shared.total().div_ceil(self.global.mailboxes().len());
        let here = self.pools.borrow();
        let used: Vec<_> = here
            .iter()
            .filter(|(key, _)| matches!(key.purpose, Purpose::Write(_)))
            .map(|(key, pool)| (key.clone(), share(pool)))
            .collect();
        drop(here);
        for (key, count) in used {
            let Some(node) = switching.to.first().filter(|node| **node != key.node) else { continue };
            let key = PoolKey { node: node.clone(), purpose: Purpose::Write(switching.epoch), ..key };
            for _ in 0..count {
                let (worker, key) = (self.clone(), key.clone());
                tokio::task::spawn_local(async move {
                    let pool = worker.pool(&key);
                    let Some(slot) = pool.shared.reserve() else { return };
                    match server::connect(slot, &worker).await {
                        Ok(server) => worker.put_back(server),
                        Err(error) => tracing::debug!(?error, "no connection in advance"),
                    }
                });
            }
        }
    }

    /// Changes with every news of the servers.
    pub fn generation(&self) -> u64 {
        self.generation.get()
    }

    /// This worker's part of a pool.
    pub fn pool(&self, key: &PoolKey) -> Rc<Pool> {
        let known = self.pools.borrow().get(key).filter(|pool| !pool.is_retired()).cloned();
        if let Some(pool) = known {
            return pool;
        }
        let pool = Rc::new(Pool::new(self.global.shared_pool(key), self.index, self.waiters.clone()));
        self.pools.borrow_mut().insert(key.clone(), pool.clone());
        pool
    }

    /// The pool for everything, where there is a primary.
    pub fn primary_pool(&self, database: &str, user: &str) -> Option<Rc<Pool>> {
        if crate::admin::is_paused(self) {
            return None;
        }
        let topology = self.topology();
        let primary = topology.primary.as_ref()?;
        let key = PoolKey {
            database: database.to_owned(),
            user: user.to_owned(),
            node: primary.addr.clone(),
            purpose: Purpose::Write(topology.epoch),
        };
        Some(self.pool(&key))
    }

    /// The pool for reads on a replica.
    pub fn replica_pool(&self, database: &str, user: &str, node: NodeAddr) -> Rc<Pool> {
        let (database, user) = (database.to_owned(), user.to_owned());
        self.pool(&PoolKey { database, user, node, purpose: Purpose::Read })
    }

    /// What all clients of a user in a database share.
    pub fn account(&self, database: &str, user: &str) -> Rc<Account> {
        let mut accounts = self.accounts.borrow_mut();
        let known = accounts.entry((database.to_owned(), user.to_owned())).or_default();
        known.upgrade().unwrap_or_else(|| {
            let made = Rc::new(Account::new(database, user));
            *known = Rc::downgrade(&made);
            made
        })
    }

    /// What is known of a database.
    pub fn catalog(&self, database: &str) -> Rc<CatalogEntry> {
        let mut catalogs = self.catalogs.borrow_mut();
        if let Some(known) = catalogs.get(database) {
            return known.clone();
        }
        let entry = Rc::new(CatalogEntry {
            global: self.global.clone(),
            known: RefCell::new(Rc::new((Catalog::cold(), 1))),
            read: Cell::new(None),
            changes: Cell::new(0),
            user: RefCell::default(),
            memo: RefCell::new(Memo::new(memo_key())),
        });
        catalogs.insert(database.to_owned(), entry.clone());
        entry
    }

    /// Gives a server back to the pool that it came from.
    pub fn put_back(&self, server: Box<crate::server::Server>) {
        let shared = server.slot.pool().clone();
        let pool = self.pool(&shared.key);
        pool.put(server, &self.config(), Instant::now());
    }

    /// How to log in to servers as `user`.
    pub fn proof(&self, user: &str) -> Option<Proof> {
        self.proofs.borrow().get(user).cloned()
    }

    /// Remembers how to log in to servers as `user`.
    pub fn learn_proof(&self, user: &str, proof: Proof) {
        self.proofs.borrow_mut().insert(user.to_owned(), proof);
    }

    /// Announces a waiting client.
    pub fn expect_grant(&self, ticket: u64) -> oneshot::Receiver<Grant> {
        let (sender, receiver) = oneshot::channel();
        self.waiters.borrow_mut().insert(ticket, sender);
        receiver
    }

    /// The client does not wait any more.
    pub fn forget_grant(&self, ticket: u64) {
        self.waiters.borrow_mut().remove(&ticket);
    }

    /// Gives a client a number and lists it.
    pub fn register(&self, entry: impl FnOnce(u32) -> ClientEntry) -> Rc<ClientEntry> {
        let mut clients = self.clients.borrow_mut();
        let number = loop {
            let number = self.next_client.get();
            self.next_client.set((number + 1) & ((1 << CLIENT_BITS) - 1));
            if number != 0 && !clients.contains_key(&number) {
                break number;
            }
        };
        let pid = told_pid(self.index, number);
        let entry = Rc::new(entry(pid));
        clients.insert(number, entry.clone());
        entry
    }

    fn client(&self, pid: u32) -> Option<Rc<ClientEntry>> {
        let (_, number) = place_of(pid)?;
        self.clients.borrow().get(&number).cloned()
    }

    /// Whether it has any clients.
    pub fn has_clients(&self) -> bool {
        !self.clients.borrow().is_empty()
    }

    /// Removes a client from the list.
    pub fn unregister(&self, pid: u32) {
        if let Some((_, number)) = place_of(pid) {
            self.clients.borrow_mut().remove(&number);
        }
    }

    fn grant(self: &Rc<Self>, ticket: u64, grant: Grant) {
        let waiter = self.waiters.borrow_mut().remove(&ticket);
        let unwanted = match waiter {
            Some(waiter) => waiter.send(grant).err(),
            None => Some(grant),
        };
        // The client left meanwhile: the next one is served.
        match unwanted {
            Some(Grant::Server(parked)) => {
                if let Ok(server) = parked.unpark() {
                    self.put_back(server);
                }
            }
            Some(Grant::Connect(slot)) => drop(slot),
            None => {}
        }
    }

    async fn read_mail(self: Rc<Self>, mut inbox: mpsc::UnboundedReceiver<Mail>) {
        while let Some(mail) = inbox.recv().await {
            match mail {
                Mail::Client(socket, door) => {
                    let worker = self.clone();
                    tokio::task::spawn_local(async move { login::serve(worker, socket, door).await });
                }
                Mail::Grant { ticket, grant } => self.grant(ticket, grant),
                Mail::CloseIdle(shared) => {
                    let pool = self.pools.borrow().get(&shared.key).cloned();
                    if let Some(pool) = pool {
                        pool.close_idle();
                    }
                }
                Mail::Lend(shared) => {
                    let pool = self.pools.borrow().get(&shared.key).cloned();
                    if let Some(pool) = pool {
                        pool.lend();
                    }
                }
                Mail::Cancel { client, secret, done } => {
                    if let Some(entry) = self.client(client).filter(|entry| entry.secret[..] == secret[..]) {
                        let worker = self.clone();
                        tokio::task::spawn_local(async move {
                            crate::cancel::forward(worker, entry).await;
                            drop(done);
                        });
                    }
                }
                Mail::Survey(reply) => {
                    let clients = self.clients.borrow();
                    let _ = reply.send(clients.values().map(|entry| ClientRow::of(entry, &self)).collect());
                }
                Mail::IsQuiet { epoch, reply } => {
                    let _ = reply.send(self.is_quiet(epoch));
                }
                Mail::Kill(pid) => {
                    if let Some(entry) = self.client(pid) {
                        entry.end(Ending::Killed);
                    }
                }
                Mail::Stop => return,
            }
        }
    }

    async fn follow_topology(self: Rc<Self>) {
        let mut news = self.global.topology.subscribe();
        while news.changed().await.is_ok() {
            let topology = Arc::new(news.borrow_and_update().clone());
            let before = std::mem::replace(&mut *self.topology.borrow_mut(), topology.clone());
            self.reads.borrow_mut().told(&topology);
            // Positions change all the time; who is what, seldom.
            let replicas = |of: &Topology| of.replicas.iter().map(|node| node.addr.clone()).collect::<Vec<_>>();
            let shape = |of: &Topology| (of.epoch, of.primary.clone(), of.switching.clone(), replicas(of));
            if shape(&before) == shape(&topology) {
                // PAUSE and RESUME come this way too.
                self.news.notify_waiters();
                continue;
            }
            self.generation.set(self.generation.get() + 1);
            if let Some(switching) = topology.switching.as_ref().filter(|_| before.switching != topology.switching) {
                self.warm_up(switching);
            }
            self.pools.borrow_mut().retain(|key, pool| {
                let lives = match key.purpose {
                    Purpose::Write(epoch) => {
                        let serves = || topology.primary.as_ref().is_some_and(|node| node.addr == key.node);
                        // Connections that were made in advance wait for their epoch.
                        epoch > topology.epoch || (epoch == topology.epoch && serves())
                    }
                    Purpose::Read => is_replica(&topology, &key.node),
                };
                if !lives {
                    pool.retire();
                }
                lives
            });
            let clients: Vec<_> = self.clients.borrow().values().cloned().collect();
            for client in clients {
                client.wake();
            }
            self.news.notify_waiters();
        }
    }

    /// Reads again what changed, also for clients that stay.
    fn read_catalogs(self: &Rc<Self>, now: Instant) {
        let used = |database: &str| self.clients.borrow().values().any(|client| client.account.database == database);
        let known: Vec<_> = self.catalogs.borrow().iter().map(|(name, entry)| (name.clone(), entry.clone())).collect();
        for (database, entry) in known {
            let user = entry.user.borrow().clone();
            if !user.is_empty() && entry.is_due(now) && used(&database) {
                entry.mark_read(now, &user);
                tokio::task::spawn_local(crate::reads::load_catalog(self.clone(), database, user));
            }
        }
    }

    async fn sweep(self: Rc<Self>) {
        let mut configured = self.config();
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            let (config, now) = (self.config(), Instant::now());
            if !Arc::ptr_eq(&config, &configured) {
                self.reads.borrow_mut().configure(&self.topology(), &config);
                configured = config.clone();
            }
            if config.splits() {
                self.read_catalogs(now);
            }
            if config.client_idle_max.is_some() || config.transaction_idle_max.is_some() {
                let clients: Vec<_> = self.clients.borrow().values().cloned().collect();
                let idle = clients.iter().filter_map(|it| Some((it, it.is_idle_too_long(&config, now)?)));
                idle.for_each(|(entry, ending)| entry.end(ending));
            }
            self.accounts.borrow_mut().retain(|_, account| match account.upgrade() {
                Some(account) => {
                    account.freshen(&self);
                    true
                }
                None => false,
            });
            let pools: Vec<_> = self.pools.borrow().values().cloned().collect();
            for pool in pools {
                let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                pool.drop_idle(|server| {
                    pool.shared.is_stale(server)
                        || now.duration_since(server.used) > config.server_idle_max
                        || now.duration_since(server.born) > config.server_lifetime
                        || !server.still_idle(&mut context)
                });
            }
        }
    }
}

fn is_replica(topology: &Topology, node: &NodeAddr) -> bool {
    topology.replicas.iter().any(|replica| replica.addr == *node)
}

/// The body of a worker's thread.
pub fn run(index: usize, global: Arc<Global>, inbox: mpsc::UnboundedReceiver<Mail>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .expect("an event loop can be made");
    runtime.block_on(async move {
        let worker = Worker::new(index, global);
        tokio::task::spawn_local(worker.clone().follow_topology());
        tokio::task::spawn_local(worker.clone().sweep());
        worker.read_mail(inbox).await;
    });
}
