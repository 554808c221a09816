//! An embedded group in one process: its members talk through memory, each has a directory of its own.

use consensus::contract::{self, until};
use consensus::embedded::{Embedded, EmbeddedConfig, Timing};
use consensus::{BoxFuture, Consensus, StoreError, Transport, WriteError};
use model::names::NodeId;
use model::units::Millis;
use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

/// Slower than a test alone would need: many tests share few cores.
const TIMING: Timing = Timing {
    heartbeat: Millis(100),
    election_min: Millis(500),
    election_max: Millis(900),
    request_deadline: Millis(6_000),
    catch_up_deadline: Millis(10_000),
};

/// The wires between members. A link is cut by naming it; answers are lost by naming whose.
#[derive(Default)]
struct Wires {
    nodes: Mutex<BTreeMap<NodeId, Weak<Embedded>>>,
    isolated: Mutex<BTreeSet<NodeId>>,
    /// The answers to this many calls from this node are dropped after the call has been served.
    lose_answers_of: Mutex<Option<(NodeId, u32)>>,
    /// Every answer takes this long.
    answers_take: Mutex<Duration>,
    /// Machines that are gone: who calls them waits for as long as it is willing to.
    gone: Mutex<BTreeSet<NodeId>>,
    /// How long those calls of them waited that were not given up before.
    waited_out: Mutex<Vec<Duration>>,
}

struct Wire {
    from: NodeId,
    wires: Arc<Wires>,
}

impl Wires {
    fn open(&self, from: NodeId, to: NodeId) -> bool {
        let isolated = self.isolated.lock().expect("lock");
        from == to || !(isolated.contains(&from) || isolated.contains(&to))
    }

    fn is_gone(&self, node: NodeId) -> bool {
        self.gone.lock().expect("lock").contains(&node)
    }

    fn loses_answer(&self, from: NodeId) -> bool {
        let mut losing = self.lose_answers_of.lock().expect("lock");
        match losing.as_mut() {
            Some((node, left)) if *node == from && *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        }
    }
}

impl Transport for Wire {
    fn call(&self, to: NodeId, payload: Vec<u8>, timeout: Duration) -> BoxFuture<'_, Result<Vec<u8>, String>> {
        Box::pin(async move {
            if self.wires.is_gone(self.from) || self.wires.is_gone(to) {
                tokio::time::sleep(timeout).await;
                self.wires.waited_out.lock().expect("lock").push(timeout);
                return Err("no connection in time".into());
            }
            if !self.wires.open(self.from, to) {
                return Err("the link is cut".into());
            }
            let node = self.wires.nodes.lock().expect("lock").get(&to).and_then(Weak::upgrade);
            let answer = node.ok_or("nobody is there")?.handle(self.from, payload).await;
            let takes = *self.wires.answers_take.lock().expect("lock");
            tokio::time::sleep(takes).await;
            if !self.wires.open(self.from, to) || self.wires.loses_answer(self.from) {
                return Err("the answer is lost".into());
            }
            Ok(answer)
        })
    }
}

struct Group {
    wires: Arc<Wires>,
    root: tempfile::TempDir,
    timing: Timing,
}

impl Group {
    fn new() -> Group {
        Group { wires: Arc::default(), root: tempfile::tempdir().expect("temporary directory"), timing: TIMING }
    }

    fn directory(&self, id: u64) -> PathBuf {
        self.root.path().join(id.to_string())
    }

    async fn try_open(&self, id: u64) -> Result<Arc<Embedded>, StoreError> {
        let transport = Arc::new(Wire { from: NodeId(id), wires: self.wires.clone() });
        let config = EmbeddedConfig { id: NodeId(id), directory: self.directory(id), transport, timing: self.timing };
        let node = Embedded::open(config).await?;
        self.wires.nodes.lock().expect("lock").insert(NodeId(id), Arc::downgrade(&node));
        Ok(node)
    }

    async fn open(&self, id: u64) -> Arc<Embedded> {
        self.try_open(id).await.expect("the store opens")
    }

