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
