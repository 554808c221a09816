//! Sockets of the mesh and their options.

use model::Trouble;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);
/// Unacknowledged data older than this ends a connection: the other machine is gone or cut off. The system's own
/// bound is a quarter of an hour.
const USER_TIMEOUT: Duration = Duration::from_secs(5);
const BACKLOG: i32 = 1024;

/// Listens on `address`.
pub(super) fn listen(address: SocketAddr) -> Result<TcpListener, Trouble> {
    let open = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // A restarted keeper must not wait for connections of its predecessor to be forgotten.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(address.ip() != std::net::Ipv6Addr::UNSPECIFIED)?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    open().map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => format!("see who listens there with `ss -ltnp 'sport = :{}'`", address.port()),
            _ => "check that the address is one of this machine and that the port may be used".to_owned(),
        };
        Trouble::port_taken(format!("cannot listen on {address} for other keepers"), hint).because(error)
    })
}

/// Options of every connection of the mesh.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    let keepalive =
        TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2)).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)
}

/// Connects to `host:port`, trying every address of the name.
pub(super) async fn connect(address: &str) -> Result<TcpStream, Trouble> {
    let unreachable = |what: String| {
        Trouble::unreachable(
            format!("{what} at {address}"),
            "check that its keeper runs, the address is right and no firewall is in between",
        )
    };
    let resolved = tokio::time::timeout(CONNECT_TIME_MAX, tokio::net::lookup_host(address)).await;
    let addresses: Vec<SocketAddr> = match resolved {
        Ok(Ok(addresses)) => addresses.take(8).collect(),
        Ok(Err(error)) => return Err(unreachable("no address is known for the keeper".into()).because(error)),
        Err(_) => return Err(unreachable("the name server does not answer for the keeper".into())),
    };
    let mut last = unreachable("no address is known for the keeper".into());
    for target in addresses {
        match tokio::time::timeout(CONNECT_TIME_MAX, TcpStream::connect(target)).await {
            Ok(Ok(stream)) => match tune(&stream) {
                Ok(()) => return Ok(stream),
                Err(error) => last = unreachable("cannot prepare the connection to the keeper".into()).because(error),
            },
            Ok(Err(error)) => last = unreachable("cannot connect to the keeper".into()).because(error),
            Err(_) => last = unreachable("nothing answers for the keeper".into()),
        }
    }
    Err(last)
}
