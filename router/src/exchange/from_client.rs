//! The client's side: messages go on as they are, except that names of statements become the server's names.

use super::{Context, Exchange, Expect, INSPECT_BYTES_MAX, Stop};
use crate::out::Out;
use crate::prepared::PREFIX;
use routing::Class;
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
            self.message(head, &rest[..whole], at, context, server, client)?;
            at += whole;
        }
    }

    fn message(
        &mut self,
        head: Header,
        bytes: &[u8],
        at: usize,
        context: &mut Context<'_>,
        server: &mut Out,
        client: &mut Out,
    ) -> Result<(), Malformed> {
        let body = &bytes[HEADER_BYTES..];
        self.client_skip = head.total() - bytes.len();
        let here = at..at + bytes.len();
        match head.tag {
            b'Q' => {
                self.ask_xid(context.server, server);
                // A simple query destroys the unnamed statement.
                context.client.forget_unnamed();
                self.query(body, here, context, server);
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
                self.parse(body, here, context, server, client)?;
            }
            b'B' => {
                self.ask_xid(context.server, server);
                self.bind(body, head, here, context, server)?;
            }
            b'D' => self.describe(body, here, context, server)?,
            b'C' => self.close(body, here, context, server, client)?,
            b'E' => {
                self.ask_xid(context.server, server);
                self.execute(body)?;
                server.pass(here);
            }
            b'H' => server.pass(here),
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
        Ok(())
    }

    fn query(&mut self, body: &[u8], here: Range<usize>, context: &mut Context<'_>, server: &mut Out) {
        // A text that is too long to be collected is judged by what can be seen of it, which is never enough to be sure.
        let route = match frontend::query(body) {
            Ok(sql) => context.judge.route(sql),
            Err(_) => context.judge.route(body),
        };
        let effects = !route.effects.is_empty();
        self.note_sent(&route);
        self.note(route.class);
        if effects && !self.ignoring {
            self.effects.push_back(Rc::new(route));
        }
        self.expect(Expect::Query { effects });
        server.pass(here);
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
    fn note_portal(&mut self, portal: &[u8], statement: &[u8], context: &Context<'_>) {
        if !self.portals.is_empty() {
            self.portals.retain(|(name, _)| **name != *portal);
        }
        let route = match statement {
            b"" => context.client.unnamed_route.clone(),
            name => context.client.get(name).map(|known| known.route(&context.judge)),
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
        self.segment_open = false;
        self.ring.push_back(Expect::Sync);
        self.answered = false;
    }

    /// Notes the answer to a message outside the extended protocol.
    fn expect(&mut self, expect: Expect) {
        // A server that waits for a Sync ignores these too.
        if !self.ignoring {
            self.ring.push_back(expect);
            self.answered = false;
        }
    }

    /// Notes the answer to a message of the extended protocol.
    fn extended(&mut self, expect: Expect) {
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
        client: &mut Out,
    ) -> Result<(), Malformed> {
        if self.client_skip > 0 {
            // An unnamed one that is too long to be kept: it serves as long as the server is attached.
            context.client.forget_unnamed();
            context.client.unnamed_writes = true;
            context.client.unnamed_loaded = true;
            self.extended(Expect::Parse { id: 0, wanted: true, named: false });
            server.pass(here);
            return Ok(());
        }
        let parse = frontend::parse(body)?;
        if parse.name.is_empty() {
            let kept = context.client.unnamed.get_or_insert_default();
            kept.clear();
            kept.extend_from_slice(parse.definition);
            context.client.unnamed_loaded = true;
            let route = context.judge.route(parse.sql);
            context.client.unnamed_writes = route.class == Class::Write;
            context.client.unnamed_route = (!route.effects.is_empty()).then(|| Rc::new(route));
            self.extended(Expect::Parse { id: 0, wanted: true, named: false });
            server.pass(here);
            return Ok(());
        }
        if self.ignoring {
            server.pass(here);
            return Ok(());
        }
        if let Some(taken) = context.client.get(parse.name).cloned() {
            // The server refuses a second statement under a name that exists; so it does here.
            let name = taken.server_name();
            self.ensure(&taken, context, server);
            server.add(|own| build::parse(own, name.as_bytes(), parse.definition));
            self.extended(Expect::Parse { id: u32::MAX, wanted: true, named: false });
            return Ok(());
        }
        let statement = context.interner.intern(parse.definition, &context.judge);
        context.client.insert(parse.name, statement.clone());
        self.names.push_back(parse.name.into());
        if context.server.touch(statement.id) {
            self.extended(Expect::Elided);
            self.say_elided(client);
            // Nothing of this segment may have reached the server; a Sync ends it anyhow.
            return Ok(());
        }
        self.make_room(context, server);
        context.server.insert(statement.id);
        let name = statement.server_name();
        server.add(|own| build::parse(own, name.as_bytes(), parse.definition));
        self.extended(Expect::Parse { id: statement.id, wanted: true, named: true });
        Ok(())
    }

    /// Makes the server know a statement.
    fn ensure(&mut self, statement: &crate::prepared::Statement, context: &mut Context<'_>, server: &mut Out) {
        if context.server.touch(statement.id) {
            return;
        }
        self.make_room(context, server);
        context.server.insert(statement.id);
        let name = statement.server_name();
        server.add(|own| build::parse(own, name.as_bytes(), &statement.definition));
        self.extended(Expect::Parse { id: statement.id, wanted: false, named: false });
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
    fn resolve(&mut self, name: &[u8], context: &mut Context<'_>, server: &mut Out) -> Option<Vec<u8>> {
        if name.is_empty() {
            if context.client.unnamed_loaded {
                return None;
            }
            let Some(definition) = context.client.unnamed.take() else { return Some(NOBODY.to_vec()) };
            server.add(|own| build::parse(own, b"", &definition));
            context.client.unnamed = Some(definition);
            context.client.unnamed_loaded = true;
            self.extended(Expect::Parse { id: 0, wanted: false, named: false });
            return None;
        }
        match context.client.get(name).cloned() {
            Some(statement) => {
                self.ensure(&statement, context, server);
                Some(statement.server_name().into_bytes())
            }
            None if name.starts_with(PREFIX.as_bytes()) => Some(NOBODY.to_vec()),
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
    ) -> Result<(), Malformed> {
        let names = frontend::bind_head(body).ok_or(Malformed("a Bind whose names do not end"))?;
        self.note_portal(names.portal, names.statement, context);
        if !self.ignoring
            && let Some(name) = self.resolve(names.statement, context, server)
        {
            server.add(|own| build::bind_head(own, names.portal, &name, head.body - names.bytes));
            server.pass(here.start + HEADER_BYTES + names.bytes..here.end);
        } else {
            server.pass(here);
        }
        self.extended(Expect::Bind);
        Ok(())
    }

    fn describe(
        &mut self,
        body: &[u8],
        here: Range<usize>,
        context: &mut Context<'_>,
        server: &mut Out,
    ) -> Result<(), Malformed> {
        let renamed = match frontend::target(body)? {
            Target::Statement(name) if !self.ignoring => self.resolve(name, context, server),
            Target::Statement(_) | Target::Portal(_) => None,
        };
        match renamed {
            Some(name) => server.add(|own| build::describe_statement(own, &name)),
            None => server.pass(here),
        }
        self.extended(Expect::Describe);
        Ok(())
    }

    fn close(
        &mut self,
        body: &[u8],
        here: Range<usize>,
        context: &mut Context<'_>,
        server: &mut Out,
        client: &mut Out,
    ) -> Result<(), Malformed> {
        let ours = match frontend::target(body)? {
            Target::Statement(_) | Target::Portal(_) if self.ignoring => false,
            Target::Statement(b"") => {
                context.client.forget_unnamed();
                false
            }
            // The definition stays on the server: others may use it.
            Target::Statement(name) => context.client.remove(name),
            Target::Portal(_) => false,
        };
        if ours {
            self.extended(Expect::CloseElided);
            self.say_elided(client);
        } else {
            server.pass(here);
            self.extended(Expect::Close);
        }
        Ok(())
    }
}
