//! Clients that write all the time, wherever the primary is, and what was promised to them: unique ids, a ledger of what
//! was acknowledged, the longest gap without an acknowledgement. After a fault nothing in the ledger may be missing.
//!
//! The clients know the addresses of all servers and look for one that takes writes, as a driver with several hosts
//! does. They give up on a write that takes long: its row may be there or not, and nobody may count on it.

use crate::postgresql::told;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

/// A connection that is not made by then never is.
const CONNECT_DEADLINE: Duration = Duration::from_millis(300);
/// The same for clients that measure: what they wait for a server that is cut off counts as part of the gap they see. On
/// one machine a connection takes 2 ms.
const CONNECT_DEADLINE_MEASURED: Duration = Duration::from_millis(100);
/// A client looks for another server when a write takes longer.
const WRITE_DEADLINE: Duration = Duration::from_millis(400);
/// Pause before the servers are tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(5);
/// Pause of clients that stay with their server.
const FAITHFUL_PACE: Duration = Duration::from_millis(20);
/// Ids of one set of clients begin this far above those of the set before.
const SET_STRIDE: i64 = 1 << 32;

/// What the clients share.
#[derive(Debug, Default)]
struct Shared {
    entries: Mutex<Entries>,
    next: AtomicI64,
    stop: AtomicBool,
}

#[derive(Debug, Default)]
struct Entries {
    acknowledged: BTreeSet<i64>,
    last_at: Option<Instant>,
    longest_gap: Duration,
    unanswered: u64,
    /// Which server acknowledged last.
    last_server: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn acknowledge(&self, id: i64, server: usize) {
        let now = Instant::now();
        let mut entries = self.lock();
        let gap = entries.last_at.map_or(Duration::ZERO, |last| now - last);
        entries.longest_gap = entries.longest_gap.max(gap);
        entries.last_at = Some(now);
        entries.last_server = server;
        assert!(entries.acknowledged.insert(id), "an id is written once");
    }
}

/// Running clients, with their ledger.
#[derive(Debug)]
pub struct Oracle {
    shared: Arc<Shared>,
    threads: Vec<std::thread::JoinHandle<()>>,
    servers: Vec<String>,
}

impl Oracle {
    /// Makes the table where it is missing and starts so many clients. `servers` are connection strings.
    pub fn start(servers: Vec<String>, clients: usize) -> Oracle {
        Oracle::paced(servers, clients, Duration::ZERO)
    }

    /// As `start`; the clients turn from a server that does not let them in sooner, so that the gap they see is the
    /// cluster's rather than their own.
    pub fn measuring(servers: Vec<String>, clients: usize) -> Oracle {
        Oracle::with(servers, clients, Duration::ZERO, CONNECT_DEADLINE_MEASURED)
    }

    /// As `start`; each client pauses between two writes, and leaves room for others on a small machine.
    pub fn paced(servers: Vec<String>, clients: usize, pace: Duration) -> Oracle {
        Oracle::with(servers, clients, pace, CONNECT_DEADLINE)
    }

    fn with(servers: Vec<String>, clients: usize, pace: Duration, connect: Duration) -> Oracle {
        let first = block_on(async {
            let client = find_primary(&servers).await;
            let table =
                "CREATE TABLE IF NOT EXISTS oracle (id bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())";
            client.batch_execute(table).await.expect("the table can be made");
            let row =
                client.query_one("SELECT coalesce(max(id), 0) FROM oracle", &[]).await.expect("the table is read");
            row.get::<_, i64>(0)
        });
        let shared = Arc::new(Shared::default());
        shared.next.store((first / SET_STRIDE + 1) * SET_STRIDE, Ordering::SeqCst);
        let threads = (0..clients).map(|number| {
            let (shared, servers) = (shared.clone(), servers.clone());
            std::thread::spawn(move || block_on(write(&shared, &servers, number, pace, connect)))
        });
        Oracle { threads: threads.collect(), shared, servers }
    }

