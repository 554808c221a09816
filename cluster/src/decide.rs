//! What people ask for becomes a new state or a refusal with its reason and the next command. Pure: the keeper writes
//! the new state by compare-and-set, and decides anew when that was lost; a dry run simply does not write.

mod follow;
mod nodes;
mod primacy;

pub use nodes::{data_nodes, removable};

use crate::history;
use crate::operation;
use crate::tokens;
use model::limits::{OPERATIONS_MAX, SETTINGS_HISTORY_MAX};
use model::state::{Operation, OperationKind, OperationState, Role, SettingsChange, Stage};
use model::{
    Actor, ClusterState, ClusterStatus, Command, Member, Millis, NodeId, NodeName, Outcome, Settings, Trouble, WallTime,
};
use std::collections::BTreeSet;

/// What a decision needs beside the state.
pub struct Context<'a> {
    /// Civil time, for audit and the life of tokens.
    pub now: WallTime,
    /// Who asks.
    pub actor: Actor,
    /// For ids and secrets; used once.
    pub random: [u8; 32],
    /// The newest judged view.
    pub status: &'a ClusterStatus,
    /// Addresses that a token names.
    pub token_addresses: Vec<String>,
    /// Hash of the CA that a token names.
    pub ca_sha256: String,
}

impl Context<'_> {
    /// The mark of this request: the same when it is decided again.
    fn request(&self) -> String {
        self.random.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
    /// The keeper of this node answers.
    fn answers(&self, name: &NodeName) -> bool {
        self.status.node(name.as_str()).is_some_and(|node| node.keeper_up)
    }
}

/// The state after `command`, and what to tell who asked. With `changed = false` the state is the one given.
pub fn decide(
    state: &ClusterState,
    command: &Command,
    context: &Context<'_>,
) -> Result<(ClusterState, Outcome), Trouble> {
    match command {
        Command::ApplySettings { settings, expect_version } => {
            apply_settings(state, settings, *expect_version, context)
        }
        Command::RollbackSettings { version } => rollback_settings(state, *version, context),
        Command::CreateToken { role, ttl } => create_token(state, *role, *ttl, context),
        Command::CreateFollowerToken { ttl } => follow::create_token(state, *ttl, context),
        Command::ForgetFollower { name } => follow::forget(state, name, context),
        Command::PromoteCluster { loss_bytes_max } => follow::promote(state, *loss_bytes_max, context),
        Command::Switchover { .. } | Command::Failover { .. } if state.following().is_some() => {
            Err(follow::no_primary(state))
        }
        Command::RevokeToken { id } => revoke_token(state, id, context),
        Command::RemoveNode { node, force } => nodes::remove(state, node, *force, context),
        Command::SetNode { node, patch } => nodes::set(state, node, patch, context),
        Command::RejoinNode { node } => nodes::rejoin(state, node, context),
        Command::ReinitNode { node } => nodes::reinit(state, node, context),
        Command::RollingRestart { only_pending, nodes } => rolling_restart(state, *only_pending, nodes, context),
        Command::RotateCertificates { node } => nodes::rotate_certificates(state, node.as_ref(), context),
        Command::CancelOperation { id } => cancel_operation(state, id, context),
        Command::Switchover { to, at } => primacy::switchover(state, to.as_ref(), *at, context),
        Command::CancelSwitchover => primacy::cancel(state, context),
        Command::Failover { to, loss_bytes_max } => primacy::failover(state, to.as_ref(), *loss_bytes_max, context),
        Command::Pause { span } => primacy::pause(state, *span, context),
        Command::Resume => primacy::resume(state, context),
    }
}

fn outcome(text: impl Into<String>) -> Outcome {
    Outcome {
        text: text.into(),
        changed: true,
        operation: None,
        failover: None,
        candidates: Vec::new(),
        token: None,
        notes: Vec::new(),
    }
}

fn unchanged(state: &ClusterState, text: impl Into<String>) -> (ClusterState, Outcome) {
    (state.clone(), Outcome { changed: false, ..outcome(text) })
}

