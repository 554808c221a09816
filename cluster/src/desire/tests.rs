//! The life of a server, told as situations and what follows from each.

use super::*;
use crate::scenes::{facts, state};
use model::WallTime;

const OURS: SystemId = SystemId(7);

struct Story {
    state: ClusterState,
}

impl Story {
    fn new() -> Story {
        let mut state = state(3);
        state.identity.system_id = Some(OURS);
        Story { state }
    }

    fn stage(mut self, id: u64, stage: Stage) -> Story {
        self.state.members.get_mut(&NodeId(id)).expect("member").stage = stage;
        self
    }

    fn look<'a>(&'a self, me: u64, data: Data, process: Process<'a>) -> Situation<'a> {
        Situation {
            me: NodeId(me),
            state: &self.state,
            data,
            process,
            reinit_begun: 0,
            lineage: Lineage::Unknown,
            history_known: false,
            upstream_ready: true,
            starved: false,
            ahead: false,
        }
    }
}

fn control(was_primary: bool) -> Control {
    Control { system_id: OURS, major: 15, was_primary, timeline: Timeline(1), position: Lsn(100) }
}

fn present() -> Data {
    Data::Present(control(false))
}

fn halted() -> Stage {
    Stage::Halted { code: "ST3010".into(), reason: "diverged".into(), since: WallTime(0) }
}

#[test]
fn the_first_node_makes_a_database_once_and_never_again() {
    let mut story = Story::new().stage(1, Stage::Joining);
    story.state.identity.system_id = None;
    assert_eq!(desire(&story.look(1, Data::Empty, Process::Stopped)), Desire::InitDb);
    assert_eq!(
        desire(&story.look(1, Data::Present(control(true)), Process::Stopped)),
        Desire::RecordIdentity { system_id: OURS, major: 15 }
    );
    assert!(matches!(desire(&story.look(2, Data::Empty, Process::Stopped)), Desire::Wait(_)), "others wait for it");
    // Its data vanished later: a new database would be a silent wipe of the cluster.
    let story = Story::new();
    let Desire::Wait(why) = desire(&story.look(1, Data::Empty, Process::Stopped)) else { panic!("must wait") };
    assert_eq!(why, "the data directory is empty, but this node held database 7");
}

#[test]
fn a_replica_clones_starts_and_becomes_a_member() {
    let story = Story::new().stage(2, Stage::Joining);
    let mut unready = story.look(2, Data::Empty, Process::Stopped);
    unready.upstream_ready = false;
    assert!(matches!(desire(&unready), Desire::Wait(_)));
    assert_eq!(desire(&story.look(2, Data::Empty, Process::Stopped)), Desire::Clone);
    assert_eq!(desire(&story.look(2, Data::HalfMade, Process::Stopped)), Desire::DiscardHalfMade);
    assert_eq!(desire(&story.look(2, present(), Process::Stopped)), Desire::Start(Role::Replica));
    assert!(matches!(desire(&story.look(2, present(), Process::Starting)), Desire::Wait(_)));
    let streaming = facts(&story.state, 2);
    assert_eq!(desire(&story.look(2, present(), Process::Running(&streaming))), Desire::MarkActive);
    let mut alone = streaming.clone();
    alone.receiver = None;
    assert_eq!(desire(&story.look(2, present(), Process::Running(&alone))), Desire::Serve(Role::Replica));
    let story = story.stage(2, Stage::Active);
    assert_eq!(desire(&story.look(2, present(), Process::Running(&streaming))), Desire::Serve(Role::Replica));
}

#[test]
fn a_foreign_database_is_never_started() {
    let story = Story::new();
    let foreign = Data::Present(Control { system_id: SystemId(8), ..control(false) });
    let Desire::Halt { code, reason } = desire(&story.look(2, foreign.clone(), Process::Stopped)) else {
        panic!("must halt")
    };
    assert_eq!((code, reason.as_str()), ("ST3011", "the data directory holds database 8, this cluster is database 7"));
    assert!(matches!(desire(&story.look(2, foreign, Process::Starting)), Desire::Stop(_)));
}

