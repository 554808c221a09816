//! The command line against the real HTTP interface, with a backend that writes down what it was asked for.

use crate::cli::Cli;
use crate::commands::dispatch;
use crate::render::status::tests::three;
use clap::Parser;
use model::command::{Actor, Command, NodePatch};
use model::state::{Member, Stage};
use model::status::Verdict;
use model::{
    ClusterId, ClusterState, ClusterStatus, Millis, NodeId, NodeName, NodeSample, Outcome, Settings, Trouble, WallTime,
};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

const TOKEN: &str = "open-sesame";

struct Recorder {
    status: ClusterStatus,
    state: ClusterState,
    asked: Mutex<Vec<(Command, Actor, bool)>>,
}

impl console::Backend for Recorder {
    fn status(&self) -> Arc<ClusterStatus> {
        Arc::new(self.status.clone())
    }
    fn state(&self) -> Option<Arc<ClusterState>> {
        Some(Arc::new(self.state.clone()))
    }
    fn sample(&self) -> Option<Arc<NodeSample>> {
        None
    }
    fn node(&self) -> NodeName {
        self.status.observer.clone()
    }
    fn liveness(&self) -> Millis {
        Millis(0)
    }
    fn changes(&self) -> futures_util::stream::BoxStream<'static, ()> {
        Box::pin(futures_util::stream::empty())
    }
    fn command(
        &self,
        command: Command,
        actor: Actor,
        dry_run: bool,
    ) -> Pin<Box<dyn Future<Output = Result<Outcome, Trouble>> + Send + '_>> {
        let refused = matches!(&command, Command::ReinitNode { node } if node.as_str() == "pg-1");
        let token = matches!(command, Command::CreateToken { .. }).then(|| "stemma1.abc".to_owned());
        self.asked.lock().expect("no test panicked here").push((command, actor, dry_run));
        Box::pin(async move {
            if refused {
                return Err(Trouble::target_is_primary("pg-1 is the primary", "choose a replica"));
            }
            Ok(Outcome {
                text: "done".to_owned(),
                changed: true,
                operation: None,
                failover: None,
                candidates: Vec::new(),
                token,
                notes: Vec::new(),
            })
        })
    }
    fn authorise(&self, bearer: Option<&str>) -> Result<String, Trouble> {
        match bearer {
            Some(TOKEN) => Ok("tester".to_owned()),
            Some(_) | None => Err(Trouble::denied("no valid token", "use the token of the node")),
        }
    }
}

fn state() -> ClusterState {
    let first = Member {
        id: NodeId(1),
        name: "pg-1".parse().expect("a name"),
        witness: false,
        kind: model::ReplicaKind::Hot,
        apply_delay_ms: 0,
        upstream: None,
        site: "eu-1".parse().expect("a site"),
        priority: 100,
        peer_address: "pg-1:7432".to_owned(),
        api_address: "pg-1:8008".to_owned(),
        postgres_host: "pg-1".to_owned(),
        postgres_port: 5432,
        key_fingerprint: "00".to_owned(),
        next_key_fingerprint: None,
        certificate_order: 0,
        stage: Stage::Active,
        joined_at: WallTime(0),
    };
    let name = "prod-eu".parse().expect("a name");
    cluster::admission::new_cluster(name, ClusterId("0".to_owned()), first, Settings::default(), WallTime(0))
}

