//! The marker that says "an unfinished clone of ours is here", and the removal of such a directory.

use crate::os_user::OsUser;
use model::{Trouble, WallTime};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown, fchown};
use std::path::{Path, PathBuf};

/// Name of the marker in the data directory.
pub const MARKER: &str = "stemma.clone";
/// The marker while it is written.
const MARKER_NEW: &str = "stemma.clone.new";
/// Proof that the file is ours and not one of the user's.
const PROOF: &str = "unfinished base backup of stemma";

/// What the marker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Always the same words.
    what: String,
    /// Copied from here, `host:port`.
    pub source: String,
    /// When it began.
    pub started: WallTime,
    /// Whether the data directory itself was made by us.
    pub data_dir_made: bool,
    /// Tablespace directories that we fill.
    pub tablespaces: Vec<MarkedSpace>,
}

/// A tablespace directory named in the marker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkedSpace {
    /// Where it is.
    pub path: PathBuf,
    /// Whether the directory itself was made by us.
    pub made: bool,
}

impl Marker {
    /// Of a clone that has just begun.
    pub fn new(source: &str, started: WallTime, data_dir_made: bool) -> Marker {
        let source = source.to_string();
        Marker { what: PROOF.to_string(), source, started, data_dir_made, tablespaces: Vec::new() }
    }

    /// Writes it durably; a crash leaves the old one or the new one.
    pub fn write(&self, data_dir: &Path, owner: Option<&OsUser>) -> io::Result<()> {
        let (new, marker) = (data_dir.join(MARKER_NEW), data_dir.join(MARKER));
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        if let Some(owner) = owner {
            fchown(&file, Some(owner.uid), Some(owner.gid))?;
        }
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.sync_all()?;
        failpoint::pass("clone.marker-begun");
        fs::rename(&new, &marker)?;
        File::open(data_dir)?.sync_all()
    }

    /// The marker of this directory, if it holds one of ours.
    pub fn read(data_dir: &Path) -> io::Result<Option<Marker>> {
        let bytes = match fs::read(data_dir.join(MARKER)) {
            Ok(bytes) => bytes,
            Err(error) if absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let marker = serde_json::from_slice::<Marker>(&bytes).ok();
        Ok(marker.filter(|marker| marker.what == PROOF))
    }
}

/// Turns a complete data directory into a half-made one, so that `discard_half_made` removes it and no server of ours
/// starts on it, whenever the removal is cut off. Tablespaces that it links to are removed with it.
pub fn mark_for_removal(data_dir: &Path, owner: Option<&OsUser>, now: WallTime) -> Result<(), Trouble> {
    let failed = |error: io::Error| {
        Trouble::directory_unfit(format!("{} cannot be marked for removal", data_dir.display()), "see the cause")
            .because(error)
    };
    let mut marker = Marker::new("removal", now, false);
    let links = match fs::read_dir(data_dir.join("pg_tblspc")) {
        Ok(links) => links.collect::<io::Result<Vec<_>>>().map_err(failed)?,
        Err(error) if absent(&error) => Vec::new(),
        Err(error) => return Err(failed(error)),
    };
    for link in links {
        if link.file_type().map_err(failed)?.is_symlink() {
            let path = fs::read_link(link.path()).map_err(failed)?;
            marker.tablespaces.push(MarkedSpace { path, made: false });
        }
    }
    marker.write(data_dir, owner).map_err(failed)
}

fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Makes `path` a directory only its owner may enter; it may exist already if it is empty. Answers whether it was made.
pub fn prepare_directory(path: &Path, owner: Option<&OsUser>) -> Result<bool, Trouble> {
    let unfit = |reason: String, hint: &str| Trouble::directory_unfit(reason, hint);
    let shown = path.display();
    let made = match fs::read_dir(path) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(unfit(
                    format!("{shown} is not empty"),
                    "give an empty directory; what an interrupted clone left must be discarded first",
                ));
            }
            false
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            let make = || {
                fs::create_dir_all(parent)?;
                fs::DirBuilder::new().mode(0o700).create(path)
            };
            make().map_err(|error| unfit(format!("{shown} cannot be made"), "check its parent").because(error))?;
            true
        }
        Err(error) => return Err(unfit(format!("{shown} cannot be read"), "check what it is").because(error)),
    };
    let own = || {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        match owner {
            Some(owner) => chown(path, Some(owner.uid), Some(owner.gid)),
            None => Ok(()),
        }
    };
    own().map_err(|error| unfit(format!("{shown} cannot be given to its owner"), "run as root").because(error))?;
    Ok(made)
}

