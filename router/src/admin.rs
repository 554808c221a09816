//! The console: a database named `stemma` (or `pgbouncer`) that exists only here, for those whom the configuration
//! lists. Everything is said over both protocols, so that any driver can ask.

use crate::limits::Whose;
use crate::pool::{PoolKey, Purpose};
use crate::refusal::Refusal;
use crate::server::{Row, read_message};
use crate::session::ClientEntry;
use crate::stats::{Routed, Stage};
use crate::stream::Stream;
use crate::topology::ReplicaUse;
use crate::worker::{Mail, Worker};
use routing::Token;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::sync::oneshot;
use wire::build::{self, ColumnType};
use wire::frontend::{self, Target};

/// How long PAUSE waits for open transactions.
const PAUSE_WAIT: Duration = Duration::from_secs(60);
/// Between two looks at them.
const PAUSE_LOOK: Duration = Duration::from_millis(10);

/// What one client is doing, as its worker tells.
#[derive(Clone, Debug)]
pub struct ClientRow {
    pid: u32,
    worker: usize,
    user: String,
    database: String,
    connected: Duration,
    server: Option<(String, u32)>,
    pins: String,
    channels: String,
    waits: Option<Duration>,
    token: Option<String>,
    dirty: bool,
}

impl ClientRow {
    /// As of now.
    pub fn of(entry: &ClientEntry, worker: &Worker) -> ClientRow {
        let now = Instant::now();
        let memory = entry.memory.get();
        let cluster = worker.topology().cluster.clone();
        let point = worker.reads.borrow().point(memory);
        ClientRow {
            pid: entry.pid,
            worker: worker.index,
            user: entry.account.user.clone(),
            database: entry.account.database.clone(),
            connected: now.duration_since(entry.since),
            server: entry.running.borrow().as_ref().map(|key| (key.node.to_string(), key.pid)),
            pins: entry.pins.borrow().iter().map(|pin| pin.as_str()).collect::<Vec<_>>().join(", "),
            channels: entry.channels.borrow().to_string(),
            waits: entry.waits.get().map(|since| now.duration_since(since)),
            token: point.map(|point| Token { cluster, point }.to_string()),
            dirty: memory.is_dirty(),
        }
    }
}

/// What may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Pools,
    Clients,
    Servers,
    Nodes,
    /// Users, or databases.
    Bounds(Whose),
    Pins,
    Listeners,
    Held,
    Routes,
    Tokens,
    Stats,
    Losses,
    Version,
    Pause,
    Resume,
    Reconnect,
    Reload,
    Kill(u32),
    /// What drivers send by themselves and need no answer for.
    Nothing,
}

fn parse(sql: &str) -> Result<Command, Refusal> {
    let words: Vec<String> = sql.trim().trim_end_matches(';').split_whitespace().map(str::to_ascii_lowercase).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(match words.as_slice() {
        ["show", "pools"] => Command::Pools,
        ["show", "clients"] => Command::Clients,
        ["show", "servers"] => Command::Servers,
        ["show", "nodes"] => Command::Nodes,
        ["show", "users"] => Command::Bounds(Whose::User),
        ["show", "databases"] => Command::Bounds(Whose::Database),
        ["show", "pins"] => Command::Pins,
        ["show", "listeners"] => Command::Listeners,
        ["show", "held"] => Command::Held,
        ["show", "routes"] => Command::Routes,
        ["show", "tokens"] => Command::Tokens,
        ["show", "stats"] => Command::Stats,
        ["show", "losses"] => Command::Losses,
        ["show", "version"] => Command::Version,
        ["pause"] => Command::Pause,
        ["resume"] => Command::Resume,
        ["reconnect"] => Command::Reconnect,
        ["reload"] => Command::Reload,
        ["kill", pid] if pid.parse::<u32>().is_ok() => Command::Kill(pid.parse().unwrap_or(0)),
        [] | ["begin" | "commit" | "rollback" | "set" | "discard", ..] => Command::Nothing,
        _ => {
            let refusal = Refusal::unsupported(format!("the console does not know `{}`", sql.trim()));
            return Err(refusal.sqlstate("42601").detail(
                "known are SHOW POOLS, CLIENTS, SERVERS, NODES, USERS, DATABASES, PINS, LISTENERS, HELD, ROUTES, TOKENS, STATS, LOSSES, VERSION; PAUSE, RESUME, RECONNECT, RELOAD, KILL <client>",
            ));
        }
    })
}

type Columns = &'static [(&'static str, ColumnType)];

