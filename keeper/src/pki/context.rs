//! The TLS configurations of a node, made from its identity files and replaceable while it runs.

use super::verify::{Expect, NodeVerifier};
use super::{PeerIdentity, client_identity_from_cert, provider};
use crate::identity::IdentityFiles;
use arc_swap::ArcSwap;
use model::follow::UpstreamSecrets;
use model::{ClusterId, Trouble, WallTime};
use rustls::client::Resumption;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use std::sync::Arc;
use tokio::sync::watch;

struct Current {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    postgres_client: Arc<ClientConfig>,
    client_verifier: Arc<dyn ClientCertVerifier>,
    own: PeerIdentity,
}

/// The TLS configurations now in force. New connections take the newest; who holds connections open watches
/// `generation` and makes them anew.
pub struct TlsContext {
    files: IdentityFiles,
    current: ArcSwap<Current>,
    generation: watch::Sender<u64>,
}

impl TlsContext {
    /// Reads the identity files and builds the configurations.
    pub fn load(identity: &IdentityFiles) -> Result<Arc<TlsContext>, Trouble> {
        let current = build(identity)?;
        Ok(Arc::new(TlsContext {
            files: identity.clone(),
            current: ArcSwap::from_pointee(current),
            generation: watch::Sender::new(1),
        }))
    }

    /// Takes up what is in the files now. When they are unfit, what was in force stays so.
    pub fn reload(&self) -> Result<(), Trouble> {
        let current = build(&self.files)?;
        self.current.store(Arc::new(current));
        self.generation.send_modify(|generation| *generation += 1);
        Ok(())
    }

    /// For accepting. A client certificate is optional here, because nodes that join have none yet; where one is
    /// presented, its chain is verified. What a client without one may do, the mesh decides.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.current.load().server.clone()
    }

    /// For connecting to another keeper, under `pki::server_name` of its node.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.current.load().client.clone()
    }

    /// For connecting to a database of this cluster, under whatever address: see `Expect::AnyNodeOf`.
    pub fn postgres_client(&self) -> Arc<ClientConfig> {
        self.current.load().postgres_client.clone()
    }

    /// End of this node's certificate.
    pub fn expires_at(&self) -> WallTime {
        self.current.load().own.expires_at
    }

    /// Whom this node's certificate names.
    pub fn own(&self) -> PeerIdentity {
        self.current.load().own.clone()
    }

    /// Counts the reloads.
    pub fn generation(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Whether a client's certificates, accepted earlier, would be accepted now.
    pub(crate) fn still_accepts(&self, chain: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        let Some((leaf, others)) = chain.split_first() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        self.current.load().client_verifier.verify_client_cert(leaf, others, UnixTime::now()).map(|_| ())
    }
}

fn build(files: &IdentityFiles) -> Result<Current, Trouble> {
    let content = files.load()?;
    let unfit = |what: &str, cause: &dyn std::fmt::Display| {
        Trouble::certificate_refused(
            format!("{what} in {} cannot be used", files.directory.display()),
            "restore the identity directory from a copy, or remove this node and join it anew",
        )
        .because(cause)
    };
    let pem = |what: &str, text: &str| {
        CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| unfit(what, &format!("{error:?}")))
    };
    let mut roots = RootCertStore::empty();
    let mut chain = vec![pem("node.crt", &content.certificate_pem)?];
    for ca in &content.ca_pem {
        let der = pem("ca.crt", ca)?;
        roots.add(der.clone()).map_err(|error| unfit("ca.crt", &error))?;
        // The CAs are sent along, so that a node that joins can find the one its token names.
        chain.push(der);
    }
    let own = client_identity_from_cert(&chain[0])?;
    if own.cluster != content.identity.cluster_id || own.node != content.identity.node {
        let found = format!("it names node {} of cluster {}", own.node, own.cluster);
        return Err(unfit("node.crt", &found));
    }
    let key = PrivateKeyDer::from_pem_slice(content.key_pem.as_bytes())
        .map_err(|error| unfit("node.key", &format!("{error:?}")))?;
    let client_verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.clone()), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| unfit("ca.crt", &error))?;
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .map_err(|error| unfit("node.crt", &error))?
        .with_client_cert_verifier(client_verifier.clone())
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(|error| unfit("node.crt with node.key", &error))?;
    // A resumed session would carry on with the verdict on an older certificate.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    let client = |expect: Expect| -> Result<Arc<ClientConfig>, Trouble> {
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .map_err(|error| unfit("node.crt", &error))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(NodeVerifier { roots: roots.clone(), expect }))
            .with_client_auth_cert(chain[..1].to_vec(), key.clone_key())
            .map_err(|error| unfit("node.crt with node.key", &error))?;
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    };
    Ok(Current {
        server: Arc::new(server),
        client: client(Expect::NodeAskedFor(own.cluster.clone()))?,
        postgres_client: client(Expect::AnyNodeOf(own.cluster.clone()))?,
        client_verifier,
        own,
    })
}

/// For connecting to a server of the cluster that this one follows, with the certificate that cluster gave.
pub(crate) fn upstream_client(secrets: &UpstreamSecrets, cluster: &ClusterId) -> Result<Arc<ClientConfig>, Trouble> {
    let unfit = |cause: &dyn std::fmt::Display| {
        Trouble::certificate_refused(
            "the certificate for the followed cluster cannot be used",
            "let the cluster be followed anew: stemma token create --role follower there, stemma cluster follow here",
        )
        .because(cause)
    };
    let pem =
        |text: &str| CertificateDer::from_pem_slice(text.as_bytes()).map_err(|error| unfit(&format!("{error:?}")));
    let mut roots = RootCertStore::empty();
    for ca in &secrets.ca_pem {
        roots.add(pem(ca)?).map_err(|error| unfit(&error))?;
    }
    let key =
        PrivateKeyDer::from_pem_slice(secrets.key_pem.as_bytes()).map_err(|error| unfit(&format!("{error:?}")))?;
    let verifier = NodeVerifier { roots, expect: Expect::AnyNodeOf(cluster.clone()) };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .map_err(|error| unfit(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(vec![pem(&secrets.certificate_pem)?], key)
        .map_err(|error| unfit(&error))?;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
