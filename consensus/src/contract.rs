//! What every store must do, told as stories. Each implementation's tests run [`suite`] with a maker of its own.
//!
//! A story that fails panics, as a test does. The maker gives handles of several nodes to one store, which may hold
//! documents of earlier stories: every story writes under keys of its own.

use crate::{Consensus, Document, StoreError, WriteError};
use model::limits::DOCUMENT_BYTES_MAX;
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// Longest time for any one thing to be seen by everybody.
const PATIENCE: Duration = Duration::from_secs(20);
/// Increments by each node in the story of the counter.
const INCREMENTS: u64 = 25;

/// Handles to one store, seen from its nodes.
pub type Nodes = Vec<Arc<dyn Consensus>>;

/// Runs every story, each on a store from `make`, which must give at least two handles.
pub async fn suite<M, F>(make: M)
where
    M: Fn() -> F,
    F: Future<Output = Nodes>,
{
    let nodes = make().await;
    assert!(nodes.len() >= 2, "the suite looks at one store from several nodes");
    a_document_is_read_back_with_its_version(&nodes).await;
    only_the_expected_version_is_replaced(&nodes).await;
    a_write_is_seen_at_once_from_every_node(&nodes).await;
    keys_do_not_disturb_each_other(&nodes).await;
    any_bytes_are_kept(&nodes).await;
    size_is_bounded(&nodes).await;
    no_increment_is_lost(&nodes).await;
    of_rivals_one_wins(&nodes).await;
    watchers_see_every_newest_document_and_never_go_back(&nodes).await;
    a_late_watcher_begins_with_what_is_known(&nodes).await;
    the_view_says_that_the_store_works(&nodes).await;
    somebody_leads(&nodes).await;
    stop_all(&nodes).await;
    let nodes = make().await;
    a_stopped_store_says_so(&nodes).await;
    stop_all(&nodes).await;
}

async fn stop_all(nodes: &Nodes) {
    for node in nodes {
        node.stop().await;
    }
}

async fn body_of(node: &Arc<dyn Consensus>, key: &str) -> Option<(u64, Vec<u8>)> {
    let document = node.read(key).await.expect("the store answers");
    document.map(|document| (document.version, document.body.to_vec()))
}

async fn a_document_is_read_back_with_its_version(nodes: &Nodes) {
    assert_eq!(body_of(&nodes[0], "story/one").await, None);
    assert_eq!(nodes[0].write("story/one", 0, b"first".to_vec()).await, Ok(1));
    assert_eq!(body_of(&nodes[0], "story/one").await, Some((1, b"first".to_vec())));
    assert_eq!(nodes[1].write("story/one", 1, b"second".to_vec()).await, Ok(2));
    assert_eq!(body_of(&nodes[0], "story/one").await, Some((2, b"second".to_vec())));
}

async fn only_the_expected_version_is_replaced(nodes: &Nodes) {
    let key = "story/expected";
    assert_eq!(nodes[0].write(key, 3, b"x".to_vec()).await, Err(WriteError::Conflict { current: None }));
    assert_eq!(nodes[0].write(key, 0, b"there".to_vec()).await, Ok(1));
    let there = Document { version: 1, body: Arc::from(&b"there"[..]) };
    for wrong in [0, 2] {
        let refused = nodes[1].write(key, wrong, b"y".to_vec()).await;
        assert_eq!(refused, Err(WriteError::Conflict { current: Some(there.clone()) }), "expecting {wrong}");
    }
    assert_eq!(nodes[0].read(key).await, Ok(Some(there)));
}

async fn a_write_is_seen_at_once_from_every_node(nodes: &Nodes) {
    for turn in 0..10_u64 {
        let writer = &nodes[turn as usize % nodes.len()];
        let body = turn.to_string().into_bytes();
        assert_eq!(writer.write("story/seen", turn, body.clone()).await, Ok(turn + 1));
        for reader in nodes {
            assert_eq!(body_of(reader, "story/seen").await, Some((turn + 1, body.clone())));
        }
    }
}

async fn keys_do_not_disturb_each_other(nodes: &Nodes) {
    for key in ["story/a", "story/b", "story/a/below"] {
        assert_eq!(nodes[0].write(key, 0, key.as_bytes().to_vec()).await, Ok(1));
    }
    for key in ["story/a", "story/b", "story/a/below"] {
        assert_eq!(body_of(&nodes[1], key).await, Some((1, key.as_bytes().to_vec())));
    }
}

async fn any_bytes_are_kept(nodes: &Nodes) {
    let every: Vec<u8> = (0..=255).collect();
    assert_eq!(nodes[0].write("story/bytes", 0, every.clone()).await, Ok(1));
    assert_eq!(body_of(&nodes[1], "story/bytes").await, Some((1, every)));
    assert_eq!(nodes[0].write("story/bytes", 1, Vec::new()).await, Ok(2));
    assert_eq!(body_of(&nodes[1], "story/bytes").await, Some((2, Vec::new())), "empty is not absent");
}

async fn size_is_bounded(nodes: &Nodes) {
    let largest = vec![7; DOCUMENT_BYTES_MAX];
    assert_eq!(nodes[1].write("story/large", 0, largest.clone()).await, Ok(1));
    assert_eq!(body_of(&nodes[0], "story/large").await, Some((1, largest)));
    let bytes = DOCUMENT_BYTES_MAX + 1;
    let refused = nodes[1].write("story/large", 1, vec![7; bytes]).await;
    assert_eq!(refused, Err(WriteError::Store(StoreError::TooLarge { bytes, max: DOCUMENT_BYTES_MAX })));
    assert_eq!(nodes[0].write("story/large", 1, Vec::new()).await, Ok(2), "make room again");
}

