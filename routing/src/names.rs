//! Names as PostgreSQL folds them, and tables of names that are asked for by the hash the lexer has already made.

/// The hash of a name, built byte by byte. Equal hashes are only a hint: whoever acts on one compares the bytes too.
#[derive(Clone, Copy, Debug)]
pub struct Fold(u64);

const MIX: u64 = 0x9E37_79B9_7F4A_7C15;

impl Fold {
    /// Of no bytes yet.
    pub const fn new() -> Fold {
        Fold(0x517C_C1B7_2722_0A95)
    }
    /// Adds a byte as it is.
    pub const fn push(&mut self, byte: u8) {
        self.0 = (self.0 ^ byte as u64).wrapping_mul(MIX);
    }
    /// Adds a byte of an unquoted name: ASCII capitals count as small letters, everything else as itself.
    pub const fn push_folded(&mut self, byte: u8) {
        self.push(byte.to_ascii_lowercase());
    }
    /// The hash; its low bits are good.
    pub const fn finish(self) -> u64 {
        self.0 ^ self.0 >> 32
    }
    /// Of bytes as they are.
    pub const fn of(bytes: &[u8]) -> u64 {
        let mut fold = Fold::new();
        let mut at = 0;
        while at < bytes.len() {
            fold.push(bytes[at]);
            at += 1;
        }
        fold.finish()
    }
}

impl Default for Fold {
    fn default() -> Fold {
        Fold::new()
    }
}

/// A name in a statement: its hash, its bytes, and whether they are still to be folded.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a> {
    /// As the lexer made it.
    pub hash: u64,
    /// Without quotes. Doubled quotes inside are left doubled.
    pub bytes: &'a [u8],
    /// Whether it was in quotes.
    pub quoted: bool,
}

impl Name<'_> {
    /// Whether PostgreSQL would read this name as `other`, which is given folded.
    pub fn is(&self, other: &[u8]) -> bool {
        if self.quoted { self.bytes == other } else { same_folded(self.bytes, other) }
    }
    /// Whether the name begins like this, which is given folded.
    pub fn starts_with(&self, prefix: &[u8]) -> bool {
        let Some(head) = self.bytes.get(..prefix.len()) else { return false };
        if self.quoted { head == prefix } else { same_folded(head, prefix) }
    }
    /// Whether the name ends like this, which is given folded.
    pub fn ends_with(&self, suffix: &[u8]) -> bool {
        let Some(from) = self.bytes.len().checked_sub(suffix.len()) else { return false };
        let tail = &self.bytes[from..];
        if self.quoted { tail == suffix } else { same_folded(tail, suffix) }
    }
    /// The name as the server knows it.
    pub fn folded(&self) -> Box<[u8]> {
        if self.quoted { unquoted(self.bytes) } else { self.bytes.to_ascii_lowercase().into() }
    }
}

/// Whether `word`, folded, is `folded`. Not a comparison without regard to case: a function created as `"Now"` is
/// another one than `now`.
pub fn same_folded(word: &[u8], folded: &[u8]) -> bool {
    word.len() == folded.len() && word.iter().zip(folded).all(|(a, b)| a.to_ascii_lowercase() == *b)
}

/// The bytes between quotes with `""` taken for one quote.
fn unquoted(bytes: &[u8]) -> Box<[u8]> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, tail)) = rest.split_first() {
        out.push(byte);
        rest = if byte == b'"' { tail.strip_prefix(b"\"").unwrap_or(tail) } else { tail };
    }
    out.into()
}

#[derive(Clone, Copy, Debug)]
struct Slot<V> {
    hash: u64,
    start: u32,
    length: u32,
    value: V,
}

/// A map from names to small values: one vector of slots, one of letters, at most half full.
#[derive(Clone, Debug)]
pub struct NameTable<V> {
    slots: Vec<Option<Slot<V>>>,
    letters: Vec<u8>,
    count: usize,
}

impl<V> Default for NameTable<V> {
    fn default() -> NameTable<V> {
        NameTable { slots: Vec::new(), letters: Vec::new(), count: 0 }
    }
}

