//! Changes of primary, asked for by people.

use super::*;
use crate::failover::plan::{self, Todo};
use model::change::{self, ChangeResult};
use model::failover::{FailoverKind, PlanStage};
use model::limits::SWITCHOVER_MISSED_AFTER;
use model::status::{Lag, LinkStatus, NodeStatus};

/// All replicas stream and have applied all but `behind` bytes.
fn looks(world: &World, behind: &[(&str, u64)]) -> ClusterStatus {
    let mut view = status(&world.state, &world.silent);
    for node in view.nodes.iter_mut().filter(|node| node.role == Role::Replica) {
        let bytes = behind.iter().find(|(name, _)| *name == node.name.as_str()).map_or(0, |(_, bytes)| *bytes);
        node.link = Some(LinkStatus::Streaming);
        node.lag = Some(Lag {
            apply_bytes: Some(bytes),
            receive_bytes: Some(bytes),
            seconds: Some(0.0),
            method: "position-history".to_owned(),
        });
    }
    view
}

fn ask(world: &World, command: &Command, view: &ClusterStatus) -> Result<(ClusterState, Outcome), Trouble> {
    let context = Context {
        now: world.now,
        actor: Actor { name: "ann".to_owned(), reason: String::new() },
        random: [world.random; 32],
        status: view,
        token_addresses: Vec::new(),
        ca_sha256: String::new(),
    };
    decide(&world.state, command, &context)
}

fn switchover(to: Option<&str>) -> Command {
    Command::Switchover { to: to.map(name), at: None }
}

fn later(seconds: i64) -> WallTime {
    WallTime(NOW.0 + seconds * 1_000)
}

#[test]
fn a_switchover_is_prepared_while_the_primary_serves_and_then_claimed() {
    let mut world = World::new();
    let view = looks(&world, &[]);
    let (state, outcome) = ask(&world, &switchover(Some("n3")), &view).expect("planned");
    assert_eq!(outcome.failover.as_deref(), Some("sw_1"));
    assert_eq!(
        outcome.candidates.iter().filter(|it| it.expected).map(|it| it.node.as_str()).collect::<Vec<_>>(),
        ["n3"]
    );
    world.state = state;
    assert_eq!(
        ask(&world, &switchover(Some("n3")), &view).expect("the same request").1.failover.as_deref(),
        Some("sw_1")
    );
    world.random = 1;
    assert_eq!(ask(&world, &switchover(None), &view).expect_err("a second one").code.to_string(), "ST2109");

    let (n1, n2, n3) = (NodeId(1), NodeId(2), NodeId(3));
    let todo = |state: &ClusterState, me| plan::next(state, me, NOW);
    let mut state = world.state.clone();
    assert_eq!([todo(&state, n1), todo(&state, n3)], [Todo::Start, Todo::Nothing]);
    state = plan::checkpointing(&state, "sw_1", NOW).expect("due");
    assert_eq!([todo(&state, n1), todo(&state, n3)], [Todo::Checkpoint, Todo::Nothing]);
    state = plan::checkpointed(&state, "sw_1", NOW).expect("due");
    assert_eq!(
        [todo(&state, n1), todo(&state, n2), todo(&state, n3)],
        [Todo::Nothing, Todo::Nothing, Todo::Restartpoint]
    );
    assert_eq!(plan::next(&state, n1, later(3)), Todo::Begin, "a restartpoint is a help, not a need");
    state = plan::ready(&state, "sw_1", n3).expect("due");
    assert_eq!(todo(&state, n1), Todo::Begin);
    assert_eq!(change::of(&state, "sw_1").map(|it| it.result), Some(ChangeResult::Preparing));
    let begun = plan::begin(&state, "sw_1", &view, NOW).expect("claimed");
    let failover = begun.failover.as_ref().expect("claimed");
    assert_eq!((failover.id.as_str(), failover.request.as_str()), ("fo_2", "sw_1"));
    assert_eq!(failover.kind, FailoverKind::Switchover { to: Some(n3) });
    assert_eq!(plan::begin(&begun, "sw_1", &view, NOW), None, "once");

    // By then the node asked for has stopped streaming: it is waited for, and then nothing is begun.
    let mut broken = view.clone();
    broken.nodes.iter_mut().filter(|node| node.name.as_str() == "n3").for_each(|node| node.link_up = false);
    let awaited = "n3: it does not stream from the primary".to_owned();
    assert_eq!(plan::awaits(&state, &broken, later(4)), Some(awaited));
    assert_eq!(plan::awaits(&state, &broken, later(5)), None);
    assert_eq!(plan::awaits(&state, &view, NOW), None);
    let dropped = plan::begin(&state, "sw_1", &broken, later(5)).expect("dropped");
    assert_eq!(dropped.failover, None);
    let reason = "n3 cannot take over: it does not stream from the primary".to_owned();
    assert_eq!(change::of(&dropped, "sw_1").map(|it| it.result), Some(ChangeResult::Dropped { reason }));
}

