//! The first keyword decides what kind of statement it is; those that control the session are read to their parts.

use super::query::Functions;
use super::reader::{Reader, Verdict};
use crate::lex::Kind;
use crate::route::{Bytes, Class, Discard, Effect, Isolation, Modes, Reason, Untracked, Value};
use crate::words::Keyword;

impl Reader<'_> {
    /// One statement, from its first token to somewhere before its end.
    pub(super) fn statement(&mut self) -> Verdict {
        if self.begins_query(self.token) {
            return self.query(Functions::Run);
        }
        if self.token.kind == Kind::Broken {
            return self.write(Reason::Unlexable);
        }
        let Some(keyword) = self.keyword() else { return self.write(Reason::UnknownStatement) };
        match keyword {
            Keyword::Begin | Keyword::Start => self.begin(),
            Keyword::Commit | Keyword::End => self.commit(),
            Keyword::Rollback | Keyword::Abort => self.rollback(),
            Keyword::Savepoint => self.named_effect(Class::Transaction, Effect::Savepoint),
            Keyword::Release => self.release(),
            Keyword::Set => self.set(),
            Keyword::Reset => self.reset(),
            Keyword::Discard => self.discard(),
            Keyword::Show => self.show(),
            Keyword::Prepare => self.prepare(),
            Keyword::Execute => self.execute(),
            Keyword::Deallocate => self.deallocate(),
            Keyword::Declare => self.declare(),
            Keyword::Fetch | Keyword::Move => Verdict::control(Class::Session),
            Keyword::Close => self.all_or_name(Effect::Close),
            Keyword::Listen => self.named_effect(Class::Session, Effect::Listen),
            Keyword::Unlisten => self.unlisten(),
            Keyword::Notify => self.notify(),
            Keyword::Explain => self.explain(),
            Keyword::Copy => self.copy(),
            Keyword::Load => self.untracked(Untracked::Load),
            Keyword::Do => self.untracked(Untracked::DoBlock),
            Keyword::Create => self.create(),
            Keyword::Alter | Keyword::Drop | Keyword::Import => {
                self.effect(Effect::CatalogChanged);
                self.write(Reason::NotAQuery)
            }
            Keyword::Insert
            | Keyword::Update
            | Keyword::Delete
            | Keyword::Merge
            | Keyword::Truncate
            | Keyword::Call
            | Keyword::Lock => self.write(Reason::WriteKeyword),
            Keyword::Analyze | Keyword::Analyse | Keyword::Refresh | Keyword::Reindex => self.write(Reason::NotAQuery),
            _ => self.write(Reason::UnknownStatement),
        }
    }

    fn untracked(&mut self, what: Untracked) -> Verdict {
        self.effect(Effect::Untracked(what));
        self.write(Reason::NotAQuery)
    }

    /// `KEYWORD name`.
    fn named_effect(&mut self, class: Class, effect: impl Fn(Bytes) -> Effect) -> Verdict {
        self.advance();
        if let Some(name) = self.take_name() {
            self.effect(effect(name));
        }
        Verdict::control(class)
    }

    /// `KEYWORD ALL | name`.
    fn all_or_name(&mut self, effect: impl Fn(Option<Bytes>) -> Effect) -> Verdict {
        self.advance();
        if self.eat(Keyword::All) {
            self.effect(effect(None));
        } else if let Some(name) = self.take_name() {
            self.effect(effect(Some(name)));
        }
        Verdict::control(Class::Session)
    }

    fn begin(&mut self) -> Verdict {
        self.advance();
        let _ = self.eat(Keyword::Work) || self.eat(Keyword::Transaction);
        let modes = self.modes();
        self.effect(Effect::Begin(modes));
        Verdict::control(Class::Transaction)
    }

    /// Transaction modes up to the end of the statement. Of repeated ones the last counts, as in PostgreSQL.
    fn modes(&mut self) -> Modes {
        let mut modes = Modes::default();
        let mut negated = false;
        while !self.at_end() {
            match self.keyword() {
                Some(Keyword::Read) if self.ahead_is(Keyword::Only) => modes.read_only = Some(true),
                Some(Keyword::Read) if self.ahead_is(Keyword::Write) => modes.read_only = Some(false),
                Some(Keyword::Read) if self.ahead_is(Keyword::Committed) => {
                    modes.isolation = Some(Isolation::ReadCommitted);
                }
                Some(Keyword::Read) if self.ahead_is(Keyword::Uncommitted) => {
                    modes.isolation = Some(Isolation::ReadUncommitted);
                }
                Some(Keyword::Repeatable) => modes.isolation = Some(Isolation::RepeatableRead),
                Some(Keyword::Serializable) => modes.isolation = Some(Isolation::Serializable),
                Some(Keyword::Deferrable) => modes.deferrable = Some(!negated),
                _ => {}
            }
            negated = self.is(Keyword::Not);
            self.advance();
        }
        modes
    }

    /// `[WORK | TRANSACTION] [AND [NO] CHAIN]`.
    fn chain(&mut self) -> bool {
        let _ = self.eat(Keyword::Work) || self.eat(Keyword::Transaction);
        self.eat(Keyword::And) && !self.eat(Keyword::No) && self.is(Keyword::Chain)
    }

    fn commit(&mut self) -> Verdict {
        self.advance();
        let effect = if self.is(Keyword::Prepared) {
            Effect::FinishPrepared { commit: true }
        } else {
            Effect::Commit { chain: self.chain() }
        };
        self.effect(effect);
        Verdict::control(Class::Transaction)
    }

    fn rollback(&mut self) -> Verdict {
        self.advance();
        if self.is(Keyword::Prepared) {
            self.effect(Effect::FinishPrepared { commit: false });
            return Verdict::control(Class::Transaction);
        }
        let _ = self.eat(Keyword::Work) || self.eat(Keyword::Transaction);
        if self.eat(Keyword::To) {
            self.skip_savepoint_word();
            if let Some(name) = self.take_name() {
                self.effect(Effect::RollbackTo(name));
            }
        } else {
            let chain = self.chain();
            self.effect(Effect::Rollback { chain });
        }
        Verdict::control(Class::Transaction)
    }

    /// Over the noise word SAVEPOINT, unless it is itself the name.
    fn skip_savepoint_word(&mut self) {
        if matches!(self.ahead.kind, Kind::Word | Kind::Quoted) {
            self.eat(Keyword::Savepoint);
        }
    }

    fn release(&mut self) -> Verdict {
        self.advance();
        self.skip_savepoint_word();
        if let Some(name) = self.take_name() {
            self.effect(Effect::Release(name));
        }
        Verdict::control(Class::Transaction)
    }

    fn set(&mut self) -> Verdict {
        self.advance();
        let session = self.is(Keyword::Session) && !self.is_assigned() && self.eat(Keyword::Session);
        let local = !session && self.is(Keyword::Local) && !self.is_assigned() && self.eat(Keyword::Local);
        if self.is_assigned() {
            return self.set_value(local);
        }
        match self.keyword() {
            Some(Keyword::Characteristics) => {
                let modes = self.modes();
                self.effect(Effect::SetCharacteristics(modes));
            }
            Some(Keyword::Transaction) => {
                let snapshot = self.ahead_is(Keyword::Snapshot);
                let modes = self.modes();
                self.effect(Effect::SetTransaction { modes, snapshot });
                return Verdict::control(Class::Transaction);
            }
            // It concerns the checks of the running transaction only.
            Some(Keyword::Constraints) => return Verdict::control(Class::Transaction),
            Some(Keyword::Time) => return self.set_special("timezone", 2, local),
            Some(Keyword::Names) => return self.set_special("client_encoding", 1, local),
            Some(Keyword::Schema) => return self.set_special("search_path", 1, local),
            Some(Keyword::Role) => return self.set_special("role", 1, local),
            Some(Keyword::Authorization) => return self.set_special("session_authorization", 1, local),
            Some(Keyword::Xml) => return self.set_special("xmloption", 2, local),
            _ => return self.set_value(local),
        }
        Verdict::control(Class::Session)
    }

    /// Whether the word in hand is the name of a setting: `=` or TO stands behind it.
    fn is_assigned(&self) -> bool {
        let sign = self.ahead.kind == Kind::Operator && self.bytes(self.ahead) == b"=";
        sign || self.ahead_is(Keyword::To) || self.ahead.kind == Kind::Dot
    }

    /// `SET TIME ZONE value` and its like: `words` words, then the value.
    fn set_special(&mut self, name: &str, words: usize, local: bool) -> Verdict {
        for _ in 0..words {
            self.advance();
        }
        let value = self.value();
        // Without a value `SET NAMES` means the default; the others are errors then.
        let value = value.unwrap_or(Value::Default);
        let value = match value {
            Value::Plain(Bytes(word)) if &*word == b"local" && name == "timezone" => Value::Default,
            Value::Default | Value::Plain(_) | Value::Raw(_) => value,
        };
        self.effect(Effect::Set { name: name.into(), value, local });
        Verdict::control(Class::Session)
    }

    fn set_value(&mut self, local: bool) -> Verdict {
        let Some(name) = self.setting_name() else { return self.write(Reason::UnknownStatement) };
        if !self.eat(Keyword::To) {
            self.advance();
        }
        match self.value() {
            Some(value) => {
                self.effect(Effect::Set { name, value, local });
                Verdict::control(Class::Session)
            }
            None => self.write(Reason::UnknownStatement),
        }
    }

    /// `name` or `extension.name`.
    fn setting_name(&mut self) -> Option<Bytes> {
        let mut name = self.take_name()?.0.into_vec();
        while self.eat_kind(Kind::Dot) {
            name.push(b'.');
            name.extend_from_slice(&self.take_name()?.0);
        }
        // Names of settings are compared without regard to case even when quoted.
        name.make_ascii_lowercase();
        Some(Bytes(name.into()))
    }

    /// The rest of the statement as a value.
    fn value(&mut self) -> Option<Value> {
        if self.at_end() {
            return None;
        }
        let (first, from) = (self.token, self.token.start);
        let default = self.is(Keyword::Default);
        let mut to = first.end;
        let mut count = 0_usize;
        while !self.at_end() {
            if self.token.kind == Kind::Broken {
                self.effect(Effect::Untracked(Untracked::Unreadable));
            }
            to = self.token.end;
            count += 1;
            self.advance();
        }
        let single = if count == 1 { self.literal(first) } else { None };
        Some(match single {
            Some(_) if default => Value::Default,
            Some(value) => Value::Plain(value),
            None => Value::Raw(Bytes(self.span(from, to).into())),
        })
    }

    fn reset(&mut self) -> Verdict {
        self.advance();
        let special = match self.keyword() {
            Some(Keyword::All) => None,
            Some(Keyword::Session) if self.ahead_is(Keyword::Authorization) => Some("session_authorization".into()),
            Some(Keyword::Time) if self.ahead.kind == Kind::Word => Some("timezone".into()),
            Some(Keyword::Transaction) => {
                // RESET TRANSACTION ISOLATION LEVEL.
                return Verdict::control(Class::Transaction);
            }
            _ => match self.setting_name() {
                Some(name) => Some(name),
                None => return self.write(Reason::UnknownStatement),
            },
        };
        self.effect(Effect::Reset(special));
        Verdict::control(Class::Session)
    }

    fn discard(&mut self) -> Verdict {
        self.advance();
        let what = match self.keyword() {
            Some(Keyword::All) => Discard::All,
            Some(Keyword::Plans) => Discard::Plans,
            Some(Keyword::Sequences) => Discard::Sequences,
            Some(Keyword::Temp | Keyword::Temporary) => Discard::Temp,
            _ => return self.write(Reason::UnknownStatement),
        };
        self.effect(Effect::Discard(what));
        Verdict::control(Class::Session)
    }

    fn show(&mut self) -> Verdict {
        self.advance();
        let name = match self.keyword() {
            Some(Keyword::Time) if self.ahead.kind == Kind::Word => "timezone".into(),
            Some(Keyword::Transaction) if self.ahead_is(Keyword::Isolation) => "transaction_isolation".into(),
            Some(Keyword::Session) if self.ahead_is(Keyword::Authorization) => "session_authorization".into(),
            _ => match self.setting_name() {
                Some(name) => name,
                None => return self.write(Reason::UnknownStatement),
            },
        };
        self.effect(Effect::Show(name));
        Verdict::control(Class::Session)
    }

    fn prepare(&mut self) -> Verdict {
        self.advance();
        // `PREPARE TRANSACTION 'id'`; TRANSACTION may also be the name of a statement.
        if self.is(Keyword::Transaction) && matches!(self.ahead.kind, Kind::Text | Kind::TextEscaped | Kind::TextDollar)
        {
            self.effect(Effect::PrepareTransaction);
            return Verdict::control(Class::Transaction);
        }
        let Some(name) = self.take_name() else { return self.write(Reason::UnknownStatement) };
        while !self.at_end() && !self.is(Keyword::As) {
            self.advance();
        }
        self.advance();
        let start = self.token.start as usize;
        let kept = self.effects_count();
        let class = if self.begins_query(self.token) { self.query(Functions::Run).class } else { Class::Write };
        self.skip_statement();
        // What it will do to the session it does when executed. That cannot be followed by name: it is for the primary
        // then, and taken for a change of everything that is not followed.
        let hidden = self.effects_count() > kept;
        self.forget_effects(kept);
        let end = self.token.start as usize;
        self.effect(Effect::Prepare { name, class, body: start..end });
        if hidden {
            self.effect(Effect::Untracked(Untracked::SetConfig));
        }
        Verdict::control(Class::Session)
    }

    fn execute(&mut self) -> Verdict {
        let first = self.token;
        self.advance();
        let Some(name) = self.take_name() else { return self.write(Reason::UnknownStatement) };
        let arguments_read = self.scan(Functions::Run).is_none() && self.catalog.is_warm();
        self.effect(Effect::Execute { name, arguments_read });
        Verdict::write(Reason::ExecuteByName, first)
    }

    fn deallocate(&mut self) -> Verdict {
        // `DEALLOCATE PREPARE name`, unless PREPARE is the name.
        if self.ahead_is(Keyword::Prepare) {
            let mut ahead = self.fork();
            ahead.advance();
            if matches!(ahead.ahead.kind, Kind::Word | Kind::Quoted) {
                self.advance();
            }
        }
        self.all_or_name(Effect::Deallocate)
    }

    fn declare(&mut self) -> Verdict {
        let first = self.token;
        self.advance();
        let Some(name) = self.take_name() else { return self.write(Reason::UnknownStatement) };
        let mut hold = false;
        while !self.at_end() && !self.is(Keyword::For) {
            // WITHOUT HOLD has the same last word.
            hold |= self.is(Keyword::With) && self.ahead_is(Keyword::Hold);
            self.advance();
        }
        self.effect(Effect::Declare { name, hold });
        self.advance();
        if !self.begins_query(self.token) {
            return self.write(Reason::NotAQuery);
        }
        let verdict = self.query(Functions::Run);
        match verdict.class {
            Class::Read if hold => Verdict::write(Reason::CursorHold, first),
            Class::Read | Class::Write | Class::Transaction | Class::Session => verdict,
        }
    }

    fn unlisten(&mut self) -> Verdict {
        self.advance();
        let channel = self.take_name();
        self.effect(Effect::Unlisten(channel));
        Verdict::control(Class::Session)
    }

    fn notify(&mut self) -> Verdict {
        let verdict = Verdict::write(Reason::WriteKeyword, self.token);
        self.advance();
        if let Some(channel) = self.take_name() {
            self.effect(Effect::Notify(channel));
        }
        verdict
    }

    fn explain(&mut self) -> Verdict {
        let first = self.token;
        self.advance();
        if self.is(Keyword::Route) {
            self.advance();
            self.effect(Effect::ExplainRoute(self.token.start as usize));
            return Verdict::control(Class::Session);
        }
        let mut analyze = false;
        if self.token.kind == Kind::Open && !self.begins_query(self.ahead) {
            // Options. One that turns ANALYZE off again is not worth understanding.
            while !self.at_end() && self.token.kind != Kind::Close {
                analyze |= matches!(self.keyword(), Some(Keyword::Analyze | Keyword::Analyse));
                analyze |= matches!(self.token.kind, Kind::Quoted | Kind::QuotedUnicode);
                self.advance();
            }
            self.advance();
        }
        while let Some(Keyword::Analyze | Keyword::Analyse | Keyword::Verbose) = self.keyword() {
            analyze |= !self.is(Keyword::Verbose);
            self.advance();
        }
        if !self.begins_query(self.token) {
            let inner = self.keyword();
            let reason = if analyze { Reason::ExplainAnalyze } else { Reason::ExplainOther };
            let kept = self.effects_count();
            self.scan(Functions::Run);
            if !analyze {
                self.forget_effects(kept);
            } else if inner == Some(Keyword::Execute) {
                // What it executes is known by name only.
                self.effect(Effect::Untracked(Untracked::SetConfig));
            }
            return Verdict::write(reason, first);
        }
        let kept = self.effects_count();
        let verdict = self.query(if analyze { Functions::Run } else { Functions::NotRun });
        if !analyze {
            self.forget_effects(kept);
        }
        verdict
    }

    fn copy(&mut self) -> Verdict {
        let first = self.token;
        self.advance();
        let mut found =
            if self.catalog.is_warm() { None } else { Some(Verdict::of(Class::Write, Reason::CatalogCold)) };
        self.eat(Keyword::Binary);
        if self.token.kind == Kind::Open {
            // The query within is read up to its parenthesis by a reader of its own kind of end: the whole rest is
            // scanned, and what may stand behind TO STDOUT calls nothing but looks like it.
            return self.copy_query(first, found);
        }
        while !self.at_end() && !self.is(Keyword::From) && !self.is(Keyword::To) {
            let name = self.name(self.token);
            let listed = self.token.kind == Kind::Word || self.token.kind == Kind::Quoted;
            if self.token.kind == Kind::QuotedUnicode {
                found = Verdict::harder(found, Some(Verdict::write(Reason::UnreadableName, self.token)));
            } else if listed && let Some(verdict) = self.copied_name(&name) {
                found = Verdict::harder(found, Some(verdict));
            }
            self.advance();
        }
        if self.is(Keyword::From) {
            if self.ahead_is(Keyword::Stdin) || self.ahead_is(Keyword::Stdout) {
                self.effect(Effect::CopyIn);
            }
            return Verdict::write(Reason::CopyFrom, first);
        }
        self.copy_target(first, found)
    }

    /// The names of `COPY table (columns)`.
    fn copied_name(&mut self, name: &crate::names::Name<'_>) -> Option<Verdict> {
        let reason = self.plain_name(name)?;
        Some(Verdict::write(reason, self.token))
    }

    /// `COPY (query) TO ...`, from the parenthesis on.
    fn copy_query(&mut self, first: crate::lex::Token, mut found: Option<Verdict>) -> Verdict {
        let mut depth = 0_usize;
        while !self.at_end() {
            match self.token.kind {
                Kind::Open => depth += 1,
                Kind::Close => depth = depth.saturating_sub(1),
                _ => {}
            }
            if let Some(verdict) = self.step(Functions::Run) {
                found = Verdict::harder(found, Some(verdict));
            }
            if depth == 0 {
                break;
            }
        }
        self.copy_target(first, found)
    }

    /// `TO STDOUT ...`, and options in which nothing is called.
    fn copy_target(&mut self, first: crate::lex::Token, found: Option<Verdict>) -> Verdict {
        let out = self.is(Keyword::To) && (self.ahead_is(Keyword::Stdout) || self.ahead_is(Keyword::Stdin));
        if !out {
            return Verdict::write(Reason::CopyFile, first);
        }
        self.effect(Effect::CopyOut);
        let broken = self.scan(Functions::NotRun);
        Verdict::harder(found, broken).unwrap_or_else(|| Verdict::of(Class::Read, Reason::PlainRead))
    }

    fn create(&mut self) -> Verdict {
        let verdict = Verdict::write(Reason::NotAQuery, self.token);
        self.effect(Effect::CatalogChanged);
        let mut temporary = false;
        let mut routine = false;
        // The words before the object's name, and its schema.
        for _ in 0..8 {
            if self.at_end() || self.token.kind == Kind::Open {
                break;
            }
            temporary |= matches!(self.keyword(), Some(Keyword::Temp | Keyword::Temporary));
            temporary |= self.name(self.token).starts_with(b"pg_temp");
            routine |= matches!(self.keyword(), Some(Keyword::Function | Keyword::Procedure));
            self.advance();
        }
        if temporary {
            self.effect(Effect::TempObject);
        }
        if routine {
            self.routine_body();
        } else {
            self.definition_body();
        }
        verdict
    }

    /// Over the rest of a CREATE FUNCTION: in a body of SQL, semicolons between BEGIN ATOMIC and its END do not end it.
    fn routine_body(&mut self) {
        let mut depth = 0_usize;
        while self.token.kind != Kind::End && (depth > 0 || self.token.kind != Kind::Semicolon) {
            match self.keyword() {
                Some(Keyword::Begin) if self.ahead_is(Keyword::Atomic) => depth += 1,
                Some(Keyword::Case) if depth > 0 => depth += 1,
                Some(Keyword::End) => depth = depth.saturating_sub(1),
                _ => {}
            }
            self.advance();
        }
    }

    /// Over the rest of another CREATE: a rule may hold several statements in parentheses.
    fn definition_body(&mut self) {
        let mut depth = 0_usize;
        while self.token.kind != Kind::End && (depth > 0 || self.token.kind != Kind::Semicolon) {
            match self.token.kind {
                Kind::Open => depth += 1,
                Kind::Close => depth = depth.saturating_sub(1),
                _ => {}
            }
            self.advance();
        }
    }
}
