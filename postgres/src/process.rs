//! The server's processes: starting, adopting, watching, signalling, and making sure that none is left.
//!
//! A server outlives its keeper: it runs in a session of its own, and a keeper that starts finds and adopts it. All
//! waiting and signalling goes through pidfds, which name one process for ever, where a number may come to mean
//! another one.

use crate::conf;
use crate::files::{first_closed_to, open_log, private_dir, refused};
use crate::os_user::OsUser;
use crate::spec::ServerSpec;
use model::Trouble;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::io::{PipeWriter, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::time::Instant;

/// How a server is asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Wait for clients to leave.
    Smart,
    /// Disconnect clients, write a checkpoint, let replicas receive it.
    Fast,
    /// Stop at once; the next start does crash recovery.
    Immediate,
}

impl StopMode {
    fn signal(self) -> Signal {
        match self {
            StopMode::Smart => Signal::TERM,
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        }
    }
}

/// A running postmaster.
#[derive(Debug)]
pub struct Server {
    pid: i32,
    /// In clock ticks since the machine started; with the number it names the process within one boot.
    started_ticks: u64,
    pidfd: OwnedFd,
    exited: watch::Receiver<bool>,
    /// Closed with this handle, which ends the thread that watches.
    _watched: PipeWriter,
}

/// How often a condition in `/proc` is looked at again.
const POLL: Duration = Duration::from_millis(5);

impl Server {
    /// The postmaster that already runs on the data directory, if there is one.
    ///
    /// `postmaster.pid` may be left from a crash and its number taken by another process since. So the process must
    /// be a server program that works in this very directory and is no child of another such process.
    pub async fn adopt(spec: &ServerSpec) -> Result<Option<Server>, Trouble> {
        let recorded = recorded_pid(&spec.data_dir.join("postmaster.pid"));
        // A single-user server writes its number as a negative one.
        let Some(pid) = recorded.filter(|pid| *pid > 0) else { return Ok(None) };
        let Some(pidfd) = open_pidfd(pid)? else { return Ok(None) };
        // Looked at after opening: what is true now is true of the process that the pidfd names.
        let Some(place) = Place::of(&spec.data_dir) else { return Ok(None) };
        if !is_server_process(pid, place) || parent_of(pid).is_some_and(|parent| is_server_process(parent, place)) {
            return Ok(None);
        }
        let Some(started_ticks) = started_ticks(pid) else { return Ok(None) };
        let server = Server::watching(pid, started_ticks, pidfd)?;
        Ok(server.is_alive().then_some(server))
    }

