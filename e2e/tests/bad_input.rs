//! Bad input: each is refused with a code, a reason and a hint, and damages nothing. What was there before is there
//! afterwards, compared file by file or by the cluster's own history, in which every change leaves an event.

use e2e::faults::{Disk, Node, Said, World, processes_below, server_user, wait_for};
use e2e::major_bin;
use keeper::token::JoinToken;
use model::status::{ClusterStatus, Verdict};
use nix::unistd::chown;
use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Every file below a directory with its mode, owner and content.
fn files(dir: &Path) -> BTreeMap<PathBuf, (u32, u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(path) = waiting.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let content = if meta.is_file() { fs::read(&path).unwrap_or_default() } else { Vec::new() };
        // The server goes on while its keeper is refused, and says so in its log.
        if path.file_name().is_some_and(|name| name == "postgresql.log") {
            continue;
        }
        // And a running server writes its pages when it likes.
        let pages = ["base", "global", "pg_wal", "pg_xact", "pg_multixact", "pg_subtrans", "pg_logical", "pg_stat"];
        let of_server = |name: &std::ffi::OsStr| pages.iter().any(|dir| name == *dir);
        let beside = path.parent().is_some_and(|data| data.join("postmaster.pid").exists());
        if beside && path.file_name().is_some_and(of_server) {
            continue;
        }
        if meta.is_dir() {
            waiting.extend(fs::read_dir(&path).expect("readable").map(|entry| entry.expect("readable").path()));
        }
        found.insert(path, (meta.mode(), meta.uid(), content));
    }
    found
}

/// Does something that must change no file of the node.
fn without_trace(node: &Node, act: impl FnOnce(&Node) -> Said) -> Said {
    let before = files(&node.home);
    let said = act(node);
    let after = files(&node.home);
    let changed: Vec<&PathBuf> =
        before.keys().chain(after.keys()).filter(|path| before.get(*path) != after.get(*path)).collect();
    assert!(changed.is_empty(), "{changed:?} changed: {said:?}");
    said
}

/// What people have had the cluster decide so far. What it does by itself (a replica that catches up changes the rule)
/// goes on at its own pace.
fn decided(node: &Node) -> serde_json::Value {
    wait_for("the history", || {
        let said = node.stemma(&["history"]);
        let events = said.json["history"].as_array().ok_or_else(|| format!("{said:?}"))?;
        Ok(events.iter().filter(|event| event["actor"] != "stemma").cloned().collect())
    })
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("our own file");
}

fn problem(status: &ClusterStatus, code: &str) -> bool {
    status.problems.iter().any(|problem| problem.code == code && !problem.what.is_empty() && !problem.next.is_empty())
}

#[test]
fn mistakes_in_files_are_refused_before_anything_is_written() {
    let world = World::new();
    let node = world.node("n1");
    let good = node.toml();
    let cases = [
        ("ST1102", good.replace("state_dir", "state_dri")),
        ("ST1102", good.replace("run_as", "runas").replace("bin_dir", "bindir")),
        ("ST1103", good.replace(&format!("port = {}", node.postgres_port), "port = \"many\"")),
        ("ST1103", good.replace("name = \"n1\"", "name = 7")),
        ("ST1104", format!("commit_mode = \"sync\"\n{good}")),
        ("ST1105", good.replace("name = \"n1\"\n", "")),
        ("ST1101", format!("{good}\n[keeper")),
    ];
    for (code, text) in cases {
        node.write_config(&text);
        let checked =
            without_trace(&node, |node| node.stemma(&["config", "check", &node.config.display().to_string()]));
        assert!(!checked.status.success() && checked.json.to_string().contains(code), "{code}: {checked:?}");
        let trouble = without_trace(&node, Node::init).trouble();
        let codes = format!("{} {:?}", trouble.code, trouble.causes);
        assert!(codes.contains(code), "{code} for:\n{text}\n{trouble:?}");
        without_trace(&node, |node| node.stemma(&["run"])).trouble();
    }
    node.write_config(&good);

    // The settings of the cluster.
    let settings = world.dir.join("bad.toml");
    for (text, word) in [
        ("comit_mode = \"sync\"\n", "comit_mode"),
        ("strict = \"yes\"\n", "strict"),
        ("lag_warn = \"5 parsecs\"\n", "lag_warn"),
        ("[postgresql.parameters]\nport = \"1\"\n", "port"),
        ("[postgresql.parameters]\nshared_buffers = \"many\"\n", "shared_buffers"),
        ("[postgresql]\nhba = [\"let everybody in\"]\n", "hba"),
        ("[postgresql]\nhba = [\"host all all 10.0.0.0/99 trust\"]\n", "hba"),
    ] {
        fs::write(&settings, text).expect("written");
        let arguments = ["init", "--name", "faults", "--settings", &settings.display().to_string()].map(str::to_owned);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let trouble = without_trace(&node, |node| node.stemma(&arguments)).refused("ST2107");
        assert!(format!("{trouble:?}").contains(word), "{word}: {trouble:?}");
    }
    node.stemma(&["run"]).refused("ST1207");
    assert!(!node.data_dir.exists());
}

