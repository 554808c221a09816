//! What each command does. A command returns its exit status, or the trouble that ended it.

mod cert;
pub mod cluster;
mod config;
pub mod dsn;
pub mod events;
pub mod export;
mod history;
pub mod import;
mod local;
mod node;
mod op;
mod primacy;
mod rescue;
pub mod router;
pub mod settings_bridge;
mod status;
pub mod target;
mod token;

use crate::cli::{Cli, Command, Global, Output};
use crate::client::Client;
use crate::render::look::Look;
use crate::render::out;
use crate::{daemon, demo, explain, reference, sandbox};
use model::status::SCHEMA_VERSION;
use model::{Outcome, Trouble};
use serde_json::{Value, json};
use std::io::{BufRead, IsTerminal, Write};

/// What every command is given.
#[derive(Clone, Debug)]
pub struct Context {
    /// Options of the command line.
    pub global: Global,
    /// How standard output is drawn.
    pub look: Look,
}

/// Runs the command.
pub async fn dispatch(cli: Cli) -> Result<u8, Trouble> {
    let look = Look::detect(&cli.global);
    let context = Context { global: cli.global, look };
    match cli.command {
        Command::Status(args) => status::run(&context, &args).await,
        Command::Node(command) => node::run(&context, command).await,
        Command::Token(command) => token::run(&context, command).await,
        Command::Cluster(command) => cluster::run(&context, command).await,
        Command::Config(command) => config::run(&context, command).await,
        Command::Restart(args) => op::restart(&context, args).await,
        Command::Switchover(args) => primacy::switchover(&context, args).await,
        Command::Failover(args) => primacy::failover(&context, args).await,
        Command::Pause { span } => primacy::pause(&context, span).await,
        Command::Resume => primacy::resume(&context).await,
        Command::Op(command) => op::run(&context, command).await,
        Command::History { limit, failovers: true } => history::failovers(&context, limit).await,
        Command::History { limit, failovers: false } => history::run(&context, limit).await,
        Command::Export(command) => export::run(&context, command).await,
        Command::Events(args) => events::run(&context, args).await,
        Command::Rescue(command) => rescue::run(&context, command),
        Command::Cert(command) => cert::run(&context, command).await,
        Command::Explain { code: Some(id), all: false } if primacy::is_change(&id) => {
            primacy::explain(&context, &id).await
        }
        Command::Explain { code, all } => explain::run(&context, code.as_deref(), all),
        Command::Init(args) => local::init(&context, args).await,
        Command::Join(args) => local::join(&context, args).await,
        Command::Run { .. } => local::run(&context).await,
        Command::Router { command: None } => crate::front::alone(context.global.config.as_deref()).await.map(|()| 0),
        Command::Router { command: Some(command) } => router::run(&context, command).await,
        Command::Dsn(args) => dsn::run(&context, args),
        Command::Import(command) => import::run(&context, &command),
        Command::LeaseWatcher { data_dir, .. } => keeper::watcher::run(&data_dir, None).map(|()| 0),
        Command::AdoptSession => daemon::adopt_session().await.map(|()| 0),
        Command::Sandbox(command) => sandbox::run(&context, command).await,
        Command::Demo(args) => demo::run(&context, args).await,
        Command::Completion { shell } => {
            local::completion(shell);
            Ok(0)
        }
        Command::Reference { write } => reference::write(&write).map(|()| 0),
    }
}

impl Context {
    /// Whether output is for programs.
    pub fn is_json(&self) -> bool {
        self.global.output == Output::Json
    }

    /// A client of the cluster that the options name.
    pub fn client(&self) -> Result<Client, Trouble> {
        Ok(Client::new(target::addresses(&self.global)?).with(
            self.global.reason.clone(),
            self.global.timeout.map(|span| span.0.duration()),
            self.global.dry_run,
        ))
    }

    /// Prints a document with its schema version.
    pub fn print_json(&self, name: &str, value: impl serde::Serialize) {
        out::json(&json!({ "schema_version": SCHEMA_VERSION, name: value }));
    }

    /// Prints two values as one document with its schema version.
    pub fn print_json_with(&self, name: &str, value: impl serde::Serialize, other: &str, more: impl serde::Serialize) {
        out::json(&json!({ "schema_version": SCHEMA_VERSION, name: value, other: more }));
    }

    /// Prints what came of a change.
    pub fn print_outcome(&self, outcome: &Outcome) {
        if self.is_json() {
            let mut document = serde_json::to_value(outcome).unwrap_or(Value::Null);
            document["schema_version"] = json!(SCHEMA_VERSION);
            document["dry_run"] = json!(self.global.dry_run);
            return out::json(&document);
        }
        let sign = if self.global.dry_run { "would:" } else { "✔" };
        out::line(&self.look.finish(&format!("{sign} {}", outcome.text)));
        for note in &outcome.notes {
            out::line(&self.look.finish(&format!("  {note}")));
        }
    }

    /// Asks before something that cannot be undone. Never waits for an answer that nobody can give.
    pub fn confirm(&self, effect: &str) -> Result<(), Trouble> {
        if self.global.yes || self.global.dry_run {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() || self.is_json() {
            return Err(Trouble::usage(
                format!("{effect}: this needs a confirmation, and there is no terminal to ask on"),
                "add --yes if this is wanted, or --dry-run to see what would happen",
            ));
        }
        eprint!("{effect}. Go on? [y/N] ");
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        let _ = std::io::stdin().lock().read_line(&mut answer);
        if matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(());
        }
        let mut trouble = Trouble::usage("not confirmed; nothing was changed", "answer y, or add --yes");
        trouble.exit = model::error::exit::REFUSED;
        Err(trouble)
    }
}
