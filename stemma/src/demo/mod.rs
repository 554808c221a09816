//! `stemma demo`: a sandbox of three nodes under live writes, ending with the proof that every acknowledged row is on
//! every node.

mod keys;
mod load;
mod proof;
#[cfg(test)]
mod server_tests;

use crate::cli::{ConsensusArg, DemoArgs, SandboxDir, SandboxStartArgs};
use crate::client::Client;
use crate::commands::{Context, target};
use crate::render::look::{Look, Mark, Tone};
use crate::render::{out, status, units};
use crate::sandbox::layout::Layout;
use crate::sandbox::processes::signal_server;
use crate::sandbox::{self, build};
use keys::{Key, Keys};
use load::{Ledger, Load};
use model::Trouble;
use model::error::exit;
use model::status::{ClusterStatus, SCHEMA_VERSION};
use nix::sys::signal::Signal;
use proof::Proof;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::time::Instant;

/// Nodes of the demo.
const NODES: u16 = 3;
/// How long it runs with `--ci` or without a terminal, where nobody presses a key.
const SECONDS_UNATTENDED: u64 = 15;
/// How often the picture is redrawn.
const TICK: Duration = Duration::from_millis(500);
/// How often a line is printed where nothing can be redrawn.
const LINE_INTERVAL: Duration = Duration::from_secs(2);
/// One look at the cluster.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Columns of the picture of the rate.
const RATES_MAX: usize = 60;
/// Deeds of the one who watches that are shown.
const EVENTS_MAX: usize = 4;

