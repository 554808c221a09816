//! Programs of the owner's that are run when something happens to this node: which call is due, decided from two looks
//! at the node, and how a call is made so that it can neither hold anything up nor outlive its time.

use super::program::{self, Ended, Program};
use crate::node_config::{Hook, Hooks};
use model::failover::{Failover, FailoverPhase};
use model::{ClusterState, Epoch, NodeId, PrimaryNow, Role, WallTime};
use postgres::OsUser;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// What was told last, kept in a file so that what happens while the keeper is down is told by the next one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Told {
    /// The role that was told last; `None` before the first one is known.
    pub(crate) role: Option<Role>,
    /// The primacy under which it was.
    pub(crate) epoch: Epoch,
    /// The newest change of primary that was told.
    pub(crate) failover: Epoch,
    /// When the server started whose start was told last.
    #[serde(default)]
    pub(crate) started: Option<WallTime>,
}

/// One call that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) hook: Hook,
    pub(crate) role: Role,
    pub(crate) epoch: Epoch,
    pub(crate) primary: PrimaryNow,
    /// The change of primary that led here, if one did.
    pub(crate) failover: Option<Failover>,
    /// What is told once this call was made.
    pub(crate) then: Told,
}

/// The server, in two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Serving {
    /// Whether it served before, as this keeper saw it.
    pub(crate) before: bool,
    /// Whether it serves now.
    pub(crate) now: bool,
    /// When it started, as far as it answers.
    pub(crate) started: Option<WallTime>,
}

/// The calls that are due, in the order in which they are made.
pub(crate) fn due(me: NodeId, state: &ClusterState, told: &Told, serving: Serving) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut told = told.clone();
    // While a change of primary is under way nobody knows yet what this node will be.
    let role = state.role_of(me).filter(|_| state.failover.is_none()).or(told.role);
    let Some(role) = role else { return calls };
    let ended = state.failovers.iter().rev().find(|failover| failover.phase == FailoverPhase::Done);
    let led_here = ended.filter(|failover| failover.epoch == state.rule.epoch).cloned();
    let call = |hook: Hook, then: &Told| Call {
        hook,
        role,
        epoch: state.rule.epoch,
        primary: PrimaryNow::of(state),
        failover: led_here.clone(),
        then: then.clone(),
    };
    if serving.before && !serving.now {
        calls.push(call(Hook::Stop, &told));
    }
    if state.failover.is_none() {
        let first = told.role.is_none();
        let changed = told.role.is_some_and(|before| before != role);
        told = Told { role: Some(role), epoch: state.rule.epoch, ..told };
        if changed {
            calls.push(call(Hook::RoleChange, &told));
        }
        // The new primary's node tells of the change as a whole, so that it is told once in the cluster.
        if let Some(failover) = &led_here
            && failover.epoch > told.failover
        {
            told.failover = failover.epoch;
            if role == Role::Primary && !first {
                calls.push(call(Hook::Failover, &told));
            }
        }
    }
    // By its start, not by what this keeper saw of it: a server that the keeper found running did not start.
    if serving.started.is_some() && serving.started != told.started {
        told.started = serving.started;
        calls.push(call(Hook::Start, &told));
    }
    calls
}

/// What is told when nothing is called: the first role a node has is no change.
pub(crate) fn settled(me: NodeId, state: &ClusterState, told: &Told) -> Told {
    if state.failover.is_some() {
        return told.clone();
    }
    let failover = state.failovers.last().map_or(told.failover, |last| last.epoch.max(told.failover));
    Told { role: state.role_of(me).or(told.role), epoch: state.rule.epoch, failover, started: told.started }
}

