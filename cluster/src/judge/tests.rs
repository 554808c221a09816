//! Status as people see it: healthy, degraded and down, and each problem with cause and next command.

use super::*;
use crate::scenes::{AT, SALT, WALL, consensus, member, observed, parsed, state};
use model::failover::{Failover, FailoverKind, FailoverPhase, PhaseTime};
use model::observe::{CloneProgress, NodeSample, PendingRestart, Receiver};
use model::settings::{CommitMode, Size, Span};
use model::state::{ReplicaKind, Role};
use model::status::{LinkStatus, NodeStatus};
use model::units::{Epoch, Timeline};
use std::sync::Arc;

mod anything;
mod replicas;

/// A cluster that lives on as long as nobody interferes: every look refreshes the samples of all who are not `cut`.
struct World {
    judge: Judge,
    now: Moment,
    state: ClusterState,
    observed: BTreeMap<NodeId, Observed>,
    consensus: ConsensusView,
}

impl World {
    fn new(data: u64) -> World {
        World::of(state(data))
    }
    fn of(state: ClusterState) -> World {
        let now = Moment(1_000_000);
        let (observed, consensus) = (observed(&state, now), consensus(&state));
        World { judge: Judge::new(parsed("n1")), now, state, observed, consensus }
    }
    fn look(&mut self) -> ClusterStatus {
        let none = BTreeMap::new();
        let wall = WallTime(WALL.0 + i64::try_from(self.now.0 - 1_000_000).expect("small"));
        self.judge.judge(self.now, wall, &self.state, &self.observed, &self.consensus, SALT, &none)
    }
    fn sample(&mut self, id: u64) -> &mut NodeSample {
        Arc::make_mut(&mut self.observed.get_mut(&NodeId(id)).expect("observed").sample)
    }
    fn facts(&mut self, id: u64) -> &mut ServerFacts {
        self.sample(id).facts.as_mut().expect("runs")
    }
    fn receiver(&mut self, id: u64) -> &mut Receiver {
        self.facts(id).receiver.as_mut().expect("has one")
    }
    fn set(&mut self, id: u64, server: ServerState) {
        let sample = self.sample(id);
        (sample.server, sample.facts) = (server, None);
    }
    /// Time passes; everybody but `silent` is heard and sampled again, as they were.
    fn wait(&mut self, millis: u64, silent: &[u64]) {
        self.now = self.now.plus(Millis(millis));
        for (id, seen) in &mut self.observed {
            if !silent.contains(&id.0) {
                (seen.taken_at, seen.heard_at) = (self.now, self.now);
                Arc::make_mut(&mut seen.sample).wall.0 += i64::try_from(millis).expect("small");
            }
        }
    }
    /// `a` and `b` are cut from each other; the observer hears both. Ages grow as they would.
    fn cut(&mut self, millis: u64, a: u64, b: u64) {
        self.wait(millis, &[]);
        for (from, to) in [(a, b), (b, a)] {
            *self.sample(from).peers_heard_ms.get_mut(&NodeId(to)).expect("peer") += millis;
            if let Some(receiver) = self.facts(from).receiver.as_mut() {
                *receiver.last_message_age_ms.as_mut().expect("known") += millis;
            }
        }
    }
}

/// Code, severity, node of each problem.
fn brief(status: &ClusterStatus) -> Vec<(&str, Severity, &str)> {
    for problem in &status.problems {
        assert!(!problem.what.is_empty() && !problem.cause.is_empty() && !problem.next.is_empty(), "{problem:?}");
    }
    status
        .problems
        .iter()
        .map(|problem| (problem.code.as_str(), problem.severity, problem.node.as_ref().map_or("-", NodeName::as_str)))
        .collect()
}
fn node<'a>(status: &'a ClusterStatus, name: &str) -> &'a NodeStatus {
    status.node(name).expect(name)
}
fn lag(status: &ClusterStatus, name: &str) -> Option<f64> {
    node(status, name).lag.as_ref().and_then(|lag| lag.seconds)
}
const WARNING: Severity = Severity::Warning;
const CRITICAL: Severity = Severity::Critical;
const INFO: Severity = Severity::Info;

