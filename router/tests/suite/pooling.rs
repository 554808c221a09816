//! Several clients on few servers: nothing of one reaches another.

use crate::harness::{Front, Server, config, one, sqlstate, try_one};
use std::time::Duration;

const PID: &str = "SELECT pg_backend_pid()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_clients_share_one_server_and_keep_it_within_a_transaction() {
    let server = Server::new();
    let front = Front::before(&server, 1).await;
    let (a, b) = (front.client().await, front.client().await);
    let pid = one(&a, PID).await;
    assert_eq!(one(&b, PID).await, pid, "there is only one");

    a.batch_execute("BEGIN").await.expect("begun");
    let waits = tokio::time::timeout(Duration::from_millis(300), one(&b, "SELECT 1")).await;
    assert!(waits.is_err(), "the server is in a's transaction");
    assert_eq!(one(&a, PID).await, pid);
    a.batch_execute("COMMIT").await.expect("committed");
    assert_eq!(one(&b, PID).await, pid);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prepared_statements_follow_their_client() {
    let server = Server::new();
    let front = Front::before(&server, 2).await;
    let (a, b) = (front.client().await, front.client().await);
    let plus = a.prepare("SELECT $1::int + 1, pg_backend_pid()").await.expect("prepared");
    let minus = b.prepare("SELECT $1::int - 1, pg_backend_pid()").await.expect("prepared");
    let mut servers = std::collections::BTreeSet::new();
    for round in 0..20 {
        // Someone else holds one of the two servers in turn, so that both clients meet both.
        let holder = front.client().await;
        if round % 2 == 0 {
            holder.batch_execute("BEGIN").await.expect("begun");
        }
        for (client, statement, expected) in [(&a, &plus, round + 1), (&b, &minus, round - 1)] {
            let row = client.query_one(statement, &[&round]).await.expect("executed");
            assert_eq!(row.get::<_, i32>(0), expected);
            servers.insert(row.get::<_, i32>(1));
        }
    }
    assert_eq!(servers.len(), 2, "both servers were used");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_follow_their_client_and_reach_no_other() {
    let server = Server::new();
    let front = Front::before(&server, 1).await;
    let mut options = front.options();
    options.application_name("ann").options("-c work_mem=5MB");
    let (a, b) = (front.client_with(&options).await.expect("in"), front.client().await);
    a.batch_execute("SET search_path TO x, y").await.expect("set");
    assert_eq!(one(&b, "SHOW search_path").await, "\"$user\", public");
    assert_eq!(one(&b, "SHOW work_mem").await, "4MB");
    assert_eq!(one(&b, "SHOW application_name").await, "");
    assert_eq!(one(&a, "SHOW search_path").await, "x, y");
    assert_eq!(one(&a, "SHOW work_mem").await, "5MB");
    assert_eq!(one(&a, "SHOW application_name").await, "ann");

    a.batch_execute("BEGIN; SET work_mem = '9MB'; ROLLBACK").await.expect("rolled back");
    assert_eq!(one(&b, "SHOW work_mem").await, "4MB");
    assert_eq!(one(&a, "SHOW work_mem").await, "5MB", "what was rolled back was never set");
    a.execute("SET TIME ZONE 'Asia/Tokyo'", &[]).await.expect("set by the extended protocol");
    assert_ne!(one(&b, "SHOW TimeZone").await, "Asia/Tokyo");
    assert_eq!(one(&a, "SHOW TimeZone").await, "Asia/Tokyo");
    let failed = a.batch_execute("SET work_mem = '7MB'; SELECT 1/0").await;
    assert_eq!(sqlstate(&failed.expect_err("divided by zero")), "22012");
    assert_eq!(one(&b, "SHOW work_mem").await, "4MB");
    assert_eq!(one(&a, "SHOW work_mem").await, "5MB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_follow_keeps_its_server() {
    let server = Server::new();
    let front = Front::before(&server, 1).await;
    let (a, b) = (front.client().await, front.client().await);
    let cases = [
        ("CREATE TEMP TABLE t (a int)", "DISCARD TEMP"),
        ("SELECT pg_advisory_lock(7)", "SELECT pg_advisory_unlock_all()"),
        ("LISTEN news", "UNLISTEN *"),
        ("PREPARE p AS SELECT 1", "DEALLOCATE p"),
        ("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1; COMMIT", "CLOSE c"),
    ];
    for (pin, release) in cases {
        a.batch_execute(pin).await.expect(pin);
        let waits = tokio::time::timeout(Duration::from_millis(200), one(&b, "SELECT 1")).await;
        assert!(waits.is_err(), "{pin}: another client got the server");
        a.batch_execute(release).await.expect(release);
        one(&b, "SELECT 1").await;
    }
    a.batch_execute("CREATE TEMP TABLE t (a int)").await.expect("made");
    drop(a);
    assert_eq!(one(&b, "SELECT to_regclass('pg_temp.t')").await, "NULL", "it went with its client");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_too_long_is_told_and_keeps_the_connection() {
    let server = Server::new();
    let front =
        Front::start(server.topology(1), router::Config { wait_max: Duration::from_millis(200), ..config(1) }).await;
    let (a, b) = (front.client().await, front.client().await);
    a.batch_execute("BEGIN").await.expect("begun");
    let refused = try_one(&b, "SELECT 1").await.expect_err("no server is free");
    assert_eq!(sqlstate(&refused), "53300");
    let refused = b.query("SELECT $1::int", &[&1]).await.expect_err("nor by the extended protocol");
    assert_eq!(sqlstate(&refused), "53300");
    a.batch_execute("COMMIT").await.expect("committed");
    assert_eq!(one(&b, "SELECT 2").await, "2");
    let row = b.query_one("SELECT $1::int", &[&1]).await.expect("free again");
    assert_eq!(row.get::<_, i32>(0), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_share_one_budget_and_lend_their_servers() {
    let server = Server::new();
    let front = Front::start(server.topology(1), router::Config { workers: 2, ..config(2) }).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(front.client().await);
    }
    let tasks: Vec<_> = clients
        .into_iter()
        .map(|client| {
            tokio::spawn(async move {
                let mut pids = std::collections::BTreeSet::new();
                for _ in 0..100 {
                    pids.insert(one(&client, PID).await);
                }
                pids
            })
        })
        .collect();
    let mut pids = std::collections::BTreeSet::new();
    for task in tasks {
        pids.extend(task.await.expect("no failure"));
    }
    assert!(pids.len() <= 2, "more servers than allowed: {pids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_session_mode_a_client_keeps_its_server_and_leaves_it_clean() {
    let server = Server::new();
    let mode = router::config::PoolMode::Session;
    let front = Front::start(server.topology(1), router::Config { mode, ..config(1) }).await;
    let a = front.client().await;
    a.batch_execute("SET work_mem = '9MB'; CREATE TEMP TABLE t (a int)").await.expect("done");
    let pid = one(&a, PID).await;
    assert_eq!(one(&a, "SELECT count(*) FROM t").await, "0");
    drop(a);
    let b = front.client().await;
    assert_eq!(one(&b, "SHOW work_mem").await, "4MB");
    assert_eq!(one(&b, "SELECT to_regclass('pg_temp.t')").await, "NULL");
    assert_eq!(one(&b, PID).await, pid, "the same server, cleaned");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_outlives_reset_all_for_its_client_alone() {
    let server = Server::new();
    server.sql("CREATE ROLE clerk");
    let front = Front::before(&server, 1).await;
    let (a, b) = (front.client().await, front.client().await);
    a.batch_execute("SET ROLE clerk").await.expect("set");
    a.batch_execute("RESET ALL").await.expect("reset");
    assert_eq!(one(&b, "SELECT current_user").await, "postgres");
    assert_eq!(one(&a, "SELECT current_user").await, "clerk", "as without a router");
    a.batch_execute("DISCARD ALL").await.expect("discarded");
    assert_eq!(one(&a, "SELECT current_user").await, "postgres");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_runs_where_the_server_refuses_the_clients_settings() {
    let server = Server::new();
    server.sql("CREATE ROLE clerk; CREATE TABLE t (a int); GRANT ALL ON t TO clerk");
    let front = Front::before(&server, 1).await;
    let (a, b) = (front.client().await, front.client().await);
    a.batch_execute("SET ROLE clerk").await.expect("set");
    one(&b, "SELECT 1").await;
    server.sql("DROP OWNED BY clerk; DROP ROLE clerk");
    let refused = a.batch_execute("INSERT INTO t VALUES (1)").await.expect_err("who is it to be?");
    assert_eq!(sqlstate(&refused), "57P02");
    assert_eq!(one(&b, "SELECT count(*) FROM t").await, "0", "and it did not run as another");
    assert_eq!(one(&b, "SELECT current_user").await, "postgres");
}

#[test]
fn the_router_is_a_primary_to_clients_that_look_for_one() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let server = Server::new();
    let front = runtime.block_on(Front::before(&server, 2));
    let connects = |attributes: &str, options: &str| {
        let dsn = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres target_session_attrs={attributes} {options}",
            front.port
        );
        crate::harness::command("psql")
            .args(["-XAtqc", "SELECT 1", "-d", &dsn])
            .output()
            .expect("psql")
            .status
            .success()
    };
    let reading = "options='-c default_transaction_read_only=on'";
    for (attributes, options, wanted) in [
        ("any", "", true),
        ("read-write", "", true),
        ("primary", "", true),
        ("prefer-standby", "", true),
        ("standby", "", false),
        ("read-only", "", false),
        ("read-only", reading, true),
        ("read-write", reading, false),
    ] {
        assert_eq!(connects(attributes, options), wanted, "{attributes} {options}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_reads_by_its_own_will_is_refused_at_once() {
    let server = Server::new();
    server.sql("CREATE TABLE t (a int)");
    let front = Front::before(&server, 1).await;
    let a = front.client().await;
    a.batch_execute("SET default_transaction_read_only TO on").await.expect("set");
    let began = std::time::Instant::now();
    let refused = a.batch_execute("INSERT INTO t VALUES (1)").await.expect_err("it only reads");
    assert_eq!(sqlstate(&refused), "25006");
    assert!(began.elapsed() < Duration::from_secs(5), "it was held");
}
