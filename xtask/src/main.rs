//! Chores of the project: `cargo xtask rooms` checks the dependency table of ARCHITECTURE.md against the workspace.

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("rooms") => {
            let problems = xtask::rooms::check()?;
            for problem in &problems {
                eprintln!("{problem}");
            }
            if problems.is_empty() { Ok(()) } else { bail!("{} rule(s) of the house broken", problems.len()) }
        }
        Some("tidy") => {
            let problems = xtask::tidy::check()?;
            for problem in &problems {
                eprintln!("{problem}");
            }
            if problems.is_empty() { Ok(()) } else { bail!("{} untidy place(s)", problems.len()) }
        }
        Some(other) => bail!("no chore `{other}`: rooms, tidy"),
        None => None.context("which chore? rooms, tidy"),
    }
}
