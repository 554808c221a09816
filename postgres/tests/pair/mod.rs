//! Two real servers that change places: one is the primary, the other its replica, promoted by hand.
//!
//! Shared by several tests, none of which uses all of it.

#![allow(dead_code)]

#[path = "../../../e2e/src/ports.rs"]
mod ports;

use model::NodeName;
use model::observe::CloneProgress;
use postgres::replication::Endpoint;
use postgres::{
    OsUser, Server, ServerConfig, ServerRole, ServerSpec, Sql, StopMode, find_installation, server_processes,
    server_user, write_config,
};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub const SOON: Duration = Duration::from_secs(60);
const PASSWORD: &str = "it's a secret";

/// One server in a directory of its own.
pub struct Node {
    pub spec: ServerSpec,
    pub config: ServerConfig,
    pub server: Option<Server>,
    pub sql: Sql,
}

/// Both, killed and removed at the end.
pub struct Pair {
    pub old: Node,
    pub new: Node,
    pub directory: tempfile::TempDir,
}

fn give(path: &Path, user: Option<&OsUser>) {
    if let Some(user) = user {
        chown(path, Some(user.uid), Some(user.gid)).expect("chown");
    }
}

/// Waits until a condition holds.
pub async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let end = tokio::time::Instant::now() + SOON;
    while !condition().await {
        assert!(tokio::time::Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

impl Node {
    fn new(root: &Path, name: &str, bin_dir: Option<&Path>, parameters: &[(&str, &str)]) -> Node {
        let home = root.join(name);
        fs::create_dir(&home).expect("mkdir");
        let user = server_user(None).expect("a user for the server");
        give(&home, user.as_ref());
        let port = ports::free_port();
        let spec = ServerSpec {
            installation: find_installation(bin_dir).expect("server programs"),
            data_dir: home.join("data"),
            user,
            listen: "127.0.0.1".into(),
            port,
            socket_dirs_beside: Vec::new(),
            socket_dir: postgres::socket_dir_for(&home),
            log_file: home.join("server.log"),
            superuser: "stemma".into(),
            superuser_password: PASSWORD.into(),
            tls_files: None,
        };
        let all = [("shared_buffers", "16MB"), ("max_connections", "20"), ("fsync", "off"), ("autovacuum", "off")];
        let names = ["n1", "n2"].map(|name| name.parse::<NodeName>().expect("a name"));
        let config = ServerConfig {
            members: names.to_vec(),
            parameters: all.iter().chain(parameters).map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            hba_users: Vec::new(),
            synchronous_standby_names: String::new(),
            role: ServerRole::Primary,
            tls: false,
            followers: Vec::new(),
            keeper_user: None,
            replication_hba: Vec::new(),
        };
        let sql = Sql::new(&spec);
        Node { spec, config, server: None, sql }
    }

    pub async fn start(&mut self, role: ServerRole) {
        self.config.role = role;
        write_config(&self.spec, &self.config).expect("configuration");
        let server = Server::start(&self.spec).await.expect("start");
        until("ready", async || {
            let log = || postgres::server_log_tail(&self.spec, 3000);
            let ready = self.sql.ready().await.is_ok();
            assert!(ready || server.is_alive(), "ended instead of answering; it said:\n{}", log());
            ready
        })
        .await;
        self.server = Some(server);
    }

    /// Has the running server take up what `config` says.
    pub async fn reconfigure(&self) {
        write_config(&self.spec, &self.config).expect("configuration");
        self.server.as_ref().expect("runs").reload().expect("reload");
        let names = &self.config.synchronous_standby_names;
        self.sql.wait_setting("synchronous_standby_names", names, SOON).await.expect("taken up");
    }

    pub async fn stop(&mut self) {
        self.server.take().expect("runs").stop(StopMode::Fast, SOON).await.expect("stop");
    }

    /// As a machine dies: without a word.
    pub async fn kill(&mut self) {
        self.server = None;
        postgres::kill_everything(&self.spec, SOON).await.expect("killed");
    }

    pub async fn run(&self, sql: &str) {
        self.sql
            .execute(&format!("SET search_path = public; {sql}"))
            .await
            .unwrap_or_else(|trouble| panic!("{sql}: {trouble}"));
    }

    pub async fn ask(&self, sql: &str) -> Vec<String> {
        let rows = self
            .sql
            .query_text(&format!("SET search_path = public; {sql}"))
            .await
            .unwrap_or_else(|trouble| panic!("{sql}: {trouble}"));
        rows.into_iter()
            .map(|row| row.into_iter().map(Option::unwrap_or_default).collect::<Vec<_>>().join("|"))
            .collect()
    }

    /// A connection of a client's own.
    pub async fn client(&self, database: &str) -> tokio_postgres::Client {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.spec.socket_dir).port(self.spec.port).dbname(database);
        config.user(&self.spec.superuser).password(PASSWORD);
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.expect("connected");
        tokio::spawn(connection);
        client
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            host: "127.0.0.1".into(),
            port: self.spec.port,
            user: "stemma_replication".into(),
            password: Some(PASSWORD.into()),
            tls: None,
            application_name: "comeback_test".into(),
        }
    }

    pub fn follower(&self) -> ServerRole {
        let password = PASSWORD.replace('\'', "\\'");
        ServerRole::Replica {
            primary_conninfo: format!(
                "host=127.0.0.1 port={} user=stemma_replication sslmode=disable password='{password}'",
                self.spec.port
            ),
            primary_slot_name: None,
            apply_delay_ms: 0,
        }
    }
}

