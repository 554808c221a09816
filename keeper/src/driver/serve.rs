//! A server that runs: its settings, slots and synchronous list are kept as the cluster's state wants them.

use super::{Driver, Turn, running_facts};
use crate::clock;
use cluster::failover::recruit::electors;
use cluster::history::{self, STEMMA};
use cluster::slots::SlotStep;
use cluster::sync::{self, SyncStep, SyncView, VoterFacts};
use cluster::{admission, naming, slots, views};
use model::limits::SAMPLE_STALE_AFTER;
use model::observe::{ServerFacts, ServerState};
use model::state::{LineageEntry, Stage};
use model::units::Millis;
use model::{Member, NodeId, Role, Rule, Trouble};
use postgres::ActiveFiles;
use std::time::Duration;

/// How long a reloaded parameter may take to show.
const SETTING_DEADLINE: Duration = Duration::from_secs(5);
/// Silence of a leaving node after which the others stop waiting for it to stop its server.
const LEAVING_SILENT_AFTER: Millis = Millis(10_000);

impl Driver {
    /// One thing to be done for a running server; `false` when all is as it should be.
    pub(super) async fn serve(&mut self, role: Role, turn: &Turn, facts: &ServerFacts) -> Result<bool, Trouble> {
        if role == Role::Primary && !self.prepared_server {
            self.sql.ensure_roles(&turn.secrets.value).await?;
            failpoint::pass("serve.roles-made");
            self.prepared_server = true;
        }
        if self.sync_names.is_none() && role == Role::Primary {
            self.sync_names = Some(facts.synchronous_standby_names.clone());
        }
        if self.parts.local.take_server_files_old() {
            self.write_server_files()?;
            self.reload().await?;
        }
        if self.configure(role, turn).await? {
            return Ok(true);
        }
        if self.keep_slots(turn, facts).await? {
            self.sample_again();
            return Ok(true);
        }
        if role == Role::Primary {
            self.note_lineage(turn, facts);
            if self.keep_synchronous(turn, facts).await? {
                return Ok(true);
            }
            self.complete_views(turn).await?;
            self.finish_removals(turn).await?;
        }
        if self.operate(turn, facts).await? {
            return Ok(true);
        }
        self.parts.local.set_versions(turn.state.version, turn.state.value.settings_version);
        self.parts.local.set_doing(None);
        let log_gone = self.log_gone.as_ref();
        self.parts.local.set_error(log_gone.map(|(_, reason)| ("ST3014".to_owned(), reason.clone())));
        Ok(false)
    }

    /// Brings the configuration files and the running server to what is wanted.
    async fn configure(&mut self, role: Role, turn: &Turn) -> Result<bool, Trouble> {
        let config = self.wanted_config(role, turn)?;
        if self.written.as_ref() == Some(&config) {
            return Ok(false);
        }
        if self.written.is_none() {
            // First look at a server that was adopted: its certificate files may be older than ours, and it may read
            // its configuration from elsewhere.
            self.write_server_files()?;
            self.active = Some(ActiveFiles::ask(&self.sql).await?);
        }
        let mut changed = postgres::write_config(&self.parts.spec, &config)?.changed;
        if let Some(files) = &self.active {
            changed |= postgres::write_active(&self.parts.spec, &config, files)?;
        }
        // An adopted server may not have read what an earlier keeper wrote last; a reload settles it.
        if changed || self.written.is_none() {
            failpoint::pass("configure.file-written");
            tracing::info!("server configuration changed; reloading");
            self.reload().await?;
            failpoint::pass("configure.reloaded");
        }
        self.written = Some(config);
        self.sample_again();
        Ok(true)
    }

    pub(super) async fn reload(&self) -> Result<(), Trouble> {
        match &self.server {
            Some(server) => server.reload(),
            None => Ok(()),
        }
    }

    pub(super) async fn keep_slots(&mut self, turn: &Turn, facts: &ServerFacts) -> Result<bool, Trouble> {
        let state = &turn.state.value;
        let ledger = self.part.ledger.ledger();
        let standby = state.following().is_some();
        let may_feed = |member| {
            // Whether a copy of another cluster still is one is found out by comparing histories, under one epoch.
            if standby {
                return true;
            }
            let word = self.part.council.word_of(member, turn.now);
            word.is_some_and(|word| ledger.may_feed(word.report.epoch, word.follows.map(|(_, epoch)| epoch)))
        };
        let observed = self.parts.observations.all();
        let steps = slots::plan(state, self.parts.me, facts, &observed, may_feed, &state.settings, turn.now);
        let mut acted = false;
        for step in steps {
            match step {
                SlotStep::Create(name) => {
                    self.sql.ensure_slots(&[name].into()).await?;
                    failpoint::pass("slot.created");
                    acted = true;
                }
                SlotStep::Advance(name, to) => {
                    self.sql.advance_slot(&name, to).await?;
                }
                SlotStep::Drop { name, because } => {
                    tracing::warn!(slot = name, because, "slot dropped");
                    self.sql.drop_slot(&name).await?;
                    let me = &self.parts.config.name;
                    self.parts
                        .store
                        .update(|state| {
                            let mut next = state.clone();
                            let text = format!("slot {name} on {me} dropped: {because}");
                            history::record(&mut next, clock::wall(), "slot-dropped", Some(me), text, STEMMA);
                            Ok((Some(next), ()))
                        })
                        .await?;
                    acted = true;
                }
            }
        }
        Ok(acted)
    }

