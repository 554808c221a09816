//! One connection to a server: made, logged in, kept, moved between workers.

use crate::config::ServerTls;
use crate::local::Local;
use crate::nearby::{Way, Who};
use crate::pool::{Grant, PoolKey, Purpose, Slot};
use crate::prepared::ServerStatements;
use crate::probe::REPLAYED_SQL;
use crate::refusal::Refusal;
use crate::scram::{self, Proof};
use crate::settings::Settings;
use crate::stream::Stream;
use crate::topology::NodeAddr;
use crate::worker::Worker;
use model::Lsn;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wire::backend::{self, Authentication};
use wire::frame::HEADER_BYTES;
use wire::{Header, build};

/// Longest message of a login.
const LOGIN_MESSAGE_MAX: usize = 64 << 10;

/// Statistics are thrown away when a server recovers from a crash, and this is the time since when they are gathered.
const LIFE_SQL: &str = "SELECT pg_catalog.pg_stat_get_bgwriter_stat_reset_time()";

/// What a server reported of its settings.
pub type Reported = BTreeMap<Vec<u8>, Vec<u8>>;

/// What cancels the statements of a server connection.
#[derive(Debug)]
pub struct CancelKey {
    /// The server.
    pub node: NodeAddr,
    /// The process id it told.
    pub pid: u32,
    /// The secret it told.
    pub secret: Vec<u8>,
}

/// A connection to a server, logged in.
pub struct Server {
    /// The connection.
    pub stream: Stream,
    /// Received, not used yet.
    pub inbox: Vec<u8>,
    /// To be sent.
    pub outbox: Vec<u8>,
    /// It counts as readable only when much has come of a long message.
    pub awaits_much: bool,
    /// What it has prepared.
    pub statements: ServerStatements,
    /// The settings that were made for its clients.
    pub settings: Arc<Settings>,
    /// What it reported.
    pub reported: Arc<Reported>,
    /// What cancels its statements.
    pub key: Arc<CancelKey>,
    /// What changes when its server recovers from a crash, where it is a primary's: transaction numbers that were lost are
    /// given again then.
    pub life: Option<Arc<str>>,
    /// What its server had replayed when it was made, where it is a replica's. One that recovers from a crash comes back
    /// behind what it has shown, and ends all its connections: through this one nothing older is ever seen.
    pub birth: Option<Lsn>,
    /// When it was made.
    pub born: Instant,
    /// When it was last used.
    pub used: Instant,
    /// Its place in the budget.
    pub slot: Slot,
}

/// A connection on its way to another worker.
pub enum Parked {
    /// It stays with its worker.
    Here(Box<Server>),
    /// It is taken off one worker's event loop and not yet on another's.
    Moved(Box<Moved>),
}

/// What of a connection can travel.
pub struct Moved {
    socket: Socket,
    rest: Rest,
}

enum Socket {
    Tcp(std::net::TcpStream),
    Unix(UnixStream),
}

struct Rest {
    statements: ServerStatements,
    settings: Arc<Settings>,
    reported: Arc<Reported>,
    key: Arc<CancelKey>,
    life: Option<Arc<str>>,
    birth: Option<Lsn>,
    born: Instant,
    used: Instant,
    slot: Slot,
}

impl Server {
    /// Whether nothing came while nobody used it. Costs no call of the system in the ordinary case.
    pub fn still_idle(&mut self, context: &mut Context<'_>) -> bool {
        let mut space = [0; 128];
        loop {
            match self.stream.poll_read(context, &mut space) {
                Poll::Pending => return self.inbox.is_empty(),
                Poll::Ready(Ok(count)) if count > 0 => {
                    // A setting that a reload changed may be reported at any time; everything else means the end.
                    self.inbox.extend_from_slice(&space[..count]);
                    if !self.take_reports() {
                        return false;
                    }
                }
                Poll::Ready(_) => return false,
            }
        }
    }

    fn take_reports(&mut self) -> bool {
        let mut at = 0;
        while let Ok(Some(head)) = wire::header(&self.inbox[at..]) {
            let Some(body) = self.inbox.get(at + HEADER_BYTES..at + head.total()) else { break };
            match (head.tag, backend::parameter_status(body)) {
                (b'S', Ok((name, value))) => {
                    let (name, value) = (name.to_vec(), value.to_vec());
                    Arc::make_mut(&mut self.reported).insert(name, value);
                }
                (b'N', _) => {}
                _ => return false,
            }
            at += head.total();
        }
        self.inbox.drain(..at);
        true
    }

