//! Statements whose tables change under them: a client reads rows by what it was told of their columns, wherever it was
//! told and wherever they come from.

use crate::harness::{Front, Server, sqlstate};
use crate::hostile::believing;
use crate::raw::{Message, Raw};
use tokio_postgres::Client;
use wire::{backend, build};

/// Two servers in the pool, and a client that holds the one that was used last, so that the next client meets the other.
async fn hold(front: &Front) -> Client {
    let holder = front.client().await;
    holder.batch_execute("BEGIN").await.expect("begun");
    holder
}

/// A table of one column and one row, which is about to change.
fn fill(server: &Server) {
    server.sql("CREATE TABLE changing (a int)");
    server.sql("INSERT INTO changing VALUES (1)");
}

fn tags(answers: &[Message]) -> String {
    answers.iter().map(|(tag, _)| char::from(*tag)).collect()
}

/// Binds a statement and runs it, in a segment of its own.
fn run(statement: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    build::bind_plain(&mut out, b"", statement);
    build::execute(&mut out, b"");
    build::sync(&mut out);
    out
}

fn prepare(statement: &[u8], sql: &str, describe: bool) -> Vec<u8> {
    let mut out = Vec::new();
    build::parse(&mut out, statement, format!("{sql}\0\0\0").as_bytes());
    if describe {
        build::describe_statement(&mut out, statement);
    }
    build::sync(&mut out);
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_another_shape_than_was_told_never_come() {
    let server = Server::new();
    fill(&server);
    let front = Front::before(&server, 2).await;
    let client = front.client().await;
    let statement = client.prepare("SELECT * FROM changing").await.expect("prepared");
    assert_eq!(client.query_one(&statement, &[]).await.expect("executed").len(), 1);

    // On another server the statement is prepared after the change.
    let _holder = hold(&front).await;
    server.sql("ALTER TABLE changing ADD b text DEFAULT 'x'");
    let error = client.query_one(&statement, &[]).await.expect_err("its columns are not what they were");
    assert_eq!(sqlstate(&error), "0A000");
    let said = error.as_db_error().expect("by the server");
    assert_eq!(
        (said.message(), said.routine()),
        ("cached plan must not change result type", Some("RevalidateCachedQuery"))
    );
    assert_eq!(sqlstate(&client.query_one(&statement, &[]).await.expect_err("still")), "0A000");
    let anew = client.prepare("SELECT * FROM changing").await.expect("prepared anew");
    assert_eq!(client.query_one(&anew, &[]).await.expect("executed").len(), 2);

    // A transaction fails as it would have on one server.
    client.batch_execute("BEGIN").await.expect("begun");
    assert_eq!(sqlstate(&client.query_one(&statement, &[]).await.expect_err("still")), "0A000");
    assert_eq!(sqlstate(&client.query_one(&anew, &[]).await.expect_err("failed")), "25P02");
    client.batch_execute("ROLLBACK").await.expect("ended");
    assert_eq!(client.query_one(&anew, &[]).await.expect("executed").len(), 2);

    // What was prepared before another change is right again once the table is what it was.
    server.sql("ALTER TABLE changing DROP b");
    assert_eq!(client.query_one(&statement, &[]).await.expect("as it was told").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_type_that_changed_is_a_change_and_a_table_made_anew_is_none() {
    let server = Server::new();
    fill(&server);
    let front = Front::before(&server, 2).await;
    let client = front.client().await;
    let statement = client.prepare("SELECT a FROM changing WHERE a = $1").await.expect("prepared");
    assert_eq!(client.query_one(&statement, &[&1i32]).await.expect("executed").get::<_, i32>(0), 1);

    let first = hold(&front).await;
    server.sql("DROP TABLE changing");
    fill(&server);
    assert_eq!(client.query_one(&statement, &[&1i32]).await.expect("the same columns").get::<_, i32>(0), 1);
    first.batch_execute("ROLLBACK").await.expect("ended");
    drop(first);

    let fresh = Front::before(&server, 2).await;
    let client = fresh.client().await;
    let statement = client.prepare("SELECT a FROM changing WHERE a = $1").await.expect("prepared");
    let _second = hold(&fresh).await;
    server.sql("ALTER TABLE changing ALTER a TYPE bigint");
    assert_eq!(sqlstate(&client.query_one(&statement, &[&1i32]).await.expect_err("another type")), "0A000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_with_the_same_text_do_not_meet() {
    let server = Server::new();
    server.sql("CREATE SCHEMA one; CREATE TABLE one.t (a int); INSERT INTO one.t VALUES (1)");
    server.sql("CREATE SCHEMA two; CREATE TABLE two.t (a text, b text); INSERT INTO two.t VALUES ('x', 'y')");
    let front = Front::before(&server, 1).await;
    let (one, two) = (front.client().await, front.client().await);
    one.batch_execute("SET search_path TO one").await.expect("set");
    two.batch_execute("SET search_path TO two").await.expect("set");
    let of_one = one.prepare("SELECT * FROM t").await.expect("prepared");
    assert_eq!(one.query_one(&of_one, &[]).await.expect("executed").get::<_, i32>(0), 1);
    let of_two = two.prepare("SELECT * FROM t").await.expect("prepared");
    for _ in 0..5 {
        assert_eq!(two.query_one(&of_two, &[]).await.expect("executed").get::<_, &str>(1), "y");
        assert_eq!(one.query_one(&of_one, &[]).await.expect("executed").get::<_, i32>(0), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_told_nothing_notices_nothing() {
    let (server, front) = believing().await;
    fill(&server);
    let mut client = Raw::connect(front.port, "postgres").await;
    assert_eq!(tags(&client.ask(&prepare(b"s", "SELECT * FROM changing", false)).await), "1ZIZ");
    assert_eq!(tags(&client.ask(&run(b"s")).await), "2DCZIZ");
    server.sql("ALTER TABLE changing ADD b text DEFAULT 'x'");
    let answers = client.ask(&run(b"s")).await;
    assert_eq!(tags(&answers), "2DCZIZ", "it would have failed on one server: {answers:?}");
    assert_eq!(backend::text_row(&answers[1].1).expect("a row").len(), 2);

    // Likewise where the name is given in the same request, to a statement that the server has from someone else.
    let mut other = Raw::connect(front.port, "postgres").await;
    server.sql("ALTER TABLE changing DROP b");
    let mut request = Vec::new();
    build::parse(&mut request, b"mine", b"SELECT * FROM changing\0\0\0");
    request.extend(run(b"mine"));
    assert_eq!(tags(&other.ask(&request).await), "12DCZIZ");
    assert_eq!(tags(&other.ask(&run(b"mine")).await), "2DCZIZ");
    // In a transaction the error is the client's, as on one server.
    let mut begin = Vec::new();
    build::query(&mut begin, "BEGIN");
    client.ask(&begin).await;
    server.sql("ALTER TABLE changing ADD c int");
    let answers = client.ask(&run(b"s")).await;
    assert_eq!((tags(&answers).as_str(), answers[1].1.as_slice()), ("EZIZ", b"E".as_slice()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_unnamed_statement_is_compared_too_and_not_sent_twice() {
    let (server, front) = believing().await;
    fill(&server);
    let mut client = Raw::connect(front.port, "postgres").await;
    assert_eq!(client.segment(&prepare(b"", "SELECT *, pg_sleep(0) FROM changing", true)).await, "1tTZ");
    assert_eq!(client.segment(&run(b"")).await, "2DCZ");
    // The server that has it is in use: it is prepared elsewhere, the same.
    let holder = hold(&front).await;
    assert_eq!(client.segment(&run(b"")).await, "2DCZ");
    holder.batch_execute("ROLLBACK").await.expect("ended");
    let _holders = (hold(&front).await, server.sql("ALTER TABLE changing ADD b text DEFAULT 'x'"));
    assert_eq!(client.segment(&run(b"")).await, "EZ");
    assert_eq!(client.segment(&run(b"")).await, "EZ");
    assert_eq!(client.segment(&prepare(b"", "SELECT *, pg_sleep(0) FROM changing", true)).await, "1tTZ");
    assert_eq!(client.segment(&run(b"")).await, "2DCZ");
}
