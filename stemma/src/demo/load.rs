//! Writers that insert rows with unique ids and remember which the server acknowledged. They survive lost connections
//! and look for the primary on every host, as clients with several hosts in their connection string do.

use crate::sandbox::layout::Layout;
use model::Trouble;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;

/// Connections that write.
const WRITERS: u32 = 4;
/// Ids of one writer, so that ids of different writers never meet.
const IDS_PER_WRITER: i64 = 1_000_000_000_000;
/// A commit that takes longer counts as unanswered.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause after a failure.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// How long the first connection may take.
const SETUP_ATTEMPTS_MAX: u32 = 50;
/// Acknowledged rows that are kept in memory; the demo ends when there are so many.
const ACKNOWLEDGED_MAX: u64 = 20_000_000;

/// The longest time without an acknowledged write since something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gap {
    acknowledged_at: Instant,
    longest: Duration,
}

impl Gap {
    fn acknowledge(&mut self, at: Instant) {
        self.longest = self.longest.max(at.saturating_duration_since(self.acknowledged_at));
        self.acknowledged_at = self.acknowledged_at.max(at);
    }
    /// Forgets earlier gaps. The one that is open goes on: it may be the one that matters.
    fn event(&mut self) {
        self.longest = Duration::ZERO;
    }
    /// The longest so far, the open one included.
    fn longest(&self, now: Instant) -> Duration {
        self.longest.max(now.saturating_duration_since(self.acknowledged_at))
    }
}

#[derive(Debug)]
struct Written {
    acknowledged: Vec<i64>,
    gap: Gap,
}

/// What writers know: which rows were acknowledged and when, and how many writes had no answer.
#[derive(Debug)]
pub struct Ledger {
    written: Mutex<Written>,
    count: AtomicU64,
    unknown: AtomicU64,
}

impl Default for Ledger {
    fn default() -> Ledger {
        let gap = Gap { acknowledged_at: Instant::now(), longest: Duration::ZERO };
        Ledger {
            written: Mutex::new(Written { acknowledged: Vec::new(), gap }),
            count: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
        }
    }
}

impl Ledger {
    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn acknowledge(&self, id: i64) {
        let mut written = self.written();
        written.acknowledged.push(id);
        written.gap.acknowledge(Instant::now());
        self.count.fetch_add(1, Ordering::Relaxed);
    }
    /// How many rows were acknowledged.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
    /// How many writes had no answer.
    pub fn unknown(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }
    /// Whether no further row can be remembered.
    pub fn is_full(&self) -> bool {
        self.count() >= ACKNOWLEDGED_MAX
    }
    /// The ids of all acknowledged rows.
    pub fn acknowledged(&self) -> Vec<i64> {
        self.written().acknowledged.clone()
    }
    /// Something happens now that may interrupt the writes.
    pub fn event(&self) {
        self.written().gap.event();
    }
    /// The longest time without an acknowledged write since the last event.
    pub fn gap(&self) -> Duration {
        self.written().gap.longest(Instant::now())
    }
    /// How long no write has been acknowledged.
    pub fn silent(&self) -> Duration {
        self.written().gap.acknowledged_at.elapsed()
    }
}

/// The running writers.
pub struct Load {
    target: watch::Sender<String>,
    stop: CancellationToken,
    writers: JoinSet<()>,
}

/// Opens a connection that is driven in the background.
pub async fn connect(uri: &str) -> Result<Client, String> {
    let connecting = tokio::time::timeout(CONNECT_TIMEOUT, tokio_postgres::connect(uri, NoTls));
    let (client, connection) =
        connecting.await.map_err(|_| "no connection in time".to_owned())?.map_err(|error| describe(&error))?;
    // Its errors reach the one who waits on the client.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

/// The server's own words, which the short form of the error leaves out.
pub fn describe(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}

impl Load {
    /// Makes the table and starts the writers.
    pub async fn start(layout: &Layout, ledger: Arc<Ledger>, primary: Option<String>) -> Result<Load, Trouble> {
        let uri = primary.as_deref().and_then(|name| uri_of(layout, name));
        let uri =
            uri.ok_or_else(|| Trouble::primary_down("the sandbox has no primary", "look at: stemma sandbox status"))?;
        make_table(&uri).await?;
        // The time before the first write is no outage.
        ledger.written().gap.acknowledged_at = Instant::now();
        let hosts: Vec<String> = layout.nodes.iter().filter_map(|node| node.uri("postgres")).collect();
        let (target, _) = watch::channel(uri);
        let stop = CancellationToken::new();
        let mut writers = JoinSet::new();
        for number in 0..WRITERS {
            let first = i64::from(number) * IDS_PER_WRITER;
            writers.spawn(write(first, hosts.clone(), ledger.clone(), target.subscribe(), stop.clone()));
        }
        Ok(Load { target, stop, writers })
    }

    /// Tells the writers where the primary is: a write that waits for an earlier one is given up. They find the new one
    /// by themselves.
    pub fn primary_is(&self, layout: &Layout, name: &str) {
        let Some(uri) = uri_of(layout, name) else { return };
        self.target.send_if_modified(|current| {
            let changed = *current != uri;
            *current = uri;
            changed
        });
    }

    /// Lets every writer end the write it is in.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.writers.join_next().await.is_some() {}
    }
}

