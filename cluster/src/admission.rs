//! How nodes come in, live and go: admission by token, the stages of a member, removal. Pure; each keeper writes the
//! returned state by compare-and-set.

use crate::history::{self, STEMMA};
use crate::tokens::{self, Admission};
use model::limits::{CLOCK_OFFSET_MAX, MEMBERS_MAX, POSTGRES_MAJOR_MIN};
use model::settings::CommitMode;
use model::state::{Identity, LineageEntry, Role, Rule, STATE_FORMAT, SettingsChange, Stage, TokenUse};
use model::{
    ClusterId, ClusterName, ClusterState, Epoch, Member, NodeId, NodeName, ReplicaKind, Settings, Site, SystemId,
    Trouble, WallTime,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a node that wants to join says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Public id of the token.
    pub token_id: String,
    /// Its secret.
    pub token_secret: String,
    /// The name the node wants.
    pub name: NodeName,
    /// `replica` or `witness`.
    pub role: Role,
    /// How the replica is used.
    pub kind: ReplicaKind,
    /// For `delayed`.
    pub apply_delay_ms: u64,
    /// Node to stream from, if not the primary.
    pub upstream: Option<NodeName>,
    /// Where it is.
    pub site: Site,
    /// Failover preference.
    pub priority: u32,
    /// `host:port` for other keepers.
    pub peer_address: String,
    /// `host:port` of its API.
    pub api_address: String,
    /// Host of its database.
    pub postgres_host: String,
    /// Port of its database; 0 for a witness.
    pub postgres_port: u16,
    /// Request for a certificate, PEM.
    pub csr_pem: String,
    /// SHA-256 of the public key in it, hex. The receiver checks it against `csr_pem`.
    pub key_fingerprint: String,
    /// Major version of its server programs; absent for a witness.
    pub server_major: Option<u32>,
    /// Its civil time.
    pub wall: WallTime,
    /// Version of the program it runs.
    pub program_version: String,
}

/// What an admitted node needs to know.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// Its number.
    pub node: NodeId,
    /// The cluster.
    pub cluster: ClusterName,
    /// The cluster's id.
    pub cluster_id: ClusterId,
    /// Its certificate.
    pub certificate_pem: String,
    /// The CAs to trust.
    pub ca_pem: Vec<String>,
    /// The other keepers: id and `host:port`.
    pub peers: Vec<(NodeId, String)>,
    /// How consensus is reached; the keeper's own format.
    pub consensus: serde_json::Value,
}

/// The state of a cluster that is just being made: one node, the primary, waited for by nobody.
pub fn new_cluster(name: ClusterName, id: ClusterId, first: Member, settings: Settings, now: WallTime) -> ClusterState {
    assert!(!first.witness, "the first node holds the database");
    let change = SettingsChange {
        version: 1,
        at: now,
        actor: STEMMA.to_owned(),
        reason: "the cluster was made".to_owned(),
        settings: settings.clone(),
    };
    let rule = Rule {
        epoch: Epoch(1),
        primary: first.id,
        voters: BTreeSet::new(),
        acks: 0,
        recruit_quorum: 0,
        mode: CommitMode::Async,
        version: 1,
    };
    let first_name = first.name.clone();
    let mut state = ClusterState {
        format: STATE_FORMAT,
        identity: Identity { name, id, system_id: None, major: None, created_at: now },
        next_node_id: first.id.0 + 1,
        next_order: 1,
        members: BTreeMap::from([(first.id, first)]),
        rule,
        lineage: Vec::new(),
        failover: None,
        failovers: Vec::new(),
        switchovers: Vec::new(),
        paused: None,
        settings,
        settings_version: 1,
        settings_history: vec![change],
        follow: None,
        followers: BTreeMap::new(),
        tokens: BTreeMap::new(),
        operations: Vec::new(),
        history: Vec::new(),
    };
    let text = format!("cluster {} was made with {first_name} as its primary", state.identity.name);
    history::record(&mut state, now, "cluster-made", Some(&first_name), text, STEMMA);
    state
}

