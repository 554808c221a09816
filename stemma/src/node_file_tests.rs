//! Node files as people write them, right and wrong.

use super::*;
use crate::render::finding::report;
use crate::render::look::Look;

const SOUND: &str = r#"
name = "n1"
site = "eu-1"
state_dir = "/var/lib/stemma/n1"

[keeper]
listen = "0.0.0.0:7432"
advertise = "db1.example.org:7432"

[api]
listen = "127.0.0.1:8008"

[postgresql]
data_dir = "/var/lib/postgresql/n1"
port = 5433
run_as = "postgres"
tablespace_root = "/srv/tablespaces"

[consensus]
kind = "etcd"
endpoints = ["http://10.0.0.1:2379"]
"#;

#[test]
fn a_sound_file_is_read_with_its_defaults() {
    let file = parse(SOUND).expect("sound");
    assert_eq!((file.name.as_str(), file.site.as_str()), ("n1", "eu-1"));
    assert_eq!(file.keeper.advertise, "db1.example.org:7432");
    assert_eq!(file.api.advertise, "127.0.0.1:8008");
    assert_eq!(file.api_url(), "http://127.0.0.1:8008");
    let server = file.postgresql.expect("a database");
    assert_eq!((server.port, server.advertise.as_str(), server.listen.as_str()), (5433, "db1.example.org", "0.0.0.0"));
    assert_eq!((server.bin_dir, server.run_as.as_deref()), (None, Some("postgres")));
    assert_eq!(server.tablespace_root, Some(PathBuf::from("/srv/tablespaces")));
    assert!(matches!(file.consensus, ConsensusChoice::Etcd { ref endpoints, .. } if endpoints.len() == 1));
}

#[test]
fn what_a_reload_cannot_change_is_named() {
    let file = parse(SOUND).expect("sound");
    let other = SOUND.replace("listen = \"127.0.0.1:8008\"", "listen = \"127.0.0.1:8009\"").replace("5433", "5434");
    assert_eq!(file.differences(&parse(&other).expect("sound")), ["[api]", "[postgresql]"]);
    let stopping = SOUND.replace("[keeper]", "[keeper]\nstop_database = true");
    let stopping = parse(&stopping).expect("sound");
    assert!(stopping.stop_database && file.differences(&stopping).is_empty());
}

#[test]
fn the_way_to_etcd_is_checked() {
    let etcd = |lines: &str| SOUND.replace("endpoints = [\"http://10.0.0.1:2379\"]", lines);
    let good = "endpoints = [\"https://a:2379\"]\nprefix = \"/x/y/\"\nuser = \"u\"\npassword_file = \"/p\"";
    let file = parse(&etcd(good)).expect("sound");
    assert!(matches!(file.consensus, ConsensusChoice::Etcd { prefix: Some(prefix), .. } if prefix == "/x/y"));
    for (bad, code) in [
        ("endpoints = [\"10.0.0.1:2379\"]", "ST1103"),
        ("endpoints = []", "ST1103"),
        ("endpoints = [\"http://a\"]\nprefix = \"x\"", "ST1103"),
        ("endpoints = [\"http://a\"]\nprefix = \"/a b\"", "ST1103"),
        ("endpoints = [\"http://a\"]\nuser = \"u\"", "ST1105"),
    ] {
        let findings = parse(&etcd(bad)).expect_err(bad);
        assert_eq!(findings.iter().map(|finding| finding.code.to_string()).collect::<Vec<_>>(), [code], "{bad}");
    }
}

#[test]
fn a_file_without_a_database_is_a_witness() {
    let file = parse("name = \"w1\"\nstate_dir = \"/s\"\n[keeper]\nlisten = \"10.0.0.1:7432\"\n").expect("sound");
    assert_eq!((file.postgresql, file.consensus), (None, ConsensusChoice::Embedded));
    assert_eq!((file.site.as_str(), file.keeper.advertise.as_str()), ("default", "10.0.0.1:7432"));
}

/// Each problem as `line:column code reason | hint`.
#[track_caller]
fn check(text: &str, expected: &[&str]) {
    let findings = parse(text).expect_err("has problems");
    let lines: Vec<String> =
        findings.iter().map(|f| format!("{}:{} {} {} | {}", f.line, f.column, f.code, f.reason, f.hint)).collect();
    assert_eq!(lines, expected, "\n{lines:#?}\n");
}

