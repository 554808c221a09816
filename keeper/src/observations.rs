//! What this keeper has heard of all nodes, and the one judged status made of it.
//!
//! Heartbeats arrive here, are kept newest per node, and are judged once per change; every view (status, REST,
//! metrics) reads the same judged value.

use crate::clock;
use crate::failover::{Council, Word};
use crate::local::Local;
use crate::mesh::Mesh;
use crate::store::Store;
use arc_swap::ArcSwapOption;
use cluster::judge::Judge;
use model::observe::Observed;
use model::{ClusterStatus, Moment, NodeId, NodeName, NodeSample};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// How often the status is judged when nothing new arrives: ages and silences change by themselves.
const JUDGE_IDLE_INTERVAL: Duration = Duration::from_millis(500);
/// Shortest time between two judgements, so that a burst of samples costs one.
const JUDGE_PAUSE: Duration = Duration::from_millis(50);

/// How long is waited for a judgement of a change.
const JUDGED_WITHIN: Duration = Duration::from_secs(1);

/// What travels in a heartbeat.
#[derive(Serialize, Deserialize)]
pub struct Heartbeat {
    /// The newest sample, if it is newer than the one sent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<NodeSample>,
    /// What the keeper says of itself.
    #[serde(default)]
    pub(crate) word: Word,
}

/// All observations of one keeper.
pub struct Observations {
    me: NodeId,
    heard: Mutex<BTreeMap<NodeId, Heard>>,
    own: watch::Sender<Option<Arc<NodeSample>>>,
    status: ArcSwapOption<ClusterStatus>,
    judged: watch::Sender<u64>,
    /// Version of the state that the status was made of.
    judged_state: watch::Sender<u64>,
    news: Notify,
    council: Arc<Council>,
    local: Arc<Local>,
    /// Another keeper knows a newer state than this one.
    pub(crate) newer_state: Notify,
}

#[derive(Clone)]
struct Heard {
    at: Moment,
    sample: Option<(Arc<NodeSample>, Moment)>,
}

impl Observations {
    /// Empty observations of node `me`.
    pub(crate) fn new(me: NodeId, council: Arc<Council>, local: Arc<Local>) -> Arc<Observations> {
        Arc::new(Observations {
            council,
            local,
            newer_state: Notify::new(),
            me,
            heard: Mutex::new(BTreeMap::new()),
            own: watch::channel(None).0,
            status: ArcSwapOption::empty(),
            judged: watch::channel(0).0,
            judged_state: watch::channel(0).0,
            news: Notify::new(),
        })
    }

    /// Takes in a heartbeat from another keeper.
    pub fn heartbeat(&self, from: NodeId, body: &[u8], received: Moment) {
        let sample = match body {
            [] => None,
            body => match serde_json::from_slice::<Heartbeat>(body) {
                Ok(heartbeat) => {
                    let news = self.council.hear(from, heartbeat.word, received);
                    if news.matters {
                        self.local.drive_now.notify_one();
                    }
                    if news.newer_state {
                        self.newer_state.notify_one();
                    }
                    heartbeat.sample.filter(|sample| sample.node == from)
                }
                Err(error) => {
                    tracing::debug!(node = %from, %error, "heartbeat not understood");
                    None
                }
            },
        };
        let news = sample.is_some();
        {
            let mut heard = self.lock();
            let entry = heard.entry(from).or_insert(Heard { at: received, sample: None });
            entry.at = entry.at.max(received);
            if let Some(sample) = sample {
                let taken_at = received.minus(model::Millis(sample.age_ms));
                entry.sample = Some((Arc::new(sample), taken_at));
            }
        }
        if news {
            self.news.notify_one();
        }
    }

    /// Takes in this node's own sample.
    pub fn own_sample(&self, sample: NodeSample) {
        let sample = Arc::new(sample);
        let now = clock::now();
        // As of when the look began, like samples of others: a server that answers late told of the past.
        let taken_at = now.minus(model::Millis(sample.age_ms));
        self.lock().insert(self.me, Heard { at: now, sample: Some((sample.clone(), taken_at)) });
        self.own.send_replace(Some(sample));
        self.news.notify_one();
    }

