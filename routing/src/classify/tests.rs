//! Stories of the classifier: a statement, and where it goes and why.

use super::*;
use crate::route::Bytes;

/// A database with a few functions of PostgreSQL and a few of somebody's own.
fn catalog() -> Catalog {
    let mut builder = Catalog::builder();
    for steady in [
        "count",
        "lower",
        "now",
        "generate_series",
        "abs",
        "sum",
        "left",
        "like",
        "to_char",
        "unnest",
        "row_number",
        "jsonb_to_recordset",
        "pg_get_viewdef",
        "pg_table_is_visible",
        "pg_backend_pid",
        "current_setting",
        "pg_is_in_recovery",
        "stable_one",
        "max",
        "pg_size_pretty",
    ] {
        builder.function(steady, false);
    }
    for volatile in [
        "nextval",
        "currval",
        "random",
        "clock_timestamp",
        "pg_sleep",
        "set_config",
        "setseed",
        "lo_create",
        "writes",
        "pg_advisory_lock",
        "pg_advisory_xact_lock",
        "pg_advisory_unlock",
        "bernoulli",
        "gen_random_uuid",
    ] {
        builder.function(volatile, true);
    }
    // One overload of two is volatile.
    builder.function("mixed", false).function("mixed", true).function("Shouted", false);
    builder.relation("fast_table", "unlogged").relation("far_table", "foreign").relation("t_id_seq", "sequence");
    builder.definition("harmless_view", "SELECT lower(a) FROM t");
    builder.definition("sly_view", "SELECT nextval('s')").definition("view_on_sly", "SELECT * FROM sly_view");
    builder.definition("fast_view", " SELECT * FROM fast_table;");
    builder.operator("<!>");
    builder.override_function("vouched", true).override_function("abs_but_kept", false);
    builder.override_relation("kept_table", false).override_relation("pg_stat_activity", true);
    builder.build()
}

fn route(sql: &str) -> Route {
    classify(sql.as_bytes(), &Context::default(), &catalog())
}

/// Each statement with the class and the word of the reason.
fn check(expected: &str, statements: &[&str]) {
    for sql in statements {
        let route = route(sql);
        let class = match route.class {
            Class::Read => "read",
            Class::Write => "write",
            Class::Transaction => "transaction",
            Class::Session => "session",
        };
        assert_eq!(format!("{class} {}", route.reason.word()), expected, "{sql}\n{}", route.explain(sql.as_bytes()));
    }
}

fn effects(sql: &str) -> Vec<Effect> {
    route(sql).effects.into_iter().map(|traced| traced.effect).collect()
}

fn set(name: &str, value: &str, local: bool) -> Effect {
    Effect::Set { name: name.into(), value: crate::route::Value::Plain(value.into()), local }
}

#[test]
fn plain_queries_are_for_replicas() {
    check(
        "read plain-read",
        &[
            "SELECT 1",
            "select * from t where id = $1;",
            "  /* a comment */ SELECT 1 -- and another",
            "(SELECT 1) UNION ALL (SELECT 2)",
            "VALUES (1), (2)",
            "TABLE t",
            "WITH q AS (SELECT 1) SELECT * FROM q",
            "WITH RECURSIVE q(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM q) SELECT n FROM q",
            "WITH a(x) AS (SELECT 1), b(y, z) AS MATERIALIZED (SELECT 1, 2) SELECT * FROM a, b",
            "SELECT count(*) FILTER (WHERE a > 1), sum(x) OVER (PARTITION BY y) FROM t GROUP BY ROLLUP (a, b)",
            "SELECT a::numeric(10,2), b::character varying(3), CAST(c AS bit(3)) FROM t",
            "SELECT x FROM t JOIN (SELECT 1) u USING (a) WHERE x IN (1, 2) AND EXISTS (SELECT 1)",
            "SELECT coalesce(a, b), extract(year FROM c), substring(d FROM 1 FOR 2), now() FROM t",
            "SELECT left(a, 1) FROM t LEFT JOIN u ON (t.a = u.a)",
            "SELECT 'INSERT INTO t', $$ DELETE FROM t; $$, $x$ nextval('a') $x$, E'it\\'s; UPDATE', \"update\" FROM t",
            "SELECT random(), clock_timestamp(), gen_random_uuid(), pg_sleep(1)",
            "SELECT * FROM t TABLESAMPLE bernoulli (10) REPEATABLE (1)",
            "SELECT a OPERATOR(pg_catalog.+) b FROM pg_catalog.pg_class WHERE pg_catalog.pg_table_is_visible(oid)",
            "SELECT * FROM jsonb_to_recordset($1) AS t(a int, b text)",
            "SELECT * FROM harmless_view",
            "SELECT current_setting('app.user')",
            "SELECT vouched(1), pid FROM pg_stat_activity",
            "SELECT t.random FROM t",
            "SELECT \"Shouted\"(1)",
            "SELECT a <-> b, a @> b, a #>> '{x}', a ? 'b' FROM t",
        ],
    );
}

