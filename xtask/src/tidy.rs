//! Rules that compilers do not check: files within reason, no unfinished marks, links that lead somewhere.

use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// Longest source file. Longer ones are rooms that want to be two.
const LINES_MAX: usize = 800;

/// Every broken rule.
pub fn check() -> Result<Vec<String>> {
    let output = Command::new("git").args(["ls-files"]).current_dir(crate::root()).output().context("git")?;
    let files = String::from_utf8(output.stdout)?;
    let mut problems = Vec::new();
    for name in files.lines() {
        let path = crate::root().join(name);
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        if name.ends_with(".rs") {
            source(name, &text, &mut problems);
        }
        if name.ends_with(".md") {
            links(name, &path, &text, &mut problems);
        }
    }
    Ok(problems)
}

fn source(name: &str, text: &str, problems: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > LINES_MAX {
        problems.push(format!("{name} has {lines} lines (at most {LINES_MAX})"));
    }
    if !text.trim_start().starts_with("//!") {
        problems.push(format!("{name} does not say at its head what it is"));
    }
    for (number, line) in text.lines().enumerate().filter(|(_, line)| holds_guard(line)) {
        problems.push(format!("{name}:{}: the guard of a watch lives through the body: {}", number + 1, line.trim()));
    }
    // Spelled in two halves so that this file passes its own check.
    for mark in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!("), concat!("#[ig", "nore")] {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| line.contains(mark)) {
            problems.push(format!("{name}:{}: unfinished: {}", number + 1, line.trim()));
        }
    }
}

/// Whether a line borrows from a watch channel in the head of a body. What the head made lives until the body's end, and
/// a body that reads the same channel again waits for a writer that waits for the first guard: all of it stands still.
fn holds_guard(line: &str) -> bool {
    let head = ["if let ", "while let ", "match ", "for "].iter().any(|word| line.trim_start().starts_with(word));
    let borrows = line.contains(".borrow()") || line.contains(".borrow_and_update()");
    head && borrows && line.trim_end().ends_with('{')
}

fn links(name: &str, path: &Path, text: &str, problems: &mut Vec<String>) {
    let directory = path.parent().unwrap_or(Path::new("."));
    for part in text.split("](").skip(1) {
        let target = part.split([')', '#']).next().unwrap_or_default();
        let outside = target.is_empty() || target.contains("://") || target.contains(' ');
        if !outside && !directory.join(target).exists() {
            problems.push(format!("{name}: link to {target} leads nowhere"));
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_guard_in_the_head_of_a_body_is_found() {
        assert!(super::holds_guard("    if let Some(state) = states.borrow_and_update().clone() {"));
        assert!(super::holds_guard("match channel.borrow().as_ref() {"));
        assert!(!super::holds_guard("let state = states.borrow_and_update().clone();"));
        assert!(!super::holds_guard("if let Some(state) = state {"));
    }

    #[test]
    fn the_house_is_tidy() {
        let problems = super::check().expect("the files can be read");
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }
}
