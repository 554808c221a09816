//! The store in an etcd that is already there, through its JSON gateway.
//!
//! A write is one transaction on the key's version. It is sent once: when its answer is lost its outcome is unknown,
//! and said to be.

mod gateway;
mod watch;

use crate::{BoxFuture, Consensus, Document, StoreError, Watchers, WriteError, check_size};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gateway::{CallError, Gateway, Kind};
use model::limits::DOCUMENT_BYTES_MAX;
use model::names::NodeId;
use model::observe::ConsensusView;
use model::units::Millis;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The store counts as up this long after it last answered a linearizable read.
const UP_FOR: Millis = Millis(6_000);
const _: () = assert!(watch::PROBE_INTERVAL.as_millis() * 2 < UP_FOR.0 as u128);

/// How to reach etcd.
#[derive(Clone)]
pub struct EtcdConfig {
    /// `http://` or `https://` addresses of its members; the next is asked when one fails.
    pub endpoints: Vec<String>,
    /// Put before every key, for example `/stemma/main/`.
    pub prefix: String,
    /// User, where authentication is on.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
    /// PEM file of the authority that signed its certificates; the system's authorities if absent.
    pub ca: Option<PathBuf>,
    /// Longest wait for an answer.
    pub request_timeout: Millis,
}

impl EtcdConfig {
    /// Without authentication, with the usual timeout.
    pub fn new(endpoints: Vec<String>, prefix: impl Into<String>) -> EtcdConfig {
        EtcdConfig {
            endpoints,
            prefix: prefix.into(),
            user: None,
            password: None,
            ca: None,
            request_timeout: Millis(5_000),
        }
    }
}

/// A connection to etcd.
pub struct Etcd {
    shared: Arc<Shared>,
}

struct Shared {
    gateway: Gateway,
    prefix: String,
    watchers: Watchers,
    known: Mutex<Known>,
    stopping: CancellationToken,
}

/// What was seen last.
struct Known {
    /// By key without prefix: the revision of its last change, and the document.
    documents: BTreeMap<String, (u64, Document)>,
    revision: u64,
    answered_at: Option<Instant>,
    since: Instant,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd").field("prefix", &self.shared.prefix).finish_non_exhaustive()
    }
}

impl Etcd {
    /// Reaches etcd and begins to follow the keys under the prefix.
    pub async fn connect(config: EtcdConfig) -> Result<Arc<Etcd>, StoreError> {
        let etcd = Etcd::open(config).await?;
        etcd.shared.gateway.path().await?;
        Ok(etcd)
    }

    /// As `connect`, but etcd need not answer yet: it is followed as soon as it does. Fails only when the
    /// configuration cannot be used.
    pub async fn open(config: EtcdConfig) -> Result<Arc<Etcd>, StoreError> {
        let gateway = Gateway::open(&config).await?;
        let known = Known { documents: BTreeMap::new(), revision: 0, answered_at: None, since: Instant::now() };
        let shared = Arc::new(Shared {
            gateway,
            prefix: config.prefix,
            watchers: Watchers::default(),
            known: Mutex::new(known),
            stopping: CancellationToken::new(),
        });
        tokio::spawn(watch::follow(shared.clone()));
        Ok(Arc::new(Etcd { shared }))
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.shared.stopping.cancel();
    }
}

/// etcd's JSON carries 64-bit numbers as text, and leaves out zero.
fn number(value: &Value) -> Result<u64, StoreError> {
    match value {
        Value::Null => Ok(0),
        Value::String(text) => text.parse().map_err(|_| corrupt(format!("`{text}` is not a number"))),
        Value::Number(number) => number.as_u64().ok_or_else(|| corrupt(format!("`{number}` is not a count"))),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => Err(corrupt(format!("`{value}` is not a number"))),
    }
}

fn bytes(value: &Value) -> Result<Vec<u8>, StoreError> {
    let text = value.as_str().unwrap_or("");
    STANDARD.decode(text).map_err(|error| corrupt(format!("not base64: {error}")))
}

