//! Reads on a replica: which go there, and what they must see.

use crate::harness::{Front, Server, config, one, sqlstate, try_one, wait_for};
use router::Topology;

/// A primary with a standby, a router that splits, and a client that is known to be read for on the standby.
pub async fn split() -> (Server, Server, Front) {
    split_by(router::Config { split: true, ..config(4) }).await
}

pub async fn split_by(config: router::Config) -> (Server, Server, Front) {
    let primary = Server::new();
    primary.sql("CREATE TABLE t (a int)");
    primary.sql("CREATE FUNCTION place() RETURNS text LANGUAGE sql STABLE AS $$ SELECT current_setting('transaction_read_only') $$");
    primary
        .sql("CREATE FUNCTION recovers() RETURNS text LANGUAGE sql STABLE AS $$ SELECT pg_is_in_recovery()::text $$");
    primary.sql("CREATE FUNCTION port() RETURNS text LANGUAGE sql STABLE AS $$ SELECT current_setting('port') $$");
    let standby = primary.standby();
    let topology = topology(&primary, &standby);
    let front = Front::start(topology, config).await;
    let client = front.client().await;
    // Until the functions are known, everything goes to the primary.
    let began = std::time::Instant::now();
    while one(&client, "SELECT place()").await != "on" {
        assert!(began.elapsed() < crate::harness::PATIENCE, "never read on the replica");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        front.topology.send_replace(self::topology(&primary, &standby));
    }
    (primary, standby, front)
}

