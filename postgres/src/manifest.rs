//! The server's `backup_manifest`: what it says, and whether what we received is that.

use model::{Lsn, SystemId, Timeline};
use serde::Deserialize;
use sha2::Digest;
use std::collections::HashMap;
use std::fmt;

/// How a file's checksum is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// The server's default: fast, finds accidents.
    Crc32c,
    /// SHA-2, finds forgery as well.
    Sha224,
    /// SHA-2.
    Sha256,
    /// SHA-2.
    Sha384,
    /// SHA-2.
    Sha512,
}

impl Algorithm {
    fn of_name(name: &str) -> Option<Algorithm> {
        match name.to_ascii_uppercase().as_str() {
            "CRC32C" => Some(Algorithm::Crc32c),
            "SHA224" => Some(Algorithm::Sha224),
            "SHA256" => Some(Algorithm::Sha256),
            "SHA384" => Some(Algorithm::Sha384),
            "SHA512" => Some(Algorithm::Sha512),
            _ => None,
        }
    }
}

/// A checksum in the making.
#[derive(Clone)]
pub enum Hasher {
    /// CRC-32C so far.
    Crc32c(u32),
    /// SHA-2 so far.
    Sha224(Box<sha2::Sha224>),
    /// SHA-2 so far.
    Sha256(Box<sha2::Sha256>),
    /// SHA-2 so far.
    Sha384(Box<sha2::Sha384>),
    /// SHA-2 so far.
    Sha512(Box<sha2::Sha512>),
}

impl Hasher {
    /// Of nothing yet.
    pub fn new(algorithm: Algorithm) -> Hasher {
        match algorithm {
            Algorithm::Crc32c => Hasher::Crc32c(0),
            Algorithm::Sha224 => Hasher::Sha224(Box::default()),
            Algorithm::Sha256 => Hasher::Sha256(Box::default()),
            Algorithm::Sha384 => Hasher::Sha384(Box::default()),
            Algorithm::Sha512 => Hasher::Sha512(Box::default()),
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Crc32c(crc) => *crc = crc32c::crc32c_append(*crc, bytes),
            Hasher::Sha224(hash) => hash.update(bytes),
            Hasher::Sha256(hash) => hash.update(bytes),
            Hasher::Sha384(hash) => hash.update(bytes),
            Hasher::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The checksum, in the byte order the manifest prints.
    pub fn finish(self) -> Vec<u8> {
        match self {
            // The server prints the CRC as it lies in the memory of a little-endian machine.
            Hasher::Crc32c(crc) => crc.to_le_bytes().to_vec(),
            Hasher::Sha224(hash) => hash.finalize().to_vec(),
            Hasher::Sha256(hash) => hash.finalize().to_vec(),
            Hasher::Sha384(hash) => hash.finalize().to_vec(),
            Hasher::Sha512(hash) => hash.finalize().to_vec(),
        }
    }
}

/// What we received of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes.
    pub size: u64,
    /// Checksum of the content, by the algorithm the backup was asked for.
    pub checksum: Vec<u8>,
}

/// What the manifest says of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    /// Bytes.
    pub size: u64,
    /// Algorithm and checksum; None when the server was told to make none.
    pub checksum: Option<(Algorithm, Vec<u8>)>,
}

/// A stretch of log that recovery of this backup needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// On this timeline,
    pub timeline: Timeline,
    /// from here
    pub start: Lsn,
    /// to here.
    pub end: Lsn,
}

/// A manifest, read and found whole.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// By path relative to the data directory.
    pub files: HashMap<String, ManifestFile>,
    /// Log that belongs to it.
    pub wal_ranges: Vec<WalRange>,
    /// Only servers from 17 on say it.
    pub system_id: Option<SystemId>,
}

/// Why a manifest, or a backup held against it, was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// The manifest itself is damaged.
    Manifest(String),
    /// A file the manifest names did not come.
    Missing(String),
    /// A file came that the manifest does not name.
    Extra(String),
    /// Of another length.
    Size {
        /// Which file.
        path: String,
        /// Bytes by the manifest.
        told: u64,
        /// Bytes received.
        received: u64,
    },
    /// Of other content.
    Checksum(String),
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mismatch::Manifest(detail) => write!(f, "the manifest is damaged: {detail}"),
            Mismatch::Missing(path) => write!(f, "`{path}` is in the manifest but was not received"),
            Mismatch::Extra(path) => write!(f, "`{path}` was received but is not in the manifest"),
            Mismatch::Size { path, told, received } => {
                write!(f, "`{path}` has {received} bytes, {told} by the manifest")
            }
            Mismatch::Checksum(path) => write!(f, "`{path}` does not match its checksum in the manifest"),
        }
    }
}
impl std::error::Error for Mismatch {}

