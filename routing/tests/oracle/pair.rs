//! A primary and a hot standby in a directory of their own, reached over Unix sockets.

use futures_util::StreamExt;
use model::Lsn;
use routing::Catalog;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

const DEADLINE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(50);

/// The programs of one version.
#[derive(Clone, Debug)]
pub struct Major {
    pub name: String,
    bin: PathBuf,
}

/// The oldest and the newest version that are installed: what lies between shares their grammar.
pub fn majors() -> Vec<Major> {
    let mut places = vec![PathBuf::from("/usr/lib/postgresql")];
    places.extend(std::env::var_os("STEMMA_POSTGRES_DIR").map(PathBuf::from));
    places.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.local/postgres"));
    let mut found = Vec::new();
    for number in 13..=18_u32 {
        let bin = places.iter().map(|place| place.join(number.to_string()).join("bin"));
        if let Some(bin) = bin.filter_map(|bin| bin.canonicalize().ok()).find(|bin| bin.join("postgres").exists()) {
            found.push(Major { name: number.to_string(), bin });
        }
    }
    assert!(!found.is_empty(), "PostgreSQL is in none of {places:?}");
    let newest = found.pop().expect("one at least");
    found.truncate(1);
    found.push(newest);
    found
}

/// What a server answers when it refuses.
#[derive(Debug)]
pub struct Failure {
    pub state: String,
    pub message: String,
    pub routine: Option<String>,
}