    /// Makes it ready to be given away; `here` where it stays with this worker.
    pub fn park(self: Box<Self>, here: bool) -> Grant {
        if here {
            return Grant::Server(Parked::Here(self));
        }
        let Server { stream, statements, settings, reported, key, life, birth, born, used, slot, .. } = *self;
        let socket = match stream {
            Stream::Tcp(stream) => stream.into_std().map(Socket::Tcp),
            Stream::Unix(socket) => Ok(Socket::Unix(socket.into_std())),
            // The state of TLS stays behind; whoever waits makes a connection of its own in this one's place.
            Stream::Tls(_) | Stream::Taken => return Grant::Connect(slot),
        };
        match socket {
            Ok(socket) => {
                let rest = Rest { statements, settings, reported, key, life, birth, born, used, slot };
                Grant::Server(Parked::Moved(Box::new(Moved { socket, rest })))
            }
            Err(_) => Grant::Connect(slot),
        }
    }
}

impl Parked {
    /// Puts it on this worker's event loop. On failure its place in the budget.
    pub fn unpark(self) -> Result<Box<Server>, Slot> {
        match self {
            Parked::Here(server) => Ok(server),
            Parked::Moved(moved) => {
                let Moved { socket, rest } = *moved;
                let stream = match socket {
                    Socket::Tcp(socket) => TcpStream::from_std(socket).map(Stream::Tcp),
                    Socket::Unix(socket) => Local::new(socket).map(Stream::Unix),
                };
                let Rest { statements, settings, reported, key, life, birth, born, used, slot } = rest;
                let Ok(stream) = stream else { return Err(slot) };
                let (inbox, outbox) = (Vec::new(), Vec::new());
                let server = Server {
                    stream,
                    inbox,
                    outbox,
                    awaits_much: false,
                    statements,
                    settings,
                    reported,
                    key,
                    life,
                    birth,
                    born,
                    used,
                    slot,
                };
                Ok(Box::new(server))
            }
        }
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// The server cannot be reached, or is starting, stopping or full: it may be better soon.
    Unreachable(String),
    /// The server refuses this user, database or setting: body of its ErrorResponse.
    Refused(Vec<u8>),
    /// We do not know how to log in.
    Credentials(String),
}

impl ConnectError {
    /// Appends what the client is told.
    pub fn write(&self, severity: &str, out: &mut Vec<u8>) {
        match self {
            ConnectError::Unreachable(why) => {
                Refusal::server_login("the server cannot be reached").detail(why.clone()).write(severity, out)
            }
            ConnectError::Refused(body) => build::message(out, b'E', |out| out.extend_from_slice(body)),
            ConnectError::Credentials(why) => {
                Refusal::server_login("the router cannot log in to the server for this user")
                    .detail(why.clone())
                    .write(severity, out)
            }
        }
    }
}

impl From<io::Error> for ConnectError {
    fn from(error: io::Error) -> Self {
        ConnectError::Unreachable(error.to_string())
    }
}

/// Connects and logs in.
pub async fn connect(slot: Slot, worker: &Worker) -> Result<Box<Server>, ConnectError> {
    let config = worker.config();
    let purpose = slot.pool().key.purpose;
    let mut server = connect_with(slot, worker, &[]).await?;
    // One question per connection: what it tells holds while the connection lives.
    let question = match purpose {
        Purpose::Write(_) => LIFE_SQL,
        Purpose::Read => REPLAYED_SQL,
    };
    let asked = tokio::time::timeout(config.connect_timeout, ask(&mut server, question));
    let rows = asked.await.map_err(|_| ConnectError::Unreachable("the server did not answer in time".into()))??;
    let told = rows.into_iter().next().and_then(|row| row.into_iter().next().flatten());
    match purpose {
        Purpose::Write(_) => server.life = told.map(Arc::from),
        Purpose::Read => server.birth = told.and_then(|text| text.parse().ok()),
    }
    Ok(server)
}

/// The same with further startup parameters.
pub async fn connect_with(
    slot: Slot,
    worker: &Worker,
    parameters: &[(&str, &str)],
) -> Result<Box<Server>, ConnectError> {
    let node = slot.pool().key.node.clone();
    let limit = worker.config().connect_timeout;
    match tokio::time::timeout(limit, login(slot, worker, parameters)).await {
        Ok(done) => done,
        Err(_) => Err(ConnectError::Unreachable(format!("{node} did not answer in time"))),
    }
}

/// A connection by TCP that is not logged in.
pub async fn open(node: &NodeAddr, tls: &ServerTls) -> io::Result<Stream> {
    let stream = TcpStream::connect((node.host.as_str(), node.port)).await?;
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(&stream);
    let keepalive =
        socket2::TcpKeepalive::new().with_time(Duration::from_secs(1)).with_interval(Duration::from_secs(1));
    socket.set_tcp_keepalive(&keepalive.with_retries(3))?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(5)))?;
    let config = match tls {
        ServerTls::Off => return Ok(Stream::Tcp(stream)),
        ServerTls::Require(config) => config.clone(),
    };
    let mut stream = stream;
    let mut request = Vec::new();
    build::ssl_request(&mut request);
    stream.write_all(&request).await?;
    if stream.read_u8().await? != b'S' {
        return Err(io::Error::other("the server does not offer TLS, and the router requires it"));
    }
    let name = rustls_pki_types::ServerName::try_from(node.host.clone()).map_err(io::Error::other)?;
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
    Ok(Stream::Tls(Box::new(stream.into())))
}

