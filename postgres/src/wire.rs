//! One connection to a PostgreSQL server, speaking protocol 3.0 on plain TCP or TLS: start-up, authentication, frames.
//!
//! It knows nothing of replication commands (see `replication`). Frames are cut from one large buffer without copying:
//! a base backup passes gigabytes through here.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use model::Trouble;
use postgres_protocol::authentication::{md5_hash, sasl};
use rustls_pki_types::ServerName;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// Room made for each read from the socket. Large, because a base backup is one long stream of 32 kB frames.
const READ_BYTES: usize = 512 << 10;
/// Largest frame we accept; the server's own are far below.
const FRAME_BYTES_MAX: usize = 64 << 20;
/// Time for connecting, TLS and authentication together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A peer that vanished without a word is given up after about idle + count * interval. The base backup protocol has
/// no messages of its own to notice it by: the server is silent while it waits for a checkpoint.
const KEEPALIVE_IDLE_S: u32 = 5;
const KEEPALIVE_INTERVAL_S: u32 = 2;
const KEEPALIVE_COUNT: u32 = 5;

/// Where and as whom to connect.
#[derive(Clone)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Role to log in as; it needs the REPLICATION attribute.
    pub user: String,
    /// Its password, where the server asks for one.
    pub password: Option<String>,
    /// Some means that TLS is required; a client certificate comes with the configuration.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Shown in the server's views.
    pub application_name: String,
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The password must not reach a log.
        write!(f, "{}@{}:{} (tls: {})", self.user, self.host, self.port, self.tls.is_some())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// An ErrorResponse of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// ERROR, FATAL, PANIC (or a notice's severity).
    pub severity: String,
    /// SQLSTATE.
    pub sqlstate: String,
    /// The message.
    pub message: String,
    /// DETAIL, where given.
    pub detail: String,
    /// HINT, where given.
    pub hint: String,
}

impl ServerError {
    /// From the body of an ErrorResponse or NoticeResponse.
    pub fn parse(mut body: &[u8]) -> ServerError {
        let mut error = ServerError::default();
        while let Some((&kind, rest)) = body.split_first() {
            let end = rest.iter().position(|&byte| byte == 0).unwrap_or(rest.len());
            let text = String::from_utf8_lossy(&rest[..end]).into_owned();
            match kind {
                // `V` is never translated; `S` may be.
                b'S' if error.severity.is_empty() => error.severity = text,
                b'V' => error.severity = text,
                b'C' => error.sqlstate = text,
                b'M' => error.message = text,
                b'D' => error.detail = text,
                b'H' => error.hint = text,
                _ => {} // Fields we do not show; the protocol asks to ignore unknown ones.
            }
            body = rest.get(end + 1..).unwrap_or_default();
        }
        error
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (SQLSTATE {})", self.severity, self.message, self.sqlstate)?;
        if !self.detail.is_empty() {
            write!(f, "; {}", self.detail)?;
        }
        Ok(())
    }
}

/// What can go wrong on a connection, told apart because the next step differs.
#[derive(Debug)]
pub enum WireError {
    /// The socket failed or could not be connected.
    Io(io::Error),
    /// The server closed the connection.
    Closed,
    /// Nothing happened for too long.
    TimedOut(&'static str),
    /// TLS could not be agreed on, or a certificate was refused by either side.
    Tls(String),
    /// Authentication is impossible with what we were given, or the server proved a fraud.
    Auth(String),
    /// The server said no.
    Server(Box<ServerError>),
    /// The server sent what the protocol does not allow.
    Protocol(String),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::Io(error) => write!(f, "{error}"),
            WireError::Closed => f.write_str("the server closed the connection"),
            WireError::TimedOut(what) => write!(f, "{what} took too long"),
            WireError::Tls(detail) => write!(f, "TLS failed: {detail}"),
            WireError::Auth(detail) => write!(f, "authentication failed: {detail}"),
            WireError::Server(error) => write!(f, "{error}"),
            WireError::Protocol(detail) => write!(f, "protocol violated: {detail}"),
        }
    }
}
impl std::error::Error for WireError {}

impl From<io::Error> for WireError {
    fn from(error: io::Error) -> WireError {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return WireError::Closed;
        }
        // TLS 1.3 servers refuse a client certificate only after our handshake is done, so the alert surfaces on a read.
        if error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
            return WireError::Tls(error.to_string());
        }
        WireError::Io(error)
    }
}

