//! One client and its server, as bytes in and bytes out: which answers are still due, which of them the client must
//! not see, and when the server is free for another client.
//!
//! Pure: the caller reads and writes. Only heads of messages are looked at, and the few bodies that decide something;
//! a long message is passed on blindly as it comes. The list of expected answers (`ring`) is what keeps the two sides
//! in step: every message that will be answered leaves an entry, every answer takes one. An answer that does not fit
//! is a `Desync`, and the server connection is closed rather than given to someone else.

mod from_client;
mod from_server;
mod local;
#[cfg(test)]
mod tests;
mod xid;

pub use from_client::first_message;
pub use local::{Answered, LocalContext};

use crate::channels::Channels;
use crate::own::Own;
use crate::prepared::{ClientStatements, Describing, Interner, Judge, Prepared, ServerStatements, Shape};
use crate::settings::Settings;
use crate::state::{Consequence, State};
use crate::wishes::Wishes;
use routing::failover::{Request, Transaction};
use routing::{Class, Effect, Route};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use wire::{Malformed, build};

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
    /// To our question for the transaction's number, up to ReadyForQuery: swallowed.
    Xid {
        /// Whether the question had to be made known to the server first.
        parsing: bool,
    },
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
    Bind {
        /// The statement; 0 for the unnamed one, and for those that are not ours.
        id: u32,
        /// What came of asking whether it is still what its client was told.
        fit: Fit,
    },
    /// To a Describe.
    Describe(Described),
    /// To a Describe of ours, by which a statement is compared with what its client was told: swallowed.
    Check {
        /// The statement; 0 for the unnamed one.
        id: u32,
    },
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

/// Whether a client can read the rows of a statement by what it was told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// It can: the server described it so, or checks it by itself.
    Told,
    /// It was told nothing: whatever comes is described again.
    Untold,
    /// It cannot: the server is made to fail, and the client told why.
    Stale,
}

/// What is described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Described {
    /// A portal, or a statement that is none of ours.
    Other,
    /// The unnamed statement with this number among those of its client.
    Unnamed(u32),
    /// The statement of this number; what its client calls by that name is the first of `asked`.
    Named(u32),
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
    /// What follows can be read once answers that are due have come.
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
    /// What the client has prepared for the router itself.
    pub own: Option<&'c Own>,
    /// What texts are judged with.
    pub judge: Judge<'c>,
    /// What came of judging the first message, where that is a query and was judged already.
    pub judged: Option<Rc<Route>>,
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
    /// Statements that the client closes, in the order of their answers.
    closing: VecDeque<(Box<[u8]>, Rc<Prepared>)>,
    /// Those of them that are not closed after all.
    restored: Vec<(Box<[u8]>, Rc<Prepared>)>,
    /// Statements whose tables changed so that they cannot be executed any more.
    outdated: Vec<u32>,
    /// Statements that the server refuses to execute as it has them.
    refused_plans: Vec<u32>,
    /// Statements that the client wants described, in the order of their answers.
    asked: VecDeque<Rc<Prepared>>,
    /// Names that the request at hand gave.
    made: Vec<Box<[u8]>>,
    /// The description that is being read.
    describing: Describing,
    /// What the server described: statement and shape. For the unnamed one the number among those of its client.
    shapes: Vec<(Described, Shape)>,
    /// What came of our own Describe.
    checked: Option<(u32, Shape)>,
    /// The open segment holds nothing of the client yet, only our question.
    leading: bool,
    /// Another server may do what this one cannot.
    elsewhere: bool,
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
    /// The server that they were for is gone: they are thrown away.
    discard: bool,
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
    /// The request that is answered now got something already; one that was sent behind it got nothing.
    partly: bool,
    /// What statements do that are not answered yet, and how many parts of the first are done.
    effects: VecDeque<Rc<Route>>,
    parts_done: u32,
    /// Portals of statements that do something to the session.
    portals: Vec<(Box<[u8]>, Rc<Route>)>,
    /// What the session's statements did.
    state: State,
    /// The server forgot every prepared statement.
    all_deallocated: bool,
    /// Functions, tables or roles changed.
    catalog_changed: bool,
    /// A request is being answered by ourselves.
    local: local::Local,
    /// Something that is not answered yet may write.
    request_writes: bool,
    /// The open transaction may have written.
    transaction_wrote: bool,
    /// The request is still whole in the session's hands: an error that proves that it was not executed is kept back.
    may_retry: bool,
    /// Such an error came; the rest of the answer is swallowed.
    refused: Option<Refused>,
    /// What is known of the transaction's number.
    xid: xid::Xid,
    /// Channels whose notifications reach the client by another way.
    heard_elsewhere: Channels,
    /// The server is the client's own for as long as it is here.
    owns_server: bool,
    /// A commit was acknowledged although the wait for replicas was cancelled.
    wait_cancelled: bool,
}

