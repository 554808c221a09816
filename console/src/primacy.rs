//! Changes of primary over HTTP: the native requests under `/v1`, and Patroni's `/switchover` and `/failover`, whose
//! answers wait for the end as Patroni's do.

use crate::Shared;
use crate::patroni::known_state;
use crate::problem::{Problem, Refusal};
use crate::request::{Body, Caller, DryRun, run};
use crate::v1::OutcomeShape;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use model::change::{self, Change, ChangeResult};
use model::settings::{Size, Span};
use model::{Command, NodeName, Outcome, Trouble, WallTime};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

/// How long Patroni's clients are kept waiting for the end; within the time that a request may take.
const WAIT_MAX: Duration = Duration::from_secs(25);
/// How often the state is looked at meanwhile. It costs nothing: the state is in memory.
const POLL: Duration = Duration::from_millis(20);

/// Which node, and when.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SwitchoverBody {
    /// The node asked for; absent or null for the best one.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    to: Option<NodeName>,
    /// When, as RFC 3339 with an offset; absent or null for now.
    #[serde(default)]
    at: Option<String>,
}

/// A change that was begun is told with the place to look.
pub(crate) fn answer(outcome: Outcome) -> Response {
    match outcome.failover.clone() {
        Some(id) => {
            (StatusCode::ACCEPTED, [(header::LOCATION, format!("/v1/failovers/{id}"))], Json(outcome)).into_response()
        }
        None => Json(outcome).into_response(),
    }
}

fn parse_time(text: &str) -> Result<WallTime, Trouble> {
    let time = text.parse::<jiff::Timestamp>().map(|time| WallTime(time.as_millisecond()));
    time.map_err(|fault| {
        Trouble::bad_request("`at` is not a time with an offset", "write it as 2030-01-31T02:30:00+00:00")
            .because(fault)
    })
}

/// Makes another node the primary, in order and without loss. `GET /v1/failovers/{id}` tells how far it is.
#[utoipa::path(post, path = "/v1/switchover", tag = "v1", request_body = SwitchoverBody,
    params(("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = OutcomeShape), (status = 202, body = OutcomeShape), (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn switchover(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    Body(body): Body<SwitchoverBody>,
) -> Result<Response, Refusal> {
    let at = body.at.as_deref().map(parse_time).transpose()?;
    Ok(answer(run(&backend, Command::Switchover { to: body.to, at }, caller, dry_run).await?))
}

/// Takes back a switchover that has not begun.
#[utoipa::path(delete, path = "/v1/switchover", tag = "v1", params(("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = OutcomeShape), (status = 401, body = Problem), (status = 404, body = Problem),
        (status = 409, body = Problem)))]
pub(crate) async fn switchover_cancel(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
) -> Result<Response, Refusal> {
    Ok(Json(run(&backend, Command::CancelSwitchover, caller, dry_run).await?).into_response())
}

/// Which node, and what may be lost.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FailoverBody {
    /// The node asked for; absent or null for the best one.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    to: Option<NodeName>,
    /// The most that may be lost, as in `16MB`; `unknown` for whatever it takes. Without it nothing is begun.
    #[serde(default)]
    accept_data_loss: Option<String>,
}

pub(crate) fn parse_loss(text: &str) -> Result<u64, Trouble> {
    match text {
        "unknown" => Ok(u64::MAX),
        size => size.parse::<Size>().map(|size| size.0).map_err(|fault| {
            Trouble::bad_request(format!("`accept_data_loss`: {fault}"), "write a size, or `unknown` for any loss")
        }),
    }
}

/// Makes another node the primary without the help of the present one. May lose what only that one has.
#[utoipa::path(post, path = "/v1/failover", tag = "v1", request_body = FailoverBody,
    params(("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = OutcomeShape), (status = 202, body = OutcomeShape), (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 404, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn failover(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    Body(body): Body<FailoverBody>,
) -> Result<Response, Refusal> {
    let loss_bytes_max = body.accept_data_loss.as_deref().map(parse_loss).transpose()?;
    Ok(answer(run(&backend, Command::Failover { to: body.to, loss_bytes_max }, caller, dry_run).await?))
}

/// How long.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PauseBody {
    /// As in `30min`; the pause ends by itself.
    #[serde(rename = "for")]
    #[schema(value_type = String)]
    span: Span,
}

/// Stops automatic failover for a while.
#[utoipa::path(post, path = "/v1/pause", tag = "v1", request_body = PauseBody,
    params(("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = OutcomeShape), (status = 400, body = Problem), (status = 401, body = Problem)))]
pub(crate) async fn pause(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    Body(body): Body<PauseBody>,
) -> Result<Response, Refusal> {
    Ok(answer(run(&backend, Command::Pause { span: body.span.0 }, caller, dry_run).await?))
}

/// Lets automatic failover go on.
#[utoipa::path(post, path = "/v1/resume", tag = "v1", params(("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = OutcomeShape), (status = 401, body = Problem)))]
pub(crate) async fn resume(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
) -> Result<Response, Refusal> {
    Ok(answer(run(&backend, Command::Resume, caller, dry_run).await?))
}

/// Changes of primary.
#[derive(Serialize, utoipa::ToSchema)]
pub(crate) struct Failovers {
    /// Newest last.
    #[schema(value_type = Vec<Object>)]
    failovers: Vec<Change>,
}

/// Changes of primary that are kept, the one in progress included.
#[utoipa::path(get, path = "/v1/failovers", tag = "v1",
    responses((status = 200, body = Failovers), (status = 503, body = Problem)))]