impl Command {
    fn columns(self) -> Columns {
        use ColumnType::{Number, Text};
        match self {
            Command::Pools => &[
                ("database", Text),
                ("user", Text),
                ("node", Text),
                ("purpose", Text),
                ("cl_waiting", Number),
                ("sv_active", Number),
                ("sv_idle", Number),
                ("pool_mode", Text),
            ],
            Command::Clients => &[
                ("pid", Number),
                ("user", Text),
                ("database", Text),
                ("state", Text),
                ("node", Text),
                ("server_pid", Number),
                ("worker", Number),
                ("connected_s", Number),
            ],
            Command::Servers => &[("node", Text), ("purpose", Text), ("active", Number), ("idle", Number)],
            Command::Nodes => &[
                ("name", Text),
                ("role", Text),
                ("address", Text),
                ("healthy", Text),
                ("lag_bytes", Number),
                ("epoch", Number),
            ],
            Command::Bounds(_) => &[
                ("name", Text),
                ("pool_mode", Text),
                ("pool_size", Number),
                ("clients", Number),
                ("clients_max", Number),
                ("servers", Number),
                ("servers_max", Number),
            ],
            Command::Pins => &[("pid", Number), ("user", Text), ("database", Text), ("reasons", Text), ("node", Text)],
            Command::Listeners => &[("pid", Number), ("user", Text), ("database", Text), ("channels", Text)],
            Command::Held => &[("pid", Number), ("user", Text), ("database", Text), ("waits_ms", Number)],
            Command::Routes => &[("target", Text), ("reason", Text), ("requests", Number), ("meaning", Text)],
            Command::Tokens => &[("pid", Number), ("user", Text), ("database", Text), ("token", Text), ("state", Text)],
            Command::Stats => &[
                ("stage", Text),
                ("requests", Number),
                ("mean_us", Number),
                ("p50_us", Number),
                ("p90_us", Number),
                ("p99_us", Number),
            ],
            Command::Losses => &[("rule", Text), ("action", Text), ("clients", Number)],
            Command::Version => &[("version", Text)],
            Command::Pause
            | Command::Resume
            | Command::Reconnect
            | Command::Reload
            | Command::Kill(_)
            | Command::Nothing => &[],
        }
    }

    fn tag(self) -> &'static str {
        match self {
            Command::Pause => "PAUSE",
            Command::Resume => "RESUME",
            Command::Reconnect => "RECONNECT",
            Command::Reload => "RELOAD",
            Command::Kill(_) => "KILL",
            Command::Nothing => "SET",
            Command::Pools
            | Command::Clients
            | Command::Servers
            | Command::Nodes
            | Command::Bounds(_)
            | Command::Pins
            | Command::Listeners
            | Command::Held
            | Command::Routes
            | Command::Tokens
            | Command::Stats
            | Command::Losses
            | Command::Version => "SHOW",
        }
    }
}

fn text(value: impl ToString) -> Option<String> {
    Some(value.to_string())
}

async fn clients(worker: &Worker) -> Vec<ClientRow> {
    let mut rows = Vec::new();
    for mailbox in worker.global.mailboxes() {
        let (reply, answer) = oneshot::channel();
        mailbox.post(Mail::Survey(reply));
        rows.extend(answer.await.unwrap_or_default());
    }
    rows
}

fn purpose(purpose: Purpose) -> String {
    match purpose {
        Purpose::Write(epoch) => format!("write (epoch {epoch})"),
        Purpose::Read => "read".to_owned(),
    }
}

