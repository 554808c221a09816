//! Clones of real servers.

mod throwaway;

use model::{SystemId, Trouble};
use postgres::clone::{CloneOptions, CloneProgress, CloneReport, MARKER, discard_half_made, run};
use postgres::replication::{Endpoint, ReplicationClient};
use std::path::Path;
use std::time::{Duration, Instant};
use throwaway::{Server, append, room, server_user, verify_backup, wait_for};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn options(data_dir: &Path) -> CloneOptions {
    CloneOptions {
        data_dir: data_dir.to_path_buf(),
        owner: server_user(),
        rate_bytes_per_s: 0,
        expect_system_id: None,
        expect_major: Some(15),
        label: "it's a test".into(),
        tablespace_root: None,
        fsync: true,
        slot: None,
    }
}

async fn clone(source: &Endpoint, options: &CloneOptions) -> Result<CloneReport, Trouble> {
    run(source, options, watch::channel(CloneProgress::default()).0, CancellationToken::new()).await
}

/// A clone that goes on in the background, slowly enough to be disturbed.
struct SlowClone {
    task: tokio::task::JoinHandle<Result<CloneReport, Trouble>>,
    progress: watch::Receiver<CloneProgress>,
    cancel: CancellationToken,
}

impl SlowClone {
    fn start(source: &Endpoint, options: &CloneOptions) -> SlowClone {
        let (sender, progress) = watch::channel(CloneProgress::default());
        let (source, mut options, cancel) = (source.clone(), options.clone(), CancellationToken::new());
        options.rate_bytes_per_s = 4 << 20;
        let token = cancel.clone();
        let task = tokio::spawn(async move { run(&source, &options, sender, token).await });
        SlowClone { task, progress, cancel }
    }

    async fn under_way(&mut self) {
        let some = self.progress.wait_for(|shown| shown.done_bytes > 1 << 20);
        tokio::time::timeout(Duration::from_secs(60), some).await.expect("it goes on").expect("it still runs");
    }
}

