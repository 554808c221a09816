//! The changes as text: one JSON document a line for programs, statements for people and `psql`.
//!
//! The statements are meant to be read, chosen from and adapted: the new primary went on meanwhile. Each transaction of
//! the old primary is one transaction here. What could not be read in full stands in a comment.

use super::bundle::{Bundle, shown};
use super::catalog::quoted_name;
use super::cells::{Cell, Row, hex};
use super::decode::{Entry, Kind, Table, Transaction, is_readable};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

fn cell_json(cell: &Cell) -> Value {
    match cell {
        Cell::Null => Value::Null,
        Cell::Text(text) => Value::String(text.clone()),
        Cell::Bytes(bytes) => json!({ "stored": format!("\\x{}", hex(bytes)) }),
        Cell::Untold(why) => json!({ "not_read": why }),
    }
}

fn row_json(row: Option<&Row>) -> Value {
    row.map_or(Value::Null, |row| {
        Value::Object(row.iter().map(|(name, cell)| (name.clone(), cell_json(cell))).collect::<Map<_, _>>())
    })
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Insert => "insert",
        Kind::Update => "update",
        Kind::Delete => "delete",
        Kind::Truncate => "truncate",
    }
}

/// The lines of a transaction.
pub(crate) fn json_lines(transaction: &Transaction) -> String {
    let mut text = String::new();
    let mut line = |value: Value| {
        text.push_str(&value.to_string());
        text.push('\n');
    };
    line(json!({
        "kind": "transaction",
        "xid": transaction.xid,
        "committed_at": shown(transaction.time),
        "commit_end": transaction.lsn.to_string(),
        "changes": transaction.entries.len(),
        "catalog_changes": transaction.catalog,
        "acknowledged": "never by the replicas that chose the new primary; perhaps by the old one alone",
    }));
    for entry in &transaction.entries {
        let tables: Vec<Value> = entry.tables.iter().map(|table| json!([table.schema, table.name])).collect();
        line(json!({
            "kind": word(entry.kind),
            "xid": transaction.xid,
            "lsn": entry.lsn.to_string(),
            "database": entry.database,
            "tables": tables,
            "key": row_json(entry.key.as_ref()),
            "old": row_json(entry.old.as_ref()),
            "row": row_json(entry.row.as_ref()),
        }));
    }
    text
}

/// What stands at the beginning of the statements.
pub(crate) fn sql_head(bundle: &Bundle) -> String {
    let counts = &bundle.counts;
    let mut text = format!(
        "-- Changes that only {} held when {} became primary in epoch {}. Saved {}.\n\
         -- {} transactions: {} inserts, {} updates, {} deletes, {} truncates.\n\
         -- The new primary went on meanwhile: read, choose and adapt before running any of this.\n",
        bundle.node,
        bundle.primary,
        bundle.epoch,
        shown(bundle.saved_at),
        counts.transactions,
        counts.inserts,
        counts.updates,
        counts.deletes,
        counts.truncates
    );
    comment(&mut text, &bundle.acknowledged);
    for note in &bundle.not_decoded {
        comment(&mut text, &format!("not written out: {note}"));
    }
    text.push_str("SET standard_conforming_strings = on;\n");
    text
}

/// A comment of one line, whatever the text holds.
fn comment(text: &mut String, words: &str) {
    let plain: String = words.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let _ = writeln!(text, "-- {plain}");
}

/// The statements of a transaction; `database` is the one that the statements before were for.
pub(crate) fn sql(transaction: &Transaction, database: &mut Option<String>) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "\n-- transaction {}, committed {}", transaction.xid, shown(transaction.time));
    if transaction.catalog > 0 {
        let told = format!("with {} changes of catalogs (definitions, roles, large objects)", transaction.catalog);
        comment(&mut text, &format!("{told} that are not written out"));
    }
    if let Some(first) = transaction.entries.first()
        && database.as_ref() != Some(&first.database)
    {
        // A connection string, in which quotes keep a name from meaning something else.
        let name = first.database.replace('\\', "\\\\").replace('\'', "\\'");
        let plain = name.chars().all(|c| !c.is_control());
        if plain {
            let _ = writeln!(text, "\\connect \"dbname='{}'\"", name.replace('"', "\"\""));
        } else {
            comment(&mut text, &format!("in database {}", first.database));
        }
        *database = Some(first.database.clone());
    }
    text.push_str("BEGIN;\n");
    for entry in &transaction.entries {
        match statement(entry) {
            Some(statement) => {
                text.push_str(&statement);
                text.push('\n');
            }
            None => {
                let told = json!({
                    "kind": word(entry.kind),
                    "tables": entry.tables.iter().map(named).collect::<Vec<_>>(),
                    "key": row_json(entry.key.as_ref()),
                    "old": row_json(entry.old.as_ref()),
                    "row": row_json(entry.row.as_ref()),
                });
                comment(&mut text, &format!("not read in full: {told}"));
            }
        }
    }
    text.push_str("COMMIT;\n");
    text
}

fn named(table: &Table) -> String {
    format!("{}.{}", quoted_name(&table.schema), quoted_name(&table.name))
}

fn literal(cell: &Cell) -> Option<String> {
    match cell {
        Cell::Null => Some("NULL".to_owned()),
        Cell::Text(text) => Some(format!("'{}'", text.replace('\'', "''"))),
        Cell::Bytes(_) | Cell::Untold(_) => None,
    }
}

