//! `docs/deploy`: that what is shown there is valid, and what it relies on holds.
//!
//! The manifests are read by the validators of those they are for, and by the program itself:
//! every configuration in them is loaded, every command line parsed.

#![expect(clippy::expect_used, reason = "a test that cannot be set up fails")]

mod kit;

#[path = "deploy/containers.rs"]
mod containers;
#[path = "deploy/manifests.rs"]
mod manifests;
#[path = "deploy/names.rs"]
mod names;
#[path = "deploy/schedulers.rs"]
mod schedulers;
#[path = "deploy/units.rs"]
mod units;

use std::path::PathBuf;
use std::process::Command;

use kit::{PROGRAM, Ran};

/// A file or folder of `docs/deploy`.
fn deploy(path: &str) -> PathBuf {
    kit::repository().join("docs/deploy").join(path)
}

/// The files of a folder of `docs/deploy` whose names end like this.
fn files(folder: &str, end: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(deploy(folder)).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut files: Vec<_> =
        paths.filter(|path| path.display().to_string().ends_with(end)).collect();
    files.sort();
    assert!(!files.is_empty(), "{folder} has no {end}");
    files
}

/// Runs a tool to its end.
fn ran(command: &mut Command) -> Ran {
    let output = command.output();
    Ran::from(output.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")))
}

/// Fails unless the program takes these arguments. Help is printed only when everything before it
/// is right.
#[track_caller]
fn expect_taken(arguments: &[&str]) {
    ran(Command::new(PROGRAM).args(arguments).arg("--help")).expect(0);
}

#[test]
fn arguments_that_do_not_exist_are_not_taken() {
    for wrong in [
        &["run", "orders", "--no-such"][..],
        &["run", "orders", "--wait", "5"],
        &["no-such-command"],
        &["serve", "too-much"],
    ] {
        ran(Command::new(PROGRAM).args(wrong).arg("--help")).expect(2);
    }
}

#[test]
fn the_image_has_the_program_and_the_plugins_where_they_are_looked_for() {
    let text = std::fs::read_to_string(deploy("Dockerfile")).expect("a file");
    let has = |line: &str| assert!(text.contains(line), "no `{line}`");
    has("COPY --from=build /source/target/release/oxide_flow /usr/local/bin/\n");
    has("/source/target/release/liboxiflow_backend_*.so /usr/local/lib/oxiflow/backends/\n");
    // The same places, in a folder.
    let root = tempfile::TempDir::with_prefix("oxiflow-image-").expect("a folder");
    let (programs, plugins) = (root.path().join("bin"), root.path().join("lib/oxiflow/backends"));
    std::fs::create_dir_all(&programs).expect("a folder");
    std::fs::create_dir_all(&plugins).expect("a folder");
    // By another process: a file that this one has written cannot be executed while any program that
    // another test is just starting has it open.
    ran(Command::new("cp").arg(PROGRAM).arg(programs.join("oxide_flow"))).expect(0);
    for name in kit::PLUGINS {
        let library = kit::plugin_library(name);
        let file = library.file_name().expect("a name");
        std::fs::copy(&library, plugins.join(file)).expect("a copy");
    }
    let project = kit::Project::with_pipeline("pipeline: [{name: a, run: 'true'}]");
    let mut command = Command::new(programs.join("oxide_flow"));
    command.current_dir(project.path()).env_clear();
    let listed = ran(command.args(["plugin", "list"])).expect(0);
    for name in kit::PLUGINS {
        let file = plugins.join(format!("liboxiflow_backend_{name}.so"));
        assert!(listed.stdout.contains(&file.display().to_string()), "{}", listed.stdout);
    }
}
