//! The keeper's own connections to its server, over the Unix socket.
//!
//! Three of them, so that none waits behind another: one for sampling, one for control, and one for the commit that has
//! to wait for replicas. Each is made when needed and made again after a failure.

use crate::initdb::quote_literal;
use crate::running::whereabouts;
use crate::sample::Sampler;
use crate::spec::ServerSpec;
use model::observe::ServerFacts;
use model::state::Secrets;
use model::{Epoch, Lsn, NodeName, Timeline, Trouble};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// Connecting over a socket takes milliseconds; a server that needs longer does not answer.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Longest wait for a sample.
const SAMPLE_DEADLINE: Duration = Duration::from_secs(2);
/// `statement_timeout` of the control connection.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(30);
/// How often a condition is looked at again.
const POLL: Duration = Duration::from_millis(5);

/// Parameters of our sessions. `synchronous_commit=local`: bookkeeping must not hang when replicas are missing; what
/// has to wait for them says so itself.
const SESSION: &str = "SET search_path = pg_catalog; SET synchronous_commit = local; \
    SET default_transaction_read_only = off; SET client_min_messages = warning; SET lock_timeout = '5s'; \
    SET log_statement = none; SET log_min_duration_statement = -1; SET DateStyle = ISO";

/// One connection that is made again after a failure.
pub(crate) struct Link {
    config: tokio_postgres::Config,
    data_dir: PathBuf,
    socket_dir: PathBuf,
    port: u16,
    client: Mutex<Option<Arc<Client>>>,
    session: &'static str,
}

impl Link {
    fn new(spec: &ServerSpec, session: &'static str) -> Link {
        let mut config = tokio_postgres::Config::new();
        config.user(&spec.superuser).dbname("postgres");
        config.password(&spec.superuser_password).application_name("stemma_keeper").connect_timeout(CONNECT_DEADLINE);
        Link {
            config,
            data_dir: spec.data_dir.clone(),
            socket_dir: spec.socket_dir.clone(),
            port: spec.port,
            client: Mutex::new(None),
            session,
        }
    }

    /// Where to connect to: a server that somebody else started has its socket elsewhere.
    fn address(&self) -> tokio_postgres::Config {
        let mut config = self.config.clone();
        let found = whereabouts(&self.data_dir);
        let socket = found.as_ref().and_then(|found| found.socket_dir.clone());
        config.host_path(socket.unwrap_or_else(|| self.socket_dir.clone()));
        config.port(found.map_or(self.port, |found| found.port));
        config
    }

    /// A connection that was alive a moment ago.
    pub(crate) async fn client(&self) -> Result<Arc<Client>, Trouble> {
        let mut held = self.client.lock().await;
        if let Some(client) = held.as_ref().filter(|client| !client.is_closed()) {
            return Ok(Arc::clone(client));
        }
        *held = None;
        let connect = async {
            let (client, connection) = self.address().connect(NoTls).await?;
            tokio::spawn(async move {
                // Its error also reaches whoever waits for an answer.
                let _ = connection.await;
            });
            client.batch_execute(SESSION).await?;
            client.batch_execute(self.session).await?;
            Ok::<Client, tokio_postgres::Error>(client)
        };
        let client = tokio::time::timeout(CONNECT_DEADLINE, connect).await.map_err(|_| no_answer(CONNECT_DEADLINE))?;
        let client = Arc::new(client.map_err(|error| failed("the server does not accept our connection", &error))?);
        *held = Some(Arc::clone(&client));
        Ok(client)
    }

    /// Gives up the present connection; its pending statement, if any, is left to end by itself.
    pub(crate) async fn forget(&self) {
        *self.client.lock().await = None;
    }
}

/// The server did not answer in time.
pub(crate) fn no_answer(deadline: Duration) -> Trouble {
    Trouble::sql(
        format!("the server did not answer within {} ms", deadline.as_millis()),
        "see the server's log and the load of the machine",
    )
}

