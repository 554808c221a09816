//! The one call of a node that is no member: to join, or to have its own cluster follow this one.

use super::frame::{self, Head, PROTOCOL};
use super::link::{DIAL_TIME_MAX, greet};
use super::{Connection, RequestKind, socket};
use crate::pki;
use model::Trouble;
use model::error::exit;
use rustls_pki_types::ServerName;
use std::time::{Duration, Instant};
use tokio_rustls::TlsConnector;

/// Asks the keepers at `addresses`, one after the other, to let this node join. Trusts only servers whose certificate
/// is signed by the CA with the hash `ca_sha256`. An answer or a refusal of a keeper ends the search; keepers that are
/// not reached, or cannot reach a majority, do not. Asking two of them is harmless, because the same key gets the same
/// answer.
pub async fn call_as_stranger(
    addresses: &[String],
    ca_sha256: &str,
    kind: RequestKind,
    body: Vec<u8>,
    timeout: Duration,
) -> Result<Vec<u8>, Trouble> {
    let request = Head::Request { id: 1, kind, timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX) };
    let frame = frame::encode(&request, &body);
    if frame.len() > frame::STRANGER_FRAME_BYTES_MAX {
        return Err(Trouble::request_too_large(
            format!("the request to join has {} bytes, {} are allowed", frame.len(), frame::STRANGER_FRAME_BYTES_MAX),
            "shorten the names and addresses in the node file",
        ));
    }
    let begun = Instant::now();
    let mut worst: Option<Trouble> = None;
    for address in addresses {
        let left = timeout.saturating_sub(begun.elapsed());
        let asked = tokio::time::timeout(left, ask(address, ca_sha256, &frame)).await;
        let trouble = match asked {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(Refusal::Final(trouble))) => return Err(trouble),
            Ok(Err(Refusal::Here(trouble))) => trouble,
            Err(_) => Trouble::unreachable(
                format!("the keeper at {address} did not answer within {} ms", timeout.as_millis()),
                "check that a majority of the cluster's keepers run, then join again with the same token",
            ),
        };
        // A certificate that does not fit says more than an address that nobody answers.
        if worst.as_ref().is_none_or(|worst| worst.exit == exit::UNREACHABLE) {
            worst = Some(trouble);
        }
    }
    Err(worst.unwrap_or_else(|| {
        Trouble::token_refused("the token names no address", "make a new one with `stemma token create`")
    }))
}

enum Refusal {
    /// Another keeper would say the same.
    Final(Trouble),
    /// Another keeper may do better.
    Here(Trouble),
}

async fn ask(address: &str, ca_sha256: &str, frame: &[u8]) -> Result<Vec<u8>, Refusal> {
    let whom = format!("the keeper at {address}");
    let dialled = async {
        let tcp = socket::connect(address).await?;
        let connector = TlsConnector::from(pki::pinned_client(ca_sha256));
        // The verifier goes by the CA; which node answers does not matter.
        let name = ServerName::try_from("join.stemma.internal").expect("a DNS name");
        let tls = connector.connect(name, tcp).await.map_err(|error| pki::handshake_trouble(&whom, &error))?;
        let mut connection = Connection::Client(tls);
        greet(&mut connection, &Head::Hello { protocol: PROTOCOL, node: None, cluster: None }, &whom).await?;
        Ok(connection)
    };
    let mut connection = match tokio::time::timeout(DIAL_TIME_MAX, dialled).await {
        Ok(connection) => connection.map_err(Refusal::Here)?,
        Err(_) => {
            let trouble = Trouble::unreachable(format!("{whom} does not greet"), "look at the log of its keeper");
            return Err(Refusal::Here(trouble));
        }
    };
    let lost = |error: std::io::Error| {
        let reason = format!("{whom} closed the connection before it answered");
        let hint = "join again with the same token: what was begun is completed";
        Refusal::Here(Trouble::unreachable(reason, hint).because(error))
    };
    frame::write(&mut connection, frame).await.map_err(lost)?;
    let mut buffer = Vec::new();
    frame::read(&mut connection, model::limits::FRAME_BYTES_MAX, &mut buffer).await.map_err(lost)?;
    match frame::decode(&buffer).map_err(lost)? {
        (Head::Answer { id: 1 }, body) => Ok(body.to_vec()),
        (Head::Failed { id: 1, trouble }, _) => {
            let trouble = Trouble::from(trouble);
            let passing = matches!(trouble.exit, exit::UNREACHABLE | exit::UNKNOWN | exit::CONFLICT);
            Err(if passing { Refusal::Here(trouble) } else { Refusal::Final(trouble) })
        }
        (head, _) => Err(lost(frame::bad(format!("a frame out of place: {head:?}")))),
    }
}
