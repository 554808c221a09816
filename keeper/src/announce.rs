//! What this keeper tells the world outside the cluster when something changed here. Never on the path of a change:
//! each teller is a task of its own that follows the state, and whatever it waits for, nothing waits for it.

mod hooks;
mod names;
mod program;

use crate::files;
use crate::local::Local;
use crate::node_config::{Hook, NodeConfig};
use crate::observations::Observations;
use crate::store::Store;
use hooks::{Call, Serving, Told};
use model::observe::OutsideTrouble;
use model::{ClusterState, NodeId, ServerState};
pub(crate) use names::Names;
use postgres::OsUser;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Calls that may wait for an earlier one to end; a hook that is slower than its node changes loses the rest.
const CALLS_MAX: usize = 32;

/// A teller of hooks.
pub(crate) struct Teller {
    pub(crate) me: NodeId,
    pub(crate) config: NodeConfig,
    pub(crate) store: Store,
    pub(crate) observations: Arc<Observations>,
    pub(crate) local: Arc<Local>,
}

/// A call with the state that made it due.
type Due = (Call, Arc<ClusterState>);

impl Teller {
    /// Follows the state and this node's server, and makes calls, until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        if self.config.hooks.is_empty() {
            return;
        }
        let user = match self.user() {
            Ok(user) => user,
            Err(trouble) => return self.complain("hooks", Some(trouble.to_string())),
        };
        let (sender, calls) = mpsc::channel(CALLS_MAX);
        tokio::join!(self.watch(sender, &stop), self.make(calls, user, &stop));
    }

    /// As whom hooks run: whoever the node file says, else the user of the server, which is not root.
    fn user(&self) -> Result<Option<OsUser>, model::Trouble> {
        let server = self.config.postgresql.as_ref().and_then(|node| node.run_as.as_deref());
        match self.config.hooks.run_as.as_deref() {
            // Who wants root says so; a keeper that is root runs nothing as root by itself.
            Some("root") if nix::unistd::geteuid().is_root() => Ok(None),
            Some(named) => postgres::server_user(Some(named)),
            None => postgres::server_user(server),
        }
    }

    async fn watch(&self, calls: mpsc::Sender<Due>, stop: &CancellationToken) {
        let (mut states, mut samples) = (self.store.changes(), self.observations.own_changes());
        let mut told = self.read_told();
        let mut serving = Serving::default();
        loop {
            let state = states.borrow_and_update().clone();
            let sample = samples.borrow_and_update().clone();
            if let (Some(state), Some(sample)) = (state, sample) {
                let now = serves(&sample.server, serving.now);
                let started = sample.facts.as_ref().map(|facts| facts.started_at);
                serving = Serving { before: serving.now, now, started };
                let due = hooks::due(self.me, &state.value, &told, serving);
                told =
                    due.last().map_or_else(|| hooks::settled(self.me, &state.value, &told), |call| call.then.clone());
                let shared = (!due.is_empty()).then(|| Arc::new(state.value.clone()));
                for (call, state) in due.into_iter().zip(shared.into_iter().cycle()) {
                    let hook = call.hook.as_str();
                    if calls.try_send((call, state)).is_err() {
                        self.local.count_hook(false);
                        self.complain(hook, Some(format!("{CALLS_MAX} calls wait already; this one is not made")));
                    }
                }
                self.write_told(&told);
            }
            let gone = tokio::select! {
                () = stop.cancelled() => return,
                changed = states.changed() => changed.is_err(),
                changed = samples.changed() => changed.is_err(),
            };
            if gone {
                return;
            }
        }
    }

    /// One after the other, in order: what a hook does on a promotion must not be undone by an earlier one that is slow.
    async fn make(&self, mut calls: mpsc::Receiver<Due>, user: Option<OsUser>, stop: &CancellationToken) {
        while let Some((call, state)) = calls.recv().await {
            let hooks = &self.config.hooks;
            let Some(ended) = hooks::make(hooks, user.as_ref(), &call, &state, self.me, stop).await else { continue };
            self.local.count_hook(ended.is_ok());
            self.complain(call.hook.as_str(), ended.err());
        }
    }

    /// Shows a hook's failure until it succeeds.
    fn complain(&self, hook: &'static str, why: Option<String>) {
        let trouble = why.map(|cause| OutsideTrouble {
            code: "ST2311".to_owned(),
            what: format!("hook {hook} failed"),
            cause,
            next: "see the keeper's log for what it said; the notice goes when the hook succeeds".to_owned(),
        });
        self.local.set_outside(hook, trouble);
    }

    fn file(&self) -> PathBuf {
        self.config.state_dir.join("told.json")
    }

    fn read_told(&self) -> Told {
        let text = std::fs::read(self.file()).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn write_told(&self, told: &Told) {
        let text = serde_json::to_vec(told).unwrap_or_default();
        if std::fs::read(self.file()).is_ok_and(|before| before == text) {
            return;
        }
        if let Err(trouble) = files::write_private(&self.file(), &text) {
            tracing::warn!(%trouble, "what hooks were told is not remembered: a call may be made again");
        }
    }
}

/// Whether the server serves. One that does not answer for a moment has not stopped.
fn serves(server: &ServerState, before: bool) -> bool {
    match server {
        ServerState::Running => true,
        ServerState::Unresponsive { .. } => before,
        ServerState::None
        | ServerState::Empty
        | ServerState::Initialising
        | ServerState::Cloning(_)
        | ServerState::Stopped
        | ServerState::Starting
        | ServerState::Failed { .. } => false,
    }
}

impl Hook {
    /// The word in the node file, and the first argument of the program.
    pub fn as_str(self) -> &'static str {
        match self {
            Hook::Start => "on_start",
            Hook::Stop => "on_stop",
            Hook::RoleChange => "on_role_change",
            Hook::Failover => "on_failover",
        }
    }
}
