//! Plans never go back: an attempt's phases and choice only move on, and it ends done, undone or superseded.

use model::ClusterState;

pub(super) fn changed(before: &ClusterState, after: &ClusterState) -> Result<(), String> {
    if after.rule != before.rule && after.rule.version <= before.rule.version {
        return Err("the rule changed and its version did not grow".to_owned());
    }
    let Some(old) = &before.failover else { return Ok(()) };
    match after.failover.as_ref().filter(|new| new.epoch == old.epoch) {
        Some(new) if new.phase < old.phase => Err(format!("attempt {} went back to {}", old.id, new.phase.as_str())),
        Some(new) if old.winner.is_some() && (new.winner != old.winner || new.next != old.next) => {
            Err(format!("attempt {} has another choice", old.id))
        }
        Some(_) if after.rule != before.rule => Err(format!("the rule changed in the middle of attempt {}", old.id)),
        Some(_) => Ok(()),
        None if after.failovers.iter().any(|ended| ended.epoch == old.epoch) => Ok(()),
        None => Err(format!("attempt {} vanished", old.id)),
    }
}
