//! An address that moves with the primary, in network namespaces: on one node at any time, told to the neighbours, and
//! taken off before the server stops, also when the keeper hangs.

use anyhow::{Result, bail, ensure};
use e2e::net::{Wired, signal, wait_for};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// The nodes that have the address.
fn holders(wired: &Wired, address: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for name in wired.names() {
        if wired.ip(&name, "-4 -o addr show dev eth0")?.contains(&format!(" {address}/")) {
            found.push(name);
        }
    }
    Ok(found)
}

fn waits_for_holder(wired: &Wired, address: &str, what: &str, fits: impl Fn(&str) -> bool) -> String {
    wait_for(what, PATIENCE, || match holders(wired, address)?.as_slice() {
        [one] if fits(one) => Ok(one.clone()),
        other => bail!("{other:?}"),
    })
}

fn primary(wired: &Wired, asked: &str) -> Result<String> {
    let status = wired.node(asked).status()?;
    ensure!(status["primary_up"] == true && status["failover"].is_null(), "{}", status["sentence"]);
    Ok(status["primary"].as_str().unwrap_or_default().to_owned())
}

/// The hardware address behind an address, as the clients' side of the bridge has it.
fn neighbour(address: &str) -> String {
    let output = std::process::Command::new("ip").args(["neigh", "show", address]).output().expect("ip runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).unwrap_or_default().to_owned()
}

fn hardware(wired: &Wired, name: &str) -> String {
    let text = wired.ip(name, "-o link show dev eth0").expect("a link");
    text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap_or_default().to_owned()
}

fn wait_whole(wired: &Wired) -> String {
    wait_for("a cluster that is whole", PATIENCE, || {
        let mut said = None;
        for name in wired.names() {
            let status = wired.node(&name).status()?;
            ensure!(status["verdict"] == "healthy", "{name}: {} {:#}", status["sentence"], status["problems"]);
            said = Some(primary(wired, &name)?);
        }
        said.ok_or_else(|| anyhow::anyhow!("no nodes"))
    })
}

#[test]
fn the_address_is_where_the_primary_is_and_nowhere_when_its_keeper_hangs() {
    let mut wired = match Wired::start(3) {
        Ok(wired) => wired,
        Err(why) => {
            eprintln!("SKIPPED, NOTHING WAS PROVED: network namespaces cannot be had here: {why:#}");
            return;
        }
    };
    let address = wired.spare_address();
    for name in wired.names() {
        let node = wired.node(&name).clone();
        let text = std::fs::read_to_string(&node.config).expect("a node file");
        let section = format!("{text}\n[floating_ip]\naddress = \"{address}/24\"\ninterface = \"eth0\"\n");
        std::fs::write(&node.config, section).expect("written");
        wired.kill_keeper(&name);
        wired.start_keeper(&name);
        wait_whole(&wired);
    }
    let first = wait_whole(&wired);
    waits_for_holder(&wired, &address, "the address at the primary", |name| name == first);
    // A client that asks has it among its neighbours.
    let _ = std::net::TcpStream::connect_timeout(
        &format!("{address}:5432").parse().expect("an address"),
        Duration::from_secs(2),
    );
    wait_for("the neighbour to be known", PATIENCE, || {
        ensure!(
            neighbour(&address) == hardware(&wired, &first),
            "{} {}",
            neighbour(&address),
            hardware(&wired, &first)
        );
        Ok(())
    });

    // A switchover takes it along, and neighbours hear of it without asking.
    let other = if first == "n2" { "n3" } else { "n2" };
    let said = wired.stemma(&first, &["switchover", "--to", other, "--yes"]);
    assert_eq!(said.code, 0, "{said:?}");
    waits_for_holder(&wired, &address, "the address at the new primary", |name| name == other);
    wait_for("the neighbours to have heard", PATIENCE, || {
        ensure!(neighbour(&address) == hardware(&wired, other), "{}", neighbour(&address));
        Ok(())
    });

    // The host dies: its address stays on the dead machine's interface only as long as its watcher leaves it there.
    wait_whole(&wired);
    let died = Instant::now();
    wired.kill_keeper(other);
    wired.node(other).server_processes().into_iter().for_each(|pid| signal(pid, Signal::SIGKILL));
    let next = waits_for_holder(&wired, &address, "the address at the one that took over", |name| name != other);
    eprintln!("the address moved to {next} {:?} after the host's death", died.elapsed());
    wired.start_keeper(other);
    assert_eq!(wait_whole(&wired), next);

    // The keeper hangs while its server lives: nobody has the address, for nobody says that it may.
    let keeper = wired.keeper(&next).expect("it runs");
    let frozen = Instant::now();
    signal(keeper, Signal::SIGSTOP);
    wait_for("the watcher to take the address off", PATIENCE, || {
        let found = holders(&wired, &address)?;
        ensure!(!found.contains(&next), "{found:?}");
        Ok(())
    });
    eprintln!("off {:?} after the keeper hung", frozen.elapsed());
    assert!(frozen.elapsed() < Duration::from_secs(4), "{:?}", frozen.elapsed());
    signal(keeper, Signal::SIGCONT);
    let last = wait_whole(&wired);
    waits_for_holder(&wired, &address, "the address back at the primary", |name| name == last);

    // What cannot be done is told, with the reason.
    let node = wired.node(&last).clone();
    let text = std::fs::read_to_string(&node.config).expect("a node file").replace("\"eth0\"", "\"eth7\"");
    std::fs::write(&node.config, text).expect("written");
    wired.kill_keeper(&last);
    wired.start_keeper(&last);
    let problem = wait_for("the problem", PATIENCE, || {
        let status: Value = wired.node(&last).status()?;
        let problems = status["problems"].as_array().cloned().unwrap_or_default();
        problems
            .into_iter()
            .find(|it| it["code"] == "ST2313")
            .ok_or_else(|| anyhow::anyhow!("{:#}", status["problems"]))
    });
    assert!(problem["cause"].as_str().is_some_and(|cause| cause.contains("eth7")), "{problem:#}");
}

#[test]
fn a_section_that_cannot_be_right_is_refused_with_its_line() {
    let world = e2e::faults::World::new();
    let node = world.node("n1");
    for (section, part) in [
        ("[floating_ip]\naddress = \"10.0.0.1\"\ninterface = \"eth0\"", "prefix"),
        ("[floating_ip]\naddress = \"10.0.0.1/24\"", "interface"),
        ("[floating_ip]\naddress = \"10.0.0.1/24\"\ninterface = \"eth0\"\nvlan = 3", "vlan"),
    ] {
        node.write_config(&format!("{}\n{section}\n", node.toml()));
        let said = node.stemma(&["init", "--name", "x"]);
        let told = said.trouble();
        assert!(told.to_string().contains(part) || told.hint.contains(part), "{section}: {told}");
    }
}
