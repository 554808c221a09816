//! What a read has to see: the levels, a session's memory of what it did and saw, and which replica is good enough.

mod history;
mod replica;
mod session;
#[cfg(test)]
mod tests;

pub use history::History;
pub use replica::{Failed, Health, Replica, Requirement, Why, eligible};
pub use session::{Ack, Ask, Memory, Need, OnPrimary, Question, Sampler, wait_budget};

use model::Millis;
use std::fmt;
use std::str::FromStr;

/// What a read is promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Level {
    /// It runs on the primary, under an epoch known to be current.
    Strong,
    /// It sees what its session wrote, and never less than the session saw before.
    #[default]
    Session,
    /// It sees every transaction that was acknowledged at least this long before it began.
    Bounded(Millis),
    /// Any healthy replica within the lag limit.
    Eventual,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Level::Strong => f.write_str("strong"),
            Level::Session => f.write_str("session"),
            Level::Bounded(Millis(millis)) => write!(f, "bounded:{millis}ms"),
            Level::Eventual => f.write_str("eventual"),
        }
    }
}

/// The text names no level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLevel(pub String);

impl fmt::Display for BadLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is no consistency level: use strong, session, bounded:<time> (as in bounded:500ms) or eventual",
            self.0
        )
    }
}
impl std::error::Error for BadLevel {}

impl FromStr for Level {
    type Err = BadLevel;
    /// `bounded` takes its time as `bounded:5s`, `bounded(5s)` or `bounded 5s`.
    fn from_str(text: &str) -> Result<Level, BadLevel> {
        let bad = || BadLevel(text.chars().take(40).collect());
        let folded = text.trim().to_ascii_lowercase();
        match folded.as_str() {
            "strong" => return Ok(Level::Strong),
            "session" => return Ok(Level::Session),
            "eventual" => return Ok(Level::Eventual),
            _ => {}
        }
        let rest = folded.strip_prefix("bounded").ok_or_else(bad)?;
        let span = rest.trim_matches([':', '(', ')', ' ', '=']);
        let digits = span.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = span.split_at(digits);
        let number: u64 = number.parse().map_err(|_| bad())?;
        let factor = match unit.trim() {
            "ms" => 1,
            "s" => 1000,
            "min" | "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(bad()),
        };
        number.checked_mul(factor).map(|millis| Level::Bounded(Millis(millis))).ok_or_else(bad)
    }
}
