//! One keeper, assembled: mesh, consensus, sampler, judge and driver, and the answers it gives to people and peers.

mod certificates;
mod followers;
mod group;
mod planned;
mod service;

use crate::announce::{Names, Teller};
use crate::clock;
use crate::driver::{Driver, Parts};
use crate::enrol::{self, Bootstrap};
use crate::failover::floating::FloatingAddress;
use crate::failover::routers::RouterSeat;
use crate::failover::{Council, fence, health, probe};
use crate::files;
use crate::identity::{ConsensusChoice, IdentityFiles, NodeIdentity};
use crate::local::{Local, Phase};
use crate::mesh::{Mesh, MeshConfig};
use crate::node_config::NodeConfig;
use crate::observations::Observations;
use crate::pki::{self, TlsContext};
use crate::sampler::{self, Sampler};
use crate::store::{CLUSTER_KEY, SECRETS_KEY, Store};
use crate::token::{FollowToken, JoinToken};
use cluster::decide::{self, Context};
use consensus::Consensus;
use consensus::embedded::{Embedded, EmbeddedConfig, Timing};
use consensus::etcd::{Etcd, EtcdConfig};
use futures_util::stream::BoxStream;
use model::{
    Actor, ClusterState, ClusterStatus, Command, Epoch, Millis, NodeId, NodeName, NodeSample, Outcome, Trouble,
};
use nix::fcntl::{Flock, FlockArg};
use postgres::{ServerSpec, Sql, TlsFiles};
use service::{MeshTransport, Service};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long tasks may take to end when the keeper stops.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// How often a store that did not answer is told the cluster's first state again.
const BOOTSTRAP_PAUSE: Duration = Duration::from_secs(1);

/// A running keeper.
pub struct Keeper {
    config: NodeConfig,
    identity: NodeIdentity,
    store: Store,
    observations: Arc<Observations>,
    local: Arc<Local>,
    council: Arc<Council>,
    mesh: Arc<Mesh>,
    tls: Arc<TlsContext>,
    api_token: String,
    stop: CancellationToken,
    tasks: TaskTracker,
    // Held for the life of the keeper: two keepers on one state directory would be two votes of one node.
    _lock: Flock<std::fs::File>,
}

impl Keeper {
    /// Starts the keeper of an enrolled node. Returns once it listens and its tasks run; the server is brought up by
    /// the driver in its own time.
    pub async fn start(config: NodeConfig) -> Result<Arc<Keeper>, Trouble> {
        files::private_directory(&config.state_dir)?;
        let lock = lock_state_dir(&config)?;
        let files = IdentityFiles { directory: config.identity_dir() };
        let content = files.load()?;
        let identity = content.identity.clone();
        if identity.name != config.name {
            return Err(Trouble::config_bad_value(
                format!(
                    "the node file says `{}`, but this state directory was enrolled as `{}`",
                    config.name, identity.name
                ),
                "set `name` back, or point `state_dir` to the directory of the other node",
            ));
        }
        let tls = TlsContext::load(&files)?;
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let local = Local::new();
        let council = Arc::new(Council::new(identity.node));
        let observations = Observations::new(identity.node, council.clone(), local.clone());
        let service = Arc::new(Service::new(identity.clone(), observations.clone()));
        let listen = vec![resolve(&config.keeper.listen)?];
        let mesh = Mesh::start(
            MeshConfig { node: identity.node, cluster_id: identity.cluster_id.clone(), listen, tls: tls.clone() },
            service.clone(),
        )
        .await?;
        mesh.set_peers(identity.seeds.iter().filter(|(id, _)| *id != identity.node).cloned().collect());
        let transport = Arc::new(MeshTransport { mesh: mesh.clone() });
        let consensus = open_consensus(&config, &identity, transport, &service).await?;
        let unfinished = match bootstrap(&config, consensus.as_ref(), service.embedded()).await {
            Ok(()) => false,
            // A store of others that is down now: it is told when it is back.
            Err(trouble) if trouble.is("ST2105") => {
                tracing::warn!(%trouble, "the cluster's first state is not stored yet; the keeper goes on trying");
                true
            }
            Err(trouble) => return Err(trouble),
        };
        let store = Store::follow(consensus, &stop);
        service.follow(store.clone(), mesh.clone());
        let api_token = enrol::random::<24>()?.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        files::write_private(&config.api_token_file(), api_token.as_bytes())?;
        let keeper = Arc::new(Keeper {
            config,
            identity,
            store,
            observations,
            local,
            council,
            mesh,
            tls,
            api_token,
            stop,
            tasks,
            _lock: lock,
        });
        keeper.spawn_tasks();
        if unfinished {
            let later = keeper.clone();
            keeper.tasks.spawn(async move { later.finish_bootstrap().await });
        }
        Ok(keeper)
    }