/// A server's word that it did not execute the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is not, or no more, the primary.
    NeedsPrimary,
    /// Recovery was in the way; another replica may do it.
    Conflict,
    /// It has the statement as it was before its tables changed; it may be prepared anew.
    Replan,
}

impl Exchange {
    /// A session that begins with these settings.
    pub fn new(startup: Arc<Settings>, wishes: Wishes) -> Exchange {
        Exchange {
            ring: VecDeque::new(),
            names: VecDeque::new(),
            failed_names: Vec::new(),
            failed_parses: Vec::new(),
            closing: VecDeque::new(),
            restored: Vec::new(),
            outdated: Vec::new(),
            refused_plans: Vec::new(),
            asked: VecDeque::new(),
            made: Vec::new(),
            describing: Describing::default(),
            shapes: Vec::new(),
            checked: None,
            leading: false,
            elsewhere: false,
            segment_open: false,
            ignoring: false,
            copy_in: false,
            streaming: false,
            client_skip: 0,
            discard: false,
            server_skip: 0,
            server_skip_swallow: false,
            status: b'I',
            reported: Vec::new(),
            injected_error: None,
            fatal: None,
            answered: false,
            partly: false,
            effects: VecDeque::new(),
            parts_done: 0,
            portals: Vec::new(),
            state: State::new(startup, wishes),
            all_deallocated: false,
            catalog_changed: false,
            local: local::Local::default(),
            request_writes: false,
            transaction_wrote: false,
            may_retry: false,
            refused: None,
            xid: xid::Xid::default(),
            heard_elsewhere: Channels::default(),
            owns_server: false,
            wait_cancelled: false,
        }
    }

    /// What the session's statements did.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The same, to be changed.
    pub fn state_mut(&mut self) -> &mut State {
        &mut self.state
    }

    /// Whether the server forgot its prepared statements since this was last asked.
    pub fn take_all_deallocated(&mut self) -> bool {
        std::mem::take(&mut self.all_deallocated)
    }

    /// Whether the catalogue changed since this was last asked.
    pub fn take_catalog_changed(&mut self) -> bool {
        std::mem::take(&mut self.catalog_changed)
    }

    /// Whether an error that proves that nothing was executed is to be kept back until `take_refused`.
    pub fn set_may_retry(&mut self, may: bool) {
        self.may_retry = may;
    }

    /// Notifications on these channels reach the client by another way.
    pub fn set_heard_elsewhere(&mut self, channels: Channels) {
        self.heard_elsewhere = channels;
    }

    /// Those channels.
    pub fn heard_elsewhere(&self) -> &Channels {
        &self.heard_elsewhere
    }

    /// The server is nobody else's: notifications that it sends are for this client, whoever asked for them.
    pub fn set_owns_server(&mut self, owns: bool) {
        self.owns_server = owns;
    }

    /// Whether another server may do what the attached one cannot.
    pub fn set_elsewhere(&mut self, elsewhere: bool) {
        self.elsewhere = elsewhere;
    }

    /// Takes the refusal, once the server is done with the request.
    pub fn take_refused(&mut self) -> Option<Refused> {
        if self.ring.is_empty() && !self.segment_open { self.refused.take() } else { None }
    }

    /// What was asked for and is not answered.
    pub fn unanswered(&self) -> Request {
        let ours = |due: &Expect| match due {
            Expect::Injected | Expect::Xid { .. } => true,
            Expect::Check { .. } | Expect::CloseInjected | Expect::Parse { wanted: false, .. } => self.leading,
            _ => false,
        };
        let open = self.segment_open && !self.leading;
        if self.ring.iter().all(ours) && !open && (self.client_skip == 0 || self.discard) {
            return Request::None;
        }
        let effects = || self.effects.iter().flat_map(|route| &route.effects).map(|traced| &traced.effect);
        let ends = |effect: &Effect| {
            matches!(effect, Effect::Commit { .. } | Effect::PrepareTransaction | Effect::FinishPrepared { .. })
        };
        let runs = self.ring.iter().filter(|due| matches!(due, Expect::Query { .. } | Expect::Execute { .. })).count();
        if effects().any(ends) {
            Request::Commit
        } else if runs == 1
            && effects().count() == 1
            && effects().all(|effect| matches!(effect, Effect::Rollback { .. }))
        {
            Request::Rollback
        } else if self.request_writes {
            Request::Write
        } else {
            Request::Read
        }
    }

