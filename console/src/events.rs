//! What happens in the cluster, as server-sent events, and the topology that they keep up to date.
//!
//! What to tell is decided by `Follower`, a machine without clock or network: it compares what one client was told with
//! what is known now. A client that reads slowly misses no history: the next comparison has all of it, and of what is
//! only a state (who is primary, the topology) it gets the newest.

use crate::Shared;
use crate::patroni::known_state;
use crate::problem::{Problem, Refusal};
use crate::request::{Query, flag};
use crate::server::Limits;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::stream::{BoxStream, Stream, StreamExt};
use model::failover::{Failover, FailoverKind, FailoverPhase};
use model::limits::EVENT_CLIENTS_MAX;
use model::state::HistoryEvent;
use model::{ClusterState, ClusterStatus, Epoch, Millis, NodeName, PrimaryNow, Topology, Trouble, WallTime};
use serde::Serialize;
use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Where nothing happens, a comment line says this often that the connection lives.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// Lag alone is told this often, unless a client asks for another interval.
const LAG_INTERVAL: Millis = Millis(1_000);
/// The shortest interval that may be asked for.
const LAG_INTERVAL_MIN: Millis = Millis(50);
/// Longest name of a router.
const ROUTER_NAME_MAX: usize = 64;
/// A stream ends by itself this long before its connection would be cut: it ends whole, and the client asks again.
const END_BEFORE_CUT: Millis = Millis::from_secs(10);

/// The kinds of events, as named in `only=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    History,
    Primary,
    Failover,
    Topology,
}

impl Kind {
    const ALL: [Kind; 4] = [Kind::History, Kind::Primary, Kind::Failover, Kind::Topology];

    fn as_str(self) -> &'static str {
        match self {
            Kind::History => "history",
            Kind::Primary => "primary",
            Kind::Failover => "failover",
            Kind::Topology => "topology",
        }
    }
}

/// One phase of a change of primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct PhaseNews {
    /// `fo_` and the epoch.
    id: String,
    epoch: Epoch,
    kind: &'static str,
    phase: FailoverPhase,
    from: Option<NodeName>,
    winner: Option<NodeName>,
    because: String,
    at: WallTime,
}

/// Events that this node has not any more, or never had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Gap {
    /// The last one that the client has.
    since: u64,
    /// The oldest that is kept; absent where none is.
    oldest: Option<u64>,
    /// The newest that there is.
    newest: u64,
    text: String,
}

/// Something to be told.
#[derive(Clone, Debug, PartialEq)]
enum News {
    Gap(Gap),
    History(HistoryEvent),
    Primary(PrimaryNow),
    Failover(PhaseNews),
    Topology(Box<Topology>),
}

impl News {
    fn into_event(self) -> Event {
        let event = Event::default();
        let made = match self {
            News::Gap(gap) => event.event("gap").json_data(gap),
            // The only kind that carries an id: it is what a client resumes from.
            News::History(what) => event.id(what.seq.to_string()).event("history").json_data(what),
            News::Primary(primary) => event.event("primary").json_data(primary),
            News::Failover(phase) => event.event("failover").json_data(phase),
            News::Topology(topology) => event.event("topology").json_data(*topology),
        };
        made.unwrap_or_else(|error| Event::default().comment(format!("not written: {error}")))
    }
}

/// What one client was told.
struct Follower {
    only: BTreeSet<Kind>,
    /// The last event of the history that it has.
    seq: u64,
    /// Whether it was said that some are missing.
    joined: bool,
    primary: Option<PrimaryNow>,
    /// The change of primary told last, and how many of its phases.
    phases: (Epoch, usize),
    topology: Option<(Topology, Millis)>,
    lag_interval: Millis,
}

impl Follower {
    /// A client that has the history up to `since`, or asks for what happens from now on.
    fn new(only: BTreeSet<Kind>, since: Option<u64>, state: &ClusterState) -> Follower {
        let newest = state.history.last().map_or(0, |event| event.seq);
        let ended = state.failovers.last().map_or((Epoch(0), 0), |last| (last.epoch, last.phases.len()));
        Follower {
            only,
            seq: since.unwrap_or(newest),
            joined: false,
            primary: None,
            phases: ended,
            topology: None,
            lag_interval: LAG_INTERVAL,
        }
    }

    /// All that this client has not been told. `age` is the time since it came.
    fn news(&mut self, state: &ClusterState, status: &ClusterStatus, age: Millis) -> Vec<News> {
        let mut news = Vec::new();
        // What happened comes before what is so now: who reads in order never sees a primary it has not heard of.
        if self.only.contains(&Kind::History) {
            self.history(state, &mut news);
        }
        if self.only.contains(&Kind::Failover) {
            self.failovers(state, &mut news);
        }
        let primary = PrimaryNow::of(state);
        if self.only.contains(&Kind::Primary) && self.primary.as_ref() != Some(&primary) {
            self.primary = Some(primary.clone());
            news.push(News::Primary(primary));
        }
        if self.only.contains(&Kind::Topology) {
            self.topology(Topology::of(state, status), age, &mut news);
        }
        news
    }

