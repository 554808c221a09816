//! The one place where observations become a verdict. Status, REST, metrics, alerts and the UI all read its result.
//!
//! Healthy means proved: whatever was not heard recently counts as not working. Every problem has a cause and a next
//! command, and only the root of a chain of problems is reported.

mod durability;
mod follow;
mod link;
mod node;
mod primacy;
mod problems;
mod unknown;
mod words;

pub use unknown::unknown;

use crate::consensus_group;
use crate::lag::LagTracker;
use link::Link;
use model::limits::{LINK_SILENT_AFTER, SAMPLE_STALE_AFTER};
use model::names::{NodeId, NodeName};
use model::observe::{ConsensusView, Observed, ServerFacts, ServerState};
use model::state::{ClusterState, Member, OperationState, Stage, StepState};
use model::status::{ClusterStatus, Durability, Lag, Problem, SCHEMA_VERSION, Severity, Verdict};
use model::units::{Lsn, Millis, Moment, WallTime};
use problems::Found;
use std::collections::BTreeMap;

/// Judges the cluster, sample after sample; remembers the primary's positions and since when problems last.
#[derive(Debug)]
pub struct Judge {
    observer: NodeName,
    lag: LagTracker,
    /// Since when, by code and node.
    since: BTreeMap<(&'static str, Option<NodeId>), Moment>,
    /// Where replay stands although there is more to apply, and since when; absent while there is nothing to apply.
    replay: BTreeMap<NodeId, (Lsn, Moment)>,
    /// What was heard of the cluster that this one follows.
    upstream: Option<follow::Heard>,
}

/// All that one judgement is made from.
pub(crate) struct Scene<'a> {
    now: Moment,
    wall: WallTime,
    state: &'a ClusterState,
    observed: &'a BTreeMap<NodeId, Observed>,
    consensus: &'a ConsensusView,
    salt: &'a str,
    round_trips: &'a BTreeMap<NodeId, Millis>,
    observer: &'a NodeName,
}

/// How the primary stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PrimaryStanding {
    /// Seen to accept writes.
    Up,
    /// Its keeper is silent, but replicas receive from its server.
    Unheard,
    /// Not yet made for the first time.
    Forming,
    /// There is none: the cluster follows another one.
    Follows,
    /// Not seen to accept writes.
    Down { why: String, next: String },
}

impl PrimaryStanding {
    fn is_up(&self) -> bool {
        match self {
            PrimaryStanding::Up | PrimaryStanding::Unheard => true,
            PrimaryStanding::Forming | PrimaryStanding::Follows | PrimaryStanding::Down { .. } => false,
        }
    }
}

impl<'a> Scene<'a> {
    /// The age from which a look no longer says how things are now.
    fn fresh(&self) -> Millis {
        let interval = self.state.settings.sample_interval.0.0;
        LINK_SILENT_AFTER.max(Millis(interval.saturating_mul(2).saturating_add(500)))
    }
    /// The age from which a sample is not shown as the present.
    fn stale(&self) -> Millis {
        SAMPLE_STALE_AFTER.max(self.fresh())
    }
    fn seen(&self, id: NodeId) -> Option<&'a Observed> {
        self.observed.get(&id)
    }
    /// The sample of a node, if it still says how it is.
    fn current(&self, id: NodeId) -> Option<&'a Observed> {
        self.seen(id).filter(|seen| self.now.since(seen.taken_at) <= self.stale())
    }
    /// Facts of a running server, if they still say how it is.
    fn current_facts(&self, id: NodeId) -> Option<&'a ServerFacts> {
        self.current(id)
            .filter(|seen| matches!(seen.sample.server, ServerState::Running))
            .and_then(|seen| seen.sample.facts.as_ref())
    }
    fn silence(&self, id: NodeId) -> Option<Millis> {
        self.seen(id).map(|seen| self.now.since(seen.heard_at))
    }
    fn keeper_up(&self, member: &Member) -> bool {
        member.name == *self.observer
            || self.silence(member.id).is_some_and(|silence| silence <= model::limits::KEEPER_SILENT_AFTER)
    }
    fn replicas(&self) -> impl Iterator<Item = &'a Member> {
        let primary = Some(self.state.rule.primary).filter(|_| self.state.following().is_none());
        self.state.members.values().filter(move |member| !member.witness && Some(member.id) != primary)
    }
    fn host(member: &Member) -> &str {
        member.api_address.rsplit_once(':').map_or(member.api_address.as_str(), |(host, _)| host)
    }
}

/// What was judged of each replica.
pub(crate) struct Replication {
    links: BTreeMap<NodeId, Link>,
    lags: BTreeMap<NodeId, Lag>,
    /// Replicas that do not apply what they have, and since when.
    frozen: BTreeMap<NodeId, Moment>,
}

