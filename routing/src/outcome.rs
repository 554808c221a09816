//! What became of a commit whose answer was lost (rule F-12): decided by the number of its transaction and by what the
//! server that is the primary now says about that number.
//!
//! Transaction numbers are physical and shared with replicas, but a number that was lost with its server is given again
//! by the next one. So the number alone is asked about only where it cannot have been given twice: on the new primary
//! below the next number at its promotion, on the same server only where it has not recovered from a crash since. What
//! cannot be told stays untold: a wrong answer in either direction is a lost or a doubled payment.

use model::Epoch;
use model::state::{LineageEntry, XidSwitch};

/// A commit without an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InDoubt {
    /// The transaction's number, with its wrap-arounds.
    pub xid: u64,
    /// The primacy under which it was sent.
    pub epoch: Epoch,
    /// What changes when its server recovers from a crash; `None` where that was not asked.
    pub life: Option<String>,
}

/// Who is asked now.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The primacy in force. It is settled: no commit of an older one can be acknowledged any more.
    pub epoch: Epoch,
    /// Where primacies began, oldest first.
    pub lineage: &'a [LineageEntry],
    /// The server's `InDoubt::life`.
    pub life: Option<&'a str>,
    /// What it says of the number.
    pub says: Says,
}

/// What a server says of a transaction number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// `committed`.
    Committed,
    /// `aborted`.
    Aborted,
    /// `in progress`: also a commit that waits for replicas.
    InProgress,
    /// It was not given out yet.
    Future,
    /// It is too old to be known.
    Forgotten,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is committed, and in the history of the primary in force.
    Committed,
    /// The same on the server that it was sent to, where replicas may not have confirmed it yet: it counts once something
    /// written later has been confirmed.
    CommittedHere,
    /// It is not, and never will be.
    Aborted(&'static str),
    /// It runs; ask again.
    Running,
    /// Nobody can tell.
    Unknown(&'static str),
}

/// How the history in force relates to that of the commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descent {
    /// It is the same server's, going on.
    Same,
    /// Another server took over, and these numbers were noted when it did.
    Switched(Option<XidSwitch>),
    /// The commit's primacy is not part of it.
    Apart,
    /// It does not reach back so far.
    Unknown,
}

/// Decides.
pub fn outcome(doubt: &InDoubt, asked: &Asked<'_>) -> Outcome {
    match descent(asked.lineage, doubt.epoch, asked.epoch) {
        Descent::Same => on_same_server(doubt, asked),
        Descent::Apart => Outcome::Aborted("its primary's history is not part of the one in force"),
        Descent::Unknown => Outcome::Unknown("the cluster does not remember its primacy"),
        Descent::Switched(None) => Outcome::Unknown("the transaction numbers at the change of primary were not noted"),
        Descent::Switched(Some(switch)) => {
            if doubt.xid < switch.kept_below {
                return match asked.says {
                    Says::Committed => Outcome::Committed,
                    Says::Aborted => Outcome::Aborted("the new primary has its number as rolled back"),
                    // A prepared transaction of that number, which is not ours to judge.
                    Says::InProgress => Outcome::Running,
                    Says::Future | Says::Forgotten => Outcome::Unknown("the new primary does not know its number"),
                };
            }
            if doubt.xid >= switch.given_from {
                return Outcome::Aborted("its number was not used before the new primary took over");
            }
            Outcome::Unknown("its number may have been given again while the new primary took over")
        }
    }
}

fn on_same_server(doubt: &InDoubt, asked: &Asked<'_>) -> Outcome {
    let same_life = doubt.life.is_some() && doubt.life.as_deref() == asked.life;
    match asked.says {
        // Had it been committed, its number would have been kept, and would say so.
        Says::Aborted => Outcome::Aborted("its server has it as rolled back"),
        Says::InProgress if same_life => Outcome::Running,
        Says::InProgress | Says::Future => Outcome::Aborted("its server lost it in a crash"),
        Says::Committed if same_life => Outcome::CommittedHere,
        Says::Committed => {
            Outcome::Unknown("its server recovered from a crash, and may have given its number to another transaction")
        }
        Says::Forgotten => Outcome::Unknown("its server does not remember its number"),
    }
}

/// How the history of the primary of `now` relates to that of epoch `then`.
pub fn descent(lineage: &[LineageEntry], then: Epoch, now: Epoch) -> Descent {
    if then == now {
        return Descent::Same;
    }
    let known = &lineage[..lineage.partition_point(|entry| entry.epoch <= now)];
    // Epochs that only confirmed a primary have no entry: they go on with the one before.
    let begun = |epoch: Epoch| known.partition_point(|entry| entry.epoch <= epoch).checked_sub(1);
    let Some(wanted) = begun(then).map(|at| first_of(known, at)) else { return Descent::Unknown };
    let Some(mut at) = known.len().checked_sub(1).map(|at| first_of(known, at)) else { return Descent::Unknown };
    if at == wanted {
        return Descent::Same;
    }
    loop {
        let entry = &known[at];
        let parent = match entry.from {
            Some(from) => known[..at].partition_point(|it| it.epoch <= from).checked_sub(1),
            None => at.checked_sub(1),
        };
        let Some(parent) = parent.map(|parent| first_of(known, parent)) else {
            return if wanted < at { Descent::Apart } else { Descent::Unknown };
        };
        if parent == wanted {
            return Descent::Switched(entry.xids);
        }
        if parent < wanted {
            return Descent::Apart;
        }
        at = parent;
    }
}

