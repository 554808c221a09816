//! Scenarios: one deed at a known time without anybody at the keys, and what is asserted of the outcome.

use super::deeds::Deed;
use crate::cli::ScenarioArg;
use crate::sandbox::layout::Layout;
use model::settings::Span;
use std::str::FromStr;
use std::time::Duration;

/// What must hold at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Assertion {
    /// The longest time without an acknowledged write.
    pub max_outage: Option<Span>,
    /// The most acknowledged rows that may be gone.
    pub lost: Option<u64>,
}

impl FromStr for Assertion {
    type Err = String;

    fn from_str(text: &str) -> Result<Assertion, String> {
        let mut assertion = Assertion::default();
        for part in text.split(',') {
            let (name, value) = part.split_once('=').ok_or_else(|| format!("`{part}` is not NAME=VALUE"))?;
            match name.trim() {
                "max-outage" => {
                    assertion.max_outage = Some(value.trim().parse().map_err(|bad| format!("max-outage: {bad}"))?);
                }
                "lost" => {
                    assertion.lost = Some(value.trim().parse().map_err(|_| format!("lost: `{value}` is no number"))?);
                }
                other => return Err(format!("`{other}` cannot be asserted; known: max-outage, lost")),
            }
        }
        Ok(assertion)
    }
}

impl Assertion {
    /// What does not hold, in words.
    pub fn broken(&self, outage: Duration, lost: u64) -> Vec<String> {
        let outage_ms = u64::try_from(outage.as_millis()).unwrap_or(u64::MAX);
        let too_long = self.max_outage.filter(|most| outage_ms > most.0.0);
        let too_many = self.lost.filter(|most| lost > *most);
        let outage = too_long.map(|most| format!("no write was acknowledged for {outage_ms} ms; asserted: {most}"));
        let rows = too_many.map(|most| format!("{lost} acknowledged rows are lost; asserted: {most}"));
        outage.into_iter().chain(rows).collect()
    }
}

impl ScenarioArg {
    /// What is done to a cluster with this primary.
    pub(super) fn deed(self, layout: &Layout, primary: Option<&str>) -> Option<Deed> {
        match self {
            ScenarioArg::KillPrimary => {
                layout.nodes.iter().position(|node| Some(node.name.as_str()) == primary).map(Deed::KillServer)
            }
            ScenarioArg::KillHost => Some(Deed::KillHost),
            ScenarioArg::Switchover => Some(Deed::Switchover),
        }
    }

    /// Whether it is over only when another node is the primary. A server that is killed alone may come back as it was.
    pub(super) fn moves_primary(self) -> bool {
        match self {
            ScenarioArg::KillPrimary => false,
            ScenarioArg::KillHost | ScenarioArg::Switchover => true,
        }
    }

    /// Its name as it is typed.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            ScenarioArg::KillPrimary => "kill-primary",
            ScenarioArg::KillHost => "kill-host",
            ScenarioArg::Switchover => "switchover",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assertions_read_as_they_are_typed_and_name_what_is_broken() {
        let assertion: Assertion = "max-outage=1s,lost=0".parse().expect("sound");
        assert_eq!(assertion.broken(Duration::from_secs(1), 0), [""; 0]);
        assert_eq!(
            assertion.broken(Duration::from_millis(1_001), 2),
            ["no write was acknowledged for 1001 ms; asserted: 1s", "2 acknowledged rows are lost; asserted: 0"]
        );
        for bad in ["", "lost", "lost=few", "max-outage=soon", "speed=1"] {
            assert!(bad.parse::<Assertion>().is_err(), "{bad}");
        }
    }
}
