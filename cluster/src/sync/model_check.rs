//! A model of the world around `next_step`, and a checker that knows nothing of its reasoning: replicas receive,
//! the server acknowledges as early as its list allows, everything may crash between any two steps, and after every
//! event each legal set of recruits must hold every acknowledged commit, and leave the old primary unable to get
//! another one acknowledged.

use super::*;
use model::Epoch;
use std::collections::HashSet;

const PRIMARY: NodeId = NodeId(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Link {
    Streaming,
    JustLost,
    LongLost,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Replica {
    flushed: u64,
    link: Link,
    eligible: bool,
    /// It has a database that could be recruited: not one being rebuilt.
    whole: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
struct List {
    acks: u32,
    nodes: BTreeSet<NodeId>,
    strangers: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    position: u64,
    acknowledged: u64,
    replicas: Vec<Replica>,
    /// Written, perhaps not yet taken up.
    file: List,
    /// In force.
    running: List,
    voters: BTreeSet<NodeId>,
    acks: u32,
    recruit_quorum: u32,
    mode: u8,
    policy: usize,
    /// The keeper's memory.
    floor: BTreeMap<NodeId, u64>,
    keeper_fresh: bool,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Write,
    Flush(usize),
    Link(usize, Link),
    Eligible(usize),
    /// Its data is lost or discarded.
    Wiped(usize),
    /// A base backup that began after that is complete and consistent.
    Cloned(usize),
    Policy(usize),
    KeeperStep,
    /// The keeper dies after it wrote the file and before the server took it up.
    KeeperDiesInMidStep,
    KeeperRestarts,
    ServerRestarts,
}

/// A keeper that neglects one of its duties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Neglect {
    Nothing,
    KeepsFloors,
    DoesNotReload,
}

fn node(index: usize) -> NodeId {
    NodeId(index as u64 + 2)
}

fn policies() -> Vec<Settings> {
    let mut all = Vec::new();
    for commit_mode in CommitMode::ALL {
        for (strict, sync_from_other_site) in [(false, false), (true, false), (false, true), (true, true)] {
            all.push(Settings { commit_mode, strict, sync_from_other_site, ..Settings::default() });
        }
    }
    all
}

fn site(index: usize) -> Site {
    // The primary and the replicas of even number are in the east.
    if index.is_multiple_of(2) { "east" } else { "west" }.parse().expect("valid")
}

impl World {
    fn new(replicas: usize) -> World {
        World {
            position: 1,
            acknowledged: 0,
            replicas: vec![Replica { flushed: 0, link: Link::LongLost, eligible: true, whole: true }; replicas],
            file: List::default(),
            running: List::default(),
            voters: BTreeSet::new(),
            acks: 0,
            recruit_quorum: 0,
            mode: 0,
            policy: 0,
            floor: BTreeMap::new(),
            keeper_fresh: true,
        }
    }

    fn rule(&self) -> Rule {
        Rule {
            epoch: Epoch(1),
            primary: PRIMARY,
            voters: self.voters.clone(),
            acks: self.acks,
            recruit_quorum: self.recruit_quorum,
            mode: CommitMode::ALL[usize::from(self.mode)],
            version: 0,
        }
    }

    fn server(&self) -> ServerSync {
        ServerSync {
            acks: self.running.acks,
            list: self.running.nodes.clone(),
            raw: String::new(),
            strangers: self.running.strangers,
        }
    }

    fn step(&self, policies: &[Settings], flaw: Flaw) -> SyncStep {
        let rule = self.rule();
        let facts = |(index, replica): (usize, &Replica)| VoterFacts {
            node: node(index),
            streaming: replica.link == Link::Streaming,
            flushed: replica.whole.then_some(Lsn(replica.flushed)),
            unreachable_ms: match replica.link {
                Link::Streaming => 0,
                Link::JustLost => 1,
                Link::LongLost => 1_000_000,
            },
            site: site(index),
            eligible: replica.eligible,
        };
        let view = SyncView {
            rule: &rule,
            server: self.server(),
            primary_position: Lsn(self.position),
            voters: self.replicas.iter().enumerate().map(facts).collect(),
            settings: &policies[self.policy],
            primary_site: site(0),
            data_nodes: self.replicas.len() + 1,
            floor: self.floor.iter().map(|(node, floor)| (*node, Lsn(*floor))).collect(),
        };
        plan(&view, flaw)
    }

    fn apply(&mut self, event: Event, policies: &[Settings], flaw: Flaw, neglect: Neglect) {
        match event {
            Event::Write => self.position += 1,
            Event::Flush(index) => {
                let replica = &mut self.replicas[index];
                if replica.link == Link::Streaming {
                    replica.flushed = (replica.flushed + 1).min(self.position);
                }
            }
            Event::Link(index, link) => {
                let replica = &mut self.replicas[index];
                replica.link = if replica.whole { link } else { Link::LongLost };
            }
            Event::Wiped(index) => {
                let replica = &mut self.replicas[index];
                *replica = Replica { flushed: 0, link: Link::LongLost, whole: false, ..*replica };
            }
            Event::Cloned(index) => {
                let replica = &mut self.replicas[index];
                if !replica.whole {
                    *replica = Replica { flushed: self.position, whole: true, ..*replica };
                }
            }
            Event::Eligible(index) => self.replicas[index].eligible ^= true,
            Event::Policy(policy) => self.policy = policy,
            Event::KeeperStep => self.keeper_step(policies, flaw, neglect, true),
            Event::KeeperDiesInMidStep => self.keeper_step(policies, flaw, neglect, false),
            Event::KeeperRestarts => self.forget(),
            Event::ServerRestarts => self.running = self.file.clone(),
        }
        self.acknowledge();
    }

    fn forget(&mut self) {
        self.floor.clear();
        self.keeper_fresh = true;
    }

    fn keeper_step(&mut self, policies: &[Settings], flaw: Flaw, neglect: Neglect, lives: bool) {
        if self.keeper_fresh && neglect != Neglect::DoesNotReload {
            self.running = self.file.clone();
        }
        self.keeper_fresh = false;
        match self.step(policies, flaw) {
            SyncStep::WriteRule(rule) => {
                self.voters = rule.voters;
                self.acks = rule.acks;
                self.recruit_quorum = rule.recruit_quorum;
                self.mode = CommitMode::ALL.iter().position(|mode| *mode == rule.mode).expect("a mode") as u8;
            }
            SyncStep::WriteServer { acks, list } => {
                self.file = List { acks, nodes: list, strangers: false };
                if lives {
                    // Up to the moment of the change the old list acknowledges.
                    self.acknowledge();
                    self.running = self.file.clone();
                    if neglect != Neglect::KeepsFloors {
                        self.floor.clear();
                    }
                }
            }
            SyncStep::WaitConfirmed { node, floor } => {
                self.floor.entry(node).or_insert(floor.0);
            }
            SyncStep::NothingToDo => {}
        }
        if !lives {
            self.forget();
        }
    }

    /// What the server acknowledges at the latest now: all that it may.
    fn acknowledge(&mut self) {
        let mut flushed: Vec<u64> =
            self.running.nodes.iter().map(|node| self.replicas[node.0 as usize - 2].flushed).collect();
        flushed.sort_unstable_by(|a, b| b.cmp(a));
        let may = match self.running.acks {
            0 => self.position,
            acks => flushed.get(acks as usize - 1).copied().unwrap_or(0),
        };
        self.acknowledged = self.acknowledged.max(may);
    }

    /// The checker: by trying every legal set of recruits, not by any formula.
    fn check(&self) -> Result<(), String> {
        if self.acks == 0 {
            return Ok(());
        }
        let voters: Vec<NodeId> = self.voters.iter().copied().collect();
        for bits in 0u32..1 << voters.len() {
            if bits.count_ones() < self.recruit_quorum {
                continue;
            }
            let recruits: BTreeSet<NodeId> =
                (0..voters.len()).filter(|index| bits & 1 << index != 0).map(|index| voters[index]).collect();
            if recruits.iter().any(|node| !self.replicas[node.0 as usize - 2].whole) {
                continue;
            }
            let best = recruits.iter().map(|node| self.replicas[node.0 as usize - 2].flushed).max().unwrap_or(0);
            if best < self.acknowledged {
                return Err(format!("recruits {recruits:?} hold {best}, acknowledged is {}", self.acknowledged));
            }
            // A server that restarts takes up its file, so that counts as in force too.
            for list in [&self.running, &self.file] {
                if list.nodes.difference(&recruits).count() >= list.acks as usize {
                    return Err(format!("after recruiting {recruits:?}, {list:?} still acknowledges"));
                }
            }
        }
        Ok(())
    }

    /// The formula agrees with the trial. Apart from `check`, so that a flaw must be caught by a loss.
    fn check_sound(&self) -> Result<(), String> {
        self.check()?;
        if invariant_holds(&self.rule(), &self.server()) {
            Ok(())
        } else {
            Err("nothing can be lost, yet the invariant does not hold".to_owned())
        }
    }

    /// Everything heals and stays as it is: it must come to rest soon, with the promise that the mode asks for.
    fn check_comes_to_rest(mut self, policies: &[Settings]) -> Result<(), String> {
        let bound = 3 * self.replicas.len() + 6;
        for _ in 0..bound {
            for replica in &mut self.replicas {
                if replica.link == Link::Streaming {
                    replica.flushed = self.position;
                }
            }
            self.acknowledge();
            self.check_sound()?;
            if self.step(policies, Flaw::None) == SyncStep::NothingToDo && !self.keeper_fresh {
                let kept = self.acks == self.running.acks.min(self.voters.len() as u32);
                return if kept { Ok(()) } else { Err("at rest, but promises too little".to_owned()) };
            }
            self.keeper_step(policies, Flaw::None, Neglect::Nothing, true);
        }
        Err(format!("no rest after {bound} steps: {:?}", self.step(policies, Flaw::None)))
    }
}

/// A small generator of our own, so that a walk is named by its seed alone.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % sides as u64) as usize
    }

    fn event(&mut self, replicas: usize, policies: usize) -> Event {
        let link = [Link::Streaming, Link::Streaming, Link::JustLost, Link::LongLost];
        match self.roll(42) {
            0..=4 => Event::Write,
            5..=14 => Event::Flush(self.roll(replicas)),
            15..=18 => Event::Link(self.roll(replicas), link[self.roll(4)]),
            19 => Event::Eligible(self.roll(replicas)),
            20 | 21 => Event::Policy(self.roll(policies)),
            22 => Event::KeeperDiesInMidStep,
            23 => Event::KeeperRestarts,
            24 => Event::ServerRestarts,
            25 => Event::Wiped(self.roll(replicas)),
            26 => Event::Cloned(self.roll(replicas)),
            _ => Event::KeeperStep,
        }
    }
}

