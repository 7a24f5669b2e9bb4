//! Pipeline files and their steps.

use super::*;

#[test]
fn every_option_of_a_step_is_read() {
    let step = Project::step(
        "- name: Extract orders\n  id: extract\n  run: \"psql ${DB} > x\"\n  retry_attempts: 2\n  \
             timeout_seconds: 1.5\n  continue_on_error: true\n  environment: {A: 1, B: '${B:-b}'}\n",
    );
    let expected = Step {
        id: "extract".into(),
        name: "Extract orders".into(),
        run: Command::Shell("psql ${DB} > x".into()),
        retry_attempts: 2,
        timeout: Some(Duration::from_millis(1500)),
        continue_on_error: true,
        incremental: false,
        environment: [("A".into(), "1".into()), ("B".into(), "b".into())].into(),
    };
    assert_eq!(step, expected);
}

#[test]
fn a_step_needs_only_a_name_and_a_command() {
    let step = Project::step("- name: load\n  run: [python3, load.py, 1.0, '${X}', true]\n");
    let arguments = ["python3", "load.py", "1.0", "${X}", "true"].map(str::to_owned);
    assert_eq!(step.run, Command::Arguments(arguments.into()));
    assert_eq!((step.id.as_str(), step.retry_attempts, step.timeout), ("load", 0, None));
    assert!(!step.continue_on_error);
}

#[test]
fn metadata_and_shared_variables_are_read() {
    let project = Project::with_pipeline(
        "x",
        "pipeline:\n- {name: a, run: b, environment: {ONE: mine}}\nmetadata: {name: T, version: 1.0, \
             tags: [p, q]}\nenvironment: {ONE: shared, TWO: shared}\n",
    );
    let pipeline = project.pipeline("x").unwrap();
    assert_eq!(pipeline.metadata.version.as_deref(), Some("1.0"));
    assert_eq!(pipeline.metadata.tags, ["p", "q"]);
    let environment = &pipeline.steps[0].environment;
    assert_eq!((&*environment["ONE"], &*environment["TWO"]), ("mine", "shared"));
    assert_eq!(pipeline.path, project.path().join("pipelines/x.yaml"));
}

#[test]
fn a_step_of_the_original_program_is_told_what_a_step_is_now() {
    insta::assert_snapshot!(
        Project::pipeline_error(
            "pipeline:\n  - name: read_file\n    id: reader\n    config:\n      path: x\n"
        ),
        @r#"
        pipelines/x.yaml:2:5: step `read_file` has no `run`: a step is a command, not an Oxi
        hint: give it a command, such as `run: "python3 steps/read_file.py"`
        "#
    );
}

