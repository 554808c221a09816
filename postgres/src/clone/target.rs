//! The disk side of a clone: writes what the stream holds, proves it against the manifest, makes it durable, and only
//! then lets a server start on it. Runs on a thread of its own.

use crate::clone::half_made::{MARKER, MarkedSpace, Marker, prepare_directory};
use crate::clone::pace::Tally;
use crate::clone::source::{Event, SourceSpace};
use crate::clone::sync::Syncer;
use crate::manifest::{Algorithm, Hasher, Manifest, Received};
use crate::os_user::OsUser;
use crate::untar::{BadArchive, Entry, Kind, Sink, Untar, safe_path};
use model::{Lsn, SystemId, Timeline, Trouble};
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown, fchown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// A server finds its control file under this name only when everything else is in place.
const CONTROL: &str = "global/pg_control";
const CONTROL_HELD_BACK: &str = "global/pg_control.stemma";
/// Largest manifest accepted: about four million files.
const MANIFEST_BYTES_MAX: usize = 1 << 30;

/// A tablespace and where its files go here.
#[derive(Clone, Debug)]
pub struct Space {
    /// Its oid.
    pub oid: u32,
    /// Its directory on this machine.
    pub path: PathBuf,
    /// Whether `pg_tblspc` holds a link to it; in-place tablespaces are plain directories there.
    pub linked: bool,
}

/// Makes a trouble of a failed operation on `path`: a full disk is told apart and comes with numbers.
pub fn disk_trouble(path: &Path, error: io::Error, left: u64) -> Trouble {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    if full {
        let free = path.ancestors().find_map(|path| free_bytes(path).ok()).unwrap_or(0);
        return no_space(path, left, free).because(error);
    }
    let hint = "check the disk and the directory's permissions, then clone again";
    Trouble::clone_failed(format!("cannot write {}", path.display()), hint).because(error)
}

/// The trouble of too little space.
pub fn no_space(path: &Path, needed: u64, free: u64) -> Trouble {
    Trouble::disk_full(
        format!("no room for the copy at {}: about {needed} bytes needed, {free} bytes free", path.display()),
        "make room or choose another disk, then clone again",
    )
}

/// Bytes that may still be written beneath `path`.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Where each tablespace goes: to its own place, or below `root`.
pub fn place_spaces(data_dir: &Path, root: Option<&Path>, spaces: &[SourceSpace]) -> Result<Vec<Space>, Trouble> {
    let place = |space: &SourceSpace| {
        let in_place = space.location == format!("pg_tblspc/{}", space.oid);
        let path = match root {
            _ if in_place => data_dir.join(&space.location),
            Some(root) => root.join(space.oid.to_string()),
            None => PathBuf::from(&space.location),
        };
        // The location comes from the source: it must be a plain absolute path, and not inside of the copy.
        let plain = path.is_absolute() && safe_path(&path.to_string_lossy()[1..]).is_ok();
        if !in_place && (!plain || path.starts_with(data_dir) || data_dir.starts_with(&path)) {
            return Err(Trouble::directory_unfit(
                format!("tablespace {} cannot be placed at {}", space.oid, path.display()),
                "give tablespaces a directory of their own, outside of the data directory",
            ));
        }
        Ok(Space { oid: space.oid, path, linked: !in_place })
    };
    spaces.iter().map(place).collect()
}

/// How the copy is to be made; what `Target` needs of the options.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The data directory.
    pub data_dir: PathBuf,
    /// Owner of everything.
    pub owner: Option<OsUser>,
    /// Whether everything is synced at the end.
    pub fsync: bool,
    /// The source's identifier, held against the manifest where that has one.
    pub system_id: SystemId,
}

struct OpenFile {
    /// None for files of the source that have no place in a copy; they are read and proved all the same.
    file: Option<File>,
    path: PathBuf,
    name: String,
    size: u64,
    written: u64,
    unsynced: u64,
    hasher: Hasher,
}

/// Where the entries of the current archive go.
enum Area {
    Base,
    Space { prefix: String, path: PathBuf },
}

