//! Lag in the situations in which other tools show the wrong number.

use super::*;
use proptest::prelude::*;

const PRIMARY: NodeId = NodeId(1);
const REPLICA: NodeId = NodeId(2);
const FRESH: Millis = Millis(1_500);
const T: Timeline = Timeline(1);

/// Primary and replica looked at together every half second.
struct World {
    tracker: LagTracker,
    now: Moment,
    primary: Option<Lsn>,
    view: Option<ReplicaView>,
}

impl World {
    fn new() -> World {
        World { tracker: LagTracker::default(), now: Moment(10_000), primary: Some(Lsn(1_000)), view: None }
    }
    /// The replica is seen now, its link alive.
    fn replica_at(&mut self, replayed: u64) {
        self.view = Some(ReplicaView {
            timeline: T,
            received: Some(Lsn(replayed)),
            replayed: Some(Lsn(replayed)),
            taken_at: self.now,
            link_alive_at: Some(self.now),
            link_up: true,
        });
    }
    fn look(&mut self) -> Lag {
        if let Some(position) = self.primary {
            self.tracker.observe_primary(PRIMARY, T, position, self.now);
        }
        self.tracker.lag(self.now, REPLICA, self.view.as_ref(), FRESH)
    }
    fn wait(&mut self, millis: u64) {
        self.now = self.now.plus(Millis(millis));
    }
}

#[test]
fn an_idle_primary_leaves_lag_at_zero_for_hours() {
    let mut world = World::new();
    for _ in 0..7_200 {
        world.wait(500);
        world.replica_at(1_000);
        let lag = world.look();
        assert_eq!((lag.seconds, lag.apply_bytes, lag.method.as_str()), (Some(0.0), Some(0), "position-history"));
    }
}

#[test]
fn a_cut_link_is_never_zero_and_rises_within_two_seconds() {
    let mut world = World::new();
    world.replica_at(1_000);
    assert_eq!(world.look().seconds, Some(0.0));
    let cut_at = world.now;
    // The observer still hears both; the replica is told to have no live link, its position equals the primary's.
    for _ in 0..10 {
        world.wait(500);
        let view = world.view.as_mut().expect("seen");
        (view.taken_at, view.link_up) = (world.now, false);
        let lag = world.look();
        assert_eq!(lag.seconds, Some(world.now.since(cut_at).seconds()));
        assert_eq!(lag.method, "link-silence");
    }
}

#[test]
fn a_silent_replica_and_a_silent_primary_both_make_lag_grow() {
    for primary_silent in [false, true] {
        let mut world = World::new();
        world.replica_at(1_000);
        world.look();
        let heard_at = world.now;
        world.wait(2_000);
        if primary_silent {
            world.primary = None;
            world.replica_at(1_000);
        }
        assert_eq!(world.look().seconds, Some(world.now.since(heard_at).seconds()));
    }
}

#[test]
fn a_frozen_replay_grows_while_the_primary_writes() {
    let mut world = World::new();
    world.replica_at(1_000);
    world.look();
    let frozen_at = world.now;
    for step in 1..=20 {
        world.wait(500);
        world.primary = Some(Lsn(1_000 + step * 100));
        world.replica_at(1_000);
        let lag = world.look();
        assert_eq!(lag.seconds, Some(world.now.since(frozen_at).seconds()));
        assert_eq!(lag.apply_bytes, Some(step * 100));
    }
}

#[test]
fn a_replica_in_between_two_looks_is_as_old_as_the_primary_was_there() {
    let mut world = World::new();
    world.replica_at(1_000);
    world.look();
    world.wait(1_000);
    world.primary = Some(Lsn(2_000));
    world.replica_at(1_750);
    assert_eq!(world.look().seconds, Some(0.25));
}

#[test]
fn a_replica_ahead_of_an_older_look_at_the_primary_has_no_lag() {
    let mut world = World::new();
    world.replica_at(1_400);
    let lag = world.look();
    assert_eq!((lag.seconds, lag.apply_bytes), (Some(0.0), Some(0)));
}

