//! The client's side: messages go on as they are, except that names of statements become the server's names.

use super::{Context, Described, Exchange, Expect, Fit, INSPECT_BYTES_MAX, Stop};
use crate::out::Out;
use crate::own;
use crate::prepared::{ClientStatements, GONE, PREFIX, Prepared, Shape, Statement};
use routing::{Class, Effect, Route};
use std::ops::Range;
use std::rc::Rc;
use wire::frame::{HEADER_BYTES, c_string, client_header};
use wire::frontend::{self, Target};
use wire::{Header, Malformed, build};

/// Longest Parse of a named statement.
const PARSE_BYTES_MAX: usize = 16 << 20;
/// A name that no server knows: what a client meant by it must not be answered by another client's statement.
const NOBODY: &[u8] = b"__stemma_none";

/// How many bytes of a message must be there before it can be passed on. Small messages, and those whose texts matter,
/// are read whole; of the others the names are enough.
fn wanted(head: Header, rest: &[u8]) -> Result<usize, Malformed> {
    let long = head.total() > INSPECT_BYTES_MAX;
    Ok(match head.tag {
        b'd' => HEADER_BYTES,
        b'B' => head.total().min(HEADER_BYTES + 2 * 1024),
        b'Q' | b'F' if long => HEADER_BYTES,
        // A named definition must be had whole: it may have to be given to another server later.
        b'P' if long => match rest.get(HEADER_BYTES) {
            Some(0) => HEADER_BYTES + 1,
            Some(_) if head.total() > PARSE_BYTES_MAX => {
                return Err(Malformed("a named statement that is longer than 16 MiB"));
            }
            Some(_) => head.total(),
            None => HEADER_BYTES + 1,
        },
        _ => head.total(),
    })
}

/// The kind of the first message, once enough of it is there to be passed on.
pub fn first_message(input: &[u8]) -> Result<Option<u8>, Malformed> {
    let Some(head) = client_header(input)? else { return Ok(None) };
    Ok((input.len() >= wanted(head, input)?).then_some(head.tag))
}

impl Exchange {
    /// Reads what the client sent: bytes for the server go to `server`, answers that we give ourselves to `client`.
    /// Returns how many bytes were used; the rest must be offered again, with more behind it.
    pub fn client_bytes(
        &mut self,
        input: &[u8],
        context: &mut Context<'_>,
        server: &mut Out,
        client: &mut Out,
    ) -> Result<(usize, Stop), Malformed> {
        let mut at = 0;
        loop {
            if self.streaming {
                server.pass(at..input.len());
                return Ok((input.len(), Stop::More));
            }
            if self.client_skip > 0 {
                let take = self.client_skip.min(input.len() - at);
                server.pass(at..at + take);
                self.client_skip -= take;
                at += take;
            }
            let rest = &input[at..];
            let Some(head) = client_header(rest)? else { return Ok((at, Stop::More)) };
            if head.tag == b'X' {
                return Ok((at, Stop::Terminate));
            }
            if rest.len() < wanted(head, rest)? {
                return Ok((at, Stop::More));
            }
            let whole = head.total().min(rest.len());
            // What is for the router is answered by it, once all that was sent before is answered.
            if !self.segment_open && own::is_ours(head.tag, &rest[HEADER_BYTES..whole], context.own) {
                return Ok((at, Stop::Boundary));
            }
            if self.must_wait(head.tag, &rest[HEADER_BYTES..whole]) {
                return Ok((at, Stop::Boundary));
            }
            if !self.message(head, &rest[..whole], at, context, server, client)? {
                self.client_skip = 0;
                return Ok((at, Stop::Boundary));
            }
            self.leading = false;
            at += whole;
        }
    }

