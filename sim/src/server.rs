//! A model of a PostgreSQL server and its data directory: a log of entries on timelines, a flushed prefix, streaming,
//! waiting for synchronous replicas, crash and restart. A position is the number of entries before it.

use cluster::failover::ledger::Ledger;
use cluster::sync::ServerSync;
use model::{Epoch, Lsn, NodeId, Timeline};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// One record. Its id is unique in the run and given once, so two logs that share an entry share all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// See above.
    pub id: u32,
    /// The timeline it was written on.
    pub timeline: u32,
    /// The epoch whose row it is, if it is one.
    pub row: Option<Epoch>,
}

/// What survives a crash of the node.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The keeper's file.
    pub ledger: Ledger,
    /// The log; beyond `flushed` it is lost in a crash.
    pub log: Vec<Entry>,
    /// How much of it is flushed.
    pub flushed: usize,
    /// It starts as a replica.
    pub standby: bool,
    /// Whom it is configured to follow.
    pub follows: Option<(NodeId, Epoch)>,
    /// The synchronous list as written.
    pub sync: ServerSync,
    /// It stopped in order, or was recovered since.
    pub in_order: bool,
    /// The data is complete: not in the middle of a rewind or copy.
    pub whole: bool,
    /// Under which epoch it last served.
    pub served: Epoch,
    /// Whose servers are let in: those that have a slot. They go when the data is replaced.
    pub slots: BTreeSet<NodeId>,
}

impl Disk {
    /// The end of the log, as a replica or stopped server has it.
    pub fn end(&self) -> Lsn {
        Lsn(self.log.len() as u64)
    }
    /// The timeline at the end of the log.
    pub fn timeline(&self) -> Timeline {
        Timeline(self.log.last().map_or(0, |entry| entry.timeline))
    }
    /// Where the row of `epoch` is.
    pub fn row(&self, epoch: Epoch) -> Option<Lsn> {
        self.log.iter().rposition(|entry| entry.row == Some(epoch)).map(|at| Lsn(at as u64 + 1))
    }
    /// Whether a log that ends with `last` at `length` is a beginning of this one, in truth.
    pub fn continues(&self, length: usize, last: Option<Entry>) -> bool {
        match last {
            None => true,
            Some(last) => self.log.get(length - 1).is_some_and(|entry| entry.id == last.id),
        }
    }
    /// Whether the server would let such a replica stream: by timeline numbers and positions, all that it has.
    pub fn admits(&self, length: usize, last: Option<Entry>) -> bool {
        let Some(last) = last else { return true };
        if length > self.flushed {
            return false;
        }
        let end_of_timeline = self.log.iter().rposition(|entry| entry.timeline <= last.timeline).map_or(0, |at| at + 1);
        let known = self.log.iter().any(|entry| entry.timeline == last.timeline);
        known && length <= end_of_timeline
    }
}

/// How the process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Running {
    /// It does not.
    No,
    /// It starts.
    Starting,
    /// As a primary.
    Primary,
    /// As a replica.
    Replica,
}

/// A connection from a replica, at the primary.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    /// Its number.
    pub connection: u64,
    /// What the replica flushed, as it said last.
    pub flushed: usize,
    /// When it said so.
    pub heard_at: u64,
    /// It has caught up once.
    pub streaming: bool,
}

/// The process.
#[derive(Clone, Debug)]
pub struct Server {
    /// Counts starts; events of earlier processes are dropped.
    pub incarnation: u64,
    /// How it stands.
    pub running: Running,
    /// What it waits for, in force.
    pub sync: ServerSync,
    /// It takes no new writes: a stop in order has begun.
    pub draining: bool,
    /// Connections from replicas.
    pub senders: BTreeMap<NodeId, Sender>,
    /// Commits that wait: position and id.
    pub waiting: Vec<(usize, u32)>,
    /// As a replica: the connection it receives on, and when something came last.
    pub receiver: Option<(NodeId, u64)>,
    /// When something arrived last.
    pub received_at: u64,
    /// As a replica: it replayed this much since its start.
    pub replayed: usize,
    /// When its log will have been replayed after the start.
    pub replayed_at: u64,
    /// It does nothing before this time.
    pub frozen_until: u64,
    /// It has done nothing since this time.
    pub frozen_since: u64,
}

impl Server {
    /// One that does not run.
    pub fn stopped() -> Server {
        Server {
            incarnation: 0,
            running: Running::No,
            sync: ServerSync::default(),
            draining: false,
            senders: BTreeMap::new(),
            waiting: Vec::new(),
            receiver: None,
            received_at: 0,
            replayed: 0,
            replayed_at: 0,
            frozen_until: 0,
            frozen_since: 0,
        }
    }
    /// The process goes away with all it had in memory.
    pub fn end(&mut self) {
        let incarnation = self.incarnation + 1;
        *self = Server { incarnation, ..Server::stopped() };
    }
    /// Up to which position commits are held by as many as the list asks for.
    pub fn held_up_to(&self) -> usize {
        let Some(last) = (self.sync.acks as usize).checked_sub(1) else { return usize::MAX };
        let senders = self.sync.list.iter().filter_map(|node| self.senders.get(node));
        let mut flushed: Vec<usize> = senders.filter(|sender| sender.streaming).map(|sender| sender.flushed).collect();
        flushed.sort_unstable_by(|a, b| b.cmp(a));
        flushed.get(last).copied().unwrap_or(0)
    }
}

/// What travels on a replication connection.
#[derive(Clone, Debug)]
pub enum Replication {
    /// A replica asks to stream from its end.
    Connect {
        /// Number of the connection.
        connection: u64,
        /// Its length.
        length: usize,
        /// How much of it is flushed: only so much does it acknowledge.
        flushed: usize,
        /// Its last entry.
        last: Option<Entry>,
    },
    /// Log.
    Data {
        /// Number of the connection.
        connection: u64,
        /// Position of the first entry.
        start: usize,
        /// The entries; none is a keepalive.
        entries: Rc<[Entry]>,
    },
    /// The replica flushed up to here.
    Flushed {
        /// Number of the connection.
        connection: u64,
        /// See above.
        flushed: usize,
    },
}
