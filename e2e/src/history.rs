//! Whether what clients saw is what they were promised: read your writes, monotonic reads, bounded staleness, and that
//! nothing acknowledged is lost. Pure: the history of a run in, its violations out.
//!
//! Two kinds of objects are enough to see it. A *register* counts its writes, so that any two reads of it can be told
//! old from new. A *list* grows by values that are written once each, so that a read shows every write that it has seen
//! and their order; all reads of a list must be beginnings of what it is in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What reads were promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// To see what their session wrote, and never less than it saw.
    Session,
    /// To miss nothing that was acknowledged longer ago. To their session they promise nothing.
    Bounded(Duration),
}

impl Promise {
    /// As the router is told.
    pub fn level(self) -> String {
        match self {
            Promise::Session => "session".to_owned(),
            Promise::Bounded(bound) => format!("bounded:{}ms", bound.as_millis()),
        }
    }
}

/// What a client did and saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Did {
    /// Raised a register, which then had this version.
    Raised(i64),
    /// Read a register's version.
    Saw(i64),
    /// Appended a value to a list.
    Appended(i64, Outcome),
    /// Read a list.
    Listed(Vec<i64>),
}

/// What a client knows of its append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged.
    Done,
    /// Called undone.
    Undone,
    /// Nobody knows.
    Unknown,
}

/// One operation of one session. Times are of one clock, in microseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Which session; its operations follow one another.
    pub session: u32,
    /// Which object.
    pub key: i64,
    /// When it was asked for.
    pub began: u64,
    /// When it was answered.
    pub ended: u64,
    /// What it was.
    pub did: Did,
    /// Where a read was served, and how that server stood; for people.
    pub place: String,
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A read misses what its own session wrote before: the read, and what it misses.
    OwnWriteMissing(Operation, i64),
    /// A read is older than an earlier one of its session: the read, and what the earlier one saw (a version, a length).
    WentBack(Operation, i64),
    /// A read misses what was acknowledged to anyone longer ago than the bound.
    Stale(Operation, i64),
    /// An acknowledged value is not in the list in the end: list and value.
    Lost(i64, i64),
    /// A value that was called undone is there: list and value.
    Undead(i64, i64),
    /// A value is there twice: list and value.
    Twice(i64, i64),
    /// A read is no beginning of what the list is in the end.
    Forked(Operation),
}

/// What a session did up to a read that breaks a promise, a line each, the last dozen of them.
pub fn account(operations: &[Operation], violation: &Violation) -> String {
    let (Violation::OwnWriteMissing(read, _)
    | Violation::WentBack(read, _)
    | Violation::Stale(read, _)
    | Violation::Forked(read)) = violation
    else {
        return format!("{violation:?}");
    };
    let mut before: Vec<&Operation> =
        operations.iter().filter(|other| other.session == read.session && other.began <= read.began).collect();
    before.sort_by_key(|operation| operation.began);
    let line = |operation: &&Operation| {
        let did = match &operation.did {
            Did::Listed(values) => format!("list of {}", values.len()),
            other => format!("{other:?}"),
        };
        let Operation { key, began, ended, place, .. } = operation;
        format!("{began} to {ended}: key {key}, {did}, at {place}")
    };
    let lines: Vec<String> = before.iter().rev().take(12).rev().map(line).collect();
    lines.join("\n")
}

/// What is wrong with a history. `end` holds the lists as they are in the end.
pub fn violations(operations: &[Operation], end: &BTreeMap<i64, Vec<i64>>, promise: Promise) -> Vec<Violation> {
    let mut found = Vec::new();
    match promise {
        Promise::Session => {
            let mut sessions: BTreeMap<u32, Vec<&Operation>> = BTreeMap::new();
            for operation in operations {
                sessions.entry(operation.session).or_default().push(operation);
            }
            for operations in sessions.values_mut() {
                operations.sort_by_key(|operation| operation.began);
                in_session(operations, &mut found);
            }
        }
        Promise::Bounded(bound) => {
            staleness(operations, u64::try_from(bound.as_micros()).unwrap_or(u64::MAX), &mut found);
        }
    }
    lists(operations, end, &mut found);
    found
}

/// What one session has seen of one object.
#[derive(Default)]
struct Known {
    written: i64,
    seen: i64,
    appended: Vec<i64>,
    length: usize,
}

fn in_session(operations: &[&Operation], found: &mut Vec<Violation>) {
    let mut objects: BTreeMap<i64, Known> = BTreeMap::new();
    for operation in operations {
        let known = objects.entry(operation.key).or_default();
        match &operation.did {
            Did::Raised(version) => known.written = known.written.max(*version),
            Did::Saw(version) => {
                if *version < known.written {
                    found.push(Violation::OwnWriteMissing((*operation).clone(), known.written));
                }
                if *version < known.seen {
                    found.push(Violation::WentBack((*operation).clone(), known.seen));
                }
                known.seen = known.seen.max(*version);
            }
            Did::Appended(value, Outcome::Done) => known.appended.push(*value),
            Did::Appended(_, Outcome::Undone | Outcome::Unknown) => {}
            Did::Listed(values) => {
                let there: BTreeSet<&i64> = values.iter().collect();
                if let Some(missing) = known.appended.iter().find(|value| !there.contains(value)) {
                    found.push(Violation::OwnWriteMissing((*operation).clone(), *missing));
                }
                // All reads are beginnings of one list, so the shorter one is the older one.
                if values.len() < known.length {
                    found.push(Violation::WentBack((*operation).clone(), i64::try_from(known.length).unwrap_or(0)));
                }
                known.length = known.length.max(values.len());
            }
        }
    }
}

