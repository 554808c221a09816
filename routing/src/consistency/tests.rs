//! Stories of what a session did and saw, and what it may read next.

use super::*;
use crate::token::{BadToken, Lineage, Point, Switch};
use model::{Epoch, LagBytes, Lsn, Moment, NodeId, ReplicaKind, Timeline};
use proptest::prelude::*;

fn point(lsn: u64) -> Point {
    Point { epoch: Epoch(1), timeline: Timeline(1), lsn: Lsn(lsn) }
}

/// A healthy replica that stood at `lsn` after the moment `taken`.
fn replica(node: u64, lsn: u64, taken: u64) -> Replica {
    Replica {
        node: NodeId(node),
        kind: ReplicaKind::Hot,
        health: Health::Up,
        epoch: Epoch(1),
        incarnation: 1,
        position: point(lsn),
        position_taken_after: Moment(taken),
        counted: true,
        lag: LagBytes(0),
    }
}

fn needed(need: Need) -> Requirement {
    match need {
        Need::Replica(requirement) => requirement,
        Need::Primary(_) | Need::Position(_) => panic!("{need:?}"),
    }
}

fn may_read(replica: &Replica, need: Need) -> Result<(), Why> {
    eligible(replica, &needed(need), &History::default())
}

#[test]
fn levels_read_back_as_they_are_printed() {
    for (text, level) in [
        ("strong", Level::Strong),
        ("SESSION", Level::Session),
        ("eventual", Level::Eventual),
        ("bounded:5s", Level::Bounded(model::Millis(5000))),
        ("bounded(250ms)", Level::Bounded(model::Millis(250))),
        ("bounded 2min", Level::Bounded(model::Millis(120_000))),
    ] {
        assert_eq!(text.parse(), Ok(level), "{text}");
        assert_eq!(level.to_string().parse(), Ok(level));
    }
    for bad in ["", "bounded", "bounded:5", "bounded:s", "bounded:-1s", "strongly", "bounded:99999999999999999999h"] {
        assert!(bad.parse::<Level>().is_err(), "{bad}");
    }
}

#[test]
fn a_session_reads_its_own_writes() {
    let mut sampler = Sampler::new(Epoch(1));
    let mut memory = Memory::default();
    let behind = replica(1, 90, 0);
    assert_eq!(may_read(&behind, memory.need(Level::Session, &sampler, &[behind], Moment(0))), Ok(()));
    memory.on_primary(&mut sampler);
    assert_eq!(memory.need(Level::Session, &sampler, &[behind], Moment(1)), Need::Position(Ack(1)));
    assert_eq!(answer(&mut sampler, Ack(1), point(100)), None);
    let need = memory.need(Level::Session, &sampler, &[behind], Moment(2));
    assert_eq!(may_read(&behind, need), Err(Why::Behind(LagBytes(10))));
    assert_eq!(may_read(&replica(1, 100, 2), need), Ok(()));
    // The other levels do not care.
    assert_eq!(may_read(&behind, memory.need(Level::Eventual, &sampler, &[behind], Moment(2))), Ok(()));
    assert_eq!(memory.need(Level::Strong, &sampler, &[], Moment(2)), Need::Primary(OnPrimary::Strong));
    assert_eq!(memory.export(&sampler, &[]), Some(point(100)));
}

/// The question that is sent now.
fn sent(sampler: &mut Sampler, ack: Ack) -> Question {
    match sampler.ask(ack) {
        Ask::Send(question) => question,
        Ask::Wait => panic!("a question is on its way"),
    }
}

/// A question is sent and answered at once; the next one, if one is due.
fn answer(sampler: &mut Sampler, ack: Ack, point: Point) -> Option<Question> {
    let question = sent(sampler, ack);
    sampler.heard(question, point)
}

