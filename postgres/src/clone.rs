//! Builds a replica's data directory as a base backup of a running server, over the replication protocol alone.
//!
//! Two connections: one brings the files, the other the log written meanwhile, so that the copy becomes consistent
//! without asking anybody. Every file is proved against the server's manifest before a server can start on it. Making
//! it a replica (signal file, connection settings) is left to the server room.

mod half_made;
mod pace;
mod source;
mod sync;
mod target;

pub use half_made::{MARKER, discard_half_made, mark_for_removal};
pub use model::observe::CloneProgress;

use crate::os_user::OsUser;
use crate::replication::{Endpoint, ReplicationClient};
use crate::wal::{self, WalError, WalRequest, WalTarget};
use crate::wire::WireError;
use half_made::Marker;
use model::{Lsn, SystemId, Timeline, Trouble, WallTime};
use pace::{Brake, Meter, Tally};
pub(crate) use source::read_rows;
use source::{Decoder, Event, Opening};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use target::{Plan, Space, Target, disk_trouble, free_bytes, no_space, place_spaces};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Events in one hand-over to the disk side; with frames of 32 kB about 1 MB.
const BATCH_EVENTS_MAX: usize = 32;
/// Hand-overs that may wait for the disk.
const QUEUE_MAX: usize = 16;
/// Log segments to leave room for besides the files.
const LOG_SEGMENTS_RESERVED: u64 = 2;
/// How long a log stream may take to end once it is told to give up.
const GIVE_UP_PATIENCE: Duration = Duration::from_secs(5);
/// Makes slot names of this process differ.
static CLONES_STARTED: AtomicU64 = AtomicU64::new(0);

/// What to copy to where.
#[derive(Clone, Debug)]
pub struct CloneOptions {
    /// The data directory to make; missing or empty.
    pub data_dir: PathBuf,
    /// Owner of everything made; None: whoever we are.
    pub owner: Option<OsUser>,
    /// Upper bound for the files' stream; 0 is none.
    pub rate_bytes_per_s: u64,
    /// The source must be this database.
    pub expect_system_id: Option<SystemId>,
    /// The source must be of this major version.
    pub expect_major: Option<u32>,
    /// Label of the backup, shown in `backup_label`.
    pub label: String,
    /// Tablespaces go to `<root>/<oid>`; None: to the place they have on the source.
    pub tablespace_root: Option<PathBuf>,
    /// Whether the copy is made durable. Only tests and benchmarks may do without.
    pub fsync: bool,
    /// An existing physical slot that keeps the log; None: a temporary one is made.
    pub slot: Option<String>,
}

/// What was copied.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CloneReport {
    /// Bytes of the files' stream.
    pub bytes: u64,
    /// Seconds from the first connection to the last sync.
    pub seconds: f64,
    /// Recovery starts here.
    pub start: Lsn,
    /// The copy is consistent from here on.
    pub end: Lsn,
    /// Timeline at the end.
    pub timeline: Timeline,
    /// Files received.
    pub files: u64,
    /// Files that matched the manifest.
    pub verified_files: u64,
}

/// The trouble of a clone that was told to stop.
fn cancelled() -> Trouble {
    Trouble::clone_failed("the clone was cancelled", "discard what it left and clone again when wanted")
}

fn wire_trouble(source: &Endpoint, error: WireError) -> Trouble {
    if error.sqlstate() == Some("XX001") {
        let reason = format!("{source} found damaged pages in its own files");
        let hint = "the source's data is corrupt: see its log for the files, and clone from another node";
        return Trouble::clone_corrupt(reason, hint).because(error);
    }
    error.into_trouble(&format!("cloning from {source} failed"), Trouble::clone_failed)
}

/// Copies the database at `source` as told. On any error the directory is left half made: no server can start on it,
/// and `discard_half_made` removes it.
pub async fn run(
    source: &Endpoint,
    options: &CloneOptions,
    progress: watch::Sender<CloneProgress>,
    cancel: CancellationToken,
) -> Result<CloneReport, Trouble> {
    let started = Instant::now();
    let shown = Shown { progress, meter: Meter::new(started) };
    shown.phase("checkpoint");
    let prepared = tokio::select! {
        prepared = prepare(source, options) => prepared?,
        () = cancel.cancelled() => return Err(cancelled()),
    };
    let copy = Copy { source, options, cancel: &cancel, shown, started };
    copy.run(prepared).await
}

/// Connections that agreed on everything, and a directory that carries our marker.
struct Prepared {
    files: ReplicationClient,
    log: ReplicationClient,
    slot: String,
    system_id: SystemId,
    segment_bytes: u64,
    opening: Opening,
    marker: Marker,
}

