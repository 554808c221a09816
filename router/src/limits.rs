//! Bounds of single users and databases, beside those that hold for each pool: how many clients, how many connections to
//! one server over all pools of the user or database, and other pool sizes and modes.

use crate::config::PoolMode;
use crate::pool::SharedPool;
use crate::topology::NodeAddr;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// Stands for every name that has no entry of its own.
pub const OTHERS: &str = "*";

/// Who waits longer than this for a connection that others of its user or database have is given the next one that is free,
/// though a new connection must be made for it.
const STARVED_AFTER: Duration = Duration::from_secs(1);

/// What is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Whose {
    /// A user, in all databases.
    User,
    /// A database, for all users.
    Database,
}

impl Whose {
    /// Both.
    pub const ALL: [Whose; 2] = [Whose::User, Whose::Database];

    /// The word shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Whose::User => "user",
            Whose::Database => "database",
        }
    }
}

/// The bounds of one user or database. What is absent is not bounded, or is as it is for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Most connections to one server for one user and database.
    pub pool_size: Option<usize>,
    /// When a server is given to another client.
    pub pool_mode: Option<PoolMode>,
    /// Most clients at once.
    pub clients_max: Option<usize>,
    /// Most connections to one server, over all pools of the user or database.
    pub servers_max: Option<usize>,
}

/// All of them, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Those of users.
    pub users: BTreeMap<String, Bounds>,
    /// Those of databases.
    pub databases: BTreeMap<String, Bounds>,
}

impl Limits {
    /// The bounds of one.
    pub fn of(&self, whose: Whose, name: &str) -> Bounds {
        let of = match whose {
            Whose::User => &self.users,
            Whose::Database => &self.databases,
        };
        of.get(name).or_else(|| of.get(OTHERS)).copied().unwrap_or_default()
    }

    /// The size of a pool: the least of what is said of its user and its database, else `general`.
    pub fn pool_size(&self, user: &str, database: &str, general: usize) -> usize {
        let said = [self.of(Whose::User, user).pool_size, self.of(Whose::Database, database).pool_size];
        said.into_iter().flatten().min().unwrap_or(general)
    }

    /// The mode of a session: the user's, else the database's, else `general`.
    pub fn pool_mode(&self, user: &str, database: &str, general: PoolMode) -> PoolMode {
        self.of(Whose::User, user).pool_mode.or(self.of(Whose::Database, database).pool_mode).unwrap_or(general)
    }
}

/// Connections to one server that all pools of a user, or of a database, have together.
#[derive(Debug)]
pub struct Budget {
    limit: AtomicUsize,
    total: AtomicUsize,
    /// Clients that wait in those pools.
    waiting: AtomicUsize,
    pools: Mutex<Vec<Weak<SharedPool>>>,
}

impl Budget {
    fn new(limit: Option<usize>) -> Budget {
        Budget {
            limit: AtomicUsize::new(limit.unwrap_or(usize::MAX)),
            total: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            pools: Mutex::default(),
        }
    }

    /// Another pool counts.
    pub fn join(&self, pool: &Arc<SharedPool>) {
        self.pools.lock().expect("no panic under this lock").push(Arc::downgrade(pool));
    }

    /// Takes a place, where one is free.
    pub fn take(&self) -> bool {
        let limit = self.limit.load(SeqCst);
        self.total.fetch_update(SeqCst, SeqCst, |total| (total < limit).then_some(total + 1)).is_ok()
    }

    /// Gives a place back.
    pub fn give_back(&self) {
        self.total.fetch_sub(1, SeqCst);
    }

    /// More clients wait.
    pub fn more_wait(&self, count: usize) {
        self.waiting.fetch_add(count, SeqCst);
    }

    /// Fewer clients wait.
    pub fn fewer_wait(&self, count: usize) {
        self.waiting.fetch_sub(count, SeqCst);
    }

    /// Whether there is a bound at all. Without one nobody waits for a place in it.
    pub fn is_bounded(&self) -> bool {
        self.limit.load(SeqCst) != usize::MAX
    }

    /// Whether it is used up while others wait than those of a pool in which so many do.
    pub fn is_wanted_elsewhere(&self, waiting_here: usize) -> bool {
        self.is_bounded()
            && self.waiting.load(SeqCst) > waiting_here
            && self.total.load(SeqCst) >= self.limit.load(SeqCst)
    }

    /// Whether more places are used than the bound allows: it was lowered.
    pub fn is_over(&self) -> bool {
        self.total.load(SeqCst) > self.limit.load(SeqCst)
    }

    /// Its pools other than `except`.
    pub fn others(&self, except: &SharedPool) -> Vec<Arc<SharedPool>> {
        let mut pools = self.pools.lock().expect("no panic under this lock");
        pools.retain(|pool| pool.strong_count() > 0);
        pools.iter().filter_map(Weak::upgrade).filter(|pool| !std::ptr::eq(&raw const **pool, except)).collect()
    }
}

/// Whether somebody who came then counts as starved.
pub fn is_starved(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= STARVED_AFTER
}

/// What a user or a database has now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Its name.
    pub name: String,
    /// Its clients.
    pub clients: usize,
    /// Its connections to the server to which it has most.
    pub servers: usize,
    /// Its bounds.
    pub bounds: Bounds,
}

/// All budgets, and the clients that are in.
#[derive(Debug, Default)]
pub struct Ledger {
    budgets: Mutex<HashMap<(Whose, String, NodeAddr), Arc<Budget>>>,
    clients: Mutex<HashMap<(Whose, String), usize>>,
}

