//! Small files written so that a crash leaves the old or the new one, never half of either.

use crate::os_user::OsUser;
use model::Trouble;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown, lchown};
use std::path::Path;

/// An operating system refusal, with the path it was about.
pub(crate) fn refused(what: &str, path: &Path, error: &std::io::Error) -> Trouble {
    use std::io::ErrorKind::{PermissionDenied, StorageFull};
    let hint = match error.kind() {
        StorageFull => return Trouble::disk_full(format!("cannot {what} {}", path.display()), "free some disk space"),
        PermissionDenied => "check the owner and mode of the path and of the directories above it",
        _ => "check the path",
    };
    Trouble::os(format!("cannot {what} {}", path.display()), hint).because(error)
}

/// Makes a directory's entries durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), Trouble> {
    File::open(dir).and_then(|handle| handle.sync_all()).map_err(|error| refused("sync", dir, &error))
}

/// Gives a path to the server's user, when there is another than ourselves. Follows no link: that user could have put
/// one there, to have root give away the file it points to.
pub(crate) fn give(path: &Path, user: Option<&OsUser>) -> Result<(), Trouble> {
    let Some(user) = user else { return Ok(()) };
    lchown(path, Some(user.uid), Some(user.gid)).map_err(|error| refused("change the owner of", path, &error))
}

/// Replaces `path` by `body` (mode 0600, owned by the server's user) unless it already holds it. Says whether it
/// changed anything.
pub(crate) fn replace(path: &Path, body: &str, user: Option<&OsUser>) -> Result<bool, Trouble> {
    if fs::read(path).is_ok_and(|old| old == body.as_bytes()) {
        return Ok(false);
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // A fixed name: what a crash left behind makes room for the next try. Made anew rather than opened, since the
    // server's user could have put a link there, to have root write elsewhere.
    let partial = dir.join(format!("{name}.stemma-tmp"));
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(refused("remove", &partial, &error)),
        Ok(()) | Err(_) => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let written = options.open(&partial).and_then(|mut file| {
        if let Some(user) = user {
            fchown(&file, Some(user.uid), Some(user.gid))?;
        }
        file.write_all(body.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| refused("write", &partial, &error))?;
    fs::rename(&partial, path).map_err(|error| refused("replace", path, &error))?;
    sync_dir(dir)?;
    Ok(true)
}

/// Opens a log to append to, owned by the server's user; a link is refused.
pub(crate) fn open_log(path: &Path, user: Option<&OsUser>) -> Result<File, Trouble> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o640).custom_flags(nix::libc::O_NOFOLLOW);
    let opened = options.open(path).and_then(|file| {
        if let Some(user) = user {
            fchown(&file, Some(user.uid), Some(user.gid))?;
        }
        Ok(file)
    });
    opened.map_err(|error| refused("open", path, &error))
}

/// Removes a file; says whether there was one.
pub(crate) fn remove(path: &Path) -> Result<bool, Trouble> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(path.parent().unwrap_or(Path::new("/"))).map(|()| true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(refused("remove", path, &error)),
    }
}

/// Makes a directory that only the server's user can enter, or checks that an existing one is his. A stranger could
/// have made it first where everyone may write, so a link or somebody else's directory is refused.
pub(crate) fn private_dir(dir: &Path, user: Option<&OsUser>) -> Result<(), Trouble> {
    let made = fs::DirBuilder::new().recursive(false).mode(0o700).create(dir);
    match made {
        Ok(()) => return give(dir, user),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let parent = dir.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(parent).map_err(|error| refused("create", parent, &error))?;
            return private_dir(dir, user);
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(refused("create", dir, &error)),
    }
    let found = fs::symlink_metadata(dir).map_err(|error| refused("examine", dir, &error))?;
    let wanted = user.map_or_else(|| nix::unistd::Uid::effective().as_raw(), |user| user.uid);
    if !found.is_dir() || (found.uid() != wanted && found.uid() != nix::unistd::Uid::effective().as_raw()) {
        return Err(Trouble::directory_unfit(
            format!("{} is not a directory of the server's user", dir.display()),
            "remove it, or choose another state directory",
        ));
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(|error| refused("close", dir, &error))?;
    give(dir, user)
}

/// The first directory on the way to `path` that `user` may not pass through, if any.
pub(crate) fn first_closed_to(path: &Path, user: Option<&OsUser>) -> Option<std::path::PathBuf> {
    let user = user?;
    let mut above: Vec<&Path> = path.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty()).collect();
    above.reverse();
    above.into_iter().find(|dir| fs::metadata(dir).is_ok_and(|found| !may_pass(&found, user))).map(Path::to_owned)
}

fn may_pass(found: &fs::Metadata, user: &OsUser) -> bool {
    let mode = found.mode();
    if found.uid() == user.uid {
        mode & 0o100 != 0
    } else if found.gid() == user.gid {
        mode & 0o010 != 0
    } else {
        mode & 0o001 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_link_is_neither_written_through_nor_given_away() {
        let dir = tempfile::tempdir().expect("tempdir");
        let secret = dir.path().join("secret");
        fs::write(&secret, "keep").expect("write");
        let target = dir.path().join("stemma.conf");
        std::os::unix::fs::symlink(&secret, dir.path().join("stemma.conf.stemma-tmp")).expect("link");
        std::os::unix::fs::symlink(&secret, dir.path().join("server.log")).expect("link");
        assert!(replace(&target, "new", None).expect("replace"));
        assert!(!replace(&target, "new", None).expect("same"));
        assert_eq!(fs::read_to_string(&target).expect("read"), "new");
        assert!(fs::symlink_metadata(&target).expect("metadata").is_file());
        assert!(open_log(&dir.path().join("server.log"), None).is_err());
        assert_eq!(fs::read_to_string(&secret).expect("read"), "keep");
        assert!(remove(&target).expect("remove"));
        assert!(!remove(&target).expect("gone"));
    }
}
