//! PostgreSQL programs of several major versions, and connections to servers.

use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_postgres::{Client, NoTls};

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const MAJORS_DEFAULT: &str = "15 16 18";

/// Major versions with the directories of their programs.
pub type Majors = Vec<(u32, PathBuf)>;

/// The versions that the life of a cluster is tested on: `STEMMA_TEST_MAJORS`, else 15, 16 and 18.
pub fn majors() -> Majors {
    let chosen = std::env::var("STEMMA_TEST_MAJORS").unwrap_or_else(|_| MAJORS_DEFAULT.to_owned());
    let majors: Majors = chosen
        .split_whitespace()
        .map(|word| {
            let major = word.parse().unwrap_or_else(|_| panic!("STEMMA_TEST_MAJORS: `{word}` is not a major version"));
            (major, major_bin(major))
        })
        .collect();
    assert!(!majors.is_empty(), "STEMMA_TEST_MAJORS names no version");
    majors
}

/// Directory of the programs of a major version.
pub fn major_bin(major: u32) -> PathBuf {
    let version = major.to_string();
    let mut places = vec![PathBuf::from("/usr/lib/postgresql")];
    places.extend(std::env::var_os("STEMMA_POSTGRES_DIR").map(PathBuf::from));
    places.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.local/postgres"));
    let bins: Vec<PathBuf> = places.iter().map(|place| place.join(&version).join("bin")).collect();
    let found = bins.iter().find(|bin| bin.join("postgres").exists()).and_then(|bin| bin.canonicalize().ok());
    found.unwrap_or_else(|| {
        panic!("PostgreSQL {major} is in none of {bins:?}; get it with: scripts/fetch-postgres {major}")
    })
}

/// A connection, driven in the background.
pub async fn connect(uri: &str) -> Result<Client, String> {
    let connecting = tokio::time::timeout(CONNECT_DEADLINE, tokio_postgres::connect(uri, NoTls)).await;
    let (client, connection) =
        connecting.map_err(|_| "no connection in time".to_owned())?.map_err(|error| told(&error))?;
    // Its end reaches the one who waits on the client.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

/// The server's own words, which the short form of the error leaves out.
pub(crate) fn told(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}