/// A failed statement, with what the server said about it.
pub(crate) fn failed(what: &str, error: &tokio_postgres::Error) -> Trouble {
    let trouble = Trouble::sql(what, "see the cause and the server's log");
    match error.as_db_error() {
        Some(said) => trouble.because(format!("{} (SQLSTATE {})", said.message(), said.code().code())),
        None => {
            let mut cause = error.to_string();
            if let Some(below) = std::error::Error::source(error) {
                cause.push_str(&format!(": {below}"));
            }
            trouble.because(cause)
        }
    }
}

/// Whether the server refused with this state.
pub(crate) fn is_state(error: &tokio_postgres::Error, state: &SqlState) -> bool {
    error.code() == Some(state)
}

/// How it shows that a replica has come to the end of the log that it had when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogEnd {
    /// Its receiver has written all that was replayed, and more.
    Streamed,
    /// Replay waits for more.
    Replayed,
}

/// The keeper's control of one running server.
pub struct Sql {
    pub(crate) control: Link,
    sampling: Link,
    waiting: Link,
    sampler: Sampler,
    superuser: String,
}

impl Sql {
    /// Does not connect yet.
    pub fn new(spec: &ServerSpec) -> Sql {
        Sql {
            control: Link::new(spec, "SET statement_timeout = '30s'"),
            sampling: Link::new(spec, "SET statement_timeout = '2s'"),
            // A cancelled wait ends in success with a warning, so this one is never cancelled.
            waiting: Link::new(spec, "SET statement_timeout = 0; SET lock_timeout = 0; SET synchronous_commit = on"),
            sampler: Sampler::default(),
            superuser: spec.superuser.clone(),
        }
    }

