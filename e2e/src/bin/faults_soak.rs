//! Random faults in a row on one cluster under load, with the oracle after each.
//!
//! `faults_soak [FAULTS] [KIND,...]`: so many faults (default 200), of all kinds at random or of these in turn.
//! `STEMMA_SEED` repeats a row.
//! After each the cluster must be whole again without a human hand, with nothing lost and one node that takes writes;
//! in the end all nodes are compared. Prints one line for each fault and a table in the end; ends with an error at the
//! first promise that is not kept.

use e2e::lab::{Account, Fault, Lab};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const CLIENTS: usize = 4;
/// Failovers in a row wait longer and longer, by what keepers remember. Keepers that start remember nothing: without
/// this the row would mostly wait.
const KEEPERS_LIVE_FOR: usize = 3;

/// A small generator (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("below a small bound")
    }
}

fn kind(name: &str) -> Fault {
    let known = Fault::ALL.into_iter().find(|fault| format!("{fault:?}") == name);
    known.unwrap_or_else(|| panic!("no fault `{name}`; there are {:?}", Fault::ALL))
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let count: usize = arguments.next().map_or(200, |text| text.parse().expect("a number of faults"));
    let in_turn: Vec<Fault> = arguments.next().map_or_else(Vec::new, |names| names.split(',').map(kind).collect());
    let given = std::env::var("STEMMA_SEED").ok().and_then(|text| text.parse::<u64>().ok());
    let seed = given.unwrap_or_else(|| u64::from(std::process::id()).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    println!("repeat with STEMMA_SEED={seed}");
    let mut dice = Dice(seed | 1);
    let mut lab = Lab::start(CLIENTS).expect("a cluster in network namespaces");
    let begun = Instant::now();
    let mut accounts: Vec<Account> = Vec::new();
    let mut moves = 0;
    for number in 1..=count {
        let fault = match in_turn.len() {
            0 => Fault::ALL[dice.below(Fault::ALL.len())],
            kinds => in_turn[(number - 1) % kinds],
        };
        let account = lab.suffer(fault);
        println!(
            "{number:>4} {:<22} {} -> {}  gap {:>6.3} s  whole after {:>5.1} s",
            format!("{fault:?}"),
            account.from,
            account.to,
            account.gap.as_secs_f64(),
            account.whole_after.as_secs_f64()
        );
        moves += usize::from(account.from != account.to);
        accounts.push(account);
        if moves >= KEEPERS_LIVE_FOR {
            lab.restart_keepers();
            moves = 0;
        }
    }
    let unanswered = lab.oracle().unanswered();
    let rows = lab.finish();
    summary(&accounts);
    println!(
        "{count} faults in {:.0} s: {rows} writes acknowledged, 0 lost, {unanswered} without an answer; nodes are equal",
        begun.elapsed().as_secs_f64()
    );
}

fn summary(accounts: &[Account]) {
    let mut kinds: BTreeMap<String, Vec<&Account>> = BTreeMap::new();
    for account in accounts {
        kinds.entry(format!("{:?}", account.fault)).or_default().push(account);
    }
    println!(
        "{:<22} {:>5} {:>6} {:>12} {:>9} {:>12}",
        "fault", "times", "moved", "gap, median", "maximum", "whole after"
    );
    for (kind, accounts) in kinds {
        let mut gaps: Vec<Duration> = accounts.iter().map(|it| it.gap).collect();
        gaps.sort();
        let moved = accounts.iter().filter(|it| it.from != it.to).count();
        let whole = accounts.iter().map(|it| it.whole_after).max().unwrap_or_default();
        println!(
            "{kind:<22} {:>5} {moved:>6} {:>10.3} s {:>7.3} s {:>10.1} s",
            accounts.len(),
            gaps[gaps.len() / 2].as_secs_f64(),
            gaps.last().map_or(0.0, Duration::as_secs_f64),
            whole.as_secs_f64()
        );
    }
}