    /// Whether what a message means depends on an earlier segment that is not answered yet: one that fails makes no
    /// statements, and a DEALLOCATE that fails takes none away. Whatever is waited for ends with its own Sync or is a
    /// simple query, so it is answered whether or not more is sent.
    fn must_wait(&self, tag: u8, body: &[u8]) -> bool {
        if self.ring.len() < 2 && self.effects.is_empty() {
            return false;
        }
        let name = match tag {
            b'P' => c_string(body).map(|(name, _)| name),
            b'B' => frontend::bind_head(body).map(|names| names.statement).ok_or(Malformed("")),
            b'D' | b'C' => frontend::target(body).map(|target| match target {
                Target::Statement(name) => name,
                Target::Portal(_) => b"",
            }),
            _ => return false,
        };
        let Ok(name) = name else { return false };
        let ends = |due: &Expect| matches!(due, Expect::Sync | Expect::Query { .. } | Expect::Function);
        let Some(last) = self.ring.iter().rposition(ends) else { return false };
        if name.is_empty() {
            return false;
        }
        let forgets = |effect: &Effect| matches!(effect, Effect::Deallocate(_) | Effect::Discard(_));
        if self.effects.iter().any(|route| route.effects.iter().any(|traced| forgets(&traced.effect))) {
            return true;
        }
        let named = || self.names.iter().any(|pending| **pending == *name);
        self.ring.iter().take(last).any(|due| match due {
            Expect::Parse { named: true, .. } => tag == b'P' && named(),
            Expect::Elided => named(),
            Expect::CloseElided => self.closing.iter().any(|(closing, _)| **closing == *name),
            _ => false,
        })
    }

    /// Whether the server is told of a statement by an earlier segment that may fail yet; `injected`: by us, unasked.
    fn uncertain(&self, statement: u32, injected: bool) -> bool {
        let ends = |due: &Expect| matches!(due, Expect::Sync | Expect::Query { .. } | Expect::Function);
        let told = |due: &Expect| matches!(due, Expect::Parse { id, wanted, .. } if *id == statement && !(injected && *wanted));
        let first = self.ring.iter().position(told);
        first.is_some_and(|first| self.ring.iter().skip(first).any(ends))
    }

    /// Takes one message; `false` where it must be offered again once answers have come.
    fn message(
        &mut self,
        head: Header,
        bytes: &[u8],
        at: usize,
        context: &mut Context<'_>,
        server: &mut Out,
        client: &mut Out,
    ) -> Result<bool, Malformed> {
        let body = &bytes[HEADER_BYTES..];
        self.client_skip = head.total() - bytes.len();
        let here = at..at + bytes.len();
        let judged = context.judged.take();
        match head.tag {
            b'Q' => {
                self.ask_xid(context.server, server);
                // A simple query destroys the unnamed statement.
                context.client.forget_unnamed();
                context.server.forget_unnamed();
                self.query(body, judged, here, context, server);
            }
            b'F' => {
                self.ask_xid(context.server, server);
                self.note(Class::Write);
                self.expect(Expect::Function);
                server.pass(here);
            }
            b'S' => {
                if !self.copy_in {
                    self.sync();
                }
                server.pass(here);
            }
            b'P' => {
                self.ask_xid(context.server, server);
                self.parse(body, here, context, server)?;
            }
            b'B' => {
                self.ask_xid(context.server, server);
                return self.bind(body, head, here, context, server);
            }
            b'D' => self.describe(body, here, context, server)?,
            b'C' => self.close(body, here, context, server)?,
            b'E' => {
                self.ask_xid(context.server, server);
                self.execute(body)?;
                server.pass(here);
            }
            b'H' => {
                server.pass(here);
                // The client waits for what it has asked, and no server will say this.
                if self.only_elided() {
                    self.say_elided(client);
                }
            }
            b'c' | b'f' => {
                // Where the server is not copying yet, it will be when this arrives; the entry marks the place.
                if self.copy_in {
                    self.copy_in = false;
                } else if !self.ring.is_empty() {
                    self.ring.push_back(Expect::CopyEnd);
                }
                server.pass(here);
            }
            _ => server.pass(here),
        }
        Ok(true)
    }