    /// Whether what is unanswered is one COMMIT, whole and by itself, so that its answer can be made up.
    pub fn is_lone_commit(&self) -> bool {
        let runs = self.ring.iter().filter(|due| matches!(due, Expect::Query { .. } | Expect::Execute { .. })).count();
        let mut effects = self.effects.iter().flat_map(|route| route.effects.iter().map(move |it| (route.parts, it)));
        let first = effects.next();
        let commits = first.is_some_and(|(parts, it)| parts == 1 && it.effect == Effect::Commit { chain: false });
        runs == 1 && commits && effects.next().is_none() && !self.segment_open && self.client_skip == 0
    }

    /// Whether the server said that it gave up waiting for replicas behind a commit.
    pub fn wait_cancelled(&self) -> bool {
        self.wait_cancelled
    }

    /// The transaction as of the latest ReadyForQuery.
    pub fn transaction(&self) -> Transaction {
        match (self.status, self.transaction_wrote) {
            (b'I', _) => Transaction::None,
            (_, false) => Transaction::Clean,
            (_, true) => Transaction::Wrote,
        }
    }

    /// Whether a message to the client is only half there, so that no word can be put in.
    pub fn mid_message(&self) -> bool {
        self.server_skip > 0 && !self.server_skip_swallow
    }

    /// Bytes that are still to come of a message of the server whose head is here.
    pub fn rest_of_message(&self) -> usize {
        self.server_skip
    }

    /// How many ReadyForQuery the client waits for; and whether its last segment has not ended.
    pub fn due(&self) -> (usize, bool) {
        let ends = |due: &&Expect| matches!(due, Expect::Query { .. } | Expect::Function | Expect::Sync);
        (self.ring.iter().filter(ends).count(), self.segment_open && !self.leading)
    }

    /// Whether nothing is due but the ends of statements and portals. Drivers send those by themselves and look at no answer:
    /// an error there would be told to nobody.
    pub fn only_closes(&self) -> bool {
        let closes = |due: &Expect| match due {
            Expect::Close
            | Expect::CloseElided
            | Expect::CloseInjected
            | Expect::Sync
            | Expect::Xid { .. }
            | Expect::Parse { wanted: false, .. } => true,
            Expect::Query { .. }
            | Expect::Injected
            | Expect::Function
            | Expect::Parse { wanted: true, .. }
            | Expect::Elided
            | Expect::Bind { .. }
            | Expect::Describe(_)
            | Expect::Check { .. }
            | Expect::Execute { .. }
            | Expect::CopyEnd => false,
        };
        !self.ring.is_empty() && self.ring.iter().all(closes)
    }

    /// Writes the answers to those, in a transaction of which the client knows nothing bad yet.
    pub fn answer_closes(&self, client: &mut Vec<u8>) {
        for due in &self.ring {
            match due {
                Expect::Close | Expect::CloseElided => build::close_complete(client),
                Expect::Sync => build::ready(client, b'T'),
                _ => {}
            }
        }
    }

    /// Writes the answers of a COMMIT or ROLLBACK that worked, by its tag.
    pub fn answer_end(&mut self, tag: &str, client: &mut Vec<u8>) {
        for due in &self.ring {
            match due {
                Expect::Query { .. } => {
                    build::command_complete(client, tag);
                    build::ready(client, b'I');
                }
                Expect::Sync | Expect::Function => build::ready(client, b'I'),
                Expect::Parse { wanted: true, .. } | Expect::Elided => build::parse_complete(client),
                Expect::Bind { .. } => build::bind_complete(client),
                Expect::Describe(_) => build::no_data(client),
                Expect::Execute { .. } => build::command_complete(client, tag),
                Expect::Close | Expect::CloseElided => build::close_complete(client),
                Expect::Injected
                | Expect::Xid { .. }
                | Expect::Parse { wanted: false, .. }
                | Expect::Check { .. }
                | Expect::CloseInjected
                | Expect::CopyEnd => {}
            }
        }
    }

    fn note(&mut self, class: Class) {
        self.request_writes |= class == Class::Write;
        self.note_wrote(class);
    }

