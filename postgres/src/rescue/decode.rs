//! Turns logged changes into rows with names: which table, which columns, what values.

use super::bundle::Counts;
use super::catalog::{Catalog, Database, Relation, Wanted};
use super::cells::{self, Cell, Row};
use super::changes::{Change, Committed, Logged, OldRow, RawRow, Tid};
use super::log::RelFile;
use super::pages::{Mark, version_in_page};
use super::scan::Scanned;
use crate::spec::ServerSpec;
use model::{Lsn, WallTime};
use std::collections::{BTreeMap, BTreeSet};

/// What happened to a row or to tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Insert,
    Update,
    Delete,
    Truncate,
}

/// A table as it is written out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub schema: String,
    pub name: String,
    /// Columns that may be written, in their order.
    pub writable: Vec<String>,
    /// Values for some of them are refused unless the server is told to take them.
    pub overriding: bool,
}

/// A readable change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub lsn: Lsn,
    pub database: String,
    pub kind: Kind,
    /// More than one only for a truncation.
    pub tables: Vec<Table>,
    /// What tells the row apart, before the change.
    pub key: Option<Row>,
    pub old: Option<Row>,
    pub row: Option<Row>,
}

/// A readable transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Transaction {
    pub xid: u32,
    pub lsn: Lsn,
    pub time: WallTime,
    pub entries: Vec<Entry>,
    /// Changes of catalogs.
    pub catalog: u64,
}

/// All that was lost.
#[derive(Clone, Debug, Default)]
pub(crate) struct Decoded {
    pub transactions: Vec<Transaction>,
    pub counts: Counts,
    pub not_decoded: Vec<String>,
    pub nothing_lost: bool,
}

/// What a file of the database is to us.
enum Class {
    User,
    Catalog,
    /// Parts of large values, and what views keep: they belong to rows of other tables.
    Parts,
    Own,
}

fn class(relation: &Relation) -> Class {
    match relation.schema.as_str() {
        "pg_catalog" | "information_schema" => Class::Catalog,
        "pg_toast" => Class::Parts,
        "stemma" => Class::Own,
        _ if relation.derived => Class::Parts,
        _ => Class::User,
    }
}

/// One database with what is known of its tables.
struct Known {
    name: String,
    by_file: BTreeMap<u32, Relation>,
    by_oid: BTreeMap<u32, Table>,
    shown: BTreeMap<super::catalog::Place, Row>,
}

fn file_of(change: &Change) -> Option<RelFile> {
    match change {
        Change::Insert { file, .. } | Change::Update { file, .. } | Change::Delete { file, .. } => Some(*file),
        Change::Truncate { .. } => None,
    }
}

fn database_of(change: &Change) -> u32 {
    match change {
        Change::Truncate { database, .. } => *database,
        Change::Insert { file, .. } | Change::Update { file, .. } | Change::Delete { file, .. } => file.database,
    }
}

