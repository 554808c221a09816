//! Keeping the durability rule in consensus and the server's `synchronous_standby_names` (below: the list) in step,
//! so that at no instant, crashes between any two steps included, an acknowledged commit could be missed by a
//! promotion. Pure: the keeper of the primary calls `next_step`, carries the one step out, looks again, and so on.
//!
//! # What the rule means
//! The rule holds the voters `V`, `acks` and `recruit_quorum` (`q`). `q` counts *every* recruited voter, the later
//! winner included. With `acks >= 1` it is the promise: **every commit acknowledged so far, and every commit that the
//! old primary could still get acknowledged after `q` voters are recruited, is held by a recruited voter.** For that
//! `acks` voters must hold each commit and `q >= |V| - acks + 1`; we write rules with exactly that `q`. With
//! `acks = 0` nothing is promised: no promotion is without loss, and `q = |V|`, so that all are asked for positions.
//!
//! # What must hold
//! Let the server wait for `k` of the nodes `S`. A commit is then held by `k` of `S`, of which at least `k - |S \ V|`
//! are voters. *The future is safe* while `k - |S \ V| >= acks`; with `q = |V| - acks + 1` that is
//! `|V ∪ S ∪ {primary}| <= q + k`. (Written with the quorum that counts only the *other* voters a winner must hear
//! from, `q - 1`, the right side gets its `+ 1`: the form found in DESIGN 3.3. Applied to our `q` the `+ 1` would be
//! one node too lax; a test shows the loss.)
//! *The past is safe* across a change of the rule from `(V, acks)` to `(V', acks')` if
//! * `acks' <= acks - |V \ V'|`: no more is promised than was (adding voters raises `q`, not `acks`), or
//! * `acks'` voters of `V'` are **confirmed**: they flushed past a position of the primary that was read *after* the
//!   server took up `(k, S)`, the floor. What was acknowledged before lies below the floor, thus confirmed nodes hold
//!   it; what came later is held by `k` of `S`. This is also why a replica that catches up is not yet counted.
//!
//! A change of the server alone never touches the past. Hence the order: what grows is written first, what shrinks
//! last, with the union of both voter sets in between; and nothing but the rule, the server and the floors is needed
//! to know the next step, so a keeper that crashed simply goes on (it takes the floors anew).
//!
//! # What the keeper must do
//! * Give as `SyncView::server` what the running server has in force, read before `primary_position` was read.
//! * `WriteServer`: write, reload, wait until it is in force in the server's senders too, then **forget all floors**
//!   (also those of nodes that stay in the list: after `ANY 1` became `ANY 2` the old commits have one holder only).
//! * `WaitConfirmed {node, floor}`: keep `floor` for the node unless one is kept already; when idle, write a log record.
//! * After its own start: reload the server first, so that a list that was written but not taken up is in force, not
//!   waiting to come into force at a restart of the server when the rule has moved on. Floors are empty then.
//! * Say `eligible: false` for members that are not `Active`, may not vote, or are about to be restarted or rebuilt.
//!   Safety does not hang on it: a voter that lost its data cannot be recruited until a base backup, begun afterwards
//!   from the primary, is consistent, and then it holds all that was acknowledged. It keeps commits from waiting.
//! * Count `unreachable_ms` from its own start at the earliest; say `flushed: None` for a replica on another timeline.
//! * Be sure of the rule before `WriteServer`. A keeper that starts, or that does not know what came of a write of the
//!   rule (its own, or one of the process before it that is still on its way), may plan on a rule that is not the last
//!   one. It writes `barrier` first and sees it in force: every earlier write is refused from then on.
//! * `next_step` acts for the primary of the rule only; writes of the rule are compare-and-set on the state it was given.

use model::settings::CommitMode;
use model::{Lsn, NodeId, Rule, Settings, Site};
use std::collections::{BTreeMap, BTreeSet};

mod names;
pub use names::{NOBODY, parse, render};

/// `synchronous_standby_names` as far as it can be understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerSync {
    /// How many nodes of the list the server waits for.
    pub acks: u32,
    /// The members in the list.
    pub list: BTreeSet<NodeId>,
    /// As the server has it.
    pub raw: String,
    /// It holds names of nobody we know, `*`, or a form we never write: nothing can be concluded from it.
    pub strangers: bool,
}

