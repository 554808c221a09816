//! The one task that acts on this node's database server: it looks at the situation, asks `cluster::desire` what to do
//! next, and does that one thing. Nothing else in the keeper starts, stops, configures or copies the server.

mod clone;
mod comeback;
mod configure;
mod operate;
mod primacy;
mod restarts;
mod serve;
mod upstream;

pub(crate) use configure::server_files_dir;
pub(crate) use serve::has_stopped;

use crate::clock;
use crate::failover::floating::FloatingAddress;
use crate::failover::{Council, LedgerFile};
use crate::files;
use crate::local::{Local, Phase};
use crate::node_config::{NodeConfig, PostgresqlNode};
use crate::observations::Observations;
use crate::pki::TlsContext;
use crate::store::{Store, Versioned};
use cluster::admission;
use cluster::desire::{Control, Data, Desire, Lineage, Process, Situation, desire};
use cluster::failover::recruit::electors;
use model::observe::{ServerFacts, ServerState};
use model::state::{Secrets, Stage};
use model::units::{Millis, Moment};
use model::{ClusterState, Lsn, NodeId, NodeSample, Role, Trouble};
use postgres::{ActiveFiles, DataDir, Server, ServerConfig, ServerSpec, Sql, StopMode};
use primacy::Primacy;
use restarts::Restarts;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The driver looks at least this often, whatever happens.
const TICK: Duration = Duration::from_millis(500);
/// The same while the primary is quiet or changes.
const TICK_RESTLESS: Duration = Duration::from_millis(20);
/// How long a fast stop may take before the server's processes are killed.
const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// How long killing everything may take.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// How long a stopped copy waits for a primary to follow before it is started alone.
const LONELY_PATIENCE: Millis = Millis(3_000);
/// A receiver that is away for longer than this, with an upstream that answers, is starved.
const STARVED_AFTER: Millis = Millis(3_000);
/// How often a replica that looks ahead of its primary asks whether it is.
const AHEAD_AGAIN_AFTER: Millis = Millis(1_000);
/// How often a starved replica asks again whether it may follow.
const LINEAGE_AGAIN_AFTER: Millis = Millis(10_000);

/// What the driver is made of.
pub struct Parts {
    /// This node.
    pub me: NodeId,
    /// Its configuration.
    pub config: NodeConfig,
    /// The database part of it.
    pub node: PostgresqlNode,
    /// The server to be run.
    pub spec: ServerSpec,
    /// The cluster's state.
    pub store: Store,
    /// What is heard of others.
    pub observations: Arc<Observations>,
    /// Shared with sampler and API.
    pub local: Arc<Local>,
    /// Certificates.
    pub tls: Arc<TlsContext>,
    /// What the keepers say to each other about who is primary.
    pub(crate) council: Arc<Council>,
    /// The address that moves with the primary.
    pub(crate) floating: Option<Arc<FloatingAddress>>,
}

/// See the module.
pub struct Driver {
    parts: Parts,
    sql: Arc<Sql>,
    lineage_note: Option<tokio::task::JoinHandle<()>>,
    server: Option<Server>,
    restarts: Restarts,
    /// Where the running server's part of its log begins.
    log_began_at: u64,
    control: Option<Control>,
    lineage: Lineage,
    lineage_asked_at: Option<Moment>,
    /// Where this replica stands, and why it gets no further: its upstream has removed what comes next.
    log_gone: Option<(Lsn, String)>,
    reinit_begun: u64,
    written: Option<ServerConfig>,
    /// What a server reads that another hand started; unknown until it was asked.
    active: Option<ActiveFiles>,
    sync_names: Option<String>,
    floors: BTreeMap<NodeId, Lsn>,
    /// Replicas that lacked a transaction, and were given one.
    views: BTreeMap<NodeId, cluster::views::Look>,
    /// Nothing that an earlier keeper, or an unanswered write, may have on its way can change the rule any more.
    rule_sure: bool,
    /// Version of the rule that this keeper wrote last.
    rule_at_least: u64,
    /// Every process of the server is known to have taken up the synchronous list that it shows.
    list_taken_up: bool,
    last_streaming: BTreeMap<NodeId, Moment>,
    receiver_seen_at: Moment,
    prepared_server: bool,
    wait_sample: u64,
    clone_attempts: u32,
    clone_error: Option<String>,
    part: primacy::Part,
    /// Since when a stopped copy has had nobody to follow.
    lonely_since: Option<Moment>,
    following: upstream::Following,
}

