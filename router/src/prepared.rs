//! Prepared statements that follow their client from server to server (rules P-1 to P-5).
//!
//! A client's name stands for a definition (text and parameter types). Each definition has one number in this process
//! and is known to servers under a name made from that number, so two clients that prepare the same text share one
//! server-side statement, and no client can reach another's by its name.

use routing::{Catalog, Lexing, Memo, Route};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU32, Ordering};
use wire::frame::c_string;

/// Statements that one server connection keeps before the least recently used is closed.
const SERVER_STATEMENTS_MAX: usize = 200;
/// A statement that is there in order to be deallocated, in place of one that other clients may use.
pub const GONE: &str = "__stemma_gone";
/// What the names of our statements begin with.
pub const PREFIX: &str = "__stemma_";

/// What a statement takes and gives, as a server described it: types of its parameters, names and types of its columns.
/// Two descriptions are the same if their digests are; 0 where there is none.
///
/// A server refuses to run a statement whose columns are not what they were when it was prepared, for its client reads
/// rows by what it was told then. Where the statement is prepared anew on another server, nobody but us can know.
pub type Shape = u64;

/// Reads a description as it comes.
#[derive(Clone, Debug, Default)]
pub struct Describing(DefaultHasher);

impl Describing {
    /// The body of a ParameterDescription.
    pub fn parameters(&mut self, body: &[u8]) {
        self.0.write(body);
    }

    /// The body of a RowDescription. Which table a column is of does not count, nor the format of a portal.
    pub fn columns(&mut self, body: &[u8]) {
        let mut rest = body.get(2..).unwrap_or_default();
        while let Ok((name, fields)) = c_string(rest)
            && let Some((fields, behind)) = fields.split_at_checked(18)
        {
            name.hash(&mut self.0);
            fields[6..16].hash(&mut self.0);
            rest = behind;
        }
    }

    /// What was read.
    pub fn shape(self) -> Shape {
        self.0.finish().max(1)
    }
}

/// A definition that some client of this worker has prepared.
#[derive(Debug)]
pub struct Statement {
    /// Unique in this process.
    pub id: u32,
    /// The name under which servers know it.
    pub name: Box<[u8]>,
    /// Text with its end, and parameter types: what stands behind the name in a Parse.
    pub definition: Box<[u8]>,
    /// How its text is read.
    pub lexing: Lexing,
    /// By which settings its names are looked up.
    scope: Box<str>,
    /// Its tables changed so that servers refuse to execute it: whoever prepares the same text anew gets a new one
    /// (rule P-6). Those who have it keep it, for they believe to know its columns.
    outdated: Cell<bool>,
    /// Where it may run and what it does, by the catalogue of this generation (rule P-3).
    route: RefCell<(u64, Rc<Route>)>,
}

/// What texts are judged with.
#[derive(Clone, Copy)]
pub struct Judge<'j> {
    /// What is known of the database.
    pub catalog: &'j Catalog,
    /// Changes with it.
    pub generation: u64,
    /// How the session's texts are read.
    pub lexing: Lexing,
    /// What was found out of texts before.
    pub memo: &'j RefCell<Memo>,
}

impl Judge<'_> {
    /// Where a text may run and what it does.
    pub fn route(&self, sql: &[u8]) -> Rc<Route> {
        self.memo.borrow_mut().route(sql, self.lexing, self.catalog, self.generation)
    }
}

impl Statement {
    /// Where it may run and what it does.
    pub fn route(&self, judge: &Judge<'_>) -> Rc<Route> {
        let (generation, known) = self.route.borrow().clone();
        if generation == judge.generation {
            return known;
        }
        let route = Judge { lexing: self.lexing, ..*judge }.route(self.sql());
        *self.route.borrow_mut() = (judge.generation, route.clone());
        route
    }

