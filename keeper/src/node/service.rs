//! What other keepers, and nodes that want to join, get from this one.

use super::Keeper;
use crate::clock;
use crate::enrol;
use crate::identity::NodeIdentity;
use crate::mesh::{Caller, Handler, Mesh, RequestKind};
use crate::observations::Observations;
use crate::pki::PeerIdentity;
use crate::store::{CLUSTER_KEY, SECRETS_KEY, Store};
use cluster::admission::{self, JoinAnswer, JoinRequest};
use cluster::failover::recruit::electors;
use cluster::settings;
use consensus::embedded::Embedded;
use consensus::{Consensus, Transport, WriteError};
use futures_util::future::BoxFuture;
use model::state::Stage;
use model::{ClusterId, ClusterState, Moment, NodeId, Settings, Trouble};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Answers requests from the mesh. Made before the store it answers from, because the store speaks through the mesh.
pub(super) struct Service {
    identity: NodeIdentity,
    observations: Arc<Observations>,
    embedded: OnceLock<Arc<Embedded>>,
    store: OnceLock<Store>,
}

impl Service {
    pub(super) fn new(identity: NodeIdentity, observations: Arc<Observations>) -> Service {
        Service { identity, observations, embedded: OnceLock::new(), store: OnceLock::new() }
    }
    pub(super) fn set_embedded(&self, embedded: Arc<Embedded>) {
        assert!(self.embedded.set(embedded).is_ok(), "the store is opened once");
    }
    pub(super) fn embedded(&self) -> &OnceLock<Arc<Embedded>> {
        &self.embedded
    }

