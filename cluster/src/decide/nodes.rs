//! Commands about one node: remove it, change what it is, let it rejoin, rebuild it.

use super::{Context, member_named, outcome, unchanged};
use crate::admission::{check_delay, upstream_named};
use crate::consensus_group;
use crate::history;
use crate::sync::acks_asked;
use model::command::NodePatch;
use model::error::exit;
use model::state::Stage;
use model::{ClusterState, Member, NodeId, NodeName, Outcome, ReplicaKind, Trouble};
use std::collections::BTreeSet;

type Decided = Result<(ClusterState, Outcome), Trouble>;

/// Orders a node out. Its keeper stops its replication and leaves; the rule lets go of it first.
pub(super) fn remove(state: &ClusterState, name: &NodeName, force: bool, context: &Context<'_>) -> Decided {
    let member = member_named(state, name)?;
    if member.id == state.rule.primary {
        return Err(Trouble::target_is_primary(
            format!("`{name}` is the primary"),
            "choose another node; this version cannot move the primary",
        ));
    }
    if member.stage == Stage::Leaving {
        return Ok(unchanged(state, format!("{name} is being removed already")));
    }
    let answers = context.answers(name);
    if !answers && !force {
        return Err(Trouble::node_silent(
            format!("the keeper of `{name}` does not answer, so it cannot stop its own server"),
            format!("make sure that its server is stopped, then `stemma node remove {name} --force`"),
        ));
    }
    let mut next = state.clone();
    next.members.entry(member.id).and_modify(|found| found.stage = Stage::Leaving);
    check_consensus(&next, name, context)?;
    removable(state, &next, name)?;
    let how = if answers { "" } else { ", though its keeper does not answer" };
    let text = format!("removal of {name} was ordered{how}");
    history::record(&mut next, context.now, "node-leaving", Some(name), text, &context.actor.name);
    let fed: Vec<&str> = state
        .members
        .values()
        .filter(|other| other.upstream == Some(member.id))
        .map(|other| other.name.as_str())
        .collect();
    let mut notes = Vec::new();
    if !fed.is_empty() {
        notes.push(format!("{} will stream from the primary instead", fed.join(", ")));
    }
    if !answers {
        notes.push(format!("{name} is cut off, but what still runs there is not stopped"));
    }
    Ok((next, Outcome { notes, ..outcome(format!("{name} is being removed")) }))
}

/// Whether the cluster can do without the node now. `after` is the state with it leaving.
pub fn removable(state: &ClusterState, after: &ClusterState, name: &NodeName) -> Result<(), Trouble> {
    // One that leaves stops its server and is asked no more, yet the rules that bind the attempt may count on it, and they
    // cannot change before the attempt has ended.
    if let Some(running) = &state.failover {
        return Err(Trouble::operation_running(
            format!("a change of primary is in progress: {}", running.id),
            format!("wait until it is over; `stemma explain {}` shows how far it is", running.id),
        ));
    }
    check_strict(state, after, name)?;
    check_other_site(state, after, name)
}

/// Under `strict` every commit would wait once no replica is left at another site, where one of those must confirm.
fn check_other_site(before: &ClusterState, after: &ClusterState, name: &NodeName) -> Result<(), Trouble> {
    let sites = |state: &ClusterState| {
        let data =
            state.members.values().filter(|member| member.may_vote_for_commits() && member.stage == Stage::Active);
        data.map(|member| &member.site).collect::<BTreeSet<_>>().len()
    };
    if !after.settings.strict || !after.settings.sync_from_other_site || sites(after) > 1 || sites(before) < 2 {
        return Ok(());
    }
    let mut trouble = Trouble::durability_degraded(
        format!(
            "without `{name}` all data is at one site, and sync_from_other_site with strict = true waits for another"
        ),
        "add a replica at another site first, or set `strict = false` or `sync_from_other_site = false` with `stemma \
         config set`",
    );
    trouble.exit = exit::REFUSED;
    Err(trouble)
}

/// Of those that stay, a majority must answer: else the group could decide nothing, this removal's end included.
fn check_consensus(next: &ClusterState, name: &NodeName, context: &Context<'_>) -> Result<(), Trouble> {
    let (voters, _) = consensus_group::wanted(next);
    let answering = voters.iter().filter(|id| context.answers(&next.members[id].name)).count();
    if answering > voters.len() / 2 {
        return Ok(());
    }
    Err(Trouble::would_break_quorum(
        format!("without `{name}` only {answering} of {} voting keepers would answer", voters.len()),
        "bring silent nodes back, or remove those first with `stemma node remove <name> --force`",
    ))
}

/// Members that may acknowledge commits now.
fn voters_of(state: &ClusterState) -> usize {
    let counts = |member: &&Member| {
        member.may_vote_for_commits() && member.stage == Stage::Active && member.id != state.rule.primary
    };
    state.members.values().filter(counts).count()
}

/// Data nodes of which `quorum` takes the majority: all but delayed ones, the leaving excluded.
pub fn data_nodes(state: &ClusterState) -> usize {
    let counts = |member: &&Member| {
        let delayed = member.kind == ReplicaKind::Delayed && member.id != state.rule.primary;
        !member.witness && !delayed && member.stage != Stage::Leaving
    };
    state.members.values().filter(counts).count()
}

