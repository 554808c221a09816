//! A connection of any kind: TCP, Unix socket, TLS. Reading and writing are polled, so that one task serves both sides
//! of a client; a socket that gave less than was asked for is not read again before the kernel reports more.

use crate::local::Local;
use crate::out::Out;
use nix::{libc, setsockopt_impl, sockopt_impl};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

sockopt_impl!(
    /// How many bytes must have come before a socket counts as readable.
    ReceiveLowWater,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_RCVLOWAT,
    usize
);

/// A connection.
#[derive(Debug)]
pub enum Stream {
    /// Plain TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(Local),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
    /// None: it was taken out in order to be encrypted.
    Taken,
}

fn taken() -> io::Error {
    io::ErrorKind::NotConnected.into()
}

impl Stream {
    /// Whether bytes are encrypted.
    pub fn is_tls(&self) -> bool {
        matches!(self, Stream::Tls(_))
    }

    /// Whether it is a Unix socket.
    pub fn is_unix(&self) -> bool {
        matches!(self, Stream::Unix(_))
    }

    /// Takes a plain TCP socket out, to put it back encrypted.
    pub fn take_tcp(&mut self) -> Option<TcpStream> {
        match std::mem::replace(self, Stream::Taken) {
            Stream::Tcp(socket) => Some(socket),
            other => {
                *self = other;
                None
            }
        }
    }

    /// The TCP socket beneath, if there is one.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Stream::Tcp(stream) => Some(stream),
            Stream::Tls(stream) => Some(stream.get_ref().0),
            Stream::Unix(_) | Stream::Taken => None,
        }
    }

    /// Has the socket counted as readable only once so many bytes have come, or its end. Whether it can be had.
    pub fn set_low_water(&self, bytes: usize) -> bool {
        match self {
            Stream::Tcp(stream) => nix::sys::socket::setsockopt(stream, ReceiveLowWater, &bytes).is_ok(),
            Stream::Unix(_) | Stream::Tls(_) | Stream::Taken => false,
        }
    }

    /// Reads what is there into `buffer`; 0 is the end.
    pub fn poll_read(&mut self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut space = ReadBuf::new(buffer);
        let read = match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(context, &mut space),
            Stream::Unix(socket) => return socket.poll_read(context, space.initialize_unfilled()),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, &mut space),
            Stream::Taken => Poll::Ready(Err(taken())),
        };
        read.map_ok(|()| space.filled().len())
    }

    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Unix(socket) => socket.poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Taken => Poll::Ready(Err(taken())),
        }
    }

    fn poll_write_vectored(&mut self, context: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Unix(socket) => socket.poll_write_vectored(context, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Taken => Poll::Ready(Err(taken())),
        }
    }

    /// Hands on what a TLS layer holds back. Nothing to do for the others.
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tcp(_) | Stream::Unix(_) | Stream::Taken => Poll::Ready(Ok(())),
        }
    }

    /// Sends pieces; what the socket does not take now is kept in `rest`, which must be empty.
    pub fn send(
        &mut self,
        context: &mut Context<'_>,
        out: &mut Out,
        input: &[u8],
        rest: &mut Vec<u8>,
    ) -> io::Result<()> {
        let written = match out.single(input) {
            Some([]) => return Ok(()),
            Some(bytes) => self.poll_write(context, bytes)?,
            None => {
                let mut slices = Vec::with_capacity(8);
                out.slices(input, &mut slices);
                self.poll_write_vectored(context, &slices)?
            }
        };
        let sent = match written {
            Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
            Poll::Ready(sent) => sent,
            Poll::Pending => 0,
        };
        if sent < out.len() {
            out.copy_rest(input, sent, rest);
            let _ = self.poll_rest(context, rest)?;
        }
        let _ = self.poll_flush(context)?;
        Ok(())
    }

    /// Sends what was kept; `Ready` when all is gone.
    pub fn poll_rest(&mut self, context: &mut Context<'_>, rest: &mut Vec<u8>) -> Poll<io::Result<()>> {
        let mut sent = 0;
        while sent < rest.len() {
            match self.poll_write(context, &rest[sent..])? {
                Poll::Ready(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(count) => sent += count,
                Poll::Pending => {
                    rest.drain(..sent);
                    return Poll::Pending;
                }
            }
        }
        rest.clear();
        if rest.capacity() > 64 << 10 {
            *rest = Vec::new();
        }
        self.poll_flush(context)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, space: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(context, space),
            Stream::Unix(socket) => {
                let read = socket.poll_read(context, space.initialize_unfilled());
                read.map_ok(|count| space.advance(count))
            }
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, space),
            Stream::Taken => Poll::Ready(Err(taken())),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Stream::poll_write(self.get_mut(), context, bytes)
    }
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Stream::poll_flush(self.get_mut(), context)
    }
    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            // Only servers are spoken to by such sockets, and they are left by closing.
            Stream::Unix(_) | Stream::Taken => Poll::Ready(Ok(())),
        }
    }
}