#[test]
fn a_healthy_cluster_says_what_it_survives_and_what_would_be_lost() {
    let status = World::new(3).look();
    assert_eq!(status.verdict, Verdict::Healthy);
    assert_eq!(status.sentence, "tolerates 1 more failure · data loss if the primary died now: 0 (1 of 2 synchronous)");
    assert_eq!(brief(&status), []);
    assert!(status.primary_up && status.durability.in_force);
    assert_eq!(status.engine, "PostgreSQL 15.18");
    assert_eq!(status.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["n1", "n2", "n3"]);
    assert_eq!((node(&status, "n1").role, node(&status, "n1").sync.as_str()), (Role::Primary, "-"));
    for replica in ["n2", "n3"] {
        let line = node(&status, replica);
        assert_eq!((line.sync.as_str(), line.link, line.link_up), ("sync", Some(LinkStatus::Streaming), true));
        assert_eq!(lag(&status, replica), Some(0.0));
        assert!(line.healthy);
    }
    assert_eq!(node(&status, "n1").disk_used_percent, Some(41));
}

#[test]
fn the_primary_stands_first_whatever_its_name() {
    let mut moved = state(3);
    moved.rule.primary = NodeId(3);
    moved.rule.voters = [NodeId(1), NodeId(2)].into();
    let status = World::of(moved).look();
    assert_eq!(status.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(), ["n3", "n1", "n2"]);
    assert_eq!(status.verdict, Verdict::Healthy);
}

#[test]
fn failures_tolerated_are_counted_from_both_majorities() {
    let tolerated = |state: ClusterState| World::of(state).look().durability.failures_tolerated;
    assert_eq!(tolerated(state(1)), 0);
    assert_eq!(tolerated(state(2)), 0, "two consensus voters need each other");
    let mut with_witness = state(3);
    with_witness.members.get_mut(&NodeId(3)).expect("member").witness = true;
    with_witness.rule.voters = [NodeId(2)].into();
    with_witness.rule.recruit_quorum = 1;
    assert_eq!(tolerated(with_witness.clone()), 1);
    with_witness.settings.strict = true;
    assert_eq!(tolerated(with_witness), 0, "strict: without n2 commits would wait for ever");
    assert_eq!(tolerated(state(3)), 1);
    let mut five = state(5);
    assert_eq!(tolerated(five.clone()), 1, "one acknowledgement: the primary and the only holder may both be lost");
    (five.rule.acks, five.rule.recruit_quorum, five.settings.commit_mode) = (2, 3, CommitMode::Quorum);
    assert_eq!(tolerated(five.clone()), 2);
    (five.rule.acks, five.rule.recruit_quorum, five.settings.commit_mode) = (0, 4, CommitMode::Async);
    assert_eq!(tolerated(five), 0, "async: the loss of the primary loses data");
    let mut never = state(3);
    for id in [2, 3] {
        never.members.get_mut(&NodeId(id)).expect("member").priority = 0;
    }
    assert_eq!(tolerated(never), 0, "nobody may take over");
}

#[test]
fn a_lost_replica_degrades_with_cause_and_command() {
    let mut world = World::new(3);
    world.look();
    world.wait(11_000, &[3]);
    world.facts(1).senders.retain(|sender| !sender.application_name.contains("n3"));
    let status = world.look();
    assert_eq!(status.verdict, Verdict::Degraded);
    assert_eq!(status.sentence, "tolerates 0 failures · data loss if the primary died now: 0 (1 of 2 synchronous)");
    assert_eq!(brief(&status), [("ST2114", WARNING, "n3")], "the silent keeper is the root, its link is not listed");
    assert_eq!(status.problems[0].for_ms, 11_000, "counted from when it was last heard");
    assert_eq!(status.problems[0].next, "on h3: stemma run");
    let n3 = node(&status, "n3");
    assert_eq!(
        (n3.keeper_up, n3.link_up, n3.server.as_str(), n3.sync.as_str()),
        (false, false, "unknown", "potential")
    );
    assert_eq!(lag(&status, "n3"), Some(11.05), "its last word was 50 ms old when it was sampled");
}

