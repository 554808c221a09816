//! A cluster that follows another one: letting it in, who leads it, and how it becomes a cluster that takes writes.
//!
//! Nobody acknowledges commits in a standby cluster, so who leads it is a matter of convenience: any keeper may name
//! another leader when the present one is gone, by one compare-and-set, and a former leader that has not heard of it
//! yet streams on without harm. What the copies hold came from elsewhere; its timelines are begun in the epochs of the
//! same number here (`epoch_of_timeline`), so that the further of two copies is found as among recruits of a failover.

use crate::history::{self, STEMMA};
use crate::naming::{follower_application_name, follower_slot};
use crate::tokens;
use model::follow::{Follow, Follower};
use model::limits::FOLLOWERS_MAX;
use model::state::{LineageEntry, Stage, TokenUse};
use model::{
    ClusterId, ClusterName, ClusterState, Epoch, Lsn, Member, Millis, NodeId, ReplicaKind, SystemId, Timeline, Trouble,
    WallTime,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A leader whose keeper is silent for so long is replaced. There is no hurry: nobody waits for a commit.
pub const LEADER_SILENT_MAX: Millis = Millis::from_secs(3);
/// The same for a leader whose server is down although its keeper answers; time enough to start it again.
pub const LEADER_DOWN_MAX: Millis = Millis::from_secs(20);
/// A node heard within this time may become the leader.
const HEARD_WITHIN: Millis = Millis::from_secs(1);

/// What a cluster that wants to follow says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowRequest {
    /// Public id of the token.
    pub token_id: String,
    /// Its secret.
    pub token_secret: String,
    /// Name of the cluster that wants to follow.
    pub name: ClusterName,
    /// Its id.
    pub cluster_id: ClusterId,
    /// Request for a certificate, PEM.
    pub csr_pem: String,
    /// SHA-256 of the public key in it, hex. The receiver takes it from `csr_pem`.
    pub key_fingerprint: String,
    /// Major version of its server programs.
    pub server_major: u32,
}

/// What a cluster that was let in needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FollowAnswer {
    /// Whom it follows.
    pub follow: Follow,
    /// The database.
    pub system_id: SystemId,
    /// Its major version.
    pub major: u32,
    /// The certificate.
    pub certificate_pem: String,
    /// The CAs to trust.
    pub ca_pem: Vec<String>,
}

/// Lets a cluster follow this one. The same key that asks again with the same token gets the same answer.
pub fn register(
    state: &ClusterState,
    request: &FollowRequest,
    now: WallTime,
) -> Result<(ClusterState, Follower), Trouble> {
    let token = (request.token_id.as_str(), request.token_secret.as_str());
    if let Some(node) = tokens::check_follower(state, token, &request.key_fingerprint, now)? {
        return match state.followers.get(&node) {
            Some(follower) => Ok((state.clone(), follower.clone())),
            None => Err(Trouble::token_refused(
                "the token was used by a cluster that does not follow this one any more",
                "make a new one with `stemma token create --role follower`",
            )),
        };
    }
    may_be_followed(state, request)?;
    let mut next = state.clone();
    let id = NodeId(next.next_node_id);
    next.next_node_id += 1;
    let follower = Follower {
        id,
        name: request.name.clone(),
        cluster_id: request.cluster_id.clone(),
        key_fingerprint: request.key_fingerprint.clone(),
        since: now,
    };
    next.followers.insert(id, follower.clone());
    if let Some(token) = next.tokens.get_mut(&request.token_id) {
        token.used_by = Some(TokenUse { key_fingerprint: request.key_fingerprint.clone(), node: id, at: now });
    }
    let text = format!("cluster {} follows this one from now on", request.name);
    history::record(&mut next, now, "follower-admitted", None, text, &format!("token {}", request.token_id));
    Ok((next, follower))
}

fn may_be_followed(state: &ClusterState, request: &FollowRequest) -> Result<(), Trouble> {
    let refuse = |reason: String, hint: &str| Err(Trouble::follow_refused(reason, hint));
    let name = &state.identity.name;
    if state.following().is_some() {
        return refuse(
            format!("cluster {name} follows another one itself"),
            "follow the cluster that takes the writes: make the token there",
        );
    }
    if !state.settings.tls {
        return refuse(
            format!(
                "cluster {name} has no TLS between its servers (tls = false), and another cluster logs in by certificate"
            ),
            "set tls = true in the cluster that is to be followed",
        );
    }
    let Some(major) = state.identity.major.filter(|_| state.identity.system_id.is_some()) else {
        return refuse(format!("cluster {name} has no database yet"), "start its first node with `stemma run`");
    };
    if major != request.server_major {
        return Err(Trouble::version_mismatch(
            format!("cluster {name} runs PostgreSQL {major}, the programs here are {}", request.server_major),
            "set [postgresql] bin_dir to the programs of that version",
        ));
    }
    if state.followers.values().any(|follower| follower.name == request.name) {
        return Err(Trouble::name_taken(
            format!("a cluster named {} follows cluster {name} already", request.name),
            "choose another name, or end its following there first: stemma cluster forget NAME",
        ));
    }
    if state.followers.len() >= FOLLOWERS_MAX {
        return Err(Trouble::limit_reached(
            format!("{FOLLOWERS_MAX} clusters follow cluster {name} already"),
            "end one's following with `stemma cluster forget NAME`",
        ));
    }
    Ok(())
}