    /// Starts the server. Does not wait until it answers.
    pub async fn start(spec: &ServerSpec) -> Result<Server, Trouble> {
        prepare_start(spec)?;
        let log = open_log(&spec.log_file, spec.user.as_ref())?;
        let second = log.try_clone().map_err(|error| refused("open", &spec.log_file, &error))?;
        let mut command = clean_command(spec, "postgres", true);
        let data_dir = std::path::absolute(&spec.data_dir).map_err(|error| refused("find", &spec.data_dir, &error))?;
        command.arg("-D").arg(&data_dir).args(conf::start_arguments(spec)?);
        // Children of the postmaster give up the protection that it gets below.
        command.env("PG_OOM_ADJUST_FILE", "/proc/self/oom_score_adj").env("PG_OOM_ADJUST_VALUE", "0");
        command.current_dir(&spec.data_dir).stdin(Stdio::null()).stdout(log).stderr(second).kill_on_drop(false);
        let program = spec.installation.bin_dir.join("postgres");
        let mut child = command.spawn().map_err(|error| refused("run", &program, &error))?;
        let gone = || Trouble::server_failed("the server ended at once", "see the server's log");
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or_else(gone)?;
        // The child cannot vanish before it is waited for, so its number is still its own here.
        let pidfd = open_pidfd(pid)?.ok_or_else(gone)?;
        let started_ticks = started_ticks(pid).unwrap_or(0);
        // Best effort: needs privileges.
        let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), "-900");
        // Nobody else collects the exit status; when this process ends first, init does.
        tokio::spawn(async move {
            let _ = child.wait().await;
        });
        Server::watching(pid, started_ticks, pidfd)
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// When the postmaster started, in clock ticks since the machine did.
    pub fn started_ticks(&self) -> u64 {
        self.started_ticks
    }

    /// Returns once the postmaster is gone. Its children may live on: see `kill_everything`.
    pub async fn exited(&self) {
        let mut exited = self.exited.clone();
        // The watching thread ends without a word only when it could not poll; then looking must do.
        if exited.wait_for(|gone| *gone).await.is_err() {
            while self.is_alive() {
                tokio::time::sleep(POLL).await;
            }
        }
    }

    /// Whether the postmaster still runs.
    pub fn is_alive(&self) -> bool {
        let mut wanted = [PollFd::new(&self.pidfd, PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            match poll(&mut wanted, Some(&now)) {
                Ok(ready) => return ready == 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return Path::new(&format!("/proc/{}", self.pid)).exists(),
            }
        }
    }

    /// Asks the server to stop and waits until its postmaster is gone.
    pub async fn stop(&self, mode: StopMode, deadline: Duration) -> Result<(), Trouble> {
        self.signal(mode.signal())?;
        tokio::time::timeout(deadline, self.exited()).await.map_err(|_| {
            Trouble::server_failed(
                format!("the server (process {}) has not stopped within {} ms", self.pid, deadline.as_millis()),
                "see the server's log; a stricter mode, or a kill, comes next",
            )
        })
    }

    /// Makes the server read its configuration again. It does so within milliseconds, but each of its processes at a
    /// moment of its own: see `Sql::wait_setting`.
    pub fn reload(&self) -> Result<(), Trouble> {
        self.signal(Signal::HUP)
    }

    fn signal(&self, signal: Signal) -> Result<(), Trouble> {
        send(&self.pidfd, self.pid, signal)
    }

    /// A handle whose process is watched by a thread of its own: it sees the end at once also when every thread of
    /// the runtime is busy, and a pidfd can be registered with the runtime's reactor only by unsafe code.
    fn watching(pid: i32, started_ticks: u64, pidfd: OwnedFd) -> Result<Server, Trouble> {
        let refused = |error: std::io::Error| {
            Trouble::os("cannot watch a process", "raise the limits of open files and threads").because(error)
        };
        let (closed, watched) = std::io::pipe().map_err(refused)?;
        let theirs = pidfd.try_clone().map_err(refused)?;
        let (tell, exited) = watch::channel(false);
        let wait = move || {
            let mut wanted = [PollFd::new(&theirs, PollFlags::IN), PollFd::new(&closed, PollFlags::IN)];
            loop {
                match poll(&mut wanted, None) {
                    Ok(_) if wanted[0].revents().is_empty() => return,
                    Ok(_) => {
                        tell.send_replace(true);
                        return;
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(_) => return,
                }
            }
        };
        std::thread::Builder::new().name("server-watch".into()).spawn(wait).map_err(refused)?;
        Ok(Server { pid, started_ticks, pidfd, exited, _watched: watched })
    }
}

/// A command of the installation: as the server's user, without supplementary groups, and without those variables of
/// our environment that would change what it does.
///
/// `detached` puts it into a session of its own, so that neither Ctrl-C nor a hang-up at the keeper's terminal reaches
/// it. That is the work of setsid(1), which replaces itself by the program; where it is missing a process group of its
/// own must do, which keeps off Ctrl-C.
pub(crate) fn clean_command(spec: &ServerSpec, program: &str, detached: bool) -> Command {
    let path = spec.installation.bin_dir.join(program);
    let setsid = ["/usr/bin/setsid", "/bin/setsid"].into_iter().find(|tool| Path::new(tool).exists());
    let mut command = match setsid {
        Some(setsid) if detached => {
            let mut command = Command::new(setsid);
            command.arg(&path);
            command
        }
        Some(_) | None => Command::new(&path),
    };
    if setsid.is_none() && detached {
        command.process_group(0);
    }
    if let Some(user) = &spec.user {
        // Setting the user id from root also empties the list of supplementary groups.
        command.uid(user.uid).gid(user.gid).env("HOME", "/").env("USER", &user.name).env("LOGNAME", &user.name);
    }
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let misleads = ["PG", "LC_", "LISTEN_", "STEMMA_", "WATCHDOG_"].iter().any(|start| text.starts_with(start));
        // With NOTIFY_SOCKET the server would report itself to the service manager in the keeper's name.
        if misleads || ["LANG", "LANGUAGE", "NOTIFY_SOCKET"].contains(&text.as_ref()) {
            command.env_remove(&name);
        }
    }
    command.env("LC_ALL", "C");
    command
}