    /// Forgets the gaps until now.
    pub fn forget_gaps(&self) {
        self.shared.lock().longest_gap = Duration::ZERO;
    }
    /// The longest time without an acknowledgement since gaps were forgotten, the present one included.
    pub fn longest_gap(&self) -> Duration {
        let entries = self.shared.lock();
        let running = entries.last_at.map_or(Duration::ZERO, |last| last.elapsed());
        entries.longest_gap.max(running)
    }
    /// Writes acknowledged so far.
    pub fn count(&self) -> usize {
        self.shared.lock().acknowledged.len()
    }
    /// The ids acknowledged so far.
    pub fn acknowledged(&self) -> BTreeSet<i64> {
        self.shared.lock().acknowledged.clone()
    }
    /// Writes that ended without an answer.
    pub fn unanswered(&self) -> u64 {
        self.shared.lock().unanswered
    }
    /// The server that acknowledged last, by its place in the list.
    pub fn last_server(&self) -> usize {
        self.shared.lock().last_server
    }

    /// Acknowledged ids that the server which takes writes now does not hold.
    pub fn lost(&self) -> Vec<i64> {
        let acknowledged = self.shared.lock().acknowledged.clone();
        block_on(async {
            let client = find_primary(&self.servers).await;
            let held = ids(&client, acknowledged.first().copied().unwrap_or(0)).await;
            acknowledged.difference(&held).copied().collect()
        })
    }

    /// Those of these ids that the server which takes writes now holds.
    pub fn holds(&self, wanted: &[i64]) -> BTreeSet<i64> {
        block_on(async {
            let client = find_primary(&self.servers).await;
            ids(&client, wanted.iter().min().copied().unwrap_or(0)).await
        })
    }

    /// Ids that a server holds.
    pub fn held_by(&self, server: &str) -> Result<usize, String> {
        block_on(async {
            let client = open(server).await?;
            let row = client.query_one("SELECT count(*) FROM oracle", &[]).await.map_err(|error| told(&error))?;
            Ok(usize::try_from(row.get::<_, i64>(0)).unwrap_or(0))
        })
    }

    /// Starts clients that stay with one server, by its place in the list, in the same ledger.
    pub fn faithful(&self, index: usize, clients: usize) -> Faithful {
        let (notes, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        for _ in 0..clients {
            let (shared, notes, stop) = (self.shared.clone(), notes.clone(), stop.clone());
            let server = self.servers[index].clone();
            std::thread::spawn(move || block_on(stay(&shared, &notes, &stop, &server, index)));
        }
        Faithful { notes, stop }
    }

    /// Ends the clients.
    pub fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().expect("a client ends well");
        }
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

/// Clients that stay with one server, whatever becomes of it: what it acknowledges counts in the ledger like any other
/// write, and is noted apart. A server that was replaced must acknowledge nothing any more.
#[derive(Debug)]
pub struct Faithful {
    notes: Arc<Mutex<Vec<Note>>>,
    stop: Arc<AtomicBool>,
}

/// One write of a faithful client.
#[derive(Clone, Debug)]
struct Note {
    id: i64,
    begun: Instant,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Acknowledged,
    /// The server said "success", and warned that it stopped waiting for its replicas: nobody may count on the row.
    Cancelled,
    Failed,
}

impl Faithful {
    /// Writes begun after this moment that the server acknowledged without reserve.
    pub fn acknowledged_since(&self, moment: Instant) -> Vec<i64> {
        let notes = self.lock();
        let after = notes.iter().filter(|note| note.begun > moment && note.outcome == Outcome::Acknowledged);
        after.map(|note| note.id).collect()
    }
    /// Writes whose wait for replicas was cancelled.
    pub fn cancelled(&self) -> Vec<i64> {
        self.lock().iter().filter(|note| note.outcome == Outcome::Cancelled).map(|note| note.id).collect()
    }
    /// Writes that ended, in whichever way.
    pub fn tries(&self) -> usize {
        self.lock().len()
    }
    fn lock(&self) -> MutexGuard<'_, Vec<Note>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Faithful {
    fn drop(&mut self) {
        // A client that waits for an answer for ever is left behind; it ends with the process.
        self.stop.store(true, Ordering::SeqCst);
    }
}

async fn stay(shared: &Shared, notes: &Mutex<Vec<Note>>, stop: &AtomicBool, server: &str, index: usize) {
    while !stop.load(Ordering::SeqCst) {
        let warned = Arc::new(AtomicBool::new(false));
        let Ok(client) = open_heeding(server, warned.clone(), CONNECT_DEADLINE).await else {
            tokio::time::sleep(FAITHFUL_PACE).await;
            continue;
        };
        while !stop.load(Ordering::SeqCst) {
            let (id, begun) = (shared.next.fetch_add(1, Ordering::SeqCst), Instant::now());
            let written = client.execute("INSERT INTO oracle (id) VALUES ($1)", &[&id]).await;
            let outcome = match written {
                Ok(_) if warned.swap(false, Ordering::SeqCst) => Outcome::Cancelled,
                Ok(_) => Outcome::Acknowledged,
                Err(_) => Outcome::Failed,
            };
            if outcome == Outcome::Acknowledged {
                shared.acknowledge(id, index);
            }
            notes.lock().unwrap_or_else(PoisonError::into_inner).push(Note { id, begun, outcome });
            tokio::time::sleep(FAITHFUL_PACE).await;
            if outcome == Outcome::Failed && client.is_closed() {
                break;
            }
        }
    }
}

/// A connection that notes the server's warning about a cancelled wait for replicas.
async fn open_heeding(server: &str, warned: Arc<AtomicBool>, within: Duration) -> Result<Client, String> {
    let connecting = tokio::time::timeout(within, tokio_postgres::connect(server, NoTls)).await;
    let (client, mut connection) =
        connecting.map_err(|_| "no connection in time".to_owned())?.map_err(|error| told(&error))?;
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let tokio_postgres::AsyncMessage::Notice(notice) = message
                && notice.message().contains("wait for synchronous replication")
            {
                warned.store(true, Ordering::SeqCst);
            }
        }
    });
    Ok(client)
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(work)
}