impl Pair {
    /// A primary and a replica of it, in step.
    pub async fn new(parameters: &[(&str, &str)], checksums: bool) -> Pair {
        Pair::with_programs(None, parameters, checksums).await
    }

    pub async fn with_programs(bin_dir: Option<&Path>, parameters: &[(&str, &str)], checksums: bool) -> Pair {
        let directory = tempfile::Builder::new().prefix("stemma-pair").tempdir_in("/tmp").expect("tempdir");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let old = Node::new(directory.path(), "n1", bin_dir, parameters);
        let new = Node::new(directory.path(), "n2", bin_dir, parameters);
        let mut pair = Pair { old, new, directory };
        postgres::initdb(&pair.old.spec, "owner", checksums, &|_| {}).await.expect("initdb");
        pair.old.start(ServerRole::Primary).await;
        let secret = || PASSWORD.to_owned();
        let secrets = model::state::Secrets {
            ca_certificates: Vec::new(),
            ca_key: String::new(),
            superuser_password: secret(),
            replication_password: secret(),
            postgres_password: "owner".into(),
            name_salt: "salt".into(),
            upstream: None,
        };
        pair.old.sql.ensure_roles(&secrets).await.expect("roles");
        pair.clone_new().await;
        let follower = pair.old.follower();
        pair.new.start(follower).await;
        pair
    }

    async fn clone_new(&self) {
        let options = postgres::clone::CloneOptions {
            data_dir: self.new.spec.data_dir.clone(),
            owner: self.new.spec.user.clone(),
            rate_bytes_per_s: 0,
            expect_system_id: None,
            expect_major: None,
            label: "test".into(),
            tablespace_root: None,
            fsync: false,
            slot: None,
        };
        let progress = watch::channel(CloneProgress::default()).0;
        postgres::clone::run(&self.old.endpoint(), &options, progress, CancellationToken::new()).await.expect("clone");
    }

    /// Waits until the replica has replayed everything.
    pub async fn in_step(&self) {
        let at = self.old.ask("SELECT pg_current_wal_lsn()").await.remove(0);
        until("in step", async || self.new.ask(&format!("SELECT pg_last_wal_replay_lsn() >= '{at}'")).await == ["t"])
            .await;
    }

    /// The replica is cut off and promoted; the old primary goes on without knowing.
    pub async fn part(&mut self) {
        self.in_step().await;
        // Nothing of what the old primary writes from here on arrives.
        let new = &mut self.new;
        new.stop().await;
        let alone = ServerRole::Replica { primary_conninfo: String::new(), primary_slot_name: None, apply_delay_ms: 0 };
        new.start(alone).await;
        new.sql.promote().await.expect("promotion");
        until("promoted", async || new.ask("SELECT pg_is_in_recovery()").await == ["f"]).await;
    }

    /// The old primary follows the new one, and both hold the same rows of `t`.
    pub async fn reunited(&mut self) {
        let follower = self.new.follower();
        self.old.start(follower).await;
        self.new.run("INSERT INTO t VALUES (1000, 'after') ON CONFLICT (id) DO UPDATE SET v = 'again'").await;
        let all = "SELECT * FROM t ORDER BY 1";
        let wanted = self.new.ask(all).await;
        until("the same rows", async || self.old.ask(all).await == wanted).await;
        assert_eq!(self.old.ask("SELECT pg_is_in_recovery()").await, ["t"]);
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for node in [&self.old, &self.new] {
            for pid in server_processes(&node.spec.data_dir) {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).output();
            }
        }
    }
}
