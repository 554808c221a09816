//! Every problem with its cause and the next command; only the root of a chain is reported.

use super::durability::{acknowledging, eligible, waits};
use super::node::{clock_offset_ms, disk_used_percent};
use super::{PrimaryStanding, Replication, Scene, words};
use crate::naming::{is_our_slot, node_of_slot};
use model::limits::{CLOCK_OFFSET_WARN, KEEPER_SILENT_AFTER};
use model::names::NodeId;
use model::observe::ServerState;
use model::state::{Member, ReplicaKind, Stage};
use model::status::{Durability, Severity};
use model::units::{Millis, Moment};

/// Time without a step of replay, with something to replay, from which it counts as frozen. A single record may take
/// longer (a large table dropped), which then is worth knowing as well.
pub(crate) const REPLAY_FROZEN_AFTER: Millis = Millis(5_000);
/// A certificate that ends within this time was not renewed as it should have been.
const CERTIFICATE_WARN: Millis = Millis::from_secs(86_400);
/// From here on the disk counts as nearly full.
const DISK_WARN_PERCENT: u8 = 90;
/// From here on it is a matter of minutes.
const DISK_CRITICAL_PERCENT: u8 = 97;

/// A problem as found; the judge adds since when.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub code: &'static str,
    pub severity: Severity,
    pub node: Option<NodeId>,
    pub what: String,
    pub cause: String,
    pub next: String,
    /// When it began, where that is known better than from when it was first judged.
    pub since: Option<Moment>,
}

impl Found {
    pub(super) fn new(code: &'static str, severity: Severity, node: Option<NodeId>, texts: [String; 3]) -> Found {
        let [what, cause, next] = texts;
        Found { code, severity, node, what, cause, next, since: None }
    }
    fn since(mut self, since: Option<Moment>) -> Found {
        self.since = since;
        self
    }
}

/// All problems of a scene, in no particular order.
pub(crate) fn all(
    scene: &Scene<'_>,
    replication: &Replication,
    standing: &PrimaryStanding,
    durability: &Durability,
) -> Vec<Found> {
    let mut found = Vec::new();
    found.extend(primary_down(scene, standing));
    found.extend(scene.state.primary().and_then(|leader| super::follow::problem(scene, leader)));
    found.extend(no_quorum(scene));
    found.extend(super::primacy::pause_problem(scene));
    found.extend(redundancy(scene, replication, standing, durability));
    for member in scene.state.members.values().filter(|member| member.stage != Stage::Leaving) {
        found.extend(unexpected_primary(scene, member));
        let silent = keeper_silent(scene, member, standing);
        let stopped =
            halted(member).or_else(|| server_failed(scene, member, standing)).or_else(|| clone_failing(scene, member));
        let rooted = silent.is_some() || stopped.is_some();
        found.extend(silent);
        found.extend(stopped);
        if !rooted {
            found.extend(replica(scene, replication, standing, member));
        }
        found.extend(pending_restart(scene, member));
        found.extend(clock(scene, member));
        found.extend(certificate(scene, member));
        found.extend(disk(scene, member));
        found.extend(slots(scene, member));
        found.extend(outside(scene, member));
    }
    found
}

fn primary_down(scene: &Scene<'_>, standing: &PrimaryStanding) -> Option<Found> {
    let PrimaryStanding::Down { why, next } = standing else { return None };
    let id = scene.state.rule.primary;
    let name = scene.state.members.get(&id).map_or("?", |member| member.name.as_str());
    // Who wants to help while a successor is on its way would be in its way.
    let next = super::primacy::change(scene).map_or_else(|| next.clone(), |change| format!("nothing: {change}"));
    let texts = [format!("primary {name} does not accept writes"), why.clone(), next];
    let heard = scene.seen(id).filter(|_| scene.current(id).is_none()).map(|seen| seen.heard_at);
    Some(Found::new("ST2205", Severity::Critical, Some(id), texts).since(heard))
}

