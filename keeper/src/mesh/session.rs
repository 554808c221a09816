//! One outgoing connection while it lives: our requests and heartbeats go out, answers and echoes come back.

use super::frame::{self, Head};
use super::{Connection, RequestKind};
use crate::pki::PeerIdentity;
use bytes::Bytes;
use model::Trouble;
use model::limits::FRAME_BYTES_MAX;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Requests that wait to be written.
const QUEUE_MAX: usize = 32;
/// Heartbeats unanswered for this long mean that nobody is there, even though the system there still acknowledges.
const ECHO_SILENCE_MAX: Duration = Duration::from_secs(10);
/// A replaced connection waits this long for answers still due.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(60);

type Answer = Result<Vec<u8>, Trouble>;

/// Why a request has no answer.
pub(super) enum Unanswered {
    /// It was never sent: try another connection.
    NotSent,
    /// It was sent, or may have been.
    Lost,
}

/// The connection.
pub(super) struct Session {
    pub(super) peer: PeerIdentity,
    requests: mpsc::Sender<Vec<u8>>,
    /// The newest heartbeat not yet written; a newer one replaces it.
    heartbeat: Mutex<Option<(u64, Bytes)>>,
    heartbeat_ready: Notify,
    /// Requests without answer; absent once the connection has ended.
    pending: Mutex<Option<HashMap<u64, oneshot::Sender<Answer>>>>,
    answered: Notify,
    next_id: AtomicU64,
    /// The oldest heartbeat whose echo is due.
    echo_due: Mutex<Option<(u64, Instant)>>,
    /// In microseconds, plus one; 0 is unknown.
    round_trip: AtomicU64,
    drain: CancellationToken,
    /// Ends the connection at once.
    pub(super) cut: CancellationToken,
    /// The connection has ended.
    pub(super) ended: CancellationToken,
}

/// Takes a request's place in `pending` back, whether it was answered, failed or given up.
struct Place<'a>(&'a Session, u64);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(pending) = self.0.pending.lock().expect("no panic under the lock").as_mut() {
            pending.remove(&self.1);
        }
        self.0.answered.notify_one();
    }
}

impl Session {
    /// A session and the receiving end of its queue, for `run`.
    pub(super) fn new(peer: PeerIdentity, cut: CancellationToken) -> (Arc<Session>, mpsc::Receiver<Vec<u8>>) {
        let (requests, queue) = mpsc::channel(QUEUE_MAX);
        let session = Session {
            peer,
            requests,
            heartbeat: Mutex::new(None),
            heartbeat_ready: Notify::new(),
            pending: Mutex::new(Some(HashMap::new())),
            answered: Notify::new(),
            next_id: AtomicU64::new(1),
            echo_due: Mutex::new(None),
            round_trip: AtomicU64::new(0),
            drain: CancellationToken::new(),
            cut,
            ended: CancellationToken::new(),
        };
        (Arc::new(session), queue)
    }