/// Admits a node as a joining member. The same key that asks again gets the same answer, so a node that was killed in
/// mid-join can simply go on.
pub fn admit(state: &ClusterState, request: &JoinRequest, now: WallTime) -> Result<(ClusterState, NodeId), Trouble> {
    let key = &request.key_fingerprint;
    match tokens::check(state, &request.token_id, &request.token_secret, request.role, key, now)? {
        Admission::Again(node) => return Ok((state.clone(), node)),
        Admission::New => {}
    }
    if let Some(node) = named_already(state, request)? {
        // A new token, but the same node: the token is spent on it.
        let mut next = state.clone();
        spend(&mut next, request, node, now);
        return Ok((next, node));
    }
    check_clock(request, now)?;
    check_database(state, request)?;
    check_addresses(state, request)?;
    if state.members.len() >= MEMBERS_MAX {
        return Err(Trouble::limit_reached(
            format!("the cluster has {MEMBERS_MAX} members already"),
            "remove one with `stemma node remove <name>`",
        ));
    }
    let upstream = check_upstream(state, request)?;

    let mut next = state.clone();
    let node = NodeId(next.next_node_id);
    assert!(!next.members.contains_key(&node), "a node id is never given twice");
    next.next_node_id += 1;
    next.members.insert(node, new_member(request, node, upstream, now));
    spend(&mut next, request, node, now);
    let text = format!("{} was admitted as a {} at site {}", request.name, request.role, request.site);
    let actor = format!("token {}", request.token_id);
    history::record(&mut next, now, "node-admitted", Some(&request.name), text, &actor);
    Ok((next, node))
}

fn new_member(request: &JoinRequest, id: NodeId, upstream: Option<NodeId>, now: WallTime) -> Member {
    Member {
        id,
        name: request.name.clone(),
        witness: request.role == Role::Witness,
        kind: request.kind,
        apply_delay_ms: request.apply_delay_ms,
        upstream,
        site: request.site.clone(),
        priority: request.priority,
        peer_address: request.peer_address.clone(),
        api_address: request.api_address.clone(),
        postgres_host: request.postgres_host.clone(),
        postgres_port: request.postgres_port,
        key_fingerprint: request.key_fingerprint.clone(),
        next_key_fingerprint: None,
        certificate_order: 0,
        stage: Stage::Joining,
        joined_at: now,
    }
}

fn spend(state: &mut ClusterState, request: &JoinRequest, node: NodeId, now: WallTime) {
    if let Some(token) = state.tokens.get_mut(&request.token_id) {
        token.used_by = Some(TokenUse { key_fingerprint: request.key_fingerprint.clone(), node, at: now });
    }
}

/// The member that this node is already, by name and key; a refusal when only one of them fits.
fn named_already(state: &ClusterState, request: &JoinRequest) -> Result<Option<NodeId>, Trouble> {
    let same_key = state.members.values().find(|member| member.key_fingerprint == request.key_fingerprint);
    if let Some(member) = same_key.filter(|member| member.name != request.name) {
        return Err(Trouble::already_enrolled(
            format!("the key of this node is that of member `{}`", member.name),
            "use an empty state directory for another node",
        ));
    }
    let Some(member) = state.by_name(&request.name) else { return Ok(None) };
    let leaving = member.stage == Stage::Leaving;
    if same_key.is_some() && !leaving {
        return Ok(Some(member.id));
    }
    let (reason, hint) = if leaving {
        (
            format!("node `{}` is still being removed", request.name),
            "wait until `stemma status` no longer shows it, or choose another name".to_owned(),
        )
    } else {
        (
            format!("a node `{}` exists at {}", request.name, member.peer_address),
            format!("choose another name, or take the old one out with `stemma node remove {}`", request.name),
        )
    };
    Err(Trouble::name_taken(reason, hint))
}

fn check_clock(request: &JoinRequest, now: WallTime) -> Result<(), Trouble> {
    let offset = request.wall.millis_since(now);
    if offset.unsigned_abs() <= CLOCK_OFFSET_MAX.0 {
        return Ok(());
    }
    let way = if offset > 0 { "ahead of" } else { "behind" };
    Err(Trouble::clock_skew(
        format!("the clock of `{}` is {} s {way} the cluster's", request.name, offset.unsigned_abs() / 1000),
        "set the clock (for example `timedatectl set-ntp true`) and join again",
    ))
}

/// A replica has a database of the right version, a witness has none.
fn check_database(state: &ClusterState, request: &JoinRequest) -> Result<(), Trouble> {
    let has_address = request.postgres_port != 0;
    match (request.role, request.server_major) {
        (Role::Witness, None) if !has_address => Ok(()),
        (Role::Witness, Some(_) | None) => Err(Trouble::wrong_role(
            format!("`{}` asks to be a witness, yet its node file describes a database", request.name),
            "take the section [postgresql] out of the node file, or use a token for a replica",
        )),
        (Role::Replica, Some(major)) if has_address => check_major(state, request, major),
        (Role::Replica, Some(_) | None) => Err(Trouble::wrong_role(
            format!("`{}` asks to be a replica, yet has no database server", request.name),
            "add the section [postgresql] to the node file, or use a token for a witness",
        )),
        (Role::Primary, Some(_) | None) => Err(Trouble::wrong_role(
            "a node cannot join as primary",
            "join as replica; which node is primary is decided afterwards",
        )),
    }
}