fn no_quorum(scene: &Scene<'_>) -> Option<Found> {
    if scene.consensus.up {
        return None;
    }
    let voters = &scene.consensus.voters;
    let heard = |id: &&NodeId| scene.state.members.get(id).is_some_and(|member| scene.keeper_up(member));
    let missing: Vec<String> = voters
        .iter()
        .filter(|id| !heard(id))
        .map(|id| scene.state.members.get(id).map_or_else(|| format!("node {id}"), |member| member.name.to_string()))
        .collect();
    let cause = match (scene.consensus.kind.as_str(), voters.len()) {
        (kind, 0) => format!("{kind} has not answered for {}", words::span(scene.consensus.age)),
        (_, all) => format!(
            "{} of {all} voters answer {}, {} are needed{}",
            all - missing.len(),
            scene.observer,
            all / 2 + 1,
            if missing.is_empty() { String::new() } else { format!("; silent: {}", missing.join(", ")) }
        ),
    };
    let texts = [
        "consensus has no majority: nothing can be changed or repaired, the primary serves on".to_owned(),
        cause,
        "start the silent keepers again: stemma run".to_owned(),
    ];
    Some(Found::new("ST2105", Severity::Critical, None, texts).since(Some(scene.now.minus(scene.consensus.age))))
}

/// Fewer acknowledgements than asked for, commits that wait, or nothing to acknowledge with.
fn redundancy(
    scene: &Scene<'_>,
    replication: &Replication,
    standing: &PrimaryStanding,
    durability: &Durability,
) -> Option<Found> {
    let rule = &scene.state.rule;
    let others = scene.replicas().filter(|member| member.stage != Stage::Leaving).count();
    if others == 0 {
        let texts = [
            "one data node: no redundancy".to_owned(),
            "the cluster has no replica".to_owned(),
            "stemma token create --role replica, then stemma join on another host".to_owned(),
        ];
        return Some(Found::new("ST2204", Severity::Info, None, texts));
    }
    let waits = waits(scene).filter(|_| standing.is_up())?;
    let confirming = acknowledging(scene, replication, &waits).len();
    let (acks, wanted) = (durability.acks, durability.acks_wanted);
    let counted = eligible(scene).count();
    let fed = eligible(scene).filter(|member| replication.links.get(&member.id).is_some_and(|link| link.up)).count();
    if (acks as usize) > confirming {
        let texts = [
            format!("commits wait: {confirming} of {acks} needed synchronous replicas confirm"),
            if durability.strict { "strict = true".into() } else { "acks are lowered after voter_grace".to_owned() },
            if durability.strict {
                "bring a replica back; to let commits through with less redundancy: stemma config set strict=false"
                    .into()
            } else {
                "nothing: commits go on by themselves".to_owned()
            },
        ];
        return Some(Found::new("ST2204", Severity::Critical, None, texts));
    }
    if acks < rule.acks {
        let texts = [
            format!("the server of the primary waits for {acks} replicas, the rule for {}", rule.acks),
            format!("synchronous_standby_names is not what the rule says: {:?}", waits.names),
            "nothing: its keeper sets it again".to_owned(),
        ];
        return Some(Found::new("ST2204", Severity::Critical, None, texts));
    }
    // While the first replicas are being made there is nothing yet that could have been lost.
    if acks >= wanted || counted == 0 && scene.replicas().all(|member| member.stage == Stage::Joining) {
        return None;
    }
    let what = match acks {
        0 => "commits are ASYNC: no replica holds them when they are acknowledged".to_owned(),
        acks => format!("commits wait for {acks} replicas instead of {wanted}"),
    };
    let texts = [
        what,
        format!("strict=false: acks lowered to {acks} through consensus, {fed} of {counted} voters reachable"),
        "nothing once the replicas are back; to block writes instead: stemma config set strict=true".to_owned(),
    ];
    Some(Found::new("ST2204", Severity::Warning, None, texts))
}

