//! Nodes made by hand, as the documents tell people to: a directory and a node file each, `stemma init`, `stemma run`,
//! `stemma token create` and `stemma join`. Everything that was started ends with its value, also when a test panics.

use crate::ports::free_port;
use crate::program;
use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Waits until `look` gives something; panics with what it said last.
pub fn wait_for<T>(what: &str, look: impl FnMut() -> Result<T>) -> T {
    wait_within(DEADLINE, what, look)
}

/// As `wait_for`, with another deadline.
pub fn wait_within<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Result<T>) -> T {
    let until = Instant::now() + deadline;
    loop {
        match look() {
            Ok(found) => return found,
            Err(error) if Instant::now() >= until => panic!("{what} did not happen: {error:#}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Whether we are root, and servers run as `postgres`.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A directory under /tmp that every user may pass through, removed at the end with all servers in it.
pub struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    /// An empty one.
    pub fn new() -> Place {
        let directory = tempfile::Builder::new().prefix("stemma-e2e-").tempdir_in("/tmp").expect("a directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("opened");
        Place { directory }
    }
    /// Its path.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Default for Place {
    fn default() -> Place {
        Place::new()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        kill_servers_below(self.path());
    }
}

/// Kills every server that works below a directory, and waits until it is gone.
pub fn kill_servers_below(path: &Path) {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let living = processes_below(path);
        if living.is_empty() || Instant::now() > until {
            return;
        }
        for pid in living {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processes whose working directory is below `path`.
pub fn processes_below(path: &Path) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(path)))
        .collect()
}

/// The process id of the postmaster of a data directory.
pub fn postmaster(data_dir: &Path) -> Result<i32> {
    let text = fs::read_to_string(data_dir.join("postmaster.pid"))?;
    let pid = text.lines().next().unwrap_or_default().trim().parse()?;
    if !Path::new(&format!("/proc/{pid}")).exists() {
        bail!("postmaster {pid} is gone");
    }
    Ok(pid)
}

/// One node: its directory, node file and, once it runs, its keeper.
pub struct Node {
    /// Name.
    pub name: String,
    /// Its own directory.
    pub home: PathBuf,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Port of its server.
    pub port: u16,
    /// Port of its API.
    pub api_port: u16,
    /// Port of its keeper.
    pub peer_port: u16,
    keeper: Option<Child>,
}

/// What a node file says beyond names, ports and directories.
#[derive(Clone, Default)]
pub struct Extra {
    /// Lines under `[postgresql]`.
    pub postgresql: String,
    /// Lines under `[keeper]`.
    pub keeper: String,
    /// Further sections.
    pub sections: String,
}

impl Node {
    /// A node with a database in a directory of its own.
    pub fn new(place: &Place, name: &str) -> Node {
        let home = place.path().join(name);
        let data_dir = home.join("data");
        Node::with(place, name, Some((&data_dir, free_port())), &Extra::default())
    }

    /// A node without a database.
    pub fn witness(place: &Place, name: &str) -> Node {
        Node::with(place, name, None, &Extra::default())
    }

    /// A node whose database is in `data_dir` on a given port; a witness without these.
    pub fn with(place: &Place, name: &str, database: Option<(&Path, u16)>, extra: &Extra) -> Node {
        let home = place.path().join(name);
        fs::create_dir_all(home.join("state")).expect("a directory");
        fs::set_permissions(home.join("state"), fs::Permissions::from_mode(0o711)).expect("closed");
        if is_root() {
            let user = nix::unistd::User::from_name("postgres").ok().flatten().expect("a user postgres");
            nix::unistd::chown(&home, Some(user.uid), Some(user.gid)).expect("given away");
        }
        let (peer_port, api_port) = (free_port(), free_port());
        let mut text = format!(
            "name = \"{name}\"\nstate_dir = \"{0}/state\"\n\n[keeper]\nlisten = \"127.0.0.1:{peer_port}\"\n{1}\n\
             [api]\nlisten = \"127.0.0.1:{api_port}\"\n\n{2}\n",
            home.display(),
            extra.keeper,
            extra.sections
        );
        let (data_dir, port) = match database {
            Some((data_dir, port)) => {
                text.push_str(&format!(
                    "[postgresql]\ndata_dir = \"{}\"\nlisten = \"127.0.0.1\"\nport = {port}\n{}\n",
                    data_dir.display(),
                    extra.postgresql
                ));
                (data_dir.to_owned(), port)
            }
            None => (home.join("none"), 0),
        };
        fs::write(home.join("node.toml"), text).expect("node file");
        Node { name: name.to_owned(), home, data_dir, port, api_port, peer_port, keeper: None }
    }

    /// The node file.
    pub fn config(&self) -> PathBuf {
        self.home.join("node.toml")
    }

    /// A command of the program for this node.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments).arg("--config").arg(self.config()).stdin(Stdio::null());
        for name in ["STEMMA_API", "STEMMA_TOKEN_FILE", "STEMMA_SANDBOX", "NOTIFY_SOCKET"] {
            command.env_remove(name);
        }
        command
    }

    /// Runs a command to its end.
    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program runs")
    }

    /// What a command that ends well prints.
    pub fn text(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments);
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout)?);
        }
        bail!(
            "stemma {}: {}{}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    }

    /// A command that must end well; tried again while the cluster comes up.
    pub fn eventually(&self, arguments: &[&str]) -> String {
        wait_for(&format!("stemma {}", arguments.join(" ")), || self.text(arguments))
    }

    /// The code and exit status of a command that must fail, with all that it said.
    pub fn refusal(&self, arguments: &[&str]) -> (String, i32, String) {
        let mut with_json = arguments.to_vec();
        with_json.extend(["-o", "json"]);
        let output = self.output(&with_json);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!output.status.success(), "stemma {} ended well: {text}", arguments.join(" "));
        let document: Value = serde_json::from_str(&text)
            .unwrap_or_else(|_| panic!("no JSON: {text}{}", String::from_utf8_lossy(&output.stderr)));
        let code = document["error"]["code"].as_str().unwrap_or_default().to_owned();
        (code, output.status.code().unwrap_or(-1), text)
    }

    /// Starts the keeper.
    pub fn run(&mut self) {
        let command = self.command(&["run"]);
        self.run_as(command);
    }

    /// Starts the keeper by this command.
    pub fn run_as(&mut self, mut command: Command) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log()).expect("a log");
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        self.keeper = Some(command.spawn().expect("the keeper starts"));
    }

    /// The keeper's log.
    pub fn log(&self) -> PathBuf {
        self.home.join("keeper.log")
    }

    /// What the keeper has said.
    pub fn said(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// The keeper's process id.
    pub fn keeper_pid(&self) -> i32 {
        i32::try_from(self.keeper.as_ref().expect("the keeper runs").id()).expect("a pid")
    }

    /// Sends the keeper a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.keeper_pid()), signal).expect("signalled");
    }

    /// Asks the keeper to end and gives its exit status.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.wait_for_end()
    }

    /// Waits until the keeper has ended by itself.
    pub fn wait_for_end(&mut self) -> Option<i32> {
        let mut child = self.keeper.take().expect("the keeper runs");
        wait_for("the keeper's end", || child.try_wait()?.context("still runs")).code()
    }

    /// Kills the keeper.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.keeper.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The judged status.
    pub fn status(&self) -> Result<Value> {
        let output = self.output(&["status", "-o", "json"]);
        let document: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        Ok(if document["status"].is_object() { document["status"].clone() } else { document })
    }

    /// Waits for a status that fits.
    pub fn wait_status(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || {
            let status = self.status()?;
            if fits(&status) { Ok(status) } else { bail!("{status:#}\n{}", tail(&self.said())) }
        })
    }

    /// Brings `other` in with a fresh token and starts its keeper.
    pub fn admit(&self, other: &mut Node, role: &str, options: &[&str]) {
        let created = self.eventually(&["token", "create", "--role", role, "-o", "json"]);
        let document: Value = serde_json::from_str(&created).expect("JSON");
        let token = document["token"].as_str().expect("a token").to_owned();
        let mut arguments = vec!["join", &token, "--role", role];
        arguments.extend(options);
        other.text(&arguments).unwrap_or_else(|error| panic!("{error:#}"));
        other.run();
    }

    /// Password of `postgres` in a cluster that was not adopted.
    pub fn password(&self) -> String {
        let text = fs::read_to_string(self.home.join("state/credentials.json")).expect("credentials");
        let document: Value = serde_json::from_str(&text).expect("JSON");
        document["postgres"].as_str().expect("a password").to_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- keeper of {}:\n{}", self.name, tail(&self.said()));
        }
        self.kill();
        // A database that was there before the node is its place's to end.
        kill_servers_below(&self.home);
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// Whether the status says that all is well, with so many nodes.
pub fn is_healthy(status: &Value, nodes: usize) -> bool {
    status["verdict"] == "healthy" && status["nodes"].as_array().is_some_and(|found| found.len() == nodes)
}

/// The problem with this code, if the status has one.
pub fn problem<'v>(status: &'v Value, code: &str) -> Option<&'v Value> {
    status["problems"].as_array()?.iter().find(|problem| problem["code"] == code)
}

/// A connection to a server on this machine.
pub async fn connect(port: u16, user: &str, password: &str) -> Result<tokio_postgres::Client> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(port).user(user).password(password).dbname("postgres");
    config.connect_timeout(Duration::from_secs(5));
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
