//! One run: a cluster and its troubles drawn from a seed, then healing, then the verdict.

use crate::checks::whole;
use crate::dice::Dice;
use crate::faults::{self, Plan};
use crate::mutant::Mutant;
use crate::server::{Disk, Entry, Server};
use crate::store::Store;
use crate::world::{Node, World, id};
use cluster::admission::new_cluster;
use cluster::failover::ledger::Ledger;
use cluster::sync::{ServerSync, acks_asked};
use model::settings::{Size, Span};
use model::state::{LineageEntry, Stage};
use model::{
    ClusterId, ClusterState, CommitMode, Epoch, Member, Millis, ReplicaKind, Settings, Site, Timeline, WallTime,
};
use std::collections::BTreeSet;

/// The whole cluster must be at rest this long after the last fault.
pub const HEAL_MAX: u64 = 150_000;

/// Seeds from here on draw a wider world: sites, priorities, bounds of loss, two nodes, forced attempts, wrong civil time.
/// A seed alone says what its run is, so those that once failed before there was more to draw stay what they were.
pub const WIDE_FROM: u64 = 1_000_000_000;

/// Seeds from here on may also have members come and go.
pub const MEMBERS_FROM: u64 = 3_000_000_000;

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The property that broke.
    pub broken: Option<String>,
    /// Commits acknowledged.
    pub acknowledged: u64,
    /// Changes of primary completed; of those, planned; undone; taken over.
    pub failovers: u64,
    /// See above.
    pub switchovers: u64,
    /// See above.
    pub undone: u64,
    /// See above.
    pub superseded: u64,
    /// Commits lost by a mode that promises nothing, or because a person accepted it.
    pub lost_unpromised: u64,
    /// Simulated time.
    pub simulated_ms: u64,
    /// Time from the last fault until the cluster was whole.
    pub healed_ms: u64,
    /// The story, if asked for.
    pub trace: Vec<String>,
}

fn member(index: usize, witness: bool) -> Member {
    let name = format!("n{}", index + 1);
    Member {
        id: id(index),
        name: name.parse().expect("a valid name"),
        witness,
        kind: ReplicaKind::Hot,
        apply_delay_ms: 0,
        upstream: None,
        site: "here".parse().expect("a valid site"),
        priority: 100,
        peer_address: name.clone(),
        api_address: name.clone(),
        postgres_host: name.clone(),
        postgres_port: if witness { 0 } else { 5432 },
        key_fingerprint: name,
        next_key_fingerprint: None,
        certificate_order: 0,
        stage: Stage::Active,
        joined_at: WallTime(0),
    }
}

fn first_state(dice: &mut Dice, data: usize, witnesses: usize, mode: Option<CommitMode>) -> ClusterState {
    let modes = [CommitMode::Async, CommitMode::SemiSync, CommitMode::SemiSync, CommitMode::Quorum, CommitMode::Sync];
    let settings = Settings {
        commit_mode: mode.unwrap_or_else(|| dice.pick(&modes)),
        strict: dice.percent(25),
        voter_grace: Span(Millis(dice.between(500, 3_000))),
        ..Settings::default()
    };
    let name = "sim".parse().expect("a valid name");
    let mut state = new_cluster(name, ClusterId("sim".to_owned()), member(0, false), settings, WallTime(0));
    for index in 1..data + witnesses {
        state.members.insert(id(index), member(index, index >= data));
    }
    state.rule.voters = (1..data).map(id).collect();
    state.rule.mode = state.settings.commit_mode;
    let count = data as u32 - 1;
    state.rule.acks = acks_asked(state.rule.mode, data, data - 1).min(count);
    state.rule.recruit_quorum = if state.rule.acks == 0 { count } else { count - state.rule.acks + 1 };
    state.lineage.push(LineageEntry { epoch: Epoch(1), timeline: Timeline(1), began_at: None, from: None, xids: None });
    state
}

