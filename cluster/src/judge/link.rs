//! Whether a replica is fed: the evidence of its receiver, of the keepers at both ends, and of its upstream's sender.
//!
//! On an idle connection the servers exchange a message every half `WAL_TIMEOUT` only, so the receiver alone cannot
//! prove a cut within two seconds. Keepers send heartbeats ten times a second between the same hosts: when they cannot
//! hear each other, the link counts as down, unless the receiver got a message well after that (a keeper has died, not
//! the host).

use super::Scene;
use crate::lag::ReplicaView;
use crate::naming::application_name;
use model::limits::{LINK_SILENT_AFTER, WAL_TIMEOUT};
use model::observe::{Observed, Receiver, Sender, ServerFacts, ServerState};
use model::state::Member;
use model::status::LinkStatus;
use model::units::{Millis, Moment};

/// What is known of the way from a replica's upstream to the replica.
#[derive(Debug)]
pub(crate) struct Link {
    /// In one word.
    pub status: LinkStatus,
    /// Proved to work now.
    pub up: bool,
    /// The replica's positions for the lag, newest known.
    pub view: Option<ReplicaView>,
    /// Why it is not up.
    pub why: String,
    /// When it was last proved to work, if ever.
    pub alive_at: Option<Moment>,
}

/// Judges the link of one replica.
pub(crate) fn judge(scene: &Scene<'_>, member: &Member) -> Link {
    if scene.state.following().is_some() && scene.state.rule.primary == member.id {
        return of_leader(scene, member);
    }
    let (Some(seen), Some(upstream)) = (scene.seen(member.id), scene.state.upstream_of(member.id)) else {
        return by_sender(scene, member).unwrap_or_else(|| down(None, None, "nothing was heard of it yet"));
    };
    if scene.now.since(seen.heard_at) > beyond_tcp()
        && let Some(link) = by_sender(scene, member)
    {
        return link;
    }
    let Some(facts) = seen.sample.facts.as_ref() else {
        let why = format!("its server is {}", seen.sample.server.word());
        let mut link = down(None, None, &why);
        if matches!(seen.sample.server, ServerState::Cloning(_) | ServerState::Starting)
            && scene.current(member.id).is_some()
        {
            link.status = LinkStatus::CatchingUp;
        }
        return link;
    };
    if !facts.in_recovery {
        return down(None, None, "its server is not in recovery and follows nobody");
    }
    let alive_at = facts
        .receiver
        .as_ref()
        .filter(|receiver| follows(scene, receiver, upstream))
        .and_then(|receiver| last_alive(scene, seen, receiver, upstream));
    match refusal(scene, seen, facts, upstream, alive_at) {
        Some(why) => down(Some((seen, facts)), alive_at, &why),
        None => Link {
            status: if catches_up(scene, member, upstream) { LinkStatus::CatchingUp } else { LinkStatus::Streaming },
            up: true,
            view: Some(view(seen, facts, alive_at, true)),
            why: String::new(),
            alive_at,
        },
    }
}

/// The node of a standby cluster that streams from the cluster that is followed.
fn of_leader(scene: &Scene<'_>, member: &Member) -> Link {
    let known = scene.seen(member.id).and_then(|seen| Some((seen, seen.sample.facts.as_ref()?)));
    match known {
        Some((seen, facts)) if super::follow::streams(scene) => Link {
            status: LinkStatus::Streaming,
            up: true,
            view: Some(view(seen, facts, Some(seen.taken_at), true)),
            why: String::new(),
            alive_at: Some(seen.taken_at),
        },
        known => {
            let cloning = scene
                .current(member.id)
                .is_some_and(|seen| matches!(seen.sample.server, ServerState::Cloning(_) | ServerState::Starting));
            let mut link = down(known, None, "nothing comes from the followed cluster");
            if cloning {
                link.status = LinkStatus::CatchingUp;
            }
            link
        }
    }
}

/// A server whose connection died would have noticed by then.
fn beyond_tcp() -> Millis {
    Millis(WAL_TIMEOUT.0 + 1_000)
}

/// The longest that a live connection is without a message, as seen through samples.
pub(super) fn message_limit(scene: &Scene<'_>) -> Millis {
    Millis(WAL_TIMEOUT.0 / 2 + 1_000 + scene.state.settings.sample_interval.0.0)
}

/// The same where a sample may be as old as samples may be.
fn silence_limit(scene: &Scene<'_>) -> Millis {
    message_limit(scene).max(scene.stale())
}

