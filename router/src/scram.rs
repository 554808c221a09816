//! SCRAM-SHA-256 (RFC 7677), both sides. The server's side recovers the client's key while it checks the proof; with
//! that key the router logs in to servers as the client without ever having seen the password.

use aws_lc_rs::{constant_time, digest, hmac, pbkdf2};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::num::NonZeroU32;

/// Most iterations that we do for a peer: a stranger must not decide how long we compute.
const ITERATIONS_MAX: u32 = 1_000_000;
/// What PostgreSQL uses.
const ITERATIONS: u32 = 4096;
/// Name of the mechanism.
pub const MECHANISM: &str = "SCRAM-SHA-256";

type Key = [u8; 32];

/// Why an exchange failed; not told to the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub &'static str);

/// The two keys that log a user in to any server that holds the same verifier.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    client: Key,
    server: Key,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

/// What `pg_authid` holds of a password.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: Vec<u8>,
    stored_key: Key,
    server_key: Key,
}

fn sign(key: &[u8], text: &[u8]) -> Key {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text);
    tag.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn hash(bytes: &[u8]) -> Key {
    digest::digest(&digest::SHA256, bytes).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn xor(a: &Key, b: &Key) -> Key {
    std::array::from_fn(|index| a[index] ^ b[index])
}

fn salted(password: &str, salt: &[u8], iterations: u32) -> Result<Key, Refused> {
    let rounds = NonZeroU32::new(iterations).filter(|rounds| rounds.get() <= ITERATIONS_MAX);
    let rounds = rounds.ok_or(Refused("an impossible number of iterations"))?;
    let mut key = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, password.as_bytes(), &mut key);
    Ok(key)
}

impl Verifier {
    /// Reads `SCRAM-SHA-256$4096:salt$stored:server`.
    pub fn parse(text: &str) -> Option<Verifier> {
        let (iterations, rest) = text.strip_prefix("SCRAM-SHA-256$")?.split_once(':')?;
        let (salt, keys) = rest.split_once('$')?;
        let (stored, server) = keys.split_once(':')?;
        let key = |text: &str| -> Option<Key> { BASE64.decode(text).ok()?.try_into().ok() };
        Some(Verifier {
            iterations: iterations.parse().ok()?,
            salt: BASE64.decode(salt).ok()?,
            stored_key: key(stored)?,
            server_key: key(server)?,
        })
    }

    /// Makes one from a password.
    pub fn from_password(password: &str, salt: [u8; 16]) -> Verifier {
        let salted = salted(password, &salt, ITERATIONS).expect("a sound number of iterations");
        Verifier {
            iterations: ITERATIONS,
            salt: salt.to_vec(),
            stored_key: hash(&sign(&salted, b"Client Key")),
            server_key: sign(&salted, b"Server Key"),
        }
    }

    /// One that no password fits, so that an unknown user sees the same exchange as a known one.
    pub fn nobody(seed: &[u8], user: &str) -> Verifier {
        let salt = sign(seed, user.as_bytes());
        Verifier {
            iterations: ITERATIONS,
            salt: salt[..16].to_vec(),
            stored_key: sign(seed, &salt),
            server_key: sign(seed, b"Server Key"),
        }
    }
}

/// The attribute `name=` of a SCRAM message.
fn attribute(message: &str, name: char) -> Option<&str> {
    message.split(',').find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

/// The server's side, after the client's first message.
pub struct ServerSide {
    verifier: Verifier,
    client_first_bare: String,
    header: String,
    nonce: String,
    server_first: String,
}

impl ServerSide {
    /// Answers the client's first message; `nonce` must be fresh and unguessable. Also the bytes to send.
    pub fn begin(verifier: Verifier, client_first: &[u8], nonce: &[u8]) -> Result<(ServerSide, String), Refused> {
        let text = std::str::from_utf8(client_first).map_err(|_| Refused("not text"))?;
        let mut parts = text.splitn(3, ',');
        let (Some(flag), Some(identity), Some(bare)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Refused("a first message without its parts"));
        };
        // `y` says: the client could bind to the channel and believes that we cannot. That is true of us.
        if !matches!(flag, "n" | "y") || !identity.is_empty() {
            return Err(Refused("channel binding or another identity asked for"));
        }
        let client_nonce = attribute(bare, 'r').filter(|nonce| !nonce.is_empty()).ok_or(Refused("no nonce"))?;
        let nonce = format!("{client_nonce}{}", BASE64.encode(nonce));
        let server_first = format!("r={nonce},s={},i={}", BASE64.encode(&verifier.salt), verifier.iterations);
        let side = ServerSide {
            verifier,
            client_first_bare: bare.to_owned(),
            header: format!("{flag},,"),
            nonce,
            server_first: server_first.clone(),
        };
        Ok((side, server_first))
    }

    /// Checks the client's proof. The keys to log in with, and the bytes to send.
    pub fn finish(self, client_final: &[u8]) -> Result<(Keys, String), Refused> {
        let text = std::str::from_utf8(client_final).map_err(|_| Refused("not text"))?;
        let (without_proof, proof) = text.rsplit_once(",p=").ok_or(Refused("no proof"))?;
        let binding = attribute(without_proof, 'c').ok_or(Refused("no channel binding"))?;
        if binding != BASE64.encode(&self.header) || attribute(without_proof, 'r') != Some(&self.nonce) {
            return Err(Refused("another header or nonce than before"));
        }
        let proof = BASE64.decode(proof).map_err(|_| Refused("a proof that is not base64"))?;
        let proof: Key = proof.try_into().map_err(|_| Refused("a proof of the wrong length"))?;
        let auth = format!("{},{},{without_proof}", self.client_first_bare, self.server_first);
        let client_key = xor(&proof, &sign(&self.verifier.stored_key, auth.as_bytes()));
        constant_time::verify_slices_are_equal(&hash(&client_key), &self.verifier.stored_key)
            .map_err(|_| Refused("wrong password"))?;
        let signature = sign(&self.verifier.server_key, auth.as_bytes());
        let keys = Keys { client: client_key, server: self.verifier.server_key };
        Ok((keys, format!("v={}", BASE64.encode(signature))))
    }
}

