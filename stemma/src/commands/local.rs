//! Commands that act on this machine's node: `init`, `join`, `run`, `completion`.

use super::Context;
use super::target::node_file_path;
use crate::cli::{Cli, InitArgs, JoinArgs, RoleArg};
use crate::daemon::{self, Adopt, InitOptions, JoinOptions};
use crate::node_file::{self, NodeFile};
use crate::render::out;
use clap::CommandFactory;
use model::{ReplicaKind, Trouble};
use std::io::Read;

/// Longest token read from standard input.
const TOKEN_BYTES_MAX: u64 = 16 << 10;

pub(super) fn load(context: &Context) -> Result<NodeFile, Trouble> {
    node_file::load(&node_file_path(&context.global))
}

fn say(context: &Context, text: &str) {
    if context.is_json() {
        context.print_json("text", text);
    } else {
        out::line(&context.look.finish(&format!("✔ {text}")));
    }
}

/// `stemma init`
pub async fn init(context: &Context, args: InitArgs) -> Result<u8, Trouble> {
    let file = load(context)?;
    if file.postgresql.is_none() {
        return Err(Trouble::wrong_role(
            format!("{} is a witness: its node file has no [postgresql] section", file.name),
            "begin the cluster on a node with a database",
        ));
    }
    let adopt = args.adopt.then_some(Adopt { superuser: args.superuser, dsn: args.adopt_dsn });
    let options = InitOptions { cluster: args.name, adopt, settings_file: args.settings };
    let (text, notes) = daemon::init(file, options).await?;
    if context.is_json() {
        context.print_json_with("text", text, "notes", notes);
    } else {
        say(context, &text);
        for note in notes {
            out::line(&context.look.finish(&format!("  {note}")));
        }
    }
    Ok(0)
}

/// `stemma join`
pub async fn join(context: &Context, args: JoinArgs) -> Result<u8, Trouble> {
    let file = load(context)?;
    let witness_file = file.postgresql.is_none();
    let options = join_options(&args, witness_file)?;
    let token = if args.token == "-" { token_from_stdin()? } else { args.token };
    let text = daemon::join(file, token, options).await?;
    say(context, &text);
    Ok(0)
}

fn join_options(args: &JoinArgs, witness_file: bool) -> Result<JoinOptions, Trouble> {
    let misfit = |reason: &str, hint: &str| Err(Trouble::usage(reason, hint));
    match (args.role, witness_file) {
        (RoleArg::Witness, false) => {
            return misfit(
                "a witness has no database, but the node file has a [postgresql] section",
                "remove the section, or join with --role replica",
            );
        }
        (RoleArg::Replica, true) => {
            return misfit(
                "a replica needs a database, but the node file has no [postgresql] section",
                "add the section, or join with --role witness",
            );
        }
        (RoleArg::Witness, true) | (RoleArg::Replica, false) => {}
    }
    let kind: ReplicaKind = args.kind.into();
    let delay = args.delay.map_or(0, |span| span.0.0);
    match (kind, delay) {
        (ReplicaKind::Delayed, 0) => return misfit("a delayed replica needs to know how late", "add --delay 1h"),
        (ReplicaKind::Hot | ReplicaKind::Standby, 1..) => {
            return misfit("--delay is for delayed replicas", "add --kind delayed");
        }
        (ReplicaKind::Delayed, _) | (ReplicaKind::Hot | ReplicaKind::Standby, 0) => {}
    }
    Ok(JoinOptions {
        role: args.role.into(),
        kind,
        apply_delay_ms: delay,
        from: args.from.clone(),
        site: args.site.clone(),
        priority: args.priority,
    })
}

pub(super) fn token_from_stdin() -> Result<String, Trouble> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(TOKEN_BYTES_MAX).read_to_string(&mut text);
    read.map_err(|error| {
        Trouble::usage("no token on standard input", "pipe it in, or give it as the argument").because(error)
    })?;
    Ok(text.trim().to_owned())
}

/// `stemma run`
pub async fn run(context: &Context) -> Result<u8, Trouble> {
    daemon::run(&node_file_path(&context.global)).await?;
    Ok(0)
}

/// `stemma completion`
pub fn completion(shell: clap_complete::Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "stemma", &mut script);
    out::raw(&String::from_utf8_lossy(&script));
}
