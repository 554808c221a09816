//! Reads on replicas, per worker: what is known of the replicas' positions, and which of them may serve a read.
//! `routing` decides; this keeps its state and asks the primary for positions when a session needs one.

use crate::config::Config;
use crate::obtain;
use crate::pool::Purpose;
use crate::server;
use crate::topology::{NodeAddr, ReplicaUse, Topology};
use crate::worker::Worker;
use model::{LagBytes, Lsn, Millis, Moment, NodeId, ReplicaKind, Timeline};
use routing::balance::{Micros, WEIGHT_DEFAULT};
use routing::consistency::{Ack, Ask, Health, History, Memory, Need, Replica, Requirement, Sampler, Why, eligible};
use routing::token::{Point, rounded};
use routing::{Balancer, Candidate, Catalog, Level, Policy};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A position's age is told by others, who may not know of its time on the way: this much is added.
const AGE_MARGIN: Millis = Millis(1000);
/// After a read for which no replica was far enough, the session reads on the primary for so long before it is tried
/// again: positions do not come more often.
const RETRY_AFTER: Millis = Millis(250);
/// After a read that waited in vain: a replica that is slow for long costs a session a tenth of its time at most.
const WAIT_AGAIN_AFTER: Millis = Millis(100);
/// Between two looks at the primary's position for `bounded` reads.
const OBSERVE_EVERY: Duration = Duration::from_millis(50);
/// The primary's position, its timeline, and the size of a segment, for `rounded`.
const POSITION_SQL: &str = "SELECT pg_current_wal_insert_lsn(), \
    ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint, \
    pg_size_bytes(current_setting('wal_segment_size'))";

/// What a worker knows.
pub struct Reads {
    began: Instant,
    /// Where the balancer's random numbers come from.
    seed: u64,
    /// Kept for its memory.
    candidates: Vec<Candidate>,
    sampler: Sampler,
    replicas: Vec<Replica>,
    addresses: Vec<(NodeId, NodeAddr)>,
    balancer: Balancer,
    /// Weights of replicas by name.
    weights: BTreeMap<String, u32>,
    history: History,
    /// Reads that wait for a replica to catch up.
    pub waiting: usize,
    /// Replicas that are asked meanwhile.
    asked: Vec<NodeId>,
}

/// What one session remembers for its reads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    memory: Memory,
    /// Until then reads at this level go to the primary.
    retry_after: (Moment, Level),
}

impl Reading {
    /// What the session must keep seeing.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// The replica did not serve the session's next read.
    pub fn failed_on(&mut self, node: NodeId) {
        self.memory.failed_on(node);
    }

    /// It must see this from now on: a token came in.
    pub fn import(&mut self, point: Point) {
        self.memory.import(point);
    }
}

/// A replica for one read, and what a connection to it has to be good for.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The replica.
    pub node: NodeId,
    /// It has replayed this.
    floor: Option<Lsn>,
    /// It is in the life in which the session read there until then.
    seen: Option<Moment>,
}

/// Where a read goes.
pub enum ReadTarget {
    /// To this replica.
    Replica(Choice),
    /// To a replica that has still to catch up: a moment is worth waiting.
    Wait,
    /// To the primary.
    Primary,
    /// The primary's position is wanted first, behind this acknowledgement.
    Position(Ack),
}

impl Reads {
    /// Nothing is known yet.
    pub fn new(topology: &Topology, config: &Config) -> Reads {
        let mut reads = Reads {
            began: Instant::now(),
            seed: u64::from_ne_bytes(crate::random()),
            candidates: Vec::new(),
            sampler: Sampler::new(topology.epoch),
            replicas: Vec::new(),
            addresses: Vec::new(),
            balancer: Balancer::new(policy(config)),
            weights: config.weights.clone(),
            history: History::default(),
            waiting: 0,
            asked: Vec::new(),
        };
        reads.told(topology);
        reads
    }

    /// Takes another configuration; what is known of the replicas stays.
    pub fn configure(&mut self, topology: &Topology, config: &Config) {
        self.balancer.set_policy(policy(config));
        self.weights.clone_from(&config.weights);
        self.told(topology);
    }

