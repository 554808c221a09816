//! Whole pictures: what people see is compared as they see it.

use super::*;
use model::observe::{CloneProgress, ConsensusView};
use model::status::{Durability, Lag, SCHEMA_VERSION};
use model::units::{Epoch, Timeline};
use model::{CommitMode, NodeId, NodeName, WallTime};
use std::collections::BTreeMap;

const WIDE: Look = Look { color: false, unicode: true, width: 120, terminal: false };
const NARROW: Look = Look { width: 80, ..WIDE };
const OBSERVED_AT: WallTime = WallTime(1_800_000_000_000);

fn name(text: &str) -> NodeName {
    text.parse().expect("a node name")
}

/// A healthy node; tests change what their story needs.
fn node(id: u64, text: &str, role: Role, site: &str) -> NodeStatus {
    let replica = role == Role::Replica;
    NodeStatus {
        id: NodeId(id),
        name: name(text),
        role,
        kind: ReplicaKind::Hot,
        cascading: false,
        site: site.parse().expect("a site"),
        keeper_up: true,
        heard_ms_ago: Some(80),
        sample_age_ms: Some(200),
        server: if role == Role::Witness { "witness" } else { "running" }.to_owned(),
        stage: "active".to_owned(),
        healthy: true,
        sync: if replica { "sync" } else { "-" }.to_owned(),
        voter: replica,
        upstream: replica.then(|| name("pg-1")),
        link: replica.then_some(LinkStatus::Streaming),
        link_up: true,
        lag: replica.then(|| Lag {
            apply_bytes: Some(0),
            receive_bytes: Some(0),
            seconds: Some(0.0008),
            method: "position-history".to_owned(),
        }),
        timeline: (role != Role::Witness).then_some(Timeline(12)),
        position: None,
        replayed: None,
        version: Some("16.4".to_owned()),
        postgres_address: format!("{text}:5432"),
        api_address: format!("{text}:8008"),
        peer_address: format!("{text}:7432"),
        priority: 100,
        shows_replayed: true,
        replay_paused: false,
        pending_restart: BTreeMap::new(),
        clone: None,
        disk_used_percent: (role != Role::Witness).then_some(41),
        connections: Some(3),
        clock_offset_ms: Some(1),
        doing: None,
        keeper_pid: Some(4000),
        program_version: Some("0.1.0".to_owned()),
        settings_version: Some(3),
        started_at: Some(WallTime(OBSERVED_AT.0 - 532_800_000)),
        certificate_expires_at: None,
        sockets: None,
    }
}

fn cluster(nodes: Vec<NodeStatus>) -> ClusterStatus {
    ClusterStatus {
        schema_version: SCHEMA_VERSION,
        cluster: "prod-eu".to_owned(),
        cluster_id: "0".to_owned(),
        verdict: Verdict::Healthy,
        sentence: "all is well".to_owned(),
        observer: name("pg-1"),
        observed_at: OBSERVED_AT,
        epoch: Epoch(4),
        primary: Some(name("pg-1")),
        primary_up: true,
        engine: "PostgreSQL 16.4".to_owned(),
        system_id: None,
        durability: Durability {
            mode: CommitMode::SemiSync,
            acks: 1,
            acks_wanted: 1,
            voters: vec!["pg-2".to_owned(), "pg-3".to_owned()],
            strict: false,
            in_force: true,
            failures_tolerated: 1,
            loss_now_bytes: Some(0),
            loss_now_seconds: Some(0.0),
            sentence: String::new(),
        },
        nodes,
        problems: Vec::new(),
        consensus: ConsensusView::default(),
        settings_version: 3,
        operation: None,
        paused: None,
        planned_switchover: None,
        follow: None,
        followers: Vec::new(),
        failover: None,
    }
}

/// A healthy cluster of three.
pub(crate) fn three() -> ClusterStatus {
    cluster(vec![
        node(1, "pg-1", Role::Primary, "eu-1a"),
        node(2, "pg-2", Role::Replica, "eu-1b"),
        node(3, "pg-3", Role::Replica, "eu-1c"),
    ])
}

