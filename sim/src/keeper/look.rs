//! What a keeper sees: its own node, and what the others told it.

use super::{Heartbeat, LEASE};
use crate::mutant::Mutant;
use crate::server::Running;
use crate::world::{World, id, index};
use cluster::failover::detect::{self, Evidence, OwnWord, Said, Stream};
use cluster::failover::lease::HolderVerdict;
use cluster::failover::order::{Others, Own, Server, Serving};
use cluster::failover::procedure::leader_of;
use cluster::failover::{budget, candidate, lease, order, recruit};
use cluster::sync::VoterFacts;
use model::failover::{FailoverPhase, Recruited};
use model::state::Stage;
use model::{ClusterState, Epoch, Lsn, Millis, Moment, NodeId};
use std::collections::BTreeSet;

/// Heartbeats older than this say nothing.
const FRESH: u64 = 700;

impl World {
    /// The epoch that this node would serve under.
    fn epoch_for(&self, node: usize, state: &ClusterState) -> Option<Epoch> {
        let me = id(node);
        match &state.failover {
            Some(it) if it.phase == FailoverPhase::Promote && it.winner == Some(me) => Some(it.epoch),
            Some(_) | None => (state.rule.primary == me).then_some(state.rule.epoch),
        }
    }

    fn gives_up_lease(&self, node: usize) -> bool {
        let it = &self.nodes[node];
        let Some(keeper) = &it.keeper else { return false };
        let Some(epoch) = keeper.state.as_ref().and_then(|(_, state)| self.epoch_for(node, state)) else {
            return false;
        };
        let promised = keeper.ledger.promised;
        let server = match it.server.running {
            Running::No => Server::Stopped { in_order: it.disk.in_order, as_primary: !it.disk.standby },
            Running::Starting | Running::Primary | Running::Replica => Server::Starting,
        };
        order::gives_up_lease(&server, promised, keeper.hand_over_until.is_some(), epoch)
    }

    pub(super) fn make_heartbeat(&mut self, node: usize) -> Heartbeat {
        let local = self.nodes[node].local(self.now);
        let state = self.nodes[node].keeper.as_ref().and_then(|keeper| keeper.state.clone());
        let (holds, recruited) = self.holds(node);
        let it = &self.nodes[node];
        let keeper = it.keeper.as_ref().expect("the caller looked");
        let promised = keeper.ledger.promised;
        let lapsed = self.mutant == Mutant::LeaseNotAwaited || keeper.grantor.lapsed(promised, local, &LEASE);
        let serving = (it.server.running == Running::Primary).then(|| Serving {
            epoch: it.disk.served,
            lineage: holds.map(|holds| holds.lineage).unwrap_or_default(),
            timeline: it.disk.timeline(),
        });
        let position = serving.map(|_| Lsn(it.disk.flushed as u64));
        let own_word = match it.server.running {
            Running::Primary if self.now >= it.server.frozen_until => Some(OwnWord::Healthy),
            Running::Primary => Some(OwnWord::Stalled {
                for_ms: Millis(self.now - it.server.frozen_since),
                what: "the server".to_owned(),
            }),
            Running::No if keeper.hand_over_until.is_some() => Some(OwnWord::Gone),
            Running::No | Running::Starting | Running::Replica => None,
        };
        let said = state.as_ref().map(|(_, state)| leader_of(state)).filter(|leader| *leader != id(node));
        let said = said.map(|leader| (leader, self.said(node, leader, local)));
        let gives_up = self.gives_up_lease(node);
        if gives_up {
            self.keeper(node).holder.give_up(local);
        }
        let lease = state.as_ref().and_then(|(_, state)| self.epoch_for(node, state)).map(|epoch| (epoch, local));
        let lease = lease.filter(|_| !gives_up);
        let run = self.nodes[node].incarnation;
        let lease_given_up = match self.mutant {
            Mutant::GiveUpWhileServing => Some(local),
            _ => self.keeper(node).holder.given_up(),
        };
        let report = cluster::failover::recruit::Report { epoch: promised, recruited, lapsed };
        let version = state.as_ref().map_or(0, |(version, _)| *version);
        let lease_from = state.as_ref().map(|(_, state)| self.newcomers(node, local, state)).unwrap_or_default();
        let it = &self.nodes[node];
        let replica = matches!(it.server.running, Running::Replica | Running::Starting);
        let follows = it.disk.follows.filter(|_| replica).map(|(_, epoch)| epoch);
        Heartbeat {
            from: node,
            report,
            follows,
            serving,
            position,
            own_word,
            said,
            lease,
            run,
            lease_given_up,
            lease_from,
            version,
        }
    }

