//! Who this node is, on disk: `<state_dir>/identity/{node.key, node.crt, ca.crt, node.json}`.
//!
//! The directory changes as a whole: a new one is written beside and exchanged with the old one, so that a key never
//! stands beside a certificate it does not belong to, whenever the power fails.

use crate::files;
use model::{ClusterId, ClusterName, NodeId, NodeName, Trouble};
use nix::fcntl::{RenameFlags, renameat2};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

const KEY: &str = "node.key";
const CERTIFICATE: &str = "node.crt";
const AUTHORITIES: &str = "ca.crt";
const IDENTITY: &str = "node.json";

/// How this node reaches the consensus store.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum ConsensusChoice {
    /// The built-in group, over the mesh.
    Embedded,
    /// An etcd cluster.
    Etcd {
        /// URLs of its members.
        endpoints: Vec<String>,
        /// Keys begin with this and a slash. Empty in a node file that leaves it to `init`.
        prefix: String,
        /// User name, where it wants one.
        #[serde(default)]
        user: Option<String>,
        /// Password, where it wants one.
        #[serde(default)]
        password: Option<String>,
        /// CA of its certificates, where it has any.
        #[serde(default)]
        ca: Option<PathBuf>,
    },
}

impl std::fmt::Debug for ConsensusChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ConsensusChoice::Embedded => f.write_str("Embedded"),
            ConsensusChoice::Etcd { endpoints, prefix, .. } => write!(f, "Etcd({endpoints:?}, {prefix:?}, ..)"),
        }
    }
}

impl ConsensusChoice {
    /// This store, reached in the ways that the node file names now. Which store it is was decided when the node was
    /// enrolled and does not change with the file; endpoints, names and passwords may.
    pub fn with_ways_of(&self, file: &ConsensusChoice) -> Result<ConsensusChoice, Trouble> {
        match (self, file) {
            // A node file without the section says nothing of it.
            (_, ConsensusChoice::Embedded) => Ok(self.clone()),
            (ConsensusChoice::Embedded, ConsensusChoice::Etcd { .. }) => Err(Trouble::config_bad_value(
                "the node file says etcd, but the cluster keeps its state in its own keepers",
                "remove [consensus] from the node file",
            )),
            (ConsensusChoice::Etcd { prefix, .. }, ConsensusChoice::Etcd { prefix: named, .. })
                if !named.is_empty() && named != prefix =>
            {
                Err(Trouble::config_bad_value(
                    format!("the node file says prefix `{named}`, but the cluster's state is under `{prefix}`"),
                    format!("write under [consensus]: prefix = \"{prefix}\""),
                ))
            }
            (ConsensusChoice::Etcd { prefix, .. }, ConsensusChoice::Etcd { endpoints, user, password, ca, .. }) => {
                Ok(ConsensusChoice::Etcd {
                    endpoints: endpoints.clone(),
                    prefix: prefix.clone(),
                    user: user.clone(),
                    password: password.clone(),
                    ca: ca.clone(),
                })
            }
        }
    }
}

/// What a node knows of itself before it has heard anybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// Name of its cluster.
    pub cluster: ClusterName,
    /// Id of its cluster.
    pub cluster_id: ClusterId,
    /// Its number.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Peer addresses known last, itself excluded, for the time before it has read the cluster's state.
    pub seeds: Vec<(NodeId, String)>,
    /// How it reaches the consensus store.
    pub consensus: ConsensusChoice,
}

/// Everything in the identity directory.
#[derive(Clone, PartialEq, Eq)]
pub struct IdentityContent {
    /// Who the node is.
    pub identity: NodeIdentity,
    /// Its private key, PEM.
    pub key_pem: String,
    /// Its certificate, PEM.
    pub certificate_pem: String,
    /// CAs it trusts, PEM, the signing one first.
    pub ca_pem: Vec<String>,
}

impl std::fmt::Debug for IdentityContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IdentityContent({:?}, ..)", self.identity)
    }
}

/// The identity directory of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// `<state_dir>/identity`.
    pub directory: PathBuf,
}

impl IdentityFiles {
    /// The identity directory within a state directory.
    pub fn in_state_dir(state_dir: &Path) -> IdentityFiles {
        IdentityFiles { directory: state_dir.join("identity") }
    }

    /// Whether this node has an identity, that is, `init` or `join` has ended well.
    pub fn exist(&self) -> bool {
        self.directory.join(IDENTITY).exists() || self.beside("old").join(IDENTITY).exists()
    }

