//! How fast a clone goes: the rate shown to people, and the brake where the server has none.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The rate shown is an average over so long.
const RATE_WINDOW: Duration = Duration::from_secs(3);
/// Two samples are at least so far apart.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// After a stall, the brake lets at most so much time be caught up.
const BURST: Duration = Duration::from_millis(250);

/// Bytes wanted and bytes here, readable from the disk side for its error messages.
#[derive(Debug, Default)]
pub struct Tally {
    /// Estimate of the whole.
    pub total: AtomicU64,
    /// Received so far.
    pub done: AtomicU64,
}

impl Tally {
    /// What is still to come, by the estimate.
    pub fn left(&self) -> u64 {
        self.total.load(Ordering::Relaxed).saturating_sub(self.done.load(Ordering::Relaxed))
    }
}

/// Measures a rate over the last seconds.
#[derive(Debug)]
pub struct Meter {
    samples: VecDeque<(Instant, u64)>,
}

impl Meter {
    /// From now on.
    pub fn new(now: Instant) -> Meter {
        Meter { samples: VecDeque::from([(now, 0)]) }
    }

    /// Notes the sum of bytes so far. Answers bytes per second when enough time has passed for a new sample.
    pub fn note(&mut self, now: Instant, bytes: u64) -> Option<u64> {
        let last = self.samples.back().map_or(now, |&(at, _)| at);
        if now.duration_since(last) < SAMPLE_INTERVAL {
            return None;
        }
        self.samples.push_back((now, bytes));
        // One sample older than the window stays, so that the window is always covered.
        while self.samples.len() > 2 && now.duration_since(self.samples[1].0) >= RATE_WINDOW {
            self.samples.pop_front();
        }
        let (at, before) = self.samples[0];
        Some((bytes.saturating_sub(before) as f64 / now.duration_since(at).as_secs_f64()) as u64)
    }
}

/// Keeps a stream below a rate.
#[derive(Debug)]
pub struct Brake {
    rate_bytes_per_s: u64,
    due: Instant,
}

impl Brake {
    /// A rate of 0 is no limit.
    pub fn new(rate_bytes_per_s: u64, now: Instant) -> Brake {
        Brake { rate_bytes_per_s, due: now }
    }

    /// Until when to wait after so many more bytes; None: go on.
    pub fn after(&mut self, bytes: u64, now: Instant) -> Option<Instant> {
        if self.rate_bytes_per_s == 0 {
            return None;
        }
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        self.due = self.due.max(earliest) + Duration::from_secs_f64(bytes as f64 / self.rate_bytes_per_s as f64);
        (self.due > now).then_some(self.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_three_seconds() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        assert_eq!(meter.note(start + Duration::from_millis(50), 10), None, "too soon");
        let mut rate = 0;
        for tenth in 1..=100u64 {
            let bytes = if tenth <= 50 { tenth * 1000 } else { 50_000 + (tenth - 50) * 100 };
            rate = meter.note(start + Duration::from_millis(tenth * 100), bytes).expect("a sample");
            if tenth == 50 {
                assert_eq!(rate, 10_000);
            }
        }
        assert_eq!(rate, 1_000, "the fast beginning is forgotten");
    }

    #[test]
    fn the_brake_spreads_bytes_and_allows_no_long_burst() {
        let start = Instant::now();
        let mut brake = Brake::new(1000, start);
        assert_eq!(brake.after(500, start), Some(start + Duration::from_millis(500)));
        assert_eq!(brake.after(500, start), Some(start + Duration::from_secs(1)));
        let later = start + Duration::from_secs(60);
        assert_eq!(brake.after(200, later), None, "a small burst after a stall");
        assert_eq!(brake.after(100, later), Some(later + Duration::from_millis(50)));
        assert_eq!(Brake::new(0, start).after(1 << 40, start), None);
    }
}
