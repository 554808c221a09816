//! Errors as people and programs read them.

use super::look::{Look, Mark, Tone};
use super::table::wrap;
use model::Trouble;

/// The lines for people: what failed, why, and what to do next.
pub fn text(trouble: &Trouble, look: &Look) -> String {
    let head = format!("{} ({})", wrap(&trouble.reason, look.width.saturating_sub(12), 2), trouble.code);
    let mut out = format!("{} {head}", look.mark(Mark::Down));
    for cause in &trouble.causes {
        out.push('\n');
        out.push_str(&labelled(look, "cause:", cause));
    }
    if !trouble.hint.is_empty() {
        out.push('\n');
        out.push_str(&labelled(look, "hint: ", &trouble.hint));
    }
    look.finish(&out)
}

/// Each line of `body` is wrapped by itself: hints may hold lists and commands.
fn labelled(look: &Look, label: &str, body: &str) -> String {
    let indent = label.len() + 3;
    let lines: Vec<String> = body
        .lines()
        .enumerate()
        .map(|(index, line)| {
            let start = if index == 0 { format!("  {label} ") } else { " ".repeat(indent) };
            wrap(&format!("{start}{line}"), look.width, indent)
        })
        .collect();
    lines.join("\n").replacen(label, &look.paint(Tone::Quiet, label), 1)
}

/// The document for programs.
pub fn json(trouble: &Trouble) -> serde_json::Value {
    serde_json::json!({ "schema_version": model::status::SCHEMA_VERSION, "error": trouble })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_why_and_what_next() {
        let trouble = Trouble::unreachable("no node of the cluster answers", "start a keeper with `stemma run`")
            .because("http://127.0.0.1:8008: connection refused")
            .because("http://127.0.0.1:8009: no answer within 3 s");
        let mut look = Look { color: false, unicode: true, width: 80, terminal: false };
        assert_eq!(
            text(&trouble, &look),
            "✖ no node of the cluster answers (ST2114)\n  cause: http://127.0.0.1:8008: connection refused\n  \
             cause: http://127.0.0.1:8009: no answer within 3 s\n  hint:  start a keeper with `stemma run`"
        );
        look.unicode = false;
        assert!(text(&trouble, &look).starts_with("x no node"));
        assert!(text(&trouble, &look).is_ascii());
        assert_eq!(json(&trouble)["error"]["code"], "ST2114");
        assert_eq!(json(&trouble)["schema_version"], 1);
    }
}
