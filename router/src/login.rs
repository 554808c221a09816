//! A client from its first byte to its first ReadyForQuery.

use crate::config::{ClientAuth, Door, Secret};
use crate::doors::Socket;
use crate::limits::Seat;
use crate::local::Local;
use crate::obtain::{self, Failure};
use crate::pool::Pool;
use crate::refusal::Refusal;
use crate::scram::{self, Proof, Verifier};
use crate::server::{Reported, read_message};
use crate::session::{ClientEntry, Session};
use crate::settings::Settings;
use crate::stream::Stream;
use crate::wishes::{self, Wish, Wishes};
use crate::worker::Worker;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wire::build;
use wire::startup::{self, Opening, Start};

/// Counts a client for as long as it is here.
struct Counted {
    worker: Rc<Worker>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.worker.global.client_gone(self.worker.index);
    }
}

/// Why a client does not get in.
enum Out {
    /// It hung up, or needed only a word.
    Gone,
    /// It replicates: from now on it and this server just stream.
    Replication(Box<crate::server::Server>, Seat),
    /// It is let in to the console.
    Administrator,
    /// It is told this.
    Refused(Refusal),
    /// It is told what the server says.
    Server(crate::server::ConnectError),
}

impl From<io::Error> for Out {
    fn from(_: io::Error) -> Self {
        Out::Gone
    }
}

impl From<Refusal> for Out {
    fn from(refusal: Refusal) -> Self {
        Out::Refused(refusal)
    }
}

/// Serves one client from beginning to end.
pub async fn serve(worker: Rc<Worker>, socket: Socket, door: Door) {
    let _counted = Counted { worker: worker.clone() };
    let limit = worker.config().login_timeout;
    // Boxed, so that a client that only waits does not carry the memory of its login.
    if let Ok(Some(session)) = tokio::time::timeout(limit, Box::pin(enter(worker, socket, door))).await {
        session.run().await;
    }
}

async fn enter(worker: Rc<Worker>, socket: Socket, door: Door) -> Option<Box<Session>> {
    let mut stream = match socket {
        Socket::Tcp(socket) => {
            let socket = TcpStream::from_std(socket).ok()?;
            let _ = socket.set_nodelay(true);
            encrypt_at_once(&worker, socket).await?
        }
        Socket::Unix(socket) => Stream::Unix(Local::new(socket).ok()?),
    };
    match log_in(&worker, &mut stream, door).await {
        Ok(Admitted { entry, settings, reported, mode, wishes }) => {
            Some(Box::new(Session::new(worker, entry, stream, settings, &reported, mode, (door, wishes))))
        }
        Err(Out::Replication(server, seat)) => {
            tokio::task::spawn_local(replicate(worker, stream, server, seat));
            None
        }
        Err(Out::Administrator) => {
            // The login's deadline does not bind who is in.
            tokio::task::spawn_local(async move {
                let _ = crate::admin::serve(worker, stream).await;
            });
            None
        }
        Err(out) => {
            let mut bytes = Vec::new();
            match out {
                Out::Gone | Out::Administrator | Out::Replication(..) => return None,
                Out::Refused(refusal) => refusal.write("FATAL", &mut bytes),
                Out::Server(error) => error.write("FATAL", &mut bytes),
            }
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            None
        }
    }
}

/// First byte of a TLS handshake; no first message of the protocol begins with it, being so long.
const TLS_HANDSHAKE: u8 = 0x16;

/// Clients of PostgreSQL 17 and later may begin with TLS without asking.
async fn encrypt_at_once(worker: &Rc<Worker>, socket: TcpStream) -> Option<Stream> {
    let mut first = [0];
    if socket.peek(&mut first).await.ok()? == 0 {
        return None;
    }
    match worker.config().client_tls.clone() {
        Some(tls) if first[0] == TLS_HANDSHAKE => {
            let stream = tokio_rustls::TlsAcceptor::from(tls.config).accept(socket).await.ok()?;
            // Without the agreed name this could be another protocol's traffic led here.
            let agreed = stream.get_ref().1.alpn_protocol() == Some(crate::tls::ALPN);
            agreed.then(|| Stream::Tls(Box::new(stream.into())))
        }
        Some(_) | None => Some(Stream::Tcp(socket)),
    }
}

