//! What a client is told when the router cannot do what it asked: an SQLSTATE that drivers act on, and our code.

use wire::build::{self, Complaint};

/// Something the router says no to, or has to report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Our code, listed in docs/errors.md.
    pub code: &'static str,
    /// What drivers act on.
    pub sqlstate: &'static str,
    /// One sentence.
    pub message: String,
    /// More; may be empty.
    pub detail: String,
    /// What to do.
    pub hint: &'static str,
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $code:literal $sqlstate:literal $hint:literal;)*) => {
        impl Refusal {
            $($(#[$doc])*
            pub fn $name(message: impl Into<String>) -> Refusal {
                Refusal { code: $code, sqlstate: $sqlstate, message: message.into(), detail: String::new(), hint: $hint }
            })*
        }
    };
}

refusals! {
    /// No primary within the time that statements are held.
    no_primary = "ST4001" "57P03" "the cluster has no primary now: see `stemma status`; the statement was not run and may be sent again";
    /// No free server within the time that clients wait.
    pool_exhausted = "ST4002" "53300" "all connections of this pool are in use: `SHOW POOLS` on the admin console says by whom";
    /// The server went away.
    server_lost = "ST4003" "08006" "what the transaction did so far is undone by the server; begin it again";
    /// Bytes that are not the protocol.
    protocol = "ST4004" "08P01" "the connection is closed; this is a defect of the driver or of something between";
    /// Not who they say.
    authentication = "ST4005" "28P01" "check user and password; the router's list of users may differ from the server's";
    /// Too many clients.
    too_many_clients = "ST4006" "53300" "raise `clients_max` of the router, or close connections that are not used";
    /// Nobody knows whether it was executed.
    outcome_unknown = "ST4007" "08007" "look at the data before sending it again: it may have been executed";
    /// The transaction is gone with its server.
    transaction_lost = "ST4008" "40001" "the transaction was rolled back when its server went away; run it again";
    /// Not through a router.
    unsupported = "ST4009" "0A000" "connect to the server itself for this";
    /// The router ends.
    shutting_down = "ST4010" "57P01" "connect again";
    /// A server cannot be logged in to.
    server_login = "ST4011" "08001" "the server's log says more; the router's secret for this user may be old";
    /// State of the session is gone with its server.
    session_lost = "ST4012" "57P02" "temporary tables, session locks and open cursors are gone; make them again or reconnect";
    /// A setting of the router itself.
    own_setting = "ST4014" "22023" "docs/router.md lists the settings `stemma.*` and their values";
    /// It did nothing for too long.
    idle = "ST4015" "57P05" "the router closes clients that do nothing for so long; connect again when there is work";
    /// An administrator said so.
    killed = "ST4013" "57P01" "an administrator closed this connection";
}

impl Refusal {
    /// With more to say.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Refusal {
        self.detail = detail.into();
        self
    }

    /// With another SQLSTATE, for instance that of the server's own error.
    #[must_use]
    pub fn sqlstate(mut self, sqlstate: &'static str) -> Refusal {
        self.sqlstate = sqlstate;
        self
    }

    /// Appends the message; `FATAL` where the connection ends with it.
    pub fn write(&self, severity: &str, out: &mut Vec<u8>) {
        let message = format!("{} ({})", self.message, self.code);
        let complaint =
            Complaint { severity, sqlstate: self.sqlstate, message: &message, detail: &self.detail, hint: self.hint };
        build::error(out, &complaint);
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.message, self.code)?;
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}
