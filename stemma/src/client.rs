//! The HTTP client of the `/v1` API: a few addresses, one bearer token, a deadline on everything.

use crate::render::units;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use model::command::Outcome;
use model::{ClusterStatus, Code, Trouble};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::time::Duration;

/// How long one node may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one node may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// One node's API and what opens it.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    /// `host:port`.
    pub authority: String,
    /// The bearer token, if there is one.
    pub token: Option<String>,
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Address").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// `host:port` of an `http://` URL.
pub fn authority_of(url: &str) -> Result<String, Trouble> {
    let bad =
        |why: &str| Trouble::usage(format!("`{url}` is not an API address: {why}"), "write it as http://HOST:8008");
    if url.starts_with("https://") {
        return Err(bad("the API speaks plain HTTP; put it behind a tunnel or a local address"));
    }
    let rest = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
    if rest.is_empty() || rest.contains(['/', ' ', '@']) {
        return Err(bad("a host and a port are expected"));
    }
    let has_port = rest.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Ok(if has_port { rest.to_owned() } else { format!("{rest}:8008") })
}

/// An answer: its entity tag and its document.
#[derive(Debug)]
pub struct Answer {
    /// `ETag`, where the API gives one.
    pub etag: Option<String>,
    /// The document.
    pub body: Value,
}

/// A client of one cluster.
#[derive(Clone, Debug)]
pub struct Client {
    addresses: Vec<Address>,
    reason: Option<String>,
    timeout: Duration,
    dry_run: bool,
}

/// Why one attempt brought no answer.
enum Failed {
    /// Nothing was sent: another node may be asked.
    NotSent(String),
    /// Sent, but no answer: only reading may be tried elsewhere.
    NoAnswer(String),
}

impl Client {
    /// A client that asks these nodes in turn.
    pub fn new(addresses: Vec<Address>) -> Client {
        Client { addresses, reason: None, timeout: ANSWER_TIMEOUT, dry_run: false }
    }
    /// With options of the command line.
    #[must_use]
    pub fn with(mut self, reason: Option<String>, timeout: Option<Duration>, dry_run: bool) -> Client {
        self.reason = reason;
        self.timeout = timeout.unwrap_or(ANSWER_TIMEOUT);
        self.dry_run = dry_run;
        self
    }

    /// The same client, that only asks what would happen.
    #[must_use]
    pub fn dry(mut self) -> Client {
        self.dry_run = true;
        self
    }

    /// The same client for other addresses.
    #[must_use]
    pub fn at(mut self, addresses: Vec<Address>) -> Client {
        self.addresses = addresses;
        self
    }

    /// The judged view of the cluster.
    pub async fn status(&self) -> Result<ClusterStatus, Trouble> {
        self.get("/v1/status").await
    }

