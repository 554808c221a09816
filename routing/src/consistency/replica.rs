//! What the router knows of a replica, and whether it may serve a read.

use super::History;
use crate::token::Point;
use model::{Epoch, LagBytes, Millis, Moment, NodeId, ReplicaKind};
use std::fmt;

/// Whether a node can be used at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers and is in recovery.
    Up,
    /// No new reads: it is to be stopped, or was asked to rest.
    Draining,
    /// It does not answer, or is not what the cluster says it is.
    Down,
}

/// A replica as one router knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Which.
    pub node: NodeId,
    /// What it is for: only hot ones serve reads.
    pub kind: ReplicaKind,
    /// Whether it can be used.
    pub health: Health,
    /// Of the rule it is known to follow.
    pub epoch: Epoch,
    /// Changes when its server restarts. A standby that crashed may come back behind what it has shown, so a position of
    /// an earlier incarnation says nothing: it is cleared when this changes.
    pub incarnation: u64,
    /// Up to where it has replayed, at least.
    pub position: Point,
    /// A moment, on the router's clock, that is known to precede the taking of `position`: when the question was sent,
    /// or the ping that a pushed position echoes.
    pub position_taken_after: Moment,
    /// Whether a failover asks it what it holds, or the cluster promises nothing of the kind (mode `async`).
    pub counted: bool,
    /// How far it trails the primary.
    pub lag: LagBytes,
}

/// A replica that did not serve a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Which.
    pub node: NodeId,
    /// In which life.
    pub incarnation: u64,
    /// When.
    pub at: Moment,
}

impl Failed {
    /// Whether a replica is this one, and has not answered since.
    fn is(&self, replica: &Replica) -> bool {
        let same = replica.node == self.node && replica.incarnation == self.incarnation;
        same && replica.position_taken_after < self.at
    }
}

/// What a read needs of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// It has replayed this.
    pub floor: Option<Point>,
    /// It is this one, in this incarnation: the session read there, and where that read stood is not known yet.
    pub only: Option<(NodeId, u64)>,
    /// It misses nothing older than this.
    pub staleness_max: Option<Millis>,
    /// Lag beyond which no read is served, whatever its level (the hard tier).
    pub lag_max: LagBytes,
    /// It shows nothing that a failover would not find.
    pub counted: bool,
    /// The epoch that the router believes to be current.
    pub epoch: Epoch,
    /// When the read began.
    pub began: Moment,
    /// Not this one: it has just failed the session.
    pub except: Option<Failed>,
    /// Where the session read last: equal candidates are decided in its favour.
    pub prefer: Option<NodeId>,
}

impl Requirement {
    /// Any replica, for a read that begins now.
    pub fn none(now: Moment) -> Requirement {
        Requirement {
            floor: None,
            only: None,
            staleness_max: None,
            lag_max: LagBytes(u64::MAX),
            counted: false,
            epoch: Epoch(0),
            began: now,
            except: None,
            prefer: None,
        }
    }
}

/// Why a replica may not serve a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It does not answer.
    Down,
    /// It takes no new reads.
    Draining,
    /// Replicas of this kind are never read.
    Kind(ReplicaKind),
    /// It follows an older rule.
    Epoch(Epoch),
    /// It is on another timeline than the read asks for.
    Timeline,
    /// It has not replayed what the session wrote or saw.
    Behind(LagBytes),
    /// The session has read elsewhere, and where that stood is not known yet.
    ReadElsewhere,
    /// It may miss more than the read allows.
    Stale(Millis),
    /// How stale it is cannot be told.
    StalenessUnknown,
    /// It trails beyond the limit for all reads.
    Lagging(LagBytes),
    /// A failover would not ask it for what it shows.
    Uncounted,
}

impl Why {
    /// One word for labels and tables.
    pub fn word(&self) -> &'static str {
        match self {
            Why::Down => "down",
            Why::Draining => "draining",
            Why::Kind(_) => "kind",
            Why::Epoch(_) => "epoch",
            Why::Timeline => "timeline",
            Why::Behind(_) => "behind",
            Why::ReadElsewhere => "read-elsewhere",
            Why::Stale(_) => "stale",
            Why::StalenessUnknown => "staleness-unknown",
            Why::Lagging(_) => "lagging",
            Why::Uncounted => "uncounted",
        }
    }

    /// Whether waiting a little may change it.
    pub fn passes_with_time(&self) -> bool {
        match self {
            Why::Behind(_) | Why::ReadElsewhere | Why::Stale(_) | Why::StalenessUnknown | Why::Uncounted => true,
            Why::Down | Why::Draining | Why::Kind(_) | Why::Epoch(_) | Why::Timeline | Why::Lagging(_) => false,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Down => f.write_str("it is down"),
            Why::Draining => f.write_str("it is draining"),
            Why::Kind(kind) => write!(f, "{} replicas are not read", kind.as_str()),
            Why::Epoch(epoch) => write!(f, "it follows epoch {epoch}"),
            Why::Timeline => f.write_str("it is on another timeline"),
            Why::Behind(lag) => write!(f, "it is {lag} bytes behind what the session wrote or saw"),
            Why::ReadElsewhere => f.write_str("the session has read from another replica"),
            Why::Stale(millis) => write!(f, "it may miss the last {millis} ms"),
            Why::StalenessUnknown => f.write_str("how stale it is cannot be told yet"),
            Why::Lagging(lag) => write!(f, "it trails by {lag} bytes"),
            Why::Uncounted => f.write_str("no failover would ask it for what it shows: it acknowledges no commits now"),
        }
    }
}

/// Whether `replica` may serve a read that needs `requirement`.
///
/// Positions only grow while the incarnation stays, so what was enough when it was reported is enough now.
pub fn eligible(replica: &Replica, requirement: &Requirement, history: &History) -> Result<(), Why> {
    match replica.health {
        Health::Up if requirement.except.is_some_and(|failed| failed.is(replica)) => return Err(Why::Down),
        Health::Up => {}
        Health::Draining => return Err(Why::Draining),
        Health::Down => return Err(Why::Down),
    }
    match replica.kind {
        ReplicaKind::Hot => {}
        ReplicaKind::Standby | ReplicaKind::Delayed => return Err(Why::Kind(replica.kind)),
    }
    if requirement.counted && !replica.counted {
        return Err(Why::Uncounted);
    }
    if replica.epoch < requirement.epoch {
        return Err(Why::Epoch(replica.epoch));
    }
    if replica.lag > requirement.lag_max {
        return Err(Why::Lagging(replica.lag));
    }
    if requirement.only.is_some_and(|only| only != (replica.node, replica.incarnation)) {
        return Err(Why::ReadElsewhere);
    }
    if let Some(floor) = requirement.floor {
        if replica.position.timeline != floor.timeline {
            return Err(Why::Timeline);
        }
        if replica.position.lsn < floor.lsn {
            return Err(Why::Behind(floor.lsn.lag_of(replica.position.lsn)));
        }
    }
    if let Some(bound) = requirement.staleness_max {
        let staleness = history.staleness(replica.position, requirement.began).ok_or(Why::StalenessUnknown)?;
        if staleness > bound {
            return Err(Why::Stale(staleness));
        }
    }
    Ok(())
}