pub struct Pair {
    primary: Client,
    standby: Client,
    // Dropped in this order: servers first, then their directory.
    _servers: Vec<Server>,
    _directory: tempfile::TempDir,
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // SIGQUIT ends the children too; SIGKILL would leave them.
        let _ = Command::new("kill").args(["-QUIT", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}

/// A program as the user `postgres`, if this test runs as root: servers refuse to run as root.
fn program(path: &Path) -> Command {
    let mut command = Command::new(path);
    let own = id(&["-u"]);
    if own == 0 {
        command.uid(id(&["-u", "postgres"])).gid(id(&["-g", "postgres"]));
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn id(arguments: &[&str]) -> u32 {
    let output = Command::new("id").args(arguments).output().expect("id runs");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}

fn run(command: &mut Command) {
    let output = command.output().expect("starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn serve(bin: &Path, data: &Path, sockets: &Path, port: u16) -> Server {
    let mut command = program(&bin.join("postgres"));
    command.arg("-D").arg(data).args(["-p", &port.to_string(), "-c", "listen_addresses=", "-c"]);
    command.arg(format!("unix_socket_directories={}", sockets.display())).stderr(Stdio::null());
    command.args(["-c", "fsync=off", "-c", "wal_retrieve_retry_interval=100ms"]);
    Server(command.spawn().expect("postgres starts"))
}

async fn connect(sockets: &Path, port: u16) -> Client {
    let uri = format!("host={} port={port} user=postgres dbname=postgres", sockets.display());
    let start = Instant::now();
    loop {
        match tokio_postgres::connect(&uri, NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(async move { drop(connection.await) });
                return client;
            }
            Err(error) => assert!(start.elapsed() < DEADLINE, "no connection to port {port}: {error}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

impl Pair {
    /// Both servers, with the schema on both.
    pub async fn start(major: &Major, schema: &str) -> Pair {
        let directory = tempfile::Builder::new().prefix("stemma-oracle-").tempdir_in("/tmp").expect("a directory");
        let root = directory.path();
        if id(&["-u"]) == 0 {
            run(Command::new("chown").arg("postgres:postgres").arg(root));
        }
        let (data, copy) = (root.join("p"), root.join("s"));
        let mut initdb = program(&major.bin.join("initdb"));
        initdb.arg("-D").arg(&data).args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync"]);
        run(&mut initdb);
        run(program(Path::new("/bin/cp")).arg("-a").arg(&data).arg(&copy));
        let settings = format!("primary_conninfo = 'host={} port=5432 user=postgres'\n", root.display());
        std::fs::write(root.join("settings"), settings).expect("written");
        let append = r#"cat "$0/settings" >> "$0/s/postgresql.auto.conf"; : > "$0/s/standby.signal""#;
        run(program(Path::new("/bin/sh")).args(["-c", append]).arg(root));
        let first = serve(&major.bin, &data, root, 5432);
        let primary = connect(root, 5432).await;
        let second = serve(&major.bin, &copy, root, 5433);
        primary.batch_execute(schema).await.expect("the schema is sound");
        let standby = connect(root, 5433).await;
        let pair = Pair { primary, standby, _servers: vec![second, first], _directory: directory };
        pair.caught_up().await;
        pair.standby.batch_execute("SET statement_timeout = '5s'").await.expect("set");
        pair
    }

    /// Waits until the standby has replayed all that the primary has written.
    pub async fn caught_up(&self) {
        let row = self.primary.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.expect("position");
        let position: String = row.get(0);
        let sql = format!("SELECT coalesce(pg_last_wal_replay_lsn() >= '{position}', false)");
        let start = Instant::now();
        while !self.standby.query_one(sql.as_str(), &[]).await.expect("asked").get::<_, bool>(0) {
            assert!(start.elapsed() < DEADLINE, "the standby does not reach {position}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What the room's own queries find on the primary.
    pub async fn catalog(&self) -> Catalog {
        use routing::catalog::{DEFINITIONS_SQL, FUNCTIONS_SQL, OPERATORS_SQL, RELATIONS_SQL};
        let ask =
            async |sql: &str| self.primary.query(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        let mut builder = Catalog::builder();
        for row in ask(FUNCTIONS_SQL).await {
            builder.function(row.get(0), row.get(1));
        }
        for row in ask(RELATIONS_SQL).await {
            builder.relation(row.get(0), row.get(1));
        }
        for row in ask(DEFINITIONS_SQL).await {
            builder.definition(row.get(0), row.get(1));
        }
        for row in ask(OPERATORS_SQL).await {
            builder.operator(row.get(0));
        }
        builder.build()
    }

    pub async fn on_primary(&self, sql: &str) {
        self.primary.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    pub async fn set_standby(&self, sql: &str) {
        self.standby.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// Runs a statement on the standby, in a session that remembers nothing of the one before.
    pub async fn on_standby(&self, sql: &str) -> Result<(), Failure> {
        let outcome = execute(&self.standby, sql).await;
        // A statement may have opened a transaction or a cursor.
        self.standby.batch_execute("ROLLBACK").await.expect("the connection lives");
        outcome
    }

    /// Runs a read on the primary in a transaction that is rolled back, and says what is left behind all the same:
    /// settings, locks, temporary objects, prepared statements, cursors, a sequence's memory.
    pub async fn left_behind(&self, sql: &str) -> String {
        const STATE: &str = "SELECT (SELECT md5(string_agg(name || '=' || setting, ',' ORDER BY name))
                FROM pg_settings WHERE name NOT LIKE 'transaction%'), 'advisory locks',
            (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()), 'temporary',
            (SELECT count(*) FROM pg_class WHERE relpersistence = 't'), 'prepared',
            (SELECT count(*) FROM pg_prepared_statements), 'listens',
            (SELECT count(*) FROM pg_listening_channels()), 'held', (SELECT count(*) FROM pg_cursors)";
        let before = self.one_line(STATE).await;
        self.on_primary("BEGIN READ ONLY").await;
        let _ = execute(&self.primary, sql).await;
        self.on_primary("COMMIT").await;
        let after = self.one_line(STATE).await;
        if before == after { String::new() } else { format!("{before} became {after}") }
    }

    /// The first row of an answer of the primary, its columns joined by blanks.
    pub async fn ask(&self, sql: &str) -> String {
        self.one_line(sql).await
    }

    pub async fn insert_position(&self) -> Lsn {
        self.one_line("SELECT pg_current_wal_insert_lsn()").await.parse().expect("a position")
    }

    /// Where the standby stands once all that the primary has flushed is replayed and the primary flushes no more.
    pub async fn replayed_when_still(&self) -> Lsn {
        let start = Instant::now();
        loop {
            let before = self.insert_position().await;
            let row = self.standby.query_one("SELECT pg_last_wal_replay_lsn()::text", &[]).await.expect("asked");
            let replayed: Lsn = row.get::<_, String>(0).parse().expect("a position");
            // Within a page header of the end, nothing is left to be replayed.
            if before.lag_of(replayed).0 <= 40 {
                return replayed;
            }
            assert!(start.elapsed() < DEADLINE, "the standby stays at {replayed}, the primary is at {before}");
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn one_line(&self, sql: &str) -> String {
        let messages = self.primary.simple_query(sql).await.expect("asked");
        let row = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let row = row.expect("a row");
        (0..row.len()).map(|column| row.get(column).unwrap_or("null")).collect::<Vec<_>>().join(" ")
    }
}

async fn execute(client: &Client, sql: &str) -> Result<(), Failure> {
    let outcome = if sql.trim_start().to_ascii_lowercase().starts_with("copy") {
        copied(client, sql).await
    } else {
        client.simple_query(sql).await.map(drop)
    };
    outcome.map_err(|error| match error.as_db_error() {
        Some(told) => Failure {
            state: told.code().code().to_owned(),
            message: told.message().to_owned(),
            routine: told.routine().map(str::to_owned),
        },
        None => Failure { state: String::new(), message: error.to_string(), routine: None },
    })
}

/// A COPY to its last row: it may fail on the way.
async fn copied(client: &Client, sql: &str) -> Result<(), tokio_postgres::Error> {
    let mut rows = std::pin::pin!(client.copy_out(sql).await?);
    while let Some(row) = rows.next().await {
        row?;
    }
    Ok(())
}
