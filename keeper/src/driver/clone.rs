//! Copying the database from a member, and asking the primary whether this node's data may follow it.

use super::configure::REPLICATION_ROLE;
use super::{AHEAD_AGAIN_AFTER, Driver, Turn, running_facts};
use crate::local::Phase;
use cluster::desire::{Control, Lineage};
use cluster::lineage::{self, Follows, Former, Local, Switch, Upstream};
use cluster::naming;
use model::limits::SAMPLE_STALE_AFTER;
use model::observe::{CloneProgress, ServerFacts};
use model::state::Stage;
use model::{Lsn, Member, Millis, NodeId, ReplicaKind, Timeline, Trouble};
use postgres::clone::CloneOptions;
use postgres::replication::ReplicationClient;
use postgres::wire::Endpoint;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long the primary may take to tell its history.
const HISTORY_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a first failed attempt to clone; doubled at each further one, since every attempt costs its source a
/// checkpoint.
const CLONE_PAUSE_MIN: Duration = Duration::from_secs(1);
/// See `CLONE_PAUSE_MIN`.
const CLONE_PAUSE_MAX: Duration = Duration::from_secs(15);
/// A replica further behind than this is not cloned from: the copy would begin with a backlog.
const SOURCE_LAG_BYTES_MAX: u64 = 256 << 20;
/// How long a keeper that has just started waits to hear of a replica before it copies from the primary instead.
const REPLICA_PATIENCE: Millis = Millis(3_000);

impl Driver {
    /// How this node reaches a member's server for replication.
    pub(super) fn endpoint(&self, turn: &Turn, member: &Member, what: &str) -> Endpoint {
        let tls = turn.state.value.settings.tls && self.parts.spec.tls_files.is_some();
        Endpoint {
            host: member.postgres_host.clone(),
            port: member.postgres_port,
            user: REPLICATION_ROLE.to_owned(),
            password: (!tls).then(|| turn.secrets.value.replication_password.clone()),
            tls: tls.then(|| self.parts.tls.postgres_client()),
            // Never the name that counts as a voter: a client that only receives must not acknowledge commits.
            application_name: format!("stemma_{what}_{}", self.parts.config.name),
        }
    }

    /// What was seen lately of a member's server, if it runs.
    pub(super) fn facts_of(&self, turn: &Turn, id: NodeId) -> Option<ServerFacts> {
        let observed = self.parts.observations.of(id)?;
        if turn.now.since(observed.taken_at) > SAMPLE_STALE_AFTER {
            return None;
        }
        running_facts(&observed.sample).cloned()
    }

    pub(super) fn primary_answers(&self, turn: &Turn) -> bool {
        self.facts_of(turn, turn.state.value.rule.primary).is_some_and(|facts| !facts.in_recovery)
    }

    /// Whether the node that will feed this one answers and already keeps log for it.
    pub(super) fn upstream_ready(&self, turn: &Turn) -> bool {
        let state = &turn.state.value;
        if state.following().is_some() && state.rule.primary == self.parts.me {
            return true;
        }
        let Some((me, upstream)) = state.members.get(&self.parts.me).zip(state.upstream_of(self.parts.me)) else {
            return false;
        };
        let slot = naming::slot_name(me);
        self.facts_of(turn, upstream.id).is_some_and(|facts| facts.slots.iter().any(|held| held.name == slot))
    }

    /// Members to clone from, best first: replicas that stream and are close, this site's before others; the primary
    /// last, because a base backup costs its users.
    fn clone_sources(&self, turn: &Turn) -> Vec<NodeId> {
        let state = &turn.state.value;
        let primary_position =
            self.facts_of(turn, state.rule.primary).and_then(|facts| facts.written).unwrap_or(Lsn(0));
        let mut ranked: Vec<(bool, bool, NodeId)> = Vec::new();
        for member in state.members.values() {
            if member.id == self.parts.me || member.witness || member.kind == ReplicaKind::Delayed {
                continue;
            }
            let Some(facts) = self.facts_of(turn, member.id) else { continue };
            let is_primary = member.id == state.rule.primary && state.following().is_none();
            let fit = if is_primary {
                !facts.in_recovery
            } else {
                member.stage == Stage::Active
                    && facts.receiver.as_ref().is_some_and(|receiver| receiver.status == "streaming")
                    && primary_position.lag_of(facts.replayed.unwrap_or(Lsn(0))).0 <= SOURCE_LAG_BYTES_MAX
            };
            if fit {
                ranked.push((is_primary, member.site != self.parts.config.site, member.id));
            }
        }
        ranked.sort();
        ranked.into_iter().map(|(_, _, id)| id).collect()
    }

