//! What a database says of its functions, relations and operators, by name alone.
//!
//! Names are taken without regard to the search path: a function name is as good as the worst function that bears it in
//! any schema. A catalogue is read at a moment; what is created later is unknown, and unknown functions go to the
//! primary. A function made worse later is caught by the replica itself, which refuses to write.

use crate::classify::{Class, analyse};
use crate::lex::Lexing;
use crate::names::{Name, NameTable};

/// Per function name: the name, and whether any function of that name is volatile. An aggregate counts as volatile if one
/// of its support functions is: its own entry always says immutable.
pub const FUNCTIONS_SQL: &str = "\
SELECT p.proname::text, bool_or(p.provolatile = 'v' OR p.prokind = 'p' OR EXISTS (
    SELECT FROM pg_catalog.pg_aggregate a JOIN pg_catalog.pg_proc s ON s.oid IN (a.aggtransfn, a.aggfinalfn,
        a.aggcombinefn, a.aggserialfn, a.aggdeserialfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn)
    WHERE a.aggfnoid = p.oid AND s.provolatile = 'v'))
FROM pg_catalog.pg_proc p GROUP BY p.proname";

/// Per relation that a replica must not read: its name, and why (`unlogged`, `foreign`, `sequence`). Parents of foreign
/// or unlogged children are included, as reading them reads the children.
pub const RELATIONS_SQL: &str = "\
WITH RECURSIVE own AS (
    SELECT oid, relname, CASE WHEN relpersistence = 'u' THEN 'unlogged' WHEN relkind = 'f' THEN 'foreign'
        ELSE 'sequence' END AS why
    FROM pg_catalog.pg_class WHERE relkind IN ('f', 'S') OR relpersistence = 'u'
), marked AS (
    SELECT oid, relname, why FROM own
    UNION
    SELECT c.oid, c.relname, m.why FROM marked m JOIN pg_catalog.pg_inherits i ON i.inhrelid = m.oid
        JOIN pg_catalog.pg_class c ON c.oid = i.inhparent
)
SELECT relname::text, why FROM marked";

/// Per view of the users: its name and its definition. Per table with row security: its name and each condition, as a
/// query. What the definition may not do on a replica, nobody may do through the name.
pub const DEFINITIONS_SQL: &str = "\
SELECT c.relname::text, pg_catalog.pg_get_viewdef(c.oid) FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'v' AND n.nspname NOT IN ('pg_catalog', 'information_schema')
UNION ALL
SELECT c.relname::text, 'SELECT ' || pg_catalog.pg_get_expr(p.polqual, p.polrelid)
    FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid = p.polrelid WHERE p.polqual IS NOT NULL";

/// The symbols of operators whose function is volatile; PostgreSQL itself has none.
pub const OPERATORS_SQL: &str = "\
SELECT DISTINCT o.oprname::text FROM pg_catalog.pg_operator o
    JOIN pg_catalog.pg_proc p ON p.oid = o.oprcode WHERE p.provolatile = 'v'";

/// How far a function may be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Volatility {
    /// Every function of the name is immutable or stable.
    Steady,
    /// One of them is volatile.
    Volatile,
    /// The configuration says that it may run on a replica.
    Trusted,
    /// The configuration says that it must not.
    Distrusted,
}

/// Why a relation is read on the primary only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Avoid {
    /// Its contents are not in the log.
    Unlogged,
    /// Its contents are elsewhere, and the way there may differ from node to node.
    Foreign,
    /// Replicas see a sequence ahead of its value on the primary.
    Sequence,
    /// A view or a row-security condition whose text may not run on a replica.
    Definition,
    /// The configuration says so.
    Configured,
    /// The configuration says that it may be read on replicas whatever the database says.
    Allowed,
}

/// What is known about one database.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    warm: bool,
    functions: NameTable<Volatility>,
    relations: NameTable<Avoid>,
    operators: NameTable<()>,
}

impl Catalog {
    /// Nothing is known yet: every statement is for the primary.
    pub fn cold() -> Catalog {
        Catalog::default()
    }