impl ServerSync {
    /// The acknowledgements that every commit certainly has under this setting.
    fn waits_for(&self) -> u32 {
        if self.strangers { 0 } else { self.acks }
    }
}

/// How one replica does, as seen from the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoterFacts {
    /// Which.
    pub node: NodeId,
    /// The primary's sender to it is in state `streaming`: it has caught up. State `catchup` is not enough.
    pub streaming: bool,
    /// The position it reported as flushed, on the primary's timeline.
    pub flushed: Option<Lsn>,
    /// For how long it has not been streaming; 0 while it is.
    pub unreachable_ms: u64,
    /// Where it is.
    pub site: Site,
    /// Whether it may acknowledge by what it is: `Member::may_vote_for_commits`, stage `Active`, not about to stop.
    pub eligible: bool,
}

/// All that the next step depends on.
#[derive(Clone, Debug)]
pub struct SyncView<'a> {
    /// The rule in consensus.
    pub rule: &'a Rule,
    /// What the running primary has in force.
    pub server: ServerSync,
    /// The primary's flushed position, read after `server`.
    pub primary_position: Lsn,
    /// Every other data node.
    pub voters: Vec<VoterFacts>,
    /// The settings.
    pub settings: &'a Settings,
    /// Where the primary is.
    pub primary_site: Site,
    /// Data nodes of the cluster, the primary included; delayed ones excluded.
    pub data_nodes: usize,
    /// The floors kept since the server took up its present setting (see the head of this file).
    pub floor: BTreeMap<NodeId, Lsn>,
}

/// The one thing to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncStep {
    /// Write this rule.
    WriteRule(Rule),
    /// Let the server wait for `acks` of `list` (see `render`).
    WriteServer {
        /// How many.
        acks: u32,
        /// Of whom.
        list: BTreeSet<NodeId>,
    },
    /// Keep `floor` for `node`, and wait until it flushed past it.
    WaitConfirmed {
        /// Who is waited for.
        node: NodeId,
        /// Where it must come.
        floor: Lsn,
    },
    /// Rule and server are as wanted.
    NothingToDo,
}

/// Ways to get this wrong, for tests: each must be caught by the model check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code, reason = "only tests plan badly on purpose"))]
enum Flaw {
    None,
    /// Writes the server although the rule promises more than it will wait for.
    ServerFirst,
    /// Counts replicas of the list without having seen them pass the floor.
    CountUnconfirmed,
    /// In between, keeps only the new voters instead of the union.
    DropUnion,
    /// Takes `q = |V| - acks`, as the invariant of DESIGN 3.3 would allow for a `q` that counts the winner.
    QuorumWithoutWinner,
    /// Removes voters without lowering the promise.
    KeepPromise,
}

/// The next step towards what the settings ask for. Each keeps the invariant; with stable facts they come to an end.
pub fn next_step(view: &SyncView<'_>) -> SyncStep {
    plan(view, Flaw::None)
}

/// The same rule with the next version: once it is in force, no earlier write of the rule can be any more.
pub fn barrier(rule: &Rule) -> Rule {
    Rule { version: rule.version + 1, ..rule.clone() }
}

/// Whether the promise of the rule is covered by what the server waits for, and one set contains the other.
pub fn invariant_holds(rule: &Rule, server: &ServerSync) -> bool {
    let union = rule.voters.union(&server.list).count() as u64;
    let nested = nested(&rule.voters, &server.list);
    match rule.acks {
        // Nothing is promised, so nothing can be broken.
        0 => nested && rule.recruit_quorum as usize == rule.voters.len(),
        _ => {
            let possible = (1..=rule.voters.len()).contains(&(rule.recruit_quorum as usize));
            nested && possible && union < u64::from(rule.recruit_quorum) + u64::from(server.waits_for())
        }
    }
}

/// How many voters hold every acknowledged commit, by the promise of the rule. Read from `recruit_quorum`, since that
/// is what a promotion relies on.
fn promised(rule: &Rule) -> u32 {
    match rule.acks {
        0 => 0,
        _ => (rule.voters.len() as u32 + 1).saturating_sub(rule.recruit_quorum.max(1)),
    }
}

