//! Routers that follow this node. Before a planned switchover the primary waits, for a bounded time, until each of them
//! holds new transactions and has none open: then nobody notices that it stops.

use model::Epoch;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most routers that are remembered; more are not waited for.
const ROUTERS_MAX: usize = 256;

/// See the module.
#[derive(Default)]
pub(crate) struct Routers {
    /// By the name that each gave itself: how many streams it follows here, and the epoch for which it holds.
    known: Mutex<BTreeMap<String, (usize, Epoch)>>,
}

/// A router's place; given up when dropped.
pub struct RouterSeat {
    routers: Arc<Routers>,
    name: String,
}

impl Routers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (usize, Epoch)>> {
        // Each change is complete in itself.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A router follows from now on, until its seat is dropped.
    pub(crate) fn join(self: &Arc<Self>, name: &str) -> Option<RouterSeat> {
        let mut known = self.lock();
        if known.len() >= ROUTERS_MAX && !known.contains_key(name) {
            return None;
        }
        known.entry(name.to_owned()).or_insert((0, Epoch(0))).0 += 1;
        Some(RouterSeat { routers: self.clone(), name: name.to_owned() })
    }

    /// A router that follows sends nothing new to the primary before this epoch, and nothing is open.
    pub(crate) fn holds(&self, name: &str, epoch: Epoch) {
        if let Some((_, held)) = self.lock().get_mut(name) {
            *held = (*held).max(epoch);
        }
    }

    /// The epoch for which all of them hold; `None` where there are none.
    pub(crate) fn all_hold(&self) -> Option<Epoch> {
        self.lock().values().map(|(_, held)| *held).min()
    }
}

impl Drop for RouterSeat {
    fn drop(&mut self) {
        let mut known = self.routers.lock();
        if let Some((streams, _)) = known.get_mut(&self.name) {
            *streams -= 1;
            if *streams == 0 {
                known.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_hold_when_the_last_one_does_or_leaves() {
        let routers = Arc::new(Routers::default());
        assert_eq!(routers.all_hold(), None);
        let (a, b) = (routers.join("a").expect("room"), routers.join("b").expect("room"));
        assert_eq!(routers.all_hold(), Some(Epoch(0)));
        routers.holds("a", Epoch(2));
        assert_eq!(routers.all_hold(), Some(Epoch(0)), "b does not");
        routers.holds("nobody", Epoch(9));
        drop(b);
        assert_eq!(routers.all_hold(), Some(Epoch(2)));
        drop(a);
        assert_eq!(routers.all_hold(), None);
    }
}
