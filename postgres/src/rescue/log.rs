//! Reads the write-ahead log of a stopped server from its segment files, record by record, for PostgreSQL 13 to 18.
//!
//! Only the frame of a record is understood here: who wrote it, which blocks it touches, what data it carries. What the
//! data means is in `changes`. Whatever does not pass its check sum is the end of the log, as it is for the server.

use model::{Lsn, Timeline, Trouble};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Page size of the log. Servers built with another one are refused.
const PAGE: u64 = 8192;
const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;
const RECORD_HEADER: usize = 24;
/// Larger records than this do not exist (the server's own limit is 1020 MB).
const RECORD_MAX: u32 = 1 << 30;
const FIRST_IS_CONTINUED: u16 = 1;
const FIRST_REPLACES_CONTINUED: u16 = 8;

/// The file that holds a relation's main fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RelFile {
    pub space: u32,
    pub database: u32,
    pub number: u32,
}

/// A block that a record touches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    pub id: u8,
    pub fork: u8,
    pub file: RelFile,
    pub number: u32,
    /// What the record carries for this block, besides an image of it.
    pub data: Vec<u8>,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub start: Lsn,
    pub end: Lsn,
    pub xid: u32,
    /// The transaction that `xid` is a part of, where the record says so.
    pub top_xid: Option<u32>,
    pub info: u8,
    pub resource: u8,
    pub blocks: Vec<Block>,
    pub main: Vec<u8>,
}

/// Name of a segment.
pub(crate) fn segment_name(timeline: Timeline, segment: u64, segment_bytes: u64) -> String {
    let per_file = 0x1_0000_0000 / segment_bytes;
    format!("{:08X}{:08X}{:08X}", timeline.0, segment / per_file, segment % per_file)
}

/// Reads forward from a position.
pub(crate) struct LogReader {
    directory: PathBuf,
    timeline: Timeline,
    segment_bytes: u64,
    major: u32,
    position: u64,
    file: Option<(u64, File)>,
    page: Vec<u8>,
    page_at: Option<u64>,
}

/// What is at a place where a record should be.
enum Found {
    Record(Record),
    /// A record that was begun here was given up; the next one begins there.
    GivenUp(u64),
    End,
}

impl LogReader {
    /// Reads `directory` (a `pg_wal`) as the log of `timeline` and of those before it.
    pub(crate) fn new(directory: &Path, timeline: Timeline, segment_bytes: u32, major: u32, from: Lsn) -> LogReader {
        LogReader {
            directory: directory.to_owned(),
            timeline,
            segment_bytes: u64::from(segment_bytes),
            major,
            position: from.0,
            file: None,
            page: Vec::new(),
            page_at: None,
        }
    }

    /// Where the next record is looked for; behind the last one.
    pub(crate) fn position(&self) -> Lsn {
        Lsn(self.position)
    }

    /// Goes to the first record that begins in the segment of this position, if there is one.
    pub(crate) fn seek_segment(&mut self, within: Lsn) -> Result<bool, Trouble> {
        let start = within.0 - within.0 % self.segment_bytes;
        let mut at = start;
        while at < start + self.segment_bytes {
            if !self.load(at)? {
                return Ok(false);
            }
            let header = self.header_bytes(at);
            let rest = u64::from(self.page_u32(16));
            if self.page_u16(2) & FIRST_IS_CONTINUED == 0 {
                self.position = at + header;
                return Ok(true);
            }
            if rest < PAGE - header {
                self.position = at + header + rest.next_multiple_of(8);
                return Ok(true);
            }
            at += PAGE;
        }
        Ok(false)
    }

    /// The next record; `None` at the end of the log.
    pub(crate) fn next(&mut self) -> Result<Option<Record>, Trouble> {
        loop {
            match self.read_at(self.position)? {
                Found::Record(record) => {
                    self.position = record.end.0;
                    return Ok(Some(record));
                }
                Found::GivenUp(next) => self.position = next,
                Found::End => return Ok(None),
            }
        }
    }

