//! The cluster's state as the rest of the keeper sees it: parsed, newest known, and changed by compare-and-set.

use consensus::{Consensus, Document, StoreError, WriteError};
use model::observe::ConsensusView;
use model::state::{STATE_FORMAT, Secrets};
use model::{ClusterState, Trouble};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Key of the cluster's state.
pub const CLUSTER_KEY: &str = "cluster";
/// Key of the cluster's secrets.
pub const SECRETS_KEY: &str = "secrets";
/// How often a change is tried again after losing a race.
const ATTEMPTS_MAX: u32 = 20;
/// Pause before the state is read again after a write without an answer.
const REREAD_PAUSE: Duration = Duration::from_millis(100);
/// How long a change may take in all.
const CHANGE_DEADLINE: Duration = Duration::from_secs(10);

/// A parsed document with its version.
#[derive(Debug)]
pub struct Versioned<T> {
    /// Version of the document.
    pub version: u64,
    /// What it says.
    pub value: T,
}

/// The cluster's state and secrets, newest known, behind one handle.
#[derive(Clone)]
pub struct Store {
    consensus: Arc<dyn Consensus>,
    state: watch::Receiver<Option<Arc<Versioned<ClusterState>>>>,
    /// What was read or written here is known at once, not only when the store announces it.
    learnt: Arc<watch::Sender<Option<Arc<Versioned<ClusterState>>>>>,
    secrets: watch::Receiver<Option<Arc<Versioned<Secrets>>>>,
}

impl Store {
    /// Follows `consensus` until `stop`.
    pub fn follow(consensus: Arc<dyn Consensus>, stop: &CancellationToken) -> Store {
        let learnt = parsed(consensus.watch(CLUSTER_KEY), stop, parse_state);
        let state = learnt.subscribe();
        let secrets = parsed(consensus.watch(SECRETS_KEY), stop, |body| {
            serde_json::from_slice(body)
                .map_err(|error| Trouble::internal("cluster secrets unreadable", "").because(error))
        })
        .subscribe();
        Store { consensus, state, learnt, secrets }
    }

    /// The newest state known here; `None` until the first arrived. May be stale: good for acting on one's own node,
    /// never for deciding who is primary.
    pub fn state(&self) -> Option<Arc<Versioned<ClusterState>>> {
        self.state.borrow().clone()
    }
    /// The newest secrets known here.
    pub fn secrets(&self) -> Option<Arc<Versioned<Secrets>>> {
        self.secrets.borrow().clone()
    }
    /// Wakes at every change of the state.
    pub fn changes(&self) -> watch::Receiver<Option<Arc<Versioned<ClusterState>>>> {
        self.state.clone()
    }
    /// Wakes at every change of the secrets.
    pub fn secret_changes(&self) -> watch::Receiver<Option<Arc<Versioned<Secrets>>>> {
        self.secrets.clone()
    }
    /// The store beneath.
    pub fn consensus(&self) -> &Arc<dyn Consensus> {
        &self.consensus
    }
    /// What is known of the consensus group.
    pub fn view(&self) -> ConsensusView {
        self.consensus.view()
    }

    /// Waits for the state and the secrets to be known.
    pub async fn ready(&self) -> (Arc<Versioned<ClusterState>>, Arc<Versioned<Secrets>>) {
        let mut state = self.state.clone();
        let mut secrets = self.secrets.clone();
        loop {
            if let (Some(state), Some(secrets)) = (self.state(), self.secrets()) {
                return (state, secrets);
            }
            let gone = tokio::select! {
                changed = state.changed() => changed.is_err(),
                changed = secrets.changed() => changed.is_err(),
            };
            if gone {
                std::future::pending::<()>().await;
            }
        }
    }

    /// A linearizable read of the state.
    pub async fn read(&self) -> Result<Arc<Versioned<ClusterState>>, Trouble> {
        let document = self.consensus.read(CLUSTER_KEY).await.map_err(Trouble::from)?;
        let document = document.ok_or_else(|| {
            Trouble::not_enrolled("the cluster's state is empty", "run `stemma init` on the first node")
        })?;
        let state = Arc::new(Versioned { version: document.version, value: parse_state(&document.body)? });
        learn(&self.learnt, state.clone());
        Ok(state)
    }

