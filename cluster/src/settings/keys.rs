//! What every key means.

use super::Class;

/// One key of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyDoc {
    /// The key, with its table.
    pub key: &'static str,
    /// What values look like.
    pub kind: &'static str,
    /// The default as written in TOML; empty where there is none.
    pub default: &'static str,
    /// What it is for, one or two sentences.
    pub doc: &'static str,
    /// What a change takes.
    pub class: Class,
    /// What happens at a change.
    pub effect: &'static str,
}

/// Every key, in the order of the file.
pub const KEYS: &[KeyDoc] = &[
    KeyDoc {
        key: "commit_mode",
        kind: "One of \"async\", \"semi-sync\", \"quorum\", \"sync\"",
        default: "\"semi-sync\"",
        doc: "How many replicas hold a commit before it is acknowledged: none, one, so many that a majority of data nodes holds it, every voter.",
        class: Class::None,
        effect: "carried out step by step on the running servers, never weaker than both modes in between",
    },
    KeyDoc {
        key: "strict",
        kind: "true or false",
        default: "false",
        doc: "With too few replicas: true lets commits wait, false lowers the number of acknowledgements through consensus and says so.",
        class: Class::None,
        effect: "from the next lack of replicas on",
    },
    KeyDoc {
        key: "sync_from_other_site",
        kind: "true or false",
        default: "false",
        doc: "At least one acknowledgement comes from another site than the primary's, where the voters allow it.",
        class: Class::None,
        effect: "carried out step by step on the running servers; commits then take a way between sites",
    },
    KeyDoc {
        key: "voter_grace",
        kind: "Duration, 500ms to 10min",
        default: "\"3s\"",
        doc: "How long a voter may be unreachable before, with strict = false, commits stop waiting for it.",
        class: Class::None,
        effect: "from the next silence on",
    },
    KeyDoc {
        key: "sample_interval",
        kind: "Duration, 100ms to 1min",
        default: "\"500ms\"",
        doc: "How often each keeper samples its server.",
        class: Class::None,
        effect: "from the next sample on",
    },
    KeyDoc {
        key: "lag_warn",
        kind: "Duration, 100ms to 1d",
        default: "\"10s\"",
        doc: "From this lag on a replica is reported as a problem.",
        class: Class::None,
        effect: "from the next judgement on",
    },
    KeyDoc {
        key: "slot_retention",
        kind: "Duration, 1min to 30d",
        default: "\"30min\"",
        doc: "How long log is kept for an absent member. A member that comes back later is rebuilt.",
        class: Class::None,
        effect: "slots of members that were absent for longer are dropped at once",
    },
    KeyDoc {
        key: "slot_retention_size",
        kind: "Size, at least 64MB",
        default: "\"10GB\"",
        doc: "How much log the slots of absent members may keep before they are dropped, oldest first.",
        class: Class::None,
        effect: "slots of absent members that keep more are dropped at once",
    },
    KeyDoc {
        key: "clone_rate",
        kind: "Size per second, 0B or at least 64kB",
        default: "\"0B\"",
        doc: "Upper bound for the rate of a base backup, per second; 0B is unbounded.",
        class: Class::None,
        effect: "from the next clone on",
    },
    KeyDoc {
        key: "tls",
        kind: "true or false",
        default: "true",
        doc: "Whether connections to the servers use TLS under the cluster CA. Turn it off only for servers built without TLS.",
        class: Class::Reload,
        effect: "reloaded on every node; replication reconnects",
    },
    KeyDoc {
        key: "failover.automatic",
        kind: "true or false",
        default: "true",
        doc: "Whether a primary that is gone is replaced without a person. For a while: stemma pause.",
        class: Class::None,
        effect: "from the next failure on",
    },
    KeyDoc {
        key: "failover.cross_site",
        kind: "true or false",
        default: "true",
        doc: "Whether a node of another site than the primary's may take over by itself. The primary's site comes first in any case.",
        class: Class::None,
        effect: "from the next failure on",
    },
    KeyDoc {
        key: "failover.sites",
        kind: "List of sites",
        default: "[]",
        doc: "Sites that may take over by themselves also with failover.cross_site = false.",
        class: Class::None,
        effect: "from the next failure on",
    },
    KeyDoc {
        key: "failover.loss_max",
        kind: "Size",
        default: "\"16MB\"",
        doc: "Where commits wait for no replica: the most that an automatic failover may lose, in bytes of log. Beyond it a person decides: stemma failover.",
        class: Class::None,
        effect: "from the next failure on",
    },
    KeyDoc {
        key: "postgresql.hba",
        kind: "List of lines",
        default: "[]",
        doc: "Lines of pg_hba.conf for users and applications, placed after the lines that the cluster itself needs.",
        class: Class::Reload,
        effect: "reloaded on every node; open connections stay",
    },
    KeyDoc {
        key: "postgresql.parameters",
        kind: "Table of names and values",
        default: "",
        doc: "Server parameters, the same on every node. Values are written as PostgreSQL prints them: \"128MB\", \"on\", \"100\".",
        class: Class::Reload,
        effect: "reloaded on every node; some wait for a restart, which the plan shows",
    },
];