async fn prepare(source: &Endpoint, options: &CloneOptions) -> Result<Prepared, Trouble> {
    let failed = |error| wire_trouble(source, error);
    let mut files = ReplicationClient::connect_wire(source).await.map_err(failed)?;
    let identity = files.identify_system_wire().await.map_err(failed)?;
    check_identity(source, options, identity.system_id, files.server_major())?;
    let segment_text = files.show_wire("wal_segment_size").await.map_err(failed)?;
    let segment_bytes = parse_size(&segment_text)
        .ok_or_else(|| failed(WireError::Protocol(format!("wal_segment_size is `{segment_text}`"))))?;
    // Before the directory is touched: whoever may not log in twice need not clean up.
    let mut log = ReplicationClient::connect_wire(source).await.map_err(failed)?;
    let slot = match &options.slot {
        Some(slot) => slot.clone(),
        None => {
            let slot = temporary_slot_name();
            log.create_physical_slot_wire(&slot, true, true).await.map_err(failed)?;
            slot
        }
    };
    let owner = options.owner.as_ref();
    let made = half_made::prepare_directory(&options.data_dir, owner)?;
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let marker = Marker::new(&source.to_string(), WallTime(wall.as_millis() as i64), made);
    marker.write(&options.data_dir, owner).map_err(|error| disk_trouble(&options.data_dir, error, 0))?;
    failpoint::pass("clone.marked");
    let opening = source::begin(&mut files, options).await.map_err(failed)?;
    Ok(Prepared { files, log, slot, system_id: identity.system_id, segment_bytes, opening, marker })
}

fn check_identity(source: &Endpoint, options: &CloneOptions, system_id: SystemId, major: u32) -> Result<(), Trouble> {
    if let Some(wanted) = options.expect_system_id
        && wanted != system_id
    {
        return Err(Trouble::foreign_system(
            format!("{source} is system {system_id}, this cluster is system {wanted}"),
            "check the address: it belongs to another database cluster",
        ));
    }
    let supported = model::limits::POSTGRES_MAJOR_MIN..=model::limits::POSTGRES_MAJOR_MAX;
    if !supported.contains(&major) {
        return Err(Trouble::version_mismatch(
            format!("{source} runs PostgreSQL {major}, supported are {} to {}", supported.start(), supported.end()),
            "upgrade the source or this program",
        ));
    }
    match options.expect_major {
        Some(wanted) if wanted != major => Err(Trouble::version_mismatch(
            format!("{source} runs PostgreSQL {major}, this node has {wanted}"),
            format!("install PostgreSQL {major} on this node"),
        )),
        Some(_) | None => Ok(()),
    }
}

fn temporary_slot_name() -> String {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let count = CLONES_STARTED.fetch_add(1, Ordering::Relaxed);
    format!("stemma_clone_{}_{count}_{nanos:x}", std::process::id())
}

/// `16MB`, `1GB` as SHOW prints them.
fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match text[digits..].trim() {
        "B" | "" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    let bytes = text[..digits].parse::<u64>().ok()?.checked_mul(unit)?;
    ((1 << 20)..=(1 << 30)).contains(&bytes).then_some(bytes)
}

struct Shown {
    progress: watch::Sender<CloneProgress>,
    meter: Meter,
}

impl Shown {
    fn phase(&self, phase: &str) {
        self.progress.send_modify(|shown| shown.phase = phase.to_string());
    }

    fn bytes(&mut self, tally: &Tally, now: Instant) {
        let done = tally.done.load(Ordering::Relaxed);
        if let Some(rate) = self.meter.note(now, done) {
            self.progress.send_modify(|shown| {
                shown.done_bytes = done;
                shown.total_bytes = tally.total.load(Ordering::Relaxed).max(done);
                shown.rate_bytes_per_s = rate;
            });
        }
    }

    /// All files are here: the estimate gives way to the truth.
    fn all_bytes(&self, tally: &Tally) {
        let done = tally.done.load(Ordering::Relaxed);
        self.progress.send_modify(|shown| (shown.done_bytes, shown.total_bytes) = (done, done));
    }
}

struct Copy<'a> {
    source: &'a Endpoint,
    options: &'a CloneOptions,
    cancel: &'a CancellationToken,
    shown: Shown,
    started: Instant,
}

type LogTask = JoinHandle<Result<Lsn, WalError>>;

