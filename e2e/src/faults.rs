//! Nodes whose every process is in the test's hand: built by `init`, `join` and `run` with node files of the test's
//! own, armed with kill points, broken in all ways, and cleaned up whatever happens.

use crate::ports::free_port;
use crate::postgresql::major_bin;
use model::Trouble;
use model::status::{ClusterStatus, NodeStatus, Verdict};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long anything may take; generous, since tests share the machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often conditions are looked at.
const POLL: Duration = Duration::from_millis(50);
/// Settings that let many small servers live on one machine, with clients by password.
pub const SETTINGS: &str = "[postgresql]\nhba = [\"host all all 127.0.0.1/32 scram-sha-256\"]\n\n\
    [postgresql.parameters]\nshared_buffers = \"16MB\"\nmax_connections = \"40\"\nmax_wal_size = \"128MB\"\n";

/// Waits until `look` gives something; panics with what it said last.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(why) if Instant::now() > deadline => panic!("waited in vain for {what}: {why}"),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// The program under test: `STEMMA_BIN`, else the one that was built beside this test.
fn program() -> PathBuf {
    if let Some(named) = std::env::var_os("STEMMA_BIN") {
        return named.into();
    }
    let own = std::env::current_exe().expect("a test has a path");
    let program = own.ancestors().nth(2).expect("target/debug/deps").join("stemma");
    assert!(program.exists(), "{} is missing: cargo build -p stemma", program.display());
    program
}

/// A number that no other test has.
fn unique() -> u64 {
    u64::from_le_bytes(uuid::Uuid::new_v4().as_bytes()[..8].try_into().expect("eight bytes"))
}

/// The user of the servers where we are root.
pub fn server_user() -> Option<User> {
    nix::unistd::geteuid().is_root().then(|| User::from_name("postgres").ok().flatten().expect("user postgres"))
}

/// What a command answered.
#[derive(Debug)]
pub struct Said {
    /// How it ended.
    pub status: ExitStatus,
    /// Its document.
    pub json: serde_json::Value,
    /// What it wrote beside.
    pub stderr: String,
}

impl Said {
    /// The refusal, with code, reason and hint, and the exit status that goes with the code.
    pub fn trouble(&self) -> Trouble {
        let trouble: Trouble = serde_json::from_value(self.json["error"].clone())
            .unwrap_or_else(|error| panic!("no error in the answer ({error}): {self:?}"));
        assert_eq!(self.status.code(), Some(i32::from(trouble.exit)), "exit status and document differ: {self:?}");
        assert!(!trouble.reason.is_empty() && !trouble.hint.is_empty(), "{trouble:?}");
        trouble
    }
    /// The refusal, which must carry `code`.
    pub fn refused(&self, code: &str) -> Trouble {
        let trouble = self.trouble();
        assert!(trouble.is(code), "{code} was expected: {self:?}");
        trouble
    }
    /// Checks that it was done.
    pub fn done(self) -> Said {
        assert!(self.status.success(), "{self:?}");
        self
    }
    /// Whether it died as by `kill -9`.
    pub fn was_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }
}

/// A place for nodes, removed at the end with everything that runs in it.
pub struct World {
    /// Its directory.
    pub dir: PathBuf,
}

impl World {
    /// A new one, reachable for the servers' user.
    pub fn new() -> World {
        let dir = PathBuf::from(format!("/tmp/stemma-faults-{:016x}", unique()));
        std::fs::DirBuilder::new().mode(0o755).create(&dir).expect("a new directory");
        std::fs::write(dir.join("settings.toml"), SETTINGS).expect("written");
        World { dir }
    }
    /// A node with a database.
    pub fn node(&self, name: &str) -> Node {
        Node::new(&self.dir, name, false)
    }
    /// A node without.
    pub fn witness(&self, name: &str) -> Node {
        Node::new(&self.dir, name, true)
    }
    /// The settings that a cluster begins with.
    pub fn settings(&self) -> String {
        self.dir.join("settings.toml").display().to_string()
    }
    /// A healthy cluster of `n1` to `n<count>`.
    pub fn cluster(&self, count: usize) -> Vec<Node> {
        let mut nodes = vec![self.node("n1")];
        nodes[0].init().done();
        nodes[0].start();
        nodes[0].wait_primary();
        for number in 2..=count {
            let mut node = self.node(&format!("n{number}"));
            node.join(&nodes[0].token("replica")).done();
            node.start();
            nodes.push(node);
        }
        nodes[0].wait_healthy(count);
        nodes
    }
}

