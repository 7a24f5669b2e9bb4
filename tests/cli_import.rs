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
    let project = Project::with_pipeline(PIPELINE);
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
fn an_export_in_any_format_comes_back_the_same() {
    for format in oxide_flow::format::names() {
        let project = failed();
        let before = project.state("p").unwrap();
        let other = Project::with_pipeline(PIPELINE);
        let file = other.path().join("in");
        let export = ["state", "export", "p", "--format", &format];
        let output = project.command(export).output().unwrap();
        assert!(output.status.success());
        // To a file or to a pipe, it is the same.
        project.run(&[&export[..], &["--output", file.to_str().unwrap()]].concat()).expect(0);
        assert_eq!(std::fs::read(&file).unwrap(), output.stdout, "{format}");
        let ran = other.run(&["state", "import", "p", "--file", "in"]).expect(0);
        assert_eq!(kept(other.state("p").unwrap()), kept(before.clone()), "{format}");
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
        assert!(ran.stderr.contains("p: a was done before"), "{}", ran.stderr);
    }
}

#[test]
fn an_export_follows_links_and_goes_into_pipes() {
    let project = failed();
    let path = |name: &str| project.path().join(name);
    project.write("earlier", "");
    std::os::unix::fs::symlink(path("earlier"), path("link")).unwrap();
    project.run(&["state", "export", "p", "--output", "link"]).expect(0);
    assert!(path("link").is_symlink());
    let exported = project.read("earlier");
    assert!(exported.contains("\"pipeline_id\""), "{exported}");

    let made = std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap();
    assert!(made.success());
    let reader = std::thread::spawn({
        let pipe = path("pipe");
        move || std::fs::read_to_string(pipe).unwrap()
    });
    project.run(&["state", "export", "p", "--output", "pipe"]).expect(0);
    assert_eq!(reader.join().unwrap(), exported);
    assert!(!path("pipe").is_file(), "the pipe was replaced");

    project.run(&["state", "export", "p", "--output", "pipelines"]).expect(1);
    let beside = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.unwrap().file_name().to_string_lossy().starts_with(".link")
    };
    assert!(!project.path().read_dir().unwrap().any(beside), "something is left");
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
    project.run(&["state", "import", "p", "--file", "in.json", "--yes"]).expect(0);
    let yaml = project.run(&["state", "export", "p", "--format", "yaml"]).expect(0).stdout;
    project.write("in.yaml", &yaml);
    project.run(&["state", "import", "p", "--file", "in.yaml", "--yes"]).expect(0);
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
    assert_eq!(project.run(&["worker", "list"]).expect(0).stderr, "no workers\n");
}