fn unexpected_primary(scene: &Scene<'_>, member: &Member) -> Option<Found> {
    let facts = scene.current_facts(member.id).filter(|facts| !facts.in_recovery)?;
    if member.id == scene.state.rule.primary || super::primacy::takes_over(scene.state, member.id) {
        return None;
    }
    let primary = scene.state.primary().map_or("?", |member| member.name.as_str());
    let texts = [
        format!("{} accepts writes although {primary} is the primary", member.name),
        format!(
            "its server left recovery on timeline {}: promoted by hand, or started outside the cluster",
            facts.timeline
        ),
        format!(
            "keep clients away from {}; what only it holds is lost by: stemma node reinit {}",
            member.postgres_address(),
            member.name
        ),
    ];
    Some(Found::new("ST3022", Severity::Critical, Some(member.id), texts))
}

fn keeper_silent(scene: &Scene<'_>, member: &Member, standing: &PrimaryStanding) -> Option<Found> {
    let follows = matches!(standing, PrimaryStanding::Follows);
    let is_down_primary = member.id == scene.state.rule.primary && !standing.is_up() && !follows;
    if is_down_primary {
        return None;
    }
    if scene.keeper_up(member) {
        return unseen(scene, member);
    }
    let (name, host) = (&member.name, Scene::host(member));
    let heard = scene.seen(member.id).map(|seen| seen.heard_at);
    let cause = match heard {
        None => format!("{} has not heard it since it began to watch", scene.observer),
        Some(_) => format!(
            "nothing for more than {}: keeper or host down, or the network between",
            words::span(KEEPER_SILENT_AFTER)
        ),
    };
    let texts = [format!("keeper of {name} does not answer"), cause, format!("on {host}: stemma run")];
    Some(Found::new("ST2114", Severity::Warning, Some(member.id), texts).since(heard))
}

/// A keeper that answers without a recent look at its node: what it guards may be hung.
fn unseen(scene: &Scene<'_>, member: &Member) -> Option<Found> {
    if scene.current(member.id).is_some() || member.stage == Stage::Joining {
        return None;
    }
    let name = &member.name;
    let texts = [
        format!("keeper of {name} answers, but has not looked at its server lately"),
        "the look at its server, its disk or the keeper itself hangs".to_owned(),
        format!("look for a hung disk on {}; if it lasts, start its keeper again: stemma run", Scene::host(member)),
    ];
    let since = scene.seen(member.id).map(|seen| seen.taken_at);
    Some(Found::new("ST3021", Severity::Warning, Some(member.id), texts).since(since))
}

/// Codes of reasons for which a node stops, as the codes of this program.
fn known_code(code: &str) -> &'static str {
    model::error::CODES.iter().find(|(known, _)| *known == code).map_or("ST9001", |(known, _)| known)
}

fn halted(member: &Member) -> Option<Found> {
    let Stage::Halted { code, reason, .. } = &member.stage else { return None };
    let name = &member.name;
    let texts = [
        format!("{name} is halted"),
        reason.clone(),
        format!("stemma node rejoin {name}, or to rebuild it: stemma node reinit {name}"),
    ];
    Some(Found::new(known_code(code), Severity::Warning, Some(member.id), texts))
}

fn server_failed(scene: &Scene<'_>, member: &Member, standing: &PrimaryStanding) -> Option<Found> {
    if member.id == scene.state.rule.primary && matches!(standing, PrimaryStanding::Down { .. }) {
        return None;
    }
    let seen = scene.current(member.id)?;
    let (name, host) = (&member.name, Scene::host(member));
    match &seen.sample.server {
        ServerState::Failed { reason } => {
            let texts = [
                format!("server of {name} failed"),
                reason.clone(),
                format!("mend the cause on {host}; its keeper tries again. To rebuild: stemma node reinit {name}"),
            ];
            Some(Found::new("ST3020", Severity::Warning, Some(member.id), texts))
        }
        ServerState::Unresponsive { for_ms } => {
            let texts = [
                format!("server of {name} does not answer"),
                format!("no answer on the control connection for {}", words::span(Millis(*for_ms))),
                format!("look for a hung disk or no memory on {host}"),
            ];
            Some(
                Found::new("ST3020", Severity::Warning, Some(member.id), texts)
                    .since(Some(scene.now.minus(Millis(*for_ms)))),
            )
        }
        ServerState::None
        | ServerState::Empty
        | ServerState::Initialising
        | ServerState::Cloning(_)
        | ServerState::Stopped
        | ServerState::Starting
        | ServerState::Running => None,
    }
}