impl WireError {
    /// The SQLSTATE, when the server said one.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            WireError::Server(error) => Some(&error.sqlstate),
            WireError::Io(_)
            | WireError::Closed
            | WireError::TimedOut(_)
            | WireError::Tls(_)
            | WireError::Auth(_)
            | WireError::Protocol(_) => None,
        }
    }

    /// As a trouble for people. `doing` names what failed; `other` makes the trouble for everything that is neither
    /// a matter of certificates nor of permission.
    pub fn into_trouble(self, doing: &str, other: fn(String, String) -> Trouble) -> Trouble {
        let denied = self.sqlstate().is_some_and(|state| state.starts_with("28") || state == "42501");
        match &self {
            WireError::Tls(_) => Trouble::certificate_refused(
                doing,
                "check that both nodes' certificates come from the same cluster CA and have not expired",
            ),
            WireError::Auth(_) => Trouble::denied(doing, "check the replication role's password"),
            WireError::Server(_) if denied => Trouble::denied(
                doing,
                "check the role's password, its REPLICATION attribute and the server's pg_hba.conf",
            ),
            WireError::Server(_) => other(doing.to_string(), "see the cause and the source server's log".to_string()),
            WireError::Io(_) | WireError::Closed | WireError::TimedOut(_) => other(
                doing.to_string(),
                "check that the source server runs and can be reached, then try again".to_string(),
            ),
            WireError::Protocol(_) => {
                other(doing.to_string(), "check that the address belongs to a supported PostgreSQL server".to_string())
            }
        }
        .because(self)
    }
}

/// One message of the server.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Kind of message.
    pub tag: u8,
    /// What follows the length.
    pub body: Bytes,
}

enum Link {
    Plain(TcpStream),
    // The reader beneath TLS is buffered: rustls itself reads one record at a time.
    Tls(Box<TlsStream<BufReader<TcpStream>>>),
}

impl AsyncRead for Link {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Link::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Link::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Link::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Link::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Link::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A connection that is logged in and ready for commands.
pub struct Connection {
    link: Link,
    inbox: BytesMut,
    parameters: Vec<(String, String)>,
}

impl Connection {
    /// Connects, agrees on TLS where the endpoint wants it, logs in for physical replication.
    pub async fn connect(endpoint: &Endpoint) -> Result<Connection, WireError> {
        match tokio::time::timeout(CONNECT_TIMEOUT, Connection::connect_unbounded(endpoint)).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => Err(WireError::TimedOut("connecting")),
        }
    }

    async fn connect_unbounded(endpoint: &Endpoint) -> Result<Connection, WireError> {
        let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
        stream.set_nodelay(true)?;
        watch_for_death(&stream)?;
        let link = match &endpoint.tls {
            None => Link::Plain(stream),
            Some(config) => Link::Tls(Box::new(start_tls(stream, &endpoint.host, config).await?)),
        };
        let mut connection = Connection { link, inbox: BytesMut::new(), parameters: Vec::new() };
        connection.start_up(endpoint).await?;
        Ok(connection)
    }

    async fn start_up(&mut self, endpoint: &Endpoint) -> Result<(), WireError> {
        let mut message = BytesMut::new();
        let parameters = [
            ("user", endpoint.user.as_str()),
            ("replication", "true"),
            ("application_name", endpoint.application_name.as_str()),
            ("client_encoding", "UTF8"),
        ];
        postgres_protocol::message::frontend::startup_message(parameters, &mut message)?;
        self.send(&message).await?;
        self.authenticate(endpoint).await?;
        loop {
            let frame = self.next().await?;
            match frame.tag {
                b'Z' => return Ok(()),
                b'K' => {}
                tag => return Err(unexpected("start-up", tag)),
            }
        }
    }

    async fn authenticate(&mut self, endpoint: &Endpoint) -> Result<(), WireError> {
        let password = || {
            let missing = || WireError::Auth("the server asks for a password and none is configured".to_string());
            endpoint.password.as_deref().ok_or_else(missing)
        };
        let mut frame = self.next().await?;
        if frame.tag != b'R' || frame.body.len() < 4 {
            return Err(unexpected("authentication", frame.tag));
        }
        match frame.body.get_u32() {
            0 => return Ok(()),
            3 if endpoint.tls.is_some() => self.send_password(password()?).await?,
            3 => return Err(WireError::Auth("the server wants the password in clear on a plain connection".into())),
            5 if frame.body.len() == 4 => {
                let salt = frame.body[..4].try_into().expect("four bytes");
                let hashed = md5_hash(endpoint.user.as_bytes(), password()?.as_bytes(), salt);
                self.send_password(&hashed).await?;
            }
            10 => self.scram(password()?, &frame.body).await?,
            other => return Err(WireError::Auth(format!("method {other} is not supported"))),
        }
        let mut frame = self.next().await?;
        if frame.tag != b'R' || frame.body.len() < 4 || frame.body.get_u32() != 0 {
            return Err(unexpected("end of authentication", frame.tag));
        }
        Ok(())
    }

