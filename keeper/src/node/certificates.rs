//! Certificates are renewed before they end and rotated when asked, without a restart.
//!
//! The CA's key is in the cluster's secrets, which every member holds, so a node signs for itself; what binds a key to
//! a member is the cluster's state. A new key is announced there before it is used, and the old one is dropped there
//! only after it is out of use: killed at any point, the node still has a key that the others accept.

use super::Keeper;
use crate::clock;
use crate::enrol::{self, CERTIFICATE_LIFE};
use crate::files;
use crate::identity::{IdentityContent, IdentityFiles};
use crate::pki;
use model::{ClusterState, Member, NodeId, Trouble};
use std::sync::Arc;
use std::time::Duration;

/// How often the ends of certificates are looked at.
const INTERVAL: Duration = Duration::from_secs(30);

/// Until the keeper stops: takes over new CAs, and renews when a third of the life is left.
pub(super) async fn keep_certificates(keeper: Arc<Keeper>) {
    let mut secrets = keeper.store.secret_changes();
    let mut states = keeper.store.changes();
    loop {
        if let Err(trouble) = keep(&keeper).await {
            tracing::warn!(%trouble, hint = trouble.hint, "certificate not renewed");
        }
        tokio::select! {
            () = keeper.stop.cancelled() => return,
            changed = secrets.changed() => if changed.is_err() { return },
            changed = states.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

async fn keep(keeper: &Keeper) -> Result<(), Trouble> {
    let (Some(secrets), Some(state)) = (keeper.store.secrets(), keeper.store.state()) else { return Ok(()) };
    let files = IdentityFiles { directory: keeper.config.identity_dir() };
    let content = files.load()?;
    let fingerprint = keeper.tls.own().key_fingerprint;
    if let Some(member) = state.value.members.get(&keeper.identity.node)
        && member.next_key_fingerprint.as_deref() == Some(fingerprint.as_str())
    {
        // A rotation was cut off after the new key was in place: finish it.
        bind(keeper, fingerprint, true).await?;
    }
    obey_order(keeper, &state.value).await?;
    if content.ca_pem != secrets.value.ca_certificates {
        files.replace_certificate(&content.certificate_pem, &secrets.value.ca_certificates)?;
        take_up(keeper)?;
    }
    let left = keeper.tls.expires_at().millis_since(clock::wall());
    if left < (CERTIFICATE_LIFE.0 / 3) as i64
        && let Some(member) = state.value.members.get(&keeper.identity.node)
    {
        let csr = pki::csr_for_key(&content.key_pem, &keeper.config.name)?;
        let certificate = enrol::certify(&secrets.value, &keeper.identity.cluster_id, member, &csr)?;
        files.replace_certificate(&certificate, &secrets.value.ca_certificates)?;
        take_up(keeper)?;
        tracing::info!("certificate renewed");
    }
    Ok(())
}

/// Makes a new key and certificate if someone ordered it and this node has not obeyed yet. Noted afterwards: a keeper
/// killed in between rotates twice, which harms nobody.
async fn obey_order(keeper: &Keeper, state: &ClusterState) -> Result<(), Trouble> {
    let ordered = state.members.get(&keeper.identity.node).map_or(0, |member| member.certificate_order);
    let path = keeper.config.state_dir.join("certificate.order");
    let obeyed = files::read_private(&path)?
        .and_then(|text| String::from_utf8_lossy(&text).trim().parse::<u64>().ok())
        .unwrap_or(0);
    if ordered <= obeyed {
        return Ok(());
    }
    rotate(keeper).await?;
    files::write_private(&path, ordered.to_string().as_bytes())
}

/// A new key and certificate for this node.
async fn rotate(keeper: &Keeper) -> Result<(), Trouble> {
    let Some(secrets) = keeper.store.secrets() else {
        return Err(Trouble::no_quorum("the cluster's secrets are not known here yet", "try again in a moment"));
    };
    let (key_pem, csr_pem) = pki::make_key_and_csr(&keeper.config.name);
    let fingerprint = pki::key_fingerprint_of_csr(&csr_pem)?;
    let member = bind(keeper, fingerprint.clone(), false).await?;
    failpoint::pass("rotate.announced");
    let certificate_pem = enrol::certify(&secrets.value, &keeper.identity.cluster_id, &member, &csr_pem)?;
    let files = IdentityFiles { directory: keeper.config.identity_dir() };
    let content = files.load()?;
    let ca_pem = secrets.value.ca_certificates.clone();
    files.write(&IdentityContent { identity: content.identity, key_pem, certificate_pem, ca_pem })?;
    failpoint::pass("rotate.files-written");
    take_up(keeper)?;
    failpoint::pass("rotate.taken-up");
    bind(keeper, fingerprint.clone(), true).await?;
    failpoint::pass("rotate.bound");
    tracing::info!(key = &fingerprint[..16], "new key and certificate in use");
    Ok(())
}

/// Announces a key for this node, or, when it is in use, makes it the only one.
async fn bind(keeper: &Keeper, fingerprint: String, only: bool) -> Result<Member, Trouble> {
    let me = keeper.identity.node;
    keeper
        .store
        .update(|state| {
            let (next, member) = with_key(state, me, &fingerprint, only)?;
            Ok((Some(next), member))
        })
        .await
}

fn with_key(state: &ClusterState, me: NodeId, key: &str, only: bool) -> Result<(ClusterState, Member), Trouble> {
    let mut next = state.clone();
    let Some(member) = next.members.get_mut(&me) else {
        return Err(Trouble::unknown_node("this node is not a member any more", "join it again with a new token"));
    };
    if only {
        member.key_fingerprint = key.to_owned();
        member.next_key_fingerprint = None;
    } else {
        member.next_key_fingerprint = Some(key.to_owned());
    }
    let member = member.clone();
    Ok((next, member))
}

fn take_up(keeper: &Keeper) -> Result<(), Trouble> {
    keeper.tls.reload()?;
    // The server reads its copies on the driver's next turn.
    keeper.local.renew_server_files();
    Ok(())
}
