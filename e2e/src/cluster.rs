//! A throw-away cluster of real servers, made with `stemma sandbox`.

use crate::http::{Answer, request};
use crate::ledger::Ledger;
use crate::postgresql::{connect, major_bin};
use crate::program::{Ran, command, run};
use crate::wait::wait_for;
use model::status::{ClusterStatus, NodeStatus, Verdict};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio_postgres::Client;

/// Lines of each keeper's log that a failed test shows.
const LOG_LINES: usize = 40;

/// One node, as `sandbox start -o json` tells it.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// What clients connect with; empty for a witness.
    pub uri: String,
    /// Port of its API.
    pub api_port: u16,
    /// File with the token of its API.
    pub api_token_file: PathBuf,
    /// Its node file.
    pub config: PathBuf,
    /// Its database; empty for a witness.
    pub data_dir: PathBuf,
    /// Its keeper's files.
    pub state_dir: PathBuf,
    /// What its keeper writes.
    pub log: PathBuf,
}

/// A cluster that is stopped and removed when it goes out of scope.
#[derive(Debug)]
pub struct Cluster {
    /// Where it is.
    pub directory: PathBuf,
    /// Its nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Holds the directory above, which goes last.
    _home: tempfile::TempDir,
}

impl Cluster {
    /// A cluster on this major version, healthy when this returns.
    pub async fn start(major: u32, arguments: &[&str]) -> Cluster {
        let home = tempfile::Builder::new().prefix("stemma-e2e-").tempdir_in("/tmp").expect("a directory in /tmp");
        // Servers run as another user, who has to pass through.
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).expect("our own directory");
        let directory = home.path().join("sandbox");
        // Made before anything runs: what a failed start leaves is stopped too.
        let mut cluster = Cluster { directory, nodes: BTreeMap::new(), _home: home };
        let (dir, bin) = (cluster.directory.display().to_string(), major_bin(major).display().to_string());
        let start = ["sandbox", "start", "--dir", &dir, "--pg-bin", &bin, "-o", "json"];
        let ran = run(&[&start, arguments].concat()).await.exits(0);
        cluster.nodes = nodes(&ran.json());
        cluster
    }

    /// A node.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.get(name).unwrap_or_else(|| panic!("no node {name}"))
    }

    /// Runs a command against this cluster.
    pub async fn run(&self, arguments: &[&str]) -> Ran {
        let directory = self.directory.display().to_string();
        run(&[arguments, &["--sandbox", &directory]].concat()).await
    }
    /// Runs a command that must end well, in JSON form.
    pub async fn json(&self, arguments: &[&str]) -> Value {
        self.run(&[arguments, &["-o", "json"]].concat()).await.exits(0).json()
    }
    /// Runs a command that must be refused with this code.
    pub async fn refused(&self, arguments: &[&str], code: &str, exit: i32) -> Ran {
        let ran = self.run(&[arguments, &["-o", "json"]].concat()).await.exits(exit);
        assert_eq!(ran.error_code(), code, "`{}` prints {}", ran.line, ran.stdout);
        ran
    }

    /// The judged view, as the first node that answers has it.
    pub async fn status(&self) -> Result<ClusterStatus, String> {
        let ran = self.run(&["status", "-o", "json"]).await;
        if ran.code != 0 {
            return Err(format!("`{}` ends with {}: {} {}", ran.line, ran.code, ran.stdout, ran.stderr));
        }
        serde_json::from_str(&ran.stdout).map_err(|error| format!("{error}: {}", ran.stdout))
    }
    /// Waits until the judged view is as wanted.
    pub async fn wait_status(&self, what: &str, wanted: impl Fn(&ClusterStatus) -> bool) -> ClusterStatus {
        wait_for(what, || async {
            let view = self.status().await?;
            if wanted(&view) { Ok(view) } else { Err(summary(&view)) }
        })
        .await
    }
    /// Waits until one node is as wanted.
    pub async fn wait_node(&self, name: &str, what: &str, wanted: impl Fn(&NodeStatus) -> bool) -> ClusterStatus {
        self.wait_status(&format!("{name} {what}"), |view| view.node(name).is_some_and(&wanted)).await
    }
    /// Waits until every node is there and the cluster says that it is healthy.
    pub async fn wait_healthy(&self) -> ClusterStatus {
        self.wait_status("healthy again", |view| view.verdict == Verdict::Healthy && view.operation.is_none()).await
    }

    /// A connection to a node's server.
    pub async fn sql(&self, name: &str) -> Client {
        let uri = &self.node(name).uri;
        wait_for(&format!("{name} takes connections"), || connect(uri)).await
    }
    /// One value from a node's server, as text; tried again while the server comes up.
    pub async fn value(&self, name: &str, query: &str) -> String {
        let uri = &self.node(name).uri;
        wait_for(&format!("{name} answers {query}"), || async {
            let client = connect(uri).await?;
            let messages = client.simple_query(query).await.map_err(|error| format!("{error:?}"))?;
            let value = messages.iter().find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            });
            value.ok_or_else(|| "no value".to_owned())
        })
        .await
    }
    /// Waits until a query gives this value.
    pub async fn wait_value(&self, name: &str, query: &str, wanted: &str) {
        let uri = &self.node(name).uri;
        wait_for(&format!("{name}: {query} = {wanted}"), || async {
            let client = connect(uri).await?;
            let row = client.simple_query(query).await.map_err(|error| format!("{error:?}"))?;
            let found = row.iter().find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            });
            if found.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }
    /// Runs statements on a node's server.
    pub async fn execute(&self, name: &str, statements: &str) {
        let client = self.sql(name).await;
        client.batch_execute(statements).await.unwrap_or_else(|error| panic!("{name}: {statements}: {error:?}"));
    }

    /// Waits until these nodes have applied what the primary has written by now.
    pub async fn wait_applied(&self, primary: &str, replicas: &[&str]) {
        let position = self.value(primary, "SELECT pg_current_wal_lsn()").await;
        for replica in replicas {
            let query = format!("SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn");
            self.wait_value(replica, &query, "t").await;
        }
    }
    /// Every acknowledged row is on every one of these nodes, and their tables are equal. The first is the primary.
    pub async fn prove(&self, ledger: &Ledger, names: &[&str]) {
        let (primary, replicas) = names.split_first().expect("at least the primary");
        self.wait_applied(primary, replicas).await;
        // A replica that was copied while commits waited for an acknowledgement has them, and shows them a moment later.
        self.wait_status("all that was applied is shown", |view| view.nodes.iter().all(|node| node.shows_replayed))
            .await;
        let acknowledged = ledger.acknowledged();
        assert!(!acknowledged.is_empty(), "nothing was written, so nothing is proved");
        let mut first: Option<BTreeSet<i64>> = None;
        for name in names {
            let rows = self.sql(name).await.query("SELECT id FROM ledger", &[]).await.expect("the table can be read");
            let rows: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
            let missing: Vec<&i64> = acknowledged.difference(&rows).take(5).collect();
            if let Some(row) = missing.first() {
                let found = self.account_of(primary, name, **row).await;
                panic!("{name} misses acknowledged rows: {missing:?} of {} ...\n{found}", acknowledged.len());
            }
            let first = first.get_or_insert_with(|| rows.clone());
            eprintln!("{name} holds {} rows, {} acknowledged", rows.len(), acknowledged.len());
            assert_eq!(first.len(), rows.len(), "{name} differs from {primary}");
            assert!(*first == rows, "{name} differs from {primary}");
        }
    }

    /// What two nodes say of a row that one of them misses: where it is, what became of its transaction, and whether the
    /// other sees it by another way or later.
    async fn account_of(&self, primary: &str, other: &str, id: i64) -> String {
        let mut told = String::new();
        let at = format!("SELECT ctid::text || ' xmin ' || xmin::text FROM ledger WHERE id = {id}");
        let xid = format!("(SELECT xmin::text FROM ledger WHERE id = {id})");
        let place = self.value(primary, &at).await;
        let xmin = self.value(primary, &format!("SELECT {xid}")).await;
        let _ = writeln!(told, "{primary}: {place}");
        for round in 0..2 {
            for (way, off) in [("by the index", "enable_seqscan"), ("by the table", "enable_indexscan")] {
                let client = self.sql(other).await;
                let set = format!("SET {off} = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off");
                client.batch_execute(&set).await.expect("set");
                let found = client.query_one("SELECT count(*) FROM ledger WHERE id = $1", &[&id]).await;
                let _ = writeln!(told, "{other} {way}: {:?}", found.map(|row| row.get::<_, i64>(0)));
            }
            let state = format!(
                "SELECT concat_ws(' ', pg_last_wal_replay_lsn(), pg_postmaster_start_time(), now(),
                     pg_xact_status('{xmin}'::xid8), pg_current_snapshot())"
            );
            let _ = writeln!(told, "{other}: {}", self.value(other, &state).await);
            if round == 0 {
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
        }
        told
    }

    /// One request to a node's API, with its token.
    pub async fn api(
        &self,
        name: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Answer {
        let node = self.node(name);
        let token = std::fs::read_to_string(&node.api_token_file).expect("the API has a token");
        let bearer = format!("Bearer {}", token.trim());
        let headers = [&[("authorization", bearer.as_str())], headers].concat();
        request(node.api_port, method, path, &headers, body).await.expect("the API answers")
    }

    /// Kills parts of a node the hard way: `postgres`, `keeper` or `host`.
    pub async fn crash(&self, name: &str, what: &str) {
        self.sandbox(&["crash", name, "--what", what]).await;
    }
    /// Starts the keeper of a node, after stopping the one that runs.
    pub async fn restart(&self, name: &str) {
        self.sandbox(&["restart", name]).await;
    }
    /// Runs a command of `stemma sandbox` that must end well.
    pub async fn sandbox(&self, arguments: &[&str]) -> Ran {
        self.run(&[&["sandbox"], arguments].concat()).await.exits(0)
    }

    /// Process id of a node's server.
    pub fn server_pid(&self, name: &str) -> i32 {
        let path = self.node(name).data_dir.join("postmaster.pid");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        text.lines().next().and_then(|line| line.trim().parse().ok()).expect("the first line is the process id")
    }
    /// Process ids of all that runs for a node's server.
    pub fn server_processes(&self, name: &str) -> Vec<i32> {
        working_in(&self.node(name).data_dir)
    }

    /// Shows how the cluster stands and what its keepers and servers wrote last.
    pub fn report(&self) {
        let ran = self.directory.join("sandbox.json").exists().then(|| {
            let directory = self.directory.display().to_string();
            command(&["status", "--sandbox", &directory]).output()
        });
        if let Some(Ok(output)) = ran {
            eprintln!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        }
        for entry in std::fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            for log in ["keeper.log", "state/postgresql.log"] {
                let path = entry.path().join(log);
                let Ok(bytes) = std::fs::read(&path) else { continue };
                let text = String::from_utf8_lossy(&bytes);
                let lines: Vec<&str> = text.lines().collect();
                let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
                eprintln!("--- {}\n{tail}", path.display());
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.report();
        }
        if self.directory.join("sandbox.json").exists() {
            let directory = self.directory.display().to_string();
            let mut stop = command(&["sandbox", "stop", "--purge", "--dir", &directory]);
            match stop.stdout(Stdio::null()).status() {
                Ok(status) if status.success() => {}
                ended => eprintln!("the cluster in {directory} was not removed: {ended:?}"),
            }
        }
    }
}