struct Files {
    plan: Plan,
    spaces: Vec<Space>,
    linked: HashSet<String>,
    area: Area,
    open: Option<OpenFile>,
    received: HashMap<String, Received>,
    syncer: Syncer,
    tally: Arc<Tally>,
}

/// The copy in the making.
pub struct Target {
    files: Files,
    manifest: Vec<u8>,
    ended: bool,
}

/// What was received and proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proved {
    /// Files received.
    pub files: u64,
    /// Files that matched the manifest.
    pub verified_files: u64,
}

impl Target {
    /// Makes the tablespaces' directories and those of the log. The marker must be there; it learns of the tablespaces
    /// before they are touched.
    pub fn open(plan: Plan, spaces: Vec<Space>, marker: &mut Marker, tally: Arc<Tally>) -> Result<Target, Trouble> {
        let failed = |path: &Path, error| disk_trouble(path, error, 0);
        let owner = plan.owner.as_ref();
        // Only directories seen empty are written down, and only those written down are filled: what is written down
        // may be removed.
        for space in spaces.iter().filter(|space| space.linked) {
            let made = prepare_directory(&space.path, owner)?;
            marker.tablespaces.push(MarkedSpace { path: space.path.clone(), made });
        }
        marker.write(&plan.data_dir, owner).map_err(|error| failed(&plan.data_dir, error))?;
        let syncer = Syncer::start(plan.fsync, &plan.data_dir, spaces.iter().map(|space| space.path.as_path()))
            .map_err(|error| failed(&plan.data_dir, error))?;
        let files = Files {
            linked: HashSet::new(),
            area: Area::Base,
            open: None,
            received: HashMap::new(),
            syncer,
            tally,
            spaces,
            plan,
        };
        for directory in ["pg_wal", "pg_wal/archive_status"] {
            files.make_directory(&files.plan.data_dir.join(directory))?;
        }
        Ok(Target { files, manifest: Vec::new(), ended: false })
    }

    /// Writes until the stream has ended. A queue that closes early means that the network side has given up.
    pub fn run(mut self, mut inbox: mpsc::Receiver<Vec<Event>>) -> Result<Target, Trouble> {
        let mut untar = Untar::default();
        while let Some(events) = inbox.blocking_recv() {
            for event in events {
                match event {
                    Event::Archive(archive) => {
                        untar.finish().map_err(bad_archive)?;
                        self.files.area = self.files.area_of(archive)?;
                    }
                    Event::Data(bytes) => untar.feed(&bytes, &mut self.files).map_err(Failed::into_trouble)?,
                    Event::ManifestBegins => untar.finish().map_err(bad_archive)?,
                    Event::Manifest(bytes) if self.manifest.len() + bytes.len() > MANIFEST_BYTES_MAX => {
                        return Err(corrupt("the manifest is larger than any we accept"));
                    }
                    Event::Manifest(bytes) => self.manifest.extend_from_slice(&bytes),
                    Event::End(..) => self.ended = true,
                }
            }
        }
        if self.ended { Ok(self) } else { Err(Trouble::clone_failed("the copy was given up", "clone again")) }
    }

    /// Holds what was received against the manifest, and the log streamed from `log_start` against what it asks for.
    pub fn prove(&self, log_start: Lsn, log_end: Lsn, log_timelines: (Timeline, Timeline)) -> Result<Proved, Trouble> {
        let manifest = Manifest::parse(&self.manifest).map_err(corrupt)?;
        let verified_files = manifest.verify(&self.files.received).map_err(corrupt)?;
        if let Some(told) = manifest.system_id
            && told != self.files.plan.system_id
        {
            return Err(corrupt(format!("the manifest belongs to system {told}")));
        }
        for range in &manifest.wal_ranges {
            let timelines = log_timelines.0..=log_timelines.1;
            if range.start < log_start || range.end > log_end || !timelines.contains(&range.timeline) {
                return Err(corrupt(format!("log {range:?} is needed, {log_start} to {log_end} was streamed")));
            }
        }
        for space in self.files.spaces.iter().filter(|space| space.linked) {
            if !self.files.linked.contains(&space.oid.to_string()) {
                return Err(corrupt(format!("the link of tablespace {} did not come", space.oid)));
            }
        }
        Ok(Proved { files: self.files.received.len() as u64, verified_files })
    }

