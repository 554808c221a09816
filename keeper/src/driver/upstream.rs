//! A node of a standby cluster: its leader streams from the primary of the cluster that is followed, wherever that is
//! among the addresses given, the others from the leader. What a copy holds beyond the followed cluster's history (its
//! old primary sent it before it died) is saved and rewound, as on an old primary; nobody has to be asked, for nothing
//! was ever acknowledged here.

use super::primacy::Primacy;
use super::{Driver, STARVED_AFTER, Turn};
use crate::clock;
use crate::failover::OwnPart;
use crate::pki;
use cluster::follow::{self, Seen};
use cluster::history::{self, STEMMA};
use futures_util::future::join_all;
use model::follow::Follow;
use model::observe::{CloneProgress, ServerFacts, ServerState};
use model::{Lsn, Millis, Moment, NodeId, NodeName, Role, Timeline, Trouble, limits};
use postgres::comeback::{Comeback, ComebackDeadlines, Way, comeback};
use postgres::replication::ReplicationClient;
use postgres::rescue::{RescueLimits, RescueOrder, Saved};
use postgres::wire::Endpoint;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a server of the followed cluster may take to say what it is.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a copy without a stream asks whether it may still follow.
const ASK_AGAIN_AFTER: Millis = Millis(5_000);

/// What the driver keeps for this.
pub(super) struct Following {
    began_at: Moment,
    down_since: BTreeMap<NodeId, Moment>,
    asked_at: Option<Moment>,
}

impl Following {
    pub(super) fn new(now: Moment) -> Following {
        Following { began_at: now, down_since: BTreeMap::new(), asked_at: None }
    }
}

impl Driver {
    /// This node's part in following; what remains for it as for any replica is `cluster::desire`'s.
    pub(super) async fn following(&mut self, turn: &Turn, facts: Option<&ServerFacts>) -> Result<Primacy, Trouble> {
        let state = &turn.state.value;
        self.part.council.note_state(turn.state.version, state, turn.now);
        self.part.calm = None;
        let leads = state.rule.primary == self.parts.me;
        let whom = if leads { NodeId(0) } else { state.rule.primary };
        // While a promotion goes on the stream counts as there until it was seen cut.
        self.part.follow = Some((whom, state.rule.epoch));
        self.part.detached = false;
        if self.replace_leader(turn).await? {
            return Ok(Primacy::Acted);
        }
        let Some(facts) = facts.filter(|facts| facts.in_recovery && self.server.is_some()) else {
            return Ok(Primacy::Free);
        };
        let timeline = self.note_timeline(facts)?;
        self.part.council.publish(OwnPart {
            promised: self.part.ledger.ledger().promised,
            lineage: Some((timeline, follow::epoch_of_timeline(timeline))),
            ..OwnPart::default()
        });
        if facts.receiver.as_ref().is_some_and(|receiver| receiver.status == "streaming") {
            return Ok(Primacy::Free);
        }
        let starved = turn.now.since(self.receiver_seen_at) > STARVED_AFTER;
        let asked = self.following.asked_at.is_some_and(|at| turn.now.since(at) < ASK_AGAIN_AFTER);
        if !starved || asked || facts.replay_paused {
            return Ok(Primacy::Free);
        }
        self.following.asked_at = Some(turn.now);
        match self.mend(turn, facts, timeline, leads).await {
            Ok(acted) => Ok(acted),
            // Its servers are away. That is told by the status; the copy serves what it has.
            Err(trouble) if self.server.is_some() => {
                tracing::debug!(%trouble, "nothing comes from the followed cluster");
                Ok(Primacy::Free)
            }
            Err(trouble) => Err(trouble),
        }
    }

    /// The timeline at the end of the data, with the epoch that stands for it here.
    fn note_timeline(&mut self, facts: &ServerFacts) -> Result<Timeline, Trouble> {
        let position = facts.received.max(facts.replayed).unwrap_or(Lsn(0));
        let data_dir = &self.parts.node.data_dir;
        let file = postgres::read_control_file(data_dir)?;
        let on_disk = postgres::timeline_of_log(data_dir, position, file.segment_bytes.into())?;
        let timeline = facts.timeline.max(on_disk.unwrap_or_default());
        if self.part.ledger.ledger().lineage(timeline).is_none() {
            let mut ledger = self.part.ledger.ledger().clone();
            ledger.begun.insert(timeline.0, follow::epoch_of_timeline(timeline));
            self.part.ledger.save(ledger)?;
        }
        Ok(timeline)
    }

    /// Names another leader where that is due. Any keeper may; one of them does.
    async fn replace_leader(&mut self, turn: &Turn) -> Result<bool, Trouble> {
        let state = &turn.state.value;
        let seen = self.seen(turn);
        let Some((to, because)) = follow::successor(state, &seen) else { return Ok(false) };
        let epoch = state.rule.epoch;
        self.parts
            .store
            .update(|state| Ok((follow::replace_leader(state, epoch, to, &because, clock::wall()), ())))
            .await?;
        tracing::warn!(%to, because, "another node streams from the followed cluster");
        Ok(true)
    }

