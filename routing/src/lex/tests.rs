//! What the lexer makes of texts, and that nothing makes it fall.

use super::*;
use crate::{Catalog, Context, analyse, classify};
use proptest::prelude::*;

fn tokens(text: &[u8], lexing: Lexing) -> Vec<Token> {
    let mut lexer = Lexer::new(text, lexing);
    // Every token but the last has a length, so this ends.
    std::iter::from_fn(|| Some(lexer.next_token())).take_while(|token| token.kind != Kind::End).collect()
}

/// The tokens of a text as one line: kind and words.
fn shown(text: &str) -> String {
    let show = |token: &Token| format!("{:?} {}", token.kind, &text[token.start as usize..token.end as usize]);
    tokens(text.as_bytes(), Lexing::default()).iter().map(show).collect::<Vec<_>>().join(" | ")
}

#[test]
fn tokens_are_as_postgresql_reads_them() {
    for (text, expected) in [
        ("a.b$c::int", "Word a | Dot . | Word b$c | Cast :: | Word int"),
        ("\"a\"\"b\".x", "Quoted \"a\"\"b\" | Dot . | Word x"),
        ("'it''s' E'\\'' x", "Text 'it''s' | TextEscaped E'\\'' | Word x"),
        ("$1$$a$$ $a$ $$ $a$", "Parameter $1 | TextDollar $$a$$ | TextDollar $a$ $$ $a$"),
        ("foo$bar$", "Word foo$bar$"),
        ("a--b\n+c/*d/*e*/f*/-g", "Word a | Operator + | Word c | Operator - | Word g"),
        ("a=-1 @- <= ->>", "Word a | Operator = | Operator - | Number 1 | Operator @- | Operator <= | Operator ->>"),
        (
            "1.5e10 .5 1..2 1FOR",
            "Number 1.5 | Word e10 | Number .5 | Number 1 | Dot .. | Number 2 | Number 1 | Word FOR",
        ),
        (
            "a[1:2] := ,;()",
            "Word a | Bracket [ | Number 1 | Colon : | Number 2 | Bracket ] | Assign := | Comma , | \
          Semicolon ; | Open ( | Close )",
        ),
        (
            "U&\"a\" u&'b' N'c' b'1' X'F' e",
            "QuotedUnicode U&\"a\" | TextEscaped u&'b' | Text N'c' | Text b'1' | Text X'F' | Word e",
        ),
        ("é ü1", "Word é | Word ü1"),
        ("*/", "Operator */"),
        ("'a'\n'b' 'c'", "Text 'a'\n'b' | Text 'c'"),
        ("$a $", "Broken $a | Broken $"),
        ("a'b", "Word a | Broken 'b"),
        ("{", "Broken {"),
        ("1e'\\''", "Number 1 | TextEscaped e'\\''"),
    ] {
        assert_eq!(shown(text), expected, "{text}");
    }
}

#[test]
fn the_first_hint_is_found_and_others_are_comments() {
    let hint = |text: &str| {
        let mut lexer = Lexer::new(text.as_bytes(), Lexing::default());
        while lexer.next_token().kind != Kind::End {}
        lexer.hint().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    };
    assert_eq!(hint("/*+ a */ SELECT /*+ b */ 1").as_deref(), Some(" a "));
    assert_eq!(hint("SELECT 1 /*+*/").as_deref(), Some(""));
    assert_eq!(hint("SELECT '/*+ a */' /* + b */"), None);
    assert_eq!(hint("/*+ unfinished"), None);
}

/// What has broken lexers before.
const GARBAGE: &[&[u8]] = &[
    b"",
    b"\0",
    b"\xff",
    b"\xff\xfe\xfd",
    b"'",
    b"\"",
    b"$",
    b"$$",
    b"$a$",
    b"$$$",
    b"$a$b$",
    b"/*",
    b"/*/",
    b"/**",
    b"/*/*",
    b"/*/**/",
    b"*/",
    b"--",
    b"-",
    b"-/",
    b"-/*",
    b"+--",
    b"E'",
    b"E'\\",
    b"E'\\'",
    b"e'a'\n'",
    b"u&",
    b"u&'",
    b"U&\"",
    b"u&\"\"",
    b":",
    b"::",
    b":::",
    b"..",
    b"...",
    b".",
    b"1.",
    b"1..",
    b"1...",
    b"9999999999999999999999999999999999",
    b"\"\"",
    b"\"\"\"",
    b"''''",
    b"'''",
    b"\\",
    b"'\\",
    b";",
    b";;;;",
    b"((((((((",
    b"))))",
    b"select\xa0",
    b"select\x001",
    b"/*+",
    b"/*+*/",
    b"/*+/",
    b"$1$",
    b"$1a",
    b"$\xc3\xa9$",
    b"copy",
    b"copy (",
    b"copy ((",
    b"copy t to",
    b"explain",
    b"explain (",
    b"explain analyze",
    b"prepare",
    b"prepare p",
    b"prepare p as",
    b"declare",
    b"declare c cursor for",
    b"set",
    b"set a",
    b"set a =",
    b"set time",
    b"set session",
    b"set local",
    b"reset",
    b"reset a.",
    b"show",
    b"show a.",
    b"rollback to",
    b"release",
    b"begin isolation",
    b"execute",
    b"deallocate",
    b"deallocate prepare",
    b"create",
    b"create function begin atomic",
    b"create rule (((",
    b"with",
    b"with a(",
    b"select set_config(",
    b"select set_config('a'",
    b"select current_setting(",
    b"select f(",
    b"close",
    b"fetch",
    b"listen",
    b"notify",
    b"unlisten",
    b"discard",
    b"end and",
    b"explain route",
    b"savepoint",
    b"commit prepared",
];

