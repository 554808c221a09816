//! Letting another cluster follow this one: the certificate by which it logs in to this cluster's servers.

use crate::clock;
use crate::pki;
use crate::store::Store;
use cluster::follow::{self, FollowAnswer, FollowRequest};
use model::{Millis, Trouble};

/// Life of the certificate. Nobody renews it, since the clusters do not know each other's keepers; it is refused at
/// once when the following is ended, for the servers ask whether the cluster still follows.
const CERTIFICATE_LIFE: Millis = Millis::from_secs(5 * 365 * 86_400);

/// Answers a request to follow.
pub(super) async fn admit(store: &Store, body: &[u8]) -> Result<Vec<u8>, Trouble> {
    let mut request: FollowRequest = serde_json::from_slice(body).map_err(|error| {
        Trouble::bad_request("the request to follow was not understood", "are the versions alike?").because(error)
    })?;
    request.key_fingerprint = pki::key_fingerprint_of_csr(&request.csr_pem)?;
    let now = clock::wall();
    let (follower, state) = store
        .update(|state| {
            let (next, follower) = follow::register(state, &request, now)?;
            Ok(((next != *state).then(|| next.clone()), (follower, next)))
        })
        .await?;
    let Some(secrets) = store.secrets() else {
        return Err(Trouble::no_quorum("this node does not know the cluster's secrets yet", "try again in a moment"));
    };
    let secrets = &secrets.value;
    let (Some(system_id), Some(major)) = (state.identity.system_id, state.identity.major) else {
        return Err(Trouble::follow_refused("the cluster has no database yet", "start its first node: stemma run"));
    };
    tracing::info!(cluster = %follower.name, id = %follower.id, "a cluster may follow this one");
    let answer = FollowAnswer {
        follow: follow::introduce(&state, &follower, &secrets.name_salt),
        system_id,
        major,
        certificate_pem: pki::sign_follower(
            secrets,
            &state.identity.id,
            &request.csr_pem,
            &follower,
            CERTIFICATE_LIFE,
            now,
        )?,
        ca_pem: secrets.ca_certificates.clone(),
    };
    serde_json::to_vec(&answer)
        .map_err(|error| Trouble::internal("the answer to follow cannot be written", "").because(error))
}
