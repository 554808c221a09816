//! Reads back what `conf` wrote, for a keeper that starts anew beside data it knows nothing of yet.

use std::path::Path;

/// The value of a parameter in the configuration that we wrote last; `None` when there is none.
pub fn written_parameter(data_dir: &Path, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(data_dir.join("stemma.conf")).ok()?;
    text.lines().rev().find_map(|line| {
        let (key, value) = line.split_once(" = ")?;
        let quoted = value.trim().strip_prefix('\'')?.strip_suffix('\'')?;
        (key == name).then(|| quoted.replace("''", "'").replace("\\\\", "\\"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let names = "synchronous_standby_names";
        assert_eq!(written_parameter(dir.path(), names), None);
        std::fs::write(dir.path().join("stemma.conf"), format!("a = 'x''y'\n{names} = 'ANY 1 (\"s_1\",\"s_2\")'\n"))
            .expect("written");
        assert_eq!(written_parameter(dir.path(), names).as_deref(), Some("ANY 1 (\"s_1\",\"s_2\")"));
        assert_eq!(written_parameter(dir.path(), "a").as_deref(), Some("x'y"));
        assert_eq!(written_parameter(dir.path(), "b"), None);
    }
}
