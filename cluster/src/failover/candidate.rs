//! Who may win, who does, and under which rule it will serve.

use super::Policy;
use super::recruit::{Report, binding, recruits};
use crate::sync::acks_asked;
use model::failover::{Failover, FailoverKind, Recruited};
use model::state::Stage;
use model::{ClusterState, Lsn, Member, NodeId, Rule};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Why a node cannot win.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It has no database.
    Witness,
    /// It is not a voter of any rule that binds: nobody knows what it misses.
    NotVoter,
    /// It was not recruited.
    NotRecruited,
    /// Its priority is 0.
    PriorityZero,
    /// It is delayed, or fed by another replica.
    Kind,
    /// It is being built, rebuilt, halted or removed.
    Stage {
        /// In a word.
        stage: &'static str,
    },
    /// It is at a site that may not win by itself.
    Site,
    /// It is the primary that is to be replaced.
    Leaving,
    /// Another recruit holds more, and what it holds may have been acknowledged.
    Behind {
        /// Who.
        of: NodeId,
    },
    /// Somebody asked for another node.
    NotAsked,
    /// More would be lost than is allowed.
    Loss {
        /// Bytes of log that the old primary was ahead.
        bytes: u64,
        /// Allowed.
        most: u64,
    },
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::Witness => f.write_str("it has no database"),
            Unfit::NotVoter => {
                f.write_str("it is not a voter of the rule in force, so it may miss acknowledged commits")
            }
            Unfit::NotRecruited => f.write_str("it has not answered in time"),
            Unfit::PriorityZero => f.write_str("its priority is 0"),
            Unfit::Kind => f.write_str("it is delayed or fed by another replica"),
            Unfit::Stage { stage } => write!(f, "it is {stage}"),
            Unfit::Site => f.write_str("its site may not take over by itself"),
            Unfit::Leaving => f.write_str("it is the primary that is to be replaced"),
            Unfit::Behind { of } => write!(f, "node {of} holds more than it"),
            Unfit::NotAsked => f.write_str("another node was asked for"),
            Unfit::Loss { bytes: u64::MAX, .. } => f.write_str("nobody knows how much would be lost"),
            Unfit::Loss { bytes, most } => write!(f, "{bytes} bytes of log could be lost, {most} are allowed"),
        }
    }
}

/// A node that may win by what it is. Only `fitness` makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit(NodeId);

impl Fit {
    /// Which.
    pub fn node(self) -> NodeId {
        self.0
    }
}

/// Whether `member` may win, apart from what it holds.
pub fn fitness(state: &ClusterState, kind: &FailoverKind, member: &Member, policy: &Policy) -> Result<Fit, Unfit> {
    let asked = match kind {
        FailoverKind::Automatic => None,
        FailoverKind::Switchover { to } | FailoverKind::Forced { to, .. } => *to,
    };
    if member.witness {
        return Err(Unfit::Witness);
    }
    match &member.stage {
        Stage::Active => {}
        Stage::Joining => return Err(Unfit::Stage { stage: "joining" }),
        Stage::Halted { .. } => return Err(Unfit::Stage { stage: "halted" }),
        Stage::Reinit { .. } => return Err(Unfit::Stage { stage: "being rebuilt" }),
        Stage::Rejoin { .. } => return Err(Unfit::Stage { stage: "rejoining" }),
        Stage::Leaving => return Err(Unfit::Stage { stage: "leaving" }),
    }
    if !member.may_vote_for_commits() {
        return Err(Unfit::Kind);
    }
    match kind {
        FailoverKind::Switchover { .. } if member.id == state.rule.primary => return Err(Unfit::Leaving),
        FailoverKind::Switchover { .. } | FailoverKind::Automatic | FailoverKind::Forced { .. } => {}
    }
    if asked == Some(member.id) {
        return Ok(Fit(member.id));
    }
    if asked.is_some() {
        return Err(Unfit::NotAsked);
    }
    // It is or was the primary already: others may wait for what it alone holds, and going on takes nothing over.
    let leads = |rule: &Rule| rule.primary == member.id;
    if binding(state).any(leads) {
        return Ok(Fit(member.id));
    }
    if member.priority == 0 {
        return Err(Unfit::PriorityZero);
    }
    let home = state.primary().map(|primary| &primary.site);
    if !policy.cross_site && home != Some(&member.site) && !policy.sites.contains(&member.site) {
        return Err(Unfit::Site);
    }
    Ok(Fit(member.id))
}

/// The winner, with all that is recorded about the choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Who.
    pub winner: NodeId,
    /// The rule it will serve under.
    pub next: Rule,
    /// Who was recruited and what they held.
    pub recruited: BTreeMap<NodeId, Recruited>,
    /// Why others cannot win.
    pub refused: BTreeMap<NodeId, String>,
    /// Without acknowledgements: the most that is lost.
    pub loss_bytes: Option<u64>,
}

