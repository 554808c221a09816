//! Databases that exist already become the first node of a cluster, without a restart and without a client noticing.

use anyhow::{Context as _, Result, bail, ensure};
use e2e::majors;
use e2e::manual::{DEADLINE, Extra, Node, Place, connect, is_healthy, is_root, postmaster, wait_for};
use e2e::ports::free_port;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const PASSWORD: &str = "secret";

/// The newest packaged programs, as the program under test would choose.
fn bin_dir() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed").flatten();
    let mut dirs: Vec<PathBuf> = versions.map(|entry| entry.path().join("bin")).collect();
    dirs.sort();
    dirs.pop().expect("a version")
}

/// A command as the user that servers run as.
fn as_postgres(program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

fn succeed(command: &mut Command) -> String {
    let output = command.current_dir("/").output().expect("runs");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

/// A database that somebody made with initdb and started by hand, all in one directory.
struct Plain {
    place: Place,
    data_dir: PathBuf,
    port: u16,
}

impl Plain {
    fn make(conf: &str) -> Plain {
        let place = Place::new();
        let home = place.path().join("old");
        fs::create_dir(&home).expect("a directory");
        if is_root() {
            let user = nix::unistd::User::from_name("postgres").ok().flatten().expect("a user postgres");
            nix::unistd::chown(&home, Some(user.uid), Some(user.gid)).expect("given away");
        }
        let data_dir = home.join("data");
        let port = free_port();
        succeed(as_postgres(&bin_dir().join("initdb")).args(["-A", "peer", "-D"]).arg(&data_dir));
        let text = fs::read_to_string(data_dir.join("postgresql.conf")).expect("configuration");
        let own = format!(
            "{text}\nport = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\n{conf}\n",
            home.display()
        );
        fs::write(data_dir.join("postgresql.conf"), own).expect("configuration");
        let hba = "local all all peer\nhost all all 127.0.0.1/32 scram-sha-256\n";
        fs::write(data_dir.join("pg_hba.conf"), hba).expect("pg_hba.conf");
        Plain { place, data_dir, port }
    }

    fn start(&self) {
        let log = self.data_dir.with_file_name("log");
        succeed(
            as_postgres(&bin_dir().join("pg_ctl"))
                .args(["-w", "-D"])
                .arg(&self.data_dir)
                .arg("-l")
                .arg(log)
                .arg("start"),
        );
    }

    fn stop(&self) {
        succeed(
            as_postgres(&bin_dir().join("pg_ctl")).args(["-w", "-m", "fast", "-D"]).arg(&self.data_dir).arg("stop"),
        );
    }

    fn psql(&self, sql: &str) -> String {
        let socket = self.data_dir.parent().expect("a parent");
        psql(socket, self.port, sql)
    }

    fn node(&self, name: &str) -> Node {
        Node::with(&self.place, name, Some((&self.data_dir, self.port)), &Extra::default())
    }
}

fn psql(socket: &Path, port: u16, sql: &str) -> String {
    let mut command = as_postgres(Path::new("/usr/bin/psql"));
    command.args(["-XAtq", "-d", "postgres", "-p", &port.to_string(), "-c", sql]).arg("-h").arg(socket);
    succeed(&mut command).trim().to_owned()
}

/// A client that writes all the time on one connection, and never connects again.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Writer {
    async fn start(port: u16) -> Writer {
        let client = connect(port, "app", PASSWORD).await.expect("the application logs in");
        client.batch_execute("CREATE TABLE rows (id bigint)").await.expect("a table");
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, count) = (stop.clone(), written.clone());
        let task = tokio::spawn(async move {
            let mut id: i64 = 0;
            while !until.load(Ordering::SeqCst) {
                id += 1;
                client.execute("INSERT INTO rows VALUES ($1)", &[&id]).await.context("a client was disturbed")?;
                count.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        Writer { stop, written, task }
    }

    /// Waits until some more rows are in: the writer still lives.
    fn goes_on(&self) {
        let before = self.written.load(Ordering::SeqCst);
        wait_for("further writes", || {
            ensure!(self.written.load(Ordering::SeqCst) > before + 10, "no further writes");
            Ok(())
        });
    }

    async fn finish(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        tokio::time::timeout(DEADLINE, self.task).await.expect("ends").expect("no panic").expect("undisturbed");
        self.written.load(Ordering::SeqCst)
    }
}

/// Adopts under load, lets two replicas join, and sees all rows on them; then restarts everything in turn.
async fn adopt_under_load(place: &Place, mut n1: Node, pid: i32) {
    let writer = Writer::start(n1.port).await;
    writer.goes_on();
    n1.text(&["init", "--name", "prod", "--adopt"]).expect("adopted");
    writer.goes_on();
    n1.run();
    n1.wait_status("a primary", |status| status["primary"] == "n1" && status["primary_up"] == true);
    let (mut n2, mut n3) = (Node::new(place, "n2"), Node::new(place, "n3"));
    n1.admit(&mut n2, "replica", &[]);
    n1.admit(&mut n3, "replica", &[]);
    let status = n1.wait_status("a healthy cluster", |status| {
        is_healthy(status, 3) && status["durability"]["acks"] == 1 && status["durability"]["in_force"] == true
    });
    assert_eq!(status["durability"]["mode"], "semi-sync", "{status:#}");
    assert_eq!(postmaster(&n1.data_dir).expect("runs"), pid, "the server was not restarted");
    writer.goes_on();
    let rows = writer.finish().await;
    for replica in [&n2, &n3] {
        // The application's own password and pg_hba line hold on the replicas as well.
        let client = connect(replica.port, "app", PASSWORD).await.expect("the application logs in to a replica");
        wait_for("all rows on a replica", || {
            let count = tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(client.query_one("SELECT count(*) FROM rows", &[]))
            })?;
            let count: i64 = count.get(0);
            if u64::try_from(count)? == rows { Ok(()) } else { bail!("{count} of {rows} rows") }
        });
        let shown = client.query_one("SHOW work_mem", &[]).await.expect("shown");
        assert_eq!(shown.get::<_, &str>(0), "7MB", "what the user has set holds everywhere");
    }
    n1.text(&["restart", "--rolling", "--yes"]).expect("restarted in turn");
    assert_ne!(postmaster(&n1.data_dir).expect("runs"), pid, "now the server is ours");
    n1.wait_status("health after the restart", |status| {
        is_healthy(status, 3) && e2e::manual::problem(status, "ST3024").is_none()
    });
    let client = connect(n1.port, "app", PASSWORD).await.expect("the application logs in as before");
    let shown = client.query_one("SHOW work_mem", &[]).await.expect("shown");
    assert_eq!(shown.get::<_, &str>(0), "7MB");
    // ALTER SYSTEM wrote the value where it would override the settings; the settings count.
    n1.text(&["config", "set", "postgresql.parameters.work_mem=9MB", "--yes"]).expect("set");
    wait_for("the new value on every node", || {
        for node in [&n1, &n2, &n3] {
            let shown = tokio::task::block_in_place(|| {
                tokio::runtime::Handle::current().block_on(async {
                    let client = connect(node.port, "app", PASSWORD).await?;
                    Ok::<_, anyhow::Error>(client.query_one("SHOW work_mem", &[]).await?.get::<_, String>(0))
                })
            })?;
            ensure!(shown == "9MB", "{} has {shown}", node.name);
        }
        Ok(())
    });
}

const APPLICATION: &str = "CREATE ROLE app SUPERUSER LOGIN PASSWORD 'secret'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_server_in_one_directory_is_adopted_without_a_client_noticing() {
    let old = Plain::make("");
    old.start();
    old.psql(APPLICATION);
    old.psql("ALTER SYSTEM SET work_mem = '7MB'");
    old.psql("SELECT pg_reload_conf()");
    let pid = postmaster(&old.data_dir).expect("runs");
    let n1 = old.node("n1");
    adopt_under_load(&old.place, n1, pid).await;
}

