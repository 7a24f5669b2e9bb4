//! Where plugins are looked for, which one is used, and what `plugin list` says of them.

use insta::assert_snapshot;
use serde_json::Value;

use crate::bench::{Bench, compile, make_folder, set_mode, text};
use crate::kit::{Ran, plugin_folder};

/// The rows of `plugin list --json`, which is one document.
fn listed(ran: &Ran) -> Vec<Value> {
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(document["kind"], "oxide_flow.plugin-list/1");
    document["data"].as_array().unwrap().clone()
}

#[test]
fn the_projects_folders_come_first_then_the_environments_then_the_programs() {
    let ours = plugin_folder();
    let bench = Bench::of("file", "");
    let configured = bench.project.path().join("configured");
    let more = format!("plugins: {{path: [\"{}\"]}}\n", configured.display());
    bench.project.write("oxiflow.yaml", &(bench.project.read("oxiflow.yaml") + &more));
    make_folder(&configured);
    let name = "liboxiflow_backend_file.so";
    let files = [configured.join(name), bench.library_of("file"), ours.join(name)];
    for (file, version) in files.iter().zip(["1.configured", "1.environment"]) {
        compile(file, &["-DNAME=\"file\"", &text("VERSION", version)]);
    }
    let rows = || {
        let rows = listed(&bench.run(&["plugin", "list", "--json"]).expect(0));
        let rows = rows.iter().filter(|row| row["backend"] == "file");
        rows.map(|row| {
            let version = row["plugin"]["version"].as_str().unwrap();
            (
                row["file"].clone(),
                row["status"].clone(),
                version.to_owned(),
                row["shadowed_by"].clone(),
            )
        })
        .collect::<Vec<_>>()
    };
    let row = |index: usize, status: &str, version: &str, shadowed_by: Option<usize>| {
        (
            Value::from(files[index].to_str()),
            Value::from(status),
            version.to_owned(),
            shadowed_by.map_or(Value::Null, |by| files[by].to_str().into()),
        )
    };
    let real = env!("CARGO_PKG_VERSION");
    assert_eq!(
        rows(),
        [
            row(0, "in use", "1.configured", None),
            row(1, "shadowed", "1.environment", Some(0)),
            row(2, "shadowed", real, Some(0)),
        ]
    );
    std::fs::remove_file(&files[0]).unwrap();
    assert_eq!(
        rows(),
        [row(1, "in use", "1.environment", None), row(2, "shadowed", real, Some(1)),]
    );
    // What the list says is in use is what is used.
    assert!(bench.run(&["state", "list"]).expect(0).stderr.contains("inside one process"));
    std::fs::remove_file(&files[1]).unwrap();
    assert_eq!(rows(), [row(2, "in use", real, None)]);
    assert!(!bench.run(&["state", "list"]).expect(0).stderr.contains("inside one process"));
}

