//! Clusters that follow clusters, over HTTP: promote a standby cluster, end a follower's following.

use crate::Shared;
use crate::primacy::{answer, parse_loss};
use crate::problem::{Problem, Refusal};
use crate::request::{Body, Caller, DryRun, run};
use crate::v1::OutcomeShape;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use model::follow::{FollowStatus, FollowerStatus};
use model::{ClusterName, ClusterStatus, Command, Trouble};
use serde::Deserialize;

/// What may be lost.
#[derive(Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PromoteBody {
    /// The most that may be missing, as last known, as in `16MB`; `unknown` for whatever it is. Without it nothing is
    /// begun.
    #[serde(default)]
    accept_data_loss: Option<String>,
}

/// Makes this standby cluster one that takes writes. What the followed cluster has and this one has not is missing then;
/// the refusal without `accept_data_loss`, and `dry_run`, say how much that is. `GET /v1/failovers/{id}` tells how far it is.
#[utoipa::path(post, path = "/v1/cluster/promote", tag = "v1", request_body = PromoteBody,
    params(("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = OutcomeShape), (status = 202, body = OutcomeShape), (status = 400, body = Problem),
        (status = 401, body = Problem), (status = 409, body = Problem)))]
pub(crate) async fn promote(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    Body(body): Body<PromoteBody>,
) -> Result<Response, Refusal> {
    let loss_bytes_max = body.accept_data_loss.as_deref().map(parse_loss).transpose()?;
    Ok(answer(run(&backend, Command::PromoteCluster { loss_bytes_max }, caller, dry_run).await?))
}

/// Ends a cluster's following: its certificate is refused, and its slots are dropped.
#[utoipa::path(delete, path = "/v1/followers/{name}", tag = "v1",
    params(("name" = String, Path), ("dry_run" = Option<bool>, Query)),
    responses((status = 200, body = OutcomeShape), (status = 401, body = Problem), (status = 404, body = Problem)))]
pub(crate) async fn forget(
    State(backend): State<Shared>,
    caller: Caller,
    dry_run: DryRun,
    Path(name): Path<String>,
) -> Result<Response, Refusal> {
    let name: ClusterName = name.parse().map_err(|bad: model::names::BadName| {
        Trouble::bad_request(bad.to_string(), "GET /v1/status lists followers")
    })?;
    Ok(Json(run(&backend, Command::ForgetFollower { name }, caller, dry_run).await?).into_response())
}

/// What following between clusters adds to a scrape. Without any there is nothing to be told.
pub(crate) fn metrics(status: &ClusterStatus) -> String {
    let cluster = &status.cluster;
    let mut text = String::new();
    let mut gauge = |name: &str, help: &str, samples: Vec<(String, Option<f64>)>| {
        let known = samples.into_iter().filter_map(|(labels, value)| Some((labels, value?)));
        let lines: String = known.map(|(labels, value)| format!("{name}{{{labels}}} {value}\n")).collect();
        if !lines.is_empty() {
            text.push_str(&format!("# HELP {name} {help}.\n# TYPE {name} gauge\n{lines}"));
        }
    };
    let yes = |value: bool| Some(f64::from(u8::from(value)));
    let follows = |value: &dyn Fn(&FollowStatus) -> Option<f64>| {
        let labels = |follow: &FollowStatus| format!("cluster=\"{cluster}\",followed=\"{}\"", follow.cluster);
        status.follow.iter().map(|follow| (labels(follow), value(follow))).collect::<Vec<_>>()
    };
    let followed = |value: &dyn Fn(&FollowerStatus) -> Option<f64>| {
        let labels = |it: &FollowerStatus| format!("cluster=\"{cluster}\",follower=\"{}\"", it.cluster);
        status.followers.iter().map(|follower| (labels(follower), value(follower))).collect::<Vec<_>>()
    };
    let bytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64);
    gauge("stemma_follow_up", "1 if the followed cluster is heard", follows(&|it| yes(it.streaming)));
    let help = "Log that the followed cluster was ahead when it was heard last";
    gauge("stemma_follow_lag_bytes", help, follows(&|it| bytes(it.behind_bytes)));
    gauge(
        "stemma_follow_silence_seconds",
        "Since the followed cluster was heard last",
        follows(&|it| it.silent_seconds),
    );
    gauge("stemma_follower_up", "1 if a cluster that follows this one streams", followed(&|it| yes(it.streaming)));
    gauge("stemma_follower_lag_bytes", "Log that it has not flushed", followed(&|it| bytes(it.behind_bytes)));
    gauge("stemma_follower_kept_bytes", "Log that is kept for it", followed(&|it| bytes(it.kept_bytes)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unknown_has_no_sample_and_every_name_is_documented() {
        let follow = FollowStatus {
            cluster: "shop".into(),
            cluster_id: "c".into(),
            hosts: Vec::new(),
            leader: None,
            streaming: false,
            host: None,
            behind_bytes: None,
            silent_seconds: Some(2.5),
            timeline: None,
            epoch: None,
        };
        let follower = FollowerStatus {
            cluster: "dr".into(),
            cluster_id: "d".into(),
            streaming: true,
            client: None,
            behind_bytes: Some(7),
            slot: "s".into(),
            kept_bytes: Some(9),
        };
        let unknown = model::observe::ConsensusView::default();
        let mut status = cluster_status(unknown);
        assert_eq!(metrics(&status), "");
        status.follow = Some(follow);
        status.followers = vec![follower];
        let text = metrics(&status);
        assert!(text.contains("stemma_follow_up{cluster=\"dr\",followed=\"shop\"} 0\n"), "{text}");
        assert!(text.contains("stemma_follow_silence_seconds{cluster=\"dr\",followed=\"shop\"} 2.5\n"), "{text}");
        assert!(!text.contains("stemma_follow_lag_bytes"), "{text}");
        assert!(text.contains("stemma_follower_lag_bytes{cluster=\"dr\",follower=\"dr\"} 7\n"), "{text}");
        let documented = include_str!("../../docs/metrics.md");
        for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
            let name = line.split(' ').nth(2).expect("a name");
            assert!(documented.contains(&format!("`{name}`")), "{name} is not in docs/metrics.md");
        }
    }

    fn cluster_status(consensus: model::observe::ConsensusView) -> ClusterStatus {
        let text = serde_json::json!({
            "schema_version": 1, "cluster": "dr", "cluster_id": "d", "verdict": "healthy", "sentence": "",
            "observer": "b1", "observed_at": 0, "epoch": 1, "primary": null, "primary_up": false, "engine": "",
            "system_id": null, "nodes": [], "problems": [], "consensus": consensus, "settings_version": 1,
            "operation": null,
            "durability": { "mode": "semi-sync", "acks": 0, "acks_wanted": 0, "voters": [], "strict": false,
                "in_force": true, "failures_tolerated": 0, "loss_now_bytes": null, "loss_now_seconds": null,
                "sentence": "" }
        });
        serde_json::from_value(text).expect("a status")
    }
}
