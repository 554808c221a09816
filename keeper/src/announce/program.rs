//! A program of somebody else's, run so that it cannot do harm: as an unprivileged user, in a process group of its own
//! that is killed when its time is up, with a bounded part of what it says, and without this process's environment.

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use postgres::OsUser;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

/// So much of what it says is kept.
const SAID_BYTES_MAX: usize = 4 << 10;
/// How long what it said is waited for once it ended: something it left behind may hold its output open.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What is run.
pub(crate) struct Program {
    pub(crate) command: Vec<String>,
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) user: Option<OsUser>,
    pub(crate) timeout: Duration,
}

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Well { said: String },
    Badly { why: String, said: String },
}

/// Kills the whole group, unless told that it ended by itself.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = killpg(pid, Signal::SIGKILL);
        }
    }
}

/// Runs it to its end, to the end of its time, or until `stop`.
pub(crate) async fn run(program: &Program, stop: &CancellationToken) -> Ended {
    let badly = |why: String| Ended::Badly { why, said: String::new() };
    let Some((path, arguments)) = program.command.split_first() else { return badly("names no program".to_owned()) };
    let mut command = Command::new(path);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(program.environment.iter().map(|(key, value)| (*key, value.as_str())))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    if let Some(user) = &program.user {
        // Supplementary groups are given up with the user: the standard library does so for root.
        command.gid(user.gid).uid(user.uid).env("USER", &user.name);
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return badly(format!("cannot be run: {error}")),
    };
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    let mut group = Group(pid);
    let said = tokio::spawn(listen(child.stdout.take(), child.stderr.take()));
    let ended = tokio::select! {
        ended = child.wait() => Some(ended),
        () = tokio::time::sleep(program.timeout) => None,
        () = stop.cancelled() => None,
    };
    if ended.is_some() {
        group.0 = None;
    }
    drop(group);
    let said = match tokio::time::timeout(LAST_WORDS, said).await {
        Ok(said) => said.unwrap_or_default(),
        Err(_) => String::new(),
    };
    match ended {
        Some(Ok(status)) if status.success() => Ended::Well { said },
        Some(Ok(status)) => Ended::Badly { why: format!("ended with {status}"), said },
        Some(Err(error)) => Ended::Badly { why: format!("was lost: {error}"), said },
        None if stop.is_cancelled() => Ended::Badly { why: "was killed because the keeper stops".to_owned(), said },
        None => {
            Ended::Badly { why: format!("did not end within {} s and was killed", program.timeout.as_secs_f64()), said }
        }
    }
}

async fn listen(out: Option<impl AsyncRead + Unpin>, error: Option<impl AsyncRead + Unpin>) -> String {
    let (out, error) = tokio::join!(read(out), read(error));
    let text = [out, error].concat();
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// Reads to the end, so that the program does not wait for us, and keeps the beginning.
async fn read(from: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut from) = from else { return kept };
    let mut chunk = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        let room = SAID_BYTES_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..read.min(room)]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str, timeout: Duration) -> Ended {
        let program = Program {
            command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            environment: vec![("STEMMA_ROLE", "primary".to_owned())],
            user: None,
            timeout,
        };
        run(&program, &CancellationToken::new()).await
    }

    #[tokio::test]
    async fn a_program_gets_its_environment_and_no_more() {
        let long = Duration::from_secs(20);
        assert_eq!(sh("echo $STEMMA_ROLE in $(pwd)", long).await, Ended::Well { said: "primary in /".to_owned() });
        let inherited = sh("env | grep -c CARGO", long).await;
        assert_eq!(inherited, Ended::Badly { why: "ended with exit status: 1".to_owned(), said: "0".to_owned() });
    }

    #[tokio::test]
    async fn its_whole_group_is_killed_when_its_time_is_up() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.path().display());
        let ended = sh(&script, Duration::from_millis(1500)).await;
        assert!(matches!(&ended, Ended::Badly { why, .. } if why.contains("did not end within 1.5 s")), "{ended:?}");
        let pid: i32 = std::fs::read_to_string(file.path()).expect("written").trim().parse().expect("a number");
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let alive = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains("(sleep)") && !stat.contains(") Z ")
        };
        while alive() {
            assert!(std::time::Instant::now() < deadline, "a child of the hook lives on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    #[tokio::test]
    async fn much_output_is_bounded_and_what_is_left_behind_holds_nobody_up() {
        let ended = sh("head -c 1000000 /dev/zero | tr '\\0' x; sleep 30 & exit 3", Duration::from_secs(20)).await;
        let Ended::Badly { why, said } = ended else { panic!("{ended:?}") };
        assert_eq!(why, "ended with exit status: 3");
        assert!(said.len() <= SAID_BYTES_MAX, "{}", said.len());
        assert!(matches!(sh("exec /no/such/thing", Duration::from_secs(20)).await, Ended::Badly { .. }));
    }
}