    /// A group of voters `1..=count`, all of which are up.
    async fn of(count: u64) -> (Group, Vec<Arc<Embedded>>) {
        Group::timed(count, TIMING).await
    }

    /// The same with other patience.
    async fn timed(count: u64, timing: Timing) -> (Group, Vec<Arc<Embedded>>) {
        let group = Group { timing, ..Group::new() };
        let mut nodes = vec![group.open(1).await];
        nodes[0].bootstrap(vec![("cluster".into(), b"born".to_vec())]).await.expect("bootstrap");
        for id in 2..=count {
            nodes.push(group.open(id).await);
        }
        nodes[0].set_members(&ids(1..=count), &ids([])).await.expect("the members join");
        until("all are up", || nodes.iter().all(|node| node.view().up && node.view().voters.len() == count as usize))
            .await;
        (group, nodes)
    }

    fn isolate(&self, id: NodeId) {
        self.wires.isolated.lock().expect("lock").insert(id);
    }

    fn heal(&self) {
        self.wires.isolated.lock().expect("lock").clear();
    }
}

fn ids(ids: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
    ids.into_iter().map(NodeId).collect()
}

fn leader_among(nodes: &[Arc<Embedded>]) -> Option<usize> {
    nodes.iter().position(|node| node.is_leader())
}

async fn leader_of(nodes: &[Arc<Embedded>]) -> usize {
    until("a leader is elected", || leader_among(nodes).is_some()).await;
    leader_among(nodes).expect("a leader")
}

async fn text(node: &Embedded, key: &str) -> String {
    let document = node.read(key).await.expect("the store answers").expect("the document is there");
    String::from_utf8(document.body.to_vec()).expect("text")
}

/// A disk that syncs slowly, or a busy machine: every answer takes longer than lies between two heartbeats.
#[tokio::test(flavor = "multi_thread")]
async fn answers_slower_than_the_heartbeats_are_answers() {
    let (group, nodes) = Group::of(3).await;
    let leader = leader_of(&nodes).await;
    *group.wires.answers_take.lock().expect("lock") = 2 * TIMING.heartbeat.duration();
    // Of the other two one is gone, so that every answer of the last one counts.
    let gone = (0..nodes.len()).find(|index| *index != leader).expect("another");
    group.isolate(NodeId(gone as u64 + 1));
    let mut version = nodes[leader].read("cluster").await.expect("read").expect("there").version;
    for text in ["one", "two", "three"] {
        version = nodes[leader].write("cluster", version, text.into()).await.expect("a majority confirms");
    }
    assert_eq!(text(&nodes[leader], "cluster").await, "three");
    stop_all(&nodes).await;
}

