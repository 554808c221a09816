//! `stemma cert ...`: when certificates end, and new ones before that.

use super::Context;
use crate::cli::CertCommand;
use crate::render::look::{Mark, Tone};
use crate::render::table::{Cell, Table};
use crate::render::{out, units};
use hyper::Method;
use model::Trouble;
use serde_json::json;

/// From this much left on, a certificate is shown as a warning.
const WARN_LEFT_MS: i64 = 14 * 86_400_000;

/// Runs the command.
pub async fn run(context: &Context, command: CertCommand) -> Result<u8, Trouble> {
    let client = context.client()?;
    let node = match command {
        CertCommand::Rotate { node } => node,
        CertCommand::Status => return status(context).await,
    };
    let path = match node {
        Some(node) => format!("/v1/certificates/rotate?node={node}"),
        None => "/v1/certificates/rotate".to_owned(),
    };
    let outcome = client.change(Method::POST, &path, None).await?;
    context.print_outcome(&outcome);
    Ok(0)
}

async fn status(context: &Context) -> Result<u8, Trouble> {
    let view = context.client()?.status().await?;
    if context.is_json() {
        let rows: Vec<_> = view
            .nodes
            .iter()
            .map(|node| json!({ "node": node.name, "expires_at": node.certificate_expires_at }))
            .collect();
        context.print_json("certificates", rows);
        return Ok(0);
    }
    let mut table = Table::new(&["NODE", "STATE", "ENDS", "LEFT"]);
    for node in &view.nodes {
        let left = node.certificate_expires_at.map(|end| end.millis_since(view.observed_at));
        let (mark, word) = match left {
            None => (Mark::Unknown, "unknown"),
            Some(..=0) => (Mark::Down, "expired"),
            Some(left) if left < WARN_LEFT_MS => (Mark::Warn, "ends soon"),
            Some(_) => (Mark::Ok, "ok"),
        };
        table.row(vec![
            Cell::toned(Tone::Strong, node.name.as_str()),
            Cell::toned(mark.tone(), mark.sign()).and(Tone::Plain, format!(" {word}")),
            node.certificate_expires_at.map_or_else(Cell::none, |end| units::time(end).into()),
            left.map_or_else(Cell::none, |left| units::age_ms(u64::try_from(left).unwrap_or(0)).into()),
        ]);
    }
    out::line(&table.render(&context.look).join("\n"));
    Ok(0)
}
