//! What a sandbox is made of, as written in `sandbox.json`: nodes, ports, directories, processes.

use model::Trouble;
use model::names::{ClusterName, NodeName};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Proves that a directory is a sandbox, so that `--purge` cannot erase anything else.
const MARKER: &str = "stemma-sandbox-1";
const FILE: &str = "sandbox.json";

/// The keeper process of a node. Process ids are given again; the start time tells whether this one is still meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperProcess {
    /// Process id.
    pub pid: i32,
    /// Start in clock ticks since boot.
    pub start_ticks: u64,
}

/// One node of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxNode {
    /// Its name.
    pub name: NodeName,
    /// Whether it has no database.
    pub witness: bool,
    /// The node it streams from, if not the primary.
    pub upstream: Option<NodeName>,
    /// Directory of all that is its own.
    pub directory: PathBuf,
    /// Its node file.
    pub config: PathBuf,
    /// The keeper's files.
    pub state_dir: PathBuf,
    /// The database; unused for a witness.
    pub data_dir: PathBuf,
    /// What the keeper writes.
    pub log: PathBuf,
    /// Port of the keeper.
    pub peer_port: u16,
    /// Port of the API.
    pub api_port: u16,
    /// Port of the database; unused for a witness.
    pub postgresql_port: u16,
    /// The keeper last started here.
    #[serde(default)]
    pub keeper: Option<KeeperProcess>,
}

impl SandboxNode {
    /// File with the token of its API.
    pub fn api_token_file(&self) -> PathBuf {
        self.state_dir.join("api.token")
    }
    /// URL of its API.
    pub fn api_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.api_port)
    }
    /// Password of the role `postgres`, as far as the node knows it yet.
    pub fn password(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.state_dir.join("credentials.json")).ok()?;
        let document: serde_json::Value = serde_json::from_str(&text).ok()?;
        document.get("postgres")?.as_str().map(str::to_owned)
    }
    /// What a client connects with.
    pub fn uri(&self, database: &str) -> Option<String> {
        if self.witness {
            return None;
        }
        let password = self.password().map_or(String::new(), |password| format!(":{}", percent_encoded(&password)));
        Some(format!("postgresql://postgres{password}@127.0.0.1:{}/{database}", self.postgresql_port))
    }
}

fn percent_encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

/// A sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Schema of this file.
    pub schema_version: u32,
    /// See `MARKER`.
    marker: String,
    /// Name of the cluster.
    pub cluster: ClusterName,
    /// Where it is.
    pub directory: PathBuf,
    /// Whether it has been built to the end once.
    pub built: bool,
    /// Nodes, those with a database first.
    pub nodes: Vec<SandboxNode>,
}

impl Layout {
    /// A new sandbox; nothing is written yet.
    pub fn new(cluster: ClusterName, directory: PathBuf, nodes: Vec<SandboxNode>) -> Layout {
        Layout { schema_version: 1, marker: MARKER.to_owned(), cluster, directory, built: false, nodes }
    }

    /// Whether the directory holds a sandbox.
    pub fn exists(directory: &Path) -> bool {
        directory.join(FILE).exists()
    }

    /// Reads the sandbox in a directory.
    pub fn load(directory: &Path) -> Result<Layout, Trouble> {
        let path = directory.join(FILE);
        let refused = |why: String| {
            Trouble::not_found(
                format!("{} is not a sandbox", directory.display()),
                "make one: stemma sandbox start --dir DIR",
            )
            .because(why)
        };
        let text = std::fs::read_to_string(&path).map_err(|error| refused(format!("{}: {error}", path.display())))?;
        let layout: Layout =
            serde_json::from_str(&text).map_err(|error| refused(format!("{}: {error}", path.display())))?;
        if layout.marker == MARKER { Ok(layout) } else { Err(refused("its marker is unknown".to_owned())) }
    }

    /// Writes it, readable by its owner alone: it leads to passwords.
    pub fn save(&self) -> Result<(), Trouble> {
        let path = self.directory.join(FILE);
        let temporary = self.directory.join(".sandbox.json.new");
        let write = || -> std::io::Result<()> {
            let mut file =
                std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(self)?)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &path)
        };
        write().map_err(|error| {
            Trouble::os(format!("{} could not be written", path.display()), "check space and permissions")
                .because(error)
        })
    }

    /// The node of this name.
    pub fn node(&self, name: &NodeName) -> Result<&SandboxNode, Trouble> {
        self.nodes.iter().find(|node| node.name == *name).ok_or_else(|| self.unknown(name))
    }

    /// The node of this name, to be changed.
    pub fn node_mut(&mut self, name: &NodeName) -> Result<&mut SandboxNode, Trouble> {
        let unknown = self.unknown(name);
        self.nodes.iter_mut().find(|node| node.name == *name).ok_or(unknown)
    }

    fn unknown(&self, name: &NodeName) -> Trouble {
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        Trouble::unknown_node(format!("the sandbox has no node `{name}`"), format!("nodes: {}", names.join(", ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_without_the_marker_is_no_sandbox() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(!Layout::exists(directory.path()));
        assert_eq!(Layout::load(directory.path()).expect_err("empty").code.to_string(), "ST2108");
        let layout = Layout::new("sandbox".parse().expect("a name"), directory.path().to_owned(), Vec::new());
        layout.save().expect("writable");
        assert_eq!(Layout::load(directory.path()).expect("a sandbox"), layout);
        let text = std::fs::read_to_string(directory.path().join(FILE)).expect("readable");
        std::fs::write(directory.path().join(FILE), text.replace(MARKER, "other")).expect("writable");
        assert!(Layout::load(directory.path()).is_err());
    }

    #[test]
    fn passwords_fit_into_a_uri() {
        assert_eq!(percent_encoded("a/b@c:d-1"), "a%2Fb%40c%3Ad-1");
    }
}
