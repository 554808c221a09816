//! `stemma node ...`

use super::Context;
use crate::cli::{NodeCommand, NodeSetArgs};
use crate::client::Client;
use crate::render::look::Tone;
use crate::render::status::state;
use crate::render::table::{Cell, Table};
use crate::render::{out, units};
use hyper::Method;
use model::command::NodePatch;
use model::status::{ClusterStatus, NodeStatus};
use model::{NodeName, Trouble};

/// Runs the command.
pub async fn run(context: &Context, command: NodeCommand) -> Result<u8, Trouble> {
    let client = context.client()?;
    match command {
        NodeCommand::List => list(context, &client).await,
        NodeCommand::Show { node } => show(context, &client, &node).await,
        NodeCommand::Remove { node, force } => {
            let effect = if force {
                format!(
                    "{node} is taken out of the cluster without being asked; if it still runs, it must never start again with its old data"
                )
            } else {
                format!("{node} is taken out of the cluster and stops replicating; its data directory stays")
            };
            context.confirm(&effect)?;
            change(context, &client, Method::DELETE, &format!("/v1/nodes/{node}?force={force}"), None).await
        }
        NodeCommand::Set(args) => set(context, &client, args).await,
        NodeCommand::Rejoin { node } => {
            change(context, &client, Method::POST, &format!("/v1/nodes/{node}/rejoin"), None).await
        }
        NodeCommand::Reinit { node } => {
            context.confirm(&format!("the data directory of {node} is erased and copied anew"))?;
            change(context, &client, Method::POST, &format!("/v1/nodes/{node}/reinit"), None).await
        }
    }
}

async fn change(
    context: &Context,
    client: &Client,
    method: Method,
    path: &str,
    body: Option<serde_json::Value>,
) -> Result<u8, Trouble> {
    let outcome = client.change(method, path, body).await?;
    context.print_outcome(&outcome);
    Ok(0)
}

async fn list(context: &Context, client: &Client) -> Result<u8, Trouble> {
    let view = client.status().await?;
    if context.is_json() {
        context.print_json("nodes", &view.nodes);
        return Ok(0);
    }
    let mut table = Table::new(&["NODE", "ROLE", "KIND", "STATE", "SITE", "UPSTREAM", "DATABASE", "API", "PEER"]);
    for node in &view.nodes {
        let (mark, word) = state(node);
        table.row(vec![
            Cell::toned(Tone::Strong, node.name.as_str()),
            node.role.as_str().into(),
            if node.role == model::Role::Replica { node.kind.as_str().into() } else { Cell::none() },
            Cell::toned(mark.tone(), mark.sign()).and(Tone::Plain, format!(" {word}")),
            node.site.as_str().into(),
            node.upstream.as_ref().map_or_else(Cell::none, |name| name.as_str().into()),
            node.postgres_address.as_str().into(),
            node.api_address.as_str().into(),
            node.peer_address.as_str().into(),
        ]);
    }
    out::line(&table.render(&context.look).join("\n"));
    Ok(0)
}

async fn show(context: &Context, client: &Client, name: &NodeName) -> Result<u8, Trouble> {
    let view = client.status().await?;
    let Some(node) = view.node(name.as_str()) else {
        let names: Vec<&str> = view.nodes.iter().map(|node| node.name.as_str()).collect();
        return Err(Trouble::unknown_node(
            format!("there is no node `{name}`"),
            format!("nodes: {}", names.join(", ")),
        ));
    };
    if context.is_json() {
        context.print_json("node", node);
        return Ok(0);
    }
    let facts = facts(node, &view);
    let width = facts.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    for (label, value) in facts {
        let label = context.look.paint(Tone::Quiet, &format!("{label:width$}"));
        out::line(&context.look.finish(&format!("  {label}  {value}")));
    }
    for problem in view.problems.iter().filter(|problem| problem.node.as_ref() == Some(name)) {
        out::line(
            &context.look.finish(&format!("  ▲ {} ({})\n    next: {}", problem.what, problem.code, problem.next)),
        );
    }
    Ok(0)
}

