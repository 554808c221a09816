//! How output looks on this terminal: colour, characters, width. Text is always made with the full character set and
//! turned to ASCII in one place, so that no renderer can forget it.

use crate::cli::{ColorWhen, Global, Output};
use std::io::IsTerminal;

/// Width taken where the terminal does not tell one.
const WIDTH_DEFAULT: usize = 100;
/// Narrower terminals are treated as this wide: below it no layout can be read.
const WIDTH_MIN: usize = 40;

/// How to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// With ANSI colours.
    pub color: bool,
    /// With characters beyond ASCII.
    pub unicode: bool,
    /// Columns.
    pub width: usize,
    /// Whether standard output is a terminal.
    pub terminal: bool,
}

/// The meaning of a colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// As it comes.
    #[default]
    Plain,
    /// All is well.
    Good,
    /// Needs a look.
    Warn,
    /// Broken.
    Bad,
    /// Of little weight.
    Quiet,
    /// Headings and names.
    Strong,
}

/// A sign before a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Proved to work.
    Ok,
    /// Works with a problem.
    Warn,
    /// Does not work.
    Down,
    /// Not known, or on its way.
    Unknown,
}

impl Mark {
    /// The sign.
    pub fn sign(self) -> &'static str {
        match self {
            Mark::Ok => "●",
            Mark::Warn => "▲",
            Mark::Down => "✖",
            Mark::Unknown => "◌",
        }
    }
    /// Its colour.
    pub fn tone(self) -> Tone {
        match self {
            Mark::Ok => Tone::Good,
            Mark::Warn => Tone::Warn,
            Mark::Down => Tone::Bad,
            Mark::Unknown => Tone::Quiet,
        }
    }
}

impl Look {
    /// For standard output of this process.
    pub fn detect(global: &Global) -> Look {
        let terminal = std::io::stdout().is_terminal();
        Look {
            color: wants_color(global, terminal),
            unicode: speaks_utf8(|name| std::env::var(name).ok()),
            width: columns(terminal),
            terminal,
        }
    }

    /// For standard error of this process.
    pub fn detect_stderr(global: &Global) -> Look {
        let terminal = std::io::stderr().is_terminal();
        Look { color: wants_color(global, terminal), terminal, ..Look::detect(global) }
    }

    /// `text` in the colour of `tone`.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "31",
            Tone::Quiet => "2",
            Tone::Strong => "1",
        };
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// The sign of `mark`, in its colour.
    pub fn mark(&self, mark: Mark) -> String {
        self.paint(mark.tone(), mark.sign())
    }

    /// The text as this terminal can show it.
    pub fn finish(&self, text: &str) -> String {
        if self.unicode { text.to_owned() } else { to_ascii(text) }
    }
}

fn wants_color(global: &Global, terminal: bool) -> bool {
    match (global.color, global.output) {
        (ColorWhen::Always, _) => true,
        (ColorWhen::Never, _) | (ColorWhen::Auto, Output::Json) => false,
        (ColorWhen::Auto, Output::Table) => {
            let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
            let dumb = std::env::var("TERM").is_ok_and(|term| term == "dumb");
            terminal && !set("NO_COLOR") && !dumb
        }
    }
}

/// The locale's word on UTF-8, in the order in which the C library looks: LC_ALL, LC_CTYPE, LANG. Where none is set
/// (containers, services) UTF-8 is taken: there it is right far more often than not.
fn speaks_utf8(variable: impl Fn(&str) -> Option<String>) -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(|name| variable(name).filter(|v| !v.is_empty()));
    locale.is_none_or(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

fn columns(terminal: bool) -> usize {
    let told = std::env::var("COLUMNS").ok().and_then(|text| text.parse::<usize>().ok());
    let asked =
        || terminal.then(|| crossterm::terminal::size().ok()).flatten().map(|(columns, _)| usize::from(columns));
    told.or_else(asked).filter(|columns| *columns > 0).unwrap_or(WIDTH_DEFAULT).max(WIDTH_MIN)
}

/// Every sign has an ASCII stand-in of the same width, so that columns stay aligned.
fn to_ascii(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '●' => '*',
            '▲' => '!',
            '✖' => 'x',
            '◌' => '?',
            '✔' => '+',
            '├' => '|',
            '└' => '`',
            '│' => '|',
            '─' | '·' | '–' | '—' => '-',
            '→' => '>',
            '…' => '~',
            '≥' => '>',
            '≤' => '<',
            '’' | '‘' => '\'',
            '“' | '”' => '"',
            '▁' | '▂' | '▃' => '.',
            '▄' | '▅' => ':',
            '▆' | '▇' | '█' => '#',
            other => other,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_locale_variable_that_is_set_decides() {
        let check = |variables: &[(&str, &str)]| {
            speaks_utf8(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string()))
        };
        assert!(check(&[]));
        assert!(check(&[("LANG", "de_DE.UTF-8")]));
        assert!(check(&[("LC_ALL", ""), ("LANG", "C.utf8")]));
        assert!(!check(&[("LC_ALL", "C"), ("LANG", "en_US.UTF-8")]));
        assert!(!check(&[("LANG", "POSIX")]));
    }
}