    fn query(
        &mut self,
        body: &[u8],
        judged: Option<Rc<Route>>,
        here: Range<usize>,
        context: &mut Context<'_>,
        server: &mut Out,
    ) {
        // A text that is too long to be collected is judged by what can be seen of it, which is never enough to be sure.
        let route = judged.unwrap_or_else(|| context.judge.route(frontend::query(body).unwrap_or(body)));
        let effects = !route.effects.is_empty();
        self.note_sent(&route);
        self.note(route.class);
        let replaced = !self.ignoring && self.deallocates(&route, context.client);
        if effects && !self.ignoring {
            self.effects.push_back(route);
        }
        if replaced {
            self.begins();
            self.stand_in(server);
        }
        self.expect(Expect::Query { effects });
        match replaced {
            true => server.add(|own| build::query(own, &format!("DEALLOCATE {GONE}"))),
            false => server.pass(here),
        }
    }

    /// Whether a text is a DEALLOCATE of a statement that was prepared by the protocol. Servers know that under another
    /// name, and other clients may use it.
    fn deallocates(&self, route: &Route, client: &ClientStatements) -> bool {
        route.parts == 1
            && matches!(route.effects.as_slice(), [only] if matches!(&only.effect, Effect::Deallocate(Some(name))
                if !self.state.has_prepared(&name.0) && client.get(&name.0).is_some()))
    }

    /// Makes the server know a statement that may be deallocated in place of the client's. Both messages work in a failed
    /// transaction too, in which the DEALLOCATE behind them then fails as it should.
    fn stand_in(&mut self, server: &mut Out) {
        server.add(|own| build::close_statement(own, GONE.as_bytes()));
        self.ring.push_back(Expect::CloseInjected);
        server.add(|own| build::parse(own, GONE.as_bytes(), b"\0\0\0"));
        self.ring.push_back(Expect::Parse { id: u32::MAX, wanted: false, named: false });
    }

    fn execute(&mut self, body: &[u8]) -> Result<(), Malformed> {
        let mut effects = false;
        if !self.portals.is_empty() {
            let (portal, _) = c_string(body)?;
            if let Some((_, route)) = self.portals.iter().find(|(name, _)| **name == *portal)
                && !self.ignoring
            {
                let route = route.clone();
                self.note_sent(&route);
                self.effects.push_back(route);
                effects = true;
            }
        }
        self.extended(Expect::Execute { effects });
        Ok(())
    }

    /// Remembers what executing a portal will do.
    fn note_portal(&mut self, portal: &[u8], statement: &[u8], prepared: Option<&Prepared>, context: &Context<'_>) {
        if !self.portals.is_empty() {
            self.portals.retain(|(name, _)| **name != *portal);
        }
        let route = match statement {
            b"" => context.client.unnamed_route.clone(),
            _ => prepared.map(|prepared| prepared.statement.route(&context.judge)),
        };
        self.note(match (&route, statement) {
            (Some(route), _) => route.class,
            (None, b"") if !context.client.unnamed_writes => Class::Read,
            (None, _) => Class::Write,
        });
        if let Some(route) = route.filter(|route| !route.effects.is_empty()) {
            self.portals.push((portal.into(), route));
        }
    }

    fn sync(&mut self) {
        if self.ignoring {
            self.ignoring = false;
        }
        self.begins();
        self.segment_open = false;
        self.ring.push_back(Expect::Sync);
    }

    /// A message that is answered: where nothing else is under way, a request begins with it. What was answered of a
    /// request that is still under way stays answered, or it might be sent again and be answered twice.
    fn begins(&mut self) {
        if self.ring.is_empty() && !self.segment_open {
            self.answered = false;
            self.made.clear();
        }
    }

