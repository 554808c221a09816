//! How safe commits are: what the server waits for, what a dying primary would take with it, and how many more nodes
//! may be lost in the worst order before writes stop or data is lost.

use super::{PrimaryStanding, Replication, Scene, words};
use crate::naming::application_name;
use model::names::NodeId;
use model::settings::CommitMode;
use model::state::{Member, ReplicaKind, Stage};
use model::status::Durability;
use model::units::Millis;
use std::collections::BTreeSet;

/// Losses beyond this many are not counted: the consensus group has at most seven voters.
const LOSSES_MAX: usize = 3;

/// What the running server waits for, read from its `synchronous_standby_names`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waits {
    /// How many of `names` must confirm a commit.
    pub acks: u32,
    /// The `application_name`s.
    pub names: BTreeSet<String>,
    /// Whether any of the names may do (`ANY`), as we write it; otherwise earlier names come first.
    pub any: bool,
}

/// Reads `synchronous_standby_names` as PostgreSQL does, in all its forms.
pub(crate) fn parse_waits(raw: &str) -> Waits {
    let raw = raw.trim();
    if raw.is_empty() {
        return Waits::default();
    }
    let (head, list) = match raw.split_once('(') {
        Some((head, list)) => (head.trim(), list.trim_end().trim_end_matches(')')),
        None => ("FIRST 1", raw),
    };
    let (kind, count) = head.rsplit_once(char::is_whitespace).unwrap_or(("FIRST", head));
    let unquoted = |name: &str| {
        let name = name.trim();
        match name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
            Some(inner) => inner.replace("\"\"", "\""),
            None => name.to_owned(),
        }
    };
    Waits {
        acks: count.trim().parse().unwrap_or(1),
        names: list.split(',').map(unquoted).filter(|name| !name.is_empty()).collect(),
        any: kind.trim().eq_ignore_ascii_case("any"),
    }
}

/// What the primary's server waits for now, if that is known.
pub(crate) fn waits(scene: &Scene<'_>) -> Option<Waits> {
    scene.current_facts(scene.state.rule.primary).map(|facts| parse_waits(&facts.synchronous_standby_names))
}

/// The members, other than the primary, that count for the commit mode.
pub(crate) fn eligible<'a>(scene: &Scene<'a>) -> impl Iterator<Item = &'a Member> {
    scene.replicas().filter(|member| member.may_vote_for_commits() && matches!(member.stage, Stage::Active))
}

/// Replicas that acknowledge commits now: listed by the server and streaming. One whose keeper fell silent just now
/// counts while the server still sends to it: perhaps only its keeper died, and "commits wait" must not be a guess.
pub(crate) fn acknowledging(scene: &Scene<'_>, replication: &Replication, waits: &Waits) -> BTreeSet<NodeId> {
    let senders =
        scene.current_facts(scene.state.rule.primary).map(|facts| facts.senders.as_slice()).unwrap_or_default();
    let confirms = |member: &Member, name: &str| {
        let streams = senders.iter().any(|sender| sender.application_name == name && sender.state == "streaming");
        streams && (!scene.keeper_up(member) || replication.links.get(&member.id).is_some_and(|link| link.up))
    };
    scene
        .replicas()
        .map(|member| (member, application_name(scene.salt, member)))
        .filter(|(member, name)| waits.names.contains(name) && confirms(member, name))
        .map(|(member, _)| member.id)
        .collect()
}

/// May be made primary without asking anybody: alive, fed until now, and meant for it.
fn promotable(scene: &Scene<'_>, replication: &Replication, member: &Member) -> bool {
    matches!(member.stage, Stage::Active)
        && member.priority > 0
        && member.kind != ReplicaKind::Delayed
        && scene.keeper_up(member)
        && scene.current_facts(member.id).is_some_and(|facts| facts.in_recovery)
        && replication.links.contains_key(&member.id)
}

/// How many acknowledgements a mode asks for, with `eligible` replicas that count.
fn wanted(mode: CommitMode, eligible: usize) -> u32 {
    let eligible = u32::try_from(eligible).unwrap_or(u32::MAX);
    match mode {
        CommitMode::Async => 0,
        CommitMode::SemiSync => 1,
        // A majority of eligible + 1 data nodes, less the primary itself.
        CommitMode::Quorum => eligible.div_ceil(2),
        CommitMode::Sync => eligible.max(1),
    }
}

