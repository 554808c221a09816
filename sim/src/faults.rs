//! Trouble, drawn per seed: each run uses only some kinds, so that their combinations differ from run to run (swarm).

use crate::dice::Dice;
use crate::server::Running;
use crate::world::{Event, World};
use model::CommitMode;

/// One blow.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The server's processes die.
    CrashServer(usize),
    /// The server's processes of the primary die.
    CrashPrimary,
    /// The keeper dies, and is started again after this time.
    CrashKeeper(usize, u64),
    /// The host loses power, for this time.
    CrashHost(usize, u64),
    /// The host of the primary loses power, for this time.
    CrashPrimaryHost(u64),
    /// All hosts lose power, and come back within this time.
    PowerLoss(u64),
    /// The keeper is stopped and goes on after this time.
    FreezeKeeper(usize, u64),
    /// The server is stopped and goes on after this time.
    FreezeServer(usize, u64),
    /// The whole machine stands still for this time.
    FreezeNode(usize, u64),
    /// Links of one node are cut, for this time.
    Isolate(usize, u64),
    /// Links of the primary are cut, for this time.
    IsolatePrimary(u64),
    /// The nodes below and from this one cannot hear each other, for this time.
    Split(usize, u64),
    /// One direction of one link is cut, for this time.
    OneWay(usize, usize, u64),
    /// Messages are lost, in percent.
    Loss(u64),
    /// Messages are slow, up to this many milliseconds.
    Delay(u64),
    /// The store does not answer, for this time.
    StoreDown(u64),
    /// The disk is slow.
    SlowDisk(usize, u64),
    /// All links are whole and quick again.
    NetworkHeals,
    /// A person asks this node for a switchover to that one.
    Switchover(usize, Option<usize>),
    /// A person changes the commit mode.
    Mode(usize, CommitMode),
    /// The store answers again.
    StoreUp,
    /// A person asks this node to make that one, or the best, the primary, and accepts the loss of so much log.
    Forced(usize, Option<usize>, u64),
    /// A person has the spare node join, through this node.
    Join(usize),
    /// A person has this node remove that one.
    Leave(usize, usize),
    /// The civil time of a node jumps: it is wrong by so many milliseconds from now on.
    WallClock(usize, i64),
}

/// The faults of a run, with their times.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In order of time.
    pub faults: Vec<(u64, Fault)>,
}

const KINDS: usize = 17;
/// In the wider world.
const KINDS_WIDE: usize = 19;

impl Plan {
    /// Draws a plan for `nodes` nodes, with faults up to `end`. `timed` says that leases decide: then a frozen machine
    /// is beyond what is promised. `only` narrows the kinds, where it is not empty.
    pub fn draw(dice: &mut Dice, nodes: usize, end: u64, timed: bool, only: &[usize], wide: bool) -> Plan {
        let all = if wide { KINDS_WIDE } else { KINDS };
        let mut kinds: Vec<usize> = (0..all).filter(|_| dice.percent(40)).collect();
        if !only.is_empty() {
            kinds = only.to_vec();
        }
        if kinds.is_empty() {
            kinds.push(dice.draw() as usize % KINDS);
        }
        let pause = dice.between(150, 2_500);
        let mut faults = Vec::new();
        let mut at = 2_500;
        while at < end {
            let kind = dice.pick(&kinds);
            if !(timed && kind == 8) {
                faults.push((at, draw(dice, kind, nodes)));
            }
            at += dice.between(1, pause * 2);
        }
        Plan { faults }
    }

    /// Adds some joins and removals, the same request through several nodes: some of them are out of reach.
    pub fn members_move(&mut self, dice: &mut Dice, nodes: usize, end: u64) {
        for _ in 0..dice.between(2, 12) {
            let (at, other) = (dice.between(500, end), dice.draw() as usize % nodes);
            let join = dice.percent(65);
            let node = dice.draw() as usize % nodes;
            self.faults.push((at, if join { Fault::Join(node) } else { Fault::Leave(node, other) }));
        }
    }
}

fn draw(dice: &mut Dice, kind: usize, nodes: usize) -> Fault {
    let node = dice.draw() as usize % nodes;
    let other = dice.draw() as usize % nodes;
    let short = dice.between(50, 1_500);
    let long = dice.between(500, 6_000);
    match kind {
        0 => Fault::CrashServer(node),
        1 => Fault::CrashPrimary,
        2 => Fault::CrashKeeper(node, short),
        3 => Fault::CrashHost(node, long),
        4 => Fault::CrashPrimaryHost(long),
        5 => Fault::PowerLoss(long),
        6 => Fault::FreezeKeeper(node, long),
        7 => Fault::FreezeServer(node, long),
        8 => Fault::FreezeNode(node, long),
        9 => Fault::Isolate(node, long),
        10 => Fault::IsolatePrimary(long),
        11 => Fault::Split(node, long),
        12 => Fault::OneWay(node, other, long),
        13 if dice.percent(50) => Fault::Loss(dice.between(1, 30)),
        13 => Fault::NetworkHeals,
        14 if dice.percent(30) => Fault::Delay(dice.between(5, 700)),
        14 if dice.percent(50) => Fault::SlowDisk(node, dice.between(5, 300)),
        14 => Fault::NetworkHeals,
        15 => Fault::StoreDown(long),
        17 => Fault::Forced(node, dice.percent(50).then_some(other), dice.pick(&[0, 20, 200, u64::MAX])),
        18 => Fault::WallClock(node, dice.between(0, 600_000) as i64 - 300_000),
        _ if dice.percent(15) => Fault::Mode(node, dice.pick(&CommitMode::ALL[1..])),
        _ => Fault::Switchover(node, dice.percent(60).then_some(other)),
    }
}