#[test]
fn the_list_shows_which_file_is_used_and_which_are_shadowed() {
    let bench = Bench::of("file", "");
    compile(&bench.library_of("file"), &["-DNAME=\"file\""]);
    let ran = bench.run(&["plugin", "list"]).expect(0);
    let ours = plugin_folder().to_str().unwrap();
    let shown = bench.hide(&ran.stdout).replace(ours, "[program]");
    let digests = regex::Regex::new("[0-9a-f]{12}").unwrap();
    let shown = digests.replace_all(&shown, "[digest]");
    // How wide the columns are depends on what else was built beside the program.
    let rows = shown.lines().filter(|line| !line.contains("/") || line.starts_with("file "));
    let rows = rows.map(|row| row.split_whitespace().collect::<Vec<_>>().join(" "));
    assert_snapshot!(rows.collect::<Vec<_>>().join("\n"), @r#"
    BACKEND STATUS VERSION ABI DIGEST TRUST PROMISES FILE
    file in use 1.0 1.1 [digest] unpinned - [project]/plugins/liboxiflow_backend_file.so
    file shadowed 0.1.0 1.1 [digest] unpinned durable, multi_process [program]/liboxiflow_backend_file.so
    "#);
    // And why the other lost.
    let told = bench.hide(&ran.stderr).replace(ours, "[program]");
    let told = told.lines().find(|line| line.contains("_file.so"));
    assert_snapshot!(told.unwrap(), @"note: [program]/liboxiflow_backend_file.so (beside the program) is not used: [project]/plugins/liboxiflow_backend_file.so is found before it");
}

#[test]
fn a_plugin_in_the_working_directory_is_never_found() {
    let bench = Bench::of("here", "");
    let marker = bench.project.path().join("marker");
    let file = bench.project.path().join("liboxiflow_backend_here.so");
    compile(&file, &["-DNAME=\"here\"", &text("MARKER", &marker)]);
    let ran = bench.run(&["state", "list"]).expect(2);
    assert!(ran.stderr.contains("no plugin for the backend `here`"), "{}", ran.stderr);
    let rows = listed(&bench.run(&["plugin", "list", "--json"]).expect(0));
    assert!(rows.iter().all(|row| row["backend"] != "here"));
    assert!(!marker.exists());
    // It is a good plugin: it lies in the wrong place.
    std::fs::rename(&file, bench.library_of("here")).unwrap();
    bench.run(&["state", "list"]).expect(0);
    assert!(marker.exists());
}

#[test]
fn a_relative_folder_in_the_environment_is_refused() {
    let bench = Bench::with_c(&[]);
    let mut told = Vec::new();
    for folders in ["plugins", "/usr/lib:./plugins", "."] {
        for arguments in [["state", "list"], ["plugin", "list"]] {
            let mut command = bench.project.command(arguments);
            command.env("OXIFLOW_PLUGIN_PATH", folders);
            let ran = Ran::from(command.output().unwrap()).expect(2);
            assert_eq!(ran.stdout, "");
            let folder = folders.rsplit(':').next().unwrap();
            told.push(ran.stderr.replace(&format!("`{folder}`"), "`[folder]`"));
        }
    }
    told.dedup();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_snapshot!(told[0], @r#"
    error: OXIFLOW_PLUGIN_PATH has the relative folder `[folder]`
    hint: use absolute folders: plugins are never loaded from where you happen to be
    "#);
}

#[test]
fn a_backend_that_is_missing_is_told_with_the_folders_searched_and_the_nearest_name() {
    let bench = Bench::of("flie", "");
    let ran = bench.run(&["state", "list"]).expect(2);
    let ours = plugin_folder();
    let shown = bench
        .hide(&ran.stderr)
        .replace(ours.to_str().unwrap(), "[program]")
        .replace(ours.parent().unwrap().to_str().unwrap(), "[above]");
    assert_snapshot!(shown, @r#"
    error: no plugin for the backend `flie`: no folder has liboxiflow_backend_flie.so
    hint: did you mean `file`? Searched: [project]/plugins, [program], [above]/lib/oxiflow/backends, /usr/local/lib/oxiflow/backends, /usr/lib/oxiflow/backends
    "#);
}

#[test]
fn a_backend_may_be_named_instead_of_its_file() {
    let bench = Bench::of("tiny", "");
    compile(&bench.library_of("tiny"), &[]);
    let inspected = bench.run(&["plugin", "inspect", "tiny", "--json"]).expect(0);
    let document: Value = serde_json::from_str(&inspected.stdout).unwrap();
    assert_eq!(document["data"]["file"], bench.library_of("tiny").to_str().unwrap());
    bench.run(&["plugin", "certify", "tiny", "--quick", "--only", "C8"]).expect(0);
    for command in ["inspect", "certify"] {
        let ran = bench.run(&["plugin", command, "tinny"]).expect(2);
        assert!(ran.stderr.contains("no plugin for the backend `tinny`"), "{}", ran.stderr);
        assert!(ran.stderr.contains("`tiny`"), "{}", ran.stderr);
    }
    // A file is a file, whatever it is called.
    std::fs::copy(bench.library_of("tiny"), bench.project.path().join("tinny")).unwrap();
    bench.run(&["plugin", "inspect", "tinny"]).expect(0);
}

#[test]
fn a_backend_whose_name_is_a_path_is_no_name() {
    let bench = Bench::of("../tiny", "");
    let ran = bench.run(&["state", "list"]).expect(2);
    assert_snapshot!(bench.hide(&ran.stderr), @r#"
    error: `../tiny` is no backend name
    hint: `state.backend` is a name such as `file`: letters, digits, `_` and `-`
    "#);
}

#[test]
fn the_list_has_the_refused_and_the_crashing_with_the_reason_in_one_document() {
    let bench = Bench::with_c(&[]);
    compile(&bench.library_of("crashing"), &["-DAT_LOAD=abort()"]);
    compile(&bench.library_of("quitting"), &["-DAT_LOAD=_exit(0)"]);
    compile(&bench.library_of("newer"), &["-DMAJOR=2"]);
    compile(&bench.library_of("misnamed"), &[]);
    std::fs::write(bench.library_of("open"), "text").unwrap();
    set_mode(&bench.library_of("open"), 0o666);
    let ran = bench.run(&["plugin", "list", "--json"]).expect(0);
    assert_eq!(ran.stderr, "");
    let rows = listed(&ran);
    let expected = [
        ("crashing", "refused", "crashed the process that loaded it"),
        ("misnamed", "refused", "says that it is the backend `tiny`"),
        ("newer", "refused", "speaks ABI 2.1 and this oxide_flow speaks ABI 1.1"),
        ("open", "refused", "anyone may write to it"),
        ("quitting", "refused", "ended the process that loaded it"),
        ("tiny", "in use", ""),
    ];
    for (backend, status, reason) in expected {
        let row = rows.iter().find(|row| row["backend"] == backend).unwrap();
        assert_eq!(row["status"], status, "{row}");
        let file = bench.library_of(backend);
        assert_eq!(row["file"], file.to_str().unwrap());
        match row["error"].as_str() {
            Some(error) => {
                assert!(error.contains(reason), "{error}");
                assert!(error.contains(file.to_str().unwrap()), "{error}");
            }
            None => assert_eq!(row["plugin"]["name"], "tiny"),
        }
        assert_eq!(row["error"].is_null(), reason.is_empty());
    }
    // People get the reasons too.
    let ran = bench.run(&["plugin", "list"]).expect(0);
    for (.., reason) in expected {
        assert!(ran.stderr.contains(reason), "{}", ran.stderr);
    }
}