fn check_major(state: &ClusterState, request: &JoinRequest, major: u32) -> Result<(), Trouble> {
    if major < POSTGRES_MAJOR_MIN {
        return Err(Trouble::server_too_old(
            format!("`{}` has PostgreSQL {major}", request.name),
            format!("install PostgreSQL {POSTGRES_MAJOR_MIN} or newer"),
        ));
    }
    match state.identity.major {
        Some(ours) if ours != major => Err(Trouble::version_mismatch(
            format!("`{}` has PostgreSQL {major}, the cluster runs {ours}", request.name),
            format!("install PostgreSQL {ours} on it, or set `bin_dir` in its node file to where it is"),
        )),
        Some(_) | None => Ok(()),
    }
}

fn addresses_of(member: &Member) -> Vec<String> {
    let mut all = vec![member.peer_address.clone(), member.api_address.clone()];
    if !member.witness {
        all.push(member.postgres_address());
    }
    all
}

fn check_addresses(state: &ClusterState, request: &JoinRequest) -> Result<(), Trouble> {
    // The id and the time do not matter for its addresses.
    let wanted = addresses_of(&new_member(request, NodeId(0), None, request.wall));
    let hint = "give every listener an address of its own with `advertise` in the node file";
    let distinct: BTreeSet<&String> = wanted.iter().collect();
    if distinct.len() < wanted.len() {
        return Err(Trouble::port_taken(
            format!("`{}` gives one address to two of its listeners: {}", request.name, wanted.join(", ")),
            hint,
        ));
    }
    for member in state.members.values() {
        if let Some(taken) = addresses_of(member).into_iter().find(|address| wanted.contains(address)) {
            return Err(Trouble::port_taken(format!("{taken} is an address of node `{}`", member.name), hint));
        }
    }
    Ok(())
}

/// The upstream to store (`None` for the primary), and whether kind and delay fit.
fn check_upstream(state: &ClusterState, request: &JoinRequest) -> Result<Option<NodeId>, Trouble> {
    match request.role {
        Role::Witness => return Ok(None),
        Role::Replica | Role::Primary => {}
    }
    check_delay(request.kind, request.apply_delay_ms)?;
    match &request.upstream {
        Some(name) => upstream_named(state, name),
        None => Ok(None),
    }
}

/// A delayed replica needs a delay, and only it may have one.
pub(crate) fn check_delay(kind: ReplicaKind, apply_delay_ms: u64) -> Result<(), Trouble> {
    match (kind, apply_delay_ms) {
        (ReplicaKind::Delayed, 0) => {
            Err(Trouble::config_bad_value("a delayed replica needs a delay above zero", "give it with `--delay 1h`"))
        }
        (ReplicaKind::Delayed, _) | (ReplicaKind::Hot | ReplicaKind::Standby, 0) => Ok(()),
        (ReplicaKind::Hot | ReplicaKind::Standby, _) => Err(Trouble::config_bad_value(
            format!("a {} replica cannot apply changes late", kind.as_str()),
            "leave the delay out, or use the kind `delayed`",
        )),
    }
}

/// The id of an upstream by its name; `None` for the primary, which needs not be named.
pub(crate) fn upstream_named(state: &ClusterState, name: &NodeName) -> Result<Option<NodeId>, Trouble> {
    let hint = "`stemma status` lists the nodes; leave the upstream out to follow the primary";
    let Some(member) = state.by_name(name) else {
        return Err(Trouble::unknown_node(format!("there is no node `{name}` to stream from"), hint));
    };
    if member.witness {
        return Err(Trouble::wrong_role(format!("`{name}` is a witness and has nothing to stream"), hint));
    }
    if member.stage == Stage::Leaving {
        return Err(Trouble::wrong_role(format!("`{name}` is being removed"), hint));
    }
    Ok((member.id != state.rule.primary).then_some(member.id))
}

fn with_stage(state: &ClusterState, node: NodeId, stage: Stage) -> Option<ClusterState> {
    let mut next = state.clone();
    next.members.get_mut(&node)?.stage = stage;
    Some(next)
}

/// A joining node follows (or, a witness, has caught up with the store): it is active. `None`: it was not joining.
pub fn complete(state: &ClusterState, node: NodeId, now: WallTime) -> Option<ClusterState> {
    let member = state.members.get(&node).filter(|member| member.stage == Stage::Joining)?;
    let mut next = with_stage(state, node, Stage::Active)?;
    let text = format!("{} has joined", member.name);
    history::record(&mut next, now, "node-joined", Some(&member.name), text, STEMMA);
    Some(next)
}

