//! `stemma import`: what the configuration of other programs becomes.

use super::Context;
use crate::node_file::read_text;
use crate::render::out;
use clap::Subcommand;
use model::Trouble;
use serde_json::json;
use std::fmt::Write as _;
use std::path::PathBuf;

/// Whose configuration.
#[derive(Debug, Subcommand)]
pub enum ImportCommand {
    /// The router's file for a `pgbouncer.ini`, on standard output; what has no counterpart is said beside it
    #[command(
        after_help = "Example:\n  stemma import pgbouncer /etc/pgbouncer/pgbouncer.ini --node http://db1:8008 --node http://db2:8008 > /etc/stemma/router.toml\n  stemma router --config /etc/stemma/router.toml"
    )]
    Pgbouncer {
        /// The file
        file: PathBuf,
        /// Where a node of the cluster answers; may be given more than once
        #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8008")]
        node: Vec<String>,
    },
}

/// Runs it.
pub fn run(context: &Context, command: &ImportCommand) -> Result<u8, Trouble> {
    let ImportCommand::Pgbouncer { file, node } = command;
    let theirs =
        read_text(file).map_err(|trouble| Trouble { hint: "name the file that PgBouncer reads".into(), ..trouble })?;
    let mut imported = routing::import::pgbouncer(&theirs);
    let text = whole(node, &imported.config);
    // Half a configuration is none: whatever the file held, what comes out can be read.
    if let Err(trouble) = crate::router_file::check(&text) {
        imported.notes.push(format!("the result is not complete: {trouble}"));
    }
    if context.is_json() {
        context.print_json_with("config", text, "notes", json!(imported.notes));
        return Ok(0);
    }
    out::line(text.trim_end());
    for note in &imported.notes {
        out::note(note);
    }
    Ok(0)
}

fn whole(nodes: &[String], section: &str) -> String {
    let nodes: Vec<toml::Value> = nodes.iter().cloned().map(toml::Value::String).collect();
    let mut text = String::new();
    let _ = writeln!(text, "nodes = {}", toml::Value::Array(nodes));
    text + section
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_out_is_a_file_of_the_router() {
        let theirs = "[databases]\napp = pool_size=5 max_db_connections=9\n[users]\nann = pool_mode=session\n[pgbouncer]\n\
                      listen_addr = *\nauth_type = trust\npool_mode = transaction\nmax_client_conn = 500\n\
                      default_pool_size = 25\nquery_wait_timeout = 60\nserver_idle_timeout = 300\n\
                      server_lifetime = 1200\nserver_connect_timeout = 3\nclient_login_timeout = 20\n\
                      client_idle_timeout = 600\nidle_transaction_timeout = 30\nmax_user_connections = 50\n\
                      admin_users = dba\nunix_socket_dir = /var/run/postgresql\nunix_socket_mode = 0770\n";
        let imported = routing::import::pgbouncer(theirs);
        assert_eq!(imported.notes, Vec::<String>::new());
        let text = whole(&["http://db1:8008".to_owned()], &imported.config);
        crate::router_file::check(&text).unwrap_or_else(|trouble| panic!("{trouble}\n{text}"));
        let bad = whole(&["http://db1:8008".to_owned()], "[router]\nlisten = []\nmode = \"x\"\n");
        assert!(crate::router_file::check(&bad).is_err());
    }
}