#[test]
fn what_writes_is_for_the_primary() {
    check(
        "write write-keyword",
        &[
            "INSERT INTO t VALUES (1)",
            "update t set a = 1",
            "WITH d AS (DELETE FROM t RETURNING *) SELECT * FROM d",
            "WITH q AS (SELECT 1), i AS (INSERT INTO t SELECT * FROM q) SELECT 1",
            "MERGE INTO t USING u ON (t.a = u.a) WHEN MATCHED THEN DELETE",
            "TRUNCATE t",
            "CALL p()",
            "LOCK TABLE t",
            "NOTIFY c",
            "SELECT * FROM t FOR UPDATE",
            "SELECT * FROM t FOR NO KEY UPDATE SKIP LOCKED",
        ],
    );
    check("write locking", &["SELECT * FROM t FOR SHARE", "SELECT * FROM t FOR KEY SHARE NOWAIT"]);
    check("write into", &["SELECT * INTO u FROM t", "WITH q AS (SELECT 1) SELECT * INTO TEMP u FROM q"]);
    check("write multi-statement", &["SELECT 1; SELECT 2", "SELECT 1;; INSERT INTO t VALUES (1);"]);
    check("write not-a-query", &["CREATE TABLE t (a int)", "DROP TABLE t", "ALTER TABLE t ADD b int", "DO $$ $$"]);
    check("write unknown-statement", &["VACUUM", "GRANT SELECT ON t TO u", "sELEKT 1", "\"select\" 1", "1"]);
}

#[test]
fn functions_decide_by_the_worst_of_their_name() {
    check(
        "write unknown-function",
        &[
            "SELECT anything(1)",
            "SELECT s.values(1)",
            "SELECT shouted(1)",
            "SELECT \"NOW\"()",
            "SELECT DISTINCT ON (a) f(b) FROM t",
            "SELECT * FROM now(), f(1) AS (a int)",
            "SELECT rows(1), f (2)",
            "SELECT f -- comment\n /* comment */ (1)",
        ],
    );
    check(
        "write volatile-function",
        &["SELECT writes()", "SELECT mixed(1)", "SELECT public . writes (1)", "SELECT t.writes FROM t"],
    );
    check("write volatile-operator", &["SELECT 1 <!> 2"]);
    check("write function-override", &["SELECT abs_but_kept(1)"]);
}

#[test]
fn what_belongs_to_one_server_stays_with_the_primary() {
    check(
        "write node-dependent",
        &[
            "SELECT nextval('s')",
            "SELECT currval('s')",
            "SELECT pg_is_in_recovery()",
            "SELECT pg_backend_pid()",
            "SELECT * FROM pg_stat_replication",
            "SELECT * FROM pg_locks",
            "SELECT pg_advisory_lock(1)",
            "SELECT pg_advisory_xact_lock(1)",
            "SELECT inet_server_addr()",
            "SELECT dblink('x', 'y')",
            "SELECT lo_create(0)",
            "SELECT txid_current()",
            "SELECT current_setting('port')",
            "SELECT current_setting('stemma.token')",
            "SELECT * FROM pg_temp.t",
            "SELECT set_config('a', 'b', false)",
            "SELECT \"pg_backend_pid\"()",
            "SELECT pg_a_function_of_version_25()",
        ],
    );
}