    /// Notes the answer to a message outside the extended protocol.
    fn expect(&mut self, expect: Expect) {
        // A server that waits for a Sync ignores these too.
        if !self.ignoring {
            self.begins();
            self.ring.push_back(expect);
        }
    }

    /// Notes the answer to a message of the extended protocol.
    fn extended(&mut self, expect: Expect) {
        self.begins();
        self.segment_open = true;
        if !self.ignoring {
            self.ring.push_back(expect);
        }
    }

    fn parse(
        &mut self,
        body: &[u8],
        here: Range<usize>,
        context: &mut Context<'_>,
        server: &mut Out,
    ) -> Result<(), Malformed> {
        if self.client_skip > 0 {
            // An unnamed one that is too long to be kept: it serves as long as the server is attached.
            context.client.forget_unnamed();
            context.server.forget_unnamed();
            context.client.unnamed_writes = true;
            context.client.unnamed_loaded = true;
            self.extended(Expect::Parse { id: 0, wanted: true, named: false });
            server.pass(here);
            return Ok(());
        }
        let parse = frontend::parse(body)?;
        if parse.name.is_empty() {
            let route = context.judge.route(parse.sql);
            let replaced = self.deallocates(&route, context.client);
            let kept = context.client.unnamed.get_or_insert_default();
            kept.clear();
            match replaced {
                true => {
                    kept.extend_from_slice(format!("DEALLOCATE {GONE}").as_bytes());
                    kept.extend_from_slice(&parse.definition[parse.sql.len()..]);
                }
                false => kept.extend_from_slice(parse.definition),
            }
            let definition = if replaced { kept.clone() } else { Vec::new() };
            context.client.new_unnamed();
            context.client.unnamed_sent(context.server);
            context.client.unnamed_writes = route.class == Class::Write;
            context.client.unnamed_route = (!route.effects.is_empty()).then_some(route);
            self.extended(Expect::Parse { id: 0, wanted: true, named: false });
            match replaced {
                true => server.add(|own| build::parse(own, b"", &definition)),
                false => server.pass(here),
            }
            return Ok(());
        }
        if self.ignoring {
            server.pass(here);
            return Ok(());
        }
        if context.client.get(parse.name).is_some() {
            // The server refuses a second statement under a name that exists, if the text is one at all; so it does
            // here, and no name that others know is touched.
            self.begins();
            self.segment_open = true;
            self.stand_in(server);
            server.add(|own| build::parse(own, GONE.as_bytes(), parse.definition));
            self.extended(Expect::Parse { id: u32::MAX, wanted: true, named: false });
            return Ok(());
        }
        let statement = context.interner.intern(parse.definition, &self.state.settings().scope(), &context.judge);
        context.client.insert(parse.name, statement.clone());
        self.names.push_back(parse.name.into());
        let known = context.server.touch(statement.id);
        // What the server has may be older than a change of its tables, which a new statement would show. Within a
        // transaction it stays: to close it would close its portals.
        let fresh = known.is_some_and(|known| {
            let current = known.generation == context.judge.generation && !self.state.is_pinned();
            !known.refused && (current || !self.at_rest())
        });
        // In a failed transaction a Parse fails, so the server must see it.
        if fresh && self.status != b'E' && !self.uncertain(statement.id, false) {
            // Said before the next answer of the server: until then nothing was answered, and the request may be sent
            // again elsewhere.
            self.extended(Expect::Elided);
        } else {
            self.tell(&statement, known.is_some(), true, context, server);
        }
        self.made.push(parse.name.into());
        Ok(())
    }

    /// Makes the server know a statement.
    fn ensure(&mut self, statement: &Statement, context: &mut Context<'_>, server: &mut Out) {
        let known = context.server.touch(statement.id);
        if known.is_some_and(|known| !known.refused) && !self.uncertain(statement.id, true) {
            return;
        }
        self.tell(statement, known.is_some(), false, context, server);
    }

