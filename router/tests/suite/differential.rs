//! Random conversations, said to a server directly and through the router: the answers are the same bytes. Two clients
//! take turns on the router's servers, so that what one leaves behind would show in the answers of the other.

use crate::harness::{Front, Server, config};
use crate::raw::{Message, Raw};
use router::config::{ClientAuth, PoolMode};
use wire::{backend, build};

/// Conversations of each pool mode; `STEMMA_CONVERSATIONS` for more, `STEMMA_SEED` for others.
const CONVERSATIONS: u64 = 150;

/// Simple queries that the conversations are made of.
const QUERIES: &[&str] = &[
    "SELECT 7",
    "SELECT 1/0",
    "SELEC nonsense",
    "SELECT 1; SELECT 2",
    "INSERT INTO t VALUES (1); SELECT 1/0",
    "BEGIN",
    "BEGIN",
    "BEGIN READ ONLY",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT a",
    "SAVEPOINT b",
    "ROLLBACK TO a",
    "ROLLBACK TO b",
    "RELEASE a",
    "INSERT INTO t VALUES (2)",
    "SELECT count(*) FROM t",
    "SET work_mem = '5MB'",
    "SET work_mem = '6MB'; SELECT 1/0",
    "SET LOCAL work_mem = '7MB'",
    "SHOW work_mem",
    "RESET work_mem",
    "SET search_path TO odd, public",
    "SHOW search_path",
    "SELECT where_am_i",
    "SET application_name TO 'someone'",
    "SHOW application_name",
    "SET TimeZone TO 'Asia/Tokyo'",
    "SET own.value = 'x'",
    // Unknown and empty are one: a server remembers for good that someone has set it.
    "SELECT coalesce(current_setting('own.value', true), '')",
    "SET nonsense = 1",
    "RESET ALL",
    "DISCARD ALL",
    "SET ROLE clerk",
    "SELECT current_user",
    "RESET ROLE",
    "SET SESSION AUTHORIZATION clerk",
    "RESET SESSION AUTHORIZATION",
    "SET default_transaction_read_only TO on",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "SHOW transaction_isolation",
    "PREPARE q AS SELECT 70",
    "EXECUTE q",
    "DEALLOCATE q",
    "DEALLOCATE s1",
    "DEALLOCATE ALL",
    "DECLARE c CURSOR FOR SELECT generate_series(1, 3)",
    "DECLARE h CURSOR WITH HOLD FOR SELECT generate_series(1, 3)",
    "FETCH 2 FROM c",
    "FETCH 2 FROM h",
    "CLOSE ALL",
    "CREATE TEMP TABLE mine (a int)",
    "SELECT count(*) FROM mine",
    "DISCARD TEMP",
    "COPY (SELECT generate_series(1, 3)) TO STDOUT",
];

/// Texts for Parse.
const TEXTS: &[&str] = &[
    "SELECT 7",
    "SELECT $1::text",
    "SELECT generate_series(1, 5)",
    "SELECT 1/0",
    "SELEC nonsense",
    "INSERT INTO t VALUES (3)",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SET work_mem = '8MB'",
    "SHOW work_mem",
    "DEALLOCATE s2",
    "",
];

/// What the session is in the end.
const STATE: &str = "SELECT name, setting FROM pg_settings WHERE name IN ('work_mem', 'search_path', 'application_name', \
    'TimeZone', 'default_transaction_isolation', 'default_transaction_read_only', 'role', 'session_authorization') \
    ORDER BY name";

/// Numbers that a seed repeats.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 11).expect("53 bits") % sides
    }

    fn pick<'t>(&mut self, of: &[&'t str]) -> &'t str {
        of[self.roll(of.len())]
    }
}

/// One part of a conversation: bytes said at once, and their meaning for people.
struct Part {
    bytes: Vec<u8>,
    meaning: String,
}

fn part(dice: &mut Dice) -> Part {
    let mut part = Part { bytes: Vec::new(), meaning: String::new() };
    match dice.roll(10) {
        0..=4 => {
            let sql = dice.pick(QUERIES);
            build::query(&mut part.bytes, sql);
            part.meaning = format!("Q {sql}");
        }
        5 => copy_in(dice, &mut part),
        _ => segments(dice, &mut part),
    }
    part
}

fn copy_in(dice: &mut Dice, part: &mut Part) {
    build::query(&mut part.bytes, "COPY t FROM STDIN");
    for row in [&b"11\n"[..], b"12\n", b"no number\n"].into_iter().take(1 + dice.roll(3)) {
        build::message(&mut part.bytes, b'd', |out| out.extend_from_slice(row));
    }
    match dice.roll(2) {
        0 => build::message(&mut part.bytes, b'c', |_| {}),
        _ => build::copy_fail(&mut part.bytes, "enough"),
    }
    part.meaning = format!("copy of {} bytes", part.bytes.len());
}

