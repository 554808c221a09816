//! Copies of the node's key and certificate that the database server may read.

use crate::files;
use crate::identity::{IdentityFiles, join_pem};
use model::Trouble;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Writes certificate, key and CA for the database server and says where: `(certificate, key, ca)`. `owner` is the
/// user and group of the server.
///
/// Each file is replaced in one step, but not all three together: a reload in between finds a key that does not fit
/// the certificate, and the server then goes on with what it has until the next reload. So reload *after* this.
pub fn write_server_files(
    identity: &IdentityFiles,
    directory: &Path,
    owner: Option<(u32, u32)>,
) -> Result<(PathBuf, PathBuf, PathBuf), Trouble> {
    let content = identity.load()?;
    if !directory.exists() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| files::os("create", directory, &error))?;
    }
    if let Some((user, group)) = owner {
        std::os::unix::fs::chown(directory, Some(user), Some(group))
            .map_err(|error| files::os("give away", directory, &error))?;
    }
    let [certificate, key, ca] = ["server.crt", "server.key", "ca.crt"].map(|name| directory.join(name));
    write_private_if_other(&ca, owner, &join_pem(&content.ca_pem))?;
    write_private_if_other(&key, owner, &content.key_pem)?;
    write_private_if_other(&certificate, owner, &content.certificate_pem)?;
    Ok((certificate, key, ca))
}

/// Writes a file that `owner` alone may read. The server notices nothing when nothing changed, and neither does the disk.
pub(crate) fn write_private_if_other(path: &Path, owner: Option<(u32, u32)>, content: &str) -> Result<(), Trouble> {
    if std::fs::read_to_string(path).is_ok_and(|old| old == content) && is_private(path, owner) {
        return Ok(());
    }
    files::replace(path, 0o600, owner, content.as_bytes())
}

fn is_private(path: &Path, owner: Option<(u32, u32)>) -> bool {
    use std::os::unix::fs::MetadataExt;
    let fits = |meta: std::fs::Metadata| {
        meta.mode() & 0o777 == 0o600 && owner.is_none_or(|owner| (meta.uid(), meta.gid()) == owner)
    };
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && fits(meta))
}
