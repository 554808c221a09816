//! One client and its server, as bytes in and bytes out: which answers are still due, which of them the client must
//! not see, and when the server is free for another client.
//!
//! Pure: the caller reads and writes. Only heads of messages are looked at, and the few bodies that decide something;
//! a long message is passed on blindly as it comes. The list of expected answers (`ring`) is what keeps the two sides
//! in step: every message that will be answered leaves an entry, every answer takes one. An answer that does not fit
//! is a `Desync`, and the server connection is closed rather than given to someone else.

mod from_client;
mod from_server;

pub use from_client::first_message;

use crate::prepared::{ClientStatements, Interner, ServerStatements};
use std::collections::VecDeque;
use wire::Malformed;

/// Longest message whose body is collected in order to be read. Longer ones are passed on blindly.
pub const INSPECT_BYTES_MAX: usize = 64 << 10;

/// An answer that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// To a simple query: anything up to ReadyForQuery.
    Query {
        /// Whether what it does is noted in `effects`.
        effects: bool,
    },
    /// To a query of ours: all of it is swallowed.
    Injected,
    /// To a function call: up to ReadyForQuery.
    Function,
    /// To a Sync: ReadyForQuery.
    Sync,
    /// To a Parse.
    Parse {
        /// The statement; 0 for the unnamed one.
        id: u32,
        /// Whether the client sent it, so that it wants to see the answer.
        wanted: bool,
        /// Whether the client gave it a name, which it loses if the Parse fails.
        named: bool,
    },
    /// To a Parse that we did not send, since the server knows the statement.
    Elided,
    /// To a Bind.
    Bind,
    /// To a Describe.
    Describe,
    /// To an Execute.
    Execute {
        /// Whether what it does is noted in `effects`.
        effects: bool,
    },
    /// To a Close that the client sent and the server sees.
    Close,
    /// To a Close of ours: swallowed.
    CloseInjected,
    /// To a Close that only we needed to see.
    CloseElided,
    /// No answer: the client has ended its copying here.
    CopyEnd,
}

/// The server said something that nobody asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desync(pub String);

/// Why the reading of a client's bytes stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// All that can be used was used.
    More,
    /// The client says goodbye.
    Terminate,
    /// The server is to be given back first: what follows may go elsewhere.
    Boundary,
}

/// What a client's bytes are read against.
pub struct Context<'c> {
    /// What the client has prepared.
    pub client: &'c mut ClientStatements,
    /// What the server knows.
    pub server: &'c mut ServerStatements,
    /// All definitions of the worker.
    pub interner: &'c mut Interner,
}

/// A setting that the server reported: name and value.
pub type Reported = (Vec<u8>, Vec<u8>);

/// The state between one client and its server.
#[derive(Debug)]
pub struct Exchange {
    ring: VecDeque<Expect>,
    /// Names that the client gave in Parses which are not answered yet; they fall with their Parse.
    names: VecDeque<Box<[u8]>>,
    /// Names whose Parse failed.
    failed_names: Vec<Box<[u8]>>,
    /// Statements that the server does not know after all.
    failed_parses: Vec<u32>,
    /// Extended messages were sent, and no Sync since.
    segment_open: bool,
    /// The server ignores everything up to the next Sync.
    ignoring: bool,
    /// The client is copying in.
    copy_in: bool,
    /// From now on both sides just stream (replication).
    streaming: bool,
    /// Bytes of a client's message that are passed on blindly.
    client_skip: usize,
    /// Bytes of a server's message that are passed on, or swallowed, blindly.
    server_skip: usize,
    server_skip_swallow: bool,
    /// The transaction's state at the latest ReadyForQuery.
    status: u8,
    /// Settings that the server reported since they were last taken.
    reported: Vec<Reported>,
    /// Body of the first error in answer to a query of ours.
    injected_error: Option<Vec<u8>>,
    /// Body of a FATAL error: the server is about to close.
    fatal: Option<Vec<u8>>,
    /// Bytes of answers that were given to the client since the last request began.
    answered: bool,
    /// Segments and simple queries that ended.
    finished: u64,
}

