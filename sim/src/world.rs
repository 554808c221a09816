//! The world: nodes, network, store, time. One queue of events; everything that happens is one of them.

use crate::checks::Checks;
use crate::dice::Dice;
use crate::faults::{Fault, Plan};
use crate::keeper::{Heartbeat, Keeper, Op, Write};
use crate::mutant::Mutant;
use crate::network::Network;
use crate::server::{Disk, Entry, Replication, Running, Sender, Server};
use crate::store::Store;
use model::{ClusterState, Epoch, Member, Moment, NodeId};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::rc::Rc;

/// How often keepers and servers look around, in milliseconds.
pub const TICK: u64 = 20;
/// Entries in one replication message, at most.
const BATCH: usize = 200;

/// One machine.
#[derive(Clone, Debug)]
pub struct Node {
    /// The host runs.
    pub up: bool,
    /// Nothing on it runs before this time.
    pub frozen_until: u64,
    /// The keeper process runs no step before this time.
    pub keeper_frozen_until: u64,
    /// The keeper process, while it lives.
    pub keeper: Option<Keeper>,
    /// Counts keeper processes.
    pub incarnation: u64,
    /// What survives.
    pub disk: Disk,
    /// The database server.
    pub server: Server,
    /// The watcher beside the server kills it at this local time, unless told otherwise.
    pub fence_at: Option<Moment>,
    /// The watcher was told that the rule promises nothing, or soon may.
    pub unpromised: bool,
    /// The watcher minds the server although it is not a primary yet: it was told to become one.
    pub armed: bool,
    /// The clock's offset and rate error in parts per million.
    pub clock: (u64, i64),
    /// As which member it may join, where it is none yet.
    pub spare: Option<Member>,
    /// By how much its civil time is wrong, in milliseconds.
    pub wall_offset: i64,
    /// How long an fsync may take.
    pub fsync_max: u64,
    /// Witnesses have no database.
    pub witness: bool,
    /// The node's own copy of the state, with its version: perhaps not the newest.
    pub known: Option<(u64, Rc<ClusterState>)>,
}

impl Node {
    /// The node's own clock.
    pub fn local(&self, now: u64) -> Moment {
        let drift = now as i64 * self.clock.1 / 1_000_000;
        Moment(self.clock.0 + now.wrapping_add_signed(drift))
    }
    /// Anything runs on it.
    pub fn lives(&self, now: u64) -> bool {
        self.up && now >= self.frozen_until
    }
    /// Its server does something.
    pub fn serves(&self, now: u64) -> bool {
        self.lives(now) && now >= self.server.frozen_until
    }
}

/// What can happen.
#[derive(Clone, Debug)]
pub enum Event {
    /// A keeper looks.
    KeeperTick(usize, u64),
    /// A keeper sends heartbeats.
    Heartbeat(usize, u64),
    /// Server, watcher and streams of a node.
    ServerTick(usize),
    /// A keeper's action has ended.
    Done(usize, u64, Box<Op>),
    /// A heartbeat arrives.
    Heard(usize, Rc<Heartbeat>),
    /// A lease was granted: to whom, by whom, epoch, when the request was sent.
    Granted(usize, usize, Epoch, Moment),
    /// A write arrives at the store: from whom, keeper's incarnation, version it was made on, the state.
    Write(usize, u64, u64, Box<Write>),
    /// The store's answer.
    Written(usize, u64),
    /// A keeper learns the state.
    Learn(usize, u64, Rc<ClusterState>),
    /// Replication.
    Replicate(usize, usize, Replication),
    /// A flush of a server's log ends.
    Flush(usize, u64, usize),
    /// A server has started.
    Started(usize, u64),
    /// A server's promotion has happened.
    Promoted(usize, u64, Epoch),
    /// A keeper process starts.
    KeeperStarts(usize),
    /// A host starts.
    HostStarts(usize),
    /// A client writes.
    Client,
    /// Trouble.
    Fault(usize),
}

/// See the module.
pub struct World {
    /// Milliseconds.
    pub now: u64,
    sequence: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: Vec<Option<Event>>,
    free: Vec<usize>,
    /// Chance.
    pub dice: Dice,
    /// Machines; index 0 is node 1.
    pub nodes: Vec<Node>,
    /// Between them.
    pub network: Network,
    /// Consensus.
    pub store: Store,
    /// What is checked.
    pub checks: Checks,
    /// What is done wrong.
    pub mutant: Mutant,
    /// The faults to come.
    pub plan: Plan,
    /// The story, if wanted.
    pub trace: Option<Vec<String>>,
    /// Faults are over.
    pub healed: bool,
    next_id: u32,
    next_connection: u64,
    /// A keepalive's load.
    nothing: Rc<[Entry]>,
    /// Log still arrives at no more than this many milliseconds between client writes.
    pub client_pause: u64,
}

