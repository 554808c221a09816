//! Tests of the decisions one by one; the simulator (`sim`) tests them together.

use super::ledger::{Ledger, Refused};
use super::order::{self, Action, Others, Own, Server, Serving, View};
use super::recruit::{Closed, Open, Report};
use super::rejoin::{Rejoin, decide, descent};
use super::{budget, candidate, detect, lease, procedure, recruit};
use crate::fixtures::{NOW, three};
use crate::sync::ServerSync;
use model::failover::{FailoverKind, FailoverPhase, Recruited};
use model::state::LineageEntry;
use model::{ClusterState, Epoch, Lsn, Millis, Moment, NodeId, Timeline};
use std::collections::{BTreeMap, BTreeSet};

fn held(lineage: u64, position: u64) -> Recruited {
    Recruited { lineage: Epoch(lineage), timeline: Timeline(1), position: Lsn(position) }
}

fn report(epoch: u64, recruited: Option<Recruited>) -> Report {
    Report { epoch: Epoch(epoch), recruited, lapsed: false }
}

fn claimed() -> ClusterState {
    procedure::claim(&three(), Epoch(1), FailoverKind::Automatic, "it died", "stemma", NOW).expect("claimed")
}

#[test]
fn one_attempt_per_epoch() {
    let state = claimed();
    assert_eq!(state.failover.as_ref().map(|it| it.epoch), Some(Epoch(2)));
    assert_eq!(procedure::claim(&state, Epoch(1), FailoverKind::Automatic, "", "", NOW), None, "given out already");
    assert_eq!(procedure::claim(&state, Epoch(2), FailoverKind::Automatic, "", "", NOW), None, "it can simply go on");
}

#[test]
fn a_rule_is_closed_by_its_quorum_of_this_epoch_or_by_its_primary() {
    let state = claimed();
    let failover = state.failover.as_ref().expect("claimed");
    let mut reports =
        BTreeMap::from([(NodeId(2), report(2, Some(held(1, 9)))), (NodeId(3), report(1, Some(held(1, 9))))]);
    let open = Open::Voters { epoch: Epoch(1), recruited: 1, needed: 2 };
    assert_eq!(recruit::closed(&state, failover, &reports), Err(open));
    reports.insert(NodeId(3), report(2, Some(held(1, 8))));
    assert_eq!(recruit::closed(&state, failover, &reports), Ok(Closed::Each));
    let primary = BTreeMap::from([(NodeId(1), report(2, Some(held(1, 9))))]);
    assert_eq!(recruit::closed(&state, failover, &primary), Ok(Closed::Each));
}

fn chosen() -> ClusterState {
    let state = claimed();
    let failover = state.failover.as_ref().expect("claimed");
    let reports = [(2, held(1, 9)), (3, held(1, 8))];
    let reports = reports.map(|(node, held)| (NodeId(node), report(2, Some(held)))).into();
    let choice = candidate::choose(&state, failover, &reports, None, &super::Policy::default()).expect("a winner");
    assert_eq!(choice.winner, NodeId(2), "it holds more");
    assert_eq!(choice.refused[&NodeId(3)], "node 2 holds more than it");
    procedure::choose(&state, Epoch(2), &choice, NOW).expect("chosen")
}

#[test]
fn both_rules_bind_until_the_next_one_is_settled() {
    let state = chosen();
    assert_eq!(state.rule.primary, NodeId(1));
    assert_eq!(procedure::undo(&state, Epoch(2), "", NOW), None, "the winner may be promoted already");
    let again =
        procedure::claim(&state, Epoch(2), FailoverKind::Automatic, "it died too", "stemma", NOW).expect("claimed");
    let epochs: Vec<_> = recruit::binding(&again).map(|rule| rule.epoch.0).collect();
    assert_eq!(epochs, [1, 2]);
    assert_eq!(procedure::undo(&again, Epoch(3), "", NOW), None, "an earlier winner may have acknowledged");

    let rule = state.failover.as_ref().and_then(|it| it.next.clone()).expect("chosen");
    let settled = procedure::settle(&state, Epoch(2), &rule, Timeline(2), NOW).expect("settled");
    assert_eq!((settled.rule.primary, settled.rule.epoch), (NodeId(2), Epoch(2)));
    assert_eq!(settled.failovers.last().map(|it| it.phase), Some(FailoverPhase::Done));
    let entry = LineageEntry {
        epoch: Epoch(2),
        timeline: Timeline(2),
        began_at: Some(Lsn(9)),
        from: Some(Epoch(1)),
        xids: None,
    };
    assert_eq!(settled.lineage.last(), Some(&entry));
}

