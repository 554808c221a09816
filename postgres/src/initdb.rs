//! Making a new database system, so that a kill at any moment leaves nothing that could be taken for a database.
//!
//! Everything is made in a subdirectory of the data directory and moved up when it is complete, `PG_VERSION` last:
//! without that file no server starts. A subdirectory rather than a neighbour, because the data directory may be a
//! mount point, which cannot be renamed over, and its parent may be closed to us.

use crate::data_dir::{DataDir, INITDB_STAGING, check_data_dir};
use crate::files::{first_closed_to, give, refused, replace, sync_dir};
use crate::process::{clean_command, kill_in_directories};
use crate::spec::ServerSpec;
use model::Trouble;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// Time after which making a database counts as hung.
const INITDB_DEADLINE: Duration = Duration::from_secs(300);

/// Makes a database in `spec.data_dir`: UTF8, with check sums unless told otherwise, with the superusers
/// `spec.superuser` and `postgres` and the role `stemma_replication` (which gets its password, and so its login, from
/// `Sql::ensure_roles`). `progress` is told each step in words.
pub async fn initdb(
    spec: &ServerSpec,
    postgres_password: &str,
    checksums: bool,
    progress: &(dyn Fn(&str) + Send + Sync),
) -> Result<(), Trouble> {
    let dir = &spec.data_dir;
    if let Some(closed) = first_closed_to(dir, spec.user.as_ref()) {
        return Err(Trouble::directory_unfit(
            format!("{} is closed to the user of the server, who needs to reach {}", closed.display(), dir.display()),
            format!("chmod o+x {}", closed.display()),
        ));
    }
    match check_data_dir(dir, spec.user.as_ref())? {
        DataDir::Missing | DataDir::Empty => {}
        DataDir::HalfMade { what } if what == "initdb" => discard_half_made(spec).await?,
        DataDir::HalfMade { what } => {
            return Err(Trouble::directory_unfit(
                format!("{} holds an unfinished {what}", dir.display()),
                "finish it, or empty the directory",
            ));
        }
        DataDir::Cluster(_) => {
            return Err(Trouble::directory_unfit(
                format!("{} holds a database already", dir.display()),
                "choose an empty directory, or use the database that is there",
            ));
        }
    }
    progress("creating the data directory");
    let dir = &std::path::absolute(dir).map_err(|error| refused("find", dir, &error))?;
    let staging = dir.join(INITDB_STAGING);
    make_private(dir, spec)?;
    make_private(&staging, spec)?;
    failpoint::pass("initdb.begun");
    progress("running initdb");
    let locale = run_initdb(spec, &staging, checksums).await?;
    failpoint::pass("initdb.made");
    progress("creating roles");
    create_roles(spec, &staging.join("data"), postgres_password).await?;
    failpoint::pass("initdb.roles-made");
    publish(dir)?;
    tracing::info!(data_dir = %dir.display(), locale, checksums, "made a new database");
    Ok(())
}

fn make_private(dir: &Path, spec: &ServerSpec) -> Result<(), Trouble> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(dir).map_err(|error| refused("create", dir, &error))?;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(|error| refused("close", dir, &error))?;
    give(dir, spec.user.as_ref())
}

/// Empties a data directory whose initialisation was interrupted. Everything in it is ours: the staging directory was
/// made when there was nothing else.
async fn discard_half_made(spec: &ServerSpec) -> Result<(), Trouble> {
    let dir = &spec.data_dir;
    let staging = dir.join(INITDB_STAGING);
    // The programs of the interrupted attempt may live on and would write into the next one's files.
    kill_in_directories(&[&staging, &staging.join("data")], Duration::from_secs(10)).await?;
    for entry in fs::read_dir(dir).map_err(|error| refused("read", dir, &error))? {
        let path = entry.map_err(|error| refused("read", dir, &error))?.path();
        if path.file_name().is_some_and(|name| name == INITDB_STAGING) {
            continue;
        }
        let is_dir = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(|error| refused("remove", &path, &error))?;
    }
    // The proof that all this was ours goes last.
    fs::remove_dir_all(&staging).map_err(|error| refused("remove", &staging, &error))?;
    sync_dir(dir)
}

