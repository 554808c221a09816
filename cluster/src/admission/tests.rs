//! Who is let in, and who is not.

use super::*;
use crate::fixtures::{NOW, member, name, three};
use crate::tokens;
use model::{Actor, Millis};

const RANDOM: [u8; 32] = [7; 32];

fn with_token(role: Role) -> (ClusterState, String, String) {
    let mut state = three();
    let actor = Actor { name: "ann".to_owned(), reason: String::new() };
    let token = tokens::create(&mut state, role, Millis(1_000), &RANDOM, &actor, NOW).expect("made");
    (state, token.id, token.secret)
}

/// A sound request of a replica `n4`.
fn request(id: &str, secret: &str) -> JoinRequest {
    let member = member(4, "n4");
    JoinRequest {
        token_id: id.to_owned(),
        token_secret: secret.to_owned(),
        name: member.name,
        role: Role::Replica,
        kind: ReplicaKind::Hot,
        apply_delay_ms: 0,
        upstream: None,
        site: member.site,
        priority: 100,
        peer_address: member.peer_address,
        api_address: member.api_address,
        postgres_host: member.postgres_host,
        postgres_port: member.postgres_port,
        csr_pem: String::new(),
        key_fingerprint: "key4".to_owned(),
        server_major: Some(15),
        wall: NOW,
        program_version: "0.1.0".to_owned(),
    }
}

fn witness(sound: JoinRequest) -> JoinRequest {
    JoinRequest { role: Role::Witness, server_major: None, postgres_host: String::new(), postgres_port: 0, ..sound }
}

#[test]
fn a_replica_is_admitted_joins_and_leaves() {
    let (state, id, secret) = with_token(Role::Replica);
    let (state, node) = admit(&state, &request(&id, &secret), NOW).expect("admitted");
    assert_eq!(node, NodeId(4));
    assert_eq!(state.members[&node], Member { stage: Stage::Joining, ..member(4, "n4") });
    assert_eq!(state.next_node_id, 5);

    let (again, same) = admit(&state, &request(&id, &secret), WallTime(NOW.0 + 5_000)).expect("asked again, later");
    assert_eq!((again, same), (state.clone(), node));

    let active = complete(&state, node, NOW).expect("joined");
    assert_eq!(active.members[&node].stage, Stage::Active);
    assert_eq!(complete(&active, node, NOW), None);

    let mut leaving = active.clone();
    leaving.members.get_mut(&node).expect("n4").stage = Stage::Leaving;
    leaving.members.get_mut(&NodeId(3)).expect("n3").upstream = Some(node);
    leaving.rule.voters.insert(node);
    assert_eq!(finish_removal(&leaving, node, NOW), None, "the rule counts on it");
    leaving.rule.voters.remove(&node);
    let gone = finish_removal(&leaving, node, NOW).expect("left");
    assert_eq!(gone.members, three().members, "and who streamed from it follows the primary");
    let kinds: Vec<&str> = gone.history.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["cluster-made", "node-admitted", "node-joined", "node-removed"]);
    let refused = admit(&gone, &request(&id, &secret), NOW).expect_err("the token is spent");
    assert_eq!(refused.code.0, "ST8001");
}

