//! Messages of clients that a router looks into: the texts of queries, and the names of statements and portals.

use crate::frame::{Malformed, c_string, number16};

/// Parse: makes a prepared statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parse<'b> {
    /// The client's name for it; empty for the unnamed one.
    pub name: &'b [u8],
    /// The statement's text.
    pub sql: &'b [u8],
    /// Everything behind the name: text and parameter types, which together are what the statement is.
    pub definition: &'b [u8],
}

/// Reads the body of a Parse.
pub fn parse(body: &[u8]) -> Result<Parse<'_>, Malformed> {
    let (name, definition) = c_string(body)?;
    let (sql, rest) = c_string(definition)?;
    let (types, rest) = number16(rest)?;
    if rest.len() != usize::from(types) * 4 {
        return Err(Malformed("a Parse whose parameter types have the wrong length"));
    }
    Ok(Parse { name, sql, definition })
}

/// Bind: the head of it, which is all that a router needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindHead<'b> {
    /// The portal to make.
    pub portal: &'b [u8],
    /// The statement to make it from.
    pub statement: &'b [u8],
    /// Bytes of the two names with their ends: where the parameters begin.
    pub bytes: usize,
}

/// Reads the names at the front of a Bind; `None` where they are not all there yet.
pub fn bind_head(front: &[u8]) -> Option<BindHead<'_>> {
    let (portal, rest) = c_string(front).ok()?;
    let (statement, _) = c_string(rest).ok()?;
    Some(BindHead { portal, statement, bytes: portal.len() + statement.len() + 2 })
}

/// What a Describe or Close is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'b> {
    /// A prepared statement.
    Statement(&'b [u8]),
    /// A portal.
    Portal(&'b [u8]),
}

/// Reads the body of a Describe or Close.
pub fn target(body: &[u8]) -> Result<Target<'_>, Malformed> {
    let (kind, rest) = body.split_first().ok_or(Malformed("an empty Describe or Close"))?;
    let (name, rest) = c_string(rest)?;
    if !rest.is_empty() {
        return Err(Malformed("bytes behind a name"));
    }
    match kind {
        b'S' => Ok(Target::Statement(name)),
        b'P' => Ok(Target::Portal(name)),
        _ => Err(Malformed("neither a statement nor a portal")),
    }
}

/// Reads the body of a Query.
pub fn query(body: &[u8]) -> Result<&[u8], Malformed> {
    let (sql, rest) = c_string(body)?;
    if rest.is_empty() { Ok(sql) } else { Err(Malformed("bytes behind the text of a query")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_texts_are_found() {
        let parsed = parse(b"s1\0SELECT $1\0\0\x01\0\0\0\x17").expect("well formed");
        assert_eq!((parsed.name, parsed.sql), (&b"s1"[..], &b"SELECT $1"[..]));
        assert!(parse(b"s1\0SELECT $1\0\0\x02\0\0\0\x17").is_err(), "promises two types, has one");
        let head = bind_head(b"\0s1\0\0\0").expect("both names are there");
        assert_eq!((head.statement, head.bytes), (&b"s1"[..], 4));
        assert_eq!(bind_head(b"\0s1"), None);
        assert_eq!(target(b"Ss1\0"), Ok(Target::Statement(b"s1")));
        assert!(target(b"Xs1\0").is_err());
        assert!(query(b"SELECT 1\0SELECT 2\0").is_err(), "a second text behind the first");
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = (parse(&bytes), bind_head(&bytes), target(&bytes), query(&bytes));
        }
    }
}
