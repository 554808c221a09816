//! Finding out what became of a COMMIT whose answer was lost (F-12, 6.3): the primary is asked, once it is certain which
//! one that is. `routing::outcome` decides what its answer means.

use crate::account::Account;
use crate::obtain;
use crate::pool::Purpose;
use crate::server::{self, ConnectError, Server};
use crate::worker::Worker;
use routing::outcome::{Asked, InDoubt, Outcome, Says, outcome};
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;
use wire::backend;

/// Between two questions about a transaction that still runs, or that could not be asked about.
const AGAIN: Duration = Duration::from_millis(20);
/// Returns once everything written before it has been confirmed by the replicas that a commit waits for. A wait that is
/// cancelled ends well, so nothing may cancel it.
const CONFIRM_SQL: &str = "BEGIN; SET LOCAL statement_timeout = 0; SET LOCAL synchronous_commit = on; \
    SELECT pg_catalog.pg_logical_emit_message(true, 'stemma', ''); COMMIT";

/// What became of it. Waits for a primary as long as statements are held.
pub(super) async fn resolve(worker: &Rc<Worker>, account: &Account, doubt: &InDoubt) -> Outcome {
    let deadline = (Instant::now() + worker.config().hold_max).into();
    loop {
        match timeout_at(deadline, look(worker, account, doubt)).await {
            Ok(Some(Outcome::Running) | None) => {}
            Ok(Some(found)) => return found,
            Err(_) => return Outcome::Unknown("no primary could be asked in time"),
        }
        tokio::time::sleep(AGAIN).await;
        if Instant::now() >= deadline.into_std() {
            return Outcome::Unknown("no primary could tell in time");
        }
    }
}

/// One look; `None` where the primary could not be asked, or is another one by now.
async fn look(worker: &Rc<Worker>, account: &Account, doubt: &InDoubt) -> Option<Outcome> {
    let mut server = obtain::obtain(worker, || account.primary(worker)).await.ok()?;
    let Purpose::Write(epoch) = server.slot.pool().key.purpose else { return None };
    let says = says(&mut server, doubt.xid).await?;
    let topology = worker.topology();
    if topology.epoch != epoch {
        return None;
    }
    let asked = Asked { epoch, lineage: &topology.lineage, life: server.life.as_deref(), says };
    let found = match outcome(doubt, &asked) {
        Outcome::CommittedHere => {
            server::ask(&mut server, CONFIRM_SQL).await.ok()?;
            Outcome::Committed
        }
        other => other,
    };
    worker.put_back(server);
    Some(found)
}

async fn says(server: &mut Server, xid: u64) -> Option<Says> {
    let rows = match server::ask(server, &format!("SELECT pg_catalog.pg_xact_status('{xid}'::pg_catalog.xid8)")).await {
        Ok(rows) => rows,
        Err(ConnectError::Refused(body)) if backend::sqlstate(&body) == Some(b"22023") => return Some(Says::Future),
        Err(_) => return None,
    };
    match rows.first()?.first()?.as_deref() {
        Some("committed") => Some(Says::Committed),
        Some("aborted") => Some(Says::Aborted),
        Some("in progress") => Some(Says::InProgress),
        None => Some(Says::Forgotten),
        Some(_) => None,
    }
}
