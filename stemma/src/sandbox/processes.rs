//! Processes of a sandbox: starting keepers, finding what belongs to a server, and hitting them with signals.

use super::layout::{KeeperProcess, SandboxNode};
use model::Trouble;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::time::Instant;

/// How often a condition is looked at.
pub const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How often new processes of a server are looked for after the first. A keeper may start the server again meanwhile;
/// that one is not meant any more.
const ROUNDS_MAX: u32 = 5;

/// The fields of `/proc/PID/stat` from the third on; the second may hold spaces and ends with the last `)`.
fn stat_fields(pid: i32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rest = text.get(text.rfind(')')? + 2..)?;
    Some(rest.split(' ').map(str::to_owned).collect())
}

/// When a process started, in ticks since boot; `None` when it is gone or only waits to be reaped.
pub fn start_ticks(pid: i32) -> Option<u64> {
    let fields = stat_fields(pid)?;
    if matches!(fields.first()?.as_str(), "Z" | "X") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

/// Whether the keeper that was started last still runs.
pub fn keeper_runs(node: &SandboxNode) -> bool {
    node.keeper.is_some_and(|keeper| start_ticks(keeper.pid) == Some(keeper.start_ticks))
}

/// All processes of the server in a data directory: every one of them works in that directory.
pub fn server_processes(data_dir: &Path) -> Vec<i32> {
    let Ok(data_dir) = data_dir.canonicalize() else { return Vec::new() };
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data_dir))
        .filter(|pid| start_ticks(*pid).is_some())
        .collect()
}

/// Sends a signal; a process that is gone already is no error.
pub fn signal(pid: i32, signal: Signal) -> Result<(), Trouble> {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(Trouble::os(
            format!("process {pid} could not be sent {signal}"),
            "run as the user who started the sandbox",
        )
        .because(error)),
    }
}

/// Sends a signal to the keeper, if it runs.
pub fn signal_keeper(node: &SandboxNode, what: Signal) -> Result<u32, Trouble> {
    match node.keeper.filter(|_| keeper_runs(node)) {
        Some(keeper) => signal(keeper.pid, what).map(|()| 1),
        None => Ok(0),
    }
}

/// Sends a signal to every process of the server, until a look finds no further one: while the list is read, the
/// server may start another. Returns which it hit.
pub fn signal_server(node: &SandboxNode, what: Signal) -> Result<BTreeSet<i32>, Trouble> {
    let mut hit = BTreeSet::new();
    for _ in 0..ROUNDS_MAX {
        let fresh: Vec<i32> = server_processes(&node.data_dir).into_iter().filter(|pid| !hit.contains(pid)).collect();
        if fresh.is_empty() {
            break;
        }
        for pid in fresh {
            signal(pid, what)?;
            hit.insert(pid);
        }
    }
    Ok(hit)
}

/// Waits until `condition` holds; `false` when the time was over before.
pub async fn wait_until(timeout: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Our own program as a command.
pub fn program() -> Result<std::process::Command, Trouble> {
    let path = std::env::current_exe().map_err(|error| {
        Trouble::os("the path of this program is unknown", "start it by its whole path").because(error)
    })?;
    let mut command = std::process::Command::new(path);
    // What steers this command must not steer the keepers.
    for name in ["STEMMA_API", "STEMMA_TOKEN_FILE", "STEMMA_SANDBOX"] {
        command.env_remove(name);
    }
    Ok(command)
}

/// Starts the keeper of a node in a session of its own; it goes on when this command has ended.
pub fn start_keeper(node: &mut SandboxNode) -> Result<(), Trouble> {
    let refused = |error: std::io::Error| {
        Trouble::os(format!("the keeper of {} could not be started", node.name), "check space and permissions")
            .because(error)
    };
    let log = std::fs::OpenOptions::new().create(true).append(true).open(&node.log).map_err(refused)?;
    let errors = log.try_clone().map_err(refused)?;
    let mut command = program()?;
    command.arg("run").arg("--new-session").arg("--config").arg(&node.config);
    command.current_dir("/").stdin(Stdio::null()).stdout(log).stderr(errors);
    let mut child = command.spawn().map_err(refused)?;
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    node.keeper = Some(KeeperProcess { pid, start_ticks: start_ticks(pid).unwrap_or(0) });
    // Reaps it if it ends before this command does; a dead child would look alive to everyone else.
    std::thread::spawn(move || child.wait());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_start_and_gone_when_reaped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        assert!(start_ticks(pid).is_some_and(|ticks| ticks > 0));
        signal(pid, Signal::SIGKILL).expect("our own child");
        child.wait().expect("reaped");
        assert_eq!(start_ticks(pid), None);
        signal(pid, Signal::SIGKILL).expect("a process that is gone is no error");
    }

    #[test]
    fn a_server_is_found_by_its_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut child =
            std::process::Command::new("sleep").arg("60").current_dir(directory.path()).spawn().expect("sleep starts");
        let pid = i32::try_from(child.id()).expect("a pid");
        assert_eq!(server_processes(directory.path()), [pid]);
        signal(pid, Signal::SIGKILL).expect("our own child");
        child.wait().expect("reaped");
        assert!(server_processes(directory.path()).is_empty());
    }
}
