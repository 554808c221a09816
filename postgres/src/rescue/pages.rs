//! Row versions in the files of a stopped server that no query shows any more, because a transaction deleted them or
//! wrote them anew. They stay in their page until it is tidied up.

use super::changes::{RawRow, Tid};
use super::log::{Cut, RelFile};
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

const PAGE: usize = 8192;
/// Blocks in one file of a relation.
const BLOCKS_PER_FILE: u32 = 131_072;
/// Tablespace of what has none of its own.
const DEFAULT_SPACE: u32 = 1663;

fn file_of(data_dir: &Path, file: RelFile, block: u32) -> Option<PathBuf> {
    let directory = if file.space == DEFAULT_SPACE {
        data_dir.join("base")
    } else {
        let space = data_dir.join("pg_tblspc").join(file.space.to_string());
        let versions = std::fs::read_dir(space).ok()?.flatten();
        versions
            .map(|entry| entry.path())
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("PG_")))?
    };
    let name = match block / BLOCKS_PER_FILE {
        0 => file.number.to_string(),
        part => format!("{}.{part}", file.number),
    };
    Some(directory.join(file.database.to_string()).join(name))
}

/// Which transaction a version must bear: its place may have been used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mark {
    /// It wrote the version.
    Began(u32),
    /// It deleted the version or wrote the next one.
    Ended(u32),
}

/// The row version at a place, if it is still there and bears this mark.
pub(crate) fn version_in_page(data_dir: &Path, file: RelFile, at: Tid, mark: Mark) -> Option<RawRow> {
    let path = file_of(data_dir, file, at.block)?;
    let mut page = vec![0; PAGE];
    let offset = u64::from(at.block % BLOCKS_PER_FILE) * PAGE as u64;
    File::open(path).ok()?.read_exact_at(&mut page, offset).ok()?;
    row_in(&page, at.offset, mark)
}

fn row_in(page: &[u8], offset: u16, mark: Mark) -> Option<RawRow> {
    const HEADER: usize = 24;
    const NORMAL: u32 = 1;
    let slot = HEADER + 4 * usize::from(offset.checked_sub(1)?);
    let mut lower = Cut(page.get(12..14)?);
    if slot + 4 > usize::from(lower.u16()?) {
        return None;
    }
    let pointer = Cut(page.get(slot..slot + 4)?).u32()?;
    let (start, state, length) = ((pointer & 0x7FFF) as usize, pointer >> 15 & 3, (pointer >> 17) as usize);
    if state != NORMAL {
        return None;
    }
    let mut cut = Cut(page.get(start..start + length)?);
    let (began_by, ended_by) = (cut.u32()?, cut.u32()?);
    cut.bytes(10)?;
    let (infomask2, infomask, header_bytes) = (cut.u16()?, cut.u16()?, cut.u8()?);
    let fits = match mark {
        Mark::Began(xid) => began_by == xid,
        Mark::Ended(xid) => ended_by == xid,
    };
    fits.then(|| RawRow { infomask2, infomask, header_bytes, body: cut.0.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_taken_only_from_the_transaction_that_ended_it() {
        let mut page = vec![0u8; PAGE];
        page[12..14].copy_from_slice(&28u16.to_le_bytes());
        let length = 25u32;
        page[24..28].copy_from_slice(&(8000 | 1 << 15 | length << 17).to_le_bytes());
        page[8000..8004].copy_from_slice(&70u32.to_le_bytes());
        page[8004..8008].copy_from_slice(&77u32.to_le_bytes());
        page[8018..8023].copy_from_slice(&[1, 0, 2, 0, 24]);
        page[8024] = 9;
        let row = row_in(&page, 1, Mark::Ended(77)).expect("there");
        assert_eq!((row.infomask2, row.header_bytes, row.body), (1, 24, vec![0, 9]));
        assert_eq!(row_in(&page, 1, Mark::Began(70)), row_in(&page, 1, Mark::Ended(77)));
        assert_eq!(row_in(&page, 1, Mark::Began(77)), None);
        assert_eq!(row_in(&page, 1, Mark::Ended(78)), None, "its place was used again");
        assert_eq!(row_in(&page, 2, Mark::Ended(77)), None, "beyond the page's pointers");
        assert_eq!(row_in(&page, 0, Mark::Ended(77)), None);
    }
}
