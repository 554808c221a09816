//! What the driver, the sampler and the API of one keeper share about their own server.

use model::NodeSample;
use model::observe::CloneProgress;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};

/// The server's life as its driver knows it, without asking the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A witness.
    NoServer,
    /// No data yet.
    Empty,
    /// initdb runs.
    Initialising,
    /// A base backup runs.
    Cloning,
    /// Data is there, no process.
    Stopped,
    /// The process is alive; whether it answers is the sampler's to find out.
    Alive,
    /// It crashed or would not start.
    Failed {
        /// What it said.
        reason: String,
    },
}

/// See the module.
pub struct Local {
    inner: Mutex<Inner>,
    /// Pokes the sampler.
    pub sample_now: Notify,
    /// Pokes the driver.
    pub drive_now: Notify,
    /// Number of the sample that was begun last.
    sample_begun: AtomicU64,
    /// When the driver last turned, in the keeper's clock.
    turned_at: AtomicU64,
    /// The node's certificate changed since the server was given its copy.
    server_files_old: AtomicBool,
}

#[derive(Clone)]
struct Inner {
    phase: Phase,
    doing: Option<String>,
    last_error: Option<(String, String)>,
    settings_version: u64,
    state_version: u64,
    clone: Option<watch::Receiver<CloneProgress>>,
    stalled: Option<(model::Moment, &'static str)>,
    outside: model::observe::Outside,
    outside_troubles: std::collections::BTreeMap<&'static str, model::observe::OutsideTrouble>,
}

impl Local {
    /// At the start of a keeper.
    pub fn new() -> Arc<Local> {
        Arc::new(Local {
            inner: Mutex::new(Inner {
                phase: Phase::Stopped,
                doing: None,
                last_error: None,
                settings_version: 0,
                state_version: 0,
                clone: None,
                stalled: None,
                outside: model::observe::Outside::default(),
                outside_troubles: std::collections::BTreeMap::new(),
            }),
            sample_now: Notify::new(),
            drive_now: Notify::new(),
            sample_begun: AtomicU64::new(0),
            turned_at: AtomicU64::new(crate::clock::now().0),
            server_files_old: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is one assignment; a panic elsewhere cannot leave it half made.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The phase now.
    pub fn phase(&self) -> Phase {
        self.lock().phase.clone()
    }
    /// Changes the phase and has it sampled at once.
    pub fn set_phase(&self, phase: Phase) {
        let changed = {
            let mut inner = self.lock();
            let changed = inner.phase != phase;
            inner.phase = phase;
            changed
        };
        if changed {
            self.sample_now.notify_one();
        }
    }
    /// Notes since when the server has not done one of its jobs, and which; `None` when it does them all.
    pub fn set_stalled(&self, stalled: Option<(model::Moment, &'static str)>) {
        self.lock().stalled = stalled;
    }
    /// For how long the server has not done one of its jobs, and which.
    pub fn stalled(&self) -> Option<(model::Millis, String)> {
        let (since, what) = self.lock().stalled?;
        let now = crate::clock::now();
        Some((now.since(since.max(crate::clock::attentive_since(now))), what.to_owned()))
    }

    /// Says in words what the keeper is doing or waiting for.
    pub fn set_doing(&self, doing: Option<String>) {
        self.lock().doing = doing;
    }
    /// Notes the last thing that went wrong; `None` when it is over. Returns whether this is news.
    pub fn set_error(&self, error: Option<(String, String)>) -> bool {
        let mut inner = self.lock();
        let news = inner.last_error != error;
        inner.last_error = error;
        news
    }
    /// Notes what goes wrong with telling the world outside; `None` when it is over.
    pub fn set_outside(&self, what: &'static str, trouble: Option<model::observe::OutsideTrouble>) {
        let mut inner = self.lock();
        match trouble {
            Some(trouble) => inner.outside_troubles.insert(what, trouble),
            None => inner.outside_troubles.remove(what),
        };
    }
    /// Counts a hook's run.
    pub fn count_hook(&self, well: bool) {
        let mut inner = self.lock();
        inner.outside.hook_runs += 1;
        inner.outside.hook_failures += u64::from(!well);
    }
    /// Notes which versions are in force here.
    pub fn set_versions(&self, state: u64, settings: u64) {
        let mut inner = self.lock();
        inner.state_version = state;
        inner.settings_version = settings;
    }
    /// Shows a clone's progress in samples until set to `None`.
    pub fn set_clone(&self, progress: Option<watch::Receiver<CloneProgress>>) {
        self.lock().clone = progress;
    }
    /// Progress of a running clone.
    pub fn clone_progress(&self) -> Option<CloneProgress> {
        self.lock().clone.as_ref().map(|progress| progress.borrow().clone())
    }
    /// Copies what this keeper knows of itself into a sample.
    pub fn fill(&self, sample: &mut NodeSample) {
        let inner = self.lock();
        sample.doing.clone_from(&inner.doing);
        sample.last_error.clone_from(&inner.last_error);
        sample.settings_version = inner.settings_version;
        sample.state_version = inner.state_version;
        sample.outside.clone_from(&inner.outside);
        sample.outside.troubles = inner.outside_troubles.values().cloned().collect();
    }

    /// Numbers a sample that begins now.
    pub fn begin_sample(&self) -> u64 {
        self.sample_begun.fetch_add(1, Ordering::SeqCst) + 1
    }
    /// The number of the first sample that will begin after now: what was done before now shows in it.
    pub fn next_sample(&self) -> u64 {
        self.sample_begun.load(Ordering::SeqCst) + 1
    }
    /// Has the driver give the server the node's new certificate.
    pub fn renew_server_files(&self) {
        self.server_files_old.store(true, Ordering::SeqCst);
        self.drive_now.notify_one();
    }
    /// Whether the server's copy of the certificate is old; asking clears it.
    pub fn take_server_files_old(&self) -> bool {
        self.server_files_old.swap(false, Ordering::SeqCst)
    }

    /// Notes that the driver turned.
    pub fn turned(&self) {
        self.turned_at.store(crate::clock::now().0, Ordering::Relaxed);
    }
    /// When the driver last turned.
    pub fn turned_at(&self) -> model::Moment {
        model::Moment(self.turned_at.load(Ordering::Relaxed))
    }
}
