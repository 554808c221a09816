//! The native API. Reads come from the newest view; changes become `model::Command`s and answer `model::Outcome`.

use crate::Shared;
use crate::patroni::known_state;
use crate::problem::{Problem, Refusal};
use crate::request::{Body, Caller, DryRun, Query, flag, run};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use model::command::NodePatch;
use model::error::CODES;
use model::limits::TOKEN_TTL_DEFAULT;
use model::settings::Settings;
use model::state::{HistoryEvent, Operation, SettingsChange, TokenUse};
use model::status::{NodeStatus, SCHEMA_VERSION};
use model::{ClusterStatus, Command, Millis, NodeName, Outcome, Role, Trouble, WallTime};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

type Answer<T> = Result<Json<T>, Refusal>;

/// Path parameters as text; a name that cannot be one is simply not found.
type Named = Path<String>;

/// Documents the shape of `model::Outcome`.
#[derive(utoipa::ToSchema)]
#[schema(as = Outcome)]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) struct OutcomeShape {
    /// The sentence for people.
    text: String,
    /// Whether anything changed.
    changed: bool,
    /// Id of the operation that carries it out, if it takes longer.
    operation: Option<String>,
    /// Id of the change of primary, if it is one.
    failover: Option<String>,
    /// Before a change of primary: who can take over and who cannot.
    #[schema(value_type = Vec<Object>)]
    candidates: Vec<Value>,
    /// The token, shown once.
    token: Option<String>,
    /// Lines for people about what happens next.
    notes: Vec<String>,
}

fn parse_node(text: &str) -> Result<NodeName, Refusal> {
    text.parse().map_err(|_| no_node(text))
}

fn no_node(text: &str) -> Refusal {
    let shown: String = text.chars().take(60).collect();
    Trouble::unknown_node(format!("there is no node `{shown}`"), "`stemma status` lists the nodes").into()
}

fn no_such(what: &str, id: &str, hint: &str) -> Refusal {
    let shown: String = id.chars().take(60).collect();
    Trouble::not_found(format!("there is no {what} `{shown}`"), hint).into()
}

/// An outcome as an answer: 202 and the place to look where an operation carries it out.
fn answer(outcome: Outcome) -> Response {
    match outcome.operation.clone() {
        Some(id) => {
            (StatusCode::ACCEPTED, [(header::LOCATION, format!("/v1/operations/{id}"))], Json(outcome)).into_response()
        }
        None => Json(outcome).into_response(),
    }
}

async fn carry_out(backend: &Shared, command: Command, caller: Caller, dry_run: DryRun) -> Result<Response, Refusal> {
    Ok(answer(run(backend, command, caller, dry_run).await?))
}

/// What there is.
#[utoipa::path(get, path = "/v1", tag = "v1", responses((status = 200, body = Object)))]
pub(crate) async fn index(State(backend): State<Shared>) -> Json<Value> {
    Json(json!({
        "node": backend.node(),
        "cluster": backend.status().cluster,
        "version": env!("CARGO_PKG_VERSION"),
        "links": {
            "status": "/v1/status",
            "nodes": "/v1/nodes",
            "settings": "/v1/settings",
            "settings_history": "/v1/settings/history",
            "operations": "/v1/operations",
            "history": "/v1/history",
            "events": "/v1/events",
            "topology": "/v1/topology",
            "failovers": "/v1/failovers",
            "tokens": "/v1/tokens",
            "openapi": "/v1/openapi.json",
            "replication": "/admin/replication/status",
            "metrics": "/metrics",
            "patroni": "/patroni",
        },
    }))
}

/// This description.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "v1", responses((status = 200, body = Object)))]
pub(crate) async fn openapi() -> Response {
    // It never changes; anyone may ask for it, and making it is the dearest thing here.
    static TEXT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    let text = TEXT.get_or_init(|| serde_json::to_string(&crate::openapi()).unwrap_or_default());
    ([(header::CONTENT_TYPE, "application/json")], text.as_str()).into_response()
}

/// What an error code stands for.
#[utoipa::path(get, path = "/v1/errors/{code}", tag = "v1", params(("code" = String, Path)),
    responses((status = 200, body = Object), (status = 404, body = Problem)))]
pub(crate) async fn error(Path(code): Named) -> Answer<Value> {
    let known = CODES.iter().find(|(known, _)| known.eq_ignore_ascii_case(&code));
    let (code, title) = known.ok_or_else(|| no_such("error code", &code, "codes look like ST2107"))?;
    Ok(Json(json!({"code": code, "title": title, "see": "docs/errors.md"})))
}