#[test]
fn a_place_that_is_not_fit_is_refused_before_anything_is_written() {
    let world = World::new();
    let node = world.node("n1");
    let good = node.toml();

    for port in [node.keeper_port, node.api_port, node.postgres_port] {
        let _holder = TcpListener::bind(("127.0.0.1", port)).expect("free");
        let trouble = without_trace(&node, Node::init).refused("ST1201");
        assert!(trouble.reason.contains(&port.to_string()), "{trouble:?}");
    }

    // A directory with something in it, with a database in it, and with one that others may look into.
    let user = server_user();
    let own = |path: &Path| {
        if let Some(user) = &user {
            chown(path, Some(user.uid), Some(user.gid)).expect("we are root");
        }
    };
    fs::create_dir(&node.data_dir).expect("made");
    set_mode(&node.data_dir, 0o700);
    own(&node.data_dir);
    fs::write(node.data_dir.join("diary.txt"), "dear diary").expect("written");
    without_trace(&node, Node::init).refused("ST1202");
    fs::write(node.data_dir.join("PG_VERSION"), "15\n").expect("written");
    without_trace(&node, Node::init).refused("ST1202");
    set_mode(&node.data_dir, 0o755);
    let trouble = without_trace(&node, Node::init).refused("ST1202");
    assert!(trouble.hint.contains("chmod"), "{trouble:?}");
    fs::remove_dir_all(&node.data_dir).expect("removed");
    set_mode(&node.state_dir, 0o755);
    without_trace(&node, Node::init).refused("ST8004");
    set_mode(&node.state_dir, 0o711);

    // Server programs that are missing, too old, or no programs.
    let bin = world.dir.join("bin");
    fs::create_dir(&bin).expect("made");
    node.write_config(&good.replace(&major_bin(15).display().to_string(), &bin.display().to_string()));
    without_trace(&node, Node::init).refused("ST1203");
    for (says, code) in [("postgres (PostgreSQL) 12.4", "ST1204"), ("mysqld 8.0", "ST1203")] {
        for program in ["postgres", "initdb"] {
            fs::write(bin.join(program), format!("#!/bin/sh\necho '{says}'\n")).expect("written");
            set_mode(&bin.join(program), 0o755);
        }
        without_trace(&node, Node::init).refused(code);
    }
    node.write_config(&good);
    node.init().done();
    without_trace(&node, Node::init).refused("ST1208");
}

/// Takes a token apart and puts it together again with something else in it.
fn forged(token: &str, change: impl FnOnce(&mut JoinToken)) -> String {
    let mut parts: JoinToken = token.parse().expect("a token");
    change(&mut parts);
    parts.to_string()
}

