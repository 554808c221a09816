//! What handlers need of a request: who asks, a body read whole within its bounds, and flags of the query.

use crate::problem::Refusal;
use crate::{Backend, Shared};
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine;
use model::limits::HTTP_BODY_BYTES_MAX;
use model::{Actor, Command, Outcome, Trouble};
use serde::de::DeserializeOwned;

/// Longest `X-Stemma-Reason` that is kept.
const REASON_CHARS_MAX: usize = 500;

/// An authorised person or program. A handler that takes this cannot forget to check.
pub(crate) struct Caller(pub(crate) Actor);

impl FromRequestParts<Shared> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, backend: &Shared) -> Result<Caller, Refusal> {
        authorise(backend.as_ref(), &parts.headers)
    }
}

fn authorise(backend: &dyn Backend, headers: &HeaderMap) -> Result<Caller, Refusal> {
    let credential = credential(headers);
    let name = backend.authorise(credential.as_deref()).map_err(|trouble| Refusal {
        trouble,
        status: StatusCode::UNAUTHORIZED,
        challenge: !is_browser(headers),
    })?;
    // Header bytes need not be UTF-8; the reason is for people, so what cannot be read is shown as such.
    let reason = headers.get("x-stemma-reason").map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let reason = reason.unwrap_or_default().chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect();
    Ok(Caller(Actor { name, reason }))
}

/// The bearer token, or the password of Basic credentials: Patroni's clients know no other way to send one.
fn credential(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let decoded = base64::engine::general_purpose::STANDARD.decode(rest).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        return text.split_once(':').map(|(_, password)| password.to_owned());
    }
    None
}

/// A browser would answer a challenge with a dialog of its own and then keep the password for every page; the UI asks
/// in its own way.
fn is_browser(headers: &HeaderMap) -> bool {
    let agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or("");
    agent.starts_with("Mozilla/") || headers.contains_key("sec-fetch-mode") || headers.contains_key("x-requested-with")
}

/// A JSON body; an empty one reads as `{}`.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Shared> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, backend: &Shared) -> Result<Body<T>, Refusal> {
        // Said beforehand, so that a client which announces too much need not send it to be told.
        let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        if announced.and_then(|text| text.parse::<u64>().ok()).is_some_and(|length| length > HTTP_BODY_BYTES_MAX as u64)
        {
            return Err(body_too_large());
        }
        let bytes = Bytes::from_request(request, backend).await.map_err(unreadable_body)?;
        let text: &[u8] = if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { &bytes };
        let value = serde_json::from_slice(text).map_err(|fault| {
            Trouble::bad_request(
                format!("the body does not fit: {fault}"),
                "send a JSON object with the fields that GET /v1/openapi.json names",
            )
        })?;
        Ok(Body(value))
    }
}

fn body_too_large() -> Refusal {
    let reason = format!("the body is larger than {HTTP_BODY_BYTES_MAX} bytes");
    Trouble::request_too_large(reason, "send less at once").into()
}

/// An oversized body and one that broke off in the middle are told apart.
fn unreadable_body(rejection: BytesRejection) -> Refusal {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return body_too_large();
    }
    Trouble::bad_request("the body broke off", "send the request again").because(rejection.body_text()).into()
}

/// `?dry_run=true`. Unknown names and unclear values are refused: a misspelt `dry_run` must never do the real thing.
#[derive(Clone, Copy)]
pub(crate) struct DryRun(pub(crate) bool);

impl FromRequestParts<Shared> for DryRun {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<DryRun, Refusal> {
        let query = Query::of(parts.uri.query());
        if let Some((name, _)) = query.0.iter().find(|(name, _)| !matches!(name.as_str(), "dry_run" | "force")) {
            let shown: String = name.chars().take(40).collect();
            let reason = format!("`{shown}` is not a parameter of this request");
            return Err(Trouble::bad_request(reason, "use dry_run=true to only see what would happen").into());
        }
        flag(&query, "dry_run").map(DryRun)
    }
}

/// A yes or no of the query; absent is no.
pub(crate) fn flag(query: &Query, name: &str) -> Result<bool, Refusal> {
    match query.get(name) {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1" | "") => Ok(true),
        Some(other) => {
            let shown: String = other.chars().take(40).collect();
            Err(Trouble::bad_request(format!("`{name}={shown}` is neither true nor false"), "use true or false").into())
        }
    }
}

/// The query of a URL, decoded, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(pub Vec<(String, String)>);

impl Query {
    /// Reads `a=1&b=2`. What is not valid percent-encoding stands for itself.
    pub fn of(text: Option<&str>) -> Query {
        let pieces = text.unwrap_or("").split('&').filter(|piece| !piece.is_empty());
        Query(
            pieces
                .map(|piece| {
                    let (name, value) = piece.split_once('=').unwrap_or((piece, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// The first value of this name.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |offset: usize| bytes.get(at + offset).and_then(|byte| (*byte as char).to_digit(16));
        match (bytes[at], hex(1), hex(2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, _, _) => {
                out.push(if byte == b'+' { b' ' } else { byte });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Sends a command on, and says who asked. It runs to its end even when the client hangs up or the time for the
/// request is over: a change dropped in the middle would be the worst outcome of all.
pub(crate) async fn run(
    backend: &Shared,
    command: Command,
    caller: Caller,
    DryRun(dry_run): DryRun,
) -> Result<Outcome, Trouble> {
    tracing::info!(actor = %caller.0.name, reason = %caller.0.reason, dry_run, ?command, "command over HTTP");
    let backend = backend.clone();
    let task = tokio::spawn(async move { backend.command(command, caller.0, dry_run).await });
    task.await.unwrap_or_else(|ended| match ended.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Err(Trouble::internal("the keeper is stopping", "look with `stemma status` before trying again")),
    })
}
