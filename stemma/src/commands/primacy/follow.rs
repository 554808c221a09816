//! Following a change of primary to its end, and its exit status. What came of it is read from the record of the
//! attempt in the cluster's state, never guessed from how the nodes look.

use super::story;
use crate::client::Client;
use crate::commands::Context;
use crate::render::look::Mark;
use crate::render::out;
use model::Trouble;
use model::change::{Change, ChangeResult};
use model::error::exit;
use model::units::WallTime;
use std::time::Duration;
use tokio::time::Instant;

/// How often the record is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long a change is followed unless --timeout says otherwise: longer than its preparations may take.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(660);
/// How long the cluster may be out of reach meanwhile.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// Follows a change to its end, telling each step once.
pub async fn follow(context: &Context, client: &Client, id: &str) -> Result<u8, Trouble> {
    let deadline = Instant::now() + context.global.timeout.map_or(FOLLOW_TIMEOUT, |span| span.0.duration());
    let path = format!("/v1/failovers/{id}");
    let mut told = 0;
    let mut last_at = None;
    let mut heard_at = Instant::now();
    loop {
        let looked = tokio::select! {
            _ = tokio::signal::ctrl_c() => return Err(still_running(id, "interrupted")),
            looked = client.get::<Change>(&path) => looked,
        };
        match looked {
            Ok(change) => {
                heard_at = Instant::now();
                tell_new(context, &change, &mut told, &mut last_at);
                if change.result.is_final() {
                    return ended(context, &change);
                }
            }
            // A node that has not heard of it yet may be asked again.
            Err(error) if heard_at.elapsed() > SILENCE_MAX => return Err(still_running(id, "no answer").because(error)),
            Err(_) => {}
        }
        if Instant::now() >= deadline {
            return Err(still_running(id, "the time to wait is over"));
        }
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Err(still_running(id, "interrupted")),
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
    }
}

fn still_running(id: &str, why: &str) -> Trouble {
    Trouble::change_unknown(
        format!("{why}; the change of primary {id} goes on by itself"),
        format!("look at what came of it: stemma explain {id}"),
    )
}

fn tell_new(context: &Context, change: &Change, told: &mut usize, last_at: &mut Option<WallTime>) {
    let events = story::events(change);
    let new = &events[(*told).min(events.len())..];
    for line in story::timeline(new, *last_at) {
        out::note(&context.look.finish(&line));
    }
    *last_at = events.last().map(|event| event.at);
    *told = events.len();
}

/// The exit status that scripts rely on, and the sentence.
fn ended(context: &Context, change: &Change) -> Result<u8, Trouble> {
    let verdict = story::verdict(change);
    let hint = format!("stemma explain {}", change.id);
    let (mark, status) = match &change.result {
        ChangeResult::Done => (Mark::Ok, 0),
        ChangeResult::OtherNode => (Mark::Warn, exit::OTHERWISE),
        ChangeResult::Undone { .. } => return Err(Trouble::change_undone(verdict, hint)),
        ChangeResult::Dropped { .. } => return Err(Trouble::switchover_refused(verdict, "stemma status")),
        ChangeResult::Cancelled { .. } => return Err(Trouble::change_undone(verdict, "nothing needs to be done")),
        ChangeResult::Unknown
        | ChangeResult::Scheduled { .. }
        | ChangeResult::Preparing
        | ChangeResult::Running { .. } => return Err(Trouble::change_unknown(verdict, hint)),
    };
    if status == exit::OTHERWISE && !context.is_json() {
        return Err(Trouble::other_primary(verdict, hint));
    }
    if context.is_json() {
        context.print_json("failover", change);
    } else {
        out::line(&context.look.finish(&format!("{} {verdict}", mark.sign())));
    }
    Ok(status)
}
