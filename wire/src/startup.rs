//! The first message of a connection: it has no tag. It starts a session, asks for encryption, or cancels a query.

use crate::frame::{Malformed, c_string, number32};

/// Longest first message; PostgreSQL's own bound.
pub const STARTUP_BYTES_MAX: usize = 10_000;
/// Protocol 3.0.
pub const PROTOCOL_3_0: u32 = 3 << 16;

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSS: u32 = 80_877_104;

/// What a client opens with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Wants TLS; answered with one byte.
    Ssl,
    /// Wants GSSAPI encryption; answered with one byte.
    Gss,
    /// Cancels what the session with this key runs.
    Cancel {
        /// The process id that the session was told.
        pid: u32,
        /// The secret that the session was told: four bytes in protocol 3.0, more from 3.2 on.
        secret: Vec<u8>,
    },
    /// Starts a session.
    Start(Start),
}

/// The parameters of a session.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// Minor version of protocol 3 that the client would like.
    pub minor: u16,
    /// Names and values in the order given; names beginning with `_pq_.` are protocol extensions.
    pub parameters: Vec<(String, String)>,
}

impl Start {
    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Protocol extensions that the client asks for.
    pub fn extensions(&self) -> impl Iterator<Item = &str> {
        self.parameters.iter().map(|(key, _)| key.as_str()).filter(|key| key.starts_with("_pq_."))
    }
}

/// Length of the first message, itself included; `None` while too few bytes are there.
pub fn length(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some(head) = bytes.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*head) as usize;
    if !(8..=STARTUP_BYTES_MAX).contains(&length) {
        return Err(Malformed("the first message has an impossible length"));
    }
    Ok(Some(length))
}

/// Reads the first message, whole and without its length.
pub fn parse(body: &[u8]) -> Result<Opening, Malformed> {
    let (code, rest) = number32(body)?;
    match code {
        SSL => Ok(Opening::Ssl),
        GSS => Ok(Opening::Gss),
        CANCEL => {
            let (pid, secret) = number32(rest)?;
            if !(4..=256).contains(&secret.len()) {
                return Err(Malformed("a cancel request whose key has an impossible length"));
            }
            Ok(Opening::Cancel { pid, secret: secret.to_vec() })
        }
        version if version >> 16 == 3 => {
            Ok(Opening::Start(Start { minor: (version & 0xffff) as u16, parameters: parameters(rest)? }))
        }
        _ => Err(Malformed("a protocol other than version 3")),
    }
}

fn parameters(mut rest: &[u8]) -> Result<Vec<(String, String)>, Malformed> {
    let mut found = Vec::new();
    loop {
        let (name, after) = c_string(rest)?;
        if name.is_empty() {
            return if after.is_empty() { Ok(found) } else { Err(Malformed("bytes behind the startup parameters")) };
        }
        let (value, after) = c_string(after)?;
        let text = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec()).map_err(|_| Malformed("a startup parameter that is not UTF-8"))
        };
        found.push((text(name)?, text(value)?));
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build;
    use proptest::prelude::*;

    #[test]
    fn what_we_build_we_read() {
        let mut bytes = Vec::new();
        build::startup(&mut bytes, &[("user", "ann"), ("database", "shop")]);
        assert_eq!(length(&bytes), Ok(Some(bytes.len())));
        let Ok(Opening::Start(start)) = parse(&bytes[4..]) else { panic!("no start") };
        assert_eq!((start.get("user"), start.get("database"), start.minor), (Some("ann"), Some("shop"), 0));

        bytes.clear();
        build::cancel_request(&mut bytes, 7, &[1, 2, 3, 4]);
        assert_eq!(parse(&bytes[4..]), Ok(Opening::Cancel { pid: 7, secret: vec![1, 2, 3, 4] }));
    }

    #[test]
    fn parameters_without_an_end_are_refused() {
        assert!(parse(b"\0\x03\0\0user\0ann\0").is_err());
        assert!(parse(b"\0\x03\0\0user\0ann\0\0more").is_err());
        assert!(parse(b"\0\x02\0\0").is_err(), "version 2");
        assert!(length(b"\0\0\0\x07").is_err() && length(b"\x7f\0\0\0").is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (length(&bytes), parse(&bytes));
        }
    }
}