#[test]
fn one_question_serves_all_who_wrote_before_it_and_nobody_after() {
    let mut sampler = Sampler::new(Epoch(1));
    let (first, second) = (sampler.acknowledged(), sampler.acknowledged());
    let question = sent(&mut sampler, first);
    assert_eq!(sampler.ask(second), Ask::Wait);
    let late = sampler.acknowledged();
    assert_eq!(sampler.ask(late), Ask::Wait);
    // The answer lies behind the first two, but perhaps before the third: another question goes out at once.
    let next = sampler.heard(question, point(50)).expect("another question");
    assert_eq!(
        [sampler.position(first), sampler.position(second), sampler.position(late)],
        [Some(point(50)), Some(point(50)), None]
    );
    assert_eq!(sampler.heard(next, point(60)), None);
    assert_eq!(sampler.position(late), Some(point(60)));
}

#[test]
fn a_failed_question_is_asked_again_and_an_old_primary_answers_nothing() {
    let mut sampler = Sampler::new(Epoch(1));
    let ack = sampler.acknowledged();
    let question = sent(&mut sampler, ack);
    sampler.failed(question);
    let question = sent(&mut sampler, ack);
    sampler.restart(Epoch(2));
    assert_eq!(sampler.heard(question, point(50)), None);
    assert_eq!(sampler.position(ack), None);
    // Also where the new one is being asked already: its own answer is what counts.
    let new = sent(&mut sampler, ack);
    assert_eq!(sampler.heard(question, point(50)), None);
    sampler.failed(question);
    assert_eq!((sampler.position(ack), sampler.ask(ack)), (None, Ask::Wait));
    // Asked of the new one, and answered by the old one.
    assert_eq!(sampler.heard(new, point(50)), None);
    assert_eq!(sampler.position(ack), None);
    let of_new = Point { epoch: Epoch(2), ..point(50) };
    assert_eq!(answer(&mut sampler, ack, of_new), None);
    assert_eq!(sampler.position(ack), Some(of_new));
}

#[test]
fn a_late_answer_covers_what_its_own_question_covered() {
    let mut sampler = Sampler::new(Epoch(1));
    let first = sampler.acknowledged();
    let given_up = sent(&mut sampler, first);
    sampler.failed(given_up);
    let later = sampler.acknowledged();
    let question = sent(&mut sampler, later);
    // The session wrote between the two questions: the answer to the first may lie before that.
    assert_eq!(sampler.heard(given_up, point(50)), None);
    assert_eq!((sampler.position(first), sampler.position(later)), (Some(point(50)), None));
    assert_eq!(sampler.heard(question, point(60)), None);
    assert_eq!(sampler.position(later), Some(point(60)));
}

#[test]
fn what_was_seen_on_one_replica_is_not_unseen_on_another() {
    let sampler = Sampler::new(Epoch(1));
    let mut memory = Memory::default();
    let (ahead, behind) = (replica(1, 100, 5), replica(2, 95, 20));
    memory.on_replica(&ahead, Level::Session, Moment(10));
    // The position known of the first was taken before the read ended: it may have shown more than 100.
    let need = memory.need(Level::Session, &sampler, &[ahead, behind], Moment(11));
    assert_eq!(needed(need).prefer, Some(NodeId(1)));
    assert_eq!(may_read(&ahead, need), Ok(()));
    assert_eq!(may_read(&behind, need), Err(Why::ReadElsewhere));
    assert_eq!(may_read(&replica(2, 999, 20), need), Err(Why::ReadElsewhere), "nobody knows what 999 is enough for");
    // Now a later position of the first is known, and others can be compared with it.
    let later = replica(1, 120, 15);
    let need = memory.need(Level::Session, &sampler, &[later, behind], Moment(16));
    assert_eq!(may_read(&behind, need), Err(Why::Behind(LagBytes(25))));
    assert_eq!(may_read(&replica(2, 120, 20), need), Ok(()));
}