impl Ledger {
    /// The budgets that a pool takes part in.
    pub fn budgets(&self, limits: &Limits, user: &str, database: &str, node: &NodeAddr) -> [Arc<Budget>; 2] {
        let mut budgets = self.budgets.lock().expect("no panic under this lock");
        [(Whose::User, user), (Whose::Database, database)].map(|(whose, name)| {
            let made = || Arc::new(Budget::new(limits.of(whose, name).servers_max));
            budgets.entry((whose, name.to_owned(), node.clone())).or_insert_with(made).clone()
        })
    }

    /// Other bounds hold.
    pub fn set_limits(&self, limits: &Limits) {
        for ((whose, name, _), budget) in self.budgets.lock().expect("no panic under this lock").iter() {
            budget.limit.store(limits.of(*whose, name).servers_max.unwrap_or(usize::MAX), SeqCst);
        }
    }

    /// What each user, or each database, has: all that have something, or bounds of their own, by name.
    pub fn usage(&self, limits: &Limits, whose: Whose) -> Vec<Usage> {
        let said = match whose {
            Whose::User => &limits.users,
            Whose::Database => &limits.databases,
        };
        let mut found: BTreeMap<String, Usage> = BTreeMap::new();
        let mut of = |name: &str, note: &dyn Fn(&mut Usage)| {
            let made = || Usage { name: name.to_owned(), bounds: limits.of(whose, name), ..Usage::default() };
            note(found.entry(name.to_owned()).or_insert_with(made));
        };
        said.keys().filter(|name| *name != OTHERS).for_each(|name| of(name, &|_| {}));
        for ((kind, name), count) in self.clients.lock().expect("no panic under this lock").iter() {
            if *kind == whose {
                of(name, &|usage| usage.clients = *count);
            }
        }
        for ((kind, name, _), budget) in self.budgets.lock().expect("no panic under this lock").iter() {
            let total = budget.total.load(SeqCst);
            if *kind == whose && total > 0 {
                of(name, &|usage| usage.servers = usage.servers.max(total));
            }
        }
        found.into_values().collect()
    }

    /// A seat for a client; `Err` says whose bound is reached, and which it is.
    pub fn seat(self: &Arc<Self>, limits: &Limits, user: &str, database: &str) -> Result<Seat, (Whose, usize)> {
        let mut clients = self.clients.lock().expect("no panic under this lock");
        let names = [(Whose::User, user.to_owned()), (Whose::Database, database.to_owned())];
        for (whose, name) in &names {
            let here = clients.get(&(*whose, name.clone())).copied().unwrap_or(0);
            if let Some(most) = limits.of(*whose, name).clients_max.filter(|most| here >= *most) {
                return Err((*whose, most));
            }
        }
        names.iter().for_each(|name| *clients.entry(name.clone()).or_default() += 1);
        Ok(Seat { ledger: self.clone(), names })
    }
}

/// The place of a client among those of its user and its database; given back when dropped.
#[derive(Debug)]
pub struct Seat {
    ledger: Arc<Ledger>,
    names: [(Whose, String); 2],
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut clients = self.ledger.clients.lock().expect("no panic under this lock");
        for name in &self.names {
            if let Some(count) = clients.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    clients.remove(name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(pool_size: usize) -> Bounds {
        Bounds { pool_size: Some(pool_size), ..Bounds::default() }
    }

    #[test]
    fn what_is_said_of_one_goes_before_what_is_said_of_all() {
        let session = Bounds { pool_mode: Some(PoolMode::Session), ..Bounds::default() };
        let limits = Limits {
            users: [("batch".to_owned(), bounds(3)), (OTHERS.to_owned(), bounds(8))].into(),
            databases: [("app".to_owned(), bounds(5)), ("old".to_owned(), session)].into(),
        };
        assert_eq!(limits.pool_size("batch", "app", 20), 3);
        assert_eq!(limits.pool_size("ann", "app", 20), 5, "the lesser of the two");
        assert_eq!(limits.pool_size("ann", "old", 20), 8);
        assert_eq!(Limits::default().pool_size("ann", "old", 20), 20);
        assert_eq!(limits.pool_mode("ann", "old", PoolMode::Transaction), PoolMode::Session);
        assert_eq!(limits.pool_mode("ann", "app", PoolMode::Transaction), PoolMode::Transaction);
    }

    #[test]
    fn seats_are_counted_by_user_and_by_database_and_given_back() {
        let most = |clients_max| Bounds { clients_max: Some(clients_max), ..Bounds::default() };
        let limits =
            Limits { users: [("ann".to_owned(), most(2))].into(), databases: [("app".to_owned(), most(3))].into() };
        let ledger = Arc::new(Ledger::default());
        let seat = |user, database| ledger.seat(&limits, user, database);
        let first = seat("ann", "app").expect("free");
        let _second = seat("ann", "other").expect("free");
        assert_eq!(seat("ann", "app").expect_err("full"), (Whose::User, 2));
        let _bob = [seat("bob", "app").expect("free"), seat("bob", "app").expect("free")];
        assert_eq!(seat("bob", "app").expect_err("full"), (Whose::Database, 3));
        let used = ledger.usage(&limits, Whose::User);
        assert_eq!(used.iter().map(|it| (&*it.name, it.clients)).collect::<Vec<_>>(), [("ann", 2), ("bob", 2)]);
        drop(first);
        seat("ann", "app").expect("free again");
    }
}
