//! The server's side: answers go on as they are, except those that the client did not ask for.

use super::{Described, Desync, Exchange, Expect, Fit, INSPECT_BYTES_MAX, Refused};
use crate::out::Out;
use crate::prepared::Describing;
use wire::frame::{HEADER_BYTES, c_string, header};
use wire::{Header, backend, build};

/// Longest description of a statement's columns that is read: more than 1,600 columns, which is all that a table can have.
const DESCRIPTION_BYTES_MAX: usize = 1 << 20;
/// Where servers say that a statement's columns are not what they were when it was prepared.
const PLAN_CHECK: &str = "RevalidateCachedQuery";

/// Whether an error proves that a server in recovery did not do what it was asked.
fn refusal(sqlstate: &str, message: &str, routine: Option<&str>) -> Option<Refused> {
    routing::refusal(sqlstate, message, routine).map(|refusal| match refusal {
        routing::Refusal::NeedsPrimary => Refused::NeedsPrimary,
        routing::Refusal::Conflict => Refused::Conflict,
    })
}

/// The field of an error that names the routine in the server.
fn routine(mut body: &[u8]) -> Option<&str> {
    while let Some((kind, rest)) = body.split_first() {
        let (text, rest) = c_string(rest).ok()?;
        if *kind == b'R' {
            return std::str::from_utf8(text).ok();
        }
        body = rest;
    }
    None
}

/// What PostgreSQL says of a statement whose columns changed; drivers know it by these fields, and prepare it anew.
fn cannot_be_read(own: &mut Vec<u8>) {
    build::message(own, b'E', |out| {
        for (kind, text) in [
            (b'S', "ERROR"),
            (b'V', "ERROR"),
            (b'C', "0A000"),
            (b'M', "cached plan must not change result type"),
            (b'D', "its parameters or columns are not what they were when it was described"),
            (b'R', PLAN_CHECK),
        ] {
            out.push(kind);
            out.extend_from_slice(text.as_bytes());
            out.push(0);
        }
        out.push(0);
    });
}

impl Exchange {
    /// Reads what the server sent; bytes for the client go to `client`. Returns how many bytes were used; the rest
    /// must be offered again, with more behind it.
    pub fn server_bytes(&mut self, input: &[u8], client: &mut Out) -> Result<usize, Desync> {
        let mut at = 0;
        loop {
            if self.streaming {
                client.pass(at..input.len());
                return Ok(input.len());
            }
            if self.server_skip > 0 {
                let take = self.server_skip.min(input.len() - at);
                if !self.server_skip_swallow {
                    client.pass(at..at + take);
                }
                self.server_skip -= take;
                at += take;
            }
            let rest = &input[at..];
            let head = match header(rest) {
                Ok(Some(head)) => head,
                Ok(None) => return Ok(at),
                Err(malformed) => return Err(Desync(malformed.to_string())),
            };
            let total = head.total();
            let bulk = matches!(head.tag, b'D' | b'd' | b'T' | b't' | b'V');
            if rest.len() < total && !bulk && total <= INSPECT_BYTES_MAX {
                return Ok(at);
            }
            if rest.len() < total && total <= DESCRIPTION_BYTES_MAX && self.reads_description(head.tag) {
                return Ok(at);
            }
            let here = total.min(rest.len());
            // Not before what may come at any time or means that the request was not answered at all.
            if !matches!(head.tag, b'E' | b'N' | b'S' | b'A') {
                self.say_elided(client);
            }
            let show = self.answer(head, &rest[HEADER_BYTES.min(here)..here], client)? && self.refused.is_none();
            if show {
                self.answered = true;
                self.partly = head.tag != b'Z';
                client.pass(at..at + here);
            }
            self.server_skip = total - here;
            self.server_skip_swallow = !show;
            at += here;
            if self.server_skip == 0 && (self.answered || self.only_elided()) {
                self.say_elided(client);
            }
        }
    }