    /// Reads a document.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Trouble> {
        decode(path, self.get_value(path).await?.body)
    }

    /// Reads a list: either the document itself, or the field `name` of it.
    pub async fn list<T: DeserializeOwned>(&self, path: &str, name: &str) -> Result<Vec<T>, Trouble> {
        let mut body = self.get_value(path).await?.body;
        let list = body.get_mut(name).map(Value::take).unwrap_or(body);
        decode(path, list)
    }

    /// Reads a document as it is.
    pub async fn get_value(&self, path: &str) -> Result<Answer, Trouble> {
        self.send(Method::GET, path, None, &[]).await
    }

    /// Asks for a change.
    pub async fn change(&self, method: Method, path: &str, body: Option<Value>) -> Result<Outcome, Trouble> {
        self.change_if(method, path, body, None).await
    }

    /// Asks for a change if what is to be changed is still at this version.
    pub async fn change_if(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        version: Option<u64>,
    ) -> Result<Outcome, Trouble> {
        let mut headers = Vec::new();
        if let Some(version) = version {
            headers.push(("if-match", format!("\"{version}\"")));
        }
        let path = match (self.dry_run, path.contains('?')) {
            (false, _) => path.to_owned(),
            (true, true) => format!("{path}&dry_run=true"),
            (true, false) => format!("{path}?dry_run=true"),
        };
        decode(&path, self.send(method, &path, body, &headers).await?.body)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
        headers: &[(&str, String)],
    ) -> Result<Answer, Trouble> {
        let mut causes = Vec::new();
        for address in &self.addresses {
            match self.attempt(address, &method, path, body.as_ref(), headers).await {
                Ok((status, answer)) if status.is_success() => return Ok(answer),
                // A node without a majority may be the only one: its peers are asked before that counts.
                Ok((status, answer)) if status == StatusCode::SERVICE_UNAVAILABLE && method == Method::GET => {
                    causes.push(format!("http://{}: {}", address.authority, refusal(status, &answer.body)));
                }
                Ok((status, answer)) => return Err(refusal(status, &answer.body)),
                Err(Failed::NotSent(why)) => causes.push(format!("http://{}: {why}", address.authority)),
                Err(Failed::NoAnswer(why)) if method == Method::GET => {
                    causes.push(format!("http://{}: {why}", address.authority))
                }
                Err(Failed::NoAnswer(why)) => return Err(unknown_outcome(address, &why)),
            }
        }
        Err(unreachable(causes))
    }

    async fn attempt(
        &self,
        address: &Address,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, String)],
    ) -> Result<(StatusCode, Answer), Failed> {
        let connect =
            tokio::time::timeout(CONNECT_TIMEOUT.min(self.timeout), tokio::net::TcpStream::connect(&address.authority));
        let stream = connect
            .await
            .map_err(|_| {
                Failed::NotSent(format!("no connection within {}", units::span_ms(CONNECT_TIMEOUT.as_millis() as f64)))
            })?
            .map_err(|error| Failed::NotSent(error.to_string()))?;
        let request = self.request(address, method, path, body, headers).map_err(Failed::NotSent)?;
        let exchange = tokio::time::timeout(self.timeout, exchange(stream, request));
        exchange
            .await
            .map_err(|_| {
                Failed::NoAnswer(format!("no answer within {}", units::span_ms(self.timeout.as_millis() as f64)))
            })?
            .map_err(Failed::NoAnswer)
    }

    fn request(
        &self,
        address: &Address,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        headers: &[(&str, String)],
    ) -> Result<Request<Full<Bytes>>, String> {
        let mut request = Request::builder()
            .method(method.clone())
            .uri(path)
            .header("host", &address.authority)
            .header("accept", "application/json")
            .header("user-agent", concat!("stemma/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &address.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if let Some(reason) = &self.reason {
            // A header value holds no line ends; letters beyond ASCII travel as UTF-8.
            let plain: String = reason.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            request = request.header("x-stemma-reason", plain.into_bytes());
        }
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        let bytes = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                Bytes::from(body.to_string())
            }
            None => Bytes::new(),
        };
        request.body(Full::new(bytes)).map_err(|error| error.to_string())
    }
}

impl Client {
    /// Reads an event stream from the first node that gives one, until it ends or says nothing for `silence`. Returns
    /// whether any node answered with a stream.
    pub async fn events(&self, path: &str, silence: Duration, mut tell: impl FnMut(&str)) -> Result<(), Trouble> {
        let mut causes = Vec::new();
        for address in &self.addresses {
            match self.open_events(address, path).await {
                Ok(mut opened) => {
                    while let Ok(Some(Ok(frame))) = tokio::time::timeout(silence, opened.body.frame()).await {
                        opened.take(frame, &mut tell);
                    }
                    opened.driver.abort();
                    return Ok(());
                }
                Err(trouble) if trouble.exit == model::error::exit::UNREACHABLE => {
                    causes.push(format!("http://{}: {trouble}", address.authority));
                }
                Err(trouble) => return Err(trouble),
            }
        }
        Err(unreachable(causes))
    }

    async fn open_events(&self, address: &Address, path: &str) -> Result<OpenedEvents, Trouble> {
        let fail = |why: String| Trouble::unreachable(why, "is its keeper running?");
        let opening = async {
            let stream =
                tokio::net::TcpStream::connect(&address.authority).await.map_err(|error| fail(error.to_string()))?;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|error| fail(error.to_string()))?;
            let driver = tokio::spawn(async move { drop(connection.await) });
            let request = self.request(address, &Method::GET, path, None, &[]).map_err(fail)?;
            let response = sender.send_request(request).await.map_err(|error| fail(error.to_string()))?;
            let status = response.status();
            if status.is_success() {
                return Ok(OpenedEvents { body: response.into_body(), driver, text: Vec::new() });
            }
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| fail(error.to_string()))?.to_bytes();
            Err(refusal(status, &serde_json::from_slice(&body).unwrap_or(Value::Null)))
        };
        tokio::time::timeout(self.timeout, opening).await.unwrap_or_else(|_| Err(fail("no answer in time".to_owned())))
    }
}

/// An event stream that is being read.
struct OpenedEvents {
    body: hyper::body::Incoming,
    driver: tokio::task::JoinHandle<()>,
    text: Vec<u8>,
}

