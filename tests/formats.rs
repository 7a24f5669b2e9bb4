//! The format of records, and of what is exported: `state.record_format`, `state export --format`.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use insta::assert_snapshot;
use serde_json::Value;

use kit::{Project, QUICK};

const PIPELINE: &str = r#"pipeline:
- name: a
  run: 'for n in 1 2 3; do echo "{\"records\": 1, \"last_id\": \"$n\"}" >/dev/fd/$OXIFLOW_PROGRESS_FD; done'
"#;

/// A project whose records are written like this.
fn project(format: &str) -> Project {
    let project = Project::new(&configuration(format));
    project.write("pipelines/p.yaml", PIPELINE);
    project
}

fn configuration(format: &str) -> String {
    format!("{QUICK}  record_format: {format}\n")
}

/// The first line of the state's file.
fn header(project: &Project) -> Value {
    let bytes = std::fs::read(project.path().join(".oxiflow/state/states/p.json")).unwrap();
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap();
    serde_json::from_slice(line).unwrap()
}

#[test]
fn a_project_changes_its_format_at_any_time_and_reads_what_it_wrote_before() {
    let project = project("json");
    project.run(&["run", "p"]).expect(0);
    assert_eq!(header(&project)["codec"], "json");
    for (round, format) in oxide_flow::format::names().iter().enumerate() {
        project.write("oxiflow.yaml", &configuration(format));
        let before = project.state("p").unwrap();
        assert_eq!(before["records_processed"], 3, "{format}");
        project.run(&["run", "p", "--fresh"]).expect(0);
        assert_eq!(&header(&project)["codec"], format);
        let after = project.state("p").unwrap();
        assert_ne!(after["run_id"], before["run_id"]);
        project.run(&["state", "backup", "p"]).expect(0);
        project.run(&["state", "validate", "p"]).expect(0);
        project.run(&["state", "verify-integrity"]).expect(0);
        let history = project.run(&["state", "history", "p", "--json"]).expect(0);
        let history: Value = serde_json::from_str(&history.stdout).unwrap();
        assert!(history["data"].as_array().unwrap().len() > round, "{history:#}");
    }
    // Copies of every format are there, and one of them is put back.
    let backups = project.run(&["state", "list-backups", "p", "--json"]).expect(0);
    let backups: Value = serde_json::from_str(&backups.stdout).unwrap();
    let oldest = backups["data"].as_array().unwrap().last().unwrap()["id"].as_str().unwrap();
    project.run(&["state", "restore", "p", "--backup", oldest, "--yes"]).expect(0);
    assert_eq!(project.state("p").unwrap()["records_processed"], 3);
}

#[test]
fn a_damaged_compressed_record_is_found_and_repaired_from_its_copy() {
    let project = project("msgpack+zstd");
    project.run(&["run", "p"]).expect(0);
    project.run(&["state", "backup", "p"]).expect(0);
    let before = project.state("p").unwrap();
    let path = project.path().join(".oxiflow/state/states/p.json");
    let mut bytes = std::fs::read(&path).unwrap();
    let body = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 40;
    bytes[body] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert_eq!(project.run(&["state", "validate", "p"]).code, 3);
    project.run(&["state", "repair", "p", "--yes"]).expect(0);
    let after = project.state("p").unwrap();
    assert_eq!(after["records_processed"], before["records_processed"]);
    assert_eq!(header(&project)["codec"], "msgpack+zstd");
}

#[test]
fn an_unknown_format_is_told_with_those_there_are() {
    let project = project("jsn");
    assert_snapshot!(project.run(&["state", "list"]).story(&project), @r"
    exit 2
    --- stderr
    error: oxiflow.yaml:7:18: `record_format`: `jsn` is no format
    hint: there are: json, msgpack, yaml, json+zstd, msgpack+zstd, yaml+zstd
    ");
    let exported = project.run(&["state", "export", "p", "--format", "xml"]);
    assert_snapshot!(exported.story(&project), @r"
    exit 2
    --- stderr
    error: invalid value 'xml' for '--format <FORMAT>'
      [possible values: json, msgpack, yaml, json+zstd, msgpack+zstd, yaml+zstd]

      tip: a similar value exists: 'yaml'

    For more information, try '--help'.
    ");
}

#[test]
fn what_is_in_no_format_is_told() {
    let project = project("json");
    std::fs::write(project.path().join("in"), b"\xff\xfe no state").unwrap();
    let ran = project.run(&["state", "import", "p", "--file", "in"]);
    assert_snapshot!(ran.story(&project), @r"
    exit 3
    --- stderr
    error: cannot read in
      caused by: the bytes are in no known format
    hint: known are: json, msgpack, yaml, json+zstd, msgpack+zstd, yaml+zstd
    ");
    // Cut, as by a disk that was full.
    project.run(&["run", "p"]).expect(0);
    let file = project.path().join("in");
    let arguments = ["state", "export", "p", "--format", "json+zstd", "-o"];
    project.run(&[&arguments[..], &[file.to_str().unwrap()]].concat()).expect(0);
    let bytes = std::fs::read(&file).unwrap();
    std::fs::write(&file, &bytes[..bytes.len() - 9]).unwrap();
    let ran = project.run(&["state", "import", "p", "--file", "in", "--yes"]);
    assert_snapshot!(ran.story(&project), @r"
    exit 3
    --- stderr
    error: cannot read in
      caused by: the document cannot be decompressed
      caused by: incomplete frame
    ");
}
