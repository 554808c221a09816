//! Statements that the router answers itself: `SET`, `SHOW` and `RESET` of its own settings, and `EXPLAIN ROUTE`. By
//! either protocol; what drivers prepare stays with the client, and no server hears of it. Pure: the session says what
//! the answers are.

use crate::out::Out;
use crate::prepared::Judge;
use crate::refusal::Refusal;
use crate::wishes::{self, Wish};
use routing::Effect;
use std::collections::HashMap;
use std::rc::Rc;
use wire::build::{self, ColumnType};
use wire::frame::{HEADER_BYTES, c_string, client_header};
use wire::frontend::{self, Target};
use wire::{Header, Malformed};

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `SHOW`: the setting's name.
    Show(String),
    /// `SET` or `RESET`.
    Wish {
        /// What is wished.
        wish: Wish,
        /// `SET LOCAL`.
        local: bool,
        /// The word of the answer.
        tag: &'static str,
    },
    /// `SET stemma.token`: its text.
    Token(String),
    /// `DEALLOCATE` of a statement that was prepared for us.
    Forget(Box<[u8]>),
    /// `EXPLAIN ROUTE` of this text.
    Explain(Box<[u8]>),
    /// It cannot be done, and why.
    Wrong(Box<Refusal>),
}

/// What is answered.
pub enum Answer {
    /// One row for each.
    Rows(Vec<Vec<Option<String>>>),
    /// Done.
    Done,
    /// Not done.
    Refused(Refusal),
    /// Something has to be found out first.
    Later,
}

/// The columns of `EXPLAIN ROUTE`.
const EXPLAINED: [(&str, ColumnType); 6] = [
    ("target", ColumnType::Text),
    ("reason", ColumnType::Text),
    ("explanation", ColumnType::Text),
    ("culprit", ColumnType::Text),
    ("consistency", ColumnType::Text),
    ("replicas", ColumnType::Text),
];

impl Command {
    /// What a text asks for that [`wishes::concerns`] us.
    fn parse(sql: &[u8], judge: &Judge<'_>) -> Command {
        if let Some(name) = wishes::deallocated(sql) {
            return Command::Forget(name.into());
        }
        let route = routing::analyse(sql, judge.lexing, judge.catalog);
        let wrong = |refusal: Refusal| Command::Wrong(Box::new(refusal));
        let ([traced], 1) = (route.effects.as_slice(), route.parts) else {
            return wrong(Refusal::own_setting("settings of the router stand alone in their text").sqlstate("0A000"));
        };
        let name = |bytes: &routing::route::Bytes| String::from_utf8_lossy(&bytes.0).into_owned();
        let wish = |name: &str, text: Option<&str>, local: bool, tag: &'static str| match Wish::parse(name, text) {
            Ok(wish) => Command::Wish { wish, local, tag },
            Err(bad) => wrong(Refusal::own_setting(bad.1).sqlstate(bad.0)),
        };
        match &traced.effect {
            // With the hints in front of it.
            Effect::ExplainRoute(_) => Command::Explain(wishes::explained(sql).into()),
            Effect::Show(shown) => match name(shown) {
                shown if wishes::NAMES.contains(&shown.as_str()) => Command::Show(shown),
                other => wish(&other, None, false, "SHOW"),
            },
            Effect::Reset(Some(reset)) if name(reset) == "stemma.token" => Command::Token(String::new()),
            Effect::Reset(Some(reset)) => wish(&name(reset), None, false, "RESET"),
            Effect::Set { name: set, value, local } => match (name(set).as_str(), wishes::text(value)) {
                ("stemma.token", Some(text)) => Command::Token(text.unwrap_or_default().to_owned()),
                (set, Some(text)) => wish(set, text, *local, "SET"),
                (_, None) => wrong(Refusal::own_setting("write the value as one text in quotes").sqlstate("22023")),
            },
            _ => wrong(Refusal::own_setting("the router does not understand this").sqlstate("42601")),
        }
    }

    fn columns(&self) -> Vec<(&str, ColumnType)> {
        match self {
            Command::Show(name) => vec![(name, ColumnType::Text)],
            Command::Explain(_) => EXPLAINED.to_vec(),
            Command::Wish { .. } | Command::Token(_) | Command::Forget(_) | Command::Wrong(_) => Vec::new(),
        }
    }

    fn tag(&self) -> &'static str {
        match self {
            Command::Show(_) => "SHOW",
            Command::Explain(_) => "EXPLAIN",
            Command::Wish { tag, .. } => tag,
            Command::Forget(_) => "DEALLOCATE",
            Command::Token(_) | Command::Wrong(_) => "SET",
        }
    }

    fn describe(&self, client: &mut Out) {
        match self.columns().as_slice() {
            [] => client.add(build::no_data),
            columns => client.add(|own| build::row_description(own, columns)),
        }
    }
}