    /// Whether a better source than the primary may show itself in a moment: a keeper that joins hears some before others.
    fn may_hear_of_a_replica(&self, turn: &Turn, source: NodeId) -> bool {
        let state = &turn.state.value;
        let unheard = |member: &Member| {
            member.stage == Stage::Active
                && member.kind != ReplicaKind::Delayed
                && !member.witness
                && ![self.parts.me, state.rule.primary].contains(&member.id)
                && self.facts_of(turn, member.id).is_none()
        };
        source == state.rule.primary
            && self.clone_attempts == 0
            && turn.now.since(self.restarts.started_at()) < REPLICA_PATIENCE
            && state.members.values().any(unheard)
    }

    /// Whom to copy from: a member, or for the leader of a standby cluster the primary of the cluster that is followed.
    async fn clone_source(&self, turn: &Turn) -> Result<Option<(String, Endpoint, NodeId)>, Trouble> {
        let state = &turn.state.value;
        if let Some(followed) = state.following()
            && state.rule.primary == self.parts.me
        {
            let endpoint = self.upstream(turn, "clone").await?;
            return Ok(Some((format!("cluster {}", followed.cluster), endpoint, NodeId(0))));
        }
        let sources = self.clone_sources(turn);
        let member = pick(&sources, self.clone_attempts).and_then(|source| state.members.get(&source));
        Ok(member.map(|member| (member.name.to_string(), self.endpoint(turn, member, "clone"), member.id)))
    }

    pub(super) async fn clone_data(&mut self, turn: &Turn, stop: &CancellationToken) -> Result<bool, Trouble> {
        let Some((name, endpoint, source)) = self.clone_source(turn).await? else {
            self.parts.local.set_doing(Some("waiting for a member to clone from".into()));
            return Ok(false);
        };
        if self.may_hear_of_a_replica(turn, source) {
            self.parts
                .local
                .set_doing(Some("waiting to hear of a replica to copy from, which spares the primary".into()));
            return Ok(false);
        }
        self.clone_attempts += 1;
        let settings = &turn.state.value.settings;
        let identity = &turn.state.value.identity;
        let options = CloneOptions {
            data_dir: self.parts.node.data_dir.clone(),
            owner: self.parts.spec.user.clone(),
            rate_bytes_per_s: settings.clone_rate.0,
            expect_system_id: identity.system_id,
            expect_major: Some(self.parts.spec.installation.major),
            label: format!("stemma {}", self.parts.config.name),
            tablespace_root: self.parts.node.tablespace_root.clone(),
            fsync: true,
            slot: None,
        };
        let first = CloneProgress {
            phase: "connect".into(),
            source: name.clone(),
            attempt: self.clone_attempts,
            last_error: self.clone_error.clone(),
            ..CloneProgress::default()
        };
        let (progress, shown) = watch::channel(first);
        self.parts.local.set_clone(Some(shown));
        self.parts.local.set_phase(Phase::Cloning);
        self.parts.local.set_doing(Some(format!("cloning from {name}")));
        tracing::info!(source = name, attempt = self.clone_attempts, "base backup begins");
        let lineage = self.expect_copy(source, turn)?;
        failpoint::pass("clone.begun");
        let cancel = stop.child_token();
        let guard = self.cancel_when_unwanted(&cancel);
        let result = postgres::clone::run(&endpoint, &options, progress, cancel.clone()).await;
        cancel.cancel();
        guard.abort();
        self.parts.local.set_clone(None);
        self.control = None;
        match result {
            Ok(report) => {
                failpoint::pass("clone.ended");
                self.copied(lineage)?;
                tracing::info!(bytes = report.bytes, seconds = report.seconds, "base backup complete");
                self.clone_attempts = 0;
                self.clone_error = None;
                self.lineage = Lineage::Unknown;
                self.log_gone = None;
                self.parts.local.set_phase(Phase::Stopped);
                Ok(true)
            }
            Err(trouble) => {
                self.parts.local.set_phase(Phase::Empty);
                self.clone_error = Some(trouble.to_string());
                let doubled = CLONE_PAUSE_MIN * (1 << self.clone_attempts.saturating_sub(1).min(5));
                let mut states = self.parts.store.changes();
                states.mark_unchanged();
                tokio::select! {
                    () = stop.cancelled() => {}
                    // The node may not be wanted any more, or there may be another source.
                    _ = states.changed() => {}
                    () = tokio::time::sleep(doubled.min(CLONE_PAUSE_MAX)) => {}
                }
                Err(trouble)
            }
        }
    }