/// Everything a turn works with.
struct Turn {
    state: Arc<Versioned<ClusterState>>,
    secrets: Arc<Versioned<Secrets>>,
    now: Moment,
}

impl Driver {
    /// A driver that adopts a server which already runs on the data directory.
    pub async fn new(parts: Parts) -> Result<Driver, Trouble> {
        let sql = Arc::new(Sql::new(&parts.spec));
        let server = Server::adopt(&parts.spec).await?;
        let now = clock::now();
        if let Some(server) = &server {
            tracing::info!(pid = server.pid(), "database server adopted");
            parts.local.set_phase(Phase::Alive);
        }
        let reinit_begun = match files::read_private(&reinit_file(&parts.config))? {
            Some(text) => String::from_utf8_lossy(&text).trim().parse().unwrap_or(0),
            None => 0,
        };
        let wait_sample = parts.local.next_sample();
        let ledger = LedgerFile::open(&parts.config.state_dir)?;
        let part = primacy::Part::new(parts.council.clone(), ledger, server.is_some(), now);
        Ok(Driver {
            sql,
            lineage_note: None,
            server,
            restarts: Restarts::new(now),
            log_began_at: postgres::server_log_size(&parts.spec),
            control: None,
            lineage: Lineage::Unknown,
            lineage_asked_at: None,
            log_gone: None,
            reinit_begun,
            written: None,
            active: None,
            sync_names: None,
            floors: BTreeMap::new(),
            views: BTreeMap::new(),
            list_taken_up: false,
            rule_sure: false,
            rule_at_least: 0,
            last_streaming: BTreeMap::new(),
            receiver_seen_at: now,
            prepared_server: false,
            wait_sample,
            clone_attempts: 0,
            clone_error: None,
            part,
            lonely_since: None,
            following: upstream::Following::new(now),
            parts,
        })
    }

    /// Drives until `stop`. The server itself is left running: it may outlive its keeper.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut states = self.parts.store.changes();
        let mut samples = self.parts.observations.own_changes();
        let local = self.parts.local.clone();
        loop {
            let turned = match self.turn_unless_shaken(&stop).await {
                Some(turned) => turned,
                None => {
                    tracing::info!("the primary changes; what was under way is given up");
                    self.start_over().await.map(|()| true)
                }
            };
            let went_on = match turned {
                Ok(went_on) => went_on,
                Err(trouble) => {
                    if local.set_error(Some((trouble.code.to_string(), trouble.to_string()))) {
                        tracing::warn!(%trouble, hint = trouble.hint, "the server could not be driven on");
                    }
                    false
                }
            };
            local.turned();
            if went_on && !stop.is_cancelled() {
                tokio::task::yield_now().await;
                continue;
            }
            let exited = async {
                match &self.server {
                    Some(server) => server.exited().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = exited => {}
                changed = states.changed() => if changed.is_err() { return },
                changed = samples.changed() => if changed.is_err() { return },
                () = local.drive_now.notified() => {}
                () = tokio::time::sleep(self.pace()) => {}
            }
        }
    }

    fn pace(&self) -> Duration {
        if self.part.council.restless(clock::now()) { TICK_RESTLESS } else { TICK }
    }

