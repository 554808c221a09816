//! Waiting for a condition with a deadline.

use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;

/// How long anything may take before a test fails. Generous: machines that run tests are busy.
pub const DEADLINE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Asks until the answer is `Ok`; the last refusal is in the panic.
pub async fn wait_until<T, F>(what: &str, deadline: Duration, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    let end = Instant::now() + deadline;
    loop {
        let last = match ask().await {
            Ok(found) => return found,
            Err(last) => last,
        };
        assert!(Instant::now() < end, "{what}: not within {} s; last: {last}", deadline.as_secs());
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// `wait_until` with the usual deadline.
pub async fn wait_for<T, F>(what: &str, ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, String>>,
{
    wait_until(what, DEADLINE, ask).await
}
