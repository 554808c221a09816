//! Quantities, one type each, so that a position is never taken for a distance nor a duration for a time.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A byte position in the write-ahead log of one PostgreSQL timeline, printed as `16/B374D848`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// How far `replica` trails this position. The two samples are taken at different moments, so a replica may look
    /// ahead of its primary; that is ordinary, and counts as no lag.
    pub fn lag_of(self, replica: Lsn) -> LagBytes {
        LagBytes(self.0.saturating_sub(replica.0))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text was not a log position of the form `16/B374D848`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLsn(pub String);

impl fmt::Display for BadLsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not a log position (expected two hexadecimal numbers as in 16/B374D848)", self.0)
    }
}
impl std::error::Error for BadLsn {}

impl FromStr for Lsn {
    type Err = BadLsn;
    fn from_str(text: &str) -> Result<Self, BadLsn> {
        let bad = || BadLsn(text.chars().take(40).collect());
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        let plain = |part: &str| (1..=8).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !plain(high) || !plain(low) {
            return Err(bad());
        }
        let high = u64::from_str_radix(high, 16).map_err(|_| bad())?;
        let low = u64::from_str_radix(low, 16).map_err(|_| bad())?;
        Ok(Lsn(high << 32 | low))
    }
}

impl Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number! {
    /// A distance between two positions, in bytes; never a place in the log.
    LagBytes(u64)
}
number! {
    /// A PostgreSQL timeline id; grows by one or more at every promotion.
    Timeline(u32)
}
number! {
    /// The number of a primacy: grows by one at every change of primary, carried by every order, refused when older.
    Epoch(u64)
}
number! {
    /// A duration in milliseconds.
    Millis(u64)
}

impl Millis {
    /// From whole seconds.
    pub const fn from_secs(seconds: u64) -> Millis {
        Millis(seconds * 1000)
    }
    /// As the standard library's type.
    pub const fn duration(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0)
    }
    /// In seconds, with fraction.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1000.0
    }
}

/// A moment of one process's monotonic clock, in milliseconds from an arbitrary start. Moments of different processes
/// must never be compared: samples travel as ages, not as moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    /// The time from `earlier` to this moment; zero if `earlier` is in fact later.
    pub fn since(self, earlier: Moment) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }
    /// This moment plus a duration.
    pub fn plus(self, span: Millis) -> Moment {
        Moment(self.0.saturating_add(span.0))
    }
    /// This moment less a duration; never before the start of the clock.
    pub fn minus(self, span: Millis) -> Moment {
        Moment(self.0.saturating_sub(span.0))
    }
}

/// Civil time as milliseconds since 1970 UTC. For people and audit only: no decision about leadership or durability
/// may read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallTime(pub i64);

impl WallTime {
    /// Milliseconds from `earlier` to this time; negative if this one is earlier.
    pub fn millis_since(self, earlier: WallTime) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// PostgreSQL's database system identifier: made by initdb, the same in every copy of one lineage. A string in JSON,
/// because JavaScript cannot hold 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId(pub u64);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
impl Serialize for SystemId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}
impl<'de> Deserialize<'de> for SystemId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(SystemId).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_read_back_as_written() {
        for (text, value) in [("0/0", 0), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX)] {
            assert_eq!(text.parse::<Lsn>().expect("valid").0, value);
            assert_eq!(Lsn(value).to_string(), text);
        }
        for bad in ["", "16", "16/", "/16", "1/2/3", "g/0", "123456789/0", "+1/0", "0/-1"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn a_replica_ahead_of_an_older_sample_has_no_lag() {
        assert_eq!(Lsn(100).lag_of(Lsn(40)), LagBytes(60));
        assert_eq!(Lsn(100).lag_of(Lsn(140)), LagBytes(0));
    }
}
