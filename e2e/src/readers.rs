//! Clients of a router that read and write, a hand that slows replicas and moves the primary meanwhile, and the history of
//! what the clients saw, for `history` to judge.

use crate::cluster::Cluster;
use crate::history::{Did, Operation, Outcome, Promise};
use model::status::ClusterStatus;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

/// Objects of each kind.
const KEYS: i64 = 4;
/// Clients at once.
const CLIENTS: u32 = 8;
/// How long the router may hold a statement.
const HOLD: Duration = Duration::from_secs(60);
/// The same and a little: whoever waits longer stands still.
const PATIENCE: Duration = Duration::from_secs(100);

/// A `stemma router` before a cluster, with reads on replicas; ended when dropped.
pub struct Front {
    process: Child,
    options: tokio_postgres::Config,
    room: tempfile::TempDir,
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Front {
    /// For the superuser of a cluster; `unchecked` makes a debug build read without looking at positions.
    pub fn before(cluster: &Cluster, promise: Promise, unchecked: bool) -> Front {
        use std::os::unix::fs::PermissionsExt;
        let room = tempfile::tempdir().expect("a directory");
        let mut options: tokio_postgres::Config = cluster.node("n1").uri.parse().expect("a URI");
        let password = String::from_utf8(options.get_password().expect("a password").to_vec()).expect("text");
        let users = room.path().join("users.txt");
        std::fs::write(&users, format!("\"postgres\" \"{password}\"\n")).expect("written");
        std::fs::set_permissions(&users, std::fs::Permissions::from_mode(0o600)).expect("mode");
        let port = crate::ports::free_port();
        let apis: Vec<String> =
            cluster.nodes.values().map(|node| format!("\"http://127.0.0.1:{}\"", node.api_port)).collect();
        let text = format!(
            "nodes = [{}]\n[router]\nlisten = \"127.0.0.1:{port}\"\nusers_file = \"{}\"\nhold = \"{}s\"\nsplit = true\n\
             consistency = \"{}\"\nadmins = [\"postgres\"]\n",
            apis.join(", "),
            users.display(),
            HOLD.as_secs(),
            promise.level()
        );
        let file = room.path().join("router.toml");
        std::fs::write(&file, text).expect("written");
        let mut command = Command::new(crate::program());
        command.arg("--config").arg(&file).arg("router").stdin(Stdio::null()).stdout(Stdio::null());
        if unchecked {
            command.env("STEMMA_UNCHECKED_READS", "1");
        }
        let log = std::fs::File::create(room.path().join("log")).expect("a log");
        let process = command.stderr(log).spawn().expect("the router starts");
        options = tokio_postgres::Config::new();
        options.host("127.0.0.1").port(port).user("postgres").password(password).dbname("postgres");
        Front { process, options, room }
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        std::fs::read_to_string(Path::new(self.room.path()).join("log")).unwrap_or_default()
    }

    /// What it says of itself, for who wonders what it does.
    async fn account(&self) -> String {
        let mut console = self.options.clone();
        console.dbname("stemma");
        let mut text = self.log();
        let Ok((client, connection)) = console.connect(NoTls).await else {
            return text + "\nthe console lets nobody in";
        };
        tokio::spawn(connection);
        for command in ["SHOW NODES", "SHOW ROUTES", "SHOW CLIENTS", "SHOW HELD", "SHOW POOLS", "SHOW SERVERS"] {
            text.push_str(&format!("\n{command}\n"));
            // A worker that answers nothing is what this is about.
            match tokio::time::timeout(Duration::from_secs(5), client.simple_query(command)).await {
                Err(_) => text.push_str("  no answer\n"),
                Ok(Err(error)) => text.push_str(&format!("  {error:?}\n")),
                Ok(Ok(messages)) => {
                    for message in messages {
                        let tokio_postgres::SimpleQueryMessage::Row(row) = message else { continue };
                        let cells: Vec<&str> = (0..row.len()).map(|at| row.get(at).unwrap_or("-")).collect();
                        text.push_str(&format!("  {}\n", cells.join(" | ")));
                    }
                }
            }
        }
        text
    }

    /// What a client gets in time; that it stands still is a fault of the router.
    async fn in_time<T>(&self, what: &str, asked: impl Future<Output = T>) -> T {
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(done) => done,
            Err(_) => panic!("{what} is not answered in {PATIENCE:?}\n{}", self.account().await),
        }
    }

    /// A client, tried for until the router lets it in.
    pub async fn client(&self) -> Client {
        let began = Instant::now();
        loop {
            match self.in_time("a login", self.options.connect(NoTls)).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error) => assert!(began.elapsed() < PATIENCE, "nobody is let in: {error:?}\n{}", self.log()),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A small generator (xorshift).
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) % bound
    }
}

/// What a run saw.
pub struct Run {
    /// All operations.
    pub operations: Vec<Operation>,
    /// The lists in the end.
    pub end: BTreeMap<i64, Vec<i64>>,
    /// Reads that a replica served.
    pub on_replicas: usize,
    /// Changes of primary.
    pub changes: usize,
}