/// Checks and tidies what would keep the server from starting.
fn prepare_start(spec: &ServerSpec) -> Result<(), Trouble> {
    let user = spec.user.as_ref();
    private_dir(&spec.socket_dir, user)?;
    let ssl = spec.tls_files.iter().flat_map(|files| [&files.cert, &files.key, &files.ca]);
    for path in [&spec.data_dir, &spec.socket_dir].into_iter().chain(ssl) {
        if let Some(closed) = first_closed_to(path, user) {
            return Err(Trouble::directory_unfit(
                format!("{} is closed to the server's user, who needs {}", closed.display(), path.display()),
                format!("chmod o+x {}", closed.display()),
            ));
        }
    }
    if let Some(files) = &spec.tls_files {
        check_key(&files.key, user)?;
    }
    if crate::rewind::mark::is_set(&spec.data_dir) {
        return Err(Trouble::directory_unfit(
            format!("a rewind of {} was cut off, so it holds no sound database", spec.data_dir.display()),
            "rebuild the node from a base backup",
        ));
    }
    let living = server_processes(&spec.data_dir);
    if !living.is_empty() {
        return Err(Trouble::server_failed(
            format!("{} processes of an earlier server still work in {}", living.len(), spec.data_dir.display()),
            "adopt the running server, or end its processes first",
        ));
    }
    // An initialisation killed at its very end: complete, but every base backup would carry what it worked in.
    let staging = spec.data_dir.join(crate::data_dir::INITDB_STAGING);
    if spec.data_dir.join("PG_VERSION").exists() && staging.exists() {
        fs::remove_dir_all(&staging).map_err(|error| refused("remove", &staging, &error))?;
    }
    // PostgreSQL takes any living process of that number for another postmaster. None works in this directory.
    for stale in [spec.data_dir.join("postmaster.pid"), spec.socket_dir.join(format!(".s.PGSQL.{}.lock", spec.port))] {
        if recorded_pid(&stale)
            .is_some_and(|pid| is_ours(&stale, &spec.data_dir) && !is_server_program(pid.saturating_abs()))
        {
            tracing::warn!(file = %stale.display(), "removed a lock file left by a server that is gone");
            crate::files::remove(&stale)?;
        }
    }
    Ok(())
}

/// The server refuses to start over a key that others may read, and says so only in its log.
fn check_key(key: &Path, user: Option<&OsUser>) -> Result<(), Trouble> {
    let found = fs::metadata(key).map_err(|error| refused("examine", key, &error))?;
    let (owner, mode) = (found.uid(), found.mode() & 0o777);
    let server = user.map_or_else(|| nix::unistd::Uid::effective().as_raw(), |user| user.uid);
    let fit = (owner == server && mode & 0o077 == 0) || (owner == 0 && mode & 0o037 == 0);
    if fit {
        return Ok(());
    }
    let name = user.map_or_else(|| server.to_string(), |user| user.name.clone());
    Err(Trouble::secret_exposed(
        format!("{} belongs to user id {owner} with mode {mode:04o}, which the server refuses", key.display()),
        format!("chown {name} {0} && chmod 0600 {0}", key.display()),
    ))
}

/// Line one of a lock file: the postmaster's process id (negative for a single-user server).
fn recorded_pid(path: &Path) -> Option<i32> {
    let text = fs::read_to_string(path).ok()?;
    let pid: i32 = text.lines().next()?.trim().parse().ok()?;
    Some(pid)
}