impl Default for World {
    fn default() -> World {
        World::new()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Nodes that were forgotten on the way of a panic.
        kill_below(&self.dir);
        if std::thread::panicking() && std::env::var_os("STEMMA_KEEP").is_some() {
            eprintln!("kept: {}", self.dir.display());
            return;
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Kills every process that works below a directory: servers, and programs of an initdb.
fn kill_below(dir: &Path) {
    for _ in 0..20 {
        let pids = processes_below(dir);
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(POLL);
    }
}

/// The processes that work in a directory or below it.
pub fn processes_below(dir: &Path) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("a Linux system");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir))).collect()
}

/// One node.
pub struct Node {
    /// Its name.
    pub name: String,
    /// All that is its own.
    pub home: PathBuf,
    /// Its node file.
    pub config: PathBuf,
    /// The keeper's files.
    pub state_dir: PathBuf,
    /// The database.
    pub data_dir: PathBuf,
    /// Port of the keeper.
    pub keeper_port: u16,
    /// Port of the API.
    pub api_port: u16,
    /// Port of the database.
    pub postgres_port: u16,
    /// Whether it has no database.
    pub witness: bool,
    keeper: Option<Child>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        kill_below(&self.home);
    }
}

impl Node {
    fn new(dir: &Path, name: &str, witness: bool) -> Node {
        let home = dir.join(name);
        let node = Node {
            name: name.to_owned(),
            config: home.join("node.toml"),
            state_dir: home.join("state"),
            data_dir: home.join("data"),
            home,
            keeper_port: free_port(),
            api_port: free_port(),
            postgres_port: free_port(),
            witness,
            keeper: None,
        };
        std::fs::DirBuilder::new().mode(0o755).create(&node.home).expect("a new node");
        std::fs::DirBuilder::new().mode(0o711).create(&node.state_dir).expect("a new node");
        if let Some(user) = server_user() {
            nix::unistd::chown(&node.home, Some(user.uid), Some(user.gid)).expect("we are root");
        }
        node.write_config(&node.toml());
        node
    }

