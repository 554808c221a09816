//! Taking over a database that runs, or ran, under somebody else's hands: what must be true of it, what is imported
//! from its configuration, and the few statements that make it ours. How these reach the server is the caller's matter.

use crate::conf::{OWNED_PARAMETERS, validate_parameter};
use crate::hba;
use crate::process::clean_command;
use crate::running;
use crate::spec::ServerSpec;
use crate::sql::role_statement;
use model::Trouble;
use model::limits::{POSTGRES_MAJOR_MAX, POSTGRES_MAJOR_MIN};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// Whether the session is a superuser's. Asked before `FACTS`, which only a superuser may.
pub const IS_SUPERUSER: &str = "SELECT current_setting('is_superuser')";

/// Everything that is asked of a server, as one JSON text. One line, as single-user mode wants it.
pub const FACTS: &str = "SELECT json_build_object(\
    'version_num', current_setting('server_version_num')::int, \
    'in_recovery', pg_is_in_recovery(), \
    'data_directory', current_setting('data_directory'), \
    'config_file', current_setting('config_file'), \
    'hba_file', current_setting('hba_file'), \
    'ident_file', current_setting('ident_file'), \
    'port', current_setting('port')::int, \
    'listen_addresses', current_setting('listen_addresses'), \
    'wal_level', current_setting('wal_level'), \
    'max_wal_senders', current_setting('max_wal_senders')::int, \
    'max_replication_slots', current_setting('max_replication_slots')::int, \
    'has_postgres', EXISTS (SELECT FROM pg_roles WHERE rolname = 'postgres'), \
    'strangers', ARRAY(SELECT rolname FROM pg_roles WHERE (rolname = 'stemma' AND NOT rolsuper) \
        OR (rolname = 'stemma_replication' AND NOT rolreplication)), \
    'parameters', (SELECT coalesce(json_object_agg(name, current_setting(name)), '{}') FROM pg_settings \
        WHERE source IN ('configuration file', 'command line') AND context <> 'internal'))";

/// Makes a running server read its files again.
pub const RELOAD: &str = "SELECT pg_reload_conf()";

/// Statements before any other of ours: nothing of ours waits for replicas or shows up in the server's log.
pub const SESSION: &str = "SET synchronous_commit = local; SET log_statement = none; \
    SET log_min_duration_statement = -1; SET log_min_error_statement = panic; SET search_path = pg_catalog; \
    SET default_transaction_read_only = off; SET statement_timeout = '30s'; SET lock_timeout = '10s'";

/// Begin and end of what is put before the lines of the user's `pg_hba.conf` until the keeper writes it.
const BLOCK: (&str, &str) = ("# stemma: begin", "# stemma: end");

/// What a server told of itself.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Facts {
    /// For example 150018.
    pub version_num: u32,
    /// Whether it is a replica.
    pub in_recovery: bool,
    /// Its data directory.
    pub data_directory: PathBuf,
    /// Its main configuration file.
    pub config_file: PathBuf,
    /// Its `pg_hba.conf`.
    pub hba_file: PathBuf,
    /// Its `pg_ident.conf`.
    pub ident_file: PathBuf,
    /// Its port.
    pub port: u16,
    /// Where it listens.
    pub listen_addresses: String,
    /// How much it writes into its log.
    pub wal_level: String,
    /// How many replicas and backups it can feed.
    pub max_wal_senders: u32,
    /// How many slots it can have.
    pub max_replication_slots: u32,
    /// Whether a role `postgres` exists, which then keeps its password.
    pub has_postgres: bool,
    /// Roles that have the names of ours and are not.
    pub strangers: Vec<String>,
    /// What the user has set, as the server prints it.
    pub parameters: BTreeMap<String, String>,
}

impl Facts {
    /// Reads the answer to `FACTS`.
    pub fn parse(text: &str) -> Result<Facts, Trouble> {
        serde_json::from_str(text).map_err(|error| {
            Trouble::internal("what the server says of itself was not understood", "report this defect").because(error)
        })
    }