/// What happens to the servers meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hardship {
    /// Replay is paused.
    Pauses,
    /// Also replicas are killed, and the primary changes: by order, or killed.
    Changes,
    /// Also replicas are rebuilt.
    Rebuilds,
    /// Also the primary's host sleeps through its replacement, once.
    Sleep,
}

/// Has clients read and write for so long, in spite of a hardship.
pub async fn run(cluster: &Cluster, front: &Arc<Front>, lasts: Duration, seed: u64, hardship: Hardship) -> Run {
    let setup = front.client().await;
    let sql = "CREATE TABLE IF NOT EXISTS registers (key bigint PRIMARY KEY, version bigint);
        CREATE TABLE IF NOT EXISTS lists (key bigint PRIMARY KEY, items bigint[]);
        TRUNCATE registers, lists;
        CREATE OR REPLACE FUNCTION place() RETURNS text LANGUAGE sql STABLE AS
            $$ SELECT concat_ws(' ', current_setting('transaction_read_only'), current_setting('port'), pg_backend_pid(),
                CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END,
                pg_current_snapshot(), pg_postmaster_start_time()) $$";
    setup.batch_execute(sql).await.expect("made");
    let fill = format!(
        "INSERT INTO registers SELECT k, 0 FROM generate_series(1, {KEYS}) k;
        INSERT INTO lists SELECT -k, '{{}}' FROM generate_series(1, {KEYS}) k"
    );
    setup.batch_execute(&fill).await.expect("filled");
    // What `place` is has to be known before reads that call it go to replicas.
    let began = Instant::now();
    loop {
        let row = front.client().await.query_one("SELECT place()", &[]).await.expect("read");
        if row.get::<_, String>(0).starts_with("on ") {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "no read is served by a replica\n{}", front.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (began, values) = (Instant::now(), Arc::new(AtomicI64::new(1)));
    let until = began + lasts;
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let (front, values) = (front.clone(), values.clone());
            tokio::spawn(async move { client(&front, number, seed, began, until, &values).await })
        })
        .collect();
    let changes = disturb(cluster, until, &mut Dice::new(seed ^ 0xd157), hardship).await;
    let (mut operations, mut on_replicas) = (Vec::new(), 0);
    for task in clients {
        let (done, replicas) = task.await.expect("a client goes on whatever it meets");
        operations.extend(done);
        on_replicas += replicas;
    }
    // By a session of its own that has written, so that it is read on the primary.
    let last = front.client().await;
    let rows = last.query("UPDATE lists SET items = items RETURNING key, items", &[]).await.expect("read");
    let end = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    Run { operations, end, on_replicas, changes }
}

/// One client: its operations, and how many reads replicas served.
async fn client(
    front: &Front,
    number: u32,
    seed: u64,
    start: Instant,
    until: Instant,
    values: &AtomicI64,
) -> (Vec<Operation>, usize) {
    let mut dice = Dice::new(seed.wrapping_add(u64::from(number) * 7919 + 1));
    let (mut session, mut connection) = (number, front.client().await);
    let (mut operations, mut on_replicas) = (Vec::new(), 0);
    let clock = || u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    while Instant::now() < until {
        let writes_often = number.is_multiple_of(2);
        // Half of them write seldom: who has just written reads on the primary, and would prove little of replicas.
        // A session that was once served by the primary seldom leaves it while others write, so readers begin anew.
        if connection.is_closed() || (!writes_often && dice.below(40) == 0) {
            // Another connection is another session, to which nothing was promised yet.
            session += CLIENTS;
            connection = front.client().await;
        }
        let key = 1 + i64::try_from(dice.below(KEYS as u64)).expect("small");
        let began = clock();
        let choice = dice.below(if writes_often { 6 } else { 60 });
        let begin = match choice {
            0 | 1 => [None, Some("BEGIN"), Some("BEGIN ISOLATION LEVEL REPEATABLE READ")][dice.below(3) as usize],
            _ => [None, None, Some("BEGIN READ ONLY")][dice.below(3) as usize],
        };
        let asked = async {
            match choice {
                0 => (key, raise(&connection, begin, key).await, None),
                1 => {
                    let value = values.fetch_add(1, Ordering::Relaxed);
                    (-key, Some(append(&connection, begin, -key, value).await), None)
                }
                even if even.is_multiple_of(2) => {
                    let sql = "SELECT version, place() FROM registers WHERE key = $1";
                    let row = seen(&connection, begin, sql, key).await;
                    (key, row.as_ref().map(|row| Did::Saw(row.get(0))), row)
                }
                _ => {
                    let row = seen(&connection, begin, "SELECT items, place() FROM lists WHERE key = $1", -key).await;
                    (-key, row.as_ref().map(|row| Did::Listed(row.get(0))), row)
                }
            }
        };
        let (key, did, row) = front.in_time("a statement", asked).await;
        let place: String = row.map(|row| row.get(1)).unwrap_or_default();
        on_replicas += usize::from(place.starts_with("on "));
        operations.extend(did.map(|did| Operation { session, key, began, ended: clock(), did, place }));
        tokio::time::sleep(Duration::from_millis(dice.below(20))).await;
    }
    (operations, on_replicas)
}

