//! What the records of a stretch of log changed: rows, by transaction, and which transactions were committed.
//!
//! Pure: records in, changes out. A change is held until its transaction ends; what aborted ones did is dropped.

use super::log::{Cut, Record, RelFile};
use model::{Lsn, WallTime};
use std::collections::{BTreeMap, BTreeSet};

/// Changes held at most. Beyond it they are only counted.
const CHANGES_MAX: usize = 500_000;
/// Bytes of rows held at most.
const BYTES_MAX: usize = 256 << 20;
/// Milliseconds from 1970 to 2000, where PostgreSQL's clock begins.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;

/// The place of a row version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tid {
    pub block: u32,
    pub offset: u16,
}

/// A row version as it is stored, without the 23 bytes of fixed header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawRow {
    pub infomask2: u16,
    pub infomask: u16,
    pub header_bytes: u8,
    pub body: Vec<u8>,
}

/// What the log says of the row before a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OldRow {
    /// Nothing.
    Untold,
    /// The columns of its replica identity.
    Key(RawRow),
    /// All of it.
    Whole(RawRow),
}

/// One change of one row, or of whole tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Insert {
        file: RelFile,
        at: Tid,
        row: Option<RawRow>,
    },
    /// `keyed`: were the key another one than before, the log would tell the old one.
    Update {
        file: RelFile,
        from: Tid,
        to: Tid,
        old: OldRow,
        row: Option<RawRow>,
        keyed: bool,
    },
    Delete {
        file: RelFile,
        at: Tid,
        old: OldRow,
    },
    Truncate {
        database: u32,
        relations: Vec<u32>,
    },
}

/// A change and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Logged {
    pub lsn: Lsn,
    /// The transaction, or part of one, that wrote the row.
    pub xid: u32,
    pub change: Change,
}

/// A committed transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Committed {
    pub xid: u32,
    /// End of its commit record.
    pub lsn: Lsn,
    pub time: WallTime,
    pub changes: Vec<Logged>,
    /// It drew values from sequences, or set them.
    pub sequences: u64,
    /// Messages that it wrote into the log for programs that decode it, other than ours.
    pub messages: u64,
    /// Changes that were not held.
    pub dropped: u64,
}

/// A commit record.
struct End {
    xid: u32,
    parts: Vec<u32>,
    time: WallTime,
    lsn: Lsn,
}

#[derive(Default)]
struct Open {
    changes: Vec<Logged>,
    sequences: u64,
    messages: u64,
    dropped: u64,
}

/// Takes records in their order.
pub(crate) struct Collector {
    major: u32,
    open: BTreeMap<u32, Open>,
    ends: Vec<End>,
    prepared: BTreeSet<u32>,
    held: usize,
    held_bytes: usize,
    /// Records of row changes that were not understood.
    pub odd: u64,
}

impl Collector {
    pub(crate) fn new(major: u32) -> Collector {
        Collector {
            major,
            open: BTreeMap::new(),
            ends: Vec::new(),
            prepared: BTreeSet::new(),
            held: 0,
            held_bytes: 0,
            odd: 0,
        }
    }

    /// Takes only the ends of transactions.
    pub(crate) fn take_end(&mut self, record: &Record) {
        if record.resource == 1 && self.transaction(record).is_none() {
            self.odd += 1;
        }
    }

    /// Takes one record. `only`: changes of other transactions are passed over, and so are all ends.
    pub(crate) fn take(&mut self, record: &Record, only: Option<&BTreeSet<u32>>) {
        if let Some(wanted) = only
            && (!wanted.contains(&record.xid) || record.resource == 1)
        {
            return;
        }
        let understood = match record.resource {
            1 => self.transaction(record),
            9 => self.heap2(record),
            10 => self.heap(record),
            15 => {
                self.entry(record.xid).sequences += 1;
                Some(())
            }
            21 => self.message(record),
            _ => Some(()),
        };
        if understood.is_none() {
            self.odd += 1;
        }
    }

    /// Transactions that ended in a commit, with all parts of theirs.
    pub(crate) fn committed_parts(&self) -> BTreeSet<u32> {
        self.ends.iter().flat_map(|end| end.parts.iter().copied().chain([end.xid])).collect()
    }

