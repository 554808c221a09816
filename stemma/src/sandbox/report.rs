//! What a sandbox is, for people and programs: names, roles, addresses, processes.

use super::layout::{Layout, SandboxNode};
use super::processes::keeper_runs;
use crate::client::Client;
use crate::commands::{Context, target};
use crate::render::look::{Mark, Tone};
use crate::render::out;
use crate::render::status::state;
use crate::render::table::{Cell, Table};
use model::Trouble;
use model::status::{ClusterStatus, NodeStatus, SCHEMA_VERSION};
use serde_json::json;
use std::time::Duration;

const STATUS_TIMEOUT: Duration = Duration::from_secs(3);

/// Prints the sandbox.
pub async fn show(context: &Context, layout: &Layout) -> Result<u8, Trouble> {
    let client = Client::new(target::from_sandbox(layout)?).with(None, Some(STATUS_TIMEOUT), false);
    let view = client.status().await.ok();
    let status_of = |node: &SandboxNode| view.as_ref().and_then(|view| view.node(node.name.as_str()));
    if context.is_json() {
        let nodes: Vec<_> = layout.nodes.iter().map(|node| document(node, status_of(node))).collect();
        out::json(&json!({
            "schema_version": SCHEMA_VERSION, "cluster": layout.cluster, "directory": layout.directory,
            "verdict": view.as_ref().map(|view| view.verdict), "nodes": nodes,
        }));
        return Ok(0);
    }
    out::line(&context.look.finish(&headline(layout, view.as_ref())));
    let mut table = Table::new(&["NODE", "ROLE", "STATE", "KEEPER", "API", "POSTGRESQL"]);
    for node in &layout.nodes {
        table.row(row(node, status_of(node)));
    }
    // Addresses are there to be copied, so they are never cut.
    let wide = crate::render::look::Look { width: usize::MAX, ..context.look };
    out::line(&table.render(&wide).join("\n"));
    out::line(&format!("  data and logs: {}/<node>/data, {0}/<node>/keeper.log", layout.directory.display()));
    out::line(&format!("  look: stemma --sandbox {} status --watch", layout.directory.display()));
    Ok(0)
}

fn headline(layout: &Layout, view: Option<&ClusterStatus>) -> String {
    let (mark, word) = match view {
        Some(view) if view.verdict == model::status::Verdict::Healthy => (Mark::Ok, view.verdict.as_str()),
        Some(view) => (Mark::Warn, view.verdict.as_str()),
        None => (Mark::Down, "no node answers"),
    };
    format!("{} {}  {word}  {}", mark.sign(), layout.cluster, layout.directory.display())
}

fn role(node: &SandboxNode, status: Option<&NodeStatus>) -> String {
    let planned = if node.witness { "witness" } else { "replica" };
    status.map_or(planned, |status| status.role.as_str()).to_owned()
}

fn row(node: &SandboxNode, status: Option<&NodeStatus>) -> Vec<Cell> {
    let (mark, word) = status.map_or((Mark::Unknown, "unknown".to_owned()), state);
    let keeper = match node.keeper {
        Some(keeper) if keeper_runs(node) => format!("pid {}", keeper.pid),
        Some(_) | None => "down".to_owned(),
    };
    vec![
        Cell::toned(Tone::Strong, node.name.as_str()),
        role(node, status).into(),
        Cell::toned(mark.tone(), mark.sign()).and(Tone::Plain, format!(" {word}")),
        keeper.into(),
        node.api_url().into(),
        node.uri("postgres").map_or_else(Cell::none, Cell::plain),
    ]
}

fn document(node: &SandboxNode, status: Option<&NodeStatus>) -> serde_json::Value {
    json!({
        "name": node.name,
        "role": role(node, status),
        "state": status.map(|status| state(status).1),
        "uri": node.uri("postgres"),
        "api": node.api_url(),
        "api_token_file": node.api_token_file(),
        "keeper_pid": node.keeper.filter(|_| keeper_runs(node)).map(|keeper| keeper.pid),
        "keeper_port": node.peer_port,
        "api_port": node.api_port,
        "postgresql_port": (!node.witness).then_some(node.postgresql_port),
        "data_dir": (!node.witness).then_some(&node.data_dir),
        "state_dir": node.state_dir,
        "config": node.config,
        "log": node.log,
    })
}
