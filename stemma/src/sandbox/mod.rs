//! `stemma sandbox`: throw-away local clusters of real keepers and real servers, for developers, CI and our own tests.

pub mod build;
pub mod layout;
mod ports;
pub mod processes;
mod report;

use crate::cli::{SandboxCommand, SandboxDir, SandboxTarget, What};
use crate::commands::Context;
use crate::render::out;
use layout::{Layout, SandboxNode};
use model::status::SCHEMA_VERSION;
use model::{NodeName, Trouble};
use nix::sys::signal::Signal;
use processes::{keeper_runs, server_processes, signal_keeper, signal_server, start_keeper, start_ticks, wait_until};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a keeper may take to stop after being asked.
const KEEPER_STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a server may take to stop after being asked.
const SERVER_STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long killed processes may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs the command.
pub async fn run(context: &Context, command: SandboxCommand) -> Result<u8, Trouble> {
    match command {
        SandboxCommand::Start(args) => {
            let layout = build::start(context, &args, directory(context, &args.dir)?).await?;
            report::show(context, &layout).await
        }
        SandboxCommand::Status(dir) => report::show(context, &Layout::load(&directory(context, &dir)?)?).await,
        SandboxCommand::Stop { dir, purge } => stop(context, &directory(context, &dir)?, purge).await,
        SandboxCommand::Crash(target) => hit(context, &target, Signal::SIGKILL, "killed").await,
        SandboxCommand::Freeze(target) => hit(context, &target, Signal::SIGSTOP, "stopped").await,
        SandboxCommand::Thaw(target) => hit(context, &target, Signal::SIGCONT, "continued").await,
        SandboxCommand::Restart { node, dir } => restart(context, &directory(context, &dir)?, &node).await,
    }
}

fn directory(context: &Context, dir: &SandboxDir) -> Result<PathBuf, Trouble> {
    let named = dir.dir.clone().or_else(|| context.global.sandbox.clone());
    let path = named.ok_or_else(|| Trouble::usage("no sandbox is named", "give --dir DIR, or set STEMMA_SANDBOX"))?;
    std::path::absolute(&path)
        .map_err(|error| Trouble::usage(format!("{} is not a path", path.display()), "give --dir DIR").because(error))
}

fn say(context: &Context, document: serde_json::Value, text: &str) {
    if context.is_json() {
        let mut document = document;
        document["schema_version"] = json!(SCHEMA_VERSION);
        out::json(&document);
    } else {
        out::line(&context.look.finish(text));
    }
}

async fn stop(context: &Context, directory: &Path, purge: bool) -> Result<u8, Trouble> {
    let layout = Layout::load(directory)?;
    stop_processes(&layout).await?;
    if purge {
        remove(&layout)?;
    }
    let what = if purge { "stopped and removed" } else { "stopped" };
    say(
        context,
        json!({ "stopped": true, "purged": purge, "directory": directory }),
        &format!("✔ sandbox {} {what}", directory.display()),
    );
    Ok(0)
}

/// Stops every keeper, then every server: a keeper that still runs would start its server again.
pub async fn stop_processes(layout: &Layout) -> Result<(), Trouble> {
    for node in &layout.nodes {
        signal_keeper(node, Signal::SIGTERM)?;
        // A frozen process takes its end only when it goes on.
        signal_keeper(node, Signal::SIGCONT)?;
        signal_server(node, Signal::SIGCONT)?;
    }
    let keepers_gone = || !layout.nodes.iter().any(keeper_runs);
    if !wait_until(KEEPER_STOP_TIMEOUT, keepers_gone).await {
        for node in &layout.nodes {
            signal_keeper(node, Signal::SIGKILL)?;
        }
        wait_until(KILL_TIMEOUT, keepers_gone).await;
    }
    for node in &layout.nodes {
        if let Some(postmaster) = postmaster(node) {
            processes::signal(postmaster, Signal::SIGINT)?;
        }
    }
    let servers_gone = || layout.nodes.iter().all(|node| server_processes(&node.data_dir).is_empty());
    if wait_until(SERVER_STOP_TIMEOUT, servers_gone).await {
        return Ok(());
    }
    for node in &layout.nodes {
        signal_server(node, Signal::SIGKILL)?;
    }
    if wait_until(KILL_TIMEOUT, servers_gone).await {
        return Ok(());
    }
    Err(Trouble::server_failed(
        "servers of the sandbox do not end",
        "look at them with `ps`; a disk that hangs holds processes",
    ))
}

