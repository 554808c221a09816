//! Taking a diverged data directory back to the fork and on to the primary's state, with the server's `pg_rewind`.
//!
//! The tool rewrites the directory in place. A run that is cut off leaves a directory that looks sound and is not, so it
//! is marked beside (`mark`) before the first write and until the last: whoever looks at a marked directory sees a
//! half-made copy, and no server of ours starts on it.

pub(crate) mod mark;

use crate::clone::read_rows;
use crate::control_file::read_control_file;
use crate::files::{give, refused, replace};
use crate::process::{clean_command, kill_everything, server_processes};
use crate::replication::{Endpoint, ReplicationClient};
use crate::spec::{ServerSpec, TlsFiles};
use crate::wire::WireError;
use model::Trouble;
use model::observe::CloneProgress;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long the tool's processes may take to be gone once it is killed.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// Files of ours in the data directory that the tool replaces by those of the source.
const OWN_FILES: &[&str] = &[
    "postgresql.conf",
    "stemma.conf",
    "postgresql.auto.conf",
    "pg_hba.conf",
    "pg_ident.conf",
    "server.crt",
    "server.key",
];
/// Lines of the tool's output that are kept to tell why it failed.
const SAID_MAX: usize = 200;

/// What a rewind did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewound {
    /// The directory is now a copy of the source as of the fork, and recovery brings it further.
    Done,
    /// It holds nothing beyond the source's history; nothing was written.
    NotRequired,
}

/// Why there was no rewind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RewindError {
    /// The directory is as it was.
    Untouched(Trouble),
    /// The directory is marked and must be rebuilt.
    Broken(Trouble),
}

impl RewindError {
    /// What people are told.
    pub fn trouble(&self) -> &Trouble {
        match self {
            RewindError::Untouched(trouble) | RewindError::Broken(trouble) => trouble,
        }
    }
}

/// Whether the directory could be rewound, as far as it shows without asking the source.
pub fn possible(spec: &ServerSpec) -> Result<(), Trouble> {
    let refuse = |reason: String, hint: &str| Err(Trouble::diverged(reason, hint));
    let tool = spec.installation.bin_dir.join("pg_rewind");
    if !tool.is_file() {
        return refuse(
            format!("there is no pg_rewind in {}", spec.installation.bin_dir.display()),
            "install the server's complete package; the node is rebuilt from a base backup instead",
        );
    }
    let control = read_control_file(&spec.data_dir)?;
    if !control.state.is_clean() {
        return refuse(format!("{} was not shut down in order", spec.data_dir.display()), "crash recovery comes first");
    }
    if !control.checksums && !control.wal_log_hints {
        return refuse(
            format!(
                "{} has neither checksums nor wal_log_hints, so changes are missing in its log",
                spec.data_dir.display()
            ),
            "the node is rebuilt from a base backup; a server started by stemma has wal_log_hints on",
        );
    }
    if mark::is_set(&spec.data_dir) {
        return refuse(
            format!("an earlier rewind of {} was cut off", spec.data_dir.display()),
            "the node is rebuilt from a base backup",
        );
    }
    Ok(())
}

/// Makes the primary write a checkpoint on its timeline: until then its control file names the one before, and the tool
/// would find nothing to do. Any role that may replicate can do so, by beginning a base backup. Gives the tablespaces
/// that the primary has.
pub async fn checkpoint(source: &Endpoint) -> Result<BTreeSet<u32>, Trouble> {
    let asked = async {
        let mut client = ReplicationClient::connect_wire(source).await?;
        let sql = if client.server_major() >= 15 {
            "BASE_BACKUP (LABEL 'stemma checkpoint', CHECKPOINT 'fast', WAL false, WAIT false, MANIFEST 'no')"
        } else {
            "BASE_BACKUP LABEL 'stemma checkpoint' FAST NOWAIT MANIFEST 'no'"
        };
        client.connection.send_query(sql).await?;
        // The first answer comes when the checkpoint is done, the second names the tablespaces; hanging up ends the
        // backup.
        read_rows(&mut client).await?;
        let spaces = read_rows(&mut client).await?;
        Ok::<_, WireError>(spaces.iter().filter_map(|row| row.first()?.as_ref()?.parse().ok()).collect())
    };
    asked.await.map_err(|error| error.into_trouble(&format!("no checkpoint at {source}"), Trouble::link_down))
}