    fn history(&mut self, state: &ClusterState, news: &mut Vec<News>) {
        let oldest = state.history.first().map(|event| event.seq);
        let newest = state.history.last().map_or(0, |event| event.seq);
        if newest < self.seq {
            let text = "this cluster's history ends before the event you have: the store was made anew or restored";
            news.push(News::Gap(Gap { since: self.seq, oldest, newest, text: text.to_owned() }));
            // All there is: of a history that is another one, nothing was seen.
            self.seq = 0;
        } else if oldest.is_some_and(|oldest| oldest > self.seq + 1) && (self.seq > 0 || self.joined) {
            let text = "events between were dropped: only the newest are kept";
            news.push(News::Gap(Gap { since: self.seq, oldest, newest, text: text.to_owned() }));
        }
        self.joined = true;
        let unseen = state.history.iter().filter(|event| event.seq > self.seq).cloned();
        news.extend(unseen.map(News::History));
        self.seq = newest;
    }

    fn failovers(&mut self, state: &ClusterState, news: &mut Vec<News>) {
        for failover in state.failovers.iter().chain(&state.failover) {
            let told = match failover.epoch.cmp(&self.phases.0) {
                std::cmp::Ordering::Less => continue,
                std::cmp::Ordering::Equal => self.phases.1,
                std::cmp::Ordering::Greater => 0,
            };
            news.extend(failover.phases.iter().skip(told).map(|phase| {
                News::Failover(PhaseNews { phase: phase.phase, at: phase.at, ..phase_news(state, failover) })
            }));
            self.phases = (failover.epoch, failover.phases.len());
        }
    }

    fn topology(&mut self, topology: Topology, age: Millis, news: &mut Vec<News>) {
        let due = match &self.topology {
            None => true,
            Some((told, at)) => {
                told.differs_in_shape(&topology)
                    || (*told != topology && age.0.saturating_sub(at.0) >= self.lag_interval.0)
            }
        };
        if due {
            self.topology = Some((topology.clone(), age));
            news.push(News::Topology(Box::new(topology)));
        }
    }
}

fn phase_news(state: &ClusterState, failover: &Failover) -> PhaseNews {
    let name = |id| state.members.get(&id).map(|member| member.name.clone());
    PhaseNews {
        id: failover.id.clone(),
        epoch: failover.epoch,
        kind: match failover.kind {
            FailoverKind::Automatic => "automatic",
            FailoverKind::Switchover { .. } => "switchover",
            FailoverKind::Forced { .. } => "forced",
        },
        phase: failover.phase,
        from: name(failover.from),
        winner: failover.winner.and_then(name),
        because: failover.because.clone(),
        at: failover.started_at,
    }
}

/// Room for those who follow.
#[derive(Clone)]
pub(crate) struct Places {
    free: Arc<Semaphore>,
    /// How long one stream may last.
    life: Duration,
}

impl Places {
    pub(crate) fn new(limits: &Limits) -> Places {
        let life = Millis(limits.connection.0.saturating_sub(END_BEFORE_CUT.0)).duration();
        // Never so many that nobody could ask anything else any more.
        let most = EVENT_CLIENTS_MAX.min(limits.connections_max / 2);
        Places { free: Arc::new(Semaphore::new(most)), life }
    }

    fn take(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.free.clone().try_acquire_owned().map_err(|_| {
            let trouble = Trouble::unreachable(
                "as many programs as may follow this node's events",
                "ask another node, or again in a moment",
            );
            Refusal::with_status(trouble, StatusCode::SERVICE_UNAVAILABLE)
        })
    }
}

/// One client's stream.
struct Telling {
    backend: Shared,
    changes: BoxStream<'static, ()>,
    follower: Follower,
    pending: VecDeque<News>,
    since: Instant,
    until: Instant,
    follow: bool,
    _place: OwnedSemaphorePermit,
    /// Where it is a router that follows.
    _seat: Option<Box<dyn Send>>,
}

impl Telling {
    async fn next(mut self) -> Option<(News, Telling)> {
        loop {
            if let Some(news) = self.pending.pop_front() {
                return Some((news, self));
            }
            if !self.follow {
                return None;
            }
            // Lag that moved while it was not due must be told without another change, hence the timer.
            tokio::select! {
                changed = self.changes.next() => changed?,
                () = tokio::time::sleep(self.follower.lag_interval.duration()) => {}
                () = tokio::time::sleep_until(self.until) => return None,
            }
            self.look();
        }
    }

