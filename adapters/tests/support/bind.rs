//! A BIND of the test's own.

#[path = "../../../e2e/src/ports.rs"]
mod ports;

use std::collections::BTreeSet;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What updates are signed with, in base 64.
pub const SECRET: &str = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA==";

/// A server with one zone, stopped and removed with the test.
pub struct Bind {
    child: Child,
    /// Where it answers.
    pub port: u16,
    _home: tempfile::TempDir,
}

impl Drop for Bind {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Bind {
    /// `None` where it is not installed.
    pub fn start() -> Option<Bind> {
        let named = ["/usr/sbin/named", "/usr/bin/named"].map(PathBuf::from).into_iter().find(|path| path.exists())?;
        let home = tempfile::Builder::new().prefix("stemma-bind-").tempdir_in("/tmp").expect("a directory");
        let dir = home.path();
        let port = ports::free_port();
        let zone = "$TTL 60\n@ IN SOA ns admin 1 60 60 600 60\n@ IN NS ns\nns IN A 127.0.0.1\ndb IN A 192.0.2.9\n";
        std::fs::write(dir.join("zone"), zone).expect("written");
        let config = format!(
            "options {{ directory \"{dir}\"; listen-on port {port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; \
             pid-file \"{dir}/pid\"; session-keyfile \"{dir}/session\"; recursion no; dnssec-validation no; }};\n\
             controls {{ }};\nkey \"stemma\" {{ algorithm hmac-sha256; secret \"{SECRET}\"; }};\n\
             zone \"example.test\" {{ type primary; file \"{dir}/zone\"; allow-update {{ key stemma; }}; }};\n",
            dir = dir.display()
        );
        std::fs::write(dir.join("named.conf"), config).expect("written");
        let mut command = Command::new(named);
        command.args(["-g", "-c"]).arg(dir.join("named.conf")).stdout(Stdio::null()).stderr(Stdio::null());
        if nix::unistd::geteuid().is_root() {
            use std::os::unix::process::CommandExt;
            let user = nix::unistd::User::from_name("nobody").ok().flatten().expect("user nobody");
            for path in [dir.to_path_buf(), dir.join("zone"), dir.join("named.conf")] {
                nix::unistd::chown(&path, Some(user.uid), Some(user.gid)).expect("we are root");
            }
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let bind = Bind { child: command.spawn().expect("named runs"), port, _home: home };
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "named does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(bind)
    }

    /// The addresses of a name, as any resolver would be told, asked without our code.
    pub fn lookup(&self, name: &str, kind: &str) -> BTreeSet<String> {
        let script = "import socket,struct,sys\n\
            port,name,kind=int(sys.argv[1]),sys.argv[2],{'A':1,'TXT':16}[sys.argv[3]]\n\
            q=b'\\x12\\x34\\0\\0\\0\\1\\0\\0\\0\\0\\0\\0'+b''.join(bytes([len(l)])+l.encode() for l in name.split('.'))+b'\\0'+struct.pack('>HH',kind,1)\n\
            s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);s.settimeout(10);s.sendto(q,('127.0.0.1',port));d=s.recv(4096)\n\
            n=struct.unpack('>H',d[6:8])[0];p=len(q)\n\
            for _ in range(n):\n\
            \x20 p+=2;t,c,ttl,l=struct.unpack('>HHIH',d[p:p+10]);p+=10;r=d[p:p+l];p+=l\n\
            \x20 print(socket.inet_ntoa(r) if t==1 else r[1:].decode())\n";
        let port = self.port.to_string();
        let output = Command::new("python3").args(["-c", script, &port, name, kind]).output().expect("python3 runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }
}
