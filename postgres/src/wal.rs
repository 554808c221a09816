//! Streams write-ahead log into segment files while a base backup runs, so that the copy needs nobody to become
//! consistent.
//!
//! The network side answers keepalives whatever the disk does; a thread of its own writes and syncs.

use crate::os_user::OsUser;
use crate::replication::{HistoryFile, ReplicationClient, column, parse_text_row};
use crate::wire::{WireError, unexpected};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use model::{Lsn, Timeline};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};

/// How often we tell how far we are, unasked. Managed servers drop a silent receiver after five seconds.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Messages that may wait for the disk. The server sends at most 128 kB in one.
const QUEUE_MAX: usize = 64;
/// A server asked to end a stream must do so within this.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// Milliseconds from 1970 to 2000, where PostgreSQL's clock begins.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;

/// Where segments go and how.
#[derive(Clone, Debug)]
pub struct WalTarget {
    /// The `pg_wal` directory; it exists, with `archive_status` in it.
    pub directory: PathBuf,
    /// Owner of the files.
    pub owner: Option<OsUser>,
    /// Whether segments are synced when full and at the end.
    pub fsync: bool,
    /// Bytes of a segment.
    pub segment_bytes: u64,
}

/// What to stream.
#[derive(Clone, Debug)]
pub struct WalRequest {
    /// Slot that keeps the log for us.
    pub slot: Option<String>,
    /// From the segment that holds this position,
    pub start: Lsn,
    /// on this timeline.
    pub timeline: Timeline,
}

/// Why the stream ended early.
#[derive(Debug)]
pub enum WalError {
    /// The connection or the server.
    Wire(WireError),
    /// Our disk.
    Disk {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

impl fmt::Display for WalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalError::Wire(error) => write!(f, "{error}"),
            WalError::Disk { path, error } => write!(f, "{}: {error}", path.display()),
        }
    }
}
impl std::error::Error for WalError {}

impl From<WireError> for WalError {
    fn from(error: WireError) -> WalError {
        WalError::Wire(error)
    }
}

/// Streams until everything before the position that `end` comes to hold is on disk. Answers where it stopped.
pub async fn stream(
    mut client: ReplicationClient,
    request: WalRequest,
    target: WalTarget,
    mut end: watch::Receiver<Option<Lsn>>,
) -> Result<Lsn, WalError> {
    let segment_bytes = target.segment_bytes;
    let (orders, inbox) = mpsc::channel(QUEUE_MAX);
    let flushed = Arc::new(AtomicU64::new(0));
    let writer = SegmentWriter { target, timeline: request.timeline, current: None, flushed: Arc::clone(&flushed) };
    let writer = tokio::task::spawn_blocking(move || writer.run(inbox));
    let outcome = receive(&mut client, &request, segment_bytes, &orders, &flushed, &mut end).await;
    drop(orders);
    // The disk's own error comes first: a closed queue is only its echo.
    let written = writer.await.unwrap_or_else(|panic| Err(echo(panic)));
    let position = match (written, outcome) {
        (Err(error), _) => return Err(error),
        (Ok(()), outcome) => outcome?,
    };
    finish(&mut client, position).await?;
    client.close().await;
    Ok(position)
}

fn echo(panic: tokio::task::JoinError) -> WalError {
    WalError::Disk { path: PathBuf::from("log writer"), error: io::Error::other(panic) }
}

async fn receive(
    client: &mut ReplicationClient,
    request: &WalRequest,
    segment_bytes: u64,
    orders: &mpsc::Sender<Order>,
    flushed: &AtomicU64,
    end: &mut watch::Receiver<Option<Lsn>>,
) -> Result<Lsn, WalError> {
    let mut timeline = request.timeline;
    let mut position = Lsn(request.start.0 - request.start.0 % segment_bytes);
    // The histories of the timelines before ours travel with the log: recovery asks for them.
    if let Some(history) = client.history_file_wire(timeline).await? {
        hand_over(orders, Order::History(history)).await?;
    }
    loop {
        client.start_physical(request.slot.as_deref(), position, timeline).await?;
        match receive_timeline(client, &mut position, orders, flushed, end).await? {
            Ended::Reached => return Ok(position),
            Ended::Switched => {}
        }
        let (next, switched_at) = next_timeline(client).await?;
        tracing::info!(%next, %switched_at, "the source moved to another timeline during the backup");
        if let Some(history) = client.history_file_wire(next).await? {
            hand_over(orders, Order::History(history)).await?;
        }
        hand_over(orders, Order::Timeline(next)).await?;
        timeline = next;
        position = Lsn(switched_at.0 - switched_at.0 % segment_bytes);
    }
}

