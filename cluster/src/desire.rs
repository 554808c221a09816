//! What a keeper should do next for its own database server: facts in, one desire out.
//!
//! Level-triggered: the whole situation is looked at anew each time, so a keeper that was killed between any two
//! steps goes on where the facts say it stands. What is done about a desire is the keeper's business.

use model::observe::ServerFacts;
use model::state::{ClusterState, Member, Stage};
use model::units::{Lsn, SystemId, Timeline};
use model::{NodeId, Role};

/// What lies in the data directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// Nothing, or an empty directory.
    Empty,
    /// The remains of an initdb or clone of ours that did not end.
    HalfMade,
    /// A database.
    Present(Control),
}

/// What the control file says of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// Which lineage it belongs to.
    pub system_id: SystemId,
    /// Major version that made it.
    pub major: u32,
    /// Whether it last ran as a primary (not in recovery).
    pub was_primary: bool,
    /// Its timeline, as far as the last checkpoint knows.
    pub timeline: Timeline,
    /// Its last known position.
    pub position: Lsn,
}

/// How the server process stands.
#[derive(Clone, Debug)]
pub enum Process<'a> {
    /// None runs.
    Stopped,
    /// Runs and does not answer yet (or any more).
    Starting,
    /// Runs and answers.
    Running(&'a ServerFacts),
}

/// What is known of whether this data may follow the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lineage {
    /// Nobody has looked, or the primary could not be asked.
    Unknown,
    /// It may follow.
    Follows,
    /// It may follow, but its upstream no longer has the log that it needs next.
    LogGone {
        /// The sentence for people.
        reason: String,
    },
    /// It holds what the primary's history does not hold.
    Diverged {
        /// The sentence for people.
        reason: String,
    },
}

/// Everything a keeper knows that matters for its next step.
#[derive(Clone, Debug)]
pub struct Situation<'a> {
    /// This node.
    pub me: NodeId,
    /// The cluster's state.
    pub state: &'a ClusterState,
    /// The data directory.
    pub data: Data,
    /// The server.
    pub process: Process<'a>,
    /// The highest reinit order for which this node has already wiped its old data.
    pub reinit_begun: u64,
    /// Whether this data may follow.
    pub lineage: Lineage,
    /// This node's ledger knows in which epoch the history of its data was begun: where that parts from the primary's, the
    /// node is brought back by `failover::order` once it hears the primary, and no person has to settle it.
    pub history_known: bool,
    /// The upstream answers, and holds a slot for this node: a clone begun now will find its log.
    pub upstream_ready: bool,
    /// Whether the receiver has been away for longer than a reconnect takes although the upstream answers.
    pub starved: bool,
    /// Whether the primary, looked at after this node, had less than this node has: it was set back to an older state,
    /// or this node holds what it never had.
    pub ahead: bool,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Desire {
    /// Nothing now; the sentence says what is waited for.
    Wait(String),
    /// A witness has no server: only become a full member.
    MarkActive,
    /// Make a new database: this is the first node of a new cluster.
    InitDb,
    /// Write the identity of the first database into the cluster's state.
    RecordIdentity {
        /// Of the database.
        system_id: SystemId,
        /// Its major version.
        major: u32,
    },
    /// Clear the remains of an interrupted initdb or clone.
    DiscardHalfMade,
    /// Copy the database from a member.
    Clone,
    /// Note the order, then stop the server and remove the old data, because a person ordered a rebuild.
    Wipe {
        /// The number of the order.
        order: u64,
    },
    /// Ask the primary for its history and compare.
    CheckLineage,
    /// Start the server in this role.
    Start(Role),
    /// Stop the server.
    Stop(String),
    /// Stop serving and say why, in the cluster's state.
    Halt {
        /// Error code.
        code: &'static str,
        /// The sentence for people.
        reason: String,
    },
    /// Stop the server and leave the cluster.
    Leave,
    /// The server runs as it should: keep its settings, slots and synchronous list in order.
    Serve(Role),
}

/// The next thing to do for the node's server. See `Desire`.
pub fn desire(situation: &Situation<'_>) -> Desire {
    let Some(member) = situation.state.members.get(&situation.me) else {
        return stopped_or(situation, "this node was removed from the cluster", Desire::Wait("removed".into()));
    };
    match &member.stage {
        Stage::Leaving => return stopped_or(situation, "the node leaves the cluster", Desire::Leave),
        Stage::Halted { reason, .. } => {
            return stopped_or(situation, "the node is halted", Desire::Wait(format!("halted: {reason}")));
        }
        Stage::Joining | Stage::Active | Stage::Reinit { .. } | Stage::Rejoin { .. } => {}
    }
    if member.witness {
        return match member.stage {
            Stage::Joining => Desire::MarkActive,
            Stage::Active | Stage::Reinit { .. } | Stage::Rejoin { .. } | Stage::Halted { .. } | Stage::Leaving => {
                Desire::Wait("a witness has no database".into())
            }
        };
    }
    match &situation.data {
        Data::HalfMade => stopped_or(situation, "its data is half made", Desire::DiscardHalfMade),
        Data::Empty => without_data(situation, member),
        Data::Present(control) => with_data(situation, member, control),
    }
}