    /// The committed transactions in the order of their commits, and those prepared and not decided.
    pub(crate) fn finish(mut self) -> (Vec<Committed>, Vec<u32>) {
        let ends = std::mem::take(&mut self.ends);
        let committed = ends.into_iter().map(|end| {
            let mut all = Open::default();
            for xid in end.parts.iter().chain([&end.xid]) {
                if let Some(part) = self.open.remove(xid) {
                    all.changes.extend(part.changes);
                    all.sequences += part.sequences;
                    all.messages += part.messages;
                    all.dropped += part.dropped;
                }
            }
            all.changes.sort_by_key(|logged| logged.lsn);
            Committed {
                xid: end.xid,
                lsn: end.lsn,
                time: end.time,
                changes: all.changes,
                sequences: all.sequences,
                messages: all.messages,
                dropped: all.dropped,
            }
        });
        let committed: Vec<Committed> = committed.collect();
        (committed, self.prepared.into_iter().collect())
    }

    fn entry(&mut self, xid: u32) -> &mut Open {
        self.open.entry(xid).or_default()
    }

    fn transaction(&mut self, record: &Record) -> Option<()> {
        const COMMIT: u8 = 0x00;
        const PREPARE: u8 = 0x10;
        const ABORT: u8 = 0x20;
        const COMMIT_PREPARED: u8 = 0x30;
        const ABORT_PREPARED: u8 = 0x40;
        let kind = record.info & 0x70;
        match kind {
            PREPARE => {
                self.prepared.insert(record.xid);
            }
            COMMIT | COMMIT_PREPARED | ABORT | ABORT_PREPARED => {
                let (time, parts, prepared) = ending(record, self.major)?;
                let xid = prepared.unwrap_or(record.xid);
                self.prepared.remove(&xid);
                if kind == COMMIT || kind == COMMIT_PREPARED {
                    self.ends.push(End { xid, parts, time, lsn: record.end });
                } else {
                    for gone in parts.iter().chain([&xid]) {
                        self.open.remove(gone);
                    }
                }
            }
            _ => {}
        }
        Some(())
    }

    fn message(&mut self, record: &Record) -> Option<()> {
        let mut cut = Cut(&record.main);
        cut.u32()?;
        let transactional = cut.u8()? != 0;
        cut.bytes(3)?;
        let prefix_bytes = usize::try_from(cut.u64()?).ok()?;
        cut.u64()?;
        let prefix = cut.bytes(prefix_bytes)?;
        if transactional && prefix.split(|byte| *byte == 0).next() != Some(b"stemma") {
            self.entry(record.xid).messages += 1;
        }
        Some(())
    }

    fn heap(&mut self, record: &Record) -> Option<()> {
        const INIT_PAGE: u8 = 0x80;
        match record.info & 0x70 & !INIT_PAGE {
            0x00 => self.insert(record),
            0x10 => self.delete(record),
            0x20 | 0x40 => self.update(record),
            0x30 => self.truncate(record),
            // Confirmation, lock and in-place update change no row of a user's.
            _ => Some(()),
        }
    }

    fn insert(&mut self, record: &Record) -> Option<()> {
        let block = record.blocks.iter().find(|block| block.id == 0)?;
        let mut main = Cut(&record.main);
        let at = Tid { block: block.number, offset: main.u16()? };
        let row = raw_row(&block.data);
        self.hold(record, Change::Insert { file: block.file, at, row });
        Some(())
    }

    fn delete(&mut self, record: &Record) -> Option<()> {
        const WHOLE: u8 = 0x02;
        const KEY: u8 = 0x04;
        const GIVEN_UP: u8 = 0x08;
        let block = record.blocks.iter().find(|block| block.id == 0)?;
        let mut main = Cut(&record.main);
        main.u32()?;
        let at = Tid { block: block.number, offset: main.u16()? };
        main.u8()?;
        let flags = main.u8()?;
        if flags & GIVEN_UP != 0 {
            // An insert on trial that met a conflict.
            let open = self.entry(record.xid);
            open.changes.retain(|logged| {
                !matches!(&logged.change, Change::Insert { file, at: there, .. } if *file == block.file && *there == at)
            });
            return Some(());
        }
        let old = old_row(main.0, flags & WHOLE != 0, flags & KEY != 0);
        self.hold(record, Change::Delete { file: block.file, at, old });
        Some(())
    }

