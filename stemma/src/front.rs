//! The router of a node, and the router on its own: who tells it of the servers.

use crate::client::{Address, Client, authority_of};
use crate::router_file::{self, Section};
use futures_util::StreamExt;
use keeper::Keeper;
use model::{LagBytes, Millis, ReplicaKind, Role, Trouble};
use router::topology::{Primary, Replica, ReplicaUse, Switching};
use router::{Meter, NodeAddr, Router, Topology};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Where the file of a router on its own is unless the command line says otherwise.
const DEFAULT_PATH: &str = "/etc/stemma/router.toml";
/// How often a router wants to be told of positions alone, in milliseconds.
const POSITIONS_EVERY_MS: u64 = 100;
/// A node that says nothing for so long, not even that it lives, is asked anew.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Before a node is asked anew.
const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// How long a node may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// The servers of a node's view. Who takes writes is what consensus says: whether that server answers shows soon enough.
pub fn topology(told: &model::Topology) -> Topology {
    let (cluster, lineage) = (told.cluster.clone(), told.lineage.clone());
    let mut found = Topology { cluster, epoch: told.primary.epoch, lineage, ..Topology::default() };
    let primary = &told.primary;
    if let (Some(name), Some(host), Some(port)) = (&primary.name, &primary.host, primary.port) {
        let addr = NodeAddr::tcp(host.clone(), port);
        found.primary = Some(Primary { name: name.to_string(), addr, site: primary.site.clone() });
    }
    found.switching = told.switching.as_ref().map(|switching| Switching {
        epoch: switching.epoch,
        to: switching.to.iter().filter_map(|address| NodeAddr::parse(address)).collect(),
    });
    let sockets = told.nodes.iter().filter_map(|node| Some((node, node.sockets.clone()?)));
    found.sockets = sockets.map(|(node, sockets)| (NodeAddr::tcp(node.host.clone(), node.port), sockets)).collect();
    for node in told.nodes.iter().filter(|node| node.role == Role::Replica && node.port != 0) {
        found.replicas.push(Replica {
            id: node.id,
            name: node.name.to_string(),
            addr: NodeAddr::tcp(node.host.clone(), node.port),
            usage: match node.kind {
                ReplicaKind::Hot => ReplicaUse::Hot,
                ReplicaKind::Standby => ReplicaUse::Standby,
                ReplicaKind::Delayed => ReplicaUse::Delayed,
            },
            site: Some(node.site.clone()),
            healthy: node.healthy,
            counted: node.counted,
            replayed: node.replayed,
            timeline: node.timeline,
            position_age: node.sample_age_ms.map(Millis),
            incarnation: node.started_at.map_or(0, |started| started.0.unsigned_abs()),
            lag_bytes: node.lag_bytes.map(LagBytes),
            lag: node.lag_ms.map(Millis),
        });
    }
    found
}

/// How late in the story of the cluster a view is. Within one epoch a primary serves, then it may be asked to stop for
/// another one, and then nobody serves until the next epoch.
fn lateness(view: &Topology) -> (model::Epoch, u8) {
    let stage = match (&view.primary, &view.switching) {
        (Some(_), None) => 0,
        (_, Some(_)) => 1,
        // Where no primacy has begun yet, the first one is to come under this epoch.
        (None, None) if view.lineage.is_empty() => 0,
        (None, None) => 2,
    };
    (view.epoch, stage)
}

/// A router that is told by the keeper of its own node.
pub async fn beside(keeper: &Arc<Keeper>, section: &Section) -> Result<Router, Trouble> {
    let config = section.config(Some(&keeper.config().site))?;
    let view = |keeper: &Keeper| {
        let (state, status) = (keeper.state()?, keeper.status()?);
        Some(topology(&model::Topology::of(&state, &status)))
    };
    let (sender, receiver) = watch::channel(view(keeper).unwrap_or_default());
    let router = Router::start(config, receiver).await?;
    let (keeper, mut held, name) = (keeper.clone(), router.held(), router_name());
    tokio::spawn(async move {
        let _seat = keeper.router_joins(&name);
        let mut changes = keeper.changes();
        loop {
            tokio::select! {
                change = changes.next() => if change.is_none() || sender.is_closed() { return },
                news = held.changed() => match news {
                    Ok(()) => keeper.router_holds(&name, *held.borrow_and_update()),
                    Err(_) => return,
                },
            }
            if let Some(news) = view(&keeper) {
                publish(&sender, news);
            }
        }
    });
    tracing::info!(addresses = ?router.addresses(), "router listens");
    Ok(router)
}