    /// Makes everything durable, then puts the control file in place and takes the marker away: from here on a server
    /// may start. Until then nothing counts.
    pub fn complete(self, cancel: &CancellationToken) -> Result<(), Trouble> {
        let Target { files, manifest, .. } = self;
        let Files { plan, syncer, .. } = files;
        let data_dir = &plan.data_dir;
        let failed = |error| disk_trouble(data_dir, error, 0);
        let write_manifest = || {
            let mut file = create(&data_dir.join("backup_manifest"), plan.owner.as_ref())?;
            file.write_all(&manifest)
        };
        write_manifest().map_err(failed)?;
        syncer.finish(data_dir).map_err(failed)?;
        if cancel.is_cancelled() {
            return Err(super::cancelled());
        }
        failpoint::pass("clone.synced");
        let publish = || {
            fs::rename(data_dir.join(CONTROL_HELD_BACK), data_dir.join(CONTROL))?;
            failpoint::pass("clone.control-in-place");
            File::open(data_dir.join("global"))?.sync_all()?;
            fs::remove_file(data_dir.join(MARKER))?;
            File::open(data_dir)?.sync_all()?;
            match data_dir.parent() {
                Some(parent) => File::open(parent)?.sync_all(),
                None => Ok(()),
            }
        };
        publish().map_err(failed)
    }
}

fn corrupt(cause: impl std::fmt::Display) -> Trouble {
    Trouble::clone_corrupt(
        "the copy is not what the source says it sent",
        "clone again; check the source's memory and disk",
    )
    .because(cause)
}

fn bad_archive(bad: BadArchive) -> Trouble {
    corrupt(bad)
}

/// Why the disk side stops.
enum Failed {
    Archive(BadArchive),
    Disk(Trouble),
}

impl Failed {
    fn into_trouble(self) -> Trouble {
        match self {
            Failed::Archive(bad) => bad_archive(bad),
            Failed::Disk(trouble) => trouble,
        }
    }
}

impl From<BadArchive> for Failed {
    fn from(bad: BadArchive) -> Failed {
        Failed::Archive(bad)
    }
}

impl From<Trouble> for Failed {
    fn from(trouble: Trouble) -> Failed {
        Failed::Disk(trouble)
    }
}

