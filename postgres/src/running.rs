//! Where a running server really is, and the configuration files that it really reads.
//!
//! A server that somebody else started may have its socket elsewhere, and its configuration outside its data
//! directory, as Debian arranges it. Which files it reads changes only when it starts anew; what is in them can change
//! by a reload. So for as long as such a server runs, its own files are kept in step with ours.

use crate::conf::{self, ServerConfig};
use crate::files::refused;
use crate::hba;
use crate::os_user::OsUser;
use crate::spec::ServerSpec;
use crate::sql::Sql;
use model::Trouble;
use model::observe::SocketDirectory;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What is added to the name of a file of the user's before it is changed for the first time.
pub const BACKUP_SUFFIX: &str = ".before-stemma";

/// Where a running server listens, from its `postmaster.pid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whereabouts {
    /// Port, and number of the socket.
    pub port: u16,
    /// The first of its socket directories; none if it has no socket.
    pub socket_dir: Option<PathBuf>,
}

/// Where the server of a data directory says that it listens; `None` when it does not run or has not come so far.
pub fn whereabouts(data_dir: &Path) -> Option<Whereabouts> {
    let text = fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    parse_whereabouts(&text, data_dir)
}

fn parse_whereabouts(text: &str, data_dir: &Path) -> Option<Whereabouts> {
    let mut lines = text.lines().skip(3);
    let port = lines.next()?.trim().parse().ok()?;
    let socket = lines.next()?.trim();
    // A relative path is relative to where the server works.
    let socket_dir = (!socket.is_empty()).then(|| data_dir.join(socket));
    Some(Whereabouts { port, socket_dir })
}

/// Directories that hold a socket of the running server, in the order in which a program of this machine should try them.
pub fn socket_directories(spec: &ServerSpec) -> Vec<SocketDirectory> {
    let first = whereabouts(&spec.data_dir).and_then(|found| found.socket_dir);
    let mut directories: Vec<SocketDirectory> = Vec::new();
    // Those that anybody may enter first.
    for path in spec.socket_dirs_beside.iter().chain(first.as_ref()).chain([&spec.socket_dir]) {
        let Ok(found) = fs::metadata(path) else { continue };
        let path = path.display().to_string();
        let known = directories.iter().any(|known| known.path == path);
        if !known && Path::new(&path).join(format!(".s.PGSQL.{}", spec.port)).exists() {
            directories.push(SocketDirectory { path, device: found.dev(), inode: found.ino() });
        }
    }
    directories
}

/// The configuration files that a running server reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveFiles {
    /// `config_file`.
    pub config: PathBuf,
    /// `hba_file`.
    pub hba: PathBuf,
    /// `ident_file`.
    pub ident: PathBuf,
}

impl ActiveFiles {
    /// Asks the running server.
    pub async fn ask(sql: &Sql) -> Result<ActiveFiles, Trouble> {
        let rows = sql
            .query_text(
                "SELECT current_setting('config_file'), current_setting('hba_file'), current_setting('ident_file')",
            )
            .await?;
        let mut paths = rows.into_iter().next().unwrap_or_default().into_iter().flatten().map(PathBuf::from);
        match (paths.next(), paths.next(), paths.next()) {
            (Some(config), Some(hba), Some(ident)) => Ok(ActiveFiles { config, hba, ident }),
            _ => Err(Trouble::internal("the server does not say where its configuration is", "report this defect")),
        }
    }
}

/// Brings the files outside the data directory that a running server reads to what `config` wants. Says whether
/// anything changed. The files in the data directory are `write_config`'s.
pub fn write_active(spec: &ServerSpec, config: &ServerConfig, files: &ActiveFiles) -> Result<bool, Trouble> {
    let user = spec.user.as_ref();
    let mut changed = false;
    if !is_own(spec, &files.config) {
        let old = read_as(&files.config, user)?;
        changed |= change(&files.config, &old, &conf::including(&old, &spec.data_dir)?, user)?;
    }
    if !is_own(spec, &files.hba) {
        let old = read_as(&files.hba, user)?;
        let new = hba::render(&spec.superuser, config)?;
        changed |= change(&files.hba, &old, &new, user)?;
    }
    if !is_own(spec, &files.ident) {
        let old = read_as(&files.ident, user).unwrap_or_default();
        changed |= change(&files.ident, &old, &hba::ident(config, &old), user)?;
    }
    Ok(changed)
}

/// Whether a file lies in the data directory itself.
fn is_own(spec: &ServerSpec, path: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok();
    path.parent().and_then(real).is_some_and(|parent| real(&spec.data_dir) == Some(parent))
}

fn change(path: &Path, old: &str, new: &str, user: Option<&OsUser>) -> Result<bool, Trouble> {
    if old == new {
        return Ok(false);
    }
    back_up(path, user)?;
    write_as(path, new, user)?;
    tracing::info!(file = %path.display(), "changed a configuration file that the running server reads");
    Ok(true)
}

