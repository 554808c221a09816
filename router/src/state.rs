//! What a client's statements did to its session: settings that follow it, and things that cannot follow and so pin it
//! to its server (rules P-8 to P-11, section 3.3). Pure: told of every effect that came true.

use crate::channels::Channels;
use crate::settings::{Settings, literal};
use crate::wishes::{self, Wish, Wishes};
use routing::route::{Bytes, Discard, Isolation, Modes, Untracked, Value};
use routing::{Effect, Standing};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Why a client keeps its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pin {
    /// A temporary object.
    Temp,
    /// A cursor WITH HOLD.
    HoldCursor,
    /// A session advisory lock.
    AdvisoryLock,
    /// LISTEN, until the listener of its user and database has taken it over.
    Listen,
    /// A statement prepared by SQL.
    SqlPrepare,
    /// State that cannot be followed: `LOAD`, `setseed`, a `DO` block, ...
    Untracked,
}

impl Pin {
    /// The word shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Pin::Temp => "temporary object",
            Pin::HoldCursor => "cursor with hold",
            Pin::AdvisoryLock => "session advisory lock",
            Pin::Listen => "listen",
            Pin::SqlPrepare => "sql prepare",
            Pin::Untracked => "untracked state",
        }
    }
}

/// What is to be done beyond the session itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// None.
    Nothing,
    /// The server forgot all prepared statements, and the client means all of its own to be gone.
    AllDeallocated,
    /// Functions, tables or roles changed.
    CatalogChanged,
}

/// Settings that `RESET ALL` leaves as they are: a server that is believed to be nobody's would be somebody's still.
const WHO: [&str; 2] = ["session_authorization", "role"];

/// What is left when everything behind it is rolled back.
#[derive(Debug)]
struct Savepoint {
    name: Bytes,
    settings: Arc<Settings>,
    wishes: Wishes,
    channels: Channels,
}

/// The state of one session.
#[derive(Debug)]
pub struct State {
    /// What the client asked for with its first message; `RESET` leads back to it.
    startup: Arc<Settings>,
    /// As of now, inside the transaction.
    settings: Arc<Settings>,
    /// As of the last commit.
    committed: Arc<Settings>,
    /// Settings of the first message that a RESET made the server's own; they have to be made again.
    unmade: BTreeSet<String>,
    savepoints: Vec<Savepoint>,
    /// What it wishes of the router: at first, as of now, as of the last commit, and until the end of the transaction.
    wishes_startup: Wishes,
    wishes: Wishes,
    wishes_committed: Wishes,
    wishes_local: Wishes,
    /// A statement failed since the last ReadyForQuery.
    failed: bool,
    standing: Standing,
    /// The transaction is SERIALIZABLE by its own word.
    serializable: bool,
    temp: bool,
    cursors: BTreeSet<Box<[u8]>>,
    advisory: bool,
    /// Channels it listens to: as of now, and as of the last commit.
    channels: Channels,
    channels_committed: Channels,
    /// Its server listens too: it was the one to be told.
    listens_here: bool,
    /// The last word of the transaction about channels was that its server is to listen to none.
    unlistens: bool,
    prepared: BTreeSet<Box<[u8]>>,
    untracked: bool,
}

impl State {
    /// A session that has done nothing yet.
    pub fn new(startup: Arc<Settings>, wishes: Wishes) -> State {
        State {
            wishes_startup: wishes,
            wishes,
            wishes_committed: wishes,
            wishes_local: Wishes::default(),
            settings: startup.clone(),
            committed: startup.clone(),
            startup,
            unmade: BTreeSet::new(),
            savepoints: Vec::new(),
            failed: false,
            standing: Standing::Idle,
            serializable: false,
            temp: false,
            cursors: BTreeSet::new(),
            advisory: false,
            channels: Channels::default(),
            channels_committed: Channels::default(),
            listens_here: false,
            unlistens: false,
            prepared: BTreeSet::new(),
            untracked: false,
        }
    }