/// Runs initdb with the best locale there is; says which.
async fn run_initdb(spec: &ServerSpec, staging: &Path, checksums: bool) -> Result<&'static str, Trouble> {
    let password_file = staging.join("password");
    replace(&password_file, &format!("{}\n", spec.superuser_password), spec.user.as_ref())?;
    let mut said = String::new();
    for locale in ["C.UTF-8", "C"] {
        let mut command = clean_command(spec, "initdb", false);
        command.current_dir(staging).kill_on_drop(true).stdin(Stdio::null());
        command.arg("-D").arg(staging.join("data")).args(["-U", &spec.superuser, "-E", "UTF8"]);
        command.arg(format!("--locale={locale}")).arg("--pwfile").arg(&password_file);
        command.args(["--auth-local=scram-sha-256", "--auth-host=scram-sha-256"]);
        if checksums {
            command.arg("--data-checksums");
        } else if spec.installation.major >= 18 {
            command.arg("--no-data-checksums");
        }
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let run = async {
            let child = command.spawn()?;
            failpoint::pass("initdb.running");
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(INITDB_DEADLINE, run).await;
        let output = output
            .map_err(|_| Trouble::server_failed("initdb does not finish", "check the disk of the data directory"))?
            .map_err(|error| refused("run", &spec.installation.bin_dir.join("initdb"), &error))?;
        if output.status.success() {
            fs::remove_file(&password_file).map_err(|error| refused("remove", &password_file, &error))?;
            return Ok(locale);
        }
        said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if !said.contains("locale") {
            break;
        }
    }
    Err(Trouble::server_failed("initdb failed", "see the cause; an interrupted attempt is cleaned up by the next one")
        .because(said))
}

/// Adds the further roles before the database can be seen, through a server in single-user mode.
async fn create_roles(spec: &ServerSpec, data: &Path, postgres_password: &str) -> Result<(), Trouble> {
    let mut statements = String::new();
    if spec.superuser != "postgres" {
        let password = quote_literal(postgres_password)?;
        statements.push_str(&format!("CREATE ROLE postgres SUPERUSER LOGIN PASSWORD {password}\n"));
    }
    statements.push_str("CREATE ROLE stemma_replication REPLICATION LOGIN\n");
    let mut command = clean_command(spec, "postgres", false);
    command.current_dir(data).kill_on_drop(true);
    command.arg("--single").arg("-D").arg(data).args(["-c", "password_encryption=scram-sha-256"]);
    command.args(["-c", "log_statement=none", "-c", "log_min_error_statement=panic", "postgres"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let failed = || Trouble::server_failed("cannot create the first roles", "see the cause, then try again");
    let run = async {
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(statements.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(INITDB_DEADLINE, run).await.map_err(|_| failed().because("no answer"))?;
    let output = output.map_err(|error| failed().because(error))?;
    let said = String::from_utf8_lossy(&output.stderr);
    // Single-user mode goes on after an error and ends with success.
    let complaint = said.lines().find(|line| ["ERROR:", "FATAL:", "PANIC:"].iter().any(|word| line.contains(word)));
    match complaint {
        None if output.status.success() => Ok(()),
        complaint => Err(failed().because(complaint.unwrap_or("the server ended with an error"))),
    }
}

/// Quotes a value for a statement that fits one line.
pub(crate) fn quote_literal(value: &str) -> Result<String, Trouble> {
    if value.contains(['\0', '\n', '\r', '\\']) {
        return Err(Trouble::config_bad_value(
            "a password or name holds a backslash, line break or NUL",
            "choose another one",
        ));
    }
    Ok(format!("'{}'", value.replace('\'', "''")))
}

/// Moves the finished files up, `PG_VERSION` last and only after all else is durable.
fn publish(dir: &Path) -> Result<(), Trouble> {
    let staging = dir.join(INITDB_STAGING);
    let data = staging.join("data");
    let last = data.join("PG_VERSION");
    for entry in fs::read_dir(&data).map_err(|error| refused("read", &data, &error))? {
        let path = entry.map_err(|error| refused("read", &data, &error))?.path();
        if path != last {
            let target = dir.join(path.file_name().unwrap_or_default());
            fs::rename(&path, &target).map_err(|error| refused("move", &path, &error))?;
        }
    }
    sync_dir(dir)?;
    failpoint::pass("initdb.half-moved");
    fs::rename(&last, dir.join("PG_VERSION")).map_err(|error| refused("move", &last, &error))?;
    sync_dir(dir)?;
    failpoint::pass("initdb.version-moved");
    fs::remove_dir_all(&staging).map_err(|error| refused("remove", &staging, &error))?;
    sync_dir(dir)
}
