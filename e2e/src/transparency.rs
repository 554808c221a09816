//! What clients of a router notice of changes of primary, under a load like TPC-B: every transaction has a number of its
//! own, and what the client was told of it is compared with what is in the database afterwards.

use crate::{Cluster, Front};
use model::Role;
use model::status::LinkStatus;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

const ACCOUNTS: u64 = 1_000;
const TELLERS: u64 = 10;
/// Between two transactions of a client.
const THINK: Duration = Duration::from_millis(2);

/// A longer stall asks for an explanation.
const STALL_EXPLAINED: Duration = Duration::from_secs(1);

/// What is done to the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Somebody asks for another one.
    Switchover,
    /// `kill -9` of all processes of its server.
    Crash,
}

/// What a client was told of one transaction.
#[derive(Clone, Debug)]
struct Told {
    number: i64,
    /// SQLSTATE and detail of its error; `None` for one that was acknowledged.
    error: Option<(String, String)>,
}

/// What all clients were told, and how long they waited.
#[derive(Debug, Default)]
pub struct Report {
    /// Transactions that were acknowledged.
    pub acknowledged: usize,
    /// Errors by SQLSTATE.
    pub errors: BTreeMap<String, usize>,
    /// Details of the errors 08007, each with what the data says.
    pub unknown: Vec<String>,
    /// Clients that lost their connection.
    pub lost_connections: usize,
    /// What is wrong with the data.
    pub violations: Vec<String>,
    /// The longest time between two answers to one client.
    pub longest_stall: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors: Vec<String> = self.errors.iter().map(|(state, count)| format!("{count} x {state}")).collect();
        let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
        write!(
            f,
            "acknowledged {}  errors {errors}  lost connections {}  longest stall {:.3} s  violations {}",
            self.acknowledged,
            self.lost_connections,
            self.longest_stall.as_secs_f64(),
            self.violations.len()
        )
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    /// The longest time between two answers to one client lately, in microseconds.
    stall: Arc<AtomicU64>,
    clients: Vec<JoinHandle<(Vec<Told>, Duration, bool)>>,
}

impl Load {
    /// Makes the tables and sets `count` clients to work; every other one by prepared statements.
    pub async fn start(front: &Front, count: usize) -> Load {
        let tables = format!(
            "CREATE TABLE accounts AS SELECT a AS id, 0::bigint AS balance FROM generate_series(1, {ACCOUNTS}) a;
             CREATE TABLE tellers AS SELECT t AS id, 0::bigint AS balance FROM generate_series(1, {TELLERS}) t;
             CREATE TABLE branches AS SELECT b AS id, 0::bigint AS balance FROM generate_series(1, 2) b;
             CREATE UNIQUE INDEX ON accounts (id);
             CREATE TABLE history (number bigint, account bigint, delta bigint)"
        );
        front.client().await.batch_execute(&tables).await.expect("tables are made");
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let stall = Arc::new(AtomicU64::new(0));
        let mut clients = Vec::new();
        for index in 0..count {
            let client = front.client().await;
            let (stop, done, stall) = (stop.clone(), done.clone(), stall.clone());
            clients.push(tokio::spawn(work(client, index as i64, stop, done, stall)));
        }
        Load { stop, done, stall, clients }
    }

    /// Waits for `more` acknowledged transactions.
    pub async fn goes_on(&self, more: u64) {
        let wanted = self.done.load(Ordering::SeqCst) + more;
        crate::wait_for("clients that work", || async {
            let done = self.done.load(Ordering::SeqCst);
            if done >= wanted { Ok(()) } else { Err(format!("{done} of {wanted}")) }
        })
        .await;
    }

    /// The longest time between two answers to one client since this was last asked.
    pub fn take_stall(&self) -> Duration {
        Duration::from_micros(self.stall.swap(0, Ordering::SeqCst))
    }

    /// Ends the work and compares what was told with what is there.
    pub async fn end(self, front: &Front) -> Report {
        self.stop.store(true, Ordering::SeqCst);
        let mut report = Report::default();
        let mut told = Vec::new();
        for client in self.clients {
            let (answers, stall, lost) = client.await.expect("a client does not panic");
            told.extend(answers);
            report.longest_stall = report.longest_stall.max(stall);
            report.lost_connections += usize::from(lost);
        }
        let client = front.client().await;
        compare(&client, told, &mut report).await;
        report
    }
}

async fn work(
    client: Client,
    index: i64,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    lately: Arc<AtomicU64>,
) -> (Vec<Told>, Duration, bool) {
    let (mut told, mut stall, mut answered) = (Vec::new(), Duration::ZERO, Instant::now());
    let mut number = index * 1_000_000_000;
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        let outcome = if index % 2 == 0 { simple(&client, number).await } else { prepared(&client, number).await };
        stall = stall.max(answered.elapsed());
        lately.fetch_max(answered.elapsed().as_micros() as u64, Ordering::SeqCst);
        answered = Instant::now();
        let error = outcome.err().map(|error| match error.as_db_error() {
            Some(said) => (said.code().code().to_owned(), said.detail().unwrap_or_default().to_owned()),
            None => ("none".to_owned(), format!("{error:?}")),
        });
        let failed = error.is_some();
        told.push(Told { number, error });
        if client.is_closed() {
            return (told, stall, true);
        }
        if failed {
            // Without effect where the transaction is over.
            if client.batch_execute("ROLLBACK").await.is_err() {
                return (told, stall, true);
            }
        } else {
            done.fetch_add(1, Ordering::SeqCst);
        }
        tokio::time::sleep(THINK).await;
    }
    (told, stall, false)
}