/// Runs the command.
pub async fn run(context: &Context, args: DemoArgs) -> Result<u8, Trouble> {
    let attended = context.look.terminal && !args.ci && !context.is_json();
    let seconds = args.seconds.or((!attended).then_some(SECONDS_UNATTENDED));
    let directory = args.dir.clone().unwrap_or_else(|| {
        std::env::temp_dir().join(format!("stemma-demo-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]))
    });
    let started = Instant::now();
    out::note(&format!("  building {NODES} nodes in {}", directory.display()));
    let mut told = Told::listen()?;
    let arguments = sandbox_args(&args)?;
    let layout = tokio::select! {
        built = build::start(context, &arguments, directory.clone()) => built?,
        trouble = told.until_over() => {
            if let Ok(layout) = Layout::load(&directory) {
                sandbox::stop_processes(&layout).await?;
                sandbox::remove(&layout)?;
            }
            return Err(trouble);
        }
    };
    out::note(&context.look.finish(&format!("✔ {NODES} nodes healthy after {}", seconds_text(started))));
    for uri in layout.nodes.iter().filter_map(|node| node.uri("postgres")) {
        out::note(&format!("  psql \"{uri}\""));
    }
    let result = tokio::select! {
        proof = perform(context, &layout, attended, seconds.map(Duration::from_secs)) => proof,
        trouble = told.until_over() => Err(trouble),
    };
    // Whatever came of it: no process and no directory stays behind.
    sandbox::stop_processes(&layout).await?;
    sandbox::remove(&layout)?;
    let proof = result?;
    print(context, &proof);
    if !context.is_json() {
        out::note(&format!("  servers stopped, {} removed", layout.directory.display()));
    }
    Ok(if proof.holds() { 0 } else { exit::FAILED })
}

/// Hears of the end that comes from outside: a closed terminal, a service manager.
struct Told {
    terminate: Signals,
    hangup: Signals,
}

impl Told {
    fn listen() -> Result<Told, Trouble> {
        let on =
            |kind| signal(kind).map_err(|error| Trouble::os("a signal handler could not be set", "").because(error));
        Ok(Told { terminate: on(SignalKind::terminate())?, hangup: on(SignalKind::hangup())? })
    }

    async fn until_over(&mut self) -> Trouble {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
        Trouble::operation_failed("the demo was told to end before its proof", "run it again")
    }
}

fn seconds_text(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}

fn sandbox_args(args: &DemoArgs) -> Result<SandboxStartArgs, Trouble> {
    let name = "demo"
        .parse()
        .map_err(|bad| Trouble::internal("the name of the demo is not valid", "report this").because(bad))?;
    Ok(SandboxStartArgs {
        dir: SandboxDir { dir: None::<PathBuf> },
        nodes: NODES,
        witnesses: 0,
        base_port: None,
        commit_mode: None,
        set: Vec::new(),
        cascade: Vec::new(),
        pg_bin: args.pg_bin.clone(),
        name,
        consensus: ConsensusArg::Embedded,
        etcd_endpoints: Vec::new(),
    })
}

/// Load, picture, and proof; the sandbox is the caller's.
async fn perform(
    context: &Context,
    layout: &Layout,
    attended: bool,
    length: Option<Duration>,
) -> Result<Proof, Trouble> {
    let client = Client::new(target::from_sandbox(layout)?).with(None, Some(STATUS_TIMEOUT), false);
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(layout, ledger.clone(), primary_of(client.status().await.ok().as_ref())).await?;
    // The terminal is given back before anything else is printed.
    watch(context, layout, &client, &load, &ledger, attended, length).await?;
    load.stop().await;
    out::note("  writers stopped; waiting until every node has applied what they wrote");
    let view = client.status().await?;
    proof::prove(layout, primary_of(Some(&view)), ledger.acknowledged(), ledger.unknown()).await
}

fn primary_of(view: Option<&ClusterStatus>) -> Option<String> {
    view?.primary.as_ref().map(ToString::to_string)
}

async fn watch(
    context: &Context,
    layout: &Layout,
    client: &Client,
    load: &Load,
    ledger: &Ledger,
    attended: bool,
    length: Option<Duration>,
) -> Result<(), Trouble> {
    let mut keys = Keys::listen(attended)?;
    let started = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut picture = Picture::new(started);
    let mut line_at = started;
    if attended {
        out::raw("\x1b[2J");
    }
    loop {
        tokio::select! {
            key = keys.next() => match key {
                Key::Quit => return Ok(()),
                Key::Kill(number) => picture.kill(layout, number)?,
            },
            _ = tokio::signal::ctrl_c() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let view = client.status().await;
        if let Some(primary) = primary_of(view.as_ref().ok()) {
            load.primary_is(layout, &primary);
        }
        picture.sample(ledger);
        if attended {
            out::raw(&keys::for_raw_mode(&status::redraw(&picture.frame(
                &view,
                ledger,
                layout,
                &Look::detect(&context.global),
            ))));
        } else if Instant::now() >= line_at {
            out::note(&context.look.finish(&picture.line(&view, ledger)));
            line_at += LINE_INTERVAL;
        }
        if length.is_some_and(|length| started.elapsed() >= length) || ledger.is_full() {
            return Ok(());
        }
    }
}

/// The rate of acknowledged writes over time.
struct Picture {
    started: Instant,
    sampled_at: Instant,
    acknowledged: u64,
    rates: Vec<f64>,
    events: Vec<String>,
}

impl Picture {
    fn new(started: Instant) -> Picture {
        Picture { started, sampled_at: started, acknowledged: 0, rates: Vec::new(), events: Vec::new() }
    }

    fn sample(&mut self, ledger: &Ledger) {
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

    /// Kills every process of a node's server, as a crash would; its keeper brings it back.
    fn kill(&mut self, layout: &Layout, number: usize) -> Result<(), Trouble> {
        let Some(node) = layout.nodes.get(number) else { return Ok(()) };
        let killed = signal_server(node, Signal::SIGKILL)?;
        if killed > 0 {
            let at = seconds_text(self.started);
            self.events.push(format!("{at}: you killed the server of {} ({killed} processes)", node.name));
        }
        if self.events.len() > EVENTS_MAX {
            self.events.remove(0);
        }
        Ok(())
    }

    fn line(&self, view: &Result<ClusterStatus, Trouble>, ledger: &Ledger) -> String {
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

    fn frame(&self, view: &Result<ClusterStatus, Trouble>, ledger: &Ledger, layout: &Layout, look: &Look) -> String {
        let body = match view {
            Ok(view) => status::render(view, look),
            Err(error) => crate::render::trouble::text(error, look),
        };
        let rate = self.rates.last().copied().unwrap_or(0.0);
        let columns = look.width.saturating_sub(22).min(self.rates.len());
        let picture = bars(&self.rates[self.rates.len() - columns..]);
        let mut lines = vec![
            format!("  writes/s {rate:>6.0}  {picture}"),
            format!(
                "  acknowledged {} in {} · without an answer {}",
                units::count(ledger.count()),
                seconds_text(self.started),
                units::count(ledger.unknown())
            ),
        ];
        lines.extend(self.events.iter().map(|event| format!("  {event}")));
        let names: Vec<String> =
            layout.nodes.iter().enumerate().map(|(index, node)| format!("[{}] {}", index + 1, node.name)).collect();
        let help = [
            format!("  kill a server: {}   end with the proof: [q]", names.join("  ")),
            format!("  from another terminal: stemma --sandbox {} status", layout.directory.display()),
        ];
        let quiet = help.map(|line| look.paint(Tone::Quiet, &look.finish(&line)));
        format!("{body}\n\n{}\n\n{}", look.finish(&lines.join("\n")), quiet.join("\n"))
    }
}

/// One character per sample, the highest one full.
fn bars(rates: &[f64]) -> String {
    const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let highest = rates.iter().copied().fold(1.0, f64::max);
    rates.iter().map(|rate| LEVELS[((rate / highest * 7.0).round() as usize).min(7)]).collect()
}

fn print(context: &Context, proof: &Proof) {
    if context.is_json() {
        return out::json(&json!({
            "schema_version": SCHEMA_VERSION, "proved": proof.holds(), "acknowledged": proof.acknowledged,
            "unknown": proof.unknown, "nodes": proof.nodes,
        }));
    }
    for line in proof_lines(proof) {
        out::line(&context.look.finish(&line));
    }
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
    use super::*;
    use proof::NodeProof;

    fn node(name: &str, missing: u64) -> NodeProof {
        let first_missing = (0..missing.min(3)).map(|id| id as i64).collect();
        NodeProof { name: name.to_owned(), found: 1200 - missing, missing, first_missing, error: None }
    }

    #[test]
    fn the_proof_is_one_line_when_it_holds_and_names_the_node_when_it_does_not() {
        let mut proof = Proof { acknowledged: 1200, unknown: 0, nodes: vec![node("n1", 0), node("n2", 0)] };
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
        let proof = Proof { acknowledged: 0, unknown: 0, nodes: vec![node("n1", 0)] };
        assert!(!proof.holds());
    }

    #[test]
    fn bars_follow_the_rates() {
        assert_eq!(bars(&[0.0, 50.0, 100.0]), "▁▅█");
        assert_eq!(bars(&[]), "");
    }
}
