//! The rules that a pipeline's file has for its states.

mod kit;

use insta::assert_snapshot;
use serde_json::Value;

use kit::Project;

const STEPS: &str = r#"pipeline:
- name: a
  run: 'echo "{\"records\": 3, \"last_id\": \"c\"}" >/dev/fd/$OXIFLOW_PROGRESS_FD'
"#;

const SCHEMA: &str = r#"{
  "type": "object",
  "properties": {"records_processed": {"type": "integer", "minimum": MINIMUM}}
}"#;

/// A project whose pipeline has run, with these rules since then.
fn project(rules: &str) -> Project {
    let project = Project::with_pipeline(STEPS);
    project.run(&["run", "p"]).expect(0);
    project.write("pipelines/p.yaml", &format!("{STEPS}rules:\n{rules}"));
    for (file, minimum) in [("three", "3"), ("many", "1000")] {
        project.write(&format!("rules/{file}.json"), &SCHEMA.replace("MINIMUM", minimum));
    }
    project.write("rules/bad.json", "{\"type\": 7}");
    project
}

fn validated(rules: &str) -> String {
    let project = project(rules);
    project.run(&["state", "validate", "p"]).story(&project)
}

#[test]
fn a_state_that_fulfils_all_rules_is_valid() {
    let rules = "- {name: three, schema: rules/three.json}
- {name: python, run: [python3, -c, 'import json,sys; sys.exit(json.load(sys.stdin)[\"records_processed\"] != 3)']}
- {name: where, run: 'test $OXIFLOW_PIPELINE = p && test -f oxiflow.yaml'}
";
    assert_snapshot!(validated(rules), @r"
    exit 0
    --- stdout
    p: valid
    ");
}

#[test]
fn a_schema_says_which_field_is_wrong() {
    assert_snapshot!(validated("- {name: many, schema: rules/many.json}\n"), @r"
    exit 3
    --- stdout
    p: not valid, 1 error
      error many
        field  records_processed
        found  3
        expected  what the schema asks for, but value is less than the minimum of 1000
        repair  a person must decide
    ");
}

#[test]
fn a_command_says_what_is_wrong_in_its_own_words_or_by_field() {
    let rules = r#"- name: said
  run: 'echo the warehouse has 4; exit 1'
- name: fields
  run: 'echo "{\"field\": \"records_processed\", \"found\": 3, \"expected\": 4}"; exit 1'
- name: mute
  severity: warning
  run: exit 1
"#;
    assert_snapshot!(validated(rules), @r"
    exit 3
    --- stdout
    p: not valid, 2 errors and 1 warning
      error said
        found  the warehouse has 4
        repair  a person must decide
      error fields
        field  records_processed
        found  3
        expected  4
        repair  a person must decide
      warning mute
        found  the command objects and does not say why
        repair  a person must decide
    ");
}

#[test]
fn a_broken_rule_that_only_warns_leaves_the_state_valid() {
    let project = project("- {name: many, severity: warning, schema: rules/many.json}\n");
    let ran = project.run(&["state", "validate", "p", "--json"]).expect(0);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    let row = &document["data"][0];
    assert_eq!(
        (row["valid"].as_bool(), row["warnings"].as_u64()),
        (Some(true), Some(1)),
        "{row:#}"
    );
    assert_eq!(row["findings"][0]["rule"], "many", "{row:#}");
    assert_eq!(row["findings"][0]["field"], "records_processed", "{row:#}");
}

#[test]
fn a_rule_that_cannot_be_tried_is_an_error_and_never_fulfilled() {
    for rule in [
        "- {name: r, schema: rules/none.json}\n",
        "- {name: r, schema: rules/bad.json, severity: warning}\n",
        "- {name: r, run: 'echo sorry >&2; exit 3'}\n",
        "- {name: r, run: [no-such-program]}\n",
        "- {name: r, run: 'kill -9 $$'}\n",
    ] {
        let project = project(rule);
        let ran = project.run(&["state", "validate", "p"]);
        assert_eq!(ran.code, 2, "{rule}: {}", ran.stderr);
        assert!(ran.stderr.contains("the rule `r` of `p` cannot be tried"), "{}", ran.stderr);
        let exported = project.path().join("out.json");
        project.run(&["state", "export", "p", "-o", exported.to_str().unwrap()]).expect(0);
        let before = project.state("p").unwrap();
        project.run(&["state", "import", "p", "--file", "out.json", "--yes"]).expect(2);
        assert_eq!(project.state("p").unwrap(), before);
    }
}

#[test]
fn a_command_that_hangs_is_ended_with_all_that_it_started() {
    let project = project(
        "- {name: slow, timeout_seconds: 6, run: 'sleep 4711 & echo $! > pid; sleep 4711'}\n",
    );
    let ran = project.run(&["state", "validate", "p"]);
    assert_snapshot!(ran.story(&project), @r"
    exit 2
    --- stderr
    error: the rule `slow` of `p` cannot be tried
      caused by: its command took longer than 6s
    hint: make it faster, or give it more `timeout_seconds`
    ");
    let pid = project.read("pid");
    kit::wait_for("the sleeper to be gone", || {
        let alive = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        alive.map_or(true, |stat| stat.contains(") Z ")).then_some(())
    });
}

#[test]
fn a_command_that_answers_and_leaves_something_running_is_not_waited_for() {
    let project = project("- {name: left, run: 'sleep 4711 & exit 0'}\n");
    project.run(&["state", "validate", "p"]).expect(0);
}

#[test]
fn an_import_that_breaks_a_rule_changes_nothing_unless_it_is_wanted() {
    let project = project("- {name: many, schema: rules/many.json}\n");
    let file = project.path().join("out.json");
    project.run(&["state", "export", "p", "-o", file.to_str().unwrap()]).expect(0);
    let before = project.state("p").unwrap();
    let import = ["state", "import", "p", "--file", "out.json", "--yes"];
    assert_snapshot!(project.run(&import).story(&project), @r"
    exit 3
    --- stderr
    this replaces the state of `p`: completed, 3 records, saved TIME (AGO)
      error many
        field  records_processed
        found  3
        expected  what the schema asks for, but value is less than the minimum of 1000
        repair  a person must decide
    error: the document breaks the rule `many` of `p`
    hint: nothing was changed; mend it, or import it all the same with `--ignore-rules`
    ");
    assert_eq!(project.state("p").unwrap(), before);
    let wanted = project.run(&[&import[..], &["--ignore-rules"]].concat()).expect(0);
    assert!(wanted.stderr.contains("error many"), "{}", wanted.stderr);
    assert_ne!(project.state("p").unwrap()["version"], before["version"]);
}

#[test]
fn mistakes_in_rules_are_told_with_their_place() {
    let mut told = String::new();
    for rules in [
        "  name: r\n",
        "- {run: 'true'}\n",
        "- {name: r}\n",
        "- {name: r, run: 'true', schema: x.json}\n",
        "- {name: 'a b', run: 'true'}\n",
        "- {name: r, run: 'true', severity: fatal}\n",
        "- {name: r, schema: x.json, timeout_seconds: 3}\n",
        "- {name: r, shcema: x.json}\n",
        "- {name: r, run: 'true'}\n- {name: r, run: 'true'}\n",
    ] {
        let project = project(rules);
        let ran = project.run(&["pipeline", "check", "p"]);
        assert_eq!(ran.code, 2, "{rules}");
        told.push_str(ran.stderr.lines().nth(1).unwrap_or(&ran.stderr));
        told.push('\n');
    }
    assert_snapshot!(told, @r"
    caused by: pipelines/p.yaml:5:3: `rules` is a mapping, expected a list
    caused by: pipelines/p.yaml:5:3: a rule without a `name`
    caused by: pipelines/p.yaml:5:10: rule `r` must have either a `schema` or a `run`
    caused by: pipelines/p.yaml:5:10: rule `r` must have either a `schema` or a `run`
    caused by: pipelines/p.yaml:5:10: `a b` cannot be the name of a rule
    caused by: pipelines/p.yaml:5:36: `severity` of rule `r` is neither `error` nor `warning`
    caused by: pipelines/p.yaml:5:10: rule `r` has a `timeout_seconds` and no `run`
    caused by: pipelines/p.yaml:5:13: unknown key `shcema`
    caused by: pipelines/p.yaml:6:3: there are two rules `r`
    ");
}

#[test]
fn a_state_that_breaks_a_rule_is_not_called_valid_by_a_repair() {
    let project = project("- {name: many, schema: rules/many.json}\n");
    let ran = project.run(&["state", "repair", "p", "--yes"]);
    assert_snapshot!(ran.story(&project), @"
    exit 3
    --- stderr
    error: cannot repair the state of `p`: it breaks the rule `many` of its file, and only a person knows what it should say
    hint: see what is wrong with `oxide_flow state validate p`; to change it, export it, edit it and import it again
    ");
}
