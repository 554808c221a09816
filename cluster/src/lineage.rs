//! May this data directory follow that primary? Asked before a server starts as a replica: following a primary whose
//! history differs would end in silent corruption or in an endless loop of failing starts.

use model::error::Trouble;
use model::units::{Lsn, SystemId, Timeline};
use std::fmt;

/// Where a timeline of the primary's past ended: one line of its history file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// The position at which the next one begins.
    pub switched_at: Lsn,
}

/// What the server of this data directory last was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Former {
    /// A replica: what it holds came from a primary.
    Replica,
    /// A primary that stopped in order, so that `position` is the end of its log.
    PrimaryStopped,
    /// A primary that crashed: where its log ends shows only after crash recovery.
    PrimaryCrashed,
}

/// What a data directory holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// Its system identifier.
    pub system_id: SystemId,
    /// The timeline of its newest log.
    pub timeline: Timeline,
    /// Replica: the end of what it has received, at least its minimum recovery end. Stopped primary: the end of its
    /// shutdown checkpoint.
    pub position: Lsn,
    /// What it was.
    pub former: Former,
}

/// The primary that is to be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upstream<'a> {
    /// Its system identifier.
    pub system_id: SystemId,
    /// The timeline it writes.
    pub timeline: Timeline,
    /// Its position.
    pub position: Lsn,
    /// Its past, one entry for each timeline before this one.
    pub history: &'a [Switch],
}

/// It may follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follows {
    /// Same timeline, same position.
    Equal,
    /// Same timeline, behind by this much.
    Behind {
        /// Bytes.
        bytes: u64,
    },
    /// On an older timeline of the primary's past, and not beyond where that one ended.
    FromOlderTimeline {
        /// Where the older timeline ended.
        switched_at: Lsn,
    },
}

/// It may not follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// A database of another origin.
    Foreign {
        /// What the data directory has.
        local: SystemId,
        /// What the primary has.
        primary: SystemId,
    },
    /// It holds log that the primary does not have.
    Diverged {
        /// The timeline of its newest log.
        timeline: Timeline,
        /// The end of its log.
        position: Lsn,
        /// The last position that both have, where known.
        fork: Option<Lsn>,
        /// Which rule it breaks.
        because: Divergence,
    },
    /// Crash recovery must run first; then ask again.
    NeedsCrashRecovery,
}

/// How histories differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divergence {
    /// It is ahead of the primary on the primary's own timeline.
    AheadOfPrimary,
    /// It went on after the primary's history left its timeline.
    BeyondSwitch,
    /// Its timeline is not in the primary's history.
    UnknownTimeline,
    /// It wrote the primary's timeline itself: two writers on one timeline cannot be told apart by positions.
    WroteSameTimeline,
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::Foreign { local, primary } => {
                write!(f, "the data directory has system identifier {local}, the primary has {primary}")
            }
            Unfit::Diverged { timeline, position, fork, because } => {
                let why = match because {
                    Divergence::AheadOfPrimary => "the primary has not got that far",
                    Divergence::BeyondSwitch => "the primary's history left that timeline earlier",
                    Divergence::UnknownTimeline => "the primary's history does not contain that timeline",
                    Divergence::WroteSameTimeline => "this server wrote that timeline itself as a primary",
                };
                write!(f, "the data directory ends at {position} on timeline {timeline}: {why}")?;
                fork.map_or(Ok(()), |fork| write!(f, ", at {fork}"))
            }
            Unfit::NeedsCrashRecovery => {
                f.write_str("the server crashed as a primary: where its log ends is not known")
            }
        }
    }
}

impl Unfit {
    /// As people see it; `node` is the name of the node.
    pub fn trouble(&self, node: &str) -> Trouble {
        let rebuild =
            format!("stemma node reinit {node} rebuilds it from the primary; what only it holds is lost then");
        match self {
            Unfit::Foreign { .. } => Trouble::foreign_system(
                self.to_string(),
                format!("give {node} the right or an empty data directory; nothing was changed in this one"),
            ),
            Unfit::Diverged { .. } => Trouble::diverged(self.to_string(), rebuild),
            Unfit::NeedsCrashRecovery => {
                Trouble::diverged(self.to_string(), format!("crash recovery first, then stemma node rejoin {node}"))
            }
        }
    }
}

