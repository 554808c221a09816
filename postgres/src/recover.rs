//! Crash recovery alone: where the log of a crashed primary ends shows only then, and a directory that is to be
//! compared, saved or rewound must have been shut down in order.

use crate::control_file::{ControlState, read_control_file};
use crate::process::server_processes;
use crate::single_user::SingleUser;
use crate::spec::ServerSpec;
use model::Trouble;
use std::time::{Duration, Instant};

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// Nothing was to be done, for this reason.
    NotNeeded(&'static str),
    /// Recovery ran and the server shut down in order.
    Done {
        /// How long it took.
        millis: u64,
    },
}

/// Runs crash recovery of a primary that is gone, in single-user mode: no connection is taken, nothing is archived, no
/// log is removed and nobody is waited for. Commits that had reached its log become part of the data; nobody sees them.
///
/// A replica's directory, one that was shut down in order, and a base backup (`backup_label`) are left as they are.
/// Can be cut off and called again.
pub async fn crash_recover(spec: &ServerSpec, deadline: Duration) -> Result<Recovered, Trouble> {
    let control = read_control_file(&spec.data_dir)?;
    match control.state {
        ControlState::ShutDown | ControlState::ShutDownInRecovery => {
            return Ok(Recovered::NotNeeded("it was shut down in order"));
        }
        ControlState::InArchiveRecovery => return Ok(Recovered::NotNeeded("it is a replica")),
        ControlState::StartingUp
        | ControlState::ShuttingDown
        | ControlState::InCrashRecovery
        | ControlState::InProduction => {}
    }
    if spec.data_dir.join("backup_label").exists() {
        return Ok(Recovered::NotNeeded("it is a base backup"));
    }
    alone(spec, deadline).await
}

/// Starts and ends the server in single-user mode, whatever it was before: a replica's directory becomes one that was
/// shut down in order as well.
pub(crate) async fn alone(spec: &ServerSpec, deadline: Duration) -> Result<Recovered, Trouble> {
    let living = server_processes(&spec.data_dir);
    if !living.is_empty() {
        return Err(Trouble::server_failed(
            format!("{} processes of the server still work in {}", living.len(), spec.data_dir.display()),
            "end them first",
        ));
    }
    let began = Instant::now();
    SingleUser { spec, database: "postgres", parameters: &[] }.run("", deadline).await?;
    let after = read_control_file(&spec.data_dir)?;
    if after.state != ControlState::ShutDown {
        return Err(Trouble::server_failed(
            format!("crash recovery of {} ended without an orderly shutdown", spec.data_dir.display()),
            format!("see {}", spec.log_file.display()),
        ));
    }
    Ok(Recovered::Done { millis: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX) })
}
