//! What a stopped server knows of its tables, and the rows that it still shows, asked in single-user mode.

use super::cells::{Cell, Row};
use super::changes::Tid;
use crate::files::{private_dir, refused};
use crate::running::read_as;
use crate::single_user::SingleUser;
use crate::spec::ServerSpec;
use model::Trouble;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

/// Name in the data directory of the directory that answers are written to.
const ANSWERS: &str = "stemma.rescue";
/// Rows asked for in one statement.
const ROWS_PER_STATEMENT: usize = 2000;

/// A column, in the order in which rows hold them; dropped ones too.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Column {
    pub name: String,
    /// Its type; that beneath a domain.
    pub base_type: u32,
    pub length: i32,
    pub align: String,
    pub dropped: bool,
    pub generated: bool,
    /// The server alone gives it its values, unless told otherwise.
    pub identity: bool,
    /// Rows written before it was added have another value than NULL.
    pub has_missing: bool,
}

/// A table.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Relation {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// A materialized view: others' rows once more.
    pub derived: bool,
    /// The file it is in.
    pub file: u32,
    pub columns: Vec<Column>,
    /// Columns that tell its rows apart: replica identity, else primary key.
    pub key: Vec<String>,
    /// Whether the database's text is UTF-8.
    pub utf8: bool,
    /// Labels of the enum types that its columns have: type to value to label.
    pub labels: BTreeMap<String, BTreeMap<String, String>>,
}

/// A database.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Database {
    pub oid: u32,
    pub name: String,
}

/// A row that is asked for: of which table, and where.
pub(crate) type Wanted<'a> = (&'a Relation, BTreeSet<Tid>);
/// A row that the server shows: table, place, and the transaction that wrote it.
pub(crate) type Place = (u32, Tid, u32);

/// A stopped server that can be asked.
pub(crate) struct Catalog<'a> {
    spec: &'a ServerSpec,
    deadline: tokio::time::Instant,
}

const PARAMETERS: &[&str] = &[
    "default_transaction_read_only=on",
    "DateStyle=ISO, MDY",
    "IntervalStyle=postgres",
    "TimeZone=UTC",
    "bytea_output=hex",
    "extra_float_digits=1",
    "xmlbinary=base64",
    "search_path=pg_catalog",
    "row_security=off",
    "jit=off",
    "zero_damaged_pages=off",
];