/// An order to rejoin or to be rebuilt was carried out. `None`: another order, or none, is in force.
pub fn finish_order(state: &ClusterState, node: NodeId, order: u64, now: WallTime) -> Option<ClusterState> {
    let member = state.members.get(&node)?;
    let text = match member.stage {
        Stage::Reinit { order: given } if given == order => format!("{} was rebuilt and follows", member.name),
        Stage::Rejoin { order: given } if given == order => format!("{} follows again", member.name),
        Stage::Reinit { .. }
        | Stage::Rejoin { .. }
        | Stage::Joining
        | Stage::Active
        | Stage::Halted { .. }
        | Stage::Leaving => return None,
    };
    let mut next = with_stage(state, node, Stage::Active)?;
    history::record(&mut next, now, "node-rejoined", Some(&member.name), text, STEMMA);
    Some(next)
}

/// Stops a member on purpose. `None`: it is halted or leaving already; the first reason is the one to keep.
pub fn halt(state: &ClusterState, node: NodeId, code: &str, reason: &str, now: WallTime) -> Option<ClusterState> {
    let member = state.members.get(&node)?;
    match member.stage {
        Stage::Halted { .. } | Stage::Leaving => return None,
        Stage::Joining | Stage::Active | Stage::Reinit { .. } | Stage::Rejoin { .. } => {}
    }
    let stage = Stage::Halted { code: code.to_owned(), reason: reason.to_owned(), since: now };
    let mut next = with_stage(state, node, stage)?;
    let text = format!("{} was halted: {reason} ({code})", member.name);
    history::record(&mut next, now, "node-halted", Some(&member.name), text, STEMMA);
    Some(next)
}

/// Forgets a leaving member. `None`: it is not leaving, or the rule still counts on it: a voter leaves the rule first
/// (see `sync`), else the promise of the rule would be about a node that nobody can ask.
pub fn finish_removal(state: &ClusterState, node: NodeId, now: WallTime) -> Option<ClusterState> {
    let member = state.members.get(&node).filter(|member| member.stage == Stage::Leaving)?;
    if state.rule.voters.contains(&node) || state.rule.primary == node {
        return None;
    }
    let mut next = state.clone();
    next.members.remove(&node);
    for other in next.members.values_mut() {
        other.upstream = other.upstream.filter(|upstream| *upstream != node);
    }
    history::record(&mut next, now, "node-removed", Some(&member.name), format!("{} has left", member.name), STEMMA);
    Some(next)
}

/// Notes what the first server turned out to be. `None`: known already. A different one is never written over it.
pub fn learn_database(state: &ClusterState, system_id: SystemId, major: u32) -> Option<ClusterState> {
    if state.identity.system_id.is_some() && state.identity.major.is_some() {
        return None;
    }
    let mut next = state.clone();
    next.identity.system_id.get_or_insert(system_id);
    next.identity.major.get_or_insert(major);
    Some(next)
}

/// Kept entries of the lineage.
pub const LINEAGE_MAX: usize = 100;

/// Notes where the data of a primacy began. `None`: noted already.
pub fn learn_lineage(state: &ClusterState, entry: LineageEntry) -> Option<ClusterState> {
    if state.lineage.iter().any(|known| known.epoch >= entry.epoch) {
        return None;
    }
    let mut next = state.clone();
    next.lineage.push(entry);
    history::keep_newest(&mut next.lineage, LINEAGE_MAX);
    Some(next)
}

/// Writes a rule that `sync::next_step` asked for. `None`: it was made from another rule than the one in force, so it
/// proves nothing; look again.
pub fn write_rule(state: &ClusterState, rule: &Rule, now: WallTime) -> Option<ClusterState> {
    let old = &state.rule;
    // While another primary is being made, the rule that its recruits were counted by must not change under them.
    if state.failover.is_some() {
        return None;
    }
    if rule.version != old.version + 1 || rule.epoch != old.epoch || rule.primary != old.primary {
        return None;
    }
    let mut next = state.clone();
    next.rule = rule.clone();
    if *rule == crate::sync::barrier(old) {
        // Nothing that people would want to read about.
        return Some(next);
    }
    let name = |id: &NodeId| state.members.get(id).map_or_else(|| id.to_string(), |member| member.name.to_string());
    let voters: Vec<String> = rule.voters.iter().map(name).collect();
    let text = match rule.acks {
        0 => format!("commits are promised to no replica (mode {})", rule.mode),
        acks => format!(
            "every commit is held by {acks} of {}; a promotion needs {} of them (mode {})",
            voters.join(", "),
            rule.recruit_quorum,
            rule.mode
        ),
    };
    let kind = if rule.acks < old.acks { "durability-lowered" } else { "rule-changed" };
    history::record(&mut next, now, kind, None, text, STEMMA);
    Some(next)
}

#[cfg(test)]
mod tests;