    fn seen(&mut self, turn: &Turn) -> BTreeMap<NodeId, Seen> {
        let now = turn.now;
        let mut all = BTreeMap::new();
        for member in turn.state.value.members.values().filter(|member| !member.witness) {
            let observed = self.parts.observations.of(member.id);
            let heard = observed.as_ref().map_or(self.following.began_at, |observed| observed.heard_at);
            let heard = heard.max(clock::attentive_since(now));
            let silent = if member.id == self.parts.me { Millis(0) } else { now.since(heard) };
            let sample = observed.as_ref().map(|observed| &observed.sample);
            let runs = sample.is_some_and(|sample| matches!(sample.server, ServerState::Running));
            if runs {
                self.following.down_since.remove(&member.id);
            }
            let down = match runs {
                true => Millis(0),
                false => now.since(*self.following.down_since.entry(member.id).or_insert(now)),
            };
            let facts = sample.and_then(|sample| sample.facts.as_ref()).filter(|facts| facts.in_recovery);
            let holds = facts.and_then(|facts| Some((facts.timeline, facts.received.max(facts.replayed)?)));
            // A node that never was heard is not down for as long as this keeper runs: it has a while to come.
            all.insert(member.id, Seen { silent, down: if observed.is_none() { Millis(0) } else { down }, holds });
        }
        all
    }

    /// The stream is away although somebody takes writes over there: finds out why, and mends it.
    async fn mend(
        &mut self,
        turn: &Turn,
        facts: &ServerFacts,
        timeline: Timeline,
        leads: bool,
    ) -> Result<Primacy, Trouble> {
        let upstream = self.upstream(turn, "lineage").await?;
        let control = postgres::read_control_file(&self.parts.node.data_dir)?;
        let position = facts.received.max(facts.replayed).unwrap_or(control.min_recovery_end);
        let local = cluster::lineage::Local {
            system_id: control.system_id,
            timeline,
            position,
            former: cluster::lineage::Former::Replica,
        };
        if let Err(unfit) = super::clone::compare(&upstream, &local).await? {
            tracing::warn!(%unfit, "the copy left the history of the followed cluster");
            return self.come_back_to(turn).await;
        }
        let source = match turn.state.value.primary().filter(|_| !leads) {
            Some(leader) => self.endpoint(turn, leader, "lineage"),
            None => upstream,
        };
        match ReplicationClient::connect(&source).await?.log_gone(position, timeline).await? {
            Some(refusal) => {
                self.stop_server("the log it needs next is gone").await?;
                self.give_up_data(&format!("{source} no longer has the log from {position} on: {refusal}")).await
            }
            None => Ok(Primacy::Free),
        }
    }

    /// Saves what only this copy holds, then rewinds it, or has it copied anew.
    async fn come_back_to(&mut self, turn: &Turn) -> Result<Primacy, Trouble> {
        let Some(followed) = turn.state.value.following() else { return Ok(Primacy::Waits) };
        let source = self.upstream(turn, "rewind").await?;
        self.stop_server("its data ends outside the followed cluster's history").await?;
        self.part.ledger.save(self.part.ledger.ledger().replaced(turn.state.value.rule.epoch))?;
        failpoint::pass("comeback.begun");
        let directory = postgres::rescue::rescue_dir(&self.parts.config.state_dir);
        // Names of clusters and of nodes obey one rule.
        let primary: NodeName = followed
            .cluster
            .as_str()
            .parse()
            .map_err(|bad: model::names::BadName| Trouble::internal(bad.to_string(), "report this defect"))?;
        self.write_upstream_files()?;
        let [cert, key, ca] = upstream_files(&self.parts.config);
        let files = postgres::TlsFiles { cert, key, ca };
        let order = Comeback {
            spec: &self.parts.spec,
            source,
            files: Some(&files),
            fork: None,
            rescue: RescueOrder {
                directory: &directory,
                node: &self.parts.config.name,
                epoch: turn.state.value.rule.epoch,
                primary: &primary,
                limits: RescueLimits::default(),
            },
            may_rewind: true,
            deadlines: ComebackDeadlines::default(),
        };
        self.parts.local.set_doing(Some(format!("saving what only this copy holds, then following {primary}")));
        let (progress, shown) = watch::channel(CloneProgress::default());
        self.parts.local.set_clone(Some(shown));
        let came = comeback(&order, &progress, &CancellationToken::new()).await;
        self.parts.local.set_clone(None);
        self.control = None;
        let came = came?;
        if let Saved::Bundle(bundle) = &came.saved {
            self.note_rescue(&bundle.id, bundle.counts.transactions).await?;
        }
        match came.way {
            Way::Rewound => {
                let name = self.parts.config.name.clone();
                let text = format!("{name} was rewound and follows cluster {primary} again");
                self.parts
                    .store
                    .update(|state| {
                        let mut next = state.clone();
                        history::record(&mut next, clock::wall(), "node-rewound", Some(&name), text.clone(), STEMMA);
                        Ok((Some(next), ()))
                    })
                    .await?;
                self.start_as(Role::Replica, turn).await
            }
            Way::Follow => self.start_as(Role::Replica, turn).await,
            Way::Rebuild { because } => self.give_up_data(&because).await,
        }
    }