    fn update(&mut self, record: &Record) -> Option<()> {
        const WHOLE: u8 = 0x04;
        const KEY: u8 = 0x08;
        const FOR_DECODING: u8 = 0x10;
        const FROM_OLD: u8 = 0x20 | 0x40;
        let to_block = record.blocks.iter().find(|block| block.id == 0)?;
        let from_block = record.blocks.iter().find(|block| block.id == 1).unwrap_or(to_block);
        let mut main = Cut(&record.main);
        main.u32()?;
        let from = Tid { block: from_block.number, offset: main.u16()? };
        main.u8()?;
        let flags = main.u8()?;
        main.u32()?;
        let to = Tid { block: to_block.number, offset: main.u16()? };
        let old = old_row(main.0, flags & WHOLE != 0, flags & KEY != 0);
        // Without logical decoding in mind the server leaves out what the new version has in common with the old one.
        let row = if flags & FROM_OLD == 0 { raw_row(&to_block.data) } else { None };
        self.hold(record, Change::Update { file: to_block.file, from, to, old, row, keyed: flags & FOR_DECODING != 0 });
        Some(())
    }

    fn truncate(&mut self, record: &Record) -> Option<()> {
        let mut main = Cut(&record.main);
        let database = main.u32()?;
        let count = main.u32()?;
        main.u32()?;
        let relations = (0..count).map(|_| main.u32()).collect::<Option<Vec<u32>>>()?;
        self.hold(record, Change::Truncate { database, relations });
        Some(())
    }

    fn heap2(&mut self, record: &Record) -> Option<()> {
        const MULTI_INSERT: u8 = 0x50;
        const INIT_PAGE: u8 = 0x80;
        if record.info & 0x70 != MULTI_INSERT {
            return Some(());
        }
        let block = record.blocks.iter().find(|block| block.id == 0)?;
        let mut main = Cut(&record.main);
        main.u16()?;
        let count = main.u16()?;
        let mut data = Cut(&block.data);
        let whole = block.data.len();
        for index in 0..count {
            let offset = if record.info & INIT_PAGE != 0 { index + 1 } else { main.u16()? };
            let at = Tid { block: block.number, offset };
            if whole == 0 {
                // An image of the page stands for the rows.
                self.hold(record, Change::Insert { file: block.file, at, row: None });
                continue;
            }
            if (whole - data.0.len()) % 2 != 0 {
                data.u8()?;
            }
            let body_bytes = usize::from(data.u16()?);
            let (infomask2, infomask, header_bytes) = (data.u16()?, data.u16()?, data.u8()?);
            let body = data.bytes(body_bytes)?.to_vec();
            let row = Some(RawRow { infomask2, infomask, header_bytes, body });
            self.hold(record, Change::Insert { file: block.file, at, row });
        }
        Some(())
    }

    fn hold(&mut self, record: &Record, change: Change) {
        let bytes = record.main.len() + record.blocks.iter().map(|block| block.data.len()).sum::<usize>();
        let full = self.held >= CHANGES_MAX || self.held_bytes + bytes > BYTES_MAX;
        let (lsn, xid) = (record.start, record.xid);
        let open = self.entry(xid);
        if full {
            open.dropped += 1;
            return;
        }
        open.changes.push(Logged { lsn, xid, change });
        self.held += 1;
        self.held_bytes += bytes;
    }
}

/// A row behind the short header that the log keeps of it.
fn raw_row(bytes: &[u8]) -> Option<RawRow> {
    let mut cut = Cut(bytes);
    let (infomask2, infomask, header_bytes) = (cut.u16()?, cut.u16()?, cut.u8()?);
    Some(RawRow { infomask2, infomask, header_bytes, body: cut.0.to_vec() })
}

fn old_row(bytes: &[u8], whole: bool, key: bool) -> OldRow {
    match raw_row(bytes) {
        Some(row) if whole => OldRow::Whole(row),
        Some(row) if key => OldRow::Key(row),
        Some(_) | None => OldRow::Untold,
    }
}

/// Time, parts, and the prepared transaction meant, of a record that ends a transaction.
fn ending(record: &Record, major: u32) -> Option<(WallTime, Vec<u32>, Option<u32>)> {
    const HAS_INFO: u8 = 0x80;
    const PREPARED: [u8; 2] = [0x30, 0x40];
    let mut cut = Cut(&record.main);
    let micros = i64::from_le_bytes(cut.bytes(8)?.try_into().ok()?);
    let time = WallTime(micros.div_euclid(1000) + POSTGRES_EPOCH_MS);
    let info = if record.info & HAS_INFO != 0 { cut.u32()? } else { 0 };
    let has = |bit: u32| info & (1 << bit) != 0;
    if has(0) {
        cut.bytes(8)?;
    }
    let mut parts = Vec::new();
    if has(1) {
        let count = cut.u32()?;
        parts = (0..count).map(|_| cut.u32()).collect::<Option<Vec<u32>>>()?;
    }
    let mut skip = |bit: u32, bytes: usize| -> Option<()> {
        if has(bit) {
            let count = cut.u32()? as usize;
            cut.bytes(count.checked_mul(bytes)?)?;
        }
        Some(())
    };
    skip(2, 12)?;
    // Statistics that were dropped with their relations.
    skip(8, if major >= 18 { 16 } else { 12 })?;
    skip(3, 16)?;
    let prepared = if has(4) && PREPARED.contains(&(record.info & 0x70)) { Some(cut.u32()?) } else { None };
    Some((time, parts, prepared))
}