/// The id of the node with this index.
pub fn id(index: usize) -> NodeId {
    NodeId(index as u64 + 1)
}
/// The index of a node.
pub fn index(id: NodeId) -> usize {
    id.0 as usize - 1
}

impl World {
    /// A world at rest, with the cluster's state as given and its nodes as they stand.
    pub fn new(dice: Dice, nodes: Vec<Node>, store: Store, plan: Plan, mutant: Mutant, trace: bool) -> World {
        let count = nodes.len();
        let mut world = World {
            now: 0,
            sequence: 0,
            queue: BinaryHeap::new(),
            events: Vec::new(),
            free: Vec::new(),
            dice,
            network: Network::new(count),
            checks: Checks::new(&store.state),
            nodes,
            store,
            mutant,
            plan,
            trace: trace.then(Vec::new),
            healed: false,
            next_id: 1_000,
            next_connection: 0,
            nothing: Rc::new([]),
            client_pause: 12,
        };
        for node in 0..count {
            world.after(0, Event::KeeperStarts(node));
            world.after(node as u64, Event::ServerTick(node));
        }
        world.after(50, Event::Client);
        for fault in 0..world.plan.faults.len() {
            let at = world.plan.faults[fault].0;
            world.after(at, Event::Fault(fault));
        }
        world
    }