impl<'a> Catalog<'a> {
    pub(crate) fn new(spec: &'a ServerSpec, deadline: tokio::time::Instant) -> Catalog<'a> {
        Catalog { spec, deadline }
    }

    /// All databases that can be connected to.
    pub(crate) async fn databases(&self) -> Result<Vec<Database>, Trouble> {
        let question =
            "SELECT json_build_object('oid', oid::int8, 'name', datname) FROM pg_database WHERE datallowconn";
        self.ask_all("postgres", &[question.to_owned()]).await
    }

    /// The tables in these files, and those of these oids.
    pub(crate) async fn relations(
        &self,
        database: &str,
        files: &BTreeSet<u32>,
        oids: &BTreeSet<u32>,
    ) -> Result<Vec<Relation>, Trouble> {
        self.ask_all(database, &[relations_question(files, oids)]).await
    }

    /// Those of the wanted rows that a query shows.
    pub(crate) async fn rows(&self, database: &str, wanted: &[Wanted<'_>]) -> Result<BTreeMap<Place, Row>, Trouble> {
        #[derive(Deserialize)]
        struct Answer {
            relation: u32,
            at: String,
            xid: String,
            cells: Vec<Option<String>>,
        }
        let mut questions = Vec::new();
        for (relation, places) in wanted {
            let all: Vec<Tid> = places.iter().copied().collect();
            questions.extend(all.chunks(ROWS_PER_STATEMENT).map(|some| rows_question(relation, some)));
        }
        let answers: Vec<Answer> = self.ask_all(database, &questions).await?;
        let by_oid: BTreeMap<u32, &Relation> = wanted.iter().map(|(relation, _)| (relation.oid, *relation)).collect();
        let mut rows = BTreeMap::new();
        for answer in answers {
            let (Some(relation), Some(at), Ok(xid)) =
                (by_oid.get(&answer.relation), parse_tid(&answer.at), answer.xid.parse::<u32>())
            else {
                continue;
            };
            let names = relation.columns.iter().filter(|column| !column.dropped).map(|column| column.name.clone());
            let cells = answer.cells.into_iter().map(|cell| cell.map_or(Cell::Null, Cell::Text));
            rows.insert((answer.relation, at, xid), names.zip(cells).collect());
        }
        Ok(rows)
    }

    /// Asks several questions, each of which selects JSON documents, and reads all answers.
    async fn ask_all<T: serde::de::DeserializeOwned>(
        &self,
        database: &str,
        questions: &[String],
    ) -> Result<Vec<T>, Trouble> {
        if questions.is_empty() {
            return Ok(Vec::new());
        }
        let place = self.spec.data_dir.join(ANSWERS);
        self.clear()?;
        private_dir(&place, self.spec.user.as_ref())?;
        let answers = self.ask_into(database, questions, &place).await;
        self.clear()?;
        let mut all = Vec::new();
        for line in answers?.lines().filter(|line| !line.is_empty()) {
            all.push(serde_json::from_str(line).map_err(|error| {
                Trouble::internal("what the stopped server says was not understood", "report this").because(error)
            })?);
        }
        Ok(all)
    }

    async fn ask_into(&self, database: &str, questions: &[String], place: &Path) -> Result<String, Trouble> {
        let answer = |index: usize| place.join(index.to_string());
        let mut input = String::new();
        for (index, question) in questions.iter().enumerate() {
            // Delimiter and quote that no JSON text holds: each document stands in a line as it is.
            let path = answer(index).display().to_string().replace('\'', "''");
            input.push_str(&format!(
                "COPY ({}) TO '{path}' (FORMAT csv, DELIMITER E'\\x02', QUOTE E'\\x01', ENCODING 'UTF8')\n",
                question.replace('\n', " ")
            ));
        }
        let left = self.deadline.saturating_duration_since(tokio::time::Instant::now()).max(Duration::from_millis(1));
        let run = SingleUser { spec: self.spec, database, parameters: PARAMETERS };
        let complaints = run.run(&input, left).await?;
        let mut text = String::new();
        for index in 0..questions.len() {
            // A statement that failed left no answer; the server goes on with the next.
            if answer(index).exists() {
                text.push_str(&read_as(&answer(index), self.spec.user.as_ref())?);
                text.push('\n');
            }
        }
        if text.trim().is_empty()
            && let Some(first) = complaints.first()
        {
            return Err(Trouble::sql("the stopped server refused the question", "see its log").because(first));
        }
        Ok(text)
    }

    fn clear(&self) -> Result<(), Trouble> {
        let place = self.spec.data_dir.join(ANSWERS);
        match std::fs::remove_dir_all(&place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(refused("remove", &place, &error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn numbers(all: &BTreeSet<u32>) -> String {
    all.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn relations_question(files: &BTreeSet<u32>, oids: &BTreeSet<u32>) -> String {
    let (files, oids) = (numbers(files), numbers(oids));
    let key = "(SELECT coalesce(json_agg(k.attname), '[]') FROM pg_index i, unnest(i.indkey) AS n, pg_attribute k
         WHERE i.indexrelid = (SELECT coalesce(max(indexrelid) FILTER (WHERE indisreplident), max(indexrelid))
             FROM pg_index WHERE indrelid = c.oid AND (indisprimary OR indisreplident))
         AND k.attrelid = c.oid AND k.attnum = n)";
    let columns = "(SELECT coalesce(json_agg(json_build_object('name', a.attname,
             'base_type', (CASE WHEN t.typtype = 'd' THEN
                 (WITH RECURSIVE d AS (SELECT t.typbasetype b UNION ALL
                      SELECT u.typbasetype FROM d, pg_type u WHERE u.oid = d.b AND u.typtype = 'd')
                  SELECT d.b FROM d, pg_type u WHERE u.oid = d.b AND u.typtype <> 'd')
                 ELSE a.atttypid END)::int8,
             'length', a.attlen, 'align', a.attalign, 'dropped', a.attisdropped, 'generated', a.attgenerated <> '',
             'identity', a.attidentity = 'a', 'has_missing', a.atthasmissing) ORDER BY a.attnum), '[]')
         FROM pg_attribute a LEFT JOIN pg_type t ON t.oid = a.atttypid WHERE a.attrelid = c.oid AND a.attnum > 0)";
    let labels = "(SELECT coalesce(json_object_agg(l.enumtypid, l.all_labels), '{}') FROM
         (SELECT e.enumtypid, json_object_agg(e.oid, e.enumlabel) AS all_labels FROM pg_enum e
          WHERE e.enumtypid IN (SELECT atttypid FROM pg_attribute WHERE attrelid = c.oid) GROUP BY 1) l)";
    format!(
        "SELECT json_build_object('oid', c.oid::int8, 'schema', n.nspname, 'name', c.relname, 'derived', c.relkind = 'm',
             'file', coalesce(pg_relation_filenode(c.oid), 0)::int8,
             'utf8', pg_encoding_to_char(d.encoding) = 'UTF8', 'key', {key}, 'columns', {columns}, 'labels', {labels})
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace,
              (SELECT encoding FROM pg_database WHERE datname = current_database()) d
         WHERE c.relkind IN ('r', 'm', 't', 'p') AND (pg_relation_filenode(c.oid) = ANY ('{{{files}}}'::oid[])
             OR c.oid = ANY ('{{{oids}}}'::oid[]))"
    )
}

/// A name as SQL takes it.
pub(crate) fn quoted_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn rows_question(relation: &Relation, places: &[Tid]) -> String {
    let cells: Vec<String> = relation
        .columns
        .iter()
        .filter(|column| !column.dropped)
        .map(|column| format!("r.{}::text", quoted_name(&column.name)))
        .collect();
    let cells = if cells.is_empty() { "'{}'::text[]".to_owned() } else { format!("ARRAY[{}]", cells.join(",")) };
    let places: Vec<String> = places.iter().map(|at| format!("\"({},{})\"", at.block, at.offset)).collect();
    format!(
        "SELECT json_build_object('relation', {}, 'at', r.ctid::text, 'xid', r.xmin::text, 'cells', array_to_json({cells})) \
         FROM ONLY {}.{} r WHERE r.ctid = ANY ('{{{}}}'::tid[])",
        relation.oid,
        quoted_name(&relation.schema),
        quoted_name(&relation.name),
        places.join(",")
    )
}

fn parse_tid(text: &str) -> Option<Tid> {
    let (block, offset) = text.strip_prefix('(')?.strip_suffix(')')?.split_once(',')?;
    Some(Tid { block: block.parse().ok()?, offset: offset.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_names_cannot_break_out() {
        assert_eq!(parse_tid("(12,3)"), Some(Tid { block: 12, offset: 3 }));
        assert_eq!(parse_tid("12,3"), None);
        assert_eq!(quoted_name("a\"; DROP"), "\"a\"\"; DROP\"");
    }
}
