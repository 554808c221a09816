//! Requests that we answer ourselves, because no server can: one that is refused, and everything in a transaction whose
//! server was lost, which behaves like any failed transaction until it is rolled back (F-11).

use super::Exchange;
use crate::out::Out;
use crate::prepared::{ClientStatements, Interner, Judge};
use routing::{Effect, Route};
use wire::build::{self, Complaint};
use wire::frame::{HEADER_BYTES, client_header};
use wire::frontend::{self, Target};
use wire::{Header, Malformed};

/// How far a request is answered by ourselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Local {
    /// It is not.
    #[default]
    No,
    /// The next one is refused.
    Refuse,
    /// It was refused; what follows up to its Sync is passed over.
    ToSync,
    /// The session's transaction is lost, which the client is told in answer to its next request.
    OrphanUntold,
    /// The session's transaction is lost: only its end is accepted.
    Orphan,
    /// The same, within a segment that failed.
    OrphanToSync,
    /// The same, within a segment that ended the transaction.
    OrphanEnded,
}

/// What requests are answered with.
pub struct LocalContext<'c> {
    /// The error to give, a whole message.
    pub refusal: &'c [u8],
    /// What the client has prepared.
    pub statements: &'c mut ClientStatements,
    /// All definitions of the worker.
    pub interner: &'c mut Interner,
    /// What texts are judged with.
    pub judge: Judge<'c>,
}

/// What became of a client's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    /// All that can be used was used, and the next bytes are ours to answer too.
    More,
    /// The next bytes are for a server again.
    Done,
    /// The client says goodbye.
    Terminate,
}

impl Exchange {
    /// The next request gets an error from us.
    pub fn refuse_next(&mut self) {
        self.local = Local::Refuse;
    }

    /// The session's transaction is gone with its server; the client must end it.
    pub fn orphan(&mut self) {
        self.local = Local::Orphan;
        self.status = b'E';
    }

    /// The same, where the client does not know yet.
    pub fn orphan_untold(&mut self) {
        self.local = Local::OrphanUntold;
        self.status = b'E';
    }

    /// The same, where the client was not told yet that its segment failed; what is left of that is passed over.
    pub fn orphan_to_sync(&mut self) {
        self.local = Local::OrphanToSync;
        self.status = b'E';
    }

    /// The rest of the client's segment, up to its Sync, is passed over.
    pub fn pass_over_segment(&mut self) {
        self.local = Local::ToSync;
    }

    /// Whether the client's next bytes are for `answer`.
    pub fn is_local(&self) -> bool {
        self.local != Local::No || self.discard
    }

    /// Answers what the client sent. Returns how many bytes were used.
    pub fn answer_locally(
        &mut self,
        input: &[u8],
        context: &mut LocalContext<'_>,
        client: &mut Out,
    ) -> Result<(usize, Answered), Malformed> {
        let mut at = 0;
        loop {
            if self.client_skip > 0 {
                let take = self.client_skip.min(input.len() - at);
                self.client_skip -= take;
                at += take;
            }
            if self.client_skip > 0 {
                return Ok((at, Answered::More));
            }
            self.discard = false;
            if self.local == Local::No {
                return Ok((at, Answered::Done));
            }
            let rest = &input[at..];
            let Some(head) = client_header(rest)? else { return Ok((at, Answered::More)) };
            if head.tag == b'X' {
                return Ok((at, Answered::Terminate));
            }
            let whole = head.total() <= super::INSPECT_BYTES_MAX;
            if whole && rest.len() < head.total() {
                return Ok((at, Answered::More));
            }
            let here = head.total().min(rest.len());
            self.client_skip = head.total() - here;
            self.answer_message(head, &rest[HEADER_BYTES..here], context, client)?;
            at += here;
        }
    }

