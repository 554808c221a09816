//! Asks the leader's server whether it lets anybody in, when its keeper has been quiet: a connection that stands proves
//! little, since the kernel keeps it open for a frozen or cut-off process.

use super::Council;
use crate::clock;
use crate::store::Store;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// How long the server may take to answer. On a network slower than this the streams themselves must tell.
const ANSWER_DEADLINE: Duration = Duration::from_millis(250);
/// How often it is looked at least whether somebody is quiet; another node may lead meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// How often a leader that is quiet is asked.
const ASK_INTERVAL: Duration = Duration::from_millis(50);
/// `SSLRequest` (PostgreSQL, "Message Formats"): answered with one byte by whatever process the postmaster forks.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Asks until `stop`.
pub(crate) async fn run(council: Arc<Council>, store: Store, stop: CancellationToken) {
    loop {
        if let Some(leader) = council.quiet_leader(clock::now()) {
            let address = store.state().and_then(|state| {
                let member = state.value.members.get(&leader)?;
                Some((member.postgres_host.clone(), member.postgres_port))
            });
            if let Some((host, port)) = address {
                let answers = tokio::time::timeout(ANSWER_DEADLINE, lets_in(&host, port)).await;
                council.note_answer(leader, matches!(answers, Ok(Ok(()))), clock::now());
                council.beat.notify_one();
            }
        }
        let rest = council.quiet_in(clock::now()).map_or(LOOK_INTERVAL, |left| left.duration().max(ASK_INTERVAL));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(rest.min(LOOK_INTERVAL)) => {}
        }
    }
}

async fn lets_in(host: &str, port: u16) -> std::io::Result<()> {
    let mut stream = TcpStream::connect((host, port)).await?;
    stream.write_all(&SSL_REQUEST).await?;
    stream.read_u8().await.map(|_| ())
}
