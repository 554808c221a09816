//! `stemma demo`: a sandbox of three nodes under live writes, ending with the proof that every acknowledged row is on
//! every node.

mod deeds;
mod keys;
mod load;
mod picture;
mod proof;
mod report;
mod scenario;
#[cfg(test)]
mod server_tests;

use crate::cli::{ConsensusArg, DemoArgs, SandboxDir, SandboxStartArgs, ScenarioArg};
use crate::client::Client;
use crate::commands::{Context, target};
use crate::render::look::Look;
use crate::render::{out, status};
use crate::sandbox::layout::Layout;
use crate::sandbox::{self, build};
use deeds::{Deed, Deeds, Done};
use keys::{Key, Keys};
use load::{Ledger, Load};
use model::Trouble;
use model::error::exit;
use model::status::ClusterStatus;
use picture::Picture;
use report::{Event, Report};
pub use scenario::Assertion;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::time::Instant;

/// Nodes of the demo.
const NODES: u16 = 3;
/// How long it runs with `--ci` or without a terminal, where nobody presses a key.
const SECONDS_UNATTENDED: u64 = 15;
/// How much longer a scenario may take until writes flow again.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(60);
/// Writes flow when the last one was acknowledged so short a time ago.
const FLOWING: Duration = Duration::from_secs(1);
/// How often the picture is redrawn.
const TICK: Duration = Duration::from_millis(500);
/// How often a line is printed where nothing can be redrawn.
const LINE_INTERVAL: Duration = Duration::from_secs(2);
/// One look at the cluster.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Runs the command.
pub async fn run(context: &Context, args: DemoArgs) -> Result<u8, Trouble> {
    let attended = context.look.terminal && !args.ci && !context.is_json() && args.scenario.is_none();
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
        report = perform(context, &layout, attended, seconds.map(Duration::from_secs), &args) => report,
        trouble = told.until_over() => Err(trouble),
    };
    // Whatever came of it: no process and no directory stays behind, nor a keeper that was started meanwhile.
    let layout = Layout::load(&layout.directory).unwrap_or(layout);
    sandbox::stop_processes(&layout).await?;
    sandbox::remove(&layout)?;
    let report = result?;
    report.print(context);
    if !context.is_json() {
        out::note(&format!("  servers stopped, {} removed", layout.directory.display()));
    }
    Ok(if report.holds() { 0 } else { exit::FAILED })
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
    args: &DemoArgs,
) -> Result<Report, Trouble> {
    let client = Client::new(target::from_sandbox(layout)?).with(None, Some(STATUS_TIMEOUT), false);
    let ledger = Arc::new(Ledger::default());
    let primary = primary_of(client.status().await.ok().as_ref());
    let load = Load::start(layout, ledger.clone(), primary.clone()).await?;
    let started = Instant::now();
    let watch = Watch {
        layout,
        load: &load,
        ledger: &ledger,
        deeds: Deeds::new(layout, &ledger, &client),
        picture: Picture::new(started),
        scenario: args.scenario,
        started,
        length,
        primary,
        event: None,
    };
    // The terminal is given back before anything else is printed.
    let event = watch.run(context, attended).await?;
    load.stop().await;
    out::note("  writers stopped; waiting until every node has applied what they wrote");
    let view = client.status().await?;
    let proof = proof::prove(layout, primary_of(Some(&view)), ledger.acknowledged(), ledger.unknown()).await?;
    Ok(Report { proof, event, assertion: args.assert })
}

fn primary_of(view: Option<&ClusterStatus>) -> Option<String> {
    view?.primary.as_ref().map(ToString::to_string)
}

/// The run while it is written to.
struct Watch<'a> {
    layout: &'a Layout,
    load: &'a Load,
    ledger: &'a Ledger,
    deeds: Deeds<'a>,
    picture: Picture,
    scenario: Option<ScenarioArg>,
    started: Instant,
    length: Option<Duration>,
    primary: Option<String>,
    event: Option<Event>,
}

