//! Reading settings from TOML, with every problem in one go and where it is.

use super::{KEYS, refusals};
use model::Site;
use model::settings::{CommitMode, FailoverSettings, Settings};
use std::collections::BTreeMap;
use std::ops::Range;
use toml_edit::{Document, Item, Value};

/// One problem of a settings file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Line, from 1; 0 where unknown.
    pub line: usize,
    /// Column in characters, from 1; 0 where unknown.
    pub column: usize,
    /// Error code.
    pub code: &'static str,
    /// What is wrong, with the value.
    pub reason: String,
    /// What to write instead.
    pub hint: String,
}

/// Keys and tables of the node file, which people put here by mistake.
const NODE_KEYS: [&str; 12] = [
    "name",
    "site",
    "state_dir",
    "keeper",
    "api",
    "consensus",
    "data_dir",
    "listen",
    "port",
    "advertise",
    "bin_dir",
    "run_as",
];

/// Reads settings. Server parameters are checked by their form only.
pub fn parse_toml(text: &str) -> Result<Settings, Vec<Finding>> {
    parse_toml_with(text, &|_| None)
}

/// Reads settings; `refuse` says why a server parameter may not be set, if so.
pub fn parse_toml_with(text: &str, refuse: &dyn Fn(&str) -> Option<String>) -> Result<Settings, Vec<Finding>> {
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let (line, column) = place(text, error.span());
            let reason = format!("not valid TOML: {}", error.message().lines().collect::<Vec<_>>().join(", "));
            let hint = "mend this line; further problems show afterwards".to_owned();
            return Err(vec![Finding { line, column, code: "ST1101", reason, hint }]);
        }
    };
    let mut reader = Reader { text, found: Vec::new(), spans: BTreeMap::new() };
    let settings = reader.settings(document.as_item());
    for (key, reason, hint) in refusals(&settings, refuse) {
        let span = reader.spans.get(&key).cloned();
        reader.add(span, "ST1103", reason, hint);
    }
    if reader.found.is_empty() {
        return Ok(settings);
    }
    reader.found.sort_by_key(|finding| (finding.line, finding.column));
    Err(reader.found)
}

fn place(text: &str, span: Option<Range<usize>>) -> (usize, usize) {
    let Some(before) = span.and_then(|span| text.get(..span.start)) else { return (0, 0) };
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count()) + 1;
    (line, column)
}

struct Reader<'a> {
    text: &'a str,
    found: Vec<Finding>,
    /// Where the value of each key is, for problems found later.
    spans: BTreeMap<String, Range<usize>>,
}

