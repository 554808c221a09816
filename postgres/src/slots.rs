//! Physical replication slots. Every step may be repeated.

use crate::initdb::quote_literal;
use crate::sql::{Sql, failed, is_state};
use model::{Lsn, Trouble};
use std::collections::BTreeSet;
use tokio_postgres::error::SqlState;

impl Sql {
    /// Creates those of the wanted slots that are missing or have lost their log; gives the names of the new ones.
    /// Slots that are not wanted stay: see `drop_slot`.
    pub async fn ensure_slots(&self, wanted: &BTreeSet<String>) -> Result<Vec<String>, Trouble> {
        let rows = self
            .query_text("SELECT slot_name, slot_type, coalesce(wal_status, ''), active FROM pg_replication_slots")
            .await?;
        let mut present = BTreeSet::new();
        for row in rows {
            let word = |at: usize| row.get(at).cloned().flatten().unwrap_or_default();
            let name = word(0);
            // A lost slot never serves again; only a new one does.
            let lost = word(2) == "lost" && word(1) == "physical" && word(3) == "f";
            if !(lost && wanted.contains(&name) && self.drop_slot(&name).await?) {
                present.insert(name);
            }
        }
        let mut created = Vec::new();
        for name in wanted.difference(&present) {
            if self.slot_call("SELECT pg_create_physical_replication_slot", name, ", true").await?.is_none() {
                created.push(name.clone());
            }
        }
        Ok(created)
    }

    /// Drops a slot; says whether there was one. A slot in use is refused.
    pub async fn drop_slot(&self, name: &str) -> Result<bool, Trouble> {
        match self.slot_call("SELECT pg_drop_replication_slot", name, "").await? {
            None => Ok(true),
            Some(Refusal::Missing) => Ok(false),
            Some(Refusal::InUse | Refusal::Exists) => Err(Trouble::sql(
                format!("slot `{name}` is in use"),
                "end the replication connection that uses it first",
            )),
        }
    }

    /// Moves a slot forward to a position; says whether it moved. A slot in use is moved by its user, one that is
    /// further already stays, and a missing one is no failure.
    pub async fn advance_slot(&self, name: &str, to: Lsn) -> Result<bool, Trouble> {
        let slot = quote_literal(name)?;
        let sql = format!(
            "SELECT pg_replication_slot_advance(slot_name, '{to}') FROM pg_replication_slots
             WHERE slot_name = {slot} AND NOT active AND restart_lsn < '{to}'"
        );
        let client = self.control.client().await?;
        match client.simple_query(&sql).await {
            Ok(messages) => {
                Ok(messages.iter().any(|message| matches!(message, tokio_postgres::SimpleQueryMessage::Row(_))))
            }
            // Taken into use, dropped or already further, between the look and the move.
            Err(error)
                if is_state(&error, &SqlState::OBJECT_IN_USE)
                    || is_state(&error, &SqlState::UNDEFINED_OBJECT)
                    || is_state(&error, &SqlState::FEATURE_NOT_SUPPORTED) =>
            {
                Ok(false)
            }
            Err(error) => Err(failed(&format!("cannot advance slot `{name}`"), &error)),
        }
    }

    /// Calls a function on a slot; tells refusals that are no failures from those that are.
    async fn slot_call(&self, call: &str, name: &str, rest: &str) -> Result<Option<Refusal>, Trouble> {
        let slot = quote_literal(name)?;
        let client = self.control.client().await?;
        match client.simple_query(&format!("{call}({slot}{rest})")).await {
            Ok(_) => Ok(None),
            Err(error) if is_state(&error, &SqlState::DUPLICATE_OBJECT) => Ok(Some(Refusal::Exists)),
            Err(error) if is_state(&error, &SqlState::UNDEFINED_OBJECT) => Ok(Some(Refusal::Missing)),
            Err(error) if is_state(&error, &SqlState::OBJECT_IN_USE) => Ok(Some(Refusal::InUse)),
            Err(error) => Err(failed(&format!("a statement about slot `{name}` failed"), &error)),
        }
    }
}

/// Why a slot function did nothing.
enum Refusal {
    Exists,
    Missing,
    InUse,
}
