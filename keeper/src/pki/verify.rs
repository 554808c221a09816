//! Who is at the other end: verifiers of server certificates, for the mesh, for databases and for joining nodes.

use super::issue::{client_identity_from_cert, server_name};
use super::{PeerIdentity, provider, sha256_hex};
use model::ClusterId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::fmt;
use std::sync::Arc;

/// Why a certificate of a trusted CA is still the wrong one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WrongIdentity {
    /// It names no node.
    NoNode(String),
    /// It names a node of another cluster.
    Cluster { expected: ClusterId, presented: ClusterId },
    /// It names another node.
    Node { expected: String, presented: String },
    /// None of the presented certificates is the CA that the token names.
    NotPinned { expected: String },
}

impl fmt::Display for WrongIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WrongIdentity::NoNode(why) => f.write_str(why),
            WrongIdentity::Cluster { expected, presented } => {
                write!(f, "it is of cluster {presented}, not of cluster {expected}")
            }
            WrongIdentity::Node { expected, presented } => write!(f, "it is that of {presented}, not of {expected}"),
            WrongIdentity::NotPinned { expected } => {
                write!(f, "it is not signed by the CA that the token names (sha256 {expected})")
            }
        }
    }
}
impl std::error::Error for WrongIdentity {}

fn wrong(identity: WrongIdentity) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(identity))))
}

/// What a server's certificate must be.
#[derive(Debug)]
pub(super) enum Expect {
    /// That of the node whose `server_name` is asked for, in this cluster.
    NodeAskedFor(ClusterId),
    /// That of any node of this cluster. For databases: they are reached under addresses that change and that
    /// balancers share, so the host name proves nothing; that a *member of this cluster* answers is what matters.
    AnyNodeOf(ClusterId),
    /// Signed by the CA with this hash, which the server must send along. For a node that joins and knows nothing
    /// but its token.
    SignedBy(String),
}

/// Verifies the chain to a trusted CA, and then the URI instead of the host name.
#[derive(Debug)]
pub(super) struct NodeVerifier {
    pub(super) roots: RootCertStore,
    pub(super) expect: Expect,
}

impl NodeVerifier {
    fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
        roots: &RootCertStore,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let algorithms = provider().signature_verification_algorithms;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, others, now, algorithms.all)
    }

    fn verify_pinned(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
        hash: &str,
    ) -> Result<(), Error> {
        let pinned = others.iter().find(|certificate| sha256_hex(certificate) == hash);
        let Some(pinned) = pinned else {
            return Err(wrong(WrongIdentity::NotPinned { expected: hash.to_owned() }));
        };
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        self.verify_chain(leaf, others, now, &roots)
    }
}

fn same_cluster(identity: &PeerIdentity, cluster: &ClusterId) -> Result<(), Error> {
    if identity.cluster == *cluster {
        return Ok(());
    }
    Err(wrong(WrongIdentity::Cluster { expected: cluster.clone(), presented: identity.cluster.clone() }))
}

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        asked: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let identity = || {
            client_identity_from_cert(leaf).map_err(|trouble| wrong(WrongIdentity::NoNode(trouble.causes.join(": "))))
        };
        match &self.expect {
            Expect::NodeAskedFor(cluster) => {
                self.verify_chain(leaf, others, now, &self.roots)?;
                let identity = identity()?;
                same_cluster(&identity, cluster)?;
                let presented = server_name(identity.node);
                let asked = asked.to_str();
                if presented != asked {
                    return Err(wrong(WrongIdentity::Node { expected: asked.into_owned(), presented }));
                }
            }
            Expect::AnyNodeOf(cluster) => {
                self.verify_chain(leaf, others, now, &self.roots)?;
                same_cluster(&identity()?, cluster)?;
            }
            Expect::SignedBy(hash) => {
                self.verify_pinned(leaf, others, now, hash)?;
                identity()?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The client of a node that joins: no certificate of its own, and trust in exactly one CA.
pub(crate) fn pinned_client(ca_sha256: &str) -> Arc<ClientConfig> {
    let verifier = NodeVerifier { roots: RootCertStore::empty(), expect: Expect::SignedBy(ca_sha256.to_lowercase()) };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .expect("the provider knows TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Arc::new(config)
}