/// The rule of epoch 1 could never be closed by its own nodes again, if they gave up what they held for the winner of 2.
#[test]
fn a_descendant_of_a_later_winner_closes_an_older_rule_and_owes_it_nothing() {
    let state = chosen();
    let again = procedure::claim(&state, Epoch(2), FailoverKind::Automatic, "it died", "stemma", NOW).expect("claimed");
    let failover = again.failover.as_ref().expect("claimed");
    let closed = |node, held| {
        let reports = BTreeMap::from([(NodeId(node), report(3, Some(held)))]);
        recruit::closed(&again, failover, &reports)
    };
    assert_eq!(closed(2, held(2, 9)), Ok(Closed::ByDescent), "the winner of epoch 2 itself");
    let open = Open::Voters { epoch: Epoch(1), recruited: 1, needed: 2 };
    assert_eq!(closed(2, held(1, 9)), Err(open.clone()), "it was never promoted");
    assert_eq!(closed(3, held(2, 12)), Ok(Closed::ByDescent), "the only voter of the rule of epoch 2");
    assert_eq!(closed(3, held(1, 9)), Err(open), "it never followed that winner");
    let reports = BTreeMap::from([(NodeId(2), report(3, Some(held(2, 9))))]);
    let choice = candidate::choose(&again, failover, &reports, None, &super::Policy::default()).expect("a winner");
    assert_eq!((choice.winner, choice.loss_bytes), (NodeId(2), None));
}

#[test]
fn the_rule_is_frozen_while_an_attempt_is_recorded() {
    let state = claimed();
    let mut rule = state.rule.clone();
    (rule.acks, rule.version) = (0, rule.version + 1);
    assert_eq!(crate::admission::write_rule(&state, &rule, NOW), None);
    let undone = procedure::undo(&state, Epoch(2), "it is back", NOW).expect("undone");
    assert_eq!((undone.rule.epoch, undone.failover), (Epoch(2), None));
}

#[test]
fn a_replica_promises_before_it_follows_and_keeps_the_epoch_of_a_timeline() {
    let ledger = Ledger::default().attach(Epoch(1), Epoch(1), Timeline(1), None).expect("followed");
    // The primary was confirmed under epoch 2: the timeline is still that of epoch 1.
    let ledger = ledger.attach(Epoch(2), Epoch(1), Timeline(1), Some(Timeline(1))).expect("followed");
    assert_eq!((ledger.promised, ledger.lineage(Timeline(1))), (Epoch(2), Some(Epoch(1))));
    let older = ledger.attach(Epoch(1), Epoch(1), Timeline(1), Some(Timeline(1)));
    assert_eq!(older, Err(Refused::Older { promised: Epoch(2) }));
    let same = ledger.attach(Epoch(3), Epoch(3), Timeline(1), Some(Timeline(1)));
    assert_eq!(same, Err(Refused::SameNumber { ours: Epoch(1) }));
}

#[test]
fn a_promotion_is_known_in_every_crash() {
    let ledger = Ledger::default().attach(Epoch(1), Epoch(1), Timeline(1), None).expect("followed");
    let ordered = ledger.promotion(Epoch(2), Timeline(1));
    assert_eq!(ordered.lineage(Timeline(1)), Some(Epoch(1)), "it has not happened");
    assert_eq!(ordered.lineage(Timeline(2)), Some(Epoch(2)), "it has");
    assert_eq!(ordered.promoted(Timeline(2)).lineage(Timeline(2)), Some(Epoch(2)));
}

