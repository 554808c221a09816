//! Long actions that several nodes carry out step by step: which step is due, how steps are recorded, and in which
//! order servers restart. Carrying a step out is the keeper's.

use crate::history;
use model::observe::PendingRestart;
use model::state::{Operation, OperationState, Stage, Step, StepAction, StepState};
use model::{ClusterState, ClusterStatus, NodeId, Trouble, WallTime};
use std::collections::BTreeSet;

/// What the keeper of one node has to do for operations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing, or it is another's turn.
    Nothing,
    /// Record the step as begun (`begin`), then do it.
    Begin {
        /// The operation.
        operation: String,
        /// Index of the step.
        step: usize,
        /// What to do.
        action: StepAction,
    },
    /// The step was begun, perhaps by an earlier run of this keeper: finish it. A server that started later than
    /// `marker` proves that it was done.
    Continue {
        /// The operation.
        operation: String,
        /// Index of the step.
        step: usize,
        /// What to do.
        action: StepAction,
        /// See `StepState::Running`.
        marker: i64,
    },
    /// The operation cannot go on: record it with `abandon`. Told to every keeper; the first one writes.
    Abandon {
        /// The operation.
        operation: String,
        /// Why.
        reason: String,
    },
}

/// The one operation that runs, if any.
pub fn running(state: &ClusterState) -> Option<&Operation> {
    state.operations.iter().find(|operation| operation.state == OperationState::Running)
}

/// What `me` has to do now.
pub fn next_step(state: &ClusterState, me: NodeId) -> Next {
    let Some(operation) = running(state) else { return Next::Nothing };
    let id = operation.id.clone();
    if operation.epoch != state.rule.epoch {
        let reason = format!(
            "it was planned in epoch {} and the primary has changed since (epoch {})",
            operation.epoch, state.rule.epoch
        );
        return Next::Abandon { operation: id, reason };
    }
    let due = operation.steps.iter().enumerate().find(|(_, step)| step.state != StepState::Done);
    let Some((index, step)) = due else { return Next::Nothing };
    let here = state.members.get(&step.node).is_some_and(|member| member.stage != Stage::Leaving);
    if !here {
        return Next::Abandon { operation: id, reason: format!("node {} has left the cluster", step.node) };
    }
    if step.node != me {
        return Next::Nothing;
    }
    match step.state {
        StepState::Pending => Next::Begin { operation: id, step: index, action: step.action },
        StepState::Running { marker } => Next::Continue { operation: id, step: index, action: step.action, marker },
        StepState::Done | StepState::Failed => Next::Nothing,
    }
}

/// Records a step as begun; `marker` is the server's start time before. `None`: not due, do not do it.
pub fn begin(state: &ClusterState, me: NodeId, operation: &str, step: usize, marker: i64) -> Option<ClusterState> {
    match next_step(state, me) {
        Next::Begin { operation: due, step: index, .. } if due == operation && index == step => {
            change(state, operation, |found| found.steps[step].state = StepState::Running { marker })
        }
        Next::Nothing | Next::Begin { .. } | Next::Continue { .. } | Next::Abandon { .. } => None,
    }
}

/// Records a begun step as done; the last one ends the operation. `None`: it was not running.
///
/// Also after a cancel or a change of primary: what was done was done.
pub fn done(state: &ClusterState, operation: &str, step: usize, now: WallTime) -> Option<ClusterState> {
    let mut next = change_running_step(state, operation, step, StepState::Done)?;
    let found = find(&mut next, operation)?;
    let all = found.steps.iter().all(|step| step.state == StepState::Done);
    if all && found.state == OperationState::Running {
        end(&mut next, operation, OperationState::Succeeded, now, "ended well");
    }
    Some(next)
}

/// Records a begun step as failed, which ends the operation. `None`: it was not running.
pub fn failed(
    state: &ClusterState,
    operation: &str,
    step: usize,
    trouble: &Trouble,
    now: WallTime,
) -> Option<ClusterState> {
    let mut next = change_running_step(state, operation, step, StepState::Failed)?;
    if find(&mut next, operation)?.state == OperationState::Running {
        let failed = OperationState::Failed { code: trouble.code.to_string(), reason: trouble.reason.clone() };
        end(&mut next, operation, failed, now, &format!("failed: {}", trouble.reason));
    }
    Some(next)
}

