//! What a router counts: why statements went where they went, how long each part of a request took, and what became of
//! requests whose server was lost. Each worker counts for itself; readers add up.

use routing::Reason;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A part of a request's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for a server connection: none is free, statements are held, or a replica has still to catch up.
    Queue,
    /// In our own hands.
    Router,
    /// From the last byte to the server until the last byte of its answer.
    Server,
}

impl Stage {
    /// All, in order.
    pub const ALL: [Stage; 3] = [Stage::Queue, Stage::Router, Stage::Server];

    /// The word shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Queue => "queue",
            Stage::Router => "router",
            Stage::Server => "server",
        }
    }
}

/// Times by powers of two, from 16 µs; everything from 8 s on is in the last.
const BUCKETS: usize = 21;
/// The end of the first bucket.
const FIRST_MICROS: u64 = 16;

/// How often times of each length came.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_micros: AtomicU64,
}

/// Adds to a number that only one thread writes: cheaper than what several may write.
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
}

impl Histogram {
    /// Counts one. To be called by one thread only.
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let index = (micros / FIRST_MICROS).checked_ilog2().map_or(0, |log| log as usize + 1);
        add(&self.buckets[index.min(BUCKETS - 1)], 1);
        add(&self.sum_micros, micros);
    }
}

/// Times of all workers together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times {
    buckets: [u64; BUCKETS],
    sum_micros: u64,
}

impl Times {
    fn add(&mut self, histogram: &Histogram) {
        for (sum, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *sum += bucket.load(Relaxed);
        }
        self.sum_micros += histogram.sum_micros.load(Relaxed);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Their mean, in microseconds.
    pub fn mean_micros(&self) -> u64 {
        self.sum_micros.checked_div(self.count()).unwrap_or(0)
    }

    /// A time that this share of them did not exceed, in microseconds: the end of a bucket.
    pub fn quantile_micros(&self, share: f64) -> u64 {
        let wanted = (self.count() as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return FIRST_MICROS << index;
            }
        }
        0
    }
}

/// Why a request went where it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A replica serves it.
    Replica(Reason),
    /// The primary serves it, by what it is.
    Primary(Reason),
    /// A replica might have served it, and none was far enough, or none is there.
    NoReplica,
    /// Reads and writes are not told apart here.
    Unsplit,
}

const REASONS: usize = Reason::ALL.len();

/// What one worker counts, and no other thread.
#[derive(Debug)]
pub struct WorkerStats {
    stages: [Histogram; 3],
    replica: [AtomicU64; REASONS],
    primary: [AtomicU64; REASONS],
    no_replica: AtomicU64,
    unsplit: AtomicU64,
}

impl Default for WorkerStats {
    fn default() -> WorkerStats {
        WorkerStats {
            stages: Default::default(),
            replica: [const { AtomicU64::new(0) }; REASONS],
            primary: [const { AtomicU64::new(0) }; REASONS],
            no_replica: AtomicU64::new(0),
            unsplit: AtomicU64::new(0),
        }
    }
}

impl WorkerStats {
    /// A part of a request took so long.
    pub fn took(&self, stage: Stage, time: Duration) {
        self.stages[stage as usize].observe(time);
    }

    /// A request went somewhere.
    pub fn decided(&self, decision: Decision) {
        let counter = match decision {
            Decision::Replica(reason) => &self.replica[reason as usize],
            Decision::Primary(reason) => &self.primary[reason as usize],
            Decision::NoReplica => &self.no_replica,
            Decision::Unsplit => &self.unsplit,
        };
        add(counter, 1);
    }
}

/// Where requests went, why, and how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed {
    /// `primary` or `replica`.
    pub target: &'static str,
    /// One word.
    pub reason: &'static str,
    /// A clause.
    pub text: &'static str,
    /// How many.
    pub count: u64,
}

/// What the whole router counts.
#[derive(Debug, Default)]
pub struct Stats {
    workers: Vec<WorkerStats>,
    /// What became of requests whose server was lost: rule and action.
    lost: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    /// What came of looking up commits.
    outcomes: Mutex<BTreeMap<&'static str, u64>>,
    /// Notifications that clients were handed.
    notified: AtomicU64,
    /// Clients that were told that they may have missed some.
    gaps: AtomicU64,
}

impl Stats {
    /// For so many workers.
    pub fn new(workers: usize) -> Stats {
        Stats { workers: (0..workers).map(|_| WorkerStats::default()).collect(), ..Stats::default() }
    }

    /// Those of one worker.
    pub fn worker(&self, index: usize) -> &WorkerStats {
        &self.workers[index]
    }

    /// A request whose server was lost ended like this.
    pub fn lost(&self, rule: &'static str, action: &'static str) {
        *self.lost.lock().expect("no panic under this lock").entry((rule, action)).or_default() += 1;
    }

    /// A commit was looked up.
    pub fn looked_up(&self, outcome: &'static str) {
        *self.outcomes.lock().expect("no panic under this lock").entry(outcome).or_default() += 1;
    }

    /// A notification was handed to so many clients.
    pub fn notified(&self, clients: usize) {
        self.notified.fetch_add(clients as u64, Relaxed);
    }

    /// So many clients were told that they may have missed notifications.
    pub fn gap(&self, clients: usize) {
        self.gaps.fetch_add(clients as u64, Relaxed);
    }