    fn read_at(&mut self, position: u64) -> Result<Found, Trouble> {
        let mut at = position;
        if at.is_multiple_of(PAGE) {
            at += self.header_bytes(at);
        }
        let page_start = at - at % PAGE;
        if !self.load(page_start)? {
            return Ok(Found::End);
        }
        let total = self.page_u32((at % PAGE) as usize);
        if total < RECORD_HEADER as u32 || total > RECORD_MAX {
            return Ok(Found::End);
        }
        let mut bytes = Vec::with_capacity(total as usize);
        let mut here = at;
        while bytes.len() < total as usize {
            if here.is_multiple_of(PAGE) {
                if !self.load(here)? {
                    return Ok(Found::End);
                }
                let flags = self.page_u16(2);
                if flags & FIRST_REPLACES_CONTINUED != 0 {
                    return Ok(Found::GivenUp(here));
                }
                if flags & FIRST_IS_CONTINUED == 0 || self.page_u32(16) as usize != total as usize - bytes.len() {
                    return Ok(Found::End);
                }
                here += self.header_bytes(here);
            }
            let offset = (here % PAGE) as usize;
            let take = (PAGE as usize - offset).min(total as usize - bytes.len());
            bytes.extend_from_slice(&self.page[offset..offset + take]);
            here += take as u64;
        }
        let mut end = here.next_multiple_of(8);
        let Some(mut record) = parse(&bytes, self.major) else { return Ok(Found::End) };
        // A switch to the next segment: the rest of this one is empty.
        if record.resource == 0 && record.info & 0xF0 == 0x40 {
            end = end.next_multiple_of(self.segment_bytes);
        }
        (record.start, record.end) = (Lsn(at), Lsn(end));
        Ok(Found::Record(record))
    }

    fn header_bytes(&self, page: u64) -> u64 {
        if page.is_multiple_of(self.segment_bytes) { LONG_HEADER } else { SHORT_HEADER }
    }

    fn page_u16(&self, at: usize) -> u16 {
        u16_at(&self.page, at).unwrap_or(0)
    }

    fn page_u32(&self, at: usize) -> u32 {
        u32_at(&self.page, at).unwrap_or(0)
    }

    /// Loads the page at this position. False: the log does not go so far.
    fn load(&mut self, page: u64) -> Result<bool, Trouble> {
        if self.page_at == Some(page) {
            return Ok(true);
        }
        self.page_at = None;
        let segment = page / self.segment_bytes;
        if self.file.as_ref().is_none_or(|(held, _)| *held != segment) {
            let Some(path) = self.find(segment) else { return Ok(false) };
            let file = File::open(&path).map_err(|error| crate::files::refused("open", &path, &error))?;
            self.file = Some((segment, file));
        }
        let Some((_, file)) = &self.file else { return Ok(false) };
        self.page.resize(PAGE as usize, 0);
        match file.read_exact_at(&mut self.page, page % self.segment_bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(crate::files::refused("read", &self.directory, &error)),
        }
        // A page that still holds what was there before the file was used again.
        if u64_at(&self.page, 8) != Some(page) {
            return Ok(false);
        }
        if page.is_multiple_of(self.segment_bytes) && self.page_u32(36) != PAGE as u32 {
            return Err(Trouble::directory_unfit(
                format!("the log in {} has pages of {} bytes", self.directory.display(), self.page_u32(36)),
                "use a server built with pages of 8192 bytes",
            ));
        }
        self.page_at = Some(page);
        Ok(true)
    }

    /// The file of a segment. One that two timelines share is in the newer one's file.
    pub(crate) fn find(&self, segment: u64) -> Option<PathBuf> {
        let name = |timeline: u32| segment_name(Timeline(timeline), segment, self.segment_bytes);
        (1..=self.timeline.0).rev().map(|timeline| self.directory.join(name(timeline))).find(|path| path.exists())
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Takes bytes from the front.
pub(crate) struct Cut<'a>(pub &'a [u8]);

impl<'a> Cut<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(front)
    }
    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.bytes(1).map(|bytes| bytes[0])
    }
    pub(crate) fn u16(&mut self) -> Option<u16> {
        u16_at(self.bytes(2)?, 0)
    }
    pub(crate) fn u32(&mut self) -> Option<u32> {
        u32_at(self.bytes(4)?, 0)
    }
    pub(crate) fn u64(&mut self) -> Option<u64> {
        u64_at(self.bytes(8)?, 0)
    }
}