#[test]
fn relations_that_replicas_lack_are_read_on_the_primary() {
    check("write unlogged", &["SELECT * FROM fast_table", "TABLE public.\"fast_table\"", "EXPLAIN TABLE fast_table"]);
    check("write foreign", &["SELECT * FROM t, FAR_TABLE"]);
    check("write sequence", &["SELECT last_value FROM t_id_seq"]);
    check("write definition", &["SELECT * FROM sly_view", "TABLE view_on_sly", "SELECT * FROM fast_view"]);
    check("write relation-override", &["SELECT * FROM kept_table"]);
    check("read plain-read", &["SELECT * FROM \"FAST_TABLE\"", "SELECT 'fast_table'"]);
}

#[test]
fn texts_that_cannot_be_read_are_for_the_primary() {
    check(
        "write unlexable",
        &[
            "SELECT 'a",
            "SELECT \"a",
            "SELECT $x$ a",
            "SELECT /* a",
            "SELECT E'a\\'",
            "SELECT \0",
            "SELECT $",
            "'",
            "\\d",
        ],
    );
    check("write unreadable-name", &["SELECT U&\"d\\0061t\" FROM t", "SELECT U&\"nextv\\0061l\"('s')"]);
    let long = format!("SELECT * FROM {}", "x".repeat(64));
    check("write unreadable-name", &[&long]);
}

#[test]
fn backslashes_escape_when_the_session_says_so() {
    let sql = br"SELECT 'a\'; DELETE FROM t; --'";
    assert_eq!(route(std::str::from_utf8(sql).expect("ascii")).reason, Reason::MultiStatement);
    let mut context = Context::default();
    context.lexing.standard_conforming_strings = false;
    assert_eq!(classify(sql, &context, &catalog()).reason, Reason::PlainRead);
    // The other way round: what is a string with escapes is code without.
    let sql = br"SELECT '\'', 'nextval(1)' --'";
    assert_eq!(classify(sql, &context, &catalog()).reason, Reason::PlainRead);
    assert_eq!(classify(sql, &Context::default(), &catalog()).reason, Reason::NodeDependent);
}

#[test]
fn a_continued_string_is_read_to_its_real_end() {
    check("read plain-read", &["SELECT E'a' \n 'b\\' ; DELETE FROM t'", "SELECT 'a' -- x\n 'b'"]);
    check("write multi-statement", &["SELECT E'a' 'b\\' ; DELETE FROM t"]);
}

#[test]
fn encodings_that_collide_go_to_the_primary() {
    let mut context = Context::default();
    context.lexing.encoding = Encoding::of("SJIS");
    assert_eq!(classify(b"SELECT '\x83\x5c'", &context, &catalog()).reason, Reason::Encoding);
    assert_eq!(classify(b"SELECT 1", &context, &catalog()).reason, Reason::PlainRead);
    assert_eq!(classify(b"SET x = '\x83\x5c'", &context, &catalog()).effects.len(), 1);
    for plain in ["UTF8", "utf-8", "UNICODE", "LATIN1", "ISO_8859_5", "WIN1252", "SQL_ASCII", "EUC_JP", "KOI8R"] {
        assert_eq!(Encoding::of(plain), Encoding::Plain, "{plain}");
    }
    for colliding in
        ["SJIS", "BIG5", "GBK", "UHC", "GB18030", "JOHAB", "WIN936", "Windows950", "", "x".repeat(99).as_str()]
    {
        assert_eq!(Encoding::of(colliding), Encoding::Colliding, "{colliding}");
    }
}

#[test]
fn explain_runs_nothing_unless_it_analyzes() {
    check(
        "read plain-read",
        &[
            "EXPLAIN SELECT writes()",
            "EXPLAIN (COSTS off, FORMAT json) SELECT anything(1)",
            "EXPLAIN ANALYZE SELECT 1",
            "EXPLAIN (ANALYZE, BUFFERS) SELECT count(*) FROM t",
            "EXPLAIN (SELECT 1)",
            "EXPLAIN VERBOSE VALUES (1)",
        ],
    );
    check(
        "write volatile-function",
        &["EXPLAIN ANALYZE SELECT writes()", "EXPLAIN (VERBOSE, ANALYZE) SELECT writes()"],
    );
    check("write explain-other", &["EXPLAIN INSERT INTO t VALUES (1)", "EXPLAIN EXECUTE p"]);
    check("write explain-analyze", &["EXPLAIN ANALYZE INSERT INTO t VALUES (1)", "EXPLAIN (ANALYZE) EXECUTE p"]);
    assert_eq!(effects("EXPLAIN ROUTE SELECT 1"), [Effect::ExplainRoute(14)]);
    assert_eq!(effects("EXPLAIN SELECT pg_advisory_lock(1)"), []);
    assert_eq!(effects("EXPLAIN ANALYZE SELECT pg_advisory_lock(1)"), [Effect::AdvisoryLock]);
}

