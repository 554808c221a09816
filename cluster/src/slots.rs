//! Physical slots: every node keeps log for every other data member, so that any of them can feed any other after a
//! change of roles. A slot that nobody uses holds back log until the disk is full, so each has an end.

use crate::naming::{follower_slot, is_our_slot, slot_name};
use model::follow::Follower;
use model::limits::SAMPLE_STALE_AFTER;
use model::names::NodeId;
use model::observe::{Observed, ServerFacts, Slot};
use model::settings::Settings;
use model::state::{ClusterState, Member, Stage};
use model::units::{Lsn, Moment};
use std::collections::{BTreeMap, BTreeSet};

/// A slot is moved on when it would free at least this much: each move is written to disk, and log is freed in whole
/// files of 16 MB anyway.
pub const ADVANCE_MIN_BYTES: u64 = 1 << 20;

/// One thing to do on this node's server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotStep {
    /// Make the slot, keeping log from now on.
    Create(String),
    /// Let go of log that its member has.
    Advance(String, Lsn),
    /// Remove the slot.
    Drop {
        /// Which.
        name: String,
        /// Why, for the log and the history.
        because: String,
    },
}

/// What to do with the slots of the server of `me`, whose facts are `facts`. Asked again after every sample; the steps
/// are idempotent. A member that was never heard counts as silent only for the making of new slots, not for the
/// dropping of old ones: an observer that just started knows nothing yet. Slots are made only for those that
/// `may_feed` (`Ledger::may_feed`): without one no server gets in.
pub fn plan(
    state: &ClusterState,
    me: NodeId,
    facts: &ServerFacts,
    observed: &BTreeMap<NodeId, Observed>,
    may_feed: impl Fn(NodeId) -> bool,
    settings: &Settings,
    now: Moment,
) -> Vec<SlotStep> {
    let mut steps = Vec::new();
    let wanted: BTreeMap<String, &Member> = state
        .members
        .values()
        .filter(|member| member.id != me && !member.witness && member.stage != Stage::Leaving)
        .map(|member| (slot_name(member), member))
        .collect();
    let followers: BTreeMap<String, &Follower> =
        state.followers.values().map(|follower| (follower_slot(follower), follower)).collect();
    let present: BTreeMap<&str, &Slot> = facts.slots.iter().map(|slot| (slot.name.as_str(), slot)).collect();
    let dropped = drops(&wanted, &followers, facts, observed, settings, now, &mut steps);
    for (name, member) in &wanted {
        let seen = observed.get(&member.id);
        match present.get(name.as_str()) {
            None => {
                let heard = seen.is_some_and(|seen| now.since(seen.heard_at) <= SAMPLE_STALE_AFTER);
                if heard && may_feed(member.id) {
                    steps.push(SlotStep::Create(name.clone()));
                }
            }
            Some(slot) if slot.active || dropped.contains(name.as_str()) => {}
            Some(slot) => steps.extend(advance(slot, facts, seen)),
        }
    }
    let primary = observed.get(&state.rule.primary).filter(|_| state.rule.primary != me);
    let primary = primary.and_then(|seen| seen.sample.facts.as_ref());
    for name in followers.keys() {
        match present.get(name.as_str()) {
            None => steps.push(SlotStep::Create(name.clone())),
            Some(slot) if slot.active || dropped.contains(name.as_str()) => {}
            Some(slot) => steps.extend(primary.and_then(|primary| advance_like(slot, facts, primary))),
        }
    }
    steps
}

/// A follower streams from the primary only: the others keep log for it from where the primary does.
fn advance_like(slot: &Slot, facts: &ServerFacts, primary: &ServerFacts) -> Option<SlotStep> {
    if primary.timeline != facts.timeline || primary.system_id != facts.system_id || primary.in_recovery {
        return None;
    }
    let theirs = primary.slots.iter().find(|theirs| theirs.name == slot.name)?.restart?;
    let here = if facts.in_recovery { facts.replayed } else { facts.written }?;
    let (to, from) = (theirs.min(here), slot.restart?);
    (to.lag_of(from).0 >= ADVANCE_MIN_BYTES).then(|| SlotStep::Advance(slot.name.clone(), to))
}

