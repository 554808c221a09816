//! What is done to the sandbox while it is written to, by keys or by a scenario, and how it is made whole again.

use super::load::Ledger;
use crate::client::Client;
use crate::commands::target;
use crate::sandbox::layout::{Layout, SandboxNode};
use crate::sandbox::processes::{keeper_runs, signal_keeper, signal_server, start_keeper, wait_until};
use hyper::Method;
use model::Trouble;
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::Duration;

/// How long a killed keeper may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the request for a switchover may take to be answered.
const SWITCHOVER_TIMEOUT: Duration = Duration::from_secs(10);

/// One thing that can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Kill the server of this node, counted from 0, as a crash would.
    KillServer(usize),
    /// Kill keeper and server of the primary, as the loss of its host would; or start the host that is down.
    KillHost,
    /// Freeze keeper and server of the primary, as a hung host would; or thaw the one that is frozen.
    Freeze,
    /// Ask for a switchover to the best replica.
    Switchover,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// In a few words.
    pub what: String,
    /// Whether it may interrupt the writes: what repairs does not, and leaves the figures of what it repairs alone.
    pub interrupts: bool,
}

fn hit(what: String) -> Done {
    Done { what, interrupts: true }
}

fn repaired(what: String) -> Done {
    Done { what, interrupts: false }
}

/// The sandbox and what was done to it.
pub struct Deeds<'a> {
    layout: Layout,
    ledger: &'a Ledger,
    client: Client,
    down: Option<usize>,
    frozen: Option<usize>,
}

impl<'a> Deeds<'a> {
    /// Nothing was done yet.
    pub fn new(layout: &Layout, ledger: &'a Ledger, client: &Client) -> Deeds<'a> {
        Deeds { layout: layout.clone(), ledger, client: client.clone(), down: None, frozen: None }
    }

    /// A client that asks the nodes that can answer.
    pub fn client(&self) -> Result<Client, Trouble> {
        let mut answering = self.layout.clone();
        let out = [self.down, self.frozen].map(|index| index.map(|index| self.layout.nodes[index].name.clone()));
        answering.nodes.retain(|node| !out.contains(&Some(node.name.clone())));
        Ok(self.client.clone().at(target::from_sandbox(&answering)?))
    }

    /// Whether a host is down.
    pub fn host_down(&self) -> Option<&str> {
        self.down.map(|index| self.layout.nodes[index].name.as_str())
    }

    /// Whether a host is frozen.
    pub fn frozen(&self) -> Option<&str> {
        self.frozen.map(|index| self.layout.nodes[index].name.as_str())
    }

    /// Does it, and says what was done; `None` where it has no meaning now.
    pub async fn carry_out(&mut self, deed: Deed, primary: Option<&str>) -> Result<Option<Done>, Trouble> {
        let primary = self.layout.nodes.iter().position(|node| Some(node.name.as_str()) == primary);
        match deed {
            Deed::KillServer(index) => Ok(self.kill_server(index)?.map(hit)),
            Deed::KillHost => match (self.down.take(), primary) {
                (Some(index), _) => self.start_host(index).map(|what| Some(repaired(what))),
                (None, Some(index)) if self.frozen.is_none() => self.kill_host(index).await.map(|what| Some(hit(what))),
                (None, _) => Ok(None),
            },
            Deed::Freeze => match (self.frozen.take(), primary) {
                (Some(index), _) => self.thaw(index).map(|what| Some(repaired(what))),
                (None, Some(index)) if self.down.is_none() => self.freeze(index).map(|what| Some(hit(what))),
                (None, _) => Ok(None),
            },
            Deed::Switchover => self.switchover().await.map(|what| Some(hit(what))),
        }
    }

    fn kill_server(&self, index: usize) -> Result<Option<String>, Trouble> {
        let Some(node) = self.layout.nodes.get(index) else { return Ok(None) };
        self.ledger.event();
        let killed = signal_server(node, Signal::SIGKILL)?;
        Ok((!killed.is_empty()).then(|| format!("server of {} killed ({} processes)", node.name, killed.len())))
    }

    async fn kill_host(&mut self, index: usize) -> Result<String, Trouble> {
        let node = &self.layout.nodes[index];
        self.ledger.event();
        // The keeper first: it would bring the server back before the host is down.
        signal_keeper(node, Signal::SIGKILL)?;
        signal_server(node, Signal::SIGKILL)?;
        wait_until(KILL_TIMEOUT, || !keeper_runs(node)).await;
        self.down = Some(index);
        Ok(format!("host of {} killed: keeper and server", node.name))
    }

    fn start_host(&mut self, index: usize) -> Result<String, Trouble> {
        let node = &mut self.layout.nodes[index];
        start_keeper(node)?;
        let text = format!("host of {} started again", node.name);
        // Who ends the sandbox reads there which keepers to stop.
        self.layout.save()?;
        Ok(text)
    }

    fn freeze(&mut self, index: usize) -> Result<String, Trouble> {
        let node = &self.layout.nodes[index];
        self.ledger.event();
        signal_both(node, Signal::SIGSTOP)?;
        self.frozen = Some(index);
        Ok(format!("host of {} frozen", node.name))
    }

    fn thaw(&self, index: usize) -> Result<String, Trouble> {
        let node = &self.layout.nodes[index];
        signal_both(node, Signal::SIGCONT)?;
        Ok(format!("host of {} thawed", node.name))
    }

    async fn switchover(&self) -> Result<String, Trouble> {
        let client = self.client()?.with(None, Some(SWITCHOVER_TIMEOUT), false);
        self.ledger.event();
        let outcome = client.change(Method::POST, "/v1/switchover", Some(json!({ "to": null, "at": null }))).await?;
        Ok(outcome.text)
    }

    /// Starts what was killed and thaws what was frozen, so that every node can be asked.
    pub fn restore(&mut self) -> Result<(), Trouble> {
        if let Some(index) = self.frozen.take() {
            self.thaw(index)?;
        }
        if let Some(index) = self.down.take() {
            self.start_host(index)?;
        }
        Ok(())
    }
}

fn signal_both(node: &SandboxNode, what: Signal) -> Result<(), Trouble> {
    signal_keeper(node, what)?;
    signal_server(node, what)?;
    Ok(())
}
