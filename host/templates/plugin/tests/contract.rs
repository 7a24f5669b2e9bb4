//! The backend keeps the contract of `oxide_flow`, clause by clause.

use fixture_template::Store;
use oxiflow_plugin_api::conformance::{Local, Settings, run_all};

/// Not a test of its own: the suite starts this program again, to be one of several processes on a
/// store and to be killed in the middle of a write.
#[test]
fn worker() {
    Local::<Store>::work();
}

#[test]
fn the_contract_is_kept() {
    let subject = Local::<Store>::new(serde_json::json!({}), "worker");
    // The seed repeats a run.
    let report = run_all(&subject, &Settings::with_seed(7));
    println!("{report}");
    assert!(report.is_conforming(), "{report}");
}
