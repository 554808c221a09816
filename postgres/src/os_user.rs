//! The operating system user that a server runs as.

use model::Trouble;
use nix::unistd::{Uid, User};

/// A user of the operating system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OsUser {
    /// Login name.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Id of the primary group.
    pub gid: u32,
}

/// Who a server must run as: `None` (this process's own user) unless this process is root, which PostgreSQL refuses;
/// then the configured user, else `postgres`, else `nobody`.
pub fn server_user(configured: Option<&str>) -> Result<Option<OsUser>, Trouble> {
    if !Uid::effective().is_root() {
        let own = User::from_uid(Uid::effective()).ok().flatten().map(|user| user.name);
        return match configured {
            Some(name) if own.as_deref() != Some(name) => Err(Trouble::config_bad_value(
                format!("the server is to run as `{name}`, which only root can arrange"),
                format!("start this program as root or as {name}, or remove `run_as` from the node file"),
            )),
            Some(_) | None => Ok(None),
        };
    }
    let names: Vec<&str> = configured.map_or_else(|| vec!["postgres", "nobody"], |name| vec![name]);
    for name in &names {
        let Some(user) = User::from_name(name).ok().flatten() else { continue };
        if user.uid.is_root() {
            return Err(Trouble::config_bad_value(
                "PostgreSQL refuses to run as root",
                "set `run_as` under [postgresql] in the node file to another user",
            ));
        }
        return Ok(Some(OsUser { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() }));
    }
    Err(Trouble::config_bad_value(
        format!("no such user: {}", names.join(", ")),
        "create the user, or set `run_as` under [postgresql] in the node file",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_never_runs_the_server_itself() {
        let chosen = server_user(None).expect("some user");
        assert_eq!(chosen.is_some(), Uid::effective().is_root());
        assert!(chosen.is_none_or(|user| user.uid != 0));
        assert!(server_user(Some("no-such-user-anywhere")).is_err());
        assert!(!Uid::effective().is_root() || server_user(Some("root")).is_err());
    }
}
