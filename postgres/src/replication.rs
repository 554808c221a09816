//! PostgreSQL's replication commands on one connection: who are you, which histories, slots, stream.
//!
//! The streams themselves are read by `wal` (log) and `clone` (base backup).

use crate::wire::{Connection, Frame, WireError, unexpected};
use bytes::{Buf, Bytes};
use model::{Lsn, SystemId, Timeline, Trouble};
use std::time::Duration;

pub use crate::wire::Endpoint;

/// How long a goodbye may take.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);

/// The answer to IDENTIFY_SYSTEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// Made by initdb, the same in every copy.
    pub system_id: SystemId,
    /// The timeline the server is on.
    pub timeline: Timeline,
    /// Flushed (or, on a standby, replayed) up to here.
    pub position: Lsn,
}

/// One line of a timeline history: the timeline ended at `switched_at`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// Where the next one begins.
    pub switched_at: Lsn,
    /// Why, in the server's words.
    pub reason: String,
}

/// A timeline history as the server keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryFile {
    /// Such as `00000002.history`.
    pub name: String,
    /// The file's bytes.
    pub content: Bytes,
}

/// One row of text values.
pub type Row = Vec<Option<String>>;

/// A connection for physical replication.
pub struct ReplicationClient {
    pub(crate) connection: Connection,
    address: String,
    version_num: u32,
}

impl ReplicationClient {
    /// Connects and logs in.
    pub async fn connect(endpoint: &Endpoint) -> Result<ReplicationClient, Trouble> {
        let connected = ReplicationClient::connect_wire(endpoint).await;
        connected.map_err(|error| error.into_trouble(&format!("cannot connect to {endpoint}"), Trouble::link_down))
    }

    pub(crate) async fn connect_wire(endpoint: &Endpoint) -> Result<ReplicationClient, WireError> {
        let connection = Connection::connect(endpoint).await?;
        let text = connection.parameter("server_version").unwrap_or_default();
        let version_num = parse_version(text)
            .ok_or_else(|| WireError::Protocol(format!("the server reports no version we know: `{text}`")))?;
        Ok(ReplicationClient { connection, address: endpoint.to_string(), version_num })
    }

    /// The server's version as one number, such as 150004.
    pub fn server_version_num(&self) -> u32 {
        self.version_num
    }

    /// The server's major version, such as 15.
    pub fn server_major(&self) -> u32 {
        self.version_num / 10_000
    }

    fn trouble(&self, doing: &str, error: WireError) -> Trouble {
        error.into_trouble(&format!("{doing} failed at {}", self.address), Trouble::link_down)
    }

