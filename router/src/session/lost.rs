//! What becomes of a client whose server is gone: `routing::failover` decides, this says it in the protocol's words.

use super::{After, Only, Session, resolve};
use crate::pool::Purpose;
use crate::refusal::Refusal;
use routing::failover::{Action, End, Lost, Request, Transaction, verdict};
use routing::outcome::{InDoubt, Outcome};
use std::time::{Duration, Instant};
use wire::{backend, build};

/// Before a request is sent again to a server that said that it is not the one to ask.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

impl Session {
    /// Takes in that the server is gone.
    pub(super) fn server_lost(&mut self, why: &str) -> After {
        let listened = self.exchange.state().listens_here();
        let moves = listened && self.may_listen_elsewhere();
        let server = self.server.take();
        if let Some((node, _)) = self.replica.take() {
            self.read_failed(node);
            self.primary_only = Some(Only::Lost);
        }
        *self.entry.running.borrow_mut() = None;
        let fatal = self.exchange.take_fatal();
        let said = fatal.as_deref().map(backend::error_fields).unwrap_or_default();
        let end = match said.sqlstate.as_str() {
            _ if self.exchange.wait_cancelled() => End::CommittedLocally,
            "57P01" => End::Terminated,
            "25006" | "57P03" => End::Refused,
            _ => End::Silent,
        };
        let request = match self.exchange.unanswered() {
            Request::None if self.unread => Request::NotSent,
            other => other,
        };
        let transaction = self.exchange.transaction();
        // A COMMIT in a transaction is not sent again, so what was answered before it does not matter.
        let answered = match (transaction, request) {
            (Transaction::Clean | Transaction::Wrote, Request::Commit) => self.exchange.partly_answered(),
            _ => self.exchange.answered(),
        };
        let lost = Lost {
            transaction,
            request,
            answered,
            end,
            pinned: self.exchange.state().has_unmovable() || (listened && !moves),
            retries: self.retries,
            kept: self.keeping && !self.kept.is_empty(),
            lone: self.exchange.is_lone_commit(),
            failed: self.exchange.status() == b'E',
            numbered: self.exchange.xid().is_some(),
        };
        let (action, rule) = verdict(&lost);
        tracing::info!(rule, ?action, ?lost, why, "a client's server was lost");
        self.worker.global.stats.lost(rule, action.as_str());
        if self.exchange.mid_message() {
            return After::Gone;
        }
        let detail = if said.message.is_empty() { why.to_owned() } else { said.message };
        let in_transaction = lost.transaction != Transaction::None;
        // Its channels are taken up again elsewhere (F-2), or gone with all that the server held.
        self.missed |= moves;
        if listened && !moves {
            self.exchange.state_mut().forget_channels();
        }
        match action {
            Action::Silent => self.exchange.server_lost(&mut self.statements),
            Action::SendAgain if lost.request == Request::NotSent => self.exchange.server_lost(&mut self.statements),
            Action::SendAgain => self.send_again(),
            Action::SayGone => {
                self.exchange.server_lost(&mut self.statements);
                let gone = Refusal::session_lost("the server that held this session's state was lost").detail(detail);
                self.refuse_next(|out| gone.write("ERROR", out));
            }
            Action::Aborted => {
                let lost = Refusal::transaction_lost("the server was lost before the end of the transaction");
                self.fail(&lost.detail(format!("{detail} ({rule})")), in_transaction);
            }
            Action::Unknown => {
                let unknown = Refusal::outcome_unknown("the server was lost before it answered");
                self.fail(&unknown.detail(format!("{detail} ({rule})")), false);
            }
            Action::RolledBack => {
                self.exchange.answer_end("ROLLBACK", &mut self.outbox);
                self.exchange.server_lost(&mut self.statements);
            }
            Action::Committed => self.committed(),
            Action::Resolve => {
                let epoch = server.as_ref().map(|server| server.slot.pool().key.purpose);
                let life = server.and_then(|server| server.life.as_deref().map(str::to_owned));
                if let (Some(Purpose::Write(epoch)), Some(xid)) = (epoch, self.exchange.xid()) {
                    return After::InDoubt(InDoubt { xid, epoch, life });
                }
                let unknown = Refusal::outcome_unknown("the server was lost before it answered");
                self.fail(&unknown.detail(format!("{detail} ({rule})")), false);
            }
        }
        After::Kept
    }

