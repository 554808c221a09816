//! Unix sockets: to servers of this machine, by those whom TCP lets in too; and for clients of it.

use crate::harness::{Front, Server, command, config, free_port, one, sqlstate, try_one, wait_for};
use model::observe::{ServerSockets, SocketDirectory};
use router::Topology;
use router::config::{ClientAuth, Secret};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;

const BY_SOCKET: &str = "SELECT client_addr IS NULL FROM pg_stat_activity WHERE pid = pg_backend_pid()";

/// What a keeper of the machine `here` tells.
fn told(server: &Server) -> Topology {
    let found = std::fs::metadata(&server.data_dir).expect("it is there");
    let path = server.data_dir.display().to_string();
    let directory = SocketDirectory { path, device: found.dev(), inode: found.ino() };
    let sockets = ServerSockets { machine: "here".to_owned(), directories: vec![directory] };
    Topology { sockets: [(server.addr(), sockets)].into(), ..server.topology(1) }
}

async fn front(server: &Server, machine: &str) -> Front {
    let passwords = [("postgres", crate::harness::PASSWORD), ("ann", "anns own")];
    let users = passwords.map(|(name, password)| (name.to_owned(), Secret::Password(password.to_owned())));
    let auth = ClientAuth::Users(Arc::new(users.into()));
    Front::start(told(server), router::Config { auth, machine: Some(machine.to_owned()), ..config(2) }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_this_machine_is_spoken_to_by_its_socket_and_all_goes_by_it() {
    let server = Server::new();
    let elsewhere = front(&server, "there").await;
    assert_eq!(one(&elsewhere.client().await, BY_SOCKET).await, "f", "a path means nothing on another machine");
    let front = front(&server, "here").await;
    let client = front.client().await;
    assert_eq!(one(&client, BY_SOCKET).await, "t");
    let told = front.router.meter().text();
    assert!(told.contains("stemma_router_server_logins_total{way=\"socket\"} 1\n"), "{told}");
    assert_eq!(client.query_one("SELECT $1::int + 1", &[&1]).await.expect("prepared").get::<_, i32>(0), 2);
    for megabytes in [1, 30] {
        let sql =
            format!("SELECT length(it), md5(it) FROM (SELECT repeat('0123456789abcdef', {megabytes} * 65536) it) t");
        let long = format!("SELECT repeat('0123456789abcdef', {megabytes} * 65536)");
        let row = client.query_one(&long, &[]).await.expect("a long row").get::<_, String>(0);
        let there = client.query_one(&sql, &[]).await.expect("what it is").get::<_, String>(1);
        assert_eq!(one(&client, &format!("SELECT md5('{row}')")).await, there);
    }
    let token = client.cancel_token();
    let asked = tokio::spawn(async move { try_one(&client, "SELECT pg_sleep(600)").await });
    wait_for("the statement to run", || {
        server.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'")
            == "1"
    });
    token.cancel_query(tokio_postgres::NoTls).await.expect("sent");
    let cancelled = asked.await.expect("no panic").expect_err("cancelled");
    assert_eq!(sqlstate(&cancelled), "57014");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_long_rows_are_usual_tcp_is_used() {
    let server = Server::new();
    let front = front(&server, "here").await;
    let client = front.client().await;
    assert_eq!(one(&client, BY_SOCKET).await, "t");
    for _ in 0..20 {
        assert_eq!(one(&client, "SELECT repeat('0123456789abcdef', 65536)").await.len(), 1 << 20);
    }
    assert_eq!(one(&client, BY_SOCKET).await, "f");
    // They are not any more.
    for _ in 0..2_500 {
        one(&client, "SELECT 1").await;
    }
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()");
    wait_for("the connection to be closed", || {
        server.sql("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'") == "1"
    });
    assert_eq!(one(&client, BY_SOCKET).await, "t", "a new connection goes by the socket again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_in_by_the_socket_whom_tcp_keeps_out_or_asks_for_more() {
    let mut server = Server::new();
    server.sql("CREATE ROLE ann LOGIN PASSWORD 'anns own'");
    let scram = "host all all 127.0.0.1/32 scram-sha-256\n";
    let trust = "host all all 127.0.0.1/32 trust\n";
    let cases = [
        ("local all all scram-sha-256\n", scram, "t"),
        ("local all all scram-sha-256\n", trust, "t"),
        ("local all all trust\n", trust, "t"),
        // Whoever is believed there is believed because the router is.
        ("local all all trust\n", scram, "f"),
        ("local all all peer\n", scram, "f"),
        ("local all all peer\n", trust, "f"),
        ("local all all md5\nlocal all all reject\n", scram, "t"),
        ("local all all reject\n", scram, "f"),
        ("", scram, "f"),
    ];
    for (local, host, by_socket) in cases {
        // Who runs the tests may be the one whom `peer` lets in.
        if local.contains("peer") && host == trust && !nix::unistd::geteuid().is_root() {
            continue;
        }
        server.let_in(&format!("{local}{host}"));
        let front = front(&server, "here").await;
        for _ in 0..3 {
            assert_eq!(one(&front.client().await, BY_SOCKET).await, by_socket, "{local}{host}");
        }
    }
    server.let_in(&format!("local all all scram-sha-256\nhost all ann 127.0.0.1/32 reject\n{scram}"));
    let front = front(&server, "here").await;
    let mut options = front.options();
    options.user("ann").password("anns own");
    let refused = front.client_with(&options).await.expect_err("TCP keeps her out");
    assert_eq!(sqlstate(&refused), "28000");
    assert_eq!(one(&front.client().await, BY_SOCKET).await, "t");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_goes_away_leaves_tcp() {
    let server = Server::new();
    let front = front(&server, "here").await;
    assert_eq!(one(&front.client().await, BY_SOCKET).await, "t");
    let socket = server.data_dir.join(format!(".s.PGSQL.{}", server.port));
    std::fs::remove_file(&socket).expect("removed");
    front.topology.send_modify(|topology| topology.epoch.0 += 1);
    assert_eq!(one(&front.client().await, BY_SOCKET).await, "f");
    // A file that nobody listens at.
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("bound"));
    front.topology.send_modify(|topology| topology.epoch.0 += 1);
    assert_eq!(one(&front.client().await, BY_SOCKET).await, "f");
}

/// A router whose clients may come by a socket too, in a directory of its own.
async fn front_with_socket(server: &Server, port: u16) -> (Result<Front, model::Trouble>, tempfile::TempDir) {
    let room = tempfile::Builder::new().prefix("stemma-router-").tempdir().expect("temporary directory");
    std::fs::set_permissions(room.path(), std::fs::Permissions::from_mode(0o755)).expect("permissions");
    let stale = room.path().join(format!(".s.PGSQL.{port}"));
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("left by a router that was killed"));
    let listen = vec![std::net::SocketAddr::from(([127, 0, 0, 1], port))];
    let config =
        router::Config { listen, socket_dir: Some(room.path().to_path_buf()), socket_mode: 0o777, ..config(1) };
    (Front::try_start(server.topology(1), config).await, room)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_this_machine_may_come_by_a_socket() {
    let server = Server::new();
    let (front, room) = front_with_socket(&server, free_port()).await;
    let front = front.expect("a file that nobody listens on is in nobody's way");
    let path = room.path().join(format!(".s.PGSQL.{}", front.port));
    assert_eq!(std::fs::metadata(&path).expect("it is there").mode() & 0o7777, 0o777);

    let mut by_socket = tokio_postgres::Config::new();
    by_socket.host_path(room.path()).port(front.port).user("postgres").dbname("postgres");
    by_socket.password(crate::harness::PASSWORD);
    let client = front.client_with(&by_socket).await.expect("in");
    assert_eq!(client.query_one("SELECT $1::int + 1", &[&1]).await.expect("prepared").get::<_, i32>(0), 2);
    let long = one(&client, "SELECT string_agg(repeat('x', 1000), '') FROM generate_series(1, 3000)").await;
    assert_eq!(long.len(), 3_000_000);
    let mut wrong = by_socket.clone();
    wrong.password("wrong");
    assert_eq!(sqlstate(&front.client_with(&wrong).await.expect_err("nobody is believed")), "28P01");

    // A cancel request goes by the socket as well.
    let cancel = client.cancel_token();
    let sleeps = tokio::spawn(async move { (try_one(&client, "SELECT pg_sleep(60)").await, client) });
    wait_for("the statement to run", || {
        server.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%'") == "1"
    });
    cancel.cancel_query(tokio_postgres::NoTls).await.expect("sent");
    let (cancelled, client) = sleeps.await.expect("no panic");
    assert_eq!(sqlstate(&cancelled.expect_err("cancelled")), "57014");

    // Who gives up waiting gives up its place.
    client.batch_execute("BEGIN").await.expect("begun");
    let mut psql = command("psql");
    psql.arg("-XAtqh").arg(room.path()).args(["-p", &front.port.to_string(), "-U", "postgres", "-c", "SELECT 1"]);
    let mut waits = psql.spawn().expect("psql starts");
    wait_for("it to wait", || front.router.meter().text().contains("stemma_router_clients_waiting 1\n"));
    waits.kill().expect("killed");
    waits.wait().expect("gone");
    let since = std::time::Instant::now();
    wait_for("nobody to wait", || front.router.meter().text().contains("stemma_router_clients_waiting 0\n"));
    assert!(since.elapsed() < config(1).wait_max / 2, "it was not sent away, it left");

    drop(front);
    wait_for("the file to go with the router", || !path.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_somebody_listens_on_is_left_to_them() {
    let server = Server::new();
    let port = free_port();
    let room = tempfile::tempdir().expect("temporary directory");
    let path = room.path().join(format!(".s.PGSQL.{port}"));
    let _theirs = std::os::unix::net::UnixListener::bind(&path).expect("bound");
    let listen = vec![std::net::SocketAddr::from(([127, 0, 0, 1], port))];
    for (directory, code) in [(room.path().to_path_buf(), "ST1201"), (room.path().join("none"), "ST1202")] {
        let config = router::Config { listen: listen.clone(), socket_dir: Some(directory), ..config(1) };
        let refused = Front::try_start(server.topology(1), config).await.err().expect("refused");
        assert!(refused.is(code), "{refused}");
    }
    assert!(path.exists());
}
