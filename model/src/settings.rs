//! Cluster-wide settings: one document in consensus, the same for every node, changed only with `stemma config`.
//!
//! The shape and the defaults are here; checking, comparing and explaining them is `cluster::settings`.

use crate::names::Site;
use crate::units::Millis;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// How many replicas hold a commit before it is acknowledged to the client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommitMode {
    /// None: the fastest; a lost host loses what had not been sent.
    Async,
    /// One replica.
    #[default]
    SemiSync,
    /// So many that a majority of data nodes, the primary included, holds it.
    Quorum,
    /// Every voter.
    Sync,
}

impl CommitMode {
    /// All modes, weakest first.
    pub const ALL: [CommitMode; 4] = [CommitMode::Async, CommitMode::SemiSync, CommitMode::Quorum, CommitMode::Sync];
    /// The word used in settings, commands and output.
    pub fn as_str(self) -> &'static str {
        match self {
            CommitMode::Async => "async",
            CommitMode::SemiSync => "semi-sync",
            CommitMode::Quorum => "quorum",
            CommitMode::Sync => "sync",
        }
    }
}
impl fmt::Display for CommitMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
impl FromStr for CommitMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        CommitMode::ALL
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not a commit mode: use async, semi-sync, quorum or sync"))
    }
}

/// A duration as people write it: `500ms`, `30s`, `10min`, `2h`, `1d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Millis);

const SPAN_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1)];

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.0;
        let (unit, size) = SPAN_UNITS
            .into_iter()
            .find(|(_, size)| millis >= *size && millis.is_multiple_of(*size))
            .unwrap_or(("ms", 1));
        write!(f, "{}{unit}", millis / size)
    }
}
impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not a duration: write a whole number and ms, s, min, h or d, as in 30s");
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let number: u64 = text[..split].parse().map_err(|_| bad())?;
        let unit = text[split..].trim();
        let unit = if unit == "m" { "min" } else { unit };
        let (_, size) = SPAN_UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
        number.checked_mul(size).map(|millis| Span(Millis(millis))).ok_or_else(bad)
    }
}
impl TryFrom<String> for Span {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}
impl From<Span> for String {
    fn from(span: Span) -> String {
        span.to_string()
    }
}

/// An amount of bytes as people write it: `512kB`, `64MB`, `10GB`; powers of 1024, as PostgreSQL counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(pub u64);

const SIZE_UNITS: [(&str, u64); 5] = [("TB", 1 << 40), ("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10), ("B", 1)];

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, size) = SIZE_UNITS
            .into_iter()
            .find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size))
            .unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / size)
    }
}
impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is not a size: write a whole number and B, kB, MB, GB or TB, as in 64MB");
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..split].parse().map_err(|_| bad())?;
        let unit = text[split..].trim();
        let unit = if unit.is_empty() { "B" } else { unit };
        let (_, size) = SIZE_UNITS.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(bad)?;
        number.checked_mul(size).map(Size).ok_or_else(bad)
    }
}
impl TryFrom<String> for Size {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}
impl From<Size> for String {
    fn from(size: Size) -> String {
        size.to_string()
    }
}

/// The cluster-wide settings. In TOML the keys are as written here, with `[postgresql.parameters]` as a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How many replicas hold a commit before it is acknowledged.
    pub commit_mode: CommitMode,
    /// With too few replicas: `true` lets commits wait, `false` lowers the number through consensus and says so.
    pub strict: bool,
    /// At least one acknowledgement comes from another site than the primary's, where the voters allow it.
    pub sync_from_other_site: bool,
    /// How long a voter may be unreachable before, with `strict = false`, commits stop waiting for it.
    pub voter_grace: Span,
    /// How often each keeper samples its server.
    pub sample_interval: Span,
    /// From this lag on a replica is reported as a problem.
    pub lag_warn: Span,
    /// How long the slot of an absent member is kept.
    pub slot_retention: Span,
    /// How much log the slots of absent members may keep before they are dropped, oldest first.
    pub slot_retention_size: Size,
    /// Upper bound for the rate of a base backup, per second; 0 is unbounded.
    pub clone_rate: Size,
    /// Whether replication and client connections between nodes use TLS under the cluster CA. Off only for servers
    /// built without TLS.
    pub tls: bool,
    /// What the cluster may do about its primary by itself.
    pub failover: FailoverSettings,
    /// What belongs to PostgreSQL.
    pub postgresql: PostgresqlSettings,
}

/// What the cluster may do about its primary by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FailoverSettings {
    /// Whether a primary that is gone is replaced without a person.
    pub automatic: bool,
    /// Whether a node of another site than the primary's may take over by itself.
    pub cross_site: bool,
    /// Sites that may take over in any case.
    pub sites: Vec<Site>,
    /// Where commits wait for no replica: the most that may be lost, in bytes of log.
    pub loss_max: Size,
}

impl Default for FailoverSettings {
    fn default() -> FailoverSettings {
        FailoverSettings { automatic: true, cross_site: true, sites: Vec::new(), loss_max: Size(16 << 20) }
    }
}

/// The part of the settings that belongs to PostgreSQL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PostgresqlSettings {
    /// Lines of `pg_hba.conf` for users and applications, placed after the lines that the cluster itself needs.
    pub hba: Vec<String>,
    /// Server parameters, the same on every node. Values are written as PostgreSQL prints them (`128MB`, `on`, `100`).
    pub parameters: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            commit_mode: CommitMode::default(),
            strict: false,
            sync_from_other_site: false,
            voter_grace: Span(Millis::from_secs(3)),
            sample_interval: Span(Millis(500)),
            lag_warn: Span(Millis::from_secs(10)),
            slot_retention: Span(Millis::from_secs(1800)),
            slot_retention_size: Size(10 << 30),
            clone_rate: Size(0),
            tls: true,
            failover: FailoverSettings::default(),
            postgresql: PostgresqlSettings::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes_read_back_as_written() {
        for (text, millis) in
            [("500ms", 500), ("30s", 30_000), ("10min", 600_000), ("2h", 7_200_000), ("1d", 86_400_000)]
        {
            let span: Span = text.parse().expect(text);
            assert_eq!((span.0.0, span.to_string()), (millis, text.to_owned()));
        }
        for (text, bytes) in [("0B", 0), ("1kB", 1024), ("64MB", 64 << 20), ("10GB", 10 << 30)] {
            let size: Size = text.parse().expect(text);
            assert_eq!((size.0, size.to_string()), (bytes, text.to_owned()));
        }
        for bad in ["", "s", "-1s", "1", "1.5s", "99999999999999999999s", "5 parsecs"] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?}");
        }
        for bad in ["", "MB", "-1MB", "99999999999TB", "5 cats"] {
            assert!(bad.parse::<Size>().is_err(), "{bad:?}");
        }
    }
}
