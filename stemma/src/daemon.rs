//! What `stemma run`, `init` and `join` do on a node: the keeper, its API and its life under systemd, assembled.

mod adopt;

use crate::front;
use crate::node_file::{self, NodeFile};
use crate::router_file::Section;
use console::Backend;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use keeper::enrol;
use keeper::token::{FollowToken, JoinToken};
use keeper::{Keeper, Listen, NodeConfig, PostgresqlNode};
use model::names::{ClusterName, NodeName, Site};
use model::{
    Actor, ClusterState, ClusterStatus, Command, Millis, NodeSample, Outcome, ReplicaKind, Role, Settings, Trouble,
};
use postgres::DataDir;
use sd_notify::NotifyState;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How often systemd's watchdog is fed, if it watches.
const WATCHDOG_INTERVAL: Duration = Duration::from_secs(2);
/// A driver that has not turned for this long is stuck: the watchdog is not fed any more.
const STUCK_AFTER: Millis = Millis(60_000);
/// How long the API may take to hear of the cluster's state before it answers that it does not know.
const FIRST_STATUS_DEADLINE: Duration = Duration::from_secs(10);

/// How long the database may take to stop where it is stopped with its keeper.
const SERVER_STOP_DEADLINE: Duration = Duration::from_secs(60);

/// The API's view of a keeper.
struct KeeperBackend {
    keeper: Arc<Keeper>,
    /// Of the router that runs beside it.
    meter: OnceLock<router::Meter>,
}

impl Backend for KeeperBackend {
    fn status(&self) -> Arc<ClusterStatus> {
        self.keeper.status().unwrap_or_else(|| Arc::new(self.keeper.unknown_status()))
    }
    fn state(&self) -> Option<Arc<ClusterState>> {
        self.keeper.state()
    }
    fn sample(&self) -> Option<Arc<NodeSample>> {
        self.keeper.sample()
    }
    fn node(&self) -> NodeName {
        self.keeper.name().clone()
    }
    fn liveness(&self) -> Millis {
        self.keeper.since_turn()
    }
    fn changes(&self) -> BoxStream<'static, ()> {
        self.keeper.changes()
    }
    fn more_metrics(&self) -> String {
        self.meter.get().map(router::Meter::text).unwrap_or_default()
    }
    fn router_joins(&self, name: &str) -> Option<Box<dyn Send>> {
        self.keeper.router_joins(name).map(|seat| Box::new(seat) as Box<dyn Send>)
    }
    fn router_holds(&self, name: &str, epoch: model::Epoch) {
        self.keeper.router_holds(name, epoch);
    }
    fn command(&self, command: Command, actor: Actor, dry_run: bool) -> BoxFuture<'_, Result<Outcome, Trouble>> {
        Box::pin(self.keeper.command(command, actor, dry_run))
    }
    fn authorise(&self, bearer: Option<&str>) -> Result<String, Trouble> {
        match bearer {
            Some(token) if same_secret(token.as_bytes(), self.keeper.api_token().as_bytes()) => {
                Ok(format!("operator@{}", self.keeper.name()))
            }
            Some(_) => Err(Trouble::denied(
                "the token is not valid on this node",
                "each start of a keeper makes a new one: read `api.token` in its state directory again",
            )),
            None => Err(Trouble::denied(
                "changes need a token",
                "send `Authorization: Bearer` with the content of `api.token` in the node's state directory",
            )),
        }
    }
}

/// Compares without telling by its duration where the difference is.
fn same_secret(given: &[u8], right: &[u8]) -> bool {
    given.len() == right.len() && given.iter().zip(right).fold(0u8, |sum, (a, b)| sum | (a ^ b)) == 0
}

/// What `stemma init` was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitOptions {
    /// Name of the new cluster.
    pub cluster: ClusterName,
    /// Make the existing data directory the first copy instead of an empty one.
    pub adopt: Option<Adopt>,
    /// Cluster settings to begin with, instead of the defaults.
    pub settings_file: Option<PathBuf>,
}

/// An existing database that becomes the first node of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopt {
    /// A superuser of that database, for making our own roles; the owner of the data directory when absent.
    pub superuser: Option<String>,
    /// How to log in to the running server as a superuser, instead of by its socket.
    pub dsn: Option<String>,
}

