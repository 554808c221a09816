//! What is written, in which order, told as stories.

use super::*;
use crate::fixtures::{NOW, three};
use model::Epoch;

const EAST: &str = "east";
const WEST: &str = "west";

/// A primary 1 at `east` with the settings, rule and list of a story; replicas are told per act.
struct Story {
    rule: Rule,
    server: ServerSync,
    settings: Settings,
    floor: BTreeMap<NodeId, Lsn>,
    data_nodes: usize,
}

fn ids(nodes: &[u64]) -> BTreeSet<NodeId> {
    nodes.iter().map(|id| NodeId(*id)).collect()
}

fn streams(id: u64, site: &str, flushed: u64) -> VoterFacts {
    VoterFacts {
        node: NodeId(id),
        streaming: true,
        flushed: Some(Lsn(flushed)),
        unreachable_ms: 0,
        site: site.parse().expect("valid"),
        eligible: true,
    }
}

fn lost(id: u64, site: &str, for_ms: u64) -> VoterFacts {
    VoterFacts { streaming: false, unreachable_ms: for_ms, ..streams(id, site, 0) }
}

fn text(nodes: &BTreeSet<NodeId>) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(" ")
}

impl Story {
    /// At rest with `voters`, of which `acks` hold every commit.
    fn at_rest(mode: CommitMode, acks: u32, voters: &[u64]) -> Story {
        let all = voters.len() as u32;
        Story {
            rule: Rule {
                epoch: Epoch(3),
                primary: NodeId(1),
                voters: ids(voters),
                acks,
                recruit_quorum: if acks == 0 { all } else { all - acks + 1 },
                mode,
                version: 7,
            },
            server: ServerSync { acks, list: ids(if acks == 0 { &[] } else { voters }), ..ServerSync::default() },
            settings: Settings { commit_mode: mode, ..Settings::default() },
            floor: BTreeMap::new(),
            data_nodes: voters.len() + 1,
        }
    }

    fn step(&self, voters: &[VoterFacts], position: u64) -> SyncStep {
        next_step(&SyncView {
            rule: &self.rule,
            server: self.server.clone(),
            primary_position: Lsn(position),
            voters: voters.to_vec(),
            settings: &self.settings,
            primary_site: EAST.parse().expect("valid"),
            data_nodes: self.data_nodes,
            floor: self.floor.clone(),
        })
    }

    /// Carries steps out until nothing is left or a replica is waited for that does not come; tells what was done.
    fn play(&mut self, voters: &[VoterFacts], position: u64) -> Vec<String> {
        let mut told = Vec::new();
        for _ in 0..20 {
            match self.step(voters, position) {
                SyncStep::WriteRule(rule) => {
                    let Rule { voters, acks, recruit_quorum, .. } = &rule;
                    told.push(format!("rule: {acks} of [{}] hold it, recruit {recruit_quorum}", text(voters)));
                    assert_eq!(rule.version, self.rule.version + 1);
                    self.rule = rule;
                }
                SyncStep::WriteServer { acks, list } => {
                    told.push(format!("server: any {acks} of [{}]", text(&list)));
                    self.server = ServerSync { acks, list, ..ServerSync::default() };
                    self.floor.clear();
                }
                SyncStep::WaitConfirmed { node, floor } => {
                    told.push(format!("wait: {node} passes {floor}"));
                    if self.floor.insert(node, floor).is_some() {
                        return told;
                    }
                }
                SyncStep::NothingToDo => {
                    told.push("rest".to_owned());
                    return told;
                }
            }
            assert!(invariant_holds(&self.rule, &self.server), "after {told:?}");
        }
        panic!("no rest: {told:?}");
    }
}

#[test]
fn the_first_replica_is_waited_for_before_it_is_promised() {
    let mut story = Story::at_rest(CommitMode::Async, 0, &[]);
    story.settings.commit_mode = CommitMode::SemiSync;
    assert_eq!(
        story.play(&[streams(2, EAST, 100)], 100),
        ["server: any 1 of [2]", "wait: 2 passes 0/64", "rule: 1 of [2] hold it, recruit 1", "rest"]
    );
}