impl Default for Exchange {
    fn default() -> Self {
        Exchange {
            ring: VecDeque::new(),
            names: VecDeque::new(),
            failed_names: Vec::new(),
            failed_parses: Vec::new(),
            segment_open: false,
            ignoring: false,
            copy_in: false,
            streaming: false,
            client_skip: 0,
            server_skip: 0,
            server_skip_swallow: false,
            status: b'I',
            reported: Vec::new(),
            injected_error: None,
            fatal: None,
            answered: false,
            finished: 0,
        }
    }
}

impl Exchange {
    /// Whether nothing is due, no transaction is open and no message is half sent: the server may serve another.
    pub fn at_rest(&self) -> bool {
        self.ring.is_empty()
            && self.status == b'I'
            && !self.segment_open
            && self.client_skip == 0
            && self.server_skip == 0
            && !self.copy_in
            && !self.streaming
    }

    /// Whether the client waits for nothing, so that a word of ours may be put in.
    pub fn quiet(&self) -> bool {
        self.ring.is_empty() && !self.segment_open && self.server_skip == 0 && self.client_skip == 0
    }

    /// `I`, `T` or `E`.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// Whether any answer has reached the client since the request began.
    pub fn answered(&self) -> bool {
        self.answered
    }

    /// Segments and simple queries that ended since the beginning.
    pub fn finished(&self) -> u64 {
        self.finished
    }

    /// Takes the settings that the server reported.
    pub fn take_reported(&mut self) -> Vec<Reported> {
        std::mem::take(&mut self.reported)
    }

    /// Whether there are any.
    pub fn has_reported(&self) -> bool {
        !self.reported.is_empty()
    }

    /// Takes the error that a query of ours met.
    pub fn take_injected_error(&mut self) -> Option<Vec<u8>> {
        self.injected_error.take()
    }

    /// Takes the server's last words.
    pub fn take_fatal(&mut self) -> Option<Vec<u8>> {
        self.fatal.take()
    }

    /// Notes that a query of ours goes out now; its answer will not be shown.
    pub fn inject(&mut self) {
        self.ring.push_back(Expect::Injected);
    }

    /// From now on both sides just stream.
    pub fn stream(&mut self) {
        self.streaming = true;
    }

    /// The server is gone: nothing is due any more. Statements of the unanswered Parses lose their names.
    pub fn reset(&mut self, client: &mut ClientStatements) {
        self.drop_expected(usize::MAX);
        self.settle(client, None);
        let (reported, finished) = (std::mem::take(&mut self.reported), self.finished);
        let ring = std::mem::take(&mut self.ring);
        *self = Exchange { reported, finished, ring, ..Exchange::default() };
        client.unnamed_loaded = false;
    }

    /// Frees memory that an idle client does not need.
    pub fn shrink(&mut self) {
        if self.ring.capacity() > 16 {
            self.ring = VecDeque::new();
        }
    }

    /// Carries what failed into the two lists of statements.
    pub fn settle(&mut self, client: &mut ClientStatements, server: Option<&mut ServerStatements>) {
        for name in self.failed_names.drain(..) {
            client.remove(&name);
        }
        if let Some(server) = server {
            for id in &self.failed_parses {
                server.remove(*id);
            }
        }
        if self.failed_parses.contains(&0) {
            client.unnamed = None;
            client.unnamed_loaded = false;
        }
        self.failed_parses.clear();
    }

    /// Whether `settle` has anything to do.
    pub fn unsettled(&self) -> bool {
        !self.failed_names.is_empty() || !self.failed_parses.is_empty()
    }

    /// Takes out the first `count` expected answers, which will not come.
    fn drop_expected(&mut self, count: usize) {
        for _ in 0..count {
            match self.ring.pop_front() {
                None => return,
                Some(Expect::Parse { id, named, .. }) => {
                    self.failed_parses.push(id);
                    if named && let Some(name) = self.names.pop_front() {
                        self.failed_names.push(name);
                    }
                }
                Some(Expect::Elided) => {
                    if let Some(name) = self.names.pop_front() {
                        self.failed_names.push(name);
                    }
                }
                Some(
                    Expect::Query { .. }
                    | Expect::Injected
                    | Expect::Function
                    | Expect::Sync
                    | Expect::Bind
                    | Expect::Describe
                    | Expect::Execute { .. }
                    | Expect::Close
                    | Expect::CloseInjected
                    | Expect::CloseElided
                    | Expect::CopyEnd,
                ) => {}
            }
        }
    }
}

/// What went wrong with a client's bytes.
pub type ClientError = Malformed;
