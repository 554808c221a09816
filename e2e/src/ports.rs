//! Ports for servers that a test starts, stops and starts again. Included by the tests of other rooms, too.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

/// Below the range that the kernel gives to outgoing connections: one of those could otherwise have the port while its
/// server is down.
const RANGE: std::ops::Range<u16> = 10_000..20_000;

/// A port of 127.0.0.1 that is free now and was not given out before by this process.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let count = u64::from(RANGE.end - RANGE.start);
    // Test processes that run side by side begin at different places.
    let first = RandomState::new().hash_one(std::process::id());
    for step in 0..count {
        let port = RANGE.start + u16::try_from(first.wrapping_add(step) % count).expect("within the range");
        if !given.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            given.insert(port);
            return port;
        }
    }
    panic!("no free port");
}
