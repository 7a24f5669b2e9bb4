//! The options of an isolated backend that tells its secrets wherever it can: they cross the socket,
//! and nothing that comes back over it is shown as it is.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tempfile::TempDir;

use crate::kit::{self, Project, Ran, plugin_processes, wait_for};
use crate::{ISOLATED, beside};

const SECRETS: [&str; 3] = ["pin-kingfisher", "url-password-heron", "phrase-bittern"];

/// A folder with the fixture that leaks, as an installed plugin.
fn leaky() -> TempDir {
    let beside = kit::plugin_library("memory");
    kit::build_cdylib(&["oxiflow-backend-leaky"]);
    let folder = TempDir::new().expect("a folder");
    let library = folder.path().join("liboxiflow_backend_leaky.so");
    std::fs::copy(beside.with_file_name("libfixture_leaky.so"), &library).expect("a library");
    std::fs::set_permissions(&library, PermissionsExt::from_mode(0o755)).expect("a mode");
    folder
}

fn project(fail_in: &str) -> Project {
    let [pin, url, phrase] = SECRETS;
    let options = format!(
        "{{fail_in: {fail_in}, pin: {pin}, url: 'https://user:{url}@host/', account: {{phrase: {phrase}}}}}"
    );
    let backend = format!("backend: leaky\n  backend_config: {options}");
    Project::new(&format!("{ISOLATED}{}", kit::QUICK.replace("backend: file", &backend)))
}

fn run(project: &Project, plugins: &Path, arguments: &[&str]) -> Ran {
    let mut command = project.command(arguments);
    command.env("OXIFLOW_PLUGIN_PATH", plugins);
    Ran::from(command.output().expect("the program starts"))
}

#[test]
fn no_secret_comes_back_in_an_error_or_a_log_line() {
    let _beside = beside();
    let plugins = leaky();
    for fail_in in ["open", "get", "put", "list", "nothing"] {
        let project = project(fail_in);
        project.write("pipelines/p.yaml", "pipeline: [{name: a, run: \"true\"}]\n");
        for command in [&["run", "p"][..], &["state", "list"], &["health", "--json"]] {
            for more in [&[][..], &["-vvv"], &["-vvv", "--log-format", "json"]] {
                let ran = run(&project, plugins.path(), &[command, more].concat());
                let told = ran.stdout + &ran.stderr;
                for secret in SECRETS {
                    assert!(!told.contains(secret), "{command:?} failing in {fail_in}: {told}");
                }
                // What was masked is there to see, so the plugin did tell it.
                let has_logs = !more.is_empty();
                assert!(!has_logs || told.contains("info in open with"), "{told}");
                assert!(!has_logs || told.contains("***"), "{told}");
            }
        }
    }
    let failed = run(&project("open"), plugins.path(), &["state", "list"]).expect(1).stderr;
    assert!(failed.contains("open failed with") && failed.contains("***"), "{failed}");
}

#[test]
fn a_process_does_not_show_the_options_to_whoever_lists_processes() {
    let _beside = beside();
    let plugins = leaky();
    let project = project("nothing");
    project.write("pipelines/p.yaml", "pipeline: [{name: a, run: sleep 60}]\n");
    let mut command = project.command(["run", "p"]);
    command.env("OXIFLOW_PLUGIN_PATH", plugins.path());
    let run = kit::Running::from(command.spawn().expect("it starts"));
    let child = wait_for("a process of the plugin", || plugin_processes(run.pid()).pop());
    for file in ["cmdline", "environ"] {
        let shown = std::fs::read(format!("/proc/{child}/{file}")).expect("a running process");
        let shown = String::from_utf8_lossy(&shown);
        assert!(!shown.is_empty());
        for secret in SECRETS {
            assert!(!shown.contains(secret), "{file}: {shown}");
        }
    }
    run.kill();
}
