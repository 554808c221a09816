//! The store in a real etcd, started by each test on free ports.

#[path = "../../e2e/src/ports.rs"]
mod ports;

use consensus::contract::{self, until};
use consensus::etcd::{Etcd, EtcdConfig};
use consensus::{Consensus, StoreError, WriteError};
use model::units::Millis;
use ports::free_port;
use serde_json::json;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Server {
    child: Child,
    directory: tempfile::TempDir,
    client: u16,
    peer: u16,
}

fn install_provider() {
    // Every test of this process may be the first.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
}

fn spawn(directory: &tempfile::TempDir, client: u16, peer: u16) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    Command::new("etcd")
        .args(["--name", "one", "--data-dir"])
        .arg(directory.path().join("data"))
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("one={peer}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd is installed")
}

impl Server {
    /// A running server. Between looking for a free port and taking it another test may be faster: then once more.
    async fn start() -> Server {
        install_provider();
        for _ in 0..5 {
            let directory = tempfile::tempdir().expect("temporary directory");
            let (client, peer) = (free_port(), free_port());
            let mut server = Server { child: spawn(&directory, client, peer), directory, client, peer };
            if server.answers().await {
                return server;
            }
        }
        panic!("etcd does not start");
    }

    async fn answers(&mut self) -> bool {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
        while tokio::time::Instant::now() < deadline {
            if self.child.try_wait().expect("the child can be looked at").is_some() {
                return false;
            }
            if Etcd::connect(self.config()).await.is_ok() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    async fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.directory, self.client, self.peer);
        assert!(self.answers().await, "etcd comes back");
    }

    fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("gone");
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    fn config(&self) -> EtcdConfig {
        EtcdConfig::new(vec![self.url()], "/stemma/test/")
    }

