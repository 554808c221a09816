//! Statements that may be reads, and the scan for what would make them writes (rules C-2 to C-5).

use super::reader::{Reader, Verdict};
use crate::catalog::{Avoid, Volatility};
use crate::lex::{Kind, Token};
use crate::names::Name;
use crate::route::{Bytes, Class, Effect, Reason, Untracked, Value};
use crate::words::{self, Calls, Keyword};

/// Names longer than this are cut by the server, and are then other names.
const NAME_BYTES_MAX: usize = 63;
/// How far the form of a common table expression is looked for behind an unknown name.
const COLUMN_LIST_TOKENS_MAX: usize = 400;

/// Whether the functions that are named will be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Functions {
    Run,
    /// `EXPLAIN` only plans them; a list of options has none.
    NotRun,
}

impl Reader<'_> {
    /// A statement whose first keyword is `SELECT`, `WITH`, `VALUES`, `TABLE` or a parenthesis.
    pub(super) fn query(&mut self, functions: Functions) -> Verdict {
        if !self.catalog.is_warm() {
            let found = self.scan(Functions::NotRun);
            // What writes for certain is named as such even now.
            return found.unwrap_or_else(|| Verdict::of(Class::Write, Reason::CatalogCold));
        }
        self.scan(functions).unwrap_or_else(|| Verdict::of(Class::Read, Reason::PlainRead))
    }

    /// A statement that is a write by its first keyword: only its effects are looked for.
    pub(super) fn write(&mut self, reason: Reason) -> Verdict {
        let verdict = Verdict::write(reason, self.token);
        self.scan(Functions::Run);
        verdict
    }

    /// Reads to the end of the statement. The first thing that forbids a replica is returned; effects are noted.
    pub(super) fn scan(&mut self, functions: Functions) -> Option<Verdict> {
        let mut found: Option<Verdict> = None;
        while !self.at_end() {
            if let Some(verdict) = self.step(functions) {
                found = Verdict::harder(found, Some(verdict));
            }
        }
        found
    }

    /// Judges the token in hand and moves on.
    pub(super) fn step(&mut self, functions: Functions) -> Option<Verdict> {
        let token = self.token;
        let reason = match token.kind {
            Kind::Word => self.word(functions),
            Kind::Quoted => self.named(&self.name(token), Calls::Name, functions),
            Kind::QuotedUnicode => Some(Reason::UnreadableName),
            Kind::Operator => {
                let volatile = self.catalog.operator_is_volatile(&self.name(token));
                (volatile && functions == Functions::Run).then_some(Reason::VolatileOperator)
            }
            Kind::Broken => {
                self.effect(Effect::Untracked(Untracked::Unreadable));
                Some(Reason::Unlexable)
            }
            Kind::Text
            | Kind::TextEscaped
            | Kind::TextDollar
            | Kind::Number
            | Kind::Parameter
            | Kind::Open
            | Kind::Close
            | Kind::Bracket
            | Kind::Comma
            | Kind::Semicolon
            | Kind::Colon
            | Kind::Cast
            | Kind::Assign
            | Kind::Dot
            | Kind::End => None,
        };
        self.advance();
        reason.map(|reason| Verdict::write(reason, token))
    }

    fn word(&mut self, functions: Functions) -> Option<Reason> {
        let name = self.name(self.token);
        // Behind a point every word is a name, whatever it means elsewhere.
        let qualified = self.before[1].kind == Kind::Dot;
        let keyword = if qualified { None } else { words::lookup(&name) };
        if let Some((keyword, _)) = keyword
            && let Some(reason) = self.forbidden(keyword)
        {
            return Some(reason);
        }
        let calls = keyword.map_or(Calls::Name, |(_, calls)| calls);
        self.named(&name, calls, functions)
    }

    /// Words that make a statement a write wherever they stand (C-2).
    fn forbidden(&mut self, keyword: Keyword) -> Option<Reason> {
        match keyword {
            Keyword::Insert
            | Keyword::Update
            | Keyword::Delete
            | Keyword::Merge
            | Keyword::Truncate
            | Keyword::Call
            | Keyword::Do
            | Keyword::Lock
            | Keyword::Notify
            | Keyword::Listen => Some(Reason::WriteKeyword),
            Keyword::Into => {
                if self.ahead_is(Keyword::Temp) || self.ahead_is(Keyword::Temporary) || self.ahead_is(Keyword::Local) {
                    self.effect(Effect::TempObject);
                }
                Some(Reason::Into)
            }
            Keyword::For if self.ahead_is(Keyword::Share) || self.ahead_is(Keyword::Key) => Some(Reason::Locking),
            _ => None,
        }
    }

    /// A name, in whatever place (C-3 to C-5).
    fn named(&mut self, name: &Name<'_>, calls: Calls, functions: Functions) -> Option<Reason> {
        if name.bytes.len() > NAME_BYTES_MAX {
            return Some(Reason::UnreadableName);
        }
        let called = self.ahead.kind == Kind::Open && calls != Calls::Never;
        let call = if called { self.call(name, calls, functions) } else { None };
        if call.is_some() {
            return call;
        }
        let vouched = called && (functions == Functions::NotRun || self.is_trusted(name));
        if let Some(reason) = if vouched { None } else { self.plain_name(name) } {
            return Some(reason);
        }
        // `row.f` may be a call of f(row).
        let attribute = self.before[1].kind == Kind::Dot && !called && functions == Functions::Run;
        if attribute && self.catalog.function(name) == Some(Volatility::Volatile) && !words::is_harmless_volatile(name)
        {
            return Some(Reason::VolatileFunction);
        }
        None
    }

    fn is_trusted(&self, name: &Name<'_>) -> bool {
        self.catalog.function(name) == Some(Volatility::Trusted)
    }

    /// A name that is not called (C-4, C-5).
    pub(super) fn plain_name(&self, name: &Name<'_>) -> Option<Reason> {
        if name.bytes.len() > NAME_BYTES_MAX {
            return Some(Reason::UnreadableName);
        }
        match self.catalog.relation(name) {
            Some(Avoid::Allowed) => None,
            Some(Avoid::Unlogged) => Some(Reason::UnloggedRelation),
            Some(Avoid::Foreign) => Some(Reason::ForeignRelation),
            Some(Avoid::Sequence) => Some(Reason::SequenceRelation),
            Some(Avoid::Definition) => Some(Reason::DefinitionAvoided),
            Some(Avoid::Configured) => Some(Reason::RelationOverride),
            None => words::is_node_dependent(name).then_some(Reason::NodeDependent),
        }
    }

    /// A name before a parenthesis: a function, unless the place says otherwise.
    fn call(&mut self, name: &Name<'_>, calls: Calls, functions: Functions) -> Option<Reason> {
        if self.is_no_call(name) {
            return None;
        }
        let reason = self.session_function(name);
        if functions == Functions::NotRun {
            return None;
        }
        if reason.is_some() {
            return reason;
        }
        match self.catalog.function(name) {
            Some(Volatility::Trusted) => return None,
            Some(Volatility::Distrusted) => return Some(Reason::FunctionOverride),
            Some(Volatility::Steady | Volatility::Volatile) | None => {}
        }
        if words::is_node_dependent(name) || words::is_node_dependent_function(name) {
            return if self.is_own_setting(name) { None } else { Some(Reason::NodeDependent) };
        }
        match self.catalog.function(name) {
            Some(Volatility::Steady) => None,
            Some(_) if words::is_harmless_volatile(name) => None,
            Some(_) => Some(Reason::VolatileFunction),
            // A construct of the grammar, as nobody has made a function of this name.
            None if calls == Calls::Perhaps => None,
            None if self.is_table_expression() => None,
            None => Some(Reason::UnknownFunction),
        }
    }

    /// Places in which `name (` is never a call: a type behind `::`, a name behind AS, the first name behind WITH.
    fn is_no_call(&self, name: &Name<'_>) -> bool {
        let previous = self.before[1];
        if previous.kind == Kind::Cast {
            return true;
        }
        match self.keyword_of(previous).map(|(keyword, _)| keyword) {
            Some(Keyword::As | Keyword::With) => true,
            Some(Keyword::Recursive) => {
                self.keyword_of(self.before[0]).is_some_and(|(keyword, _)| keyword == Keyword::With)
            }
            Some(Keyword::Tablesample) => name.is(b"bernoulli") || name.is(b"system"),
            _ => false,
        }
    }

    /// Whether the unknown name in hand is a further table expression of a WITH: `, name (columns) AS (SELECT`. A
    /// function in FROM may look alike as far as the last parenthesis, but not beyond it.
    fn is_table_expression(&self) -> bool {
        if self.before[1].kind != Kind::Comma {
            return false;
        }
        let mut ahead = self.fork();
        ahead.advance();
        ahead.advance();
        for _ in 0..COLUMN_LIST_TOKENS_MAX {
            match ahead.token.kind {
                Kind::Word | Kind::Quoted | Kind::Comma => ahead.advance(),
                _ => break,
            }
        }
        if !ahead.eat_kind(Kind::Close) || !ahead.eat(Keyword::As) {
            return false;
        }
        ahead.eat(Keyword::Not);
        ahead.eat(Keyword::Materialized);
        ahead.eat_kind(Kind::Open) && (ahead.is(Keyword::Select) || ahead.is(Keyword::With))
    }

    /// `current_setting('app.user')`: settings with a point in their name are the session's own and follow it.
    fn is_own_setting(&self, name: &Name<'_>) -> bool {
        if !name.is(b"current_setting") {
            return false;
        }
        let mut ahead = self.fork();
        ahead.advance();
        ahead.advance();
        ahead.literal(ahead.token).is_some_and(|value| {
            ahead.token.kind == Kind::Text && value.0.contains(&b'.') && !value.0.starts_with(b"stemma.")
        })
    }

    /// Functions that change the session: their effect is noted, and they are for the primary.
    fn session_function(&mut self, name: &Name<'_>) -> Option<Reason> {
        if name.starts_with(b"pg_advisory_") || name.starts_with(b"pg_try_advisory_") {
            if name.is(b"pg_advisory_unlock_all") {
                self.effect(Effect::AdvisoryUnlockAll);
            } else if name.starts_with(b"pg_advisory_unlock") {
                self.effect(Effect::AdvisoryUnlock);
            } else if !name.starts_with(b"pg_advisory_xact_") && !name.starts_with(b"pg_try_advisory_xact_") {
                self.effect(Effect::AdvisoryLock);
            }
            return Some(Reason::NodeDependent);
        }
        if name.is(b"setseed") {
            self.effect(Effect::Untracked(Untracked::Seed));
            return Some(Reason::NodeDependent);
        }
        if name.is(b"set_config") {
            if let Some(effect) = self.set_config() {
                self.effect(effect);
            }
            return Some(Reason::NodeDependent);
        }
        None
    }

    /// What `set_config(name, value, is_local)` leaves behind. Nothing if it is literally local and cannot be read: the
    /// transaction keeps its server as long as the setting lives.
    fn set_config(&self) -> Option<Effect> {
        let mut ahead = self.fork();
        ahead.advance();
        let mut arguments = [None, None, None];
        for argument in &mut arguments {
            ahead.advance();
            *argument = ahead.argument();
        }
        let [name, value, local] = arguments;
        let local = match local.as_ref().map(|local| &*local.0) {
            Some(b"true" | b"t" | b"on" | b"1" | b"yes") => Some(true),
            Some(b"false" | b"f" | b"off" | b"0" | b"no") => Some(false),
            _ => None,
        };
        // Only where it stands alone is it certain to run, and to run once.
        let closed = ahead.eat_kind(Kind::Close) && ahead.at_end();
        let first = self.before[1].kind == Kind::Dot
            || self.keyword_of(self.before[1]).is_some_and(|(keyword, _)| keyword == Keyword::Select);
        match (name, value, local) {
            (Some(name), Some(value), Some(local)) if closed && first => {
                let name = Bytes(name.0.to_ascii_lowercase().into());
                Some(Effect::Set { name, value: Value::Plain(value), local })
            }
            (_, _, Some(true)) => None,
            _ => Some(Effect::Untracked(Untracked::SetConfig)),
        }
    }

    /// The literal that is the whole argument in hand; moves to the comma or parenthesis behind the argument.
    fn argument(&mut self) -> Option<Bytes> {
        let plain = matches!(self.ahead.kind, Kind::Comma | Kind::Close)
            && matches!(self.token.kind, Kind::Text | Kind::Word | Kind::TextDollar);
        let value = if plain { self.literal(self.token) } else { None };
        let mut depth = 0_usize;
        while !self.at_end() {
            match self.token.kind {
                Kind::Open => depth += 1,
                Kind::Close | Kind::Comma if depth == 0 => break,
                Kind::Close => depth -= 1,
                _ => {}
            }
            self.advance();
        }
        value
    }

    /// Whether this token begins something that can be a read.
    pub(super) fn begins_query(&self, token: Token) -> bool {
        let keyword = self.keyword_of(token).map(|(keyword, _)| keyword);
        token.kind == Kind::Open
            || matches!(keyword, Some(Keyword::Select | Keyword::With | Keyword::Values | Keyword::Table))
    }
}
