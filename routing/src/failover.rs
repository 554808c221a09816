//! What becomes of a request whose server is lost: the rules F-1 to F-17 as one table.
//!
//! A pure function of what was sent, what was answered, and how the connection ended. Two things are never done: a
//! statement that may have been executed is not sent again, and a commit whose outcome nobody knows is not called
//! undone.

/// The transaction at the latest answer of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transaction {
    /// None was open.
    None,
    /// Open, and none of its statements wrote.
    Clean,
    /// Open, and it may have written.
    Wrote,
}

/// What the client had asked for and not been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// Nothing.
    None,
    /// Something of which no byte was sent to the server.
    NotSent,
    /// Statements that only read, or that only open a transaction or change settings.
    Read,
    /// Anything that may write, outside the end of a transaction.
    Write,
    /// Something that holds a COMMIT, or a PREPARE TRANSACTION.
    Commit,
    /// A ROLLBACK and nothing else.
    Rollback,
}

/// How the server ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// The connection broke without a word, or a crash was announced (57P02).
    Silent,
    /// The session was ended in order (57P01): a statement that was running was rolled back.
    Terminated,
    /// An error that proves that nothing was executed: 25006, 57P03, a fence, a failed login.
    Refused,
    /// A commit was acknowledged although the wait for replicas was cancelled: it may or may not survive.
    CommittedLocally,
}

/// All that the decision depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lost {
    /// The transaction.
    pub transaction: Transaction,
    /// The request.
    pub request: Request,
    /// Whether bytes of the answer reached the client.
    pub answered: bool,
    /// How it ended.
    pub end: End,
    /// Whether things lived on the server that cannot be made again: temporary tables, locks, cursors.
    pub pinned: bool,
    /// How often this request was sent again already.
    pub retries: u8,
    /// Whether the router still has the request's bytes.
    pub kept: bool,
    /// Where the request holds a COMMIT: whether it holds nothing else, so that its answer can be made up.
    pub lone: bool,
    /// The transaction had failed before: a COMMIT of it rolls back.
    pub failed: bool,
    /// Whether the transaction's number is known.
    pub numbered: bool,
}

/// What to do. The client's connection lives on in every case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Nothing: the next statement gets another server.
    Silent,
    /// The next statement gets one error that says what is gone.
    SayGone,
    /// Send the request again, to another server or once there is one.
    SendAgain,
    /// Error 40001; in a transaction it is failed until the client ends it.
    Aborted,
    /// Error 08007: it may have been executed.
    Unknown,
    /// Answer as a ROLLBACK that worked.
    RolledBack,
    /// Answer as a COMMIT that worked: there was nothing to be kept.
    Committed,
    /// Ask the primary, once it is certain which one that is, what became of the transaction (`outcome`).
    Resolve,
}

impl Action {
    /// One word, for labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Silent => "silent",
            Action::SayGone => "say-gone",
            Action::SendAgain => "send-again",
            Action::Aborted => "aborted",
            Action::Unknown => "unknown",
            Action::RolledBack => "rolled-back",
            Action::Committed => "committed",
            Action::Resolve => "resolve",
        }
    }
}

/// Most times that a request is sent again.
pub const RETRIES_MAX: u8 = 2;

