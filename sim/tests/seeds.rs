//! Seeds at random, seeds that once failed, and mutants that must fail.

use model::CommitMode;
use sim::{Mutant, run, run_in};

/// Seeds in `cargo test`; `stemma-sim --seeds` runs as many as one likes.
const SEEDS: u64 = 250;

fn check(seed: u64) {
    let outcome = run(seed, Mutant::None, false);
    assert_eq!(outcome.broken, None, "cargo run -p stemma-sim --release -- --seed {seed} --trace");
}

#[test]
fn no_seed_breaks_a_property() {
    (0..SEEDS).for_each(check);
}

/// In which more is drawn, and members come and go.
#[test]
fn no_seed_of_the_wider_world_breaks_a_property() {
    (sim::run::WIDE_FROM..sim::run::WIDE_FROM + SEEDS / 2).for_each(check);
    (sim::run::MEMBERS_FROM..sim::run::MEMBERS_FROM + SEEDS).for_each(check);
}

#[test]
fn members_come_and_go() {
    let outcomes = (0..120).map(|seed| run(sim::run::MEMBERS_FROM + seed, Mutant::None, true));
    let story: Vec<String> = outcomes.flat_map(|outcome| outcome.trace).collect();
    let told = |what: &str| story.iter().filter(|line| line.ends_with(what)).count();
    assert!(told("the node has joined") > 2);
    assert!(told("a node has left") > 2);
    assert!(told("a failover is forced") > 0);
}

#[test]
fn runs_have_what_they_are_meant_to_test() {
    let outcomes: Vec<_> = (0..40).map(|seed| run(seed, Mutant::None, false)).collect();
    let sum = |what: fn(&sim::Outcome) -> u64| outcomes.iter().map(what).sum::<u64>();
    assert!(sum(|it| it.acknowledged) > 10_000);
    assert!(sum(|it| it.failovers) > 20);
    assert!(sum(|it| it.switchovers) > 2);
    assert!(sum(|it| it.undone + it.superseded) > 0);
}

#[test]
fn the_same_seed_is_the_same_run() {
    let (first, second) = (run(7, Mutant::None, true), run(7, Mutant::None, true));
    assert_eq!(first.trace, second.trace);
    assert!(first.trace.len() > 10);
}

/// The old primary of a mode without acknowledgements could neither be replaced nor come back after all had lost power.
#[test]
fn seed_1140_an_old_primary_without_a_lease_is_confirmed_first() {
    check(1140);
}

/// A winner alone counted its row before it was flushed; a crash took it back.
#[test]
fn seed_2225_a_row_counts_once_it_is_flushed() {
    check(2225);
}

/// A keeper that came back planned the list of its server on a rule that was not the last one.
#[test]
fn seed_1437_a_keeper_that_starts_does_not_know_the_rule() {
    let outcome = run_in(1437, Mutant::None, Some(CommitMode::SemiSync), false);
    assert_eq!(outcome.broken, None);
}

/// A promotion that was ordered took effect after the lease, or after the node had been recruited for another epoch.
#[test]
fn seeds_107727_and_101202_an_ordered_promotion_may_come_late() {
    check(107_727);
    check(101_202);
}

/// A rewind to a fork that was none went on for ever.
#[test]
fn seed_111919_what_descends_from_nobody_is_rebuilt() {
    check(111_919);
}

/// A server that took long to start served for a moment after its lease.
#[test]
fn seed_87_the_watcher_minds_a_server_that_only_starts() {
    let outcome = run_in(87, Mutant::None, Some(CommitMode::Async), false);
    assert_eq!(outcome.broken, None);
}

/// Each mutant, the mode in which it shows, and a seed from which on it soon does.
const CAUGHT: [(Mutant, Option<CommitMode>, u64); 27] = [
    (Mutant::RecruitTooFew, None, 11),
    (Mutant::PromoteBeforeList, None, 129),
    (Mutant::CountCatchingUp, None, 339),
    (Mutant::PromiseNotSynced, None, 20),
    (Mutant::NonVoterWins, None, 30),
    (Mutant::CutNotSeen, None, 11),
    (Mutant::ForgetUnsettled, None, 160),
    (Mutant::PositionOnly, Some(CommitMode::SemiSync), 157),
    (Mutant::ReportBeforeReplay, None, 2),
    (Mutant::RuleNotFrozen, None, 173),
    (Mutant::SettleTooEarly, None, 2726),
    (Mutant::LeaseNotAwaited, Some(CommitMode::Async), 0),
    (Mutant::LeaseFromReply, Some(CommitMode::Async), 508),
    (Mutant::ForgetfulGrantor, Some(CommitMode::Async), 402),
    (Mutant::GrantAfterPromise, Some(CommitMode::Async), 138),
    (Mutant::NoWatcher, Some(CommitMode::Async), 87),
    (Mutant::PrimaryGoesOn, None, 5),
    (Mutant::PromiseBeforeStop, None, 705),
    (Mutant::RowNotFlushed, Some(CommitMode::Async), 60),
    (Mutant::StaleWrite, None, 4),
    (Mutant::DescentTooNear, None, 75),
    (Mutant::ForgetfulHolder, None, 1_795_840_450_978),
    (Mutant::ListNotSettled, None, 2_853_682_793),
    (Mutant::GiveUpWhileServing, Some(CommitMode::Async), 0),
    (Mutant::LateWordsTakeBack, Some(CommitMode::Async), 277),
    (Mutant::LateRequestsReplace, None, 2_926_728_684),
    (Mutant::FeedAnybody, None, 2_922_383_088),
];