/// A server that is killed right after each of its promotions, before its keeper looks, is promoted again and again.
#[test]
fn a_promotion_that_nobody_saw_is_not_forgotten_by_the_next_order() {
    let ledger = Ledger::default().attach(Epoch(1), Epoch(1), Timeline(1), None).expect("followed");
    let twice = ledger.promotion(Epoch(2), Timeline(1)).promotion(Epoch(2), Timeline(2));
    assert_eq!(twice.lineage(Timeline(1)), Some(Epoch(1)));
    assert_eq!(twice.lineage(Timeline(2)), Some(Epoch(2)), "the second one has not happened");
    assert_eq!(twice.lineage(Timeline(3)), Some(Epoch(2)), "it has");
    let thrice = twice.promotion(Epoch(4), Timeline(3));
    assert_eq!(thrice.lineage(Timeline(3)), Some(Epoch(2)), "begun by the second one, whatever comes of the third");
    let follows = twice.attach(Epoch(5), Epoch(5), Timeline(9), Some(Timeline(3))).expect("allowed");
    assert_eq!(follows.lineage(Timeline(3)), Some(Epoch(2)), "until it receives something, it holds what it began");
}

fn asked(run: u64, at: u64) -> lease::Asked {
    lease::Asked { run, at: Moment(at) }
}

#[test]
fn a_lease_that_was_given_up_is_free_at_once_and_one_asked_for_afterwards_is_not() {
    let (mut holder, mut grantor) = (lease::Holder::default(), lease::Grantor::new(Moment(0)));
    let electors = BTreeSet::from([NodeId(2)]);
    let may =
        |grantor: &lease::Grantor| grantor.may_grant(NodeId(3), Epoch(2), Epoch(2), Moment(2_600), &lease::LAN).is_ok();
    grantor.grant(NodeId(1), Epoch(1), asked(7, 2_000), Moment(2_400), &lease::LAN);
    holder.granted(Epoch(1), NodeId(2), Moment(2_000));
    holder.give_up(Moment(2_100));
    assert_eq!(holder.given_up(), Some(Moment(2_100)));
    // An answer that was on its way.
    holder.granted(Epoch(1), NodeId(2), Moment(2_050));
    assert_eq!(holder.verdict(Epoch(1), &electors, Moment(2_200), &lease::LAN), lease::HolderVerdict::Fence);
    for wrong in [(NodeId(3), asked(7, 2_100)), (NodeId(1), asked(8, 2_100)), (NodeId(1), asked(7, 1_999))] {
        assert!(!grantor.given_up(wrong.0, wrong.1), "{wrong:?}");
        assert!(!may(&grantor) && !grantor.lapsed(Epoch(2), Moment(2_600), &lease::LAN), "{wrong:?}");
    }
    assert!(grantor.given_up(NodeId(1), asked(7, 2_100)));
    assert!(may(&grantor) && grantor.lapsed(Epoch(2), Moment(2_600), &lease::LAN));
    // It comes back, and asks anew; what it said before takes nothing back that it has now.
    holder.granted(Epoch(1), NodeId(2), Moment(2_300));
    assert_ne!(holder.verdict(Epoch(1), &electors, Moment(2_400), &lease::LAN), lease::HolderVerdict::Fence);
    grantor.grant(NodeId(1), Epoch(1), asked(7, 2_300), Moment(2_500), &lease::LAN);
    assert!(!grantor.given_up(NodeId(1), asked(7, 2_100)));
    assert!(!may(&grantor));
}

