//! A backend with a hand-built cluster: n1 primary, n2 hot replica, n3 delayed replica, w1 witness.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header::HeaderMap};
use console::Backend;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use http_body_util::BodyExt;
use model::observe::{CloneProgress, ConsensusView, Receiver, Sender, ServerFacts, Slot};
use model::state::{HistoryEvent, Identity, LineageEntry, TokenRecord};
use model::status::{Durability, Lag, LinkStatus, NodeStatus, Problem, SCHEMA_VERSION, Severity, Verdict};
use model::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock};
use tower::ServiceExt;

pub const TOKEN: &str = "let-me-in";
pub const NOW: WallTime = WallTime(1_767_225_600_000);

pub struct Fake {
    pub status: ClusterStatus,
    pub state: Option<ClusterState>,
    pub sample: Option<NodeSample>,
    pub node: NodeName,
    pub age: Millis,
    /// What a command meets: an outcome, a refusal, or a panic.
    pub reply: Result<Outcome, Trouble>,
    pub panics: bool,
    /// A command waits here first.
    pub gate: Option<Arc<tokio::sync::Notify>>,
    pub asked: Mutex<Vec<(Command, Actor, bool)>>,
    /// Made at the first request. It keeps the fake alive to the end of the process, which a test may.
    pub router: OnceLock<axum::Router>,
}

impl Backend for Fake {
    fn status(&self) -> Arc<ClusterStatus> {
        Arc::new(self.status.clone())
    }
    fn state(&self) -> Option<Arc<ClusterState>> {
        self.state.clone().map(Arc::new)
    }
    fn sample(&self) -> Option<Arc<NodeSample>> {
        self.sample.clone().map(Arc::new)
    }
    fn node(&self) -> NodeName {
        self.node.clone()
    }
    fn liveness(&self) -> Millis {
        self.age
    }
    fn changes(&self) -> BoxStream<'static, ()> {
        Box::pin(futures_util::stream::empty())
    }
    fn command(&self, command: Command, actor: Actor, dry_run: bool) -> BoxFuture<'_, Result<Outcome, Trouble>> {
        Box::pin(async move {
            assert!(!self.panics, "a defect in the keeper, with a secret in its message");
            if let Some(gate) = &self.gate {
                gate.notified().await;
            }
            self.asked.lock().expect("sound").push((command, actor, dry_run));
            self.reply.clone()
        })
    }
    fn authorise(&self, bearer: Option<&str>) -> Result<String, Trouble> {
        match bearer {
            Some(TOKEN) => Ok("alice".to_owned()),
            Some(_) => Err(Trouble::denied("the token is not valid", "read the token file again")),
            None => Err(Trouble::denied("a bearer token is needed", "send `Authorization: Bearer <token>`")),
        }
    }
}

pub fn name(text: &str) -> NodeName {
    text.parse().expect("valid")
}

fn node(number: u64, text: &str, role: Role) -> NodeStatus {
    let replica = role == Role::Replica;
    let witness = role == Role::Witness;
    NodeStatus {
        id: NodeId(number),
        name: name(text),
        role,
        kind: ReplicaKind::Hot,
        cascading: false,
        site: "eu-1".parse().expect("valid"),
        keeper_up: true,
        heard_ms_ago: Some(40),
        sample_age_ms: Some(120),
        server: if witness { "witness" } else { "running" }.to_owned(),
        stage: "active".to_owned(),
        healthy: true,
        sync: if replica { "async" } else { "-" }.to_owned(),
        voter: false,
        upstream: replica.then(|| name("n1")),
        link: replica.then_some(LinkStatus::Streaming),
        link_up: replica,
        lag: replica.then(|| Lag {
            apply_bytes: Some(2048),
            receive_bytes: Some(512),
            seconds: Some(0.25),
            method: "position-history".to_owned(),
        }),
        timeline: (!witness).then_some(Timeline(3)),
        position: (!witness).then_some(Lsn(0x300_2000)),
        replayed: replica.then_some(Lsn(0x300_1A00)),
        version: (!witness).then(|| "15.18".to_owned()),
        postgres_address: if witness { String::new() } else { format!("10.0.0.{number}:5432") },
        api_address: format!("10.0.0.{number}:8008"),
        peer_address: format!("10.0.0.{number}:7432"),
        priority: 100,
        shows_replayed: true,
        replay_paused: false,
        pending_restart: BTreeMap::new(),
        clone: None,
        disk_used_percent: Some(41),
        connections: (!witness).then_some(7),
        clock_offset_ms: Some(3),
        doing: None,
        keeper_pid: Some(1000 + number as u32),
        program_version: Some("0.1.0".to_owned()),
        settings_version: Some(4),
        started_at: (!witness).then_some(WallTime(NOW.0 - 3_600_000)),
        certificate_expires_at: Some(WallTime(NOW.0 + 86_400_000)),
        sockets: None,
    }
}

