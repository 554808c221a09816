//! Taking over a database that already exists, running or stopped.
//!
//! Only what the keeper cannot do without is done here: our roles, a way in for them, and the user's configuration in
//! the cluster settings. The keeper does the rest by reload, when it finds the server running. Every step may be done
//! again, so `stemma init --adopt` that was interrupted is simply given again.

mod session;

pub use session::answer;

use super::Adopt;
use keeper::NodeConfig;
use keeper::enrol::{self, Adopted, Passwords};
use model::{Settings, Trouble};
use postgres::adopt::{self, Facts};
use postgres::{ControlState, DataDir, OsUser, Server, ServerSpec, Sql, running};
use session::Session;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// How long the server may take to let our new role in.
const ACCESS_DEADLINE: Duration = Duration::from_secs(10);
/// How often that is tried.
const POLL: Duration = Duration::from_millis(50);

/// What was prepared, and what people should know of it.
pub struct Prepared {
    /// For the enrolment.
    pub adopted: Adopted,
    /// Sentences for people.
    pub notes: Vec<String>,
}

/// Makes our roles in the database and takes its configuration over into the settings.
pub async fn prepare(config: &NodeConfig, adopt: &Adopt, settings: &mut Settings) -> Result<Prepared, Trouble> {
    let mut passwords = enrol::new_passwords()?;
    let spec = keeper::server_spec(config, &passwords.superuser)?
        .ok_or_else(|| Trouble::wrong_role("a witness has no database to adopt", "add a [postgresql] section"))?;
    let (facts, mut notes) = match Server::adopt(&spec).await? {
        Some(_) => running(&spec, adopt, &passwords).await?,
        None => (stopped(&spec, &passwords).await?, Vec::new()),
    };
    if facts.has_postgres {
        passwords.postgres = String::new();
    }
    import(&facts, &spec, settings, &mut notes)?;
    Ok(Prepared { adopted: Adopted { passwords }, notes })
}

/// Whether the data belongs to the user who is to run the server on it.
pub fn check_owner(data_dir: &Path, user: Option<&OsUser>) -> Result<(), Trouble> {
    use std::os::unix::fs::MetadataExt;
    let unreadable = |error: std::io::Error| {
        Trouble::directory_unfit(format!("{} cannot be examined", data_dir.display()), "check the path").because(error)
    };
    let owner = std::fs::metadata(data_dir).map_err(unreadable)?.uid();
    let ours = user.map_or_else(|| nix::unistd::geteuid().as_raw(), |user| user.uid);
    if owner == ours {
        return Ok(());
    }
    let named = nix::unistd::User::from_uid(owner.into()).ok().flatten();
    let name = named.map_or_else(|| owner.to_string(), |user| user.name);
    let hint = if nix::unistd::geteuid().is_root() {
        format!("write under [postgresql]: run_as = \"{name}\"")
    } else {
        format!("run this as {name}, or as root with run_as = \"{name}\" under [postgresql]")
    };
    Err(Trouble::directory_unfit(format!("{} belongs to {name}", data_dir.display()), hint))
}

/// The name under which the owner of the data directory is known to its server, unless people say another.
fn superuser(adopt: &Adopt, spec: &ServerSpec) -> String {
    let own = || nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name);
    let owner = spec.user.as_ref().map(|user| user.name.clone()).or_else(own);
    adopt.superuser.clone().or(owner).unwrap_or_else(|| "postgres".to_owned())
}

async fn running(spec: &ServerSpec, adopt: &Adopt, passwords: &Passwords) -> Result<(Facts, Vec<String>), Trouble> {
    let found = running::whereabouts(&spec.data_dir).ok_or_else(|| {
        Trouble::server_failed("the server is only starting: it does not say yet where it listens", "try again")
    })?;
    adopt::check_port(found.port, spec)?;
    let name = superuser(adopt, spec);
    let mut session = match (&adopt.dsn, &found.socket_dir) {
        (Some(dsn), _) => Session::by_dsn(dsn).await?,
        (None, Some(socket)) => Session::by_socket(spec, socket, found.port, &name).await?,
        (None, None) => {
            return Err(Trouble::sql(
                "the server has no Unix socket",
                "say how to log in as a superuser: --adopt-dsn 'host=... user=...', with the password in PGPASSWORD",
            ));
        }
    };
    if session.value(adopt::IS_SUPERUSER).await? != "on" {
        return Err(Trouble::denied(
            "the role that logs in is not a superuser",
            "name one with --superuser ROLE, or with --adopt-dsn",
        ));
    }
    session.run(adopt::SESSION).await?;
    let facts = Facts::parse(&session.value(adopt::FACTS).await?)?;
    facts.check(spec)?;
    let user = spec.user.as_ref();
    let hba = running::read_as(&facts.hba_file, user)?;
    // Refused before anything is changed.
    adopt::import_hba(&hba)?;
    for file in [&facts.config_file, &facts.hba_file, &facts.ident_file] {
        running::back_up(file, user)?;
    }
    session.run(&adopt::roles(&spec.superuser, &passwords.superuser, &passwords.replication)?).await?;
    let with_access = adopt::with_access(&hba, &spec.superuser);
    if with_access != hba {
        running::write_as(&facts.hba_file, &with_access, user)?;
    }
    session.run(adopt::RELOAD).await?;
    await_access(spec).await?;
    let mut notes = Vec::new();
    if let Some(socket) = &found.socket_dir
        && !spec.socket_dirs_beside.contains(socket)
        && *socket != spec.socket_dir
    {
        notes.push(format!(
            "after its next restart the server has its socket in {} only; to keep {socket} for local clients write \
             under [postgresql]: socket_dirs = [\"{socket}\"]",
            spec.socket_dir.display(),
            socket = socket.display()
        ));
    }
    if facts.listen_addresses != spec.listen {
        notes.push(format!(
            "the server listens on `{}`; on `{}`, as the node file says, from its next restart on \
             (stemma restart --rolling): until then other machines may not reach it",
            facts.listen_addresses, spec.listen
        ));
    }
    Ok((facts, notes))
}