#[test]
fn a_stranger_is_refused_and_the_cluster_stays_as_it_was() {
    let world = World::new();
    let mut nodes = world.cluster(2);
    let n1 = nodes.swap_remove(0);
    let stranger = world.node("n3");
    let expired = {
        let said = n1.stemma(&["token", "create", "--ttl", "1ms"]).done();
        said.json["token"].as_str().expect("a token").to_owned()
    };
    let revoked = n1.token("replica");
    let id = revoked.parse::<JoinToken>().expect("a token").id;
    n1.stemma(&["token", "revoke", &id]).done();
    let for_witness = n1.token("witness");
    let token = n1.token("replica");
    let used = n1.token("replica");
    let mut n4 = world.node("n4");
    n4.join(&used).done();
    n4.start();
    n1.wait_healthy(3);
    let before = decided(&n1);

    let cut = &token[..token.len() - 5];
    let other_secret = forged(&token, |parts| parts.secret = "0".repeat(parts.secret.len()));
    let other_id = forged(&token, |parts| parts.id = "tok_9999".into());
    let other_role = forged(&for_witness, |parts| parts.role = model::Role::Replica);
    for (what, token) in [
        ("used", used.as_str()),
        ("expired", &expired),
        ("revoked", &revoked),
        ("cut short", cut),
        ("of another secret", &other_secret),
        ("of another id", &other_id),
        ("for a witness", &for_witness),
        ("for a witness, changed", &other_role),
    ] {
        let trouble = stranger.join(token).refused("ST8001");
        assert!(!stranger.state_dir.join("identity").exists(), "a token {what}: {trouble:?}");
    }
    let other_ca = forged(&token, |parts| parts.ca_sha256 = "ab".repeat(32));
    stranger.join(&other_ca).refused("ST8002");
    let nobody = forged(&token, |parts| parts.addresses = vec![format!("127.0.0.1:{}", stranger.keeper_port)]);
    stranger.join(&nobody).refused("ST2114");

    // A name, an address and a version that do not fit.
    let good = stranger.toml();
    stranger.write_config(&good.replace("name = \"n3\"", "name = \"n4\""));
    stranger.join(&token).refused("ST2102");
    let bins = (major_bin(15).display().to_string(), major_bin(16).display().to_string());
    stranger.write_config(&good.replace(&bins.0, &bins.1));
    stranger.join(&token).refused("ST3016");
    let advertise = format!("advertise = \"127.0.0.1:{}\"\n\n[api]", n4.keeper_port);
    stranger.write_config(&good.replace("\n[api]", &advertise));
    stranger.join(&token).refused("ST1201");
    stranger.write_config(&good);

    // A clock that is hours off, in both directions.
    let faketime = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    assert!(Path::new(faketime).exists(), "{faketime} is missing: apt-get install libfaketime");
    for offset in ["+5h", "-5h"] {
        let clock = [("LD_PRELOAD", faketime), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
        let said = stranger.stemma_with(&["join", &token], &clock);
        let trouble = said.refused("ST2113");
        assert!(trouble.hint.contains("clock"), "{offset}: {trouble:?}");
    }
    assert_eq!(decided(&n1), before, "a refusal changed something");
    assert!(!stranger.data_dir.exists());

    // After all that the token is still good, once.
    stranger.join(&token).done();
    stranger.join(&token).refused("ST1208");
    n1.wait_status("the new member", |status| status.node("n3").is_some());
}

#[test]
fn a_running_node_refuses_what_would_harm_it() {
    let world = World::new();
    let mut n1 = world.node("n1");
    n1.init().done();

    // Ports that were taken between `init` and `run`: the keeper says so and ends, or waits with its server.
    for port in [n1.keeper_port, n1.api_port] {
        let holder = TcpListener::bind(("127.0.0.1", port)).expect("free");
        n1.stemma(&["run"]).refused("ST1201");
        drop(holder);
    }
    let holder = TcpListener::bind(("127.0.0.1", n1.postgres_port)).expect("free");
    n1.start();
    n1.wait_status("a server that cannot listen", |status| {
        problem(status, "ST2205") && format!("{:?}", status.problems).contains("Address already in use")
    });
    drop(holder);
    n1.wait_primary();

    // Two keepers of one node; a node of another name; secrets that others may read.
    n1.stemma(&["run"]).refused("ST1205");
    n1.wait_primary();
    n1.kill();
    let good = n1.toml();
    n1.write_config(&good.replace("name = \"n1\"", "name = \"n9\""));
    without_trace(&n1, |node| node.stemma(&["run"])).refused("ST1103");
    n1.write_config(&good);
    for secret in ["identity/node.key", "identity"] {
        let path = n1.state_dir.join(secret);
        let path = if path.exists() { path } else { first_key(&n1.state_dir.join("identity")) };
        let mode = fs::metadata(&path).expect("a secret").mode();
        set_mode(&path, 0o755);
        let trouble = n1.stemma(&["run"]).refused("ST8004");
        assert!(trouble.hint.contains("chmod"), "{trouble:?}");
        set_mode(&path, mode & 0o777);
    }

    // A data directory that was opened to others while the server was down: not started, and told.
    n1.kill_server();
    set_mode(&n1.data_dir, 0o755);
    n1.start();
    n1.wait_status("a directory that is open to others", |status| {
        problem(status, "ST2205") && format!("{:?}", status.problems).contains("is open to other users")
    });
    assert!(processes_below(&n1.data_dir).is_empty(), "a server was started there");
    set_mode(&n1.data_dir, 0o700);
    n1.wait_primary();

    malformed_http(&n1);
    n1.stemma(&["node", "remove", "n1", "--yes"]).refused("ST2104");
    n1.stemma(&["node", "remove", "n7", "--yes"]).refused("ST2101");
    n1.stemma(&["node", "reinit", "n1", "--yes"]).refused("ST2104");
}

fn first_key(dir: &Path) -> PathBuf {
    let entries = fs::read_dir(dir).expect("readable").map(|entry| entry.expect("readable").path());
    let mut keys: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|end| end == "key")).collect();
    keys.pop().expect("a key")
}