fn create(path: &Path, owner: Option<&OsUser>) -> io::Result<File> {
    // create_new: never through a link, never a file twice.
    let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    if let Some(owner) = owner {
        fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(file)
}

impl Files {
    fn trouble(&self, path: &Path, error: io::Error) -> Trouble {
        disk_trouble(path, error, self.tally.left())
    }

    fn area_of(&self, archive: Option<u32>) -> Result<Area, Trouble> {
        let Some(oid) = archive else { return Ok(Area::Base) };
        let space = self.spaces.iter().find(|space| space.oid == oid);
        let space = space.ok_or_else(|| corrupt(format!("files came for a tablespace {oid} nobody named")))?;
        if !space.linked {
            for directory in [&self.plan.data_dir.join("pg_tblspc"), &space.path] {
                self.make_directory(directory)?;
            }
        }
        Ok(Area::Space { prefix: format!("pg_tblspc/{oid}/"), path: space.path.clone() })
    }

    /// The path of an entry here, and its name in the manifest.
    fn place(&self, path: &str) -> Result<(PathBuf, String), BadArchive> {
        match &self.area {
            Area::Space { prefix, path: root } => Ok((root.join(path), format!("{prefix}{path}"))),
            Area::Base => {
                let through = path.strip_prefix("pg_tblspc/").and_then(|rest| rest.split_once('/'));
                if through.is_some_and(|(oid, _)| self.linked.contains(oid)) {
                    return Err(BadArchive(format!("`{path}` leads through a link")));
                }
                // Only these two can be in our way; a server never sends them as its own.
                let name = if path == CONTROL { CONTROL_HELD_BACK } else { path };
                Ok((self.plan.data_dir.join(name), path.to_string()))
            }
        }
    }

    fn make_directory(&self, path: &Path) -> Result<(), Trouble> {
        let make = || match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && fs::symlink_metadata(path)?.is_dir() => {
                Ok(())
            }
            Err(error) => Err(error),
            Ok(()) => match &self.plan.owner {
                Some(owner) => chown(path, Some(owner.uid), Some(owner.gid)),
                None => Ok(()),
            },
        };
        make().map_err(|error| self.trouble(path, error))
    }

    fn make_link(&mut self, path: &str) -> Result<(), Failed> {
        let refused = || BadArchive(format!("`{path}` is a link that no tablespace accounts for"));
        let oid = path.strip_prefix("pg_tblspc/").ok_or_else(refused)?;
        let at_home = matches!(self.area, Area::Base);
        let space = self.spaces.iter().find(|space| space.linked && at_home && space.oid.to_string() == oid);
        let space = space.ok_or_else(refused)?;
        let here = self.plan.data_dir.join(path);
        let make = || {
            symlink(&space.path, &here)?;
            match &self.plan.owner {
                Some(owner) => lchown(&here, Some(owner.uid), Some(owner.gid)),
                None => Ok(()),
            }
        };
        make().map_err(|error| self.trouble(&here, error))?;
        self.linked.insert(oid.to_string());
        Ok(())
    }

    fn open_file(&mut self, path: &str, size: u64) -> Result<(), Failed> {
        let (here, name) = self.place(path)?;
        let ours = matches!(self.area, Area::Base) && (path == MARKER || path == CONTROL_HELD_BACK);
        let file = if ours { None } else { Some(create(&here, self.plan.owner.as_ref())) };
        let file = file.transpose().map_err(|error| self.trouble(&here, error))?;
        let hasher = Hasher::new(Algorithm::Crc32c);
        self.open = Some(OpenFile { file, path: here, name, size, written: 0, unsynced: 0, hasher });
        Ok(())
    }
}

impl Sink for Files {
    type Error = Failed;

    fn entry(&mut self, entry: Entry) -> Result<(), Failed> {
        match entry.kind {
            Kind::Directory if entry.path.is_empty() => Ok(()),
            Kind::Directory => {
                let (here, _) = self.place(&entry.path)?;
                Ok(self.make_directory(&here)?)
            }
            Kind::Symlink { .. } => self.make_link(&entry.path),
            Kind::File { size } => self.open_file(&entry.path, size),
        }
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        let open = self.open.as_mut().expect("the reader announces files before their content");
        open.hasher.update(bytes);
        if let Some(file) = &mut open.file
            && let Err(error) = file.write_all(bytes)
        {
            let path = open.path.clone();
            return Err(self.trouble(&path, error).into());
        }
        open.written += bytes.len() as u64;
        open.unsynced += bytes.len() as u64;
        if let Some(file) = &open.file
            && self.syncer.wants(open.unsynced)
        {
            self.syncer.begin(file);
            open.unsynced = 0;
        }
        Ok(())
    }