/// What the follower must know of this cluster.
pub fn introduce(state: &ClusterState, follower: &Follower, salt: &str) -> Follow {
    // The primary first: it is the one that is looked for.
    let mut members: Vec<&Member> =
        state.members.values().filter(|member| !member.witness && member.stage != Stage::Leaving).collect();
    members.sort_by_key(|member| (member.id != state.rule.primary, member.id));
    Follow {
        cluster: state.identity.name.clone(),
        cluster_id: state.identity.id.clone(),
        hosts: members.iter().map(|member| member.postgres_address()).collect(),
        slot: follower_slot(follower),
        application_name: follower_application_name(salt, follower),
        epoch: state.rule.epoch,
        since: follower.since,
        promoted: None,
    }
}

/// Turns the state of a cluster that is just being made into that of a standby cluster.
pub fn begin(state: &mut ClusterState, follow: Follow, system_id: SystemId, major: u32, now: WallTime) {
    state.identity.system_id = Some(system_id);
    state.identity.major = Some(major);
    let text = format!("cluster {} follows cluster {}", state.identity.name, follow.cluster);
    state.follow = Some(follow);
    history::record(state, now, "cluster-follows", None, text, STEMMA);
}

/// Ends a cluster's following. `None`: it does not follow.
pub fn forget(state: &ClusterState, name: &ClusterName, actor: &str, now: WallTime) -> Option<ClusterState> {
    let id = state.followers.values().find(|follower| follower.name == *name)?.id;
    let mut next = state.clone();
    next.followers.remove(&id);
    let text = format!("cluster {name} may not follow this one any more; its slot is dropped");
    history::record(&mut next, now, "follower-forgotten", None, text, actor);
    Some(next)
}

/// What is known of a data node of a standby cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How long its keeper has been silent.
    pub silent: Millis,
    /// For how long its server has not been seen to run; zero while it runs.
    pub down: Millis,
    /// The end of its data, where known.
    pub holds: Option<(Timeline, Lsn)>,
}

/// Why the leader has to be replaced, and by whom; `None` while it need not or cannot be.
pub fn successor(state: &ClusterState, seen: &BTreeMap<NodeId, Seen>) -> Option<(NodeId, String)> {
    state.following()?;
    let leader = state.rule.primary;
    let name = state.members.get(&leader).map_or_else(|| format!("node {leader}"), |member| member.name.to_string());
    let why = match seen.get(&leader) {
        _ if !state.members.get(&leader).is_some_and(fit) => format!("{name} is no active replica any more"),
        Some(seen) if seen.silent >= LEADER_SILENT_MAX => format!("the keeper of {name} is silent"),
        Some(seen) if seen.down >= LEADER_DOWN_MAX => format!("the server of {name} is down"),
        Some(_) | None => return None,
    };
    let ready = |member: &&Member| {
        member.id != leader
            && fit(member)
            && member.stage == Stage::Active
            && seen
                .get(&member.id)
                .is_some_and(|seen| seen.silent < HEARD_WITHIN && seen.down == Millis(0) && seen.holds.is_some())
    };
    let held = |member: &&Member| {
        (seen.get(&member.id).and_then(|seen| seen.holds), member.priority, std::cmp::Reverse(member.id))
    };
    let best = state.members.values().filter(ready).max_by_key(held)?;
    Some((best.id, why))
}

fn fit(member: &Member) -> bool {
    let there = match member.stage {
        Stage::Joining | Stage::Active | Stage::Rejoin { .. } | Stage::Reinit { .. } => true,
        Stage::Halted { .. } | Stage::Leaving => false,
    };
    !member.witness && there && member.kind != ReplicaKind::Delayed && member.priority > 0
}

/// Names another leader. `None`: meanwhile there is another one, or nothing is followed any more.
pub fn replace_leader(
    state: &ClusterState,
    seen: Epoch,
    to: NodeId,
    because: &str,
    now: WallTime,
) -> Option<ClusterState> {
    state.following()?;
    let name = state.members.get(&to)?.name.clone();
    if state.rule.epoch != seen || state.rule.primary == to {
        return None;
    }
    let mut next = state.clone();
    next.rule.epoch = Epoch(seen.0 + 1);
    next.rule.version += 1;
    next.rule.primary = to;
    next.members.entry(to).and_modify(|member| member.upstream = None);
    let text = format!("{name} streams from the followed cluster from now on: {because}");
    history::record(&mut next, now, "leader-replaced", Some(&name), text, STEMMA);
    Some(next)
}

/// In which epoch of this cluster a timeline of the followed cluster counts as begun.
pub fn epoch_of_timeline(timeline: Timeline) -> Epoch {
    Epoch(u64::from(timeline.0))
}

/// The lineage of what was copied, up to `timeline`, and the epoch under which this cluster may begin its own.
pub fn inherited(state: &ClusterState, timeline: Timeline, upstream: Option<Epoch>) -> (Vec<LineageEntry>, Epoch) {
    let oldest = timeline.0.saturating_sub(LINEAGE_KEPT - 1).max(1);
    let entry = |number: u32| {
        let timeline = Timeline(number);
        LineageEntry { epoch: epoch_of_timeline(timeline), timeline, began_at: None, from: None, xids: None }
    };
    let followed = state.follow.as_ref().map_or(Epoch(0), |follow| follow.epoch);
    // The next timeline of the followed cluster may just have come.
    let beyond = epoch_of_timeline(Timeline(timeline.0.saturating_add(1)));
    let highest = [state.rule.epoch, followed, upstream.unwrap_or_default(), beyond].into_iter().max();
    ((oldest..=timeline.0).map(entry).collect(), highest.unwrap_or_default())
}

const LINEAGE_KEPT: u32 = 16;

/// Names under which followers may replicate from this cluster's servers.
pub fn common_names(state: &ClusterState) -> Vec<String> {
    let names: BTreeSet<String> = state.followers.values().map(Follower::common_name).collect();
    names.into_iter().collect()
}

#[cfg(test)]
mod tests;
