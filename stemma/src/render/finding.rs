//! Problems in a file, shown at their place: the line, a pointer under it, and the way out.

use super::look::{Look, Mark, Tone};
use super::table::wrap;
use model::Trouble;

/// One problem in a file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// How many characters are concerned; at least 1.
    #[serde(skip)]
    pub length: usize,
    /// Error code.
    pub code: String,
    /// What is wrong.
    pub reason: String,
    /// What to write instead.
    pub hint: String,
}

impl Finding {
    /// At a byte range of `text`.
    pub fn at(text: &str, span: std::ops::Range<usize>, trouble: Trouble) -> Finding {
        let start = floor(text, span.start);
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let end = floor(text, span.end).clamp(start, line_end);
        Finding {
            line: text[..start].matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            length: text[start..end].chars().count().max(1),
            code: trouble.code.to_string(),
            reason: trouble.reason,
            hint: trouble.hint,
        }
    }
}

/// The greatest character boundary that is not beyond `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|index| text.is_char_boundary(*index)).unwrap_or(0)
}

/// All findings with the lines they concern.
pub fn report(file: &str, text: &str, findings: &[Finding], look: &Look) -> String {
    let gutter = findings.iter().map(|finding| finding.line.to_string().len()).max().unwrap_or(1);
    let blocks: Vec<String> = findings.iter().map(|finding| block(file, text, finding, gutter, look)).collect();
    look.finish(&blocks.join("\n\n"))
}

fn block(file: &str, text: &str, finding: &Finding, gutter: usize, look: &Look) -> String {
    let bar = look.paint(Tone::Quiet, "│");
    let source = text.lines().nth(finding.line - 1).unwrap_or("").replace('\t', " ");
    let pointer = format!("{}{}", " ".repeat(finding.column - 1), "^".repeat(finding.length));
    let head = format!("{} {} ({})", look.mark(Mark::Down), finding.reason, finding.code);
    let mut lines = vec![
        head,
        look.paint(Tone::Quiet, &format!("{:gutter$} ─ {file}:{}:{}", "", finding.line, finding.column)),
        format!("{:>gutter$} {bar} {source}", finding.line),
        format!("{:gutter$} {bar} {}", "", look.paint(Tone::Bad, &pointer)),
    ];
    if !finding.hint.is_empty() {
        lines.push(wrap(&format!("  hint: {}", finding.hint), look.width, 8));
    }
    lines.join("\n")
}

/// All findings as one error, for commands that cannot go on without the file.
pub fn trouble(file: &str, findings: &[Finding]) -> Trouble {
    let Some(first) = findings.first() else {
        return Trouble::internal("a file was refused without a finding", "report this");
    };
    let mut trouble =
        Trouble::config_unreadable("", format!("see all problems at their place: stemma config check {file}"));
    trouble.code = model::Code(first.code.clone().into());
    trouble.reason = match findings.len() {
        1 => format!("{file}: 1 problem"),
        many => format!("{file}: {many} problems"),
    };
    for finding in findings {
        let hint = if finding.hint.is_empty() { String::new() } else { format!("; {}", finding.hint) };
        trouble.causes.push(format!("line {}: {} ({}){hint}", finding.line, finding.reason, finding.code));
    }
    trouble
}

/// The candidate most like `word`, if it is like enough to be a slip of the keyboard.
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (word.chars().count() / 3).max(1) + 1;
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edits from `left` to `right`: insert, delete, replace.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let replace = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        assert_eq!(did_you_mean("prot", ["port", "listen"]), Some("port"));
        assert_eq!(did_you_mean("data-dir", ["data_dir", "bin_dir"]), Some("data_dir"));
        assert_eq!(did_you_mean("zebra", ["port", "listen"]), None);
    }

    #[test]
    fn places_are_counted_in_characters() {
        let text = "a = 1\nü = bad\n";
        let finding = Finding::at(text, 11..14, Trouble::config_bad_value("x", ""));
        assert_eq!((finding.line, finding.column, finding.length), (2, 5, 3));
    }
}