    /// Whether nothing is due that the server would answer.
    pub(super) fn only_elided(&self) -> bool {
        self.ring.iter().all(|due| matches!(due, Expect::Elided | Expect::CloseElided | Expect::CopyEnd))
    }

    /// Gives the answers that are due and that the server will not give.
    pub(super) fn say_elided(&mut self, client: &mut Out) {
        let silent = self.refused.is_some();
        loop {
            match self.ring.front() {
                Some(Expect::Elided) => {
                    self.names.pop_front();
                    if !silent {
                        client.add(build::parse_complete);
                        self.answered = true;
                    }
                }
                Some(Expect::CloseElided) => {
                    self.closing.pop_front();
                    if !silent {
                        client.add(build::close_complete);
                        self.answered = true;
                    }
                }
                Some(Expect::CopyEnd) => {}
                _ => return,
            }
            self.ring.pop_front();
        }
    }

    /// Whether a message is part of a description that is read.
    fn reads_description(&self, tag: u8) -> bool {
        matches!(tag, b't' | b'T')
            && matches!(
                self.ring.front(),
                Some(Expect::Check { .. } | Expect::Describe(Described::Named(_) | Described::Unnamed(_)))
            )
    }

    /// Reads a part of a statement's description.
    fn read_description(&mut self, tag: u8, body: &[u8], front: Expect) {
        match tag {
            b't' => self.describing.parameters(body),
            b'T' => self.describing.columns(body),
            _ => {}
        }
        if tag == b't' {
            return;
        }
        let shape = std::mem::take(&mut self.describing).shape();
        match front {
            Expect::Check { id } => {
                self.checked = Some((id, shape));
                if id != 0 {
                    self.shapes.push((Described::Named(id), shape));
                }
            }
            Expect::Describe(of) => {
                if let Described::Named(_) = of
                    && let Some(prepared) = self.asked.pop_front()
                {
                    prepared.told.set(shape);
                }
                if of != Described::Other {
                    self.shapes.push((of, shape));
                }
            }
            _ => {}
        }
    }

    /// Takes one answer; whether the client is to see it.
    fn answer(&mut self, head: Header, body: &[u8], client: &mut Out) -> Result<bool, Desync> {
        let front = self.ring.front().copied();
        let swallowed = matches!(front, Some(Expect::Injected | Expect::Xid { .. }));
        match head.tag {
            b'D' | b'd' | b'T' | b't' | b'V' | b'C' | b'I' | b's' | b'n' | b'1' | b'2' | b'3' | b'c' => {
                self.in_order(head.tag, body, front)
            }
            b'Z' => self.ready(body, front),
            b'E' => self.error(body, client),
            b'S' => {
                if let Ok((name, value)) = backend::parameter_status(body) {
                    self.reported.push((name.to_vec(), value.to_vec()));
                }
                Ok(!swallowed)
            }
            b'G' => {
                self.copy_begins();
                Ok(!swallowed)
            }
            b'N' => {
                // "canceling the wait for synchronous replication": by a shutdown, or by a request to cancel.
                let waits = matches!(front, Some(Expect::Query { .. } | Expect::Execute { .. } | Expect::Sync));
                let state = backend::sqlstate(body);
                if waits && matches!(state, Some(b"57P01" | b"57014")) {
                    self.wait_cancelled = true;
                }
                // Last words of a connection that the client does not lose.
                Ok(!swallowed && !matches!(state, Some(b"57P01" | b"57P02")))
            }
            b'H' => Ok(!swallowed),
            // A shared server may have been told to listen by another client, where that could not be seen.
            b'A' => Ok((self.owns_server || self.state.is_pinned()) && !self.is_heard_elsewhere(body)),
            b'W' => {
                self.streaming = true;
                Ok(true)
            }
            b'v' | b'K' | b'R' => Ok(true),
            other => Err(Desync(format!("message {:?} of the server is unknown", char::from(other)))),
        }
    }

