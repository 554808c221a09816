//! Channels that a client listens to.

use std::collections::BTreeSet;
use std::rc::Rc;

/// Longest name of a channel in bytes; a longer identifier is cut by the server (`NAMEDATALEN` - 1).
const NAME_BYTES_MAX: usize = 63;

/// A set of channels. Most clients have none, and copies of one set share it.
#[derive(Clone, Debug, Default)]
pub struct Channels(Option<Rc<BTreeSet<Box<[u8]>>>>);

impl PartialEq for Channels {
    fn eq(&self, other: &Channels) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(one), Some(two)) => Rc::ptr_eq(one, two) || one == two,
            (Some(_), None) | (None, Some(_)) => false,
        }
    }
}

impl Channels {
    /// With one more.
    pub fn add(&mut self, name: &[u8]) {
        Rc::make_mut(self.0.get_or_insert_default()).insert(cut(name).into());
    }

    /// Without that one.
    pub fn remove(&mut self, name: &[u8]) {
        let Some(set) = &mut self.0 else { return };
        Rc::make_mut(set).remove(cut(name));
        if set.is_empty() {
            self.0 = None;
        }
    }

    /// Without any.
    pub fn clear(&mut self) {
        self.0 = None;
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether that one is among them.
    pub fn has(&self, name: &[u8]) -> bool {
        self.0.as_ref().is_some_and(|set| set.contains(name))
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().flat_map(|set| set.iter()).map(AsRef::as_ref)
    }
}

impl std::fmt::Display for Channels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, name) in self.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{}", String::from_utf8_lossy(name))?;
        }
        Ok(())
    }
}

/// A name as the server keeps it: cut between characters.
fn cut(name: &[u8]) -> &[u8] {
    if name.len() <= NAME_BYTES_MAX {
        return name;
    }
    let mut end = NAME_BYTES_MAX;
    while end > 0 && name[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    &name[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_equal_by_what_is_in_them_and_long_names_are_cut_as_the_server_cuts_them() {
        let mut one = Channels::default();
        assert!(one.is_empty());
        one.add(b"news");
        let two = one.clone();
        one.add(b"more");
        assert_ne!(one, two);
        one.remove(b"more");
        assert_eq!(one, two);
        one.remove(b"news");
        assert_eq!((one.is_empty(), one == Channels::default()), (true, true));
        let long = format!("{}ä", "x".repeat(62));
        one.add(long.as_bytes());
        assert_eq!(one.iter().next().map(<[u8]>::len), Some(62));
        assert!(one.has("x".repeat(62).as_bytes()));
    }
}
