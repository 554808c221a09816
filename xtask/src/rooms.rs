//! The dependency table of ARCHITECTURE.md, compared with what Cargo says.

use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

type Table = BTreeMap<String, BTreeSet<String>>;

/// Every difference between the table and the workspace, and every arrow that does not point down.
pub fn check() -> Result<Vec<String>> {
    let text = std::fs::read_to_string(crate::root().join("ARCHITECTURE.md")).context("ARCHITECTURE.md")?;
    let (floors, drawn) = drawn(&text)?;
    let real = real()?;
    let mut problems = Vec::new();
    for room in drawn.keys().chain(real.keys()).collect::<BTreeSet<_>>() {
        match (drawn.get(room), real.get(room)) {
            (Some(drawn), Some(real)) if drawn != real => {
                problems.push(format!("{room}: the table says {drawn:?}, Cargo says {real:?}"));
            }
            (Some(_), Some(_)) => {}
            (Some(_), None) => problems.push(format!("{room} is in the table but not in the workspace")),
            (None, Some(_)) => problems.push(format!("{room} is in the workspace but not in the table")),
            (None, None) => {}
        }
    }
    for (room, uses) in &real {
        for used in uses {
            if let (Some(above), Some(below)) = (floors.get(room), floors.get(used))
                && above <= below
            {
                problems.push(format!("{room} (floor {above}) uses {used} (floor {below}): arrows point down only"));
            }
        }
    }
    Ok(problems)
}

/// The table: rows `| room | floor | uses |`.
fn drawn(text: &str) -> Result<(BTreeMap<String, u32>, Table)> {
    let mut floors = BTreeMap::new();
    let mut table = Table::new();
    let section = text.split("<!-- rooms -->").nth(1).context("ARCHITECTURE.md has no <!-- rooms --> table")?;
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, room, floor, uses, ..] = cells.as_slice() else { continue };
        let room = room.trim_matches('`').to_owned();
        if let Ok(floor) = floor.parse() {
            floors.insert(room.clone(), floor);
        }
        let uses = uses.split_whitespace().map(|word| word.trim_matches(['`', ',']).to_owned());
        table.insert(room, uses.filter(|word| word != "-").collect());
    }
    Ok((floors, table))
}

fn real() -> Result<Table> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(crate::root())
        .output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let room = |name: &str| name.strip_prefix("stemma-").unwrap_or(name).to_owned();
    let names: BTreeSet<String> = packages.iter().filter_map(|package| package["name"].as_str()).map(room).collect();
    let mut table = Table::new();
    for package in packages {
        let name = room(package["name"].as_str().context("name")?);
        let uses = package["dependencies"].as_array().context("dependencies")?.iter();
        let uses = uses
            .filter(|dependency| dependency["kind"].is_null())
            .filter_map(|dependency| dependency["name"].as_str())
            .map(room)
            .filter(|used| names.contains(used));
        table.insert(name, uses.collect());
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_architecture_is_as_drawn() {
        let problems = super::check().expect("the table can be read");
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }

    #[test]
    fn pure_rooms_use_no_runtime() {
        // Decisions take facts and the time as arguments: a runtime among their dependencies is the first step away.
        for room in ["model", "cluster", "routing", "wire"] {
            let manifest = std::fs::read_to_string(crate::root().join(room).join("Cargo.toml")).expect("manifest");
            let dependencies = manifest.split("[dependencies]").nth(1).expect("dependencies");
            let dependencies = dependencies.split("\n[").next().expect("section");
            for banned in ["tokio", "rand", "nix", "rustix", "axum", "redb", "tracing"] {
                assert!(!dependencies.contains(banned), "{room} must not use {banned}");
            }
        }
    }
}
