//! The sections of the node file about telling the world outside.

use super::{HOOK_KEYS, Reader, wrong_type};
use keeper::{Hook, Hooks};
use model::settings::Span;
use model::{Millis, Trouble};
use toml::de::{DeTable, DeValue};

/// Longest time a hook may be given: hooks of one node run one after the other.
const TIMEOUT_MAX: Millis = Millis::from_secs(3600);

impl Reader<'_> {
    /// `[hooks]`.
    pub(super) fn hooks(&mut self, table: &DeTable<'_>) -> Hooks {
        let section = "hooks";
        self.check_keys(section, table, HOOK_KEYS);
        let mut hooks = Hooks::default();
        for hook in Hook::ALL {
            if let Some(command) = self.command(table, hook.as_str()) {
                hooks.commands.insert(hook, command);
            }
        }
        hooks.run_as = self.text_of(section, table, "run_as").map(|(text, _)| text);
        if let Some((text, span)) = self.text_of(section, table, "timeout") {
            match text.parse::<Span>() {
                Ok(Span(timeout)) if timeout > Millis(0) && timeout <= TIMEOUT_MAX => hooks.timeout = timeout,
                Ok(_) => {
                    let reason = format!("`hooks.timeout` is `{text}`");
                    self.add(span, Trouble::config_bad_value(reason, "choose from 1ms to 1h"));
                }
                Err(reason) => self.add(span, Trouble::config_bad_value(reason, "write timeout = \"30s\"")),
            }
        }
        hooks
    }

    /// A program with its arguments, as a list: nothing is given to a shell.
    fn command(&mut self, table: &DeTable<'_>, key: &'static str) -> Option<Vec<String>> {
        let value = table.get(key)?;
        let hint = format!("write {key} = [\"/usr/local/bin/program\", \"argument\"]");
        let DeValue::Array(items) = value.get_ref() else {
            self.add(value.span(), wrong_type("hooks", key, "a list of texts", value.get_ref(), &hint));
            return None;
        };
        let words: Option<Vec<String>> = items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect();
        let words = words.filter(|words| words.first().is_some_and(|program| program.starts_with('/')));
        if words.is_none() {
            let reason = format!("`hooks.{key}` does not begin with the whole path of a program");
            self.add(value.span(), Trouble::config_bad_value(reason, hint));
        }
        words
    }
}
