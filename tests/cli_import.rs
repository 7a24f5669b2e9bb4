//! `oxide_flow state import`: what it takes, what it refuses, and what it never loses.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use kit::{Project, wait_for};
use serde_json::{Value, json};

const PIPELINE: &str = r#"
pipeline:
  - {name: a, run: "oxide_flow progress --records 3 --last-id c3 --total 9"}
  - {name: b, run: "test -e go"}
"#;

/// A project whose pipeline `p` failed at its second step.
fn failed() -> Project {
    let project = Project::steady(PIPELINE);
    project.run(&["run"]).expect(1);
    project
}

/// The parts of a state that an import keeps.
fn kept(mut state: Value) -> Value {
    for field in ["version", "epoch", "worker_id"] {
        state.as_object_mut().unwrap().remove(field);
    }
    state
}

fn backups(project: &Project) -> usize {
    std::fs::read_dir(project.path().join(".oxiflow/state/backups/p")).map_or(0, Iterator::count)
}

#[test]
fn an_export_in_either_format_comes_back_the_same() {
    for format in ["json", "yaml"] {
        let project = failed();
        let before = project.state("p").unwrap();
        let exported = project
            .run(&["state", "export", "p", "--format", format])
            .expect(0)
            .stdout;
        let other = Project::steady(PIPELINE);
        other.write("in", &exported);
        let ran = other
            .run(&["state", "import", "p", "--file", "in"])
            .expect(0);
        assert_eq!(
            kept(other.state("p").unwrap()),
            kept(before.clone()),
            "{format}"
        );
        if format == "json" {
            insta::assert_snapshot!(ran.story(&other), @"
            exit 0
            --- stderr
            imported the state of `p`: failed, 3 records, now at version N
            ");
        }
        // The run goes on there.
        other.write("go", "");
        let ran = other.run(&["run"]).expect(0);
        assert!(
            ran.stderr.contains("p: a was done before"),
            "{}",
            ran.stderr
        );
    }
}

#[test]
fn texts_that_look_like_other_things_survive_yaml() {
    let project = failed();
    let mut state = project.state("p").unwrap();
    let texts = json!([
        "no",
        "1e3",
        "0x10",
        "~",
        "null",
        "- a",
        "a: b",
        "#x",
        " x ",
        "é\u{1F600}",
        "a\nb",
        "\"",
        "'",
        "2020-01-01",
        "12:30:45",
        "!tag",
        "&a",
        "*a",
        "\u{7}",
        "\\n",
        "|",
        ">",
        "%",
        "@",
        "`",
        "?",
        "true",
        ".nan",
        "<<",
        "=",
        "_1",
        "1_000",
        "+1",
        "\u{feff}",
        "\u{2028}",
        "\t",
    ]);
    state["texts"] = texts.clone();
    state["last_processed_id"] = json!("a: \"b\"\n# c\\");
    project.write("in.json", &state.to_string());
    project
        .run(&["state", "import", "p", "--file", "in.json", "--yes"])
        .expect(0);
    let yaml = project
        .run(&["state", "export", "p", "--format", "yaml"])
        .expect(0)
        .stdout;
    project.write("in.yaml", &yaml);
    project
        .run(&["state", "import", "p", "--file", "in.yaml", "--yes"])
        .expect(0);
    let after = project.state("p").unwrap();
    assert_eq!(after["texts"], texts, "{yaml}");
    assert_eq!(after["last_processed_id"], state["last_processed_id"]);
}

#[test]
fn replacing_needs_a_yes_and_leaves_a_backup() {
    let project = failed();
    let mut state = project.state("p").unwrap();
    state["last_processed_id"] = json!("replaced");
    project.write("in.json", &state.to_string());
    let before = kit::contents(project.path());
    insta::assert_snapshot!(project.run(&["state", "import", "p", "--file", "in.json"]).story(&project), @"
    exit 2
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: nobody is there to confirm; nothing was changed
    hint: repeat the command with `--yes`
    ");
    assert_eq!(kit::contents(project.path()), before);
    insta::assert_snapshot!(project.run(&["state", "import", "p", "--file", "in.json", "--yes"]).story(&project), @"
    exit 0
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    the state before is kept as backup BACKUP
    imported the state of `p`: failed, 3 records, now at version N
    ");
    assert_eq!(backups(&project), 1);
    let after = project.state("p").unwrap();
    assert_eq!(after["last_processed_id"], "replaced");
    assert!(after["version"].as_u64() > state["version"].as_u64());
    assert!(after["epoch"].as_u64() > state["epoch"].as_u64());
    assert_eq!(
        project.run(&["worker", "list"]).expect(0).stderr,
        "no workers\n"
    );
}

#[test]
fn a_large_state_is_imported_and_shown() {
    let project = failed();
    let mut state = project.state("p").unwrap();
    // Ten megabytes, in a field that this version does not know and keeps.
    state["notes"] = json!("x".repeat(10 * 1024 * 1024));
    project.write("in.json", &state.to_string());
    project
        .run(&["state", "import", "p", "--file", "in.json", "--yes"])
        .expect(0);
    assert_eq!(project.state("p").unwrap()["notes"], state["notes"]);
}

#[test]
fn import_refuses_while_a_worker_runs_and_names_it() {
    let project = Project::steady(
        "pipeline: [{name: a, run: 'touch ready; until test -e go; do sleep 0.01; done'}]\n",
    );
    let running = project.start_captured(&["run"]);
    wait_for("the step", || {
        project.path().join("ready").exists().then_some(())
    });
    let state = project.state("p").unwrap();
    project.write("in.json", &state.to_string());
    insta::assert_snapshot!(project.run(&["state", "import", "p", "--file", "in.json", "--yes"]).story(&project), @"
    exit 4
    --- stderr
    this replaces the state of `p`: running, 0 records, saved TIME (AGO)
    error: pipeline `p` is held by worker `WORKER` (pid PID on HOST, run, since TIME)
    hint: try again when it is done, or stop it with `oxide_flow worker stop WORKER`
    ");
    assert_eq!(backups(&project), 0);
    let mut import = project.start_captured(&[
        "state", "import", "p", "--file", "in.json", "--yes", "--wait", "60s",
    ]);
    assert_eq!(import.ended(), None);
    project.write("go", "");
    running.finish().expect(0);
    import.finish().expect(0);
    assert_eq!(backups(&project), 1);
    // What was running where it was exported is resumed here.
    assert_eq!(project.state("p").unwrap()["status"], "paused");
}
