//! sqlx through the router: it prepares everything under names of its own and keeps a cache of them per connection.
//! Prints a line per scenario; run by drivers/main.rs.

use futures_util::TryStreamExt;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{Connection, Executor, PgConnection, Row};
use std::time::Duration;

type Done = Result<(), Box<dyn std::error::Error + Send + Sync>>;

fn options() -> PgConnectOptions {
    std::env::var("STEMMA_DSN_URL").expect("STEMMA_DSN_URL").parse().expect("a URL")
}

async fn connect() -> Result<PgConnection, sqlx::Error> {
    PgConnection::connect_with(&options()).await
}

fn code(error: &sqlx::Error) -> String {
    error.as_database_error().and_then(|error| error.code()).map_or_else(|| error.to_string(), |code| code.into_owned())
}

async fn number(client: &mut PgConnection, sql: &str, value: i32) -> Result<i32, sqlx::Error> {
    Ok(sqlx::query(sql).bind(value).fetch_one(client).await?.get(0))
}

async fn prepared() -> Done {
    let (mut client, mut other) = (connect().await?, connect().await?);
    for turn in 0..30 {
        other.execute(if turn % 5 == 0 { "BEGIN; SELECT 1" } else { "ROLLBACK" }).await?;
        assert_eq!(number(&mut client, "SELECT $1::int + 1", turn).await?, turn + 1);
        assert_eq!(number(&mut other, "SELECT $1::int + 2", turn).await?, turn + 2);
    }
    // More texts than the cache holds: the oldest are closed.
    let mut small = PgConnection::connect_with(&options().statement_cache_capacity(3)).await?;
    for turn in 0..20 {
        assert_eq!(number(&mut small, &format!("SELECT $1::int + {turn}"), 1).await?, turn + 1);
    }
    small.clear_cached_statements().await?;
    assert_eq!(number(&mut small, "SELECT $1::int + 19", 1).await?, 20);
    Ok(())
}

async fn errors() -> Done {
    let mut client = connect().await?;
    for turn in 0..20 {
        let failed = number(&mut client, "SELECT 1/$1::int", 0).await.expect_err("divided by zero");
        assert_eq!(code(&failed), "22012");
        let failed = client.fetch_one("SELEC nonsense").await.expect_err("nonsense");
        assert_eq!(code(&failed), "42601");
        assert_eq!(number(&mut client, "SELECT $1::int", turn).await?, turn);
    }
    Ok(())
}

async fn transactions() -> Done {
    let mut client = connect().await?;
    client.execute("CREATE TABLE kept (a int)").await?;
    let mut outer = client.begin().await?;
    sqlx::query("INSERT INTO kept VALUES (1)").execute(&mut *outer).await?;
    for _ in 0..3 {
        let mut inner = outer.begin().await?;
        sqlx::query("INSERT INTO kept VALUES (2)").execute(&mut *inner).await?;
        assert_eq!(code(&number(&mut inner, "SELECT 1/$1::int", 0).await.expect_err("divided by zero")), "22012");
        inner.rollback().await?;
    }
    let inner = outer.begin().await?;
    // Dropped: rolled back before the next statement.
    drop(inner);
    outer.commit().await?;
    assert_eq!(client.fetch_one("SELECT count(*)::int FROM kept").await?.get::<i32, _>(0), 1);
    let mut dropped = client.begin().await?;
    sqlx::query("INSERT INTO kept VALUES (3)").execute(&mut *dropped).await?;
    drop(dropped);
    assert_eq!(client.fetch_one("SELECT count(*)::int FROM kept").await?.get::<i32, _>(0), 1);
    Ok(())
}

async fn copies() -> Done {
    let mut client = connect().await?;
    client.execute("CREATE TABLE copied (a int, b text)").await?;
    let text: String = (0..20_000).map(|turn| format!("{turn}\ttext {turn}\n")).collect();
    let mut copy = client.copy_in_raw("COPY copied FROM STDIN").await?;
    copy.send(text.as_bytes()).await?;
    assert_eq!(copy.finish().await?, 20_000);
    let mut out = Vec::new();
    let mut rows = client.copy_out_raw("COPY copied TO STDOUT").await?;
    while let Some(bytes) = rows.try_next().await? {
        out.extend_from_slice(&bytes);
    }
    drop(rows);
    assert_eq!(out, text.as_bytes());
    let mut copy = client.copy_in_raw("COPY copied FROM STDIN").await?;
    copy.send(&b"1\tgiven up\n"[..]).await?;
    copy.abort("changed its mind").await?;
    assert_eq!(client.fetch_one("SELECT count(*)::int FROM copied").await?.get::<i32, _>(0), 20_000);
    Ok(())
}

