//! Servers of this machine are spoken to by their Unix sockets, which cost the kernel a good deal less than TCP.
//!
//! `pg_hba.conf` has lines of its own for sockets, and they may let in whom the lines for TCP keep out, even without a
//! password (`peer` goes by the user of *this* process). So nobody gets in by a socket who was not let in by TCP a while
//! ago (`Standing::Proven`), and the socket must ask for as much as TCP did. Where it does not, or refuses, TCP is used.

use crate::topology::{NodeAddr, Topology};
use model::observe::{ServerSockets, SocketDirectory};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Beyond so many users, databases and servers everything is proved anew.
const KNOWN_MAX: usize = 10_000;

/// Who logs in where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Who {
    /// The server.
    pub node: NodeAddr,
    /// The database.
    pub database: String,
    /// The user.
    pub user: String,
}

/// What is known of somebody's logins to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// TCP let them in at that moment, asking for a proof of the password or not.
    Proven { asked: bool },
    /// The socket does not, or not as TCP does.
    NotBySocket,
}

/// How to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// By TCP.
    Tcp,
    /// By TCP, and then by this socket for what follows.
    Prove(PathBuf),
    /// By this socket, which must ask for a proof if `asked`.
    Socket {
        /// Its path.
        path: PathBuf,
        /// Whether TCP asked for one.
        asked: bool,
    },
}

/// What the router knows of sockets.
#[derive(Debug, Default)]
pub struct Nearby {
    known: Mutex<HashMap<Who, (Instant, Standing)>>,
    by_tcp: AtomicU64,
    by_socket: AtomicU64,
}

impl Nearby {
    /// How to log in. What was found holds for `lasts`.
    pub fn way(&self, machine: Option<&str>, topology: &Topology, who: &Who, lasts: Duration) -> Way {
        let told = topology.sockets.get(&who.node).filter(|sockets| Some(sockets.machine.as_str()) == machine);
        let Some(path) = told.and_then(|sockets| socket_of(sockets, who.node.port)) else { return Way::Tcp };
        let known = self.known.lock().expect("no panic under this lock").get(who).copied();
        match known.filter(|(at, _)| at.elapsed() < lasts) {
            Some((_, Standing::Proven { asked })) => Way::Socket { path, asked },
            Some((_, Standing::NotBySocket)) => Way::Tcp,
            None => Way::Prove(path),
        }
    }

    /// A connection was made.
    pub fn count(&self, by_socket: bool) {
        let of = if by_socket { &self.by_socket } else { &self.by_tcp };
        of.fetch_add(1, Relaxed);
    }

    /// Connections that were made as Prometheus text.
    pub fn text(&self) -> String {
        let name = "stemma_router_server_logins_total";
        let mut out = format!("# HELP {name} Connections made to servers, by the way\n# TYPE {name} counter\n");
        for (way, count) in [("tcp", &self.by_tcp), ("socket", &self.by_socket)] {
            let _ = writeln!(out, "{name}{{way=\"{way}\"}} {}", count.load(Relaxed));
        }
        out
    }

    /// TCP let them in, and asked for a proof or not.
    pub fn proven(&self, who: &Who, asked: bool) {
        self.note(who, Standing::Proven { asked });
    }

    /// The socket does not let them in as TCP does.
    pub fn not_by_socket(&self, who: &Who) {
        self.note(who, Standing::NotBySocket);
    }

    fn note(&self, who: &Who, standing: Standing) {
        let mut known = self.known.lock().expect("no panic under this lock");
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(who.clone(), (Instant::now(), standing));
    }
}

/// The first of the sockets that is really there.
fn socket_of(sockets: &ServerSockets, port: u16) -> Option<PathBuf> {
    let name = format!(".s.PGSQL.{port}");
    let mut here = sockets.directories.iter().filter(|directory| is_same(directory));
    here.find_map(|directory| Some(Path::new(&directory.path).join(&name)).filter(|path| path.exists()))
}

fn is_same(told: &SocketDirectory) -> bool {
    std::fs::metadata(&told.path).is_ok_and(|found| (found.dev(), found.ino()) == (told.device, told.inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn a_socket_is_used_by_those_whom_tcp_let_in_and_only_on_the_machine_it_is_on() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join(".s.PGSQL.5432");
        std::fs::write(&path, "").expect("written");
        let found = std::fs::metadata(home.path()).expect("there");
        let directory = |inode| SocketDirectory { path: home.path().display().to_string(), device: found.dev(), inode };
        let node = NodeAddr::tcp("db1", 5432);
        let with = |machine: &str, inode| {
            let sockets = ServerSockets { machine: machine.to_owned(), directories: vec![directory(inode)] };
            Topology { sockets: [(node.clone(), sockets)].into(), ..Topology::default() }
        };
        let (here, other) = (with("here", found.ino()), NodeAddr::tcp("db2", 5432));
        let who = Who { node: node.clone(), database: "d".into(), user: "alice".into() };
        let nearby = Nearby::default();
        assert_eq!(nearby.way(Some("here"), &here, &who, HOUR), Way::Prove(path.clone()));
        nearby.proven(&who, true);
        let by_socket = Way::Socket { path, asked: true };
        assert_eq!(nearby.way(Some("here"), &here, &who, HOUR), by_socket);
        assert_ne!(nearby.way(Some("here"), &here, &who, Duration::ZERO), by_socket, "it is proved anew now and then");
        for machine in [None, Some("there")] {
            assert_eq!(nearby.way(machine, &here, &who, HOUR), Way::Tcp, "{machine:?}");
        }
        let elsewhere = with("here", found.ino() + 1);
        assert_eq!(nearby.way(Some("here"), &elsewhere, &who, HOUR), Way::Tcp, "another directory of that name");
        let stranger = Who { user: "bob".into(), ..who.clone() };
        assert!(matches!(nearby.way(Some("here"), &here, &stranger, HOUR), Way::Prove(_)));
        let unknown = Who { node: other, ..who.clone() };
        assert_eq!(nearby.way(Some("here"), &here, &unknown, HOUR), Way::Tcp);
        nearby.not_by_socket(&who);
        assert_eq!(nearby.way(Some("here"), &here, &who, HOUR), Way::Tcp);
    }
}
