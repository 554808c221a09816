//! Changes of primary by hand: switch over, fail over, pause, resume.

pub mod follow;
pub mod story;

use super::Context;
use crate::cli::{FailoverArgs, SwitchoverArgs};
use crate::client::Client;
use crate::render::look::Tone;
use crate::render::table::{Cell, Table};
use crate::render::{out, units};
use hyper::Method;
use model::error::exit;
use model::failover::Candidate;
use model::settings::Span;
use model::{Outcome, Trouble};
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Write};

/// `stemma switchover`
pub async fn switchover(context: &Context, args: SwitchoverArgs) -> Result<u8, Trouble> {
    let client = context.client()?;
    if args.cancel {
        context.print_outcome(&client.change(Method::DELETE, "/v1/switchover", None).await?);
        return Ok(0);
    }
    let at = args.at.as_deref().map(parse_at).transpose()?;
    let body = json!({ "to": args.to, "at": at.map(|at| at.to_string()) });
    let looked = look_first(context, &client, "/v1/switchover", &body).await?;
    if context.global.dry_run {
        context.print_outcome(&looked);
        return Ok(0);
    }
    let effect = match &at {
        Some(at) => format!("{} for {at}; writes pause for some hundred milliseconds then", looked.text),
        None => format!("{}; writes pause for some hundred milliseconds, and open connections end", looked.text),
    };
    context.confirm(&effect)?;
    let outcome = client.change(Method::POST, "/v1/switchover", Some(body)).await?;
    let Some(id) = outcome.failover.clone().filter(|_| at.is_none() && !args.no_wait) else {
        context.print_outcome(&outcome);
        return Ok(0);
    };
    follow::follow(context, &client, &id).await
}

/// `stemma failover`
pub async fn failover(context: &Context, args: FailoverArgs) -> Result<u8, Trouble> {
    let client = context.client()?;
    let body = json!({ "to": args.to, "accept_data_loss": args.accept_data_loss });
    let looked = look_first(context, &client, "/v1/failover", &body).await?;
    if context.global.dry_run {
        context.print_outcome(&looked);
        return Ok(0);
    }
    confirm_loss(context, &client, &looked, "what the old primary alone has is given up").await?;
    let outcome = client.change(Method::POST, "/v1/failover", Some(body)).await?;
    let Some(id) = outcome.failover.clone().filter(|_| !args.no_wait) else {
        context.print_outcome(&outcome);
        return Ok(0);
    };
    follow::follow(context, &client, &id).await
}

/// `stemma pause`
pub async fn pause(context: &Context, span: Span) -> Result<u8, Trouble> {
    let body = json!({ "for": span });
    context.print_outcome(&context.client()?.change(Method::POST, "/v1/pause", Some(body)).await?);
    Ok(0)
}

/// `stemma resume`
pub async fn resume(context: &Context) -> Result<u8, Trouble> {
    context.print_outcome(&context.client()?.change(Method::POST, "/v1/resume", None).await?);
    Ok(0)
}