/// A keeper that slept finds older requests behind a newer one, and older words behind those.
#[test]
fn requests_and_words_that_come_late_take_back_nothing_newer() {
    let mut grantor = lease::Grantor::new(Moment(0));
    let lapsed = |grantor: &lease::Grantor, at| grantor.lapsed(Epoch(2), Moment(at), &lease::LAN);
    grantor.grant(NodeId(1), Epoch(1), asked(7, 2_300), Moment(2_400), &lease::LAN);
    grantor.grant(NodeId(1), Epoch(1), asked(7, 2_000), Moment(2_500), &lease::LAN);
    assert!(!grantor.given_up(NodeId(1), asked(7, 2_100)));
    assert!(!lapsed(&grantor, 3_999) && lapsed(&grantor, 4_000), "counted from the last that came");
    // The same of the process before it.
    grantor.grant(NodeId(1), Epoch(1), asked(6, 9_000), Moment(2_600), &lease::LAN);
    assert!(grantor.given_up(NodeId(1), asked(6, 9_100)));
    assert!(!lapsed(&grantor, 3_999) && lapsed(&grantor, 4_000));
}

#[test]
fn the_holder_stops_before_any_grantor_lets_go() {
    let (mut holder, mut grantor) = (lease::Holder::default(), lease::Grantor::new(Moment(0)));
    let silent = grantor.may_grant(NodeId(1), Epoch(1), Epoch(1), Moment(1_000), &lease::LAN);
    assert_eq!(silent, Err(lease::NotGranted::Silent));
    // Sent at 2000, received at 2400, answered at once.
    grantor.grant(NodeId(1), Epoch(1), asked(7, 2_000), Moment(2_400), &lease::LAN);
    holder.granted(Epoch(1), NodeId(2), Moment(2_000));
    let fence_at = Moment(2_000 + 1_485 - 300);
    let serve = lease::HolderVerdict::Serve { fence_at };
    let verdict = |of: &[u64], at| {
        let electors = of.iter().map(|id| NodeId(*id)).collect();
        holder.verdict(Epoch(1), &electors, Moment(at), &lease::LAN)
    };
    assert_eq!(verdict(&[2], 3_184), serve);
    assert_eq!(verdict(&[2], 3_185), lease::HolderVerdict::Fence);
    assert_eq!(verdict(&[1, 2, 3], 2_500), lease::HolderVerdict::Fence, "no majority");
    assert_eq!(verdict(&[1], 2_500), lease::HolderVerdict::Fence, "its grant does not count");
    assert!(!grantor.lapsed(Epoch(2), Moment(3_899), &lease::LAN));
    assert!(grantor.lapsed(Epoch(2), Moment(3_900), &lease::LAN));
}

#[test]
fn a_holder_and_a_candidate_one_elector_apart_never_both_have_a_majority() {
    let everybody: Vec<NodeId> = (1..=5).map(NodeId).collect();
    let me = NodeId(1);
    for size in 1..everybody.len() {
        let known: BTreeSet<NodeId> = everybody[..size].iter().copied().collect();
        let joining = everybody[size];
        let now: BTreeSet<NodeId> = everybody[..=size].iter().copied().collect();
        // Whoever lapsed for the candidate grants nothing to the holder any more.
        for lapsed in
            (0_u32..1 << now.len()).map(|bits| now.iter().copied().filter(move |id| bits >> (id.0 - 1) & 1 == 1))
        {
            let lapsed: BTreeSet<NodeId> = lapsed.collect();
            // After a start the holder knows only that it told one of these.
            let (none, one) = (BTreeSet::new(), BTreeSet::from([joining]));
            let doubt = BTreeSet::from([joining, NodeId(9)]);
            for (electors, listed) in [(&known, &none), (&known, &one), (&now, &one), (&known, &doubt), (&now, &doubt)]
            {
                if lapsed.intersection(electors).count() < recruit::majority(electors.len()) {
                    continue;
                }
                let mut holder = lease::Holder::default();
                now.difference(&lapsed).for_each(|grantor| holder.granted(Epoch(1), *grantor, Moment(0)));
                let held = match lease::needed(&known, listed) {
                    None => true,
                    Some(set) => holder.verdict(Epoch(1), &set, Moment(1), &lease::LAN) != lease::HolderVerdict::Fence,
                };
                assert!(!held || lapsed.contains(&me), "{size} electors, listed {listed:?}, lapsed {lapsed:?}");
            }
        }
    }
}