fn stopped_or(situation: &Situation<'_>, why_stop: &str, then: Desire) -> Desire {
    match situation.process {
        Process::Stopped => then,
        Process::Starting | Process::Running(_) => Desire::Stop(why_stop.into()),
    }
}

fn without_data(situation: &Situation<'_>, member: &Member) -> Desire {
    if !matches!(situation.process, Process::Stopped) {
        return Desire::Stop("its data directory is gone".into());
    }
    if situation.state.rule.primary == member.id && situation.state.following().is_none() {
        return match situation.state.identity.system_id {
            None => Desire::InitDb,
            // Never make a new database where one has been: that would be a silent wipe.
            Some(system_id) => {
                Desire::Wait(format!("the data directory is empty, but this node held database {system_id}"))
            }
        };
    }
    if situation.state.identity.system_id.is_none() {
        return Desire::Wait("waiting for the first database of the cluster".into());
    }
    if situation.upstream_ready {
        Desire::Clone
    } else {
        Desire::Wait("waiting for the upstream to be ready for a clone".into())
    }
}

fn with_data(situation: &Situation<'_>, member: &Member, control: &Control) -> Desire {
    let state = situation.state;
    // In a standby cluster all are replicas, the leader too.
    let is_primary = state.rule.primary == member.id && state.following().is_none();
    match state.identity.system_id {
        None if is_primary => {
            return Desire::RecordIdentity { system_id: control.system_id, major: control.major };
        }
        None => return Desire::Wait("waiting for the first database of the cluster".into()),
        Some(ours) if ours != control.system_id => {
            return stopped_or(
                situation,
                "its data belongs to another cluster",
                Desire::Halt {
                    code: "ST3011",
                    reason: format!(
                        "the data directory holds database {}, this cluster is database {ours}",
                        control.system_id
                    ),
                },
            );
        }
        Some(_) => {}
    }
    if let Stage::Reinit { order } = member.stage
        && situation.reinit_begun < order
    {
        // What it acknowledged is counted on until it has left the rule: wiped before, a promised commit could be on
        // the primary alone.
        if state.rule.voters.contains(&member.id) {
            return Desire::Wait("waiting to leave the synchronous replicas before its data is removed".into());
        }
        return Desire::Wipe { order };
    }
    match &situation.process {
        Process::Running(facts) if is_primary => as_primary(member, facts),
        Process::Running(facts) => as_replica(situation, member, facts),
        Process::Starting => Desire::Wait("the server is starting".into()),
        Process::Stopped if is_primary => Desire::Start(Role::Primary),
        Process::Stopped => start_replica(situation, member, control),
    }
}

fn as_primary(member: &Member, facts: &ServerFacts) -> Desire {
    if facts.in_recovery {
        return Desire::Wait("the primary's server is in recovery".into());
    }
    match member.stage {
        Stage::Joining => Desire::MarkActive,
        Stage::Active | Stage::Reinit { .. } | Stage::Rejoin { .. } | Stage::Halted { .. } | Stage::Leaving => {
            Desire::Serve(Role::Primary)
        }
    }
}

fn start_replica(situation: &Situation<'_>, member: &Member, control: &Control) -> Desire {
    // A copy that has only ever followed is checked by the server itself when it connects. One that wrote on its own
    // must be compared first: once started as a replica it would overwrite the evidence.
    let must_check = control.was_primary || matches!(member.stage, Stage::Rejoin { .. });
    if !must_check {
        return Desire::Start(Role::Replica);
    }
    match &situation.lineage {
        Lineage::Unknown => Desire::CheckLineage,
        // Without the log it cannot go on, but what it has it may serve.
        Lineage::Follows | Lineage::LogGone { .. } => Desire::Start(Role::Replica),
        Lineage::Diverged { .. } if situation.history_known => {
            Desire::Wait("waiting to hear from the primary's keeper, to go back to its history".into())
        }
        Lineage::Diverged { reason } => Desire::Halt { code: "ST3010", reason: reason.clone() },
    }
}

fn as_replica(situation: &Situation<'_>, member: &Member, facts: &ServerFacts) -> Desire {
    if !facts.in_recovery {
        return Desire::Halt {
            code: "ST3022",
            reason: format!(
                "the server accepts writes on timeline {} though {} is the primary: it was promoted by hand",
                facts.timeline,
                situation.state.primary().map_or_else(|| "nobody".to_owned(), |primary| primary.name.to_string())
            ),
        };
    }
    if let Lineage::Diverged { reason } = &situation.lineage {
        return Desire::Halt { code: "ST3010", reason: reason.clone() };
    }
    let streaming = facts.receiver.as_ref().is_some_and(|receiver| receiver.status == "streaming");
    match member.stage {
        Stage::Joining | Stage::Reinit { .. } | Stage::Rejoin { .. } if streaming => Desire::MarkActive,
        Stage::Joining
        | Stage::Active
        | Stage::Reinit { .. }
        | Stage::Rejoin { .. }
        | Stage::Halted { .. }
        | Stage::Leaving => {
            if (situation.starved || situation.ahead) && situation.lineage == Lineage::Unknown {
                Desire::CheckLineage
            } else {
                Desire::Serve(Role::Replica)
            }
        }
    }
}

#[cfg(test)]
mod tests;