#[test]
fn copy_out_reads_and_everything_else_of_copy_does_not() {
    check(
        "read plain-read",
        &[
            "COPY t TO STDOUT",
            "COPY public.t (a, b) TO STDOUT WITH (FORMAT csv, FORCE_QUOTE (a))",
            "COPY (SELECT a, count(*) FROM t GROUP BY a) TO STDOUT (FORMAT binary)",
        ],
    );
    check("write copy-from", &["COPY t FROM STDIN", "COPY t FROM '/x'", "COPY t (a) FROM STDIN WITH CSV"]);
    check("write copy-file", &["COPY t TO '/x'", "COPY t TO PROGRAM 'cat'", "COPY (SELECT 1) TO PROGRAM 'x'"]);
    check("write write-keyword", &["COPY (DELETE FROM t RETURNING *) TO STDOUT"]);
    check("write volatile-function", &["COPY (SELECT writes()) TO STDOUT"]);
    check("write unlogged", &["COPY fast_table TO STDOUT"]);
    assert_eq!(effects("COPY t FROM STDIN"), [Effect::CopyIn]);
    assert_eq!(effects("COPY (SELECT 1) TO STDOUT"), [Effect::CopyOut]);
}

#[test]
fn a_cold_catalogue_makes_everything_a_write() {
    let cold = Catalog::cold();
    for sql in ["SELECT 1", "TABLE t", "COPY t TO STDOUT", "EXPLAIN SELECT 1", "DECLARE c CURSOR FOR SELECT 1"] {
        let route = classify(sql.as_bytes(), &Context::default(), &cold);
        assert_eq!((route.class, route.reason), (Class::Write, Reason::CatalogCold), "{sql}");
    }
}

#[test]
fn transactions_are_understood() {
    use crate::route::{Isolation, Modes};
    let read_only = Modes { read_only: Some(true), ..Modes::default() };
    for (sql, effect) in [
        ("BEGIN", Effect::Begin(Modes::default())),
        ("begin work read only", Effect::Begin(read_only)),
        ("START TRANSACTION READ WRITE, READ ONLY", Effect::Begin(read_only)),
        (
            "BEGIN ISOLATION LEVEL SERIALIZABLE, READ WRITE NOT DEFERRABLE",
            Effect::Begin(Modes {
                read_only: Some(false),
                isolation: Some(Isolation::Serializable),
                deferrable: Some(false),
            }),
        ),
        (
            "BEGIN ISOLATION LEVEL REPEATABLE READ",
            Effect::Begin(Modes { isolation: Some(Isolation::RepeatableRead), ..Modes::default() }),
        ),
        ("COMMIT", Effect::Commit { chain: false }),
        ("END TRANSACTION AND CHAIN", Effect::Commit { chain: true }),
        ("COMMIT AND NO CHAIN", Effect::Commit { chain: false }),
        ("ABORT", Effect::Rollback { chain: false }),
        ("ROLLBACK WORK AND CHAIN", Effect::Rollback { chain: true }),
        ("ROLLBACK TO a", Effect::RollbackTo("a".into())),
        ("ROLLBACK TRANSACTION TO SAVEPOINT \"A b\"", Effect::RollbackTo("A b".into())),
        ("ROLLBACK TO savepoint", Effect::RollbackTo("savepoint".into())),
        ("SAVEPOINT Ab", Effect::Savepoint("ab".into())),
        ("RELEASE SAVEPOINT a", Effect::Release("a".into())),
        ("RELEASE a", Effect::Release("a".into())),
        ("PREPARE TRANSACTION 'x'", Effect::PrepareTransaction),
        ("COMMIT PREPARED 'x'", Effect::FinishPrepared { commit: true }),
        ("ROLLBACK PREPARED 'x'", Effect::FinishPrepared { commit: false }),
        ("SET TRANSACTION READ ONLY", Effect::SetTransaction { modes: read_only, snapshot: false }),
        ("SET TRANSACTION SNAPSHOT 'x'", Effect::SetTransaction { modes: Modes::default(), snapshot: true }),
    ] {
        assert_eq!(effects(sql), [effect], "{sql}");
        check("transaction control", &[sql]);
    }
}

