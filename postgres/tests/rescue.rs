//! What only an old primary holds is saved before it comes back, and can be read.

mod pair;
mod servers;

use model::observe::CloneProgress;
use model::{Epoch, NodeName, Trouble};
use pair::{Pair, SOON};
use postgres::rescue::{self, Bundle, ExportFormat, RescueLimits, RescueOrder, Saved};
use postgres::{CameBack, Comeback, ComebackDeadlines, Way};
use serde_json::{Value, json};
use std::path::PathBuf;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

struct Desk {
    directory: PathBuf,
    node: NodeName,
    primary: NodeName,
    limits: RescueLimits,
}

impl Desk {
    fn of(pair: &Pair) -> Desk {
        let directory = rescue::rescue_dir(&pair.directory.path().join("state"));
        let name = |name: &str| name.parse().expect("a name");
        Desk { directory, node: name("n1"), primary: name("n2"), limits: RescueLimits::default() }
    }

    async fn comeback(&self, pair: &Pair) -> Result<CameBack, Trouble> {
        let order = Comeback {
            spec: &pair.old.spec,
            source: pair.new.endpoint(),
            files: None,
            fork: None,
            rescue: RescueOrder {
                directory: &self.directory,
                node: &self.node,
                epoch: Epoch(2),
                primary: &self.primary,
                limits: self.limits,
            },
            may_rewind: true,
            deadlines: ComebackDeadlines { recover: SOON, save: SOON, rewind: SOON },
        };
        let progress = watch::channel(CloneProgress::default()).0;
        postgres::comeback(&order, &progress, &CancellationToken::new()).await
    }

