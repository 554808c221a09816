//! Lag that stays right where the usual formulas lie: an idle primary, a cut network, a frozen replay.
//!
//! The observer remembers when, by its own clock, it saw the primary at which position. From a replica's position
//! follows the latest moment up to which the replica is *proved* to have everything (`as_of`); lag is the time since.
//! Whatever is not heard does not move that moment, so silence of any party makes lag grow and never makes it zero.
//! No civil clock is read, so clock steps on any node change nothing.

use model::limits::LINK_SILENT_AFTER;
use model::names::NodeId;
use model::status::Lag;
use model::units::{Lsn, Millis, Moment, Timeline};
use std::collections::{BTreeMap, VecDeque};

/// Kept marks: half an hour at the default interval. What is older matters only to a replica that this observer never
/// saw in order; such lag is given as a lower bound.
pub const MARKS_MAX: usize = 4_096;

/// One position of the primary, and when it was seen there first and last.
#[derive(Clone, Copy, Debug)]
struct Mark {
    position: Lsn,
    first: Moment,
    last: Moment,
}

/// Where the primary was when, on one timeline.
#[derive(Debug, Default)]
struct History {
    writer: Option<(NodeId, Timeline)>,
    marks: VecDeque<Mark>,
}

/// What a replica's position says about the age of its data.
enum Reach {
    /// It has everything that the primary is known to have had, up to this moment.
    Everything(Moment),
    /// It has everything up to this moment, and lacks something.
    Until(Moment),
    /// It lacks something that the primary already had when this observer first looked.
    BeforeFirst(Moment),
    /// Nothing of the primary is known, or it is on another timeline.
    NotComparable,
}

impl History {
    fn observe(&mut self, writer: (NodeId, Timeline), position: Lsn, seen_at: Moment) {
        let backwards = self.marks.back().is_some_and(|mark| position < mark.position && seen_at > mark.last);
        if self.writer != Some(writer) || backwards {
            self.writer = Some(writer);
            self.marks.clear();
        }
        match self.marks.back_mut() {
            Some(mark) if seen_at < mark.last => return,
            Some(mark) if mark.position == position => {
                mark.last = seen_at;
                return;
            }
            Some(_) | None => self.marks.push_back(Mark { position, first: seen_at, last: seen_at }),
        }
        if self.marks.len() > MARKS_MAX {
            self.marks.pop_front();
        }
    }

    fn newest(&self, timeline: Timeline) -> Option<Lsn> {
        let comparable = self.writer.is_some_and(|(_, writes)| writes == timeline);
        self.marks.back().filter(|_| comparable).map(|mark| mark.position)
    }

    fn reach(&self, timeline: Timeline, replayed: Lsn) -> Reach {
        let comparable = self.writer.is_some_and(|(_, writes)| writes == timeline);
        let (Some(oldest), Some(newest)) = (self.marks.front(), self.marks.back()) else { return Reach::NotComparable };
        if !comparable {
            return Reach::NotComparable;
        }
        if replayed >= newest.position {
            return Reach::Everything(newest.last);
        }
        let above = self.marks.partition_point(|mark| mark.position <= replayed);
        if above == 0 {
            return Reach::BeforeFirst(oldest.first);
        }
        Reach::Until(between(&self.marks[above - 1], &self.marks[above], replayed))
    }
}

/// When the primary was at `position`, taking its pace between two looks as even. Positions at a mark count from the
/// last moment the primary was seen there: what it wrote afterwards, the replica lacks.
fn between(below: &Mark, above: &Mark, position: Lsn) -> Moment {
    let span = above.first.since(below.last).0 as u128;
    let whole = u128::from(above.position.lag_of(below.position).0.max(1));
    let part = u128::from(position.lag_of(below.position).0);
    below.last.plus(Millis(u64::try_from(span * part / whole).unwrap_or(0)))
}

/// A replica as the observer sees it.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaView {
    /// The timeline it replays.
    pub timeline: Timeline,
    /// Received and flushed.
    pub received: Option<Lsn>,
    /// Applied.
    pub replayed: Option<Lsn>,
    /// When this was so, by the observer's clock.
    pub taken_at: Moment,
    /// When the way to its upstream was last proved to work; `None` if never.
    pub link_alive_at: Option<Moment>,
    /// Whether the way to its upstream is proved to work now.
    pub link_up: bool,
}

/// Remembers what is needed to tell the lag of every replica.
#[derive(Debug, Default)]
pub struct LagTracker {
    history: History,
    primary_seen_at: Option<Moment>,
    as_of: BTreeMap<NodeId, Moment>,
}

impl LagTracker {
    /// Takes in one look at the primary.
    pub fn observe_primary(&mut self, primary: NodeId, timeline: Timeline, position: Lsn, seen_at: Moment) {
        self.history.observe((primary, timeline), position, seen_at);
        self.primary_seen_at = self.primary_seen_at.max(Some(seen_at));
    }

    /// Forgets replicas that are gone.
    pub fn retain(&mut self, keep: impl Fn(NodeId) -> bool) {
        self.as_of.retain(|node, _| keep(*node));
    }

    /// The lag of one replica; `view` is the newest look at it, however old, and `fresh` the age from which a look no
    /// longer says how things are now.
    pub fn lag(&mut self, now: Moment, replica: NodeId, view: Option<&ReplicaView>, fresh: Millis) -> Lag {
        let mut complete = false;
        let mut lower_bound = None;
        if let Some((view, replayed)) = view.and_then(|view| view.replayed.map(|replayed| (view, replayed))) {
            match self.history.reach(view.timeline, replayed) {
                // Equal positions prove nothing about what was written after the link went silent.
                Reach::Everything(moment) => {
                    complete = true;
                    if let Some(alive) = view.link_alive_at {
                        self.advance(replica, moment.min(alive));
                    }
                }
                Reach::Until(moment) => self.advance(replica, moment),
                Reach::BeforeFirst(moment) => lower_bound = Some(moment),
                Reach::NotComparable => {}
            }
        }
        let looked_at = view.map_or(Moment(0), |view| view.taken_at);
        let replica_fresh = view.is_some() && now.since(looked_at) <= fresh;
        let primary_fresh = self.primary_seen_at.is_some_and(|seen| now.since(seen) <= fresh);
        let link_up = view.is_some_and(|view| view.link_up);
        let until = if replica_fresh { looked_at } else { now };
        let known = self.as_of.get(&replica).copied();
        let (seconds, method) = match (known, lower_bound) {
            (Some(_), _) if complete && link_up && replica_fresh && primary_fresh => (Some(0.0), "position-history"),
            (Some(as_of), _) if complete || !replica_fresh || !primary_fresh => {
                (Some(now.since(as_of).seconds()), "link-silence")
            }
            (Some(as_of), _) => (Some(until.since(as_of).seconds()), "position-history"),
            (None, Some(first)) if until.since(first) >= LINK_SILENT_AFTER => {
                (Some(until.since(first).seconds()), Lag::LOWER_BOUND)
            }
            (None, Some(_) | None) => (None, "unknown"),
        };
        let newest = view.and_then(|view| self.history.newest(view.timeline));
        let distance = |position: Option<Lsn>| Some(newest?.lag_of(position?).0);
        Lag {
            apply_bytes: distance(view.and_then(|view| view.replayed)),
            receive_bytes: distance(view.and_then(|view| view.received)),
            seconds,
            method: method.to_owned(),
        }
    }

    fn advance(&mut self, replica: NodeId, moment: Moment) {
        let as_of = self.as_of.entry(replica).or_insert(moment);
        *as_of = moment.max(*as_of);
    }
}

#[cfg(test)]
mod tests;