    async fn send_password(&mut self, password: &str) -> Result<(), WireError> {
        let mut message = BytesMut::new();
        postgres_protocol::message::frontend::password_message(password.as_bytes(), &mut message)?;
        self.send(&message).await
    }

    async fn scram(&mut self, password: &str, offered: &[u8]) -> Result<(), WireError> {
        const MECHANISM: &str = "SCRAM-SHA-256";
        if !offered.split(|&byte| byte == 0).any(|name| name == MECHANISM.as_bytes()) {
            return Err(WireError::Auth("the server offers no SCRAM-SHA-256".to_string()));
        }
        // No channel binding: where TLS is used the server's certificate is verified against the cluster's own CA.
        let mut scram = sasl::ScramSha256::new(password.as_bytes(), sasl::ChannelBinding::unsupported());
        let mut message = BytesMut::new();
        postgres_protocol::message::frontend::sasl_initial_response(MECHANISM, scram.message(), &mut message)?;
        self.send(&message).await?;
        let first = self.sasl_step(11).await?;
        scram.update(&first).map_err(|error| WireError::Auth(error.to_string()))?;
        message.clear();
        postgres_protocol::message::frontend::sasl_response(scram.message(), &mut message)?;
        self.send(&message).await?;
        let last = self.sasl_step(12).await?;
        scram.finish(&last).map_err(|error| WireError::Auth(format!("the server does not know the password: {error}")))
    }

    async fn sasl_step(&mut self, wanted: u32) -> Result<Bytes, WireError> {
        let mut frame = self.next().await?;
        if frame.tag != b'R' || frame.body.len() < 4 || frame.body.get_u32() != wanted {
            return Err(unexpected("SASL exchange", frame.tag));
        }
        Ok(frame.body)
    }

    /// A parameter the server reported at start-up, such as `server_version`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Sends bytes that are already framed.
    pub async fn send(&mut self, message: &[u8]) -> Result<(), WireError> {
        self.link.write_all(message).await?;
        self.link.flush().await?;
        Ok(())
    }

    /// Sends a simple query.
    pub async fn send_query(&mut self, sql: &str) -> Result<(), WireError> {
        let mut message = BytesMut::new();
        postgres_protocol::message::frontend::query(sql, &mut message)?;
        self.send(&message).await
    }

    /// Sends one CopyData message.
    pub async fn send_copy_data(&mut self, payload: &[u8]) -> Result<(), WireError> {
        let mut message = BytesMut::with_capacity(payload.len() + 5);
        message.put_u8(b'd');
        message.put_u32(u32::try_from(payload.len() + 4).expect("our messages are small"));
        message.put_slice(payload);
        self.send(&message).await
    }

    /// The next message. Notices are logged, parameters kept, errors become `Err`. Cancel safe.
    pub async fn next(&mut self) -> Result<Frame, WireError> {
        loop {
            if let Some(frame) = self.next_buffered()? {
                return Ok(frame);
            }
            self.inbox.reserve(READ_BYTES);
            if self.link.read_buf(&mut self.inbox).await? == 0 {
                return Err(WireError::Closed);
            }
        }
    }

    /// The next message if it has arrived in full already; never waits.
    pub fn next_buffered(&mut self) -> Result<Option<Frame>, WireError> {
        while let Some(frame) = cut_frame(&mut self.inbox)? {
            match frame.tag {
                b'E' => return Err(WireError::Server(Box::new(ServerError::parse(&frame.body)))),
                b'N' => tracing::warn!(notice = %ServerError::parse(&frame.body), "notice from the source server"),
                b'S' => self.note_parameter(&frame.body),
                _ => return Ok(Some(frame)),
            }
        }
        Ok(None)
    }

    fn note_parameter(&mut self, body: &[u8]) {
        let mut parts = body.split(|&byte| byte == 0).map(|part| String::from_utf8_lossy(part).into_owned());
        if let (Some(name), Some(value)) = (parts.next(), parts.next()) {
            self.parameters.push((name, value));
        }
    }

