//! What `bundle.json` says.

use super::changes::Committed;
use super::decode::Decoded;
use super::scan::Scanned;
use super::{Fork, RescueOrder, cells};
use crate::control_file::ControlFile;
use model::{Epoch, Lsn, NodeName, SystemId, Timeline, WallTime};
use serde::{Deserialize, Serialize};
use std::time::SystemTime;

/// Raised when a field changes its meaning.
pub(crate) const SCHEMA_VERSION: u32 = 1;

/// What the bundle says of acknowledgements.
const ACKNOWLEDGED: &str = "none of these transactions was acknowledged by the replicas of the rule that chose the new \
    primary; a client may still have been told that one was committed: in commit mode async, in a session with \
    synchronous_commit = off or local, or where a wait for replicas was cancelled";

/// What came of saving.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saved {
    /// Nothing beyond the fork was committed but bookkeeping of ours.
    Nothing {
        /// Bytes of log beyond the fork.
        beyond: u64,
    },
    /// A bundle was made, or was there already.
    Bundle(Box<Bundle>),
}

/// How much a bundle holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Committed transactions with changes other than our own bookkeeping.
    pub transactions: u64,
    /// Rows.
    pub inserts: u64,
    /// Rows.
    pub updates: u64,
    /// Rows.
    pub deletes: u64,
    /// Statements.
    pub truncates: u64,
    /// Changes of system catalogs: definitions, roles, large objects. Not written out.
    pub catalog: u64,
    /// Values drawn from sequences, or sequences set. Not written out.
    pub sequences: u64,
    /// Changes of which the new or the old row could not be read in full.
    pub incomplete: u64,
}

/// What a bundle is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// Version of this form.
    pub schema_version: u32,
    /// Its name, and that of its directory.
    pub id: String,
    /// The node that held the changes.
    pub node: NodeName,
    /// The primary that the node followed afterwards.
    pub primary: NodeName,
    /// That primary's epoch.
    pub epoch: Epoch,
    /// When it was saved.
    pub saved_at: WallTime,
    /// The database system.
    pub system_id: SystemId,
    /// PostgreSQL's major version.
    pub major: u32,
    /// Timeline of the saved log.
    pub timeline: Timeline,
    /// The last position that the new primary has as well.
    pub fork: Lsn,
    /// End of the saved log.
    pub end: Lsn,
    /// End of the last commit in it.
    pub last_commit: Option<Lsn>,
    /// Names of the saved files of the log.
    pub log_files: Vec<String>,
    /// Bytes of the whole bundle.
    pub bytes: u64,
    /// What is in it.
    pub counts: Counts,
    /// Who may have been told what.
    pub acknowledged: String,
    /// Prepared transactions that nobody had decided.
    pub prepared: Vec<u32>,
    /// What could not be read, and why.
    pub not_decoded: Vec<String>,
    /// When it was exported last.
    #[serde(default)]
    pub exported_at: Option<WallTime>,
}

pub(crate) fn describe(
    order: &RescueOrder<'_>,
    control: &ControlFile,
    fork: Fork,
    scanned: &Scanned,
    decoded: &mut Decoded,
) -> Bundle {
    let saved_at = now();
    let name = |path: &std::path::PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Bundle {
        schema_version: SCHEMA_VERSION,
        id: format!("{}-{}-{}", compact(saved_at), order.node, order.epoch),
        node: order.node.clone(),
        primary: order.primary.clone(),
        epoch: order.epoch,
        saved_at,
        system_id: control.system_id,
        major: control.major,
        timeline: control.timeline,
        fork: fork.at,
        end: scanned.end,
        last_commit: scanned.committed.last().map(|committed: &Committed| committed.lsn),
        log_files: scanned.files.iter().map(name).collect(),
        bytes: 0,
        counts: decoded.counts,
        acknowledged: ACKNOWLEDGED.split_whitespace().collect::<Vec<_>>().join(" "),
        prepared: scanned.prepared.clone(),
        not_decoded: std::mem::take(&mut decoded.not_decoded),
        exported_at: None,
    }
}

/// The time for people's eyes.
pub(crate) fn now() -> WallTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    WallTime(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn parts(time: WallTime) -> [i64; 6] {
    let seconds = time.0.div_euclid(1000);
    let (year, month, day) = cells::civil(seconds.div_euclid(86_400));
    let of_day = seconds.rem_euclid(86_400);
    [year, month, day, of_day / 3600, of_day / 60 % 60, of_day % 60]
}

/// `20261120T133349Z`.
fn compact(time: WallTime) -> String {
    let [year, month, day, hour, minute, second] = parts(time);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

/// `2026-11-20T13:33:49.123Z`.
pub(crate) fn shown(time: WallTime) -> String {
    let [year, month, day, hour, minute, second] = parts(time);
    let millis = time.0.rem_euclid(1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        let time = WallTime(1_795_181_629_123);
        assert_eq!(compact(time), "20261120T133349Z");
        assert_eq!(shown(time), "2026-11-20T13:33:49.123Z");
    }
}