    /// Writes the epoch into the database once per primacy, so that the history of primacy is in the log itself. It
    /// waits for the replicas like any commit, so it waits beside the driver, which must stay able to change the list.
    fn note_lineage(&mut self, turn: &Turn, facts: &ServerFacts) {
        let epoch = turn.state.value.rule.epoch;
        let busy = self.lineage_note.as_ref().is_some_and(|task| !task.is_finished());
        // Both places: a keeper may have died between the one and the other.
        let recorded = turn.state.value.lineage.iter().any(|known| known.epoch >= epoch);
        if (facts.lineage_epoch == Some(epoch) && recorded) || busy {
            return;
        }
        let (sql, local, store) = (self.sql.clone(), self.parts.local.clone(), self.parts.store.clone());
        let (name, timeline, began_at) = (self.parts.config.name.clone(), facts.timeline, facts.written);
        self.lineage_note = Some(tokio::spawn(async move {
            if let Err(trouble) = sql.ensure_lineage(epoch, &name, timeline).await {
                tracing::warn!(%trouble, "the epoch is not in the database yet");
                tokio::time::sleep(Duration::from_secs(1)).await;
                return;
            }
            failpoint::pass("lineage.in-database");
            let entry = LineageEntry { epoch, timeline, began_at, from: None, xids: None };
            if let Err(trouble) = store.update(|state| Ok((admission::learn_lineage(state, entry), ()))).await {
                tracing::warn!(%trouble, "the lineage is not in consensus yet");
            }
            local.sample_now.notify_one();
        }));
    }

    /// Ends one more transaction for replicas that do not show all that they have applied until they apply one.
    async fn complete_views(&mut self, turn: &Turn) -> Result<(), Trouble> {
        let incomplete = views::incomplete(&turn.state.value, &self.parts.observations.all());
        if incomplete.iter().any(|(node, look)| self.views.get(node) != Some(look)) {
            self.sql.force_record().await?;
        }
        self.views = incomplete;
        Ok(())
    }

    /// One step of the rule and of the list of synchronous replicas, in the order that keeps every acknowledged commit.
    async fn keep_synchronous(&mut self, turn: &Turn, facts: &ServerFacts) -> Result<bool, Trouble> {
        let state = &turn.state.value;
        let salt = &turn.secrets.value.name_salt;
        if self.part.ledger.ledger().promised > state.rule.epoch {
            return Ok(false);
        }
        let (Some(written), Some(me)) = (facts.written, state.members.get(&self.parts.me)) else { return Ok(false) };
        if state.rule.version < self.rule_at_least {
            // What this keeper sees of the state is older than what it wrote itself.
            return Ok(false);
        }
        if !self.rule_sure {
            self.write_rule(turn, sync::barrier(&state.rule)).await?;
            return Ok(true);
        }
        if !self.list_taken_up {
            // Until then the list that the server shows may not be the one by which it lets commits go.
            self.sql.wait_reload_everywhere(SETTING_DEADLINE).await?;
            self.list_taken_up = true;
            self.floors.clear();
            self.sample_again();
            return Ok(true);
        }
        let server = sync::parse(&facts.synchronous_standby_names, |name| {
            naming::node_of_application_name(name, &state.members, salt)
        });
        self.floors.retain(|node, _| server.list.contains(node));
        let voters = self.voter_facts(turn, facts);
        let view = SyncView {
            rule: &state.rule,
            server: server.clone(),
            primary_position: written,
            voters,
            settings: &state.settings,
            primary_site: me.site.clone(),
            data_nodes: cluster::decide::data_nodes(state),
            floor: self.floors.clone(),
        };
        match sync::next_step(&view) {
            SyncStep::NothingToDo => Ok(false),
            SyncStep::WaitConfirmed { node, floor } => {
                if self.floors.insert(node, floor).is_none() {
                    // An idle primary writes nothing that a replica could confirm: give it something to flush.
                    self.sql.force_record().await?;
                    self.sample_again();
                }
                Ok(false)
            }
            // What promises nothing is only for who holds the lease: others are promoted without asking the replicas then.
            SyncStep::WriteRule(rule) if rule.acks == 0 && state.rule.acks > 0 && !self.guard_unpromised(turn) => {
                Ok(false)
            }
            SyncStep::WriteServer { acks: 0, .. } if server.acks > 0 && !self.guard_unpromised(turn) => Ok(false),
            SyncStep::WriteRule(rule) => {
                tracing::info!(acks = rule.acks, voters = ?rule.voters, "durability rule changes");
                failpoint::pass("rule.writing");
                self.write_rule(turn, rule).await?;
                failpoint::pass("rule.written");
                Ok(true)
            }
            SyncStep::WriteServer { acks, list } => {
                let names = sync::render(acks, &list, |node| {
                    state.members.get(&node).map_or_else(String::new, |member| naming::application_name(salt, member))
                });
                tracing::info!(names, "synchronous list changes");
                self.write_synchronous(names, turn).await?;
                self.floors.clear();
                Ok(true)
            }
        }
    }