    /// Whether the server answers statements now. One try, no waiting.
    pub async fn ready(&self) -> Result<(), Trouble> {
        let client = self.sampling.client().await?;
        let answer = tokio::time::timeout(SAMPLE_DEADLINE, client.simple_query("SELECT 1")).await;
        match answer {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                self.sampling.forget().await;
                Err(failed("the server does not answer", &error))
            }
            Err(_) => {
                self.sampling.forget().await;
                Err(no_answer(SAMPLE_DEADLINE))
            }
        }
    }

    /// Samples the server: one round trip of prepared statements, a second one only where something changed.
    pub async fn facts(&self) -> Result<ServerFacts, Trouble> {
        let client = self.sampling.client().await?;
        let sample = async {
            match self.sampler.sample(&client, &self.superuser).await {
                // A promotion between two expressions of one statement; the next try sees one side of it.
                Err(error) if is_state(&error, &SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE) => {
                    self.sampler.sample(&client, &self.superuser).await
                }
                other => other,
            }
        };
        match tokio::time::timeout(SAMPLE_DEADLINE, sample).await {
            Ok(Ok(facts)) => Ok(facts),
            Ok(Err(error)) => {
                self.sampling.forget().await;
                Err(failed("cannot sample the server", &error))
            }
            Err(_) => {
                self.sampling.forget().await;
                Err(no_answer(SAMPLE_DEADLINE))
            }
        }
    }

    /// Runs statements whose result nobody needs.
    pub async fn execute(&self, sql: &str) -> Result<(), Trouble> {
        self.query_text(sql).await.map(|_| ())
    }

    /// Runs statements and gives all rows as text.
    pub async fn query_text(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Trouble> {
        let client = self.control.client().await?;
        let deadline = STATEMENT_DEADLINE + Duration::from_secs(1);
        let Ok(answer) = tokio::time::timeout(deadline, client.simple_query(sql)).await else {
            self.control.forget().await;
            return Err(no_answer(deadline));
        };
        let messages = match answer {
            Ok(messages) => messages,
            Err(error) => {
                // A transaction may have been left open in it.
                self.control.forget().await;
                return Err(failed("a control statement failed", &error));
            }
        };
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()),
            _ => None,
        });
        Ok(rows.collect())
    }

    /// The first column of the first row.
    pub(crate) async fn query_one(&self, sql: &str) -> Result<Option<String>, Trouble> {
        let rows = self.query_text(sql).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
    }

    /// Waits until a reload has brought this value into force in our session.
    ///
    /// Other processes of the server read the file each at a moment of its own, usually the same millisecond. For
    /// `synchronous_standby_names`, `sync_state` in `ServerFacts::senders` shows that a sender has done so; commits
    /// begin to wait once the checkpointer has, which may be late while it is syncing files.
    pub async fn wait_setting(&self, name: &str, value: &str, deadline: Duration) -> Result<(), Trouble> {
        let until = Instant::now() + deadline;
        let name_quoted = quote_literal(name)?;
        let query = format!(
            "SELECT current_setting({name_quoted}), (SELECT setting FROM pg_settings WHERE name = {name_quoted})"
        );
        loop {
            let rows = self.query_text(&query).await?;
            let seen = rows.into_iter().next().unwrap_or_default();
            if seen.iter().flatten().any(|seen| seen == value) {
                return Ok(());
            }
            if Instant::now() >= until {
                let seen = seen.into_iter().next().flatten().unwrap_or_default();
                return Err(Trouble::sql(
                    format!("`{name}` is still `{seen}`, not `{value}`, after {} ms", deadline.as_millis()),
                    "see the server's log for a refused value, and postgresql.auto.conf for one that overrides it",
                ));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks a replica to end recovery, without a checkpoint first, and does not wait for it: `facts` shows
    /// `in_recovery` false once it accepts writes, on a new timeline.
    pub async fn promote(&self) -> Result<(), Trouble> {
        self.execute("SELECT pg_promote(false) WHERE pg_is_in_recovery()").await
    }

    /// The next transaction number, with its wrap-arounds. Works on a replica, where it is beyond every number in the log
    /// that was replayed.
    pub async fn next_xid(&self) -> Result<u64, Trouble> {
        // `age` counts from the next number, and alone shows it during recovery; it has the lower half only.
        let rows = self.query_text("SELECT pg_snapshot_xmax(pg_current_snapshot()), age((3)::text::xid)").await?;
        let number = |at: usize| rows.first()?.get(at)?.as_deref()?.parse::<i64>().ok();
        let (Some(completed), Some(age)) = (number(0), number(1)) else {
            return Err(Trouble::internal("the server gave no transaction numbers", "report this"));
        };
        Ok(next_xid(completed as u64, age))
    }

    /// A transaction number, with its wrap-arounds, from which on none is complete.
    pub async fn completed_xid(&self) -> Result<u64, Trouble> {
        let text = self.query_one("SELECT pg_snapshot_xmax(pg_current_snapshot())").await?.unwrap_or_default();
        text.parse()
            .map_err(|error| Trouble::internal("the server gave no transaction number", "report this").because(error))
    }

    /// Writes a checkpoint at once; on a replica, a restartpoint up to the newest checkpoint that it has replayed. May
    /// take minutes on a large server, on a connection of its own: use a `Sql` that nothing else waits for.
    pub async fn checkpoint(&self) -> Result<(), Trouble> {
        let client = self.control.client().await?;
        let work = async {
            client.simple_query("SET statement_timeout = 0").await?;
            client.simple_query("CHECKPOINT").await
        };
        let done = work.await;
        self.control.forget().await;
        done.map(|_| ()).map_err(|error| failed("the checkpoint failed", &error))
    }

    /// Writes and flushes one small log record, so that an idle primary's position moves. Gives the position after it.
    pub async fn force_record(&self) -> Result<Lsn, Trouble> {
        self.execute("SELECT pg_logical_emit_message(true, 'stemma', '')").await?;
        self.position("SELECT pg_current_wal_flush_lsn()").await
    }

    /// Ends the present log segment.
    pub async fn switch_wal(&self) -> Result<Lsn, Trouble> {
        self.position("SELECT pg_switch_wal()").await
    }

    async fn position(&self, sql: &str) -> Result<Lsn, Trouble> {
        let text = self.query_one(sql).await?.unwrap_or_default();
        text.parse().map_err(|error| Trouble::internal("the server gave no position", "report this").because(error))
    }

    /// Gives our roles, and those that people get, their attributes and passwords. For a primary.
    pub async fn ensure_roles(&self, secrets: &Secrets) -> Result<(), Trouble> {
        let mut statements = String::from("SET LOCAL password_encryption = 'scram-sha-256';");
        let roles = [
            (self.superuser.as_str(), "SUPERUSER LOGIN", &secrets.superuser_password),
            ("stemma_replication", "REPLICATION LOGIN", &secrets.replication_password),
        ];
        for (role, attributes, password) in roles {
            statements.push_str(&role_statement(role, attributes, Some(password), true)?);
        }
        // Its owner may have changed the password since: only a missing one is set.
        statements.push_str(&role_statement("postgres", "SUPERUSER LOGIN", Some(&secrets.postgres_password), false)?);
        // pg_rewind and checks read server files as this role.
        for function in [
            "pg_ls_dir(text, boolean, boolean)",
            "pg_stat_file(text, boolean)",
            "pg_read_binary_file(text)",
            "pg_read_binary_file(text, bigint, bigint, boolean)",
        ] {
            statements.push_str(&format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO stemma_replication;"));
        }
        self.execute(&format!("BEGIN; {statements} COMMIT")).await
    }

    /// Makes sure that the row of this epoch is in `stemma.lineage`, and that the commit rule in force has confirmed
    /// it: also when the row was there already, since an earlier try may have been cut off while it waited. Ends
    /// with an error when the replicas do not confirm in time; call it again.
    pub async fn ensure_lineage(&self, epoch: Epoch, node: &NodeName, timeline: Timeline) -> Result<(), Trouble> {
        let sql = lineage_statement(epoch, node, timeline)?;
        let client = self.waiting.client().await?;
        match tokio::time::timeout(STATEMENT_DEADLINE, client.batch_execute(&sql)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                self.waiting.forget().await;
                Err(failed("cannot write the epoch into the database", &error))
            }
            Err(_) => {
                self.waiting.forget().await;
                Err(Trouble::sql(
                    format!("the replicas have not confirmed epoch {epoch}"),
                    "see which voters stream from this primary",
                ))
            }
        }
    }

    /// Writes the row of this epoch and flushes it here, without waiting for replicas; gives the position after it. Who
    /// has flushed that far holds the row and all before it.
    pub async fn write_lineage(&self, epoch: Epoch, node: &NodeName, timeline: Timeline) -> Result<Lsn, Trouble> {
        let sql = lineage_statement(epoch, node, timeline)?;
        self.execute(&sql).await?;
        self.position("SELECT pg_current_wal_flush_lsn()").await
    }

    /// Up to where a replica has log: flushed by its receiver, or replayed from what it had before. Final once no receiver
    /// runs or can come and `came_to_end` has said so; what was asked for before that may be too little.
    pub async fn standby_position(&self) -> Result<Lsn, Trouble> {
        self.position("SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(), '0/0')").await
    }

    /// Whether a replica has come to the end of the log that it had when it started, and how that shows.
    pub async fn came_to_end(&self) -> Result<Option<LogEnd>, Trouble> {
        // The receiver's position is null until something was asked for, and a server does that where it finds no more here.
        // It can be wrong in that (`unreplayed`).
        let said = self
            .query_one(
                "SELECT CASE WHEN pg_last_wal_receive_lsn() >= pg_last_wal_replay_lsn() THEN 'streamed'
                     WHEN NOT pg_is_in_recovery() OR EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup'
                         AND wait_event IN ('RecoveryRetrieveRetryInterval', 'RecoveryWalStream')) THEN 'replayed' END",
            )
            .await?;
        Ok(match said.as_deref() {
            Some("streamed") => Some(LogEnd::Streamed),
            Some(_) => Some(LogEnd::Replayed),
            None => None,
        })
    }

    /// Ends all client sessions but ours; says how many. Sessions that wait for replicas are left alone: ending one
    /// would make its commit look acknowledged.
    pub async fn terminate_backends(&self) -> Result<u32, Trouble> {
        let superuser = quote_literal(&self.superuser)?;
        let count = self
            .query_one(&format!(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'client backend'
                 AND usename <> {superuser} AND wait_event IS DISTINCT FROM 'SyncRep'"
            ))
            .await?;
        Ok(count.and_then(|count| count.parse().ok()).unwrap_or(0))
    }

    /// Cancels the statements of clients; on a replica these can hold up replay, and with it a promotion.
    pub async fn cancel_statements(&self) -> Result<u32, Trouble> {
        self.cancel_statements_where("true").await
    }

    /// The same where replay waits for one of them now.
    pub async fn cancel_conflicts(&self) -> Result<u32, Trouble> {
        let waits = "EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup'
            AND (wait_event LIKE 'RecoveryConflict%' OR wait_event_type IN ('Lock', 'BufferPin')))";
        self.cancel_statements_where(waits).await
    }

    async fn cancel_statements_where(&self, condition: &str) -> Result<u32, Trouble> {
        let superuser = quote_literal(&self.superuser)?;
        let count = self
            .query_one(&format!(
                "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'client backend'
                 AND usename <> {superuser} AND state <> 'idle' AND wait_event IS DISTINCT FROM 'SyncRep' AND {condition}"
            ))
            .await?;
        Ok(count.and_then(|count| count.parse().ok()).unwrap_or(0))
    }
}

