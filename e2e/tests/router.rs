//! The router before a cluster: clients keep their connection while the primary dies and another takes over.

use e2e::{Cluster, Front};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

const PATIENCE: Duration = Duration::from_secs(120);

/// What tells one server from another is asked on the primary, unless it is hidden in a function.
const PLACE: &str = "CREATE FUNCTION place() RETURNS text LANGUAGE sql STABLE AS \
                     $$ SELECT current_setting('transaction_read_only') || ' ' || (client_addr IS NULL) \
                        FROM pg_stat_activity WHERE pid = pg_backend_pid() $$";

/// Adds one row per transaction until `until`, and tells what came of each: acknowledged numbers, and the SQLSTATE of
/// those that were not.
async fn write(client: Client, first: i32, until: Instant) -> (Client, Vec<i32>, Vec<(i32, String)>) {
    let (mut acknowledged, mut failed) = (Vec::new(), Vec::new());
    let mut number = first;
    while Instant::now() < until {
        let outcome = client.batch_execute(&format!("BEGIN; INSERT INTO written VALUES ({number})")).await;
        let outcome = match outcome {
            Ok(()) => client.batch_execute("COMMIT").await,
            Err(error) => Err(error),
        };
        match outcome {
            Ok(()) => acknowledged.push(number),
            Err(error) => {
                let state = error.code().map_or_else(|| format!("{error:?}"), |code| code.code().to_owned());
                assert!(!client.is_closed(), "the connection is lost: {error:?}");
                failed.push((number, state));
                client.batch_execute("ROLLBACK").await.expect("the connection lives");
            }
        }
        number += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (client, acknowledged, failed)
}

/// A client that does nothing but LISTEN, and what it hears.
async fn listen(front: &Front) -> tokio::sync::mpsc::UnboundedReceiver<String> {
    use tokio_postgres::{AsyncMessage, NoTls};
    let (client, mut connection) = front.options().connect(NoTls).await.expect("in");
    let (sender, heard) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            let _ = match message {
                AsyncMessage::Notification(note) => sender.send(note.payload().to_owned()),
                AsyncMessage::Notice(notice) => sender.send(notice.message().to_owned()),
                _ => Ok(()),
            };
        }
    });
    client.batch_execute("LISTEN news").await.expect("listens");
    tokio::spawn(async move {
        let _connected = client;
        std::future::pending::<()>().await;
    });
    heard
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_primary_dies_no_connection_is_lost_and_no_acknowledged_write() {
    let cluster = Cluster::start(15, &[]).await;
    let front = Front::before(&cluster, "").await;
    let client = front.client().await;
    client.batch_execute("CREATE TABLE written (number int PRIMARY KEY)").await.expect("made");
    let idle = front.client().await;
    let mut heard = listen(&front).await;
    let until = Instant::now() + Duration::from_secs(20);
    let mut writers = vec![tokio::spawn(write(client, 0, until))];
    for writer in 1..4 {
        writers.push(tokio::spawn(write(front.client().await, writer * 1_000_000, until)));
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.crash("n1", "host").await;
    let mut acknowledged = 0;
    for writer in writers {
        let (client, written, failed) = writer.await.expect("no connection was lost");
        for (number, state) in &failed {
            assert!(matches!(state.as_str(), "40001" | "08007"), "{number} ended in {state}");
        }
        let rows = client.query("SELECT number FROM written", &[]).await.expect("the new primary answers");
        let there: std::collections::BTreeSet<i32> = rows.iter().map(|row| row.get(0)).collect();
        for number in &written {
            assert!(there.contains(number), "{number} was acknowledged and is lost");
        }
        for (number, state) in &failed {
            assert!(state != "40001" || !there.contains(number), "{number} was called undone and is there");
        }
        let last = written.last().copied().unwrap_or_default();
        assert!(failed.iter().all(|(number, _)| *number < last), "writes go on after the failover");
        acknowledged += written.len();
    }
    assert!(acknowledged > 100, "{acknowledged} writes are no load");
    let gap = tokio::time::timeout(PATIENCE, heard.recv()).await.expect("in time").expect("connected");
    assert!(gap.starts_with("notifications may have been missed"), "{gap}");
    idle.batch_execute("NOTIFY news, 'from the next primary'").await.expect("notified");
    let note = tokio::time::timeout(PATIENCE, heard.recv()).await.expect("in time").expect("connected");
    assert_eq!(note, "from the next primary");
    let row = idle.query_one("SELECT count(*) FROM written", &[]).await.expect("the idle client did not notice");
    assert!(row.get::<_, i64>(0) >= i64::try_from(acknowledged).expect("few"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_are_spread_over_replicas_and_see_what_their_session_wrote() {
    let cluster = Cluster::start(15, &[]).await;
    let front = Front::before(&cluster, "split = true").await;
    let writer = front.client().await;
    writer.batch_execute("CREATE TABLE seen (number int)").await.expect("made");
    for number in 0..200 {
        writer.execute("INSERT INTO seen VALUES ($1)", &[&number]).await.expect("written");
        let row = writer.query_one("SELECT count(*) FROM seen", &[]).await.expect("read");
        assert_eq!(row.get::<_, i64>(0), i64::from(number) + 1, "read your writes");
    }
    writer.batch_execute(PLACE).await.expect("made");
    let began = Instant::now();
    loop {
        let reader = front.client().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let row = reader.query_one("SELECT place()", &[]).await.expect("read");
        let place = row.get::<_, String>(0);
        assert!(place.ends_with(" true"), "the router speaks to servers of its machine by their sockets: {place}");
        if place == "on true" {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "no read was served by a replica");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// A copy that is made while a commit waits has that commit, and hides it until it applies the end of a later one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_waited_for_a_replica_to_be_rebuilt_is_read_there_by_its_session() {
    let cluster = Cluster::start(15, &["--nodes", "2"]).await;
    cluster.run(&["config", "set", "strict=true"]).await.exits(0);
    let promised = |view: &model::status::ClusterStatus| view.durability.in_force && view.durability.strict;
    cluster.wait_status("commits wait rather than lose redundancy", promised).await;
    let front = Front::before(&cluster, "split = true").await;
    let client = front.client().await;
    client.batch_execute("CREATE TABLE seen (number int)").await.expect("made");
    client.batch_execute(PLACE).await.expect("made");
    cluster.crash("n2", "host").await;
    std::fs::remove_dir_all(&cluster.node("n2").data_dir).expect("removable");
    let insert = tokio::spawn(async move {
        client.batch_execute("INSERT INTO seen VALUES (1)").await.expect("acknowledged in the end");
        client
    });
    cluster.wait_value("n1", "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'", "1").await;
    cluster.restart("n2").await;
    let client = insert.await.expect("written");
    let began = Instant::now();
    loop {
        let row = client.query_one("SELECT place(), (SELECT count(*) FROM seen)", &[]).await.expect("read");
        let place: String = row.get(0);
        assert_eq!(row.get::<_, i64>(1), 1, "read your writes, at {place}");
        if place.starts_with("on") {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "no read was served by the replica");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
