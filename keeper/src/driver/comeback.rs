//! How data with a history of its own comes to follow the primary: what only it holds is saved, then it is rewound, or
//! replaced by a fresh copy where that cannot be done. What nobody in the cluster knows is left to a person.

use super::primacy::{COPY_END, Primacy};
use super::{Driver, Turn};
use crate::clock;
use cluster::desire::Lineage;
use cluster::failover::order::{Own, Serving};
use cluster::history::{self, STEMMA};
use model::failover::Recruited;
use model::observe::{CloneProgress, ServerFacts};
use model::{Epoch, Lsn, NodeId, Role, Timeline, Trouble};
use postgres::comeback::{Comeback, ComebackDeadlines, Way, comeback};
use postgres::rescue::{Fork, RescueLimits, RescueOrder, Saved};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

impl Driver {
    /// The data here ends outside the history of `node`, which is the primary. `fork` is where, if it can be rewound.
    pub(super) async fn come_back(
        &mut self,
        node: NodeId,
        fork: Option<Lsn>,
        turn: &Turn,
        own: &Own,
        facts: Option<&ServerFacts>,
    ) -> Result<Primacy, Trouble> {
        let Some(holds) = own.holds else { return self.compare_histories(node, turn, own, facts).await };
        let Some(serving) = self.part.council.word_of(node, turn.now).and_then(|word| word.serving) else {
            return Ok(Primacy::Waits);
        };
        self.stop_server("its data ends outside the primary's history").await?;
        // Whatever was found when the histories were compared before is about to be untrue.
        self.lineage = Lineage::Unknown;
        if holds.position == COPY_END {
            return self.give_up_data("it was taken from a primary that is not the one to follow").await;
        }
        self.forget_older_timelines(holds, serving.epoch)?;
        failpoint::pass("comeback.begun");
        let Some(primary) = turn.state.value.members.get(&node) else { return Ok(Primacy::Waits) };
        let directory = postgres::rescue::rescue_dir(&self.parts.config.state_dir);
        let order = Comeback {
            spec: &self.parts.spec,
            source: self.endpoint(turn, primary, "rewind"),
            files: self.parts.spec.tls_files.as_ref(),
            fork: fork.map(|at| Fork { timeline: holds.timeline, at }),
            rescue: RescueOrder {
                directory: &directory,
                node: &self.parts.config.name,
                epoch: serving.epoch,
                primary: &primary.name,
                limits: RescueLimits::default(),
            },
            may_rewind: fork.is_some(),
            deadlines: ComebackDeadlines::default(),
        };
        tracing::warn!(end = %holds.position, ?fork, "the data here ends outside the primary's history; bringing it back");
        self.parts.local.set_doing(Some(format!("saving what only this node holds, then following {}", primary.name)));
        let (progress, shown) = watch::channel(CloneProgress::default());
        self.parts.local.set_clone(Some(shown));
        let came = comeback(&order, &progress, &CancellationToken::new()).await;
        self.parts.local.set_clone(None);
        self.control = None;
        let came = came?;
        failpoint::pass("comeback.saved");
        if let Saved::Bundle(bundle) = &came.saved {
            self.note_rescue(&bundle.id, bundle.counts.transactions).await?;
        }
        match came.way {
            Way::Rewound => self.follow_rewound(node, serving, turn).await,
            Way::Follow => self.attach(node, serving, turn, own).await,
            Way::Rebuild { because } => self.give_up_data(&because).await,
        }
    }

    /// Timelines that the data held before its present one must not be taken for the primary's after a rewind.
    fn forget_older_timelines(&mut self, holds: Recruited, epoch: Epoch) -> Result<(), Trouble> {
        let mut ledger = self.part.ledger.ledger().replaced(epoch);
        ledger.begun.insert(holds.timeline.0, holds.lineage);
        self.part.ledger.save(ledger)
    }

    pub(super) async fn note_rescue(&self, id: &str, transactions: u64) -> Result<(), Trouble> {
        let name = &self.parts.config.name;
        let text = format!("{transactions} transactions that only {name} held are saved: stemma rescue show {id}");
        self.parts
            .store
            .update(|state| {
                let known = state.history.iter().any(|event| event.kind == "rescue-saved" && event.text == text);
                let mut next = state.clone();
                history::record(&mut next, clock::wall(), "rescue-saved", Some(name), text.clone(), STEMMA);
                Ok(((!known).then_some(next), ()))
            })
            .await
    }