    /// Stores the cluster's first state as soon as the store answers.
    async fn finish_bootstrap(self: Arc<Self>) {
        let embedded = OnceLock::new();
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(BOOTSTRAP_PAUSE) => {}
            }
            match bootstrap(&self.config, self.store.consensus().as_ref(), &embedded).await {
                Ok(()) => return tracing::info!("the cluster's first state is stored"),
                Err(trouble) => {
                    if self.local.set_error(Some((trouble.code.to_string(), trouble.to_string()))) {
                        tracing::warn!(%trouble, hint = trouble.hint, "the cluster's first state is not stored yet");
                    }
                }
            }
        }
    }

    fn spawn_tasks(self: &Arc<Self>) {
        let stop = &self.stop;
        self.tasks.spawn(sampler::heartbeat_loop(
            self.observations.clone(),
            self.council.clone(),
            self.mesh.clone(),
            stop.clone(),
        ));
        self.tasks.spawn(probe::run(self.council.clone(), self.store.clone(), stop.clone()));
        let keeper = self.clone();
        self.tasks.spawn(async move { keeper.keep_up().await });
        self.tasks.spawn(self.observations.clone().judge_loop(
            self.store.clone(),
            self.mesh.clone(),
            self.config.name.clone(),
            stop.clone(),
        ));
        self.tasks.spawn(group::keep_group(self.clone()));
        self.tasks.spawn(certificates::keep_certificates(self.clone()));
        let keeper = self.clone();
        self.tasks.spawn(async move { keeper.bring_up().await });
    }

    /// Reads the state anew when another keeper knows a newer one: the store's own announcement may take a while.
    async fn keep_up(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.observations.newer_state.notified() => {}
            }
            if let Err(trouble) = self.store.read().await {
                tracing::debug!(%trouble, "the newer state was not read");
            }
        }
    }

    /// Waits for the cluster's state, which holds what the server needs, then samples and drives.
    async fn bring_up(self: Arc<Self>) {
        let (_, secrets) = tokio::select! {
            () = self.stop.cancelled() => return,
            ready = self.store.ready() => ready,
        };
        let spec = loop {
            match server_spec(&self.config, &secrets.value.superuser_password) {
                Ok(spec) => break spec,
                Err(trouble) => {
                    if self.local.set_error(Some((trouble.code.to_string(), trouble.to_string()))) {
                        tracing::error!(%trouble, hint = trouble.hint, "the server cannot be run");
                    }
                    tokio::select! {
                        () = self.stop.cancelled() => return,
                        () = tokio::time::sleep(Duration::from_secs(1)) => {}
                    }
                }
            }
        };
        let tls = self.tls.clone();
        let sampler = Sampler {
            me: self.identity.node,
            incarnation: u64::from_be_bytes(enrol::random::<8>().unwrap_or_default()),
            local: self.local.clone(),
            observations: self.observations.clone(),
            store: self.store.clone(),
            sql: spec.as_ref().map(Sql::new),
            spec: spec.clone(),
            machine: self.config.machine.clone(),
            data_dir: self.config.postgresql.as_ref().map(|node| node.data_dir.clone()),
            council: self.council.clone(),
            certificate_expires_at: Arc::new(move || tls.expires_at()),
        };
        if spec.is_none() {
            self.local.set_phase(Phase::NoServer);
        }
        self.tasks.spawn(sampler.run(self.stop.clone()));
        let teller = Teller {
            me: self.identity.node,
            config: self.config.clone(),
            store: self.store.clone(),
            observations: self.observations.clone(),
            local: self.local.clone(),
        };
        self.tasks.spawn(teller.run(self.stop.clone()));
        if let Some(place) = self.config.dns.clone() {
            let names = Names {
                me: self.identity.node,
                place,
                store: self.store.clone(),
                observations: self.observations.clone(),
                local: self.local.clone(),
            };
            self.tasks.spawn(names.run(self.stop.clone()));
        }
        self.tasks.spawn(planned::keep_plans(self.clone(), spec.clone()));
        match spec.zip(self.config.postgresql.clone()) {
            Some((spec, node)) => self.drive(spec, node).await,
            None => service::be_witness(&self).await,
        }
    }

    async fn drive(self: &Arc<Self>, spec: ServerSpec, node: crate::node_config::PostgresqlNode) {
        let (council, local) = (self.council.clone(), self.local.clone());
        let floating = self
            .config
            .floating
            .clone()
            .map(|place| Arc::new(FloatingAddress::new(place, council.clone(), self.store.clone(), local.clone())));
        let guarded = fence::start(council.clone(), local.clone(), spec.clone(), floating.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let _ = guarded.await;
        });
        self.tasks.spawn(health::run(council, local, spec.clone(), self.stop.clone()));
        if let Err(trouble) = enrol::write_credentials_of(&self.config, &self.store) {
            tracing::warn!(%trouble, "credentials file not written");
        }
        loop {
            let parts = Parts {
                me: self.identity.node,
                config: self.config.clone(),
                node: node.clone(),
                spec: spec.clone(),
                store: self.store.clone(),
                observations: self.observations.clone(),
                local: self.local.clone(),
                tls: self.tls.clone(),
                council: self.council.clone(),
                floating: floating.clone(),
            };
            match Driver::new(parts).await {
                Ok(driver) => return driver.run(self.stop.clone()).await,
                Err(trouble) => {
                    self.local.set_error(Some((trouble.code.to_string(), trouble.to_string())));
                    tracing::error!(%trouble, hint = trouble.hint, "the server cannot be driven");
                }
            }
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    /// Stops the keeper; the database goes on and is adopted by the next keeper.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_DEADLINE, self.tasks.wait()).await.is_err() {
            tracing::warn!("some tasks did not end in time");
        }
        self.mesh.stop().await;
        self.store.consensus().stop().await;
    }

    /// Cancelled when the keeper stops.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }
    /// The node's configuration.
    pub fn config(&self) -> &NodeConfig {
        &self.config
    }
    /// The node's name.
    pub fn name(&self) -> &NodeName {
        &self.config.name
    }
    /// The node's number.
    pub fn id(&self) -> NodeId {
        self.identity.node
    }
    /// The cluster's id.
    pub fn cluster_id(&self) -> &model::ClusterId {
        &self.identity.cluster_id
    }
    /// The judged status, once there is one.
    pub fn status(&self) -> Option<Arc<ClusterStatus>> {
        self.observations.status()
    }
    /// What to show before there is a judged status: that nothing is known.
    pub fn unknown_status(&self) -> ClusterStatus {
        let mut nothing = cluster::judge::unknown(self.config.name.clone(), clock::wall(), self.store.view());
        nothing.cluster = self.identity.cluster.to_string();
        nothing.cluster_id = self.identity.cluster_id.to_string();
        nothing
    }
    /// Wakes at every judgement.
    pub fn judgements(&self) -> tokio::sync::watch::Receiver<u64> {
        self.observations.judgements()
    }
    /// Wakes at every new state and at every judgement; ends with the keeper.
    pub fn changes(&self) -> BoxStream<'static, ()> {
        let parts = (self.store.changes(), self.judgements(), self.stop.clone());
        Box::pin(futures_util::stream::unfold(parts, |(mut states, mut judgements, stop)| async move {
            let known = tokio::select! {
                () = stop.cancelled() => return None,
                known = states.changed() => known,
                judged = judgements.changed() => judged,
            };
            known.is_ok().then_some(((), (states, judgements, stop)))
        }))
    }
    /// The newest known state.
    pub fn state(&self) -> Option<Arc<ClusterState>> {
        self.store.state().map(|state| Arc::new(state.value.clone()))
    }
    /// A router follows this node from now on, until its seat is dropped; `None` where there are too many.
    pub fn router_joins(&self, name: &str) -> Option<RouterSeat> {
        self.council.routers.join(name)
    }
    /// A router that follows sends nothing new to the primary before this epoch, and has nothing open there.
    pub fn router_holds(&self, name: &str, epoch: Epoch) {
        self.council.routers.holds(name, epoch);
        self.council.beat.notify_one();
        self.local.drive_now.notify_one();
    }
    /// This node's newest sample.
    pub fn sample(&self) -> Option<Arc<NodeSample>> {
        self.observations.own()
    }
    /// Time since the driver last turned.
    pub fn since_turn(&self) -> Millis {
        clock::now().since(self.local.turned_at())
    }
    /// The token that local tools present.
    pub fn api_token(&self) -> &str {
        &self.api_token
    }

    /// Reads certificates again (SIGHUP).
    pub fn reload(&self) -> Result<(), Trouble> {
        self.tls.reload()?;
        self.local.drive_now.notify_one();
        Ok(())
    }

    /// Tries the server's parameters on this node's own program. A witness has none, and must believe.
    async fn try_values(&self, settings: &model::Settings) -> Result<(), Trouble> {
        let Some(node) = &self.config.postgresql else { return Ok(()) };
        let (bin_dir, parameters) = (node.bin_dir.clone(), settings.postgresql.parameters.clone());
        let tried = tokio::task::spawn_blocking(move || {
            postgres::check_values(&postgres::find_installation(bin_dir.as_deref())?, &parameters)
        });
        tried.await.map_err(|error| Trouble::internal("trying values was interrupted", "").because(error))?
    }

    /// Carries out what someone asks for. Any node can do it: what changes is the state in consensus.
    pub async fn command(&self, command: Command, actor: Actor, dry_run: bool) -> Result<Outcome, Trouble> {
        let status = self.status().ok_or_else(|| {
            Trouble::no_quorum(
                "this node has not heard of the cluster's state yet",
                "try again in a moment, or another node",
            )
        })?;
        let secrets = self.store.secrets();
        let ca_sha256 = match secrets.as_ref().and_then(|secrets| secrets.value.ca_certificates.first().cloned()) {
            Some(certificate) => pki::ca_sha256(&certificate)?,
            None => String::new(),
        };
        if let Command::ApplySettings { settings, .. } = &command {
            self.try_values(settings).await?;
        }
        let random = enrol::random::<32>()?;
        let names = parameter_rules();
        let outcome = self
            .store
            .update(|state| {
                let context = Context {
                    now: clock::wall(),
                    actor: actor.clone(),
                    random,
                    status: &status,
                    token_addresses: token_addresses(state, &status),
                    ca_sha256: ca_sha256.clone(),
                };
                if let Command::ApplySettings { settings, .. } = &command {
                    service::check_settings(settings, state, &names)?;
                }
                let (next, outcome) = decide::decide(state, &command, &context)?;
                let changed = outcome.changed && !dry_run;
                if changed {
                    failpoint::pass("command.writing");
                }
                Ok((changed.then_some(next), (outcome, context.token_addresses)))
            })
            .await;
        let (mut outcome, addresses) = outcome?;
        if outcome.changed && !dry_run {
            failpoint::pass("command.written");
            // Who looks at the status after the answer must not be shown the cluster of before.
            self.observations.judged_from(self.store.state().map_or(0, |state| state.version)).await;
        }
        let made = match &command {
            Command::CreateToken { role, .. } => Some((*role, false)),
            Command::CreateFollowerToken { .. } => Some((model::Role::Replica, true)),
            _other_commands_make_none => None,
        };
        if let (Some(pair), Some((role, follower))) = (outcome.token.take(), made) {
            let (id, secret) = pair
                .split_once('.')
                .ok_or_else(|| Trouble::internal("the new token has no secret", "report this defect"))?;
            let token = JoinToken {
                id: id.to_owned(),
                secret: secret.to_owned(),
                role,
                ca_sha256,
                addresses,
                cluster: self.identity.cluster.clone(),
            };
            let text = if follower { FollowToken(token).to_string() } else { token.to_string() };
            outcome.token = (!dry_run).then_some(text);
        }
        Ok(outcome)
    }
}

