//! What the server's configuration should be, from the cluster's state; and the files that belong to it.

use super::primacy::Ghosts;
use super::{Driver, Turn};
use crate::pki;
use cluster::desire::Control;
use cluster::naming;
use model::limits;
use model::state::Stage;
use model::{ReplicaKind, Role, Timeline, Trouble};
use postgres::{ControlFile, ControlState, ServerConfig, ServerRole};
use std::path::PathBuf;

/// Lines for clients while none may come in.
const CLOSED: [&str; 2] = ["local all all reject", "host all all all reject"];

/// The role that replicas and clones log in as.
pub(crate) const REPLICATION_ROLE: &str = "stemma_replication";

impl Driver {
    /// The configuration that the server should run with in this role.
    pub(super) fn wanted_config(&mut self, role: Role, turn: &Turn) -> Result<ServerConfig, Trouble> {
        let settings = &turn.state.value.settings;
        let server_role = match role {
            Role::Primary => ServerRole::Primary,
            Role::Replica => self.replica_role(turn),
            Role::Witness => {
                return Err(Trouble::internal("a witness has no server to configure", "report this defect"));
            }
        };
        let synchronous_standby_names = match role {
            Role::Primary => self.sync_names(),
            // A replica waits for nobody; the list is written before a promotion, not kept from an earlier life.
            Role::Replica | Role::Witness => self.part.list.clone().unwrap_or_default(),
        };
        Ok(ServerConfig {
            parameters: settings.postgresql.parameters.clone(),
            hba_users: match (role, self.part.ghosts) {
                (Role::Primary, Ghosts::Unknown | Ghosts::Until(_)) => CLOSED.map(str::to_owned).to_vec(),
                (Role::Primary, Ghosts::None) | (Role::Replica | Role::Witness, _) => settings.postgresql.hba.clone(),
            },
            synchronous_standby_names,
            role: server_role,
            tls: settings.tls && self.parts.spec.tls_files.is_some(),
            members: turn
                .state
                .value
                .members
                .values()
                .filter(|member| !member.witness && member.stage != Stage::Leaving)
                .map(|member| member.name.clone())
                .collect(),
            followers: cluster::follow::common_names(&turn.state.value),
            keeper_user: turn.state.value.follow.as_ref().and_then(|_| keeper_user()),
            replication_hba: Vec::new(),
        })
    }

    /// The synchronous list to be written: what the sync planner decided last, else what the file already says, so
    /// that a restarted primary never acknowledges with a shorter list than it crashed with.
    fn sync_names(&mut self) -> String {
        if self.sync_names.is_none() {
            self.sync_names = postgres::written_parameter(&self.parts.node.data_dir, "synchronous_standby_names");
        }
        self.sync_names.clone().unwrap_or_default()
    }

