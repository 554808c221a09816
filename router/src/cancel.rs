//! Cancel requests: a client's own key leads to the server that runs its statement now, and to no other.

use crate::server;
use crate::session::ClientEntry;
use crate::worker::Worker;
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wire::build;

/// Asks the client's server to cancel. Until that is done the server is given to nobody else, so that a cancel that
/// comes late cannot hit another client's statement.
pub async fn forward(worker: Rc<Worker>, entry: Rc<ClientEntry>) {
    let Some(key) = entry.running.borrow().clone() else { return };
    entry.cancels.set(entry.cancels.get() + 1);
    let config = worker.config();
    let sent = tokio::time::timeout(config.connect_timeout, async {
        let mut stream = server::open(&key.node, &config.server_tls).await?;
        let mut out = Vec::new();
        build::cancel_request(&mut out, key.pid, &key.secret);
        stream.write_all(&out).await?;
        // The server has acted when it closes.
        let _ = stream.read(&mut [0; 16]).await?;
        std::io::Result::Ok(())
    });
    if let Ok(Err(error)) = sent.await {
        tracing::warn!(node = %key.node, %error, "a cancel request could not be forwarded");
    }
    entry.cancels.set(entry.cancels.get() - 1);
    entry.wake();
}
