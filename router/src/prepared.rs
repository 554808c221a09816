//! Prepared statements that follow their client from server to server (rules P-1 to P-5).
//!
//! A client's name stands for a definition (text and parameter types). Each definition has one number in this process
//! and is known to servers under a name made from that number, so two clients that prepare the same text share one
//! server-side statement, and no client can reach another's by its name.

use routing::{Catalog, Lexing, Route};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU32, Ordering};

/// Statements that one server connection keeps before the least recently used is closed.
const SERVER_STATEMENTS_MAX: usize = 200;
/// A statement that is there in order to be deallocated, in place of one that other clients may use.
pub const GONE: &str = "__stemma_gone";
/// What the names of our statements begin with.
pub const PREFIX: &str = "__stemma_";

/// A definition that some client of this worker has prepared.
#[derive(Debug)]
pub struct Statement {
    /// Unique in this process.
    pub id: u32,
    /// Text with its end, and parameter types: what stands behind the name in a Parse.
    pub definition: Box<[u8]>,
    /// How its text is read.
    pub lexing: Lexing,
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
}

impl Judge<'_> {
    /// Where a text may run and what it does.
    pub fn route(&self, sql: &[u8]) -> Route {
        routing::analyse(sql, self.lexing, self.catalog)
    }
}

impl Statement {
    /// The name under which servers know it.
    pub fn server_name(&self) -> String {
        format!("{PREFIX}{}", self.id)
    }

    /// Where it may run and what it does.
    pub fn route(&self, judge: &Judge<'_>) -> Rc<Route> {
        let (generation, known) = self.route.borrow().clone();
        if generation == judge.generation {
            return known;
        }
        let route = Rc::new(routing::analyse(self.sql(), self.lexing, judge.catalog));
        *self.route.borrow_mut() = (judge.generation, route.clone());
        route
    }

    /// The text.
    pub fn sql(&self) -> &[u8] {
        self.definition.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

static NEXT_ID: AtomicU32 = AtomicU32::new(1);

/// All definitions of one worker, each held by the clients that use it.
#[derive(Default)]
pub struct Interner {
    hasher: RandomState,
    known: HashMap<u64, Vec<Weak<Statement>>>,
    sweep_at: usize,
}

impl Interner {
    /// The statement with this definition.
    pub fn intern(&mut self, definition: &[u8], judge: &Judge<'_>) -> Rc<Statement> {
        let hash = self.hasher.hash_one(definition);
        if self.known.len() >= self.sweep_at {
            self.known.retain(|_, list| {
                list.retain(|weak| weak.strong_count() > 0);
                !list.is_empty()
            });
            self.sweep_at = self.known.len() * 2 + 1024;
        }
        let list = self.known.entry(hash).or_default();
        let same = |known: &Rc<Statement>| {
            *known.definition == *definition && known.lexing == judge.lexing && !known.outdated.get()
        };
        if let Some(found) = list.iter().filter_map(Weak::upgrade).find(same) {
            return found;
        }
        let sql = definition.split(|byte| *byte == 0).next().unwrap_or_default();
        let made = Rc::new(Statement {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            definition: definition.to_vec().into(),
            lexing: judge.lexing,
            outdated: Cell::new(false),
            route: RefCell::new((judge.generation, Rc::new(judge.route(sql)))),
        });
        list.push(Rc::downgrade(&made));
        made
    }
}

/// What one client has prepared.
#[derive(Debug, Default)]
pub struct ClientStatements {
    named: HashMap<Box<[u8]>, Rc<Statement>>,
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
        self.named.get(name)
    }
    /// Gives a statement its name.
    pub fn insert(&mut self, name: &[u8], statement: Rc<Statement>) {
        self.named.insert(name.into(), statement);
    }
    /// Forgets a name; what it stood for.
    pub fn take(&mut self, name: &[u8]) -> Option<Rc<Statement>> {
        self.named.remove(name)
    }
    /// Forgets a name; whether it was known.
    pub fn remove(&mut self, name: &[u8]) -> bool {
        self.named.remove(name).is_some()
    }
    /// Servers refuse to execute this statement.
    pub fn outdate(&self, id: u32) {
        for statement in self.named.values().filter(|statement| statement.id == id) {
            statement.outdated.set(true);
        }
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
    /// Number of the statement, and when it was last used.
    known: HashMap<u32, u64>,
    uses: u64,
}

impl ServerStatements {
    /// Notes a use; whether the server knows the statement.
    pub fn touch(&mut self, id: u32) -> bool {
        self.uses += 1;
        match self.known.get_mut(&id) {
            Some(used) => {
                *used = self.uses;
                true
            }
            None => false,
        }
    }
    /// Notes that the server is being told.
    pub fn insert(&mut self, id: u32) {
        self.uses += 1;
        self.known.insert(id, self.uses);
    }
    /// The server does not know it after all.
    pub fn remove(&mut self, id: u32) {
        self.known.remove(&id);
    }
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.known.clear();
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
        let oldest = self.known.iter().min_by_key(|(_, used)| **used).map(|(id, _)| *id)?;
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
        let judge = Judge { catalog: &catalog, generation: 0, lexing: Lexing::default() };
        let first = interner.intern(b"SELECT 1\0\0\0", &judge);
        let again = interner.intern(b"SELECT 1\0\0\0", &judge);
        assert!(Rc::ptr_eq(&first, &again));
        assert_ne!(first.id, interner.intern(b"SELECT 1\0\0\x01\0\0\0\x17", &judge).id, "other types, other statement");
        assert_eq!(first.sql(), b"SELECT 1");
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let mut server = ServerStatements::default();
        for id in 1..=SERVER_STATEMENTS_MAX as u32 {
            server.insert(id);
        }
        assert!(server.touch(1));
        assert_eq!(server.evict(), Some(2));
        assert_eq!(server.evict(), None, "there is room now");
        assert!(!server.touch(2));
    }
}
