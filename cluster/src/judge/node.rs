//! One line per node.

use super::link::Link;
use super::problems::Found;
use super::{PrimaryStanding, Replication, Scene, durability};
use crate::naming::application_name;
use model::observe::{CloneProgress, NodeSample, ServerState};
use model::state::{Member, Role, Stage};
use model::status::{NodeStatus, Severity};
use model::units::Millis;

/// All nodes: primary first, then by name.
pub(crate) fn all(
    scene: &Scene<'_>,
    replication: &Replication,
    standing: &PrimaryStanding,
    found: &[Found],
) -> Vec<NodeStatus> {
    let mut nodes: Vec<NodeStatus> =
        scene.state.members.values().map(|member| one(scene, replication, standing, found, member)).collect();
    nodes.sort_by(|a, b| (a.role != Role::Primary, &a.name).cmp(&(b.role != Role::Primary, &b.name)));
    nodes
}

fn one(
    scene: &Scene<'_>,
    replication: &Replication,
    standing: &PrimaryStanding,
    found: &[Found],
    member: &Member,
) -> NodeStatus {
    let role = scene.state.role_of(member.id).unwrap_or(Role::Replica);
    let seen = scene.seen(member.id);
    let sample = seen.map(|seen| seen.sample.as_ref());
    let facts = sample.and_then(|sample| sample.facts.as_ref());
    let link = replication.links.get(&member.id);
    let keeper_up = scene.keeper_up(member);
    let troubled = found.iter().any(|found| found.node == Some(member.id) && found.severity >= Severity::Warning);
    let works = works(standing, link, role);
    NodeStatus {
        id: member.id,
        name: member.name.clone(),
        role,
        kind: member.kind,
        cascading: role == Role::Replica
            && scene.state.upstream_of(member.id).is_some_and(|up| up.id != scene.state.rule.primary),
        site: member.site.clone(),
        keeper_up,
        heard_ms_ago: scene.silence(member.id).map(|silence| silence.0),
        sample_age_ms: seen.map(|seen| scene.now.since(seen.taken_at).0),
        server: match (member.witness, scene.current(member.id)) {
            (true, _) => ServerState::None.word().to_owned(),
            (false, Some(seen)) => seen.sample.server.word().to_owned(),
            (false, None) => "unknown".to_owned(),
        },
        stage: stage_word(&member.stage).to_owned(),
        healthy: member.stage == Stage::Active && keeper_up && works && !troubled,
        sync: sync(scene, replication, member, role).to_owned(),
        voter: scene.state.rule.voters.contains(&member.id),
        upstream: scene.state.upstream_of(member.id).map(|upstream| upstream.name.clone()),
        link: link.map(|link| link.status),
        // What has no upstream has no link that could be down.
        link_up: link.map_or(keeper_up, |link| link.up),
        lag: replication.lags.get(&member.id).cloned(),
        timeline: facts.map(|facts| facts.timeline),
        position: facts.and_then(|facts| if facts.in_recovery { facts.received } else { facts.written }),
        replayed: facts.and_then(|facts| facts.replayed),
        shows_replayed: facts.is_none_or(|facts| facts.shows_replayed),
        version: facts.map(|facts| facts.version.clone()),
        postgres_address: if member.witness { String::new() } else { member.postgres_address() },
        api_address: member.api_address.clone(),
        peer_address: member.peer_address.clone(),
        priority: member.priority,
        replay_paused: scene.current_facts(member.id).is_some_and(|facts| facts.replay_paused),
        pending_restart: facts.map(|facts| facts.pending_restart.clone()).unwrap_or_default(),
        clone: sample.and_then(clone_progress),
        disk_used_percent: disk_used_percent(scene, member),
        connections: facts.map(|facts| facts.connections),
        clock_offset_ms: clock_offset_ms(scene, member),
        doing: sample.and_then(|sample| sample.doing.clone()),
        keeper_pid: sample.map(|sample| sample.keeper_pid),
        program_version: sample.map(|sample| sample.program_version.clone()),
        settings_version: sample.map(|sample| sample.settings_version),
        started_at: facts.map(|facts| facts.started_at),
        certificate_expires_at: sample.and_then(|sample| sample.certificate_expires_at),
        sockets: sample.and_then(|sample| sample.sockets.clone()),
    }
}

/// Whether it does what its role asks for.
fn works(standing: &PrimaryStanding, link: Option<&Link>, role: Role) -> bool {
    match role {
        Role::Primary => standing.is_up(),
        Role::Replica => link.is_some_and(|link| link.up),
        Role::Witness => true,
    }
}

fn clone_progress(sample: &NodeSample) -> Option<CloneProgress> {
    match &sample.server {
        ServerState::Cloning(progress) => Some(progress.clone()),
        ServerState::None
        | ServerState::Empty
        | ServerState::Initialising
        | ServerState::Stopped
        | ServerState::Starting
        | ServerState::Running
        | ServerState::Unresponsive { .. }
        | ServerState::Failed { .. } => None,
    }
}

/// The word of a stage.
pub(crate) fn stage_word(stage: &Stage) -> &'static str {
    match stage {
        Stage::Joining => "joining",
        Stage::Active => "active",
        Stage::Halted { .. } => "halted",
        Stage::Reinit { .. } => "reinit",
        Stage::Rejoin { .. } => "rejoin",
        Stage::Leaving => "leaving",
    }
}

/// `sync`: confirms commits now; `potential`: listed by the server, but does not confirm now.
fn sync(scene: &Scene<'_>, replication: &Replication, member: &Member, role: Role) -> &'static str {
    if role != Role::Replica {
        return "-";
    }
    let Some(waits) = durability::waits(scene) else { return "async" };
    if waits.acks == 0 || !waits.names.contains(&application_name(scene.salt, member)) {
        return "async";
    }
    let name = application_name(scene.salt, member);
    let confirms = scene.current_facts(scene.state.rule.primary).is_some_and(|facts| {
        facts.senders.iter().any(|sender| {
            sender.application_name == name
                && sender.state == "streaming"
                && matches!(sender.sync_state.as_str(), "sync" | "quorum")
        })
    });
    let fed = replication.links.get(&member.id).is_some_and(|link| link.up);
    if confirms && fed { "sync" } else { "potential" }
}

/// How full the file system of the data directory is.
pub(crate) fn disk_used_percent(scene: &Scene<'_>, member: &Member) -> Option<u8> {
    let sample = &scene.seen(member.id)?.sample;
    let (free, total) = (sample.disk_free_bytes?, sample.disk_total_bytes?);
    let used = u128::from(total.saturating_sub(free)) * 100 / u128::from(total.max(1));
    u8::try_from(used).ok()
}

/// How far the node's civil clock is ahead of the observer's. Half the round trip is taken as the way here.
pub(crate) fn clock_offset_ms(scene: &Scene<'_>, member: &Member) -> Option<i64> {
    if member.name == *scene.observer {
        return Some(0);
    }
    let seen = scene.seen(member.id)?;
    let way = scene.round_trips.get(&member.id).copied().unwrap_or(Millis(0)).0 / 2;
    let age = i64::try_from(scene.now.since(seen.taken_at).0.saturating_add(way)).ok()?;
    Some(seen.sample.wall.millis_since(scene.wall).saturating_add(age))
}
