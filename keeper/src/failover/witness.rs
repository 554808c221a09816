//! A witness's part in a change of primary: it promises, counts, and writes shared steps that others leave undone.

use super::{Council, LedgerFile, OwnPart, shared_step};
use crate::clock;
use crate::store::Store;
use cluster::failover::Policy;
use cluster::failover::order::{self, Action, Own, Server, View};
use model::{NodeId, Trouble};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How often it looks when nothing happens, and while something does.
const PACE: Duration = Duration::from_millis(500);
const PACE_RESTLESS: Duration = Duration::from_millis(20);

/// See the module.
pub(crate) struct WitnessPart {
    me: NodeId,
    council: Arc<Council>,
    ledger: LedgerFile,
}

impl WitnessPart {
    /// Reads what was promised before.
    pub fn open(me: NodeId, state_dir: &Path, council: Arc<Council>) -> Result<WitnessPart, Trouble> {
        let ledger = LedgerFile::open(state_dir)?;
        council.promised(ledger.ledger().promised);
        Ok(WitnessPart { me, council, ledger })
    }

    /// How long to wait for the next look.
    pub fn pace(&self) -> Duration {
        if self.council.restless(clock::now()) { PACE_RESTLESS } else { PACE }
    }

    /// One look, and one action if there is one.
    pub async fn turn(&mut self, store: &Store) -> Result<(), Trouble> {
        let Some(versioned) = store.state() else { return Ok(()) };
        let (state, now) = (&versioned.value, clock::now());
        if !state.members.contains_key(&self.me) {
            return Ok(());
        }
        self.council.note_state(versioned.version, state, now);
        let promised = self.ledger.ledger().promised;
        self.council.publish(OwnPart { promised, ..OwnPart::default() });
        let own = Own {
            promised,
            server: Server::Stopped { in_order: true, as_primary: false },
            holds: None,
            recruited: None,
            promotion_ordered: false,
            lease: false,
            hand_over: false,
        };
        let others = self.council.others(state, None, now);
        let policy = Policy::of(state, clock::wall());
        let phase_age = self.council.phase_age(now);
        let view = View { me: self.me, state, own: &own, others: &others, phase_age, policy: &policy };
        match order::next(&view) {
            Some(Action::Promise(epoch)) => {
                tracing::info!(%epoch, "promised");
                if let Some(ledger) = self.ledger.ledger().promise(epoch) {
                    self.ledger.save(ledger)?;
                }
                self.council.publish(OwnPart { promised: epoch, ..OwnPart::default() });
                Ok(())
            }
            Some(action) if action.is_shared() => {
                tracing::info!(?action, "who is primary");
                shared_step::hasten(store, &self.council, &action, &others.alive);
                shared_step::write(store, versioned.version, &action, None).await
            }
            // Everything else is about a server.
            Some(_) | None => Ok(()),
        }
    }
}
