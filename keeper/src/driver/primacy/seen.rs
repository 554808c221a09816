//! What this node is and holds, as its server, its data directory and its ledger tell: the facts for `order`.

use super::super::{Driver, Turn};
use super::{COPY_END, Ghosts};
use cluster::failover::order::Server;
use cluster::naming;
use cluster::sync::{self, ServerSync};
use model::failover::Recruited;
use model::observe::ServerFacts;
use model::{ClusterState, Epoch, Lsn, NodeId, Timeline, Trouble};
use postgres::LogEnd;
use std::collections::BTreeMap;

/// What was seen of this node's server and data.
pub(super) struct Seen {
    pub(super) server: Server,
    pub(super) holds: Option<Recruited>,
    pub(super) recruited: Option<Recruited>,
    pub(super) timeline: Option<Timeline>,
}

impl Driver {
    /// This node as it is now; `busy`: something is going on that needs to know at first hand.
    pub(super) async fn see(&mut self, turn: &Turn, facts: Option<&ServerFacts>, busy: bool) -> Result<Seen, Trouble> {
        if self.server.is_none() {
            return self.see_stopped(&turn.state.value);
        }
        let Some(facts) = facts else {
            // Not answering: if it was a primary it may be one still, and acknowledge once it goes on.
            let server = match &self.part.last_seen {
                Some(Server::Primary { sync, flushed, .. }) => {
                    Server::Primary { healthy: false, sync: sync.clone(), row: None, flushed: flushed.clone() }
                }
                Some(Server::Stopped { .. } | Server::Starting | Server::Replica { .. }) | None => Server::Starting,
            };
            return Ok(Seen { server, holds: None, recruited: None, timeline: Some(Timeline(0)) });
        };
        let sampled_at = self.parts.observations.of(self.parts.me).map(|own| own.taken_at);
        self.part.answered_at = sampled_at.filter(|_| !busy).unwrap_or(turn.now);
        let seen =
            if facts.in_recovery { self.see_replica(turn, facts, busy).await? } else { self.see_primary(turn, facts)? };
        self.part.last_seen = Some(seen.server.clone());
        Ok(seen)
    }

    fn see_stopped(&mut self, state: &ClusterState) -> Result<Seen, Trouble> {
        let nothing = Seen {
            server: Server::Stopped { in_order: true, as_primary: false },
            holds: None,
            recruited: None,
            timeline: None,
        };
        let data_dir = self.parts.node.data_dir.clone();
        let Ok(postgres::DataDir::Cluster(control)) =
            postgres::check_data_dir(&data_dir, self.parts.spec.user.as_ref())
        else {
            return Ok(nothing);
        };
        let copied = data_dir.join("backup_label").exists();
        let as_primary = !data_dir.join("standby.signal").exists() && !copied;
        let in_order = control.state.is_clean() || copied;
        let timeline = Timeline(control.timeline.0.max(control.min_recovery_timeline.0));
        let lineage = self.lineage_of(state, timeline, as_primary)?;
        let position = match control.state {
            // Where the log of a fresh copy ends is known once it was replayed. If the primary it was taken from is not
            // the one to follow, another copy is the safe way, and loses nothing.
            _ if copied => COPY_END,
            postgres::ControlState::ShutDown => postgres::shutdown_end(&data_dir, &control)?,
            _ => control.checkpoint.max(control.min_recovery_end),
        };
        let holds = lineage.map(|lineage| Recruited { lineage, timeline, position });
        let recruited = holds.filter(|_| as_primary && control.state.is_clean());
        Ok(Seen { server: Server::Stopped { in_order, as_primary }, holds, recruited, timeline: Some(timeline) })
    }

    fn see_primary(&mut self, turn: &Turn, facts: &ServerFacts) -> Result<Seen, Trouble> {
        let state = &turn.state.value;
        let promoted = self.part.ledger.ledger().promoted(facts.timeline);
        self.part.ledger.save(promoted)?;
        self.part.promotion_ordered = false;
        let lineage = self.lineage_of(state, facts.timeline, true)?;
        self.part.was_at = facts.written;
        self.part.ghosts = self.ghosts_left(turn, facts);
        if state.failover.is_none() && self.rule_sure && state.rule.version >= self.rule_at_least {
            self.part.unpromised = state.rule.primary == self.parts.me && state.rule.acks == 0;
        }
        self.part.served = self.part.served.max(lineage.unwrap_or_default());
        if state.failover.is_none()
            && state.rule.primary == self.parts.me
            && self.part.ledger.ledger().promised <= state.rule.epoch
        {
            self.part.served = self.part.served.max(state.rule.epoch);
        }
        let holds = lineage.zip(facts.written).map(|(lineage, position)| Recruited {
            lineage,
            timeline: facts.timeline,
            position,
        });
        let server = Server::Primary {
            healthy: self.parts.local.stalled().is_none(),
            sync: self.sync_in_force(turn, facts),
            row: self.part.row,
            flushed: self.flushed(turn, facts),
        };
        Ok(Seen { server, holds, recruited: None, timeline: Some(facts.timeline) })
    }

