//! Makes a copy durable without a wait for each of its files: large pieces are pushed to disk while the rest still
//! comes, and one `syncfs` per file system at the end covers everything.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// A file is pushed to disk each time so much of it has been written.
const PUSH_BYTES: u64 = 32 << 20;
/// Pushes that may wait; when the disk is slower than this, the rest is left to the end.
const QUEUE_MAX: usize = 4;
/// From this kernel on, `syncfs` reports errors of earlier write-back.
const KERNEL_REPORTING_ERRORS: (u32, u32) = (5, 8);

/// Pushes files to disk.
pub struct Syncer {
    worker: Option<(SyncSender<File>, JoinHandle<io::Result<()>>)>,
    /// One directory per file system, opened before the first byte: errors are reported from the opening on.
    systems: BTreeMap<u64, File>,
    roots: Vec<std::path::PathBuf>,
}

impl Syncer {
    /// For everything beneath `data_dir` and the other roots. Does nothing at all unless `enabled`.
    pub fn start<'a>(enabled: bool, data_dir: &'a Path, more: impl Iterator<Item = &'a Path>) -> io::Result<Syncer> {
        let mut syncer = Syncer { worker: None, systems: BTreeMap::new(), roots: Vec::new() };
        if !enabled {
            return Ok(syncer);
        }
        for root in std::iter::once(data_dir).chain(more.filter(|path| path.exists())) {
            let directory = File::open(root)?;
            syncer.systems.entry(directory.metadata()?.dev()).or_insert(directory);
            syncer.roots.push(root.to_path_buf());
        }
        let (sender, files) = sync_channel(QUEUE_MAX);
        let worker = std::thread::Builder::new().name("clone-sync".to_string()).spawn(move || push(files))?;
        syncer.worker = Some((sender, worker));
        Ok(syncer)
    }

    /// Whether a file with so much unsynced content should be pushed now.
    pub fn wants(&self, unsynced: u64) -> bool {
        self.worker.is_some() && unsynced >= PUSH_BYTES
    }

    /// Begins to push what has been written of `file`, unless too many wait already.
    pub fn begin(&self, file: &File) {
        if let Some((sender, _)) = &self.worker
            && let Ok(handle) = file.try_clone()
        {
            // A full queue is decided here: the end covers it.
            let _ = sender.try_send(handle);
        }
    }

    /// Waits until everything is on disk.
    pub fn finish(self, data_dir: &Path) -> io::Result<()> {
        let Some((sender, worker)) = self.worker else { return Ok(()) };
        drop(sender);
        worker.join().map_err(|_| io::Error::other("the sync thread died"))??;
        if kernel_version() < KERNEL_REPORTING_ERRORS {
            // Here syncfs would hide a failed write; every file is asked for itself.
            return self.roots.iter().try_for_each(|root| sync_tree(root));
        }
        for directory in self.systems.values() {
            rustix::fs::syncfs(directory)?;
        }
        File::open(data_dir)?.sync_all()
    }
}

fn push(files: Receiver<File>) -> io::Result<()> {
    files.into_iter().try_for_each(|file| file.sync_data())
}

fn kernel_version() -> (u32, u32) {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn sync_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_disabled_syncer_wants_nothing_and_a_running_one_finishes() {
        let root = tempfile::tempdir().expect("temporary directory");
        let off = Syncer::start(false, root.path(), std::iter::empty()).expect("started");
        assert!(!off.wants(u64::MAX));
        off.finish(root.path()).expect("nothing to do");
        let on = Syncer::start(true, root.path(), std::iter::empty()).expect("started");
        assert!(on.wants(PUSH_BYTES) && !on.wants(PUSH_BYTES - 1));
        let mut file = File::create(root.path().join("x")).expect("made");
        file.write_all(b"x").expect("written");
        on.begin(&file);
        on.finish(root.path()).expect("synced");
        sync_tree(root.path()).expect("synced one by one");
        assert!(kernel_version() > (2, 0));
    }
}
