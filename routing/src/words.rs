//! The keywords that matter to routing, and the built-in names that do.

use crate::names::{Fold, Name};

macro_rules! keywords {
    ($($group:ident { $($name:ident = $text:literal),* $(,)? })*) => {
        /// A keyword with a meaning of its own here. The many that only must not be taken for functions share one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "each variant is the keyword of its name")]
        pub enum Keyword { $($($name,)*)* Reserved, Construct }

        const NAMED: &[(&str, Keyword, Calls)] = &[$($(($text, Keyword::$name, Calls::$group),)*)*];
    };
}

/// What `word (` means for a keyword.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// Never a call of a function that somebody could have made: the grammar keeps the word for itself in all versions.
    Never,
    /// The grammar's own construct unless a function of this name exists, for PostgreSQL lets one be made.
    Perhaps,
    /// An ordinary name in this place.
    Name,
}

keywords! {
    Never {
        Select = "select", Values = "values", Table = "table", With = "with", Analyze = "analyze",
        Analyse = "analyse", As = "as", For = "for", Into = "into", Do = "do", Create = "create", Fetch = "fetch",
        From = "from", To = "to", And = "and", Not = "not", Only = "only", Or = "or", All = "all", On = "on",
        Default = "default", End = "end", Case = "case", User = "user", When = "when",
    }
    Name {
        Insert = "insert", Update = "update", Delete = "delete", Merge = "merge", Truncate = "truncate",
        Call = "call", Lock = "lock", Notify = "notify", Listen = "listen", Unlisten = "unlisten",
        Share = "share", Key = "key", No = "no", Explain = "explain", Copy = "copy", Declare = "declare",
        Move = "move", Close = "close", Begin = "begin", Start = "start", Commit = "commit",
        Rollback = "rollback", Abort = "abort", Savepoint = "savepoint", Release = "release", Set = "set",
        Reset = "reset", Discard = "discard", Show = "show", Prepare = "prepare", Execute = "execute",
        Deallocate = "deallocate", Load = "load", Local = "local", Session = "session", Transaction = "transaction",
        Work = "work", Prepared = "prepared", Chain = "chain", Isolation = "isolation", Level = "level",
        Read = "read", Write = "write", Serializable = "serializable", Committed = "committed", Uncommitted = "uncommitted", Deferrable = "deferrable", Temp = "temp",
        Temporary = "temporary", Global = "global", Unlogged = "unlogged", Replace = "replace",
        Hold = "hold", Without = "without", Cursor = "cursor", Stdin = "stdin", Stdout = "stdout",
        Program = "program", Plans = "plans", Sequences = "sequences", Sequence = "sequence", Time = "time",
        Role = "role", Names = "names", Schema = "schema", Xml = "xml", Constraints = "constraints",
        Characteristics = "characteristics", Snapshot = "snapshot", Authorization = "authorization",
        Alter = "alter", Drop = "drop", Function = "function", Procedure = "procedure", Atomic = "atomic",
        Route = "route", Verbose = "verbose", Binary = "binary", Recursive = "recursive", Tablesample = "tablesample",
        Import = "import", Refresh = "refresh", Reindex = "reindex", Option = "option",
    }
    Perhaps { Materialized = "materialized", Operator = "operator", Repeatable = "repeatable" }
}

/// Words that no function can be named after without quotes or a schema, in every version from 13 to 18.
const RESERVED: &str = "any array asc asymmetric both cast check collate column constraint current_catalog \
     current_date current_role current_time current_timestamp current_user desc distinct else except false foreign \
     grant group having in initially intersect lateral leading limit localtime localtimestamp null offset order \
     placing primary references returning session_user some symmetric then trailing true union unique using variadic \
     where window between bigint bit boolean char character coalesce dec decimal exists extract float greatest \
     grouping inout int integer interval least national nchar none normalize nullif numeric out overlay position \
     precision real row setof smallint substring timestamp treat trim varchar xmlattributes xmlconcat \
     xmlelement xmlexists xmlforest xmlnamespaces xmlparse xmlpi xmlroot xmlserialize xmltable";

/// Words with a construct of their own before `(`, but after which a function may be named, at least in some version.
const CONSTRUCTS: &str = "by over filter rollup cube sets range rows groups escape zone passing first next columns \
     join cross inner left right full natural outer like ilike similar is isnull notnull overlaps collation \
     concurrently freeze ordinality varying nested json json_array json_arrayagg json_object json_objectagg json_query \
     json_scalar json_serialize json_table json_value json_exists merge_action";