    /// Tells the server of a statement, in place of what it knows by that name. `wanted`: the client's own Parse.
    fn tell(&mut self, statement: &Statement, known: bool, wanted: bool, context: &mut Context<'_>, server: &mut Out) {
        self.make_room(context, server);
        context.server.insert(statement.id, context.judge.generation);
        if known {
            server.add(|own| build::close_statement(own, &statement.name));
            self.extended(Expect::CloseInjected);
        }
        server.add(|own| build::parse(own, &statement.name, &statement.definition));
        self.extended(Expect::Parse { id: statement.id, wanted, named: wanted });
    }

    /// Whether a statement is on this server what its client was told on another. Where that is not known the server is
    /// asked: `None` until it has answered.
    fn fits(
        &mut self,
        name: &[u8],
        prepared: Option<&Prepared>,
        context: &mut Context<'_>,
        server: &mut Out,
    ) -> Option<Fit> {
        let (id, told): (u32, Shape) = match prepared {
            Some(prepared) => (prepared.statement.id, prepared.told.get()),
            None if name.is_empty() => (0, context.client.unnamed_told),
            None => return Some(Fit::Untold),
        };
        if self.ring.iter().any(|due| matches!(due, Expect::Check { .. })) {
            return None;
        }
        if told == 0 {
            return Some(Fit::Untold);
        }
        let checked = self.checked.take().filter(|(of, _)| *of == id).map(|(_, shape)| shape);
        let known = prepared.and_then(|_| context.server.touch(id));
        let is_so = match prepared {
            Some(_) => known.is_some_and(|known| known.shape == told && !known.refused),
            // The server compares by itself what it has had all the time.
            None => checked.unwrap_or(told) == told && context.client.unnamed_loaded,
        };
        match checked {
            _ if is_so => return Some(Fit::Told),
            Some(_) => return Some(Fit::Stale),
            None => {}
        }
        let leading = self.quiet();
        match prepared {
            Some(prepared) => {
                self.tell(&prepared.statement, known.is_some(), false, context, server);
                server.add(|own| build::describe_statement(own, &prepared.statement.name));
            }
            None => {
                self.resolve(name, None, context, server);
                server.add(|own| build::describe_statement(own, name));
            }
        }
        self.extended(Expect::Check { id });
        server.add(build::flush);
        self.leading = leading;
        None
    }

    /// Closes statements that were not used for long. Only between transactions: closing a statement closes its
    /// portals, and one of them may be in use.
    fn make_room(&mut self, context: &mut Context<'_>, server: &mut Out) {
        if !self.at_rest() {
            return;
        }
        while let Some(old) = context.server.evict() {
            server.add(|own| build::close_statement(own, format!("{PREFIX}{old}").as_bytes()));
            self.extended(Expect::CloseInjected);
        }
    }

