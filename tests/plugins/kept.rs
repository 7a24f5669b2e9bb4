//! What is kept to go back to: the build that was pinned before, whatever happened to the files, and
//! no other. What a command says is kept can be gone back to.

use crate::bench::{Bench, compile, make_folder, text};
use crate::kit::{Project, Ran};

/// Whether the command said that this version is kept.
#[track_caller]
fn says_kept(ran: &Ran, version: Option<&str>) {
    let told = match version {
        Some(version) => ran.stderr.contains(&format!("version {version} is kept")),
        None => !ran.stderr.contains(" is kept"),
    };
    assert!(told, "{}", ran.stderr);
}

/// The version of `tiny` that is found after going back.
#[track_caller]
fn back(bench: &Bench) -> String {
    bench.run(&["plugin", "rollback", "tiny"]).expect(0);
    bench.run(&["plugin", "verify", "tiny"]).expect(0);
    bench.used_version()
}

#[test]
fn the_same_build_with_other_papers_is_no_version_to_go_back_to() {
    let bench = Bench::empty();
    bench.install(&bench.built("1.0", &[])).expect(0);
    let next = bench.built("1.1", &[]);
    says_kept(&bench.install(&next).expect(0), Some("1.0"));
    std::fs::remove_file(next.with_extension("toml")).unwrap();
    says_kept(&bench.install(&next).expect(0), Some("1.0"));
    assert_eq!(back(&bench), "1.0");
    assert_eq!(back(&bench), "1.1");
}

#[test]
fn a_damaged_build_is_replaced_and_not_kept() {
    let bench = Bench::empty();
    bench.install(&bench.built("1.0", &[])).expect(0);
    let next = bench.built("1.1", &[]);
    bench.install(&next).expect(0);
    let installed = bench.library().canonicalize().unwrap();
    let mut bytes = std::fs::read(&installed).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&installed, bytes).unwrap();
    bench.run(&["plugin", "verify", "tiny"]).expect(2);
    says_kept(&bench.install(&next).expect(0), Some("1.0"));
    assert_eq!(back(&bench), "1.0");
}

#[test]
fn a_strangers_library_over_a_pinned_one_is_not_kept_and_the_pinned_one_is() {
    let bench = Bench::empty();
    bench.install(&bench.built("1.0", &[])).expect(0);
    std::fs::remove_file(bench.library()).unwrap();
    let marker = bench.project.path().join("marker");
    compile(&bench.library(), &[&text("MARKER", &marker), "-DVERSION=\"6.6\""]);
    says_kept(&bench.install(&bench.built("1.1", &[])).expect(0), Some("1.0"));
    assert_eq!(back(&bench), "1.0");
    assert!(!marker.exists(), "its constructor ran");
}

#[test]
fn what_is_gone_is_not_said_to_be_kept() {
    let bench = Bench::empty();
    bench.install(&bench.built("1.0", &[])).expect(0);
    std::fs::remove_dir_all(bench.folder().join(".versions")).unwrap();
    says_kept(&bench.install(&bench.built("1.1", &[])).expect(0), None);
    bench.run(&["plugin", "rollback", "tiny"]).expect(1);
    bench.run(&["plugin", "remove", "tiny", "--yes"]).expect(0);
}

#[test]
fn a_build_that_another_project_went_back_from_can_be_had_again() {
    let bench = Bench::empty();
    let other = Project::new("project: {name: other}\nstate: {backend: tiny}\n");
    let in_other = |arguments: &[&str]| {
        let mut command = other.command(arguments);
        Ran::from(command.env("OXIFLOW_PLUGIN_PATH", bench.folder()).output().unwrap()).expect(0)
    };
    let first = bench.built("1.0", &[]);
    bench.install(&first).expect(0);
    in_other(&["plugin", "install", first.to_str().unwrap()]);
    bench.install(&bench.built("1.1", &[])).expect(0);
    in_other(&["plugin", "rollback", "tiny"]);
    let refused = bench.run(&["plugin", "verify", "tiny"]).expect(2);
    assert!(refused.stderr.contains("`oxide_flow plugin rollback tiny`"), "{}", refused.stderr);
    assert_eq!(back(&bench), "1.1");
    assert_eq!(back(&bench), "1.0");
}

#[test]
fn a_build_pinned_for_the_machine_and_a_project_is_changed_first_for_the_machine() {
    let bench = Bench::empty();
    let policy = bench.project.path().join("etc/plugins.toml");
    make_folder(policy.parent().unwrap());
    bench.project.write("etc/plugins.toml", "");
    let run = |arguments: &[&str], code: i32| {
        let mut command = bench.command(arguments);
        Ran::from(command.env("OXIFLOW_PLUGIN_POLICY", &policy).output().unwrap()).expect(code)
    };
    let (first, next) = (bench.built("1.0", &[]), bench.built("1.1", &[]));
    let (first, next) = (first.to_str().unwrap(), next.to_str().unwrap());
    run(&["plugin", "install", first], 0);
    run(&["plugin", "install", first, "--machine"], 0);
    let refused = run(&["plugin", "install", next], 2);
    assert!(
        refused.stderr.contains(&format!("plugin install {next} --machine`")),
        "{}",
        refused.stderr
    );
    let told = run(&["plugin", "install", next, "--machine"], 0);
    let library = bench.library();
    let remedy = format!("`oxide_flow plugin install {}` pins this one", library.display());
    assert!(told.stderr.contains(&remedy), "{}", told.stderr);
    run(&["state", "list"], 2);
    run(&["plugin", "install", library.to_str().unwrap()], 0);
    run(&["state", "list"], 0);
    assert_eq!(bench.used_version(), "1.1");
    // And back again, the machine first.
    let told = run(&["plugin", "rollback", "tiny", "--machine"], 0);
    assert!(told.stderr.contains(&remedy), "{}", told.stderr);
    run(&["plugin", "install", library.to_str().unwrap()], 0);
    run(&["state", "list"], 0);
    assert_eq!(bench.used_version(), "1.0");
}