/// Reads one message of a login into `buffer`; exactly that one.
pub async fn read_message(stream: &mut Stream, buffer: &mut Vec<u8>) -> io::Result<Header> {
    let mut head = [0; HEADER_BYTES];
    stream.read_exact(&mut head).await?;
    let head = wire::header(&head).map_err(io::Error::other)?.expect("five bytes are a head");
    if head.body > LOGIN_MESSAGE_MAX {
        return Err(io::Error::other("a message of a login that is too long"));
    }
    buffer.resize(head.body, 0);
    stream.read_exact(buffer).await?;
    Ok(head)
}

async fn login(slot: Slot, worker: &Worker, parameters: &[(&str, &str)]) -> Result<Box<Server>, ConnectError> {
    let config = worker.config();
    let key = slot.pool().key.clone();
    let proof = worker.proof(&key.user);
    let nearby = &worker.global.nearby;
    let who = Who { node: key.node.clone(), database: key.database.clone(), user: key.user.clone() };
    // Who brings words of their own may ask for what `pg_hba.conf` has lines of its own for: replication.
    let way = match parameters {
        [] if slot.pool().has_long_rows() => Way::Tcp,
        [] => nearby.way(config.machine.as_deref(), &worker.topology(), &who, config.server_lifetime),
        _ => Way::Tcp,
    };
    let by_tcp = async || enter(open(&key.node, &config.server_tls).await?, &key, proof.clone(), parameters).await;
    let by_socket = async |path: &Path, asked: bool| {
        // By tokio's own, which fails where the server's queue is full; the standard library's would wait.
        let connected = tokio::net::UnixStream::connect(path).await;
        let entered = match connected.and_then(tokio::net::UnixStream::into_std).and_then(Local::new) {
            Ok(socket) => enter(Stream::Unix(socket), &key, proof.clone(), parameters).await,
            Err(error) => Err(error.into()),
        };
        match entered {
            Ok(entered) if entered.asked || !asked => return Some(entered),
            // It is gone, starts, or is full: TCP tells.
            Err(ConnectError::Unreachable(_)) => {}
            Ok(_) | Err(ConnectError::Refused(_) | ConnectError::Credentials(_)) => nearby.not_by_socket(&who),
        }
        None
    };
    let entered = match way {
        Way::Tcp => by_tcp().await?,
        Way::Prove(path) => {
            let entered = by_tcp().await?;
            nearby.proven(&who, entered.asked);
            by_socket(&path, entered.asked).await.unwrap_or(entered)
        }
        Way::Socket { path, asked } => match by_socket(&path, asked).await {
            Some(entered) => entered,
            None => by_tcp().await?,
        },
    };
    nearby.count(entered.stream.is_unix());
    let now = Instant::now();
    Ok(Box::new(Server {
        stream: entered.stream,
        inbox: Vec::new(),
        outbox: Vec::new(),
        awaits_much: false,
        statements: ServerStatements::default(),
        settings: Arc::default(),
        reported: Arc::new(entered.reported),
        key: Arc::new(entered.key),
        life: None,
        birth: None,
        born: now,
        used: now,
        slot,
    }))
}

/// A connection that is logged in.
struct Entered {
    stream: Stream,
    reported: Reported,
    key: CancelKey,
    /// Whether the server asked for a proof.
    asked: bool,
}

async fn enter(
    mut stream: Stream,
    key: &PoolKey,
    proof: Option<Proof>,
    parameters: &[(&str, &str)],
) -> Result<Entered, ConnectError> {
    let mut out = Vec::new();
    let mut wanted = vec![("user", key.user.as_str()), ("database", key.database.as_str())];
    match parameters {
        [] => wanted.extend([("client_encoding", "UTF8"), ("application_name", "")]),
        given => wanted.extend(given),
    }
    build::startup(&mut out, &wanted);
    stream.write_all(&out).await?;
    let mut body = Vec::new();
    let asked = authenticate(&mut stream, &mut body, key, proof).await?;
    let mut reported = Reported::new();
    let mut cancel_key = CancelKey { node: key.node.clone(), pid: 0, secret: Vec::new() };
    loop {
        let head = read_message(&mut stream, &mut body).await?;
        match head.tag {
            b'S' => {
                if let Ok((name, value)) = backend::parameter_status(&body) {
                    reported.insert(name.to_vec(), value.to_vec());
                }
            }
            b'K' => {
                if let Ok((pid, secret)) = backend::backend_key(&body) {
                    (cancel_key.pid, cancel_key.secret) = (pid, secret.to_vec());
                }
            }
            b'E' => return Err(refused(&body)),
            b'Z' => break,
            _ => {} // Notices.
        }
    }
    Ok(Entered { stream, reported, key: cancel_key, asked })
}

