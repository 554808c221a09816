//! The Patroni-compatible endpoints: documents with Patroni's field names, health answers, and the commands that have
//! a meaning here. What Patroni can and this program cannot answers 501 and says so.

use crate::Shared;
use crate::health::{Check, SyncPart, View, replication_state, sync_part, tags};
use crate::problem::Refusal;
use crate::request::{Body, Caller, DryRun, Query, run};
use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use model::failover::FailoverPhase;
use model::observe::{Sender, ServerFacts};
use model::state::LineageEntry;
use model::status::NodeStatus;
use model::{
    ClusterState, ClusterStatus, Command, CommitMode, NodeSample, Role, ServerState, Timeline, Trouble, WallTime,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// The version of Patroni whose documents these are; clients choose fields by it.
pub(crate) const PATRONI_VERSION: &str = "4.0.0";

/// Answers any path that asks for health, known by name or understood by Patroni's substrings.
pub(crate) async fn health(State(backend): State<Shared>, method: Method, uri: Uri) -> Response {
    let Some(check) = Check::of_path(uri.path()) else {
        return Refusal::no_route(uri.path()).into_response();
    };
    let (status, sample, node) = (backend.status(), backend.sample(), backend.node());
    let view = View { status: &status, sample: sample.as_deref(), node: &node, age: backend.liveness() };
    let answer = view.answer(check, &Query::of(uri.query()));
    let code = if answer.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if method == Method::OPTIONS || method == Method::HEAD {
        return code.into_response();
    }
    let mut document = document(&view);
    if let Err(reasons) = answer {
        document.insert("reason".to_owned(), reasons.join("; ").into());
        document.insert("reasons".to_owned(), reasons.into());
    }
    (code, Json(Value::Object(document))).into_response()
}

/// Whether the keeper's loop turns. No SQL, no body.
#[utoipa::path(get, path = "/liveness", tag = "patroni", responses((status = 200), (status = 503)))]
pub(crate) async fn liveness(State(backend): State<Shared>) -> StatusCode {
    let (status, node) = (backend.status(), backend.node());
    let view = View { status: &status, sample: None, node: &node, age: backend.liveness() };
    if view.is_live() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// `/liveness` for load balancers that ask with OPTIONS.
#[utoipa::path(options, path = "/liveness", tag = "patroni", responses((status = 200), (status = 503)))]
pub(crate) async fn liveness_options(backend: State<Shared>) -> StatusCode {
    liveness(backend).await
}

/// This node in Patroni's words.
#[utoipa::path(get, path = "/patroni", tag = "patroni", responses((status = 200, body = Object)))]
pub(crate) async fn patroni(State(backend): State<Shared>) -> Json<Value> {
    let (status, sample, node) = (backend.status(), backend.sample(), backend.node());
    let view = View { status: &status, sample: sample.as_deref(), node: &node, age: backend.liveness() };
    Json(Value::Object(document(&view)))
}

/// `/patroni` for load balancers that ask with OPTIONS.
#[utoipa::path(options, path = "/patroni", tag = "patroni", responses((status = 200)))]
pub(crate) async fn patroni_options() -> StatusCode {
    StatusCode::OK
}

/// Patroni's word for the server's state.
pub(crate) fn server_word(sample: Option<&NodeSample>) -> &'static str {
    match sample.map(|sample| &sample.server) {
        None | Some(ServerState::None | ServerState::Empty | ServerState::Stopped) => "stopped",
        Some(ServerState::Initialising) => "initializing new cluster",
        Some(ServerState::Cloning(_)) => "creating replica",
        Some(ServerState::Starting) => "starting",
        Some(ServerState::Running) => "running",
        Some(ServerState::Unresponsive { .. } | ServerState::Failed { .. }) => "crashed",
    }
}

/// Civil time as PostgreSQL prints it.
fn timestamp(time: WallTime) -> Value {
    match jiff::Timestamp::from_millisecond(time.0) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S.%6f+00:00").to_string().into(),
        Err(_) => Value::Null,
    }
}

/// Civil time as ISO 8601, as Patroni writes it where programs read it.
fn iso(time: WallTime) -> Value {
    match jiff::Timestamp::from_millisecond(time.0) {
        Ok(time) => time.strftime("%Y-%m-%dT%H:%M:%S.%6f+00:00").to_string().into(),
        Err(_) => Value::Null,
    }
}

