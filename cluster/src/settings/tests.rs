//! Settings as people write them, rightly and wrongly.

use super::*;
use crate::scenes::state;
use model::settings::Size;
use proptest::prelude::*;

fn mistakes(text: &str) -> Vec<(usize, usize, &'static str, String, String)> {
    let found = parse_toml_with(text, &|name| (name == "port").then(|| "the keeper sets it".to_owned()));
    let found = found.expect_err("has mistakes");
    found.into_iter().map(|f| (f.line, f.column, f.code, f.reason, f.hint)).collect()
}

#[test]
fn an_empty_file_is_the_defaults() {
    assert_eq!(parse_toml("").expect("valid"), Settings::default());
}

#[test]
fn every_mistake_is_found_in_one_go_with_its_place() {
    let text = "\
comit_mode = \"quorum\"
strict = \"yes\"
  voter_grace = \"1ms\"
state_dir = \"/var/lib/x\"
lag_warn = \"soon\"

[postgresql]
hba = [\"hots all all all trust\"]
[postgresql.parameters]
port = 5433
work_mem = [1]
";
    let found = mistakes(text);
    let places: Vec<_> = found.iter().map(|(line, column, code, ..)| (*line, *column, *code)).collect();
    assert_eq!(
        places,
        [
            (1, 1, "ST1102"),
            (2, 10, "ST1103"),
            (3, 17, "ST1103"),
            (4, 1, "ST1104"),
            (5, 12, "ST1103"),
            (8, 7, "ST1103"),
            (10, 8, "ST1103"),
            (11, 12, "ST1103"),
        ],
        "{found:#?}"
    );
    assert_eq!(found[0].4, "did you mean commit_mode?");
    assert_eq!(found[1].3, "strict is a string, which does not fit");
    assert_eq!(found[1].4, "expected: true or false");
    assert!(found[2].4.starts_with("use 500ms to 10min"), "{}", found[2].4);
    assert!(found[3].3.contains("belongs to one node"), "{}", found[3].3);
    assert!(found[5].3.contains("`hots` is no connection type"), "{}", found[5].3);
    assert_eq!(found[6].3, "port may not be set here: the keeper sets it");
}

#[test]
fn a_file_that_is_not_toml_says_where() {
    let found = mistakes("strict = true\ntls = = 1\n");
    assert_eq!((found.len(), found[0].0, found[0].2), (1, 2, "ST1101"));
}

#[test]
fn an_unknown_key_gets_a_guess_only_when_it_is_close() {
    assert_eq!(mistakes("[postgresql]\nparameter = 1")[0].4, "did you mean postgresql.parameters?");
    assert_eq!(mistakes("hba = []")[0].4, "did you mean postgresql.hba?");
    assert!(mistakes("shared_buffers = \"1GB\"")[0].4.contains("put it under [postgresql.parameters]"));
}

#[test]
fn parameters_may_be_written_as_numbers_and_flags_and_with_dots() {
    let text = "[postgresql.parameters]\nmax_connections = 200\nfsync = true\nrandom_page_cost = 1.1\npg_stat_statements.max = 500\n\"auto_explain.log_timing\" = \"off\"";
    let parameters = parse_toml(text).expect("valid").postgresql.parameters;
    let wanted = [
        ("auto_explain.log_timing", "off"),
        ("fsync", "on"),
        ("max_connections", "200"),
        ("pg_stat_statements.max", "500"),
        ("random_page_cost", "1.1"),
    ];
    assert_eq!(parameters, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
}

#[test]
fn names_and_values_cannot_smuggle_lines_into_the_servers_configuration() {
    for (name, value) in [
        ("work_mem", "1\nport=1"),
        ("work_mem", "1\0"),
        ("work mem", "1"),
        ("a=1\nb", "1"),
        ("", "1"),
        ("a.", "1"),
        ("1a", "1"),
        ("include 'x'", "1"),
    ] {
        let mut settings = Settings::default();
        settings.postgresql.parameters.insert(name.into(), value.into());
        assert_eq!(check(&settings, &BTreeMap::new(), &|_| None).len(), 1, "{name:?} = {value:?}");
    }
    let mut settings = Settings::default();
    settings.postgresql.hba = vec!["host all all all trust\nlocal all all trust".into()];
    assert_eq!(check(&settings, &BTreeMap::new(), &|_| None).len(), 1);
}

#[test]
fn hba_lines_are_checked_as_far_as_their_form_goes() {
    for good in [
        "",
        "# people",
        "local all all peer",
        "host app app 10.0.0.0/8 scram-sha-256",
        "hostssl \"my db\" +staff, app samenet md5 # comment",
        "host all all 10.0.0.0 255.0.0.0 reject",
        "hostssl all all ::1/128 cert map=x clientcert=verify-full",
    ] {
        assert_eq!(hba_fault(good), None, "{good:?}");
    }
    for (bad, reason) in [
        ("host all all trust", "4 fields"),
        ("local all all", "3 fields"),
        ("host all all all secret", "`secret` is no authentication method"),
        ("include /etc/hba", "may not be included"),
        ("host all all 10.0.0.0/99 trust", "no number from 0 to 32"),
        ("host all all ten/8 trust", "no address with a prefix"),
        ("host \"all all all trust", "no connection type"),
    ] {
        let fault = hba_fault(bad).expect(bad);
        assert!(fault.contains(reason), "{bad:?}: {fault}");
    }
}

#[test]
fn settings_must_fit_the_members() {
    let faults = |settings: &Settings, nodes: u64| -> Vec<String> {
        check(settings, &state(nodes).members, &|_| None).into_iter().map(|finding| finding.reason).collect()
    };
    let strict = Settings { strict: true, ..Settings::default() };
    assert_eq!(faults(&strict, 2), Vec::<String>::new());
    assert_eq!(faults(&strict, 1), ["strict = true without a replica would block every commit"]);
    let other_site = Settings { sync_from_other_site: true, ..Settings::default() };
    assert_eq!(faults(&other_site, 2), ["sync_from_other_site = true, but all data nodes are at one site"]);
    let no_meaning = Settings { commit_mode: CommitMode::Async, ..other_site };
    assert_eq!(faults(&no_meaning, 2).len(), 2);
}

#[test]
fn ranges_are_inclusive_and_tell_their_bounds() {
    let with = |millis| Settings { sample_interval: Span(Millis(millis)), ..Settings::default() };
    for (millis, sound) in [(99, false), (100, true), (60_000, true), (60_001, false)] {
        assert_eq!(check(&with(millis), &BTreeMap::new(), &|_| None).is_empty(), sound, "{millis}");
    }
    let rate = Settings { clone_rate: Size(1), slot_retention_size: Size(1), ..Settings::default() };
    assert_eq!(check(&rate, &BTreeMap::new(), &|_| None).len(), 2);
}

#[test]
fn a_change_tells_what_it_takes() {
    let old = parse_toml("[postgresql.parameters]\nwork_mem = \"4MB\"\nmax_connections = 100").expect("valid");
    let new = parse_toml(
        "commit_mode = \"quorum\"\n[postgresql]\nhba = [\"local all all peer\"]\n[postgresql.parameters]\nmax_connections = 200",
    )
    .expect("valid");
    let changes = diff(&old, &new);
    let brief: Vec<_> = changes
        .iter()
        .map(|change| (change.key.as_str(), change.old.as_deref(), change.new.as_deref(), change.class))
        .collect();
    assert_eq!(
        brief,
        [
            ("commit_mode", Some("\"semi-sync\""), Some("\"quorum\""), Class::None),
            ("postgresql.hba", None, Some("local all all peer"), Class::Reload),
            ("postgresql.parameters.max_connections", Some("100"), Some("200"), Class::Restart),
            ("postgresql.parameters.work_mem", Some("4MB"), None, Class::Reload),
        ]
    );
    assert!(changes[2].note.contains("stemma restart --rolling --pending"));
    assert_eq!(diff(&old, &old), []);
}

#[test]
fn every_key_is_documented_with_its_true_default_and_explained() {
    let written = serde_json::to_value(Settings::default()).expect("serializes");
    let own = |(key, value): (&String, &serde_json::Value)| match value.as_object().filter(|_| key != "postgresql") {
        Some(table) => table.keys().map(|last| format!("{key}.{last}")).collect(),
        None => vec![key.clone()],
    };
    let all = written.as_object().expect("object").iter().flat_map(own);
    let documented: BTreeSet<&str> = KEYS.iter().map(|doc| doc.key).collect();
    for key in all.filter(|key| key != "postgresql") {
        let key = key.as_str();
        assert!(documented.contains(key), "{key}");
        let doc = KEYS.iter().find(|doc| doc.key == key).expect("documented");
        assert_eq!(doc.default, plain(&Settings::default(), key), "{key}");
    }
    for doc in KEYS {
        assert!(explain(doc.key).expect("explained").contains(doc.doc));
    }
    assert!(explain("postgresql.parameters.shared_buffers").expect("explained").contains("restart"));
    assert_eq!(explain("nonsense"), None);
    assert!(RESTART_PARAMETERS.is_sorted(), "so that people find them");
}

#[test]
fn the_written_file_explains_itself() {
    let text = to_toml(&Settings::default());
    assert!(text.contains("# How often each keeper samples its server.\n# Duration, 100ms to 1min. Default: \"500ms\".\nsample_interval = \"500ms\"\n"), "{text}");
    for line in text.lines().filter(|line| line.contains(" = ")) {
        assert!(!line.starts_with(' '), "{line}");
    }
}

fn settings() -> impl Strategy<Value = Settings> {
    let spans = (500u64..600_000, 100u64..60_000, 100u64..86_400_000, 60_000u64..86_400_000);
    let hba = proptest::collection::vec(
        "(host|hostssl) [a-z\"é]{0}[a-z]{1,8} [a-z]{1,8} 10\\.0\\.0\\.0/8 md5( #[ -~é]{0,20})?",
        0..4,
    );
    let parameters =
        proptest::collection::btree_map("[a-z][a-z0-9_]{0,20}(\\.[a-z][a-z0-9_]{0,10})?", "[ -~é€\t]{0,40}", 0..6);
    let flags = (0usize..4, any::<[bool; 3]>(), 0u64..(1 << 45));
    (spans, hba, parameters, flags).prop_map(|(spans, hba, parameters, (mode, [strict, other_site, tls], size))| {
        Settings {
            commit_mode: CommitMode::ALL[mode],
            strict,
            sync_from_other_site: other_site,
            voter_grace: Span(Millis(spans.0)),
            sample_interval: Span(Millis(spans.1)),
            lag_warn: Span(Millis(spans.2)),
            slot_retention: Span(Millis(spans.3)),
            slot_retention_size: Size(size + SLOT_RETENTION_SIZE_MIN),
            clone_rate: Size(if size < CLONE_RATE_MIN { 0 } else { size }),
            tls,
            failover: model::settings::FailoverSettings {
                automatic: strict,
                cross_site: other_site,
                sites: hba.iter().take(2).map(|line| format!("s{}", line.len()).parse().expect("a site")).collect(),
                loss_max: Size(size),
            },
            postgresql: model::settings::PostgresqlSettings { hba, parameters },
        }
    })
}

proptest! {
    #[test]
    fn what_is_written_reads_back_as_the_same(settings in settings()) {
        let text = to_toml(&settings);
        let read = parse_toml(&text);
        prop_assert_eq!(read.as_ref(), Ok(&settings), "{}", text);
        prop_assert_eq!(diff(&settings, &settings), vec![]);
    }

    #[test]
    fn no_text_whatever_breaks_the_reader(text in "(?s).{0,200}") {
        if let Err(found) = parse_toml(&text) {
            prop_assert!(!found.is_empty());
        }
    }
}