#[test]
fn silence_alone_is_not_death() {
    let said = |silent, stream| detect::Said { silent: Millis(silent), stream };
    let check = |streams: [Option<detect::Stream>; 2], silent: [u64; 2]| {
        let said = BTreeMap::from([(NodeId(2), said(silent[0], streams[0])), (NodeId(3), said(silent[1], streams[1]))]);
        detect::verdict(&detect::Evidence { members: 3, limit: Millis(700), said, own_word: None })
    };
    let (moving, lost) = (Some(detect::Stream::Moving), Some(detect::Stream::Lost));
    assert_eq!(check([moving, moving], [100, 0]), detect::Verdict::Alive);
    assert!(matches!(check([lost, lost], [900, 100]), detect::Verdict::Suspect { .. }), "no majority");
    assert!(matches!(check([lost, moving], [900, 900]), detect::Verdict::Suspect { .. }), "the keeper is sick");
    assert!(matches!(check([lost, lost], [900, 900]), detect::Verdict::Dead { .. }));
}

#[test]
fn the_budget_delays_and_never_starves() {
    let wait = |because: &str, done: u64| budget::wait(because, &vec![Moment(5_000); done as usize], Moment(6_000)).0;
    let silent = "2 of 3 keepers miss its heartbeats and its replicas lost it";
    assert_eq!([0, 2, 3, 4, 60].map(|done| wait(silent, done)), [0, 0, 1_000, 2_000, 60_000]);
    // Whose own keeper says so is gone, and nobody flaps.
    let gone = detect::Evidence {
        members: 3,
        limit: Millis(700),
        said: BTreeMap::new(),
        own_word: Some(detect::OwnWord::Gone),
    };
    let detect::Verdict::Dead { because } = detect::verdict(&gone) else { panic!("dead") };
    assert_eq!([3, 60].map(|done| wait(&because, done)), [0, 0]);
    assert!(!budget::counts(&because) && budget::counts(silent));
}

#[test]
fn data_follows_its_own_descent_only() {
    let mut state = three();
    let entry = |epoch, timeline, at, from: Option<u64>| LineageEntry {
        epoch: Epoch(epoch),
        timeline: Timeline(timeline),
        began_at: Some(Lsn(at)),
        from: from.map(Epoch),
        xids: None,
    };
    // Epoch 2 only confirmed the first primary; epoch 3 was a promotion; epoch 5 another, beside one that never settled.
    state.lineage =
        vec![entry(1, 1, 0, None), entry(2, 1, 50, None), entry(3, 2, 100, Some(1)), entry(5, 3, 200, Some(3))];
    let descent = descent(&state);
    assert_eq!(decide(&held(1, 100), true, &descent), Rejoin::Follow);
    assert_eq!(decide(&held(1, 101), true, &descent), Rejoin::Rewind { fork: Lsn(100) });
    assert_eq!(decide(&held(3, 201), true, &descent), Rejoin::Rewind { fork: Lsn(200) });
    assert_eq!(decide(&held(4, 150), true, &descent), Rejoin::Rebuild);
    assert_eq!(decide(&held(1, 50), false, &descent), Rejoin::RecoverFirst);
}

/// What node 3 does that follows node 2, the primary of epoch 2 since `Lsn(9)`, and holds so much.
fn followed_up(position: u64, receiver: bool) -> Option<Action> {
    let state = chosen();
    let rule = state.failover.as_ref().and_then(|it| it.next.clone()).expect("chosen");
    let mut state = procedure::settle(&state, Epoch(2), &rule, Timeline(2), NOW).expect("settled");
    let first = LineageEntry { epoch: Epoch(1), timeline: Timeline(1), began_at: None, from: None, xids: None };
    state.lineage.insert(0, first);
    let sync = ServerSync::default();
    let own = Own {
        promised: Epoch(2),
        server: Server::Replica { follows: Some((NodeId(2), Epoch(2))), receiver, sync },
        holds: Some(held(1, position)),
        recruited: None,
        promotion_ordered: false,
        lease: false,
        hand_over: false,
    };
    let serving = Serving { epoch: Epoch(2), lineage: Epoch(2), timeline: Timeline(2) };
    let others = Others { serving: BTreeMap::from([(NodeId(2), serving)]), ..Others::default() };
    let policy = super::Policy::default();
    let view = View { me: NodeId(3), state: &state, own: &own, others: &others, phase_age: Millis(0), policy: &policy };
    order::next(&view)
}

