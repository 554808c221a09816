//! What the session answers itself: its wishes, its token, and where a statement would go.

use super::{Session, Turn};
use crate::own::{self, Answer, Command, Knows};
use crate::refusal::Refusal;
use crate::wishes::Wish;
use routing::token::{Lineage, Switch, Token};
use routing::{Class, Level, Target};
use std::task::Context;
use wire::frame::{HEADER_BYTES, client_header};

impl Session {
    /// Whether the first message of `input` may be for the router itself, or concerns what was prepared for it.
    pub(super) fn concerns_router(&self, input: &[u8]) -> bool {
        if self.own.is_some() {
            return true;
        }
        let Ok(Some(head)) = client_header(input) else { return false };
        let body = input.get(HEADER_BYTES..head.total());
        matches!(head.tag, b'Q' | b'P') && body.is_some_and(|body| own::is_ours(head.tag, body, None))
    }

    /// Answers the messages at the front of `input` that are for the router. How many bytes they were; the rest is as it was.
    pub(super) fn answer_own(
        &mut self,
        input: &[u8],
        context: &mut Context<'_>,
        scratch: &mut crate::out::Out,
    ) -> Result<usize, Turn> {
        scratch.clear();
        let known = self.catalog.clone();
        let catalog = known.get();
        let judge = known.judge(&catalog, self.lexing);
        let mut kept = self.own.take();
        let done = own::answer(input, &mut kept, &judge, self, scratch);
        self.own = kept;
        if !scratch.is_empty() {
            self.client.send(context, scratch, &[], &mut self.outbox).map_err(|_| Turn::End)?;
        }
        done.map_err(|malformed| Turn::Malformed(malformed.0))
    }

    /// What the read at hand must see, by the statement's word, the session's or the router's.
    pub(super) fn level(&self) -> Level {
        let hinted = self.hint.borrow().as_ref().and_then(|hint| hint.consistency);
        let wished = hinted.or_else(|| self.exchange.state().wishes().level);
        wished.unwrap_or_else(|| self.worker.global.config.load().consistency)
    }

    fn show(&mut self, name: &str) -> Answer {
        let wishes = self.exchange.state().wishes();
        let text = match name {
            "stemma.consistency" => self.level().to_string(),
            "stemma.route" => match wishes.route {
                Some(Target::Primary) => "primary".to_owned(),
                Some(Target::Replica) => "replica".to_owned(),
                None => "auto".to_owned(),
            },
            _ => match self.token() {
                Ok(token) => token,
                Err(answer) => return answer,
            },
        };
        Answer::Rows(vec![vec![Some(text)]])
    }

    /// The session's token: empty where it has seen nothing. Where its position is not known, the primary is asked first.
    fn token(&mut self) -> Result<String, Answer> {
        let asked = self.position_wanted.take().is_some();
        // What it did is noted when it leaves its server, and only where its reads may go elsewhere.
        let noted = self.server.is_none() && self.splits();
        let mut reads = self.worker.reads.borrow_mut();
        if (asked || noted)
            && let Some(point) = reads.point(self.reading.memory())
        {
            let cluster = self.worker.topology().cluster.clone();
            return Ok(Token { cluster, point }.to_string());
        }
        if noted && self.reading.memory().is_blank() {
            return Ok(String::new());
        }
        if !asked {
            // What a replica showed is behind the primary.
            reads.on_primary(&mut self.reading);
            self.position_wanted = reads.unsampled(&mut self.reading);
        }
        match self.position_wanted {
            Some(_) => Err(Answer::Later),
            None => Err(Answer::Refused(Refusal::no_primary("the primary does not say where it is"))),
        }
    }

    /// Takes in the token that a hint brings; whether it could be understood.
    pub(super) fn take_hinted_token(&mut self) -> bool {
        let token = self.hint.borrow_mut().as_mut().and_then(|hint| hint.token.take());
        token.is_none_or(|text| matches!(self.import(&text), Answer::Done))
    }