    /// One turn, given up when the primary changes in the middle of it: nothing that was begun before may delay this
    /// node's part in that. `None`: it was given up.
    async fn turn_unless_shaken(&mut self, stop: &CancellationToken) -> Option<Result<bool, Trouble>> {
        let mut states = self.parts.store.changes();
        let key = self.parts.store.state().map(|state| primacy::key_of(&state.value));
        let local = self.parts.local.clone();
        let shaken = async move {
            let Some(key) = key else { return std::future::pending().await };
            // A base backup goes on: its source may well outlive the primary.
            let moved = states.wait_for(|state| {
                state.as_ref().is_some_and(|state| primacy::key_of(&state.value) != key)
                    && local.phase() != Phase::Cloning
            });
            if moved.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            turned = self.turn(stop) => Some(turned),
            () = shaken => None,
        }
    }

    /// Forgets all that only an uninterrupted keeper could know, as if it had just started.
    async fn start_over(&mut self) -> Result<(), Trouble> {
        if self.server.is_none() {
            self.server = Server::adopt(&self.parts.spec).await?;
        }
        self.control = None;
        self.written = None;
        self.active = None;
        self.sync_names = None;
        self.list_taken_up = false;
        self.rule_sure = false;
        self.prepared_server = false;
        self.floors.clear();
        self.part.shaken();
        self.wait_sample = self.parts.local.next_sample();
        Ok(())
    }

    /// One look and one action. Returns whether to look again at once.
    async fn turn(&mut self, stop: &CancellationToken) -> Result<bool, Trouble> {
        let (Some(state), Some(secrets)) = (self.parts.store.state(), self.parts.store.secrets()) else {
            self.parts.local.set_doing(Some("waiting for the cluster's state".into()));
            return Ok(false);
        };
        let turn = Turn { state, secrets, now: clock::now() };
        self.reap(&turn).await?;
        let sample = self.parts.observations.own().filter(|sample| sample.seq >= self.wait_sample);
        let facts = sample.as_deref().and_then(running_facts);
        if self.server.is_some() && facts.is_some() {
            self.restarts.answers();
        }
        let follows = turn.state.value.following().is_some();
        let looked = if follows { self.following(&turn, facts).await } else { self.primacy(&turn, facts).await };
        match looked? {
            Primacy::Acted => {
                self.sample_again();
                return Ok(true);
            }
            Primacy::Waits => return Ok(false),
            Primacy::Free => {}
        }
        if self.server.is_some() && sample.is_none() {
            return Ok(false);
        }
        if let Some(facts) = facts {
            self.note(facts, turn.now);
        }
        let data = self.data()?;
        let process = match (&self.server, facts) {
            (None, _) => Process::Stopped,
            (Some(_), None) => Process::Starting,
            (Some(_), Some(facts)) => Process::Running(facts),
        };
        if data == Data::Empty {
            self.promise_what_is(&turn)?;
        }
        let upstream_ready = self.upstream_ready(&turn);
        let wanted = desire(&Situation {
            me: self.parts.me,
            state: &turn.state.value,
            data,
            process,
            reinit_begun: self.reinit_begun,
            lineage: self.lineage.clone(),
            history_known: self.part.history_known,
            upstream_ready,
            starved: !follows && turn.now.since(self.receiver_seen_at) > STARVED_AFTER && self.primary_answers(&turn),
            ahead: !follows && facts.is_some_and(|facts| self.ahead_of_primary(&turn, facts)),
        });
        self.fulfil(wanted, &turn, facts, stop).await
    }

