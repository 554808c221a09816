//! Named places at which a process under test can be made to die as by `kill -9`.
//!
//! "A keeper killed between any two steps goes on from the facts" is a promise about every step, so a test must be able
//! to die at each one on purpose rather than by luck. A step that changes something outside of the process (a file, the
//! store, a server) passes a point before and after. The end-to-end test `kill_points` walks `POINTS`, and fails for one
//! that it does not reach.
//!
//! A point is armed by a file, so that a process that runs already can be armed too: `STEMMA_KILL_FILE` names it, and
//! it holds `name` or `name:3`, which is the third pass. The process that dies renames the file to `<file>.hit` first:
//! that proves where it died, and of several processes that share the file exactly one dies.
//!
//! In release builds `pass` is empty and the variable is never read.

/// Every point, in the order in which a cluster's life meets them.
pub const POINTS: &[&str] = &[
    // `stemma init`
    "init.begun",
    "init.bootstrap-written",
    "init.credentials-written",
    "identity.staged",
    "init.ended",
    // The first start of the first node.
    "bootstrap.begun",
    "bootstrap.written",
    "bootstrap.ended",
    "initdb.begun",
    "initdb.running",
    "initdb.made",
    "initdb.roles-made",
    "initdb.half-moved",
    "initdb.version-moved",
    "database.learning",
    "database.learned",
    "server.configured",
    "server.started",
    "active.marking",
    "active.marked",
    "serve.roles-made",
    "lineage.in-database",
    // `stemma join`, at the new node and at the keeper that admits it.
    "join.key-kept",
    "join.answered",
    "join.identity-written",
    "admit.begun",
    "admit.written",
    // A clone.
    "slot.created",
    "clone.begun",
    "clone.marker-begun",
    "clone.marked",
    "clone.copying",
    "clone.copied",
    "clone.proved",
    "clone.synced",
    "clone.control-in-place",
    "clone.ended",
    "discard.begun",
    "discard.emptied",
    // A rebuild.
    "wipe.begun",
    "wipe.marked",
    "wipe.noted",
    // Commands and settings.
    "command.writing",
    "command.written",
    "configure.file-written",
    "configure.reloaded",
    // The durability rule and the server's list.
    "rule.writing",
    "rule.written",
    "sync.file-written",
    "sync.reloaded",
    "sync.in-force",
    // Members of the consensus group.
    "members.deciding",
    "members.learners-added",
    "members.voters-set",
    "members.removed",
    "leave.stopped",
    "removal.forgetting",
    "removal.forgot",
    // Certificates.
    "rotate.announced",
    "rotate.files-written",
    "rotate.taken-up",
    "rotate.bound",
    // A rolling restart.
    "restart.begun",
    "restart.stopped",
    "restart.ending",
    "restart.ended",
    // A change of primary.
    "failover.writing",
    "failover.written",
    "failover.promising",
    "failover.promised",
    "failover.detaching",
    "failover.detached",
    "failover.list-set",
    "failover.promoting",
    "failover.promote-ordered",
    "failover.row-written",
    "failover.attaching",
    "failover.attached",
    "failover.started",
    "failover.killed",
    "comeback.begun",
    "comeback.saved",
    "comeback.rewound",
    "comeback.given-up",
    "switchover.checkpointing",
    "switchover.checkpointed",
    "switchover.beginning",
    "switchover.begun",
    "switchover.draining",
    "switchover.drained",
];

/// Passes the point `name`; dies here if it is armed.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn pass(_name: &'static str) {}

#[cfg(debug_assertions)]
pub use armed::pass;

#[cfg(debug_assertions)]
mod armed {
    use super::POINTS;
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, OnceLock, PoisonError};

    /// Passes the point `name`; dies here if it is armed.
    pub fn pass(name: &'static str) {
        assert!(POINTS.contains(&name), "the point `{name}` is not in the list that the test walks");
        static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
        static COUNT: Mutex<(String, u32)> = Mutex::new((String::new(), 0));
        let Some(file) = FILE.get_or_init(|| std::env::var_os("STEMMA_KILL_FILE").map(PathBuf::from)) else { return };
        let mut count = COUNT.lock().unwrap_or_else(PoisonError::into_inner);
        if is_due(name, file, &mut count) {
            die();
        }
    }

    /// Whether this pass is the one that was asked for. `count` is what was asked for last, and its passes so far.
    pub(super) fn is_due(name: &str, file: &Path, count: &mut (String, u32)) -> bool {
        let Ok(asked) = std::fs::read_to_string(file) else { return false };
        let asked = asked.trim();
        let (wanted, passes) = match asked.split_once(':') {
            Some((wanted, passes)) => (wanted, passes.parse().unwrap_or(1)),
            None => (asked, 1),
        };
        if wanted != name {
            return false;
        }
        if count.0 != asked {
            *count = (asked.to_owned(), 0);
        }
        count.1 += 1;
        if count.1 < passes {
            return false;
        }
        count.1 = 0;
        let mut hit = file.as_os_str().to_owned();
        hit.push(".hit");
        // Who loses the race for the file was not the one to die.
        std::fs::rename(file, hit).is_ok()
    }

    fn die() -> ! {
        // Fails never for a process and itself; the abort is there so that nothing goes on in any case.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort()
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::armed::is_due;

    #[test]
    fn the_pass_that_was_asked_for_is_due_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("kill");
        let mut count = (String::new(), 0);
        assert!(!is_due("init.begun", &file, &mut count), "nothing is armed");
        std::fs::write(&file, "clone.copying:2\n").expect("written");
        assert!(!is_due("init.begun", &file, &mut count), "another point");
        assert!(!is_due("clone.copying", &file, &mut count), "the first pass");
        assert!(is_due("clone.copying", &file, &mut count), "the second pass");
        assert!(directory.path().join("kill.hit").exists() && !file.exists());
        assert!(!is_due("clone.copying", &file, &mut count), "it was taken");
    }

    #[test]
    fn points_have_one_name_each() {
        let mut names = super::POINTS.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), super::POINTS.len());
    }
}