fn malformed_http(node: &Node) {
    let before = decided(node);
    let token = fs::read_to_string(node.state_dir.join("api.token")).expect("a token");
    let request = |line: &str, headers: &str, body: &str| {
        let text = format!(
            "{line} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        node.http(text.as_bytes()).unwrap_or_else(|error| panic!("{line}: {error}"))
    };
    let bearer = format!("Authorization: Bearer {token}\r\nContent-Type: application/json\r\n");
    let long = "x".repeat(300 << 10);
    for (what, expected, code, answer) in [
        ("no JSON", 400, "ST1301", request("PUT /v1/settings", &bearer, "{{{")),
        ("an unknown field", 400, "ST1301", request("POST /v1/tokens", &bearer, "{\"rule\":\"replica\"}")),
        ("a wrong type", 400, "ST1301", request("POST /v1/tokens", &bearer, "{\"role\":7}")),
        ("a body too large", 413, "ST1302", request("PUT /v1/settings", &bearer, &long)),
        (
            "no token",
            401,
            "ST8003",
            request("POST /v1/tokens", "Content-Type: application/json\r\n", "{\"role\":\"replica\"}"),
        ),
        ("a wrong token", 401, "ST8003", request("DELETE /v1/nodes/n1", "Authorization: Bearer abc\r\n", "")),
        ("an unknown path", 404, "ST1301", request("GET /v1/nothing", "", "")),
        ("a wrong method", 405, "ST1301", request("DELETE /v1/status", &bearer, "")),
    ] {
        assert_eq!(answer.0, expected, "{what}: {answer:?}");
        let document: serde_json::Value =
            serde_json::from_str(&answer.1).unwrap_or_else(|error| panic!("{what}: {error}: {answer:?}"));
        assert_eq!(document["code"], code, "{what}: {document}");
        for field in ["title", "detail", "hint"] {
            assert!(document[field].as_str().is_some_and(|text| !text.is_empty()), "{what} has no {field}: {document}");
        }
    }
    let (status, _) = request("GET /v1/status", &format!("X-Long: {}\r\n", "y".repeat(1 << 20)), "");
    assert_eq!(status, 431, "a head of a megabyte");
    for raw in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"GET\r\n\r\n", b"\0\0\0\0\r\n\r\n"] {
        // Whatever is answered, it is no success.
        if let Ok((status, _)) = node.http(&[raw, b"\r\n\r\n"].concat()) {
            assert_eq!(status, 400);
        }
    }
    assert_eq!(decided(node), before, "a malformed request changed something");
    node.wait_primary();
}

