//! A BEGIN that comes by itself is answered without a server. The server is told when the client says what it wants of it,
//! in front of that. So a transaction that does nothing takes no server, one whose client thinks keeps none from others,
//! and one whose first request is not answered yet outlives its server: it is begun anew on another one.

use super::{Exchange, Expect};
use crate::out::Out;
use crate::prepared::Judge;
use routing::route::Isolation;
use routing::{Effect, Route};
use wire::frame::{HEADER_BYTES, client_header};
use wire::{build, frontend};

/// A transaction that the client has begun.
#[derive(Debug, Default)]
pub(super) struct Begun {
    /// The client's message, until something behind it is answered.
    message: Option<Box<[u8]>>,
    /// A server has begun it.
    done: bool,
    /// What the server said instead of beginning one: a whole message.
    refusal: Option<Vec<u8>>,
}

impl Exchange {
    /// Answers what `input` asks, of a client that has no server, where none is needed for it: a BEGIN, or the end of a
    /// transaction of which no server has heard. Whether it did.
    pub fn answer_without_server(&mut self, input: &[u8], judge: &Judge<'_>, client: &mut Out) -> bool {
        let begun = self.begins_later();
        if !self.quiet() || self.is_local() || (self.status != b'I') != begun || !may_concern(input, begun) {
            return false;
        }
        let Ok(Some(head)) = client_header(input) else { return false };
        let sql = frontend::query(&input[HEADER_BYTES..]);
        let (true, b'Q', Ok(sql)) = (head.total() == input.len(), head.tag, sql) else { return false };
        let route = judge.route(sql);
        let Route { parts: 1, hint: None, effects, .. } = &*route else { return false };
        let [only] = effects.as_slice() else { return false };
        let (status, tag) = match (&only.effect, begun) {
            // A replica refuses it, and not every server that is asked may be a primary.
            (Effect::Begin(modes), false) if modes.isolation == Some(Isolation::Serializable) => return false,
            (Effect::Begin(_), false) => {
                self.begun = Some(Box::new(Begun { message: Some(input.into()), ..Begun::default() }));
                (b'T', if starts_with(sql, b"start") { "START TRANSACTION" } else { "BEGIN" })
            }
            (Effect::Commit { chain: false }, true) => (b'I', "COMMIT"),
            (Effect::Rollback { chain: false }, true) => (b'I', "ROLLBACK"),
            _ => return false,
        };
        self.apply(&route, None, tag.as_bytes());
        if status == b'I' {
            self.forget_begin();
        }
        self.status = status;
        self.state.ready(status);
        client.add(|own| build::command_complete(own, tag));
        client.add(|own| build::ready(own, status));
        true
    }

    /// The client is in a transaction of which no server has said a word.
    pub fn begins_later(&self) -> bool {
        self.begun.as_ref().is_some_and(|begun| begun.message.is_some() && !begun.done)
    }

    /// A server has begun the client's transaction, and nothing behind that is answered.
    pub fn has_only_begun(&self) -> bool {
        self.begun.as_ref().is_some_and(|begun| begun.message.is_some() && begun.done)
    }

    /// Such a transaction is as if no server had heard of it: its server is gone, or is given up.
    pub fn begin_again(&mut self) {
        if let Some(begun) = self.begun.as_mut().filter(|begun| begun.done) {
            begun.done = false;
            self.status = b'T';
            self.state.begins_again();
        }
    }

    /// The BEGIN that is to go out in front of the client's next message, once that has a server. The answer is due then.
    pub fn begin_now(&mut self) -> Option<&[u8]> {
        if !self.begins_later() || self.ring.contains(&Expect::Begin) {
            return None;
        }
        let message = self.begun.as_ref()?.message.as_deref()?;
        self.ring.push_back(Expect::Begin);
        self.xid.begins();
        Some(message)
    }

    /// The client's BEGIN, of which no server has said a word: by that it is decided where its transaction goes.
    pub fn begin_message(&self) -> Option<&[u8]> {
        self.begun.as_ref().filter(|begun| !begun.done)?.message.as_deref()
    }

    /// The server did not begin a transaction, by this word.
    pub(super) fn begin_refused(&mut self, body: &[u8]) {
        let mut message = Vec::new();
        build::message(&mut message, b'E', |out| out.extend_from_slice(body));
        if let Some(begun) = &mut self.begun {
            begun.refusal = Some(message);
        }
    }

    /// A server has answered the BEGIN.
    pub(super) fn has_begun(&mut self) {
        if let Some(begun) = &mut self.begun {
            begun.done = begun.refusal.is_none();
            begun.message.take_if(|_| !begun.done);
        }
    }

    /// Something behind the BEGIN is answered, or there is no such transaction any more.
    pub(super) fn forget_begin(&mut self) {
        self.begun = None;
    }

    /// Takes what a server said instead of beginning a transaction.
    pub fn take_begin_refusal(&mut self) -> Option<Vec<u8>> {
        let refused = self.begun.as_ref().is_some_and(|begun| begun.message.is_none());
        self.begun.take_if(|_| refused)?.refusal
    }

    /// The server is gone that was to begin it, whatever it said of that; one that had begun it is gone with it.
    pub(super) fn begin_lost(&mut self) {
        match &mut self.begun {
            Some(begun) if begun.message.is_some() && !begun.done => begun.refusal = None,
            _ => self.begun = None,
        }
    }

    /// The transaction that was to begin is lost to the client after all.
    pub(super) fn gives_up_begin(&mut self) {
        if self.begun.take().is_some() {
            self.state.server_lost();
        }
    }
}

/// Whether a message may be one of those, by its first letters: it is asked for every request that needs a server.
fn may_concern(input: &[u8], begun: bool) -> bool {
    let Some(sql) = input.get(HEADER_BYTES..) else { return false };
    match begun {
        false => starts_with(sql, b"begin") || starts_with(sql, b"start"),
        true => [&b"commit"[..], b"rollback", b"end", b"abort"].iter().any(|word| starts_with(sql, word)),
    }
}

fn starts_with(sql: &[u8], word: &[u8]) -> bool {
    sql.trim_ascii_start().get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word))
}