/// Waits until the server has read the new line and lets our role in.
async fn await_access(spec: &ServerSpec) -> Result<(), Trouble> {
    let sql = Sql::new(spec);
    let until = Instant::now() + ACCESS_DEADLINE;
    loop {
        let Err(trouble) = sql.ready().await else { return Ok(()) };
        if Instant::now() >= until {
            return Err(Trouble::sql(
                format!("the server does not let the new role `{}` in by its socket", spec.superuser),
                "see the server's log: a fault in pg_hba.conf keeps it from reading the file again",
            )
            .because(trouble));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn stopped(spec: &ServerSpec, passwords: &Passwords) -> Result<Facts, Trouble> {
    let DataDir::Cluster(control) = postgres::check_data_dir(&spec.data_dir, spec.user.as_ref())? else {
        return Err(Trouble::directory_unfit(
            format!("{} holds no database to adopt", spec.data_dir.display()),
            "set [postgresql] data_dir to the directory of the database",
        ));
    };
    let in_recovery = match control.state {
        ControlState::ShutDownInRecovery | ControlState::InArchiveRecovery => true,
        ControlState::ShutDown
        | ControlState::ShuttingDown
        | ControlState::InCrashRecovery
        | ControlState::StartingUp
        | ControlState::InProduction => false,
    };
    if in_recovery || ["standby.signal", "recovery.signal"].iter().any(|name| spec.data_dir.join(name).exists()) {
        return Err(Trouble::wrong_role(
            format!("{} is the data of a replica", spec.data_dir.display()),
            "adopt its primary, then let this node join with an empty data directory",
        ));
    }
    let config_file = adopt::stopped_config_file(&spec.data_dir, control.major).ok_or_else(|| {
        Trouble::directory_unfit(
            format!("no postgresql.conf for {} was found", spec.data_dir.display()),
            "start the server as before, and adopt it while it runs",
        )
    })?;
    let roles = adopt::roles(&spec.superuser, &passwords.superuser, &passwords.replication)?;
    let answer = adopt::in_single_user_mode(spec, &config_file, &roles, adopt::FACTS).await?;
    let facts = Facts::parse(&answer)?;
    // The server will run on the port of the node file; nobody is connected that could miss the old one.
    Facts { port: spec.port, ..facts.clone() }.check(spec)?;
    for file in [&facts.config_file, &facts.hba_file, &facts.ident_file] {
        running::back_up(file, spec.user.as_ref())?;
    }
    Ok(facts)
}

/// What the user has set goes into the settings, except where a settings file says otherwise; and their maps of names
/// to the place where every node keeps them.
fn import(facts: &Facts, spec: &ServerSpec, settings: &mut Settings, notes: &mut Vec<String>) -> Result<(), Trouble> {
    let user = spec.user.as_ref();
    let import = adopt::import_parameters(facts);
    notes.extend(import.notes);
    for (name, value) in import.parameters {
        settings.postgresql.parameters.entry(name).or_insert(value);
    }
    if settings.postgresql.hba.is_empty() {
        settings.postgresql.hba = adopt::import_hba(&running::read_as(&facts.hba_file, user)?)?;
    }
    let own = spec.data_dir.join("pg_ident.conf");
    if !same_file(&own, &facts.ident_file) {
        let maps = running::read_as(&facts.ident_file, user).unwrap_or_default();
        running::write_as(&own, &maps, user)?;
    }
    Ok(())
}

fn same_file(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    real(one).is_some() && real(one) == real(other)
}