    /// Finds out what became of a COMMIT, and tells the client. `false`: the client left.
    pub(super) async fn resolve(&mut self, doubt: &InDoubt) -> bool {
        let (worker, entry) = (self.worker.clone(), self.entry.clone());
        entry.waits.set(Some(Instant::now()));
        let found = tokio::select! {
            biased;
            found = resolve::resolve(&worker, &entry.account, doubt) => Some(found),
            () = crate::obtain::client_gone(&self.client) => None,
        };
        entry.waits.set(None);
        tracing::info!(?doubt, ?found, "a commit without an answer was looked up");
        let Some(found) = found else { return false };
        worker.global.stats.looked_up(match found {
            Outcome::Committed | Outcome::CommittedHere => "committed",
            Outcome::Aborted(_) => "aborted",
            Outcome::Running | Outcome::Unknown(_) => "unknown",
        });
        self.tell(found, doubt.xid);
        true
    }

    fn tell(&mut self, found: Outcome, xid: u64) {
        match found {
            Outcome::Committed | Outcome::CommittedHere if self.exchange.is_lone_commit() => self.committed(),
            Outcome::Committed | Outcome::CommittedHere => {
                let unknown = Refusal::outcome_unknown("the answers of statements that were committed are lost");
                self.fail(&unknown.detail(format!("transaction {xid} is committed (F-12)")), false);
            }
            Outcome::Aborted(why) => {
                let lost = Refusal::transaction_lost("the server was lost before the transaction was committed");
                self.fail(&lost.detail(format!("transaction {xid} is rolled back: {why} (F-12)")), false);
            }
            Outcome::Running | Outcome::Unknown(_) => {
                let why = if let Outcome::Unknown(why) = found { why } else { "it still runs" };
                let unknown = Refusal::outcome_unknown("the server was lost before it answered the COMMIT");
                self.fail(&unknown.detail(format!("transaction {xid}: {why} (F-12)")), false);
            }
        }
    }

    /// Answers a COMMIT that the server did not answer.
    fn committed(&mut self) {
        self.exchange.answer_end("COMMIT", &mut self.outbox);
        self.exchange.state_mut().committed_after_all();
        let pinned = self.exchange.state().has_unmovable();
        self.exchange.server_lost(&mut self.statements);
        if pinned {
            let gone = Refusal::session_lost("the server that held this session's state was lost");
            self.refuse_next(|out| gone.write("ERROR", out));
        }
    }

    /// The server said that it is not the one to ask, and did nothing. The request is held until there is news of the
    /// servers, or tried again after a moment, for as long as statements are held.
    pub(super) fn send_again_later(&mut self) {
        let now = Instant::now();
        let until = *self.held_until.get_or_insert_with(|| now + self.worker.config().hold_max);
        let retries = self.retries;
        self.send_again();
        self.retries = retries;
        if now < until {
            self.pause_until = Some(now + REFUSED_PAUSE);
        } else {
            let refusal = Refusal::no_primary("no server took the statement in time");
            self.refuse_next(|out| refusal.write("ERROR", out));
        }
    }

    /// Sends the request again, to whatever server is right now.
    pub(super) fn send_again(&mut self) {
        self.retries += 1;
        self.server = None;
        *self.entry.running.borrow_mut() = None;
        self.exchange.server_lost(&mut self.statements);
        self.take_back();
    }

    /// What was sent of the request is to be read again.
    pub(super) fn take_back(&mut self) {
        self.exchange.rewind(&mut self.statements);
        let rest = std::mem::take(&mut self.inbox);
        self.inbox = std::mem::take(&mut self.kept);
        self.inbox.extend_from_slice(&rest);
        self.unread = true;
    }

    /// Answers everything that is due with an error; `in_transaction` where the client has to end its transaction first.
    fn fail(&mut self, refusal: &Refusal, in_transaction: bool) {
        if in_transaction && self.exchange.only_closes() {
            self.exchange.answer_closes(&mut self.outbox);
            self.exchange.server_lost(&mut self.statements);
            self.refusal.clear();
            refusal.write("ERROR", &mut self.refusal);
            self.exchange.orphan_untold();
            return;
        }
        let (due, open) = self.exchange.due();
        let status = if in_transaction { b'E' } else { b'I' };
        for _ in 0..due {
            refusal.write("ERROR", &mut self.outbox);
            build::ready(&mut self.outbox, status);
        }
        self.exchange.server_lost(&mut self.statements);
        match (in_transaction, open, due) {
            (true, true, _) => {
                refusal.write("ERROR", &mut self.outbox);
                self.exchange.orphan_to_sync();
            }
            (true, false, 0) => {
                // Nothing was asked: the next statement is told.
                self.refusal.clear();
                refusal.write("ERROR", &mut self.refusal);
                self.exchange.orphan_untold();
            }
            (true, false, _) => self.exchange.orphan(),
            (false, true, _) => {
                refusal.write("ERROR", &mut self.outbox);
                self.exchange.pass_over_segment();
            }
            (false, false, _) => {}
        }
    }
}