fn statement(entry: &Entry) -> Option<String> {
    if entry.kind == Kind::Truncate {
        let names: Vec<String> = entry.tables.iter().map(named).collect();
        return (!names.is_empty()).then(|| format!("TRUNCATE {};", names.join(", ")));
    }
    let table = entry.tables.first()?;
    let name = named(table);
    let values = |row: &Row| -> Option<Vec<(String, String)>> {
        let writable = table.writable.iter().filter_map(|column| Some((column, row.get(column)?)));
        writable.map(|(column, cell)| Some((quoted_name(column), literal(cell)?))).collect()
    };
    let condition = |key: &Row| -> Option<String> {
        let terms = key.iter().map(|(column, cell)| match cell {
            Cell::Null => Some(format!("{} IS NULL", quoted_name(column))),
            Cell::Text(_) | Cell::Bytes(_) | Cell::Untold(_) => {
                Some(format!("{} = {}", quoted_name(column), literal(cell)?))
            }
        });
        Some(terms.collect::<Option<Vec<String>>>()?.join(" AND "))
    };
    match entry.kind {
        Kind::Insert => {
            let values = values(entry.row.as_ref()?)?;
            if values.is_empty() {
                return Some(format!("INSERT INTO {name} DEFAULT VALUES;"));
            }
            let overriding = if table.overriding { " OVERRIDING SYSTEM VALUE" } else { "" };
            let (columns, values): (Vec<String>, Vec<String>) = values.into_iter().unzip();
            Some(format!("INSERT INTO {name} ({}){overriding} VALUES ({});", columns.join(", "), values.join(", ")))
        }
        Kind::Update => {
            let (row, key) = (entry.row.as_ref()?, entry.key.as_ref()?);
            let changed = |column: &String| match (&entry.old, row.get(column)) {
                // Columns that kept their value are left to the new primary's.
                (Some(old), Some(now)) => old.get(column) != Some(now),
                (None, Some(_)) | (_, None) => true,
            };
            let assigned: Option<Vec<String>> = table
                .writable
                .iter()
                .filter(|column| changed(column))
                .filter_map(|column| Some((column, row.get(column)?)))
                .map(|(column, cell)| Some(format!("{} = {}", quoted_name(column), literal(cell)?)))
                .collect();
            let assigned = assigned?;
            if assigned.is_empty() {
                let same = row.iter().find(|(_, cell)| is_readable(cell))?;
                return Some(format!(
                    "UPDATE {name} SET {column} = {column} WHERE {};",
                    condition(key)?,
                    column = quoted_name(same.0)
                ));
            }
            Some(format!("UPDATE {name} SET {} WHERE {};", assigned.join(", "), condition(key)?))
        }
        Kind::Delete => Some(format!("DELETE FROM {name} WHERE {};", condition(entry.key.as_ref()?)?)),
        Kind::Truncate => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{Lsn, WallTime};

    fn row(cells: &[(&str, Cell)]) -> Option<Row> {
        Some(cells.iter().map(|(name, cell)| ((*name).to_owned(), cell.clone())).collect())
    }

    fn text(text: &str) -> Cell {
        Cell::Text(text.to_owned())
    }

    fn entry(kind: Kind, key: Option<Row>, old: Option<Row>, row: Option<Row>) -> Entry {
        let table = Table {
            schema: "public".into(),
            name: "a b".into(),
            writable: vec!["id".into(), "v".into()],
            overriding: false,
        };
        Entry { lsn: Lsn(1), database: "app".into(), kind, tables: vec![table], key, old, row }
    }

    #[test]
    fn changes_are_written_as_statements_and_what_is_not_known_as_a_comment() {
        let key = || row(&[("id", text("1"))]);
        let entries = vec![
            entry(Kind::Insert, key(), None, row(&[("id", text("1")), ("v", text("it's"))])),
            entry(
                Kind::Update,
                key(),
                row(&[("id", text("1")), ("v", text("it's"))]),
                row(&[("id", text("1")), ("v", Cell::Null)]),
            ),
            entry(Kind::Delete, key(), None, None),
            entry(Kind::Delete, None, None, None),
            entry(Kind::Insert, None, None, row(&[("id", text("2")), ("v", Cell::Bytes(vec![1, 255]))])),
            entry(Kind::Truncate, None, None, None),
        ];
        let transaction = Transaction { xid: 7, lsn: Lsn(9), time: WallTime(0), entries, catalog: 0 };
        let mut database = None;
        let told = sql(&transaction, &mut database);
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(
            lines,
            [
                "",
                "-- transaction 7, committed 1970-01-01T00:00:00.000Z",
                "\\connect \"dbname='app'\"",
                "BEGIN;",
                "INSERT INTO \"public\".\"a b\" (\"id\", \"v\") VALUES ('1', 'it''s');",
                "UPDATE \"public\".\"a b\" SET \"v\" = NULL WHERE \"id\" = '1';",
                "DELETE FROM \"public\".\"a b\" WHERE \"id\" = '1';",
                "-- not read in full: {\"key\":null,\"kind\":\"delete\",\"old\":null,\"row\":null,\
                 \"tables\":[\"\\\"public\\\".\\\"a b\\\"\"]}",
                "-- not read in full: {\"key\":null,\"kind\":\"insert\",\"old\":null,\"row\":{\"id\":\"2\",\
                 \"v\":{\"stored\":\"\\\\x01ff\"}},\"tables\":[\"\\\"public\\\".\\\"a b\\\"\"]}",
                "TRUNCATE \"public\".\"a b\";",
                "COMMIT;",
            ]
        );
        assert!(!sql(&transaction, &mut database).contains("connect"), "the same database goes on");
        assert_eq!(json_lines(&transaction).lines().count(), 7);
    }

    #[test]
    fn no_name_ends_a_comment() {
        let mut told = String::new();
        comment(&mut told, "a\nDROP TABLE x; \r b");
        assert_eq!(told, "-- a DROP TABLE x;   b\n");
    }
}