    /// The server of the followed cluster that takes writes now.
    pub(super) async fn upstream(&self, turn: &Turn, what: &str) -> Result<Endpoint, Trouble> {
        let lost = |reason: String| {
            Trouble::upstream_lost(reason, "bring it back; if it is lost for good: stemma cluster promote")
        };
        let (Some(followed), Some(secrets)) = (turn.state.value.following(), &turn.secrets.value.upstream) else {
            return Err(lost("this cluster follows no other one".to_owned()));
        };
        let tls = pki::upstream_client(secrets, &followed.cluster_id)?;
        let endpoints = followed.hosts.iter().map(|address| {
            let (host, port) = split(address);
            Endpoint {
                host,
                port,
                user: super::configure::REPLICATION_ROLE.to_owned(),
                password: None,
                tls: Some(tls.clone()),
                application_name: format!("stemma_{what}_{}", self.parts.config.name),
            }
        });
        let asked = join_all(endpoints.map(|endpoint| async {
            let writes = tokio::time::timeout(ASK_TIMEOUT, takes_writes(&endpoint)).await;
            (endpoint, writes)
        }))
        .await;
        let mut causes = Vec::new();
        for (endpoint, answer) in asked {
            match answer {
                Ok(Ok(true)) => return Ok(endpoint),
                Ok(Ok(false)) => causes.push(format!("{endpoint} takes no writes")),
                Ok(Err(trouble)) => causes.push(trouble.to_string()),
                Err(_) => causes.push(format!("{endpoint} does not answer")),
            }
        }
        let mut trouble = lost(format!("no server of cluster {} takes writes", followed.cluster));
        trouble.causes = causes;
        Err(trouble)
    }

    /// How the leader's server reaches the followed cluster: all addresses, and only the one that takes writes counts.
    pub(super) fn upstream_conninfo(&self, followed: &Follow) -> Vec<(&'static str, String)> {
        let (hosts, ports): (Vec<String>, Vec<String>) =
            followed.hosts.iter().map(|address| split(address)).map(|(host, port)| (host, port.to_string())).unzip();
        let [certificate, key, ca] = upstream_files(&self.parts.config);
        vec![
            ("host", hosts.join(",")),
            ("port", ports.join(",")),
            ("target_session_attrs", "read-write".to_owned()),
            ("user", super::configure::REPLICATION_ROLE.to_owned()),
            ("application_name", followed.application_name.clone()),
            ("connect_timeout", "3".to_owned()),
            ("keepalives_idle", "1".to_owned()),
            ("keepalives_interval", "1".to_owned()),
            ("keepalives_count", "3".to_owned()),
            ("tcp_user_timeout", limits::WAL_TIMEOUT.0.to_string()),
            ("sslmode", "verify-ca".to_owned()),
            ("sslcert", certificate.display().to_string()),
            ("sslkey", key.display().to_string()),
            ("sslrootcert", ca.display().to_string()),
        ]
    }

    /// Puts the certificate for the followed cluster where the server can read it.
    pub(super) fn write_upstream_files(&self) -> Result<(), Trouble> {
        let secrets = self.parts.store.secrets();
        let Some(upstream) = secrets.as_ref().and_then(|secrets| secrets.value.upstream.as_ref()) else {
            return Ok(());
        };
        let owner = self.parts.spec.user.as_ref().map(|user| (user.uid, user.gid));
        let ca = crate::identity::join_pem(&upstream.ca_pem);
        let contents = [upstream.certificate_pem.as_str(), upstream.key_pem.as_str(), ca.as_str()];
        for (path, content) in upstream_files(&self.parts.config).iter().zip(contents) {
            pki::write_private_if_other(path, owner, content)?;
        }
        Ok(())
    }
}

/// Certificate, key and CA.
fn upstream_files(config: &crate::node_config::NodeConfig) -> [PathBuf; 3] {
    let directory = super::server_files_dir(config);
    ["upstream.crt", "upstream.key", "upstream-ca.crt"].map(|name| directory.join(name))
}

fn split(address: &str) -> (String, u16) {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "5432"));
    (host.trim_matches(['[', ']']).to_owned(), port.parse().unwrap_or(5432))
}

async fn takes_writes(endpoint: &Endpoint) -> Result<bool, Trouble> {
    let mut client = ReplicationClient::connect(endpoint).await?;
    let read_only = client.show("transaction_read_only").await?;
    client.close().await;
    Ok(read_only == "off")
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn addresses_are_split_at_their_last_colon() {
        assert_eq!(split("db1.example:5433"), ("db1.example".to_owned(), 5433));
        assert_eq!(split("[fe80::1]:5432"), ("fe80::1".to_owned(), 5432));
    }
}
