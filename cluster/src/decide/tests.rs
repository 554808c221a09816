//! Commands, told as stories.

mod primacy;

use super::*;
use crate::fixtures::{NOW, member, name, status, three};
use model::command::NodePatch;
use model::limits::TOKENS_MAX;
use model::state::{OperationState, ReplicaKind};

/// What comes of a command: the sentence, or the refusal; notes are appended in brackets.
struct World {
    state: ClusterState,
    silent: Vec<&'static str>,
    now: WallTime,
    random: u8,
}

impl World {
    fn new() -> World {
        World { state: three(), silent: Vec::new(), now: NOW, random: 0 }
    }

    fn decide(&self, command: &Command) -> Result<(ClusterState, Outcome), Trouble> {
        let status = status(&self.state, &self.silent);
        let context = Context {
            now: self.now,
            actor: Actor { name: "ann".to_owned(), reason: String::new() },
            random: [self.random; 32],
            status: &status,
            token_addresses: Vec::new(),
            ca_sha256: String::new(),
        };
        decide(&self.state, command, &context)
    }

    fn told(&mut self, command: Command) -> String {
        match self.decide(&command) {
            Ok((next, outcome)) => {
                assert_eq!(next != self.state, outcome.changed, "{outcome:?}");
                assert_eq!(next.history.len() > self.state.history.len(), outcome.changed, "a change is remembered");
                self.state = next;
                let notes = if outcome.notes.is_empty() { String::new() } else { format!(" {:?}", outcome.notes) };
                format!("{}{}{notes}", if outcome.changed { "" } else { "(nothing to do) " }, outcome.text)
            }
            Err(trouble) => {
                assert!(!trouble.hint.is_empty(), "{trouble}");
                format!("{} exit {}: {}", trouble.code, trouble.exit, trouble.reason)
            }
        }
    }

    fn member(&mut self, id: u64) -> &mut Member {
        self.state.members.get_mut(&NodeId(id)).expect("a member")
    }
}

fn settings(change: impl FnOnce(&mut Settings)) -> Box<Settings> {
    let mut settings = Settings::default();
    change(&mut settings);
    Box::new(settings)
}

fn remove(node: &str, force: bool) -> Command {
    Command::RemoveNode { node: name(node), force }
}

fn set(node: &str, patch: NodePatch) -> Command {
    Command::SetNode { node: name(node), patch }
}

fn reinit(node: &str) -> Command {
    Command::ReinitNode { node: name(node) }
}

fn rejoin(node: &str) -> Command {
    Command::RejoinNode { node: name(node) }
}

fn halted() -> Stage {
    Stage::Halted { code: "ST3010".into(), reason: "diverged".into(), since: NOW }
}

#[test]
fn settings_are_applied_contested_and_rolled_back() {
    let mut world = World::new();
    let strict = settings(|settings| settings.strict = true);
    let apply = |settings: &Settings, expect_version| Command::ApplySettings {
        settings: Box::new(settings.clone()),
        expect_version,
    };
    assert_eq!(world.told(apply(&strict, Some(1))), "settings version 2 is in force");
    assert_eq!(
        world.told(apply(&Settings::default(), Some(1))),
        "ST2106 exit 9: the settings are at version 2, these were edited from 1"
    );
    assert_eq!(world.told(apply(&strict, None)), "(nothing to do) settings are as asked already (version 2)");
    let back = |version| Command::RollbackSettings { version };
    assert_eq!(world.told(back(1)), "settings of version 1 are in force as version 3");
    assert_eq!(world.state.settings, Settings::default());
    assert_eq!(world.told(back(1)), "(nothing to do) settings are as in version 1 already (version 3)");
    assert_eq!(world.told(back(9)), "ST2108 exit 2: settings version 9 is not kept");
    for _ in 0..SETTINGS_HISTORY_MAX {
        let next = Settings { tls: !world.state.settings.tls, ..world.state.settings.clone() };
        world.told(apply(&next, None));
    }
    assert_eq!(world.told(back(1)), "ST2108 exit 2: settings version 1 is not kept");
    assert_eq!(world.state.settings_history.len(), SETTINGS_HISTORY_MAX);
    let newest = world.state.settings_history.last().expect("kept");
    assert_eq!((newest.version, &newest.settings), (world.state.settings_version, &world.state.settings));
}

