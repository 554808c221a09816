//! Programs that follow what happens: nothing twice, nothing left out, gaps told, and an end when the keeper ends.

use crate::backend::{Fake, NOW, name, request};
use axum::body::Body;
use axum::http::Method;
use console::{Backend, Limits};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use http_body_util::BodyExt;
use model::failover::{Failover, FailoverKind, FailoverPhase, PhaseTime};
use model::limits::EVENT_CLIENTS_MAX;
use model::state::HistoryEvent;
use model::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// A backend whose cluster changes while it is followed.
struct Live {
    fake: Fake,
    state: Mutex<ClusterState>,
    status: Mutex<ClusterStatus>,
    changed: Mutex<Option<watch::Sender<u64>>>,
}

impl Live {
    fn new() -> Arc<Live> {
        let fake = Fake::healthy("n1");
        let mut state = fake.state.clone().expect("known");
        state.history = (1..=3).map(event).collect();
        state.rule.epoch = Epoch(5);
        let status = Mutex::new(fake.status.clone());
        Arc::new(Live { fake, state: Mutex::new(state), status, changed: Mutex::new(Some(watch::channel(0).0)) })
    }
    fn change(&self, change: impl FnOnce(&mut ClusterState, &mut ClusterStatus)) {
        change(&mut self.state.lock().expect("sound"), &mut self.status.lock().expect("sound"));
        self.changed.lock().expect("sound").as_ref().expect("not stopped").send_modify(|count| *count += 1);
    }
    /// The keeper ends.
    fn stop(&self) {
        self.changed.lock().expect("sound").take();
    }
    async fn follow(self: &Arc<Live>, path: &str, headers: &[(&str, &str)]) -> Reader {
        let response = console::router(self.clone()).oneshot(request(Method::GET, path, "", headers)).await;
        let response = response.expect("infallible");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Reader { body: response.into_body(), text: String::new() }
    }
}

impl Backend for Live {
    fn status(&self) -> Arc<ClusterStatus> {
        Arc::new(self.status.lock().expect("sound").clone())
    }
    fn state(&self) -> Option<Arc<ClusterState>> {
        Some(Arc::new(self.state.lock().expect("sound").clone()))
    }
    fn sample(&self) -> Option<Arc<NodeSample>> {
        self.fake.sample()
    }
    fn node(&self) -> NodeName {
        self.fake.node()
    }
    fn liveness(&self) -> Millis {
        self.fake.liveness()
    }
    fn changes(&self) -> BoxStream<'static, ()> {
        let Some(changes) = self.changed.lock().expect("sound").as_ref().map(watch::Sender::subscribe) else {
            return Box::pin(futures_util::stream::empty());
        };
        Box::pin(futures_util::stream::unfold(changes, |mut changes| async move {
            changes.changed().await.is_ok().then_some(((), changes))
        }))
    }
    fn command(&self, command: Command, actor: Actor, dry_run: bool) -> BoxFuture<'_, Result<Outcome, Trouble>> {
        self.fake.command(command, actor, dry_run)
    }
    fn authorise(&self, bearer: Option<&str>) -> Result<String, Trouble> {
        self.fake.authorise(bearer)
    }
}

fn event(seq: u64) -> HistoryEvent {
    HistoryEvent {
        seq,
        at: NOW,
        kind: "node-joined".to_owned(),
        node: Some(name("n2")),
        text: format!("event {seq}"),
        actor: "alice".to_owned(),
    }
}

struct Reader {
    body: Body,
    text: String,
}