#[test]
fn what_a_replica_showed_before_it_went_may_not_be_acknowledged_yet() {
    let mut sampler = Sampler::new(Epoch(1));
    let seen = replica(1, 100, 5);
    let mut memory = Memory::default();
    memory.on_replica(&seen, Level::Session, Moment(10));
    let ahead = |memory: &Memory, replicas: &[Replica], epoch, now| {
        memory.may_be_ahead_of_primary(replicas, Epoch(epoch), Moment(now))
    };
    assert!(!ahead(&memory, &[seen], 1, 20), "it is there, and acknowledges what it showed");
    assert!(ahead(&memory, &[], 1, 20));
    assert!(ahead(&memory, &[Replica { health: Health::Down, ..seen }], 1, 20));
    assert!(ahead(&memory, &[Replica { incarnation: 2, ..seen }], 1, 20));
    assert!(!ahead(&memory, &[], 2, 20), "another primary was promoted with it");
    assert!(!ahead(&memory, &[], 1, 3_010), "long ago");
    let mut failed = memory;
    failed.failed_on(NodeId(2));
    assert!(!ahead(&failed, &[seen], 1, 20));
    failed.failed_on(NodeId(1));
    assert!(ahead(&failed, &[seen], 1, 20), "nobody has told yet that it is gone");
    failed.on_primary(&mut sampler);
    assert!(!ahead(&failed, &[], 1, 20), "from now on the primary is the measure");
    let mut careless = Memory::default();
    careless.on_replica(&seen, Level::Eventual, Moment(10));
    assert!(!ahead(&careless, &[], 1, 20));
}

#[test]
fn what_a_replica_showed_before_it_went_is_looked_for_on_another_one() {
    let mut sampler = Sampler::new(Epoch(1));
    let (gone, other) = (replica(1, 100, 5), replica(2, 120, 20));
    let mut memory = Memory::default();
    memory.on_replica(&gone, Level::Session, Moment(10));
    memory.failed_on(NodeId(1));
    let need = memory.need(Level::Session, &sampler, &[gone, other], Moment(21));
    assert_eq!(may_read(&gone, need), Err(Why::Down), "it has just failed");
    assert_eq!(may_read(&other, need), Err(Why::ReadElsewhere), "how much it showed is not known");
    // The primary was at 110 after that.
    memory.settled(Some(point(110)));
    let need = memory.need(Level::Session, &sampler, &[gone, other], Moment(22));
    assert_eq!(may_read(&other, need), Ok(()));
    assert_eq!(may_read(&replica(2, 109, 20), need), Err(Why::Behind(LagBytes(1))));
    assert_eq!(may_read(&replica(1, 110, 9), need), Err(Why::Down), "nobody has told yet that it is gone");
    assert_eq!(may_read(&replica(1, 110, 11), need), Ok(()), "it has answered since");
    assert_eq!(may_read(&Replica { incarnation: 2, ..replica(1, 110, 9) }, need), Ok(()), "it is back");
    assert!(!memory.may_be_ahead_of_primary(&[gone], Epoch(1), Moment(22)), "it was waited for");
    // Once another server has served, it is one like any other.
    memory.on_primary(&mut sampler);
    answer(&mut sampler, Ack(1), point(110));
    let need = memory.need(Level::Session, &sampler, &[], Moment(30));
    assert_eq!(may_read(&replica(1, 110, 9), need), Ok(()));
}

#[test]
fn a_replica_that_restarted_may_have_forgotten_what_it_showed() {
    let sampler = Sampler::new(Epoch(1));
    let mut memory = Memory::default();
    let before = replica(1, 100, 5);
    memory.on_replica(&before, Level::Session, Moment(10));
    let after = Replica { incarnation: 2, ..replica(1, 99, 20) };
    let need = memory.need(Level::Session, &sampler, &[after], Moment(21));
    assert_eq!(may_read(&after, need), Err(Why::ReadElsewhere));
}

#[test]
fn what_was_seen_on_the_primary_is_not_unseen_either() {
    let mut sampler = Sampler::new(Epoch(1));
    let mut memory = Memory::default();
    memory.on_replica(&replica(1, 100, 5), Level::Session, Moment(10));
    memory.on_primary(&mut sampler);
    assert!(memory.is_dirty());
    answer(&mut sampler, Ack(1), point(200));
    let need = memory.need(Level::Session, &sampler, &[], Moment(11));
    assert_eq!(needed(need).only, None);
    assert_eq!(may_read(&replica(2, 199, 0), need), Err(Why::Behind(LagBytes(1))));
}

