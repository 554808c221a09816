//! A Unix socket that wakes its task for what comes, and not for what went.
//!
//! tokio's own is registered for both directions at once, and each time the other side reads what was sent the kernel says
//! that there is room again: a wake-up for every request, with nothing to do. Here room is asked for only while it lacks.

use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll, ready};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[expect(
    deprecated,
    reason = "unsound for things that change or close their descriptor meanwhile, which the standard library's socket does not; \
              what came in its place needs unsafe code"
)]
fn watch(socket: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(socket, interest)
}

/// See the module.
#[derive(Debug)]
pub struct Local {
    socket: AsyncFd<UnixStream>,
    /// The same socket under another number, while what is to be sent finds no room.
    full: Option<AsyncFd<UnixStream>>,
}

impl Local {
    /// A connected socket. Needs an event loop.
    pub fn new(socket: UnixStream) -> io::Result<Local> {
        socket.set_nonblocking(true)?;
        Ok(Local { socket: watch(socket, Interest::READABLE)?, full: None })
    }

    /// Takes it off the event loop.
    pub fn into_std(self) -> UnixStream {
        self.socket.into_inner()
    }

    /// Waits until something came; whether the other side has closed.
    pub async fn is_read_closed(&self) -> bool {
        self.socket.ready(Interest::READABLE).await.is_ok_and(|guard| guard.ready().is_read_closed())
    }

    /// Reads what is there; 0 is the end.
    pub fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.socket.poll_read_ready(context))?;
            let Ok(read) = ready.try_io(|socket| socket.get_ref().read(buffer)) else { continue };
            // Less than there was room for is all there was; what comes later is told anew.
            if matches!(read, Ok(count) if count > 0 && count < buffer.len()) {
                ready.clear_ready();
            }
            return Poll::Ready(read);
        }
    }

    /// Sends what there is room for.
    pub fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(context, |mut socket| socket.write(bytes))
    }

    /// The same for pieces.
    pub fn poll_write_vectored(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(context, |mut socket| socket.write_vectored(pieces))
    }

    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        mut send: impl FnMut(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            if let Some(full) = &self.full {
                let mut ready = ready!(full.poll_write_ready(context))?;
                let Ok(sent) = ready.try_io(|socket| send(socket.get_ref())) else { continue };
                self.full = None;
                return Poll::Ready(sent);
            }
            match send(self.socket.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let again = self.socket.get_ref().try_clone()?;
                    self.full = Some(watch(again, Interest::WRITABLE)?);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test]
    async fn what_finds_no_room_is_sent_when_there_is_and_all_of_it_comes() {
        let (one, other) = UnixStream::pair().expect("a pair");
        let (mut one, mut other) = (Local::new(one).expect("made"), Local::new(other).expect("made"));
        let all: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
        let expected = all.clone();
        let sending = tokio::spawn(async move {
            let mut sent = 0;
            while sent < all.len() {
                sent += poll_fn(|context| one.poll_write(context, &all[sent..])).await.expect("sent");
            }
            assert!(one.full.is_none(), "room is not asked for any more");
            let mut answer = [0; 16];
            let read = poll_fn(|context| one.poll_read(context, &mut answer)).await.expect("read");
            answer[..read].to_vec()
        });
        let (mut got, mut buffer) = (Vec::new(), vec![0; 10_000]);
        while got.len() < expected.len() {
            let read = poll_fn(|context| other.poll_read(context, &mut buffer)).await.expect("read");
            assert!(read > 0);
            got.extend_from_slice(&buffer[..read]);
        }
        assert!(got == expected);
        let pieces = [IoSlice::new(b"that "), IoSlice::new(b"was it")];
        poll_fn(|context| other.poll_write_vectored(context, &pieces)).await.expect("sent");
        assert_eq!(sending.await.expect("no panic"), b"that was it");
        assert_eq!(poll_fn(|context| other.poll_read(context, &mut buffer)).await.expect("the end"), 0);
    }
}
