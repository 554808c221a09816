//! A cluster of Debian's Patroni with etcd, three nodes on this machine, to measure the same faults with the same clients.
//! Configured as its documentation says, with synchronous mode, so that both promise the same.

use crate::manual::{kill_servers_below, processes_below};
use crate::net::{http, wait_for};
use crate::ports::free_port;
use anyhow::{Context, Result, anyhow, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(240);
const PASSWORD: &str = "bench";

/// Its three times, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    ttl: u32,
    loop_wait: u32,
    retry_timeout: u32,
}

impl Timings {
    /// As installed.
    pub const DEFAULT: Timings = Timings { ttl: 30, loop_wait: 10, retry_timeout: 10 };
    /// The least that its documentation allows.
    pub const MINIMUM: Timings = Timings { ttl: 20, loop_wait: 1, retry_timeout: 3 };
}

struct Member {
    rest: u16,
    postgres: u16,
    home: PathBuf,
    process: Option<Child>,
}

/// The cluster, stopped and removed on drop.
pub struct Patroni {
    members: BTreeMap<String, Member>,
    etcd: Child,
    directory: tempfile::TempDir,
}

/// Why it cannot be measured here.
pub fn missing() -> Option<String> {
    let absent = |program: &&str| {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        !std::env::split_paths(&paths).any(|dir| dir.join(program).exists())
    };
    let absent: Vec<&str> = ["patroni", "etcd", "patronictl"].into_iter().filter(absent).collect();
    (!absent.is_empty()).then(|| format!("{} not installed (apt-get install patroni etcd-server)", absent.join(", ")))
}

