//! Printing that survives a reader who has seen enough: a closed pipe ends the output, not the program's sense.

use std::io::Write;

/// Prints a line to standard output.
pub fn line(text: &str) {
    raw(&format!("{text}\n"));
}

/// Prints text as it is to standard output.
pub fn raw(text: &str) {
    let mut out = std::io::stdout().lock();
    // `stemma status | head -1` closes the pipe early. What was asked for is done; there is nobody left to tell.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints a line to standard error: progress, prompts and errors.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Prints a document for programs.
pub fn json<T: serde::Serialize>(value: &T) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => line(&text),
        Err(error) => note(&format!("output could not be written as JSON: {error}")),
    }
}