/// The server to be run; `None` for a witness.
pub fn server_spec(config: &NodeConfig, superuser_password: &str) -> Result<Option<ServerSpec>, Trouble> {
    let Some(node) = &config.postgresql else { return Ok(None) };
    let installation = postgres::find_installation(node.bin_dir.as_deref())?;
    let tls_files = installation.has_ssl.then(|| {
        let directory = crate::driver::server_files_dir(config);
        TlsFiles { cert: directory.join("server.crt"), key: directory.join("server.key"), ca: directory.join("ca.crt") }
    });
    Ok(Some(ServerSpec {
        user: postgres::server_user(node.run_as.as_deref())?,
        installation,
        data_dir: node.data_dir.clone(),
        listen: node.listen.clone(),
        port: node.port,
        socket_dir: postgres::socket_dir_for(&config.state_dir),
        socket_dirs_beside: node.socket_dirs.clone(),
        log_file: config.server_log(),
        superuser: "stemma".to_owned(),
        superuser_password: superuser_password.to_owned(),
        tls_files,
    }))
}

/// Which PostgreSQL parameters may not be set by people.
fn parameter_rules() -> impl Fn(&str, &str) -> Option<Trouble> {
    |name, value| postgres::validate_parameter(name, value).err()
}

/// Addresses that a token carries: keepers that answer first, at most five.
fn token_addresses(state: &ClusterState, status: &ClusterStatus) -> Vec<String> {
    const ADDRESSES_MAX: usize = 5;
    let up: BTreeMap<NodeId, bool> = status.nodes.iter().map(|node| (node.id, node.keeper_up)).collect();
    let mut members: Vec<_> = state.members.values().collect();
    members.sort_by_key(|member| (!up.get(&member.id).copied().unwrap_or(false), member.id));
    members.into_iter().take(ADDRESSES_MAX).map(|member| member.peer_address.clone()).collect()
}