pub fn facts(in_recovery: bool) -> ServerFacts {
    ServerFacts {
        version_num: 150_018,
        version: "15.18".to_owned(),
        system_id: SystemId(7_300_000_000_000_000_001),
        timeline: Timeline(3),
        in_recovery,
        written: (!in_recovery).then_some(Lsn(0x300_2200)),
        received: in_recovery.then_some(Lsn(0x300_2000)),
        replayed: in_recovery.then_some(Lsn(0x300_1A00)),
        shows_replayed: true,
        replayed_at: in_recovery.then_some(WallTime(NOW.0 - 1_000)),
        replay_paused: false,
        started_at: WallTime(NOW.0 - 3_600_000),
        receiver: in_recovery.then(|| Receiver {
            pid: 71,
            status: "streaming".to_owned(),
            upstream: "10.0.0.1:5432".to_owned(),
            slot: Some("stemma_n2_2".to_owned()),
            flushed: Some(Lsn(0x300_2000)),
            last_message_age_ms: Some(90),
            latest_end: Some(Lsn(0x300_2000)),
        }),
        senders: if in_recovery { Vec::new() } else { vec![sender()] },
        slots: vec![Slot {
            name: "stemma_n2_2".to_owned(),
            slot_type: "physical".to_owned(),
            active: true,
            restart: Some(Lsn(0x300_1000)),
            wal_status: Some("reserved".to_owned()),
            retained_bytes: Some(4608),
        }],
        synchronous_standby_names: "ANY 1 (\"stemma_n2_0badcafe\")".to_owned(),
        has_upstream: in_recovery,
        pending_restart: BTreeMap::new(),
        connections: 7,
        lineage_epoch: (!in_recovery).then_some(Epoch(2)),
    }
}

fn sender() -> Sender {
    Sender {
        application_name: "stemma_n2_0badcafe".to_owned(),
        client_addr: Some("10.0.0.2".to_owned()),
        pid: 81,
        state: "streaming".to_owned(),
        sync_state: "quorum".to_owned(),
        sent: Some(Lsn(0x300_2200)),
        write: Some(Lsn(0x300_2000)),
        flush: Some(Lsn(0x300_2000)),
        replay: Some(Lsn(0x300_1A00)),
    }
}

pub fn sample(node: u64, server: ServerState, facts: Option<ServerFacts>) -> NodeSample {
    NodeSample {
        node: NodeId(node),
        seq: 17,
        incarnation: 99,
        age_ms: 0,
        server,
        facts,
        epoch_seen: Epoch(2),
        state_version: 12,
        settings_version: 4,
        disk_free_bytes: Some(59 << 30),
        disk_total_bytes: Some(100 << 30),
        wall: NOW,
        doing: None,
        last_error: None,
        outside: Default::default(),
        keeper_pid: 1000,
        program_version: "0.1.0".to_owned(),
        certificate_expires_at: Some(WallTime(NOW.0 + 86_400_000)),
        sockets: None,
        peers_heard_ms: BTreeMap::new(),
    }
}

pub fn clone_progress() -> CloneProgress {
    CloneProgress {
        phase: "copy".to_owned(),
        source: "n1".to_owned(),
        done_bytes: 1 << 20,
        total_bytes: 4 << 20,
        rate_bytes_per_s: 2 << 20,
        attempt: 1,
        last_error: None,
    }
}

