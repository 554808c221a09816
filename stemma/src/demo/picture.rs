//! The picture of the demo: the status, the rate of writes, what was done, and the keys.

use super::deeds::Deeds;
use super::load::Ledger;
use super::seconds_text;
use crate::render::look::{Look, Tone};
use crate::render::{status, units};
use crate::sandbox::layout::Layout;
use model::Trouble;
use model::status::ClusterStatus;
use tokio::time::Instant;

/// Columns of the picture of the rate.
const RATES_MAX: usize = 60;
/// Deeds that are shown.
const EVENTS_MAX: usize = 4;

/// The rate of acknowledged writes over time.
pub struct Picture {
    started: Instant,
    sampled_at: Instant,
    acknowledged: u64,
    rates: Vec<f64>,
    events: Vec<String>,
}

impl Picture {
    /// An empty picture.
    pub fn new(started: Instant) -> Picture {
        Picture { started, sampled_at: started, acknowledged: 0, rates: Vec::new(), events: Vec::new() }
    }

    /// Takes the rate since the last look.
    pub fn sample(&mut self, ledger: &Ledger) {
        let acknowledged = ledger.count();
        let span = self.sampled_at.elapsed().as_secs_f64();
        // The first tick comes at once; a rate over no time says nothing.
        if span < 0.1 {
            return;
        }
        self.rates.push((acknowledged - self.acknowledged) as f64 / span);
        if self.rates.len() > RATES_MAX {
            self.rates.remove(0);
        }
        self.acknowledged = acknowledged;
        self.sampled_at = Instant::now();
    }

    /// Remembers what was done.
    pub fn tell(&mut self, deed: &str) {
        self.events.push(format!("{:>7}  {deed}", seconds_text(self.started)));
        if self.events.len() > EVENTS_MAX {
            self.events.remove(0);
        }
    }

    /// One line, where nothing can be redrawn.
    pub fn line(&self, view: &Result<ClusterStatus, Trouble>, ledger: &Ledger) -> String {
        let verdict = match view {
            Ok(view) => view.verdict.as_str(),
            Err(_) => "no node answers",
        };
        let rate = self.rates.last().copied().unwrap_or(0.0);
        format!(
            "  {:>6}  {verdict}  {rate:.0} writes/s  {} acknowledged  {} errors",
            seconds_text(self.started),
            units::count(ledger.count()),
            ledger.unknown()
        )
    }

    /// The whole picture.
    pub fn frame(
        &self,
        view: &Result<ClusterStatus, Trouble>,
        ledger: &Ledger,
        layout: &Layout,
        deeds: &Deeds<'_>,
        look: &Look,
    ) -> String {
        let body = match view {
            Ok(view) => status::render(view, look),
            Err(error) => crate::render::trouble::text(error, look),
        };
        let rate = self.rates.last().copied().unwrap_or(0.0);
        let columns = look.width.saturating_sub(26).min(self.rates.len());
        let picture = bars(&self.rates[self.rates.len() - columns..]);
        let mut lines = vec![
            format!("  writes/s      {rate:>7.0}  {picture}"),
            format!("  acknowledged  {:>7}  in {}", units::count(ledger.count()), seconds_text(self.started)),
            format!("  unanswered    {:>7}", units::count(ledger.unknown())),
        ];
        if !self.events.is_empty() {
            let gap = units::span_ms(ledger.gap().as_secs_f64() * 1000.0);
            lines.push(format!("  longest gap   {gap:>7}  between two acknowledged writes, since the last event"));
            lines.push(String::new());
            lines.extend(self.events.iter().map(|event| format!("  {event}")));
        }
        let quiet = help(layout, deeds).map(|line| look.paint(Tone::Quiet, &look.finish(&line)));
        format!("{body}\n\n{}\n\n{}", look.finish(&lines.join("\n")), quiet.join("\n"))
    }
}

fn help(layout: &Layout, deeds: &Deeds<'_>) -> [String; 3] {
    let names: Vec<String> =
        layout.nodes.iter().enumerate().map(|(index, node)| format!("[{}] {}", index + 1, node.name)).collect();
    let host = deeds.host_down().map_or("kill its host".to_owned(), |name| format!("start the host of {name}"));
    let freeze = deeds.frozen().map_or("freeze it".to_owned(), |name| format!("thaw {name}"));
    [
        format!("  kill a server  {}", names.join("  ")),
        format!("  the primary    [s] switch over  [h] {host}  [f] {freeze}     [q] end with the proof"),
        format!("  elsewhere      stemma --sandbox {} status", layout.directory.display()),
    ]
}

/// One character per sample, the highest one full.
fn bars(rates: &[f64]) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let highest = rates.iter().copied().fold(1.0, f64::max);
    rates.iter().map(|rate| LEVELS[((rate / highest * 7.0).round() as usize).min(7)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_follow_the_rates() {
        assert_eq!(bars(&[0.0, 50.0, 100.0]), "▁▅█");
        assert_eq!(bars(&[]), "");
    }
}
