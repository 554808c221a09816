//! The router of a node, and the router on its own: who tells it of the servers.

use crate::client::{Address, Client, authority_of};
use crate::router_file::{self, Section};
use keeper::Keeper;
use model::{ClusterStatus, LagBytes, Millis, ReplicaKind, Role, Trouble};
use router::topology::{Primary, Replica, ReplicaUse};
use router::{NodeAddr, Router, Topology};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Where the file of a router on its own is unless the command line says otherwise.
const DEFAULT_PATH: &str = "/etc/stemma/router.toml";
/// How often a router on its own asks the nodes.
const ASK_INTERVAL: Duration = Duration::from_millis(250);
/// How long a node may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// The servers of a judged status.
pub fn topology(status: &ClusterStatus) -> Topology {
    let mut found = Topology { epoch: status.epoch, ..Topology::default() };
    for node in &status.nodes {
        let Some(addr) = NodeAddr::parse(&node.postgres_address) else { continue };
        let name = node.name.to_string();
        match node.role {
            Role::Primary if status.primary_up => {
                found.primary = Some(Primary { name, addr, site: Some(node.site.clone()) });
            }
            Role::Replica => {
                let lag = node.lag.as_ref();
                found.replicas.push(Replica {
                    id: node.id,
                    name,
                    addr,
                    usage: match node.kind {
                        ReplicaKind::Hot => ReplicaUse::Hot,
                        ReplicaKind::Standby => ReplicaUse::Standby,
                        ReplicaKind::Delayed => ReplicaUse::Delayed,
                    },
                    site: Some(node.site.clone()),
                    healthy: node.healthy,
                    replayed: node.replayed,
                    timeline: node.timeline,
                    position_age: node.sample_age_ms.map(Millis),
                    incarnation: node.started_at.map_or(0, |started| started.0.unsigned_abs()),
                    lag_bytes: lag.and_then(|lag| lag.apply_bytes).map(LagBytes),
                    lag: lag.and_then(|lag| lag.seconds).map(|seconds| Millis((seconds * 1000.0) as u64)),
                });
            }
            Role::Primary | Role::Witness => {}
        }
    }
    found
}

/// Of two views the one to go by: the one of the later primacy; of the same, the one that sees the primary.
fn better(a: Topology, b: Topology) -> Topology {
    if (b.epoch, b.primary.is_some()) > (a.epoch, a.primary.is_some()) { b } else { a }
}

/// A router that is told by the keeper of its own node.
pub async fn beside(keeper: &Arc<Keeper>, section: &Section) -> Result<Router, Trouble> {
    let config = section.config()?;
    let first = keeper.status().map(|status| topology(&status)).unwrap_or_default();
    let (sender, receiver) = watch::channel(first);
    let router = Router::start(config, receiver).await?;
    let keeper = keeper.clone();
    tokio::spawn(async move {
        let mut judgements = keeper.judgements();
        while judgements.changed().await.is_ok() && !sender.is_closed() {
            if let Some(status) = keeper.status() {
                publish(&sender, topology(&status));
            }
        }
    });
    tracing::info!(addresses = ?router.addresses(), "router listens");
    Ok(router)
}

fn publish(sender: &watch::Sender<Topology>, news: Topology) {
    sender.send_if_modified(|known| {
        // A view of an earlier primacy is a late one.
        let timely = news.epoch >= known.epoch;
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
    let (sender, receiver) = watch::channel(ask(&addresses).await.unwrap_or_default());
    let router = Router::start(file.router.config()?, receiver).await?;
    tracing::info!(addresses = ?router.addresses(), "router listens");
    let on = |kind| signal(kind).map_err(|error| Trouble::os("signals cannot be received", "").because(error));
    let (mut terminate, mut interrupt) = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
    let mut hangup = on(SignalKind::hangup())?;
    let mut tick = tokio::time::interval(ASK_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => match router_file::load(path).and_then(|file| file.router.config()) {
                Ok(config) => router.reload(config),
                Err(trouble) => tracing::error!(%trouble, "the configuration stays as it was"),
            },
            _ = tick.tick() => {
                // Where nobody answers, what was known last is the best there is.
                if let Some(news) = ask(&addresses).await {
                    publish(&sender, news);
                }
            }
        }
    }
}

/// Asks every node, since one that is cut off believes in the past.
async fn ask(addresses: &[Address]) -> Option<Topology> {
    let asked = addresses.iter().map(|address| async move {
        let client = Client::new(vec![address.clone()]).with(None, Some(ASK_TIMEOUT), false);
        client.status().await.ok().map(|status| topology(&status))
    });
    let mut best = None;
    for answer in asked {
        best = answer.await.into_iter().chain(best).reduce(better);
    }
    best
}