/// What `stemma join` was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinOptions {
    /// `replica` or `witness`.
    pub role: Role,
    /// How a replica is used.
    pub kind: ReplicaKind,
    /// For a delayed replica: how late, in milliseconds.
    pub apply_delay_ms: u64,
    /// Node to stream from; the primary when absent.
    pub from: Option<NodeName>,
    /// Instead of the site in the node file.
    pub site: Option<Site>,
    /// Failover preference.
    pub priority: u32,
}

/// Failover preference of a node for which nobody chose one.
const PRIORITY_DEFAULT: u32 = 100;

/// Makes a new cluster with this node as its first. Returns the sentence for people, and notes for them.
pub async fn init(node_file: NodeFile, options: InitOptions) -> Result<(String, Vec<String>), Trouble> {
    install_tls_provider();
    let mut config = config(node_file)?;
    enrol::check_not_enrolled(&config)?;
    choose_prefix(&mut config, &options.cluster);
    let mut settings = match &options.settings_file {
        Some(path) => settings_from(path)?,
        None => Settings::default(),
    };
    let installation = preflight(&config, options.adopt.is_some())?;
    if let Some(installation) = &installation
        && !installation.has_ssl
        && settings.tls
    {
        return Err(Trouble::settings_refused(
            "this PostgreSQL was built without TLS, and the settings ask for TLS between the servers",
            "install a build with TLS, or begin with `tls = false` in a settings file (stemma init --settings FILE)",
        ));
    }
    if let Some(installation) = &installation {
        postgres::check_values(installation, &settings.postgresql.parameters)?;
    }
    let (adopt, notes) = match options.adopt {
        Some(adopt) => {
            let prepared = adopt::prepare(&config, &adopt, &mut settings).await?;
            (Some(prepared.adopted), prepared.notes)
        }
        None => (None, Vec::new()),
    };
    let adopted = adopt.is_some();
    let enrolled = enrol::init(
        &config,
        enrol::InitOptions { cluster: options.cluster, settings, priority: PRIORITY_DEFAULT, adopt },
    )?;
    let what = if adopted { "takes over its database" } else { "builds its first database" };
    let text = format!("cluster {} made; `stemma run` {what} ({} is its first node)", enrolled.cluster, config.name);
    Ok((text, notes))
}

/// What `stemma cluster follow` was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowOptions {
    /// Name of the standby cluster.
    pub cluster: ClusterName,
    /// Cluster settings to begin with, instead of the defaults.
    pub settings_file: Option<PathBuf>,
}

/// Makes a standby cluster with this node as its first. Returns the sentence for people, and whom it follows.
pub async fn follow(
    node_file: NodeFile,
    token: String,
    options: FollowOptions,
) -> Result<(String, model::follow::Follow), Trouble> {
    install_tls_provider();
    let token: FollowToken = token.parse()?;
    let mut config = config(node_file)?;
    enrol::check_not_enrolled(&config)?;
    choose_prefix(&mut config, &options.cluster);
    let settings = match &options.settings_file {
        Some(path) => settings_from(path)?,
        None => Settings::default(),
    };
    let Some(installation) = preflight(&config, false)? else {
        return Err(Trouble::wrong_role("a standby cluster begins on a node with a database", "add [postgresql]"));
    };
    if !installation.has_ssl || !settings.tls {
        return Err(Trouble::follow_refused(
            "a standby cluster needs TLS between the servers, and here it is off or not built in",
            "leave `tls` at true, and install a PostgreSQL built with TLS",
        ));
    }
    postgres::check_values(&installation, &settings.postgresql.parameters)?;
    let init = enrol::InitOptions { cluster: options.cluster, settings, priority: PRIORITY_DEFAULT, adopt: None };
    let (enrolled, follow) = enrol::follow(&config, &token, init, installation.major).await?;
    let text = format!(
        "cluster {} made, which follows cluster {}; `stemma run` copies the database ({} is its first node)",
        enrolled.cluster, follow.cluster, config.name
    );
    Ok((text, follow))
}

/// The other side of a session that `init --adopt` has with a running server.
pub async fn adopt_session() -> Result<(), Trouble> {
    adopt::answer().await
}

/// Several clusters may share one etcd: each has keys of its own.
fn choose_prefix(config: &mut NodeConfig, cluster: &ClusterName) {
    if let keeper::ConsensusChoice::Etcd { prefix, .. } = &mut config.consensus
        && prefix.is_empty()
    {
        *prefix = format!("/stemma/{cluster}");
    }
}

