//! The one error value that crosses rooms and reaches people: what failed, under which code, and what to do next.
//!
//! Rooms keep typed errors for what their callers must tell apart; whatever reaches a person becomes a `Trouble`.
//! Families of codes: 1xxx usage and configuration, 2xxx cluster and consensus, 3xxx physical replication,
//! 4xxx the router, 8xxx security, 9xxx internal. Every code has a row in `CODES`; docs/errors.md is generated from it.

use serde::{Deserialize, Serialize};
use std::fmt;

/// An error code such as `ST1001`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Code(pub std::borrow::Cow<'static, str>);

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a person or program sees when something did not go as asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Stable code, listed in `docs/errors.md`.
    pub code: Code,
    /// What failed, with the values that made it fail. One sentence, no trailing full stop.
    pub reason: String,
    /// What to do next: a command where one exists.
    pub hint: String,
    /// The process exit status for a command that ends with this trouble (see `exit`).
    pub exit: u8,
    /// The cause beneath, outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
}

/// Exit statuses of commands; `docs/exit-codes.md` explains them to people.
pub mod exit {
    /// Failed; state unchanged or rolled back.
    pub const FAILED: u8 = 1;
    /// Usage or validation error; nothing was sent.
    pub const USAGE: u8 = 2;
    /// Outcome unknown, or still running.
    pub const UNKNOWN: u8 = 3;
    /// Refused by a safety rule; nothing changed.
    pub const REFUSED: u8 = 4;
    /// Done, but not as asked.
    pub const OTHERWISE: u8 = 5;
    /// Authentication or permission.
    pub const DENIED: u8 = 6;
    /// Cluster unreachable or without quorum.
    pub const UNREACHABLE: u8 = 7;
    /// Ran fine, result negative.
    pub const NEGATIVE: u8 = 8;
    /// Someone else changed it meanwhile.
    pub const CONFLICT: u8 = 9;
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, exit $exit:expr, $title:literal;)*) => {
        impl Trouble {
            $($(#[$doc])*
            pub fn $name(reason: impl Into<String>, hint: impl Into<String>) -> Trouble {
                Trouble {
                    code: Code(std::borrow::Cow::Borrowed($code)),
                    reason: reason.into(),
                    hint: hint.into(),
                    exit: $exit,
                    causes: Vec::new(),
                }
            })*
        }
        /// The exit status that goes with a code; `None` for a code of a newer program.
        pub fn exit_of(code: &str) -> Option<u8> {
            match code {
                $($code => Some($exit),)*
                _ => None,
            }
        }
        /// Every code with its title, in order.
        pub const CODES: &[(&str, &str)] = &[$(($code, $title)),*];
    };
}