#[test]
fn a_replica_that_catches_up_counts_only_once_it_passed_its_floor() {
    let mut story = Story::at_rest(CommitMode::Async, 0, &[]);
    story.settings.commit_mode = CommitMode::SemiSync;
    let catching_up = VoterFacts { streaming: false, ..streams(2, EAST, 40) };
    assert_eq!(
        story.play(&[catching_up], 100),
        ["rule: 0 of [] hold it, recruit 0", "rest"],
        "not even waited for; only the mode is noted"
    );
    let behind = streams(2, EAST, 99);
    assert_eq!(story.play(&[behind], 100), ["server: any 1 of [2]", "wait: 2 passes 0/64", "wait: 2 passes 0/64"]);
    // The primary has moved on; the floor has not.
    let passed = streams(2, EAST, 100);
    assert_eq!(story.play(&[passed], 500), ["rule: 1 of [2] hold it, recruit 1", "rest"]);
}

#[test]
fn a_second_replica_enters_the_rule_before_the_list() {
    let mut story = Story::at_rest(CommitMode::SemiSync, 1, &[2]);
    story.data_nodes = 3;
    assert_eq!(
        story.play(&[streams(2, EAST, 100), streams(3, EAST, 100)], 100),
        ["rule: 1 of [2 3] hold it, recruit 2", "server: any 1 of [2 3]", "rest"]
    );
}

#[test]
fn more_acknowledgements_are_waited_for_before_they_are_promised_and_fewer_the_other_way() {
    let mut story = Story::at_rest(CommitMode::SemiSync, 1, &[2, 3]);
    story.settings.commit_mode = CommitMode::Sync;
    let both = [streams(2, EAST, 100), streams(3, EAST, 100)];
    assert_eq!(
        story.play(&both, 100),
        [
            "server: any 2 of [2 3]",
            "wait: 2 passes 0/64",
            "wait: 3 passes 0/64",
            "rule: 2 of [2 3] hold it, recruit 1",
            "rest"
        ]
    );
    story.settings.commit_mode = CommitMode::SemiSync;
    assert_eq!(story.play(&both, 100), ["rule: 1 of [2 3] hold it, recruit 2", "server: any 1 of [2 3]", "rest"]);
    story.settings.commit_mode = CommitMode::Async;
    assert_eq!(story.play(&both, 100), ["rule: 0 of [2 3] hold it, recruit 2", "server: any 0 of []", "rest"]);
}

#[test]
fn a_lost_voter_is_kept_for_its_grace_then_leaves_the_list_first_and_the_rule_last() {
    let mut story = Story::at_rest(CommitMode::SemiSync, 1, &[2, 3]);
    assert_eq!(story.play(&[streams(2, EAST, 100), lost(3, EAST, 3_000)], 100), ["rest"]);
    assert_eq!(
        story.play(&[streams(2, EAST, 100), lost(3, EAST, 3_001)], 100),
        ["server: any 1 of [2]", "wait: 2 passes 0/64", "rule: 1 of [2] hold it, recruit 1", "rest"],
        "3 may be the only holder of the last commit until 2 is confirmed"
    );
    assert_eq!(
        story.play(&[streams(2, EAST, 100), streams(3, EAST, 100)], 100),
        ["rule: 1 of [2 3] hold it, recruit 2", "server: any 1 of [2 3]", "rest"],
        "and comes back"
    );
}

#[test]
fn with_nobody_left_commits_go_on_unless_strict() {
    let gone = [lost(2, EAST, 10_000), lost(3, EAST, 10_000)];
    let mut lenient = Story::at_rest(CommitMode::SemiSync, 1, &[2, 3]);
    assert_eq!(
        lenient.play(&gone, 100),
        ["rule: 0 of [2 3] hold it, recruit 2", "server: any 0 of []", "rule: 0 of [] hold it, recruit 0", "rest"]
    );
    let mut strict = Story::at_rest(CommitMode::SemiSync, 1, &[2, 3]);
    strict.settings.strict = true;
    assert_eq!(strict.play(&gone, 100), ["rest"], "the last voters stay");
    let mut alone = Story::at_rest(CommitMode::Async, 0, &[]);
    alone.settings = Settings { commit_mode: CommitMode::SemiSync, strict: true, ..Settings::default() };
    assert_eq!(alone.play(&[], 100), ["server: any 1 of []", "rule: 0 of [] hold it, recruit 0", "rest"]);
}

