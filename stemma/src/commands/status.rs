//! `stemma status`: once, as a check, or redrawn until interrupted.

use super::Context;
use crate::cli::StatusArgs;
use crate::client::Client;
use crate::render::look::Look;
use crate::render::{out, status, trouble};
use model::error::exit;
use model::status::Verdict;
use model::{ClusterStatus, Trouble};
use std::time::Duration;

/// A faster redraw would show nothing new: samples come twice a second.
const WATCH_INTERVAL_MIN: Duration = Duration::from_millis(200);

/// Runs the command.
pub async fn run(context: &Context, args: &StatusArgs) -> Result<u8, Trouble> {
    let client = context.client()?;
    if let Some(span) = args.watch {
        return watch(context, &client, span.0.duration().max(WATCH_INTERVAL_MIN)).await;
    }
    let view = if context.is_json() {
        // Passed on as it came: fields that this program does not know yet are kept.
        let answer = client.get_value("/v1/status").await?;
        out::json(&answer.body);
        serde_json::from_value::<ClusterStatus>(answer.body).map_err(|error| {
            Trouble::internal("the status is not understood", "compare `stemma --version` of the nodes").because(error)
        })?
    } else {
        let view = client.status().await?;
        out::line(&status::render(&view, &context.look));
        view
    };
    let healthy = view.verdict == Verdict::Healthy;
    Ok(if args.check && !healthy { exit::NEGATIVE } else { 0 })
}

async fn watch(context: &Context, client: &Client, interval: Duration) -> Result<u8, Trouble> {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(0),
            _ = ticks.tick() => {}
        }
        let view = tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(0),
            view = client.status() => view,
        };
        show(context, &view);
    }
}

/// An unreachable cluster is shown, not fatal: the one who watches wants to see it come back.
fn show(context: &Context, view: &Result<ClusterStatus, Trouble>) {
    if context.is_json() {
        let line = match view {
            Ok(view) => serde_json::to_string(view),
            Err(error) => serde_json::to_string(&trouble::json(error)),
        };
        return out::line(&line.unwrap_or_default());
    }
    // Asked anew each time: the window may have been resized.
    let look = Look::detect(&context.global);
    let text = match view {
        Ok(view) => status::render(view, &look),
        Err(error) => trouble::text(error, &look),
    };
    if context.look.terminal {
        out::raw(&status::redraw(&text));
    } else {
        out::line(&text);
        out::line("");
    }
}