    fn apply(&mut self, route: &Route, part: Option<u32>, tag: &[u8]) {
        for traced in route.effects.iter().filter(|traced| part.is_none_or(|part| part == traced.part)) {
            if let Effect::Deallocate(Some(name)) = &traced.effect
                && !self.state.has_prepared(&name.0)
            {
                // It was made by the protocol: the client's name is all there is of it.
                self.failed_names.push(name.0.clone());
            }
            match self.state.apply(&traced.effect, tag) {
                Consequence::Nothing => {}
                Consequence::AllDeallocated => self.all_deallocated = true,
                Consequence::CatalogChanged => self.catalog_changed = true,
            }
        }
    }

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

    /// Whether a segment of the extended protocol, a copying or a long message is under way.
    pub fn mid_request(&self) -> bool {
        self.segment_open || self.copy_in || self.streaming || self.client_skip > 0
    }

    /// Whether a segment of the extended protocol is under way, and the client's next byte begins a message.
    pub fn mid_segment(&self) -> bool {
        self.segment_open && self.client_skip == 0 && !self.streaming
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

    /// Whether any answer to the request that is answered now has reached the client.
    pub fn partly_answered(&self) -> bool {
        self.partly
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

    /// Whether an answer to a query of ours is due, before anything that the client asked for.
    pub fn injected_only(&self) -> bool {
        self.ring.front() == Some(&Expect::Injected)
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
    pub fn server_lost(&mut self, client: &mut ClientStatements) {
        self.drop_expected(usize::MAX);
        self.settle(client, None);
        self.discard = self.client_skip > 0;
        self.segment_open = false;
        self.leading = false;
        self.checked = None;
        self.ignoring = false;
        self.copy_in = false;
        self.streaming = false;
        self.server_skip = 0;
        self.status = b'I';
        self.injected_error = None;
        self.answered = false;
        self.partly = false;
        self.request_writes = false;
        self.transaction_wrote = false;
        self.xid = xid::Xid::default();
        self.wait_cancelled = false;
        self.refused = None;
        self.portals.clear();
        self.state.server_lost();
        client.unnamed_loaded = false;
    }

    /// The request begins again from its first byte.
    pub fn rewind(&mut self, client: &mut ClientStatements) {
        for name in self.made.drain(..) {
            client.remove(&name);
        }
        self.client_skip = 0;
        self.discard = false;
    }

    /// Frees memory that an idle client does not need.
    pub fn shrink(&mut self) {
        if self.ring.capacity() > 16 {
            self.ring = VecDeque::new();
        }
        if self.made.capacity() > 16 {
            self.made = Vec::new();
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
                if *id == 0 {
                    server.forget_unnamed();
                }
            }
            for (of, shape) in &self.shapes {
                if let Described::Named(id) = of {
                    server.described(*id, *shape);
                }
            }
            for id in &self.refused_plans {
                server.refuses(*id);
            }
        }
        self.refused_plans.clear();
        for (of, shape) in self.shapes.drain(..) {
            if of == Described::Unnamed(client.unnamed_number()) {
                client.unnamed_told = shape;
            }
        }
        for (name, prepared) in self.restored.drain(..) {
            client.restore(&name, prepared);
        }
        for id in self.outdated.drain(..) {
            client.outdate(id);
        }
        if self.failed_parses.contains(&0) {
            client.forget_unnamed();
        }
        self.failed_parses.clear();
    }

    /// Whether `settle` has anything to do.
    pub fn unsettled(&self) -> bool {
        !self.failed_names.is_empty()
            || !self.failed_parses.is_empty()
            || !self.restored.is_empty()
            || !self.outdated.is_empty()
            || !self.refused_plans.is_empty()
            || !self.shapes.is_empty()
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
                Some(Expect::CloseElided) => {
                    // Unless what it closes was made by a Parse that failed with it.
                    let unclosed = self.closing.pop_front();
                    self.restored.extend(unclosed.filter(|(name, _)| !self.failed_names.contains(name)));
                }
                Some(Expect::Query { effects: true } | Expect::Execute { effects: true }) => {
                    self.effects.pop_front();
                    self.parts_done = 0;
                }
                Some(Expect::Describe(Described::Named(_))) => {
                    self.asked.pop_front();
                }
                Some(
                    Expect::Query { effects: false }
                    | Expect::Injected
                    | Expect::Xid { .. }
                    | Expect::Function
                    | Expect::Sync
                    | Expect::Bind { .. }
                    | Expect::Describe(_)
                    | Expect::Check { .. }
                    | Expect::Execute { effects: false }
                    | Expect::Close
                    | Expect::CloseInjected
                    | Expect::CopyEnd,
                ) => {}
            }
        }
    }
}

/// What went wrong with a client's bytes.
pub type ClientError = Malformed;