impl Copy<'_> {
    async fn run(mut self, prepared: Prepared) -> Result<CloneReport, Trouble> {
        let Prepared { mut files, log, slot, system_id, segment_bytes, opening, mut marker } = prepared;
        let options = self.options;
        let spaces = place_spaces(&options.data_dir, options.tablespace_root.as_deref(), &opening.spaces)?;
        check_space(options, &opening, &spaces, LOG_SEGMENTS_RESERVED * segment_bytes)?;
        let tally = Arc::new(Tally::default());
        let total = opening.base_bytes + opening.spaces.iter().map(|space| space.bytes).sum::<u64>();
        tally.total.store(total, Ordering::Relaxed);
        let plan =
            Plan { data_dir: options.data_dir.clone(), owner: options.owner.clone(), fsync: options.fsync, system_id };
        let target = Target::open(plan, spaces, &mut marker, Arc::clone(&tally))?;
        let (end_known, end) = watch::channel(None);
        let request = WalRequest { slot: Some(slot), start: opening.start, timeline: opening.timeline };
        let wal_target = WalTarget {
            directory: options.data_dir.join("pg_wal"),
            owner: options.owner.clone(),
            fsync: options.fsync,
            segment_bytes,
        };
        let mut log: LogTask = tokio::spawn(wal::stream(log, request, wal_target, end));
        let copied = self.copy(&mut files, &opening, target, &tally, &mut log, end_known).await;
        let (target, log_end, end, timeline) = match copied {
            Ok(copied) => copied,
            Err(trouble) => {
                give_up(log).await;
                return Err(trouble);
            }
        };
        files.close().await;
        failpoint::pass("clone.copied");
        self.shown.phase("verify");
        let log_start = Lsn(opening.start.0 - opening.start.0 % segment_bytes);
        let (cancel, timelines) = (self.cancel.clone(), (opening.timeline, timeline));
        let progress = self.shown.progress.clone();
        let finish = tokio::task::spawn_blocking(move || {
            let proved = target.prove(log_start, log_end, timelines)?;
            failpoint::pass("clone.proved");
            progress.send_modify(|shown| shown.phase = "sync".to_string());
            target.complete(&cancel).map(|()| proved)
        });
        let proved = finish.await.unwrap_or_else(|panic| Err(defect(panic)))?;
        Ok(CloneReport {
            bytes: tally.done.load(Ordering::Relaxed),
            seconds: self.started.elapsed().as_secs_f64(),
            start: opening.start,
            end,
            timeline,
            files: proved.files,
            verified_files: proved.verified_files,
        })
    }

    /// Brings everything here; answers when files and log are complete.
    async fn copy(
        &mut self,
        files: &mut ReplicationClient,
        opening: &Opening,
        target: Target,
        tally: &Tally,
        log: &mut LogTask,
        end_known: watch::Sender<Option<Lsn>>,
    ) -> Result<(Target, Lsn, Lsn, Timeline), Trouble> {
        self.shown.phase("copy");
        let (orders, inbox) = mpsc::channel(QUEUE_MAX);
        let disk = tokio::task::spawn_blocking(move || target.run(inbox));
        let received = self.receive(files, opening, tally, log, &orders).await;
        drop(orders);
        let written = disk.await.unwrap_or_else(|panic| Err(defect(panic)));
        let (end, timeline) = match (received, written.as_ref()) {
            // A queue closed by the disk side: its own trouble is the cause.
            (Err(Stopped::DiskSide), Err(trouble)) => return Err(trouble.clone()),
            (Err(Stopped::DiskSide), Ok(_)) => return Err(defect("the disk side left early")),
            (Err(Stopped::Because(trouble)), _) => return Err(*trouble),
            (Ok(end), _) => end,
        };
        let target = written?;
        self.shown.all_bytes(tally);
        self.shown.phase("log");
        // A receiver that is gone has ended already; its result is read below.
        let _ = end_known.send(Some(end));
        let log_end = tokio::select! {
            ended = &mut *log => self.log_ended(ended)?,
            () = self.cancel.cancelled() => return Err(cancelled()),
        };
        Ok((target, log_end, end, timeline))
    }

    async fn receive(
        &mut self,
        files: &mut ReplicationClient,
        opening: &Opening,
        tally: &Tally,
        log: &mut LogTask,
        orders: &mpsc::Sender<Vec<Event>>,
    ) -> Result<(Lsn, Timeline), Stopped> {
        let failed = |error| Stopped::Because(Box::new(wire_trouble(self.source, error)));
        let rate = self.options.rate_bytes_per_s;
        let own_brake = if source::server_keeps_rate(rate) { 0 } else { rate };
        let mut brake = Brake::new(own_brake, Instant::now());
        let mut decoder = Decoder::new(files.server_major(), opening);
        loop {
            let mut frame = tokio::select! {
                frame = files.connection.next() => Some(frame.map_err(failed)?),
                ended = &mut *log => return Err(Stopped::Because(Box::new(self.log_broke(ended)))),
                () = self.cancel.cancelled() => return Err(Stopped::Because(Box::new(cancelled()))),
            };
            let (mut batch, mut bytes, mut end) = (Vec::with_capacity(BATCH_EVENTS_MAX), 0, None);
            while let Some(next) = frame {
                if let Some(event) = decoder.on_frame(next).map_err(failed)? {
                    match &event {
                        Event::Data(data) => bytes += data.len() as u64,
                        Event::End(at, timeline) => end = Some((*at, *timeline)),
                        Event::Archive(_) | Event::ManifestBegins | Event::Manifest(_) => {}
                    }
                    batch.push(event);
                }
                let more = end.is_none() && batch.len() < BATCH_EVENTS_MAX;
                frame = if more { files.connection.next_buffered().map_err(failed)? } else { None };
            }
            tokio::select! {
                sent = orders.send(batch) => sent.map_err(|_| Stopped::DiskSide)?,
                () = self.cancel.cancelled() => return Err(Stopped::Because(Box::new(cancelled()))),
            }
            failpoint::pass("clone.copying");
            tally.done.fetch_add(bytes, Ordering::Relaxed);
            let now = Instant::now();
            self.shown.bytes(tally, now);
            if let Some(end) = end {
                return Ok(end);
            }
            if let Some(until) = brake.after(bytes, now) {
                tokio::select! {
                    () = tokio::time::sleep_until(until.into()) => {}
                    () = self.cancel.cancelled() => return Err(Stopped::Because(Box::new(cancelled()))),
                }
            }
        }
    }

    fn log_ended(&self, ended: Result<Result<Lsn, WalError>, tokio::task::JoinError>) -> Result<Lsn, Trouble> {
        match ended {
            Ok(Ok(position)) => Ok(position),
            Ok(Err(WalError::Wire(error))) => {
                Err(wire_trouble(self.source, error).because("while streaming the log written meanwhile"))
            }
            Ok(Err(WalError::Disk { path, error })) => Err(disk_trouble(&path, error, 0)),
            Err(panic) => Err(defect(panic)),
        }
    }

    /// The log stream never ends well before it is told to.
    fn log_broke(&self, ended: Result<Result<Lsn, WalError>, tokio::task::JoinError>) -> Trouble {
        match self.log_ended(ended) {
            Err(trouble) => trouble,
            Ok(position) => defect(format!("the log stream ended at {position} on its own")),
        }
    }
}