    /// Tells the story.
    pub fn say(&mut self, text: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>7.3} {}", now as f64 / 1000.0, text()));
        }
    }

    /// Something happens later.
    pub fn after(&mut self, delay: u64, event: Event) {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.events[slot] = Some(event);
                slot
            }
            None => {
                self.events.push(Some(event));
                self.events.len() - 1
            }
        };
        self.sequence += 1;
        self.queue.push(Reverse((self.now + delay, self.sequence, slot)));
    }

    /// Sends something, unless it is lost.
    pub fn send(&mut self, from: usize, to: usize, event: Event) {
        if let Some(delay) = self.network.delay(from, to, &mut self.dice) {
            self.after(delay, event);
        }
    }

    /// Runs until `end` or until a property is broken.
    pub fn run_until(&mut self, end: u64) {
        while let Some(Reverse((at, _, slot))) = self.queue.peek().copied() {
            if at > end || self.checks.broken.is_some() {
                break;
            }
            self.queue.pop();
            self.now = at;
            let event = self.events[slot].take().expect("an event waits in its slot");
            self.free.push(slot);
            self.happen(event);
        }
        self.now = self.now.max(end);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::KeeperTick(node, incarnation) => self.keeper_tick(node, incarnation),
            Event::Heartbeat(node, incarnation) => self.heartbeat(node, incarnation),
            Event::ServerTick(node) => self.server_tick(node),
            Event::Done(node, incarnation, op) => self.done(node, incarnation, *op),
            Event::Heard(node, heartbeat) => self.heard(node, &heartbeat),
            Event::Granted(node, by, epoch, sent_at) => self.granted(node, by, epoch, sent_at),
            Event::Write(node, incarnation, version, write) => self.write(node, incarnation, version, *write),
            Event::Written(node, incarnation) => self.written(node, incarnation),
            Event::Learn(node, version, state) => self.learn(node, version, &state),
            Event::Replicate(from, to, message) => self.replicate(from, to, message),
            Event::Flush(node, incarnation, upto) => self.flush_done(node, incarnation, upto),
            Event::Started(node, incarnation) => self.server_started(node, incarnation),
            Event::Promoted(node, incarnation, epoch) => self.server_promoted(node, incarnation, epoch),
            Event::KeeperStarts(node) => self.keeper_starts(node),
            Event::HostStarts(node) => self.host_starts(node),
            Event::Client => self.client(),
            Event::Fault(fault) => {
                let (_, fault) = self.plan.faults[fault];
                if !self.healed {
                    self.strike(fault);
                }
            }
        }
    }

    // ---- clients ----

    fn client(&mut self) {
        let pause = self.dice.between(1, self.client_pause * 2);
        self.after(pause, Event::Client);
        // Direct clients know no epoch: they write to whatever takes writes.
        for node in 0..self.nodes.len() {
            let now = self.now;
            let it = &self.nodes[node];
            if it.server.running == Running::Primary && !it.server.draining && it.serves(now) {
                let id = self.append(node, None);
                let position = self.nodes[node].disk.log.len();
                self.nodes[node].server.waiting.push((position, id));
            }
        }
    }

    /// Appends one entry to a primary's log and has it flushed.
    pub fn append(&mut self, node: usize, row: Option<Epoch>) -> u32 {
        self.next_id += 1;
        let entry = Entry { id: self.next_id, timeline: self.nodes[node].disk.timeline().0, row };
        self.nodes[node].disk.log.push(entry);
        self.flush(node);
        entry.id
    }

    fn flush(&mut self, node: usize) {
        let it = &self.nodes[node];
        let (upto, incarnation) = (it.disk.log.len(), it.server.incarnation);
        let delay = self.dice.between(0, self.nodes[node].fsync_max);
        self.after(delay, Event::Flush(node, incarnation, upto));
    }

    fn flush_done(&mut self, node: usize, incarnation: u64, upto: usize) {
        let now = self.now;
        let it = &mut self.nodes[node];
        if it.server.incarnation != incarnation || !it.up {
            return;
        }
        if !it.serves(now) {
            let wait = it.frozen_until.max(it.server.frozen_until) - now;
            self.after(wait, Event::Flush(node, incarnation, upto));
            return;
        }
        it.disk.flushed = it.disk.flushed.max(upto.min(it.disk.log.len()));
        let flushed = it.disk.flushed;
        match it.server.running {
            Running::Primary => {
                self.stream(node);
                self.acknowledge(node);
            }
            Running::Replica => {
                if let Some((from, connection)) = it.server.receiver {
                    let message = Replication::Flushed { connection, flushed };
                    self.send(node, index(from), Event::Replicate(node, index(from), message));
                }
            }
            Running::No | Running::Starting => {}
        }
    }

    /// Acknowledges what is held by enough.
    fn acknowledge(&mut self, node: usize) {
        let now = self.now;
        let it = &mut self.nodes[node];
        if it.server.running != Running::Primary || !it.serves(now) {
            return;
        }
        // Positions grow, so those that are held come first.
        let held = it.disk.flushed.min(it.server.held_up_to());
        let count = it.server.waiting.partition_point(|(position, _)| *position <= held);
        if count == 0 {
            return;
        }
        let done: Vec<_> = it.server.waiting.drain(..count).collect();
        let (epoch, acks) = (it.disk.served, it.server.sync.acks);
        for (position, commit) in done {
            self.checks.acknowledged(now, id(node), epoch, acks, position, commit);
        }
    }

    // ---- servers ----

    fn server_tick(&mut self, node: usize) {
        self.after(TICK, Event::ServerTick(node));
        let now = self.now;
        if !self.nodes[node].lives(now) {
            return;
        }
        self.watch(node);
        if !self.nodes[node].serves(now) {
            return;
        }
        match self.nodes[node].server.running {
            Running::Primary => {
                self.stream(node);
                self.acknowledge(node);
            }
            Running::Replica => self.receive_tick(node),
            Running::No | Running::Starting => {}
        }
    }

    /// The watcher: a separate small process that needs no keeper.
    fn watch(&mut self, node: usize) {
        let local = self.nodes[node].local(self.now);
        let it = &self.nodes[node];
        // Also one that is only about to be promoted: the order may take effect after the lease.
        let serves = it.server.running == Running::Primary || it.armed;
        let alone = serves && it.server.running != Running::No && (it.server.sync.acks == 0 || it.unpromised);
        let awake = self.mutant != Mutant::NoWatcher;
        if alone && awake && it.fence_at.is_none_or(|at| local >= at) {
            self.say(|| format!("n{}: the watcher kills the server: its lease ends", node + 1));
            self.kill_server(node);
        }
    }

    fn receive_tick(&mut self, node: usize) {
        let now = self.now;
        let it = &mut self.nodes[node];
        let end = it.disk.log.len();
        if now >= it.server.replayed_at {
            it.server.replayed = end;
        }
        let Some((upstream, _)) = it.disk.follows else { return };
        match it.server.receiver {
            // wal_receiver_timeout
            Some(_) if now > it.server.received_at + 2_000 => it.server.receiver = None,
            Some(_) => {}
            None => {
                self.next_connection += 1;
                let connection = self.next_connection;
                let it = &self.nodes[node];
                let (length, flushed) = (it.disk.log.len(), it.disk.flushed);
                let message = Replication::Connect { connection, length, flushed, last: it.disk.log.last().copied() };
                self.send(node, index(upstream), Event::Replicate(node, index(upstream), message));
            }
        }
    }

    /// Sends each replica what it lacks.
    fn stream(&mut self, node: usize) {
        let it = &self.nodes[node];
        let flushed = it.disk.flushed;
        let mut out = Vec::new();
        for (to, sender) in &it.server.senders {
            let start = sender.flushed.min(flushed);
            let end = flushed.min(start + BATCH);
            let entries: Rc<[Entry]> = if start == end { self.nothing.clone() } else { it.disk.log[start..end].into() };
            out.push((index(*to), Replication::Data { connection: sender.connection, start, entries }));
        }
        for (to, message) in out {
            self.send(node, to, Event::Replicate(node, to, message));
        }
    }

    fn replicate(&mut self, from: usize, to: usize, message: Replication) {
        if !self.nodes[to].serves(self.now) {
            return;
        }
        match message {
            Replication::Connect { connection, length, flushed, last } => {
                self.connect((from, to), connection, (length, flushed), last);
            }
            Replication::Data { connection, start, entries } => self.receive(from, to, connection, start, &entries),
            Replication::Flushed { connection, flushed } => {
                let now = self.now;
                let it = &mut self.nodes[to];
                let end = it.disk.flushed;
                if let Some(sender) = it.server.senders.get_mut(&id(from))
                    && sender.connection == connection
                {
                    sender.flushed = sender.flushed.max(flushed);
                    sender.heard_at = now;
                    sender.streaming |= sender.flushed + 20 >= end;
                    self.acknowledge(to);
                }
            }
        }
    }

    fn connect(
        &mut self,
        (from, to): (usize, usize),
        connection: u64,
        (length, flushed): (usize, usize),
        last: Option<Entry>,
    ) {
        let now = self.now;
        let it = &mut self.nodes[to];
        let takes = it.server.running == Running::Primary && !it.server.draining;
        if !takes || !it.disk.slots.contains(&id(from)) || !it.disk.admits(length, last) {
            return;
        }
        if !it.disk.continues(length, last) {
            let own = it.disk.log.get(length - 1).copied();
            self.checks.break_with(format!(
                "silent divergence: n{} streams from n{} though its log is not a beginning of that one: {last:?} and \
                 {own:?} at position {length}",
                from + 1,
                to + 1
            ));
            return;
        }
        it.server.senders.insert(id(from), Sender { connection, flushed, heard_at: now, streaming: false });
        let message = Replication::Data { connection, start: length, entries: self.nothing.clone() };
        self.send(to, from, Event::Replicate(to, from, message));
    }

    fn receive(&mut self, from: usize, to: usize, connection: u64, start: usize, entries: &[Entry]) {
        let now = self.now;
        let it = &mut self.nodes[to];
        if it.server.running != Running::Replica {
            return;
        }
        match it.server.receiver {
            Some((upstream, known)) if upstream == id(from) && known == connection => {}
            // The answer to the newest request, if it still wants to follow.
            None if it.disk.follows.is_some_and(|(upstream, _)| upstream == id(from)) && start == it.disk.log.len() => {
                it.server.receiver = Some((id(from), connection));
            }
            Some(_) | None => return,
        }
        it.server.received_at = now;
        if start > it.disk.log.len() {
            return;
        }
        let news = entries.get(it.disk.log.len() - start..).unwrap_or_default();
        if !news.is_empty() {
            it.disk.log.extend_from_slice(news);
        }
        if now >= it.server.replayed_at {
            it.server.replayed = it.disk.log.len();
        }
        self.flush(to);
    }

    /// All processes of the server are gone.
    pub fn kill_server(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        if it.server.running == Running::No {
            return;
        }
        if it.server.running == Running::Primary {
            it.disk.in_order = false;
        }
        it.server.end();
        it.armed = false;
        // What was not flushed may be lost or torn, so it counts as lost.
        let flushed = it.disk.flushed;
        it.disk.log.truncate(flushed);
    }

    /// Starts the server; it will be as `standby` says.
    pub fn start_server(&mut self, node: usize, delay: u64) {
        let it = &mut self.nodes[node];
        it.server.end();
        it.server.running = Running::Starting;
        it.server.sync = it.disk.sync.clone();
        let incarnation = it.server.incarnation;
        self.after(delay, Event::Started(node, incarnation));
    }

    fn server_started(&mut self, node: usize, incarnation: u64) {
        let now = self.now;
        let replay = self.dice.between(0, 400);
        let back = self.dice.between(0, 30) as usize;
        let it = &mut self.nodes[node];
        if it.server.incarnation != incarnation || !it.up {
            return;
        }
        it.server.sync = it.disk.sync.clone();
        it.server.running = if it.disk.standby { Running::Replica } else { Running::Primary };
        it.server.replayed = it.disk.log.len().saturating_sub(back);
        it.server.replayed_at = now + replay;
        it.server.received_at = now;
        let role = it.server.running;
        if role == Running::Primary {
            // Crash recovery ends with a record of its own.
            self.append(node, None);
        }
        self.say(|| format!("n{}: the server runs: {role:?}", node + 1));
    }

    fn server_promoted(&mut self, node: usize, incarnation: u64, epoch: Epoch) {
        let it = &mut self.nodes[node];
        if it.server.incarnation != incarnation || it.server.running != Running::Replica {
            return;
        }
        if !it.up || self.now < it.frozen_until.max(it.server.frozen_until) {
            self.after(TICK, Event::Promoted(node, incarnation, epoch));
            return;
        }
        it.server.running = Running::Primary;
        it.server.receiver = None;
        it.disk.standby = false;
        it.disk.in_order = false;
        it.disk.served = epoch;
        it.disk.follows = None;
        let timeline = it.disk.timeline().0 + 1;
        self.next_id += 1;
        let entry = Entry { id: self.next_id, timeline, row: None };
        // The server flushes the end of its recovery before it takes connections.
        let disk = &mut self.nodes[node].disk;
        disk.log.push(entry);
        disk.flushed = disk.log.len();
        self.say(|| format!("n{}: promoted under epoch {epoch}, timeline {timeline}", node + 1));
    }

    // ---- hosts ----

    /// The power of one host goes; what was not flushed is lost.
    pub fn host_dies(&mut self, node: usize) {
        self.kill_server(node);
        let it = &mut self.nodes[node];
        it.up = false;
        it.keeper = None;
        it.fence_at = None;
    }

    fn host_starts(&mut self, node: usize) {
        if self.nodes[node].up {
            return;
        }
        self.nodes[node].up = true;
        self.say(|| format!("n{}: the host is back", node + 1));
        self.after(1, Event::KeeperStarts(node));
    }

    fn keeper_starts(&mut self, node: usize) {
        let it = &mut self.nodes[node];
        if !it.up || it.keeper.is_some() {
            return;
        }
        it.incarnation += 1;
        let local = it.local(self.now);
        it.keeper = Some(Keeper::new(local, it.disk.ledger.clone(), self.mutant));
        let incarnation = it.incarnation;
        let jitter = self.dice.between(0, TICK);
        self.after(jitter, Event::KeeperTick(node, incarnation));
        self.after(jitter, Event::Heartbeat(node, incarnation));
        // Its own copy of the state may be an old one.
        if let Some((version, state)) = self.nodes[node].known.clone() {
            self.after(0, Event::Learn(node, version, state));
        }
    }

    // ---- consensus ----

    /// A majority of hosts can be reached both ways, and the store answers.
    pub fn reaches_store(&self, node: usize) -> bool {
        let members = || cluster::failover::recruit::electors(&self.store.state).map(index);
        let reached = members().filter(|other| {
            let both = self.network.reaches(node, *other) && self.network.reaches(*other, node);
            both && self.nodes[*other].lives(self.now)
        });
        self.store.up && reached.count() > members().count() / 2
    }

    fn write(&mut self, node: usize, incarnation: u64, version: u64, write: Write) {
        if !self.reaches_store(node) {
            return;
        }
        let before = self.store.state.clone();
        let what = write.what;
        let version = if self.mutant == Mutant::StaleWrite { self.store.version } else { version };
        if self.store.compare_and_set(version, write.state) {
            let after = self.store.state.clone();
            self.say(|| format!("n{}: {what}", node + 1));
            self.state_changed(&before, &after);
            let version = self.store.version;
            for other in 0..self.nodes.len() {
                let delay = self.dice.between(1, 3 + self.network.delay_max);
                if self.reaches_store(other) {
                    self.after(delay, Event::Learn(other, version, after.clone()));
                }
            }
        }
        let delay = self.dice.between(1, 3 + self.network.delay_max);
        self.after(delay, Event::Written(node, incarnation));
    }

    fn state_changed(&mut self, before: &ClusterState, after: &ClusterState) {
        let logs: Vec<&[Entry]> = self.nodes.iter().map(|node| &node.disk.log[..node.disk.flushed]).collect();
        self.checks.state_changed(self.now, before, after, &logs);
    }

    /// Strikes with one fault.
    pub fn strike(&mut self, fault: Fault) {
        crate::faults::strike(self, fault);
    }
}