/// The next transaction number, of which the lower half is `age` numbers after the first ordinary one, 3; it is not
/// smaller than `completed`, and less than a whole round beyond.
fn next_xid(completed: u64, age: i64) -> u64 {
    let low = (age + 3).rem_euclid(1 << 32) as u64;
    let next = (completed >> 32 << 32) | low;
    if next < completed { next + (1 << 32) } else { next }
}

fn lineage_statement(epoch: Epoch, node: &NodeName, timeline: Timeline) -> Result<String, Trouble> {
    let node = quote_literal(node.as_str())?;
    Ok(format!(
        "BEGIN;
         CREATE SCHEMA IF NOT EXISTS stemma;
         CREATE TABLE IF NOT EXISTS stemma.lineage (epoch bigint PRIMARY KEY, node text NOT NULL,
             timeline bigint NOT NULL, began_at timestamptz NOT NULL, confirmed_at timestamptz NOT NULL);
         INSERT INTO stemma.lineage VALUES ({epoch}, {node}, {timeline}, clock_timestamp(), clock_timestamp())
             ON CONFLICT (epoch) DO UPDATE SET confirmed_at = excluded.confirmed_at;
         COMMIT"
    ))
}

/// Statements that create a role where it is missing and, if `always`, bring an existing one to this state.
pub(crate) fn role_statement(
    role: &str,
    attributes: &str,
    password: Option<&str>,
    always: bool,
) -> Result<String, Trouble> {
    let name = quote_literal(role)?;
    let password = password.map(quote_literal).transpose()?.unwrap_or_else(|| "NULL".into());
    let settings = format!("{attributes} PASSWORD {password}");
    let alter = if always { format!("ELSE ALTER ROLE \"{role}\" {settings};") } else { String::new() };
    if settings.contains("$stemma$") || role.contains('"') {
        return Err(Trouble::config_bad_value("a role's name or password cannot be used", "choose another one"));
    }
    Ok(format!(
        "DO $stemma$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {name})
         THEN CREATE ROLE \"{role}\" {settings}; {alter} END IF; END $stemma$;"
    ))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_next_number_is_found_across_a_wrap_around() {
        let round = 1_u64 << 32;
        for (completed, next) in [(740, 740), (740, 745), (round - 2, round + 4), (round + 7, round + 9)] {
            // What the server computes: a difference of 32 bits with a sign.
            let age = i64::from((next as u32).wrapping_sub(3).cast_signed());
            assert_eq!(super::next_xid(completed, age), next, "{completed} {next}");
        }
    }
}