/// Rewinds the stopped server's directory to `source`, a primary. Afterwards it carries `standby.signal`, so that it can
/// never start as a primary, and the configuration that it had; the caller writes the one that it is to have.
///
/// Where the source wants TLS, the tool shows the certificate in `files` to it: the server's own for a member of the same
/// cluster, another one for a server of a cluster that is followed.
///
/// The tool is tried without writing first, so that most of what can fail fails while the directory is whole.
pub async fn run(
    spec: &ServerSpec,
    source: &Endpoint,
    files: Option<&TlsFiles>,
    progress: &watch::Sender<CloneProgress>,
    deadline: Duration,
    cancel: &CancellationToken,
) -> Result<Rewound, RewindError> {
    let until = tokio::time::Instant::now() + deadline;
    let before = async {
        possible(spec)?;
        no_processes(spec)?;
        progress.send_modify(|shown| shown.phase = "rewind: checkpoint".into());
        check_spaces(spec, &checkpoint(source).await?)?;
        Ok::<Vec<(&str, Vec<u8>)>, Trouble>(own_files(&spec.data_dir))
    };
    let kept = tokio::select! {
        before = tokio::time::timeout_at(until, before) => match before {
            Ok(before) => before.map_err(RewindError::Untouched)?,
            Err(_) => return Err(RewindError::Untouched(too_late(source))),
        },
        () = cancel.cancelled() => return Err(RewindError::Untouched(cancelled())),
    };
    progress.send_modify(|shown| shown.phase = "rewind: plan".into());
    let tool = Tool { spec, source, files, progress, until, cancel };
    let plan = tool.run(true).await.map_err(RewindError::Untouched)?;
    if plan.iter().any(|line| line.contains("no rewind required")) {
        return Ok(Rewound::NotRequired);
    }
    mark::set(&spec.data_dir, &source.to_string())
        .map_err(|trouble| RewindError::Untouched(unmarked(spec, trouble)))?;
    progress.send_modify(|shown| shown.phase = "rewind".into());
    tool.run(false).await.map_err(RewindError::Broken)?;
    finish(spec, kept).map_err(RewindError::Broken)?;
    mark::clear(&spec.data_dir).map_err(RewindError::Broken)?;
    Ok(Rewound::Done)
}

/// The tool would make a link to the place that a new tablespace has at the source. On one machine that is the
/// source's own directory, and elsewhere nobody chose that place.
fn check_spaces(spec: &ServerSpec, theirs: &BTreeSet<u32>) -> Result<(), Trouble> {
    let missing = theirs.iter().find(|oid| !spec.data_dir.join("pg_tblspc").join(oid.to_string()).exists());
    match missing {
        None => Ok(()),
        Some(oid) => Err(Trouble::diverged(
            format!("the primary has a tablespace (oid {oid}) that {} does not have", spec.data_dir.display()),
            "the node is rebuilt from a base backup",
        )),
    }
}

/// Without a mark a rewind that is cut off could be taken for a sound database.
fn unmarked(spec: &ServerSpec, trouble: Trouble) -> Trouble {
    Trouble::diverged(
        format!("{} cannot be marked as being rewound", spec.data_dir.display()),
        "the node is rebuilt from a base backup; let the keeper write into the directory above data_dir",
    )
    .because(trouble)
}

fn no_processes(spec: &ServerSpec) -> Result<(), Trouble> {
    let living = server_processes(&spec.data_dir);
    if living.is_empty() {
        return Ok(());
    }
    Err(Trouble::server_failed(
        format!("{} processes still work in {}", living.len(), spec.data_dir.display()),
        "end them first",
    ))
}

fn own_files(data_dir: &Path) -> Vec<(&'static str, Vec<u8>)> {
    OWN_FILES.iter().filter_map(|name| Some((*name, fs::read(data_dir.join(name)).ok()?))).collect()
}

/// Puts back what belongs to this node, takes away what belongs to the source, and makes it a replica.
fn finish(spec: &ServerSpec, kept: Vec<(&'static str, Vec<u8>)>) -> Result<(), Trouble> {
    let user = spec.user.as_ref();
    for name in OWN_FILES {
        let path = spec.data_dir.join(name);
        match kept.iter().find(|(kept, _)| kept == name) {
            // Byte for byte: a key or a file in another encoding than UTF-8 comes back as it was.
            Some((_, body)) => {
                let now = fs::read(&path).ok();
                if now.as_ref() != Some(body) {
                    put_back(&path, body, spec)?;
                }
            }
            None => {
                crate::files::remove(&path)?;
            }
        }
    }
    crate::files::remove(&spec.data_dir.join("recovery.signal"))?;
    replace(&spec.data_dir.join("standby.signal"), "", user)?;
    Ok(())
}

fn put_back(path: &Path, body: &[u8], spec: &ServerSpec) -> Result<(), Trouble> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    // Removed and made anew, closed to others from its first moment.
    crate::files::remove(path)?;
    let mut options = fs::File::options();
    options.write(true).create_new(true).mode(0o600);
    let written = options.open(path).and_then(|mut file| {
        file.write_all(body)?;
        file.sync_all()
    });
    written.map_err(|error| refused("write", path, &error))?;
    give(path, spec.user.as_ref())
}

fn too_late(source: &Endpoint) -> Trouble {
    Trouble::server_failed(format!("rewinding to {source} took too long"), "see the load of both nodes")
}

fn cancelled() -> Trouble {
    Trouble::server_failed("the rewind was cancelled", "it is done when it is wanted again")
}

struct Tool<'a> {
    spec: &'a ServerSpec,
    source: &'a Endpoint,
    files: Option<&'a TlsFiles>,
    progress: &'a watch::Sender<CloneProgress>,
    until: tokio::time::Instant,
    cancel: &'a CancellationToken,
}