/// Whether a server on `local` may follow `upstream`. Exact only with an upstream position taken after `local` was
/// read: a replica that just received more than an older look shows would seem ahead.
pub fn verdict(local: &Local, upstream: &Upstream<'_>) -> Result<Follows, Unfit> {
    if local.system_id != upstream.system_id {
        return Err(Unfit::Foreign { local: local.system_id, primary: upstream.system_id });
    }
    let diverged =
        |fork, because| Err(Unfit::Diverged { timeline: local.timeline, position: local.position, fork, because });
    match local.former {
        Former::Replica | Former::PrimaryStopped => {}
        Former::PrimaryCrashed => return Err(Unfit::NeedsCrashRecovery),
    }
    if local.timeline == upstream.timeline {
        if local.former == Former::PrimaryStopped {
            return diverged(None, Divergence::WroteSameTimeline);
        }
        if local.position > upstream.position {
            return diverged(Some(upstream.position), Divergence::AheadOfPrimary);
        }
        let bytes = upstream.position.lag_of(local.position).0;
        return Ok(if bytes == 0 { Follows::Equal } else { Follows::Behind { bytes } });
    }
    let past = upstream.history.iter().find(|switch| switch.timeline == local.timeline);
    match past {
        Some(switch) if local.timeline < upstream.timeline && local.position <= switch.switched_at => {
            Ok(Follows::FromOlderTimeline { switched_at: switch.switched_at })
        }
        Some(switch) if local.timeline < upstream.timeline => {
            diverged(Some(switch.switched_at), Divergence::BeyondSwitch)
        }
        Some(_) | None => diverged(None, Divergence::UnknownTimeline),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HISTORY: &[Switch] = &[
        Switch { timeline: Timeline(1), switched_at: Lsn(100) },
        Switch { timeline: Timeline(3), switched_at: Lsn(500) },
    ];
    const PRIMARY: Upstream<'static> =
        Upstream { system_id: SystemId(7), timeline: Timeline(4), position: Lsn(900), history: HISTORY };

    fn data(timeline: u32, position: u64, former: Former) -> Local {
        Local { system_id: SystemId(7), timeline: Timeline(timeline), position: Lsn(position), former }
    }
    fn replica(timeline: u32, position: u64) -> Result<Follows, Unfit> {
        verdict(&data(timeline, position, Former::Replica), &PRIMARY)
    }
    fn why(result: Result<Follows, Unfit>) -> (Option<u64>, Divergence) {
        match result {
            Err(Unfit::Diverged { fork, because, .. }) => (fork.map(|fork| fork.0), because),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_replica_on_the_primarys_timeline_follows_unless_it_is_ahead() {
        assert_eq!(replica(4, 900), Ok(Follows::Equal));
        assert_eq!(replica(4, 650), Ok(Follows::Behind { bytes: 250 }));
        assert_eq!(why(replica(4, 901)), (Some(900), Divergence::AheadOfPrimary));
    }

    #[test]
    fn a_replica_of_an_older_timeline_follows_up_to_the_switch_and_not_a_byte_more() {
        assert_eq!(replica(3, 500), Ok(Follows::FromOlderTimeline { switched_at: Lsn(500) }));
        assert_eq!(replica(1, 99), Ok(Follows::FromOlderTimeline { switched_at: Lsn(100) }));
        assert_eq!(why(replica(3, 501)), (Some(500), Divergence::BeyondSwitch));
    }

    #[test]
    fn a_timeline_that_the_primary_never_had_is_a_divergence() {
        assert_eq!(why(replica(2, 10)), (None, Divergence::UnknownTimeline), "a promotion that lost");
        assert_eq!(why(replica(5, 10)), (None, Divergence::UnknownTimeline), "promoted by hand");
    }

    #[test]
    fn an_old_primary_follows_only_if_it_stopped_before_the_switch() {
        assert!(verdict(&data(3, 500, Former::PrimaryStopped), &PRIMARY).is_ok());
        assert_eq!(
            why(verdict(&data(3, 620, Former::PrimaryStopped), &PRIMARY)),
            (Some(500), Divergence::BeyondSwitch)
        );
        assert_eq!(
            why(verdict(&data(4, 620, Former::PrimaryStopped), &PRIMARY)),
            (None, Divergence::WroteSameTimeline)
        );
        assert_eq!(verdict(&data(3, 400, Former::PrimaryCrashed), &PRIMARY), Err(Unfit::NeedsCrashRecovery));
    }

    #[test]
    fn another_database_is_foreign_whatever_its_positions() {
        let local = Local { system_id: SystemId(8), ..data(4, 900, Former::Replica) };
        let unfit = verdict(&local, &PRIMARY).expect_err("foreign");
        assert_eq!(unfit, Unfit::Foreign { local: SystemId(8), primary: SystemId(7) });
        assert_eq!(unfit.trouble("n2").code.0, "ST3011");
    }

    #[test]
    fn people_read_where_and_why() {
        let trouble = replica(3, 0x600).expect_err("beyond").trouble("n2");
        assert_eq!(trouble.code.0, "ST3010");
        assert_eq!(
            trouble.reason,
            "the data directory ends at 0/600 on timeline 3: the primary's history left that timeline earlier, at 0/1F4"
        );
        assert!(trouble.hint.contains("stemma node reinit n2"));
    }
}