    /// Sends a request and waits for its answer; the caller bounds the time.
    pub(super) async fn request(
        &self,
        kind: RequestKind,
        body: &[u8],
        timeout: Duration,
    ) -> Result<Answer, Unanswered> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        match self.pending.lock().expect("no panic under the lock").as_mut() {
            Some(pending) => pending.insert(id, sender),
            None => return Err(Unanswered::NotSent),
        };
        let place = Place(self, id);
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let frame = frame::encode(&Head::Request { id, kind, timeout_ms }, body);
        if self.requests.send(frame).await.is_err() {
            return Err(Unanswered::NotSent);
        }
        let answer = answer.await.map_err(|_| Unanswered::Lost);
        drop(place);
        answer
    }

    /// Puts a heartbeat frame up for sending.
    pub(super) fn offer_heartbeat(&self, seq: u64, frame: Bytes) {
        *self.heartbeat.lock().expect("no panic under the lock") = Some((seq, frame));
        self.heartbeat_ready.notify_one();
    }

    /// Time from a heartbeat to its echo, measured last.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        let micros = self.round_trip.load(Ordering::Relaxed);
        micros.checked_sub(1).map(Duration::from_micros)
    }

    /// Requests without answer.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.pending.lock().expect("no panic under the lock").as_ref().map_or(0, HashMap::len)
    }

    /// A newer connection has taken over: end once all answers are here.
    pub(super) fn drain(&self) {
        self.drain.cancel();
    }

    /// Serves the connection until it ends, and says why.
    pub(super) async fn run(&self, connection: Connection, mut queue: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
        let (mut reader, mut writer) = tokio::io::split(connection);
        let end = tokio::select! {
            end = self.read(&mut reader) => end,
            end = self.write(&mut writer, &mut queue) => end,
            () = self.drained() => Ok(()),
            () = self.cut.cancelled() => Ok(()),
        };
        *self.pending.lock().expect("no panic under the lock") = None;
        self.ended.cancel();
        let _ = tokio::time::timeout(Duration::from_millis(200), writer.shutdown()).await;
        end
    }

    async fn drained(&self) {
        self.drain.cancelled().await;
        let all_answered = async {
            loop {
                {
                    let mut pending = self.pending.lock().expect("no panic under the lock");
                    if pending.as_ref().is_none_or(HashMap::is_empty) {
                        // From here on nobody can add a request to a connection that is about to close.
                        *pending = None;
                        return;
                    }
                }
                self.answered.notified().await;
            }
        };
        let _ = tokio::time::timeout(DRAIN_TIME_MAX, all_answered).await;
    }

    async fn read<R: AsyncRead + Unpin>(&self, reader: &mut R) -> io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            frame::read(reader, FRAME_BYTES_MAX, &mut buffer).await?;
            let (head, body) = frame::decode(&buffer)?;
            match head {
                Head::Answer { id } => self.answer(id, Ok(body.to_vec())),
                Head::Failed { id, trouble } => self.answer(id, Err(trouble.into())),
                Head::Echo { seq } => self.echoed(seq),
                Head::Hello { .. }
                | Head::Welcome { .. }
                | Head::Refused(_)
                | Head::Request { .. }
                | Head::Heartbeat { .. } => return Err(frame::bad(format!("a frame out of place: {head:?}"))),
            }
        }
    }

    fn answer(&self, id: u64, answer: Answer) {
        let waiting = self.pending.lock().expect("no panic under the lock").as_mut().and_then(|map| map.remove(&id));
        // Nobody waits any more for an answer that came too late.
        if let Some(waiting) = waiting {
            let _ = waiting.send(answer);
        }
    }

    fn echoed(&self, seq: u64) {
        let mut due = self.echo_due.lock().expect("no panic under the lock");
        if let Some((_, sent)) = due.take_if(|(first, _)| *first <= seq) {
            let micros = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX - 1);
            self.round_trip.store(micros.saturating_add(1), Ordering::Relaxed);
        }
    }

    async fn write<W: AsyncWrite + Unpin>(
        &self,
        writer: &mut W,
        queue: &mut mpsc::Receiver<Vec<u8>>,
    ) -> io::Result<()> {
        loop {
            tokio::select! {
                // Heartbeats first: they are small, and failover is decided by them.
                biased;
                () = self.heartbeat_ready.notified() => {
                    let next = self.heartbeat.lock().expect("no panic under the lock").take();
                    if let Some((seq, frame)) = next {
                        self.note_heartbeat(seq)?;
                        frame::write(writer, &frame).await?;
                    }
                }
                frame = queue.recv() => match frame {
                    Some(frame) => frame::write(writer, &frame).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    fn note_heartbeat(&self, seq: u64) -> io::Result<()> {
        let mut due = self.echo_due.lock().expect("no panic under the lock");
        match *due {
            None => *due = Some((seq, Instant::now())),
            Some((_, sent)) if sent.elapsed() > ECHO_SILENCE_MAX => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "it has answered no heartbeat for 10 s"));
            }
            Some(_) => {}
        }
        Ok(())
    }
}
