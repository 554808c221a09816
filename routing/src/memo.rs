//! Statements that differ in their numbers alone are judged once.
//!
//! Applications that write values into their texts never send the same text twice, but the same shape again and again. A
//! shape is the text with each run of digits that begins a number written as one digit. No rule looks at the value of a
//! number, so all texts of one shape are of one class; only what a text does to the session (`SET work_mem = 64`) may hold
//! the value, and texts that do anything are not kept.

use crate::catalog::Catalog;
use crate::classify::analyse;
use crate::fingerprint::{Cache, Fingerprint, Key};
use crate::lex::Lexing;
use crate::route::Route;
use std::rc::Rc;

/// Longest text whose shape is looked for. Longer ones cost more to send than to read.
const SHAPED_BYTES_MAX: usize = 4 * 1024;
/// Shapes that are kept.
const SHAPES: usize = 1024;

/// What a byte means to the shape.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// It stays, and a digit behind it begins a number.
    Plain,
    /// It stays, and so do digits behind it.
    Word,
    /// A digit.
    Digit,
    /// Everything up to the next of its kind stays.
    Quote,
    /// With what comes next it may begin a comment or a text.
    Pair,
    /// The text would have to be read properly: escapes, other letters than English ones.
    Unclear,
}

const MEANING: [Meaning; 256] = {
    let mut table = [Meaning::Unclear; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b'0'..=b'9' => Meaning::Digit,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => Meaning::Word,
            b' ' | b'\t' | b'\n' | b'\r' | b',' | b'.' | b'(' | b')' | b'[' | b']' | b'=' | b'<' | b'>' | b'+'
            | b'*' | b'%' | b';' | b':' => Meaning::Plain,
            b'"' | b'\'' => Meaning::Quote,
            b'-' | b'/' | b'$' => Meaning::Pair,
            _ => Meaning::Unclear,
        };
        byte += 1;
    }
    table
};

fn meaning(byte: u8) -> Meaning {
    MEANING[usize::from(byte)]
}

/// How many bytes at the front are like this.
fn run(bytes: &[u8], like: impl Fn(Meaning) -> bool) -> usize {
    bytes.iter().position(|&byte| !like(meaning(byte))).unwrap_or(bytes.len())
}

/// Writes the shape of a text; whether it has one.
fn shape(sql: &[u8], shape: &mut Vec<u8>) -> bool {
    shape.clear();
    if sql.len() > SHAPED_BYTES_MAX {
        return false;
    }
    let mut at = 0;
    loop {
        let stays = run(&sql[at..], |meaning| matches!(meaning, Meaning::Plain | Meaning::Word));
        shape.extend_from_slice(&sql[at..at + stays]);
        at += stays;
        let Some(&byte) = sql.get(at) else { return true };
        match meaning(byte) {
            Meaning::Digit => {
                let digits = run(&sql[at..], |meaning| meaning == Meaning::Digit);
                // What a number is followed by may belong to it (`1e5`), and is kept as it is; so are the digits of names and
                // of parameters.
                match at.checked_sub(1).map(|before| sql[before]) {
                    Some(before) if before == b'$' || meaning(before) == Meaning::Word => {
                        shape.extend_from_slice(&sql[at..at + digits]);
                    }
                    _ => shape.push(b'0'),
                }
                at += digits;
            }
            Meaning::Quote => {
                let inside = &sql[at + 1..];
                let Some(length) = inside.iter().position(|&inner| inner == byte) else { return false };
                if inside[..length].iter().any(|inner| *inner == b'\\' || !inner.is_ascii()) {
                    return false;
                }
                shape.extend_from_slice(&sql[at..at + length + 2]);
                at += length + 2;
            }
            Meaning::Pair => {
                let next = sql.get(at + 1);
                let unclear = match byte {
                    b'-' => next == Some(&b'-'),
                    b'/' => next == Some(&b'*'),
                    // `$tag$` begins a text of its own; `$1` is a parameter.
                    _ => !next.is_some_and(u8::is_ascii_digit),
                };
                if unclear {
                    return false;
                }
                shape.push(byte);
                at += 1;
            }
            Meaning::Unclear | Meaning::Plain | Meaning::Word => return false,
        }
    }
}

/// What was found out of texts under one catalogue.
pub struct Memo {
    key: Key,
    cache: Cache<Rc<Route>>,
    shape: Vec<u8>,
}

impl Memo {
    /// One that knows nothing; the key is drawn at random.
    pub fn new(key: Key) -> Memo {
        Memo { key, cache: Cache::new(SHAPES), shape: Vec::new() }
    }