impl Judge {
    /// A judge that speaks as `observer`.
    pub fn new(observer: NodeName) -> Judge {
        Judge { observer, lag: LagTracker::default(), since: BTreeMap::new(), replay: BTreeMap::new(), upstream: None }
    }

    /// Judges what is known at `now`. `wall` is the observer's civil time, used for clock offsets and certificates
    /// only; `round_trips` are the times to other keepers and back.
    #[allow(
        clippy::too_many_arguments,
        reason = "each is a fact of its own kind; a bag of them would be made here only"
    )]
    pub fn judge(
        &mut self,
        now: Moment,
        wall: WallTime,
        state: &ClusterState,
        observed: &BTreeMap<NodeId, Observed>,
        consensus: &ConsensusView,
        salt: &str,
        round_trips: &BTreeMap<NodeId, Millis>,
    ) -> ClusterStatus {
        let observer = self.observer.clone();
        let scene = Scene { now, wall, state, observed, consensus, salt, round_trips, observer: &observer };
        follow::note(&mut self.upstream, &scene);
        let replication = self.replication(&scene);
        let standing = primary_standing(&scene, &replication);
        let durability = durability::judge(&scene, &replication, &standing);
        let found = problems::all(&scene, &replication, &standing, &durability);
        let nodes = node::all(&scene, &replication, &standing, &found);
        let verdict = verdict(&scene, &standing, &found, &durability);
        let sentence = sentence(&scene, &standing, &durability, verdict, self.upstream.as_ref());
        let follow = follow::status(&scene, self.upstream.as_ref());
        ClusterStatus {
            schema_version: SCHEMA_VERSION,
            cluster: state.identity.name.to_string(),
            cluster_id: state.identity.id.to_string(),
            verdict,
            sentence,
            observer: observer.clone(),
            observed_at: wall,
            epoch: state.rule.epoch,
            primary: state.primary().map(|member| member.name.clone()),
            primary_up: standing.is_up(),
            engine: engine(&scene),
            system_id: state.identity.system_id,
            durability,
            nodes,
            problems: self.remember(&scene, found),
            consensus: consensus.clone(),
            settings_version: state.settings_version,
            operation: operation(state),
            paused: primacy::paused(&scene),
            planned_switchover: primacy::planned(state),
            failover: primacy::in_progress(&scene),
            follow,
            followers: follow::followers(&scene),
        }
    }

    fn replication(&mut self, scene: &Scene<'_>) -> Replication {
        let primary = scene.state.rule.primary;
        if let Some(seen) = scene.seen(primary)
            && let Some(facts) = seen.sample.facts.as_ref().filter(|facts| !facts.in_recovery)
            && let Some(written) = facts.written
        {
            self.lag.observe_primary(primary, facts.timeline, written, seen.taken_at);
        }
        let follows = scene.state.following().is_some();
        if follows
            && let Some(seen) = scene.seen(primary)
            && let Some(facts) = seen.sample.facts.as_ref().filter(|facts| facts.in_recovery)
            && let Some(end) = facts.receiver.as_ref().and_then(|receiver| receiver.latest_end).max(facts.received)
        {
            self.lag.observe_primary(primary, facts.timeline, end, seen.taken_at);
        }
        let is_replica = |id: NodeId| (id != primary || follows) && scene.state.members.contains_key(&id);
        self.lag.retain(is_replica);
        self.replay.retain(|id, _| is_replica(*id));
        let mut judged = Replication { links: BTreeMap::new(), lags: BTreeMap::new(), frozen: BTreeMap::new() };
        for member in scene.replicas() {
            let link = link::judge(scene, member);
            judged.lags.insert(member.id, self.lag.lag(scene.now, member.id, link.view.as_ref(), scene.fresh()));
            if let Some(since) = self.standstill(scene, member.id) {
                judged.frozen.insert(member.id, since);
            }
            judged.links.insert(member.id, link);
        }
        judged
    }

    /// Since when a replica has had something to apply without applying anything.
    fn standstill(&mut self, scene: &Scene<'_>, id: NodeId) -> Option<Moment> {
        let seen = scene.current(id)?;
        let facts = scene.current_facts(id).filter(|facts| facts.in_recovery)?;
        let (received, replayed) = (facts.received?, facts.replayed?);
        if replayed >= received {
            self.replay.remove(&id);
        } else {
            let stands = self.replay.entry(id).or_insert((replayed, seen.taken_at));
            if stands.0 != replayed {
                *stands = (replayed, seen.taken_at);
            }
        }
        let since = self.replay.get(&id).map_or(seen.taken_at, |(_, since)| *since);
        let waits = seen.taken_at.since(since) >= problems::REPLAY_FROZEN_AFTER;
        (facts.replay_paused || waits).then_some(since)
    }

    /// Adds since when each problem lasts, and sorts: worst first.
    fn remember(&mut self, scene: &Scene<'_>, found: Vec<Found>) -> Vec<Problem> {
        let keys: Vec<_> = found.iter().map(|found| (found.code, found.node)).collect();
        self.since.retain(|key, _| keys.contains(key));
        let mut problems: Vec<Problem> = found
            .into_iter()
            .map(|found| {
                let first = *self.since.entry((found.code, found.node)).or_insert(scene.now);
                let since = found.since.map_or(first, |since| since.min(first));
                Problem {
                    code: found.code.to_owned(),
                    severity: found.severity,
                    node: found.node.and_then(|id| scene.state.members.get(&id)).map(|member| member.name.clone()),
                    what: found.what,
                    cause: found.cause,
                    next: found.next,
                    for_ms: scene.now.since(since).0,
                }
            })
            .collect();
        problems.sort_by(|a, b| b.severity.cmp(&a.severity).then_with(|| (&a.code, &a.node).cmp(&(&b.code, &b.node))));
        problems
    }
}