/// The action, and the rule it follows from.
pub fn verdict(lost: &Lost) -> (Action, &'static str) {
    // What was committed without its replicas can be looked up all the same, where its number is known.
    let numbered = lost.numbered && lost.request == Request::Commit && lost.transaction == Transaction::Wrote;
    let may_have = match lost.request {
        Request::Commit => true,
        Request::Write => lost.transaction == Transaction::None,
        Request::None | Request::NotSent | Request::Read | Request::Rollback => false,
    };
    if lost.end == End::CommittedLocally && may_have && (!numbered || lost.answered) {
        return (Action::Unknown, "F-8");
    }
    let again = lost.kept && !lost.answered && !lost.pinned && lost.retries < RETRIES_MAX;
    match (lost.transaction, lost.request) {
        (Transaction::None, Request::None) if lost.pinned => (Action::SayGone, "F-3"),
        (Transaction::None, Request::None) => (Action::Silent, "F-1"),
        (Transaction::None, Request::NotSent) if lost.pinned => (Action::SayGone, "F-3"),
        (Transaction::None, Request::NotSent) => (Action::SendAgain, "F-4"),
        (_, Request::Rollback) => (Action::RolledBack, "F-13"),
        (Transaction::None, _) if lost.end == End::Refused && again => (Action::SendAgain, "F-6"),
        (Transaction::None, Request::Read) if again => (Action::SendAgain, "F-5"),
        (Transaction::None, Request::Read) => (Action::Aborted, "F-14"),
        // Nothing was executed, but it cannot be sent again: running it anew is safe for the client.
        (Transaction::None, Request::Write | Request::Commit) if lost.end == End::Refused && !lost.answered => {
            (Action::Aborted, "F-6")
        }
        // A statement of its own was rolled back by an orderly end; several may have committed in between, and a commit
        // may have been made before the order came.
        (Transaction::None, Request::Write) if lost.end == End::Terminated && !lost.answered => {
            (Action::Aborted, "F-7")
        }
        (Transaction::None, Request::Write | Request::Commit) => (Action::Unknown, "F-9"),
        // Whether a commit in flight was made is not for the connection's end to say.
        (Transaction::Clean | Transaction::Wrote, Request::Commit) if lost.end == End::Refused => {
            (Action::Aborted, "F-11")
        }
        // A transaction that had failed is rolled back by its COMMIT.
        (Transaction::Clean | Transaction::Wrote, Request::Commit) if lost.failed && lost.lone && !lost.answered => {
            (Action::RolledBack, "F-13")
        }
        (Transaction::Wrote, Request::Commit) if lost.numbered && !lost.answered => (Action::Resolve, "F-12"),
        // The commit of a transaction that wrote nothing changes nothing, whatever came of it. But a commit among other
        // statements may have had writes before it in the same request, and LISTEN and its like begin with the commit.
        (Transaction::Clean, Request::Commit) if lost.lone && !lost.pinned && !lost.answered => {
            (Action::Committed, "F-12")
        }
        (Transaction::Clean | Transaction::Wrote, Request::Commit) => (Action::Unknown, "F-12"),
        (Transaction::Clean, Request::None | Request::NotSent | Request::Read | Request::Write) => {
            (Action::Aborted, "F-10")
        }
        (Transaction::Wrote, Request::None | Request::NotSent | Request::Read | Request::Write) => {
            (Action::Aborted, "F-11")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRANSACTIONS: [Transaction; 3] = [Transaction::None, Transaction::Clean, Transaction::Wrote];
    const REQUESTS: [Request; 6] =
        [Request::None, Request::NotSent, Request::Read, Request::Write, Request::Commit, Request::Rollback];
    const ENDS: [End; 4] = [End::Silent, End::Terminated, End::Refused, End::CommittedLocally];

    fn every_case() -> impl Iterator<Item = Lost> {
        let flags = [false, true];
        TRANSACTIONS.into_iter().flat_map(move |transaction| {
            REQUESTS.into_iter().flat_map(move |request| {
                ENDS.into_iter().flat_map(move |end| {
                    (0..=u8::MAX).map(move |bits| Lost {
                        transaction,
                        request,
                        answered: flags[usize::from(bits & 1)],
                        end,
                        pinned: bits & 2 != 0,
                        retries: (bits >> 2) & 3,
                        kept: bits & 16 != 0,
                        lone: bits & 32 != 0,
                        failed: bits & 64 != 0,
                        numbered: bits & 128 != 0,
                    })
                })
            })
        })
    }

    #[test]
    fn nothing_that_may_have_been_executed_is_sent_again() {
        for lost in every_case() {
            let (action, rule) = verdict(&lost);
            if action == Action::SendAgain {
                let harmless = matches!(lost.request, Request::Read | Request::NotSent) || lost.end == End::Refused;
                assert!(harmless, "{rule}: {lost:?}");
                assert_eq!(lost.transaction, Transaction::None, "{rule}: {lost:?}");
                assert!(!lost.answered || lost.request == Request::NotSent, "{rule}: {lost:?}");
            }
        }
    }

    #[test]
    fn a_commit_without_its_answer_is_never_called_undone() {
        for lost in every_case().filter(|lost| lost.request == Request::Commit && lost.end != End::Refused) {
            match verdict(&lost).0 {
                Action::Unknown => {}
                Action::Resolve => assert!(lost.numbered && lost.transaction == Transaction::Wrote, "{lost:?}"),
                Action::RolledBack => assert!(lost.failed && lost.lone, "{lost:?}"),
                Action::Committed => assert!(lost.lone && lost.transaction == Transaction::Clean, "{lost:?}"),
                other => panic!("{other:?}: {lost:?}"),
            }
        }
    }

    #[test]
    fn a_lost_statement_is_always_answered() {
        for lost in every_case() {
            let asked = !matches!(lost.request, Request::None | Request::NotSent);
            let (action, rule) = verdict(&lost);
            if asked {
                assert!(!matches!(action, Action::Silent | Action::SayGone), "{rule}: {lost:?}");
            }
        }
    }

    #[test]
    fn the_table() {
        let plain = Lost {
            transaction: Transaction::None,
            request: Request::None,
            answered: false,
            end: End::Silent,
            pinned: false,
            retries: 0,
            kept: true,
            lone: true,
            failed: false,
            numbered: true,
        };
        let check = |lost: Lost, expected: (Action, &str)| assert_eq!(verdict(&lost), expected, "{lost:?}");
        check(plain, (Action::Silent, "F-1"));
        check(Lost { pinned: true, ..plain }, (Action::SayGone, "F-3"));
        check(Lost { request: Request::NotSent, ..plain }, (Action::SendAgain, "F-4"));
        let read = Lost { request: Request::Read, ..plain };
        check(read, (Action::SendAgain, "F-5"));
        check(Lost { retries: RETRIES_MAX, ..read }, (Action::Aborted, "F-14"));
        check(Lost { answered: true, ..read }, (Action::Aborted, "F-14"));
        let write = Lost { request: Request::Write, ..plain };
        check(Lost { end: End::Refused, ..write }, (Action::SendAgain, "F-6"));
        check(Lost { end: End::Terminated, ..write }, (Action::Aborted, "F-7"));
        check(Lost { end: End::CommittedLocally, ..write }, (Action::Unknown, "F-8"));
        check(write, (Action::Unknown, "F-9"));
        let wrote = Lost { transaction: Transaction::Wrote, ..plain };
        check(Lost { transaction: Transaction::Clean, ..plain }, (Action::Aborted, "F-10"));
        check(wrote, (Action::Aborted, "F-11"));
        let commit = Lost { request: Request::Commit, ..wrote };
        check(commit, (Action::Resolve, "F-12"));
        check(Lost { numbered: false, ..commit }, (Action::Unknown, "F-12"));
        check(Lost { failed: true, ..commit }, (Action::RolledBack, "F-13"));
        check(Lost { transaction: Transaction::Clean, ..commit }, (Action::Committed, "F-12"));
        check(Lost { transaction: Transaction::Clean, lone: false, ..commit }, (Action::Unknown, "F-12"));
        check(Lost { transaction: Transaction::None, ..commit }, (Action::Unknown, "F-9"));
        check(Lost { request: Request::Rollback, ..wrote }, (Action::RolledBack, "F-13"));
    }
}
