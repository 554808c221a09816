//! Finding the server's programs. Only `postgres` and `initdb` are needed: everything else we do ourselves.

use model::Trouble;
use model::limits::{POSTGRES_MAJOR_MAX, POSTGRES_MAJOR_MIN};
use std::path::{Path, PathBuf};
use std::process::Command;

/// One set of server programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// Directory that holds `postgres` and `initdb`.
    pub bin_dir: PathBuf,
    /// For example 150018 for 15.18.
    pub version_num: u32,
    /// For example 15.
    pub major: u32,
    /// Whether the server was built with TLS.
    pub has_ssl: bool,
}

/// The programs to use: those in the configured directory, else the newest that packages have installed, else those in
/// `PATH`.
pub fn find_installation(configured: Option<&Path>) -> Result<Installation, Trouble> {
    if let Some(dir) = configured {
        return examine(dir);
    }
    let mut found: Vec<Installation> = packaged_dirs().iter().filter_map(|dir| examine(dir).ok()).collect();
    found.sort_by_key(|installation| installation.version_num);
    if let Some(newest) = found.pop() {
        return Ok(newest);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    match std::env::split_paths(&path).find(|dir| dir.join("postgres").is_file()) {
        Some(dir) => examine(&dir),
        None => Err(Trouble::server_missing(
            "no PostgreSQL server programs in the usual places nor in PATH",
            "install PostgreSQL 13 to 18, or set `bin_dir` under [postgresql] in the node file",
        )),
    }
}

/// Where distributions put server programs: Debian's and Red Hat's layouts, and the default of a build from source.
fn packaged_dirs() -> Vec<PathBuf> {
    let versions = |root: &str, starts: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
        let names = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(starts));
        names.map(|entry| entry.path().join("bin")).filter(|bin| bin.join("postgres").is_file()).collect()
    };
    let mut dirs = versions("/usr/lib/postgresql", "");
    dirs.extend(versions("/usr", "pgsql-"));
    dirs.extend(versions("/usr/local", "pgsql"));
    dirs
}

fn examine(dir: &Path) -> Result<Installation, Trouble> {
    for program in ["postgres", "initdb"] {
        if !dir.join(program).is_file() {
            return Err(Trouble::server_missing(
                format!("there is no `{program}` in {}", dir.display()),
                "set `bin_dir` under [postgresql] in the node file to the directory of the server programs",
            ));
        }
    }
    let postgres = dir.join("postgres");
    let hint = "run it by hand with --version to see what is wrong";
    let output = Command::new(&postgres)
        .arg("--version")
        .output()
        .map_err(|error| Trouble::server_missing(format!("cannot run {}", postgres.display()), hint).because(error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(version_num) = version_in(&text) else {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Trouble::server_missing(format!("{} does not tell its version", postgres.display()), hint)
            .because(format!("{} {said}", text.trim())));
    };
    let major = version_num / 10_000;
    if major < POSTGRES_MAJOR_MIN {
        return Err(Trouble::server_too_old(
            format!("{} is version {major}", postgres.display()),
            format!("use PostgreSQL {POSTGRES_MAJOR_MIN} to {POSTGRES_MAJOR_MAX}"),
        ));
    }
    if major > POSTGRES_MAJOR_MAX {
        tracing::warn!(major, newest_tested = POSTGRES_MAJOR_MAX, "PostgreSQL is newer than any we were tested with");
    }
    Ok(Installation { bin_dir: dir.to_owned(), version_num, major, has_ssl: links_tls(&postgres) })
}

/// Reads `postgres (PostgreSQL) 15.18 (Debian ...)`; a beta such as `18beta1` counts as 18.0.
fn version_in(text: &str) -> Option<u32> {
    let word = text.split_once("(PostgreSQL)")?.1.split_whitespace().next()?;
    let digits = |part: &str| part.chars().take_while(char::is_ascii_digit).collect::<String>();
    let major: u32 = digits(word).parse().ok()?;
    let minor: u32 = word.split_once('.').and_then(|(_, rest)| digits(rest).parse().ok()).unwrap_or(0);
    (major < 1000 && minor < 10_000).then_some(major * 10_000 + minor)
}

/// No option of `postgres` tells without a data directory whether it has TLS, so look for the entry point of OpenSSL
/// among the names the program links to.
fn links_tls(postgres: &Path) -> bool {
    let needle = b"SSL_CTX_new";
    std::fs::read(postgres).is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_servers_print_them() {
        for (text, version) in [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)", Some(150_018)),
            ("postgres (PostgreSQL) 13.23\n", Some(130_023)),
            ("postgres (PostgreSQL) 18beta1", Some(180_000)),
            ("mysqld 8.0", None),
            ("postgres (PostgreSQL) ", None),
        ] {
            assert_eq!(version_in(text), version, "{text}");
        }
    }

    #[test]
    fn the_installed_server_is_found_and_an_empty_directory_is_not() {
        let found = find_installation(None).expect("a server is installed");
        assert!(found.major >= POSTGRES_MAJOR_MIN && found.has_ssl);
        assert_eq!(find_installation(Some(&found.bin_dir)).expect("same"), found);
        let empty = tempfile::tempdir().expect("tempdir");
        assert!(find_installation(Some(empty.path())).expect_err("empty").is("ST1203"));
    }
}
