//! LISTEN for many clients by one connection: per user, database and thread. A client's own server runs the LISTEN, so
//! that errors and transactions are the server's; once it is committed and this connection listens too, the client's
//! server is told to stop and is free for others. When the primary changes, the channels are taken up again on the next
//! one, and clients are told that they may have missed something.

use crate::account::Account;
use crate::channels::Channels;
use crate::obtain;
use crate::server::{self, Server};
use crate::session::ClientEntry;
use crate::settings::Settings;
use crate::worker::Worker;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;
use wire::backend;
use wire::build::{self, Complaint};
use wire::frame::{HEADER_BYTES, header};

/// Between attempts to get a connection.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Room that a read finds.
const READ_BYTES: usize = 16 << 10;
/// Longest message: a notification has at most 8,000 bytes, errors and notices may have more.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// The channel by which a client's own server and this connection agree on a moment: both hear what is said there in the
/// same place among all notifications. What came before it the client has from its own server, the rest from here.
pub const TAKEOVER_CHANNEL: &[u8] = b"stemma.takeover";
/// The channel on which a client that listens to it is told that notifications may be missing; the payload is the epoch.
const GAP_CHANNEL: &[u8] = b"stemma.gap";

/// The channels of a kind of clients.
#[derive(Default)]
pub struct Listener {
    inner: RefCell<Inner>,
    /// Other channels are wanted.
    wanted: Notify,
    /// The server listens to other channels, or could not be reached.
    told: Notify,
}

/// The word that is said at the moment of a takeover; it is like no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word([u8; 16]);

impl Word {
    /// One that was never said.
    pub fn random() -> Word {
        Word(crate::random())
    }

    /// What a server that listens for a client is told, so that it and the listener hear the word.
    pub fn sql(self) -> String {
        let channel = String::from_utf8_lossy(TAKEOVER_CHANNEL);
        format!("LISTEN \"{channel}\"; NOTIFY \"{channel}\", '{self}'")
    }

    /// Whether this notification is that word, without its head.
    pub fn is_said_by(self, notification: &[u8]) -> bool {
        backend::notification(notification)
            .is_ok_and(|(channel, payload)| channel == TAKEOVER_CHANNEL && payload == self.to_string().as_bytes())
    }
}

impl std::fmt::Display for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

struct Subscriber {
    client: Rc<ClientEntry>,
    /// Until this is said its own server listens for it.
    until: Option<Word>,
}

#[derive(Default)]
struct Inner {
    clients: BTreeMap<Box<[u8]>, Vec<Subscriber>>,
    /// What the server listens to.
    in_force: BTreeSet<Box<[u8]>>,
    /// Clients for whom it was listened until that ended, and is not again yet.
    lapsed: BTreeMap<u32, Rc<ClientEntry>>,
    running: bool,
    /// Attempts that came to nothing.
    failures: u64,
}

/// Why the connection is not used any more.
enum Done {
    /// Nobody listens.
    Unwanted(Box<Server>),
    /// It is gone, or of the past.
    Lost(String),
}

impl Listener {
    /// From now on `client` listens to `new` in place of `old`; to what is new of it once the word is said, where one is
    /// given.
    pub fn change(&self, client: &Rc<ClientEntry>, old: &Channels, new: &Channels, until: Option<Word>) {
        let mut inner = self.inner.borrow_mut();
        for name in old.iter().filter(|name| !new.has(name)) {
            if let Some(clients) = inner.clients.get_mut(name) {
                clients.retain(|known| known.client.pid != client.pid);
                if clients.is_empty() {
                    inner.clients.remove(name);
                }
            }
        }
        for name in new.iter().filter(|name| !old.has(name)) {
            let subscriber = Subscriber { client: client.clone(), until };
            inner.clients.entry(name.into()).or_default().push(subscriber);
        }
        if new.is_empty() {
            inner.lapsed.remove(&client.pid);
        }
        drop(inner);
        self.wanted.notify_one();
    }

    /// The client was listening elsewhere until now: it misses what comes until its channels are listened to here.
    pub fn lapse(&self, client: &Rc<ClientEntry>) {
        self.inner.borrow_mut().lapsed.insert(client.pid, client.clone());
        self.wanted.notify_one();
    }

    /// Sees to it that somebody listens.
    pub fn tend(self: &Rc<Self>, worker: &Rc<Worker>, account: &Rc<Account>) {
        if !std::mem::replace(&mut self.inner.borrow_mut().running, true) {
            tokio::task::spawn_local(self.clone().run(worker.clone(), account.clone()));
        }
    }

