//! The mark that says "this directory is being rewound": from its first write on a rewound directory is neither the old
//! nor the new database, though its control file still says that it was shut down in order.
//!
//! The mark lies beside the directory, since `pg_rewind` removes every file inside that the source does not have.

use crate::files::{refused, sync_dir};
use model::Trouble;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What is added to the name of the data directory.
const SUFFIX: &str = ".stemma-rewind";

#[derive(Serialize, Deserialize)]
struct Mark {
    /// The directory's identity: a mark does not apply to another directory that was put in its place.
    device: u64,
    inode: u64,
    /// When the directory was made, where the file system tells: numbers of removed directories are given anew.
    made: Option<SystemTime>,
    source: String,
}

impl Mark {
    fn of(data_dir: &Path, source: &str) -> io::Result<Mark> {
        let found = fs::metadata(data_dir)?;
        let made = found.created().ok();
        Ok(Mark { device: found.dev(), inode: found.ino(), made, source: source.to_owned() })
    }

    fn applies_to(&self, data_dir: &Path) -> bool {
        Mark::of(data_dir, "")
            .is_ok_and(|now| (now.device, now.inode, now.made) == (self.device, self.inode, self.made))
    }
}

fn place(data_dir: &Path) -> Option<PathBuf> {
    let whole = std::path::absolute(data_dir).ok()?;
    // The directory itself, where the path given is a link.
    let real = fs::canonicalize(&whole).unwrap_or(whole);
    let mut name = real.file_name()?.to_owned();
    name.push(SUFFIX);
    Some(real.with_file_name(name))
}

fn unplaced(data_dir: &Path) -> Trouble {
    Trouble::directory_unfit(format!("{} has no directory above it", data_dir.display()), "choose another data_dir")
}

/// Marks the directory, durably.
pub(crate) fn set(data_dir: &Path, source: &str) -> Result<(), Trouble> {
    let path = place(data_dir).ok_or_else(|| unplaced(data_dir))?;
    let mark = Mark::of(data_dir, source).map_err(|error| refused("examine", data_dir, &error))?;
    let text =
        serde_json::to_string(&mark).map_err(|error| Trouble::internal("a mark", "report this").because(error))?;
    let new = path.with_extension("stemma-rewind-new");
    crate::files::remove(&new)?;
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    let written = options.open(&new).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| refused("write", &new, &error))?;
    fs::rename(&new, &path).map_err(|error| refused("replace", &path, &error))?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Whether the directory is being rewound, or was when that was cut off.
pub(crate) fn is_set(data_dir: &Path) -> bool {
    let Some(text) = place(data_dir).and_then(|path| fs::read_to_string(path).ok()) else { return false };
    match serde_json::from_str::<Mark>(&text) {
        Ok(mark) => mark.applies_to(data_dir),
        // Written in one step, so this is somebody's hand. It was there for a reason.
        Err(_) => true,
    }
}

/// Removes the mark.
pub(crate) fn clear(data_dir: &Path) -> Result<(), Trouble> {
    let path = place(data_dir).ok_or_else(|| unplaced(data_dir))?;
    crate::files::remove(&path).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_counts_for_the_directory_that_was_marked_and_for_no_other() {
        let root = tempfile::tempdir().expect("tempdir");
        let data = root.path().join("data");
        fs::create_dir(&data).expect("made");
        assert!(!is_set(&data));
        set(&data, "n2:5432").expect("marked");
        set(&data, "n3:5432").expect("marked again");
        assert!(is_set(&data));
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&data, &link).expect("linked");
        assert!(is_set(&link), "whatever way one comes");
        // The file system may give the number of the removed directory to the new one.
        fs::remove_dir(&data).expect("removed");
        fs::create_dir(&data).expect("restored by hand");
        assert!(!is_set(&data));
        set(&data, "n2:5432").expect("marked");
        clear(&data).expect("cleared");
        clear(&data).expect("nothing to clear");
        assert!(!is_set(&data));
    }
}