#[test]
fn a_replica_that_replayed_beyond_the_fork_after_its_report_is_rewound() {
    assert_eq!(followed_up(9, false), None, "it will stream in a moment");
    assert_eq!(followed_up(12, true), None, "it streams");
    assert_eq!(followed_up(12, false), Some(Action::Rewind { node: NodeId(2), fork: Lsn(9) }));
}

#[test]
fn a_promotion_that_was_not_carried_out_claims_no_timeline_of_others() {
    let told = Ledger::default().promotion(Epoch(5), Timeline(1));
    assert_eq!(told.lineage(Timeline(2)), Some(Epoch(5)), "as long as it may have happened");
    let attached = told.attach(Epoch(6), Epoch(6), Timeline(2), Some(Timeline(1))).expect("allowed");
    assert_eq!(attached.lineage(Timeline(2)), Some(Epoch(6)), "what it holds now came from the primary of epoch 6");
}

fn forced(most: u64) -> ClusterState {
    let kind = FailoverKind::Forced { to: None, loss_bytes_max: most };
    procedure::claim(&three(), Epoch(1), kind, "ann asked for it", "ann", NOW).expect("claimed")
}

/// Half of the voters are gone for good: what the other one misses is bounded by what the primary was known to have.
#[test]
fn a_forced_attempt_without_a_quorum_keeps_to_the_accepted_loss() {
    let reports = BTreeMap::from([(NodeId(2), report(2, Some(held(1, 900))))]);
    let choose = |most: u64, was_at: Option<Lsn>| {
        let state = forced(most);
        let failover = state.failover.as_ref().expect("claimed");
        candidate::choose(&state, failover, &reports, was_at, &super::Policy::default()).map(|it| it.loss_bytes)
    };
    assert_eq!(choose(100, Some(Lsn(1_000))), Ok(Some(100)));
    let refused = choose(99, Some(Lsn(1_000))).expect_err("more than was accepted");
    assert_eq!(refused[&NodeId(2)], candidate::Unfit::Loss { bytes: 100, most: 99 });
    assert_eq!(choose(u64::MAX, None), Ok(Some(u64::MAX)));
    assert!(choose(1 << 40, None).is_err(), "what nobody knows is more than any number");
}

#[test]
fn a_person_may_take_over_from_an_attempt_that_finds_nobody() {
    let state = claimed();
    let kind = FailoverKind::Forced { to: None, loss_bytes_max: 1 };
    let again = procedure::claim(&state, Epoch(2), kind, "ann asked for it", "ann", NOW).expect("claimed");
    assert_eq!(again.failover.as_ref().map(|it| (it.epoch, it.phase)), Some((Epoch(3), FailoverPhase::Recruit)));
    assert_eq!(again.failovers.last().map(|it| it.phase), Some(FailoverPhase::Superseded));
}

#[test]
fn whoever_led_may_go_on_whatever_its_priority_and_others_may_not() {
    let mut state = claimed();
    for member in state.members.values_mut() {
        member.priority = 0;
    }
    let fit = |node| {
        candidate::fitness(&state, &FailoverKind::Automatic, &state.members[&NodeId(node)], &super::Policy::default())
    };
    assert_eq!(fit(1).map(candidate::Fit::node), Ok(NodeId(1)), "the primary of the rule");
    assert_eq!(fit(2), Err(candidate::Unfit::PriorityZero));
}

