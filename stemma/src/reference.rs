//! The reference pages, made from what the program itself knows: commands from clap, settings from the cluster room,
//! errors from the pages of `stemma explain`. The pages are kept in `docs` so that they can be read without a build; a
//! test fails where they have drifted, and `stemma reference --write docs` brings them up to date.
//!
//! A page is written by hand around its generated part, which stands between `<!-- generated -->` and
//! `<!-- end of generated -->`.

use crate::cli::Cli;
use crate::node_file;
use crate::render::out;
use crate::router_file;
use clap::{Arg, ArgAction, Command, CommandFactory};
use cluster::settings::{Class, KEYS};
use model::Trouble;
use model::error::{CODES, exit_of};
use std::fmt::Write;
use std::path::Path;

const BEGIN: &str = "<!-- generated -->\n";
const END: &str = "<!-- end of generated -->";

/// One generated part: the page, and what stands in it.
struct Page {
    file: &'static str,
    text: fn() -> String,
}

const PAGES: &[Page] = &[
    Page { file: "commands.md", text: commands },
    Page { file: "configuration.md", text: configuration },
    Page { file: "errors.md", text: errors },
];

/// Brings the pages in `directory` up to date.
pub fn write(directory: &Path) -> Result<(), Trouble> {
    for page in PAGES {
        let path = directory.join(page.file);
        let refused = |error: &dyn std::fmt::Display| {
            Trouble::os(
                format!("{} was not brought up to date", path.display()),
                "give the directory `docs` of the source",
            )
            .because(error.to_string())
        };
        let old = std::fs::read_to_string(&path).map_err(|error| refused(&error))?;
        let new = splice(&old, &(page.text)()).ok_or_else(|| refused(&"it has no generated part"))?;
        if new != old {
            std::fs::write(&path, new).map_err(|error| refused(&error))?;
            out::note(&format!("{} written", path.display()));
        }
    }
    Ok(())
}

/// The page with its generated part replaced; `None` where it has none.
fn splice(page: &str, generated: &str) -> Option<String> {
    let begin = page.find(BEGIN)? + BEGIN.len();
    let end = begin + page[begin..].find(END)?;
    Some(format!("{}\n{}\n\n{}", &page[..begin], generated.trim(), &page[end..]))
}

fn commands() -> String {
    let mut root = Cli::command();
    root.build();
    let mut text = String::new();
    for command in root.get_subcommands().filter(|command| shown(command)) {
        describe_command(&mut text, command, "stemma", 2);
    }
    text.push_str("## Options of every command\n\n");
    text.push_str(&option_table(root.get_arguments().filter(|arg| arg.is_global_set())));
    text
}

fn shown(command: &Command) -> bool {
    !command.is_hide_set() && command.get_name() != "help"
}

fn describe_command(text: &mut String, command: &Command, parent: &str, depth: usize) {
    let name = format!("{parent} {}", command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let _ = write!(text, "{} {name}\n\n{}.\n\n", "#".repeat(depth), about.trim_end_matches('.'));
    let children: Vec<&Command> = command.get_subcommands().filter(|child| shown(child)).collect();
    // Some do something of their own where no further word follows.
    if children.is_empty() || !command.is_subcommand_required_set() {
        describe_own(text, command, &name);
    }
    for child in children {
        describe_command(text, child, &name, depth + 1);
    }
}

fn describe_own(text: &mut String, command: &Command, name: &str) {
    let _ = write!(text, "```console\n$ {}\n```\n\n", usage(command, name));
    let own =
        command.get_arguments().filter(|arg| !arg.is_global_set() && arg.get_id() != "help" && !arg.is_hide_set());
    let table = option_table(own);
    if !table.is_empty() {
        let _ = writeln!(text, "{table}");
    }
    if let Some(examples) = command.get_after_help().map(ToString::to_string) {
        // What an example remarks becomes a comment, so that the line can be pasted.
        let lines: Vec<String> =
            examples.lines().skip(1).map(|line| line.trim().replacen("   (", "   # (", 1)).collect();
        let _ = write!(text, "```sh\n{}\n```\n\n", lines.join("\n"));
    }
}

fn usage(command: &Command, name: &str) -> String {
    let mut line = name.to_owned();
    let own =
        || command.get_arguments().filter(|arg| !arg.is_global_set() && arg.get_id() != "help" && !arg.is_hide_set());
    if own().any(|arg| !arg.is_positional() && !arg.is_required_set()) {
        line.push_str(" [OPTIONS]");
    }
    for arg in own().filter(|arg| !arg.is_positional() && arg.is_required_set()) {
        let _ = write!(line, " {}", spelling(arg));
    }
    for arg in own().filter(|arg| arg.is_positional()) {
        let many = if arg.get_num_args().is_some_and(|range| range.max_values() > 1) { "..." } else { "" };
        let word = value_name(arg);
        let _ = if arg.is_required_set() { write!(line, " <{word}>{many}") } else { write!(line, " [{word}]{many}") };
    }
    line
}

fn value_name(arg: &Arg) -> String {
    arg.get_value_names()
        .and_then(|names| names.first())
        .map_or_else(|| arg.get_id().as_str().to_uppercase(), ToString::to_string)
}

/// `-o, --output <OUTPUT>`
fn spelling(arg: &Arg) -> String {
    if arg.is_positional() {
        return value_name(arg);
    }
    let mut word = arg.get_short().map_or_else(String::new, |short| format!("-{short}, "));
    if let Some(long) = arg.get_long() {
        let _ = write!(word, "--{long}");
    }
    if matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) {
        let optional = arg.get_num_args().is_some_and(|range| range.min_values() == 0);
        let _ = if optional { write!(word, "[={}]", value_name(arg)) } else { write!(word, " <{}>", value_name(arg)) };
    }
    word
}

