//! Looks at this node's own server at a steady pace and hands the sample to the observations and to the mesh.
//!
//! It never waits for the server longer than `FACTS_TIMEOUT`, and heartbeats do not pass through here: a server that
//! hangs makes samples say so, it does not make the keeper silent.

use crate::clock;
use crate::failover::Council;
use crate::local::{Local, Phase};
use crate::mesh::Mesh;
use crate::observations::{Heartbeat, Observations};
use crate::store::Store;
use bytes::Bytes;
use model::limits::HEARTBEAT_INTERVAL;
use model::observe::{ServerFacts, ServerSockets, ServerState};
use model::units::{Epoch, Millis, Moment, WallTime};
use model::{NodeId, NodeSample};
use nix::sys::statvfs::statvfs;
use postgres::{ServerSpec, Sql};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Longest wait for the server's answer within one sample.
const FACTS_TIMEOUT: Duration = Duration::from_secs(2);
/// Silence of a server that answered before, from which it counts as unresponsive.
const UNRESPONSIVE_AFTER: Millis = Millis(3_000);
/// Pace while the server starts: readiness is what everybody waits for.
const STARTING_INTERVAL: Duration = Duration::from_millis(50);

/// The sampler of one node.
pub struct Sampler {
    /// This node.
    pub me: NodeId,
    /// Random per run.
    pub incarnation: u64,
    /// Shared with the driver.
    pub local: Arc<Local>,
    /// Where samples go.
    pub observations: Arc<Observations>,
    /// The cluster's state, for the pace.
    pub store: Store,
    /// Control connection of its own, so that a long order of the driver does not delay samples.
    pub sql: Option<Sql>,
    /// The server, for where its sockets are.
    pub spec: Option<ServerSpec>,
    /// Tells this machine from others (`NodeConfig::machine`).
    pub machine: Option<String>,
    /// Directory whose file system is watched.
    pub data_dir: Option<PathBuf>,
    /// Tells when to look more often.
    pub(crate) council: Arc<Council>,
    /// End of the node's certificate.
    pub certificate_expires_at: Arc<dyn Fn() -> WallTime + Send + Sync>,
}

impl Sampler {
    /// Samples until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut answered_at: Option<Moment> = None;
        loop {
            let sample = self.sample(&mut answered_at).await;
            let starting = matches!(sample.server, ServerState::Starting);
            self.observations.own_sample(sample);
            let restless = self.council.restless(clock::now());
            let pace = if starting || restless { STARTING_INTERVAL } else { self.pace() };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pace) => {}
                () = self.local.sample_now.notified() => {}
            }
        }
    }

    fn pace(&self) -> Duration {
        self.store.state().map_or(STARTING_INTERVAL, |state| state.value.settings.sample_interval.0.duration())
    }

    async fn sample(&self, answered_at: &mut Option<Moment>) -> NodeSample {
        let seq = self.local.begin_sample();
        let began = clock::now();
        let (server, facts) = self.look(answered_at).await;
        let (disk_free_bytes, disk_total_bytes) = self.disk();
        let sockets = matches!(server, ServerState::Running).then(|| self.sockets()).flatten();
        let mut sample = NodeSample {
            node: self.me,
            seq,
            incarnation: self.incarnation,
            age_ms: clock::now().since(began).0,
            server,
            facts,
            sockets,
            epoch_seen: Epoch(self.store.state().map_or(0, |state| state.value.rule.epoch.0)),
            state_version: 0,
            settings_version: 0,
            disk_free_bytes,
            disk_total_bytes,
            wall: clock::wall(),
            doing: None,
            last_error: None,
            outside: model::observe::Outside::default(),
            keeper_pid: std::process::id(),
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            certificate_expires_at: Some((self.certificate_expires_at)()),
            peers_heard_ms: self.observations.silences(clock::now()),
        };
        self.local.fill(&mut sample);
        sample
    }

    fn sockets(&self) -> Option<ServerSockets> {
        let directories = postgres::socket_directories(self.spec.as_ref()?);
        Some(ServerSockets { machine: self.machine.clone()?, directories })
    }

    async fn look(&self, answered_at: &mut Option<Moment>) -> (ServerState, Option<ServerFacts>) {
        let state = match self.local.phase() {
            Phase::NoServer => ServerState::None,
            Phase::Empty => ServerState::Empty,
            Phase::Initialising => ServerState::Initialising,
            Phase::Cloning => ServerState::Cloning(self.local.clone_progress().unwrap_or_default()),
            Phase::Stopped => ServerState::Stopped,
            Phase::Failed { reason } => ServerState::Failed { reason },
            Phase::Alive => {
                let Some(sql) = &self.sql else { return (ServerState::None, None) };
                return match tokio::time::timeout(FACTS_TIMEOUT, sql.facts()).await {
                    Ok(Ok(facts)) => {
                        *answered_at = Some(clock::now());
                        (ServerState::Running, Some(facts))
                    }
                    Ok(Err(_)) | Err(_) => (silent_state(*answered_at, clock::now()), None),
                };
            }
        };
        *answered_at = None;
        (state, None)
    }

    fn disk(&self) -> (Option<u64>, Option<u64>) {
        let Some(directory) = &self.data_dir else { return (None, None) };
        // Before the first clone the directory itself may be missing; its parent is on the same file system or tells
        // at least where it will be made.
        let there = directory.ancestors().find(|path| path.exists());
        match there.map(statvfs) {
            Some(Ok(stat)) => {
                let unit = stat.fragment_size();
                let (free, used) = (stat.blocks_available(), stat.blocks().saturating_sub(stat.blocks_free()));
                // As `df` counts: what is kept for root or beyond a quota is neither free nor used.
                (Some(free * unit), Some(used.saturating_add(free) * unit))
            }
            Some(Err(_)) | None => (None, None),
        }
    }
}

fn silent_state(answered_at: Option<Moment>, now: Moment) -> ServerState {
    match answered_at {
        Some(at) if now.since(at) >= UNRESPONSIVE_AFTER => ServerState::Unresponsive { for_ms: now.since(at).0 },
        Some(_) | None => ServerState::Starting,
    }
}

/// Sends heartbeats until `stop`: every `HEARTBEAT_INTERVAL`, and at once when there is something to say; each with this
/// keeper's word, and with the newest sample where the last one sent was older. Touches neither disk nor database.
pub(crate) async fn heartbeat_loop(
    observations: Arc<Observations>,
    council: Arc<Council>,
    mesh: Arc<Mesh>,
    stop: CancellationToken,
) {
    let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL.duration());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut sent: Option<u64> = None;
    // A heartbeat that meets a connection in the making is lost; the newest sample is therefore repeated now and then.
    let mut since_repeat = 0u32;
    const REPEAT_EVERY: u32 = 20;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
            () = council.beat.notified() => {}
        }
        since_repeat += 1;
        let now = clock::now();
        clock::attentive_since(now);
        let own = observations.own_observed();
        let word = council.word(now, own.as_ref().map(|own| (&*own.sample, own.taken_at)));
        let fresh = own.filter(|own| sent != Some(own.sample.seq) || since_repeat >= REPEAT_EVERY).map(|own| {
            sent = Some(own.sample.seq);
            since_repeat = 0;
            NodeSample { age_ms: now.since(own.taken_at).0, ..NodeSample::clone(&own.sample) }
        });
        match serde_json::to_vec(&Heartbeat { sample: fresh, word }) {
            Ok(body) => mesh.broadcast_heartbeat(Bytes::from(body)),
            Err(error) => tracing::error!(%error, "heartbeat cannot be written"),
        }
        council.note_round_trip(mesh.slowest_round_trip());
    }
}
