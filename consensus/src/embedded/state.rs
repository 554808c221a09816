//! The replicated state machine: documents with versions, and the requests it remembers. No I/O: an entry goes in, an
//! answer and the changes to be made durable come out, the same on every member.

use super::TypeConfig;
use crate::Document;
use model::limits;
use openraft::{EmptyNode, EntryPayload, LogId, StoredMembership};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Requests whose answers are kept, so that a repeated write is recognised.
pub(super) const REQUESTS_MAX: usize = 512;
/// Bound of all documents together: a snapshot travels in one frame.
pub(super) const STATE_BYTES_MAX: usize = 3 << 20;
const _: () = assert!(STATE_BYTES_MAX + (64 << 10) < limits::FRAME_BYTES_MAX);
const _: () = assert!(limits::DOCUMENT_BYTES_MAX < STATE_BYTES_MAX);

/// One compare-and-set, as it goes into the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Random, the same in every repetition of one write.
    pub request: u128,
    /// Set in a repetition: every entry that could hold an earlier attempt lies above this index.
    pub repeats_since: Option<u64>,
    /// The key to write.
    pub key: String,
    /// The version it must have; 0 for absent.
    pub expect: u64,
    /// The new content.
    pub body: Vec<u8>,
}

/// What applying an entry gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The entry was no command.
    Nothing,
    /// Written under this version.
    Written {
        /// The new version.
        version: u64,
    },
    /// Not at the expected version.
    Conflict {
        /// What is there instead.
        current: Option<Document>,
    },
    /// The state would exceed its bound.
    TooLarge {
        /// Bytes it would have.
        bytes: usize,
    },
    /// A repetition that comes so late that an earlier attempt may have been applied and forgotten.
    Forgotten,
}

/// What is kept of an answered request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remembered {
    /// Where in the log it was applied.
    pub(super) index: u64,
    /// Its id.
    pub(super) request: u128,
    /// What it was answered.
    pub(super) outcome: Outcome,
}

/// An answer without the documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Outcome {
    Written { version: u64 },
    Conflict,
    TooLarge { bytes: usize },
}

/// Everything the log says so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) applied: Option<LogId<u64>>,
    pub(super) membership: StoredMembership<u64, EmptyNode>,
    pub(super) documents: BTreeMap<String, Document>,
    /// Oldest first.
    pub(super) requests: VecDeque<Remembered>,
    /// Requests applied at or below this index are no longer remembered.
    pub(super) forgotten_through: u64,
}

/// What applying entries changed, so that only that is written to disk.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) written: BTreeMap<String, Document>,
    pub(super) remembered: Vec<Remembered>,
    /// Indexes of requests that were dropped.
    pub(super) forgotten: Vec<u64>,
}

