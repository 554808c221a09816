//! A server in single-user mode: one process without network, socket, archiver, replication, autovacuum or helpers of
//! any kind, so that nobody else reaches the database while something is done to it.

use crate::files::{open_log, refused, remove, replace};
use crate::process::{clean_command, kill_everything};
use crate::spec::ServerSpec;
use model::Trouble;
use std::fs::File;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

/// How long the processes of a run that was cut off may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// The file that makes a server a replica.
const STANDBY: &str = "standby.signal";

/// One run.
pub(crate) struct SingleUser<'a> {
    /// The stopped server.
    pub spec: &'a ServerSpec,
    /// Database to work in.
    pub database: &'a str,
    /// Parameters beside those below.
    pub parameters: &'a [&'a str],
}

impl SingleUser<'_> {
    /// Recovers from a crash if need be, runs `input` (one statement a line), writes a shutdown checkpoint and ends.
    /// Gives what the server complained about; its exit status decides about success.
    ///
    /// A directory that was run as a replica is taken as it is: the file that makes it one is put back afterwards.
    pub(crate) async fn run(&self, input: &str, deadline: Duration) -> Result<Vec<String>, Trouble> {
        // Single-user mode refuses to follow anybody.
        let replica = remove(&self.spec.data_dir.join(STANDBY))?;
        remove(&self.spec.data_dir.join("recovery.signal"))?;
        let ran = self.run_alone(input, deadline).await;
        if replica {
            replace(&self.spec.data_dir.join(STANDBY), "", self.spec.user.as_ref())?;
        }
        ran
    }

    async fn run_alone(&self, input: &str, deadline: Duration) -> Result<Vec<String>, Trouble> {
        let spec = self.spec;
        let shown = spec.data_dir.display();
        let log = open_log(&spec.log_file, spec.user.as_ref())?;
        let began = log.metadata().map_or(0, |found| found.len());
        let mut command = clean_command(spec, "postgres", false);
        command.current_dir(&spec.data_dir).kill_on_drop(true);
        command.arg("--single").arg("-D").arg(&spec.data_dir);
        for parameter in self.all_parameters() {
            command.arg("-c").arg(parameter);
        }
        command.arg(self.database).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        let program = spec.installation.bin_dir.join("postgres");
        let mut child = command.spawn().map_err(|error| refused("run", &program, &error))?;
        let ended = tokio::time::timeout(deadline, async {
            if let Some(mut stdin) = child.stdin.take() {
                // What it refuses it says in its log.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
            child.wait().await
        })
        .await;
        let Ok(ended) = ended else {
            let _ = child.start_kill();
            kill_everything(spec, KILL_DEADLINE).await?;
            return Err(Trouble::server_failed(
                format!("the stopped server in {shown} was not done within {} s", deadline.as_secs()),
                format!("see {}; it is tried again from where it came", spec.log_file.display()),
            ));
        };
        let ended = ended.map_err(|error| refused("wait for", &program, &error))?;
        let complaints = complaints(spec, began);
        if ended.success() {
            return Ok(complaints);
        }
        let last = complaints.last().cloned().unwrap_or_else(|| format!("it ended with {ended}"));
        Err(Trouble::server_failed(
            format!("the server in {shown} could not be run alone"),
            format!("see {}", spec.log_file.display()),
        )
        .because(last))
    }

    fn all_parameters(&self) -> Vec<String> {
        let spec = self.spec;
        let mut all: Vec<String> = [
            // Nothing may leave this node, and nothing that a replica or a rewind needs may be removed.
            "archive_command=false",
            "synchronous_standby_names=",
            "wal_keep_size=1000000",
            "max_slot_wal_keep_size=-1",
            "logging_collector=off",
            "log_destination=stderr",
            "log_statement=none",
            "log_min_error_statement=panic",
            "log_duration=off",
            "log_min_duration_statement=-1",
            "session_preload_libraries=",
            "local_preload_libraries=",
            "statement_timeout=0",
            "lock_timeout=0",
        ]
        .map(str::to_owned)
        .to_vec();
        if spec.installation.major >= 15 {
            all.push("archive_library=".to_owned());
        }
        all.extend(self.parameters.iter().map(|parameter| (*parameter).to_owned()));
        all
    }
}

/// The errors that a server wrote into its log from this place on.
fn complaints(spec: &ServerSpec, since: u64) -> Vec<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    const READ_MAX: u64 = 256 << 10;
    let mut text = Vec::new();
    if let Ok(mut log) = File::open(&spec.log_file)
        && log.seek(SeekFrom::Start(since)).is_ok()
    {
        // A log that cannot be read hides only details: the exit status decides.
        let _ = log.take(READ_MAX).read_to_end(&mut text);
    }
    let words = ["ERROR:  ", "FATAL:  ", "PANIC:  "];
    let said = |line: &str| words.iter().find_map(|word| Some(line.split_once(word)?.1.to_owned()));
    String::from_utf8_lossy(&text).lines().filter_map(said).collect()
}
