//! Names in DNS that lead to the primary and to the replicas. The settled primary's keeper writes them, in its own time.

use crate::clock;
use crate::local::Local;
use crate::observations::Observations;
use crate::store::Store;
use adapters::dns::{self, Done, Failed, Place, Wanted};
use model::observe::OutsideTrouble;
use model::status::NodeStatus;
use model::{ClusterState, ClusterStatus, Member, Millis, NodeId, ReplicaKind, Role, ServerState};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Shortest time between two updates: replicas that come and go shall not keep the server busy.
const PAUSE: Duration = Duration::from_secs(1);
/// What was written is looked at again after this time: somebody may have restored the zone.
const AGAIN_AFTER: Millis = Millis::from_secs(60);
/// Longest pause after failures.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// How long a host name of a member may take to become an address.
const LOOKUP_DEADLINE: Duration = Duration::from_secs(5);

/// A teller of names.
pub(crate) struct Names {
    pub(crate) me: NodeId,
    pub(crate) place: Place,
    pub(crate) store: Store,
    pub(crate) observations: Arc<Observations>,
    pub(crate) local: Arc<Local>,
}

/// Hosts that the names are to lead to, before they are addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hosts {
    primary: String,
    replicas: BTreeSet<String>,
}

/// What this node has to say: nothing, unless it is the primary and no change is under way.
fn hosts(me: NodeId, state: &ClusterState, status: &ClusterStatus, serves: bool) -> Option<Hosts> {
    let primary = state.primary().filter(|primary| primary.id == me && state.failover.is_none() && serves)?;
    let fit = |member: &&Member| {
        let hot = state.role_of(member.id) == Some(Role::Replica) && member.kind == ReplicaKind::Hot;
        let seen = |node: &NodeStatus| node.id == member.id && node.healthy && node.link_up;
        hot && status.nodes.iter().any(seen)
    };
    let mut replicas: BTreeSet<String> =
        state.members.values().filter(fit).map(|member| member.postgres_host.clone()).collect();
    // A name that leads nowhere would stop readers though the primary could answer them.
    if replicas.is_empty() {
        replicas.insert(primary.postgres_host.clone());
    }
    Some(Hosts { primary: primary.postgres_host.clone(), replicas })
}

impl Names {
    /// Follows the state until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let (mut states, mut judgements) = (self.store.changes(), self.observations.judgements());
        let mut written: Option<(model::Epoch, Hosts, model::Moment)> = None;
        let mut failures = 0u32;
        loop {
            let state = states.borrow_and_update().clone();
            judgements.mark_unchanged();
            let status = self.observations.status();
            let serves = self.observations.own().is_some_and(|own| {
                own.server == ServerState::Running && own.facts.as_ref().is_some_and(|facts| !facts.in_recovery)
            });
            let wanted = state.as_ref().zip(status).and_then(|(state, status)| {
                Some((state.value.rule.epoch, hosts(self.me, &state.value, &status, serves)?, state))
            });
            match wanted {
                None => {
                    written = None;
                    failures = 0;
                    self.complain(None);
                }
                Some((epoch, hosts, state)) => {
                    let fresh = |(at_epoch, at, when): &(model::Epoch, Hosts, model::Moment)| {
                        *at_epoch == epoch && *at == hosts && clock::now().since(*when) < AGAIN_AFTER
                    };
                    if !written.as_ref().is_some_and(fresh) {
                        let result = tokio::select! {
                            () = stop.cancelled() => return,
                            result = self.write(&state.value, &hosts) => result,
                        };
                        failures = if result.is_ok() { 0 } else { failures + 1 };
                        written = result.is_ok().then(|| (epoch, hosts, clock::now()));
                        self.complain(result.err());
                    }
                }
            }
            let pause = (PAUSE * 2u32.saturating_pow(failures.min(5))).min(BACKOFF_MAX);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            let gone = tokio::select! {
                () = stop.cancelled() => return,
                changed = states.changed() => changed.is_err(),
                changed = judgements.changed() => changed.is_err(),
            };
            if gone {
                return;
            }
        }
    }

    async fn write(&self, state: &ClusterState, hosts: &Hosts) -> Result<(), Failed> {
        let wanted = Wanted {
            cluster: state.identity.id.to_string(),
            epoch: state.rule.epoch,
            primary: addresses(&hosts.primary).await?,
            replicas: {
                let mut all = BTreeSet::new();
                for host in &hosts.replicas {
                    all.extend(addresses(host).await?);
                }
                all
            },
        };
        let now_seconds = u64::try_from(clock::wall().0 / 1_000).unwrap_or_default();
        match dns::update(&self.place, &wanted, now_seconds).await? {
            Done::Written => tracing::info!(name = self.place.name, epoch = wanted.epoch.0, "DNS leads to this node"),
            Done::Unchanged => {}
            Done::Overtaken(epoch) => tracing::info!(epoch = epoch.0, "a newer primary wrote to DNS"),
        }
        Ok(())
    }

    fn complain(&self, failed: Option<Failed>) {
        let trouble = failed.map(|failed| OutsideTrouble {
            code: "ST2312".to_owned(),
            what: format!("{} does not lead to the primary by DNS", self.place.name),
            cause: failed.to_string(),
            next: "check [dns] of the node file and the server's update policy; it is tried again by itself".to_owned(),
        });
        self.local.set_outside("dns", trouble);
    }
}

async fn addresses(host: &str) -> Result<BTreeSet<IpAddr>, Failed> {
    if let Ok(address) = host.parse() {
        return Ok([address].into());
    }
    let lost = |why: String| Failed::Config(format!("the address of `{host}` is not known: {why}"));
    match tokio::time::timeout(LOOKUP_DEADLINE, tokio::net::lookup_host((host, 0))).await {
        Ok(Ok(found)) => Ok(found.map(|address| address.ip()).collect()),
        Ok(Err(error)) => Err(lost(error.to_string())),
        Err(_) => Err(lost("no answer in time".to_owned())),
    }
}