fn lists(operations: &[Operation], end: &BTreeMap<i64, Vec<i64>>, found: &mut Vec<Violation>) {
    for (key, values) in end {
        let mut there = BTreeSet::new();
        for value in values {
            if !there.insert(*value) {
                found.push(Violation::Twice(*key, *value));
            }
        }
        for operation in operations.iter().filter(|operation| operation.key == *key) {
            match &operation.did {
                Did::Appended(value, Outcome::Done) if !there.contains(value) => {
                    found.push(Violation::Lost(*key, *value));
                }
                Did::Appended(value, Outcome::Undone) if there.contains(value) => {
                    found.push(Violation::Undead(*key, *value));
                }
                Did::Listed(seen) if !values.starts_with(seen) => found.push(Violation::Forked(operation.clone())),
                Did::Appended(..) | Did::Listed(_) | Did::Raised(_) | Did::Saw(_) => {}
            }
        }
    }
}

fn staleness(operations: &[Operation], bound: u64, found: &mut Vec<Violation>) {
    for read in operations {
        let owed = |other: &&Operation| other.key == read.key && other.ended.saturating_add(bound) <= read.began;
        let others = operations.iter().filter(owed);
        match &read.did {
            Did::Saw(version) => {
                let newest = others.filter_map(|other| match other.did {
                    Did::Raised(version) => Some(version),
                    _ => None,
                });
                if let Some(newest) = newest.max().filter(|newest| newest > version) {
                    found.push(Violation::Stale(read.clone(), newest));
                }
            }
            Did::Listed(values) => {
                let missing = others.filter_map(|other| match other.did {
                    Did::Appended(value, Outcome::Done) if !values.contains(&value) => Some(value),
                    _ => None,
                });
                found.extend(missing.map(|value| Violation::Stale(read.clone(), value)).take(1));
            }
            Did::Raised(_) | Did::Appended(..) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A history in words: `session key at what`, in order; each operation takes one unit of time.
    fn history(lines: &[(u32, i64, u64, Did)]) -> Vec<Operation> {
        let one = |(session, key, began, did): &(u32, i64, u64, Did)| Operation {
            session: *session,
            key: *key,
            began: *began,
            ended: began + 1,
            did: did.clone(),
            place: String::new(),
        };
        lines.iter().map(one).collect()
    }

    fn good() -> (Vec<Operation>, BTreeMap<i64, Vec<i64>>) {
        let operations = history(&[
            (1, 1, 0, Did::Raised(1)),
            (1, 1, 10, Did::Saw(1)),
            (2, 1, 11, Did::Saw(0)),
            (2, 1, 20, Did::Raised(2)),
            (1, 1, 22, Did::Saw(1)),
            (1, 1, 30, Did::Saw(2)),
            (1, 2, 40, Did::Appended(7, Outcome::Done)),
            (2, 2, 42, Did::Appended(8, Outcome::Unknown)),
            (2, 2, 44, Did::Appended(9, Outcome::Undone)),
            (1, 2, 50, Did::Listed(vec![7])),
            (2, 2, 51, Did::Listed(vec![])),
            (1, 2, 60, Did::Listed(vec![7, 8])),
        ]);
        (operations, [(2, vec![7, 8])].into())
    }

    fn kinds(found: &[Violation]) -> Vec<&'static str> {
        let word = |violation: &Violation| match violation {
            Violation::OwnWriteMissing(..) => "own write missing",
            Violation::WentBack(..) => "went back",
            Violation::Stale(..) => "stale",
            Violation::Lost(..) => "lost",
            Violation::Undead(..) => "undead",
            Violation::Twice(..) => "twice",
            Violation::Forked(_) => "forked",
        };
        found.iter().map(word).collect()
    }

    #[test]
    fn a_good_history_passes() {
        let (operations, end) = good();
        assert_eq!(violations(&operations, &end, Promise::Session), []);
        let loose = Promise::Bounded(Duration::from_micros(12));
        assert_eq!(violations(&operations, &end, loose), [], "nobody missed more than 12 units");
    }

    #[test]
    fn each_change_for_the_worse_is_seen() {
        type Change = fn(&mut Vec<Operation>, &mut BTreeMap<i64, Vec<i64>>);
        let cases: &[(&str, &[&str], Change)] = &[
            ("its write is not seen", &["own write missing"], |operations, _| operations[1].did = Did::Saw(0)),
            ("version 2 and then 1", &["went back"], |operations, _| operations[4].did = Did::Saw(3)),
            ("its value is not seen", &["own write missing"], |operations, _| operations[9].did = Did::Listed(vec![])),
            ("a shorter list later", &["own write missing", "went back"], |operations, _| {
                operations[11].did = Did::Listed(vec![]);
            }),
            ("it is not there in the end", &["lost", "forked", "forked"], |_, end| {
                end.insert(2, vec![8]);
            }),
            ("undone, and there", &["undead"], |_, end| end.entry(2).or_default().push(9)),
            ("done twice", &["twice"], |_, end| end.entry(2).or_default().push(8)),
            ("another order", &["forked"], |operations, _| operations[11].did = Did::Listed(vec![8, 7])),
        ];
        for (what, expected, change) in cases {
            let (mut operations, mut end) = good();
            change(&mut operations, &mut end);
            assert_eq!(kinds(&violations(&operations, &end, Promise::Session)), *expected, "{what}");
        }
    }

    #[test]
    fn a_read_that_misses_more_than_the_bound_is_stale() {
        let (operations, end) = good();
        let found = violations(&operations, &end, Promise::Bounded(Duration::from_micros(5)));
        assert_eq!(kinds(&found), ["stale", "stale"], "version 0 ten after version 1; an empty list ten after 7");
    }
}