impl Reader<'_> {
    fn add(&mut self, span: Option<Range<usize>>, code: &'static str, reason: String, hint: String) {
        let (line, column) = place(self.text, span);
        self.found.push(Finding { line, column, code, reason, hint });
    }

    fn wrong_type(&mut self, key: &str, item: &Item) {
        let kind = KEYS.iter().find(|doc| doc.key == key).map_or("a value of PostgreSQL", |doc| doc.kind);
        let reason = format!("{key} is {}, which does not fit", article(item.type_name()));
        self.add(item.span(), "ST1103", reason, format!("expected: {kind}"));
    }

    fn settings(&mut self, root: &Item) -> Settings {
        let mut settings = Settings::default();
        let Some(table) = root.as_table_like() else { return settings };
        for (key, item) in table.iter() {
            let span = table.get_key_value(key).and_then(|(key, _)| key.span());
            self.spans.insert(key.to_owned(), item.span().or_else(|| span.clone()).unwrap_or_default());
            match key {
                "commit_mode" => {
                    self.text_value(key, item, |text| text.parse::<CommitMode>(), &mut settings.commit_mode)
                }
                "strict" => self.flag(key, item, &mut settings.strict),
                "sync_from_other_site" => self.flag(key, item, &mut settings.sync_from_other_site),
                "voter_grace" => self.text_value(key, item, str::parse, &mut settings.voter_grace),
                "sample_interval" => self.text_value(key, item, str::parse, &mut settings.sample_interval),
                "lag_warn" => self.text_value(key, item, str::parse, &mut settings.lag_warn),
                "slot_retention" => self.text_value(key, item, str::parse, &mut settings.slot_retention),
                "slot_retention_size" => self.text_value(key, item, str::parse, &mut settings.slot_retention_size),
                "clone_rate" => self.text_value(key, item, str::parse, &mut settings.clone_rate),
                "tls" => self.flag(key, item, &mut settings.tls),
                "failover" => self.failover(item, &mut settings.failover),
                "postgresql" => self.postgresql(item, &mut settings),
                other => self.unknown("", other, span),
            }
        }
        settings
    }

    fn failover(&mut self, item: &Item, settings: &mut FailoverSettings) {
        let Some(table) = item.as_table_like() else { return self.wrong_type("failover", item) };
        for (key, item) in table.iter() {
            let span = table.get_key_value(key).and_then(|(key, _)| key.span());
            let full = format!("failover.{key}");
            self.spans.insert(full.clone(), item.span().or_else(|| span.clone()).unwrap_or_default());
            match key {
                "automatic" => self.flag(&full, item, &mut settings.automatic),
                "cross_site" => self.flag(&full, item, &mut settings.cross_site),
                "sites" => self.sites(&full, item, &mut settings.sites),
                "loss_max" => self.text_value(&full, item, str::parse, &mut settings.loss_max),
                other => self.unknown("failover.", other, span),
            }
        }
    }

    fn sites(&mut self, key: &str, item: &Item, sites: &mut Vec<Site>) {
        let Some(array) = item.as_array() else { return self.wrong_type(key, item) };
        for value in array.iter() {
            match value.as_str().map(str::parse::<Site>) {
                Some(Ok(site)) => sites.push(site),
                Some(Err(reason)) => {
                    let hint = "write the site as `stemma status` shows it".to_owned();
                    self.add(value.span(), "ST1103", format!("{key}: {reason}"), hint);
                }
                None => self.wrong_type(key, &Item::Value(value.clone())),
            }
        }
    }

    fn postgresql(&mut self, item: &Item, settings: &mut Settings) {
        let Some(table) = item.as_table_like() else { return self.wrong_type("postgresql", item) };
        for (key, item) in table.iter() {
            let span = table.get_key_value(key).and_then(|(key, _)| key.span());
            let at = item.span().or_else(|| span.clone()).unwrap_or_default();
            self.spans.insert(format!("postgresql.{key}"), at);
            match key {
                "hba" => self.hba(item, &mut settings.postgresql.hba),
                "parameters" => match item.as_table_like() {
                    Some(_) => self.parameters("", item, &mut settings.postgresql.parameters),
                    None => self.wrong_type("postgresql.parameters", item),
                },
                other => self.unknown("postgresql.", other, span),
            }
        }
    }

    fn hba(&mut self, item: &Item, lines: &mut Vec<String>) {
        let Some(array) = item.as_array() else { return self.wrong_type("postgresql.hba", item) };
        for value in array.iter() {
            match value.as_str() {
                Some(line) => lines.push(line.to_owned()),
                None => self.wrong_type("postgresql.hba", &Item::Value(value.clone())),
            }
        }
    }

    /// Server parameters. `pg_stat_statements.max = 5` without quotes is a table to TOML and a name to people.
    fn parameters(&mut self, prefix: &str, item: &Item, parameters: &mut BTreeMap<String, String>) {
        for (key, item) in item.as_table_like().into_iter().flat_map(|table| table.iter()) {
            let name = format!("{prefix}{key}");
            let full = format!("postgresql.parameters.{name}");
            self.spans.insert(full.clone(), item.span().unwrap_or_default());
            if item.is_table_like() {
                self.parameters(&format!("{name}."), item, parameters);
                continue;
            }
            let text = match item.as_value() {
                Some(Value::String(text)) => text.value().clone(),
                Some(Value::Integer(number)) => number.value().to_string(),
                Some(Value::Float(number)) => number.value().to_string(),
                Some(Value::Boolean(flag)) => if *flag.value() { "on" } else { "off" }.to_owned(),
                Some(Value::Datetime(_) | Value::Array(_) | Value::InlineTable(_)) | None => {
                    self.wrong_type(&full, item);
                    continue;
                }
            };
            parameters.insert(name, text);
        }
    }

    fn flag(&mut self, key: &str, item: &Item, place: &mut bool) {
        match item.as_bool() {
            Some(value) => *place = value,
            None => self.wrong_type(key, item),
        }
    }

    fn text_value<T>(&mut self, key: &str, item: &Item, parse: impl Fn(&str) -> Result<T, String>, place: &mut T) {
        match item.as_str().map(parse) {
            Some(Ok(value)) => *place = value,
            Some(Err(reason)) => {
                let kind = KEYS.iter().find(|doc| doc.key == key).map_or("", |doc| doc.kind);
                self.add(item.span(), "ST1103", format!("{key}: {reason}"), format!("expected: {kind}"));
            }
            None => self.wrong_type(key, item),
        }
    }

    fn unknown(&mut self, table: &str, key: &str, span: Option<Range<usize>>) {
        if NODE_KEYS.contains(&key) {
            let reason = format!("{table}{key} belongs to one node, not to the cluster");
            let hint = format!("move {table}{key} to that node's file, the one given to `stemma run`");
            return self.add(span, "ST1104", reason, hint);
        }
        let known = KEYS.iter().map(|doc| doc.key).chain(["failover", "postgresql"]);
        let full = format!("{table}{key}");
        let last = |known: &'static str| known.rsplit('.').next().unwrap_or(known);
        let close = known.clone().map(|known| (distance(known, &full).min(distance(last(known), key)), known)).min();
        let hint = match close {
            Some((far, known)) if far <= 1 + key.chars().count() / 4 => format!("did you mean {known}?"),
            Some(_) | None if table.is_empty() => {
                format!("remove {key}; if it is a server parameter, put it under [postgresql.parameters]")
            }
            Some(_) | None => format!(
                "remove it, or put it under [postgresql.parameters]; keys: {}",
                known.collect::<Vec<_>>().join(", ")
            ),
        };
        self.add(span, "ST1102", format!("unknown key {full}"), hint);
    }
}

fn article(kind: &str) -> String {
    let vowel = kind.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}

/// How many letters must be changed, added or removed to make `b` of `a`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