/// Node 4 is no voter, so nobody knows what it misses; the voter that wins misses nothing.
#[test]
fn the_loss_of_a_choice_is_the_winners() {
    let mut state = forced(u64::MAX);
    let mut stranger = state.members[&NodeId(3)].clone();
    (stranger.id, stranger.priority) = (NodeId(4), 1);
    state.members.insert(NodeId(4), stranger);
    let failover = state.failover.as_ref().expect("claimed");
    let reports = [2, 3, 4].map(|node| (NodeId(node), report(2, Some(held(1, 9))))).into();
    let choice = candidate::choose(&state, failover, &reports, None, &super::Policy::default()).expect("a winner");
    assert_eq!((choice.winner, choice.loss_bytes), (NodeId(2), None));
}

#[test]
fn a_forced_attempt_that_finds_nobody_goes_on_as_an_automatic_one_where_it_cannot_be_undone() {
    let state = chosen();
    let kind = FailoverKind::Forced { to: Some(NodeId(3)), loss_bytes_max: 0 };
    let state = procedure::claim(&state, Epoch(2), kind, "ann asked for it", "ann", NOW).expect("claimed");
    let own = Own {
        promised: Epoch(3),
        server: Server::Stopped { in_order: true, as_primary: false },
        holds: None,
        recruited: None,
        promotion_ordered: false,
        lease: false,
        hand_over: false,
    };
    let next = |age: Millis| {
        let (others, policy) = (Others::default(), super::Policy::default());
        let view = View { me: NodeId(3), state: &state, own: &own, others: &others, phase_age: age, policy: &policy };
        order::next(&view)
    };
    assert_eq!(next(Millis(100)), None);
    assert_eq!(next(super::FORCED_PHASE_MAX), Some(Action::Unplan(Epoch(3))));
    let going_on = procedure::unplan(&state, Epoch(3), NOW).and_then(|it| it.failover).expect("automatic now");
    assert_eq!((going_on.kind, going_on.phase), (FailoverKind::Automatic, FailoverPhase::Recruit));
}

#[test]
fn a_crashed_primary_is_left_down_only_for_who_can_take_over() {
    let mut state = three();
    let policy = super::Policy::default();
    let replaceable = |state: &ClusterState, alive: &[u64]| {
        let alive = alive.iter().map(|node| NodeId(*node)).collect();
        order::replaceable(state, &alive, &policy)
    };
    assert!(replaceable(&state, &[1, 2, 3]));
    assert!(!replaceable(&state, &[1, 2]), "both voters are needed");
    for member in state.members.values_mut() {
        member.priority = 0;
    }
    assert!(!replaceable(&state, &[1, 2, 3]), "nobody may take over");
    let mut alone = three();
    alone.members.retain(|node, _| *node == NodeId(1));
    (alone.rule.acks, alone.rule.recruit_quorum) = (0, 0);
    alone.rule.voters.clear();
    assert!(!replaceable(&alone, &[1]), "there is nobody else");
}

