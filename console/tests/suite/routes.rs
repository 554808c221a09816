//! What is served and what is described are the same.

use crate::backend::Fake;
use axum::http::Method;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::OPTIONS, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

fn described() -> BTreeMap<String, BTreeSet<String>> {
    let document = serde_json::to_value(console::openapi()).expect("serialises");
    let paths = document["paths"].as_object().expect("paths").clone();
    let upper = |item: &serde_json::Value| {
        let names = item.as_object().expect("an item").keys();
        names.filter(|name| *name != "parameters").map(|name| name.to_ascii_uppercase()).collect()
    };
    paths.iter().map(|(path, item)| (path.clone(), upper(item))).collect()
}

#[tokio::test]
async fn every_described_route_is_served_and_no_other_method_is() {
    let fake = Arc::new(Fake::healthy("n1"));
    for (path, methods) in described() {
        let concrete = path.replace("{name}", "n2").replace("{id}", "op_1").replace("{code}", "ST2107");
        for method in METHODS {
            let answer = fake.send(method.clone(), &concrete, "").await;
            let served = answer.status != 405 && !answer.text().contains("there is nothing at");
            // The library answers HEAD wherever GET is.
            let named = methods.contains(method.as_str()) || (method == Method::HEAD && methods.contains("GET"));
            assert_eq!(served, named, "{method} {path}: {} {}", answer.status, answer.text());
            if !served && method != Method::HEAD {
                answer.is_problem(405, "ST1301");
                let allowed = answer.header("allow");
                assert!(methods.iter().all(|method| allowed.contains(method.as_str())), "{path} allows `{allowed}`");
            }
        }
    }
}

/// Routes enter in one place only, as `routes!` (which describes them) or from the table of health paths.
#[test]
fn no_route_goes_undescribed() {
    let sources = [
        ("server", include_str!("../../src/server.rs")),
        ("v1", include_str!("../../src/v1.rs")),
        ("events", include_str!("../../src/events.rs")),
        ("patroni", include_str!("../../src/patroni.rs")),
        ("primacy", include_str!("../../src/primacy.rs")),
        ("replication", include_str!("../../src/replication.rs")),
        ("metrics", include_str!("../../src/metrics.rs")),
        ("lib", include_str!("../../src/lib.rs")),
    ];
    let count = |what: &str| sources.iter().map(|(_, text)| text.matches(what).count()).sum::<usize>();
    assert_eq!(count(".route("), 1, "only the table of health paths is added by hand");
    assert_eq!(count(".nest"), 0);
    let paths = described();
    for (path, _) in console::health::PATHS {
        assert!(paths.contains_key(*path), "{path}");
    }
    for contract in [
        "/admin/replication/status",
        "/metrics",
        "/liveness",
        "/patroni",
        "/cluster",
        "/history",
        "/config",
        "/switchover",
        "/failover",
        "/restart",
        "/reload",
        "/reinitialize",
        "/v1/status",
        "/v1/nodes",
        "/v1/nodes/{name}",
        "/v1/settings",
        "/v1/settings/history",
        "/v1/settings/rollback",
        "/v1/operations",
        "/v1/operations/{id}",
        "/v1/operations/{id}/cancel",
        "/v1/history",
        "/v1/events",
        "/v1/topology",
        "/v1/tokens",
        "/v1/tokens/{id}",
        "/v1/nodes/{name}/rejoin",
        "/v1/nodes/{name}/reinit",
        "/v1/restart",
        "/v1/switchover",
        "/v1/failover",
        "/v1/failovers",
        "/v1/failovers/{id}",
        "/v1/pause",
        "/v1/resume",
        "/v1/openapi.json",
    ] {
        assert!(paths.contains_key(contract), "{contract} is missing");
    }
}

#[tokio::test]
async fn every_reference_of_the_description_leads_somewhere() {
    let served = Arc::new(Fake::healthy("n1")).get("/v1/openapi.json").await.json();
    let text = served.to_string();
    let schemas = served["components"]["schemas"].as_object().expect("schemas");
    let references: BTreeSet<&str> =
        text.split("#/components/schemas/").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(references.contains("HttpProblem") && references.contains("ClusterStatus"), "{references:?}");
    for name in references {
        assert!(schemas.contains_key(name), "{name} is not described");
    }
}

#[tokio::test]
async fn every_mutation_documents_its_401() {
    let document = serde_json::to_value(console::openapi()).expect("serialises");
    for (path, item) in document["paths"].as_object().expect("paths") {
        for method in ["post", "put", "patch", "delete"] {
            if let Some(operation) = item.get(method) {
                assert!(operation["responses"].get("401").is_some(), "{method} {path}");
            }
        }
    }
}

/// Both problems of the model and of HTTP share a name in prose; they must not share a schema.
#[test]
fn the_two_problems_are_told_apart() {
    let document = serde_json::to_value(console::openapi()).expect("serialises");
    let schemas = &document["components"]["schemas"];
    let fields = |name: &str| schemas[name]["properties"].as_object().map(|fields| fields.len());
    assert!(schemas["HttpProblem"]["properties"].get("detail").is_some(), "{:?}", fields("HttpProblem"));
    assert!(schemas["Problem"]["properties"].get("severity").is_some(), "{:?}", fields("Problem"));
}
