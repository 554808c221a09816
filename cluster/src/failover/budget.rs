//! Against flapping: automatic failovers that follow each other quickly must wait longer and longer, and never for ever.
//!
//! Counted per keeper from what it saw, by its own monotonic clock; planned switchovers and repairs do not count. A
//! failover that is really needed is delayed by at most `WAIT_MAX`, so the budget cannot starve it.

use model::{Millis, Moment};

/// Failovers within the window that need not wait.
pub const FREE: usize = 3;
/// The window.
pub const WINDOW: Millis = Millis::from_secs(3_600);
/// First wait beyond the free ones; doubled with each further one.
pub const WAIT_FIRST: Millis = Millis(1_000);
/// Longest wait.
pub const WAIT_MAX: Millis = Millis(60_000);

/// How long a primary must be known dead before a failover may begin, after `done` automatic ones.
pub fn wait(done: &[Moment], now: Moment) -> Millis {
    let recent = done.iter().filter(|at| now.since(**at) < WINDOW).count();
    match recent.checked_sub(FREE) {
        None => Millis(0),
        Some(beyond) => Millis((WAIT_FIRST.0 << beyond.min(16)).min(WAIT_MAX.0)),
    }
}