#[test]
fn a_silent_primary_is_down_and_lag_grows_from_its_last_word() {
    let mut world = World::new(3);
    world.judge = Judge::new(parsed("n2"));
    world.look();
    for id in [2, 3] {
        world.sample(id).peers_heard_ms.insert(NodeId(1), 12_000);
        world.facts(id).receiver = None;
    }
    world.wait(12_000, &[1]);
    let status = world.look();
    assert_eq!((status.verdict, status.primary_up), (Verdict::Down, false));
    assert_eq!(
        status.sentence,
        "takes no writes: primary n1 is down: its keeper is silent and no replica receives from it (h1 is down or cut off)"
    );
    assert_eq!(brief(&status), [("ST2205", CRITICAL, "n1")], "links of replicas and the keeper follow from it");
    assert_eq!(status.problems[0].for_ms, 12_000);
    assert_eq!(status.durability.failures_tolerated, -1);
    assert_eq!(status.durability.loss_now_bytes, Some(0), "what was acknowledged is on a voter");
    assert_eq!(lag(&status, "n2"), Some(12.05));
}

#[test]
fn a_failed_primary_says_what_its_server_said() {
    let mut world = World::new(3);
    world.set(1, ServerState::Failed { reason: "could not write lock file: No space left on device".into() });
    let status = world.look();
    assert_eq!(status.verdict, Verdict::Down);
    assert_eq!(brief(&status)[0], ("ST2205", CRITICAL, "n1"));
    assert_eq!(status.problems[0].cause, "its server failed: could not write lock file: No space left on device");
    assert!(!brief(&status).iter().any(|(code, ..)| *code == "ST3020"), "told once");
}

#[test]
fn a_dead_keeper_of_a_living_primary_is_no_outage() {
    let mut world = World::new(3);
    world.judge = Judge::new(parsed("n2"));
    world.look();
    for id in [2, 3] {
        world.sample(id).peers_heard_ms.insert(NodeId(1), 20_000);
    }
    world.wait(20_000, &[1]);
    let status = world.look();
    assert_eq!((status.verdict, status.primary_up), (Verdict::Degraded, true));
    assert_eq!(brief(&status), [("ST2114", WARNING, "n1")]);
    assert!(node(&status, "n2").link_up, "messages came long after the keepers lost each other");
}

#[test]
fn a_dead_keeper_of_a_living_replica_shows_its_lag_from_the_primary() {
    let mut world = World::new(3);
    world.look();
    world.wait(8_000, &[3]);
    let status = world.look();
    assert_eq!(brief(&status), [("ST2114", WARNING, "n3")]);
    assert_eq!((node(&status, "n3").link_up, lag(&status, "n3")), (true, Some(0.0)));
}

#[test]
fn nothing_heard_is_not_healthy() {
    let mut world = World::new(3);
    world.observed.clear();
    let status = world.look();
    assert_eq!(status.verdict, Verdict::Down);
    assert!(status.sentence.contains("nothing was heard of n1 yet"), "{}", status.sentence);
    assert!(status.sentence.ends_with("seen by n1 alone, which hears no other keeper"), "{}", status.sentence);
    assert_eq!(lag(&status, "n2"), None);
    assert!(status.nodes.iter().all(|node| !node.healthy && node.lag.as_ref().is_none_or(|lag| lag.seconds.is_none())));
}

#[test]
fn a_lowered_number_of_acknowledgements_says_why_and_what_to_do() {
    let mut world = World::new(2);
    (world.state.rule.acks, world.state.rule.recruit_quorum) = (0, 1);
    world.facts(1).synchronous_standby_names = String::new();
    world.facts(1).senders.clear();
    world.facts(2).receiver = None;
    world.facts(1).written = Some(Lsn(AT.0 + 114_688));
    let status = world.look();
    let lowered = status.problems.iter().find(|problem| problem.code == "ST2204").expect("reported");
    assert_eq!(lowered.what, "commits are ASYNC: no replica holds them when they are acknowledged");
    assert_eq!(lowered.cause, "strict=false: acks lowered to 0 through consensus, 0 of 1 voters reachable");
    assert_eq!(status.durability.loss_now_bytes, Some(114_688));
    assert_eq!((status.durability.acks, status.durability.acks_wanted), (0, 1));
    assert!(status.sentence.contains("at least 112 kB"), "{}", status.sentence);
}