impl State {
    /// Applies one entry.
    pub(super) fn apply(&mut self, entry: openraft::Entry<TypeConfig>, changes: &mut Changes) -> Answer {
        let log_id = entry.log_id;
        self.applied = Some(log_id);
        match entry.payload {
            EntryPayload::Blank => Answer::Nothing,
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(log_id), membership);
                Answer::Nothing
            }
            EntryPayload::Normal(command) => self.apply_command(log_id.index, command, changes),
        }
    }

    fn apply_command(&mut self, index: u64, command: Command, changes: &mut Changes) -> Answer {
        if let Some(earlier) = self.requests.iter().rev().find(|kept| kept.request == command.request) {
            return self.answer(earlier.outcome, &command.key);
        }
        if command.repeats_since.is_some_and(|since| since < self.forgotten_through) {
            return Answer::Forgotten;
        }
        let outcome = self.verdict(&command);
        let key = command.key.clone();
        if let Outcome::Written { version } = outcome {
            let document = Document { version, body: Arc::from(command.body) };
            changes.written.insert(command.key.clone(), document.clone());
            self.documents.insert(command.key, document);
        }
        self.remember(Remembered { index, request: command.request, outcome }, changes);
        self.answer(outcome, &key)
    }

    fn verdict(&self, command: &Command) -> Outcome {
        let current = self.documents.get(&command.key);
        if current.map_or(0, |document| document.version) != command.expect {
            return Outcome::Conflict;
        }
        let others: usize = self
            .documents
            .iter()
            .filter(|(key, _)| **key != command.key)
            .map(|(key, document)| key.len() + document.body.len())
            .sum();
        let bytes = others + command.key.len() + command.body.len();
        if bytes > STATE_BYTES_MAX {
            return Outcome::TooLarge { bytes };
        }
        Outcome::Written { version: command.expect + 1 }
    }

    fn remember(&mut self, request: Remembered, changes: &mut Changes) {
        changes.remembered.push(request.clone());
        self.requests.push_back(request);
        while self.requests.len() > REQUESTS_MAX {
            if let Some(oldest) = self.requests.pop_front() {
                self.forgotten_through = oldest.index;
                changes.forgotten.push(oldest.index);
            }
        }
    }

    fn answer(&self, outcome: Outcome, key: &str) -> Answer {
        match outcome {
            Outcome::Written { version } => Answer::Written { version },
            Outcome::Conflict => Answer::Conflict { current: self.documents.get(key).cloned() },
            Outcome::TooLarge { bytes } => Answer::TooLarge { bytes },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::CommittedLeaderId;

    fn entry(index: u64, request: u128, expect: u64, body: &[u8]) -> openraft::Entry<TypeConfig> {
        repeated(index, request, None, expect, body)
    }

    fn repeated(
        index: u64,
        request: u128,
        repeats_since: Option<u64>,
        expect: u64,
        body: &[u8],
    ) -> openraft::Entry<TypeConfig> {
        let command = Command { request, repeats_since, key: "k".into(), expect, body: body.to_vec() };
        openraft::Entry {
            log_id: LogId::new(CommittedLeaderId::new(1, 1), index),
            payload: EntryPayload::Normal(command),
        }
    }

    #[test]
    fn only_the_expected_version_is_replaced() {
        let (mut state, mut changes) = (State::default(), Changes::default());
        assert_eq!(state.apply(entry(1, 1, 0, b"a"), &mut changes), Answer::Written { version: 1 });
        let there = Document { version: 1, body: Arc::from(&b"a"[..]) };
        assert_eq!(state.apply(entry(2, 2, 0, b"b"), &mut changes), Answer::Conflict { current: Some(there.clone()) });
        assert_eq!(state.apply(entry(3, 3, 7, b"b"), &mut changes), Answer::Conflict { current: Some(there) });
        assert_eq!(state.apply(entry(4, 4, 1, b"b"), &mut changes), Answer::Written { version: 2 });
        assert_eq!(state.applied.expect("applied").index, 4);
    }

    #[test]
    fn a_repeated_request_is_answered_and_not_applied_again() {
        let (mut state, mut changes) = (State::default(), Changes::default());
        state.apply(entry(1, 9, 0, b"a"), &mut changes);
        state.apply(entry(2, 10, 1, b"b"), &mut changes);
        assert_eq!(state.apply(repeated(3, 9, Some(0), 0, b"a"), &mut changes), Answer::Written { version: 1 });
        assert_eq!(state.documents["k"].version, 2, "the repetition changed nothing");
    }

    #[test]
    fn a_repetition_that_may_have_been_forgotten_is_not_answered_as_a_conflict() {
        let (mut state, mut changes) = (State::default(), Changes::default());
        state.apply(entry(1, 1, 0, b"a"), &mut changes);
        let count = REQUESTS_MAX as u64;
        for step in 0..count {
            state.apply(entry(step + 2, 1000 + u128::from(step), step + 1, b"x"), &mut changes);
        }
        assert_eq!(state.requests.len(), REQUESTS_MAX);
        assert_eq!(changes.forgotten, vec![1]);
        assert_eq!(state.apply(repeated(9999, 1, Some(0), 0, b"a"), &mut changes), Answer::Forgotten);
        // One that began after everything forgotten is judged as usual.
        let fresh = state.apply(repeated(10_000, 2, Some(5), count + 1, b"y"), &mut changes);
        assert_eq!(fresh, Answer::Written { version: count + 2 });
    }

    #[test]
    fn the_state_has_a_bound() {
        let (mut state, mut changes) = (State::default(), Changes::default());
        let body = vec![0_u8; limits::DOCUMENT_BYTES_MAX];
        for number in 0..5_u64 {
            let mut one = entry(number + 1, u128::from(number), 0, &body);
            if let EntryPayload::Normal(command) = &mut one.payload {
                command.key = format!("key-{number}");
            }
            let answer = state.apply(one, &mut changes);
            let fits = number < 2;
            assert_eq!(matches!(answer, Answer::Written { .. }), fits, "document {number}: {answer:?}");
            assert_eq!(matches!(answer, Answer::TooLarge { .. }), !fits, "document {number}: {answer:?}");
        }
    }
}
