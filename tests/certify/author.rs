//! The author's path of `docs/plugin-guide.md`, from an empty folder outside this repository: new,
//! test, build, certify, run.

use std::path::Path;
use std::process::Command;

use insta::assert_snapshot;

use crate::kit::{self, Project, Ran, repository};
use crate::{certify, nowhere};

/// Cargo in a crate, with what it builds kept for the next time and out of the folder that the
/// program looks for plugins in.
fn cargo(crate_folder: &Path, arguments: &[&str]) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(crate_folder).args(arguments).arg("--offline");
    cargo.env("CARGO_TARGET_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("author"));
    let ran = Ran::from(cargo.output().expect("cargo starts"));
    ran.expect(0);
}

#[test]
fn from_an_empty_folder_to_a_run_on_ones_own_backend() {
    let project = nowhere();
    let api = repository().join("plugin-api");
    let made =
        project.run(&["plugin", "new", "redisish", "--api-path", api.to_str().expect("text")]);
    assert_snapshot!(made.story(&project), @r"
    exit 0
    --- stderr
    made redisish/Cargo.toml
    made redisish/src/lib.rs
    made redisish/tests/contract.rs
    made redisish/README.md
    made redisish/.gitignore
    next: `cd redisish && cargo test`
    ");
    let source = project.read("redisish/src/lib.rs");
    let is_code = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with("//");
    assert!(source.lines().filter(is_code).count() < 100);
    let all = ["Cargo.toml", "src/lib.rs", "tests/contract.rs", "README.md"];
    let all = all.map(|file| project.read(&format!("redisish/{file}"))).concat();
    assert!(!all.contains("template") && !all.contains("fixture"), "{all}");

    // The versions that are on this machine.
    let crate_folder = project.path().join("redisish");
    std::fs::copy(repository().join("Cargo.lock"), crate_folder.join("Cargo.lock"))
        .expect("copied");
    cargo(&crate_folder, &["test"]);
    cargo(&crate_folder, &["build"]);
    let plugins = project.path().join("plugins");
    std::fs::create_dir(&plugins).expect("a folder");
    let library = plugins.join("liboxiflow_backend_redisish.so");
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("author/debug");
    std::fs::copy(built.join("liboxiflow_backend_redisish.so"), &library).expect("copied");

    let certified = certify(&library, &["--quick", "--seed", "7"]).expect(0);
    let line = certified.stdout.lines().last().unwrap_or_default();
    assert!(line.starts_with("passed: redisish 0.1.0, ABI 1.1, "), "{line}");

    let user = Project::new("project: {name: test}\nstate: {backend: redisish}\n");
    user.write("pipelines/p.yaml", "pipeline: [{name: greet, run: \"echo hello\"}]\n");
    let mut run = user.command(["run", "p"]);
    run.env("OXIFLOW_PLUGIN_PATH", &plugins);
    let ran = Ran::from(run.output().expect("the program starts")).expect(0);
    assert!(ran.stdout.contains("hello"), "{}", ran.stdout);
}

#[test]
fn a_name_that_cannot_be_used_and_a_folder_that_is_there_are_refused() {
    let project = nowhere();
    let long = "n".repeat(41);
    for name in ["Shelf", "../shelf", "my-shelf", "1st", "", "file", &long] {
        let ran = project.run(&["plugin", "new", name]).expect(2);
        assert!(ran.stderr.contains("cannot be the name of a new backend"), "{}", ran.stderr);
    }
    project.write("shelf/mine", "");
    let ran = project.run(&["plugin", "new", "shelf"]);
    assert_snapshot!(ran.story(&project), @r"
    exit 2
    --- stderr
    error: shelf exists already; nothing was changed
    hint: name another folder with `--directory DIR`
    ");
    let ran = project.run(&["plugin", "new", "shelf", "-d", "other", "--api-path", "shelf"]);
    assert_snapshot!(ran.story(&project), @r"
    exit 2
    --- stderr
    error: shelf is not the package `oxiflow-plugin-api`
    hint: give the folder `plugin-api` of the sources of oxide_flow
    ");
    assert_eq!(kit::contents(project.path()).len(), 2);
}

#[test]
fn without_a_path_the_sdk_comes_from_the_registry_and_that_is_said() {
    let project = nowhere();
    let ran = project.run(&["plugin", "new", "shelf", "-d", "made/here"]).expect(0);
    assert!(ran.stderr.contains("--api-path"), "{}", ran.stderr);
    let manifest = project.read("made/here/Cargo.toml");
    assert!(manifest.contains("oxiflow-plugin-api = { version = \"0.1.0\" }"), "{manifest}");
}