#[test]
fn misspelt_keys_of_a_step_are_told() {
    insta::assert_snapshot!(
        Project::pipeline_error("pipeline:\n  - name: a\n    run: b\n    retry_atempts: 2\n"),
        @"
        pipelines/x.yaml:4:5: unknown key `retry_atempts`
        hint: did you mean `retry_attempts`?
        "
    );
    insta::assert_snapshot!(Project::pipeline_error("pipeline:\n  - name: a\n    rum: b\n"), @"
        pipelines/x.yaml:3:5: unknown key `rum`
        hint: did you mean `run`?
        ");
    insta::assert_snapshot!(Project::pipeline_error("steps: []\n"), @"
        pipelines/x.yaml:1:1: unknown key `steps`
        hint: valid here: pipeline, metadata, environment, rules
        ");
    insta::assert_snapshot!(Project::pipeline_error("pipeline: [a]\n"), @"pipelines/x.yaml:1:12: a step is `a`, expected a mapping of keys to values");
}

#[test]
fn ids_are_unique_and_well_formed() {
    insta::assert_snapshot!(
        Project::pipeline_error("pipeline:\n- {name: a, run: x}\n- name: b\n  id: a\n  run: y\n"),
        @"
        pipelines/x.yaml:4:7: step id `a` is already used on line 2
        hint: give one of the two steps an `id:` of its own
        "
    );
    insta::assert_snapshot!(
        Project::pipeline_error("pipeline:\n- {name: extract orders, run: x}\n"),
        @"
        pipelines/x.yaml:2:10: `extract orders` cannot be the id of a step
        hint: an id is 1 to 128 letters, digits, `.`, `_` and `-`, not starting with a dot or a dash; change the name or add an `id:`
        "
    );
    for id in ["-a", ".a", "''", "a/b", "ä", &"x".repeat(129)] {
        Project::pipeline_error(&format!("pipeline: [{{name: n, run: x, id: {id}}}]"));
    }
}

#[test]
fn values_of_a_step_are_checked() {
    let error = |line: &str| {
        Project::pipeline_error(&format!("pipeline:\n- name: a\n  run: b\n  {line}\n"))
    };
    insta::assert_snapshot!(error("timeout_seconds: 0"), @"pipelines/x.yaml:4:20: `timeout_seconds` is `0`, expected a number of seconds above zero");
    insta::assert_snapshot!(error("timeout_seconds: -1.5"), @"pipelines/x.yaml:4:20: `timeout_seconds` is `-1.5`, expected a number of seconds above zero");
    insta::assert_snapshot!(error("retry_attempts: 1.5"), @"pipelines/x.yaml:4:19: `retry_attempts` is `1.5`, expected a whole number, not negative");
    insta::assert_snapshot!(error("retry_attempts: 4294967296"), @"pipelines/x.yaml:4:19: `retry_attempts` is `4294967296`, expected a whole number, not negative");
    insta::assert_snapshot!(error("continue_on_error: maybe"), @"pipelines/x.yaml:4:22: `continue_on_error` is `maybe`, expected `true` or `false`");
    insta::assert_snapshot!(error("environment: {A: }"), @r#"
        pipelines/x.yaml:4:18: `A` is empty, expected a text
        hint: quote it: an empty value is ""
        "#);
    insta::assert_snapshot!(error("environment: {A=B: c}"), @"pipelines/x.yaml:4:17: `A=B` cannot be the name of an environment variable");
    insta::assert_snapshot!(error("environment: {A: '${NONE}'}"), @"
        pipelines/x.yaml:4:20: environment variable `NONE` is not set
        hint: set it, or give a default: `${NONE:-default}`
        ");
}

#[test]
fn an_empty_pipeline_or_command_is_refused() {
    insta::assert_snapshot!(Project::pipeline_error("pipeline: []\n"), @r#"
        pipelines/x.yaml:1:11: the pipeline has no steps
        hint: a pipeline is a list of commands:

        pipeline:
          - name: extract
            run: "python3 steps/extract.py"
        "#);
    assert_eq!(
        Project::pipeline_error("").lines().next(),
        Some("pipelines/x.yaml: the pipeline has no steps")
    );
    for run in ["''", "[]", "['']"] {
        let error = Project::pipeline_error(&format!("pipeline: [{{name: a, run: {run}}}]"));
        assert_eq!(error, "pipelines/x.yaml:1:27: `run` is empty", "{run}");
    }
}

#[test]
fn all_four_places_are_searched_in_order() {
    let project = Project::new("");
    for (path, title) in [
        ("a.yaml", "1"),
        ("a.yml", "2"),
        ("b.yml", "3"),
        ("b/pipeline.yaml", "4"),
        ("c/pipeline.yml", "5"),
    ] {
        let text = format!("pipeline: [{{name: s, run: x}}]\nmetadata: {{name: {title}}}");
        project.write(&format!("pipelines/{path}"), &text);
    }
    project.write("pipelines/notes.txt", "");
    project.write("pipelines/.hidden.yaml", "");
    project.write("pipelines/empty/x", "");
    let titles: Vec<String> = list_pipelines(&project.config())
        .unwrap()
        .into_iter()
        .map(|file| {
            let pipeline = project.pipeline(&file.name).unwrap();
            assert_eq!(pipeline.path, file.path);
            format!("{}={}", file.name, pipeline.metadata.name.unwrap())
        })
        .collect();
    assert_eq!(titles, ["a=1", "b=3", "c=5"]);
}

#[test]
fn a_missing_pipeline_is_answered_with_those_there_are() {
    let project = Project::with_pipeline("orders", "");
    insta::assert_snapshot!(told(&project.pipeline("orders").unwrap_err()).lines().next().unwrap(), @"pipelines/orders.yaml: the pipeline has no steps");
    project.write("pipelines/users.yaml", "");
    insta::assert_snapshot!(told(&project.pipeline("ordres").unwrap_err()), @"
        pipelines: no pipeline `ordres`
        hint: did you mean `orders`? available: orders, users
        ");
    insta::assert_snapshot!(told(&Project::new("").pipeline("orders").unwrap_err()), @"
        pipelines: no pipelines in this folder
        hint: write one in `pipelines/orders.yaml`
        ");
}

#[test]
fn the_default_pipeline_is_the_only_one_or_the_one_called_pipeline() {
    let project = Project::with_pipeline("orders", "");
    assert_eq!(default_pipeline(&project.config()).unwrap(), "orders");
    project.write("pipelines/users.yaml", "");
    insta::assert_snapshot!(told(&default_pipeline(&project.config()).unwrap_err()), @"
        pipelines: several pipelines, and none of them named
        hint: name one of: orders, users
        ");
    project.write("pipelines/pipeline.yaml", "");
    assert_eq!(default_pipeline(&project.config()).unwrap(), "pipeline");
    insta::assert_snapshot!(told(&default_pipeline(&Project::new("").config()).unwrap_err()), @"
        pipelines: no pipelines in this folder
        hint: write one in `pipelines/pipeline.yaml`
        ");
}
