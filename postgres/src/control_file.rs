//! `global/pg_control`, read without the server and without `pg_controldata`, which some packages leave out.
//!
//! The layout is that of PostgreSQL 13 to 18 on 64-bit little-endian machines. A file of any other layout fails its
//! check sum, so it is refused and never misread.

use model::{Lsn, SystemId, Timeline, Trouble};
use std::path::Path;

/// What the server last noted of its own state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlState {
    /// Never ran.
    StartingUp,
    /// Stopped cleanly as a primary.
    ShutDown,
    /// Stopped cleanly as a replica.
    ShutDownInRecovery,
    /// Was stopping.
    ShuttingDown,
    /// Was in crash recovery.
    InCrashRecovery,
    /// Runs, or died, as a replica.
    InArchiveRecovery,
    /// Runs, or died, as a primary.
    InProduction,
}

impl ControlState {
    /// Whether the server was stopped in good order.
    pub fn is_clean(self) -> bool {
        matches!(self, ControlState::ShutDown | ControlState::ShutDownInRecovery)
    }

    fn from_number(number: u32) -> Option<ControlState> {
        use ControlState::*;
        [StartingUp, ShutDown, ShutDownInRecovery, ShuttingDown, InCrashRecovery, InArchiveRecovery, InProduction]
            .get(number as usize)
            .copied()
    }
}

/// What we need of the control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFile {
    /// The database system's identity.
    pub system_id: SystemId,
    /// Major version, from `PG_VERSION`.
    pub major: u32,
    /// State as last noted.
    pub state: ControlState,
    /// Place of the last checkpoint record.
    pub checkpoint: Lsn,
    /// Where replay begins from that checkpoint.
    pub redo: Lsn,
    /// Timeline of that checkpoint. After a promotion it is old until the next checkpoint.
    pub timeline: Timeline,
    /// Replay must reach this before the data is consistent; zero on a primary.
    pub min_recovery_end: Lsn,
    /// Timeline of `min_recovery_end`; zero on a primary.
    pub min_recovery_timeline: Timeline,
    /// Whether pages carry check sums.
    pub checksums: bool,
    /// Whether hint bits are logged.
    pub wal_log_hints: bool,
    /// Size of a log segment.
    pub segment_bytes: u32,
}

/// A running server rewrites the file in place, so a reader may see it torn; this often it is read again.
const READS_MAX: u32 = 20;

/// Reads and checks the control file of a data directory.
pub fn read_control_file(data_dir: &Path) -> Result<ControlFile, Trouble> {
    let unfit = |reason: String, hint: &str| Trouble::directory_unfit(reason, hint);
    let version_path = data_dir.join("PG_VERSION");
    let version = std::fs::read_to_string(&version_path).map_err(|error| {
        unfit(format!("cannot read {}", version_path.display()), "is this a data directory?").because(error)
    })?;
    let major = version.trim().parse().map_err(|_| {
        unfit(format!("{} holds no version number", version_path.display()), "is this a data directory?")
    })?;
    let path = data_dir.join("global/pg_control");
    let mut last = String::new();
    for read in 0..READS_MAX {
        if read > 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let bytes = std::fs::read(&path).map_err(|error| {
            unfit(format!("cannot read {}", path.display()), "restore the directory, or make it anew").because(error)
        })?;
        match parse(&bytes, major) {
            Ok(control) => return Ok(control),
            Err(reason) => last = reason,
        }
    }
    Err(unfit(format!("{} {last}", path.display()), "restore the directory from a backup, or make it anew"))
}

/// Where the check sum stands: version 18 put one more byte before the 32 bytes that precede it.
fn crc_offset(control_version: u32) -> usize {
    if control_version >= 1800 { 292 } else { 288 }
}

fn parse(bytes: &[u8], major: u32) -> Result<ControlFile, String> {
    let u32_at = |at: usize| bytes.get(at..at + 4).map(|part| u32::from_le_bytes([part[0], part[1], part[2], part[3]]));
    let u64_at = |at: usize| Some(u64::from(u32_at(at)?) | u64::from(u32_at(at + 4)?) << 32);
    let short = || "is too short".to_owned();
    let control_version = u32_at(8).ok_or_else(short)?;
    let crc_at = crc_offset(control_version);
    let stored = u32_at(crc_at).ok_or_else(short)?;
    let body = bytes.get(..crc_at).ok_or_else(short)?;
    if crc32c::crc32c(body) != stored {
        return Err(format!("has a wrong check sum or an unknown layout ({control_version})"));
    }
    let state = u32_at(16).ok_or_else(short)?;
    let number = |at| u64_at(at).ok_or_else(short);
    let small = |at| u32_at(at).ok_or_else(short);
    Ok(ControlFile {
        system_id: SystemId(number(0)?),
        major,
        state: ControlState::from_number(state).ok_or_else(|| format!("names an unknown state ({state})"))?,
        checkpoint: Lsn(number(32)?),
        redo: Lsn(number(40)?),
        timeline: Timeline(small(48)?),
        min_recovery_end: Lsn(number(136)?),
        min_recovery_timeline: Timeline(small(144)?),
        checksums: small(252)? != 0,
        wal_log_hints: small(176)? & 0xFF != 0,
        segment_bytes: small(228)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(control_version: u32) -> Vec<u8> {
        let mut bytes = vec![0u8; 8192];
        bytes[..8].copy_from_slice(&7_000_000_000_000_000_001u64.to_le_bytes());
        bytes[8..12].copy_from_slice(&control_version.to_le_bytes());
        bytes[16..20].copy_from_slice(&6u32.to_le_bytes());
        bytes[32..40].copy_from_slice(&0x1_0000_0028u64.to_le_bytes());
        bytes[48..52].copy_from_slice(&3u32.to_le_bytes());
        bytes[252..256].copy_from_slice(&1u32.to_le_bytes());
        let at = crc_offset(control_version);
        let crc = crc32c::crc32c(&bytes[..at]);
        bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn both_layouts_are_read_and_one_flipped_bit_is_noticed() {
        for control_version in [1300, 1700, 1800] {
            let bytes = sample(control_version);
            let control = parse(&bytes, 15).expect("sound");
            assert_eq!(control.system_id, SystemId(7_000_000_000_000_000_001));
            assert_eq!((control.timeline, control.state), (Timeline(3), ControlState::InProduction));
            assert_eq!(control.checkpoint, Lsn(0x1_0000_0028));
            assert!(control.checksums);
            let mut broken = bytes.clone();
            broken[33] ^= 1;
            assert!(parse(&broken, 15).expect_err("broken").contains("check sum"));
            assert!(parse(&bytes[..200], 15).is_err());
        }
    }
}