/// Brings this node into the cluster that made `token`. Returns the sentence for people.
pub async fn join(node_file: NodeFile, token: String, options: JoinOptions) -> Result<String, Trouble> {
    install_tls_provider();
    let token: JoinToken = token.parse()?;
    let mut config = config(node_file)?;
    if let Some(site) = options.site {
        config.site = site;
    }
    let installation = preflight(&config, false)?;
    let enrolled = enrol::join(
        &config,
        &token,
        enrol::JoinOptions {
            kind: options.kind,
            apply_delay_ms: options.apply_delay_ms,
            from: options.from,
            priority: options.priority,
        },
        installation.map(|installation| installation.major),
    )
    .await?;
    let what = if config.postgresql.is_some() { "clones the database and follows" } else { "votes" };
    Ok(format!("{} is node {} of cluster {}; `stemma run` {what}", config.name, enrolled.node, enrolled.cluster))
}

/// What can be known to go wrong before anything is written: programs, directory, ports.
fn preflight(config: &NodeConfig, with_data: bool) -> Result<Option<postgres::Installation>, Trouble> {
    free_port("keeper", &config.keeper.listen)?;
    free_port("api", &config.api.listen)?;
    let Some(node) = &config.postgresql else { return Ok(None) };
    let installation = postgres::find_installation(node.bin_dir.as_deref())?;
    let user = postgres::server_user(node.run_as.as_deref())?;
    if with_data && node.data_dir.exists() {
        adopt::check_owner(&node.data_dir, user.as_ref())?;
    }
    match postgres::check_data_dir(&node.data_dir, user.as_ref())? {
        DataDir::Missing | DataDir::Empty if with_data => Err(Trouble::directory_unfit(
            format!("{} holds no database to adopt", node.data_dir.display()),
            "set [postgresql] data_dir to the directory of the server that is to be adopted",
        )),
        DataDir::Cluster(found) if with_data && found.major != installation.major => Err(Trouble::version_mismatch(
            format!("the data is of PostgreSQL {}, the programs are {}", found.major, installation.major),
            "set [postgresql] bin_dir to the programs of that version",
        )),
        DataDir::Cluster(found) if !with_data => Err(Trouble::directory_unfit(
            format!("{} is not empty: it holds database {}", node.data_dir.display(), found.system_id),
            "choose an empty directory; to begin a cluster with this database use `stemma init --adopt`",
        )),
        DataDir::HalfMade { what } => Err(Trouble::directory_unfit(
            format!("{} is not empty: it holds what an interrupted {what} left", node.data_dir.display()),
            "empty it, or choose another directory",
        )),
        DataDir::Missing | DataDir::Empty => {
            free_port("postgresql", &format!("{}:{}", listen_host(&node.listen), node.port))?;
            Ok(Some(installation))
        }
        DataDir::Cluster(_) => Ok(Some(installation)),
    }
}

/// The first address of `listen_addresses`, as something to bind.
fn listen_host(listen: &str) -> String {
    match listen.split(',').map(str::trim).find(|host| !host.is_empty()) {
        None | Some("*") => "0.0.0.0".to_owned(),
        Some(host) => host.to_owned(),
    }
}

fn free_port(section: &str, address: &str) -> Result<(), Trouble> {
    match std::net::TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) => Err(Trouble::port_taken(
            format!("[{section}] cannot listen on {address}"),
            "choose another port in the node file, or stop what uses it (`ss -ltnp` shows it)",
        )
        .because(error)),
    }
}

