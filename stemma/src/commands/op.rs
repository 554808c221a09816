//! Long actions: starting a rolling restart, looking at operations, following one to its end.

use super::Context;
use crate::cli::{OpCommand, RestartArgs};
use crate::client::Client;
use crate::render::look::Mark;
use crate::render::table::Table;
use crate::render::{out, units};
use hyper::Method;
use model::error::exit;
use model::state::{Operation, OperationKind, OperationState, Step, StepAction, StepState};
use model::{NodeId, Trouble};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// How often a followed operation is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(300);
/// How long an operation is followed unless --timeout says otherwise.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(1800);
/// How long the cluster may be out of reach while an operation is followed: restarts make it so for a moment.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// `stemma restart`
pub async fn restart(context: &Context, args: RestartArgs) -> Result<u8, Trouble> {
    let whom = if args.nodes.is_empty() {
        "all servers".to_owned()
    } else {
        args.nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    context.confirm(&format!("{whom} restart one after the other; connections to each end when its turn comes"))?;
    let client = context.client()?;
    let body = json!({ "only_pending": args.pending, "nodes": args.nodes });
    let outcome = client.change(Method::POST, "/v1/restart", Some(body)).await?;
    let Some(id) = outcome.operation.clone().filter(|_| !context.global.dry_run && !args.no_wait) else {
        context.print_outcome(&outcome);
        return Ok(0);
    };
    out::note(&context.look.finish(&format!("  {}", outcome.text)));
    follow(context, &client, &id).await
}

/// `stemma op`
pub async fn run(context: &Context, command: OpCommand) -> Result<u8, Trouble> {
    let client = context.client()?;
    match command {
        OpCommand::List => list(context, &client).await,
        OpCommand::Show { id } => {
            let operation = fetch(&client, &id).await?;
            let names = names(&client).await;
            print(context, &operation, &names);
            Ok(0)
        }
        OpCommand::Watch { id } => follow(context, &client, &id).await,
        OpCommand::Cancel { id } => {
            let outcome =
                client.change(Method::POST, &format!("/v1/operations/{}/cancel", checked(&id)?), None).await?;
            context.print_outcome(&outcome);
            Ok(0)
        }
    }
}

fn checked(id: &str) -> Result<&str, Trouble> {
    let sound = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if sound {
        Ok(id)
    } else {
        Err(Trouble::usage(format!("`{id}` is not the id of an operation"), "look at: stemma op list"))
    }
}

async fn fetch(client: &Client, id: &str) -> Result<Operation, Trouble> {
    client.get(&format!("/v1/operations/{}", checked(id)?)).await
}

/// Names for the node numbers in steps. Where the status is out of reach the numbers have to do.
async fn names(client: &Client) -> BTreeMap<NodeId, String> {
    let view = client.status().await;
    view.map(|view| view.nodes.into_iter().map(|node| (node.id, node.name.to_string())).collect()).unwrap_or_default()
}

fn name(names: &BTreeMap<NodeId, String>, id: NodeId) -> String {
    names.get(&id).cloned().unwrap_or_else(|| format!("node {id}"))
}

async fn list(context: &Context, client: &Client) -> Result<u8, Trouble> {
    let operations: Vec<Operation> = client.list("/v1/operations", "operations").await?;
    if context.is_json() {
        context.print_json("operations", &operations);
        return Ok(0);
    }
    if operations.is_empty() {
        out::line("  no operations yet");
        return Ok(0);
    }
    let mut table = Table::new(&["ID", "WHAT", "STATE", "STEPS", "STARTED", "BY", "WHY"]);
    for operation in &operations {
        table.row(vec![
            operation.id.as_str().into(),
            kind(operation.kind).into(),
            state(&operation.state).1.into(),
            format!("{}/{}", done(operation), operation.steps.len()).into(),
            units::time(operation.started_at).into(),
            operation.actor.as_str().into(),
            operation.because.as_str().into(),
        ]);
    }
    out::line(&table.render(&context.look).join("\n"));
    Ok(0)
}

fn done(operation: &Operation) -> usize {
    operation.steps.iter().filter(|step| step.state == StepState::Done).count()
}

fn kind(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::RollingRestart => "rolling restart",
    }
}