    /// Waits until the server listens to all of these. `false`: it cannot be reached now.
    pub async fn in_force(&self, channels: &Channels) -> bool {
        let failures = self.inner.borrow().failures;
        loop {
            let mut told = std::pin::pin!(self.told.notified());
            told.as_mut().enable();
            {
                let inner = self.inner.borrow();
                if channels.iter().all(|name| inner.in_force.contains(name)) {
                    return true;
                }
                if inner.failures != failures {
                    return false;
                }
            }
            told.await;
        }
    }

    async fn run(self: Rc<Self>, worker: Rc<Worker>, account: Rc<Account>) {
        loop {
            if self.inner.borrow().clients.is_empty() {
                break;
            }
            let done = match obtain::obtain(&worker, || account.primary(&worker)).await {
                Ok(server) => self.listen(&worker, server).await,
                Err(failure) => Done::Lost(format!("{failure:?}")),
            };
            let heard = std::mem::take(&mut self.inner.borrow_mut().in_force);
            match done {
                Done::Unwanted(server) => worker.put_back(server),
                Done::Lost(why) => {
                    tracing::info!(user = account.user, database = account.database, why, "nobody listens now");
                    self.lost(&heard);
                    // It did not come so far: trying it again at once would be no different.
                    if heard.is_empty() {
                        let _ = timeout(RETRY_PAUSE, worker.news.notified()).await;
                    }
                }
            }
        }
        let mut inner = self.inner.borrow_mut();
        inner.running = false;
        inner.lapsed.clear();
    }

    /// These channels are not listened to any more.
    fn lost(&self, heard: &BTreeSet<Box<[u8]>>) {
        let mut inner = self.inner.borrow_mut();
        let Inner { clients, lapsed, failures, .. } = &mut *inner;
        for subscriber in heard.iter().filter_map(|name| clients.get(name)).flatten() {
            lapsed.insert(subscriber.client.pid, subscriber.client.clone());
        }
        // No word will be heard that was said meanwhile.
        clients.values_mut().flatten().for_each(|subscriber| subscriber.until = None);
        *failures += 1;
        drop(inner);
        self.told.notify_waiters();
    }

    /// Listens by one connection for as long as it is good.
    async fn listen(&self, worker: &Rc<Worker>, mut server: Box<Server>) -> Done {
        let pool = worker.pool(&server.slot.pool().key.clone());
        // It may have another client's encoding.
        let plain = Arc::<Settings>::default();
        if let Some(sql) = plain.difference(&server.settings) {
            match timeout(worker.config().connect_timeout, server::ask(&mut server, &sql)).await {
                Ok(Ok(_)) => server.settings = plain,
                Ok(Err(error)) => return Done::Lost(format!("{error:?}")),
                Err(_) => return Done::Lost("the server did not answer in time".into()),
            }
        }
        let (mut buffer, mut used) = (vec![0; READ_BYTES], 0);
        loop {
            // Not in the middle of a message: the answer would be taken for its rest.
            if used == 0
                && let Err(why) = self.bring_up(worker, &mut server).await
            {
                return Done::Lost(why);
            }
            if used == 0 && self.inner.borrow().in_force.is_empty() {
                return Done::Unwanted(server);
            }
            if buffer.len() - used < READ_BYTES {
                buffer.resize(used + READ_BYTES, 0);
            }
            let superseded = async {
                while !pool.is_retired() && !pool.shared.is_stale_since(server.born) {
                    worker.news.notified().await;
                }
            };
            let stream = &mut server.stream;
            let read = tokio::select! {
                biased;
                () = superseded => return Done::Lost("another server is the one to ask".into()),
                () = self.wanted.notified() => continue,
                read = std::future::poll_fn(|context| stream.poll_read(context, &mut buffer[used..])) => read,
            };
            match read {
                Ok(0) => return Done::Lost("the server closed the connection".into()),
                Ok(read) => used += read,
                Err(error) => return Done::Lost(error.to_string()),
            }
            match self.take_in(worker, &buffer[..used]) {
                Ok(done) => {
                    buffer.copy_within(done..used, 0);
                    used -= done;
                }
                Err(why) => return Done::Lost(why),
            }
        }
    }

