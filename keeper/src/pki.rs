//! Keys and certificates of the cluster, and the TLS configurations made from them.
//!
//! A node *is* its URI `spiffe://stemma/<cluster id>/node/<node id>`, signed by the cluster's CA. Addresses are in the
//! certificates too, for other people's clients, but we never decide by them: addresses change, identity does not.
//! Which member may use which key is decided by the cluster's state (`mesh::Handler::admits`).

mod context;
mod issue;
mod refusal;
mod server_files;
mod verify;

pub use context::TlsContext;
pub(crate) use context::upstream_client;
pub use issue::{
    PeerIdentity, ca_sha256, client_identity_from_cert, csr_for_key, identity_uri, key_fingerprint_of_cert,
    key_fingerprint_of_csr, make_ca, make_key_and_csr, server_name, sign, sign_follower,
};
pub use refusal::handshake_trouble;
pub(crate) use refusal::tls_trouble;
pub(crate) use server_files::write_private_if_other;
pub use server_files::write_server_files;
pub(crate) use verify::pinned_client;

use std::fmt::Write;

/// SHA-256 in hex.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut hex = String::with_capacity(64);
    for byte in digest.as_ref() {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// The one provider of cryptography. Always given by name: were a second one ever linked in, rustls would not know
/// which to take and would panic at the first connection.
pub(crate) fn provider() -> std::sync::Arc<rustls::crypto::CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<std::sync::Arc<rustls::crypto::CryptoProvider>> = std::sync::OnceLock::new();
    PROVIDER.get_or_init(|| std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider())).clone()
}
