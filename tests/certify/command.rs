//! The command itself: its options, what it prints, what it leaves behind.

use insta::assert_snapshot;
use regex::Regex;

use crate::kit::{self, Project, Ran, hide_changing, plugin_library};
use crate::{certificate, certify, nowhere};

/// What was printed, without what changes from run to run.
fn story(ran: &Ran) -> String {
    let text = hide_changing(&ran.transcript(&[]));
    let hide = [(r"\(\d+ ms\)", "(N ms)"), (r"sha256 [0-9a-f]{64}", "sha256 HASH")];
    hide.iter().fold(text, |text, (pattern, shown)| {
        Regex::new(pattern).expect("a pattern").replace_all(&text, *shown).into_owned()
    })
}

#[test]
fn each_test_is_told_and_a_line_to_show_to_others_ends_it() {
    let arguments = ["--only", "C5", "--only", "16 MiB comes", "--seed", "7"];
    let ran = certify(&plugin_library("memory"), &arguments);
    assert_snapshot!(story(&ran), @r"
    exit 0
    --- stdout
    pass C5 puts, deletes and re-creates of a key never reuse a version (N ms)
    pass C5 a version from before delete and re-create conflicts (N ms)
    skip C5 versions are not reused after reopening: the backend is not durable
    pass C9 a value of 16 MiB comes back as it was put (N ms)
    passed: memory 0.1.0, ABI 1.1, 3 passed, 1 skipped, suite 1, only C5, 16 MiB comes, seed 7, sha256 HASH
    ");
}

#[test]
fn what_is_left_out_is_said_and_an_unknown_selection_is_wrong_use() {
    let ran = certify(&plugin_library("memory"), &["--only", "C16"]);
    assert_snapshot!(story(&ran), @r"
    exit 2
    --- stderr
    error: no test is of `C16`
    hint: give a clause, `C1` to `C15`, or a part of the name of a test
    ");
    let ran = certify(&plugin_library("memory"), &["--option", "url"]).expect(2);
    assert!(ran.stderr.contains("write it as NAME=VALUE"), "{}", ran.stderr);
}

#[test]
fn an_option_that_is_needed_is_told_with_its_meaning() {
    let ran = certify(&plugin_library("http"), &[]);
    assert_snapshot!(story(&ran), @r"
    exit 2
    --- stderr
    error: the `http` backend needs options to open a store: `url` (where the server is, such as https://state.example.com:7311)
    hint: add `--option url=VALUE`, or take them from a project with `--config oxiflow.yaml`
    ");
}

#[test]
fn an_option_that_does_not_fit_is_told_without_its_value() {
    let ran = certify(&plugin_library("memory"), &["--option", "max_value_byte=hunter2"]);
    assert_snapshot!(story(&ran), @r"
    exit 2
    --- stderr
    error: option `max_value_byte`: the backend has no such option
    hint: did you mean `max_value_bytes`?
    ");
    let ran = certify(&plugin_library("memory"), &["--option", "max_value_bytes=hunter2"]);
    assert_snapshot!(story(&ran), @r#"
    exit 2
    --- stderr
    error: option `max_value_bytes`: value is not of type "integer"
    hint: largest value taken, in bytes (default 67108864)
    "#);
}

#[test]
fn the_options_can_be_those_of_a_project() {
    let project = Project::new(kit::QUICK);
    project.write(
        "memory.yaml",
        "state: {backend: memory, backend_config: {max_value_bytes: 16777216}}\n",
    );
    let library = plugin_library("memory");
    let run = |config: &str| {
        let library = library.to_str().expect("text");
        let only = ["--only", "over the backend", "--config", config];
        project.run(&[&["plugin", "certify", library], &only[..]].concat())
    };
    // The limit of the file is the one that is met.
    let ran = run("memory.yaml").expect(0);
    assert!(ran.stdout.contains("1 passed, 0 skipped"), "{}", ran.stdout);
    let ran = run("oxiflow.yaml").expect(2);
    assert!(ran.stderr.contains("is for the backend `file`"), "{}", ran.stderr);
}

#[test]
fn a_seed_repeats_a_run_and_nothing_is_left_behind() {
    let temporary = nowhere();
    let run = || {
        let library = plugin_library("file");
        let mut command = temporary.command(["plugin", "certify", "--quick", "--json"]);
        command.args(["--only", "C5", "--seed", "11"]).arg(library);
        command.env("TMPDIR", temporary.path());
        Ran::from(command.output().expect("the program starts")).expect(0).stdout
    };
    let (first, second) = (run(), run());
    let without_times = |text: &str| {
        Regex::new(r#""milliseconds": \d+"#).expect("a pattern").replace_all(text, "").into_owned()
    };
    assert_eq!(without_times(&first), without_times(&second));
    assert_eq!(kit::contents(temporary.path()), Default::default());
    let (certificate, _) = certificate(&plugin_library("file"), &["--only", "C12", "--quick"]);
    let checksum = certificate["sha256"].as_str().map(str::len);
    assert_eq!(checksum, Some(64));
}