enum Ended {
    /// The end wanted has been received.
    Reached,
    /// The timeline ends here.
    Switched,
}

async fn receive_timeline(
    client: &mut ReplicationClient,
    position: &mut Lsn,
    orders: &mpsc::Sender<Order>,
    flushed: &AtomicU64,
    end: &mut watch::Receiver<Option<Lsn>>,
) -> Result<Ended, WalError> {
    let mut tick = tokio::time::interval(STATUS_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if end.borrow_and_update().is_some_and(|end| *position >= end) {
            return Ok(Ended::Reached);
        }
        let frame = tokio::select! {
            frame = client.connection.next() => frame?,
            _ = tick.tick() => {
                send_status(client, *position, flushed).await?;
                continue;
            }
            changed = end.changed() => match changed {
                Ok(()) => continue,
                // Whoever wanted the log is gone.
                Err(_) => return Err(WireError::Closed.into()),
            },
        };
        match frame.tag {
            b'd' => match parse_message(frame.body)? {
                Message::Log { start, bytes } => {
                    if start != *position {
                        let told = format!("log from {start} came where {position} was due");
                        return Err(WireError::Protocol(told).into());
                    }
                    position.0 += bytes.len() as u64;
                    let mut order = std::pin::pin!(hand_over(orders, Order::Log { start, bytes }));
                    // The disk may be slower than the server is patient: it hears of us while we wait.
                    loop {
                        tokio::select! {
                            handed = &mut order => break handed?,
                            _ = tick.tick() => send_status(client, *position, flushed).await?,
                        }
                    }
                }
                Message::Keepalive { reply_wanted: true } => send_status(client, *position, flushed).await?,
                Message::Keepalive { reply_wanted: false } => {}
            },
            b'c' => return Ok(Ended::Switched),
            // A server that shuts down completes the command and hangs up.
            b'C' => return Err(WireError::Closed.into()),
            tag => return Err(unexpected("log streaming", tag).into()),
        }
    }
}

async fn hand_over(orders: &mpsc::Sender<Order>, order: Order) -> Result<(), WalError> {
    // The writer only goes away with an error of its own, which the caller reports instead of this one.
    orders.send(order).await.map_err(|_| WalError::Wire(WireError::Closed))
}

enum Message {
    Log { start: Lsn, bytes: Bytes },
    Keepalive { reply_wanted: bool },
}

fn parse_message(mut body: Bytes) -> Result<Message, WireError> {
    const LOG_HEADER: usize = 25;
    const KEEPALIVE: usize = 18;
    match body.first() {
        Some(b'w') if body.len() >= LOG_HEADER => {
            let start = Lsn(u64::from_be_bytes(body[1..9].try_into().expect("eight bytes")));
            body.advance(LOG_HEADER);
            Ok(Message::Log { start, bytes: body })
        }
        Some(b'k') if body.len() >= KEEPALIVE => Ok(Message::Keepalive { reply_wanted: body[17] != 0 }),
        other => Err(WireError::Protocol(format!("log message {other:?} of {} bytes", body.len()))),
    }
}

async fn send_status(client: &mut ReplicationClient, written: Lsn, flushed: &AtomicU64) -> Result<(), WireError> {
    let flushed = Lsn(flushed.load(Ordering::Acquire));
    client.connection.send_copy_data(&status_message(written, flushed, SystemTime::now())).await
}

/// A standby status update. Only what is synced is called flushed: a slot may let go of everything before it.
fn status_message(written: Lsn, flushed: Lsn, now: SystemTime) -> BytesMut {
    let since_1970 = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let micros = i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX) - POSTGRES_EPOCH_MS * 1000;
    let mut message = BytesMut::with_capacity(34);
    message.put_u8(b'r');
    message.put_u64(written.0);
    message.put_u64(flushed.0);
    message.put_u64(0); // Nothing is replayed here.
    message.put_i64(micros);
    message.put_u8(0);
    message
}

