//! The exchange fed in pieces and with nonsense.

use super::*;
use crate::out::Out;
use proptest::prelude::*;
use routing::{Catalog, Lexing, Memo};
use std::cell::RefCell;

/// A client's bytes and a server's answers to them, offered in pieces of these sizes; what reached either side.
struct Wire {
    exchange: Exchange,
    client: ClientStatements,
    server: ServerStatements,
    interner: Interner,
    to_server: Vec<u8>,
    to_client: Vec<u8>,
}

impl Wire {
    fn new() -> Wire {
        Wire {
            exchange: Exchange::new(Arc::default(), Default::default()),
            client: ClientStatements::default(),
            server: ServerStatements::default(),
            interner: Interner::default(),
            to_server: Vec::new(),
            to_client: Vec::new(),
        }
    }

    fn client_says(&mut self, bytes: &[u8], sizes: &[usize]) -> Result<(), Malformed> {
        let catalog = Catalog::cold();
        let memo = RefCell::new(Memo::new(routing::fingerprint::Key::new(1, 2)));
        let judge = Judge { catalog: &catalog, generation: 1, lexing: Lexing::default(), memo: &memo };
        let mut kept = Vec::new();
        for piece in pieces(bytes, sizes) {
            kept.extend_from_slice(piece);
            let (mut server, mut client) = (Out::default(), Out::default());
            let mut context = Context {
                client: &mut self.client,
                server: &mut self.server,
                interner: &mut self.interner,
                own: None,
                judge,
                judged: None,
            };
            let (used, _) = self.exchange.client_bytes(&kept, &mut context, &mut server, &mut client)?;
            server.copy_rest(&kept, 0, &mut self.to_server);
            client.copy_rest(&[], 0, &mut self.to_client);
            kept.drain(..used);
        }
        Ok(())
    }

    fn server_says(&mut self, bytes: &[u8], sizes: &[usize]) -> Result<(), Desync> {
        let mut kept = Vec::new();
        for piece in pieces(bytes, sizes) {
            kept.extend_from_slice(piece);
            let mut client = Out::default();
            let used = self.exchange.server_bytes(&kept, &mut client)?;
            client.copy_rest(&kept, 0, &mut self.to_client);
            kept.drain(..used);
            self.exchange.settle(&mut self.client, Some(&mut self.server));
        }
        Ok(())
    }
}

fn pieces<'b>(mut bytes: &'b [u8], sizes: &[usize]) -> Vec<&'b [u8]> {
    let mut found = Vec::new();
    let mut sizes = sizes.iter().copied().chain(std::iter::repeat(usize::MAX));
    while !bytes.is_empty() {
        let size = sizes.next().unwrap_or(usize::MAX).clamp(1, bytes.len());
        found.push(&bytes[..size]);
        bytes = &bytes[size..];
    }
    found
}

fn bind(out: &mut Vec<u8>, statement: &[u8]) {
    build::bind_head(out, b"", statement, 6);
    out.extend_from_slice(&[0; 6]);
}

fn execute(out: &mut Vec<u8>) {
    build::message(out, b'E', |out| out.extend_from_slice(&[0; 5]));
}

/// A named statement prepared and run, twice, and a simple query, all without waiting: whether the first Parse works is
/// not known when the second is said, so the server is told again.
fn conversation() -> (Vec<u8>, Vec<u8>) {
    let (mut client, mut server) = (Vec::new(), Vec::new());
    for name in [b"a", b"b"] {
        build::parse(&mut client, name, b"SELECT 1\0\0\0");
        bind(&mut client, name);
        execute(&mut client);
        build::sync(&mut client);
    }
    build::query(&mut client, "SELECT 2");
    build::parse_complete(&mut server);
    for round in 0..2 {
        if round == 1 {
            build::close_complete(&mut server);
            build::parse_complete(&mut server);
        }
        build::bind_complete(&mut server);
        build::data_row(&mut server, &[Some("x".repeat(300))]);
        build::command_complete(&mut server, "SELECT 1");
        build::ready(&mut server, b'I');
    }
    build::row_description(&mut server, &[("c", build::ColumnType::Text)]);
    build::data_row(&mut server, &[Some("2".into())]);
    build::command_complete(&mut server, "SELECT 1");
    build::ready(&mut server, b'I');
    (client, server)
}

fn tags(mut bytes: &[u8]) -> String {
    let mut tags = String::new();
    while let Ok(Some(head)) = wire::header(bytes) {
        tags.push(char::from(head.tag));
        bytes = &bytes[head.total()..];
    }
    tags
}

#[test]
fn a_statement_that_the_server_knows_is_not_told_again() {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for (name, bytes) in [(b"a", &mut first), (b"b", &mut second)] {
        build::parse(bytes, name, b"SELECT 1\0\0\0");
        bind(bytes, name);
        build::sync(bytes);
    }
    let mut wire = Wire::new();
    for (said, parsed) in [(first, true), (second, false)] {
        wire.client_says(&said, &[]).expect("well formed");
        let mut server = Vec::new();
        if parsed {
            build::parse_complete(&mut server);
        }
        build::bind_complete(&mut server);
        build::ready(&mut server, b'I');
        wire.server_says(&server, &[]).expect("in step");
    }
    assert_eq!((tags(&wire.to_server).as_str(), tags(&wire.to_client).as_str()), ("PBSBS", "12Z12Z"));
}

