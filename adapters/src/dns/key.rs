//! The key with which updates are signed (TSIG, RFC 8945).

use super::Failed;
use base64::Engine;
use hickory_proto::rr::rdata::tsig::TsigAlgorithm;
use hickory_proto::rr::{Name, TSigner};
use std::fmt;

/// Names of the algorithms that can be used.
pub const ALGORITHMS: [&str; 3] = ["hmac-sha256", "hmac-sha384", "hmac-sha512"];
/// How far both clocks may be apart, in seconds: what everybody uses.
const FUDGE_SECONDS: u16 = 300;

/// A key. Its secret is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// Its name, as the server knows it.
    pub name: String,
    /// One of `ALGORITHMS`.
    pub algorithm: String,
    secret: Vec<u8>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("name", &self.name).field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

impl Key {
    /// From the secret as key files have it, in base 64.
    pub fn new(name: &str, algorithm: &str, secret: &str) -> Result<Key, Failed> {
        let secret = base64::engine::general_purpose::STANDARD
            .decode(secret.trim())
            .map_err(|_| Failed::Config("the secret of the DNS key is not in base 64".to_owned()))?;
        let key = Key { name: name.to_owned(), algorithm: algorithm.to_owned(), secret };
        key.signer().map(|_| key)
    }

    pub(super) fn signer(&self) -> Result<TSigner, Failed> {
        let algorithm = match self.algorithm.as_str() {
            "hmac-sha256" => TsigAlgorithm::HmacSha256,
            "hmac-sha384" => TsigAlgorithm::HmacSha384,
            "hmac-sha512" => TsigAlgorithm::HmacSha512,
            other => return Err(Failed::Config(format!("`{other}` is none of {}", ALGORITHMS.join(", ")))),
        };
        let refused = |why: String| Failed::Config(format!("the DNS key `{}` cannot be used: {why}", self.name));
        let name = Name::from_ascii(&self.name).map_err(|error| refused(error.to_string()))?;
        TSigner::new(self.secret.clone(), algorithm, name, FUDGE_SECONDS).map_err(|error| refused(error.to_string()))
    }
}
