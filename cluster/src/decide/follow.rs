//! Commands about a cluster that follows another one, on both sides.

use super::{Context, outcome, unchanged};
use crate::failover::procedure;
use crate::follow;
use crate::history;
use crate::tokens;
use model::failover::{Failover, FailoverKind, FailoverPhase, PhaseTime};
use model::follow::FollowStatus;
use model::settings::{Size, Span};
use model::{ClusterName, ClusterState, Epoch, Millis, Outcome, Trouble};
use std::collections::BTreeMap;

type Decided = Result<(ClusterState, Outcome), Trouble>;

/// Makes a token that lets another cluster follow this one.
pub(super) fn create_token(state: &ClusterState, ttl: Millis, context: &Context<'_>) -> Decided {
    if state.following().is_some() {
        return Err(Trouble::follow_refused(
            format!("cluster {} follows another one itself", state.identity.name),
            "make the token in the cluster that takes the writes",
        ));
    }
    let mut next = state.clone();
    let token = tokens::create_follower(&mut next, ttl, &context.random, &context.actor, context.now)?;
    let text = format!("token {} was made for a cluster that follows, good for {}", token.id, Span(ttl));
    history::record(&mut next, context.now, "token-made", None, text.clone(), &context.actor.name);
    let notes = vec!["it lets one cluster follow this one and is shown only now".to_owned()];
    Ok((next, Outcome { token: Some(format!("{}.{}", token.id, token.secret)), notes, ..outcome(text) }))
}

/// Ends a cluster's following.
pub(super) fn forget(state: &ClusterState, name: &ClusterName, context: &Context<'_>) -> Decided {
    match follow::forget(state, name, &context.actor.name, context.now) {
        Some(next) => {
            let notes = vec!["its certificate is refused and its slot dropped within a second".to_owned()];
            Ok((next, Outcome { notes, ..outcome(format!("cluster {name} does not follow this one any more")) }))
        }
        None => Err(Trouble::not_found(
            format!("no cluster named {name} follows this one"),
            "`stemma status` lists the clusters that do",
        )),
    }
}

/// In a standby cluster there is no primary that could be changed.
pub(super) fn no_primary(state: &ClusterState) -> Trouble {
    let whom = state.follow.as_ref().map_or("another one", |follow| follow.cluster.as_str());
    Trouble::standby_cluster(
        format!("cluster {} follows cluster {whom}: it has no primary", state.identity.name),
        "to have it take writes: stemma cluster promote. A leader that fails is replaced without being told",
    )
}

/// Makes a standby cluster one that takes writes, by an attempt like any other: its nodes are recruited, which cuts
/// every stream, and the one that holds most is promoted.
pub(super) fn promote(state: &ClusterState, loss_bytes_max: Option<u64>, context: &Context<'_>) -> Decided {
    let request = context.request();
    if let Some(made) = state.failovers.iter().chain(&state.failover).find(|it| it.request == request) {
        let text = format!("promotion {} was begun", made.id);
        return Ok((state.clone(), Outcome { failover: Some(made.id.clone()), ..outcome(text) }));
    }
    let Some(followed) = &state.follow else {
        return Err(Trouble::not_following(
            format!("cluster {} follows no other cluster", state.identity.name),
            "only a cluster made by `stemma cluster follow` can be promoted; within a cluster: stemma switchover",
        ));
    };
    if let Some(promoted) = &followed.promoted {
        return Ok(unchanged(state, format!("the cluster was promoted already ({})", promoted.failover)));
    }
    if let Some(running) = &state.failover {
        return Err(Trouble::operation_running(
            format!("the promotion is in progress: {}", running.id),
            format!("`stemma explain {}` shows how far it is", running.id),
        ));
    }
    let able: Vec<_> = context.status.nodes.iter().filter(|node| node.keeper_up && node.server == "running").collect();
    let timeline = able.iter().filter_map(|node| node.timeline).max();
    let Some(timeline) = timeline else {
        return Err(Trouble::promotion_refused(
            "no node of this cluster has a server that runs",
            "bring one up; `stemma status` says what is wrong with each",
        ));
    };
    let loss = Loss::of(followed.cluster.as_str(), context.status.follow.as_ref());
    loss.acceptable(loss_bytes_max)?;
    let (lineage, highest) = follow::inherited(state, timeline, loss.upstream_epoch);
    let mut next = state.clone();
    next.lineage = lineage;
    let because = match context.actor.reason.as_str() {
        "" => format!("{} promotes the standby cluster", context.actor.name),
        given => given.to_owned(),
    };
    let failover = attempt(state, highest, loss.bytes, because, request, context);
    let id = failover.id.clone();
    let text = format!("the cluster is promoted ({id}): {}", loss.words);
    history::record(&mut next, context.now, "promotion-begun", None, text, &context.actor.name);
    next.failover = Some(failover);
    let text = format!("cluster {} stops following cluster {} and takes writes", state.identity.name, followed.cluster);
    Ok((next, Outcome { failover: Some(id), notes: loss.notes(), ..outcome(text) }))
}