/// Reads what can be read; says what cannot.
pub(crate) async fn decode(spec: &ServerSpec, scanned: &Scanned, until: tokio::time::Instant) -> Decoded {
    let mut decoded = Decoded { not_decoded: scanned.notes.clone(), ..Decoded::default() };
    let catalog = Catalog::new(spec, until);
    let all: Vec<&Logged> = scanned.committed.iter().flat_map(|committed| &committed.changes).collect();
    let mut known: BTreeMap<u32, Known> = BTreeMap::new();
    let mut pages = BTreeMap::new();
    if !all.is_empty() {
        match catalog.databases().await {
            Ok(databases) => {
                known = tables(&catalog, &databases, &all, &mut decoded.not_decoded).await;
                // Before any query walks over their pages, which may tidy them up.
                pages = read_pages(spec, &known, &all);
                show_rows(&catalog, &mut known, &all, &mut decoded.not_decoded).await;
            }
            Err(trouble) => decoded.not_decoded.push(format!("the tables' definitions: {trouble}")),
        }
    }
    let reader = Reader { known: &known, pages: &pages };
    let mut unknown: BTreeMap<(u32, u32), u64> = BTreeMap::new();
    for committed in &scanned.committed {
        if let Some(transaction) = reader.transaction(committed, &mut decoded.counts, &mut unknown) {
            decoded.transactions.push(transaction);
        }
        let (dropped, messages) = (committed.dropped, committed.messages);
        if dropped > 0 {
            decoded.not_decoded.push(format!(
                "{dropped} changes of transaction {}: more than is written out; they are in the log",
                committed.xid
            ));
        }
        if messages > 0 {
            decoded.not_decoded.push(format!("{messages} messages that transaction {} wrote", committed.xid));
        }
    }
    for ((database, file), count) in &unknown {
        decoded.not_decoded.push(format!(
            "{count} changes in file {file} of database {database}: no table is in it any more, or it cannot be asked"
        ));
    }
    decoded.counts.transactions = decoded.transactions.len() as u64;
    if !scanned.prepared.is_empty() {
        decoded.not_decoded.push(format!("prepared transactions that nobody decided: {:?}", scanned.prepared));
    }
    decoded.nothing_lost = decoded.transactions.is_empty() && decoded.not_decoded.is_empty();
    decoded
}

/// The definitions of all tables that were changed.
async fn tables(
    catalog: &Catalog<'_>,
    databases: &[Database],
    all: &[&Logged],
    not_decoded: &mut Vec<String>,
) -> BTreeMap<u32, Known> {
    let mut files: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    let mut oids: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for logged in all {
        let database = database_of(&logged.change);
        files.entry(database).or_default().extend(file_of(&logged.change).map(|file| file.number));
        if let Change::Truncate { relations, .. } = &logged.change {
            oids.entry(database).or_default().extend(relations);
        }
    }
    let mut known = BTreeMap::new();
    for (oid, files) in &files {
        let Some(database) = databases.iter().find(|database| database.oid == *oid) else { continue };
        let empty = BTreeSet::new();
        match catalog.relations(&database.name, files, oids.get(oid).unwrap_or(&empty)).await {
            Ok(relations) => {
                let by_oid = relations.iter().map(|relation| (relation.oid, table_of(relation))).collect();
                let by_file = relations.into_iter().map(|relation| (relation.file, relation)).collect();
                let name = database.name.clone();
                known.insert(*oid, Known { name, by_file, by_oid, shown: BTreeMap::new() });
            }
            Err(trouble) => not_decoded.push(format!("tables of database {}: {trouble}", database.name)),
        }
    }
    known
}

fn table_of(relation: &Relation) -> Table {
    let usable = || relation.columns.iter().filter(|column| !column.dropped && !column.generated);
    Table {
        schema: relation.schema.clone(),
        name: relation.name.clone(),
        writable: usable().map(|column| column.name.clone()).collect(),
        overriding: usable().any(|column| column.identity),
    }
}

fn user_relation<'a>(known: &'a BTreeMap<u32, Known>, change: &Change) -> Option<&'a Relation> {
    let file = file_of(change)?;
    let relation = known.get(&file.database)?.by_file.get(&file.number)?;
    match class(relation) {
        Class::User => Some(relation),
        Class::Catalog | Class::Parts | Class::Own => None,
    }
}

/// A version in a page: where it is, and which transaction began or ended it.
type Version = (RelFile, Tid, Mark);