impl<V: Copy> NameTable<V> {
    /// How many names it holds.
    pub fn len(&self) -> usize {
        self.count
    }
    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The value of `name`.
    pub fn get(&self, name: &Name<'_>) -> Option<V> {
        if self.count == 0 {
            return None;
        }
        let mask = self.slots.len() - 1;
        let mut at = name.hash as usize & mask;
        while let Some(slot) = &self.slots[at] {
            if slot.hash == name.hash && name.is(self.text(slot)) {
                return Some(slot.value);
            }
            at = (at + 1) & mask;
        }
        None
    }

    /// Sets the value of a name that the server reported; `merge` makes one value of the old and the new one.
    pub fn put(&mut self, name: &[u8], value: V, merge: impl Fn(V, V) -> V) {
        // Quotes are doubled as they are in statements, so that a quoted name is found by its bytes there.
        let mut key = Vec::with_capacity(name.len());
        for &byte in name {
            key.push(byte);
            if byte == b'"' {
                key.push(byte);
            }
        }
        if (self.count + 1) * 2 > self.slots.len() {
            self.grow();
        }
        let hash = Fold::of(&key);
        let mask = self.slots.len() - 1;
        let mut at = hash as usize & mask;
        while let Some(slot) = &self.slots[at] {
            if slot.hash == hash && self.text(slot) == key {
                let merged = merge(slot.value, value);
                if let Some(slot) = &mut self.slots[at] {
                    slot.value = merged;
                }
                return;
            }
            at = (at + 1) & mask;
        }
        let start = self.letters.len() as u32;
        self.letters.extend_from_slice(&key);
        self.slots[at] = Some(Slot { hash, start, length: key.len() as u32, value });
        self.count += 1;
    }

    fn text(&self, slot: &Slot<V>) -> &[u8] {
        &self.letters[slot.start as usize..(slot.start + slot.length) as usize]
    }

    fn grow(&mut self) {
        let size = (self.slots.len() * 2).max(16);
        let old = std::mem::replace(&mut self.slots, vec![None; size]);
        for slot in old.into_iter().flatten() {
            let mut at = slot.hash as usize & (size - 1);
            while self.slots[at].is_some() {
                at = (at + 1) & (size - 1);
            }
            self.slots[at] = Some(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &str) -> Name<'_> {
        Name { hash: Fold::of(&text.as_bytes().to_ascii_lowercase()), bytes: text.as_bytes(), quoted: false }
    }
    fn quoted(text: &str) -> Name<'_> {
        Name { hash: Fold::of(text.as_bytes()), bytes: text.as_bytes(), quoted: true }
    }

    #[test]
    fn a_quoted_name_keeps_its_capitals_and_an_unquoted_one_has_none() {
        let mut table = NameTable::default();
        table.put(b"now", 1, |_, new| new);
        table.put(b"Now", 2, |_, new| new);
        table.put(b"a\"b", 3, |_, new| new);
        assert_eq!(table.get(&word("NOW")), Some(1));
        assert_eq!(table.get(&quoted("now")), Some(1));
        assert_eq!(table.get(&quoted("Now")), Some(2));
        assert_eq!(table.get(&quoted("NOW")), None);
        assert_eq!(table.get(&quoted("a\"\"b")), Some(3));
        assert_eq!(&*quoted("a\"\"b").folded(), b"a\"b");
    }

    #[test]
    fn names_are_found_however_many_there_are() {
        let mut table = NameTable::default();
        for number in 0..5000_u32 {
            table.put(format!("f{number}").as_bytes(), number, |_, new| new);
        }
        assert_eq!(table.len(), 5000);
        for number in 0..5000_u32 {
            assert_eq!(table.get(&word(&format!("F{number}"))), Some(number));
        }
        assert_eq!(table.get(&word("f5000")), None);
        table.put(b"f7", 1, |old, new| old + new);
        assert_eq!(table.get(&word("f7")), Some(8));
    }
}