fn copy_directory(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(copied.expect("cp runs").success());
}

#[test]
fn a_foreign_database_and_a_foreign_identity_are_kept_out() {
    let (ours, theirs) = (World::new(), World::new());
    let ours_nodes = ours.cluster(1);
    let theirs_nodes = theirs.cluster(1);

    // Data of their cluster lies where our new node is to clone to: refused at `join`; put there later, halted.
    let mut guest = ours.node("n2");
    let token = ours_nodes[0].token("replica");
    theirs_nodes[0]
        .sql("CREATE TABLE precious (id int); INSERT INTO precious VALUES (1); CHECKPOINT")
        .expect("written");
    let mut theirs_nodes = theirs_nodes;
    theirs_nodes[0].kill();
    theirs_nodes[0].kill_server();
    let copy = |to: &Path| {
        copy_directory(&theirs_nodes[0].data_dir, to);
        let _ = fs::remove_file(to.join("postmaster.pid"));
    };
    copy(&guest.data_dir);
    without_trace(&guest, |guest| guest.join(&token)).refused("ST1202");
    fs::remove_dir_all(&guest.data_dir).expect("removed");
    guest.join(&token).done();
    copy(&guest.data_dir);
    let before = files(&guest.data_dir);
    guest.start();
    let status = ours_nodes[0].wait_status("a halted node", |status| problem(status, "ST3011"));
    assert_eq!(status.node("n2").map(|node| node.stage.as_str()), Some("halted"));
    assert_eq!(files(&guest.data_dir), before, "foreign data is not touched");
    assert!(status.primary_up);
    drop(guest);

    // A node of their cluster knocks at ours: it gets nothing, and ours is not disturbed.
    let decided_before = decided(&ours_nodes[0]);
    let identity = theirs_nodes[0].state_dir.join("identity");
    let mut intruder = ours.node("n9");
    copy_directory(&identity, &intruder.state_dir.join("identity"));
    let file = fs::read_dir(intruder.state_dir.join("identity"))
        .expect("readable")
        .map(|entry| entry.expect("readable").path())
        .find(|path| path.extension().is_some_and(|end| end == "json"))
        .expect("the identity");
    let mut told: serde_json::Value = serde_json::from_slice(&fs::read(&file).expect("readable")).expect("JSON");
    told["name"] = "n9".into();
    told["node"] = 2.into();
    told["seeds"] = serde_json::json!([[1, format!("127.0.0.1:{}", ours_nodes[0].keeper_port)]]);
    fs::write(&file, told.to_string()).expect("written");
    set_mode(&file, 0o600);
    intruder.start();
    wait_for("a refusal in the intruder's log", || {
        let log = fs::read_to_string(intruder.log()).unwrap_or_default();
        if log.contains("ST8002") { Ok(()) } else { Err(log) }
    });
    assert!(!intruder.data_dir.exists(), "it was given data");
    assert_eq!(decided(&ours_nodes[0]), decided_before);
    ours_nodes[0].wait_primary();
}

