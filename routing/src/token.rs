//! Consistency tokens: a point in the history of a cluster that a read must have reached (K-1, K-3, K-10).
//!
//! A token is text that travels between processes and comes back from clients, so everything in it is checked. It names
//! the cluster: a token of another one is refused and never compared.

use model::{Epoch, LagBytes, Lsn, Timeline};
use std::fmt;
use std::str::FromStr;

/// Bytes of a page of PostgreSQL's log.
const PAGE_BYTES: u64 = 8192;
/// The header at the start of a page.
const PAGE_HEADER_BYTES: u64 = 24;
/// The longer header at the start of a segment.
const SEGMENT_HEADER_BYTES: u64 = 40;
/// Longest name of a cluster within a token.
const CLUSTER_BYTES_MAX: usize = 64;
/// Most changes of timeline that are remembered.
pub const SWITCHES_MAX: usize = 1000;

/// A position on a timeline, under the epoch of the primary that wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Point {
    /// Of the primacy under which it was sampled.
    pub epoch: Epoch,
    /// Of the log.
    pub timeline: Timeline,
    /// In that log.
    pub lsn: Lsn,
}

impl Point {
    /// The later of two points of one lineage. Commutative, associative and idempotent, so that tokens may be merged in
    /// any order and any number of times.
    ///
    /// The later timeline wins whatever the positions say: timelines of one lineage follow each other. What of the
    /// earlier one was lost in between was checked when the token was accepted ([`Lineage::accept`]).
    pub fn merge(self, other: Point) -> Point {
        let rank = |point: &Point| (point.timeline, point.lsn, point.epoch);
        let later = if rank(&self) >= rank(&other) { self } else { other };
        Point { epoch: self.epoch.max(other.epoch), ..later }
    }
}

/// K-3: where the log really ends when the insert position is `lsn`. When the last record ends on a page boundary, the
/// insert position already stands behind the header of the page to come, while replay reports the boundary.
pub fn rounded(lsn: Lsn, segment_bytes: u64) -> Lsn {
    let in_segment = if segment_bytes == 0 { lsn.0 } else { lsn.0 % segment_bytes };
    if in_segment == SEGMENT_HEADER_BYTES {
        return Lsn(lsn.0 - SEGMENT_HEADER_BYTES);
    }
    if lsn.0 % PAGE_BYTES == PAGE_HEADER_BYTES { Lsn(lsn.0 - PAGE_HEADER_BYTES) } else { lsn }
}

/// A point of one cluster's history.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// Which cluster: its id, or any name it is known by that holds no `:`.
    pub cluster: String,
    /// What a read must have reached.
    pub point: Point,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Point { epoch, timeline, lsn } = self.point;
        write!(f, "v1:{}:{epoch}/{timeline}:{lsn}", self.cluster)
    }
}

/// Why a token cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BadToken {
    /// It is not of the form `v1:<cluster>:<epoch>/<timeline>:<lsn>`.
    Malformed,
    /// It was made by a later version of Stemma.
    Version,
    /// It belongs to another cluster.
    OtherCluster(String),
    /// It names a timeline that this cluster does not have (yet).
    UnknownTimeline(Timeline),
    /// What it points at was lost when the primary changed.
    Lost {
        /// Where the next timeline began.
        switched_at: Lsn,
        /// How much lies beyond.
        beyond: LagBytes,
    },
}

impl BadToken {
    /// The code of the error that the client is shown.
    pub fn code(&self) -> &'static str {
        match self {
            BadToken::Malformed | BadToken::Version => "ST4301",
            BadToken::OtherCluster(_) => "ST4302",
            BadToken::UnknownTimeline(_) => "ST4303",
            BadToken::Lost { .. } => "ST4304",
        }
    }
    /// What to do next.
    pub fn hint(&self) -> &'static str {
        match self {
            BadToken::Malformed | BadToken::Version => "use the text of SHOW stemma.token, unchanged",
            BadToken::OtherCluster(_) => "a token is good for reads of the cluster that gave it",
            BadToken::UnknownTimeline(_) => "retry; this router may not have heard of the change of primary yet",
            BadToken::Lost { .. } => "the write is gone: repeat it, or clear the token with SET stemma.token = ''",
        }
    }
}

