//! Counters of what ended: changes of primary, their phases, hooks. The state keeps only the newest changes, so they are
//! counted here as they are seen; like all counters these begin anew with the process, at what is kept then.

use model::failover::{Failover, FailoverKind};
use model::{ClusterState, Epoch, NodeName, NodeSample};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

type Labels = Vec<(&'static str, String)>;

/// From what one step takes to what would be an outage.
fn histogram() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
}

/// Changes of primary up to an epoch, counted by labels.
#[derive(Default)]
struct EndedFailovers {
    newest: Epoch,
    totals: BTreeMap<String, u64>,
}

/// What was counted so far.
pub(crate) struct Counted {
    ended: Mutex<EndedFailovers>,
    phases: Family<Labels, Histogram, fn() -> Histogram>,
}

impl Counted {
    pub(crate) fn new() -> Counted {
        Counted { ended: Mutex::default(), phases: Family::new_with_constructor(histogram as fn() -> Histogram) }
    }

    /// Counts what was not counted yet.
    fn take_in(&self, state: &ClusterState) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = &state.identity.name;
        let newest = ended.newest;
        for failover in state.failovers.iter().filter(|failover| failover.epoch > newest) {
            let (cause, result) = (cause(failover), failover.phase.as_str());
            let labels = format!("cluster=\"{cluster}\",cause=\"{cause}\",result=\"{result}\"");
            *ended.totals.entry(labels).or_default() += 1;
            ended.newest = ended.newest.max(failover.epoch);
            for two in failover.phases.windows(2) {
                let seconds = (two[1].at.0 - two[0].at.0).max(0) as f64 / 1_000.0;
                let labels = vec![("cluster", cluster.to_string()), ("phase", two[0].phase.as_str().to_owned())];
                self.phases.get_or_create(&labels).observe(seconds);
            }
        }
    }

    /// All as text.
    pub(crate) fn text(&self, state: Option<&ClusterState>, node: &NodeName, sample: Option<&NodeSample>) -> String {
        let Some(state) = state else { return String::new() };
        self.take_in(state);
        let mut registry = Registry::default();
        registry.register(
            "stemma_failover_phase_seconds",
            "How long phases of changes of primary took, by the clocks of the keepers that recorded them",
            self.phases.clone(),
        );
        let mut text = String::new();
        // Without samples its help would stand alone.
        if !state.failovers.is_empty() {
            prometheus_client::encoding::text::encode_registry(&mut text, &registry)
                .expect("writing to a string cannot fail");
        }
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).totals.clone();
        let help = "Changes of primary that ended, by cause and result";
        text.push_str(&counter("stemma_failovers_total", help, ended));
        if let Some(sample) = sample {
            let labels = format!("cluster=\"{}\",node=\"{node}\"", state.identity.name);
            let outside = &sample.outside;
            let runs = [(labels.clone(), outside.hook_runs)];
            text.push_str(&counter("stemma_hook_runs_total", "Hooks that ran or were to run", runs));
            let failures = [(labels, outside.hook_failures)];
            text.push_str(&counter("stemma_hook_failures_total", "Hooks that failed", failures));
        }
        text
    }
}

/// A counter in the older of the two text formats, where the suffix is part of the name. Labels are names of ours, which
/// hold nothing that would have to be escaped.
fn counter(name: &str, help: &str, samples: impl IntoIterator<Item = (String, u64)>) -> String {
    let lines: String = samples.into_iter().map(|(labels, value)| format!("{name}{{{labels}}} {value}\n")).collect();
    if lines.is_empty() { lines } else { format!("# HELP {name} {help}.\n# TYPE {name} counter\n{lines}") }
}

fn cause(failover: &Failover) -> &'static str {
    match failover.kind {
        FailoverKind::Automatic => "automatic",
        FailoverKind::Switchover { .. } => "switchover",
        FailoverKind::Forced { .. } => "forced",
    }
}
