//! Which of the replicas that may serve a read shall serve it (5.6).
//!
//! The caller has asked [`crate::consistency::eligible`] first. Here they are narrowed: not ejected, without much lag, at
//! the nearest site that is not overloaded; then the method picks one. Randomness and time are arguments. Each worker has
//! its own balancer, so there is no lock.

mod outlier;
#[cfg(test)]
mod tests;

use model::{LagBytes, Millis, Moment, NodeId, Site};
pub use outlier::{Ejection, OutlierPolicy};

/// A duration in microseconds: how long answers take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Micros(pub u64);

/// How one of several good replicas is picked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Method {
    /// In turn.
    RoundRobin,
    /// In turn by weight, spread evenly: `a a b` comes as `a b a`.
    Weighted,
    /// The one with the fewest statements running, by weight.
    LeastConnections,
    /// Two at random, of which the one with less expected waiting: recent worst latency times statements running.
    #[default]
    Latency,
}

impl Method {
    /// The words of the configuration.
    pub fn parse(text: &str) -> Option<Method> {
        match text {
            "round-robin" => Some(Method::RoundRobin),
            "weighted" => Some(Method::Weighted),
            "least-connections" => Some(Method::LeastConnections),
            "latency" => Some(Method::Latency),
            _ => None,
        }
    }
}

/// What is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How one is picked.
    pub method: Method,
    /// Where the router is; `None` if sites do not matter.
    pub site: Option<Site>,
    /// A site is full when each of its replicas runs this many statements per unit of weight: then the others help.
    pub spill_in_flight: u32,
    /// Replicas that trail by more are taken only if no other is left (the soft tier).
    pub lag_soft: LagBytes,
    /// How long a replica that came (back) takes to get its full share.
    pub ramp: Millis,
    /// When a replica is left alone because of errors.
    pub outlier: OutlierPolicy,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            method: Method::Latency,
            site: None,
            spill_in_flight: 32,
            lag_soft: LagBytes(16 << 20),
            ramp: Millis(10_000),
            outlier: OutlierPolicy::default(),
        }
    }
}

/// Most replicas that are balanced over; more are not considered.
pub const NODES_MAX: usize = 64;
/// The share with which a replica begins, of [`FULL_SHARE`].
const FIRST_SHARE: u64 = 100;
const FULL_SHARE: u64 = 1000;
/// The weight of a replica for which none is configured.
pub const WEIGHT_DEFAULT: u32 = 100;
/// Time in which an old peak of latency loses about two thirds of its worth.
const PEAK_DECAY: Micros = Micros(10_000_000);
/// Taken for the latency of a replica that has not answered yet: small, so that it is tried.
const LATENCY_UNKNOWN: u64 = 100;

/// A replica that may serve the read at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub node: NodeId,
    /// How far it trails.
    pub lag: LagBytes,
}

/// What is remembered of a replica.
#[derive(Clone, Debug)]
struct Seat {
    node: NodeId,
    site: Option<Site>,
    weight: u32,
    in_flight: u32,
    /// Recent worst latency in microseconds, and when it was last brought up to date.
    peak: f64,
    peaked_at: Moment,
    /// Of the smooth turn.
    current: i64,
    joined: Moment,
    ejection: Ejection,
}

/// A choice, and what of it is worth counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Who serves the read. The caller tells the outcome with [`Balancer::finished`].
    pub node: NodeId,
    /// It is at another site than the router although that has replicas.
    pub spilled: bool,
    /// Every candidate was ejected, so the ejections were not heeded.
    pub desperate: bool,
}

/// Spreads reads over replicas.
#[derive(Clone, Debug)]
pub struct Balancer {
    policy: Policy,
    seats: Vec<Seat>,
}

/// A set of seats, one bit each.
type Mask = u64;

impl Balancer {
    /// Without replicas yet.
    pub fn new(policy: Policy) -> Balancer {
        Balancer { policy, seats: Vec::new() }
    }

