//! Which servers there are and what each is good for, as told by whoever watches the cluster. The router asks no
//! server for its role: a server that was cut off believes what it believed before.

use model::observe::ServerSockets;
use model::state::LineageEntry;
use model::{Epoch, LagBytes, Lsn, Millis, NodeId, Site, Timeline};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeAddr {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl NodeAddr {
    /// Reached by TCP.
    pub fn tcp(host: impl Into<String>, port: u16) -> NodeAddr {
        NodeAddr { host: host.into(), port }
    }

    /// From `host:port`, with brackets around an IPv6 address.
    pub fn parse(text: &str) -> Option<NodeAddr> {
        let (host, port) = text.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        (!host.is_empty()).then_some(())?;
        Some(NodeAddr::tcp(host, port.parse().ok().filter(|port| *port != 0)?))
    }
}

impl From<SocketAddr> for NodeAddr {
    fn from(address: SocketAddr) -> NodeAddr {
        NodeAddr::tcp(address.ip().to_string(), address.port())
    }
}

impl std::fmt::Display for NodeAddr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// What a replica may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaUse {
    /// Serves reads.
    Hot,
    /// Kept for failover: never read.
    Standby,
    /// Behind on purpose: never read.
    Delayed,
}

/// A replica as its keeper and the judge see it.
#[derive(Clone, Debug, PartialEq)]
pub struct Replica {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// How it is reached.
    pub addr: NodeAddr,
    /// What it may be used for.
    pub usage: ReplicaUse,
    /// Where it is.
    pub site: Option<Site>,
    /// Whether all about it is as it should be.
    pub healthy: bool,
    /// Whether a failover asks it what it holds, or the cluster promises nothing of the kind.
    pub counted: bool,
    /// What it has applied.
    pub replayed: Option<Lsn>,
    /// On which timeline.
    pub timeline: Option<Timeline>,
    /// How old that knowledge is.
    pub position_age: Option<Millis>,
    /// Changes when its server restarts.
    pub incarnation: u64,
    /// How far it is behind, in bytes; absent where unknown.
    pub lag_bytes: Option<LagBytes>,
    /// How old its data is; absent where unknown.
    pub lag: Option<Millis>,
}

/// The cluster's servers at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Topology {
    /// The cluster's name; it stands in the tokens.
    pub cluster: String,
    /// Number of the primacy; servers of an older one take no writes from us.
    pub epoch: Epoch,
    /// The primary, where one accepts writes.
    pub primary: Option<Primary>,
    /// All replicas.
    pub replicas: Vec<Replica>,
    /// Where primacies began, oldest first: to look up commits whose answer was lost.
    pub lineage: Vec<LineageEntry>,
    /// Where the servers' Unix sockets are: cheaper than TCP, where a server is on this machine.
    pub sockets: BTreeMap<NodeAddr, ServerSockets>,
    /// The primary is about to be stopped for another one: it ends what has begun, and nothing new is sent to it.
    pub switching: Option<Switching>,
}

/// A planned change of primary that has begun while the old primary still serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switching {
    /// The epoch that is to come.
    pub epoch: Epoch,
    /// Who may take over, best first; connections to them are made in advance.
    pub to: Vec<NodeAddr>,
}

/// The primary.
#[derive(Clone, Debug, PartialEq)]
pub struct Primary {
    /// Its name.
    pub name: String,
    /// How it is reached.
    pub addr: NodeAddr,
    /// Where it is.
    pub site: Option<Site>,
}

impl Topology {
    /// One server that is never replaced: for a router without a cluster behind it.
    pub fn single(addr: NodeAddr) -> Topology {
        let primary = Primary { name: addr.to_string(), addr, site: None };
        Topology { epoch: Epoch(0), primary: Some(primary), ..Topology::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        assert_eq!(NodeAddr::parse("db1:5432"), Some(NodeAddr::tcp("db1", 5432)));
        assert_eq!(NodeAddr::parse("[::1]:5432"), Some(NodeAddr::tcp("::1", 5432)));
        for bad in ["db1", ":5432", "db1:0", "db1:x"] {
            assert_eq!(NodeAddr::parse(bad), None, "{bad}");
        }
    }
}
