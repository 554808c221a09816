//! The messages that a router says itself, to clients and to servers. Each is appended to a buffer.

use crate::startup::PROTOCOL_3_0;

/// Appends a message whose body `fill` writes.
pub fn message(out: &mut Vec<u8>, tag: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    sized(out, fill);
}

/// Appends a length and what `fill` writes; the length counts itself.
fn sized(out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    fill(out);
    let length = u32::try_from(out.len() - start).expect("messages that we build are short");
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

fn text(out: &mut Vec<u8>, text: &[u8]) {
    // A zero byte inside would end the text early and shift everything behind it.
    out.extend(text.iter().filter(|byte| **byte != 0));
    out.push(0);
}

// --- to servers ---------------------------------------------------------------------------------------------------

/// A startup message of protocol 3.0.
pub fn startup(out: &mut Vec<u8>, parameters: &[(&str, &str)]) {
    sized(out, |out| {
        out.extend_from_slice(&PROTOCOL_3_0.to_be_bytes());
        for (name, value) in parameters {
            text(out, name.as_bytes());
            text(out, value.as_bytes());
        }
        out.push(0);
    });
}

/// A request for TLS.
pub fn ssl_request(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f]);
}

/// A request to cancel.
pub fn cancel_request(out: &mut Vec<u8>, pid: u32, secret: &[u8]) {
    sized(out, |out| {
        out.extend_from_slice(&80_877_102u32.to_be_bytes());
        out.extend_from_slice(&pid.to_be_bytes());
        out.extend_from_slice(secret);
    });
}

/// A simple query.
pub fn query(out: &mut Vec<u8>, sql: &str) {
    message(out, b'Q', |out| text(out, sql.as_bytes()));
}

/// A Parse; `definition` is the text with its end and the parameter types.
pub fn parse(out: &mut Vec<u8>, name: &[u8], definition: &[u8]) {
    message(out, b'P', |out| {
        text(out, name);
        out.extend_from_slice(definition);
    });
}

/// The head of a Bind whose remaining `rest` bytes (the parameters) follow from elsewhere.
pub fn bind_head(out: &mut Vec<u8>, portal: &[u8], statement: &[u8], rest: usize) {
    out.push(b'B');
    let length = u32::try_from(4 + portal.len() + statement.len() + 2 + rest).expect("below the bound of a message");
    out.extend_from_slice(&length.to_be_bytes());
    text(out, portal);
    text(out, statement);
}

/// A Bind without parameters, whose results come as text.
pub fn bind_plain(out: &mut Vec<u8>, portal: &[u8], statement: &[u8]) {
    bind_head(out, portal, statement, 6);
    out.extend_from_slice(&[0; 6]);
}

/// An Execute of a portal to its end.
pub fn execute(out: &mut Vec<u8>, portal: &[u8]) {
    message(out, b'E', |out| {
        text(out, portal);
        out.extend_from_slice(&[0; 4]);
    });
}

/// A Close of a portal.
pub fn close_portal(out: &mut Vec<u8>, name: &[u8]) {
    message(out, b'C', |out| {
        out.push(b'P');
        text(out, name);
    });
}

/// A Describe of a statement.
pub fn describe_statement(out: &mut Vec<u8>, name: &[u8]) {
    message(out, b'D', |out| {
        out.push(b'S');
        text(out, name);
    });
}

/// A Close of a statement.
pub fn close_statement(out: &mut Vec<u8>, name: &[u8]) {
    message(out, b'C', |out| {
        out.push(b'S');
        text(out, name);
    });
}

/// A Sync.
pub fn sync(out: &mut Vec<u8>) {
    message(out, b'S', |_| {});
}

/// A Flush.
pub fn flush(out: &mut Vec<u8>) {
    message(out, b'H', |_| {});
}

/// A CopyFail.
pub fn copy_fail(out: &mut Vec<u8>, reason: &str) {
    message(out, b'f', |out| text(out, reason.as_bytes()));
}

