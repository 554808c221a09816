//! Leaving a replica alone after errors, and trying it again carefully.

use model::{Millis, Moment};

/// When a replica is ejected and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierPolicy {
    /// Errors in a row after which it is.
    pub errors_max: u32,
    /// How long, the first time; twice as long each time it fails again.
    pub ejection: Millis,
    /// At most this long.
    pub ejection_max: Millis,
}

impl Default for OutlierPolicy {
    fn default() -> OutlierPolicy {
        OutlierPolicy { errors_max: 3, ejection: Millis(1_000), ejection_max: Millis(60_000) }
    }
}

/// Where a replica stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// It is used.
    #[default]
    Closed,
    /// It is left alone until then.
    Open { until: Moment },
    /// One read was sent to see whether it is back, and no other is until it ended. A read that never ends must not
    /// keep it out for ever, so the trial has an end of its own.
    HalfOpen { until: Moment },
}

/// How long a trial may take before another one is allowed.
const TRIAL: Millis = Millis(5_000);

/// The memory of one replica's errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ejection {
    state: State,
    errors: u32,
    times: u32,
}

impl Ejection {
    /// Whether a read may be sent there.
    pub fn admits(&self, now: Moment) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until } | State::HalfOpen { until } => now >= until,
        }
    }

    /// Whether it is in ordinary use. One that is on trial is not, whatever comes of it.
    pub fn is_proven(&self) -> bool {
        self.state == State::Closed
    }

    /// A read is sent there.
    pub fn chosen(&mut self, now: Moment) {
        match self.state {
            State::Closed => {}
            State::Open { until } | State::HalfOpen { until } => {
                if now >= until {
                    self.state = State::HalfOpen { until: now.plus(TRIAL) };
                }
            }
        }
    }

    /// A read failed there. `others` is how many other replicas are in ordinary use: the last one is never ejected.
    pub fn failed(&mut self, policy: &OutlierPolicy, others: usize, now: Moment) {
        self.errors = self.errors.saturating_add(1);
        let trial = match self.state {
            State::Closed => false,
            // The answer to a read that was sent before the ejection.
            State::Open { .. } => return,
            State::HalfOpen { .. } => true,
        };
        if (trial || self.errors >= policy.errors_max) && others > 0 {
            let span = policy.ejection.0.saturating_mul(1 << self.times.min(20)).min(policy.ejection_max.0);
            self.state = State::Open { until: now.plus(Millis(span)) };
            self.times = self.times.saturating_add(1);
        }
    }

    /// A read succeeded there. `true` if the replica came back by it.
    pub fn succeeded(&mut self) -> bool {
        self.errors = 0;
        match self.state {
            State::Closed => {
                // A long quiet time is not needed to forgive: the next ejection would be as short as the first only
                // after a success in ordinary use.
                self.times = 0;
                false
            }
            // Sent before the ejection, it says nothing of the time after.
            State::Open { .. } => false,
            State::HalfOpen { .. } => {
                self.state = State::Closed;
                true
            }
        }
    }
}
