//! The number of an open transaction that wrote: asked for without a round trip of its own, in front of the client's next
//! request, so that it is known when a COMMIT's answer is lost (F-12). The answer is swallowed.
//!
//! The question has a statement and a portal of its own names: the client's unnamed ones, which may live across segments,
//! stay as they are.

use super::{Exchange, Expect};
use crate::out::Out;
use crate::prepared::{PREFIX, ServerStatements};
use routing::{Class, Effect, Route};
use wire::{backend, build};

/// The number that stands for the question among a server's statements; no client's statement has it.
const STATEMENT: u32 = u32::MAX - 1;
/// The name of its portal.
const PORTAL: &[u8] = b"__stemma_xid";
/// The question. It is in PostgreSQL since version 13.
const QUESTION: &[u8] = b"SELECT pg_catalog.pg_current_xact_id_if_assigned()\0\0\0";

/// What is known of the transaction's number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Xid {
    /// A transaction is open, as of what was sent.
    open: bool,
    /// It wrote since the question was sent, as of what was sent.
    wrote: bool,
    /// The question was sent.
    asked: bool,
    /// The answer to the transaction as of what was answered.
    known: Option<u64>,
    /// The server has the question's statement, whatever becomes of the rest of it.
    parsed: bool,
}

impl Exchange {
    /// The number of the transaction, where it is known.
    pub fn xid(&self) -> Option<u64> {
        self.xid.known
    }

    /// Notes what a request does that goes out now.
    pub(super) fn note_sent(&mut self, route: &Route) {
        for traced in &route.effects {
            match traced.effect {
                Effect::Begin(_) => self.xid.open = true,
                Effect::Commit { chain: false } | Effect::Rollback { chain: false } | Effect::PrepareTransaction => {
                    self.xid = Xid { known: self.xid.known, parsed: self.xid.parsed, ..Xid::default() };
                }
                Effect::Commit { chain: true } | Effect::Rollback { chain: true } => {
                    self.xid = Xid { open: true, known: self.xid.known, parsed: self.xid.parsed, ..Xid::default() };
                }
                _ => {}
            }
        }
        self.note_wrote(route.class);
    }

    /// Notes the class of what goes out now.
    pub(super) fn note_wrote(&mut self, class: Class) {
        self.xid.wrote |= self.xid.open && class == Class::Write;
    }

    /// In front of a new request: asks for the number of a transaction that wrote, unless it was asked for.
    pub(super) fn ask_xid(&mut self, known: &mut ServerStatements, server: &mut Out) {
        let free = !self.segment_open && !self.copy_in && !self.ignoring;
        if !(self.xid.wrote && free) || self.xid.asked {
            return;
        }
        (self.xid.asked, self.xid.wrote) = (true, false);
        let parsing = known.touch(STATEMENT).is_none();
        let name = format!("{PREFIX}{STATEMENT}");
        server.add(|own| {
            if parsing {
                build::parse(own, name.as_bytes(), QUESTION);
            }
            build::bind_plain(own, PORTAL, name.as_bytes());
            build::execute(own, PORTAL);
            build::close_portal(own, PORTAL);
            build::sync(own);
        });
        if parsing {
            known.insert(STATEMENT, 0);
        }
        self.ring.push_back(Expect::Xid { parsing });
    }

    /// An answer within that to the question.
    pub(super) fn hear_xid(&mut self, tag: u8, body: &[u8]) {
        match tag {
            b'1' => self.xid.parsed = true,
            b'D' => {
                let row = backend::text_row(body).unwrap_or_default();
                let number = row.first().and_then(Option::as_deref).and_then(|text| text.parse().ok());
                self.xid.known = number;
                // It has none yet: it is asked again once it wrote again.
                if number.is_none() {
                    self.xid.asked = false;
                }
            }
            _ => {}
        }
    }

    /// The question failed: the transaction had failed before. It may go on from a savepoint.
    pub(super) fn xid_failed(&mut self, parsing: bool) {
        (self.xid.asked, self.xid.wrote) = (false, true);
        if parsing && !self.xid.parsed {
            self.failed_parses.push(STATEMENT);
        }
    }

    /// ReadyForQuery came.
    pub(super) fn xid_ready(&mut self, question: bool) {
        if question {
            self.xid.parsed = false;
        }
        if self.status == b'I' {
            self.xid.known = None;
        }
        // Nothing is on its way: the server's word counts.
        if self.ring.is_empty() {
            self.xid.open = self.status != b'I';
            self.xid.wrote &= self.xid.open;
            self.xid.asked &= self.xid.open;
        }
    }
}
