//! What a session wishes of the router: its own settings, `stemma.*`. Servers never hear of them.

use routing::route::Value;
use routing::{Level, Target};

/// Before the names of our settings.
pub const PREFIX: &str = "stemma.";
/// The settings there are.
pub const NAMES: [&str; 3] = ["stemma.consistency", "stemma.route", "stemma.token"];

/// Where a session's reads go and what they must see; `None`: as the router is configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// `stemma.route`.
    pub route: Option<Target>,
    /// `stemma.consistency`.
    pub level: Option<Level>,
}

/// One of them, as it is said; inner `None`: as before the session said anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// `stemma.route`; outer `None` within: `auto`, whatever the default.
    Route(Option<Option<Target>>),
    /// `stemma.consistency`.
    Level(Option<Level>),
}

/// Why a wish cannot be understood: SQLSTATE and sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misunderstood(pub &'static str, pub String);

impl Wish {
    /// Of a setting's name and its text; `None` for its default.
    pub fn parse(name: &str, text: Option<&str>) -> Result<Wish, Misunderstood> {
        match (name, text) {
            ("stemma.route", None) => Ok(Wish::Route(None)),
            ("stemma.route", Some(text)) if text.eq_ignore_ascii_case("auto") => Ok(Wish::Route(Some(None))),
            ("stemma.route", Some(text)) => match Target::parse(text) {
                Some(target) => Ok(Wish::Route(Some(Some(target)))),
                None => Err(Misunderstood("22023", format!("`{text}` is no route: use primary, replica or auto"))),
            },
            ("stemma.consistency", None) => Ok(Wish::Level(None)),
            ("stemma.consistency", Some(text)) => match text.parse() {
                Ok(level) => Ok(Wish::Level(Some(level))),
                Err(bad) => Err(Misunderstood("22023", format!("{bad}"))),
            },
            _ => {
                Err(Misunderstood("42704", format!("the router has no setting `{name}`: it has {}", NAMES.join(", "))))
            }
        }
    }
}

impl Wishes {
    /// These, or where they say nothing, those.
    pub fn or(self, those: Wishes) -> Wishes {
        Wishes { route: self.route.or(those.route), level: self.level.or(those.level) }
    }

    /// Grants one; `startup` is what its default is.
    pub fn grant(&mut self, wish: Wish, startup: Wishes) {
        match wish {
            Wish::Route(route) => self.route = route.unwrap_or(startup.route),
            Wish::Level(level) => self.level = level.or(startup.level),
        }
    }
}

/// The text of a value that is one literal; outer `None` where it is something else, inner where it is the default.
pub fn text(value: &Value) -> Option<Option<&str>> {
    match value {
        Value::Default => Some(None),
        Value::Plain(bytes) => std::str::from_utf8(&bytes.0).ok().map(Some),
        Value::Raw(_) => None,
    }
}

/// Whether a text is for the router: `SET`, `SHOW` or `RESET` of a setting of its own, or `EXPLAIN ROUTE`. Says so of every
/// such text and of no other, whatever may be wrong with the rest of it.
pub fn concerns(sql: &[u8]) -> bool {
    let mut words = Words(sql);
    let is = |word: &[u8], what: &str| word.eq_ignore_ascii_case(what.as_bytes());
    let first = words.next();
    let ours = |word: &[u8]| word.len() >= PREFIX.len() && is(&word[..PREFIX.len()], PREFIX);
    if is(first, "show") || is(first, "reset") {
        ours(words.next())
    } else if is(first, "set") {
        let second = words.next();
        ours(if is(second, "session") || is(second, "local") { words.next() } else { second })
    } else {
        is(first, "explain") && is(words.next(), "route")
    }
}