fn attempt(
    state: &ClusterState,
    highest: Epoch,
    loss_bytes: Option<u64>,
    because: String,
    request: String,
    context: &Context<'_>,
) -> Failover {
    let epoch = Epoch(highest.max(procedure::epoch_of(state)).0 + 1);
    Failover {
        id: format!("fo_{epoch}"),
        epoch,
        from: state.rule.primary,
        // What the followed cluster had beyond is accepted by whoever asks; among the copies here nothing is lost, for
        // the one that holds most wins.
        kind: FailoverKind::Forced { to: None, loss_bytes_max: u64::MAX },
        because,
        actor: context.actor.name.clone(),
        request,
        phase: FailoverPhase::Recruit,
        recruited: BTreeMap::new(),
        refused: BTreeMap::new(),
        winner: None,
        next: None,
        unsettled: Vec::new(),
        loss_bytes,
        started_at: context.now,
        phases: vec![PhaseTime { phase: FailoverPhase::Recruit, at: context.now }],
        ended_because: String::new(),
    }
}

/// What the followed cluster has and this one has not, as far as is known.
struct Loss {
    bytes: Option<u64>,
    silent_seconds: Option<f64>,
    streaming: bool,
    whom: String,
    words: String,
    upstream_epoch: Option<Epoch>,
}

impl Loss {
    fn of(whom: &str, follow: Option<&FollowStatus>) -> Loss {
        let (bytes, silent) = follow.map_or((None, None), |follow| (follow.behind_bytes, follow.silent_seconds));
        let streaming = follow.is_some_and(|follow| follow.streaming);
        let words = match (bytes, silent, streaming) {
            (Some(bytes), _, true) => format!("{bytes} bytes of log behind cluster {whom}, which is heard now"),
            (Some(bytes), Some(silent), false) => format!(
                "{bytes} bytes of log behind cluster {whom} as it was heard last, {silent:.1} s ago; what it acknowledged since is not here"
            ),
            (Some(_) | None, _, _) => format!("nobody knows how far behind cluster {whom}: it was not heard yet"),
        };
        let upstream_epoch = follow.and_then(|follow| follow.epoch);
        Loss { bytes, silent_seconds: silent, streaming, whom: whom.to_owned(), words, upstream_epoch }
    }

    fn acceptable(&self, most: Option<u64>) -> Result<(), Trouble> {
        let needed = match self.bytes {
            Some(bytes) => Size(bytes.div_ceil(1 << 20).max(1) << 20).to_string(),
            None => "unknown".to_owned(),
        };
        let refuse = |reason: String| {
            let hint = format!(
                "make sure that nobody writes to cluster {} any more, then: stemma cluster promote --accept-data-loss {needed}",
                self.whom
            );
            Err(Trouble::promotion_refused(reason, hint).because(&self.words))
        };
        match (most, self.bytes) {
            (None, _) => refuse("a promotion needs the loss that is accepted".to_owned()),
            (Some(u64::MAX), _) => Ok(()),
            (Some(_), None) => refuse(self.words.clone()),
            (Some(most), Some(bytes)) if bytes > most => {
                refuse(format!("{bytes} bytes of log would be missing, {most} are accepted"))
            }
            (Some(_), Some(_)) => Ok(()),
        }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = vec![self.words.clone()];
        if self.streaming {
            notes.push(format!(
                "cluster {} is up and goes on taking writes of its own: keep its clients away from it first",
                self.whom
            ));
        } else if self.silent_seconds.is_some() {
            notes.push(format!(
                "if cluster {} comes back it is another database: do not let both be written",
                self.whom
            ));
        }
        notes
    }
}
