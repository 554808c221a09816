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
users_file = \"/etc/pgbouncer/userlist.txt\"
pool_mode = \"transaction\"
clients_max = 500
pool_size = 25
wait = \"2500ms\"
admins = [\"ops\", \"dba\"]

[router.database_settings.\"report\"]
pool_size = 5
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
    assert!(imported.config.contains("\npool_mode = \"transaction\"") && imported.config.contains("listen = []"));
    assert_eq!(imported.notes.len(), 2, "{:?}", imported.notes);
}

#[test]
fn bounds_of_users_and_databases_are_taken_over_and_those_of_all_hold_for_each() {
    let imported = pgbouncer(
        "\
[databases]
app = host=db1 pool_size=5 max_db_connections=30 pool_mode=session
* = host=db1
[users]
batch = pool_mode=statement max_user_connections=4 max_user_client_connections=x
[pgbouncer]
auth_type = trust
client_tls_sslmode = verify-full
client_tls_ca_file = /ca.pem
client_tls_cert_file = /it.pem
client_tls_key_file = /it.key
max_user_connections = 50
max_db_client_connections = 200
max_db_connections = 0
client_idle_timeout = 0
idle_transaction_timeout = 30
server_idle_timeout = 300
",
    );
    assert_eq!(
        imported.config,
        "\
[router]
listen = [\"127.0.0.1:6432\"]
tls_certificate = \"/it.pem\"
tls_key = \"/it.key\"
transaction_idle = \"30s\"
server_idle = \"300s\"
auth = \"trust\"
tls_required = true
tls_client_ca = \"/ca.pem\"

[router.user_settings.\"*\"]
servers_max = 50

[router.user_settings.\"batch\"]
pool_mode = \"transaction\"
servers_max = 4

[router.database_settings.\"*\"]
clients_max = 200

[router.database_settings.\"app\"]
pool_mode = \"session\"
pool_size = 5
servers_max = 30
clients_max = 200
"
    );
    assert!(imported.notes.iter().any(|note| note.contains("user batch: max_user_client_connections=x")));
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