fn clone_failing(scene: &Scene<'_>, member: &Member) -> Option<Found> {
    let sample = &scene.current(member.id)?.sample;
    let (attempt, error) = match &sample.server {
        ServerState::Cloning(progress) => (progress.attempt, progress.last_error.clone()?),
        ServerState::Empty => (0, sample.last_error.as_ref().map(|(_, error)| error.clone())?),
        ServerState::None
        | ServerState::Initialising
        | ServerState::Stopped
        | ServerState::Starting
        | ServerState::Running
        | ServerState::Unresponsive { .. }
        | ServerState::Failed { .. } => return None,
    };
    let name = &member.name;
    let what = match attempt {
        0 => format!("{name} could not be built"),
        attempt => format!("base backup of {name} failed, attempt {attempt} is running"),
    };
    let texts = [what, error, format!("nothing: it is tried again; from the start: stemma node reinit {name}")];
    Some(Found::new("ST3001", Severity::Warning, Some(member.id), texts))
}

/// Link, replay or lag of a replica that should be working: the first that is wrong.
fn replica(scene: &Scene<'_>, replication: &Replication, standing: &PrimaryStanding, member: &Member) -> Option<Found> {
    if member.stage == Stage::Joining {
        return None;
    }
    let (name, link) = (&member.name, replication.links.get(&member.id)?);
    let upstream = scene.state.upstream_of(member.id)?;
    if let Some(since) = replication.frozen.get(&member.id).filter(|_| !late_on_purpose(scene, replication, member)) {
        return Some(frozen(scene, member, *since));
    }
    if let Some(gone) = log_gone(scene, member).filter(|_| !link.up) {
        return Some(gone.since(link.alive_at));
    }
    if !link.up {
        // With the primary down its replicas have nothing to connect to.
        let follows = matches!(standing, PrimaryStanding::Follows);
        if upstream.id == scene.state.rule.primary && !standing.is_up() && !follows {
            return None;
        }
        let texts = match &member.stage {
            Stage::Reinit { .. } | Stage::Rejoin { .. } => [
                format!("{name} does not follow {} yet: it is being brought back as ordered", upstream.name),
                link.why.clone(),
                "nothing: it follows by itself when it is ready".to_owned(),
            ],
            Stage::Active | Stage::Joining | Stage::Halted { .. } | Stage::Leaving => [
                format!("replication from {} to {name} is down", upstream.name),
                link.why.clone(),
                format!(
                    "check the way from {} to {}; its keeper reconnects by itself",
                    Scene::host(member),
                    upstream.postgres_address()
                ),
            ],
        };
        return Some(Found::new("ST3013", Severity::Warning, Some(member.id), texts).since(link.alive_at));
    }
    let lag = replication.lags.get(&member.id)?;
    let bound = Millis(scene.state.settings.lag_warn.0.0.saturating_add(member.apply_delay_ms));
    // While the primary is not heard, lag is only how long that lasts: not a fault of the replica.
    let heard = matches!(standing, PrimaryStanding::Up);
    let seconds = lag.seconds.filter(|seconds| heard && *seconds > bound.seconds())?;
    let behind = lag.apply_bytes.map_or_else(String::new, |bytes| format!(", {} to apply", words::bytes(bytes)));
    let unreceived = lag.receive_bytes.unwrap_or(0) > lag.apply_bytes.unwrap_or(0) / 2;
    let texts = [
        format!("{name} is {} behind{behind}", words::span(Millis((seconds * 1000.0) as u64))),
        if unreceived {
            "the log arrives too slowly: network or disk".to_owned()
        } else {
            "the log is applied too slowly".to_owned()
        },
        format!("nothing if a large change is being applied; else look at disk and queries on {}", Scene::host(member)),
    ];
    Some(Found::new("ST3015", Severity::Warning, Some(member.id), texts))
}

