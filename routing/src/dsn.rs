//! How each driver writes down where the router is: the text behind `stemma dsn --for DRIVER`.
//!
//! No password is ever put in: it belongs into the driver's own place for it (`PGPASSWORD`, a password file, a vault).

use std::fmt::Write;

/// A driver whose way of writing is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Driver {
    /// psql, psycopg and everything on libpq.
    Libpq,
    /// asyncpg (Python).
    Asyncpg,
    /// pgx (Go).
    Pgx,
    /// PgJDBC (Java).
    Jdbc,
    /// Npgsql (.NET).
    Npgsql,
    /// node-postgres (JavaScript).
    NodePostgres,
    /// tokio-postgres (Rust).
    TokioPostgres,
    /// sqlx (Rust).
    Sqlx,
}

impl Driver {
    /// Every driver with the words it is called by on the command line, the first being its own.
    pub const ALL: &'static [(Driver, &'static [&'static str])] = &[
        (Driver::Libpq, &["libpq", "psql", "psycopg"]),
        (Driver::Asyncpg, &["asyncpg"]),
        (Driver::Pgx, &["pgx"]),
        (Driver::Jdbc, &["jdbc"]),
        (Driver::Npgsql, &["npgsql"]),
        (Driver::NodePostgres, &["node-postgres", "pg"]),
        (Driver::TokioPostgres, &["tokio-postgres"]),
        (Driver::Sqlx, &["sqlx"]),
    ];

    /// By one of its words.
    pub fn parse(text: &str) -> Option<Driver> {
        Driver::ALL.iter().find(|(_, words)| words.contains(&text)).map(|(driver, _)| *driver)
    }

    /// Whether it can be given several routers.
    pub fn takes_several_hosts(self) -> bool {
        match self {
            Driver::Libpq | Driver::Asyncpg | Driver::Pgx | Driver::Jdbc | Driver::Npgsql | Driver::TokioPostgres => {
                true
            }
            Driver::NodePostgres | Driver::Sqlx => false,
        }
    }
}

/// Where the router is and how to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Hosts and ports, at least one: a name or an address without brackets.
    pub hosts: Vec<(String, u16)>,
    /// Of the database.
    pub database: String,
    /// To log in as.
    pub user: String,
    /// The file of the CA that signed the router's certificate; without it there is no TLS.
    pub ca_file: Option<String>,
}

/// The text for a driver, and what a person should know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dsn {
    /// To be given to the driver.
    pub text: String,
    /// If something of what was asked cannot be said in it.
    pub note: Option<&'static str>,
}

/// How to write `place` for `driver`.
pub fn dsn(driver: Driver, place: &Place) -> Dsn {
    let several = place.hosts.len() > 1 && !driver.takes_several_hosts();
    let mut note = several.then_some("this driver takes one host: the others are left out");
    let hosts = if several { &place.hosts[..1] } else { &place.hosts[..] };
    let text = match driver {
        Driver::Libpq | Driver::Asyncpg | Driver::Pgx | Driver::NodePostgres | Driver::Sqlx => uri(place, hosts),
        Driver::Jdbc => jdbc(place, hosts),
        Driver::Npgsql => npgsql(place, hosts),
        Driver::TokioPostgres => {
            if place.ca_file.is_some() {
                note = Some("the CA is given to the TLS connector of the program, not in this text");
            }
            key_values(place, hosts)
        }
    };
    Dsn { text, note }
}

/// `host:port` joined by commas, addresses of version 6 in brackets.
fn authority(hosts: &[(String, u16)]) -> String {
    let one = |(host, port): &(String, u16)| {
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{}:{port}", escaped(host)) }
    };
    hosts.iter().map(one).collect::<Vec<_>>().join(",")
}

fn uri(place: &Place, hosts: &[(String, u16)]) -> String {
    let mut out = format!("postgresql://{}@{}/{}", escaped(&place.user), authority(hosts), escaped(&place.database));
    if let Some(file) = &place.ca_file {
        let _ = write!(out, "?sslmode=verify-full&sslrootcert={}", escaped(file));
    }
    out
}

fn jdbc(place: &Place, hosts: &[(String, u16)]) -> String {
    let mut out =
        format!("jdbc:postgresql://{}/{}?user={}", authority(hosts), escaped(&place.database), escaped(&place.user));
    if let Some(file) = &place.ca_file {
        let _ = write!(out, "&sslmode=verify-full&sslrootcert={}", escaped(file));
    }
    out
}