    /// This node's own newest sample.
    pub fn own(&self) -> Option<Arc<NodeSample>> {
        self.own.borrow().clone()
    }
    /// The same, with the moment at which it was taken.
    pub fn own_observed(&self) -> Option<Observed> {
        self.of(self.me)
    }
    /// Wakes at every own sample.
    pub fn own_changes(&self) -> watch::Receiver<Option<Arc<NodeSample>>> {
        self.own.subscribe()
    }
    /// The judged status, once there is one.
    pub fn status(&self) -> Option<Arc<ClusterStatus>> {
        self.status.load_full()
    }
    /// Wakes at every judgement.
    pub fn judgements(&self) -> watch::Receiver<u64> {
        self.judged.subscribe()
    }

    /// Waits for a status that was made of this version of the state, or of a newer one. Bounded: nothing depends on it
    /// but that people see what they did.
    pub async fn judged_from(&self, version: u64) {
        let mut judged = self.judged_state.subscribe();
        let told = judged.wait_for(|judged| *judged >= version);
        if tokio::time::timeout(JUDGED_WITHIN, told).await.is_err() {
            tracing::debug!(version, "the status does not tell of a change yet");
        }
    }

    /// What was observed, per node.
    pub fn all(&self) -> BTreeMap<NodeId, Observed> {
        self.lock()
            .iter()
            .filter_map(|(id, heard)| {
                let (sample, taken_at) = heard.sample.clone()?;
                Some((*id, Observed { sample, taken_at, heard_at: heard.at }))
            })
            .collect()
    }

    /// What was observed of one node.
    pub fn of(&self, id: NodeId) -> Option<Observed> {
        let heard = self.lock().get(&id).cloned()?;
        let (sample, taken_at) = heard.sample?;
        Some(Observed { sample, taken_at, heard_at: heard.at })
    }

    /// How long each other keeper has been silent, in milliseconds.
    pub fn silences(&self, now: Moment) -> BTreeMap<NodeId, u64> {
        self.lock().iter().filter(|(id, _)| **id != self.me).map(|(id, heard)| (*id, now.since(heard.at).0)).collect()
    }

    /// Forgets nodes that are no members any more.
    pub fn keep_only(&self, members: impl Fn(NodeId) -> bool) {
        self.lock().retain(|id, _| members(*id));
    }

    /// Judges until `stop`: at news, at a new state, and at least every `JUDGE_IDLE_INTERVAL`.
    pub async fn judge_loop(self: Arc<Self>, store: Store, mesh: Arc<Mesh>, name: NodeName, stop: CancellationToken) {
        let mut judge = Judge::new(name);
        let mut count = 0u64;
        let mut states = store.changes();
        loop {
            let state = states.borrow_and_update().clone();
            if let Some(state) = state {
                self.keep_only(|id| id == self.me || state.value.members.contains_key(&id));
                let salt = store.secrets().map_or_else(String::new, |secrets| secrets.value.name_salt.clone());
                let observed = self.all();
                let round_trips = observed.keys().filter_map(|id| Some((*id, mesh.round_trip(*id)?))).collect();
                let status = judge.judge(
                    clock::now(),
                    clock::wall(),
                    &state.value,
                    &observed,
                    &store.view(),
                    &salt,
                    &round_trips,
                );
                self.status.store(Some(Arc::new(status)));
                count += 1;
                self.judged.send_replace(count);
                self.judged_state.send_replace(state.version);
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = states.changed() => match changed {
                    Ok(()) => tokio::time::sleep(JUDGE_PAUSE).await,
                    Err(_closed) => return,
                },
                () = self.news.notified() => tokio::time::sleep(JUDGE_PAUSE).await,
                () = tokio::time::sleep(JUDGE_IDLE_INTERVAL) => {}
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Heard>> {
        // A panic while holding this lock cannot leave the map half changed: each change is one insert.
        self.heard.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
