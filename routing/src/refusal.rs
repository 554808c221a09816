//! The net behind the classifier: errors by which a replica says that it did not do what it was asked (4.2).
//!
//! A server's messages may be in any language, so they are asked last: the SQLSTATE, then the name of the routine in the
//! server that raised the error, which every version sends and none translates.

/// What an error of a replica means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The statement needs the primary; nothing of it was done here.
    NeedsPrimary,
    /// Recovery needed what the statement was using and cancelled it. Another replica may serve it; the same one would
    /// only be delayed by it again.
    Conflict,
}

/// Routines of the server that refuse during recovery, beside the plain 25006. Read from PostgreSQL 13 to 18.
const ROUTINES: &[&str] = &[
    // Unlogged and temporary relations, when planned.
    "get_relation_info",
    // Locks that conflict with replay.
    "LockAcquireExtended",
    // A new object or transaction would need a number.
    "GetNewObjectId",
    "GetNewTransactionId",
    // An entry of the log would have to be made.
    "XLogBeginInsert",
    // SERIALIZABLE and READ WRITE, as settings of the transaction.
    "call_bool_check_hook",
    "call_enum_check_hook",
];

/// The meaning of an error that came from a replica; `None` if the statement itself is at fault, or if it is unknown
/// whether anything was done.
pub fn refusal(sqlstate: &str, message: &str, routine: Option<&str>) -> Option<Refusal> {
    let routine_knows = routine.is_some_and(|routine| ROUTINES.contains(&routine));
    let message_knows =
        ["during recovery", "recovery is in progress", "hot standby"].iter().any(|words| message.contains(words));
    match sqlstate {
        "25006" => Some(Refusal::NeedsPrimary),
        // A replica has no serialization failures of its own: nothing is written there.
        "40001" => Some(Refusal::Conflict),
        // A deadlock with replay; one among its readers is impossible.
        "40P01" if message.contains("recovery") => Some(Refusal::Conflict),
        "0A000" | "55000" | "XX000" if routine_knows || message_knows => Some(Refusal::NeedsPrimary),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_known_in_every_language() {
        let plain = |state, message| refusal(state, message, None);
        assert_eq!(plain("25006", "INSERT kann nicht ausgeführt werden"), Some(Refusal::NeedsPrimary));
        assert_eq!(plain("40001", "conflict"), Some(Refusal::Conflict));
        assert_eq!(plain("XX000", "cannot assign OIDs during recovery"), Some(Refusal::NeedsPrimary));
        let german = "während der Wiederherstellung nicht möglich";
        assert_eq!(refusal("0A000", german, Some("get_relation_info")), Some(Refusal::NeedsPrimary));
        // Errors of the statement itself.
        assert_eq!(plain("0A000", "FOR UPDATE is not allowed with DISTINCT clause"), None);
        assert_eq!(refusal("42P01", "relation does not exist", Some("parserOpenTable")), None);
        assert_eq!(plain("XX000", "cache lookup failed"), None);
        assert_eq!(plain("57014", "canceling statement due to statement timeout"), None);
    }
}
