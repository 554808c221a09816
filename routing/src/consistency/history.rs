//! How stale a replica can be at most, by the clock of one observer (K-11).
//!
//! The observer asks the primary for its insert position again and again and remembers the moment *before* each question.
//! Whatever was acknowledged before that moment lies at or before the answer. A replica that has replayed to an answer
//! therefore sees everything acknowledged before the question. No clocks are compared, and an idle primary does no harm.

use model::{Lsn, Millis, Moment, Timeline};
use std::collections::VecDeque;

use crate::token::{Point, Switch};

/// Samples kept: a minute at one every 50 ms. A bound longer than what they span is judged by the oldest.
pub const SAMPLES_MAX: usize = 1200;

/// The samples of the present timeline, oldest first; neither times nor positions ever decrease.
#[derive(Clone, Debug, Default)]
pub struct History {
    timeline: Timeline,
    samples: VecDeque<(Moment, Lsn)>,
}

impl History {
    /// Of a primary on `timeline`.
    pub fn new(timeline: Timeline) -> History {
        History { timeline, samples: VecDeque::with_capacity(SAMPLES_MAX) }
    }

    /// Of which timeline the samples are.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The primary answered `lsn` to a question sent at `asked` or later. Answers that come out of order are dropped.
    pub fn heard(&mut self, asked: Moment, lsn: Lsn) {
        if let Some(&(moment, position)) = self.samples.back() {
            if asked < moment || lsn < position {
                return;
            }
            // While the primary stands still, the newest of equal positions says all that the older ones did.
            if position == lsn {
                self.samples.pop_back();
            }
        }
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back((asked, lsn));
    }

    /// Another timeline began. Samples beyond the switch speak of writes that are gone.
    pub fn switched(&mut self, switch: Switch) {
        if switch.from == self.timeline {
            while self.samples.back().is_some_and(|&(_, lsn)| lsn > switch.at) {
                self.samples.pop_back();
            }
        } else {
            self.samples.clear();
        }
        self.timeline = switch.to;
    }

    /// At most how much a replica misses that stands at `point`; `None` if no sample is old enough to tell.
    pub fn staleness(&self, point: Point, now: Moment) -> Option<Millis> {
        if point.timeline != self.timeline {
            return None;
        }
        let covered = self.samples.partition_point(|&(_, lsn)| lsn <= point.lsn);
        let (moment, _) = self.samples.get(covered.checked_sub(1)?)?;
        Some(now.since(*moment))
    }
}
