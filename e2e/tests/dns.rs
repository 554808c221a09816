//! A name in a real BIND follows the primary of a real cluster.

use e2e::faults::{Node, World, wait_for};
use std::os::unix::fs::PermissionsExt;
use support::{Bind, SECRET};

#[path = "../../adapters/tests/support/bind.rs"]
mod support;

const NAME: &str = "db.example.test";

#[test]
fn a_name_leads_to_the_new_primary_and_a_dead_server_of_names_delays_nothing() {
    let Some(bind) = Bind::start() else {
        eprintln!("SKIPPED, NOTHING WAS PROVED: named is not installed (Debian package `bind9`)");
        return;
    };
    let world = World::new();
    let key = world.dir.join("dns.key");
    std::fs::write(&key, SECRET).expect("written");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).expect("our own file");
    let mut nodes: Vec<Node> = (1..=3).map(|number| world.node(&format!("n{number}"))).collect();
    for (number, node) in (1..).zip(&nodes) {
        // An address of its own for each, so that the name can tell them apart.
        let own = format!("listen = \"127.0.0.1,127.0.0.{number}\"\nadvertise = \"127.0.0.{number}\"\nport");
        let text = node.toml().replace("listen = \"127.0.0.1\"\nadvertise = \"127.0.0.1\"\nport", &own);
        assert!(text.contains(&own), "{text}");
        node.write_config(&format!(
            "{text}\n[dns]\nserver = \"127.0.0.1:{}\"\nzone = \"example.test\"\nname = \"{NAME}\"\n\
             replicas_name = \"db-ro.example.test\"\nkey_name = \"stemma\"\nkey_file = \"{}\"\n",
            bind.port,
            key.display()
        ));
    }
    nodes[0].init().done();
    nodes[0].start();
    nodes[0].wait_primary();
    for number in 1..3 {
        let token = nodes[0].token("replica");
        nodes[number].join(&token).done();
        nodes[number].start();
    }
    nodes[0].wait_healthy(3);
    let leads_to = |name: &str, addresses: &[&str]| {
        wait_for(&format!("{name} leads to {addresses:?}"), || {
            let found = bind.lookup(name, "A");
            let wanted = addresses.iter().map(|address| (*address).to_owned()).collect();
            if found == wanted { Ok(()) } else { Err(format!("{found:?}")) }
        });
    };
    leads_to(NAME, &["127.0.0.1"]);
    leads_to("db-ro.example.test", &["127.0.0.2", "127.0.0.3"]);

    nodes[0].kill();
    nodes[0].kill_server();
    let status = nodes[2].wait_status("a new primary", |status| status.primary_up && status.epoch.0 == 2);
    let winner = if status.primary.expect("one").as_str() == "n2" { 1 } else { 2 };
    let (address, other) = (["127.0.0.2", "127.0.0.3"][winner - 1], ["127.0.0.2", "127.0.0.3"][2 - winner]);
    leads_to(NAME, &[address]);
    leads_to("db-ro.example.test", &[other]);
    let mark = bind.lookup("_stemma.db.example.test", "TXT");
    assert!(mark.iter().any(|mark| mark.contains(" epoch=2 ")), "{mark:?}");

    // The old primary comes back as a replica, and the name stays where it is.
    nodes[0].start();
    nodes[winner].wait_healthy(3);
    leads_to("db-ro.example.test", &["127.0.0.1", other]);
    leads_to(NAME, &[address]);

    // Without the server of names the next change is none the slower, and the failure is shown.
    drop(bind);
    nodes[winner].kill();
    nodes[winner].kill_server();
    let status = nodes[0].wait_status("the next primary", |status| status.primary_up && status.epoch.0 >= 3);
    let last = status.primary.expect("one");
    let status = nodes[0].wait_status("what DNS was not told", |status| {
        status.problems.iter().any(|problem| problem.code == "ST2312" && problem.node.as_ref() == Some(&last))
    });
    assert!(status.primary_up, "the database is none the worse for it");
}
