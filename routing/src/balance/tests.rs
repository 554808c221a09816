//! Stories of how reads are spread.

use super::*;
use proptest::prelude::*;

const LONG_AGO: Moment = Moment(0);
const NOW: Moment = Moment(1_000_000);

/// Replicas n0.. with these weights, all of them long known.
fn balancer(method: Method, weights: &[u32]) -> Balancer {
    let mut balancer = Balancer::new(Policy { method, ..Policy::default() });
    for (node, weight) in weights.iter().enumerate() {
        balancer.join(NodeId(node as u64), None, *weight, LONG_AGO);
    }
    balancer
}

fn all(count: u64) -> Vec<Candidate> {
    (0..count).map(|node| Candidate { node: NodeId(node), lag: LagBytes(0) }).collect()
}

/// Who serves the next reads, each of which ends at once.
fn served(balancer: &mut Balancer, candidates: &[Candidate], reads: u64) -> Vec<u64> {
    let mut random = 0x1234_5678_9ABC_DEF0_u64;
    let mut turn = |balancer: &mut Balancer| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let choice = balancer.choose(candidates, NOW, random ^ random >> 29).expect("a candidate");
        balancer.finished(choice.node, Micros(500), false, NOW);
        choice.node.0
    };
    (0..reads).map(|_| turn(balancer)).collect()
}

fn count(served: &[u64], node: u64) -> usize {
    served.iter().filter(|&&other| other == node).count()
}

#[test]
fn in_turn_means_in_turn() {
    let mut balancer = balancer(Method::RoundRobin, &[100, 300, 1]);
    assert_eq!(served(&mut balancer, &all(3), 6), [0, 1, 2, 0, 1, 2]);
    // One that may not serve this read is passed over.
    assert_eq!(served(&mut balancer, &all(2), 4), [0, 1, 0, 1]);
}

#[test]
fn weights_are_met_without_bursts() {
    let mut balancer = balancer(Method::Weighted, &[200, 100, 100]);
    assert_eq!(served(&mut balancer, &all(3), 8), [0, 1, 2, 0, 0, 1, 2, 0]);
    let mut with_none = self::balancer(Method::Weighted, &[100, 0]);
    assert_eq!(served(&mut with_none, &all(2), 3), [0, 0, 0], "weight 0 serves nothing");
}

#[test]
fn the_least_busy_serves() {
    let mut balancer = balancer(Method::LeastConnections, &[100, 100, 200]);
    let mut given = [0; 3];
    for _ in 0..40 {
        let choice = balancer.choose(&all(3), NOW, 0).expect("a candidate");
        given[choice.node.0 as usize] += 1;
    }
    assert_eq!(given, [10, 10, 20], "none has ended yet, and the third bears twice as much");
    for _ in 0..5 {
        balancer.finished(NodeId(1), Micros(1), false, NOW);
    }
    for _ in 0..4 {
        assert_eq!(balancer.choose(&all(3), NOW, 0).map(|choice| choice.node), Some(NodeId(1)));
    }
}

#[test]
fn a_slow_replica_gets_less() {
    let mut balancer = balancer(Method::Latency, &[100, 100, 100]);
    let mut given = [0_u32; 3];
    for read in 0..3000_u64 {
        let random = read.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let node = balancer.choose(&all(3), NOW, random ^ random >> 31).expect("a candidate").node;
        given[node.0 as usize] += 1;
        let latency = if node == NodeId(0) { Micros(50_000) } else { Micros(500) };
        balancer.finished(node, latency, false, NOW);
    }
    assert!(given[0] < 10 && given[1] > 900 && given[2] > 900, "{given:?}");
    // Its bad day is forgotten bit by bit.
    let later = NOW.plus(Millis(120_000));
    let again = (0..3000_u64).filter(|read| {
        let random = read.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let node = balancer.choose(&all(3), later, random ^ random >> 31).expect("a candidate").node;
        balancer.finished(node, Micros(500), false, later);
        node == NodeId(0)
    });
    assert!(again.count() > 500, "it is used again");
}

#[test]
fn a_lagging_replica_is_the_last_resort() {
    let mut balancer = balancer(Method::RoundRobin, &[100, 100]);
    let lagging = Candidate { node: NodeId(0), lag: LagBytes(17 << 20) };
    let fresh = Candidate { node: NodeId(1), lag: LagBytes(0) };
    assert_eq!(served(&mut balancer, &[lagging, fresh], 3), [1, 1, 1]);
    assert_eq!(served(&mut balancer, &[lagging], 2), [0, 0]);
}

#[test]
fn the_own_site_serves_until_it_is_full() {
    let site = |name: &str| Some(name.parse::<Site>().expect("a name"));
    let policy = Policy { method: Method::LeastConnections, site: site("a"), spill_in_flight: 4, ..Policy::default() };
    let mut balancer = Balancer::new(policy);
    balancer.join(NodeId(0), site("a"), 100, LONG_AGO);
    balancer.join(NodeId(1), site("b"), 100, LONG_AGO);
    let choose = |balancer: &mut Balancer| balancer.choose(&all(2), NOW, 0).expect("a candidate");
    for _ in 0..4 {
        assert_eq!(choose(&mut balancer), Choice { node: NodeId(0), spilled: false, desperate: false });
    }
    assert_eq!(choose(&mut balancer), Choice { node: NodeId(1), spilled: true, desperate: false });
    balancer.finished(NodeId(0), Micros(1), false, NOW);
    assert_eq!(choose(&mut balancer).node, NodeId(0));
    // Without a replica of its own, others are no spill.
    let far = [Candidate { node: NodeId(1), lag: LagBytes(0) }];
    assert_eq!(balancer.choose(&far, NOW, 0), Some(Choice { node: NodeId(1), spilled: false, desperate: false }));
}

