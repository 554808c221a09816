//! Another primary: when, who, and in which order, so that nothing acknowledged is lost at any crash point. Pure.
//!
//! Every keeper calls `order::next` with what consensus says and what it sees, does what is asked of its own node, and
//! looks again. Nobody coordinates: each shared step is one compare-and-set of the state (`procedure`), which any
//! keeper may write, so a keeper that dies in any phase is not missed.
//!
//! # Words
//! An *attempt* has one epoch, given out by the compare-and-set that claims it. A node is *recruited* for epoch `e` when
//! it has (1) fsynced the promise to obey nothing older than `e`, (2) cut its stream and seen its receiver gone, or, if
//! it was a primary, seen all processes of its server gone, and (3) reported what it holds: the lineage epoch (in which
//! epoch its timeline was begun, see `ledger`), and the end of its log. The greatest pair of these is the *best*. A rule
//! is *settled* when it is the rule of the state; the rule of a winner whose attempt was given up is *unsettled*.
//!
//! # Where the rule changes
//! The state's rule stays the old one until the winner, promoted under the list of the next rule, has written its first
//! record (the lineage row) and that record is flushed by `next.acks` of `next.voters`. Only then one compare-and-set
//! makes `next` the rule and ends the attempt. From the moment the winner may be promoted (phase `Promote`) until then,
//! both rules bind: a further attempt needs a quorum of the old rule *and* one of every unsettled rule.
//!
//! # Why nothing acknowledged is lost
//! Let a rule `R = (V, k, q)` of epoch `e` be *closed* for an attempt if `q` of `V` are recruited (`q = |V| - k + 1`), or
//! its primary is, or a recruit is of a lineage later than `e`. Claim: when all binding rules are closed, the best recruit holds every commit that was or will ever
//! be acknowledged under an older epoch. By induction over epochs:
//! 1. *The future of R.* Fewer than `k` of `V` are left that could confirm for its primary, or the primary itself has
//!    stopped. Promises outlive crashes, and a node follows a primary of epoch `x` only after it promised `x`; so this
//!    stays so. Hence a rule that was closed for the winner of `E' > e` is closed for every later attempt, and a recruit
//!    of lineage `E'` vouches for its past: it descends from that winner. (The nodes of `R` themselves may no longer be
//!    able to: for the sake of a winner that is not settled they may have begun to copy its data in place of theirs.)
//! 2. *The past of R.* Each commit acknowledged under `R` is held by `k` of `V` (`sync` keeps this true through every
//!    change within an epoch) and by its primary, thus by a recruit, on a timeline begun in an epoch `<= e`, or on one
//!    that was begun later by a winner chosen after `R` was closed, which holds it by induction.
//! 3. *Which recruit is best.* Let `E` be the greatest epoch in which anything was acknowledged. The recruits contain one
//!    whose lineage is at least `E` and which holds it. Any recruit of a greater lineage `E'` descends from the winner of
//!    `E'`, which was chosen after `E` was closed and holds it as well. Within one lineage, logs are prefixes of each
//!    other, so the greater position holds more.
//! 4. *Settled rules drop out.* When `next` becomes the rule, `next.acks` of `next.voters` hold the winner's first
//!    record and with it everything older. Each later quorum of `next` meets them, so older rules need not be asked.
//!    With `next.acks = 0` nothing is promised any more; that is written in the history as lowered durability.
//!
//! Timeline *numbers* take no part: two promotions that know nothing of each other take the same number. Nor does the
//! epoch row in the database alone: a direct client may get a commit acknowledged before the row.
//!
//! # Every crash point
//! | dies | what stands | who goes on |
//! |---|---|---|
//! | before the claim is written | nothing happened | anybody claims |
//! | in `Recruit` | the rule binds; commits wait | more voters are recruited, any keeper chooses; or the old primary's keeper confirms it (`undo`: same rule, new epoch) |
//! | after `Promote` is written, the winner unpromoted or promoted | both rules bind | the winner goes on, or the next attempt closes both rules |
//! | after the record is confirmed, before the rule is written | both bind, and the best recruit descends from the winner | as above |
//! | after the rule is written | the new rule binds alone | an ordinary failover |
//!
//! `undo` is possible only while no winner of the attempt or of an unsettled one may be promoted, because the old
//! primary holds all that was acknowledged just as long. An attempt's rule is frozen: the primary's keeper cannot change
//! it while an attempt is recorded (`admission::write_rule`), so a primary that was only slow cannot lower its `acks`
//! behind the back of those who recruit; its commits wait until it is confirmed or fenced. A primary whose keeper learns
//! of `Promote` is killed, backends included; whether and when it learns does not matter for the above.
//!
//! # Without acknowledgements
//! With `acks = 0` no recruit closes the rule but the primary itself. Instead it is closed when a majority of all keepers
//! promised the epoch and their grants to older epochs have lapsed (`lease`). The loss is bounded by what the primary was
//! last known to be ahead (`candidate::Choice::loss_bytes`), and refused beyond the policy.