#[test]
fn a_refusal_lists_every_candidate_with_rule_value_and_threshold() {
    let mut world = World::new();
    world.member(3).priority = 0;
    let view = looks(&world, &[("n2", 90 << 20)]);
    let trouble = ask(&world, &switchover(None), &view).expect_err("nobody can");
    assert_eq!((trouble.code.to_string().as_str(), trouble.exit), ("ST2301", 4));
    let lag = "n2: it has 94371840 bytes to replay (at most 67108864)";
    assert_eq!(trouble.causes, [lag, "n3: its priority is 0"]);
    // Who is named may win in spite of its priority.
    assert!(ask(&world, &switchover(Some("n3")), &view).is_ok());
    let told = ask(&world, &switchover(Some("n1")), &view).expect_err("it is the primary");
    assert_eq!((told.code.to_string().as_str(), told.exit), ("ST2104", 4));
    assert_eq!(ask(&world, &switchover(Some("n9")), &view).expect_err("unknown").exit, 2);
}

#[test]
fn who_will_stream_again_in_a_moment_is_waited_for() {
    let world = World::new();
    let mut view = looks(&world, &[]);
    let of = |view: &mut ClusterStatus, name: &str, with: fn(&mut NodeStatus)| {
        view.nodes.iter_mut().filter(|node| node.name.as_str() == name).for_each(with);
    };
    of(&mut view, "n3", |node| node.link_up = false);
    let (planned, outcome) = ask(&world, &switchover(Some("n3")), &view).expect("planned");
    assert_eq!(planned.planned_switchover().map(|plan| plan.id.as_str()), outcome.failover.as_deref());
    assert_eq!(
        outcome.notes,
        ["n3 cannot take over yet: it does not stream from the primary. It is waited for up to 5 s"]
    );
    // With nobody named, who can take over now is not kept waiting; a replay that is paused does not go on by itself.
    assert!(ask(&world, &switchover(None), &view).expect("n2").1.notes.is_empty());
    of(&mut view, "n2", |node| node.replay_paused = true);
    assert_eq!(ask(&world, &switchover(None), &view).expect("n3").1.notes.len(), 1);
    of(&mut view, "n3", |node| node.replay_paused = true);
    of(&mut view, "n3", |node| node.link_up = true);
    assert_eq!(ask(&world, &switchover(None), &view).expect_err("nobody").code.to_string(), "ST2301");
    view.primary_up = false;
    of(&mut view, "n3", |node| node.link_up = false);
    assert_eq!(ask(&world, &switchover(None), &view).expect_err("a failover").code.to_string(), "ST2301");
}