    async fn fulfil(
        &mut self,
        wanted: Desire,
        turn: &Turn,
        facts: Option<&ServerFacts>,
        stop: &CancellationToken,
    ) -> Result<bool, Trouble> {
        let me = self.parts.me;
        match wanted {
            Desire::Wait(what) => {
                self.rest_phase();
                self.parts.local.set_doing(Some(what));
                Ok(false)
            }
            Desire::MarkActive => {
                let joining = turn.state.value.members.get(&me).is_some_and(|it| it.stage == Stage::Joining);
                let leads = turn.state.value.rule.primary == me;
                if joining
                    && !leads
                    && !self.part.council.may_join_electors(turn.state.version, &turn.state.value, turn.now)
                {
                    return Ok(false);
                }
                failpoint::pass("active.marking");
                let known: Vec<NodeId> = electors(&turn.state.value).collect();
                self.parts
                    .store
                    .update(|state| Ok((arrived(state, me).filter(|_| electors(state).eq(known.iter().copied())), ())))
                    .await?;
                failpoint::pass("active.marked");
                Ok(false)
            }
            Desire::InitDb => self.initdb(turn).await.map(|()| true),
            Desire::RecordIdentity { system_id, major } => {
                failpoint::pass("database.learning");
                self.parts.store.update(|state| Ok((admission::learn_database(state, system_id, major), ()))).await?;
                failpoint::pass("database.learned");
                Ok(false)
            }
            Desire::DiscardHalfMade => {
                self.parts.local.set_doing(Some("clearing what an interrupted copy left".into()));
                self.discard_half_made().await.map(|()| true)
            }
            Desire::Clone => self.clone_data(turn, stop).await,
            Desire::Wipe { order } => self.wipe(order).await.map(|()| true),
            Desire::CheckLineage => self.check_lineage(turn, facts).await,
            Desire::Start(role) => self.start_alone(role, turn).await,
            Desire::Stop(because) => self.stop_server(&because).await.map(|()| true),
            Desire::Halt { code, reason } => {
                tracing::error!(code, reason, "node halted");
                self.parts
                    .store
                    .update(|state| Ok((admission::halt(state, me, code, &reason, clock::wall()), ())))
                    .await?;
                // Whatever the cluster thinks, a server that holds a foreign history must not go on serving.
                if self.server.is_some() {
                    self.stop_server(&reason).await?;
                }
                Ok(false)
            }
            Desire::Leave => {
                failpoint::pass("leave.stopped");
                self.rest_phase();
                self.parts.local.set_doing(Some("left the cluster; its data stays where it is".into()));
                Ok(false)
            }
            Desire::Serve(role) => match facts {
                Some(facts) => self.serve(role, turn, facts).await,
                None => Ok(false),
            },
        }
    }

    /// Notices a server that went away by itself.
    async fn reap(&mut self, turn: &Turn) -> Result<(), Trouble> {
        if self.server.as_ref().is_none_or(Server::is_alive) {
            return Ok(());
        }
        self.release_address();
        self.server_is_gone();
        // Backends can outlive their postmaster and could still acknowledge commits: none may be left before anything
        // else is done.
        let killed = postgres::kill_everything(&self.parts.spec, KILL_DEADLINE).await?;
        let pause = self.restarts.went_away(turn.now);
        self.consider_hand_over(turn);
        let reason = postgres::last_words(&self.parts.spec, self.log_began_at);
        let failures = self.restarts.failures();
        tracing::warn!(killed, failures, pause_ms = pause.0, reason, "database server went away");
        self.parts.local.set_phase(Phase::Failed { reason });
        Ok(())
    }

    pub(super) fn release_address(&self) {
        if let Some(floating) = &self.parts.floating {
            floating.release();
        }
    }

    fn server_is_gone(&mut self) {
        self.server = None;
        self.control = None;
        self.written = None;
        self.active = None;
        self.prepared_server = false;
        self.list_taken_up = false;
    }

    fn rest_phase(&self) {
        if self.server.is_none() && !matches!(self.parts.local.phase(), Phase::Failed { .. }) {
            let empty = !self.parts.node.data_dir.join("PG_VERSION").exists();
            self.parts.local.set_phase(if empty { Phase::Empty } else { Phase::Stopped });
        }
    }