/// Where nodes are, who is preferred, and what may be lost.
fn widen(dice: &mut Dice, state: &mut ClusterState) {
    let sites = ["here", "there", "elsewhere"].map(|name| name.parse::<Site>().expect("a valid site"));
    if dice.percent(50) {
        for member in state.members.values_mut() {
            member.site = sites[dice.draw() as usize % 3].clone();
        }
        state.settings.failover.cross_site = dice.percent(50);
        // With all the data at one site, and `strict`, it would ask for what cannot be.
        let data: BTreeSet<_> = state.members.values().filter(|it| !it.witness).map(|it| it.site.clone()).collect();
        state.settings.sync_from_other_site = dice.percent(30) && data.len() > 1;
        if dice.percent(30) {
            state.settings.failover.sites.push(sites[1].clone());
        }
    }
    if dice.percent(50) {
        for member in state.members.values_mut() {
            member.priority = dice.pick(&[0, 50, 100, 100, 200]);
        }
    }
    state.settings.failover.loss_max = Size(dice.pick(&[0, 20, 200, 16 << 20]));
}

/// Leaves this data node out of the cluster for now.
fn spare(state: &mut ClusterState, nodes: &mut [Node], index: usize) {
    let member = state.members.remove(&id(index)).expect("it was a member");
    let rule = &mut state.rule;
    rule.voters.remove(&id(index));
    let count = rule.voters.len() as u32;
    rule.acks = acks_asked(rule.mode, count as usize + 1, count as usize).min(count);
    rule.recruit_quorum = if rule.acks == 0 { count } else { count - rule.acks + 1 };
    if rule.acks > 0 {
        nodes[0].disk.sync.acks = rule.acks;
        nodes[0].disk.sync.list = rule.voters.clone();
    }
    for node in nodes.iter_mut() {
        node.known = Some((1, std::rc::Rc::new(state.clone())));
    }
    let it = &mut nodes[index];
    it.spare = Some(member);
    it.disk.whole = false;
    it.disk.log.clear();
    it.disk.flushed = 0;
    it.disk.ledger = Ledger::default();
}

fn first_node(dice: &mut Dice, index: usize, state: &ClusterState) -> Node {
    let mut ledger = Ledger { promised: Epoch(1), ..Ledger::default() };
    ledger.begun.insert(1, Epoch(1));
    let rule = &state.rule;
    let sync = if index == 0 && rule.acks > 0 {
        ServerSync { acks: rule.acks, list: rule.voters.clone(), raw: String::new(), strangers: false }
    } else {
        ServerSync::default()
    };
    let witness = state.members[&id(index)].witness;
    Node {
        up: true,
        frozen_until: 0,
        keeper_frozen_until: 0,
        keeper: None,
        incarnation: 0,
        disk: Disk {
            ledger,
            log: vec![Entry { id: 1, timeline: 1, row: Some(Epoch(1)) }],
            flushed: 1,
            standby: index > 0,
            follows: None,
            sync,
            in_order: true,
            whole: !witness,
            served: Epoch(if index == 0 { 1 } else { 0 }),
            slots: state.members.keys().copied().collect(),
        },
        server: Server::stopped(),
        fence_at: None,
        unpromised: false,
        armed: false,
        wall_offset: 0,
        spare: None,
        clock: (dice.between(1_000_000, 9_000_000), dice.between(0, 9_000) as i64 - 4_500),
        fsync_max: dice.between(0, 8),
        witness,
        known: Some((1, std::rc::Rc::new(state.clone()))),
    }
}

