//! Replicas whose reads do not show all that they have applied (`ServerFacts::shows_replayed`). One more transaction that
//! ends on the primary is what each of them lacks, and an idle cluster has none: the primary's keeper gives it one.

use model::ClusterState;
use model::NodeId;
use model::observe::Observed;
use std::collections::BTreeMap;

/// A look at a server: of which life of its keeper, and which of its looks.
pub type Look = (u64, u64);

/// Replicas that were last seen in that state while they streamed, with the look that showed it: one transaction for each
/// look is enough, for those who have applied it say so in a later one.
pub fn incomplete(state: &ClusterState, seen: &BTreeMap<NodeId, Observed>) -> BTreeMap<NodeId, Look> {
    let lacks = |id: &NodeId, observed: &Observed| {
        let facts = observed.sample.facts.as_ref()?;
        let streams = facts.receiver.as_ref().is_some_and(|receiver| receiver.status == "streaming");
        let applies = facts.in_recovery && streams && !facts.replay_paused;
        let lacks = applies && !facts.shows_replayed && state.members.contains_key(id);
        lacks.then_some((*id, (observed.sample.incarnation, observed.sample.seq)))
    };
    seen.iter().filter_map(|(id, observed)| lacks(id, observed)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenes;
    use model::Moment;
    use model::observe::ServerFacts;

    #[test]
    fn a_failover_finds_what_voters_hold_and_what_they_feed() {
        let mut state = scenes::state(4);
        state.rule.voters = [NodeId(2)].into();
        state.rule.acks = 1;
        let counted = |state: &ClusterState| -> Vec<u64> {
            let status = crate::fixtures::status(state, &[]);
            let topology = model::Topology::of(state, &status);
            topology.nodes.iter().filter(|node| node.counted).map(|node| node.id.0).collect()
        };
        assert_eq!(counted(&state), [1, 2], "the primary, and who is asked");
        state.members.get_mut(&NodeId(4)).expect("there").upstream = Some(NodeId(2));
        assert_eq!(counted(&state), [1, 2, 4]);
        state.members.get_mut(&NodeId(4)).expect("there").upstream = Some(NodeId(3));
        assert_eq!(counted(&state), [1, 2]);
        state.rule.acks = 0;
        assert_eq!(counted(&state), [1, 2, 3, 4], "nothing is promised");
    }

    #[test]
    fn a_replica_that_streams_and_does_not_show_all_lacks_a_transaction() {
        let state = scenes::state(3);
        let seen = |id: u64, with: fn(&mut ServerFacts)| {
            let mut sample = scenes::sample(&state, id);
            with(sample.facts.as_mut().expect("it runs"));
            incomplete(&state, &BTreeMap::from([(NodeId(id), scenes::seen(sample, Moment(1)))])).len()
        };
        assert_eq!(seen(2, |_| ()), 0);
        assert_eq!(seen(2, |facts| facts.shows_replayed = false), 1);
        let stopped = |facts: &mut ServerFacts| (facts.shows_replayed, facts.receiver) = (false, None);
        assert_eq!(seen(2, stopped), 0, "nothing would reach it");
    }
}