/// One or two segments of the extended protocol.
fn segments(dice: &mut Dice, part: &mut Part) {
    for _ in 0..=dice.roll(2) {
        for _ in 0..=dice.roll(5) {
            let name = dice.pick(&["", "", "s1", "s2"]);
            let portal = dice.pick(&["", "", "p"]);
            let (out, meaning) = (&mut part.bytes, &mut part.meaning);
            match dice.roll(9) {
                0 | 1 => {
                    let text = dice.pick(TEXTS);
                    // Under a name of its own that is a limit of the router.
                    let sql = if text.starts_with("DEALLOCATE") && !name.is_empty() { "SELECT 7" } else { text };
                    build::parse(out, name.as_bytes(), &[sql.as_bytes(), b"\0\0\0"].concat());
                    *meaning += &format!("[Parse {name:?} {sql}]");
                }
                2..=4 => {
                    let parameters: &[u8] = match dice.roll(2) {
                        0 => b"\0\0\0\0\0\0",
                        _ => b"\0\0\0\x01\0\0\0\x02hi\0\0",
                    };
                    build::bind_head(out, portal.as_bytes(), name.as_bytes(), parameters.len());
                    out.extend_from_slice(parameters);
                    *meaning += &format!("[Bind {portal:?} {name:?} {}]", parameters.len());
                }
                5 | 6 => {
                    let rows = [0_u8, 0, 0, if dice.roll(3) == 0 { 2 } else { 0 }];
                    build::message(out, b'E', |out| out.extend_from_slice(&[portal.as_bytes(), b"\0", &rows].concat()));
                    *meaning += &format!("[Execute {portal:?} {}]", rows[3]);
                }
                7 => {
                    let kind = if dice.roll(2) == 0 { (b'S', name) } else { (b'P', portal) };
                    let tag = if dice.roll(2) == 0 { b'D' } else { b'C' };
                    build::message(out, tag, |out| {
                        out.push(kind.0);
                        out.extend_from_slice(kind.1.as_bytes());
                        out.push(0);
                    });
                    *meaning += &format!("[{} {} {:?}]", char::from(tag), char::from(kind.0), kind.1);
                }
                _ => {
                    build::message(out, b'H', |_| {});
                    *meaning += "[Flush]";
                }
            }
        }
        build::sync(&mut part.bytes);
        part.meaning += "[Sync]";
    }
}

/// What both must have in common. Of errors that is the SQLSTATE: their texts name statements as the server does.
fn comparable(messages: &[Message]) -> Vec<String> {
    let one = |(tag, body): &Message| match tag {
        b'E' | b'N' => format!("{} {}", char::from(*tag), backend::error_fields(body).sqlstate),
        _ => format!("{} {:?}", char::from(*tag), String::from_utf8_lossy(body)),
    };
    messages.iter().map(one).collect()
}

async fn compare(mode: PoolMode) {
    let mut server = Server::new();
    server.believe();
    let trust = router::Config { auth: ClientAuth::Trust(Default::default()), mode, ..config(2) };
    let front = Front::start(server.topology(1), trust).await;
    for database in ["direct", "routed"] {
        server.sql(&format!("CREATE DATABASE {database}"));
        let setup = "CREATE TABLE t (a int); CREATE SCHEMA odd; CREATE VIEW odd.where_am_i AS SELECT 1";
        let direct = Raw::connect(server.port, database).await.ask(&query(setup)).await;
        assert!(direct.iter().all(|(tag, _)| *tag != b'E'), "{:?}", comparable(&direct));
    }
    server.sql("CREATE ROLE clerk");
    let number =
        |name: &str, default: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let seed = number("STEMMA_SEED", 0x5eed_0001);
    for round in 0..number("STEMMA_CONVERSATIONS", CONVERSATIONS) {
        let mut dice = Dice(seed.wrapping_add(round).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        conversation(&mut dice, server.port, front.port, &format!("seed {seed} round {round}, {mode:?}")).await;
    }
}

fn query(sql: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    build::query(&mut bytes, sql);
    bytes
}

/// Two clients, each with a twin that speaks to the server itself, take turns.
async fn conversation(dice: &mut Dice, server: u16, front: u16, which: &str) {
    let mut pairs = Vec::new();
    // All in one database, or the router's clients would not meet on its servers.
    for _ in 0..2 {
        pairs.push((Raw::connect(server, "direct").await, Raw::connect(front, "routed").await, Vec::new()));
    }
    for turn in 0..10 + dice.roll(15) {
        let part = part(dice);
        let (direct, routed, said) = &mut pairs[dice.roll(2)];
        said.push(part.meaning);
        let expected = comparable(&direct.ask(&part.bytes).await);
        let found = comparable(&routed.ask(&part.bytes).await);
        assert_eq!(found, expected, "{which}, turn {turn}: the router's answer (left) differs after {said:#?}");
    }
    for (direct, routed, said) in &mut pairs {
        let end = [query("ROLLBACK"), query(STATE)].concat();
        let expected = comparable(&direct.ask(&end).await);
        assert_eq!(comparable(&routed.ask(&end).await), expected, "{which}: the state differs after {said:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_conversations_are_answered_as_by_the_server_in_transaction_mode() {
    compare(PoolMode::Transaction).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_conversations_are_answered_as_by_the_server_in_session_mode() {
    compare(PoolMode::Session).await;
}