impl OpenedEvents {
    /// Takes in what arrived, and tells each event that is complete.
    fn take(&mut self, frame: hyper::body::Frame<Bytes>, tell: &mut impl FnMut(&str)) {
        let Ok(bytes) = frame.into_data() else { return };
        self.text.extend_from_slice(&bytes);
        while let Some(end) = self.text.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = self.text.drain(..end + 2).collect();
            tell(&String::from_utf8_lossy(&event));
        }
        // One event is far smaller; a server that never ends one is not ours.
        if self.text.len() > ANSWER_BYTES_MAX {
            self.text.clear();
        }
    }
}

async fn exchange(
    stream: tokio::net::TcpStream,
    request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Answer), String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let driver = tokio::spawn(connection);
    let result = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let etag = response
            .headers()
            .get("etag")
            .and_then(|tag| tag.to_str().ok())
            .map(|tag| tag.trim_matches('"').to_owned());
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| error.to_string())?
            .to_bytes();
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()))
        };
        Ok((status, Answer { etag, body }))
    }
    .await;
    driver.abort();
    result
}

fn decode<T: DeserializeOwned>(path: &str, body: Value) -> Result<T, Trouble> {
    serde_json::from_value(body).map_err(|error| {
        Trouble::internal(
            format!("the answer to {path} is not understood"),
            "is the node of another version? compare `stemma --version`",
        )
        .because(error)
    })
}

/// The trouble that the API told, as it told it.
fn refusal(status: StatusCode, body: &Value) -> Trouble {
    let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
    let code = text("code").unwrap_or_else(|| code_of(status).to_owned());
    let told = body.get("exit").and_then(Value::as_u64).and_then(|exit| u8::try_from(exit).ok());
    let reason = text("detail").or_else(|| text("reason")).or_else(|| text("title"));
    let causes = body.get("causes").and_then(Value::as_array).into_iter().flatten();
    Trouble {
        exit: told.or_else(|| model::error::exit_of(&code)).unwrap_or(model::error::exit::FAILED),
        reason: reason.unwrap_or_else(|| format!("the node answered {status}")),
        hint: text("hint").or_else(|| text("next")).unwrap_or_default(),
        causes: causes.filter_map(Value::as_str).map(str::to_owned).collect(),
        code: Code(code.into()),
    }
}

/// The code for an answer that carries none, such as one from a proxy in between.
fn code_of(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 | 403 => "ST8003",
        404 => "ST2108",
        409 | 412 => "ST2106",
        400..=499 => "ST1301",
        502..=504 => "ST2114",
        _ => "ST9001",
    }
}

/// No node answered.
pub fn unreachable(causes: Vec<String>) -> Trouble {
    let mut trouble = Trouble::unreachable(
        "no node of the cluster answers",
        "is a keeper running here? look at `systemctl status stemma`, or name another node with --api http://HOST:8008 --token-file FILE",
    );
    trouble.causes = causes;
    trouble
}

fn unknown_outcome(address: &Address, why: &str) -> Trouble {
    let mut trouble = Trouble::unreachable(
        format!("the request was sent to {}, but its outcome is unknown", address.authority),
        "look before you try again: stemma history, stemma status",
    );
    trouble.exit = model::error::exit::UNKNOWN;
    trouble.because(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (url, authority) in
            [("http://h:1", "h:1"), ("h", "h:8008"), ("http://h/", "h:8008"), ("http://[::1]:80", "[::1]:80")]
        {
            assert_eq!(authority_of(url).expect(url), authority);
        }
        for url in ["https://h:1", "", "http://h:1/v1", "user@h"] {
            assert_eq!(authority_of(url).expect_err(url).exit, 2);
        }
    }

    #[test]
    fn what_the_api_refuses_keeps_its_code_hint_and_exit() {
        let body = serde_json::json!({"code": "ST2104", "detail": "n1 is the primary", "hint": "choose a replica", "causes": ["x"]});
        let trouble = refusal(StatusCode::CONFLICT, &body);
        assert_eq!((trouble.code.to_string().as_str(), trouble.exit), ("ST2104", 4));
        assert_eq!((trouble.reason.as_str(), trouble.hint.as_str()), ("n1 is the primary", "choose a replica"));
        assert_eq!(trouble.causes, ["x"]);
        assert_eq!(refusal(StatusCode::UNAUTHORIZED, &Value::Null).exit, 6);
        assert_eq!(refusal(StatusCode::BAD_GATEWAY, &Value::String("<html>".into())).exit, 7);
    }

    #[tokio::test]
    async fn every_address_that_does_not_answer_is_named() {
        let closed =
            std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its address");
        let address = Address { authority: closed.to_string(), token: None };
        let trouble = Client::new(vec![address]).status().await.expect_err("nothing listens there");
        assert_eq!((trouble.exit, trouble.causes.len()), (7, 1));
        assert!(trouble.causes[0].contains(&closed.to_string()), "{:?}", trouble.causes);
    }
}