/// With two acknowledgements each of the two voters holds all that was acknowledged. One of them may hold, and have shown, more.
#[test]
fn what_one_of_several_voters_may_have_shown_is_waited_for_where_it_answers() {
    let mut state = claimed();
    (state.rule.acks, state.rule.recruit_quorum) = (2, 1);
    let next = |state: &ClusterState, me: u64, reports: &[(u64, u64)], alive: &[u64], age: Millis| {
        // One without a position has promised only.
        let report_of = |node: u64| reports.iter().find(|(of, position)| *of == node && *position > 0);
        let recruited = |node: u64| report_of(node).map(|(_, position)| held(1, *position));
        let own = Own {
            promised: Epoch(2),
            server: Server::Replica { follows: None, receiver: false, sync: ServerSync::default() },
            holds: recruited(me),
            recruited: recruited(me),
            promotion_ordered: false,
            lease: false,
            hand_over: false,
        };
        let others = Others {
            reports: reports
                .iter()
                .map(|(node, _)| (NodeId(*node), Report { lapsed: true, ..report(2, recruited(*node)) }))
                .collect(),
            alive: alive.iter().map(|node| NodeId(*node)).collect(),
            ..Others::default()
        };
        let policy = super::Policy::default();
        let view = View { me: NodeId(me), state, own: &own, others: &others, phase_age: age, policy: &policy };
        match order::next(&view) {
            Some(Action::Choose(_, choice)) => Some(choice.winner.0),
            _ => None,
        }
    };
    assert_eq!(next(&state, 2, &[(2, 100)], &[2, 3], Millis(20)), None, "node 3 is about to report");
    assert_eq!(next(&state, 3, &[(2, 100), (3, 120)], &[2, 3], Millis(20)), Some(3));
    assert_eq!(next(&state, 2, &[(2, 100)], &[2], Millis(20)), Some(2), "node 3 does not answer");
    assert_eq!(next(&state, 2, &[(2, 100)], &[2, 3], super::SHOWN_REPORTS_WAIT), Some(2), "nor does its server");
    // Whoever accepts a loss wants no greater one than there has to be.
    let kind = FailoverKind::Forced { to: None, loss_bytes_max: u64::MAX };
    state.failover.as_mut().expect("claimed").kind = kind;
    (state.rule.acks, state.rule.recruit_quorum) = (1, 2);
    let next = |reports, alive, age| next(&state, 2, reports, alive, age);
    let reports = [(2, 100), (3, 0)];
    assert_eq!(next(&reports, &[2, 3], Millis(500)), None, "node 3 is about to report");
    assert_eq!(next(&reports, &[2], Millis(500)), Some(2), "node 3 does not answer any more");
    assert_eq!(next(&reports, &[2, 3], super::FORCED_REPORTS_WAIT), Some(2), "its server does not");
}

/// Node 2 won epoch 2 and was left aside for node 3 of epoch 3; then a person has node 2 made the primary after all.
#[test]
fn the_descent_of_a_winner_that_was_left_aside_knows_where_it_began() {
    let state = chosen();
    let mut again =
        procedure::claim(&state, Epoch(2), FailoverKind::Automatic, "it died", "stemma", NOW).expect("claimed");
    let first = LineageEntry { epoch: Epoch(1), timeline: Timeline(1), began_at: None, from: None, xids: None };
    again.lineage.insert(0, first);
    let choose = |state: &ClusterState, epoch: u64, node: u64, held: Recruited| {
        let failover = state.failover.as_ref().expect("claimed");
        let reports = BTreeMap::from([(NodeId(node), report(epoch, Some(held)))]);
        let choice =
            candidate::choose(state, failover, &reports, Some(Lsn(0)), &super::Policy::default()).expect("a winner");
        let chosen = procedure::choose(state, Epoch(epoch), &choice, NOW).expect("chosen");
        let rule = chosen.failover.as_ref().and_then(|it| it.next.clone()).expect("chosen");
        procedure::settle(&chosen, Epoch(epoch), &rule, Timeline(epoch as u32 + 10), NOW).expect("settled")
    };
    let state = choose(&again, 3, 3, Recruited { lineage: Epoch(1), timeline: Timeline(1), position: Lsn(8) });
    let kind = FailoverKind::Forced { to: Some(NodeId(2)), loss_bytes_max: u64::MAX };
    let forced = procedure::claim(&state, Epoch(3), kind, "ann asked for it", "ann", NOW).expect("claimed");
    let state = choose(&forced, 4, 2, Recruited { lineage: Epoch(2), timeline: Timeline(2), position: Lsn(70) });
    let descent = descent(&state);
    let told: Vec<_> = descent.iter().map(|it| (it.epoch.0, it.timeline.0, it.ended_at.map(|at| at.0))).collect();
    assert_eq!(told, [(1, 1, Some(9)), (2, 2, Some(70)), (4, 14, None)]);
    assert_eq!(decide(&held(1, 60), true, &descent), Rejoin::Rewind { fork: Lsn(9) });
}
