//! A step that is a Singer pair, with a real tap and a real target from PyPI.
//!
//! They are installed once, in virtual environments of their own below the build folder. Where that
//! is not possible the test is skipped and says so; `OXIFLOW_TEST_REQUIRE_ALL` makes that a failure.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod kit;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use kit::{Project, wait_for};
use serde_json::{Value, json};

const TAP: (&str, &str) = ("tap-jsonl", "0.3.1");
const TARGET: (&str, &str) = ("target-jsonl", "0.1.4");

/// Installs a program from PyPI, unless it is there, and returns its path.
fn installed((name, version): (&str, &str)) -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{version}"));
    let program = folder.join("bin").join(name);
    if program.exists() {
        return Ok(program);
    }
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Err(error) => Err(error.to_string()),
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    let package = format!("{name}=={version}");
    run(Command::new(folder.join("bin/pip")).args(["install", "-q", &package]))?;
    Ok(program)
}

/// Both programs, or `None` after saying why the test is skipped.
fn pair() -> Option<(PathBuf, PathBuf)> {
    // Once for all tests, which run at the same time: two installations in one folder spoil each other.
    static PAIR: OnceLock<Result<(PathBuf, PathBuf), String>> = OnceLock::new();
    match PAIR.get_or_init(|| installed(TAP).and_then(|tap| Ok((tap, installed(TARGET)?)))) {
        Ok(pair) => Some(pair.clone()),
        Err(reason) => {
            assert!(std::env::var_os("OXIFLOW_TEST_REQUIRE_ALL").is_none(), "{reason}");
            println!("skipped: cannot install {} and {}: {reason}", TAP.0, TARGET.0);
            None
        }
    }
}

/// A project that copies people from a file with the pair. The tap is wrapped in a script that
/// keeps the state it was given, and stops in the middle while a file `stop` is there.
fn project(tap: &Path, target: &Path, more: &str) -> Project {
    let project = Project::with_pipeline(&format!(
        r#"
pipeline:
  - name: copy
    {more}
    singer:
      tap: ["sh", "tap.sh", "--config", "tap.json"]
      target: ["{}", "--config", "target.json"]
"#,
        target.display()
    ));
    project.write(
        "tap.sh",
        &format!(
            r#"[ "$3" = --state ] && cp "$4" given-state
echo "$@" >> starts
"{}" "$@" | while read -r line; do
  printf '%s\n' "$line"
  case $line in *'"id":4'*) if [ -e stop ]; then touch stopped; sleep 600; fi ;; esac
done
"#,
            tap.display()
        ),
    );
    project.write("tap.json", r#"{"path": "people.jsonl", "stream_name": "people"}"#);
    project.write("target.json", r#"{"destination_path": "out"}"#);
    project.write("out/.keep", "");
    let people: Vec<String> =
        (1..=10).map(|id| json!({"id": id, "name": format!("person {id}")}).to_string()).collect();
    project.write("people.jsonl", &(people.join("\n") + "\n"));
    project
}

/// How many records the target wrote.
fn written(project: &Project) -> usize {
    std::fs::read_dir(project.path().join("out"))
        .expect("a folder")
        .filter_map(|entry| std::fs::read_to_string(entry.expect("an entry").path()).ok())
        .map(|text| text.lines().count())
        .sum()
}

#[test]
fn the_state_that_the_target_emitted_becomes_the_cursor_and_is_passed_back() {
    let Some((tap, target)) = pair() else { return };
    let project = project(&tap, &target, "incremental: true");
    project.run(&["run", "p"]).expect(0);
    assert_eq!(written(&project), 10);
    let state = project.state("p").expect("a state");
    assert_eq!((&state["status"], &state["records_processed"]), (&json!("completed"), &json!(10)));
    let cursor = state["last_processed_id"].as_str().expect("a cursor");
    let emitted: Value = serde_json::from_str(cursor).expect("the cursor is the state");
    assert!(emitted["bookmarks"]["people"].is_object(), "{cursor}");

    assert!(!project.path().join("given-state").exists(), "a first run starts without a state");
    project.run(&["run", "p"]).expect(0);
    let given: Value = serde_json::from_str(&project.read("given-state")).expect("a state");
    assert_eq!(given, emitted);
}

#[test]
fn a_pair_killed_before_the_target_committed_starts_again_without_a_state() {
    let Some((tap, target)) = pair() else { return };
    let project = project(&tap, &target, "");
    project.write("stop", "");
    let run = project.start(&["run", "p"]);
    wait_for("the tap to stop in the middle", || {
        project.path().join("stopped").exists().then_some(())
    });
    run.kill();
    let state = project.state("p").expect("a state");
    assert_eq!((&state["status"], &state["last_processed_id"]), (&json!("running"), &json!("")));

    std::fs::remove_file(project.path().join("stop")).expect("a file");
    project.run(&["run", "p"]).expect(0);
    assert_eq!(project.read("starts").lines().count(), 2);
    assert!(!project.path().join("given-state").exists());
    assert_eq!(project.state("p").expect("a state")["records_processed"], 10);
}

#[test]
fn a_tap_or_a_target_that_fails_fails_the_step_and_is_named() {
    for (tap, target, told) in [
        (r#"["sh", "-c", "exit 3"]"#, r#"["cat"]"#, "the tap ended with exit code 3"),
        (r#"["echo", "{}"]"#, r#"["sh", "-c", "exit 4"]"#, "the target ended with exit code 4"),
        (r#"["no-such-tap"]"#, r#"["cat"]"#, "cannot start the tap `no-such-tap`"),
        (r#"["true"]"#, r#"["no-such-target"]"#, "cannot start the target `no-such-target`"),
    ] {
        let project = Project::with_pipeline(&format!(
            "pipeline: [{{name: copy, singer: {{tap: {tap}, target: {target}}}}}]"
        ));
        let ran = project.run(&["run", "p"]).expect(1);
        assert!(ran.stderr.contains(told), "{}", ran.stderr);
    }
}

#[test]
fn a_pair_that_is_not_whole_is_a_configuration_error() {
    for (singer, told) in [
        ("{tap: [a]}", "`singer` has no `target`"),
        ("{tap: [], target: [b]}", "`singer` has no `tap`"),
        ("{tap: [a], target: [b], traget: [c]}", "did you mean `target`?"),
    ] {
        let project =
            Project::with_pipeline(&format!("pipeline:\n  - name: copy\n    singer: {singer}\n"));
        let ran = project.run(&["run", "p"]).expect(2);
        assert!(ran.stderr.contains(told), "{}", ran.stderr);
    }
    let both = "pipeline: [{name: a, run: x, singer: {tap: [a], target: [b]}}]";
    let ran = Project::with_pipeline(both).run(&["pipeline", "check", "p"]).expect(2);
    assert!(ran.stderr.contains("a step has either `run` or `singer`"), "{}", ran.stderr);
}
