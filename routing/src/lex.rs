//! PostgreSQL's lexical rules, as far as routing needs them: what is a word, a name, a text, a comment (rule C-7).
//!
//! Tokens borrow from the text and nothing is allocated. Any bytes are accepted: what PostgreSQL would refuse becomes
//! [`Kind::Broken`], and the caller sends the statement to the primary, where the server explains itself. Where versions
//! 13 to 18 differ (numbers with a word behind them, vertical tabs), the older reading is taken: it yields more words,
//! and a word too many only makes a statement look more like a write.

use crate::names::Fold;

/// What of the session changes how a text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lexing {
    /// The session's `standard_conforming_strings`: off makes backslashes escape in plain strings.
    pub standard_conforming_strings: bool,
    /// Whether bytes of the client's encoding can be mistaken for ASCII.
    pub encoding: Encoding,
}

impl Default for Lexing {
    fn default() -> Lexing {
        Lexing { standard_conforming_strings: true, encoding: Encoding::Plain }
    }
}

impl Lexing {
    /// Both facts in two bits, for the key of a cache.
    pub fn bits(self) -> u64 {
        let colliding = match self.encoding {
            Encoding::Plain => 0,
            Encoding::Colliding => 2,
        };
        u64::from(self.standard_conforming_strings) | colliding
    }
}

/// The one property of a client encoding that matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Every byte below 128 stands for itself.
    Plain,
    /// The second byte of a character may look like a quote or a backslash; such texts cannot be read byte by byte.
    Colliding,
}

impl Encoding {
    /// By the value of `client_encoding`. What is not known to be plain counts as colliding.
    pub fn of(client_encoding: &str) -> Encoding {
        let mut name = [0_u8; 16];
        let mut length = 0;
        for byte in client_encoding.bytes().filter(u8::is_ascii_alphanumeric) {
            let Some(place) = name.get_mut(length) else { return Encoding::Colliding };
            *place = byte.to_ascii_lowercase();
            length += 1;
        }
        let name = &name[..length];
        let plain: &[&[u8]] = &[b"utf8", b"unicode", b"sqlascii", b"muleinternal", b"tcvn", b"abc", b"alt", b"vscii"];
        let families: &[&[u8]] = &[b"latin", b"iso8859", b"win", b"windows", b"koi8", b"euc"];
        if plain.contains(&name) || families.iter().any(|family| name.starts_with(family)) {
            // Code pages that begin like the single-byte ones but are Shift-JIS, GBK, UHC and Big5.
            let doubled: &[&[u8]] = &[b"932", b"936", b"949", b"950"];
            if !doubled.iter().any(|page| name.ends_with(page)) {
                return Encoding::Plain;
            }
        }
        Encoding::Colliding
    }
}

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A keyword or an unquoted name.
    Word,
    /// A name in double quotes.
    Quoted,
    /// A name in `U&"..."`, whose escapes are not resolved here.
    QuotedUnicode,
    /// A string: `'...'`, `N'...'`, `B'...'`, `X'...'`, in which only `''` is special.
    Text,
    /// A string with escapes, `E'...'`, `U&'...'`, or a plain one while `standard_conforming_strings` is off.
    TextEscaped,
    /// A dollar-quoted string.
    TextDollar,
    /// A number, or the part of one before its letters.
    Number,
    /// `$1`.
    Parameter,
    /// An operator, `*` included.
    Operator,
    /// `(`.
    Open,
    /// `)`.
    Close,
    /// `[` or `]`.
    Bracket,
    /// `,`.
    Comma,
    /// `;`.
    Semicolon,
    /// `:`, as in slices.
    Colon,
    /// `::`.
    Cast,
    /// `:=`.
    Assign,
    /// `.` or `..`.
    Dot,
    /// The text is over.
    End,
    /// What PostgreSQL would refuse: an unfinished string or comment, a stray byte.
    Broken,
}

/// One token: where it is, and the hash of its folded letters if it is a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// What it is.
    pub kind: Kind,
    /// Offset of its first byte.
    pub start: u32,
    /// Offset after its last byte.
    pub end: u32,
    /// Of the folded name for words, of the bytes between the quotes for quoted names, else 0.
    pub hash: u64,
}

impl Token {
    /// The token after the last.
    pub const fn end_at(offset: u32) -> Token {
        Token { kind: Kind::End, start: offset, end: offset, hash: 0 }
    }
}

/// The longest text that is read. Longer ones exceed what the protocol can carry anyway.
pub const TEXT_BYTES_MAX: usize = u32::MAX as usize / 2;

/// Walks over a text.
#[derive(Clone, Debug)]
pub struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    escapes: bool,
    hint: Option<(u32, u32)>,
}

const SPACE: u8 = 1;
const LETTER: u8 = 2;
const DIGIT: u8 = 3;
const SIGN: u8 = 4;
const OTHER: u8 = 0;
const CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [OTHER; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => SPACE,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80.. => LETTER,
            b'0'..=b'9' => DIGIT,
            b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'+' | b'-' | b'*' | b'/' | b'%' | b'<'
            | b'>' | b'=' => SIGN,
            _ => OTHER,
        };
        byte += 1;
    }
    table
}