/// What a client has prepared and opened for the router itself, and how far its segment is answered.
#[derive(Debug, Default)]
pub struct Own {
    statements: HashMap<Box<[u8]>, Rc<Command>>,
    portals: HashMap<Box<[u8]>, Rc<Command>>,
    /// Messages of the extended protocol were answered, and no Sync since.
    open: bool,
    /// One of them was refused: the rest up to the Sync is passed over.
    failed: bool,
}

impl Own {
    fn concerns(&self, tag: u8, body: &[u8]) -> bool {
        match tag {
            b'B' => frontend::bind_head(body).is_some_and(|names| self.statements.contains_key(names.statement)),
            b'D' | b'C' => match frontend::target(body) {
                Ok(Target::Statement(name)) => self.statements.contains_key(name),
                Ok(Target::Portal(name)) => self.portals.contains_key(name),
                Err(_) => false,
            },
            b'E' => c_string(body).is_ok_and(|(portal, _)| self.portals.contains_key(portal)),
            b'S' | b'H' => self.open,
            b'Q' | b'P' => {
                let name = sql(tag, body).and_then(wishes::deallocated);
                name.is_some_and(|name| self.statements.contains_key(&*name))
            }
            _ => false,
        }
    }

    /// A message goes to a server that takes a name of ours away.
    fn forget(&mut self, tag: u8, body: &[u8]) {
        match tag {
            b'P' => {
                if let Ok((name, _)) = c_string(body) {
                    self.statements.remove(name);
                }
            }
            b'B' => {
                if let Some(names) = frontend::bind_head(body) {
                    self.portals.remove(names.portal);
                }
            }
            b'Q' => {
                self.statements.remove(&b""[..]);
            }
            _ => {}
        }
    }

    fn run(&mut self, command: &Command, session: &mut dyn Knows) -> Answer {
        if session.status() == b'E' {
            let aborted = "current transaction is aborted, commands ignored until end of transaction block";
            return Answer::Refused(Refusal::own_setting(aborted).sqlstate("25P02"));
        }
        match command {
            Command::Wrong(refusal) => Answer::Refused(Refusal::clone(refusal)),
            Command::Forget(name) => {
                self.statements.remove(name);
                Answer::Done
            }
            command => session.answer(command),
        }
    }

    /// Whether nothing is left of it.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty() && self.portals.is_empty() && !self.open
    }
}

/// The SQL of a message that has any.
fn sql(tag: u8, body: &[u8]) -> Option<&[u8]> {
    match tag {
        b'Q' => frontend::query(body).ok(),
        b'P' => frontend::parse(body).ok().map(|parse| parse.sql),
        _ => None,
    }
}

/// Whether a message is for the router itself. All of it must be there.
pub fn is_ours(tag: u8, body: &[u8], own: Option<&Own>) -> bool {
    sql(tag, body).is_some_and(wishes::concerns)
        || own.is_some_and(|own| (own.failed && tag != b'X') || own.concerns(tag, body))
}

/// The session's side of an answer.
pub trait Knows {
    /// Does what is asked.
    fn answer(&mut self, command: &Command) -> Answer;
    /// State of the transaction, as in ReadyForQuery.
    fn status(&self) -> u8;
}