#[derive(Deserialize)]
struct RawManifest {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u32,
    #[serde(rename = "System-Identifier")]
    system_id: Option<u64>,
    #[serde(rename = "Files")]
    files: Vec<RawFile>,
    #[serde(rename = "WAL-Ranges")]
    wal_ranges: Vec<RawRange>,
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

#[derive(Deserialize)]
struct RawFile {
    #[serde(rename = "Path")]
    path: Option<String>,
    #[serde(rename = "Encoded-Path")]
    encoded_path: Option<String>,
    #[serde(rename = "Size")]
    size: u64,
    #[serde(rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(rename = "Checksum")]
    checksum: Option<String>,
}

#[derive(Deserialize)]
struct RawRange {
    #[serde(rename = "Timeline")]
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: String,
    #[serde(rename = "End-LSN")]
    end: String,
}

impl Manifest {
    /// Reads a manifest and checks its own checksum first: nothing in a damaged one is believed.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, Mismatch> {
        let damaged = |detail: String| Mismatch::Manifest(detail);
        let body_end = bytes
            .windows(CHECKSUM_KEY.len())
            .rposition(|window| window == CHECKSUM_KEY)
            .ok_or_else(|| damaged("it has no checksum of its own".to_string()))?;
        let raw: RawManifest = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if !(1..=2).contains(&raw.version) {
            return Err(damaged(format!("version {} is not known", raw.version)));
        }
        let told = from_hex(&raw.checksum).ok_or_else(|| damaged("its checksum is not hexadecimal".to_string()))?;
        if sha2::Sha256::digest(&bytes[..body_end]).as_slice() != told {
            return Err(damaged("it does not match its own checksum".to_string()));
        }
        let mut files = HashMap::with_capacity(raw.files.len());
        for file in raw.files {
            let (path, file) = parse_file(file)?;
            if files.insert(path.clone(), file).is_some() {
                return Err(damaged(format!("it names `{path}` twice")));
            }
        }
        let wal_ranges = raw.wal_ranges.iter().map(parse_range).collect::<Result<Vec<_>, Mismatch>>()?;
        Ok(Manifest { files, wal_ranges, system_id: raw.system_id.map(SystemId) })
    }

    /// Holds everything received against the manifest, both ways. Answers how many files were proved.
    pub fn verify(&self, received: &HashMap<String, Received>) -> Result<u64, Mismatch> {
        for (path, told) in &self.files {
            let got = received.get(path).ok_or_else(|| Mismatch::Missing(path.clone()))?;
            if got.size != told.size {
                return Err(Mismatch::Size { path: path.clone(), told: told.size, received: got.size });
            }
            if let Some((_, checksum)) = &told.checksum
                && *checksum != got.checksum
            {
                return Err(Mismatch::Checksum(path.clone()));
            }
        }
        match received.keys().find(|path| !self.files.contains_key(*path)) {
            Some(extra) => Err(Mismatch::Extra(extra.clone())),
            None => Ok(self.files.len() as u64),
        }
    }
}

/// The checksum covers everything before the line that begins so.
const CHECKSUM_KEY: &[u8] = b"\"Manifest-Checksum\"";

fn parse_file(raw: RawFile) -> Result<(String, ManifestFile), Mismatch> {
    let path = match (raw.path, raw.encoded_path) {
        (Some(path), None) => path,
        // Names that are not UTF-8 come encoded; the archive reader refuses such files as well.
        (None, Some(encoded)) => from_hex(&encoded)
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| Mismatch::Manifest(format!("the encoded path `{encoded}` is not UTF-8")))?,
        (Some(_), Some(_)) | (None, None) => return Err(Mismatch::Manifest("a file without one path".to_string())),
    };
    let checksum = match (raw.algorithm, raw.checksum) {
        (Some(algorithm), Some(checksum)) => {
            let bad = || Mismatch::Manifest(format!("the checksum of `{path}` cannot be read"));
            let algorithm = Algorithm::of_name(&algorithm).ok_or_else(bad)?;
            Some((algorithm, from_hex(&checksum).ok_or_else(bad)?))
        }
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => {
            return Err(Mismatch::Manifest(format!("`{path}` has half a checksum")));
        }
    };
    Ok((path, ManifestFile { size: raw.size, checksum }))
}

