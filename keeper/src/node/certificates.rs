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
        bind(keeper, fingerprint).await?;
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
    // A rotation that failed half-way may have left a newer key in the files than in use: from here on it is one key.
    take_up(keeper)?;
    let in_use = keeper.tls.own().key_fingerprint;
    let (key_pem, csr_pem) = pki::make_key_and_csr(&keeper.config.name);
    let fingerprint = pki::key_fingerprint_of_csr(&csr_pem)?;
    let member = announce(keeper, &in_use, &fingerprint).await?;
    failpoint::pass("rotate.announced");
    let certificate_pem = enrol::certify(&secrets.value, &keeper.identity.cluster_id, &member, &csr_pem)?;
    let files = IdentityFiles { directory: keeper.config.identity_dir() };
    let content = files.load()?;
    let ca_pem = secrets.value.ca_certificates.clone();
    files.write(&IdentityContent { identity: content.identity, key_pem, certificate_pem, ca_pem })?;
    failpoint::pass("rotate.files-written");
    take_up(keeper)?;
    failpoint::pass("rotate.taken-up");
    bind(keeper, fingerprint.clone()).await?;
    failpoint::pass("rotate.bound");
    tracing::info!(key = &fingerprint[..16], "new key and certificate in use");
    Ok(())
}

/// Announces the key that is to follow the one in use.
async fn announce(keeper: &Keeper, in_use: &str, key: &str) -> Result<Member, Trouble> {
    let me = keeper.identity.node;
    keeper
        .store
        .update(|state| {
            let (next, member) = with_keys(state, me, |member| announced(member, in_use, key))?;
            Ok((Some(next), member))
        })
        .await
}

/// Makes a key that is in use the only one of this node.
async fn bind(keeper: &Keeper, key: String) -> Result<(), Trouble> {
    let me = keeper.identity.node;
    keeper.store.update(|state| Ok((Some(with_keys(state, me, |member| bound(member, &key))?.0), ()))).await
}

/// A second key may have been announced before, and be the one in use: a keeper that was killed before it could make it
/// the only one looks at its own copy of the state first, which may not have heard of that announcement yet. Were it
/// replaced here, nobody would accept the node again.
fn announced(member: &mut Member, in_use: &str, key: &str) {
    if member.next_key_fingerprint.as_deref() == Some(in_use) {
        member.key_fingerprint = in_use.to_owned();
    }
    member.next_key_fingerprint = Some(key.to_owned());
}

fn bound(member: &mut Member, key: &str) {
    member.key_fingerprint = key.to_owned();
    member.next_key_fingerprint = None;
}

fn with_keys(
    state: &ClusterState,
    me: NodeId,
    change: impl FnOnce(&mut Member),
) -> Result<(ClusterState, Member), Trouble> {
    let mut next = state.clone();
    let Some(member) = next.members.get_mut(&me) else {
        return Err(Trouble::unknown_node("this node is not a member any more", "join it again with a new token"));
    };
    change(member);
    let member = member.clone();
    Ok((next, member))
}

fn take_up(keeper: &Keeper) -> Result<(), Trouble> {
    keeper.tls.reload()?;
    // The server reads its copies on the driver's next turn.
    keeper.local.renew_server_files();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node with a key and one that was announced.
    fn member(next: Option<&str>) -> Member {
        Member { next_key_fingerprint: next.map(str::to_owned), ..crate::fixtures::member() }
    }

    #[test]
    fn the_key_in_use_is_accepted_at_every_moment_of_a_rotation() {
        // In order: announced, taken up, made the only one.
        let mut node = member(None);
        announced(&mut node, "old", "new");
        assert!(node.holds_key("old") && node.holds_key("new"));
        bound(&mut node, "new");
        assert!(node.holds_key("new") && !node.holds_key("old"), "the old one is worth nothing any more");
    }

    #[test]
    fn a_rotation_that_was_cut_off_with_the_new_key_in_use_may_begin_again() {
        // Killed before "new" was made the only one; its own copy of the state had not heard of "new" when it came back.
        let mut node = member(Some("new"));
        announced(&mut node, "new", "newer");
        assert!(node.holds_key("new") && node.holds_key("newer"), "{node:?}");
        // Killed before the files were written: "new" was never used.
        let mut node = member(Some("new"));
        announced(&mut node, "old", "newer");
        assert!(node.holds_key("old") && node.holds_key("newer") && !node.holds_key("new"), "{node:?}");
    }
}