/// Judges the durability of commits.
pub(crate) fn judge(scene: &Scene<'_>, replication: &Replication, standing: &PrimaryStanding) -> Durability {
    let (rule, settings) = (&scene.state.rule, &scene.state.settings);
    let server = waits(scene);
    let voter_names: BTreeSet<String> = rule
        .voters
        .iter()
        .filter_map(|voter| scene.state.members.get(voter))
        .map(|member| application_name(scene.salt, member))
        .collect();
    // A rule that lists nobody has nobody take over, also where commits wait for nobody.
    let fed = |member: &Member| replication.links.get(&member.id).is_some_and(|link| link.up);
    let named = !rule.voters.is_empty() || !eligible(scene).any(fed);
    let in_force = server.as_ref().is_some_and(|waits| {
        named
            && waits.acks == rule.acks
            && (rule.acks == 0 || waits.any || waits.acks as usize == waits.names.len())
            && (rule.acks == 0 || waits.names == voter_names)
    });
    let acks = server.as_ref().map_or(rule.acks, |waits| waits.acks);
    let loss = loss(scene, replication, acks.min(rule.acks));
    let listed = server.as_ref().map_or(rule.voters.len(), |waits| waits.names.len());
    let members = rule.voters.iter().filter_map(|voter| scene.state.members.get(voter));
    Durability {
        mode: settings.commit_mode,
        acks,
        acks_wanted: wanted(settings.commit_mode, eligible(scene).count()),
        voters: members.map(|member| member.name.to_string()).collect(),
        strict: settings.strict,
        in_force,
        failures_tolerated: failures_tolerated(scene, replication, standing, acks, in_force),
        loss_now_bytes: loss.bytes,
        loss_now_seconds: loss.seconds,
        sentence: format!("data loss if the primary died now: {}", loss.words(acks, listed)),
    }
}

/// What would be lost with the primary.
struct Loss {
    bytes: Option<u64>,
    seconds: Option<f64>,
    /// There is no replica that could take over at all.
    nobody: bool,
}

impl Loss {
    fn words(&self, acks: u32, listed: usize) -> String {
        match (self.bytes, self.seconds) {
            (Some(0), _) if acks > 0 => format!("0 ({acks} of {listed} synchronous)"),
            _ if self.nobody => "everything (no other copy)".to_owned(),
            (Some(bytes), Some(seconds)) => {
                format!("~{} ({})", words::span(Millis((seconds * 1000.0) as u64)), words::bytes(bytes))
            }
            (Some(bytes), None) => format!("at least {}", words::bytes(bytes)),
            (None, _) => "unknown".to_owned(),
        }
    }
}

fn loss(scene: &Scene<'_>, replication: &Replication, acks: u32) -> Loss {
    if acks > 0 {
        // Commits are held until a voter has them: what no voter has was never acknowledged.
        return Loss { bytes: Some(0), seconds: Some(0.0), nobody: false };
    }
    let candidates: Vec<&Member> = scene.replicas().filter(|member| promotable(scene, replication, member)).collect();
    let lags = || candidates.iter().filter_map(|member| replication.lags.get(&member.id));
    Loss {
        bytes: lags().filter_map(|lag| lag.receive_bytes).min(),
        seconds: lags().filter_map(|lag| lag.seconds).min_by(f64::total_cmp),
        nobody: candidates.is_empty(),
    }
}

/// What remains after losses is judged with these facts, found once.
struct Strength<'a> {
    scene: &'a Scene<'a>,
    acks: u32,
    /// Server and rule agree.
    in_force: bool,
    /// Confirm commits now.
    acknowledging: BTreeSet<NodeId>,
    /// Voters of the rule that can be recruited.
    recruitable: BTreeSet<NodeId>,
    /// Of these, who may become primary.
    candidates: BTreeSet<NodeId>,
    /// Consensus voters that answer.
    consensus_alive: BTreeSet<NodeId>,
    primary_up: bool,
}

impl Strength<'_> {
    fn consensus_after(&self, lost: &BTreeSet<NodeId>) -> bool {
        let voters = self.scene.consensus.voters.len();
        if voters == 0 {
            return self.scene.consensus.up;
        }
        let left = self.consensus_alive.iter().filter(|voter| !lost.contains(voter)).count();
        self.scene.consensus.up && left > voters / 2
    }

    /// Whether writes go on, or begin again by themselves, with nothing lost, once these nodes are gone.
    fn survives(&self, lost: &BTreeSet<NodeId>) -> bool {
        let (rule, settings) = (&self.scene.state.rule, &self.scene.state.settings);
        let left = |set: &BTreeSet<NodeId>| set.iter().filter(|id| !lost.contains(id)).count();
        let consensus = self.consensus_after(lost);
        if !lost.contains(&rule.primary) {
            let enough = left(&self.acknowledging) >= self.acks as usize;
            // Without strict, too few acknowledgements are lowered, which takes a decision of consensus. Losing the
            // majority as well ends every later repair, so it counts as not survived.
            return self.primary_up && consensus && (enough || !settings.strict);
        }
        let recruited = left(&self.recruitable);
        let safe = self.acks > 0 && self.in_force && recruited >= (rule.recruit_quorum as usize).max(1);
        // The new primary itself acknowledges nothing.
        let enough = !settings.strict || recruited > rule.acks as usize;
        consensus && safe && enough && left(&self.candidates) > 0
    }
}

