//! An old primary comes back: crash recovery, rewind, and what is left of a rewind that was cut off.

mod pair;

use model::observe::CloneProgress;
use pair::{Pair, SOON, until};
use postgres::rewind::{self, RewindError, Rewound};
use postgres::{ControlState, DataDir, Recovered, check_data_dir, crash_recover, read_control_file};
use std::fs;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn unseen() -> watch::Sender<CloneProgress> {
    watch::channel(CloneProgress::default()).0
}

async fn rewound(pair: &Pair) -> Result<Rewound, RewindError> {
    rewind::run(&pair.old.spec, &pair.new.endpoint(), None, &unseen(), SOON, &CancellationToken::new()).await
}

/// The old primary wrote on after the promotion and was killed.
async fn parted(pair: &mut Pair) {
    pair.old.run("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT g, 'common' FROM generate_series(1, 100) g").await;
    pair.part().await;
    pair.old.run("INSERT INTO t VALUES (500, 'lost'); UPDATE t SET v = 'lost' WHERE id = 5; CHECKPOINT").await;
    pair.old.run("INSERT INTO t VALUES (501, 'lost')").await;
    pair.old.run("SELECT pg_create_physical_replication_slot('stemma_n3_3', true)").await;
    pair.new.run("INSERT INTO t VALUES (500, 'kept')").await;
    pair.old.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_primary_is_recovered_alone_rewound_and_follows() {
    let mut pair = Pair::new(&[], true).await;
    parted(&mut pair).await;
    let spec = &pair.old.spec;
    assert_eq!(read_control_file(&spec.data_dir).expect("control").state, ControlState::InProduction);
    assert!(rewind::possible(spec).expect_err("not shut down").reason.contains("not shut down in order"));
    let recovered = crash_recover(spec, SOON).await.expect("recovered");
    assert!(matches!(recovered, Recovered::Done { .. }), "{recovered:?}");
    assert_eq!(read_control_file(&spec.data_dir).expect("control").state, ControlState::ShutDown);
    assert!(matches!(crash_recover(spec, SOON).await, Ok(Recovered::NotNeeded(_))));
    rewind::possible(spec).expect("possible");

    let config = fs::read_to_string(spec.data_dir.join("stemma.conf")).expect("ours");
    assert_eq!(rewound(&pair).await, Ok(Rewound::Done));
    assert_eq!(fs::read_to_string(spec.data_dir.join("stemma.conf")).expect("ours"), config, "not the source's");
    assert!(spec.data_dir.join("standby.signal").exists(), "it can never start as a primary");
    assert!(matches!(check_data_dir(&spec.data_dir, spec.user.as_ref()), Ok(DataDir::Cluster(_))));
    // Who was let in to stream from what lay here before is not let in to what lies here now (ADR 0013).
    let slots = fs::read_dir(spec.data_dir.join("pg_replslot")).expect("a directory").count();
    assert_eq!(slots, 0, "slots outlived the rewind");
    pair.reunited().await;
    assert_eq!(pair.old.ask("SELECT v FROM t WHERE id IN (5, 500, 501) ORDER BY id").await, ["common", "kept"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rewind_cut_off_never_looks_whole_and_is_discarded() {
    let mut pair = Pair::new(&[], true).await;
    pair.old.run("CREATE TABLE big AS SELECT g, repeat('x', 500) v FROM generate_series(1, 40000) g").await;
    parted(&mut pair).await;
    crash_recover(&pair.old.spec, SOON).await.expect("recovered");
    // So much differs that the tool is at work for a while.
    pair.new.run("CREATE TABLE more AS SELECT * FROM big; CREATE TABLE most AS SELECT * FROM big").await;

    let (progress, mut shown) = watch::channel(CloneProgress::default());
    let (spec, source, cancel) = (pair.old.spec.clone(), pair.new.endpoint(), CancellationToken::new());
    let task = {
        let (spec, cancel) = (spec.clone(), cancel.clone());
        tokio::spawn(async move { rewind::run(&spec, &source, None, &progress, SOON, &cancel).await })
    };
    shown.wait_for(|shown| shown.phase == "rewind").await.expect("it began to write");
    let mut tool = Vec::new();
    until("the tool writes", async || {
        tool = postgres::server_processes(&spec.data_dir);
        !tool.is_empty() || task.is_finished()
    })
    .await;
    for pid in &tool {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL);
    }
    let ended = task.await.expect("no panic");
    assert!(matches!(ended, Err(RewindError::Broken(_))), "{ended:?}");

    let check = || check_data_dir(&spec.data_dir, spec.user.as_ref());
    assert_eq!(check(), Ok(DataDir::HalfMade { what: "rewind".into() }));
    assert!(postgres::Server::start(&spec).await.expect_err("refused").is("ST1202"));
    assert!(rewind::possible(&spec).expect_err("refused").reason.contains("cut off"));
    assert_eq!(postgres::clone::discard_half_made(&spec.data_dir, None), Ok(true));
    assert_eq!(check(), Ok(DataDir::Empty));
    let beside: Vec<_> = fs::read_dir(spec.data_dir.parent().expect("above")).expect("read").flatten().collect();
    assert!(beside.iter().all(|entry| !entry.file_name().to_string_lossy().contains("rewind")), "{beside:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_out_of_reach_and_missing_log_leave_the_directory_as_it_was() {
    let mut pair = Pair::new(&[], true).await;
    parted(&mut pair).await;
    crash_recover(&pair.old.spec, SOON).await.expect("recovered");
    let before = read_control_file(&pair.old.spec.data_dir).expect("control");
    let mut nowhere = pair.new.endpoint();
    nowhere.port = 1;
    let refused = rewind::run(&pair.old.spec, &nowhere, None, &unseen(), SOON, &CancellationToken::new()).await;
    assert!(matches!(refused, Err(RewindError::Untouched(_))), "{refused:?}");

    // The log back to the last common checkpoint is gone.
    let wal = pair.old.spec.data_dir.join("pg_wal");
    let names = fs::read_dir(&wal).expect("read").flatten().map(|entry| entry.file_name());
    let mut segments: Vec<_> = names.filter(|name| name.len() == 24).collect();
    segments.sort();
    let away = pair.directory.path().join("away");
    fs::create_dir(&away).expect("mkdir");
    for name in &segments {
        fs::rename(wal.join(name), away.join(name)).expect("moved");
    }
    let refused = rewound(&pair).await;
    assert!(matches!(refused, Err(RewindError::Untouched(_))), "{refused:?}");
    assert_eq!(read_control_file(&pair.old.spec.data_dir).expect("control"), before);
    for name in &segments {
        fs::rename(away.join(name), wal.join(name)).expect("moved back");
    }
    assert_eq!(rewound(&pair).await, Ok(Rewound::Done));
    pair.reunited().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_hints_in_the_log_a_rewind_is_impossible_and_says_why() {
    let mut pair = Pair::new(&[], false).await;
    pair.old.run("CREATE TABLE t (id int)").await;
    pair.old.stop().await;
    rewind::possible(&pair.old.spec).expect("our servers log hints");
    // As a server that was not started by us would have been.
    let conf = pair.old.spec.data_dir.join("stemma.conf");
    let text = fs::read_to_string(&conf).expect("read").replace("wal_log_hints = 'on'", "wal_log_hints = 'off'");
    fs::write(&conf, text).expect("written");
    let mut postgres = std::process::Command::new(pair.old.spec.installation.bin_dir.join("postgres"));
    if let Some(user) = &pair.old.spec.user {
        use std::os::unix::process::CommandExt;
        postgres.uid(user.uid).gid(user.gid);
    }
    let ended = postgres.arg("--single").arg("-D").arg(&pair.old.spec.data_dir).arg("postgres");
    let ended = ended.current_dir("/").stdin(std::process::Stdio::null()).output().expect("runs");
    assert!(ended.status.success(), "{ended:?}");
    let trouble = rewind::possible(&pair.old.spec).expect_err("impossible");
    assert!(trouble.reason.contains("neither checksums nor wal_log_hints"), "{trouble}");
    assert!(matches!(rewound(&pair).await, Err(RewindError::Untouched(_))));

    let mut spec = pair.old.spec.clone();
    let bare = pair.directory.path().join("bare");
    fs::create_dir(&bare).expect("mkdir");
    spec.installation.bin_dir = bare;
    assert!(rewind::possible(&spec).expect_err("no tool").reason.contains("there is no pg_rewind"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_primary_that_lost_nothing_needs_no_rewind() {
    let mut pair = Pair::new(&[], true).await;
    pair.old.run("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    // A replica that has yet to connect would miss the end.
    pair.in_step().await;
    // In order: the replica receives the shutdown checkpoint, then it is promoted.
    pair.old.stop().await;
    let end = read_control_file(&pair.old.spec.data_dir).expect("control").checkpoint;
    until("all received", async || pair.new.ask(&format!("SELECT pg_last_wal_replay_lsn() > '{end}'")).await == ["t"])
        .await;
    pair.new.sql.promote().await.expect("promotion");
    until("promoted", async || pair.new.ask("SELECT pg_is_in_recovery()").await == ["f"]).await;
    pair.new.run("INSERT INTO t VALUES (1, 'new')").await;
    assert_eq!(rewound(&pair).await, Ok(Rewound::NotRequired));
    pair.reunited().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tablespace_that_only_the_primary_has_is_no_place_to_write_to() {
    let mut pair = Pair::new(&[], true).await;
    parted(&mut pair).await;
    let place = pair.directory.path().join("n2/space");
    fs::create_dir(&place).expect("mkdir");
    if let Some(user) = &pair.new.spec.user {
        std::os::unix::fs::chown(&place, Some(user.uid), Some(user.gid)).expect("chown");
    }
    let client = pair.new.client("postgres").await;
    client.batch_execute(&format!("CREATE TABLESPACE apart LOCATION '{}'", place.display())).await.expect("made");
    client.batch_execute("CREATE TABLE public.there (id int) TABLESPACE apart").await.expect("made");
    crash_recover(&pair.old.spec, SOON).await.expect("recovered");
    match rewound(&pair).await {
        Err(RewindError::Untouched(trouble)) => assert!(trouble.reason.contains("has a tablespace"), "{trouble}"),
        other => panic!("{other:?}"),
    }
    client
        .batch_execute("INSERT INTO public.there VALUES (1); CHECKPOINT")
        .await
        .expect("the primary's files are whole");
}

mod tls {
    use super::*;
    use postgres::{TlsFiles, replication::Endpoint};
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    use std::path::Path;
    use std::sync::Arc;

    /// The node's certificate in files that its server can read, and in memory for our own connections.
    fn member(ca: &CertifiedIssuer<'static, KeyPair>, node: &mut pair::Node, name: &str) -> Arc<rustls::ClientConfig> {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, ca).expect("signed").pem();
        let home = node.spec.data_dir.parent().expect("above").to_owned();
        let write = |file: &str, body: &str| {
            let path = home.join(file);
            fs::write(&path, body).expect("written");
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
            if let Some(user) = &node.spec.user {
                std::os::unix::fs::chown(Path::new(&path), Some(user.uid), Some(user.gid)).expect("owner");
            }
            path
        };
        let files = TlsFiles {
            cert: write("node.crt", &certificate),
            key: write("node.key", &key.serialize_pem()),
            ca: write("ca.crt", &ca.pem()),
        };
        node.spec.tls_files = Some(files);
        node.config.tls = true;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).expect("certificate")).expect("a CA");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider);
        let builder = builder.with_safe_default_protocol_versions().expect("versions").with_root_certificates(roots);
        let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("certificate");
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).expect("key");
        Arc::new(builder.with_client_auth_cert(vec![certificate], key).expect("client certificate"))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn with_tls_the_nodes_certificate_opens_the_source() {
        let mut pair = Pair::new(&[], true).await;
        parted(&mut pair).await;
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("signed");
        pair.new.stop().await;
        member(&ca, &mut pair.new, "n2");
        pair.new.start(postgres::ServerRole::Primary).await;
        let ours = member(&ca, &mut pair.old, "n1");
        crash_recover(&pair.old.spec, SOON).await.expect("recovered");
        let source = Endpoint { tls: Some(ours), password: None, ..pair.new.endpoint() };
        let cancel = CancellationToken::new();
        let done =
            rewind::run(&pair.old.spec, &source, pair.old.spec.tls_files.as_ref(), &unseen(), SOON, &cancel).await;
        assert_eq!(done, Ok(Rewound::Done));

        // A password opens nothing there.
        assert!(matches!(rewound(&pair).await, Err(RewindError::Untouched(_))));
    }
}
