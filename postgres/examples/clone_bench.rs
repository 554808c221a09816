//! Clones a running server once and prints what it took, for `scripts/bench clone`.
//!
//! usage: clone_bench HOST PORT USER TARGET_DIR [--password-env NAME] [--ca FILE] [--owner UID:GID:NAME] [--no-sync]

use postgres::clone::{CloneOptions, CloneProgress, run};
use postgres::os_user::OsUser;
use postgres::replication::Endpoint;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::error::Error;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

fn tls(ca: &str) -> Result<Arc<rustls::ClientConfig>, Box<dyn Error>> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let mut next = |what: &str| words.next().ok_or(format!("{what} is missing"));
    let (host, port, user, data_dir) = (next("HOST")?, next("PORT")?.parse()?, next("USER")?, next("TARGET_DIR")?);
    let mut endpoint = Endpoint { host, port, user, password: None, tls: None, application_name: "clone_bench".into() };
    let (mut owner, mut fsync) = (None, true);
    while let Ok(flag) = next("flag") {
        match flag.as_str() {
            "--password-env" => endpoint.password = Some(std::env::var(next("NAME")?)?),
            "--ca" => endpoint.tls = Some(tls(&next("FILE")?)?),
            "--owner" => {
                let text = next("UID:GID:NAME")?;
                let mut parts = text.split(':');
                let mut part = || parts.next().ok_or("--owner wants UID:GID:NAME");
                owner = Some(OsUser { uid: part()?.parse()?, gid: part()?.parse()?, name: part()?.to_string() });
            }
            "--no-sync" => fsync = false,
            other => return Err(format!("unknown flag {other}").into()),
        }
    }
    let options = CloneOptions {
        data_dir: data_dir.into(),
        owner,
        rate_bytes_per_s: 0,
        expect_system_id: None,
        expect_major: None,
        label: "clone_bench".into(),
        tablespace_root: None,
        fsync,
        slot: None,
    };
    let (progress, _shown) = watch::channel(CloneProgress::default());
    let report = run(&endpoint, &options, progress, CancellationToken::new()).await?;
    let rate = report.bytes as f64 / report.seconds / 1e6;
    println!("seconds={:.3} bytes={} rate_mb_per_s={rate:.0} files={}", report.seconds, report.bytes, report.files);
    Ok(())
}