fn with_cascade_and_witness() -> ClusterStatus {
    let mut fed = node(4, "pg-4", Role::Replica, "us-1a");
    fed.upstream = Some(name("pg-2"));
    fed.cascading = true;
    fed.sync = "async".to_owned();
    fed.lag = Some(Lag {
        apply_bytes: Some(114_688),
        receive_bytes: Some(0),
        seconds: Some(0.084),
        method: "position-history".to_owned(),
    });
    let mut status = three();
    status.nodes.push(fed);
    status.nodes.push(node(5, "w1", Role::Witness, "eu-1c"));
    status
}

fn degraded() -> ClusterStatus {
    let mut status = with_cascade_and_witness();
    status.verdict = Verdict::Degraded;
    // What the first line shows already is not said again.
    status.durability.sentence = "data loss if the primary died now: ~4.1 s (1.5 GB)".to_owned();
    status.sentence = format!(
        "tolerates 0 failures · {} · pg-3 does not follow; commits have no second copy",
        status.durability.sentence
    );
    status.durability.failures_tolerated = 0;
    status.durability.acks = 0;
    status.durability.loss_now_bytes = Some(1_610_612_736);
    status.durability.loss_now_seconds = Some(4.1);
    let pg2 = &mut status.nodes[1];
    pg2.clone = Some(CloneProgress {
        phase: "copy".to_owned(),
        source: "pg-1".to_owned(),
        done_bytes: 41 << 20,
        total_bytes: 100 << 20,
        rate_bytes_per_s: 12 << 20,
        attempt: 1,
        last_error: None,
    });
    let pg3 = &mut status.nodes[2];
    pg3.link = Some(LinkStatus::Disconnected);
    pg3.healthy = false;
    pg3.lag =
        Some(Lag { apply_bytes: None, receive_bytes: None, seconds: Some(664.0), method: "link-silence".to_owned() });
    status.nodes[4].keeper_up = false;
    status.nodes[4].heard_ms_ago = Some(12_000);
    status.problems = vec![
        Problem {
            code: "ST3012".to_owned(),
            severity: Severity::Critical,
            node: Some(name("pg-3")),
            what: "replay frozen at 5A/9C002110".to_owned(),
            cause:
                "startup waits for WAL 0000000C0000005A0000009C, which was removed on pg-1 and is absent in the archive"
                    .to_owned(),
            next: "stemma node reinit pg-3".to_owned(),
            for_ms: 664_000,
        },
        Problem {
            code: "ST2204".to_owned(),
            severity: Severity::Warning,
            node: None,
            what: "commits wait for 0 replicas instead of 1, because none of the voters can be reached".to_owned(),
            cause: "strict = false: acks lowered through consensus".to_owned(),
            next: "nothing once pg-3 is back".to_owned(),
            for_ms: 9_000,
        },
    ];
    status
}

#[track_caller]
fn check(status: &ClusterStatus, look: &Look, expected: &str) {
    let drawn = render(status, look);
    assert_eq!(drawn, expected.trim_matches('\n'), "\n{drawn}\n");
    for line in drawn.lines() {
        assert!(line.chars().count() <= look.width, "wider than {}: {line}", look.width);
    }
}

#[test]
fn a_healthy_cluster_is_quiet() {
    check(
        &three(),
        &WIDE,
        r"
● prod-eu  HEALTHY   tolerates 1 more failure · data loss if the primary died now: 0 (semi-sync 1 of 2)
  PostgreSQL 16.4 · primary pg-1 up 6d 4h · commit semi-sync · settings v3
  NODE     ROLE     SITE   STATE   LAG     BEHIND  TL  DISK  NOTES
  pg-1     primary  eu-1a  ● up    -       -       12  41%
  ├─ pg-2  replica  eu-1b  ● sync  0.8 ms  0 B     12  41%
  └─ pg-3  replica  eu-1c  ● sync  0.8 ms  0 B     12  41%
",
    );
}

