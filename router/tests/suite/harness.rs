//! Throw-away PostgreSQL servers with a router before them; gone when dropped.

#[path = "../../../e2e/src/ports.rs"]
mod ports;

pub use ports::free_port;
use router::config::{ClientAuth, PoolMode};
use router::topology::Primary;
use router::{Config, NodeAddr, Router, Topology};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_postgres::{Client, NoTls};

pub const PATIENCE: Duration = Duration::from_secs(60);
pub const PASSWORD: &str = "secret of the tests";
const LIFE: &str = "SELECT pg_stat_get_bgwriter_stat_reset_time()";

pub fn command(program: &str) -> Command {
    let mut command = Command::new(Path::new("/usr/lib/postgresql/15/bin").join(program));
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").expect("passwd readable").expect("user postgres");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.current_dir("/").env("PGPASSWORD", PASSWORD).env("PGCONNECT_TIMEOUT", "10");
    command
}

pub fn run(command: &mut Command) -> String {
    let output = command.output().expect("program starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A server in a directory of its own. Passwords are asked for by SCRAM-SHA-256.
pub struct Server {
    pub port: u16,
    pub data_dir: PathBuf,
    child: Option<Child>,
    _room: tempfile::TempDir,
}

impl Server {
    pub fn new() -> Server {
        let room = tempfile::Builder::new().prefix("stemma-router-").tempdir().expect("temporary directory");
        fs::set_permissions(room.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        let password_file = room.path().join("password");
        fs::write(&password_file, PASSWORD).expect("written");
        if nix::unistd::geteuid().is_root() {
            let user = nix::unistd::User::from_name("postgres").expect("passwd readable").expect("user postgres");
            for path in [room.path(), &password_file] {
                chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("owner");
            }
        }
        let data_dir = room.path().join("data");
        let mut initdb = command("initdb");
        initdb.args(["-N", "-U", "postgres", "-A", "scram-sha-256", "--locale=C", "-E", "UTF8"]);
        run(initdb.arg("--pwfile").arg(&password_file).arg("-D").arg(&data_dir));
        let settings = "fsync = off\nshared_buffers = 16MB\nmax_wal_size = 128MB\nlog_statement = 'none'\n";
        let mut conf = fs::read_to_string(data_dir.join("postgresql.conf")).expect("read");
        conf.push_str(settings);
        fs::write(data_dir.join("postgresql.conf"), conf).expect("written");
        let mut server = Server { port: 0, data_dir, child: None, _room: room };
        server.start();
        server
    }

    /// Restarts with these lines in its configuration.
    #[allow(dead_code, reason = "not every test program does")]
    pub fn set(&mut self, lines: &str) {
        self.kill();
        let conf = self.data_dir.join("postgresql.conf");
        let text = fs::read_to_string(&conf).expect("read") + lines;
        fs::write(&conf, text).expect("written");
        self.start();
    }

    /// Restarts believing whoever connects.
    pub fn believe(&mut self) {
        self.let_in("host all all 127.0.0.1/32 trust\n");
    }

    /// Restarts with these lines of `pg_hba.conf`.
    pub fn let_in(&mut self, lines: &str) {
        self.kill();
        fs::write(self.data_dir.join("pg_hba.conf"), lines).expect("written");
        self.start();
    }

    pub fn start(&mut self) {
        // Another process may take the free port before the server does; then a new one is tried.
        for _attempt in 0..5 {
            if self.port == 0 {
                self.port = free_port();
            }
            let log = fs::File::create(self.data_dir.with_extension("log")).expect("log file");
            let mut postgres = command("postgres");
            postgres.arg("-D").arg(&self.data_dir).args(["-p", &self.port.to_string(), "-h", "127.0.0.1", "-k"]);
            postgres.arg(&self.data_dir);
            postgres.stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
            self.child = Some(postgres.spawn().expect("postgres starts"));
            let mut alive = true;
            wait_for("the server to answer", || {
                alive = self.child.as_mut().expect("started").try_wait().expect("waitable").is_none();
                let mut ready = command("pg_isready");
                ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
                !alive || ready.status().expect("pg_isready").success()
            });
            if alive {
                return;
            }
            self.port = 0;
        }
        panic!("no free port: {}", fs::read_to_string(self.data_dir.with_extension("log")).unwrap_or_default());
    }

    /// A hot standby of this server, on a directory and port of its own.
    pub fn standby(&self) -> Server {
        let room = tempfile::Builder::new().prefix("stemma-router-").tempdir().expect("temporary directory");
        fs::set_permissions(room.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        if nix::unistd::geteuid().is_root() {
            let user = nix::unistd::User::from_name("postgres").expect("passwd readable").expect("user postgres");
            chown(room.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("owner");
        }
        let data_dir = room.path().join("data");
        let mut backup = command("pg_basebackup");
        backup.args([
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-p",
            &self.port.to_string(),
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
        ]);
        run(backup.arg("-D").arg(&data_dir));
        let mut server = Server { port: 0, data_dir, child: None, _room: room };
        server.start();
        server
    }

    /// This server as a replica, with the position it has now.
    pub fn as_replica(&self, id: u64) -> router::topology::Replica {
        router::topology::Replica {
            id: model::NodeId(id),
            name: format!("r{id}"),
            addr: self.addr(),
            usage: router::topology::ReplicaUse::Hot,
            site: None,
            healthy: true,
            counted: true,
            replayed: self.sql("SELECT pg_last_wal_replay_lsn()").parse().ok(),
            timeline: Some(model::Timeline(1)),
            position_age: Some(model::Millis(0)),
            incarnation: 1,
            lag_bytes: Some(model::LagBytes(0)),
            lag: Some(model::Millis(0)),
        }
    }

    /// Immediate shutdown.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT);
            let _ = child.wait();
        }
    }

    /// Restarts with TLS and nothing else.
    pub fn enable_tls(&mut self, certificate: &Path, key: &Path) {
        self.kill();
        for (from, name) in [(certificate, "server.crt"), (key, "server.key")] {
            let to = self.data_dir.join(name);
            fs::copy(from, &to).expect("copied");
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).expect("permissions");
            if nix::unistd::geteuid().is_root() {
                let user = nix::unistd::User::from_name("postgres").expect("passwd readable").expect("user postgres");
                chown(&to, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("owner");
            }
        }
        let conf = self.data_dir.join("postgresql.conf");
        let text = fs::read_to_string(&conf).expect("read") + "ssl = on\n";
        fs::write(&conf, text).expect("written");
        fs::write(self.data_dir.join("pg_hba.conf"), "hostssl all all all scram-sha-256\n").expect("written");
        self.start();
    }

    pub fn addr(&self) -> NodeAddr {
        NodeAddr::tcp("127.0.0.1", self.port)
    }

    /// How clients connect to the server itself.
    pub fn options(&self) -> tokio_postgres::Config {
        options(self.port)
    }

    fn psql(&self, sql: &str) -> Command {
        let mut psql = command("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "postgres", "-d", "postgres"]);
        psql.args(["-p", &self.port.to_string(), "-c", sql]);
        psql
    }

    /// Asks the server itself, past the router.
    pub fn sql(&self, sql: &str) -> String {
        run(&mut self.psql(sql)).trim().to_owned()
    }

    /// What another life of the server has another of: since when it gathers statistics, which do not survive a crash.
    pub fn life(&self) -> String {
        self.sql(LIFE)
    }

    /// Waits until the server has recovered from a crash of the life told. A crash of one process ends all others, but
    /// not in the same moment.
    pub fn wait_recovered(&self, life: &str) {
        wait_for("a server that has recovered", || {
            let asked = self.psql(LIFE).output().expect("psql starts");
            asked.status.success() && String::from_utf8_lossy(&asked.stdout).trim() != life
        });
    }

    pub fn topology(&self, epoch: u64) -> Topology {
        let primary = Primary { name: "p".into(), addr: self.addr(), site: None };
        Topology { cluster: "main".into(), epoch: model::Epoch(epoch), primary: Some(primary), ..Topology::default() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The superuser, with its password.
fn options(port: u16) -> tokio_postgres::Config {
    let mut options = tokio_postgres::Config::new();
    options.host("127.0.0.1").port(port).user("postgres").password(PASSWORD).dbname("postgres");
    options
}

/// A router, and the word that tells it of the servers.
pub struct Front {
    pub port: u16,
    pub topology: watch::Sender<Topology>,
    pub router: Router,
}

/// What tests begin with: the user `postgres` by password, few connections, short patience.
pub fn config(pool_size: usize) -> Config {
    let users = [("postgres".to_owned(), router::config::Secret::Password(PASSWORD.to_owned()))];
    Config {
        listen: vec!["127.0.0.1:0".parse().expect("an address")],
        pool_size,
        wait_max: Duration::from_secs(20),
        hold_max: Duration::from_secs(20),
        login_timeout: Duration::from_secs(3),
        auth: ClientAuth::Users(std::sync::Arc::new(users.into())),
        mode: PoolMode::Transaction,
        ..Config::default()
    }
}

impl Front {
    pub async fn start(topology: Topology, config: Config) -> Front {
        Front::try_start(topology, config).await.expect("the router starts")
    }

    pub async fn try_start(topology: Topology, config: Config) -> Result<Front, model::Trouble> {
        let (sender, receiver) = watch::channel(topology);
        let router = Router::start(config, receiver).await?;
        Ok(Front { port: router.addresses()[0].port(), topology: sender, router })
    }

    pub async fn before(server: &Server, pool_size: usize) -> Front {
        Front::start(server.topology(1), config(pool_size)).await
    }

    pub fn options(&self) -> tokio_postgres::Config {
        options(self.port)
    }

    pub async fn client(&self) -> Client {
        self.client_with(&self.options()).await.expect("the router lets us in")
    }

    pub async fn client_with(&self, options: &tokio_postgres::Config) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) = options.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// What psql says, with the states of errors, to a user whose name is the password.
    pub fn psql_as(&self, user: &str, arguments: &[&str]) -> String {
        let mut psql = command("psql");
        psql.args(["-XAtq", "-v", "VERBOSITY=verbose", "-h", "127.0.0.1", "-U", user, "-d", "postgres"]);
        let said = psql.args(["-p", &self.port.to_string()]).env("PGPASSWORD", user).args(arguments).output();
        let said = said.expect("psql starts");
        String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr)
    }

    /// psql through the router.
    pub fn psql(&self, arguments: &[&str]) -> std::process::Output {
        let mut psql = command("psql");
        psql.args(["-XAtq", "-h", "127.0.0.1", "-U", "postgres", "-d", "postgres", "-p", &self.port.to_string()]);
        psql.args(arguments).output().expect("psql starts")
    }
}

/// The first value of the first row of a simple query.
pub async fn one(client: &Client, sql: &str) -> String {
    try_one(client, sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
}

pub async fn try_one(client: &Client, sql: &str) -> Result<String, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    let value = messages.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or("NULL").to_owned()),
        _ => None,
    });
    Ok(value.unwrap_or_default())
}

pub fn sqlstate(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| format!("{error:?}"), |code| code.code().to_owned())
}