/// The first process of a running server.
fn postmaster(node: &SandboxNode) -> Option<i32> {
    let text = std::fs::read_to_string(node.data_dir.join("postmaster.pid")).ok()?;
    let pid = text.lines().next()?.trim().parse().ok()?;
    server_processes(&node.data_dir).contains(&pid).then_some(pid)
}

/// Removes the directory of a sandbox; `Layout::load` has seen its marker.
pub fn remove(layout: &Layout) -> Result<(), Trouble> {
    std::fs::remove_dir_all(&layout.directory).map_err(|error| {
        Trouble::os(format!("{} could not be removed", layout.directory.display()), "check permissions").because(error)
    })
}

async fn hit(context: &Context, target: &SandboxTarget, signal: Signal, done: &str) -> Result<u8, Trouble> {
    let layout = Layout::load(&directory(context, &target.dir)?)?;
    let node = layout.node(&target.node)?;
    if node.witness && target.what == What::Postgres {
        return Err(Trouble::wrong_role(format!("{} is a witness and has no server", node.name), "use --what keeper"));
    }
    // The keeper first, and gone: it would bring a killed server back before the host is down.
    let keeper = if target.what == What::Postgres { 0 } else { signal_keeper(node, signal)? };
    if signal == Signal::SIGKILL && keeper == 1 {
        ended(node, "its keeper", || !keeper_runs(node)).await?;
    }
    let hit = if target.what == What::Keeper { BTreeSet::new() } else { signal_server(node, signal)? };
    let server = hit.len() as u32;
    if keeper + server == 0 {
        return Err(Trouble::not_found(
            format!("nothing of that runs on {}", node.name),
            "look at: stemma sandbox status",
        ));
    }
    if signal == Signal::SIGKILL {
        // Those that were hit: with `--what postgres` the keeper starts others at once.
        ended(node, "its server", || hit.iter().all(|pid| start_ticks(*pid).is_none())).await?;
    }
    let text = format!("✔ {}: {} processes {done}", node.name, keeper + server);
    say(context, json!({ "node": node.name, "keeper": keeper, "server": server, "signal": signal.as_str() }), &text);
    Ok(0)
}

/// Waits for the end of what was killed: under load the kernel takes its time.
async fn ended(node: &SandboxNode, what: &str, gone: impl FnMut() -> bool) -> Result<(), Trouble> {
    if wait_until(KILL_TIMEOUT, gone).await {
        return Ok(());
    }
    Err(Trouble::server_failed(
        format!("{}: {what} does not end", node.name),
        "look at it with `ps`; a disk that hangs holds processes",
    ))
}

async fn restart(context: &Context, directory: &Path, name: &NodeName) -> Result<u8, Trouble> {
    let mut layout = Layout::load(directory)?;
    let node = layout.node_mut(name)?;
    stop_keeper(node).await?;
    start_keeper(node)?;
    let keeper = node.keeper;
    layout.save()?;
    let pid = keeper.map_or(0, |keeper| keeper.pid);
    say(context, json!({ "node": name, "keeper_pid": pid }), &format!("✔ {name}: keeper started, pid {pid}"));
    Ok(0)
}

async fn stop_keeper(node: &SandboxNode) -> Result<(), Trouble> {
    signal_keeper(node, Signal::SIGTERM)?;
    signal_keeper(node, Signal::SIGCONT)?;
    if !wait_until(KEEPER_STOP_TIMEOUT, || !keeper_runs(node)).await {
        signal_keeper(node, Signal::SIGKILL)?;
        wait_until(KILL_TIMEOUT, || !keeper_runs(node)).await;
    }
    Ok(())
}