    fn note(&mut self, facts: &ServerFacts, now: Moment) {
        // A receiver says "streaming" for a moment even where the next thing it hears is that the log is gone.
        let at = facts.received.max(facts.replayed);
        self.log_gone.take_if(|(stuck_at, _)| !facts.in_recovery || at.is_some_and(|at| at > *stuck_at));
        if !facts.in_recovery || facts.receiver.as_ref().is_some_and(|receiver| receiver.status == "streaming") {
            self.receiver_seen_at = now;
            if self.may_follow() {
                self.lineage = Lineage::Unknown;
            }
        }
        if let Some(asked) = self.lineage_asked_at
            && self.may_follow()
            && now.since(asked) > LINEAGE_AGAIN_AFTER
        {
            self.lineage = Lineage::Unknown;
        }
    }

    fn may_follow(&self) -> bool {
        match self.lineage {
            Lineage::Follows | Lineage::LogGone { .. } => true,
            Lineage::Unknown | Lineage::Diverged { .. } => false,
        }
    }

    fn data(&mut self) -> Result<Data, Trouble> {
        if self.server.is_some()
            && let Some(control) = self.control
        {
            return Ok(Data::Present(control));
        }
        Ok(match postgres::check_data_dir(&self.parts.node.data_dir, self.parts.spec.user.as_ref())? {
            DataDir::Missing | DataDir::Empty => Data::Empty,
            // initdb clears its own remains.
            DataDir::HalfMade { what } if what == "initdb" => Data::Empty,
            DataDir::HalfMade { .. } => Data::HalfMade,
            DataDir::Cluster(control) => {
                let copied = self.parts.node.data_dir.join("backup_label").exists();
                let control = configure::control_of(&control, copied);
                self.control = Some(control);
                Data::Present(control)
            }
        })
    }

    async fn initdb(&mut self, turn: &Turn) -> Result<(), Trouble> {
        let local = self.parts.local.clone();
        self.parts.local.set_phase(Phase::Initialising);
        self.parts.local.set_doing(Some("making the first database".into()));
        let result = postgres::initdb(&self.parts.spec, &turn.secrets.value.postgres_password, true, &|step| {
            local.set_doing(Some(step.to_owned()));
        })
        .await;
        self.parts.local.set_phase(if result.is_ok() { Phase::Stopped } else { Phase::Empty });
        result
    }

    /// Nobody serves whom this node could follow. A copy is started all the same, so that it can be read.
    async fn start_alone(&mut self, role: Role, turn: &Turn) -> Result<bool, Trouble> {
        if turn.state.value.following().is_some() {
            return self.start(role, turn).await;
        }
        let lonely = *self.lonely_since.get_or_insert(turn.now);
        if role == Role::Replica && turn.now.since(lonely) >= LONELY_PATIENCE {
            self.part.follow = None;
            return self.start(role, turn).await;
        }
        self.parts.local.set_doing(Some("waiting for a primary to follow".into()));
        Ok(false)
    }

    async fn start(&mut self, role: Role, turn: &Turn) -> Result<bool, Trouble> {
        // Until somebody takes writes, a failover may wait for what this server holds.
        let needed = role == Role::Replica && !self.primary_answers(turn);
        if let Some(wait) = self.restarts.wait(turn.now, needed) {
            self.parts.local.set_doing(Some(format!("starts the server again in {} ms", wait.0)));
            // Whoever could not take over when it crashed may be back.
            self.consider_hand_over(turn);
            return Ok(false);
        }
        self.parts.local.set_doing(Some(format!("starting the server as {role}")));
        postgres::kill_everything(&self.parts.spec, KILL_DEADLINE).await?;
        self.write_server_files()?;
        let config = self.wanted_config(role, turn)?;
        postgres::write_config(&self.parts.spec, &config)?;
        failpoint::pass("server.configured");
        self.written = Some(config);
        self.part.started(turn.now);
        self.lonely_since = None;
        // A server that we start reads what lies in its data directory and nothing else.
        self.active = None;
        self.restarts.starts(turn.now);
        self.receiver_seen_at = turn.now;
        self.log_began_at = postgres::server_log_size(&self.parts.spec);
        match Server::start(&self.parts.spec).await {
            Ok(server) => {
                failpoint::pass("server.started");
                tracing::info!(pid = server.pid(), %role, "database server started");
                self.server = Some(server);
                self.control = None;
                self.list_taken_up = false;
                self.prepared_server = false;
                self.wait_sample = self.parts.local.next_sample();
                self.parts.local.set_phase(Phase::Alive);
                Ok(true)
            }
            Err(trouble) => {
                self.restarts.did_not_start(turn.now);
                self.parts.local.set_phase(Phase::Failed { reason: trouble.to_string() });
                Err(trouble)
            }
        }
    }

