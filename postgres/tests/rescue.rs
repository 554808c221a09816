//! What only an old primary holds is saved before it comes back, and can be read.

mod pair;

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
    let root =
        std::env::var_os("STEMMA_POSTGRES_DIR").map_or_else(|| PathBuf::from("/tmp/stemma-postgres"), PathBuf::from);
    let versions = std::fs::read_dir(&root).into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    for bin_dir in versions.filter(|bin_dir| bin_dir.join("postgres").exists()) {
        eprintln!("{}", bin_dir.display());
        ended_rows_read_as_the_server_printed_them(Some(&bin_dir)).await;
    }
}