fn healthy_status() -> ClusterStatus {
    let mut n2 = node(2, "n2", Role::Replica);
    n2.sync = "sync".to_owned();
    n2.voter = true;
    let mut n3 = node(3, "n3", Role::Replica);
    n3.kind = ReplicaKind::Delayed;
    n3.priority = 0;
    ClusterStatus {
        schema_version: SCHEMA_VERSION,
        cluster: "orders".to_owned(),
        cluster_id: "11111111-2222-4333-8444-555555555555".to_owned(),
        verdict: Verdict::Healthy,
        sentence: "survives the loss of 1 node without losing a commit".to_owned(),
        observer: name("n1"),
        observed_at: NOW,
        epoch: Epoch(2),
        primary: Some(name("n1")),
        primary_up: true,
        engine: "PostgreSQL 15.18".to_owned(),
        system_id: Some(SystemId(7_300_000_000_000_000_001)),
        durability: Durability {
            mode: CommitMode::SemiSync,
            acks: 1,
            acks_wanted: 1,
            voters: vec!["n2".to_owned()],
            strict: false,
            in_force: true,
            failures_tolerated: 1,
            loss_now_bytes: Some(0),
            loss_now_seconds: Some(0.0),
            sentence: "every commit is on 2 nodes".to_owned(),
        },
        nodes: vec![node(1, "n1", Role::Primary), n2, n3, node(4, "w1", Role::Witness)],
        problems: Vec::new(),
        consensus: ConsensusView {
            kind: "embedded".to_owned(),
            up: true,
            leader: Some(NodeId(1)),
            term: 5,
            voters: vec![NodeId(1), NodeId(2), NodeId(4)],
            learners: vec![NodeId(3)],
            applied: 88,
            age: Millis(1500),
        },
        settings_version: 4,
        operation: None,
        paused: None,
        planned_switchover: None,
        follow: None,
        followers: Vec::new(),
        failover: None,
    }
}

fn state() -> ClusterState {
    // From its JSON form: fields that are added with a default do not concern this room.
    let member = |number: u64, text: &str, witness: bool| -> Member {
        serde_json::from_value(serde_json::json!({
            "id": number, "name": text, "witness": witness, "site": "eu-1", "priority": 100,
            "peer_address": format!("10.0.0.{number}:7432"), "api_address": format!("10.0.0.{number}:8008"),
            "postgres_host": format!("10.0.0.{number}"), "postgres_port": 5432, "key_fingerprint": "00",
            "stage": {"stage": "active"}, "joined_at": NOW,
        }))
        .expect("a member")
    };
    let members = [(1, "n1", false), (2, "n2", false), (3, "n3", false), (4, "w1", true)];
    let token = TokenRecord {
        id: "tok1".to_owned(),
        secret_sha256: "5ec2e7".to_owned(),
        role: Role::Replica,
        expires_at: WallTime(NOW.0 + 60_000),
        created_by: "alice".to_owned(),
        created_at: NOW,
        used_by: None,
        follower: false,
    };
    let place = |epoch: u64, timeline: u32, at: u64| LineageEntry {
        epoch: Epoch(epoch),
        timeline: Timeline(timeline),
        began_at: Some(Lsn(at)),
        from: None,
        xids: None,
    };
    ClusterState {
        format: 1,
        identity: Identity {
            name: "orders".parse().expect("valid"),
            id: ClusterId("11111111-2222-4333-8444-555555555555".to_owned()),
            system_id: Some(SystemId(7_300_000_000_000_000_001)),
            major: Some(15),
            created_at: NOW,
        },
        next_node_id: 5,
        next_order: 1,
        members: members.map(|(number, text, witness)| (NodeId(number), member(number, text, witness))).into(),
        rule: Rule {
            epoch: Epoch(2),
            primary: NodeId(1),
            voters: BTreeSet::from([NodeId(2)]),
            acks: 1,
            recruit_quorum: 1,
            mode: CommitMode::SemiSync,
            version: 3,
        },
        lineage: vec![place(1, 1, 0x100_0000), place(2, 3, 0x200_0000)],
        failover: None,
        failovers: Vec::new(),
        switchovers: Vec::new(),
        paused: None,
        settings: Settings::default(),
        settings_version: 4,
        settings_history: Vec::new(),
        follow: None,
        followers: BTreeMap::new(),
        tokens: BTreeMap::from([("tok1".to_owned(), token)]),
        operations: Vec::new(),
        history: (1..=3)
            .map(|seq| HistoryEvent {
                seq,
                at: NOW,
                kind: "node-joined".to_owned(),
                node: Some(name("n2")),
                text: format!("event {seq}"),
                actor: "stemma".to_owned(),
            })
            .collect(),
    }
}

impl Fake {
    /// A healthy cluster as seen by one of its nodes.
    pub fn healthy(node: &str) -> Fake {
        let status = healthy_status();
        let me = status.node(node).expect("one of the fixture's nodes");
        let own = match me.role {
            Role::Witness => sample(me.id.0, ServerState::None, None),
            role @ (Role::Primary | Role::Replica) => {
                sample(me.id.0, ServerState::Running, Some(facts(role == Role::Replica)))
            }
        };
        Fake {
            status,
            state: Some(state()),
            sample: Some(own),
            node: name(node),
            age: Millis(120),
            reply: Ok(Outcome {
                text: "done".to_owned(),
                changed: true,
                operation: None,
                failover: None,
                candidates: Vec::new(),
                token: None,
                notes: Vec::new(),
            }),
            panics: false,
            gate: None,
            asked: Mutex::default(),
            router: OnceLock::new(),
        }
    }

