//! What is said at the end: the proof, and the figures of a scenario.

use super::proof::Proof;
use super::scenario::Assertion;
use crate::commands::Context;
use crate::render::look::Mark;
use crate::render::{out, units};
use model::status::SCHEMA_VERSION;
use serde_json::{Value, json};
use std::time::Duration;

/// What happened around the last deed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The scenario, where it was one.
    pub scenario: Option<&'static str>,
    /// What was done.
    pub what: String,
    /// The primary before it.
    pub before: Option<String>,
    /// The primary at the end.
    pub after: Option<String>,
    /// The longest time without an acknowledged write since then.
    pub outage: Duration,
}

/// The proof, what happened, and what was asserted of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What all nodes hold.
    pub proof: Proof,
    /// The last deed, if there was one.
    pub event: Option<Event>,
    /// What was asserted.
    pub assertion: Option<Assertion>,
}

impl Report {
    /// What does not hold of the assertion.
    fn broken(&self) -> Vec<String> {
        match (&self.assertion, &self.event) {
            (Some(assertion), Some(event)) => assertion.broken(event.outage, self.proof.lost),
            (Some(_), None) => vec!["the scenario did not happen".to_owned()],
            (None, _) => Vec::new(),
        }
    }

    /// Whether the run ended as it should: what was asserted holds, or, without an assertion, the whole proof.
    pub fn holds(&self) -> bool {
        match self.assertion {
            Some(_) => self.proof.acknowledged > 0 && self.broken().is_empty(),
            None => self.proof.holds(),
        }
    }

    fn json(&self) -> Value {
        let proof = &self.proof;
        let mut document = json!({
            "schema_version": SCHEMA_VERSION, "proved": proof.holds(), "acknowledged": proof.acknowledged,
            "unknown": proof.unknown, "lost": proof.lost, "nodes": proof.nodes,
        });
        if let Some(event) = &self.event {
            let outage_ms = u64::try_from(event.outage.as_millis()).unwrap_or(u64::MAX);
            document["event"] = json!({
                "scenario": event.scenario, "what": event.what, "primary_before": event.before,
                "primary_after": event.after, "outage_ms": outage_ms,
            });
        }
        if let Some(assertion) = self.assertion {
            document["assertion"] = json!({
                "max_outage": assertion.max_outage, "lost": assertion.lost, "holds": self.holds(),
                "broken": self.broken(),
            });
        }
        document
    }

    /// Prints it.
    pub fn print(&self, context: &Context) {
        if context.is_json() {
            return out::json(&self.json());
        }
        let assertion = self.assertion.map(|_| match self.broken().as_slice() {
            [] => vec![format!("{} assertion holds", if self.holds() { "✔" } else { "✖" })],
            broken => broken.iter().map(|broken| format!("✖ {broken}")).collect(),
        });
        let lines = event_lines(self.event.as_ref()).into_iter().chain(proof_lines(&self.proof));
        for line in lines.chain(assertion.unwrap_or_default()) {
            out::line(&context.look.finish(&line));
        }
    }
}

fn event_lines(event: Option<&Event>) -> Vec<String> {
    let Some(event) = event else { return Vec::new() };
    let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "none".to_owned());
    let primary = if event.before == event.after {
        format!("{} is the primary as before", name(&event.before))
    } else {
        format!("primary {} -> {}", name(&event.before), name(&event.after))
    };
    let gap = units::span_ms(event.outage.as_secs_f64() * 1000.0);
    vec![format!("  {}", event.what), format!("  {primary} · longest time without an acknowledged write: {gap}")]
}

fn proof_lines(proof: &Proof) -> Vec<String> {
    let acknowledged = units::count(proof.acknowledged);
    let mut lines = Vec::new();
    if proof.holds() {
        let names: Vec<&str> = proof.nodes.iter().map(|node| node.name.as_str()).collect();
        lines.push(format!("✔ acknowledged {acknowledged} = found {acknowledged} on {}", names.join(", ")));
    } else {
        for node in &proof.nodes {
            let (mark, tail) = match (&node.error, node.missing) {
                (Some(error), _) => (Mark::Down, format!("could not be asked: {error}")),
                (None, 0) => (Mark::Ok, format!("found {acknowledged}")),
                (None, missing) => (Mark::Down, format!("misses {missing}, the first: {:?}", node.first_missing)),
            };
            lines.push(format!("{} acknowledged {acknowledged}, {} {tail}", mark.sign(), node.name));
        }
    }
    if proof.unknown > 0 {
        lines.push(format!(
            "  {} writes ended without an answer; they may or may not be there",
            units::count(proof.unknown)
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::proof::NodeProof;
    use super::*;

    fn node(name: &str, missing: u64) -> NodeProof {
        let first_missing = (0..missing.min(3)).map(|id| id as i64).collect();
        NodeProof { name: name.to_owned(), found: 1200 - missing, missing, first_missing, error: None }
    }

    #[test]
    fn the_proof_is_one_line_when_it_holds_and_names_the_node_when_it_does_not() {
        let mut proof = Proof { acknowledged: 1200, unknown: 0, lost: 0, nodes: vec![node("n1", 0), node("n2", 0)] };
        assert_eq!(proof_lines(&proof), ["✔ acknowledged 1,200 = found 1,200 on n1, n2"]);
        proof.nodes[1] = node("n2", 2);
        assert!(!proof.holds());
        assert_eq!(
            proof_lines(&proof),
            ["● acknowledged 1,200, n1 found 1,200", "✖ acknowledged 1,200, n2 misses 2, the first: [0, 1]"]
        );
    }

    #[test]
    fn a_run_in_which_nothing_was_written_proves_nothing() {
        let proof = Proof { acknowledged: 0, unknown: 0, lost: 0, nodes: vec![node("n1", 0)] };
        assert!(!proof.holds());
    }

    #[test]
    fn an_assertion_is_about_outage_and_loss_and_not_about_a_node_that_is_late() {
        let mut late = node("n1", 7);
        late.error = Some("refused".to_owned());
        let proof = Proof { acknowledged: 1200, unknown: 3, lost: 0, nodes: vec![late, node("n2", 0)] };
        let event = Event {
            scenario: Some("kill-host"),
            what: "host of n1 killed".to_owned(),
            before: Some("n1".to_owned()),
            after: Some("n2".to_owned()),
            outage: Duration::from_millis(1_500),
        };
        let assertion = Some("max-outage=2s,lost=0".parse().expect("sound"));
        let mut report = Report { proof, event: Some(event), assertion };
        assert!(report.holds() && !report.proof.holds());
        assert_eq!(
            (report.json()["event"]["outage_ms"].clone(), report.json()["lost"].clone()),
            (1500.into(), 0.into())
        );
        report.proof.lost = 1;
        assert!(!report.holds());
        assert_eq!(report.json()["assertion"]["broken"][0], "1 acknowledged rows are lost; asserted: 0");
        report.event = None;
        report.proof.lost = 0;
        assert!(!report.holds(), "a scenario that did not happen proves nothing");
    }
}