async fn stop_all(nodes: &[Arc<Embedded>]) {
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_group_keeps_the_contract() {
    let groups = Mutex::new(Vec::new());
    contract::suite(|| async {
        let (group, nodes) = Group::of(3).await;
        groups.lock().expect("lock").push(group);
        nodes.into_iter().map(|node| node as Arc<dyn Consensus>).collect()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_may_be_repeated_and_refuses_another_group() {
    let group = Group::new();
    let node = group.open(1).await;
    assert!(!node.is_initialised());
    assert!(matches!(node.read("cluster").await, Err(StoreError::Unavailable { .. })), "no group yet");
    let documents = vec![("cluster".to_owned(), b"a".to_vec()), ("secrets".to_owned(), b"b".to_vec())];
    node.bootstrap(documents.clone()).await.expect("first");
    assert!(node.is_initialised() && node.is_leader());
    node.write("cluster", 1, b"later".to_vec()).await.expect("the group works");
    node.bootstrap(documents.clone()).await.expect("again");
    node.stop().await;

    let node = group.open(1).await;
    assert!(node.is_initialised());
    node.bootstrap(documents).await.expect("after a restart");
    assert_eq!(text(&node, "cluster").await, "later", "what came later is kept");
    let other = node.bootstrap(vec![("cluster".into(), b"other".to_vec())]).await;
    assert!(matches!(other, Err(StoreError::Unavailable { .. })), "{other:?}");

    let joined = group.open(2).await;
    node.set_members(&ids([1, 2]), &ids([])).await.expect("2 joins");
    let refused = joined.bootstrap(vec![("cluster".into(), b"other".to_vec())]).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    stop_all(&[node, joined]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_stops_another_leads_and_nothing_is_lost() {
    let (_group, mut nodes) = Group::of(3).await;
    let old = nodes.remove(leader_of(&nodes).await);
    old.write("cluster", 1, b"written".to_vec()).await.expect("written");
    old.stop().await;
    let new = leader_of(&nodes).await;
    assert_eq!(text(&nodes[new], "cluster").await, "written");
    assert_eq!(nodes[1 - new].write("cluster", 2, b"and on".to_vec()).await, Ok(3), "the follower passes it on");
    stop_all(&nodes).await;
}

/// The machine of the leader is gone, so that a request to it would wait in vain for a connection: it is given up when
/// another leads.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_a_leader_that_is_gone_is_given_up_when_another_leads() {
    let patient = Timing { request_deadline: Millis(40_000), ..TIMING };
    let (group, mut nodes) = Group::timed(3, patient).await;
    let old = leader_of(&nodes).await;
    group.wires.gone.lock().expect("lock").insert(NodeId(old as u64 + 1));
    let gone = nodes.remove(old);
    assert!(nodes.iter().all(|node| node.view().leader == Some(NodeId(old as u64 + 1))), "they have not noticed");
    let write = nodes[0].write("cluster", 1, b"to whoever leads".to_vec());
    let read = nodes[1].read("cluster");
    let (written, read) = tokio::join!(write, read);
    assert_eq!(written, Ok(2));
    assert!(read.expect("the store answers").is_some());
    // Calls of the group's own are shorter by far.
    let waited = group.wires.waited_out.lock().expect("lock").clone();
    assert!(waited.iter().all(|time| *time < Duration::from_secs(10)), "{waited:?}");
    stop_all(&nodes).await;
    gone.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_group_comes_back_from_its_files() {
    let (group, nodes) = Group::of(3).await;
    // Enough for several snapshots, so that the log on disk does not begin at its beginning.
    for version in 1..=450_u64 {
        let body = format!("body {version}").into_bytes();
        assert_eq!(nodes[0].write("cluster", version, body).await, Ok(version + 1));
    }
    stop_all(&nodes).await;
    drop(nodes);
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(group.open(id).await);
        assert!(nodes.iter().all(|node| node.is_initialised()));
    }
    for node in &nodes {
        assert_eq!(text(node, "cluster").await, "body 450");
    }
    assert_eq!(nodes[2].write("cluster", 451, b"on".to_vec()).await, Ok(452));
    stop_all(&nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_learns_the_whole_state_then_votes() {
    let (group, mut nodes) = Group::of(1).await;
    for version in 1..=450_u64 {
        nodes[0].write("cluster", version, format!("body {version}").into_bytes()).await.expect("written");
    }
    let newcomer = group.open(2).await;
    nodes[0].set_members(&ids([1]), &ids([2])).await.expect("2 becomes a learner");
    let mut watched = newcomer.watch("cluster");
    let arrived = watched.wait_for(|document| document.as_ref().is_some_and(|document| document.version == 451));
    tokio::time::timeout(Duration::from_secs(20), arrived).await.expect("the state arrives").expect("it runs");
    assert_eq!(nodes[0].view().learners, [NodeId(2)]);
    assert_eq!(nodes[0].view().voters, [NodeId(1)]);

    nodes[0].set_members(&ids([1, 2]), &ids([])).await.expect("2 becomes a voter");
    nodes.push(newcomer);
    for node in &nodes {
        until("both vote", || node.view().voters == [NodeId(1), NodeId(2)] && node.view().learners.is_empty()).await;
    }
    assert_eq!(text(&nodes[1], "cluster").await, "body 450");
    stop_all(&nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_does_not_answer_never_becomes_a_voter() {
    let (_group, nodes) = Group::of(1).await;
    let refused = nodes[0].set_members(&ids([1, 9]), &ids([])).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
    assert_eq!(nodes[0].view().voters, [NodeId(1)]);
    assert_eq!(nodes[0].write("cluster", 1, b"still works".to_vec()).await, Ok(2));
    nodes[0].set_members(&ids([1]), &ids([])).await.expect("given up");
    assert_eq!(nodes[0].view().learners, []);
    stop_all(&nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_voter_cannot_be_removed() {
    let (_group, nodes) = Group::of(1).await;
    assert!(nodes[0].set_members(&ids([]), &ids([1])).await.is_err());
    assert_eq!(nodes[0].write("cluster", 1, b"still works".to_vec()).await, Ok(2));
    stop_all(&nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_is_out_and_does_not_disturb() {
    let (_group, nodes) = Group::of(3).await;
    let leader = leader_of(&nodes).await;
    let leaving = (leader + 1) % 3;
    let stay = ids((0..3).filter(|index| *index != leaving).map(|index| index as u64 + 1));
    nodes[leader].set_members(&stay, &ids([])).await.expect("removed");
    let left: Vec<NodeId> = stay.iter().copied().collect();
    assert_eq!(nodes[leader].view().voters, left);
    let term = nodes[leader].view().term;
    // Well beyond the time after which a member that hears nobody calls an election.
    until("the removed member has had time to make trouble", || nodes[leaving].view().age > Millis(2_500)).await;
    assert_eq!(nodes[leader].view().term, term, "no election was forced upon the rest");
    assert_eq!(nodes[leader].write("cluster", 1, b"without it".to_vec()).await, Ok(2));
    assert!(!nodes[leaving].view().up);
    stop_all(&nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_itself_can_be_removed() {
    let (_group, mut nodes) = Group::of(3).await;
    let leader = leader_of(&nodes).await;
    let stay = ids((0..3).filter(|index| *index != leader).map(|index| index as u64 + 1));
    nodes[leader].set_members(&stay, &ids([])).await.expect("it hands over");
    nodes.remove(leader).stop().await;
    let next = leader_of(&nodes).await;
    // The rest of the change, if any was left, falls to the one who leads now.
    nodes[next].set_members(&stay, &ids([])).await.expect("completed");
    let view = nodes[next].view();
    assert_eq!((ids(view.voters.iter().map(|id| id.0)), view.learners), (stay, vec![]));
    assert_eq!(nodes[1 - next].write("cluster", 1, b"two are left".to_vec()).await, Ok(2));
    stop_all(&nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_minority_cannot_write_and_says_so_in_time() {
    let (group, nodes) = Group::of(3).await;
    let cut = leader_of(&nodes).await;
    group.isolate(NodeId(cut as u64 + 1));
    until("the cut leader notices", || !nodes[cut].view().up && !nodes[cut].is_leader()).await;
    let begun = Instant::now();
    let refused = nodes[cut].write("cluster", 1, b"minority".to_vec()).await;
    assert!(matches!(refused, Err(WriteError::Store(StoreError::NoQuorum { .. }))), "{refused:?}");
    assert!(matches!(nodes[cut].read("cluster").await, Err(StoreError::NoQuorum { .. })), "nor read what may be old");
    assert!(begun.elapsed() < 2 * TIMING.request_deadline.duration() + Duration::from_secs(3));

    let majority = (cut + 1) % 3;
    assert_eq!(nodes[majority].write("cluster", 1, b"majority".to_vec()).await, Ok(2));
    group.heal();
    until("the cut member is back", || nodes[cut].view().up).await;
    assert_eq!(text(&nodes[cut], "cluster").await, "majority");
    stop_all(&nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_is_lost_is_repeated_and_written_once() {
    let (group, nodes) = Group::of(3).await;
    let follower = (leader_of(&nodes).await + 1) % 3;
    *group.wires.lose_answers_of.lock().expect("lock") = Some((NodeId(follower as u64 + 1), 2));
    assert_eq!(nodes[follower].write("cluster", 1, b"once".to_vec()).await, Ok(2), "not a conflict with itself");
    assert_eq!(nodes[follower].read("cluster").await.expect("read").expect("there").version, 2);
    stop_all(&nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answers_are_all_lost_has_an_unknown_outcome() {
    let (group, nodes) = Group::of(3).await;
    let leader = leader_of(&nodes).await;
    let follower = (leader + 1) % 3;
    *group.wires.lose_answers_of.lock().expect("lock") = Some((NodeId(follower as u64 + 1), u32::MAX));
    let outcome = nodes[follower].write("cluster", 1, b"perhaps".to_vec()).await;
    assert!(matches!(outcome, Err(WriteError::Unknown { .. })), "{outcome:?}");
    assert_eq!(text(&nodes[leader], "cluster").await, "perhaps", "here it was written");
    stop_all(&nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_carry_on_through_the_loss_of_the_leader() {
    let (group, nodes) = Group::of(3).await;
    let cut = leader_of(&nodes).await;
    let mut writers = Vec::new();
    for (index, node) in nodes.iter().cloned().enumerate() {
        writers.push(tokio::spawn(async move {
            let mut done = 0;
            while done < 20 {
                let held = node.read("count").await;
                let Ok(held) = held else { continue };
                let (version, text) = held.map_or((0, String::new()), |document| {
                    (document.version, String::from_utf8(document.body.to_vec()).expect("text"))
                });
                let mark = format!("{index}-{done};");
                if text.contains(&mark) || node.write("count", version, (text + &mark).into_bytes()).await.is_ok() {
                    done += 1;
                }
            }
        }));
    }
    let mut watched = nodes[(cut + 1) % 3].watch("count");
    watched.wait_for(|held| held.as_ref().is_some_and(|document| document.version >= 5)).await.expect("it runs");
    group.isolate(NodeId(cut as u64 + 1));
    let others: Vec<_> = nodes.iter().enumerate().filter(|(index, _)| *index != cut).map(|(_, n)| n.clone()).collect();
    leader_of(&others).await;
    group.heal();
    for writer in writers {
        tokio::time::timeout(Duration::from_secs(60), writer).await.expect("it ends").expect("it is content");
    }
    let all = text(&nodes[cut], "count").await;
    let mut marks: Vec<&str> = all.split_terminator(';').collect();
    marks.sort_unstable();
    let count = marks.len();
    marks.dedup();
    assert_eq!((marks.len(), count), (60, 60), "each write is there once");
    stop_all(&nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_member_comes_back_under_a_new_id() {
    let (group, mut nodes) = Group::of(3).await;
    let leader = leader_of(&nodes).await;
    let wiped = (leader + 1) % 3;
    nodes[wiped].stop().await;
    std::fs::remove_dir_all(group.directory(wiped as u64 + 1)).expect("wiped");
    let fresh = group.open(4).await;
    let now = ids((0..3).filter(|index| *index != wiped).map(|index| index as u64 + 1).chain([4]));
    nodes[leader].set_members(&now, &ids([])).await.expect("exchanged");
    until("the new one is up", || fresh.view().up && ids(fresh.view().voters.iter().map(|id| id.0)) == now).await;
    assert_eq!(text(&fresh, "cluster").await, "born");
    // Without the new one there would be no majority now.
    let other = 3 - leader - wiped;
    nodes[other].stop().await;
    assert_eq!(fresh.write("cluster", 1, b"two of three".to_vec()).await, Ok(2));
    nodes[wiped] = fresh;
    stop_all(&nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_reported_and_not_used() {
    let (group, nodes) = Group::of(1).await;
    nodes[0].write("cluster", 1, vec![3; 100_000]).await.expect("written");
    stop_all(&nodes).await;
    drop(nodes);
    let file = group.directory(1).join("consensus.redb");
    let sound = std::fs::read(&file).expect("read");

    let mut garbage = sound.clone();
    garbage.iter_mut().for_each(|byte| *byte ^= 0x5A);
    let torn = sound[..sound.len() / 3].to_vec();
    let mut text = sound.clone();
    text[..512].fill(b'x');
    for (what, bytes) in [("garbage", garbage), ("torn", torn), ("overwritten head", text), ("short", vec![0; 100])] {
        std::fs::write(&file, bytes).expect("damaged");
        let opened = group.try_open(1).await;
        assert!(matches!(opened, Err(StoreError::Corrupt { .. })), "{what}: {opened:?}");
    }

    std::fs::write(&file, sound).expect("repaired");
    let node = group.open(1).await;
    assert_eq!(node.read("cluster").await.expect("read").expect("there").version, 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_another_node_or_in_use_is_refused() {
    let (group, nodes) = Group::of(1).await;
    let twice = group.try_open(1).await;
    assert!(matches!(twice, Err(StoreError::Unavailable { .. })), "{twice:?}");
    stop_all(&nodes).await;
    std::fs::rename(group.directory(1), group.directory(2)).expect("moved");
    let foreign = group.try_open(2).await;
    assert!(matches!(foreign, Err(StoreError::Unavailable { .. })), "{foreign:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_from_the_wire_is_refused_and_harms_nobody() {
    let (_group, nodes) = Group::of(2).await;
    let before = nodes[0].view();
    for payload in [vec![], vec![1; 40], vec![255; 4000]] {
        let answer = nodes[0].handle(NodeId(2), payload).await;
        assert!(!answer.is_empty(), "an answer says why");
    }
    let after = nodes[0].view();
    assert_eq!((before.term, before.leader, before.applied), (after.term, after.leader, after.applied));
    assert_eq!(nodes[1].write("cluster", 1, b"works".to_vec()).await, Ok(2));
    stop_all(&nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_members_may_be_broken_off_anywhere_and_done_again() {
    let (group, mut nodes) = Group::of(1).await;
    for id in 2..=3 {
        nodes.push(group.open(id).await);
    }
    // Each attempt lives a little longer than the one before, so they end in different places.
    for turn in 0..40_u64 {
        let wanted = if turn % 2 == 0 { ids([1, 2, 3]) } else { ids([1]) };
        let nobody = ids([]);
        let attempt = nodes[0].set_members(&wanted, &nobody);
        // Whether it came to its end does not matter here: breaking it off is the point.
        tokio::time::timeout(Duration::from_micros(turn * 500), attempt).await.ok();
    }
    let leader = leader_of(&nodes).await;
    nodes[leader].set_members(&ids([1, 2, 3]), &ids([])).await.expect("completed");
    assert_eq!(nodes[leader].view().voters, [NodeId(1), NodeId(2), NodeId(3)]);
    assert_eq!(nodes[leader].view().learners, []);
    assert_eq!(nodes[0].write("cluster", 1, b"works".to_vec()).await, Ok(2));
    stop_all(&nodes).await;
}

/// Processor time this process has used so far, all threads together.
fn processor_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("readable");
    // After the name in brackets: state is the 1st field, user and system time in hundredths are the 12th and 13th.
    let (_, fields) = stat.rsplit_once(')').expect("a name in brackets");
    let fields: Vec<u64> = fields.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    Duration::from_millis((fields[11] + fields[12]) * 10)
}

/// Set in the process that does nothing but rest: processor time is that of a process, and in the one of the tests
/// others run beside this.
const RESTING: &str = "CONSENSUS_TEST_RESTING";
/// How long a group at rest is looked at.
const REST: Duration = Duration::from_secs(5);

/// Whom each member takes for the leader, and in which term: the same before and after means that nobody was elected.
fn reign(nodes: &[Arc<Embedded>]) -> Vec<(Option<NodeId>, u64)> {
    nodes.iter().map(|node| node.view()).map(|view| (view.leader, view.term)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_at_rest_costs_next_to_nothing() {
    if std::env::var_os(RESTING).is_none() {
        let alone = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["a_group_at_rest_costs_next_to_nothing", "--exact", "--nocapture"])
            .env(RESTING, "alone")
            .output()
            .expect("it starts");
        let said = String::from_utf8_lossy(&alone.stdout);
        return assert!(alone.status.success(), "{said}\n{}", String::from_utf8_lossy(&alone.stderr));
    }
    let (_group, nodes) = Group::of(3).await;
    for attempt in 1.. {
        assert!(attempt <= 12, "no window without an election");
        let leader = &nodes[leader_of(&nodes).await];
        let before = reign(&nodes);
        // What was written until now is applied when it answers; it may have lost its place meanwhile.
        if leader.read("cluster").await.is_err() {
            continue;
        }
        let applied = leader.view().applied;
        let (begun, used) = (Instant::now(), processor_time());
        tokio::time::sleep(REST).await;
        let share = (processor_time() - used).as_secs_f64() / begun.elapsed().as_secs_f64();
        let applied_after = leader.view().applied;
        // A machine so busy that members are not heard makes them call elections, and those are written down. That is
        // not rest; on no machine are there elections all the time.
        if reign(&nodes) != before || !leader.is_leader() {
            println!("attempt {attempt}: an election: {before:?}, {:?}", reign(&nodes));
            continue;
        }
        println!("three members at rest use {:.2} % of a core", share * 100.0);
        assert!(share < 0.06, "three members in an unoptimised build use {:.1} % of a core", share * 100.0);
        assert_eq!(applied_after, applied, "rest writes nothing");
        break;
    }
    stop_all(&nodes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (group, nodes) = Group::of(1).await;
    let mode = std::fs::metadata(group.directory(1).join("consensus.redb")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    stop_all(&nodes).await;
}

/// Set in the process that is to be killed: the directory it works in.
const VICTIM: &str = "CONSENSUS_TEST_VICTIM";

/// Writes for ever, and tells each version once it is written.
async fn write_until_killed(root: PathBuf) {
    let transport = Arc::new(Wire { from: NodeId(1), wires: Arc::default() });
    let config = EmbeddedConfig { id: NodeId(1), directory: root, transport, timing: TIMING };
    let node = Embedded::open(config).await.expect("opens");
    node.bootstrap(vec![("cluster".into(), b"born".to_vec())]).await.expect("bootstrap");
    let mut version = node.read("cluster").await.expect("read").expect("there").version;
    loop {
        version = node.write("cluster", version, vec![version as u8; 5_000]).await.expect("written");
        println!("written {version}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_a_kill() {
    if let Some(root) = std::env::var_os(VICTIM) {
        return write_until_killed(root.into()).await;
    }
    let group = Group::new();
    let mut acknowledged = 1;
    for round in 1..=3_u64 {
        let mut victim = std::process::Command::new(std::env::current_exe().expect("this program"))
            .args(["what_was_acknowledged_survives_a_kill", "--exact", "--nocapture"])
            .env(VICTIM, group.directory(1))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("the victim starts");
        let output = std::io::BufReader::new(victim.stdout.take().expect("its output"));
        for line in output.lines() {
            let line = line.expect("readable");
            if let Some(version) = line.strip_prefix("written ") {
                acknowledged = version.parse().expect("a version");
                if acknowledged >= round * 150 {
                    break;
                }
            }
        }
        victim.kill().expect("killed");
        victim.wait().expect("gone");
        assert!(acknowledged >= round * 150, "the victim worked, and got on");
    }
    let node = group.open(1).await;
    let document = node.read("cluster").await.expect("read").expect("there");
    assert!(document.version >= acknowledged, "{} < {acknowledged}", document.version);
    assert_eq!(document.body.to_vec(), vec![(document.version - 1) as u8; 5_000]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_changes_of_members_at_once_end_as_one_of_them() {
    let (group, mut nodes) = Group::of(1).await;
    for id in 2..=3 {
        nodes.push(group.open(id).await);
    }
    let (leader, voters) = (nodes[0].clone(), ids([1, 2, 3]));
    let again = tokio::spawn({
        let (leader, voters) = (leader.clone(), voters.clone());
        async move { leader.set_members(&voters, &ids([])).await }
    });
    leader.set_members(&voters, &ids([])).await.expect("one");
    again.await.expect("it ends").expect("the other");
    assert_eq!(leader.view().voters, [NodeId(1), NodeId(2), NodeId(3)]);
    stop_all(&nodes).await;
}