#[test]
fn a_write_that_was_not_sampled_when_its_primary_died_is_read_on_the_new_one() {
    let mut sampler = Sampler::new(Epoch(1));
    let mut memory = Memory::default();
    memory.on_primary(&mut sampler);
    sampler.restart(Epoch(2));
    assert_eq!(memory.need(Level::Session, &sampler, &[], Moment(1)), Need::Primary(OnPrimary::Unsampled));
    // Once the new primary has answered it, all is as usual.
    memory.on_primary(&mut sampler);
    assert!(matches!(memory.need(Level::Session, &sampler, &[], Moment(1)), Need::Position(_)));
}

#[test]
fn a_floor_follows_the_lineage_or_is_lost() {
    let switches = vec![Switch { from: Timeline(1), at: Lsn(150), to: Timeline(2) }];
    let lineage = Lineage::new("c", Epoch(2), Timeline(2), switches);
    let sampler = Sampler::new(Epoch(2));
    let mut kept = Memory::default();
    kept.import(point(150));
    assert_eq!(kept.on_lineage(&lineage), Ok(()));
    let need = kept.need(Level::Session, &sampler, &[], Moment(0));
    assert_eq!(may_read(&replica(1, 999, 0), need), Err(Why::Timeline), "still on the timeline that ended");
    let mut lost = Memory::default();
    lost.import(point(151));
    assert!(matches!(lost.on_lineage(&lineage), Err(BadToken::Lost { .. })));
    lost.accept_loss();
    assert_eq!(lost.on_lineage(&lineage), Ok(()));
}

#[test]
fn a_read_waits_no_longer_than_the_primary_would_take() {
    use model::Millis;
    assert_eq!(wait_budget(None, Millis(3)), Millis(6));
    assert_eq!(wait_budget(None, Millis(500)), Millis(20));
    assert_eq!(wait_budget(None, Millis(0)), Millis(1));
    assert_eq!(wait_budget(Some(Millis(100)), Millis(3)), Millis(100));
}

#[test]
fn only_the_fit_are_read() {
    let base = replica(1, 100, 0);
    let any = Requirement { epoch: Epoch(1), lag_max: LagBytes(50), ..Requirement::none(Moment(0)) };
    let history = History::default();
    let counted = Requirement { counted: true, ..any };
    let uncounted = Replica { counted: false, ..base };
    for (replica, requirement, verdict) in [
        (base, any, Ok(())),
        (Replica { health: Health::Down, ..base }, any, Err(Why::Down)),
        (Replica { health: Health::Draining, ..base }, any, Err(Why::Draining)),
        (Replica { kind: ReplicaKind::Standby, ..base }, any, Err(Why::Kind(ReplicaKind::Standby))),
        (Replica { kind: ReplicaKind::Delayed, ..base }, any, Err(Why::Kind(ReplicaKind::Delayed))),
        (Replica { epoch: Epoch(0), ..base }, any, Err(Why::Epoch(Epoch(0)))),
        (Replica { lag: LagBytes(51), ..base }, any, Err(Why::Lagging(LagBytes(51)))),
        (uncounted, any, Ok(())),
        (uncounted, counted, Err(Why::Uncounted)),
        (base, counted, Ok(())),
    ] {
        assert_eq!(eligible(&replica, &requirement, &history), verdict, "{replica:?}");
    }
}

