//! How a node becomes part of a cluster: `init` makes a new one, `join` enters one with a token.
//!
//! Both only write files; the keeper that is started afterwards does the work. The identity directory is written last
//! and whole, so a node killed in the middle is simply not enrolled yet and the command can be given again. `join`
//! keeps its key until it has an answer: the same key asking again with the same token gets the same answer.

use crate::clock;
use crate::files;
use crate::identity::{ConsensusChoice, IdentityContent, IdentityFiles, NodeIdentity};
use crate::mesh;
use crate::node_config::NodeConfig;
use crate::pki;
use crate::token::{FollowToken, JoinToken};
use cluster::admission::{self, JoinAnswer, JoinRequest};
use cluster::follow::{FollowAnswer, FollowRequest};
use model::follow::{Follow, UpstreamSecrets};
use model::state::{Member, Secrets, Stage};
use model::units::Millis;
use model::{ClusterId, ClusterName, ClusterState, NodeId, NodeName, ReplicaKind, Role, Settings, Trouble};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// Life of node certificates; renewed by the keeper when two thirds are over.
pub const CERTIFICATE_LIFE: Millis = Millis::from_secs(90 * 86_400);
/// How long a join may take to be answered.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);

/// What `init` is to make.
pub struct InitOptions {
    /// Name of the cluster.
    pub cluster: ClusterName,
    /// Its first settings.
    pub settings: Settings,
    /// Failover preference of the first node.
    pub priority: u32,
    /// An existing database to take over, prepared by the caller (roles made); its identity is read at the first run.
    pub adopt: Option<Adopted>,
}

/// A database that is taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// Passwords already set for our roles in the running server.
    pub passwords: Passwords,
}

/// The passwords of our roles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passwords {
    /// Of `stemma`.
    pub superuser: String,
    /// Of `stemma_replication`.
    pub replication: String,
    /// Of `postgres`; empty when an adopted database has that role already, which then keeps its own.
    pub postgres: String,
}

/// What `join` is to ask for.
pub struct JoinOptions {
    /// How the replica is used.
    pub kind: ReplicaKind,
    /// For `delayed`.
    pub apply_delay_ms: u64,
    /// Node to stream from, if not the primary.
    pub from: Option<NodeName>,
    /// Failover preference.
    pub priority: u32,
}

/// The first content of consensus, kept in a file between `init` and the first `run`.
#[derive(Serialize, Deserialize)]
pub struct Bootstrap {
    /// Content of the document `cluster`.
    pub state: ClusterState,
    /// Content of the document `secrets`.
    pub secrets: Secrets,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolled {
    /// Name of the cluster.
    pub cluster: ClusterName,
    /// Its id.
    pub cluster_id: ClusterId,
    /// Number of the node.
    pub node: NodeId,
}

/// File of the bootstrap documents.
pub fn bootstrap_file(config: &NodeConfig) -> PathBuf {
    config.state_dir.join("bootstrap.json")
}

fn join_key_file(config: &NodeConfig) -> PathBuf {
    config.state_dir.join("join.key")
}

/// Random bytes from the operating system's generator.
pub fn random<const N: usize>() -> Result<[u8; N], Trouble> {
    let mut bytes = [0u8; N];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Trouble::os("the operating system gave no random numbers", "check /dev/urandom"))?;
    Ok(bytes)
}