/// A cluster as Debian makes them: configuration under /etc, removed at the end.
struct Debian {
    name: String,
    place: Place,
    data_dir: PathBuf,
    port: u16,
}

impl Debian {
    fn make() -> Debian {
        let place = Place::new();
        let name = format!("stemma{}", std::process::id());
        let (data_dir, port) = (place.path().join("pgdata"), free_port());
        let debian = Debian { name, place, data_dir, port };
        let socket = debian.place.path().join("sockets");
        fs::create_dir(&socket).expect("a directory");
        let user = nix::unistd::User::from_name("postgres").ok().flatten().expect("a user postgres");
        nix::unistd::chown(&socket, Some(user.uid), Some(user.gid)).expect("given away");
        let mut create = Command::new("pg_createcluster");
        create.args([&Debian::version(), &debian.name, "-p", &port.to_string(), "-d"]).arg(&debian.data_dir);
        succeed(create.arg("-s").arg(&socket).arg("--start-conf=manual"));
        debian
    }

    fn version() -> String {
        let dir = bin_dir();
        dir.parent().and_then(Path::file_name).expect("a version").to_string_lossy().into_owned()
    }

    fn etc(&self) -> PathBuf {
        Path::new("/etc/postgresql").join(Debian::version()).join(&self.name)
    }

