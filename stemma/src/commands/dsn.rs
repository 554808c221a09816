//! `stemma dsn`: how drivers write down where the router is.

use super::Context;
use crate::render::out;
use clap::Args;
use model::Trouble;
use routing::dsn::{Driver, Place};

/// Where it is, and for whom.
#[derive(Debug, Args)]
pub struct DsnArgs {
    /// The driver
    #[arg(long = "for", value_name = "DRIVER")]
    driver: String,
    /// Where the router listens; may be given more than once
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:6432")]
    host: Vec<String>,
    /// The database
    #[arg(long, default_value = "postgres")]
    database: String,
    /// The user
    #[arg(long, default_value = "postgres")]
    user: String,
    /// CA of the router's certificate, for connections with TLS
    #[arg(long, value_name = "FILE")]
    ca_file: Option<String>,
}

/// Runs it.
pub fn run(context: &Context, args: DsnArgs) -> Result<u8, Trouble> {
    let DsnArgs { driver, host: hosts, database, user, ca_file } = args;
    let mut place = Place { hosts: Vec::new(), database, user, ca_file };
    let known = || Driver::ALL.iter().filter_map(|(_, names)| names.first()).copied().collect::<Vec<_>>().join(", ");
    let driver = Driver::parse(&driver).ok_or_else(|| {
        Trouble::usage(format!("`{driver}` is not a known driver"), format!("known are: {}", known()))
    })?;
    for host in &hosts {
        let address = router::NodeAddr::parse(host).ok_or_else(|| {
            Trouble::usage(format!("`{host}` is not HOST:PORT"), "write it as in db.example.org:6432")
        })?;
        place.hosts.push((address.host, address.port));
    }
    let found = routing::dsn::dsn(driver, &place);
    if context.is_json() {
        context.print_json_with("dsn", found.text, "note", found.note);
    } else {
        out::line(&found.text);
        if let Some(note) = found.note {
            out::note(note);
        }
    }
    Ok(0)
}