#[test]
fn commits_that_wait_are_critical() {
    let mut world = World::new(2);
    world.state.settings.strict = true;
    world.facts(1).senders.clear();
    world.facts(2).receiver = None;
    let status = world.look();
    assert_eq!(brief(&status), [("ST2204", CRITICAL, "-"), ("ST3013", WARNING, "n2")]);
    assert!(status.sentence.starts_with("takes no writes now"), "{}", status.sentence);
    assert!(status.problems[0].next.contains("stemma config set strict=false"));
}

#[test]
fn a_server_that_waits_for_less_than_the_rule_is_critical() {
    let mut world = World::new(3);
    world.facts(1).synchronous_standby_names = String::new();
    let status = world.look();
    assert_eq!(brief(&status)[0], ("ST2204", CRITICAL, "-"));
    assert!(!status.durability.in_force);
    assert_eq!(status.durability.failures_tolerated, 0);
}

#[test]
fn one_data_node_is_told_how_to_get_another() {
    let status = World::new(1).look();
    assert_eq!(status.verdict, Verdict::Healthy);
    assert_eq!(brief(&status), [("ST2204", INFO, "-")]);
    assert!(status.problems[0].next.starts_with("stemma token create"));
    assert_eq!(status.sentence, "tolerates 0 failures · data loss if the primary died now: everything (no other copy)");
}

#[test]
fn the_first_server_and_first_replicas_are_forming_not_broken() {
    let mut new = state(1);
    new.identity.system_id = None;
    new.members.get_mut(&NodeId(1)).expect("member").stage = Stage::Joining;
    let mut world = World::of(new);
    world.set(1, ServerState::Initialising);
    let status = world.look();
    assert_eq!((status.verdict, status.sentence.as_str()), (Verdict::Forming, "the first server is being made on n1"));
    let mut joins = state(2);
    joins.members.get_mut(&NodeId(2)).expect("member").stage = Stage::Joining;
    (joins.rule.acks, joins.rule.recruit_quorum) = (0, 0);
    joins.rule.voters.clear();
    let mut world = World::of(joins);
    world.set(2, ServerState::Cloning(CloneProgress { attempt: 1, ..CloneProgress::default() }));
    let status = world.look();
    assert_eq!((status.verdict, brief(&status)), (Verdict::Forming, vec![]));
    assert!(status.sentence.starts_with("n2 being built · tolerates 0 failures"), "{}", status.sentence);
    let n2 = node(&status, "n2");
    assert_eq!((n2.link, n2.stage.as_str(), n2.healthy), (Some(LinkStatus::CatchingUp), "joining", false));
    assert!(n2.clone.is_some());
}

#[test]
fn a_primary_that_is_kept_from_starting_tells_by_what() {
    let mut world = World::new(3);
    world.set(1, ServerState::Stopped);
    world.sample(1).last_error = Some(("ST1202".into(), "the directory is open to other users (ST1202)".into()));
    let status = world.look();
    let down = status.problems.iter().find(|problem| problem.code == "ST2205").expect("the primary is down");
    assert!(down.cause.contains("open to other users"), "{down:?}");
}

#[test]
fn a_clone_that_fails_shows_its_last_error() {
    let mut world = World::new(3);
    let last_error = Some("connection reset by h1".to_owned());
    world.set(3, ServerState::Cloning(CloneProgress { attempt: 3, last_error, ..CloneProgress::default() }));
    let status = world.look();
    assert!(brief(&status).contains(&("ST3001", WARNING, "n3")));
    let problem = status.problems.iter().find(|problem| problem.code == "ST3001").expect("reported");
    assert_eq!(problem.what, "base backup of n3 failed, attempt 3 is running");
    assert_eq!(problem.cause, "connection reset by h1");
}

#[test]
fn a_diverged_node_is_shown_under_its_own_code() {
    let mut world = World::new(3);
    world.state.members.get_mut(&NodeId(3)).expect("member").stage =
        Stage::Halted { code: "ST3010".into(), reason: "ahead of the primary".into(), since: WALL };
    world.set(3, ServerState::Stopped);
    let status = world.look();
    assert!(brief(&status).contains(&("ST3010", WARNING, "n3")), "{:?}", brief(&status));
    let problem = status.problems.iter().find(|problem| problem.code == "ST3010").expect("reported");
    assert!(problem.next.contains("stemma node rejoin n3") && problem.next.contains("stemma node reinit n3"));
    assert_eq!(node(&status, "n3").stage, "halted");
}

