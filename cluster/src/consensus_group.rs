//! Who belongs to the consensus group. Pure; bringing the group to it is `consensus::Consensus::set_members`.

use model::limits::CONSENSUS_VOTERS_MAX;
use model::state::Stage;
use model::{ClusterState, Member, NodeId};
use std::collections::BTreeSet;

/// Voters and learners of the group.
///
/// A replica that joins learns until it is active: a clone may take hours and be given up, and must not weigh in the
/// majority meanwhile. A witness has nothing to clone; the store itself lets it learn before it lets it vote.
/// Witnesses come first, since voting is all they are for; then the oldest members, so that the group is stable.
pub fn wanted(state: &ClusterState) -> (BTreeSet<NodeId>, BTreeSet<NodeId>) {
    let votes = |member: &&Member| match member.stage {
        Stage::Joining => member.witness,
        Stage::Active | Stage::Halted { .. } | Stage::Reinit { .. } | Stage::Rejoin { .. } => true,
        Stage::Leaving => false,
    };
    let mut order: Vec<&Member> = state.members.values().filter(votes).collect();
    order.sort_by_key(|member| (!member.witness, member.id));
    let voters: BTreeSet<NodeId> = order.iter().take(CONSENSUS_VOTERS_MAX).map(|member| member.id).collect();
    let stays = |member: &&Member| member.stage != Stage::Leaving && !voters.contains(&member.id);
    let learners = state.members.values().filter(stays).map(|member| member.id).collect();
    (voters, learners)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{member, three};

    fn ids(nodes: &[u64]) -> BTreeSet<NodeId> {
        nodes.iter().map(|id| NodeId(*id)).collect()
    }

    #[test]
    fn a_replica_learns_until_it_is_active_and_a_witness_votes_at_once() {
        let mut state = three();
        state.members.insert(NodeId(4), Member { stage: Stage::Joining, ..member(4, "n4") });
        state.members.insert(NodeId(5), Member { stage: Stage::Joining, witness: true, ..member(5, "w") });
        assert_eq!(wanted(&state), (ids(&[1, 2, 3, 5]), ids(&[4])));
    }

    #[test]
    fn who_leaves_is_neither_and_who_is_halted_still_votes() {
        let mut state = three();
        state.members.get_mut(&NodeId(2)).expect("n2").stage = Stage::Leaving;
        let halted = Stage::Halted { code: "ST3010".into(), reason: "r".into(), since: crate::fixtures::NOW };
        state.members.get_mut(&NodeId(3)).expect("n3").stage = halted;
        assert_eq!(wanted(&state), (ids(&[1, 3]), ids(&[])));
    }

    #[test]
    fn beyond_the_bound_members_learn() {
        let mut state = three();
        for id in 4..=9 {
            state.members.insert(NodeId(id), member(id, &format!("n{id}")));
        }
        state.members.insert(NodeId(10), Member { witness: true, ..member(10, "w") });
        assert_eq!(wanted(&state), (ids(&[1, 2, 3, 4, 5, 6, 10]), ids(&[7, 8, 9])));
    }
}