pub fn topology(primary: &Server, standby: &Server) -> Topology {
    Topology { replicas: vec![standby.as_replica(2)], ..primary.topology(1) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_go_to_the_replica_and_everything_else_to_the_primary() {
    let (_primary, _standby, front) = split().await;
    let client = front.client().await;
    assert_eq!(one(&client, "SELECT place()").await, "on");
    let row = client.query_one("SELECT place()", &[]).await.expect("by the extended protocol");
    assert_eq!(row.get::<_, String>(0), "on");
    let prepared = client.prepare("SELECT place()").await.expect("prepared");
    assert_eq!(client.query_one(&prepared, &[]).await.expect("executed").get::<_, String>(0), "on");
    for sql in ["SELECT place() FOR UPDATE", "SELECT place(), pg_current_xact_id()", "SELECT 1; SELECT place()"] {
        front.client().await.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }
    let writer = front.client().await;
    assert_eq!(one(&writer, "INSERT INTO t VALUES (1) RETURNING place()").await, "off");
    writer.batch_execute("BEGIN").await.expect("begun");
    assert_eq!(one(&writer, "SELECT place()").await, "off", "it may write yet");
    writer.batch_execute("COMMIT").await.expect("committed");
    let reader = front.client().await;
    reader.batch_execute("BEGIN READ ONLY").await.expect("begun");
    assert_eq!(sqlstate(&try_one(&reader, "INSERT INTO t VALUES (2)").await.expect_err("read only")), "25006");
    reader.batch_execute("ROLLBACK").await.expect("ended");
    assert_eq!(one(&reader, "INSERT INTO t VALUES (3) RETURNING a").await, "3");
    // A write behind a read in one packet finds its way.
    let (read, wrote) =
        tokio::join!(one(&reader, "SELECT count(*) FROM t"), one(&reader, "INSERT INTO t VALUES (4) RETURNING a"));
    assert!(read.parse::<u32>().is_ok_and(|count| count >= 2), "{read}");
    assert_eq!(wrote, "4");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_sees_what_it_wrote_while_the_replica_is_behind() {
    let (primary, standby, front) = split().await;
    standby.sql("SELECT pg_wal_replay_pause()");
    wait_for("replay to pause", || standby.sql("SELECT pg_get_wal_replay_pause_state()") == "paused");
    front.topology.send_replace(topology(&primary, &standby));
    let (writer, other) = (front.client().await, front.client().await);
    writer.batch_execute("INSERT INTO t SELECT generate_series(1, 7)").await.expect("written");
    for _ in 0..20 {
        assert_eq!(one(&writer, "SELECT count(*) FROM t").await, "7", "read your writes");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(one(&other, "SELECT count(*) FROM t").await, "0", "nothing is promised to others: the replica serves");
    standby.sql("SELECT pg_wal_replay_resume()");
    let began = std::time::Instant::now();
    while one(&writer, "SELECT place()").await != "on" {
        assert!(began.elapsed() < crate::harness::PATIENCE, "the writer never comes back to the replica");
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        front.topology.send_replace(topology(&primary, &standby));
    }
    assert_eq!(one(&writer, "SELECT count(*) FROM t").await, "7");
}

/// Nobody tells where the replica is after the first word of it: a read that has to see a write has the router ask the replica
/// itself, and is served there, while others write all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_wrote_reads_on_the_replica_as_soon_as_that_has_caught_up() {
    const WRITES: usize = 30;
    // Longer than anybody would have it, for a machine that is busy with other tests.
    let read_wait = std::time::Duration::from_secs(2);
    let (_primary, standby, front) = split_by(router::Config { split: true, read_wait, ..config(4) }).await;
    let (writer, other) = (front.client().await, front.client().await);
    writer.batch_execute("CREATE TABLE others (a int)").await.expect("made");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let noise = tokio::spawn(async move {
        let mut stopped = std::pin::pin!(stopped);
        loop {
            let write = other.batch_execute("INSERT INTO others VALUES (1)");
            tokio::select! {
                done = write => done.expect("written"),
                _ = &mut stopped => return,
            }
        }
    });
    let mut on_replica = 0;
    for count in 1..=WRITES {
        writer.batch_execute("INSERT INTO t VALUES (1)").await.expect("written");
        let row = writer.query_one("SELECT count(*), place() FROM t", &[]).await.expect("read");
        assert_eq!(row.get::<_, i64>(0), count as i64, "read your writes");
        on_replica += usize::from(row.get::<_, String>(1) == "on");
    }
    let _ = stop.send(());
    noise.await.expect("the other client does not panic");
    assert!(on_replica >= WRITES / 3, "{on_replica} of {WRITES} reads behind a write were served by the replica");
    // One that does not catch up is not waited for again and again.
    standby.sql("SELECT pg_wal_replay_pause()");
    wait_for("replay to pause", || standby.sql("SELECT pg_get_wal_replay_pause_state()") == "paused");
    writer.batch_execute("INSERT INTO t VALUES (1)").await.expect("written");
    let count = one(&writer, "SELECT count(*) FROM t").await;
    assert_eq!(count, (WRITES + 1).to_string(), "read your writes");
}

/// A client that was told a table's new columns on the primary is not read for on a replica that has still the old ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_has_not_seen_a_change_of_columns_does_not_answer_for_them() {
    let consistency = routing::Level::Eventual;
    let (primary, standby, front) = split_by(router::Config { split: true, consistency, ..config(4) }).await;
    standby.sql("SELECT pg_wal_replay_pause()");
    wait_for("replay to pause", || standby.sql("SELECT pg_get_wal_replay_pause_state()") == "paused");
    primary.sql("INSERT INTO t VALUES (1)");
    primary.sql("ALTER TABLE t ADD b text DEFAULT 'x'");
    let client = front.client().await;
    client.batch_execute("BEGIN").await.expect("begun, on the primary");
    let both = client.prepare("SELECT * FROM t").await.expect("prepared");
    client.batch_execute("COMMIT").await.expect("ended");
    assert_eq!(one(&client, "SELECT place() || count(*) FROM t").await, "on0", "the replica serves, and is behind");
    for _ in 0..3 {
        let row = client.query_one(&both, &[]).await.expect("asked on the primary instead");
        assert_eq!(row.get::<_, &str>(1), "x");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_dies_is_not_noticed() {
    let (_primary, mut standby, front) = split().await;
    let client = front.client().await;
    assert_eq!(one(&client, "SELECT place()").await, "on");
    standby.kill();
    for _ in 0..5 {
        assert_eq!(one(&client, "SELECT place()").await, "off", "the primary can do all that a replica can");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bounded_read_misses_nothing_older_and_an_idle_cluster_is_not_stale() {
    let (primary, standby, _unbounded) = split().await;
    let level = routing::Level::Bounded(model::Millis(700));
    let config = router::Config { split: true, consistency: level, ..config(4) };
    let front = Front::start(topology(&primary, &standby), config).await;
    let client = front.client().await;
    // Nothing is written, for longer than the bound: the replica is as good as the primary.
    let began = std::time::Instant::now();
    let mut served = 0;
    while served < 20 || began.elapsed() < std::time::Duration::from_secs(2) {
        assert!(began.elapsed() < crate::harness::PATIENCE, "never read on the replica");
        served += u32::from(one(&client, "SELECT place()").await == "on");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(one(&client, "SELECT place()").await, "on", "an idle replica is not stale");
    // The replica stands still from here on, and says so; what it misses becomes older than allowed.
    standby.sql("SELECT pg_wal_replay_pause()");
    wait_for("replay to pause", || standby.sql("SELECT pg_get_wal_replay_pause_state()") == "paused");
    front.topology.send_replace(topology(&primary, &standby));
    client.batch_execute("INSERT INTO t VALUES (1)").await.expect("written");
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    let other = front.client().await;
    for _ in 0..20 {
        assert_eq!(one(&other, "SELECT count(*) FROM t").await, "1", "acknowledged longer ago than the bound");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    standby.sql("SELECT pg_wal_replay_resume()");
    let began = std::time::Instant::now();
    while one(&other, "SELECT place()").await != "on" {
        assert!(began.elapsed() < crate::harness::PATIENCE, "the replica is never read again");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        front.topology.send_replace(topology(&primary, &standby));
    }
}

/// A commit is on the standby and waits for an acknowledgement: the standby shows it, the primary hides it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_seen_on_a_replica_that_goes_is_not_unseen_on_the_primary() {
    let (primary, standby, front) = split().await;
    let (reader, writer) = (front.client().await, front.client().await);
    // Past the router, and there already: what releases the commit has to be quick.
    let direct = front.client_with(&primary.options()).await.expect("in");
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    primary.sql("SELECT pg_reload_conf()");
    wait_for("commits to wait", || primary.sql("SHOW synchronous_standby_names") == "nobody");
    let waits = tokio::spawn(async move { writer.batch_execute("INSERT INTO t VALUES (7)").await });
    wait_for("the standby to show it", || standby.sql("SELECT count(*) FROM t") == "1");
    assert_eq!(one(&reader, "SELECT place() || count(*) FROM t").await, "on1");
    assert_eq!(primary.sql("SELECT count(*) FROM t"), "0", "what makes it necessary to wait");
    // It goes, and while the router waits for another one the commit is acknowledged.
    front.topology.send_replace(primary.topology(1));
    let other = front.client().await;
    let told = std::time::Instant::now();
    while one(&other, "SELECT place()").await != "off" {
        assert!(told.elapsed() < std::time::Duration::from_secs(2), "nobody heard that the replica is gone");
    }
    let release = async {
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        direct.simple_query("ALTER SYSTEM RESET synchronous_standby_names").await.expect("set");
        direct.simple_query("SELECT pg_reload_conf()").await.expect("told");
    };
    let (seen, ()) = tokio::join!(one(&reader, "SELECT place() || count(*) FROM t"), release);
    assert_eq!(seen, "off1", "what was seen before");
    waits.await.expect("no panic").expect("acknowledged");
    // Nobody else is kept waiting, and the session is not any more.
    let began = std::time::Instant::now();
    one(&front.client().await, "SELECT count(*) FROM t").await;
    one(&reader, "SELECT count(*) FROM t").await;
    assert!(began.elapsed() < std::time::Duration::from_millis(900), "{:?}", began.elapsed());
}

/// The same with another replica, which shows it too: that one is read, for however long the primary hides the commit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_seen_on_a_replica_that_goes_is_read_on_another_one() {
    let (primary, mut first, front) = split().await;
    let second = primary.standby();
    let writer = front.client().await;
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    primary.sql("SELECT pg_reload_conf()");
    wait_for("commits to wait", || primary.sql("SHOW synchronous_standby_names") == "nobody");
    let waits = tokio::spawn(async move { writer.batch_execute("INSERT INTO t VALUES (7)").await });
    wait_for("the standbys to show it", || {
        first.sql("SELECT count(*) FROM t") == "1" && second.sql("SELECT count(*) FROM t") == "1"
    });
    let replicas = [first.as_replica(2), second.as_replica(3)];
    let tell = async |shown: &[usize], probe: &str| {
        let replicas = shown.iter().map(|index| replicas[*index].clone()).collect();
        front.topology.send_replace(Topology { replicas, ..primary.topology(1) });
        let began = std::time::Instant::now();
        while one(&front.client().await, "SELECT port()").await != probe {
            assert!(began.elapsed() < crate::harness::PATIENCE, "not heard");
        }
    };
    let ports = [&first, &second].map(|server| server.addr().port.to_string());
    let count = "SELECT place() || count(*) FROM t";
    tell(&[0], &ports[0]).await;
    let (told, unaware) = (front.client().await, front.client().await);
    assert_eq!([one(&told, count).await, one(&unaware, count).await], ["on1", "on1"]);
    // It is told that its replica is gone.
    tell(&[1], &ports[1]).await;
    assert_eq!(one(&told, count).await, "on1");
    // Nobody has told yet, and the replica is dead.
    tell(&[0], &ports[0]).await;
    assert_eq!(one(&unaware, count).await, "on1");
    front.topology.send_replace(Topology { replicas: replicas.to_vec(), ..primary.topology(1) });
    first.kill();
    assert_eq!(one(&unaware, count).await, "on1");
    assert_eq!(primary.sql("SELECT count(*) FROM t"), "0", "what would have been seen there");
    primary.sql("ALTER SYSTEM RESET synchronous_standby_names");
    primary.sql("SELECT pg_reload_conf()");
    waits.await.expect("no panic").expect("acknowledged");
}

/// What serves a session is ended on the replica, as recovery does it: the replica lives, and says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_ends_a_connection_is_read_on() {
    let (_primary, standby, front) = split().await;
    let reader = front.client().await;
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'client backend' \
        AND pid <> pg_backend_pid()";
    for _ in 0..5 {
        assert_eq!(one(&reader, "SELECT place()").await, "on");
        assert_ne!(standby.sql(end), "0", "there was something to end");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_no_failover_would_ask_is_read_by_those_who_are_promised_nothing() {
    let (primary, standby, front) = split().await;
    let mut told = topology(&primary, &standby);
    told.replicas[0].counted = false;
    front.topology.send_replace(told);
    let reader = front.client().await;
    let began = std::time::Instant::now();
    while one(&reader, "SELECT place()").await != "off" {
        assert!(began.elapsed() < crate::harness::PATIENCE, "it is still read");
    }
    assert_eq!(one(&reader, "/*+ consistency=eventual */ SELECT place()").await, "on");
    let routed = one(&reader, "EXPLAIN ROUTE SELECT place()").await;
    assert!(routed.contains("primary"), "{routed}");
}