/// The judged view of the whole cluster.
#[utoipa::path(get, path = "/v1/status", tag = "v1", responses((status = 200, body = ClusterStatus)))]
pub(crate) async fn status(State(backend): State<Shared>) -> Response {
    Json(backend.status().as_ref()).into_response()
}

/// All nodes.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct Nodes {
    schema_version: u32,
    nodes: Vec<NodeStatus>,
}

/// All nodes as judged.
#[utoipa::path(get, path = "/v1/nodes", tag = "v1", responses((status = 200, body = Nodes)))]
pub(crate) async fn nodes(State(backend): State<Shared>) -> Json<Nodes> {
    Json(Nodes { schema_version: SCHEMA_VERSION, nodes: backend.status().nodes.clone() })
}

/// One node as judged.
#[utoipa::path(get, path = "/v1/nodes/{name}", tag = "v1", params(("name" = String, Path)),
    responses((status = 200, body = NodeStatus), (status = 404, body = Problem)))]
pub(crate) async fn node(State(backend): State<Shared>, Path(name): Named) -> Answer<NodeStatus> {
    backend.status().node(&name).cloned().map(Json).ok_or_else(|| no_node(&name))
}

/// The settings in force.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct CurrentSettings {
    /// Their version, also in `ETag`.
    version: u64,
    #[schema(value_type = Object)]
    settings: Settings,
}

/// The settings in force; `ETag` is their version.
#[utoipa::path(get, path = "/v1/settings", tag = "v1",
    responses((status = 200, body = CurrentSettings), (status = 503, body = Problem)))]
pub(crate) async fn settings(State(backend): State<Shared>) -> Result<Response, Refusal> {
    let state = known_state(&backend)?;
    let version = state.settings_version;
    let body = CurrentSettings { version, settings: state.settings.clone() };
    Ok(([(header::ETAG, format!("\"{version}\""))], Json(body)).into_response())
}

/// Settings to be put in force.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SettingsBody {
    /// The new settings, whole; absent keys take their defaults.
    #[schema(value_type = Object)]
    settings: Box<Settings>,
    /// The version they were edited from; `If-Match` says the same.
    #[serde(default)]
    expect_version: Option<u64>,
}

/// The version that `If-Match` names: `"7"`. `*` asks for none in particular.
fn if_match(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let text = value.to_str().unwrap_or("").trim();
    if text == "*" {
        return Ok(None);
    }
    let number = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).and_then(|inner| inner.parse().ok());
    number.map(Some).ok_or_else(|| {
        Trouble::bad_request("`If-Match` is not a version of the settings", "send the ETag of GET /v1/settings").into()
    })
}

/// Replaces the settings.
#[utoipa::path(put, path = "/v1/settings", tag = "v1", request_body = SettingsBody,
    params(("dry_run" = Option<bool>, Query), ("If-Match" = Option<String>, Header)),
    responses((status = 200, body = OutcomeShape), (status = 202, body = OutcomeShape), (status = 401, body = Problem),
        (status = 409, body = Problem), (status = 412, body = Problem), (status = 422, body = Problem)))]
pub(crate) async fn settings_put(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    headers: HeaderMap,
    Body(body): Body<SettingsBody>,
) -> Result<Response, Refusal> {
    let matched = if_match(&headers)?;
    if matched.is_some() && body.expect_version.is_some() && matched != body.expect_version {
        let what = "`If-Match` and `expect_version` name different versions";
        return Err(Trouble::bad_request(what, "send one of them").into());
    }
    let expect_version = matched.or(body.expect_version);
    let command = Command::ApplySettings { settings: body.settings, expect_version };
    carry_out(&backend, command, caller, dry_run).await.map_err(|refusal| match refusal.trouble.is("ST2106") {
        true if matched.is_some() => Refusal { status: StatusCode::PRECONDITION_FAILED, ..refusal },
        _ => refusal,
    })
}

/// Versions of the settings.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct SettingsVersions {
    /// The version in force.
    version: u64,
    /// Accepted versions, newest last.
    #[schema(value_type = Vec<Object>)]
    versions: Vec<SettingsChange>,
}

/// Kept versions of the settings.
#[utoipa::path(get, path = "/v1/settings/history", tag = "v1",
    responses((status = 200, body = SettingsVersions), (status = 503, body = Problem)))]
pub(crate) async fn settings_history(State(backend): State<Shared>) -> Answer<SettingsVersions> {
    let state = known_state(&backend)?;
    Ok(Json(SettingsVersions { version: state.settings_version, versions: state.settings_history.clone() }))
}

/// Which version to bring back.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RollbackBody {
    version: u64,
}