#[test]
fn garbage_is_refused_calmly() {
    let warm = Catalog::builder().build();
    for text in GARBAGE {
        for conforming in [true, false] {
            for encoding in [Encoding::Plain, Encoding::Colliding] {
                let lexing = Lexing { standard_conforming_strings: conforming, encoding };
                for end in 0..=text.len() {
                    let route = analyse(&text[..end], lexing, &warm);
                    let _ = route.explain(&text[..end]);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn any_bytes_become_tokens_in_order(
        text in proptest::collection::vec(any::<u8>(), 0..200), conforming in any::<bool>()
    ) {
        let lexing = Lexing { standard_conforming_strings: conforming, encoding: Encoding::Plain };
        let mut last = 0;
        for token in tokens(&text, lexing) {
            prop_assert!(token.start >= last && token.end > token.start && token.end as usize <= text.len());
            last = token.end;
        }
        let _ = classify(&text, &Context::default(), &Catalog::builder().build());
    }

    #[test]
    fn any_pieces_of_sql_become_a_route(
        pieces in proptest::collection::vec(prop::sample::select(PIECES), 0..40), conforming in any::<bool>()
    ) {
        let text = pieces.concat();
        let lexing = Lexing { standard_conforming_strings: conforming, encoding: Encoding::Plain };
        let catalog = Catalog::builder().function("f", false).function("g", true).build();
        let route = analyse(text.as_bytes(), lexing, &catalog);
        if let Some(culprit) = &route.culprit {
            prop_assert!(culprit.start <= culprit.end && culprit.end as usize <= text.len());
        }
        for traced in &route.effects {
            prop_assert!(traced.part < route.parts);
        }
    }

    /// A name is the same whatever case and blanks it is written with.
    #[test]
    fn case_and_blanks_change_nothing(flips in any::<u64>(), blank in prop::sample::select(&[" ", "\t", "\n", "/**/", "--x\n"][..])) {
        let catalog = Catalog::builder().function("f", false).function("g", true).build();
        for text in ["select f ( 1 ) from t for share", "select g ( 1 )", "with q as ( delete from t ) select 1", "select f ( 2 )"] {
            let flipped: String = text.chars().enumerate().map(|(at, letter)| {
                if flips >> (at % 64) & 1 == 1 { letter.to_ascii_uppercase() } else { letter }
            }).collect();
            let spaced = flipped.replace(' ', blank);
            let (a, b) = (analyse(text.as_bytes(), Lexing::default(), &catalog), analyse(spaced.as_bytes(), Lexing::default(), &catalog));
            prop_assert_eq!((a.class, a.reason), (b.class, b.reason), "{}", spaced);
        }
    }
}

const PIECES: &[&str] = &[
    "SELECT ",
    "select",
    " ",
    "\n",
    "'",
    "''",
    "\"",
    "$$",
    "$a$",
    "E'",
    "\\",
    "--",
    "/*",
    "*/",
    "/*+ ",
    "(",
    ")",
    ",",
    ";",
    "f",
    "g",
    "f(",
    " WITH ",
    " AS ",
    "(SELECT ",
    " INSERT INTO ",
    " FOR ",
    "SHARE",
    " INTO ",
    "EXPLAIN ",
    "ANALYZE ",
    "COPY ",
    " TO ",
    "STDOUT",
    " FROM ",
    "PREPARE ",
    "DECLARE ",
    " CURSOR ",
    "SET ",
    "=",
    "LOCAL ",
    "set_config(",
    "'a'",
    "true",
    "CREATE ",
    "FUNCTION ",
    "BEGIN ",
    "ATOMIC ",
    "END",
    "CASE ",
    "U&",
    ".",
    "::",
    "1",
    "$1",
    "é",
    "pg_",
    "EXECUTE ",
    "current_setting(",
    "ROLLBACK ",
    "ROUTE ",
];
