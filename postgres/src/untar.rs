//! Reads the tar stream of a base backup piece by piece and says what is in it.
//!
//! It touches no file: entries go to a `Sink`. Names are checked here, because whoever speaks for the source must not
//! be able to make us write outside the data directory.

use std::fmt;

const BLOCK: usize = 512;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file of so many bytes.
    File {
        /// Its length.
        size: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// Where it points to, as written.
        target: String,
    },
}

/// One entry's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Relative path without `.` and `..`, parts joined by `/`.
    pub path: String,
    /// What it is.
    pub kind: Kind,
}

/// Takes what the stream holds, in order.
pub trait Sink {
    /// What taking can fail with.
    type Error: From<BadArchive>;
    /// An entry begins. For files, `data` follows for exactly `size` bytes, then `end_of_file`.
    fn entry(&mut self, entry: Entry) -> Result<(), Self::Error>;
    /// Content of the file begun last.
    fn data(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
    /// All content of the file begun last has come.
    fn end_of_file(&mut self) -> Result<(), Self::Error>;
}

/// The stream was not an archive that a base backup may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadArchive(pub String);

impl fmt::Display for BadArchive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "archive not acceptable: {}", self.0)
    }
}
impl std::error::Error for BadArchive {}

enum State {
    /// Collecting a header; so many bytes of it are in `header`.
    Header { filled: usize },
    /// Inside a file.
    Data { left: u64, padding: usize },
    /// Behind a file, up to the next block.
    Padding { left: usize },
}

/// The reader; feed it until the stream ends, then ask `finish`.
pub struct Untar {
    state: State,
    header: [u8; BLOCK],
}

impl Default for Untar {
    fn default() -> Untar {
        Untar { state: State::Header { filled: 0 }, header: [0; BLOCK] }
    }
}

impl Untar {
    /// Takes the next bytes of the stream, however they are cut.
    pub fn feed<S: Sink>(&mut self, mut bytes: &[u8], sink: &mut S) -> Result<(), S::Error> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Header { filled } => {
                    let take = bytes.len().min(BLOCK - *filled);
                    self.header[*filled..*filled + take].copy_from_slice(&bytes[..take]);
                    *filled += take;
                    bytes = &bytes[take..];
                    if *filled == BLOCK {
                        self.state = self.begin_entry(sink)?;
                    }
                }
                State::Data { left, padding } => {
                    let take = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    sink.data(&bytes[..take])?;
                    bytes = &bytes[take..];
                    *left -= take as u64;
                    if *left == 0 {
                        let padding = *padding;
                        sink.end_of_file()?;
                        self.state = after_file(padding);
                    }
                }
                State::Padding { left } => {
                    let take = bytes.len().min(*left);
                    *left -= take;
                    bytes = &bytes[take..];
                    if *left == 0 {
                        self.state = State::Header { filled: 0 };
                    }
                }
            }
        }
        Ok(())
    }

    /// The stream has ended; it must not have ended inside an entry.
    pub fn finish(&self) -> Result<(), BadArchive> {
        match self.state {
            State::Header { filled: 0 } => Ok(()),
            State::Header { .. } | State::Data { .. } | State::Padding { .. } => {
                Err(BadArchive("it ends in the middle of an entry".to_string()))
            }
        }
    }

    fn begin_entry<S: Sink>(&self, sink: &mut S) -> Result<State, S::Error> {
        // Blocks of zeros end an archive; older servers leave them out, so they are not waited for.
        if self.header.iter().all(|&byte| byte == 0) {
            return Ok(State::Header { filled: 0 });
        }
        let entry = parse_header(&self.header)?;
        let size = match &entry.kind {
            Kind::File { size } => Some(*size),
            Kind::Directory | Kind::Symlink { .. } => None,
        };
        sink.entry(entry)?;
        let Some(size) = size else { return Ok(State::Header { filled: 0 }) };
        let padding = (BLOCK - (size % BLOCK as u64) as usize) % BLOCK;
        if size == 0 {
            sink.end_of_file()?;
            return Ok(after_file(padding));
        }
        Ok(State::Data { left: size, padding })
    }
}

fn after_file(padding: usize) -> State {
    if padding == 0 { State::Header { filled: 0 } } else { State::Padding { left: padding } }
}

fn parse_header(header: &[u8; BLOCK]) -> Result<Entry, BadArchive> {
    let told = number(&header[148..156])?;
    let plain = header.iter().enumerate();
    let sum: u64 = plain.map(|(at, &byte)| if (148..156).contains(&at) { 32 } else { u64::from(byte) }).sum();
    if told != sum {
        return Err(BadArchive("a header's checksum does not fit".to_string()));
    }
    let path = safe_path(&text(&header[..100])?)?;
    let kind = match header[156] {
        b'0' | 0 => Kind::File { size: number(&header[124..136])? },
        b'5' => Kind::Directory,
        b'2' => Kind::Symlink { target: text(&header[157..257])? },
        other => return Err(BadArchive(format!("`{path}` is of kind {other}, which no base backup holds"))),
    };
    Ok(Entry { path, kind })
}