fn parse_range(raw: &RawRange) -> Result<WalRange, Mismatch> {
    let position = |text: &str| text.parse::<Lsn>().map_err(|error| Mismatch::Manifest(error.to_string()));
    Ok(WalRange { timeline: Timeline(raw.timeline), start: position(&raw.start)?, end: position(&raw.end)? })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn manifest_of(files: &[(&str, &str, &[u8])]) -> Vec<u8> {
        let mut text = String::from("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n");
        for (at, (path, algorithm, content)) in files.iter().enumerate() {
            let mut hasher = Hasher::new(Algorithm::of_name(algorithm).expect("known"));
            hasher.update(content);
            let comma = if at + 1 < files.len() { "," } else { "" };
            text.push_str(&format!(
                "{{ \"Path\": \"{path}\", \"Size\": {}, \"Last-Modified\": \"2024-01-01 00:00:00 GMT\", \
                 \"Checksum-Algorithm\": \"{algorithm}\", \"Checksum\": \"{}\" }}{comma}\n",
                content.len(),
                hex(&hasher.finish())
            ));
        }
        text.push_str("],\n\"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n");
        let sum = sha2::Sha256::digest(text.as_bytes());
        text.push_str(&format!("\"Manifest-Checksum\": \"{}\"}}\n", hex(&sum)));
        text.into_bytes()
    }

    fn received(files: &[(&str, &str, &[u8])]) -> HashMap<String, Received> {
        let one = |(path, algorithm, content): &(&str, &str, &[u8])| {
            let mut hasher = Hasher::new(Algorithm::of_name(algorithm).expect("known"));
            hasher.update(content);
            (path.to_string(), Received { size: content.len() as u64, checksum: hasher.finish() })
        };
        files.iter().map(one).collect()
    }

    const FILES: [(&str, &str, &[u8]); 3] =
        [("base/1/1", "CRC32C", b"hello"), ("PG_VERSION", "SHA256", b"15\n"), ("a/b", "SHA512", b"")];

    #[test]
    fn a_faithful_copy_is_accepted() {
        let manifest = Manifest::parse(&manifest_of(&FILES)).expect("whole");
        assert_eq!(manifest.verify(&received(&FILES)), Ok(3));
        let range = WalRange { timeline: Timeline(1), start: Lsn(0x200_0028), end: Lsn(0x200_0100) };
        assert_eq!(manifest.wal_ranges, [range]);
    }

    #[test]
    fn every_flipped_byte_of_the_manifest_is_noticed() {
        let good = manifest_of(&FILES);
        for at in 0..good.len() - 1 {
            let mut bad = good.clone();
            bad[at] ^= 0x04;
            assert!(Manifest::parse(&bad).is_err(), "byte {at} flipped unnoticed");
        }
    }

    #[test]
    fn every_flipped_byte_of_a_file_is_noticed() {
        let manifest = Manifest::parse(&manifest_of(&FILES)).expect("whole");
        for (which, (path, algorithm, content)) in FILES.iter().enumerate() {
            for at in 0..content.len() {
                let mut bad = content.to_vec();
                bad[at] ^= 0x80;
                let mut files = FILES;
                files[which] = (path, algorithm, &bad);
                assert_eq!(manifest.verify(&received(&files)), Err(Mismatch::Checksum(path.to_string())));
            }
        }
    }

    #[test]
    fn missing_extra_and_shortened_files_are_told_apart() {
        let manifest = Manifest::parse(&manifest_of(&FILES)).expect("whole");
        assert_eq!(manifest.verify(&received(&FILES[..2])), Err(Mismatch::Missing("a/b".into())));
        let mut more = received(&FILES);
        more.insert("x".into(), Received { size: 0, checksum: Vec::new() });
        assert_eq!(manifest.verify(&more), Err(Mismatch::Extra("x".into())));
        let short = [("base/1/1", "CRC32C", &b"hell"[..]), FILES[1], FILES[2]];
        let wanted = Mismatch::Size { path: "base/1/1".into(), told: 5, received: 4 };
        assert_eq!(manifest.verify(&received(&short)), Err(wanted));
    }
}