    /// What became of requests whose server was lost, by rule.
    pub fn losses(&self) -> Vec<(&'static str, &'static str, u64)> {
        let lost = self.lost.lock().expect("no panic under this lock");
        lost.iter().map(|((rule, action), count)| (*rule, *action, *count)).collect()
    }

    /// The times of one part of all requests.
    pub fn times(&self, stage: Stage) -> Times {
        let mut times = Times::default();
        self.workers.iter().for_each(|worker| times.add(&worker.stages[stage as usize]));
        times
    }

    /// Where requests went and why; only what happened.
    pub fn routed(&self) -> Vec<Routed> {
        let sum = |of: &dyn Fn(&WorkerStats) -> u64| self.workers.iter().map(of).sum::<u64>();
        let mut routed = Vec::new();
        for reason in Reason::ALL {
            let (word, text, at) = (reason.word(), reason.text(), *reason as usize);
            let of = |target, count| Routed { target, reason: word, text, count };
            routed.push(of("replica", sum(&|worker| worker.replica[at].load(Relaxed))));
            routed.push(of("primary", sum(&|worker| worker.primary[at].load(Relaxed))));
        }
        let primary = |reason, text, count| Routed { target: "primary", reason, text, count };
        let no_replica = sum(&|worker| worker.no_replica.load(Relaxed));
        routed.push(primary("no-replica", "no replica was there that had what the read must see", no_replica));
        let unsplit = sum(&|worker| worker.unsplit.load(Relaxed));
        routed.push(primary("unsplit", "reads and writes are not told apart here", unsplit));
        routed.retain(|routed| routed.count > 0);
        routed
    }

    /// All of it as Prometheus text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        let name = "stemma_router_route_decision_total";
        head(&mut out, name, "counter", "Requests by where they went and why");
        for routed in self.routed() {
            let (target, reason, count) = (routed.target, routed.reason, routed.count);
            let _ = writeln!(out, "{name}{{target=\"{target}\",reason=\"{reason}\"}} {count}");
        }
        let name = "stemma_router_query_seconds";
        head(&mut out, name, "histogram", "Time of requests, by the part that took it");
        for stage in Stage::ALL {
            let (times, word) = (self.times(stage), stage.as_str());
            let mut seen = 0;
            for (index, count) in times.buckets.iter().enumerate().take(BUCKETS - 1) {
                seen += count;
                let end = (FIRST_MICROS << index) as f64 / 1e6;
                let _ = writeln!(out, "{name}_bucket{{stage=\"{word}\",le=\"{end}\"}} {seen}");
            }
            let (count, sum) = (times.count(), times.sum_micros as f64 / 1e6);
            let _ = writeln!(out, "{name}_bucket{{stage=\"{word}\",le=\"+Inf\"}} {count}");
            let _ = writeln!(out, "{name}_sum{{stage=\"{word}\"}} {sum}\n{name}_count{{stage=\"{word}\"}} {count}");
        }
        let name = "stemma_router_server_lost_total";
        head(&mut out, name, "counter", "Clients whose server was lost, by the rule that decided and what was done");
        for (rule, action, count) in self.losses() {
            let _ = writeln!(out, "{name}{{rule=\"{rule}\",action=\"{action}\"}} {count}");
        }
        let name = "stemma_router_commit_outcome_resolved_total";
        head(&mut out, name, "counter", "Commits without an answer that were looked up, by what came of it");
        let outcomes = self.outcomes.lock().expect("no panic under this lock");
        for result in ["committed", "aborted", "unknown"] {
            let count = outcomes.get(result).copied().unwrap_or(0);
            let _ = writeln!(out, "{name}{{result=\"{result}\"}} {count}");
        }
        for (name, help, counter) in [
            ("stemma_router_notifications_total", "Notifications handed to clients that listen", &self.notified),
            (
                "stemma_router_notification_gaps_total",
                "Clients told that notifications may be missing, after a change of server",
                &self.gaps,
            ),
        ] {
            head(&mut out, name, "counter", help);
            let _ = writeln!(out, "{name} {}", counter.load(Relaxed));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_again_within_a_factor_of_two() {
        let stats = Stats::new(2);
        for micros in 1..=1000 {
            stats.worker((micros % 2) as usize).took(Stage::Server, Duration::from_micros(micros));
        }
        stats.worker(0).took(Stage::Server, Duration::from_secs(3600));
        let times = stats.times(Stage::Server);
        assert_eq!((times.count(), times.quantile_micros(0.5)), (1001, 512));
        assert_eq!(times.quantile_micros(0.99), 1024);
        assert_eq!(stats.times(Stage::Queue).quantile_micros(0.5), 0, "of none there is no middle");
    }

    #[test]
    fn every_decision_is_told_by_its_word() {
        let stats = Stats::new(1);
        for reason in Reason::ALL {
            stats.worker(0).decided(Decision::Primary(*reason));
        }
        stats.worker(0).decided(Decision::Replica(Reason::PlainRead));
        stats.worker(0).decided(Decision::NoReplica);
        let words: Vec<&str> = stats.routed().iter().map(|routed| routed.reason).collect();
        assert_eq!(words.len(), REASONS + 2, "{words:?}");
        let text = stats.text();
        assert!(text.contains("{target=\"replica\",reason=\"plain-read\"} 1"), "{text}");
        assert!(text.contains("{target=\"primary\",reason=\"no-replica\"} 1"), "{text}");
    }
}