    fn is_heard_elsewhere(&self, notification: &[u8]) -> bool {
        backend::notification(notification).is_ok_and(|(channel, _)| self.heard_elsewhere.has(channel))
    }

    fn in_order(&mut self, tag: u8, body: &[u8], front: Option<Expect>) -> Result<bool, Desync> {
        let unfit = || Desync(format!("answer {:?} came where {front:?} was due", char::from(tag)));
        let Some(front) = front else { return Err(unfit()) };
        if let (Expect::Check { .. } | Expect::Describe(_), b't' | b'T' | b'n') = (front, tag) {
            self.read_description(tag, body, front);
        }
        let (done, show) = match (front, tag) {
            (Expect::Query { effects: true }, b'C') => {
                if let Some(route) = self.effects.front().cloned() {
                    self.apply(&route, Some(self.parts_done), body);
                    self.parts_done += 1;
                }
                (false, true)
            }
            (Expect::Execute { effects: true }, b'C' | b's' | b'I') => {
                if let Some(route) = self.effects.pop_front() {
                    self.apply(&route, None, body);
                }
                (true, true)
            }
            (Expect::Query { .. }, b'D' | b'd' | b'T' | b'C' | b'I' | b'c') => (false, true),
            (Expect::Injected, b'D' | b'T' | b'C' | b'I') => (false, false),
            (Expect::Xid { .. }, b'1' | b'2' | b'D' | b'C' | b'3') => {
                self.hear_xid(tag, body);
                (false, false)
            }
            (Expect::Function, b'V') => (false, true),
            (Expect::Parse { wanted, named, .. }, b'1') => {
                if named {
                    self.names.pop_front();
                }
                (true, wanted)
            }
            (Expect::Bind { .. }, b'2') | (Expect::Close, b'3') | (Expect::Describe(_), b'T' | b'n') => (true, true),
            (Expect::CloseInjected, b'3') | (Expect::Check { .. }, b'T' | b'n') => (true, false),
            (Expect::Check { .. }, b't') => (false, false),
            (Expect::Describe(_), b't') | (Expect::Execute { .. }, b'D' | b'd' | b'c') => (false, true),
            (Expect::Execute { .. }, b'C' | b'I' | b's') => (true, true),
            _ => return Err(unfit()),
        };
        if done {
            self.ring.pop_front();
        }
        Ok(show)
    }

    fn ready(&mut self, body: &[u8], front: Option<Expect>) -> Result<bool, Desync> {
        let status = *body.first().ok_or(Desync("ReadyForQuery without a state".into()))?;
        let show = match front {
            Some(Expect::Query { effects: true }) => {
                self.effects.pop_front();
                self.parts_done = 0;
                true
            }
            Some(Expect::Query { effects: false } | Expect::Function | Expect::Sync) => true,
            Some(Expect::Injected | Expect::Xid { .. }) => false,
            other => return Err(Desync(format!("ReadyForQuery came where {other:?} was due"))),
        };
        self.ring.pop_front();
        self.status = status;
        self.xid_ready(matches!(front, Some(Expect::Xid { .. })));
        self.copy_in = false;
        if show {
            self.wait_cancelled = false;
            self.state.ready(status);
            self.transaction_wrote = status != b'I' && (self.transaction_wrote || self.request_writes);
            self.request_writes &= !self.ring.is_empty();
        }
        if status == b'I' {
            self.portals.clear();
        }
        Ok(show)
    }

