//! The HTTP face of a node: the Patroni-compatible API, the native API under `/v1`, and `/metrics`.
//!
//! Everything is answered from the one judged `ClusterStatus` and this node's own newest sample, both handed over by a
//! `Backend`; nothing here touches a database, waits for another node, or judges lag anew. Only commands travel on.

mod events;
mod failover_metrics;
mod follow;
pub mod health;
pub mod metrics;
mod patroni;
mod primacy;
pub mod problem;
mod replication;
mod request;
mod server;
mod v1;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use model::{Actor, ClusterState, ClusterStatus, Command, Epoch, Millis, NodeName, NodeSample, Outcome, Trouble};
use std::sync::Arc;

pub use request::Query;
pub use server::{Limits, serve, serve_with};

/// What the console asks of the keeper behind it.
pub trait Backend: Send + Sync + 'static {
    /// The newest judged view of the cluster.
    fn status(&self) -> Arc<ClusterStatus>;
    /// The newest known cluster state; `None` until the first one was read.
    fn state(&self) -> Option<Arc<ClusterState>>;
    /// This node's own newest sample.
    fn sample(&self) -> Option<Arc<NodeSample>>;
    /// The node that answers.
    fn node(&self) -> NodeName;
    /// Time since the keeper's loop last turned, and so the age of `status` and `sample`.
    fn liveness(&self) -> Millis;
    /// Wakes at every change of `status` or `state`, several changes at once being one; ends with the keeper.
    fn changes(&self) -> BoxStream<'static, ()>;
    /// A router follows this node's events from now on, until what is returned is dropped.
    fn router_joins(&self, _name: &str) -> Option<Box<dyn Send>> {
        None
    }
    /// A router that follows sends nothing new to the primary before this epoch, and has nothing open there.
    fn router_holds(&self, _name: &str, _epoch: Epoch) {}
    /// Metrics of what else runs in this process, as Prometheus text.
    fn more_metrics(&self) -> String {
        String::new()
    }
    /// Carries out a command, or only says what it would do.
    fn command(&self, command: Command, actor: Actor, dry_run: bool) -> BoxFuture<'_, Result<Outcome, Trouble>>;
    /// The name of who holds this bearer token; `ST8003` if nobody does.
    fn authorise(&self, bearer: Option<&str>) -> Result<String, Trouble>;
}

/// What every handler gets.
pub(crate) type Shared = Arc<dyn Backend>;

/// The whole HTTP interface over a backend.
pub fn router(backend: Arc<dyn Backend>) -> axum::Router {
    server::assemble(backend, &Limits::default())
}

/// The OpenAPI document of everything that `router` answers.
pub fn openapi() -> utoipa::openapi::OpenApi {
    server::routes().into_openapi()
}
