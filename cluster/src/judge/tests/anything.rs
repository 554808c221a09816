//! Whatever happens in whatever order: the verdict keeps its promises.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Turn {
    Wait(u64, Vec<u64>),
    Cut(u64, u64),
    Write(u64),
    Apply(u64),
    Stop(u64),
    Fail(u64),
    LoseReceiver(u64),
    Promote(u64),
    Halt(u64),
    Forget(u64),
    ClearWaits,
    Consensus(bool),
    Mode(usize, bool),
}

fn turn() -> impl Strategy<Value = Turn> {
    let node = || 1..4u64;
    prop_oneof![
        4 => (1..8_000u64, proptest::collection::vec(node(), 0..3)).prop_map(|(millis, silent)| Turn::Wait(millis, silent)),
        2 => (2..4u64, 100..3_000u64).prop_map(|(id, millis)| Turn::Cut(id, millis)),
        3 => (1..100_000_000u64).prop_map(Turn::Write),
        3 => (2..4u64).prop_map(Turn::Apply),
        1 => node().prop_map(Turn::Stop),
        1 => node().prop_map(Turn::Fail),
        1 => node().prop_map(Turn::LoseReceiver),
        1 => node().prop_map(Turn::Promote),
        1 => node().prop_map(Turn::Halt),
        1 => node().prop_map(Turn::Forget),
        1 => Just(Turn::ClearWaits),
        1 => any::<bool>().prop_map(Turn::Consensus),
        1 => (0..4usize, any::<bool>()).prop_map(|(mode, strict)| Turn::Mode(mode, strict)),
    ]
}

impl World {
    fn facts_if_any(&mut self, id: u64) -> Option<&mut ServerFacts> {
        let seen = self.observed.get_mut(&NodeId(id))?;
        Arc::make_mut(&mut seen.sample).facts.as_mut()
    }
    fn take(&mut self, turn: Turn) {
        match turn {
            Turn::Wait(millis, silent) => self.wait(millis, &silent),
            Turn::Cut(id, millis) => {
                self.wait(millis, &[]);
                if let Some(seen) = self.observed.get_mut(&NodeId(id)) {
                    *Arc::make_mut(&mut seen.sample).peers_heard_ms.entry(NodeId(1)).or_default() += millis;
                }
            }
            Turn::Write(bytes) => {
                if let Some(written) = self.facts_if_any(1).and_then(|facts| facts.written.as_mut()) {
                    written.0 += bytes;
                }
            }
            Turn::Apply(id) => {
                let to = self.facts_if_any(1).and_then(|facts| facts.written);
                if let Some(facts) = self.facts_if_any(id) {
                    (facts.received, facts.replayed) = (to, to);
                }
            }
            Turn::Stop(id) if self.observed.contains_key(&NodeId(id)) => self.set(id, ServerState::Stopped),
            Turn::Fail(id) if self.observed.contains_key(&NodeId(id)) => {
                self.set(id, ServerState::Failed { reason: "because".into() });
            }
            Turn::Stop(_) | Turn::Fail(_) => {}
            Turn::LoseReceiver(id) => {
                if let Some(facts) = self.facts_if_any(id) {
                    facts.receiver = None;
                }
            }
            Turn::Promote(id) => {
                if let Some(facts) = self.facts_if_any(id) {
                    (facts.in_recovery, facts.written) = (false, facts.received.or(facts.written));
                }
            }
            Turn::Halt(id) => {
                let stage = Stage::Halted { code: "ST3010".into(), reason: "ahead".into(), since: WALL };
                self.state.members.get_mut(&NodeId(id)).expect("member").stage = stage;
            }
            Turn::Forget(id) => drop(self.observed.remove(&NodeId(id))),
            Turn::ClearWaits => {
                if let Some(facts) = self.facts_if_any(1) {
                    facts.synchronous_standby_names.clear();
                }
            }
            Turn::Consensus(up) => self.consensus.up = up,
            Turn::Mode(mode, strict) => {
                (self.state.settings.commit_mode, self.state.settings.strict) = (CommitMode::ALL[mode], strict);
            }
        }
    }
}

proptest! {
    #[test]
    fn healthy_is_proved_and_every_trouble_is_explained(turns in proptest::collection::vec(turn(), 1..25)) {
        let mut world = World::new(3);
        for turn in turns {
            world.take(turn);
            let status = world.look();
            brief(&status);
            prop_assert_eq!(status.nodes.len(), 3);
            let proved = status.primary_up
                && status.consensus.up
                && status.nodes.iter().all(|node| {
                    // In the first second and a half of an observer the distance may be known without the time.
                    let followed =
                        node.lag.as_ref().is_none_or(|lag| lag.seconds.is_some() || lag.apply_bytes.is_some());
                    node.healthy && node.keeper_up && node.link_up && followed
                });
            prop_assert!(status.verdict != Verdict::Healthy || proved, "{status:#?}");
            prop_assert!(status.verdict == Verdict::Healthy || !status.problems.is_empty(), "{status:#?}");
            prop_assert!(status.primary_up || status.durability.failures_tolerated == -1);
            prop_assert!(status.problems.is_sorted_by(|a, b| a.severity >= b.severity));
            let survives = status.durability.failures_tolerated > 0;
            prop_assert!(!survives || status.durability.in_force && status.durability.loss_now_bytes == Some(0));
        }
    }
}
