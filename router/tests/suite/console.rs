//! The console, by psql and by a driver.

use crate::harness::{Front, Server, config, one, sqlstate, try_one, wait_for};
use std::time::Duration;

async fn front(server: &Server) -> (Front, tokio_postgres::Client) {
    let admins = vec!["postgres".to_owned()];
    let front = Front::start(server.topology(1), router::Config { admins, ..config(2) }).await;
    let mut options = front.options();
    options.dbname("stemma");
    let console = front.client_with(&options).await.expect("an administrator");
    (front, console)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_tells_who_is_there_and_why_servers_are_kept() {
    let server = Server::new();
    let (front, console) = front(&server).await;
    let client = front.client().await;
    client.batch_execute("CREATE TEMP TABLE t (a int)").await.expect("made");
    let pins = console.query("SHOW PINS", &[]).await.expect("by the extended protocol");
    assert_eq!(pins.len(), 1);
    assert_eq!(pins[0].get::<_, String>("reasons"), "temporary object");
    let pools = console.simple_query("SHOW POOLS").await.expect("by the simple one");
    assert!(format!("{pools:?}").contains("write (epoch 1)"), "{pools:?}");
    assert_eq!(one(&console, "SHOW NODES").await, "p");
    for (what, name) in [("USERS", "postgres"), ("DATABASES", "postgres")] {
        let told = console.simple_query(&format!("SHOW {what}")).await.expect("listed");
        let row = told.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let row = row.expect("one");
        let of = |column| row.get(column).map(str::to_owned);
        assert_eq!([of("name"), of("clients"), of("servers")], [name, "1", "1"].map(|text| Some(text.to_owned())));
        assert_eq!([of("pool_size"), of("servers_max")], [Some("2".to_owned()), None]);
    }
    assert_eq!(sqlstate(&try_one(&console, "SELECT 1").await.expect_err("no database")), "42601");

    let routes = console.query("SHOW ROUTES", &[]).await.expect("listed");
    assert_eq!(routes[0].get::<_, String>("reason"), "unsplit");
    let stats = console.simple_query("SHOW STATS").await.expect("listed");
    let served = stats.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) if row.get("stage") == Some("server") => row.get("requests"),
        _ => None,
    });
    assert!(served.is_some_and(|count| count != "0"), "{stats:?}");
    assert_eq!(console.query("SHOW TOKENS", &[]).await.expect("listed").len(), 1);
    assert!(console.query("SHOW LOSSES", &[]).await.expect("listed").is_empty());

    let pid = one(&console, "SHOW CLIENTS").await;
    console.batch_execute(&format!("KILL {pid}")).await.expect("ordered");
    wait_for("the client to be gone", || client.is_closed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pools_of_former_primacies_are_gone() {
    let server = Server::new();
    let (front, console) = front(&server).await;
    let client = front.client().await;
    for epoch in 2..5 {
        assert_eq!(one(&client, "SELECT 'here'").await, "here");
        front.topology.send_replace(server.topology(epoch));
        let client = front.client().await;
        // Told at once, and forgotten when the next look at its users comes round.
        let current = format!("write (epoch {epoch})");
        let began = std::time::Instant::now();
        loop {
            assert_eq!(one(&client, "SELECT 'here'").await, "here");
            let told = console.query("SHOW POOLS", &[]).await.expect("listed");
            let purposes: Vec<String> = told.iter().map(|row| row.get("purpose")).collect();
            if purposes == [current.as_str()] {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "{purposes:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pause_holds_new_statements_until_resume() {
    let server = Server::new();
    let (front, console) = front(&server).await;
    let client = front.client().await;
    client.batch_execute("BEGIN").await.expect("begun");
    let pausing = console.batch_execute("PAUSE");
    let mut pausing = std::pin::pin!(pausing);
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut pausing).await.is_err(), "a transaction is open");
    client.batch_execute("COMMIT").await.expect("it may end");
    pausing.await.expect("paused");
    let held = tokio::spawn(async move { one(&client, "SELECT 5").await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!held.is_finished());
    assert_eq!(console.query("SHOW HELD", &[]).await.expect("listed").len(), 1);
    console.batch_execute("RESUME").await.expect("resumed");
    assert_eq!(held.await.expect("no failure"), "5");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_made_anew_and_the_configuration_is_asked_for_again() {
    let server = Server::new();
    let (front, console) = front(&server).await;
    let (client, busy) = (front.client().await, front.client().await);
    let (pid, held) = ("SELECT pg_backend_pid()", "SELECT pg_backend_pid(), 'held'");
    let before = one(&client, pid).await;
    assert_eq!(one(&client, pid).await, before);
    busy.batch_execute("BEGIN").await.expect("begun");
    let kept = one(&busy, held).await;
    console.batch_execute("RECONNECT").await.expect("ordered");
    assert_eq!(one(&busy, held).await, kept, "a transaction keeps its server");
    busy.batch_execute("COMMIT").await.expect("ended");
    let after = one(&client, pid).await;
    assert!(after != before && after != kept, "{before}, {kept}, {after}");
    assert_eq!(one(&client, pid).await, after, "the new one stays");
    let mut reloads = front.router.reloads();
    console.batch_execute("RELOAD").await.expect("ordered");
    reloads.changed().await.expect("asked for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_those_who_are_listed_get_in() {
    let server = Server::new();
    let front = Front::before(&server, 1).await;
    let mut options = front.options();
    options.dbname("pgbouncer");
    assert_eq!(sqlstate(&front.client_with(&options).await.expect_err("not listed")), "42501");
}