/// The entry at which the timeline of an entry began: without `from`, the same timeline goes on under a new epoch.
fn first_of(known: &[LineageEntry], mut at: usize) -> usize {
    while at > 0 && known[at].from.is_none() && known[at - 1].timeline == known[at].timeline {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Timeline;

    fn entry(epoch: u64, timeline: u32, from: Option<u64>, xids: Option<(u64, u64)>) -> LineageEntry {
        LineageEntry {
            epoch: Epoch(epoch),
            timeline: Timeline(timeline),
            began_at: None,
            from: from.map(Epoch),
            xids: xids.map(|(kept_below, given_from)| XidSwitch { kept_below, given_from }),
        }
    }

    fn doubt(xid: u64, epoch: u64) -> InDoubt {
        InDoubt { xid, epoch: Epoch(epoch), life: Some("a".into()) }
    }

    fn check(lineage: &[LineageEntry], doubt: &InDoubt, now: u64, life: &str, says: Says) -> &'static str {
        let asked = Asked { epoch: Epoch(now), lineage, life: Some(life), says };
        match outcome(doubt, &asked) {
            Outcome::Committed => "committed",
            Outcome::CommittedHere => "committed here",
            Outcome::Aborted(_) => "aborted",
            Outcome::Running => "running",
            Outcome::Unknown(_) => "unknown",
        }
    }

    #[test]
    fn on_a_new_primary_the_numbers_at_its_promotion_come_first() {
        let lineage = [entry(1, 1, None, None), entry(2, 2, Some(1), Some((100, 104)))];
        let ask = |xid, says| check(&lineage, &doubt(xid, 1), 2, "b", says);
        assert_eq!(ask(99, Says::Committed), "committed");
        assert_eq!(ask(99, Says::Aborted), "aborted");
        // Whoever has that number there, it is somebody else.
        assert_eq!(ask(104, Says::Committed), "aborted");
        assert_eq!(ask(104, Says::Future), "aborted");
        assert_eq!(ask(102, Says::Committed), "unknown", "between the two nobody can tell");
        assert_eq!(ask(99, Says::Forgotten), "unknown");
    }

    #[test]
    fn of_several_changes_the_first_after_the_commit_decides() {
        let lineage =
            [entry(1, 1, None, None), entry(2, 2, Some(1), Some((100, 100))), entry(4, 3, Some(2), Some((200, 200)))];
        assert_eq!(check(&lineage, &doubt(150, 1), 4, "b", Says::Committed), "aborted", "given again under epoch 2");
        assert_eq!(check(&lineage, &doubt(150, 2), 4, "b", Says::Committed), "committed");
        assert_eq!(check(&lineage, &doubt(150, 3), 4, "b", Says::Committed), "committed", "3 only confirmed 2");
    }

    #[test]
    fn a_history_that_left_the_commit_out_has_not_got_it() {
        // Epoch 3 was forced from what epoch 1 had left.
        let lineage =
            [entry(1, 1, None, None), entry(2, 2, Some(1), Some((100, 100))), entry(3, 3, Some(1), Some((90, 90)))];
        assert_eq!(check(&lineage, &doubt(110, 2), 3, "b", Says::Committed), "aborted");
        assert_eq!(check(&lineage, &doubt(80, 1), 3, "b", Says::Committed), "committed");
        assert_eq!(check(&[], &doubt(80, 1), 3, "b", Says::Committed), "unknown");
    }

    #[test]
    fn what_was_not_noted_is_not_guessed() {
        let lineage = [entry(1, 1, None, None), entry(2, 2, Some(1), None)];
        assert_eq!(check(&lineage, &doubt(5, 1), 2, "b", Says::Committed), "unknown");
    }

    #[test]
    fn the_same_server_is_believed_while_it_did_not_crash() {
        let lineage = [entry(1, 1, None, None), entry(5, 1, None, None)];
        let ask = |life, says| check(&lineage, &doubt(7, 1), 5, life, says);
        assert_eq!(ask("a", Says::Committed), "committed here");
        assert_eq!(ask("a", Says::InProgress), "running");
        assert_eq!(ask("a", Says::Aborted), "aborted");
        // After a crash its number may be somebody else's; only "committed" could then be said of the wrong one.
        assert_eq!(ask("b", Says::Committed), "unknown");
        for says in [Says::Aborted, Says::InProgress, Says::Future] {
            assert_eq!(ask("b", says), "aborted");
        }
    }
}