fn npgsql(place: &Place, hosts: &[(String, u16)]) -> String {
    // Values with `;`, quotes or blanks at an end stand in double quotes, in which `""` is a quote.
    let value = |text: &str| {
        let plain = !text.contains([';', '"', '\'', '=']) && text.trim() == text && !text.is_empty();
        if plain { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
    };
    let mut out =
        format!("Host={};Database={};Username={}", authority(hosts), value(&place.database), value(&place.user));
    if let Some(file) = &place.ca_file {
        let _ = write!(out, ";SSL Mode=VerifyFull;Root Certificate={}", value(file));
    }
    out
}

fn key_values(place: &Place, hosts: &[(String, u16)]) -> String {
    let value = |text: &str| {
        let plain = !text.is_empty() && !text.contains([' ', '\'', '\\']);
        if plain { text.to_owned() } else { format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")) }
    };
    let names: Vec<&str> = hosts.iter().map(|(host, _)| host.as_str()).collect();
    let ports: Vec<String> = hosts.iter().map(|(_, port)| port.to_string()).collect();
    let (names, ports) = (names.join(","), ports.join(","));
    let tls = if place.ca_file.is_some() { "require" } else { "disable" };
    let (user, database) = (value(&place.user), value(&place.database));
    format!("host={} port={ports} user={user} dbname={database} sslmode={tls}", value(&names))
}

/// Percent-encoded as a part of a URI.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            hosts: vec![("r1.example".to_owned(), 6432), ("2001:db8::1".to_owned(), 6433)],
            database: "my app".to_owned(),
            user: "ann@x".to_owned(),
            ca_file: Some("/etc/ca.crt".to_owned()),
        }
    }

    #[test]
    fn each_driver_gets_its_own_writing() {
        let uri = "postgresql://ann%40x@r1.example:6432,[2001:db8::1]:6433/my%20app?sslmode=verify-full&sslrootcert=%2Fetc%2Fca.crt";
        let one = uri.replace(",[2001:db8::1]:6433", "");
        for (driver, text) in [
            (Driver::Libpq, uri),
            (Driver::Asyncpg, uri),
            (Driver::Pgx, uri),
            (Driver::NodePostgres, &one),
            (Driver::Sqlx, &one),
            (
                Driver::Jdbc,
                "jdbc:postgresql://r1.example:6432,[2001:db8::1]:6433/my%20app?user=ann%40x&sslmode=verify-full\
                 &sslrootcert=%2Fetc%2Fca.crt",
            ),
            (
                Driver::Npgsql,
                "Host=r1.example:6432,[2001:db8::1]:6433;Database=my app;Username=ann@x;SSL Mode=VerifyFull;\
                 Root Certificate=/etc/ca.crt",
            ),
            (
                Driver::TokioPostgres,
                "host=r1.example,2001:db8::1 port=6432,6433 user=ann@x dbname='my app' sslmode=require",
            ),
        ] {
            let dsn = dsn(driver, &place());
            assert_eq!(dsn.text, text, "{driver:?}");
            let told = !driver.takes_several_hosts() || driver == Driver::TokioPostgres;
            assert_eq!(dsn.note.is_some(), told, "{driver:?}");
        }
    }

    #[test]
    fn tokio_postgres_reads_what_is_written_for_it() {
        let odd = Place { user: "o'brien\\ x".to_owned(), ..place() };
        let config: tokio_postgres::Config = dsn(Driver::TokioPostgres, &odd).text.parse().expect("its own form");
        assert_eq!((config.get_user(), config.get_dbname()), (Some("o'brien\\ x"), Some("my app")));
        assert_eq!((config.get_hosts().len(), config.get_ports()), (2, &[6432, 6433][..]));
        let uri = dsn(Driver::Libpq, &Place { ca_file: None, ..odd }).text;
        let config: tokio_postgres::Config = uri.parse().expect("a URI");
        assert_eq!((config.get_user(), config.get_dbname()), (Some("o'brien\\ x"), Some("my app")));
    }

    #[test]
    fn every_driver_is_known_by_its_words() {
        for (driver, words) in Driver::ALL {
            for word in *words {
                assert_eq!(Driver::parse(word), Some(*driver));
            }
        }
        assert_eq!(Driver::parse("odbc"), None);
    }

    #[test]
    fn odd_values_are_quoted() {
        let odd = Place { database: "a;b\"c".to_owned(), user: "o'brien\\".to_owned(), ca_file: None, ..place() };
        assert!(dsn(Driver::Npgsql, &odd).text.ends_with("Database=\"a;b\"\"c\";Username=\"o'brien\\\""));
        assert!(dsn(Driver::TokioPostgres, &odd).text.contains("user='o\\'brien\\\\' dbname=a;b\"c sslmode=disable"));
    }
}