/// What is known of a node, as label and value; what is not known is left out.
fn facts(node: &NodeStatus, view: &ClusterStatus) -> Vec<(&'static str, String)> {
    let (mark, word) = state(node);
    let mut facts = vec![
        ("node", format!("{} (id {})", node.name, node.id)),
        ("role", node.role.to_string()),
        ("state", format!("{} {word}", mark.sign())),
        ("stage", node.stage.clone()),
        ("server", node.server.clone()),
        ("site", node.site.to_string()),
        ("priority", node.priority.to_string()),
    ];
    let mut add = |label, value: Option<String>| facts.extend(value.map(|value| (label, value)));
    add("kind", (node.role == model::Role::Replica).then(|| node.kind.as_str().to_owned()));
    add("upstream", node.upstream.as_ref().map(ToString::to_string));
    add("link", node.link.map(|link| link.as_str().to_owned()));
    add(
        "counts for commits",
        (node.role == model::Role::Replica).then(|| if node.voter { "yes".into() } else { "no".into() }),
    );
    if let Some(lag) = &node.lag {
        let bytes = |amount: Option<u64>| amount.map_or("unknown".to_owned(), units::bytes);
        add("lag", Some(lag.seconds.map_or("unknown".to_owned(), |seconds| units::span_ms(seconds * 1000.0))));
        add("behind", Some(format!("{} to apply, {} to receive", bytes(lag.apply_bytes), bytes(lag.receive_bytes))));
    }
    add("timeline", node.timeline.map(|timeline| timeline.to_string()));
    add("position", node.position.map(|position| position.to_string()));
    add("applied", node.replayed.map(|position| position.to_string()));
    add("version", node.version.clone());
    add("database", (node.role != model::Role::Witness).then(|| node.postgres_address.clone()));
    add("api", Some(node.api_address.clone()));
    add("peer address", Some(node.peer_address.clone()));
    add("connections", node.connections.map(|count| count.to_string()));
    add("disk used", node.disk_used_percent.map(|percent| format!("{percent}%")));
    add("settings", node.settings_version.map(|version| format!("v{version} of v{}", view.settings_version)));
    add(
        "keeper",
        node.keeper_pid.map(|pid| format!("pid {pid}, version {}", node.program_version.as_deref().unwrap_or("?"))),
    );
    add("server up since", node.started_at.map(units::time));
    add("certificate until", node.certificate_expires_at.map(units::time));
    add("clock", node.clock_offset_ms.map(|offset| format!("{offset:+} ms from {}", view.observer)));
    add("doing", node.doing.clone());
    for (name, pending) in &node.pending_restart {
        add("waits for restart", Some(format!("{name}: {} → {}", pending.old, pending.new)));
    }
    facts
}

async fn set(context: &Context, client: &Client, args: NodeSetArgs) -> Result<u8, Trouble> {
    let patch = NodePatch {
        kind: args.kind.map(Into::into),
        apply_delay_ms: args.delay.map(|span| span.0.0),
        upstream: args.from.map(|from| (from.as_str() != "primary").then_some(from)),
        site: args.site,
        priority: args.priority,
    };
    if patch == NodePatch::default() {
        return Err(Trouble::usage(
            "nothing to change is named",
            "add one of --kind, --delay, --from, --site, --priority",
        ));
    }
    change(context, client, Method::PATCH, &format!("/v1/nodes/{}", args.node), Some(patch_body(&patch))).await
}

/// Only what is mentioned; an upstream that goes back to the primary is an explicit null.
fn patch_body(patch: &NodePatch) -> serde_json::Value {
    let mut body = serde_json::to_value(patch).unwrap_or_default();
    if let Some(fields) = body.as_object_mut() {
        fields.retain(|key, value| !value.is_null() || (key == "upstream" && patch.upstream.is_some()));
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn going_back_to_the_primary_is_said_and_the_rest_is_not_mentioned() {
        let patch = NodePatch { upstream: Some(None), ..NodePatch::default() };
        assert_eq!(patch_body(&patch), serde_json::json!({ "upstream": null }));
        let patch = NodePatch { priority: Some(5), ..NodePatch::default() };
        assert_eq!(patch_body(&patch), serde_json::json!({ "priority": 5 }));
    }
}
