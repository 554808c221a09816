//! Slots over the life of a member: made, moved on, kept while it is away, and dropped before they fill the disk.

use super::*;
use crate::scenes::{AT, observed, state};
use model::settings::{Size, Span};
use model::units::{Millis, Timeline};
use std::sync::Arc;

const NOW: Moment = Moment(10_000_000);

struct World {
    state: ClusterState,
    observed: BTreeMap<NodeId, Observed>,
}

impl World {
    fn new() -> World {
        let state = state(3);
        let observed = observed(&state, NOW);
        World { state, observed }
    }
    fn facts(&mut self, id: u64) -> &mut ServerFacts {
        let seen = self.observed.get_mut(&NodeId(id)).expect("observed");
        Arc::make_mut(&mut seen.sample).facts.as_mut().expect("runs")
    }
    fn slot(&mut self, on: u64, name: &str) -> &mut Slot {
        self.facts(on).slots.iter_mut().find(|slot| slot.name == name).expect("slot")
    }
    fn silent_for(&mut self, id: u64, span: Millis) {
        let seen = self.observed.get_mut(&NodeId(id)).expect("observed");
        (seen.heard_at, seen.taken_at) = (NOW.minus(span), NOW.minus(span));
    }
    fn plan(&mut self, me: u64) -> Vec<SlotStep> {
        let facts = self.facts(me).clone();
        plan(&self.state, NodeId(me), &facts, &self.observed, |_| true, &self.state.settings, NOW)
    }
}

#[test]
fn with_all_slots_in_place_there_is_nothing_to_do() {
    let mut world = World::new();
    for node in 1..=3 {
        assert_eq!(world.plan(node), vec![], "n{node}");
    }
}

#[test]
fn every_node_makes_slots_for_every_other_data_member_it_hears() {
    let mut world = World::new();
    world.facts(2).slots.clear();
    assert_eq!(world.plan(2), ["stemma_n1_1", "stemma_n3_3"].map(|name| SlotStep::Create(name.into())));
    world.silent_for(3, Millis(5_000));
    assert_eq!(world.plan(2), [SlotStep::Create("stemma_n1_1".into())]);
    world.state.members.get_mut(&NodeId(1)).expect("member").witness = true;
    assert_eq!(world.plan(2), []);
}

#[test]
fn who_may_not_be_fed_gets_no_slot_and_keeps_the_one_that_it_has() {
    let mut world = World::new();
    let plan = |world: &mut World| {
        let facts = world.facts(2).clone();
        let may_feed = |member| member != NodeId(3);
        plan(&world.state, NodeId(2), &facts, &world.observed, may_feed, &world.state.settings, NOW)
    };
    assert_eq!(plan(&mut world), []);
    world.facts(2).slots.clear();
    assert_eq!(plan(&mut world), [SlotStep::Create("stemma_n1_1".into())]);
}

#[test]
fn idle_slots_on_a_replica_move_on_with_their_members_but_not_beyond_the_replica() {
    let mut world = World::new();
    world.slot(2, "stemma_n3_3").restart = Some(Lsn(AT.0 - (2 << 20)));
    assert_eq!(world.plan(2), [SlotStep::Advance("stemma_n3_3".into(), AT)]);
    let behind = Lsn(AT.0 - (1 << 20));
    world.facts(2).replayed = Some(behind);
    assert_eq!(world.plan(2), [SlotStep::Advance("stemma_n3_3".into(), behind)]);
    world.facts(3).timeline = Timeline(2);
    assert_eq!(world.plan(2), [], "it may have to return to where the timelines parted");
}

#[test]
fn the_slot_of_a_removed_member_goes_once_nothing_uses_it() {
    let mut world = World::new();
    world.state.members.get_mut(&NodeId(3)).expect("member").stage = Stage::Leaving;
    assert_eq!(world.plan(1), [], "still in use");
    world.slot(1, "stemma_n3_3").active = false;
    let gone = SlotStep::Drop { name: "stemma_n3_3".into(), because: "it belongs to no other member".into() };
    assert_eq!(world.plan(1), [gone]);
}

#[test]
fn slots_of_others_are_never_touched() {
    let mut world = World::new();
    let foreign = Slot { name: "backup".into(), active: false, ..world.slot(1, "stemma_n3_3").clone() };
    let logical = Slot { name: "stemma_x_9".into(), slot_type: "logical".into(), ..foreign.clone() };
    world.facts(1).slots.extend([foreign, logical]);
    assert_eq!(world.plan(1), []);
}

#[test]
fn the_slot_of_an_absent_member_is_kept_for_its_time() {
    let mut world = World::new();
    world.state.settings.slot_retention = Span(Millis::from_secs(1_800));
    world.slot(1, "stemma_n3_3").active = false;
    world.silent_for(3, Millis::from_secs(1_800));
    assert_eq!(world.plan(1), []);
    world.silent_for(3, Millis::from_secs(1_801));
    let because = "n3 was silent for longer than slot_retention = 30min".to_owned();
    assert_eq!(world.plan(1), [SlotStep::Drop { name: "stemma_n3_3".into(), because }]);
    world.observed.remove(&NodeId(3));
    assert_eq!(world.plan(1), [], "an observer that never heard n3 does not know since when it is away");
}

#[test]
fn the_slot_of_an_absent_member_is_dropped_early_when_it_keeps_too_much() {
    let mut world = World::new();
    world.state.settings.slot_retention_size = Size(1 << 30);
    let slot = world.slot(1, "stemma_n3_3");
    (slot.active, slot.retained_bytes) = (false, Some(2 << 30));
    assert_eq!(world.plan(1), [], "n3 answers: it is about to use its slot again");
    world.silent_for(3, Millis(5_000));
    assert!(
        matches!(&world.plan(1)[..], [SlotStep::Drop { because, .. }] if because.contains("slot_retention_size = 1GB"))
    );
}

#[test]
fn a_slot_whose_log_is_gone_is_dropped_to_be_made_anew() {
    let mut world = World::new();
    let slot = world.slot(1, "stemma_n3_3");
    (slot.active, slot.wal_status) = (false, Some("lost".into()));
    assert!(matches!(&world.plan(1)[..], [SlotStep::Drop { because, .. }] if because.contains("made anew")));
}