/// Under `strict` every commit would wait once fewer may acknowledge than the mode asks for.
fn check_strict(before: &ClusterState, after: &ClusterState, name: &NodeName) -> Result<(), Trouble> {
    let (had, left) = (voters_of(before), voters_of(after));
    let asked = acks_asked(after.settings.commit_mode, data_nodes(after), left) as usize;
    if !after.settings.strict || left >= asked || left == had {
        return Ok(());
    }
    let mut trouble = Trouble::durability_degraded(
        format!(
            "without `{name}` {left} replicas could acknowledge commits, and {} with strict = true waits for {asked}",
            after.settings.commit_mode
        ),
        "add a replica first, or set `strict = false` or another `commit_mode` with `stemma config set`",
    );
    trouble.exit = exit::REFUSED;
    Err(trouble)
}

/// Orders new keys and certificates; each node obeys by itself, a silent one when it is back.
pub(super) fn rotate_certificates(state: &ClusterState, node: Option<&NodeName>, context: &Context<'_>) -> Decided {
    let chosen = match node {
        Some(name) => vec![member_named(state, name)?.id],
        None => state.members.keys().copied().collect(),
    };
    let mut next = state.clone();
    next.next_order += 1;
    for member in next.members.values_mut().filter(|member| chosen.contains(&member.id)) {
        member.certificate_order = state.next_order;
    }
    let whose = node.map_or_else(|| "all nodes".to_owned(), |name| format!("`{name}`"));
    let text = format!("new keys and certificates ordered for {whose}");
    history::record(&mut next, context.now, "certificates-ordered", node, text.clone(), &context.actor.name);
    Ok((next, outcome(text)))
}

/// Changes what a node is.
pub(super) fn set(state: &ClusterState, name: &NodeName, patch: &NodePatch, context: &Context<'_>) -> Decided {
    let member = member_named(state, name)?;
    let mut changed = member.clone();
    if let Some(site) = &patch.site {
        changed.site = site.clone();
    }
    if let Some(priority) = patch.priority {
        changed.priority = priority;
    }
    check_replica_patch(state, member, patch)?;
    if let Some(kind) = patch.kind {
        changed.kind = kind;
        if kind != ReplicaKind::Delayed {
            changed.apply_delay_ms = 0;
        }
    }
    if let Some(delay) = patch.apply_delay_ms {
        changed.apply_delay_ms = delay;
    }
    check_delay(changed.kind, changed.apply_delay_ms)?;
    match &patch.upstream {
        Some(Some(upstream)) => changed.upstream = checked_upstream(state, member, upstream)?,
        Some(None) => changed.upstream = None,
        None => {}
    }
    let what = differences(state, member, &changed);
    if what.is_empty() {
        return Ok(unchanged(state, format!("{name} is as asked already")));
    }
    let mut next = state.clone();
    let could_vote = member.may_vote_for_commits();
    let may_vote = changed.may_vote_for_commits();
    next.members.insert(member.id, changed);
    check_strict(state, &next, name)?;
    let text = format!("{name}: {}", what.join(", "));
    history::record(&mut next, context.now, "node-changed", Some(name), text.clone(), &context.actor.name);
    let mut notes = Vec::new();
    if could_vote && !may_vote && member.id != state.rule.primary {
        notes.push(format!("{name} no longer acknowledges commits and is not promoted"));
    }
    Ok((next, Outcome { notes, ..outcome(text) }))
}

/// Kind, delay and upstream are about replicas.
fn check_replica_patch(state: &ClusterState, member: &Member, patch: &NodePatch) -> Result<(), Trouble> {
    let name = &member.name;
    let about_replica = patch.kind.is_some() || patch.apply_delay_ms.is_some() || patch.upstream.is_some();
    if member.witness && about_replica {
        return Err(Trouble::wrong_role(
            format!("`{name}` is a witness: it has no kind, delay or upstream"),
            "change its site or priority only",
        ));
    }
    if member.stage == Stage::Leaving {
        return Err(Trouble::wrong_role(format!("`{name}` is being removed"), "wait until it is gone"));
    }
    let delays = patch.kind == Some(ReplicaKind::Delayed) || patch.apply_delay_ms.is_some_and(|delay| delay > 0);
    let feeds_it = matches!(patch.upstream, Some(Some(_)));
    if member.id == state.rule.primary && (delays || feeds_it) {
        return Err(Trouble::target_is_primary(
            format!("`{name}` is the primary: it can be neither delayed nor fed by another node"),
            "choose another node; this version cannot move the primary",
        ));
    }
    Ok(())
}