#[test]
fn a_healthy_cluster_fits_80_columns() {
    check(
        &three(),
        &NARROW,
        r"
● prod-eu  HEALTHY   tolerates 1 more failure
  data loss if the primary died now: 0 (semi-sync 1 of 2)
  PostgreSQL 16.4 · primary pg-1 up 6d 4h · commit semi-sync · settings v3
  NODE     ROLE     SITE   STATE   LAG     BEHIND  TL  DISK  NOTES
  pg-1     primary  eu-1a  ● up    -       -       12  41%
  ├─ pg-2  replica  eu-1b  ● sync  0.8 ms  0 B     12  41%
  └─ pg-3  replica  eu-1c  ● sync  0.8 ms  0 B     12  41%
",
    );
}

#[test]
fn cascades_stand_under_the_node_that_feeds_them() {
    check(
        &with_cascade_and_witness(),
        &WIDE,
        r"
● prod-eu  HEALTHY   tolerates 1 more failure · data loss if the primary died now: 0 (semi-sync 1 of 2)
  PostgreSQL 16.4 · primary pg-1 up 6d 4h · commit semi-sync · settings v3
  NODE        ROLE     SITE   STATE    LAG     BEHIND  TL  DISK  NOTES
  pg-1        primary  eu-1a  ● up     -       -       12  41%
  ├─ pg-2     replica  eu-1b  ● sync   0.8 ms  0 B     12  41%
  │  └─ pg-4  replica  us-1a  ● async  84 ms   112 kB  12  41%   cascade
  └─ pg-3     replica  eu-1c  ● sync   0.8 ms  0 B     12  41%
  w1          witness  eu-1c  ● votes  -       -       -   -
",
    );
}

#[test]
fn trouble_comes_with_cause_and_next_command() {
    check(
        &degraded(),
        &WIDE,
        r"
▲ prod-eu  DEGRADED   tolerates 0 failures · data loss if the primary died now: ~4.1 s (~1.5 GB)
  PostgreSQL 16.4 · primary pg-1 up 6d 4h · commit semi-sync (0 of 1 acks) · settings v3 · seen by pg-1
  pg-3 does not follow; commits have no second copy
  NODE        ROLE     SITE   STATE          LAG      BEHIND  TL  DISK  NOTES
  pg-1        primary  eu-1a  ● up           -        -       12  41%
  ├─ pg-2     replica  eu-1b  ◌ cloning 41%  0.8 ms   0 B     12  41%   copy from pg-1, 12 MB/s
  │  └─ pg-4  replica  us-1a  ● async        84 ms    112 kB  12  41%   cascade
  └─ pg-3     replica  eu-1c  ✖ no link      11m 04s  ?       12  41%
  w1          witness  eu-1c  ✖ silent 12s   -        -       -   -
  PROBLEMS (2)
  ✖ pg-3  replay frozen at 5A/9C002110                                                               for 11m 04s  ST3012
    cause: startup waits for WAL 0000000C0000005A0000009C, which was removed on pg-1 and is absent in the archive
    next:  stemma node reinit pg-3
  ▲ commits wait for 0 replicas instead of 1, because none of the voters can be reached                   for 9s  ST2204
    cause: strict = false: acks lowered through consensus
    next:  nothing once pg-3 is back
",
    );
}

#[test]
fn trouble_fits_80_columns() {
    check(
        &degraded(),
        &NARROW,
        r"
▲ prod-eu  DEGRADED   tolerates 0 failures
  data loss if the primary died now: ~4.1 s (~1.5 GB)
  PostgreSQL 16.4 · primary pg-1 up 6d 4h · commit semi-sync (0 of 1 acks)
  settings v3 · seen by pg-1
  pg-3 does not follow; commits have no second copy
  NODE        ROLE     SITE   STATE          LAG      BEHIND  TL  DISK  NOTES
  pg-1        primary  eu-1a  ● up           -        -       12  41%
  ├─ pg-2     replica  eu-1b  ◌ cloning 41%  0.8 ms   0 B     12  41%   copy fr…
  │  └─ pg-4  replica  us-1a  ● async        84 ms    112 kB  12  41%   cascade
  └─ pg-3     replica  eu-1c  ✖ no link      11m 04s  ?       12  41%
  w1          witness  eu-1c  ✖ silent 12s   -        -       -   -
  PROBLEMS (2)
  ✖ pg-3  replay frozen at 5A/9C002110                       for 11m 04s  ST3012
    cause: startup waits for WAL 0000000C0000005A0000009C, which was removed on
           pg-1 and is absent in the archive
    next:  stemma node reinit pg-3
  ▲ commits wait for 0 replicas instead of 1, because none of the voters can be
    reached
    for 9s  ST2204
    cause: strict = false: acks lowered through consensus
    next:  nothing once pg-3 is back
",
    );
}

