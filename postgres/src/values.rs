//! Whether a server would take the values that people give to its parameters.
//!
//! A server that reads one wrong value in its files takes up none of them at a reload, the list of synchronous replicas
//! included, and does not start at the next restart. So values are tried on the server's own program before they are
//! decided on. It reads its arguments before it looks for a database, and none is there to be found.

use crate::install::Installation;
use model::Trouble;
use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// Refuses names and values that this server does not take. Parameters of extensions are not known to it here.
pub fn check_values(installation: &Installation, parameters: &BTreeMap<String, String>) -> Result<(), Trouble> {
    if parameters.is_empty() {
        return Ok(());
    }
    let program = installation.bin_dir.join("postgres");
    let mut command = Command::new(&program);
    // `-C` first: only so may root ask. What lies below a file can be no directory.
    command.args(["-C", "data_directory", "-D"]).arg(program.join("none"));
    for (name, value) in parameters {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output().map_err(|error| {
        Trouble::server_missing(format!("cannot run {}", program.display()), "see the cause").because(error)
    })?;
    let said = String::from_utf8_lossy(&output.stderr);
    let after =
        |mark: &str| said.lines().find_map(|line| line.split_once(mark)).map(|(_, text)| text.trim().to_owned());
    match after("FATAL:") {
        None => Ok(()),
        Some(reason) => Err(Trouble::settings_refused(
            format!("PostgreSQL {} refuses it: {reason}", installation.major),
            after("HINT:").unwrap_or_else(|| "correct it under [postgresql.parameters]".to_owned()),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_tried_on_the_servers_own_program() {
        let installation = crate::find_installation(None).expect("a server is installed");
        let check = |name: &str, value: &str| {
            check_values(&installation, &BTreeMap::from([(name.to_owned(), value.to_owned())]))
        };
        for (name, value) in
            [("shared_buffers", "128MB"), ("work_mem", "5 MB"), ("jit", "off"), ("auto_explain.x", "1")]
        {
            check(name, value).unwrap_or_else(|trouble| panic!("{name} = {value}: {trouble}"));
        }
        for (name, value) in [("shared_buffers", "many"), ("wrok_mem", "5MB"), ("max_connections", "-1"), ("jit", "x")]
        {
            let trouble = check(name, value).expect_err(name);
            assert!(trouble.is("ST2107") && trouble.reason.contains(name), "{trouble}");
        }
    }
}