impl Reader {
    /// The next event: its kind, its id, its data. `None` at the end.
    async fn next(&mut self) -> Option<(String, Option<u64>, Value)> {
        loop {
            while let Some((one, rest)) = self.text.split_once("\n\n") {
                let (one, rest) = (one.to_owned(), rest.to_owned());
                self.text = rest;
                let field = |field: &str| one.lines().find_map(|line| line.strip_prefix(field)).map(str::to_owned);
                if let Some(kind) = field("event: ") {
                    let data = serde_json::from_str(&field("data: ").expect("data")).expect("JSON");
                    return Some((kind, field("id: ").map(|id| id.parse().expect("a number")), data));
                }
            }
            let frame =
                tokio::time::timeout(Duration::from_secs(20), self.body.frame()).await.expect("a frame in time");
            let data = frame?.expect("no error").into_data().expect("data");
            self.text.push_str(std::str::from_utf8(&data).expect("text"));
        }
    }
    async fn some(&mut self, count: usize) -> Vec<String> {
        let mut seen = Vec::new();
        for _ in 0..count {
            let (kind, id, data) = self.next().await.expect("an event");
            seen.push(match (kind.as_str(), id) {
                ("history", Some(id)) => format!("history {id}"),
                ("failover", None) => format!("failover {} {}", data["id"].as_str().unwrap_or("?"), data["phase"]),
                ("primary", None) => format!("primary {} epoch {}", data["name"], data["epoch"]),
                ("topology", None) => format!("topology {}", data["primary"]["name"]),
                ("gap", None) => format!("gap after {} oldest {}", data["since"], data["oldest"]),
                other => panic!("{other:?}"),
            });
        }
        seen
    }
}

#[tokio::test]
async fn a_failover_is_told_in_order_and_a_client_that_comes_back_misses_nothing() {
    let live = Live::new();
    let mut reader = live.follow("/v1/events?since=1", &[]).await;
    assert_eq!(
        reader.some(4).await,
        ["history 2", "history 3", "primary \"n1\" epoch 5", "topology \"n1\""],
        "what was missed, then how it is"
    );
    let failover = |phases: &[FailoverPhase]| Failover {
        id: "fo_6".to_owned(),
        epoch: Epoch(6),
        from: NodeId(1),
        kind: FailoverKind::Automatic,
        because: "n1 is silent".to_owned(),
        actor: "stemma".to_owned(),
        request: String::new(),
        ended_because: String::new(),
        phase: *phases.last().expect("one"),
        recruited: BTreeMap::new(),
        refused: BTreeMap::new(),
        winner: Some(NodeId(2)),
        next: None,
        unsettled: Vec::new(),
        loss_bytes: None,
        started_at: NOW,
        phases: phases.iter().map(|phase| PhaseTime { phase: *phase, at: NOW }).collect(),
    };
    live.change(|state, _| state.failover = Some(failover(&[FailoverPhase::Recruit])));
    assert_eq!(reader.some(3).await, ["failover fo_6 \"recruit\"", "primary null epoch 5", "topology null"]);
    // Two steps at once, as for a client that reads slowly: no phase is left out.
    live.change(|state, _| {
        state.failover = None;
        state.failovers.push(failover(&[FailoverPhase::Recruit, FailoverPhase::Promote, FailoverPhase::Done]));
        state.rule.epoch = Epoch(6);
        state.rule.primary = NodeId(2);
        state.history.push(event(4));
    });
    assert_eq!(
        reader.some(5).await,
        [
            "history 4",
            "failover fo_6 \"promote\"",
            "failover fo_6 \"done\"",
            "primary \"n2\" epoch 6",
            "topology \"n2\""
        ]
    );
    drop(reader);
    // The header is what a browser sends by itself when it comes back: newer than the address.
    let mut reader = live.follow("/v1/events?since=1&only=history,primary", &[("last-event-id", "3")]).await;
    assert_eq!(reader.some(2).await, ["history 4", "primary \"n2\" epoch 6"]);
    live.stop();
    assert!(reader.next().await.is_none(), "ends whole when the keeper ends");
}

#[tokio::test]
async fn a_cut_history_is_said_to_be_cut() {
    let live = Live::new();
    live.change(|state, _| state.history = (50..=52).map(event).collect());
    let mut reader = live.follow("/v1/events?since=7&only=history", &[]).await;
    assert_eq!(reader.some(4).await, ["gap after 7 oldest 50", "history 50", "history 51", "history 52"]);
    // All that are kept was asked for, and is given: nothing is missing.
    let mut all = live.follow("/v1/events?since=0&only=history", &[]).await;
    assert_eq!(all.some(1).await, ["history 50"]);
    // A store that was made anew counts from the beginning.
    let mut ahead = live.follow("/v1/events?since=900&only=history", &[]).await;
    assert_eq!(ahead.some(2).await, ["gap after 900 oldest 50", "history 50"]);
    // While following, too: more happened than is kept before this client read on.
    live.change(|state, _| state.history = (60..=60).map(event).collect());
    assert_eq!(reader.some(2).await, ["gap after 52 oldest 60", "history 60"]);
}

