//! A winner's rule comes into force once its first record is flushed, there and at as many voters as the rule promises:
//! from then on the rules before it are asked no more.

use crate::server::Entry;
use model::failover::FailoverPhase;
use model::{ClusterState, NodeId};

pub(super) fn first_record(after: &ClusterState, logs: &[&[Entry]]) -> Result<(), String> {
    let rule = &after.rule;
    let won = after.failovers.last().is_some_and(|it| it.epoch == rule.epoch && it.phase == FailoverPhase::Done);
    if !won {
        return Ok(());
    }
    let holds = |node: &NodeId| logs[node.0 as usize - 1].iter().rev().any(|entry| entry.row == Some(rule.epoch));
    let voters = rule.voters.iter().filter(|voter| holds(voter)).count();
    if holds(&rule.primary) && voters >= rule.acks as usize {
        return Ok(());
    }
    Err(format!(
        "settled: epoch {} is in force, and its first record is flushed by {voters} of {:?}, {} are promised",
        rule.epoch, rule.voters, rule.acks
    ))
}
