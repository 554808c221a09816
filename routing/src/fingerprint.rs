//! Decided once per text: a keyed hash of 128 bits, and a bounded cache from it to whatever was decided.
//!
//! Each worker has its own cache, so there is no lock. A hit compares hash and length; texts are not kept. The key makes
//! collisions something one cannot prepare: it is drawn by the runtime at start, and must not be told to clients.

/// Secret of the hash; drawn at random by whoever makes the cache.
#[derive(Clone, Copy)]
pub struct Key {
    first: u64,
    second: u64,
}

impl Key {
    /// From two random numbers.
    pub fn new(first: u64, second: u64) -> Key {
        Key { first, second }
    }
}

/// What stands for a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    high: u64,
    low: u64,
    /// Bytes of the text.
    pub length: u32,
}

impl Fingerprint {
    /// Of a text as read under `lexing_bits` ([`crate::Lexing::bits`]): the same bytes may mean two things.
    pub fn of(key: Key, text: &[u8], lexing_bits: u64) -> Fingerprint {
        // Two lanes of multiply-and-fold with different secrets. Each step mixes sixteen bytes into both.
        let mut high = key.first ^ lexing_bits.wrapping_mul(ODD_A);
        let mut low = key.second ^ text.len() as u64;
        let mut blocks = text.chunks_exact(16);
        for block in &mut blocks {
            let (a, b) = halves(block);
            high = fold(high ^ a, b ^ key.second ^ ODD_B);
            low = fold(low ^ b, a ^ key.first ^ ODD_C);
        }
        let mut tail = [0_u8; 16];
        let rest = blocks.remainder();
        tail[..rest.len()].copy_from_slice(rest);
        let (a, b) = halves(&tail);
        high = fold(high ^ a ^ ODD_D, b ^ key.second ^ text.len() as u64);
        low = fold(low ^ b ^ ODD_E, a ^ key.first ^ lexing_bits);
        let mixed = (fold(high ^ ODD_C, low ^ key.first), fold(low ^ ODD_D, high ^ key.second));
        Fingerprint { high: mixed.0, low: mixed.1, length: text.len() as u32 }
    }
}

const ODD_A: u64 = 0xA076_1D64_78BD_642F;
const ODD_B: u64 = 0xE703_7ED1_A0B4_28DB;
const ODD_C: u64 = 0x8EBC_6AF0_9C88_C6E3;
const ODD_D: u64 = 0x5899_65CC_7537_4CC3;
const ODD_E: u64 = 0x1D8E_4E27_C47D_124F;

fn halves(block: &[u8]) -> (u64, u64) {
    let mut bytes = [0_u8; 16];
    bytes.copy_from_slice(block);
    let whole = u128::from_le_bytes(bytes);
    (whole as u64, (whole >> 64) as u64)
}

/// Both halves of the product, mixed. A zero factor would forget the other one, so the factors are kept in the result.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64 ^ a.rotate_left(23) ^ b.rotate_left(41)
}

/// Entries looked at for one fingerprint.
const WAYS: usize = 4;
/// Longest text worth remembering: longer ones carry their values in them and do not come again.
pub const REMEMBERED_BYTES_MAX: usize = 16 * 1024;

#[derive(Clone, Debug)]
struct Entry<V> {
    fingerprint: Fingerprint,
    used: u32,
    value: V,
}

/// A bounded cache: four places per fingerprint, of which the one not used for longest gives way.
#[derive(Clone, Debug)]
pub struct Cache<V> {
    places: Vec<Option<Entry<V>>>,
    generation: u64,
    tick: u32,
    hits: u64,
    misses: u64,
}

impl<V> Cache<V> {
    /// With room for about `entries` values; rounded up to a power of two, at least four.
    pub fn new(entries: usize) -> Cache<V> {
        let size = entries.max(WAYS).next_power_of_two();
        Cache { places: (0..size).map(|_| None).collect(), generation: 0, tick: 0, hits: 0, misses: 0 }
    }

    /// Forgets everything if what the values were decided from (the catalogue) has another generation now.
    pub fn set_generation(&mut self, generation: u64) {
        if self.generation != generation {
            self.generation = generation;
            self.places.fill_with(|| None);
        }
    }

    fn bucket(&self, fingerprint: &Fingerprint) -> std::ops::Range<usize> {
        let start = (fingerprint.low as usize & (self.places.len() - 1)) & !(WAYS - 1);
        start..start + WAYS
    }

