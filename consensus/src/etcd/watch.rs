//! Following the keys under the prefix: etcd's stream of changes, and a small linearizable read every few seconds that
//! proves that the store still answers and catches what a stalled stream would hide.

use super::gateway::{CallError, Kind};
use super::{Shared, field, number, parse_pair, reading};
use crate::StoreError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// How often the store is asked what it holds; keys and versions only.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(2_000);
/// Pauses before a broken stream is opened again, growing from the first to the second.
const RECONNECT_PAUSE_MIN: Duration = Duration::from_millis(100);
const RECONNECT_PAUSE_MAX: Duration = Duration::from_millis(2_000);
/// Longest line of the stream: one document in base64 with room to spare.
const LINE_BYTES_MAX: usize = 8 << 20;

/// Runs until the store is stopped.
pub(super) async fn follow(shared: Arc<Shared>) {
    let stopping = shared.stopping.clone();
    tokio::select! {
        () = stopping.cancelled() => {}
        () = follow_for_ever(&shared) => {}
    }
}

async fn follow_for_ever(shared: &Shared) {
    let mut pause = RECONNECT_PAUSE_MIN;
    loop {
        let begun = tokio::time::Instant::now();
        if let Err(error) = follow_once(shared).await {
            tracing::debug!(%error, "cannot follow etcd");
        }
        // A stream that worked for a while is opened again at once; one that ends as it begins, ever more slowly.
        let lasted = begun.elapsed() > PROBE_INTERVAL;
        pause = if lasted { RECONNECT_PAUSE_MIN } else { (pause * 2).min(RECONNECT_PAUSE_MAX) };
        tokio::time::sleep(pause).await;
    }
}

/// Reads what is there, then follows the changes from there on until the stream ends.
async fn follow_once(shared: &Shared) -> Result<(), StoreError> {
    let revision = probe(shared).await?;
    let create = json!({"create_request": {
        "key": shared.encoded(""),
        "range_end": STANDARD.encode(end_of_prefix(shared.prefix.as_bytes())),
        "start_revision": (revision + 1).to_string(),
    }});
    let mut stream = shared.gateway.watch(&create).await.map_err(reading)?;
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + PROBE_INTERVAL, PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut buffer = Vec::new();
    loop {
        tokio::select! {
            chunk = stream.chunk() => match chunk {
                Ok(Some(chunk)) => {
                    buffer.extend_from_slice(&chunk);
                    if !take_lines(shared, &mut buffer)? {
                        return Ok(());
                    }
                }
                Ok(None) | Err(_) => return Ok(()),
            },
            _ = ticks.tick() => {
                // A failed probe leaves the view ageing; the stream may still be sound.
                if let Err(error) = probe(shared).await {
                    tracing::debug!(%error, "etcd does not answer");
                }
            }
        }
    }
}

/// Handles the whole lines of the buffer. False when etcd has ended the watch.
fn take_lines(shared: &Shared, buffer: &mut Vec<u8>) -> Result<bool, StoreError> {
    while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
        let line: Vec<u8> = buffer.drain(..=end).collect();
        let message: Value = serde_json::from_slice(&line)
            .map_err(|error| StoreError::Corrupt { detail: format!("etcd's stream: {error}") })?;
        let result = &message["result"];
        if result.is_null() || result["canceled"].as_bool() == Some(true) {
            return Ok(false);
        }
        for event in result["events"].as_array().into_iter().flatten() {
            // Nobody of ours deletes a key, and a document that was known is not unlearned.
            if event["type"].as_str() != Some("DELETE") {
                let (key, revision, document) = parse_pair(&shared.prefix, &event["kv"])?;
                shared.note_document(&key, revision, &document);
            }
        }
    }
    if buffer.len() > LINE_BYTES_MAX {
        return Err(StoreError::Corrupt { detail: "etcd's stream: a line is too long".into() });
    }
    Ok(true)
}

/// A linearizable read of all keys without their values; those that changed are read in full. Returns the revision.
async fn probe(shared: &Shared) -> Result<u64, StoreError> {
    let body = json!({
        "key": shared.encoded(""),
        "range_end": STANDARD.encode(end_of_prefix(shared.prefix.as_bytes())),
        "keys_only": true,
    });
    let answer = shared.gateway.call("/kv/range", &body, Kind::Read).await;
    let answer = answer.map_err(|error: CallError| reading(error))?;
    let revision = number(&answer["header"]["revision"])?;
    shared.note_answer(revision);
    for pair in answer["kvs"].as_array().into_iter().flatten() {
        let (key, _, _) = parse_pair(&shared.prefix, pair)?;
        let changed = number(field(pair, "mod_revision", "modRevision"))?;
        let held = shared.known().documents.get(&key).map_or(0, |(held, _)| *held);
        if changed > held {
            shared.read(&key).await?;
        }
    }
    Ok(revision)
}

/// The first key after all that begin with `prefix`.
fn end_of_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // etcd's way to say: to the end of all keys.
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_of_a_prefix_ends_just_after_it() {
        assert_eq!(end_of_prefix(b"/stemma/"), b"/stemma0");
        assert_eq!(end_of_prefix(&[b'a', 255]), b"b");
        assert_eq!(end_of_prefix(&[255, 255]), [0]);
        assert_eq!(end_of_prefix(b""), [0]);
    }
}