#[test]
fn tokens_are_made_bounded_and_revoked() {
    let mut world = World::new();
    let make = || Command::CreateToken { role: Role::Replica, ttl: Millis(60_000) };
    let (state, outcome) = world.decide(&make()).expect("made");
    let text = outcome.token.expect("shown");
    let (id, secret) = text.split_once('.').expect("two parts");
    let record = &state.tokens[id];
    assert_eq!(record.secret_sha256, crate::naming::sha256_hex(secret.as_bytes()));
    assert_eq!(record.expires_at, WallTime(NOW.0 + 60_000));
    assert!(!serde_json::to_string(&state).expect("written").contains(secret), "the secret is not kept");

    for count in 0..TOKENS_MAX {
        world.random = count as u8;
        world.told(make());
    }
    world.random = 200;
    assert_eq!(world.told(make()), "ST2115 exit 4: 64 join tokens are alive already");
    let first = "000000000000".to_owned();
    assert_eq!(world.told(Command::RevokeToken { id: first.clone() }), "join token 000000000000 was revoked");
    assert_eq!(world.told(Command::RevokeToken { id: first }), "ST2108 exit 2: there is no join token `000000000000`");
    assert_eq!(
        world.told(make()),
        "join token c8c8c8c8c8c8 was made for a replica, good for 1min [\"it admits one node and is shown only now\"]"
    );
    world.now = WallTime(NOW.0 + 60_000);
    world.random = 201;
    world.told(make());
    assert_eq!(world.state.tokens.len(), 1, "expired ones make room");

    let odd = |role, ttl| World::new().told(Command::CreateToken { role, ttl });
    assert_eq!(odd(Role::Primary, Millis(1)), "ST2111 exit 4: a token cannot admit a primary");
    assert_eq!(odd(Role::Witness, Millis(0)), "ST1103 exit 2: a token cannot live for 0 ms");
    assert_eq!(odd(Role::Witness, Millis(u64::MAX)), format!("ST1103 exit 2: a token cannot live for {} ms", u64::MAX));
}

#[test]
fn a_replica_is_removed_and_the_primary_is_not() {
    let mut world = World::new();
    assert_eq!(world.told(remove("n9", false)), "ST2101 exit 2: there is no node `n9`");
    assert_eq!(world.told(remove("n1", true)), "ST2104 exit 4: `n1` is the primary");
    world.member(2).upstream = Some(NodeId(3));
    assert_eq!(world.told(remove("n3", false)), "n3 is being removed [\"n2 will stream from the primary instead\"]");
    assert_eq!(world.state.members[&NodeId(3)].stage, Stage::Leaving);
    assert!(world.state.rule.voters.contains(&NodeId(3)), "the rule lets go of it in its own order");
    assert_eq!(world.told(remove("n3", false)), "(nothing to do) n3 is being removed already");
}

#[test]
fn nobody_is_removed_while_another_primary_is_made_nor_the_only_one_of_another_site_that_must_confirm() {
    let mut world = World::new();
    let claim = crate::failover::procedure::claim;
    let kind = model::failover::FailoverKind::Automatic;
    let busy = claim(&world.state, world.state.rule.epoch, kind, "it died", "stemma", NOW).expect("claimed");
    let calm = std::mem::replace(&mut world.state, busy);
    let refused = world.told(remove("n3", true));
    assert!(refused.contains("a change of primary is in progress: fo_2"), "{refused}");
    world.state = calm;
    world.member(3).site = "far".parse().expect("a site");
    (world.state.settings.strict, world.state.settings.sync_from_other_site) = (true, true);
    let refused = world.told(remove("n3", false));
    assert!(refused.contains("without `n3` all data is at one site"), "{refused}");
    world.state.settings.strict = false;
    assert!(world.told(remove("n3", false)).contains("n3 is being removed"));
}

