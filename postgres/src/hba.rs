//! Who may connect, from where and with what proof: `pg_hba.conf` and `pg_ident.conf`.
//!
//! The first line that fits decides. So ours come first: the keepers' superuser only through the socket, replication
//! only with a certificate of the cluster (or a password where there is no TLS), both refused otherwise; then the
//! user's lines.

use crate::conf::ServerConfig;
use model::{NodeName, Trouble};

/// Lines used where the settings give none.
const DEFAULT_LINES: [&str; 3] = [
    "host    all all 127.0.0.1/32 scram-sha-256",
    "host    all all ::1/128 scram-sha-256",
    "hostssl all all all scram-sha-256",
];

/// The text of `pg_ident.conf`: members, and nobody else whom the cluster's CA may have signed for, act as the
/// replication role. A certificate bears its member's name (CN); a removed member's line goes, and with it its access.
/// Lines of other maps that `old` has stay, since people may refer to them.
pub(crate) fn ident(config: &ServerConfig, old: &str) -> String {
    let mut text = String::from("# Written by stemma; lines of other maps than `stemma` are kept.\n");
    let names = config.members.iter().map(NodeName::to_string).chain(config.followers.iter().cloned());
    for name in names {
        text.push_str(&format!("stemma \"{name}\" stemma_replication\n"));
    }
    if let Some(user) = &config.keeper_user {
        text.push_str(&format!("stemma_keeper \"{}\" stemma\n", user.replace('"', "")));
    }
    for line in old.lines().map(str::trim) {
        let map = line.split_whitespace().next().unwrap_or_default();
        if !map.is_empty() && !map.starts_with('#') && map != "stemma" && map != "stemma_keeper" {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// The text of `pg_hba.conf`.
pub(crate) fn render(superuser: &str, config: &ServerConfig) -> Result<String, Trouble> {
    let (tls, replication, users) = (config.tls, &config.replication_hba, &config.hba_users);
    let mut text = String::from("# Written by stemma; change it with `stemma config`.\n");
    let mut line = |words: String| {
        text.push_str(&words);
        text.push('\n');
    };
    line(match &config.keeper_user {
        Some(_) => format!("local all {superuser} peer map=stemma_keeper"),
        None => format!("local all {superuser} scram-sha-256"),
    });
    for database in ["replication", "all"] {
        if tls {
            line(format!("hostssl {database} stemma_replication all cert map=stemma"));
        } else {
            line(format!("host {database} stemma_replication all scram-sha-256"));
        }
    }
    for extra in replication {
        line(sound(extra)?.to_owned());
    }
    for database in ["replication", "all"] {
        line(format!("host {database} {superuser},stemma_replication all reject"));
    }
    for extra in users {
        line(sound(extra)?.to_owned());
    }
    // After the user's lines, so that these may choose another method for the socket.
    line("local all all scram-sha-256".to_owned());
    if users.is_empty() {
        // Without TLS such a line only makes the server complain in its log at every reload.
        DEFAULT_LINES.iter().filter(|words| tls || !words.starts_with("hostssl")).for_each(|words| {
            line((*words).to_owned());
        });
    }
    Ok(text)
}

pub(crate) fn sound(extra: &str) -> Result<&str, Trouble> {
    let first = extra.split_whitespace().next().unwrap_or_default();
    let known = ["local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc"];
    if extra.contains(['\n', '\r', '\0']) || extra.trim_end().ends_with('\\') || !known.contains(&first) {
        return Err(Trouble::config_bad_value(
            format!("`{}` is not one line of pg_hba.conf", extra.escape_debug()),
            "begin it with local, host, hostssl or hostnossl, as in `host all all 10.0.0.0/8 scram-sha-256`",
        ));
    }
    Ok(extra)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(users: &[String]) -> ServerConfig {
        ServerConfig {
            parameters: std::collections::BTreeMap::new(),
            hba_users: users.to_vec(),
            synchronous_standby_names: String::new(),
            role: crate::conf::ServerRole::Primary,
            tls: true,
            members: vec!["n1".parse().expect("a name")],
            followers: Vec::new(),
            keeper_user: None,
            replication_hba: Vec::new(),
        }
    }

    #[test]
    fn a_copy_of_another_cluster_lets_its_keeper_in_by_its_user_and_followers_by_their_certificate() {
        let copy = ServerConfig {
            followers: vec!["follower:dr".to_owned()],
            keeper_user: Some("root".to_owned()),
            ..config(&[])
        };
        let text = render("stemma", &copy).expect("sound");
        assert!(text.contains("local all stemma peer map=stemma_keeper\n"), "{text}");
        assert!(!text.contains("local all stemma scram"), "{text}");
        let names = ident(&copy, "stemma_keeper old stemma\n");
        assert!(
            names.ends_with("stemma \"follower:dr\" stemma_replication\nstemma_keeper \"root\" stemma\n"),
            "{names}"
        );
    }

    #[test]
    fn maps_of_the_user_are_kept_beside_ours() {
        let members = config(&[]);
        let first = ident(&members, "# MAPNAME  SYSTEM-USERNAME\n\nadmins  alice  postgres\nstemma old x\n");
        let ours =
            "# Written by stemma; lines of other maps than `stemma` are kept.\nstemma \"n1\" stemma_replication\n";
        assert_eq!(first, format!("{ours}admins  alice  postgres\n"));
        assert_eq!(ident(&members, &first), first);
        assert_eq!(ident(&members, ""), ours);
    }

    #[test]
    fn refusals_of_our_roles_stand_before_the_users_lines() {
        let user = "host all all 0.0.0.0/0 trust".to_owned();
        let text = render("stemma", &config(std::slice::from_ref(&user))).expect("sound");
        let place = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} is missing in\n{text}"));
        assert!(place("host all stemma,stemma_replication all reject") < place(&user));
        assert!(place("hostssl replication stemma_replication all cert map=stemma") < place("reject"));
        assert!(!text.contains("127.0.0.1"), "defaults give way to the user's lines");
        for bad in ["host all all all trust\nhost x", "include other", "", "host all \\"] {
            assert!(render("stemma", &config(&[bad.to_owned()])).is_err(), "{bad:?}");
        }
    }
}