    /// Ends a running clone when the cluster does not want it any more (the node was removed or halted).
    fn cancel_when_unwanted(&self, cancel: &CancellationToken) -> tokio::task::JoinHandle<()> {
        let mut states = self.parts.store.changes();
        let me = self.parts.me;
        let cancel = cancel.clone();
        let local = self.parts.local.clone();
        tokio::spawn(async move {
            loop {
                let wanted = states.borrow_and_update().as_ref().is_none_or(|state| {
                    state.value.members.get(&me).is_some_and(|member| match member.stage {
                        Stage::Joining | Stage::Active | Stage::Reinit { .. } | Stage::Rejoin { .. } => true,
                        Stage::Halted { .. } | Stage::Leaving => false,
                    })
                });
                if !wanted {
                    cancel.cancel();
                    return;
                }
                tokio::select! {
                    changed = states.changed() => if changed.is_err() { return },
                    // The driver does not turn during a clone, but it is not stuck either.
                    () = tokio::time::sleep(Duration::from_secs(1)) => local.turned(),
                }
            }
        })
    }

    pub(super) async fn discard_half_made(&mut self) -> Result<(), Trouble> {
        let data_dir = self.parts.node.data_dir.clone();
        let tablespaces = self.parts.node.tablespace_root.clone();
        let discarded = tokio::task::spawn_blocking({
            let data_dir = data_dir.clone();
            move || postgres::clone::discard_half_made(&data_dir, tablespaces.as_deref())
        });
        if discarded.await.map_err(|error| Trouble::internal("clearing was interrupted", "").because(error))?? {
            return Ok(());
        }
        Err(Trouble::directory_unfit(
            format!(
                "{} holds a database without global/pg_control, and no copy of ours left it so",
                data_dir.display()
            ),
            "restore the file, or move the directory away to have this node rebuilt",
        ))
    }

    /// Compares this node's history with the primary's.
    pub(super) async fn check_lineage(&mut self, turn: &Turn, facts: Option<&ServerFacts>) -> Result<bool, Trouble> {
        let Some(primary) = turn.state.value.primary() else { return Ok(false) };
        let Some(control) = self.control else { return Ok(false) };
        if !self.primary_answers(turn) {
            self.parts.local.set_doing(Some(format!("waiting for {} to compare histories with", primary.name)));
            return Ok(false);
        }
        let local = local_end(&control, facts);
        let local = self.on_its_log(local, facts)?;
        let endpoint = self.endpoint(turn, primary, "lineage");
        self.lineage_asked_at = Some(turn.now);
        let verdict = tokio::time::timeout(HISTORY_TIMEOUT, compare(&endpoint, &local)).await.map_err(|_| {
            Trouble::link_down(
                format!("{} did not tell its history within {} s", primary.name, HISTORY_TIMEOUT.as_secs()),
                "check the network between the two nodes",
            )
        })??;
        self.lineage = match verdict {
            Ok(follows) => self.log_at_upstream(turn, &local, &follows, facts).await?,
            Err(unfit) => Lineage::Diverged { reason: unfit.to_string() },
        };
        if let Lineage::LogGone { reason } = &self.lineage {
            self.log_gone = Some((local.position, reason.clone()));
        }
        Ok(true)
    }

    /// A replica without a receiver shows the timeline of its last restartpoint, while its log may end on a later one.
    /// Compared as it shows itself it would seem to have gone on where the primary's history did not.
    fn on_its_log(&self, local: Local, facts: Option<&ServerFacts>) -> Result<Local, Trouble> {
        let data_dir = &self.parts.node.data_dir;
        let on_disk = match facts {
            Some(_) => {
                let segment_bytes = postgres::read_control_file(data_dir)?.segment_bytes;
                postgres::timeline_of_log(data_dir, local.position, segment_bytes.into())?
            }
            None => None,
        };
        Ok(on_timeline(local, on_disk))
    }