/// A whole record, if its check sum is right.
fn parse(bytes: &[u8], major: u32) -> Option<Record> {
    let stored = u32_at(bytes, 20)?;
    let sum = crc32c::crc32c_append(crc32c::crc32c(bytes.get(RECORD_HEADER..)?), bytes.get(..20)?);
    if sum != stored {
        return None;
    }
    let mut record = Record {
        start: Lsn(0),
        end: Lsn(0),
        xid: u32_at(bytes, 4)?,
        top_xid: None,
        info: bytes[16],
        resource: bytes[17],
        blocks: Vec::new(),
        main: Vec::new(),
    };
    let mut cut = Cut(&bytes[RECORD_HEADER..]);
    let mut main_bytes = 0;
    let mut data_bytes = 0;
    // For each block, the bytes of its image and of its data.
    let mut lengths: Vec<(usize, usize)> = Vec::new();
    while cut.0.len() > data_bytes {
        match cut.u8()? {
            255 => main_bytes = usize::from(cut.u8()?),
            254 => main_bytes = cut.u32()? as usize,
            253 => {
                cut.u16()?;
                continue;
            }
            252 => {
                record.top_xid = Some(cut.u32()?).filter(|xid| *xid != 0);
                continue;
            }
            id => {
                let last = record.blocks.last().map(|block: &Block| block.file);
                let (block, image, data) = block_header(&mut cut, id, last, major)?;
                data_bytes += image + data;
                lengths.push((image, data));
                record.blocks.push(block);
                continue;
            }
        }
        // The main data's header is the last one.
        break;
    }
    for (block, (image, data)) in record.blocks.iter_mut().zip(lengths) {
        cut.bytes(image)?;
        block.data = cut.bytes(data)?.to_vec();
    }
    record.main = cut.bytes(main_bytes)?.to_vec();
    Some(record)
}

fn block_header(cut: &mut Cut<'_>, id: u8, last: Option<RelFile>, major: u32) -> Option<(Block, usize, usize)> {
    const HAS_IMAGE: u8 = 0x10;
    const SAME_FILE: u8 = 0x80;
    const HAS_HOLE: u8 = 0x01;
    if id > 32 {
        return None;
    }
    let flags = cut.u8()?;
    let data = usize::from(cut.u16()?);
    let mut image = 0;
    if flags & HAS_IMAGE != 0 {
        image = usize::from(cut.u16()?);
        cut.u16()?;
        let info = cut.u8()?;
        let compressed = if major >= 15 { 0x1C } else { 0x02 };
        if info & HAS_HOLE != 0 && info & compressed != 0 {
            cut.u16()?;
        }
    }
    let file = if flags & SAME_FILE != 0 {
        last?
    } else {
        RelFile { space: cut.u32()?, database: cut.u32()?, number: cut.u32()? }
    };
    let number = cut.u32()?;
    Some((Block { id, fork: flags & 0x0F, file, number, data: Vec::new() }, image, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_named_as_the_server_names_them() {
        assert_eq!(segment_name(Timeline(1), 1, 16 << 20), "000000010000000000000001");
        assert_eq!(segment_name(Timeline(3), 0x1FF, 16 << 20), "0000000300000001000000FF");
        assert_eq!(segment_name(Timeline(1), 5, 1 << 30), "000000010000000100000001");
    }

    #[test]
    fn a_record_with_one_flipped_bit_is_the_end_of_the_log() {
        let mut bytes = vec![0u8; RECORD_HEADER + 2 + 3];
        let total = bytes.len() as u32;
        bytes[..4].copy_from_slice(&total.to_le_bytes());
        bytes[4..8].copy_from_slice(&77u32.to_le_bytes());
        bytes[17] = 1;
        bytes[24..].copy_from_slice(&[255, 3, 7, 8, 9]);
        let sum = crc32c::crc32c_append(crc32c::crc32c(&bytes[24..]), &bytes[..20]);
        bytes[20..24].copy_from_slice(&sum.to_le_bytes());
        let record = parse(&bytes, 15).expect("sound");
        assert_eq!((record.xid, record.resource, record.main), (77, 1, vec![7, 8, 9]));
        bytes[27] ^= 1;
        assert_eq!(parse(&bytes, 15), None);
    }
}
