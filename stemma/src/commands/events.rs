//! `stemma events`: what happens, as it happens.

use super::Context;
use crate::render::{out, units};
use clap::Args;
use model::status::SCHEMA_VERSION;
use model::{Trouble, WallTime};
use serde_json::{Value, json};
use std::time::Duration;

/// A node says every two seconds that it lives; one that is silent for so long is left for another.
const SILENCE_MAX: Duration = Duration::from_secs(7);
/// Pause before nodes are asked again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// One event as it came over the wire.
#[derive(Debug, Default, PartialEq)]
struct Told {
    id: Option<u64>,
    kind: String,
    data: Value,
}

/// `stemma events`
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on until interrupted; through another node when this one goes away
    #[arg(long, short = 'f')]
    follow: bool,
    /// Begin after this event; 0 for all that are kept [default: 0, with --follow from now on]
    #[arg(long, value_name = "SEQ")]
    since: Option<u64>,
}

/// Runs the command.
pub async fn run(context: &Context, args: EventsArgs) -> Result<u8, Trouble> {
    let EventsArgs { follow, since } = args;
    // Lag that changes every second would bury what happens; programs may have it.
    let only = if context.is_json() { "history,primary,failover,topology" } else { "history,primary,failover" };
    let mut since = since.or((!follow).then_some(0));
    let client = context.client()?;
    let mut last_primary = Value::Null;
    let mut joined = false;
    loop {
        let after = since.map_or_else(String::new, |since| format!("&since={since}"));
        let path = format!("/v1/events?only={only}&follow={follow}{after}");
        let read = client.events(&path, SILENCE_MAX, |text| {
            let Some(told) = parse(text) else { return };
            since = told.id.or(since);
            // Who serves is told anew by every node that is asked.
            if told.kind == "primary" && std::mem::replace(&mut last_primary, told.data.clone()) == told.data {
                return;
            }
            show(context, &told);
        });
        match read.await {
            Ok(()) if !follow => return Ok(0),
            Ok(()) => joined = true,
            // Before the first answer it may be the address that is wrong; after it, nodes come back.
            Err(trouble) if !follow || !joined => return Err(trouble),
            Err(trouble) => eprintln!("{trouble}; trying on"),
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Reads one event; `None` for a comment.
fn parse(text: &str) -> Option<Told> {
    let mut told = Told::default();
    let mut data = String::new();
    for line in text.lines() {
        match line.split_once(':').map(|(field, value)| (field, value.strip_prefix(' ').unwrap_or(value))) {
            Some(("id", value)) => told.id = value.parse().ok(),
            Some(("event", value)) => value.clone_into(&mut told.kind),
            Some(("data", value)) => data.push_str(value),
            Some(_) | None => {}
        }
    }
    told.data = serde_json::from_str(&data).ok()?;
    Some(told)
}

fn show(context: &Context, told: &Told) {
    if context.is_json() {
        let line = json!({"schema_version": SCHEMA_VERSION, "event": told.kind, "id": told.id, "data": told.data});
        return out::line(&line.to_string());
    }
    let data = &told.data;
    let text = |key: &str| data[key].as_str().unwrap_or("-").to_owned();
    let at = data["at"].as_i64().map_or_else(|| "now".to_owned(), |at| units::time(WallTime(at)));
    let line = match told.kind.as_str() {
        "history" => format!("{:>5}  {}  {}", told.id.unwrap_or_default(), text("kind"), text("text")),
        "failover" => format!("       {} {}: {}", text("id"), text("phase"), text("because")),
        "primary" => match data["name"].as_str() {
            Some(name) => {
                format!("       primary is {name} at {}:{}, epoch {}", text("host"), data["port"], data["epoch"])
            }
            None => format!("       nobody takes writes; epoch {} was the last", data["epoch"]),
        },
        "gap" => format!("       events are missing: {}", text("text")),
        other => format!("       {other} {data}"),
    };
    out::line(&format!("{at:<24}  {line}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_read_and_a_comment_is_not() {
        let told = parse("id: 7\nevent: history\ndata: {\"seq\":7}\n\n").expect("an event");
        assert_eq!(told, Told { id: Some(7), kind: "history".into(), data: json!({"seq": 7}) });
        assert_eq!(parse(": heartbeat\n\n"), None);
    }
}