/// The end of a session.
pub fn terminate(out: &mut Vec<u8>) {
    message(out, b'X', |_| {});
}

/// A password as the server wants it: clear or hashed.
pub fn password(out: &mut Vec<u8>, password: &[u8]) {
    message(out, b'p', |out| text(out, password));
}

/// The first SASL message.
pub fn sasl_initial(out: &mut Vec<u8>, mechanism: &str, data: &[u8]) {
    message(out, b'p', |out| {
        text(out, mechanism.as_bytes());
        out.extend_from_slice(&u32::try_from(data.len()).expect("a short message").to_be_bytes());
        out.extend_from_slice(data);
    });
}

/// A later SASL message.
pub fn sasl_response(out: &mut Vec<u8>, data: &[u8]) {
    message(out, b'p', |out| out.extend_from_slice(data));
}

// --- to clients ---------------------------------------------------------------------------------------------------

/// An error or notice to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Complaint<'t> {
    /// ERROR, FATAL, NOTICE, WARNING.
    pub severity: &'t str,
    /// Five characters.
    pub sqlstate: &'t str,
    /// One sentence.
    pub message: &'t str,
    /// More; may be empty.
    pub detail: &'t str,
    /// What to do; may be empty.
    pub hint: &'t str,
}

fn complaint(out: &mut Vec<u8>, complaint: &Complaint<'_>) {
    let fields = [
        (b'S', complaint.severity),
        (b'V', complaint.severity),
        (b'C', complaint.sqlstate),
        (b'M', complaint.message),
        (b'D', complaint.detail),
        (b'H', complaint.hint),
    ];
    for (kind, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
        out.push(kind);
        text(out, value.as_bytes());
    }
    out.push(0);
}

/// An ErrorResponse.
pub fn error(out: &mut Vec<u8>, what: &Complaint<'_>) {
    message(out, b'E', |out| complaint(out, what));
}

/// A NoticeResponse.
pub fn notice(out: &mut Vec<u8>, what: &Complaint<'_>) {
    message(out, b'N', |out| complaint(out, what));
}

/// The end of a login.
pub fn authentication_ok(out: &mut Vec<u8>) {
    message(out, b'R', |out| out.extend_from_slice(&0u32.to_be_bytes()));
}

/// A request for the password as it is.
pub fn authentication_cleartext(out: &mut Vec<u8>) {
    message(out, b'R', |out| out.extend_from_slice(&3u32.to_be_bytes()));
}

/// A request for SASL by one of these mechanisms.
pub fn authentication_sasl(out: &mut Vec<u8>, mechanisms: &[&str]) {
    message(out, b'R', |out| {
        out.extend_from_slice(&10u32.to_be_bytes());
        for name in mechanisms {
            text(out, name.as_bytes());
        }
        out.push(0);
    });
}

/// The server's part of a SASL exchange; `last` for its end.
pub fn authentication_sasl_data(out: &mut Vec<u8>, data: &[u8], last: bool) {
    message(out, b'R', |out| {
        out.extend_from_slice(&(if last { 12u32 } else { 11 }).to_be_bytes());
        out.extend_from_slice(data);
    });
}

/// A ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    message(out, b'S', |out| {
        text(out, name);
        text(out, value);
    });
}

/// The key for cancel requests.
pub fn backend_key(out: &mut Vec<u8>, pid: u32, secret: &[u8]) {
    message(out, b'K', |out| {
        out.extend_from_slice(&pid.to_be_bytes());
        out.extend_from_slice(secret);
    });
}

/// Which minor version we speak, and which extensions we do not know.
pub fn negotiate_version(out: &mut Vec<u8>, minor: u16, unknown: &[&str]) {
    message(out, b'v', |out| {
        out.extend_from_slice(&u32::from(minor).to_be_bytes());
        out.extend_from_slice(&u32::try_from(unknown.len()).expect("a short list").to_be_bytes());
        for name in unknown {
            text(out, name.as_bytes());
        }
    });
}