    /// Says goodbye and waits, within `patience`, until the server has closed: by then its process has let go of the
    /// slot it held.
    pub async fn close(mut self, patience: Duration) {
        let farewell = async {
            self.send(&[b'X', 0, 0, 0, 4]).await?;
            loop {
                self.inbox.clear();
                self.inbox.reserve(READ_BYTES);
                if self.link.read_buf(&mut self.inbox).await? == 0 {
                    return Ok::<(), WireError>(());
                }
            }
        };
        // Whether it answers or not, the connection ends here; there is nothing left to decide.
        let _ = tokio::time::timeout(patience, farewell).await;
    }
}

/// What to say when a message comes that has no place here.
pub fn unexpected(during: &str, tag: u8) -> WireError {
    WireError::Protocol(format!("message `{}` came during {during}", char::from(tag).escape_default()))
}

/// Cuts one whole frame off the front, or leaves everything as it is.
fn cut_frame(inbox: &mut BytesMut) -> Result<Option<Frame>, WireError> {
    if inbox.len() < 5 {
        return Ok(None);
    }
    let length = u32::from_be_bytes(inbox[1..5].try_into().expect("four bytes")) as usize;
    if !(4..=FRAME_BYTES_MAX).contains(&length) {
        return Err(WireError::Protocol(format!("a frame of {length} bytes")));
    }
    if inbox.len() < length + 1 {
        return Ok(None);
    }
    let mut frame = inbox.split_to(length + 1);
    let tag = frame[0];
    frame.advance(5);
    Ok(Some(Frame { tag, body: frame.freeze() }))
}

fn watch_for_death(stream: &TcpStream) -> io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_IDLE_S)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_INTERVAL_S)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_COUNT)?;
    Ok(())
}

async fn start_tls(
    mut stream: TcpStream,
    host: &str,
    config: &Arc<rustls::ClientConfig>,
) -> Result<TlsStream<BufReader<TcpStream>>, WireError> {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    stream.write_all(&SSL_REQUEST).await?;
    // Exactly one byte: whatever an attacker put behind it in clear must not be taken for part of the protected stream.
    let mut answer = [0u8; 1];
    stream.read_exact(&mut answer).await?;
    if answer[0] != b'S' {
        return Err(WireError::Tls("the server offers no TLS (ssl = off?)".to_string()));
    }
    let name = ServerName::try_from(host.to_string())
        .map_err(|_| WireError::Tls(format!("`{host}` is neither a host name nor an address")))?;
    let buffered = BufReader::with_capacity(READ_BYTES / 2, stream);
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
    connector.connect(name, buffered).await.map_err(|error| match WireError::from(error) {
        WireError::Io(error) => WireError::Tls(error.to_string()),
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_cut_whole_or_not_at_all() {
        let mut inbox = BytesMut::from(&b"d\0\0\0\x07abcZ\0\0\0\x05"[..]);
        let frame = cut_frame(&mut inbox).expect("sound").expect("whole");
        assert_eq!((frame.tag, frame.body.as_ref()), (b'd', &b"abc"[..]));
        assert!(cut_frame(&mut inbox).expect("sound").is_none(), "the last byte is missing");
        inbox.put_u8(b'I');
        let frame = cut_frame(&mut inbox).expect("sound").expect("whole");
        assert_eq!((frame.tag, frame.body.as_ref()), (b'Z', &b"I"[..]));
        assert!(inbox.is_empty());
    }

    #[test]
    fn a_frame_of_impossible_length_is_refused() {
        for length in [[0, 0, 0, 3], [0xff, 0xff, 0xff, 0xff]] {
            let mut inbox = BytesMut::from(&b"d"[..]);
            inbox.put_slice(&length);
            assert!(matches!(cut_frame(&mut inbox), Err(WireError::Protocol(_))));
        }
    }

    #[test]
    fn an_error_response_is_read_field_by_field() {
        let error = ServerError::parse(b"SFEHLER\0VFATAL\0C28P01\0Mno such password\0Dbecause\0\0");
        assert_eq!(error.to_string(), "FATAL: no such password (SQLSTATE 28P01); because");
        let trouble = WireError::Server(Box::new(error)).into_trouble("login", Trouble::link_down);
        assert!(trouble.is("ST8003"), "{trouble}");
    }
}
