//! `synchronous_standby_names`: reading what a server has, and writing what it should have.

use super::ServerSync;
use model::NodeId;
use std::collections::BTreeSet;

/// A name that nobody can have: PostgreSQL cuts an `application_name` after 63 characters, so none ever equals this.
/// Never `*`, which anybody satisfies.
pub const NOBODY: &str = "stemma_nobody_commits_wait_until_a_replica_may_acknowledge_them_again_";
const _: () = assert!(NOBODY.len() > 63);

/// The value that lets the server wait for `acks` nodes of `list`; empty for none.
pub fn render(acks: u32, list: &BTreeSet<NodeId>, name: impl Fn(NodeId) -> String) -> String {
    if acks == 0 {
        return String::new();
    }
    let quoted = |name: String| format!("\"{}\"", name.replace('"', "\"\""));
    let mut names: Vec<String> = list.iter().map(|node| quoted(name(*node))).collect();
    if names.is_empty() {
        names.push(quoted(NOBODY.to_owned()));
    }
    format!("ANY {acks} ({})", names.join(","))
}

/// Reads a value. Anything but `ANY n (known members)`, nothing at all, or the placeholder is marked `strangers`:
/// we never write it, so somebody else did.
pub fn parse(raw: &str, resolve: impl Fn(&str) -> Option<NodeId>) -> ServerSync {
    let text = raw.trim();
    let mut sync = ServerSync { raw: raw.to_owned(), ..ServerSync::default() };
    if text.is_empty() {
        return sync;
    }
    sync.strangers = true;
    let Some((acks, names)) = any_of(text) else { return sync };
    let mut known = true;
    for name in &names {
        match resolve(name) {
            Some(node) => {
                // Two names of one node would let it count twice.
                known &= sync.list.insert(node);
            }
            None => known &= name == NOBODY,
        }
    }
    sync.acks = acks;
    sync.strangers = !known;
    sync
}

/// Takes `ANY n (a, "b", ...)` apart.
fn any_of(text: &str) -> Option<(u32, Vec<String>)> {
    let (head, rest) = text.split_once('(')?;
    let mut words = head.split_whitespace();
    let any = words.next()?.eq_ignore_ascii_case("any");
    let acks: u32 = words.next()?.parse().ok()?;
    let body = rest.trim_end().strip_suffix(')')?;
    if !any || acks == 0 || words.next().is_some() {
        return None;
    }
    // None of our names holds a comma or a quote, so a name that does is a stranger's, however it is cut.
    let names = body
        .split(',')
        .map(str::trim)
        .map(|name| name.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(name).to_owned());
    Some((acks, names.collect()))
}
