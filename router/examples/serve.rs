//! A router before one server, for measuring: `serve LISTEN SERVER [POOL_SIZE [WORKERS [MODE]]]`. Clients are
//! believed.

use router::config::{ClientAuth, PoolMode};
use router::{Config, NodeAddr, Router, Topology};
use tokio::sync::watch;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, server, rest @ ..] = arguments.as_slice() else {
        panic!("serve LISTEN SERVER [POOL_SIZE [WORKERS [MODE]]]")
    };
    let node = NodeAddr::parse(server).expect("SERVER is HOST:PORT");
    let number = |index: usize, default: usize| rest.get(index).map_or(default, |text| text.parse().expect("a number"));
    let config = Config {
        listen: vec![listen.parse().expect("LISTEN is ADDRESS:PORT")],
        workers: number(1, 1),
        pool_size: number(0, 20),
        mode: if rest.get(2).is_some_and(|mode| mode == "session") { PoolMode::Session } else { PoolMode::Transaction },
        auth: ClientAuth::Trust(std::sync::Arc::default()),
        ..Config::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (_topology, told) = watch::channel(Topology::single(node));
        let router = Router::start(config, told).await.expect("the router starts");
        println!("listening on {:?}", router.addresses());
        std::future::pending::<()>().await;
    });
}
