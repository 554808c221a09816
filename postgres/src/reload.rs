//! Proof that a reload has been taken up, not only by our own session.
//!
//! Whether a commit waits for replicas is a flag that the checkpointer sets when *it* reloads, and who may release a
//! waiting commit is decided by each walsender by what *it* has reloaded (PostgreSQL, `syncrep.c`:
//! `SyncRepUpdateSyncStandbysDefined`, `SyncRepReleaseWaiters`). Both reload at the top of their loops, some time after
//! the postmaster passed the signal on, and no view shows it. The kernel does: a process that has no SIGHUP pending and
//! sleeps has been through its loop, because the signal's handler sets the latch that it sleeps on.

use crate::sql::Sql;
use model::Trouble;
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

fn standing(pid: i32) -> Standing {
    match std::fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => judge(&status),
        // A process that is gone decides nothing; its successor starts with the new configuration.
        Err(_) => Standing::Done,
    }
}

/// Reads `/proc/<pid>/status` (proc(5)).
fn judge(status: &str) -> Standing {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let pending = |name: &str| field(name).and_then(|mask| u64::from_str_radix(mask, 16).ok());
    match (field("State:"), pending("SigPnd:"), pending("ShdPnd:")) {
        (Some(state), Some(own), Some(shared)) => {
            let sleeps = state.starts_with('S');
            let gone = state.starts_with(['Z', 'X']);
            if gone || (sleeps && (own | shared) & SIGHUP_BIT == 0) { Standing::Done } else { Standing::NotYet }
        }
        (None, _, _) | (_, None, _) | (_, _, None) => Standing::NotYet,
    }
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