/// Ends an operation that cannot go on. `None`: it has ended.
pub fn abandon(state: &ClusterState, operation: &str, reason: &str, now: WallTime) -> Option<ClusterState> {
    running(state).filter(|found| found.id == operation)?;
    let mut next = state.clone();
    let failed = OperationState::Failed { code: "ST2110".to_owned(), reason: reason.to_owned() };
    end(&mut next, operation, failed, now, &format!("was given up: {reason}"));
    Some(next)
}

/// Ends an operation and says so in the history.
pub(crate) fn end(state: &mut ClusterState, operation: &str, how: OperationState, now: WallTime, words: &str) {
    let Some(found) = find(state, operation) else { return };
    found.state = how;
    found.ended_at = Some(now);
    let actor = found.actor.clone();
    history::record(state, now, "operation-ended", None, format!("operation {operation} {words}"), &actor);
}

fn find<'s>(state: &'s mut ClusterState, operation: &str) -> Option<&'s mut Operation> {
    state.operations.iter_mut().find(|found| found.id == operation)
}

fn change(state: &ClusterState, operation: &str, with: impl FnOnce(&mut Operation)) -> Option<ClusterState> {
    let mut next = state.clone();
    with(find(&mut next, operation)?);
    Some(next)
}

fn change_running_step(state: &ClusterState, operation: &str, step: usize, to: StepState) -> Option<ClusterState> {
    let found = state.operations.iter().find(|found| found.id == operation)?;
    match found.steps.get(step)?.state {
        StepState::Running { .. } => change(state, operation, |found| found.steps[step].state = to),
        StepState::Pending | StepState::Done | StepState::Failed => None,
    }
}

/// Parameters that a replica may not have smaller than its primary: it would refuse to start, or stop replaying.
pub const FOLLOWED_PARAMETERS: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// The order in which `nodes` are restarted: one after the other, replicas before those they feed, the primary last,
/// so that its clients are disturbed once and find replicas that have settled. When a followed parameter becomes
/// smaller the primary is first, else its replicas would be smaller than it. Both at once cannot be done in one round.
pub fn restart_order(
    state: &ClusterState,
    status: &ClusterStatus,
    nodes: &BTreeSet<NodeId>,
) -> Result<Vec<NodeId>, Trouble> {
    let pending = status.nodes.iter().filter(|node| nodes.contains(&node.id)).flat_map(|node| &node.pending_restart);
    let mut grows = BTreeSet::new();
    let mut shrinks = BTreeSet::new();
    for (name, values) in pending.filter(|(name, _)| FOLLOWED_PARAMETERS.contains(&name.as_str())) {
        match direction(values) {
            std::cmp::Ordering::Greater => grows.insert(name.as_str()),
            std::cmp::Ordering::Less => shrinks.insert(name.as_str()),
            std::cmp::Ordering::Equal => false,
        };
    }
    if let (Some(bigger), Some(smaller)) = (grows.first(), shrinks.first()) {
        return Err(Trouble::settings_refused(
            format!(
                "`{bigger}` grows and `{smaller}` shrinks: the first needs replicas restarted first, the second the primary"
            ),
            format!("set `{smaller}` back, restart, then change it and restart again"),
        ));
    }
    let mut order: Vec<NodeId> = nodes.iter().copied().collect();
    let primary_last = shrinks.is_empty();
    order.sort_by_key(|id| {
        let is_primary = *id == state.rule.primary;
        (is_primary == primary_last, depth(state, *id), state.members.get(id).map(|member| member.name.clone()))
    });
    Ok(order)
}

/// How the new value compares with the old one. All followed parameters are plain whole numbers.
fn direction(values: &PendingRestart) -> std::cmp::Ordering {
    let number = |text: &str| text.trim().parse::<i64>().ok();
    match (number(&values.new), number(&values.old)) {
        (Some(new), Some(old)) => new.cmp(&old),
        (None, _) | (_, None) => std::cmp::Ordering::Equal,
    }
}

/// How many nodes a node's changes pass through; bounded, should there ever be a ring.
fn depth(state: &ClusterState, id: NodeId) -> usize {
    let mut at = id;
    (0..state.members.len())
        .take_while(|_| match state.upstream_of(at) {
            Some(upstream) => {
                at = upstream.id;
                true
            }
            None => false,
        })
        .count()
}

/// A step that restarts a node.
pub(crate) fn restart_step(node: NodeId) -> Step {
    Step { node, action: StepAction::Restart, state: StepState::Pending }
}

#[cfg(test)]
mod tests;
