//! Which server the next request goes to.

use super::{Session, Turn};
use crate::exchange;
use crate::pool::{Pool, Purpose};
use std::rc::Rc;

impl Session {
    /// The pool that the next statement is to be served from.
    fn target(&mut self) -> Option<Rc<Pool>> {
        let generation = self.worker.generation();
        if let Some((known, pool)) = &self.pool
            && *known == generation
        {
            return Some(pool.clone());
        }
        let pool = self.worker.primary_pool(&self.entry.database, &self.entry.user)?;
        self.pool = Some((generation, pool.clone()));
        Some(pool)
    }

    /// Takes a server for what the client sent. Whether there is one now; otherwise the bytes are kept.
    pub(super) fn take_server(&mut self, input: &[u8]) -> Result<bool, Turn> {
        match exchange::first_message(input) {
            Err(malformed) => return Err(Turn::Malformed(malformed.0)),
            Ok(Some(b'X')) => return Err(Turn::End),
            Ok(None) => {
                // Nobody waits for a slow sender: a server is taken once there is something for it.
                self.inbox.extend_from_slice(input);
                self.unread = false;
                return Ok(false);
            }
            Ok(Some(_)) => {}
        }
        let free = match self.pause_until {
            Some(_) => None,
            None => self.target().and_then(|pool| pool.take()),
        };
        match free {
            Some(server) => {
                self.attach(server);
                Ok(true)
            }
            None => {
                self.inbox.extend_from_slice(input);
                self.unread = true;
                Err(Turn::Acquire)
            }
        }
    }

    /// Whether the attached server belongs to a primacy that is over. Nothing may be written there any more.
    pub(super) fn server_is_of_the_past(&self) -> bool {
        let Some(server) = &self.server else { return false };
        match server.slot.pool().key.purpose {
            Purpose::Write(epoch) => epoch != self.worker.topology().epoch,
            Purpose::Read => false,
        }
    }
}