impl Tool<'_> {
    /// One run; gives what it said.
    async fn run(&self, dry: bool) -> Result<Vec<String>, Trouble> {
        let spec = self.spec;
        let program = spec.installation.bin_dir.join("pg_rewind");
        let mut command = clean_command(spec, "pg_rewind", false);
        // It works in the data directory, so that it is found among the server's processes if we die before it.
        command.current_dir(&spec.data_dir).kill_on_drop(true);
        command.arg("--target-pgdata").arg(&spec.data_dir).arg("--source-server").arg(self.conninfo()?);
        command.args(["--progress", "--no-ensure-shutdown"]).args(dry.then_some("--dry-run"));
        if let (Some(password), None) = (&self.source.password, &self.source.tls) {
            // Not in its arguments, which everybody can read.
            command.env("PGPASSWORD", password);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| refused("run", &program, &error))?;
        let mut said: Vec<String> = Vec::new();
        let listen = async {
            if let Some(stderr) = child.stderr.take() {
                let mut lines = BufReader::new(stderr).split(b'\n');
                while let Ok(Some(line)) = lines.next_segment().await {
                    // Progress overwrites itself with carriage returns.
                    for part in
                        String::from_utf8_lossy(&line).split('\r').map(str::trim).filter(|part| !part.is_empty())
                    {
                        self.note(part);
                        if said.len() < SAID_MAX && progress_of(part).is_none() {
                            said.push(part.to_owned());
                        }
                    }
                }
            }
            child.wait().await
        };
        let ended = tokio::select! {
            ended = tokio::time::timeout_at(self.until, listen) => ended.map_err(|_| too_late(self.source)),
            () = self.cancel.cancelled() => Err(cancelled()),
        };
        let ended = match ended {
            Ok(ended) => ended.map_err(|error| refused("wait for", &program, &error))?,
            Err(trouble) => {
                let _ = child.start_kill();
                let _ = child.wait().await;
                kill_everything(spec, KILL_DEADLINE).await?;
                return Err(trouble);
            }
        };
        if ended.success() {
            return Ok(said);
        }
        let why = said.iter().rfind(|line| line.contains("error:") || line.contains("fatal:")).or(said.last());
        if let Some(line) =
            said.iter().find(|line| line.contains("connection to server") || line.contains("could not connect"))
        {
            return Err(Trouble::link_down(
                format!("{} cannot be rewound: {} was not reached", spec.data_dir.display(), self.source),
                "check that the primary runs and lets this node's role in",
            )
            .because(line));
        }
        let why = why.cloned().unwrap_or_else(|| format!("it ended with {ended}"));
        Err(Trouble::diverged(
            format!("{} cannot be rewound to {}", spec.data_dir.display(), self.source),
            "the node is rebuilt from a base backup",
        )
        .because(why))
    }

    fn note(&self, line: &str) {
        if let Some((done_kb, total_kb)) = progress_of(line) {
            self.progress.send_modify(|shown| {
                (shown.done_bytes, shown.total_bytes) = (done_kb.saturating_mul(1024), total_kb.saturating_mul(1024));
            });
        }
    }

    fn conninfo(&self) -> Result<String, Trouble> {
        let source = self.source;
        let mut words = vec![
            ("host", source.host.clone()),
            ("port", source.port.to_string()),
            ("user", source.user.clone()),
            ("dbname", "postgres".to_owned()),
            ("application_name", "stemma_rewind".to_owned()),
            ("connect_timeout", "5".to_owned()),
            ("keepalives_idle", "5".to_owned()),
            ("keepalives_interval", "2".to_owned()),
            ("keepalives_count", "5".to_owned()),
            ("tcp_user_timeout", "15000".to_owned()),
        ];
        match (&source.tls, self.files) {
            (Some(_), Some(files)) => words.extend([
                ("sslmode", "verify-ca".to_owned()),
                ("sslcert", files.cert.display().to_string()),
                ("sslkey", files.key.display().to_string()),
                ("sslrootcert", files.ca.display().to_string()),
            ]),
            (Some(_), None) => {
                return Err(Trouble::config_missing_key(
                    "the source wants TLS, and this node's server has no certificate files",
                    "give cert, key and ca",
                ));
            }
            (None, _) => words.push(("sslmode", "disable".to_owned())),
        }
        let quoted = |value: &str| format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
        Ok(words.iter().map(|(key, value)| format!("{key}={}", quoted(value))).collect::<Vec<_>>().join(" "))
    }
}

/// `  1234/56789 kB (2%) copied`.
fn progress_of(line: &str) -> Option<(u64, u64)> {
    let (numbers, _) = line.split_once(" kB (")?;
    let (done, total) = numbers.trim().split_once('/')?;
    Some((done.parse().ok()?, total.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_from_words() {
        assert_eq!(progress_of("  1234/56789 kB (2%) copied"), Some((1234, 56789)));
        assert_eq!(progress_of("pg_rewind: servers diverged at WAL location 0/5000060 on timeline 1"), None);
    }
}