fn member_named<'s>(state: &'s ClusterState, name: &NodeName) -> Result<&'s Member, Trouble> {
    state
        .by_name(name)
        .ok_or_else(|| Trouble::unknown_node(format!("there is no node `{name}`"), "`stemma status` lists the nodes"))
}

fn apply_settings(
    state: &ClusterState,
    settings: &Settings,
    expect_version: Option<u64>,
    context: &Context<'_>,
) -> Result<(ClusterState, Outcome), Trouble> {
    if let Some(expected) = expect_version.filter(|expected| *expected != state.settings_version) {
        return Err(Trouble::conflict(
            format!("the settings are at version {}, these were edited from {expected}", state.settings_version),
            "look at `stemma config history`, edit again and apply",
        ));
    }
    if *settings == state.settings {
        return Ok(unchanged(state, format!("settings are as asked already (version {})", state.settings_version)));
    }
    let (next, version) = with_settings(state, settings, &context.actor.reason, context);
    Ok((next, outcome(format!("settings version {version} is in force"))))
}

fn rollback_settings(
    state: &ClusterState,
    version: u64,
    context: &Context<'_>,
) -> Result<(ClusterState, Outcome), Trouble> {
    let Some(change) = state.settings_history.iter().find(|change| change.version == version) else {
        return Err(Trouble::not_found(
            format!("settings version {version} is not kept"),
            "`stemma config history` lists the versions that are",
        ));
    };
    if change.settings == state.settings {
        let text = format!("settings are as in version {version} already (version {})", state.settings_version);
        return Ok(unchanged(state, text));
    }
    let reason = match context.actor.reason.as_str() {
        "" => format!("back to version {version}"),
        given => format!("back to version {version}: {given}"),
    };
    let (next, new) = with_settings(state, &change.settings, &reason, context);
    Ok((next, outcome(format!("settings of version {version} are in force as version {new}"))))
}

fn with_settings(
    state: &ClusterState,
    settings: &Settings,
    reason: &str,
    context: &Context<'_>,
) -> (ClusterState, u64) {
    let mut next = state.clone();
    let version = state.settings_version + 1;
    next.settings_version = version;
    next.settings = settings.clone();
    next.settings_history.push(SettingsChange {
        version,
        at: context.now,
        actor: context.actor.name.clone(),
        reason: reason.to_owned(),
        settings: settings.clone(),
    });
    history::keep_newest(&mut next.settings_history, SETTINGS_HISTORY_MAX);
    let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    let text = format!("settings version {version} was applied{because}");
    history::record(&mut next, context.now, "settings-applied", None, text, &context.actor.name);
    (next, version)
}

fn create_token(
    state: &ClusterState,
    role: Role,
    ttl: Millis,
    context: &Context<'_>,
) -> Result<(ClusterState, Outcome), Trouble> {
    let mut next = state.clone();
    let token = tokens::create(&mut next, role, ttl, &context.random, &context.actor, context.now)?;
    let life = model::settings::Span(ttl);
    let text = format!("join token {} was made for a {role}, good for {life}", token.id);
    history::record(&mut next, context.now, "token-made", None, text.clone(), &context.actor.name);
    let notes = vec!["it admits one node and is shown only now".to_owned()];
    Ok((next, Outcome { token: Some(format!("{}.{}", token.id, token.secret)), notes, ..outcome(text) }))
}

fn revoke_token(state: &ClusterState, id: &str, context: &Context<'_>) -> Result<(ClusterState, Outcome), Trouble> {
    let mut next = state.clone();
    tokens::revoke(&mut next, id, &context.actor, context.now)?;
    Ok((next, outcome(format!("join token {id} was revoked"))))
}