    /// What this keeper says about the leader.
    fn said(&self, node: usize, leader: NodeId, local: Moment) -> Said {
        let it = &self.nodes[node];
        let keeper = it.keeper.as_ref().expect("the caller looked");
        let heard = keeper.heard.get(&leader).map_or(keeper.started_at, |(at, _)| *at);
        let follows = it.disk.follows.is_some_and(|(upstream, _)| upstream == leader);
        let stream = (it.server.running == Running::Replica && follows).then(|| match it.server.receiver {
            Some(_) if self.now < it.server.received_at + FRESH => Stream::Moving,
            Some(_) => {
                let other = index(leader);
                let path = self.network.reaches(node, other) && self.network.reaches(other, node);
                let serves = self.nodes[other].serves(self.now) && self.nodes[other].server.running == Running::Primary;
                Stream::Quiet { answers: Some(path && serves) }
            }
            None => Stream::Lost,
        });
        Said { silent: local.since(heard), stream }
    }

    /// What the data holds, and the same if the node counts as recruited.
    fn holds(&self, node: usize) -> (Option<Recruited>, Option<Recruited>) {
        let it = &self.nodes[node];
        if it.witness || !it.disk.whole {
            return (None, None);
        }
        let Some(keeper) = &it.keeper else { return (None, None) };
        let timeline = it.disk.timeline();
        let lineage = match self.mutant {
            Mutant::PositionOnly => Some(Epoch(1)),
            _ => keeper.ledger.lineage(timeline),
        };
        let Some(lineage) = lineage else { return (None, None) };
        let holds = Recruited { lineage, timeline, position: Lsn(it.disk.flushed as u64) };
        let flushed = it.disk.flushed == it.disk.log.len();
        let replayed = self.now >= it.server.replayed_at;
        let detached = it.disk.follows.is_none() && !it.armed;
        let recruited = match it.server.running {
            Running::Replica if self.mutant == Mutant::ReportBeforeReplay => {
                let position = Lsn(it.server.replayed.min(it.disk.flushed) as u64);
                (detached && it.server.receiver.is_none()).then_some(Recruited { position, ..holds })
            }
            Running::Replica if self.mutant == Mutant::CutNotSeen => (detached && replayed).then_some(holds),
            Running::Replica => (detached && it.server.receiver.is_none() && flushed && replayed).then_some(holds),
            Running::No if !it.disk.standby && it.disk.in_order => Some(holds),
            Running::Primary if self.mutant == Mutant::PromiseBeforeStop && keeper.ledger.promised > it.disk.served => {
                Some(holds)
            }
            Running::No | Running::Starting | Running::Primary => None,
        };
        (Some(holds), recruited)
    }

