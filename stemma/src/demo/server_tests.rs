//! The load and the proof against one real server.

use super::load::{Ledger, Load, connect};
use super::proof::prove;
use crate::sandbox::layout::{Layout, SandboxNode};
use crate::sandbox::processes::{server_processes, signal, wait_until};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, User, chown};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// A server that ends with the test.
struct Server {
    process: Child,
    directory: tempfile::TempDir,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        for pid in server_processes(&self.directory.path().join("data")) {
            let _ = signal(pid, Signal::SIGKILL);
        }
        let _ = self.process.wait();
    }
}

fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).max().expect("a version")
}

/// As the user of the server; tests may run as root, PostgreSQL may not.
fn as_server_user(program: &Path, user: Option<(Uid, Gid)>) -> Command {
    let mut command = Command::new(program);
    if let Some((uid, gid)) = user {
        command.uid(uid.as_raw()).gid(gid.as_raw());
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn start() -> Server {
    let directory = tempfile::tempdir().expect("a directory");
    let found = || User::from_name("postgres").ok().flatten().expect("a user postgres");
    let user = Uid::effective().is_root().then(found).map(|user| (user.uid, user.gid));
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).expect("our own directory");
    if let Some((uid, gid)) = user {
        chown(directory.path(), Some(uid), Some(gid)).expect("our own directory");
    }
    let data = directory.path().join("data");
    let mut initdb = as_server_user(&programs().join("initdb"), user);
    initdb.args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"]).arg(&data).current_dir("/");
    assert!(initdb.status().expect("initdb starts").success());
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let mut postgres = as_server_user(&programs().join("postgres"), user);
    postgres.arg("-D").arg(&data).args([
        "-c",
        "fsync=off",
        "-c",
        "shared_buffers=8MB",
        "-c",
        "listen_addresses=127.0.0.1",
    ]);
    postgres.args([
        "-c",
        &format!("port={port}"),
        "-c",
        &format!("unix_socket_directories={}", directory.path().display()),
    ]);
    let process = postgres.current_dir("/").spawn().expect("postgres starts");
    Server { process, directory, port }
}

fn layout_of(server: &Server) -> Layout {
    let home = server.directory.path().to_owned();
    let node = SandboxNode {
        name: "n1".parse().expect("a name"),
        witness: false,
        upstream: None,
        config: home.join("node.toml"),
        state_dir: home.join("state"),
        data_dir: home.join("data"),
        log: home.join("log"),
        directory: home.clone(),
        peer_port: 1,
        api_port: 2,
        postgresql_port: server.port,
        keeper: None,
    };
    Layout::new("demo".parse().expect("a name"), home, vec![node])
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_rows_are_found_and_a_lost_one_is_noticed() {
    let server = start();
    let layout = layout_of(&server);
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(&layout, ledger.clone(), Some("n1".to_owned())).await.expect("the server comes up");
    assert!(wait_until(Duration::from_secs(30), || ledger.count() >= 200).await, "{} rows", ledger.count());
    load.stop().await;
    let acknowledged = ledger.acknowledged();

    let proof = prove(&layout, Some("n1".to_owned()), acknowledged.clone(), ledger.unknown()).await.expect("asked");
    assert!(proof.holds(), "{proof:?}");
    assert_eq!((proof.acknowledged, proof.unknown), (acknowledged.len() as u64, 0));

    let client = connect(&layout.nodes[0].uri("postgres").expect("a database")).await.expect("connected");
    client.execute("DELETE FROM demo WHERE id = $1", &[&acknowledged[7]]).await.expect("deleted");
    let proof = prove(&layout, Some("n1".to_owned()), acknowledged.clone(), 0).await.expect("asked");
    assert!(!proof.holds());
    assert_eq!(proof.nodes[0].first_missing, [acknowledged[7]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_survive_the_loss_of_their_connections() {
    let server = start();
    let layout = layout_of(&server);
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(&layout, ledger.clone(), Some("n1".to_owned())).await.expect("the server comes up");
    assert!(wait_until(Duration::from_secs(30), || ledger.count() >= 50).await);
    let client = connect(&layout.nodes[0].uri("postgres").expect("a database")).await.expect("connected");
    let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'";
    client.query_one(cut, &[]).await.expect("cut off");
    let before = ledger.count();
    assert!(wait_until(Duration::from_secs(30), || ledger.count() >= before + 50).await, "writers came back");
    load.stop().await;
    let proof = prove(&layout, Some("n1".to_owned()), ledger.acknowledged(), ledger.unknown()).await.expect("asked");
    assert!(proof.holds(), "{proof:?}");
}
