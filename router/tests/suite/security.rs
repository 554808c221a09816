//! Who gets in, and how.

use crate::harness::{Front, PASSWORD, Server, config, one, sqlstate};
use router::config::{ClientAuth, Secret};
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verifier_is_enough_to_let_a_client_in_and_to_log_in_as_it() {
    let server = Server::new();
    server.sql("CREATE ROLE ann LOGIN PASSWORD 'anns own'");
    let verifier = server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'ann'");
    let users = [("ann".to_owned(), Secret::Verifier(verifier))];
    let auth = ClientAuth::Users(Arc::new(users.into()));
    let front = Front::start(server.topology(1), router::Config { auth, ..config(2) }).await;
    let mut options = front.options();
    options.user("ann").password("anns own");
    let ann = front.client_with(&options).await.expect("the right password");
    assert_eq!(one(&ann, "SELECT current_user").await, "ann", "the server asked for a password too");
    for (user, password) in [("ann", "wrong"), ("postgres", PASSWORD), ("nobody", "x")] {
        let mut options = front.options();
        options.user(user).password(password);
        let refused = front.client_with(&options).await.expect_err("refused");
        assert_eq!(sqlstate(&refused), "28P01", "{user}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_not_there_is_refused_in_the_servers_words() {
    let server = Server::new();
    let front = Front::before(&server, 1).await;
    let mut options = front.options();
    options.dbname("nowhere");
    let refused = front.client_with(&options).await.expect_err("refused");
    assert_eq!(sqlstate(&refused), "3D000");
    assert_eq!(one(&front.client().await, "SELECT 1").await, "1", "its place in the pool is free again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_finds_users_that_no_file_lists() {
    let server = Server::new();
    server.sql("CREATE ROLE ann LOGIN PASSWORD 'anns own'");
    server.sql(
        "CREATE FUNCTION secret_of(name text, OUT usename name, OUT passwd text) LANGUAGE sql SECURITY DEFINER \
         AS 'SELECT rolname, rolpassword FROM pg_authid WHERE rolname = name'",
    );
    server.sql("CREATE ROLE gate LOGIN PASSWORD 'gates own'");
    let users = [("gate".to_owned(), Secret::Password("gates own".to_owned()))];
    let auth = ClientAuth::Query {
        users: Arc::new(users.into()),
        user: "gate".to_owned(),
        database: Some("postgres".to_owned()),
        query: "SELECT usename, passwd FROM secret_of($1)".to_owned(),
    };
    let front = Front::start(server.topology(1), router::Config { auth, ..config(2) }).await;
    let mut options = front.options();
    options.user("ann").password("anns own");
    let ann = front.client_with(&options).await.expect("the right password");
    assert_eq!(one(&ann, "SELECT current_user").await, "ann");
    options.user("o'hara").password("x");
    let refused = front.client_with(&options).await.expect_err("unknown");
    assert_eq!(sqlstate(&refused), "28P01", "the name is a value, whatever it holds");
}

/// A certificate for 127.0.0.1 with its key, and the CA that signed it, as files.
pub fn certificates(directory: &std::path::Path) -> (std::path::PathBuf, std::path::PathBuf, std::path::PathBuf) {
    let mut ca = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    // Another name than the leaf's, or OpenSSL takes the leaf for self-signed.
    ca.distinguished_name.push(rcgen::DnType::CommonName, "ca of the tests");
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = rcgen::CertifiedIssuer::self_signed(ca, rcgen::KeyPair::generate().expect("a key")).expect("a CA");
    let key = rcgen::KeyPair::generate().expect("a key");
    let names = vec!["127.0.0.1".to_owned()];
    let leaf = rcgen::CertificateParams::new(names).expect("parameters").signed_by(&key, &ca).expect("signed");
    let paths = ["cert.pem", "key.pem", "ca.pem"].map(|name| directory.join(name));
    std::fs::write(&paths[0], leaf.pem()).expect("written");
    std::fs::write(&paths[1], key.serialize_pem()).expect("written");
    std::fs::write(&paths[2], ca.pem()).expect("written");
    let [certificate, key, ca] = paths;
    (certificate, key, ca)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_and_servers_are_reached_by_tls() {
    let room = tempfile::tempdir().expect("a directory");
    let (certificate, key, ca) = certificates(room.path());
    let mut server = Server::new();
    server.enable_tls(&certificate, &key);
    let tls = router::config::ClientTls {
        config: router::tls::for_clients(&certificate, &key, None).expect("sound files"),
        require: true,
    };
    let server_tls = router::config::ServerTls::Require(router::tls::for_servers(&ca).expect("sound file"));
    let front =
        Front::start(server.topology(1), router::Config { client_tls: Some(tls), server_tls, ..config(2) }).await;
    let refused = front.client_with(&front.options()).await.expect_err("without TLS");
    assert_eq!(sqlstate(&refused), "28000");
    let dsn = format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=verify-full sslrootcert={}",
        front.port,
        ca.display()
    );
    // The files are the test's own; psql runs as this process does.
    let output = std::process::Command::new("/usr/lib/postgresql/15/bin/psql")
        .args(["-XAtq", "-d", &dsn, "-c", "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"])
        .args(["-c", "SELECT length(repeat('x', 1000000))", "-c", "\\conninfo"])
        .env("PGPASSWORD", PASSWORD)
        .output()
        .expect("psql starts");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(said.starts_with("t\n1000000\n"), "the way to the server is encrypted: {said}{errors}");
    assert!(said.contains("SSL connection"), "and the way to the router: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_for_the_users_name_stands_for_the_password() {
    let room = tempfile::tempdir().expect("a directory");
    let (certificate, key, _) = certificates(room.path());
    let ca = rcgen::KeyPair::generate().expect("a key");
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "ca of the clients");
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = rcgen::CertifiedIssuer::self_signed(parameters, ca).expect("a CA");
    let write = |name: &str, text: String| {
        let path = room.path().join(name);
        std::fs::write(&path, text).expect("written");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
        path
    };
    let ca_file = write("clients.pem", ca.pem());
    let shown = |user: &str| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut leaf = rcgen::CertificateParams::new(Vec::new()).expect("parameters");
        leaf.distinguished_name = rcgen::DistinguishedName::new();
        leaf.distinguished_name.push(rcgen::DnType::CommonName, user);
        let leaf = leaf.signed_by(&key, &ca).expect("signed");
        (write(&format!("{user}.pem"), leaf.pem()), write(&format!("{user}.key"), key.serialize_pem()))
    };
    let server = Server::new();
    let tls = router::config::ClientTls {
        config: router::tls::for_clients(&certificate, &key, Some(&ca_file)).expect("sound files"),
        require: true,
    };
    let front = Front::start(server.topology(1), router::Config { client_tls: Some(tls), ..config(2) }).await;
    let enters = |shown: Option<(std::path::PathBuf, std::path::PathBuf)>, password: &str| {
        let mut dsn = format!("host=127.0.0.1 port={} user=postgres dbname=postgres sslmode=require", front.port);
        if let Some((certificate, key)) = shown {
            dsn += &format!(" sslcert={} sslkey={}", certificate.display(), key.display());
        }
        let psql = std::process::Command::new("/usr/lib/postgresql/15/bin/psql")
            .args(["-XAtqwc", "SELECT current_user", "-d", &dsn])
            .env("PGPASSWORD", password)
            .output()
            .expect("psql starts");
        String::from_utf8_lossy(&psql.stdout).trim() == "postgres"
    };
    assert!(enters(Some(shown("postgres")), "wrong"), "its own certificate");
    assert!(!enters(Some(shown("ann")), "wrong"), "someone else's");
    assert!(enters(Some(shown("bob")), PASSWORD), "someone else's, with the password");
    assert!(!enters(None, "wrong"));
    assert!(enters(None, PASSWORD), "no certificate is needed");
}
