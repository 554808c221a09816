//! Which step brings the group's members closer to what is wanted. Pure: the steps are taken in [`super::group`], and
//! as each is found anew from what the group now is, a change that was interrupted anywhere is simply continued.

use std::collections::BTreeSet;

/// The members as the leader knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Members {
    /// One set of voters; two while a change is under way, the second being the one aimed at.
    pub(super) configs: Vec<BTreeSet<u64>>,
    /// Everybody who receives the log.
    pub(super) nodes: BTreeSet<u64>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing is left to do.
    Done,
    /// Send these the log.
    AddLearners(BTreeSet<u64>),
    /// Let these, and only these, vote.
    SetVoters(BTreeSet<u64>),
    /// Wait until these hold the log.
    AwaitCatchUp(BTreeSet<u64>),
    /// Send these the log no longer.
    Remove(BTreeSet<u64>),
    /// A group without a voter is lost; such a wish is refused.
    Refuse,
}

/// The next step from `now` to `voters` and `learners`. Growth comes before shrinking, so that the group is never
/// smaller than it was or shall be: a voter leaves only when all who replace it already vote.
pub(super) fn next_step(
    now: &Members,
    caught_up: &BTreeSet<u64>,
    voters: &BTreeSet<u64>,
    learners: &BTreeSet<u64>,
) -> Step {
    if voters.is_empty() {
        return Step::Refuse;
    }
    let current = now.configs.last().cloned().unwrap_or_default();
    if now.configs.len() > 1 {
        return Step::SetVoters(current);
    }
    let wanted: BTreeSet<u64> = voters.union(learners).copied().collect();
    let missing: BTreeSet<u64> = wanted.difference(&now.nodes).copied().collect();
    if !missing.is_empty() {
        return Step::AddLearners(missing);
    }
    let new: BTreeSet<u64> = voters.difference(&current).copied().collect();
    let ready: BTreeSet<u64> = new.intersection(caught_up).copied().collect();
    if !ready.is_empty() {
        return Step::SetVoters(current.union(&ready).copied().collect());
    }
    if !new.is_empty() {
        return Step::AwaitCatchUp(new);
    }
    if current != *voters {
        return Step::SetVoters(voters.clone());
    }
    let surplus: BTreeSet<u64> = now.nodes.difference(&wanted).copied().collect();
    if surplus.is_empty() { Step::Done } else { Step::Remove(surplus) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u64]) -> BTreeSet<u64> {
        ids.iter().copied().collect()
    }

    fn members(configs: &[&[u64]], nodes: &[u64]) -> Members {
        Members { configs: configs.iter().map(|config| set(config)).collect(), nodes: set(nodes) }
    }

    /// Takes the step in thought.
    fn take(now: &Members, step: &Step) -> Members {
        let mut next = now.clone();
        match step {
            Step::AddLearners(ids) => next.nodes.extend(ids),
            Step::SetVoters(ids) => next.configs = vec![ids.clone()],
            Step::Remove(ids) => next.nodes.retain(|id| !ids.contains(id)),
            Step::Done | Step::AwaitCatchUp(_) | Step::Refuse => {}
        }
        next
    }

    #[test]
    fn a_new_voter_learns_first_and_the_old_one_leaves_last() {
        let (voters, learners) = (set(&[2, 3]), set(&[4]));
        let mut now = members(&[&[1, 2]], &[1, 2]);
        let mut steps = Vec::new();
        loop {
            let step = next_step(&now, &set(&[2, 3, 4]), &voters, &learners);
            now = take(&now, &step);
            steps.push(step.clone());
            if step == Step::Done {
                break;
            }
        }
        let expected = [
            Step::AddLearners(set(&[3, 4])),
            Step::SetVoters(set(&[1, 2, 3])),
            Step::SetVoters(set(&[2, 3])),
            Step::Remove(set(&[1])),
            Step::Done,
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn nobody_leaves_while_a_wanted_voter_has_not_caught_up() {
        let now = members(&[&[1, 2]], &[1, 2, 3]);
        assert_eq!(next_step(&now, &set(&[]), &set(&[2, 3]), &set(&[])), Step::AwaitCatchUp(set(&[3])));
    }

    #[test]
    fn an_interrupted_change_is_completed_before_the_next_begins() {
        let now = members(&[&[1], &[1, 2]], &[1, 2]);
        assert_eq!(next_step(&now, &set(&[2]), &set(&[1]), &set(&[])), Step::SetVoters(set(&[1, 2])));
    }

    #[test]
    fn the_last_voter_stays() {
        assert_eq!(next_step(&members(&[&[1]], &[1]), &set(&[]), &set(&[]), &set(&[1])), Step::Refuse);
    }

    #[test]
    fn every_wish_is_reached_from_every_state_and_never_through_an_empty_group() {
        let subsets =
            || (0..16_u64).map(|bits| (1..=4).filter(|id| bits & (1 << (id - 1)) != 0).collect::<BTreeSet<u64>>());
        for from in subsets().filter(|ids| !ids.is_empty()) {
            for voters in subsets().filter(|ids| !ids.is_empty()) {
                for learners in subsets() {
                    let learners: BTreeSet<u64> = learners.difference(&voters).copied().collect();
                    let mut now = Members { configs: vec![from.clone()], nodes: from.clone() };
                    for turn in 0.. {
                        assert!(turn < 8, "from {from:?} to {voters:?} + {learners:?} stuck at {now:?}");
                        let step = next_step(&now, &set(&[1, 2, 3, 4]), &voters, &learners);
                        now = take(&now, &step);
                        assert!(!now.configs[0].is_empty());
                        if step == Step::Done {
                            break;
                        }
                    }
                    assert_eq!(now.configs, vec![voters.clone()]);
                    assert_eq!(now.nodes, voters.union(&learners).copied().collect());
                }
            }
        }
    }
}