/// Chooses among the recruits of an attempt whose rules are all closed (`recruit::closed`). `primary_was_at` is the
/// furthest position the old primary is known to have reached: it bounds the loss where nothing was promised.
pub fn choose(
    state: &ClusterState,
    failover: &Failover,
    reports: &BTreeMap<NodeId, Report>,
    primary_was_at: Option<Lsn>,
    policy: &Policy,
) -> Result<Choice, BTreeMap<NodeId, Unfit>> {
    let recruited = recruits(failover, reports);
    let best = recruited.iter().max_by_key(|(_, held)| held.rank()).map(|(node, held)| (*node, *held));
    // A forced attempt may go on without a quorum; then, too, nobody vouches that the best recruit holds everything.
    let vouched = |rule: &Rule| {
        let count = rule.voters.iter().filter(|voter| recruited.contains_key(voter)).count() as u32;
        rule.acks > 0 && count >= rule.recruit_quorum.max(1)
    };
    // What older rules may have lost was counted when the winner of the best recruit's lineage was chosen.
    let lineage = best.map(|(_, held)| held.lineage).unwrap_or_default();
    let unpromised =
        binding(state).any(|rule| rule.epoch >= lineage && !recruited.contains_key(&rule.primary) && !vouched(rule));
    let forced = matches!(failover.kind, FailoverKind::Forced { .. });
    let mut refused = BTreeMap::new();
    let mut fit = Vec::new();
    for member in state.members.values() {
        let verdict = fitness(state, &failover.kind, member, policy).and_then(|fit| {
            let bound = binding(state).any(|rule| rule.voters.contains(&member.id) || rule.primary == member.id);
            // What a node that is no voter misses is bounded by nothing but the loss that a person accepted.
            if !bound && !forced {
                return Err(Unfit::NotVoter);
            }
            let held = recruited.get(&member.id).ok_or(Unfit::NotRecruited)?;
            match best {
                Some((of, best)) if best.rank() > held.rank() => Err(Unfit::Behind { of }),
                Some(_) | None => Ok((fit, *held)),
            }
        });
        let verdict = verdict.and_then(|(fit, held)| {
            let bound = binding(state).any(|rule| rule.voters.contains(&member.id) || rule.primary == member.id);
            if !unpromised && bound {
                return Ok((fit, None));
            }
            // A position nobody knows is no small loss.
            let bytes = primary_was_at.map_or(u64::MAX, |at| at.lag_of(held.position).0);
            let most = match failover.kind {
                FailoverKind::Forced { loss_bytes_max, .. } => loss_bytes_max,
                FailoverKind::Automatic | FailoverKind::Switchover { .. } => policy.loss_bytes_max,
            };
            if bytes > most { Err(Unfit::Loss { bytes, most }) } else { Ok((fit, Some(bytes))) }
        });
        match verdict {
            Ok((this, loss)) => fit.push((member, this, loss)),
            Err(unfit) => {
                refused.insert(member.id, unfit);
            }
        }
    }
    let Some((winner, loss_bytes)) = preferred(state, failover, &fit) else { return Err(refused) };
    let next = next_rule(state, winner, &recruited);
    let refused = refused.into_iter().map(|(node, unfit)| (node, unfit.to_string())).collect();
    Ok(Choice { winner, next, recruited, refused, loss_bytes })
}

/// Among equals: first one that did not fail in an earlier attempt, then the primary's site, then priority.
fn preferred(
    state: &ClusterState,
    failover: &Failover,
    fit: &[(&Member, Fit, Option<u64>)],
) -> Option<(NodeId, Option<u64>)> {
    let home = state.primary().map(|primary| &primary.site);
    let key = |member: &Member| {
        let failed = failover.unsettled.last().is_some_and(|it| it.rule.primary == member.id);
        (!failed, home == Some(&member.site), member.priority, std::cmp::Reverse(member.id))
    };
    fit.iter().max_by_key(|(member, ..)| key(member)).map(|(_, fit, loss)| (fit.node(), *loss))
}

/// The rule the winner will serve under: voters' = voters - winner, of those that answered; under `strict` also of
/// those that did not, and the old primary, for under `strict` commits wait rather than promise less.
pub fn next_rule(state: &ClusterState, winner: NodeId, recruited: &BTreeMap<NodeId, Recruited>) -> Rule {
    let may_vote = |id: &NodeId| {
        *id != winner && state.members.get(id).is_some_and(|it| it.may_vote_for_commits() && it.stage == Stage::Active)
    };
    let answered: BTreeSet<NodeId> = recruited.keys().copied().filter(may_vote).collect();
    let voters: BTreeSet<NodeId> = if state.settings.strict {
        let old = state.rule.voters.iter().chain([&state.rule.primary]).copied().filter(may_vote);
        old.chain(answered).collect()
    } else {
        answered
    };
    let count = voters.len() as u32;
    let mode = state.settings.commit_mode;
    let acks = acks_asked(mode, crate::decide::data_nodes(state), voters.len()).min(count);
    Rule {
        epoch: state.rule.epoch,
        primary: winner,
        recruit_quorum: if acks == 0 { count } else { count - acks + 1 },
        voters,
        acks,
        mode,
        version: state.rule.version,
    }
}

/// What the winner's server waits for under `rule`, from before its promotion: `(how many, of whom)`.
pub fn synchronous(state: &ClusterState, rule: &Rule) -> (u32, BTreeSet<NodeId>) {
    let strict = state.settings.strict;
    let asked = acks_asked(state.settings.commit_mode, crate::decide::data_nodes(state), rule.voters.len());
    let acks = if strict { asked.max(rule.acks) } else { rule.acks };
    if acks == 0 { (0, BTreeSet::new()) } else { (acks, rule.voters.clone()) }
}
