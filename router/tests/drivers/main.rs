//! Drivers as applications use them, before a router that splits reads: each runs its suite in both pool modes.
//!
//! The suites of other languages stand beside this file; their drivers are installed by `scripts/fetch-drivers`, and a
//! driver that is missing is a failure. Each suite works in a database of its own and prints a line per scenario.

#[allow(dead_code, reason = "the other test program uses the rest")]
#[path = "../suite/harness.rs"]
mod harness;
mod rust_suite;

use harness::{Front, PASSWORD, Server, config};
use router::Topology;
use router::config::PoolMode;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest that one suite may take; they take a few seconds each.
const SUITE_MAX: Duration = Duration::from_secs(300);

/// A primary with a replica that serves reads, and a router before them.
struct Stage {
    primary: Server,
    _replica: Server,
    front: Front,
    mode: PoolMode,
}

impl Stage {
    async fn new(mode: PoolMode) -> Stage {
        let mut primary = Server::new();
        primary.set("max_prepared_transactions = 10\nmax_connections = 200\n");
        let replica = primary.standby();
        let told = topology(&primary, &replica);
        // In session mode every client keeps a server; in transaction mode few servers are for all.
        let size = if mode == PoolMode::Session { 40 } else { 5 };
        let front = Front::start(told, router::Config { split: true, mode, workers: 2, ..config(size) }).await;
        Stage { primary, _replica: replica, front, mode }
    }

    fn database(&self, driver: &str) -> String {
        self.primary.sql(&format!("CREATE DATABASE {driver}"));
        driver.to_owned()
    }

    /// Runs a suite that is a program; what it printed, where it did not pass.
    async fn suite(&self, driver: &str, program: &Path, script: &str) -> Option<String> {
        let (database, port) = (self.database(driver), self.front.port);
        let mut suite = tokio::process::Command::new(program);
        let url_password = PASSWORD.replace(' ', "%20");
        suite
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers").join(script))
            .env("STEMMA_MODE", self.mode.as_str())
            .env(
                "STEMMA_DSN",
                format!("host=127.0.0.1 port={port} user=postgres password='{PASSWORD}' dbname={database}"),
            )
            .env("STEMMA_DSN_URL", format!("postgresql://postgres:{url_password}@127.0.0.1:{port}/{database}"))
            .env("STEMMA_NODE_MODULES", drivers().join("node/node_modules"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .kill_on_drop(true);
        let ended = tokio::time::timeout(SUITE_MAX, suite.output()).await;
        let who = format!("{driver}, {} mode", self.mode.as_str());
        match ended {
            Err(_) => Some(format!("{who}: not done in time")),
            Ok(Err(error)) => Some(format!("{who}: {} does not start: {error}", program.display())),
            Ok(Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                eprintln!("{who}: {}", said.lines().last().unwrap_or_default());
                let all = said + &String::from_utf8_lossy(&output.stderr);
                (!output.status.success()).then(|| format!("{who}:\n{all}"))
            }
        }
    }
}

/// The two servers, with the position that the replica has now.
fn topology(primary: &Server, replica: &Server) -> Topology {
    Topology { replicas: vec![replica.as_replica(2)], ..primary.topology(1) }
}

fn drivers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.local/drivers")
}

/// A program with its drivers.
fn installed(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is missing: run scripts/fetch-drivers", path.display());
    path
}

async fn all_drivers(mode: PoolMode) {
    let python = installed(drivers().join("python/bin/python"));
    installed(drivers().join("node/node_modules/pg"));
    let sqlx = installed(drivers().join("sqlx/release/sqlx-suite"));
    let stage = Stage::new(mode).await;
    let news = async {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            stage.front.topology.send_replace(topology(&stage.primary, &stage._replica));
        }
    };
    let suites = async {
        tokio::join!(
            stage.suite("psycopg", &python, "psycopg_suite.py"),
            stage.suite("asyncpg", &python, "asyncpg_suite.py"),
            stage.suite("node", Path::new("node"), "node_suite.js"),
            stage.suite("sqlx", &sqlx, ""),
            rust_suite::tokio_postgres(&stage),
        )
    };
    let (one, two, three, four, ()) = tokio::select! {
        done = suites => done,
        () = news => unreachable!("news never end"),
    };
    let failed: Vec<String> = [one, two, three, four].into_iter().flatten().collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_driver_passes_in_transaction_mode() {
    all_drivers(PoolMode::Transaction).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_driver_passes_in_session_mode() {
    all_drivers(PoolMode::Session).await;
}