#[test]
fn what_was_never_known_is_unknown_and_not_zero() {
    let mut world = World::new();
    assert_eq!(world.look().seconds, None, "never seen");
    world.replica_at(10);
    let lag = world.look();
    assert_eq!((lag.seconds, lag.apply_bytes), (None, Some(990)), "behind from the first look on");
    world.wait(2_000);
    world.replica_at(10);
    assert_eq!(world.look().seconds, Some(2.0), "by now, at least this much");
}

#[test]
fn another_timeline_cannot_be_compared() {
    let mut world = World::new();
    world.replica_at(1_000);
    world.look();
    let promoted_at = world.now;
    world.wait(1_000);
    world.tracker.observe_primary(NodeId(3), Timeline(2), Lsn(900), world.now);
    world.replica_at(1_000);
    let lag = world.tracker.lag(world.now, REPLICA, world.view.as_ref(), FRESH);
    assert_eq!((lag.apply_bytes, lag.receive_bytes), (None, None));
    assert_eq!(lag.seconds, Some(world.now.since(promoted_at).seconds()), "grows until it follows the new timeline");
}

#[test]
fn memory_is_bounded_and_lag_of_long_ago_survives_it() {
    let mut world = World::new();
    world.replica_at(1_000);
    world.look();
    let frozen_at = world.now;
    for step in 1..(MARKS_MAX as u64 + 100) {
        world.wait(500);
        world.primary = Some(Lsn(1_000 + step));
        world.replica_at(1_000);
        world.look();
    }
    assert_eq!(world.tracker.history.marks.len(), MARKS_MAX);
    assert_eq!(world.look().seconds, Some(world.now.since(frozen_at).seconds()));
}

#[derive(Clone, Debug)]
enum Turn {
    Write(u64),
    Apply(u64),
    Cut,
    Heal,
    Wait(u64),
}

fn turn() -> impl Strategy<Value = Turn> {
    prop_oneof![
        (1..10_000u64).prop_map(Turn::Write),
        (1..10_000u64).prop_map(Turn::Apply),
        Just(Turn::Cut),
        Just(Turn::Heal),
        (1..5_000u64).prop_map(Turn::Wait),
    ]
}

proptest! {
    #[test]
    fn lag_is_never_negative_is_known_for_ever_once_known_and_rises_in_silence(
        turns in proptest::collection::vec(turn(), 1..60),
        silence in proptest::collection::vec(1..3_000u64, 1..20),
    ) {
        let mut world = World::new();
        let (mut position, mut replayed, mut linked, mut known) = (1_000, 900, true, false);
        for turn in turns {
            world.wait(1);
            match turn {
                Turn::Write(bytes) => position += bytes,
                Turn::Apply(bytes) => replayed = if linked { position.min(replayed + bytes) } else { replayed },
                Turn::Cut => linked = false,
                Turn::Heal => linked = true,
                Turn::Wait(millis) => world.wait(millis),
            }
            world.primary = Some(Lsn(position));
            let alive_before = world.view.and_then(|view| view.link_alive_at);
            world.replica_at(replayed);
            if !linked {
                let view = world.view.as_mut().expect("just seen");
                (view.link_up, view.link_alive_at) = (false, alive_before);
            }
            let lag = world.look();
            prop_assert!(lag.seconds.is_none_or(|seconds| seconds >= 0.0));
            prop_assert!(!known || lag.seconds.is_some(), "once known, for ever known");
            known |= lag.seconds.is_some();
            prop_assert!(lag.seconds != Some(0.0) || replayed >= position || linked, "zero needs a live link or nothing missing");
        }
        world.primary = None;
        let mut before = world.look().seconds;
        for millis in silence {
            world.wait(millis);
            let after = world.look().seconds;
            prop_assert!(after >= before, "{before:?} then {after:?}");
            before = after;
        }
        world.wait(2_000);
        prop_assert!(world.look().seconds.is_none_or(|seconds| seconds >= 2.0));
    }
}