fn nested(a: &BTreeSet<NodeId>, b: &BTreeSet<NodeId>) -> bool {
    a.is_subset(b) || b.is_subset(a)
}

fn outside(a: &BTreeSet<NodeId>, b: &BTreeSet<NodeId>) -> u32 {
    a.difference(b).count() as u32
}

fn plan(view: &SyncView<'_>, flaw: Flaw) -> SyncStep {
    let (rule, server) = (view.rule, &view.server);
    let promised = promised(rule);
    let covered = server.waits_for().saturating_sub(outside(&server.list, &rule.voters));
    if covered < promised || !nested(&rule.voters, &server.list) {
        // Somebody changed the server behind our back. What it acknowledged meanwhile is beyond recall; the rule must
        // stop promising it before anything else, since a promotion may come at any moment.
        let voters = rule.voters.union(&server.list).copied().collect();
        return SyncStep::WriteRule(rule_with(view, voters, promised.min(covered), flaw));
    }
    let (acks, list) = wanted(view);
    if server.strangers || server.acks != acks || server.list != list {
        let safe = promised <= acks.saturating_sub(outside(&list, &rule.voters)) && nested(&list, &rule.voters);
        if safe || flaw == Flaw::ServerFirst {
            return SyncStep::WriteServer { acks, list };
        }
        // The union promises no more than before and contains the old list and the new one. With lower acks to come,
        // the promise goes first.
        let voters = match flaw {
            Flaw::DropUnion => list,
            Flaw::None | Flaw::ServerFirst | Flaw::CountUnconfirmed | Flaw::QuorumWithoutWinner | Flaw::KeepPromise => {
                &(&rule.voters | &server.list) | &list
            }
        };
        return SyncStep::WriteRule(rule_with(view, voters, promised.min(acks), flaw));
    }
    settle_rule(view, promised, flaw)
}

/// The server waits for the right nodes: bring the rule to what is proved of them.
fn settle_rule(view: &SyncView<'_>, promised: u32, flaw: Flaw) -> SyncStep {
    let (rule, server) = (view.rule, &view.server);
    let voters = if server.acks == 0 { present(view) } else { server.list.clone() };
    let goal = server.acks.min(voters.len() as u32);
    let gone = if flaw == Flaw::KeepPromise { 0 } else { outside(&rule.voters, &voters) };
    let confirmed = voters.iter().filter(|node| flaw == Flaw::CountUnconfirmed || is_confirmed(view, **node)).count();
    let provable = promised.saturating_sub(gone).max(confirmed as u32).min(goal);
    let proposal = rule_with(view, voters, provable, flaw);
    if provable < goal {
        // Half a step is worth a write only if it makes a promotion easier and gives no promise up.
        let easier = provable > promised || (proposal.voters != rule.voters && provable >= promised.max(1));
        if !easier {
            return wait_for_one(view);
        }
    }
    let same = Rule { version: rule.version, ..proposal.clone() } == *rule;
    if same { SyncStep::NothingToDo } else { SyncStep::WriteRule(proposal) }
}

fn is_confirmed(view: &SyncView<'_>, node: NodeId) -> bool {
    let flushed = view.voters.iter().find(|facts| facts.node == node).and_then(|facts| facts.flushed);
    view.floor.get(&node).is_some_and(|floor| flushed.is_some_and(|flushed| flushed >= *floor))
}

/// First those that have no floor yet, so that every node gets its own soon; then any that is behind its floor.
fn wait_for_one(view: &SyncView<'_>) -> SyncStep {
    let bare = view.server.list.iter().find(|node| !view.floor.contains_key(node));
    let behind = view.server.list.iter().find(|node| !is_confirmed(view, **node));
    match bare.or(behind) {
        Some(node) => {
            let floor = view.floor.get(node).copied().unwrap_or(view.primary_position);
            SyncStep::WaitConfirmed { node: *node, floor }
        }
        // Unreachable while fewer are confirmed than the goal asks for; doing nothing is safe in any case.
        None => SyncStep::NothingToDo,
    }
}

