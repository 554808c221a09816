//! A cluster in network namespaces under load, and faults that it must outlive by itself.
//!
//! Every fault is a lease with an undo: what a service manager, a thawed machine or a mended switch does is done by
//! `Lab::mend`, and nothing else: no command is given to the cluster. After each fault the same is asked: nothing in
//! the ledger of the clients is missing, one node takes writes, every node says that all is well, and where the primary
//! was replaced the old one acknowledged nothing more.

use crate::net::{Node, Wired, signal, wait_for};
use crate::oracle::{Faithful, Oracle};
use anyhow::{Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

/// How long the cluster may take for anything on a machine that others use too.
const PATIENCE: Duration = Duration::from_secs(120);
/// Clients write for so long before each fault.
const STEADY: Duration = Duration::from_millis(300);
/// A fault that must not change the primary is kept up for this long: several times what detection takes.
const STAYING: Duration = Duration::from_secs(4);
/// Hosts that lost power come back this far apart.
const BOOT_APART: Duration = Duration::from_millis(1_500);
/// How long clients of a replaced primary try to get something acknowledged.
const TEMPTATION: Duration = Duration::from_secs(2);
/// Clients look for any server; this many stay with the primary that is about to suffer.
const FAITHFUL: usize = 2;
/// Pause of a client between two writes.
const PACE: Duration = Duration::from_millis(8);

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` of all processes of the primary's server.
    ServerKilled,
    /// `kill -9` of the primary's keeper alone.
    KeeperKilled,
    /// `kill -9` of the primary's keeper and server.
    HostKilled,
    /// `kill -9` of everything on all nodes within a moment; who was primary comes back last.
    AllKilled,
    /// SIGSTOP of all processes of the primary's server, thawed after the failover.
    ServerFrozen,
    /// SIGSTOP of the primary's keeper alone.
    KeeperFrozen,
    /// SIGSTOP of both, thawed after the failover.
    HostFrozen,
    /// The primary's cable is pulled.
    PrimaryCutOff,
    /// The primary reaches its clients and no other node.
    PrimaryWithoutPeers,
    /// The others do not hear the primary; it hears them.
    PrimaryMute,
    /// The primary does not hear the others; they hear it.
    PrimaryDeaf,
    /// Other nodes reach the primary, clients do not.
    PrimaryWithoutClients,
    /// A replica's cable is pulled.
    ReplicaCutOff,
    /// `kill -9` of all processes of a replica's server.
    ReplicaServerKilled,
    /// `kill -9` of a replica's keeper and server.
    ReplicaHostKilled,
    /// SIGSTOP of a replica's keeper and server.
    ReplicaFrozen,
    /// The primary's host dies while the receiver of a replica is stopped.
    ReceiverFrozen,
    /// The primary's host dies while the startup process of a replica is stopped: it cannot replay, nor obey a reload.
    ReplayFrozen,
    /// The primary loses its peers, and a client's wait for replicas is cancelled.
    WaitCancelled,
    /// All keepers are killed at once and started again.
    KeepersKilled,
}

/// What must become of the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Another node takes over.
    Moves,
    /// It stays.
    Stays,
    /// Whichever is sooner.
    Either,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Fault; 20] = [
        Fault::ServerKilled,
        Fault::KeeperKilled,
        Fault::HostKilled,
        Fault::AllKilled,
        Fault::ServerFrozen,
        Fault::KeeperFrozen,
        Fault::HostFrozen,
        Fault::PrimaryCutOff,
        Fault::PrimaryWithoutPeers,
        Fault::PrimaryMute,
        Fault::PrimaryDeaf,
        Fault::PrimaryWithoutClients,
        Fault::ReplicaCutOff,
        Fault::ReplicaServerKilled,
        Fault::ReplicaHostKilled,
        Fault::ReplicaFrozen,
        Fault::ReceiverFrozen,
        Fault::ReplayFrozen,
        Fault::WaitCancelled,
        Fault::KeepersKilled,
    ];

    /// What must become of the primary.
    pub fn outcome(self) -> Outcome {
        match self {
            Fault::HostKilled
            | Fault::ServerFrozen
            | Fault::HostFrozen
            | Fault::PrimaryCutOff
            | Fault::PrimaryWithoutPeers
            | Fault::PrimaryMute
            | Fault::PrimaryDeaf
            | Fault::ReceiverFrozen
            | Fault::ReplayFrozen
            | Fault::WaitCancelled => Outcome::Moves,
            Fault::KeeperKilled
            | Fault::KeeperFrozen
            | Fault::PrimaryWithoutClients
            | Fault::ReplicaCutOff
            | Fault::ReplicaServerKilled
            | Fault::ReplicaHostKilled
            | Fault::ReplicaFrozen
            | Fault::KeepersKilled => Outcome::Stays,
            Fault::ServerKilled | Fault::AllKilled => Outcome::Either,
        }
    }
}

impl Fault {
    /// Whether the primary's server and all of its connections are left alone.
    pub fn leaves_the_server_alone(self) -> bool {
        match self {
            Fault::KeeperKilled
            | Fault::KeeperFrozen
            | Fault::KeepersKilled
            | Fault::ReplicaCutOff
            | Fault::ReplicaServerKilled
            | Fault::ReplicaHostKilled
            | Fault::ReplicaFrozen => true,
            Fault::ServerKilled
            | Fault::HostKilled
            | Fault::AllKilled
            | Fault::ServerFrozen
            | Fault::HostFrozen
            | Fault::PrimaryCutOff
            | Fault::PrimaryWithoutPeers
            | Fault::PrimaryMute
            | Fault::PrimaryDeaf
            | Fault::PrimaryWithoutClients
            | Fault::ReceiverFrozen
            | Fault::ReplayFrozen
            | Fault::WaitCancelled => false,
        }
    }
}

/// What became of one fault.
#[derive(Clone, Debug)]
pub struct Account {
    /// Which.
    pub fault: Fault,
    /// The primary before.
    pub from: String,
    /// The primary after.
    pub to: String,
    /// Longest time without an acknowledgement.
    pub gap: Duration,
    /// From the fault until every node said that all is well.
    pub whole_after: Duration,
}

/// The cluster, its clients, and who is what.
pub struct Lab {
    wired: Wired,
    oracle: Oracle,
    names: Vec<String>,
    servers: Vec<String>,
}

impl Lab {
    /// A healthy cluster of three with clients; the error says why there cannot be one here.
    pub fn start(clients: usize) -> Result<Lab> {
        let wired = Wired::start(3)?;
        let names = wired.names();
        let servers: Vec<String> = names.iter().map(|name| wired.node(name).uri()).collect();
        let oracle = Oracle::paced(servers.clone(), clients, PACE);
        Ok(Lab { wired, oracle, names, servers })
    }

    /// Its nodes, for what only one scene does.
    pub fn wired(&mut self) -> &mut Wired {
        &mut self.wired
    }
    /// Its clients.
    pub fn oracle(&self) -> &Oracle {
        &self.oracle
    }
    fn node(&self, name: &str) -> &Node {
        self.wired.node(name)
    }
    fn index(&self, name: &str) -> usize {
        self.names.iter().position(|known| known == name).expect("a node of this cluster")
    }
    /// The first replica in the order of names.
    fn replica(&self, primary: &str) -> String {
        self.names.iter().find(|name| *name != primary).expect("three nodes").clone()
    }
    fn others<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.names.iter().map(String::as_str).filter(move |other| *other != name)
    }

    /// Waits until every node says that all is well and the same of who is primary, and says who.
    pub fn whole(&self) -> String {
        wait_for("a cluster that is whole", PATIENCE, || {
            let mut primary: Option<String> = None;
            for name in &self.names {
                let status = self.node(name).status()?;
                let durability = &status["durability"];
                ensure!(status["verdict"] == "healthy", "{name}: {} {:#}", status["sentence"], status["problems"]);
                ensure!(durability["acks"] == durability["acks_wanted"], "{name}: {durability:#}");
                let streaming = status["nodes"].as_array().into_iter().flatten();
                let streaming = streaming.filter(|node| node["role"] == "primary" || node["link"] == "streaming");
                ensure!(streaming.count() == self.names.len(), "{name}: not all stream");
                let said = status["primary"].as_str().ok_or_else(|| anyhow!("{name} knows no primary"))?;
                ensure!(primary.as_deref().is_none_or(|it| it == said), "{name} says {said}, others {primary:?}");
                primary = Some(said.to_owned());
            }
            primary.ok_or_else(|| anyhow!("no nodes"))
        })
    }

    /// The nodes whose servers take writes.
    fn writable(&self) -> Vec<&str> {
        let takes = |name: &&str| self.node(name).value("SELECT pg_is_in_recovery()").is_ok_and(|it| it == "f");
        self.names.iter().map(String::as_str).filter(takes).collect()
    }

    fn wait_writes(&self, what: &str) {
        let before = self.oracle.count();
        wait_for(what, PATIENCE, || {
            let written = self.oracle.count() - before;
            ensure!(written > 20, "{written} writes");
            Ok(())
        });
    }

    /// Has a fault happen to the cluster, holds it up to what is promised, and tells what became of it.
    pub fn suffer(&mut self, fault: Fault) -> Account {
        let from = self.whole();
        self.wait_writes("clients that write");
        let faithful = self.oracle.faithful(self.index(&from), FAITHFUL);
        wait_for("clients that stay", PATIENCE, || {
            ensure!(faithful.tries() > 4, "{} tries", faithful.tries());
            Ok(())
        });
        std::thread::sleep(STEADY);
        self.oracle.forget_gaps();
        let begun = Instant::now();
        self.inject(fault, &from, &faithful);
        let moved_at = self.wait_outcome(fault, &from, begun);
        let gap = self.oracle.longest_gap();
        self.mend(fault, &from);
        if let Some(moved_at) = moved_at {
            let (tries, until) = (faithful.tries(), Instant::now() + TEMPTATION);
            while Instant::now() < until && faithful.tries() < tries + 20 {
                std::thread::sleep(Duration::from_millis(50));
            }
            let stolen = faithful.acknowledged_since(moved_at);
            assert!(stolen.is_empty(), "{fault:?}: {from} acknowledged {stolen:?} after it was replaced");
        }
        let to = self.whole();
        let whole_after = begun.elapsed();
        self.hold_to_account(fault, &from, &to);
        if fault == Fault::WaitCancelled {
            self.cancelled_are_saved(&faithful);
        }
        Account { fault, from, to, gap, whole_after }
    }

    /// Waits until the fault has done what it can. If the primary moved: since when.
    fn wait_outcome(&self, fault: Fault, from: &str, begun: Instant) -> Option<Instant> {
        match fault.outcome() {
            Outcome::Stays => {
                std::thread::sleep(STAYING.saturating_sub(begun.elapsed()));
                None
            }
            Outcome::Moves => {
                let old = self.index(from);
                wait_for(&format!("{fault:?}: writes on another node than {from}"), PATIENCE, || {
                    ensure!(self.oracle.last_server() != old, "{from} is the last that acknowledged");
                    Ok(())
                });
                let moved = Instant::now();
                self.wait_writes("clients that write again");
                Some(moved)
            }
            Outcome::Either => {
                self.wait_writes("clients that write again");
                None
            }
        }
    }

    /// What must be true after every fault.
    fn hold_to_account(&self, fault: Fault, from: &str, to: &str) {
        match fault.outcome() {
            Outcome::Moves => {}
            Outcome::Stays => assert_eq!(from, to, "{fault:?} must not change the primary"),
            Outcome::Either => {}
        }
        let lost = self.oracle.lost();
        assert!(
            lost.is_empty(),
            "{fault:?}: acknowledged and lost: {} rows, {:?} ...",
            lost.len(),
            &lost[..lost.len().min(5)]
        );
        assert_eq!(self.writable(), [to], "{fault:?}: who takes writes");
        self.wait_writes("clients that write in the end");
    }

    /// Rows whose wait was cancelled are there, or in a bundle of what only the old primary held.
    fn cancelled_are_saved(&self, faithful: &Faithful) {
        let cancelled = faithful.cancelled();
        assert!(!cancelled.is_empty(), "no wait was cancelled, so nothing was shown");
        let held = self.oracle.holds(&cancelled);
        let missing: Vec<&i64> = cancelled.iter().filter(|id| !held.contains(id)).collect();
        let saved = self.names.iter().any(|name| {
            let said = self.wired.stemma(name, &["history", "-o", "json"]);
            said.out.contains("rescue-saved")
        });
        assert!(missing.is_empty() || saved, "{missing:?} are neither in the cluster nor saved");
    }

    fn inject(&mut self, fault: Fault, primary: &str, faithful: &Faithful) {
        let replica = self.replica(primary);
        match fault {
            Fault::ServerKilled => self.signal_server(primary, Signal::SIGKILL),
            Fault::KeeperKilled => self.wired.kill_keeper(primary),
            Fault::HostKilled => self.kill_host(primary),
            Fault::AllKilled => self.lose_power(primary),
            Fault::ServerFrozen => self.signal_server(primary, Signal::SIGSTOP),
            Fault::KeeperFrozen => self.signal_keeper(primary, Signal::SIGSTOP),
            Fault::HostFrozen => self.signal_host(primary, Signal::SIGSTOP),
            Fault::PrimaryCutOff => self.wired.cut(primary),
            Fault::PrimaryWithoutPeers => self.part(primary),
            Fault::PrimaryMute => self.others(primary).for_each(|other| self.wired.mute(primary, other)),
            Fault::PrimaryDeaf => self.others(primary).for_each(|other| self.wired.mute(other, primary)),
            Fault::PrimaryWithoutClients => self.wired.mute(primary, "clients"),
            Fault::ReplicaCutOff => self.wired.cut(&replica),
            Fault::ReplicaServerKilled => self.signal_server(&replica, Signal::SIGKILL),
            Fault::ReplicaHostKilled => self.kill_host(&replica),
            Fault::ReplicaFrozen => self.signal_host(&replica, Signal::SIGSTOP),
            Fault::ReceiverFrozen => self.stop_then_kill(&replica, "walreceiver", primary),
            Fault::ReplayFrozen => self.stop_then_kill(&replica, "startup", primary),
            Fault::WaitCancelled => self.part_and_cancel(primary, faithful),
            Fault::KeepersKilled => self.restart_keepers(),
        }
    }

    fn mend(&mut self, fault: Fault, primary: &str) {
        let replica = self.replica(primary);
        match fault {
            Fault::ServerKilled | Fault::ReplicaServerKilled | Fault::KeepersKilled | Fault::AllKilled => {}
            Fault::KeeperKilled | Fault::HostKilled => self.wired.start_keeper(primary),
            Fault::ServerFrozen => self.signal_server(primary, Signal::SIGCONT),
            Fault::KeeperFrozen => self.signal_keeper(primary, Signal::SIGCONT),
            Fault::HostFrozen => self.signal_host(primary, Signal::SIGCONT),
            Fault::PrimaryCutOff => self.wired.heal(primary),
            Fault::PrimaryWithoutPeers | Fault::WaitCancelled => self.join(primary),
            Fault::PrimaryMute => self.others(primary).for_each(|other| self.wired.unmute(primary, other)),
            Fault::PrimaryDeaf => self.others(primary).for_each(|other| self.wired.unmute(other, primary)),
            Fault::PrimaryWithoutClients => self.wired.unmute(primary, "clients"),
            Fault::ReplicaCutOff => self.wired.heal(&replica),
            Fault::ReplicaHostKilled => self.wired.start_keeper(&replica),
            Fault::ReplicaFrozen => self.signal_host(&replica, Signal::SIGCONT),
            Fault::ReceiverFrozen | Fault::ReplayFrozen => {
                self.signal_server(&replica, Signal::SIGCONT);
                self.wired.start_keeper(primary);
            }
        }
    }

    fn signal_server(&self, name: &str, with: Signal) {
        // A process that is born meanwhile is found by the second look.
        for _ in 0..2 {
            self.node(name).server_processes().into_iter().for_each(|pid| signal(pid, with));
        }
    }
    fn signal_keeper(&self, name: &str, with: Signal) {
        signal(self.wired.keeper(name).expect("its keeper runs"), with);
    }
    fn signal_host(&self, name: &str, with: Signal) {
        self.signal_keeper(name, with);
        self.signal_server(name, with);
    }
    fn kill_host(&mut self, name: &str) {
        self.wired.kill_keeper(name);
        self.signal_server(name, Signal::SIGKILL);
    }
    /// Everything dies, and comes back in the worst order: the replicas one after the other, the primary last.
    fn lose_power(&mut self, primary: &str) {
        let names = self.names.clone();
        names.iter().for_each(|name| self.kill_host(name));
        let mut last = names.clone();
        last.sort_by_key(|name| name == primary);
        for name in last {
            self.wired.start_keeper(&name);
            std::thread::sleep(BOOT_APART);
        }
    }
    /// Between a node and all others nothing passes; clients reach it.
    fn part(&self, name: &str) {
        for other in self.others(name) {
            self.wired.mute(name, other);
            self.wired.mute(other, name);
        }
    }
    fn join(&self, name: &str) {
        for other in self.others(name) {
            self.wired.unmute(name, other);
            self.wired.unmute(other, name);
        }
    }
    fn stop_then_kill(&mut self, replica: &str, what: &str, primary: &str) {
        let pid = self.node(replica).server_process(what).unwrap_or_else(|error| panic!("{error:#}"));
        signal(pid, Signal::SIGSTOP);
        self.kill_host(primary);
    }
    /// An impatient person at the old primary cancels whoever waits there for replicas.
    fn part_and_cancel(&self, primary: &str, faithful: &Faithful) {
        let sql = self.node(primary).sql().expect("the primary lets us in");
        self.part(primary);
        wait_for("a cancelled wait", PATIENCE, || {
            sql.value("SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")?;
            if faithful.cancelled().is_empty() { bail!("nobody waits yet") } else { Ok(()) }
        });
    }
    /// Kills all keepers at once and starts them again: what they knew in memory is gone, such as how many failovers
    /// there were lately. The servers go on.
    pub fn restart_keepers(&mut self) {
        let names = self.names.clone();
        names.iter().for_each(|name| self.wired.kill_keeper(name));
        names.iter().for_each(|name| self.wired.start_keeper(name));
    }

    /// Ends the clients and compares the nodes: every table row is on every node.
    pub fn finish(mut self) -> usize {
        let primary = self.whole();
        self.oracle.stop();
        assert!(self.oracle.lost().is_empty(), "lost in the end: {:?}", self.oracle.lost());
        let digest = "SELECT count(*) || ' ' || md5(string_agg(id::text, ',' ORDER BY id)) FROM oracle";
        let wanted = self.node(&primary).value(digest).expect("the primary answers");
        for name in self.others(&primary) {
            wait_for(&format!("{name} equal to {primary}"), PATIENCE, || {
                let found = self.node(name).value(digest)?;
                ensure!(found == wanted, "{found} instead of {wanted}");
                Ok(())
            });
        }
        assert_eq!(self.servers.len(), self.names.len());
        self.oracle.count()
    }
}