/// Brings back an earlier version of the settings, as a new version.
#[utoipa::path(post, path = "/v1/settings/rollback", tag = "v1", request_body = RollbackBody,
    params(("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = OutcomeShape), (status = 202, body = OutcomeShape), (status = 401, body = Problem),
        (status = 404, body = Problem)))]
pub(crate) async fn settings_rollback(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    Body(body): Body<RollbackBody>,
) -> Result<Response, Refusal> {
    carry_out(&backend, Command::RollbackSettings { version: body.version }, caller, dry_run).await
}

/// Operations.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct Operations {
    /// Newest last.
    #[schema(value_type = Vec<Object>)]
    operations: Vec<Operation>,
}

/// Long actions, the running one included.
#[utoipa::path(get, path = "/v1/operations", tag = "v1",
    responses((status = 200, body = Operations), (status = 503, body = Problem)))]
pub(crate) async fn operations(State(backend): State<Shared>) -> Answer<Operations> {
    Ok(Json(Operations { operations: known_state(&backend)?.operations.clone() }))
}

/// One operation.
#[utoipa::path(get, path = "/v1/operations/{id}", tag = "v1", params(("id" = String, Path)),
    responses((status = 200, body = Object), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn operation(State(backend): State<Shared>, Path(id): Named) -> Answer<Operation> {
    let state = known_state(&backend)?;
    let found = state.operations.iter().find(|operation| operation.id == id).cloned();
    found.map(Json).ok_or_else(|| no_such("operation", &id, "GET /v1/operations lists those that are kept"))
}

/// Ends an operation before its next step.
#[utoipa::path(post, path = "/v1/operations/{id}/cancel", tag = "v1",
    params(("id" = String, Path), ("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = OutcomeShape), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn operation_cancel(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    Path(id): Named,
) -> Result<Response, Refusal> {
    carry_out(&backend, Command::CancelOperation { id }, caller, dry_run).await
}

/// What happened.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct History {
    /// Newest last.
    #[schema(value_type = Vec<Object>)]
    events: Vec<HistoryEvent>,
}

/// What happened in the cluster; `since` leaves out events up to that number.
#[utoipa::path(get, path = "/v1/history", tag = "v1", params(("since" = Option<u64>, Query)),
    responses((status = 200, body = History), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn history(State(backend): State<Shared>, uri: Uri) -> Answer<History> {
    let query = Query::of(uri.query());
    let since = query.get("since").map_or(Ok(0), str::parse::<u64>);
    let since = since.map_err(|_| Trouble::bad_request("`since` is not a number", "send the seq of an event"))?;
    let state = known_state(&backend)?;
    Ok(Json(History { events: state.history.iter().filter(|event| event.seq > since).cloned().collect() }))
}

/// What a token admits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TokenRole {
    /// A node with a copy.
    Replica,
    /// A node that votes.
    Witness,
    /// Refused with a reason: which node is primary is decided after it joined.
    Primary,
    /// A cluster that follows this one.
    Follower,
}

impl TokenRole {
    fn of(token: &model::state::TokenRecord) -> TokenRole {
        match token.role {
            _ if token.follower => TokenRole::Follower,
            Role::Replica => TokenRole::Replica,
            Role::Witness => TokenRole::Witness,
            Role::Primary => TokenRole::Primary,
        }
    }
}

/// A token, without anything that could be used.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct TokenRow {
    id: String,
    #[schema(value_type = String)]
    role: TokenRole,
    #[schema(value_type = i64)]
    expires_at: WallTime,
    created_by: String,
    #[schema(value_type = i64)]
    created_at: WallTime,
    /// How it was used, if it was.
    #[schema(value_type = Option<Object>)]
    used_by: Option<TokenUse>,
}

/// Tokens.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct Tokens {
    tokens: Vec<TokenRow>,
}

/// Join tokens, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", tag = "v1",
    responses((status = 200, body = Tokens), (status = 503, body = Problem)))]
pub(crate) async fn tokens(State(backend): State<Shared>) -> Answer<Tokens> {
    let state = known_state(&backend)?;
    let row = |token: &model::state::TokenRecord| TokenRow {
        id: token.id.clone(),
        role: TokenRole::of(token),
        expires_at: token.expires_at,
        created_by: token.created_by.clone(),
        created_at: token.created_at,
        used_by: token.used_by.clone(),
    };
    Ok(Json(Tokens { tokens: state.tokens.values().map(row).collect() }))
}

/// A token to be made.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenBody {
    /// What it admits: `replica`, `witness`, or `follower` for a whole cluster that follows this one.
    #[schema(value_type = String)]
    role: TokenRole,
    /// How long it lives, in milliseconds; an hour if absent.
    #[serde(default = "ttl_default")]
    #[schema(value_type = Option<u64>)]
    ttl: Millis,
}