fn rule_with(view: &SyncView<'_>, voters: BTreeSet<NodeId>, acks: u32, flaw: Flaw) -> Rule {
    let all = voters.len() as u32;
    let winner = if flaw == Flaw::QuorumWithoutWinner { 0 } else { 1 };
    let recruit_quorum = if acks == 0 { all } else { (all - acks + winner).max(1) };
    Rule {
        voters,
        acks,
        recruit_quorum,
        mode: view.settings.commit_mode,
        version: view.rule.version + 1,
        epoch: view.rule.epoch,
        primary: view.rule.primary,
    }
}

/// Acknowledgements that the mode asks for, with `data_nodes` data nodes of which `voters` may acknowledge.
pub fn acks_asked(mode: CommitMode, data_nodes: usize, voters: usize) -> u32 {
    match mode {
        CommitMode::Async => 0,
        CommitMode::SemiSync => 1,
        // With the primary itself, floor(N/2) + 1 of N hold the commit.
        CommitMode::Quorum => (data_nodes / 2) as u32,
        CommitMode::Sync => voters.max(1) as u32,
    }
}

/// The replicas that follow, and those of the present voters that stopped only just now.
fn present(view: &SyncView<'_>) -> BTreeSet<NodeId> {
    let grace = view.settings.voter_grace.0.0;
    let current = &view.rule.voters | &view.server.list;
    let here =
        |facts: &&VoterFacts| facts.streaming || (current.contains(&facts.node) && facts.unreachable_ms <= grace);
    eligible(view).filter(here).map(|facts| facts.node).collect()
}

fn eligible<'v>(view: &'v SyncView<'_>) -> impl Iterator<Item = &'v VoterFacts> {
    view.voters.iter().filter(|facts| facts.eligible && facts.node != view.rule.primary)
}

/// What the server should wait for: how many, of whom.
///
/// With `strict = false` only present replicas are in the list, and the number falls to what they can give. With
/// `strict = true` the number stays: when too few are present the last voters stay in the list with them, and with
/// nobody at all the list is empty while the number is not (`render` then puts a name that nobody can have).
///
/// `sync_from_other_site`: every set of `acks` nodes of the list must contain one of another site. Either the list
/// holds only such nodes, where there are enough of them, or more acknowledgements are asked for than there are local
/// nodes in it.
pub fn wanted(view: &SyncView<'_>) -> (u32, BTreeSet<NodeId>) {
    let strict = view.settings.strict;
    let mode = view.settings.commit_mode;
    let current = &view.rule.voters | &view.server.list;
    let here = present(view);
    // Voters that may come back. They are waited for only under `strict`, and only where the others do not suffice.
    let with_last: BTreeSet<NodeId> = eligible(view)
        .filter(|facts| here.contains(&facts.node) || current.contains(&facts.node))
        .map(|facts| facts.node)
        .collect();
    let asked = acks_asked(mode, view.data_nodes, if strict { with_last.len() } else { here.len() });
    if asked == 0 {
        return (0, BTreeSet::new());
    }
    let is_other = |node: &NodeId| eligible(view).any(|facts| facts.node == *node && facts.site != view.primary_site);
    let others_here = here.iter().filter(|node| is_other(node)).count();
    let by_site = view.settings.sync_from_other_site;
    let enough = here.len() >= asked as usize && (!by_site || others_here >= 1);
    let list = if strict && !enough { with_last } else { here };
    let acks = if strict { asked } else { asked.min(list.len() as u32) };
    let others: BTreeSet<NodeId> = list.iter().copied().filter(is_other).collect();
    if !by_site || (others.is_empty() && !strict) {
        return (acks, list);
    }
    if !others.is_empty() && others.len() >= acks as usize {
        return match mode {
            // All voters means all, wherever they are.
            CommitMode::Sync => (acks, list),
            CommitMode::Async | CommitMode::SemiSync | CommitMode::Quorum => (acks, others),
        };
    }
    let local = (list.len() - others.len()) as u32;
    (acks.max(local + 1), list)
}

#[cfg(test)]
mod model_check;
#[cfg(test)]
mod tests;
