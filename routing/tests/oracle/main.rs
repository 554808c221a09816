//! The classifier against real servers: what it calls a read must run on a hot standby, and leave nothing behind.

mod corpus;
mod generated;
mod pair;

use pair::{Failure, Pair};
use routing::{Class, Context, Level, Refusal, Target, classify, refusal};

/// Whether an error says that a standby could not do what it was asked.
fn refused_by_a_standby(failure: &Failure) -> bool {
    refusal(&failure.state, &failure.message, failure.routine.as_deref()) == Some(Refusal::NeedsPrimary)
}

#[tokio::test(flavor = "current_thread")]
async fn what_is_called_a_read_runs_on_a_standby() {
    for major in pair::majors() {
        let pair = Pair::start(&major, corpus::SCHEMA).await;
        let catalog = pair.catalog().await;
        let mut wrong = Vec::new();
        let mut reads = 0;
        for sql in corpus::READS.iter().chain(corpus::DOUBTFUL).chain(corpus::WRITES) {
            let route = classify(sql.as_bytes(), &Context::default(), &catalog);
            if route.class != Class::Read {
                continue;
            }
            reads += 1;
            if let Err(failure) = pair.on_standby(sql).await
                && refused_by_a_standby(&failure)
            {
                wrong.push(format!("{sql}\n    {failure:?}"));
            }
            let left = pair.left_behind(sql).await;
            if !left.is_empty() {
                wrong.push(format!("{sql}\n    leaves behind: {left}"));
            }
        }
        assert!(reads >= corpus::READS.len(), "only {reads} reads were tried on {}", major.name);
        assert!(wrong.is_empty(), "PostgreSQL {}:\n{}", major.name, wrong.join("\n"));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn known_reads_are_recognised_and_known_writes_never() {
    for major in pair::majors() {
        let pair = Pair::start(&major, corpus::SCHEMA).await;
        let catalog = pair.catalog().await;
        assert!(catalog.functions_count() > 2000, "pg_proc was read");
        let mut wrong = Vec::new();
        for sql in corpus::READS {
            let route = classify(sql.as_bytes(), &Context::default(), &catalog);
            if route.class != Class::Read {
                wrong.push(format!("{sql}\n    should be a read, is {}", route.explain(sql.as_bytes())));
            }
            // A corpus of statements that fail would prove nothing.
            if let Err(failure) = pair.on_standby(sql).await {
                wrong.push(format!("{sql}\n    does not run on the standby: {failure:?}"));
            }
        }
        for sql in corpus::WRITES.iter().chain(corpus::DOUBTFUL) {
            let route = classify(sql.as_bytes(), &Context::default(), &catalog);
            if route.class == Class::Read {
                wrong.push(format!("{sql}\n    must not be a read"));
            }
        }
        for sql in corpus::WRITES {
            let outcome = pair.on_standby(sql).await;
            let refused = outcome.as_ref().is_err_and(refused_by_a_standby);
            if !refused {
                wrong.push(format!("{sql}\n    is no write: the standby answers {outcome:?}"));
            }
        }
        assert!(wrong.is_empty(), "PostgreSQL {}:\n{}", major.name, wrong.join("\n"));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn generated_texts_never_reach_a_standby_as_writes() {
    let major = pair::majors().pop().expect("a version");
    let pair = Pair::start(&major, corpus::SCHEMA).await;
    let catalog = pair.catalog().await;
    let (mut reads, mut ran, mut refused) = (0, 0, 0);
    for conforming in [true, false] {
        pair.set_standby(&format!("SET standard_conforming_strings = {conforming}")).await;
        let mut context = Context::default();
        context.lexing.standard_conforming_strings = conforming;
        for seed in 0..4000_u64 {
            let sql = generated::statement(seed * 2 + u64::from(conforming));
            let route = classify(sql.as_bytes(), &context, &catalog);
            let outcome = pair.on_standby(&sql).await;
            let by_standby = outcome.as_ref().is_err_and(refused_by_a_standby);
            refused += usize::from(by_standby);
            if route.class == Class::Read {
                reads += 1;
                ran += usize::from(outcome.is_ok());
                assert!(!by_standby, "seed {seed}: a standby refuses what was called a read:\n{sql}\n{outcome:?}");
            }
        }
    }
    // The property means something only if all three kinds occur often.
    assert!(ran > 300 && reads > ran && refused > 300, "reads {reads}, of which ran {ran}; refused {refused}");
}

#[tokio::test(flavor = "current_thread")]
async fn a_hint_and_a_level_reach_the_router() {
    // No server is needed to read them, but one has to accept the comment.
    let major = pair::majors().remove(0);
    let pair = Pair::start(&major, corpus::SCHEMA).await;
    let catalog = pair.catalog().await;
    let sql = "/*+ route=replica consistency=eventual */ SELECT unknown_to_nobody()";
    pair.on_primary("CREATE FUNCTION unknown_to_nobody() RETURNS int LANGUAGE sql VOLATILE AS 'SELECT 1'").await;
    pair.caught_up().await;
    let route = classify(sql.as_bytes(), &Context::default(), &catalog);
    let hint = route.hint.as_ref().expect("a hint");
    assert_eq!(
        (route.class, hint.route, hint.consistency),
        (Class::Read, Some(Target::Replica), Some(Level::Eventual))
    );
    pair.on_standby(sql).await.expect("runs");
}

/// K-3: the insert position may stand behind the header of a page that holds nothing yet, where replay never gets while
/// the primary idles. A token made of it unrounded would send an idle cluster's reads to the primary for ever.
#[tokio::test(flavor = "current_thread")]
async fn an_idle_standby_reaches_the_rounded_insert_position() {
    for major in pair::majors() {
        let pair = Pair::start(&major, corpus::SCHEMA).await;
        let segment: u64 =
            pair.ask("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'").await.parse().expect("bytes");
        let mut tried = Vec::new();
        let end = loop {
            // A record of a length that ends the page: its own overhead is measured first. Other writers of the server
            // may come between, so it takes a few attempts.
            let emit = |bytes: u64| format!("SELECT pg_logical_emit_message(false, 'x', repeat('x', {bytes}))");
            let before = pair.insert_position().await;
            pair.ask(&emit(1000)).await;
            let middle = pair.insert_position().await;
            let overhead = (middle.0 - before.0).saturating_sub(1000);
            let left = 8192 - middle.0 % 8192;
            if middle.0 / 8192 == before.0 / 8192 && left > overhead + 300 {
                pair.ask(&emit(left - overhead)).await;
                let insert = pair.insert_position().await;
                tried.push(insert);
                if insert.0 % 8192 == 24 {
                    break insert;
                }
            }
            assert!(tried.len() < 200, "no record ends a page: {tried:?}");
        };
        let rounded = routing::token::rounded(end, segment);
        assert_eq!(rounded.0 % 8192, 0, "{end}");
        let reached = pair.replayed_when_still().await;
        assert_eq!(reached, rounded, "PostgreSQL {}: insert position {end}", major.name);
        assert!(reached < end);
    }
}
