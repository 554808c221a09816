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