/// Its keeper found that the upstream has removed the log it needs: it will not get on by itself.
fn log_gone(scene: &Scene<'_>, member: &Member) -> Option<Found> {
    let (_, reason) = scene.current(member.id)?.sample.last_error.as_ref().filter(|(code, _)| code == "ST3014")?;
    let name = &member.name;
    let texts = [
        format!("{name} cannot go on: log that it needs is gone"),
        reason.clone(),
        format!("stemma node reinit {name}; to keep log longer: stemma config explain slot_retention"),
    ];
    Some(Found::new("ST3014", Severity::Warning, Some(member.id), texts))
}

/// A delayed replica within its delay does what it should.
fn late_on_purpose(scene: &Scene<'_>, replication: &Replication, member: &Member) -> bool {
    let paused = scene.current_facts(member.id).is_some_and(|facts| facts.replay_paused);
    let within = |lag: &model::status::Lag| {
        lag.seconds.is_none_or(|seconds| {
            seconds <= Millis(member.apply_delay_ms + scene.state.settings.lag_warn.0.0).seconds()
        })
    };
    member.kind == ReplicaKind::Delayed && !paused && replication.lags.get(&member.id).is_none_or(within)
}

fn frozen(scene: &Scene<'_>, member: &Member, since: Moment) -> Found {
    let (name, facts) = (&member.name, scene.current_facts(member.id));
    let paused = facts.is_some_and(|facts| facts.replay_paused);
    let at = facts.and_then(|facts| facts.replayed).map_or_else(String::new, |at| format!(" at {at}"));
    let (cause, next) = if paused {
        let next = format!("on {}: SELECT pg_wal_replay_resume()", member.postgres_address());
        ("paused with pg_wal_replay_pause".to_owned(), next)
    } else {
        let cause = "log arrives but is not applied: a query holds it up, or the log cannot be read".to_owned();
        (cause, format!("look for long queries on {name}; to rebuild: stemma node reinit {name}"))
    };
    let texts = [format!("{name}: replay frozen{at}"), cause, next];
    Found::new("ST3012", Severity::Warning, Some(member.id), texts).since(Some(since))
}

fn pending_restart(scene: &Scene<'_>, member: &Member) -> Option<Found> {
    let pending = &scene.current_facts(member.id)?.pending_restart;
    if pending.is_empty() {
        return None;
    }
    let values: Vec<String> =
        pending.iter().map(|(name, change)| format!("{name} {} -> {}", change.old, change.new)).collect();
    let texts = [
        format!("{} waits for a restart: {}", member.name, values.join(", ")),
        "these parameters change only when the server starts".to_owned(),
        "stemma restart --rolling --pending".to_owned(),
    ];
    Some(Found::new("ST3024", Severity::Info, Some(member.id), texts))
}

fn clock(scene: &Scene<'_>, member: &Member) -> Option<Found> {
    scene.current(member.id)?;
    let offset = clock_offset_ms(scene, member)?;
    if offset.unsigned_abs() <= CLOCK_OFFSET_WARN.0 {
        return None;
    }
    let way = if offset > 0 { "ahead of" } else { "behind" };
    let by = words::span(Millis(offset.unsigned_abs()));
    let texts = [
        format!("clock of {} is {by} {way} the clock of {}", member.name, scene.observer),
        "time is not synchronised on one of them; failover and lag do not depend on it".to_owned(),
        format!("on {}: check chrony or systemd-timesyncd", Scene::host(member)),
    ];
    Some(Found::new("ST2113", Severity::Warning, Some(member.id), texts))
}