/// A row of an answer, in text format.
pub type Row = Vec<Option<String>>;

/// Asks something of our own by a simple query: the rows of all its statements.
pub async fn ask(server: &mut Server, sql: &str) -> Result<Vec<Row>, ConnectError> {
    ask_and_hear(server, sql, |_| ()).await
}

/// The same; notifications that come meanwhile are handed to `heard`, without their heads.
pub async fn ask_and_hear(
    server: &mut Server,
    sql: &str,
    mut heard: impl FnMut(&[u8]),
) -> Result<Vec<Row>, ConnectError> {
    // A simple query destroys the unnamed statement.
    server.statements.forget_unnamed();
    let mut out = Vec::new();
    build::query(&mut out, sql);
    server.stream.write_all(&out).await?;
    server.stream.flush().await?;
    let (mut rows, mut body, mut refused) = (Vec::new(), Vec::new(), None);
    loop {
        let head = read_message(&mut server.stream, &mut body).await?;
        match head.tag {
            b'S' => {
                if let Ok((name, value)) = backend::parameter_status(&body) {
                    Arc::make_mut(&mut server.reported).insert(name.to_vec(), value.to_vec());
                }
            }
            b'D' => rows.push(backend::text_row(&body).map_err(|bad| ConnectError::Unreachable(bad.to_string()))?),
            b'A' => heard(&body),
            b'E' => refused = Some(std::mem::take(&mut body)),
            b'Z' => break,
            _ => {} // Descriptions, tags and notices.
        }
    }
    match refused {
        Some(body) => Err(ConnectError::Refused(body)),
        None => Ok(rows),
    }
}

/// An error during a login: some say that it may be better soon.
fn refused(body: &[u8]) -> ConnectError {
    match backend::sqlstate(body) {
        // Starting up, shutting down, crashed, too many connections.
        Some(b"57P03" | b"57P01" | b"57P02" | b"53300") => {
            ConnectError::Unreachable(backend::error_fields(body).message)
        }
        _ => ConnectError::Refused(body.to_vec()),
    }
}

/// Answers whatever the server asks for until it is content. Whether it asked for anything.
pub async fn authenticate(
    stream: &mut Stream,
    body: &mut Vec<u8>,
    key: &PoolKey,
    proof: Option<Proof>,
) -> Result<bool, ConnectError> {
    let missing = |what: &str| ConnectError::Credentials(format!("{} asks for {what}", key.node));
    let mut expected = String::new();
    let (mut exchange, mut asked_for_proof) = (None, false);
    loop {
        let head = read_message(stream, body).await?;
        match head.tag {
            b'E' => return Err(refused(body)),
            b'R' => {}
            _ => continue, // Notices, and the version that the server would rather speak.
        }
        let asked = backend::authentication(body).map_err(|bad| ConnectError::Unreachable(bad.to_string()))?;
        let mut out = Vec::new();
        match asked {
            Authentication::Ok => return Ok(asked_for_proof),
            Authentication::Cleartext => match &proof {
                Some(Proof::Password(password)) => build::password(&mut out, password.as_bytes()),
                Some(Proof::Keys(_)) | None => return Err(missing("the password itself")),
            },
            Authentication::Md5(_) => return Err(missing("MD5, which the router does not do; use SCRAM-SHA-256")),
            Authentication::Sasl(mechanisms) => {
                if !mechanisms.contains(&scram::MECHANISM.as_bytes()) {
                    return Err(missing("a SASL mechanism other than SCRAM-SHA-256"));
                }
                let proof = proof.clone().ok_or_else(|| missing("a password, and the router knows none"))?;
                let (side, first) = scram::ClientSide::begin(proof, &crate::random::<18>());
                exchange = Some(side);
                build::sasl_initial(&mut out, scram::MECHANISM, first.as_bytes());
            }
            Authentication::SaslContinue(data) => {
                let side = exchange.take().ok_or_else(|| missing("a SASL answer out of turn"))?;
                let (answer, last) = side.answer(data).map_err(|why| missing(why.0))?;
                expected = last;
                build::sasl_response(&mut out, answer.as_bytes());
            }
            Authentication::SaslFinal(data) => {
                if expected.is_empty() || data != expected.as_bytes() {
                    return Err(missing("trust that it has not earned: its proof is wrong"));
                }
            }
            Authentication::Other(kind) => return Err(missing(&format!("authentication of kind {kind}"))),
        }
        asked_for_proof = true;
        stream.write_all(&out).await?;
        stream.flush().await?;
    }
}