fn lock_state_dir(config: &NodeConfig) -> Result<Flock<std::fs::File>, Trouble> {
    let path = config.state_dir.join("keeper.lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| files::os("open", &path, &error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| {
        Trouble::already_running(
            format!("another keeper uses {}", config.state_dir.display()),
            "stop it first, or give this node a `state_dir` of its own",
        )
        .because(error)
    })
}

pub(crate) fn resolve(address: &str) -> Result<SocketAddr, Trouble> {
    use std::net::ToSocketAddrs;
    let bad = |cause: String| {
        Trouble::config_bad_value(
            format!("`{address}` is not an address to listen on"),
            "write host:port, as in 0.0.0.0:7432",
        )
        .because(cause)
    };
    let mut found = address.to_socket_addrs().map_err(|error| bad(error.to_string()))?;
    found.next().ok_or_else(|| bad("it resolves to nothing".into()))
}

async fn open_consensus(
    config: &NodeConfig,
    identity: &NodeIdentity,
    transport: Arc<MeshTransport>,
    service: &Service,
) -> Result<Arc<dyn Consensus>, Trouble> {
    match &identity.consensus.with_ways_of(&config.consensus)? {
        ConsensusChoice::Embedded => {
            let directory = config.state_dir.join("consensus");
            let embedded =
                Embedded::open(EmbeddedConfig { id: identity.node, directory, transport, timing: Timing::default() })
                    .await?;
            service.set_embedded(embedded.clone());
            Ok(embedded)
        }
        ConsensusChoice::Etcd { endpoints, prefix, user, password, ca } => {
            // Not `connect`: a database goes on while etcd is down, and so must its keeper.
            let etcd = Etcd::open(EtcdConfig {
                user: user.clone(),
                password: password.clone(),
                ca: ca.clone(),
                ..EtcdConfig::new(endpoints.clone(), format!("{}/", prefix.trim_end_matches('/')))
            })
            .await?;
            Ok(etcd)
        }
    }
}