codes! {
    /// Command line misuse.
    usage = "ST1001", exit exit::USAGE, "the command line does not fit";
    /// A configuration file cannot be read or parsed.
    config_unreadable = "ST1101", exit exit::USAGE, "configuration file unreadable";
    /// A configuration key nobody knows.
    config_unknown_key = "ST1102", exit exit::USAGE, "unknown configuration key";
    /// A configuration value of the wrong type or out of range.
    config_bad_value = "ST1103", exit exit::USAGE, "configuration value refused";
    /// A cluster-wide key in a node file.
    config_wrong_scope = "ST1104", exit exit::USAGE, "key belongs to the cluster settings, not to a node file";
    /// A required key is missing.
    config_missing_key = "ST1105", exit exit::USAGE, "required configuration key missing";
    /// An address cannot be listened on.
    port_taken = "ST1201", exit exit::FAILED, "address in use";
    /// A data or state directory is not fit for use.
    directory_unfit = "ST1202", exit exit::FAILED, "directory not fit for use";
    /// Server programs missing.
    server_missing = "ST1203", exit exit::FAILED, "database server programs not found";
    /// Server programs of an unsupported version.
    server_too_old = "ST1204", exit exit::FAILED, "database server version not supported";
    /// Another process holds the node's directory.
    already_running = "ST1205", exit exit::FAILED, "another keeper uses this state directory";
    /// The data directory belongs to another cluster.
    foreign_data = "ST1206", exit exit::REFUSED, "data directory of another cluster";
    /// Not set up: `stemma init` or `stemma join` has not run.
    not_enrolled = "ST1207", exit exit::FAILED, "node is not part of a cluster yet";
    /// Already part of a cluster.
    already_enrolled = "ST1208", exit exit::REFUSED, "node is already part of a cluster";
    /// Operating system call failed.
    os = "ST1209", exit exit::FAILED, "operating system refused";
    /// The named node does not exist.
    unknown_node = "ST2101", exit exit::USAGE, "no such node";
    /// A node of this name exists.
    name_taken = "ST2102", exit exit::REFUSED, "node name taken";
    /// Removing the node would break the quorum.
    would_break_quorum = "ST2103", exit exit::REFUSED, "removal would break the quorum";
    /// The primary may not be the target of this.
    target_is_primary = "ST2104", exit exit::REFUSED, "the primary may not be the target";
    /// Consensus has no majority.
    no_quorum = "ST2105", exit exit::UNREACHABLE, "consensus has no majority";
    /// Lost a race against another change.
    conflict = "ST2106", exit exit::CONFLICT, "changed by someone else meanwhile";
    /// The cluster settings were refused.
    settings_refused = "ST2107", exit exit::USAGE, "cluster settings refused";
    /// No such version, operation or token.
    not_found = "ST2108", exit exit::USAGE, "no such thing";
    /// Another operation runs already.
    operation_running = "ST2109", exit exit::REFUSED, "another operation is running";
    /// A step of a longer operation failed.
    operation_failed = "ST2110", exit exit::FAILED, "operation failed";
    /// The role does not allow this.
    wrong_role = "ST2111", exit exit::REFUSED, "the node's role does not allow this";
    /// Consensus refused or failed for another reason than a missing majority.
    consensus = "ST2112", exit exit::FAILED, "consensus store failed";
    /// Clocks too far apart.
    clock_skew = "ST2113", exit exit::REFUSED, "clocks differ too much";
    /// The cluster could not be reached.
    unreachable = "ST2114", exit exit::UNREACHABLE, "cluster cannot be reached";
    /// A bound of the cluster is reached.
    limit_reached = "ST2115", exit exit::REFUSED, "limit of the cluster reached";
    /// A node's keeper does not answer, and the request needs it.
    node_silent = "ST2116", exit exit::REFUSED, "keeper of the node does not answer";
    /// Fewer voters than the commit mode needs.
    durability_degraded = "ST2204", exit exit::FAILED, "fewer synchronous replicas than the commit mode asks for";
    /// Nothing answers as the primary.
    primary_down = "ST2205", exit exit::FAILED, "the primary does not accept connections";
    /// No node can take over in order now.
    switchover_refused = "ST2301", exit exit::REFUSED, "switchover refused";
    /// A failover would lose more than was accepted, or is not needed.
    failover_refused = "ST2302", exit exit::REFUSED, "failover refused";
    /// The old primary was confirmed, or the plan was given up.
    change_undone = "ST2303", exit exit::FAILED, "change of primary was taken back";
    /// Another node than the one asked for became the primary.
    other_primary = "ST2304", exit exit::OTHERWISE, "another node became the primary";
    /// It cannot be told what became of a change of primary.
    change_unknown = "ST2305", exit exit::UNKNOWN, "outcome of the change of primary unknown";
    /// Automatic failover is paused.
    failover_paused = "ST2306", exit exit::REFUSED, "automatic failover is paused";
    /// A program that the node's owner wants run failed.
    hook_failed = "ST2311", exit exit::FAILED, "hook failed";
    /// The DNS server was not told who is primary.
    dns_failed = "ST2312", exit exit::FAILED, "address not updated in DNS";
    /// The floating address could not be put on the interface, or taken off.
    floating_failed = "ST2313", exit exit::FAILED, "floating address not as it should be";
    /// Only a standby cluster can be promoted, or stop following.
    not_following = "ST2401", exit exit::REFUSED, "the cluster follows no other cluster";
    /// More would be lost than was accepted, or no node can take over.
    promotion_refused = "ST2402", exit exit::REFUSED, "promotion of the standby cluster refused";
    /// Nothing comes from the cluster that is followed.
    upstream_lost = "ST2403", exit exit::FAILED, "nothing comes from the cluster that is followed";
    /// A standby cluster takes no writes and has no primary to change.
    standby_cluster = "ST2404", exit exit::REFUSED, "the cluster follows another one and has no primary";
    /// The other cluster cannot be followed, or does not let itself be followed.
    follow_refused = "ST2405", exit exit::REFUSED, "the other cluster cannot be followed";
    /// A clone failed and may be tried again.
    clone_failed = "ST3001", exit exit::FAILED, "base backup failed";
    /// The backup did not match its manifest.
    clone_corrupt = "ST3002", exit exit::FAILED, "base backup does not match its manifest";
    /// Disk full.
    disk_full = "ST3003", exit exit::FAILED, "not enough disk space";
    /// History differs from the primary's.
    diverged = "ST3010", exit exit::REFUSED, "node has diverged from the primary's history";
    /// Different system identifier.
    foreign_system = "ST3011", exit exit::REFUSED, "database of another system identifier";
    /// Replay does not move.
    replay_frozen = "ST3012", exit exit::FAILED, "replay does not move";
    /// Replication is not connected.
    link_down = "ST3013", exit exit::FAILED, "replication link is down";
    /// Log needed is gone.
    log_gone = "ST3014", exit exit::FAILED, "write-ahead log that the replica needs is gone";
    /// Lag above the bound.
    lag_high = "ST3015", exit exit::FAILED, "replication lag above the bound";
    /// Major version differs.
    version_mismatch = "ST3016", exit exit::REFUSED, "server major versions differ";
    /// The server did not start or stop.
    server_failed = "ST3020", exit exit::FAILED, "database server failed to start or stop";
    /// A statement on our own control connection failed.
    sql = "ST3021", exit exit::FAILED, "control statement failed";
    /// A server that should be a replica accepts writes.
    unexpected_primary = "ST3022", exit exit::REFUSED, "server accepts writes though it is not the primary";
    /// A slot keeps too much log.
    slot_retention = "ST3023", exit exit::FAILED, "replication slot keeps too much log";
    /// Parameters wait for a restart.
    pending_restart = "ST3024", exit exit::FAILED, "parameters wait for a restart";
    /// The router found no primary.
    router_no_primary = "ST4001", exit exit::FAILED, "no primary took the statement in time";
    /// The router found no free connection.
    router_pool_exhausted = "ST4002", exit exit::FAILED, "no connection of the pool became free in time";
    /// The router's server went away.
    router_server_lost = "ST4003", exit exit::FAILED, "connection to the server lost";
    /// A client does not speak the protocol.
    router_protocol = "ST4004", exit exit::FAILED, "message of a client not understood";
    /// A client is not who it says.
    router_authentication = "ST4005", exit exit::DENIED, "client not authenticated";
    /// More clients than allowed.
    router_too_many_clients = "ST4006", exit exit::REFUSED, "too many clients";
    /// Nobody knows whether a statement was executed.
    router_outcome_unknown = "ST4007", exit exit::UNKNOWN, "outcome of a statement unknown";
    /// A transaction went with its server.
    router_transaction_lost = "ST4008", exit exit::FAILED, "transaction rolled back with its server";
    /// What a router cannot pass on.
    router_unsupported = "ST4009", exit exit::REFUSED, "not possible through a router";
    /// The router ends.
    router_shutting_down = "ST4010", exit exit::FAILED, "the router stops";
    /// A server does not let the router in.
    router_server_login = "ST4011", exit exit::FAILED, "the router cannot log in to a server";
    /// State of a session went with its server.
    router_session_lost = "ST4012", exit exit::FAILED, "state of a session lost with its server";
    /// An administrator closed it.
    router_killed = "ST4013", exit exit::FAILED, "connection closed by an administrator";
    /// A setting of the router itself.
    router_own_setting = "ST4014", exit exit::USAGE, "setting of the router refused";
    /// A client did nothing for too long.
    router_idle = "ST4015", exit exit::FAILED, "client closed after doing nothing";
    /// A consistency token that cannot be read.
    router_token_malformed = "ST4301", exit exit::USAGE, "not a consistency token";
    /// A consistency token of another cluster.
    router_token_elsewhere = "ST4302", exit exit::USAGE, "consistency token of another cluster";
    /// A consistency token of a timeline that is not known.
    router_token_unknown = "ST4303", exit exit::FAILED, "consistency token of an unknown timeline";
    /// A consistency token of something that was lost.
    router_token_lost = "ST4304", exit exit::FAILED, "what the consistency token stands for is lost";
    /// A token was refused.
    token_refused = "ST8001", exit exit::DENIED, "join token refused";
    /// A certificate was refused.
    certificate_refused = "ST8002", exit exit::DENIED, "certificate refused";
    /// Not authenticated or not allowed.
    denied = "ST8003", exit exit::DENIED, "not authenticated or not allowed";
    /// A file with secrets is readable by others.
    secret_exposed = "ST8004", exit exit::REFUSED, "secret file readable by others";
    /// A certificate ends soon.
    certificate_expiring = "ST8005", exit exit::FAILED, "certificate expires soon";
    /// A request that is not well formed.
    bad_request = "ST1301", exit exit::USAGE, "request malformed";
    /// A request larger than the bound.
    request_too_large = "ST1302", exit exit::USAGE, "request too large";
    /// A defect of ours.
    internal = "ST9001", exit exit::FAILED, "internal error";
}

impl Trouble {
    /// Adds a cause beneath this trouble.
    #[must_use]
    pub fn because(mut self, cause: impl fmt::Display) -> Trouble {
        self.causes.push(cause.to_string());
        self
    }

    /// Whether this carries `code`.
    pub fn is(&self, code: &str) -> bool {
        self.code.0 == code
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.reason, self.code)?;
        for cause in &self.causes {
            write!(f, ": {cause}")?;
        }
        Ok(())
    }
}
impl std::error::Error for Trouble {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_well_formed() {
        let mut seen = std::collections::BTreeSet::new();
        for (code, title) in CODES {
            assert!(seen.insert(code), "{code} is given twice");
            assert!(code.len() == 6 && code.starts_with("ST"), "{code}");
            assert!(!title.is_empty(), "{code} has no title");
        }
    }
}