    /// Changes the state. `change` sees the newest state and returns the next one, or `None` when there is nothing to
    /// change; it may be called several times. A write whose outcome is unknown is followed by a fresh read, and
    /// `change` must then see for itself whether it took effect: all changes of ours are of that kind.
    pub async fn update<R>(
        &self,
        mut change: impl FnMut(&ClusterState) -> Result<(Option<ClusterState>, R), Trouble>,
    ) -> Result<R, Trouble> {
        let work = async {
            let mut last: Option<WriteError> = None;
            let mut attempts = 0;
            while attempts < ATTEMPTS_MAX {
                let current = match (self.read().await, &last) {
                    (Ok(current), _) => current,
                    // Whether the write took effect is not known, and it may yet: an error now would have it asked for
                    // a second time. A new leader answers soon, or the deadline tells that the outcome is unknown.
                    (Err(_), Some(WriteError::Unknown { .. })) => {
                        tokio::time::sleep(REREAD_PAUSE).await;
                        continue;
                    }
                    (Err(trouble), _) => return Err(trouble),
                };
                let (next, result) = change(&current.value)?;
                let Some(next) = next else { return Ok(result) };
                let body = serde_json::to_vec(&next)
                    .map_err(|error| Trouble::internal("cluster state cannot be written", "").because(error))?;
                attempts += 1;
                match self.consensus.write(CLUSTER_KEY, current.version, body).await {
                    Ok(version) => {
                        learn(&self.learnt, Arc::new(Versioned { version, value: next }));
                        return Ok(result);
                    }
                    Err(WriteError::Store(error)) => return Err(error.into()),
                    Err(again @ (WriteError::Conflict { .. } | WriteError::Unknown { .. })) => last = Some(again),
                }
            }
            Err(Trouble::conflict(
                format!("the cluster's state was changed by others {ATTEMPTS_MAX} times in a row"),
                "try again",
            )
            .because(last.map_or_else(String::new, |error| format!("{error:?}"))))
        };
        match tokio::time::timeout(CHANGE_DEADLINE, work).await {
            Ok(result) => result,
            Err(_) => {
                Err(StoreError::NoQuorum { detail: format!("no answer within {} s", CHANGE_DEADLINE.as_secs()) }.into())
            }
        }
    }

    /// Changes the secrets; as `update`.
    pub async fn update_secrets(
        &self,
        mut change: impl FnMut(&Secrets) -> Result<Option<Secrets>, Trouble>,
    ) -> Result<(), Trouble> {
        for _ in 0..ATTEMPTS_MAX {
            let document = self.consensus.read(SECRETS_KEY).await.map_err(Trouble::from)?;
            let Some(document) = document else {
                return Err(Trouble::not_enrolled("the cluster has no secrets yet", "run `stemma init` first"));
            };
            let current: Secrets = serde_json::from_slice(&document.body)
                .map_err(|error| Trouble::internal("cluster secrets unreadable", "").because(error))?;
            let Some(next) = change(&current)? else { return Ok(()) };
            let body = serde_json::to_vec(&next)
                .map_err(|error| Trouble::internal("cluster secrets cannot be written", "").because(error))?;
            match self.consensus.write(SECRETS_KEY, document.version, body).await {
                Ok(_) => return Ok(()),
                Err(WriteError::Store(error)) => return Err(error.into()),
                Err(WriteError::Conflict { .. } | WriteError::Unknown { .. }) => {}
            }
        }
        Err(Trouble::conflict("the cluster's secrets were changed by others meanwhile", "try again"))
    }
}

fn parse_state(body: &[u8]) -> Result<ClusterState, Trouble> {
    let state: ClusterState = serde_json::from_slice(body).map_err(|error| {
        Trouble::internal("cluster state unreadable", "is this program older than the others?").because(error)
    })?;
    if state.format > STATE_FORMAT {
        return Err(Trouble::internal(
            format!("the cluster's state has format {}, this program knows up to {STATE_FORMAT}", state.format),
            "update this node's program",
        ));
    }
    Ok(state)
}

fn parsed<T: Send + Sync + 'static>(
    mut documents: watch::Receiver<Option<Document>>,
    stop: &CancellationToken,
    parse: impl Fn(&[u8]) -> Result<T, Trouble> + Send + 'static,
) -> Arc<watch::Sender<Option<Arc<Versioned<T>>>>> {
    let sender = Arc::new(watch::Sender::new(None));
    let (stop, learnt) = (stop.clone(), sender.clone());
    tokio::spawn(async move {
        loop {
            let document = documents.borrow_and_update().clone();
            if let Some(document) = document {
                match parse(&document.body) {
                    Ok(value) => {
                        learn(&learnt, Arc::new(Versioned { version: document.version, value }));
                    }
                    Err(trouble) => tracing::error!(%trouble, "document from consensus not understood"),
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = documents.changed() => if changed.is_err() { return },
            }
        }
    });
    sender
}

/// Makes a document known unless a newer one is.
fn learn<T>(known: &watch::Sender<Option<Arc<Versioned<T>>>>, document: Arc<Versioned<T>>) {
    known.send_if_modified(|known| {
        let newer = known.as_ref().is_none_or(|known| document.version > known.version);
        if newer {
            *known = Some(document);
        }
        newer
    });
}