/// Whether the rule's primary takes writes, and if not, why.
fn primary_standing(scene: &Scene<'_>, replication: &Replication) -> PrimaryStanding {
    let down = |why: String, next: String| PrimaryStanding::Down { why, next };
    let Some(primary) = scene.state.primary() else {
        return down("the rule names no member as primary".into(), "stemma status on another node".into());
    };
    let forming = scene.state.identity.system_id.is_none() || primary.stage == Stage::Joining;
    if scene.state.following().is_some() {
        return if forming { PrimaryStanding::Forming } else { PrimaryStanding::Follows };
    }
    let (name, host) = (&primary.name, Scene::host(primary));
    let Some(seen) = scene.current(primary.id) else {
        let fed = |member: &Member| {
            let direct = scene.state.upstream_of(member.id).is_some_and(|upstream| upstream.id == primary.id);
            direct && replication.links.get(&member.id).is_some_and(|link| link.up)
        };
        return if scene.replicas().any(fed) {
            PrimaryStanding::Unheard
        } else if forming {
            PrimaryStanding::Forming
        } else if scene.seen(primary.id).is_none() {
            down(format!("nothing was heard of {name} yet"), format!("on {host}: stemma run"))
        } else {
            down(
                format!("its keeper is silent and no replica receives from it ({} is down or cut off)", host),
                format!("bring {host} back, then on it: stemma run"),
            )
        };
    };
    let by_itself = || format!("nothing yet: its keeper brings it up; what happened: stemma history, log on {host}");
    match &seen.sample.server {
        ServerState::Running => match &seen.sample.facts {
            Some(facts) if !facts.in_recovery => PrimaryStanding::Up,
            Some(_) if forming => PrimaryStanding::Forming,
            Some(_) => down("its server is in recovery and refuses writes".into(), by_itself()),
            None => down("its server answers no questions".into(), by_itself()),
        },
        ServerState::Failed { reason } => {
            down(format!("its server failed: {reason}"), format!("mend the cause on {host}; its keeper tries again"))
        }
        ServerState::Empty
        | ServerState::Initialising
        | ServerState::Cloning(_)
        | ServerState::Stopped
        | ServerState::Starting
            if forming =>
        {
            PrimaryStanding::Forming
        }
        ServerState::Unresponsive { .. } => {
            down("its server runs but does not answer".into(), format!("look for a hung disk or no memory on {host}"))
        }
        state @ (ServerState::None
        | ServerState::Empty
        | ServerState::Initialising
        | ServerState::Cloning(_)
        | ServerState::Stopped
        | ServerState::Starting) => match &seen.sample.last_error {
            // What its keeper stumbled over last is why it is not up yet.
            Some((_, error)) => down(
                format!("its server is {}: {error}", state.word()),
                format!("mend the cause on {host}; its keeper tries again"),
            ),
            None => down(format!("its server is {}", state.word()), by_itself()),
        },
    }
}

fn verdict(scene: &Scene<'_>, standing: &PrimaryStanding, found: &[Found], durability: &Durability) -> Verdict {
    let worst = found.iter().map(|found| found.severity).max();
    let joins = !in_the_making(scene).is_empty();
    match standing {
        PrimaryStanding::Down { .. } => Verdict::Down,
        PrimaryStanding::Forming if worst < Some(Severity::Warning) => Verdict::Forming,
        PrimaryStanding::Forming => Verdict::Down,
        PrimaryStanding::Up | PrimaryStanding::Unheard | PrimaryStanding::Follows
            if worst >= Some(Severity::Warning) =>
        {
            Verdict::Degraded
        }
        PrimaryStanding::Up | PrimaryStanding::Unheard | PrimaryStanding::Follows if joins => Verdict::Forming,
        // The server and the rule do not say the same yet: who takes a node away now may find nobody fit to take over.
        PrimaryStanding::Up if !durability.in_force => Verdict::Forming,
        PrimaryStanding::Up | PrimaryStanding::Unheard | PrimaryStanding::Follows => Verdict::Healthy,
    }
}

