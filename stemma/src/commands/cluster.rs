//! `stemma cluster ...`: a whole cluster that follows another one.

use super::Context;
use super::local;
use super::primacy::{confirm_loss, follow};
use crate::daemon::{self, FollowOptions};
use crate::render::out;
use clap::{Args, Subcommand, ValueHint};
use hyper::Method;
use model::{ClusterName, Trouble};
use serde_json::json;
use std::path::PathBuf;

/// `stemma cluster ...`
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Make a standby cluster, with this node as its first, that follows the cluster of the token
    #[command(
        after_help = "Examples:\n  stemma token create --role follower               (in the cluster that is to be followed)\n  stemma cluster follow stemmaf1.eyJ... --name prod-dr   (on the first node of the standby cluster; then: stemma run)"
    )]
    Follow(FollowArgs),
    /// Make this standby cluster one that takes writes
    #[command(
        after_help = "Examples:\n  stemma cluster promote                                   (says how far behind it is, changes nothing)\n  stemma cluster promote --accept-data-loss 1MB\n  stemma cluster promote --accept-data-loss unknown --yes"
    )]
    Promote(PromoteArgs),
    /// End the following of a cluster that follows this one
    Forget {
        /// Its name, as `stemma status` shows it
        name: ClusterName,
    },
}

/// `stemma cluster follow`
#[derive(Debug, Args)]
pub struct FollowArgs {
    /// The token that `stemma token create --role follower` printed; `-` reads it from standard input
    pub token: String,
    /// Name of the standby cluster
    #[arg(long)]
    pub name: ClusterName,
    /// Cluster settings to begin with, TOML
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub settings: Option<PathBuf>,
}

/// `stemma cluster promote`
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// The most that may be missing, in bytes of log as last known as in 16MB, or `unknown`
    #[arg(long, value_name = "BOUND")]
    pub accept_data_loss: Option<String>,
    /// Do not wait for the end
    #[arg(long)]
    pub no_wait: bool,
}

/// Runs the command.
pub async fn run(context: &Context, command: ClusterCommand) -> Result<u8, Trouble> {
    match command {
        ClusterCommand::Follow(args) => begin(context, args).await,
        ClusterCommand::Promote(args) => promote(context, args).await,
        ClusterCommand::Forget { name } => {
            context
                .confirm(&format!("cluster {name} can follow no longer and has to be built anew to follow again"))?;
            let client = context.client()?;
            context.print_outcome(&client.change(Method::DELETE, &format!("/v1/followers/{name}"), None).await?);
            Ok(0)
        }
    }
}

async fn begin(context: &Context, args: FollowArgs) -> Result<u8, Trouble> {
    let file = local::load(context)?;
    if file.postgresql.is_none() {
        return Err(Trouble::wrong_role(
            format!("{} is a witness: its node file has no [postgresql] section", file.name),
            "begin the standby cluster on a node with a database",
        ));
    }
    let token = if args.token == "-" { local::token_from_stdin()? } else { args.token };
    let options = FollowOptions { cluster: args.name, settings_file: args.settings };
    let (text, follow) = daemon::follow(file, token, options).await?;
    if context.is_json() {
        context.print_json_with("text", text, "follow", follow);
    } else {
        out::line(&context.look.finish(&format!("✔ {text}")));
        out::line(&context.look.finish(&format!("  its servers: {}", follow.hosts.join(", "))));
    }
    Ok(0)
}

async fn promote(context: &Context, args: PromoteArgs) -> Result<u8, Trouble> {
    let client = context.client()?;
    let body = json!({ "accept_data_loss": args.accept_data_loss });
    let looked = client.clone().dry().change(Method::POST, "/v1/cluster/promote", Some(body.clone())).await?;
    if context.global.dry_run || !looked.changed {
        context.print_outcome(&looked);
        return Ok(0);
    }
    if !context.is_json() {
        for note in &looked.notes {
            out::note(&context.look.finish(&format!("  {note}")));
        }
    }
    confirm_loss(context, &client, &looked, "what the followed cluster alone has will be missing").await?;
    let outcome = client.change(Method::POST, "/v1/cluster/promote", Some(body)).await?;
    let Some(id) = outcome.failover.clone().filter(|_| !args.no_wait) else {
        context.print_outcome(&outcome);
        return Ok(0);
    };
    follow::follow(context, &client, &id).await
}