fn places(number: i64) -> (i64, i64, i64, i64) {
    let spread = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let place = |modulus: u64| (spread % modulus) as i64 + 1;
    (place(ACCOUNTS), place(TELLERS), place(2), number % 5_000 - 2_500)
}

async fn simple(client: &Client, number: i64) -> Result<(), tokio_postgres::Error> {
    let (account, teller, branch, delta) = places(number);
    client.batch_execute("BEGIN").await?;
    client.batch_execute(&format!("UPDATE accounts SET balance = balance + {delta} WHERE id = {account}")).await?;
    client.simple_query(&format!("SELECT balance FROM accounts WHERE id = {account}")).await?;
    client.batch_execute(&format!("UPDATE tellers SET balance = balance + {delta} WHERE id = {teller}")).await?;
    client.batch_execute(&format!("UPDATE branches SET balance = balance + {delta} WHERE id = {branch}")).await?;
    client.batch_execute(&format!("INSERT INTO history VALUES ({number}, {account}, {delta})")).await?;
    client.batch_execute("COMMIT").await
}

async fn prepared(client: &Client, number: i64) -> Result<(), tokio_postgres::Error> {
    let (account, teller, branch, delta) = places(number);
    client.batch_execute("BEGIN").await?;
    for (table, id) in [("accounts", account), ("tellers", teller), ("branches", branch)] {
        let update = format!("UPDATE {table} SET balance = balance + $1::bigint WHERE id = $2::bigint");
        client.execute(&update, &[&delta, &id]).await?;
    }
    client.execute("INSERT INTO history VALUES ($1, $2, $3)", &[&number, &account, &delta]).await?;
    client.batch_execute("COMMIT").await
}

async fn compare(client: &Client, told: Vec<Told>, report: &mut Report) {
    let rows = client.query("SELECT number, count(*) FROM history GROUP BY number", &[]).await.expect("it answers");
    let there: BTreeMap<i64, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for (number, count) in there.iter().filter(|(_, count)| **count != 1) {
        report.violations.push(format!("{number} was executed {count} times"));
    }
    for Told { number, error } in told {
        let made = there.contains_key(&number);
        match error {
            None if !made => report.violations.push(format!("{number} was acknowledged and is not there")),
            None => report.acknowledged += 1,
            Some((state, detail)) => {
                if state == "08007" {
                    report.unknown.push(format!("{detail} [it is {}there]", if made { "" } else { "not " }));
                } else if made {
                    report.violations.push(format!("{number} was said to have failed ({state}) and is there"));
                }
                *report.errors.entry(state).or_default() += 1;
            }
        }
    }
    let sums = "SELECT (SELECT sum(balance) FROM accounts)::bigint, (SELECT sum(balance) FROM tellers)::bigint, \
                (SELECT sum(balance) FROM branches)::bigint, (SELECT coalesce(sum(delta), 0) FROM history)::bigint";
    let row = client.query_one(sums, &[]).await.expect("it answers");
    let sums: Vec<i64> = (0..4).map(|at| row.get(at)).collect();
    if sums.iter().any(|sum| *sum != sums[0]) {
        report.violations.push(format!("accounts, tellers, branches and history differ: {sums:?}"));
    }
}

/// The primary and a replica that acknowledges its commits, once every replica streams.
pub async fn whole(cluster: &Cluster) -> (String, String) {
    let whole = cluster.wait_status("a whole cluster", |view| {
        view.primary_up
            && view.failover.is_none()
            && view.nodes.iter().all(|node| node.role != Role::Replica || node.link == Some(LinkStatus::Streaming))
            && view.durability.in_force
            && !view.durability.voters.is_empty()
    });
    let view = whole.await;
    (view.primary.expect("a primary").to_string(), view.durability.voters[0].clone())
}

/// `count` faults, one after the other, each on a whole cluster under load. `tell` hears of each.
pub async fn suffer(
    cluster: &Cluster,
    load: &Load,
    fault: Fault,
    count: usize,
    mut tell: impl FnMut(usize, &str, Duration),
) {
    for run in 1..=count {
        let (primary, to) = whole(cluster).await;
        load.goes_on(50).await;
        load.take_stall();
        match fault {
            Fault::Switchover => {
                cluster.run(&["switchover", "--to", &to, "--yes"]).await.exits(0);
            }
            Fault::Crash => cluster.crash(&primary, "postgres").await,
        }
        load.goes_on(50).await;
        let stall = load.take_stall();
        tell(run, &primary, stall);
        if stall > STALL_EXPLAINED {
            eprintln!("{}", cluster.run(&["explain", "last-failover"]).await.stdout);
            cluster.report();
        }
    }
    whole(cluster).await;
}
