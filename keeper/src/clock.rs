//! The two clocks: one for decisions, one for people.

use model::{Moment, WallTime};
use nix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicU64, Ordering};

/// The monotonic moment. `CLOCK_BOOTTIME`, because `CLOCK_MONOTONIC` stands still while the machine is suspended: a
/// keeper that wakes up must see that its promises are old.
pub fn now() -> Moment {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME exists since Linux 2.6.39");
    Moment(time.tv_sec() as u64 * 1000 + time.tv_nsec() as u64 / 1_000_000)
}

/// Civil time, for people, certificates and audit only.
pub fn wall() -> WallTime {
    let time = clock_gettime(ClockId::CLOCK_REALTIME).expect("CLOCK_REALTIME always exists");
    WallTime(time.tv_sec() * 1000 + time.tv_nsec() / 1_000_000)
}

/// A keeper that notes no moment for this long was stopped or starved. Its threads note one every 100 ms.
const ASLEEP_AFTER: u64 = 500;

/// Since when somebody has been awake, who notes each moment at which it is.
struct Attention {
    last: AtomicU64,
    since: AtomicU64,
}

impl Attention {
    const fn new() -> Attention {
        Attention { last: AtomicU64::new(0), since: AtomicU64::new(0) }
    }

    fn since(&self, now: Moment) -> Moment {
        let last = self.last.fetch_max(now.0, Ordering::AcqRel);
        if now.0.saturating_sub(last) > ASLEEP_AFTER {
            self.since.fetch_max(now.0, Ordering::AcqRel);
        }
        Moment(self.since.load(Ordering::Acquire))
    }
}

static KEEPER: Attention = Attention::new();

/// Since when this keeper has been running without having been stopped or starved in between. What it did not hear while
/// it slept says nothing about others: silences and stalls are counted from here at the earliest. Whoever asks also notes
/// that the keeper is awake now.
pub fn attentive_since(now: Moment) -> Moment {
    KEEPER.since(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_slept_is_attentive_only_since_it_woke() {
        let attention = Attention::new();
        let ask = |at: u64| attention.since(Moment(at)).0;
        assert_eq!(ask(10_000), 10_000);
        assert_eq!(ask(10_000 + ASLEEP_AFTER), 10_000, "a pause like this is ordinary");
        assert_eq!(ask(20_000), 20_000);
        assert_eq!(ask(10_600), 20_000, "a thread that looked at the clock before the sleep");
        assert_eq!(ask(20_400), 20_000);
    }

    #[test]
    fn moments_do_not_go_back_and_civil_time_is_of_this_century() {
        let first = now();
        assert!(now() >= first);
        assert!(wall().0 > 1_600_000_000_000);
    }
}
