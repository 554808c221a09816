//! Servers of other versions than the installed one.

use std::path::{Path, PathBuf};

/// Directories of programs, where `scripts/fetch-postgres` has put them.
pub fn fetched() -> Vec<PathBuf> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("project").join(".local/postgres");
    let root = std::env::var_os("STEMMA_POSTGRES_DIR").map_or(project, Into::into);
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let bins = entries.map(|entry| entry.path().join("bin")).filter(|bin| bin.join("postgres").exists());
    let mut bins: Vec<PathBuf> = bins.collect();
    bins.sort();
    bins
}
