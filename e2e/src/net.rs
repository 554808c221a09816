//! Clusters of real servers for tests that look at what is shown of them: sandboxes, and clusters whose nodes live in
//! network namespaces of their own, so that a cable can be pulled. Everything is taken down again on drop.

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a condition may take to come true on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(100);
/// How long one answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Clusters that one test program runs at the same time: more of them starve each other on two cores.
const CLUSTERS_MAX: u32 = 2;

/// The program under test, built if it was not yet.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        if let Some(given) = std::env::var_os("STEMMA_BIN") {
            return PathBuf::from(given);
        }
        let test = std::env::current_exe().expect("a test knows where it is");
        let directory = test.ancestors().nth(2).expect("target/<profile>/deps/<test>").to_owned();
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--package", "stemma"]);
        if directory.ends_with("release") {
            build.arg("--release");
        }
        let target = directory.parent().expect("target directory");
        let built = build.arg("--target-dir").arg(target).current_dir(env!("CARGO_MANIFEST_DIR")).status();
        assert!(built.expect("cargo runs").success(), "stemma is built");
        directory.join("stemma")
    })
}

/// An answer of the HTTP API.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header lines, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.body))
    }
}

/// One HTTP request; `authority` is `host:port`.
pub fn http(method: &str, authority: &str, path: &str, token: Option<&str>, body: Option<&Value>) -> Result<Answer> {
    let address = authority.parse().with_context(|| authority.to_owned())?;
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIMEOUT)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         {authorization}Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| anyhow!("no HTTP answer: {text}"))?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let headers = lines.filter_map(|line| line.split_once(':'));
    Ok(Answer {
        status: status.ok_or_else(|| anyhow!("no status in {head}"))?,
        headers: headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect(),
        body: body.to_owned(),
    })
}

/// Asks until there is an answer; panics with the last thing seen when it takes too long.
pub fn wait_for<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Result<T>) -> T {
    let end = Instant::now() + patience;
    loop {
        match look() {
            Ok(found) => return found,
            Err(error) if Instant::now() > end => panic!("not within {patience:?}: {what}; last: {error:#}"),
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// One node of a cluster under test.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// `host:port` of the API.
    pub api: String,
    /// `host` and port of the database; port 0 for a witness.
    pub postgres: (String, u16),
    /// Password of `postgres`.
    pub password: String,
    /// Data directory.
    pub data_dir: PathBuf,
    /// The keeper's own directory.
    pub state_dir: PathBuf,
    /// Node file.
    pub config: PathBuf,
    /// The keeper's log.
    pub log: PathBuf,
}

impl Node {
    /// The API's bearer token.
    pub fn token(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.state_dir.join("api.token"))?.trim().to_owned())
    }
    /// GET.
    pub fn get(&self, path: &str) -> Result<Answer> {
        http("GET", &self.api, path, None, None)
    }
    /// The status code of a health check, asked by GET, HEAD and OPTIONS, which must agree.
    pub fn health(&self, path: &str) -> Result<u16> {
        let answers: Vec<Answer> = ["GET", "HEAD", "OPTIONS"]
            .into_iter()
            .map(|method| http(method, &self.api, path, None, None))
            .collect::<Result<_>>()?;
        let codes: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        ensure!(codes.iter().all(|code| *code == codes[0]), "{} {path}: GET, HEAD, OPTIONS say {codes:?}", self.name);
        ensure!(answers[1].body.is_empty() && answers[2].body.is_empty(), "{path}: only GET has a body");
        Ok(codes[0])
    }
    /// POST with credentials.
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        http("POST", &self.api, path, Some(&self.token()?), Some(body))
    }
    /// The judged status as this node sees it.
    pub fn status(&self) -> Result<Value> {
        let answer = self.get("/v1/status")?;
        ensure!(answer.status == 200, "/v1/status of {}: {} {}", self.name, answer.status, answer.body);
        Ok(serde_json::from_str(&answer.body)?)
    }
    /// One node in this node's view.
    pub fn sees(&self, name: &str) -> Result<Value> {
        let status = self.status()?;
        node_of(&status, name).cloned().ok_or_else(|| anyhow!("{name} is not in {status}"))
    }
    /// A connection to the database as superuser.
    pub fn sql(&self) -> Result<Sql> {
        Sql::open(&self.postgres.0, self.postgres.1, &self.password)
    }
    /// One statement; the first column of its first row.
    pub fn value(&self, statement: &str) -> Result<String> {
        self.sql()?.value(statement)
    }
    /// The process of the server.
    pub fn postmaster(&self) -> Result<i32> {
        let file = std::fs::read_to_string(self.data_dir.join("postmaster.pid"))?;
        Ok(file.lines().next().unwrap_or_default().trim().parse()?)
    }
    /// Whether a server process is there.
    pub fn server_runs(&self) -> bool {
        self.postmaster().is_ok_and(alive)
    }
    /// Every process of the server, orphans included.
    pub fn server_processes(&self) -> Vec<i32> {
        crate::faults::processes_below(&self.data_dir)
    }
    /// The address of the database, with the superuser's password.
    pub fn uri(&self) -> String {
        let (host, port) = &self.postgres;
        format!("postgresql://postgres:{}@{host}:{port}/postgres", self.password)
    }
    /// A child of the server whose title contains `what`, for example `startup`.
    pub fn server_process(&self, what: &str) -> Result<i32> {
        let postmaster = self.postmaster()?;
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<i32>().ok());
            let title = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if parent == Some(postmaster) && String::from_utf8_lossy(&title).contains(what) {
                return Ok(pid);
            }
        }
        bail!("{} has no process `{what}`", self.name)
    }
}