#[test]
fn a_copy_that_wrote_on_its_own_is_compared_before_it_starts() {
    let story = Story::new();
    let wrote = || Data::Present(control(true));
    let mut look = story.look(2, wrote(), Process::Stopped);
    assert_eq!(desire(&look), Desire::CheckLineage);
    look.lineage = Lineage::Follows;
    assert_eq!(desire(&look), Desire::Start(Role::Replica));
    look.lineage = Lineage::Diverged { reason: "ahead".into() };
    assert_eq!(desire(&look), Desire::Halt { code: "ST3010", reason: "ahead".into() });
    // An old primary that crashed, and does not hear the new one at the moment.
    look.history_known = true;
    assert!(matches!(desire(&look), Desire::Wait(_)), "it is brought back, not halted");
    // The same for one that a person sends back.
    let story = story.stage(2, Stage::Rejoin { order: 4 });
    assert_eq!(desire(&story.look(2, present(), Process::Stopped)), Desire::CheckLineage);
}

#[test]
fn a_server_promoted_by_hand_is_halted() {
    let story = Story::new();
    let mut promoted = facts(&story.state, 2);
    promoted.in_recovery = false;
    promoted.timeline = Timeline(2);
    let Desire::Halt { code, reason } = desire(&story.look(2, present(), Process::Running(&promoted))) else {
        panic!("must halt")
    };
    assert_eq!(code, "ST3022");
    assert_eq!(reason, "the server accepts writes on timeline 2 though n1 is the primary: it was promoted by hand");
    let story = story.stage(2, halted());
    assert!(matches!(desire(&story.look(2, present(), Process::Running(&promoted))), Desire::Stop(_)));
    assert!(matches!(desire(&story.look(2, present(), Process::Stopped)), Desire::Wait(_)));
}

#[test]
fn a_rebuild_waits_until_nobody_counts_on_the_node_and_wipes_once() {
    let mut story = Story::new().stage(2, Stage::Reinit { order: 5 });
    let running = facts(&story.state, 2);
    assert!(story.state.rule.voters.contains(&NodeId(2)), "the scene makes it a voter");
    assert!(matches!(desire(&story.look(2, present(), Process::Running(&running))), Desire::Wait(_)));
    story.state.rule.voters.remove(&NodeId(2));
    assert_eq!(desire(&story.look(2, present(), Process::Running(&running))), Desire::Wipe { order: 5 });
    let mut begun = story.look(2, Data::Empty, Process::Stopped);
    begun.reinit_begun = 5;
    assert_eq!(desire(&begun), Desire::Clone);
    let mut cloned = story.look(2, present(), Process::Running(&running));
    cloned.reinit_begun = 5;
    assert_eq!(desire(&cloned), Desire::MarkActive, "the order is fulfilled, not repeated");
}

#[test]
fn who_leaves_stops_first_and_a_witness_has_nothing_to_stop() {
    let story = Story::new().stage(3, Stage::Leaving);
    let running = facts(&story.state, 3);
    assert!(matches!(desire(&story.look(3, present(), Process::Running(&running))), Desire::Stop(_)));
    assert_eq!(desire(&story.look(3, present(), Process::Stopped)), Desire::Leave);
    let mut story = Story::new().stage(3, Stage::Joining);
    story.state.members.get_mut(&NodeId(3)).expect("member").witness = true;
    assert_eq!(desire(&story.look(3, Data::Empty, Process::Stopped)), Desire::MarkActive);
}

#[test]
fn a_starved_replica_asks_whether_it_may_follow_at_all() {
    let story = Story::new();
    let mut alone = facts(&story.state, 2);
    alone.receiver = None;
    let mut look = story.look(2, present(), Process::Running(&alone));
    assert_eq!(desire(&look), Desire::Serve(Role::Replica));
    look.starved = true;
    assert_eq!(desire(&look), Desire::CheckLineage);
    look.lineage = Lineage::Follows;
    assert_eq!(desire(&look), Desire::Serve(Role::Replica));
    look.lineage = Lineage::Diverged { reason: "fork".into() };
    assert_eq!(desire(&look), Desire::Halt { code: "ST3010", reason: "fork".into() });
}

#[test]
fn a_replica_ahead_of_its_primary_asks_and_one_without_log_serves_what_it_has() {
    let story = Story::new();
    let following = facts(&story.state, 2);
    let mut look = story.look(2, present(), Process::Running(&following));
    look.ahead = true;
    assert_eq!(desire(&look), Desire::CheckLineage);
    (look.starved, look.lineage) = (true, Lineage::LogGone { reason: "removed".into() });
    assert_eq!(desire(&look), Desire::Serve(Role::Replica));
    look.process = Process::Stopped;
    look.data = Data::Present(control(true));
    assert_eq!(desire(&look), Desire::Start(Role::Replica));
}
