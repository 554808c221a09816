//! A client that listens: its channels go over to the listener of its user and database, and its server becomes free.

use super::{Session, Turn};
use crate::channels::Channels;
use crate::listener::{TAKEOVER_CHANNEL, Word};
use crate::obtain::client_gone;
use crate::server;
use routing::Encoding;
use std::time::{Duration, Instant};
use tokio::time::timeout;
use wire::{backend, build};

/// How long a client whose own server listens waits for the listener; meanwhile it is not served.
const TAKE_OVER_MAX: Duration = Duration::from_secs(1);
/// After that came to nothing its server goes on listening, for so long at least.
const RETRY_AFTER: Duration = Duration::from_secs(30);

impl Session {
    /// Moves what came by itself to what is sent, where nothing else is due.
    pub(super) fn fetch_mail(&mut self) {
        // The server itself sends notifications between transactions only.
        if self.exchange.heard_elsewhere().is_empty() || !self.exchange.at_rest() || self.exchange.mid_message() {
            return;
        }
        self.outbox.append(&mut self.entry.mail.borrow_mut());
    }

    /// Whether something is left that came by itself.
    pub(super) fn has_mail(&self) -> bool {
        !self.exchange.heard_elsewhere().is_empty() && !self.entry.mail.borrow().is_empty()
    }

    /// Whether channels are to be given to the listener, or taken away from it.
    pub(super) fn listens_otherwise(&self) -> bool {
        let state = self.exchange.state();
        if !state.listens_here() && state.channels() == self.exchange.heard_elsewhere() {
            return false;
        }
        let idle = |server: &crate::server::Server| server.inbox.is_empty() && server.outbox.is_empty();
        self.exchange.at_rest()
            && self.outbox.is_empty()
            && self.entry.cancels.get() == 0
            && self.server.as_deref().is_none_or(idle)
            && self.listen_after.is_none_or(|after| after <= self.clock)
    }

    /// Whether the client could be served like that: names and payloads come in the encoding of the listener, and of one
    /// connection for all none could be kept for listening.
    pub(super) fn may_listen_elsewhere(&self) -> bool {
        let limit = self.entry.account.primary(&self.worker).map(|pool| pool.shared.limit());
        self.lexing.encoding == Encoding::of("UTF8") && limit.is_none_or(|limit| limit > 1)
    }

    /// Has the listener take over. Tells what else is to be done, where there is something.
    pub(super) async fn listen(&mut self) -> Option<Turn> {
        let wanted = self.exchange.state().channels().clone();
        let turn = match self.exchange.state().listens_here() {
            _ if !wanted.is_empty() && !self.may_listen_elsewhere() => Ok(false),
            true => self.take_over(&wanted).await,
            false => {
                // Without a server that listens something is missed until the listener does, and it is told then.
                self.subscribe(&wanted, None);
                if std::mem::take(&mut self.missed) {
                    self.entry.account.listener().lapse(&self.entry);
                }
                Ok(true)
            }
        };
        match turn {
            Ok(true) => {
                self.entry.channels.borrow_mut().clone_from(&wanted);
                if wanted.is_empty() {
                    self.entry.mail.borrow_mut().clear();
                }
                self.exchange.set_heard_elsewhere(wanted);
                None
            }
            // Its own server goes on listening.
            Ok(false) => {
                self.listen_after = Some(Instant::now() + RETRY_AFTER);
                None
            }
            Err(turn) => Some(turn),
        }
    }

    /// Has the listener hear for it what is `wanted`, in place of what it hears now.
    pub(super) fn listen_to(&self, wanted: &Channels, until: Option<Word>) {
        self.entry.account.listener().change(&self.entry, self.exchange.heard_elsewhere(), wanted, until);
    }

    fn subscribe(&self, wanted: &Channels, until: Option<Word>) {
        let listener = self.entry.account.listener();
        self.listen_to(wanted, until);
        listener.tend(&self.worker, &self.entry.account);
    }

    /// From its own server. Whether it was done.
    async fn take_over(&mut self, wanted: &Channels) -> Result<bool, Turn> {
        let word = Word::random();
        self.subscribe(wanted, Some(word));
        let entry = self.entry.clone();
        let ready = tokio::select! {
            biased;
            ready = timeout(TAKE_OVER_MAX, entry.account.listener().in_force(wanted)) => Ok(ready.unwrap_or(false)),
            () = client_gone(&self.client) => Err(Turn::End),
        };
        let done = match ready {
            Ok(true) => self.hand_over(word).await,
            other => other,
        };
        if !matches!(done, Ok(true)) {
            entry.account.listener().change(&entry, wanted, self.exchange.heard_elsewhere(), None);
        }
        done
    }

    /// Has its own server say the word, and listen no more, which makes it fit for others.
    async fn hand_over(&mut self, word: Word) -> Result<bool, Turn> {
        let Some(server) = self.server.as_mut() else { return Ok(true) };
        let (mut heard, mut said) = (Vec::new(), false);
        let known = self.exchange.heard_elsewhere().clone();
        let asked = async {
            let mut question = word.sql();
            // A server stops hearing at a notification whose transaction is just being committed, and goes on when it is:
            // the word may come an answer later.
            while !said {
                server::ask_and_hear(server, &question, |body| {
                    said |= word.is_said_by(body);
                    // What comes behind the word comes by the listener, and so does what it listened to before. The words
                    // of others are nobody's business.
                    let new = backend::notification(body)
                        .is_ok_and(|(channel, _)| channel != TAKEOVER_CHANNEL && !known.has(channel));
                    if !said && new {
                        build::message(&mut heard, b'A', |out| out.extend_from_slice(body));
                    }
                })
                .await?;
                question.clear();
            }
            server::ask(server, "UNLISTEN *").await
        };
        let done = timeout(self.worker.config().connect_timeout, asked).await;
        // A simple query destroys the unnamed statement.
        self.statements.unnamed_loaded = false;
        self.outbox.append(&mut heard);
        match done {
            Ok(Ok(_)) => {
                self.exchange.state_mut().listens_elsewhere();
                Ok(true)
            }
            Ok(Err(error)) => Err(Turn::ServerLost(format!("{error:?}"))),
            Err(_) => Err(Turn::ServerLost("the server did not answer in time".into())),
        }
    }
}
