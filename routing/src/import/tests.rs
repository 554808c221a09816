//! PgBouncer's files, and what they become.

use super::*;
use proptest::prelude::*;

#[test]
fn a_usual_file_becomes_a_configuration_with_notes() {
    let imported = pgbouncer(
        "\
;; comment
[databases]
app = host=10.0.0.1 port=5432 dbname=app
report = dbname=app pool_size=5 password='it''s secret'
%include other.ini

[pgbouncer]
listen_addr = *, ::1
listen_port = 6543
auth_type = md5
auth_file = /etc/pgbouncer/userlist.txt
admin_users = ops, dba
pool_mode = transaction
max_client_conn = 500
default_pool_size = 25
query_wait_timeout = 2.5
server_lifetime = 0
server_reset_query = DISCARD ALL
reserve_pool_size = 5
future_setting = 1
nonsense
",
    );
    assert_eq!(
        imported.config,
        "\
[router]
listen = [\"0.0.0.0:6543\", \"[::1]:6543\"]
mode = \"transaction\"
clients_max = 500
pool_size = 25
wait_max = \"2500ms\"
admins = [\"ops\", \"dba\"]
"
    );
    let notes = imported.notes.join("\n");
    for part in [
        "line 5: other.ini is not read",
        "line 21: not understood",
        "line 18: server_reset_query = DISCARD ALL: not needed",
        "line 19: reserve_pool_size = 5: no counterpart",
        "line 17: server_lifetime = 0: is without limit there",
        "line 20: future_setting = 1: unknown",
        "line 10: auth_type = md5: clients log in with SCRAM here",
        "line 3: database app: host=10.0.0.1 is not needed",
        "line 4: database report: is called app on the server",
        "line 4: database report: pool_size=5 has no counterpart",
        "line 4: database report: has a password",
    ] {
        assert!(notes.contains(part), "{part} is not in\n{notes}");
    }
    assert!(!notes.contains("secret"), "{notes}");
    let lines: Vec<&str> = imported.notes.iter().filter_map(|note| note.split(':').next()).collect();
    assert_eq!(lines[..4], ["line 3", "line 3", "line 4", "line 4"], "in the order of the file");
}

#[test]
fn statement_mode_becomes_transaction_mode() {
    let imported = pgbouncer("[pgbouncer]\npool_mode = statement\nlisten_addr = db.example\n");
    assert!(imported.config.contains("mode = \"transaction\"") && imported.config.contains("listen = []"));
    assert_eq!(imported.notes.len(), 2, "{:?}", imported.notes);
}

#[test]
fn users_are_taken_over_by_their_verifiers_only() {
    let list = "\
; comment
\"ann\" \"SCRAM-SHA-256$4096:c2FsdA==$a2V5:a2V5\"
\"bob\" \"md5d41d8cd98f00b204e9800998ecf8427e\"
\"eve \"\"e\"\"\" \"plain\" \"ignored\"
broken
\"open
";
    let (users, bad) = users(list);
    let shown: Vec<String> = users.iter().map(|user| format!("{user:?}")).collect();
    assert_eq!(shown, ["ann: verifier", "bob: md5", "eve \"e\": plain"]);
    assert_eq!(bad, [5, 6]);
}

proptest! {
    #[test]
    fn any_text_is_imported_without_panic(text in "(\\[pgbouncer\\]\n|\\[databases\\]\n|[a-z_]{1,12} ?= ?[^\n]{0,20}\n|\\PC{0,20}\n){0,12}") {
        let imported = pgbouncer(&text);
        prop_assert!(imported.config.starts_with("[router]\nlisten = ["));
        let _ = users(&text);
    }
}