    fn error(&mut self, body: &[u8], client: &mut Out) -> Result<bool, Desync> {
        let fields = backend::error_fields(body);
        if fields.severity == "FATAL" || fields.severity == "PANIC" {
            // What becomes of the client is not the server's to say.
            self.fatal = Some(body.to_vec());
            return Ok(false);
        }
        match self.ring.front() {
            Some(Expect::Injected | Expect::Xid { .. }) => {}
            // Only the first word of an answer can still be taken back.
            Some(_) if self.may_retry && !self.answered && self.refused.is_none() && self.status == b'I' => {
                let word = refusal(&fields.sqlstate, &fields.message, routine(body));
                self.refused = word.filter(|word| *word == Refused::Conflict || !self.state.reads_by_own_will());
            }
            Some(_) | None => {}
        }
        let silent = |due: &&Expect| matches!(due, Expect::Elided | Expect::CloseElided | Expect::CopyEnd);
        let front = self.ring.iter().find(|due| !silent(due)).copied();
        let stale = matches!(front, Some(Expect::Bind { fit: Fit::Stale, .. }));
        if stale || routine(body) == Some(PLAN_CHECK) {
            match front {
                Some(Expect::Bind { id, fit }) => self.plan_refused(id, fit),
                Some(Expect::Describe(Described::Named(id))) => {
                    let told = self.asked.front().is_some_and(|prepared| prepared.told.get() != 0);
                    self.plan_refused(id, if told { Fit::Told } else { Fit::Untold });
                }
                _ => {}
            }
        }
        self.say_elided(client);
        self.describing = Describing::default();
        if stale && self.refused.is_none() {
            client.add(cannot_be_read);
            self.answered = true;
            self.partly = true;
        }
        match front {
            Some(Expect::Injected) => {
                self.injected_error.get_or_insert_with(|| body.to_vec());
                return Ok(false);
            }
            Some(Expect::Xid { parsing }) => {
                self.xid_failed(parsing);
                return Ok(false);
            }
            Some(Expect::Query { .. } | Expect::Function | Expect::Sync) => {}
            None => return Err(Desync(format!("an error that belongs to nothing: {}", fields.message))),
            Some(_) => {
                // The rest of the segment is ignored by the server, so its answers will not come.
                match self.ring.iter().position(|expect| *expect == Expect::Sync) {
                    Some(sync) => self.drop_expected(sync),
                    None => {
                        self.drop_expected(usize::MAX);
                        self.ignoring = true;
                    }
                }
            }
        }
        self.copy_in = false;
        self.state.failed();
        Ok(!stale)
    }

    /// A statement is not what it was when it was prepared (rule P-6). A client that was told nothing of it need not know;
    /// one that was must prepare it anew, unless another server has it as it was.
    fn plan_refused(&mut self, id: u32, fit: Fit) {
        let may_retry = self.may_retry && !self.answered && self.refused.is_none() && self.status == b'I';
        match fit {
            Fit::Untold if id != 0 => {
                self.refused_plans.push(id);
                if may_retry {
                    self.refused = Some(Refused::Replan);
                }
            }
            Fit::Stale if may_retry && self.elsewhere => self.refused = Some(Refused::NeedsPrimary),
            Fit::Told | Fit::Stale if id != 0 => {
                self.refused_plans.push(id);
                self.outdated.push(id);
            }
            Fit::Told | Fit::Stale | Fit::Untold => {}
        }
    }

    /// The server waits for the client's data. A Sync that was sent behind the Execute is ignored by a copying server
    /// and so will not be answered, except where it stands behind the end of the copying.
    fn copy_begins(&mut self) {
        let end = self.ring.iter().position(|expect| *expect == Expect::CopyEnd);
        let stop = end.unwrap_or(self.ring.len());
        let simple = matches!(self.ring.front(), Some(Expect::Query { .. } | Expect::Injected));
        let mut index = 0;
        self.ring.retain(|expect| {
            let keep = index == 0 || index >= stop || simple || *expect != Expect::Sync;
            index += 1;
            keep
        });
        match self.ring.iter().position(|expect| *expect == Expect::CopyEnd) {
            Some(end) => {
                self.ring.remove(end);
            }
            None => {
                self.copy_in = true;
                // A Sync that did not count leaves the segment open until the one behind the data.
                self.segment_open |= !simple;
            }
        }
    }
}
