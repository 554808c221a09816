//! Asking replicas how far they are while a read waits for one of them. What the nodes tell comes every few hundred
//! milliseconds; a replica that is asked is found to have caught up within a few.

use crate::account::Account;
use crate::obtain;
use crate::reads::{self, Reading};
use crate::server;
use crate::worker::Worker;
use model::{Lsn, NodeId};
use routing::Level;
use routing::token::Point;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// Between two questions to one replica.
const AGAIN_AFTER: Duration = Duration::from_millis(2);
/// How long a session whose replica has just gone waits before the primary serves it, while no other replica has come as far.
const SETTLE_MAX: Duration = Duration::from_secs(1);
/// What a replica is asked. Visible is what was replayed: the position is told only afterwards. But not always: a server
/// that has just started may hide commits that it has applied (`model::observe::ServerFacts::shows_replayed`), and then it
/// tells nothing. After a later checkpoint this asks for more than is needed, while a transaction runs for long; then what
/// the nodes tell is waited for.
pub const REPLAYED_SQL: &str = "SELECT CASE WHEN pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())\
    ::pg_catalog.text::pg_catalog.numeric >= pg_catalog.split_part(c.next_xid, ':', 1)::pg_catalog.numeric * 4294967296 \
    + pg_catalog.split_part(c.next_xid, ':', 2)::pg_catalog.numeric THEN pg_catalog.pg_last_wal_replay_lsn() END \
    FROM pg_catalog.pg_control_checkpoint() AS c";

/// Counts a read that waits, for as long as it does.
struct Waiting<'w>(&'w Worker);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.reads.borrow_mut().waiting -= 1;
    }
}

/// Waits until a replica may serve the session's next read, at most as long as reads wait for that. In vain: for a moment
/// its reads go to the primary without waiting.
pub async fn caught_up(worker: &Rc<Worker>, account: &Rc<Account>, reading: &mut Reading, level: Level) {
    let deadline = Instant::now() + worker.config().read_wait;
    caught_up_by(worker, account, reading, level, deadline).await;
}

/// Waits until another replica than those that failed `reading`, by which a failover goes, has replayed all that the
/// primary has written by now, at most `SETTLE_MAX`; that position. Such a replica shows all that the session has seen. Where
/// one acknowledgement is enough, so does the primary by then.
pub async fn settled(worker: &Rc<Worker>, account: &Rc<Account>, reading: &Reading) -> Option<Point> {
    let deadline = Instant::now() + SETTLE_MAX;
    let epoch = worker.topology().epoch;
    let ack = worker.reads.borrow_mut().acknowledged();
    // In a task of its own: others wait for the same answer, so the question must not be dropped with this wait.
    let (asking, account_of) = (worker.clone(), account.clone());
    let asked = tokio::task::spawn_local(async move {
        reads::position(&asking, &account_of.database, &account_of.user, ack).await;
    });
    let _ = timeout_at(deadline.into(), asked).await;
    let point = worker.reads.borrow().position_behind(ack)?;
    // A later primary shows all that it was promoted with.
    let replaced = async {
        while worker.topology().epoch == epoch {
            worker.news.notified().await;
        }
    };
    let mut behind = *reading;
    worker.reads.borrow().settled(&mut behind, Some(point));
    tokio::select! {
        found = caught_up_by(worker, account, &mut behind, Level::Session, deadline) => found.then_some(point),
        () = replaced => None,
    }
}

/// Whether a replica may serve the read in time.
async fn caught_up_by(
    worker: &Rc<Worker>,
    account: &Rc<Account>,
    reading: &mut Reading,
    level: Level,
    deadline: Instant,
) -> bool {
    let config = worker.config();
    let deadline = deadline.into();
    worker.reads.borrow_mut().waiting += 1;
    let _waiting = Waiting(worker);
    let unasked = worker.reads.borrow_mut().unasked();
    for node in unasked {
        tokio::task::spawn_local(ask_again_and_again(worker.clone(), account.clone(), node));
    }
    loop {
        let mut heard = std::pin::pin!(worker.positions.notified());
        heard.as_mut().enable();
        if worker.reads.borrow_mut().would_serve(reading, &config, level) {
            return true;
        }
        if timeout_at(deadline, heard).await.is_err() {
            worker.reads.borrow().give_up(reading, level);
            return false;
        }
    }
}

/// Asks one replica for as long as somebody waits.
async fn ask_again_and_again(worker: Rc<Worker>, account: Rc<Account>, node: NodeId) {
    while worker.reads.borrow().waiting > 0 {
        let Some(known) = worker.reads.borrow().replica(node) else { break };
        let asked = Instant::now();
        let limit = (asked + worker.config().connect_timeout).into();
        let Ok(Some(replayed)) = timeout_at(limit, ask(&worker, &account, node)).await else { break };
        worker.reads.borrow_mut().probed(&known, asked, replayed);
        worker.positions.notify_waiters();
        tokio::time::sleep(AGAIN_AFTER).await;
    }
    worker.reads.borrow_mut().asked_enough(node);
}

async fn ask(worker: &Rc<Worker>, account: &Account, node: NodeId) -> Option<Lsn> {
    let pool = account.replica(worker, node)?;
    let mut server = obtain::from_pool(worker, &pool).await.ok()?;
    let rows = server::ask(&mut server, REPLAYED_SQL).await.ok()?;
    worker.put_back(server);
    rows.first()?.first()?.as_deref()?.parse().ok()
}
