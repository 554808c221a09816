//! Writers that insert rows with unique ids and remember which the server acknowledged. They survive lost connections
//! and follow the primary.

use crate::sandbox::layout::Layout;
use model::Trouble;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
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
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How long the first connection may take.
const SETUP_ATTEMPTS_MAX: u32 = 50;
/// Acknowledged rows that are kept in memory; the demo ends when there are so many.
const ACKNOWLEDGED_MAX: u64 = 20_000_000;

/// What writers know: which rows were acknowledged, and how many writes had no answer.
#[derive(Debug, Default)]
pub struct Ledger {
    acknowledged: Mutex<Vec<i64>>,
    count: AtomicU64,
    unknown: AtomicU64,
}

impl Ledger {
    fn acknowledge(&self, id: i64) {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).push(id);
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
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
        let (target, _) = watch::channel(uri);
        let stop = CancellationToken::new();
        let mut writers = JoinSet::new();
        for number in 0..WRITERS {
            let first = i64::from(number) * IDS_PER_WRITER;
            writers.spawn(write(first, ledger.clone(), target.subscribe(), stop.clone()));
        }
        Ok(Load { target, stop, writers })
    }

    /// Tells the writers where the primary is.
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

/// Writes until stopped. An id is used once: after a write without an answer it stays unknown whether its row is there.
async fn write(first: i64, ledger: Arc<Ledger>, mut target: watch::Receiver<String>, stop: CancellationToken) {
    let mut id = first;
    while !stop.is_cancelled() {
        let uri = target.borrow_and_update().clone();
        if let Ok(client) = connect(&uri).await {
            write_on(&client, &mut id, &ledger, &target, &stop).await;
        }
        if !target.has_changed().unwrap_or(false) && !stop.is_cancelled() {
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

async fn write_on(
    client: &Client,
    id: &mut i64,
    ledger: &Ledger,
    target: &watch::Receiver<String>,
    stop: &CancellationToken,
) {
    let Ok(insert) = client.prepare("INSERT INTO demo (id) VALUES ($1)").await else { return };
    while !stop.is_cancelled() && !target.has_changed().unwrap_or(false) {
        *id += 1;
        match tokio::time::timeout(WRITE_TIMEOUT, client.execute(&insert, &[&*id])).await {
            Ok(Ok(1)) => ledger.acknowledge(*id),
            Ok(Ok(_) | Err(_)) | Err(_) => {
                ledger.unknown.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }
}