#[test]
fn a_silent_node_is_removed_by_force_and_not_at_the_price_of_the_quorum() {
    let mut world = World::new();
    world.silent = vec!["n3"];
    assert_eq!(
        world.told(remove("n3", false)),
        "ST2116 exit 4: the keeper of `n3` does not answer, so it cannot stop its own server"
    );
    assert_eq!(world.told(remove("n2", false)), "ST2103 exit 4: without `n2` only 1 of 2 voting keepers would answer");
    assert_eq!(
        world.told(remove("n3", true)),
        "n3 is being removed [\"n3 is cut off, but what still runs there is not stopped\"]"
    );
    assert_eq!(world.told(remove("n2", false)), "n2 is being removed", "alone, n1 is its own majority");
}

#[test]
fn strict_keeps_the_replicas_that_commits_wait_for() {
    let mut world = World::new();
    world.state.settings.strict = true;
    let delay = NodePatch { kind: Some(ReplicaKind::Delayed), apply_delay_ms: Some(1_000), ..NodePatch::default() };
    assert_eq!(
        world.told(set("n3", delay.clone())),
        "n3: kind hot -> delayed, delay 0 ms -> 1000 ms [\"n3 no longer acknowledges commits and is not promoted\"]"
    );
    let last = "ST2204 exit 4: without `n2` 0 replicas could acknowledge commits, and semi-sync with strict = true \
                waits for 1";
    assert_eq!(world.told(remove("n2", false)), last);
    assert_eq!(world.told(set("n2", delay)), last);
    assert_eq!(world.told(reinit("n2")), last);
    assert_eq!(world.told(remove("n3", false)), "n3 is being removed");
    world.state.settings.strict = false;
    assert_eq!(world.told(remove("n2", false)), "n2 is being removed");
}

#[test]
fn what_a_node_is_can_be_changed_within_reason() {
    let mut world = World::new();
    world.state.members.insert(NodeId(4), Member { witness: true, postgres_port: 0, ..member(4, "w") });
    let patch = NodePatch::default;
    let upstream = |node: &str| NodePatch { upstream: Some(Some(name(node))), ..patch() };
    let kind = |kind| NodePatch { kind: Some(kind), ..patch() };
    for (node, patch, expected) in [
        ("n2", patch(), "(nothing to do) n2 is as asked already"),
        (
            "n2",
            upstream("n3"),
            "n2: upstream primary -> n3 [\"n2 no longer acknowledges commits and is not promoted\"]",
        ),
        ("n3", upstream("n2"), "ST2111 exit 4: `n3` would stream from itself by way of `n2`"),
        ("n3", upstream("n3"), "ST2111 exit 4: `n3` would stream from itself by way of `n3`"),
        ("n3", upstream("w"), "ST2111 exit 4: `w` is a witness and has nothing to stream"),
        ("n3", upstream("n9"), "ST2101 exit 2: there is no node `n9` to stream from"),
        ("n3", upstream("n1"), "(nothing to do) n3 is as asked already"),
        ("n2", NodePatch { upstream: Some(None), ..patch() }, "n2: upstream n3 -> primary"),
        ("n2", kind(ReplicaKind::Delayed), "ST1103 exit 2: a delayed replica needs a delay above zero"),
        (
            "n2",
            NodePatch { apply_delay_ms: Some(5), ..patch() },
            "ST1103 exit 2: a hot replica cannot apply changes late",
        ),
        (
            "n1",
            kind(ReplicaKind::Delayed),
            "ST2104 exit 4: `n1` is the primary: it can be neither delayed nor fed by another node",
        ),
        ("n1", upstream("n2"), "ST2104 exit 4: `n1` is the primary: it can be neither delayed nor fed by another node"),
        ("n1", kind(ReplicaKind::Standby), "n1: kind hot -> standby"),
        ("w", kind(ReplicaKind::Hot), "ST2111 exit 4: `w` is a witness: it has no kind, delay or upstream"),
        ("w", NodePatch { priority: Some(5), ..patch() }, "w: priority 100 -> 5"),
        ("n3", NodePatch { site: Some("west".parse().expect("valid")), ..patch() }, "n3: site east -> west"),
    ] {
        assert_eq!(world.told(set(node, patch)), expected);
    }
}