    pub(super) fn look(&mut self, node: usize, local: Moment, state: &ClusterState) -> (Own, Others) {
        let me = id(node);
        let (holds, recruited) = self.holds(node);
        let lease = self.lease(node, local, state);
        let attempt = state.failover.as_ref().map(|it| it.epoch);
        let it = &self.nodes[node];
        let keeper = it.keeper.as_ref().expect("the caller looked");
        let server = match it.server.running {
            Running::No => Server::Stopped { in_order: it.disk.in_order, as_primary: !it.disk.standby },
            Running::Starting => Server::Starting,
            Running::Primary => Server::Primary {
                healthy: self.now >= it.server.frozen_until,
                sync: it.server.sync.clone(),
                row: attempt
                    .and_then(|epoch| Some((epoch, it.disk.row(epoch)?)))
                    .filter(|(_, at)| at.0 <= it.disk.flushed as u64 || self.mutant == Mutant::RowNotFlushed),
                flushed: it.server.senders.iter().map(|(node, sender)| (*node, Lsn(sender.flushed as u64))).collect(),
            },
            Running::Replica => Server::Replica {
                follows: it.disk.follows,
                receiver: it.server.receiver.is_some(),
                sync: it.server.sync.clone(),
            },
        };
        let mut own = Own {
            promised: keeper.ledger.promised,
            server,
            holds,
            recruited,
            promotion_ordered: it.armed && it.server.running == Running::Replica,
            lease,
            hand_over: keeper.hand_over_until.is_some(),
        };
        self.lie(state, &mut own);
        let mut others = Others { primary_was_at: keeper.primary_was_at, ..Others::default() };
        let lapsed = self.mutant == Mutant::LeaseNotAwaited || keeper.grantor.lapsed(own.promised, local, &LEASE);
        others.reports.insert(me, order::report(&own, lapsed));
        others.alive.insert(me);
        for (from, (at, heartbeat)) in keeper.heard.iter().filter(|(from, _)| state.members.contains_key(from)) {
            others.reports.insert(*from, heartbeat.report.clone());
            if local.since(*at).0 < FRESH {
                others.alive.insert(*from);
                if let Some(serving) = heartbeat.serving {
                    others.serving.insert(*from, serving);
                }
            }
        }
        others.leader_dead = self.leader_dead(node, local, state, &others.alive);
        (own, others)
    }

    fn lie(&self, state: &ClusterState, own: &mut Own) {
        let next = state.failover.as_ref().and_then(|it| it.next.as_ref());
        match (self.mutant, &mut own.server, next) {
            (Mutant::PromoteBeforeList, Server::Replica { sync, .. }, Some(rule)) => {
                (sync.acks, sync.list) = candidate::synchronous(state, rule);
            }
            (Mutant::SettleTooEarly, Server::Primary { flushed, .. }, Some(rule)) => {
                flushed.extend(rule.voters.iter().map(|node| (*node, Lsn(u64::MAX))));
            }
            (Mutant::CutNotSeen, Server::Replica { receiver, .. }, _) => *receiver = false,
            _ => {}
        }
    }

    fn lease(&mut self, node: usize, local: Moment, state: &ClusterState) -> bool {
        let Some(epoch) = self.epoch_for(node, state).filter(|_| !self.gives_up_lease(node)) else { return false };
        let it = &mut self.nodes[node];
        let keeper = it.keeper.as_ref().expect("the caller looked");
        let electors = recruit::electors(state).collect();
        let verdict = match lease::needed(&electors, &keeper.listed) {
            None => HolderVerdict::Serve { fence_at: Moment(u64::MAX) },
            Some(needed) => keeper.holder.verdict(epoch, &needed, local, &LEASE),
        };
        match verdict {
            HolderVerdict::Serve { fence_at } => {
                it.fence_at = Some(fence_at);
                true
            }
            HolderVerdict::Fence => false,
        }
    }

    /// The joining keepers that this node, as the holder, tells to count from now on. In a group too small to need a lease
    /// it is one, and from then on it needs that one's grant.
    fn newcomers(&mut self, node: usize, local: Moment, state: &ClusterState) -> BTreeSet<NodeId> {
        let Some(epoch) = self.epoch_for(node, state) else { return BTreeSet::new() };
        let joining = |stage: &Stage| *stage == Stage::Joining;
        let electors = recruit::electors(state).count();
        let keeper = self.keeper(node);
        let members = state.members.values().filter(|member| joining(&member.stage)).map(|member| member.id);
        let ready: BTreeSet<NodeId> =
            members.filter(|newcomer| keeper.holder.counts(epoch, *newcomer, local, &LEASE)).collect();
        if electors > 2 {
            return ready;
        }
        if keeper.listed.is_empty() {
            keeper.listed.extend(ready.first());
        }
        let listed = &keeper.listed & &ready;
        // Before anybody hears of it.
        if !self.lease(node, local, state) {
            self.nodes[node].fence_at = None;
        }
        listed
    }