fn class(byte: u8) -> u8 {
    CLASS[byte as usize]
}

/// Whether a byte may stand inside an unquoted name.
fn inside_word(byte: u8) -> bool {
    matches!(class(byte), LETTER | DIGIT) || byte == b'$'
}

impl<'a> Lexer<'a> {
    /// From the start of `text`; of a text beyond [`TEXT_BYTES_MAX`] only that many bytes are read.
    pub fn new(text: &'a [u8], lexing: Lexing) -> Lexer<'a> {
        let text = text.get(..TEXT_BYTES_MAX).unwrap_or(text);
        Lexer { text, at: 0, escapes: !lexing.standard_conforming_strings, hint: None }
    }

    /// The bytes between `/*+` and `*/` of the first such comment passed so far.
    pub fn hint(&self) -> Option<&'a [u8]> {
        self.hint.map(|(start, end)| &self.text[start as usize..end as usize])
    }

    fn peek(&self, ahead: usize) -> u8 {
        // A zero byte cannot be in a text that came over the protocol, and is broken wherever it is met.
        self.text.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn token(&self, kind: Kind, start: usize) -> Token {
        Token { kind, start: start as u32, end: self.at as u32, hash: 0 }
    }

    /// The next token; after the end, `End` for ever.
    pub fn next_token(&mut self) -> Token {
        let before = self.at;
        if !self.skip_space() {
            self.at = self.text.len();
            return self.token(Kind::Broken, before);
        }
        let start = self.at;
        let Some(&first) = self.text.get(start) else { return Token::end_at(start as u32) };
        match class(first) {
            LETTER => self.word(start),
            DIGIT => self.number(start),
            SIGN => self.operator(start),
            _ => self.other(first, start),
        }
    }

    /// Moves over blanks and comments. `false` if a comment has no end.
    fn skip_space(&mut self) -> bool {
        loop {
            let Some(&byte) = self.text.get(self.at) else { return true };
            if class(byte) == SPACE {
                self.at += 1;
            } else if byte == b'-' && self.peek(1) == b'-' {
                self.skip_line();
            } else if byte == b'/' && self.peek(1) == b'*' {
                if !self.skip_block() {
                    return false;
                }
            } else {
                return true;
            }
        }
    }

    fn skip_line(&mut self) {
        while self.at < self.text.len() && !matches!(self.text[self.at], b'\n' | b'\r') {
            self.at += 1;
        }
    }

    /// Over `/* ... */`, which nests.
    fn skip_block(&mut self) -> bool {
        let start = self.at;
        let mut depth = 0_usize;
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'/', b'*') => {
                    depth += 1;
                    self.at += 2;
                }
                (b'*', b'/') => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        if self.hint.is_none() && self.text[start + 2] == b'+' {
                            self.hint = Some(((start + 3) as u32, (self.at - 2) as u32));
                        }
                        return true;
                    }
                }
                _ if self.at >= self.text.len() => return false,
                _ => self.at += 1,
            }
        }
    }

    fn word(&mut self, start: usize) -> Token {
        let mut fold = Fold::new();
        let mut at = start;
        while let Some(&byte) = self.text.get(at) {
            if !inside_word(byte) {
                break;
            }
            fold.push_folded(byte);
            at += 1;
        }
        self.at = at;
        if at == start + 1
            && let Some(token) = self.prefixed(start)
        {
            return token;
        }
        Token { kind: Kind::Word, start: start as u32, end: at as u32, hash: fold.finish() }
    }

    /// A string or name whose first letter says how to read it: `E'`, `N'`, `B'`, `X'`, `U&'`, `U&"`.
    fn prefixed(&mut self, start: usize) -> Option<Token> {
        let letter = self.text[start].to_ascii_lowercase();
        match (letter, self.peek(0), self.peek(1)) {
            (b'e', b'\'', _) => Some(self.string(start, true)),
            (b'n', b'\'', _) => Some(self.string(start, self.escapes)),
            (b'b' | b'x', b'\'', _) => Some(self.string(start, false)),
            (b'u', b'&', b'"') => {
                self.at += 1;
                let mut token = self.quoted(start);
                if token.kind == Kind::Quoted {
                    token.kind = Kind::QuotedUnicode;
                }
                Some(token)
            }
            (b'u', b'&', b'\'') => {
                self.at += 1;
                // PostgreSQL refuses U&'' while backslashes escape, because the two kinds of escape would mix.
                let refused = self.escapes;
                let mut token = self.string(start, false);
                match token.kind {
                    Kind::Text if refused => token.kind = Kind::Broken,
                    Kind::Text => token.kind = Kind::TextEscaped,
                    _ => {}
                }
                Some(token)
            }
            _ => None,
        }
    }

    /// From a quote to the end of the string, continuation over line ends included: `'a'` newline `'b'` is one string,
    /// and its later parts are read with the rules of the first.
    fn string(&mut self, start: usize, escapes: bool) -> Token {
        self.at += 1;
        loop {
            match self.text.get(self.at) {
                None => {
                    self.at = self.text.len();
                    return self.token(Kind::Broken, start);
                }
                Some(b'\\') if escapes => self.at += 2,
                Some(b'\'') if self.peek(1) == b'\'' => self.at += 2,
                Some(b'\'') => {
                    self.at += 1;
                    let Some(next) = self.continuation() else { break };
                    self.at = next;
                }
                Some(_) => self.at += 1,
            }
        }
        self.token(if escapes { Kind::TextEscaped } else { Kind::Text }, start)
    }

    /// Where the string goes on, if after its closing quote come blanks with a line end, and then a quote.
    fn continuation(&self) -> Option<usize> {
        let mut ahead = self.clone();
        let mut line_end = false;
        loop {
            match ahead.peek(0) {
                b'\n' | b'\r' => line_end = true,
                b'-' if ahead.peek(1) == b'-' => {
                    ahead.skip_line();
                    continue;
                }
                b'\'' if line_end => return Some(ahead.at + 1),
                byte if class(byte) == SPACE => {}
                _ => return None,
            }
            ahead.at += 1;
        }
    }

    /// A name from its opening quote on.
    fn quoted(&mut self, start: usize) -> Token {
        self.at += 1;
        let mut fold = Fold::new();
        loop {
            match self.text.get(self.at) {
                None => return self.token(Kind::Broken, start),
                Some(b'"') if self.peek(1) == b'"' => {
                    fold.push(b'"');
                    fold.push(b'"');
                    self.at += 2;
                }
                Some(b'"') => {
                    self.at += 1;
                    break;
                }
                Some(&byte) => {
                    fold.push(byte);
                    self.at += 1;
                }
            }
        }
        Token { hash: fold.finish(), ..self.token(Kind::Quoted, start) }
    }

    /// Digits and points. Letters behind them become a word of their own: before version 15 `1FOR UPDATE` was legal.
    fn number(&mut self, start: usize) -> Token {
        let mut point = false;
        while let Some(&byte) = self.text.get(self.at) {
            let digit = class(byte) == DIGIT;
            if !digit && (byte != b'.' || point || self.peek(1) == b'.') {
                break;
            }
            point |= !digit;
            self.at += 1;
        }
        self.token(Kind::Number, start)
    }

    fn operator(&mut self, start: usize) -> Token {
        let mut marked = false;
        while let Some(&byte) = self.text.get(self.at) {
            let comment = matches!((byte, self.peek(1)), (b'-', b'-') | (b'/', b'*'));
            if class(byte) != SIGN || comment {
                break;
            }
            marked |= matches!(byte, b'~' | b'!' | b'@' | b'#' | b'%' | b'^' | b'&' | b'|' | b'`' | b'?');
            self.at += 1;
        }
        // `=-1` is two operators, but `@-` is one: a trailing sign belongs to what follows unless a mark is in it.
        while !marked && self.at > start + 1 && matches!(self.text[self.at - 1], b'+' | b'-') {
            self.at -= 1;
        }
        let mut token = self.token(Kind::Operator, start);
        token.hash = Fold::of(&self.text[start..self.at]);
        token
    }

    fn other(&mut self, first: u8, start: usize) -> Token {
        let kind = match first {
            b'\'' => return self.string(start, self.escapes),
            b'"' => return self.quoted(start),
            b'$' => return self.dollar(start),
            b'.' if class(self.peek(1)) == DIGIT => return self.number(start),
            b'.' => Kind::Dot,
            b'(' => Kind::Open,
            b')' => Kind::Close,
            b'[' | b']' => Kind::Bracket,
            b',' => Kind::Comma,
            b';' => Kind::Semicolon,
            b':' => match self.peek(1) {
                b':' => Kind::Cast,
                b'=' => Kind::Assign,
                _ => Kind::Colon,
            },
            _ => Kind::Broken,
        };
        let double = matches!(kind, Kind::Cast | Kind::Assign) || (kind == Kind::Dot && self.peek(1) == b'.');
        self.at += if double { 2 } else { 1 };
        self.token(kind, start)
    }

    /// `$1`, or `$tag$ ... $tag$`.
    fn dollar(&mut self, start: usize) -> Token {
        self.at += 1;
        if class(self.peek(0)) == DIGIT {
            while class(self.peek(0)) == DIGIT {
                self.at += 1;
            }
            return self.token(Kind::Parameter, start);
        }
        if class(self.peek(0)) == LETTER {
            while matches!(class(self.peek(0)), LETTER | DIGIT) {
                self.at += 1;
            }
        }
        if self.peek(0) != b'$' {
            return self.token(Kind::Broken, start);
        }
        self.at += 1;
        let tag = &self.text[start..self.at];
        let body = &self.text[self.at..];
        let mut from = 0;
        while let Some(found) = body[from..].iter().position(|&byte| byte == b'$') {
            from += found;
            if body[from..].starts_with(tag) {
                self.at += from + tag.len();
                return self.token(Kind::TextDollar, start);
            }
            from += 1;
        }
        self.at = self.text.len();
        self.token(Kind::Broken, start)
    }
}

#[cfg(test)]
mod tests;