#[test]
fn every_unfit_request_is_refused_with_its_reason() {
    let (state, id, secret) = with_token(Role::Replica);
    let sound = request(&id, &secret);
    let other = |change: fn(&mut JoinRequest)| {
        let mut changed = sound.clone();
        change(&mut changed);
        let trouble = admit(&state, &changed, NOW).expect_err("refused");
        assert!(!trouble.hint.is_empty());
        format!("{} {}", trouble.code, trouble.reason)
    };
    let unknown = format!("ST8001 join token `{id}` is not known: mistyped, revoked, or expired long ago");
    assert_eq!(other(|r| r.token_secret = "guess".into()), unknown);
    assert_eq!(
        other(|r| r.token_id = "beef".into()),
        "ST8001 join token `beef` is not known: mistyped, revoked, or expired long ago"
    );
    assert_eq!(other(|r| *r = witness(r.clone())), format!("ST8001 join token `{id}` admits a replica, not a witness"));
    assert_eq!(other(|r| r.name = name("n2")), "ST2102 a node `n2` exists at h2:7432");
    assert_eq!(other(|r| r.key_fingerprint = "key2".into()), "ST1208 the key of this node is that of member `n2`");
    assert_eq!(other(|r| r.wall.0 += 301_000), "ST2113 the clock of `n4` is 301 s ahead of the cluster's");
    assert_eq!(other(|r| r.wall.0 -= 400_000), "ST2113 the clock of `n4` is 400 s behind the cluster's");
    assert_eq!(other(|r| r.server_major = Some(16)), "ST3016 `n4` has PostgreSQL 16, the cluster runs 15");
    assert_eq!(other(|r| r.server_major = Some(12)), "ST1204 `n4` has PostgreSQL 12");
    assert_eq!(other(|r| r.server_major = None), "ST2111 `n4` asks to be a replica, yet has no database server");
    assert_eq!(other(|r| r.postgres_host = "h2".into()), "ST1201 h2:5432 is an address of node `n2`");
    assert_eq!(other(|r| r.api_address = "h3:7432".into()), "ST1201 h3:7432 is an address of node `n3`");
    assert_eq!(
        other(|r| r.api_address = r.peer_address.clone()),
        "ST1201 `n4` gives one address to two of its listeners: h4:7432, h4:7432, h4:5432"
    );
    assert_eq!(other(|r| r.upstream = Some(name("n9"))), "ST2101 there is no node `n9` to stream from");
    assert_eq!(other(|r| r.kind = ReplicaKind::Delayed), "ST1103 a delayed replica needs a delay above zero");
    assert_eq!(other(|r| r.apply_delay_ms = 5), "ST1103 a hot replica cannot apply changes late");

    let late = admit(&state, &sound, WallTime(NOW.0 + 1_000)).expect_err("expired");
    assert_eq!(late.reason, format!("join token `{id}` has expired"));
}

#[test]
fn a_token_admits_one_key() {
    let (state, id, secret) = with_token(Role::Replica);
    let (state, _) = admit(&state, &request(&id, &secret), NOW).expect("admitted");
    let thief = JoinRequest { key_fingerprint: "key5".into(), ..request(&id, &secret) };
    let refused = admit(&state, &thief, NOW).expect_err("used");
    assert_eq!((refused.code.0.as_ref(), refused.reason), ("ST8001", format!("join token `{id}` was used already")));
}

#[test]
fn a_witness_has_no_database_and_the_name_of_who_leaves_is_not_free() {
    let (mut state, id, secret) = with_token(Role::Witness);
    let sound = witness(request(&id, &secret));
    let (admitted, node) = admit(&state, &sound, NOW).expect("admitted");
    assert!(admitted.members[&node].witness);
    let with_database = JoinRequest { server_major: Some(15), ..sound.clone() };
    assert_eq!(admit(&state, &with_database, NOW).expect_err("refused").code.0, "ST2111");

    state.members.get_mut(&NodeId(3)).expect("n3").stage = Stage::Leaving;
    let refused = admit(&state, &JoinRequest { name: name("n3"), ..sound.clone() }, NOW).expect_err("refused");
    assert_eq!(refused.reason, "node `n3` is still being removed");

    for id in 4..=32 {
        state.members.insert(NodeId(id), member(id, &format!("m{id}")));
    }
    state.next_node_id = 33;
    let apart =
        JoinRequest { peer_address: "x:1".into(), api_address: "x:2".into(), key_fingerprint: "x".into(), ..sound };
    assert_eq!(admit(&state, &apart, NOW).expect_err("full").code.0, "ST2115");
}

#[test]
fn orders_are_carried_out_once_and_the_first_reason_to_halt_is_kept() {
    let mut state = three();
    state.members.get_mut(&NodeId(2)).expect("n2").stage = Stage::Reinit { order: 7 };
    assert_eq!(finish_order(&state, NodeId(2), 6, NOW), None, "an older order");
    let active = finish_order(&state, NodeId(2), 7, NOW).expect("rebuilt");
    assert_eq!(active.members, three().members);
    assert_eq!(finish_order(&active, NodeId(2), 7, NOW), None);

    let halted = halt(&active, NodeId(2), "ST3010", "diverged at 0/5000", NOW).expect("halted");
    assert_eq!(halted.history.last().expect("told").text, "n2 was halted: diverged at 0/5000 (ST3010)");
    assert_eq!(halt(&halted, NodeId(2), "ST3014", "log gone", NOW), None);
}

#[test]
fn a_cluster_begins_with_a_primary_that_waits_for_nobody() {
    let state = new_cluster(
        "test".parse().expect("valid"),
        ClusterId("c".to_owned()),
        member(1, "n1"),
        Settings::default(),
        NOW,
    );
    assert!(crate::sync::invariant_holds(&state.rule, &crate::sync::ServerSync::default()));
    let back: ClusterState = serde_json::from_str(&serde_json::to_string(&state).expect("written")).expect("read");
    assert_eq!(back, state);
}