    /// A running replica that may follow and does not is either on its way, or its upstream has removed the log that
    /// it needs: then it never gets on, and its server only says so in its own log.
    async fn log_at_upstream(
        &self,
        turn: &Turn,
        local: &Local,
        follows: &Follows,
        facts: Option<&ServerFacts>,
    ) -> Result<Lineage, Trouble> {
        let streams = |facts: &ServerFacts| facts.receiver.as_ref().is_some_and(|from| from.status == "streaming");
        let behind = match follows {
            Follows::Equal => false,
            Follows::Behind { .. } | Follows::FromOlderTimeline { .. } => true,
        };
        let upstream = turn.state.value.upstream_of(self.parts.me);
        let (Some(upstream), true, false) = (upstream, behind, facts.is_none_or(streams)) else {
            return Ok(Lineage::Follows);
        };
        let endpoint = self.endpoint(turn, upstream, "lineage");
        let asked =
            async { ReplicationClient::connect(&endpoint).await?.log_gone(local.position, local.timeline).await };
        Ok(match tokio::time::timeout(HISTORY_TIMEOUT, asked).await {
            Ok(Ok(Some(refusal))) => Lineage::LogGone {
                reason: format!("{} no longer has the log from {} on: {refusal}", upstream.name, local.position),
            },
            // No answer is no proof; it is asked again.
            Ok(Ok(None)) | Err(_) => Lineage::Follows,
            Ok(Err(trouble)) => {
                tracing::debug!(%trouble, "the upstream was not asked for its log");
                Lineage::Follows
            }
        })
    }

    /// Whether the primary, looked at after this node, had less than this node has. Only a reason to ask: the looks
    /// are placed in time by their arrival.
    pub(super) fn ahead_of_primary(&self, turn: &Turn, facts: &ServerFacts) -> bool {
        let again = |asked| turn.now.since(asked) > AHEAD_AGAIN_AFTER;
        let primary = turn.state.value.rule.primary;
        let observations = &self.parts.observations;
        let (Some(own), Some(theirs)) = (observations.of(self.parts.me), observations.of(primary)) else {
            return false;
        };
        let Some(primary) = running_facts(&theirs.sample).filter(|primary| !primary.in_recovery) else { return false };
        facts.in_recovery
            && facts.timeline == primary.timeline
            && theirs.taken_at > own.taken_at
            && facts.received.max(facts.replayed) > primary.written
            && self.lineage_asked_at.is_none_or(again)
    }
}

fn pick(sources: &[NodeId], attempt: u32) -> Option<NodeId> {
    // After a failure the next source has its turn: a half-broken best one must not be tried for ever.
    sources.get(attempt as usize % sources.len().max(1)).copied()
}

/// The end of what this node holds, from the running server where there is one.
fn local_end(control: &Control, facts: Option<&ServerFacts>) -> Local {
    let (timeline, position) = match facts {
        Some(facts) => (facts.timeline, facts.received.max(facts.replayed).unwrap_or(control.position)),
        None => (control.timeline, control.position),
    };
    let former = match (control.was_primary, facts) {
        (false, _) | (true, Some(_)) => Former::Replica,
        (true, None) => Former::PrimaryStopped,
    };
    Local { system_id: control.system_id, timeline: Timeline(timeline.0.max(control.timeline.0)), position, former }
}

fn on_timeline(local: Local, of_its_log: Option<Timeline>) -> Local {
    Local { timeline: local.timeline.max(of_its_log.unwrap_or_default()), ..local }
}

pub(super) async fn compare(
    endpoint: &Endpoint,
    local: &Local,
) -> Result<Result<lineage::Follows, lineage::Unfit>, Trouble> {
    let mut client = ReplicationClient::connect(endpoint).await?;
    let identity = client.identify_system().await?;
    let history = if identity.timeline.0 > 1 { client.timeline_history(identity.timeline).await? } else { Vec::new() };
    client.close().await;
    let history: Vec<Switch> =
        history.iter().map(|entry| Switch { timeline: entry.timeline, switched_at: entry.switched_at }).collect();
    Ok(lineage::verdict(
        local,
        &Upstream {
            system_id: identity.system_id,
            timeline: identity.timeline,
            position: identity.position,
            history: &history,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::SystemId;

    #[test]
    fn a_replica_whose_log_is_ahead_of_its_restartpoint_is_not_taken_for_diverged() {
        let history = [Switch { timeline: Timeline(1), switched_at: Lsn(500) }];
        let upstream =
            Upstream { system_id: SystemId(7), timeline: Timeline(2), position: Lsn(900), history: &history };
        // It followed the promotion at 500, and its upstream died before its next restartpoint.
        let shown =
            Local { system_id: SystemId(7), timeline: Timeline(1), position: Lsn(700), former: Former::Replica };
        assert!(lineage::verdict(&shown, &upstream).is_err(), "as it shows itself");
        let really = on_timeline(shown, Some(Timeline(2)));
        assert_eq!(lineage::verdict(&really, &upstream), Ok(Follows::Behind { bytes: 200 }));
        assert_eq!(on_timeline(shown, None), shown, "log that is not on disk tells nothing");
    }
}
