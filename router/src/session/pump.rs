//! Carrying bytes from one side to the other, through the exchange.

use super::target::first_request;
use super::{Only, Session, Turn, lexing};
use crate::exchange::{Answered, Context as Reading, LocalContext, Refused, Stop};
use crate::stats::Stage;
use crate::worker::Scratch;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;
use wire::{backend, build};

/// Answers that a client does not fetch, before its further messages are left unread.
const OUTBOX_BYTES_MAX: usize = 1 << 20;
/// Room that a read finds at least behind bytes that wait for their end.
const READ_BYTES_MIN: usize = 16 << 10;
/// Of a message with more bytes than twice this to come, so many are awaited at once: fewer and larger pieces cost less, and
/// a server that has begun a message goes on with it.
const LOW_WATER: usize = 96 << 10;
/// Longest request that is kept in order to be sent again.
const KEPT_BYTES_MAX: usize = 16 << 10;

impl Session {
    /// Carries what the server sent to the client; whether there was anything.
    pub(super) fn pump_server(&mut self, context: &mut Context<'_>, scratch: &mut Scratch) -> Result<bool, Turn> {
        let lost = |error: std::io::Error| Turn::ServerLost(error.to_string());
        let Some(server) = self.server.as_mut() else { return Ok(false) };
        if !server.outbox.is_empty()
            && let Poll::Ready(sent) = server.stream.poll_rest(context, &mut server.outbox)
        {
            sent.map_err(lost)?;
        }
        // A client that does not fetch its rows is not read for: the server waits with us.
        if !self.outbox.is_empty() {
            return Ok(false);
        }
        let kept = server.inbox.len();
        make_room(&mut scratch.input, kept);
        let read = match server.stream.poll_read(context, &mut scratch.input[kept..]) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(0)) => return Err(Turn::ServerLost("the server closed the connection".into())),
            Poll::Ready(Ok(read)) => read,
            Poll::Ready(Err(error)) => return Err(lost(error)),
        };
        let heard = Instant::now();
        self.clock = heard;
        scratch.input[..kept].copy_from_slice(&server.inbox);
        server.inbox.clear();
        let input = &scratch.input[..kept + read];
        let out = &mut scratch.to_client;
        out.clear();
        let used = self.exchange.server_bytes(input, out);
        if !out.is_empty() {
            self.client.send(context, out, input, &mut self.outbox).map_err(|_| Turn::End)?;
        }
        let rest = self.exchange.rest_of_message();
        if server.awaits_much != (rest > LOW_WATER) && (server.awaits_much || rest > 2 * LOW_WATER) {
            let bytes = if server.awaits_much { 1 } else { LOW_WATER };
            server.awaits_much = server.stream.set_low_water(bytes) && bytes > 1;
            if let Some(pool) = &self.pool {
                // By a Unix socket they come one by one, each with a wake-up.
                pool.saw_long_row(if server.stream.is_unix() { read } else { rest });
            }
        }
        match used {
            Ok(used) => server.inbox.extend_from_slice(&input[used..]),
            Err(desync) => {
                tracing::error!(problem = desync.0, "a server connection is out of step and is closed");
                return Err(Turn::ServerLost(desync.0));
            }
        }
        if let Some((began, sent)) = self.timed
            && self.exchange.quiet()
        {
            self.timed = None;
            self.clock = Instant::now();
            let stats = self.worker.stats();
            stats.took(Stage::Server, heard.duration_since(sent));
            stats.took(Stage::Router, sent.duration_since(began) + self.clock.duration_since(heard));
        }
        self.after_answers()?;
        Ok(true)
    }

    /// Takes in what the answers told beside their contents.
    fn after_answers(&mut self) -> Result<(), Turn> {
        let Some(server) = self.server.as_mut() else { return Ok(()) };
        if let Some(error) = self.exchange.take_injected_error() {
            let said = backend::error_fields(&error);
            return Err(Turn::Unsettled(format!("{} ({})", said.message, said.sqlstate)));
        }
        // What the client set it set on this server too.
        let state = self.exchange.state();
        let changed = state.has_unmade() || !Arc::ptr_eq(&server.settings, state.settings());
        if changed && self.settled && self.exchange.at_rest() {
            server.settings = self.exchange.state_mut().on_server();
        }
        if self.exchange.unsettled() {
            self.exchange.settle(&mut self.statements, Some(&mut server.statements));
        }
        if self.exchange.has_reported() {
            let reported = Arc::make_mut(&mut server.reported);
            reported.extend(self.exchange.take_reported());
            self.lexing = lexing(reported);
        }
        if self.exchange.take_all_deallocated() {
            self.own = None;
            server.statements.clear();
            self.statements.clear();
        }
        if self.exchange.take_catalog_changed() {
            self.catalog.expire();
        }
        match (self.exchange.take_refused(), &self.replica) {
            (None, _) => {}
            (Some(Refused::Replan), _) => self.take_back(),
            (Some(Refused::NeedsPrimary | Refused::Conflict), Some((node, _))) => {
                self.read_failed(*node);
                self.replica = None;
                self.send_again();
                self.primary_only = Some(Only::Refused);
            }
            (Some(Refused::NeedsPrimary | Refused::Conflict), None) => self.send_again_later(),
        }
        Ok(())
    }

    /// Carries what the client sent to the server; whether there was anything.
    pub(super) fn pump_client(&mut self, context: &mut Context<'_>, scratch: &mut Scratch) -> Result<bool, Turn> {
        let blocked = self.server.as_ref().is_some_and(|server| !server.outbox.is_empty());
        // Nothing of the client may run before its settings do.
        if blocked || self.outbox.len() > OUTBOX_BYTES_MAX || self.exchange.injected_only() {
            return Ok(false);
        }
        // It keeps its server, which is about to be stopped: nothing new begins there.
        if self.worker.holds() && self.server.is_some() && self.replica.is_none() && self.exchange.at_rest() {
            return Ok(false);
        }
        let kept = self.inbox.len();
        make_room(&mut scratch.input, kept);
        let mut read = 0;
        if !self.unread {
            read = match self.client.poll_read(context, &mut scratch.input[kept..]) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Ok(0) | Err(_)) => return Err(Turn::End),
                Poll::Ready(Ok(read)) => read,
            };
        }
        scratch.input[..kept].copy_from_slice(&self.inbox);
        self.inbox.clear();
        if self.exchange.is_local() {
            return self.answer_locally(kept + read, context, scratch);
        }
        let Scratch { input, to_server, to_client } = scratch;
        let mut input = &input[..kept + read];
        if self.exchange.quiet() && self.concerns_router(input) {
            // A replica that still serves it was chosen for what it wished before.
            if self.replica.is_some() {
                self.leaving = true;
                self.release_if_free();
            }
            let used = self.answer_own(input, context, to_client)?;
            input = &input[used..];
            if let Some(ack) = self.position_wanted {
                self.inbox.extend_from_slice(input);
                self.unread = true;
                return Err(Turn::Position(ack));
            }
            if used > 0 {
                self.inbox.extend_from_slice(input);
                self.unread = !input.is_empty();
                return Ok(true);
            }
        }
        to_server.clear();
        to_client.clear();
        let (began, mut judged) = (Instant::now(), None);
        self.clock = began;
        if self.server.is_none() && !self.take_server(input, &mut judged)? {
            return Ok(true);
        }
        let all = input;
        if self.replica.is_some() && self.exchange.mid_segment() {
            // What waited for an answer goes on, and nothing behind its end.
            input = &all[..first_request(all).unwrap_or(all.len())];
        } else if self.replica.is_some() && !self.exchange.mid_request() {
            match self.replica_share(all, &mut judged) {
                Some(share) => input = &all[..share],
                None => {
                    self.inbox.extend_from_slice(all);
                    self.unread = true;
                    self.leaving = true;
                    self.release_if_free();
                    // Where it cannot be given back yet (a cancel request is on its way to it), whatever is waited for
                    // wakes this client; to go round again meanwhile would keep that from ever happening.
                    return Ok(self.server.is_none());
                }
            }
        }
        self.unread = input.len() < all.len();
        if let Some(sql) = self.settings_to_make() {
            self.inbox.extend_from_slice(all);
            self.unread = true;
            let Some(server) = self.server.as_mut() else { return Ok(true) };
            // A simple query destroys the unnamed statement.
            server.statements.forget_unnamed();
            self.statements.unnamed_loaded = false;
            to_server.add(|own| build::query(own, &sql));
            self.exchange.inject();
            let sent = server.stream.send(context, to_server, &[], &mut server.outbox);
            sent.map_err(|error| Turn::ServerLost(error.to_string()))?;
            return Ok(true);
        }
        let known = self.catalog.clone();
        let catalog = known.get();
        let judge = known.judge(&catalog, self.lexing);
        let Some(server) = self.server.as_mut() else { return Ok(true) };
        let (client, server_knows) = (&mut self.statements, &mut server.statements);
        let mut interner = self.worker.interner.borrow_mut();
        let own = self.own.as_deref();
        let mut reading = Reading { client, server: server_knows, interner: &mut interner, own, judge, judged };
        let begins = self.exchange.quiet().then_some(began);
        let done = self.exchange.client_bytes(input, &mut reading, to_server, to_client);
        drop(interner);
        let sent = server.stream.send(context, to_server, input, &mut server.outbox);
        if let Some(began) = begins.filter(|_| !to_server.is_empty()) {
            self.timed = Some((began, Instant::now()));
        }
        if !to_client.is_empty() {
            self.client.send(context, to_client, &[], &mut self.outbox).map_err(|_| Turn::End)?;
        }
        let (used, stop) = done.map_err(|malformed| Turn::Malformed(malformed.0))?;
        self.inbox.extend_from_slice(&all[used..]);
        self.keep(&input[..used]);
        sent.map_err(|error| Turn::ServerLost(error.to_string()))?;
        match stop {
            Stop::Terminate => Err(Turn::End),
            Stop::More => Ok(true),
            // Answers that are due have to come first.
            Stop::Boundary => {
                self.unread = true;
                // Whoever asked something of its own must be there to hear the answer.
                Ok(used > 0 || !to_server.is_empty())
            }
        }
    }

    /// What gives the server the client's settings, where they differ. The server counts as having them from now on; if
    /// it refuses, the client is not served (`after_answers`).
    fn settings_to_make(&mut self) -> Option<String> {
        let server = self.server.as_mut()?;
        if !self.exchange.at_rest() {
            return None;
        }
        self.settled = true;
        let settings = self.exchange.state().settings();
        if Arc::ptr_eq(&server.settings, settings) {
            return None;
        }
        match settings.difference(&server.settings) {
            Some(sql) => {
                server.settings = settings.clone();
                Some(sql)
            }
            None => {
                // One copy is enough, and is compared faster: all go over to that of the lowest address.
                if Arc::as_ptr(&server.settings) < Arc::as_ptr(settings) {
                    self.exchange.state_mut().share_settings(&server.settings);
                } else {
                    server.settings = settings.clone();
                }
                None
            }
        }
    }

    /// Keeps the bytes of a request that may have to be sent again.
    fn keep(&mut self, bytes: &[u8]) {
        if !self.keeping {
            return;
        }
        if self.exchange.status() != b'I' || self.kept.len() + bytes.len() > KEPT_BYTES_MAX {
            self.keeping = false;
            self.kept.clear();
        } else {
            self.kept.extend_from_slice(bytes);
        }
        self.exchange.set_may_retry(self.keeping);
    }

    fn answer_locally(&mut self, bytes: usize, task: &mut Context<'_>, scratch: &mut Scratch) -> Result<bool, Turn> {
        let Scratch { input, to_client, .. } = scratch;
        let input = &input[..bytes];
        to_client.clear();
        let known = self.catalog.clone();
        let catalog = known.get();
        let judge = known.judge(&catalog, self.lexing);
        let mut interner = self.worker.interner.borrow_mut();
        let (refusal, statements) = (self.refusal.as_slice(), &mut self.statements);
        let mut context = LocalContext { refusal, statements, interner: &mut interner, judge };
        let done = self.exchange.answer_locally(input, &mut context, to_client);
        drop(interner);
        let (used, answered) = done.map_err(|malformed| Turn::Malformed(malformed.0))?;
        self.inbox.extend_from_slice(&input[used..]);
        self.unread = answered == Answered::Done && !self.inbox.is_empty();
        if !to_client.is_empty() {
            self.client.send(task, to_client, &[], &mut self.outbox).map_err(|_| Turn::End)?;
        }
        match answered {
            Answered::Terminate => Err(Turn::End),
            Answered::More | Answered::Done => Ok(true),
        }
    }
}

/// Makes the worker's buffer large enough for `kept` bytes and a read.
fn make_room(input: &mut Vec<u8>, kept: usize) {
    if input.len() < kept + READ_BYTES_MIN {
        input.resize(kept + kept.max(READ_BYTES_MIN), 0);
    }
}