    /// Whether this server can become the first of a cluster on this node, and is the one that is meant.
    pub fn check(&self, spec: &ServerSpec) -> Result<(), Trouble> {
        let major = self.version_num / 10_000;
        if major < POSTGRES_MAJOR_MIN {
            return Err(Trouble::server_too_old(
                format!("the server is PostgreSQL {major}"),
                format!("upgrade it to PostgreSQL {POSTGRES_MAJOR_MIN} to {POSTGRES_MAJOR_MAX} first"),
            ));
        }
        let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if real(&self.data_directory) != real(&spec.data_dir) {
            return Err(Trouble::directory_unfit(
                format!(
                    "the server that answers works in {}, the node file says {}",
                    self.data_directory.display(),
                    spec.data_dir.display()
                ),
                format!("write under [postgresql]: data_dir = \"{}\"", self.data_directory.display()),
            ));
        }
        if self.in_recovery {
            return Err(Trouble::wrong_role(
                "the server is a replica: it is in recovery",
                "adopt its primary, then let this node join with an empty data directory",
            ));
        }
        check_port(self.port, spec)?;
        if self.wal_level == "minimal" {
            return Err(Trouble::config_bad_value(
                "the server runs with wal_level = minimal, which feeds no replica",
                "set wal_level = replica in its configuration, restart it, then adopt it",
            ));
        }
        for (name, value) in
            [("max_wal_senders", self.max_wal_senders), ("max_replication_slots", self.max_replication_slots)]
        {
            if value == 0 {
                return Err(Trouble::config_bad_value(
                    format!("the server runs with {name} = 0, so no replica can follow it"),
                    format!("set {name} = 10 in its configuration, restart it, then adopt it"),
                ));
            }
        }
        match self.strangers.first() {
            Some(role) => Err(Trouble::name_taken(
                format!("the database has a role `{role}` of its own"),
                format!("that name is ours: ALTER ROLE {role} RENAME TO something_else"),
            )),
            None => Ok(()),
        }
    }
}

/// Whether the node file names the port at which the server really is.
pub fn check_port(port: u16, spec: &ServerSpec) -> Result<(), Trouble> {
    if port == spec.port {
        return Ok(());
    }
    Err(Trouble::config_bad_value(
        format!("the running server has port {port}, the node file says {}", spec.port),
        format!("write under [postgresql]: port = {port}"),
    ))
}

/// The roles of ours with these passwords.
pub fn roles(superuser: &str, superuser_password: &str, replication_password: &str) -> Result<String, Trouble> {
    let statements = [
        "SET password_encryption = 'scram-sha-256';".to_owned(),
        role_statement(superuser, "SUPERUSER LOGIN", Some(superuser_password), true)?,
        role_statement("stemma_replication", "REPLICATION LOGIN", Some(replication_password), true)?,
    ];
    Ok(statements.join(" ").replace('\n', " "))
}

/// What is taken over from a server's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Import {
    /// Parameters for the cluster settings.
    pub parameters: BTreeMap<String, String>,
    /// What is not taken over, and why.
    pub notes: Vec<String>,
}

/// Whether a parameter belongs to one machine, or to how its server was run.
fn is_local(name: &str) -> bool {
    const LOCAL: &[&str] = &[
        "cluster_name",
        "event_source",
        "krb_server_keyfile",
        "log_directory",
        "log_file_mode",
        "log_filename",
        "log_rotation_age",
        "log_rotation_size",
        "log_truncate_on_rotation",
        "stats_temp_directory",
        "syslog_ident",
        "synchronous_standby_names",
    ];
    let starts = ["lc_", "ssl", "bonjour", "unix_socket_", "syslog_", "recovery_"];
    LOCAL.contains(&name) || OWNED_PARAMETERS.contains(&name) || starts.iter().any(|start| name.starts_with(start))
}

/// The parameters that the whole cluster shall have.
pub fn import_parameters(facts: &Facts) -> Import {
    let mut import = Import::default();
    for (name, value) in &facts.parameters {
        if is_local(&name.to_ascii_lowercase()) {
            continue;
        }
        match validate_parameter(name, value) {
            Ok(()) => {
                import.parameters.insert(name.to_ascii_lowercase(), value.clone());
            }
            Err(trouble) => import.notes.push(format!("{name} = {value} is not taken over: {}", trouble.reason)),
        }
    }
    import
}

