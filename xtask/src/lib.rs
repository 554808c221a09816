//! Chores that keep the project's promises about itself; each is also a test.

pub mod rooms;
pub mod tidy;

use std::path::PathBuf;

/// The root of the workspace.
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}