#[test]
fn settings_are_understood() {
    use crate::route::{Modes, Value};
    let read_only = Modes { read_only: Some(true), ..Modes::default() };
    for (sql, effect) in [
        ("SET a = 'b'", set("a", "b", false)),
        ("set session Work_Mem to 64", set("work_mem", "64", false)),
        ("SET LOCAL app.user = Joe", set("app.user", "joe", true)),
        ("SET a TO DEFAULT", Effect::Set { name: "a".into(), value: Value::Default, local: false }),
        (
            "SET search_path = a, \"B\" ;",
            Effect::Set { name: "search_path".into(), value: Value::Raw("a, \"B\"".into()), local: false },
        ),
        ("SET a = E'x\\n'", Effect::Set { name: "a".into(), value: Value::Raw("E'x\\n'".into()), local: false }),
        ("SET TIME ZONE 'UTC'", set("timezone", "UTC", false)),
        ("SET TIME ZONE LOCAL", Effect::Set { name: "timezone".into(), value: Value::Default, local: false }),
        ("SET LOCAL ROLE admin", set("role", "admin", true)),
        ("SET ROLE NONE", set("role", "none", false)),
        ("SET role = 'x'", set("role", "x", false)),
        ("SET SESSION AUTHORIZATION 'x'", set("session_authorization", "x", false)),
        ("SET NAMES 'UTF8'", set("client_encoding", "UTF8", false)),
        ("SET SCHEMA 'x'", set("search_path", "x", false)),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Effect::SetCharacteristics(read_only)),
        ("RESET ALL", Effect::Reset(None)),
        ("RESET Work_mem", Effect::Reset(Some("work_mem".into()))),
        ("RESET SESSION AUTHORIZATION", Effect::Reset(Some("session_authorization".into()))),
        ("RESET TIME ZONE", Effect::Reset(Some("timezone".into()))),
        ("DISCARD ALL", Effect::Discard(Discard::All)),
        ("DISCARD TEMPORARY", Effect::Discard(Discard::Temp)),
        ("SHOW work_mem", Effect::Show("work_mem".into())),
        ("SHOW ALL", Effect::Show("all".into())),
        ("SHOW TRANSACTION ISOLATION LEVEL", Effect::Show("transaction_isolation".into())),
        ("SHOW stemma.token", Effect::Show("stemma.token".into())),
    ] {
        assert_eq!(effects(sql), [effect], "{sql}");
        check("session control", &[sql]);
    }
}

use crate::route::Discard;

#[test]
fn set_config_is_a_setting_where_it_can_be_read() {
    assert_eq!(effects("SELECT pg_catalog.set_config('search_path', '', false);"), [set("search_path", "", false)]);
    assert_eq!(effects("SELECT set_config('App.x', 'y', true)"), [set("app.x", "y", true)]);
    let untracked = [Effect::Untracked(Untracked::SetConfig)];
    assert_eq!(effects("SELECT set_config('a', $1, false)"), untracked);
    assert_eq!(effects("SELECT set_config('a', 'b', false) WHERE false"), untracked);
    assert_eq!(effects("SELECT set_config('a', f('b', 'c'), x)"), untracked);
    assert_eq!(effects("SELECT set_config($1, $2, true), set_config('a', f(1, 2), true)"), []);
}