pub(crate) async fn failovers(State(backend): State<Shared>) -> Result<Json<Failovers>, Refusal> {
    Ok(Json(Failovers { failovers: change::all(known_state(&backend)?.as_ref()) }))
}

/// One change of primary: an attempt (`fo_7`), a planned switchover (`sw_5`), or the newest (`last`).
#[utoipa::path(get, path = "/v1/failovers/{id}", tag = "v1", params(("id" = String, Path)),
    responses((status = 200, body = Object), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn failover_one(
    State(backend): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<Change>, Refusal> {
    let state = known_state(&backend)?;
    let last = || state.failover.as_ref().or(state.failovers.last()).map(|failover| failover.id.clone());
    let found = match id.as_str() {
        "last" => last().and_then(|id| change::of(&state, &id)),
        id => change::of(&state, id),
    };
    found.map(Json).ok_or_else(|| {
        let shown: String = id.chars().take(60).collect();
        let reason = match shown.as_str() {
            "last" => "no change of primary is recorded".to_owned(),
            shown => format!("there is no change of primary `{shown}`"),
        };
        Trouble::not_found(reason, "GET /v1/failovers lists those that are kept").into()
    })
}

/// What Patroni's clients send.
#[derive(Debug, Default, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PatroniBody {
    /// The present primary.
    leader: Option<String>,
    /// The node asked for.
    candidate: Option<String>,
    /// When, as ISO 8601 with an offset.
    scheduled_at: Option<String>,
}

/// A plain text under a status, as Patroni's clients print it.
fn plain(status: StatusCode, text: impl Into<String>) -> Response {
    (status, text.into()).into_response()
}

/// Switches over in Patroni's words; answers when it is done.
#[utoipa::path(post, path = "/switchover", tag = "patroni", request_body = PatroniBody,
    responses((status = 200, body = String), (status = 202, body = String), (status = 400, body = String),
        (status = 401, body = Problem), (status = 412, body = String), (status = 422, body = String),
        (status = 503, body = String)))]
pub(crate) async fn patroni_switchover(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    headers: HeaderMap,
    Body(body): Body<PatroniBody>,
) -> Result<Response, Refusal> {
    if body.leader.as_deref().is_none_or(str::is_empty) {
        let text = "Switchover could be performed only from a specific leader";
        return Ok(plain(StatusCode::BAD_REQUEST, text));
    }
    patroni_switch(&backend, caller, dry_run, &headers, body).await
}

async fn patroni_switch(
    backend: &Shared,
    caller: Caller,
    dry_run: DryRun,
    headers: &HeaderMap,
    body: PatroniBody,
) -> Result<Response, Refusal> {
    let primary = backend.status().primary.clone();
    if body.leader.as_deref() != primary.as_ref().map(NodeName::as_str) {
        return Ok(plain(StatusCode::PRECONDITION_FAILED, "leader name does not match"));
    }
    let to = match candidate(backend, body.candidate.as_deref()) {
        Ok(to) => to,
        Err(refused) => return Ok(refused),
    };
    let at = match body.scheduled_at.as_deref().map(str::parse::<jiff::Timestamp>) {
        None => None,
        Some(Ok(at)) if WallTime(at.as_millisecond()) <= backend.status().observed_at => {
            return Ok(plain(StatusCode::UNPROCESSABLE_ENTITY, "Cannot schedule switchover in the past"));
        }
        Some(Ok(at)) => Some(WallTime(at.as_millisecond())),
        Some(Err(_)) => {
            let text = "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601, \
                with an offset";
            return Ok(plain(StatusCode::UNPROCESSABLE_ENTITY, text));
        }
    };
    let scheduled = at.is_some();
    let outcome = match run(backend, Command::Switchover { to, at }, caller, dry_run).await {
        Ok(outcome) => outcome,
        Err(trouble) => return precondition(trouble),
    };
    match outcome.failover.clone().filter(|_| !dry_run.0) {
        Some(_) if scheduled => Ok(plain(StatusCode::ACCEPTED, "Switchover scheduled")),
        Some(id) => Ok(wait_for_end(backend, headers, &id, ("Switchover", "switched over", "Switched over")).await),
        None => Ok(outcome.text.into_response()),
    }
}

/// The node that was asked for, by name.
#[expect(clippy::result_large_err, reason = "the refusal is the answer itself, made once per request")]
fn candidate(backend: &Shared, name: Option<&str>) -> Result<Option<NodeName>, Response> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
    let known = backend.status().node(name).map(|node| node.name.clone());
    known.map(Some).ok_or_else(|| plain(StatusCode::PRECONDITION_FAILED, "candidate does not exist"))
}