fn certificate(scene: &Scene<'_>, member: &Member) -> Option<Found> {
    let ends = scene.current(member.id)?.sample.certificate_expires_at?;
    let left = ends.millis_since(scene.wall);
    if left > i64::try_from(CERTIFICATE_WARN.0).unwrap_or(i64::MAX) {
        return None;
    }
    let name = &member.name;
    let left_ms = u64::try_from(left).unwrap_or(0);
    let (severity, what) = match left_ms {
        0 => (Severity::Critical, format!("certificate of {name} has expired")),
        left => (Severity::Warning, format!("certificate of {name} expires in {}", words::span(Millis(left)))),
    };
    let cause = "its keeper renews it in time unless consensus has no majority or its clock is wrong".to_owned();
    let next = format!("on {}: start its keeper again (stemma run), which renews it", Scene::host(member));
    Some(Found::new("ST8005", severity, Some(member.id), [what, cause, next]))
}

fn disk(scene: &Scene<'_>, member: &Member) -> Option<Found> {
    scene.current(member.id)?;
    let used = disk_used_percent(scene, member).filter(|used| *used > DISK_WARN_PERCENT)?;
    let severity = if used >= DISK_CRITICAL_PERCENT { Severity::Critical } else { Severity::Warning };
    let texts = [
        format!("disk of {} is {used} % full", member.name),
        "data, log kept for slots, or other files on the same file system".to_owned(),
        format!("free space on {}; a full disk stops the server", Scene::host(member)),
    ];
    Some(Found::new("ST3003", severity, Some(member.id), texts))
}

/// The slot on this node that keeps the most log, if it is too much.
fn slots(scene: &Scene<'_>, member: &Member) -> Option<Found> {
    let facts = scene.current_facts(member.id)?;
    let bound = scene.state.settings.slot_retention_size;
    let endangered = |slot: &&model::observe::Slot| {
        matches!(slot.wal_status.as_deref(), Some("unreserved" | "lost"))
            || !slot.active && slot.retained_bytes.unwrap_or(0) > bound.0 / 5 * 4
    };
    let slot = facts.slots.iter().filter(endangered).max_by_key(|slot| slot.retained_bytes)?;
    let kept = words::bytes(slot.retained_bytes.unwrap_or(0));
    let owner = node_of_slot(&slot.name, &scene.state.members).and_then(|id| scene.state.members.get(&id));
    let (cause, next) = match owner {
        Some(owner) => (
            format!("{} does not fetch its log", owner.name),
            format!("bring {} back before the slot is dropped at slot_retention_size = {bound}", owner.name),
        ),
        None if is_our_slot(&slot.name) => {
            ("its member has left".to_owned(), "nothing: it is dropped once nothing uses it".to_owned())
        }
        None => (
            "nobody fetches its log; it was not made by the cluster".to_owned(),
            format!("if nobody needs it, on {}: SELECT pg_drop_replication_slot('{}')", member.name, slot.name),
        ),
    };
    let lost = slot.wal_status.as_deref() == Some("lost");
    let what = match lost {
        true => format!("slot {} on {} has lost log that it should keep", slot.name, member.name),
        false => format!("slot {} on {} keeps {kept} of log", slot.name, member.name),
    };
    Some(Found::new("ST3023", Severity::Warning, Some(member.id), [what, cause, next]))
}

/// What a node fails to tell the world outside. The database is none the worse for it.
fn outside(scene: &Scene<'_>, member: &Member) -> Vec<Found> {
    let Some(seen) = scene.current(member.id) else { return Vec::new() };
    let found = seen.sample.outside.troubles.iter().map(|trouble| {
        let code = known_code(&trouble.code);
        // A hook is the owner's program; an address that points to the wrong server is our own failure.
        let severity = if code == "ST2311" { Severity::Info } else { Severity::Warning };
        let texts = [format!("{}: {}", member.name, trouble.what), trouble.cause.clone(), trouble.next.clone()];
        Found::new(code, severity, Some(member.id), texts)
    });
    found.collect()
}
