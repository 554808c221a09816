//! Limits and times that several rooms share, with the relations that must hold between them.

use crate::units::Millis;

/// How often every keeper sends a heartbeat to every other.
pub const HEARTBEAT_INTERVAL: Millis = Millis(100);
/// Silence after which a keeper counts as not answering in views. (Failover has thresholds of its own.)
pub const KEEPER_SILENT_AFTER: Millis = Millis(1_000);
/// Age from which a sample no longer says how a node is.
pub const SAMPLE_STALE_AFTER: Millis = Millis(3_000);
/// Silence on a replication link, with other evidence absent, from which it counts as down.
pub const LINK_SILENT_AFTER: Millis = Millis(1_500);
/// `wal_receiver_timeout` and `wal_sender_timeout` of managed servers.
pub const WAL_TIMEOUT: Millis = Millis(5_000);
/// `wal_retrieve_retry_interval` of managed servers: the default of 5 s gates commits after a promotion.
pub const WAL_RETRY_INTERVAL: Millis = Millis(100);
/// Life of a join token unless asked otherwise.
pub const TOKEN_TTL_DEFAULT: Millis = Millis::from_secs(3600);
/// Longest life of a join token.
pub const TOKEN_TTL_MAX: Millis = Millis::from_secs(7 * 86_400);
/// Civil clocks may differ by this much at a join; certificates and audit need them roughly right.
pub const CLOCK_OFFSET_MAX: Millis = Millis::from_secs(300);
/// From this offset on, status shows a warning.
pub const CLOCK_OFFSET_WARN: Millis = Millis(500);
/// Members of a cluster, witnesses included.
pub const MEMBERS_MAX: usize = 32;
/// Voting members of the consensus group; further members receive the log without voting.
pub const CONSENSUS_VOTERS_MAX: usize = 7;
/// Kept versions of the settings.
pub const SETTINGS_HISTORY_MAX: usize = 50;
/// Kept history events.
pub const HISTORY_MAX: usize = 200;
/// Kept changes of primary.
pub const FAILOVERS_MAX: usize = 20;
/// Kept switchovers that people asked for.
pub const SWITCHOVERS_MAX: usize = 20;
/// A switchover that could not begin within this time of the time it was asked for is not made up for later.
pub const SWITCHOVER_MISSED_AFTER: Millis = Millis::from_secs(300);
/// Longest pause of automatic failover: a forgotten one must end.
pub const PAUSE_MAX: Millis = Millis::from_secs(7 * 86_400);
/// Kept operations.
pub const OPERATIONS_MAX: usize = 20;
/// Kept tokens.
pub const TOKENS_MAX: usize = 64;
/// Largest frame between keepers.
pub const FRAME_BYTES_MAX: usize = 4 << 20;
/// Largest body of an HTTP request.
pub const HTTP_BODY_BYTES_MAX: usize = 256 << 10;
/// Programs that follow the events of one node at one time; the next one is told to try another node.
pub const EVENT_CLIENTS_MAX: usize = 128;
/// Largest document in consensus.
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// Oldest supported PostgreSQL major version.
pub const POSTGRES_MAJOR_MIN: u32 = 13;
/// Newest PostgreSQL major version this program was tested with.
pub const POSTGRES_MAJOR_MAX: u32 = 18;

const _: () = assert!(HEARTBEAT_INTERVAL.0 * 5 <= KEEPER_SILENT_AFTER.0);
const _: () = assert!(KEEPER_SILENT_AFTER.0 < SAMPLE_STALE_AFTER.0);
const _: () = assert!(LINK_SILENT_AFTER.0 < WAL_TIMEOUT.0);
const _: () = assert!(DOCUMENT_BYTES_MAX < FRAME_BYTES_MAX);

/// Clusters that may follow one.
pub const FOLLOWERS_MAX: usize = 4;
