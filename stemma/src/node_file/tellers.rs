//! The sections of the node file about telling the world outside.

use super::{DNS_KEYS, FLOATING_KEYS, HOOK_KEYS, Reader, wrong_type};
use keeper::{Hook, Hooks};
use model::settings::Span;
use model::{Millis, Trouble};
use std::path::PathBuf;
use toml::de::{DeTable, DeValue};

/// Longest time a hook may be given: hooks of one node run one after the other.
const TIMEOUT_MAX: Millis = Millis::from_secs(3600);

/// Longest time resolvers may be told to keep an answer: clients go to the old primary for so long.
const TTL_MAX: Millis = Millis::from_secs(3600);

/// `[dns]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// `host:port`.
    pub server: String,
    /// The zone.
    pub zone: String,
    /// The name that leads to the primary.
    pub name: String,
    /// The name that leads to replicas.
    pub replicas_name: Option<String>,
    /// How long answers may be kept.
    pub ttl: Millis,
    /// Name, algorithm and file of the key.
    pub key: Option<(String, String, PathBuf)>,
}

impl Reader<'_> {
    /// `[dns]`.
    pub(super) fn dns(&mut self, table: &DeTable<'_>) -> Option<Dns> {
        let section = "dns";
        self.check_keys(section, table, DNS_KEYS);
        let server = self
            .required_text(section, table, "server", "server = \"10.0.0.53:53\"")
            .and_then(|(text, span)| self.host_and_port(section, "server", text, span));
        let text = |found: Option<(String, std::ops::Range<usize>)>| found.map(|(text, _)| text);
        let zone = text(self.required_text(section, table, "zone", "zone = \"example.org\""));
        let name = text(self.required_text(section, table, "name", "name = \"db.example.org\""));
        let replicas_name = text(self.text_of(section, table, "replicas_name"));
        let ttl = match self.text_of(section, table, "ttl") {
            None => Some(Millis::from_secs(5)),
            Some((text, span)) => match text.parse::<Span>() {
                Ok(Span(ttl)) if ttl <= TTL_MAX && ttl.0.is_multiple_of(1_000) => Some(ttl),
                Ok(_) | Err(_) => {
                    let reason = format!("`dns.ttl` is `{text}`");
                    self.add(span, Trouble::config_bad_value(reason, "choose whole seconds from 1s to 1h"));
                    None
                }
            },
        };
        let key_name = text(self.text_of(section, table, "key_name"));
        let algorithm = text(self.text_of(section, table, "key_algorithm")).unwrap_or_else(|| "hmac-sha256".to_owned());
        let key_file = self
            .text_of(section, table, "key_file")
            .and_then(|(text, span)| self.absolute(section, "key_file", text, span));
        let key = match (key_name, key_file) {
            (Some(name), Some(file)) => Some((name, algorithm, file)),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => {
                let reason = "`dns.key_name` and `dns.key_file` belong together";
                let place = self.heading(section);
                self.add(place, Trouble::config_missing_key(reason, "give both, or neither"));
                None
            }
        };
        Some(Dns { server: server?, zone: zone?, name: name?, replicas_name, ttl: ttl?, key })
    }

    /// `[floating_ip]`.
    pub(super) fn floating_ip(&mut self, table: &DeTable<'_>) -> Option<(String, String)> {
        let section = "floating_ip";
        self.check_keys(section, table, FLOATING_KEYS);
        let address = self.required_text(section, table, "address", "address = \"10.0.0.100/24\"");
        let interface = self.required_text(section, table, "interface", "interface = \"eth0\"");
        let ((address, place), (interface, _)) = (address?, interface?);
        if let Err(trouble) = crate::daemon::floating(&address, &interface) {
            self.add(place, trouble);
            return None;
        }
        Some((address, interface))
    }

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