/// What a hook finds in its environment. The second half are orchestrator's names.
fn environment(call: &Call, state: &ClusterState, me: NodeId) -> Vec<(&'static str, String)> {
    let name = |id: NodeId| state.members.get(&id).map(|member| member.name.to_string()).unwrap_or_default();
    let host = |id: NodeId| state.members.get(&id).map(|member| member.postgres_host.clone()).unwrap_or_default();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let failover = call.failover.as_ref();
    let old = failover.map(|failover| failover.from);
    let reason = failover.map(|failover| failover.because.clone()).unwrap_or_default();
    let primary = &call.primary;
    vec![
        ("STEMMA_EVENT", call.hook.as_str().to_owned()),
        ("STEMMA_CLUSTER", state.identity.name.to_string()),
        ("STEMMA_NODE", name(me)),
        ("STEMMA_ROLE", call.role.to_string()),
        ("STEMMA_EPOCH", call.epoch.to_string()),
        ("STEMMA_PRIMARY", primary.name.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("STEMMA_PRIMARY_HOST", text(&primary.host)),
        ("STEMMA_PRIMARY_PORT", primary.port.map(|port| port.to_string()).unwrap_or_default()),
        ("STEMMA_OLD_PRIMARY", old.map(name).unwrap_or_default()),
        ("STEMMA_FAILOVER_ID", failover.map(|failover| failover.id.clone()).unwrap_or_default()),
        ("STEMMA_REASON", reason.clone()),
        ("ORC_COMMAND", call.hook.as_str().to_owned()),
        ("ORC_FAILURE_TYPE", if failover.is_some() { "DeadMaster".to_owned() } else { String::new() }),
        ("ORC_FAILURE_DESCRIPTION", reason),
        ("ORC_FAILURE_CLUSTER_ALIAS", state.identity.name.to_string()),
        ("ORC_FAILED_HOST", old.map(host).unwrap_or_default()),
        ("ORC_SUCCESSOR_HOST", text(&primary.host)),
        ("ORC_SUCCESSOR_PORT", primary.port.map(|port| port.to_string()).unwrap_or_default()),
    ]
}

/// Makes one call and says how it ended; `None` where nobody asked for this hook.
pub(crate) async fn make(
    hooks: &Hooks,
    user: Option<&OsUser>,
    call: &Call,
    state: &ClusterState,
    me: NodeId,
    stop: &CancellationToken,
) -> Option<Result<(), String>> {
    let command = hooks.command(call.hook)?;
    // Patroni's callbacks are called so, and work here as they are.
    let patroni = [call.hook.as_str().to_owned(), call.role.to_string(), state.identity.name.to_string()];
    let program = Program {
        command: command.iter().cloned().chain(patroni).collect(),
        environment: environment(call, state, me),
        user: user.cloned(),
        timeout: hooks.timeout.duration(),
    };
    let began = crate::clock::now();
    let ended = program::run(&program, stop).await;
    let took_ms = crate::clock::now().since(began).0;
    let hook = call.hook.as_str();
    Some(match ended {
        Ended::Well { said } => {
            tracing::info!(hook, took_ms, said, "hook done");
            Ok(())
        }
        Ended::Badly { why, said } => {
            tracing::warn!(hook, took_ms, why, said, "hook failed");
            let said = said.lines().last().map(|line| format!(": {line}")).unwrap_or_default();
            Err(format!("{} {why}{said}", command.first().map(String::as_str).unwrap_or_default()))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use model::failover::FailoverKind;
    use std::collections::BTreeMap;

    fn done(epoch: u64) -> Failover {
        Failover {
            id: format!("fo_{epoch}"),
            epoch: Epoch(epoch),
            from: NodeId(2),
            kind: FailoverKind::Automatic,
            because: "n2 is silent".into(),
            actor: "stemma".into(),
            request: String::new(),
            ended_because: String::new(),
            phase: FailoverPhase::Done,
            recruited: BTreeMap::new(),
            refused: BTreeMap::new(),
            winner: Some(NodeId(1)),
            next: None,
            unsettled: vec![],
            loss_bytes: None,
            started_at: model::WallTime(0),
            phases: vec![],
        }
    }

    const BEGAN: WallTime = WallTime(77);

    fn hooks(state: &ClusterState, told: &Told, before: bool, started: Option<WallTime>) -> Vec<Hook> {
        let serving = Serving { before, now: started.is_some(), started };
        due(NodeId(1), state, told, serving).into_iter().map(|call| call.hook).collect()
    }

    #[test]
    fn what_is_due_follows_from_two_looks() {
        let mut state = fixtures::state();
        state.rule.primary = NodeId(1);
        assert_eq!(hooks(&state, &Told::default(), false, Some(BEGAN)), [Hook::Start], "and a first role is no change");
        let was = |role| Told { role: Some(role), epoch: Epoch(1), failover: Epoch(0), started: Some(BEGAN) };
        assert_eq!(hooks(&state, &was(Role::Primary), false, Some(BEGAN)), [], "found running: it did not start");
        assert_eq!(hooks(&state, &was(Role::Primary), true, Some(WallTime(78))), [Hook::Start]);
        assert_eq!(hooks(&state, &was(Role::Primary), true, None), [Hook::Stop]);
        // Promoted: the change of role first, then the change of primary as a whole, once.
        state.rule.epoch = Epoch(2);
        state.failovers.push(done(2));
        let calls =
            due(NodeId(1), &state, &was(Role::Replica), Serving { before: true, now: true, started: Some(BEGAN) });
        assert_eq!(calls.iter().map(|call| call.hook).collect::<Vec<_>>(), [Hook::RoleChange, Hook::Failover]);
        let told = calls.last().expect("two").then.clone();
        assert_eq!(hooks(&state, &told, true, Some(BEGAN)), []);
        assert_eq!(told, settled(NodeId(1), &state, &told));
        // While a change is under way nothing is known, and nothing is told.
        state.failover = Some(done(3));
        assert_eq!(hooks(&state, &was(Role::Replica), true, Some(BEGAN)), []);
    }
}