/// Versions that these changes ended, as far as they are still in their pages; and those that they began, where the log
/// does not hold them.
fn read_pages(spec: &ServerSpec, known: &BTreeMap<u32, Known>, all: &[&Logged]) -> BTreeMap<Version, RawRow> {
    let mut rows = BTreeMap::new();
    for logged in all {
        if user_relation(known, &logged.change).is_none() {
            continue;
        }
        let (began, ended) = (Mark::Began(logged.xid), Mark::Ended(logged.xid));
        let versions = match &logged.change {
            Change::Insert { file, at, row: None } => vec![(*file, *at, began)],
            Change::Update { file, from, to, row: None, .. } => vec![(*file, *from, ended), (*file, *to, began)],
            Change::Update { file, from, row: Some(_), .. } => vec![(*file, *from, ended)],
            Change::Delete { file, at, .. } => vec![(*file, *at, ended)],
            Change::Insert { row: Some(_), .. } | Change::Truncate { .. } => Vec::new(),
        };
        for version in versions {
            if let Some(row) = version_in_page(&spec.data_dir, version.0, version.1, version.2) {
                rows.insert(version, row);
            }
        }
    }
    rows
}

/// Asks for the versions that these changes wrote, as far as a query shows them.
async fn show_rows(
    catalog: &Catalog<'_>,
    known: &mut BTreeMap<u32, Known>,
    all: &[&Logged],
    not_decoded: &mut Vec<String>,
) {
    let mut places: BTreeMap<(u32, u32), BTreeSet<Tid>> = BTreeMap::new();
    for logged in all {
        if let Change::Insert { file, at, .. } | Change::Update { file, to: at, .. } = &logged.change
            && user_relation(known, &logged.change).is_some()
        {
            places.entry((file.database, file.number)).or_default().insert(*at);
        }
    }
    for (oid, database) in known {
        let wanted: Vec<Wanted<'_>> = places
            .iter()
            .filter(|((of, _), _)| of == oid)
            .filter_map(|((_, file), tids)| Some((database.by_file.get(file)?, tids.clone())))
            .collect();
        if wanted.is_empty() {
            continue;
        }
        match catalog.rows(&database.name, &wanted).await {
            Ok(rows) => database.shown = rows,
            Err(trouble) => not_decoded.push(format!("rows as database {} shows them: {trouble}", database.name)),
        }
    }
}

struct Reader<'a> {
    known: &'a BTreeMap<u32, Known>,
    pages: &'a BTreeMap<Version, RawRow>,
}