#[test]
fn a_clone_goes_on_from_another_source_and_after_a_full_disk() {
    let world = World::new();
    let mut nodes = world.cluster(2);
    nodes[0].sql("CREATE TABLE ballast AS SELECT g, repeat('x', 500) FROM generate_series(1, 20000) g").expect("rows");
    nodes[0].stemma(&["config", "set", "clone_rate=8MB"]).done();

    // The source, a replica by preference, dies in the middle.
    let mut n3 = world.node("n3");
    n3.join(&nodes[0].token("replica")).done();
    n3.start();
    let source = wait_for("a clone in the middle", || {
        let status = nodes[0].status()?;
        let clone = status.node("n3").and_then(|node| node.clone.clone()).ok_or("no clone is shown")?;
        if clone.done_bytes > 4 << 20 { Ok(clone.source) } else { Err(format!("{clone:?}")) }
    });
    assert_eq!(source, "n2", "a replica is the better source");
    nodes[1].kill_server();
    nodes[0].wait_status("n3 to follow all the same", |status| {
        status.node("n3").is_some_and(|node| node.stage == "active" && node.healthy)
    });

    // Two of three remain: without n3 only one of two would answer.
    nodes[0].wait_healthy(3);
    nodes[1].kill();
    nodes[0].wait_status("n2 to be silent", |status| status.node("n2").is_some_and(|node| !node.keeper_up));
    let before = decided(&nodes[0]);
    wait_for("a majority that refuses", || {
        let said = nodes[0].stemma(&["node", "remove", "n2", "--yes"]);
        if said.trouble().is("ST2105") { Err(format!("{said:?}")) } else { Ok(said) }
    })
    .refused("ST2116");
    nodes[0].stemma(&["node", "remove", "n3", "--yes"]).refused("ST2103");
    assert_eq!(decided(&nodes[0]), before);
    nodes[1].start();
    nodes[0].wait_healthy(3);
    let count = n3.sql("SELECT count(*) FROM ballast").expect("n3 answers");
    assert_eq!(count[0][0], "20000");
    disk_full(&world, &nodes[0]);
}

/// A disk that fills up during a clone: told, nothing started, and gone on with by itself when there is room.
fn disk_full(world: &World, n1: &Node) {
    let mut n4 = world.node("n4");
    let disk = Disk::mount(n4.home.join("disk"));
    let Some(disk) = disk else {
        eprintln!("NOT TESTED: this machine refuses to mount a small disk, so none can be filled");
        return;
    };
    n4.data_dir = disk.dir.join("data");
    n4.write_config(&n4.toml());
    n4.join(&n1.token("replica")).done();
    n4.start();
    wait_for("a clone in the middle", || {
        let status = n1.status()?;
        let clone = status.node("n4").and_then(|node| node.clone.clone()).ok_or("no clone is shown")?;
        if clone.done_bytes > 4 << 20 { Ok(()) } else { Err(format!("{clone:?}")) }
    });
    disk.fill();
    n1.wait_status("the full disk to be told", |status| problem(status, "ST3003"));
    assert!(processes_below(&n4.data_dir).is_empty(), "a server runs on a half-made copy");
    disk.make_room();
    n1.wait_healthy(4);
    drop(n4);
}

#[test]
fn a_clock_that_went_wrong_is_told_and_harms_nothing() {
    let world = World::new();
    let mut nodes = world.cluster(2);
    let faketime = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
    assert!(Path::new(faketime).exists(), "{faketime} is missing: apt-get install libfaketime");
    nodes[1].kill();
    nodes[1].start_with(&[("LD_PRELOAD", faketime), ("FAKETIME", "+5h"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")]);
    let status = nodes[0].wait_status("the clock to be told", |status| problem(status, "ST2113"));
    assert!(status.primary_up && status.node("n2").is_some_and(|node| node.keeper_up), "{status:?}");
    nodes[0].sql("CREATE TABLE t (id int)").expect("commits are still acknowledged");
    nodes[1].kill();
    nodes[1].start();
    let status = nodes[0].wait_healthy(2);
    assert_eq!(status.verdict, Verdict::Healthy);
}
