//! `stemma export`: configuration for other programs, made from the cluster as it is.

use super::Context;
use crate::render::out;
use clap::Subcommand;
use model::topology::TopologyNode;
use model::{ReplicaKind, Role, Topology, Trouble};
use std::fmt::Write;

/// `stemma export ...`
#[derive(Debug, Subcommand)]
pub enum ExportCommand {
    /// HAProxy: one port that leads to the primary, one that leads to replicas
    #[command(
        after_help = "Examples:\n  stemma export haproxy > /etc/haproxy/haproxy.cfg\n  stemma export haproxy --port 6000 --read-port 6001"
    )]
    Haproxy {
        /// Where writes are taken
        #[arg(long, default_value_t = 5000)]
        port: u16,
        /// Where reads are taken
        #[arg(long, default_value_t = 5001)]
        read_port: u16,
    },
}

/// Runs the command.
pub async fn run(context: &Context, command: ExportCommand) -> Result<u8, Trouble> {
    match command {
        ExportCommand::Haproxy { port, read_port } => {
            let topology: Topology = context.client()?.get("/v1/topology").await?;
            out::line(haproxy(&topology.cluster, topology.nodes.iter(), port, read_port).trim_end());
            Ok(0)
        }
    }
}

/// A whole configuration: a port for writes that leads to the primary, one for reads that leads to replicas.
fn haproxy<'n>(cluster: &str, nodes: impl Iterator<Item = &'n TopologyNode>, port: u16, read_port: u16) -> String {
    let data: Vec<&TopologyNode> = nodes.filter(|node| node.role != Role::Witness).collect();
    let readable = data.iter().copied().filter(|node| match node.kind {
        ReplicaKind::Hot => true,
        ReplicaKind::Standby | ReplicaKind::Delayed => false,
    });
    let mut text = format!(
        "# Made by `stemma export haproxy` for the cluster {cluster}. Make it anew when nodes come or go; roles are asked\n\
         # for by the checks.\n\
         global\n    maxconn 2000\n\n\
         defaults\n    mode tcp\n    timeout connect 2s\n    timeout client 1h\n    timeout server 1h\n    timeout check 2s\n    \
         # A connection that was refused is tried on another server, once the checks know one.\n    \
         retries 3\n    option redispatch\n"
    );
    section(&mut text, "write", port, "/primary", data.iter().copied());
    section(&mut text, "read", read_port, "/replica", readable);
    text
}

fn section<'n>(text: &mut String, name: &str, port: u16, check: &str, nodes: impl Iterator<Item = &'n TopologyNode>) {
    let _ = write!(
        text,
        "\nlisten {name}\n    bind *:{port}\n    option httpchk OPTIONS {check}\n    http-check expect status 200\n    \
         # Sessions of a server that stopped being what this port is for are cut: they would wait for nothing.\n    \
         default-server inter 1s fall 2 rise 1 fastinter 200ms downinter 500ms on-marked-down shutdown-sessions\n"
    );
    for node in nodes {
        // The check goes to the keeper, which knows; the host is said because the API may listen elsewhere.
        let (api_host, api_port) = node.api.rsplit_once(':').unwrap_or((node.host.as_str(), "8008"));
        let api_host = api_host.trim_matches(['[', ']']);
        let _ = writeln!(
            text,
            "    server {} {}:{} check addr {api_host} port {api_port}",
            node.name, node.host, node.port
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, role: Role, kind: ReplicaKind) -> TopologyNode {
        TopologyNode {
            name: name.parse().expect("a name"),
            role,
            kind,
            site: "eu".parse().expect("a site"),
            host: format!("{name}.example.org"),
            port: 5432,
            api: format!("{name}.example.org:8008"),
            healthy: true,
            counted: true,
            streaming: true,
            server: "running".to_owned(),
            lag_bytes: None,
            lag_ms: None,
            replayed: None,
            id: model::NodeId(1),
            timeline: None,
            sample_age_ms: None,
            started_at: None,
            sockets: None,
        }
    }

    #[test]
    fn every_data_node_may_be_written_to_and_hot_replicas_read() {
        let nodes = [
            node("n1", Role::Primary, ReplicaKind::Hot),
            node("n2", Role::Replica, ReplicaKind::Delayed),
            node("w1", Role::Witness, ReplicaKind::Hot),
        ];
        let text = haproxy("orders", nodes.iter(), 5000, 5001);
        let servers = |text: &str| text.lines().filter(|line| line.trim_start().starts_with("server ")).count();
        let (write, read) = text.split_once("listen read").expect("two sections");
        assert_eq!((servers(write), servers(read)), (2, 1), "{text}");
        assert!(write.contains("server n1 n1.example.org:5432 check addr n1.example.org port 8008"), "{text}");
        assert!(write.contains("option httpchk OPTIONS /primary") && read.contains("OPTIONS /replica"), "{text}");
    }
}