    /// Another way to pick; what is remembered of the replicas stays.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// A replica joined, or its site or weight changed. One that is new begins with a small share.
    pub fn join(&mut self, node: NodeId, site: Option<Site>, weight: u32, now: Moment) {
        if let Some(seat) = self.seats.iter_mut().find(|seat| seat.node == node) {
            seat.site = site;
            seat.weight = weight;
            return;
        }
        if self.seats.len() < NODES_MAX {
            let ejection = Ejection::default();
            let (in_flight, peak, current) = (0, 0.0, 0);
            self.seats.push(Seat {
                node,
                site,
                weight,
                in_flight,
                peak,
                peaked_at: now,
                current,
                joined: now,
                ejection,
            });
        }
    }

    /// A replica left.
    pub fn leave(&mut self, node: NodeId) {
        self.seats.retain(|seat| seat.node != node);
    }

    /// Picks one of `candidates`, and counts the read as running there. `None` only if none of them has joined.
    /// `random` is any number, of which all bits are used.
    pub fn choose(&mut self, candidates: &[Candidate], now: Moment, random: u64) -> Option<Choice> {
        let all = self.mask(candidates, |_| true);
        if all == 0 {
            return None;
        }
        let open = self.of(all, |seat| seat.ejection.admits(now));
        // Never eject the last: where nobody is left, errors are better than nothing, and may be over.
        let desperate = open == 0;
        let open = if desperate { all } else { open };
        let fresh = open & self.mask(candidates, |candidate| candidate.lag <= self.policy.lag_soft);
        let tier = if fresh == 0 { open } else { fresh };
        let near = self.nearest(tier, now);
        let at = self.pick(near, now, random);
        let own = self.policy.site.is_some() && self.of(tier, |seat| seat.site == self.policy.site) != 0;
        let seat = &mut self.seats[at];
        seat.in_flight += 1;
        seat.ejection.chosen(now);
        Some(Choice { node: seat.node, spilled: own && seat.site != self.policy.site, desperate })
    }

    /// A read that was to be sent there is not sent after all.
    pub fn withdrawn(&mut self, node: NodeId) {
        if let Some(seat) = self.seats.iter_mut().find(|seat| seat.node == node) {
            seat.in_flight = seat.in_flight.saturating_sub(1);
        }
    }

    /// A read ended. `failed` means by the replica's fault: no connection, a broken one, a time-out.
    pub fn finished(&mut self, node: NodeId, latency: Micros, failed: bool, now: Moment) {
        let (policy, ramp) = (self.policy.outlier, self.policy.ramp);
        let others = self.seats.iter().filter(|seat| seat.node != node && seat.ejection.is_proven()).count();
        let Some(seat) = self.seats.iter_mut().find(|seat| seat.node == node) else { return };
        seat.in_flight = seat.in_flight.saturating_sub(1);
        if failed {
            seat.ejection.failed(&policy, others, now);
        } else {
            seat.observe(latency, now);
            if seat.ejection.succeeded() {
                // Back from an ejection: it gets its share bit by bit again.
                seat.joined = Moment(now.0).minus(Millis(ramp.0 * FIRST_SHARE / FULL_SHARE));
            }
        }
    }

    /// Whether a replica is left alone at the moment.
    pub fn is_ejected(&self, node: NodeId, now: Moment) -> bool {
        self.seats.iter().any(|seat| seat.node == node && !seat.ejection.admits(now))
    }

    /// How many reads run on a replica.
    pub fn in_flight(&self, node: NodeId) -> u32 {
        self.seats.iter().find(|seat| seat.node == node).map_or(0, |seat| seat.in_flight)
    }

    fn mask(&self, candidates: &[Candidate], keep: impl Fn(&Candidate) -> bool) -> Mask {
        let mut mask = 0;
        for candidate in candidates.iter().filter(|candidate| keep(candidate)) {
            if let Some(at) = self.seats.iter().position(|seat| seat.node == candidate.node && seat.weight > 0) {
                mask |= 1 << at;
            }
        }
        mask
    }

    fn of(&self, mask: Mask, keep: impl Fn(&Seat) -> bool) -> Mask {
        bits(mask).filter(|&at| keep(&self.seats[at])).fold(0, |mask, at| mask | 1 << at)
    }