pub mod budget;
pub mod candidate;
pub mod detect;
pub mod lease;
pub mod ledger;
pub mod order;
pub mod plan;
pub mod procedure;
pub mod recruit;
pub mod rejoin;
pub mod switchover;
pub mod watch;

use model::{ClusterState, Millis, Site, WallTime};

/// What failover may do, and how patiently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Automatic failover at all.
    pub automatic: bool,
    /// Whether a node of another site than the primary's may win by itself.
    pub cross_site: bool,
    /// Sites that may win in any case.
    pub sites: Vec<Site>,
    /// Without acknowledgements: the most that may be lost, in bytes of log.
    pub loss_bytes_max: u64,
    /// How long a crashed primary's replacement may take, as expected.
    pub failover_expected: Millis,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            automatic: true,
            cross_site: true,
            sites: Vec::new(),
            loss_bytes_max: 16 << 20,
            failover_expected: Millis(400),
        }
    }
}

impl Policy {
    /// What the settings allow, and the pause that a person may have asked for. Civil time is good enough for a wish.
    pub fn of(state: &ClusterState, wall: WallTime) -> Policy {
        let settings = &state.settings.failover;
        Policy {
            automatic: settings.automatic && state.paused_now(wall).is_none(),
            cross_site: settings.cross_site,
            sites: settings.sites.clone(),
            loss_bytes_max: settings.loss_max.0,
            ..Policy::default()
        }
    }
}

/// How long the old primary's keeper waits for a choice before it has its own, healthy primary confirmed.
pub const UNDO_AFTER: Millis = Millis(1_500);
/// How long a switchover may be in one phase before it is undone.
pub const SWITCHOVER_PHASE_MAX: Millis = Millis(10_000);
/// Before it stops in order, a primary waits at most this long for routers to hold and open transactions to end.
pub const ROUTERS_WAIT: Millis = Millis(3_000);
/// How long a switchover waits for the reports of replicas that answer, so that they acknowledge for the winner at once.
pub const SWITCHOVER_REPORTS_WAIT: Millis = Millis(200);
/// Where commits wait for several voters, fewer than all close the rule, and one of the others may have shown to readers what
/// they do not hold: how long to wait for the reports of those that answer, so that it is not lost.
pub const SHOWN_REPORTS_WAIT: Millis = Millis(200);
/// Without acknowledgements: how long to wait for the reports of the remaining voters.
pub const ASYNC_REPORTS_WAIT: Millis = Millis(500);
/// Where only a recruit's descent closes an older rule: how long to wait for the reports of the voters.
pub const DESCENT_REPORTS_WAIT: Millis = Millis(1_500);
/// A forced attempt needs no quorum, so nobody vouches that the first to report holds most: how long to wait for the reports of the
/// voters that answer.
pub const FORCED_REPORTS_WAIT: Millis = Millis(2_000);
/// How long a forced attempt may look for a winner before it is given up, whoever notices.
pub const FORCED_PHASE_MAX: Millis = Millis(10_000);
/// How long a winner may take before somebody else tries, though its keeper answers.
pub const WINNER_STALLED_AFTER: Millis = Millis(8_000);
/// How long a node other than the one chosen waits before it writes the choice in its place.
pub const CHOOSE_BY_OTHERS_AFTER: Millis = Millis(100);
/// How long a keeper leaves its crashed primary down in the hope of being replaced.
pub const HAND_OVER_WAIT: Millis = Millis(2_000);
/// Unsettled primacies that an attempt may carry along. Beyond it waits for its winner: a promotion that failed so
/// often needs a person.
pub const UNSETTLED_MAX: usize = 16;

const _: () = assert!(CHOOSE_BY_OTHERS_AFTER.0 < UNDO_AFTER.0);
const _: () = assert!(ROUTERS_WAIT.0 < SWITCHOVER_PHASE_MAX.0);
const _: () = assert!(UNDO_AFTER.0 < WINNER_STALLED_AFTER.0);

#[cfg(test)]
mod tests;
