//! A message is one tag byte, a length of four bytes that counts itself, and a body.

use std::fmt;

/// Bytes of tag and length.
pub const HEADER_BYTES: usize = 5;
/// Longest body of a message that may be large: what PostgreSQL itself allows (1 GiB less a little).
pub const LARGE_BODY_MAX: usize = 0x3fff_fffe;
/// Longest body of every other message of a client; PostgreSQL's own bound.
pub const SMALL_BODY_MAX: usize = 10_000;

/// Bytes that are no message of this protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}
impl std::error::Error for Malformed {}

/// The head of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// What kind of message.
    pub tag: u8,
    /// Bytes after the head.
    pub body: usize,
}

impl Header {
    /// Bytes of the whole message.
    pub fn total(self) -> usize {
        HEADER_BYTES + self.body
    }
}

/// The head at the front of `bytes`; `None` while too few are there.
pub fn header(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    // The length counts its own four bytes.
    let body = length.checked_sub(4).ok_or(Malformed("a message shorter than its own length field"))?;
    if body > LARGE_BODY_MAX {
        return Err(Malformed("a message longer than the protocol allows"));
    }
    Ok(Some(Header { tag: head[0], body }))
}

/// The head of a client's message, with the stricter bounds that a server applies to small kinds.
pub fn client_header(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    let Some(head) = header(bytes)? else { return Ok(None) };
    let large = match head.tag {
        b'Q' | b'P' | b'B' | b'F' | b'd' => true,
        b'E' | b'D' | b'C' | b'H' | b'S' | b'X' | b'c' | b'f' | b'p' => false,
        _ => return Err(Malformed("a message of an unknown kind")),
    };
    if !large && head.body > SMALL_BODY_MAX {
        return Err(Malformed("a message too long for its kind"));
    }
    Ok(Some(head))
}

/// Splits a text that ends with a zero byte from `bytes`.
pub fn c_string(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let end = bytes.iter().position(|byte| *byte == 0).ok_or(Malformed("a text without its end"))?;
    Ok((&bytes[..end], &bytes[end + 1..]))
}

/// Splits a two-byte number from `bytes`.
pub fn number16(bytes: &[u8]) -> Result<(u16, &[u8]), Malformed> {
    let (number, rest) = bytes.split_first_chunk::<2>().ok_or(Malformed("a number without its bytes"))?;
    Ok((u16::from_be_bytes(*number), rest))
}

/// Splits a four-byte number from `bytes`.
pub fn number32(bytes: &[u8]) -> Result<(u32, &[u8]), Malformed> {
    let (number, rest) = bytes.split_first_chunk::<4>().ok_or(Malformed("a number without its bytes"))?;
    Ok((u32::from_be_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_length_that_lies_is_named() {
        assert_eq!(header(b"Q\0\0\0"), Ok(None));
        assert_eq!(header(b"Q\0\0\0\x04"), Ok(Some(Header { tag: b'Q', body: 0 })));
        assert!(header(b"Q\0\0\0\x03").is_err(), "shorter than itself");
        assert!(header(b"Q\xff\xff\xff\xff").is_err(), "four gigabytes");
        assert!(client_header(b"S\0\x01\0\0").is_err(), "a Sync of 64 kB");
        assert!(client_header(b"?\0\0\0\x04").is_err(), "no such message");
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some(head)) = client_header(&bytes) {
                prop_assert!(head.body <= LARGE_BODY_MAX);
                prop_assert!(bytes.len() >= HEADER_BYTES);
            }
            if let Ok((text, rest)) = c_string(&bytes) {
                prop_assert_eq!(text.len() + 1 + rest.len(), bytes.len());
            }
        }
    }
}
