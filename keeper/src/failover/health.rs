//! Is the primary's server well? A process that lives proves little: a stopped postmaster lets nobody new in while old
//! sessions go on, and a hung disk lets everybody wait. So somebody new knocks at the server's socket now and then, and
//! a thread of its own syncs a small file on the device of the log. Both run apart from heartbeats and driver.

use super::Council;
use crate::clock;
use crate::local::Local;
use model::{Millis, Moment};
use postgres::ServerSpec;
use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

/// How often somebody knocks.
const KNOCK_INTERVAL: Duration = Duration::from_millis(700);
/// How long the answer may take before it counts as none.
const KNOCK_DEADLINE: Duration = Duration::from_millis(700);
/// How often the disk is tried.
const SYNC_INTERVAL: Duration = Duration::from_millis(1_000);
/// A sync that takes longer says that the disk hangs. Ordinary ones wait behind checkpoints for a second and more.
const SYNC_DEADLINE: Millis = Millis(5_000);
/// The file on the device of the log. Base backups and rewinds leave names like this out.
const SYNC_FILE: &str = "pgsql_tmp_stemma";
/// `SSLRequest` (PostgreSQL, "Message Formats"): answered with one byte by whatever process the postmaster forks.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Watches the server while this node leads, until `stop`.
pub(crate) async fn run(council: Arc<Council>, local: Arc<Local>, spec: ServerSpec, stop: CancellationToken) {
    let leads = Arc::new(AtomicBool::new(false));
    let disk = Arc::new(Disk::default());
    let thread = {
        let (disk, leads, stop) = (disk.clone(), leads.clone(), stop.clone());
        let (directory, owner) = (spec.data_dir.join("pg_wal"), spec.user.as_ref().map(|user| (user.uid, user.gid)));
        std::thread::Builder::new().name("disk-probe".into()).spawn(move || disk.run(&directory, owner, &leads, &stop))
    };
    if let Err(error) = thread {
        tracing::warn!(%error, "the disk is not watched");
    }
    let mut silent_since: Option<Moment> = None;
    loop {
        let serving = council.serves();
        leads.store(serving, Ordering::Relaxed);
        let began = clock::now();
        if serving && knock(&socket(&spec)).await.is_none() {
            silent_since.get_or_insert(began);
        } else {
            silent_since = None;
        }
        let door = silent_since.map(|since| (since, "letting new clients in"));
        // A server that stopped or moved meanwhile is judged by others.
        local.set_stalled(door.or_else(|| disk.hangs()).filter(|_| serving));
        if door.is_some() {
            local.drive_now.notify_one();
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(KNOCK_INTERVAL.saturating_sub(Duration::from_millis(clock::now().since(began).0))) => {}
        }
    }
}

fn socket(spec: &ServerSpec) -> PathBuf {
    let found = postgres::whereabouts(&spec.data_dir);
    let directory =
        found.as_ref().and_then(|found| found.socket_dir.clone()).unwrap_or_else(|| spec.socket_dir.clone());
    directory.join(format!(".s.PGSQL.{}", found.map_or(spec.port, |found| found.port)))
}

async fn knock(socket: &Path) -> Option<()> {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await.ok()?;
        stream.write_all(&SSL_REQUEST).await.ok()?;
        stream.read_u8().await.ok().map(|_| ())
    };
    tokio::time::timeout(KNOCK_DEADLINE, asked).await.ok().flatten()
}

/// What is known of the device of the log.
#[derive(Default)]
struct Disk {
    /// When the sync that runs now was begun; 0 when none runs.
    began: AtomicU64,
}

impl Disk {
    fn run(&self, directory: &Path, owner: Option<(u32, u32)>, leads: &AtomicBool, stop: &CancellationToken) {
        let path = directory.join(SYNC_FILE);
        while !stop.is_cancelled() {
            if leads.load(Ordering::Relaxed) {
                self.began.store(clock::now().0.max(1), Ordering::Relaxed);
                // That it cannot be written says nothing about syncing: a full disk is the server's to tell.
                let _ = sync(&path, owner);
                self.began.store(0, Ordering::Relaxed);
            }
            std::thread::sleep(SYNC_INTERVAL);
        }
    }

    fn hangs(&self) -> Option<(Moment, &'static str)> {
        let began = self.began.load(Ordering::Relaxed);
        let hangs = began != 0 && clock::now().since(Moment(began)) > SYNC_DEADLINE;
        hangs.then_some((Moment(began), "its disk"))
    }
}

fn sync(path: &Path, owner: Option<(u32, u32)>) -> std::io::Result<()> {
    // Never through a link that somebody planted; in a directory of the server's user.
    let no_follow = nix::fcntl::OFlag::O_NOFOLLOW.bits();
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).custom_flags(no_follow).open(path)?;
    if let Some((user, group)) = owner {
        std::os::unix::fs::fchown(&file, Some(user), Some(group))?;
    }
    file.write_all_at(&clock::now().0.to_be_bytes(), 0)?;
    file.sync_data()
}