/// How everything stands, for the end of a story that went wrong.
fn stands(world: &World) -> Vec<String> {
    let state = &world.store.state;
    let mut lines = vec![format!("in force: {:?}", state.rule)];
    if let Some(it) = &state.failover {
        lines.push(format!("attempt {}: {:?}, winner {:?}, next {:?}", it.id, it.phase, it.winner, it.next));
        lines.extend(it.unsettled.iter().map(|it| format!("unsettled: {:?}, began {:?}", it.rule, it.began)));
    }
    for (index, node) in world.nodes.iter().enumerate() {
        let disk = &node.disk;
        lines.push(format!(
            "n{}: {:?}, whole {}, log to {} ({} flushed) on timeline {}, {:?}",
            index + 1,
            node.server.running,
            disk.whole,
            disk.log.len(),
            disk.flushed,
            disk.timeline(),
            disk.ledger
        ));
    }
    lines
}

/// Runs one seed.
pub fn run(seed: u64, mutant: Mutant, trace: bool) -> Outcome {
    run_in(seed, mutant, None, trace)
}

/// Runs one seed in a commit mode of the caller's choice: some mistakes show in one mode only.
pub fn run_in(seed: u64, mutant: Mutant, mode: Option<CommitMode>, trace: bool) -> Outcome {
    let mut dice = Dice::new(seed);
    let wide = seed >= WIDE_FROM;
    let shapes = [(3, 0), (3, 0), (3, 0), (2, 1), (4, 1), (5, 0), (2, 0)];
    let (data, witnesses) = dice.pick(if wide { &shapes } else { &shapes[..6] });
    let mut state = first_state(&mut dice, data, witnesses, mode);
    if wide {
        widen(&mut dice, &mut state);
    }
    let mut nodes: Vec<Node> = (0..data + witnesses).map(|index| first_node(&mut dice, index, &state)).collect();
    let mut more = Dice::new(!seed);
    let moves = seed >= MEMBERS_FROM && more.percent(40);
    if moves && data >= 3 && more.percent(70) && !state.settings.sync_from_other_site {
        spare(&mut state, &mut nodes, data - 1);
    }
    let faults_end = dice.between(6_000, 25_000);
    // Without `strict` a mode may fall back to a lease.
    let timed = state.settings.commit_mode == CommitMode::Async || !state.settings.strict;
    let mut plan = Plan::draw(&mut dice, data + witnesses, faults_end, timed, mutant.kinds(), wide);
    if moves {
        plan.members_move(&mut more, data + witnesses, faults_end);
    }
    let shape = format!(
        "{data} data nodes, {witnesses} witnesses, {}, strict {}",
        state.settings.commit_mode, state.settings.strict
    );
    let mut world = World::new(dice, nodes, Store::new(state), plan, mutant, trace);
    world.say(|| shape);
    world.run_until(faults_end);
    faults::heal(&mut world);
    let healed_at = world.now;
    let mut missing = None;
    while world.checks.broken.is_none() {
        world.run_until(world.now + 500);
        missing = whole::missing(&world);
        if missing.is_none() || world.now > healed_at + HEAL_MAX {
            break;
        }
    }
    if let Some(missing) = missing {
        let primaries = faults::primaries(&world);
        world
            .checks
            .break_with(format!("not whole {HEAL_MAX} ms after the last fault: {missing} ({primaries} primaries)"));
    }
    let leader = world.store.state.rule.primary.0 as usize - 1;
    let log = world.nodes[leader].disk.log.clone();
    if world.checks.broken.is_none() {
        world.checks.end(&log);
    }
    if let Some(broken) = world.checks.broken.clone() {
        for line in stands(&world) {
            world.say(|| line);
        }
        world.say(|| format!("BROKEN: {broken}"));
    }
    Outcome {
        seed,
        broken: world.checks.broken.clone(),
        acknowledged: world.checks.acknowledged_count,
        failovers: world.checks.failovers,
        switchovers: world.checks.switchovers,
        undone: world.checks.undone,
        superseded: world.checks.superseded,
        lost_unpromised: world.checks.lost_unpromised,
        simulated_ms: world.now,
        healed_ms: world.now - healed_at,
        trace: world.trace.unwrap_or_default(),
    }
}