    /// What an operator would do with etcdctl.
    async fn administer(&self, method: &str, body: serde_json::Value) {
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let answer = client.post(format!("{}/v3/auth/{method}", self.url())).json(&body).send().await.expect("sent");
        let (status, text) = (answer.status(), answer.text().await.expect("answered"));
        assert!(status.is_success(), "{method}: {status} {text}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_keeps_the_contract() {
    let server = Server::start().await;
    contract::suite(|| async {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            let node = Etcd::connect(server.config()).await.expect("connected");
            nodes.push(node as Arc<dyn Consensus>);
        }
        nodes
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prefixes_keep_clusters_apart() {
    let server = Server::start().await;
    let one = Etcd::connect(server.config()).await.expect("connected");
    let other = EtcdConfig { prefix: "/stemma/other/".into(), ..server.config() };
    let other = Etcd::connect(other).await.expect("connected");
    assert_eq!(one.write("cluster", 0, b"one".to_vec()).await, Ok(1));
    assert_eq!(other.read("cluster").await, Ok(None));
    assert_eq!(other.write("cluster", 0, b"other".to_vec()).await, Ok(1));
    assert_eq!(one.read("cluster").await.expect("read").expect("there").body.to_vec(), b"one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_is_passed_over() {
    let server = Server::start().await;
    let dead = format!("http://127.0.0.1:{}", free_port());
    let config = EtcdConfig { endpoints: vec![dead, format!("{}/", server.url())], ..server.config() };
    let store = Etcd::connect(config).await.expect("connected through the living one");
    assert_eq!(store.write("cluster", 0, b"x".to_vec()).await, Ok(1));
    assert_eq!(store.read("cluster").await.expect("read").expect("there").version, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_etcd_is_away_nothing_is_written_and_afterwards_watchers_go_on() {
    let mut server = Server::start().await;
    let config = EtcdConfig { request_timeout: Millis(2_000), ..server.config() };
    let store = Etcd::connect(config).await.expect("connected");
    assert_eq!(store.write("cluster", 0, b"before".to_vec()).await, Ok(1));
    let mut watcher = store.watch("cluster");
    until("it is up", || store.view().up).await;

    server.kill();
    assert!(matches!(store.read("cluster").await, Err(StoreError::NoQuorum { .. })));
    let refused = store.write("cluster", 1, b"meanwhile".to_vec()).await;
    assert!(matches!(refused, Err(WriteError::Store(StoreError::NoQuorum { .. }))), "{refused:?}");
    until("it is seen to be down", || !store.view().up).await;
    assert_eq!(watcher.borrow_and_update().as_ref().expect("still known").version, 1);

    server.restart().await;
    let other = Etcd::connect(server.config()).await.expect("connected");
    assert_eq!(other.write("cluster", 1, b"after".to_vec()).await, Ok(2));
    let told = watcher.wait_for(|held| held.as_ref().is_some_and(|document| document.version == 2));
    tokio::time::timeout(Duration::from_secs(20), told).await.expect("told in time").expect("the store runs");
    until("it is up again", || store.view().up).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_is_logged_in_and_logged_in_again_when_etcd_forgets() {
    let mut server = Server::start().await;
    server.administer("user/add", json!({"name": "root", "password": "secret"})).await;
    server.administer("role/add", json!({"name": "root"})).await;
    server.administer("user/grant", json!({"user": "root", "role": "root"})).await;
    let config = EtcdConfig { user: Some("root".into()), password: Some("secret".into()), ..server.config() };
    let early = Etcd::connect(config.clone()).await.expect("connected before authentication is on");
    assert_eq!(early.write("cluster", 0, b"open".to_vec()).await, Ok(1));
    server.administer("enable", json!({})).await;

    let store = Etcd::connect(config.clone()).await.expect("connected");
    assert_eq!(store.write("cluster", 1, b"a".to_vec()).await, Ok(2));
    assert_eq!(early.write("cluster", 2, b"b".to_vec()).await, Ok(3), "it logs in once that is asked for");
    server.restart().await;
    assert_eq!(store.write("cluster", 3, b"c".to_vec()).await, Ok(4), "its old token is worth nothing now");
    let mut watcher = store.watch("cluster");
    assert_eq!(early.write("cluster", 4, b"d".to_vec()).await, Ok(5));
    let told = watcher.wait_for(|held| held.as_ref().is_some_and(|document| document.version == 5));
    tokio::time::timeout(Duration::from_secs(20), told).await.expect("told in time").expect("the store runs");

    let wrong = EtcdConfig { password: Some("wrong".into()), ..config };
    let wrong = Etcd::connect(wrong).await.expect("the version is told to everybody");
    assert!(matches!(wrong.read("cluster").await, Err(StoreError::Unavailable { .. })));
    let anonymous = Etcd::connect(server.config()).await.expect("the version is told to everybody");
    let refused = anonymous.write("cluster", 5, b"no".to_vec()).await;
    assert!(matches!(refused, Err(WriteError::Store(StoreError::Unavailable { .. }))), "{refused:?}");
}

/// Passes requests on to etcd, and hangs up instead of passing back the answer to a transaction.
async fn forgetful_proxy(server: u16) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut upstream = tokio::net::TcpStream::connect(("127.0.0.1", server)).await.expect("etcd is there");
                let (mut asked, mut answered) = (vec![0; 65_536], vec![0; 65_536]);
                let mut forgetting = false;
                loop {
                    tokio::select! {
                        read = client.read(&mut asked) => match read {
                            Ok(length @ 1..) => {
                                let text = String::from_utf8_lossy(&asked[..length]);
                                forgetting |= text.contains("/kv/txn");
                                upstream.write_all(&asked[..length]).await.expect("passed on");
                            }
                            Ok(0) | Err(_) => return,
                        },
                        read = upstream.read(&mut answered) => match read {
                            Ok(length @ 1..) if !forgetting => {
                                if client.write_all(&answered[..length]).await.is_err() {
                                    return;
                                }
                            }
                            Ok(_) | Err(_) => return,
                        },
                    }
                }
            });
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_leaves_the_outcome_unknown_and_the_write_is_not_sent_again() {
    let server = Server::start().await;
    let proxy = forgetful_proxy(server.client).await;
    let config = EtcdConfig { endpoints: vec![proxy, server.url()], ..server.config() };
    let store = Etcd::connect(config).await.expect("connected");
    let outcome = store.write("cluster", 0, b"perhaps".to_vec()).await;
    assert!(matches!(outcome, Err(WriteError::Unknown { .. })), "{outcome:?}");
    let there = store.read("cluster").await.expect("read").expect("it was written after all");
    assert_eq!((there.version, there.body.to_vec()), (1, b"perhaps".to_vec()));
}

#[tokio::test]
async fn nonsense_endpoints_are_refused() {
    install_provider();
    for endpoints in [vec![], vec!["127.0.0.1:2379".to_owned()]] {
        let refused = Etcd::connect(EtcdConfig::new(endpoints, "/")).await;
        assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    }
    let nobody = EtcdConfig::new(vec![format!("http://127.0.0.1:{}", free_port())], "/");
    assert!(matches!(Etcd::connect(nobody).await, Err(StoreError::NoQuorum { .. })));
}