struct Admitted {
    entry: Rc<ClientEntry>,
    settings: Arc<Settings>,
    reported: Arc<Reported>,
    mode: crate::config::PoolMode,
    wishes: Wishes,
}

async fn log_in(worker: &Rc<Worker>, stream: &mut Stream, door: Door) -> Result<Admitted, Out> {
    let config = worker.config();
    let start = opening(worker, stream).await?;
    // What goes by a socket of this machine is on no wire.
    if config.client_tls.as_ref().is_some_and(|tls| tls.require) && !stream.is_tls() && !stream.is_unix() {
        return Err(Refusal::authentication("the router takes connections with TLS only").sqlstate("28000").into());
    }
    if worker.global.clients.load(std::sync::atomic::Ordering::SeqCst) > config.clients_max {
        return Err(Refusal::too_many_clients(format!("{} clients are connected", config.clients_max)).into());
    }
    let user = start.get("user").filter(|user| !user.is_empty());
    let user = user.ok_or_else(|| Refusal::protocol("the client gave no user").sqlstate("28000"))?.to_owned();
    let database = start.get("database").filter(|name| !name.is_empty()).unwrap_or(&user).to_owned();
    let unknown: Vec<&str> = start.extensions().collect();
    if start.minor > 0 || !unknown.is_empty() {
        let mut out = Vec::new();
        build::negotiate_version(&mut out, 0, &unknown);
        stream.write_all(&out).await?;
    }
    authenticate(worker, stream, &user, &database).await?;
    if matches!(database.as_str(), "stemma" | "pgbouncer") {
        return if config.admins.contains(&user) {
            Err(Out::Administrator)
        } else {
            Err(Refusal::authentication(format!("user \"{user}\" may not use the console")).sqlstate("42501").into())
        };
    }
    let seat = seat(worker, &user, &database)?;
    if start.get("replication").is_some_and(|value| !matches!(value, "false" | "off" | "no" | "0")) {
        return Err(Out::Replication(open_replication(worker, &start, &database, &user).await?, seat));
    }
    let mut settings = settings_of(&start)?;
    let by_user = config.user_wishes.get(&user).copied().unwrap_or_default();
    let mut wishes = wishes_of(&mut settings)?.or(by_user);
    if door == Door::ReadOnly {
        wishes.route.get_or_insert(routing::Target::Replica);
        settings.0.entry("default_transaction_read_only".to_owned()).or_insert_with(|| crate::settings::literal("on"));
    }
    let (settings, reported) = welcome(worker, &database, &user, settings).await?;
    let account = worker.account(&database, &user);
    let entry = worker.register(|pid| ClientEntry::new(pid, account, seat));
    let mut out = Vec::new();
    build::authentication_ok(&mut out);
    for (name, value) in reported.iter() {
        build::parameter_status(&mut out, name, value);
    }
    build::backend_key(&mut out, entry.pid, &entry.secret);
    build::ready(&mut out, b'I');
    if let Err(error) = stream.write_all(&out).await {
        worker.unregister(entry.pid);
        return Err(error.into());
    }
    let mode = config.limits.pool_mode(&user, &database, config.mode);
    Ok(Admitted { entry, settings, reported, mode, wishes })
}

/// A place among the clients of the user and the database.
fn seat(worker: &Worker, user: &str, database: &str) -> Result<Seat, Refusal> {
    worker.global.ledger.seat(&worker.config().limits, user, database).map_err(|(whose, most)| {
        Refusal::too_many_clients(format!("{most} clients of this {} are connected", whose.as_str()))
    })
}

