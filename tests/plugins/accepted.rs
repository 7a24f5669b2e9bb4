//! Plugins that are as they should be, above all the one in C, and options held against what
//! they describe.

use insta::assert_snapshot;
use oxide_flow::plugin::Plugin;
use oxiflow_plugin_api::{Call, ErrorKind, Expected};
use serde_json::{Map, Value};

use crate::bench::{Bench, compile, text};
use crate::kit::plugin_library;

#[test]
fn a_plugin_in_c_is_shown_as_what_it_says_it_is() {
    let bench = Bench::with_c(&[]);
    let ran = bench.inspect(&bench.library()).expect(0);
    let size = ran.stdout.lines().find(|line| line.starts_with("Size")).unwrap();
    let shown = bench.hide(&ran.stdout).replace(size, "Size [size]");
    assert_snapshot!(shown, @r#"
    File         [project]/plugins/liboxiflow_backend_tiny.so
    Backend      tiny
    Version      1.0
    Description  A list in C
    ABI          1.1
    Interface    C
    Promises     nothing beyond the contract
    Size [size]

    OPTION  TYPE    DEFAULT  MEANING
    label   string           what to call it
    "#);
}

#[test]
fn a_pipeline_keeps_its_state_in_a_plugin_written_in_c() {
    let bench = Bench::with_c(&[]);
    bench.project.write(
        "pipelines/p.yaml",
        r#"pipeline:
- {name: one, run: 'echo "{\"records\": 3, \"last_id\": \"c\"}" >/dev/fd/$OXIFLOW_PROGRESS_FD'}
- {name: two, run: 'echo this is $OXIFLOW_STEP'}
"#,
    );
    let ran = bench.run(&["run", "p", "--json", "-v"]).expect(0);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    let state = &document["data"];
    assert_eq!(state["status"], "completed", "{state:#}");
    assert_eq!(state["records_processed"], 3, "{state:#}");
    assert!(ran.stderr.contains("this is two"), "{}", ran.stderr);
    // What it logs reaches the host's log.
    let logged = ran.stderr.lines().find(|line| line.contains("opened a list"));
    let logged = logged.unwrap_or_else(|| panic!("{}", ran.stderr));
    assert!(logged.starts_with("INFO") && logged.contains("language=C"), "{logged}");
}

#[test]
fn a_plugin_in_c_reads_writes_lists_and_deletes() {
    let bench = Bench::with_c(&[]);
    let plugin = Plugin::load(&bench.library()).unwrap();
    assert!(!plugin.is_rust());
    let storage = plugin.open(&Map::new(), bench.project.path()).unwrap();
    let call = Call::unbounded();
    assert!(storage.get(&call, "a/1").unwrap().is_none());
    let first = storage.put(&call, "a/1", b"one", &Expected::Absent).unwrap();
    for key in ["b", "a/3", "a/2"] {
        storage.put(&call, key, key.as_bytes(), &Expected::Any).unwrap();
    }
    let entry = storage.get(&call, "a/1").unwrap().unwrap();
    assert_eq!((entry.value.as_slice(), entry.version), (&b"one"[..], first));
    let second = storage.put(&call, "a/1", b"", &Expected::Version(first)).unwrap();
    let conflict = storage.put(&call, "a/1", b"x", &Expected::Version(first)).unwrap_err();
    assert_eq!((conflict.kind(), conflict.current()), (ErrorKind::Conflict, Some(&second)));

    let keys = |after, limit| -> Vec<_> {
        let rows = storage.list(&call, "a/", after, limit).unwrap();
        rows.into_iter().map(|row| (row.key, row.size)).collect()
    };
    let row = |key: &str, size| (key.to_owned(), size);
    assert_eq!(keys(None, 2), [row("a/1", 0), row("a/2", 3)]);
    assert_eq!(keys(Some("a/2"), 9), [row("a/3", 3)]);

    let delete = |expected| storage.delete(&call, "a/1", &expected);
    let conflict = delete(Expected::Version(first)).unwrap_err();
    assert_eq!((conflict.kind(), conflict.current()), (ErrorKind::Conflict, Some(&second)));
    assert!(delete(Expected::Version(second)).unwrap());
    assert!(!delete(Expected::Any).unwrap());
    assert_eq!(keys(None, 9), [row("a/2", 3), row("a/3", 3)]);
}

#[test]
fn several_plugins_in_one_process_are_each_themselves() {
    let bench = Bench::empty();
    let memory = Plugin::load(&plugin_library("memory")).unwrap();
    let mut loaded = vec![("memory", memory)];
    for (name, flag) in [("a", "-DNAME=\"a\""), ("b", "-DNAME=\"b\""), ("c", "-DNAME=\"c\"")] {
        compile(&bench.library_of(name), &[flag]);
        loaded.push((name, Plugin::load(&bench.library_of(name)).unwrap()));
    }
    loaded.push(("file", Plugin::load(&plugin_library("file")).unwrap()));
    for (name, plugin) in &loaded {
        assert_eq!(plugin.description().name, *name);
        assert_eq!(plugin.is_rust(), name.len() > 1);
    }
}

#[test]
fn a_file_is_loaded_once_and_again_when_it_has_changed() {
    let bench = Bench::empty();
    let library = bench.library_of("once");
    let copies = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let ours = maps.lines().filter(|line| line.contains("liboxiflow_backend_once.so"));
        // One copy is mapped in several pieces, all of one inode.
        let inodes = ours.map(|line| line.split_whitespace().nth(4).unwrap().to_owned());
        inodes.collect::<std::collections::BTreeSet<_>>().len()
    };
    compile(&library, &["-DNAME=\"once\"", "-DVERSION=\"1.0\""]);
    for _ in 0..3 {
        assert_eq!(Plugin::load(&library).unwrap().description().version, "1.0");
        assert_eq!(copies(), 1);
    }
    std::fs::remove_file(&library).unwrap();
    compile(&library, &["-DNAME=\"once\"", "-DVERSION=\"1.1\""]);
    assert_eq!(Plugin::load(&library).unwrap().description().version, "1.1");
    assert_eq!(copies(), 2);
}