/// After the server's CopyDone: says CopyDone too and reads where the log goes on.
async fn next_timeline(client: &mut ReplicationClient) -> Result<(Timeline, Lsn), WireError> {
    client.connection.send(&[b'c', 0, 0, 0, 4]).await?;
    let mut next = None;
    loop {
        let frame = client.connection.next().await?;
        match frame.tag {
            b'D' => {
                let row = parse_text_row(frame.body)?;
                next = Some((Timeline(column(&row, 0)?), column(&row, 1)?));
            }
            b'T' | b'C' => {}
            b'Z' => return next.ok_or(WireError::Closed),
            tag => return Err(unexpected("end of a timeline", tag)),
        }
    }
}

/// Tells the server that all is on disk and ends the stream.
async fn finish(client: &mut ReplicationClient, position: Lsn) -> Result<(), WireError> {
    let message = status_message(position, position, SystemTime::now());
    client.connection.send_copy_data(&message).await?;
    client.connection.send(&[b'c', 0, 0, 0, 4]).await?;
    let ended = async {
        loop {
            if client.connection.next().await?.tag == b'Z' {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(END_PATIENCE, ended).await.unwrap_or(Err(WireError::TimedOut("ending the log stream")))
}

enum Order {
    Log { start: Lsn, bytes: Bytes },
    Timeline(Timeline),
    History(HistoryFile),
}

struct Segment {
    file: File,
    path: PathBuf,
    /// Position of its first byte.
    first: Lsn,
    /// Bytes written so far.
    filled: u64,
}

struct SegmentWriter {
    target: WalTarget,
    timeline: Timeline,
    current: Option<Segment>,
    flushed: Arc<AtomicU64>,
}

impl SegmentWriter {
    fn run(mut self, mut inbox: mpsc::Receiver<Order>) -> Result<(), WalError> {
        while let Some(order) = inbox.blocking_recv() {
            match order {
                Order::Log { start, bytes } => self.write(start, &bytes)?,
                Order::Timeline(next) => {
                    self.close_segment()?;
                    self.timeline = next;
                }
                Order::History(history) => self.write_history(&history)?,
            }
        }
        self.close_segment()
    }

    fn write(&mut self, mut start: Lsn, mut bytes: &[u8]) -> Result<(), WalError> {
        while !bytes.is_empty() {
            let first = Lsn(start.0 - start.0 % self.target.segment_bytes);
            if self.current.as_ref().is_none_or(|segment| segment.first != first) {
                self.close_segment()?;
                self.current = Some(self.open_segment(first)?);
            }
            let segment = self.current.as_mut().expect("opened above");
            let at = start.0 - first.0;
            assert!(at == segment.filled, "log is written without gaps");
            let take = usize::try_from(self.target.segment_bytes - at).unwrap_or(usize::MAX).min(bytes.len());
            let written = segment.file.write_all_at(&bytes[..take], at);
            written.map_err(|error| WalError::Disk { path: segment.path.clone(), error })?;
            segment.filled += take as u64;
            start.0 += take as u64;
            bytes = &bytes[take..];
            if segment.filled == self.target.segment_bytes {
                self.close_segment()?;
            }
        }
        Ok(())
    }

    fn open_segment(&self, first: Lsn) -> Result<Segment, WalError> {
        let name = segment_name(self.timeline, first, self.target.segment_bytes);
        let path = self.target.directory.join(name);
        let open = || {
            let file = create(&path, self.target.owner.as_ref())?;
            // Full length at once: the server expects it of every segment, and a full disk shows now.
            match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, self.target.segment_bytes) {
                Ok(()) => {}
                Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(self.target.segment_bytes)?,
                Err(error) => return Err(error.into()),
            }
            Ok(file)
        };
        match open() {
            Ok(file) => Ok(Segment { file, path, first, filled: 0 }),
            Err(error) => Err(WalError::Disk { path, error }),
        }
    }

    fn close_segment(&mut self) -> Result<(), WalError> {
        let Some(segment) = self.current.take() else { return Ok(()) };
        if self.target.fsync {
            segment.file.sync_all().map_err(|error| WalError::Disk { path: segment.path.clone(), error })?;
        }
        self.flushed.store(segment.first.0 + segment.filled, Ordering::Release);
        if segment.filled == self.target.segment_bytes {
            self.mark_archived(&segment.path)?;
        }
        Ok(())
    }

    fn write_history(&self, history: &HistoryFile) -> Result<(), WalError> {
        let path = self.target.directory.join(&history.name);
        let write = || {
            let file = create(&path, self.target.owner.as_ref())?;
            file.write_all_at(&history.content, 0)?;
            if self.target.fsync { file.sync_all() } else { Ok(()) }
        };
        write().map_err(|error| WalError::Disk { path: path.clone(), error })?;
        self.mark_archived(&path)
    }

    /// The source archives its log; a copy that archived it again would fail on files that exist already.
    fn mark_archived(&self, path: &Path) -> Result<(), WalError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mark = self.target.directory.join("archive_status").join(format!("{name}.done"));
        match create(&mark, self.target.owner.as_ref()) {
            Ok(_file) => Ok(()),
            Err(error) => Err(WalError::Disk { path: mark, error }),
        }
    }
}

fn create(path: &Path, owner: Option<&OsUser>) -> io::Result<File> {
    let mut options = File::options();
    // create_new: never through a link, never over a file of somebody else.
    let file = options.write(true).create_new(true).mode(0o600).open(path)?;
    if let Some(owner) = owner {
        fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(file)
}

/// The file name of the segment that begins at `first`.
pub fn segment_name(timeline: Timeline, first: Lsn, segment_bytes: u64) -> String {
    let number = first.0 / segment_bytes;
    let per_file_id = (1u64 << 32) / segment_bytes;
    format!("{:08X}{:08X}{:08X}", timeline.0, number / per_file_id, number % per_file_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    #[test]
    fn segments_are_named_as_the_server_names_them() {
        for (timeline, first, bytes, name) in [
            (1, 0x200_0000, 16 * MB, "000000010000000000000002"),
            (2, 0x1_FF00_0000, 16 * MB, "0000000200000001000000FF"),
            (0xA, 0x1_0000_0000, MB, "0000000A0000000100000000"),
            (1, 0x1_4000_0000, 1024 * MB, "000000010000000100000001"),
        ] {
            assert_eq!(segment_name(Timeline(timeline), Lsn(first), bytes), name);
        }
    }

    #[test]
    fn log_that_crosses_segments_lands_in_files_of_full_length() {
        let directory = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(directory.path().join("archive_status")).expect("made");
        let target = WalTarget { directory: directory.path().into(), owner: None, fsync: false, segment_bytes: MB };
        let flushed = Arc::new(AtomicU64::new(0));
        let mut writer = SegmentWriter { target, timeline: Timeline(1), current: None, flushed: flushed.clone() };
        let log: Vec<u8> = (0..MB + 1000).map(|at| (at % 251) as u8).collect();
        let mut at = 3 * MB;
        for piece in log.chunks(100_000) {
            writer.write(Lsn(at), piece).expect("written");
            at += piece.len() as u64;
        }
        assert_eq!(flushed.load(Ordering::Acquire), 4 * MB, "only full segments count before the end");
        writer.close_segment().expect("closed");
        assert_eq!(flushed.load(Ordering::Acquire), 4 * MB + 1000);
        let read = |name: &str| std::fs::read(directory.path().join(name)).expect("segment");
        let (first, second) = (read("000000010000000000000003"), read("000000010000000000000004"));
        assert_eq!(first, log[..MB as usize]);
        assert_eq!(second.len() as u64, MB, "padded to full length");
        assert_eq!(second[..1000], log[MB as usize..]);
        assert!(second[1000..].iter().all(|&byte| byte == 0));
        let marks: Vec<_> = std::fs::read_dir(directory.path().join("archive_status")).expect("dir").collect();
        assert_eq!(marks.len(), 1, "only the full segment is marked");
    }

    #[test]
    fn a_status_message_has_the_protocols_layout() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(POSTGRES_EPOCH_MS as u64 + 5);
        let message = status_message(Lsn(7), Lsn(6), time);
        let mut wanted = vec![b'r'];
        for number in [7u64, 6, 0, 5000] {
            wanted.extend(number.to_be_bytes());
        }
        wanted.push(0);
        assert_eq!(message.as_ref(), wanted);
    }

    #[test]
    fn malformed_log_messages_are_refused() {
        for bad in [&b""[..], b"w", b"wshort", b"k12345", b"zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz"] {
            assert!(parse_message(Bytes::copy_from_slice(bad)).is_err(), "{bad:?}");
        }
    }
}