    fn look(&mut self) {
        if let Some(state) = self.backend.state() {
            let age = Millis(u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX));
            self.pending.extend(self.follower.news(&state, &self.backend.status(), age));
        }
    }
}

fn kinds(query: &Query) -> Result<BTreeSet<Kind>, Refusal> {
    let Some(text) = query.get("only") else { return Ok(Kind::ALL.into()) };
    let read = |word: &str| Kind::ALL.into_iter().find(|kind| kind.as_str() == word);
    let kinds: Option<BTreeSet<Kind>> = text.split(',').map(read).collect();
    let hint = "separate with commas: history, primary, failover, topology";
    kinds.ok_or_else(|| Trouble::bad_request("`only` names a kind of event that there is not", hint).into())
}

/// `Last-Event-ID` is what a client sends by itself when it comes back, and so newer than the address it first asked.
fn since(query: &Query, headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let read = |text: &str| {
        let refused = || Trouble::bad_request("the event to go on from is not a number", "send the seq of an event");
        text.parse::<u64>().map_err(|_| Refusal::from(refused()))
    };
    last.or_else(|| query.get("since")).map(read).transpose()
}

/// What happens, as server-sent events. `history` events carry their number as `id`; `since` or `Last-Event-ID` goes on
/// after one (0 for all that are kept), a `gap` event says honestly when some are missing. `primary`, `failover` and
/// `topology` tell how it is at the beginning and whenever it changes. `only` names the kinds wanted; `follow=false`
/// ends after what is known now. `lag_ms` asks for lag alone to be told more often than once a second. A router gives
/// itself a name as `router`: while it follows, a planned switchover waits a little for it to hold new transactions.
#[utoipa::path(get, path = "/v1/events", tag = "v1",
    params(("since" = Option<u64>, Query), ("only" = Option<String>, Query), ("follow" = Option<bool>, Query),
        ("lag_ms" = Option<u64>, Query), ("router" = Option<String>, Query), ("Last-Event-ID" = Option<u64>, Header)),
    responses((status = 200, content_type = "text/event-stream", body = String), (status = 400, body = Problem),
        (status = 503, body = Problem)))]
pub(crate) async fn events(
    State(backend): State<Shared>,
    Extension(places): Extension<Places>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Refusal> {
    let query = Query::of(uri.query());
    let (only, since) = (kinds(&query)?, since(&query, &headers)?);
    let follow = query.get("follow").is_none() || flag(&query, "follow")?;
    let lag_interval = match query.get("lag_ms").map(str::parse::<u64>) {
        None => LAG_INTERVAL,
        Some(Ok(millis)) => Millis(millis.max(LAG_INTERVAL_MIN.0)),
        Some(Err(_)) => return Err(Trouble::bad_request("`lag_ms` is not a number", "milliseconds, from 50").into()),
    };
    let router = router_name(&query)?;
    let state = known_state(&backend)?;
    let now = Instant::now();
    let mut telling = Telling {
        _seat: router.and_then(|name| backend.router_joins(name)),
        // Before the first look: what changes in between wakes the stream.
        changes: backend.changes(),
        follower: Follower { lag_interval, ..Follower::new(only, since, &state) },
        pending: VecDeque::new(),
        since: now,
        until: now + places.life,
        follow,
        _place: places.take()?,
        backend,
    };
    telling.look();
    let stream = futures_util::stream::unfold(telling, Telling::next);
    let mut response = sse(stream.map(News::into_event)).into_response();
    // Proxies that gather an answer before they pass it on would hold events back.
    response.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn sse(events: impl Stream<Item = Event> + Send + 'static) -> impl IntoResponse {
    let events = events.map(Ok::<Event, Infallible>);
    Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("heartbeat"))
}

fn router_name(query: &Query) -> Result<Option<&str>, Refusal> {
    let Some(name) = query.get("router") else { return Ok(None) };
    if name.is_empty() || name.len() > ROUTER_NAME_MAX {
        return Err(Trouble::bad_request("`router` is no name", "1 to 64 letters and digits").into());
    }
    Ok(Some(name))
}

/// Where the servers are, what each is for, and how far each is: all that a router needs. A router that follows the
/// events says with `router` and `holds` that it sends nothing new to the primary before that epoch, and that nothing of
/// its clients is open there.
#[utoipa::path(get, path = "/v1/topology", tag = "v1",
    params(("router" = Option<String>, Query), ("holds" = Option<u64>, Query)),
    responses((status = 200, body = Topology), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(crate) async fn topology(State(backend): State<Shared>, uri: Uri) -> Result<Json<Topology>, Refusal> {
    let query = Query::of(uri.query());
    if let (Some(name), Some(epoch)) = (router_name(&query)?, query.get("holds").and_then(|text| text.parse().ok())) {
        backend.router_holds(name, Epoch(epoch));
    }
    Ok(Json(Topology::of(known_state(&backend)?.as_ref(), &backend.status())))
}
