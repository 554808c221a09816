//! Frames between keepers: a length (u32, big end first), a head (postcard), and a body that fills the rest.
//!
//! The body is not part of the head, so that megabytes are copied as megabytes and not byte by byte.

use super::RequestKind;
use model::error::Code;
use model::limits::FRAME_BYTES_MAX;
use model::{ClusterId, NodeId, Trouble};
use serde::{Deserialize, Serialize};
use std::io::{Error, ErrorKind, Result};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Grows when frames change so that older keepers cannot read them.
pub(super) const PROTOCOL: u16 = 1;
/// A stranger may send no more than this, and nobody more before it has said who it is.
pub(super) const STRANGER_FRAME_BYTES_MAX: usize = 64 << 10;
/// A connection that takes not one chunk in this time is dead or frozen.
pub(super) const WRITE_STALL_MAX: Duration = Duration::from_secs(5);
const CHUNK_BYTES: usize = 64 << 10;

/// What a frame is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Head {
    /// First frame of who connects. `node` is absent for strangers.
    Hello { protocol: u16, node: Option<NodeId>, cluster: Option<ClusterId> },
    /// First frame of who accepts.
    Welcome { protocol: u16, node: NodeId },
    /// Instead of `Welcome`; the connection ends.
    Refused(WireTrouble),
    /// Body: the request.
    Request { id: u64, kind: RequestKind, timeout_ms: u64 },
    /// Body: the answer.
    Answer { id: u64 },
    /// The request failed.
    Failed { id: u64, trouble: WireTrouble },
    /// Body: the heartbeat.
    Heartbeat { seq: u64 },
    /// Heartbeats up to this one have arrived.
    Echo { seq: u64 },
}

/// A `Trouble` in a form that postcard can carry: its own form leaves out empty fields, which only self-describing
/// formats survive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WireTrouble {
    code: String,
    reason: String,
    hint: String,
    exit: u8,
    causes: Vec<String>,
}

impl From<Trouble> for WireTrouble {
    fn from(trouble: Trouble) -> WireTrouble {
        let Trouble { code, reason, hint, exit, causes } = trouble;
        // Texts are cut: no reason is worth a frame that does not fit.
        let cut = |text: String| if text.len() > 4000 { text.chars().take(1000).collect() } else { text };
        let causes = causes.into_iter().take(8).map(cut).collect();
        WireTrouble { code: cut(code.0.into_owned()), reason: cut(reason), hint: cut(hint), exit, causes }
    }
}

impl From<WireTrouble> for Trouble {
    fn from(wire: WireTrouble) -> Trouble {
        let WireTrouble { code, reason, hint, exit, causes } = wire;
        Trouble { code: Code(code.into()), reason, hint, exit, causes }
    }
}

/// A frame as bytes.
pub(super) fn encode(head: &Head, body: &[u8]) -> Vec<u8> {
    encode_in(Vec::with_capacity(32 + body.len()), head, body)
}

/// A frame as bytes, in the memory of an older one.
pub(super) fn encode_in(mut frame: Vec<u8>, head: &Head, body: &[u8]) -> Vec<u8> {
    frame.clear();
    frame.extend_from_slice(&[0; 4]);
    let mut frame = postcard::to_extend(head, frame).expect("heads are plain data and the vector grows");
    frame.extend_from_slice(body);
    let length = u32::try_from(frame.len() - 4).unwrap_or(u32::MAX);
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame
}

/// Whether a frame may be sent to a member.
pub(super) fn fits(frame: &[u8]) -> bool {
    frame.len() - 4 <= FRAME_BYTES_MAX
}

/// Reads one frame into `buffer`, which is reused.
pub(super) async fn read<R: AsyncRead + Unpin>(reader: &mut R, bytes_max: usize, buffer: &mut Vec<u8>) -> Result<()> {
    let length = reader.read_u32().await? as usize;
    if length == 0 || length > bytes_max {
        return Err(bad(format!("a frame of {length} bytes, where 1 to {bytes_max} are allowed")));
    }
    buffer.clear();
    // One large frame must not hold its memory for ever.
    if buffer.capacity() > CHUNK_BYTES && length <= CHUNK_BYTES {
        buffer.shrink_to(CHUNK_BYTES);
    }
    // Memory grows with what arrives, not with what was announced.
    while buffer.len() < length {
        let have = buffer.len();
        buffer.resize(have + (length - have).min(CHUNK_BYTES), 0);
        reader.read_exact(&mut buffer[have..]).await?;
    }
    Ok(())
}

/// Head and body of a frame.
pub(super) fn decode(frame: &[u8]) -> Result<(Head, &[u8])> {
    postcard::take_from_bytes(frame).map_err(|error| bad(format!("a frame that cannot be read: {error}")))
}

/// Writes one frame. Each chunk has its time, so that a slow line may take long over a large frame while a frozen
/// peer is noticed soon.
pub(super) async fn write<W: AsyncWrite + Unpin>(writer: &mut W, frame: &[u8]) -> Result<()> {
    let stalled = |_| Error::new(ErrorKind::TimedOut, "it takes no more data");
    for chunk in frame.chunks(CHUNK_BYTES) {
        tokio::time::timeout(WRITE_STALL_MAX, writer.write_all(chunk)).await.map_err(stalled)??;
    }
    tokio::time::timeout(WRITE_STALL_MAX, writer.flush()).await.map_err(stalled)?
}

pub(super) fn bad(what: String) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_read_back_as_written() {
        let trouble = Trouble::denied("no", "ask").because("cause");
        let heads = [
            Head::Hello { protocol: 1, node: Some(NodeId(3)), cluster: Some(ClusterId("c".into())) },
            Head::Refused(trouble.clone().into()),
            Head::Request { id: 7, kind: RequestKind::Control, timeout_ms: 500 },
            Head::Heartbeat { seq: u64::MAX },
        ];
        let mut bytes = Vec::new();
        for head in &heads {
            bytes.extend(encode(head, &[9; 100_000]));
        }
        let (mut reader, mut buffer) = (bytes.as_slice(), Vec::new());
        for head in &heads {
            read(&mut reader, FRAME_BYTES_MAX, &mut buffer).await.expect("reads");
            let (found, body) = decode(&buffer).expect("decodes");
            assert_eq!((&found, body), (head, [9; 100_000].as_slice()));
        }
        assert_eq!(Trouble::from(WireTrouble::from(trouble.clone())), trouble);
    }

    #[tokio::test]
    async fn a_frame_above_the_bound_is_refused_before_memory_is_taken() {
        for length in [0, 101, u32::MAX] {
            let bytes = length.to_be_bytes();
            let mut buffer = Vec::new();
            let error = read(&mut bytes.as_slice(), 100, &mut buffer).await.expect_err("too large");
            assert_eq!(error.kind(), ErrorKind::InvalidData);
            assert_eq!(buffer.capacity(), 0);
        }
    }

    #[test]
    fn garbage_is_refused_or_read_but_never_a_panic() {
        for first in 0..=255u8 {
            for second in [0, 1, 0x7F, 0x80, 0xFF] {
                let _ = decode(&[first, second, second, second]);
            }
        }
        assert!(decode(&[200, 0]).is_err());
        assert!(decode(&[]).is_err());
    }
}