/// The upstream to store. It must be a replica, and following it upwards must not lead back to the node itself.
fn checked_upstream(state: &ClusterState, member: &Member, wanted: &NodeName) -> Result<Option<NodeId>, Trouble> {
    let Some(upstream) = upstream_named(state, wanted)? else { return Ok(None) };
    let mut at = Some(upstream);
    // A ring that exists already would be walked for ever; there are no more hops than members.
    for _ in 0..=state.members.len() {
        match at {
            Some(id) if id == member.id => break,
            Some(id) => at = state.members.get(&id).and_then(|found| found.upstream),
            None => return Ok(Some(upstream)),
        }
    }
    Err(Trouble::wrong_role(
        format!("`{}` would stream from itself by way of `{wanted}`", member.name),
        format!("let `{wanted}` follow the primary first: `stemma node set {wanted} --from primary`"),
    ))
}

fn differences(state: &ClusterState, old: &Member, new: &Member) -> Vec<String> {
    let upstream = |member: &Member| {
        let found = member.upstream.and_then(|id| state.members.get(&id));
        found.map_or_else(|| "primary".to_owned(), |found| found.name.to_string())
    };
    let pairs = [
        ("kind", old.kind.as_str().to_owned(), new.kind.as_str().to_owned()),
        ("delay", format!("{} ms", old.apply_delay_ms), format!("{} ms", new.apply_delay_ms)),
        ("upstream", upstream(old), upstream(new)),
        ("site", old.site.to_string(), new.site.to_string()),
        ("priority", old.priority.to_string(), new.priority.to_string()),
    ];
    let differ = pairs.into_iter().filter(|(_, was, is)| was != is);
    differ.map(|(what, was, is)| format!("{what} {was} -> {is}")).collect()
}

/// A data node that is not the primary, or why not.
fn replica_named<'s>(state: &'s ClusterState, name: &NodeName, what: &str) -> Result<&'s Member, Trouble> {
    let member = member_named(state, name)?;
    if member.witness {
        return Err(Trouble::wrong_role(
            format!("`{name}` is a witness: there is no database to {what}"),
            "name a replica; `stemma status` shows the roles",
        ));
    }
    if member.id == state.rule.primary {
        return Err(Trouble::target_is_primary(
            format!("`{name}` is the primary and holds what the others copy"),
            "name a replica; `stemma status` shows the roles",
        ));
    }
    if member.stage == Stage::Leaving {
        return Err(Trouble::wrong_role(
            format!("`{name}` is being removed"),
            "let it join again with a new token once it is gone",
        ));
    }
    Ok(member)
}

/// Lets a halted node check its history and follow.
pub(super) fn rejoin(state: &ClusterState, name: &NodeName, context: &Context<'_>) -> Decided {
    let member = replica_named(state, name, "rejoin with")?;
    match &member.stage {
        Stage::Halted { .. } => {}
        Stage::Rejoin { .. } => return Ok(unchanged(state, format!("{name} is rejoining already"))),
        Stage::Joining | Stage::Active | Stage::Reinit { .. } | Stage::Leaving => {
            return Err(Trouble::wrong_role(
                format!("`{name}` is not halted, so there is nothing to rejoin from"),
                format!("`stemma status` shows how it is; `stemma node reinit {name}` rebuilds it"),
            ));
        }
    }
    let next = ordered(state, member, context, |order| Stage::Rejoin { order }, "node-rejoin-ordered", "rejoin");
    let notes = vec!["it follows if it has not diverged, and is halted again if it has".to_owned()];
    Ok((next, Outcome { notes, ..outcome(format!("{name} checks its history and rejoins")) }))
}

/// Has a replica rebuilt from the primary. The only command that destroys a copy, thus never without a source.
pub(super) fn reinit(state: &ClusterState, name: &NodeName, context: &Context<'_>) -> Decided {
    let member = replica_named(state, name, "rebuild")?;
    match &member.stage {
        Stage::Active | Stage::Halted { .. } | Stage::Rejoin { .. } => {}
        Stage::Reinit { .. } | Stage::Joining | Stage::Leaving => {
            return Ok(unchanged(state, format!("{name} is being built already")));
        }
    }
    if !context.status.primary_up {
        return Err(Trouble::primary_down(
            format!("nothing answers as the primary: without it the copy on `{name}` may be the last one"),
            "bring the primary back first; `stemma status` shows what is wrong",
        ));
    }
    let mut after = state.clone();
    after.members.entry(member.id).and_modify(|found| found.stage = Stage::Reinit { order: 0 });
    check_strict(state, &after, name)?;
    let next = ordered(state, member, context, |order| Stage::Reinit { order }, "node-reinit-ordered", "rebuild");
    let notes = vec!["its present data is discarded".to_owned()];
    Ok((next, Outcome { notes, ..outcome(format!("{name} is rebuilt from a fresh base backup")) }))
}

fn ordered(
    state: &ClusterState,
    member: &Member,
    context: &Context<'_>,
    stage: impl FnOnce(u64) -> Stage,
    kind: &str,
    what: &str,
) -> ClusterState {
    let mut next = state.clone();
    let order = next.next_order;
    next.next_order += 1;
    next.members.entry(member.id).and_modify(|found| found.stage = stage(order));
    let because = match context.actor.reason.as_str() {
        "" => String::new(),
        given => format!(": {given}"),
    };
    let text = format!("{what} of {} was ordered{because}", member.name);
    history::record(&mut next, context.now, kind, Some(&member.name), text, &context.actor.name);
    next
}
