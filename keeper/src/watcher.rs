//! The watcher itself: the main function of the small process that ends a server whose lease has run out while its keeper
//! hangs or is gone. It reads no file but those of /proc, asks no name and no database, and listens to nobody but its keeper.

use crate::clock;
use adapters::address::Floating;
use cluster::failover::watch::{Duty, WORD_BYTES, Watch, Word};
use model::Trouble;
use postgres::process::Guarded;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;

/// While something is watched the clock is looked at so often: the system's timers stand still while the machine is
/// suspended, the clock of the lease does not.
const LOOK_MS: u64 = 40;
/// Pause between two rounds of killing.
const ROUND: std::time::Duration = std::time::Duration::from_millis(2);
/// So long the server's own keeper has the first go, which tells more of it.
const GRACE_MS: u64 = 40;

/// Watches until nothing is left to be watched. Words come on standard input.
pub fn run(data_dir: &Path, floating: Option<&Floating>) -> Result<(), Trouble> {
    postgres::process::be_urgent();
    // Not the buffered one: what lies in a buffer wakes nobody.
    let input = std::io::stdin().as_fd().try_clone_to_owned();
    let mut input =
        File::from(input.map_err(|error| Trouble::os("the watcher has no input", "report this").because(error))?);
    let mut watch = Watch::default();
    let mut guarded = None;
    let mut partial = Vec::new();
    let mut orphaned = false;
    loop {
        let now = clock::now().minus(model::Millis(GRACE_MS));
        match watch.duty(now) {
            Duty::End => return Ok(()),
            Duty::DropAddress => {
                if let Some(floating) = floating {
                    match floating.remove() {
                        Ok(()) => eprintln!("stemma {}: {floating} was taken off", crate::WATCHER_COMMAND),
                        Err(failed) => eprintln!("stemma {}: {failed}", crate::WATCHER_COMMAND),
                    }
                }
                watch.dropped();
            }
            Duty::Fence => {
                fence(guarded);
                watch.fenced();
            }
            Duty::Wait(most) => {
                let timeout = most.map(|most| Timespec {
                    tv_sec: 0,
                    tv_nsec: i64::try_from(most.0.min(LOOK_MS)).unwrap_or(1) * 1_000_000,
                });
                // Interrupted or not: the duty is asked for again.
                let ready = !orphaned
                    && poll(&mut [PollFd::new(&input, PollFlags::IN)], timeout.as_ref()).is_ok_and(|ready| ready > 0);
                if ready && !hear(&mut input, &mut partial, &mut watch) {
                    watch.orphaned();
                    orphaned = true;
                } else if orphaned {
                    std::thread::sleep(std::time::Duration::from_millis(
                        most.map_or(LOOK_MS, |most| most.0.min(LOOK_MS)),
                    ));
                }
                // While the server may go on its directory can be looked up; later the disk may hang.
                if watch.watches_server() {
                    guarded = guarded.or_else(|| Guarded::of(data_dir));
                } else {
                    guarded = None;
                }
            }
        }
    }
}

/// Takes in what has come. `false`: nothing more will.
fn hear(input: &mut impl Read, partial: &mut Vec<u8>, watch: &mut Watch) -> bool {
    let mut bytes = [0u8; 64 * WORD_BYTES];
    match input.read(&mut bytes) {
        Ok(0) => return false,
        Ok(count) => partial.extend_from_slice(&bytes[..count]),
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return true,
        Err(_) => return false,
    }
    while let Some((first, rest)) = partial.split_first_chunk::<WORD_BYTES>() {
        watch.hear(Word::from_bytes(*first));
        *partial = rest.to_vec();
    }
    true
}

fn fence(guarded: Option<Guarded>) {
    let Some(guarded) = guarded else { return };
    let mut killed = std::collections::BTreeSet::new();
    loop {
        let living = guarded.kill();
        if living.is_empty() {
            break;
        }
        killed.extend(living);
        std::thread::sleep(ROUND);
    }
    if !killed.is_empty() {
        eprintln!(
            "stemma {}: the lease has ended and the keeper did not act; {} processes of the server were killed",
            crate::WATCHER_COMMAND,
            killed.len()
        );
    }
}