    /// The settings that a server must have for it.
    pub fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }

    /// The settings that are left when the transaction is rolled back.
    pub fn committed(&self) -> &Arc<Settings> {
        &self.committed
    }

    /// Whether a RESET made something the server's own that the client's first message set.
    pub fn has_unmade(&self) -> bool {
        !self.unmade.is_empty()
    }

    /// What its server has, given that it was made to have the session's settings.
    pub fn on_server(&mut self) -> Arc<Settings> {
        if self.unmade.is_empty() {
            return self.settings.clone();
        }
        let mut left = Settings::clone(&self.settings);
        for name in std::mem::take(&mut self.unmade) {
            left.0.remove(&name);
        }
        Arc::new(left)
    }

    /// A server was found that has equal settings: one copy of them is enough, and compares faster.
    pub fn share_settings(&mut self, equal: &Arc<Settings>) {
        if self.committed == self.settings {
            self.committed = equal.clone();
        }
        self.settings = equal.clone();
    }

    /// Whether it may be given another server between transactions.
    pub fn is_pinned(&self) -> bool {
        self.listens_here || self.has_unmovable()
    }

    /// Whether its server holds something that no other could be given.
    pub fn has_unmovable(&self) -> bool {
        self.temp || self.advisory || self.untracked || !self.cursors.is_empty() || !self.prepared.is_empty()
    }

    /// The channels that it listens to, outside a transaction.
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// Whether its server was told to listen, and has not been told to stop.
    pub fn listens_here(&self) -> bool {
        self.listens_here
    }

    /// Nobody listens for it any more.
    pub fn forget_channels(&mut self) {
        self.channels.clear();
        self.channels_committed.clear();
    }

    /// Its server does not listen any more; it does so itself as before.
    pub fn listens_elsewhere(&mut self) {
        self.listens_here = false;
    }

    /// Why it may not.
    pub fn pins(&self) -> Vec<Pin> {
        let all = [
            (Pin::Temp, self.temp),
            (Pin::HoldCursor, !self.cursors.is_empty()),
            (Pin::AdvisoryLock, self.advisory),
            (Pin::Listen, self.listens_here),
            (Pin::SqlPrepare, !self.prepared.is_empty()),
            (Pin::Untracked, self.untracked),
        ];
        all.into_iter().filter_map(|(pin, holds)| holds.then_some(pin)).collect()
    }

    /// Whether SQL's `PREPARE` made a statement of this name.
    pub fn has_prepared(&self, name: &[u8]) -> bool {
        self.prepared.contains(name)
    }

    /// Its server is gone, and everything that lived there.
    pub fn server_lost(&mut self) {
        self.temp = false;
        self.advisory = false;
        self.listens_here = false;
        self.untracked = false;
        self.cursors.clear();
        self.prepared.clear();
        self.roll_back();
        self.unmade.clear();
        self.standing = Standing::Idle;
        self.serializable = false;
    }

    /// The transaction turned out to be committed although its server did not say so.
    pub fn committed_after_all(&mut self) {
        self.commit();
    }

    /// What was done in the transaction stays.
    fn commit(&mut self) {
        self.committed = self.settings.clone();
        self.wishes_committed = self.wishes;
        if self.channels != self.channels_committed {
            self.channels_committed = self.channels.clone();
        }
        self.listens_here &= !std::mem::take(&mut self.unlistens);
        self.savepoints.clear();
    }

    /// What bears on where its next statement may run.
    pub fn for_routing(&self) -> routing::Session {
        let by_default = self.settings.0.get("default_transaction_isolation");
        let serializable = self.serializable || by_default.is_some_and(|value| value.contains("serializable"));
        let route = self.wishes().route;
        routing::Session { standing: self.standing, serializable, pinned: self.is_pinned(), route }
    }

    /// What it wishes of the router.
    pub fn wishes(&self) -> Wishes {
        self.wishes_local.or(self.wishes)
    }

    /// Grants a wish; `local`: until the end of the transaction, where one is open.
    pub fn wish(&mut self, wish: Wish, local: bool) {
        if !local {
            self.wishes.grant(wish, self.wishes_startup);
            if self.standing == Standing::Idle {
                self.wishes_committed = self.wishes;
            }
        } else if self.standing != Standing::Idle {
            self.wishes_local.grant(wish, self.wishes_startup);
        }
    }

    /// Whether the client itself asked for transactions that only read: that a write is refused says nothing of the
    /// server then.
    pub fn reads_by_own_will(&self) -> bool {
        let by_default = self.settings.0.get("default_transaction_read_only");
        by_default.is_some_and(|value| {
            let word = value.trim().trim_matches('\'').to_ascii_lowercase();
            // Any unambiguous beginning of a word is as good.
            !word.is_empty() && ["true", "yes", "on", "1"].iter().any(|yes| yes.starts_with(&word)) && word != "o"
        })
    }

    /// A statement failed: what the others of its implicit transaction did is undone with it.
    pub fn failed(&mut self) {
        self.failed = true;
    }

    /// ReadyForQuery came with this state of the transaction.
    pub fn ready(&mut self, status: u8) {
        if status == b'I' {
            if self.failed {
                self.roll_back();
            } else {
                self.commit();
            }
            self.wishes_local = Wishes::default();
            self.savepoints.clear();
            self.standing = Standing::Idle;
            self.serializable = false;
        }
        self.failed = false;
    }

    fn roll_back(&mut self) {
        self.settings = self.committed.clone();
        self.wishes = self.wishes_committed;
        self.wishes_local = Wishes::default();
        self.channels = self.channels_committed.clone();
        self.unlistens = false;
        self.savepoints.clear();
    }

    /// An effect came true; `tag` is the server's word for the statement.
    pub fn apply(&mut self, effect: &Effect, tag: &[u8]) -> Consequence {
        match effect {
            Effect::Begin(modes) => self.begin(*modes),
            Effect::SetTransaction { modes, .. } => self.modes(*modes),
            Effect::SetCharacteristics(modes) => self.characteristics(*modes),
            // A transaction that failed before is rolled back by COMMIT, and only the tag says so.
            Effect::Commit { .. } if tag.starts_with(b"ROLLBACK") => self.roll_back(),
            Effect::Commit { .. } => {
                self.commit();
                self.wishes_local = Wishes::default();
            }
            Effect::Rollback { .. } => self.roll_back(),
            Effect::Savepoint(name) => self.savepoints.push(Savepoint {
                name: name.clone(),
                settings: self.settings.clone(),
                wishes: self.wishes,
                channels: self.channels.clone(),
            }),
            Effect::RollbackTo(name) => {
                if let Some(place) = self.place_of(name) {
                    self.savepoints.truncate(place + 1);
                    let there = &self.savepoints[place];
                    self.settings = there.settings.clone();
                    self.wishes = there.wishes;
                    self.channels = there.channels.clone();
                    // What was said of channels before it is not kept: the server may listen still.
                    self.unlistens = false;
                }
                self.failed = false;
            }
            Effect::Release(name) => {
                if let Some(place) = self.place_of(name) {
                    self.savepoints.truncate(place);
                }
            }
            Effect::Set { name, value, local: false } => self.set(name, value),
            Effect::Reset(name) => self.reset(name.as_ref()),
            Effect::Discard(what) => return self.discard(*what),
            Effect::Prepare { name, .. } => {
                self.prepared.insert(name.0.clone());
            }
            Effect::Deallocate(Some(name)) => {
                self.prepared.remove(&name.0);
            }
            Effect::Deallocate(None) => {
                self.prepared.clear();
                return Consequence::AllDeallocated;
            }
            Effect::Declare { name, hold: true } => {
                self.cursors.insert(name.0.clone());
            }
            Effect::Close(Some(name)) => {
                self.cursors.remove(&name.0);
            }
            Effect::Close(None) => self.cursors.clear(),
            Effect::Listen(channel) => {
                self.channels.add(&channel.0);
                (self.listens_here, self.unlistens) = (true, false);
            }
            Effect::Unlisten(Some(channel)) => self.channels.remove(&channel.0),
            Effect::Unlisten(None) => {
                self.channels.clear();
                self.unlistens = true;
            }
            Effect::TempObject => self.temp = true,
            Effect::AdvisoryLock => self.advisory = true,
            Effect::AdvisoryUnlockAll => self.advisory = false,
            Effect::Untracked(
                Untracked::Load | Untracked::Seed | Untracked::DoBlock | Untracked::SetConfig | Untracked::Unreadable,
            ) => self.untracked = true,
            Effect::CatalogChanged => return Consequence::CatalogChanged,
            // How many locks one statement took is not known: the pin stays.
            Effect::AdvisoryUnlock => {}
            // These end with the transaction, in which the client keeps its server anyhow, or leave nothing behind.
            Effect::Set { local: true, .. }
            | Effect::PrepareTransaction
            | Effect::FinishPrepared { .. }
            | Effect::Show(_)
            | Effect::Execute { .. }
            | Effect::Declare { hold: false, .. }
            | Effect::Notify(_)
            | Effect::CopyIn
            | Effect::CopyOut
            | Effect::ExplainRoute(_) => {}
        }
        Consequence::Nothing
    }

    fn place_of(&self, savepoint: &Bytes) -> Option<usize> {
        self.savepoints.iter().rposition(|known| known.name == *savepoint)
    }

    fn begin(&mut self, modes: Modes) {
        if self.standing == Standing::Idle {
            self.standing = if self.reads_by_own_will() { Standing::ReadOnly } else { Standing::ReadWrite };
        }
        self.modes(modes);
    }

    fn modes(&mut self, modes: Modes) {
        match modes.read_only {
            Some(true) => self.standing = Standing::ReadOnly,
            Some(false) => self.standing = Standing::ReadWrite,
            None => {}
        }
        if let Some(level) = modes.isolation {
            self.serializable = level == Isolation::Serializable;
        }
    }

    fn characteristics(&mut self, modes: Modes) {
        let settings = Arc::make_mut(&mut self.settings);
        let mut put = |name: &str, value: &str| settings.0.insert(name.to_owned(), literal(value));
        if let Some(read_only) = modes.read_only {
            put("default_transaction_read_only", if read_only { "on" } else { "off" });
        }
        if let Some(deferrable) = modes.deferrable {
            put("default_transaction_deferrable", if deferrable { "on" } else { "off" });
        }
        if let Some(level) = modes.isolation {
            let word = match level {
                Isolation::ReadUncommitted => "read uncommitted",
                Isolation::ReadCommitted => "read committed",
                Isolation::RepeatableRead => "repeatable read",
                Isolation::Serializable => "serializable",
            };
            put("default_transaction_isolation", word);
        }
    }

    fn set(&mut self, name: &Bytes, value: &Value) {
        let (Ok(key), Some(written)) = (std::str::from_utf8(&name.0), written(value)) else {
            // A name or value that we cannot repeat cannot follow.
            self.untracked |= !matches!(value, Value::Default);
            return;
        };
        if key.starts_with(wishes::PREFIX) {
            // By `set_config`, which the server has answered: what it cannot mean is not taken for anything.
            if let Some(Ok(wish)) = wishes::text(value).map(|text| Wish::parse(key, text)) {
                self.wish(wish, false);
            }
            return;
        }
        // Settings of the transaction itself end with it.
        if matches!(key, "transaction_isolation" | "transaction_read_only" | "transaction_deferrable") {
            return;
        }
        match written {
            Some(text) => {
                self.unmade.remove(key);
                // Whoever becomes another user plays no role any more.
                if key == WHO[0] {
                    Arc::make_mut(&mut self.settings).0.remove(WHO[1]);
                }
                Arc::make_mut(&mut self.settings).0.insert(key.to_owned(), text);
            }
            None => self.reset(Some(name)),
        }
    }

    fn reset(&mut self, name: Option<&Bytes>) {
        let Some(name) = name else {
            self.wishes = self.wishes_startup;
            let mut settings = Settings::clone(&self.startup);
            self.unmade.extend(self.startup.0.keys().cloned());
            // Who one is outlives RESET ALL.
            for kept in WHO {
                self.unmade.remove(kept);
                match self.settings.0.get(kept) {
                    Some(value) => settings.0.insert(kept.to_owned(), value.clone()),
                    None => settings.0.remove(kept),
                };
            }
            self.settings = if settings == *self.startup { self.startup.clone() } else { Arc::new(settings) };
            return;
        };
        let Ok(key) = std::str::from_utf8(&name.0) else { return };
        let settings = Arc::make_mut(&mut self.settings);
        if key == WHO[0] {
            settings.0.remove(WHO[1]);
        }
        match self.startup.0.get(key) {
            Some(value) => {
                settings.0.insert(key.to_owned(), value.clone());
                self.unmade.insert(key.to_owned());
            }
            None => {
                settings.0.remove(key);
            }
        }
    }

    fn discard(&mut self, what: Discard) -> Consequence {
        match what {
            Discard::Plans | Discard::Sequences => Consequence::Nothing,
            Discard::Temp => {
                self.temp = false;
                Consequence::Nothing
            }
            Discard::All => {
                self.server_lost();
                self.channels.clear();
                self.settings = self.startup.clone();
                self.wishes = self.wishes_startup;
                self.unmade.extend(self.startup.0.keys().cloned());
                Consequence::AllDeallocated
            }
        }
    }
}

