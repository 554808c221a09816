//! Where clients come in: addresses, and beside each a Unix socket in a directory, named after the port as PostgreSQL's
//! programs expect it.

use crate::config::{Config, Door};
use model::Trouble;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tokio::net::{TcpListener, UnixListener, UnixStream};

/// A client that has just come, not yet on any event loop.
pub enum Socket {
    /// By TCP.
    Tcp(std::net::TcpStream),
    /// By a Unix socket of this machine.
    Unix(std::os::unix::net::UnixStream),
}

/// Something that clients connect to.
pub enum Listener {
    /// An address.
    Tcp(TcpListener),
    /// A file; removed at the end.
    Unix(UnixListener, Lifted),
}

impl Listener {
    /// The next client.
    pub async fn accept(&self) -> io::Result<Socket> {
        match self {
            Listener::Tcp(listener) => Ok(Socket::Tcp(listener.accept().await?.0.into_std()?)),
            Listener::Unix(listener, _) => Ok(Socket::Unix(listener.accept().await?.0.into_std()?)),
        }
    }
}

/// Removes the file of a socket when dropped.
pub struct Lifted(PathBuf);

impl Drop for Lifted {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Opens all that the configuration names; also the addresses as they are, in the same order.
pub async fn open(config: &Config) -> Result<(Vec<(Listener, Door)>, Vec<SocketAddr>), Trouble> {
    let doors = [
        (Door::Main, &config.listen),
        (Door::Primary, &config.listen_primary),
        (Door::ReadOnly, &config.listen_read_only),
    ];
    let (mut listeners, mut addresses, mut ports) = (Vec::new(), Vec::new(), Vec::new());
    for (door, wanted) in doors.iter().flat_map(|(door, all)| all.iter().map(|address| (*door, address))) {
        let taken = |error: io::Error| {
            Trouble::port_taken(format!("the router cannot listen on {wanted}"), "free the port, or choose another")
                .because(error)
        };
        let listener = TcpListener::bind(wanted).await.map_err(taken)?;
        let address = listener.local_addr().map_err(taken)?;
        addresses.push(address);
        listeners.push((Listener::Tcp(listener), door));
        // One port on several addresses has one file.
        if let Some(directory) = &config.socket_dir
            && !ports.contains(&address.port())
        {
            ports.push(address.port());
            let path = directory.join(format!(".s.PGSQL.{}", address.port()));
            listeners.push((open_file(&path, config.socket_mode).await?, door));
        }
    }
    Ok((listeners, addresses))
}

async fn open_file(path: &Path, mode: u32) -> Result<Listener, Trouble> {
    let shown = path.display();
    // A file that nobody listens on was left by one that was killed.
    match UnixStream::connect(path).await {
        Ok(_) => {
            return Err(Trouble::port_taken(
                format!("somebody listens on {shown} already"),
                "end that program, or choose another `socket_dir`",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let _ = std::fs::remove_file(path);
        }
        Err(_) => {}
    }
    let refused = |error: io::Error| {
        let hint = "`socket_dir` must be there, and writable for the user that the router runs as";
        Trouble::directory_unfit(format!("the router cannot make its socket {shown}"), hint).because(error)
    };
    let listener = UnixListener::bind(path).map_err(refused)?;
    let lifted = Lifted(path.to_path_buf());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(refused)?;
    Ok(Listener::Unix(listener, lifted))
}