/// Adds one to the counter under `key`, however often others come first.
///
/// An unknown outcome is resolved by what is read afterwards: the counter names its last writer, and nobody else can
/// have written this writer's value.
async fn increment(node: &Arc<dyn Consensus>, key: &str, writer: usize, step: u64) {
    loop {
        let held = body_of(node, key).await;
        let (version, text) = held.map_or((0, String::new()), |(version, body)| {
            (version, String::from_utf8(body).expect("the counter is text"))
        });
        let count: u64 = text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
        let mark = format!("{writer}/{step}");
        if text.split(' ').skip(1).any(|word| word == mark) {
            return;
        }
        let marks = text.split(' ').skip(1).chain([mark.as_str()]).collect::<Vec<_>>().join(" ");
        match node.write(key, version, format!("{} {marks}", count + 1).into_bytes()).await {
            Ok(_) => return,
            Err(WriteError::Conflict { .. } | WriteError::Unknown { .. }) => {}
            Err(error @ WriteError::Store(_)) => panic!("the store fails: {error}"),
        }
    }
}

async fn no_increment_is_lost(nodes: &Nodes) {
    let key = "story/counter";
    let writers: Vec<_> = nodes
        .iter()
        .cloned()
        .enumerate()
        .map(|(writer, node)| {
            tokio::spawn(async move {
                for step in 0..INCREMENTS {
                    increment(&node, key, writer, step).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("the writer finishes");
    }
    let expected = nodes.len() as u64 * INCREMENTS;
    let (version, body) = body_of(&nodes[0], key).await.expect("the counter is there");
    let text = String::from_utf8(body).expect("the counter is text");
    assert_eq!(text.split(' ').next(), Some(expected.to_string().as_str()));
    assert_eq!(version, expected, "one version per increment");
}

async fn of_rivals_one_wins(nodes: &Nodes) {
    for round in 0..10 {
        let key = format!("story/rivals/{round}");
        let rivals = nodes.iter().enumerate().map(|(rival, node)| {
            let (node, key) = (node.clone(), key.clone());
            tokio::spawn(async move { node.write(&key, 0, rival.to_string().into_bytes()).await })
        });
        let mut winners = Vec::new();
        for (rival, outcome) in futures_util::future::join_all(rivals).await.into_iter().enumerate() {
            match outcome.expect("the rival finishes") {
                Ok(version) => winners.push((rival, version)),
                Err(WriteError::Conflict { current: Some(_) }) => {}
                Err(other) => panic!("rival {rival} got {other}"),
            }
        }
        let [(winner, 1)] = winners[..] else { panic!("winners of round {round}: {winners:?}") };
        assert_eq!(body_of(&nodes[0], &key).await, Some((1, winner.to_string().into_bytes())));
    }
}

async fn watchers_see_every_newest_document_and_never_go_back(nodes: &Nodes) {
    let key = "story/watched";
    let watchers: Vec<_> = nodes.iter().map(|node| node.watch(key)).collect();
    assert!(watchers.iter().all(|watcher| watcher.borrow().is_none()));
    let followers: Vec<_> = watchers
        .into_iter()
        .map(|mut watcher| {
            tokio::spawn(async move {
                let mut newest = 0;
                while newest < 20 {
                    watcher.changed().await.expect("the store runs");
                    let seen = watcher.borrow_and_update().clone().expect("documents do not vanish");
                    assert!(seen.version > newest, "went from {newest} to {}", seen.version);
                    assert_eq!(seen.body.to_vec(), seen.version.to_string().into_bytes());
                    newest = seen.version;
                }
            })
        })
        .collect();
    for version in 0..20_u64 {
        let node = &nodes[version as usize % nodes.len()];
        assert_eq!(node.write(key, version, (version + 1).to_string().into_bytes()).await, Ok(version + 1));
    }
    for follower in followers {
        timeout(PATIENCE, follower).await.expect("every node learns of it").expect("the follower is content");
    }
}

async fn a_late_watcher_begins_with_what_is_known(nodes: &Nodes) {
    nodes[0].write("story/late", 0, b"here".to_vec()).await.expect("written");
    for node in nodes {
        let mut watcher = node.watch("story/late");
        let seen = timeout(PATIENCE, watcher.wait_for(Option::is_some)).await.expect("told in time");
        assert_eq!(seen.expect("the store runs").clone().expect("there").version, 1);
    }
}

async fn the_view_says_that_the_store_works(nodes: &Nodes) {
    for node in nodes {
        until("the view is up", || node.view().up).await;
        let view = node.view();
        assert!(!view.kind.is_empty());
        assert!(view.age.duration() < PATIENCE, "{view:?}");
    }
}

async fn somebody_leads(nodes: &Nodes) {
    until("somebody leads", || nodes.iter().any(|node| node.is_leader())).await;
    // Asked of everybody; all but the leader of an embedded group do nothing.
    let voters: BTreeSet<_> = nodes[0].view().voters.into_iter().collect();
    if !voters.is_empty() {
        for node in nodes {
            assert_eq!(node.set_members(&voters, &BTreeSet::new()).await, Ok(()), "the members are so already");
        }
    }
}

async fn a_stopped_store_says_so(nodes: &Nodes) {
    let node = &nodes[0];
    node.write("story/stopped", 0, b"kept".to_vec()).await.expect("written");
    node.stop().await;
    assert_eq!(node.read("story/stopped").await, Err(StoreError::Stopped));
    let refused = node.write("story/stopped", 1, b"lost".to_vec()).await;
    assert_eq!(refused, Err(WriteError::Store(StoreError::Stopped)));
    assert!(!node.view().up);
    node.stop().await;
}

/// Waits until `condition` holds; panics when it never does.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
