//! `stemma explain ST2107`: the page of an error code, offline. The pages are in `errors.md`.

use crate::commands::Context;
use crate::render::finding::did_you_mean;
use crate::render::look::Tone;
use crate::render::out;
use model::Trouble;
use model::error::CODES;
use serde_json::json;

/// All pages: `## ST1001` and the text below.
const PAGES: &str = include_str!("errors.md");

/// The page of a code.
pub fn page(code: &str) -> Option<&'static str> {
    let heading = format!("## {code}\n");
    let start = PAGES.find(&heading)? + heading.len();
    let end = PAGES[start..].find("\n## ").map_or(PAGES.len(), |end| start + end);
    Some(PAGES[start..end].trim())
}

/// Runs the command.
pub fn run(context: &Context, code: Option<&str>, all: bool) -> Result<u8, Trouble> {
    let Some(code) = code.filter(|_| !all) else {
        return list(context);
    };
    let wanted = code.trim().to_ascii_uppercase();
    let Some((code, title)) = CODES.iter().find(|(known, _)| *known == wanted) else {
        let near = did_you_mean(&wanted, CODES.iter().map(|(code, _)| *code));
        let hint = near.map_or("all codes: stemma explain --all".to_owned(), |near| {
            format!("did you mean {near}? all codes: stemma explain --all")
        });
        return Err(Trouble::not_found(format!("there is no error code `{code}`"), hint));
    };
    let text = page(code).unwrap_or_default();
    let exit = model::error::exit_of(code);
    if context.is_json() {
        context.print_json("error", json!({ "code": code, "title": title, "exit": exit, "text": text }));
        return Ok(0);
    }
    out::line(&format!("{}  {title}", context.look.paint(Tone::Strong, code)));
    out::line(&context.look.finish(text));
    if let Some(exit) = exit {
        out::line(&context.look.paint(Tone::Quiet, &format!("Exit status of commands that end with it: {exit}")));
    }
    Ok(0)
}

fn list(context: &Context) -> Result<u8, Trouble> {
    if context.is_json() {
        let codes: Vec<_> = CODES.iter().map(|(code, title)| json!({ "code": code, "title": title })).collect();
        context.print_json("errors", codes);
        return Ok(0);
    }
    for (code, title) in CODES {
        out::line(&format!("  {code}  {title}"));
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_page_with_meaning_and_fix() {
        for (code, _) in CODES {
            let page = page(code).unwrap_or_else(|| panic!("{code} has no page in errors.md"));
            assert!(page.contains("Do:"), "the page of {code} does not say what to do");
            assert!(page.contains("Data:"), "the page of {code} does not say whether data is at risk");
        }
        let headings: Vec<&str> = PAGES.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert!(
            headings.is_sorted_by(|before, after| before < after),
            "errors.md is in the order of the codes: {headings:?}"
        );
    }
}