    fn import(&mut self, text: &str) -> Answer {
        if text.is_empty() {
            return Answer::Done;
        }
        let topology = self.worker.topology();
        let lineage = lineage(&topology);
        let accepted = text.parse::<Token>().and_then(|token| lineage.accept(&token));
        match accepted {
            Ok(point) => {
                self.reading.import(point);
                self.entry.memory.set(self.reading.memory());
                Answer::Done
            }
            Err(bad) => {
                let mut refusal = Refusal::own_setting(bad.to_string());
                (refusal.code, refusal.hint) = (bad.code(), bad.hint());
                Answer::Refused(refusal)
            }
        }
    }

    fn explain(&self, sql: &[u8]) -> Answer {
        let catalog = self.catalog.get();
        let route = routing::analyse(sql, self.lexing, &catalog.0);
        let session = self.exchange.state().for_routing();
        let (class, reason) = route.decide(&session);
        let hinted = route.hint.as_ref().and_then(|hint| hint.consistency);
        let level = hinted.unwrap_or_else(|| self.level());
        let mut replicas = Vec::new();
        let read = class == Class::Read && self.splits();
        if read {
            let (config, topology) = (self.worker.config(), self.worker.topology());
            let nodes = self.worker.reads.borrow_mut().fit(self.reading, &config, level);
            let name = |node: &model::NodeId| topology.replicas.iter().find(|replica| replica.id == *node);
            replicas.extend(nodes.iter().filter_map(name).map(|replica| replica.name.clone()));
        }
        let target = match (class, read && !replicas.is_empty()) {
            (_, true) => "replica",
            (Class::Session, false) => "session",
            (Class::Transaction, false) => "transaction",
            (Class::Read | Class::Write, false) => "primary",
        };
        let explanation = match (class, self.splits(), replicas.is_empty()) {
            (Class::Read, false, _) => "this router does not split reads",
            (Class::Read, true, true) if level == Level::Strong => "it only reads, but has to see all there is",
            (Class::Read, true, true) => "no replica may serve it now",
            _ => reason.text(),
        };
        let culprit = route.culprit.and_then(|place| {
            let bytes = sql.get(place.start as usize..place.end as usize)?;
            Some(String::from_utf8_lossy(bytes).into_owned())
        });
        let text = |text: &str| Some(text.to_owned());
        Answer::Rows(vec![vec![
            text(target),
            text(reason.word()),
            text(explanation),
            culprit,
            Some(level.to_string()),
            Some(replicas.join(", ")),
        ]])
    }

    fn grant(&mut self, wish: Wish, local: bool) -> Answer {
        self.exchange.state_mut().wish(wish, local);
        if let Level::Bounded(_) = self.level() {
            self.observe();
        }
        Answer::Done
    }
}

impl Knows for Session {
    fn answer(&mut self, command: &Command) -> Answer {
        match command {
            Command::Show(name) => self.show(name),
            Command::Wish { wish, local, .. } => self.grant(*wish, *local),
            Command::Token(text) => self.import(text),
            Command::Explain(sql) => self.explain(sql),
            Command::Forget(_) => Answer::Done,
            Command::Wrong(refusal) => Answer::Refused(Refusal::clone(refusal)),
        }
    }

    fn status(&self) -> u8 {
        self.exchange.status()
    }
}

/// The timelines of the cluster, as they are told.
fn lineage(topology: &crate::Topology) -> Lineage {
    let entries = &topology.lineage;
    let mut switches = Vec::new();
    for entry in entries {
        let before = entry.from.and_then(|epoch| entries.iter().find(|before| before.epoch == epoch));
        if let (Some(before), Some(at)) = (before, entry.began_at)
            && before.timeline != entry.timeline
        {
            switches.push(Switch { from: before.timeline, at, to: entry.timeline });
        }
    }
    let now = entries.iter().filter(|entry| entry.epoch <= topology.epoch).max_by_key(|entry| entry.epoch);
    let told = topology.replicas.iter().find_map(|replica| replica.timeline);
    let timeline = now.map(|entry| entry.timeline).or(told).unwrap_or(model::Timeline(1));
    Lineage::new(&topology.cluster, topology.epoch, timeline, switches)
}
