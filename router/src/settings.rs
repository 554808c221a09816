//! A client's settings, which follow it from server to server (rules P-8 to P-10).

use std::collections::BTreeMap;

/// Settings that differ from the server's own: name in small letters, value as an SQL literal or list of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(pub BTreeMap<String, String>);

impl Settings {
    /// The statements that turn `from` into `self`; `None` where they are equal.
    pub fn difference(&self, from: &Settings) -> Option<String> {
        if self == from {
            return None;
        }
        let mut sql = String::new();
        for name in from.0.keys().filter(|name| !self.0.contains_key(*name)) {
            sql.push_str(&format!("RESET {name};"));
        }
        for (name, value) in &self.0 {
            if from.0.get(name) != Some(value) {
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
}
