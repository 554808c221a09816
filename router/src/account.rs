//! A user in a database, as one worker knows it: what all clients of that kind share.

use crate::listener::Listener;
use crate::pool::Pool;
use crate::worker::Worker;
use model::NodeId;
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// A user in a database, with the pools that serve it. They are found once for every news of the servers, not once for
/// every statement.
pub struct Account {
    /// The database.
    pub database: String,
    /// The user.
    pub user: String,
    /// The news that the pools go by.
    generation: Cell<u64>,
    primary: RefCell<Option<Rc<Pool>>>,
    replicas: RefCell<Vec<(NodeId, Rc<Pool>)>>,
    /// Who listens for its clients.
    listener: Rc<Listener>,
}

impl Account {
    /// Of this database and user.
    pub fn new(database: &str, user: &str) -> Account {
        Account {
            database: database.to_owned(),
            user: user.to_owned(),
            generation: Cell::new(0),
            primary: RefCell::default(),
            replicas: RefCell::default(),
            listener: Rc::default(),
        }
    }

    /// Who listens for its clients.
    pub fn listener(&self) -> &Rc<Listener> {
        &self.listener
    }

    /// The pool for everything, where there is a primary and an administrator has not stopped it.
    pub fn primary(&self, worker: &Worker) -> Option<Rc<Pool>> {
        if crate::admin::is_paused(worker) {
            return None;
        }
        self.freshen(worker);
        let mut known = self.primary.borrow_mut();
        if known.is_none() {
            *known = worker.primary_pool(&self.database, &self.user);
        }
        known.clone()
    }

    /// The pool for reads on a replica, where it is one still.
    pub fn replica(&self, worker: &Worker, node: NodeId) -> Option<Rc<Pool>> {
        self.freshen(worker);
        let mut known = self.replicas.borrow_mut();
        if let Some((_, pool)) = known.iter().find(|(replica, _)| *replica == node) {
            return Some(pool.clone());
        }
        let address = worker.reads.borrow().address(node)?;
        let pool = worker.replica_pool(&self.database, &self.user, address);
        known.push((node, pool.clone()));
        Some(pool)
    }

    /// Forgets pools that may be those of the past.
    pub fn freshen(&self, worker: &Worker) {
        if self.generation.replace(worker.generation()) != worker.generation() {
            *self.primary.borrow_mut() = None;
            self.replicas.borrow_mut().clear();
        }
    }
}