#[test]
fn a_replica_whose_log_is_gone_is_told_apart_from_a_link_that_is_down() {
    let mut world = World::new(3);
    world.facts(2).receiver = None;
    assert_eq!(world.look().problems[0].code, "ST3013");
    world.sample(2).last_error = Some(("ST3014".into(), "n1 no longer has the log from 0/5000000 on".into()));
    let status = world.look();
    let problem = &status.problems[0];
    assert_eq!((problem.code.as_str(), problem.cause.contains("0/5000000")), ("ST3014", true));
    assert!(problem.next.starts_with("stemma node reinit n2"), "{problem:?}");
    world.sample(2).last_error = Some(("ST3021".into(), "something else".into()));
    assert_eq!(world.look().problems[0].code, "ST3013");
}

#[test]
fn a_second_primary_is_the_worst_problem() {
    let mut world = World::new(3);
    let facts = world.facts(3);
    (facts.in_recovery, facts.timeline, facts.written) = (false, Timeline(2), Some(AT));
    let status = world.look();
    assert_eq!(brief(&status)[0], ("ST3022", CRITICAL, "n3"));
    assert_eq!(status.problems[0].what, "n3 accepts writes although n1 is the primary");
    assert_eq!(status.verdict, Verdict::Degraded);
}

/// An attempt that chose `winner` three seconds ago.
fn promoting(winner: u64) -> Failover {
    Failover {
        id: "fo_2".into(),
        epoch: Epoch(2),
        from: NodeId(1),
        kind: FailoverKind::Automatic,
        because: "n1 does not answer".into(),
        actor: "cluster".into(),
        request: String::new(),
        phase: FailoverPhase::Promote,
        recruited: BTreeMap::new(),
        refused: BTreeMap::new(),
        winner: Some(NodeId(winner)),
        next: None,
        unsettled: Vec::new(),
        loss_bytes: None,
        started_at: WallTime(WALL.0 - 4_000),
        phases: vec![PhaseTime { phase: FailoverPhase::Promote, at: WallTime(WALL.0 - 3_000) }],
        ended_because: String::new(),
    }
}

#[test]
fn the_winner_of_a_change_in_progress_is_expected_to_accept_writes_and_nobody_else_is() {
    let mut world = World::new(3);
    world.state.failover = Some(promoting(2));
    world.set(1, ServerState::Stopped);
    let facts = world.facts(2);
    (facts.in_recovery, facts.timeline, facts.written) = (false, Timeline(2), Some(AT));
    let status = world.look();
    let change = "n2 takes over from n1 (epoch 2, promote for 3.0 s)";
    assert!(brief(&status).iter().all(|(code, ..)| *code != "ST3022"), "{:?}", brief(&status));
    assert_eq!(status.sentence, format!("the primary is being changed: {change}"));
    assert_eq!(status.failover, Some(("fo_2".into(), format!("{change}: n1 does not answer"))));
    let down = status.problems.iter().find(|problem| problem.code == "ST2205").expect("no writes are taken");
    assert_eq!(down.next, format!("nothing: {change}"));

    world.state.failover = Some(promoting(3));
    assert!(brief(&world.look()).contains(&("ST3022", CRITICAL, "n2")), "n3 was chosen, n2 was not");
    world.state.failover = Some(Failover { phase: FailoverPhase::Recruit, ..promoting(2) });
    assert!(brief(&world.look()).contains(&("ST3022", CRITICAL, "n2")), "nobody was chosen yet");
}

#[test]
fn parameters_that_wait_show_both_values_and_do_not_degrade() {
    let mut world = World::new(3);
    world
        .facts(2)
        .pending_restart
        .insert("max_connections".into(), PendingRestart { old: "100".into(), new: "200".into() });
    let status = world.look();
    assert_eq!((status.verdict, brief(&status)), (Verdict::Healthy, vec![("ST3024", INFO, "n2")]));
    assert_eq!(status.problems[0].what, "n2 waits for a restart: max_connections 100 -> 200");
    assert_eq!(status.problems[0].next, "stemma restart --rolling --pending");
}

