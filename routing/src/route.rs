//! The answer of the classifier: where a statement belongs, why, and what it does to the session.

use crate::hint::Hint;
use std::fmt;
use std::ops::Range;

/// Where a statement belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// A replica may run it.
    Read,
    /// The primary runs it, and the session has to be taken for one that wrote (rule K-2).
    Write,
    /// It opens, ends or shapes a transaction: see the effects.
    Transaction,
    /// It reads or changes the session alone (`SET`, `SHOW`, `FETCH`, ...): see the effects. If it has to run on a
    /// server, then on the one the session holds, else on the primary.
    Session,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $text:literal;)*) => {
        /// Which rule decided.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, for the labels of metrics.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];
            /// One word for labels and tables.
            pub fn word(self) -> &'static str {
                match self { $(Reason::$name => $word,)* }
            }
            /// A clause for people.
            pub fn text(self) -> &'static str {
                match self { $(Reason::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// Rules C-1 to C-5 hold.
    PlainRead = "plain-read", "it only reads, and every function it calls is known to be harmless";
    /// The text holds no statement.
    Empty = "empty", "there is no statement";
    /// C-1.
    MultiStatement = "multi-statement", "several statements come in one text (C-1)";
    /// C-1.
    NotAQuery = "not-a-query", "it does not begin like a query (C-1)";
    /// C-1.
    UnknownStatement = "unknown-statement", "it begins with no known keyword (C-1)";
    /// C-1.
    ExplainAnalyze = "explain-analyze", "EXPLAIN ANALYZE runs its statement (C-1)";
    /// C-1.
    ExplainOther = "explain-other", "EXPLAIN of something else than a query (C-1)";
    /// C-1.
    CopyFrom = "copy-from", "COPY FROM writes (C-1)";
    /// C-1.
    CopyFile = "copy-file", "COPY reaches a file or program of the server (C-1)";
    /// C-1.
    ExecuteByName = "execute", "it runs a statement prepared earlier by name (C-1)";
    /// C-1.
    CursorHold = "cursor-hold", "a cursor WITH HOLD outlives its transaction (C-1)";
    /// C-2.
    WriteKeyword = "write-keyword", "a word that writes stands in it (C-2)";
    /// C-2.
    Into = "into", "INTO makes a table (C-2)";
    /// C-2.
    Locking = "locking", "it locks rows (C-2)";
    /// C-3.
    UnknownFunction = "unknown-function", "a function is not in the catalogue (C-3)";
    /// C-3.
    VolatileFunction = "volatile-function", "a function is volatile (C-3)";
    /// C-3.
    VolatileOperator = "volatile-operator", "an operator runs a volatile function (C-3)";
    /// C-3.
    CatalogCold = "catalog-cold", "the functions of this database are not loaded yet (C-3)";
    /// C-3, by configuration.
    FunctionOverride = "function-override", "the configuration keeps a function on the primary (C-3)";
    /// C-4.
    NodeDependent = "node-dependent", "its answer depends on the server that gives it (C-4)";
    /// C-5.
    UnloggedRelation = "unlogged", "an unlogged table has no rows on replicas (C-5)";
    /// C-5.
    ForeignRelation = "foreign", "a foreign table is reached from the primary (C-5)";
    /// C-5.
    SequenceRelation = "sequence", "replicas see a sequence ahead of its value (C-5)";
    /// C-5.
    DefinitionAvoided = "definition", "a view or row-security rule holds what replicas may not run (C-5)";
    /// C-5, by configuration.
    RelationOverride = "relation-override", "the configuration keeps a relation on the primary (C-5)";
    /// C-6.
    Serializable = "serializable", "replicas refuse SERIALIZABLE (C-6)";
    /// C-6.
    Pinned = "pinned", "the session is bound to its server (C-6)";
    /// C-6.
    ReadWriteTransaction = "read-write-transaction", "it is inside a transaction that may write (C-6)";
    /// C-7.
    Encoding = "encoding", "the client's encoding cannot be read byte by byte (C-7)";
    /// C-7.
    Unlexable = "unlexable", "the text cannot be read (C-7)";
    /// C-7.
    UnreadableName = "unreadable-name", "a name is written with escapes or is too long (C-7)";
    /// A person's word in the statement, the session or the configuration.
    HintPrimary = "hint-primary", "route=primary was asked for";
    /// A person's word in the statement, the session or the configuration.
    HintReplica = "hint-replica", "route=replica was asked for";
    /// The client declared it.
    ReadOnlyTransaction = "read-only-transaction", "the transaction was declared READ ONLY";
    /// Session and transaction control.
    Control = "control", "it controls the session or its transaction";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Reason {
    /// Whether a person may overrule it with `route=replica`. Nobody can make a replica write, and nobody can vouch for a
    /// text that could not be read.
    pub fn yields_to_hint(self) -> bool {
        match self {
            Reason::UnknownFunction
            | Reason::VolatileFunction
            | Reason::VolatileOperator
            | Reason::CatalogCold
            | Reason::NodeDependent
            | Reason::ForeignRelation
            | Reason::SequenceRelation
            | Reason::DefinitionAvoided
            | Reason::FunctionOverride
            | Reason::RelationOverride
            | Reason::UnreadableName => true,
            Reason::PlainRead
            | Reason::Empty
            | Reason::MultiStatement
            | Reason::NotAQuery
            | Reason::UnknownStatement
            | Reason::ExplainAnalyze
            | Reason::ExplainOther
            | Reason::CopyFrom
            | Reason::CopyFile
            | Reason::ExecuteByName
            | Reason::CursorHold
            | Reason::WriteKeyword
            | Reason::Into
            | Reason::Locking
            | Reason::UnloggedRelation
            | Reason::Serializable
            | Reason::Pinned
            | Reason::ReadWriteTransaction
            | Reason::Encoding
            | Reason::Unlexable
            | Reason::HintPrimary
            | Reason::HintReplica
            | Reason::ReadOnlyTransaction
            | Reason::Control => false,
        }
    }

    /// How little can be said against it: of several reasons in one statement the hardest decides, so that a hint which
    /// answers a doubt about a function does not also overrule a lock that is asked for behind it.
    pub fn hardness(self) -> u8 {
        if self.yields_to_read_only() {
            0
        } else if self.yields_to_hint() {
            1
        } else {
            2
        }
    }

    /// Whether a declared READ ONLY transaction answers the doubt: its functions cannot write, whatever they are.
    pub fn yields_to_read_only(self) -> bool {
        matches!(self, Reason::UnknownFunction | Reason::VolatileFunction | Reason::VolatileOperator)
    }
}

/// A name or a value as bytes in the client's encoding, folded and without quotes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Bytes(pub Box<[u8]>);

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{self}`")
    }
}
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}
impl From<&str> for Bytes {
    fn from(text: &str) -> Bytes {
        Bytes(text.as_bytes().into())
    }
}

/// The isolation levels of PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// Treated by PostgreSQL as `ReadCommitted`.
    ReadUncommitted,
    /// The default.
    ReadCommitted,
    /// One snapshot for the whole transaction.
    RepeatableRead,
    /// Refused by replicas.
    Serializable,
}

/// What was said of a transaction; `None` where nothing was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Modes {
    /// `READ ONLY` or `READ WRITE`.
    pub read_only: Option<bool>,
    /// `ISOLATION LEVEL ...`.
    pub isolation: Option<Isolation>,
    /// `[NOT] DEFERRABLE`.
    pub deferrable: Option<bool>,
}

/// The new value of a setting.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// `DEFAULT`.
    Default,
    /// One plain literal, number or word: its value.
    Plain(Bytes),
    /// Anything else (a list, a string with escapes): the text as it was written, without its blanks at both ends.
    Raw(Bytes),
}

/// What `DISCARD` throws away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Discard {
    /// Everything.
    All,
    /// Cached plans.
    Plans,
    /// Cached values of sequences.
    Sequences,
    /// Temporary tables.
    Temp,
}

/// Which session state was touched in a way that cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Untracked {
    /// `LOAD` of a library.
    Load,
    /// `setseed()`.
    Seed,
    /// A `DO` block, which may set anything.
    DoBlock,
    /// `set_config()` with arguments that are not plain literals.
    SetConfig,
    /// The text could not be read to its end.
    Unreadable,
}

/// What a statement does to the session besides its result, if it succeeds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// `BEGIN`, `START TRANSACTION`.
    Begin(Modes),
    /// `SET TRANSACTION`; with `snapshot` also `SET TRANSACTION SNAPSHOT`.
    SetTransaction {
        /// What was said.
        modes: Modes,
        /// A snapshot of another session was taken over: it exists on one server only.
        snapshot: bool,
    },
    /// `SET SESSION CHARACTERISTICS AS TRANSACTION`.
    SetCharacteristics(Modes),
    /// `COMMIT`, `END`.
    Commit {
        /// `AND CHAIN`.
        chain: bool,
    },
    /// `ROLLBACK`, `ABORT`.
    Rollback {
        /// `AND CHAIN`.
        chain: bool,
    },
    /// `SAVEPOINT name`.
    Savepoint(Bytes),
    /// `ROLLBACK TO name`.
    RollbackTo(Bytes),
    /// `RELEASE name`.
    Release(Bytes),
    /// `PREPARE TRANSACTION`.
    PrepareTransaction,
    /// `COMMIT PREPARED` or `ROLLBACK PREPARED`.
    FinishPrepared {
        /// Whether it commits.
        commit: bool,
    },
    /// `SET`, `SET LOCAL`, `set_config` with literals.
    Set {
        /// Folded; `SET TIME ZONE` is `timezone`, `SET NAMES` is `client_encoding`, `SET SCHEMA` is `search_path`.
        name: Bytes,
        /// The new value.
        value: Value,
        /// Until the end of the transaction only.
        local: bool,
    },
    /// `RESET name`, or all of them.
    Reset(Option<Bytes>),
    /// `DISCARD`.
    Discard(Discard),
    /// `SHOW name`; `SHOW ALL` is `all`.
    Show(Bytes),
    /// `PREPARE name AS ...`.
    Prepare {
        /// Of the prepared statement.
        name: Bytes,
        /// The class of what it will run.
        class: Class,
        /// Where that stands in the text.
        body: Range<usize>,
    },
    /// `EXECUTE name`.
    Execute {
        /// Of the prepared statement.
        name: Bytes,
        /// Whether its arguments alone could be computed on a replica.
        arguments_read: bool,
    },
    /// `DEALLOCATE name`, or all of them.
    Deallocate(Option<Bytes>),
    /// `DECLARE name CURSOR`.
    Declare {
        /// Of the cursor.
        name: Bytes,
        /// `WITH HOLD`: it outlives the transaction.
        hold: bool,
    },
    /// `CLOSE name`, or all of them.
    Close(Option<Bytes>),
    /// `LISTEN channel`.
    Listen(Bytes),
    /// `UNLISTEN channel`, or all of them.
    Unlisten(Option<Bytes>),
    /// `NOTIFY channel`.
    Notify(Bytes),
    /// A temporary table, view, sequence or function was made.
    TempObject,
    /// A session advisory lock was taken.
    AdvisoryLock,
    /// One was given back.
    AdvisoryUnlock,
    /// All were given back.
    AdvisoryUnlockAll,
    /// Something that cannot be followed.
    Untracked(Untracked),
    /// `COPY ... FROM STDIN`: the client sends data.
    CopyIn,
    /// `COPY ... TO STDOUT`: the server sends data.
    CopyOut,
    /// Functions, tables or roles may have changed: what is cached of the catalogue is to be read again.
    CatalogChanged,
    /// `EXPLAIN ROUTE ...`, which the router answers: where the explained statement begins.
    ExplainRoute(usize),
}

/// An effect and the statement of the text, counted from 0, that has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Traced {
    /// Which statement.
    pub part: u32,
    /// What it does.
    pub effect: Effect,
}

/// The answer for one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it belongs.
    pub class: Class,
    /// Why.
    pub reason: Reason,
    /// The place in the text that decided, if it was one.
    pub culprit: Option<Range<u32>>,
    /// How many statements the text holds.
    pub parts: u32,
    /// In the order of the text. Empty for most statements.
    pub effects: Vec<Traced>,
    /// From a comment `/*+ ... */`.
    pub hint: Option<Box<Hint>>,
}

impl Effect {
    /// Whether the session has to be followed because of it: then it may not run on just any server.
    pub fn is_of_the_session(&self) -> bool {
        match self {
            Effect::CopyOut | Effect::CopyIn | Effect::CatalogChanged | Effect::Show(_) => false,
            Effect::Declare { hold, .. } => *hold,
            Effect::Begin(_)
            | Effect::SetTransaction { .. }
            | Effect::SetCharacteristics(_)
            | Effect::Commit { .. }
            | Effect::Rollback { .. }
            | Effect::Savepoint(_)
            | Effect::RollbackTo(_)
            | Effect::Release(_)
            | Effect::PrepareTransaction
            | Effect::FinishPrepared { .. }
            | Effect::Set { .. }
            | Effect::Reset(_)
            | Effect::Discard(_)
            | Effect::Prepare { .. }
            | Effect::Execute { .. }
            | Effect::Deallocate(_)
            | Effect::Close(_)
            | Effect::Listen(_)
            | Effect::Unlisten(_)
            | Effect::Notify(_)
            | Effect::TempObject
            | Effect::AdvisoryLock
            | Effect::AdvisoryUnlock
            | Effect::AdvisoryUnlockAll
            | Effect::Untracked(_)
            | Effect::ExplainRoute(_) => true,
        }
    }
}

impl Route {
    /// The reason with the words of `sql` that decided, as `EXPLAIN ROUTE` prints it.
    pub fn explain(&self, sql: &[u8]) -> String {
        let named = self.culprit.as_ref().and_then(|span| sql.get(span.start as usize..span.end as usize));
        let class = match self.class {
            Class::Read => "replica",
            Class::Write => "primary",
            Class::Transaction => "transaction",
            Class::Session => "session",
        };
        match named {
            Some(words) => format!("{class}: {} - `{}`", self.reason.text(), String::from_utf8_lossy(words)),
            None => format!("{class}: {}", self.reason.text()),
        }
    }
}