fn rolling_restart(
    state: &ClusterState,
    only_pending: bool,
    names: &[NodeName],
    context: &Context<'_>,
) -> Result<(ClusterState, Outcome), Trouble> {
    let request = context.request();
    if let Some(made) = state.operations.iter().find(|operation| operation.request == request) {
        // The write took effect although its answer was lost: this is the request's own operation.
        let text = format!("operation {} restarts servers, one after the other", made.id);
        return Ok((state.clone(), Outcome { operation: Some(made.id.clone()), ..outcome(text) }));
    }
    if let Some(other) = operation::running(state) {
        return Err(Trouble::operation_running(
            format!("operation {} is running: {}", other.id, other.because),
            format!("wait for it, or end it with `stemma op cancel {}`", other.id),
        ));
    }
    let targets = restart_targets(state, only_pending, names, context)?;
    if targets.is_empty() {
        return Ok(unchanged(state, "no node needs a restart"));
    }
    let order = operation::restart_order(state, context.status, &targets)?;
    let mut next = state.clone();
    let id = format!("op_{}", next.next_order);
    next.next_order += 1;
    let in_order: Vec<String> = order.iter().map(|id| next.members[id].name.to_string()).collect();
    let because = match context.actor.reason.as_str() {
        "" if only_pending => "parameters wait for a restart".to_owned(),
        "" => "a restart was asked for".to_owned(),
        given => given.to_owned(),
    };
    next.operations.push(Operation {
        id: id.clone(),
        request,
        kind: OperationKind::RollingRestart,
        epoch: state.rule.epoch,
        actor: context.actor.name.clone(),
        because: because.clone(),
        started_at: context.now,
        ended_at: None,
        steps: order.iter().map(|node| operation::restart_step(*node)).collect(),
        state: OperationState::Running,
    });
    history::keep_newest(&mut next.operations, OPERATIONS_MAX);
    let text = format!("operation {id} restarts {}, one after the other", in_order.join(", "));
    history::record(
        &mut next,
        context.now,
        "operation-started",
        None,
        format!("{text}: {because}"),
        &context.actor.name,
    );
    Ok((next, Outcome { operation: Some(id), ..outcome(text) }))
}

/// Whose servers are to be restarted. A node that could not carry out its step is refused now, not in the middle.
fn restart_targets(
    state: &ClusterState,
    only_pending: bool,
    names: &[NodeName],
    context: &Context<'_>,
) -> Result<BTreeSet<NodeId>, Trouble> {
    let mut chosen: Vec<&Member> = Vec::new();
    for name in names {
        let member = member_named(state, name)?;
        if member.witness {
            return Err(Trouble::wrong_role(
                format!("`{name}` is a witness and has no server to restart"),
                "name data nodes only",
            ));
        }
        if member.stage != Stage::Active {
            return Err(Trouble::wrong_role(
                format!("`{name}` is not an active member now"),
                "`stemma status` shows what it is doing; leave it out until it is done",
            ));
        }
        chosen.push(member);
    }
    if names.is_empty() {
        chosen = state.members.values().filter(|member| !member.witness && member.stage == Stage::Active).collect();
    }
    if only_pending {
        chosen.retain(|member| {
            context.status.node(member.name.as_str()).is_some_and(|node| !node.pending_restart.is_empty())
        });
    }
    match chosen.iter().find(|member| !context.answers(&member.name)) {
        Some(silent) => Err(Trouble::node_silent(
            format!("the keeper of `{}` does not answer, so it cannot restart its server", silent.name),
            "bring it back, or name the nodes to restart without it",
        )),
        None => Ok(chosen.iter().map(|member| member.id).collect()),
    }
}

fn cancel_operation(state: &ClusterState, id: &str, context: &Context<'_>) -> Result<(ClusterState, Outcome), Trouble> {
    let Some(found) = state.operations.iter().find(|operation| operation.id == id) else {
        return Err(Trouble::not_found(
            format!("there is no operation `{}`", id.chars().take(40).collect::<String>()),
            "`stemma op list` lists them",
        ));
    };
    match found.state {
        OperationState::Running => {}
        OperationState::Succeeded | OperationState::Failed { .. } | OperationState::Cancelled => {
            return Ok(unchanged(state, format!("operation {id} has ended already")));
        }
    }
    let mut next = state.clone();
    let words = format!("was cancelled by {}", context.actor.name);
    operation::end(&mut next, id, OperationState::Cancelled, context.now, &words);
    let notes = vec!["a step that was begun is finished; no other is begun".to_owned()];
    Ok((next, Outcome { notes, ..outcome(format!("operation {id} was cancelled")) }))
}

#[cfg(test)]
mod tests;