struct Api {
    address: SocketAddr,
    backend: Arc<Recorder>,
    token_file: tempfile::NamedTempFile,
    shutdown: CancellationToken,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn api(status: ClusterStatus) -> Api {
    let backend = Arc::new(Recorder { status, state: state(), asked: Mutex::new(Vec::new()) });
    let shutdown = CancellationToken::new();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let served = console::serve_with(any, backend.clone(), shutdown.clone(), console::Limits::default()).await;
    let (address, _) = served.expect("a free port");
    let token_file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(token_file.path(), format!("{TOKEN}\n")).expect("writable");
    Api { address, backend, token_file, shutdown }
}

impl Api {
    async fn run(&self, line: &str) -> Result<u8, Trouble> {
        let words =
            format!("stemma {line} --api http://{} --token-file {}", self.address, self.token_file.path().display());
        dispatch(Cli::try_parse_from(words.split(' ')).expect(line)).await
    }
    fn asked(&self) -> (Command, Actor, bool) {
        self.backend.asked.lock().expect("no test panicked here").pop().expect("the backend was asked")
    }
}

fn name(text: &str) -> NodeName {
    text.parse().expect("a name")
}

#[tokio::test]
async fn changes_arrive_as_they_were_typed() {
    let api = api(three()).await;
    let mut settings = Settings { strict: true, ..Settings::default() };
    settings.postgresql.parameters.insert("work_mem".to_owned(), "8MB".to_owned());
    let upstream = NodePatch { upstream: Some(None), priority: Some(5), ..NodePatch::default() };
    for (line, command) in [
        (
            "token create --role witness --ttl 10min",
            Command::CreateToken { role: model::Role::Witness, ttl: Millis(600_000) },
        ),
        ("token revoke ab12", Command::RevokeToken { id: "ab12".to_owned() }),
        ("node remove pg-3 --yes --force", Command::RemoveNode { node: name("pg-3"), force: true }),
        ("node set pg-3 --from primary --priority 5", Command::SetNode { node: name("pg-3"), patch: upstream }),
        ("node rejoin pg-3", Command::RejoinNode { node: name("pg-3") }),
        ("node reinit pg-3 -y", Command::ReinitNode { node: name("pg-3") }),
        (
            "restart --rolling --pending pg-2 -y",
            Command::RollingRestart { only_pending: true, nodes: vec![name("pg-2")] },
        ),
        ("op cancel op_7", Command::CancelOperation { id: "op_7".to_owned() }),
        ("config rollback 1", Command::RollbackSettings { version: 1 }),
        (
            "config set strict=true postgresql.parameters.work_mem=8MB",
            Command::ApplySettings { settings: Box::new(settings), expect_version: Some(1) },
        ),
    ] {
        assert_eq!(api.run(line).await, Ok(0), "{line}");
        assert_eq!(api.asked(), (command, Actor { name: "tester".to_owned(), reason: String::new() }, false), "{line}");
    }
}

#[tokio::test]
async fn a_dry_run_and_a_reason_reach_the_cluster() {
    let api = api(three()).await;
    let line = "node remove pg-3 --dry-run --reason größer";
    assert_eq!(api.run(line).await, Ok(0));
    let (_, actor, dry_run) = api.asked();
    assert!(dry_run);
    assert_eq!(actor.reason, "größer");
}

#[tokio::test]
async fn reading_commands_end_well_in_both_forms() {
    let api = api(three()).await;
    for line in [
        "status",
        "status --check",
        "node list",
        "node show pg-2",
        "token list",
        "config show",
        "config show --origin",
        "config history",
        "op list",
        "history",
        "cert status",
    ] {
        assert_eq!(api.run(line).await, Ok(0), "{line}");
        assert_eq!(api.run(&format!("{line} -o json")).await, Ok(0), "{line} -o json");
    }
}

#[tokio::test]
async fn a_check_tells_a_cluster_that_is_not_healthy_by_its_exit_status() {
    let mut status = three();
    status.verdict = Verdict::Degraded;
    let api = api(status).await;
    assert_eq!(api.run("status").await, Ok(0));
    assert_eq!(api.run("status --check").await, Ok(8));
}

#[tokio::test]
async fn refusals_keep_code_and_exit_status() {
    let api = api(three()).await;
    for (line, code, exit) in [
        ("node reinit pg-1 -y", "ST2104", 4),
        ("node show pg-9", "ST2101", 2),
        ("op show op_404", "ST2108", 2),
        ("config set comit_mode=sync", "ST1102", 2),
        ("node reinit pg-3 -o json", "ST1001", 2),
    ] {
        let trouble = api.run(line).await.expect_err(line);
        assert_eq!((trouble.code.to_string().as_str(), trouble.exit), (code, exit), "{line}: {trouble}");
        assert!(!trouble.hint.is_empty(), "{line}");
    }
    std::fs::write(api.token_file.path(), "wrong\n").expect("writable");
    assert_eq!(api.run("node rejoin pg-3").await.expect_err("refused").exit, 6);
}
