//! Steps that are a Singer tap and target: states become cursors, and resume hands them back.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod kit;

use kit::{Project, wait_for};
use serde_json::json;

/// Emits the numbers up to 6, or 7 with the file `odd`, a state after every second one; starts after the state it is given.
const TAP: &str = r#"
import json, os, sys, time
last = 0
if "--state" in sys.argv:
    path = sys.argv[sys.argv.index("--state") + 1]
    with open(path) as file:
        last = json.load(file)["bookmarks"]["n"]
    with open("given", "a") as file:
        file.write(f"{last}\n")
def emit(**message):
    print(json.dumps(message), flush=True)
emit(type="SCHEMA", stream="s", schema={}, key_properties=[])
for n in range(last + 1, 8 if os.path.exists("odd") else 7):
    emit(type="RECORD", stream="s", record={"n": n})
    if n % 2 == 0:
        emit(type="STATE", value={"bookmarks": {"n": n}})
    if n == 5 and os.path.exists("break-tap"):
        sys.exit(7)
    while n == 5 and os.path.exists("hang-tap"):
        time.sleep(0.01)
"#;

/// Stores what it reads at each state, and then emits the state.
const TARGET: &str = r#"
import json, os, sys
stored = []
for line in sys.stdin:
    message = json.loads(line)
    if message["type"] == "RECORD":
        if message["record"]["n"] == 5 and os.path.exists("break-target"):
            sys.exit(9)
        stored.append(message["record"]["n"])
    if message["type"] == "STATE":
        with open("stored", "a") as file:
            file.writelines(f"{n}\n" for n in stored)
        stored = []
        print(json.dumps(message["value"]), flush=True)
print("all read", flush=True)
with open("stored", "a") as file:
    file.writelines(f"{n}\n" for n in stored)
"#;

fn project() -> Project {
    let project = Project::steady(
        "pipeline: [{name: copy, singer: {tap: [python3, tap.py], target: [python3, target.py]}}]\n",
    );
    project.write("tap.py", TAP);
    project.write("target.py", TARGET);
    project
}

fn cursor_and_records(project: &Project) -> (String, u64) {
    let state = project.state("p").unwrap();
    let step = &state["step_states"]["copy"];
    let cursor = step["last_processed_id"].as_str().unwrap().to_owned();
    (cursor, step["records_processed"].as_u64().unwrap())
}

#[test]
fn a_pair_that_ends_well_is_a_completed_step_with_its_last_state() {
    let project = project();
    let ran = project.run(&["run", "p"]).expect(0);
    assert_eq!(ran.stdout, "copy | all read\n");
    assert_eq!(cursor_and_records(&project), (r#"{"bookmarks":{"n":6}}"#.to_owned(), 6));
    assert_eq!(project.read("stored"), "1\n2\n3\n4\n5\n6\n");
    assert!(!project.path().join("given").exists(), "the first run has no state to give");
}

#[test]
fn records_after_the_last_state_are_counted_when_both_end_well() {
    let project = project();
    project.write("odd", "");
    project.run(&["run", "p"]).expect(0);
    assert_eq!(cursor_and_records(&project), (r#"{"bookmarks":{"n":6}}"#.to_owned(), 7));
    assert_eq!(project.read("stored"), "1\n2\n3\n4\n5\n6\n7\n");
}

#[test]
fn after_a_failure_of_either_the_tap_is_given_the_last_state_of_the_target() {
    for (broken, code) in [("break-tap", 7), ("break-target", 9)] {
        let project = project();
        project.write(broken, "");
        let ran = project.run(&["run", "p"]).expect(1);
        assert!(ran.stderr.contains(&format!("exit code {code}")), "{broken}: {}", ran.stderr);
        // Record 5 was passed on, and no state says that it is stored.
        assert_eq!(cursor_and_records(&project), (r#"{"bookmarks":{"n":4}}"#.to_owned(), 4));
        std::fs::remove_file(project.path().join(broken)).unwrap();
        project.write("stored", "");
        project.run(&["run", "p"]).expect(0);
        assert_eq!(project.read("given"), "4\n", "{broken}");
        assert_eq!(project.read("stored"), "5\n6\n", "{broken}");
        assert_eq!(cursor_and_records(&project), (r#"{"bookmarks":{"n":6}}"#.to_owned(), 6));
    }
}

#[test]
fn a_pair_that_is_stopped_or_killed_goes_on_from_its_checkpoint() {
    for signal in ["-TERM", "-KILL"] {
        let project = project();
        project.write("hang-tap", "");
        let running = project.start_captured(&["run", "p"]);
        wait_for("the second state to be a checkpoint", || {
            let state = project.state("p")?;
            (state["last_processed_id"] == json!(r#"{"bookmarks":{"n":4}}"#)).then_some(())
        });
        running.signal(signal);
        running.finish();
        std::fs::remove_file(project.path().join("hang-tap")).unwrap();
        project.run(&["run", "p"]).expect(0);
        assert_eq!(project.read("given"), "4\n", "{signal}");
        assert_eq!(cursor_and_records(&project), (r#"{"bookmarks":{"n":6}}"#.to_owned(), 6));
    }
}

#[test]
fn a_target_that_does_not_read_everything_has_not_ended_well() {
    let project =
        Project::steady("pipeline: [{name: copy, singer: {tap: [yes, '{}'], target: ['true']}}]\n");
    let ran = project.run(&["run", "p"]).expect(1);
    assert!(ran.stderr.contains("did not read everything"), "{}", ran.stderr);
    let project =
        Project::steady("pipeline: [{name: copy, singer: {tap: [no-such-tap], target: [cat]}}]\n");
    let ran = project.run(&["run", "p"]).expect(1);
    assert!(ran.stderr.contains("cannot start the tap `no-such-tap`"), "{}", ran.stderr);
    let ran = project.run(&["pipeline", "check"]);
    assert!(ran.stderr.contains("there is no program `no-such-tap`"), "{}", ran.stderr);
}

#[test]
fn a_pair_that_is_none_is_refused_with_its_place() {
    let project = Project::steady("");
    for (step, message) in [
        ("singer: {tap: [a]}", "p.yaml:1:33: `singer` has no `target`"),
        ("singer: {tap: [a], target: []}", "p.yaml:1:52: `target` is empty"),
        (
            "singer: {tap: a, target: [b]}",
            "p.yaml:1:39: `tap` is `a`, expected a list of arguments",
        ),
        ("singer: {tap: [a], target: [b], tapp: c}", "unknown key `tapp`"),
        ("singer: {tap: [a], target: [b]}, run: x", "either `run` or `singer`, not both"),
    ] {
        project.write("pipelines/p.yaml", &format!("pipeline: [{{name: copy, {step}}}]\n"));
        let ran = project.run(&["run", "p"]).expect(2);
        assert!(ran.stderr.contains(message), "{step}: {}", ran.stderr);
    }
}