#[test]
fn every_mutant_is_caught_and_its_seeds_are_sound_without_it() {
    assert_eq!(CAUGHT.len(), Mutant::ALL.len());
    for (mutant, mode, from) in CAUGHT {
        let caught = (from..from + 80).find(|seed| run_in(*seed, mutant, mode, false).broken.is_some());
        let seed = caught.unwrap_or_else(|| panic!("{mutant:?} was not caught from seed {from} on"));
        assert_eq!(run_in(seed, Mutant::None, mode, false).broken, None, "{mutant:?}, seed {seed}");
    }
}

/// The rule promised nothing any more, the server still waited for a replica whose keeper slept: neither the lease nor
/// that replica kept an old primary from acknowledging after it was replaced.
#[test]
fn seed_9008777_a_rule_that_promises_nothing_needs_the_lease_whatever_the_server_waits_for() {
    check(9_008_777);
}

/// A winner alone lost its lease right after each promotion, before its keeper had seen it. The next order forgot in which
/// epoch the timeline was begun, so nobody knew what its data was worth, and it was never started again.
#[test]
fn seed_9103862_a_promotion_that_nobody_saw_is_not_forgotten() {
    check(9_103_862);
}

/// The nodes of the rule in force had begun to copy the data of a winner that was never settled, and were cut off: no quorum
/// of that rule could be recruited ever again, though the winner itself held everything. The second one without
/// acknowledgements, where also nobody knew any more how much had been lost before the winner was chosen.
#[test]
fn seeds_20019465_and_20018624_a_descendant_of_a_later_winner_closes_an_older_rule() {
    check(20_019_465);
    check(20_018_624);
}

/// The one that held most was the primary itself, or a winner that had been asked for, and its priority was 0: it was held to
/// be unfit to take over, and nobody else could.
#[test]
fn seed_1000000006_whoever_leads_already_may_go_on_whatever_its_priority() {
    check(1_000_000_006);
}

/// A forced attempt took over from one whose winner may have been promoted, and found nobody within the loss accepted: it
/// could neither be undone nor go on.
#[test]
fn seed_1000004896_a_forced_attempt_that_finds_nobody_goes_on_as_an_automatic_one() {
    check(1_000_004_896);
}

/// The loss recorded with a choice was that of another candidate.
#[test]
fn seed_1000001586_the_loss_of_a_choice_is_the_winners() {
    check(1_000_001_586);
}

/// A node was ordered out while another primary was being made: it stopped, and the rules that bound the attempt went on
/// counting on it. Such an order is refused now.
#[test]
fn seeds_3000003530_and_3000000531_nobody_is_removed_while_another_primary_is_made() {
    check(3_000_003_530);
    check(3_000_000_531);
}

/// The primary of two nodes needs no lease, and told a third that it may count. It started anew before it had heard that
/// the third did, and served for a moment beside the primary that the other two had made.
#[test]
fn seed_1795840450978_a_holder_that_starts_may_have_told_who_joins_that_it_counts() {
    check(1_795_840_450_978);
}

/// The simulated keeper took an order to promote, given to a process that had died meanwhile, for one to the next process.
#[test]
fn seed_1795840482520_an_order_to_promote_dies_with_the_process() {
    check(1_795_840_482_520);
}

/// A winner that had been left aside was made the primary by force, and its descent lacked the primacy that was left aside:
/// the others rewound to a position that was no fork.
#[test]
fn seed_1795840689763_a_winner_that_was_left_aside_keeps_its_descent() {
    check(1_795_840_689_763);
}

/// A replica that connected again counted for log that it had and had not flushed; real ones acknowledge what is flushed.
#[test]
fn seeds_2927504219_and_2927359868_what_a_replica_has_counts_once_it_is_flushed() {
    check(2_927_504_219);
    check(2_927_359_868);
}
