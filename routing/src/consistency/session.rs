//! What a session did and saw, and how the primary's position is asked for by many sessions at once (5.3, 5.4).

use super::{Failed, Health, Level, Replica, Requirement};
use crate::token::{BadToken, Lineage, Point};
use model::{Epoch, Millis, Moment, NodeId};

/// Number of an acknowledgement by the primary, counted by one worker. A position asked for later lies behind everything
/// with a smaller or equal number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ack(pub u64);

/// A question for the primary's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    epoch: Epoch,
    /// The newest acknowledgement that came before it was sent.
    covers: Ack,
}

/// Group sampling: at most one question for the primary's position is on its way per worker, and its answer serves every
/// session that was acknowledged before it was sent. A question that was given up may still be answered, after another one
/// was sent: what an answer covers goes by its own question.
#[derive(Clone, Debug)]
pub struct Sampler {
    epoch: Epoch,
    acked: Ack,
    /// The question on its way.
    asked: Option<Question>,
    /// Whether somebody needs more than that question covers.
    again: bool,
    answered: Option<(Ack, Point)>,
}

/// What a session that needs a position has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Send `SELECT pg_current_wal_insert_lsn()` now, and wait.
    Send(Question),
    /// A question is on its way; wait for [`Sampler::heard`].
    Wait,
}

impl Sampler {
    /// For the primary of `epoch`.
    pub fn new(epoch: Epoch) -> Sampler {
        Sampler { epoch, acked: Ack(0), asked: None, again: false, answered: None }
    }

    /// The primary answered something to a session of this worker: the number that stands for it.
    pub fn acknowledged(&mut self) -> Ack {
        self.acked.0 += 1;
        self.acked
    }

    /// A session needs a position behind `ack`, and [`Sampler::position`] knows none.
    pub fn ask(&mut self, ack: Ack) -> Ask {
        match self.asked {
            Some(question) => {
                self.again |= ack > question.covers;
                Ask::Wait
            }
            None => Ask::Send(self.question()),
        }
    }

    fn question(&mut self) -> Question {
        let question = Question { epoch: self.epoch, covers: self.acked };
        self.asked = Some(question);
        question
    }

    /// The answer came, already rounded ([`crate::token::rounded`]); `point` has the epoch of the primary that gave it.
    /// Another question, if one is to be sent at once.
    pub fn heard(&mut self, question: Question, point: Point) -> Option<Question> {
        // An answer to, or of, another primacy answers nothing.
        if question.epoch != self.epoch || point.epoch != self.epoch {
            self.failed(question);
            return None;
        }
        if self.answered.is_none_or(|(covered, _)| covered <= question.covers) {
            self.answered = Some((question.covers, point));
        }
        if self.asked != Some(question) {
            return None;
        }
        self.asked = None;
        std::mem::take(&mut self.again).then(|| self.question())
    }

    /// The question failed; whoever waits has to ask again or go to the primary.
    pub fn failed(&mut self, question: Question) {
        if self.asked == Some(question) {
            self.asked = None;
            self.again = false;
        }
    }

    /// Another primary took over. What is on its way is of no use.
    pub fn restart(&mut self, epoch: Epoch) {
        self.epoch = epoch;
        self.asked = None;
        self.again = false;
        self.answered = None;
    }

    /// A position behind everything up to `ack`.
    pub fn position(&self, ack: Ack) -> Option<Point> {
        self.answered.filter(|(covered, _)| *covered >= ack).map(|(_, point)| point)
    }

    /// Of the primary that is being asked.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

/// What the next read of a session needs before a node can be chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A replica that satisfies this, or the primary.
    Replica(Requirement),
    /// The primary only.
    Primary(OnPrimary),
    /// First a position of the primary behind this acknowledgement: [`Sampler::ask`]. Or the primary itself.
    Position(Ack),
}

/// Why only the primary will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPrimary {
    /// The level is `strong`.
    Strong,
    /// The session wrote, and the primary changed before the position of the write was known (K-4): whether the write
    /// survived cannot be told. To be counted.
    Unsampled,
}

