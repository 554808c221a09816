//! The proof: every acknowledged row is on every node.

use super::load::{connect, describe};
use crate::sandbox::layout::Layout;
use model::{Lsn, Trouble};
use std::collections::HashSet;
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::Client;

/// How long replicas may take to apply what the primary has written.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Pause before a node that lacks something is asked again.
const ASK_AGAIN_PAUSE: Duration = Duration::from_secs(1);
/// Missing ids that are named.
const NAMED_MAX: usize = 5;

/// What one node holds of the acknowledged rows.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NodeProof {
    /// Its name.
    pub name: String,
    /// Acknowledged rows found there.
    pub found: u64,
    /// Acknowledged rows not found there.
    pub missing: u64,
    /// Some of them.
    pub first_missing: Vec<i64>,
    /// Why it could not be asked.
    pub error: Option<String>,
}

/// What all nodes hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Rows that the server acknowledged.
    pub acknowledged: u64,
    /// Writes without an answer.
    pub unknown: u64,
    /// Per node.
    pub nodes: Vec<NodeProof>,
    /// Acknowledged rows that the primary does not have: they are gone, whatever others hold.
    pub lost: u64,
}

impl Proof {
    /// Whether something was written and all of it is everywhere.
    pub fn holds(&self) -> bool {
        self.acknowledged > 0 && self.nodes.iter().all(|node| node.missing == 0 && node.error.is_none())
    }
}

/// Compares what was acknowledged with what every node has.
pub async fn prove(
    layout: &Layout,
    primary: Option<String>,
    acknowledged: Vec<i64>,
    unknown: u64,
) -> Result<Proof, Trouble> {
    let primary = layout.nodes.iter().find(|node| Some(node.name.as_str()) == primary.as_deref());
    let uri = primary.and_then(|node| node.uri("postgres"));
    let uri =
        uri.ok_or_else(|| Trouble::primary_down("there is no primary to compare with", "look at: stemma status"))?;
    let position = written(&uri)
        .await
        .map_err(|error| Trouble::sql("the primary does not tell its position", "see the cause").because(error))?;
    let deadline = Instant::now() + CATCH_UP_TIMEOUT;
    let mut nodes = Vec::new();
    let mut lost = 0;
    for node in layout.nodes.iter().filter(|node| !node.witness) {
        let is_primary = Some(node.name.as_str()) == primary.map(|primary| primary.name.as_str());
        let (name, uri) = (node.name.to_string(), node.uri("postgres").unwrap_or_default());
        let proof = prove_node(&name, &uri, position, &acknowledged, is_primary, deadline).await;
        lost += if is_primary { proof.missing } else { 0 };
        nodes.push(proof);
    }
    Ok(Proof { acknowledged: acknowledged.len() as u64, unknown, nodes, lost })
}

/// What one node holds. A node that was killed, frozen or rewound may come back until `deadline`; the answer of the
/// primary is final.
async fn prove_node(
    name: &str,
    uri: &str,
    position: Lsn,
    acknowledged: &[i64],
    is_primary: bool,
    deadline: Instant,
) -> NodeProof {
    loop {
        let proof = match rows(uri, position, deadline).await {
            Ok(rows) => compare(name.to_owned(), acknowledged, &rows),
            Err(error) => NodeProof {
                name: name.to_owned(),
                found: 0,
                missing: acknowledged.len() as u64,
                first_missing: Vec::new(),
                error: Some(error),
            },
        };
        let whole = proof.missing == 0 && proof.error.is_none();
        if whole || is_primary || Instant::now() >= deadline {
            return proof;
        }
        tokio::time::sleep(ASK_AGAIN_PAUSE).await;
    }
}

fn compare(name: String, acknowledged: &[i64], rows: &HashSet<i64>) -> NodeProof {
    let missing: Vec<i64> = acknowledged.iter().copied().filter(|id| !rows.contains(id)).collect();
    NodeProof {
        name,
        found: (acknowledged.len() - missing.len()) as u64,
        missing: missing.len() as u64,
        first_missing: missing.into_iter().take(NAMED_MAX).collect(),
        error: None,
    }
}

async fn position(client: &Client, sql: &str) -> Result<Option<Lsn>, String> {
    let row = client.query_one(sql, &[]).await.map_err(|error| describe(&error))?;
    let text: Option<String> = row.get(0);
    text.map(|text| text.parse().map_err(|bad: model::units::BadLsn| bad.to_string())).transpose()
}

async fn written(uri: &str) -> Result<Lsn, String> {
    let client = connect(uri).await?;
    position(&client, "SELECT pg_current_wal_lsn()::text").await?.ok_or_else(|| "no position".to_owned())
}

/// All rows of a node, once it has applied everything up to `wanted`.
async fn rows(uri: &str, wanted: Lsn, deadline: Instant) -> Result<HashSet<i64>, String> {
    let applied =
        "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text";
    let client = connect(uri).await?;
    loop {
        let reached = position(&client, applied).await?;
        if reached.is_some_and(|reached| reached >= wanted) {
            break;
        }
        if Instant::now() >= deadline {
            return Err(format!(
                "applied only up to {} of {wanted}",
                reached.map_or("nothing".to_owned(), |lsn| lsn.to_string())
            ));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let rows = client.query("SELECT id FROM demo", &[]).await.map_err(|error| describe(&error))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_without_an_acknowledgement_do_no_harm_and_missing_ones_are_named() {
        let proof = compare("n2".to_owned(), &[1, 2, 3], &HashSet::from([1, 3, 99]));
        assert_eq!((proof.found, proof.missing, proof.first_missing), (2, 1, vec![2]));
    }
}
