//! Links, replay and lag of replicas as status shows them.

use super::*;

#[test]
fn a_cut_between_primary_and_replica_shows_within_two_seconds() {
    let mut world = World::new(3);
    world.look();
    for _ in 0..4 {
        world.cut(500, 1, 2);
    }
    let status = world.look();
    let n2 = node(&status, "n2");
    assert_eq!((n2.link_up, n2.link), (false, Some(LinkStatus::Disconnected)));
    assert!(lag(&status, "n2").is_some_and(|seconds| seconds >= 2.0), "{:?}", n2.lag);
    assert_eq!(brief(&status), [("ST3013", WARNING, "n2")]);
    assert!(node(&status, "n3").link_up);
}

#[test]
fn an_idle_link_that_hears_only_keepalives_is_up() {
    let mut world = World::new(3);
    for age in [2_600, 100, 1_900, 2_900] {
        world.wait(500, &[]);
        world.receiver(2).last_message_age_ms = Some(age);
        let status = world.look();
        assert_eq!((lag(&status, "n2"), node(&status, "n2").link_up), (Some(0.0), true), "{age}");
    }
}

#[test]
fn a_blocked_database_port_shows_though_the_keepers_hear_each_other() {
    let mut world = World::new(3);
    world.look();
    world.receiver(2).last_message_age_ms = Some(6_000);
    world.wait(500, &[]);
    let status = world.look();
    assert!(!node(&status, "n2").link_up);
    assert_eq!(status.problems[0].cause, "its connection to n1 is silent");
}

#[test]
fn a_replica_that_streams_from_the_wrong_node_is_named() {
    let mut world = World::new(3);
    world.receiver(2).upstream = "h3:5432".into();
    let status = world.look();
    assert_eq!(status.problems[0].cause, "it streams from h3:5432 instead of n1");
}

#[test]
fn a_cascade_is_judged_by_its_own_link_and_the_primarys_position() {
    let mut cascade = state(3);
    cascade.members.get_mut(&NodeId(3)).expect("member").upstream = Some(NodeId(2));
    cascade.rule.voters = [NodeId(2)].into();
    cascade.rule.recruit_quorum = 1;
    let mut world = World::of(cascade);
    let status = world.look();
    assert_eq!(status.verdict, Verdict::Healthy, "{:?}", status.problems);
    let n3 = node(&status, "n3");
    assert!(n3.cascading && n3.link_up && n3.sync == "async");
    for _ in 0..4 {
        world.cut(500, 2, 3);
        world.receiver(2).last_message_age_ms = Some(100);
    }
    world.facts(1).written = Some(Lsn(AT.0 + 4_096));
    world.facts(2).replayed = Some(Lsn(AT.0 + 4_096));
    let status = world.look();
    assert_eq!(brief(&status), [("ST3013", WARNING, "n3")]);
    assert_eq!(status.problems[0].what, "replication from n2 to n3 is down");
    assert_eq!(node(&status, "n3").lag.as_ref().and_then(|lag| lag.apply_bytes), Some(4_096));
}

#[test]
fn a_frozen_replay_tells_whether_somebody_paused_it() {
    let mut world = World::new(3);
    world.look();
    for step in 1..=12 {
        world.wait(500, &[]);
        let written = Lsn(AT.0 + step * 1_000);
        world.facts(1).written = Some(written);
        world.facts(2).received = Some(written);
        (world.facts(3).received, world.facts(3).replayed) = (Some(written), Some(written));
        let status = world.look();
        assert_eq!(status.problems.is_empty(), step < 11, "5 s after the first log that was not applied: {step}");
    }
    let status = world.look();
    assert_eq!(brief(&status), [("ST3012", WARNING, "n2")]);
    assert_eq!(status.problems[0].what, format!("n2: replay frozen at {AT}"));
    assert!(status.problems[0].cause.contains("a query holds it up"));
    assert!(lag(&status, "n2").is_some_and(|seconds| (5.0..7.0).contains(&seconds)), "{:?}", lag(&status, "n2"));
    world.facts(2).replay_paused = true;
    let status = world.look();
    assert_eq!(status.problems[0].cause, "paused with pg_wal_replay_pause");
    assert_eq!(status.problems[0].next, "on h2:5432: SELECT pg_wal_replay_resume()");
}

#[test]
fn a_delayed_replica_within_its_delay_is_as_it_should_be() {
    let mut delayed = state(3);
    let n3 = delayed.members.get_mut(&NodeId(3)).expect("member");
    (n3.kind, n3.apply_delay_ms) = (ReplicaKind::Delayed, 60_000);
    delayed.rule.voters = [NodeId(2)].into();
    delayed.rule.recruit_quorum = 1;
    let mut world = World::of(delayed);
    world.look();
    for step in 1..=50 {
        world.wait(1_000, &[]);
        let written = Lsn(AT.0 + step * 1_000);
        world.facts(1).written = Some(written);
        (world.facts(2).received, world.facts(2).replayed) = (Some(written), Some(written));
        world.facts(3).received = Some(written);
    }
    let status = world.look();
    assert_eq!(brief(&status), []);
    assert!(lag(&status, "n3").is_some_and(|seconds| seconds >= 49.0), "its lag is shown all the same");
}

#[test]
fn lag_above_the_bound_is_a_problem_with_its_bottleneck() {
    let mut world = World::new(3);
    world.state.settings.lag_warn = Span(Millis(1_000));
    world.look();
    for step in 1..=6 {
        world.wait(500, &[]);
        let written = Lsn(AT.0 + step * 10_000_000);
        world.facts(1).written = Some(written);
        world.facts(2).received = Some(written);
        world.facts(2).replayed = Some(Lsn(AT.0 + step * 1_000_000));
        (world.facts(3).received, world.facts(3).replayed) = (Some(written), Some(written));
        world.look();
    }
    let status = world.look();
    assert_eq!(brief(&status), [("ST3015", WARNING, "n2")]);
    assert_eq!(status.problems[0].what, "n2 is 2.7 s behind, 51 MB to apply");
    assert_eq!(status.problems[0].cause, "the log is applied too slowly");
}
