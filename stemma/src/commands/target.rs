//! Which cluster a command speaks to: named nodes, a sandbox, or the node that this machine runs.

use crate::cli::Global;
use crate::client::{Address, authority_of};
use crate::node_file::{self, DEFAULT_PATH};
use crate::sandbox::layout::{Layout, SandboxNode};
use model::Trouble;
use std::path::{Path, PathBuf};

/// Largest token file that is read.
const TOKEN_BYTES_MAX: u64 = 4096;

/// The nodes to ask, in order. What is named on the command line wins over the environment, which clap has merged
/// already; an explicit node file wins over addresses.
pub fn addresses(global: &Global) -> Result<Vec<Address>, Trouble> {
    if let Some(config) = &global.config {
        return from_node_file(config, global);
    }
    if !global.api.is_empty() {
        let token = global.token_file.as_deref().map(read_token).transpose()?;
        return global
            .api
            .iter()
            .map(|url| Ok(Address { authority: authority_of(url)?, token: token.clone() }))
            .collect();
    }
    if let Some(directory) = &global.sandbox {
        return from_sandbox(&Layout::load(directory)?);
    }
    let default = Path::new(DEFAULT_PATH);
    if default.exists() {
        return from_node_file(default, global);
    }
    Err(Trouble::unreachable(
        format!("no cluster is named, and {DEFAULT_PATH} does not exist"),
        "name one: --config node.toml, --api http://HOST:8008 --token-file FILE, or --sandbox DIR; to try: stemma demo",
    ))
}

fn from_node_file(path: &Path, global: &Global) -> Result<Vec<Address>, Trouble> {
    let file = node_file::load(path)?;
    let token_file = global.token_file.clone().unwrap_or_else(|| file.api_token_file());
    let token = if token_file.exists() { Some(read_token(&token_file)?) } else { None };
    Ok(vec![Address { authority: authority_of(&file.api_url())?, token }])
}

/// All nodes of a sandbox: the first that answers is asked.
pub fn from_sandbox(layout: &Layout) -> Result<Vec<Address>, Trouble> {
    layout.nodes.iter().map(|node| Ok(Address { token: sandbox_token(node)?, ..sandbox_address(node) })).collect()
}

/// One node of a sandbox that may still be coming up: a token that cannot be read yet is left out.
pub fn from_sandbox_node(node: &SandboxNode) -> Vec<Address> {
    vec![Address { token: sandbox_token(node).ok().flatten(), ..sandbox_address(node) }]
}

fn sandbox_address(node: &SandboxNode) -> Address {
    Address { authority: format!("127.0.0.1:{}", node.api_port), token: None }
}

fn sandbox_token(node: &SandboxNode) -> Result<Option<String>, Trouble> {
    let token_file = node.api_token_file();
    if token_file.exists() { read_token(&token_file).map(Some) } else { Ok(None) }
}

/// The token in a file.
pub fn read_token(path: &Path) -> Result<String, Trouble> {
    let refused = |why: String| {
        Trouble::denied(
            format!("the API token in {} cannot be read", path.display()),
            "run as the user of the keeper, or give --token-file FILE",
        )
        .because(why)
    };
    let size = std::fs::metadata(path).map_err(|error| refused(error.to_string()))?.len();
    if size > TOKEN_BYTES_MAX {
        return Err(refused(format!("it has {size} bytes, a token has fewer than {TOKEN_BYTES_MAX}")));
    }
    let text = std::fs::read_to_string(path).map_err(|error| refused(error.to_string()))?;
    let token = text.trim().to_owned();
    if token.is_empty() || token.contains(char::is_whitespace) {
        return Err(refused("it does not hold one token".to_owned()));
    }
    Ok(token)
}

/// The node file of commands that act on this machine.
pub fn node_file_path(global: &Global) -> PathBuf {
    global.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_PATH))
}