#[test]
fn host_troubles_are_seen_before_they_hurt() {
    let mut world = World::new(3);
    world.sample(2).wall.0 -= 2_000;
    world.sample(3).certificate_expires_at = Some(WallTime(WALL.0 + 3_600_000));
    world.sample(1).disk_free_bytes = Some(5);
    world.facts(1).slots[1].active = false;
    world.facts(1).slots[1].retained_bytes = Some(9 << 30);
    world.state.settings.slot_retention_size = Size(10 << 30);
    let status = world.look();
    let wanted =
        [("ST2113", WARNING, "n2"), ("ST3003", WARNING, "n1"), ("ST3023", WARNING, "n1"), ("ST8005", WARNING, "n3")];
    assert_eq!(brief(&status), wanted);
    let whats: Vec<&str> = status.problems.iter().map(|problem| problem.what.as_str()).collect();
    assert_eq!(
        whats,
        [
            "clock of n2 is 2.0 s behind the clock of n1",
            "disk of n1 is 95 % full",
            "slot stemma_n3_3 on n1 keeps 9.0 GB of log",
            "certificate of n3 expires in 1h 00m",
        ]
    );
    assert_eq!(node(&status, "n2").clock_offset_ms, Some(-2_000));
}

#[test]
fn a_failed_replica_server_says_what_it_said() {
    let mut world = World::new(3);
    world.set(2, ServerState::Failed { reason: "FATAL: invalid value".into() });
    let status = world.look();
    assert!(brief(&status).contains(&("ST3020", WARNING, "n2")));
    assert!(!brief(&status).iter().any(|(code, ..)| *code == "ST3013"), "told once");
}

#[test]
fn a_lost_majority_of_consensus_names_who_is_missing() {
    let mut world = World::new(3);
    world.look();
    world.wait(12_000, &[2, 3]);
    (world.consensus.up, world.consensus.age) = (false, Millis(12_000));
    let status = world.look();
    let problem = status.problems.iter().find(|problem| problem.code == "ST2105").expect("reported");
    assert_eq!(problem.cause, "1 of 3 voters answer n1, 2 are needed; silent: n2, n3");
    assert_eq!((problem.severity, problem.for_ms), (CRITICAL, 12_000));
    assert!(status.sentence.ends_with("seen by n1 alone, which hears no other keeper"), "{}", status.sentence);
}

#[test]
fn a_stale_view_says_so() {
    let mut world = World::new(3);
    (world.consensus.up, world.consensus.age) = (false, Millis(4_200));
    let status = world.look();
    assert!(
        status.sentence.ends_with("n1 last reached consensus 4.2 s ago: rule and settings may be older than the truth"),
        "{}",
        status.sentence
    );
}

#[test]
fn a_problem_tells_for_how_long_and_starts_anew_after_it_was_gone() {
    let mut world = World::new(3);
    let pending = PendingRestart { old: "1".into(), new: "2".into() };
    world.facts(2).pending_restart.insert("wal_level".into(), pending.clone());
    assert_eq!(world.look().problems[0].for_ms, 0);
    world.wait(3_000, &[]);
    assert_eq!(world.look().problems[0].for_ms, 3_000);
    world.facts(2).pending_restart.clear();
    assert_eq!(world.look().problems.len(), 0);
    world.facts(2).pending_restart.insert("wal_level".into(), pending);
    assert_eq!(world.look().problems[0].for_ms, 0);
}

#[test]
fn a_witness_votes_and_has_no_lag() {
    let mut with_witness = state(2);
    with_witness.members.insert(NodeId(3), Member { witness: true, postgres_port: 0, ..member(3) });
    let mut world = World::of(with_witness);
    let status = world.look();
    assert_eq!((status.verdict, status.durability.failures_tolerated), (Verdict::Healthy, 1));
    let n3 = node(&status, "n3");
    assert_eq!((n3.role, n3.server.as_str(), n3.lag.is_none(), n3.healthy), (Role::Witness, "witness", true, true));
}

