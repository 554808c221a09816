//! Following between clusters: who is let in, who leads, what a promotion begins with.

use super::*;
use crate::decide::{Context, decide};
use crate::failover::procedure;
use crate::fixtures;
use model::failover::FailoverPhase;
use model::follow::FollowStatus;
use model::{Actor, Command, CommitMode, Rule};

const NOW: WallTime = WallTime(1_000_000);

fn followed() -> ClusterState {
    let mut state = fixtures::three();
    state.identity.system_id = Some(SystemId(7));
    state.identity.major = Some(15);
    state.rule.epoch = Epoch(5);
    state
}

fn follow() -> Follow {
    Follow {
        cluster: "shop".parse().expect("a name"),
        cluster_id: ClusterId("c-shop".into()),
        hosts: vec!["a1:5432".into(), "a2:5432".into()],
        slot: "stemma_f_dr_4".into(),
        application_name: "stemma_follower_dr_x".into(),
        epoch: Epoch(5),
        since: NOW,
        promoted: None,
    }
}

fn standby(nodes: u64) -> ClusterState {
    let mut state = fixtures::three();
    state.members.retain(|id, _| id.0 <= nodes);
    for id in 4..=nodes {
        state.members.insert(NodeId(id), fixtures::member(id, &format!("n{id}")));
    }
    state.next_node_id = nodes + 1;
    begin(&mut state, follow(), SystemId(7), 15, NOW);
    state.rule.voters.clear();
    state.rule.acks = 0;
    state.rule.recruit_quorum = 0;
    state
}

fn with_token(state: &mut ClusterState) -> (String, String) {
    let actor = Actor { name: "ann".into(), reason: String::new() };
    let token = tokens::create_follower(state, Millis(1_000), &[7; 32], &actor, NOW).expect("made");
    (token.id, token.secret)
}

fn request(token: &(String, String), key: &str, name: &str) -> FollowRequest {
    FollowRequest {
        token_id: token.0.clone(),
        token_secret: token.1.clone(),
        name: name.parse().expect("a name"),
        cluster_id: ClusterId("c-dr".into()),
        csr_pem: String::new(),
        key_fingerprint: key.into(),
        server_major: 15,
    }
}

#[test]
fn a_token_lets_one_cluster_follow_once_and_the_same_key_gets_the_same_answer() {
    let mut state = followed();
    let token = with_token(&mut state);
    let (after, follower) = register(&state, &request(&token, "key", "dr"), NOW).expect("let in");
    assert_eq!(follower_slot(&follower), format!("stemma_f_dr_{}", follower.id));
    assert!(crate::naming::is_our_slot(&follower_slot(&follower)), "dropped by itself when it follows no more");
    assert_eq!(common_names(&after), ["follower:dr"]);
    let (again, same) = register(&after, &request(&token, "key", "dr"), NOW).expect("the same answer");
    assert_eq!((again, same), (after.clone(), follower));
    let other = register(&after, &request(&token, "other", "dr2"), NOW).expect_err("spent");
    assert!(other.is("ST8001"), "{other}");
    let late = register(&state, &request(&token, "key", "dr"), WallTime(NOW.0 + 1_000)).expect_err("expired");
    assert!(late.is("ST8001") && late.reason.contains("expired"), "{late}");
    let forgotten = forget(&after, &"dr".parse().expect("a name"), "ann", NOW).expect("forgotten");
    assert!(common_names(&forgotten).is_empty());
    assert!(register(&forgotten, &request(&token, "key", "dr"), NOW).expect_err("ended").is("ST8001"));
}

#[test]
fn what_cannot_be_followed_is_refused_with_the_reason_and_the_token_is_not_spent() {
    let check = |change: &dyn Fn(&mut ClusterState, &mut FollowRequest), code: &str| {
        let mut state = followed();
        let token = with_token(&mut state);
        let mut asked = request(&token, "key", "dr");
        change(&mut state, &mut asked);
        let trouble = register(&state, &asked, NOW).expect_err("refused");
        assert!(trouble.is(code), "{code}: {trouble}");
        assert!(!trouble.hint.is_empty());
    };
    check(&|state, _| state.settings.tls = false, "ST2405");
    check(&|state, _| state.identity.system_id = None, "ST2405");
    check(&|state, _| state.follow = Some(follow()), "ST2405");
    check(&|_, asked| asked.server_major = 16, "ST3016");
    check(&|_, asked| asked.token_secret = "wrong".into(), "ST8001");
    check(
        &|state, _| {
            let follower = Follower {
                id: NodeId(99),
                name: "dr".parse().expect("a name"),
                cluster_id: ClusterId("x".into()),
                key_fingerprint: "x".into(),
                since: NOW,
            };
            state.followers.insert(NodeId(99), follower);
        },
        "ST2102",
    );
}