#[test]
fn a_state_comes_in_over_standard_input() {
    let project = failed();
    let exported = project.run(&["state", "export", "p", "--format", "yaml"]).expect(0).stdout;
    let other = Project::with_pipeline(PIPELINE);
    insta::assert_snapshot!(other.run_with_input(&["state", "import", "p", "--file", "-"], &exported).story(&other), @"
    exit 0
    --- stderr
    imported the state of `p`: failed, 3 records, now at version N
    ");
    insta::assert_snapshot!(other.run_with_input(&["state", "import", "p", "--file", "-"], "").story(&other), @"
    exit 3
    --- stderr
    error: standard input holds no pipeline state
    hint: export one with `oxide_flow state export` to see what it looks like
    ");
}

#[test]
fn documents_that_are_no_state_of_this_pipeline_are_refused_and_change_nothing() {
    let project = failed();
    let state = project.state("p").unwrap();
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut state = state.clone();
        change(&mut state);
        state.to_string()
    };
    let without = |field: &str| {
        changed(&|state| {
            state.as_object_mut().unwrap().remove(field);
        })
    };
    let documents = [
        ("garbage", "\u{1}\u{2}{{{ ]]".to_owned()),
        ("cut off", state.to_string()[..200].to_owned()),
        ("empty", String::new()),
        ("a number", "42".to_owned()),
        ("a list", "[]".to_owned()),
        ("null", "null".to_owned()),
        ("another pipeline's", changed(&|state| state["pipeline_id"] = json!("other"))),
        ("a hostile name", changed(&|state| state["pipeline_id"] = json!("../p"))),
        ("a newer schema", changed(&|state| state["schema_version"] = json!(3))),
        ("a schema as text", changed(&|state| state["schema_version"] = json!("2"))),
        ("no status", without("status")),
        ("no steps", without("step_states")),
        ("no pipeline", without("pipeline_id")),
        ("a wrong status", changed(&|state| state["status"] = json!("happy"))),
        ("a negative count", changed(&|state| state["records_processed"] = json!(-1))),
        ("a wrong time", changed(&|state| state["started_at"] = json!("yesterday"))),
        (
            "a step without cursor",
            changed(&|state| {
                state["step_states"]["a"].as_object_mut().unwrap().remove("last_processed_id");
            }),
        ),
        (
            "a step under another id",
            changed(&|state| state["step_states"]["a"]["step_id"] = json!("b")),
        ),
        ("a time to come", changed(&|state| state["started_at"] = json!("2999-01-01T00:00:00Z"))),
        ("fewer records than its steps", changed(&|state| state["records_processed"] = json!(0))),
        ("a step that is none", changed(&|state| state["current_step"] = json!("zzz"))),
        ("no run", changed(&|state| state["run_id"] = json!(""))),
        ("a version without a next", changed(&|state| state["version"] = json!(u64::MAX))),
    ];
    let mut told = String::new();
    project.write("in", "");
    let before = kit::contents(&project.path().join(".oxiflow"));
    for (what, document) in documents {
        project.write("in", &document);
        let ran = project.run(&["state", "import", "p", "--file", "in", "--yes"]);
        told.push_str(&format!("## {what}\n{}", ran.story(&project)));
        assert_eq!(kit::contents(&project.path().join(".oxiflow")), before, "{what}");
    }
    insta::assert_snapshot!(told, @r#"
    ## garbage
    exit 3
    --- stderr
    error: in is neither JSON nor YAML
      caused by: the document is no YAML: unexpected character: `\u{1}' at line 1, column 1
    ## cut off
    exit 3
    --- stderr
    error: in is neither JSON nor YAML
      caused by: EOF while parsing a string at line 1 column 200
    ## empty
    exit 3
    --- stderr
    error: in holds no pipeline state
    hint: export one with `oxide_flow state export` to see what it looks like
    ## a number
    exit 3
    --- stderr
    error: in holds no pipeline state
    hint: export one with `oxide_flow state export` to see what it looks like
    ## a list
    exit 3
    --- stderr
    error: in holds no pipeline state
    hint: export one with `oxide_flow state export` to see what it looks like
    ## null
    exit 3
    --- stderr
    error: in holds no pipeline state
    hint: export one with `oxide_flow state export` to see what it looks like
    ## another pipeline's
    exit 3
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: the document is the state of pipeline `other`
    hint: import it under that name, or change its `pipeline_id` if you mean it
    ## a hostile name
    exit 3
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: the document is no pipeline state: at `pipeline_id`
      caused by: `../p` is no pipeline name: it starts with a dot
    hint: export one with `oxide_flow state export` to see what it looks like
    ## a newer schema
    exit 1
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: the state has schema 3, this one reads up to 2
    hint: import it with the newer oxide_flow that exported it
    ## a schema as text
    exit 3
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: the document is no pipeline state: at `schema_version`
      caused by: invalid type: string "2", expected u32
    hint: export one with `oxide_flow state export` to see what it looks like
    ## no status
    exit 3
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: the document is no pipeline state: at `.`
      caused by: missing field `status`
    hint: export one with `oxide_flow state export` to see what it looks like
    ## no steps
    exit 3
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: the document is no pipeline state: at `.`
      caused by: missing field `step_states`
    hint: export one with `oxide_flow state export` to see what it looks like
    ## no pipeline
    exit 3
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: the document is no pipeline state: at `.`
      caused by: missing field `pipeline_id`
    hint: export one with `oxide_flow state export` to see what it looks like
    ## a wrong status
    exit 3
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: the document is no pipeline state: at `status`
      caused by: unknown variant `happy`, expected one of `pending`, `running`, `paused`, `completed`, `failed`
    hint: export one with `oxide_flow state export` to see what it looks like
    ## a negative count
    exit 3
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: the document is no pipeline state: at `records_processed`
      caused by: invalid value: integer `-1`, expected u64
    hint: export one with `oxide_flow state export` to see what it looks like
    ## a wrong time
    exit 3
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: the document is no pipeline state: at `started_at`
      caused by: input contains invalid characters
    hint: export one with `oxide_flow state export` to see what it looks like
    ## a step without cursor
    exit 3
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: the document is no pipeline state: at `step_states.a`
      caused by: missing field `last_processed_id`
    hint: export one with `oxide_flow state export` to see what it looks like
    ## a step under another id
    exit 3
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: the step under `a` has another `step_id`
    ## a time to come
    exit 3
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: the document breaks the rule `timestamp-in-future`
      caused by: `started_at` is "TIME", and should be a time before "TIME"
    hint: nothing was changed; mend it, or import it all the same with `--ignore-rules` and mend it with `oxide_flow state repair p`
    ## fewer records than its steps
    exit 3
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: the document breaks the rule `step-counters`
      caused by: `records_processed` is 0, and should be at least 3, as its steps have counted
    hint: nothing was changed; mend it, or import it all the same with `--ignore-rules` and mend it with `oxide_flow state repair p`
    ## a step that is none
    exit 3
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: the document breaks the rule `current-step`
      caused by: `current_step` is "zzz", and should be one of the steps
    hint: nothing was changed; mend it, or import it all the same with `--ignore-rules` and mend it with `oxide_flow state repair p`
    ## no run
    exit 3
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: the document has an empty `run_id`
    ## a version without a next
    exit 3
    --- stderr
    this replaces the state of `p`: failed, 3 records, saved TIME (AGO)
    error: the `version` 18446744073709551615 leaves no room to count on
    "#);
    std::fs::write(project.path().join("in"), b"\xff\xfe").unwrap();
    insta::assert_snapshot!(project.run(&["state", "import", "p", "--file", "in"]).story(&project), @r"
    exit 3
    --- stderr
    error: cannot read in
      caused by: the bytes are in no known format
    hint: known are: json, msgpack, yaml, json+zstd, msgpack+zstd, yaml+zstd
    ");
    insta::assert_snapshot!(project.run(&["state", "import", "p", "--file", "nowhere"]).story(&project), @"
    exit 2
    --- stderr
    error: cannot read nowhere
      caused by: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(project.run(&["state", "import", "p"]).story(&project), @"
    exit 2
    --- stderr
    error: the following required arguments were not provided:
      --file <FILE>

    Usage: oxide_flow state import --file <FILE> <PIPELINE>

    For more information, try '--help'.
    ");
}

#[test]
fn a_large_state_is_imported_and_shown() {
    let project = failed();
    let mut state = project.state("p").unwrap();
    // Ten megabytes, in a field that this version does not know and keeps.
    state["notes"] = json!("x".repeat(10 * 1024 * 1024));
    project.write("in.json", &state.to_string());
    project.run(&["state", "import", "p", "--file", "in.json", "--yes"]).expect(0);
    assert_eq!(project.state("p").unwrap()["notes"], state["notes"]);
}

#[test]
fn import_refuses_while_a_worker_runs_and_names_it() {
    let project = Project::with_pipeline(
        "pipeline: [{name: a, run: 'touch ready; until test -e go; do sleep 0.01; done'}]\n",
    );
    let running = project.start_captured(&["run"]);
    wait_for("the step", || project.path().join("ready").exists().then_some(()));
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
    let mut import = project
        .start_captured(&["state", "import", "p", "--file", "in.json", "--yes", "--wait", "60s"]);
    assert_eq!(import.ended(), None);
    project.write("go", "");
    running.finish().expect(0);
    import.finish().expect(0);
    assert_eq!(backups(&project), 1);
    // What was running where it was exported is resumed here.
    assert_eq!(project.state("p").unwrap()["status"], "paused");
}
