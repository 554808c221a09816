//! The floating address of this node: on its interface exactly while its server serves as the settled primary and a
//! majority of the keepers grants that. The same thread that guards the lease looks after it, and its watcher takes it off
//! when the keeper hangs.

use super::Council;
use crate::local::Local;
use crate::store::Store;
use adapters::address::{Failed, Floating};
use model::observe::OutsideTrouble;
use model::{Millis, Moment};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Pauses between announcements after the address came: one may be lost.
const ANNOUNCE_AFTER: [Millis; 3] = [Millis(200), Millis(1_000), Millis(5_000)];
/// From then on it is told, and put on the interface again should it be gone, so often.
const AGAIN_AFTER: Millis = Millis(30_000);

/// See the module.
pub(crate) struct FloatingAddress {
    place: Floating,
    council: Arc<Council>,
    store: Store,
    local: Arc<Local>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// It is on the interface, as far as this keeper knows; nothing is known at first.
    held: Option<bool>,
    /// The server is being stopped: it does not come back before that has shown.
    released: bool,
    announced: usize,
    again_at: Moment,
    failed: Option<Failed>,
}

impl FloatingAddress {
    pub(crate) fn new(place: Floating, council: Arc<Council>, store: Store, local: Arc<Local>) -> FloatingAddress {
        FloatingAddress { place, council, store, local, inner: Mutex::default() }
    }

    pub(crate) fn place(&self) -> &Floating {
        &self.place
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks after the address; says until when it may be here, for the watcher. `Err`: nothing is known yet.
    pub(crate) fn tick(&self, now: Moment) -> Result<Option<Moment>, ()> {
        let state = self.store.state().ok_or(())?;
        let until = self.council.address_right(&state.value, now).ok_or(())?;
        let mut inner = self.lock();
        match until {
            None => {
                inner.released = false;
                if inner.held != Some(false) {
                    let removed = self.place.remove();
                    inner.held = removed.is_ok().then_some(false);
                    self.note(&mut inner, removed.err());
                }
                Ok(None)
            }
            Some(_) if inner.released => Ok(None),
            Some(until) => {
                self.keep(&mut inner, now);
                Ok(Some(until))
            }
        }
    }

    fn keep(&self, inner: &mut Inner, now: Moment) {
        let new = inner.held != Some(true);
        if !new && now < inner.again_at {
            return;
        }
        let done = self.place.add().and_then(|()| self.place.announce());
        if new && done.is_ok() {
            tracing::info!(address = %self.place, "the floating address is here");
            inner.announced = 0;
        }
        inner.held = done.is_ok().then_some(true);
        inner.again_at = now.plus(ANNOUNCE_AFTER.get(inner.announced).copied().unwrap_or(AGAIN_AFTER));
        inner.announced += 1;
        self.note(inner, done.err());
    }

    /// Takes the address off, before the server stops serving.
    pub(crate) fn release(&self) {
        let mut inner = self.lock();
        inner.released = true;
        if inner.held == Some(false) {
            return;
        }
        let removed = self.place.remove();
        inner.held = removed.is_ok().then_some(false);
        self.note(&mut inner, removed.err());
    }

    fn note(&self, inner: &mut Inner, failed: Option<Failed>) {
        if inner.failed == failed {
            return;
        }
        if let Some(failed) = &failed {
            tracing::error!(%failed, "the floating address");
        }
        let trouble = failed.as_ref().map(|failed| OutsideTrouble {
            code: "ST2313".to_owned(),
            what: format!("the floating address {} is not as it should be", self.place.address),
            cause: failed.to_string(),
            next: "see [floating_ip] in the node file; a keeper that is not root needs AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW"
                .to_owned(),
        });
        self.local.set_outside("floating-ip", trouble);
        inner.failed = failed;
    }
}
