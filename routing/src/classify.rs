//! Is it only a read? Rules C-1 to C-7, in one pass over the tokens of a text.
//!
//! Two steps. [`analyse`] looks at the text alone, so its answer can be kept per text; [`Route::within`] then adds what
//! the session stands in. [`classify`] does both.

mod control;
mod query;
mod reader;

use crate::catalog::Catalog;
use crate::hint::{Hint, Target};
use crate::lex::{Encoding, Lexing, TEXT_BYTES_MAX};
pub use crate::route::Class;
use crate::route::{Effect, Reason, Route, Traced, Untracked};
use reader::Reader;

/// Where the session's transaction stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// In none.
    #[default]
    Idle,
    /// In one that was declared READ ONLY.
    ReadOnly,
    /// In one that may write.
    ReadWrite,
}

/// What of the session bears on where a statement may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// Its transaction.
    pub standing: Standing,
    /// Whether it runs under SERIALIZABLE, by its transaction or by default.
    pub serializable: bool,
    /// Whether something binds it to a connection on the primary: a temporary table, an advisory lock, ...
    pub pinned: bool,
    /// `SET stemma.route`, the listener's kind, or a policy.
    pub route: Option<Target>,
}

/// All that a classification depends on besides text and catalogue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// How its texts are read.
    pub lexing: Lexing,
    /// Where it stands.
    pub session: Session,
}

/// Where `sql` may run now.
pub fn classify(sql: &[u8], context: &Context, catalog: &Catalog) -> Route {
    analyse(sql, context.lexing, catalog).within(&context.session)
}

/// Where `sql` may run in a session that stands in nothing. Depends on nothing else, so it may be cached by the text,
/// [`Lexing::bits`] and the catalogue's generation.
pub fn analyse(sql: &[u8], lexing: Lexing, catalog: &Catalog) -> Route {
    // A text of plain ASCII has no character of two bytes, whatever the encoding.
    let unreadable = lexing.encoding == Encoding::Colliding && !sql.is_ascii();
    if unreadable || sql.len() > TEXT_BYTES_MAX {
        let reason = if unreadable { Reason::Encoding } else { Reason::Unlexable };
        let effects = suspicion(sql);
        return Route { class: Class::Write, reason, culprit: None, parts: 1, effects, hint: None };
    }
    let mut reader = Reader::new(sql, lexing, catalog);
    let mut route = reader.text();
    route.hint = reader.hint().and_then(Hint::parse).map(Box::new);
    route
}

/// The effects of a text that cannot be read: none if no word in it could have any, else anything.
fn suspicion(sql: &[u8]) -> Vec<Traced> {
    // The common statements of such clients. Whatever else it is, it could have changed the session. A `;` may be the
    // second byte of a character, but then the statement is only pinned without need.
    let first = sql.trim_ascii_start();
    let head = |word: &[u8]| first.get(..word.len()).is_some_and(|head| head.eq_ignore_ascii_case(word));
    let common = [&b"select "[..], b"insert ", b"update ", b"delete ", b"values "].iter().any(|word| head(word));
    let lower = sql.to_ascii_lowercase();
    let holds = |part: &[u8]| lower.windows(part.len()).any(|window| window == part);
    let body = lower.trim_ascii_end();
    let body = body.strip_suffix(b";").unwrap_or(body);
    let several = body.contains(&b';');
    if common && !several && !holds(b"advisory") && !holds(b"set_config") && !holds(b"setseed") && !holds(b"temp") {
        return Vec::new();
    }
    vec![Traced { part: 0, effect: Effect::Untracked(Untracked::Unreadable) }]
}

impl Route {
    /// The same statement in a session that stands somewhere. Only where it runs changes, never what it does.
    pub fn within(mut self, session: &Session) -> Route {
        let (class, reason) = self.decide(session);
        self.class = class;
        if reason != self.reason {
            self.reason = reason;
            self.culprit = None;
        }
        self
    }

    /// What [`Route::within`] would answer, without making a new route.
    pub fn decide(&self, session: &Session) -> (Class, Reason) {
        match self.class {
            Class::Read | Class::Write => {}
            Class::Transaction | Class::Session => return (self.class, self.reason),
        }
        // What the session is bound to comes before what anyone wishes.
        if session.pinned {
            return (Class::Write, Reason::Pinned);
        }
        if session.serializable {
            let reason = if self.class == Class::Read { Reason::Serializable } else { self.reason };
            return (Class::Write, reason);
        }
        if session.standing == Standing::ReadWrite {
            let reason = if self.class == Class::Read { Reason::ReadWriteTransaction } else { self.reason };
            return (Class::Write, reason);
        }
        // A lock or setting of the session would stay behind on a replica that the session leaves again.
        let bound = self.effects.iter().any(|traced| traced.effect.is_of_the_session());
        let hinted = self.hint.as_ref().and_then(|hint| hint.route);
        match hinted.or(session.route) {
            Some(Target::Primary) if self.class == Class::Read => return (Class::Write, Reason::HintPrimary),
            Some(Target::Replica) if self.class == Class::Write && self.reason.yields_to_hint() && !bound => {
                return (Class::Read, Reason::HintReplica);
            }
            Some(Target::Primary | Target::Replica) | None => {}
        }
        let declared = session.standing == Standing::ReadOnly && self.class == Class::Write;
        if declared && self.reason.yields_to_read_only() && !bound {
            return (Class::Read, Reason::ReadOnlyTransaction);
        }
        (self.class, self.reason)
    }
}

#[cfg(test)]
mod tests;