    /// The server's name for what the client calls `name`; the server is told of the statement if need be. `None`
    /// where the name may go on as it is.
    fn resolve<'p>(
        &mut self,
        name: &[u8],
        prepared: Option<&'p Prepared>,
        context: &mut Context<'_>,
        server: &mut Out,
    ) -> Option<&'p [u8]> {
        if name.is_empty() {
            if context.client.unnamed_loaded {
                return None;
            }
            let Some(definition) = context.client.unnamed.take() else { return Some(NOBODY) };
            server.add(|own| build::parse(own, b"", &definition));
            context.client.unnamed = Some(definition);
            context.client.unnamed_sent(context.server);
            self.extended(Expect::Parse { id: 0, wanted: false, named: false });
            return None;
        }
        match prepared {
            Some(prepared) => {
                self.ensure(&prepared.statement, context, server);
                Some(&prepared.statement.name)
            }
            None if name.starts_with(PREFIX.as_bytes()) => Some(NOBODY),
            // It may have been made by SQL's PREPARE; if not, the server says so.
            None => None,
        }
    }

    fn bind(
        &mut self,
        body: &[u8],
        head: Header,
        here: Range<usize>,
        context: &mut Context<'_>,
        server: &mut Out,
    ) -> Result<bool, Malformed> {
        let names = frontend::bind_head(body).ok_or(Malformed("a Bind whose names do not end"))?;
        let prepared = match names.statement {
            b"" => None,
            name => context.client.prepared(name).cloned(),
        };
        let fit = match self.ignoring || self.status == b'E' {
            true => Fit::Untold,
            false => match self.fits(names.statement, prepared.as_deref(), context, server) {
                Some(fit) => fit,
                None => return Ok(false),
            },
        };
        self.note_portal(names.portal, names.statement, prepared.as_deref(), context);
        if !self.ignoring
            && names.statement.is_empty()
            && context.client.unnamed_route.as_ref().is_some_and(|route| self.deallocates(route, context.client))
        {
            self.begins();
            self.segment_open = true;
            self.stand_in(server);
        }
        let id = prepared.as_ref().map_or(0, |prepared| prepared.statement.id);
        let renamed = match (fit, &prepared) {
            _ if self.ignoring => None,
            (Fit::Stale, _) => {
                // It is compared again, should it be bound again.
                context.client.unnamed_loaded &= id != 0;
                Some(NOBODY)
            }
            (Fit::Told, Some(prepared)) if !self.uncertain(id, true) => Some(&*prepared.statement.name),
            (Fit::Told | Fit::Untold, _) => self.resolve(names.statement, prepared.as_deref(), context, server),
        };
        if let Some(name) = renamed {
            server.add(|own| build::bind_head(own, names.portal, name, head.body - names.bytes));
            server.pass(here.start + HEADER_BYTES + names.bytes..here.end);
        } else {
            server.pass(here);
        }
        self.extended(Expect::Bind { id, fit });
        Ok(true)
    }

    fn describe(
        &mut self,
        body: &[u8],
        here: Range<usize>,
        context: &mut Context<'_>,
        server: &mut Out,
    ) -> Result<(), Malformed> {
        let mut of = Described::Other;
        let target = frontend::target(body)?;
        let prepared = match target {
            Target::Statement(name) if !name.is_empty() => context.client.prepared(name).cloned(),
            Target::Statement(_) | Target::Portal(_) => None,
        };
        let renamed = match target {
            Target::Statement(name) if !self.ignoring => {
                let renamed = self.resolve(name, prepared.as_deref(), context, server);
                match &prepared {
                    Some(prepared) => {
                        of = Described::Named(prepared.statement.id);
                        self.asked.push_back(prepared.clone());
                    }
                    None if name.is_empty() => of = Described::Unnamed(context.client.unnamed_number()),
                    None => {}
                }
                renamed
            }
            Target::Statement(_) | Target::Portal(_) => None,
        };
        match renamed {
            Some(name) => server.add(|own| build::describe_statement(own, name)),
            None => server.pass(here),
        }
        self.extended(Expect::Describe(of));
        Ok(())
    }

    fn close(
        &mut self,
        body: &[u8],
        here: Range<usize>,
        context: &mut Context<'_>,
        server: &mut Out,
    ) -> Result<(), Malformed> {
        let closed = match frontend::target(body)? {
            Target::Statement(_) | Target::Portal(_) if self.ignoring => None,
            // Behind something that may fail, the Close may be passed over; the server knows best.
            Target::Statement(b"") => {
                if self.ring.is_empty() && !self.segment_open {
                    context.client.forget_unnamed();
                    context.server.forget_unnamed();
                    context.client.unnamed_loaded = true;
                }
                None
            }
            // The definition stays on the server: others may use it.
            Target::Statement(name) => context.client.take(name).map(|statement| (name.into(), statement)),
            Target::Portal(_) => None,
        };
        if let Some(closed) = closed {
            self.extended(Expect::CloseElided);
            self.closing.push_back(closed);
        } else {
            server.pass(here);
            self.extended(Expect::Close);
        }
        Ok(())
    }
}
