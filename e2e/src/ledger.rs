//! Writers that insert rows with unique ids, and the ledger of what was acknowledged to them.

use crate::postgresql::connect;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Connections that write.
const WRITERS: i64 = 2;
/// Ids of different writers never meet.
const IDS_PER_WRITER: i64 = 1_000_000_000;
/// Pause between two writes: enough to be always in the middle of something, and no load test.
const PACE: Duration = Duration::from_millis(5);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// What was acknowledged.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    acknowledged: BTreeSet<i64>,
    unanswered: u64,
    last_at: Option<Instant>,
    longest_pause: Duration,
}

impl Ledger {
    fn with<T>(&self, act: impl FnOnce(&mut Entries) -> T) -> T {
        act(&mut self.entries.lock().unwrap_or_else(PoisonError::into_inner))
    }
    fn acknowledge(&self, id: i64) {
        let now = Instant::now();
        self.with(|entries| {
            assert!(entries.acknowledged.insert(id), "an id is written once");
            let pause = entries.last_at.map_or(Duration::ZERO, |last| now - last);
            entries.longest_pause = entries.longest_pause.max(pause);
            entries.last_at = Some(now);
        });
    }
    /// Ids of all acknowledged rows.
    pub fn acknowledged(&self) -> BTreeSet<i64> {
        self.with(|entries| entries.acknowledged.clone())
    }
    /// How many rows were acknowledged.
    pub fn count(&self) -> usize {
        self.with(|entries| entries.acknowledged.len())
    }
    /// Writes that ended without an answer: their rows may be there or not.
    pub fn unanswered(&self) -> u64 {
        self.with(|entries| entries.unanswered)
    }
    /// The longest time without an acknowledgement since the last call, the present one included.
    pub fn take_longest_pause(&self) -> Duration {
        let now = Instant::now();
        self.with(|entries| {
            let running = entries.last_at.map_or(Duration::ZERO, |last| now - last);
            std::mem::take(&mut entries.longest_pause).max(running)
        })
    }
}

/// Running writers.
#[derive(Debug)]
pub struct Writers {
    /// What was acknowledged to them.
    pub ledger: Arc<Ledger>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Writers {
    /// Makes the table if need be and starts to write.
    pub async fn start(uri: &str) -> Writers {
        let client = connect(uri).await.expect("the primary takes connections");
        let table = "CREATE TABLE IF NOT EXISTS ledger (id bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())";
        client.batch_execute(table).await.expect("the table can be made");
        let first = client.query_one("SELECT coalesce(max(id) % $1, 0) FROM ledger", &[&IDS_PER_WRITER]).await;
        let first: i64 = first.expect("the table can be read").get(0);
        let ledger = Arc::new(Ledger::default());
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for number in 0..WRITERS {
            // Above all that an earlier set of writers used: each had fewer ids than this.
            let id = number * IDS_PER_WRITER + first + 1_000_000;
            tasks.spawn(write(uri.to_owned(), id, ledger.clone(), stopped.clone()));
        }
        Writers { ledger, stop, tasks }
    }

    /// Lets every writer end the write it is in.
    pub async fn stop(mut self) -> Arc<Ledger> {
        self.stop.send_replace(true);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a writer ends well");
        }
        self.ledger.clone()
    }
}

/// An id is used once: after a write without an answer it stays unknown whether its row is there.
async fn write(uri: String, mut id: i64, ledger: Arc<Ledger>, stop: watch::Receiver<bool>) {
    while !*stop.borrow() {
        if let Ok(client) = connect(&uri).await {
            while !*stop.borrow() {
                id += 1;
                let written = client.execute("INSERT INTO ledger (id) VALUES ($1)", &[&id]).await;
                match written {
                    Ok(_) => ledger.acknowledge(id),
                    Err(_) => {
                        ledger.with(|entries| entries.unanswered += 1);
                        break;
                    }
                }
                tokio::time::sleep(PACE).await;
            }
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}