/// Walks at random; the first break found, with its seed and events.
fn search(walks: u64, flaw: Flaw, neglect: Neglect) -> Option<String> {
    let policies = policies();
    for seed in 0..walks {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5eed);
        let replicas = 1 + dice.roll(4);
        let mut world = World::new(replicas);
        let mut events = Vec::new();
        for _ in 0..120 {
            let event = dice.event(replicas, policies.len());
            events.push(event);
            world.apply(event, &policies, flaw, neglect);
            let sound = flaw == Flaw::None && neglect == Neglect::Nothing;
            if let Err(broken) = if sound { world.check_sound() } else { world.check() } {
                return Some(format!("seed {seed}: {broken}\n{world:?}\n{events:?}"));
            }
        }
        if flaw == Flaw::None && neglect == Neglect::Nothing {
            let mut healed = world.clone();
            for replica in &mut healed.replicas {
                replica.link = Link::Streaming;
                replica.whole = true;
            }
            // Also with some replicas lost for good, where nothing waits for them.
            world.policy = world.policy / 4 * 4;
            for replica in &mut world.replicas {
                if replica.link == Link::JustLost {
                    replica.link = Link::LongLost;
                }
            }
            for (what, calm) in [("healed", healed), ("with losses", world)] {
                if let Err(broken) = calm.check_comes_to_rest(&policies) {
                    return Some(format!("seed {seed}, {what}: {broken}\n{events:?}"));
                }
            }
        }
    }
    None
}