/// The `/patroni` document.
fn document(view: &View<'_>) -> Map<String, Value> {
    let (status, me) = (view.status, view.me());
    let facts = view.sample.and_then(|sample| sample.facts.as_ref());
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    put("state", server_word(view.sample).into());
    let role = match facts {
        Some(facts) if facts.in_recovery => "replica",
        Some(_) => "primary",
        None => me.map_or("uninitialized", |me| match me.role {
            Role::Primary => "primary",
            Role::Replica => "replica",
            Role::Witness => "witness",
        }),
    };
    put("role", role.into());
    if let Some(facts) = facts {
        put("postmaster_start_time", timestamp(facts.started_at));
        put("server_version", facts.version_num.into());
        put("xlog", xlog(facts));
        put("timeline", facts.timeline.0.into());
        put("database_system_identifier", facts.system_id.to_string().into());
        if !facts.senders.is_empty() {
            put("replication", facts.senders.iter().map(sender).collect());
        }
        if !facts.pending_restart.is_empty() {
            put("pending_restart", true.into());
            let reasons = facts.pending_restart.iter();
            let reasons =
                reasons.map(|(name, change)| (name.clone(), json!({"old_value": change.old, "new_value": change.new})));
            put("pending_restart_reason", Value::Object(reasons.collect()));
        }
    }
    if let Some(me) = me {
        match sync_part(status, me) {
            SyncPart::Sync => put("sync_standby", true.into()),
            SyncPart::Quorum => put("quorum_standby", true.into()),
            SyncPart::None => {}
        }
        if me.role == Role::Replica {
            put("replication_state", replication_state(me).into());
        }
        put("tags", json!(tags(me)));
    }
    if status.primary.is_none() {
        put("cluster_unlocked", true.into());
    }
    if status.paused.is_some() {
        put("pause", true.into());
    }
    put("dcs_last_seen", dcs_last_seen(status).into());
    put("patroni", json!({"version": PATRONI_VERSION, "scope": status.cluster, "name": view.node}));
    put("stemma", json!({"version": env!("CARGO_PKG_VERSION"), "view_age_ms": view.age.0}));
    out
}

/// When the consensus store last answered, in seconds since 1970.
pub(crate) fn dcs_last_seen(status: &ClusterStatus) -> i64 {
    let age = i64::try_from(status.consensus.age.0).unwrap_or(i64::MAX);
    status.observed_at.0.saturating_sub(age).div_euclid(1000).max(0)
}

fn xlog(facts: &ServerFacts) -> Value {
    if facts.in_recovery {
        json!({
            "received_location": facts.received.map(|lsn| lsn.0),
            "replayed_location": facts.replayed.map(|lsn| lsn.0),
            "replayed_timestamp": facts.replayed_at.map(timestamp),
            "paused": facts.replay_paused,
        })
    } else {
        json!({"location": facts.written.map(|lsn| lsn.0)})
    }
}

/// One row of `replication`. What a sample does not tell is null rather than guessed.
fn sender(sender: &Sender) -> Value {
    let priority = match sender.sync_state.as_str() {
        "async" => Some(0),
        "sync" | "quorum" => Some(1),
        _ => None,
    };
    json!({
        "usename": null,
        "application_name": sender.application_name,
        "client_addr": sender.client_addr,
        "state": sender.state,
        "sync_state": sender.sync_state,
        "sync_priority": priority,
    })
}

/// All data nodes in Patroni's words.
#[utoipa::path(get, path = "/cluster", tag = "patroni", responses((status = 200, body = Object)))]
pub(crate) async fn cluster(State(backend): State<Shared>) -> Json<Value> {
    let status = backend.status();
    // A witness has no database; clients of this document take every member for one that has.
    let members: Vec<Value> =
        status.nodes.iter().filter(|node| node.role != Role::Witness).map(|node| member(&status, node)).collect();
    let mut out = json!({"members": members, "scope": status.cluster});
    // As Patroni has it: both are there only while they say something.
    if status.paused.is_some() {
        out["pause"] = true.into();
    }
    if let Some(plan) = status.planned_switchover.as_ref().filter(|plan| plan.scheduled) {
        out["scheduled_switchover"] = json!({"at": iso(plan.at), "from": plan.from});
        if let Some(to) = &plan.to {
            out["scheduled_switchover"]["to"] = json!(to);
        }
    }
    Json(out)
}