/// How statements are run: alone, or in a transaction that begins like this.
type Begin = Option<&'static str>;

/// Runs one statement.
async fn within(
    connection: &Client,
    begin: Begin,
    sql: &str,
    parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<Option<tokio_postgres::Row>, tokio_postgres::Error> {
    let Some(begin) = begin else { return connection.query_opt(sql, parameters).await };
    let run = async {
        connection.batch_execute(begin).await?;
        let row = connection.query_opt(sql, parameters).await?;
        connection.batch_execute("COMMIT").await?;
        Ok(row)
    };
    let ran = run.await;
    if ran.is_err() {
        // In vain where the connection is gone, or the transaction with it.
        let _ = connection.batch_execute("ROLLBACK").await;
    }
    ran
}

async fn seen(connection: &Client, begin: Begin, sql: &str, key: i64) -> Option<tokio_postgres::Row> {
    within(connection, begin, sql, &[&key]).await.ok().flatten()
}

async fn raise(connection: &Client, begin: Begin, key: i64) -> Option<Did> {
    let sql = "UPDATE registers SET version = version + 1 WHERE key = $1 RETURNING version";
    // A write of unknown outcome promises nothing.
    within(connection, begin, sql, &[&key]).await.ok().flatten().map(|row| Did::Raised(row.get(0)))
}

async fn append(connection: &Client, begin: Begin, key: i64, value: i64) -> Did {
    let sql = "UPDATE lists SET items = items || $2::bigint WHERE key = $1";
    let outcome = match within(connection, begin, sql, &[&key, &value]).await {
        Ok(_) => Outcome::Done,
        Err(error) => match error.code().map(tokio_postgres::error::SqlState::code) {
            Some("40001" | "57P03") => Outcome::Undone,
            Some(_) | None => Outcome::Unknown,
        },
    };
    Did::Appended(value, outcome)
}

/// How often the primary was changed.
async fn disturb(cluster: &Cluster, until: Instant, dice: &mut Dice, hardship: Hardship) -> usize {
    let (mut turn, mut done, mut slept) = (0_u32, 0, hardship < Hardship::Sleep);
    while Instant::now() < until {
        turn += 1;
        let Ok(view) = cluster.status().await else { continue };
        let named = |role: &str| -> Vec<String> {
            let fit = view.nodes.iter().filter(|node| node.role.to_string() == role);
            fit.map(|node| node.name.to_string()).collect()
        };
        let (primary, replicas, epoch) = (named("primary"), named("replica"), view.epoch);
        let (Some(primary), false) = (primary.first(), replicas.is_empty()) else { continue };
        let replica = &replicas[usize::try_from(dice.below(replicas.len() as u64)).expect("few")];
        if hardship >= Hardship::Rebuilds && turn % 10_u32 == 9 {
            cluster.run(&["node", "reinit", replica, "--yes"]).await;
            continue;
        }
        if hardship >= Hardship::Changes && turn % 6 == 3 {
            // It comes back behind what it has shown. Where it is being rebuilt there is nothing to kill.
            cluster.run(&["sandbox", "crash", replica, "--what", "postgres"]).await;
            continue;
        }
        if hardship >= Hardship::Changes && turn % 6 == 0 {
            if !std::mem::replace(&mut slept, true) {
                cluster.sandbox(&["freeze", primary, "--what", "host"]).await;
                let replaced = |view: &ClusterStatus| view.primary_up && view.epoch > epoch;
                cluster.wait_status("another primary serves", replaced).await;
                tokio::time::sleep(Duration::from_millis(dice.below(2_000))).await;
                cluster.sandbox(&["thaw", primary, "--what", "host"]).await;
                done += 1;
            } else if dice.below(2) == 0 {
                // Refused where the cluster is not fit for it; there is another turn.
                let ran = cluster.run(&["switchover", "--to", replica, "--yes"]).await;
                done += usize::from(ran.code == 0);
            } else {
                // It may be down already, on its way back from something before.
                let ran = cluster.run(&["sandbox", "crash", primary, "--what", "postgres"]).await;
                done += usize::from(ran.code == 0);
            }
            cluster.wait_healthy().await;
            continue;
        }
        let Ok(hand) = crate::connect(&cluster.node(replica).uri).await else { continue };
        let paused = hand.batch_execute("SELECT pg_wal_replay_pause()").await.is_ok();
        tokio::time::sleep(Duration::from_millis(200 + dice.below(1_800))).await;
        if paused {
            let _ = hand.batch_execute("SELECT pg_wal_replay_resume()").await;
        }
        tokio::time::sleep(Duration::from_millis(dice.below(300))).await;
    }
    done
}