/// Parameters that PostgreSQL 13 to 18 read only at start. Of an extension's parameters this cannot be known here; a
/// server that finds out reports it as waiting for a restart.
pub const RESTART_PARAMETERS: &[&str] = &[
    "allow_alter_system",
    "archive_mode",
    "autovacuum_freeze_max_age",
    "autovacuum_max_workers",
    "autovacuum_multixact_freeze_max_age",
    "autovacuum_worker_slots",
    "bonjour",
    "bonjour_name",
    "cluster_name",
    "commit_timestamp_buffers",
    "config_file",
    "data_directory",
    "data_sync_retry",
    "debug_io_direct",
    "dynamic_shared_memory_type",
    "event_source",
    "external_pid_file",
    "hba_file",
    "hot_standby",
    "huge_page_size",
    "huge_pages",
    "ident_file",
    "ignore_invalid_pages",
    "io_max_combine_limit",
    "io_max_concurrency",
    "io_method",
    "jit_provider",
    "listen_addresses",
    "logging_collector",
    "max_active_replication_origins",
    "max_connections",
    "max_files_per_process",
    "max_locks_per_transaction",
    "max_logical_replication_workers",
    "max_notify_queue_pages",
    "max_pred_locks_per_transaction",
    "max_prepared_transactions",
    "max_replication_slots",
    "max_wal_senders",
    "max_worker_processes",
    "min_dynamic_shared_memory",
    "multixact_member_buffers",
    "multixact_offset_buffers",
    "notify_buffers",
    "old_snapshot_threshold",
    "port",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "reserved_connections",
    "serializable_buffers",
    "shared_buffers",
    "shared_memory_type",
    "shared_preload_libraries",
    "subtransaction_buffers",
    "superuser_reserved_connections",
    "track_activity_query_size",
    "track_commit_timestamp",
    "transaction_buffers",
    "unix_socket_directories",
    "unix_socket_group",
    "unix_socket_permissions",
    "wal_buffers",
    "wal_decode_buffer_size",
    "wal_level",
    "wal_log_hints",
];

/// What a key is for, for `stemma config explain`. A server parameter is explained by how a change of it works.
pub fn explain(key: &str) -> Option<String> {
    if let Some(doc) = KEYS.iter().find(|doc| doc.key == key) {
        let default = if doc.default.is_empty() { "none" } else { doc.default };
        return Some(format!(
            "{}\n  {}\n  values:  {}\n  default: {default}\n  change:  {} ({})",
            doc.key,
            doc.doc,
            doc.kind,
            doc.class.as_str(),
            doc.effect
        ));
    }
    let name = key.strip_prefix("postgresql.parameters.")?;
    let (class, what) = if RESTART_PARAMETERS.contains(&name.to_ascii_lowercase().as_str()) {
        (Class::Restart, "waits for a restart: stemma restart --rolling --pending")
    } else {
        (Class::Reload, "reloaded on every node")
    };
    Some(format!(
        "{key}\n  A parameter of PostgreSQL, the same on every node; its meaning is in PostgreSQL's manual.\n  change:  {} ({what})",
        class.as_str()
    ))
}
