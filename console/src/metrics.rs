//! `/metrics`: the native `stemma_*` names and Patroni's, as Prometheus text.
//!
//! Made anew for each scrape from the newest view. A value that is unknown has no sample, for a zero would lie.

use crate::failover_metrics::Counted;
use crate::health::{SyncPart, sync_part};
use crate::patroni::{PATRONI_VERSION, dcs_last_seen, server_word};
use crate::problem::Refusal;
use crate::request::Query;
use crate::{Backend, Shared};
use axum::Extension;
use axum::extract::State;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use model::state::OperationState;
use model::status::{LinkStatus, NodeStatus, Severity, Verdict};
use model::{ClusterState, ClusterStatus, NodeName, NodeSample, Role, Trouble};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

type Labels = Vec<(&'static str, String)>;

/// Metrics by name, written in the order they were added.
#[derive(Default)]
struct Sheet {
    registry: Registry,
}

impl Sheet {
    /// Adds a gauge. Without samples it is left out whole, its help included.
    fn gauge(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels, f64)>) {
        let family = Family::<Labels, Gauge<f64, AtomicU64>>::default();
        let mut any = false;
        for (labels, value) in samples {
            any = true;
            family.get_or_create(&labels).set(value);
        }
        if any {
            self.registry.register(name, help, family);
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode_registry(&mut text, &self.registry)
            .expect("writing to a string cannot fail");
        text
    }
}

fn yes(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn seconds(time: model::WallTime) -> f64 {
    time.0 as f64 / 1000.0
}

/// Everything a scrape is made of.
pub(crate) struct Facts<'a> {
    status: &'a ClusterStatus,
    state: Option<&'a ClusterState>,
    sample: Option<&'a NodeSample>,
    node: &'a NodeName,
}

/// Metrics of this node and its view of the cluster; `pack=native` or `pack=patroni` gives one part alone.
#[utoipa::path(get, path = "/metrics", tag = "metrics", params(("pack" = Option<String>, Query)),
    responses((status = 200, body = String, content_type = "text/plain"), (status = 400, body = crate::problem::Problem)))]
pub(crate) async fn metrics(
    State(backend): State<Shared>,
    Extension(counted): Extension<Arc<Counted>>,
    uri: Uri,
) -> Result<Response, Refusal> {
    let query = Query::of(uri.query());
    let (native_wanted, patroni_wanted) = match query.get("pack") {
        None => (true, true),
        Some("native") => (true, false),
        Some("patroni") => (false, true),
        Some(_) => return Err(Trouble::bad_request("there is no such pack", "use pack=native or pack=patroni").into()),
    };
    let mut body = render(backend.as_ref(), native_wanted, patroni_wanted);
    if native_wanted {
        body.push_str(&crate::follow::metrics(&backend.status()));
        body.push_str(&counted.text(backend.state().as_deref(), &backend.node(), backend.sample().as_deref()));
        body.push_str(&backend.more_metrics());
    }
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], body).into_response())
}

/// The text of a scrape.
pub fn render(backend: &dyn Backend, native_wanted: bool, patroni_wanted: bool) -> String {
    let (status, state, sample, node) = (backend.status(), backend.state(), backend.sample(), backend.node());
    let facts = Facts { status: &status, state: state.as_deref(), sample: sample.as_deref(), node: &node };
    let mut sheet = Sheet::default();
    if native_wanted {
        sheet.gauge(
            "stemma_keeper_turn_age_seconds",
            "Time since the keeper's loop last turned; the age of all other values",
            [(facts.own(), backend.liveness().seconds())],
        );
        facts.native_node(&mut sheet);
        facts.native_resources(&mut sheet);
        facts.native_cluster(&mut sheet);
        facts.native_durability(&mut sheet);
        facts.native_activity(&mut sheet);
        facts.native_links(&mut sheet);
        facts.native_store(&mut sheet);
    }
    if patroni_wanted {
        facts.patroni_roles(&mut sheet);
        facts.patroni_server(&mut sheet);
    }
    sheet.text()
}