#[test]
fn without_utf8_everything_is_ascii_and_aligned_as_before() {
    let ascii = Look { unicode: false, ..NARROW };
    let drawn = render(&degraded(), &ascii);
    assert!(drawn.is_ascii(), "{drawn}");
    let lengths = |text: &str| text.lines().map(|line| line.chars().count()).collect::<Vec<_>>();
    assert_eq!(lengths(&drawn), lengths(&render(&degraded(), &NARROW)));
    assert!(drawn.contains("`- pg-4"), "{drawn}");
}

#[test]
fn colour_changes_nothing_but_colour() {
    let painted = render(&degraded(), &Look { color: true, ..NARROW });
    let mut plain = String::new();
    let mut escaped = false;
    for c in painted.chars() {
        match (escaped, c) {
            (_, '\x1b') => escaped = true,
            (true, 'm') => escaped = false,
            (true, _) => {}
            (false, c) => plain.push(c),
        }
    }
    assert_ne!(painted, plain);
    assert_eq!(plain, render(&degraded(), &NARROW));
}

#[test]
fn notes_say_what_is_so_now() {
    let mut status = degraded();
    let note = |status: &ClusterStatus, node: usize| notes(&status.nodes[node], status).join(", ");
    assert_eq!(note(&status, 1), "copy from pg-1, 12 MB/s");
    status.nodes[1].keeper_up = false;
    assert_eq!(note(&status, 1), "", "what a silent node did then is not what it does now");
    let halted = &mut status.nodes[2];
    (halted.stage, halted.doing) = ("halted".to_owned(), Some("halted: for a long reason".to_owned()));
    assert_eq!(note(&status, 2), "", "the reason stands among the problems");
}

#[test]
fn a_loss_without_a_number_is_told_in_the_words_of_the_judge() {
    let mut status = degraded();
    (status.durability.loss_now_bytes, status.durability.loss_now_seconds) = (None, None);
    status.durability.sentence = "data loss if the primary died now: everything (no other copy)".to_owned();
    let drawn = render(&status, &WIDE);
    assert!(drawn.contains("died now: everything (no other copy)\n"), "{drawn}");
}

#[test]
fn no_node_gets_lost_when_upstreams_are_unknown_or_form_a_ring() {
    let mut status = three();
    status.nodes[0].upstream = Some(name("gone"));
    status.nodes[1].upstream = Some(name("pg-3"));
    status.nodes[2].upstream = Some(name("pg-2"));
    let drawn = render(&status, &WIDE);
    for node in ["pg-1", "pg-2", "pg-3"] {
        let count = drawn.lines().skip(2).filter(|line| line.contains(&format!("{node}  "))).count();
        assert_eq!(count, 1, "{node} in\n{drawn}");
    }
}

#[test]
fn a_cluster_that_takes_no_writes_says_so() {
    let mut status = three();
    status.verdict = Verdict::Down;
    status.primary = None;
    status.primary_up = false;
    status.durability.failures_tolerated = -1;
    status.durability.loss_now_bytes = None;
    status.durability.loss_now_seconds = None;
    status.sentence = "no node holds the primacy".to_owned();
    let drawn = render(&status, &WIDE);
    assert!(
        drawn.starts_with("✖ prod-eu  DOWN   takes no writes now · data loss if the primary died now: unknown"),
        "{drawn}"
    );
    assert!(drawn.contains("no primary yet") && drawn.contains("\n  no node holds the primacy\n"), "{drawn}");
}
