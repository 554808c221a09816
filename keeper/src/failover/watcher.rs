//! The keeper's side of its watcher: a small process that is told until when the server may go on, and that kills it
//! when the keeper does not renew that. Only where a lease is needed is there one.

use super::council::ServerRight;
use adapters::address::Floating;
use cluster::failover::watch::Word;
use model::Moment;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// The name of the hidden command.
pub const COMMAND: &str = "lease-watcher";

/// See the module.
pub(super) struct Watcher {
    data_dir: PathBuf,
    floating: Option<Floating>,
    running: Option<(Child, UnixStream)>,
    told: Word,
    /// Watchers of earlier keepers may be there.
    others: bool,
}

impl Watcher {
    pub(super) fn new(data_dir: &Path, floating: Option<Floating>) -> Watcher {
        Watcher { data_dir: data_dir.to_owned(), floating, running: None, told: Word::default(), others: true }
    }

    /// Tells the watcher how things stand; called many times a second, and cheap where nothing changed.
    pub(super) fn tell(&mut self, right: ServerRight, address: Option<Moment>) {
        let server = match right {
            // The watcher of an earlier keeper knows better.
            ServerRight::Unknown => return,
            ServerRight::Free => None,
            ServerRight::Until(at) => Some(at),
        };
        let word = Word { server, address };
        if word != self.told || (word != Word::default() && self.running.is_none()) {
            self.say(word);
        }
        // Only now: until the new one knows what to watch, the old one goes on watching.
        if self.others {
            self.dismiss_others();
            self.others = false;
        }
        if word == Word::default() {
            self.dismiss();
        }
    }

    /// The keeper stops in order, and whoever stops it answers for the server.
    pub(super) fn dismiss(&mut self) {
        if let Some((mut child, _)) = self.running.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn say(&mut self, word: Word) {
        if word == Word::default() && self.running.is_none() {
            self.told = word;
            return;
        }
        // One that died, or that takes no words because it is stopped, is replaced.
        for _ in 0..2 {
            if self.running.is_none() {
                match start(&self.data_dir, self.floating.as_ref()) {
                    Ok(started) => self.running = Some(started),
                    Err(error) => {
                        tracing::error!(%error, "there is no watcher for the lease; the keeper watches alone");
                        return;
                    }
                }
            }
            let Some((_, way)) = &mut self.running else { return };
            if way.write_all(&word.to_bytes()).is_ok() {
                self.told = word;
                return;
            }
            self.dismiss();
        }
    }

    /// Ends watchers that earlier keepers of this data directory left.
    fn dismiss_others(&self) {
        let own = self.running.as_ref().and_then(|(child, _)| i32::try_from(child.id()).ok());
        for pid in watchers_of(&self.data_dir).into_iter().filter(|pid| Some(*pid) != own) {
            tracing::info!(pid, "the watcher of an earlier keeper is dismissed");
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

fn start(data_dir: &Path, floating: Option<&Floating>) -> std::io::Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    // Whatever has become of the program's file, this is the one that runs.
    let address = floating.map(|it| [format!("{}/{}", it.address, it.prefix), it.interface.clone()]);
    let child = Command::new("/proc/self/exe")
        .arg0("stemma")
        .arg(COMMAND)
        .arg(data_dir)
        .args(address.into_iter().flatten())
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        // What ends the keeper's terminal or group must not end it.
        .process_group(0)
        .current_dir("/")
        .spawn()?;
    tracing::info!(pid = child.id(), "a watcher minds the lease");
    Ok((child, ours))
}

/// Watchers of this data directory.
fn watchers_of(data_dir: &Path) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_ours = |pid: &i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0).skip(1);
        words.next() == Some(COMMAND.as_bytes()) && words.next() == Some(data_dir.as_os_str().as_encoded_bytes())
    };
    pids.filter(is_ours).collect()
}