    /// The node file as it should be.
    pub fn toml(&self) -> String {
        let mut text = format!(
            "name = \"{}\"\nstate_dir = \"{}\"\n\n[keeper]\nlisten = \"127.0.0.1:{}\"\n\n[api]\nlisten = \"127.0.0.1:{}\"\n",
            self.name,
            self.state_dir.display(),
            self.keeper_port,
            self.api_port
        );
        if !self.witness {
            let user = server_user().map_or_else(String::new, |user| format!("run_as = \"{}\"\n", user.name));
            text.push_str(&format!(
                "\n[postgresql]\ndata_dir = \"{}\"\nlisten = \"127.0.0.1\"\nadvertise = \"127.0.0.1\"\nport = {}\nbin_dir = \"{}\"\n{user}",
                self.data_dir.display(),
                self.postgres_port,
                major_bin(15).display()
            ));
        }
        text
    }
    /// Replaces the node file.
    pub fn write_config(&self, text: &str) {
        std::fs::write(&self.config, text).expect("written");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments).arg("--config").arg(&self.config).args(["-o", "json"]).current_dir("/");
        for name in ["STEMMA_API", "STEMMA_TOKEN_FILE", "STEMMA_SANDBOX"] {
            command.env_remove(name);
        }
        command.env("STEMMA_KILL_FILE", self.home.join("kill"));
        command.stdin(Stdio::null());
        command
    }
    /// Runs a command of this node to its end.
    pub fn stemma(&self, arguments: &[&str]) -> Said {
        self.stemma_with(arguments, &[])
    }
    /// The same, with additions to the environment.
    pub fn stemma_with(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Said {
        let mut command = self.command(arguments);
        command.envs(environment.iter().copied());
        let output = command.output().expect("the program starts");
        Said {
            status: output.status,
            json: serde_json::from_slice(&output.stdout).unwrap_or_default(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
    /// `stemma init`.
    pub fn init(&self) -> Said {
        let settings = self.home.parent().expect("a world").join("settings.toml");
        self.stemma(&["init", "--name", "faults", "--settings", &settings.display().to_string()])
    }
    /// `stemma join`.
    pub fn join(&self, token: &str) -> Said {
        self.stemma(&["join", token, "--role", if self.witness { "witness" } else { "replica" }])
    }
    /// A new token, made by this node.
    pub fn token(&self, role: &str) -> String {
        wait_for("a token", || {
            let said = self.stemma(&["token", "create", "--role", role]);
            said.json["token"].as_str().map(str::to_owned).ok_or_else(|| format!("{said:?}"))
        })
    }
    /// A change asked of this node, told until it is taken: a keeper that just came back has no majority yet.
    pub fn change(&self, arguments: &[&str]) -> Said {
        wait_for(&format!("{arguments:?}"), || {
            let begun = Instant::now();
            let said = self.stemma(arguments);
            if said.status.success() {
                return Ok(said);
            }
            // Shown when the test fails: what a later attempt meets may be the work of an earlier one.
            println!("{} refused {arguments:?} after {} ms: {said:?}", self.name, begun.elapsed().as_millis());
            Err(format!("{said:?}"))
        })
    }

    /// Starts the keeper.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }
    /// The same, with additions to the environment.
    pub fn start_with(&mut self, environment: &[(&str, &str)]) {
        assert!(self.keeper.is_none(), "{} runs already", self.name);
        let log = std::fs::File::options().create(true).append(true).open(self.log()).expect("a log");
        let mut command = self.command(&["run"]);
        command.envs(environment.iter().copied());
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        self.keeper = Some(command.spawn().expect("the program starts"));
    }
    /// The keeper's log.
    pub fn log(&self) -> PathBuf {
        self.home.join("keeper.log")
    }
    /// The end of the keeper's log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }
    /// Whether the keeper runs.
    pub fn runs(&mut self) -> bool {
        self.keeper.as_mut().is_some_and(|keeper| matches!(keeper.try_wait(), Ok(None)))
    }
    /// `kill -9` of the keeper. The server goes on.
    pub fn kill(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
    }
    /// `kill -9` of the server with all its processes.
    pub fn kill_server(&self) {
        kill_below(&self.data_dir);
    }
    /// Waits until the keeper has ended.
    pub fn wait_end(&mut self) -> ExitStatus {
        let name = self.name.clone();
        let keeper = self.keeper.as_mut().expect("a keeper was started");
        let deadline = Instant::now() + PATIENCE;
        loop {
            match keeper.try_wait() {
                Ok(Some(status)) => {
                    self.keeper = None;
                    return status;
                }
                Ok(None) | Err(_) if Instant::now() > deadline => {
                    panic!("the keeper of {name} does not end; its log:\n{}", self.log_tail())
                }
                Ok(None) | Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
    /// Arms a kill point (`name` or `name:pass`) in all processes of this node.
    pub fn arm(&self, point: &str) {
        let _ = std::fs::remove_file(self.home.join("kill.hit"));
        let beside = self.home.join("kill.new");
        std::fs::write(&beside, point).expect("written");
        std::fs::rename(beside, self.home.join("kill")).expect("armed");
    }
    /// Takes back what was armed.
    pub fn disarm(&self) {
        let _ = std::fs::remove_file(self.home.join("kill"));
    }
    /// The point at which a process of this node died since it was armed last.
    pub fn hit(&self) -> Option<String> {
        std::fs::read_to_string(self.home.join("kill.hit")).ok()
    }
    /// Waits until the keeper has died of SIGKILL at the point that was armed last.
    pub fn wait_death(&mut self, point: &str) {
        let status = self.wait_end();
        assert_eq!(status.signal(), Some(9), "{}: {status}\n{}", self.name, self.log_tail());
        assert_eq!(self.hit().as_deref(), Some(point), "{}", self.name);
    }
    /// Starts the keeper and has it die at a point.
    pub fn start_and_die(&mut self, point: &str) {
        self.arm(point);
        self.start();
        self.wait_death(point);
    }

    /// One request to this node's API: status and body.
    pub fn http(&self, request: &[u8]) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.api_port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.set_write_timeout(Some(Duration::from_secs(20)))?;
        // A server that refuses early may close before all was sent; its answer counts.
        let _ = stream.write_all(request);
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer).into_owned();
        let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
        match (status, read) {
            (Some(status), _) => Ok((status, text.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned())),
            (None, Err(error)) => Err(error),
            (None, Ok(_)) => Err(std::io::Error::other(format!("no answer: {text:?}"))),
        }
    }
    /// The status as this node sees it.
    pub fn status(&self) -> Result<ClusterStatus, String> {
        let request = "GET /v1/status HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
        let (_, body) = self.http(request.as_bytes()).map_err(|error| error.to_string())?;
        serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))
    }
    /// Waits until `found` holds for this node's view of the cluster.
    pub fn wait_status(&self, what: &str, found: impl Fn(&ClusterStatus) -> bool) -> ClusterStatus {
        wait_for(&format!("{what} at {}", self.name), || {
            let status = self.status()?;
            if found(&status) { Ok(status) } else { Err(summary(&status)) }
        })
    }
    /// Waits until a primary takes writes.
    pub fn wait_primary(&self) {
        self.wait_status("a primary", |status| status.primary_up);
    }
    /// Waits until all is proved to work, with so many nodes, and each of them votes: who takes one away right after
    /// the last became active would otherwise take the majority of a group in which that one does not vote yet.
    pub fn wait_healthy(&self, count: usize) -> ClusterStatus {
        self.wait_status(&format!("{count} healthy nodes"), |status| {
            status.verdict == Verdict::Healthy
                && status.nodes.len() == count
                && status.nodes.iter().all(|node| node.healthy && node.stage == "active" && node.keeper_up)
                && status.operation.is_none()
                && status.consensus.voters.len() == count.min(model::limits::CONSENSUS_VOTERS_MAX)
        })
    }
    /// Waits until all is proved to work, and says who is primary.
    pub fn wait_whole(&self, count: usize) -> String {
        let status = self.wait_healthy(count);
        status.primary.expect("a healthy cluster has a primary").to_string()
    }
    /// The process of the keeper, while it runs.
    pub fn keeper_pid(&self) -> Option<i32> {
        self.keeper.as_ref().and_then(|keeper| i32::try_from(keeper.id()).ok())
    }
    /// Where clients find its database, with the superuser's password.
    pub fn uri(&self) -> String {
        let text = std::fs::read_to_string(self.state_dir.join("credentials.json")).expect("credentials");
        let credentials: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let password = credentials["postgres"].as_str().unwrap_or_default();
        format!("postgresql://postgres:{password}@127.0.0.1:{}/postgres", self.postgres_port)
    }
    /// Its database, for clients.
    pub fn database(&self) -> Database {
        Database { port: self.postgres_port, credentials: self.state_dir.join("credentials.json") }
    }
    /// Runs statements in this node's database; the rows as text.
    pub fn sql(&self, statements: &str) -> Result<Vec<Vec<String>>, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let client = self.database().connect().await?;
            let messages = client.simple_query(statements).await.map_err(|error| format!("{error:?}"))?;
            let mut rows = Vec::new();
            for message in messages {
                if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                    rows.push((0..row.len()).map(|at| row.get(at).unwrap_or_default().to_owned()).collect());
                }
            }
            Ok(rows)
        })
    }
}

