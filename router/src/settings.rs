//! A client's settings, which follow it from server to server (rules P-8 to P-10).

use std::collections::BTreeMap;

/// What `SET SESSION AUTHORIZATION` sets.
const USER: &str = "session_authorization";

/// Settings that differ from the server's own: name in small letters, value as an SQL literal or list of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(pub BTreeMap<String, String>);

/// Settings by which names in a text are looked up: the same text means something else under others.
const LOOKUP: [&str; 3] = ["search_path", "role", USER];

impl Settings {
    /// What decides which tables and functions the names in a text stand for; empty where that is up to the server.
    pub fn scope(&self) -> String {
        let set = LOOKUP.iter().filter_map(|name| self.0.get_key_value(*name));
        set.map(|(name, value)| format!("{name}={value};")).collect()
    }

    /// The statements that turn `from` into `self`; `None` where they are equal.
    pub fn difference(&self, from: &Settings) -> Option<String> {
        if self == from {
            return None;
        }
        let mut sql = String::new();
        for name in from.0.keys().filter(|name| !self.0.contains_key(*name)) {
            sql.push_str(&format!("RESET {name};"));
        }
        // Who one is comes before the role that one takes on, which it would undo.
        let late = |name: &&String| *name == "role";
        let names = self.0.keys().filter(|name| !late(name)).chain(self.0.keys().filter(late));
        let other_user = self.0.get(USER) != from.0.get(USER);
        for name in names {
            let value = &self.0[name];
            if from.0.get(name) != Some(value) || (other_user && name == "role") {
                sql.push_str(&format!("SET {name} TO {value};"));
            }
        }
        Some(sql)
    }
}

/// A text as an SQL literal that means the same whatever `standard_conforming_strings` is.
pub fn literal(text: &str) -> String {
    if text.contains('\\') {
        format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
    } else {
        format!("'{}'", text.replace('\'', "''"))
    }
}

/// Settings whose value is a list of names. In a startup packet the list is one text, in a `SET` each name is its own.
const LISTS: [&str; 4] = ["search_path", "temp_tablespaces", "session_preload_libraries", "local_preload_libraries"];

/// The value that a client gave a setting with its first message, as it is written in a `SET`.
pub fn startup_value(name: &str, value: &str) -> String {
    let names = if LISTS.contains(&name) { list(value) } else { None };
    match names {
        Some(names) if !names.is_empty() => names.iter().map(|name| literal(name)).collect::<Vec<_>>().join(","),
        Some(_) | None => literal(value),
    }
}

/// The names of a list as the server reads them: in small letters unless quoted. `None` where it is not one; the server
/// then says so itself.
fn list(text: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = text.trim_ascii();
    while !rest.is_empty() {
        let name;
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut inside = String::new();
            let mut letters = quoted.char_indices().peekable();
            let end = loop {
                match letters.next()? {
                    (_, '"') if letters.peek().is_some_and(|(_, next)| *next == '"') => {
                        inside.push('"');
                        letters.next();
                    }
                    (at, '"') => break at + 1,
                    (_, letter) => inside.push(letter),
                }
            };
            name = inside;
            rest = quoted[end..].trim_ascii_start();
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            name = rest[..end].trim_ascii().to_ascii_lowercase();
            rest = &rest[end..];
        }
        if name.is_empty() {
            return None;
        }
        names.push(name);
        match rest.strip_prefix(',') {
            Some(more) => rest = more.trim_ascii_start(),
            None if rest.is_empty() => break,
            None => return None,
        }
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_difference_is_said() {
        let settings = |pairs: &[(&str, &str)]| {
            Settings(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
        };
        let (a, b) = (settings(&[("a", "1"), ("b", "2")]), settings(&[("b", "3"), ("c", "'x'")]));
        assert_eq!(b.difference(&a).as_deref(), Some("RESET a;SET b TO 3;SET c TO 'x';"));
        assert_eq!(a.difference(&a), None);
        assert_eq!(literal(r"o'\k"), r" E'o''\\k'");
    }

    #[test]
    fn who_one_is_comes_before_the_role_that_one_takes_on() {
        let settings = |pairs: &[(&str, &str)]| {
            Settings(pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect())
        };
        let ann = settings(&[("role", "'clerk'"), (USER, "'ann'")]);
        let bob = settings(&[("role", "'clerk'"), (USER, "'bob'")]);
        let sql = "SET session_authorization TO 'bob';SET role TO 'clerk';";
        assert_eq!(bob.difference(&ann).as_deref(), Some(sql));
    }

    #[test]
    fn a_list_in_a_startup_packet_is_a_list_of_names() {
        let cases = [
            ("search_path", "Elsewhere, public", "'elsewhere','public'"),
            ("search_path", "\"$user\",\"Odd, \"\"one\"\"\"", "'$user','Odd, \"one\"'"),
            ("search_path", "", "''"),
            ("search_path", "a,,b", "'a,,b'"),
            ("search_path", "\"open", "'\"open'"),
            ("datestyle", "ISO, MDY", "'ISO, MDY'"),
        ];
        for (name, value, expected) in cases {
            assert_eq!(startup_value(name, value), expected, "{name}={value}");
        }
    }
}