#[test]
fn a_token_for_nodes_lets_no_cluster_follow_nor_the_other_way_round() {
    let mut state = followed();
    let actor = Actor { name: "ann".into(), reason: String::new() };
    let node = tokens::create(&mut state, model::Role::Replica, Millis(1_000), &[8; 32], &actor, NOW).expect("made");
    let asked = request(&(node.id, node.secret), "key", "dr");
    assert!(register(&state, &asked, NOW).expect_err("for a node").is("ST8001"));
    let token = with_token(&mut state);
    let trouble = tokens::check(&state, &token.0, &token.1, model::Role::Replica, "key", NOW).err().expect("refused");
    assert!(trouble.is("ST8001") && trouble.reason.contains("admits no node"), "{trouble}");
}

fn seen(silent: u64, down: u64, holds: Option<(u32, u64)>) -> Seen {
    let holds = holds.map(|(timeline, lsn)| (Timeline(timeline), Lsn(lsn)));
    Seen { silent: Millis(silent), down: Millis(down), holds }
}

#[test]
fn a_leader_that_is_gone_is_replaced_by_the_copy_that_holds_most() {
    let state = standby(4);
    let with = |leader: Seen| {
        let all = [
            (NodeId(1), leader),
            (NodeId(2), seen(100, 0, Some((1, 900)))),
            (NodeId(3), seen(100, 0, Some((2, 800)))),
            (NodeId(4), seen(5_000, 0, Some((2, 999)))),
        ];
        successor(&state, &all.into()).map(|(node, _)| node)
    };
    assert_eq!(with(seen(100, 0, Some((2, 1000)))), None);
    assert_eq!(with(seen(LEADER_SILENT_MAX.0 - 1, 0, None)), None);
    assert_eq!(with(seen(LEADER_SILENT_MAX.0, 0, None)), Some(NodeId(3)), "the later timeline, and not the silent one");
    assert_eq!(with(seen(0, LEADER_DOWN_MAX.0, None)), Some(NodeId(3)));
    let next = replace_leader(&state, state.rule.epoch, NodeId(3), "gone", NOW).expect("replaced");
    assert_eq!((next.rule.primary, next.rule.epoch), (NodeId(3), Epoch(state.rule.epoch.0 + 1)));
    assert_eq!(replace_leader(&next, state.rule.epoch, NodeId(2), "gone", NOW), None, "another keeper was first");
    let mut plain = state.clone();
    plain.follow = None;
    assert_eq!(replace_leader(&plain, plain.rule.epoch, NodeId(3), "gone", NOW), None, "never in another cluster");
    assert_eq!(successor(&plain, &[(NodeId(1), seen(9_999, 0, None))].into()), None);
}

fn promote(state: &ClusterState, follow: Option<FollowStatus>, most: Option<u64>) -> Result<ClusterState, Trouble> {
    let mut status = fixtures::status(state, &[]);
    for node in &mut status.nodes {
        node.keeper_up = true;
        node.server = "running".into();
        node.timeline = Some(Timeline(3));
    }
    status.follow = follow;
    let context = Context {
        now: NOW,
        actor: Actor { name: "ann".into(), reason: String::new() },
        random: [1; 32],
        status: &status,
        token_addresses: Vec::new(),
        ca_sha256: String::new(),
    };
    decide(state, &Command::PromoteCluster { loss_bytes_max: most }, &context).map(|(next, _)| next)
}

fn heard(behind: Option<u64>, streaming: bool) -> FollowStatus {
    FollowStatus {
        cluster: "shop".into(),
        cluster_id: "c-shop".into(),
        hosts: Vec::new(),
        leader: None,
        streaming,
        host: None,
        behind_bytes: behind,
        silent_seconds: behind.map(|_| 4.0),
        timeline: Some(Timeline(3)),
        epoch: Some(Epoch(9)),
    }
}

