//! A rolling restart from its order to its end.

use super::*;
use crate::decide::{Context, decide};
use crate::fixtures::{NOW, member, status, three};
use model::state::Member;
use model::{Actor, Command};

fn pending(status: &mut ClusterStatus, node: &str, parameter: &str, old: &str, new: &str) {
    let found = status.nodes.iter_mut().find(|found| found.name.as_str() == node).expect("a node");
    let values = PendingRestart { old: old.to_owned(), new: new.to_owned() };
    found.pending_restart.insert(parameter.to_owned(), values);
}

/// `n1` primary, `n2` and `n3` replicas; `n4` streams from `n3`, `n5` from `n4`.
fn cascade() -> ClusterState {
    let mut state = three();
    state.members.insert(NodeId(4), Member { upstream: Some(NodeId(3)), ..member(4, "a4") });
    state.members.insert(NodeId(5), Member { upstream: Some(NodeId(4)), ..member(5, "a5") });
    state
}

fn order_of(changes: &[(&str, &str, &str)]) -> Result<Vec<u64>, String> {
    let state = cascade();
    let mut seen = status(&state, &[]);
    for (parameter, old, new) in changes {
        pending(&mut seen, "n1", parameter, old, new);
    }
    let all = state.members.keys().copied().collect();
    restart_order(&state, &seen, &all).map(|order| order.iter().map(|id| id.0).collect()).map_err(|t| t.reason)
}

#[test]
fn replicas_come_first_unless_a_followed_parameter_shrinks() {
    assert_eq!(order_of(&[]), Ok(vec![2, 3, 4, 5, 1]));
    assert_eq!(order_of(&[("max_connections", "100", "200")]), Ok(vec![2, 3, 4, 5, 1]));
    assert_eq!(order_of(&[("max_connections", "200", "100")]), Ok(vec![1, 2, 3, 4, 5]));
    assert_eq!(order_of(&[("shared_buffers", "200", "100")]), Ok(vec![2, 3, 4, 5, 1]), "any size may follow any");
    assert_eq!(
        order_of(&[("max_connections", "100", "200"), ("max_wal_senders", "20", "10")]),
        Err("`max_connections` grows and `max_wal_senders` shrinks: the first needs replicas restarted first, the \
             second the primary"
            .to_owned())
    );
}

fn restart_all() -> ClusterState {
    let state = three();
    let seen = status(&state, &[]);
    let context = Context {
        now: NOW,
        actor: Actor { name: "ann".to_owned(), reason: String::new() },
        random: [0; 32],
        status: &seen,
        token_addresses: Vec::new(),
        ca_sha256: String::new(),
    };
    decide(&state, &Command::RollingRestart { only_pending: false, nodes: Vec::new() }, &context).expect("planned").0
}

#[test]
fn steps_are_begun_one_after_the_other_and_a_killed_keeper_goes_on() {
    let mut state = restart_all();
    let restart = StepAction::Restart;
    let id = || "op_1".to_owned();
    for (step, node) in [(0, 2), (1, 3), (2, 1)] {
        let node = NodeId(node);
        for other in [1, 2, 3].map(NodeId).into_iter().filter(|other| *other != node) {
            assert_eq!(next_step(&state, other), Next::Nothing);
            assert_eq!(begin(&state, other, "op_1", step, 5), None);
        }
        assert_eq!(next_step(&state, node), Next::Begin { operation: id(), step, action: restart });
        assert_eq!(done(&state, "op_1", step, NOW), None, "not before it was begun");
        state = begin(&state, node, "op_1", step, 5).expect("begun");
        assert_eq!(next_step(&state, node), Next::Continue { operation: id(), step, action: restart, marker: 5 });
        assert_eq!(begin(&state, node, "op_1", step, 9), None, "the marker of the first begin stays");
        state = done(&state, "op_1", step, NOW).expect("done");
    }
    assert_eq!(running(&state), None);
    assert_eq!((&state.operations[0].state, state.operations[0].ended_at), (&OperationState::Succeeded, Some(NOW)));
    assert_eq!(state.history.last().expect("told").text, "operation op_1 ended well");
}

#[test]
fn a_failed_step_ends_the_operation_and_no_other_is_begun() {
    let state = begin(&restart_all(), NodeId(2), "op_1", 0, 5).expect("begun");
    let state = failed(&state, "op_1", 0, &Trouble::server_failed("it did not start", ""), NOW).expect("failed");
    let expected = OperationState::Failed { code: "ST3020".to_owned(), reason: "it did not start".to_owned() };
    assert_eq!(state.operations[0].state, expected);
    for node in [1, 2, 3].map(NodeId) {
        assert_eq!(next_step(&state, node), Next::Nothing);
    }
}

#[test]
fn a_new_primary_or_a_node_that_leaves_ends_it() {
    let mut moved = restart_all();
    moved.rule.epoch.0 += 1;
    let reason = "it was planned in epoch 1 and the primary has changed since (epoch 2)".to_owned();
    assert_eq!(next_step(&moved, NodeId(3)), Next::Abandon { operation: "op_1".to_owned(), reason: reason.clone() });
    let ended = abandon(&moved, "op_1", &reason, NOW).expect("ended");
    assert_eq!(abandon(&ended, "op_1", &reason, NOW), None);
    assert_eq!(next_step(&ended, NodeId(3)), Next::Nothing);

    let mut left = restart_all();
    left.members.get_mut(&NodeId(2)).expect("n2").stage = Stage::Leaving;
    let reason = "node 2 has left the cluster".to_owned();
    assert_eq!(next_step(&left, NodeId(1)), Next::Abandon { operation: "op_1".to_owned(), reason });
}
