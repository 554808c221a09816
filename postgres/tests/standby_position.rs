//! What a replica without a stream says of its end: all that it had received, once its replay has ended, and not before.

mod pair;

use model::{Lsn, Timeline};
use pair::{Pair, until};
use postgres::{LogEnd, ServerRole};

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_starts_again_knows_its_end_when_its_replay_has_ended() {
    let mut pair = Pair::new(&[], true).await;
    pair.old.run("CREATE TABLE t (id int, v text)").await;
    pair.in_step().await;
    // What is received from here on is not replayed in this life of the server.
    pair.new.run("SELECT pg_wal_replay_pause()").await;
    pair.old.run("INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 100000) g").await;
    let end: Lsn = pair.old.ask("SELECT pg_current_wal_flush_lsn()").await.remove(0).parse().expect("a position");
    until("received", async || {
        let received = pair.new.ask("SELECT pg_last_wal_receive_lsn()").await.remove(0);
        received.parse::<Lsn>().is_ok_and(|received| received >= end)
    })
    .await;
    pair.new.kill().await;
    let alone = ServerRole::Replica { primary_conninfo: String::new(), primary_slot_name: None, apply_delay_ms: 0 };
    pair.new.start(alone).await;

    let data_dir = pair.new.spec.data_dir.clone();
    let left = |position: Lsn| {
        let control = postgres::read_control_file(&data_dir).expect("readable");
        postgres::unreplayed(&data_dir, &control, position).expect("readable")
    };
    let (mut looks, mut short) = (0, 0);
    let position = loop {
        looks += 1;
        // In this order: a position read before the answer may be one of the way.
        let before = pair.new.sql.standby_position().await.expect("a position");
        if let Some(how) = pair.new.sql.came_to_end().await.expect("an answer") {
            assert_eq!(how, LogEnd::Replayed, "nothing was asked for in this life");
            break pair.new.sql.standby_position().await.expect("a position");
        }
        // The files tell too, wherever replay is.
        if before < end {
            short += 1;
            assert_eq!(left(before), Some(Timeline(1)), "{before}");
        }
    };
    assert!(position >= end, "{position} is said to be the end, {end} was received");
    assert_eq!(left(position), None);
    eprintln!("{looks} looks, {short} of them on the way");
}
