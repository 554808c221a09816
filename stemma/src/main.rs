//! The binary: reads the command line, runs the command, and ends with an exit status that scripts can trust.
#![warn(missing_docs)]

#[cfg(test)]
mod api_tests;
mod cli;
mod client;
mod commands;
mod daemon;
mod demo;
mod explain;
mod front;
mod machine;
mod node_file;
mod reference;
mod render;
mod router_file;
mod sandbox;

use clap::Parser;
use cli::{Cli, Command, Output};
use model::Trouble;
use render::look::Look;
use render::{out, trouble};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let global = cli.global.clone();
    match start(cli) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            match global.output {
                Output::Table => out::note(&trouble::text(&error, &Look::detect_stderr(&global))),
                Output::Json => out::json(&trouble::json(&error)),
            }
            ExitCode::from(error.exit)
        }
    }
}

fn start(cli: Cli) -> Result<u8, Trouble> {
    if let Command::Run { new_session: true } = cli.command {
        // Fails only where the process leads a session already, and then there is nothing to leave.
        let _ = nix::unistd::setsid();
    }
    if let Command::LeaseWatcher { data_dir, address, interface } = &cli.command {
        // Before there are threads of a runtime: it is to be small, and to wait for nothing.
        let floating = address.as_deref().zip(interface.as_deref());
        let floating = floating.map(|(address, interface)| daemon::floating(address, interface)).transpose()?;
        return keeper::watcher::run(data_dir, floating.as_ref()).map(|()| 0);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| {
        Trouble::os("the runtime did not start", "look at the limits of this user (ulimit -a)").because(error)
    })?;
    let result = runtime.block_on(commands::dispatch(cli));
    // A read from the terminal may still block a thread; it must not hold up the end.
    runtime.shutdown_background();
    result
}
