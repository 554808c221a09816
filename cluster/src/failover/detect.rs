//! Is the primary gone? Facts from all keepers in, one verdict with its reasons out.
//!
//! With acknowledgements a false alarm costs a pause, never data, so this may be quick. It is not hasty: silence counts
//! only from a limit that adapts to the round trips measured, a majority of all keepers must miss the heartbeats, and the
//! replication streams must agree. Log that still arrives at a voter proves that it is the *keeper* that is sick.

use super::recruit::majority;
use model::limits::HEARTBEAT_INTERVAL;
use model::{Millis, NodeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Heartbeats that may be missed on a quick network.
pub const MISSES: u64 = 6;
/// The silence limit never grows beyond this.
pub const SILENCE_MAX: Millis = Millis(5_000);
/// A server that answers nobody new for this long, or cannot write, counts as dead though its process lives.
pub const STALLED_AFTER: Millis = Millis(1_500);

/// From which silence a heartbeat counts as missed for good, given the slowest of the recent round trips.
pub fn silence_limit(slowest_round_trip: Millis) -> Millis {
    let quick = HEARTBEAT_INTERVAL.0 * MISSES;
    let slow = HEARTBEAT_INTERVAL.0 * 3 + slowest_round_trip.0 * 4;
    Millis(quick.max(slow).min(SILENCE_MAX.0))
}

/// How a voter's stream from the primary does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Log arrived within the silence limit.
    Moving,
    /// Connected, and nothing arrived lately; `answers` says whether the primary's port takes new connections.
    Quiet {
        /// See above; `None` while nobody tried.
        answers: Option<bool>,
    },
    /// Not connected.
    Lost,
}

/// What one keeper says about the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// How long ago it heard the target's keeper.
    pub silent: Millis,
    /// Its server's stream, if it is a voter that follows the target.
    pub stream: Option<Stream>,
}

/// What the target's own keeper says of its server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnWord {
    /// It serves.
    Healthy,
    /// All its processes are gone, and its keeper leaves the next step to others.
    Gone,
    /// It lives and has not done its work (new connection, committed write, disk) for this long.
    Stalled {
        /// For how long.
        for_ms: Millis,
        /// What is stalled.
        what: String,
    },
}

/// All that is known.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// Keepers of the cluster, witnesses and the target's included.
    pub members: usize,
    /// The silence limit.
    pub limit: Millis,
    /// What keepers heard of lately say; this one included, the target's not.
    pub said: BTreeMap<NodeId, Said>,
    /// The target's own word, if it is not older than the limit.
    pub own_word: Option<OwnWord>,
}

/// The verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It serves, as far as anybody knows.
    Alive,
    /// Something is wrong and does not suffice; the sentence says what is missing.
    Suspect {
        /// See above.
        reason: String,
    },
    /// It is gone, for these reasons.
    Dead {
        /// See above.
        because: String,
    },
}

/// The reason of an attempt that cannot be a false alarm: it is stored with the attempt, and tells it apart afterwards.
pub const GONE: &str = "its keeper says that the server's processes are gone";

/// Is the target gone?
pub fn verdict(evidence: &Evidence) -> Verdict {
    match &evidence.own_word {
        Some(OwnWord::Gone) => {
            return Verdict::Dead { because: GONE.to_owned() };
        }
        Some(OwnWord::Stalled { for_ms, what }) if *for_ms >= STALLED_AFTER => {
            return Verdict::Dead { because: format!("its keeper says that {what} has been stalled for {for_ms} ms") };
        }
        Some(OwnWord::Stalled { what, .. }) => return Verdict::Suspect { reason: format!("{what} is slow") },
        Some(OwnWord::Healthy) | None => {}
    }
    let missing = evidence.said.values().filter(|said| said.silent >= evidence.limit).count();
    let needed = majority(evidence.members);
    if missing == 0 {
        return Verdict::Alive;
    }
    if missing < needed {
        let reason = format!("{missing} of {} keepers miss its heartbeats, {needed} are needed", evidence.members);
        return Verdict::Suspect { reason };
    }
    let streams: Vec<Stream> = evidence.said.values().filter_map(|said| said.stream).collect();
    if streams.contains(&Stream::Moving) {
        return Verdict::Suspect { reason: "its keeper is silent, but its log still arrives at a replica".to_owned() };
    }
    let lost = streams.iter().any(|it| matches!(it, Stream::Lost | Stream::Quiet { answers: Some(false) }));
    if !lost && !streams.is_empty() {
        return Verdict::Suspect { reason: "its keeper is silent, but its streams stand".to_owned() };
    }
    let streams = if streams.is_empty() { "no replica can be asked" } else { "its replicas lost it" };
    Verdict::Dead { because: format!("{missing} of {} keepers miss its heartbeats and {streams}", evidence.members) }
}

/// A crashed server whose keeper lives: who brings service back?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Start it again in place.
    Restart,
    /// Say `OwnWord::Gone` and leave it down for a while, so that another takes over.
    HandOver,
}

/// Restart or hand over, whichever is sooner; after `crashes` in a row it is handed over where anybody can take it.
pub fn after_crash(recovery_expected: Millis, failover_expected: Millis, crashes: u32, can_take_over: bool) -> Crash {
    let hopeless = crashes >= 3;
    if can_take_over && (hopeless || failover_expected < recovery_expected) { Crash::HandOver } else { Crash::Restart }
}