#[test]
fn prepared_statements_and_cursors_are_understood() {
    let sql = "PREPARE p (int, text) AS SELECT * FROM t WHERE a = $1;";
    let body = 25..sql.len() - 1;
    assert_eq!(effects(sql), [Effect::Prepare { name: "p".into(), class: Class::Read, body }]);
    let sql = "PREPARE transaction AS DELETE FROM t";
    let prepare = Effect::Prepare { name: "transaction".into(), class: Class::Write, body: 23..sql.len() };
    assert_eq!(effects(sql), [prepare]);
    for (sql, effect) in [
        ("EXECUTE p(1, now())", Effect::Execute { name: "p".into(), arguments_read: true }),
        ("EXECUTE p(writes())", Effect::Execute { name: "p".into(), arguments_read: false }),
        ("DEALLOCATE PREPARE p", Effect::Deallocate(Some("p".into()))),
        ("DEALLOCATE prepare", Effect::Deallocate(Some("prepare".into()))),
        ("DEALLOCATE PREPARE ALL", Effect::Deallocate(None)),
        ("DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1", Effect::Declare { name: "c".into(), hold: false }),
        ("DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT 1", Effect::Declare { name: "c".into(), hold: true }),
        ("CLOSE c", Effect::Close(Some("c".into()))),
        ("CLOSE ALL", Effect::Close(None)),
        ("LISTEN c", Effect::Listen("c".into())),
        ("UNLISTEN *", Effect::Unlisten(None)),
        ("UNLISTEN c", Effect::Unlisten(Some("c".into()))),
        ("NOTIFY c, 'x'", Effect::Notify("c".into())),
    ] {
        assert_eq!(effects(sql), [effect], "{sql}");
    }
    check("read plain-read", &["DECLARE c CURSOR FOR SELECT 1"]);
    check("write cursor-hold", &["DECLARE c CURSOR WITH HOLD FOR SELECT 1"]);
    check("write execute", &["EXECUTE p"]);
    check("session control", &["FETCH 1 FROM c", "MOVE c", "CLOSE c", "DEALLOCATE p"]);
}

#[test]
fn what_binds_a_session_is_noticed_in_every_statement() {
    for sql in [
        "CREATE TEMP TABLE x (a int)",
        "CREATE OR REPLACE TEMPORARY VIEW v AS SELECT 1",
        "CREATE TABLE pg_temp.x (a int)",
        "CREATE LOCAL TEMP SEQUENCE s",
    ] {
        assert_eq!(effects(sql), [Effect::CatalogChanged, Effect::TempObject], "{sql}");
    }
    for (sql, effect) in [
        ("SELECT 1 INTO TEMP x", Effect::TempObject),
        ("SELECT pg_try_advisory_lock_shared(1)", Effect::AdvisoryLock),
        ("INSERT INTO t SELECT pg_advisory_lock(1)", Effect::AdvisoryLock),
        ("SELECT pg_catalog.\"pg_advisory_unlock\"(1)", Effect::AdvisoryUnlock),
        ("SELECT pg_advisory_unlock_all()", Effect::AdvisoryUnlockAll),
        ("LOAD 'x'", Effect::Untracked(Untracked::Load)),
        ("DO $$ BEGIN END $$", Effect::Untracked(Untracked::DoBlock)),
        ("SELECT setseed(0.5)", Effect::Untracked(Untracked::Seed)),
        ("SELECT 'x", Effect::Untracked(Untracked::Unreadable)),
    ] {
        assert_eq!(effects(sql), [effect], "{sql}");
    }
    assert_eq!(effects("SELECT pg_advisory_xact_lock(1)"), []);
}

#[test]
fn the_effects_of_several_statements_come_in_order() {
    let route = route("BEGIN; SET LOCAL a = 1; SELECT pg_advisory_lock(1); COMMIT;");
    let parts: Vec<u32> = route.effects.iter().map(|traced| traced.part).collect();
    assert_eq!((route.parts, parts), (4, vec![0, 1, 2, 3]));
    // The body of a function or rule is one statement, whatever semicolons it holds.
    for sql in [
        "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT CASE WHEN true THEN 1 END; COMMIT; END",
        "CREATE OR REPLACE PROCEDURE p() LANGUAGE sql BEGIN ATOMIC INSERT INTO t VALUES (1); END;",
        "CREATE RULE r AS ON INSERT TO t DO (DELETE FROM u; COMMIT)",
    ] {
        let route = self::route(sql);
        assert_eq!(route.effects, [Traced { part: 0, effect: Effect::CatalogChanged }], "{sql}");
        assert_eq!(route.parts, 1, "{sql}");
    }
}

