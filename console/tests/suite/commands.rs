//! Requests that change something: who may, what is passed on, and how refusals are told.

use crate::backend::{Fake, TOKEN, name, request};
use axum::http::Method;
use model::command::NodePatch;
use model::error::exit;
use model::settings::Settings;
use model::{Command, Millis, Outcome, ReplicaKind, Role, Trouble, WallTime};
use std::sync::Arc;

/// Every request that changes something, and the command it must become; `None` where this version has none.
fn mutations() -> Vec<(Method, &'static str, &'static str, Option<Command>)> {
    let (node, n1) = (name("n2"), name("n1"));
    let patch = NodePatch { kind: Some(ReplicaKind::Standby), upstream: Some(None), ..NodePatch::default() };
    let settings = Box::new(Settings { strict: true, ..Settings::default() });
    let (post, put, delete) = (Method::POST, Method::PUT, Method::DELETE);
    vec![
        (
            put.clone(),
            "/v1/settings",
            r#"{"settings":{"strict":true},"expect_version":4}"#,
            Some(Command::ApplySettings { settings, expect_version: Some(4) }),
        ),
        (post.clone(), "/v1/settings/rollback", r#"{"version":2}"#, Some(Command::RollbackSettings { version: 2 })),
        (
            post.clone(),
            "/v1/tokens",
            r#"{"role":"replica","ttl":60000}"#,
            Some(Command::CreateToken { role: Role::Replica, ttl: Millis(60_000) }),
        ),
        (
            post.clone(),
            "/v1/tokens",
            r#"{"role":"witness"}"#,
            Some(Command::CreateToken { role: Role::Witness, ttl: Millis::from_secs(3600) }),
        ),
        (delete.clone(), "/v1/tokens/tok1", "", Some(Command::RevokeToken { id: "tok1".to_owned() })),
        (delete.clone(), "/v1/nodes/n2", "", Some(Command::RemoveNode { node: node.clone(), force: false })),
        (delete.clone(), "/v1/nodes/n2?force=true", "", Some(Command::RemoveNode { node: node.clone(), force: true })),
        (
            Method::PATCH,
            "/v1/nodes/n2",
            r#"{"kind":"standby","upstream":null}"#,
            Some(Command::SetNode { node: node.clone(), patch }),
        ),
        (post.clone(), "/v1/nodes/n2/rejoin", "", Some(Command::RejoinNode { node: node.clone() })),
        (post.clone(), "/v1/nodes/n2/reinit", "", Some(Command::ReinitNode { node })),
        (
            post.clone(),
            "/v1/restart",
            r#"{"only_pending":true,"nodes":["n2"]}"#,
            Some(Command::RollingRestart { only_pending: true, nodes: vec![name("n2")] }),
        ),
        (
            post.clone(),
            "/v1/certificates/rotate",
            r#"{"node":"n2"}"#,
            Some(Command::RotateCertificates { node: Some(name("n2")) }),
        ),
        (post.clone(), "/v1/certificates/rotate", r#"{"node":null}"#, Some(Command::RotateCertificates { node: None })),
        (post.clone(), "/v1/operations/op_3/cancel", "", Some(Command::CancelOperation { id: "op_3".to_owned() })),
        (
            post.clone(),
            "/restart",
            r#"{"restart_pending":true,"role":"primary"}"#,
            Some(Command::RollingRestart { only_pending: true, nodes: vec![n1.clone()] }),
        ),
        (post.clone(), "/reinitialize", r#"{"force":true}"#, Some(Command::ReinitNode { node: n1 })),
        (post.clone(), "/reload", "", None),
        (
            post.clone(),
            "/switchover",
            r#"{"leader":"n1","candidate":"n2"}"#,
            Some(Command::Switchover { to: Some(name("n2")), at: None }),
        ),
        (delete.clone(), "/switchover", "", Some(Command::CancelSwitchover)),
        (
            post.clone(),
            "/failover",
            r#"{"candidate":"n2"}"#,
            Some(Command::Switchover { to: Some(name("n2")), at: None }),
        ),
        (
            post.clone(),
            "/v1/switchover",
            r#"{"to":"n2","at":"2030-01-31T02:30:00+01:00"}"#,
            Some(Command::Switchover { to: Some(name("n2")), at: Some(WallTime(1_896_053_400_000)) }),
        ),
        (post.clone(), "/v1/switchover", "", Some(Command::Switchover { to: None, at: None })),
        (delete.clone(), "/v1/switchover", "", Some(Command::CancelSwitchover)),
        (
            post.clone(),
            "/v1/failover",
            r#"{"to":"n2","accept_data_loss":"16MB"}"#,
            Some(Command::Failover { to: Some(name("n2")), loss_bytes_max: Some(16 << 20) }),
        ),
        (
            post.clone(),
            "/v1/failover",
            r#"{"accept_data_loss":"unknown"}"#,
            Some(Command::Failover { to: None, loss_bytes_max: Some(u64::MAX) }),
        ),
        (post.clone(), "/v1/failover", "", Some(Command::Failover { to: None, loss_bytes_max: None })),
        (post.clone(), "/v1/pause", r#"{"for":"30min"}"#, Some(Command::Pause { span: Millis::from_secs(1_800) })),
        (post.clone(), "/v1/resume", "", Some(Command::Resume)),
        (delete, "/restart", "", None),
        (Method::PATCH, "/config", r#"{"ttl":20}"#, None),
        (put, "/config", r#"{"ttl":20}"#, None),
        (post, "/failsafe", "{}", None),
    ]
}

#[tokio::test]
async fn nothing_changes_without_credentials() {
    for (method, path, body, _) in mutations() {
        let fake = Arc::new(Fake::healthy("n1"));
        let wrong = ["", "Bearer wrong", "Bearer ", "Basic !!!", "Basic YWxpY2U6d3Jvbmc=", "Digest let-me-in", TOKEN];
        for credential in wrong {
            let headers = [("authorization", credential)];
            let answer = fake.ask(request(method.clone(), path, body, &headers)).await;
            answer.is_problem(401, "ST8003");
            assert_eq!(answer.header("www-authenticate"), "Basic realm=\"stemma\", Bearer", "{method} {path}");
        }
        let browser = [("user-agent", "Mozilla/5.0 (X11)")];
        let answer = fake.ask(request(method.clone(), path, body, &browser)).await;
        answer.is_problem(401, "ST8003");
        assert_eq!(answer.header("www-authenticate"), "", "a browser would open a dialog of its own");
        assert!(fake.asked.lock().expect("sound").is_empty(), "{method} {path} reached the keeper");
    }
}

#[tokio::test]
async fn every_request_becomes_its_command_and_dry_runs_stay_dry() {
    for (method, path, body, command) in mutations() {
        let fake = Arc::new(Fake::healthy("n1"));
        let both = if path.contains('?') { format!("{path}&dry_run=true") } else { format!("{path}?dry_run=true") };
        for url in [path, both.as_str()] {
            let answer = fake.send(method.clone(), url, body).await;
            match (&command, path) {
                (Some(_), _) => assert_eq!(answer.status, 200, "{method} {url}: {}", answer.text()),
                (None, "/reload") => assert_eq!(answer.status, 202),
                (None, _) => answer.is_problem(501, "ST1301"),
            }
        }
        let asked: Vec<_> = std::mem::take(&mut *fake.asked.lock().expect("sound"));
        let got: Vec<_> = asked.iter().map(|(command, actor, dry)| (command, actor.name.as_str(), *dry)).collect();
        let wanted: Vec<_> =
            command.iter().flat_map(|command| [(command, "alice", false), (command, "alice", true)]).collect();
        assert_eq!(got, wanted, "{method} {path}");
    }
}

#[tokio::test]
async fn a_misspelt_dry_run_does_nothing() {
    let fake = Arc::new(Fake::healthy("n1"));
    for query in ["dry_run=yes", "dry-run=true", "dryrun=true", "dry_run=true&x=1", "dry_run=True"] {
        fake.send(Method::POST, &format!("/v1/nodes/n2/reinit?{query}"), "").await.is_problem(400, "ST1301");
    }
    assert!(fake.asked.lock().expect("sound").is_empty());
}

#[tokio::test]
async fn the_reason_goes_along_and_basic_passwords_are_tokens() {
    let fake = Arc::new(Fake::healthy("n1"));
    let long = "x".repeat(900);
    // alice:let-me-in
    for (reason, kept) in [("disk swap", "disk swap"), (long.as_str(), &long[..500]), ("", "")] {
        let headers = [("authorization", "Basic YWxpY2U6bGV0LW1lLWlu"), ("x-stemma-reason", reason)];
        assert_eq!(fake.ask(request(Method::POST, "/v1/nodes/n2/rejoin", "", &headers)).await.status, 200);
        let (_, actor, _) = fake.asked.lock().expect("sound").pop().expect("asked");
        assert_eq!((actor.name.as_str(), actor.reason.as_str()), ("alice", kept));
    }
}

#[tokio::test]
async fn if_match_guards_the_settings() {
    let settings = |reply| Arc::new(Fake { reply, ..Fake::healthy("n1") });
    let done = Fake::healthy("n1").reply;
    let put = |tag: &str, body: &str| {
        let bearer = format!("Bearer {TOKEN}");
        let headers = [("authorization", bearer.as_str()), ("if-match", tag)];
        request(Method::PUT, "/v1/settings", body, &headers)
    };
    for (tag, body, version) in [
        ("\"7\"", r#"{"settings":{}}"#, Some(7)),
        ("\"7\"", r#"{"settings":{},"expect_version":7}"#, Some(7)),
        ("*", r#"{"settings":{}}"#, None),
    ] {
        let fake = settings(done.clone());
        assert_eq!(fake.ask(put(tag, body)).await.status, 200, "{tag}");
        let (command, ..) = fake.asked.lock().expect("sound").pop().expect("asked");
        let expected = Command::ApplySettings { settings: Box::default(), expect_version: version };
        assert_eq!(command, expected);
    }
    for (tag, body) in [
        ("7", r#"{"settings":{}}"#),
        ("\"x\"", r#"{"settings":{}}"#),
        ("\"7\"", r#"{"settings":{},"expect_version":8}"#),
    ] {
        settings(done.clone()).ask(put(tag, body)).await.is_problem(400, "ST1301");
    }
    let conflict = Err(Trouble::conflict("settings are at version 8, not 7", "read them again"));
    settings(conflict.clone()).ask(put("\"7\"", r#"{"settings":{}}"#)).await.is_problem(412, "ST2106");
    let body = r#"{"settings":{},"expect_version":7}"#;
    settings(conflict).send(Method::PUT, "/v1/settings", body).await.is_problem(409, "ST2106");
}

#[tokio::test]
async fn long_actions_answer_202_and_where_to_look() {
    let mut fake = Fake::healthy("n1");
    let outcome = Outcome { operation: Some("op_7".to_owned()), ..fake.reply.clone().expect("done") };
    fake.reply = Ok(outcome.clone());
    let fake = Arc::new(fake);
    let answer = fake.send(Method::POST, "/v1/restart", "").await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (202, "/v1/operations/op_7"));
    assert_eq!(serde_json::from_slice::<Outcome>(&answer.body).expect("an outcome"), outcome);
    let answer = fake.send(Method::POST, "/restart", "").await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (202, "done"), "Patroni's clients print the text");
}

#[tokio::test]
async fn refusals_keep_their_code_reason_hint_and_get_a_fitting_status() {
    let of = |code: &str, status: u16| {
        let known = [
            Trouble::would_break_quorum("2 of 3 voters would remain", "add a node first with `stemma token create`"),
            Trouble::unknown_node("there is no node `n2`", "`stemma status` lists the nodes"),
            Trouble::not_found("no such version", "look at the history"),
            Trouble::settings_refused("`port` belongs to stemma", "leave it out"),
            Trouble::operation_running("op_1 runs", "wait for it"),
            Trouble::no_quorum("1 of 3 voters answers", "bring one back"),
            Trouble::unreachable("the leader does not answer", "try again"),
            Trouble::consensus("the store failed", "look at the log"),
            Trouble::denied("alice may not", "ask an owner"),
            Trouble::request_too_large("too large", "send less"),
            Trouble::internal("a defect", "report it"),
            Trouble { exit: exit::UNKNOWN, ..Trouble::consensus("outcome unknown", "read first") },
        ];
        let trouble =
            known.into_iter().rfind(|trouble| trouble.is(code) && (status != 504 || trouble.exit == exit::UNKNOWN));
        (trouble.expect("listed"), code.to_owned(), status)
    };
    let table = [
        of("ST2103", 409),
        of("ST2101", 404),
        of("ST2108", 404),
        of("ST2107", 422),
        of("ST2109", 409),
        of("ST2105", 503),
        of("ST2114", 503),
        of("ST2112", 504),
        of("ST8003", 403),
        of("ST1302", 413),
        of("ST9001", 500),
    ];
    for (trouble, code, status) in table {
        let fake = Arc::new(Fake { reply: Err(trouble.clone().because("beneath")), ..Fake::healthy("n1") });
        let answer = fake.send(Method::DELETE, "/v1/nodes/n2", "").await;
        answer.is_problem(status, &code);
        let problem = answer.json();
        assert_eq!(problem["detail"], trouble.reason);
        assert_eq!(problem["hint"], trouble.hint);
        assert_eq!(problem["exit"], trouble.exit);
        assert_eq!(problem["causes"][0], "beneath");
    }
    let (trouble, ..) = of("ST2103", 409);
    let fake = Arc::new(Fake { reply: Err(trouble), ..Fake::healthy("n1") });
    insta::assert_json_snapshot!("problem", fake.send(Method::DELETE, "/v1/nodes/n2", "").await.json());
    fake.send(Method::POST, "/reinitialize", "").await.is_problem(503, "ST2103");
}

#[tokio::test]
async fn bodies_that_do_not_fit_are_refused_with_the_place() {
    let fake = Arc::new(Fake::healthy("n1"));
    for (method, path, body) in [
        (Method::POST, "/v1/tokens", "{"),
        (Method::POST, "/v1/tokens", ""),
        (Method::POST, "/v1/tokens", "[]"),
        (Method::POST, "/v1/tokens", r#"{"role":"emperor"}"#),
        (Method::POST, "/v1/tokens", r#"{"role":"replica","ttl":-1}"#),
        (Method::POST, "/v1/tokens", r#"{"role":"replica","tll":1}"#),
        (Method::POST, "/v1/tokens", "{\"role\":\"replica\"}\0"),
        (Method::PUT, "/v1/settings", r#"{"settings":{"comit_mode":"sync"}}"#),
        (Method::PATCH, "/v1/nodes/n2", r#"{"name":"n3"}"#),
        (Method::POST, "/v1/restart", r#"{"nodes":["NOT A NAME"]}"#),
        (Method::POST, "/restart", r#"{"role":"emperor"}"#),
    ] {
        fake.send(method, path, body).await.is_problem(400, "ST1301");
    }
    for path in ["/v1/nodes/NOT%20A%20NAME/rejoin", "/v1/nodes/%00/rejoin", "/v1/nodes/..%2f..%2fetc/reinit"] {
        fake.send(Method::POST, path, "").await.is_problem(404, "ST2101");
    }
    for body in [r#"{"schedule":"2030-01-01"}"#, r#"{"postgres_version":"16"}"#, r#"{"timeout":5}"#] {
        fake.send(Method::POST, "/restart", body).await.is_problem(501, "ST1301");
    }
    fake.send(Method::POST, "/restart", r#"{"role":"replica"}"#).await.is_problem(503, "ST2111");
    fake.send(Method::POST, "/reinitialize", r#"{"from-leader":true}"#).await.is_problem(501, "ST1301");
    assert!(fake.asked.lock().expect("sound").is_empty(), "nothing of this reached the keeper");
}

#[tokio::test]
async fn a_panic_is_an_answer_and_keeps_its_secret() {
    let fake = Arc::new(Fake { panics: true, ..Fake::healthy("n1") });
    let answer = fake.send(Method::POST, "/v1/restart", "").await;
    answer.is_problem(500, "ST9001");
    assert!(!answer.text().contains("secret"), "{}", answer.text());
    assert_eq!(fake.get("/v1/status").await.status, 200, "the next request is served");
}