#[test]
fn every_problem_is_reported_at_its_place() {
    check(
        "nmae = \"n1\"\nstate_dir = \"var/lib\"\ncommit_mode = \"sync\"\n\n[keeper]\nlisten = \"0.0.0.0:7432\"\n\n[api]\nlisten = \
         \"127.0.0.1\"\n\n[postgresql]\nprot = 5433\nport = \"5432\"\nparameters = { work_mem = \"1MB\" }\n",
        &[
            "1:1 ST1102 unknown key `nmae` | did you mean `name`?",
            "1:1 ST1105 `name` is missing | add: name = \"n1\"",
            "2:13 ST1103 `state_dir` is `var/lib`, which depends on where the program was started | write the whole path, beginning with /",
            "3:1 ST1104 `commit_mode` is the same for all nodes, so it does not belong into a node file | remove the line and run: stemma config set commit_mode=VALUE",
            "6:10 ST1105 `keeper.advertise` is missing: `keeper.listen` is every address, so others cannot guess one | add to [keeper]: advertise = \"HOST:7432\"",
            "9:10 ST1103 `api.listen` is `127.0.0.1`, which is not an address with a port | write an IP address and a port, as in \"0.0.0.0:7432\" or \"[::]:7432\"",
            "11:1 ST1105 `postgresql.data_dir` is missing | add: data_dir = \"/var/lib/postgresql/stemma\"",
            "12:1 ST1102 unknown key `postgresql.prot` | did you mean `port`?",
            "13:8 ST1103 `postgresql.port` must be a number, but is of type string | write a number from 1 to 65535, as in port = 5432",
            "14:1 ST1104 `postgresql.parameters` is the same for all nodes, so it does not belong into a node file | remove the line and run: stemma config set postgresql.parameters.NAME=VALUE",
        ],
    );
}

#[test]
fn values_that_cannot_be_are_refused() {
    for (from, to, part) in [
        ("name = \"n1\"", "name = \"N 1\"", "not a valid node name"),
        ("name = \"n1\"", "name = 1", "`name` must be a text, but is of type integer"),
        ("name = \"n1\"", "name = \"\"", "`name` is empty"),
        ("port = 5433", "port = 70000", "`postgresql.port` is 70000"),
        ("port = 5433", "port = 0", "`postgresql.port` is 0"),
        ("port = 5433", "port = 8008", "`postgresql` uses port 8008, which `api` uses too"),
        ("kind = \"etcd\"", "kind = \"zookeeper\"", "`consensus.kind` is `zookeeper`"),
        ("endpoints = [\"http://10.0.0.1:2379\"]", "", "`consensus.endpoints` is missing"),
        ("endpoints = [\"http://10.0.0.1:2379\"]", "endpoints = [1]", "`consensus.endpoints` is not a list of texts"),
        (
            "advertise = \"db1.example.org:7432\"",
            "advertise = \"db1\"",
            "`keeper.advertise` is `db1`, which is not HOST:PORT",
        ),
    ] {
        let text = SOUND.replace(from, to);
        assert_ne!(text, SOUND, "{from}");
        let findings = parse(&text).expect_err(to);
        assert!(findings.iter().any(|finding| finding.reason.contains(part)), "{to}: {findings:#?}");
    }
}

#[test]
fn text_that_is_not_toml_is_refused_where_it_ends_to_be() {
    let findings = parse("name = \nsite = \"a\"\n").expect_err("not TOML");
    assert_eq!((findings[0].line, findings[0].code.as_str()), (1, "ST1101"));
    assert!(parse("\u{0}").is_err());
    assert!(parse("").is_err_and(|findings| findings.iter().any(|finding| finding.reason == "`name` is missing")));
}

#[test]
fn a_report_points_at_the_problem() {
    let text = "name = \"n1\"\nstate_dir = \"/s\"\nprot = 1\n[keeper]\nlisten = \"10.0.0.1:7432\"\n";
    let findings = parse(text).expect_err("has a problem");
    let look = Look { color: false, unicode: true, width: 80, terminal: false };
    assert_eq!(
        report("node.toml", text, &findings, &look),
        "✖ unknown key `prot` (ST1102)\n  ─ node.toml:3:1\n3 │ prot = 1\n  │ ^^^^\n  hint: known here: name, site, state_dir, keeper, api, postgresql, hooks, dns,\n        floating_ip, consensus, router"
    );
}

#[test]
fn a_command_that_needs_the_file_names_every_problem() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("node.toml");
    std::fs::write(&path, "name = \"n1\"\n").expect("writable");
    let trouble = load(&path).expect_err("incomplete");
    assert_eq!((trouble.code.to_string().as_str(), trouble.exit), ("ST1105", 2));
    assert!(trouble.causes.iter().any(|cause| cause.contains("`state_dir` is missing")), "{trouble:?}");
    assert_eq!(load(&directory.path().join("absent")).expect_err("absent").code.to_string(), "ST1101");
}

#[test]
fn every_key_of_the_file_has_its_line_in_the_reference() {
    let mut known: Vec<String> = ROOT_KEYS.iter().take(3).map(ToString::to_string).collect();
    let sections = [
        ("keeper", KEEPER_KEYS),
        ("api", API_KEYS),
        ("postgresql", POSTGRESQL_KEYS),
        ("hooks", HOOK_KEYS),
        ("dns", DNS_KEYS),
        ("floating_ip", FLOATING_KEYS),
        ("consensus", CONSENSUS_KEYS),
    ];
    for (section, keys) in sections {
        known.extend(keys.iter().map(|key| format!("{section}.{key}")));
    }
    assert_eq!(KEYS.iter().map(|key| key.key).collect::<Vec<_>>(), known);
}
