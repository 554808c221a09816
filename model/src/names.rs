//! Names that people choose and ids that we give. A value of these types is valid by construction.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadName {
    /// What kind of name it was to be, for example `node name`.
    pub kind: &'static str,
    /// The refused text, shortened.
    pub text: String,
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is not a valid {}: use 1 to 40 of a-z, 0-9 and -, beginning with a letter or digit",
            self.text, self.kind
        )
    }
}
impl std::error::Error for BadName {}

/// Names go into `application_name`, slot names (with - turned to _), certificates and paths; the narrowest rule of
/// them all is taken. 40 characters leave room for prefixes within PostgreSQL's 63.
fn check(kind: &'static str, text: &str) -> Result<(), BadName> {
    let sound = (1..=40).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !text.starts_with('-');
    if sound { Ok(()) } else { Err(BadName { kind, text: text.chars().take(60).collect() }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);
        impl $name {
            /// The text of the name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                check($kind, text)?;
                Ok(Self(text.to_owned()))
            }
        }
        impl TryFrom<String> for $name {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                check($kind, &text)?;
                Ok(Self(text))
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name! {
    /// The name a person gave a node; unique in its cluster.
    NodeName, "node name"
}
name! {
    /// The name a person gave the cluster.
    ClusterName, "cluster name"
}
name! {
    /// Where a node is: a zone, region or data centre. Drives placement, routing and commit policy.
    Site, "site name"
}

/// A node's number in the consensus group. Never given twice: a node that lost its store comes back under a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A cluster's unguessable identity (a UUID), made by `stemma init`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub String);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_where_they_enter() {
        for good in ["n1", "pg-1", "0", "a".repeat(40).as_str()] {
            assert!(good.parse::<NodeName>().is_ok(), "{good:?}");
        }
        for bad in ["", "-a", "A", "a b", "a;b", "ü", "a".repeat(41).as_str(), "a\0"] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad:?}");
            assert!(serde_json::from_value::<NodeName>(serde_json::json!(bad)).is_err(), "{bad:?}");
        }
    }
}