/// A read on a replica whose end is not yet known to lie behind a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sighting {
    node: NodeId,
    incarnation: u64,
    finished: Moment,
}

/// How long after a read on a replica the primary may not show yet what that read saw. What it saw was committed by then,
/// and waits for nothing but its acknowledgement.
const UNACKNOWLEDGED: Millis = Millis(3_000);

/// The replica that a session read from last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Visit {
    node: NodeId,
    incarnation: u64,
    epoch: Epoch,
    finished: Moment,
    /// What was seen there has to be seen again, and nothing that happened since sees to that.
    binds: bool,
    /// It did not serve when it was asked again at that time, and is left alone until it has answered or another server
    /// has served.
    failed: bool,
}

/// What a session must keep seeing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    floor: Option<Point>,
    /// The last thing the primary did for it whose position is unknown, and under which epoch.
    dirty: Option<(Epoch, Ack)>,
    sighting: Option<Sighting>,
    last: Option<Visit>,
}

impl Memory {
    /// The primary ran a statement for it. Reads count too: what was seen there must not be unseen on a replica.
    pub fn on_primary(&mut self, sampler: &mut Sampler) {
        self.dirty = Some((sampler.epoch(), sampler.acknowledged()));
        // The primary holds all that any replica of this lineage has shown.
        self.sighting = None;
        self.released();
    }

    fn released(&mut self) {
        if let Some(last) = &mut self.last {
            (last.binds, last.failed) = (false, false);
        }
    }

    /// A position of the primary is known that was asked for after all that the session has read: a replica that has
    /// replayed it shows as much, whether or not that is acknowledged. `None`: no replica has come so far in time, and the
    /// primary has to do.
    pub fn settled(&mut self, point: Option<Point>) {
        if let Some(point) = point {
            self.raise(point);
            self.sighting = None;
        }
        if let Some(last) = &mut self.last {
            last.binds = false;
        }
    }

    /// The replica did not serve the session's next read.
    pub fn failed_on(&mut self, node: NodeId) {
        if let Some(last) = self.last.as_mut().filter(|last| last.node == node) {
            last.failed = true;
        }
    }

    /// Whether the primary may hide what the session has seen. A replica shows a commit when it has replayed it, the primary
    /// when it is acknowledged. As long as that replica is there, its own acknowledgement is on its way; where it has just
    /// gone, the commit may wait for another one. A primary of a later epoch shows all that it was promoted with.
    pub fn may_be_ahead_of_primary(&self, replicas: &[Replica], epoch: Epoch, now: Moment) -> bool {
        let Some(last) = self.bound(epoch, now) else { return false };
        let there = |replica: &Replica| {
            let same = replica.node == last.node && replica.incarnation == last.incarnation;
            same && replica.health == Health::Up
        };
        last.failed || !replicas.iter().any(there)
    }

    /// Whether it has just seen on a replica what the primary may hide for a moment.
    pub fn binds(&self, epoch: Epoch, now: Moment) -> bool {
        self.bound(epoch, now).is_some()
    }

    fn bound(&self, epoch: Epoch, now: Moment) -> Option<Visit> {
        let recent = |last: &Visit| now.since(last.finished) < UNACKNOWLEDGED;
        self.last.filter(|last| last.binds && last.epoch == epoch && recent(last))
    }

    /// The same where the position came with the answer (piggy-backed sampling).
    pub fn on_primary_at(&mut self, point: Point) {
        self.raise(point);
        self.dirty = None;
        self.sighting = None;
        self.released();
    }

    /// A replica ended a read for it at `finished`.
    pub fn on_replica(&mut self, replica: &Replica, level: Level, finished: Moment) {
        let Replica { node, incarnation, epoch, .. } = *replica;
        // Nothing is promised for what reads have seen that ask for nothing.
        let binds = level != Level::Eventual;
        if binds {
            self.sighting = Some(Sighting { node, incarnation, finished });
        }
        self.last = Some(Visit { node, incarnation, epoch, finished, binds, failed: false });
    }

    /// A token came in: from the application, another process, another router.
    pub fn import(&mut self, point: Point) {
        self.raise(point);
    }

