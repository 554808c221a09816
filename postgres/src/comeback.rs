//! How a data directory with a history of its own comes back as a copy of the primary: recover, save, rewind.
//!
//! One function for the caller's driver. Each step can be cut off and begun anew; nothing is given up before it was
//! saved, and where saving fails the directory stays as it is and the trouble is told.

use crate::control_file::{ControlState, read_control_file};
use crate::recover::{self, Recovered, crash_recover};
use crate::replication::{Endpoint, HistoryEntry, ReplicationClient};
use crate::rescue::{self, Fork, RescueOrder, Saved, find_fork};
use crate::rewind::{self, RewindError, Rewound};
use crate::spec::{ServerSpec, TlsFiles};
use model::observe::CloneProgress;
use model::{Timeline, Trouble};
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long telling its history may take a primary.
const HISTORY_DEADLINE: Duration = Duration::from_secs(20);

/// How long the steps may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComebackDeadlines {
    /// Crash recovery.
    pub recover: Duration,
    /// Reading and copying what only this node holds.
    pub save: Duration,
    /// The rewind.
    pub rewind: Duration,
}

impl Default for ComebackDeadlines {
    fn default() -> Self {
        ComebackDeadlines {
            recover: Duration::from_secs(1800),
            save: Duration::from_secs(1800),
            rewind: Duration::from_secs(3600),
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Comeback<'a> {
    /// The server: stopped, none of its processes left.
    pub spec: &'a ServerSpec,
    /// The primary to follow, and the role that replicas use.
    pub source: Endpoint,
    /// What is shown to a source that wants TLS.
    pub files: Option<&'a TlsFiles>,
    /// Where the histories part, where the cluster's epochs tell it; else it is found by comparing histories.
    pub fork: Option<Fork>,
    /// Where to save what.
    pub rescue: RescueOrder<'a>,
    /// False: only save, since the directory cannot be rewound (its timeline has the number of another one).
    pub may_rewind: bool,
    /// How long it may take.
    pub deadlines: ComebackDeadlines,
}

/// How the directory comes to follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// It was rewound. It carries `standby.signal` and the configuration that it had: write the one that it is to have,
    /// then start it.
    Rewound,
    /// It holds nothing beyond the primary's history and can follow as it is.
    Follow,
    /// It must be emptied and copied anew. What only it held is saved.
    Rebuild {
        /// Why it could not be rewound.
        because: String,
    },
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CameBack {
    /// Crash recovery.
    pub recovered: Recovered,
    /// What was saved.
    pub saved: Saved,
    /// What comes next.
    pub way: Way,
}

/// Brings the directory back as far as possible. On an error nothing was given up: try again, and tell people.
///
/// The caller notes in its ledger that the timelines of the directory are replaced *before* it calls this.
pub async fn comeback(
    order: &Comeback<'_>,
    progress: &watch::Sender<CloneProgress>,
    cancel: &CancellationToken,
) -> Result<CameBack, Trouble> {
    let spec = order.spec;
    let nothing = |because: &str| CameBack {
        recovered: Recovered::NotNeeded("it cannot be recovered"),
        saved: Saved::Nothing { beyond: 0 },
        way: Way::Rebuild { because: because.to_owned() },
    };
    if rewind::mark::is_set(&spec.data_dir) {
        return Ok(nothing("an earlier rewind was cut off; what only this node held was saved before it began"));
    }
    if spec.data_dir.join("backup_label").exists() {
        return Ok(nothing("it is a base backup that never became consistent"));
    }
    let phase = |words: &str| progress.send_modify(|shown| shown.phase = words.to_owned());
    phase("crash recovery");
    let recovered = recovered(spec, order.deadlines.recover).await?;
    if cancel.is_cancelled() {
        return Err(Trouble::server_failed("coming back was cancelled", "it is begun anew when it is wanted"));
    }
    phase("comparing histories");
    let fork = fork(order).await?;
    phase("saving what only this node holds");
    let saved = rescue::save(spec, &order.rescue, fork, order.deadlines.save).await?;
    let way = way(order, progress, cancel).await?;
    Ok(CameBack { recovered, saved, way })
}

async fn recovered(spec: &ServerSpec, deadline: Duration) -> Result<Recovered, Trouble> {
    match read_control_file(&spec.data_dir)?.state {
        // A replica that received more than the primary has. It must be shut down in order like any other.
        ControlState::InArchiveRecovery => recover::alone(spec, deadline).await,
        ControlState::StartingUp
        | ControlState::ShutDown
        | ControlState::ShutDownInRecovery
        | ControlState::ShuttingDown
        | ControlState::InCrashRecovery
        | ControlState::InProduction => crash_recover(spec, deadline).await,
    }
}

async fn fork(order: &Comeback<'_>) -> Result<Fork, Trouble> {
    let control = read_control_file(&order.spec.data_dir)?;
    let source = &order.source;
    let asked = async {
        let mut client = ReplicationClient::connect(source).await?;
        let identity = client.identify_system().await?;
        let history = client.timeline_history(identity.timeline).await?;
        client.close().await;
        Ok::<_, Trouble>((identity, history))
    };
    let (identity, theirs) = tokio::time::timeout(HISTORY_DEADLINE, asked).await.map_err(|_| {
        Trouble::link_down(
            format!("{source} did not tell its history within {} s", HISTORY_DEADLINE.as_secs()),
            "check the network between the two nodes",
        )
    })??;
    if identity.system_id != control.system_id {
        return Err(Trouble::foreign_system(
            format!("{source} is system {}, this directory is system {}", identity.system_id, control.system_id),
            "give the node the right or an empty data directory; nothing was changed in this one",
        ));
    }
    if let Some(fork) = order.fork {
        return Ok(fork);
    }
    let ours = local_history(&order.spec.data_dir, control.timeline)?;
    find_fork((control.timeline, &ours), (identity.timeline, &theirs)).ok_or_else(|| {
        Trouble::diverged(
            format!("the histories of {source} and of this node have no timeline in common"),
            "copy the data directory away, then rebuild the node: stemma node reinit",
        )
    })
}

fn local_history(data_dir: &Path, timeline: Timeline) -> Result<Vec<HistoryEntry>, Trouble> {
    if timeline.0 <= 1 {
        return Ok(Vec::new());
    }
    let path = data_dir.join("pg_wal").join(format!("{:08X}.history", timeline.0));
    let bytes = std::fs::read(&path).map_err(|error| crate::files::refused("read", &path, &error))?;
    crate::replication::parse_history(&bytes).map_err(|error| {
        Trouble::directory_unfit(format!("{} is not understood", path.display()), "copy it from another node")
            .because(error)
    })
}

async fn way(
    order: &Comeback<'_>,
    progress: &watch::Sender<CloneProgress>,
    cancel: &CancellationToken,
) -> Result<Way, Trouble> {
    let rebuild = |because: String| Ok(Way::Rebuild { because });
    if !order.may_rewind {
        return rebuild("its timeline was begun by another promotion than the primary's of the same number".into());
    }
    if let Err(trouble) = rewind::possible(order.spec) {
        return rebuild(trouble.to_string());
    }
    match rewind::run(order.spec, &order.source, order.files, progress, order.deadlines.rewind, cancel).await {
        Ok(Rewound::Done) => Ok(Way::Rewound),
        Ok(Rewound::NotRequired) => Ok(Way::Follow),
        // The tool's own no; anything else may be better the next time.
        Err(RewindError::Untouched(trouble)) if trouble.is("ST3010") => rebuild(trouble.to_string()),
        Err(RewindError::Untouched(trouble)) => Err(trouble),
        Err(RewindError::Broken(trouble)) => rebuild(trouble.to_string()),
    }
}