/// What the cluster refuses is a precondition that failed to Patroni; an unreachable store is none.
fn precondition(trouble: Trouble) -> Result<Response, Refusal> {
    let refusal = Refusal::from(trouble);
    match refusal.status {
        StatusCode::CONFLICT | StatusCode::NOT_FOUND => {
            let causes = refusal.trouble.causes.join("; ");
            let why = if causes.is_empty() { String::new() } else { format!(" ({causes})") };
            Ok(plain(StatusCode::PRECONDITION_FAILED, format!("{}{why}", refusal.trouble.reason)))
        }
        StatusCode::GATEWAY_TIMEOUT => Err(Refusal { status: StatusCode::SERVICE_UNAVAILABLE, ..refusal }),
        _ => Err(refusal),
    }
}

/// Waits until a change is over and says what came of it in Patroni's words. A client that asks for JSON gets the whole
/// change, in which another node than the one asked for is `other-node`.
async fn wait_for_end(backend: &Shared, headers: &HeaderMap, id: &str, words: (&str, &str, &str)) -> Response {
    let (noun, done, done_otherwise) = words;
    let deadline = Instant::now() + WAIT_MAX;
    let change = loop {
        let change = backend.state().and_then(|state| change::of(&state, id));
        match change {
            Some(change) if change.result.is_final() => break Some(change),
            _ if Instant::now() >= deadline => break None,
            _ => tokio::time::sleep(POLL).await,
        }
    };
    let Some(change) = change else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, format!("{noun} status unknown"));
    };
    let winner = change.winner.as_ref().map_or("", |winner| winner.as_str());
    let (status, text) = match &change.result {
        ChangeResult::Done => (StatusCode::OK, format!("Successfully {done} to \"{winner}\"")),
        ChangeResult::OtherNode => {
            let asked = change.asked.as_ref().map_or("", |asked| asked.as_str());
            (StatusCode::OK, format!("{done_otherwise} to \"{winner}\" instead of \"{asked}\""))
        }
        ChangeResult::Undone { reason } | ChangeResult::Dropped { reason } => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{noun} failed: {reason}"))
        }
        ChangeResult::Cancelled { by } => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{noun} failed: taken back by {by}"))
        }
        ChangeResult::Unknown
        | ChangeResult::Scheduled { .. }
        | ChangeResult::Preparing
        | ChangeResult::Running { .. } => (StatusCode::SERVICE_UNAVAILABLE, format!("{noun} status unknown")),
    };
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    if accept.starts_with("application/json") { (status, Json(change)).into_response() } else { plain(status, text) }
}

/// Takes back a scheduled switchover, in Patroni's words.
#[utoipa::path(delete, path = "/switchover", tag = "patroni",
    responses((status = 200, body = String), (status = 401, body = Problem), (status = 404, body = String),
        (status = 412, body = String)))]
pub(crate) async fn patroni_cancel(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
) -> Result<Response, Refusal> {
    match run(&backend, Command::CancelSwitchover, caller, dry_run).await {
        Ok(_) => Ok(plain(StatusCode::OK, "scheduled switchover deleted")),
        Err(trouble) if trouble.is("ST2108") => Ok(plain(StatusCode::NOT_FOUND, "no switchover is scheduled")),
        Err(trouble) => precondition(trouble),
    }
}

/// Fails over in Patroni's words. While the primary serves this is a switchover, which loses nothing; else at most
/// `failover.loss_max` may be lost, for Patroni's clients cannot say how much they accept.
#[utoipa::path(post, path = "/failover", tag = "patroni", request_body = PatroniBody,
    responses((status = 200, body = String), (status = 400, body = String), (status = 401, body = Problem),
        (status = 412, body = String), (status = 503, body = String)))]
pub(crate) async fn patroni_failover(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    headers: HeaderMap,
    Body(body): Body<PatroniBody>,
) -> Result<Response, Refusal> {
    if body.candidate.as_deref().is_none_or(str::is_empty) {
        return Ok(plain(StatusCode::BAD_REQUEST, "Failover could be performed only to a specific candidate"));
    }
    let status = backend.status();
    if body.leader.is_some() || status.primary_up {
        let leader = body.leader.or_else(|| status.primary.as_ref().map(ToString::to_string));
        return patroni_switch(&backend, caller, dry_run, &headers, PatroniBody { leader, ..body }).await;
    }
    let to = match candidate(&backend, body.candidate.as_deref()) {
        Ok(to) => to,
        Err(refused) => return Ok(refused),
    };
    let most = known_state(&backend)?.settings.failover.loss_max.0;
    let command = Command::Failover { to, loss_bytes_max: Some(most) };
    let outcome = match run(&backend, command, caller, dry_run).await {
        Ok(outcome) => outcome,
        Err(trouble) => return precondition(trouble),
    };
    match outcome.failover.clone().filter(|_| !dry_run.0) {
        Some(id) => Ok(wait_for_end(&backend, &headers, &id, ("Failover", "failed over", "Failed over")).await),
        None => Ok(outcome.text.into_response()),
    }
}
