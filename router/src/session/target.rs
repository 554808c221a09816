//! Which server the next request goes to.

use super::{Session, Turn};
use crate::exchange;
use crate::pool::Purpose;
use crate::reads::{Choice, ReadTarget};
use crate::server::Server;
use crate::stats::Decision;
use routing::route::Traced;
use routing::{Class, Effect, Level, Reason, Route};
use std::cell::Cell;
use std::rc::Rc;
use wire::frame::{HEADER_BYTES, client_header};
use wire::frontend;

impl Session {
    /// Takes a server for what the client sent. Whether there is one now; otherwise the bytes are kept. What was found out
    /// of the first message is left in `judged`.
    pub(super) fn take_server(&mut self, input: &[u8], judged: &mut Option<Rc<Route>>) -> Result<bool, Turn> {
        match exchange::first_message(input) {
            Err(malformed) => return Err(Turn::Malformed(malformed.0)),
            Ok(Some(b'X')) => return Err(Turn::End),
            Ok(None) => {
                // Nobody waits for a slow sender: a server is taken once there is something for it.
                self.inbox.extend_from_slice(input);
                self.unread = false;
                return Ok(false);
            }
            Ok(Some(_)) => {}
        }
        let free = match self.pause_until {
            Some(_) => None,
            None => match self.read_target(input, judged) {
                ReadTarget::Primary => self.take_primary(),
                ReadTarget::Replica(choice) => self.take_replica(choice),
                ReadTarget::Wait => {
                    self.inbox.extend_from_slice(input);
                    self.unread = true;
                    return Err(Turn::CatchUp);
                }
                ReadTarget::Position(ack) => {
                    self.inbox.extend_from_slice(input);
                    self.unread = true;
                    return Err(Turn::Position(ack));
                }
            },
        };
        match free {
            Some(server) => {
                self.attach(server);
                Ok(true)
            }
            None => {
                self.inbox.extend_from_slice(input);
                self.unread = true;
                Err(Turn::Acquire)
            }
        }
    }

    /// A connection to the primary, where one is idle and nothing is to be waited for first.
    fn take_primary(&mut self) -> Option<Box<Server>> {
        if self.primary_may_hide() {
            return None;
        }
        self.pool = self.entry.account.primary(&self.worker);
        self.pool.as_ref().and_then(|pool| pool.take())
    }

    /// A connection to the replica that was chosen, where one is idle; it is noted as wanted where not.
    fn take_replica(&mut self, choice: Choice) -> Option<Box<Server>> {
        self.pool = self.entry.account.replica(&self.worker, choice.node);
        match self.pool.as_ref().and_then(|pool| pool.take()) {
            Some(server) if self.worker.reads.borrow().vouches(&choice, server.born, server.birth) => {
                self.replica = Some((choice.node, self.clock));
                return Some(server);
            }
            Some(server) => self.worker.put_back(server),
            None => {}
        }
        self.wanted = Some(choice);
        None
    }

    /// Where the request at the front of `input` may be read.
    fn read_target(&mut self, input: &[u8], judged: &mut Option<Rc<Route>>) -> ReadTarget {
        let config = self.worker.global.config.load();
        let split = self.splits() && !crate::admin::is_paused(&self.worker) && self.primary_only.is_none();
        if !split {
            self.limit = None;
            self.worker.stats().decided(Decision::Unsplit);
            return ReadTarget::Primary;
        }
        let why = Cell::new(Reason::Control);
        self.hint.borrow_mut().take();
        self.limit = self.only_reads(input, &why, judged);
        self.why = why.get();
        if !self.take_hinted_token() {
            self.limit = None;
        }
        let level = self.level();
        if let Level::Bounded(_) = level {
            self.observe();
        }
        if self.limit.is_none() {
            self.worker.stats().decided(Decision::Primary(self.why));
            return ReadTarget::Primary;
        }
        let target = self.worker.reads.borrow_mut().target(&mut self.reading, &config, level, self.clock);
        match target {
            ReadTarget::Replica(..) => self.worker.stats().decided(Decision::Replica(self.why)),
            ReadTarget::Primary => self.worker.stats().decided(Decision::NoReplica),
            // It is decided anew once the position is known.
            ReadTarget::Position(_) | ReadTarget::Wait => {}
        }
        target
    }