#[test]
fn the_session_has_a_say() {
    let catalog = catalog();
    let within = |sql: &str, session: Session| {
        let route = classify(sql.as_bytes(), &Context { lexing: Lexing::default(), session }, &catalog);
        (route.class, route.reason)
    };
    let idle = Session::default();
    let pinned = Session { pinned: true, ..idle };
    assert_eq!(within("SELECT 1", pinned), (Class::Write, Reason::Pinned));
    assert_eq!(within("/*+ route=replica */ SELECT 1", pinned), (Class::Write, Reason::Pinned));
    assert_eq!(within("COMMIT", pinned), (Class::Transaction, Reason::Control));
    let serializable = Session { serializable: true, ..idle };
    assert_eq!(within("SELECT 1", serializable), (Class::Write, Reason::Serializable));
    let both = Session { standing: Standing::ReadOnly, ..serializable };
    assert_eq!(within("SELECT anything(1)", both), (Class::Write, Reason::UnknownFunction));
    assert_eq!(
        within("/*+ route=replica */ SELECT anything(1)", serializable),
        (Class::Write, Reason::UnknownFunction)
    );
    let writing = Session { standing: Standing::ReadWrite, ..idle };
    assert_eq!(within("SELECT 1", writing), (Class::Write, Reason::ReadWriteTransaction));
    let reading = Session { standing: Standing::ReadOnly, ..idle };
    assert_eq!(within("SELECT anything(1)", reading), (Class::Read, Reason::ReadOnlyTransaction));
    assert_eq!(within("SELECT nextval('s')", reading), (Class::Write, Reason::NodeDependent));
    let wishes = |route| Session { route: Some(route), ..idle };
    assert_eq!(within("SELECT 1", wishes(Target::Primary)), (Class::Write, Reason::HintPrimary));
    assert_eq!(within("SELECT anything(1)", wishes(Target::Replica)), (Class::Read, Reason::HintReplica));
    assert_eq!(within("DELETE FROM t", wishes(Target::Replica)), (Class::Write, Reason::WriteKeyword));
}

#[test]
fn a_comment_hint_overrules_doubts_but_not_facts() {
    check("read hint-replica", &["/*+ route=replica */ SELECT anything(1)", "SELECT /*+ route=ro */ writes()"]);
    check("write hint-primary", &["/*+ route=primary */ SELECT 1"]);
    check("write write-keyword", &["/*+ route=replica */ DELETE FROM t"]);
    check("write multi-statement", &["/*+ route=replica */ SELECT 1; SELECT 2"]);
    check("read plain-read", &["SELECT '/*+ route=primary */'", "/* route=primary */ SELECT 1"]);
    let hint = route("/*+ consistency=strong */ SELECT 1").hint.expect("a hint");
    assert_eq!(hint.consistency, Some(crate::Level::Strong));
}

#[test]
fn a_doubt_that_is_answered_does_not_hide_what_stands_behind_it() {
    check(
        "write locking",
        &["/*+ route=replica */ SELECT anything(1) FROM t FOR SHARE", "SELECT anything(1) FROM t FOR SHARE"],
    );
    check("write write-keyword", &["/*+ route=replica */ WITH d AS (DELETE FROM t RETURNING anything(1)) TABLE d"]);
    check("write unlogged", &["/*+ route=replica */ SELECT anything(1) FROM fast_table"]);
    check("write write-keyword", &["/*+ route=replica */ COPY (DELETE FROM t RETURNING anything(1)) TO STDOUT"]);
    // What stays in the session must not stay behind on a replica.
    check("write node-dependent", &["/*+ route=replica */ SELECT anything(1), pg_advisory_lock(1)"]);
    check("write node-dependent", &["/*+ route=replica */ SELECT set_config('a', 'b', false)"]);
    check("read hint-replica", &["/*+ route=replica */ SELECT pg_is_in_recovery()"]);
    let session = Session { standing: Standing::ReadOnly, ..Session::default() };
    let context = Context { lexing: Lexing::default(), session };
    let sql = b"SELECT anything(1), pg_advisory_lock(1)";
    assert_eq!(classify(sql, &context, &catalog()).reason, Reason::NodeDependent);
}

#[test]
fn the_reason_names_what_decided() {
    let explain = |sql: &str| route(sql).explain(sql.as_bytes());
    assert_eq!(explain("SELECT Anything(1)"), "primary: a function is not in the catalogue (C-3) - `Anything`");
    assert_eq!(explain("SELECT 1"), "replica: it only reads, and every function it calls is known to be harmless");
    assert_eq!(Bytes::from("x").to_string(), "x");
}