async fn rows(worker: &Worker, command: Command) -> Result<Vec<Row>, Refusal> {
    let config = worker.config();
    let mode = |key: &PoolKey| config.limits.pool_mode(&key.user, &key.database, config.mode).as_str();
    Ok(match command {
        Command::Pools => worker
            .global
            .all_pools()
            .iter()
            .map(|pool| {
                let (key, idle) = (&pool.key, pool.idle());
                let active = pool.total().saturating_sub(idle);
                let place = [text(&key.database), text(&key.user), text(&key.node), text(purpose(key.purpose))];
                let counts = [text(pool.waiting()), text(active), text(idle), text(mode(key))];
                place.into_iter().chain(counts).collect()
            })
            .collect(),
        Command::Servers => worker
            .global
            .all_pools()
            .iter()
            .map(|pool| {
                let active = pool.total().saturating_sub(pool.idle());
                vec![text(&pool.key.node), text(purpose(pool.key.purpose)), text(active), text(pool.idle())]
            })
            .collect(),
        Command::Clients => clients(worker).await.into_iter().map(client_row).collect(),
        Command::Pins => clients(worker)
            .await
            .into_iter()
            .filter(|row| !row.pins.is_empty())
            .map(|row| {
                let node = row.server.as_ref().map(|(node, _)| node.clone());
                vec![text(row.pid), text(row.user), text(row.database), text(row.pins), node]
            })
            .collect(),
        Command::Held => clients(worker)
            .await
            .into_iter()
            .filter_map(|row| {
                Some(vec![text(row.pid), text(&row.user), text(&row.database), text(row.waits?.as_millis())])
            })
            .collect(),
        Command::Nodes => nodes(worker),
        Command::Bounds(whose) => bounds(worker, whose),
        Command::Routes => {
            let row = |it: &Routed| vec![text(it.target), text(it.reason), text(it.count), text(it.text)];
            worker.global.stats.routed().iter().map(row).collect()
        }
        Command::Listeners => {
            let mut rows = clients(worker).await;
            rows.retain(|client| !client.channels.is_empty());
            rows.into_iter()
                .map(|client| vec![text(client.pid), text(client.user), text(client.database), text(client.channels)])
                .collect()
        }
        Command::Tokens => clients(worker).await.into_iter().map(token_row).collect(),
        Command::Stats => {
            let row = |stage: Stage| {
                let times = worker.global.stats.times(stage);
                let shares = [0.5, 0.9, 0.99].map(|share| text(times.quantile_micros(share)));
                [text(stage.as_str()), text(times.count()), text(times.mean_micros())]
                    .into_iter()
                    .chain(shares)
                    .collect()
            };
            Stage::ALL.map(row).to_vec()
        }
        Command::Losses => {
            let losses = worker.global.stats.losses().into_iter();
            losses.map(|(rule, action, count)| vec![text(rule), text(action), text(count)]).collect()
        }
        Command::Version => vec![vec![text(concat!("stemma router ", env!("CARGO_PKG_VERSION")))]],
        Command::Pause => {
            worker.global.set_paused(true);
            let deadline = Instant::now() + PAUSE_WAIT;
            while worker.global.all_pools().iter().any(|pool| pool.total() > pool.idle()) {
                if Instant::now() > deadline {
                    let refusal = Refusal::pool_exhausted("some transactions did not end; new ones stay held");
                    return Err(refusal.detail("RESUME lets them go on; SHOW CLIENTS says who is busy"));
                }
                tokio::time::sleep(PAUSE_LOOK).await;
            }
            Vec::new()
        }
        Command::Resume => {
            worker.global.set_paused(false);
            Vec::new()
        }
        Command::Reconnect => {
            for pool in worker.global.all_pools() {
                pool.reconnect();
            }
            // Who listens looks again.
            worker.global.topology.send_modify(|_| {});
            Vec::new()
        }
        Command::Reload => {
            worker.global.reloads.send_modify(|count| *count += 1);
            Vec::new()
        }
        Command::Kill(pid) => {
            worker.global.kill(pid);
            Vec::new()
        }
        Command::Nothing => Vec::new(),
    })
}

fn token_row(row: ClientRow) -> Row {
    let state = match (&row.token, row.dirty) {
        (Some(_), _) => "known",
        (None, true) => "not asked for yet",
        (None, false) => "none",
    };
    vec![text(row.pid), text(row.user), text(row.database), row.token, text(state)]
}

fn client_row(row: ClientRow) -> Row {
    let state = match (&row.server, row.waits) {
        (_, Some(_)) => "waiting",
        (Some(_), None) => "active",
        (None, None) => "idle",
    };
    let (node, server) = row.server.map_or((None, None), |(node, pid)| (Some(node), text(pid)));
    let place = [text(row.pid), text(row.user), text(row.database), text(state), node, server];
    place.into_iter().chain([text(row.worker), text(row.connected.as_secs())]).collect()
}

fn nodes(worker: &Worker) -> Vec<Row> {
    let topology = worker.topology();
    let mut rows = Vec::new();
    if let Some(primary) = &topology.primary {
        let place = [text(&primary.name), text("primary"), text(&primary.addr), text("yes")];
        rows.push(place.into_iter().chain([text(0), text(topology.epoch)]).collect());
    }
    for replica in &topology.replicas {
        let role = match replica.usage {
            ReplicaUse::Hot => "replica",
            ReplicaUse::Standby => "standby",
            ReplicaUse::Delayed => "delayed",
        };
        let healthy = if replica.healthy { "yes" } else { "no" };
        let place = [text(&replica.name), text(role), text(&replica.addr), text(healthy)];
        rows.push(
            place.into_iter().chain([replica.lag_bytes.map(|lag| lag.0.to_string()), text(topology.epoch)]).collect(),
        );
    }
    rows
}

