//! The BASE_BACKUP command and the stream it answers with, in both of its dialects.
//!
//! From version 15 on, everything comes in one CopyOut whose messages carry a type byte; 13 and 14 send one CopyOut per
//! tablespace and another for the manifest. Here both become the same events.

use crate::clone::CloneOptions;
use crate::replication::{ReplicationClient, Row, column, parse_text_row, quote_text};
use crate::wire::{Frame, WireError, unexpected};
use bytes::{Buf, Bytes};
use model::{Lsn, Timeline};

/// MAX_RATE that the server accepts, in kilobytes per second.
const MAX_RATE_KB: std::ops::RangeInclusive<u64> = 32..=1_048_576;

/// A tablespace outside of the data directory, as the server names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceSpace {
    /// Its oid.
    pub oid: u32,
    /// Where it is on the source.
    pub location: String,
    /// Estimated size in bytes.
    pub bytes: u64,
}

/// What the server says before the files come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Recovery of the backup starts here,
    pub start: Lsn,
    /// on this timeline.
    pub timeline: Timeline,
    /// Estimated bytes of the data directory itself.
    pub base_bytes: u64,
    /// Tablespaces in the order of the answer.
    pub spaces: Vec<SourceSpace>,
    /// The order in which dialects without names send archives; None is the data directory.
    order: Vec<Option<u32>>,
}

/// What the stream says next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An archive begins: the data directory, or the tablespace of this oid.
    Archive(Option<u32>),
    /// Bytes of the archive.
    Data(Bytes),
    /// The manifest begins; the archive is over.
    ManifestBegins,
    /// Bytes of the manifest.
    Manifest(Bytes),
    /// All files have come; the backup ends at this position.
    End(Lsn, Timeline),
}

/// Whether the server itself can keep to this rate.
pub fn server_keeps_rate(rate_bytes_per_s: u64) -> bool {
    MAX_RATE_KB.contains(&(rate_bytes_per_s / 1024))
}

/// The command, in the dialect of the server.
pub fn command(options: &CloneOptions, server_major: u32) -> String {
    let label = quote_text(&options.label);
    let rate_kb = options.rate_bytes_per_s / 1024;
    let rate = server_keeps_rate(options.rate_bytes_per_s).then_some(rate_kb);
    // No tablespace map: the archive then holds the links themselves, as for a copy that is started in place, and the
    // manifest names no map that relocation would have to falsify. No waiting for the archiver: the log comes to us.
    if server_major >= 15 {
        let rate = rate.map(|kb| format!(", MAX_RATE {kb}")).unwrap_or_default();
        return format!(
            "BASE_BACKUP (LABEL {label}, PROGRESS, CHECKPOINT 'fast', WAL false, WAIT false, MANIFEST 'yes', \
             MANIFEST_CHECKSUMS 'CRC32C'{rate})"
        );
    }
    let rate = rate.map(|kb| format!(" MAX_RATE {kb}")).unwrap_or_default();
    format!("BASE_BACKUP LABEL {label} PROGRESS FAST NOWAIT{rate} MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'")
}

/// Sends the command and reads up to where the files begin. Waits for the checkpoint.
pub async fn begin(client: &mut ReplicationClient, options: &CloneOptions) -> Result<Opening, WireError> {
    let sql = command(options, client.server_major());
    client.connection.send_query(&sql).await?;
    let start = read_rows(client).await?;
    let first = start.first().ok_or_else(|| WireError::Protocol("a backup without a start".to_string()))?;
    let mut opening = Opening {
        start: column(first, 0)?,
        timeline: Timeline(column(first, 1)?),
        base_bytes: 0,
        spaces: Vec::new(),
        order: Vec::new(),
    };
    for row in read_rows(client).await? {
        let bytes = column::<u64>(&row, 2).unwrap_or(0).saturating_mul(1024);
        match row.first() {
            Some(Some(_)) => {
                let (oid, location) = (column(&row, 0)?, column(&row, 1)?);
                opening.order.push(Some(oid));
                opening.spaces.push(SourceSpace { oid, location, bytes });
            }
            Some(None) | None => {
                opening.order.push(None);
                opening.base_bytes = bytes;
            }
        }
    }
    Ok(opening)
}

/// One result set: RowDescription, rows, CommandComplete.
pub(crate) async fn read_rows(client: &mut ReplicationClient) -> Result<Vec<Row>, WireError> {
    let mut rows = Vec::new();
    loop {
        let frame = client.connection.next().await?;
        match frame.tag {
            b'T' => {}
            b'D' => rows.push(parse_text_row(frame.body)?),
            b'C' => return Ok(rows),
            tag => return Err(unexpected("the opening of a base backup", tag)),
        }
    }
}

/// Turns frames into events.
pub struct Decoder {
    typed: bool,
    order: std::vec::IntoIter<Option<u32>>,
    in_manifest: bool,
    end: Option<(Lsn, Timeline)>,
}

