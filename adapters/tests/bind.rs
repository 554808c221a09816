//! Names kept in a real BIND, with its own idea of what an update may do.

use adapters::dns::{Done, Failed, Key, Place, Wanted, update};
use model::Epoch;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};
use support::{Bind, SECRET};

#[path = "support/bind.rs"]
mod support;

fn place(bind: &Bind) -> Place {
    Place {
        server: format!("127.0.0.1:{}", bind.port),
        zone: "example.test".into(),
        name: "db.example.test".into(),
        replicas_name: Some("db-ro.example.test".into()),
        ttl_seconds: 5,
        key: Some(Key::new("stemma", "hmac-sha256", SECRET).expect("a key")),
        timeout: Duration::from_secs(20),
    }
}

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs()
}

fn wanted(epoch: u64, primary: &str, replicas: &[&str]) -> Wanted {
    let address = |text: &&str| text.parse::<IpAddr>().expect("an address");
    Wanted {
        cluster: "c-1".into(),
        epoch: Epoch(epoch),
        primary: [address(&primary)].into(),
        replicas: replicas.iter().map(address).collect(),
    }
}

fn set(texts: &[&str]) -> BTreeSet<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[tokio::test]
async fn names_follow_the_newest_primacy_and_never_go_back() {
    let Some(bind) = Bind::start() else {
        eprintln!("SKIPPED, NOTHING WAS PROVED: named is not installed (Debian package `bind9`)");
        return;
    };
    let place = place(&bind);
    let (primary, replicas) = ("db.example.test", "db-ro.example.test");
    assert_eq!(bind.lookup(primary, "A"), set(&["192.0.2.9"]), "what somebody wrote before");
    let first = wanted(1, "10.0.0.1", &["10.0.0.2", "10.0.0.3"]);
    assert_eq!(update(&place, &first, now_seconds()).await, Ok(Done::Written));
    assert_eq!(bind.lookup(primary, "A"), set(&["10.0.0.1"]));
    assert_eq!(bind.lookup(replicas, "A"), set(&["10.0.0.2", "10.0.0.3"]));
    assert_eq!(update(&place, &first, now_seconds()).await, Ok(Done::Unchanged));

    let second = wanted(2, "10.0.0.2", &["10.0.0.3"]);
    assert_eq!(update(&place, &second, now_seconds()).await, Ok(Done::Written));
    // The old primary comes late, and repeats itself.
    for late in [&first, &wanted(1, "10.0.0.1", &["10.0.0.3"])] {
        assert_eq!(update(&place, late, now_seconds()).await, Ok(Done::Overtaken(Epoch(2))));
    }
    assert_eq!(bind.lookup(primary, "A"), set(&["10.0.0.2"]));
    assert_eq!(bind.lookup(replicas, "A"), set(&["10.0.0.3"]));
    // Within one primacy replicas come and go.
    let grown = wanted(2, "10.0.0.2", &["10.0.0.1", "10.0.0.3"]);
    assert_eq!(update(&place, &grown, now_seconds()).await, Ok(Done::Written));
    assert_eq!(bind.lookup(replicas, "A"), set(&["10.0.0.1", "10.0.0.3"]));
    let foreign = Wanted { cluster: "c-2".into(), ..wanted(9, "10.0.0.9", &[]) };
    assert_eq!(update(&place, &foreign, now_seconds()).await, Err(Failed::Foreign("c-1".into())));
}

#[tokio::test]
async fn of_many_that_write_at_once_the_newest_wins() {
    let Some(bind) = Bind::start() else {
        eprintln!("SKIPPED, NOTHING WAS PROVED: named is not installed (Debian package `bind9`)");
        return;
    };
    let mut writers = tokio::task::JoinSet::new();
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    for epoch in 1..=12u64 {
        let place = place(&bind);
        writers.spawn(async move {
            let wanted = wanted(epoch, &format!("10.0.0.{epoch}"), &[]);
            loop {
                assert!(std::time::Instant::now() < deadline, "epoch {epoch} is never answered");
                match update(&place, &wanted, now_seconds()).await {
                    Ok(Done::Written | Done::Unchanged | Done::Overtaken(_)) => return,
                    // BIND answers SERVFAIL to some of many updates at once. Keepers try again, too.
                    Err(Failed::Contended | Failed::Refused(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
                    Err(other) => panic!("{other}"),
                }
            }
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended.expect("no writer panics");
    }
    assert_eq!(bind.lookup("db.example.test", "A"), set(&["10.0.0.12"]));
    let mark = bind.lookup("_stemma.db.example.test", "TXT");
    assert_eq!(mark, set(&["cluster=c-1 epoch=12 primary=10.0.0.12 replicas="]));
}

#[tokio::test]
async fn who_may_not_write_is_told_so() {
    let Some(bind) = Bind::start() else {
        eprintln!("SKIPPED, NOTHING WAS PROVED: named is not installed (Debian package `bind9`)");
        return;
    };
    let first = wanted(1, "10.0.0.1", &[]);
    let unsigned = Place { key: None, ..place(&bind) };
    assert!(matches!(update(&unsigned, &first, now_seconds()).await, Err(Failed::Refused(_))));
    let other = Key::new("stemma", "hmac-sha256", "b3RoZXItc2VjcmV0").expect("a key");
    let wrong = Place { key: Some(other), ..place(&bind) };
    let failed = update(&wrong, &first, now_seconds()).await;
    assert!(matches!(failed, Err(Failed::Unreachable(_))), "{failed:?}");
    let outside = Place { name: "db.example.org".into(), ..place(&bind) };
    assert!(matches!(update(&outside, &first, now_seconds()).await, Err(Failed::Config(_))));
    let silent = Place { server: "127.0.0.1:1".into(), ..place(&bind) };
    assert!(matches!(update(&silent, &first, now_seconds()).await, Err(Failed::Unreachable(_))));
    assert_eq!(bind.lookup("db.example.test", "A"), set(&["192.0.2.9"]), "nothing was changed");
}