/// ReadyForQuery with the transaction's state: `I`, `T` or `E`.
pub fn ready(out: &mut Vec<u8>, status: u8) {
    message(out, b'Z', |out| out.push(status));
}

/// The answer to a Parse.
pub fn parse_complete(out: &mut Vec<u8>) {
    message(out, b'1', |_| {});
}

/// The answer to a Bind.
pub fn bind_complete(out: &mut Vec<u8>) {
    message(out, b'2', |_| {});
}

/// The answer to a Close.
pub fn close_complete(out: &mut Vec<u8>) {
    message(out, b'3', |_| {});
}

/// The answer to a Describe of something that returns nothing.
pub fn no_data(out: &mut Vec<u8>) {
    message(out, b'n', |_| {});
}

/// The answer to a Describe of a statement: no parameters.
pub fn no_parameters(out: &mut Vec<u8>) {
    message(out, b't', |out| out.extend_from_slice(&0u16.to_be_bytes()));
}

/// The answer to an empty query.
pub fn empty_query(out: &mut Vec<u8>) {
    message(out, b'I', |_| {});
}

/// The end of a statement.
pub fn command_complete(out: &mut Vec<u8>, tag: &str) {
    message(out, b'C', |out| text(out, tag.as_bytes()));
}

/// The type of a column that we answer ourselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// `text`.
    Text,
    /// `bigint`.
    Number,
}

/// The columns of a result, all in text format.
pub fn row_description(out: &mut Vec<u8>, columns: &[(&str, ColumnType)]) {
    message(out, b'T', |out| {
        out.extend_from_slice(&u16::try_from(columns.len()).expect("few columns").to_be_bytes());
        for (name, kind) in columns {
            text(out, name.as_bytes());
            let (oid, size): (u32, i16) = match kind {
                ColumnType::Text => (25, -1),
                ColumnType::Number => (20, 8),
            };
            out.extend_from_slice(&[0; 6]); // No table, no column of it.
            out.extend_from_slice(&oid.to_be_bytes());
            out.extend_from_slice(&size.to_be_bytes());
            out.extend_from_slice(&(-1i32).to_be_bytes());
            out.extend_from_slice(&0u16.to_be_bytes());
        }
    });
}

/// One row of a result in text format; `None` is NULL.
pub fn data_row(out: &mut Vec<u8>, values: &[Option<String>]) {
    message(out, b'D', |out| {
        out.extend_from_slice(&u16::try_from(values.len()).expect("few columns").to_be_bytes());
        for value in values {
            match value {
                None => out.extend_from_slice(&(-1i32).to_be_bytes()),
                Some(value) => {
                    out.extend_from_slice(&u32::try_from(value.len()).expect("a short value").to_be_bytes());
                    out.extend_from_slice(value.as_bytes());
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::header;

    #[test]
    fn every_message_has_the_length_it_says() {
        let mut out = Vec::new();
        ready(&mut out, b'I');
        row_description(&mut out, &[("a", ColumnType::Text), ("b", ColumnType::Number)]);
        data_row(&mut out, &[Some("x".into()), None]);
        command_complete(&mut out, "SELECT 1");
        parse(&mut out, b"s", b"SELECT 1\0\0\0");
        sasl_initial(&mut out, "SCRAM-SHA-256", b"n,,n=,r=x");
        negotiate_version(&mut out, 0, &["_pq_.x"]);
        bind_head(&mut out, b"", b"s_1", 2);
        out.extend_from_slice(b"\0\0");
        let mut rest = out.as_slice();
        let mut tags = Vec::new();
        while let Some(head) = header(rest).expect("well formed") {
            tags.push(head.tag);
            rest = &rest[head.total()..];
        }
        assert_eq!((tags.as_slice(), rest.len()), (&b"ZTDCPpvB"[..], 0));
    }
}
