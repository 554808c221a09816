//! LISTEN and NOTIFY: many clients by one connection, and what they hear when servers change.

use crate::harness::{Front, PATIENCE, Server, config, one, sqlstate, try_one, wait_for};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio_postgres::{AsyncMessage, Client, NoTls};

const GAP: &str = "! notifications may have been missed while the server was changed";

/// A client, and what it hears: `channel payload`, or `! message` of a notice.
struct Hearer {
    client: Client,
    heard: UnboundedReceiver<String>,
}

impl Hearer {
    async fn new(front: &Front) -> Hearer {
        let (client, mut connection) = front.options().connect(NoTls).await.expect("in");
        let (sender, heard) = unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
                let _ = match message {
                    AsyncMessage::Notification(note) => sender.send(format!("{} {}", note.channel(), note.payload())),
                    AsyncMessage::Notice(notice) => sender.send(format!("! {}", notice.message())),
                    _ => Ok(()),
                };
            }
        });
        Hearer { client, heard }
    }

    async fn listening(front: &Front, sql: &str) -> Hearer {
        let hearer = Hearer::new(front).await;
        hearer.client.batch_execute(sql).await.expect(sql);
        hearer
    }

    async fn next(&mut self) -> String {
        let heard = tokio::time::timeout(PATIENCE, self.heard.recv()).await;
        heard.expect("something is heard in time").expect("connected")
    }

    /// What it has heard by the time that its next statement is answered.
    async fn all(&mut self) -> Vec<String> {
        one(&self.client, "SELECT 1").await;
        std::iter::from_fn(|| self.heard.try_recv().ok()).collect()
    }
}

