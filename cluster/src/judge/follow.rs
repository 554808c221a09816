//! Following between whole clusters, as seen from both sides.

use super::problems::Found;
use super::{Scene, link, words};
use crate::naming::{follower_application_name, follower_slot};
use model::follow::{FollowStatus, FollowerStatus};
use model::observe::{Observed, Receiver};
use model::state::Member;
use model::status::Severity;
use model::units::{Lsn, Millis, Moment};

/// What was heard of the followed cluster last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Its position then.
    end: Lsn,
    /// When.
    at: Moment,
    /// From which server.
    host: String,
}

/// The receiver of the leader, by its newest sample, and when that was taken.
fn receiver<'a>(scene: &Scene<'a>) -> Option<(&'a Observed, &'a Receiver)> {
    scene.state.following()?;
    let leader = scene.state.rule.primary;
    let facts = scene.current_facts(leader).filter(|facts| facts.in_recovery)?;
    let receiver = facts.receiver.as_ref().filter(|receiver| receiver.status == "streaming")?;
    Some((scene.seen(leader)?, receiver))
}

/// Keeps in mind what is heard now. Two samples of one leader never make the followed cluster go back.
pub(crate) fn note(heard: &mut Option<Heard>, scene: &Scene<'_>) {
    if scene.state.following().is_none() {
        *heard = None;
    }
    let Some((seen, receiver)) = receiver(scene) else { return };
    let (Some(end), Some(age)) = (receiver.latest_end, receiver.last_message_age_ms) else { return };
    let at = seen.taken_at.minus(Millis(age));
    if heard.as_ref().is_none_or(|heard| at >= heard.at) {
        *heard = Some(Heard { end, at, host: receiver.upstream.clone() });
    }
}

/// Whether the stream is alive, by the leader's own receiver.
pub(crate) fn streams(scene: &Scene<'_>) -> bool {
    let limit = link::message_limit(scene);
    receiver(scene).is_some_and(|(seen, receiver)| {
        let quiet = receiver.last_message_age_ms.unwrap_or(u64::MAX).saturating_add(scene.now.since(seen.taken_at).0);
        quiet <= limit.0.saturating_add(scene.stale().0)
    })
}

/// How following goes.
pub(crate) fn status(scene: &Scene<'_>, heard: Option<&Heard>) -> Option<FollowStatus> {
    let follow = scene.state.following()?;
    let leader = scene.state.primary();
    let facts = leader.and_then(|leader| scene.seen(leader.id)).and_then(|seen| seen.sample.facts.as_ref());
    let received = facts.and_then(|facts| facts.received.max(facts.replayed));
    let behind = heard.zip(received).map(|(heard, received)| heard.end.lag_of(received).0);
    Some(FollowStatus {
        cluster: follow.cluster.to_string(),
        cluster_id: follow.cluster_id.to_string(),
        hosts: follow.hosts.clone(),
        leader: leader.map(|leader| leader.name.clone()),
        streaming: streams(scene),
        host: heard.map(|heard| heard.host.clone()),
        behind_bytes: behind,
        silent_seconds: heard.map(|heard| scene.now.since(heard.at).0 as f64 / 1_000.0),
        timeline: facts.map(|facts| facts.timeline),
        epoch: facts.and_then(|facts| facts.lineage_epoch),
    })
}

/// The first line that people read of a standby cluster.
pub(crate) fn sentence(scene: &Scene<'_>, heard: Option<&Heard>) -> Option<String> {
    let status = status(scene, heard)?;
    let behind = status.behind_bytes.map_or_else(|| "an unknown amount".to_owned(), words::bytes);
    let (cluster, host) = (&status.cluster, status.host.as_deref().unwrap_or("none of its servers"));
    Some(match (status.streaming, status.silent_seconds) {
        (true, _) => format!("follows cluster {cluster} at {host}: {behind} behind · takes no writes"),
        (false, Some(silent)) => {
            let silent = words::span(Millis((silent * 1_000.0) as u64));
            format!(
                "follows cluster {cluster}, heard last {silent} ago at {host}: {behind} behind then · takes no writes"
            )
        }
        (false, None) => format!("follows cluster {cluster}, not heard yet · takes no writes"),
    })
}

/// Nothing comes from the cluster that is followed.
pub(crate) fn problem(scene: &Scene<'_>, leader: &Member) -> Option<Found> {
    let follow = scene.state.following()?;
    if streams(scene) || leader.stage == model::state::Stage::Joining {
        return None;
    }
    let said = scene.seen(leader.id).and_then(|seen| seen.sample.last_error.clone());
    let cause = said.map_or_else(
        || format!("the server of {} has no connection to any of {}", leader.name, follow.hosts.join(", ")),
        |(_, error)| error,
    );
    let texts = [
        format!("nothing comes from cluster {}", follow.cluster),
        cause,
        "bring it back; if it is lost for good: stemma cluster promote".to_owned(),
    ];
    Some(Found::new("ST2403", Severity::Warning, Some(leader.id), texts))
}

/// The clusters that follow this one.
pub(crate) fn followers(scene: &Scene<'_>) -> Vec<FollowerStatus> {
    let facts = scene.current_facts(scene.state.rule.primary);
    let followers = scene.state.followers.values().map(|follower| {
        let name = follower_application_name(scene.salt, follower);
        let slot = follower_slot(follower);
        let sender = facts.and_then(|facts| facts.senders.iter().find(|sender| sender.application_name == name));
        let behind = facts.and_then(|facts| facts.written).zip(sender.and_then(|sender| sender.flush));
        let held = facts.and_then(|facts| facts.slots.iter().find(|held| held.name == slot));
        FollowerStatus {
            cluster: follower.name.to_string(),
            cluster_id: follower.cluster_id.to_string(),
            streaming: sender.is_some_and(|sender| sender.state == "streaming"),
            client: sender.and_then(|sender| sender.client_addr.clone()),
            behind_bytes: behind.map(|(written, flushed)| written.lag_of(flushed).0),
            kept_bytes: held.and_then(|held| held.retained_bytes),
            slot,
        }
    });
    followers.collect()
}