#[test]
fn staleness_is_told_by_one_clock_also_while_nothing_happens() {
    let mut history = History::new(Timeline(1));
    assert_eq!(history.staleness(point(10), Moment(0)), None, "nothing is known yet");
    history.heard(Moment(1000), Lsn(100));
    history.heard(Moment(1050), Lsn(200));
    history.heard(Moment(1040), Lsn(999)); // Out of order: dropped.
    history.heard(Moment(1100), Lsn(300));
    let stale = |lsn, now| history.staleness(point(lsn), Moment(now)).map(|millis| millis.0);
    assert_eq!(
        [stale(99, 1100), stale(100, 1100), stale(250, 1100), stale(300, 1100)],
        [None, Some(100), Some(50), Some(0)]
    );
    // The primary idles for a minute: a replica that has everything stays fresh.
    for tick in 1..=1200 {
        history.heard(Moment(1100 + tick * 50), Lsn(300));
    }
    assert_eq!(history.staleness(point(300), Moment(61_120)), Some(model::Millis(20)));
    assert_eq!(history.staleness(point(299), Moment(61_120)), Some(model::Millis(60_070)));
    let bound = Requirement { staleness_max: Some(model::Millis(50)), ..Requirement::none(Moment(61_120)) };
    assert_eq!(eligible(&replica(1, 300, 0), &bound, &history), Ok(()));
    assert_eq!(eligible(&replica(1, 250, 0), &bound, &history), Err(Why::Stale(model::Millis(60_070))));
    assert_eq!(eligible(&replica(1, 9, 0), &bound, &history), Err(Why::StalenessUnknown));
    // What the old primary wrote beyond the switch proves nothing on the new timeline.
    history.switched(Switch { from: Timeline(1), at: Lsn(250), to: Timeline(2) });
    let on_new = Point { timeline: Timeline(2), ..point(400) };
    assert_eq!(history.staleness(on_new, Moment(61_120)), Some(model::Millis(60_070)));
    assert_eq!(history.staleness(point(400), Moment(61_120)), None);
}

/// A little world: a primary that writes, replicas that replay what they please, and sessions. `seen` and `wrote` are
/// what the promises are about; the sessions know only what the room is told.
#[derive(Clone, Debug)]
enum Step {
    Write,
    ReadOnPrimary,
    Replay {
        node: usize,
        by: u64,
    },
    /// The router learns a replica's position.
    Report {
        node: usize,
    },
    Restart {
        node: usize,
    },
    Sample,
    ReadOnReplica,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Write),
        Just(Step::ReadOnPrimary),
        (0..3_usize, 1..6_u64).prop_map(|(node, by)| Step::Replay { node, by }),
        (0..3_usize).prop_map(|node| Step::Report { node }),
        (0..3_usize).prop_map(|node| Step::Restart { node }),
        Just(Step::Sample),
        Just(Step::ReadOnReplica),
        Just(Step::ReadOnReplica),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn a_session_never_sees_less_than_it_wrote_or_saw(plan in proptest::collection::vec(steps(), 1..60)) {
        let mut sampler = Sampler::new(Epoch(1));
        let mut memory = Memory::default();
        let mut primary = 10_u64;
        let mut real = [0_u64; 3];
        let mut known = [replica(0, 0, 0), replica(1, 0, 0), replica(2, 0, 0)];
        let mut seen = 0_u64;
        for (clock, step) in plan.into_iter().enumerate() {
            let now = Moment(clock as u64 + 1);
            match step {
                Step::Write => {
                    primary += 1;
                    seen = primary;
                    memory.on_primary(&mut sampler);
                    // Others write too.
                    primary += 1;
                }
                Step::ReadOnPrimary => {
                    seen = seen.max(primary);
                    memory.on_primary(&mut sampler);
                }
                Step::Replay { node, by } => real[node] = (real[node] + by).min(primary),
                Step::Report { node } => {
                    known[node].position = point(real[node]);
                    known[node].position_taken_after = now;
                }
                Step::Restart { node } => {
                    // It comes back behind what it has shown.
                    real[node] = real[node].saturating_sub(3);
                    known[node] = Replica { incarnation: known[node].incarnation + 1, ..replica(node as u64, 0, 0) };
                }
                Step::Sample => {
                    if let Need::Position(ack) = memory.need(Level::Session, &sampler, &known, now) {
                        answer(&mut sampler, ack, point(primary));
                    }
                }
                Step::ReadOnReplica => {
                    let need = memory.need(Level::Session, &sampler, &known, now);
                    let Need::Replica(requirement) = need else { continue };
                    let fit = (0..3).filter(|&node| eligible(&known[node], &requirement, &History::default()).is_ok());
                    if let Some(node) = fit.max_by_key(|node| clock.wrapping_mul(7 + node) % 5) {
                        prop_assert!(real[node] >= seen, "node {} shows {} after {}", node, real[node], seen);
                        seen = real[node];
                        memory.on_replica(&known[node], Level::Session, now);
                    }
                }
            }
        }
    }
}