#[tokio::test]
async fn lag_alone_is_told_once_a_second_and_a_role_at_once() {
    let live = Live::new();
    let mut reader = live.follow("/v1/events?only=topology", &[]).await;
    let (_, _, first) = reader.next().await.expect("the beginning");
    let row = |document: &Value| document["nodes"].as_array().expect("nodes")[1].clone();
    assert_eq!(
        row(&first),
        json!({"name": "n2", "role": "replica", "kind": "hot", "site": row(&first)["site"], "host": row(&first)["host"],
            "port": 5432, "api": row(&first)["api"], "healthy": true, "counted": true, "streaming": true, "server": "running",
            "lag_bytes": 2048, "lag_ms": 250, "replayed": "0/3001A00", "id": 2, "timeline": 3,
            "sample_age_ms": 120, "started_at": row(&first)["started_at"]})
    );
    let began = std::time::Instant::now();
    live.change(|_, status| status.nodes[1].lag.as_mut().expect("lag").apply_bytes = Some(1));
    live.change(|_, status| status.nodes[1].lag.as_mut().expect("lag").apply_bytes = Some(2));
    let (_, _, lagging) = reader.next().await.expect("told when due");
    assert_eq!(row(&lagging)["lag_bytes"], 2, "the newest, once");
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    live.change(|_, status| status.nodes[1].link_up = false);
    let (_, _, cut) = reader.next().await.expect("told at once");
    assert_eq!(row(&cut)["streaming"], false);
    let once = console::router(Live::new()).oneshot(request(Method::GET, "/v1/topology", "", &[])).await;
    let body = once.expect("infallible").into_body().collect().await.expect("in memory").to_bytes();
    let once: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(once, first, "the same document for who asks once");
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let fake = Arc::new(Fake::healthy("n1"));
    for path in ["/v1/events?since=x", "/v1/events?only=histery", "/v1/events?follow=perhaps"] {
        fake.get(path).await.is_problem(400, "ST1301");
    }
    let mut unknowing = Fake::healthy("n1");
    unknowing.state = None;
    assert_eq!(Arc::new(unknowing).get("/v1/events").await.status, 503);
    // Who does not follow is told how it is, and no more.
    let live = Live::new();
    let mut reader = live.follow("/v1/events?follow=false&since=2&only=history,primary", &[]).await;
    assert_eq!(reader.some(2).await, ["history 3", "primary \"n1\" epoch 5"]);
    assert!(reader.next().await.is_none());
}

#[tokio::test]
async fn so_many_may_follow_and_no_more_and_others_are_answered_all_the_same() {
    let live = Live::new();
    let stop = CancellationToken::new();
    let any = "127.0.0.1:0".parse().expect("valid");
    let limits = Limits { connections_max: 2 * EVENT_CLIENTS_MAX + 10, ..Limits::default() };
    let (address, task) = console::serve_with(any, live.clone(), stop.clone(), limits).await.expect("listens");
    let ask = async |path: &str, bytes: usize| {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("connects");
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.expect("written");
        let mut head = vec![0; bytes];
        stream.read_exact(&mut head).await.expect("an answer");
        (stream, String::from_utf8_lossy(&head).into_owned())
    };
    let mut held = Vec::new();
    for _ in 0..EVENT_CLIENTS_MAX {
        let (stream, head) = ask("/v1/events", 12).await;
        assert_eq!(head, "HTTP/1.1 200");
        held.push(stream);
    }
    assert_eq!(ask("/v1/events", 12).await.1, "HTTP/1.1 503");
    assert_eq!(ask("/primary", 12).await.1, "HTTP/1.1 200", "a health check is no follower");
    held.pop();
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while ask("/v1/events", 12).await.1 != "HTTP/1.1 200" {
        assert!(std::time::Instant::now() < deadline, "a place that was left is free again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    live.stop();
    stop.cancel();
    let mut rest = String::new();
    let mut last = held.pop().expect("one");
    let read = tokio::time::timeout(Duration::from_secs(10), last.read_to_string(&mut rest)).await;
    assert!(read.expect("ends in time").is_ok() && rest.ends_with("0\r\n\r\n"), "ends whole: {rest}");
    task.await.expect("ends");
}