/// Lets a fault happen.
pub(crate) fn strike(world: &mut World, fault: Fault) {
    world.say(|| format!("fault: {fault:?}"));
    let primary = world.store.state.rule.primary.0 as usize - 1;
    let now = world.now;
    match fault {
        Fault::CrashServer(node) => world.kill_server(node),
        Fault::CrashPrimary => world.kill_server(primary),
        Fault::CrashKeeper(node, span) => {
            world.nodes[node].keeper = None;
            world.after(span, Event::KeeperStarts(node));
        }
        Fault::CrashHost(node, span) => crash_host(world, node, span),
        Fault::CrashPrimaryHost(span) => crash_host(world, primary, span),
        Fault::PowerLoss(span) => {
            for node in 0..world.nodes.len() {
                let span = world.dice.between(50, span);
                crash_host(world, node, span);
            }
        }
        Fault::FreezeKeeper(node, span) => world.nodes[node].keeper_frozen_until = now + span,
        Fault::FreezeServer(node, span) => {
            world.nodes[node].server.frozen_since = now;
            world.nodes[node].server.frozen_until = now + span;
        }
        Fault::FreezeNode(node, span) => world.nodes[node].frozen_until = now + span,
        Fault::Isolate(node, span) => isolate(world, node, span),
        Fault::IsolatePrimary(span) => isolate(world, primary, span),
        Fault::Split(at, span) => {
            for a in 0..at {
                for b in at..world.nodes.len() {
                    world.network.set(a, b, true);
                    world.network.set(b, a, true);
                }
            }
            heals(world, span);
        }
        Fault::OneWay(a, b, span) => {
            world.network.set(a, b, true);
            heals(world, span);
        }
        Fault::Loss(percent) => world.network.loss_percent = percent,
        Fault::Delay(most) => world.network.delay_max = most,
        Fault::StoreDown(span) => {
            world.store.up = false;
            later(world, span, Fault::StoreUp);
        }
        Fault::StoreUp => world.store.up = true,
        Fault::SlowDisk(node, most) => world.nodes[node].fsync_max = most,
        Fault::NetworkHeals => world.network.heal(),
        Fault::Switchover(node, to) => world.ask_switchover(node, to),
        Fault::Mode(node, mode) => world.ask_mode(node, mode),
        Fault::Forced(node, to, most) => world.ask_forced(node, to, most),
        Fault::Join(node) => world.ask_join(node),
        Fault::Leave(node, other) => world.ask_leave(node, other),
        Fault::WallClock(node, offset) => world.nodes[node].wall_offset = offset,
    }
}

fn later(world: &mut World, span: u64, fault: Fault) {
    let index = world.plan.faults.len();
    world.plan.faults.push((world.now + span, fault));
    world.after(span, Event::Fault(index));
}

fn heals(world: &mut World, span: u64) {
    later(world, span, Fault::NetworkHeals);
}

fn crash_host(world: &mut World, node: usize, span: u64) {
    if world.nodes[node].up {
        world.host_dies(node);
        world.after(span, Event::HostStarts(node));
    }
}

fn isolate(world: &mut World, node: usize, span: u64) {
    for other in 0..world.nodes.len() {
        world.network.set(node, other, true);
        world.network.set(other, node, true);
    }
    heals(world, span);
}

/// Ends all trouble.
pub(crate) fn heal(world: &mut World) {
    world.healed = true;
    world.network.heal();
    world.store.up = true;
    for node in 0..world.nodes.len() {
        let it = &mut world.nodes[node];
        it.frozen_until = 0;
        it.keeper_frozen_until = 0;
        it.server.frozen_until = 0;
        it.fsync_max = 5;
        if !it.up {
            world.after(1, Event::HostStarts(node));
        } else if it.keeper.is_none() {
            world.after(1, Event::KeeperStarts(node));
        }
    }
    world.say(|| "all faults are over".to_owned());
}

/// Nodes with a server that takes writes.
pub(crate) fn primaries(world: &World) -> usize {
    world.nodes.iter().filter(|node| node.server.running == Running::Primary).count()
}
