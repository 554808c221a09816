//! A client that says exactly the bytes it is told to.

use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wire::build;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection that was let in without a password.
pub struct Raw {
    pub socket: TcpStream,
    unread: Vec<u8>,
    /// Number and secret for cancel requests.
    pub key: (u32, Vec<u8>),
}

/// A message: tag and body.
pub type Message = (u8, Vec<u8>);

impl Raw {
    pub async fn connect(port: u16, database: &str) -> Raw {
        let socket = TcpStream::connect(("127.0.0.1", port)).await.expect("connected");
        socket.set_nodelay(true).expect("an option");
        let mut raw = Raw { socket, unread: Vec::new(), key: (0, Vec::new()) };
        let mut hello = Vec::new();
        build::startup(&mut hello, &[("user", "postgres"), ("database", database), ("client_encoding", "UTF8")]);
        raw.send(&hello).await;
        loop {
            let (tag, body) = raw.message().await.expect("let in");
            match tag {
                b'K' => {
                    let (pid, secret) = wire::backend::backend_key(&body).expect("a key");
                    raw.key = (pid, secret.to_vec());
                }
                b'Z' => return raw,
                b'E' => panic!("{:?}", wire::backend::error_fields(&body)),
                _ => {}
            }
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.expect("sent");
    }

    /// The next message; `None` at the end.
    pub async fn message(&mut self) -> Option<Message> {
        loop {
            if let Ok(Some(head)) = wire::header(&self.unread)
                && self.unread.len() >= head.total()
            {
                let rest = self.unread.split_off(head.total());
                let mut whole = std::mem::replace(&mut self.unread, rest);
                return Some((head.tag, whole.split_off(wire::frame::HEADER_BYTES)));
            }
            let mut space = [0; 8192];
            match tokio::time::timeout(PATIENCE, self.socket.read(&mut space)).await {
                Ok(Ok(0) | Err(_)) => return None,
                Err(_) => return Some((b'!', b"no answer in time".to_vec())),
                Ok(Ok(read)) => self.unread.extend_from_slice(&space[..read]),
            }
        }
    }

    /// Says something that ends in one Sync; the kinds of its answers.
    pub async fn segment(&mut self, bytes: &[u8]) -> String {
        self.send(bytes).await;
        let mut tags = String::new();
        while !tags.ends_with(['Z', '!']) {
            tags.push(self.message().await.map_or('!', |(tag, _)| char::from(tag)));
        }
        tags
    }

    /// Says something, and reads to the end of the answer to an empty query that is sent behind it: that is answered in
    /// any state of the transaction.
    pub async fn ask(&mut self, bytes: &[u8]) -> Vec<Message> {
        let mut said = bytes.to_vec();
        build::query(&mut said, "");
        self.send(&said).await;
        let (mut answers, mut ending) = (Vec::new(), false);
        while let Some(message) = self.message().await {
            let tag = message.0;
            answers.push(message);
            if (ending && tag == b'Z') || tag == b'!' {
                return answers;
            }
            ending = tag == b'I';
        }
        answers.push((0, Vec::new()));
        answers
    }
}