#[test]
fn who_may_not_vote_leaves_even_when_it_streams() {
    let mut story = Story::at_rest(CommitMode::SemiSync, 1, &[2, 3]);
    let delayed = VoterFacts { eligible: false, ..streams(3, EAST, 100) };
    assert_eq!(
        story.play(&[streams(2, EAST, 100), delayed], 100),
        ["server: any 1 of [2]", "wait: 2 passes 0/64", "rule: 1 of [2] hold it, recruit 1", "rest"]
    );
}

#[test]
fn a_list_changed_by_hand_ends_the_promise_first() {
    let mut story = Story::at_rest(CommitMode::SemiSync, 1, &[2, 3]);
    story.server = parse("*", |_| None);
    assert_eq!(
        story.play(&[streams(2, EAST, 100), streams(3, EAST, 100)], 100),
        [
            "rule: 0 of [2 3] hold it, recruit 2",
            "server: any 1 of [2 3]",
            "wait: 2 passes 0/64",
            "rule: 1 of [2 3] hold it, recruit 2",
            "rest"
        ]
    );
}

/// Which `ANY acks (list)` each mode asks for, over replicas `e` (east, as the primary) and `w` (west).
#[test]
fn every_mode_asks_for_its_number_and_its_sites() {
    let wanted_of = |mode, strict, other_site, replicas: &[VoterFacts]| {
        let story = Story::at_rest(CommitMode::Async, 0, &[]);
        let settings = Settings { commit_mode: mode, strict, sync_from_other_site: other_site, ..Settings::default() };
        let (acks, list) = wanted(&SyncView {
            rule: &story.rule,
            server: ServerSync::default(),
            primary_position: Lsn(1),
            voters: replicas.to_vec(),
            settings: &settings,
            primary_site: EAST.parse().expect("valid"),
            data_nodes: replicas.len() + 1,
            floor: BTreeMap::new(),
        });
        format!("any {acks} of [{}]", text(&list))
    };
    let (e2, e3, w4, w5) = (streams(2, EAST, 1), streams(3, EAST, 1), streams(4, WEST, 1), streams(5, WEST, 1));
    let mixed = [e2.clone(), e3.clone(), w4.clone(), w5.clone()];
    let one_west = [e2.clone(), e3.clone(), w4.clone()];
    let local = [e2.clone(), e3.clone()];
    for (mode, strict, other_site, replicas, expected) in [
        (CommitMode::Async, false, false, &mixed[..], "any 0 of []"),
        (CommitMode::SemiSync, false, false, &mixed, "any 1 of [2 3 4 5]"),
        (CommitMode::Quorum, false, false, &mixed, "any 2 of [2 3 4 5]"),
        (CommitMode::Quorum, false, false, &one_west, "any 2 of [2 3 4]"),
        (CommitMode::Sync, false, false, &mixed, "any 4 of [2 3 4 5]"),
        (CommitMode::SemiSync, false, true, &mixed, "any 1 of [4 5]"),
        (CommitMode::SemiSync, false, true, &local, "any 1 of [2 3]"),
        // Two of two in the east would satisfy 2; three of them cannot.
        (CommitMode::SemiSync, true, true, &local, "any 3 of [2 3]"),
        (CommitMode::Quorum, false, true, &mixed, "any 2 of [4 5]"),
        (CommitMode::Quorum, false, true, &one_west, "any 3 of [2 3 4]"),
        (CommitMode::Sync, false, true, &mixed, "any 4 of [2 3 4 5]"),
    ] {
        let found = wanted_of(mode, strict, other_site, replicas);
        assert_eq!(found, expected, "{mode} strict={strict} other_site={other_site}");
    }
}