    /// What was kept for this fingerprint.
    pub fn get(&mut self, fingerprint: &Fingerprint) -> Option<&V> {
        self.tick = self.tick.wrapping_add(1);
        let (tick, bucket) = (self.tick, self.bucket(fingerprint));
        let place = self.places[bucket].iter_mut().flatten().find(|entry| entry.fingerprint == *fingerprint);
        match place {
            Some(entry) => {
                self.hits += 1;
                entry.used = tick;
                Some(&entry.value)
            }
            None => {
                self.misses += 1;
                None
            }
        }
    }

    /// Keeps a value, in place of an older one of the same fingerprint or of the one not used for longest.
    pub fn put(&mut self, fingerprint: Fingerprint, value: V) {
        let (tick, bucket) = (self.tick, self.bucket(&fingerprint));
        let places = &mut self.places[bucket];
        let same = places.iter().position(|place| matches!(place, Some(entry) if entry.fingerprint == fingerprint));
        let free = || places.iter().position(Option::is_none);
        // Ages, not times: the counter wraps.
        let oldest = || {
            let age = |place: &Option<Entry<V>>| place.as_ref().map_or(u32::MAX, |entry| tick.wrapping_sub(entry.used));
            (0..WAYS).max_by_key(|&at| age(&places[at])).unwrap_or(0)
        };
        let at = same.or_else(free).unwrap_or_else(oldest);
        places[at] = Some(Entry { fingerprint, used: tick, value });
    }

    /// Forgets one value: a replica has refused what was thought to be a read.
    pub fn remove(&mut self, fingerprint: &Fingerprint) {
        let bucket = self.bucket(fingerprint);
        for place in &mut self.places[bucket] {
            if matches!(place, Some(entry) if entry.fingerprint == *fingerprint) {
                *place = None;
            }
        }
    }

    /// How often something was found, and how often not.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits, self.misses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const KEY: Key = Key { first: 0x0123_4567_89AB_CDEF, second: 0xFEDC_BA98_7654_3210 };

    fn print(text: &str) -> Fingerprint {
        Fingerprint::of(KEY, text.as_bytes(), 0)
    }

    #[test]
    fn texts_that_differ_have_fingerprints_that_differ() {
        let mut seen = HashSet::new();
        let mut halves = HashSet::new();
        for length in 0..80 {
            for at in 0..length.max(1) {
                for byte in [b'a', b'b', 0, 255] {
                    let mut text = vec![b'x'; length];
                    if let Some(place) = text.get_mut(at) {
                        *place = byte;
                    }
                    let fingerprint = Fingerprint::of(KEY, &text, 0);
                    if length > 0 {
                        assert!(seen.insert(fingerprint), "{text:?}");
                        assert!(halves.insert(fingerprint.high) && halves.insert(fingerprint.low), "{text:?}");
                    }
                }
            }
        }
        assert_ne!(print("a"), Fingerprint::of(KEY, b"a", 1), "the same bytes read differently");
        assert_ne!(print("a"), Fingerprint::of(Key::new(1, 2), b"a", 0), "another key");
        assert_ne!(print("a").high, print("a\0").high, "padding is not the text");
    }

    #[test]
    fn each_bit_of_a_text_changes_about_half_of_the_hash() {
        let text = *b"SELECT abalance FROM pgbench_accounts WHERE aid = $1";
        let base = Fingerprint::of(KEY, &text, 0);
        let (mut changed, mut least) = (0, u32::MAX);
        for bit in 0..text.len() * 8 {
            let mut other = text;
            other[bit / 8] ^= 1 << (bit % 8);
            let print = Fingerprint::of(KEY, &other, 0);
            let bits = (print.high ^ base.high).count_ones() + (print.low ^ base.low).count_ones();
            changed += bits;
            least = least.min(bits);
        }
        let mean = f64::from(changed) / (text.len() * 8) as f64;
        assert!((58.0..70.0).contains(&mean) && least > 30, "mean {mean}, least {least}");
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let mut cache = Cache::new(64);
        let hot = print("hot");
        cache.put(hot, 7);
        for number in 0..10_000 {
            assert_eq!(cache.get(&hot), Some(&7), "evicted after {number}");
            cache.put(print(&format!("cold {number}")), number);
        }
        assert_eq!(cache.places.len(), 64);
        assert_eq!(cache.get(&print("never seen")), None);
        cache.remove(&hot);
        assert_eq!(cache.get(&hot), None);
        assert_eq!(cache.hits_and_misses(), (10_000, 2));
    }

    #[test]
    fn another_generation_of_the_catalogue_empties_it() {
        let mut cache = Cache::new(4);
        cache.put(print("a"), 1);
        cache.set_generation(0);
        assert_eq!(cache.get(&print("a")), Some(&1));
        cache.set_generation(1);
        assert_eq!(cache.get(&print("a")), None);
    }
}