/// One line per view, for messages.
fn summary(view: &ClusterStatus) -> String {
    let nodes: Vec<String> = view
        .nodes
        .iter()
        .map(|node| {
            format!("{} {} {} {} {:?} {:?}", node.name, node.role, node.stage, node.server, node.link, node.doing)
        })
        .collect();
    let problems: Vec<String> =
        view.problems.iter().map(|problem| format!("{} {}", problem.code, problem.what)).collect();
    format!(
        "{} ({}); [{}]; problems [{}]; durability {:?}; operation {:?}",
        view.verdict.as_str(),
        view.sentence,
        nodes.join("; "),
        problems.join("; "),
        view.durability,
        view.operation
    )
}

fn nodes(document: &Value) -> BTreeMap<String, Node> {
    let text = |node: &Value, key: &str| node[key].as_str().unwrap_or_default().to_owned();
    let list = document["nodes"].as_array().unwrap_or_else(|| panic!("no nodes in {document}"));
    let one = |node: &Value| Node {
        name: text(node, "name"),
        uri: text(node, "uri"),
        api_port: node["api_port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port"),
        api_token_file: text(node, "api_token_file").into(),
        config: text(node, "config").into(),
        data_dir: text(node, "data_dir").into(),
        state_dir: text(node, "state_dir").into(),
        log: text(node, "log").into(),
    };
    list.iter().map(|node| (text(node, "name"), one(node))).collect()
}

/// All processes that work in a directory: every process of a server works in its data directory.
fn working_in(directory: &Path) -> Vec<i32> {
    let Ok(directory) = directory.canonicalize() else { return Vec::new() };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory)).collect()
}
