//! Walks over the statements of one text and gathers what they do.

use crate::catalog::Catalog;
use crate::lex::{Kind, Lexer, Lexing, Token};
use crate::names::Name;
use crate::route::{Bytes, Class, Effect, Reason, Route, Traced};
use crate::words::{Calls, Keyword, lookup};
use std::ops::Range;

/// The answer for one statement.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    pub class: Class,
    pub reason: Reason,
    pub culprit: Option<Range<u32>>,
}

impl Verdict {
    pub fn of(class: Class, reason: Reason) -> Verdict {
        Verdict { class, reason, culprit: None }
    }
    pub fn write(reason: Reason, token: Token) -> Verdict {
        Verdict { class: Class::Write, reason, culprit: Some(token.start..token.end) }
    }
    /// The harder of two, the earlier one of equals.
    pub fn harder(found: Option<Verdict>, other: Option<Verdict>) -> Option<Verdict> {
        match (found, other) {
            (Some(a), Some(b)) if b.reason.hardness() > a.reason.hardness() => Some(b),
            (Some(a), _) => Some(a),
            (None, b) => b,
        }
    }
    pub fn control(class: Class) -> Verdict {
        Verdict::of(class, Reason::Control)
    }
}

/// The token in hand, its neighbours, and what was found so far.
pub(super) struct Reader<'a> {
    sql: &'a [u8],
    lexer: Lexer<'a>,
    pub(super) catalog: &'a Catalog,
    /// The two tokens before the one in hand, within the same statement.
    pub(super) before: [Token; 2],
    pub(super) token: Token,
    pub(super) ahead: Token,
    part: u32,
    effects: Vec<Traced>,
}

impl<'a> Reader<'a> {
    pub fn new(sql: &'a [u8], lexing: Lexing, catalog: &'a Catalog) -> Reader<'a> {
        let mut lexer = Lexer::new(sql, lexing);
        let token = lexer.next_token();
        let ahead = lexer.next_token();
        let before = [Token::end_at(0); 2];
        Reader { sql, lexer, catalog, before, token, ahead, part: 0, effects: Vec::new() }
    }

    pub fn hint(&self) -> Option<&'a [u8]> {
        self.lexer.hint()
    }

    /// Reads all statements.
    pub fn text(&mut self) -> Route {
        let mut first: Option<Verdict> = None;
        loop {
            while self.token.kind == Kind::Semicolon {
                self.advance();
            }
            if self.token.kind == Kind::End {
                break;
            }
            self.before = [Token::end_at(0); 2];
            let verdict = self.statement();
            // A form that was read only in part leaves a tail, which must not be taken for the next statement.
            self.skip_statement();
            first.get_or_insert(verdict);
            self.part += 1;
        }
        let verdict = match first {
            None => Verdict::of(Class::Session, Reason::Empty),
            Some(verdict) if self.part == 1 => verdict,
            Some(_) => Verdict::of(Class::Write, Reason::MultiStatement),
        };
        let Verdict { class, reason, culprit } = verdict;
        let effects = std::mem::take(&mut self.effects);
        Route { class, reason, culprit, parts: self.part, effects, hint: None }
    }

    /// A second reader at the same place, for looking ahead.
    pub fn fork(&self) -> Reader<'a> {
        Reader { effects: Vec::new(), lexer: self.lexer.clone(), ..*self }
    }

    pub fn advance(&mut self) {
        self.before = [self.before[1], self.token];
        self.token = self.ahead;
        self.ahead = self.lexer.next_token();
    }

    pub fn at_end(&self) -> bool {
        matches!(self.token.kind, Kind::End | Kind::Semicolon)
    }

    /// Over what is left of the statement.
    pub fn skip_statement(&mut self) {
        while !self.at_end() {
            self.advance();
        }
    }

    pub fn bytes(&self, token: Token) -> &'a [u8] {
        &self.sql[token.start as usize..token.end as usize]
    }

    pub fn span(&self, from: u32, to: u32) -> &'a [u8] {
        self.sql.get(from as usize..to as usize).unwrap_or_default()
    }

    /// The token as a name; of a token that is none, an empty one.
    pub fn name(&self, token: Token) -> Name<'a> {
        let bytes = self.bytes(token);
        match token.kind {
            Kind::Word | Kind::Operator => Name { hash: token.hash, bytes, quoted: false },
            Kind::Quoted => Name { hash: token.hash, bytes: &bytes[1..bytes.len() - 1], quoted: true },
            _ => Name { hash: 0, bytes: b"", quoted: true },
        }
    }

    pub fn keyword_of(&self, token: Token) -> Option<(Keyword, Calls)> {
        if token.kind == Kind::Word { lookup(&self.name(token)) } else { None }
    }

    /// The keyword in hand.
    pub fn keyword(&self) -> Option<Keyword> {
        self.keyword_of(self.token).map(|(keyword, _)| keyword)
    }

    pub fn is(&self, keyword: Keyword) -> bool {
        self.keyword() == Some(keyword)
    }

    pub fn ahead_is(&self, keyword: Keyword) -> bool {
        self.keyword_of(self.ahead).is_some_and(|(found, _)| found == keyword)
    }

    /// Moves on if this keyword is in hand.
    pub fn eat(&mut self, keyword: Keyword) -> bool {
        let found = self.is(keyword);
        if found {
            self.advance();
        }
        found
    }

    pub fn eat_kind(&mut self, kind: Kind) -> bool {
        let found = self.token.kind == kind;
        if found {
            self.advance();
        }
        found
    }

    /// Takes a name.
    pub fn take_name(&mut self) -> Option<Bytes> {
        let token = self.token;
        if !matches!(token.kind, Kind::Word | Kind::Quoted) {
            return None;
        }
        self.advance();
        Some(Bytes(self.name(token).folded()))
    }

    /// The value of a string, number or word that needs no unescaping beyond doubled quotes.
    pub fn literal(&self, token: Token) -> Option<Bytes> {
        let bytes = self.bytes(token);
        match token.kind {
            Kind::Text => {
                let inner = bytes.strip_prefix(b"'")?.strip_suffix(b"'")?;
                // Anything with a quote inside may be a continued string; it is rare enough to be left as it stands.
                (!inner.contains(&b'\'')).then(|| Bytes(inner.into()))
            }
            Kind::Number | Kind::Parameter => (token.kind == Kind::Number).then(|| Bytes(bytes.into())),
            Kind::Word => Some(Bytes(bytes.to_ascii_lowercase().into())),
            Kind::Quoted => Some(Bytes(self.name(token).folded())),
            Kind::TextDollar => {
                let tag = bytes.iter().skip(1).position(|&byte| byte == b'$')? + 2;
                Some(Bytes(bytes.get(tag..bytes.len() - tag)?.into()))
            }
            _ => None,
        }
    }

    pub fn effect(&mut self, effect: Effect) {
        self.effects.push(Traced { part: self.part, effect });
    }

    /// Effects so far; with [`Reader::forget_effects`] those of a statement that will only run later are dropped.
    pub fn effects_count(&self) -> usize {
        self.effects.len()
    }

    pub fn forget_effects(&mut self, kept: usize) {
        self.effects.truncate(kept);
    }
}