fn uri_of(layout: &Layout, name: &str) -> Option<String> {
    layout.nodes.iter().find(|node| node.name.as_str() == name)?.uri("postgres")
}

async fn make_table(uri: &str) -> Result<(), Trouble> {
    let mut last = String::new();
    for _ in 0..SETUP_ATTEMPTS_MAX {
        let made = match connect(uri).await {
            Ok(client) => client
                .batch_execute(
                    "CREATE TABLE IF NOT EXISTS demo (id bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())",
                )
                .await
                .map_err(|error| describe(&error)),
            Err(error) => Err(error),
        };
        match made {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    Err(Trouble::sql("the table of the demo could not be made", "see the cause").because(last))
}

/// A connection to the one host that takes writes. All are asked at once: one that is frozen accepts a connection and
/// never answers.
async fn connect_to_primary(hosts: &[String]) -> Option<Client> {
    let mut asked = JoinSet::new();
    for host in hosts {
        let uri = format!("{host}?target_session_attrs=read-write");
        asked.spawn(async move { connect(&uri).await });
    }
    while let Some(answer) = asked.join_next().await {
        if let Ok(Ok(client)) = answer {
            return Some(client);
        }
    }
    None
}

/// Writes until stopped. An id is used once: after a write without an answer it stays unknown whether its row is there.
async fn write(
    first: i64,
    hosts: Vec<String>,
    ledger: Arc<Ledger>,
    mut target: watch::Receiver<String>,
    stop: CancellationToken,
) {
    let mut id = first;
    while !stop.is_cancelled() {
        target.borrow_and_update();
        let client = tokio::select! {
            client = connect_to_primary(&hosts) => client,
            () = stop.cancelled() => return,
            // Where all that are left to answer are frozen, the new primary need not wait for them.
            _ = target.changed() => continue,
        };
        if let Some(client) = client {
            write_on(&client, &mut id, &ledger, &mut target, &stop).await;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY_PAUSE) => {}
        }
    }
}

async fn write_on(
    client: &Client,
    id: &mut i64,
    ledger: &Ledger,
    target: &mut watch::Receiver<String>,
    stop: &CancellationToken,
) {
    let preparing = tokio::time::timeout(CONNECT_TIMEOUT, client.prepare("INSERT INTO demo (id) VALUES ($1)"));
    let Ok(Ok(insert)) = preparing.await else { return };
    while !stop.is_cancelled() {
        *id += 1;
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&*id];
        let answer = tokio::select! {
            answer = tokio::time::timeout(WRITE_TIMEOUT, client.execute(&insert, &values)) => answer.ok(),
            _ = target.changed() => None,
        };
        match answer {
            Some(Ok(1)) => ledger.acknowledge(*id),
            Some(Ok(_) | Err(_)) | None => {
                ledger.unknown.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_around_an_event_counts_and_earlier_ones_do_not() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut gap = Gap { acknowledged_at: begin, longest: Duration::ZERO };
        gap.acknowledge(at(900));
        gap.acknowledge(at(1_000));
        assert_eq!(gap.longest(at(1_000)), Duration::from_millis(900));
        gap.event();
        assert_eq!(gap.longest(at(1_300)), Duration::from_millis(300), "a gap that is still open counts");
        gap.acknowledge(at(1_500));
        gap.acknowledge(at(1_501));
        assert_eq!(gap.longest(at(1_502)), Duration::from_millis(500));
    }
}
