//! Calls to etcd's JSON gateway: which endpoint, which token, and what an answer that is none may have done.

use super::EtcdConfig;
use crate::StoreError;
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Longest wait for a connection; short, so that a dead endpoint costs little of the deadline.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);
/// Largest answer read: one document in base64 with room to spare.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// Why a call has no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CallError {
    /// No endpoint took it: certainly not executed.
    NotSent(String),
    /// It was sent, and what became of it is not known.
    Lost(String),
    /// etcd refused it: certainly not executed.
    Refused { status: u16, message: String },
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CallError::NotSent(detail) | CallError::Lost(detail) => f.write_str(detail),
            CallError::Refused { status, message } => write!(f, "etcd refused: {message} (HTTP {status})"),
        }
    }
}

/// Whether a call may be made twice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Changes nothing: the next endpoint is asked when one fails.
    Read,
    /// Once sent, it is never sent again.
    Write,
}

/// The endpoints and the way to them.
pub(super) struct Gateway {
    http: reqwest::Client,
    endpoints: Vec<String>,
    /// The endpoint that answered last.
    current: AtomicUsize,
    /// `/v3`, or its name in older releases; known once a member has said which release it is.
    path: OnceLock<&'static str>,
    login: Option<(String, String)>,
    token: Mutex<Option<String>>,
    timeout: Duration,
}

/// Where the JSON gateway of a release lives.
fn path_for(version: &str) -> &'static str {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let (major, minor) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    match (major, minor) {
        (3, 0..=2) => "/v3alpha",
        (3, 3) => "/v3beta",
        _ => "/v3",
    }
}

impl Gateway {
    /// Checks the configuration; etcd itself need not answer yet.
    pub(super) async fn open(config: &EtcdConfig) -> Result<Gateway, StoreError> {
        let endpoints: Vec<String> =
            config.endpoints.iter().map(|endpoint| endpoint.trim_end_matches('/').to_owned()).collect();
        let sound = |endpoint: &String| endpoint.starts_with("http://") || endpoint.starts_with("https://");
        if endpoints.is_empty() || !endpoints.iter().all(sound) {
            return Err(unavailable("every etcd endpoint must begin with http:// or https://, and one is needed"));
        }
        let login = match (&config.user, &config.password) {
            (Some(user), Some(password)) => Some((user.clone(), password.clone())),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return Err(unavailable("etcd needs both a user and a password")),
        };
        Ok(Gateway {
            http: client(config).await?,
            endpoints,
            current: AtomicUsize::new(0),
            path: OnceLock::new(),
            login,
            token: Mutex::new(None),
            timeout: config.request_timeout.duration(),
        })
    }