fn ttl_default() -> Millis {
    TOKEN_TTL_DEFAULT
}

/// Makes a join token. The answer is the only place where it is ever shown.
#[utoipa::path(post, path = "/v1/tokens", tag = "v1", request_body = TokenBody,
    params(("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = OutcomeShape), (status = 401, body = Problem)))]
pub(crate) async fn token_create(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    Body(body): Body<TokenBody>,
) -> Result<Response, Refusal> {
    let ttl = body.ttl;
    let command = match body.role {
        TokenRole::Replica => Command::CreateToken { role: Role::Replica, ttl },
        TokenRole::Witness => Command::CreateToken { role: Role::Witness, ttl },
        TokenRole::Primary => Command::CreateToken { role: Role::Primary, ttl },
        TokenRole::Follower => Command::CreateFollowerToken { ttl },
    };
    let mut response = carry_out(&backend, command, caller, dry_run).await?;
    response.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Makes a token unusable.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "v1",
    params(("id" = String, Path), ("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = OutcomeShape), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn token_revoke(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    Path(id): Named,
) -> Result<Response, Refusal> {
    carry_out(&backend, Command::RevokeToken { id }, caller, dry_run).await
}

/// Takes a node out of the cluster; with `force` also when its keeper does not answer.
#[utoipa::path(delete, path = "/v1/nodes/{name}", tag = "v1",
    params(("name" = String, Path), ("force" = Option<bool>, Query), ("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = OutcomeShape), (status = 401, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem)))]
pub(crate) async fn node_remove(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    Path(name): Named,
    uri: Uri,
) -> Result<Response, Refusal> {
    let force = flag(&Query::of(uri.query()), "force")?;
    carry_out(&backend, Command::RemoveNode { node: parse_node(&name)?, force }, caller, dry_run).await
}

/// Changes what a node is; absent fields stay.
#[utoipa::path(patch, path = "/v1/nodes/{name}", tag = "v1", request_body = Object,
    params(("name" = String, Path), ("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = OutcomeShape), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn node_set(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    Path(name): Named,
    Body(patch): Body<NodePatch>,
) -> Result<Response, Refusal> {
    carry_out(&backend, Command::SetNode { node: parse_node(&name)?, patch }, caller, dry_run).await
}

/// Lets a halted node check its history and follow again.
#[utoipa::path(post, path = "/v1/nodes/{name}/rejoin", tag = "v1",
    params(("name" = String, Path), ("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = OutcomeShape), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn node_rejoin(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    Path(name): Named,
) -> Result<Response, Refusal> {
    carry_out(&backend, Command::RejoinNode { node: parse_node(&name)? }, caller, dry_run).await
}

/// Rebuilds a replica from a fresh base backup.
#[utoipa::path(post, path = "/v1/nodes/{name}/reinit", tag = "v1",
    params(("name" = String, Path), ("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = OutcomeShape), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn node_reinit(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    Path(name): Named,
) -> Result<Response, Refusal> {
    carry_out(&backend, Command::ReinitNode { node: parse_node(&name)? }, caller, dry_run).await
}

/// Which servers to restart.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RollingRestartBody {
    /// Only those where a parameter waits for it.
    #[serde(default)]
    only_pending: bool,
    /// Only these; absent or empty for all.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    nodes: Vec<NodeName>,
}

/// Restarts servers one after the other, in the safe order.
#[utoipa::path(post, path = "/v1/restart", tag = "v1", request_body = RollingRestartBody,
    params(("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = OutcomeShape), (status = 202, body = OutcomeShape), (status = 401, body = Problem),
        (status = 409, body = Problem)))]
pub(crate) async fn restart(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    Body(body): Body<RollingRestartBody>,
) -> Result<Response, Refusal> {
    let command = Command::RollingRestart { only_pending: body.only_pending, nodes: body.nodes };
    carry_out(&backend, command, caller, dry_run).await
}

/// Whose certificates to replace.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RotateCertificatesBody {
    /// Only this node; absent or null for all.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    node: Option<NodeName>,
}

/// Has nodes make new keys and certificates. They do so by themselves once it is ordered; no connection is cut.
#[utoipa::path(post, path = "/v1/certificates/rotate", tag = "v1", request_body = RotateCertificatesBody,
    params(("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = OutcomeShape), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn certificates_rotate(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    Body(body): Body<RotateCertificatesBody>,
) -> Result<Response, Refusal> {
    carry_out(&backend, Command::RotateCertificates { node: body.node }, caller, dry_run).await
}