#[test]
fn a_scheduled_switchover_is_given_up_when_missed_or_paused() {
    let mut world = World::new();
    let view = looks(&world, &[]);
    let at = |seconds| Command::Switchover { to: None, at: Some(later(seconds)) };
    assert_eq!(ask(&world, &at(-1), &view).expect_err("in the past").code.to_string(), "ST1301");
    let (planned, _) = ask(&world, &at(60), &view).expect("planned");
    let n1 = NodeId(1);
    assert_eq!(plan::next(&planned, n1, later(59)), Todo::Nothing);
    assert_eq!(plan::next(&planned, n1, later(60)), Todo::Start);
    let missed = later(61 + SWITCHOVER_MISSED_AFTER.0 as i64 / 1_000);
    let reason = "its time was missed by more than 5 minutes".to_owned();
    assert_eq!(plan::next(&planned, NodeId(2), missed), Todo::Drop(reason.clone()), "whoever notices");
    let dropped = plan::drop_plan(&planned, "sw_1", &reason, missed).expect("open");
    assert_eq!(dropped.history.last().map(|event| event.kind.as_str()), Some("switchover-dropped"));

    world.state = planned;
    let (cancelled, _) = ask(&world, &Command::CancelSwitchover, &view).expect("open");
    assert_eq!(cancelled.switchovers[0].stage, PlanStage::Cancelled { by: "ann".to_owned() });
    let (paused, outcome) = ask(&world, &Command::Pause { span: Millis(120_000) }, &view).expect("paused");
    assert!(outcome.notes[1].contains("sw_1"), "{:?}", outcome.notes);
    assert!(matches!(plan::next(&paused, n1, later(60)), Todo::Drop(_)));
    world.state = cancelled;
    world.state.paused = paused.paused;
    world.random = 1;
    assert_eq!(ask(&world, &at(60), &view).expect_err("paused").code.to_string(), "ST2306");
    assert!(ask(&world, &switchover(None), &view).is_ok(), "a person may act in a pause");
}

#[test]
fn a_pause_ends_by_itself_and_stops_the_policy() {
    let mut world = World::new();
    let automatic = |state: &ClusterState, at| crate::failover::Policy::of(state, at).automatic;
    assert!(world.told(Command::Pause { span: Millis(0) }).starts_with("ST1301"));
    world.told(Command::Pause { span: Millis(60_000) });
    assert!(!automatic(&world.state, later(59)));
    assert!(automatic(&world.state, later(60)));
    assert_eq!(plan::end_pause(&world.state, later(59)), None);
    assert_eq!(plan::end_pause(&world.state, later(60)).map(|state| state.paused), Some(None));
    assert_eq!(world.told(Command::Resume), "automatic failover goes on");
    assert_eq!(world.told(Command::Resume), "(nothing to do) automatic failover is not paused");
    world.state.settings.failover.automatic = false;
    assert!(!automatic(&world.state, NOW));
}

#[test]
fn a_failover_by_hand_needs_a_dead_primary_and_a_bound_that_covers_the_loss() {
    let mut world = World::new();
    let failover = |to: Option<&str>, most| Command::Failover { to: to.map(name), loss_bytes_max: most };
    let told = ask(&world, &failover(None, Some(0)), &looks(&world, &[])).expect_err("it serves");
    assert_eq!((told.code.to_string().as_str(), told.exit), ("ST2302", 4));
    world.silent = vec!["n1", "n3"];
    let view = looks(&world, &[("n2", 5_000)]);
    let told = ask(&world, &failover(None, None), &view).expect_err("no bound");
    assert_eq!(told.causes[0], "n2: misses at most 5000 bytes of log, as last known");
    assert!(told.hint.contains("--to n2 --accept-data-loss 1MB"), "{}", told.hint);
    assert_eq!(ask(&world, &failover(None, Some(4_999)), &view).expect_err("too small").exit, 4);
    assert_eq!(ask(&world, &failover(Some("n3"), Some(u64::MAX)), &view).expect_err("silent").exit, 4);
    let (state, outcome) = ask(&world, &failover(None, Some(5_000)), &view).expect("begun");
    assert_eq!(outcome.failover.as_deref(), Some("fo_2"));
    world.state = state;
    let again = ask(&world, &failover(None, Some(5_000)), &view).expect("the same request");
    assert_eq!(again.1.failover.as_deref(), Some("fo_2"));
    world.random = 1;
    assert_eq!(ask(&world, &failover(None, Some(5_000)), &view).expect_err("in progress").code.to_string(), "ST2109");
}
