//! Panics of a plugin: reported by the call, told in the log, over with that call.

use insta::assert_snapshot;
use oxide_flow::plugin::Plugin;
use oxiflow_plugin_api::{Call, ErrorKind, Expected, Storage};
use serde_json::{Value, json};

use crate::bench::{Bench, install_rust};
use crate::kit::Ran;

/// The message of a program that a panic ended: no crash, and nothing printed past the log.
#[track_caller]
fn told_of_panic(bench: &Bench, ran: Ran) -> String {
    let ran = ran.expect(70);
    assert!(!ran.stderr.contains("panicked at"), "{}", ran.stderr);
    bench.hide(&ran.stderr)
}

fn bench(panic_in: &str) -> Bench {
    let options = format!("  backend_config: {{panic_in: \"{panic_in}\"}}\n");
    let bench = Bench::of("panicking", &options);
    install_rust(&bench, "panicking");
    bench.project.write("pipelines/p.yaml", "pipeline: [{name: greet, run: \"echo hello\"}]\n");
    bench
}

/// The error of a message, without the lines of the log, which have their own form.
fn without_log(told: &str) -> String {
    told.lines()
        .skip_while(|line| !line.starts_with("error:"))
        .map(|line| format!("{line}\n"))
        .collect()
}

#[test]
fn a_panic_in_open_is_an_error_of_the_backend() {
    let bench = bench("open");
    let told = told_of_panic(&bench, bench.run(&["state", "list"]));
    assert_snapshot!(without_log(&told), @r#"
    error: cannot open the `panicking` backend
      caused by: the backend panicked: the fixture panics in open
    "#);
}

#[test]
fn a_panic_in_get_is_an_error_of_the_backend() {
    let bench = bench("get");
    let told = told_of_panic(&bench, bench.run(&["state", "show", "p"]));
    assert_snapshot!(without_log(&told), @r#"
    error: cannot load the state of pipeline `p`
      caused by: the backend reports panic
      caused by: the backend panicked: the fixture panics in get
    "#);
}

#[test]
fn a_panic_in_list_is_an_error_of_the_backend() {
    let bench = bench("list");
    let told = told_of_panic(&bench, bench.run(&["state", "list"]));
    assert_snapshot!(without_log(&told), @r#"
    error: cannot list the pipelines
      caused by: the backend reports panic
      caused by: the backend panicked: the fixture panics in list
    "#);
}

#[test]
fn a_panic_in_put_ends_the_run_without_running_a_step() {
    let bench = bench("put");
    let ran = bench.run(&["run", "p"]);
    assert!(!ran.stdout.contains("hello"), "{}", ran.stdout);
    let told = told_of_panic(&bench, ran);
    assert_snapshot!(without_log(&told), @r#"
    error: cannot write the lease of `p`
      caused by: the backend reports panic
      caused by: the backend panicked: the fixture panics in put
    "#);
}

#[test]
fn a_panic_before_the_backend_has_a_log_is_an_error_too() {
    let bench = bench("");
    let with_panic = |arguments: &[&str]| {
        let mut command = bench.command(arguments);
        command.env("FIXTURE_PANIC_IN", "describe");
        let ran = Ran::from(command.output().unwrap()).expect(2);
        assert!(!ran.stderr.contains("panicked at"), "{}", ran.stderr);
        bench.hide(&ran.stderr)
    };
    let used = with_panic(&["state", "list"]);
    assert_snapshot!(used, @r#"
    error: [project]/plugins/liboxiflow_backend_panicking.so does not describe itself
      caused by: the backend panicked: the fixture panics in describe
    "#);
    let library = bench.library_of("panicking");
    let inspected = with_panic(&["plugin", "inspect", library.to_str().unwrap()]);
    assert_eq!(used, inspected);
}

#[test]
fn a_panic_when_closing_changes_nothing() {
    let bench = bench("close");
    let ran = bench.run(&["run", "p", "-v"]).expect(0);
    assert!(ran.stdout.contains("hello"), "{}", ran.stdout);
    assert!(!ran.stderr.contains("panicked at"), "{}", ran.stderr);
    assert!(log_of_panic(&ran.stderr, "close").is_some(), "{}", ran.stderr);
}

#[test]
fn the_message_and_the_place_of_a_panic_are_in_the_log() {
    let bench = bench("list");
    let ran = bench.run(&["-v", "state", "list"]).expect(70);
    let line = log_of_panic(&ran.stderr, "list").unwrap();
    for part in ["ERROR", "plugin", "panicking", "src/lib.rs:"] {
        assert!(line.contains(part), "{line}");
    }
}

fn log_of_panic<'a>(log: &'a str, call: &str) -> Option<&'a str> {
    let message = format!("backend panicked: the fixture panics in {call}");
    log.lines().find(|line| !line.trim_start().starts_with("caused by") && line.contains(&message))
}

/// Opens the fixture in this process.
fn open(bench: &Bench, panic_in: &str) -> Box<dyn Storage> {
    let plugin = Plugin::load(&bench.library_of("panicking")).unwrap();
    let Value::Object(options) = json!({ "panic_in": panic_in }) else {
        unreachable!("an object was written");
    };
    plugin.open(&options, bench.project.path()).unwrap()
}

#[test]
fn a_panic_in_one_call_leaves_the_others_working() {
    let bench = bench("");
    let call = Call::unbounded();
    for panic_in in ["get", "put", "delete", "list", "health"] {
        let storage = open(&bench, panic_in);
        // Twice: the first panic broke nothing.
        for _ in 0..2 {
            let outcomes = [
                ("get", storage.get(&call, "k").err()),
                ("put", storage.put(&call, "k", b"v", &Expected::Any).err()),
                ("list", storage.list(&call, "", None, 9).err()),
                ("health", storage.health(&call).err()),
                ("delete", storage.delete(&call, "k", &Expected::Any).err()),
            ];
            for (name, error) in outcomes {
                if name == panic_in {
                    let error = error.unwrap();
                    let message = format!("the backend panicked: the fixture panics in {name}");
                    assert_eq!((error.kind(), error.message()), (ErrorKind::Panic, &*message));
                } else {
                    assert!(error.is_none(), "{name} with a panic in {panic_in}: {error:?}");
                }
            }
        }
    }
}

/// A panic that could not be contained must not be able to be built.
mod abort {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use tempfile::TempDir;

    use crate::kit::repository;

    /// The compiled `oxiflow-plugin-api`, as plugins link it.
    fn plugin_api() -> PathBuf {
        let output = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--message-format=json"])
            .args(["-p", "oxiflow-backend-file", "-p", "oxiflow-backend-memory"])
            .args((!cfg!(debug_assertions)).then_some("--release"))
            .current_dir(repository())
            .output()
            .unwrap();
        String::from_utf8(output.stdout)
            .unwrap()
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|message| message["target"]["name"] == "oxiflow_plugin_api")
            .find_map(|message| {
                let files = message["filenames"].as_array()?.clone();
                let mut files = files.iter().filter_map(|file| file.as_str());
                files.find(|file| file.ends_with(".rmeta")).map(Into::into)
            })
            .unwrap()
    }

    fn check(flags: &[&str]) -> (bool, String) {
        let library = plugin_api();
        let folder = TempDir::new().unwrap();
        let source = folder.path().join("lib.rs");
        let example = "pub struct B;\n\
            impl oxiflow_plugin_api::Backend for B {\n\
            const CAPABILITIES: C = C::NONE; fn open(_: &Host, _: &BackendConfig) -> R<Self> { Ok(B) }\n\
            fn get(&self, _: &Call, _: &str, out: ValueSink<'_>) -> R<Lookup> { Ok(out.absent()) }\n\
            fn put(&self, _: &Call, _: &str, _: &[u8], _: &Expected) -> R<Version> { Ok(1.into()) }\n\
            fn delete(&self, _: &Call, _: &str, _: &Expected) -> R<bool> { Ok(false) }\n\
            fn list(&self, _: &Call, _: &str, _: Option<&str>, _: &mut ListSink<'_>) -> R<()> { Ok(()) }\n\
            }\n\
            use oxiflow_plugin_api::{*, Capabilities as C}; type R<T> = Result<T, BackendError>;\n\
            export_backend!(B);\n";
        std::fs::write(&source, example).unwrap();
        let dependencies = library.parent().unwrap().to_str().unwrap();
        let output = Command::new(Path::new(env!("CARGO")).with_file_name("rustc"))
            .args(["--edition=2024", "--crate-type=lib", "--emit=metadata"])
            .args(["-L", &format!("dependency={dependencies}")])
            .args(["--extern", &format!("oxiflow_plugin_api={}", library.display())])
            .arg("--out-dir")
            .args([folder.path(), &source])
            .args(flags)
            .env("CARGO_PKG_NAME", "oxiflow-backend-b")
            .env("CARGO_PKG_VERSION", "1.0.0")
            .env("CARGO_PKG_DESCRIPTION", "")
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    #[test]
    fn a_backend_that_aborts_on_panic_does_not_compile() {
        let (compiled, told) = check(&["-C", "panic=unwind"]);
        assert!(compiled, "{told}");
        let (compiled, told) = check(&["-C", "panic=abort"]);
        assert!(!compiled);
        let message = "error: a backend must be built with `panic = \"unwind\"`";
        assert!(told.contains(message), "{told}");
    }
}
