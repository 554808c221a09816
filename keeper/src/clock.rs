//! The two clocks: one for decisions, one for people.

use model::{Moment, WallTime};
use nix::time::{ClockId, clock_gettime};

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_do_not_go_back_and_civil_time_is_of_this_century() {
        let first = now();
        assert!(now() >= first);
        assert!(wall().0 > 1_600_000_000_000);
    }
}