/// A value as it is written in a `SET`; inner `None` for the default, outer `None` where it is not text.
fn written(value: &Value) -> Option<Option<String>> {
    Some(match value {
        Value::Default => None,
        Value::Plain(bytes) => Some(literal(std::str::from_utf8(&bytes.0).ok()?)),
        Value::Raw(bytes) => Some(std::str::from_utf8(&bytes.0).ok()?.to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use routing::{Catalog, Lexing, analyse};

    /// Plays statements that all succeed, each with the transaction's state after it; `!` before a statement makes it
    /// fail. What the settings are in the end.
    fn play(script: &[(&str, u8)]) -> State {
        let mut state = State::new(Arc::new(Settings([("timezone".into(), "'UTC'".into())].into())), Wishes::default());
        for (sql, status) in script {
            match sql.strip_prefix('!') {
                Some(_) => state.failed(),
                None => {
                    for traced in analyse(sql.as_bytes(), Lexing::default(), &Catalog::cold()).effects {
                        state.apply(&traced.effect, b"");
                    }
                }
            }
            state.ready(*status);
        }
        state
    }

    fn check(script: &[(&str, u8)], expected: &str) {
        let state = play(script);
        let found: Vec<_> = state.settings().0.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(found.join(" "), expected, "{script:?}");
    }

    #[test]
    fn settings_follow_what_was_committed() {
        check(&[("SET search_path TO a, b", b'I')], "search_path=a, b timezone='UTC'");
        check(&[("SET work_mem = '4MB'", b'I'), ("RESET work_mem", b'I')], "timezone='UTC'");
        check(&[("SET timezone TO 'CET'", b'I'), ("RESET ALL", b'I')], "timezone='UTC'");
        check(&[("SET timezone TO 'CET'", b'I'), ("SET timezone TO DEFAULT", b'I')], "timezone='UTC'");
        check(&[("BEGIN", b'T'), ("SET a.b = 1", b'T'), ("ROLLBACK", b'I')], "timezone='UTC'");
        check(&[("SET ROLE ann", b'I'), ("RESET ALL", b'I')], "role='ann' timezone='UTC'");
        check(&[("SET ROLE ann", b'I'), ("DISCARD ALL", b'I')], "timezone='UTC'");
        check(
            &[("SET ROLE ann", b'I'), ("SET SESSION AUTHORIZATION bob", b'I')],
            "session_authorization='bob' timezone='UTC'",
        );
        check(&[("BEGIN", b'T'), ("SET a.b = 1", b'T'), ("COMMIT", b'I')], "a.b='1' timezone='UTC'");
        check(&[("BEGIN", b'T'), ("SET LOCAL a.b = 1", b'T'), ("COMMIT", b'I')], "timezone='UTC'");
        let savepoint: &[(&str, u8)] = &[
            ("BEGIN", b'T'),
            ("SET a.b = 1", b'T'),
            ("SAVEPOINT s", b'T'),
            ("SET a.b = 2", b'T'),
            ("!SELECT 1/0", b'E'),
            ("ROLLBACK TO s", b'T'),
            ("COMMIT", b'I'),
        ];
        check(savepoint, "a.b='1' timezone='UTC'");
        check(&[("!SET a.b = 1", b'I')], "timezone='UTC'");
    }

    #[test]
    fn what_cannot_follow_pins_until_it_is_gone() {
        let cases: &[(&str, Pin, &str)] = &[
            ("CREATE TEMP TABLE t (a int)", Pin::Temp, "DISCARD TEMP"),
            ("SELECT pg_advisory_lock(1)", Pin::AdvisoryLock, "SELECT pg_advisory_unlock_all()"),
            ("LISTEN news", Pin::Listen, "UNLISTEN *"),
            ("PREPARE p AS SELECT 1", Pin::SqlPrepare, "DEALLOCATE p"),
            ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", Pin::HoldCursor, "CLOSE c"),
            ("LOAD 'auto_explain'", Pin::Untracked, "DISCARD ALL"),
        ];
        for (sql, pin, release) in cases {
            assert_eq!(play(&[(sql, b'I')]).pins(), [*pin], "{sql}");
            assert!(!play(&[(sql, b'I'), (release, b'I')]).is_pinned(), "{sql}; {release}");
            assert!(!play(&[(sql, b'I'), ("DISCARD ALL", b'I')]).is_pinned(), "{sql}; DISCARD ALL");
        }
        assert!(play(&[("SELECT pg_advisory_lock(1)", b'I'), ("SELECT pg_advisory_unlock(1)", b'I')]).is_pinned());
    }
}