    fn now(&self) -> Moment {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> Moment {
        Moment(u64::try_from(now.saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX))
    }

    /// The next of a sequence that nobody has to be unable to guess (SplitMix64, Steele and others 2014): it spreads load.
    fn roll(&mut self) -> u64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.seed ^ (self.seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// How a replica is reached.
    pub fn address(&self, node: NodeId) -> Option<NodeAddr> {
        self.addresses.iter().find(|(known, _)| *known == node).map(|(_, address)| address.clone())
    }

    /// Takes in news of the servers.
    pub fn told(&mut self, topology: &Topology) {
        let now = self.now();
        if self.sampler.epoch() != topology.epoch {
            self.sampler.restart(topology.epoch);
        }
        let gone: Vec<NodeId> = self.addresses.iter().map(|(node, _)| *node).collect();
        for node in gone.into_iter().filter(|node| !topology.replicas.iter().any(|replica| replica.id == *node)) {
            self.balancer.leave(node);
        }
        let before = std::mem::take(&mut self.replicas);
        self.addresses.clear();
        for replica in &topology.replicas {
            // Without a position there is nothing to hold a read against.
            let (Some(replayed), Some(timeline)) = (replica.replayed, replica.timeline) else { continue };
            let age = replica.position_age.unwrap_or(Millis(u64::MAX / 2));
            let weight = self.weights.get(&replica.name).copied().unwrap_or(WEIGHT_DEFAULT);
            self.balancer.join(replica.id, replica.site.clone(), weight, now);
            self.addresses.push((replica.id, replica.addr.clone()));
            let mut told = Replica {
                node: replica.id,
                kind: match replica.usage {
                    ReplicaUse::Hot => ReplicaKind::Hot,
                    ReplicaUse::Standby => ReplicaKind::Standby,
                    ReplicaUse::Delayed => ReplicaKind::Delayed,
                },
                health: if replica.healthy { Health::Up } else { Health::Down },
                epoch: topology.epoch,
                incarnation: replica.incarnation,
                position: Point { epoch: topology.epoch, timeline, lsn: replayed },
                position_taken_after: now.minus(Millis(age.0.saturating_add(AGE_MARGIN.0))),
                counted: replica.counted,
                lag: replica.lag_bytes.unwrap_or(LagBytes(u64::MAX)),
            };
            // What it was asked itself may be newer.
            if let Some(known) = before.iter().find(|known| of_one_life(known, &told))
                && known.position_taken_after > told.position_taken_after
            {
                (told.position, told.position_taken_after) = (known.position, known.position_taken_after);
            }
            self.replicas.push(told);
        }
    }

    /// A replica as it is known now.
    pub fn replica(&self, node: NodeId) -> Option<Replica> {
        self.replicas.iter().find(|replica| replica.node == node).copied()
    }

    /// A replica that was known like this answered what it was asked at `asked`.
    pub fn probed(&mut self, known: &Replica, asked: Instant, replayed: Lsn) {
        // A moment before, for moments are whole milliseconds: a read that ended in the same one may have ended later.
        let asked = self.at(asked).minus(Millis(1));
        let Some(replica) = self.replicas.iter_mut().find(|replica| of_one_life(replica, known)) else { return };
        if asked > replica.position_taken_after {
            replica.position.lsn = replayed;
            replica.position_taken_after = asked;
        }
    }

    /// Replicas that serve reads and are not asked for their positions yet; from now on they count as asked.
    pub fn unasked(&mut self) -> Vec<NodeId> {
        let serves = |replica: &&Replica| replica.kind == ReplicaKind::Hot && replica.health == Health::Up;
        let nodes = self.replicas.iter().filter(serves).map(|replica| replica.node);
        let new: Vec<NodeId> = nodes.filter(|node| !self.asked.contains(node)).collect();
        self.asked.extend(&new);
        new
    }

    /// A replica is asked no more.
    pub fn asked_enough(&mut self, node: NodeId) {
        self.asked.retain(|asked| *asked != node);
    }

    /// Where the next read of a session goes.
    pub fn target(&mut self, session: &mut Reading, config: &Config, level: Level, now: Instant) -> ReadTarget {
        let now = self.at(now);
        let (retry_after, tried) = session.retry_after;
        if (now < retry_after && tried == level) || self.replicas.is_empty() {
            return ReadTarget::Primary;
        }
        let requirement = match self.requirement(session, config, level, now) {
            Need::Primary(_) => return ReadTarget::Primary,
            Need::Position(ack) => return ReadTarget::Position(ack),
            Need::Replica(requirement) => requirement,
        };
        let random = self.roll();
        let mut waits = false;
        self.candidates.clear();
        for replica in &self.replicas {
            match eligible(replica, &requirement, &self.history) {
                Ok(()) => self.candidates.push(Candidate { node: replica.node, lag: replica.lag }),
                Err(why) => waits |= matches!(why, Why::Behind(_) | Why::ReadElsewhere),
            }
        }
        let Some(choice) = self.balancer.choose(&self.candidates, now, random) else {
            if waits && self.candidates.is_empty() && !config.read_wait.is_zero() {
                return ReadTarget::Wait;
            }
            session.retry_after = (now.plus(RETRY_AFTER), level);
            return ReadTarget::Primary;
        };
        let seen = requirement.only.and_then(|_| session.memory.unproven());
        // How stale it may be was judged by where it was known to stand.
        let stood = requirement.staleness_max.and_then(|_| self.replica(choice.node));
        let floor = requirement.floor.map(|floor| floor.lsn).max(stood.map(|replica| replica.position.lsn));
        ReadTarget::Replica(Choice { node: choice.node, floor, seen })
    }

    fn requirement(&self, session: &mut Reading, config: &Config, level: Level, now: Moment) -> Need {
        let level = if unchecked() { Level::Eventual } else { level };
        match session.memory.need(level, &self.sampler, &self.replicas, now) {
            Need::Replica(requirement) => {
                Need::Replica(Requirement { lag_max: config.lag_max, epoch: self.sampler.epoch(), ..requirement })
            }
            other => other,
        }
    }

    /// Whether a read that waits need wait no more: a replica may serve it, or none will.
    pub fn would_serve(&mut self, session: &mut Reading, config: &Config, level: Level) -> bool {
        match self.requirement(session, config, level, self.now()) {
            Need::Replica(wanted) => {
                self.replicas.iter().any(|replica| eligible(replica, &wanted, &self.history).is_ok())
            }
            Need::Primary(_) | Need::Position(_) => true,
        }
    }

    /// The replicas that may serve a read of the session now.
    pub fn fit(&mut self, mut session: Reading, config: &Config, level: Level) -> Vec<NodeId> {
        let Need::Replica(wanted) = self.requirement(&mut session, config, level, self.now()) else {
            return Vec::new();
        };
        let fit = |replica: &&Replica| eligible(replica, &wanted, &self.history).is_ok();
        self.replicas.iter().filter(fit).map(|replica| replica.node).collect()
    }

    /// The acknowledgement behind which a position of the primary is wanted, so that the session's own is known.
    pub fn unsampled(&self, session: &mut Reading) -> Option<Ack> {
        match session.memory.need(Level::Session, &self.sampler, &self.replicas, self.now()) {
            Need::Position(ack) => Some(ack),
            Need::Replica(_) | Need::Primary(_) => None,
        }
    }

    /// A read waited in vain: for a moment its session reads on the primary.
    pub fn give_up(&self, session: &mut Reading, level: Level) {
        session.retry_after = (self.now().plus(WAIT_AGAIN_AFTER), level);
    }

    /// Whether a connection, made at `born` when its server had replayed `birth`, leads to the server that the choice was
    /// made for, and not to one that has come back from a crash since, behind what it has shown.
    pub fn vouches(&self, choice: &Choice, born: Instant, birth: Option<Lsn>) -> bool {
        let born = self.at(born);
        let known = self.replica(choice.node).is_some_and(|replica| replica.position_taken_after >= born);
        let replayed = |floor| known || birth.is_some_and(|birth| birth >= floor);
        choice.floor.is_none_or(replayed) && choice.seen.is_none_or(|seen| born <= seen)
    }

    /// Whether the session has just seen on a replica what it has to see again.
    pub fn binds(&self, session: &Reading) -> bool {
        session.memory.binds(self.sampler.epoch(), self.now())
    }

    /// Whether the primary may hide what the session has seen on a replica that has just gone.
    pub fn may_be_ahead_of_primary(&self, session: &Reading) -> bool {
        session.memory.may_be_ahead_of_primary(&self.replicas, self.sampler.epoch(), self.now())
    }

    /// What the session has seen is shown by replicas that have replayed this, if one was found.
    pub fn settled(&self, session: &mut Reading, point: Option<Point>) {
        session.memory.settled(point);
        if point.is_some() {
            session.retry_after = Default::default();
        }
    }

    /// A replica that was chosen is not read after all, for no fault of its own.
    pub fn withdrawn(&mut self, node: NodeId) {
        self.balancer.withdrawn(node);
    }

    /// The primary answered a question that was sent at `asked` or later (K-11). Nothing is known of another timeline, and
    /// a primary of the past is not heard.
    fn observed(&mut self, asked: Moment, point: Point) {
        if point.epoch != self.sampler.epoch() {
            return;
        }
        if self.history.timeline() != point.timeline {
            self.history = History::new(point.timeline);
        }
        self.history.heard(asked, point.lsn);
    }

    /// The point that a session has reached; `None` where it is not known, or nothing was read or written yet.
    pub fn point(&self, mut memory: Memory) -> Option<Point> {
        memory.export(&self.sampler, &self.replicas)
    }

    /// Stands for all that the primary has acknowledged to this worker by now.
    pub fn acknowledged(&mut self) -> Ack {
        self.sampler.acknowledged()
    }

    /// A position of the primary behind this, where it was asked for.
    pub fn position_behind(&self, ack: Ack) -> Option<Point> {
        self.sampler.position(ack)
    }

    /// A request of the session ended on the primary.
    pub fn on_primary(&mut self, session: &mut Reading) {
        session.memory.on_primary(&mut self.sampler);
    }

    /// A read that ran on a replica in this time ended there, or failed.
    pub fn on_replica(&mut self, session: &mut Reading, node: NodeId, ran: Range<Instant>, level: Level, failed: bool) {
        let now = self.at(ran.end);
        let took = ran.end.saturating_duration_since(ran.start).as_micros();
        let took = Micros(u64::try_from(took).unwrap_or(u64::MAX));
        self.balancer.finished(node, took, failed, now);
        if let Some(replica) = self.replicas.iter().find(|replica| replica.node == node) {
            session.memory.on_replica(replica, level, now);
        } else if level != Level::Eventual {
            // It left while it served: how far it was is not known, but the primary is at least as far.
            session.memory.on_primary(&mut self.sampler);
        }
    }
}

/// How replicas are picked.
fn policy(config: &Config) -> Policy {
    Policy { method: config.balance, site: config.site.clone(), ..Policy::default() }
}

/// Whether both are one server on one timeline, between two restarts of it.
fn of_one_life(one: &Replica, other: &Replica) -> bool {
    let life = |it: &Replica| (it.node, it.incarnation, it.epoch, it.position.timeline);
    life(one) == life(other)
}

/// Whether reads go to replicas without a look at positions: for the test that proves that such a thing would be seen.
#[cfg(debug_assertions)]
fn unchecked() -> bool {
    static ASKED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *ASKED.get_or_init(|| std::env::var_os("STEMMA_UNCHECKED_READS").is_some())
}

/// There is no such thing in a release.
#[cfg(not(debug_assertions))]
#[inline(always)]
fn unchecked() -> bool {
    false
}

/// Waits until a position behind `ack` is known. `false`: it could not be found out.
pub async fn position(worker: &Rc<Worker>, database: &str, user: &str, ack: Ack) -> bool {
    let deadline = Instant::now() + worker.config().connect_timeout;
    while Instant::now() < deadline {
        let asked = {
            let mut reads = worker.reads.borrow_mut();
            if reads.sampler.position(ack).is_some() {
                return true;
            }
            reads.sampler.ask(ack)
        };
        match asked {
            Ask::Wait => {
                let _ = tokio::time::timeout_at(deadline.into(), worker.positions.notified()).await;
            }
            Ask::Send(first) => {
                let mut next = Some(first);
                while let Some(question) = next.take() {
                    let heard = ask(worker, database, user).await;
                    {
                        let mut reads = worker.reads.borrow_mut();
                        match heard {
                            Some(point) => next = reads.sampler.heard(question, point),
                            None => reads.sampler.failed(question),
                        }
                    }
                    worker.positions.notify_waiters();
                    if heard.is_none() {
                        return false;
                    }
                }
            }
        }
    }
    false
}

/// Keeps asking the primary where it is, by this worker's own clock, as long as it has clients: what `bounded` reads are
/// held against. Also while nothing is written: then a replica that has it all is known to miss nothing.
pub async fn observe(worker: Rc<Worker>, database: String, user: String) {
    while worker.has_clients() {
        let asked = worker.reads.borrow().now();
        if let Some(point) = ask(&worker, &database, &user).await {
            worker.reads.borrow_mut().observed(asked, point);
        }
        tokio::time::sleep(OBSERVE_EVERY).await;
    }
    worker.observing.set(false);
}

async fn ask(worker: &Rc<Worker>, database: &str, user: &str) -> Option<Point> {
    let limit = worker.config().connect_timeout;
    tokio::time::timeout(limit, async {
        let mut server = obtain::obtain(worker, || worker.primary_pool(database, user)).await.ok()?;
        let Purpose::Write(epoch) = server.slot.pool().key.purpose else { return None };
        let rows = server::ask(&mut server, POSITION_SQL).await.ok()?;
        worker.put_back(server);
        let row = rows.first()?;
        let text = |index: usize| row.get(index).and_then(Option::as_deref);
        let (lsn, timeline): (Lsn, u32) = (text(0)?.parse().ok()?, text(1)?.parse().ok()?);
        let lsn = rounded(lsn, text(2)?.parse().ok()?);
        Some(Point { epoch, timeline: Timeline(timeline), lsn })
    })
    .await
    .ok()?
}

/// Reads the catalogue of a database, so that functions and relations are known.
pub async fn load_catalog(worker: Rc<Worker>, database: String, user: String) {
    let entry = worker.catalog(&database);
    let limit = Duration::from_secs(30);
    let loaded = tokio::time::timeout(limit, async {
        let find = || worker.primary_pool(&database, &user);
        let mut server = obtain::obtain(&worker, find).await.ok()?;
        let mut builder = Catalog::builder();
        let two = |row: server::Row| -> Option<(String, String)> {
            let mut values = row.into_iter();
            Some((values.next()??, values.next()??))
        };
        for row in server::ask(&mut server, routing::catalog::FUNCTIONS_SQL).await.ok()? {
            let (name, volatile) = two(row)?;
            builder.function(&name, volatile == "t");
        }
        for row in server::ask(&mut server, routing::catalog::RELATIONS_SQL).await.ok()? {
            let (name, why) = two(row)?;
            builder.relation(&name, &why);
        }
        for row in server::ask(&mut server, routing::catalog::DEFINITIONS_SQL).await.ok()? {
            let (name, text) = two(row)?;
            builder.definition(&name, &text);
        }
        for row in server::ask(&mut server, routing::catalog::OPERATORS_SQL).await.ok()? {
            if let Some(symbol) = row.into_iter().next().flatten() {
                builder.operator(&symbol);
            }
        }
        worker.put_back(server);
        Some(builder.build())
    });
    match loaded.await {
        Ok(Some(catalog)) => entry.put(catalog),
        Ok(None) | Err(_) => {
            tracing::warn!(database, "the catalogue could not be read: all statements go to the primary")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology;

    const NODE: NodeId = NodeId(2);

    fn told(replayed: u64, incarnation: u64) -> Topology {
        let replica = topology::Replica {
            id: NODE,
            name: "n2".into(),
            addr: NodeAddr::tcp("db2", 5432),
            usage: ReplicaUse::Hot,
            site: None,
            healthy: true,
            counted: true,
            replayed: Some(Lsn(replayed)),
            timeline: Some(Timeline(1)),
            position_age: Some(Millis(0)),
            incarnation,
            lag_bytes: Some(LagBytes(0)),
            lag: None,
        };
        Topology { replicas: vec![replica], ..Topology::default() }
    }

    fn position(reads: &Reads) -> u64 {
        reads.replica(NODE).expect("known").position.lsn.0
    }

    #[test]
    fn an_answer_of_the_replica_is_kept_until_something_newer_is_told_or_its_server_restarts() {
        let mut reads = Reads::new(&told(100, 1), &Config::default());
        reads.began -= Duration::from_secs(60);
        reads.told(&told(100, 1));
        let known = reads.replica(NODE).expect("known");
        reads.probed(&known, Instant::now(), Lsn(300));
        assert_eq!(position(&reads), 300);
        // Told now, but of some time before.
        reads.told(&told(200, 1));
        assert_eq!(position(&reads), 300);
        // A session that read there in this very millisecond may have seen more than the answer tells.
        let mut reading = Reading::default();
        let now = Instant::now();
        reads.on_replica(&mut reading, NODE, now..now, Level::Session, false);
        let known = reads.replica(NODE).expect("known");
        reads.probed(&known, now, Lsn(310));
        assert_eq!(reads.point(reading.memory()), None);
        reads.probed(&known, now + Duration::from_millis(2), Lsn(320));
        assert_eq!(reads.point(reading.memory()).map(|point| point.lsn), Some(Lsn(320)));
        // Another life begins where it begins; what the old one said counts no more, also where it is heard late.
        reads.told(&told(50, 2));
        assert_eq!(position(&reads), 50);
        reads.probed(&known, Instant::now(), Lsn(400));
        assert_eq!(position(&reads), 50);
    }

    #[test]
    fn a_connection_to_a_server_that_came_back_from_a_crash_is_not_read_on() {
        let mut reads = Reads::new(&told(100, 1), &Config::default());
        reads.began -= Duration::from_secs(60);
        reads.told(&told(100, 1));
        let now = Instant::now();
        let known = reads.replica(NODE).expect("known");
        reads.probed(&known, now, Lsn(300));
        let (before, after) = (now - Duration::from_millis(5), now + Duration::from_millis(5));
        let behind = |floor| Choice { node: NODE, floor: Some(Lsn(floor)), seen: None };
        assert!(reads.vouches(&behind(300), before, Some(Lsn(10))), "it lived when the server had come so far");
        assert!(!reads.vouches(&behind(300), after, Some(Lsn(10))), "that may have been before a crash");
        assert!(!reads.vouches(&behind(300), after, None));
        assert!(reads.vouches(&behind(300), after, Some(Lsn(300))));
        // The session read there, and where that stood is not known.
        let again = Choice { node: NODE, floor: None, seen: Some(reads.at(now)) };
        assert!(reads.vouches(&again, before, Some(Lsn(10))));
        assert!(!reads.vouches(&again, after, Some(Lsn(1000))));
        let anything = Choice { node: NODE, floor: None, seen: None };
        assert!(reads.vouches(&anything, after, None));
    }

    #[test]
    fn a_replica_is_asked_by_one_task_at_a_time() {
        let mut reads = Reads::new(&told(100, 1), &Config::default());
        assert_eq!(reads.unasked(), [NODE]);
        assert_eq!(reads.unasked(), []);
        reads.asked_enough(NODE);
        assert_eq!(reads.unasked(), [NODE]);
    }
}
