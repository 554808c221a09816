//! How long a keeper waits before it starts a server again that went away.

use model::{Millis, Moment};

/// First pause after a server that would not start; doubled up to `PAUSE_MAX`.
const PAUSE_MIN: Millis = Millis(250);
/// See `PAUSE_MIN`.
const PAUSE_MAX: Millis = Millis(30_000);
/// Longest pause where waiting is worse than trying: the server had come up, so that whatever ended it says nothing of the
/// next start; or nobody takes writes, and what this server holds may be what a failover waits for.
const PAUSE_SHORT: Millis = Millis(1_000);
/// A server that ran this long had started well: the next crash is a new story.
const STEADY_AFTER: Millis = Millis(60_000);

/// What is known of the starts of this node's server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Restarts {
    failures: u32,
    started_at: Moment,
    /// Whether the server answered since it was started.
    answered: bool,
    /// When it was last found gone.
    gone_at: Moment,
    not_before: Moment,
}

impl Restarts {
    /// Nothing is known of a server that was started at `now` or before.
    pub(super) fn new(now: Moment) -> Restarts {
        Restarts { failures: 0, started_at: now, answered: false, gone_at: now, not_before: now }
    }

    /// How often in a row it went away, or did not start.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// When it was last started.
    pub(super) fn started_at(&self) -> Moment {
        self.started_at
    }

    /// It is started now.
    pub(super) fn starts(&mut self, now: Moment) {
        self.started_at = now;
        self.answered = false;
    }

    /// It answered.
    pub(super) fn answers(&mut self) {
        self.answered = true;
    }

    /// It is gone. Returns the pause.
    pub(super) fn went_away(&mut self, now: Moment) -> Millis {
        if now.since(self.started_at) > STEADY_AFTER {
            self.failures = 0;
        }
        let most = if self.answered { PAUSE_SHORT } else { PAUSE_MAX };
        self.failures += 1;
        let pause = if self.failures <= 1 { Millis(0) } else { doubled(self.failures - 2, most) };
        self.pause(now, pause)
    }

    /// It could not even be started. Returns the pause.
    pub(super) fn did_not_start(&mut self, now: Moment) -> Millis {
        self.failures += 1;
        self.pause(now, doubled(self.failures, PAUSE_MAX))
    }

    fn pause(&mut self, now: Moment, pause: Millis) -> Millis {
        self.answered = false;
        self.gone_at = now;
        self.not_before = now.plus(pause);
        pause
    }

    /// What is left of the pause; `needed`: others wait for what this server holds.
    pub(super) fn wait(&self, now: Moment, needed: bool) -> Option<Millis> {
        let soon = self.gone_at.plus(PAUSE_SHORT);
        let due = if needed { self.not_before.min(soon) } else { self.not_before };
        (now < due).then(|| due.since(now))
    }

    /// Its data is made anew: what happened before says nothing.
    pub(super) fn forget(&mut self) {
        self.failures = 0;
    }
}

fn doubled(times: u32, most: Millis) -> Millis {
    Millis(PAUSE_MIN.0.saturating_mul(1 << times.min(10)).min(most.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_does_not_come_up_is_tried_ever_less_often() {
        let mut restarts = Restarts::new(Moment(0));
        let mut pauses = Vec::new();
        for crash in 1..=10 {
            restarts.starts(Moment(crash * 40_000));
            pauses.push(restarts.went_away(Moment(crash * 40_000 + 100)).0);
        }
        assert_eq!(pauses, [0, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
        let now = Moment(400_100);
        assert_eq!(restarts.wait(now, false), Some(Millis(30_000)));
        assert_eq!(restarts.wait(now, true), Some(Millis(1_000)), "unless others wait for it");
        assert_eq!(restarts.wait(now.plus(Millis(1_000)), true), None);
        assert_eq!(restarts.wait(now.plus(Millis(30_000)), false), None);
    }

    #[test]
    fn a_server_that_had_come_up_is_back_soon_however_often_it_is_killed() {
        let mut restarts = Restarts::new(Moment(0));
        for crash in 1..=20 {
            restarts.starts(Moment(crash * 10_000));
            restarts.answers();
            let pause = restarts.went_away(Moment(crash * 10_000 + 5_000));
            assert!(pause <= PAUSE_SHORT, "crash {crash}: {pause:?}");
        }
        assert_eq!(restarts.failures(), 20, "it is as hopeless as ever, and better replaced");
        // What it answered in one life says nothing of the next one.
        restarts.starts(Moment(300_000));
        assert!(restarts.went_away(Moment(300_100)) > PAUSE_SHORT);
    }

    #[test]
    fn a_crash_after_a_long_life_is_a_new_story() {
        let mut restarts = Restarts::new(Moment(0));
        for crash in 1..=5 {
            restarts.starts(Moment(crash * 100_000));
            assert_eq!(restarts.went_away(Moment(crash * 100_000 + 61_000)), Millis(0));
        }
        assert!(restarts.did_not_start(Moment(600_000)) > Millis(0), "one that cannot be started at all waits at once");
    }
}
