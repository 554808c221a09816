//! Who is chosen is allowed to be: by the policy about sites and priorities where nobody asked, the node asked for where
//! somebody did, and within the loss that the settings or a person allow.

use cluster::failover::recruit::binding;
use model::ClusterState;
use model::failover::{Failover, FailoverKind};

pub(super) fn allowed(before: &ClusterState, failover: &Failover) -> Result<(), String> {
    let Some((id, member)) = failover.winner.and_then(|id| Some((id, before.members.get(&id)?))) else {
        return Err(format!("attempt {} chose nobody that is a member", failover.id));
    };
    let policy = &before.settings.failover;
    let home = before.members.get(&before.rule.primary).map(|primary| &primary.site);
    let (asked, most) = match failover.kind {
        FailoverKind::Automatic => (None, policy.loss_max.0),
        FailoverKind::Switchover { to } => (to, policy.loss_max.0),
        FailoverKind::Forced { to, loss_bytes_max } => (to, loss_bytes_max),
    };
    if member.witness || asked.is_some_and(|asked| asked != id) {
        return Err(format!("n{id} was chosen in attempt {}, which asked for {asked:?}", failover.id));
    }
    let near = policy.cross_site || home == Some(&member.site) || policy.sites.contains(&member.site);
    // One that is the primary, or was chosen to be, only goes on.
    let leads = binding(before).any(|rule| rule.primary == id);
    if asked.is_none() && !leads && (member.priority == 0 || !near) {
        return Err(format!("n{id} was chosen by itself, with priority {} at {}", member.priority, member.site));
    }
    match failover.loss_bytes {
        Some(bytes) if bytes > most => Err(format!("n{id} was chosen with a loss of {bytes}, {most} is allowed")),
        Some(_) | None => Ok(()),
    }
}