    /// Keeps the mesh in step with the members from now on.
    pub(super) fn follow(self: &Arc<Self>, store: Store, mesh: Arc<Mesh>) {
        let me = self.identity.node;
        let mut states = store.changes();
        assert!(self.store.set(store).is_ok(), "the store is followed once");
        tokio::spawn(async move {
            loop {
                // In a statement of its own: the guard would live as long as the body, in which `admits` reads the
                // same channel, and with a writer waiting in between every thread of the runtime comes to stand.
                let state = states.borrow_and_update().clone();
                if let Some(state) = state {
                    let peers = state.value.members.values().filter(|member| member.id != me);
                    // Also asks `admits` anew for every connection.
                    mesh.set_peers(peers.map(|member| (member.id, member.peer_address.clone())).collect());
                }
                if states.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    async fn consensus(&self, from: NodeId, body: Vec<u8>) -> Result<Vec<u8>, Trouble> {
        match self.embedded.get() {
            Some(embedded) => Ok(embedded.handle(from, body).await),
            None => Err(Trouble::consensus("this node keeps no consensus log (yet)", "try again, or ask another node")),
        }
    }

    async fn join(&self, body: &[u8]) -> Result<Vec<u8>, Trouble> {
        let request: JoinRequest = serde_json::from_slice(body).map_err(|error| {
            Trouble::bad_request("the join request was not understood", "are the versions alike?").because(error)
        })?;
        let Some(store) = self.store.get() else {
            return Err(Trouble::no_quorum("this node is only starting", "try again in a moment"));
        };
        // The fingerprint counts, so it is taken from the request that will be signed, not from what it claims.
        let mut request = request;
        request.key_fingerprint = crate::pki::key_fingerprint_of_csr(&request.csr_pem)?;
        let now = clock::wall();
        failpoint::pass("admit.begun");
        let (node, state) = store
            .update(|state| {
                let (next, node) = admission::admit(state, &request, now)?;
                Ok(((next != *state).then(|| next.clone()), (node, next)))
            })
            .await?;
        failpoint::pass("admit.written");
        let Some(secrets) = store.secrets() else {
            return Err(Trouble::no_quorum(
                "this node does not know the cluster's secrets yet",
                "try again in a moment",
            ));
        };
        let Some(member) = state.members.get(&node) else {
            return Err(Trouble::internal("the new member is missing", "report this defect"));
        };
        tracing::info!(name = %member.name, id = %node, "node admitted");
        let certificate_pem = enrol::certify(&secrets.value, &state.identity.id, member, &request.csr_pem)?;
        let answer = JoinAnswer {
            node,
            cluster: state.identity.name.clone(),
            cluster_id: state.identity.id.clone(),
            certificate_pem,
            ca_pem: secrets.value.ca_certificates.clone(),
            peers: state.members.values().map(|member| (member.id, member.peer_address.clone())).collect(),
            consensus: serde_json::to_value(&self.identity.consensus)
                .map_err(|error| Trouble::internal("consensus choice cannot be written", "").because(error))?,
        };
        serde_json::to_vec(&answer)
            .map_err(|error| Trouble::internal("join answer cannot be written", "").because(error))
    }
}

impl Handler for Service {
    fn request(&self, from: Caller, kind: RequestKind, body: Vec<u8>) -> BoxFuture<'_, Result<Vec<u8>, Trouble>> {
        Box::pin(async move {
            match (kind, from) {
                (RequestKind::Join, Caller::Stranger { .. } | Caller::Peer(_)) => self.join(&body).await,
                (RequestKind::Follow, Caller::Stranger { .. }) => match self.store.get() {
                    Some(store) => super::followers::admit(store, &body).await,
                    None => Err(Trouble::no_quorum("this node is only starting", "try again in a moment")),
                },
                (RequestKind::Follow, Caller::Peer(_)) => {
                    Err(Trouble::denied("a member cannot follow its own cluster", "use a node of another cluster"))
                }
                (RequestKind::Consensus, Caller::Peer(peer)) => self.consensus(peer.node, body).await,
                (RequestKind::Control, Caller::Peer(_)) => Err(Trouble::bad_request(
                    "no control request is known to this version",
                    "update this node's program",
                )),
                (RequestKind::Consensus | RequestKind::Control, Caller::Stranger { .. }) => {
                    Err(Trouble::denied("only members may ask this", "join the cluster first"))
                }
            }
        })
    }

    fn heartbeat(&self, from: NodeId, body: &[u8], received: Moment) {
        self.observations.heartbeat(from, body, received);
    }

    fn admits(&self, peer: &PeerIdentity) -> Result<(), Trouble> {
        let Some(state) = self.store.get().and_then(Store::state) else {
            // Before the state is known, a certificate of this cluster's CA must do: it was signed for a member.
            return Ok(());
        };
        match state.value.members.get(&peer.node) {
            Some(member) if member.holds_key(&peer.key_fingerprint) => Ok(()),
            Some(member) => Err(Trouble::certificate_refused(
                format!(
                    "{} presents a key that is not the one bound to node {} ({})",
                    peer.name, member.name, peer.node
                ),
                "was its certificate rotated elsewhere, or its state directory copied? remove the node and join it again",
            )),
            None if peer.node.0 >= state.value.next_node_id => {
                // Admitted a moment ago by another keeper; this one has not heard of it yet.
                Ok(())
            }
            None => Err(Trouble::certificate_refused(
                format!("node {} ({}) is not a member any more", peer.name, peer.node),
                "it was removed; to bring it back empty its state directory and join with a new token",
            )),
        }
    }
}

/// Carries consensus messages over the mesh.
pub(super) struct MeshTransport {
    pub(super) mesh: Arc<Mesh>,
}

impl Transport for MeshTransport {
    fn call(
        &self,
        to: NodeId,
        payload: Vec<u8>,
        timeout: Duration,
    ) -> consensus::BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async move {
            self.mesh.call(to, RequestKind::Consensus, payload, timeout).await.map_err(|trouble| trouble.to_string())
        })
    }
}

/// The first documents into a store that is not ours alone: what is there already is either ours or not touched.
pub(super) async fn bootstrap_external(
    consensus: &dyn Consensus,
    documents: Vec<(String, Vec<u8>)>,
    cluster_id: &ClusterId,
) -> Result<(), Trouble> {
    if let Some(present) = consensus.read(CLUSTER_KEY).await.map_err(Trouble::from)? {
        let state: ClusterState = serde_json::from_slice(&present.body).map_err(|error| {
            Trouble::internal("the store holds something else", "use another prefix").because(error)
        })?;
        if state.identity.id == *cluster_id {
            return Ok(());
        }
        return Err(Trouble::already_enrolled(
            format!("the store already holds cluster {} ({})", state.identity.name, state.identity.id),
            "give this cluster another `prefix` in [consensus]",
        ));
    }
    for (key, body) in documents {
        // Secrets go first and the state last, so that a state always has its secrets. Secrets without a state are
        // the remains of an init that did not end, and are replaced.
        let expect = match (key.as_str(), consensus.read(&key).await.map_err(Trouble::from)?) {
            (SECRETS_KEY, Some(remains)) => remains.version,
            (_, _) => 0,
        };
        match consensus.write(&key, expect, body).await {
            Ok(_) => {}
            Err(WriteError::Conflict { .. }) => {
                return Err(Trouble::conflict(
                    "another init uses the same store",
                    "give each cluster its own `prefix`",
                ));
            }
            Err(error @ (WriteError::Unknown { .. } | WriteError::Store(_))) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Checks new settings as a whole, with what the server's room knows of parameters.
pub(super) fn check_settings(
    settings: &Settings,
    state: &ClusterState,
    refused: &dyn Fn(&str, &str) -> Option<Trouble>,
) -> Result<(), Trouble> {
    for (name, value) in &settings.postgresql.parameters {
        if let Some(trouble) = refused(name, value) {
            return Err(trouble);
        }
    }
    match settings::check(settings, &state.members, &|_| None).into_iter().next() {
        Some(finding) => Err(Trouble::settings_refused(finding.reason, finding.hint)),
        None => Ok(()),
    }
}

/// A witness has no server to drive: it becomes a full member once its store follows, and stays that.
pub(super) async fn be_witness(keeper: &Arc<Keeper>) {
    let mut states = keeper.store.changes();
    let me = keeper.identity.node;
    let mut part = loop {
        match crate::failover::WitnessPart::open(me, &keeper.config.state_dir, keeper.council.clone()) {
            Ok(part) => break part,
            Err(trouble) => {
                tracing::error!(%trouble, hint = trouble.hint, "the witness cannot take part");
                keeper.local.set_error(Some((trouble.code.to_string(), trouble.to_string())));
            }
        }
        tokio::select! {
            () = keeper.stop.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    };
    loop {
        keeper.local.turned();
        if let Err(trouble) = part.turn(&keeper.store).await {
            tracing::warn!(%trouble, "the witness did not do its part");
        }
        if let Some(seen) = keeper.store.state() {
            let (version, state) = (seen.version, &seen.value);
            match state.members.get(&me).map(|member| member.stage.clone()) {
                Some(Stage::Joining) if !keeper.council.may_join_electors(version, state, clock::now()) => {}
                Some(Stage::Joining) => {
                    let known: Vec<NodeId> = electors(state).collect();
                    let complete = |state: &ClusterState| {
                        let unchanged = electors(state).eq(known.iter().copied());
                        admission::complete(state, me, clock::wall()).filter(|_| unchanged)
                    };
                    let done = keeper.store.update(|state| Ok((complete(state), ()))).await;
                    if let Err(trouble) = done {
                        tracing::debug!(%trouble, "not a full member yet");
                    }
                }
                Some(
                    Stage::Active | Stage::Halted { .. } | Stage::Reinit { .. } | Stage::Rejoin { .. } | Stage::Leaving,
                )
                | None => {}
            }
            let settings = keeper.store.state().map_or(0, |state| state.value.settings_version);
            keeper.local.set_versions(version, settings);
        }
        tokio::select! {
            () = keeper.stop.cancelled() => return,
            changed = states.changed() => if changed.is_err() { return },
            () = keeper.local.drive_now.notified() => {}
            () = tokio::time::sleep(part.pace()) => {}
        }
    }
}