#[test]
fn only_a_halted_node_rejoins_and_only_a_replica_is_rebuilt() {
    let mut world = World::new();
    world.state.members.insert(NodeId(4), Member { witness: true, ..member(4, "w") });
    assert_eq!(world.told(rejoin("n2")), "ST2111 exit 4: `n2` is not halted, so there is nothing to rejoin from");
    world.member(2).stage = halted();
    assert_eq!(
        world.told(rejoin("n2")),
        "n2 checks its history and rejoins [\"it follows if it has not diverged, and is halted again if it has\"]"
    );
    assert_eq!(world.told(rejoin("n2")), "(nothing to do) n2 is rejoining already");
    assert_eq!(world.state.members[&NodeId(2)].stage, Stage::Rejoin { order: 1 });

    assert_eq!(world.told(reinit("n1")), "ST2104 exit 4: `n1` is the primary and holds what the others copy");
    assert_eq!(world.told(reinit("w")), "ST2111 exit 4: `w` is a witness: there is no database to rebuild");
    assert_eq!(world.told(reinit("n2")), "n2 is rebuilt from a fresh base backup [\"its present data is discarded\"]");
    assert_eq!(world.told(reinit("n2")), "(nothing to do) n2 is being built already");
    assert_eq!(world.state.members[&NodeId(2)].stage, Stage::Reinit { order: 2 });
    world.silent = vec!["n1"];
    assert_eq!(
        world.told(reinit("n3")),
        "ST2205 exit 1: nothing answers as the primary: without it the copy on `n3` may be the last one"
    );
}

#[test]
fn one_rolling_restart_runs_at_a_time() {
    let restart = |only_pending, nodes: &[&str]| Command::RollingRestart {
        only_pending,
        nodes: nodes.iter().map(|node| name(node)).collect(),
    };
    let mut world = World::new();
    world.state.members.insert(NodeId(4), Member { witness: true, ..member(4, "w") });
    assert_eq!(world.told(restart(true, &[])), "(nothing to do) no node needs a restart");
    assert_eq!(world.told(restart(false, &["w"])), "ST2111 exit 4: `w` is a witness and has no server to restart");
    world.silent = vec!["n3"];
    assert_eq!(
        world.told(restart(false, &[])),
        "ST2116 exit 4: the keeper of `n3` does not answer, so it cannot restart its server"
    );
    assert_eq!(world.told(restart(false, &["n2", "n1"])), "operation op_1 restarts n2, n1, one after the other");
    // The same request decided again, because the answer to its write was lost: its own operation, not a refusal.
    let (again, outcome) = world.decide(&restart(false, &["n2", "n1"])).expect("recognised");
    assert_eq!((again == world.state, outcome.operation.as_deref()), (true, Some("op_1")));
    world.random = 1;
    assert_eq!(
        world.told(restart(false, &["n2"])),
        "ST2109 exit 4: operation op_1 is running: a restart was asked for"
    );
    let cancel = |id: &str| Command::CancelOperation { id: id.to_owned() };
    assert_eq!(world.told(cancel("op_7")), "ST2108 exit 2: there is no operation `op_7`");
    assert_eq!(
        world.told(cancel("op_1")),
        "operation op_1 was cancelled [\"a step that was begun is finished; no other is begun\"]"
    );
    assert_eq!(world.told(cancel("op_1")), "(nothing to do) operation op_1 has ended already");
    assert_eq!(world.state.operations[0].state, OperationState::Cancelled);
}