/// Puts the documents of `init` into consensus, once. The file goes away only after they are in.
async fn bootstrap(
    config: &NodeConfig,
    consensus: &dyn Consensus,
    embedded: &OnceLock<Arc<Embedded>>,
) -> Result<(), Trouble> {
    let path = enrol::bootstrap_file(config);
    let Some(body) = files::read_private(&path)? else { return Ok(()) };
    let bootstrap: Bootstrap = serde_json::from_slice(&body).map_err(|error| {
        Trouble::internal(
            format!("{} is unreadable", path.display()),
            "run `stemma init` anew in an empty state directory",
        )
        .because(error)
    })?;
    let unwritable =
        |error: serde_json::Error| Trouble::internal("the first state cannot be written", "").because(error);
    let documents = vec![
        (SECRETS_KEY.to_owned(), serde_json::to_vec(&bootstrap.secrets).map_err(unwritable)?),
        (CLUSTER_KEY.to_owned(), serde_json::to_vec(&bootstrap.state).map_err(unwritable)?),
    ];
    failpoint::pass("bootstrap.begun");
    match embedded.get() {
        Some(embedded) => embedded.bootstrap(documents).await?,
        None => service::bootstrap_external(consensus, documents, &bootstrap.state.identity.id).await?,
    }
    failpoint::pass("bootstrap.written");
    files::remove_file(&path)?;
    failpoint::pass("bootstrap.ended");
    Ok(())
}