/// Why receiving stopped.
enum Stopped {
    /// The disk side hung up; it knows why.
    DiskSide,
    /// For this reason.
    Because(Box<Trouble>),
}

fn defect(detail: impl std::fmt::Display) -> Trouble {
    Trouble::internal("the clone stopped in a way it never should", "report this").because(detail)
}

/// Waits for a log stream that has lost its purpose: nothing may write into the directory once we have returned.
async fn give_up(log: LogTask) {
    let abort = log.abort_handle();
    if !log.is_finished() && tokio::time::timeout(GIVE_UP_PATIENCE, log).await.is_err() {
        abort.abort();
    }
}

/// Refuses before the first byte when the estimate does not fit; several places may share one file system.
fn check_space(options: &CloneOptions, opening: &Opening, spaces: &[Space], log_bytes: u64) -> Result<(), Trouble> {
    let mut wanted: BTreeMap<u64, (u64, PathBuf)> = BTreeMap::new();
    let mut add = |path: &Path, bytes: u64| {
        let existing = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let device = std::fs::metadata(existing).map_err(|error| disk_trouble(path, error, bytes))?.dev();
        wanted.entry(device).or_insert_with(|| (0, existing.to_path_buf())).0 += bytes;
        Ok::<(), Trouble>(())
    };
    add(&options.data_dir, opening.base_bytes + log_bytes)?;
    for (space, told) in spaces.iter().zip(&opening.spaces) {
        add(&space.path, told.bytes)?;
    }
    for (needed, path) in wanted.into_values() {
        let free = free_bytes(&path).map_err(|error| disk_trouble(&path, error, needed))?;
        if free < needed {
            return Err(no_space(&path, needed, free));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_sizes_are_read_as_the_server_prints_them() {
        for (text, bytes) in
            [("16MB", Some(16 << 20)), ("1GB", Some(1 << 30)), ("1024kB", Some(1 << 20)), ("x", None), ("0MB", None)]
        {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }
}