    async fn follow_rewound(&mut self, node: NodeId, serving: Serving, turn: &Turn) -> Result<Primacy, Trouble> {
        let mut ledger = self.part.ledger.ledger().replaced(serving.epoch);
        ledger.begun.insert(serving.timeline.0, serving.lineage);
        ledger.promised = ledger.promised.max(serving.epoch);
        self.part.ledger.follow(ledger, node, serving.epoch)?;
        failpoint::pass("comeback.rewound");
        self.part.council.promised(serving.epoch);
        self.part.follow = Some((node, serving.epoch));
        self.part.detached = false;
        let name = &self.parts.config.name;
        let text = format!("{name} was rewound and follows the primary of epoch {}", serving.epoch);
        self.parts
            .store
            .update(|state| {
                let mut next = state.clone();
                history::record(&mut next, clock::wall(), "node-rewound", Some(name), text.clone(), STEMMA);
                Ok((Some(next), ()))
            })
            .await?;
        self.start_as(Role::Replica, turn).await
    }

    /// What this node holds is saved and has to go; a fresh copy follows.
    pub(super) async fn give_up_data(&mut self, because: &str) -> Result<Primacy, Trouble> {
        let name = self.parts.config.name.clone();
        tracing::warn!(node = %name, because, "the data here is given up for a fresh copy");
        let text = format!("{name} is rebuilt from a fresh copy: {because}");
        self.parts
            .store
            .update(|state| {
                let mut next = state.clone();
                history::record(&mut next, clock::wall(), "node-rebuilt", Some(&name), text.clone(), STEMMA);
                Ok((Some(next), ()))
            })
            .await?;
        postgres::clone::mark_for_removal(&self.parts.node.data_dir, self.parts.spec.user.as_ref(), clock::wall())?;
        failpoint::pass("comeback.given-up");
        // Of which epoch the copy is, is known once it begins.
        self.part.ledger.save(self.part.ledger.ledger().replaced(Epoch::default()))?;
        self.control = None;
        self.lineage = Lineage::Unknown;
        Ok(Primacy::Acted)
    }

    /// What this node holds is not known from the ledger: the servers' own histories are compared. What nobody knows is
    /// never removed; where the histories part, a person settles it.
    async fn compare_histories(
        &mut self,
        node: NodeId,
        turn: &Turn,
        own: &Own,
        facts: Option<&ServerFacts>,
    ) -> Result<Primacy, Trouble> {
        match self.lineage {
            Lineage::Unknown => {
                self.data()?;
                let looked = self.check_lineage(turn, facts).await?;
                Ok(if looked { Primacy::Acted } else { Primacy::Free })
            }
            Lineage::Diverged { .. } => Ok(Primacy::Free),
            Lineage::Follows | Lineage::LogGone { .. } => {
                match self.part.council.word_of(node, turn.now).and_then(|word| word.serving) {
                    Some(serving) => self.attach(node, serving, turn, own).await,
                    None => Ok(Primacy::Waits),
                }
            }
        }
    }

    /// Before the database is copied from `source`: what lies here is forgotten, and what will lie here is known.
    pub(super) fn expect_copy(&mut self, source: NodeId, turn: &Turn) -> Result<Option<(Timeline, Epoch)>, Trouble> {
        let word = self.part.council.word_of(source, turn.now);
        let serves = word.as_ref().and_then(|word| word.serving).map(|serving| serving.epoch);
        let epoch = turn.state.value.rule.epoch.max(serves.unwrap_or_default());
        self.part.ledger.save(self.part.ledger.ledger().replaced(epoch))?;
        self.part.follow = None;
        Ok(word.and_then(|word| word.lineage))
    }

    /// A node without data obeys nothing older than what it finds: who is to feed it lets it in by that
    /// (`Ledger::may_feed`).
    pub(super) fn promise_what_is(&mut self, turn: &Turn) -> Result<(), Trouble> {
        let epoch = turn.state.value.rule.epoch;
        if let Some(ledger) = self.part.ledger.ledger().promise(epoch) {
            self.part.ledger.save(ledger)?;
            self.part.council.promised(epoch);
        }
        Ok(())
    }

    /// The copy is complete; it ends on the timeline that its source was on throughout.
    pub(super) fn copied(&mut self, lineage: Option<(Timeline, Epoch)>) -> Result<(), Trouble> {
        let Some((timeline, epoch)) = lineage else { return Ok(()) };
        let mut ledger = self.part.ledger.ledger().clone();
        ledger.begun.insert(timeline.0, epoch);
        self.part.calm = None;
        self.part.ledger.save(ledger)
    }
}
