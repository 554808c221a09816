//! Runs seeds and says how many a second; a seed that breaks a property is printed with the command that shows it.

use sim::run::{MEMBERS_FROM, WIDE_FROM};
use sim::{Mutant, Outcome, run_in};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

const USAGE: &str =
    "usage: stemma-sim [--seeds N | --seconds N] [--from SEED | --fresh] [--jobs N] [--mutant NAME] [--mode MODE]
       stemma-sim --seed N [--trace] [--mutant NAME] [--mode MODE]";

struct Arguments {
    seeds: u64,
    from: u64,
    seconds: u64,
    jobs: usize,
    seed: Option<u64>,
    trace: bool,
    mutant: Mutant,
    mode: Option<model::CommitMode>,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments {
        seeds: 1_000,
        from: 0,
        seconds: u64::MAX,
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
        seed: None,
        trace: false,
        mutant: Mutant::None,
        mode: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|error| format!("`{text}`: {error}"));
        match word.as_str() {
            "--seeds" => parsed.seeds = number(value()?)?,
            "--from" => parsed.from = number(value()?)?,
            "--fresh" => parsed.from = fresh(),
            "--jobs" => parsed.jobs = number(value()?)?.clamp(1, 256) as usize,
            "--seconds" => {
                parsed.seconds = number(value()?)?;
                parsed.seeds = u64::MAX;
            }
            "--seed" => parsed.seed = Some(number(value()?)?),
            "--mode" => parsed.mode = Some(value()?.parse()?),
            "--trace" => parsed.trace = true,
            "--mutant" => {
                let name = value()?;
                let known = Mutant::ALL.into_iter().find(|mutant| format!("{mutant:?}") == name);
                parsed.mutant = known.ok_or_else(|| format!("`{name}` is not one of {:?}", Mutant::ALL))?;
            }
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    Ok(parsed)
}

fn one(seed: u64, arguments: &Arguments) -> std::process::ExitCode {
    let outcome = run_in(seed, arguments.mutant, arguments.mode, arguments.trace);
    for line in &outcome.trace {
        println!("{line}");
    }
    println!("{}", summary(&outcome));
    if outcome.broken.is_some() { std::process::ExitCode::FAILURE } else { std::process::ExitCode::SUCCESS }
}

fn summary(outcome: &Outcome) -> String {
    format!(
        "seed {}: {}; {} commits acknowledged, {} failovers ({} planned), {} undone, {} taken over, whole after {} ms",
        outcome.seed,
        outcome.broken.as_deref().unwrap_or("sound"),
        outcome.acknowledged,
        outcome.failovers,
        outcome.switchovers,
        outcome.undone,
        outcome.superseded,
        outcome.healed_ms
    )
}

/// Seeds that nobody ran lately, of the wider world: a thousand for each second, round again after 23 days. Those in which
/// members come and go have to be asked for (`--from`, see `sim::run::MEMBERS_FROM`).
fn fresh() -> u64 {
    let span = MEMBERS_FROM - WIDE_FROM;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    WIDE_FROM + since * 1_000 % span
}

/// What came of many seeds.
#[derive(Default)]
struct Total {
    done: u64,
    broken: u64,
    simulated: u64,
    acknowledged: u64,
    healed_max: u64,
    changes: [u64; 5],
}

impl Total {
    fn add(&mut self, outcome: &Outcome) {
        self.done += 1;
        self.simulated += outcome.simulated_ms;
        self.acknowledged += outcome.acknowledged;
        self.healed_max = self.healed_max.max(outcome.healed_ms);
        let counted =
            [outcome.failovers, outcome.switchovers, outcome.undone, outcome.superseded, outcome.lost_unpromised];
        for (sum, count) in self.changes.iter_mut().zip(counted) {
            *sum += count;
        }
        if let Some(what) = &outcome.broken {
            self.broken += 1;
            let seed = outcome.seed;
            println!("seed {seed}: {what}\n  cargo run -p stemma-sim --release -- --seed {seed} --trace");
        }
    }
}

/// Each thread takes the next seed; what is printed is in the order of the seeds, however many threads there are.
fn many(arguments: &Arguments) -> std::process::ExitCode {
    let began = Instant::now();
    println!("seeds from {}, {} at a time", arguments.from, arguments.jobs);
    let next = AtomicU64::new(0);
    let (sender, outcomes) = mpsc::channel();
    let mut total = Total::default();
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                while began.elapsed().as_secs() < arguments.seconds {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    if at >= arguments.seeds {
                        break;
                    }
                    let outcome = run_in(arguments.from.wrapping_add(at), arguments.mutant, arguments.mode, false);
                    if sender.send((at, outcome)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        for (at, outcome) in outcomes {
            early.insert(at, outcome);
            while let Some(outcome) = early.remove(&total.done) {
                total.add(&outcome);
            }
        }
    });
    let [failovers, planned, undone, superseded, lost] = total.changes;
    println!(
        "{} seeds, {} broken, {:.0} seeds/s, {:.1} simulated hours; {} commits acknowledged, {lost} lost where nothing was \
         promised; {failovers} failovers ({planned} planned), {undone} undone, {superseded} taken over; slowest to be whole \
         again {} ms",
        total.done,
        total.broken,
        total.done as f64 / began.elapsed().as_secs_f64(),
        total.simulated as f64 / 3_600_000.0,
        total.acknowledged,
        total.healed_max
    );
    if total.broken > 0 { std::process::ExitCode::FAILURE } else { std::process::ExitCode::SUCCESS }
}

fn main() -> std::process::ExitCode {
    match arguments() {
        Ok(arguments) => match arguments.seed {
            Some(seed) => one(seed, &arguments),
            None => many(&arguments),
        },
        Err(problem) => {
            eprintln!("{problem}\n{USAGE}");
            std::process::ExitCode::from(2)
        }
    }
}