impl Reader<'_> {
    fn transaction(
        &self,
        committed: &Committed,
        counts: &mut Counts,
        unknown: &mut BTreeMap<(u32, u32), u64>,
    ) -> Option<Transaction> {
        let mut transaction = Transaction {
            xid: committed.xid,
            lsn: committed.lsn,
            time: committed.time,
            entries: Vec::new(),
            catalog: 0,
        };
        for logged in &committed.changes {
            let (oid, file) = (database_of(&logged.change), file_of(&logged.change));
            // What all databases share: roles, databases, tablespaces.
            if oid == 0 {
                transaction.catalog += 1;
                continue;
            }
            let Some(database) = self.known.get(&oid) else {
                *unknown.entry((oid, file.map_or(0, |file| file.number))).or_default() += 1;
                continue;
            };
            let Some(file) = file else {
                transaction.entries.extend(truncation(database, logged));
                continue;
            };
            let Some(relation) = database.by_file.get(&file.number) else {
                *unknown.entry((oid, file.number)).or_default() += 1;
                continue;
            };
            match class(relation) {
                Class::User => transaction.entries.push(self.entry(database, relation, logged)),
                Class::Catalog => transaction.catalog += 1,
                Class::Parts | Class::Own => {}
            }
        }
        counts.sequences += committed.sequences;
        counts.catalog += transaction.catalog;
        for entry in &transaction.entries {
            let count = match entry.kind {
                Kind::Insert => &mut counts.inserts,
                Kind::Update => &mut counts.updates,
                Kind::Delete => &mut counts.deletes,
                Kind::Truncate => &mut counts.truncates,
            };
            *count += 1;
            counts.incomplete += u64::from(!entry.is_complete());
        }
        (!transaction.entries.is_empty() || transaction.catalog > 0).then_some(transaction)
    }

    fn entry(&self, database: &Known, relation: &Relation, logged: &Logged) -> Entry {
        let shown = |at: &Tid| database.shown.get(&(relation.oid, *at, logged.xid)).cloned();
        let stored = |row: &Option<RawRow>| row.as_ref().and_then(|row| cells::read(row, relation));
        let told = |old: &OldRow| match old {
            OldRow::Whole(row) => cells::read(row, relation),
            OldRow::Key(_) | OldRow::Untold => None,
        };
        let in_page = |file: &RelFile, at: &Tid, mark: Mark| {
            self.pages.get(&(*file, *at, mark)).and_then(|row| cells::read(row, relation))
        };
        let (began, ended) = (Mark::Began(logged.xid), Mark::Ended(logged.xid));
        let key_told = |old: &OldRow| match old {
            OldRow::Key(row) => cells::read(row, relation),
            OldRow::Whole(_) | OldRow::Untold => None,
        };
        let (kind, key_row, old, row) = match &logged.change {
            Change::Insert { file, at, row } => {
                let row = shown(at).or_else(|| stored(row)).or_else(|| in_page(file, at, began));
                (Kind::Insert, None, None, row)
            }
            Change::Update { file, from, to, old, row, keyed } => {
                let row = shown(to).or_else(|| stored(row)).or_else(|| in_page(file, to, began));
                let before = in_page(file, from, ended).or_else(|| told(old));
                let same = || if *keyed { row.clone() } else { None };
                (Kind::Update, key_told(old).or_else(same), before, row)
            }
            Change::Delete { file, at, old } => {
                (Kind::Delete, key_told(old), in_page(file, at, ended).or_else(|| told(old)), None)
            }
            Change::Truncate { .. } => (Kind::Truncate, None, None, None),
        };
        let key = old.as_ref().or(key_row.as_ref()).and_then(|row| key_of(row, relation));
        let key = key.or_else(|| key_row.as_ref().and_then(|row| key_of(row, relation)));
        let key = match kind {
            Kind::Update | Kind::Delete => key,
            Kind::Insert => row.as_ref().and_then(|row| key_of(row, relation)),
            Kind::Truncate => None,
        };
        let tables = vec![table_of(relation)];
        Entry { lsn: logged.lsn, database: database.name.clone(), kind, tables, key, old, row }
    }
}

impl Entry {
    /// Whether the change could be repeated from what was read.
    fn is_complete(&self) -> bool {
        let whole = |row: &Option<Row>| row.as_ref().is_some_and(|row| row.values().all(is_readable));
        match self.kind {
            Kind::Insert => whole(&self.row),
            Kind::Update => whole(&self.row) && self.key.is_some(),
            Kind::Delete => self.key.is_some() || whole(&self.old),
            Kind::Truncate => true,
        }
    }
}

/// Whether a value can be written down as SQL takes it.
pub(crate) fn is_readable(cell: &Cell) -> bool {
    match cell {
        Cell::Null | Cell::Text(_) => true,
        Cell::Bytes(_) | Cell::Untold(_) => false,
    }
}

fn key_of(row: &Row, relation: &Relation) -> Option<Row> {
    let readable = |name: &String| row.get(name).filter(|cell| is_readable(cell));
    let key: Row = relation.key.iter().filter_map(|name| Some((name.clone(), readable(name)?.clone()))).collect();
    (!key.is_empty() && key.len() == relation.key.len()).then_some(key)
}

fn truncation(database: &Known, logged: &Logged) -> Option<Entry> {
    let Change::Truncate { relations, .. } = &logged.change else { return None };
    let tables: Vec<Table> = relations.iter().filter_map(|oid| database.by_oid.get(oid).cloned()).collect();
    let name = database.name.clone();
    let kind = Kind::Truncate;
    Some(Entry { lsn: logged.lsn, database: name, kind, tables, key: None, old: None, row: None })
}