    pub fn me(&mut self) -> &mut NodeStatus {
        let me = self.node.clone();
        self.status.nodes.iter_mut().find(|node| node.name == me).expect("present")
    }

    /// n2's link is cut: what it lacks is no longer known in bytes, and its age grows.
    pub fn degraded(node: &str) -> Fake {
        let mut fake = Fake::healthy(node);
        fake.status.verdict = Verdict::Degraded;
        fake.status.sentence = "replica n2 is disconnected".to_owned();
        fake.status.durability.acks = 0;
        fake.status.durability.failures_tolerated = 0;
        fake.status.durability.loss_now_bytes = None;
        fake.status.durability.loss_now_seconds = None;
        let n2 = &mut fake.status.nodes[1];
        n2.sync = "async".to_owned();
        n2.link = Some(LinkStatus::Disconnected);
        n2.link_up = false;
        n2.healthy = false;
        n2.lag = Some(Lag {
            apply_bytes: None,
            receive_bytes: None,
            seconds: Some(12.5),
            method: "link-silence".to_owned(),
        });
        fake.status.problems.push(Problem {
            code: "ST3013".to_owned(),
            severity: Severity::Warning,
            node: Some(name("n2")),
            what: "n2 does not stream".to_owned(),
            cause: "the connection to n1 broke".to_owned(),
            next: "nothing: it connects again by itself".to_owned(),
            for_ms: 12_500,
        });
        fake
    }

    /// The primary's server is dead.
    pub fn down(node: &str) -> Fake {
        let mut fake = Fake::degraded(node);
        fake.status.verdict = Verdict::Down;
        fake.status.primary_up = false;
        fake.status.nodes[0].server = "failed".to_owned();
        fake.status.durability.failures_tolerated = -1;
        if node == "n1" {
            let failed = ServerState::Failed { reason: "could not open pg_wal".to_owned() };
            fake.sample = Some(sample(1, failed, None));
        }
        fake
    }

    /// n2 is being cloned for the first time, n1 serves.
    pub fn forming(node: &str) -> Fake {
        let mut fake = Fake::healthy(node);
        fake.status.verdict = Verdict::Forming;
        fake.status.durability.acks = 0;
        let n2 = &mut fake.status.nodes[1];
        n2.server = "cloning".to_owned();
        n2.stage = "joining".to_owned();
        n2.sync = "async".to_owned();
        n2.link = Some(LinkStatus::CatchingUp);
        n2.lag = None;
        n2.position = None;
        n2.replayed = None;
        n2.clone = Some(clone_progress());
        if node == "n2" {
            fake.sample = Some(sample(2, ServerState::Cloning(clone_progress()), None));
        }
        fake
    }

    /// Answers one request without a network.
    pub async fn ask(self: &Arc<Fake>, request: Request<Body>) -> Answer {
        let router = self.router.get_or_init(|| console::router(self.clone()));
        let response = router.clone().oneshot(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("in memory").to_bytes();
        Answer { status: parts.status, headers: parts.headers, body: body.to_vec() }
    }

    pub async fn get(self: &Arc<Fake>, path: &str) -> Answer {
        self.ask(request(Method::GET, path, "", &[])).await
    }

    /// The same with credentials.
    pub async fn send(self: &Arc<Fake>, method: Method, path: &str, body: &str) -> Answer {
        let bearer = format!("Bearer {TOKEN}");
        self.ask(request(method, path, body, &[("authorization", &bearer)])).await
    }
}

pub fn request(method: Method, path: &str, body: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let mut builder = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(Body::from(body.to_owned())).expect("well formed")
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|fault| panic!("{fault}: {}", self.text()))
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }
    /// Asserts that this is a problem document with this status and code.
    pub fn is_problem(&self, status: u16, code: &str) {
        assert_eq!(self.status.as_u16(), status, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!((problem["status"].as_u64(), problem["code"].as_str()), (Some(status.into()), Some(code)));
        for field in ["type", "title", "detail", "hint", "retry", "blame"] {
            assert!(problem[field].as_str().is_some_and(|text| !text.is_empty()), "{field} of {problem}");
        }
    }
}
