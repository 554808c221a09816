//! tokio-postgres through the router. It pipelines by itself: whatever is asked without waiting goes out at once.

use crate::harness::{one, sqlstate, try_one};
use crate::{Stage, harness};
use futures_util::{SinkExt, StreamExt, TryStreamExt};
use std::time::Duration;
use tokio_postgres::binary_copy::{BinaryCopyInWriter, BinaryCopyOutStream};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, NoTls};

/// Runs all scenarios.
pub async fn tokio_postgres(stage: &Stage) {
    let database = stage.database("tokio_postgres");
    let mut options = stage.front.options();
    options.dbname(&database);
    let client = || async { stage.front.client_with(&options).await.expect("the router lets us in") };
    prepared(&client().await, &client().await).await;
    pipelined(&client().await).await;
    copied(&client().await).await;
    cancelled(&client().await, &client().await).await;
    in_transactions(&mut client().await).await;
    types(&client().await).await;
    settings(&options, stage).await;
    notified(&options, &client().await).await;
    replaced(&client().await, &client().await).await;
}

async fn prepared(client: &Client, other: &Client) {
    let plus = client.prepare("SELECT $1::int + 1").await.expect("prepared");
    let typed = client.prepare_typed("SELECT $1", &[Type::INT8]).await.expect("prepared");
    for number in 0..30 {
        // Another client holds a server now and then.
        let word = if number % 5 == 0 { "BEGIN; SELECT 1" } else { "ROLLBACK" };
        other.batch_execute(word).await.expect("done");
        assert_eq!(client.query_one(&plus, &[&number]).await.expect("answered").get::<_, i32>(0), number + 1);
        let long = i64::from(number) << 40;
        assert_eq!(client.query_one(&typed, &[&long]).await.expect("answered").get::<_, i64>(0), long);
        let fresh = client.prepare(&format!("SELECT {number}")).await.expect("prepared");
        assert_eq!(client.query_one(&fresh, &[]).await.expect("answered").get::<_, i32>(0), number);
    }
    other.batch_execute("ROLLBACK").await.expect("done");
}

async fn pipelined(client: &Client) {
    client.batch_execute("CREATE TABLE piped (a int)").await.expect("made");
    for round in 1..=20_i64 {
        let (wrote, count, failed, five) = tokio::join!(
            client.execute("INSERT INTO piped VALUES (1)", &[]),
            client.query_one("SELECT count(*) FROM piped", &[]),
            client.query_one("SELECT 1/0", &[]),
            client.query_one("SELECT 5", &[]),
        );
        assert_eq!(wrote.expect("written"), 1);
        assert!(count.expect("counted").get::<_, i64>(0) <= round);
        assert_eq!(sqlstate(&failed.expect_err("divided by zero")), "22012");
        assert_eq!(five.expect("answered").get::<_, i32>(0), 5);
        let count = client.query_one("SELECT count(*) FROM piped", &[]).await.expect("counted");
        assert_eq!(count.get::<_, i64>(0), round, "it reads what it wrote");
    }
}

async fn copied(client: &Client) {
    client.batch_execute("CREATE TABLE copied (a int, b text)").await.expect("made");
    let sink = client.copy_in("COPY copied FROM STDIN BINARY").await.expect("begun");
    let writer = BinaryCopyInWriter::new(sink, &[Type::INT4, Type::TEXT]);
    let mut writer = std::pin::pin!(writer);
    for number in 0..20_000_i32 {
        writer.as_mut().write(&[&number, &format!("text {number}")]).await.expect("written");
    }
    assert_eq!(writer.finish().await.expect("finished"), 20_000);
    let rows = client.copy_out("COPY copied TO STDOUT BINARY").await.expect("begun");
    let rows: Vec<_> = BinaryCopyOutStream::new(rows, &[Type::INT4, Type::TEXT]).try_collect().await.expect("all rows");
    assert_eq!((rows.len(), rows[777].get::<&str>(1)), (20_000, "text 777"));
    {
        let sink = client.copy_in("COPY copied FROM STDIN").await.expect("begun");
        let mut sink = std::pin::pin!(sink);
        sink.send(std::io::Cursor::new(b"1\tgiven up\n".to_vec())).await.expect("sent");
        // Dropped: the driver says CopyFail.
    }
    {
        let rows = client.copy_out("COPY copied TO STDOUT").await.expect("begun");
        let mut rows = std::pin::pin!(rows);
        assert!(rows.next().await.is_some(), "and the rest is not wanted");
    }
    assert_eq!(one(client, "SELECT count(*) FROM copied").await, "20000");
}

async fn cancelled(client: &Client, innocent: &Client) {
    let token = client.cancel_token();
    let calm = one(innocent, "SELECT pg_sleep(1)::text || 'calm'");
    let slow = try_one(client, "SELECT pg_sleep(30)");
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(400)).await;
        token.cancel_query(NoTls).await.expect("sent");
    };
    let (slow, calm, ()) = tokio::join!(slow, calm, cancel);
    assert_eq!(sqlstate(&slow.expect_err("cancelled")), "57014");
    assert_eq!(calm, "calm");
    assert_eq!(one(client, "SELECT 1").await, "1");
}