    fn lines(&self, bundle: &Bundle) -> Vec<Value> {
        let mut out = Vec::new();
        rescue::export(&self.directory, &bundle.id, ExportFormat::JsonLines, &mut out).expect("export");
        let text = String::from_utf8(out).expect("text");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    fn sql(&self, bundle: &Bundle) -> String {
        let mut out = Vec::new();
        rescue::export(&self.directory, &bundle.id, ExportFormat::Sql, &mut out).expect("export");
        String::from_utf8(out).expect("text")
    }
}

fn bundle(came: &CameBack) -> &Bundle {
    match &came.saved {
        Saved::Bundle(bundle) => bundle,
        Saved::Nothing { .. } => panic!("nothing was saved: {came:?}"),
    }
}

/// The essence of a change line.
fn essence(lines: &[Value]) -> Vec<Value> {
    let changes = lines.iter().filter(|line| line["kind"] != "transaction");
    changes.map(|line| json!([line["kind"], line["tables"][0][1], line["key"], line["old"], line["row"]])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_the_lost_changes_are_saved_and_the_old_primary_follows() {
    let mut pair = Pair::new(&[], true).await;
    pair.old
        .run(
            "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'common ' || g FROM generate_series(1, 20) g;
             CREATE TABLE keyless (n numeric, at timestamptz)",
        )
        .await;
    pair.part().await;
    pair.old.run("INSERT INTO t VALUES (500, 'lost''s'), (501, NULL)").await;
    pair.old.run("UPDATE t SET v = 'changed' WHERE id = 5").await;
    pair.old.run("DELETE FROM t WHERE id IN (6, 500)").await;
    pair.old.run("UPDATE t SET id = 70 WHERE id = 7").await;
    pair.old.run("INSERT INTO keyless VALUES (-12.50, '2026-11-20 13:33:49.5+00')").await;
    pair.old.run("DELETE FROM keyless").await;
    // Rolled back: it never was.
    pair.old
        .run("DO $$ BEGIN BEGIN INSERT INTO t VALUES (900, 'no'); RAISE 'no'; EXCEPTION WHEN OTHERS THEN END; END $$")
        .await;
    pair.new.run("INSERT INTO t VALUES (500, 'kept')").await;
    pair.old.kill().await;

    let desk = Desk::of(&pair);
    let came = desk.comeback(&pair).await.expect("came back");
    assert_eq!(came.way, Way::Rewound);
    let saved = bundle(&came);
    assert_eq!(saved.not_decoded, Vec::<String>::new());
    let row = |id: &str, v: &str| json!({ "id": id, "v": v });
    let lines = desk.lines(saved);
    let keyless = json!({ "n": "-12.50", "at": "2026-11-20 13:33:49.5+00" });
    assert_eq!(
        essence(&lines),
        [
            json!(["insert", "t", { "id": "500" }, null, row("500", "lost's")]),
            json!(["insert", "t", { "id": "501" }, null, { "id": "501", "v": null }]),
            json!(["update", "t", { "id": "5" }, row("5", "common 5"), row("5", "changed")]),
            json!(["delete", "t", { "id": "6" }, row("6", "common 6"), null]),
            json!(["delete", "t", { "id": "500" }, row("500", "lost's"), null]),
            json!(["update", "t", { "id": "7" }, row("7", "common 7"), row("70", "common 7")]),
            json!(["insert", "keyless", null, null, keyless]),
            json!(["delete", "keyless", null, keyless, null]),
        ]
    );
    let counts = saved.counts;
    assert_eq!((counts.transactions, counts.inserts, counts.updates, counts.deletes), (6, 3, 2, 3));
    assert_eq!((counts.incomplete, counts.catalog), (0, 0));
    let sql = desk.sql(saved);
    for statement in [
        "INSERT INTO \"public\".\"t\" (\"id\", \"v\") VALUES ('500', 'lost''s');",
        "UPDATE \"public\".\"t\" SET \"v\" = 'changed' WHERE \"id\" = '5';",
        "UPDATE \"public\".\"t\" SET \"id\" = '70' WHERE \"id\" = '7';",
        "DELETE FROM \"public\".\"t\" WHERE \"id\" = '6';",
    ] {
        assert!(sql.contains(statement), "{statement} is missing in\n{sql}");
    }
    let files = std::fs::read_dir(desk.directory.join(&saved.id).join("wal")).expect("the log").count();
    assert!(files == saved.log_files.len() && files > 0);
    assert_eq!(rescue::list(&desk.directory).expect("list").len(), 1);
    pair.reunited().await;
}

const TYPES: &[(&str, &str)] = &[
    ("bool", "true"),
    ("bytea", "'\\x00ff10'"),
    ("\"char\"", "'x'"),
    ("name", "'a name'"),
    ("int8", "-9223372036854775808"),
    ("int2", "-7"),
    ("int4", "2147483647"),
    ("text", "'ä ''quoted'' \\ text'"),
    ("oid", "4294967295"),
    ("json", "'{\"a\": [1, 2]}'"),
    ("float4", "'-Infinity'"),
    ("float8", "0.1"),
    ("char(5)", "'ab'"),
    ("varchar(9)", "'var'"),
    ("date", "'1066-10-14'"),
    ("time", "'23:59:59.25'"),
    ("timestamp", "'2026-11-20 13:33:49.123456'"),
    ("timestamptz", "'1999-12-31 23:59:59+00'"),
    ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
    ("numeric", "-120000.00450"),
    ("numeric(20,3)", "12345678901234567.891"),
    ("mood", "'so so'"),
    ("short", "'beneath a domain'"),
    ("text", "repeat('compressed ', 500)"),
    ("text", "NULL"),
];

/// Rows that no query shows any more read as the server printed them, on every version of PostgreSQL that is here.
async fn ended_rows_read_as_the_server_printed_them(bin_dir: Option<&std::path::Path>) {
    let mut pair = Pair::with_programs(bin_dir, &[], true).await;
    let columns: Vec<String> = TYPES.iter().enumerate().map(|(at, (name, _))| format!("c{at} {name}")).collect();
    let values: Vec<&str> = TYPES.iter().map(|(_, value)| *value).collect();
    pair.old
        .run(&format!(
            "CREATE TYPE mood AS ENUM ('good', 'so so'); CREATE DOMAIN shorter AS varchar(30);
             CREATE DOMAIN short AS shorter; CREATE TABLE t (id int PRIMARY KEY, v text);
             CREATE TABLE all_types (gone point, id int PRIMARY KEY, {});
             ALTER TABLE all_types DROP COLUMN gone; INSERT INTO all_types VALUES (1, {});
             ALTER TABLE all_types ADD COLUMN later int",
            columns.join(", "),
            values.join(", ")
        ))
        .await;
    pair.part().await;
    pair.old.run(&format!("INSERT INTO all_types VALUES (2, {}, 3)", values.join(", "))).await;
    pair.old.run("UPDATE all_types SET later = 9").await;
    let names: Vec<String> = (0..TYPES.len()).map(|at| format!("c{at}::text")).collect();
    let printed = pair
        .old
        .ask(&format!(
            "SET TimeZone = 'UTC'; SELECT array_to_json(ARRAY[{}]) FROM all_types WHERE id = 1",
            names.join(",")
        ))
        .await;
    let printed: Vec<Value> = serde_json::from_str(&printed[0]).expect("JSON");
    pair.old.run("DELETE FROM all_types").await;
    pair.old.kill().await;

    let desk = Desk::of(&pair);
    let came = desk.comeback(&pair).await.expect("came back");
    let saved = bundle(&came);
    assert_eq!(saved.not_decoded, Vec::<String>::new());
    let major = pair.old.spec.installation.major;
    let lines = desk.lines(saved);
    let kinds: Vec<&str> = lines.iter().filter_map(|line| line["kind"].as_str()).collect();
    let wanted = ["transaction", "insert", "transaction", "update", "update", "transaction", "delete", "delete"];
    assert_eq!(kinds, wanted, "PostgreSQL {major}");
    let mut rows = 0;
    for line in lines.iter().filter(|line| line["kind"] != "transaction") {
        for row in [&line["old"], &line["row"]].into_iter().filter(|row| !row.is_null()) {
            rows += 1;
            for (at, printed) in printed.iter().enumerate() {
                let (kind, read) = (TYPES[at].0, &row[format!("c{at}")]);
                assert_eq!(read, printed, "{kind} of {} {} in PostgreSQL {major}", line["kind"], line["key"]);
            }
        }
    }
    assert_eq!(rows, 1 + 2 * 2 + 2, "each change shows what it can");
    let later = |line: usize, side: &str| lines[line][side]["later"].clone();
    assert_eq!((later(1, "row"), later(3, "old"), later(3, "row")), (json!("3"), Value::Null, json!("9")));
    let has_tool = pair.old.spec.installation.bin_dir.join("pg_rewind").exists();
    match came.way {
        Way::Rewound => {
            assert!(has_tool);
            pair.reunited().await;
        }
        Way::Rebuild { because } => assert!(!has_tool && because.contains("there is no pg_rewind"), "{because}"),
        Way::Follow => panic!("it had a history of its own"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_rows_read_as_the_usual_server_printed_them() {
    ended_rows_read_as_the_server_printed_them(None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ended_rows_read_as_servers_of_other_versions_printed_them() {
    for bin_dir in servers::fetched() {
        eprintln!("{}", bin_dir.display());
        ended_rows_read_as_the_server_printed_them(Some(&bin_dir)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_missed_of_what_transactions_can_be() {
    let mut pair = Pair::new(&[("max_prepared_transactions", "4")], true).await;
    pair.old.run("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE big (id int PRIMARY KEY, v text)").await;
    pair.old.run("ALTER TABLE big ALTER v SET STORAGE EXTERNAL; INSERT INTO big VALUES (1, repeat('x', 20000))").await;
    pair.old.client("postgres").await.batch_execute("CREATE DATABASE \"an other\"").await.expect("made");
    let other = pair.old.client("an other").await;
    other
        .batch_execute("CREATE TABLE far (id int PRIMARY KEY, n int GENERATED ALWAYS AS (id * 2) STORED)")
        .await
        .expect("made");
    // Open when the histories part: it changes rows before and after.
    let open = pair.old.client("postgres").await;
    open.batch_execute("BEGIN; INSERT INTO t VALUES (1, 'before the fork')").await.expect("insert");
    pair.old.run("CHECKPOINT").await;
    pair.old.run("SELECT pg_switch_wal()").await;
    pair.old.run("INSERT INTO t VALUES (2, 'common')").await;
    pair.part().await;
    open.batch_execute("SAVEPOINT a; INSERT INTO t VALUES (3, 'part'); RELEASE a; SAVEPOINT b; INSERT INTO t VALUES (4, 'no'); ROLLBACK TO b; COMMIT").await.expect("commit");
    pair.old.run("SELECT pg_switch_wal()").await;
    pair.old.run("INSERT INTO t SELECT g, 'many' FROM generate_series(1000, 1999) g").await;
    other.batch_execute("INSERT INTO far VALUES (1)").await.expect("insert");
    open.batch_execute("BEGIN; INSERT INTO t VALUES (5, 'prepared'); PREPARE TRANSACTION 'one'")
        .await
        .expect("prepared");
    open.batch_execute("BEGIN; INSERT INTO t VALUES (6, 'prepared'); PREPARE TRANSACTION 'two'")
        .await
        .expect("prepared");
    open.batch_execute("BEGIN; INSERT INTO t VALUES (7, 'undecided'); PREPARE TRANSACTION 'three'")
        .await
        .expect("prepared");
    open.batch_execute("COMMIT PREPARED 'one'").await.expect("committed");
    open.batch_execute("ROLLBACK PREPARED 'two'").await.expect("rolled back");
    pair.old.run("UPDATE big SET v = repeat('y', 20000)").await;
    pair.old.run("INSERT INTO t VALUES (2, 'again') ON CONFLICT (id) DO UPDATE SET v = 'upserted'").await;
    pair.old.run("CREATE TABLE late (a int GENERATED ALWAYS AS IDENTITY, b text); INSERT INTO late (b) VALUES ('in a late table')").await;
    pair.old.run("CREATE TABLE dropped (a int); INSERT INTO dropped VALUES (1)").await;
    pair.old.run("DROP TABLE dropped").await;
    pair.old.run("TRUNCATE late").await;
    let (sender, receiver) = (open.copy_in::<_, bytes::Bytes>("COPY t FROM STDIN").await.expect("copy"), 300);
    let mut sink = Box::pin(sender);
    let rows: String = (0..receiver).map(|at| format!("{}\tcopied\n", 3000 + at)).collect();
    futures_util::SinkExt::send(&mut sink, rows.into()).await.expect("sent");
    sink.as_mut().finish().await.expect("copied");
    pair.old.kill().await;

    let desk = Desk::of(&pair);
    let came = desk.comeback(&pair).await.expect("came back");
    let saved = bundle(&came);
    let lines = desk.lines(saved);
    let of = |kind: &str, table: &str, v: &str| {
        let fits = |line: &&Value| {
            line["kind"] == kind && line["tables"][0][1] == table && (line["row"]["v"] == v || v.is_empty())
        };
        lines.iter().filter(fits).cloned().collect::<Vec<Value>>()
    };
    for (kind, table, v, count) in [
        ("insert", "t", "before the fork", 1),
        ("insert", "t", "part", 1),
        ("insert", "t", "common", 0),
        ("insert", "t", "no", 0),
        ("insert", "t", "many", 1000),
        ("insert", "t", "prepared", 1),
        ("insert", "t", "undecided", 0),
        ("update", "t", "upserted", 1),
        ("insert", "t", "copied", 300),
        ("update", "big", "", 1),
        ("insert", "far", "", 1),
        ("truncate", "late", "", 1),
    ] {
        assert_eq!(of(kind, table, v).len(), count, "{kind} {table} {v}");
    }
    let big = of("update", "big", "").remove(0);
    assert_eq!(big["row"]["v"], "y".repeat(20000), "large values come whole as long as the row is there");
    assert_eq!(big["old"]["v"]["not_read"], "stored out of line");
    let far = of("insert", "far", "").remove(0);
    assert_eq!((far["database"].clone(), far["row"]["n"].clone()), (json!("an other"), json!("2")));
    assert_eq!(saved.prepared.len(), 1);
    let notes = saved.not_decoded.join("\n");
    assert!(notes.contains("no table is in it any more"), "{notes}");
    assert!(notes.contains("prepared transactions that nobody decided"), "{notes}");
    assert!(!notes.contains("not understood") && !notes.contains("which was not read"), "{notes}");
    assert!(saved.counts.catalog > 0, "the table made late");
    let sql = desk.sql(saved);
    assert!(sql.contains("\\connect \"dbname='an other'\""), "{sql}");
    assert!(sql.contains("INSERT INTO \"public\".\"far\" (\"id\") VALUES ('1');"), "not what the server computes");

    // What was written can be run, where the tables are as they were.
    assert_eq!(came.way, Way::Rewound);
    pair.reunited().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bookkeeping_of_ours_is_no_loss_and_the_same_loss_is_saved_once() {
    let mut pair = Pair::new(&[], true).await;
    pair.old.run("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    pair.old.sql.ensure_lineage(Epoch(1), &"n1".parse().expect("name"), model::Timeline(1)).await.expect("lineage");
    pair.part().await;
    pair.old.sql.ensure_lineage(Epoch(1), &"n1".parse().expect("name"), model::Timeline(1)).await.expect("lineage");
    pair.old.sql.force_record().await.expect("record");
    pair.old.kill().await;
    let mut desk = Desk::of(&pair);
    let order = |desk: &Desk| (desk.directory.clone(), desk.node.clone(), desk.primary.clone());
    let came = desk.comeback(&pair).await.expect("came back");
    assert!(matches!(came.saved, Saved::Nothing { beyond } if beyond > 0), "{came:?}");
    assert_eq!(came.way, Way::Rewound);
    pair.reunited().await;

    // The places are changed: now the other one has a loss, and no room for it.
    pair.old.kill().await;
    std::mem::swap(&mut pair.old, &mut pair.new);
    let follower = pair.old.follower();
    pair.new.start(follower).await;
    pair.part().await;
    pair.old.run("INSERT INTO t VALUES (7, 'lost')").await;
    pair.old.kill().await;
    desk.limits.bundle_bytes_max = 1000;
    assert!(desk.comeback(&pair).await.expect_err("no room").is("ST2115"));
    assert!(!pair.old.spec.data_dir.join("standby.signal").exists(), "nothing was rewound");
    desk.limits = RescueLimits::default();
    // As if the keeper had died behind the bundle: twice saved, once kept.
    for _ in 0..2 {
        let (directory, node, primary) = order(&desk);
        let rescue =
            RescueOrder { directory: &directory, node: &node, epoch: Epoch(3), primary: &primary, limits: desk.limits };
        let at = postgres::rescue::find_fork((model::Timeline(2), &[]), (model::Timeline(3), &[]));
        assert_eq!(at, None);
        let fork = fork_of(&pair).await;
        postgres::crash_recover(&pair.old.spec, SOON).await.expect("recovered");
        let saved = rescue::save(&pair.old.spec, &rescue, fork, SOON).await.expect("saved");
        assert!(matches!(saved, Saved::Bundle(_)));
    }
    let came = desk.comeback(&pair).await.expect("came back");
    assert_eq!(rescue::list(&desk.directory).expect("list").len(), 1);
    assert_eq!(bundle(&came).counts.inserts, 1);
    pair.reunited().await;
}

async fn fork_of(pair: &Pair) -> rescue::Fork {
    let mut client = postgres::replication::ReplicationClient::connect(&pair.new.endpoint()).await.expect("connected");
    let timeline = client.identify_system().await.expect("identity").timeline;
    let last = client.timeline_history(timeline).await.expect("history").pop().expect("it was promoted");
    rescue::Fork { timeline: last.timeline, at: last.switched_at }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_torn_by_the_crash_does_not_end_the_reading() {
    let mut pair = Pair::new(&[], true).await;
    pair.old.run("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    pair.part().await;
    pair.old.run("INSERT INTO t VALUES (1, 'lost')").await;
    let before = pair.old.ask("SELECT pg_current_wal_insert_lsn()").await.remove(0);
    pair.old.run("SELECT pg_logical_emit_message(false, 'x', repeat('x', 50000)); SELECT pg_switch_wal()").await;
    let segment = pair.old.ask(&format!("SELECT pg_walfile_name('{before}')")).await.remove(0);
    pair.old.kill().await;
    // The first page of the long record reached the disk, the others did not.
    let before: model::Lsn = before.parse().expect("a position");
    let path = pair.old.spec.data_dir.join("pg_wal").join(&segment);
    let mut bytes = std::fs::read(&path).expect("read");
    let torn_at = (before.0 % (16 << 20)) as usize / 8192 * 8192 + 8192;
    bytes[torn_at..].fill(0);
    std::fs::write(&path, bytes).expect("written");
    for entry in std::fs::read_dir(pair.old.spec.data_dir.join("pg_wal")).expect("read").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.len() == 24 && name > segment {
            std::fs::remove_file(entry.path()).expect("removed");
        }
    }
    // Recovery gives the record up and goes on behind it; so do two more lives of the server.
    let desk = Desk::of(&pair);
    let came = desk.comeback(&pair).await.expect("came back");
    let saved = bundle(&came);
    assert_eq!((saved.counts.inserts, saved.counts.transactions), (1, 1));
    assert_eq!(saved.not_decoded, Vec::<String>::new());
    pair.reunited().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_file_that_is_gone_are_counted_and_not_guessed() {
    let mut pair = Pair::new(&[("wal_level", "replica")], true).await;
    pair.old.run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'common' FROM generate_series(1, 9) g").await;
    pair.part().await;
    pair.old.run("CHECKPOINT").await;
    pair.old.run("INSERT INTO t VALUES (50, 'lost')").await;
    pair.old.run("UPDATE t SET id = 51 WHERE id = 50").await;
    pair.old.run("UPDATE t SET v = 'changed' WHERE id = 2").await;
    pair.old.run("DELETE FROM t WHERE id IN (3, 51)").await;
    pair.old.run("TRUNCATE t; INSERT INTO t VALUES (60, 'after')").await;
    pair.old.kill().await;
    let desk = Desk::of(&pair);
    let came = desk.comeback(&pair).await.expect("came back");
    let saved = bundle(&came);
    // The old file is gone with the truncation, and the bundle says so instead of guessing.
    let notes = saved.not_decoded.join("\n");
    assert!(notes.contains("5 changes in file") && notes.contains("no table is in it any more"), "{notes}");
    assert_eq!(
        essence(&desk.lines(saved)),
        [json!(["insert", "t", { "id": "60" }, null, { "id": "60", "v": "after" }])]
    );
    pair.reunited().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_tell_rows_that_the_log_does_not() {
    let mut pair = Pair::new(&[("wal_level", "replica")], true).await;
    pair.old.run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'common' FROM generate_series(1, 9) g").await;
    pair.part().await;
    pair.old.run("CHECKPOINT").await;
    pair.old.run("INSERT INTO t VALUES (50, 'lost')").await;
    pair.old.run("UPDATE t SET id = 51 WHERE id = 50").await;
    pair.old.run("DELETE FROM t WHERE id IN (3, 51)").await;
    pair.old.kill().await;
    let desk = Desk::of(&pair);
    let came = desk.comeback(&pair).await.expect("came back");
    let saved = bundle(&came);
    let row = |id: &str, v: &str| json!({ "id": id, "v": v });
    let id = |id: &str| json!({ "id": id });
    assert_eq!(
        essence(&desk.lines(saved)),
        [
            json!(["insert", "t", id("50"), null, row("50", "lost")]),
            json!(["update", "t", id("50"), row("50", "lost"), row("51", "lost")]),
            json!(["delete", "t", id("3"), row("3", "common"), null]),
            json!(["delete", "t", id("51"), row("51", "lost"), null]),
        ]
    );
    assert_eq!(saved.counts.incomplete, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_removed_of_its_log_is_said_and_the_rest_is_saved() {
    let mut pair = Pair::new(&[], true).await;
    pair.old.run("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    pair.part().await;
    pair.old.run("INSERT INTO t VALUES (1, 'in the part that was removed')").await;
    let first = pair.old.ask("SELECT pg_walfile_name(pg_current_wal_lsn())").await.remove(0);
    for id in [2, 3] {
        pair.old.run("SELECT pg_switch_wal()").await;
        pair.old.run("CHECKPOINT").await;
        pair.old.run(&format!("INSERT INTO t VALUES ({id}, 'kept')")).await;
    }
    pair.old.kill().await;
    std::fs::remove_file(pair.old.spec.data_dir.join("pg_wal").join(first)).expect("removed");
    let desk = Desk::of(&pair);
    let came = desk.comeback(&pair).await.expect("came back");
    let saved = bundle(&came);
    assert_eq!(saved.counts.inserts, 2);
    assert!(saved.not_decoded.iter().any(|note| note.contains("was removed by the server")), "{saved:?}");
    assert!(matches!(came.way, Way::Rebuild { .. }), "without that log it cannot be rewound");
    assert!(!pair.old.spec.data_dir.join("standby.signal").exists());
}

/// A keeper may have run the crashed primary as a replica of nobody before it learns that its history is another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_primary_that_ran_as_a_replica_since_tells_as_much() {
    let mut pair = Pair::new(&[], true).await;
    pair.old.run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'common')").await;
    pair.part().await;
    pair.old.run("INSERT INTO t VALUES (50, 'lost')").await;
    pair.old.run("DELETE FROM t WHERE id = 1").await;
    pair.old.kill().await;
    let alone =
        postgres::ServerRole::Replica { primary_conninfo: String::new(), primary_slot_name: None, apply_delay_ms: 0 };
    pair.old.start(alone).await;
    pair.old.stop().await;
    let signal = pair.old.spec.data_dir.join("standby.signal");
    assert!(signal.exists());
    let mut desk = Desk::of(&pair);
    desk.limits.total_bytes_max = 1 << 20;
    assert!(desk.comeback(&pair).await.expect_err("no room").is("ST2115"));
    assert!(signal.exists(), "it stays a replica whatever happens");
    desk.limits = RescueLimits::default();
    let came = desk.comeback(&pair).await.expect("came back");
    let saved = bundle(&came);
    assert_eq!(saved.not_decoded, Vec::<String>::new());
    assert_eq!((saved.counts.inserts, saved.counts.deletes, saved.counts.incomplete), (1, 1, 0));
    assert_eq!(came.way, Way::Rewound);
    pair.reunited().await;
}