impl fmt::Display for BadToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadToken::Malformed => f.write_str("not a consistency token"),
            BadToken::Version => f.write_str("a consistency token of an unknown version"),
            BadToken::OtherCluster(cluster) => write!(f, "the consistency token is of cluster `{cluster}`"),
            BadToken::UnknownTimeline(timeline) => write!(f, "the consistency token is of unknown timeline {timeline}"),
            BadToken::Lost { switched_at, beyond } => write!(
                f,
                "the consistency token points {beyond} bytes beyond {switched_at}, where another primary took over; what \
                 was written there is lost"
            ),
        }
    }
}
impl std::error::Error for BadToken {}

impl FromStr for Token {
    type Err = BadToken;
    fn from_str(text: &str) -> Result<Token, BadToken> {
        let (version, rest) = text.split_once(':').ok_or(BadToken::Malformed)?;
        if version != "v1" {
            let other = version.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok());
            return Err(if other { BadToken::Version } else { BadToken::Malformed });
        }
        let parse = || {
            let (cluster, rest) = rest.split_once(':')?;
            let (history, lsn) = rest.split_once(':')?;
            let (epoch, timeline) = history.split_once('/')?;
            let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
            let named = (1..=CLUSTER_BYTES_MAX).contains(&cluster.len()) && cluster.bytes().all(sound);
            if !named || !plain(epoch) || !plain(timeline) {
                return None;
            }
            let point = Point {
                epoch: Epoch(epoch.parse().ok()?),
                timeline: Timeline(timeline.parse().ok()?),
                lsn: lsn.parse().ok()?,
            };
            Some(Token { cluster: cluster.to_owned(), point })
        };
        parse().ok_or(BadToken::Malformed)
    }
}

/// One change of timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The timeline that ended.
    pub from: Timeline,
    /// Where it ended, and the next began.
    pub at: Lsn,
    /// The timeline that followed.
    pub to: Timeline,
}

/// The timelines of a cluster, oldest first, as they were published at each change of primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    cluster: String,
    epoch: Epoch,
    timeline: Timeline,
    switches: Vec<Switch>,
}

impl Lineage {
    /// Of a cluster that is on `timeline` now, under `epoch`. Of the switches, only those that lead to it count; the last
    /// [`SWITCHES_MAX`] are kept.
    pub fn new(cluster: &str, epoch: Epoch, timeline: Timeline, mut switches: Vec<Switch>) -> Lineage {
        let surplus = switches.len().saturating_sub(SWITCHES_MAX);
        switches.drain(..surplus);
        Lineage { cluster: cluster.to_owned(), epoch, timeline, switches }
    }

    /// The point of the present timeline that `token` asks for, if nothing of what it stands for was lost (K-10). Tokens
    /// of earlier timelines are followed from switch to switch.
    pub fn accept(&self, token: &Token) -> Result<Point, BadToken> {
        if token.cluster != self.cluster {
            return Err(BadToken::OtherCluster(token.cluster.chars().take(CLUSTER_BYTES_MAX).collect()));
        }
        self.follow(token.point)
    }

    /// The same for a point that is known to be of this cluster.
    pub fn follow(&self, point: Point) -> Result<Point, BadToken> {
        let mut timeline = point.timeline;
        // Each switch leads to a later timeline, so the walk ends.
        while timeline != self.timeline {
            let next = self.switches.iter().rfind(|switch| switch.from == timeline && switch.to > timeline);
            let Some(switch) = next else { return Err(BadToken::UnknownTimeline(point.timeline)) };
            if point.lsn > switch.at {
                return Err(BadToken::Lost { switched_at: switch.at, beyond: point.lsn.lag_of(switch.at) });
            }
            timeline = switch.to;
        }
        Ok(Point { epoch: point.epoch.max(self.epoch), timeline, lsn: point.lsn })
    }

