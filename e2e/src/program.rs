//! The built `stemma` program: found or built, and run to its end.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// How long one command may take.
const COMMAND_DEADLINE: Duration = Duration::from_secs(180);
/// What steers a `stemma` of the person who runs the tests must not steer ours.
const STEERING: [&str; 3] = ["STEMMA_API", "STEMMA_TOKEN_FILE", "STEMMA_SANDBOX"];

/// What came of a command.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The command line, for messages.
    pub line: String,
    /// Exit status; -1 when a signal ended it.
    pub code: i32,
    /// All of it.
    pub stdout: String,
    /// All of it.
    pub stderr: String,
}

impl Ran {
    /// Itself, if it ended with this status.
    pub fn exits(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "`{}` prints\n{}\n{}", self.line, self.stdout, self.stderr);
        self
    }
    /// Its output as a JSON document.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("`{}` prints no JSON ({error}):\n{}", self.line, self.stdout))
    }
    /// The code of the error that it reports in JSON form.
    pub fn error_code(&self) -> String {
        let document = self.json();
        document["error"]["code"].as_str().unwrap_or_else(|| panic!("`{}`: {document}", self.line)).to_owned()
    }
}

/// Path of the program: `STEMMA_BIN`, or the one of the same build as this test, built if it is missing.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("STEMMA_BIN") {
        Some(path) => std::path::absolute(path).expect("STEMMA_BIN is a path"),
        None => of_this_build(),
    })
}

fn of_this_build() -> PathBuf {
    let test = std::env::current_exe().expect("the test knows its own path");
    let profile = test.ancestors().nth(2).expect("tests are in target/<profile>/deps").to_owned();
    let path = profile.join("stemma");
    if !path.exists() {
        let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        build.args(["build", "--quiet", "--package", "stemma", "--target-dir"]);
        build.arg(profile.parent().expect("a target directory"));
        if profile.file_name().is_some_and(|name| name == "release") {
            build.arg("--release");
        }
        build.current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(build.status().expect("cargo starts").success(), "stemma could not be built");
    }
    path
}

/// The program with arguments, steered by them alone.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).stdin(Stdio::null()).current_dir("/");
    for name in STEERING {
        command.env_remove(name);
    }
    command
}

/// Runs the program to its end.
pub async fn run(arguments: &[&str]) -> Ran {
    let line = format!("stemma {}", arguments.join(" "));
    let mut command = tokio::process::Command::from(command(arguments));
    command.kill_on_drop(true);
    let output = tokio::time::timeout(COMMAND_DEADLINE, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("`{line}` does not end")).expect("the program starts");
    Ran {
        line,
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