fn member(status: &ClusterStatus, node: &NodeStatus) -> Value {
    let role = match (node.role, sync_part(status, node)) {
        (Role::Primary, _) => "leader",
        (_, SyncPart::Sync) => "sync_standby",
        (_, SyncPart::Quorum) => "quorum_standby",
        (_, SyncPart::None) => "replica",
    };
    let state = match node.server.as_str() {
        "running" if node.role == Role::Replica && replication_state(node) == "streaming" => "streaming",
        "running" => "running",
        "cloning" => "creating replica",
        "initialising" => "initializing new cluster",
        "starting" => "starting",
        "failed" | "unresponsive" => "crashed",
        _ => "stopped",
    };
    let (host, port) = node.postgres_address.rsplit_once(':').unwrap_or((&node.postgres_address, ""));
    let mut out = json!({
        "name": node.name,
        "role": role,
        "state": state,
        "api_url": format!("http://{}/patroni", node.api_address),
        "host": host,
        "port": port.parse::<u16>().ok(),
        "timeline": node.timeline.map(|timeline| timeline.0),
        "tags": tags(node),
    });
    if node.role == Role::Replica {
        // Patroni's clients know the word, and take a missing or null lag for a fault of their own.
        let known = |bytes: Option<u64>| bytes.map_or(Value::from("unknown"), Value::from);
        let place = |lsn: Option<model::Lsn>| lsn.map_or(Value::from("unknown"), |lsn| lsn.to_string().into());
        let receive = known(node.lag.as_ref().and_then(|lag| lag.receive_bytes));
        out["receive_lag"] = receive.clone();
        out["lag"] = receive;
        out["receive_lsn"] = place(node.position);
        out["lsn"] = place(node.position);
        out["replay_lag"] = known(node.lag.as_ref().and_then(|lag| lag.apply_bytes));
        out["replay_lsn"] = place(node.replayed);
    }
    out
}

/// Timelines that ended: `[timeline, position at its end, reason, when, new primary]`, oldest first. The last two are
/// absent where the change of primary is not recorded any more.
#[utoipa::path(get, path = "/history", tag = "patroni", responses((status = 200, body = Vec<Object>)))]
pub(crate) async fn history(State(backend): State<Shared>) -> Json<Value> {
    let Some(state) = backend.state() else { return Json(json!([])) };
    let ended = state.lineage.windows(2).filter(|pair| pair[0].timeline != pair[1].timeline);
    Json(ended.map(|pair| ended_timeline(&state, pair[0].timeline, &pair[1])).collect())
}

fn ended_timeline(state: &ClusterState, timeline: Timeline, next: &LineageEntry) -> Value {
    let at = next.began_at.map(|lsn| lsn.0);
    let change = state.failovers.iter().find(|failover| failover.epoch == next.epoch);
    let Some(change) = change else {
        return json!([timeline.0, at, format!("promotion under epoch {}", next.epoch)]);
    };
    let done = change.entered(FailoverPhase::Done).map(iso);
    let winner = change.winner.and_then(|winner| state.members.get(&winner)).map(|member| member.name.clone());
    let reason = format!("{} under epoch {}: {}", model::change::word(&change.kind), next.epoch, change.because);
    json!([timeline.0, at, reason, done, winner])
}

/// The settings in Patroni's shape. To change them there is `PUT /v1/settings`.
#[utoipa::path(get, path = "/config", tag = "patroni",
    responses((status = 200, body = Object), (status = 503, body = crate::problem::Problem)))]
pub(crate) async fn config(State(backend): State<Shared>) -> Result<Json<Value>, Refusal> {
    let state = known_state(&backend)?;
    let settings = &state.settings;
    let mode = match settings.commit_mode {
        CommitMode::Async => Value::from(false),
        CommitMode::SemiSync | CommitMode::Quorum => "quorum".into(),
        CommitMode::Sync => true.into(),
    };
    Ok(Json(json!({
        "maximum_lag_on_failover": crate::health::READINESS_LAG_BYTES_MAX,
        "synchronous_mode": mode,
        "synchronous_mode_strict": settings.strict,
        "postgresql": {
            "use_slots": true,
            "parameters": settings.postgresql.parameters,
            "pg_hba": settings.postgresql.hba,
        },
    })))
}

/// The cluster state, or why there is none.
pub(crate) fn known_state(backend: &Shared) -> Result<Arc<ClusterState>, Refusal> {
    backend.state().ok_or_else(|| {
        Trouble::unreachable(
            "this node has not read the cluster's state yet",
            "ask again in a moment, or another node; `stemma status` says what is missing",
        )
        .into()
    })
}

/// Patroni's failsafe mode, which does not exist here.
#[utoipa::path(get, path = "/failsafe", tag = "patroni",
    responses((status = 502, body = crate::problem::Problem, description = "not enabled, as Patroni has it")))]
pub(crate) async fn failsafe() -> Refusal {
    let trouble = Trouble::bad_request("there is no failsafe mode to be enabled", "nothing needs to be done");
    Refusal::with_status(trouble, StatusCode::BAD_GATEWAY)
}

macro_rules! not_yet {
    ($($(#[$doc:meta])* $name:ident, $method:ident $path:literal, $what:literal, $hint:literal;)*) => {$(
        $(#[$doc])*
        #[utoipa::path($method, path = $path, tag = "patroni",
            responses((status = 501, body = crate::problem::Problem), (status = 401, body = crate::problem::Problem)))]
        pub(crate) async fn $name(_caller: Caller) -> Refusal {
            Refusal::not_implemented($what, $hint)
        }
    )*};
}