async fn open(server: &str) -> Result<Client, String> {
    open_heeding(server, Arc::new(AtomicBool::new(false)), CONNECT_DEADLINE).await
}

async fn writable(server: &str, warned: &Arc<AtomicBool>, within: Duration) -> Result<Client, String> {
    let client = open_heeding(server, warned.clone(), within).await?;
    let asked = tokio::time::timeout(within, client.query_one("SELECT pg_is_in_recovery()", &[])).await;
    let row = asked.map_err(|_| "no answer in time".to_owned())?.map_err(|error| told(&error))?;
    if row.get::<_, bool>(0) { Err("it is a replica".to_owned()) } else { Ok(client) }
}

async fn find_primary(servers: &[String]) -> Client {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        for server in servers {
            if let Ok(client) = writable(server, &Arc::default(), CONNECT_DEADLINE).await {
                return client;
            }
        }
        assert!(Instant::now() < deadline, "no server takes writes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn ids(client: &Client, from: i64) -> BTreeSet<i64> {
    let rows = client.query("SELECT id FROM oracle WHERE id >= $1", &[&from]).await.expect("the table can be read");
    rows.iter().map(|row| row.get(0)).collect()
}

async fn write(shared: &Shared, servers: &[String], number: usize, pace: Duration, connect: Duration) {
    let mut at = number;
    let warned = Arc::new(AtomicBool::new(false));
    while !shared.stop.load(Ordering::SeqCst) {
        let index = at % servers.len();
        let Ok(client) = writable(&servers[index], &warned, connect).await else {
            at += 1;
            tokio::time::sleep(RETRY_PAUSE).await;
            continue;
        };
        let Ok(insert) = client.prepare("INSERT INTO oracle (id) VALUES ($1)").await else { continue };
        while !shared.stop.load(Ordering::SeqCst) {
            let id = shared.next.fetch_add(1, Ordering::SeqCst);
            let written = tokio::time::timeout(WRITE_DEADLINE, client.execute(&insert, &[&id])).await;
            // Success after a cancelled wait is none: the server warned that no replica may have the row.
            if warned.swap(false, Ordering::SeqCst) || !matches!(written, Ok(Ok(_))) {
                shared.lock().unanswered += 1;
                break;
            }
            shared.acknowledge(id, index);
            tokio::time::sleep(pace).await;
        }
        // A server that takes writes and does not acknowledge them is no better than one that takes none.
        at += 1;
    }
}