    /// The node to stream from: the one that was chosen for it while that follows the same primary, else the primary
    /// itself. `None`: the server follows nobody.
    fn feeder<'a>(&self, turn: &'a Turn) -> Option<&'a model::Member> {
        let (primary, epoch) = self.part.follow?;
        let members = &turn.state.value.members;
        if turn.state.value.following().is_some() {
            return turn.state.value.upstream_of(self.parts.me);
        }
        let chosen = members.get(&self.parts.me).and_then(|me| me.upstream).filter(|node| *node != primary);
        let follows = |node: &model::NodeId| {
            let word = self.part.council.word_of(*node, turn.now);
            word.is_some_and(|word| word.follows == Some((primary, epoch))) && self.facts_of(turn, *node).is_some()
        };
        chosen.filter(follows).and_then(|node| members.get(&node)).or_else(|| members.get(&primary))
    }

    fn replica_role(&self, turn: &Turn) -> ServerRole {
        let state = &turn.state.value;
        if let Some(followed) = state.following()
            && state.rule.primary == self.parts.me
        {
            return ServerRole::Replica {
                primary_conninfo: conninfo(&self.upstream_conninfo(followed)),
                primary_slot_name: Some(followed.slot.clone()),
                apply_delay_ms: 0,
            };
        }
        let Some((me, upstream)) = state.members.get(&self.parts.me).zip(self.feeder(turn)) else {
            return ServerRole::Replica { primary_conninfo: String::new(), primary_slot_name: None, apply_delay_ms: 0 };
        };
        let salt = &turn.secrets.value.name_salt;
        let mut words = vec![
            ("host", upstream.postgres_host.clone()),
            ("port", upstream.postgres_port.to_string()),
            ("user", REPLICATION_ROLE.to_owned()),
            ("application_name", naming::application_name(salt, me)),
            ("connect_timeout", "3".to_owned()),
            ("keepalives_idle", "1".to_owned()),
            ("keepalives_interval", "1".to_owned()),
            ("keepalives_count", "3".to_owned()),
            ("tcp_user_timeout", limits::WAL_TIMEOUT.0.to_string()),
        ];
        match (&self.parts.spec.tls_files, state.settings.tls) {
            (Some(files), true) => words.extend([
                // The host is in the certificate too, but addresses change; what must not change is the CA, which
                // signs for members of this cluster only.
                ("sslmode", "verify-ca".to_owned()),
                ("sslcert", files.cert.display().to_string()),
                ("sslkey", files.key.display().to_string()),
                ("sslrootcert", files.ca.display().to_string()),
            ]),
            (Some(_), false) | (None, _) => words.extend([
                ("sslmode", "disable".to_owned()),
                ("password", turn.secrets.value.replication_password.clone()),
            ]),
        }
        ServerRole::Replica {
            primary_conninfo: conninfo(&words),
            primary_slot_name: Some(naming::slot_name(me)),
            // A server connects only once it has replayed the log that it has. With the delay in force from the start
            // a fresh copy would hold at the first commit in it, and not begin to follow before the delay is over.
            apply_delay_ms: match (me.kind, &me.stage) {
                (ReplicaKind::Delayed, Stage::Active) => me.apply_delay_ms,
                (
                    ReplicaKind::Delayed,
                    Stage::Joining
                    | Stage::Reinit { .. }
                    | Stage::Rejoin { .. }
                    | Stage::Halted { .. }
                    | Stage::Leaving,
                )
                | (ReplicaKind::Hot | ReplicaKind::Standby, _) => 0,
            },
        }
    }

    /// Puts the node's certificate where the server can read it.
    pub(super) fn write_server_files(&mut self) -> Result<(), Trouble> {
        if self.parts.spec.tls_files.is_none() {
            return Ok(());
        }
        let identity = crate::identity::IdentityFiles { directory: self.parts.config.identity_dir() };
        let owner = self.parts.spec.user.as_ref().map(|user| (user.uid, user.gid));
        pki::write_server_files(&identity, &server_files_dir(&self.parts.config), owner)?;
        self.write_upstream_files()
    }
}

/// Directory of the server's copies of certificate and key.
pub(crate) fn server_files_dir(config: &crate::node_config::NodeConfig) -> PathBuf {
    config.state_dir.join("server-tls")
}

/// The user of the operating system that this keeper runs as.
fn keeper_user() -> Option<String> {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name)
}

/// A connection string.
fn conninfo(words: &[(&str, String)]) -> String {
    let words: Vec<String> = words.iter().map(|(key, value)| format!("{key}={}", conninfo_value(value))).collect();
    words.join(" ")
}

/// Quotes a value for a connection string (libpq, "Keyword/Value Connection Strings").
fn conninfo_value(value: &str) -> String {
    let plain = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./:".contains(&byte));
    if plain {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// The control file in the words of `cluster::desire`. `copied`: a `backup_label` lies beside it, so this is a base
/// backup on which no server has run yet, and the state in the control file is that of the server it was taken from.
pub(super) fn control_of(file: &ControlFile, copied: bool) -> Control {
    let was_primary = match file.state {
        ControlState::ShutDown | ControlState::ShuttingDown | ControlState::InProduction => true,
        // In crash recovery it may be either; only a primary leaves no end of recovery behind.
        ControlState::InCrashRecovery | ControlState::StartingUp => file.min_recovery_end.0 == 0,
        ControlState::ShutDownInRecovery | ControlState::InArchiveRecovery => false,
    };
    let timeline = Timeline(file.timeline.0.max(file.min_recovery_timeline.0));
    Control {
        system_id: file.system_id,
        major: file.major,
        was_primary: was_primary && !copied,
        timeline,
        position: file.checkpoint.max(file.min_recovery_end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_connection_strings_are_quoted_when_they_must_be() {
        assert_eq!(conninfo_value("10.0.0.1"), "10.0.0.1");
        assert_eq!(conninfo_value(""), "''");
        assert_eq!(conninfo_value("a b"), "'a b'");
        assert_eq!(conninfo_value(r"it's \"), r"'it\'s \\'");
    }
}