/// The user's lines of a `pg_hba.conf`. All of them or none: a line left out would lock out those whom it lets in.
pub fn import_hba(text: &str) -> Result<Vec<String>, Trouble> {
    let joined = text.replace("\\\n", " ");
    let mut lines = Vec::new();
    for line in joined.lines() {
        let line = without_comment(line).split_whitespace().collect::<Vec<_>>().join(" ");
        let user = line.split(' ').nth(2).unwrap_or_default();
        let ours = ["stemma", "stemma_replication", "stemma,stemma_replication"].contains(&user);
        if line.is_empty() || ours {
            continue;
        }
        let from_file = line.split([' ', ',']).any(|word| word.trim_start_matches('"').starts_with('@'));
        if from_file || hba::sound(&line).is_err() {
            return Err(Trouble::config_bad_value(
                format!("the line `{line}` of pg_hba.conf takes in another file, which other nodes do not have"),
                "write what that file says into pg_hba.conf itself, reload the server, then adopt it",
            ));
        }
        lines.push(line);
    }
    Ok(lines)
}

fn without_comment(line: &str) -> &str {
    let mut quoted = false;
    let end = line.find(|c: char| {
        quoted ^= c == '"';
        c == '#' && !quoted
    });
    end.map_or(line, |end| &line[..end])
}

/// A `pg_hba.conf` that also lets the keepers' superuser in by the socket, ahead of the user's lines.
pub fn with_access(text: &str, superuser: &str) -> String {
    let mut rest = text;
    if let Some((before, after)) = text.split_once(&format!("{}\n", BLOCK.1))
        && before.starts_with(BLOCK.0)
    {
        rest = after;
    }
    format!("{}\nlocal all {superuser} scram-sha-256\n{}\n{rest}", BLOCK.0, BLOCK.1)
}

/// The configuration file of a stopped server: in its data directory, or where it was started with, or where Debian
/// keeps it.
pub fn stopped_config_file(data_dir: &Path, major: u32) -> Option<PathBuf> {
    let own = data_dir.join("postgresql.conf");
    if own.is_file() {
        return Some(own);
    }
    let options = std::fs::read_to_string(data_dir.join("postmaster.opts")).unwrap_or_default();
    let named = options.split('"').find_map(|word| word.trim_start_matches('-').strip_prefix("config_file="));
    if let Some(path) = named.map(PathBuf::from).filter(|path| path.is_file()) {
        return Some(path);
    }
    let debian = std::fs::read_dir(format!("/etc/postgresql/{major}")).ok()?;
    let mut found = debian.flatten().map(|entry| entry.path().join("postgresql.conf"));
    found.find(|path| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let directory = text.lines().find_map(|line| {
            let value =
                without_comment(line).trim().strip_prefix("data_directory")?.trim_start().trim_start_matches('=');
            Some(PathBuf::from(value.trim().trim_matches('\'')))
        });
        directory.is_some_and(|directory| std::fs::canonicalize(directory).ok() == std::fs::canonicalize(data_dir).ok())
    })
}

/// How long a server in single-user mode may take; it may have to recover from a crash first.
const SINGLE_USER_DEADLINE: Duration = Duration::from_secs(600);
/// Name in the data directory of the answer that a single-user server gives.
const ANSWER: &str = "stemma.adopt";