impl Patroni {
    /// Builds one, with these times.
    pub fn start(timings: Timings) -> Result<Patroni> {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::Builder::new().prefix("stemma-patroni-").tempdir_in("/tmp")?;
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755))?;
        let client = free_port();
        let etcd = start_etcd(directory.path(), client)?;
        let mut patroni = Patroni { members: BTreeMap::new(), etcd, directory };
        for name in ["n1", "n2", "n3"] {
            let home = patroni.directory.path().join(name);
            std::fs::create_dir(&home)?;
            if let Some(user) = crate::faults::server_user() {
                nix::unistd::chown(&home, Some(user.uid), Some(user.gid))?;
            }
            let member = Member { rest: free_port(), postgres: free_port(), home, process: None };
            std::fs::write(member.home.join("patroni.yml"), configuration(name, &member, client, timings))?;
            patroni.members.insert(name.to_owned(), member);
            patroni.run(name)?;
            // The first makes the database, the others copy it.
            wait_for(&format!("patroni of {name}"), PATIENCE, || patroni.answers(name));
        }
        Ok(patroni)
    }

    fn member(&self, name: &str) -> &Member {
        &self.members[name]
    }

    /// Starts a node's daemon.
    pub fn run(&mut self, name: &str) -> Result<()> {
        let member = self.members.get_mut(name).context("a node")?;
        let log = std::fs::File::options().create(true).append(true).open(member.home.join("patroni.log"))?;
        let mut command = as_server("patroni");
        command.arg(member.home.join("patroni.yml")).current_dir(&member.home).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        member.process = Some(command.spawn()?);
        Ok(())
    }

    fn answers(&self, name: &str) -> Result<()> {
        let answer = http("GET", &format!("127.0.0.1:{}", self.member(name).rest), "/health", None, None)?;
        ensure!(answer.status == 200, "{}", answer.body);
        Ok(())
    }

    /// Where clients connect.
    pub fn servers(&self) -> Vec<String> {
        let uri = |member: &Member| format!("postgresql://postgres:{PASSWORD}@127.0.0.1:{}/postgres", member.postgres);
        self.members.values().map(uri).collect()
    }

    /// Waits until all nodes stream and one of them is synchronous, as each node sees it, and says who leads.
    pub fn settled(&self) -> String {
        wait_for("a whole Patroni cluster", PATIENCE, || {
            let leaders: Vec<String> =
                self.members.values().map(|member| self.leader_seen_by(member)).collect::<Result<_>>()?;
            ensure!(leaders.iter().all(|leader| *leader == leaders[0]), "they name {leaders:?}");
            leaders.into_iter().next().ok_or_else(|| anyhow!("no members"))
        })
    }

    fn leader_seen_by(&self, member: &Member) -> Result<String> {
        let answer = http("GET", &format!("127.0.0.1:{}", member.rest), "/cluster", None, None)?;
        let document = answer.json();
        let members = document["members"].as_array().ok_or_else(|| anyhow!("{}", answer.body))?;
        // Debian's 3.0 says `running` of replicas, later ones `streaming`.
        let fit = members.iter().filter(|it| it["state"] == "running" || it["state"] == "streaming").count();
        ensure!(fit == self.members.len(), "{}", answer.body);
        ensure!(members.iter().any(|it| it["role"] == "sync_standby"), "{}", answer.body);
        ensure!(members.iter().all(|it| it["timeline"] == members[0]["timeline"]), "{}", answer.body);
        let leader = members.iter().find(|it| it["role"] == "leader").and_then(|it| it["name"].as_str());
        leader.map(str::to_owned).ok_or_else(|| anyhow!("{}", answer.body))
    }

    /// `kill -9` of all processes of a node's server.
    pub fn crash_server(&self, name: &str) {
        let data = self.member(name).home.join("data");
        for pid in processes_below(&data) {
            crate::net::signal(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
    /// `kill -9` of a node's daemon and server.
    pub fn crash_host(&mut self, name: &str) {
        if let Some(mut process) = self.members.get_mut(name).and_then(|member| member.process.take()) {
            let _ = process.kill();
            let _ = process.wait();
        }
        self.crash_server(name);
    }
    /// A planned change of primary.
    pub fn switchover(&self, from: &str, to: &str) -> Result<()> {
        let mut command = Command::new("patronictl");
        command.arg("-c").arg(self.member(from).home.join("patroni.yml"));
        command.args(["switchover", "--master", from, "--candidate", to, "--force", "bench"]);
        let output = command.stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

impl Drop for Patroni {
    fn drop(&mut self) {
        for member in self.members.values_mut() {
            if let Some(mut process) = member.process.take() {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
        kill_servers_below(self.directory.path());
        let _ = self.etcd.kill();
        let _ = self.etcd.wait();
    }
}

/// A program as the user that owns the servers.
fn as_server(program: &str) -> Command {
    if !nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", program]);
    command
}

fn start_etcd(directory: &Path, client: u16) -> Result<Child> {
    let (client_url, peer_url) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{}", free_port()));
    let mut command = Command::new("etcd");
    command.args(["--name", "one", "--data-dir"]).arg(directory.join("etcd"));
    command.args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url]);
    command.args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url]);
    command.args(["--initial-cluster", &format!("one={peer_url}")]);
    let etcd = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    wait_for("etcd", PATIENCE, || Ok(std::net::TcpStream::connect(("127.0.0.1", client)).map(drop)?));
    Ok(etcd)
}

fn configuration(name: &str, member: &Member, etcd: u16, timings: Timings) -> String {
    let Member { rest, postgres, home, .. } = member;
    let Timings { ttl, loop_wait, retry_timeout } = timings;
    let (home, bin) = (home.display(), crate::postgresql::major_bin(15));
    let bin = bin.display();
    format!(
        r#"scope: bench
name: {name}
restapi:
  listen: 127.0.0.1:{rest}
  connect_address: 127.0.0.1:{rest}
etcd3:
  host: 127.0.0.1:{etcd}
bootstrap:
  dcs:
    ttl: {ttl}
    loop_wait: {loop_wait}
    retry_timeout: {retry_timeout}
    maximum_lag_on_failover: 1048576
    synchronous_mode: true
    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters:
        wal_log_hints: "on"
  initdb:
    - encoding: UTF8
    - data-checksums
postgresql:
  listen: 127.0.0.1:{postgres}
  connect_address: 127.0.0.1:{postgres}
  data_dir: {home}/data
  bin_dir: {bin}
  pgpass: {home}/pgpass
  authentication:
    superuser: {{username: postgres, password: {PASSWORD}}}
    replication: {{username: replicator, password: {PASSWORD}}}
    rewind: {{username: rewinder, password: {PASSWORD}}}
  parameters:
    unix_socket_directories: {home}
  pg_hba:
    - local all all trust
    - host all all 127.0.0.1/32 scram-sha-256
    - host replication replicator 127.0.0.1/32 scram-sha-256
"#
    )
}