#[test]
fn strangers_in_the_servers_list_are_not_taken_for_voters() {
    let mut world = World::new(3);
    world.facts(1).synchronous_standby_names = "ANY 1 (\"n2\",\"n3\")".into();
    let status = world.look();
    assert_eq!(brief(&status)[0], ("ST2204", CRITICAL, "-"));
    assert_eq!(node(&status, "n2").sync, "async");
}

#[test]
fn a_long_sample_interval_does_not_look_like_silence() {
    let mut world = World::new(3);
    world.state.settings.sample_interval = Span(Millis::from_secs(10));
    world.look();
    world.now = world.now.plus(Millis(9_000));
    for seen in world.observed.values_mut() {
        seen.heard_at = world.now;
    }
    let status = world.look();
    assert_eq!((status.verdict, lag(&status, "n2")), (Verdict::Healthy, Some(0.0)), "{:?}", status.problems);
}

#[test]
fn a_running_operation_tells_how_far_it_is() {
    use model::state::{Operation, OperationKind, Step, StepAction, StepState};
    let mut world = World::new(3);
    let step = |node, state| Step { node: NodeId(node), action: StepAction::Restart, state };
    world.state.operations.push(Operation {
        id: "op_7".into(),
        request: String::new(),
        kind: OperationKind::RollingRestart,
        epoch: model::units::Epoch(1),
        actor: "ana".into(),
        because: String::new(),
        started_at: WALL,
        ended_at: None,
        steps: vec![step(3, StepState::Done), step(2, StepState::Running { marker: 1 }), step(1, StepState::Pending)],
        state: OperationState::Running,
    });
    assert_eq!(world.look().operation, Some(("op_7".into(), "rolling restart: 1 of 3 done, now n2".into())));
}

#[test]
fn half_the_round_trip_is_taken_off_a_clocks_offset() {
    let mut world = World::new(2);
    world.sample(2).wall.0 -= 400;
    let trips = BTreeMap::from([(NodeId(2), Millis(800))]);
    let status = world.judge.judge(world.now, WALL, &world.state, &world.observed, &world.consensus, SALT, &trips);
    assert_eq!(node(&status, "n2").clock_offset_ms, Some(0), "its sample was 400 ms on the way");
}

#[test]
fn a_keeper_that_answers_without_looking_is_not_healthy() {
    let mut world = World::new(3);
    world.look();
    let taken_at = world.now;
    world.wait(5_000, &[]);
    world.observed.get_mut(&NodeId(2)).expect("observed").taken_at = taken_at;
    let status = world.look();
    assert_eq!((status.verdict, brief(&status)), (Verdict::Degraded, vec![("ST3021", WARNING, "n2")]));
    assert_eq!((status.problems[0].for_ms, node(&status, "n2").server.as_str()), (5_000, "unknown"));
}

#[test]
fn a_cluster_is_being_built_while_its_rule_names_nobody_who_may_take_over() {
    let mut named = state(3);
    (named.rule.acks, named.rule.recruit_quorum, named.settings.commit_mode) = (0, 2, CommitMode::Async);
    let mut nobody = named.clone();
    nobody.rule.voters.clear();
    for (state, verdict) in [(named, Verdict::Healthy), (nobody, Verdict::Forming)] {
        let mut world = World::of(state);
        // The server waits for nobody, as the mode asks.
        world.facts(1).synchronous_standby_names = String::new();
        let status = world.look();
        assert_eq!((status.verdict, status.durability.in_force), (verdict, verdict == Verdict::Healthy), "{status:?}");
    }
}

#[test]
fn a_cluster_is_being_built_until_everybody_has_a_vote() {
    let mut world = World::new(3);
    assert_eq!(world.look().verdict, Verdict::Healthy);
    // n3 is active, but the group among the keepers does not count on it yet: without n2 there would be no majority.
    world.consensus.voters = vec![NodeId(1), NodeId(2)];
    world.consensus.learners = vec![NodeId(3)];
    let status = world.look();
    assert_eq!(status.verdict, Verdict::Forming);
    assert!(status.sentence.starts_with("n3 being built"), "{}", status.sentence);
    // A store beside the cluster has no voters among the nodes.
    world.consensus.voters.clear();
    assert_eq!(world.look().verdict, Verdict::Healthy);
}
