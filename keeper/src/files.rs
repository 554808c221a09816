//! Small files that must be whole or absent after a power cut: written beside, fsynced, renamed, directory fsynced.

use model::Trouble;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
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

/// Replaces a file of this keeper's own. Mode 0600.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), Trouble> {
    replace(path, 0o600, None, content)
}

/// Makes `directory` if it is missing, and refuses one in which others could look around. They may pass through it:
/// the server's socket and certificates lie below, and the server runs as another user when the keeper is root.
pub(crate) fn private_directory(directory: &Path) -> Result<(), Trouble> {
    if !directory.exists() {
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(directory).map_err(|error| {
            Trouble::directory_unfit(
                format!("cannot create {}: {error}", directory.display()),
                "create it by hand, owned by the user that runs stemma, or choose another `state_dir`",
            )
        })?;
    }
    let metadata = std::fs::metadata(directory).map_err(|error| os("examine", directory, &error))?;
    if !metadata.is_dir() {
        let reason = format!("{} is not a directory", directory.display());
        return Err(Trouble::directory_unfit(reason, "choose another `state_dir`"));
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o066 != 0 {
        return Err(Trouble::secret_exposed(
            format!("{} has mode {mode:04o}: others can look into it", directory.display()),
            format!("chmod 0711 {}", directory.display()),
        ));
    }
    if nix::unistd::geteuid().is_root() && mode & 0o011 != 0o011 {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode | 0o011))
            .map_err(|error| os("open for passing through", directory, &error))?;
    }
    Ok(())
}

/// Reads a private file, refusing one that others can read; `None` if there is none.
pub(crate) fn read_private(path: &Path) -> Result<Option<Vec<u8>>, Trouble> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(os("examine", path, &error)),
    };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Trouble::secret_exposed(
            format!("{} has mode {mode:04o}: others can read it", path.display()),
            format!("chmod 0600 {}", path.display()),
        ));
    }
    std::fs::read(path).map(Some).map_err(|error| os("read", path, &error))
}