/// Members that are not yet what they are to be: without a database, or without the vote that is to be theirs. Who takes
/// another node away meanwhile, believing that all is well, may take the majority with it.
fn in_the_making<'a>(scene: &Scene<'a>) -> Vec<&'a Member> {
    let voters = &scene.consensus.voters;
    let (wanted, _learners) = consensus_group::wanted(scene.state);
    // A store that is not ours tells of no voters.
    let lacks_vote =
        |member: &Member| !voters.is_empty() && wanted.contains(&member.id) && !voters.contains(&member.id);
    scene.state.members.values().filter(|member| member.stage == Stage::Joining || lacks_vote(member)).collect()
}

/// The first line that people read: how many failures are survived, and what would be lost.
fn sentence(
    scene: &Scene<'_>,
    standing: &PrimaryStanding,
    durability: &Durability,
    verdict: Verdict,
    upstream: Option<&follow::Heard>,
) -> String {
    let name = scene.state.primary().map_or("?", |member| member.name.as_str());
    let joining = || in_the_making(scene).iter().map(|member| member.name.to_string()).collect::<Vec<_>>().join(", ");
    let failures = match durability.failures_tolerated {
        ..=-1 => "takes no writes now".to_owned(),
        0 => "tolerates 0 failures".to_owned(),
        1 => "tolerates 1 more failure".to_owned(),
        more => format!("tolerates {more} more failures"),
    };
    let mut text = match (standing, primacy::change(scene)) {
        (PrimaryStanding::Down { .. }, Some(change)) => format!("the primary is being changed: {change}"),
        (PrimaryStanding::Down { why, .. }, None) => format!("takes no writes: primary {name} is down: {why}"),
        (PrimaryStanding::Forming, _) => format!("the first server is being made on {name}"),
        (PrimaryStanding::Follows, _) => follow::sentence(scene, upstream).unwrap_or_default(),
        (PrimaryStanding::Up | PrimaryStanding::Unheard, _) => format!("{failures} · {}", durability.sentence),
    };
    if verdict == Verdict::Forming && !matches!(standing, PrimaryStanding::Forming) {
        text = match joining() {
            nobody if nobody.is_empty() => format!("the promise of commits is being changed · {text}"),
            nodes => format!("{nodes} being built · {text}"),
        };
    }
    if let Some(doubt) = doubt(scene) {
        text = format!("{text} · {doubt}");
    }
    text
}

/// Why this observer's view may not be how things are.
fn doubt(scene: &Scene<'_>) -> Option<String> {
    let others: Vec<&Member> = scene.state.members.values().filter(|member| member.name != *scene.observer).collect();
    if !others.is_empty() && !others.iter().any(|member| scene.keeper_up(member)) {
        return Some(format!("seen by {} alone, which hears no other keeper", scene.observer));
    }
    (!scene.consensus.up).then(|| {
        let age = words::span(scene.consensus.age);
        format!("{} last reached consensus {age} ago: rule and settings may be older than the truth", scene.observer)
    })
}

fn engine(scene: &Scene<'_>) -> String {
    let version = |seen: &Observed| seen.sample.facts.as_ref().map(|facts| facts.version.clone());
    let primary = scene.seen(scene.state.rule.primary).and_then(version);
    let any = || scene.observed.values().find_map(version);
    match primary.or_else(any).or_else(|| scene.state.identity.major.map(|major| major.to_string())) {
        Some(version) => format!("PostgreSQL {version}"),
        None => "PostgreSQL".to_owned(),
    }
}

fn operation(state: &ClusterState) -> Option<(String, String)> {
    let running = state.operations.iter().rev().find(|operation| operation.state == OperationState::Running)?;
    let done = running.steps.iter().filter(|step| step.state == StepState::Done).count();
    let current = running.steps.iter().find(|step| step.state != StepState::Done);
    let name = current.and_then(|step| state.members.get(&step.node)).map_or("?", |member| member.name.as_str());
    let what = match running.kind {
        model::state::OperationKind::RollingRestart => "rolling restart",
    };
    Some((running.id.clone(), format!("{what}: {done} of {} done, now {name}", running.steps.len())))
}

#[cfg(test)]
mod tests;
