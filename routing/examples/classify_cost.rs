//! What a classification costs: `cargo run --release -p stemma-routing --example classify_cost`.
//!
//! Each statement is classified many times in several rounds; the best round is printed, as others of the machine only
//! ever make it slower.

use routing::fingerprint::Key;
use routing::{Catalog, Class, Context, Lexing, Memo, classify};
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 15;
const CALLS: u32 = 20_000;

const STATEMENTS: &[(&str, &str)] = &[
    ("simple", "SELECT abalance FROM pgbench_accounts WHERE aid = $1;"),
    ("simple, literal", "SELECT abalance FROM pgbench_accounts WHERE aid = 86493;"),
    ("functions", "SELECT count(*), max(a), lower(b) FROM t WHERE c > now() AND coalesce(d, 0) = $1 GROUP BY e"),
    (
        "joins",
        "WITH recent AS (SELECT o.id, o.customer_id, sum(l.price) AS total FROM orders o JOIN lines l ON l.order_id = \
         o.id WHERE o.created > now() - interval '1 day' GROUP BY 1, 2) SELECT c.name, r.total, row_number() OVER \
         (PARTITION BY c.region ORDER BY r.total DESC) FROM recent r LEFT JOIN customers c ON c.id = r.customer_id \
         WHERE c.region = ANY ($1::text[]) AND r.total BETWEEN 10 AND 1000 ORDER BY 2 DESC LIMIT 50",
    ),
    ("insert", "INSERT INTO t (a, b, c) VALUES ($1, $2, 'some text') RETURNING id"),
    ("begin", "BEGIN"),
    ("set", "SET application_name = 'x'"),
];

/// About as many names as PostgreSQL has.
fn catalog() -> Catalog {
    let mut builder = Catalog::builder();
    for number in 0..2800 {
        builder.function(&format!("function_{number}"), number % 10 == 0);
    }
    for steady in ["count", "max", "lower", "now", "sum", "row_number"] {
        builder.function(steady, false);
    }
    for number in 0..200 {
        builder.relation(&format!("table_{number}_id_seq"), "sequence");
    }
    builder.build()
}

/// Nanoseconds of one call in the best round.
fn measure(mut call: impl FnMut()) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..CALLS {
            call();
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(CALLS));
    }
    best
}

fn main() {
    let catalog = catalog();
    let context = Context::default();
    let mut memo = Memo::new(Key::new(0x5EED_0001, 0x5EED_0002));
    println!("{:<16} {:>6} {:>8} {:>10} {:>10}", "statement", "bytes", "class", "classify", "memo");
    for (name, sql) in STATEMENTS {
        let sql = sql.as_bytes();
        let route = classify(sql, &context, &catalog);
        let class = match route.class {
            Class::Read => "read",
            Class::Write => "write",
            Class::Transaction => "control",
            Class::Session => "session",
        };
        let classified = measure(|| {
            black_box(classify(black_box(sql), &context, &catalog));
        });
        let cached = measure(|| {
            black_box(memo.route(black_box(sql), Lexing::default(), &catalog, 1).decide(&context.session));
        });
        println!("{name:<16} {:>6} {class:>8} {classified:>7.0} ns {cached:>7.0} ns", sql.len());
    }
}
