//! A session with a server that does not know us yet. Over the Unix socket it lets in whom the operating system says
//! we are, so root cannot come as itself: this program is run again as the owner of the data directory, and is told
//! over its standard input what to ask. Passwords go the same way, never through arguments.

use model::Trouble;
use postgres::ServerSpec;
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// Longest wait for a connection, and for one answer.
const DEADLINE: Duration = Duration::from_secs(60);

/// Where and as whom to log in.
#[derive(Serialize, Deserialize)]
struct Login {
    socket_dir: PathBuf,
    port: u16,
    user: String,
    password: Option<String>,
}

type Answer = Result<Vec<Vec<Option<String>>>, Trouble>;

/// See the module.
pub enum Session {
    /// Our own connection.
    Direct(Client),
    /// Through this program as another user.
    Helper {
        /// Ends with this value.
        _child: Child,
        /// Takes one statement per line.
        input: ChildStdin,
        /// Gives one answer per line.
        output: Lines<BufReader<ChildStdout>>,
    },
}

impl Session {
    /// With what the person said. The password may be in `PGPASSWORD`.
    pub async fn by_dsn(dsn: &str) -> Result<Session, Trouble> {
        let mut config: tokio_postgres::Config = dsn.parse().map_err(|error: tokio_postgres::Error| {
            Trouble::usage("--adopt-dsn is not a connection string", "write it as 'host=127.0.0.1 user=postgres'")
                .because(error)
        })?;
        if config.get_password().is_none()
            && let Ok(password) = std::env::var("PGPASSWORD")
        {
            config.password(password);
        }
        connect(config).await.map(Session::Direct)
    }

    /// Over the socket, as the owner of the data directory.
    pub async fn by_socket(spec: &ServerSpec, socket_dir: &Path, port: u16, user: &str) -> Result<Session, Trouble> {
        let password = std::env::var("PGPASSWORD").ok();
        let login = Login { socket_dir: socket_dir.to_owned(), port, user: user.to_owned(), password };
        let Some(owner) = &spec.user else { return connect(login.config()).await.map(Session::Direct) };
        // This very file, whatever the directories on the way to it allow to that user.
        let mut command = tokio::process::Command::new("/proc/self/exe");
        command.arg("adopt-session").uid(owner.uid).gid(owner.gid).env_clear().current_dir("/").kill_on_drop(true);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let refused = |error: std::io::Error| {
            Trouble::os(
                format!("this program could not be run as {}", owner.name),
                "make the program's file executable for everyone, or use --adopt-dsn",
            )
            .because(error)
        };
        let mut child = command.spawn().map_err(refused)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Trouble::internal("the helper has no input or output", "report this defect"));
        };
        let mut session = Session::Helper { _child: child, input, output: BufReader::new(output).lines() };
        session.exchange(&login).await?;
        Ok(session)
    }

    /// Runs statements whose result nobody needs.
    pub async fn run(&mut self, sql: &str) -> Result<(), Trouble> {
        self.query(sql).await.map(|_| ())
    }

    /// The first column of the first row.
    pub async fn value(&mut self, sql: &str) -> Result<String, Trouble> {
        let rows = self.query(sql).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten().unwrap_or_default())
    }

    async fn query(&mut self, sql: &str) -> Answer {
        match self {
            Session::Direct(client) => query(client, sql).await,
            Session::Helper { .. } => self.exchange(&sql).await,
        }
    }

    async fn exchange(&mut self, request: &impl Serialize) -> Answer {
        let Session::Helper { input, output, .. } = self else {
            return Err(Trouble::internal("no helper to ask", "report this defect"));
        };
        let lost =
            |cause: String| Trouble::internal("the helper that asks the server ended", "try again").because(cause);
        let mut line = serde_json::to_string(request).map_err(|error| lost(error.to_string()))?;
        line.push('\n');
        let exchange = async {
            input.write_all(line.as_bytes()).await?;
            output.next_line().await
        };
        let answer = tokio::time::timeout(DEADLINE, exchange).await.map_err(|_| lost("no answer".into()))?;
        let answer = answer.map_err(|error| lost(error.to_string()))?.ok_or_else(|| lost("it said nothing".into()))?;
        serde_json::from_str(&answer).map_err(|error| lost(error.to_string()))?
    }
}

impl Login {
    fn config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host_path(&self.socket_dir).port(self.port).user(&self.user).dbname("postgres");
        if let Some(password) = &self.password {
            config.password(password);
        }
        config
    }
}

async fn connect(mut config: tokio_postgres::Config) -> Result<Client, Trouble> {
    config.application_name("stemma_adopt").connect_timeout(DEADLINE);
    if config.get_dbname().is_none() {
        config.dbname("postgres");
    }
    let user = config.get_user().unwrap_or("?").to_owned();
    let (client, connection) = config.connect(NoTls).await.map_err(|error| {
        said(
            Trouble::denied(
                format!("the running server does not let `{user}` in"),
                "name a superuser that the owner of the data directory may be: --superuser ROLE; or say how to log in: \
                 --adopt-dsn 'host=127.0.0.1 user=ROLE', with the password in PGPASSWORD",
            ),
            &error,
        )
    })?;
    tokio::spawn(connection);
    Ok(client)
}

fn said(trouble: Trouble, error: &tokio_postgres::Error) -> Trouble {
    match error.as_db_error() {
        Some(said) => trouble.because(format!("{} (SQLSTATE {})", said.message(), said.code().code())),
        None => match std::error::Error::source(error) {
            Some(below) => trouble.because(format!("{error}: {below}")),
            None => trouble.because(error),
        },
    }
}

async fn query(client: &Client, sql: &str) -> Answer {
    let messages = client
        .simple_query(sql)
        .await
        .map_err(|error| said(Trouble::sql("a statement for the adoption failed", "see the cause"), &error))?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
        _ => None,
    });
    Ok(rows.collect())
}

/// The other side of a helper session: the first line is a login, every further one a statement.
pub async fn answer() -> Result<(), Trouble> {
    let lost = |error: std::io::Error| Trouble::internal("the helper was left alone", "try again").because(error);
    let garbled = |error: serde_json::Error| Trouble::internal("the helper was not understood", "").because(error);
    let mut client = None;
    // Nothing else happens in this process while it waits for a line.
    for line in std::io::stdin().lines() {
        let line = line.map_err(lost)?;
        let answer: Answer = match &client {
            None => {
                let login: Login = serde_json::from_str(&line).map_err(garbled)?;
                connect(login.config()).await.map(|connected| {
                    client = Some(connected);
                    Vec::new()
                })
            }
            Some(client) => {
                let sql: String = serde_json::from_str(&line).map_err(garbled)?;
                query(client, &sql).await
            }
        };
        let mut text = serde_json::to_string(&answer).map_err(garbled)?;
        text.push('\n');
        let mut output = std::io::stdout().lock();
        output.write_all(text.as_bytes()).and_then(|()| output.flush()).map_err(lost)?;
    }
    Ok(())
}