/// What a router calls itself before keepers. Nobody else can guess it, and so not speak for it.
fn router_name() -> String {
    router::random::<12>().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn publish(sender: &watch::Sender<Topology>, news: Topology) {
    sender.send_if_modified(|known| {
        // A view of an earlier moment is a late one.
        let timely = lateness(&news) >= lateness(known);
        if timely {
            *known = news;
        }
        timely
    });
}

/// Runs a router on its own until it is told to stop.
pub async fn alone(path: Option<&Path>) -> Result<(), Trouble> {
    let path = path.unwrap_or(Path::new(DEFAULT_PATH));
    crate::daemon::begin();
    let file = router_file::load(path)?;
    let addresses: Vec<Address> = file
        .nodes
        .iter()
        .map(|url| Ok(Address { authority: authority_of(url)?, token: None }))
        .collect::<Result<_, Trouble>>()?;
    let (sender, receiver) = watch::channel(Topology::default());
    let sender = Arc::new(sender);
    let router = Router::start(file.router.config(None)?, receiver).await?;
    tracing::info!(addresses = ?router.addresses(), "router listens");
    if let Some(listen) = file.router.metrics() {
        tell_metrics(listen, router.meter()).await?;
    }
    let name = router_name();
    for address in &addresses {
        tokio::spawn(follow(address.clone(), name.clone(), sender.clone()));
    }
    tokio::spawn(say_held(addresses, name, router.held()));
    let on = |kind| signal(kind).map_err(|error| Trouble::os("signals cannot be received", "").because(error));
    let (mut terminate, mut interrupt) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    let mut hangup = on(SignalKind::hangup())?;
    let mut reloads = router.reloads();
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => {}
            _ = reloads.changed() => {}
        }
        match router_file::load(path).and_then(|file| file.router.config(None)) {
            Ok(config) => router.reload(config),
            Err(trouble) => tracing::error!(%trouble, "the configuration stays as it was"),
        }
    }
}

/// Answers `GET /metrics`, and nothing else: a router on its own has no API.
async fn tell_metrics(listen: SocketAddr, meter: Meter) -> Result<(), Trouble> {
    let taken = |error| {
        let hint = "free the port, or choose another for `metrics` in [router]";
        Trouble::port_taken(format!("the router's metrics cannot be told at {listen}"), hint).because(error)
    };
    let listener = TcpListener::bind(listen).await.map_err(taken)?;
    let text = move || {
        let meter = meter.clone();
        async move { ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], meter.text()) }
    };
    let service = axum::Router::new().route("/metrics", axum::routing::get(text));
    tokio::spawn(async move { axum::serve(listener, service).await });
    Ok(())
}

/// Follows one node's events. Every node is followed, since one that is cut off believes in the past.
async fn follow(address: Address, name: String, sender: Arc<watch::Sender<Topology>>) {
    let path = format!("/v1/events?only=topology&lag_ms={POSITIONS_EVERY_MS}&router={name}");
    let client = Client::new(vec![address.clone()]).with(None, Some(ASK_TIMEOUT), false);
    let mut answered = true;
    while !sender.is_closed() {
        let read = client.events(&path, SILENCE_MAX, |event| {
            let data = event.lines().find_map(|line| line.strip_prefix("data:"));
            if let Some(view) = data.and_then(|data| serde_json::from_str::<model::Topology>(data.trim_start()).ok()) {
                publish(&sender, topology(&view));
            }
        });
        let came = read.await;
        if let (Err(trouble), true) = (&came, answered) {
            tracing::warn!(node = address.authority, %trouble, "a node does not tell of the servers; it is asked on");
        }
        answered = came.is_ok();
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Tells every node when new statements are held for a planned change of primary, and nothing is open.
async fn say_held(addresses: Vec<Address>, name: String, mut held: watch::Receiver<model::Epoch>) {
    while held.changed().await.is_ok() {
        let epoch = *held.borrow_and_update();
        for address in addresses.clone() {
            let path = format!("/v1/topology?router={name}&holds={epoch}");
            tokio::spawn(async move {
                let client = Client::new(vec![address]).with(None, Some(ASK_TIMEOUT), false);
                // A node that does not hear of it waits a little longer, and goes on.
                let _ = client.get_value(&path).await;
            });
        }
    }
}