#[test]
fn a_promotion_needs_the_loss_that_is_known_to_be_accepted() {
    let state = standby(2);
    let check = |behind: Option<u64>, most: Option<u64>, expected: Result<(), &str>| {
        let got = promote(&state, Some(heard(behind, false)), most).map(|_| ());
        match (got, expected) {
            (Ok(()), Ok(())) => {}
            (Err(trouble), Err(part)) => {
                assert!(trouble.is("ST2402"), "{trouble}");
                let told = format!("{trouble} {}", trouble.hint);
                assert!(told.contains(part), "{told}");
            }
            (got, expected) => panic!("{behind:?} {most:?}: {got:?} instead of {expected:?}"),
        }
    };
    check(Some(100), None, Err("--accept-data-loss 1MB"));
    check(Some(100), Some(99), Err("100 bytes of log would be missing, 99 are accepted"));
    check(Some(100), Some(100), Ok(()));
    check(Some(0), Some(0), Ok(()));
    check(None, Some(1 << 40), Err("not heard yet"));
    check(None, None, Err("--accept-data-loss unknown"));
    check(None, Some(u64::MAX), Ok(()));
    let told = promote(&state, Some(heard(Some(0), false)), None).expect_err("refused");
    assert!(told.to_string().contains("4.0 s ago"), "{told}");
}

#[test]
fn a_promotion_is_an_attempt_above_all_that_was_copied_and_ends_the_following_when_it_settles() {
    let state = standby(2);
    let begun = promote(&state, Some(heard(Some(0), false)), Some(0)).expect("begun");
    let attempt = begun.failover.clone().expect("an attempt");
    // Epoch 9 came with the copy.
    assert_eq!((attempt.epoch, attempt.phase), (Epoch(10), FailoverPhase::Recruit));
    assert_eq!(begun.lineage.iter().map(|entry| entry.epoch.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(begun.following().is_none(), "the streams may be cut from here on");
    assert_eq!(begun.role_of(NodeId(1)), Some(model::Role::Primary));
    // Taken back: it follows again.
    let undone = procedure::undo(&begun, Epoch(10), "nobody could", NOW).expect("undone");
    assert!(undone.following().is_some());
    assert_eq!(undone.role_of(NodeId(1)), Some(model::Role::Replica));
    // Settled: a cluster like any other.
    let mut chosen = begun.clone();
    let rule = Rule {
        epoch: Epoch(10),
        primary: NodeId(2),
        voters: BTreeSet::from([NodeId(1)]),
        acks: 1,
        recruit_quorum: 1,
        mode: CommitMode::SemiSync,
        version: 9,
    };
    let failover = chosen.failover.as_mut().expect("an attempt");
    failover.phase = FailoverPhase::Promote;
    failover.winner = Some(NodeId(2));
    failover.next = Some(rule.clone());
    let done = procedure::settle(&chosen, Epoch(10), &rule, Timeline(4), NOW).expect("settled");
    assert_eq!(done.follow.as_ref().and_then(|it| it.promoted.as_ref()).map(|it| it.failover.as_str()), Some("fo_10"));
    assert!(done.following().is_none());
    assert_eq!(done.role_of(NodeId(2)), Some(model::Role::Primary));
    let again = promote(&done, None, Some(0)).expect("nothing to do");
    assert_eq!(again, done);
}

#[test]
fn a_standby_cluster_has_no_primary_to_change_and_a_plain_one_cannot_be_promoted() {
    let plain = followed();
    assert!(promote(&plain, None, Some(u64::MAX)).expect_err("follows nobody").is("ST2401"));
    let state = standby(2);
    let status = fixtures::status(&state, &[]);
    let context = Context {
        now: NOW,
        actor: Actor::default(),
        random: [1; 32],
        status: &status,
        token_addresses: Vec::new(),
        ca_sha256: String::new(),
    };
    for command in
        [Command::Switchover { to: None, at: None }, Command::Failover { to: None, loss_bytes_max: Some(u64::MAX) }]
    {
        assert!(decide(&state, &command, &context).expect_err("no primary").is("ST2404"));
    }
    let token = decide(&state, &Command::CreateFollowerToken { ttl: Millis(1_000) }, &context);
    assert!(token.expect_err("follows itself").is("ST2405"));
}