    /// Writes everything, in one step.
    pub fn write(&self, content: &IdentityContent) -> Result<(), Trouble> {
        if content.ca_pem.is_empty() {
            return Err(Trouble::internal("an identity needs a CA certificate", "report this defect"));
        }
        let new = self.beside("new");
        files::remove_directory(&new)?;
        let parent = self.directory.parent().unwrap_or(Path::new("."));
        // The state directory holds things for the database server's user as well; only the identity is ours alone.
        std::fs::create_dir_all(parent).map_err(|error| files::os("create", parent, &error))?;
        let private = std::fs::DirBuilder::new().mode(0o700).create(&new);
        private.map_err(|error| files::os("create", &new, &error))?;
        let json = serde_json::to_vec_pretty(&content.identity)
            .map_err(|error| Trouble::internal(format!("identity is not JSON: {error}"), "report this defect"))?;
        files::write_new(&new.join(KEY), 0o600, None, content.key_pem.as_bytes())?;
        files::write_new(&new.join(CERTIFICATE), 0o600, None, content.certificate_pem.as_bytes())?;
        files::write_new(&new.join(AUTHORITIES), 0o600, None, join_pem(&content.ca_pem).as_bytes())?;
        files::write_new(&new.join(IDENTITY), 0o600, None, &json)?;
        files::sync_directory(&new)?;
        failpoint::pass("identity.staged");
        self.put_in_place(&new)?;
        files::sync_directory(parent)
    }

    /// Reads everything; refuses files that others may read.
    pub fn load(&self) -> Result<IdentityContent, Trouble> {
        self.recover()?;
        if !self.directory.join(IDENTITY).exists() {
            return Err(Trouble::not_enrolled(
                format!("{} holds no identity: this node is not part of a cluster yet", self.directory.display()),
                "run `stemma init` to begin a cluster, or `stemma join` with a token of an existing one",
            ));
        }
        self.check_private()?;
        let json = self.read(IDENTITY)?;
        let identity = serde_json::from_str(&json).map_err(|error| {
            unfit(format!("{} is not a node's identity: {error}", self.directory.join(IDENTITY).display()))
        })?;
        Ok(IdentityContent {
            identity,
            key_pem: self.read(KEY)?,
            certificate_pem: self.read(CERTIFICATE)?,
            ca_pem: split_pem(&self.read(AUTHORITIES)?),
        })
    }

    /// Replaces the certificate (same key) and the trusted CAs, for a renewal or a rotation.
    pub fn replace_certificate(&self, certificate_pem: &str, ca_pem: &[String]) -> Result<(), Trouble> {
        let mut content = self.load()?;
        content.certificate_pem = certificate_pem.to_owned();
        content.ca_pem = ca_pem.to_vec();
        self.write(&content)
    }

    /// Remembers other peer addresses; writes nothing when they are known already.
    pub fn replace_seeds(&self, seeds: &[(NodeId, String)]) -> Result<(), Trouble> {
        let mut content = self.load()?;
        if content.identity.seeds == seeds {
            return Ok(());
        }
        content.identity.seeds = seeds.to_vec();
        self.write(&content)
    }

    /// Removes the identity: the node is of no cluster any more.
    pub fn remove(&self) -> Result<(), Trouble> {
        for path in [self.beside("old"), self.beside("new"), self.directory.clone()] {
            files::remove_directory(&path)?;
        }
        Ok(())
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.directory.clone().into_os_string();
        name.push(format!(".{suffix}"));
        PathBuf::from(name)
    }

    fn read(&self, name: &str) -> Result<String, Trouble> {
        let path = self.directory.join(name);
        std::fs::read_to_string(&path).map_err(|error| files::os("read", &path, &error))
    }

