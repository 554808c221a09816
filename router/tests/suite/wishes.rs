//! What a session says to the router itself: its settings, its token, and where a statement would go.

use crate::harness::{Server, config, one, sqlstate, try_one, wait_for};
use crate::hostile::believing;
use crate::raw::Raw;
use crate::splitting::{split, split_by};
use wire::build;

fn pause(standby: &Server) {
    standby.sql("SELECT pg_wal_replay_pause()");
    wait_for("replay to pause", || standby.sql("SELECT pg_get_wal_replay_pause_state()") == "paused");
}

const COUNT: &str = "SELECT count(*) FROM t";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_the_router_are_set_and_shown_by_either_protocol() {
    let (_server, front) = believing().await;
    let client = front.client().await;
    assert_eq!(one(&client, "SHOW stemma.consistency").await, "session");
    assert_eq!(one(&client, "SHOW stemma.route").await, "auto");
    let token = one(&client, "SHOW stemma.token").await;
    assert!(token.starts_with("v1:main:1/1:"), "where nothing is noted the primary is asked each time: {token}");
    client.batch_execute("CREATE TABLE more (a int)").await.expect("written");
    assert_ne!(one(&client, "SHOW stemma.token").await, token);
    client.batch_execute("SET stemma.consistency = 'bounded:5s'").await.expect("set");
    let shown = client.query_one("SHOW stemma.consistency", &[]).await.expect("by the extended protocol");
    assert_eq!((shown.get::<_, &str>(0), shown.columns()[0].name()), ("bounded:5000ms", "stemma.consistency"));
    client.execute("SET stemma.route TO primary", &[]).await.expect("by the extended protocol");
    let prepared = client.prepare("SHOW stemma.route").await.expect("prepared");
    for expected in ["primary", "replica"] {
        assert_eq!(client.query_one(&prepared, &[]).await.expect("shown").get::<_, &str>(0), expected);
        client.batch_execute("SET stemma.route = 'replica'").await.expect("set");
    }
    // What is not the router's goes on as ever.
    assert_eq!(one(&client, "SHOW work_mem").await, "4MB");
    assert_eq!(one(&client, "SELECT 1").await, "1");

    // They follow the transaction, as all settings do.
    client.batch_execute("BEGIN").await.expect("begun");
    client.batch_execute("SET LOCAL stemma.consistency = 'strong'").await.expect("set");
    assert_eq!(one(&client, "SHOW stemma.consistency").await, "strong");
    client.batch_execute("SET stemma.route = 'auto'").await.expect("set");
    client.batch_execute("ROLLBACK").await.expect("ended");
    assert_eq!(one(&client, "SHOW stemma.consistency").await, "bounded:5000ms");
    assert_eq!(one(&client, "SHOW stemma.route").await, "replica");
    client.batch_execute("RESET stemma.consistency").await.expect("reset");
    assert_eq!(one(&client, "SHOW stemma.consistency").await, "session");
    client.batch_execute("RESET ALL").await.expect("reset");
    assert_eq!(one(&client, "SHOW stemma.route").await, "auto");

    for (sql, state) in [
        ("SET stemma.consistency = 'sometimes'", "22023"),
        ("SET stemma.colour = 'red'", "42704"),
        ("SHOW stemma.colour", "42704"),
        ("SET stemma.token = 'v1:x'", "22023"),
        ("SET stemma.route = 'primary'; SELECT 1", "0A000"),
    ] {
        assert_eq!(sqlstate(&try_one(&client, sql).await.expect_err(sql)), state, "{sql}");
        assert_eq!(sqlstate(&client.query(sql, &[]).await.expect_err(sql)), state, "{sql}, by the extended protocol");
    }
    assert_eq!(one(&client, "SHOW stemma.route").await, "auto", "none of them did anything");
    let mut options = front.options();
    options.options("-c stemma.consistency=eventual");
    let other = front.client_with(&options).await.expect("in");
    assert_eq!(one(&other, "SHOW stemma.consistency").await, "eventual");
    options.options("-c stemma.consistency=never");
    assert_eq!(sqlstate(&front.client_with(&options).await.expect_err("refused")), "22023");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_for_the_router_keeps_its_place_in_a_pipeline() {
    let (_server, front) = believing().await;
    let mut client = Raw::connect(front.port, "postgres").await;
    let mut bytes = Vec::new();
    build::query(&mut bytes, "SELECT 1");
    build::query(&mut bytes, "SET stemma.route = 'primary'");
    build::query(&mut bytes, "SELECT 2");
    for (name, sql) in [("a", "SHOW stemma.route"), ("b", "SELECT 3")] {
        build::parse(&mut bytes, name.as_bytes(), format!("{sql}\0\0\0").as_bytes());
        build::describe_statement(&mut bytes, name.as_bytes());
        build::bind_plain(&mut bytes, b"", name.as_bytes());
        build::execute(&mut bytes, b"");
        build::sync(&mut bytes);
    }
    // One segment of both, in which a server's part comes last.
    build::bind_plain(&mut bytes, b"", b"a");
    build::execute(&mut bytes, b"");
    build::bind_plain(&mut bytes, b"", b"b");
    build::execute(&mut bytes, b"");
    build::sync(&mut bytes);
    build::close_statement(&mut bytes, b"a");
    build::sync(&mut bytes);
    let tags: String = client.ask(&bytes).await.iter().map(|(tag, _)| char::from(*tag)).collect();
    assert_eq!(tags, "TDCZCZTDCZ1tT2DCZ1tT2DCZ2DC2DCZ3ZIZ");
    // It is gone, and an error ends its segment only.
    let mut bytes = Vec::new();
    build::bind_plain(&mut bytes, b"", b"a");
    build::execute(&mut bytes, b"");
    build::sync(&mut bytes);
    build::parse(&mut bytes, b"", b"SHOW stemma.colour\0\0\0");
    build::bind_plain(&mut bytes, b"", b"");
    build::execute(&mut bytes, b"");
    build::sync(&mut bytes);
    build::query(&mut bytes, "SHOW stemma.route");
    let tags: String = client.ask(&bytes).await.iter().map(|(tag, _)| char::from(*tag)).collect();
    assert_eq!(tags, "EZEZTDCZIZ");
    // In a failed transaction nothing but its end is done.
    let mut bytes = Vec::new();
    build::query(&mut bytes, "BEGIN");
    build::query(&mut bytes, "SELECT 1/0");
    build::query(&mut bytes, "SET stemma.route = 'replica'");
    build::query(&mut bytes, "ROLLBACK");
    let tags: String = client.ask(&bytes).await.iter().map(|(tag, _)| char::from(*tag)).collect();
    assert_eq!(tags, "CZEZEZCZIZ");
    // Drivers deallocate by SQL what they prepared by the protocol.
    let mut bytes = Vec::new();
    build::parse(&mut bytes, b"_pg3_0", b"SHOW stemma.route\0\0\0");
    build::sync(&mut bytes);
    build::query(&mut bytes, "DEALLOCATE _pg3_0");
    build::query(&mut bytes, "DEALLOCATE _pg3_0");
    let tags: String = client.ask(&bytes).await.iter().map(|(tag, _)| char::from(*tag)).collect();
    assert_eq!(tags, "1ZCZEZIZ", "once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_sent_without_waiting_each_see_what_they_have_to() {
    let (primary, standby, front) = split().await;
    pause(&standby);
    let client = front.client().await;
    assert_eq!(one(&client, "SHOW stemma.token").await, "", "it has seen nothing yet");
    let hinted = format!("/*+ consistency=eventual */ {COUNT}");
    for _ in 0..20 {
        let (wrote, token) =
            tokio::join!(client.batch_execute("INSERT INTO t VALUES (1)"), one(&client, "SHOW stemma.token"));
        let (stale, fresh, more, set, loose, back, last) = tokio::join!(
            one(&client, &hinted),
            one(&client, COUNT),
            one(&client, &hinted),
            client.batch_execute("SET stemma.consistency = 'eventual'"),
            one(&client, COUNT),
            client.batch_execute("RESET stemma.consistency"),
            one(&client, COUNT),
        );
        for done in [wrote, set, back] {
            done.expect("done");
        }
        let all = primary.sql(COUNT);
        assert_eq!(stale, "0");
        // Behind one that the primary served they may go there as well.
        assert!([&more, &loose].into_iter().all(|count| *count == "0" || *count == all), "{more}, {loose}, {all}");
        assert_eq!((&fresh, &last), (&all, &all));
        let other = front.client().await;
        other.batch_execute(&format!("SET stemma.token = '{token}'")).await.expect("taken in");
        assert_eq!(one(&other, COUNT).await, all, "the token covers what was sent before it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_a_transaction_and_a_statement_each_say_what_a_read_must_see() {
    let (_primary, standby, front) = split().await;
    pause(&standby);
    let client = front.client().await;
    client.batch_execute("INSERT INTO t VALUES (1)").await.expect("written");
    assert_eq!(one(&client, COUNT).await, "1", "read your writes");
    assert_eq!(one(&client, &format!("/*+ consistency=eventual */ {COUNT}")).await, "0", "the statement's word");
    let hinted = client.prepare(&format!("/*+ consistency=eventual */ {COUNT}")).await.expect("prepared");
    assert_eq!(client.query_one(&hinted, &[]).await.expect("read").get::<_, i64>(0), 0, "when it is prepared too");
    assert_eq!(one(&client, COUNT).await, "1", "for that statement alone");
    client.batch_execute("SET stemma.consistency = 'eventual'").await.expect("set");
    assert_eq!(one(&client, COUNT).await, "0", "the session's word");
    assert_eq!(one(&client, &format!("/*+ route=primary */ {COUNT}")).await, "1");
    client.batch_execute("SET stemma.route = 'primary'").await.expect("set");
    assert_eq!(one(&client, COUNT).await, "1");
    client.batch_execute("RESET stemma.route").await.expect("reset");
    client.batch_execute("BEGIN READ ONLY").await.expect("begun");
    assert_eq!(one(&client, COUNT).await, "0");
    client.batch_execute("COMMIT").await.expect("ended");
    client.batch_execute("SET stemma.consistency = 'strong'").await.expect("set");
    client.batch_execute("BEGIN READ ONLY").await.expect("begun");
    assert_eq!(one(&client, COUNT).await, "1", "a transaction's, said before it");
    client.batch_execute("COMMIT").await.expect("ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_carries_what_was_written_to_another_session() {
    let (primary, standby, front) = split().await;
    pause(&standby);
    let (writer, reader, hinting) = (front.client().await, front.client().await, front.client().await);
    writer.batch_execute("INSERT INTO t VALUES (1)").await.expect("written");
    let token = one(&writer, "SHOW stemma.token").await;
    assert!(token.starts_with("v1:"), "{token}");
    assert_eq!(writer.query_one("SHOW stemma.token", &[]).await.expect("shown").get::<_, &str>(0), token, "it stays");
    assert_eq!(one(&reader, COUNT).await, "0", "nothing is promised without it");
    reader.batch_execute(&format!("SET stemma.token = '{token}'")).await.expect("taken in");
    assert_eq!(one(&reader, COUNT).await, "1");
    assert_eq!(one(&hinting, &format!("/*+ token={token} */ {COUNT}")).await, "1", "by a hint");
    // One that cannot be judged is not taken for nothing.
    let unsure = front.client().await;
    let other = token.replacen("v1:", "v1:other", 1);
    assert_eq!(one(&unsure, &format!("/*+ token={other} */ {COUNT}")).await, "1", "the primary is always right");
    let refused = unsure.batch_execute(&format!("SET stemma.token = '{other}'")).await.expect_err("another cluster's");
    assert_eq!(sqlstate(&refused), "22023");
    let ahead = token.replacen(":1/1:", ":1/9:", 1);
    assert_ne!(ahead, token);
    let refused = unsure.batch_execute(&format!("SET stemma.token = '{ahead}'")).await.expect_err("no such timeline");
    assert!(refused.as_db_error().expect("an answer").message().contains("ST4303"), "{refused:?}");
    // What the replica has, it serves again.
    standby.sql("SELECT pg_wal_replay_resume()");
    let began = std::time::Instant::now();
    while one(&reader, "SELECT place()").await != "on" {
        assert!(began.elapsed() < crate::harness::PATIENCE, "never read on the replica again");
        front.topology.send_replace(crate::splitting::topology(&primary, &standby));
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_router_explains_where_a_statement_would_go() {
    let (_primary, standby, front) = split().await;
    let client = front.client().await;
    let explained = async |sql: &str| {
        let row = client.query_one(&format!("EXPLAIN ROUTE {sql}"), &[]).await.expect(sql);
        let text = |column: &str| row.get::<_, Option<String>>(column).unwrap_or_default();
        (text("target"), text("reason"), text("culprit"), text("consistency"), text("replicas"))
    };
    let row = |target: &str, reason: &str, culprit: &str, level: &str, replicas: &str| {
        (target.to_owned(), reason.to_owned(), culprit.to_owned(), level.to_owned(), replicas.to_owned())
    };
    assert_eq!(explained(COUNT).await, row("replica", "plain-read", "", "session", "r2"));
    assert_eq!(explained("SELECT nextval('s')").await, row("primary", "node-dependent", "nextval", "session", ""));
    assert_eq!(explained("UPDATE t SET a = 1").await.0, "primary");
    assert_eq!(explained("BEGIN").await.0, "transaction");
    assert_eq!(explained("SET work_mem = '5MB'").await.0, "session");
    assert_eq!(explained("/*+ route=primary */ SELECT 1").await.1, "hint-primary");
    assert_eq!(explained("/*+ consistency=strong */ SELECT 1").await, row("primary", "plain-read", "", "strong", ""));
    pause(&standby);
    client.batch_execute("INSERT INTO t VALUES (1)").await.expect("written");
    let (target, ..) = explained(COUNT).await;
    assert_eq!(target, "primary", "the replica lacks what the session wrote");
    assert_eq!(explained(&format!("/*+ consistency=eventual */ {COUNT}")).await.0, "replica");
    assert_eq!(one(&client, COUNT).await, "1", "nothing was run, nothing is out of step");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_listener_and_user_has_its_own_beginning() {
    use routing::Level;
    let any = || vec!["127.0.0.1:0".parse().expect("an address")];
    let user_wishes = [("report".to_owned(), router::wishes::Wishes { level: Some(Level::Eventual), route: None })];
    let (primary, _standby, front) = split_by(router::Config {
        split: true,
        // For a machine that is busy with other tests.
        read_wait: std::time::Duration::from_secs(5),
        listen_primary: any(),
        listen_read_only: any(),
        user_wishes: user_wishes.into(),
        auth: router::config::ClientAuth::Users(std::sync::Arc::new(
            [("postgres", crate::harness::PASSWORD), ("report", "report")]
                .map(|(name, word)| (name.to_owned(), router::config::Secret::Password(word.to_owned())))
                .into(),
        )),
        ..config(4)
    })
    .await;
    primary.sql("CREATE ROLE report LOGIN PASSWORD 'report'");
    let [main, only_primary, read_only] = front.router.addresses() else { panic!("three listeners") };
    assert_eq!(main.port(), front.port);
    let client_at = async |port: u16| {
        let mut options = front.options();
        let hosts = options.get_hosts().to_vec();
        let mut there = tokio_postgres::Config::new();
        there.user("postgres").password(crate::harness::PASSWORD).dbname("postgres").port(port);
        if let Some(tokio_postgres::config::Host::Tcp(host)) = hosts.first() {
            there.host(host);
        }
        options = there;
        front.client_with(&options).await.expect("in")
    };
    let writer = client_at(only_primary.port()).await;
    assert_eq!(one(&writer, "SELECT place()").await, "off", "on the primary, and free to write");
    writer.batch_execute("INSERT INTO t VALUES (1)").await.expect("written");

    let reader = client_at(read_only.port()).await;
    assert_eq!(one(&reader, "SELECT place()").await, "on");
    assert_eq!(one(&reader, "SELECT recovers()").await, "true", "on the replica");
    assert_eq!(one(&reader, "SELECT pg_is_in_recovery()").await, "t", "whatever depends on the server too");
    let refused = try_one(&reader, "INSERT INTO t VALUES (2)").await.expect_err("read only");
    assert_eq!(sqlstate(&refused), "25006");
    // Who has been at the primary comes back once the replica is known to have what was seen there.
    let began = std::time::Instant::now();
    while one(&reader, "SELECT recovers()").await != "true" {
        assert!(began.elapsed() < crate::harness::PATIENCE, "never read on the replica again");
    }
    let other = client_at(read_only.port()).await;
    other.batch_execute("BEGIN").await.expect("begun");
    assert_eq!(one(&other, "SELECT recovers()").await, "true", "its transactions too");
    other.batch_execute("COMMIT").await.expect("ended");
    assert_eq!(one(&reader, "SHOW default_transaction_read_only").await, "on");

    let mut options = front.options();
    options.user("report").password("report");
    let report = front.client_with(&options).await.expect("in");
    assert_eq!(one(&report, "SHOW stemma.consistency").await, "eventual");
    report.batch_execute("SET stemma.consistency = 'strong'").await.expect("set");
    report.batch_execute("RESET stemma.consistency").await.expect("reset");
    assert_eq!(one(&report, "SHOW stemma.consistency").await, "eventual", "what it began with");
}
