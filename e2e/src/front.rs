//! A `stemma router` of its own before a cluster.

use crate::Cluster;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls};

const PATIENCE: Duration = Duration::from_secs(120);

/// A `stemma router`, ended when dropped.
#[derive(Debug)]
pub struct Front {
    process: Child,
    /// Where it listens.
    pub port: u16,
    password: String,
    _room: tempfile::TempDir,
}

impl Drop for Front {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Front {
    /// Before a cluster, for its superuser.
    pub async fn before(cluster: &Cluster, keys: &str) -> Front {
        use std::os::unix::fs::PermissionsExt;
        let room = tempfile::tempdir().expect("a directory");
        let uri: tokio_postgres::Config = cluster.node("n1").uri.parse().expect("a URI");
        let password = String::from_utf8(uri.get_password().expect("a password").to_vec()).expect("text");
        let users = room.path().join("users.txt");
        std::fs::write(&users, format!("\"postgres\" \"{password}\"\n")).expect("written");
        std::fs::set_permissions(&users, std::fs::Permissions::from_mode(0o600)).expect("mode");
        let port = crate::ports::free_port();
        let nodes: Vec<String> =
            cluster.nodes.values().map(|node| format!("\"http://127.0.0.1:{}\"", node.api_port)).collect();
        let file = room.path().join("router.toml");
        let text = format!(
            "nodes = [{}]\n[router]\nlisten = \"127.0.0.1:{port}\"\nusers_file = \"{}\"\nhold = \"60s\"\n{keys}\n",
            nodes.join(", "),
            users.display()
        );
        std::fs::write(&file, text).expect("written");
        let log = match std::env::var_os("STEMMA_FRONT_LOG") {
            Some(path) => std::fs::File::options().append(true).create(true).open(path),
            None => std::fs::File::create(room.path().join("log")),
        };
        let log = log.expect("a log");
        let process = Command::new(crate::program())
            .arg("--config")
            .arg(&file)
            .arg("router")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the router starts");
        Front { process, port, password, _room: room }
    }

    /// How its clients connect.
    pub fn options(&self) -> tokio_postgres::Config {
        let mut options = tokio_postgres::Config::new();
        options.host("127.0.0.1").port(self.port).user("postgres").password(&self.password).dbname("postgres");
        options
    }

    /// A client, logged in.
    pub async fn client(&self) -> Client {
        let options = self.options();
        let began = Instant::now();
        loop {
            match options.connect(NoTls).await {
                Ok((client, connection)) => {
                    tokio::spawn(connection);
                    return client;
                }
                Err(error) => assert!(began.elapsed() < PATIENCE, "the router lets nobody in: {error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