    /// The present timeline.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }
    /// The present epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
    /// A token of this cluster.
    pub fn token(&self, point: Point) -> Token {
        Token { cluster: self.cluster.clone(), point }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn point(epoch: u64, timeline: u32, lsn: u64) -> Point {
        Point { epoch: Epoch(epoch), timeline: Timeline(timeline), lsn: Lsn(lsn) }
    }

    #[test]
    fn a_token_reads_back_as_it_was_written() {
        let token = Token { cluster: "3f2c-a".to_owned(), point: point(7, 3, 0x16_B374_D848) };
        assert_eq!(token.to_string(), "v1:3f2c-a:7/3:16/B374D848");
        assert_eq!(token.to_string().parse(), Ok(token));
        for bad in [
            "",
            "v1",
            "v1:",
            "v1:a",
            "v1:a:1/1",
            "v1:a:1:0/0",
            "v1::1/1:0/0",
            "v1:a:1/1:0",
            "v1:a:-1/1:0/0",
            "v1:a:1/+1:0/0",
            "v1:a b:1/1:0/0",
            "v1:a:1/1:0/0:x",
            "v1:a:1/99999999999:0/0",
            "vx:a:1/1:0/0",
        ] {
            assert_eq!(bad.parse::<Token>(), Err(BadToken::Malformed), "{bad:?}");
        }
        assert_eq!("v2:whatever".parse::<Token>(), Err(BadToken::Version));
    }

    #[test]
    fn a_position_behind_a_page_header_is_the_page_boundary() {
        let segment = 16 * 1024 * 1024;
        for (insert, end) in [
            (8192 + 24, 8192),
            (8192 + 25, 8192 + 25),
            (8192, 8192),
            (segment + 40, segment),
            (segment + 24, segment),
            (40, 0),
            (8192 + 40, 8192 + 40),
        ] {
            assert_eq!(rounded(Lsn(insert), segment), Lsn(end), "{insert}");
        }
    }

    #[test]
    fn a_token_outlives_changes_of_primary_unless_its_write_was_lost() {
        let switches = vec![
            Switch { from: Timeline(1), at: Lsn(100), to: Timeline(2) },
            Switch { from: Timeline(2), at: Lsn(200), to: Timeline(4) },
        ];
        let lineage = Lineage::new("c", Epoch(9), Timeline(4), switches);
        let accept = |cluster: &str, point| lineage.accept(&Token { cluster: cluster.to_owned(), point });
        assert_eq!(accept("c", point(9, 4, 999)), Ok(point(9, 4, 999)));
        assert_eq!(accept("c", point(1, 1, 100)), Ok(point(9, 4, 100)));
        let lost = BadToken::Lost { switched_at: Lsn(100), beyond: LagBytes(1) };
        assert_eq!(accept("c", point(1, 1, 101)), Err(lost));
        // It survived the first change and was lost in the second.
        let lost = BadToken::Lost { switched_at: Lsn(200), beyond: LagBytes(50) };
        assert_eq!(accept("c", point(5, 2, 250)), Err(lost));
        assert_eq!(accept("c", point(5, 3, 1)), Err(BadToken::UnknownTimeline(Timeline(3))));
        assert_eq!(accept("c", point(5, 5, 1)), Err(BadToken::UnknownTimeline(Timeline(5))));
        assert_eq!(accept("d", point(9, 4, 1)), Err(BadToken::OtherCluster("d".to_owned())));
    }

    #[test]
    fn a_lineage_that_leads_in_a_circle_is_left() {
        let circle = vec![
            Switch { from: Timeline(1), at: Lsn(9), to: Timeline(2) },
            Switch { from: Timeline(2), at: Lsn(9), to: Timeline(1) },
        ];
        let lineage = Lineage::new("c", Epoch(1), Timeline(7), circle);
        assert_eq!(lineage.follow(point(1, 1, 1)), Err(BadToken::UnknownTimeline(Timeline(1))));
    }

    fn points() -> impl Strategy<Value = Point> {
        (0..4_u64, 1..4_u32, 0..6_u64).prop_map(|(epoch, timeline, lsn)| point(epoch, timeline, lsn))
    }

    proptest! {
        #[test]
        fn merging_is_commutative_associative_and_idempotent(a in points(), b in points(), c in points()) {
            prop_assert_eq!(a.merge(b), b.merge(a));
            prop_assert_eq!(a.merge(b).merge(c), a.merge(b.merge(c)));
            prop_assert_eq!(a.merge(a), a);
            let merged = a.merge(b);
            prop_assert!((merged.timeline, merged.lsn) >= (a.timeline, a.lsn));
        }
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC*|v1:[a-z:/0-9A-F]{0,40}") {
            if let Ok(token) = text.parse::<Token>() {
                prop_assert_eq!(token.to_string().parse::<Token>(), Ok(token));
            }
        }
    }
}