impl Watch<'_> {
    /// Draws, obeys keys and plays the scenario until the end; then every node is brought back.
    async fn run(mut self, context: &Context, attended: bool) -> Result<Option<Event>, Trouble> {
        let mut keys = Keys::listen(attended)?;
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut line_at = self.started;
        if attended {
            out::raw("\x1b[2J");
        }
        loop {
            tokio::select! {
                key = keys.next() => match deed_of(key) {
                    None => break,
                    Some(deed) => self.obey(deed).await?,
                },
                _ = tokio::signal::ctrl_c() => break,
                _ = ticks.tick() => {}
            }
            let view = self.deeds.client()?.status().await;
            if let Some(primary) = primary_of(view.as_ref().ok()) {
                self.load.primary_is(self.layout, &primary);
                self.primary = Some(primary);
            }
            self.picture.sample(self.ledger);
            if attended {
                let look = Look::detect(&context.global);
                let frame = self.picture.frame(&view, self.ledger, self.layout, &self.deeds, &look);
                out::raw(&keys::for_raw_mode(&status::redraw(&frame)));
            } else if Instant::now() >= line_at {
                out::note(&context.look.finish(&self.picture.line(&view, self.ledger)));
                line_at += LINE_INTERVAL;
            }
            self.play(context).await?;
            if self.is_over() || self.ledger.is_full() {
                break;
            }
        }
        if let Some(event) = &mut self.event {
            event.outage = self.ledger.gap();
            event.after = self.primary.clone();
        }
        self.deeds.restore()?;
        Ok(self.event)
    }

    /// A key. What cannot be done is told and changes nothing.
    async fn obey(&mut self, deed: Deed) -> Result<(), Trouble> {
        let before = self.primary.clone();
        match self.deeds.carry_out(deed, before.as_deref()).await {
            Ok(Some(done)) => self.happened(done, before, None),
            Ok(None) => {}
            Err(trouble) => self.picture.tell(&trouble.reason),
        }
        Ok(())
    }

    fn happened(&mut self, done: Done, before: Option<String>, scenario: Option<&'static str>) {
        self.picture.tell(&done.what);
        if done.interrupts {
            let after = before.clone();
            self.event = Some(Event { scenario, what: done.what, before, after, outage: Duration::ZERO });
        }
    }

    /// The scenario's deed, once, after a third of the time.
    async fn play(&mut self, context: &Context) -> Result<(), Trouble> {
        let (Some(scenario), None, Some(length)) = (self.scenario, &self.event, self.length) else { return Ok(()) };
        if self.started.elapsed() < length / 3 {
            return Ok(());
        }
        let before = self.primary.clone();
        let Some(deed) = scenario.deed(self.layout, before.as_deref()) else { return Ok(()) };
        if let Some(done) = self.deeds.carry_out(deed, before.as_deref()).await? {
            out::note(&context.look.finish(&format!("  {:>6}  {}", seconds_text(self.started), done.what)));
            self.happened(done, before, Some(scenario.as_str()));
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        let Some(length) = self.length else { return false };
        let past = self.started.elapsed().saturating_sub(length);
        let Some(scenario) = self.scenario else { return past > Duration::ZERO };
        let moved = self.event.as_ref().is_some_and(|event| event.before != self.primary);
        let recovered = self.event.is_some() && self.ledger.silent() < FLOWING && (moved || !scenario.moves_primary());
        past > Duration::ZERO && recovered || past > RECOVERY_TIMEOUT
    }
}

fn deed_of(key: Key) -> Option<Deed> {
    match key {
        Key::Quit => None,
        Key::Kill(index) => Some(Deed::KillServer(index)),
        Key::Host => Some(Deed::KillHost),
        Key::Freeze => Some(Deed::Freeze),
        Key::Switchover => Some(Deed::Switchover),
    }
}