/// Whether a process is there and not a zombie.
pub fn alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Sends a signal to one process.
pub fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
}

/// A node in a status document.
pub fn node_of<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["nodes"].as_array()?.iter().find(|node| node["name"] == name)
}

/// The problem with this code about this node, if there is one.
pub fn problem_of(status: &Value, code: &str, node: &str) -> Option<Value> {
    let is = |problem: &&Value| problem["code"] == code && problem["node"] == node;
    status["problems"].as_array()?.iter().find(is).cloned()
}

/// A connection to a database.
pub struct Sql {
    runtime: tokio::runtime::Runtime,
    client: tokio_postgres::Client,
}

impl Sql {
    /// Opens one.
    pub fn open(host: &str, port: u16, password: &str) -> Result<Sql> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let config =
            format!("host={host} port={port} user=postgres password={password} dbname=postgres connect_timeout=5");
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&config, tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            anyhow::Ok(client)
        })?;
        Ok(Sql { runtime, client })
    }
    /// Runs statements; the rows as text.
    pub fn rows(&self, statement: &str) -> Result<Vec<Vec<Option<String>>>> {
        let messages = self.runtime.block_on(async {
            tokio::time::timeout(PATIENCE, self.client.simple_query(statement))
                .await
                .map_err(|_| anyhow!("no answer to {statement}"))?
                .map_err(|error| anyhow!("{error}: {:?} ({statement})", error.as_db_error().map(|db| db.message())))
        })?;
        let mut rows = Vec::new();
        for message in messages {
            if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                rows.push((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect());
            }
        }
        Ok(rows)
    }
    /// The first column of the first row; empty for NULL or none.
    pub fn value(&self, statement: &str) -> Result<String> {
        let rows = self.rows(statement)?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next().flatten()).unwrap_or_default())
    }
}

