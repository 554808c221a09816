//! The front door: one address for every read and write of a cluster, over PostgreSQL's own protocol.
//!
//! `Router::start` makes one acceptor and as many workers as configured. A worker is a thread with its own event loop,
//! buffers and idle server connections (see `worker`); a client stays with its worker. What flows between a client and
//! its server is decided by `exchange`, which is pure; `session` does the reading and writing. Servers come and go by
//! `Topology` values, which someone else supplies.

pub mod account;
pub mod admin;
pub mod cancel;
pub mod channels;
pub mod config;
pub mod doors;
pub mod exchange;
pub mod limits;
pub mod listener;
mod local;
mod login;
pub mod nearby;
pub mod obtain;
pub mod out;
pub mod own;
pub mod pool;
pub mod prepared;
pub mod probe;
pub mod reads;
pub mod refusal;
pub mod scram;
pub mod server;
pub mod session;
pub mod settings;
pub mod state;
pub mod stats;
pub mod stream;
pub mod tls;
pub mod topology;
pub mod wishes;
pub mod worker;

pub use config::Config;
pub use topology::{NodeAddr, Topology};

use crate::config::Door;
use crate::pool::{PoolKey, SharedPool};
use crate::worker::{Mail, Mailbox};
use arc_swap::ArcSwap;
use model::{Epoch, Trouble};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Between two looks at what is still open before a planned change of primary.
const HOLD_LOOK: Duration = Duration::from_millis(3);

/// What all workers share.
pub struct Global {
    /// The configuration in force.
    pub config: ArcSwap<Config>,
    /// The servers as last told.
    pub topology: watch::Sender<Topology>,
    /// Clients, logging in or in.
    pub clients: AtomicUsize,
    /// Makes unknown users look like known ones.
    pub seed: [u8; 32],
    /// Whether new statements are held by an administrator's order.
    pub paused: AtomicBool,
    /// How often an administrator asked for the configuration to be read again.
    pub reloads: watch::Sender<u64>,
    /// The epoch before which nothing new is sent to a primary, and nothing is open on one: for a planned change.
    held: watch::Sender<Epoch>,
    /// What users and databases have.
    pub ledger: Arc<limits::Ledger>,
    /// Servers of this machine.
    pub nearby: nearby::Nearby,
    /// What is counted.
    pub stats: stats::Stats,
    /// How often clients changed functions, tables or roles.
    pub catalog_changes: AtomicU64,
    /// Clients of each worker.
    load: Vec<AtomicUsize>,
    mail: Arc<[Mailbox]>,
    pools: Mutex<HashMap<PoolKey, Arc<SharedPool>>>,
}

impl Global {
    /// The shared part of a pool. Not on the way of a query: workers remember it.
    pub fn shared_pool(&self, key: &PoolKey) -> Arc<SharedPool> {
        let mut pools = self.pools_in_use();
        pools
            .entry(key.clone())
            .or_insert_with(|| {
                let config = self.config.load();
                let budgets = self.ledger.budgets(&config.limits, &key.user, &key.database, &key.node);
                SharedPool::new(key.clone(), &config, self.mail.clone(), budgets)
            })
            .clone()
    }

    /// All pools.
    pub fn all_pools(&self) -> Vec<Arc<SharedPool>> {
        self.pools_in_use().values().cloned().collect()
    }

    /// Without those of the past: no worker has them any more, and no connection.
    fn pools_in_use(&self) -> MutexGuard<'_, HashMap<PoolKey, Arc<SharedPool>>> {
        let mut pools = self.pools.lock().expect("no panic under this lock");
        pools.retain(|_, pool| Arc::strong_count(pool) > 1);
        pools
    }

    /// Holds new statements, or lets them go on.
    pub fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
        // Whoever waits looks again.
        self.topology.send_modify(|_| {});
    }

    /// All workers' mail.
    pub fn mailboxes(&self) -> &[Mailbox] {
        &self.mail
    }

    fn mailbox_of(&self, pid: u32) -> Option<&Mailbox> {
        let (worker, _) = worker::place_of(pid)?;
        self.mail.get(worker)
    }

    /// Ends a client.
    pub fn kill(&self, pid: u32) {
        if let Some(mailbox) = self.mailbox_of(pid) {
            mailbox.post(Mail::Kill(pid));
        }
    }

    /// A client of `worker` is gone.
    pub fn client_gone(&self, worker: usize) {
        self.load[worker].fetch_sub(1, Ordering::Relaxed);
        self.clients.fetch_sub(1, Ordering::SeqCst);
    }

    /// Sends a cancel request to the worker that the key names; returns when the server has acted, or nobody will.
    pub async fn cancel(&self, pid: u32, secret: Vec<u8>) {
        let Some(mailbox) = self.mailbox_of(pid) else { return };
        let (done, acted) = oneshot::channel();
        mailbox.post(Mail::Cancel { client: pid, secret, done });
        let _ = acted.await;
    }
}