not_yet! {
    /// Not in this version.
    restart_cancel, delete "/restart", "this version schedules no restarts", "a running one ends with POST /v1/operations/{id}/cancel";
    /// Settings are changed in their own shape.
    config_patch, patch "/config", "settings are not changed in Patroni's shape", "use PUT /v1/settings";
    /// Settings are changed in their own shape.
    config_put, put "/config", "settings are not changed in Patroni's shape", "use PUT /v1/settings";
    /// There is no failsafe mode.
    failsafe_post, post "/failsafe", "there is no failsafe mode", "nothing needs to be done";
}

/// What Patroni's restart may carry.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RestartBody {
    /// Only if a parameter waits for it.
    restart_pending: bool,
    /// Only if the node has this role: `primary` or `replica`.
    role: Option<String>,
    /// Not supported.
    postgres_version: Option<String>,
    /// Not supported.
    #[schema(value_type = Object)]
    timeout: Option<Value>,
    /// Not supported.
    schedule: Option<String>,
}

/// Restarts this node's server, as an operation.
#[utoipa::path(post, path = "/restart", tag = "patroni", request_body = RestartBody,
    responses((status = 202, body = String), (status = 401, body = crate::problem::Problem),
        (status = 503, body = crate::problem::Problem)))]
pub(crate) async fn restart(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    Body(body): Body<RestartBody>,
) -> Result<Response, Refusal> {
    for (given, name) in [
        (body.postgres_version.is_some(), "postgres_version"),
        (body.timeout.is_some(), "timeout"),
        (body.schedule.is_some(), "schedule"),
    ] {
        if given {
            let what = format!("this version does not support `{name}` of a restart");
            return Err(Refusal::not_implemented(what, "leave it out"));
        }
    }
    let (status, node) = (backend.status(), backend.node());
    if let Some(wanted) = &body.role {
        let role = status.node(node.as_str()).map(|me| me.role);
        let fits = match wanted.as_str() {
            "primary" | "master" => role == Some(Role::Primary),
            "replica" => role == Some(Role::Replica),
            _ => {
                return Err(Trouble::bad_request("`role` is neither primary nor replica", "use one of them").into());
            }
        };
        if !fits {
            let reason = format!("node {node} is not a {wanted}");
            return Err(unavailable(Trouble::wrong_role(reason, "nothing was restarted")));
        }
    }
    let command = Command::RollingRestart { only_pending: body.restart_pending, nodes: vec![node] };
    let outcome = run(&backend, command, caller, dry_run).await.map_err(unavailable)?;
    let code = if outcome.operation.is_some() { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((code, outcome.text).into_response())
}

/// Patroni answers 503 to whatever the cluster refuses; only a malformed or forbidden request is told otherwise.
fn unavailable(trouble: Trouble) -> Refusal {
    let refusal = Refusal::from(trouble);
    let keep = matches!(refusal.status, StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN);
    let status = if keep { refusal.status } else { StatusCode::SERVICE_UNAVAILABLE };
    Refusal { status, ..refusal }
}

/// Nothing waits for a reload here: each keeper applies the cluster's settings when they change.
#[utoipa::path(post, path = "/reload", tag = "patroni",
    responses((status = 202, body = String), (status = 401, body = crate::problem::Problem)))]
pub(crate) async fn reload(_caller: Caller) -> Response {
    let text = "nothing to reload: keepers apply the cluster's settings as soon as they change";
    (StatusCode::ACCEPTED, text).into_response()
}

/// What Patroni's reinitialize may carry.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ReinitializeBody {
    /// Accepted: a rebuild already under way is begun anew in any case.
    force: bool,
    /// Not supported: the source is chosen by the cluster.
    #[serde(rename = "from-leader")]
    from_leader: bool,
}

/// Rebuilds this node from a fresh base backup.
#[utoipa::path(post, path = "/reinitialize", tag = "patroni", request_body = ReinitializeBody,
    responses((status = 200, body = String), (status = 401, body = crate::problem::Problem),
        (status = 503, body = crate::problem::Problem)))]
pub(crate) async fn reinitialize(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    Body(body): Body<ReinitializeBody>,
) -> Result<Response, Refusal> {
    if body.from_leader {
        return Err(Refusal::not_implemented(
            "this version chooses the source of a rebuild itself",
            "leave `from-leader` out",
        ));
    }
    let command = Command::ReinitNode { node: backend.node() };
    let outcome = run(&backend, command, caller, dry_run).await.map_err(unavailable)?;
    Ok(outcome.text.into_response())
}
