//! Throw-away PostgreSQL servers for tests: own directory, free port, gone when dropped.

#[path = "../../../e2e/src/ports.rs"]
mod ports;

use postgres::os_user::OsUser;
use postgres::replication::Endpoint;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);
pub const PASSWORD: &str = "secret of the tests";

/// The account servers run as: PostgreSQL refuses root.
pub fn server_user() -> Option<OsUser> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let user = nix::unistd::User::from_name("postgres").expect("passwd readable").expect("user postgres");
    Some(OsUser { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() })
}

pub fn bin(program: &str) -> PathBuf {
    Path::new("/usr/lib/postgresql/15/bin").join(program)
}

pub fn command(program: &str) -> Command {
    let mut command = Command::new(bin(program));
    if let Some(user) = server_user() {
        command.uid(user.uid).gid(user.gid);
    }
    command.current_dir("/").env("PGPASSWORD", PASSWORD).env("PGCONNECT_TIMEOUT", "5");
    command
}

pub fn run(command: &mut Command) -> String {
    let output = command.output().expect("program starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

/// A directory that the servers' account owns.
pub fn room() -> tempfile::TempDir {
    let room = tempfile::Builder::new().prefix("stemma-clone-").tempdir().expect("temporary directory");
    fs::set_permissions(room.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    if let Some(user) = server_user() {
        chown(room.path(), Some(user.uid), Some(user.gid)).expect("owner");
    }
    room
}

pub fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub struct Server {
    pub data_dir: PathBuf,
    pub port: u16,
    child: Option<Child>,
}

impl Server {
    /// A fresh cluster in `data_dir`: superuser `postgres`, replication role `copier`, both with `PASSWORD`.
    pub fn fresh(data_dir: &Path, initdb_flags: &[&str], settings: &str) -> Server {
        let password_file = data_dir.with_extension("password");
        fs::write(&password_file, PASSWORD).expect("written");
        if let Some(user) = server_user() {
            chown(&password_file, Some(user.uid), Some(user.gid)).expect("owner");
        }
        let mut initdb = command("initdb");
        initdb.args(["-N", "-k", "-U", "postgres", "-A", "scram-sha-256", "--locale=C", "-E", "UTF8"]);
        run(initdb.arg("--pwfile").arg(&password_file).arg("-D").arg(data_dir).args(initdb_flags));
        append(&data_dir.join("postgresql.conf"), &format!("fsync = off\nmax_wal_size = 256MB\n{settings}\n"));
        let server = Server::on(data_dir);
        server.sql(&format!("CREATE ROLE copier REPLICATION LOGIN PASSWORD '{PASSWORD}'"));
        server
    }

    /// Starts a server on a directory that exists, and waits until it answers.
    pub fn on(data_dir: &Path) -> Server {
        let mut server = Server { data_dir: data_dir.to_path_buf(), port: 0, child: None };
        server.start();
        server
    }

    pub fn start(&mut self) {
        // Another process may take the free port before the server does; then a new one is tried.
        for _attempt in 0..5 {
            if self.port == 0 {
                self.port = ports::free_port();
            }
            let log = fs::File::create(self.data_dir.with_extension("log")).expect("log file");
            let mut postgres = command("postgres");
            postgres.arg("-D").arg(&self.data_dir).args(["-p", &self.port.to_string(), "-h", "127.0.0.1", "-k", ""]);
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
            assert!(self.log().contains("could not bind"), "the server did not start: {}", self.log());
            self.port = 0;
        }
        panic!("no free port");
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.data_dir.with_extension("log")).unwrap_or_default()
    }

    pub fn psql(&self) -> Command {
        let mut psql = command("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-U", "postgres", "-p"]);
        psql.arg(self.port.to_string());
        psql
    }

    pub fn sql(&self, sql: &str) -> String {
        run(self.psql().args(["-d", "postgres", "-c", sql])).trim().to_string()
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint {
            host: "127.0.0.1".into(),
            port: self.port,
            user: "copier".into(),
            password: Some(PASSWORD.into()),
            tls: None,
            application_name: "clone_test".into(),
        }
    }

    /// Makes `data_dir` a standby of this server.
    pub fn adopt_standby(&self, data_dir: &Path, slot: Option<&str>) {
        let slot = slot.map(|slot| format!("primary_slot_name = '{slot}'\n")).unwrap_or_default();
        append(
            &data_dir.join("postgresql.auto.conf"),
            &format!(
                "primary_conninfo = 'host=127.0.0.1 port={} user=copier password=''{PASSWORD}'''\n{slot}",
                self.port
            ),
        );
        fs::write(data_dir.join("standby.signal"), "").expect("written");
        if let Some(user) = server_user() {
            chown(data_dir.join("standby.signal"), Some(user.uid), Some(user.gid)).expect("owner");
        }
    }

    /// Immediate shutdown: every process of the server dies without a word to its clients' benefit.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT);
            let _ = child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn append(path: &Path, text: &str) {
    use std::io::Write;
    fs::File::options().append(true).open(path).expect("opened").write_all(text.as_bytes()).expect("written");
}

pub fn verify_backup(data_dir: &Path) {
    let said = run(command("pg_verifybackup").arg(data_dir));
    assert!(said.contains("backup successfully verified"), "{said}");
}