fn state(state: &OperationState) -> (Mark, &'static str) {
    match state {
        OperationState::Running => (Mark::Unknown, "running"),
        OperationState::Succeeded => (Mark::Ok, "succeeded"),
        OperationState::Failed { .. } => (Mark::Down, "failed"),
        OperationState::Cancelled => (Mark::Warn, "cancelled"),
    }
}

fn step_line(step: &Step, names: &BTreeMap<NodeId, String>) -> String {
    let action = match step.action {
        StepAction::Restart => "restart",
    };
    let (mark, word) = match step.state {
        StepState::Pending => (Mark::Unknown, "waits"),
        StepState::Running { .. } => (Mark::Warn, "running"),
        StepState::Done => (Mark::Ok, "done"),
        StepState::Failed => (Mark::Down, "failed"),
    };
    format!("  {} {action} {}  {word}", mark.sign(), name(names, step.node))
}

fn print(context: &Context, operation: &Operation, names: &BTreeMap<NodeId, String>) {
    if context.is_json() {
        return context.print_json("operation", operation);
    }
    let (mark, word) = state(&operation.state);
    let mut lines = vec![format!("{} {}  {}  {word}", mark.sign(), operation.id, kind(operation.kind))];
    lines.push(format!("  by {} at {}", operation.actor, units::time(operation.started_at)));
    lines.extend(operation.steps.iter().map(|step| step_line(step, names)));
    if let OperationState::Failed { code, reason } = &operation.state {
        lines.push(format!("  {reason} ({code})"));
    }
    out::line(&context.look.finish(&lines.join("\n")));
}

/// Follows an operation to its end, telling each change of a step once.
async fn follow(context: &Context, client: &Client, id: &str) -> Result<u8, Trouble> {
    checked(id)?;
    let deadline = Instant::now() + context.global.timeout.map_or(FOLLOW_TIMEOUT, |span| span.0.duration());
    let names = names(client).await;
    let mut told: Vec<String> = Vec::new();
    let mut heard_at = Instant::now();
    loop {
        let operation = tokio::select! {
            _ = tokio::signal::ctrl_c() => return still_running(id, "interrupted"),
            operation = fetch(client, id) => operation,
        };
        match operation {
            Ok(operation) => {
                heard_at = Instant::now();
                tell_changes(context, &operation, &names, &mut told);
                if operation.state != OperationState::Running {
                    return ended(context, &operation, &names);
                }
            }
            Err(error) if error.exit != exit::UNREACHABLE || heard_at.elapsed() > SILENCE_MAX => return Err(error),
            Err(_) => {}
        }
        if Instant::now() >= deadline {
            return still_running(id, "still running when the time was over");
        }
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return still_running(id, "interrupted"),
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

fn still_running(id: &str, why: &str) -> Result<u8, Trouble> {
    out::note(&format!("{why}: operation {id} continues; follow: stemma op watch {id}"));
    Ok(exit::UNKNOWN)
}

fn tell_changes(context: &Context, operation: &Operation, names: &BTreeMap<NodeId, String>, told: &mut Vec<String>) {
    for step in operation.steps.iter().filter(|step| step.state != StepState::Pending) {
        let line = step_line(step, names);
        if !told.contains(&line) {
            out::note(&context.look.finish(&line));
            told.push(line);
        }
    }
}

fn ended(context: &Context, operation: &Operation, names: &BTreeMap<NodeId, String>) -> Result<u8, Trouble> {
    match &operation.state {
        OperationState::Failed { code, reason } => {
            let mut trouble = Trouble::operation_failed(
                format!("{} failed: {reason}", operation.id),
                format!("stemma explain {code}; steps: stemma op show {}", operation.id),
            );
            trouble.causes.push(format!("{code}: {reason}"));
            Err(trouble)
        }
        OperationState::Succeeded | OperationState::Cancelled | OperationState::Running => {
            if context.is_json() {
                print(context, operation, names);
            } else {
                let (mark, word) = state(&operation.state);
                let steps = format!("{} of {} steps", done(operation), operation.steps.len());
                out::line(&context.look.finish(&format!("{} {} {word}: {steps}", mark.sign(), operation.id)));
            }
            Ok(if operation.state == OperationState::Cancelled { exit::OTHERWISE } else { 0 })
        }
    }
}