fn bounds(worker: &Worker, whose: Whose) -> Vec<Row> {
    let config = worker.config();
    let rows = worker.global.ledger.usage(&config.limits, whose).into_iter().map(|it| {
        let mode = it.bounds.pool_mode.unwrap_or(config.mode).as_str();
        let size = it.bounds.pool_size.unwrap_or(config.pool_size);
        let most = |most: Option<usize>| most.map(|most| most.to_string());
        let clients = [text(it.clients), most(it.bounds.clients_max)];
        let place = [text(&it.name), text(mode), text(size)];
        place.into_iter().chain(clients).chain([text(it.servers), most(it.bounds.servers_max)]).collect()
    });
    rows.collect()
}

fn write_rows(out: &mut Vec<u8>, command: Command, rows: &[Row]) {
    for row in rows {
        build::data_row(out, row);
    }
    match command.tag() {
        "SHOW" => build::command_complete(out, &format!("SHOW {}", rows.len())),
        tag => build::command_complete(out, tag),
    }
}

/// Serves an administrator until they leave.
pub async fn serve(worker: Rc<Worker>, mut stream: Stream) -> std::io::Result<()> {
    let mut out = Vec::new();
    build::authentication_ok(&mut out);
    let told = [("server_version", "15.0"), ("client_encoding", "UTF8"), ("standard_conforming_strings", "on")];
    for (name, value) in
        told.into_iter().chain([("DateStyle", "ISO, MDY"), ("TimeZone", "UTC"), ("integer_datetimes", "on")])
    {
        build::parameter_status(&mut out, name.as_bytes(), value.as_bytes());
    }
    build::ready(&mut out, b'I');
    let (mut body, mut prepared, mut portal) = (Vec::new(), HashMap::<Vec<u8>, Command>::new(), Command::Nothing);
    let mut ignoring = false;
    loop {
        stream.write_all(&out).await?;
        stream.flush().await?;
        out.clear();
        let head = read_message(&mut stream, &mut body).await?;
        let answered: Result<(), Refusal> = match head.tag {
            b'X' => return Ok(()),
            b'S' => {
                ignoring = false;
                build::ready(&mut out, b'I');
                continue;
            }
            _ if ignoring => continue,
            b'Q' => {
                let answered = simple(&worker, &body, &mut out).await;
                if let Err(refusal) = answered {
                    refusal.write("ERROR", &mut out);
                }
                build::ready(&mut out, b'I');
                continue;
            }
            b'P' => frontend::parse(&body).map_err(malformed).and_then(|parsed| {
                let command = parse(&String::from_utf8_lossy(parsed.sql))?;
                prepared.insert(parsed.name.to_vec(), command);
                build::parse_complete(&mut out);
                Ok(())
            }),
            b'B' => {
                let name = frontend::bind_head(&body).map(|head| head.statement.to_vec()).unwrap_or_default();
                portal = prepared.get(&name).copied().unwrap_or(Command::Nothing);
                build::bind_complete(&mut out);
                Ok(())
            }
            b'D' => frontend::target(&body).map_err(malformed).map(|target| {
                let command = match target {
                    Target::Statement(name) => {
                        build::no_parameters(&mut out);
                        prepared.get(name).copied().unwrap_or(Command::Nothing)
                    }
                    Target::Portal(_) => portal,
                };
                match command.columns() {
                    [] => build::no_data(&mut out),
                    columns => build::row_description(&mut out, columns),
                }
            }),
            b'E' => rows(&worker, portal).await.map(|rows| write_rows(&mut out, portal, &rows)),
            b'C' => {
                build::close_complete(&mut out);
                Ok(())
            }
            b'H' => Ok(()),
            _ => return Ok(()),
        };
        if let Err(refusal) = answered {
            refusal.write("ERROR", &mut out);
            ignoring = true;
        }
    }
}

fn malformed(bad: wire::Malformed) -> Refusal {
    Refusal::protocol("the message is not understood").detail(bad.0)
}

async fn simple(worker: &Worker, body: &[u8], out: &mut Vec<u8>) -> Result<(), Refusal> {
    let sql = frontend::query(body).map_err(malformed)?;
    for part in String::from_utf8_lossy(sql).split(';').filter(|part| !part.trim().is_empty()) {
        let command = parse(part)?;
        let rows = rows(worker, command).await?;
        if !command.columns().is_empty() {
            build::row_description(out, command.columns());
        }
        write_rows(out, command, &rows);
    }
    if out.is_empty() {
        build::empty_query(out);
    }
    Ok(())
}

/// Whether a worker must not start new statements: they are held until RESUME.
pub fn is_paused(worker: &Worker) -> bool {
    worker.global.paused.load(SeqCst)
}