/// Keeps a copy of a file as it was before we changed it for the first time. A file that is missing needs none.
pub fn back_up(path: &Path, user: Option<&OsUser>) -> Result<(), Trouble> {
    // Written beside and linked: what is interrupted leaves no half copy, and an older copy is never replaced.
    let script = "set -e; test -e \"$1\" || exit 0; test -e \"$2\" && exit 0; \
        cp -p -- \"$1\" \"$2.tmp\"; mv -n -- \"$2.tmp\" \"$2\"";
    let backup = beside(path, BACKUP_SUFFIX);
    run_as(script, &[path, &backup], "", user).map(|_| ()).map_err(|trouble| {
        Trouble::os(format!("cannot keep a copy of {}", path.display()), "check the owner of its directory")
            .because(trouble)
    })
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Reads a file with the rights of the server's user: the server, and not root, decides which file this is.
pub fn read_as(path: &Path, user: Option<&OsUser>) -> Result<String, Trouble> {
    let bytes = run_as("cat -- \"$1\"", &[path], "", user).map_err(|trouble| {
        Trouble::os(
            format!("{} cannot be read by the server's user", path.display()),
            "check its owner and mode: the server reads it too",
        )
        .because(trouble)
    })?;
    String::from_utf8(bytes).map_err(|error| {
        Trouble::config_unreadable(format!("{} is not UTF-8", path.display()), "write it in UTF-8").because(error)
    })
}

/// Replaces a file in one step with the rights of the server's user, keeping its mode. Where only root may write
/// there, root does so, provided that nobody else could have put a link in the way.
pub fn write_as(path: &Path, body: &str, user: Option<&OsUser>) -> Result<(), Trouble> {
    let script = "set -e; umask 077; t=\"$1.stemma-tmp\"; rm -f -- \"$t\"; cat > \"$t\"; \
        if test -e \"$1\"; then chmod --reference=\"$1\" -- \"$t\"; fi; sync -- \"$t\"; mv -- \"$t\" \"$1\"";
    let Err(trouble) = run_as(script, &[path], body, user) else { return Ok(()) };
    if user.is_some() && only_root_writes(path) { run_as(script, &[path], body, None) } else { Err(trouble) }
        .map(|_| ())
        .map_err(|trouble| {
            Trouble::os(
                format!("cannot write {}", path.display()),
                "let the server's user write there: the file and its directory must be his",
            )
            .because(trouble)
        })
}

fn only_root_writes(path: &Path) -> bool {
    path.ancestors()
        .all(|part| fs::symlink_metadata(part).is_ok_and(|found| found.uid() == 0 && found.mode() & 0o022 == 0))
}

fn run_as(script: &str, paths: &[&Path], input: &str, user: Option<&OsUser>) -> Result<Vec<u8>, Trouble> {
    let shell = Path::new("/bin/sh");
    let mut command = Command::new(shell);
    command.arg("-c").arg(script).arg("sh").args(paths).env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
    command.env("LC_ALL", "C").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(user) = user {
        // Setting the user id from root also empties the list of supplementary groups.
        command.uid(user.uid).gid(user.gid);
    }
    let failed = |error: &std::io::Error| refused("run", shell, error);
    let mut child = command.spawn().map_err(|error| failed(&error))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A script that ends early has said why on its error output.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| failed(&error))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Trouble::os(String::from_utf8_lossy(&output.stderr).trim().to_owned(), "check owner and mode"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_where_it_listens() {
        let whole = "4711\n/data\n1700000000\n5433\n/var/run/postgresql\nlocalhost\n  5432001 1\nready   \n";
        let found = parse_whereabouts(whole, Path::new("/data")).expect("whole");
        assert_eq!((found.port, found.socket_dir.as_deref()), (5433, Some(Path::new("/var/run/postgresql"))));
        let relative = whole.replace("/var/run/postgresql", "sockets");
        let found = parse_whereabouts(&relative, Path::new("/data")).expect("whole");
        assert_eq!(found.socket_dir.as_deref(), Some(Path::new("/data/sockets")));
        let without = whole.replace("/var/run/postgresql", "");
        assert_eq!(parse_whereabouts(&without, Path::new("/data")).expect("whole").socket_dir, None);
        assert_eq!(parse_whereabouts("4711\n/data\n17\n", Path::new("/data")), None, "not that far yet");
    }

    #[test]
    fn a_file_is_changed_whole_and_its_first_state_is_kept() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("a file");
        fs::write(&path, "first").expect("write");
        for text in ["second", "third"] {
            let old = read_as(&path, None).expect("read");
            assert!(change(&path, &old, text, None).expect("changed"));
            assert!(!change(&path, text, text, None).expect("same"));
        }
        assert_eq!(fs::read_to_string(&path).expect("read"), "third");
        assert_eq!(fs::read_to_string(beside(&path, BACKUP_SUFFIX)).expect("kept"), "first");
        assert!(read_as(&dir.path().join("missing"), None).is_err());
        back_up(&dir.path().join("missing"), None).expect("nothing to keep");
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 2);
    }
}