/// Line two of a lock file: its data directory.
fn is_ours(lock: &Path, data_dir: &Path) -> bool {
    let text = fs::read_to_string(lock).unwrap_or_default();
    let Some(named) = text.lines().nth(1).map(Path::new) else { return false };
    named == data_dir || fs::canonicalize(named).ok().is_some_and(|path| fs::canonicalize(data_dir).ok() == Some(path))
}

fn open_pidfd(pid: i32) -> Result<Option<OwnedFd>, Trouble> {
    let Some(pid) = Pid::from_raw(pid) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => {
            Err(Trouble::os("cannot open a handle of a process", "Linux 5.3 or newer is needed").because(error))
        }
    }
}

/// A directory by its identity, which mounts, links and renames do not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    device: u64,
    inode: u64,
}

impl Place {
    fn of(path: &Path) -> Option<Place> {
        let found = fs::metadata(path).ok()?;
        Some(Place { device: found.dev(), inode: found.ino() })
    }
}

fn works_in(pid: i32, place: Place) -> bool {
    Place::of(Path::new(&format!("/proc/{pid}/cwd"))) == Some(place)
}

/// Whether a process runs a server program; the file may have been replaced by an upgrade since.
fn is_server_program(pid: i32) -> bool {
    // A rewind that outlived its keeper writes into the directory as a server does.
    let known = |name: &str| ["postgres", "initdb", "edb-postgres", "pg_rewind"].contains(&name);
    match fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(exe) => exe.file_name().is_some_and(|name| known(name.to_string_lossy().trim_end_matches(" (deleted)"))),
        Err(_) => fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| known(comm.trim())),
    }
}

fn is_server_process(pid: i32, place: Place) -> bool {
    works_in(pid, place) && is_server_program(pid)
}

/// Fields of `/proc/<pid>/stat` after the name, which may itself hold spaces and brackets.
pub(crate) fn stat_field(pid: i32, field: usize) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = text.rsplit_once(')')?.1;
    rest.split_whitespace().nth(field.checked_sub(3)?)?.parse().ok()
}

fn parent_of(pid: i32) -> Option<i32> {
    stat_field(pid, 4).and_then(|parent| i32::try_from(parent).ok())
}

fn started_ticks(pid: i32) -> Option<u64> {
    stat_field(pid, 22)
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Every living server process that works in the data directory: postmaster, backends and helpers alike, also those
/// that outlived their postmaster. Processes that have ended but were not collected yet do not count.
pub fn server_processes(data_dir: &Path) -> Vec<i32> {
    let Some(place) = Place::of(data_dir) else { return Vec::new() };
    processes().filter(|pid| is_server_process(*pid, place)).collect()
}

/// Whether no process of the server is left: neither a postmaster nor one that outlived it. `false` where that cannot be known.
pub fn nothing_runs(spec: &ServerSpec) -> bool {
    Place::of(&spec.data_dir).is_some_and(|place| !processes().any(|pid| is_server_process(pid, place)))
}

/// The living processes of a data directory whose title names them so (`postgres: [cluster: ]<kind> ...`).
fn processes_titled(data_dir: &Path, kind: &str) -> Vec<i32> {
    let titled = |pid: &i32| {
        let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let title = String::from_utf8_lossy(&title).into_owned();
        title.split_once(": ").is_some_and(|(_, rest)| rest.contains(kind))
    };
    server_processes(data_dir).into_iter().filter(titled).collect()
}

/// The startup process of a replica, which replays the log and asks for receivers.
pub(crate) fn startup_processes(data_dir: &Path) -> Vec<i32> {
    processes_titled(data_dir, "startup")
}

/// The WAL receivers of a data directory. Unlike `pg_stat_wal_receiver`, which shows one only once it is connected,
/// this also finds one that is still connecting.
pub fn receiver_processes(data_dir: &Path) -> Vec<i32> {
    processes_titled(data_dir, "walreceiver")
}

/// Sends SIGTERM to a WAL receiver of this data directory: a reload alone does not stop it while replay is blocked.
/// Says whether there was such a process.
pub fn terminate_receiver(data_dir: &Path, pid: i32) -> Result<bool, Trouble> {
    let Some(pidfd) = open_pidfd(pid)? else { return Ok(false) };
    if !receiver_processes(data_dir).contains(&pid) {
        return Ok(false);
    }
    send(&pidfd, pid, Signal::TERM)?;
    Ok(true)
}

fn send(pidfd: &OwnedFd, pid: i32, signal: Signal) -> Result<(), Trouble> {
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => {
            Err(Trouble::os(format!("cannot signal process {pid}"), "run as root or as the server's user")
                .because(error))
        }
    }
}

