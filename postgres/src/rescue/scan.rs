//! Goes through the log from the fork to its end, and back from the fork as far as transactions need that were open
//! then: on the new primary they came to nothing, so what they did before the fork is lost as well.

use super::Fork;
use super::changes::{Collector, Committed, next_xid};
use super::log::{LogReader, segment_name};
use crate::control_file::ControlFile;
use model::{Lsn, Trouble};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Segments that are read before the fork at most.
const LOOK_BACK_MAX: u64 = 64;

/// What the log holds beyond the fork.
pub(crate) struct Scanned {
    /// End of the log.
    pub end: Lsn,
    /// In the order of their commits.
    pub committed: Vec<Committed>,
    /// Prepared, neither committed nor aborted.
    pub prepared: Vec<u32>,
    /// Files of the log from the fork's on, and the history of its timeline.
    pub files: Vec<PathBuf>,
    /// Their bytes.
    pub file_bytes: u64,
    /// What was not found or not understood.
    pub notes: Vec<String>,
}

pub(crate) fn scan(data_dir: &Path, control: &ControlFile, fork: Fork) -> Result<Scanned, Trouble> {
    let directory = data_dir.join("pg_wal");
    let reader = |from| LogReader::new(&directory, control.timeline, control.segment_bytes, control.major, from);
    let segment_bytes = u64::from(control.segment_bytes);
    let mut notes = Vec::new();
    let begin = first_kept(&reader, fork, control, &mut notes)?;
    // A first look only tells which transactions matter, so that the second, in order, holds no others.
    let mut ends = Collector::new(control.major);
    let mut log = reader(begin);
    while let Some(record) = log.next()? {
        ends.take_end(&record);
    }
    let end = log.position();
    if end <= control.checkpoint {
        return Err(Trouble::directory_unfit(
            format!("the log in {} cannot be read from {begin} on: it stops at {end}", directory.display()),
            "it is damaged; copy the data directory away before it is rebuilt",
        ));
    }
    let wanted = ends.committed_parts();
    let start = if begin == fork.at { look_back(&reader, &wanted, fork, segment_bytes, &mut notes)? } else { begin };
    let mut collector = Collector::new(control.major);
    let mut log = reader(start);
    while log.position() < fork.at
        && let Some(record) = log.next()?
    {
        if record.start < fork.at {
            collector.take(&record, Some(&wanted));
        }
    }
    let mut log = reader(begin);
    while let Some(record) = log.next()? {
        collector.take(&record, None);
    }
    if collector.odd > 0 {
        notes.push(format!("{} records of row changes were not understood", collector.odd));
    }
    let (committed, prepared) = collector.finish();
    let segments = begin.0 / segment_bytes..=(end.0 - 1) / segment_bytes;
    let mut files: Vec<PathBuf> = segments.filter_map(|segment| log.find(segment)).collect();
    files.extend(Some(directory.join(format!("{:08X}.history", control.timeline.0))).filter(|path| path.exists()));
    let size = |path: &PathBuf| std::fs::metadata(path).map_or(0, |found| found.len());
    let file_bytes = files.iter().map(size).sum();
    Ok(Scanned { end, committed, prepared, files, file_bytes, notes })
}

/// From where on the log beyond the fork is still there. A primary that went on alone for long may have removed some.
fn first_kept(
    reader: &impl Fn(Lsn) -> LogReader,
    fork: Fork,
    control: &ControlFile,
    notes: &mut Vec<String>,
) -> Result<Lsn, Trouble> {
    let segment_bytes = u64::from(control.segment_bytes);
    let (first, last) = (fork.at.0 / segment_bytes, control.checkpoint.0 / segment_bytes);
    let kept = reader(fork.at);
    if first > last || kept.find(first).is_some() {
        return Ok(fork.at);
    }
    // From the end back to the first gap: what lies before a gap cannot be put in order with the rest.
    let gap = (first..=last).rev().find(|segment| kept.find(*segment).is_none()).unwrap_or(first);
    let mut log = reader(Lsn((gap + 1) * segment_bytes));
    log.seek_segment(Lsn((gap + 1) * segment_bytes))?;
    notes.push(format!(
        "the log from the fork at {} to {} was removed by the server: what it held is lost",
        fork.at,
        log.position()
    ));
    Ok(log.position())
}

/// From where the log must be read to hold all changes of these transactions.
fn look_back(
    reader: &impl Fn(Lsn) -> LogReader,
    wanted: &BTreeSet<u32>,
    fork: Fork,
    segment_bytes: u64,
    notes: &mut Vec<String>,
) -> Result<Lsn, Trouble> {
    // Numbers go round: the oldest is the one that all others follow.
    let Some(oldest) = wanted.iter().copied().reduce(|one, two| if follows(two, one) { one } else { two }) else {
        return Ok(fork.at);
    };
    let mut start = fork.at;
    let first = fork.at.0 / segment_bytes;
    for segment in (first.saturating_sub(LOOK_BACK_MAX)..=first).rev() {
        let mut log = reader(Lsn(segment * segment_bytes));
        if segment == 0 {
            // No server writes into this one: the log of a database begins in the next.
            return Ok(start);
        }
        if !log.seek_segment(Lsn(segment * segment_bytes))? {
            break;
        }
        let segment_start = log.position();
        if segment_start > fork.at {
            // The fork is in a record of the segment before that ends in this one.
            continue;
        }
        start = segment_start;
        // Every checkpoint, and every quarter of a minute with writes, says which transactions run.
        while log.position() < fork.at.min(Lsn((segment + 1) * segment_bytes))
            && let Some(record) = log.next()?
        {
            if let Some(next) = next_xid(&record)
                && record.start < fork.at
                && (next == oldest || follows(oldest, next))
            {
                return Ok(start);
            }
        }
    }
    let beginning = segment_name(fork.timeline, start.0 / segment_bytes, segment_bytes);
    notes.push(format!(
        "transactions that were open at the fork may have changed rows before segment {beginning}, which was not read"
    ));
    Ok(start)
}

/// Whether a transaction number comes after another one.
fn follows(later: u32, earlier: u32) -> bool {
    later != earlier && later.wrapping_sub(earlier) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transaction_numbers_go_round() {
        assert!(follows(5, 4) && !follows(4, 5) && !follows(4, 4));
        assert!(follows(3, u32::MAX - 3), "beyond the end comes the beginning");
    }
}