    /// What [`analyse`] says of a text, but for the place in it that decided. `generation` changes with the catalogue.
    pub fn route(&mut self, sql: &[u8], lexing: Lexing, catalog: &Catalog, generation: u64) -> Rc<Route> {
        if !shape(sql, &mut self.shape) {
            return Rc::new(analyse(sql, lexing, catalog));
        }
        let fingerprint = Fingerprint::of(self.key, &self.shape, lexing.bits());
        self.cache.set_generation(generation);
        if let Some(known) = self.cache.get(&fingerprint) {
            return known.clone();
        }
        let mut route = analyse(sql, lexing, catalog);
        let keeps = route.effects.is_empty() && route.hint.is_none();
        if keeps {
            route.culprit = None;
        }
        let route = Rc::new(route);
        if keeps {
            self.cache.put(fingerprint, route.clone());
        }
        route
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shaped(sql: &str) -> Option<String> {
        let mut out = Vec::new();
        shape(sql.as_bytes(), &mut out).then(|| String::from_utf8(out).expect("ASCII"))
    }

    #[test]
    fn numbers_are_one_and_names_are_not() {
        let cases = [
            ("SELECT a FROM t WHERE id = 4711;", Some("SELECT a FROM t WHERE id = 0;")),
            ("SELECT t1.c2, 1.50, 2e10, $1, $23 FROM t1", Some("SELECT t1.c2, 0.0, 0e10, $1, $23 FROM t1")),
            ("SELECT a[12:3]", Some("SELECT a[0:0]")),
            ("SELECT $$ 1 $$", None),
            ("SELECT $tag$ 1 $tag$", None),
            ("SELECT '1', 2 FROM \"t 3\"", Some("SELECT '1', 0 FROM \"t 3\"")),
            ("SELECT 'a''1', 2", Some("SELECT 'a''1', 0")),
            ("SELECT -12 - 3 / 4", Some("SELECT -0 - 0 / 0")),
            ("SELECT '\\'', 1", None),
            ("SELECT 'ä'", None),
            ("SELECT '1", None),
            ("SELECT 1 -- 2", None),
            ("SELECT /* 1 */ 2", None),
            ("SELECT ä", None),
        ];
        for (sql, expected) in cases {
            assert_eq!(shaped(sql).as_deref(), expected, "{sql}");
        }
        assert_eq!(shaped(&"1".repeat(SHAPED_BYTES_MAX + 1)), None);
    }

    /// Texts of pieces that the classifier cares for, with numbers anywhere.
    fn texts() -> impl Strategy<Value = Vec<String>> {
        let pieces = [
            "SELECT ",
            "select ",
            "INSERT INTO t VALUES ",
            "UPDATE t SET a = ",
            "FROM t",
            "WHERE ",
            "now()",
            "random()",
            "f(",
            "nextval(",
            ")",
            ", ",
            " ",
            ";",
            "'",
            "\"",
            "$",
            "$$",
            "--",
            "/*",
            "*/",
            "SET work_mem = ",
            "BEGIN",
            "COMMIT",
            "FOR UPDATE",
            "LIMIT ",
            "e",
            "x",
            "_",
            ".",
            "1",
            "23",
            "456",
            "t1",
            "pg_sleep(",
            "\\",
            "ä",
            "::int",
            "[",
            "]",
            "$1",
            "-",
            "/",
            "VALUES (",
            "WITH a AS (",
            "OFFSET ",
            "INTO ",
            "EXPLAIN ",
            "1e",
            "0x",
            "SAVEPOINT a",
            "SHOW a",
        ];
        let piece = prop::sample::select(pieces.to_vec());
        prop::collection::vec(prop::collection::vec(piece, 1..10).prop_map(|pieces| pieces.concat()), 1..20)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Nothing that was found out of one text is wrong of another.
        #[test]
        fn the_memo_says_what_a_fresh_look_says(texts in texts(), digits in "[0-9]{1,4}") {
            let catalog = Catalog::cold();
            let mut memo = Memo::new(Key::new(1, 2));
            for text in &texts {
                let others = [text.clone(), text.replace("23", &digits), text.replace('1', &digits), format!("{text}{digits}")];
                for text in others {
                    let sql = text.as_bytes();
                    let fresh = Route { culprit: None, ..analyse(sql, Lexing::default(), &catalog) };
                    let known = memo.route(sql, Lexing::default(), &catalog, 1);
                    prop_assert_eq!(&Route { culprit: None, ..Route::clone(&known) }, &fresh, "{}", text);
                }
            }
        }
    }

    #[test]
    fn another_catalogue_is_looked_up_anew() {
        let cold = Catalog::cold();
        let mut builder = Catalog::builder();
        builder.relation("t", "foreign");
        let warm = builder.build();
        let mut memo = Memo::new(Key::new(1, 2));
        let sql = b"SELECT a FROM t WHERE b = 5";
        let before = memo.route(sql, Lexing::default(), &cold, 1).reason;
        assert_eq!(before, memo.route(b"SELECT a FROM t WHERE b = 6", Lexing::default(), &warm, 1).reason, "kept");
        assert_ne!(before, memo.route(sql, Lexing::default(), &warm, 2).reason);
    }
}