    /// Finds out which release answers, and with it where its gateway is.
    pub(super) async fn path(&self) -> Result<&'static str, StoreError> {
        if let Some(path) = self.path.get() {
            return Ok(path);
        }
        let path = path_for(&self.version().await?);
        Ok(self.path.get_or_init(|| path))
    }

    async fn version(&self) -> Result<String, StoreError> {
        let mut detail = String::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let sent = self.http.get(format!("{endpoint}/version")).timeout(self.timeout).send().await;
            let found = match sent {
                Ok(response) => response.json::<Value>().await.map_err(|error| error.without_url().to_string()),
                Err(error) => Err(describe(&error)),
            };
            match found.map(|version| version["etcdserver"].as_str().map(str::to_owned)) {
                Ok(Some(version)) => {
                    self.current.store(index, Ordering::Relaxed);
                    return Ok(version);
                }
                Ok(None) => detail = format!("{endpoint} does not answer as etcd"),
                Err(error) => detail = format!("{endpoint}: {error}"),
            }
        }
        Err(StoreError::NoQuorum { detail })
    }

    /// One call, on the endpoint that answered last or the next that does.
    pub(super) async fn call(&self, method: &str, body: &Value, kind: Kind) -> Result<Value, CallError> {
        let deadline = Instant::now() + self.timeout;
        // Nothing of the call itself was sent while this fails.
        self.path().await.map_err(|error| CallError::NotSent(error.to_string()))?;
        let mut failure = CallError::NotSent("no endpoint was tried".into());
        for _ in 0..self.endpoints.len() {
            let index = self.current.load(Ordering::Relaxed) % self.endpoints.len();
            failure = match self.call_one(index, method, body, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(error @ CallError::Refused { .. }) => return Err(error),
                Err(error @ CallError::Lost(_)) if kind == Kind::Write => {
                    self.pass_on(index);
                    return Err(error);
                }
                Err(error) => error,
            };
            self.pass_on(index);
            if Instant::now() >= deadline {
                break;
            }
        }
        Err(failure)
    }

    /// Moves on to the next endpoint, unless another call has done so already.
    fn pass_on(&self, failed: usize) {
        let next = (failed + 1) % self.endpoints.len();
        self.current.compare_exchange(failed, next, Ordering::Relaxed, Ordering::Relaxed).ok();
    }

    async fn call_one(&self, index: usize, method: &str, body: &Value, until: Instant) -> Result<Value, CallError> {
        if self.login.is_some() && self.held_token().is_none() {
            self.authenticate(index, until).await?;
        }
        match self.post(index, method, body, until).await {
            // Tokens end, and are forgotten when etcd restarts. A refused token means that nothing was executed.
            Err(CallError::Refused { status, message })
                if self.login.is_some() && is_token_refusal(status, &message) =>
            {
                self.authenticate(index, until).await?;
                self.post(index, method, body, until).await
            }
            outcome => outcome,
        }
    }

    async fn post(&self, index: usize, method: &str, body: &Value, until: Instant) -> Result<Value, CallError> {
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let sent = self.request(index, method, body).timeout(left).send().await;
        let mut response = match sent {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Err(CallError::NotSent(self.at(index, &describe(&error)))),
            Err(error) => return Err(CallError::Lost(self.at(index, &describe(&error)))),
        };
        let status = response.status();
        let mut bytes = Vec::new();
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) if bytes.len() + chunk.len() <= ANSWER_BYTES_MAX => bytes.extend_from_slice(&chunk),
                Ok(Some(_)) => return Err(CallError::Lost(self.at(index, "the answer is too long"))),
                Ok(None) => break,
                Err(error) => return Err(CallError::Lost(self.at(index, &describe(&error)))),
            }
        }
        interpret(status, &bytes).map_err(|error| match error {
            CallError::Lost(detail) => CallError::Lost(self.at(index, &detail)),
            other => other,
        })
    }

    fn request(&self, index: usize, method: &str, body: &Value) -> reqwest::RequestBuilder {
        let path = self.path.get().copied().unwrap_or("/v3");
        let url = format!("{}{path}{method}", self.endpoints[index]);
        let request = self.http.post(url).json(body);
        match self.held_token() {
            Some(token) => request.header(reqwest::header::AUTHORIZATION, token),
            None => request,
        }
    }

    fn at(&self, index: usize, detail: &str) -> String {
        format!("{}: {detail}", self.endpoints[index])
    }

    fn held_token(&self) -> Option<String> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn authenticate(&self, index: usize, until: Instant) -> Result<(), CallError> {
        let Some((user, password)) = &self.login else { return Ok(()) };
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let login = json!({"name": user, "password": password});
        let answer = match self.post(index, "/auth/authenticate", &login, until).await {
            Ok(answer) => answer,
            // A user is configured here before authentication is switched on there: nothing to hold against it.
            Err(CallError::Refused { message, .. }) if message.contains("authentication is not enabled") => {
                return Ok(());
            }
            // Logging in changes nothing, so the call that needed it was not executed.
            Err(CallError::Lost(detail)) => return Err(CallError::NotSent(detail)),
            Err(error) => return Err(error),
        };
        let token = answer["token"].as_str().map(str::to_owned);
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = token;
        Ok(())
    }

    /// Opens a stream of watch answers.
    pub(super) async fn watch(&self, create: &Value) -> Result<reqwest::Response, CallError> {
        let index = self.current.load(Ordering::Relaxed) % self.endpoints.len();
        if self.login.is_some() && self.held_token().is_none() {
            self.authenticate(index, Instant::now() + self.timeout).await?;
        }
        let sent = tokio::time::timeout(self.timeout, self.request(index, "/watch", create).send());
        match sent.await {
            Ok(Ok(response)) if response.status().is_success() => Ok(response),
            Ok(Ok(response)) => {
                let status = response.status().as_u16();
                if is_token_refusal(status, "") {
                    *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
                Err(CallError::Refused { status, message: "the watch was refused".into() })
            }
            Ok(Err(error)) => Err(CallError::NotSent(self.at(index, &describe(&error)))),
            Err(_elapsed) => Err(CallError::NotSent(self.at(index, "the watch did not start"))),
        }
    }
}