fn settings_from(path: &std::path::Path) -> Result<Settings, Trouble> {
    let text = node_file::read_text(path)?;
    let refuse = |name: &str| postgres::validate_parameter(name, "1").err().map(|trouble| trouble.reason);
    cluster::settings::parse_toml_with(&text, &refuse).map_err(|findings| {
        let first = findings.into_iter().next();
        match first {
            Some(finding) => Trouble::settings_refused(
                format!("{}:{}: {}", path.display(), finding.line, finding.reason),
                finding.hint,
            ),
            None => Trouble::settings_refused(format!("{} was refused", path.display()), "stemma config check FILE"),
        }
    })
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("STEMMA_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,openraft=off"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // Fails only if a log was set up already, which is as good.
    let _ = log.try_init();
}

/// What every long-running command begins with.
pub fn begin() {
    start_log();
    install_tls_provider();
}

/// Runs the keeper of the node that the file at `path` describes until it is told to stop.
pub async fn run(path: &std::path::Path) -> Result<(), Trouble> {
    start_log();
    install_tls_provider();
    let mut terminate = on(SignalKind::terminate())?;
    let mut interrupt = on(SignalKind::interrupt())?;
    let mut hangup = on(SignalKind::hangup())?;
    let mut file = node_file::load(path)?;
    let api = file.api.listen;
    let keeper = Keeper::start(config(file.clone())?).await?;
    let stopping = keeper.stopping();
    let backend = Arc::new(KeeperBackend { keeper: keeper.clone(), meter: OnceLock::new() });
    let served = match console::serve(api, backend.clone(), stopping.clone()).await {
        Ok(served) => served,
        Err(trouble) => {
            keeper.stop().await;
            return Err(trouble);
        }
    };
    tracing::info!(node = %keeper.name(), id = %keeper.id(), api = %api, "keeper runs");
    wait_for_first_status(&keeper).await;
    let front = match &file.router {
        Some(section) => match front::beside(&keeper, section).await {
            Ok(router) => {
                let _ = backend.meter.set(router.meter());
                Some(router)
            }
            Err(trouble) => {
                // The database must not be unkept for the router's sake; and whoever wrote [router] wants to hear of it.
                keeper.stop().await;
                return Err(trouble);
            }
        },
        None => None,
    };
    notify(&[NotifyState::Ready]);
    let mut watchdog = tokio::time::interval(WATCHDOG_INTERVAL);
    let mut reloads = front.as_ref().map(router::Router::reloads);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                reload(&keeper, path, &mut file);
                reload_router(front.as_ref(), file.router.as_ref(), &file.site);
            }
            () = wanted(&mut reloads) => {
                reload(&keeper, path, &mut file);
                reload_router(front.as_ref(), file.router.as_ref(), &file.site);
            }
            _ = watchdog.tick() => {
                if keeper.since_turn() < STUCK_AFTER {
                    notify(&[NotifyState::Watchdog]);
                }
            }
        }
    }
    notify(&[NotifyState::Stopping]);
    if file.stop_database {
        tracing::info!("keeper stops, and the database server with it");
    } else {
        tracing::info!("keeper stops; the database server goes on and is adopted by the next keeper");
    }
    drop(front);
    keeper.stop().await;
    served.abort();
    if file.stop_database { stop_database(keeper.config()).await } else { Ok(()) }
}

/// Ends when the router's console is told to reload.
async fn wanted(reloads: &mut Option<tokio::sync::watch::Receiver<u64>>) {
    let asked = match reloads {
        Some(reloads) => reloads.changed().await.is_ok(),
        None => false,
    };
    if !asked {
        std::future::pending().await
    }
}

fn reload_router(front: Option<&router::Router>, section: Option<&Section>, site: &model::Site) {
    if let (Some(router), Some(section)) = (front, section) {
        match section.config(Some(site)) {
            Ok(config) => router.reload(config),
            Err(trouble) => tracing::error!(%trouble, "the router's configuration stays as it was"),
        }
    }
}

/// Stops the server in the orderly way: clients are disconnected, and the replicas get the last of the log.
async fn stop_database(config: &NodeConfig) -> Result<(), Trouble> {
    let Some(spec) = keeper::server_spec(config, "")? else { return Ok(()) };
    match postgres::Server::adopt(&spec).await? {
        Some(server) => server.stop(postgres::StopMode::Fast, SERVER_STOP_DEADLINE).await,
        None => Ok(()),
    }
}

/// Reads certificates and the node file again. What is wrong is said and changes nothing.
fn reload(keeper: &Keeper, path: &std::path::Path, file: &mut NodeFile) {
    notify(&[NotifyState::Reloading]);
    match keeper.reload() {
        Ok(()) => tracing::info!("certificates read again"),
        Err(trouble) => tracing::error!(%trouble, hint = trouble.hint, "reload failed; what was in force stays"),
    }
    match node_file::load(path) {
        Ok(new) => {
            file.stop_database = new.stop_database;
            let waiting = file.differences(&new);
            if !waiting.is_empty() {
                tracing::warn!(
                    keys = waiting.join(", "),
                    "changed in the node file, and in force only after a restart of the keeper"
                );
            }
        }
        Err(trouble) => tracing::error!(%trouble, "node file not read again; what was in force stays"),
    }
    notify(&[NotifyState::Ready]);
}