fn corrupt(detail: String) -> StoreError {
    StoreError::Corrupt { detail: format!("etcd's answer: {detail}") }
}

/// A field under either of the names that releases give it.
fn field<'a>(value: &'a Value, snake: &str, camel: &str) -> &'a Value {
    match &value[snake] {
        Value::Null => &value[camel],
        found => found,
    }
}

/// The key without prefix, the revision of its last change, and the document, from one key-value answer.
fn parse_pair(prefix: &str, pair: &Value) -> Result<(String, u64, Document), StoreError> {
    let key = String::from_utf8(bytes(&pair["key"])?).map_err(|_| corrupt("a key is not text".into()))?;
    let key = key.strip_prefix(prefix).ok_or_else(|| corrupt(format!("key `{key}` was not asked for")))?.to_owned();
    let document = Document { version: number(&pair["version"])?, body: bytes(&pair["value"])?.into() };
    if document.version == 0 {
        return Err(corrupt(format!("key `{key}` has no version")));
    }
    Ok((key, number(field(pair, "mod_revision", "modRevision"))?, document))
}

fn reading(error: CallError) -> StoreError {
    match error {
        CallError::NotSent(detail) | CallError::Lost(detail) => StoreError::NoQuorum { detail },
        CallError::Refused { .. } => StoreError::Unavailable { detail: error.to_string() },
    }
}

fn writing(error: CallError, size: usize) -> WriteError {
    match error {
        CallError::NotSent(detail) => StoreError::NoQuorum { detail }.into(),
        CallError::Lost(detail) => WriteError::Unknown { detail },
        // etcd's own bound may be set lower than ours.
        CallError::Refused { ref message, .. } if message.contains("too large") => {
            StoreError::TooLarge { bytes: size, max: DOCUMENT_BYTES_MAX.min(size.saturating_sub(1)) }.into()
        }
        CallError::Refused { .. } => StoreError::Unavailable { detail: error.to_string() }.into(),
    }
}