/// A connection to the primary for a client that speaks the replication protocol: its own, with the client's words.
async fn open_replication(
    worker: &Rc<Worker>,
    start: &Start,
    database: &str,
    user: &str,
) -> Result<Box<crate::server::Server>, Out> {
    let pool = worker.primary_pool(database, user);
    let pool = pool.ok_or_else(|| Refusal::no_primary("the cluster has no primary now"))?;
    let slot = pool.shared.reserve();
    let slot = slot.ok_or_else(|| Refusal::pool_exhausted("no connection is free for replication"))?;
    let passed = |name: &str| !matches!(name, "user" | "database") && !name.starts_with("_pq_.");
    let parameters: Vec<(&str, &str)> = start
        .parameters
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .filter(|(name, _)| passed(name))
        .collect();
    let connected = crate::server::connect_with(slot, worker, &parameters).await;
    connected.map_err(Out::Server)
}

/// Lets a client and its server stream until one of them ends.
async fn replicate(worker: Rc<Worker>, mut client: Stream, mut server: Box<crate::server::Server>, seat: Seat) {
    let key = &server.slot.pool().key;
    let account = worker.account(&key.database, &key.user);
    let entry = worker.register(|pid| ClientEntry::new(pid, account, seat));
    *entry.running.borrow_mut() = Some(server.key.clone());
    let mut out = Vec::new();
    build::authentication_ok(&mut out);
    for (name, value) in server.reported.iter() {
        build::parameter_status(&mut out, name, value);
    }
    build::backend_key(&mut out, entry.pid, &entry.secret);
    build::ready(&mut out, b'I');
    if client.write_all(&out).await.is_ok() {
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server.stream).await;
    }
    worker.unregister(entry.pid);
}

/// Reads first messages until one starts a session.
async fn opening(worker: &Rc<Worker>, stream: &mut Stream) -> Result<Start, Out> {
    loop {
        let mut head = [0; 4];
        stream.read_exact(&mut head).await?;
        let malformed = |bad: wire::Malformed| Refusal::protocol("the first message is not understood").detail(bad.0);
        let length = startup::length(&head).map_err(malformed)?.expect("four bytes are a length");
        let mut body = vec![0; length - 4];
        stream.read_exact(&mut body).await?;
        match startup::parse(&body).map_err(malformed)? {
            Opening::Ssl => match (worker.config().client_tls.clone(), stream.take_tcp()) {
                (Some(tls), Some(mut socket)) => {
                    // Exactly the request was read: what a stranger put behind it in clear text goes to the handshake,
                    // which fails on it.
                    socket.write_all(b"S").await?;
                    let encrypted = tokio_rustls::TlsAcceptor::from(tls.config).accept(socket).await?;
                    *stream = Stream::Tls(Box::new(encrypted.into()));
                }
                (_, plain) => {
                    if let Some(socket) = plain {
                        *stream = Stream::Tcp(socket);
                    }
                    stream.write_all(b"N").await?;
                }
            },
            Opening::Gss => stream.write_all(b"N").await?,
            Opening::Cancel { pid, secret } => {
                // As with a server: the connection ends once the request is dealt with, and what the client asks next is
                // not hit by it.
                worker.global.cancel(pid, secret).await;
                return Err(Out::Gone);
            }
            Opening::Start(start) => return Ok(start),
        }
    }
}

/// What the router knows of a user.
enum Known {
    /// It needs no proof.
    Believed,
    /// This.
    Secret(Secret),
    /// Nothing.
    Nobody,
}

