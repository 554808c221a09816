//! A server that goes away: what each client sees, by the rules F-1 to F-17.

use crate::harness::{Front, Server, one, sqlstate, try_one};

/// Ends the server connection of a client from outside.
fn terminate(server: &Server, pid: &str) {
    assert_eq!(server.sql(&format!("SELECT pg_terminate_backend({pid}, 20000)")), "t");
}

const PID: &str = "SELECT pg_backend_pid()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_client_does_not_notice() {
    let mut server = Server::new();
    let front = Front::before(&server, 2).await;
    let client = front.client().await;
    let pid = one(&client, PID).await;
    terminate(&server, &pid);
    assert_ne!(one(&client, PID).await, pid, "F-1");
    // Nor of a whole restart, while statements are held.
    server.kill();
    let held = tokio::spawn(async move { (one(&client, "SELECT 42").await, client) });
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    server.start();
    assert_eq!(held.await.expect("no failure").0, "42", "F-4, F-6");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_failed_and_the_connection_lives() {
    let server = Server::new();
    let front = Front::before(&server, 2).await;
    let client = front.client().await;
    client.batch_execute("CREATE TABLE t (a int)").await.expect("made");
    client.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.expect("begun");
    terminate(&server, &one(&client, PID).await);
    let lost = try_one(&client, "INSERT INTO t VALUES (2)").await.expect_err("the transaction is gone");
    assert_eq!(sqlstate(&lost), "40001", "F-11: {lost:?}");
    let failed = try_one(&client, "SELECT 1").await.expect_err("until it is ended");
    assert_eq!(sqlstate(&failed), "25P02");
    let failed = client.query("SELECT 1", &[]).await.expect_err("by either protocol");
    assert_eq!(sqlstate(&failed), "25P02");
    client.batch_execute("ROLLBACK").await.expect("ended");
    assert_eq!(one(&client, "SELECT count(*) FROM t").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_can_end_a_lost_transaction_by_the_extended_protocol() {
    let server = Server::new();
    let front = Front::before(&server, 2).await;
    let client = front.client().await;
    client.batch_execute("BEGIN").await.expect("begun");
    terminate(&server, &one(&client, PID).await);
    assert_eq!(sqlstate(&client.query("SELECT 1", &[]).await.expect_err("lost")), "40001");
    client.execute("ROLLBACK", &[]).await.expect("ended");
    assert_eq!(client.query_one("SELECT 1", &[]).await.expect("lives").get::<_, i32>(0), 1);
}

/// A driver that drops a statement closes it without looking at the answer; then the server is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_behind_a_close_that_was_lost_is_an_error() {
    let server = Server::new();
    let front = Front::before(&server, 2).await;
    let client = front.client().await;
    client.batch_execute("CREATE TABLE t (a int)").await.expect("made");
    client.batch_execute("BEGIN; INSERT INTO t VALUES (1)").await.expect("begun");
    let prepared = client.prepare("SELECT 1").await.expect("prepared");
    let pid = one(&client, PID).await;
    // It is stopped, so that it answers the Close no more.
    let process = nix::unistd::Pid::from_raw(pid.parse().expect("a process id"));
    let life = server.life();
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGSTOP).expect("stopped");
    drop(prepared);
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).expect("killed");
    let lost = try_one(&client, "COMMIT").await.expect_err("the transaction is gone");
    assert_eq!(sqlstate(&lost), "40001", "{lost:?}");
    client.batch_execute("ROLLBACK").await.expect("ended");
    server.wait_recovered(&life);
    assert_eq!(one(&client, "SELECT count(*) FROM t").await, "0");
    // The same where the server was lost before the Close.
    client.batch_execute("BEGIN; INSERT INTO t VALUES (2)").await.expect("begun");
    let prepared = client.prepare("SELECT 1").await.expect("prepared");
    terminate(&server, &one(&client, PID).await);
    drop(prepared);
    let lost = try_one(&client, "COMMIT").await.expect_err("the transaction is gone");
    assert_eq!(sqlstate(&lost), "40001", "{lost:?}");
    client.batch_execute("ROLLBACK").await.expect("ended");
    assert_eq!(one(&client, "SELECT count(*) FROM t").await, "0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_write_is_not_sent_again() {
    let server = Server::new();
    let front = Front::before(&server, 2).await;
    let client = front.client().await;
    client.batch_execute("CREATE TABLE t (a int)").await.expect("made");
    // Killed like a crash of the one backend would be: no word reaches the client.
    let insert = "INSERT INTO t SELECT 1 FROM pg_sleep(60)";
    let running = tokio::spawn(async move { (try_one(&client, insert).await, client) });
    let pid = active(&server, "INSERT INTO t");
    terminate(&server, &pid);
    let (outcome, client) = running.await.expect("no panic");
    assert_eq!(sqlstate(&outcome.expect_err("not answered")), "40001", "F-7");
    assert_eq!(one(&client, "SELECT count(*) FROM t").await, "0", "the connection lives, and nothing ran twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_that_went_with_its_server_is_named_once() {
    let server = Server::new();
    let front = Front::before(&server, 2).await;
    let client = front.client().await;
    client.batch_execute("CREATE TEMP TABLE t (a int)").await.expect("made");
    terminate(&server, &one(&client, PID).await);
    let gone = try_one(&client, "SELECT 1").await.expect_err("the table is gone");
    assert_eq!(sqlstate(&gone), "57P02", "F-3");
    assert_eq!(one(&client, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_primary_takes_over_and_the_old_one_is_left_at_once() {
    let (old, new) = (Server::new(), Server::new());
    for (server, name) in [(&old, "old"), (&new, "new")] {
        server.sql(&format!("CREATE TABLE who AS SELECT '{name}' AS name"));
    }
    let front = Front::before(&old, 4).await;
    let (idle, busy) = (front.client().await, front.client().await);
    assert_eq!(one(&idle, "SELECT name FROM who").await, "old");
    busy.batch_execute("BEGIN; INSERT INTO who VALUES ('x')").await.expect("begun");
    // No primary for a while: statements are held.
    front.topology.send_replace(router::Topology { primary: None, ..old.topology(1) });
    // Until the news has reached the thread that serves it, it is served.
    let mut idle = idle;
    let held = loop {
        let mut asked = tokio::spawn(async move { (one(&idle, "SELECT name FROM who").await, idle) });
        match tokio::time::timeout(std::time::Duration::from_millis(200), &mut asked).await {
            Ok(answered) => idle = answered.expect("no failure").1,
            Err(_) => break asked,
        }
    };
    front.topology.send_replace(new.topology(2));
    assert_eq!(held.await.expect("no failure").0, "new");
    // The old primary still lives, but its epoch is over.
    let lost = try_one(&busy, "COMMIT").await.expect_err("of the past");
    assert_eq!(sqlstate(&lost), "40001");
    busy.batch_execute("ROLLBACK").await.expect("ended");
    assert_eq!(one(&busy, "SELECT name FROM who").await, "new");
    assert_eq!(old.sql("SELECT count(*) FROM who"), "1", "the open transaction was not committed");
}

fn active(server: &Server, text: &str) -> String {
    let mut pid = String::new();
    let sql = format!(
        "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query LIKE '{text}%' AND pid <> pg_backend_pid()"
    );
    crate::harness::wait_for("the statement to run", || {
        pid = server.sql(&sql);
        !pid.is_empty()
    });
    pid
}
