//! Clusters whose state is in an etcd.

use anyhow::{Result, bail, ensure};
use e2e::manual::{Extra, Node, Place, connect, is_healthy, postmaster, problem, wait_for};
use e2e::ports::free_port;
use e2e::program;
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// One etcd of its own.
struct Etcd {
    child: Option<Child>,
    directory: tempfile::TempDir,
    client: u16,
    peer: u16,
}

impl Etcd {
    fn start() -> Etcd {
        let directory = tempfile::tempdir().expect("a directory");
        let mut etcd = Etcd { child: None, directory, client: free_port(), peer: free_port() };
        etcd.again();
        etcd
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    fn again(&mut self) {
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.peer));
        let mut command = Command::new("etcd");
        command.args(["--name", "one", "--data-dir"]).arg(self.directory.path().join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("one={peer}")]).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().expect("etcd is installed"));
        wait_for("etcd", || Ok(std::net::TcpStream::connect(("127.0.0.1", self.client))?));
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("gone");
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A sandbox, removed at the end.
struct Sandbox {
    place: Place,
}

impl Sandbox {
    fn stemma(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = Command::new(program());
        command.args(arguments).args(["-o", "json"]).env("STEMMA_SANDBOX", self.place.path().join("sb"));
        let output = command.stdin(Stdio::null()).output()?;
        if output.status.success() || !output.stdout.is_empty() && arguments == ["status"] {
            return Ok(serde_json::from_slice(&output.stdout)?);
        }
        bail!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    fn status(&self) -> Result<Value> {
        let document = self.stemma(&["status"])?;
        Ok(if document["status"].is_object() { document["status"].clone() } else { document })
    }

    fn wait(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || {
            let status = self.status()?;
            if fits(&status) { Ok(status) } else { bail!("{status:#}") }
        })
    }

    fn home(&self, node: &str) -> std::path::PathBuf {
        self.place.path().join("sb").join(node)
    }

    fn password(&self, node: &str) -> String {
        let text = std::fs::read_to_string(self.home(node).join("state/credentials.json")).expect("credentials");
        let document: Value = serde_json::from_str(&text).expect("JSON");
        document["postgres"].as_str().expect("a password").to_owned()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = self.stemma(&["sandbox", "stop", "--purge"]);
    }
}

fn port_of(data_dir: &Path) -> u16 {
    let text = std::fs::read_to_string(data_dir.join("postmaster.pid")).expect("a server");
    text.lines().nth(3).expect("a port").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_on_etcd_is_built_changed_and_outlives_its_store() {
    let mut etcd = Etcd::start();
    let sandbox = Sandbox { place: Place::new() };
    let started = ["sandbox", "start", "--consensus", "etcd", "--etcd-endpoints", &etcd.url()];
    sandbox.stemma(&started).unwrap_or_else(|error| panic!("{error:#}"));
    let status = sandbox.wait("health", |status| is_healthy(status, 3));
    assert_eq!(status["consensus"]["kind"], "etcd", "{status:#}");
    sandbox.stemma(&["config", "set", "postgresql.parameters.work_mem=6MB", "--yes"]).expect("settings apply");
    let primary = status["primary"].as_str().expect("a primary").to_owned();
    let (data_dir, password) = (sandbox.home(&primary).join("data"), sandbox.password(&primary));
    let client = connect(port_of(&data_dir), "postgres", &password).await.expect("log in");
    client.batch_execute("CREATE TABLE rows (id int)").await.expect("a table");
    wait_for("the setting", || {
        let row = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(client.query_one("SHOW work_mem", &[]))
        })?;
        ensure!(row.get::<_, &str>(0) == "6MB", "not yet");
        Ok(())
    });

    etcd.kill();
    let down = sandbox.wait("that the store is down", |status| problem(status, "ST2105").is_some());
    assert_eq!(down["primary_up"], true, "{down:#}");
    // Semi-synchronous commits go on: who must confirm was decided before.
    client.execute("INSERT INTO rows VALUES (1)", &[]).await.expect("the cluster serves without its store");
    let refused = sandbox.stemma(&["config", "set", "postgresql.parameters.work_mem=5MB", "--yes"]);
    let refused = format!("{:#}", refused.expect_err("nothing can be decided"));
    assert!(refused.contains("ST2105"), "{refused}");

    // A keeper that starts meanwhile runs, leaves its server alone, and goes on when the store is back.
    let pid = postmaster(&data_dir).expect("runs");
    sandbox.stemma(&["sandbox", "restart", &primary]).expect("restarted");
    client.execute("INSERT INTO rows VALUES (2)", &[]).await.expect("served without a keeper");
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(postmaster(&data_dir).expect("runs"), pid);

    etcd.again();
    sandbox.wait("health again", |status| is_healthy(status, 3) && problem(status, "ST2105").is_none());
    assert_eq!(postmaster(&data_dir).expect("runs"), pid, "the server ran all the time");
    sandbox.stemma(&["config", "set", "postgresql.parameters.work_mem=5MB", "--yes"]).expect("decided again");
    client.execute("INSERT INTO rows VALUES (3)", &[]).await.expect("one connection all the way");
}

#[test]
fn two_clusters_share_an_etcd_and_a_prefix_serves_only_one() {
    let mut etcd = Etcd::start();
    let place = Place::new();
    let url = etcd.url();
    let etcd_section = |more: &str| Extra {
        sections: format!("[consensus]\nkind = \"etcd\"\nendpoints = [\"{url}\"]\n{more}\n"),
        ..Extra::default()
    };
    let node = |name: &str, more: &str| {
        Node::with(&place, name, Some((&place.path().join(name).join("data"), free_port())), &etcd_section(more))
    };
    let (mut a, mut b, mut thief) = (node("a", ""), node("b", ""), node("c", "prefix = \"/stemma/one\""));
    a.text(&["init", "--name", "one"]).expect("made");
    b.text(&["init", "--name", "two"]).expect("made");
    // The first state waits for a store that is down.
    etcd.kill();
    a.run();
    wait_for("the keeper's word", || {
        ensure!(a.said().contains("first state is not stored yet"), "{}", a.said());
        Ok(())
    });
    etcd.again();
    b.run();
    a.wait_status("health", |status| is_healthy(status, 1) && status["cluster"] == "one");
    b.wait_status("health", |status| is_healthy(status, 1) && status["cluster"] == "two");
    thief.text(&["init", "--name", "three"]).expect("only files are written");
    thief.run();
    assert_ne!(thief.wait_for_end(), Some(0));
    assert!(thief.said().contains("ST1208"), "{}", thief.said());
    // A node that joins takes the prefix from the cluster and the endpoints from its own file.
    let mut second = node("d", "");
    a.admit(&mut second, "replica", &[]);
    a.wait_status("health of two", |status| is_healthy(status, 2));
}