/// How a client reaches a database.
#[derive(Clone, Debug)]
pub struct Database {
    port: u16,
    credentials: PathBuf,
}

impl Database {
    async fn connect(&self) -> Result<tokio_postgres::Client, String> {
        let credentials = std::fs::read(&self.credentials).map_err(|error| error.to_string())?;
        let credentials: serde_json::Value = serde_json::from_slice(&credentials).map_err(|error| error.to_string())?;
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").dbname("postgres");
        config.password(credentials["postgres"].as_str().unwrap_or_default());
        config.connect_timeout(Duration::from_secs(5));
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.map_err(|error| format!("{error:?}"))?;
        tokio::spawn(connection);
        Ok(client)
    }
}

/// Writes rows until told to stop; connects anew whenever something fails.
async fn write(database: &Database, stop: &AtomicBool, acknowledged: &Mutex<Vec<i64>>) {
    let mut id = 0i64;
    while !stop.load(Ordering::SeqCst) {
        let Ok(client) = database.connect().await else {
            tokio::time::sleep(POLL).await;
            continue;
        };
        while !stop.load(Ordering::SeqCst) {
            id += 1;
            let statement = format!("INSERT INTO ledger VALUES ({id})");
            // A commit may wait for replicas that are down; what never ends is not acknowledged.
            match tokio::time::timeout(Duration::from_secs(5), client.simple_query(&statement)).await {
                Ok(Ok(_)) => acknowledged.lock().expect("nobody panics with it").push(id),
                Ok(Err(_)) | Err(_) => break,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A status in a few lines, for messages.
pub fn summary(status: &ClusterStatus) -> String {
    let node = |node: &NodeStatus| {
        format!(
            "{} {} {} up={} healthy={} link={:?} doing={:?}",
            node.name, node.stage, node.server, node.keeper_up, node.healthy, node.link, node.doing
        )
    };
    let nodes: Vec<String> = status.nodes.iter().map(node).collect();
    let problems: Vec<String> =
        status.problems.iter().map(|problem| format!("{} {} {}", problem.code, problem.what, problem.cause)).collect();
    format!(
        "{} {}\n  {}\n  {}\n  {:?} {:?} {:?}",
        status.verdict.as_str(),
        status.sentence,
        nodes.join("\n  "),
        problems.join("\n  "),
        status.durability,
        status.operation,
        status.consensus
    )
}

/// Rows written without pause, and which of them were acknowledged.
pub struct Ledger {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<Vec<i64>>>,
    writer: Option<JoinHandle<()>>,
}

impl Ledger {
    /// Begins to write to the database of `primary`, one row after the other, until `finish`.
    pub fn start(primary: &Node) -> Ledger {
        primary.sql("CREATE TABLE ledger (id bigint PRIMARY KEY)").expect("a table");
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let (stopped, noted) = (stop.clone(), acknowledged.clone());
        let database = primary.database();
        let writer = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(write(&database, &stopped, &noted));
        });
        Ledger { stop, acknowledged, writer: Some(writer) }
    }

    /// Ends the writing and checks that each of `nodes` holds every acknowledged row. Returns how many there were.
    pub fn finish(mut self, nodes: &[&Node]) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(writer) = self.writer.take() {
            writer.join().expect("the writer ends well");
        }
        let acknowledged = self.acknowledged.lock().expect("the writer has ended").clone();
        assert!(!acknowledged.is_empty(), "the ledger is empty");
        for node in nodes {
            wait_for(&format!("all rows on {}", node.name), || {
                let rows = node.sql("SELECT id FROM ledger")?;
                let held: std::collections::BTreeSet<i64> =
                    rows.iter().filter_map(|row| row.first()?.parse().ok()).collect();
                let missing: Vec<&i64> = acknowledged.iter().filter(|id| !held.contains(id)).take(5).collect();
                if missing.is_empty() { Ok(()) } else { Err(format!("rows {missing:?} are missing")) }
            });
        }
        acknowledged.len()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

/// A small disk of its own.
pub struct Disk {
    /// Where it is mounted.
    pub dir: PathBuf,
}

impl Disk {
    /// Mounts one in a new directory; `None` where this machine refuses to.
    pub fn mount(dir: PathBuf) -> Option<Disk> {
        std::fs::create_dir(&dir).expect("made");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=200m,mode=0755", "none"]).arg(&dir);
        let mounted = mount.stderr(Stdio::null()).status();
        if !mounted.is_ok_and(|status| status.success()) {
            return None;
        }
        if let Some(user) = server_user() {
            nix::unistd::chown(&dir, Some(user.uid), Some(user.gid)).expect("we are root");
        }
        Some(Disk { dir })
    }
    /// Leaves no room on it.
    pub fn fill(&self) {
        let block = vec![1u8; 1 << 20];
        let mut file = std::fs::File::create(self.dir.join("filler")).expect("made");
        while file.write_all(&block).is_ok() {}
    }
    /// Takes `fill` back.
    pub fn make_room(&self) {
        std::fs::remove_file(self.dir.join("filler")).expect("removed");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.dir).status();
    }
}
