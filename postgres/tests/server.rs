//! The room on real servers: making, starting, adopting, killing, following, sampling.

#[path = "../../e2e/src/ports.rs"]
mod ports;
mod servers;

use model::{Epoch, Lsn, Timeline};
use postgres::{
    DataDir, OsUser, Server, ServerConfig, ServerRole, ServerSpec, Sql, StopMode, check_data_dir, find_installation,
    kill_everything, read_control_file, server_processes, server_user, write_config,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// One server in a directory of its own, which is killed and removed at the end.
struct World {
    spec: ServerSpec,
    config: ServerConfig,
    _directory: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        World::with_programs(None)
    }

    fn with_programs(bin_dir: Option<&Path>) -> World {
        let directory = tempfile::Builder::new().prefix("stemma-pg").tempdir_in("/tmp").expect("tempdir");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        let user = server_user(None).expect("a user for the server");
        let root = directory.path();
        give(root, user.as_ref());
        let port = ports::free_port();
        let spec = ServerSpec {
            installation: find_installation(bin_dir).expect("server programs"),
            data_dir: root.join("data"),
            user,
            listen: "127.0.0.1".into(),
            port,
            socket_dirs_beside: Vec::new(),
            socket_dir: postgres::socket_dir_for(root),
            log_file: root.join("server.log"),
            superuser: "stemma".into(),
            superuser_password: "it's a secret".into(),
            tls_files: None,
        };
        let parameters = [("shared_buffers", "16MB"), ("max_connections", "20"), ("fsync", "off")];
        let config = ServerConfig {
            members: ["n1", "n2", "n3"].map(|name| name.parse().expect("a name")).to_vec(),
            parameters: parameters.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            hba_users: Vec::new(),
            synchronous_standby_names: String::new(),
            role: ServerRole::Primary,
            tls: false,
            followers: Vec::new(),
            keeper_user: None,
            replication_hba: Vec::new(),
        };
        World { spec, config, _directory: directory }
    }

    async fn make(&self) {
        postgres::initdb(&self.spec, "owner", true, &|_| {}).await.expect("initdb");
        write_config(&self.spec, &self.config).expect("configuration");
    }

    async fn start(&self) -> (Server, Sql) {
        let server = Server::start(&self.spec).await.expect("start");
        let sql = Sql::new(&self.spec);
        self.until("ready", async || {
            let answer = sql.ready().await;
            let log = || postgres::server_log_tail(&self.spec, 2000);
            assert!(answer.is_ok() || server.is_alive(), "ended instead of answering; it said:\n{}", log());
            answer.is_ok()
        })
        .await;
        (server, sql)
    }

    /// Polls a condition until it holds; shows the server's log if it never does.
    async fn until(&self, what: &str, mut condition: impl AsyncFnMut() -> bool) {
        let end = tokio::time::Instant::now() + SOON;
        let began = std::time::Instant::now();
        while !condition().await {
            let log = postgres::server_log_tail(&self.spec, 2000);
            assert!(tokio::time::Instant::now() < end, "never {what}; the server said:\n{log}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        eprintln!("{what} after {} ms", began.elapsed().as_millis());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for pid in server_processes(&self.spec.data_dir) {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

fn give(path: &Path, user: Option<&OsUser>) {
    if let Some(user) = user {
        chown(path, Some(user.uid), Some(user.gid)).expect("chown");
    }
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn a_new_server_is_made_started_sampled_and_stopped() {
    let world = World::new();
    assert_eq!(check_data_dir(&world.spec.data_dir, world.spec.user.as_ref()), Ok(DataDir::Missing));
    world.make().await;
    let DataDir::Cluster(control) = check_data_dir(&world.spec.data_dir, world.spec.user.as_ref()).expect("fit") else {
        panic!("no database was made")
    };
    assert!(control.checksums && control.state.is_clean());
    let (server, sql) = world.start().await;
    let facts = sql.facts().await.expect("facts");
    assert_eq!(facts.system_id, control.system_id);
    assert_eq!(facts.version_num, world.spec.installation.version_num);
    assert_eq!((facts.timeline, facts.in_recovery, facts.has_upstream), (Timeline(1), false, false));
    assert!(facts.written > Some(Lsn(0)) && facts.received.is_none() && facts.replayed.is_none());
    assert_eq!(facts.connections, 0, "our own connections do not count");
    assert_eq!(facts.lineage_epoch, None);
    let began = std::time::Instant::now();
    for _ in 0..100 {
        sql.facts().await.expect("facts");
    }
    eprintln!("one sample takes {} us", began.elapsed().as_micros() / 100);
    let broken = sql.execute("BEGIN; SELECT no_such_thing").await.expect_err("broken");
    assert!(broken.causes[0].contains("42703"), "{broken}");
    sql.execute("SELECT 1").await.expect("a failed transaction does not stay open");
    assert!(facts.pending_restart.is_empty(), "{:?}", facts.pending_restart);
    for epoch in [3, 4, 4] {
        sql.ensure_lineage(Epoch(epoch), &"n1".parse().expect("name"), Timeline(1)).await.expect("lineage");
    }
    assert_eq!(sql.facts().await.expect("facts").lineage_epoch, Some(Epoch(4)));
    assert!(sql.force_record().await.expect("record") > facts.written.expect("written"));
    server.stop(StopMode::Fast, SOON).await.expect("stop");
    assert!(!server.is_alive());
    assert_eq!(server_processes(&world.spec.data_dir), Vec::<i32>::new());
    assert!(read_control_file(&world.spec.data_dir).expect("control").state.is_clean());
}

#[tokio::test]
async fn a_changed_setting_is_applied_or_waits_for_a_restart() {
    let mut world = World::new();
    world.make().await;
    assert!(!write_config(&world.spec, &world.config).expect("again").changed);
    let (server, sql) = world.start().await;
    // Overrides of what is ours leave postgresql.auto.conf; those of the command line never had effect.
    sql.execute("ALTER SYSTEM SET synchronous_standby_names = 'stranger'").await.expect("alter");
    sql.execute("ALTER SYSTEM SET port = 1").await.expect("alter");
    world.config.parameters.insert("work_mem".into(), "7MB".into());
    world.config.parameters.insert("max_connections".into(), "30".into());
    world.config.synchronous_standby_names = "ANY 1 (\"a\",\"b\")".into();
    assert!(write_config(&world.spec, &world.config).expect("write").changed);
    server.reload().expect("reload");
    sql.wait_setting("work_mem", "7MB", SOON).await.expect("work_mem");
    sql.wait_setting("synchronous_standby_names", "ANY 1 (\"a\",\"b\")", SOON).await.expect("names");
    let pending = sql.facts().await.expect("facts").pending_restart;
    let shown: Vec<String> = pending.iter().map(|(name, p)| format!("{name} {} -> {}", p.old, p.new)).collect();
    assert_eq!(shown, ["max_connections 20 -> 30"]);
    let late = sql.wait_setting("work_mem", "9MB", Duration::from_millis(20)).await.expect_err("never");
    assert!(late.reason.contains("7MB"), "{late}");
}

#[tokio::test]
async fn a_keeper_that_comes_back_adopts_the_running_server() {
    let world = World::new();
    world.make().await;
    assert!(Server::adopt(&world.spec).await.expect("look").is_none());
    let (server, _) = world.start().await;
    let pid = server.pid();
    drop(server);
    let adopted = Server::adopt(&world.spec).await.expect("look").expect("adopted");
    assert_eq!(adopted.pid(), pid);
    let session = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let session = session.rsplit_once(')').expect("name").1.split_whitespace().nth(3).expect("session").to_owned();
    assert_eq!(session, pid.to_string(), "the server leads a session of its own");
    let twice = Server::start(&world.spec).await.expect_err("runs already");
    assert!(twice.is("ST3020"), "{twice}");
    adopted.stop(StopMode::Immediate, SOON).await.expect("stop");
    assert!(!Path::new(&format!("/proc/{pid}")).exists() || !adopted.is_alive());
    assert!(Server::adopt(&world.spec).await.expect("look").is_none());
}

#[tokio::test]
async fn nothing_survives_killing_everything() {
    let world = World::new();
    world.make().await;
    let (server, sql) = world.start().await;
    let busy = Sql::new(&world.spec);
    let sleeper = tokio::spawn(async move { busy.execute("SELECT pg_sleep(600)").await });
    world
        .until("sleeping", async || {
            let query =
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND wait_event = 'PgSleep'";
            sql.query_text(query).await.expect("activity")[0][0].as_deref() == Some("1")
        })
        .await;
    // Stopped backends cannot notice that their postmaster is gone.
    let all = server_processes(&world.spec.data_dir);
    for pid in all.iter().filter(|pid| **pid != server.pid()) {
        assert!(Command::new("kill").args(["-STOP", &pid.to_string()]).status().expect("kill").success());
    }
    assert!(Command::new("kill").args(["-9", &server.pid().to_string()]).status().expect("kill").success());
    tokio::time::timeout(SOON, server.exited()).await.expect("the pidfd tells");
    assert!(!server_processes(&world.spec.data_dir).is_empty(), "backends outlive their postmaster");
    assert!(Server::start(&world.spec).await.is_err(), "no second server beside them");
    assert!(kill_everything(&world.spec, SOON).await.expect("killed") > 0);
    assert_eq!(server_processes(&world.spec.data_dir), Vec::<i32>::new());
    assert!(sleeper.await.expect("task").is_err());
    // What was left in shared memory does not hinder the next start.
    let (server, _) = world.start().await;
    server.stop(StopMode::Fast, SOON).await.expect("stop");
}

#[tokio::test]
async fn a_process_that_took_the_number_of_a_dead_postmaster_is_not_taken_for_it() {
    let world = World::new();
    world.make().await;
    let (server, _) = world.start().await;
    let pid_file = world.spec.data_dir.join("postmaster.pid");
    let text = fs::read_to_string(&pid_file).expect("pid file");
    kill_everything(&world.spec, SOON).await.expect("killed");
    server.exited().await;
    let mut command = Command::new("sleep");
    command.arg("600");
    if let Some(user) = &world.spec.user {
        std::os::unix::process::CommandExt::uid(&mut command, user.uid);
    }
    let mut other = command.spawn().expect("sleep");
    let stale = text.replacen(&server.pid().to_string(), &other.id().to_string(), 1);
    fs::write(&pid_file, &stale).expect("pid file");
    let lock = world.spec.socket_dir.join(format!(".s.PGSQL.{}.lock", world.spec.port));
    fs::write(&lock, &stale).expect("lock file");
    assert!(Server::adopt(&world.spec).await.expect("look").is_none());
    let (server, _) = world.start().await;
    assert!(other.try_wait().expect("wait").is_none(), "the bystander lives");
    other.kill().expect("kill");
    other.wait().expect("wait");
    server.stop(StopMode::Fast, SOON).await.expect("stop");
}

#[tokio::test]
async fn a_data_directory_is_looked_at_before_it_is_used() {
    let world = World::new();
    let (dir, user) = (world.spec.data_dir.clone(), world.spec.user.clone());
    let check = || check_data_dir(&dir, user.as_ref());
    fs::create_dir(&dir).expect("mkdir");
    assert_eq!(check(), Ok(DataDir::Empty));
    give(&dir, user.as_ref());
    fs::write(dir.join("diary.txt"), "mine").expect("write");
    assert!(check().expect_err("foreign").is("ST1202"));
    assert!(postgres::initdb(&world.spec, "owner", true, &|_| {}).await.is_err());
    assert!(dir.join("diary.txt").exists(), "foreign files stay");
    fs::remove_file(dir.join("diary.txt")).expect("remove");

    // An initialisation that was killed: some files are up already, PG_VERSION is not.
    fs::create_dir_all(dir.join("stemma.initdb/data")).expect("mkdir");
    fs::create_dir(dir.join("base")).expect("mkdir");
    assert_eq!(check(), Ok(DataDir::HalfMade { what: "initdb".into() }));
    world.make().await;
    assert!(matches!(check(), Ok(DataDir::Cluster(_))));
    assert!(!dir.join("stemma.initdb").exists());
    assert!(postgres::initdb(&world.spec, "owner", true, &|_| {}).await.is_err(), "never over a database");

    fs::write(dir.join("stemma.clone"), "").expect("write");
    assert_eq!(check(), Ok(DataDir::HalfMade { what: "clone".into() }));
    fs::remove_file(dir.join("stemma.clone")).expect("remove");
    fs::rename(dir.join("global/pg_control"), dir.join("global/other")).expect("rename");
    assert!(matches!(check(), Ok(DataDir::HalfMade { .. })));
    fs::rename(dir.join("global/other"), dir.join("global/pg_control")).expect("rename");

    for (mode, fit) in [(0o750, true), (0o755, false), (0o770, false), (0o700, true)] {
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).expect("chmod");
        assert_eq!(check().is_ok(), fit, "{mode:o}");
    }
    if user.is_some() {
        let other = OsUser { name: "other".into(), uid: 54321, gid: 54321 };
        assert!(check_data_dir(&dir, Some(&other)).expect_err("owner").is("ST1202"));
    }
}

#[tokio::test]
async fn the_control_file_reads_as_pg_controldata_prints_it() {
    let world = World::new();
    world.make().await;
    let tool = world.spec.installation.bin_dir.join("pg_controldata");
    let output = Command::new(tool).arg(&world.spec.data_dir).env("LC_ALL", "C").output().expect("pg_controldata");
    let text = String::from_utf8(output.stdout).expect("text");
    let printed: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once(':')).map(|(name, value)| (name, value.trim())).collect();
    let control = read_control_file(&world.spec.data_dir).expect("control file");
    assert_eq!(printed["Database system identifier"], control.system_id.to_string());
    assert_eq!(printed["Latest checkpoint location"], control.checkpoint.to_string());
    assert_eq!(printed["Latest checkpoint's REDO location"], control.redo.to_string());
    assert_eq!(printed["Latest checkpoint's TimeLineID"], control.timeline.to_string());
    assert_eq!(printed["Minimum recovery ending location"], control.min_recovery_end.to_string());
    assert_eq!(printed["Min recovery ending loc's timeline"], control.min_recovery_timeline.to_string());
    assert_eq!(printed["Data page checksum version"] != "0", control.checksums);
    assert_eq!(printed["wal_log_hints setting"] == "on", control.wal_log_hints);
    assert_eq!(printed["Bytes per WAL segment"], control.segment_bytes.to_string());
    assert_eq!(printed["Database cluster state"], "shut down");
    assert!(control.state.is_clean());
}

#[tokio::test]
async fn an_initialisation_killed_at_any_moment_is_begun_anew() {
    let world = World::new();
    for moment in ["creating the data directory", "running initdb", "creating roles"] {
        let (reached, stop) = tokio::sync::watch::channel(false);
        let mut stop = stop;
        let progress = move |step: &str| {
            if step == moment {
                reached.send_replace(true);
            }
        };
        let spec = world.spec.clone();
        let attempt = tokio::spawn(async move { postgres::initdb(&spec, "owner", true, &progress).await });
        stop.wait_for(|reached| *reached).await.expect("step");
        attempt.abort();
        assert!(attempt.await.expect_err("aborted").is_cancelled(), "{moment}");
        let left = check_data_dir(&world.spec.data_dir, world.spec.user.as_ref()).expect("ours");
        assert!(!matches!(left, DataDir::Cluster(_)), "{moment}: {left:?}");
    }
    world.make().await;
    let (server, _) = world.start().await;
    server.stop(StopMode::Fast, SOON).await.expect("stop");
}

#[tokio::test]
async fn our_roles_are_kept_out_of_tcp_and_the_owner_is_let_in() {
    let mut world = World::new();
    world.make().await;
    world.config.hba_users = vec!["host all all 127.0.0.1/32 scram-sha-256".into()];
    write_config(&world.spec, &world.config).expect("write");
    let (_server, sql) = world.start().await;
    let connect = async |host: &str, user: &str, password: &str| {
        let mut config = tokio_postgres::Config::new();
        config.host(host).port(world.spec.port).user(user).password(password).dbname("postgres");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok::<_, tokio_postgres::Error>(client)
    };
    let refused = connect("127.0.0.1", "stemma", &world.spec.superuser_password).await.expect_err("refused");
    assert_eq!(refused.code(), Some(&tokio_postgres::error::SqlState::INVALID_AUTHORIZATION_SPECIFICATION));
    assert!(connect("127.0.0.1", "postgres", "wrong").await.is_err());
    let owner = connect("127.0.0.1", "postgres", "owner").await.expect("the owner");
    assert_eq!(sql.facts().await.expect("facts").connections, 1);
    assert_eq!(sql.terminate_backends().await.expect("terminate"), 1);
    world.until("gone", async || owner.is_closed() && sql.facts().await.expect("facts").connections == 0).await;
}

/// A CA with a certificate for the server and one for a member, in files of the server's user.
fn certificates(directory: &Path, user: Option<&OsUser>) {
    let script = "
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca
        for name in server n2; do
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $name.key -out $name.csr -subj /CN=$name
            openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out $name.crt -days 2
            chmod 600 $name.key
        done";
    let made = Command::new("sh").args(["-ec", script]).current_dir(directory).output().expect("sh");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for entry in fs::read_dir(directory).expect("read") {
        give(&entry.expect("entry").path(), user);
    }
}

#[tokio::test]
async fn with_tls_members_replicate_by_certificate_and_nothing_else() {
    let mut primary = World::new();
    primary.make().await;
    primary.start().await.0.stop(StopMode::Fast, SOON).await.expect("stop");
    let mut replica = replica_of(&primary).await;
    let files = tempfile::Builder::new().prefix("stemma-tls").tempdir_in("/tmp").expect("tempdir");
    give(files.path(), primary.spec.user.as_ref());
    certificates(files.path(), primary.spec.user.as_ref());
    let file = |name: &str| files.path().join(name);
    primary.spec.tls_files =
        Some(postgres::TlsFiles { cert: file("server.crt"), key: file("server.key"), ca: file("ca.crt") });
    primary.config.tls = true;
    write_config(&primary.spec, &primary.config).expect("write");

    fs::set_permissions(file("server.key"), fs::Permissions::from_mode(0o644)).expect("chmod");
    assert!(Server::start(&primary.spec).await.expect_err("open key").is("ST8004"));
    fs::set_permissions(file("server.key"), fs::Permissions::from_mode(0o600)).expect("chmod");
    let (server, sql) = primary.start().await;
    sql.ensure_slots(&names(&["stemma_n2"])).await.expect("slots");
    sql.execute("ALTER ROLE stemma_replication PASSWORD 're pl'").await.expect("password");

    // The password alone, with or without TLS, does not let anyone in.
    let (standby, standby_sql) = replica.start().await;
    primary
        .until("refused", async || {
            let log = postgres::server_log_tail(&primary.spec, 20_000);
            log.contains("connection requires a valid client certificate") || log.contains("pg_hba.conf rejects")
        })
        .await;
    assert!(sql.facts().await.expect("facts").senders.is_empty());

    let ServerRole::Replica { primary_conninfo, .. } = &mut replica.config.role else { panic!("a replica") };
    *primary_conninfo = format!(
        "host=127.0.0.1 port={} user=stemma_replication application_name=stemma_n2 sslmode=verify-ca \
         sslrootcert={ca} sslcert={cert} sslkey={key}",
        primary.spec.port,
        ca = file("ca.crt").display(),
        cert = file("n2.crt").display(),
        key = file("n2.key").display(),
    );
    write_config(&replica.spec, &replica.config).expect("write");
    standby.reload().expect("reload");
    let streams = async || standby_sql.facts().await.expect("facts").receiver.is_some_and(|r| r.status == "streaming");
    replica.until("streaming", streams).await;
    standby.stop(StopMode::Fast, SOON).await.expect("stop");

    // A removed member's certificate opens nothing any more, though the CA signed it.
    primary.config.members.retain(|name| name.as_str() != "n2");
    write_config(&primary.spec, &primary.config).expect("write");
    server.reload().expect("reload");
    let (standby, _standby_sql) = replica.start().await;
    let refused = async || postgres::server_log_tail(&primary.spec, 20_000).contains("no match in usermap \"stemma\"");
    primary.until("refused as a stranger", refused).await;
    assert!(sql.facts().await.expect("facts").senders.is_empty());
    standby.stop(StopMode::Fast, SOON).await.expect("stop");
    server.stop(StopMode::Fast, SOON).await.expect("stop");
}

/// A replica made from a copy of the stopped primary's files.
async fn replica_of(primary: &World) -> World {
    let mut replica = World::with_programs(Some(&primary.spec.installation.bin_dir));
    let copied = Command::new("cp").arg("-a").arg(&primary.spec.data_dir).arg(&replica.spec.data_dir).status();
    assert!(copied.expect("cp").success());
    replica.config.role = ServerRole::Replica {
        primary_conninfo: format!(
            "host=127.0.0.1 port={} user=stemma_replication password='re pl' application_name=stemma_n2",
            primary.spec.port
        ),
        primary_slot_name: Some("stemma_n2".into()),
        apply_delay_ms: 0,
    };
    write_config(&replica.spec, &replica.config).expect("configuration");
    replica
}

async fn a_replica_follows(programs: Option<&Path>) {
    let mut primary = World::with_programs(programs);
    primary.make().await;
    // Once with its own settings: a replica refuses smaller ones than those that the log names.
    primary.start().await.0.stop(StopMode::Fast, SOON).await.expect("stop");
    let mut replica = replica_of(&primary).await;
    let (server, sql) = primary.start().await;
    let secrets = model::state::Secrets {
        ca_certificates: Vec::new(),
        ca_key: String::new(),
        superuser_password: primary.spec.superuser_password.clone(),
        replication_password: "re pl".into(),
        postgres_password: "owner".into(),
        name_salt: String::new(),
        upstream: None,
    };
    for _ in 0..2 {
        sql.ensure_roles(&secrets).await.expect("roles");
    }
    let wanted = names(&["stemma_n2", "stemma_n3"]);
    assert_eq!(sql.ensure_slots(&wanted).await.expect("slots").len(), 2);
    assert_eq!(sql.ensure_slots(&wanted).await.expect("slots").len(), 0);
    let (standby, standby_sql) = replica.start().await;
    replica
        .until("streaming", async || {
            let facts = standby_sql.facts().await.expect("facts");
            facts.receiver.is_some_and(|receiver| receiver.status == "streaming")
        })
        .await;
    let seen = standby_sql.facts().await.expect("facts");
    let receiver = seen.receiver.expect("receiver");
    assert_eq!(receiver.upstream, format!("127.0.0.1:{}", primary.spec.port));
    assert_eq!(receiver.slot.as_deref(), Some("stemma_n2"));
    assert!(receiver.last_message_age_ms.is_some_and(|age| age < 60_000));
    assert_eq!(postgres::receiver_processes(&replica.spec.data_dir), [receiver.pid]);
    assert!(seen.in_recovery && seen.has_upstream && seen.written.is_none());
    assert_eq!(seen.timeline, Timeline(1));

    primary.config.synchronous_standby_names = "ANY 1 (\"stemma_n2\")".into();
    write_config(&primary.spec, &primary.config).expect("write");
    server.reload().expect("reload");
    sql.wait_setting("synchronous_standby_names", "ANY 1 (\"stemma_n2\")", SOON).await.expect("names");
    primary
        .until("quorum", async || sql.facts().await.expect("facts").senders.iter().any(|s| s.sync_state == "quorum"))
        .await;
    sql.ensure_lineage(Epoch(1), &"n1".parse().expect("name"), Timeline(1)).await.expect("lineage");
    let target = sql.force_record().await.expect("record");
    replica
        .until("replayed", async || standby_sql.facts().await.expect("facts").replayed.is_some_and(|at| at >= target))
        .await;
    slots_move_and_go(&sql, target).await;

    // Revocation: no conninfo, the receiver signalled, and none left.
    let following = replica.config.role.clone();
    let nobody = ServerRole::Replica { primary_conninfo: String::new(), primary_slot_name: None, apply_delay_ms: 0 };
    replica.config.role = nobody;
    write_config(&replica.spec, &replica.config).expect("write");
    standby.reload().expect("reload");
    standby_sql.wait_setting("primary_conninfo", "", SOON).await.expect("conninfo");
    postgres::terminate_receiver(&replica.spec.data_dir, receiver.pid).expect("signal");
    replica.until("alone", async || postgres::receiver_processes(&replica.spec.data_dir).is_empty()).await;
    assert!(!standby_sql.facts().await.expect("facts").has_upstream);

    // Without its one acknowledgement the next epoch is not confirmed, and the wait does not hold up a sample.
    let name = "n1".parse().expect("name");
    let waiting = sql.ensure_lineage(Epoch(2), &name, Timeline(1));
    let sampled = async {
        primary
            .until("waiting", async || {
                let query = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
                Sql::new(&primary.spec).query_text(query).await.is_ok_and(|rows| !rows.is_empty())
            })
            .await;
        sql.facts().await.expect("facts");
        replica.config.role = following;
        write_config(&replica.spec, &replica.config).expect("write");
        standby.reload().expect("reload");
    };
    let (confirmed, ()) = tokio::join!(waiting, sampled);
    confirmed.expect("confirmed once the replica is back");

    server.stop(StopMode::Fast, SOON).await.expect("stop");
    standby_sql.promote().await.expect("promote");
    replica.until("promoted", async || !standby_sql.facts().await.expect("facts").in_recovery).await;
    let facts = standby_sql.facts().await.expect("facts");
    assert_eq!((facts.in_recovery, facts.timeline), (false, Timeline(2)), "seen before any checkpoint");
    assert_eq!(facts.lineage_epoch, Some(Epoch(2)));
    standby.stop(StopMode::Fast, SOON).await.expect("stop");
}

async fn slots_move_and_go(sql: &Sql, target: Lsn) {
    assert!(!sql.advance_slot("stemma_n2", target).await.expect("active"), "its user moves it");
    assert!(sql.advance_slot("stemma_n3", target).await.expect("advance"));
    assert!(!sql.advance_slot("stemma_n3", target).await.expect("again"));
    assert!(!sql.advance_slot("nobody", target).await.expect("missing"));
    let slots = sql.facts().await.expect("facts").slots;
    let moved = slots.iter().find(|slot| slot.name == "stemma_n3").expect("slot");
    assert_eq!((moved.restart, moved.active, moved.slot_type.as_str()), (Some(target), false, "physical"));
    assert!(slots.iter().any(|slot| slot.name == "stemma_n2" && slot.active));
    assert!(sql.drop_slot("stemma_n2").await.expect_err("active").is("ST3021"));
    assert!(sql.drop_slot("stemma_n3").await.expect("drop"));
    assert!(!sql.drop_slot("stemma_n3").await.expect("again"));
}

/// The installed version, and whichever others were fetched.
#[tokio::test]
async fn a_replica_follows_is_cut_off_returns_and_takes_over_on_every_version_at_hand() {
    let mut all = servers::fetched();
    all.push(find_installation(None).expect("server programs").bin_dir);
    for programs in all {
        eprintln!("with {}", programs.display());
        a_replica_follows(Some(&programs)).await;
    }
}