    /// Which database this is and how far it is.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, Trouble> {
        let answer = self.identify_system_wire().await;
        answer.map_err(|error| self.trouble("IDENTIFY_SYSTEM", error))
    }

    pub(crate) async fn identify_system_wire(&mut self) -> Result<SystemIdentity, WireError> {
        let row = self.one_row("IDENTIFY_SYSTEM").await?;
        Ok(SystemIdentity {
            system_id: SystemId(column(&row, 0)?),
            timeline: Timeline(column(&row, 1)?),
            position: column(&row, 2)?,
        })
    }

    /// The value of a setting.
    pub async fn show(&mut self, name: &str) -> Result<String, Trouble> {
        let answer = self.show_wire(name).await;
        answer.map_err(|error| self.trouble("SHOW", error))
    }

    pub(crate) async fn show_wire(&mut self, name: &str) -> Result<String, WireError> {
        column(&self.one_row(&format!("SHOW {}", quote_name(name))).await?, 0)
    }

    /// Where the timelines before `timeline` ended, oldest first. Timeline 1 has no history.
    pub async fn timeline_history(&mut self, timeline: Timeline) -> Result<Vec<HistoryEntry>, Trouble> {
        let answer = self.history_file_wire(timeline).await;
        let file = answer.map_err(|error| self.trouble("TIMELINE_HISTORY", error))?;
        let Some(file) = file else { return Ok(Vec::new()) };
        parse_history(&file.content).map_err(|error| self.trouble("TIMELINE_HISTORY", error))
    }

    /// The history file itself, for a copy's `pg_wal`.
    pub(crate) async fn history_file_wire(&mut self, timeline: Timeline) -> Result<Option<HistoryFile>, WireError> {
        if timeline.0 <= 1 {
            return Ok(None);
        }
        let rows = self.query_raw(&format!("TIMELINE_HISTORY {timeline}")).await?;
        match rows.first().map(Vec::as_slice) {
            Some([Some(name), Some(content)]) => {
                let name = String::from_utf8_lossy(name).into_owned();
                if name != format!("{:08X}.history", timeline.0) {
                    return Err(WireError::Protocol(format!("`{name}` is not the history of timeline {timeline}")));
                }
                Ok(Some(HistoryFile { name, content: content.clone() }))
            }
            _ => Err(WireError::Protocol("a timeline history without content".to_string())),
        }
    }

    /// Makes a physical slot. A temporary one lives as long as this connection; `reserve_wal` keeps log from now on
    /// rather than from the first use.
    pub async fn create_physical_slot(
        &mut self,
        name: &str,
        temporary: bool,
        reserve_wal: bool,
    ) -> Result<(), Trouble> {
        let answer = self.create_physical_slot_wire(name, temporary, reserve_wal).await;
        answer.map_err(|error| self.trouble("creating a replication slot", error))
    }

    pub(crate) async fn create_physical_slot_wire(
        &mut self,
        name: &str,
        temporary: bool,
        reserve_wal: bool,
    ) -> Result<(), WireError> {
        let temporary = if temporary { " TEMPORARY" } else { "" };
        let reserve = if reserve_wal { " RESERVE_WAL" } else { "" };
        let sql = format!("CREATE_REPLICATION_SLOT {}{temporary} PHYSICAL{reserve}", quote_name(name));
        self.query_raw(&sql).await.map(|_rows| ())
    }

    /// Drops a slot.
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), Trouble> {
        let answer = self.query_raw(&format!("DROP_REPLICATION_SLOT {}", quote_name(name))).await;
        answer.map(|_rows| ()).map_err(|error| self.trouble("dropping a replication slot", error))
    }

    /// Asks for the log of `timeline` from `start` on. Afterwards the connection speaks CopyBoth.
    pub(crate) async fn start_physical(
        &mut self,
        slot: Option<&str>,
        start: Lsn,
        timeline: Timeline,
    ) -> Result<(), WireError> {
        let slot = slot.map(|name| format!("SLOT {} ", quote_name(name))).unwrap_or_default();
        let sql = format!("START_REPLICATION {slot}PHYSICAL {start} TIMELINE {timeline}");
        self.connection.send_query(&sql).await?;
        let frame = self.connection.next().await?;
        match frame.tag {
            b'W' => Ok(()),
            tag => Err(unexpected("START_REPLICATION", tag)),
        }
    }

    /// Asks for the log of `timeline` from `start` on, which must be before the server's position, only to learn
    /// whether it is there; ends the connection. Gives the server's refusal when the log was removed.
    pub async fn log_gone(mut self, start: Lsn, timeline: Timeline) -> Result<Option<String>, Trouble> {
        let answer = match self.start_physical(None, start, timeline).await {
            Ok(()) => self.first_log().await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(()) => {
                self.close().await;
                Ok(None)
            }
            // undefined_file: a segment that was removed.
            Err(WireError::Server(error)) if error.sqlstate == "58P01" => Ok(Some(error.message.clone())),
            Err(error) => Err(self.trouble("START_REPLICATION", error)),
        }
    }

    /// Waits for the first piece of log; messages that only keep the connection alive prove nothing.
    async fn first_log(&mut self) -> Result<(), WireError> {
        loop {
            let frame = self.connection.next().await?;
            if frame.tag != b'd' || frame.body.first() == Some(&b'w') {
                return Ok(());
            }
        }
    }

    /// Leaves in good manners, so that slots are free when this returns.
    pub async fn close(self) {
        self.connection.close(CLOSE_PATIENCE).await;
    }

    async fn one_row(&mut self, sql: &str) -> Result<Row, WireError> {
        let rows = self.query_raw(sql).await?;
        let row = rows.into_iter().next().ok_or_else(|| WireError::Protocol(format!("{sql} answered no row")))?;
        Ok(row.into_iter().map(|value| value.map(|value| String::from_utf8_lossy(&value).into_owned())).collect())
    }

    async fn query_raw(&mut self, sql: &str) -> Result<Vec<Vec<Option<Bytes>>>, WireError> {
        self.connection.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut refused = None;
        loop {
            match self.connection.next().await {
                Ok(Frame { tag: b'Z', .. }) => break,
                Ok(Frame { tag: b'D', body }) => rows.push(parse_row(body)?),
                Ok(Frame { tag: b'T' | b'C' | b'I', .. }) => {}
                Ok(Frame { tag, .. }) => return Err(unexpected(sql, tag)),
                // After an ERROR the server says when it is ready again; after a FATAL it is gone.
                Err(WireError::Server(error)) if error.severity == "ERROR" => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        match refused {
            Some(error) => Err(WireError::Server(error)),
            None => Ok(rows),
        }
    }
}

/// The values of a DataRow.
pub(crate) fn parse_row(mut body: Bytes) -> Result<Vec<Option<Bytes>>, WireError> {
    let short = || WireError::Protocol("a row cut short".to_string());
    let count = body.try_get_u16().map_err(|_| short())?;
    let mut values = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let length = body.try_get_i32().map_err(|_| short())?;
        let Ok(length) = usize::try_from(length) else {
            values.push(None);
            continue;
        };
        if body.len() < length {
            return Err(short());
        }
        values.push(Some(body.split_to(length)));
    }
    Ok(values)
}