    /// Starts from what the server answered to the queries above.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Whether it was loaded.
    pub fn is_warm(&self) -> bool {
        self.warm
    }
    /// How many function names are known.
    pub fn functions_count(&self) -> usize {
        self.functions.len()
    }
    /// What is known of a function.
    pub fn function(&self, name: &Name<'_>) -> Option<Volatility> {
        self.functions.get(name)
    }
    /// What is known of a relation of this name.
    pub fn relation(&self, name: &Name<'_>) -> Option<Avoid> {
        self.relations.get(name)
    }
    /// Whether an operator of this symbol runs a volatile function.
    pub fn operator_is_volatile(&self, symbol: &Name<'_>) -> bool {
        self.operators.get(symbol).is_some()
    }
}

/// Collects rows, then makes the catalogue.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    functions: Vec<(Vec<u8>, Volatility)>,
    relations: Vec<(Vec<u8>, Avoid)>,
    definitions: Vec<(Vec<u8>, Vec<u8>)>,
    operators: Vec<Vec<u8>>,
}

impl Builder {
    /// A row of [`FUNCTIONS_SQL`].
    pub fn function(&mut self, name: &str, volatile: bool) -> &mut Builder {
        let volatility = if volatile { Volatility::Volatile } else { Volatility::Steady };
        self.functions.push((name.into(), volatility));
        self
    }
    /// A row of [`RELATIONS_SQL`]; an unknown reason counts as unlogged.
    pub fn relation(&mut self, name: &str, why: &str) -> &mut Builder {
        let avoid = match why {
            "foreign" => Avoid::Foreign,
            "sequence" => Avoid::Sequence,
            _ => Avoid::Unlogged,
        };
        self.relations.push((name.into(), avoid));
        self
    }
    /// A row of [`DEFINITIONS_SQL`].
    pub fn definition(&mut self, relation: &str, text: &str) -> &mut Builder {
        self.definitions.push((relation.into(), text.into()));
        self
    }
    /// A row of [`OPERATORS_SQL`].
    pub fn operator(&mut self, symbol: &str) -> &mut Builder {
        self.operators.push(symbol.into());
        self
    }
    /// From the configuration: this function may (or may not) run on replicas, whatever the database says.
    pub fn override_function(&mut self, name: &str, replica: bool) -> &mut Builder {
        let volatility = if replica { Volatility::Trusted } else { Volatility::Distrusted };
        self.functions.push((name.into(), volatility));
        self
    }
    /// From the configuration: this table or view may (or may not) be read on replicas.
    pub fn override_relation(&mut self, name: &str, replica: bool) -> &mut Builder {
        self.relations.push((name.into(), if replica { Avoid::Allowed } else { Avoid::Configured }));
        self
    }

    /// The loaded catalogue. Definitions are judged with it until no more relation has to be avoided: a view may stand
    /// on a view.
    pub fn build(&self) -> Catalog {
        let mut catalog = Catalog { warm: true, ..Catalog::default() };
        for (name, volatility) in &self.functions {
            catalog.functions.put(name, *volatility, worse_function);
        }
        for (name, avoid) in &self.relations {
            catalog.relations.put(name, *avoid, worse_relation);
        }
        for symbol in &self.operators {
            catalog.operators.put(symbol, (), |(), ()| ());
        }
        let mut open: Vec<&(Vec<u8>, Vec<u8>)> = self.definitions.iter().collect();
        loop {
            let before = open.len();
            // A relation's own name does not stand in its definition, so the order within a round does not matter.
            open.retain(|(name, text)| {
                let fits = analyse(text, Lexing::default(), &catalog).class == Class::Read;
                if !fits {
                    catalog.relations.put(name, Avoid::Definition, worse_relation);
                }
                fits
            });
            if open.len() == before {
                return catalog;
            }
        }
    }
}

/// The configuration has the last word, and there a `no` beats a `yes`; else one volatile function spoils the name.
fn worse_function(a: Volatility, b: Volatility) -> Volatility {
    use Volatility::{Distrusted, Steady, Trusted, Volatile};
    match (a, b) {
        (Distrusted, _) | (_, Distrusted) => Distrusted,
        (Trusted, _) | (_, Trusted) => Trusted,
        (Volatile, _) | (_, Volatile) => Volatile,
        (Steady, Steady) => Steady,
    }
}

fn worse_relation(a: Avoid, b: Avoid) -> Avoid {
    match (a, b) {
        (Avoid::Configured, _) | (_, Avoid::Configured) => Avoid::Configured,
        (Avoid::Allowed, _) | (_, Avoid::Allowed) => Avoid::Allowed,
        (first, Avoid::Unlogged | Avoid::Foreign | Avoid::Sequence | Avoid::Definition) => first,
    }
}