/// Of a snapshot of the running transactions in the log: the first transaction that had not begun yet.
pub(crate) fn next_xid(record: &Record) -> Option<u32> {
    if record.resource != 8 || record.info & 0xF0 != 0x10 {
        return None;
    }
    let mut cut = Cut(&record.main);
    cut.bytes(12)?;
    cut.u32()
}

#[cfg(test)]
mod tests {
    use super::super::log::Block;
    use super::*;

    const FILE: RelFile = RelFile { space: 1663, database: 5, number: 16384 };

    fn record(resource: u8, info: u8, xid: u32, start: u64, main: &[u8], data: &[u8]) -> Record {
        let blocks = vec![Block { id: 0, fork: 0, file: FILE, number: 7, data: data.to_vec() }];
        Record {
            start: Lsn(start),
            end: Lsn(start + 8),
            xid,
            top_xid: None,
            info,
            resource,
            blocks,
            main: main.to_vec(),
        }
    }

    fn insert(xid: u32, start: u64, offset: u8) -> Record {
        record(10, 0, xid, start, &[offset, 0, 8], &[1, 0, 2, 0, 24, 0, 42])
    }

    fn commit(xid: u32, start: u64, parts: &[u32]) -> Record {
        let mut main = 1_000_000u64.to_le_bytes().to_vec();
        main.extend(2u32.to_le_bytes());
        main.extend((parts.len() as u32).to_le_bytes());
        parts.iter().for_each(|part| main.extend(part.to_le_bytes()));
        record(1, 0x80, xid, start, &main, &[])
    }

    #[test]
    fn committed_transactions_come_with_their_parts_and_aborted_ones_do_not() {
        let mut collector = Collector::new(15);
        let abort = record(1, 0x20, 12, 50, &[0; 8], &[]);
        for record in [insert(11, 20, 2), insert(10, 10, 1), insert(12, 30, 3), abort, insert(13, 35, 4)] {
            collector.take(&record, None);
        }
        collector.take(&commit(10, 60, &[11]), None);
        assert_eq!(collector.committed_parts(), BTreeSet::from([10, 11]));
        let (committed, prepared) = collector.finish();
        assert_eq!((committed.len(), prepared.len()), (1, 0));
        assert_eq!((committed[0].xid, committed[0].lsn), (10, Lsn(68)));
        assert_eq!(committed[0].time, WallTime(POSTGRES_EPOCH_MS + 1000));
        let lsns: Vec<u64> = committed[0].changes.iter().map(|logged| logged.lsn.0).collect();
        assert_eq!(lsns, [10, 20], "in the order of the log");
    }

    #[test]
    fn an_insert_on_trial_that_was_given_up_never_was() {
        let mut collector = Collector::new(15);
        let delete = |flags| record(10, 0x10, 10, 20, &[0, 0, 0, 0, 1, 0, 0, flags], &[]);
        collector.take(&insert(10, 10, 1), None);
        collector.take(&delete(0x08), None);
        collector.take(&delete(0), None);
        collector.take(&commit(10, 30, &[]), None);
        let (committed, _) = collector.finish();
        let at = Tid { block: 7, offset: 1 };
        let changes: Vec<&Change> = committed[0].changes.iter().map(|logged| &logged.change).collect();
        assert_eq!(changes, [&Change::Delete { file: FILE, at, old: OldRow::Untold }]);
    }

    #[test]
    fn a_record_cut_short_is_counted_and_not_guessed_at() {
        let mut collector = Collector::new(15);
        collector.take(&record(10, 0x20, 10, 10, &[1, 2, 3], &[]), None);
        collector.take(&record(1, 0x80, 10, 20, &[0; 9], &[]), None);
        assert_eq!(collector.odd, 2);
    }
}
