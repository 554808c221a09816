//! Life under a service manager and as a plain user, and nodes that join in every way the command line offers.

use anyhow::{Context as _, bail, ensure};
use e2e::manual::{Extra, Node, Place, connect, is_healthy, is_root, postmaster, wait_for};
use e2e::ports::free_port;
use e2e::program;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

/// What the program says to a service manager.
struct Manager {
    socket: UnixDatagram,
    heard: String,
}

impl Manager {
    fn listen(place: &Place) -> (Manager, std::path::PathBuf) {
        let path = place.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        (Manager { socket, heard: String::new() }, path)
    }

    /// Waits until a word was said, and forgets what was said up to then.
    fn hears(&mut self, word: &str) {
        wait_for(word, || {
            let mut buffer = [0u8; 4096];
            if let Ok(count) = self.socket.recv(&mut buffer) {
                self.heard.push_str(&String::from_utf8_lossy(&buffer[..count]));
                self.heard.push('\n');
            }
            let end = self.heard.find(word).with_context(|| format!("heard {:?}", self.heard))?;
            self.heard.drain(..end + word.len());
            Ok(())
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_manager_is_told_and_the_database_outlives_its_keeper() {
    let place = Place::new();
    let mut n1 = Node::new(&place, "n1");
    n1.text(&["init", "--name", "prod"]).expect("made");
    let (mut manager, socket) = Manager::listen(&place);
    let under_manager = |node: &Node| {
        let mut command = node.command(&["run"]);
        command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "60000000");
        command
    };
    let command = under_manager(&n1);
    n1.run_as(command);
    manager.hears("READY=1");
    manager.hears("WATCHDOG=1");
    n1.wait_status("health", |status| is_healthy(status, 1));
    let pid = postmaster(&n1.data_dir).expect("runs");
    let client = connect(n1.port, "postgres", &n1.password()).await.expect("log in");

    // Reload: what it cannot change is named, what it can change holds from now on, what is wrong changes nothing.
    let text = fs::read_to_string(n1.config()).expect("node file");
    fs::write(n1.config(), text.replace("[api]", "[api]\nadvertise = \"localhost:1\"")).expect("written");
    n1.signal(Signal::SIGHUP);
    manager.hears("RELOADING=1");
    manager.hears("READY=1");
    wait_for("the warning", || {
        let said = n1.said();
        ensure!(said.contains("only after a restart of the keeper") && said.contains("[api]"), "{said}");
        Ok(())
    });
    fs::write(n1.config(), "name = 7").expect("written");
    n1.signal(Signal::SIGHUP);
    manager.hears("READY=1");
    wait_for("the complaint", || {
        ensure!(n1.said().contains("node file not read again"), "{}", n1.said());
        Ok(())
    });
    fs::write(n1.config(), &text).expect("written");

    n1.signal(Signal::SIGTERM);
    manager.hears("STOPPING=1");
    assert_eq!(n1.wait_for_end(), Some(0));
    client.simple_query("SELECT 1").await.expect("the database goes on");
    let command = under_manager(&n1);
    n1.run_as(command);
    manager.hears("READY=1");
    n1.wait_status("health", |status| is_healthy(status, 1));
    client.simple_query("SELECT 1").await.expect("the same connection");
    assert_eq!(postmaster(&n1.data_dir).expect("runs"), pid);

    fs::write(n1.config(), text.replace("[keeper]", "[keeper]\nstop_database = true")).expect("written");
    n1.signal(Signal::SIGHUP);
    manager.hears("RELOADING=1");
    manager.hears("READY=1");
    assert_eq!(n1.stop(), Some(0));
    assert!(postmaster(&n1.data_dir).is_err(), "stopped with its keeper");
    let said = fs::read_to_string(n1.home.join("state/postgresql.log")).expect("the server's log");
    assert!(said.contains("database system is shut down"), "{said}");
}

/// The user id and group id of a user without privileges.
fn nobody() -> nix::unistd::User {
    nix::unistd::User::from_name("nobody").ok().flatten().expect("a user nobody")
}

#[test]
fn a_plain_user_runs_a_sandbox_with_servers_of_his_own() {
    let place = Place::new();
    let home = place.path().join("home");
    fs::create_dir(&home).expect("a directory");
    let mut command = if is_root() {
        let user = nobody();
        nix::unistd::chown(&home, Some(user.uid), Some(user.gid)).expect("given away");
        // The program may lie where a plain user may not go.
        let copy = place.path().join("stemma");
        fs::copy(program(), &copy).expect("copied");
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("executable");
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid));
        command.arg("--clear-groups").arg(copy);
        command
    } else {
        Command::new(program())
    };
    let directory = home.join("sb");
    command.args(["-o", "json", "sandbox", "start", "--dir"]).arg(&directory).current_dir("/");
    command.env("HOME", &home).env_remove("STEMMA_SANDBOX").stdin(Stdio::null());
    let output = command.output().expect("runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let stop = || Command::new(program()).args(["sandbox", "stop", "--purge", "--dir"]).arg(&directory).output();
    let owner = postmaster(&directory.join("n1/data")).map(|pid| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(format!("/proc/{pid}")).expect("a process").uid()
    });
    stop().expect("stopped");
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let expected = if is_root() { nobody().uid } else { nix::unistd::geteuid() };
    assert_eq!(owner.expect("a server"), expected.as_raw());
    assert!(!directory.exists(), "removed");
}

/// The node of this name in a status.
fn node<'v>(status: &'v Value, name: &str) -> &'v Value {
    let nodes = status["nodes"].as_array().expect("nodes");
    nodes.iter().find(|node| node["name"] == name).unwrap_or_else(|| panic!("{name} is missing: {status:#}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_join_as_cascade_witness_standby_and_delayed_replica() {
    let place = Place::new();
    let mut n1 = Node::new(&place, "n1");
    n1.text(&["init", "--name", "prod"]).expect("made");
    n1.run();
    n1.wait_status("a primary", |status| status["primary_up"] == true);
    let (mut n2, mut n3, mut n4) = (Node::new(&place, "n2"), Node::new(&place, "n3"), Node::new(&place, "n4"));
    let mut w1 = Node::witness(&place, "w1");
    n1.admit(&mut n2, "replica", &["--kind", "standby"]);
    n1.admit(&mut n3, "replica", &["--from", "n2"]);
    n1.admit(&mut n4, "replica", &["--kind", "delayed", "--delay", "10min"]);
    n1.admit(&mut w1, "witness", &[]);
    let status =
        n1.wait_status("health of five", |status| is_healthy(status, 5) && node(status, "n3")["upstream"] == "n2");
    assert_eq!(node(&status, "w1")["role"], "witness", "{status:#}");
    assert_eq!(node(&status, "n2")["kind"], "standby", "{status:#}");
    assert_eq!(node(&status, "n4")["kind"], "delayed", "{status:#}");
    let password = n1.password();
    let client = connect(n1.port, "postgres", &password).await.expect("log in");
    let (direct, late) = (
        connect(n3.port, "postgres", &password).await.expect("log in to the cascade"),
        connect(n4.port, "postgres", &password).await.expect("log in to the delayed replica"),
    );
    let has = |client: &tokio_postgres::Client| {
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current()
                .block_on(client.query_one("SELECT to_regclass('seen') IS NOT NULL", &[]))
                .map(|row| row.get::<_, bool>(0))
        })
    };
    // A copy follows first, and falls behind on purpose from then on.
    wait_for("the delay", || {
        let row = tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(late.query_one("SHOW recovery_min_apply_delay", &[]))
        })?;
        ensure!(row.get::<_, &str>(0) == "10min", "no delay yet");
        Ok(())
    });
    client.batch_execute("CREATE TABLE seen (id int)").await.expect("a table");
    wait_for("the table on the cascade", || if has(&direct)? { Ok(()) } else { bail!("not yet") });
    assert!(!has(&late).expect("asked"), "a delayed replica shows it in ten minutes");

    // What does not fit is said before anything is written.
    let mut wrong =
        Node::with(&place, "wrong", Some((&place.path().join("wrong/data"), free_port())), &Extra::default());
    let token = |role: &str| {
        let created = n1.eventually(&["token", "create", "--role", role, "-o", "json"]);
        let document: Value = serde_json::from_str(&created).expect("JSON");
        document["token"].as_str().expect("a token").to_owned()
    };
    let replica = token("replica");
    assert_eq!(wrong.refusal(&["join", &replica, "--role", "witness"]).0, "ST1001");
    assert_eq!(wrong.refusal(&["join", &replica, "--kind", "delayed"]).0, "ST1001");
    assert_eq!(wrong.refusal(&["join", &replica, "--from", "n9"]).0, "ST2101");
    assert_eq!(wrong.refusal(&["join", &replica, "--from", "w1"]).0, "ST2111");
    assert_eq!(wrong.refusal(&["join", &token("witness")]).0, "ST8001");
    // The token was not spent by the refusals.
    wrong.text(&["join", &replica, "--from", "n3"]).expect("joined");
    wrong.run();
    n1.wait_status("health of six", |status| is_healthy(status, 6));
}