fn option_table<'a>(arguments: impl Iterator<Item = &'a Arg>) -> String {
    let mut rows = String::new();
    for arg in arguments {
        let mut what = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let values: Vec<String> = arg
            .get_possible_values()
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| format!("`{}`", value.get_name()))
            .collect();
        if !values.is_empty() && matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) && values.len() <= 6 {
            let _ = write!(what, ": {}", values.join(", "));
        }
        let defaults: Vec<String> = arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect();
        if !defaults.is_empty() && matches!(arg.get_action(), ArgAction::Set | ArgAction::Append) {
            let _ = write!(what, " (default `{}`)", defaults.join(" "));
        }
        if let Some(variable) = arg.get_env() {
            let _ = write!(what, "; also `{}` in the environment", variable.to_string_lossy());
        }
        let _ = writeln!(rows, "| `{}` | {} |", spelling(arg), cell(&what));
    }
    if rows.is_empty() { rows } else { format!("| argument | meaning |\n|---|---|\n{rows}") }
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

fn configuration() -> String {
    let mut text = String::from("## Node file\n\n| key | default | meaning |\n|---|---|---|\n");
    for key in node_file::KEYS.iter().chain(router_file::KEYS) {
        let default = if key.default.is_empty() { "required".to_owned() } else { key.default.to_owned() };
        let _ = writeln!(text, "| `{}` | {} | {} |", key.key, cell(&default), cell(key.doc));
    }
    text.push_str("\n## Cluster settings\n\n");
    for doc in KEYS {
        let default = if doc.default.is_empty() { "none".to_owned() } else { format!("`{}`", doc.default) };
        let class = match doc.class {
            Class::None => "",
            Class::Reload => "the servers reload; ",
            Class::Restart => "needs a restart of the servers; ",
        };
        let _ = write!(
            text,
            "### {}\n\n{}\n\n- Values: {}\n- Default: {default}\n- A change: {class}{}\n\n",
            doc.key, doc.doc, doc.kind, doc.effect
        );
    }
    text
}

fn errors() -> String {
    let mut text = String::new();
    for (code, title) in CODES {
        let page = crate::explain::page(code).unwrap_or_default();
        let _ = write!(text, "## {code}\n\n**{title}**\n\n{page}\n\n");
        if let Some(exit) = exit_of(code) {
            let _ = write!(text, "Exit status: {exit}.\n\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_say_what_the_program_says() {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
        for page in PAGES {
            let old = std::fs::read_to_string(docs.join(page.file)).expect(page.file);
            let new = splice(&old, &(page.text)()).expect("a generated part");
            assert!(new == old, "docs/{} has drifted; run: cargo run -p stemma -- reference --write docs", page.file);
        }
    }

    #[test]
    fn what_was_written_by_hand_stays() {
        let page = format!("# Head\n\n{BEGIN}old\n{END}\n\ntail\n");
        let new = splice(&page, "new\n").expect("a generated part");
        assert_eq!(new, format!("# Head\n\n{BEGIN}\nnew\n\n{END}\n\ntail\n"));
        assert_eq!(splice(&new, "new\n"), Some(new.clone()));
        assert_eq!(splice("# Head\n", "new"), None);
    }

    /// What is wrong with a command line as texts name it, placeholders and all.
    fn misnamed(line: &str) -> Option<String> {
        let mut root = Cli::command();
        root.build();
        let mut command = &root;
        for word in line.split_whitespace().skip(1) {
            if matches!(word, "|" | "#" | ">" | "<" | "&") {
                break;
            }
            let word = word.trim_matches(['[', ']', '(', ')', ',', '.', ':', ';']);
            let option = word.strip_prefix("--").map(|option| option.split('=').next().unwrap_or(option));
            if let Some(option) = option {
                let known = command.get_arguments().any(|arg| arg.get_long() == Some(option));
                if !known && !matches!(option, "help" | "version") {
                    return Some(format!("`{}` has no option --{option}", command.get_name()));
                }
            } else if command.has_subcommands() && word.starts_with(|first: char| first.is_ascii_lowercase()) {
                match command.find_subcommand(word) {
                    Some(found) => command = found,
                    None if command.get_arguments().any(|arg| arg.get_id() == word) => {}
                    None => return Some(format!("`{}` has no command `{word}`", command.get_name())),
                }
            }
        }
        None
    }

    fn texts(directory: &Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(directory).expect("a directory").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let hidden = name.to_string_lossy().starts_with('.');
            if path.is_dir() && !hidden && name != "target" {
                texts(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs" || end == "md") {
                found.push(path);
            }
        }
    }

    #[test]
    fn commands_that_texts_name_exist() {
        let mut files = Vec::new();
        texts(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &mut files);
        assert!(files.len() > 50, "the sources are there");
        let mut wrong = Vec::new();
        for file in files.iter().filter(|file| !file.ends_with("src/reference.rs")) {
            let text = std::fs::read_to_string(file).expect("readable");
            for (number, line) in text.lines().enumerate() {
                let inline = line.split('`').skip(1).step_by(2);
                let shell =
                    line.trim_start().trim_start_matches("$ ").split_once(" && ").map_or(line, |(_, rest)| rest);
                let shell = shell.trim_start().trim_start_matches("$ ");
                let block = (file.extension().is_some_and(|end| end == "md")).then_some(shell);
                for named in inline.chain(block).filter(|named| named.starts_with("stemma ")) {
                    if let Some(problem) = misnamed(named) {
                        wrong.push(format!("{}:{}: {named}: {problem}", file.display(), number + 1));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
