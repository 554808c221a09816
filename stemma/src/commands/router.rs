//! `stemma router status`, `pools`, `clients` and `top`: what a running router tells on its console.

use super::Context;
use crate::render::out;
use crate::render::table::{Cell, Table};
use clap::Subcommand;
use model::Trouble;
use serde_json::{Map, Value};
use std::time::Duration;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// `stemma router ...`
#[derive(Debug, Subcommand)]
pub enum RouterCommand {
    /// Servers, times and losses of a router that runs
    Status {
        /// The router and one of its `admins`; the password may be in PGPASSWORD
        #[arg(long, value_name = "URL", default_value = ROUTER_URL)]
        url: String,
    },
    /// Its server connections and who waits for them
    Pools {
        /// The router and one of its `admins`; the password may be in PGPASSWORD
        #[arg(long, value_name = "URL", default_value = ROUTER_URL)]
        url: String,
    },
    /// Its clients
    Clients {
        /// The router and one of its `admins`; the password may be in PGPASSWORD
        #[arg(long, value_name = "URL", default_value = ROUTER_URL)]
        url: String,
    },
    /// Pools, times and decisions, every two seconds
    Top {
        /// The router and one of its `admins`; the password may be in PGPASSWORD
        #[arg(long, value_name = "URL", default_value = ROUTER_URL)]
        url: String,
        /// End after so many pictures
        #[arg(long, value_name = "COUNT")]
        count: Option<u64>,
    },
}

/// Where a router is asked unless the command line says otherwise.
const ROUTER_URL: &str = "postgresql://postgres@127.0.0.1:6432/stemma";

/// Between two pictures of `top`.
const PICTURE_EVERY: Duration = Duration::from_secs(2);
/// How long a router may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What the console says to one question: names of the columns, and the rows.
type Answer = (Vec<String>, Vec<Vec<Option<String>>>);

/// Runs the command.
pub async fn run(context: &Context, command: RouterCommand) -> Result<u8, Trouble> {
    let (url, questions): (String, &[(&str, &str)]) = match &command {
        RouterCommand::Status { url } => {
            (url.clone(), &[("nodes", "SHOW NODES"), ("stats", "SHOW STATS"), ("losses", "SHOW LOSSES")])
        }
        RouterCommand::Pools { url } => (url.clone(), &[("pools", "SHOW POOLS")]),
        RouterCommand::Clients { url } => (url.clone(), &[("clients", "SHOW CLIENTS")]),
        RouterCommand::Top { url, .. } => {
            (url.clone(), &[("pools", "SHOW POOLS"), ("stats", "SHOW STATS"), ("routes", "SHOW ROUTES")])
        }
    };
    let console = connect(&url).await?;
    let mut left = match command {
        RouterCommand::Top { count, .. } => count.unwrap_or(u64::MAX),
        RouterCommand::Status { .. } | RouterCommand::Pools { .. } | RouterCommand::Clients { .. } => 1,
    };
    loop {
        picture(context, &console, questions).await?;
        left = left.saturating_sub(1);
        if left == 0 {
            return Ok(0);
        }
        tokio::time::sleep(PICTURE_EVERY).await;
    }
}

async fn picture(context: &Context, console: &Client, questions: &[(&str, &str)]) -> Result<(), Trouble> {
    let mut document = Map::new();
    for (name, question) in questions {
        let (columns, rows) = ask(console, question).await?;
        if context.is_json() {
            document.insert((*name).to_owned(), as_objects(&columns, rows));
            continue;
        }
        out::line(&format!("  {}", name.to_uppercase()));
        out::line(&as_table(context, &columns, &rows));
    }
    if context.is_json() {
        context.print_json("router", document);
    }
    Ok(())
}

fn as_objects(columns: &[String], rows: Vec<Vec<Option<String>>>) -> Value {
    let value = |text: String| text.parse::<i64>().map_or(Value::String(text), Value::from);
    let object = |row: Vec<Option<String>>| -> Map<String, Value> {
        columns.iter().cloned().zip(row.into_iter().map(|cell| cell.map_or(Value::Null, value))).collect()
    };
    rows.into_iter().map(|row| Value::Object(object(row))).collect()
}

fn as_table(context: &Context, columns: &[String], rows: &[Vec<Option<String>>]) -> String {
    let header: Vec<String> = columns.iter().map(|column| column.to_uppercase().replace('_', " ")).collect();
    let mut table = Table::owned(header);
    for row in rows {
        table.row(row.iter().map(|cell| cell.as_deref().map_or_else(Cell::none, Cell::plain)).collect());
    }
    table.render(&context.look).join("\n")
}

async fn connect(url: &str) -> Result<Client, Trouble> {
    let hint =
        "name the router and one of its `admins`: --url postgresql://ADMIN@HOST:6432/stemma, password in PGPASSWORD";
    let mut options: tokio_postgres::Config =
        url.parse().map_err(|error| Trouble::usage("the router's address is not understood", hint).because(error))?;
    if options.get_password().is_none()
        && let Ok(password) = std::env::var("PGPASSWORD")
    {
        options.password(password);
    }
    options.dbname("stemma").connect_timeout(ANSWER_WITHIN);
    let (client, connection) = options
        .connect(NoTls)
        .await
        .map_err(|error| Trouble::unreachable("the router's console cannot be reached", hint).because(said(&error)))?;
    tokio::spawn(connection);
    Ok(client)
}

/// What the router said, or what went wrong on the way.
fn said(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |said| said.message().to_owned())
}

async fn ask(console: &Client, question: &str) -> Result<Answer, Trouble> {
    let failed = |why: String| Trouble::unreachable("the router does not answer", "is it still running?").because(why);
    let answer = tokio::time::timeout(ANSWER_WITHIN, console.simple_query(question)).await;
    let messages = answer.map_err(|_| failed("no answer in time".to_owned()))?.map_err(|error| failed(said(&error)))?;
    let (mut columns, mut rows) = (Vec::new(), Vec::new());
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(names) => {
                columns = names.iter().map(|column| column.name().to_owned()).collect();
            }
            SimpleQueryMessage::Row(row) => {
                rows.push((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect());
            }
            _ => {}
        }
    }
    Ok((columns, rows))
}