#[test]
fn the_header_compiles_in_the_standards_it_promises() {
    for standard in ["-std=c99", "-std=c11"] {
        let bench = Bench::with_c(&[standard, "-pedantic", "-D_POSIX_C_SOURCE=200809L"]);
        bench.inspect(&bench.library()).expect(0);
    }
}

/// What a project with these lines under `backend_config` is told.
fn refused_options(backend: &str, options: &str) -> String {
    let bench = Bench::of(backend, &format!("  backend_config:\n{options}"));
    // Were it opened, it would say so in the log.
    compile(&bench.library(), &[]);
    let ran = bench.run(&["-v", "state", "list"]).expect(2);
    assert_eq!(ran.stdout, "");
    assert!(!ran.stderr.contains("opened a list"), "{}", ran.stderr);
    ran.stderr
}

#[test]
fn an_option_that_the_backend_does_not_have_is_told_with_its_place_and_the_nearest() {
    assert_snapshot!(refused_options("memory", "    max_value_byte: 7\n"), @r#"
    error: `backend_config` does not fit the `memory` backend
      caused by: oxiflow.yaml:5: option `max_value_byte`: the backend has no such option
    hint: `max_value_byte`: did you mean `max_value_bytes`?
    "#);
    assert_snapshot!(refused_options("tiny", "    # a comment\n    lable: x\n"), @r#"
    error: `backend_config` does not fit the `tiny` backend
      caused by: oxiflow.yaml:6: option `lable`: the backend has no such option
    hint: `lable`: did you mean `label`?
    "#);
    assert_snapshot!(refused_options("tiny", "    entirely_else: x\n"), @r#"
    error: `backend_config` does not fit the `tiny` backend
      caused by: oxiflow.yaml:5: option `entirely_else`: the backend has no such option
    hint: `entirely_else`: it takes: label
    "#);
}

#[test]
fn an_option_of_the_wrong_type_is_told_with_its_place_and_without_its_value() {
    let told = refused_options("memory", "    max_value_bytes: \"hunter2\"\n");
    assert!(!told.contains("hunter2"), "{told}");
    assert_snapshot!(told, @r#"
    error: `backend_config` does not fit the `memory` backend
      caused by: oxiflow.yaml:5: option `max_value_bytes`: value is not of type "integer"
    hint: `max_value_bytes`: largest value taken, in bytes (default 67108864)
    "#);
    let told = refused_options("tiny", "    label: 73219\n");
    assert!(!told.contains("73219"), "{told}");
    assert_snapshot!(told, @r#"
    error: `backend_config` does not fit the `tiny` backend
      caused by: oxiflow.yaml:5: option `label`: value is not of type "string"
    hint: `label`: what to call it
    "#);
}

#[test]
fn an_option_out_of_range_is_told_with_its_place_and_without_its_value() {
    let told = refused_options("memory", "    max_value_bytes: 73219\n");
    assert!(!told.contains("73219"), "{told}");
    assert_snapshot!(told, @r#"
    error: `backend_config` does not fit the `memory` backend
      caused by: oxiflow.yaml:5: option `max_value_bytes`: value is less than the minimum of 16777216
    hint: `max_value_bytes`: largest value taken, in bytes (default 67108864)
    "#);
}

#[test]
fn options_that_fit_are_taken() {
    let bench = Bench::of("tiny", "  backend_config: {label: x}\n");
    compile(&bench.library(), &[]);
    let ran = bench.run(&["-v", "state", "list"]).expect(0);
    assert!(ran.stderr.contains("opened a list"), "{}", ran.stderr);
}

#[test]
fn keys_that_nobody_asked_for_are_an_error_of_the_backend() {
    let bench = Bench::with_c(&[&text("LISTED", "stray")]);
    let ran = bench.run(&["state", "list"]).expect(70);
    assert_snapshot!(bench.hide(&ran.stderr), @r"
    warning: the `tiny` backend keeps state inside one process: other commands do not see it, and it is gone when the process ends
    error: cannot list the pipelines
      caused by: the backend reports internal error
      caused by: the backend broke the contract: a listing has a key without the prefix, or not after the one before (C7)
    ");
}
