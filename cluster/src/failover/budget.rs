//! Against flapping: automatic failovers that follow each other quickly must wait longer and longer, and never for ever.
//!
//! Counted per keeper from what it saw, by its own monotonic clock; planned switchovers and repairs do not count. Nor does,
//! and nor waits, a failover whose primary is gone by its own keeper's word: nobody has misjudged it, it takes no writes
//! while others wait, and its keeper leaves it down only for a moment. A failover that is really needed is delayed by at
//! most `WAIT_MAX`, so the budget cannot starve it.

use super::detect::GONE;
use model::{Millis, Moment};

/// Failovers within the window that need not wait.
pub const FREE: usize = 3;
/// The window.
pub const WINDOW: Millis = Millis::from_secs(3_600);
/// First wait beyond the free ones; doubled with each further one.
pub const WAIT_FIRST: Millis = Millis(1_000);
/// Longest wait.
pub const WAIT_MAX: Millis = Millis(60_000);

/// Whether an attempt begun for this reason counts, and may have to wait.
pub fn counts(because: &str) -> bool {
    because != GONE
}

/// How long a primary must be known dead for this reason before a failover may begin, after `done` automatic ones that count.
pub fn wait(because: &str, done: &[Moment], now: Moment) -> Millis {
    let recent = done.iter().filter(|at| now.since(**at) < WINDOW).count();
    match recent.checked_sub(FREE) {
        Some(beyond) if counts(because) => Millis((WAIT_FIRST.0 << beyond.min(16)).min(WAIT_MAX.0)),
        Some(_) | None => Millis(0),
    }
}