async fn secret_of(worker: &Rc<Worker>, user: &str, database: &str) -> Result<Known, Out> {
    let config = worker.config();
    let known = |users: &std::collections::BTreeMap<String, Secret>, name: &str| users.get(name).cloned();
    match &config.auth {
        ClientAuth::Trust(users) => {
            if let Some(Secret::Password(password)) = known(users, user) {
                worker.learn_proof(user, Proof::Password(password));
            }
            Ok(Known::Believed)
        }
        ClientAuth::Users(users) => Ok(known(users, user).map_or(Known::Nobody, Known::Secret)),
        ClientAuth::Query { users, user: asker, database: place, query } => {
            if let Some(secret) = known(users, user) {
                return Ok(Known::Secret(secret));
            }
            if let Some(Secret::Password(password)) = known(users, asker) {
                worker.learn_proof(asker, Proof::Password(password));
            }
            let place = place.as_deref().unwrap_or(database);
            let find = || worker.primary_pool(place, asker);
            let mut server = obtain::obtain(worker, find).await.map_err(out)?;
            let sql = query.replace("$1", &crate::settings::literal(user));
            let rows = crate::server::ask(&mut server, &sql).await.map_err(Out::Server)?;
            worker.put_back(server);
            let found = rows.into_iter().next().and_then(|row| row.into_iter().nth(1).flatten());
            Ok(found.map_or(Known::Nobody, |verifier| Known::Secret(Secret::Verifier(verifier))))
        }
    }
}

fn out(failure: Failure) -> Out {
    match failure {
        Failure::ClientGone => Out::Gone,
        Failure::Refused(refusal) => Out::Refused(refusal),
        Failure::Server(error) => Out::Server(error),
    }
}

async fn authenticate(worker: &Rc<Worker>, stream: &mut Stream, user: &str, database: &str) -> Result<(), Out> {
    let secret = match secret_of(worker, user, database).await? {
        Known::Believed => return Ok(()),
        Known::Secret(secret) => Some(secret),
        Known::Nobody => None,
    };
    // A certificate for this name is as good as the password. What the router knows of that is for the servers.
    if let Stream::Tls(tls) = &*stream
        && crate::tls::peer_name(tls).as_deref() == Some(user)
    {
        if let Some(Secret::Password(password)) = secret {
            worker.learn_proof(user, Proof::Password(password));
        }
        return Ok(());
    }
    let verifier = match &secret {
        Some(Secret::Password(password)) => Verifier::from_password(password, crate::random()),
        Some(Secret::Verifier(text)) => {
            Verifier::parse(text).unwrap_or_else(|| Verifier::nobody(&worker.global.seed, user))
        }
        None => Verifier::nobody(&worker.global.seed, user),
    };
    let keys = scram_exchange(stream, verifier).await?;
    match keys {
        Some(keys) => {
            let proof = match secret {
                Some(Secret::Password(password)) => Proof::Password(password),
                Some(Secret::Verifier(_)) | None => Proof::Keys(keys),
            };
            worker.learn_proof(user, proof);
            Ok(())
        }
        None => Err(Refusal::authentication(format!("password authentication failed for user \"{user}\"")).into()),
    }
}

async fn scram_exchange(stream: &mut Stream, verifier: Verifier) -> Result<Option<scram::Keys>, Out> {
    let mut out = Vec::new();
    build::authentication_sasl(&mut out, &[scram::MECHANISM]);
    stream.write_all(&out).await?;
    let mut body = Vec::new();
    let unfit = || Refusal::protocol("the client's password message is not understood");
    if read_message(stream, &mut body).await?.tag != b'p' {
        return Err(unfit().into());
    }
    let (mechanism, rest) = wire::frame::c_string(&body).map_err(|_| unfit())?;
    let (_, first) = wire::frame::number32(rest).map_err(|_| unfit())?;
    if mechanism != scram::MECHANISM.as_bytes() {
        return Err(unfit().into());
    }
    let Ok((side, answer)) = scram::ServerSide::begin(verifier, first, &crate::random::<18>()) else {
        return Err(unfit().into());
    };
    out.clear();
    build::authentication_sasl_data(&mut out, answer.as_bytes(), false);
    stream.write_all(&out).await?;
    if read_message(stream, &mut body).await?.tag != b'p' {
        return Err(unfit().into());
    }
    let Ok((keys, last)) = side.finish(&body) else { return Ok(None) };
    out.clear();
    build::authentication_sasl_data(&mut out, last.as_bytes(), true);
    stream.write_all(&out).await?;
    Ok(Some(keys))
}