fn listening_servers(server: &Server) -> usize {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    server.sql(sql).parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_listen_by_one_connection_and_each_hears_its_own_channels() {
    let server = Server::new();
    let front = Front::before(&server, 2).await;
    let mut hearers = Vec::new();
    for number in 0..20 {
        hearers.push(Hearer::listening(&front, &format!("LISTEN \"own {number}\"; LISTEN everyone")).await);
    }
    let notifier = front.client().await;
    assert!(listening_servers(&server) <= 2, "of two connections one listens for all");
    notifier.batch_execute("NOTIFY \"own 7\", 'seven'; NOTIFY everyone, 'all'").await.expect("notified");
    notifier.query("SELECT pg_notify('everyone', 'again')", &[]).await.expect("notified");
    for (number, hearer) in hearers.iter_mut().enumerate() {
        if number == 7 {
            assert_eq!(hearer.next().await, "own 7 seven");
        }
        assert_eq!([hearer.next().await, hearer.next().await], ["everyone all", "everyone again"]);
    }
    // What one hears no more the others do.
    hearers[0].client.batch_execute("UNLISTEN everyone").await.expect("done");
    hearers[1].client.batch_execute("UNLISTEN *").await.expect("done");
    drop(hearers.remove(2));
    notifier
        .batch_execute("NOTIFY everyone, 'fewer'; NOTIFY \"own 0\", 'still'; NOTIFY \"own 1\"")
        .await
        .expect("done");
    assert_eq!(hearers[2].next().await, "everyone fewer");
    assert_eq!(hearers[0].next().await, "own 0 still");
    assert_eq!([hearers[0].all().await, hearers[1].all().await], [Vec::<String>::new(), Vec::new()]);
    // Nobody listens: the connection is anybody's again.
    hearers.clear();
    wait_for("the channels to be given up", || {
        let busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'UNLISTEN%' AND state = 'idle'";
        server.sql(busy) != "0"
    });
    let (a, b) = (front.client().await, front.client().await);
    a.batch_execute("BEGIN").await.expect("begun");
    b.batch_execute("BEGIN").await.expect("there are two connections for two clients");
}

/// While it is notified all the time, clients begin to listen, and begin again: each hears every number from the first one
/// on, in order and once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_missed_and_nothing_comes_twice_when_listening_is_taken_over() {
    let server = Server::new();
    let front = Front::before(&server, 4).await;
    let notifier = front.client_with(&server.options()).await.expect("past the router");
    let notifying = tokio::spawn(async move {
        for number in 0u64.. {
            if notifier.batch_execute(&format!("NOTIFY news, '{number}'")).await.is_err() {
                return;
            }
        }
    });
    // One that stays, so that the listener does too.
    let _stays = Hearer::listening(&front, "LISTEN other").await;
    for round in 0..40 {
        let mut hearer = Hearer::listening(&front, "LISTEN news").await;
        let mut last: Option<u64> = None;
        for step in 0..60 {
            match step {
                20 => hearer.client.batch_execute("LISTEN more").await.expect("listens"),
                40 => hearer.client.batch_execute("BEGIN; LISTEN news; COMMIT").await.expect("listens"),
                _ => {}
            }
            let heard = hearer.next().await;
            let number = heard.strip_prefix("news ").and_then(|number| number.parse().ok());
            let number: u64 = number.unwrap_or_else(|| panic!("round {round}, step {step}: {heard}"));
            assert!(last.is_none_or(|last| number == last + 1), "round {round}, step {step}: {last:?}, then {number}");
            last = Some(number);
        }
    }
    notifying.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listening_begins_with_the_commit_and_is_rolled_back_with_the_transaction() {
    let server = Server::new();
    let front = Front::before(&server, 3).await;
    let notifier = front.client().await;
    let mut hearer = Hearer::new(&front).await;
    hearer.client.batch_execute("BEGIN; LISTEN never; ROLLBACK").await.expect("rolled back");
    hearer.client.batch_execute("BEGIN; LISTEN kept; SAVEPOINT s; LISTEN dropped").await.expect("begun");
    notifier.batch_execute("NOTIFY kept, 'too early'").await.expect("notified");
    hearer.client.batch_execute("ROLLBACK TO s; COMMIT").await.expect("committed");
    notifier.batch_execute("NOTIFY never; NOTIFY dropped; NOTIFY kept, 'yes'").await.expect("notified");
    assert_eq!(hearer.next().await, "kept yes");
    // Within a transaction nothing is heard, as from the server itself.
    hearer.client.batch_execute("BEGIN").await.expect("begun");
    notifier.batch_execute("NOTIFY kept, 'meanwhile'").await.expect("notified");
    assert_eq!(hearer.all().await, Vec::<String>::new());
    hearer.client.batch_execute("COMMIT").await.expect("committed");
    assert_eq!(hearer.next().await, "kept meanwhile");
    // One hears oneself, too; and a failed transaction changes nothing.
    hearer.client.batch_execute("NOTIFY kept, 'mine'").await.expect("notified");
    assert_eq!(hearer.next().await, "kept mine");
    let failed = try_one(&hearer.client, "UNLISTEN kept; SELECT 1/0").await.expect_err("divided by zero");
    assert_eq!(sqlstate(&failed), "22012");
    hearer.client.execute("NOTIFY kept, 'after all'", &[]).await.expect("notified");
    assert_eq!(hearer.next().await, "kept after all");
    hearer.client.batch_execute("DISCARD ALL").await.expect("done");
    notifier.batch_execute("NOTIFY kept, 'no more'").await.expect("notified");
    assert_eq!(hearer.all().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_listens_goes_on_at_the_next_primary_and_is_told_of_the_gap() {
    for mode in [router::config::PoolMode::Transaction, router::config::PoolMode::Session] {
        let (mut server, next) = (Server::new(), Server::new());
        let front = Front::start(server.topology(1), router::Config { mode, ..config(5) }).await;
        let mut hearer = Hearer::listening(&front, "LISTEN news").await;
        let mut watchful = Hearer::listening(&front, "LISTEN news; LISTEN \"stemma.gap\"").await;
        front.client().await.batch_execute("NOTIFY news, 'before'").await.expect("notified");
        assert_eq!([hearer.next().await, watchful.next().await], ["news before", "news before"]);
        server.kill();
        front.topology.send_replace(next.topology(2));
        assert_eq!([hearer.next().await, watchful.next().await], [GAP, GAP]);
        assert_eq!(watchful.next().await, "stemma.gap 2");
        // From the notice on nothing is missed.
        next.sql("NOTIFY news, 'behind'");
        assert_eq!([hearer.next().await, watchful.next().await], ["news behind", "news behind"]);
        one(&hearer.client, "SELECT 1").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_listens_itself_is_replaced_as_well() {
    // Of one connection none can be kept for listening, so the client keeps it.
    let server = Server::new();
    let front = Front::before(&server, 1).await;
    let mut hearer = Hearer::listening(&front, "LISTEN news").await;
    server.sql("NOTIFY news, 'one'");
    assert_eq!(hearer.next().await, "news one");
    let pid = one(&hearer.client, "SELECT pg_backend_pid()").await;
    server.sql(&format!("SELECT pg_terminate_backend({pid}, 20000)"));
    let gone = try_one(&hearer.client, "SELECT 1").await.expect_err("it is told");
    assert_eq!(sqlstate(&gone), "57P02");
    // A temporary table keeps its client's server, but not for listening: that goes on elsewhere.
    let front = Front::before(&server, 3).await;
    let mut hearer = Hearer::listening(&front, "CREATE TEMP TABLE t (a int); LISTEN news").await;
    let pid = one(&hearer.client, "SELECT pg_backend_pid()").await;
    server.sql(&format!("SELECT pg_terminate_backend({pid}, 20000)"));
    server.sql("NOTIFY news, 'two'");
    assert_eq!(hearer.next().await, "news two");
    let gone = try_one(&hearer.client, "SELECT 1").await.expect_err("the table is gone");
    assert_eq!(sqlstate(&gone), "57P02");
    server.sql("NOTIFY news, 'three'");
    assert_eq!(hearer.next().await, "news three");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_tells_who_listens_and_who_only_listens_is_not_idle() {
    let server = Server::new();
    let admins = vec!["postgres".to_owned()];
    let idle = Some(Duration::from_millis(500));
    let front = Front::start(server.topology(1), router::Config { admins, client_idle_max: idle, ..config(3) }).await;
    let console = front.client_with(front.options().dbname("stemma")).await.expect("an administrator");
    let mut hearer = Hearer::listening(&front, "LISTEN b; LISTEN a").await;
    let began = std::time::Instant::now();
    loop {
        let listed = console.query("SHOW LISTENERS", &[]).await.expect("listed");
        let pins = console.query("SHOW PINS", &[]).await.expect("listed");
        let channels: Vec<String> = listed.iter().map(|row| row.get("channels")).collect();
        // It is answered by its own server, which is taken from it then.
        if channels == ["a, b"] && pins.is_empty() {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{channels:?}, {} pins", pins.len());
    }
    let other = front.client().await;
    wait_for("the other one to be closed", || other.is_closed());
    server.sql("NOTIFY a, 'here'");
    assert_eq!(hearer.next().await, "a here");
    // A connection that an administrator wants made anew is.
    console.batch_execute("RECONNECT").await.expect("ordered");
    assert_eq!(hearer.next().await, GAP);
    server.sql("NOTIFY b, 'there'");
    assert_eq!(hearer.next().await, "b there");
    assert!(front.router.meter().text().contains("stemma_router_notification_gaps_total 1"));
}