fn unavailable(detail: &str) -> StoreError {
    StoreError::Unavailable { detail: detail.to_owned() }
}

fn is_token_refusal(status: u16, message: &str) -> bool {
    status == StatusCode::UNAUTHORIZED.as_u16() || message.contains("invalid auth token")
}

/// The whole chain of causes without the address, which callers add.
fn describe(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() { "no answer in time".to_owned() } else { String::new() };
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(inner) = cause {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    if text.is_empty() { "the request failed".into() } else { text }
}

/// What an HTTP answer says. Server-side failures leave open whether a write was carried out.
fn interpret(status: StatusCode, bytes: &[u8]) -> Result<Value, CallError> {
    let parsed: Result<Value, _> = serde_json::from_slice(bytes);
    if status.is_success() {
        return parsed.map_err(|error| CallError::Lost(format!("answer is not JSON: {error}")));
    }
    let body = parsed.unwrap_or(Value::Null);
    let message = body["message"].as_str().or_else(|| body["error"].as_str());
    let message = message.map_or_else(|| format!("HTTP {status}"), str::to_owned);
    if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT {
        return Err(CallError::Lost(message));
    }
    Err(CallError::Refused { status: status.as_u16(), message })
}

async fn client(config: &EtcdConfig) -> Result<reqwest::Client, StoreError> {
    // No proxy: the store's addresses are the cluster's own, whatever the environment says.
    let mut builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(Duration::from_secs(10))
        .pool_max_idle_per_host(2);
    if let Some(path) = &config.ca {
        let pem = tokio::fs::read(path).await;
        let pem = pem.map_err(|error| unavailable(&format!("{}: {error}", path.display())))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem);
        let certificates = certificates.map_err(|error| unavailable(&format!("{}: {error}", path.display())))?;
        builder = builder.tls_certs_only(certificates);
    }
    builder.build().map_err(|error| unavailable(&format!("cannot make an HTTP client: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_moved_between_releases() {
        for (version, path) in
            [("3.2.26", "/v3alpha"), ("3.3.25", "/v3beta"), ("3.4.23", "/v3"), ("3.5.0-rc.1", "/v3"), ("4.0.0", "/v3")]
        {
            assert_eq!(path_for(version), path, "{version}");
        }
    }

    #[test]
    fn only_a_refusal_proves_that_nothing_was_done() {
        let refusal = interpret(StatusCode::BAD_REQUEST, br#"{"error":"x","code":3,"message":"too large"}"#);
        assert_eq!(refusal, Err(CallError::Refused { status: 400, message: "too large".into() }));
        let timeout = interpret(StatusCode::SERVICE_UNAVAILABLE, br#"{"error":"etcdserver: request timed out"}"#);
        assert_eq!(timeout, Err(CallError::Lost("etcdserver: request timed out".into())));
        assert!(matches!(interpret(StatusCode::OK, b"<html>"), Err(CallError::Lost(_))));
    }
}