    /// Takes in whole messages that came by themselves; how many bytes they were.
    fn take_in(&self, worker: &Worker, input: &[u8]) -> Result<usize, String> {
        let mut at = 0;
        while let Some(head) = header(&input[at..]).map_err(|malformed| malformed.to_string())? {
            if head.total() > MESSAGE_BYTES_MAX {
                return Err("a message that is too long".into());
            }
            let Some(body) = input.get(at + HEADER_BYTES..at + head.total()) else { break };
            match head.tag {
                b'A' => self.deliver(worker, body),
                b'N' | b'S' => {}
                b'E' => return Err(backend::error_fields(body).message),
                tag => return Err(format!("message {:?} came where nothing was asked", char::from(tag))),
            }
            at += head.total();
        }
        Ok(at)
    }

    /// Has the server listen to what is wanted now, and to nothing else.
    async fn bring_up(&self, worker: &Worker, server: &mut Server) -> Result<(), String> {
        let (wanted, sql) = {
            let mut inner = self.inner.borrow_mut();
            let mut wanted: BTreeSet<Box<[u8]>> = inner.clients.keys().cloned().collect();
            if !wanted.is_empty() {
                wanted.insert(TAKEOVER_CHANNEL.into());
            }
            let mut sql = String::new();
            let gone = inner.in_force.difference(&wanted).map(|name| ("UNLISTEN", name));
            let new = wanted.difference(&inner.in_force).map(|name| ("LISTEN", name));
            for (word, name) in gone.chain(new) {
                let name = String::from_utf8_lossy(name).replace('"', "\"\"");
                sql.push_str(&format!("{word} \"{name}\";"));
            }
            // What is given up is not listened to from now on, whatever is wanted again by the time that it is done.
            inner.in_force.retain(|name| wanted.contains(name));
            (wanted, sql)
        };
        if !sql.is_empty() {
            let limit = worker.config().connect_timeout;
            let asked = server::ask_and_hear(server, &sql, |body| self.deliver(worker, body));
            match timeout(limit, asked).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(format!("{error:?}")),
                Err(_) => return Err("the server did not answer in time".into()),
            }
        }
        let mut inner = self.inner.borrow_mut();
        inner.in_force = wanted;
        let lapsed = std::mem::take(&mut inner.lapsed);
        drop(inner);
        if !sql.is_empty() {
            self.told.notify_waiters();
        }
        if !lapsed.is_empty() {
            self.tell_of_gap(worker, &lapsed);
        }
        Ok(())
    }

    fn deliver(&self, worker: &Worker, body: &[u8]) {
        // Behind the number of the process that notified. It is the server's, not the one that a client was told when it
        // logged in: who used that process cannot be known for sure, and who is wrongly named would not listen.
        let Ok((channel, _)) = backend::notification(body) else { return };
        let mut inner = self.inner.borrow_mut();
        if channel == TAKEOVER_CHANNEL {
            for subscriber in inner.clients.values_mut().flatten() {
                subscriber.until.take_if(|word| word.is_said_by(body));
            }
        }
        let Some(subscribers) = inner.clients.get(channel) else { return };
        let mut message = Vec::with_capacity(HEADER_BYTES + body.len());
        build::message(&mut message, b'A', |out| out.extend_from_slice(body));
        let hearing = subscribers.iter().filter(|subscriber| subscriber.until.is_none());
        let clients: Vec<_> = hearing.map(|subscriber| subscriber.client.clone()).collect();
        drop(inner);
        worker.global.stats.notified(clients.len());
        clients.iter().for_each(|client| client.post(&message));
    }

    /// Tells who listened that they may have missed something.
    fn tell_of_gap(&self, worker: &Worker, clients: &BTreeMap<u32, Rc<ClientEntry>>) {
        let epoch = worker.topology().epoch;
        tracing::info!(clients = clients.len(), %epoch, "listening again; notifications may be missing");
        let mut notice = Vec::new();
        let complaint = Complaint {
            severity: "NOTICE",
            sqlstate: "01000",
            message: "notifications may have been missed while the server was changed",
            detail: "",
            hint: "look at what they would have told of; who listens to \"stemma.gap\" is notified there as well",
        };
        build::notice(&mut notice, &complaint);
        clients.values().for_each(|client| client.post(&notice));
        worker.global.stats.gap(clients.len());
        let mut message = Vec::new();
        build::message(&mut message, b'A', |out| {
            out.extend_from_slice(&0u32.to_be_bytes());
            for text in [GAP_CHANNEL, epoch.to_string().as_bytes()] {
                out.extend_from_slice(text);
                out.push(0);
            }
        });
        let inner = self.inner.borrow();
        let asked = inner.clients.get(GAP_CHANNEL).into_iter().flatten().map(|subscriber| &subscriber.client);
        asked.filter(|client| clients.contains_key(&client.pid)).for_each(|client| client.post(&message));
    }
}