impl Decoder {
    /// For the stream behind `opening`.
    pub fn new(server_major: u32, opening: &Opening) -> Decoder {
        let order = opening.order.clone().into_iter();
        Decoder { typed: server_major >= 15, order, in_manifest: false, end: None }
    }

    /// The event in this frame, if any.
    pub fn on_frame(&mut self, frame: Frame) -> Result<Option<Event>, WireError> {
        match frame.tag {
            b'd' if self.typed => self.on_typed(frame.body),
            b'd' if self.in_manifest => Ok(Some(Event::Manifest(frame.body))),
            b'd' => Ok(Some(Event::Data(frame.body))),
            b'H' if self.typed => Ok(None),
            b'H' => match self.order.next() {
                Some(archive) => Ok(Some(Event::Archive(archive))),
                None if !self.in_manifest => {
                    self.in_manifest = true;
                    Ok(Some(Event::ManifestBegins))
                }
                None => Err(WireError::Protocol("more archives than tablespaces".to_string())),
            },
            b'c' | b'T' | b'C' => Ok(None),
            b'D' => {
                let row = parse_text_row(frame.body)?;
                self.end = Some((column(&row, 0)?, Timeline(column(&row, 1)?)));
                Ok(None)
            }
            b'Z' => match self.end {
                Some((end, timeline)) => Ok(Some(Event::End(end, timeline))),
                None => Err(WireError::Protocol("a backup without an end".to_string())),
            },
            tag => Err(unexpected("a base backup", tag)),
        }
    }

    fn on_typed(&mut self, mut body: Bytes) -> Result<Option<Event>, WireError> {
        if body.is_empty() {
            return Err(WireError::Protocol("an empty message in a base backup".to_string()));
        }
        match body.get_u8() {
            b'd' if self.in_manifest => Ok(Some(Event::Manifest(body))),
            b'd' => Ok(Some(Event::Data(body))),
            b'n' => archive_of(&body).map(|archive| Some(Event::Archive(archive))),
            b'm' => {
                self.in_manifest = true;
                Ok(Some(Event::ManifestBegins))
            }
            b'p' => Ok(None), // We count what we receive.
            other => Err(WireError::Protocol(format!("a base backup message of type {other}"))),
        }
    }
}

/// The archive that a name such as `base.tar` or `16384.tar` stands for.
fn archive_of(body: &[u8]) -> Result<Option<u32>, WireError> {
    let name = String::from_utf8_lossy(body.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned();
    let bad = || WireError::Protocol(format!("an archive named `{name}`"));
    match name.strip_suffix(".tar").ok_or_else(bad)? {
        "base" => Ok(None),
        oid => oid.parse().map(Some).map_err(|_| bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tag: u8, body: &'static [u8]) -> Frame {
        Frame { tag, body: Bytes::from_static(body) }
    }

    fn opening() -> Opening {
        Opening {
            start: Lsn(1),
            timeline: Timeline(1),
            base_bytes: 0,
            spaces: vec![SourceSpace { oid: 16384, location: "/a".into(), bytes: 0 }],
            order: vec![Some(16384), None],
        }
    }

    fn events(major: u32, frames: Vec<Frame>) -> Vec<Event> {
        let mut decoder = Decoder::new(major, &opening());
        frames.into_iter().filter_map(|frame| decoder.on_frame(frame).expect("sound")).collect()
    }

    #[test]
    fn both_dialects_tell_the_same_story() {
        let end = frame(b'D', b"\0\x02\0\0\0\x050/100\0\0\0\x011");
        let old = vec![
            frame(b'H', b""),
            frame(b'd', b"space"),
            frame(b'c', b""),
            frame(b'H', b""),
            frame(b'd', b"base"),
            frame(b'c', b""),
            frame(b'H', b""),
            frame(b'd', b"{}"),
            frame(b'c', b""),
            end.clone(),
            frame(b'Z', b"I"),
        ];
        let new = vec![
            frame(b'H', b""),
            frame(b'd', b"n16384.tar\0/a\0"),
            frame(b'd', b"dspace"),
            frame(b'd', b"p\0\0\0\0\0\0\0\x05"),
            frame(b'd', b"nbase.tar\0\0"),
            frame(b'd', b"dbase"),
            frame(b'd', b"m"),
            frame(b'd', b"d{}"),
            frame(b'c', b""),
            end,
            frame(b'Z', b"I"),
        ];
        let told = events(14, old);
        assert_eq!(told, events(15, new));
        assert_eq!(told.len(), 7);
        assert_eq!(told.last(), Some(&Event::End(Lsn(0x100), Timeline(1))));
    }

    #[test]
    fn archive_names_that_are_none_are_refused() {
        for bad in [&b"../x.tar\0"[..], b"base\0", b"x.tar\0", b"\0"] {
            assert!(archive_of(bad).is_err());
        }
    }
}