type Entry = (u64, &'static str, Keyword, Calls);
const EMPTY: Entry = (0, "", Keyword::Reserved, Calls::Name);
const ENTRIES: usize = 320;
const SLOTS: usize = 1024;

/// The keywords side by side, and by hash the number of each plus one: lookups that find nothing, which most are, touch
/// the small table only.
struct Table {
    entries: [Entry; ENTRIES],
    slots: [u16; SLOTS],
    count: usize,
}
static TABLE: Table = table();

impl Table {
    const fn put(&mut self, word: &'static str, keyword: Keyword, calls: Calls) {
        let hash = Fold::of(word.as_bytes());
        let mut at = hash as usize % SLOTS;
        while self.slots[at] != 0 {
            at = (at + 1) % SLOTS;
        }
        self.entries[self.count] = (hash, word, keyword, calls);
        self.count += 1;
        self.slots[at] = self.count as u16;
    }

    /// Adds each word of a list.
    const fn put_list(&mut self, list: &'static str, keyword: Keyword, calls: Calls) {
        let bytes = list.as_bytes();
        let mut start = 0;
        let mut at = 0;
        while at <= bytes.len() {
            if at == bytes.len() || bytes[at] == b' ' {
                if at > start {
                    let (_, tail) = list.split_at(start);
                    let (word, _) = tail.split_at(at - start);
                    self.put(word, keyword, calls);
                }
                start = at + 1;
            }
            at += 1;
        }
    }
}

const fn table() -> Table {
    let mut table = Table { entries: [EMPTY; ENTRIES], slots: [0; SLOTS], count: 0 };
    let mut at = 0;
    while at < NAMED.len() {
        let (text, keyword, calls) = NAMED[at];
        table.put(text, keyword, calls);
        at += 1;
    }
    table.put_list(RESERVED, Keyword::Reserved, Calls::Never);
    table.put_list(CONSTRUCTS, Keyword::Construct, Calls::Perhaps);
    table
}

/// The keyword that an unquoted word is, and what `(` behind it means.
pub fn lookup(word: &Name<'_>) -> Option<(Keyword, Calls)> {
    let mut at = word.hash as usize % SLOTS;
    loop {
        let number = usize::from(TABLE.slots[at]).checked_sub(1)?;
        let (hash, text, keyword, calls) = TABLE.entries[number];
        if hash == word.hash && word.is(text.as_bytes()) {
            return Some((keyword, calls));
        }
        at = (at + 1) % SLOTS;
    }
}

const SET_SLOTS: usize = 512;

/// A fixed set of names, asked by hash.
struct Set {
    slots: [(u64, &'static str); SET_SLOTS],
}

impl Set {
    const fn of(names: &[&'static str]) -> Set {
        let mut slots = [(0, ""); SET_SLOTS];
        let mut number = 0;
        while number < names.len() {
            let hash = Fold::of(names[number].as_bytes());
            let mut at = hash as usize % SET_SLOTS;
            while !slots[at].1.is_empty() {
                at = (at + 1) % SET_SLOTS;
            }
            slots[at] = (hash, names[number]);
            number += 1;
        }
        Set { slots }
    }

    fn holds(&self, name: &Name<'_>) -> bool {
        let mut at = name.hash as usize % SET_SLOTS;
        loop {
            let (hash, text) = self.slots[at];
            if text.is_empty() {
                return false;
            }
            if hash == name.hash && name.is(text.as_bytes()) {
                return true;
            }
            at = (at + 1) % SET_SLOTS;
        }
    }
}

/// Volatile functions of PostgreSQL that neither write nor depend on the node (rule C-3).
static HARMLESS: Set = Set::of(&[
    "random",
    "random_normal",
    "clock_timestamp",
    "timeofday",
    "gen_random_uuid",
    "uuid_generate_v4",
    "uuidv4",
    "uuidv7",
    "pg_sleep",
    "pg_sleep_for",
    "pg_sleep_until",
]);

/// Whether a volatile function is known to do no harm on a replica.
pub fn is_harmless_volatile(name: &Name<'_>) -> bool {
    HARMLESS.holds(name)
}

/// Functions whose answer belongs to one server, or that act on the world, whatever the catalogue says (rule C-4).
static NODE_DEPENDENT: Set = Set::of(&[
    "currval",
    "lastval",
    "nextval",
    "setval",
    "setseed",
    "set_config",
    "current_setting",
    "query_to_xml",
    "query_to_xmlschema",
    "query_to_xml_and_xmlschema",
    "cursor_to_xml",
    "cursor_to_xmlschema",
    "ts_stat",
    "xpath_table",
    "connectby",
]);
/// Names beginning with `pg_` that mean the same on every node. The others are taken for node-dependent, so that a
/// function or view of a later version is never sent to a replica by mistake.
static PG_COMMON: Set = Set::of(&[
    "pg_catalog",
    "pg_lsn",
    "pg_node_tree",
    "pg_snapshot",
    "pg_toast",
    "pg_default",
    "pg_global",
    "pg_aggregate",
    "pg_am",
    "pg_amop",
    "pg_amproc",
    "pg_attrdef",
    "pg_attribute",
    "pg_auth_members",
    "pg_authid",
    "pg_cast",
    "pg_class",
    "pg_collation",
    "pg_constraint",
    "pg_conversion",
    "pg_database",
    "pg_db_role_setting",
    "pg_default_acl",
    "pg_depend",
    "pg_description",
    "pg_enum",
    "pg_event_trigger",
    "pg_extension",
    "pg_foreign_data_wrapper",
    "pg_foreign_server",
    "pg_foreign_table",
    "pg_index",
    "pg_inherits",
    "pg_init_privs",
    "pg_language",
    "pg_largeobject",
    "pg_largeobject_metadata",
    "pg_namespace",
    "pg_opclass",
    "pg_operator",
    "pg_opfamily",
    "pg_partitioned_table",
    "pg_policy",
    "pg_proc",
    "pg_publication",
    "pg_publication_namespace",
    "pg_publication_rel",
    "pg_publication_tables",
    "pg_range",
    "pg_rewrite",
    "pg_seclabel",
    "pg_seclabels",
    "pg_sequence",
    "pg_shdepend",
    "pg_shdescription",
    "pg_shseclabel",
    "pg_statistic_ext",
    "pg_tablespace",
    "pg_transform",
    "pg_trigger",
    "pg_ts_config",
    "pg_ts_config_map",
    "pg_ts_dict",
    "pg_ts_parser",
    "pg_ts_template",
    "pg_type",
    "pg_user_mapping",
    "pg_group",
    "pg_indexes",
    "pg_matviews",
    "pg_policies",
    "pg_roles",
    "pg_rules",
    "pg_shadow",
    "pg_tables",
    "pg_timezone_abbrevs",
    "pg_timezone_names",
    "pg_user",
    "pg_user_mappings",
    "pg_views",
    "pg_typeof",
    "pg_basetype",
    "pg_size_pretty",
    "pg_size_bytes",
    "pg_encoding_to_char",
    "pg_char_to_encoding",
    "pg_encoding_max_length",
    "pg_client_encoding",
    "pg_column_size",
    "pg_column_compression",
    "pg_column_is_updatable",
    "pg_relation_is_updatable",
    "pg_relation_is_publishable",
    "pg_index_column_has_property",
    "pg_index_has_property",
    "pg_indexam_has_property",
    "pg_indexam_progress_phasename",
    "pg_has_role",
    "pg_describe_object",
    "pg_identify_object",
    "pg_identify_object_as_address",
    "pg_options_to_table",
    "pg_collation_for",
    "pg_partition_root",
    "pg_partition_tree",
    "pg_partition_ancestors",
    "pg_wal_lsn_diff",
    "pg_snapshot_xmin",
    "pg_snapshot_xmax",
    "pg_snapshot_xip",
    "pg_visible_in_snapshot",
    "pg_input_is_valid",
    "pg_input_error_info",
    "pg_sequence_parameters",
    "pg_get_constraintdef",
    "pg_get_expr",
    "pg_get_function_arg_default",
    "pg_get_function_arguments",
    "pg_get_function_identity_arguments",
    "pg_get_function_result",
    "pg_get_function_sqlbody",
    "pg_get_functiondef",
    "pg_get_indexdef",
    "pg_get_keywords",
    "pg_get_catalog_foreign_keys",
    "pg_get_object_address",
    "pg_get_partition_constraintdef",
    "pg_get_partkeydef",
    "pg_get_publication_tables",
    "pg_get_ruledef",
    "pg_get_serial_sequence",
    "pg_get_statisticsobjdef",
    "pg_get_statisticsobjdef_columns",
    "pg_get_statisticsobjdef_expressions",
    "pg_get_triggerdef",
    "pg_get_userbyid",
    "pg_get_viewdef",
]);

/// Whether a name, in whatever place, belongs to one server (rule C-4).
pub fn is_node_dependent(name: &Name<'_>) -> bool {
    name.starts_with(b"pg_") && !is_harmless_volatile(name) && !PG_COMMON.holds(name) && !name.ends_with(b"_is_visible")
}

/// Whether a function belongs to one server or acts on the world.
pub fn is_node_dependent_function(name: &Name<'_>) -> bool {
    let families: &[&[u8]] = match name.bytes.first().map_or(0, u8::to_ascii_lowercase) {
        b'c' => &[b"crosstab"],
        b'd' => &[b"dblink"],
        b'h' => &[b"http"],
        b'i' => &[b"inet_server_", b"inet_client_"],
        b'l' => &[b"lo_", b"loread", b"lowrite"],
        b't' => &[b"txid_"],
        _ => &[],
    };
    families.iter().any(|family| name.starts_with(family)) || NODE_DEPENDENT.holds(name)
}
