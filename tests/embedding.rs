//! A Rust program keeps its state through the library, as the documentation shows it.

#[path = "../host/examples/embedding.rs"]
#[expect(dead_code, reason = "its `main` is for readers")]
mod example;
mod kit;

use kit::{Project, plugin_folder, steady};

#[test]
fn the_documented_example_does_each_record_once_over_a_crash() {
    let plugins = plugin_folder().display();
    let project = Project::new(&format!("plugins: {{path: [\"{plugins}\"]}}\n{}", steady()));
    let records = ["ann", "ben", "cat", "dan"];
    let mut done = Vec::new();
    let crashed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut work = |record: &str| {
            assert_ne!(record, "cat", "a crash in the middle of the work");
            done.push(record.to_owned());
        };
        example::process(project.path(), &records, &mut work)
    }));
    assert!(crashed.is_err());
    assert_eq!(done, ["ann", "ben"]);
    let mut rest = Vec::new();
    example::process(project.path(), &records, &mut |record| rest.push(record.to_owned())).unwrap();
    assert_eq!(rest, ["cat", "dan"]);
    let state = project.state("greetings").unwrap();
    assert_eq!((&state["status"], &state["records_processed"]), (&"completed".into(), &4.into()));
}