    fn leader_dead(
        &mut self,
        node: usize,
        local: Moment,
        state: &ClusterState,
        alive: &BTreeSet<NodeId>,
    ) -> Option<String> {
        let leader = leader_of(state);
        if leader == id(node) {
            return None;
        }
        let mine = self.said(node, leader, local);
        let keeper = self.nodes[node].keeper.as_ref().expect("the caller looked");
        let others = keeper.heard.iter().filter(|(from, _)| **from != leader && alive.contains(from));
        let others = others.filter_map(|(from, (at, heartbeat))| {
            let (about, said) = heartbeat.said?;
            let silent = Millis(said.silent.0 + local.since(*at).0);
            (about == leader).then_some((*from, Said { silent, stream: said.stream }))
        });
        let word = keeper.heard.get(&leader).filter(|(at, _)| local.since(*at).0 < FRESH);
        let evidence = Evidence {
            members: recruit::electors(state).count(),
            limit: detect::silence_limit(Millis(2 * self.network.delay_max)),
            said: others.chain([(id(node), mine)]).collect(),
            own_word: word.and_then(|(_, heartbeat)| heartbeat.own_word.clone()),
        };
        let keeper = self.keeper(node);
        match detect::verdict(&evidence) {
            detect::Verdict::Dead { because } => {
                let since = *keeper.dead_since.get_or_insert(local);
                let wait = budget::wait(&because, &keeper.failovers, local);
                (local.since(since) >= wait).then_some(because)
            }
            detect::Verdict::Alive | detect::Verdict::Suspect { .. } => {
                keeper.dead_since = None;
                None
            }
        }
    }

    /// Lets in the servers that may be fed from here. The real keeper makes slots for them.
    pub(super) fn keep_slots(&mut self, node: usize, local: Moment, state: &ClusterState) {
        let all = self.mutant == Mutant::FeedAnybody;
        let it = &mut self.nodes[node];
        let Some(keeper) = it.keeper.as_ref() else { return };
        if !matches!(it.server.running, Running::Primary | Running::Replica) {
            return;
        }
        for member in state.members.values().filter(|member| member.id != id(node) && !member.witness) {
            let heard = keeper.heard.get(&member.id).filter(|(at, _)| local.since(*at).0 < FRESH);
            if heard.is_some_and(|(_, it)| all || keeper.ledger.may_feed(it.report.epoch, it.follows)) {
                it.disk.slots.insert(member.id);
            }
        }
    }

    pub(super) fn sync_facts(&mut self, node: usize, local: Moment, state: &ClusterState) -> Option<Vec<VoterFacts>> {
        let catching_up_counts = self.mutant == Mutant::CountCatchingUp;
        let now = self.now;
        let it = &mut self.nodes[node];
        let keeper = it.keeper.as_mut()?;
        let mut voters = Vec::new();
        for member in state.members.values().filter(|member| member.id != id(node) && !member.witness) {
            let sender = it.server.senders.get(&member.id).filter(|sender| now < sender.heard_at + 1_000);
            let sender = sender.filter(|sender| sender.streaming || catching_up_counts);
            if sender.is_some() {
                keeper.last_streaming.insert(member.id, local);
            }
            let seen = *keeper.last_streaming.entry(member.id).or_insert(local);
            let flushed = sender.map(|sender| if catching_up_counts { u64::MAX } else { sender.flushed as u64 });
            voters.push(VoterFacts {
                node: member.id,
                streaming: sender.is_some(),
                flushed: flushed.map(Lsn),
                unreachable_ms: local.since(seen).0,
                site: member.site.clone(),
                eligible: member.may_vote_for_commits() && member.stage == Stage::Active,
            });
        }
        Some(voters)
    }
}