#[test]
fn lists_read_back_as_written_and_foreign_ones_are_known_as_such() {
    let name = |id: NodeId| format!("stemma_n{id}_0a1b2c3d");
    let resolve = |text: &str| (2..=9).map(NodeId).find(|id| text.eq_ignore_ascii_case(&name(*id)));
    for (acks, list, raw) in [
        (0, ids(&[]), String::new()),
        (1, ids(&[2, 3]), r#"ANY 1 ("stemma_n2_0a1b2c3d","stemma_n3_0a1b2c3d")"#.to_owned()),
        (2, ids(&[]), format!(r#"ANY 2 ("{NOBODY}")"#)),
    ] {
        assert_eq!(render(acks, &list, name), raw);
        assert_eq!(parse(&raw, resolve), ServerSync { acks, list, raw, strangers: false });
    }
    for foreign in [
        "*",
        "stemma_n2_0a1b2c3d",
        "FIRST 1 (stemma_n2_0a1b2c3d)",
        "1 (stemma_n2_0a1b2c3d)",
        "ANY 1 (stemma_n2_0a1b2c3d, mallory)",
        "ANY 1 (stemma_n2_0a1b2c3d, \"Stemma_N2_0a1b2c3d\")",
        "ANY 0 (stemma_n2_0a1b2c3d)",
        "ANY 1 stemma_n2_0a1b2c3d",
    ] {
        let sync = parse(foreign, resolve);
        assert!(sync.strangers, "{foreign}");
        assert!(!invariant_holds(&three().rule, &sync), "{foreign} covers no promise");
    }
}

#[test]
fn a_rule_made_from_an_older_one_is_not_written() {
    let state = three();
    let newer = Rule { version: 2, acks: 0, ..state.rule.clone() };
    let written = crate::admission::write_rule(&state, &newer, NOW).expect("the next version");
    assert_eq!(written.rule, newer);
    assert_eq!(written.history.last().expect("told").kind, "durability-lowered");
    assert_eq!(crate::admission::write_rule(&written, &newer, NOW), None);
    let other_epoch = Rule { version: 3, epoch: Epoch(9), ..newer };
    assert_eq!(crate::admission::write_rule(&written, &other_epoch, NOW), None);
}

/// By trying every set of replicas: none of the size asked for is of one site only, wherever another site has anyone.
#[test]
fn with_another_site_no_commit_is_held_at_one_site_only() {
    let story = Story::at_rest(CommitMode::Async, 0, &[]);
    for (mode, strict, sites) in CommitMode::ALL
        .into_iter()
        .flat_map(|mode| [false, true].map(|strict| (mode, strict)))
        .flat_map(|(mode, strict)| (0u32..32).map(move |sites| (mode, strict, sites)))
    {
        let site_of = |index: u64| if sites >> index & 1 == 0 { EAST } else { WEST };
        let replicas: Vec<VoterFacts> = (0..5).map(|index| streams(index + 2, site_of(index), 1)).collect();
        let settings = Settings { commit_mode: mode, strict, sync_from_other_site: true, ..Settings::default() };
        let (acks, list) = wanted(&SyncView {
            rule: &story.rule,
            server: ServerSync::default(),
            primary_position: Lsn(1),
            voters: replicas.clone(),
            settings: &settings,
            primary_site: EAST.parse().expect("valid"),
            data_nodes: 6,
            floor: BTreeMap::new(),
        });
        let local = list.iter().filter(|node| site_of(node.0 - 2) == EAST).count() as u32;
        let others = list.len() as u32 - local;
        let somebody = sites != 0 && mode != CommitMode::Async;
        let told = format!("{mode} strict={strict} sites={sites:05b}: any {acks} of {list:?}");
        assert!(acks >= acks_asked(mode, 6, 0) || mode == CommitMode::Sync, "{told}");
        assert!(!somebody || (others >= 1 && acks > local), "{told}");
        assert!(!somebody || acks as usize <= list.len(), "can be reached: {told}");
    }
}
