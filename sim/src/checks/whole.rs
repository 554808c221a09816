//! Liveness: with all faults healed the cluster comes to rest by itself: one primary that acknowledges, no attempt in
//! progress, every replica streams and holds what the primary holds, and all of them vote again.

use crate::server::Running;
use crate::world::{World, id, index};
use model::state::Stage;

/// What is still missing, or nothing.
pub fn missing(world: &World) -> Option<String> {
    let state = &world.store.state;
    if let Some(failover) = &state.failover {
        return Some(format!("attempt {} is in phase {}", failover.id, failover.phase.as_str()));
    }
    let leader = index(state.rule.primary);
    let primary = &world.nodes[leader];
    if primary.server.running != Running::Primary || primary.disk.served != state.rule.epoch {
        return Some(format!("n{} does not serve as the primary", leader + 1));
    }
    if world.now > world.checks.acknowledged_at + 2_000 {
        let sync = &primary.server.sync;
        let senders = &primary.server.senders;
        return Some(format!("nothing was acknowledged for two seconds: {sync:?}, {senders:?}"));
    }
    if let Some(member) = state.members.values().find(|member| member.stage != Stage::Active) {
        return Some(format!("n{} is {:?}", member.id, member.stage));
    }
    let members = world.nodes.iter().enumerate().filter(|(other, _)| state.members.contains_key(&id(*other)));
    for (other, node) in members.filter(|(other, node)| *other != leader && !node.witness) {
        let behind = primary.disk.log.len().saturating_sub(node.disk.log.len());
        let same = primary.disk.continues(node.disk.log.len(), node.disk.log.last().copied());
        if node.server.running != Running::Replica || node.server.receiver.is_none() || !same || behind > 200 {
            return Some(format!(
                "n{} does not follow: {:?}, follows {:?}, same {same}, behind {behind}",
                other + 1,
                node.server.running,
                node.disk.follows
            ));
        }
        // Where one of another site must confirm, those of the primary's own site may be left out.
        let spared = state.settings.sync_from_other_site && !state.rule.voters.is_empty();
        let votes = spared || state.rule.voters.contains(&id(other));
        if !votes {
            return Some(format!("n{} does not vote again: {:?}", other + 1, state.rule));
        }
    }
    None
}