/// The name in a `DEALLOCATE` of one statement, as servers fold it.
pub fn deallocated(sql: &[u8]) -> Option<Vec<u8>> {
    let mut words = Words(sql);
    if !words.next().eq_ignore_ascii_case(b"deallocate") {
        return None;
    }
    let mut rest = words.0.trim_ascii_start();
    let mut ahead = Words(rest);
    if ahead.next().eq_ignore_ascii_case(b"prepare") {
        rest = ahead.0.trim_ascii_start();
    }
    let (name, rest) = match rest.strip_prefix(b"\"") {
        Some(quoted) => {
            let end = quoted.iter().position(|byte| *byte == b'"')?;
            (quoted[..end].to_vec(), &quoted[end + 1..])
        }
        None => {
            let mut name = Words(rest);
            (name.next().to_ascii_lowercase(), name.0)
        }
    };
    (!name.is_empty()
        && rest.trim_ascii().trim_ascii_start().strip_prefix(b";").unwrap_or(rest).trim_ascii().is_empty())
    .then_some(name)
}

/// What stands behind `EXPLAIN ROUTE`.
pub fn explained(sql: &[u8]) -> &[u8] {
    let mut words = Words(sql);
    words.next();
    words.next();
    words.0
}

/// Words as they stand, between blanks and signs.
struct Words<'s>(&'s [u8]);

impl<'s> Words<'s> {
    fn next(&mut self) -> &'s [u8] {
        let rest = self.0.trim_ascii_start();
        let inside = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
        let end = rest.iter().position(|byte| !inside(byte)).unwrap_or(rest.len());
        let (word, rest) = rest.split_at(end);
        self.0 = rest;
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_for_the_router_is_told_from_what_is_not() {
        for sql in [
            "SET stemma.consistency = 'eventual'",
            "  set local Stemma.Route TO primary",
            "SET SESSION stemma.x=1; SELECT 1",
            "SHOW stemma.token;",
            "RESET stemma.route",
            "EXPLAIN ROUTE SELECT 1",
            "explain route(select 1)",
        ] {
            assert!(concerns(sql.as_bytes()), "{sql}");
        }
        for sql in [
            "",
            "SET",
            "SELECT stemma.a FROM stemma",
            "SET application_name = 'stemma.x'",
            "SHOW stemma",
            "SHOW ALL",
            "EXPLAIN SELECT 1",
            "EXPLAIN (ANALYZE) SELECT 1",
            "RESET ALL",
        ] {
            assert!(!concerns(sql.as_bytes()), "{sql}");
        }
    }

    #[test]
    fn what_is_deallocated_is_named() {
        let name = |sql: &str| deallocated(sql.as_bytes()).map(|name| String::from_utf8(name).expect("ASCII"));
        assert_eq!(name("DEALLOCATE _pg3_0").as_deref(), Some("_pg3_0"));
        assert_eq!(name("deallocate prepare Ab ; ").as_deref(), Some("ab"));
        assert_eq!(name("DEALLOCATE \"A b\";").as_deref(), Some("A b"));
        for other in ["DEALLOCATE", "SELECT 1", "DEALLOCATE a; SELECT 1", "DEALLOCATE \"a"] {
            assert_eq!(name(other), None, "{other}");
        }
    }

    #[test]
    fn wishes_are_read_or_refused() {
        assert_eq!(Wish::parse("stemma.route", Some("REPLICA")), Ok(Wish::Route(Some(Some(Target::Replica)))));
        assert_eq!(Wish::parse("stemma.route", Some("auto")), Ok(Wish::Route(Some(None))));
        assert_eq!(Wish::parse("stemma.consistency", None), Ok(Wish::Level(None)));
        assert_eq!(Wish::parse("stemma.consistency", Some("sometimes")).expect_err("refused").0, "22023");
        assert_eq!(Wish::parse("stemma.colour", Some("red")).expect_err("refused").0, "42704");
        let startup = Wishes { route: Some(Target::Replica), level: None };
        let mut wishes = startup;
        wishes.grant(Wish::Route(Some(None)), startup);
        assert_eq!(wishes.route, None);
        wishes.grant(Wish::Route(None), startup);
        assert_eq!(wishes, startup);
    }
}