/// The transaction that writes `value` if the key is at version `expect`.
fn transaction(key: &str, expect: u64, value: &[u8]) -> Value {
    let compare = match expect {
        0 => json!({"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}),
        version => json!({"key": key, "target": "VERSION", "result": "EQUAL", "version": version.to_string()}),
    };
    json!({
        "compare": [compare],
        "success": [{"request_put": {"key": key, "value": STANDARD.encode(value)}}],
        "failure": [{"request_range": {"key": key}}],
    })
}

impl Shared {
    fn encoded(&self, key: &str) -> String {
        STANDARD.encode(format!("{}{key}", self.prefix))
    }

    fn check_running(&self) -> Result<(), StoreError> {
        if self.stopping.is_cancelled() { Err(StoreError::Stopped) } else { Ok(()) }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A linearizable read succeeded just now.
    fn note_answer(&self, revision: u64) {
        let mut known = self.known();
        known.answered_at = Some(Instant::now());
        known.revision = known.revision.max(revision);
    }

    fn note_document(&self, key: &str, revision: u64, document: &Document) {
        let mut known = self.known();
        let newer = known.documents.get(key).is_none_or(|(held, _)| *held < revision);
        if newer {
            known.documents.insert(key.to_owned(), (revision, document.clone()));
        }
        drop(known);
        self.watchers.publish(key, document);
    }

    async fn read(&self, key: &str) -> Result<Option<Document>, StoreError> {
        check_size(key, &[])?;
        self.check_running()?;
        let body = json!({"key": self.encoded(key)});
        let answer = self.gateway.call("/kv/range", &body, Kind::Read).await.map_err(reading)?;
        self.note_answer(number(&answer["header"]["revision"])?);
        let Some(pair) = answer["kvs"].as_array().and_then(|pairs| pairs.first()) else { return Ok(None) };
        let (_, revision, document) = parse_pair(&self.prefix, pair)?;
        self.note_document(key, revision, &document);
        Ok(Some(document))
    }

    async fn write(&self, key: &str, expect: u64, body: Vec<u8>) -> Result<u64, WriteError> {
        check_size(key, &body)?;
        self.check_running()?;
        let request = transaction(&self.encoded(key), expect, &body);
        let called = self.gateway.call("/kv/txn", &request, Kind::Write).await;
        let answer = called.map_err(|error| writing(error, body.len()))?;
        let revision = number(&answer["header"]["revision"])?;
        self.note_answer(revision);
        if answer["succeeded"].as_bool() == Some(true) {
            let document = Document { version: expect + 1, body: body.into() };
            self.note_document(key, revision, &document);
            return Ok(document.version);
        }
        let range = field(&answer["responses"][0], "response_range", "responseRange");
        let current = match range["kvs"].as_array().and_then(|pairs| pairs.first()) {
            None => None,
            Some(pair) => {
                let (_, revision, document) = parse_pair(&self.prefix, pair)?;
                self.note_document(key, revision, &document);
                Some(document)
            }
        };
        Err(WriteError::Conflict { current })
    }
}

impl Consensus for Etcd {
    fn call_election(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Document>, StoreError>> {
        Box::pin(self.shared.read(key))
    }

    fn write<'a>(&'a self, key: &'a str, expect: u64, body: Vec<u8>) -> BoxFuture<'a, Result<u64, WriteError>> {
        Box::pin(self.shared.write(key, expect, body))
    }

    fn watch(&self, key: &str) -> tokio::sync::watch::Receiver<Option<Document>> {
        let receiver = self.shared.watchers.subscribe(key);
        let known = self.shared.known().documents.get(key).map(|(_, document)| document.clone());
        if let Some(document) = known {
            self.shared.watchers.publish(key, &document);
        }
        receiver
    }

    fn view(&self) -> ConsensusView {
        let known = self.shared.known();
        let age = known.answered_at.unwrap_or(known.since).elapsed();
        let fresh = known.answered_at.is_some() && age <= UP_FOR.duration();
        ConsensusView {
            kind: "etcd".into(),
            up: fresh && !self.shared.stopping.is_cancelled(),
            applied: known.revision,
            age: Millis(age.as_millis() as u64),
            ..ConsensusView::default()
        }
    }

    fn set_members<'a>(
        &'a self,
        _voters: &'a BTreeSet<NodeId>,
        _learners: &'a BTreeSet<NodeId>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        // etcd's members are its operator's.
        Box::pin(std::future::ready(self.shared.check_running()))
    }

    fn is_leader(&self) -> bool {
        !self.shared.stopping.is_cancelled()
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        self.shared.stopping.cancel();
        Box::pin(std::future::ready(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_as_text_and_zero_not_at_all() {
        assert_eq!(number(&json!("18446744073709551615")), Ok(u64::MAX));
        assert_eq!(number(&json!(7)), Ok(7));
        assert_eq!(number(&Value::Null), Ok(0));
        for bad in [json!("-1"), json!("x"), json!([]), json!(1.5)] {
            assert!(matches!(number(&bad), Err(StoreError::Corrupt { .. })), "{bad}");
        }
    }

    #[test]
    fn a_pair_is_read_in_the_spelling_of_every_release() {
        let key = STANDARD.encode("/p/cluster");
        for revision in ["mod_revision", "modRevision"] {
            let pair = json!({"key": key, "version": "4", revision: "90", "value": STANDARD.encode("x")});
            let document = Document { version: 4, body: Arc::from(&b"x"[..]) };
            assert_eq!(parse_pair("/p/", &pair), Ok(("cluster".into(), 90, document)));
        }
        let nameless = json!({"key": key, "mod_revision": "90"});
        assert!(parse_pair("/p/", &nameless).is_err(), "a stored key has a version");
        assert!(parse_pair("/q/", &nameless).is_err(), "a key of somebody else");
    }
}