    fn psql(&self, sql: &str) -> String {
        psql(&self.place.path().join("sockets"), self.port, sql)
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        e2e::manual::kill_servers_below(&self.data_dir);
        let _ = Command::new("pg_dropcluster").args([&Debian::version(), &self.name, "--stop"]).output();
        let _ = fs::remove_dir_all(self.etc());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_server_as_debian_arranges_it_is_adopted_without_a_client_noticing() {
    // Clusters of the distribution are root's to make.
    assert!(is_root(), "this test needs root");
    let old = Debian::make();
    succeed(Command::new("pg_ctlcluster").args([&Debian::version(), &old.name, "start"]));
    old.psql(APPLICATION);
    old.psql("ALTER SYSTEM SET work_mem = '7MB'");
    old.psql("SELECT pg_reload_conf()");
    let pid = postmaster(&old.data_dir).expect("runs");
    let socket_dirs = format!("socket_dirs = [\"{}\"]", old.place.path().join("sockets").display());
    let extra = Extra { postgresql: socket_dirs, ..Extra::default() };
    let before = fs::read_to_string(old.etc().join("pg_hba.conf")).expect("pg_hba.conf");
    let n1 = Node::with(&old.place, "n1", Some((&old.data_dir, old.port)), &extra);
    adopt_under_load(&old.place, n1, pid).await;
    let kept = fs::read_to_string(old.etc().join("pg_hba.conf.before-stemma")).expect("a copy is kept");
    assert_eq!(kept, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_clients_find_the_socket_of_an_adopted_server_after_its_restart() {
    let old = Plain::make("");
    old.start();
    let home = old.data_dir.parent().expect("a parent").to_owned();
    let extra = Extra { postgresql: format!("socket_dirs = [\"{}\"]", home.display()), ..Extra::default() };
    let mut n1 = Node::with(&old.place, "n1", Some((&old.data_dir, old.port)), &extra);
    let said = n1.text(&["init", "--name", "prod", "--adopt"]).expect("adopted");
    assert!(!said.contains("socket_dirs"), "nothing to advise: {said}");
    n1.run();
    n1.wait_status("health", |status| is_healthy(status, 1));
    n1.text(&["restart", "--rolling", "--yes"]).expect("restarted");
    assert_eq!(psql(&home, old.port, "SELECT 1"), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_database_is_adopted_and_an_interrupted_init_is_given_again() {
    let old = Plain::make("work_mem = '7MB'");
    old.start();
    old.psql(APPLICATION);
    old.psql("CREATE TABLE kept AS SELECT generate_series(1, 1000)");
    old.stop();
    let mut n1 = old.node("n1");
    // Cut off at arbitrary moments; each time nothing but files and roles that the next one finds.
    for millis in [20, 80, 150] {
        let mut child = n1.command(&["init", "--name", "prod", "--adopt"]).spawn().expect("starts");
        std::thread::sleep(std::time::Duration::from_millis(millis));
        let _ = child.kill();
        let _ = child.wait();
    }
    let enrolled = n1.home.join("state/identity/node.json").exists();
    if !enrolled {
        wait_for("adoption", || n1.text(&["init", "--name", "prod", "--adopt"]));
    }
    assert_eq!(n1.refusal(&["init", "--name", "prod", "--adopt"]).0, "ST1208");
    n1.run();
    n1.wait_status("health", |status| is_healthy(status, 1));
    let client = connect(n1.port, "app", PASSWORD).await.expect("the application logs in");
    let rows = client.query_one("SELECT count(*) FROM kept", &[]).await.expect("rows");
    assert_eq!(rows.get::<_, i64>(0), 1000);
    let shown = client.query_one("SHOW work_mem", &[]).await.expect("shown");
    assert_eq!(shown.get::<_, &str>(0), "7MB");
}

#[test]
fn what_cannot_be_adopted_is_refused_and_nothing_is_changed() {
    let old = Plain::make("");
    old.start();
    old.psql("CREATE ROLE plain LOGIN PASSWORD 'secret'");
    let adopt = ["init", "--name", "prod", "--adopt"];
    let refused = |node: &Node, more: &[&str], code: &str, hint: &str| {
        let arguments: Vec<&str> = adopt.iter().chain(more).copied().collect();
        let (found, _, text) = node.refusal(&arguments);
        assert_eq!(found, code, "{text}");
        assert!(text.contains(hint), "{hint} is missing in {text}");
    };
    let other_port = Node::with(&old.place, "wrong-port", Some((&old.data_dir, free_port())), &Extra::default());
    refused(&other_port, &[], "ST1103", &format!("port = {}", old.port));
    let node = old.node("n1");
    let dsn = format!("host=127.0.0.1 port={} user=plain password=secret", old.port);
    refused(&node, &["--adopt-dsn", &dsn], "ST8003", "superuser");
    refused(&node, &["--superuser", "nobody-such"], "ST8003", "--superuser");
    let own = fs::read_to_string(old.data_dir.join("PG_VERSION")).expect("a version");
    for (_, bin) in majors().into_iter().filter(|(major, _)| major.to_string() != own.trim()) {
        let extra = Extra { postgresql: format!("bin_dir = \"{}\"", bin.display()), ..Extra::default() };
        let newer = Node::with(&old.place, "newer", Some((&old.data_dir, old.port)), &extra);
        refused(&newer, &[], "ST3016", "bin_dir");
    }
    old.psql("CREATE ROLE stemma LOGIN");
    refused(&node, &[], "ST2102", "ALTER ROLE stemma RENAME");
    old.psql("DROP ROLE stemma");
    // With a signal file it starts as a replica.
    old.stop();
    fs::write(old.data_dir.join("standby.signal"), "").expect("written");
    refused(&node, &[], "ST2111", "adopt its primary");
    old.start();
    refused(&node, &[], "ST2111", "adopt its primary");
    let hba = fs::read_to_string(old.data_dir.join("pg_hba.conf")).expect("pg_hba.conf");
    assert!(!hba.contains("stemma"), "{hba}");
    assert_eq!(old.psql("SELECT count(*) FROM pg_roles WHERE rolname LIKE 'stemma%'"), "0");
    let empty = Node::new(&old.place, "empty");
    refused(&empty, &[], "ST1202", "data_dir");
}
