//! Where the log of a data directory ends, and on which timeline, as its files tell without a server.

use crate::control_file::ControlFile;
use crate::files::refused;
use crate::rescue::log::LogReader;
use crate::wal::segment_name;
use model::{Lsn, Timeline, Trouble};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// `XLOG_BLCKSZ` of all packaged servers.
const PAGE_BYTES: u64 = 8192;
/// `SizeOfXLogShortPHD` and `SizeOfXLogLongPHD` (PostgreSQL, `xlog_internal.h`): the latter begins a segment.
const PAGE_HEAD: u64 = 24;
const SEGMENT_HEAD: u64 = 40;

/// The end of the shutdown checkpoint of a primary that stopped in order: the end of all it ever wrote.
pub fn shutdown_end(data_dir: &Path, control: &ControlFile) -> Result<Lsn, Trouble> {
    let segment = u64::from(control.segment_bytes);
    let at = control.checkpoint;
    let name = segment_name(control.timeline, Lsn(at.0 - at.0 % segment), segment);
    let path = data_dir.join("pg_wal").join(name);
    let mut length = [0; 4];
    let read = File::open(&path).and_then(|file| file.read_exact_at(&mut length, at.0 % segment));
    read.map_err(|error| refused("read", &path, &error))?;
    Ok(record_end(at, u32::from_le_bytes(length).into(), segment))
}

/// The end of a record that begins at `at`, aligned as the next one must be.
fn record_end(at: Lsn, length: u64, segment: u64) -> Lsn {
    let (mut at, mut left) = (at.0, length);
    loop {
        let room = PAGE_BYTES - at % PAGE_BYTES;
        if left <= room {
            return Lsn((at + left).next_multiple_of(8));
        }
        left -= room;
        at += room;
        at += if at % segment == 0 { SEGMENT_HEAD } else { PAGE_HEAD };
    }
}

/// The timeline on which the log that ends at `position` was written last, by its newest file. A replica that follows
/// a promotion notes the new timeline in its control file only later.
pub fn timeline_of_log(data_dir: &Path, position: Lsn, segment_bytes: u64) -> Result<Option<Timeline>, Trouble> {
    if position.0 == 0 || segment_bytes == 0 {
        return Ok(None);
    }
    let last = position.0 - 1;
    let wanted = segment_name(Timeline(0), Lsn(last - last % segment_bytes), segment_bytes);
    let directory = data_dir.join("pg_wal");
    let entries = std::fs::read_dir(&directory).map_err(|error| refused("list", &directory, &error))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let timelines = names
        .filter(|name| name.len() == wanted.len() && name[8..] == wanted[8..])
        .filter_map(|name| u32::from_str_radix(&name[..8], 16).ok());
    Ok(timelines.max().map(Timeline))
}

/// The newest timeline of the log that lies here, if that log goes on behind `position`, the end of a record, with a whole
/// record. A server in recovery that waits for more may do so in the middle of what it has: it looks for newer timelines
/// only after it has found no more on the one it reads.
pub fn unreplayed(data_dir: &Path, control: &ControlFile, position: Lsn) -> Result<Option<Timeline>, Trouble> {
    let directory = data_dir.join("pg_wal");
    let entries = std::fs::read_dir(&directory).map_err(|error| refused("list", &directory, &error))?;
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let segments = names.filter(|name| name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let newest = segments.filter_map(|name| u32::from_str_radix(&name[..8], 16).ok()).max().map(Timeline);
    let Some(newest) = newest.filter(|_| position.0 > 0) else { return Ok(None) };
    let mut log = LogReader::new(&directory, newest, control.segment_bytes, control.major, position);
    Ok(log.next()?.map(|_| newest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_end_after_the_heads_of_the_pages_they_cross() {
        let segment = 16 << 20;
        assert_eq!(record_end(Lsn(0x100_0028), 114, segment), Lsn(0x100_0028 + 120));
        assert_eq!(
            record_end(Lsn(8192 - 8), 114, segment),
            Lsn(8192 + 24 + 112),
            "106 bytes are left for the next page"
        );
        assert_eq!(record_end(Lsn(segment - 8), 114, segment), Lsn(segment + 40 + 112));
        assert_eq!(record_end(Lsn(8192 - 120), 114, segment), Lsn(8192), "up to the end of the page");
    }

    #[test]
    fn the_newest_file_at_a_position_tells_its_timeline() {
        let data = tempfile::tempdir().expect("a directory");
        let wal = data.path().join("pg_wal");
        std::fs::create_dir(&wal).expect("made");
        for name in
            ["000000010000000000000003", "000000020000000000000003", "000000020000000000000005", "00000002.history"]
        {
            std::fs::write(wal.join(name), b"").expect("written");
        }
        let at = |position| timeline_of_log(data.path(), Lsn(position), 16 << 20).expect("listed");
        assert_eq!(at(0x300_0100), Some(Timeline(2)));
        assert_eq!(at(0x400_0000), Some(Timeline(2)), "the last byte is in the segment before");
        assert_eq!(at(0x400_0001), None);
        assert_eq!(at(0), None);
    }
}