    fn answer_message(
        &mut self,
        head: Header,
        body: &[u8],
        context: &mut LocalContext<'_>,
        client: &mut Out,
    ) -> Result<(), Malformed> {
        let (refusal, judge) = (context.refusal, context.judge);
        let say = |client: &mut Out, bytes: &[u8]| client.add(|own| own.extend_from_slice(bytes));
        let status = self.status;
        match (self.local, head.tag) {
            (Local::Refuse, b'Q' | b'F' | b'S') => {
                say(client, refusal);
                client.add(|own| build::ready(own, status));
                self.local = Local::No;
            }
            // Leftovers of a copying that failed.
            (Local::Refuse | Local::ToSync, b'd' | b'c' | b'f' | b'H') => {}
            (Local::Refuse, _) => {
                say(client, refusal);
                self.local = Local::ToSync;
            }
            (Local::OrphanUntold, b'Q' | b'F') => {
                if frontend::query(body).is_ok_and(|sql| is_rollback(&judge.route(sql))) {
                    client.add(|own| build::command_complete(own, "ROLLBACK"));
                    self.transaction_over();
                    client.add(|own| build::ready(own, b'I'));
                } else {
                    say(client, refusal);
                    self.local = Local::Orphan;
                    client.add(|own| build::ready(own, b'E'));
                }
            }
            // Drivers close statements by themselves, and would not hear what they are told in answer.
            (Local::OrphanUntold, b'C') => {
                if let Target::Statement(name) = frontend::target(body)? {
                    context.statements.remove(name);
                }
                client.add(build::close_complete);
            }
            (Local::OrphanUntold, b'P' | b'B' | b'D' | b'E') => {
                say(client, refusal);
                self.local = Local::OrphanToSync;
            }
            (Local::OrphanUntold, b'S') => client.add(|own| build::ready(own, b'T')),
            (Local::ToSync, b'S') => {
                client.add(|own| build::ready(own, status));
                self.local = Local::No;
            }
            (Local::Orphan, b'Q') => {
                if frontend::query(body).is_ok_and(|sql| ends_transaction(&judge.route(sql))) {
                    client.add(|own| build::command_complete(own, "ROLLBACK"));
                    self.transaction_over();
                    client.add(|own| build::ready(own, b'I'));
                } else {
                    client.add(aborted);
                    client.add(|own| build::ready(own, b'E'));
                }
            }
            (Local::Orphan, b'F') => {
                client.add(aborted);
                client.add(|own| build::ready(own, b'E'));
            }
            (Local::Orphan | Local::OrphanToSync, b'S') => {
                self.local = Local::Orphan;
                client.add(|own| build::ready(own, b'E'));
            }
            (Local::OrphanEnded, b'S') => {
                self.transaction_over();
                client.add(|own| build::ready(own, b'I'));
            }
            (Local::Orphan, b'P' | b'B' | b'D' | b'E' | b'C') => {
                if !self.extended_locally(head.tag, body, context, client)? {
                    client.add(aborted);
                    self.local = Local::OrphanToSync;
                }
            }
            (
                Local::No
                | Local::ToSync
                | Local::OrphanUntold
                | Local::Orphan
                | Local::OrphanToSync
                | Local::OrphanEnded,
                _,
            ) => {}
        }
        Ok(())
    }

    /// One message of the extended protocol in a lost transaction; whether it could be answered.
    fn extended_locally(
        &mut self,
        tag: u8,
        body: &[u8],
        context: &mut LocalContext<'_>,
        client: &mut Out,
    ) -> Result<bool, Malformed> {
        let LocalContext { statements, interner, judge, .. } = context;
        match tag {
            b'P' => {
                let parse = frontend::parse(body)?;
                let route = judge.route(parse.sql);
                if !ends_transaction(&route) || statements.get(parse.name).is_some() {
                    return Ok(false);
                }
                if !parse.name.is_empty() {
                    let statement = interner.intern(parse.definition, &self.state.settings().scope(), judge);
                    statements.insert(parse.name, statement);
                    client.add(build::parse_complete);
                    return Ok(true);
                }
                statements.new_unnamed();
                statements.unnamed = Some(parse.definition.to_vec());
                statements.unnamed_route = Some(route);
                statements.unnamed_writes = true;
                client.add(build::parse_complete);
            }
            b'B' => {
                let head = frontend::bind_head(body).ok_or(Malformed("a Bind whose names do not end"))?;
                let route = match head.statement {
                    b"" => statements.unnamed_route.clone(),
                    name => statements.get(name).map(|known| known.route(judge)),
                };
                if !route.is_some_and(|route| ends_transaction(&route)) {
                    return Ok(false);
                }
                client.add(build::bind_complete);
            }
            b'D' => {
                if let Target::Statement(_) = frontend::target(body)? {
                    client.add(build::no_parameters);
                }
                client.add(build::no_data);
            }
            b'E' => {
                client.add(|own| build::command_complete(own, "ROLLBACK"));
                self.local = Local::OrphanEnded;
            }
            _ => {
                if let Target::Statement(name) = frontend::target(body)? {
                    statements.remove(name);
                }
                client.add(build::close_complete);
            }
        }
        Ok(true)
    }

    fn transaction_over(&mut self) {
        self.local = Local::No;
        self.status = b'I';
        self.state.ready(b'I');
    }
}

/// Whether a text is the end of a transaction and nothing else.
fn ends_transaction(route: &Route) -> bool {
    route.parts == 1
        && matches!(route.effects.as_slice(), [only] if matches!(only.effect, Effect::Commit { .. } | Effect::Rollback { .. }))
}

/// Whether a text is a ROLLBACK and nothing else: then there is nothing to be told.
fn is_rollback(route: &Route) -> bool {
    ends_transaction(route)
        && matches!(route.effects.as_slice(), [only] if matches!(only.effect, Effect::Rollback { .. }))
}

fn aborted(own: &mut Vec<u8>) {
    let complaint = Complaint {
        severity: "ERROR",
        sqlstate: "25P02",
        message: "current transaction is aborted, commands ignored until end of transaction block",
        detail: "its server was lost; the transaction was rolled back",
        hint: "",
    };
    build::error(own, &complaint);
}
