//! Where one server lives and as whom it runs.

use crate::install::Installation;
use crate::os_user::OsUser;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Longest socket directory that leaves room for `/.s.PGSQL.65535` within `sun_path` (108 bytes with its end mark).
const SOCKET_DIR_BYTES_MAX: usize = 92;
const _: () = assert!(SOCKET_DIR_BYTES_MAX + "/.s.PGSQL.65535".len() < 108);

/// Certificate files of the server, readable by the user it runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM: owned by the server's user with mode 0600, or by root with at most 0640.
    pub key: PathBuf,
    /// CA certificates that clients are checked against, PEM.
    pub ca: PathBuf,
}

/// Everything that does not change while a server lives: its programs, directory, user, addresses and password.
#[derive(Clone)]
pub struct ServerSpec {
    /// Programs to run.
    pub installation: Installation,
    /// Data directory.
    pub data_dir: PathBuf,
    /// Who runs the server; `None` is whoever runs this process.
    pub user: Option<OsUser>,
    /// `listen_addresses`.
    pub listen: String,
    /// TCP port, and number of the socket.
    pub port: u16,
    /// Directory of the Unix socket; made when absent.
    pub socket_dir: PathBuf,
    /// Further directories in which the server puts its socket, for clients on this machine. They exist already.
    pub socket_dirs_beside: Vec<PathBuf>,
    /// Where the server's messages go.
    pub log_file: PathBuf,
    /// Name of the keepers' superuser, `stemma`.
    pub superuser: String,
    /// Its password.
    pub superuser_password: String,
    /// TLS, if the server has any.
    pub tls_files: Option<TlsFiles>,
}

impl std::fmt::Debug for ServerSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerSpec").field("data_dir", &self.data_dir).field("port", &self.port).finish_non_exhaustive()
    }
}

/// The socket directory of a node: `<state_dir>/socket`, or, when that is too long for a socket address, a directory
/// under `/tmp` named after a digest of the path. The directory is made, owned by the server's user and closed to
/// others, when the server starts.
pub fn socket_dir_for(state_dir: &Path) -> PathBuf {
    let absolute = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.to_owned());
    let preferred = absolute.join("socket");
    if preferred.as_os_str().len() <= SOCKET_DIR_BYTES_MAX {
        return preferred;
    }
    let digest = Sha256::digest(absolute.as_os_str().as_encoded_bytes());
    let short: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    PathBuf::from(format!("/tmp/stemma-{short}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_state_directory_still_has_a_socket() {
        assert_eq!(socket_dir_for(Path::new("/var/lib/stemma/n1")), Path::new("/var/lib/stemma/n1/socket"));
        let long = PathBuf::from(format!("/{}", "x".repeat(150)));
        let other = PathBuf::from(format!("/{}", "y".repeat(150)));
        let short = socket_dir_for(&long);
        assert!(short.as_os_str().len() <= SOCKET_DIR_BYTES_MAX);
        assert_eq!(short, socket_dir_for(&long));
        assert_ne!(short, socket_dir_for(&other));
    }
}
