//! Texts made of pieces that are meant to be misread: quotes within quotes, comments, names like keywords, writes in
//! places where reads are expected. The same seed makes the same text.

/// A small generator of pseudo-random numbers (SplitMix64): the property has to be repeatable by its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ mixed >> 31) % limit as u64) as usize
    }
    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len())]
    }
}

const SPACES: &[&str] = &[" ", " ", " ", "\n", "\t", "/**/", " /* ' */ ", " /* /* \" */ $$ */ ", "--'\n", " -- x\r\n"];
const CALLS: &[&str] = &[
    "nextval('s')",
    "NEXTVAL('s')",
    "\"nextval\"('s')",
    "pg_catalog.nextval('s')",
    "writes(1)",
    "mixed('x'::text)",
    "\"Quiet\"(1)",
    "public.values(1)",
    "passing(1)",
    "rows(1)",
    "fixed(1)",
    "quiet(1)",
    "steady(1)",
    "now()",
    "abs(-1)",
    "lower('A')",
];
const TEXTS: &[&str] = &[
    "'a'",
    "'it''s'",
    "'\\'",
    "'\\''",
    "E'\\''",
    "e'a\\\\'",
    "E'a' \n 'b\\''",
    "'a' \n 'b\\''",
    "'x' -- c\n '\\'",
    "$$a$$",
    "$$'$$",
    "$a$ $$ ' $a$",
    "$a$ $b$ $a$",
    "N'a'",
    "n'\\'",
    "U&'\\0061'",
    "B'1'",
    "x'1F'",
    "'--'",
    "'/*'",
    "'*/'",
    "';'",
    "'nextval(''s'')'",
    "'DELETE FROM u'",
];
const NAMES: &[&str] = &["a", "\"a\"", "t.a", "id", "\"update\"", "t.\"update\"", "b", "t.b", "T.A", "public.t.a"];
const TABLES: &[&str] = &["t", "public.t", "\"t\"", "only t", "plain_view", "kept", "fast", "sly_view", "parent", "u"];
const WRITES: &[&str] = &[
    "DELETE FROM u RETURNING 1",
    "INSERT INTO u VALUES (1, 'x') RETURNING t_id",
    "UPDATE t SET a = 1 WHERE id = 1 RETURNING a",
    "insert into u default values returning 1",
];
const TAILS: &[&str] =
    &["", "", "", "", " FOR UPDATE", " for share", " FOR KEY SHARE OF t", ";", "; ", ";;", " LIMIT 1"];

/// A text that is a statement more often than not.
pub fn statement(seed: u64) -> String {
    let mut dice = Dice(seed);
    let mut out = String::new();
    match dice.below(12) {
        0 => out.push_str("EXPLAIN "),
        1 => out.push_str(dice.pick(&[
            "EXPLAIN ANALYZE ",
            "EXPLAIN (ANALYZE) ",
            "EXPLAIN (COSTS off) ",
            "EXPLAIN VERBOSE ",
        ])),
        _ => {}
    }
    if dice.below(4) == 0 {
        with(&mut dice, &mut out);
    }
    query(&mut dice, &mut out, 2);
    out.push_str(dice.pick(TAILS));
    if dice.below(12) == 0 {
        out.push_str("; ");
        query(&mut dice, &mut out, 1);
    }
    if dice.below(8) == 0 {
        disturb(&mut dice, &mut out);
    }
    out
}

fn with(dice: &mut Dice, out: &mut String) {
    out.push_str(dice.pick(&["WITH ", "with recursive ", "WITH/**/"]));
    for number in 0..=dice.below(2) {
        if number > 0 {
            out.push_str(", ");
        }
        out.push_str(["q", "r", "w"][number]);
        out.push_str(dice.pick(&["", "", "(x)", " (\"x\")"]));
        out.push_str(dice.pick(&[" AS (", " as(", " AS MATERIALIZED (", "/**/AS/**/("]));
        if dice.below(3) == 0 {
            out.push_str(dice.pick(WRITES));
        } else {
            out.push_str("SELECT ");
            expression(dice, out, 1);
            out.push_str(" FROM t");
        }
        out.push(')');
    }
    out.push(' ');
}

