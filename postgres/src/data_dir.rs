//! What a data directory holds, found out before anything is done to it.

use crate::control_file::{ControlFile, read_control_file};
use crate::files::refused;
use crate::os_user::OsUser;
use model::Trouble;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A directory of this name within a data directory that is being initialised.
pub const INITDB_STAGING: &str = "stemma.initdb";
/// A file of this name within a data directory that is being copied.
pub const CLONE_MARKER: &str = "stemma.clone";
/// That file while it is written for the first time. Alone in a directory it is all that a killed clone left.
const CLONE_MARKER_NEW: &str = "stemma.clone.new";

/// What is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataDir {
    /// No directory.
    Missing,
    /// A directory with nothing in it.
    Empty,
    /// A complete database.
    Cluster(ControlFile),
    /// What an interrupted initialisation or copy left.
    HalfMade {
        /// `initdb`, `clone`, `rewind`, or what is missing.
        what: String,
    },
}

/// Looks at a data directory; refuses one that is not ours to use (ST1202).
pub fn check_data_dir(dir: &Path, user: Option<&OsUser>) -> Result<DataDir, Trouble> {
    let found = match std::fs::metadata(dir) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(DataDir::Missing),
        Err(error) => return Err(refused("examine", dir, &error)),
    };
    let unfit = |reason: String, hint: String| Err(Trouble::directory_unfit(reason, hint));
    let shown = dir.display();
    if !found.is_dir() {
        return unfit(format!("{shown} is not a directory"), "choose another data_dir".into());
    }
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(|error| refused("read", dir, &error))? {
        names.insert(entry.map_err(|error| refused("read", dir, &error))?.file_name().to_string_lossy().into_owned());
    }
    let we = nix::unistd::Uid::effective();
    let wanted = user.map_or(we.as_raw(), |user| user.uid);
    // An empty directory can be given to the server's user by root; a filled one may be somebody else's on purpose.
    if found.uid() != wanted && !(names.is_empty() && we.is_root()) {
        let name = user.map_or_else(|| "the user who runs the server".to_owned(), |user| format!("`{}`", user.name));
        return unfit(
            format!("{shown} belongs to user id {}, not to {name}", found.uid()),
            format!("chown -R {} {shown}", user.map_or_else(|| wanted.to_string(), |user| user.name.clone())),
        );
    }
    if names.is_empty() {
        return Ok(DataDir::Empty);
    }
    if crate::rewind::mark::is_set(dir) {
        return Ok(DataDir::HalfMade { what: "rewind".into() });
    }
    if names.contains(CLONE_MARKER) || (names.len() == 1 && names.contains(CLONE_MARKER_NEW)) {
        return Ok(DataDir::HalfMade { what: "clone".into() });
    }
    if !names.contains("PG_VERSION") {
        if names.contains(INITDB_STAGING) {
            return Ok(DataDir::HalfMade { what: "initdb".into() });
        }
        let some: Vec<&str> = names.iter().take(3).map(String::as_str).collect();
        return unfit(
            format!("{shown} is not empty and holds no database (found {})", some.join(", ")),
            "choose an empty directory, or a subdirectory of a mount point".into(),
        );
    }
    // The server itself refuses anything beyond read access for its group.
    if found.mode() & 0o027 != 0 {
        let mode = found.mode() & 0o777;
        return unfit(format!("{shown} is open to other users (mode {mode:04o})"), format!("chmod 0700 {shown}"));
    }
    if !dir.join("global/pg_control").exists() {
        return Ok(DataDir::HalfMade { what: "without global/pg_control".into() });
    }
    read_control_file(dir).map(DataDir::Cluster)
}