    fn raise(&mut self, point: Point) {
        self.floor = Some(self.floor.map_or(point, |floor| floor.merge(point)));
    }

    /// What the next read at `level` needs. `replicas` are asked for the positions of those it has read from.
    pub fn need(&mut self, level: Level, sampler: &Sampler, replicas: &[Replica], now: Moment) -> Need {
        self.resolve(sampler, replicas);
        match level {
            Level::Strong => Need::Primary(OnPrimary::Strong),
            Level::Eventual => Need::Replica(self.any(now)),
            Level::Bounded(bound) => {
                Need::Replica(Requirement { staleness_max: Some(bound), counted: true, ..self.any(now) })
            }
            Level::Session => self.session_need(sampler, now),
        }
    }

    /// Any replica, for a read that begins now, but none that has just failed.
    fn any(&self, now: Moment) -> Requirement {
        let failed = |last: Visit| Failed { node: last.node, incarnation: last.incarnation, at: last.finished };
        let except = self.last.filter(|last| last.failed).map(failed);
        Requirement { prefer: self.last.map(|last| last.node), except, ..Requirement::none(now) }
    }

    fn session_need(&mut self, sampler: &Sampler, now: Moment) -> Need {
        if let Some((epoch, ack)) = self.dirty {
            if epoch == sampler.epoch() {
                return Need::Position(ack);
            }
            return Need::Primary(OnPrimary::Unsampled);
        }
        let only = self.sighting.map(|sighting| (sighting.node, sighting.incarnation));
        Need::Replica(Requirement { floor: self.floor, only, counted: true, ..self.any(now) })
    }

    /// Turns what is now known of positions into the floor.
    fn resolve(&mut self, sampler: &Sampler, replicas: &[Replica]) {
        if let Some((epoch, ack)) = self.dirty
            && epoch == sampler.epoch()
            && let Some(point) = sampler.position(ack)
        {
            self.raise(point);
            self.dirty = None;
        }
        let Some(sighting) = self.sighting else { return };
        let bounds = |replica: &&Replica| {
            let same = replica.node == sighting.node && replica.incarnation == sighting.incarnation;
            same && replica.health == Health::Up && replica.position_taken_after >= sighting.finished
        };
        // A position taken after the read lies behind everything the read can have seen (K-8).
        if let Some(replica) = replicas.iter().find(bounds) {
            self.raise(replica.position);
            self.sighting = None;
        }
    }

    /// The point to give out as a token; `None` while something is not sampled, or if nothing was read or written yet.
    pub fn export(&mut self, sampler: &Sampler, replicas: &[Replica]) -> Option<Point> {
        self.resolve(sampler, replicas);
        if self.dirty.is_some() || self.sighting.is_some() { None } else { self.floor }
    }

    /// The primary changed: the floor is followed to the new timeline, or found to be lost (K-10).
    pub fn on_lineage(&mut self, lineage: &Lineage) -> Result<(), BadToken> {
        if let Some(floor) = self.floor {
            self.floor = Some(lineage.follow(floor)?);
        }
        Ok(())
    }

    /// Forgets what was lost, where the policy accepts it.
    pub fn accept_loss(&mut self) {
        self.floor = None;
    }

    /// When the read on a replica ended whose position is not known yet.
    pub fn unproven(&self) -> Option<Moment> {
        self.sighting.map(|sighting| sighting.finished)
    }

    /// Whether it neither did nor saw anything yet.
    pub fn is_blank(&self) -> bool {
        self.floor.is_none() && self.dirty.is_none() && self.sighting.is_none()
    }

    /// Whether the primary did something for it whose position is unknown.
    pub fn is_dirty(&self) -> bool {
        self.dirty.is_some()
    }
}

/// How long a read may wait in the router for a replica to catch up before it goes to the primary (K-6).
pub fn wait_budget(configured: Option<Millis>, primary_round_trip: Millis) -> Millis {
    configured.unwrap_or(Millis(20.min(primary_round_trip.0.saturating_mul(2).max(1))))
}
