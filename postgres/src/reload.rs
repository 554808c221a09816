//! Proof that a reload has been taken up, not only by our own session.
//!
//! Whether a commit waits for replicas is a flag that the checkpointer sets when *it* reloads, and who may release a
//! waiting commit is decided by each walsender by what *it* has reloaded (PostgreSQL, `syncrep.c`:
//! `SyncRepUpdateSyncStandbysDefined`, `SyncRepReleaseWaiters`). Both reload at the top of their loops, some time after
//! the postmaster passed the signal on, and no view shows it. The kernel does: a process that has no SIGHUP pending and
//! sleeps has been through its loop, because the signal's handler sets the latch that it sleeps on.

use crate::process::{receiver_processes, startup_processes, stat_field, terminate_receiver};
use crate::sql::Sql;
use model::Trouble;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often the processes are looked at.
const POLL: Duration = Duration::from_millis(2);
/// SIGHUP in the kernel's signal masks: bit (number - 1).
const SIGHUP_BIT: u64 = 1;

/// How one process stands towards a signal sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It has taken the signal and sleeps again, or it is gone.
    Done,
    /// Not yet, or it is at work.
    NotYet,
}

impl Sql {
    /// Waits until every process that decides about synchronous commits has taken up a reload that this session
    /// already sees. Fails with `ST3021` after `deadline`; ask again then, nothing may be concluded before.
    pub async fn wait_reload_everywhere(&self, deadline: Duration) -> Result<(), Trouble> {
        let until = Instant::now() + deadline;
        let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type IN ('checkpointer', 'walsender')";
        let rows = self.query_text(sql).await?;
        let mut waiting: Vec<i32> = rows.iter().filter_map(|row| row.first()?.as_ref()?.parse().ok()).collect();
        loop {
            waiting.retain(|pid| standing(*pid) == Standing::NotYet);
            if waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(Trouble::sql(
                    format!("processes {waiting:?} of the server have not taken up its configuration yet"),
                    "a long checkpoint or a stopped process delays it; it is tried again",
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Ends the WAL receivers of a replica whose configuration names no upstream any more and that was told to read it
/// (`Server::reload`), and waits until none is left and none can come: the startup process, which asks for receivers,
/// has taken up the configuration as well. Works while replay is blocked, when a reload alone does nothing.
///
/// # Errors
/// `ST3021` after `deadline`: nothing may be concluded, try again.
pub async fn cut_receiver(data_dir: &Path, deadline: Duration) -> Result<(), Trouble> {
    let until = Instant::now() + deadline;
    let mut startup = Startup::default();
    loop {
        // In this order: whoever asks for receivers first, then what it may have asked for before.
        let settled = startup.look(&startup_processes(data_dir));
        let receivers = receiver_processes(data_dir);
        if settled && receivers.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(Trouble::sql(
                format!("the stream is not cut yet: receivers {receivers:?}, startup process settled: {settled}"),
                "a stopped process or a hung disk delays it; it is tried again",
            ));
        }
        for pid in receivers {
            terminate_receiver(data_dir, pid)?;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What was seen of the startup process, which may be at work for long.
#[derive(Default)]
struct Startup {
    /// Without the signal pending, it had used so much processor time.
    seen: Option<(i32, u64)>,
}

impl Startup {
    /// Whether it has passed the place at which it takes up its configuration: it sleeps, or has worked since it was
    /// first seen without the signal (the handler has run, and the next record makes it look).
    fn look(&mut self, pids: &[i32]) -> bool {
        let [pid] = pids else { return false };
        let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return false };
        if judge(&status) == Standing::Done {
            return true;
        }
        if has_signal(&status) || field(&status, "State:").is_none_or(|state| state.starts_with(['T', 't'])) {
            self.seen = None;
            return false;
        }
        let used = used_ticks(*pid).unwrap_or(0);
        match self.seen {
            Some((seen, before)) if seen == *pid => used > before,
            Some(_) | None => {
                self.seen = Some((*pid, used));
                false
            }
        }
    }
}

/// Processor time used, in clock ticks (proc(5), `utime` and `stime` of `/proc/<pid>/stat`).
fn used_ticks(pid: i32) -> Option<u64> {
    Some(stat_field(pid, 14)? + stat_field(pid, 15)?)
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn has_signal(status: &str) -> bool {
    let pending = |name: &str| field(status, name).and_then(|mask| u64::from_str_radix(mask, 16).ok());
    pending("SigPnd:").zip(pending("ShdPnd:")).is_none_or(|(own, shared)| (own | shared) & SIGHUP_BIT != 0)
}

fn standing(pid: i32) -> Standing {
    match std::fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => judge(&status),
        // A process that is gone decides nothing; its successor starts with the new configuration.
        Err(_) => Standing::Done,
    }
}

/// Reads `/proc/<pid>/status` (proc(5)).
fn judge(status: &str) -> Standing {
    let Some(state) = field(status, "State:") else { return Standing::NotYet };
    let gone = state.starts_with(['Z', 'X']);
    if gone || (state.starts_with('S') && !has_signal(status)) { Standing::Done } else { Standing::NotYet }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sleeping_process_without_the_signal_has_taken_it() {
        let status = |state: &str, own: &str, shared: &str| {
            judge(&format!("Name:\tpostgres\nState:\t{state}\nSigPnd:\t{own}\nShdPnd:\t{shared}\n"))
        };
        let (none, hangup) = ("0000000000000000", "0000000000000001");
        assert_eq!(status("S (sleeping)", none, none), Standing::Done);
        assert_eq!(status("Z (zombie)", none, hangup), Standing::Done);
        assert_eq!(status("R (running)", none, none), Standing::NotYet);
        assert_eq!(status("D (disk sleep)", none, none), Standing::NotYet);
        assert_eq!(status("T (stopped)", none, hangup), Standing::NotYet);
        assert_eq!(status("S (sleeping)", none, hangup), Standing::NotYet);
        assert_eq!(status("S (sleeping)", hangup, none), Standing::NotYet);
        assert_eq!(status("S (sleeping)", none, "0000000000004000"), Standing::Done, "another signal");
        assert_eq!(judge(""), Standing::NotYet);
    }
}
