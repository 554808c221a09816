//! The join token: what a new node needs to find the cluster, to trust it and to be let in, as one line of text.
//!
//! The checksum guards against truncation and typing errors, so that a broken token is refused where it is typed.
//! What makes a token good or bad is decided by the cluster, which knows the hash of the secret.

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use model::{ClusterName, Role, Trouble};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "stemma1.";
/// Of tokens that let a whole cluster follow.
const FOLLOW_PREFIX: &str = "stemmaf1.";
const CHECKSUM_BYTES: usize = 8;
/// More than the addresses of the largest cluster take.
const TOKEN_CHARS_MAX: usize = 16 << 10;

/// A join token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Public id; `stemma token list` shows it.
    pub id: String,
    /// The secret; the cluster holds only its hash.
    pub secret: String,
    /// The role it admits.
    pub role: Role,
    /// SHA-256 of the signing CA's certificate (DER), in hex: the new node trusts nobody else.
    pub ca_sha256: String,
    /// `host:port` of keepers that may be asked.
    pub addresses: Vec<String>,
    /// The cluster it belongs to.
    pub cluster: ClusterName,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secret stays out of logs.
        write!(f, "JoinToken({} for a {} of {})", self.id, self.role, self.cluster)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", encode(PREFIX, self)?)
    }
}

/// A token that lets another cluster follow the one that made it. Its role says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowToken(pub JoinToken);

impl fmt::Display for FollowToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", encode(FOLLOW_PREFIX, &self.0)?)
    }
}

impl FromStr for FollowToken {
    type Err = Trouble;

    fn from_str(text: &str) -> Result<FollowToken, Trouble> {
        if text.trim().starts_with(PREFIX) {
            return Err(Trouble::token_refused(
                "the token admits a node; it does not let a cluster follow",
                "make one for following in the other cluster: stemma token create --role follower",
            ));
        }
        decode(FOLLOW_PREFIX, text).map(FollowToken)
    }
}

fn encode(prefix: &str, token: &JoinToken) -> Result<String, fmt::Error> {
    let mut payload = postcard::to_stdvec(token).map_err(|_| fmt::Error)?;
    let sum = checksum(prefix, &payload);
    payload.extend_from_slice(&sum);
    Ok(format!("{prefix}{}", URL_SAFE_NO_PAD.encode(payload)))
}

impl FromStr for JoinToken {
    type Err = Trouble;

    fn from_str(text: &str) -> Result<JoinToken, Trouble> {
        if text.trim().starts_with(FOLLOW_PREFIX) {
            return Err(Trouble::token_refused(
                "the token lets a cluster follow; it admits no node",
                "use it with `stemma cluster follow`, or make one for a node: stemma token create",
            ));
        }
        decode(PREFIX, text)
    }
}

fn decode(prefix: &str, text: &str) -> Result<JoinToken, Trouble> {
    let text = text.trim();
    let Some(encoded) = text.strip_prefix(prefix) else {
        return Err(refused(format!("the token does not begin with `{prefix}`")));
    };
    if text.len() > TOKEN_CHARS_MAX {
        return Err(refused(format!("the token has {} characters, more than any real one", text.len())));
    }
    let bytes = URL_SAFE_NO_PAD
        .decode(encoded)
        .map_err(|_| refused("the token holds characters that no token has, or was cut short".into()))?;
    let Some((payload, sum)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else {
        return Err(refused("the token was cut short".into()));
    };
    if *sum != checksum(prefix, payload) {
        return Err(refused("the token is damaged, cut short or forged: its checksum does not fit".into()));
    }
    match postcard::take_from_bytes(payload) {
        Ok((token, [])) => Ok(token),
        Ok(_) | Err(_) => Err(refused("the token was made by another version of stemma".into())),
    }
}

fn checksum(prefix: &str, payload: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(prefix.as_bytes());
    context.update(payload);
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&context.finish().as_ref()[..CHECKSUM_BYTES]);
    sum
}

fn refused(reason: String) -> Trouble {
    Trouble::token_refused(reason, "copy the whole token again, or make a new one with `stemma token create`")
}

/// SHA-256 in hex of a token's secret, as the cluster's state keeps it.
pub fn secret_sha256(secret: &str) -> String {
    crate::pki::sha256_hex(secret.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            id: "tok_7".into(),
            secret: "0123456789abcdef0123456789abcdef".into(),
            role: Role::Replica,
            ca_sha256: "ab".repeat(32),
            addresses: vec!["n1.example:7432".into(), "[::1]:7432".into()],
            cluster: "shop".parse().expect("valid"),
        }
    }

    #[test]
    fn a_token_reads_back_as_written_even_with_white_space_around() {
        let text = token().to_string();
        assert_eq!(text.parse::<JoinToken>().expect("reads back"), token());
        assert_eq!(format!(" {text}\n").parse::<JoinToken>().expect("reads back"), token());
        assert!(!format!("{:?}", token()).contains("0123456789abcdef"), "the secret stays out of logs");
    }

    #[test]
    fn a_token_for_following_is_not_taken_for_one_that_admits_a_node_nor_the_other_way_round() {
        let follow = FollowToken(token()).to_string();
        assert_eq!(follow.parse::<FollowToken>().expect("reads back"), FollowToken(token()));
        let trouble = follow.parse::<JoinToken>().expect_err("admits no node");
        assert!(trouble.is("ST8001") && trouble.hint.contains("stemma cluster follow"), "{trouble}");
        let trouble = token().to_string().parse::<FollowToken>().expect_err("for a node");
        assert!(trouble.is("ST8001") && trouble.hint.contains("--role follower"), "{trouble}");
        let renamed = token().to_string().replacen(PREFIX, FOLLOW_PREFIX, 1);
        assert!(renamed.parse::<FollowToken>().is_err(), "the kind is part of the checksum");
    }

    #[test]
    fn every_truncation_is_refused() {
        let text = token().to_string();
        for end in 0..text.len() {
            let trouble = text[..end].parse::<JoinToken>().expect_err("cut short");
            assert!(trouble.is("ST8001"), "{trouble}");
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let text = token().to_string();
        for at in 0..text.len() {
            for bit in 0..7 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let flipped = String::from_utf8(bytes).expect("seven-bit text stays text");
                let trouble = flipped.parse::<JoinToken>().expect_err("damaged");
                assert!(trouble.is("ST8001"), "{trouble}");
            }
        }
    }

    #[test]
    fn what_is_no_token_at_all_is_refused() {
        for text in ["", "stemma1.", "stemma2.AAAA", "hello", &format!("stemma1.{}", "A".repeat(20_000))] {
            assert!(text.parse::<JoinToken>().expect_err("no token").is("ST8001"));
        }
    }
}
