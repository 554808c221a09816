//! Messages of servers that a router looks into: errors, settings, keys, and the requests of a login.

use crate::frame::{Malformed, c_string, number16, number32};

/// The fields of an ErrorResponse or NoticeResponse that decisions are made on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorFields {
    /// ERROR, FATAL, ... in English where the server says so.
    pub severity: String,
    /// The five characters of the SQLSTATE.
    pub sqlstate: String,
    /// The sentence.
    pub message: String,
    /// More of it.
    pub detail: String,
    /// What to do.
    pub hint: String,
}

/// Reads the body of an ErrorResponse or NoticeResponse. Lenient: whatever is there is taken.
pub fn error_fields(mut body: &[u8]) -> ErrorFields {
    let mut fields = ErrorFields::default();
    while let Some((kind, rest)) = body.split_first() {
        let Ok((text, rest)) = c_string(rest) else { break };
        let text = || String::from_utf8_lossy(text).into_owned();
        match kind {
            b'S' if fields.severity.is_empty() => fields.severity = text(),
            b'V' => fields.severity = text(),
            b'C' => fields.sqlstate = text(),
            b'M' => fields.message = text(),
            b'D' => fields.detail = text(),
            b'H' => fields.hint = text(),
            _ => {} // The protocol asks to ignore fields one does not know.
        }
        body = rest;
    }
    fields
}

/// The SQLSTATE in the body of an ErrorResponse, without copying.
pub fn sqlstate(mut body: &[u8]) -> Option<&[u8]> {
    while let Some((kind, rest)) = body.split_first() {
        let (text, rest) = c_string(rest).ok()?;
        if *kind == b'C' {
            return Some(text);
        }
        body = rest;
    }
    None
}

/// Reads the body of a NotificationResponse: channel and payload, behind the number of the process that notified.
pub fn notification(body: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (_, rest) = number32(body)?;
    let (channel, rest) = c_string(rest)?;
    let (payload, rest) = c_string(rest)?;
    if rest.is_empty() { Ok((channel, payload)) } else { Err(Malformed("bytes behind a NotificationResponse")) }
}

/// Reads the body of a ParameterStatus.
pub fn parameter_status(body: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let (name, rest) = c_string(body)?;
    let (value, rest) = c_string(rest)?;
    if rest.is_empty() { Ok((name, value)) } else { Err(Malformed("bytes behind a ParameterStatus")) }
}

/// Reads the body of a DataRow in text format; `None` is NULL.
pub fn text_row(body: &[u8]) -> Result<Vec<Option<String>>, Malformed> {
    let (count, mut rest) = number16(body)?;
    let mut row = Vec::with_capacity(usize::from(count).min(64));
    for _ in 0..count {
        let (length, after) = number32(rest)?;
        if length == u32::MAX {
            row.push(None);
            rest = after;
            continue;
        }
        let value = after.get(..length as usize).ok_or(Malformed("a value longer than its row"))?;
        row.push(Some(String::from_utf8_lossy(value).into_owned()));
        rest = &after[length as usize..];
    }
    Ok(row)
}

/// Reads the body of a BackendKeyData: process id and secret.
pub fn backend_key(body: &[u8]) -> Result<(u32, &[u8]), Malformed> {
    let (pid, secret) = number32(body)?;
    if (4..=256).contains(&secret.len()) { Ok((pid, secret)) } else { Err(Malformed("a key of impossible length")) }
}

/// What a server asks for during a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication<'b> {
    /// Nothing more.
    Ok,
    /// The password as it is.
    Cleartext,
    /// The password hashed with this salt.
    Md5([u8; 4]),
    /// One of these SASL mechanisms.
    Sasl(Vec<&'b [u8]>),
    /// The server's part of a SASL exchange.
    SaslContinue(&'b [u8]),
    /// The end of a SASL exchange.
    SaslFinal(&'b [u8]),
    /// Something we cannot do.
    Other(u32),
}

/// Reads the body of an Authentication request.
pub fn authentication(body: &[u8]) -> Result<Authentication<'_>, Malformed> {
    let (kind, rest) = number32(body)?;
    Ok(match kind {
        0 => Authentication::Ok,
        3 => Authentication::Cleartext,
        5 => {
            let salt = rest.first_chunk::<4>().ok_or(Malformed("a salt that is too short"))?;
            Authentication::Md5(*salt)
        }
        10 => {
            let mut mechanisms = Vec::new();
            let mut rest = rest;
            loop {
                let (name, after) = c_string(rest)?;
                if name.is_empty() {
                    break;
                }
                mechanisms.push(name);
                rest = after;
            }
            Authentication::Sasl(mechanisms)
        }
        11 => Authentication::SaslContinue(rest),
        12 => Authentication::SaslFinal(rest),
        other => Authentication::Other(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build;
    use proptest::prelude::*;

    #[test]
    fn an_error_that_we_build_reads_back() {
        let mut bytes = Vec::new();
        build::error(
            &mut bytes,
            &build::Complaint { severity: "ERROR", sqlstate: "40001", message: "lost", detail: "d", hint: "h" },
        );
        let fields = error_fields(&bytes[5..]);
        assert_eq!((fields.severity.as_str(), fields.sqlstate.as_str()), ("ERROR", "40001"));
        assert_eq!((fields.message.as_str(), fields.detail.as_str(), fields.hint.as_str()), ("lost", "d", "h"));
        assert_eq!(sqlstate(&bytes[5..]), Some(&b"40001"[..]));
    }

    #[test]
    fn a_row_that_we_build_reads_back() {
        let (mut bytes, row) = (Vec::new(), vec![Some("x".to_owned()), None]);
        build::data_row(&mut bytes, &row);
        assert_eq!(text_row(&bytes[5..]), Ok(row));
        assert!(text_row(b"\0\x01\0\0\0\x05ab").is_err(), "promises five bytes, has two");
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = (error_fields(&bytes), sqlstate(&bytes), parameter_status(&bytes), backend_key(&bytes));
            let _ = notification(&bytes);
            let _ = (authentication(&bytes), text_row(&bytes));
        }
    }
}