async fn wait_for_first_status(keeper: &Keeper) {
    let mut judgements = keeper.judgements();
    let known = judgements.wait_for(|count| *count > 0);
    if tokio::time::timeout(FIRST_STATUS_DEADLINE, known).await.is_err() {
        tracing::warn!("no majority answers yet; the keeper goes on trying");
    }
}

fn notify(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

fn on(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Trouble> {
    signal(kind).map_err(|error| Trouble::os("a signal handler could not be set", "").because(error))
}

fn install_tls_provider() {
    // Fails only if one is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// The node file in the keeper's words.
fn config(file: NodeFile) -> Result<NodeConfig, Trouble> {
    Ok(NodeConfig {
        name: file.name,
        site: file.site,
        machine: crate::machine::name(),
        state_dir: file.state_dir,
        stop_database: file.stop_database,
        keeper: Listen { listen: file.keeper.listen.to_string(), advertise: file.keeper.advertise },
        api: Listen { listen: file.api.listen.to_string(), advertise: file.api.advertise },
        postgresql: file.postgresql.map(|node| PostgresqlNode {
            data_dir: node.data_dir,
            listen: node.listen,
            port: node.port,
            advertise: node.advertise,
            bin_dir: node.bin_dir,
            run_as: node.run_as,
            socket_dirs: node.socket_dirs,
            tablespace_root: node.tablespace_root,
        }),
        hooks: file.hooks,
        dns: file.dns.map(dns_place).transpose()?,
        floating: file.floating_ip.map(|(address, interface)| floating(&address, &interface)).transpose()?,
        consensus: match file.consensus {
            node_file::ConsensusChoice::Embedded => keeper::ConsensusChoice::Embedded,
            node_file::ConsensusChoice::Etcd { endpoints, prefix, user, password_file, ca_file } => {
                keeper::ConsensusChoice::Etcd {
                    endpoints,
                    prefix: prefix.unwrap_or_default(),
                    user,
                    password: password_file.as_deref().map(password_from).transpose()?,
                    ca: ca_file,
                }
            }
        },
    })
}

/// How long one question to a DNS server may take.
const DNS_TIMEOUT: Duration = Duration::from_secs(5);

/// `[floating_ip]`.
pub fn floating(address: &str, interface: &str) -> Result<adapters::address::Floating, Trouble> {
    adapters::address::Floating::parse(address, interface)
        .map_err(|why| Trouble::config_bad_value(why.to_string(), "correct [floating_ip] in the node file"))
}

fn dns_place(dns: node_file::tellers::Dns) -> Result<adapters::dns::Place, Trouble> {
    let refused =
        |why: adapters::dns::Failed| Trouble::config_bad_value(why.to_string(), "correct [dns] in the node file");
    let key = match &dns.key {
        Some((name, algorithm, file)) => {
            Some(adapters::dns::Key::new(name, algorithm, &password_from(file)?).map_err(refused)?)
        }
        None => None,
    };
    let place = adapters::dns::Place {
        server: dns.server,
        zone: dns.zone,
        name: dns.name,
        replicas_name: dns.replicas_name,
        ttl_seconds: u32::try_from(dns.ttl.0 / 1_000).unwrap_or(u32::MAX),
        key,
        timeout: DNS_TIMEOUT,
    };
    adapters::dns::check(&place).map_err(refused)?;
    Ok(place)
}

/// The first line of a file that nobody else may read.
fn password_from(path: &std::path::Path) -> Result<String, Trouble> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).map(|found| found.permissions().mode() & 0o777);
    if let Ok(mode) = mode
        && mode & 0o077 != 0
    {
        return Err(Trouble::secret_exposed(
            format!("{} holds a secret and has mode {mode:04o}", path.display()),
            format!("chmod 0600 {}", path.display()),
        ));
    }
    let text = node_file::read_text(path)?;
    match text.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) => Ok(line.to_owned()),
        None => {
            Err(Trouble::config_bad_value(format!("{} is empty", path.display()), "write the secret in its first line"))
        }
    }
}