impl Facts<'_> {
    fn own(&self) -> Labels {
        self.labels(self.node, &[])
    }

    fn labels(&self, node: &NodeName, more: &[(&'static str, &str)]) -> Labels {
        let mut labels = vec![("cluster", self.status.cluster.clone()), ("node", node.to_string())];
        labels.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        labels
    }

    fn cluster(&self, more: &[(&'static str, &str)]) -> Labels {
        let mut labels = vec![("cluster", self.status.cluster.clone())];
        labels.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
        labels
    }

    fn me(&self) -> Option<&NodeStatus> {
        self.status.node(self.node.as_str())
    }

    /// One sample per node that has this value.
    fn per_node(&self, value: impl Fn(&NodeStatus) -> Option<f64>) -> Vec<(Labels, f64)> {
        let nodes = self.status.nodes.iter();
        nodes.filter_map(|node| Some((self.labels(&node.name, &[]), value(node)?))).collect()
    }

    fn native_node(&self, sheet: &mut Sheet) {
        let commit = option_env!("STEMMA_COMMIT").unwrap_or("unknown");
        sheet.gauge(
            "stemma_build_info",
            "Version of this program",
            [(vec![("version", env!("CARGO_PKG_VERSION").to_owned()), ("commit", commit.to_owned())], 1.0)],
        );
        let (engine, _) = self.status.engine.split_once(' ').unwrap_or((&self.status.engine, ""));
        let info = |node: &NodeStatus| {
            let version = node.version.as_deref().unwrap_or("");
            let role = node.role.as_str();
            let zone = node.site.as_str();
            let more = [("engine", engine), ("engine_version", version), ("zone", zone), ("role", role)];
            (self.labels(&node.name, &more), 1.0)
        };
        sheet.gauge("stemma_node_info", "What each node is", self.status.nodes.iter().map(info));
        let roles = [Role::Primary, Role::Replica, Role::Witness];
        sheet.gauge(
            "stemma_node_role",
            "Role of this node by the rule: 1 for the role it has, 0 for the others",
            self.me().into_iter().flat_map(|me| {
                roles.map(|role| (self.labels(&me.name, &[("role", role.as_str())]), yes(me.role == role)))
            }),
        );
        sheet.gauge(
            "stemma_node_healthy",
            "Whether all about a node is as it should be",
            self.per_node(|node| Some(yes(node.healthy))),
        );
        sheet.gauge(
            "stemma_keeper_up",
            "Whether a node's keeper answers this one",
            self.per_node(|node| Some(yes(node.keeper_up))),
        );
    }

    fn native_resources(&self, sheet: &mut Sheet) {
        sheet.gauge(
            "stemma_connections",
            "Open client connections",
            self.per_node(|node| node.connections.map(f64::from)),
        );
        sheet.gauge(
            "stemma_cert_expiry_timestamp_seconds",
            "When a node's certificate ends",
            self.per_node(|node| node.certificate_expires_at.map(seconds)),
        );
        let offsets = self.status.nodes.iter().filter(|node| node.name != *self.node);
        sheet.gauge(
            "stemma_clock_offset_seconds",
            "How far a peer's civil clock is ahead of this node's",
            offsets.filter_map(|peer| {
                let offset = peer.clock_offset_ms? as f64 / 1000.0;
                Some((self.labels(self.node, &[("peer", peer.name.as_str())]), offset))
            }),
        );
        let disk = |bytes: Option<u64>| bytes.map(|bytes| (self.own(), bytes as f64));
        sheet.gauge(
            "stemma_disk_free_bytes",
            "Free space of the data directory's file system",
            disk(self.sample.and_then(|s| s.disk_free_bytes)),
        );
        sheet.gauge(
            "stemma_disk_size_bytes",
            "Size of the data directory's file system",
            disk(self.sample.and_then(|s| s.disk_total_bytes)),
        );
        let clones = |value: fn(&model::observe::CloneProgress) -> u64| {
            self.per_node(move |node| node.clone.as_ref().map(|clone| value(clone) as f64))
        };
        sheet.gauge(
            "stemma_clone_done_bytes",
            "Received by the base backup under way",
            clones(|clone| clone.done_bytes),
        );
        sheet.gauge(
            "stemma_clone_expected_bytes",
            "Estimated size of the base backup under way; 0 where unknown",
            clones(|clone| clone.total_bytes),
        );
        sheet.gauge(
            "stemma_clone_rate_bytes_per_second",
            "Rate of the base backup under way",
            clones(|clone| clone.rate_bytes_per_s),
        );
    }

    fn native_cluster(&self, sheet: &mut Sheet) {
        let status = self.status;
        let one = |value: f64| [(self.cluster(&[]), value)];
        sheet.gauge("stemma_observed_timestamp_seconds", "When this view was judged", one(seconds(status.observed_at)));
        sheet.gauge(
            "stemma_cluster_verdict",
            "The cluster in one word: 1 for the word that holds",
            [Verdict::Healthy, Verdict::Forming, Verdict::Degraded, Verdict::Down].map(|verdict| {
                let word = verdict.as_str().to_ascii_lowercase();
                (self.cluster(&[("verdict", &word)]), yes(status.verdict == verdict))
            }),
        );
    }

    fn native_durability(&self, sheet: &mut Sheet) {
        let (status, durability) = (self.status, &self.status.durability);
        let one = |value: f64| [(self.cluster(&[]), value)];
        sheet.gauge(
            "stemma_cluster_tolerance",
            "Node failures survivable without losing writes or service; -1 when it takes no writes now",
            one(f64::from(durability.failures_tolerated)),
        );
        sheet.gauge(
            "stemma_cluster_rpo_now_bytes",
            "What would be lost if the primary died now",
            durability.loss_now_bytes.map(|bytes| (self.cluster(&[]), bytes as f64)),
        );
        sheet.gauge(
            "stemma_cluster_rpo_now_seconds",
            "What would be lost if the primary died now",
            durability.loss_now_seconds.map(|seconds| (self.cluster(&[]), seconds)),
        );
        sheet.gauge(
            "stemma_cluster_primary_up",
            "Whether the primary was seen to accept writes",
            one(yes(status.primary_up)),
        );
        sheet.gauge("stemma_cluster_epoch", "Number of the present primacy", one(status.epoch.0 as f64));
        sheet.gauge(
            "stemma_sync_required",
            "Acknowledgements that the commit mode asks for",
            one(f64::from(durability.acks_wanted)),
        );
        sheet.gauge(
            "stemma_sync_in_force",
            "Acknowledgements that the server waits for now",
            one(f64::from(durability.acks)),
        );
        let available = status.nodes.iter().filter(|node| node.sync == "sync").count();
        sheet.gauge("stemma_sync_available", "Replicas that acknowledge commits now", one(available as f64));
    }

    fn native_activity(&self, sheet: &mut Sheet) {
        let status = self.status;
        let severities = [(Severity::Info, "info"), (Severity::Warning, "warning"), (Severity::Critical, "critical")];
        sheet.gauge(
            "stemma_problems",
            "Problems known now",
            severities.map(|(severity, word)| {
                let count = status.problems.iter().filter(|problem| problem.severity == severity).count();
                (self.cluster(&[("severity", word)]), count as f64)
            }),
        );
        sheet.gauge(
            "stemma_settings_version",
            "Version of the settings in force",
            [(self.cluster(&[]), status.settings_version as f64)],
        );
        let words = ["running", "succeeded", "failed", "cancelled"];
        sheet.gauge(
            "stemma_operations",
            "Operations that are kept, by how they stand",
            self.state.into_iter().flat_map(|state| {
                words.map(|word| {
                    let count = state.operations.iter().filter(|operation| operation_word(&operation.state) == word);
                    (self.cluster(&[("state", word)]), count.count() as f64)
                })
            }),
        );
    }

    fn native_links(&self, sheet: &mut Sheet) {
        let replicas = || self.status.nodes.iter().filter(|node| node.role == Role::Replica);
        sheet.gauge(
            "stemma_link_up",
            "Whether a replica's way to its upstream is alive",
            replicas().map(|node| {
                let upstream = node.upstream.as_ref().map_or("", NodeName::as_str);
                let ends = [("upstream", upstream), ("downstream", node.name.as_str()), ("kind", "physical")];
                (self.cluster(&ends), yes(node.link_up))
            }),
        );
        sheet.gauge(
            "stemma_replication_lag_seconds",
            "How old a replica's data is",
            replicas().filter_map(|node| {
                let lag = node.lag.as_ref()?;
                Some((self.labels(&node.name, &[("stage", "apply"), ("method", &lag.method)]), lag.seconds?))
            }),
        );
        let stages = |node: &NodeStatus| {
            let lag = node.lag.as_ref();
            let stages =
                [("flush", lag.and_then(|lag| lag.receive_bytes)), ("apply", lag.and_then(|lag| lag.apply_bytes))];
            let name = node.name.clone();
            stages
                .into_iter()
                .filter_map(move |(stage, bytes)| Some((self.labels(&name, &[("stage", stage)]), bytes? as f64)))
        };
        sheet.gauge(
            "stemma_replication_lag_bytes",
            "Log of the primary that a replica does not have yet",
            replicas().flat_map(stages),
        );
        let slots = self.sample.and_then(|sample| sample.facts.as_ref()).map_or(&[][..], |facts| &facts.slots);
        sheet.gauge(
            "stemma_slot_retained_bytes",
            "Log that a replication slot on this node keeps back",
            slots.iter().filter_map(|slot| {
                Some((self.labels(self.node, &[("slot", &slot.name)]), slot.retained_bytes? as f64))
            }),
        );
    }

    fn native_store(&self, sheet: &mut Sheet) {
        let store = &self.status.consensus;
        let kind = [("kind", store.kind.as_str())];
        sheet.gauge(
            "stemma_store_up",
            "Whether the consensus store answered within the last seconds",
            [(self.labels(self.node, &kind), yes(store.up))],
        );
        if store.kind != "embedded" {
            return;
        }
        let mut raft = |name: &str, help: &str, value: f64| sheet.gauge(name, help, [(self.own(), value)]);
        let leads = store.leader.is_some() && store.leader == self.me().map(|me| me.id);
        let peers = || store.voters.iter().chain(&store.learners);
        let lives = |id: &&model::NodeId| {
            self.status.nodes.iter().any(|node| node.id == **id && (node.keeper_up || node.name == *self.node))
        };
        raft("stemma_raft_leader", "Whether this node leads the consensus group", yes(leads));
        raft("stemma_raft_term", "Term of the consensus group", store.term as f64);
        raft("stemma_raft_applied_index", "Last entry of the consensus log applied here", store.applied as f64);
        raft("stemma_raft_peers", "Members of the consensus group", peers().count() as f64);
        raft(
            "stemma_raft_healthy_peers",
            "Members of the consensus group whose keeper answers",
            peers().filter(lives).count() as f64,
        );
    }

    fn scope(&self) -> Labels {
        vec![("scope", self.status.cluster.clone()), ("name", self.node.to_string())]
    }

    fn patroni_roles(&self, sheet: &mut Sheet) {
        let running = server_word(self.sample) == "running";
        let role = self.me().map(|me| me.role);
        let part = self.me().map_or(SyncPart::None, |me| sync_part(self.status, me));
        let mut put = |name: &str, help: &str, value: f64| sheet.gauge(name, help, [(self.scope(), value)]);
        put("patroni_version", "Version of Patroni whose interface this is", patroni_version());
        put(
            "patroni_primary",
            "1 if this node is the leader, 0 otherwise",
            yes(role == Some(Role::Primary) && running),
        );
        put("patroni_standby_leader", "1 if this node is the standby leader, 0 otherwise", 0.0);
        put("patroni_replica", "1 if this node is a replica, 0 otherwise", yes(role == Some(Role::Replica) && running));
        put("patroni_sync_standby", "1 if this node is a sync standby, 0 otherwise", yes(part == SyncPart::Sync));
        put("patroni_quorum_standby", "1 if this node is a quorum standby, 0 otherwise", yes(part == SyncPart::Quorum));
        put(
            "patroni_cluster_unlocked",
            "1 if no node holds the leader lock, 0 otherwise",
            yes(self.status.primary.is_none()),
        );
        put("patroni_failsafe_mode_is_active", "1 if failsafe mode is active, 0 otherwise", 0.0);
        put("patroni_failsafe_mode_enabled", "1 if failsafe mode is enabled, 0 otherwise", 0.0);
        put("patroni_failsafe_member", "1 if this node is a failsafe member, 0 otherwise", 0.0);
        put("patroni_is_paused", "1 if automatic failover is paused, 0 otherwise", yes(self.status.paused.is_some()));
        put(
            "patroni_dcs_last_seen",
            "When the consensus store last answered, as a Unix timestamp",
            dcs_last_seen(self.status) as f64,
        );
        if let Some(me) = self.me() {
            put("patroni_failover_priority", "Failover priority of this node", f64::from(me.priority));
        }
    }

    fn patroni_server(&self, sheet: &mut Sheet) {
        let word = server_word(self.sample);
        let facts = self.sample.and_then(|sample| sample.facts.as_ref());
        let streaming = self.me().is_some_and(|me| me.role == Role::Replica && me.link == Some(LinkStatus::Streaming));
        let recovering = facts.is_some_and(|facts| facts.in_recovery) && !streaming;
        let mut put = |name: &str, help: &str, value: Option<f64>| {
            sheet.gauge(name, help, value.map(|value| (self.scope(), value)));
        };
        put("patroni_postgres_running", "1 if PostgreSQL runs, 0 otherwise", Some(yes(word == "running")));
        put(
            "patroni_postgres_state",
            "State of PostgreSQL: 0 initdb, 4 creating replica, 5 running, 6 starting, 12 stopped, 14 crashed",
            Some(state_number(word)),
        );
        put("patroni_postgres_streaming", "1 if PostgreSQL streams, 0 otherwise", Some(yes(streaming)));
        put(
            "patroni_postgres_in_archive_recovery",
            "1 if PostgreSQL recovers without streaming, 0 otherwise",
            Some(yes(recovering)),
        );
        let Some(facts) = facts else { return };
        let lsn = |value: Option<model::Lsn>| value.map(|lsn| lsn.0 as f64);
        put("patroni_postgres_server_version", "Version of PostgreSQL", Some(f64::from(facts.version_num)));
        put("patroni_postgres_timeline", "Timeline of PostgreSQL", Some(f64::from(facts.timeline.0)));
        put(
            "patroni_postmaster_start_time",
            "When PostgreSQL started, as a Unix timestamp",
            Some(seconds(facts.started_at)),
        );
        put(
            "patroni_pending_restart",
            "1 if a parameter waits for a restart, 0 otherwise",
            Some(yes(!facts.pending_restart.is_empty())),
        );
        put(
            "patroni_xlog_location",
            "Position of the log on the leader, 0 on replicas",
            Some(lsn(facts.written).unwrap_or(0.0)),
        );
        put(
            "patroni_xlog_received_location",
            "Position of the received log, 0 on the leader",
            if facts.in_recovery { lsn(facts.received) } else { Some(0.0) },
        );
        put(
            "patroni_xlog_replayed_location",
            "Position of the replayed log, 0 on the leader",
            if facts.in_recovery { lsn(facts.replayed) } else { Some(0.0) },
        );
        put(
            "patroni_xlog_replayed_timestamp",
            "Commit time of the last replayed transaction, 0 on the leader",
            if facts.in_recovery { facts.replayed_at.map(seconds) } else { Some(0.0) },
        );
        put("patroni_xlog_paused", "1 if replay is paused, 0 otherwise", Some(yes(facts.replay_paused)));
    }
}

fn operation_word(state: &OperationState) -> &'static str {
    match state {
        OperationState::Running => "running",
        OperationState::Succeeded => "succeeded",
        OperationState::Failed { .. } => "failed",
        OperationState::Cancelled => "cancelled",
    }
}

/// `4.0.0` as Patroni's metric has it: two digits each, 040000.
fn patroni_version() -> f64 {
    PATRONI_VERSION
        .split('.')
        .filter_map(|part| part.parse::<u32>().ok())
        .fold(0.0, |sum, part| sum * 100.0 + f64::from(part))
}

/// Patroni's numbers, which never change.
fn state_number(word: &str) -> f64 {
    match word {
        "initializing new cluster" => 0.0,
        "creating replica" => 4.0,
        "running" => 5.0,
        "starting" => 6.0,
        "crashed" => 14.0,
        _ => 12.0,
    }
}