/// Runs statements in a stopped database, through a server in single-user mode that nobody else can reach, and gives
/// the value that `question` selects.
pub async fn in_single_user_mode(
    spec: &ServerSpec,
    config_file: &Path,
    statements: &str,
    question: &str,
) -> Result<String, Trouble> {
    let user = spec.user.as_ref();
    let answer = spec.data_dir.join(ANSWER);
    crate::files::remove(&answer)?;
    // Delimiter and quote that no JSON text holds: the value stands in the file as it is.
    let copy = format!(
        "COPY ({question}) TO '{}' (FORMAT csv, DELIMITER E'\\x02', QUOTE E'\\x01')",
        answer.display().to_string().replace('\'', "''")
    );
    let mut command = clean_command(spec, "postgres", false);
    command.current_dir(&spec.data_dir).kill_on_drop(true);
    command.arg("--single").arg("-D").arg(&spec.data_dir);
    command.arg("-c").arg(format!("config_file={}", config_file.display()));
    // Its configuration may name directories and helpers that exist only while the distribution's service runs.
    command.args(["-c", "log_statement=none", "-c", "log_min_error_statement=panic", "-c", "logging_collector=off"]);
    command.args(["-c", "log_destination=stderr", "-c", "synchronous_standby_names=", "postgres"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let failed = || {
        Trouble::server_failed(
            format!("the stopped database in {} could not be prepared", spec.data_dir.display()),
            "see the cause; or start the server as before and adopt it while it runs",
        )
    };
    let run = async {
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            // What it refuses it says on its error output.
            let _ = input.write_all(format!("{statements}\n{copy}\n").as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(SINGLE_USER_DEADLINE, run).await.map_err(|_| failed().because("no answer"))?;
    let output = output.map_err(|error| failed().because(error))?;
    let said = String::from_utf8_lossy(&output.stderr);
    // Single-user mode goes on after an error and ends with success.
    let complaint = said.lines().find(|line| ["ERROR:", "FATAL:", "PANIC:"].iter().any(|word| line.contains(word)));
    if let Some(complaint) = complaint {
        return Err(failed().because(complaint));
    }
    if !output.status.success() {
        return Err(failed().because(said.lines().last().unwrap_or("the server ended with an error")));
    }
    let text = running::read_as(&answer, user)?;
    crate::files::remove(&answer)?;
    Ok(text.trim().trim_matches('\u{1}').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(parameters: &[(&str, &str)]) -> Facts {
        Facts {
            version_num: 150_018,
            in_recovery: false,
            data_directory: "/data".into(),
            config_file: "/etc/postgresql.conf".into(),
            hba_file: "/etc/pg_hba.conf".into(),
            ident_file: "/etc/pg_ident.conf".into(),
            port: 5432,
            listen_addresses: "*".into(),
            wal_level: "replica".into(),
            max_wal_senders: 10,
            max_replication_slots: 10,
            has_postgres: true,
            strangers: Vec::new(),
            parameters: parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        }
    }

    #[test]
    fn what_the_user_chose_is_taken_over_and_what_belongs_to_the_machine_is_not() {
        let import = import_parameters(&facts(&[
            ("max_connections", "200"),
            ("TimeZone", "Etc/UTC"),
            ("auto_explain.log_min_duration", "1s"),
            ("data_directory", "/data"),
            ("port", "5433"),
            ("lc_messages", "de_DE.UTF-8"),
            ("ssl_cert_file", "/etc/ssl/snakeoil.pem"),
            ("stats_temp_directory", "/run/x"),
            ("unix_socket_directories", "/run/postgresql"),
            ("synchronous_commit", "off"),
        ]));
        let names: Vec<&str> = import.parameters.keys().map(String::as_str).collect();
        assert_eq!(names, ["auto_explain.log_min_duration", "max_connections", "timezone"]);
        assert_eq!(import.notes.len(), 1, "{:?}", import.notes);
        assert!(import.notes[0].starts_with("synchronous_commit = off is not taken over"));
    }

    #[test]
    fn lines_of_the_user_come_over_without_ours_and_never_in_part() {
        let text = "# Debian\nlocal   all   postgres   peer\nhost all \"a #b\" 10.0.0.0/8 \\\n  md5 # old\n\n\
            local all stemma scram-sha-256\nhost all stemma,stemma_replication all reject\n";
        let lines = import_hba(text).expect("sound");
        assert_eq!(lines, ["local all postgres peer", "host all \"a #b\" 10.0.0.0/8 md5"]);
        for bad in ["host @dbs all all md5", "host all x,@y all md5", "include other.conf"] {
            assert!(import_hba(bad).expect_err(bad).is("ST1103"), "{bad}");
        }
    }

    #[test]
    fn access_is_put_first_and_only_once() {
        let once = with_access("local all all peer\n", "stemma");
        assert!(once.starts_with("# stemma: begin\nlocal all stemma scram-sha-256\n# stemma: end\nlocal all all peer"));
        assert_eq!(with_access(&once, "stemma"), once);
        assert_eq!(import_hba(&once).expect("sound"), ["local all all peer"]);
    }
}
