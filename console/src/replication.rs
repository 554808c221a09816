//! `GET /admin/replication/status`: who is the primary, and how far each replica trails it. For scripts and probes
//! that want nothing else.

use crate::Shared;
use axum::Json;
use axum::extract::State;
use model::status::{LinkStatus, NodeStatus, Verdict};
use model::{NodeName, Role};
use serde::Serialize;

/// The answer.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ReplicationStatus {
    /// `host:port` of the primary; null while none takes writes.
    primary: Option<String>,
    /// Its name; null with `primary`.
    #[schema(value_type = Option<String>)]
    primary_node: Option<NodeName>,
    /// All replicas, by name.
    replicas: Vec<ReplicaRow>,
    /// The cluster.
    cluster: String,
    /// How the cluster is.
    verdict: Verdict,
    /// The same in one sentence.
    sentence: String,
    /// The node that answers.
    #[schema(value_type = String)]
    observer: NodeName,
    /// Age of this view in milliseconds.
    observed_age_ms: u64,
}

/// One replica.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(crate) struct ReplicaRow {
    /// Name of the node.
    #[schema(value_type = String)]
    name: NodeName,
    /// Host of its database.
    host: String,
    /// Port of its database.
    port: Option<u16>,
    /// Bytes of the primary's log that it has not applied; null where unknown, never 0 for unknown.
    lag_bytes: Option<u64>,
    /// Age of its data in seconds; null where unknown.
    lag_seconds: Option<f64>,
    /// `streaming`, `catching_up` or `disconnected`.
    status: LinkStatus,
    /// Bytes of the primary's log that it has not received.
    receive_lag_bytes: Option<u64>,
    /// How `lag_seconds` was found.
    lag_method: String,
    /// `sync`, `potential` or `async`.
    sync: String,
    /// `hot`, `standby` or `delayed`.
    kind: String,
    /// Node that it streams from.
    #[schema(value_type = Option<String>)]
    upstream: Option<NodeName>,
    /// Whether all about it is as it should be.
    healthy: bool,
    /// The server's state in one word.
    server: String,
    /// Where the member is in its life.
    stage: String,
}

/// The primary and the lag of each replica.
#[utoipa::path(get, path = "/admin/replication/status", tag = "replication",
    responses((status = 200, body = ReplicationStatus)))]
pub(crate) async fn status(State(backend): State<Shared>) -> Json<ReplicationStatus> {
    let status = backend.status();
    let primary = status.primary.as_ref().filter(|_| status.primary_up);
    let primary = primary.and_then(|name| status.node(name.as_str()));
    let mut replicas: Vec<ReplicaRow> =
        status.nodes.iter().filter(|node| node.role == Role::Replica).map(row).collect();
    replicas.sort_by(|a, b| a.name.cmp(&b.name));
    Json(ReplicationStatus {
        primary: primary.map(|node| node.postgres_address.clone()),
        primary_node: primary.map(|node| node.name.clone()),
        replicas,
        cluster: status.cluster.clone(),
        verdict: status.verdict,
        sentence: status.sentence.clone(),
        observer: status.observer.clone(),
        observed_age_ms: backend.liveness().0,
    })
}

fn row(node: &NodeStatus) -> ReplicaRow {
    let (host, port) = node.postgres_address.rsplit_once(':').unwrap_or((&node.postgres_address, ""));
    let lag = node.lag.as_ref();
    ReplicaRow {
        name: node.name.clone(),
        host: host.to_owned(),
        port: port.parse().ok(),
        lag_bytes: lag.and_then(|lag| lag.apply_bytes),
        lag_seconds: lag.and_then(|lag| lag.seconds),
        // Nothing known of a link is no link.
        status: node.link.unwrap_or(LinkStatus::Disconnected),
        receive_lag_bytes: lag.and_then(|lag| lag.receive_bytes),
        lag_method: lag.map_or_else(|| "unknown".to_owned(), |lag| lag.method.clone()),
        sync: node.sync.clone(),
        kind: node.kind.as_str().to_owned(),
        upstream: node.upstream.clone(),
        healthy: node.healthy,
        server: node.server.clone(),
        stage: node.stage.clone(),
    }
}
