//! TLS on both sides: configurations from files. The files are read again at every reload; connections that live keep
//! what they began with.

use model::Trouble;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::path::Path;
use std::sync::Arc;

/// What clients of PostgreSQL 17 and later say when they begin with TLS at once.
pub const ALPN: &[u8] = b"postgresql";

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn unreadable(path: &Path, why: impl std::fmt::Display) -> Trouble {
    Trouble::config_unreadable(
        format!("{} cannot be used for TLS", path.display()),
        "give a PEM file that this user may read",
    )
    .because(why)
}

fn roots(ca: &Path) -> Result<rustls::RootCertStore, Trouble> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|why| unreadable(ca, why))? {
        roots.add(certificate.map_err(|why| unreadable(ca, why))?).map_err(|why| unreadable(ca, why))?;
    }
    Ok(roots)
}

/// The name that a peer's certificate was issued for, where it showed one that was accepted.
pub fn peer_name(stream: &tokio_rustls::TlsStream<tokio::net::TcpStream>) -> Option<String> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let mut names = certificate.subject().iter_common_name();
    // Of two names nobody could tell which one is meant.
    let (name, more) = (names.next()?, names.next());
    more.is_none().then(|| name.as_str().ok().map(str::to_owned))?
}

/// What clients meet: a chain and its key, both PEM. With a CA they may show a certificate that it signed.
pub fn for_clients(
    certificate: &Path,
    key: &Path,
    client_ca: Option<&Path>,
) -> Result<Arc<rustls::ServerConfig>, Trouble> {
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(certificate).map_err(|why| unreadable(certificate, why))?.collect();
    let chain = chain.map_err(|why| unreadable(certificate, why))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|why| unreadable(key, why))?;
    let builder = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|why| unreadable(certificate, why))?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider());
            builder
                .with_client_cert_verifier(verifier.allow_unauthenticated().build().map_err(|why| unreadable(ca, why))?)
        }
    };
    let mut config = builder.with_single_cert(chain, private).map_err(|why| unreadable(certificate, why))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// What servers must show: a certificate for their address, signed by a CA in this PEM file.
pub fn for_servers(ca: &Path) -> Result<Arc<rustls::ClientConfig>, Trouble> {
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|why| unreadable(ca, why))?
        .with_root_certificates(roots(ca)?)
        .with_no_client_auth();
    Ok(Arc::new(config))
}