/// A running router. Dropping it closes all connections.
pub struct Router {
    global: Arc<Global>,
    addresses: Vec<SocketAddr>,
    acceptors: Vec<tokio::task::JoinHandle<()>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Router {
    /// Listens and serves. Must be called on a tokio runtime, which accepts connections; traffic has its own threads.
    pub async fn start(config: Config, topology: watch::Receiver<Topology>) -> Result<Router, Trouble> {
        let workers = config.workers.clamp(1, 64);
        let (mail, inboxes): (Vec<_>, Vec<_>) = (0..workers).map(|_| Mailbox::new()).unzip();
        let (listeners, addresses) = doors::open(&config).await?;
        let (sender, _) = watch::channel(topology.borrow().clone());
        let global = Arc::new(Global {
            config: ArcSwap::from_pointee(config),
            topology: sender,
            clients: AtomicUsize::new(0),
            seed: random(),
            paused: AtomicBool::new(false),
            reloads: watch::channel(0).0,
            held: watch::channel(Epoch(0)).0,
            ledger: Arc::default(),
            nearby: nearby::Nearby::default(),
            stats: stats::Stats::new(workers),
            catalog_changes: AtomicU64::new(0),
            load: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            mail: mail.into(),
            pools: Mutex::default(),
        });
        let mut threads = Vec::new();
        for (index, inbox) in inboxes.into_iter().enumerate() {
            let global = global.clone();
            let thread = std::thread::Builder::new().name(format!("router-{index}"));
            threads.push(thread.spawn(move || worker::run(index, global, inbox)).map_err(|error| {
                Trouble::os("a thread of the router cannot be started", "see the limits of this user").because(error)
            })?);
        }
        let mut acceptors: Vec<_> = listeners
            .into_iter()
            .map(|(listener, door)| tokio::spawn(accept(listener, door, global.clone())))
            .collect();
        acceptors.push(tokio::spawn(pass_on(topology, global.clone())));
        acceptors.push(tokio::spawn(hold(global.clone())));
        Ok(Router { global, addresses, acceptors, threads })
    }

    /// Takes another configuration. Listeners and threads stay as they are; clients that are in stay in.
    pub fn reload(&self, config: Config) {
        let config = Arc::new(config);
        self.global.config.store(config.clone());
        self.global.ledger.set_limits(&config.limits);
        for pool in self.global.all_pools() {
            pool.set_limit(config.limits.pool_size(&pool.key.user, &pool.key.database, config.pool_size));
        }
    }

    /// Changes when an administrator wants the configuration read again (`RELOAD`): whoever owns it calls `reload`.
    pub fn reloads(&self) -> watch::Receiver<u64> {
        self.global.reloads.subscribe()
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The epoch before which nothing new is sent to a primary, and nothing is open on one. Grows during planned changes:
    /// whoever stops the primary waits for it.
    pub fn held(&self) -> watch::Receiver<Epoch> {
        self.global.held.subscribe()
    }

    /// What tells of it, also after it ended.
    pub fn meter(&self) -> Meter {
        Meter(self.global.clone())
    }

    /// Clients, logging in or in.
    pub fn clients(&self) -> usize {
        self.global.clients.load(Ordering::SeqCst)
    }
}

/// What tells of a router.
#[derive(Clone)]
pub struct Meter(Arc<Global>);

impl Meter {
    /// What it counts and holds, as Prometheus text.
    pub fn text(&self) -> String {
        let mut out = self.0.stats.text();
        out.push_str(&self.0.nearby.text());
        let pools = self.0.all_pools();
        let sum = |of: &dyn Fn(&SharedPool) -> usize| pools.iter().map(|pool| of(pool)).sum::<usize>();
        let (total, idle) = (sum(&SharedPool::total), sum(&SharedPool::idle));
        for (name, help, value) in [
            ("clients", "Clients that are connected", self.0.clients.load(Ordering::SeqCst)),
            ("servers_active", "Server connections in use", total.saturating_sub(idle)),
            ("servers_idle", "Server connections that nobody uses", idle),
            ("clients_waiting", "Clients that wait for a server connection", sum(&SharedPool::waiting)),
        ] {
            let name = format!("stemma_router_{name}");
            out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n"));
        }
        out
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        for acceptor in &self.acceptors {
            acceptor.abort();
        }
        for mailbox in self.global.mail.iter() {
            mailbox.post(Mail::Stop);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

async fn pass_on(mut topology: watch::Receiver<Topology>, global: Arc<Global>) {
    while topology.changed().await.is_ok() {
        let news = topology.borrow_and_update().clone();
        // Also where nothing changed: a position that is confirmed is worth more than an old one.
        global.topology.send_replace(news);
    }
}

/// During a planned change of primary: says when every worker holds new statements and nothing is open any more.
async fn hold(global: Arc<Global>) {
    let mut news = global.topology.subscribe();
    loop {
        let wanted = news.borrow_and_update().switching.as_ref().map(|switching| switching.epoch);
        let held = *global.held.borrow();
        if let Some(epoch) = wanted.filter(|epoch| held < *epoch) {
            if is_quiet(&global, epoch).await {
                global.held.send_replace(epoch);
                tracing::info!(%epoch, "statements are held for a planned change of primary");
            } else {
                tokio::time::sleep(HOLD_LOOK).await;
            }
            continue;
        }
        if news.changed().await.is_err() {
            return;
        }
    }
}

async fn is_quiet(global: &Global, epoch: Epoch) -> bool {
    for mailbox in global.mailboxes() {
        let (reply, answer) = oneshot::channel();
        mailbox.post(Mail::IsQuiet { epoch, reply });
        if !answer.await.unwrap_or(true) {
            return false;
        }
    }
    true
}

/// Gives each client to the worker with the fewest: better balanced than leaving it to the kernel, which goes by
/// address and port.
async fn accept(listener: doors::Listener, door: Door, global: Arc<Global>) {
    loop {
        let socket = match listener.accept().await {
            Ok(socket) => socket,
            Err(error) => {
                // Out of descriptors, most likely: there will be some when clients leave.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let quietest = (0..global.load.len()).min_by_key(|index| global.load[*index].load(Ordering::Relaxed));
        let index = quietest.unwrap_or(0);
        global.load[index].fetch_add(1, Ordering::Relaxed);
        global.clients.fetch_add(1, Ordering::SeqCst);
        global.mail[index].post(Mail::Client(socket, door));
    }
}

/// Unguessable bytes.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system gives random bytes");
    bytes
}