fn assert_half_made(data_dir: &Path) {
    assert!(data_dir.join(MARKER).exists(), "the marker stays");
    assert!(!data_dir.join("global/pg_control").exists(), "no server can start");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_is_proved_and_streams_as_a_standby() {
    let room = room();
    let primary = Server::fresh(&room.path().join("primary"), &[], "");
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    let copy = room.path().join("copy");
    let report = clone(&primary.endpoint(), &options(&copy)).await.expect("cloned");
    assert_eq!(report.files, report.verified_files);
    assert!(report.end > report.start && report.bytes > 20 << 20, "{report:?}");
    assert!(!copy.join(MARKER).exists());
    verify_backup(&copy);
    let again = clone(&primary.endpoint(), &options(&copy)).await.expect_err("a clone never overwrites");
    assert!(again.is("ST1202"), "{again}");
    assert_eq!(discard_half_made(&copy, None), Ok(false), "a finished copy is not discarded");
    assert_eq!(primary.sql("SELECT count(*) FROM pg_replication_slots"), "0", "the temporary slot is gone");

    primary.adopt_standby(&copy, None);
    let standby = Server::on(&copy);
    primary.sql("INSERT INTO t VALUES (1001)");
    wait_for("the row on the standby", || standby.sql("SELECT count(*) FROM t") == "1001");
    assert_eq!(standby.sql("SELECT pg_is_in_recovery()"), "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clone_under_write_load_is_consistent_without_its_source() {
    let room = room();
    // Segments of 1 MB: the stream crosses many boundaries.
    let mut primary = Server::fresh(&room.path().join("primary"), &["--wal-segsize=1"], "");
    let mut pgbench = throwaway::command("pgbench");
    pgbench.args(["-q", "-h", "127.0.0.1", "-U", "postgres", "-p", &primary.port.to_string()]);
    throwaway::run(pgbench.args(["-i", "-s", "3", "postgres"]));
    let mut load = throwaway::command("pgbench");
    load.args(["-n", "-h", "127.0.0.1", "-U", "postgres", "-p", &primary.port.to_string()]);
    load.args(["-c", "2", "-T", "120", "postgres"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let mut load = load.spawn().expect("pgbench starts");
    wait_for("the load", || primary.sql("SELECT count(*) > 100 FROM pgbench_history") == "t");
    let copy = room.path().join("copy");
    let slow = SlowClone::start(&primary.endpoint(), &CloneOptions { expect_major: None, ..options(&copy) });
    let report = slow.task.await.expect("no panic").expect("cloned");
    load.kill().expect("killed");
    load.wait().expect("waited");
    primary.kill();
    assert!(report.end.0 - report.start.0 > 2 << 20, "the load wrote over segment boundaries: {report:?}");
    verify_backup(&copy);
    let copy = Server::on(&copy);
    let sums = copy.sql(
        "SELECT (SELECT sum(abalance) FROM pgbench_accounts) = d AND (SELECT sum(tbalance) FROM pgbench_tellers) = d
            AND (SELECT sum(bbalance) FROM pgbench_branches) = d AND n > 100
         FROM (SELECT sum(delta) AS d, count(*) AS n FROM pgbench_history) AS history",
    );
    assert_eq!(sums, "t", "every transaction is there as a whole or not at all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_and_a_promoted_server_are_sources_too() {
    let room = room();
    let mut primary = Server::fresh(&room.path().join("primary"), &[], "");
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    let first = room.path().join("first");
    clone(&primary.endpoint(), &options(&first)).await.expect("cloned from the primary");
    primary.adopt_standby(&first, None);
    let first = Server::on(&first);

    let second = room.path().join("second");
    primary.sql("INSERT INTO t VALUES (1001)");
    clone(&first.endpoint(), &options(&second)).await.expect("cloned from the standby");
    verify_backup(&second);
    first.adopt_standby(&second, None);
    let second = Server::on(&second);
    primary.sql("INSERT INTO t VALUES (1002)");
    wait_for("the row on the cascaded standby", || second.sql("SELECT count(*) FROM t") == "1002");

    primary.kill();
    first.sql("SELECT pg_promote()");
    let mut client = ReplicationClient::connect(&first.endpoint()).await.expect("connected");
    wait_for("timeline 2", || first.sql("SELECT timeline_id FROM pg_control_checkpoint()") == "2");
    let identity = client.identify_system().await.expect("identified");
    assert_eq!(identity.timeline.0, 2);
    let history = client.timeline_history(identity.timeline).await.expect("history");
    assert_eq!((history.len(), history[0].timeline.0), (1, 1));
    assert!(history[0].switched_at <= identity.position);
    let third = room.path().join("third");
    let report = clone(&first.endpoint(), &options(&third)).await.expect("cloned on timeline 2");
    assert_eq!(report.timeline.0, 2);
    assert!(third.join("pg_wal/00000002.history").exists());
    verify_backup(&third);
    first.adopt_standby(&third, None);
    let third = Server::on(&third);
    first.sql("INSERT INTO t VALUES (1003)");
    wait_for("the row on timeline 2", || third.sql("SELECT count(*) FROM t") == "1003");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_timeline_during_the_copy_is_followed() {
    let room = room();
    let mut primary = Server::fresh(&room.path().join("primary"), &[], "");
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n");
    let [heir, source] = ["heir", "source"].map(|name| room.path().join(name));
    clone(&primary.endpoint(), &options(&heir)).await.expect("cloned");
    primary.adopt_standby(&heir, None);
    let heir = Server::on(&heir);
    clone(&heir.endpoint(), &options(&source)).await.expect("cloned");
    heir.adopt_standby(&source, None);
    let source = Server::on(&source);

    let copy = room.path().join("copy");
    let mut slow = SlowClone::start(&source.endpoint(), &options(&copy));
    slow.under_way().await;
    primary.kill();
    heir.sql("SELECT pg_promote()");
    heir.sql("INSERT INTO t VALUES (1001); CHECKPOINT");
    wait_for("the row on the source", || source.sql("SELECT count(*) FROM t") == "1001");
    source.sql("CHECKPOINT");
    let report = slow.task.await.expect("no panic").expect("cloned across the change");
    assert_eq!(report.timeline.0, 2, "{report:?}");
    assert!(copy.join("pg_wal/00000002.history").exists());
    verify_backup(&copy);
    heir.adopt_standby(&copy, None);
    let copy = Server::on(&copy);
    heir.sql("INSERT INTO t VALUES (1002)");
    wait_for("the row on the copy", || copy.sql("SELECT count(*) FROM t") == "1002");
}

#[tokio::test(flavor = "multi_thread")]
async fn tablespaces_are_relocated_or_refused() {
    let room = room();
    let primary = Server::fresh(&room.path().join("primary"), &[], "");
    let location = room.path().join("space");
    throwaway::run(std::process::Command::new("mkdir").arg(&location));
    if let Some(user) = server_user() {
        std::os::unix::fs::chown(&location, Some(user.uid), Some(user.gid)).expect("owner");
    }
    primary.sql(&format!("CREATE TABLESPACE aside LOCATION '{}'", location.display()));
    primary.sql("CREATE TABLE t TABLESPACE aside AS SELECT generate_series(1, 100000) AS n");
    let oid = primary.sql("SELECT oid FROM pg_tablespace WHERE spcname = 'aside'");

    let copy = room.path().join("copy");
    let here = clone(&primary.endpoint(), &options(&copy)).await.expect_err("its place is taken by the source itself");
    assert!(here.is("ST1202"), "{here}");
    assert_half_made(&copy);
    assert_eq!(discard_half_made(&copy, None), Ok(true));
    assert_eq!(primary.sql("SELECT count(*) FROM t"), "100000", "the source's own files are untouched");

    let root = room.path().join("spaces");
    let relocated = CloneOptions { tablespace_root: Some(root.clone()), ..options(&copy) };
    let mut slow = SlowClone::start(&primary.endpoint(), &relocated);
    slow.under_way().await;
    slow.cancel.cancel();
    let stopped = slow.task.await.expect("no panic").expect_err("cancelled");
    assert!(stopped.is("ST3001"), "{stopped}");
    assert_half_made(&copy);
    assert_eq!(discard_half_made(&copy, Some(&root)), Ok(true));
    assert!(!copy.exists() && !root.join(&oid).exists());

    clone(&primary.endpoint(), &relocated).await.expect("cloned");
    verify_backup(&copy);
    let link = std::fs::read_link(copy.join("pg_tblspc").join(&oid)).expect("a link");
    assert_eq!(link, root.join(&oid));
    let copy = Server::on(&copy);
    assert_eq!(copy.sql("SELECT count(*) FROM t"), "100000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_dies_leaves_something_to_discard_and_try_again() {
    let room = room();
    let mut primary = Server::fresh(&room.path().join("primary"), &[], "");
    let copy = room.path().join("copy");
    let mut slow = SlowClone::start(&primary.endpoint(), &options(&copy));
    slow.under_way().await;
    primary.kill();
    let died = slow.task.await.expect("no panic").expect_err("the source died");
    assert!(died.is("ST3001") && !died.causes.is_empty(), "{died}");
    assert_half_made(&copy);
    let gone = clone(&primary.endpoint(), &options(&room.path().join("other"))).await.expect_err("nobody answers");
    assert!(gone.is("ST3001"), "{gone}");
    primary.start();
    let refused = clone(&primary.endpoint(), &options(&copy)).await.expect_err("not empty");
    assert!(refused.is("ST1202"), "{refused}");
    assert_eq!(discard_half_made(&copy, None), Ok(true));
    clone(&primary.endpoint(), &options(&copy)).await.expect("the second attempt");
    verify_backup(&copy);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_database_is_refused_before_anything_is_touched() {
    let room = room();
    let primary = Server::fresh(&room.path().join("primary"), &[], "");
    let copy = room.path().join("copy");
    let foreign = CloneOptions { expect_system_id: Some(SystemId(7)), ..options(&copy) };
    let refused = clone(&primary.endpoint(), &foreign).await.expect_err("another system");
    assert!(refused.is("ST3011"), "{refused}");
    let other = CloneOptions { expect_major: Some(16), ..options(&copy) };
    let refused = clone(&primary.endpoint(), &other).await.expect_err("another version");
    assert!(refused.is("ST3016"), "{refused}");
    let refused = clone(&Endpoint { password: Some("wrong".into()), ..primary.endpoint() }, &options(&copy)).await;
    let refused = refused.expect_err("wrong password");
    assert!(refused.is("ST8003") && refused.to_string().contains("28P01"), "{refused}");
    assert!(!copy.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lasting_slot_keeps_the_log_until_the_standby_comes_and_the_rate_is_kept() {
    let room = room();
    let primary = Server::fresh(&room.path().join("primary"), &[], "");
    let mut client = ReplicationClient::connect(&primary.endpoint()).await.expect("connected");
    assert_eq!(client.server_version_num() / 10_000, 15);
    assert_eq!(client.show("wal_segment_size").await.expect("shown"), "16MB");
    client.create_physical_slot("kept", false, true).await.expect("made");
    let taken = client.create_physical_slot("kept", false, true).await.expect_err("exists");
    assert!(taken.to_string().contains("42710"), "{taken}");
    let copy = room.path().join("copy");
    let started = Instant::now();
    let rate_bytes_per_s = 8 << 20;
    let slotted = CloneOptions { slot: Some("kept".into()), rate_bytes_per_s, ..options(&copy) };
    let report = clone(&primary.endpoint(), &slotted).await.expect("cloned");
    let least = Duration::from_secs_f64(report.bytes as f64 / rate_bytes_per_s as f64 * 0.7);
    assert!(started.elapsed() >= least, "{:?} is faster than asked ({least:?})", started.elapsed());
    assert_eq!(primary.sql("SELECT active FROM pg_replication_slots"), "f", "the slot is free at once");
    let kept = primary.sql("SELECT restart_lsn FROM pg_replication_slots");
    let kept: model::Lsn = kept.parse().expect("a position");
    assert!(kept >= report.end, "the slot moved on with what is on disk");
    primary.adopt_standby(&copy, Some("kept"));
    let _standby = Server::on(&copy);
    wait_for("the standby at its slot", || primary.sql("SELECT active FROM pg_replication_slots") == "t");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_with_numbers() {
    let room = room();
    let primary = Server::fresh(&room.path().join("primary"), &[], "");
    for (size, filled_meanwhile) in [("10m", false), ("120m", true)] {
        let disk = room.path().join(format!("disk-{size}"));
        std::fs::create_dir(&disk).expect("made");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&disk)
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: this machine allows no mounts, so a full disk cannot be tried");
            return;
        }
        let copy = disk.join("copy");
        let mut slow = SlowClone::start(&primary.endpoint(), &options(&copy));
        if filled_meanwhile {
            slow.under_way().await;
            // Until nothing more fits; then the clone must notice by itself.
            let _ = std::fs::write(disk.join("filler"), vec![1u8; 200 << 20]);
        }
        let full = slow.task.await.expect("no panic").expect_err("the disk is full");
        let discarded = discard_half_made(&copy, None);
        let unmounted = std::process::Command::new("umount").arg(&disk).status();
        assert!(full.is("ST3003"), "{full}");
        assert!(full.reason.contains("bytes needed") && full.reason.contains("bytes free"), "{full}");
        assert_eq!(discarded, Ok(true));
        assert!(unmounted.is_ok_and(|status| status.success()), "nothing holds the disk any more");
    }
}

mod tls {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    use std::sync::Arc;

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("signed")
    }

    fn leaf(ca: &CertifiedIssuer<'static, KeyPair>, host: &str, common_name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(vec![host.to_string()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, common_name);
        (params.signed_by(&key, ca).expect("signed").pem(), key.serialize_pem())
    }

    fn config(ca_pem: &str, client: Option<&(String, String)>) -> Arc<rustls::ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect("certificate")).expect("a CA");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().expect("versions").with_root_certificates(roots);
        Arc::new(match client {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("certificate");
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("key");
                builder.with_client_auth_cert(vec![certificate], key).expect("client certificate")
            }
        })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn certificates_log_in_and_strangers_are_told_why_not() {
        let room = room();
        let (ours, foreign) = (authority(), authority());
        let (certificate, key) = leaf(&ours, "127.0.0.1", "server");
        let mut primary = Server::fresh(&room.path().join("primary"), &[], "");
        let no_tls = Endpoint { tls: Some(config(&ours.pem(), None)), ..primary.endpoint() };
        let refused = clone(&no_tls, &options(&room.path().join("copy"))).await.expect_err("no TLS there");
        assert!(refused.is("ST8002") && refused.to_string().contains("offers no TLS"), "{refused}");

        for (name, content) in [("server.crt", &certificate), ("server.key", &key), ("ca.crt", &ours.pem())] {
            let path = primary.data_dir.join(name);
            std::fs::write(&path, content).expect("written");
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
            if let Some(user) = server_user() {
                std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid)).expect("owner");
            }
        }
        append(&primary.data_dir.join("postgresql.conf"), "ssl = on\nssl_ca_file = 'ca.crt'\n");
        let hba = "hostssl replication copier 127.0.0.1/32 cert\nhost all postgres 127.0.0.1/32 scram-sha-256\n";
        std::fs::write(primary.data_dir.join("pg_hba.conf"), hba).expect("written");
        primary.kill();
        primary.start();

        let with = |ca: &str, client: Option<&(String, String)>| Endpoint {
            tls: Some(config(ca, client)),
            password: None,
            ..primary.endpoint()
        };
        let copier = leaf(&ours, "node", "copier");
        let copy = room.path().join("copy");
        let refused = clone(&with(&foreign.pem(), Some(&copier)), &options(&copy)).await.expect_err("wrong CA");
        assert!(refused.is("ST8002"), "{refused}");
        let refused = clone(&with(&ours.pem(), None), &options(&copy)).await.expect_err("no certificate");
        assert!(refused.is("ST8003"), "{refused}");
        let stranger = leaf(&foreign, "node", "copier");
        let refused = clone(&with(&ours.pem(), Some(&stranger)), &options(&copy)).await.expect_err("not of our CA");
        assert!(refused.is("ST8002"), "{refused}");
        assert!(!copy.exists());
        clone(&with(&ours.pem(), Some(&copier)), &options(&copy)).await.expect("cloned over TLS");
        verify_backup(&copy);
    }
}