    fn ghosts_left(&self, turn: &Turn, facts: &ServerFacts) -> Ghosts {
        let rule = &turn.state.value.rule;
        let end = match self.part.ghosts {
            Ghosts::None => return Ghosts::None,
            Ghosts::Unknown => facts.written.unwrap_or(Lsn(u64::MAX)),
            Ghosts::Until(end) => end,
        };
        let flushed = self.flushed(turn, facts);
        let held = rule.voters.iter().filter(|voter| flushed.get(voter).is_some_and(|at| *at >= end)).count();
        if held >= rule.acks as usize { Ghosts::None } else { Ghosts::Until(end) }
    }

    async fn see_replica(&mut self, turn: &Turn, facts: &ServerFacts, busy: bool) -> Result<Seen, Trouble> {
        let data_dir = &self.parts.node.data_dir;
        let follows = self.part.told_to_follow();
        let receiver = if busy { !postgres::receiver_processes(data_dir).is_empty() } else { facts.receiver.is_some() };
        let loose = follows.is_none() && !receiver;
        // Where the log ends is known only once replay has come to the end of what lay here, or streams from there.
        let reports = loose && busy;
        let end = if reports { self.sql.came_to_end().await? } else { None };
        if reports && end.is_none() {
            self.sql.cancel_conflicts().await?;
        }
        // Only now, for a report: the facts are of before the receiver was seen gone, or before replay came to its end.
        let position = match end {
            Some(_) => self.sql.standby_position().await?,
            None => facts.received.max(facts.replayed).unwrap_or(Lsn(0)),
        };
        let file = postgres::read_control_file(data_dir)?;
        let on_disk = postgres::timeline_of_log(data_dir, position, file.segment_bytes.into())?;
        let timeline = facts.timeline.max(on_disk.unwrap_or_default());
        // Of a record that was received and not flushed nobody was told; another timeline is the server's to go on with.
        let goes_on = |newest: Timeline| end == Some(LogEnd::Replayed) || newest > timeline;
        let more = end.is_some() && postgres::unreplayed(data_dir, &file, position)?.is_some_and(goes_on);
        let finished = !reports || (end.is_some() && !more);
        let sync = self.sync_in_force(turn, facts);
        let lineage = self.lineage_of(&turn.state.value, timeline, false)?;
        let holds = lineage.map(|lineage| Recruited { lineage, timeline, position });
        let server = if finished { Server::Replica { follows, receiver, sync } } else { Server::Starting };
        let recruited = holds.filter(|_| reports && finished && !self.part.promotion_ordered);
        if recruited.is_some() && self.part.reported != recruited {
            tracing::info!(?recruited, ?end, "what is held here is told");
            self.part.reported = recruited;
        }
        Ok(Seen { server, holds, recruited, timeline: Some(timeline) })
    }

    /// In which epoch the timeline of the data was begun. The first primary of a cluster knows without being told.
    fn lineage_of(
        &mut self,
        state: &ClusterState,
        timeline: Timeline,
        as_primary: bool,
    ) -> Result<Option<Epoch>, Trouble> {
        if let Some(known) = self.part.ledger.ledger().lineage(timeline) {
            return Ok(Some(known));
        }
        let first = as_primary
            && state.rule.primary == self.parts.me
            && state.failover.is_none()
            && state.identity.system_id.is_some()
            && self.part.ledger.ledger().begun.is_empty();
        if !first {
            return Ok(None);
        }
        let begun = state.lineage.iter().find(|entry| entry.timeline == timeline).map(|entry| entry.epoch);
        let epoch = begun.unwrap_or(state.rule.epoch);
        let mut ledger = self.part.ledger.ledger().clone();
        ledger.begun.insert(timeline.0, epoch);
        self.part.ledger.save(ledger)?;
        Ok(Some(epoch))
    }

    fn sync_in_force(&self, turn: &Turn, facts: &ServerFacts) -> ServerSync {
        let salt = &turn.secrets.value.name_salt;
        sync::parse(&facts.synchronous_standby_names, |name| {
            naming::node_of_application_name(name, &turn.state.value.members, salt)
        })
    }

    fn flushed(&self, turn: &Turn, facts: &ServerFacts) -> BTreeMap<NodeId, Lsn> {
        let (members, salt) = (&turn.state.value.members, &turn.secrets.value.name_salt);
        let named = facts.senders.iter().filter_map(|sender| {
            Some((naming::node_of_application_name(&sender.application_name, members, salt)?, sender.flush?))
        });
        named.collect()
    }
}