    /// Those at the router's own site while one of them has room; else all.
    fn nearest(&self, mask: Mask, now: Moment) -> Mask {
        if self.policy.site.is_none() {
            return mask;
        }
        let own = self.of(mask, |seat| seat.site == self.policy.site);
        let full = |at: usize| {
            let seat = &self.seats[at];
            let room = u64::from(self.policy.spill_in_flight) * self.share(seat, now);
            u64::from(seat.in_flight) * FULL_SHARE * u64::from(WEIGHT_DEFAULT) >= room
        };
        if own == 0 || bits(own).all(full) { mask } else { own }
    }

    /// Weight times how far the replica has come back, in thousandths.
    fn share(&self, seat: &Seat, now: Moment) -> u64 {
        let age = now.since(seat.joined).0;
        let ramp = self.policy.ramp.0;
        let part = if age >= ramp { FULL_SHARE } else { (FULL_SHARE * age / ramp).max(FIRST_SHARE) };
        u64::from(seat.weight) * part
    }

    fn pick(&mut self, mask: Mask, now: Moment, random: u64) -> usize {
        match self.policy.method {
            Method::RoundRobin => self.smooth(mask, now, false),
            Method::Weighted => self.smooth(mask, now, true),
            Method::LeastConnections => {
                // Fractions are compared by multiplying, so that no weight is rounded away; ties go in turn.
                let first = self.smooth(mask, now, true);
                bits(mask).fold(first, |best, at| if self.is_less_busy(at, best, now) { at } else { best })
            }
            Method::Latency => self.two_choices(mask, now, random),
        }
    }

    /// Smooth weighted turn: everyone earns its share, the richest serves and pays for all.
    fn smooth(&mut self, mask: Mask, now: Moment, weighted: bool) -> usize {
        let (mut total, mut best) = (0, mask.trailing_zeros() as usize);
        for at in bits(mask) {
            let seat = &self.seats[at];
            let weight = if weighted { 1 } else { u64::from(seat.weight) };
            let share = (self.share(seat, now) / weight).max(1) as i64;
            self.seats[at].current += share;
            total += share;
            if self.seats[at].current > self.seats[best].current {
                best = at;
            }
        }
        self.seats[best].current -= total;
        best
    }

    fn is_less_busy(&self, at: usize, than: usize, now: Moment) -> bool {
        let load = |at: usize| u128::from(self.seats[at].in_flight + 1);
        let share = |at: usize| u128::from(self.share(&self.seats[at], now));
        load(at) * share(than) < load(than) * share(at)
    }

    fn two_choices(&self, mask: Mask, now: Moment, random: u64) -> usize {
        let count = mask.count_ones();
        let first = random as u32 % count;
        if count == 1 {
            return nth(mask, first);
        }
        // Another one, each with the same chance.
        let second = (first + 1 + (random >> 32) as u32 % (count - 1)) % count;
        let (a, b) = (nth(mask, first), nth(mask, second));
        if self.cost(b, now) < self.cost(a, now) { b } else { a }
    }

    /// Expected waiting: what the worst recent answer took, once per statement before us, by share.
    fn cost(&self, at: usize, now: Moment) -> f64 {
        let seat = &self.seats[at];
        let peak = seat.decayed(now).max(LATENCY_UNKNOWN as f64);
        peak * f64::from(seat.in_flight + 1) / self.share(seat, now) as f64
    }
}

impl Seat {
    fn decayed(&self, now: Moment) -> f64 {
        let age = now.since(self.peaked_at).0 as f64 * 1000.0;
        self.peak * (-age / PEAK_DECAY.0 as f64).exp()
    }

    /// A worse answer counts at once, a better one bit by bit: a replica that stalls is left quickly.
    fn observe(&mut self, latency: Micros, now: Moment) {
        let old = self.decayed(now);
        let new = latency.0 as f64;
        let age = now.since(self.peaked_at).0 as f64 * 1000.0;
        let kept = (-age / PEAK_DECAY.0 as f64).exp();
        self.peak = if new > old { new } else { old * kept + new * (1.0 - kept) };
        self.peaked_at = now;
    }
}

/// The places of the ones in a mask.
fn bits(mask: Mask) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        let at = rest.trailing_zeros();
        rest &= rest.checked_sub(1)?;
        Some(at as usize)
    })
}

/// The place of the `n`th one, counted from 0.
fn nth(mask: Mask, n: u32) -> usize {
    bits(mask).nth(n as usize).unwrap_or(mask.trailing_zeros() as usize)
}