    async fn stop_server(&mut self, because: &str) -> Result<(), Trouble> {
        self.stop_server_within(because, STOP_DEADLINE).await
    }

    async fn stop_server_within(&mut self, because: &str, deadline: Duration) -> Result<(), Trouble> {
        // Before anything else: clients should not come to a server that stops.
        self.release_address();
        let Some(server) = self.server.take() else { return Ok(()) };
        tracing::info!(because, "stopping the database server");
        self.parts.local.set_doing(Some(format!("stopping the server: {because}")));
        if let Err(trouble) = server.stop(StopMode::Fast, deadline).await {
            tracing::warn!(%trouble, "the server does not stop; its processes are killed");
        }
        postgres::kill_everything(&self.parts.spec, KILL_DEADLINE).await?;
        self.server_is_gone();
        self.parts.local.set_phase(Phase::Stopped);
        Ok(())
    }

    /// Removes the data because a person ordered a rebuild. The order is noted before, so that a keeper killed in the
    /// middle neither forgets to finish nor wipes the rebuilt data again.
    async fn wipe(&mut self, order: u64) -> Result<(), Trouble> {
        self.stop_server("its data is rebuilt from a fresh base backup").await?;
        self.parts.local.set_doing(Some("removing the old data".into()));
        failpoint::pass("wipe.begun");
        // Marked first: from here on the data counts as half made, whatever happens, and no server starts on it.
        postgres::clone::mark_for_removal(&self.parts.node.data_dir, self.parts.spec.user.as_ref(), clock::wall())?;
        failpoint::pass("wipe.marked");
        files::write_private(&reinit_file(&self.parts.config), order.to_string().as_bytes())?;
        failpoint::pass("wipe.noted");
        self.reinit_begun = order;
        self.discard_half_made().await?;
        self.control = None;
        self.lineage = Lineage::Unknown;
        self.log_gone = None;
        self.restarts.forget();
        self.parts.local.set_phase(Phase::Empty);
        Ok(())
    }

    /// Has the next turn wait for a sample begun after now, so that it sees what was just done.
    fn sample_again(&mut self) {
        self.wait_sample = self.parts.local.next_sample();
        self.parts.local.sample_now.notify_one();
    }
}

/// The state after this node was seen to follow: whatever order it was under is fulfilled.
fn arrived(state: &ClusterState, me: NodeId) -> Option<ClusterState> {
    match state.members.get(&me)?.stage {
        Stage::Joining => admission::complete(state, me, clock::wall()),
        Stage::Reinit { order } | Stage::Rejoin { order } => admission::finish_order(state, me, order, clock::wall()),
        Stage::Active | Stage::Halted { .. } | Stage::Leaving => None,
    }
}

fn reinit_file(config: &NodeConfig) -> std::path::PathBuf {
    config.state_dir.join("reinit.order")
}

/// The facts of a running server, if the sample has them.
pub(crate) fn running_facts(sample: &NodeSample) -> Option<&ServerFacts> {
    match sample.server {
        ServerState::Running => sample.facts.as_ref(),
        ServerState::None
        | ServerState::Empty
        | ServerState::Initialising
        | ServerState::Cloning(_)
        | ServerState::Stopped
        | ServerState::Starting
        | ServerState::Unresponsive { .. }
        | ServerState::Failed { .. } => None,
    }
}
