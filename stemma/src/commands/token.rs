//! `stemma token ...`

use super::Context;
use crate::cli::{TokenCommand, TokenRoleArg};
use crate::render::table::{Cell, Table};
use crate::render::{out, units};
use hyper::Method;
use model::status::SCHEMA_VERSION;
use model::{Trouble, WallTime, limits};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A token as the API shows it: without its hash.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    id: String,
    role: String,
    expires_at: WallTime,
    #[serde(default)]
    created_by: String,
    #[serde(default)]
    used_by: Option<serde_json::Value>,
}

/// Runs the command.
pub async fn run(context: &Context, command: TokenCommand) -> Result<u8, Trouble> {
    let client = context.client()?;
    match command {
        TokenCommand::Create { role, ttl } => {
            create(context, role, ttl.map_or(limits::TOKEN_TTL_DEFAULT.0, |ttl| ttl.0.0)).await
        }
        TokenCommand::List => {
            let tokens: Vec<Token> = client.list("/v1/tokens", "tokens").await?;
            list(context, &tokens);
            Ok(0)
        }
        TokenCommand::Revoke { id } => {
            let plain: String = id.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
            if plain != id || id.is_empty() {
                return Err(Trouble::usage(format!("`{id}` is not the id of a token"), "look at: stemma token list"));
            }
            let outcome = client.change(Method::DELETE, &format!("/v1/tokens/{id}"), None).await?;
            context.print_outcome(&outcome);
            Ok(0)
        }
    }
}

async fn create(context: &Context, role: TokenRoleArg, ttl_ms: u64) -> Result<u8, Trouble> {
    let role_name = word(role);
    let body = json!({ "role": role_name, "ttl": ttl_ms });
    let outcome = context.client()?.change(Method::POST, "/v1/tokens", Some(body)).await?;
    let Some(token) = outcome.token.clone() else {
        context.print_outcome(&outcome);
        return Ok(0);
    };
    let join = join_line(&token, role);
    if context.is_json() {
        out::json(
            &json!({ "schema_version": SCHEMA_VERSION, "token": token, "role": role_name, "join": join, "text": outcome.text }),
        );
        return Ok(0);
    }
    // The line alone goes to standard output, so that it can be piped.
    out::note(&context.look.finish(&format!("✔ {}", outcome.text)));
    out::note(&format!("  one use, within {}; run on the new node:", units::age_ms(ttl_ms)));
    out::line(&join);
    Ok(0)
}

fn word(role: TokenRoleArg) -> &'static str {
    match role {
        TokenRoleArg::Replica => "replica",
        TokenRoleArg::Witness => "witness",
        TokenRoleArg::Follower => "follower",
    }
}

fn join_line(token: &str, role: TokenRoleArg) -> String {
    match role {
        TokenRoleArg::Replica => format!("stemma join {token}"),
        TokenRoleArg::Witness => format!("stemma join {token} --role witness"),
        TokenRoleArg::Follower => format!("stemma cluster follow {token} --name NAME"),
    }
}

fn list(context: &Context, tokens: &[Token]) {
    if context.is_json() {
        return context.print_json("tokens", tokens);
    }
    if tokens.is_empty() {
        return out::line("  no tokens; make one with: stemma token create");
    }
    let mut table = Table::new(&["ID", "ROLE", "STATE", "EXPIRES", "MADE BY"]);
    let now = units::now();
    for token in tokens {
        let state = match (&token.used_by, token.expires_at > now) {
            (Some(_), _) => "used",
            (None, true) => "alive",
            (None, false) => "expired",
        };
        table.row(vec![
            token.id.as_str().into(),
            token.role.as_str().into(),
            state.into(),
            units::time(token.expires_at).into(),
            Cell::plain(token.created_by.as_str()),
        ]);
    }
    out::line(&table.render(&context.look).join("\n"));
}