async fn in_transactions(client: &mut Client) {
    client.batch_execute("CREATE TABLE kept (a int)").await.expect("made");
    let mut transaction = client.transaction().await.expect("begun");
    transaction.execute("INSERT INTO kept VALUES (1)", &[]).await.expect("written");
    for _ in 0..3 {
        let inner = transaction.savepoint("s").await.expect("set");
        inner.execute("INSERT INTO kept VALUES (2)", &[]).await.expect("written");
        let failed = inner.query_one("SELECT 1/$1::int", &[&0]).await.expect_err("divided by zero");
        assert_eq!(sqlstate(&failed), "22012");
        let refused = inner.query_one("SELECT 1", &[]).await.expect_err("aborted");
        assert_eq!(sqlstate(&refused), "25P02");
        inner.rollback().await.expect("rolled back");
    }
    let portal = transaction.bind("SELECT generate_series(1, 1000)", &[]).await.expect("bound");
    let mut sum = 0;
    loop {
        let rows = transaction.query_portal(&portal, 70).await.expect("rows");
        sum += rows.iter().map(|row| row.get::<_, i32>(0)).sum::<i32>();
        if rows.len() < 70 {
            break;
        }
    }
    assert_eq!(sum, 500_500);
    transaction.commit().await.expect("committed");
    let dropped = client.transaction().await.expect("begun");
    dropped.execute("INSERT INTO kept VALUES (4)", &[]).await.expect("written");
    drop(dropped);
    assert_eq!(one(client, "SELECT string_agg(a::text, ',') FROM kept").await, "1");
    let reader = client.build_transaction().read_only(true).start().await.expect("begun");
    let refused = reader.execute("INSERT INTO kept VALUES (5)", &[]).await.expect_err("read only");
    assert_eq!(sqlstate(&refused), "25006");
}

async fn types(client: &Client) {
    let bytes: Vec<u8> = (0..=255_u8).cycle().take(5_000_000).collect();
    let (numbers, texts, json) = (vec![1_i64, -2], vec![Some("a"), None], serde_json::json!({"a": [1, null]}));
    let sql = "SELECT $1::bytea, $2::int8[], $3::text[], $4::jsonb";
    let row = client.query_one(sql, &[&bytes, &numbers, &texts, &json]).await.expect("answered");
    assert_eq!(row.get::<_, Vec<u8>>(0), bytes);
    assert_eq!(row.get::<_, Vec<i64>>(1), [1, -2]);
    assert_eq!(row.get::<_, Vec<Option<String>>>(2), [Some("a".to_owned()), None]);
    assert_eq!(row.get::<_, serde_json::Value>(3), json);
}

async fn settings(options: &tokio_postgres::Config, stage: &Stage) {
    let mut named = options.clone();
    named.application_name("follower").options("-c search_path=elsewhere,public -c work_mem=5MB");
    let follower = stage.front.client_with(&named).await.expect("in");
    let other = stage.front.client_with(options).await.expect("in");
    // By the session that reads it: another one may read on a replica that has not heard of it.
    follower.batch_execute("CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.here (a int)").await.expect("made");
    for _ in 0..10 {
        assert_eq!(one(&follower, "SELECT count(*) FROM here").await, "0");
        assert_eq!(one(&follower, "SHOW application_name").await, "follower");
        assert_eq!(one(&follower, "SHOW work_mem").await, "5MB");
        assert_eq!(one(&other, "SHOW application_name").await, "");
        assert_eq!(one(&other, "SHOW work_mem").await, "4MB");
        assert_eq!(one(&other, "SELECT to_regclass('here')").await, "NULL");
        follower.batch_execute("RESET ALL").await.expect("reset");
    }
}

async fn notified(options: &tokio_postgres::Config, speaker: &Client) {
    let (listener, mut connection) = options.connect(NoTls).await.expect("in");
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
            if let tokio_postgres::AsyncMessage::Notification(note) = message {
                let _ = heard.send(note.payload().to_owned());
            }
        }
    });
    listener.batch_execute("LISTEN news").await.expect("listens");
    for number in 0..3 {
        speaker.execute("SELECT pg_notify('news', $1)", &[&number.to_string()]).await.expect("notified");
        let note = tokio::time::timeout(harness::PATIENCE, hears.recv()).await.expect("in time");
        assert_eq!(note, Some(number.to_string()));
    }
}

async fn replaced(client: &Client, killer: &Client) {
    // Its transaction keeps it on a server of its own.
    killer.batch_execute("BEGIN; SELECT 1").await.expect("begun");
    let statement = client.prepare("SELECT $1::int + 1").await.expect("prepared");
    for number in 0..3 {
        let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.expect("answered").get(0);
        killer.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.expect("killed");
        let row = client.query_one(&statement, &[&number]).await.expect("the router replaced the server");
        assert_eq!(row.get::<_, i32>(0), number + 1);
    }
}