    /// How much of `input` a replica may be given now; `None` where it must be given up first.
    pub(super) fn replica_share(&mut self, input: &[u8], judged: &mut Option<Rc<Route>>) -> Option<usize> {
        // One request after the other: what a request is for depends on where the one before it led.
        if !self.exchange.quiet() {
            return None;
        }
        if self.exchange.status() != b'I' {
            return Some(first_request(input).unwrap_or(input.len()));
        }
        if let Some(limit) = self.limit.take() {
            return Some(limit);
        }
        // The replica was chosen for what another statement had to see.
        if self.hint.borrow().is_some() {
            return None;
        }
        let share = self.only_reads(input, &Cell::new(Reason::Control), judged);
        match self.hint.borrow_mut().take() {
            Some(_) => None,
            None => share,
        }
    }

    /// The length of the request at the front of `input`, a query or a segment up to its Sync, where it is all there and
    /// a replica may run it. The route of a query is left in `judged`: it need not be found twice.
    fn only_reads(&self, input: &[u8], why: &Cell<Reason>, judged: &mut Option<Rc<Route>>) -> Option<usize> {
        let catalog = self.catalog.get();
        let judge = self.catalog.judge(&catalog, self.lexing);
        let session = self.exchange.state().for_routing();
        let fits = |route: &Route| {
            if route.hint.is_some() {
                self.hint.borrow_mut().clone_from(&route.hint);
            }
            let reads_only = |said: Option<bool>| said.unwrap_or_else(|| self.exchange.state().reads_by_own_will());
            let begins = |effect: &Effect| matches!(effect, Effect::Begin(modes) if reads_only(modes.read_only));
            let harmless = |traced: &Traced| traced.effect == Effect::CopyOut;
            let (class, reason) = route.decide(&session);
            why.set(reason);
            match class {
                Class::Read => route.effects.iter().all(harmless),
                Class::Transaction => route.parts == 1 && matches!(&*route.effects, [only] if begins(&only.effect)),
                Class::Write | Class::Session => false,
            }
        };
        let (mut rest, mut parsed) = (input, None);
        while let Ok(Some(head)) = client_header(rest) {
            let body = rest.get(HEADER_BYTES..head.total())?;
            let end = input.len() - rest.len() + head.total();
            let fit = match head.tag {
                b'Q' => {
                    let route = judge.route(frontend::query(body).ok()?);
                    let fit = fits(&route);
                    if rest.len() == input.len() {
                        *judged = Some(route);
                    }
                    return fit.then_some(end);
                }
                b'S' => return Some(end),
                b'P' => frontend::parse(body).is_ok_and(|parse| {
                    let fit = fits(&judge.route(parse.sql));
                    parsed = parse.name.is_empty().then_some(fit);
                    fit
                }),
                b'B' => frontend::bind_head(body).is_some_and(|head| match head.statement {
                    b"" => parsed == Some(true),
                    // One that this segment makes was judged above; one that is unknown cannot be.
                    name => self.statements.get(name).is_none_or(|known| fits(&known.route(&judge))),
                }),
                b'D' | b'E' | b'C' | b'H' => true,
                _ => false,
            };
            if !fit {
                return None;
            }
            rest = &rest[head.total()..];
        }
        None
    }

    /// A request ended where it was served: what the next read must see.
    pub(super) fn remember_read(&mut self) {
        let config = self.worker.global.config.load();
        if !self.door.splits(&config) {
            return;
        }
        let level = self.level();
        self.hint.borrow_mut().take();
        let mut reads = self.worker.reads.borrow_mut();
        match self.replica.take() {
            Some((node, began)) => {
                let ran = began..self.clock;
                reads.on_replica(&mut self.reading, node, ran, level, false)
            }
            None => reads.on_primary(&mut self.reading),
        }
        self.entry.memory.set(self.reading.memory());
    }

    /// Whether the attached server belongs to a primacy that is over. Nothing may be written there any more.
    pub(super) fn server_is_of_the_past(&self) -> bool {
        let Some(server) = &self.server else { return false };
        match server.slot.pool().key.purpose {
            Purpose::Write(epoch) => epoch != self.worker.topology().epoch,
            Purpose::Read => false,
        }
    }
}

/// The length of the request at the front of `input`, where it is all there.
pub(super) fn first_request(input: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Ok(Some(head)) = client_header(&input[at..]) {
        at += head.total();
        if at > input.len() {
            return None;
        }
        if matches!(head.tag, b'Q' | b'S' | b'F') {
            return Some(at);
        }
    }
    None
}