/// Whether `stemma explain` is asked about a change of primary.
pub fn is_change(id: &str) -> bool {
    let numbered = |prefix: &str| {
        id.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    id == "last-failover" || numbered("fo_") || numbered("sw_")
}

/// `stemma explain last-failover`
pub async fn explain(context: &Context, id: &str) -> Result<u8, Trouble> {
    let id = if id == "last-failover" { "last" } else { id };
    let change: model::change::Change = context.client()?.get(&format!("/v1/failovers/{id}")).await?;
    if context.is_json() {
        context.print_json("failover", &change);
    } else {
        out::line(&context.look.finish(&story::tell(&change).join("\n")));
    }
    Ok(0)
}

/// `+2h`, or a time with an offset.
fn parse_at(text: &str) -> Result<jiff::Timestamp, Trouble> {
    let bad = |cause: String| {
        Trouble::usage(
            format!("`{text}` is not a time"),
            "write +SPAN as in +2h, or a time with an offset as in 2030-01-31T02:30:00Z",
        )
        .because(cause)
    };
    if let Some(span) = text.strip_prefix('+') {
        let span: Span = span.parse().map_err(bad)?;
        let at = units::now().0.saturating_add(i64::try_from(span.0.0).unwrap_or(i64::MAX));
        return jiff::Timestamp::from_millisecond(at).map_err(|error| bad(error.to_string()));
    }
    text.parse().map_err(|error: jiff::Error| bad(error.to_string()))
}

/// Asks what would happen, and shows who can take over and who cannot.
async fn look_first(context: &Context, client: &Client, path: &str, body: &Value) -> Result<Outcome, Trouble> {
    let looked = client.clone().dry().change(Method::POST, path, Some(body.clone())).await?;
    if !context.is_json() {
        let table = candidates(&looked.candidates).render(&context.look);
        out::note(&context.look.finish(&table.join("\n")));
    }
    Ok(looked)
}

fn candidates(candidates: &[Candidate]) -> Table {
    let lossy = candidates.iter().any(|candidate| candidate.loss_bytes.is_some());
    let mut header = vec!["CANDIDATE", "ELIGIBLE", "LAG", "BEHIND"];
    header.extend(lossy.then_some("MISSES AT MOST"));
    header.extend(["PRIORITY", "REASON"]);
    let mut table = Table::new(&header);
    for candidate in candidates {
        let eligible = if candidate.eligible { "yes" } else { "no" };
        let tone = if candidate.eligible { Tone::Good } else { Tone::Warn };
        let amount = |value: Option<u64>| value.map_or_else(|| "unknown".to_owned(), units::bytes);
        let lag = candidate.lag_seconds.map_or_else(|| "unknown".to_owned(), |lag| units::span_ms(lag * 1000.0));
        let reason = if candidate.expected { "would take over" } else { candidate.reason.as_str() };
        let mut row: Vec<Cell> = vec![
            candidate.node.as_str().into(),
            Cell::toned(tone, eligible),
            lag.into(),
            amount(candidate.lag_bytes).into(),
        ];
        if lossy {
            row.push(amount(candidate.loss_bytes).into());
        }
        row.push(candidate.priority.to_string().into());
        row.push(reason.into());
        table.row(row);
    }
    table
}

/// Something may be lost for good: the name of the cluster is typed, or --yes given with a bound.
pub async fn confirm_loss(context: &Context, client: &Client, looked: &Outcome, what: &str) -> Result<(), Trouble> {
    if context.global.yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() || context.is_json() {
        return Err(Trouble::usage(
            format!("{}: this needs a confirmation, and there is no terminal to ask on", looked.text),
            "add --yes if this is wanted, or --dry-run to see what would happen",
        ));
    }
    let cluster = client.status().await?.cluster;
    eprint!("{}: {what}. Type the cluster's name to go on: ", looked.text);
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let _ = std::io::stdin().lock().read_line(&mut answer);
    if answer.trim() == cluster {
        return Ok(());
    }
    let mut trouble = Trouble::usage("not confirmed; nothing was changed", format!("type {cluster}, or add --yes"));
    trouble.exit = exit::REFUSED;
    Err(trouble)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_absolute_or_from_now() {
        assert_eq!(parse_at("2030-01-31T02:30:00Z").expect("a time").to_string(), "2030-01-31T02:30:00Z");
        assert_eq!(parse_at("2030-01-31T02:30:00+02:00").expect("a time").to_string(), "2030-01-31T00:30:00Z");
        let soon = parse_at("+2h").expect("a span").as_millisecond() - units::now().0;
        assert!((7_190_000..=7_200_000).contains(&soon), "{soon}");
        for bad in ["", "tomorrow", "02:30", "2030-01-31T02:30:00", "+", "+2", "-2h"] {
            assert_eq!(parse_at(bad).expect_err(bad).exit, 2, "{bad}");
        }
    }
}