/// The settings that the client asks for with its first message.
fn settings_of(start: &Start) -> Result<Settings, Refusal> {
    let mut settings = Settings::default();
    for (name, value) in &start.parameters {
        let name = name.to_ascii_lowercase();
        if matches!(name.as_str(), "user" | "database" | "replication") || name.starts_with("_pq_.") {
            continue;
        }
        if name == "options" {
            for (name, value) in options(value)? {
                let written = crate::settings::startup_value(&name, &value);
                settings.0.insert(name, written);
            }
            continue;
        }
        if !is_name(&name) {
            return Err(Refusal::protocol(format!("`{name}` is not the name of a setting")).sqlstate("22023"));
        }
        let written = crate::settings::startup_value(&name, value);
        settings.0.insert(name, written);
    }
    Ok(settings)
}

/// Takes out what the client wishes of the router itself.
fn wishes_of(settings: &mut Settings) -> Result<Wishes, Refusal> {
    let ours: Vec<String> = settings.0.keys().filter(|name| name.starts_with(wishes::PREFIX)).cloned().collect();
    let mut wished = Wishes::default();
    for name in ours {
        let written = settings.0.remove(&name).unwrap_or_default();
        let text = written.trim_matches('\'');
        match Wish::parse(&name, Some(text)) {
            Ok(wish) => wished.grant(wish, Wishes::default()),
            Err(bad) => return Err(Refusal::own_setting(bad.1).sqlstate(bad.0)),
        }
    }
    Ok(wished)
}

fn is_name(name: &str) -> bool {
    let word = |part: &str| {
        !part.is_empty()
            && !part.starts_with(|first: char| first.is_ascii_digit())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    name.split('.').all(word)
}

/// Settings in the parameter `options`: `-c name=value` and `--name=value`, with a backslash before spaces.
fn options(text: &str) -> Result<Vec<(String, String)>, Refusal> {
    let mut words: Vec<String> = Vec::new();
    let (mut word, mut inside) = (String::new(), false);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => {
                word.extend(letters.next());
                inside = true;
            }
            letter if letter.is_ascii_whitespace() => {
                if inside {
                    words.push(std::mem::take(&mut word));
                }
                inside = false;
            }
            letter => {
                word.push(letter);
                inside = true;
            }
        }
    }
    if inside {
        words.push(word);
    }
    let mut found = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--").or_else(|| word.strip_prefix("-c").filter(|rest| !rest.is_empty()))
        {
            Some(rest) => rest.to_owned(),
            None if word == "-c" => words.next().unwrap_or_default(),
            None => String::new(),
        };
        let pair = setting.split_once('=').map(|(name, value)| (name.replace('-', "_").to_ascii_lowercase(), value));
        match pair {
            Some((name, value)) if is_name(&name) => found.push((name, value.to_owned())),
            Some(_) | None => {
                let refusal = Refusal::unsupported("a startup option that is not a setting");
                return Err(refusal.detail(format!("`{word}` in `{text}`")));
            }
        }
    }
    Ok(found)
}

/// What a server with these settings reports of itself. The first client of its kind makes a connection for it, which
/// proves that database, user and settings are good; later ones are told the same, and share one copy of the settings.
async fn welcome(
    worker: &Rc<Worker>,
    database: &str,
    user: &str,
    settings: Settings,
) -> Result<(Arc<Settings>, Arc<Reported>), Out> {
    let find = || -> Option<Rc<Pool>> { worker.primary_pool(database, user) };
    if let Some(pool) = find()
        && let Some(known) = pool.welcome(&settings)
    {
        return Ok(known);
    }
    let settings = Arc::new(settings);
    let mut server = obtain::obtain(worker, find).await.map_err(out)?;
    if let Some(sql) = settings.difference(&server.settings) {
        crate::server::ask(&mut server, &sql).await.map_err(Out::Server)?;
        server.settings = settings.clone();
    }
    let reported = server.reported.clone();
    let pool = worker.pool(&server.slot.pool().key.clone());
    pool.set_welcome(settings.clone(), reported.clone());
    pool.put(server, &worker.config(), Instant::now());
    Ok((settings, reported))
}