/// How many more nodes may be lost at once, whichever they are; -1 when writes are not taken even now.
fn failures_tolerated(
    scene: &Scene<'_>,
    replication: &Replication,
    standing: &PrimaryStanding,
    acks: u32,
    in_force: bool,
) -> i32 {
    let acknowledging = waits(scene).map(|waits| acknowledging(scene, replication, &waits)).unwrap_or_default();
    let waiting = acks as usize > acknowledging.len() && matches!(standing, PrimaryStanding::Up);
    if !standing.is_up() || waiting {
        return -1;
    }
    let members = &scene.state.members;
    let fed = |id: &NodeId| replication.links.get(id).is_some_and(|link| link.up);
    let recruitable: BTreeSet<NodeId> = scene.state.rule.voters.iter().copied().filter(fed).collect();
    let alive = |id: &NodeId| members.get(id).is_some_and(|member| scene.keeper_up(member));
    let strength = Strength {
        scene,
        acks,
        in_force,
        candidates: recruitable
            .iter()
            .copied()
            .filter(|id| members.get(id).is_some_and(|member| promotable(scene, replication, member)))
            .collect(),
        recruitable: recruitable.into_iter().filter(alive).collect(),
        acknowledging,
        consensus_alive: scene.consensus.voters.iter().copied().filter(alive).collect(),
        primary_up: standing.is_up(),
    };
    let nodes: Vec<NodeId> = members.keys().copied().filter(alive).collect();
    let mut tolerated = 0;
    for count in 1..=LOSSES_MAX.min(nodes.len()) {
        if !every_loss(&nodes, count, &mut BTreeSet::new(), &|lost| strength.survives(lost)) {
            break;
        }
        tolerated += 1;
    }
    tolerated
}

/// Whether `survives` holds for every choice of `count` of `nodes` added to `lost`.
fn every_loss(
    nodes: &[NodeId],
    count: usize,
    lost: &mut BTreeSet<NodeId>,
    survives: &dyn Fn(&BTreeSet<NodeId>) -> bool,
) -> bool {
    if count == 0 {
        return survives(lost);
    }
    // Depth is at most LOSSES_MAX.
    nodes.iter().enumerate().all(|(index, node)| {
        lost.insert(*node);
        let sound = every_loss(&nodes[index + 1..], count - 1, lost, survives);
        lost.remove(node);
        sound
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_waits_for_is_read_in_every_form_postgresql_knows() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let cases = [
            ("", 0, names(&[]), false),
            ("ANY 1 (\"stemma_n2_ab\",\"stemma_n3_cd\")", 1, names(&["stemma_n2_ab", "stemma_n3_cd"]), true),
            ("any 2 (a, b, c)", 2, names(&["a", "b", "c"]), true),
            ("FIRST 2 (a,b)", 2, names(&["a", "b"]), false),
            ("2 (a, b)", 2, names(&["a", "b"]), false),
            ("a, b", 1, names(&["a", "b"]), false),
            ("*", 1, names(&["*"]), false),
        ];
        for (raw, acks, names, any) in cases {
            assert_eq!(parse_waits(raw), Waits { acks, names, any }, "{raw:?}");
        }
    }

    #[test]
    fn modes_ask_for_what_they_promise() {
        let asked = |mode| [1, 2, 3, 4].map(|eligible| wanted(mode, eligible));
        assert_eq!(asked(CommitMode::Async), [0, 0, 0, 0]);
        assert_eq!(asked(CommitMode::SemiSync), [1, 1, 1, 1]);
        assert_eq!(asked(CommitMode::Quorum), [1, 1, 2, 2]);
        assert_eq!(asked(CommitMode::Sync), [1, 2, 3, 4]);
    }

    #[test]
    fn every_choice_of_losses_is_tried() {
        let nodes = [1, 2, 3, 4].map(NodeId);
        let tried = std::cell::RefCell::new(BTreeSet::new());
        assert!(every_loss(&nodes, 2, &mut BTreeSet::new(), &|lost| tried.borrow_mut().insert(lost.clone())));
        assert_eq!(tried.borrow().len(), 6);
        let not_the_fourth = |lost: &BTreeSet<NodeId>| !lost.contains(&NodeId(4));
        assert!(!every_loss(&nodes, 2, &mut BTreeSet::new(), &not_the_fourth));
    }
}