/// A DataRow as text.
pub(crate) fn parse_text_row(body: Bytes) -> Result<Row, WireError> {
    let values = parse_row(body)?;
    Ok(values.into_iter().map(|value| value.map(|value| String::from_utf8_lossy(&value).into_owned())).collect())
}

/// One value of a row, which must be there and of the wanted kind.
pub(crate) fn column<T: std::str::FromStr>(row: &Row, index: usize) -> Result<T, WireError> {
    let text = row.get(index).and_then(Option::as_deref);
    let bad = || WireError::Protocol(format!("column {index} of {row:?} is not what it should be"));
    text.and_then(|text| text.parse().ok()).ok_or_else(bad)
}

/// The replication grammar takes names in double quotes.
pub(crate) fn quote_name(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The replication grammar takes strings in single quotes and knows no backslash escapes.
pub(crate) fn quote_text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// `15.4 (Debian ...)`, `17beta2`, `16.1` as 150004, 170000, 160001.
fn parse_version(text: &str) -> Option<u32> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let major: u32 = text[..digits_end].parse().ok()?;
    let minor = text[digits_end..].strip_prefix('.').unwrap_or_default();
    let minor_end = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
    Some(major * 10_000 + minor[..minor_end].parse().unwrap_or(0))
}

/// Reads the content of a history file.
pub(crate) fn parse_history(content: &[u8]) -> Result<Vec<HistoryEntry>, WireError> {
    let text = String::from_utf8_lossy(content);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let bad = || WireError::Protocol(format!("a timeline history with the line `{line}`"));
            let mut parts = line.splitn(3, '\t');
            let timeline = parts.next().and_then(|part| part.trim().parse().ok()).ok_or_else(bad)?;
            let switched_at = parts.next().and_then(|part| part.trim().parse().ok()).ok_or_else(bad)?;
            let reason = parts.next().unwrap_or_default().trim().to_string();
            Ok(HistoryEntry { timeline: Timeline(timeline), switched_at, reason })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_all_packagers_are_understood() {
        for (text, number) in [
            ("15.4 (Debian 15.4-1.pgdg120+1)", Some(150_004)),
            ("17beta2", Some(170_000)),
            ("13.22", Some(130_022)),
            ("18.0", Some(180_000)),
            ("", None),
            ("devel", None),
        ] {
            assert_eq!(parse_version(text), number, "{text}");
        }
    }

    #[test]
    fn a_history_file_is_read_in_order() {
        let entries =
            parse_history(b"1\t0/5000060\tno recovery target specified\n\n2\t1/A0\tbefore 2024\n").expect("sound");
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].timeline, Timeline(1));
        assert_eq!(entries[0].switched_at, Lsn(0x500_0060));
        assert_eq!(entries[1].reason, "before 2024");
        assert!(parse_history(b"1 nonsense\n").is_err());
    }

    #[test]
    fn names_and_texts_cannot_break_out_of_their_quotes() {
        assert_eq!(quote_name("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_text("o'clock"), "'o''clock'");
    }

    #[test]
    fn a_row_cut_short_is_refused() {
        assert!(parse_row(Bytes::from_static(b"\0\x01\0\0\0\x05abc")).is_err());
        assert_eq!(parse_row(Bytes::from_static(b"\0\x01\xff\xff\xff\xff")).expect("sound"), vec![None]);
    }
}