#[test]
fn what_is_said_without_waiting_is_answered_in_order() {
    let (client, server) = conversation();
    let mut wire = Wire::new();
    wire.client_says(&client, &[]).expect("well formed");
    assert_eq!(tags(&wire.to_server), "PBESCPBESQ");
    assert!(!wire.exchange.at_rest());
    wire.server_says(&server, &[]).expect("in step");
    assert_eq!(tags(&wire.to_client), "12DCZ12DCZTDCZ", "the client sees an answer to each");
    assert!(wire.exchange.at_rest());
}

#[test]
fn a_failed_parse_leaves_no_name_behind() {
    let mut client = Vec::new();
    build::parse(&mut client, b"a", b"SELEC\0\0\0");
    bind(&mut client, b"a");
    build::sync(&mut client);
    let mut wire = Wire::new();
    wire.client_says(&client, &[]).expect("well formed");
    let mut server = Vec::new();
    let complaint = build::Complaint { severity: "ERROR", sqlstate: "42601", message: "no", detail: "", hint: "" };
    build::error(&mut server, &complaint);
    build::ready(&mut server, b'I');
    wire.server_says(&server, &[]).expect("in step");
    assert_eq!(tags(&wire.to_client), "EZ");
    assert!(wire.client.is_empty() && wire.server.is_empty() && wire.exchange.at_rest());
}

#[test]
fn an_answer_that_nobody_asked_for_is_a_desync() {
    let mut server = Vec::new();
    build::command_complete(&mut server, "SELECT 1");
    assert!(Wire::new().server_says(&server, &[]).is_err());
    let mut server = Vec::new();
    build::ready(&mut server, b'I');
    assert!(Wire::new().server_says(&server, &[]).is_err());
}

#[test]
fn the_rest_of_a_message_whose_server_is_gone_reaches_no_other() {
    let mut client = Vec::new();
    build::query(&mut client, &format!("INSERT INTO t VALUES ('{}')", "x".repeat(INSPECT_BYTES_MAX)));
    let (front, rest) = client.split_at(1000);
    let mut wire = Wire::new();
    wire.client_says(front, &[]).expect("well formed");
    assert_eq!(wire.to_server, front);
    assert_eq!(wire.exchange.unanswered(), Request::Write);
    wire.exchange.server_lost(&mut wire.client);
    assert!(wire.exchange.is_local());
    let catalog = Catalog::cold();
    let memo = RefCell::new(Memo::new(routing::fingerprint::Key::new(1, 2)));
    let judge = Judge { catalog: &catalog, generation: 1, lexing: Lexing::default(), memo: &memo };
    let mut context = LocalContext { refusal: b"", statements: &mut wire.client, interner: &mut wire.interner, judge };
    let mut out = Out::default();
    let (used, answered) = wire.exchange.answer_locally(rest, &mut context, &mut out).expect("well formed");
    assert_eq!((used, answered, out.is_empty()), (rest.len(), Answered::Done, true));
    assert!(wire.exchange.at_rest());
}

#[test]
fn an_error_is_not_told_where_nobody_listens() {
    let mut client = Vec::new();
    build::close_statement(&mut client, b"unknown");
    build::sync(&mut client);
    let mut wire = Wire::new();
    wire.client_says(&client, &[]).expect("well formed");
    assert!(wire.exchange.only_closes());
    let mut answer = Vec::new();
    wire.exchange.answer_closes(&mut answer);
    assert_eq!(tags(&answer), "3Z");
    let mut client = Vec::new();
    build::query(&mut client, "COMMIT");
    wire.client_says(&client, &[]).expect("well formed");
    assert!(!wire.exchange.only_closes(), "whoever commits wants to know");
}

proptest! {
    #[test]
    fn how_bytes_are_cut_changes_nothing(
        client_sizes in proptest::collection::vec(1_usize..40, 0..60),
        server_sizes in proptest::collection::vec(1_usize..40, 0..60),
    ) {
        let (client, server) = conversation();
        let (mut whole, mut cut) = (Wire::new(), Wire::new());
        whole.client_says(&client, &[]).expect("well formed");
        cut.client_says(&client, &client_sizes).expect("well formed");
        // Numbers of statements differ from one exchange to the next, their order does not.
        prop_assert_eq!(tags(&whole.to_server), tags(&cut.to_server));
        whole.server_says(&server, &[]).expect("in step");
        cut.server_says(&server, &server_sizes).expect("in step");
        prop_assert_eq!(&whole.to_client, &cut.to_client);
        prop_assert!(cut.exchange.at_rest());
    }

    #[test]
    fn nonsense_from_either_side_is_refused_or_passed_but_never_a_panic(
        client in proptest::collection::vec(any::<u8>(), 0..200),
        server in proptest::collection::vec(any::<u8>(), 0..200),
        tag in proptest::sample::select(b"QPBDECSHFdcfX123CDZETtns".to_vec()),
        sizes in proptest::collection::vec(1_usize..20, 0..20),
    ) {
        let mut wire = Wire::new();
        let mut framed = Vec::new();
        build::message(&mut framed, tag, |out| out.extend_from_slice(&client));
        let _ = wire.client_says(&framed, &sizes);
        let _ = wire.client_says(&client, &sizes);
        let mut framed = Vec::new();
        build::message(&mut framed, tag, |out| out.extend_from_slice(&server));
        let _ = wire.server_says(&framed, &sizes);
        let _ = wire.server_says(&server, &sizes);
        wire.exchange.server_lost(&mut wire.client);
        prop_assert_eq!(wire.exchange.unanswered(), Request::None);
    }
}