/// Adds the drops to `steps` and returns the names.
fn drops<'a>(
    wanted: &BTreeMap<String, &Member>,
    followers: &BTreeMap<String, &Follower>,
    facts: &'a ServerFacts,
    observed: &BTreeMap<NodeId, Observed>,
    settings: &Settings,
    now: Moment,
    steps: &mut Vec<SlotStep>,
) -> BTreeSet<&'a str> {
    let mut idle: Vec<&Slot> = facts
        .slots
        .iter()
        .filter(|slot| slot.slot_type == "physical" && !slot.active && is_our_slot(&slot.name))
        .collect();
    idle.sort_by_key(|slot| (slot.restart, slot.name.clone()));
    let mut dropped = BTreeSet::new();
    for slot in idle {
        let because = match wanted.get(&slot.name) {
            None => match followers.get(&slot.name) {
                Some(follower) => outgrown(slot, follower, settings),
                None => Some("it belongs to no other member".to_owned()),
            },
            Some(member) => outlived(slot, member, observed.get(&member.id), settings, now),
        };
        if let Some(because) = because {
            dropped.insert(slot.name.as_str());
            steps.push(SlotStep::Drop { name: slot.name.clone(), because });
        }
    }
    dropped
}

/// Why the idle slot of a member has to go, if it has to. Slots share the log they keep, so the bound is on each
/// slot and not on their sum; going from the oldest on ends as soon as the rest is within it.
fn outlived(slot: &Slot, member: &Member, seen: Option<&Observed>, settings: &Settings, now: Moment) -> Option<String> {
    if slot.wal_status.as_deref() == Some("lost") {
        return Some(format!("the log that {} needs is already gone; the slot is made anew", member.name));
    }
    let silent = now.since(seen?.heard_at);
    if silent > settings.slot_retention.0 {
        return Some(format!(
            "{} was silent for longer than slot_retention = {}",
            member.name, settings.slot_retention
        ));
    }
    let kept = slot.retained_bytes.unwrap_or(0);
    (silent > SAMPLE_STALE_AFTER && kept > settings.slot_retention_size.0).then(|| {
        let bound = settings.slot_retention_size;
        format!("{} is silent and its slot keeps {kept} bytes, more than slot_retention_size = {bound}", member.name)
    })
}

/// Why the idle slot of a follower has to go, if it has to. It is made anew at once: what was lost is copied again.
fn outgrown(slot: &Slot, follower: &Follower, settings: &Settings) -> Option<String> {
    let name = &follower.name;
    if slot.wal_status.as_deref() == Some("lost") {
        return Some(format!("the log that cluster {name} needs is already gone; the slot is made anew"));
    }
    let (kept, bound) = (slot.retained_bytes.unwrap_or(0), settings.slot_retention_size);
    (kept > bound.0).then(|| {
        format!("cluster {name} is away and its slot keeps {kept} bytes, more than slot_retention_size = {bound}")
    })
}

/// Moves an idle slot to what its member has, as far as this server itself has got.
fn advance(slot: &Slot, facts: &ServerFacts, seen: Option<&Observed>) -> Option<SlotStep> {
    let theirs = seen?.sample.facts.as_ref()?;
    // A member on another timeline may have to come back to where the timelines parted.
    if theirs.timeline != facts.timeline || theirs.system_id != facts.system_id {
        return None;
    }
    let has = if theirs.in_recovery { theirs.received } else { theirs.written }?;
    let here = if facts.in_recovery { facts.replayed } else { facts.written }?;
    let (to, from) = (has.min(here), slot.restart?);
    (to.lag_of(from).0 >= ADVANCE_MIN_BYTES).then(|| SlotStep::Advance(slot.name.clone(), to))
}

#[cfg(test)]
mod tests;