/// Why the link does not count as up, if it does not.
fn refusal(
    scene: &Scene<'_>,
    seen: &Observed,
    facts: &ServerFacts,
    upstream: &Member,
    alive_at: Option<Moment>,
) -> Option<String> {
    if !matches!(seen.sample.server, ServerState::Running) {
        return Some(format!("its server is {}", seen.sample.server.word()));
    }
    let Some(receiver) = &facts.receiver else {
        return Some(match (facts.has_upstream, facts.replay_paused) {
            (false, _) => "its server is not told to follow anybody".to_owned(),
            (true, _) => format!("its server has no connection to {}", upstream.name),
        });
    };
    if !follows(scene, receiver, upstream) {
        return Some(format!("it streams from {} instead of {}", receiver.upstream, upstream.name));
    }
    if receiver.status != "streaming" {
        return Some(format!("its receiver is {}", receiver.status));
    }
    let Some(alive_at) = alive_at else {
        return Some(format!("no message of {} was seen yet", upstream.name));
    };
    let message_at = message_at(seen, receiver);
    let heard_at = heard_upstream_at(seen, upstream);
    // A message well after the keepers lost each other: the host lives, only its keeper does not.
    let keeper_died = message_at > heard_at.map(|heard| heard.plus(LINK_SILENT_AFTER));
    let limit = if heard_at.is_none() || keeper_died { message_limit(scene) } else { scene.fresh() };
    let within = |at: Option<Moment>, limit| at.is_some_and(|at| scene.now.since(at) <= limit);
    if within(heard_at, scene.fresh()) && message_at.is_some() && !within(message_at, silence_limit(scene)) {
        return Some(format!("its connection to {} is silent", upstream.name));
    }
    (!within(Some(alive_at), limit)).then(|| format!("nothing comes through between {} and it", upstream.name))
}

/// Whether the receiver is connected where it should be. Only another member's address proves the contrary: one host
/// may be written in several ways.
fn follows(scene: &Scene<'_>, receiver: &Receiver, upstream: &Member) -> bool {
    receiver.upstream == upstream.postgres_address()
        || !scene.state.members.values().any(|other| !other.witness && other.postgres_address() == receiver.upstream)
}

fn message_at(seen: &Observed, receiver: &Receiver) -> Option<Moment> {
    receiver.last_message_age_ms.map(|age| seen.taken_at.minus(Millis(age)))
}

fn heard_upstream_at(seen: &Observed, upstream: &Member) -> Option<Moment> {
    seen.sample.peers_heard_ms.get(&upstream.id).map(|silence| seen.taken_at.minus(Millis(*silence)))
}

/// When the way to the upstream was last proved to work.
fn last_alive(scene: &Scene<'_>, seen: &Observed, receiver: &Receiver, upstream: &Member) -> Option<Moment> {
    if receiver.status != "streaming" {
        return None;
    }
    let message = message_at(seen, receiver);
    let heard = heard_upstream_at(seen, upstream);
    match message {
        // The keepers hear each other, but the servers' own connection does not work.
        Some(message) if scene.now.since(message) > silence_limit(scene) => Some(message),
        Some(_) | None => message.max(heard),
    }
}

fn sender_of<'a>(
    scene: &Scene<'a>,
    member: &Member,
    upstream: &Member,
) -> Option<(&'a Observed, &'a ServerFacts, &'a Sender)> {
    let facts = scene.current_facts(upstream.id)?;
    let name = application_name(scene.salt, member);
    let sender = facts.senders.iter().find(|sender| sender.application_name == name)?;
    Some((scene.seen(upstream.id)?, facts, sender))
}

fn catches_up(scene: &Scene<'_>, member: &Member, upstream: &Member) -> bool {
    sender_of(scene, member, upstream).is_some_and(|(_, _, sender)| sender.state == "catchup")
}

/// A replica whose keeper has been silent for so long that the upstream's server would have dropped a dead connection:
/// if it still streams, the replica lives.
fn by_sender(scene: &Scene<'_>, member: &Member) -> Option<Link> {
    let upstream = scene.state.upstream_of(member.id)?;
    let (seen, facts, sender) =
        sender_of(scene, member, upstream).filter(|(_, _, sender)| sender.state == "streaming")?;
    let view = ReplicaView {
        timeline: facts.timeline,
        received: sender.flush,
        replayed: sender.replay,
        taken_at: seen.taken_at,
        link_alive_at: Some(seen.taken_at),
        link_up: true,
    };
    Some(Link {
        status: LinkStatus::Streaming,
        up: true,
        view: Some(view),
        why: String::new(),
        alive_at: Some(seen.taken_at),
    })
}

fn view(seen: &Observed, facts: &ServerFacts, alive_at: Option<Moment>, up: bool) -> ReplicaView {
    ReplicaView {
        timeline: facts.timeline,
        received: facts.received,
        replayed: facts.replayed,
        taken_at: seen.taken_at,
        link_alive_at: alive_at,
        link_up: up,
    }
}

fn down(known: Option<(&Observed, &ServerFacts)>, alive_at: Option<Moment>, why: &str) -> Link {
    Link {
        status: LinkStatus::Disconnected,
        up: false,
        view: known.map(|(seen, facts)| view(seen, facts, alive_at, false)),
        why: why.to_owned(),
        alive_at,
    }
}