/// What a run of the program said.
#[derive(Debug)]
pub struct Said {
    /// Exit status.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Said {
        Said {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Said {
    /// The output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

/// One of `CLUSTERS_MAX` places; waits until one is free.
struct Place;

static PLACES: (Mutex<u32>, Condvar) = (Mutex::new(0), Condvar::new());

impl Place {
    fn take() -> Place {
        let mut taken = PLACES.0.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken >= CLUSTERS_MAX {
            taken = PLACES.1.wait(taken).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += 1;
        Place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *PLACES.0.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        PLACES.1.notify_one();
    }
}

/// A directory that the server's user can reach, with a name of its own.
fn new_directory(what: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    PathBuf::from(format!("/tmp/stemma-{what}-{}-{count}", std::process::id()))
}

/// A sandbox of real servers.
pub struct Sandbox {
    /// Its directory.
    pub dir: PathBuf,
    nodes: BTreeMap<String, Node>,
    _place: Place,
}

impl Sandbox {
    /// Builds one with these options of `stemma sandbox start`.
    pub fn start(options: &[&str]) -> Sandbox {
        let place = Place::take();
        let mut sandbox = Sandbox { dir: new_directory("views"), nodes: BTreeMap::new(), _place: place };
        let dir = sandbox.dir.display().to_string();
        let mut command = Command::new(program());
        command.args(["sandbox", "start", "--dir", &dir, "-o", "json"]).args(options).stdin(Stdio::null());
        let said = Said::from(command.output().expect("stemma runs"));
        assert_eq!(said.code, 0, "the sandbox starts: {said:?}");
        for node in said.json()["nodes"].as_array().expect("nodes") {
            let text = |key: &str| node[key].as_str().unwrap_or_default().to_owned();
            let uri = text("uri");
            let password = uri.split_once("postgres:").and_then(|(_, rest)| rest.split_once('@'));
            let port = u16::try_from(node["postgresql_port"].as_u64().unwrap_or(0)).expect("a port");
            let made = Node {
                name: text("name"),
                api: text("api").replace("http://", ""),
                postgres: ("127.0.0.1".to_owned(), port),
                password: password.map(|(password, _)| password.to_owned()).unwrap_or_default(),
                data_dir: text("data_dir").into(),
                state_dir: text("state_dir").into(),
                config: text("config").into(),
                log: text("log").into(),
            };
            sandbox.nodes.insert(made.name.clone(), made);
        }
        sandbox
    }
    /// A node.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.get(name).unwrap_or_else(|| panic!("no node {name}"))
    }
    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }
    /// Runs `stemma --sandbox DIR ...`.
    pub fn stemma(&self, arguments: &[&str]) -> Said {
        let mut command = Command::new(program());
        command.arg("--sandbox").arg(&self.dir).args(arguments).stdin(Stdio::null());
        Said::from(command.output().expect("stemma runs"))
    }
    /// `stemma sandbox ...` that must succeed.
    pub fn act(&self, arguments: &[&str]) {
        let said = self.stemma(&[&["sandbox"], arguments].concat());
        assert_eq!(said.code, 0, "{arguments:?}: {said:?}");
    }
    /// Waits until `observer` says what is wanted of the cluster.
    pub fn wait<T>(&self, what: &str, observer: &str, look: impl Fn(&Value) -> Option<T>) -> T {
        let node = self.node(observer);
        wait_for(what, PATIENCE, || {
            let status = node.status()?;
            look(&status).ok_or_else(|| anyhow!("{status:#}"))
        })
    }
    /// Waits until all is well and commits are as safe as they are meant to be.
    pub fn wait_healthy(&self, observer: &str) {
        self.wait("the cluster is healthy", observer, |status| {
            let durability = &status["durability"];
            (status["verdict"] == "healthy" && durability["acks"] == durability["acks_wanted"]).then_some(())
        });
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in self.nodes.values() {
                let log = std::fs::read_to_string(&node.log).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(12).collect();
                eprintln!("--- last lines of the keeper of {}", node.name);
                tail.iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
        let stopped = Command::new(program())
            .args(["sandbox", "stop", "--purge", "--dir"])
            .arg(&self.dir)
            .stdin(Stdio::null())
            .output();
        if let Ok(output) = stopped
            && !output.status.success()
        {
            eprintln!("{} could not be removed: {}", self.dir.display(), String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// A cluster whose nodes have network namespaces of their own, joined by a bridge.
pub struct Wired {
    dir: PathBuf,
    tag: String,
    subnet: String,
    nodes: BTreeMap<String, Node>,
    keepers: BTreeMap<String, std::process::Child>,
    _place: Place,
}

fn ip(arguments: &str) -> Result<String> {
    let output = Command::new("ip").args(arguments.split(' ')).output().context("`ip` of iproute2 is needed")?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

impl Wired {
    /// Builds a cluster of so many data nodes; the error says why namespaces cannot be had.
    pub fn start(count: u8) -> Result<Wired> {
        let place = Place::take();
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = std::process::id();
        let tag = format!("st{id}{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let taken = ip("-4 -o addr show")?;
        let subnet = (0..200)
            .map(|step| format!("10.{}.{}", 100 + (id + step) % 100, (id / 100 + step) % 250))
            .find(|subnet| !taken.contains(&format!(" {subnet}.")))
            .ok_or_else(|| anyhow!("no free subnet"))?;
        let dir = new_directory("wired");
        let mut wired = Wired { dir, tag, subnet, nodes: BTreeMap::new(), keepers: BTreeMap::new(), _place: place };
        wired.wire(count)?;
        wired.form(count);
        Ok(wired)
    }

    fn wire(&mut self, count: u8) -> Result<()> {
        let (tag, subnet) = (self.tag.clone(), self.subnet.clone());
        ip(&format!("link add {tag}b type bridge"))?;
        ip(&format!("addr add {subnet}.254/24 dev {tag}b"))?;
        ip(&format!("link set {tag}b up"))?;
        for number in 1..=count {
            let space = format!("{tag}n{number}");
            ip(&format!("netns add {space}"))?;
            // The cable: one end on the bridge, the other in the namespace.
            ip(&format!("link add {tag}v{number} type veth peer name eth0 netns {space}"))?;
            ip(&format!("link set {tag}v{number} master {tag}b up"))?;
            ip(&format!("-n {space} addr add {subnet}.{number}/24 dev eth0"))?;
            ip(&format!("-n {space} link set eth0 up"))?;
            ip(&format!("-n {space} link set lo up"))?;
        }
        Ok(())
    }

    fn form(&mut self, count: u8) {
        std::fs::create_dir_all(&self.dir).expect("a directory under /tmp");
        open_to_all(&self.dir);
        for number in 1..=count {
            let node = self.describe(number);
            self.nodes.insert(node.name.clone(), node);
        }
        let settings = self.dir.join("settings.toml");
        // The test connects from outside the namespaces, without TLS.
        let text = "[postgresql]\nhba = [\"host all all all scram-sha-256\"]\n";
        std::fs::write(&settings, text).expect("settings are written");
        let settings = settings.display().to_string();
        let said = self.stemma("n1", &["init", "--name", "wired", "--settings", &settings]);
        assert_eq!(said.code, 0, "init: {said:?}");
        self.start_keeper("n1");
        for number in 2..=count {
            let name = format!("n{number}");
            let token = wait_for("a token is made", PATIENCE, || {
                let said = self.stemma("n1", &["token", "create", "-o", "json"]);
                ensure!(said.code == 0, "{said:?}");
                let token = find_token(&said.json());
                token.ok_or_else(|| anyhow!("no token in {said:?}"))
            });
            wait_for("the node joins", PATIENCE, || {
                let said = self.stemma(&name, &["join", &token]);
                ensure!(said.code == 0, "{said:?}");
                Ok(())
            });
            self.start_keeper(&name);
        }
        wait_for("the wired cluster is healthy", PATIENCE, || {
            let status = self.node("n1").status()?;
            let durability = &status["durability"];
            ensure!(status["verdict"] == "healthy" && durability["acks"] == durability["acks_wanted"], "{status:#}");
            ensure!(status["nodes"].as_array().is_some_and(|nodes| nodes.len() == usize::from(count)), "{status:#}");
            Ok(())
        });
        let password = wait_for("the password is written", PATIENCE, || self.password());
        self.nodes.values_mut().for_each(|node| node.password.clone_from(&password));
    }

    fn password(&self) -> Result<String> {
        let file = std::fs::read_to_string(self.node("n1").state_dir.join("credentials.json"))?;
        let document: Value = serde_json::from_str(&file)?;
        document["postgres"].as_str().map(str::to_owned).ok_or_else(|| anyhow!("no password in the credentials"))
    }

    fn describe(&self, number: u8) -> Node {
        let name = format!("n{number}");
        let (dir, host) = (self.dir.join(&name), format!("{}.{number}", self.subnet));
        std::fs::create_dir_all(&dir).expect("a directory for the node");
        open_to_all(&dir);
        let node = Node {
            api: format!("{host}:8008"),
            postgres: (host.clone(), 5432),
            password: String::new(),
            data_dir: dir.join("data"),
            state_dir: dir.join("state"),
            config: dir.join("node.toml"),
            log: dir.join("keeper.log"),
            name,
        };
        let text = format!(
            "name = \"{}\"\nsite = \"local\"\nstate_dir = \"{}\"\n\n[keeper]\nlisten = \"{host}:7432\"\n\n[api]\n\
             listen = \"{host}:8008\"\n\n[postgresql]\ndata_dir = \"{}\"\nlisten = \"{host}\"\nport = 5432\n\
             advertise = \"{host}\"\nrun_as = \"postgres\"\n",
            node.name,
            node.state_dir.display(),
            node.data_dir.display()
        );
        std::fs::write(&node.config, text).expect("the node file is written");
        node
    }

    fn inside(&self, name: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}{name}", self.tag)]).arg(program()).stdin(Stdio::null());
        command
    }

    /// Runs `stemma ... --config` of a node, in its namespace.
    pub fn stemma(&self, name: &str, arguments: &[&str]) -> Said {
        let output = self.inside(name).args(arguments).arg("--config").arg(&self.node(name).config).output();
        Said::from(output.expect("stemma runs"))
    }

    /// Starts a node's keeper.
    pub fn start_keeper(&mut self, name: &str) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.node(name).log).expect("a log");
        let mut command = self.inside(name);
        command.args(["run", "--config"]).arg(&self.node(name).config);
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        let keeper = command.spawn().expect("a keeper starts");
        self.keepers.insert(name.to_owned(), keeper);
    }

    /// A node.
    pub fn node(&self, name: &str) -> &Node {
        self.nodes.get(name).unwrap_or_else(|| panic!("no node {name}"))
    }

    /// Another address of the network that the nodes share.
    pub fn spare_address(&self) -> String {
        format!("{}.200", self.subnet)
    }
    /// What `ip` says in a node's namespace.
    pub fn ip(&self, name: &str, arguments: &str) -> Result<String> {
        ip(&format!("-n {}{name} {arguments}", self.tag))
    }

    fn cable(&self, name: &str) -> String {
        format!("{}v{}", self.tag, name.trim_start_matches('n'))
    }
    /// Pulls the cable of a node: nothing goes in or out, and nobody is told.
    pub fn cut(&self, name: &str) {
        // Taken off the bridge rather than set down: the node's own interface stays up, as with a dead switch.
        ip(&format!("link set {} nomaster", self.cable(name))).expect("a cable can be pulled");
    }
    /// Puts it back.
    pub fn heal(&self, name: &str) {
        ip(&format!("link set {} master {}b", self.cable(name), self.tag)).expect("a cable can be put back");
    }

    /// What `name` sends to `other` gets lost from now on, and nobody is told; what it receives still arrives. `other` is
    /// a node, or `clients` for everybody outside of the namespaces.
    pub fn mute(&self, name: &str, other: &str) {
        // Sent to a hardware address that nobody has: that needs no packet filter, and works on open connections too.
        let neighbour = self.address(other);
        let space = format!("{}{name}", self.tag);
        ip(&format!("-n {space} neigh replace {neighbour} lladdr 02:00:00:00:00:01 nud permanent dev eth0"))
            .expect("packets can be led astray");
    }
    /// Takes `mute` back.
    pub fn unmute(&self, name: &str, other: &str) {
        let space = format!("{}{name}", self.tag);
        // Gone already where the cluster was wired anew.
        let _ = ip(&format!("-n {space} neigh del {} dev eth0", self.address(other)));
    }
    fn address(&self, name: &str) -> String {
        let number = if name == "clients" { "254" } else { name.trim_start_matches('n') };
        format!("{}.{number}", self.subnet)
    }

    /// The process of a node's keeper, while it runs.
    pub fn keeper(&self, name: &str) -> Option<i32> {
        self.keepers.get(name).and_then(|keeper| i32::try_from(keeper.id()).ok())
    }
    /// `kill -9` of a node's keeper. The server goes on.
    pub fn kill_keeper(&mut self, name: &str) {
        if let Some(mut keeper) = self.keepers.remove(name) {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
    }
    /// Names of the nodes.
    pub fn names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }
}

fn find_token(document: &Value) -> Option<String> {
    document["token"].as_str().or_else(|| document["outcome"]["token"].as_str()).map(str::to_owned)
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("own directory");
}

impl Drop for Wired {
    fn drop(&mut self) {
        for node in self.nodes.values() {
            if std::thread::panicking() {
                let log = std::fs::read_to_string(&node.log).unwrap_or_default();
                eprintln!("--- last lines of the keeper of {}", node.name);
                log.lines().rev().take(12).collect::<Vec<_>>().iter().rev().for_each(|line| eprintln!("{line}"));
            }
        }
        // Whatever lives in the namespaces is ours: keepers and servers with all their processes.
        for name in self.nodes.keys() {
            let inside = ip(&format!("netns pids {}{name}", self.tag)).unwrap_or_default();
            for pid in inside.lines().filter_map(|line| line.trim().parse().ok()) {
                signal(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        for keeper in self.keepers.values_mut() {
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
        let count = u8::try_from(self.nodes.len()).unwrap_or(u8::MAX).max(9);
        for number in 1..=count {
            let _ = ip(&format!("netns del {}n{number}", self.tag));
            let _ = ip(&format!("link del {}v{number}", self.tag));
        }
        let _ = ip(&format!("link del {}b", self.tag));
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