fn query(dice: &mut Dice, out: &mut String, depth: usize) {
    match dice.below(10) {
        0 => {
            out.push_str("VALUES (");
            constant(dice, out);
            out.push(')');
        }
        1 if depth > 0 => {
            out.push('(');
            query(dice, out, depth - 1);
            out.push(')');
            if dice.below(2) == 0 {
                out.push_str(" UNION ALL ");
                query(dice, out, depth - 1);
            }
        }
        _ => {
            out.push_str(dice.pick(&[
                "SELECT",
                "select",
                "Select",
                "SELECT DISTINCT",
                "SELECT ALL",
                "SELECT DISTINCT ON (a)",
            ]));
            out.push_str(dice.pick(SPACES));
            expression(dice, out, depth);
            if dice.below(3) == 0 {
                out.push(',');
                out.push_str(dice.pick(SPACES));
                expression(dice, out, depth);
            }
            out.push_str(dice.pick(SPACES));
            out.push_str("FROM ");
            source(dice, out, depth);
            if dice.below(3) == 0 {
                out.push_str(" WHERE ");
                expression(dice, out, depth);
                out.push_str(" IS NOT NULL");
            }
        }
    }
}

fn source(dice: &mut Dice, out: &mut String, depth: usize) {
    match dice.below(8) {
        0 if depth > 0 => {
            out.push('(');
            query(dice, out, depth - 1);
            out.push_str(") AS t(a, id)");
        }
        1 => {
            out.push_str(dice.pick(CALLS));
            out.push_str(dice.pick(&[" AS t(a)", " t(a)", " WITH ORDINALITY AS t(a, id)", " t"]));
        }
        2 => out.push_str(dice.pick(TABLES)),
        _ => out.push('t'),
    }
}

fn expression(dice: &mut Dice, out: &mut String, depth: usize) {
    match dice.below(14) {
        0 | 1 => out.push_str(dice.pick(CALLS)),
        2..=4 => out.push_str(dice.pick(NAMES)),
        5 => {
            out.push_str("coalesce(");
            expression(dice, out, depth.saturating_sub(1));
            out.push_str(", null)");
        }
        6 if depth > 0 => {
            out.push_str("(SELECT ");
            expression(dice, out, depth - 1);
            out.push_str(" FROM t LIMIT 1)");
        }
        7 => {
            out.push_str("count(");
            out.push_str(dice.pick(NAMES));
            out.push_str(dice.pick(&[") OVER ()", ") over (order by id)", ") filter (where true)", ")"]));
        }
        8 => out.push_str(dice.pick(&["id <!> 1", "id + 1", "id*-1", "id/**/+/**/1", "id::text::varchar(3)", "- id"])),
        9 => {
            out.push_str(dice.pick(CALLS));
            out.push_str("::text");
        }
        _ => constant(dice, out),
    }
}

fn constant(dice: &mut Dice, out: &mut String) {
    out.push_str(dice.pick(TEXTS));
    if dice.below(4) == 0 {
        out.push_str("::text || ");
        out.push_str(dice.pick(TEXTS));
    }
}

/// One byte more, less or other: what a quote too many makes of the rest.
fn disturb(dice: &mut Dice, out: &mut String) {
    let mut bytes = std::mem::take(out).into_bytes();
    let at = dice.below(bytes.len());
    let byte =
        *[b'\'', b'"', b'\\', b'$', b'/', b'*', b'-', b'\n', b'(', b';', b'E'].get(dice.below(11)).expect("in range");
    match dice.below(3) {
        0 => bytes.insert(at, byte),
        1 => {
            bytes.remove(at);
        }
        _ => bytes[at] = byte,
    }
    *out = String::from_utf8(bytes).expect("pieces are ASCII");
}