/// Answers the messages at the front of `input` that are for the router, of a client to which nothing is due. Returns how
/// many bytes that were. `own` is made when there is something to keep, and goes when there is nothing.
pub fn answer(
    input: &[u8],
    own: &mut Option<Box<Own>>,
    judge: &Judge<'_>,
    session: &mut dyn Knows,
    client: &mut Out,
) -> Result<usize, Malformed> {
    let mut at = 0;
    loop {
        let Some(head) = client_header(&input[at..])? else { return Ok(at) };
        let Some(body) = input[at..].get(HEADER_BYTES..head.total()) else { return Ok(at) };
        if !is_ours(head.tag, body, own.as_deref()) {
            if let Some(kept) = own {
                kept.forget(head.tag, body);
                // What follows is a segment of a server's, whose Sync ends ours too.
                kept.open = false;
                if kept.is_empty() {
                    *own = None;
                }
            }
            return Ok(at);
        }
        let kept = own.get_or_insert_default();
        let answered = message(head, body, kept, judge, session, client)?;
        if kept.is_empty() {
            *own = None;
        }
        if !answered {
            return Ok(at);
        }
        at += head.total();
    }
}

/// Answers one message; `false` where it has to come again later.
fn message(
    head: Header,
    body: &[u8],
    own: &mut Own,
    judge: &Judge<'_>,
    session: &mut dyn Knows,
    client: &mut Out,
) -> Result<bool, Malformed> {
    let status = session.status();
    if own.failed && head.tag != b'S' {
        return Ok(true);
    }
    match head.tag {
        b'Q' => {
            let command = Command::parse(frontend::query(body)?, judge);
            own.statements.remove(&b""[..]);
            let answer = own.run(&command, session);
            if matches!(answer, Answer::Later) {
                return Ok(false);
            }
            if matches!(answer, Answer::Rows(_)) {
                command.describe(client);
            }
            say(&command, answer, client);
            client.add(|own| build::ready(own, status));
            return Ok(true);
        }
        b'S' => {
            (own.open, own.failed) = (false, false);
            if status == b'I' {
                own.portals.clear();
            }
            client.add(|own| build::ready(own, status));
            return Ok(true);
        }
        b'P' => {
            let parse = frontend::parse(body)?;
            match Command::parse(parse.sql, judge) {
                Command::Wrong(refusal) => {
                    client.add(|own| refusal.write("ERROR", own));
                    own.failed = true;
                }
                command => {
                    own.statements.insert(parse.name.into(), Rc::new(command));
                    client.add(build::parse_complete);
                }
            }
        }
        b'B' => {
            let names = frontend::bind_head(body).ok_or(Malformed("a Bind whose names do not end"))?;
            if let Some(command) = own.statements.get(names.statement) {
                own.portals.insert(names.portal.into(), command.clone());
            }
            client.add(build::bind_complete);
        }
        b'D' => match frontend::target(body)? {
            Target::Statement(name) => {
                client.add(build::no_parameters);
                if let Some(command) = own.statements.get(name) {
                    command.describe(client);
                }
            }
            Target::Portal(name) => {
                if let Some(command) = own.portals.get(name) {
                    command.describe(client);
                }
            }
        },
        b'E' => {
            let (portal, _) = c_string(body)?;
            if let Some(command) = own.portals.get(portal).cloned() {
                let answer = own.run(&command, session);
                if matches!(answer, Answer::Later) {
                    return Ok(false);
                }
                own.failed = matches!(answer, Answer::Refused(_));
                say(&command, answer, client);
            }
        }
        b'C' => {
            match frontend::target(body)? {
                Target::Statement(name) => own.statements.remove(name),
                Target::Portal(name) => own.portals.remove(name),
            };
            client.add(build::close_complete);
        }
        _ => {}
    }
    own.open = true;
    Ok(true)
}

fn say(command: &Command, answer: Answer, client: &mut Out) {
    match answer {
        Answer::Rows(rows) => {
            for row in &rows {
                client.add(|own| build::data_row(own, row));
            }
            client.add(|own| build::command_complete(own, command.tag()));
        }
        Answer::Later => {}
        Answer::Done => client.add(|own| build::command_complete(own, command.tag())),
        Answer::Refused(refusal) => client.add(|own| refusal.write("ERROR", own)),
    }
}