/// What the client's side has.
#[derive(Clone, Debug)]
pub enum Proof {
    /// The password.
    Password(String),
    /// Keys that were recovered.
    Keys(Keys),
}

/// The client's side.
pub struct ClientSide {
    proof: Proof,
    first_bare: String,
    nonce: String,
}

impl ClientSide {
    /// Begins; `nonce` must be fresh. Also the bytes to send.
    pub fn begin(proof: Proof, nonce: &[u8]) -> (ClientSide, String) {
        let nonce = BASE64.encode(nonce);
        let first_bare = format!("n=,r={nonce}");
        let first = format!("n,,{first_bare}");
        (ClientSide { proof, first_bare, nonce }, first)
    }

    /// Answers the server's first message: what to send, and what the server must say at the end.
    pub fn answer(self, server_first: &[u8]) -> Result<(String, String), Refused> {
        let text = std::str::from_utf8(server_first).map_err(|_| Refused("not text"))?;
        let nonce = attribute(text, 'r').ok_or(Refused("no nonce"))?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(Refused("a nonce that is not built on ours"));
        }
        let without_proof = format!("c=biws,r={nonce}");
        let auth = format!("{},{text},{without_proof}", self.first_bare);
        let keys = match self.proof {
            Proof::Keys(keys) => keys,
            Proof::Password(password) => {
                let salt = attribute(text, 's').and_then(|salt| BASE64.decode(salt).ok()).ok_or(Refused("no salt"))?;
                let rounds = attribute(text, 'i').and_then(|rounds| rounds.parse().ok());
                let salted = salted(&password, &salt, rounds.ok_or(Refused("no iterations"))?)?;
                Keys { client: sign(&salted, b"Client Key"), server: sign(&salted, b"Server Key") }
            }
        };
        let proof = xor(&keys.client, &sign(&hash(&keys.client), auth.as_bytes()));
        let expected = format!("v={}", BASE64.encode(sign(&keys.server, auth.as_bytes())));
        Ok((format!("{without_proof},p={}", BASE64.encode(proof)), expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(verifier: Verifier, proof: Proof) -> Result<Keys, Refused> {
        let (client, first) = ClientSide::begin(proof, b"client nonce");
        let (server, first) = ServerSide::begin(verifier, first.as_bytes(), b"server nonce")?;
        let (last, expected) = client.answer(first.as_bytes())?;
        let (keys, said) = server.finish(last.as_bytes())?;
        assert_eq!(said, expected, "the server proves itself too");
        Ok(keys)
    }

    #[test]
    fn the_recovered_keys_log_in_where_the_password_would() {
        let verifier = Verifier::from_password("open sesame", [7; 16]);
        let keys = exchange(verifier.clone(), Proof::Password("open sesame".into())).expect("the right password");
        exchange(verifier.clone(), Proof::Keys(keys)).expect("the recovered keys");
        assert!(exchange(verifier, Proof::Password("open barley".into())).is_err());
        let nobody = Verifier::nobody(b"seed", "ann");
        assert!(exchange(nobody, Proof::Password("open sesame".into())).is_err());
    }

    #[test]
    fn the_verifier_of_the_catalogue_is_read() {
        // The form that `pg_authid.rolpassword` has.
        let text = "SCRAM-SHA-256$4096:AAAAAAAAAAAAAAAAAAAAAA==$mvtFLWSeMsQpjfwBhsuoFqmwO8MA4U4WCCiiGM9kVlo=:\
                    mvtFLWSeMsQpjfwBhsuoFqmwO8MA4U4WCCiiGM9kVlo=";
        assert!(Verifier::parse(text).is_some());
        for bad in ["md5abc", "SCRAM-SHA-256$x:y$z:w", "SCRAM-SHA-256$4096:AA==$AA==:AA=="] {
            assert!(Verifier::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn messages_that_lie_are_refused() {
        let verifier = Verifier::from_password("p", [1; 16]);
        for first in ["", "n,,", "p=tls-server-end-point,,n=,r=x", "n,a=root,n=,r=x", "n,,n="] {
            assert!(ServerSide::begin(verifier.clone(), first.as_bytes(), b"n").is_err(), "{first}");
        }
        let (client, _) = ClientSide::begin(Proof::Password("p".into()), b"mine");
        assert!(client.answer(b"r=theirs,s=AAAA,i=4096").is_err(), "another nonce");
        let (client, _) = ClientSide::begin(Proof::Password("p".into()), b"mine");
        let many = format!("r={}x,s=AAAA,i=4000000000", BASE64.encode(b"mine"));
        assert!(client.answer(many.as_bytes()).is_err(), "hours of computing");
    }
}
