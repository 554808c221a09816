//! Bounds of single users and databases.

use crate::harness::{Front, Server, config, one, sqlstate, try_one, wait_for};
use router::config::{ClientAuth, PoolMode, Secret};
use router::limits::{Bounds, Limits, OTHERS};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;
use tokio_postgres::Client;

const USERS: [&str; 2] = ["alice", "bob"];

fn server() -> Server {
    let server = Server::new();
    for user in USERS {
        server.sql(&format!("CREATE ROLE {user} LOGIN PASSWORD '{user}'"));
    }
    server
}

fn with(limits: Limits) -> router::Config {
    let users = USERS.map(|user| (user.to_owned(), Secret::Password(user.to_owned())));
    router::Config { auth: ClientAuth::Users(Arc::new(users.into())), limits, workers: 2, ..config(5) }
}

fn database(bounds: Bounds) -> Limits {
    Limits { databases: [("postgres".to_owned(), bounds)].into(), ..Limits::default() }
}

fn servers(servers_max: usize) -> Bounds {
    Bounds { servers_max: Some(servers_max), ..Bounds::default() }
}

async fn client(front: &Front, user: &str) -> Result<Client, tokio_postgres::Error> {
    let mut options = front.options();
    options.user(user).password(user);
    front.client_with(&options).await
}

fn connections(server: &Server) -> usize {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename IN ('alice', 'bob')";
    server.sql(sql).parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_users_of_a_database_share_the_connections_that_it_may_have() {
    let server = server();
    let front = Front::start(server.topology(1), with(database(servers(2)))).await;
    let mut working = Vec::new();
    for turn in 0..12 {
        let client = client(&front, USERS[turn % 2]).await.expect("let in");
        working.push(tokio::spawn(async move {
            for _ in 0..40 {
                one(&client, "SELECT pg_sleep(0.003)").await;
            }
        }));
    }
    let mut most = 0;
    while working.iter().any(|work| !work.is_finished()) {
        most = most.max(connections(&server));
    }
    for work in working {
        work.await.expect("every statement was served");
    }
    // One that is closed is still listed for a moment.
    assert!((1..=4).contains(&most), "{most} connections");
    wait_for("no more than two connections", || connections(&server) <= 2);
    // What one user left idle makes room for the other.
    for user in ["alice", "bob", "alice", "bob"] {
        let clients = [client(&front, user).await.expect("in"), client(&front, user).await.expect("in")];
        let both = clients.iter().map(|client| one(client, "SELECT pg_sleep(0.05)"));
        futures_util::future::join_all(both).await;
    }
    front.router.reload(with(database(servers(1))));
    let alice = client(&front, "alice").await.expect("in");
    wait_for("the lower bound to hold", || {
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(one(&alice, "SELECT 1")));
        connections(&server) == 1
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_starved_by_another_user_who_never_rests() {
    let server = server();
    let front = Front::start(server.topology(1), with(database(servers(1)))).await;
    let done = Arc::new(AtomicBool::new(false));
    let mut working = Vec::new();
    for _ in 0..4 {
        let (client, done) = (client(&front, "alice").await.expect("in"), done.clone());
        working.push(tokio::spawn(async move {
            while !done.load(SeqCst) {
                one(&client, "SELECT pg_sleep(0.001)").await;
            }
        }));
    }
    let bob = client(&front, "bob").await.expect("in");
    for _ in 0..3 {
        assert_eq!(one(&bob, "SELECT current_user").await, "bob");
    }
    done.store(true, SeqCst);
    for work in working {
        work.await.expect("nor is she");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_counted_by_user_and_by_database() {
    let server = server();
    let most = |clients_max| Bounds { clients_max: Some(clients_max), ..Bounds::default() };
    let limits = Limits {
        users: [("alice".to_owned(), most(2)), (OTHERS.to_owned(), most(3))].into(),
        databases: [(OTHERS.to_owned(), most(4))].into(),
    };
    let front = Front::start(server.topology(1), with(limits)).await;
    let alices = [client(&front, "alice").await.expect("in"), client(&front, "alice").await.expect("in")];
    let refused = client(&front, "alice").await.expect_err("one too many");
    assert_eq!(sqlstate(&refused), "53300");
    let bobs = [client(&front, "bob").await.expect("in"), client(&front, "bob").await.expect("in")];
    let refused = client(&front, "bob").await.expect_err("the database is full");
    assert!(refused.as_db_error().is_some_and(|said| said.message().contains("this database")), "{refused:?}");
    drop(alices);
    let mut third = None;
    for _ in 0..500 {
        match client(&front, "bob").await {
            Ok(client) => {
                third = Some(client);
                break;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    assert!(third.is_some(), "a place that was left is free");
    assert_eq!(sqlstate(&client(&front, "bob").await.expect_err("his own bound")), "53300");
    drop(bobs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_may_have_another_mode_and_another_pool_size() {
    let server = server();
    let bounds = Bounds { pool_size: Some(1), pool_mode: Some(PoolMode::Session), ..Bounds::default() };
    let limits = Limits { users: [("alice".to_owned(), bounds)].into(), ..Limits::default() };
    let config = router::Config { wait_max: Duration::from_millis(300), ..with(limits) };
    let front = Front::start(server.topology(1), config).await;
    let first = client(&front, "alice").await.expect("in");
    let second = client(&front, "alice").await.expect("in");
    one(&first, "SELECT 1").await;
    let refused = try_one(&second, "SELECT 1").await.expect_err("the first keeps the only connection");
    assert_eq!(sqlstate(&refused), "53300");
    let bobs = [client(&front, "bob").await.expect("in"), client(&front, "bob").await.expect("in")];
    for bob in &bobs {
        one(bob, "SELECT 1").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_nothing_for_too_long_are_closed_and_those_who_wait_are_not() {
    let server = server();
    let second = Some(Duration::from_secs(1));
    let config = router::Config { client_idle_max: second, transaction_idle_max: second, ..with(Limits::default()) };
    let front = Front::start(server.topology(1), config).await;
    let busy = client(&front, "bob").await.expect("in");
    let busy = tokio::spawn(async move { try_one(&busy, "SELECT pg_sleep(4)").await });
    let idle = client(&front, "alice").await.expect("in");
    let open = client(&front, "alice").await.expect("in");
    open.batch_execute("BEGIN; CREATE TEMP TABLE t ()").await.expect("begun");
    wait_for("both to be closed", || idle.is_closed() && open.is_closed());
    let left = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'alice' AND state LIKE 'idle in%'";
    wait_for("the transaction to be rolled back", || server.sql(left) == "0");
    busy.await.expect("no panic").expect("who waits for an answer does something");
    // What they are told.
    for (sql, state) in [("SELECT 1", "57P05"), ("BEGIN", "25P03")] {
        let told = front.psql_as("alice", &["-c", sql, "-c", "\\! sleep 3", "-c", "SELECT 1"]);
        assert!(told.contains(state), "{sql}: {told}");
    }
}