    fn put_in_place(&self, new: &Path) -> Result<(), Trouble> {
        if !self.directory.exists() {
            return std::fs::rename(new, &self.directory).map_err(|error| files::os("rename", new, &error));
        }
        let here = nix::fcntl::AT_FDCWD;
        match renameat2(here, new, here, &self.directory, RenameFlags::RENAME_EXCHANGE) {
            Ok(()) => files::remove_directory(new),
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOSYS) => {
                // This file system cannot exchange. Between the two renames the old identity is under `.old`, and
                // `recover` finds it there.
                let old = self.beside("old");
                files::remove_directory(&old)?;
                let rename = |from: &Path, to: &Path| {
                    std::fs::rename(from, to).map_err(|error| files::os("rename", from, &error))
                };
                rename(&self.directory, &old)?;
                rename(new, &self.directory)?;
                files::remove_directory(&old)
            }
            Err(error) => Err(files::os("exchange", &self.directory, &error.into())),
        }
    }

    fn recover(&self) -> Result<(), Trouble> {
        let old = self.beside("old");
        if !self.directory.exists() && old.join(IDENTITY).exists() {
            std::fs::rename(&old, &self.directory).map_err(|error| files::os("rename", &old, &error))?;
        }
        Ok(())
    }

    fn check_private(&self) -> Result<(), Trouble> {
        for name in ["", KEY, CERTIFICATE, AUTHORITIES, IDENTITY] {
            let path = if name.is_empty() { self.directory.clone() } else { self.directory.join(name) };
            let meta = std::fs::metadata(&path).map_err(|error| files::os("read", &path, &error))?;
            let mode = meta.permissions().mode() & 0o777;
            // A directory that others may enter does no harm while the files are private, but nobody made it so.
            if mode & 0o077 != 0 {
                return Err(Trouble::secret_exposed(
                    format!("{} has mode {mode:04o}: users other than its owner may get at it", path.display()),
                    format!(
                        "run `chmod -R go-rwx {}`; if others may have read the key, remove this node and join it anew",
                        self.directory.display()
                    ),
                ));
            }
            let me = nix::unistd::geteuid().as_raw();
            if meta.uid() != me {
                return Err(Trouble::secret_exposed(
                    format!("{} belongs to user {}, but this keeper runs as user {me}", path.display(), meta.uid()),
                    format!("run `chown -R {me} {}`, or start the keeper as its user", self.directory.display()),
                ));
            }
        }
        Ok(())
    }
}

fn unfit(reason: String) -> Trouble {
    Trouble::directory_unfit(reason, "restore the identity directory from a copy, or remove this node and join it anew")
}

/// Several PEM texts as one.
pub(crate) fn join_pem(parts: &[String]) -> String {
    let mut whole = String::new();
    for part in parts {
        whole.push_str(part.trim_end());
        whole.push('\n');
    }
    whole
}

/// One PEM text per certificate.
pub(crate) fn split_pem(whole: &str) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    whole
        .split_inclusive(END)
        .filter_map(|part| part.find("-----BEGIN CERTIFICATE-----").map(|begin| format!("{}\n", &part[begin..])))
        .filter(|part| part.contains(END))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content() -> IdentityContent {
        IdentityContent {
            identity: NodeIdentity {
                cluster: "shop".parse().expect("valid"),
                cluster_id: ClusterId("c1".into()),
                node: NodeId(2),
                name: "n2".parse().expect("valid"),
                seeds: vec![(NodeId(1), "n1:7432".into())],
                consensus: ConsensusChoice::Embedded,
            },
            key_pem: "key\n".into(),
            certificate_pem: "certificate\n".into(),
            ca_pem: vec!["-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n".into()],
        }
    }

    fn files() -> (tempfile::TempDir, IdentityFiles) {
        let directory = tempfile::tempdir().expect("temp dir");
        let files = IdentityFiles::in_state_dir(directory.path());
        (directory, files)
    }

    #[test]
    fn an_identity_reads_back_as_written_and_can_be_changed() {
        let (_directory, files) = files();
        assert!(!files.exist());
        assert!(files.load().expect_err("nothing there").is("ST1207"));
        files.write(&content()).expect("written");
        assert_eq!(files.load().expect("loads"), content());
        let two = vec![content().ca_pem[0].clone(), content().ca_pem[0].replace("AA", "BB")];
        files.replace_certificate("other\n", &two).expect("replaced");
        files.replace_seeds(&[(NodeId(7), "n7:1".into())]).expect("replaced");
        let loaded = files.load().expect("loads");
        assert_eq!((loaded.certificate_pem.as_str(), loaded.ca_pem), ("other\n", two));
        assert_eq!(loaded.identity.seeds, [(NodeId(7), "n7:1".to_owned())]);
        assert!(!files.beside("new").exists(), "nothing is left beside");
        files.remove().expect("removed");
        assert!(!files.exist());
    }

    #[test]
    fn files_that_others_may_read_are_refused_by_name() {
        let (_directory, files) = files();
        files.write(&content()).expect("written");
        for name in [KEY, CERTIFICATE, AUTHORITIES, IDENTITY] {
            for mode in [0o640, 0o604, 0o660] {
                let path = files.directory.join(name);
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
                let trouble = files.load().expect_err("others may read it");
                assert!(trouble.is("ST8004") && trouble.reason.contains(name), "{trouble}");
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("chmod");
            }
        }
        files.load().expect("private again");
    }

    #[test]
    fn an_exchange_cut_in_the_middle_is_completed_at_the_next_load() {
        let (_directory, files) = files();
        files.write(&content()).expect("written");
        std::fs::rename(&files.directory, files.beside("old")).expect("renamed");
        assert!(files.exist());
        assert_eq!(files.load().expect("recovers"), content());
    }
}