/// Removes what an interrupted clone left in `data_dir` and in the tablespaces its marker names. Answers false, and
/// touches nothing, when there is no marker of ours. The marker goes last, so that this can be interrupted as well.
///
/// With `tablespace_root` given, only tablespaces directly beneath it are removed.
pub fn discard_half_made(data_dir: &Path, tablespace_root: Option<&Path>) -> Result<bool, Trouble> {
    let failed = |path: &Path, error: io::Error| {
        Trouble::directory_unfit(format!("cannot remove the half-made copy in {}", path.display()), "see the cause")
            .because(error)
    };
    // A lock file alone says nothing: a server that was killed leaves its own.
    let nobody_works_here = || {
        let living = crate::process::server_processes(data_dir);
        if living.is_empty() {
            return Ok(());
        }
        let reason = format!("processes {living:?} still work in {}", data_dir.display());
        Err(Trouble::directory_unfit(reason, "they end by themselves, or end them"))
    };
    let mut found = Marker::read(data_dir).map_err(|error| failed(data_dir, error))?;
    if found.is_none() && crate::rewind::mark::is_set(data_dir) {
        // What a rewind left is neither the old database nor a copy of the new one. The tool itself may live on.
        nobody_works_here()?;
        mark_for_removal(data_dir, None, WallTime(0))?;
        found = Marker::read(data_dir).map_err(|error| failed(data_dir, error))?;
    }
    let Some(marker) = found else {
        return discard_unborn(data_dir).map_err(|error| failed(data_dir, error));
    };
    // The marker inside speaks for both from here on; one left beside would outlive the directory.
    crate::rewind::mark::clear(data_dir)?;
    nobody_works_here()?;
    for space in &marker.tablespaces {
        let plain = space.path.is_absolute() && crate::untar::safe_path(&space.path.to_string_lossy()[1..]).is_ok();
        let beneath = tablespace_root.is_none_or(|root| space.path.parent() == Some(root));
        if !plain || !beneath || space.path.components().count() < 3 {
            let reason = format!("the marker names the tablespace {}, which is not ours", space.path.display());
            return Err(Trouble::directory_unfit(reason, "look at the directory by hand"));
        }
        remove_content(&space.path, None).map_err(|error| failed(&space.path, error))?;
        if space.made {
            remove_empty(&space.path).map_err(|error| failed(&space.path, error))?;
        }
    }
    failpoint::pass("discard.begun");
    let finish = || {
        remove_content(data_dir, Some(MARKER))?;
        failpoint::pass("discard.emptied");
        fs::remove_file(data_dir.join(MARKER))?;
        if marker.data_dir_made { remove_empty(data_dir) } else { Ok(()) }
    };
    finish().map_err(|error| failed(data_dir, error))?;
    Ok(true)
}

/// A clone killed while it wrote its very first marker left only that.
fn discard_unborn(data_dir: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(data_dir) {
        Ok(entries) => entries,
        Err(error) if absent(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<io::Result<Vec<_>>>()?;
    if names.len() != 1 || names[0] != MARKER_NEW {
        return Ok(false);
    }
    fs::remove_file(data_dir.join(MARKER_NEW))?;
    Ok(true)
}

fn remove_empty(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if !absent(&error) => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Empties a directory; links in it are removed, never followed.
fn remove_content(path: &Path, keep: Option<&str>) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if absent(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if keep.is_some_and(|keep| entry.file_name() == keep) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_with_our_marker_is_removed() {
        let root = tempfile::tempdir().expect("temporary directory");
        let dir = root.path().join("data");
        fs::create_dir(&dir).expect("made");
        fs::write(dir.join("precious"), "x").expect("written");
        assert_eq!(discard_half_made(&dir, None), Ok(false));
        fs::write(dir.join(MARKER), "{\"what\":\"something else\"}").expect("written");
        assert_eq!(discard_half_made(&dir, None), Ok(false));
        assert!(dir.join("precious").exists());

        let space = root.path().join("spaces/16384");
        fs::create_dir_all(space.join("PG_15/1")).expect("made");
        std::os::unix::fs::symlink(root.path(), dir.join("link")).expect("linked");
        let mut marker = Marker::new("h:1", WallTime(0), true);
        marker.tablespaces.push(MarkedSpace { path: space.clone(), made: true });
        marker.write(&dir, None).expect("written");
        assert!(discard_half_made(&dir, Some(Path::new("/elsewhere"))).is_err(), "a tablespace outside of the root");
        assert!(space.exists());
        assert_eq!(discard_half_made(&dir, Some(&root.path().join("spaces"))), Ok(true));
        assert!(!dir.exists() && !space.exists() && root.path().join("spaces").exists());
        assert_eq!(discard_half_made(&dir, None), Ok(false), "nothing is there any more");
    }

    #[test]
    fn a_directory_that_was_there_before_stays_and_a_running_server_is_left_alone() {
        let root = tempfile::tempdir().expect("temporary directory");
        Marker::new("h:1", WallTime(0), false).write(root.path(), None).expect("written");
        // A server is known by the name of its program.
        let programs = tempfile::tempdir().expect("temporary directory");
        let program = programs.path().join("postgres");
        fs::copy("/bin/sleep", &program).expect("copied");
        let mut working =
            std::process::Command::new(&program).arg("60").current_dir(root.path()).spawn().expect("starts");
        assert!(discard_half_made(root.path(), None).is_err());
        working.kill().expect("killed");
        working.wait().expect("gone");
        // What a killed server leaves is in nobody's way.
        fs::write(root.path().join("postmaster.pid"), "1").expect("written");
        assert_eq!(discard_half_made(root.path(), None), Ok(true));
        assert_eq!(fs::read_dir(root.path()).expect("still there").count(), 0);
    }
}