    /// Writes a rule, planned on exactly the one in force: if that changed meanwhile, nothing is written and all is
    /// planned anew. Until it is known what came of it, nothing may be concluded from the rule that is seen (see the
    /// head of `cluster::sync`).
    async fn write_rule(&mut self, turn: &Turn, rule: Rule) -> Result<(), Trouble> {
        self.rule_sure = false;
        let written = self
            .parts
            .store
            .update(|state| {
                // A rule that promises nothing is written under the lease, by those whose grants counted then.
                let same_electors = electors(state).eq(electors(&turn.state.value));
                let next =
                    admission::write_rule(state, &rule, clock::wall()).filter(|_| rule.acks > 0 || same_electors);
                let written = next.is_some();
                Ok((next, written))
            })
            .await?;
        if written {
            self.rule_at_least = rule.version;
            self.rule_sure = true;
        }
        self.wait_for_state_after(turn.state.version).await;
        Ok(())
    }

    async fn write_synchronous(&mut self, names: String, turn: &Turn) -> Result<(), Trouble> {
        self.sync_names = Some(names.clone());
        self.list_taken_up = false;
        let config = self.wanted_config(Role::Primary, turn)?;
        postgres::write_config(&self.parts.spec, &config)?;
        failpoint::pass("sync.file-written");
        self.written = Some(config);
        self.reload().await?;
        failpoint::pass("sync.reloaded");
        self.sql.wait_setting("synchronous_standby_names", &names, SETTING_DEADLINE).await?;
        failpoint::pass("sync.in-force");
        self.sample_again();
        Ok(())
    }

    /// Waits, within bounds, until the state written a moment ago is what this keeper sees.
    async fn wait_for_state_after(&self, version: u64) {
        let mut states = self.parts.store.changes();
        let newer = states.wait_for(|state| state.as_ref().is_some_and(|state| state.version > version));
        if tokio::time::timeout(SETTING_DEADLINE, newer).await.is_err() {
            tracing::debug!(version, "the state written was not seen yet");
        }
    }

    fn voter_facts(&mut self, turn: &Turn, facts: &ServerFacts) -> Vec<VoterFacts> {
        let state = &turn.state.value;
        let salt = &turn.secrets.value.name_salt;
        let mut voters = Vec::new();
        for member in state.members.values().filter(|member| member.id != self.parts.me && !member.witness) {
            let name = naming::application_name(salt, member);
            let sender =
                facts.senders.iter().find(|sender| sender.application_name == name && sender.state == "streaming");
            if sender.is_some() {
                self.last_streaming.insert(member.id, turn.now);
            }
            let seen = *self.last_streaming.entry(member.id).or_insert(turn.now);
            voters.push(VoterFacts {
                node: member.id,
                streaming: sender.is_some(),
                flushed: sender.and_then(|sender| sender.flush),
                unreachable_ms: turn.now.since(seen).0,
                site: member.site.clone(),
                eligible: member.may_vote_for_commits() && member.stage == Stage::Active,
            });
        }
        voters
    }

    /// Ends the membership of leaving nodes once they have stopped their server, or have long been silent.
    async fn finish_removals(&mut self, turn: &Turn) -> Result<(), Trouble> {
        let state = &turn.state.value;
        let leaving: Vec<&Member> = state.members.values().filter(|member| member.stage == Stage::Leaving).collect();
        if leaving.is_empty() {
            return Ok(());
        }
        let group = self.parts.store.view();
        for member in leaving {
            let in_group = group.voters.contains(&member.id) || group.learners.contains(&member.id);
            let in_rule = state.rule.voters.contains(&member.id);
            if in_group || in_rule || !self.has_stopped(turn, member.id) {
                continue;
            }
            let id = member.id;
            failpoint::pass("removal.forgetting");
            self.parts.store.update(|state| Ok((admission::finish_removal(state, id, clock::wall()), ()))).await?;
            failpoint::pass("removal.forgot");
        }
        Ok(())
    }

    fn has_stopped(&self, turn: &Turn, id: NodeId) -> bool {
        has_stopped(&self.parts.observations, turn.now, id)
    }
}

/// Whether a leaving node's server is known to be stopped, or the node has been silent for long.
pub(crate) fn has_stopped(observations: &crate::observations::Observations, now: model::Moment, id: NodeId) -> bool {
    let Some(observed) = observations.of(id) else { return true };
    if now.since(observed.heard_at) > LEAVING_SILENT_AFTER {
        return true;
    }
    if now.since(observed.taken_at) > SAMPLE_STALE_AFTER || running_facts(&observed.sample).is_some() {
        return false;
    }
    match observed.sample.server {
        ServerState::None | ServerState::Empty | ServerState::Stopped | ServerState::Failed { .. } => true,
        ServerState::Initialising
        | ServerState::Cloning(_)
        | ServerState::Starting
        | ServerState::Running
        | ServerState::Unresponsive { .. } => false,
    }
}
