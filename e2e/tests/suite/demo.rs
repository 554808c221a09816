//! The demo, as continuous integration would run it.

use e2e::{major_bin, run};

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_ends_with_its_proof() {
    let bin = major_bin(15).display().to_string();
    let ran = run(&["demo", "--ci", "--seconds", "8", "--pg-bin", &bin, "-o", "json"]).await.exits(0);
    let proof = ran.json();
    assert_eq!(proof["proved"], true, "{proof}");
    let acknowledged = proof["acknowledged"].as_u64().expect("a number");
    assert!(acknowledged > 100, "{proof}");
    let nodes = proof["nodes"].as_array().expect("a list");
    assert_eq!(nodes.len(), 3, "{proof}");
    for node in nodes {
        assert_eq!((node["found"].as_u64(), node["missing"].as_u64()), (Some(acknowledged), Some(0)), "{proof}");
    }
}