fn text(field: &[u8]) -> Result<String, BadArchive> {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    let text = std::str::from_utf8(&field[..end]);
    text.map(str::to_string).map_err(|_| BadArchive("a file name is not UTF-8".to_string()))
}

/// Octal digits, or base 256 when the first bit is set (files above 8 GB).
fn number(field: &[u8]) -> Result<u64, BadArchive> {
    if field[0] & 0x80 != 0 {
        let mut digits = field[1..].iter();
        let value = digits.try_fold(0u64, |sum, &byte| sum.checked_mul(256)?.checked_add(u64::from(byte)));
        return value.ok_or_else(|| BadArchive("a size out of range".to_string()));
    }
    let mut digits = field.iter().copied().filter(|byte| !matches!(byte, b' ' | 0));
    let value = digits.try_fold(0u64, |sum, byte| match byte {
        b'0'..=b'7' => sum.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    });
    value.ok_or_else(|| BadArchive("a number that is none".to_string()))
}

/// `path` cleaned of `.` and trailing slashes; refused when it could lead anywhere but down.
pub fn safe_path(path: &str) -> Result<String, BadArchive> {
    if path.starts_with('/') || path.contains('\0') || path.contains('\\') {
        return Err(BadArchive(format!("path `{path}` is not relative and plain")));
    }
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => return Err(BadArchive(format!("path `{path}` leads upwards"))),
            plain => parts.push(plain),
        }
    }
    Ok(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, kind: u8, size: &str, link: &str) -> [u8; BLOCK] {
        let mut block = [0u8; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[124..124 + size.len()].copy_from_slice(size.as_bytes());
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    #[derive(Default)]
    struct Story(Vec<String>);

    impl Sink for Story {
        type Error = BadArchive;
        fn entry(&mut self, entry: Entry) -> Result<(), BadArchive> {
            self.0.push(match entry.kind {
                Kind::File { size } => format!("file {} {size}", entry.path),
                Kind::Directory => format!("dir {}", entry.path),
                Kind::Symlink { target } => format!("link {} -> {target}", entry.path),
            });
            Ok(())
        }
        fn data(&mut self, bytes: &[u8]) -> Result<(), BadArchive> {
            match self.0.last_mut() {
                Some(last) if last.starts_with("data ") => last.push_str(&String::from_utf8_lossy(bytes)),
                _ => self.0.push(format!("data {}", String::from_utf8_lossy(bytes))),
            }
            Ok(())
        }
        fn end_of_file(&mut self) -> Result<(), BadArchive> {
            self.0.push("end".to_string());
            Ok(())
        }
    }

    fn archive() -> Vec<u8> {
        let mut tar = Vec::new();
        tar.extend(header("base/", b'5', "", ""));
        tar.extend(header("./base/1", b'0', "00000000005\0", ""));
        tar.extend(b"hello");
        tar.extend([0u8; BLOCK - 5]);
        tar.extend(header("empty", b'0', "00000000000\0", ""));
        tar.extend(header("pg_tblspc/16384", b'2', "", "/far/away"));
        tar.extend([0u8; BLOCK * 2]);
        tar
    }

    #[test]
    fn the_same_story_is_told_however_the_stream_is_cut() {
        let want = [
            "dir base",
            "file base/1 5",
            "data hello",
            "end",
            "file empty 0",
            "end",
            "link pg_tblspc/16384 -> /far/away",
        ];
        for cut in [1, 7, 511, 512, 513, 100_000] {
            let mut story = Story::default();
            let mut untar = Untar::default();
            for piece in archive().chunks(cut) {
                untar.feed(piece, &mut story).expect("sound archive");
            }
            untar.finish().expect("ended between entries");
            assert_eq!(story.0, want, "cut every {cut} bytes");
        }
    }

    #[test]
    fn paths_that_lead_out_are_refused() {
        for bad in ["../x", "a/../../x", "/etc/passwd", "a\\b"] {
            assert!(safe_path(bad).is_err(), "{bad}");
            let result = Untar::default().feed(&header(bad, b'0', "0", ""), &mut Story::default());
            assert!(result.is_err(), "{bad}");
        }
        assert_eq!(safe_path("./a//b/").expect("plain"), "a/b");
    }

    #[test]
    fn a_flipped_byte_in_a_header_and_an_early_end_are_noticed() {
        let mut tar = archive();
        tar[0] ^= 1;
        assert!(Untar::default().feed(&tar, &mut Story::default()).is_err());
        let mut untar = Untar::default();
        untar.feed(&archive()[..BLOCK * 2 + 3], &mut Story::default()).expect("sound so far");
        assert!(untar.finish().is_err());
    }

    #[test]
    fn device_files_and_hard_links_are_refused() {
        for kind in [b'1', b'3', b'4', b'6', b'x'] {
            assert!(Untar::default().feed(&header("x", kind, "0", ""), &mut Story::default()).is_err());
        }
    }

    #[test]
    fn sizes_above_eight_gigabytes_are_read() {
        let mut field = [0u8; 12];
        field[0] = 0x80;
        field[7] = 3;
        assert_eq!(number(&field), Ok(3 << 32));
        assert_eq!(number(b"00000001750\0"), Ok(1000));
        assert!(number(b"0000000x750\0").is_err());
    }
}