/// A data directory by its identity, found while its disk still answered. Killing what works in it later asks /proc alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guarded(Place);

impl Guarded {
    /// Of this directory, if it is there.
    pub fn of(data_dir: &Path) -> Option<Guarded> {
        Place::of(data_dir).map(Guarded)
    }

    /// One round of killing: the processes that were found. Nothing is left when there are none.
    pub fn kill(self) -> Vec<i32> {
        let living: Vec<i32> = processes().filter(|pid| is_server_process(*pid, self.0)).collect();
        for pid in &living {
            if let Ok(Some(pidfd)) = open_pidfd(*pid)
                && is_server_process(*pid, self.0)
            {
                // What cannot be killed is found again in the next round.
                let _ = send(&pidfd, *pid, Signal::KILL);
            }
        }
        living
    }
}

/// Asks the system to run this process before others and not to end it for want of memory, as far as it is permitted.
pub fn be_urgent() {
    let _ = rustix::process::setpriority_process(None, -20);
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
}

/// Kills the postmaster and every process of the data directory until none is left; says how many were killed.
pub async fn kill_everything(spec: &ServerSpec, deadline: Duration) -> Result<u32, Trouble> {
    kill_in_directories(&[&spec.data_dir], deadline).await
}

/// Kills every server program that works in one of these directories. The postmaster goes in the first round, so
/// nothing new is started after it; a backend being started meanwhile is caught in the next.
pub(crate) async fn kill_in_directories(directories: &[&Path], deadline: Duration) -> Result<u32, Trouble> {
    let until = Instant::now() + deadline;
    let mut killed = std::collections::BTreeSet::new();
    loop {
        let living: Vec<i32> = directories.iter().flat_map(|dir| server_processes(dir)).collect();
        if living.is_empty() {
            return Ok(u32::try_from(killed.len()).unwrap_or(u32::MAX));
        }
        if Instant::now() >= until {
            return Err(Trouble::server_failed(
                format!("processes {living:?} of the server do not end though they were killed"),
                "they hang in the kernel, most likely on a disk: check it, or restart the machine",
            ));
        }
        for pid in living {
            let Some(pidfd) = open_pidfd(pid)? else { continue };
            // The number may have passed to another process since the list was made.
            if directories.iter().filter_map(|dir| Place::of(dir)).any(|place| is_server_process(pid, place)) {
                send(&pidfd, pid, Signal::KILL)?;
                killed.insert(pid);
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The end of the server's log, from the first whole line, at most so many bytes.
pub fn server_log_tail(spec: &ServerSpec, bytes: u64) -> String {
    let read = || -> std::io::Result<(Vec<u8>, bool)> {
        let mut file = fs::File::open(&spec.log_file)?;
        let from = file.metadata()?.len().saturating_sub(bytes);
        file.seek(SeekFrom::Start(from))?;
        let mut tail = Vec::new();
        file.take(bytes).read_to_end(&mut tail)?;
        Ok((tail, from > 0))
    };
    let Ok((tail, cut)) = read() else { return String::new() };
    let text = String::from_utf8_lossy(&tail);
    match text.split_once('\n') {
        Some((_, rest)) if cut => rest.trim_end().to_owned(),
        Some(_) | None => text.trim_end().to_owned(),
    }
}

/// How long the server's log is now; what a server says later begins there.
pub fn server_log_size(spec: &ServerSpec) -> u64 {
    fs::metadata(&spec.log_file).map_or(0, |metadata| metadata.len())
}

/// Why a server that is gone went, as far as it could still say so in its log after `since`: one line.
pub fn last_words(spec: &ServerSpec, since: u64) -> String {
    const LOOK_BACK: u64 = 64 << 10;
    // One byte more: the end of the line before, so that the first line of the part counts as whole.
    let part = server_log_size(spec).saturating_sub(since).saturating_add(1);
    let log = server_log_tail(spec, part.min(LOOK_BACK));
    last_words_in(&log).unwrap_or_else(|| "its processes ended without a word: they were killed".to_owned())
}

fn last_words_in(log: &str) -> Option<String> {
    let says = |line: &&str, what: &str| line.contains(what);
    // What sessions complain of is not the cause: that they lose their postmaster, or are not let in. Their lines name
    // user and database (`log_line_prefix`). Nor is it that a replica does not reach its primary.
    let by_session = |line: &&str, level: &str| line.split_once(level).is_some_and(|(head, _)| head.contains('@'));
    let harmless = [
        "terminating connection",
        "terminating walreceiver",
        "WAL stream",
        "end-of-streaming",
        "could not connect to the primary",
    ];
    let is_cause = |line: &&str| {
        let panics = says(line, "PANIC:  ") || says(line, "was terminated by signal");
        let fatal = says(line, "FATAL:  ") && !by_session(line, "FATAL:  ");
        panics || (fatal && !harmless.iter().any(|what| says(line, what)))
    };
    let lines: Vec<&str> = log.lines().collect();
    let at = lines.iter().rposition(is_cause)?;
    let text = |line: &str| {
        ["FATAL:  ", "PANIC:  ", "LOG:  "].iter().find_map(|level| Some(line.split_once(level)?.1.to_owned()))
    };
    let mut words = text(lines[at])?;
    // Which address, and what is wrong with it, is told a few lines before and not again.
    let mut before = lines[..at].iter().rev().take(6).filter_map(|line| line.split_once("LOG:  "));
    if words.contains("TCP/IP sockets")
        && let Some((_, bind)) = before.find(|(_, text)| text.starts_with("could not bind"))
    {
        words = format!("{words}: {bind}");
    }
    for line in lines[at + 1..].iter().take(2) {
        if let Some((_, more)) = line.split_once("DETAIL:  ").or_else(|| line.split_once("HINT:  ")) {
            words = format!("{words}; {more}");
        }
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::last_words_in;

    #[test]
    fn the_last_cause_is_told_and_complaints_of_sessions_are_not() {
        let log = "t [1] LOG:  starting PostgreSQL\n\
            t [1] LOG:  could not bind IPv4 address \"127.0.0.1\": Address already in use\n\
            t [1] FATAL:  could not create any TCP/IP sockets\n\
            t [1] HINT:  Is another postmaster running?\n\
            t [2] FATAL:  terminating connection due to unexpected postmaster exit\n\
            t [1] LOG:  database system is shut down";
        let told = "could not create any TCP/IP sockets: could not bind IPv4 address \"127.0.0.1\": Address already \
                    in use; Is another postmaster running?";
        assert_eq!(last_words_in(log).as_deref(), Some(told));
        let killed = "t [1] LOG:  startup process (PID 7) was terminated by signal 9: Killed";
        assert_eq!(
            last_words_in(killed).as_deref(),
            Some("startup process (PID 7) was terminated by signal 9: Killed")
        );
        assert_eq!(last_words_in("t [1] LOG:  redo starts at 0/20000D8"), None);
        let noise = "t [9] postgres@postgres FATAL:  pg_hba.conf rejects connection for host \"127.0.0.1\"\n\
            t [8] stemma@postgres FATAL:  the database system is starting up\n\
            t [7] FATAL:  could not connect to the primary server: connection refused\n\
            t [6] FATAL:  could not receive data from WAL stream: SSL SYSCALL error: EOF detected";
        assert_eq!(last_words_in(noise), None, "of a server that was killed nothing is left to say");
    }
}