async fn types() -> Done {
    let mut client = connect().await?;
    let bytes: Vec<u8> = (0..=255_u8).cycle().take(5_000_000).collect();
    let row = sqlx::query("SELECT $1::bytea, $2::int8[], $3::text, $4::jsonb")
        .bind(&bytes)
        .bind(vec![1_i64, -2])
        .bind("\u{20ac}")
        .bind(sqlx::types::Json(vec![Some(1), None]))
        .fetch_one(&mut client)
        .await?;
    assert_eq!(row.get::<Vec<u8>, _>(0), bytes);
    assert_eq!(row.get::<Vec<i64>, _>(1), [1, -2]);
    assert_eq!(row.get::<String, _>(2), "\u{20ac}");
    assert_eq!(row.get::<sqlx::types::Json<Vec<Option<i32>>>, _>(3).0, [Some(1), None]);
    let mut rows = sqlx::query("SELECT generate_series(1, 1000)").fetch(&mut client);
    let mut sum = 0;
    while let Some(row) = rows.try_next().await? {
        sum += row.get::<i32, _>(0);
    }
    assert_eq!(sum, 500_500);
    Ok(())
}

async fn settings() -> Done {
    let named = options().application_name("follower").options([("search_path", "elsewhere,public"), ("work_mem", "5MB")]);
    let (mut client, mut other) = (PgConnection::connect_with(&named).await?, connect().await?);
    client.execute("CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.here (a int)").await?;
    for _ in 0..10 {
        assert_eq!(client.fetch_one("SELECT count(*)::int FROM here").await?.get::<i32, _>(0), 0);
        assert_eq!(client.fetch_one("SHOW application_name").await?.get::<String, _>(0), "follower");
        assert_eq!(client.fetch_one("SHOW work_mem").await?.get::<String, _>(0), "5MB");
        assert_eq!(other.fetch_one("SHOW work_mem").await?.get::<String, _>(0), "4MB");
    }
    Ok(())
}

async fn notifications() -> Done {
    let mut listener = PgListener::connect_with(&PgPoolOptions::new().max_connections(1).connect_with(options()).await?).await?;
    let mut speaker = connect().await?;
    listener.listen("news").await?;
    for turn in 0..3 {
        sqlx::query("SELECT pg_notify('news', $1)").bind(turn.to_string()).execute(&mut speaker).await?;
        let note = tokio::time::timeout(Duration::from_secs(20), listener.recv()).await??;
        assert_eq!(note.payload(), turn.to_string());
    }
    Ok(())
}

async fn pool_and_timeouts() -> Done {
    let pool = PgPoolOptions::new().max_connections(8).connect_with(options()).await?;
    pool.execute("CREATE TABLE counted (a int)").await?;
    let work = (0..16).map(|task| {
        let pool = pool.clone();
        tokio::spawn(async move {
            for turn in 0..20 {
                let mut transaction = pool.begin().await?;
                sqlx::query("INSERT INTO counted VALUES ($1)").bind(task * 100 + turn).execute(&mut *transaction).await?;
                transaction.commit().await?;
                let row = sqlx::query("SELECT $1::int").bind(turn).fetch_one(&pool).await?;
                assert_eq!(row.get::<i32, _>(0), turn);
            }
            Ok::<_, sqlx::Error>(())
        })
    });
    for task in work.collect::<Vec<_>>() {
        task.await??;
    }
    // Who asks now may be another session than those who wrote, to which a replica that is a little behind may answer.
    let all = "/*+ route=primary */ SELECT count(*)::int FROM counted";
    assert_eq!(pool.fetch_one(all).await?.get::<i32, _>(0), 320);
    // A statement that is given up half way: the driver has no cancel request and reads its answer away.
    let slow = tokio::time::timeout(Duration::from_millis(200), pool.fetch_one("SELECT pg_sleep(1)")).await;
    assert!(slow.is_err());
    assert_eq!(pool.fetch_one("SELECT 7").await?.get::<i32, _>(0), 7);
    let mut late = connect().await?;
    late.execute("SET statement_timeout = '200ms'").await?;
    assert_eq!(code(&late.fetch_one("SELECT pg_sleep(30)").await.expect_err("too slow")), "57014");
    Ok(())
}

async fn servers_that_go() -> Done {
    let (mut client, mut killer) = (connect().await?, connect().await?);
    killer.execute("BEGIN; SELECT 1").await?;
    for turn in 0..3 {
        let pid: i32 = client.fetch_one("SELECT pg_backend_pid()").await?.get(0);
        sqlx::query("SELECT pg_terminate_backend($1)").bind(pid).execute(&mut killer).await?;
        assert_eq!(number(&mut client, "SELECT $1::int", turn).await?, turn);
    }
    for turn in 0..30 {
        assert_eq!(number(&mut connect().await?, "SELECT $1::int", turn).await?, turn);
    }
    Ok(())
}

#[tokio::main]
async fn main() {
    let mut failed = 0;
    macro_rules! scenarios {
        ($($name:ident)*) => {$(
            match tokio::spawn(async { tokio::time::timeout(Duration::from_secs(60), $name()).await }).await {
                Ok(Ok(Ok(()))) => println!("ok {}", stringify!($name)),
                ended => { failed += 1; println!("FAILED {}: {ended:?}", stringify!($name)); }
            }
        )*};
    }
    scenarios!(prepared errors transactions copies types settings notifications pool_and_timeouts servers_that_go);
    println!("{failed} failed");
    std::process::exit(i32::from(failed > 0));
}