/// A password of 32 characters that needs no quoting anywhere.
pub fn random_password() -> Result<String, Trouble> {
    Ok(random::<16>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// New passwords for our roles.
pub fn new_passwords() -> Result<Passwords, Trouble> {
    Ok(Passwords { superuser: random_password()?, replication: random_password()?, postgres: random_password()? })
}

/// Refuses a node that is part of a cluster already, before anything is done for another one.
pub fn check_not_enrolled(config: &NodeConfig) -> Result<(), Trouble> {
    refuse_if_enrolled(config).map(|_| ())
}

fn refuse_if_enrolled(config: &NodeConfig) -> Result<IdentityFiles, Trouble> {
    files::private_directory(&config.state_dir)?;
    let identity = IdentityFiles { directory: config.identity_dir() };
    if identity.exist() {
        let whose = identity.load().map(|content| content.identity).map_or_else(
            |_| "a cluster".to_owned(),
            |node| format!("cluster {} as node {} (id {})", node.cluster, node.name, node.node),
        );
        return Err(Trouble::already_enrolled(
            format!("{} is already part of {whose}", config.state_dir.display()),
            "start it with `stemma run`; to use the node elsewhere remove it from its cluster and empty its state directory",
        ));
    }
    Ok(identity)
}

fn member(config: &NodeConfig, id: NodeId, key_fingerprint: String, priority: u32) -> Member {
    let (host, port) = config
        .postgresql
        .as_ref()
        .map_or((String::new(), 0), |postgresql| (postgresql.advertise.clone(), postgresql.port));
    Member {
        id,
        name: config.name.clone(),
        witness: config.postgresql.is_none(),
        kind: ReplicaKind::Hot,
        apply_delay_ms: 0,
        upstream: None,
        site: config.site.clone(),
        priority,
        peer_address: config.keeper.advertise.clone(),
        api_address: config.api.advertise.clone(),
        postgres_host: host,
        postgres_port: port,
        key_fingerprint,
        next_key_fingerprint: None,
        certificate_order: 0,
        stage: Stage::Joining,
        joined_at: clock::wall(),
    }
}

fn hosts(config: &NodeConfig) -> Vec<String> {
    let host_of =
        |address: &str| address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']).to_owned();
    let mut hosts = vec![host_of(&config.keeper.advertise), host_of(&config.api.advertise)];
    hosts.extend(config.postgresql.iter().map(|postgresql| postgresql.advertise.clone()));
    hosts.sort();
    hosts.dedup();
    hosts
}

/// Makes a new cluster with this node as its first. Writes files only; `stemma run` then builds the database.
pub fn init(config: &NodeConfig, options: InitOptions) -> Result<Enrolled, Trouble> {
    make(config, options, new_cluster_id()?, None)
}

fn new_cluster_id() -> Result<ClusterId, Trouble> {
    Ok(ClusterId(uuid::Builder::from_random_bytes(random::<16>()?).into_uuid().to_string()))
}

/// What is kept between asking to follow and having an answer.
#[derive(Serialize, Deserialize)]
struct Asking {
    cluster_id: ClusterId,
    key_pem: String,
    csr_pem: String,
}

/// Makes a new cluster, with this node as its first, that follows the one that made the token. Writes files only;
/// `stemma run` then copies the database.
pub async fn follow(
    config: &NodeConfig,
    token: &FollowToken,
    options: InitOptions,
    server_major: u32,
) -> Result<(Enrolled, Follow), Trouble> {
    refuse_if_enrolled(config)?;
    let kept = config.state_dir.join("follow.key");
    let asking = match files::read_private(&kept)? {
        Some(bytes) => serde_json::from_slice::<Asking>(&bytes).map_err(|error| {
            Trouble::internal("the kept key is unreadable", "remove follow.key and try again").because(error)
        })?,
        None => {
            let (key_pem, csr_pem) = pki::make_key_and_csr(&config.name);
            let asking = Asking { cluster_id: new_cluster_id()?, key_pem, csr_pem };
            let body = serde_json::to_vec(&asking)
                .map_err(|error| Trouble::internal("the key cannot be written", "").because(error))?;
            files::write_private(&kept, &body)?;
            asking
        }
    };
    let request = FollowRequest {
        token_id: token.0.id.clone(),
        token_secret: token.0.secret.clone(),
        name: options.cluster.clone(),
        cluster_id: asking.cluster_id.clone(),
        key_fingerprint: pki::key_fingerprint_of_csr(&asking.csr_pem)?,
        csr_pem: asking.csr_pem,
        server_major,
    };
    let body = serde_json::to_vec(&request)
        .map_err(|error| Trouble::internal("the request to follow cannot be written", "").because(error))?;
    let kind = mesh::RequestKind::Follow;
    let answer = mesh::call_as_stranger(&token.0.addresses, &token.0.ca_sha256, kind, body, JOIN_TIMEOUT).await?;
    let answer: FollowAnswer = serde_json::from_slice(&answer).map_err(|error| {
        Trouble::internal("the answer to follow was not understood", "are the versions alike?").because(error)
    })?;
    let follow = answer.follow.clone();
    let upstream = UpstreamSecrets {
        certificate_pem: answer.certificate_pem.clone(),
        key_pem: asking.key_pem,
        ca_pem: answer.ca_pem.clone(),
    };
    let enrolled = make(config, options, asking.cluster_id, Some((answer, upstream)))?;
    files::remove_file(&kept)?;
    Ok((enrolled, follow))
}

fn make(
    config: &NodeConfig,
    options: InitOptions,
    cluster_id: ClusterId,
    standby: Option<(FollowAnswer, UpstreamSecrets)>,
) -> Result<Enrolled, Trouble> {
    let identity = refuse_if_enrolled(config)?;
    failpoint::pass("init.begun");
    if config.postgresql.is_none() {
        return Err(Trouble::wrong_role(
            "the first node of a cluster needs a database",
            "add a [postgresql] section to the node file, or `stemma join` an existing cluster as a witness",
        ));
    }
    let now = clock::wall();
    let seed = random::<32>()?;
    let mut passwords = match options.adopt {
        Some(adopted) => adopted.passwords,
        None => new_passwords()?,
    };
    if standby.is_some() {
        // The owner of the database that is copied has this one.
        passwords.postgres = String::new();
    }
    let (ca_certificate, ca_key) = pki::make_ca(&options.cluster, &cluster_id);
    let secrets = Secrets {
        ca_certificates: vec![ca_certificate],
        ca_key,
        superuser_password: passwords.superuser,
        replication_password: passwords.replication,
        postgres_password: passwords.postgres,
        name_salt: seed.iter().map(|byte| format!("{byte:02x}")).collect(),
        upstream: standby.as_ref().map(|(_, upstream)| upstream.clone()),
    };
    let id = NodeId(1);
    let (key_pem, csr_pem) = pki::make_key_and_csr(&config.name);
    let fingerprint = pki::key_fingerprint_of_csr(&csr_pem)?;
    let first = member(config, id, fingerprint, options.priority);
    let certificate =
        pki::sign(&secrets, &cluster_id, &csr_pem, id, &config.name, &hosts(config), CERTIFICATE_LIFE, now)?;
    let mut state = admission::new_cluster(options.cluster.clone(), cluster_id.clone(), first, options.settings, now);
    if let Some((answer, _)) = standby {
        cluster::follow::begin(&mut state, answer.follow, answer.system_id, answer.major, now);
    }
    let bootstrap = serde_json::to_vec(&Bootstrap { state, secrets: secrets.clone() })
        .map_err(|error| Trouble::internal("bootstrap cannot be written", "").because(error))?;
    files::write_private(&bootstrap_file(config), &bootstrap)?;
    failpoint::pass("init.bootstrap-written");
    write_credentials(config, &secrets)?;
    failpoint::pass("init.credentials-written");
    let node = NodeIdentity {
        cluster: options.cluster.clone(),
        cluster_id: cluster_id.clone(),
        node: id,
        name: config.name.clone(),
        seeds: vec![(id, config.keeper.advertise.clone())],
        consensus: config.consensus.clone(),
    };
    identity.write(&IdentityContent {
        identity: node,
        key_pem,
        certificate_pem: certificate,
        ca_pem: secrets.ca_certificates,
    })?;
    failpoint::pass("init.ended");
    Ok(Enrolled { cluster: options.cluster, cluster_id, node: id })
}

/// Writes the passwords for the owner of the cluster to the node's `credentials.json`.
pub fn write_credentials(config: &NodeConfig, secrets: &Secrets) -> Result<(), Trouble> {
    if secrets.postgres_password.is_empty() {
        // An adopted database: its owner has the password of `postgres` and we do not.
        return files::remove_file(&config.credentials_file());
    }
    let body = serde_json::json!({ "user": "postgres", "postgres": secrets.postgres_password });
    files::write_private(&config.credentials_file(), body.to_string().as_bytes())
}

/// Writes `credentials.json` from the secrets of the cluster, where they are known.
pub(crate) fn write_credentials_of(config: &NodeConfig, store: &crate::store::Store) -> Result<(), Trouble> {
    match store.secrets() {
        Some(secrets) => write_credentials(config, &secrets.value),
        None => Ok(()),
    }
}

/// Enters a cluster with a token. Writes files only; `stemma run` then clones and follows.
pub async fn join(
    config: &NodeConfig,
    token: &JoinToken,
    options: JoinOptions,
    server_major: Option<u32>,
) -> Result<Enrolled, Trouble> {
    let identity = refuse_if_enrolled(config)?;
    let witness = config.postgresql.is_none();
    if witness != (token.role == Role::Witness) {
        let (is, wants) =
            if witness { ("no [postgresql] section", "a replica") } else { ("a [postgresql] section", "a witness") };
        return Err(Trouble::token_refused(
            format!("the token admits {wants}, but the node file has {is}"),
            format!("make a fitting token: stemma token create --role {}", if witness { "witness" } else { "replica" }),
        ));
    }
    let (key_pem, csr_pem) = match files::read_private(&join_key_file(config))? {
        Some(kept) => serde_json::from_slice::<(String, String)>(&kept).map_err(|error| {
            Trouble::internal("the kept join key is unreadable", "remove join.key and try again").because(error)
        })?,
        None => {
            let made = pki::make_key_and_csr(&config.name);
            let body = serde_json::to_vec(&made)
                .map_err(|error| Trouble::internal("join key cannot be written", "").because(error))?;
            files::write_private(&join_key_file(config), &body)?;
            failpoint::pass("join.key-kept");
            made
        }
    };
    let new = member(config, NodeId(0), pki::key_fingerprint_of_csr(&csr_pem)?, options.priority);
    let request = JoinRequest {
        token_id: token.id.clone(),
        token_secret: token.secret.clone(),
        name: new.name,
        role: if witness { Role::Witness } else { Role::Replica },
        kind: options.kind,
        apply_delay_ms: options.apply_delay_ms,
        upstream: options.from,
        site: new.site,
        priority: options.priority,
        peer_address: new.peer_address,
        api_address: new.api_address,
        postgres_host: new.postgres_host,
        postgres_port: new.postgres_port,
        csr_pem,
        key_fingerprint: new.key_fingerprint,
        server_major,
        wall: clock::wall(),
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let body = serde_json::to_vec(&request)
        .map_err(|error| Trouble::internal("join request cannot be written", "").because(error))?;
    let kind = mesh::RequestKind::Join;
    let answer = mesh::call_as_stranger(&token.addresses, &token.ca_sha256, kind, body, JOIN_TIMEOUT).await?;
    failpoint::pass("join.answered");
    let answer: JoinAnswer = serde_json::from_slice(&answer).map_err(|error| {
        Trouble::internal("the answer to the join was not understood", "are the versions alike?").because(error)
    })?;
    let consensus: ConsensusChoice = serde_json::from_value(answer.consensus).map_err(|error| {
        Trouble::internal("the cluster's consensus was not understood", "are the versions alike?").because(error)
    })?;
    let node = NodeIdentity {
        cluster: answer.cluster.clone(),
        cluster_id: answer.cluster_id.clone(),
        node: answer.node,
        name: config.name.clone(),
        seeds: answer.peers,
        // A path to a CA, for one, is this node's own.
        consensus: consensus.with_ways_of(&config.consensus)?,
    };
    identity.write(&IdentityContent {
        identity: node,
        key_pem,
        certificate_pem: answer.certificate_pem,
        ca_pem: answer.ca_pem,
    })?;
    failpoint::pass("join.identity-written");
    files::remove_file(&join_key_file(config))?;
    Ok(Enrolled { cluster: answer.cluster, cluster_id: answer.cluster_id, node: answer.node })
}

/// Signs a certificate for a member, for its own key or a new one.
pub fn certify(secrets: &Secrets, cluster_id: &ClusterId, member: &Member, csr_pem: &str) -> Result<String, Trouble> {
    let host_of =
        |address: &str| address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']).to_owned();
    let mut hosts = vec![host_of(&member.peer_address), host_of(&member.api_address)];
    if !member.postgres_host.is_empty() {
        hosts.push(member.postgres_host.clone());
    }
    hosts.sort();
    hosts.dedup();
    pki::sign(secrets, cluster_id, csr_pem, member.id, &member.name, &hosts, CERTIFICATE_LIFE, clock::wall())
}