#[test]
fn no_walk_finds_a_promotion_that_misses_an_acknowledged_commit() {
    assert_eq!(search(4_000, Flaw::None, Neglect::Nothing), None);
}

#[test]
fn every_way_to_get_it_wrong_is_caught() {
    for flaw in
        [Flaw::ServerFirst, Flaw::CountUnconfirmed, Flaw::DropUnion, Flaw::QuorumWithoutWinner, Flaw::KeepPromise]
    {
        assert!(search(4_000, flaw, Neglect::Nothing).is_some(), "{flaw:?} was not caught");
    }
    for neglect in [Neglect::KeepsFloors, Neglect::DoesNotReload] {
        assert!(search(200_000, Flaw::None, neglect).is_some(), "{neglect:?} was not caught");
    }
}

/// All states, not samples of them: two replicas, two positions, two policies (no acknowledgements at all come
/// about when both replicas are lost), every event at every point.
#[test]
fn no_state_of_a_small_world_is_unsafe() {
    let policies: Vec<Settings> = [CommitMode::SemiSync, CommitMode::Sync]
        .map(|commit_mode| Settings { commit_mode, ..Settings::default() })
        .into();
    let mut events =
        vec![Event::Write, Event::KeeperStep, Event::KeeperDiesInMidStep, Event::KeeperRestarts, Event::ServerRestarts];
    events.extend((0..policies.len()).map(Event::Policy));
    for index in 0..2 {
        events.extend([Event::Flush(index), Event::Link(index, Link::Streaming), Event::Link(index, Link::LongLost)]);
    }
    let mut seen = HashSet::new();
    let mut open = vec![World::new(2)];
    while let Some(world) = open.pop() {
        for event in &events {
            let mut next = world.clone();
            next.apply(*event, &policies, Flaw::None, Neglect::Nothing);
            if next.position > 2 || !seen.insert(next.clone()) {
                continue;
            }
            if let Err(broken) = next.check_sound() {
                panic!("{broken}\nafter {event:?}\nfrom {world:?}");
            }
            open.push(next);
        }
    }
    assert!(seen.len() > 10_000, "only {} states were seen", seen.len());
}