    /// The text.
    pub fn sql(&self) -> &[u8] {
        self.definition.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

static NEXT_ID: AtomicU32 = AtomicU32::new(1);
static NEXT_TOKEN: AtomicU32 = AtomicU32::new(1);

/// All definitions of one worker, each held by the clients that use it.
#[derive(Default)]
pub struct Interner {
    hasher: RandomState,
    known: HashMap<u64, Vec<Weak<Statement>>>,
    sweep_at: usize,
}

impl Interner {
    /// The statement with this definition, prepared under settings of this scope.
    pub fn intern(&mut self, definition: &[u8], scope: &str, judge: &Judge<'_>) -> Rc<Statement> {
        let hash = self.hasher.hash_one((definition, scope));
        if self.known.len() >= self.sweep_at {
            self.known.retain(|_, list| {
                list.retain(|weak| weak.strong_count() > 0);
                !list.is_empty()
            });
            self.sweep_at = self.known.len() * 2 + 1024;
        }
        let list = self.known.entry(hash).or_default();
        let same = |known: &Rc<Statement>| {
            *known.definition == *definition
                && *known.scope == *scope
                && known.lexing == judge.lexing
                && !known.outdated.get()
        };
        if let Some(found) = list.iter().filter_map(Weak::upgrade).find(same) {
            return found;
        }
        let sql = definition.split(|byte| *byte == 0).next().unwrap_or_default();
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let made = Rc::new(Statement {
            id,
            name: format!("{PREFIX}{id}").into_bytes().into(),
            definition: definition.to_vec().into(),
            lexing: judge.lexing,
            scope: scope.into(),
            outdated: Cell::new(false),
            route: RefCell::new((judge.generation, judge.route(sql))),
        });
        list.push(Rc::downgrade(&made));
        made
    }
}

/// What a client's name stands for.
#[derive(Debug)]
pub struct Prepared {
    /// The definition.
    pub statement: Rc<Statement>,
    /// What the client was told of it.
    pub told: Cell<Shape>,
}

/// What one client has prepared.
#[derive(Debug, Default)]
pub struct ClientStatements {
    named: HashMap<Box<[u8]>, Rc<Prepared>>,
    /// Stands for this client where servers have its unnamed statement; 0 before the first.
    token: u32,
    /// The unnamed statements that it has had.
    unnamed_count: u32,
    /// What the client was told of the unnamed statement.
    pub unnamed_told: Shape,
    /// The definition of the unnamed statement.
    pub unnamed: Option<Vec<u8>>,
    /// What it does to the session, where it does anything.
    pub unnamed_route: Option<Rc<Route>>,
    /// Whether it may write.
    pub unnamed_writes: bool,
    /// Whether the server that is attached has it.
    pub unnamed_loaded: bool,
}

impl ClientStatements {
    /// The statement of this name.
    pub fn get(&self, name: &[u8]) -> Option<&Rc<Statement>> {
        self.named.get(name).map(|known| &known.statement)
    }
    /// What this name stands for.
    pub fn prepared(&self, name: &[u8]) -> Option<&Rc<Prepared>> {
        self.named.get(name)
    }
    /// Gives a statement its name.
    pub fn insert(&mut self, name: &[u8], statement: Rc<Statement>) {
        self.restore(name, Rc::new(Prepared { statement, told: Cell::new(0) }));
    }
    /// Gives back what `take` took.
    pub fn restore(&mut self, name: &[u8], prepared: Rc<Prepared>) {
        self.named.insert(name.into(), prepared);
    }
    /// Forgets a name; what it stood for.
    pub fn take(&mut self, name: &[u8]) -> Option<Rc<Prepared>> {
        self.named.remove(name)
    }
    /// Forgets a name.
    pub fn remove(&mut self, name: &[u8]) {
        self.named.remove(name);
    }
    /// Servers refuse to execute this statement.
    pub fn outdate(&self, id: u32) {
        for known in self.named.values().filter(|known| known.statement.id == id) {
            known.statement.outdated.set(true);
        }
    }
    /// There is a new unnamed statement, of which nothing was told yet.
    pub fn new_unnamed(&mut self) {
        if self.token == 0 {
            self.token = NEXT_TOKEN.fetch_add(1, Ordering::Relaxed);
        }
        self.unnamed_count = self.unnamed_count.wrapping_add(1);
        self.unnamed_told = 0;
        self.unnamed_loaded = false;
    }
    /// The server that is attached was given the unnamed statement.
    pub fn unnamed_sent(&mut self, server: &mut ServerStatements) {
        server.unnamed = (self.token, self.unnamed_count);
        self.unnamed_loaded = true;
    }
    /// The number of the unnamed statement among those that there were.
    pub fn unnamed_number(&self) -> u32 {
        self.unnamed_count
    }
    /// This server is attached now. It may have the unnamed statement from before.
    pub fn attached(&mut self, server: &ServerStatements) {
        self.unnamed_loaded = self.token != 0 && server.unnamed == (self.token, self.unnamed_count);
    }
    /// Forgets everything (`DEALLOCATE ALL`, `DISCARD ALL`).
    pub fn clear(&mut self) {
        self.named = HashMap::new();
        self.forget_unnamed();
    }
    /// The unnamed statement is gone.
    pub fn forget_unnamed(&mut self) {
        self.unnamed = None;
        self.unnamed_route = None;
        self.unnamed_loaded = false;
        self.unnamed_told = 0;
    }
    /// How many names there are.
    pub fn len(&self) -> usize {
        self.named.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }
}

/// What one server connection has prepared for us.
#[derive(Debug, Default)]
pub struct ServerStatements {
    known: HashMap<u32, Known, BuildHasherDefault<ById>>,
    uses: u64,
    /// Whose unnamed statement it has, and which; all 0 where that is not known.
    unnamed: (u32, u32),
}

/// Numbers that we count ourselves need no hash that withstands malice: a multiplication spreads them.
#[derive(Default)]
struct ById(u64);

impl Hasher for ById {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }
    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// A statement that a server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    used: u64,
    /// How the server described it.
    pub shape: Shape,
    /// The catalogue's generation when it was prepared.
    pub generation: u64,
    /// The server refuses to run it.
    pub refused: bool,
}

impl ServerStatements {
    /// Notes a use; what is known of the statement.
    pub fn touch(&mut self, id: u32) -> Option<Known> {
        self.uses += 1;
        let known = self.known.get_mut(&id)?;
        known.used = self.uses;
        Some(*known)
    }
    /// Notes that the server is being told.
    pub fn insert(&mut self, id: u32, generation: u64) {
        self.uses += 1;
        self.known.insert(id, Known { used: self.uses, shape: 0, generation, refused: false });
    }
    /// The server described it.
    pub fn described(&mut self, id: u32, shape: Shape) {
        if let Some(known) = self.known.get_mut(&id) {
            known.shape = shape;
        }
    }
    /// The server refuses to run it.
    pub fn refuses(&mut self, id: u32) {
        if let Some(known) = self.known.get_mut(&id) {
            known.refused = true;
        }
    }
    /// What it has for an unnamed statement is not known.
    pub fn forget_unnamed(&mut self) {
        self.unnamed = (0, 0);
    }
    /// The server does not know it after all.
    pub fn remove(&mut self, id: u32) {
        self.known.remove(&id);
    }
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.known.clear();
        self.forget_unnamed();
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.known.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
    /// Takes out the least recently used where there are too many.
    pub fn evict(&mut self) -> Option<u32> {
        if self.known.len() < SERVER_STATEMENTS_MAX {
            return None;
        }
        let oldest = self.known.iter().min_by_key(|(_, known)| known.used).map(|(id, _)| *id)?;
        self.known.remove(&oldest);
        Some(oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_definition_has_one_number_while_anyone_uses_it() {
        let mut interner = Interner::default();
        let catalog = Catalog::cold();
        let memo = RefCell::new(Memo::new(routing::fingerprint::Key::new(1, 2)));
        let judge = Judge { catalog: &catalog, generation: 0, lexing: Lexing::default(), memo: &memo };
        let first = interner.intern(b"SELECT 1\0\0\0", "", &judge);
        let again = interner.intern(b"SELECT 1\0\0\0", "", &judge);
        assert!(Rc::ptr_eq(&first, &again));
        let typed = interner.intern(b"SELECT 1\0\0\x01\0\0\0\x17", "", &judge);
        assert_ne!(first.id, typed.id, "other types, other statement");
        let elsewhere = interner.intern(b"SELECT 1\0\0\0", "search_path='x';", &judge);
        assert_ne!(first.id, elsewhere.id, "other tables, other statement");
        assert_eq!(first.sql(), b"SELECT 1");
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let mut server = ServerStatements::default();
        for id in 1..=SERVER_STATEMENTS_MAX as u32 {
            server.insert(id, 0);
        }
        assert!(server.touch(1).is_some());
        assert_eq!(server.evict(), Some(2));
        assert_eq!(server.evict(), None, "there is room now");
        assert_eq!(server.touch(2), None);
    }
}
