//! Small files that must be whole or absent after a power cut: written beside, fsynced, renamed, directory fsynced.

use model::Trouble;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The operating system's refusal as trouble.
pub(crate) fn os(what: &str, path: &Path, error: &std::io::Error) -> Trouble {
    Trouble::os(
        format!("cannot {what} {}: {error}", path.display()),
        "check that the directory exists, is writable for this user and has free space",
    )
}

/// Creates `path` anew with `mode` and makes its content durable.
pub(crate) fn write_new(path: &Path, mode: u32, owner: Option<(u32, u32)>, content: &[u8]) -> Result<(), Trouble> {
    let fail = |error: std::io::Error| os("write", path, &error);
    // `create_new`: a link that someone planted under this name must not be followed.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(fail)?;
    if let Some((user, group)) = owner {
        std::os::unix::fs::fchown(&file, Some(user), Some(group)).map_err(fail)?;
    }
    file.write_all(content).map_err(fail)?;
    file.sync_all().map_err(fail)
}

/// Replaces `path` in one step.
pub(crate) fn replace(path: &Path, mode: u32, owner: Option<(u32, u32)>, content: &[u8]) -> Result<(), Trouble> {
    let parent = path.parent().expect("callers give a file in a directory");
    let name = path.file_name().expect("callers give a file name").to_string_lossy();
    let beside = parent.join(format!(".{name}.new"));
    remove_file(&beside)?;
    write_new(&beside, mode, owner, content)?;
    std::fs::rename(&beside, path).map_err(|error| os("rename", &beside, &error))?;
    sync_directory(parent)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), Trouble> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(|error| os("fsync", path, &error))
}

/// Removes a file that may be absent.
pub(crate) fn remove_file(path: &Path) -> Result<(), Trouble> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(os("remove", path, &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes a directory that may be absent.
pub(crate) fn remove_directory(path: &Path) -> Result<(), Trouble> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(os("remove", path, &error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
