//! Ends the server when the lease has ended that allows it to acknowledge commits alone. On a thread of its own, so that
//! it acts on time whatever the runtime is busy with. A watcher, a process of its own, is told until when it may go on, for
//! the case that the keeper as a whole does not act.

use super::Council;
use super::council::ServerRight;
use super::floating::FloatingAddress;
use super::watcher::Watcher;
use crate::clock;
use crate::local::Local;
use postgres::ServerSpec;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// How often it is looked; a small part of the lease's margin.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// How long the thread rests where nothing needs a lease; a lease to enforce wakes it, the end of the keeper does not.
const IDLE_INTERVAL: Duration = Duration::from_millis(100);
/// How long killing everything may take before it is told, and begun again.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// Starts the thread; it ends with `stop`, and what is returned then: a keeper must not be gone before its watcher is
/// dismissed, which would take that for a death.
pub(crate) fn start(
    council: Arc<Council>,
    local: Arc<Local>,
    spec: ServerSpec,
    floating: Option<Arc<FloatingAddress>>,
    stop: CancellationToken,
) -> oneshot::Receiver<()> {
    let (ended, end) = oneshot::channel();
    let guard = move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().build() else {
            tracing::error!("the lease is not guarded: no runtime");
            return;
        };
        let mut watcher = Watcher::new(&spec.data_dir, floating.as_ref().map(|it| it.place().clone()));
        while !stop.is_cancelled() {
            let now = clock::now();
            clock::attentive_since(now);
            match floating.as_ref().map_or(Ok(None), |floating| floating.tick(now)) {
                Ok(address) => watcher.tell(council.server_right(now), address),
                // What an earlier keeper told its watcher holds on.
                Err(()) => watcher.tell(ServerRight::Unknown, None),
            }
            if council.must_fence(clock::now()) && !postgres::server_processes(&spec.data_dir).is_empty() {
                if let Some(floating) = &floating {
                    floating.release();
                }
                tracing::warn!("the lease has ended; killing every process of the database server");
                match runtime.block_on(postgres::kill_everything(&spec, KILL_DEADLINE)) {
                    Ok(killed) => tracing::info!(killed, "the server's processes are gone"),
                    Err(trouble) => tracing::error!(%trouble, hint = trouble.hint, "the server is not fenced yet"),
                }
                local.drive_now.notify_one();
            }
            // The address has rights of its own.
            if floating.is_none() && council.server_right(clock::now()) == ServerRight::Free {
                council.wait_for_duty(IDLE_INTERVAL);
            } else {
                std::thread::sleep(LOOK_INTERVAL);
            }
        }
        watcher.dismiss();
        let _ = ended.send(());
    };
    if let Err(error) = std::thread::Builder::new().name("fence".into()).spawn(guard) {
        tracing::error!(%error, "the lease is not guarded");
    }
    end
}