    fn end_of_file(&mut self) -> Result<(), Failed> {
        let open = self.open.take().expect("the reader announces files before they end");
        assert!(open.written == open.size, "the reader ends a file at its length");
        let received = Received { size: open.size, checksum: open.hasher.finish() };
        if self.received.insert(open.name.clone(), received).is_some() {
            return Err(BadArchive(format!("`{}` came twice", open.name)).into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::WallTime;

    fn target(root: &Path) -> Target {
        let data_dir = root.join("data");
        prepare_directory(&data_dir, None).expect("made");
        let plan = Plan { data_dir, owner: None, fsync: false, system_id: SystemId(1) };
        let spaces = vec![Space { oid: 16384, path: root.join("spaces/16384"), linked: true }];
        let mut marker = Marker::new("h:1", WallTime(0), true);
        let target = Target::open(plan, spaces, &mut marker, Arc::default()).expect("opened");
        let written = Marker::read(&root.join("data")).expect("readable").expect("ours");
        assert_eq!(written.tablespaces.len(), 1, "the marker names what is filled");
        target
    }

    fn take(files: &mut Files, path: &str, kind: Kind) -> Result<(), String> {
        let file = matches!(kind, Kind::File { .. });
        files.entry(Entry { path: path.into(), kind }).map_err(|failed| failed.into_trouble().to_string())?;
        if file {
            files.data(b"x").map_err(|failed| failed.into_trouble().to_string())?;
            files.end_of_file().map_err(|failed| failed.into_trouble().to_string())?;
        }
        Ok(())
    }

    #[test]
    fn links_lead_to_tablespaces_only_and_nothing_is_written_through_them() {
        let root = tempfile::tempdir().expect("temporary directory");
        let mut files = target(root.path()).files;
        let link = |to: &str| Kind::Symlink { target: to.into() };
        let file = || Kind::File { size: 1 };
        take(&mut files, "pg_tblspc", Kind::Directory).expect("a directory");
        for bad in ["pg_tblspc/1", "pg_tblspc/16384x", "base", "pg_wal"] {
            assert!(take(&mut files, bad, link("/etc")).is_err(), "{bad}");
        }
        take(&mut files, "pg_tblspc/16384", link("/wherever/the/source/has/it")).expect("a tablespace");
        let here = fs::read_link(root.path().join("data/pg_tblspc/16384")).expect("a link");
        assert_eq!(here, root.path().join("spaces/16384"), "the source does not say where links lead");
        let through = take(&mut files, "pg_tblspc/16384/x", file()).expect_err("refused");
        assert!(through.contains("leads through a link"), "{through}");
        files.area = files.area_of(Some(16384)).unwrap_or_else(|trouble| panic!("{trouble}"));
        take(&mut files, "PG_15/x", Kind::File { size: 1 }).expect_err("its directory did not come");
        files.open = None;
        take(&mut files, "PG_15", Kind::Directory).expect("a directory");
        take(&mut files, "PG_15/x", file()).expect("a file");
        assert!(files.received.contains_key("pg_tblspc/16384/PG_15/x"), "named as in the manifest");
        assert!(files.area_of(Some(1)).is_err(), "a tablespace nobody named");
    }

    #[test]
    fn the_control_file_is_held_back_and_the_marker_cannot_be_overwritten() {
        let root = tempfile::tempdir().expect("temporary directory");
        let mut files = target(root.path()).files;
        let data_dir = root.path().join("data");
        take(&mut files, "global", Kind::Directory).expect("a directory");
        for path in [CONTROL, MARKER] {
            take(&mut files, path, Kind::File { size: 1 }).expect("taken");
            assert!(files.received.contains_key(path));
        }
        assert!(data_dir.join(CONTROL_HELD_BACK).exists() && !data_dir.join(CONTROL).exists());
        assert!(Marker::read(&data_dir).expect("readable").is_some(), "the source's file did not replace ours");
        assert!(take(&mut files, CONTROL, Kind::File { size: 1 }).is_err(), "twice");
    }

    #[test]
    fn tablespaces_that_would_lie_in_the_copy_or_nowhere_are_refused() {
        let place = |location: &str, root: Option<&Path>| {
            let space = SourceSpace { oid: 7, location: location.into(), bytes: 0 };
            place_spaces(Path::new("/d/data"), root, &[space]).map(|spaces| spaces[0].path.clone())
        };
        for bad in ["/d/data/x", "/d", "relative", "/a/../d", "pg_tblspc/8", ""] {
            assert!(place(bad, None).is_err(), "{bad}");
        }
        assert_eq!(place("/a/b", None), Ok("/a/b".into()));
        assert_eq!(place("/a/b", Some(Path::new("/r"))), Ok("/r/7".into()));
        assert_eq!(place("pg_tblspc/7", Some(Path::new("/r"))), Ok("/d/data/pg_tblspc/7".into()));
    }
}
