//! Runs seeds and says how many a second; a seed that breaks a property is printed with the command that shows it.

use sim::{Mutant, Outcome, run_in};
use std::time::Instant;

const USAGE: &str =
    "usage: stemma-sim [--seeds N] [--from SEED] [--seconds N] | --seed N [--trace] [--mutant NAME] [--mode MODE]";

struct Arguments {
    seeds: u64,
    from: u64,
    seconds: u64,
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

fn many(arguments: &Arguments) -> std::process::ExitCode {
    let began = Instant::now();
    let (mut done, mut broken) = (0_u64, 0_u64);
    let (mut simulated, mut acknowledged, mut healed_max) = (0, 0, 0);
    let mut changes = [0_u64; 5];
    while done < arguments.seeds && began.elapsed().as_secs() < arguments.seconds {
        let seed = arguments.from + done;
        let outcome = run_in(seed, arguments.mutant, arguments.mode, false);
        done += 1;
        simulated += outcome.simulated_ms;
        acknowledged += outcome.acknowledged;
        healed_max = healed_max.max(outcome.healed_ms);
        let counted =
            [outcome.failovers, outcome.switchovers, outcome.undone, outcome.superseded, outcome.lost_unpromised];
        for (sum, count) in changes.iter_mut().zip(counted) {
            *sum += count;
        }
        if let Some(what) = &outcome.broken {
            broken += 1;
            println!("seed {seed}: {what}\n  cargo run -p stemma-sim --release -- --seed {seed} --trace");
        }
    }
    let [failovers, planned, undone, superseded, lost] = changes;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{done} seeds, {broken} broken, {:.0} seeds/s, {:.1} simulated hours; {acknowledged} commits acknowledged, {lost} \
         lost where nothing was promised; {failovers} failovers ({planned} planned), {undone} undone, {superseded} taken \
         over; slowest to be whole again {healed_max} ms",
        done as f64 / seconds,
        simulated as f64 / 3_600_000.0
    );
    if broken > 0 { std::process::ExitCode::FAILURE } else { std::process::ExitCode::SUCCESS }
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
