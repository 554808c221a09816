//! Ways to get failover wrong. Each lies to the pure decisions, or neglects one duty that they put on the keeper; the
//! checkers must catch every one, or they prove nothing.

/// What is done wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutant {
    /// Nothing.
    #[default]
    None,
    /// One voter fewer than the rule says is recruited.
    RecruitTooFew,
    /// The winner is promoted before it has the list of the next rule.
    PromoteBeforeList,
    /// Replicas that catch up count as voters.
    CountCatchingUp,
    /// The promise is not fsynced.
    PromiseNotSynced,
    /// The lease is counted from the reply instead of the request.
    LeaseFromReply,
    /// Nodes that are no voters may win.
    NonVoterWins,
    /// The receiver is not seen gone before the report.
    CutNotSeen,
    /// Only the rule in force is asked, not those of attempts that were given up.
    ForgetUnsettled,
    /// The longest log wins, whatever its epoch.
    PositionOnly,
    /// A restarted replica reports before it has replayed its log.
    ReportBeforeReplay,
    /// The old primary may change the rule while it is being replaced.
    RuleNotFrozen,
    /// The next rule comes into force before anybody holds the first record.
    SettleTooEarly,
    /// A grantor that restarts does not keep silent for a term.
    ForgetfulGrantor,
    /// A winner is chosen without a majority's leases having lapsed.
    LeaseNotAwaited,
    /// A lease is granted to an epoch older than the promise.
    GrantAfterPromise,
    /// Nobody minds the server when its lease ends and its keeper sleeps.
    NoWatcher,
    /// A primary does not stop when it hears of a newer epoch.
    PrimaryGoesOn,
    /// An old primary promises, and counts as recruited, before it stops.
    PromiseBeforeStop,
    /// The winner's first record counts before it is flushed.
    RowNotFlushed,
    /// Consensus is written whatever somebody else wrote meanwhile.
    StaleWrite,
    /// A recruit of the lineage of a rule vouches for that rule too, not for older ones alone.
    DescentTooNear,
    /// A holder that starts believes that nobody has joined since.
    ForgetfulHolder,
    /// A list that the keeper before wrote and the server never took up stays in the file.
    ListNotSettled,
    /// A keeper says that it gave its lease up while its server still serves.
    GiveUpWhileServing,
    /// A word that gives up a lease and comes late takes back what was granted afterwards.
    LateWordsTakeBack,
    /// A request for a lease that comes late is remembered in place of a newer one.
    LateRequestsReplace,
    /// Every server is let in to stream, whatever it followed before.
    FeedAnybody,
}

impl Mutant {
    /// All of them.
    pub const ALL: [Mutant; 27] = [
        Mutant::RecruitTooFew,
        Mutant::PromoteBeforeList,
        Mutant::CountCatchingUp,
        Mutant::PromiseNotSynced,
        Mutant::LeaseFromReply,
        Mutant::NonVoterWins,
        Mutant::CutNotSeen,
        Mutant::ForgetUnsettled,
        Mutant::PositionOnly,
        Mutant::ReportBeforeReplay,
        Mutant::RuleNotFrozen,
        Mutant::SettleTooEarly,
        Mutant::ForgetfulGrantor,
        Mutant::LeaseNotAwaited,
        Mutant::GrantAfterPromise,
        Mutant::NoWatcher,
        Mutant::PrimaryGoesOn,
        Mutant::PromiseBeforeStop,
        Mutant::RowNotFlushed,
        Mutant::StaleWrite,
        Mutant::DescentTooNear,
        Mutant::ForgetfulHolder,
        Mutant::ListNotSettled,
        Mutant::GiveUpWhileServing,
        Mutant::LateWordsTakeBack,
        Mutant::LateRequestsReplace,
        Mutant::FeedAnybody,
    ];

    /// The kinds of faults (see `faults`) among which the mistake shows soon, where it is rare among all: a primary that
    /// is cut off while its keeper sleeps, or while those who granted its lease start anew.
    pub fn kinds(self) -> &'static [usize] {
        match self {
            Mutant::LeaseFromReply => &[6, 10],
            Mutant::ForgetfulGrantor => &[2, 10],
            Mutant::None
            | Mutant::RecruitTooFew
            | Mutant::PromoteBeforeList
            | Mutant::CountCatchingUp
            | Mutant::PromiseNotSynced
            | Mutant::NonVoterWins
            | Mutant::CutNotSeen
            | Mutant::ForgetUnsettled
            | Mutant::PositionOnly
            | Mutant::ReportBeforeReplay
            | Mutant::RuleNotFrozen
            | Mutant::SettleTooEarly
            | Mutant::LeaseNotAwaited
            | Mutant::GrantAfterPromise
            | Mutant::NoWatcher
            | Mutant::PrimaryGoesOn
            | Mutant::PromiseBeforeStop
            | Mutant::RowNotFlushed
            | Mutant::StaleWrite
            | Mutant::DescentTooNear
            | Mutant::ForgetfulHolder
            | Mutant::ListNotSettled
            | Mutant::GiveUpWhileServing
            | Mutant::LateWordsTakeBack
            | Mutant::LateRequestsReplace
            | Mutant::FeedAnybody => &[],
        }
    }
}
