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
/// How long a change waits to be seen here once it is made. Bounded, for what was made is made.
const SEEN_WITHIN: Duration = Duration::from_secs(1);
/// How long a change may take until its outcome is known. With what is waited for it to be seen, below the ten seconds
/// for which the command line waits: who waits is to be told, not left.
const CHANGE_DEADLINE: Duration = Duration::from_secs(8);

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
    /// `change` must then see for itself whether it took effect: all changes of ours are of that kind. Who was answered
    /// finds the change in `state` too: nobody here acts a second time on what was before it.
    pub async fn update<R>(
        &self,
        mut change: impl FnMut(&ClusterState) -> Result<(Option<ClusterState>, R), Trouble>,
    ) -> Result<R, Trouble> {
        // Once set, it stays: a write that may yet take effect is not made unhappened by what a later one is told.
        let mut uncertain: Option<WriteError> = None;
        let work = self.try_update(&mut change, &mut uncertain);
        let (result, version) = match (tokio::time::timeout(CHANGE_DEADLINE, work).await, uncertain) {
            (Ok(made), _) => made?,
            (Err(_elapsed), Some(unknown)) => return Err(unknown.into()),
            (Err(_elapsed), None) => {
                let detail = format!("no answer within {} s", CHANGE_DEADLINE.as_secs());
                return Err(StoreError::NoQuorum { detail }.into());
            }
        };
        self.seen(version).await;
        Ok(result)
    }

    /// `update` without a deadline. Returns the version that is the outcome, too.
    async fn try_update<R>(
        &self,
        change: &mut impl FnMut(&ClusterState) -> Result<(Option<ClusterState>, R), Trouble>,
        uncertain: &mut Option<WriteError>,
    ) -> Result<(R, u64), Trouble> {
        let mut conflicts = 0;
        while conflicts < ATTEMPTS_MAX {
            let current = match self.read().await {
                Ok(current) => current,
                // Whether a write took effect is not known, and it may yet: an error now would have it asked for a
                // second time. A new leader answers soon, or the deadline tells that the outcome is unknown.
                Err(_) if uncertain.is_some() => {
                    tokio::time::sleep(REREAD_PAUSE).await;
                    continue;
                }
                Err(trouble) => return Err(trouble),
            };
            let (next, result) = change(&current.value)?;
            let Some(next) = next else { return Ok((result, current.version)) };
            let body = serde_json::to_vec(&next)
                .map_err(|error| Trouble::internal("cluster state cannot be written", "").because(error))?;
            match self.consensus.write(CLUSTER_KEY, current.version, body).await {
                Ok(version) => {
                    learn(&self.learnt, Arc::new(Versioned { version, value: next }));
                    return Ok((result, version));
                }
                Err(WriteError::Conflict { .. }) => conflicts += 1,
                Err(unknown @ WriteError::Unknown { .. }) => *uncertain = Some(unknown),
                Err(WriteError::Store(_)) if uncertain.is_some() => tokio::time::sleep(REREAD_PAUSE).await,
                Err(WriteError::Store(error)) => return Err(error.into()),
            }
        }
        Err(Trouble::conflict(
            format!("the cluster's state was changed by others {ATTEMPTS_MAX} times in a row"),
            "try again",
        ))
    }

    /// Waits until the state is known here in this version or a newer one. A follower hears of what it had written a
    /// moment after the answer.
    async fn seen(&self, version: u64) {
        let mut state = self.state.clone();
        let known = state.wait_for(|state| state.as_ref().is_some_and(|state| state.version >= version));
        if tokio::time::timeout(SEEN_WITHIN, known).await.is_err() {
            tracing::debug!(version, "a change that was made is not seen here yet");
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

#[cfg(test)]
mod tests {
    use super::*;
    use consensus::BoxFuture;
    use model::NodeId;
    use model::error::exit;
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    /// A store whose first write takes effect without an answer. Then it answers nothing at all, or all is well.
    struct Forgetful {
        documents: watch::Sender<Option<Document>>,
        writes: Mutex<u32>,
        falls_silent: bool,
    }

    fn silence() -> StoreError {
        StoreError::NoQuorum { detail: "no leader is known".into() }
    }

    impl Consensus for Forgetful {
        fn read<'a>(&'a self, _key: &'a str) -> BoxFuture<'a, Result<Option<Document>, StoreError>> {
            let written = *self.writes.lock().expect("lock") > 0;
            let answer =
                if written && self.falls_silent { Err(silence()) } else { Ok(self.documents.borrow().clone()) };
            Box::pin(std::future::ready(answer))
        }
        fn write<'a>(&'a self, _key: &'a str, expect: u64, body: Vec<u8>) -> BoxFuture<'a, Result<u64, WriteError>> {
            let mut writes = self.writes.lock().expect("lock");
            *writes += 1;
            self.documents.send_replace(Some(Document { version: expect + 1, body: body.into() }));
            let lost = WriteError::Unknown { detail: "the leader died".into() };
            Box::pin(std::future::ready(if *writes == 1 { Err(lost) } else { Ok(expect + 1) }))
        }
        fn watch(&self, _key: &str) -> watch::Receiver<Option<Document>> {
            self.documents.subscribe()
        }
        fn view(&self) -> ConsensusView {
            ConsensusView::default()
        }
        fn set_members<'a>(
            &'a self,
            _voters: &'a BTreeSet<NodeId>,
            _learners: &'a BTreeSet<NodeId>,
        ) -> BoxFuture<'a, Result<(), StoreError>> {
            Box::pin(std::future::ready(Ok(())))
        }
        fn is_leader(&self) -> bool {
            true
        }
        fn call_election(&self) -> BoxFuture<'_, ()> {
            Box::pin(std::future::ready(()))
        }
        fn stop(&self) -> BoxFuture<'_, ()> {
            Box::pin(std::future::ready(()))
        }
    }

    fn forgetful(falls_silent: bool) -> Arc<Forgetful> {
        let body: Arc<[u8]> = serde_json::to_vec(&crate::fixtures::state()).expect("text").into();
        let documents = watch::channel(Some(Document { version: 1, body })).0;
        Arc::new(Forgetful { documents, writes: Mutex::new(0), falls_silent })
    }

    /// Orders something once, and sees whether it was ordered.
    fn order(state: &ClusterState) -> Result<(Option<ClusterState>, &'static str), Trouble> {
        if state.next_order == 77 {
            return Ok((None, "was ordered"));
        }
        Ok((Some(ClusterState { next_order: 77, ..state.clone() }), "ordered"))
    }

    #[tokio::test]
    async fn a_change_without_an_answer_is_looked_up_and_not_made_twice() {
        let consensus = forgetful(false);
        let store = Store::follow(consensus.clone(), &CancellationToken::new());
        assert_eq!(store.update(order).await.expect("found out"), "was ordered");
        assert_eq!(*consensus.writes.lock().expect("lock"), 1);
        let state = store.state().expect("seen");
        assert_eq!((state.version, state.value.next_order), (2, 77), "who was answered finds it here");
    }

    #[tokio::test]
    async fn a_change_of_which_nothing_is_heard_any_more_has_an_unknown_outcome() {
        let store = Store::follow(forgetful(true), &CancellationToken::new());
        let trouble = store.update(order).await.expect_err("nobody answers");
        assert_eq!(trouble.exit, exit::UNKNOWN, "not `nothing was changed`: {trouble}");
    }
}