#[test]
fn errors_in_a_row_eject_and_one_good_read_brings_back() {
    let mut balancer = balancer(Method::RoundRobin, &[100, 100]);
    let bad = NodeId(0);
    for _ in 0..2 {
        balancer.finished(bad, Micros(1), true, NOW);
    }
    balancer.finished(bad, Micros(1), false, NOW);
    balancer.finished(bad, Micros(1), true, NOW);
    assert!(!balancer.is_ejected(bad, NOW), "errors must be in a row");
    for _ in 0..2 {
        balancer.finished(bad, Micros(1), true, NOW);
    }
    assert!(balancer.is_ejected(bad, NOW));
    assert_eq!(served(&mut balancer, &all(2), 4), [1, 1, 1, 1]);
    // After a second exactly one read is sent there.
    let later = NOW.plus(Millis(1000));
    let chosen: Vec<u64> = (0..4).map(|_| balancer.choose(&all(2), later, 0).expect("a candidate").node.0).collect();
    assert_eq!(count(&chosen, 0), 1, "{chosen:?}");
    balancer.finished(bad, Micros(1), true, later);
    assert!(balancer.is_ejected(bad, later.plus(Millis(1999))), "twice as long the second time");
    let last = later.plus(Millis(2000));
    while balancer.choose(&all(2), last, 0).expect("a candidate").node != bad {}
    balancer.finished(bad, Micros(1), false, last);
    assert!(!balancer.is_ejected(bad, last));
}

#[test]
fn one_that_returns_gets_its_share_bit_by_bit() {
    let mut balancer = balancer(Method::Weighted, &[100]);
    balancer.join(NodeId(1), None, 100, NOW);
    let new = count(&served(&mut balancer, &all(2), 1100), 1);
    assert!((90..=110).contains(&new), "a tenth of the other's: {new}");
    let share = |balancer: &Balancer, at: u64| balancer.share(&balancer.seats[1], NOW.plus(Millis(at)));
    assert_eq!([share(&balancer, 0), share(&balancer, 5000), share(&balancer, 10_000)], [10_000, 50_000, 100_000]);
    // Announcing it again changes nothing.
    balancer.join(NodeId(1), None, 100, NOW.plus(Millis(9000)));
    assert_eq!(share(&balancer, 10_000), 100_000);
}

#[test]
fn the_last_one_is_never_ejected() {
    let mut balancer = balancer(Method::Latency, &[100, 100]);
    for node in [0, 1, 0, 1, 0, 1, 0, 1, 0, 1] {
        balancer.finished(NodeId(node), Micros(1), true, NOW);
    }
    let ejected = (0..2).filter(|&node| balancer.is_ejected(NodeId(node), NOW)).count();
    assert_eq!(ejected, 1);
    // If the other one may not serve this read, the ejected one does.
    let node = (0..2).map(NodeId).find(|&node| balancer.is_ejected(node, NOW)).expect("one is");
    let choice = balancer.choose(&[Candidate { node, lag: LagBytes(0) }], NOW, 0);
    assert_eq!(choice, Some(Choice { node, spilled: false, desperate: true }));
}

#[test]
fn a_stranger_is_not_chosen() {
    let mut balancer = balancer(Method::Latency, &[100]);
    assert_eq!(balancer.choose(&[], NOW, 0), None);
    assert_eq!(balancer.choose(&[Candidate { node: NodeId(7), lag: LagBytes(0) }], NOW, 0), None);
    balancer.leave(NodeId(0));
    assert_eq!(balancer.choose(&all(1), NOW, 0), None);
}

proptest! {
    #[test]
    fn whatever_happens_somebody_serves_and_it_is_a_candidate(
        method in prop_oneof![
            Just(Method::RoundRobin), Just(Method::Weighted), Just(Method::LeastConnections), Just(Method::Latency)
        ],
        steps in proptest::collection::vec((0..6_u64, any::<bool>(), 0..3000_u64, any::<u64>(), 0..64_u64), 1..200),
    ) {
        let mut balancer = balancer(method, &[100, 1, 250, 100, 100, 100]);
        let mut now = NOW;
        for (node, failed, wait, random, may) in steps {
            now = now.plus(Millis(wait));
            let candidates: Vec<Candidate> =
                all(6).into_iter().filter(|candidate| may >> candidate.node.0 & 1 == 1).collect();
            match balancer.choose(&candidates, now, random) {
                Some(choice) => {
                    prop_assert!(candidates.iter().any(|candidate| candidate.node == choice.node));
                    balancer.finished(choice.node, Micros(random % 100_000), failed, now);
                }
                None => prop_assert!(candidates.is_empty()),
            }
            balancer.finished(NodeId(node), Micros(random % 1000), failed, now);
            prop_assert!((0..6).any(|node| !balancer.is_ejected(NodeId(node), now)));
        }
    }
}
